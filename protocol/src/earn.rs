//! What becomes of earnings: spent on own jobs, or redeemed for cash by themselves.
//! Invariant: at most one payout of this account waits for the issuer because of this machine, and a request is kept
//! before it is made, so that a restart makes the same one and not a second.

use crate::rate::{Currency, Rate};
use crate::time::Now;
use serde::{Deserialize, Serialize};
use spillway_ledger::{Account, CodecError, Credits, Digest, Document, decode, encode};
use std::collections::VecDeque;
use std::time::Duration;

/// How long after its start a node looks on before it asks for cash: its copy of the books may be behind.
const FIRST_LOOK: Duration = Duration::from_secs(10);
/// How long it waits after the ledger said no.
const AFTER_REFUSAL: Duration = Duration::from_secs(600);
/// For how many blocks after its decision a kept request is made again. The ledger remembers a request's business id for
/// at least 5,000 blocks, so within this many it is surely the same request; the margin is for a copy that is behind.
const LIFETIME_HEIGHTS: u64 = 4_000;

/// What to do with what is earned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Earn {
    /// Keep it: it pays own jobs.
    #[default]
    Credits,
    /// Ask for cash whenever the balance is above a threshold.
    Cash,
}

/// When cash is asked for, and how much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CashPolicy {
    /// What stays for own jobs.
    pub threshold: Credits,
    /// The least payout of the network; from genesis.
    pub payout_min: Credits,
    /// What the issuer pays for a credit.
    pub rate: Rate,
    /// In which currency.
    pub currency: Currency,
}

impl CashPolicy {
    /// How much of `balance` is to be paid out: what is above the threshold, in whole minor units of the currency; `None`
    /// if that is nothing, or less than the network pays out at once.
    #[must_use]
    pub fn due(&self, balance: Credits) -> Option<Credits> {
        let above = balance.checked_sub(self.threshold)?;
        let paid = self.rate.pay(above, self.currency)?;
        let amount = above.checked_sub(paid.remainder)?;
        (paid.minor > 0 && amount >= self.payout_min).then_some(amount)
    }
}

/// A payout that was decided, and may or may not be on the ledger.
#[derive(Clone, Copy, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Intent {
    /// The entry's business id.
    pub business: [u8; 16],
    /// How much.
    pub amount: Credits,
    /// The digest of the payee document.
    pub payee: Digest,
    /// The height of the books when it was decided.
    pub height: u64,
}

impl Document for Intent {
    const DOMAIN: &'static str = "spillway/cash-intent/1";
    const BYTES_MAX: usize = 16 + 8 + 32 + 8;
}

impl Intent {
    /// Its bytes on disk.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        decode(bytes)
    }
}

/// What the machine is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CashEvent {
    /// How the account is after a block.
    Books {
        /// What it can spend.
        balance: Credits,
        /// Whether a payout of its own waits for the issuer.
        waiting: bool,
        /// The block.
        height: u64,
    },
    /// The request is on the ledger.
    In,
    /// The ledger refused the request for good.
    Refused,
    /// Time has come; see [`Cashier::deadline`].
    Tick,
}

/// What the machine asks its driver to do, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CashEffect {
    /// Keep this across a crash, durably, before anything that comes after.
    Keep(Intent),
    /// Put the request on the ledger. Answered by [`CashEvent::In`] or [`CashEvent::Refused`].
    Request(Intent),
    /// What was kept is no longer needed.
    Forget,
}

/// Asks for cash.
#[derive(Debug)]
pub struct Cashier {
    account: Account,
    payee: Digest,
    policy: CashPolicy,
    /// How the account was last seen.
    seen: Option<(Credits, bool, u64)>,
    /// What was asked for and not answered.
    intent: Option<Intent>,
    /// A restored intent that has not been asked for again yet.
    restored: bool,
    /// No decision before this.
    not_before: Now,
    effects: VecDeque<CashEffect>,
}

impl Cashier {
    /// A machine for `account` that pays to `payee`, with what an earlier run kept.
    #[must_use]
    pub fn new(now: Now, account: Account, payee: Digest, policy: CashPolicy, kept: Option<Intent>) -> Self {
        Self {
            account,
            payee,
            policy,
            seen: None,
            intent: kept,
            restored: kept.is_some(),
            not_before: now.after(FIRST_LOOK),
            effects: VecDeque::new(),
        }
    }

