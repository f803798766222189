//! How a run went over time: jobs by their end, and how long first texts took, for equal intervals from the start on.
//! Invariant: never more than [`INTERVALS_MAX`] intervals. What comes later makes all of them twice as long.

use crate::check::Went;
use crate::timeline::START;
use spillway_protocol::Now;
use std::time::Duration;

/// Intervals kept. When a run goes on beyond them, pairs become one.
pub const INTERVALS_MAX: usize = 96;
/// The length of an interval at first, in milliseconds.
const FIRST_MS: u64 = 1_000;

/// What happened in an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Interval {
    /// Jobs that ended well on own hardware.
    pub own: u64,
    /// Jobs that ended well, some of it at a stranger's.
    pub network: u64,
    /// Jobs turned away.
    pub refused: u64,
    /// Jobs broken off.
    pub failed: u64,
    /// Jobs whose client left.
    pub left: u64,
    /// First texts.
    pub firsts: u64,
    /// Milliseconds from submission to these, all together.
    pub first_sum_ms: u64,
    /// The slowest of these.
    pub first_max_ms: u64,
}

impl Interval {
    /// Two intervals as one.
    const fn with(self, next: Self) -> Self {
        let slower = self.first_max_ms < next.first_max_ms;
        Self {
            own: self.own + next.own,
            network: self.network + next.network,
            refused: self.refused + next.refused,
            failed: self.failed + next.failed,
            left: self.left + next.left,
            firsts: self.firsts + next.firsts,
            first_sum_ms: self.first_sum_ms.saturating_add(next.first_sum_ms),
            first_max_ms: if slower { next.first_max_ms } else { self.first_max_ms },
        }
    }
}

/// A run over time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Course {
    length_ms: u64,
    intervals: Vec<Interval>,
}

impl Default for Course {
    fn default() -> Self {
        Self::new()
    }
}

impl Course {
    /// Nothing has happened.
    #[must_use]
    pub const fn new() -> Self {
        Self { length_ms: FIRST_MS, intervals: Vec::new() }
    }

    /// How long an interval is, in milliseconds.
    #[must_use]
    pub const fn length_ms(&self) -> u64 {
        self.length_ms
    }

    /// All intervals from the start to the last in which something happened.
    #[must_use]
    pub fn intervals(&self) -> &[Interval] {
        &self.intervals
    }

    /// A job was over.
    pub fn ended(&mut self, at: Now, went: Went) {
        let interval = self.interval(at);
        match went {
            Went::Own => interval.own += 1,
            Went::Network => interval.network += 1,
            Went::Refused => interval.refused += 1,
            Went::Failed => interval.failed += 1,
            Went::Left => interval.left += 1,
        }
    }

    /// A job's first text came, so long after the job.
    pub fn first(&mut self, at: Now, after: Duration) {
        let first_ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
        let interval = self.interval(at);
        interval.firsts += 1;
        interval.first_sum_ms = interval.first_sum_ms.saturating_add(first_ms);
        interval.first_max_ms = interval.first_max_ms.max(first_ms);
    }

    fn interval(&mut self, at: Now) -> &mut Interval {
        let at_ms = at.ms().saturating_sub(START.ms());
        while at_ms / self.length_ms >= INTERVALS_MAX as u64 {
            let pairs = self.intervals.chunks(2);
            let pairs = pairs.map(|pair| pair.iter().fold(Interval::default(), |sum, it| sum.with(*it)));
            self.intervals = pairs.collect();
            self.length_ms *= 2;
        }
        let index = usize::try_from(at_ms / self.length_ms).expect("below the most intervals");
        if self.intervals.len() <= index {
            self.intervals.resize(index + 1, Interval::default());
        }
        &mut self.intervals[index]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_double_and_nothing_is_lost() {
        let mut course = Course::new();
        for second in 0..1_000 {
            let at = START.after(Duration::from_secs(second));
            course.ended(at, if second % 2 == 0 { Went::Own } else { Went::Network });
            course.first(at, Duration::from_millis(second));
        }
        assert_eq!(course.length_ms(), 16_000);
        assert_eq!(course.intervals().len(), 63);
        let first = course.intervals()[0];
        assert_eq!(
            (first.own, first.network, first.firsts, first.first_sum_ms, first.first_max_ms),
            (8, 8, 16, 120, 15)
        );
        let all = course.intervals().iter().fold(Interval::default(), |sum, it| sum.with(*it));
        assert_eq!((all.own, all.network, all.first_sum_ms, all.first_max_ms), (500, 500, 499_500, 999));
        course.ended(Now(u64::MAX), Went::Failed);
        assert!(course.intervals().len() <= INTERVALS_MAX);
    }
}
