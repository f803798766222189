//! The book: who has what, as a fold over signed entries.
//! Invariant: balances plus locked deposits are what was minted, and every provider has at least its share of what its
//! sessions settled. `apply` checks everything, then changes everything; an error changes nothing.

mod journal;
mod judge;
mod outcome;
mod read;

use std::collections::{BTreeMap, BTreeSet};

pub use judge::{EXPIRY_HEIGHTS_MAX, OPEN_SESSIONS_MAX, SESSION_MS_MAX};
pub use outcome::{Applied, ApplyError, SessionState, Violation};

use crate::entry::Entry;
use crate::genesis::Genesis;
use crate::keys::{Account, Digest};
use crate::money::Credits;
use crate::signed::Signed;
use crate::state::{SumNode, SumTree, account_leaf};
use crate::voucher::{NetworkId, SessionId};
use journal::{Journal, Undo};

/// For how many blocks a closed session stays readable.
pub const CLOSED_KEPT_BLOCKS: u64 = 1_000;

/// An account's own name for one thing it does.
type Business = (Account, [u8; 16]);

/// What the book holds of one account.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct AccountRow {
    slot: usize,
    balance: Credits,
    nonce: u64,
    open_sessions: u32,
}

/// What the book holds of one session.
#[derive(Clone, Debug, PartialEq, Eq)]
struct SessionRow {
    /// Its place in the sessions' tree while it is open.
    slot: Option<usize>,
    state: SessionState,
}

/// A business id that was used.
#[derive(Clone, Copy, Debug)]
struct Done {
    height: u64,
    expires_height: u64,
}

/// Running totals over the whole history.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Entries applied.
    pub entries: u64,
    /// Sessions opened.
    pub sessions: u64,
    /// Credits minted.
    pub minted: Credits,
    /// Credits locked in open sessions now.
    pub locked: Credits,
    /// Credits settled, all shares together.
    pub settled_gross: Credits,
    /// Credits that providers had of that.
    pub settled_provider: Credits,
    /// The epoch that `epoch_minted` counts.
    epoch: u64,
    /// Credits minted in that epoch.
    epoch_minted: Credits,
}

/// Who has what.
///
/// Memory: one row for each account that ever held credits, one for each open session (an account opens at most
/// [`OPEN_SESSIONS_MAX`]), closed sessions for [`CLOSED_KEPT_BLOCKS`], business ids until their entry's expiry height (at
/// most [`EXPIRY_HEIGHTS_MAX`] ahead), and 32 bytes for each deposit the issuer ever minted.
#[derive(Clone, Debug)]
pub struct Book {
    genesis: Genesis,
    network: NetworkId,
    height: u64,
    accounts: BTreeMap<Account, AccountRow>,
    account_tree: SumTree,
    sessions: BTreeMap<SessionId, SessionRow>,
    session_tree: SumTree,
    closed: BTreeSet<(u64, SessionId)>,
    done: BTreeMap<Business, Done>,
    done_until: BTreeSet<(u64, Business)>,
    references: BTreeSet<Digest>,
    totals: Totals,
    /// What the changes since [`Book::begin`] replaced; `None` where nothing is being tried.
    journal: Option<Journal>,
}

impl Book {
    /// The empty book of a network.
    pub fn new(genesis: &Genesis) -> Book {
        Book {
            genesis: Genesis { bootstrap: Vec::new(), ..genesis.clone() },
            network: genesis.network_id(),
            height: 0,
            accounts: BTreeMap::new(),
            account_tree: SumTree::default(),
            sessions: BTreeMap::new(),
            session_tree: SumTree::default(),
            closed: BTreeSet::new(),
            done: BTreeMap::new(),
            done_until: BTreeSet::new(),
            references: BTreeSet::new(),
            totals: Totals::default(),
            journal: None,
        }
    }

    /// Applies an entry as part of the block at `height` with time `time_ms`. Settling twice is settling once; an error
    /// changes nothing. Heights and times must not go back from one call to the next.
    pub fn apply(&mut self, entry: &Signed<Entry>, height: u64, time_ms: u64) -> Result<Applied, ApplyError> {
        let applied = self.judge(entry, height, time_ms)?;
        // Every check has passed: nothing below can fail.
        self.enact(entry.value(), &applied, height);
        Ok(applied)
    }

    /// As [`Book::apply`], for an entry whose voucher's signature was verified before, or is vouched for by a certificate.
    pub(crate) fn apply_checked(
        &mut self,
        entry: &Signed<Entry>,
        height: u64,
        time_ms: u64,
    ) -> Result<Applied, ApplyError> {
        let applied = self.judge_checked(entry, height, time_ms)?;
        self.enact(entry.value(), &applied, height);
        Ok(applied)
    }

