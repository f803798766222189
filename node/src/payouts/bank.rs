//! Account numbers and bank codes.
//! Invariant: an [`Iban`] has its country's length and its check digits hold, so a slip of the pen is never paid.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The countries of the IBAN registry and the length of their account numbers. Source: SWIFT IBAN registry, release 99.
const LENGTHS: [(&str, usize); 88] = [
    ("AD", 24),
    ("AE", 23),
    ("AL", 28),
    ("AT", 20),
    ("AZ", 28),
    ("BA", 20),
    ("BE", 16),
    ("BG", 22),
    ("BH", 22),
    ("BI", 27),
    ("BR", 29),
    ("BY", 28),
    ("CH", 21),
    ("CR", 22),
    ("CY", 28),
    ("CZ", 24),
    ("DE", 22),
    ("DJ", 27),
    ("DK", 18),
    ("DO", 28),
    ("EE", 20),
    ("EG", 29),
    ("ES", 24),
    ("FI", 18),
    ("FK", 18),
    ("FO", 18),
    ("FR", 27),
    ("GB", 22),
    ("GE", 22),
    ("GI", 23),
    ("GL", 18),
    ("GR", 27),
    ("GT", 28),
    ("HN", 28),
    ("HR", 21),
    ("HU", 28),
    ("IE", 22),
    ("IL", 23),
    ("IQ", 23),
    ("IS", 26),
    ("IT", 27),
    ("JO", 30),
    ("KW", 30),
    ("KZ", 20),
    ("LB", 28),
    ("LC", 32),
    ("LI", 21),
    ("LT", 20),
    ("LU", 20),
    ("LV", 21),
    ("LY", 25),
    ("MC", 27),
    ("MD", 24),
    ("ME", 22),
    ("MK", 19),
    ("MN", 20),
    ("MR", 27),
    ("MT", 31),
    ("MU", 30),
    ("NI", 28),
    ("NL", 18),
    ("NO", 15),
    ("OM", 23),
    ("PK", 24),
    ("PL", 28),
    ("PS", 29),
    ("PT", 25),
    ("QA", 29),
    ("RO", 24),
    ("RS", 22),
    ("RU", 33),
    ("SA", 24),
    ("SC", 31),
    ("SD", 18),
    ("SE", 24),
    ("SI", 19),
    ("SK", 24),
    ("SM", 27),
    ("SO", 23),
    ("ST", 25),
    ("SV", 28),
    ("TL", 23),
    ("TN", 24),
    ("TR", 26),
    ("UA", 29),
    ("VA", 22),
    ("VG", 24),
    ("XK", 20),
];

/// Why text is no account number, in order of precedence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IbanError {
    /// Other characters than letters and digits, or no country in front.
    #[error("{0:?} is no IBAN: two letters, two check digits, then letters and digits")]
    Form(String),
    /// A country without such numbers.
    #[error("{0:?} begins with no country of the IBAN registry")]
    Country(String),
    /// Digits are missing or too many.
    #[error("{text:?} has {got} characters, where its country's have {want}")]
    Length {
        /// The number.
        text: String,
        /// What it has.
        got: usize,
        /// What it should have.
        want: usize,
    },
    /// A digit is wrong or two are swapped.
    #[error("the check digits of {0:?} do not hold: a character is wrong")]
    Check(String),
}

/// An international bank account number, in capital letters without spaces.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Iban(String);

impl Iban {
    /// The characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The remainder of the number modulo 97, letters counted from 10 on; 1 where the check digits hold.
    /// Source: ISO 13616, ISO 7064 MOD 97-10.
    fn remainder(text: &str) -> u32 {
        let (front, rest) = text.split_at(4);
        rest.chars().chain(front.chars()).filter_map(|character| character.to_digit(36)).fold(0, |rest, value| {
            let shift = if value < 10 { 10 } else { 100 };
            (rest * shift + value) % 97
        })
    }
}

impl FromStr for Iban {
    type Err = IbanError;

    fn from_str(text: &str) -> Result<Self, IbanError> {
        let compact: String =
            text.chars().filter(|character| *character != ' ').collect::<String>().to_ascii_uppercase();
        let bytes = compact.as_bytes();
        let formed = bytes.len() >= 5
            && bytes[..2].iter().all(u8::is_ascii_uppercase)
            && bytes[2..4].iter().all(u8::is_ascii_digit)
            && bytes.iter().all(u8::is_ascii_alphanumeric);
        if !formed {
            return Err(IbanError::Form(text.into()));
        }
        let Ok(at) = LENGTHS.binary_search_by_key(&&compact[..2], |(country, _)| country) else {
            return Err(IbanError::Country(compact));
        };
        let want = LENGTHS[at].1;
        if compact.len() != want {
            return Err(IbanError::Length { got: compact.len(), text: compact, want });
        }
        // Check digits are 02 to 98: others can give the same remainder, and are never issued.
        if !(b"02".as_slice()..=b"98".as_slice()).contains(&&bytes[2..4]) || Self::remainder(&compact) != 1 {
            return Err(IbanError::Check(compact));
        }
        Ok(Iban(compact))
    }
}

