//! The payments of one file: which waiting payouts are paid, with how much, and which are not, with the reason.
//! Invariant: every waiting payout is in exactly one of the two lists; a payment is never above what was locked for it;
//! the same payouts give the same message id, so that a bank sees a file that was sent twice.

use super::party::{Debtor, NAME_MAX, Payee};
use super::text::basic_latin;
use serde::{Deserialize, Serialize};
use spillway_ledger::{Account, Credits, Digest};
use spillway_protocol::Currency;
use std::collections::BTreeMap;

/// The most payments in one file.
pub const LINES_MAX: usize = 10_000;
/// The most that one payment may be, in minor units: SEPA's 999,999,999.99.
const MINOR_MAX: u64 = 99_999_999_999;
/// Characters of an identification, ISO 20022's `Max35Text`.
const ID_CHARACTERS: usize = 35;
/// The countries of the Single Euro Payments Area, by their account numbers. Source: EPC409-09.
const SEPA: [&str; 42] = [
    "AD", "AL", "AT", "BE", "BG", "CH", "CY", "CZ", "DE", "DK", "EE", "ES", "FI", "FR", "GB", "GI", "GR", "HR", "HU",
    "IE", "IS", "IT", "LI", "LT", "LU", "LV", "MC", "MD", "ME", "MK", "MT", "NL", "NO", "PL", "PT", "RO", "RS", "SE",
    "SI", "SK", "SM", "VA",
];

/// A payout that waits for the issuer, as the node tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Waiting {
    /// The payout's id.
    pub payout: Digest,
    /// Whose it is.
    pub account: Account,
    /// What is locked for it, in micro-credits.
    pub amount_micro: Credits,
    /// The digest of its payee document.
    pub payee: Digest,
    /// The block that locked it.
    pub height: u64,
    /// The time of that block, in Unix milliseconds.
    pub time_ms: u64,
}

/// Why a payout is not in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Unpaid {
    /// No payee document has the digest that the payout names.
    NoPayee,
    /// The payee wants another currency than the debtor's account has.
    OtherCurrency {
        /// What the payee wants.
        currency: Currency,
    },
    /// Outside SEPA a bank code is needed, and the payee gave none.
    NoBic,
    /// The amount is no whole number of minor units at the debtor's rate.
    NotWhole {
        /// What would be left over, in micro-credits.
        remainder_micro: Credits,
    },
    /// Less than one minor unit.
    TooLittle,
    /// More than one payment may be.
    TooMuch,
}

impl Unpaid {
    /// For people.
    #[must_use]
    pub fn words(&self) -> String {
        match self {
            Self::NoPayee => "no payee file has its digest".into(),
            Self::OtherCurrency { currency } => format!("its payee wants {currency}"),
            Self::NoBic => "its payee is outside SEPA and gave no BIC".into(),
            Self::NotWhole { remainder_micro } => {
                format!("not a whole amount at this rate: {remainder_micro} would be left; see --round-down")
            }
            Self::TooLittle => "less than the smallest payment".into(),
            Self::TooMuch => "more than one payment may be".into(),
        }
    }
}

/// A payout that is not in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Left {
    /// The payout.
    #[serde(flatten)]
    pub waiting: Waiting,
    /// Why.
    #[serde(flatten)]
    pub why: Unpaid,
}

/// One payment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// What it pays.
    pub waiting: Waiting,
    /// Whom.
    pub payee: Payee,
    /// The payee's name as it is written for banks.
    pub name: String,
    /// How much, in minor units of the debtor's currency.
    pub minor: u64,
    /// What of the locked credits it does not cover, in micro-credits; zero unless rounding down was asked for.
    pub remainder: Credits,
}

impl Line {
    /// What the payment is known by from end to end: the first 35 digits of the payout's id.
    #[must_use]
    pub fn end_to_end(&self) -> String {
        short(&self.waiting.payout)
    }
}

/// The payments of one file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Who pays.
    pub debtor: Debtor,
    /// The debtor's name as it is written for banks.
    pub debtor_name: String,
    /// What is paid, in the order of the payouts' ids; at least one.
    pub lines: Vec<Line>,
}

/// Why there is no file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BatchError {
    /// No payout can be paid.
    #[error("nothing can be paid")]
    Nothing,
    /// More than one file takes.
    #[error("{0} payouts can be paid, where one file takes at most 10,000: name some with --payout")]
    TooMany(usize),
}

