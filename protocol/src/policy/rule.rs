//! The rules of a target: which failures count, how often it is tried again, how long it may take, when it rests.
//! Invariant: every number here is bounded where it is read, so that no policy holds a request for ever.

use std::time::Duration;

/// Most repetitions of one target.
pub const RETRIES_MAX: u32 = 5;
/// The longest that a repetition waits, whatever a server asks.
pub const RETRY_WAIT_MAX: Duration = Duration::from_secs(60);
/// The longest any time limit may be.
pub const LIMIT_MAX: Duration = Duration::from_secs(3600);
/// The longest a target rests.
pub const COOLDOWN_MAX: Duration = Duration::from_secs(3600);
/// HTTP statuses of which it is worth trying elsewhere or again, where nothing else is said.
pub const DEFAULT_CODES: [u16; 6] = [408, 429, 500, 502, 503, 504];

/// Failures by their HTTP status. One that took too long has 408 and 504 alike.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Statuses {
    /// Every failure.
    Any,
    /// These.
    Codes(Vec<u16>),
}

impl Default for Statuses {
    fn default() -> Self {
        Self::Codes(DEFAULT_CODES.to_vec())
    }
}

impl Statuses {
    /// Whether a failure of this status is meant.
    #[must_use]
    pub fn has(&self, status: u16) -> bool {
        match self {
            Self::Any => true,
            Self::Codes(codes) => {
                let late = |code: u16| matches!(code, 408 | 504);
                codes.iter().any(|code| *code == status || (late(*code) && late(status)))
            }
        }
    }
}

/// When and how often a target is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retry {
    /// How often, beside the first time; at most [`RETRIES_MAX`].
    pub attempts: u32,
    /// On which failures.
    pub on: Statuses,
    /// How long the first repetition waits; each further one twice as long, shortened at random by up to half.
    pub wait: Duration,
    /// The longest that one waits. A server that asks for longer is not tried again: the next target is.
    pub wait_max: Duration,
    /// Whether what a server asks for (`retry-after`) is waited for.
    pub heed_server: bool,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            attempts: 0,
            on: Statuses::default(),
            wait: Duration::from_millis(250),
            wait_max: Duration::from_secs(10),
            heed_server: true,
        }
    }
}

/// How long an attempt may take; `None` sets no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the first piece of the answer.
    pub first: Option<Duration>,
    /// Between two pieces.
    pub between: Option<Duration>,
    /// For the whole answer.
    pub total: Option<Duration>,
}

/// When a target is left alone for a while.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BreakerRule {
    /// After so many failures within the window.
    pub failures: Option<u32>,
    /// Or once so many of a hundred attempts within the window failed.
    pub percent: Option<u8>,
    /// But not before so many attempts.
    pub minimum: u32,
    /// How far back failures count.
    pub window: Duration,
    /// For how long. Then one attempt shows whether it is well.
    pub cooldown: Duration,
    /// Which failures count.
    pub on: Statuses,
}

impl Default for BreakerRule {
    fn default() -> Self {
        Self {
            failures: Some(5),
            percent: None,
            minimum: 1,
            window: Duration::from_secs(60),
            cooldown: Duration::from_secs(30),
            on: Statuses::default(),
        }
    }
}
