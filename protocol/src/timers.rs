//! One alarm per key. A machine asks "when next?" and "what is due?" without walking all it holds.
//! Invariant: a key has at most one alarm.

use crate::time::Now;
use std::collections::{BTreeMap, BTreeSet};

/// Alarms by key, ordered by time. As large as the set of keys.
#[derive(Debug)]
pub(crate) struct Timers<K> {
    at: BTreeMap<K, Now>,
    order: BTreeSet<(Now, K)>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { at: BTreeMap::new(), order: BTreeSet::new() }
    }
}

impl<K: Ord + Copy> Timers<K> {
    /// Sets the alarm of `key`, in place of any it had.
    pub(crate) fn set(&mut self, key: K, at: Now) {
        self.clear(key);
        self.at.insert(key, at);
        self.order.insert((at, key));
    }

    /// Sets the alarm of `key` unless it has an earlier one.
    pub(crate) fn set_earlier(&mut self, key: K, at: Now) {
        if self.at.get(&key).is_none_or(|set| at < *set) {
            self.set(key, at);
        }
    }

    /// Removes the alarm of `key`.
    pub(crate) fn clear(&mut self, key: K) {
        if let Some(at) = self.at.remove(&key) {
            self.order.remove(&(at, key));
        }
    }

    /// When the next alarm is due.
    pub(crate) fn next(&self) -> Option<Now> {
        self.order.first().map(|(at, _)| *at)
    }

    /// Takes one alarm that is due.
    pub(crate) fn pop(&mut self, now: Now) -> Option<K> {
        let (at, key) = *self.order.first()?;
        if at > now {
            return None;
        }
        self.clear(key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_alarm_of_a_key_counts() {
        let mut timers = Timers::default();
        timers.set('a', Now(30));
        timers.set('b', Now(20));
        timers.set('a', Now(10));
        timers.set_earlier('b', Now(25));
        assert_eq!(timers.next(), Some(Now(10)));
        assert_eq!(timers.pop(Now(9)), None);
        assert_eq!(timers.pop(Now(20)), Some('a'));
        assert_eq!(timers.pop(Now(20)), Some('b'));
        assert_eq!(timers.pop(Now(99)), None);
    }
}
