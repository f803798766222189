//! What a job is, and what a provider is, as far as choosing goes.
//! Invariant: a [`Candidate`] has passed every hard limit of the job.

use super::preference::Sort;
use spillway_ledger::{Credits, Price};

/// A job to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// The prompt's units, and the text delivered so far.
    pub units: u64,
    /// The output to be expected, in units.
    pub output: u64,
    /// Names of the prompt's successive prefix blocks, each covering all before it.
    pub prefix: &'a [u64],
    /// Units that one name covers.
    pub prefix_units: u64,
    /// The time to first text that is asked for, in milliseconds; `None` weighs time against price instead.
    pub target_ms: Option<f64>,
    /// The time per output unit that is asked for, in microseconds, with or without `target_ms`.
    pub rate_us: Option<f64>,
    /// What time is worth.
    pub weights: Weights,
    /// Whether those that said they are busy are asked again: a job's last look before it is turned away.
    pub thorough: bool,
    /// Whether it has asked around enough: it goes to the best of those whose load is known, and nobody is probed for it.
    pub settled: bool,
}

/// What is weighed against what, in micro-credits.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Weights {
    /// For each micro-credit of price: 1, or nearly 0 for those who sort by speed.
    pub money: f64,
    /// For each millisecond to the first text.
    pub first_ms: f64,
    /// For each millisecond of the rest of the answer.
    pub rest_ms: f64,
}

/// The least that a millisecond of queueing counts, in micro-credits, whatever is sorted by: a router that sees no queues
/// sends all to one provider.
const MS_WORTH_MIN: f64 = 0.001;

impl Weights {
    /// From what a second is worth, and what the user sorts by.
    #[must_use]
    pub fn new(second_worth: Credits, sort: Option<Sort>) -> Self {
        #[expect(clippy::cast_precision_loss, reason = "a weight")]
        let ms = (second_worth.micro() as f64 / 1e3).max(MS_WORTH_MIN);
        match sort {
            None => Self { money: 1.0, first_ms: ms, rest_ms: ms },
            Some(Sort::Price) => Self { money: 1.0, first_ms: MS_WORTH_MIN, rest_ms: MS_WORTH_MIN },
            Some(Sort::Latency) => Self { money: 1e-3, first_ms: ms.max(1.0), rest_ms: MS_WORTH_MIN },
            Some(Sort::Throughput) => Self { money: 1e-3, first_ms: MS_WORTH_MIN, rest_ms: ms.max(1.0) },
        }
    }
}

/// A provider that may serve the job.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// What it asks.
    pub price: Price,
    /// Jobs it runs at once for strangers.
    pub slots: u32,
    /// The round trip to it in milliseconds, measured or estimated; `None` if there is not even an estimate.
    pub distance_ms: Option<f64>,
    /// How good it has been, above 0 and at most 1.
    pub standing: f64,
    /// Units of this very prompt that it says its cache holds, or is seen to hold; `None` leaves it to what the router
    /// remembers.
    pub cached: Option<u64>,
    /// Units of this very prompt that a quote at hand bills as cached, which its provider then said to hold; `None` without
    /// a quote: as many as are believed to be cached.
    pub billed: Option<u64>,
    /// Milliseconds before a job can be sent there at all: a session that has yet to be opened.
    pub ready_ms: f64,
    /// Its place in the user's order; those with a lower one go first whatever they cost.
    pub rank: u16,
}

/// Where a router finds providers.
pub trait Market<P> {
    /// The provider as a candidate for the job at hand, if it passes the job's hard limits.
    fn candidate(&self, id: &P) -> Option<Candidate>;

    /// Adds some that may be worth a look: a few drawn at random, and the cheapest of those that are not known to be `busy`;
    /// in `doubt` as many, but all drawn, since a price is a promise. All of them if they are few.
    fn propose(&self, into: &mut Vec<P>, busy: impl Fn(&P) -> bool, doubt: bool, rng: &mut impl rand::Rng);
}

/// Up to so many providers of a model, a market proposes all of them.
pub const ALL_MAX: usize = 48;
/// Beyond, it proposes so many drawn at random,
pub const DRAWN: usize = 8;
/// and so many of the cheapest.
pub const CHEAPEST: usize = 8;
