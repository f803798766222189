//! The way back: what each change to the book replaced, for as long as a block is only tried.
//! Invariant: undone newest first, the changes leave the book exactly as it was, state root included.

use super::{AccountRow, Book, Business, SessionRow, Totals, judge};
use crate::keys::{Account, Digest};
use crate::state::account_leaf;
use crate::voucher::SessionId;

/// What one change replaced.
#[derive(Clone, Debug)]
pub(super) enum Undo {
    /// The account's row, or that there was none.
    Account(Account, Option<AccountRow>),
    /// The session's row, or that there was none.
    Session(SessionId, Option<SessionRow>),
    /// The business id was not known.
    Business(Business),
    /// The reference was not used.
    Reference(Digest),
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
                Undo::Account(account, Some(row)) => {
                    self.account_tree.set(row.slot, account_leaf(&account, row.balance, row.nonce, row.open_sessions));
                    self.accounts.insert(account, row);
                }
                Undo::Account(account, None) => {
                    let row = self.accounts.remove(&account).expect("what is undone was done");
                    self.account_tree.remove(row.slot);
                }
                Undo::Session(session, before) => self.undo_session(session, before),
                Undo::Business(business) => {
                    let done = self.done.remove(&business).expect("what is undone was done");
                    self.done_until.remove(&(done.expires_height, business));
                }
                Undo::Reference(reference) => {
                    self.references.remove(&reference);
                }
                Undo::Totals(totals) => self.totals = totals,
            }
        }
        // What was forgotten on the way stays so: no rule looks at it at any later height.
        self.height = height;
    }

    fn undo_session(&mut self, session: SessionId, before: Option<SessionRow>) {
        let now = self.sessions.remove(&session).expect("what is undone was done");
        let before_slot = before.as_ref().and_then(|row| row.slot);
        match (now.slot, before_slot) {
            (Some(slot), None) => self.session_tree.remove(slot),
            (now_slot, Some(slot)) => {
                let state = &before.as_ref().expect("a slot belongs to a row").state;
                let leaf = judge::session_leaf(&session, state);
                if now_slot.is_some() {
                    self.session_tree.set(slot, leaf);
                } else {
                    self.session_tree.restore(slot, leaf);
                    // A block that is only tried is of the book's height.
                    self.closed.remove(&(self.height, session));
                }
            }
            (None, None) => {}
        }
        if let Some(row) = before {
            self.sessions.insert(session, row);
        }
    }
}
