//! What the book writes, and the way back: what each change replaced, for as long as a block is only tried.
//! Invariant: undone newest first, the changes leave the book exactly as it was, state root included.

use std::collections::BTreeMap;

use super::{AccountRow, Book, Business, PayoutRow, SessionRow, SessionState, Totals};
use crate::block::ValidatorSet;
use crate::book::committee::{Election, Votes};
use crate::codec::{Document, encode};
use crate::keys::{Account, Digest};
use crate::payout::{PayoutId, PayoutState};
use crate::state::{AccountState, SumNode, account_leaf};
use crate::voucher::SessionId;

/// What one change replaced.
#[derive(Clone, Debug)]
pub(super) enum Undo {
    /// The account's state, or that there was none.
    Account(Account, Option<AccountState>),
    /// The session's row, or that there was none.
    Session(SessionId, Option<SessionRow>),
    /// The payout's row, or that there was none.
    Payout(PayoutId, Option<PayoutRow>),
    /// The business id was not known.
    Business(Business),
    /// The reference was not used.
    Reference(Digest),
    /// The offence was not known.
    Offence(Digest),
    /// Who the validators were, and what they voted on.
    Committee(Box<(ValidatorSet, BTreeMap<Election, Votes>)>),
    /// The totals.
    Totals(Totals),
}

/// What the changes since [`Book::begin`] replaced.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    /// The book's height before them.
    height: u64,
    /// Oldest first.
    changes: Vec<Undo>,
}

impl Book {
    pub(super) fn note(&mut self, undo: Undo) {
        if let Some(journal) = &mut self.journal {
            journal.changes.push(undo);
        }
    }

    /// From here on, changes can be taken back with [`Book::rollback`] until [`Book::keep`].
    pub(crate) fn begin(&mut self) {
        assert!(self.journal.is_none(), "one block is tried at a time");
        self.journal = Some(Journal { height: self.height, changes: Vec::new() });
    }

    /// Makes the changes since [`Book::begin`] permanent.
    pub(crate) fn keep(&mut self) {
        self.journal = None;
    }

    /// Takes back every change since [`Book::begin`], newest first.
    pub(crate) fn rollback(&mut self) {
        let Some(Journal { height, changes }) = self.journal.take() else { return };
        for undo in changes.into_iter().rev() {
            match undo {
                Undo::Account(account, state) => self.write_account(account, state),
                Undo::Session(session, row) => {
                    // A block that is only tried is of the book's height, and a session closes once.
                    self.closed.remove(&(self.height, session));
                    let slot = row.as_ref().and_then(|row| row.slot);
                    self.write_session(session, row.map(|row| row.state), slot);
                }
                Undo::Payout(payout, row) => {
                    self.write_payout(payout, row.map(|row| row.state), row.map(|row| row.slot));
                }
                Undo::Business(business) => {
                    let done = self.done.remove(&business).expect("what is undone was done");
                    self.done_until.remove(&(done.expires_height, business));
                }
                Undo::Reference(reference) => {
                    self.references.remove(&reference);
                }
                Undo::Offence(offence) => {
                    self.offences.remove(&offence);
                }
                Undo::Committee(before) => (self.validators, self.elections) = *before,
                Undo::Totals(totals) => self.totals = totals,
            }
        }
        // What was forgotten on the way stays so: no rule looks at it at any later height.
        self.height = height;
    }

    /// Sets or removes an account's state, and what follows from it.
    pub(super) fn write_account(&mut self, account: Account, state: Option<AccountState>) {
        let before = self.accounts.get(&account).copied();
        if let Some(AccountRow { state, .. }) = before
            && state.unbonding_due_ms > 0
        {
            self.due.remove(&(state.unbonding_due_ms, account));
        }
        let Some(state) = state else {
            let row = self.accounts.remove(&account).expect("only what is there is removed");
            return self.account_tree.remove(row.slot);
        };
        if state.unbonding_due_ms > 0 {
            self.due.insert((state.unbonding_due_ms, account));
        }
        let leaf = account_leaf(&account, &state).expect("no part exceeds what was minted");
        let slot = match before {
            Some(row) => {
                self.account_tree.set(row.slot, leaf);
                row.slot
            }
            None => self.account_tree.insert(leaf),
        };
        self.accounts.insert(account, AccountRow { slot, state });
    }

    /// Sets or removes a session's state, and its leaf: a closed one has none. `restored` is the slot of a leaf that
    /// comes back.
    pub(super) fn write_session(
        &mut self,
        session: SessionId,
        state: Option<SessionState>,
        restored: Option<usize>,
    ) -> Option<SessionRow> {
        let slot = self.sessions.get(&session).and_then(|row| row.slot);
        let leaf = state.as_ref().filter(|state| state.open).map(|state| session_leaf(&session, state));
        let slot = self.write_lock(slot, leaf, restored);
        match state {
            Some(state) => self.sessions.insert(session, SessionRow { slot, state }),
            None => self.sessions.remove(&session),
        }
    }

    /// Sets or removes a payout's state, and its leaf. `restored` is the slot of a leaf that comes back.
    pub(super) fn write_payout(
        &mut self,
        payout: PayoutId,
        state: Option<PayoutState>,
        restored: Option<usize>,
    ) -> Option<PayoutRow> {
        let slot = self.payouts.get(&payout).map(|row| row.slot);
        let slot = self.write_lock(slot, state.as_ref().map(|state| payout_leaf(&payout, state)), restored);
        match state.zip(slot) {
            Some((state, slot)) => self.payouts.insert(payout, PayoutRow { slot, state }),
            None => self.payouts.remove(&payout),
        }
    }

    fn write_lock(&mut self, slot: Option<usize>, leaf: Option<SumNode>, restored: Option<usize>) -> Option<usize> {
        match (slot, leaf, restored) {
            (Some(slot), Some(leaf), _) => {
                self.lock_tree.set(slot, leaf);
                Some(slot)
            }
            (Some(slot), None, _) => {
                self.lock_tree.remove(slot);
                None
            }
            (None, Some(leaf), Some(slot)) => {
                self.lock_tree.restore(slot, leaf);
                Some(slot)
            }
            (None, Some(leaf), None) => Some(self.lock_tree.insert(leaf)),
            (None, None, _) => None,
        }
    }
}

/// The leaf of an open session.
fn session_leaf(session: &SessionId, state: &SessionState) -> SumNode {
    let digest = Digest::of(SessionState::DOMAIN, &[session.0.as_bytes(), &encode(state)]);
    SumNode { digest, sum: state.locked().micro() }
}

/// The leaf of a payout under way.
fn payout_leaf(payout: &PayoutId, state: &PayoutState) -> SumNode {
    let digest = Digest::of(PayoutState::DOMAIN, &[payout.0.as_bytes(), &encode(state)]);
    SumNode { digest, sum: state.amount.micro() }
}
