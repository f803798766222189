//! What one can ask of the book.
//! Invariant: asking changes nothing but which hashes are up to date.

use std::collections::BTreeMap;

use super::{Book, SessionState, Totals, Violation};
use crate::genesis::Genesis;
use crate::keys::{Account, Digest};
use crate::money::Credits;
use crate::split::PROVIDER_BP_MIN;
use crate::state::{AccountProof, state_root};
use crate::voucher::{NetworkId, SessionId};

impl Book {
    /// The network's id.
    pub fn network(&self) -> NetworkId {
        self.network
    }

    /// The network's constitution, without its bootstrap addresses.
    pub fn genesis(&self) -> &Genesis {
        &self.genesis
    }

    /// The highest height that an entry was applied at.
    pub fn height(&self) -> u64 {
        self.height
    }

    /// What an account can spend.
    pub fn balance(&self, account: &Account) -> Credits {
        self.accounts.get(account).map_or(Credits::ZERO, |row| row.balance)
    }

    /// The nonce that the account's next entry must have.
    pub fn nonce(&self, account: &Account) -> u64 {
        self.accounts.get(account).map_or(0, |row| row.nonce)
    }

    /// Every account that ever held credits or acted, with its balance, in the order of keys.
    pub fn accounts(&self) -> impl Iterator<Item = (&Account, Credits)> {
        self.accounts.iter().map(|(account, row)| (account, row.balance))
    }

    /// A session that is open, or was closed within the last [`super::CLOSED_KEPT_BLOCKS`] blocks.
    pub fn session(&self, session: &SessionId) -> Option<&SessionState> {
        self.sessions.get(session).map(|row| &row.state)
    }

    /// Every session that [`Book::session`] knows, in the order of ids.
    pub fn sessions(&self) -> impl Iterator<Item = (&SessionId, &SessionState)> {
        self.sessions.iter().map(|(id, row)| (id, &row.state))
    }

    /// What was ever minted.
    pub fn minted(&self) -> Credits {
        self.totals.minted
    }

    /// What is locked in open sessions.
    pub fn locked(&self) -> Credits {
        self.totals.locked
    }

    /// Running totals over the whole history.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The root over all accounts and open sessions. Halts if their sum is not what was minted: then the book is wrong,
    /// and nothing may be signed.
    ///
    /// # Panics
    /// On that violation only.
    pub fn state_root(&mut self) -> Digest {
        let (accounts, sessions) = (self.account_tree.top(), self.session_tree.top());
        assert_eq!(sessions.sum, self.totals.locked.micro(), "what sessions lock is what the book says is locked");
        let held = u128::from(accounts.sum) + u128::from(sessions.sum);
        assert_eq!(held, u128::from(self.totals.minted.micro()), "no credit appears or vanishes");
        state_root(&accounts, &sessions)
    }

    /// The proof of an account under [`Book::state_root`]; `None` for an account that the book has never seen.
    pub fn account_proof(&mut self, account: &Account) -> Option<AccountProof> {
        let row = *self.accounts.get(account)?;
        Some(AccountProof {
            account: *account,
            balance: row.balance,
            nonce: row.nonce,
            open_sessions: row.open_sessions,
            slot: row.slot as u64,
            beside: self.account_tree.path(row.slot),
            sessions: self.session_tree.top(),
        })
    }

    /// Counts everything anew and compares. What every block checks by sums is checked here row by row.
    pub fn check(&self) -> Result<(), Violation> {
        let mut open: BTreeMap<Account, u32> = BTreeMap::new();
        let mut locked = 0_u128;
        for (id, row) in &self.sessions {
            let state = &row.state;
            let due = u128::from(state.settled.micro()) * u128::from(PROVIDER_BP_MIN);
            let paid = u128::from(state.paid_provider.micro()) * 10_000;
            if state.settled > state.deposit || paid < due || state.paid_provider > state.settled {
                return Err(Violation::Session(*id));
            }
            if state.open {
                locked += u128::from(state.locked().micro());
                *open.entry(state.consumer).or_default() += 1;
            }
        }
        if locked != u128::from(self.totals.locked.micro()) {
            return Err(Violation::Locked { counted: locked, said: self.totals.locked });
        }
        let mut balances = 0_u128;
        for (account, row) in &self.accounts {
            balances += u128::from(row.balance.micro());
            if open.get(account).copied().unwrap_or(0) != row.open_sessions {
                return Err(Violation::OpenSessions(*account));
            }
        }
        let minted = self.totals.minted;
        if balances + locked != u128::from(minted.micro()) {
            return Err(Violation::Conservation { balances, locked, minted });
        }
        Ok(())
    }

    /// Everything the book remembers, hashes aside.
    #[cfg(test)]
    pub(crate) fn contents(&self) -> String {
        let Book { height, accounts, sessions, closed, done, done_until, references, totals, .. } = self;
        format!("{height} {accounts:?} {sessions:?} {closed:?} {done:?} {done_until:?} {references:?} {totals:?}")
    }
}