    /// Takes what happened.
    pub fn handle(&mut self, now: Now, event: CashEvent) {
        match event {
            CashEvent::Books { balance, waiting, height } => self.seen = Some((balance, waiting, height)),
            CashEvent::In => self.answered(now, Duration::ZERO),
            CashEvent::Refused => self.answered(now, AFTER_REFUSAL),
            CashEvent::Tick => {}
        }
        self.decide(now);
    }

    /// What is to be done next.
    pub fn poll(&mut self) -> Option<CashEffect> {
        self.effects.pop_front()
    }

    /// When to come back at the latest, with [`CashEvent::Tick`]; `None` while an answer is awaited.
    #[must_use]
    pub fn deadline(&self, now: Now) -> Option<Now> {
        (self.intent.is_none() || self.restored).then_some(self.not_before).filter(|at| *at > now)
    }

    fn answered(&mut self, now: Now, rest: Duration) {
        if self.intent.take().is_none() {
            return; // Late, not wrong.
        }
        self.effects.push_back(CashEffect::Forget);
        self.not_before = now.after(rest);
        // The driver tells the books anew: what was seen may be from before the request.
        self.seen = None;
    }

    fn decide(&mut self, now: Now) {
        let Some((balance, waiting, height)) = self.seen else { return };
        if now < self.not_before {
            return;
        }
        if let Some(intent) = self.intent {
            if std::mem::take(&mut self.restored) {
                if height > intent.height.saturating_add(LIFETIME_HEIGHTS) {
                    // Its entry is void by now: either it was applied then, or never will be.
                    self.intent = None;
                    self.effects.push_back(CashEffect::Forget);
                } else {
                    return self.effects.push_back(CashEffect::Request(intent));
                }
            } else {
                return;
            }
        }
        if waiting {
            return;
        }
        let Some(amount) = self.policy.due(balance) else { return };
        let parts: [&[u8]; 4] =
            [self.account.0.as_bytes(), self.payee.as_bytes(), &amount.micro().to_le_bytes(), &height.to_le_bytes()];
        let digest = Digest::of("spillway/cash", &parts);
        let mut business = [0; 16];
        business.copy_from_slice(&digest.as_bytes()[..16]);
        let intent = Intent { business, amount, payee: self.payee, height };
        self.intent = Some(intent);
        self.effects.extend([CashEffect::Keep(intent), CashEffect::Request(intent)]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spillway_ledger::SecretKey;

    const START: Now = Now::from_ms(1_700_000_000_000);

    fn policy(threshold: u64, payout_min: u64, rate: &str) -> CashPolicy {
        CashPolicy {
            threshold: Credits::new(threshold),
            payout_min: Credits::new(payout_min),
            rate: rate.parse().expect("a rate"),
            currency: Currency::EUR,
        }
    }

    fn payee() -> Digest {
        Digest::of("test", &[b"payee"])
    }

    fn cashier(kept: Option<Intent>) -> Cashier {
        Cashier::new(START, SecretKey::from_bytes(&[1; 32]).account(), payee(), policy(1_000_000, 0, "1"), kept)
    }

    fn drain(cashier: &mut Cashier) -> Vec<CashEffect> {
        std::iter::from_fn(|| cashier.poll()).collect()
    }

    fn books(balance: u64, waiting: bool, height: u64) -> CashEvent {
        CashEvent::Books { balance: Credits::new(balance), waiting, height }
    }

    #[test]
    fn what_is_above_the_threshold_is_due_in_whole_cents() {
        // threshold, least payout, rate, balance; due
        for (threshold, least, rate, balance, due) in [
            (1_000_000, 0, "1", 1_000_000, None),
            (1_000_000, 0, "1", 999_999, None),
            (1_000_000, 0, "1", 1_009_999, None),
            (1_000_000, 0, "1", 1_010_000, Some(10_000)),
            (1_000_000, 0, "1", 5_678_901, Some(4_670_000)),
            (0, 0, "1", 0, None),
            (0, 5_000_000, "1", 4_999_999, None),
            (0, 5_000_000, "1", 5_009_999, Some(5_000_000)),
            (0, 0, "0.92", 1_000_000, Some(1_000_000)),
            (0, 0, "0.92", 1_010_869, Some(1_000_000)),
            (0, 0, "0.92", 1_010_870, Some(1_010_870)),
        ] {
            let got = policy(threshold, least, rate).due(Credits::new(balance));
            assert_eq!(got, due.map(Credits::new), "{threshold} {least} {rate} {balance}");
        }
    }

    #[test]
    fn a_request_is_kept_before_it_is_made_and_only_one_waits() {
        let mut cashier = cashier(None);
        cashier.handle(START, books(9_000_000, false, 5));
        assert_eq!(drain(&mut cashier), [], "the copy may be behind");
        let later = cashier.deadline(START).expect("it comes back");
        cashier.handle(later, CashEvent::Tick);
        let effects = drain(&mut cashier);
        let [CashEffect::Keep(kept), CashEffect::Request(asked)] = effects[..] else { panic!("{effects:?}") };
        assert_eq!((kept, asked.amount, asked.payee), (asked, Credits::new(8_000_000), payee()));

        cashier.handle(later, books(20_000_000, false, 6));
        assert_eq!((drain(&mut cashier), cashier.deadline(later)), (vec![], None), "one is under way");
        cashier.handle(later, CashEvent::In);
        assert_eq!(drain(&mut cashier), [CashEffect::Forget]);
        cashier.handle(later, books(12_000_000, true, 7));
        assert_eq!(drain(&mut cashier), [], "one waits for the issuer");
        cashier.handle(later, books(12_000_000, false, 8));
        let effects = drain(&mut cashier);
        let [CashEffect::Keep(next), CashEffect::Request(_)] = effects[..] else { panic!("{effects:?}") };
        assert_ne!(next.business, kept.business);
        assert_eq!(next.amount, Credits::new(11_000_000));
    }

    #[test]
    fn a_restart_makes_the_same_request_and_an_old_one_is_dropped() {
        let intent = Intent { business: [7; 16], amount: Credits::new(3), payee: payee(), height: 100 };
        let bytes = intent.to_bytes();
        assert_eq!(Intent::from_bytes(&bytes), Ok(intent));
        // Frozen: a node may find it on its disk.
        let frozen = format!("{}0300000000000000{}6400000000000000", "07".repeat(16), payee());
        assert_eq!(hex::encode(bytes), frozen);
        let later = START.after(FIRST_LOOK);
        // The height after the restart; what happens.
        let balance = 500_000;
        for (height, effects) in [
            (90, vec![CashEffect::Request(intent)]),
            (100 + LIFETIME_HEIGHTS, vec![CashEffect::Request(intent)]),
            (101 + LIFETIME_HEIGHTS, vec![CashEffect::Forget]),
        ] {
            let mut cashier = cashier(Some(intent));
            cashier.handle(START, books(balance, false, height));
            assert_eq!(drain(&mut cashier), []);
            assert_eq!(cashier.deadline(START), Some(later));
            cashier.handle(later, CashEvent::Tick);
            assert_eq!(drain(&mut cashier), effects, "height {height}");
            cashier.handle(later, CashEvent::Tick);
            assert_eq!(drain(&mut cashier), [], "once");
        }
    }

    #[test]
    fn after_a_refusal_it_rests() {
        let mut cashier = cashier(None);
        let later = START.after(FIRST_LOOK);
        cashier.handle(later, books(9_000_000, false, 5));
        assert_eq!(drain(&mut cashier).len(), 2);
        cashier.handle(later, CashEvent::Refused);
        cashier.handle(later, books(9_000_000, false, 6));
        assert_eq!(drain(&mut cashier), [CashEffect::Forget]);
        let again = cashier.deadline(later).expect("it comes back");
        assert_eq!(again, later.after(AFTER_REFUSAL));
        cashier.handle(again, CashEvent::Tick);
        assert_eq!(drain(&mut cashier).len(), 2);
        // An answer that nobody waits for changes nothing.
        cashier.handle(again, CashEvent::In);
        drain(&mut cashier);
        cashier.handle(again, CashEvent::In);
        assert_eq!(drain(&mut cashier), []);
    }
}
