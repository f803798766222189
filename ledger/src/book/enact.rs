//! What an entry that was judged does.
//! Invariant: nothing here can fail: every check was made before.

use super::committee::Election;
use super::journal::Undo;
use super::judge::{burn_reference, mint_reference};
use super::{Applied, Book, Done, minus, plus};
use crate::entry::Entry;
use crate::keys::{Account, Digest};
use crate::money::Credits;
use crate::payout::{PayoutId, PayoutState};
use crate::split::Parts;
use crate::voucher::SessionId;

impl Book {
    pub(super) fn enact(&mut self, entry: &Entry, applied: &Applied, height: u64) {
        self.change_totals(|totals| totals.entries += 1);
        let business = (entry.account, entry.business);
        self.done.insert(business, Done { height, expires_height: entry.expires_height });
        self.done_until.insert((entry.expires_height, business));
        self.note(Undo::Business(business));
        self.change_account(entry.account, |state| state.nonce += 1);

        match applied {
            Applied::Minted { to, amount, reference } => {
                self.use_reference(mint_reference(reference));
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
                self.debit(*from, *amount);
                self.credit(*to, *amount);
            }
            Applied::Opened { session, consumer, state } => {
                self.debit(*consumer, state.deposit);
                self.change_account(*consumer, |account| account.open_sessions += 1);
                self.change_totals(|totals| {
                    totals.sessions += 1;
                    totals.locked = plus(totals.locked, state.deposit);
                });
                let before = self.write_session(*session, Some(state.clone()), None);
                self.note(Undo::Session(*session, before));
            }
            Applied::Settled { session, claim, parts, last, .. } => {
                self.pay(*session, *claim, parts);
                if *last {
                    self.close(*session, height);
                }
            }
            Applied::Refunded { session, .. } => self.close(*session, height),
            Applied::ToppedUp { session, consumer, amount, deposit } => {
                self.debit(*consumer, *amount);
                self.change_totals(|totals| totals.locked = plus(totals.locked, *amount));
                self.change_session(*session, |state| state.deposit = *deposit);
            }
            Applied::Closed { session, total, parts, .. } => {
                self.pay(*session, *total, parts);
                self.close(*session, height);
            }
            Applied::Bonded { account, amount } => {
                self.debit(*account, *amount);
                self.change_account(*account, |state| state.bond = plus(state.bond, *amount));
                self.change_totals(|totals| totals.bonded = plus(totals.bonded, *amount));
            }
            Applied::Unbonding { account, amount, due_ms } => self.change_account(*account, |state| {
                state.bond = minus(state.bond, *amount);
                state.unbonding = *amount;
                state.unbonding_due_ms = *due_ms;
            }),
            Applied::PayoutRequested { payout, state } => {
                self.debit(state.account, state.amount);
                self.change_account(state.account, |account| account.payouts += 1);
                self.change_totals(|totals| totals.payouts = plus(totals.payouts, state.amount));
                self.change_payout(*payout, Some(*state));
            }
            Applied::Burned { payout, account, amount, reference } => {
                self.use_reference(burn_reference(reference));
                self.change_totals(|totals| totals.burned = plus(totals.burned, *amount));
                self.end_payout(*payout, *account, *amount);
            }
            Applied::PayoutRejected { payout, account, amount, .. } => {
                self.end_payout(*payout, *account, *amount);
                self.credit(*account, *amount);
            }
            Applied::Punished { offender, reporter, offence, slashed, reward, removed } => {
                self.offences.insert(*offence);
                self.note(Undo::Offence(*offence));
                if !slashed.is_zero() {
                    self.change_account(*offender, |state| {
                        state.bond = Credits::ZERO;
                        state.unbonding = Credits::ZERO;
                        state.unbonding_due_ms = 0;
                    });
                }
                self.change_totals(|totals| {
                    totals.bonded = minus(totals.bonded, *slashed);
                    totals.slashed = plus(totals.slashed, *slashed);
                });
                self.credit(*reporter, *reward);
                self.credit(self.genesis.treasury, minus(*slashed, *reward));
                if *removed {
                    let election = Election { at: height + 1, validator: offender.0, member: false };
                    self.vote(election, None, true);
                }
            }
            Applied::Elected { voter, validator, member, at, decided } => {
                let election = Election { at: *at, validator: *validator, member: *member };
                self.vote(election, Some(voter.0), *decided);
            }
        }
    }

    /// Pays what a session's settlement up to `total` divides into.
    fn pay(&mut self, session: SessionId, total: Credits, parts: &Parts) {
        let (provider, gateway) = {
            let state = &self.sessions[&session].state;
            (state.provider, state.gateway)
        };
        let gross = minus(total, self.sessions[&session].state.settled);
        self.change_session(session, |state| {
            state.settled = total;
            state.paid_provider = plus(state.paid_provider, parts.provider);
        });
        self.change_totals(|totals| {
            totals.locked = minus(totals.locked, gross);
            totals.settled_gross = plus(totals.settled_gross, gross);
            totals.settled_provider = plus(totals.settled_provider, parts.provider);
        });
        self.credit(provider, parts.provider);
        self.credit(gateway, parts.gateway);
        self.credit(self.genesis.validators, parts.validators);
        self.credit(self.genesis.treasury, parts.treasury);
    }

    /// Ends a session; what it still locks goes back to its consumer.
    fn close(&mut self, session: SessionId, height: u64) {
        let state = &self.sessions[&session].state;
        let (consumer, change) = (state.consumer, state.locked());
        self.change_session(session, |state| state.open = false);
        self.change_totals(|totals| totals.locked = minus(totals.locked, change));
        self.closed.insert((height, session));
        self.change_account(consumer, |state| state.open_sessions -= 1);
        self.credit(consumer, change);
    }

    fn end_payout(&mut self, payout: PayoutId, account: Account, amount: Credits) {
        self.change_totals(|totals| totals.payouts = minus(totals.payouts, amount));
        self.change_account(account, |state| state.payouts -= 1);
        self.change_payout(payout, None);
    }

    fn debit(&mut self, account: Account, amount: Credits) {
        self.change_account(account, |state| state.balance = minus(state.balance, amount));
    }

    fn use_reference(&mut self, reference: Digest) {
        self.references.insert(reference);
        self.note(Undo::Reference(reference));
    }

    fn change_session(&mut self, session: SessionId, change: impl FnOnce(&mut super::SessionState)) {
        let mut state = self.sessions[&session].state.clone();
        change(&mut state);
        let before = self.write_session(session, Some(state), None);
        self.note(Undo::Session(session, before));
    }

    fn change_payout(&mut self, payout: PayoutId, state: Option<PayoutState>) {
        let before = self.write_payout(payout, state, None);
        self.note(Undo::Payout(payout, before));
    }
}
