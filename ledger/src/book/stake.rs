//! The rules of bonds: put at stake, asked back, returned after a while, or taken for an offence.
//! Invariant: what was asked back is at stake until it is returned.

use super::judge::some;
use super::{Applied, ApplyError, Book, plus};
use crate::evidence::Offence;
use crate::keys::Account;
use crate::money::Credits;

/// The reporter's part of what is taken for an offence; the rest is the treasury's.
const REWARD_DIVISOR: u64 = 10;

impl Book {
    pub(super) fn judge_unbond(&self, account: Account, amount: Credits, time_ms: u64) -> Result<Applied, ApplyError> {
        some(amount)?;
        let state = self.account(&account);
        let Some(rest) = state.bond.checked_sub(amount) else {
            return Err(ApplyError::InsufficientBond { have: state.bond, need: amount });
        };
        let need = self.genesis.validator_bond;
        if rest < need && self.validators.contains(&account.0) {
            return Err(ApplyError::BondInUse { need });
        }
        if !state.unbonding.is_zero() {
            return Err(ApplyError::UnbondPending { until_ms: state.unbonding_due_ms });
        }
        let due_ms = time_ms.saturating_add(self.genesis.unbond_ms).max(1);
        Ok(Applied::Unbonding { account, amount, due_ms })
    }

    pub(super) fn judge_evidence(&self, reporter: Account, offence: &Offence) -> Result<Applied, ApplyError> {
        if self.offences.contains(&offence.id) {
            return Err(ApplyError::KnownOffence);
        }
        let offender = Account(offence.offender);
        let state = self.account(&offender);
        let slashed = plus(state.bond, state.unbonding);
        let removed = offence.as_validator && self.is_to_be_removed(&offence.offender);
        if slashed.is_zero() && !removed {
            return Err(ApplyError::NothingAtStake);
        }
        let reward = Credits::new(slashed.micro() / REWARD_DIVISOR);
        Ok(Applied::Punished { offender, reporter, offence: offence.id, slashed, reward, removed })
    }

    /// Returns what `account` asked back of its bond.
    pub(super) fn release(&mut self, account: Account) {
        let amount = self.account(&account).unbonding;
        self.change_account(account, |state| {
            state.balance = plus(state.balance, amount);
            state.unbonding = Credits::ZERO;
            state.unbonding_due_ms = 0;
        });
        self.change_totals(|totals| totals.bonded = super::minus(totals.bonded, amount));
    }
}
