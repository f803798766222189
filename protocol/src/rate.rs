//! What a credit is worth in a currency, and which amounts a bank can pay.
//! Invariant: a payment is never rounded up, and what it leaves over is told to the micro-credit.

use serde::{Deserialize, Serialize};
use spillway_ledger::Credits;
use std::fmt;
use std::str::FromStr;

/// The currencies that can be paid out, with the digits of their minor unit. Source: ISO 4217, and the countries of the
/// IBAN registry.
const CURRENCIES: [(&str, u32); 28] = [
    ("AED", 2),
    ("ALL", 2),
    ("BGN", 2),
    ("BHD", 3),
    ("BRL", 2),
    ("CHF", 2),
    ("CZK", 2),
    ("DKK", 2),
    ("EUR", 2),
    ("GBP", 2),
    ("GEL", 2),
    ("HUF", 2),
    ("ILS", 2),
    ("ISK", 0),
    ("JOD", 3),
    ("JPY", 0),
    ("KWD", 3),
    ("NOK", 2),
    ("PLN", 2),
    ("QAR", 2),
    ("RON", 2),
    ("RSD", 2),
    ("SAR", 2),
    ("SEK", 2),
    ("TND", 3),
    ("TRY", 2),
    ("UAH", 2),
    ("USD", 2),
];

/// Places behind the point that a rate may have.
const RATE_PLACES: u32 = 9;
/// The highest rate: a credit is worth at most a million of a currency.
const RATE_MAX: u64 = 1_000_000;
/// `nano` of a rate times a power of ten times micro-credits, by this, are minor units.
const SCALE: u128 = 1_000_000_000 * 1_000_000;

/// A currency that can be paid out: its place among [`CURRENCIES`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Currency(usize);

/// Why text is no currency.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no currency that can be paid out: three capital letters, such as EUR")]
pub struct CurrencyError(String);

impl Currency {
    /// The euro, which SEPA transfers are in.
    pub const EUR: Currency = Currency(8);

    /// The three letters of ISO 4217.
    #[must_use]
    pub const fn code(self) -> &'static str {
        CURRENCIES[self.0].0
    }

    /// The digits of the minor unit: 2 where a hundred cents are one.
    #[must_use]
    pub const fn digits(self) -> u32 {
        CURRENCIES[self.0].1
    }

    /// An amount of minor units as banks write it: `12.34`, or `12` where there is no smaller unit.
    #[must_use]
    pub fn text(self, minor: u64) -> String {
        match self.digits() {
            0 => minor.to_string(),
            digits => {
                let one = 10_u64.pow(digits);
                let width = digits as usize;
                format!("{}.{:0width$}", minor / one, minor % one)
            }
        }
    }
}

impl FromStr for Currency {
    type Err = CurrencyError;

    fn from_str(text: &str) -> Result<Self, CurrencyError> {
        let found = CURRENCIES.iter().position(|(code, _)| *code == text);
        found.map(Currency).ok_or_else(|| CurrencyError(text.into()))
    }
}

impl TryFrom<String> for Currency {
    type Error = CurrencyError;

    fn try_from(text: String) -> Result<Self, CurrencyError> {
        text.parse()
    }
}

impl From<Currency> for String {
    fn from(currency: Currency) -> String {
        currency.code().into()
    }
}

impl fmt::Display for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

/// What one credit is worth, in billionths of a currency's unit. Written as a decimal number such as `0.92`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Rate(u64);

/// Why text is no rate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no rate: a decimal number above 0 and up to 1000000, with at most 9 places, such as 0.92")]
pub struct RateError(String);

/// What a bank pays for an amount of credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Payable {
    /// In minor units, rounded down.
    pub minor: u64,
    /// The part of the credits that it does not cover: zero where the amount is whole minor units, to the micro-credit.
    pub remainder: Credits,
}

impl Rate {
    /// One credit is one unit.
    pub const ONE: Rate = Rate(1_000_000_000);

    /// What `amount` is in `currency`; `None` where that cannot be written down.
    #[must_use]
    pub fn pay(self, amount: Credits, currency: Currency) -> Option<Payable> {
        let minor = u128::from(amount.micro()).checked_mul(self.minor_scale(currency))? / SCALE;
        let minor = u64::try_from(minor).ok()?;
        let used = self.price(minor, currency)?;
        Some(Payable { minor, remainder: amount.saturating_sub(used) })
    }

    /// The fewest credits that are worth `minor` units; `None` where that cannot be written down.
    #[must_use]
    pub fn price(self, minor: u64, currency: Currency) -> Option<Credits> {
        let micro = u128::from(minor).checked_mul(SCALE)?.div_ceil(self.minor_scale(currency));
        u64::try_from(micro).ok().map(Credits::new)
    }

    /// Billionths of minor units for one credit.
    fn minor_scale(self, currency: Currency) -> u128 {
        u128::from(self.0) * u128::from(10_u64.pow(currency.digits()))
    }
}

/// A decimal number without a sign as an integer of `10^-places`; `None` for anything else.
pub(crate) fn decimal(text: &str, places: u32) -> Option<u64> {
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || part.len() > places as usize || text.ends_with('.') || !digits(whole) || !digits(part) {
        return None;
    }
    let scaled = whole.parse::<u64>().ok()?.checked_mul(10_u64.checked_pow(places)?)?;
    let missing = places - u32::try_from(part.len()).ok()?;
    let part = if part.is_empty() { 0 } else { part.parse::<u64>().ok()?.checked_mul(10_u64.pow(missing))? };
    scaled.checked_add(part)
}

