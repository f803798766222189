//! A histogram that is written without a lock, and read by Prometheus and OTLP alike.
//! Invariant: an observation is counted in exactly one bucket, and in the sum; readers may see a sum that is a few observations
//! ahead of the buckets, never one that goes back.

use std::sync::atomic::{AtomicU64, Ordering};

/// Upper bounds of a request's length, in microseconds: those of `gen_ai.client.operation.duration`.
/// Source: OpenTelemetry's semantic conventions for generative AI, "Metrics".
pub const DURATION_US: &[u64] = &[
    10_000, 20_000, 40_000, 80_000, 160_000, 320_000, 640_000, 1_280_000, 2_560_000, 5_120_000, 10_240_000, 20_480_000,
    40_960_000, 81_920_000,
];
/// Upper bounds of the time to the first token, in microseconds: those of `gen_ai.server.time_to_first_token`.
pub const FIRST_US: &[u64] = &[
    1_000, 5_000, 10_000, 20_000, 40_000, 60_000, 80_000, 100_000, 250_000, 500_000, 750_000, 1_000_000, 2_500_000,
    5_000_000, 7_500_000, 10_000_000,
];
/// Upper bounds of the time between tokens, in microseconds: those of `gen_ai.server.time_per_output_token`.
pub const GAP_US: &[u64] = &[
    10_000, 25_000, 50_000, 75_000, 100_000, 150_000, 200_000, 300_000, 400_000, 500_000, 750_000, 1_000_000, 2_500_000,
];
/// Upper bounds of a request's tokens: those of `gen_ai.client.token.usage`.
pub const TOKENS: &[u64] =
    &[1, 4, 16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576, 4_194_304, 16_777_216, 67_108_864];

/// Counts of observations by size.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [u64],
    /// One more than there are bounds: the last is for what is above all of them.
    counts: Box<[AtomicU64]>,
    sum: AtomicU64,
}

/// What a histogram holds at a moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// The upper bounds, in the unit of the observations.
    pub bounds: &'static [u64],
    /// The observations in each bucket, one more than there are bounds.
    pub counts: Vec<u64>,
    /// The sum of all observations.
    pub sum: u64,
}

impl Histogram {
    /// Empty, with these upper bounds, which ascend.
    #[must_use]
    pub fn new(bounds: &'static [u64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0) }
    }

    /// Counts `value`, in the unit of the bounds.
    pub fn observe(&self, value: u64) {
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// Whether nothing was observed yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.counts.iter().all(|count| count.load(Ordering::Relaxed) == 0)
    }

    /// What it holds now.
    #[must_use]
    pub fn snapshot(&self) -> Snapshot {
        let counts = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        Snapshot { bounds: self.bounds, counts, sum: self.sum.load(Ordering::Relaxed) }
    }
}

impl Snapshot {
    /// How many observations there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_the_bucket_below_it() {
        let histogram = Histogram::new(TOKENS);
        assert!(histogram.is_empty());
        for value in [0, 1, 2, 4, 5, 67_108_864, 67_108_865] {
            histogram.observe(value);
        }
        let snapshot = histogram.snapshot();
        let filled: Vec<_> = snapshot.counts.iter().enumerate().filter(|(_, count)| **count > 0).collect();
        assert_eq!(filled, [(0, &2), (1, &2), (2, &1), (13, &1), (14, &1)]);
        assert_eq!((snapshot.count(), snapshot.sum), (7, 12 + 67_108_864 * 2 + 1));
        for bounds in [DURATION_US, FIRST_US, GAP_US, TOKENS] {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{bounds:?}");
        }
    }
}
