//! Calendar days and moments as bank files write them, always UTC.
//! Invariant: a [`Date`] is a day that exists.

use std::fmt;
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds of a day.
const DAY_MS: u64 = 86_400_000;

/// A day of the Gregorian calendar, 1970 to 9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Date {
    year: u32,
    month: u32,
    day: u32,
}

/// Why text is no day.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no day: it is written as 2026-01-31")]
pub struct DateError(String);

impl Date {
    /// The day of a moment, in Unix milliseconds; the last day of 9999 for any later one.
    #[must_use]
    pub fn of_ms(ms: u64) -> Self {
        let mut days = ms / DAY_MS;
        let mut year = 1970;
        while year < 9999 && days >= year_days(year) {
            days -= year_days(year);
            year += 1;
        }
        days = days.min(year_days(year) - 1);
        let mut month = 1;
        while days >= month_days(year, month) {
            days -= month_days(year, month);
            month += 1;
        }
        Self { year, month, day: u32::try_from(days).expect("below 31") + 1 }
    }

    /// Today.
    #[must_use]
    pub fn today() -> Self {
        Self::of_ms(now_ms())
    }
}

/// Wall time in Unix milliseconds.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A moment to the second, such as `2026-01-31T23:59:59Z`.
#[must_use]
pub(super) fn moment(ms: u64) -> String {
    let second = ms % DAY_MS / 1000;
    format!("{}T{:02}:{:02}:{:02}Z", Date::of_ms(ms), second / 3600, second / 60 % 60, second % 60)
}

fn is_leap(year: u32) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn year_days(year: u32) -> u64 {
    if is_leap(year) { 366 } else { 365 }
}

fn month_days(year: u32, month: u32) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

impl FromStr for Date {
    type Err = DateError;

    fn from_str(text: &str) -> Result<Self, DateError> {
        let wrong = || DateError(text.into());
        let formed = text.len() == 10
            && text
                .bytes()
                .enumerate()
                .all(|(at, byte)| if matches!(at, 4 | 7) { byte == b'-' } else { byte.is_ascii_digit() });
        if !formed {
            return Err(wrong());
        }
        let number = |range: std::ops::Range<usize>| text[range].parse::<u32>().map_err(|_| wrong());
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let exists = year >= 1970 && (1..=12).contains(&month) && day >= 1 && u64::from(day) <= month_days(year, month);
        if exists { Ok(Self { year, month, day }) } else { Err(wrong()) }
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04}-{:02}-{:02}", self.year, self.month, self.day)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_the_calendar_has_them() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399_999, "2000-02-28T23:59:59Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_709_210_096_789, "2024-02-29T12:34:56Z"),
            (4_107_542_399_000, "2100-02-28T23:59:59Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(moment(ms), text);
            assert_eq!(text[..10].parse::<Date>().map(|date| date.to_string()), Ok(text[..10].to_owned()));
        }
        assert_eq!(Date::of_ms(u64::MAX).to_string(), "9999-12-31");
    }

    #[test]
    fn days_that_do_not_exist_are_refused() {
        for text in [
            "",
            "2026-02-29",
            "2026-13-01",
            "2026-00-01",
            "2026-1-1",
            "26-01-01",
            "2026-04-31",
            "1969-12-31",
            "2026/01/01",
            "2026-01-0é",
        ] {
            assert_eq!(text.parse::<Date>(), Err(DateError(text.into())));
        }
    }
}