/// Credits written as a decimal number, such as `12.5`; exact, at most six places.
///
/// # Errors
/// In words, without a field's name.
pub fn credits_of(text: &str) -> Result<Credits, String> {
    decimal(text, 6).map(Credits::new).ok_or_else(|| {
        format!("{text:?} is no amount of credits: a decimal number with at most 6 places, such as 12.5")
    })
}

impl FromStr for Rate {
    type Err = RateError;

    fn from_str(text: &str) -> Result<Self, RateError> {
        let nano = decimal(text, RATE_PLACES).filter(|nano| (1..=RATE_MAX * Self::ONE.0).contains(nano));
        nano.map(Rate).ok_or_else(|| RateError(text.into()))
    }
}

impl TryFrom<String> for Rate {
    type Error = RateError;

    fn try_from(text: String) -> Result<Self, RateError> {
        text.parse()
    }
}

impl From<Rate> for String {
    fn from(rate: Rate) -> String {
        rate.to_string()
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (whole, part) = (self.0 / Self::ONE.0, self.0 % Self::ONE.0);
        if part == 0 {
            return write!(f, "{whole}");
        }
        write!(f, "{whole}.{}", format!("{part:09}").trim_end_matches('0'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn payments_are_rounded_down_and_the_rest_is_told() {
        // rate, currency, micro-credits; minor units, micro-credits left
        let cases = [
            ("1", "EUR", 10_000, Some((1, 0))),
            ("1", "EUR", 9_999, Some((0, 9_999))),
            ("1", "EUR", 12_345_678, Some((1_234, 5_678))),
            ("1", "JPY", 1_999_999, Some((1, 999_999))),
            ("150", "JPY", 1_999_999, Some((299, 6_665))), // 299 yen are 1.993333… credits
            ("0.92", "EUR", 1_000_000, Some((92, 0))),
            ("0.92", "EUR", 10_869, Some((0, 10_869))),
            ("0.92", "EUR", 10_870, Some((1, 0))), // a cent is 0.0108695… credits
            ("0.9137", "EUR", 1_000_000, Some((91, 4_049))),
            ("0.3", "KWD", 1_000_000, Some((300, 0))),
            ("1000000", "TND", u64::MAX, None),
            ("1", "EUR", u64::MAX, Some((1_844_674_407_370_955, 1_615))),
            ("0.000000001", "EUR", 1_000_000, Some((0, 1_000_000))),
        ];
        for (rate, currency, micro, want) in cases {
            let (rate, currency): (Rate, Currency) = (rate.parse().unwrap(), currency.parse().unwrap());
            let got = rate.pay(Credits::new(micro), currency);
            let want = want.map(|(minor, left)| Payable { minor, remainder: Credits::new(left) });
            assert_eq!(got, want, "{micro} at {rate} in {currency}");
        }
    }

    #[test]
    fn the_price_of_a_payment_is_paid_without_a_remainder() {
        for rate in ["1", "0.92", "0.9137", "3.000000001", "149.31", "0.000123"] {
            let rate: Rate = rate.parse().unwrap();
            for (code, _) in CURRENCIES {
                let currency: Currency = code.parse().unwrap();
                for minor in [1, 2, 3, 99, 100, 101, 12_345, 99_999_999] {
                    let price = rate.price(minor, currency).expect("small");
                    let whole = Payable { minor, remainder: Credits::ZERO };
                    // A rate at which a micro-credit is worth more than a minor unit pays more than was asked.
                    let paid = rate.pay(price, currency).expect("small");
                    assert!(paid == whole || paid.minor > minor, "{minor} at {rate} in {currency}: {paid:?}");
                    let less = rate.pay(Credits::new(price.micro() - 1), currency).expect("small");
                    assert!(less.minor < minor, "{minor} at {rate} in {currency}: {less:?}");
                }
            }
        }
    }

    #[test]
    fn amounts_are_written_with_the_currency_s_places() {
        for (currency, minor, text) in
            [("EUR", 5, "0.05"), ("EUR", 123_456, "1234.56"), ("JPY", 5, "5"), ("KWD", 1_002, "1.002")]
        {
            assert_eq!(currency.parse::<Currency>().unwrap().text(minor), text);
        }
    }

    #[test]
    fn rates_and_currencies_are_read_as_written() {
        for (text, shown) in
            [("1", Some("1")), ("0.920", Some("0.92")), ("1000000", Some("1000000"))].into_iter().chain(
                ["", ".5", "5.", "-1", "+1", "1e3", "0", "0.0", "1000000.1", "1.0000000001", "1,5", "∞"]
                    .map(|t| (t, None)),
            )
        {
            let rate = text.parse::<Rate>();
            assert_eq!(rate.map(|rate| rate.to_string()).ok().as_deref(), shown, "{text:?}");
        }
        for text in ["", "eur", "EURO", "XXX", "€"] {
            assert_eq!(text.parse::<Currency>(), Err(CurrencyError(text.into())));
        }
        assert!(CURRENCIES.is_sorted());
        assert_eq!((Currency::EUR.code(), Currency::EUR.digits()), ("EUR", 2));
    }

    #[test]
    fn credits_are_read_exactly() {
        for (text, micro) in [
            ("0", Some(0)),
            ("12.5", Some(12_500_000)),
            ("0.000001", Some(1)),
            ("18446744073709.551615", Some(u64::MAX)),
            ("18446744073709.551616", None),
            ("0.0000001", None),
            ("1e3", None),
            ("-1", None),
            ("", None),
            ("NaN", None),
        ] {
            assert_eq!(credits_of(text).ok(), micro.map(Credits::new), "{text:?}");
        }
    }
}