impl fmt::Display for Iban {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why text is no bank code.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no BIC: 8 or 11 letters and digits, such as COBADEFFXXX")]
pub struct BicError(String);

/// A business identifier code: which bank. Source: ISO 9362.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Bic(String);

impl Bic {
    /// The characters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Bic {
    type Err = BicError;

    fn from_str(text: &str) -> Result<Self, BicError> {
        let bytes = text.as_bytes();
        let formed = matches!(bytes.len(), 8 | 11)
            && bytes.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit())
            && bytes[4..6].iter().all(u8::is_ascii_uppercase);
        if formed { Ok(Bic(text.into())) } else { Err(BicError(text.into())) }
    }
}

/// Why text is no country.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no country: two capital letters, such as DE")]
pub struct CountryError(String);

/// A country by the two letters of ISO 3166.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Country(String);

impl Country {
    /// The two letters.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Country {
    type Err = CountryError;

    fn from_str(text: &str) -> Result<Self, CountryError> {
        let formed = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_uppercase());
        if formed { Ok(Country(text.into())) } else { Err(CountryError(text.into())) }
    }
}

/// Gives a checked text type its way through serde.
macro_rules! by_text {
    ($name:ident, $error:ident) => {
        impl TryFrom<String> for $name {
            type Error = $error;

            fn try_from(text: String) -> Result<Self, $error> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
    };
}

by_text!(Iban, IbanError);
by_text!(Bic, BicError);
by_text!(Country, CountryError);

#[cfg(test)]
mod tests {
    use super::*;

    /// The registry's own examples, one for each length of body.
    const GOOD: [&str; 16] = [
        "DE89370400440532013000",
        "GB29NWBK60161331926819",
        "FR1420041010050500013M02606",
        "NO9386011117947",
        "BE68539007547034",
        "MT84MALT011000012345MTLCAST001S",
        "LC55HEMM000100010012001200023015",
        "SE4550000000058398257466",
        "CH9300762011623852957",
        "AT611904300234573201",
        "NL91ABNA0417164300",
        "ES9121000418450200051332",
        "IT60X0542811101000000123456",
        "PL61109010140000071219812874",
        "XK051212012345678906",
        "RU0304452522540817810538091310419",
    ];

    #[test]
    fn ibans_that_hold_are_taken_and_shown_compact() {
        assert!(LENGTHS.is_sorted());
        for text in GOOD {
            assert_eq!(text.parse::<Iban>().expect(text).as_str(), text);
            let spaced: String = text
                .to_lowercase()
                .chars()
                .enumerate()
                .flat_map(|(i, c)| [(i % 4 == 0).then_some(' '), Some(c)])
                .flatten()
                .collect();
            assert_eq!(spaced.parse::<Iban>().expect(&spaced).as_str(), text);
        }
    }

    /// Of a kind: a letter counts for two digits, so that a letter in a digit's place may go unseen, as in any check
    /// digits by this rule.
    #[test]
    fn every_wrong_character_and_every_swap_of_a_kind_is_seen() {
        for text in GOOD {
            let alike = |at: usize, other: char| text.as_bytes()[at].is_ascii_digit() == other.is_ascii_digit();
            for at in 2..text.len() {
                let others =
                    "0123456789ABCXYZ".chars().filter(|other| !text[at..].starts_with(*other) && alike(at, *other));
                for other in others {
                    let wrong = format!("{}{other}{}", &text[..at], &text[at + 1..]);
                    assert!(wrong.parse::<Iban>().is_err(), "{wrong}");
                }
            }
            for at in 4..text.len() - 1 {
                let (left, right) = (&text[at..=at], &text[at + 1..at + 2]);
                if !alike(at, text.as_bytes()[at + 1].into()) {
                    continue;
                }
                let wrong = format!("{}{right}{left}{}", &text[..at], &text[at + 2..]);
                assert_eq!(wrong.parse::<Iban>().is_err(), left != right, "{wrong}");
            }
        }
    }

    #[test]
    fn what_is_no_iban_is_said() {
        let form = |text: &str| IbanError::Form(text.into());
        for (text, error) in [
            ("", form("")),
            ("DE", form("DE")),
            ("1234567890", form("1234567890")),
            ("DE89-3704-0044", form("DE89-3704-0044")),
            ("DÉ89370400440532013000", form("DÉ89370400440532013000")),
            ("US89370400440532013000", IbanError::Country("US89370400440532013000".into())),
            ("DE8937040044053201300", IbanError::Length { text: "DE8937040044053201300".into(), got: 21, want: 22 }),
            ("DE88370400440532013000", IbanError::Check("DE88370400440532013000".into())),
        ] {
            assert_eq!(text.parse::<Iban>(), Err(error));
        }
    }

    #[test]
    fn bank_codes_and_countries_are_checked_by_form() {
        for (text, good) in [
            ("COBADEFF", true),
            ("COBADEFFXXX", true),
            ("COBADEFFX", false),
            ("COBA1EFF", false),
            ("cobadeff", false),
            ("", false),
        ] {
            assert_eq!(text.parse::<Bic>().is_ok(), good, "{text:?}");
        }
        for (text, good) in [("DE", true), ("de", false), ("DEU", false), ("D1", false), ("", false)] {
            assert_eq!(text.parse::<Country>().is_ok(), good, "{text:?}");
        }
    }
}
