//! Who holds which prefix: this node's own memory of where it sent what, and what providers say they hold.
//! Invariant: at most [`NAMES_MAX`] names, each with at most [`HOLDERS_MAX`] holders; the least used go first.

use std::collections::BTreeMap;

/// Names remembered.
pub const NAMES_MAX: usize = 65_536;
/// Holders remembered of one name.
pub const HOLDERS_MAX: usize = 4;

#[derive(Clone, Debug)]
struct Entry<P> {
    units: u64,
    /// Newest last.
    holders: Vec<P>,
    used: u64,
}

/// Prefixes by name. A name covers a prompt's beginning up to some block, so that longer matches have later names.
#[derive(Clone, Debug)]
pub struct Holders<P> {
    entries: BTreeMap<u64, Entry<P>>,
    by_use: BTreeMap<u64, u64>,
    uses: u64,
}

impl<P: Copy + Ord> Default for Holders<P> {
    fn default() -> Self {
        Self::new()
    }
}

impl<P: Copy + Ord> Holders<P> {
    /// Nothing held.
    #[must_use]
    pub const fn new() -> Self {
        Self { entries: BTreeMap::new(), by_use: BTreeMap::new(), uses: 0 }
    }

    /// Notes that `holder` has the prefix `name` of that many units.
    pub fn insert(&mut self, name: u64, units: u64, holder: P) {
        self.uses += 1;
        let entry = self.entries.entry(name).or_insert(Entry { units, holders: Vec::new(), used: 0 });
        entry.units = units;
        if let Some(index) = entry.holders.iter().position(|other| *other == holder) {
            entry.holders.remove(index);
        } else if entry.holders.len() >= HOLDERS_MAX {
            entry.holders.remove(0);
        }
        entry.holders.push(holder);
        if entry.used > 0 {
            self.by_use.remove(&entry.used);
        }
        entry.used = self.uses;
        self.by_use.insert(self.uses, name);
        if self.entries.len() > NAMES_MAX
            && let Some((_, oldest)) = self.by_use.pop_first()
        {
            self.entries.remove(&oldest);
        }
    }

    /// Adds the holders of the longest known part of `prefix`.
    pub fn of(&self, prefix: &[u64], into: &mut Vec<P>) {
        let longest = prefix.iter().rev().find_map(|name| self.entries.get(name));
        into.extend(longest.into_iter().flat_map(|entry| entry.holders.iter().copied()));
    }

    /// The units of `prefix` that `holder` is known to have.
    #[must_use]
    pub fn held(&self, prefix: &[u64], holder: &P) -> u64 {
        let has = |name: &u64| self.entries.get(name).filter(|entry| entry.holders.contains(holder));
        prefix.iter().rev().find_map(has).map_or(0, |entry| entry.units)
    }

    /// It turned out that `holder` has no more than `units` of `prefix`.
    pub fn lost(&mut self, prefix: &[u64], holder: &P, units: u64) {
        for name in prefix {
            if let Some(entry) = self.entries.get_mut(name).filter(|entry| entry.units > units) {
                entry.holders.retain(|other| other != holder);
            }
        }
    }

    /// How many names are known.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether no name is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_match_counts_and_memory_is_bounded() {
        let mut holders = Holders::new();
        for (index, name) in [10, 11, 12].into_iter().enumerate() {
            holders.insert(name, (index as u64 + 1) * 100, 'a');
        }
        holders.insert(10, 100, 'b');
        let (mut found, prompt) = (Vec::new(), [10, 11, 12, 13]);
        holders.of(&prompt, &mut found);
        assert_eq!(found, ['a']);
        assert_eq!((holders.held(&prompt, &'a'), holders.held(&prompt, &'b')), (300, 100));
        assert_eq!(holders.held(&[99], &'a'), 0);
        holders.lost(&prompt, &'a', 100);
        assert_eq!(holders.held(&prompt, &'a'), 100);
        for name in 100..100 + 2 * NAMES_MAX as u64 {
            holders.insert(name, 1, 'c');
            holders.insert(100, 1, 'd');
        }
        assert_eq!((holders.len(), holders.by_use.len()), (NAMES_MAX, NAMES_MAX));
        assert_eq!(holders.held(&[100], &'d'), 1, "what is used stays");
        for holder in 'e'..='z' {
            holders.insert(7, 1, holder);
        }
        let mut found = Vec::new();
        holders.of(&[7], &mut found);
        assert_eq!(found, ['w', 'x', 'y', 'z']);
    }
}
