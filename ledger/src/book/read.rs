//! What one can ask of the book.
//! Invariant: asking changes nothing but which hashes are up to date.

use std::collections::BTreeMap;

use super::{Book, SessionState, Totals, Violation, minus};
use crate::genesis::Genesis;
use crate::keys::{Account, Digest};
use crate::money::Credits;
use crate::payout::{PayoutId, PayoutState};
use crate::split::PROVIDER_BP_MIN;
use crate::state::{AccountProof, AccountState, state_root};
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
        self.account(account).balance
    }

    /// The nonce that the account's next entry must have.
    pub fn nonce(&self, account: &Account) -> u64 {
        self.account(account).nonce
    }

    /// What an account has put at stake, what it asked back of it not counted.
    pub fn bond(&self, account: &Account) -> Credits {
        self.account(account).bond
    }

    /// All that the book says of an account; of one it has never seen, nothing.
    pub fn account_state(&self, account: &Account) -> AccountState {
        self.account(account)
    }

    /// A payout that waits for the issuer.
    pub fn payout(&self, payout: &PayoutId) -> Option<&PayoutState> {
        self.payouts.get(payout).map(|row| &row.state)
    }

    /// Every payout that waits for the issuer, in the order of ids.
    pub fn payouts(&self) -> impl Iterator<Item = (&PayoutId, &PayoutState)> {
        self.payouts.iter().map(|(id, row)| (id, &row.state))
    }

    /// Every account that ever held credits or acted, with its balance, in the order of keys.
    pub fn accounts(&self) -> impl Iterator<Item = (&Account, Credits)> {
        self.accounts.iter().map(|(account, row)| (account, row.state.balance))
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

    /// All credits that there are: what was minted less what was burned.
    pub fn supply(&self) -> Credits {
        minus(self.totals.minted, self.totals.burned)
    }

    /// What is locked in open sessions.
    pub fn locked(&self) -> Credits {
        self.totals.locked
    }

    /// Running totals over the whole history.
    pub fn totals(&self) -> Totals {
        self.totals
    }

    /// The root over all accounts, open sessions and payouts. Halts if their sum is not the supply: then the book is
    /// wrong, and nothing may be signed.
    ///
    /// # Panics
    /// On that violation only.
    pub fn state_root(&mut self) -> Digest {
        let (accounts, locks) = (self.account_tree.top(), self.lock_tree.top());
        let locked = u128::from(self.totals.locked.micro()) + u128::from(self.totals.payouts.micro());
        assert_eq!(u128::from(locks.sum), locked, "what is locked is what the book says is locked");
        let held = u128::from(accounts.sum) + u128::from(locks.sum);
        assert_eq!(held, u128::from(self.supply().micro()), "no credit appears or vanishes");
        state_root(&accounts, &locks, &self.rest())
    }

    /// The digest of what is neither an account nor locked: totals, validators, and the elections under way.
    fn rest(&self) -> Digest {
        const FITS: &str = "a few numbers and keys fit the encoder's limit";
        let mut parts =
            vec![wincode::serialize(&self.totals).expect(FITS), self.validators.digest().as_bytes().to_vec()];
        for (election, votes) in &self.elections {
            parts.push(wincode::serialize(election).expect(FITS));
            parts.push(vec![u8::from(votes.decided)]);
            parts.extend(votes.voters.iter().map(|voter| voter.as_bytes().to_vec()));
        }
        let parts: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        Digest::of("spillway/state/rest/1", &parts)
    }

    /// The proof of an account under [`Book::state_root`]; `None` for an account that the book has never seen.
    pub fn account_proof(&mut self, account: &Account) -> Option<AccountProof> {
        let row = *self.accounts.get(account)?;
        Some(AccountProof {
            account: *account,
            state: row.state,
            slot: row.slot as u64,
            beside: self.account_tree.path(row.slot),
            locks: self.lock_tree.top(),
            rest: self.rest(),
        })
    }

    /// Counts everything anew and compares. What every block checks by sums is checked here row by row.
    pub fn check(&self) -> Result<(), Violation> {
        let mut counts: BTreeMap<Account, (u32, u32)> = BTreeMap::new();
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
                counts.entry(state.consumer).or_default().0 += 1;
            }
        }
        let mut payouts = 0_u128;
        for row in self.payouts.values() {
            payouts += u128::from(row.state.amount.micro());
            counts.entry(row.state.account).or_default().1 += 1;
        }
        let (mut accounts, mut bonded) = (0_u128, 0_u128);
        for (account, AccountState { balance, bond, unbonding, open_sessions, payouts, .. }) in
            self.accounts.iter().map(|(account, row)| (account, row.state))
        {
            bonded += u128::from(bond.micro()) + u128::from(unbonding.micro());
            accounts += u128::from(balance.micro());
            if counts.get(account).copied().unwrap_or_default() != (open_sessions, payouts) {
                return Err(Violation::Counts(*account));
            }
        }
        accounts += bonded;
        for (what, counted, said) in [
            ("locked deposits", locked, self.totals.locked),
            ("payouts under way", payouts, self.totals.payouts),
            ("bonds", bonded, self.totals.bonded),
        ] {
            if counted != u128::from(said.micro()) {
                return Err(Violation::Total { what, counted, said });
            }
        }
        let supply = self.supply();
        if accounts + locked + payouts != u128::from(supply.micro()) {
            return Err(Violation::Conservation { accounts, locked, payouts, supply });
        }
        Ok(())
    }

    /// Copies with one figure off each, and which part of [`Book::check`] is to find it; of a book in which every kind of row is.
    #[cfg(test)]
    pub(crate) fn falsified(&self) -> Vec<(&'static str, Self)> {
        let session = *self.sessions.keys().next().expect("a session");
        let account = self.sessions[&session].state.consumer;
        let more = |amount: &mut Credits| *amount = Credits::new(amount.micro() + 1);
        let less = |amount: &mut Credits| *amount = Credits::new(amount.micro() - 1);
        let with = |change: &dyn Fn(&mut Self)| {
            let mut book = self.clone();
            change(&mut book);
            book
        };
        let row = |change: &dyn Fn(&mut AccountState)| {
            with(&|book| change(&mut book.accounts.get_mut(&account).expect("the account").state))
        };
        let paid = |settled: u64, provider: u64| {
            with(&|book| {
                let state = &mut book.sessions.get_mut(&session).expect("the session").state;
                (state.settled, state.paid_provider) = (Credits::new(settled), Credits::new(provider));
            })
        };
        let SessionState { deposit, settled, .. } = self.sessions[&session].state;
        let (deposit, settled) = (deposit.micro(), settled.micro());
        vec![
            ("session", paid(settled, settled + 1)),
            ("session", paid(deposit, deposit * 699 / 1_000)),
            ("session", paid(deposit, deposit + 1)),
            ("session", paid(deposit + 1, deposit + 1)),
            // Seven tenths are enough, and all is not too much; then other sums are off.
            ("total", paid(deposit, deposit * 7 / 10)),
            ("total", paid(deposit, deposit)),
            ("counts", row(&|state| state.open_sessions += 1)),
            ("counts", row(&|state| state.open_sessions -= 1)),
            ("counts", row(&|state| state.payouts += 1)),
            ("total", row(&|state| more(&mut state.bond))),
            ("total", row(&|state| less(&mut state.unbonding))),
            ("total", with(&|book| more(&mut book.totals.locked))),
            ("total", with(&|book| less(&mut book.totals.payouts))),
            ("total", with(&|book| more(&mut book.totals.bonded))),
            ("supply", row(&|state| more(&mut state.balance))),
            ("supply", row(&|state| less(&mut state.balance))),
            ("supply", with(&|book| more(&mut book.totals.minted))),
            ("supply", with(&|book| more(&mut book.totals.burned))),
        ]
    }

    /// Everything the book remembers, hashes aside.
    #[cfg(test)]
    pub(crate) fn contents(&self) -> String {
        let Book { height, accounts, due, sessions, payouts, closed, done, done_until, references, .. } = self;
        let Book { offences, validators, elections, totals, .. } = self;
        format!(
            "{height} {accounts:?} {due:?} {sessions:?} {payouts:?} {closed:?} {done:?} {done_until:?} {references:?} \
             {offences:?} {validators:?} {elections:?} {totals:?}"
        )
    }
}
