//! What is wrong with a file of a workload, or with the settings of one.
//! Invariant: every error of a file names the file, the line and the field.

use std::fmt;
use std::io;

/// Characters of a bad value that an error repeats.
const SHOWN_MAX: usize = 40;

/// Why a file is not a workload.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read, or its compression is broken.
    #[error("{file}: {source}")]
    Read {
        /// Which.
        file: String,
        /// Why.
        source: io::Error,
    },
    /// A line does not hold what it must.
    #[error("{file}:{line}: {field}: {problem}")]
    Field {
        /// Which file.
        file: String,
        /// Which line, from 1.
        line: u64,
        /// Which field, or `line` for the whole.
        field: String,
        /// What is wrong.
        problem: Problem,
    },
    /// It holds more than memory is given for.
    #[error("{file}: more than {max} {what}")]
    TooMany {
        /// Which file.
        file: String,
        /// What.
        what: &'static str,
        /// How many are taken.
        max: usize,
    },
    /// It holds no request.
    #[error("{file}: empty")]
    Empty {
        /// Which file.
        file: String,
    },
}

/// What is wrong with a field.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Problem {
    /// It is not there.
    #[error("missing")]
    Missing,
    /// It is there twice.
    #[error("there twice")]
    Twice,
    /// It is something else than is meant.
    #[error("{text:?} is not {expected}")]
    Not {
        /// The value, its beginning if it is long.
        text: String,
        /// What is meant.
        expected: &'static str,
    },
    /// It is too small or too great.
    #[error("{text} is not from {min} to {max}")]
    Range {
        /// The value.
        text: String,
        /// The least that holds.
        min: f64,
        /// The most that holds.
        max: f64,
    },
    /// A row has more or fewer fields than the header.
    #[error("{have} fields, where the header has {want}")]
    Fields {
        /// The row's.
        have: usize,
        /// The header's.
        want: usize,
    },
    /// It is longer than is taken.
    #[error("longer than {max} bytes")]
    TooLong {
        /// Bytes taken.
        max: usize,
    },
}

impl Problem {
    /// That `text` is not what is meant.
    #[must_use]
    pub fn not(text: impl fmt::Display, expected: &'static str) -> Self {
        Self::Not { text: shown(&text.to_string()), expected }
    }

    /// That `text` is out of range.
    #[must_use]
    pub fn range(text: impl fmt::Display, min: f64, max: f64) -> Self {
        Self::Range { text: shown(&text.to_string()), min, max }
    }
}

/// Why a generated workload's settings do not hold.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct SettingError {
    /// Which setting.
    pub field: &'static str,
    /// What is wrong.
    pub problem: Problem,
}

/// Whether a setting lies in a range; not so for what is no number.
pub(crate) fn within(field: &'static str, value: f64, min: f64, max: f64) -> Result<(), SettingError> {
    if value >= min && value <= max {
        return Ok(());
    }
    Err(SettingError { field, problem: Problem::range(value, min, max) })
}

fn shown(text: &str) -> String {
    text.chars().take(SHOWN_MAX).collect()
}
