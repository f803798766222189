//! Circuit breakers: which targets failed so often that they are left alone for a while.
//! Invariant: a target that rests is tried by one request at a time once its time is over, and by all once that went well.

use super::rule::BreakerRule;
use crate::time::Now;
use std::collections::BTreeMap;

/// Breakers kept; the one not used for longest makes room.
const BREAKERS_MAX: usize = 4096;

/// What is known of one target.
#[derive(Clone, Debug, Default)]
struct Breaker {
    used: Now,
    /// Attempts and failures since the window began.
    since: Now,
    attempts: u32,
    failures: u32,
    /// It rests until then, and after that until an attempt went well.
    open_until: Option<Now>,
    /// An attempt shows whether it is well; if nothing is heard of it until then, another may.
    trial_until: Option<Now>,
}

/// The breakers of every target of every policy, by name.
#[derive(Clone, Debug, Default)]
pub struct Breakers(BTreeMap<String, Breaker>);

impl Breakers {
    /// Whether the target may be tried now.
    #[must_use]
    pub fn allows(&self, now: Now, name: &str) -> bool {
        let Some(breaker) = self.0.get(name) else { return true };
        breaker.open_until.is_none_or(|until| now >= until && breaker.trial_until.is_none_or(|trial| now >= trial))
    }

    /// How many rest now.
    #[must_use]
    pub fn open(&self, now: Now) -> usize {
        self.0.values().filter(|breaker| breaker.open_until.is_some_and(|until| now < until)).count()
    }

    /// An attempt begins. If the target was at rest, it is the one that shows whether it is well.
    pub(super) fn begin(&mut self, now: Now, name: &str, rule: &BreakerRule) {
        let Some(breaker) = self.0.get_mut(name) else { return };
        breaker.used = now;
        if breaker.open_until.is_some() {
            breaker.trial_until = Some(now.after(rule.cooldown));
        }
    }

    /// An attempt ended without a word on the target's health, such as by a client that left.
    pub(super) fn release(&mut self, name: &str) {
        if let Some(breaker) = self.0.get_mut(name) {
            breaker.trial_until = None;
        }
    }

    /// An attempt ended: well, or with a failure that counts.
    pub(super) fn ended(&mut self, now: Now, name: &str, rule: &BreakerRule, well: bool) {
        if !self.0.contains_key(name) {
            if self.0.len() >= BREAKERS_MAX {
                let oldest = self.0.iter().min_by_key(|(_, breaker)| breaker.used).map(|(name, _)| name.clone());
                oldest.map(|oldest| self.0.remove(&oldest));
            }
            self.0.insert(name.to_owned(), Breaker { since: now, ..Breaker::default() });
        }
        let breaker = self.0.get_mut(name).expect("just put there");
        breaker.used = now;
        if breaker.open_until.is_some() {
            let rests = breaker.open_until.is_some_and(|until| now < until);
            if well && !rests {
                *breaker = Breaker { used: now, since: now, ..Breaker::default() };
            } else if !well {
                breaker.open_until = Some(now.after(rule.cooldown));
                breaker.trial_until = None;
            }
            return;
        }
        if now >= breaker.since.after(rule.window) {
            (breaker.since, breaker.attempts, breaker.failures) = (now, 0, 0);
        }
        breaker.attempts = breaker.attempts.saturating_add(1);
        breaker.failures = breaker.failures.saturating_add(u32::from(!well));
        let enough = breaker.attempts >= rule.minimum;
        let many = rule.failures.is_some_and(|most| breaker.failures >= most);
        let often = rule.percent.is_some_and(|percent| {
            u64::from(breaker.failures) * 100 >= u64::from(percent) * u64::from(breaker.attempts)
        });
        if !well && enough && (many || often) {
            breaker.open_until = Some(now.after(rule.cooldown));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64) -> Now {
        Now::from_ms(1_000_000 + seconds * 1000)
    }

    #[test]
    fn a_target_rests_and_comes_back_after_one_good_attempt() {
        let rule = BreakerRule { failures: Some(2), ..BreakerRule::default() };
        let mut breakers = Breakers::default();
        breakers.ended(at(0), "t", &rule, false);
        assert!(breakers.allows(at(1), "t"), "one failure is not enough");
        breakers.ended(at(1), "t", &rule, false);
        assert!(!breakers.allows(at(2), "t") && breakers.allows(at(2), "other"));
        assert_eq!(breakers.open(at(2)), 1);
        // What began before it rested and ends well does not wake it.
        breakers.ended(at(3), "t", &rule, true);
        assert!(!breakers.allows(at(30), "t"));
        assert!(breakers.allows(at(31), "t"));
        breakers.begin(at(31), "t", &rule);
        assert!(!breakers.allows(at(32), "t"), "one at a time");
        breakers.release("t");
        assert!(breakers.allows(at(32), "t"));
        breakers.begin(at(32), "t", &rule);
        breakers.ended(at(33), "t", &rule, false);
        assert!(!breakers.allows(at(62), "t") && breakers.allows(at(63), "t"));
        breakers.begin(at(63), "t", &rule);
        breakers.ended(at(64), "t", &rule, true);
        breakers.ended(at(65), "t", &rule, false);
        assert!(breakers.allows(at(66), "t"), "counted anew");
    }

    #[test]
    fn failures_count_by_share_and_within_the_window() {
        let share = BreakerRule { failures: None, percent: Some(50), minimum: 4, ..BreakerRule::default() };
        let many = BreakerRule { failures: Some(3), window: Duration::from_secs(10), ..BreakerRule::default() };
        // The rule, when and how attempts ended, and whether the target rests after the last.
        for (rule, attempts, rests) in [
            (&share, &[(0, false), (1, false), (2, false)][..], false),
            (&share, &[(0, true), (1, false), (2, true), (3, false)], true),
            (&share, &[(0, true), (1, true), (2, true), (3, false)], false),
            (&many, &[(0, false), (1, false), (2, false)], true),
            (&many, &[(0, false), (1, false), (11, false)], false),
        ] {
            let mut breakers = Breakers::default();
            for (second, well) in attempts {
                breakers.ended(at(*second), "t", rule, *well);
            }
            let last = attempts.last().expect("some").0;
            assert_eq!(!breakers.allows(at(last), "t"), rests, "{attempts:?}");
        }
    }

    #[test]
    fn breakers_are_bounded() {
        let mut breakers = Breakers::default();
        for number in 0..=BREAKERS_MAX as u64 {
            breakers.ended(at(number), &number.to_string(), &BreakerRule::default(), false);
        }
        assert_eq!(breakers.0.len(), BREAKERS_MAX);
        assert!(!breakers.0.contains_key("0"));
    }
}
