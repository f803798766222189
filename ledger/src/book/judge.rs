//! The rules: what an entry would do, or why it may not.
//! Invariant: judging changes nothing.

use wincode::config::DefaultConfig;

use super::{Applied, ApplyError, Book, SessionState};
use crate::codec::decode;
use crate::entry::{Action, Entry};
use crate::keys::{Account, Digest, PublicKey};
use crate::money::{Credits, Usage};
use crate::signed::{Signed, SignedBytes};
use crate::state::SumNode;
use crate::voucher::{SessionId, Voucher};

/// How many blocks ahead an entry may expire, and so how long business ids are kept.
pub const EXPIRY_HEIGHTS_MAX: u64 = 10_000;
/// How many sessions one account may have open as a consumer.
pub const OPEN_SESSIONS_MAX: u32 = 1_024;
/// The longest a session may last: 366 days, in milliseconds.
pub const SESSION_MS_MAX: u64 = 366 * 24 * 3_600_000;

/// Whether a voucher's own signature is still to be verified.
#[derive(Clone, Copy, PartialEq, Eq)]
enum VoucherSignature {
    Unchecked,
    Checked,
}

/// What [`Action::Settle`] asks for.
struct Claim<'a> {
    voucher: &'a SignedBytes,
    claim: Credits,
    usage: Usage,
    receipts: Digest,
    last: bool,
}

impl Book {
    /// What the entry would do at this height and time. Errors in the order of [`ApplyError`]'s variants.
    pub fn judge(&self, entry: &Signed<Entry>, height: u64, time_ms: u64) -> Result<Applied, ApplyError> {
        self.admit(entry, height, 0)?;
        self.judge_action(entry.value(), height, time_ms, VoucherSignature::Unchecked)
    }

    /// As [`Book::judge`], with `pending` entries of the account to come before this one.
    pub(crate) fn judge_pending(
        &self,
        entry: &Signed<Entry>,
        height: u64,
        time_ms: u64,
        pending: u64,
    ) -> Result<Applied, ApplyError> {
        self.admit(entry, height, pending)?;
        self.judge_action(entry.value(), height, time_ms, VoucherSignature::Unchecked)
    }