impl Batch {
    /// Sorts `waiting` into what `debtor` pays and what is left. With `round_down`, an amount that is no whole number of
    /// minor units is paid rounded down, and the line tells what remains; without, it is left.
    ///
    /// # Errors
    /// As [`BatchError`] says, with what is left.
    pub fn new(
        debtor: Debtor,
        waiting: Vec<Waiting>,
        payees: impl IntoIterator<Item = Payee>,
        round_down: bool,
    ) -> (Result<Self, BatchError>, Vec<Left>) {
        let payees: BTreeMap<Digest, Payee> = payees.into_iter().map(|payee| (payee.digest(), payee)).collect();
        let (mut lines, mut left) = (Vec::new(), Vec::new());
        for waiting in waiting {
            match line(&debtor, &waiting, payees.get(&waiting.payee), round_down) {
                Ok(line) => lines.push(line),
                Err(why) => left.push(Left { waiting, why }),
            }
        }
        lines.sort_by_key(|line| line.waiting.payout);
        lines.dedup_by_key(|line| line.waiting.payout);
        left.sort_by_key(|left| left.waiting.payout);
        if lines.is_empty() {
            return (Err(BatchError::Nothing), left);
        }
        if lines.len() > LINES_MAX {
            return (Err(BatchError::TooMany(lines.len())), left);
        }
        let debtor_name = basic_latin(&debtor.name, NAME_MAX).expect("a debtor document's name was checked when read");
        (Ok(Self { debtor, debtor_name, lines }), left)
    }

    /// What the file pays in all, in minor units.
    #[must_use]
    pub fn total_minor(&self) -> u64 {
        self.lines.iter().map(|line| line.minor).sum() // 10,000 of at most 10^11.
    }

    /// What was locked for it in all.
    #[must_use]
    pub fn total_credits(&self) -> Credits {
        // Payouts are parts of the supply, so their sum can be written down.
        Credits::new(self.lines.iter().map(|line| line.waiting.amount_micro.micro()).sum())
    }

    /// What of that it does not cover.
    #[must_use]
    pub fn total_remainder(&self) -> Credits {
        Credits::new(self.lines.iter().map(|line| line.remainder.micro()).sum())
    }

    /// Names the message: the same account paying the same payouts has the same id, on whatever day.
    #[must_use]
    pub fn message_id(&self) -> String {
        let minor: Vec<[u8; 8]> = self.lines.iter().map(|line| line.minor.to_le_bytes()).collect();
        let mut parts: Vec<&[u8]> = vec![self.debtor.iban.as_str().as_bytes(), self.debtor.currency.code().as_bytes()];
        for (line, minor) in self.lines.iter().zip(&minor) {
            parts.extend([line.waiting.payout.as_bytes().as_slice(), minor.as_slice()]);
        }
        short(&Digest::of("spillway/payout-batch/1", &parts))
    }

    /// Whether the line is a SEPA transfer.
    #[must_use]
    pub fn is_sepa(&self, line: &Line) -> bool {
        sepa(&self.debtor, &line.payee)
    }
}

fn sepa(debtor: &Debtor, payee: &Payee) -> bool {
    let inside = |iban: &super::Iban| SEPA.binary_search(&&iban.as_str()[..2]).is_ok();
    debtor.currency == Currency::EUR && inside(&debtor.iban) && inside(&payee.iban)
}

fn line(debtor: &Debtor, waiting: &Waiting, payee: Option<&Payee>, round_down: bool) -> Result<Line, Unpaid> {
    let payee = payee.ok_or(Unpaid::NoPayee)?;
    if payee.currency != debtor.currency {
        return Err(Unpaid::OtherCurrency { currency: payee.currency });
    }
    if payee.bic.is_none() && !sepa(debtor, payee) {
        return Err(Unpaid::NoBic);
    }
    let paid = debtor.rate.pay(waiting.amount_micro, debtor.currency).ok_or(Unpaid::TooMuch)?;
    if paid.minor > MINOR_MAX {
        return Err(Unpaid::TooMuch);
    }
    if paid.minor == 0 {
        return Err(Unpaid::TooLittle);
    }
    if !paid.remainder.is_zero() && !round_down {
        return Err(Unpaid::NotWhole { remainder_micro: paid.remainder });
    }
    let name = basic_latin(&payee.name, NAME_MAX).expect("a payee document's name was checked when read");
    Ok(Line { waiting: waiting.clone(), payee: payee.clone(), name, minor: paid.minor, remainder: paid.remainder })
}