    fn enact(&mut self, entry: &Entry, applied: &Applied, height: u64) {
        self.forget(height);
        self.change_totals(|totals| totals.entries += 1);
        let business = (entry.account, entry.business);
        self.done.insert(business, Done { height, expires_height: entry.expires_height });
        self.done_until.insert((entry.expires_height, business));
        self.note(Undo::Business(business));
        self.change_account(entry.account, |row| row.nonce += 1);

        match applied {
            Applied::Minted { to, amount, reference } => {
                let reference = judge::reference_digest(reference);
                self.references.insert(reference);
                self.note(Undo::Reference(reference));
                let epoch = self.epoch(height);
                self.change_totals(|totals| {
                    let before = if totals.epoch == epoch { totals.epoch_minted } else { Credits::ZERO };
                    totals.epoch = epoch;
                    totals.epoch_minted = plus(before, *amount);
                    totals.minted = plus(totals.minted, *amount);
                });
                self.credit(*to, *amount);
            }
            Applied::Transferred { from, to, amount } => {
                self.change_account(*from, |row| row.balance = minus(row.balance, *amount));
                self.credit(*to, *amount);
            }
            Applied::Opened { session, consumer, state } => {
                self.change_account(*consumer, |row| {
                    row.balance = minus(row.balance, state.deposit);
                    row.open_sessions += 1;
                });
                self.change_totals(|totals| {
                    totals.sessions += 1;
                    totals.locked = plus(totals.locked, state.deposit);
                });
                self.write_session(*session, Some(state.clone()));
            }
            Applied::Settled { session, provider, consumer, claim, gross, parts, last, change, .. } => {
                let mut state = self.sessions[session].state.clone();
                state.settled = *claim;
                state.paid_provider = plus(state.paid_provider, parts.provider);
                state.open = !*last;
                self.write_session(*session, Some(state));
                self.change_totals(|totals| {
                    totals.locked = minus(minus(totals.locked, *gross), *change);
                    totals.settled_gross = plus(totals.settled_gross, *gross);
                    totals.settled_provider = plus(totals.settled_provider, parts.provider);
                });
                let gateway = self.sessions[session].state.gateway;
                self.credit(*provider, parts.provider);
                self.credit(gateway, parts.gateway);
                self.credit(self.genesis.validators, parts.validators);
                self.credit(self.genesis.treasury, parts.treasury);
                if *last {
                    self.close(*session, *consumer, *change, height);
                }
            }
            Applied::Refunded { session, consumer, amount } => {
                let mut state = self.sessions[session].state.clone();
                state.open = false;
                self.write_session(*session, Some(state));
                self.change_totals(|totals| totals.locked = minus(totals.locked, *amount));
                self.close(*session, *consumer, *amount, height);
            }
        }
    }

    fn close(&mut self, session: SessionId, consumer: Account, change: Credits, height: u64) {
        self.closed.insert((height, session));
        self.change_account(consumer, |row| row.open_sessions -= 1);
        self.credit(consumer, change);
    }

    /// Drops what no rule looks at any more at `height`.
    fn forget(&mut self, height: u64) {
        if height == self.height {
            return;
        }
        assert!(height > self.height, "heights only grow");
        self.height = height;
        while let Some(&(until, business)) = self.done_until.first() {
            if until >= height {
                break;
            }
            self.done_until.pop_first();
            self.done.remove(&business);
        }
        while let Some(&(closed, session)) = self.closed.first() {
            if closed + CLOSED_KEPT_BLOCKS >= height {
                break;
            }
            self.closed.pop_first();
            self.sessions.remove(&session);
        }
    }

    fn credit(&mut self, account: Account, amount: Credits) {
        if !amount.is_zero() {
            self.change_account(account, |row| row.balance = plus(row.balance, amount));
        }
    }

    fn change_totals(&mut self, change: impl FnOnce(&mut Totals)) {
        self.note(Undo::Totals(self.totals));
        change(&mut self.totals);
    }

    fn change_account(&mut self, account: Account, change: impl FnOnce(&mut AccountRow)) {
        let before = self.accounts.get(&account).copied();
        let mut row = before.unwrap_or_else(|| AccountRow {
            slot: self.account_tree.insert(SumNode::EMPTY),
            balance: Credits::ZERO,
            nonce: 0,
            open_sessions: 0,
        });
        change(&mut row);
        self.account_tree.set(row.slot, account_leaf(&account, row.balance, row.nonce, row.open_sessions));
        self.accounts.insert(account, row);
        self.note(Undo::Account(account, before));
    }

    /// Replaces a session's state, keeping its leaf in step: a closed one has none.
    fn write_session(&mut self, session: SessionId, state: Option<SessionState>) {
        let before = self.sessions.get(&session).cloned();
        let old_slot = before.as_ref().and_then(|row| row.slot);
        if let Some(state) = state {
            let leaf = state.open.then(|| judge::session_leaf(&session, &state));
            let slot = match (old_slot, leaf) {
                (Some(slot), Some(leaf)) => {
                    self.session_tree.set(slot, leaf);
                    Some(slot)
                }
                (Some(slot), None) => {
                    self.session_tree.remove(slot);
                    None
                }
                (None, Some(leaf)) => Some(self.session_tree.insert(leaf)),
                (None, None) => None,
            };
            self.sessions.insert(session, SessionRow { slot, state });
        }
        self.note(Undo::Session(session, before));
    }
}

/// A sum that fits because all credits together do.
fn plus(a: Credits, b: Credits) -> Credits {
    a.checked_add(b).expect("no part exceeds what was minted")
}

/// A difference that was checked before.
fn minus(a: Credits, b: Credits) -> Credits {
    a.checked_sub(b).expect("what is taken was seen to be there")
}
