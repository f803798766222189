//! The rules of payment sessions: opened by the consumer, settled by the provider, ended by either or both.
//! Invariant: what is settled only grows, never above the voucher and the deposit, and is divided by the genesis' split.

use super::judge::{some, strong};
use super::{Applied, ApplyError, Book, SessionState, minus};
use crate::closing::Closing;
use crate::codec::decode;
use crate::entry::{Action, Entry};
use crate::keys::{Account, Digest};
use crate::money::{Credits, Usage};
use crate::signed::SignedBytes;
use crate::split::Parts;
use crate::voucher::{SessionId, Voucher};

/// How many sessions one account may have open as a consumer.
pub const OPEN_SESSIONS_MAX: u32 = 1_024;
/// The longest a session may last: 366 days, in milliseconds.
pub const SESSION_MS_MAX: u64 = 366 * 24 * 3_600_000;

/// What paying a session up to a total comes to.
struct Payment {
    gross: Credits,
    parts: Parts,
    left: Credits,
}

impl Book {
    pub(super) fn judge_open(&self, entry: &Entry, height: u64, time_ms: u64) -> Result<Applied, ApplyError> {
        let Action::Open { provider, gateway, voucher_key, deposit, price_cap, expires_ms } = &entry.action else {
            unreachable!("only `Open` entries come here")
        };
        let consumer = entry.account;
        let state = SessionState {
            consumer,
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
        if self.account(&consumer).open_sessions >= OPEN_SESSIONS_MAX {
            return Err(ApplyError::TooManySessions { max: OPEN_SESSIONS_MAX });
        }
        self.has(&consumer, state.deposit)?;
        Ok(Applied::Opened { session: SessionId::derive(&self.network, &consumer, entry.nonce), consumer, state })
    }

    pub(super) fn judge_top_up(
        &self,
        account: Account,
        session: &SessionId,
        amount: Credits,
    ) -> Result<Applied, ApplyError> {
        some(amount)?;
        let Some(state) = self.session(session) else { return Err(ApplyError::UnknownSession) };
        if account != state.consumer {
            return Err(ApplyError::NotConsumer);
        }
        if !state.open {
            return Err(ApplyError::SessionClosed);
        }
        self.has(&account, amount)?;
        // Deposits are what balances were: they too add up to less than all credits there ever were.
        let deposit = state.deposit.checked_add(amount).ok_or(ApplyError::SupplyFull)?;
        Ok(Applied::ToppedUp { session: *session, consumer: account, amount, deposit })
    }

    /// `voucher`'s signature was seen to hold.
    pub(super) fn judge_settle(
        &self,
        account: Account,
        voucher: &SignedBytes,
        claim: Credits,
        (usage, receipts): (Usage, Digest),
        last: bool,
    ) -> Result<Applied, ApplyError> {
        let signer = voucher.signer;
        let voucher: Voucher = decode(&voucher.document).map_err(|_| ApplyError::ForgedVoucher)?;
        if voucher.network != self.network {
            return Err(ApplyError::WrongSession);
        }
        let Some(state) = self.session(&voucher.session) else { return Err(ApplyError::UnknownSession) };
        if signer != state.voucher_key {
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
        if claim > voucher.total {
            return Err(ApplyError::OverVoucher { claim, total: voucher.total });
        }
        // A last settlement may add nothing: it only closes, so that the consumer has its change before expiry.
        let nothing_new = claim == state.settled && !last;
        if claim < state.settled || nothing_new {
            return Err(ApplyError::StaleVoucher { settled: state.settled });
        }
        let Payment { gross, parts, left } = self.payment(state, claim);
        Ok(Applied::Settled {
            session: voucher.session,
            provider: state.provider,
            consumer: state.consumer,
            claim,
            gross,
            parts,
            usage,
            receipts,
            last,
            change: if last { left } else { Credits::ZERO },
        })
    }

    /// `closing`'s signature was seen to hold.
    pub(super) fn judge_close(&self, account: Account, closing: &SignedBytes) -> Result<Applied, ApplyError> {
        let signer = Account(closing.signer);
        let closing: Closing = decode(&closing.document).map_err(|_| ApplyError::ForgedClosing)?;
        if closing.network != self.network {
            return Err(ApplyError::WrongSession);
        }
        let Some(state) = self.session(&closing.session) else { return Err(ApplyError::UnknownSession) };
        let other = if account == state.provider {
            state.consumer
        } else if account == state.consumer {
            state.provider
        } else {
            return Err(ApplyError::NotParty);
        };
        if signer != other {
            return Err(ApplyError::ForgedClosing);
        }
        if !state.open {
            return Err(ApplyError::SessionClosed);
        }
        if closing.total > state.deposit {
            return Err(ApplyError::OverDeposit { total: closing.total, deposit: state.deposit });
        }
        if closing.total < state.settled {
            return Err(ApplyError::StaleVoucher { settled: state.settled });
        }
        let Payment { gross, parts, left } = self.payment(state, closing.total);
        Ok(Applied::Closed {
            session: closing.session,
            provider: state.provider,
            consumer: state.consumer,
            total: closing.total,
            gross,
            parts,
            usage: closing.usage,
            receipts: closing.receipts,
            change: left,
        })
    }

    pub(super) fn judge_refund(
        &self,
        account: Account,
        session: &SessionId,
        time_ms: u64,
    ) -> Result<Applied, ApplyError> {
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

    /// Pays `state` up to `total`, which was seen to lie between what is settled and the deposit.
    fn payment(&self, state: &SessionState, total: Credits) -> Payment {
        Payment {
            gross: minus(total, state.settled),
            parts: self.genesis.split.parts(state.settled, total),
            left: minus(state.deposit, total),
        }
    }
}
