//! Virtual time: what happens when.
//! Invariant: time never goes back, and what was planned first happens first among equals.

use spillway_protocol::Now;
use std::collections::BTreeMap;
use std::time::Duration;

/// The moment every run begins at: 2026-01-01, so that times look like times.
pub const START: Now = Now::from_ms(1_767_225_600_000);

/// The queue of what is yet to happen.
#[derive(Debug)]
pub struct Timeline<T> {
    now: Now,
    planned: u64,
    ahead: BTreeMap<(Now, u64), T>,
}

impl<T> Timeline<T> {
    /// Nothing planned, at [`START`].
    #[must_use]
    pub const fn new() -> Self {
        Self { now: START, planned: 0, ahead: BTreeMap::new() }
    }

    /// The present.
    #[must_use]
    pub const fn now(&self) -> Now {
        self.now
    }

    /// Since the run began.
    #[must_use]
    pub const fn elapsed(&self) -> Duration {
        self.now.since(START)
    }

    /// How many things lie ahead.
    #[must_use]
    pub fn ahead(&self) -> usize {
        self.ahead.len()
    }

    /// Plans `what` for `at`, or for the present if that is past.
    pub fn at(&mut self, at: Now, what: T) {
        self.planned += 1;
        self.ahead.insert((at.max(self.now), self.planned), what);
    }

    /// Plans `what` for `micros` from now.
    pub fn after(&mut self, micros: u64, what: T) {
        self.at(Now(self.now.0.saturating_add(micros)), what);
    }

    /// Goes on to the next thing that happens no later than `until`; if there is none, to `until`.
    pub fn next(&mut self, until: Now) -> Option<T> {
        let Some(entry) = self.ahead.first_entry().filter(|entry| entry.key().0 <= until) else {
            self.now = self.now.max(until);
            return None;
        };
        let ((at, _), what) = entry.remove_entry();
        self.now = at;
        Some(what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_keep_their_order_and_the_past_is_now() {
        let mut line = Timeline::new();
        line.after(5, 'b');
        line.after(5, 'c');
        line.at(Now(0), 'a');
        let end = START.after(Duration::from_micros(9));
        line.at(end.after(Duration::from_micros(1)), 'z');
        let seen: String = std::iter::from_fn(|| line.next(end)).collect();
        assert_eq!(seen, "abc");
        assert_eq!(line.now(), end);
        assert_eq!(line.ahead(), 1);
    }
}