    pub(super) fn judge_checked(
        &self,
        entry: &Signed<Entry>,
        height: u64,
        time_ms: u64,
    ) -> Result<Applied, ApplyError> {
        self.admit(entry, height, 0)?;
        self.judge_action(entry.value(), height, time_ms, VoucherSignature::Checked)
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
    fn judge_action(
        &self,
        entry: &Entry,
        height: u64,
        time_ms: u64,
        signature: VoucherSignature,
    ) -> Result<Applied, ApplyError> {
        let account = entry.account;
        match &entry.action {
            Action::Mint { to, amount, reference } => self.judge_mint(account, *to, *amount, reference, height),
            Action::Transfer { to, amount } => {
                some(*amount)?;
                self.known_or_strong(to, "to")?;
                self.has(&account, *amount)?;
                Ok(Applied::Transferred { from: account, to: *to, amount: *amount })
            }
            Action::Open { provider, gateway, voucher_key, deposit, price_cap, expires_ms } => {
                let state = SessionState {
                    consumer: account,
                    provider: *provider,
                    gateway: *gateway,
                    voucher_key: *voucher_key,
                    price_cap: *price_cap,
                    deposit: *deposit,
                    settled: Credits::ZERO,
                    paid_provider: Credits::ZERO,
                    expires_ms: *expires_ms,
                    open: true,
                    opened_height: height,
                };
                self.judge_open(state, entry.nonce, time_ms)
            }
            Action::Settle { voucher, claim, usage, receipts, last } => {
                let asked = Claim { voucher, claim: *claim, usage: *usage, receipts: *receipts, last: *last };
                self.judge_settle(account, &asked, signature)
            }
            Action::Refund { session } => self.judge_refund(account, session, time_ms),
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
        if account != self.genesis.issuer {
            return Err(ApplyError::NotIssuer);
        }
        some(amount)?;
        self.known_or_strong(&to, "to")?;
        if self.references.contains(&reference_digest(reference)) {
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

    fn judge_open(&self, state: SessionState, nonce: u64, time_ms: u64) -> Result<Applied, ApplyError> {
        let consumer = state.consumer;
        some(state.deposit)?;
        self.known_or_strong(&state.provider, "provider")?;
        self.known_or_strong(&state.gateway, "gateway")?;
        strong(&state.voucher_key, "voucher_key")?;
        if state.provider == consumer {
            return Err(ApplyError::SelfSession);
        }
        let max = time_ms.saturating_add(SESSION_MS_MAX);
        if state.expires_ms <= time_ms || state.expires_ms > max {
            return Err(ApplyError::BadExpiry { after: time_ms, max });
        }
        if self.accounts.get(&consumer).is_some_and(|row| row.open_sessions >= OPEN_SESSIONS_MAX) {
            return Err(ApplyError::TooManySessions { max: OPEN_SESSIONS_MAX });
        }
        self.has(&consumer, state.deposit)?;
        Ok(Applied::Opened { session: SessionId::derive(&self.network, &consumer, nonce), consumer, state })
    }

    /// The signature comes first: whatever an unsigned voucher says is not even compared.
    fn judge_settle(
        &self,
        account: Account,
        asked: &Claim<'_>,
        signature: VoucherSignature,
    ) -> Result<Applied, ApplyError> {
        let voucher: Voucher = match signature {
            VoucherSignature::Unchecked => {
                Signed::<Voucher>::open(asked.voucher.clone()).map_err(|_| ApplyError::ForgedVoucher)?.into_value()
            }
            VoucherSignature::Checked => decode(&asked.voucher.document).map_err(|_| ApplyError::ForgedVoucher)?,
        };
        if voucher.network != self.network {
            return Err(ApplyError::WrongSession);
        }
        let Some(state) = self.session(&voucher.session) else { return Err(ApplyError::UnknownSession) };
        if asked.voucher.signer != state.voucher_key {
            return Err(ApplyError::ForgedVoucher);
        }
        if account != state.provider {
            return Err(ApplyError::NotProvider);
        }
        if !state.open {
            return Err(ApplyError::SessionClosed);
        }
        if voucher.total > state.deposit {
            return Err(ApplyError::OverDeposit { total: voucher.total, deposit: state.deposit });
        }
        if asked.claim > voucher.total {
            return Err(ApplyError::OverVoucher { claim: asked.claim, total: voucher.total });
        }
        // A last settlement may add nothing: it only closes, so that the consumer has its change before expiry.
        let nothing_new = asked.claim == state.settled && !asked.last;
        if asked.claim < state.settled || nothing_new {
            return Err(ApplyError::StaleVoucher { settled: state.settled });
        }
        let gross = asked.claim.checked_sub(state.settled).expect("the claim was seen not to be below");
        let left =
            state.deposit.checked_sub(asked.claim).expect("the claim is within the voucher, that in the deposit");
        Ok(Applied::Settled {
            session: voucher.session,
            provider: state.provider,
            consumer: state.consumer,
            claim: asked.claim,
            gross,
            parts: self.genesis.split.parts(state.settled, asked.claim),
            usage: asked.usage,
            receipts: asked.receipts,
            last: asked.last,
            change: if asked.last { left } else { Credits::ZERO },
        })
    }

    fn judge_refund(&self, account: Account, session: &SessionId, time_ms: u64) -> Result<Applied, ApplyError> {
        let Some(state) = self.session(session) else { return Err(ApplyError::UnknownSession) };
        if account != state.consumer {
            return Err(ApplyError::NotConsumer);
        }
        if !state.open {
            return Err(ApplyError::SessionClosed);
        }
        let at = state.expires_ms.saturating_add(self.genesis.grace_ms);
        if time_ms < at {
            return Err(ApplyError::TooEarly { at });
        }
        Ok(Applied::Refunded { session: *session, consumer: account, amount: state.locked() })
    }

    pub(super) fn epoch(&self, height: u64) -> u64 {
        height / self.genesis.epoch_blocks.max(1)
    }

    fn has(&self, account: &Account, need: Credits) -> Result<(), ApplyError> {
        let have = self.balance(account);
        if have < need { Err(ApplyError::InsufficientBalance { have, need }) } else { Ok(()) }
    }

    /// An account that the book knows has been found strong before.
    fn known_or_strong(&self, account: &Account, field: &'static str) -> Result<(), ApplyError> {
        if self.accounts.contains_key(account) { Ok(()) } else { strong(&account.0, field) }
    }
}

fn strong(key: &PublicKey, field: &'static str) -> Result<(), ApplyError> {
    if key.is_strong() { Ok(()) } else { Err(ApplyError::WeakKey(field)) }
}

fn some(amount: Credits) -> Result<(), ApplyError> {
    if amount.is_zero() { Err(ApplyError::ZeroAmount) } else { Ok(()) }
}

pub(super) fn reference_digest(reference: &str) -> Digest {
    Digest::of("spillway/reference/1", &[reference.as_bytes()])
}

/// The leaf of an open session.
pub(super) fn session_leaf(session: &SessionId, state: &SessionState) -> SumNode {
    let bytes = <SessionState as wincode::config::Serialize<DefaultConfig>>::serialize(state, DefaultConfig::default())
        .expect("a session's state is of fixed size");
    SumNode {
        digest: Digest::of("spillway/state/session/1", &[session.0.as_bytes(), &bytes]),
        sum: state.locked().micro(),
    }
}
