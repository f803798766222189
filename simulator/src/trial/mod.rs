//! Trials: campaigns of runs that put a figure on a promise. `spillway-sim trial NAME`.
//! Invariant: a trial that promises a bound fails if a run exceeds it, and names the command that replays that run.

pub mod adversaries;
pub mod bound;
pub mod overload;
pub mod streams;

use crate::Violation;
use serde::Serialize;

/// A run in which a rule or a bound did not hold.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The run's seed.
    pub seed: u64,
    /// What was broken first.
    pub what: String,
    /// The command that plays the trial's run again.
    pub replay: String,
}

impl Failure {
    fn of(trial: &str, seed: u64, violation: &Violation) -> Self {
        let replay = format!("spillway-sim trial {trial} --seeds {seed}..{}", seed + 1);
        Self { seed, what: violation.to_string(), replay }
    }
}

/// The value at and below which that many in a thousand of `sorted` lie; 0 of nothing.
fn at_per_mille(sorted: &[u64], per_mille: usize) -> u64 {
    let index = (sorted.len() * per_mille).div_ceil(1000).saturating_sub(1);
    sorted.get(index).copied().unwrap_or_default()
}

/// 50th, 95th and 99th percentile and the largest of some times, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Spread {
    /// How many there were.
    pub count: u64,
    /// Half of them are no longer.
    pub p50_ms: u64,
    /// 95 % are no longer.
    pub p95_ms: u64,
    /// 99 % are no longer.
    pub p99_ms: u64,
    /// The longest.
    pub max_ms: u64,
}

impl Spread {
    /// Of times in microseconds, in any order.
    #[must_use]
    pub fn of(micros: impl IntoIterator<Item = u64>) -> Self {
        let mut sorted: Vec<u64> = micros.into_iter().map(|micros| micros.div_ceil(1000)).collect();
        sorted.sort_unstable();
        let at = |per_mille| at_per_mille(&sorted, per_mille);
        Self { count: sorted.len() as u64, p50_ms: at(500), p95_ms: at(950), p99_ms: at(990), max_ms: at(1000) }
    }
}

impl std::fmt::Display for Spread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { count, p50_ms, p95_ms, p99_ms, max_ms } = self;
        write!(f, "p50 {p50_ms} ms, p95 {p95_ms} ms, p99 {p99_ms} ms, longest {max_ms} ms (of {count})")
    }
}

#[cfg(test)]
mod tests {
    use super::Spread;

    #[test]
    fn a_spread_counts_in_ranks() {
        let spread = Spread::of((1..=200).rev().map(|ms| ms * 1000));
        assert_eq!(spread, Spread { count: 200, p50_ms: 100, p95_ms: 190, p99_ms: 198, max_ms: 200 });
        assert_eq!(Spread::of([]), Spread::default());
    }
}
