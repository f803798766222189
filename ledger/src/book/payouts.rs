//! The rules of payouts: an account asks, the issuer pays and burns, or gives back.
//! Invariant: a payout ends once.

use super::judge::{burn_reference, some};
use super::{Applied, ApplyError, Book};
use crate::keys::Account;
use crate::payout::{PayoutId, PayoutState, RejectReason};

/// How many payouts of one account may wait for the issuer.
pub const PAYOUTS_MAX: u32 = 64;

impl Book {
    pub(super) fn judge_payout_request(&self, nonce: u64, state: PayoutState) -> Result<Applied, ApplyError> {
        some(state.amount)?;
        if self.account(&state.account).payouts >= PAYOUTS_MAX {
            return Err(ApplyError::TooManyPayouts { max: PAYOUTS_MAX });
        }
        if state.amount < self.genesis.payout_min {
            return Err(ApplyError::BelowMinimum { min: self.genesis.payout_min });
        }
        self.has(&state.account, state.amount)?;
        Ok(Applied::PayoutRequested { payout: PayoutId::derive(&self.network, &state.account, nonce), state })
    }

    pub(super) fn judge_burn(
        &self,
        account: Account,
        payout: PayoutId,
        reference: &str,
    ) -> Result<Applied, ApplyError> {
        self.is_issuer(account)?;
        if self.references.contains(&burn_reference(reference)) {
            return Err(ApplyError::DuplicateReference);
        }
        let Some(state) = self.payout(&payout) else { return Err(ApplyError::UnknownPayout) };
        let reference = reference.to_owned();
        Ok(Applied::Burned { payout, account: state.account, amount: state.amount, reference })
    }

    pub(super) fn judge_payout_reject(
        &self,
        account: Account,
        payout: PayoutId,
        reason: RejectReason,
    ) -> Result<Applied, ApplyError> {
        self.is_issuer(account)?;
        let Some(state) = self.payout(&payout) else { return Err(ApplyError::UnknownPayout) };
        Ok(Applied::PayoutRejected { payout, account: state.account, amount: state.amount, reason })
    }
}