/// The first 35 hexadecimal digits: 140 bits, so two never meet by chance.
fn short(digest: &Digest) -> String {
    let mut text = digest.to_string();
    text.truncate(ID_CHARACTERS);
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use spillway_ledger::SecretKey;

    pub(in crate::payouts) fn debtor(currency: &str, rate: &str) -> Debtor {
        Debtor {
            name: "Spillway Föderation".into(),
            iban: "DE89370400440532013000".parse().expect("an IBAN"),
            bic: Some("COBADEFFXXX".parse().expect("a BIC")),
            country: "DE".parse().expect("a country"),
            currency: currency.parse().expect("a currency"),
            rate: rate.parse().expect("a rate"),
        }
    }

    pub(in crate::payouts) fn payee(seed: u8, name: &str, iban: &str, bic: Option<&str>, currency: &str) -> Payee {
        Payee::new(
            name,
            iban.parse().expect("an IBAN"),
            bic.map(|bic| bic.parse().expect("a BIC")),
            iban[..2].parse().expect("a country"),
            currency.parse().expect("a currency"),
            [seed; 32],
        )
        .expect("a name")
    }

    pub(in crate::payouts) fn waiting(seed: u8, micro: u64, payee: &Payee) -> Waiting {
        Waiting {
            payout: Digest::of("test", &[&[seed]]),
            account: SecretKey::from_bytes(&[seed; 32]).account(),
            amount_micro: Credits::new(micro),
            payee: payee.digest(),
            height: u64::from(seed),
            time_ms: 1_700_000_000_000,
        }
    }

    const NL: &str = "NL91ABNA0417164300";
    const AE: &str = "AE070331234567890123456";

    #[test]
    fn each_payout_is_paid_or_left_with_a_reason() {
        let (euro, dollar) = (payee(1, "A", NL, None, "EUR"), payee(2, "B", NL, None, "USD"));
        let far = payee(3, "C", AE, None, "EUR");
        let far_with_bic = payee(4, "D", AE, Some("EBILAEAD"), "EUR");
        let all = [euro.clone(), dollar.clone(), far.clone(), far_with_bic.clone()];
        // Minor units and the remainder, or why not.
        type Want = Result<(u64, u64), Unpaid>;
        // micro-credits, payee, rate, rounded down
        let cases: Vec<(u64, &Payee, &str, bool, Want)> = vec![
            (1_230_000, &euro, "1", false, Ok((123, 0))),
            (1_230_001, &euro, "1", false, Err(Unpaid::NotWhole { remainder_micro: Credits::new(1) })),
            (1_239_999, &euro, "1", true, Ok((123, 9_999))),
            (9_999, &euro, "1", true, Err(Unpaid::TooLittle)),
            (1_000_000, &euro, "0.92", false, Ok((92, 0))),
            (u64::MAX, &euro, "1", true, Err(Unpaid::TooMuch)),
            (999_999_999_990_000, &euro, "1", false, Ok((99_999_999_999, 0))),
            (1_000_000_000_000_000, &euro, "1", false, Err(Unpaid::TooMuch)),
            (1_000_000, &dollar, "1", false, Err(Unpaid::OtherCurrency { currency: "USD".parse().expect("one") })),
            (1_000_000, &far, "1", false, Err(Unpaid::NoBic)),
            (1_000_000, &far_with_bic, "1", false, Ok((100, 0))),
        ];
        for (micro, payee, rate, round_down, want) in cases {
            let (batch, left) =
                Batch::new(debtor("EUR", rate), vec![waiting(9, micro, payee)], all.clone(), round_down);
            let got = match &batch {
                Ok(batch) => Ok((batch.lines[0].minor, batch.lines[0].remainder.micro())),
                Err(_) => Err(left[0].why.clone()),
            };
            assert_eq!(got, want, "{micro} at {rate}");
            assert_eq!(left.len() + batch.map_or(0, |batch| batch.lines.len()), 1);
        }
        let stranger = payee(5, "A", NL, None, "EUR");
        let (batch, left) = Batch::new(debtor("EUR", "1"), vec![waiting(9, 10_000, &stranger)], all, false);
        assert_eq!((batch, &left[0].why), (Err(BatchError::Nothing), &Unpaid::NoPayee), "same details, another salt");
    }

    #[test]
    fn the_same_payouts_are_the_same_message_in_any_order() {
        let payee = payee(1, "A", NL, None, "EUR");
        let two = vec![waiting(1, 10_000, &payee), waiting(2, 20_000, &payee)];
        let make = |waiting: Vec<Waiting>| {
            Batch::new(debtor("EUR", "1"), waiting, [payee.clone()], false).0.expect("both can be paid")
        };
        let (one, turned) = (make(two.clone()), make(two.iter().rev().cloned().collect()));
        assert_eq!(one, turned);
        assert_eq!(
            (one.total_minor(), one.total_credits(), one.total_remainder()),
            (3, Credits::new(30_000), Credits::ZERO)
        );
        assert_eq!(one.message_id(), turned.message_id());
        assert_eq!((one.message_id().len(), one.lines[0].end_to_end().len()), (35, 35));
        assert!(one.lines[0].waiting.payout.to_string().starts_with(&one.lines[0].end_to_end()));
        assert_ne!(one.message_id(), make(two[..1].to_vec()).message_id());
        // Told twice, paid once.
        assert_eq!(make([two.clone(), two].concat()), one);
    }

    #[test]
    fn a_file_is_bounded() {
        let payee = payee(1, "A", NL, None, "EUR");
        let many = |count: usize| {
            let waiting = (0..count).map(|index| Waiting {
                payout: Digest::of("test", &[&index.to_le_bytes()]),
                ..waiting(1, 10_000, &payee)
            });
            Batch::new(debtor("EUR", "1"), waiting.collect(), [payee.clone()], false).0.map(|batch| batch.lines.len())
        };
        assert_eq!(many(LINES_MAX), Ok(LINES_MAX));
        assert_eq!(many(LINES_MAX + 1), Err(BatchError::TooMany(LINES_MAX + 1)));
        assert!(SEPA.is_sorted());
    }
}
