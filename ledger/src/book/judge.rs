//! The rules: what an entry would do, or why it may not. Here: those for every entry, and for credits that come or go.
//! Invariant: judging changes nothing.

use super::{Applied, ApplyError, Book};
use crate::entry::{Action, Entry};
use crate::keys::{Account, Digest, PublicKey};
use crate::money::Credits;
use crate::payout::PayoutState;
use crate::screen::{Inner, Screened};
use crate::signed::Signed;

/// How many blocks ahead an entry may expire, and so how long business ids are kept.
pub const EXPIRY_HEIGHTS_MAX: u64 = 10_000;

impl Book {
    /// What the entry would do at this height and time. Errors in the order of [`ApplyError`]'s variants.
    pub fn judge(&self, entry: &Signed<Entry>, height: u64, time_ms: u64) -> Result<Applied, ApplyError> {
        self.judge_screened(&Screened::new(entry.clone()), height, time_ms, 0)
    }

    /// As [`Book::judge`], for an entry whose signatures have been looked at, with `pending` entries of the account to
    /// come before it.
    pub(crate) fn judge_screened(
        &self,
        entry: &Screened,
        height: u64,
        time_ms: u64,
        pending: u64,
    ) -> Result<Applied, ApplyError> {
        self.admit(entry.entry(), height, pending)?;
        self.judge_action(entry.entry().value(), entry.inner(), height, time_ms)
    }

    /// The rules that hold for every entry, with `pending` entries of the account to come before this one.
    pub fn admit(&self, signed: &Signed<Entry>, height: u64, pending: u64) -> Result<(), ApplyError> {
        let entry = signed.value();
        if entry.network != self.network {
            return Err(ApplyError::WrongNetwork);
        }
        if signed.signer() != entry.account.0 {
            return Err(ApplyError::WrongSigner);
        }
        if entry.expires_height < height {
            return Err(ApplyError::Expired { at: entry.expires_height });
        }
        let max = height.saturating_add(EXPIRY_HEIGHTS_MAX);
        if entry.expires_height > max {
            return Err(ApplyError::TooFarExpiry { max });
        }
        if let Some(done) = self.done.get(&(entry.account, entry.business))
            && done.expires_height >= height
        {
            return Err(ApplyError::AlreadyApplied { height: done.height });
        }
        let expected = self.nonce(&entry.account).saturating_add(pending);
        if entry.nonce != expected {
            return Err(ApplyError::BadNonce { expected });
        }
        Ok(())
    }

    /// The rules of each action.
    fn judge_action(&self, entry: &Entry, inner: Inner, height: u64, time_ms: u64) -> Result<Applied, ApplyError> {
        let account = entry.account;
        let holds = inner == Inner::Holds(true);
        match &entry.action {
            Action::Mint { to, amount, reference } => self.judge_mint(account, *to, *amount, reference, height),
            Action::Transfer { to, amount } => {
                some(*amount)?;
                self.known_or_strong(to, "to")?;
                self.has(&account, *amount)?;
                Ok(Applied::Transferred { from: account, to: *to, amount: *amount })
            }
            Action::Open { .. } => self.judge_open(entry, height, time_ms),
            Action::Settle { voucher, claim, usage, receipts, last } => {
                let voucher = holds.then_some(voucher).ok_or(ApplyError::ForgedVoucher)?;
                self.judge_settle(account, voucher, *claim, (*usage, *receipts), *last)
            }
            Action::Refund { session } => self.judge_refund(account, session, time_ms),
            Action::TopUp { session, amount } => self.judge_top_up(account, session, *amount),
            Action::Close { closing } => {
                let closing = holds.then_some(closing).ok_or(ApplyError::ForgedClosing)?;
                self.judge_close(account, closing)
            }
            Action::Bond { amount } => {
                some(*amount)?;
                self.has(&account, *amount)?;
                Ok(Applied::Bonded { account, amount: *amount })
            }
            Action::Unbond { amount } => self.judge_unbond(account, *amount, time_ms),
            Action::PayoutRequest { amount, payee } => {
                let state = PayoutState { account, amount: *amount, payee: *payee, height, time_ms };
                self.judge_payout_request(entry.nonce, state)
            }
            Action::Burn { payout, reference } => self.judge_burn(account, *payout, reference),
            Action::PayoutReject { payout, reason } => self.judge_payout_reject(account, *payout, *reason),
            Action::Evidence { .. } => match inner {
                Inner::Offence(Some(offence)) => self.judge_evidence(account, &offence),
                Inner::Offence(None) | Inner::Plain | Inner::Holds(_) => Err(ApplyError::NoOffence),
            },
            Action::Elect { validator, member, at } => self.judge_elect(account, *validator, *member, *at, height),
        }
    }

    fn judge_mint(
        &self,
        account: Account,
        to: Account,
        amount: Credits,
        reference: &str,
        height: u64,
    ) -> Result<Applied, ApplyError> {
        self.is_issuer(account)?;
        some(amount)?;
        self.known_or_strong(&to, "to")?;
        if self.references.contains(&mint_reference(reference)) {
            return Err(ApplyError::DuplicateReference);
        }
        let same_epoch = self.totals.epoch == self.epoch(height);
        let minted = if same_epoch { self.totals.epoch_minted } else { Credits::ZERO };
        let left = self.genesis.mint_max_per_epoch.saturating_sub(minted);
        if amount > left {
            return Err(ApplyError::EpochCap { left });
        }
        if self.totals.minted.checked_add(amount).is_none() {
            return Err(ApplyError::SupplyFull);
        }
        Ok(Applied::Minted { to, amount, reference: reference.to_owned() })
    }

    pub(super) fn is_issuer(&self, account: Account) -> Result<(), ApplyError> {
        if account == self.genesis.issuer { Ok(()) } else { Err(ApplyError::NotIssuer) }
    }

    pub(super) fn epoch(&self, height: u64) -> u64 {
        height / self.genesis.epoch_blocks.max(1)
    }

    pub(super) fn has(&self, account: &Account, need: Credits) -> Result<(), ApplyError> {
        let have = self.balance(account);
        if have < need { Err(ApplyError::InsufficientBalance { have, need }) } else { Ok(()) }
    }

    /// An account that the book knows has been found strong before.
    pub(super) fn known_or_strong(&self, account: &Account, field: &'static str) -> Result<(), ApplyError> {
        if self.accounts.contains_key(account) { Ok(()) } else { strong(&account.0, field) }
    }
}

pub(super) fn strong(key: &PublicKey, field: &'static str) -> Result<(), ApplyError> {
    if key.is_strong() { Ok(()) } else { Err(ApplyError::WeakKey(field)) }
}

pub(super) fn some(amount: Credits) -> Result<(), ApplyError> {
    if amount.is_zero() { Err(ApplyError::ZeroAmount) } else { Ok(()) }
}

pub(super) fn mint_reference(reference: &str) -> Digest {
    Digest::of("spillway/reference/1", &[reference.as_bytes()])
}

pub(super) fn burn_reference(reference: &str) -> Digest {
    Digest::of("spillway/burn-reference/1", &[reference.as_bytes()])
}
