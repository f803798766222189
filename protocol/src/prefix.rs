//! Which prompts' beginnings a backend has read lately: names of prefix blocks, in a bounded table.
//! Invariants: a table holds at most as many names as it was made for; the least recently used goes first, and of one prompt
//! its end before its beginning.
//!
//! A name stands for a prompt's first bytes, all of them up to a border of [`PREFIX_UNITS`], and for the model. It follows from
//! these bytes alone ([`names`]), so that a provider checks what a consumer claims to share. Nobody reads the bytes from a name,
//! but who guesses all of them can tell that they are the ones. The idea of naming whole prefixes by chained hashes is that of
//! vLLM's automatic prefix caching and of Mooncake's traces.

use std::collections::{BTreeMap, BTreeSet};

/// Bytes of prompt per name.
pub const PREFIX_UNITS: usize = 2048;
/// Most names of one prompt; what lies beyond is not named.
pub const NAMES_MAX: usize = 64;
/// Most prefixes in a summary.
pub const HOT_MAX: usize = 16;

/// Counts are halved after so many uses for each name that a table may hold.
const AGED_EVERY: usize = 8;

/// The names of a body's whole prefix blocks, shortest first; at most [`NAMES_MAX`]. A body's last, broken block has none.
#[must_use]
pub fn names(model: &str, body: &[u8]) -> Vec<u64> {
    let mut hasher = blake3::Hasher::new_derive_key("spillway/prefix/1");
    hasher.update(&(model.len() as u64).to_le_bytes()).update(model.as_bytes());
    let blocks = body.chunks_exact(PREFIX_UNITS).take(NAMES_MAX);
    blocks
        .map(|block| {
            let digest = hasher.update(block).finalize();
            u64::from_le_bytes(*digest.as_bytes().first_chunk().expect("32 bytes"))
        })
        .collect()
}

/// A prefix that is used often, for summaries between peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct HotPrefix {
    /// Its name.
    pub name: u64,
    /// How many units of prompt it covers.
    pub units: u32,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    units: u32,
    /// When it was last used, on the table's own count of uses.
    used: u64,
    uses: u32,
    /// The uses of the prefix one block longer that is used most.
    deeper: u32,
}

/// Prefixes by name, the most recently used ones.
#[derive(Clone, Debug)]
pub struct PrefixTable {
    names_max: usize,
    entries: BTreeMap<u64, Entry>,
    order: BTreeSet<(u64, u64)>,
    clock: u64,
    until_aged: usize,
}

impl PrefixTable {
    /// An empty table of at most `names_max` names, and at most 2^20. One of none stays empty.
    #[must_use]
    pub fn new(names_max: usize) -> Self {
        let names_max = names_max.min(1 << 20);
        Self {
            names_max,
            entries: BTreeMap::new(),
            order: BTreeSet::new(),
            clock: 0,
            until_aged: names_max * AGED_EVERY,
        }
    }

    /// A prompt with these prefixes was read, shortest first as [`names`] gives them.
    pub fn used(&mut self, names: &[u64]) {
        let names = &names[..names.len().min(NAMES_MAX)];
        let mut deeper = 0;
        // The longest first: then its beginning is the last to go.
        for (index, name) in names.iter().enumerate().rev() {
            let units = u32::try_from((index + 1) * PREFIX_UNITS).expect("at most 128 KiB");
            deeper = self.touch(*name, units, deeper);
        }
    }

    /// A prefix that somebody else says to have.
    pub fn heard(&mut self, hot: HotPrefix) {
        self.touch(hot.name, hot.units, 0);
    }

    fn touch(&mut self, name: u64, units: u32, deeper: u32) -> u32 {
        if self.names_max == 0 {
            return 0;
        }
        self.age();
        self.clock += 1;
        let clock = self.clock;
        let entry = self.entries.entry(name).or_insert(Entry { units, used: clock, uses: 0, deeper: 0 });
        self.order.remove(&(entry.used, name));
        (entry.units, entry.used) = (units, clock);
        entry.uses = entry.uses.saturating_add(1);
        entry.deeper = entry.deeper.max(deeper);
        let uses = entry.uses;
        self.order.insert((clock, name));
        if self.entries.len() > self.names_max
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.entries.remove(&oldest);
        }
        uses
    }

    /// Halves all counts now and then, so that what was hot once does not stay so.
    fn age(&mut self) {
        self.until_aged -= 1;
        if self.until_aged == 0 {
            self.until_aged = self.names_max * AGED_EVERY;
            for entry in self.entries.values_mut() {
                entry.uses = entry.uses.div_ceil(2);
                entry.deeper = entry.deeper.div_ceil(2);
            }
        }
    }

    /// How many units of a prompt with these prefixes are believed to be cached: those of the longest known one. A name at
    /// another place than its own counts for nothing.
    #[must_use]
    pub fn cached_units(&self, names: &[u64]) -> u32 {
        let known = names.iter().enumerate().rev().find_map(|(index, name)| {
            let units = self.entries.get(name)?.units;
            (units as usize == (index + 1) * PREFIX_UNITS).then_some(units)
        });
        known.unwrap_or(0)
    }

    /// The most used prefixes, at most `count`: by uses, then by length. One that is only used as part of a longer one is left
    /// out.
    #[must_use]
    pub fn hot(&self, count: usize) -> Vec<HotPrefix> {
        let ends = self.entries.iter().filter(|(_, entry)| entry.uses > entry.deeper);
        let mut ranked: Vec<_> = ends.map(|(name, entry)| (entry.uses, entry.units, *name)).collect();
        ranked.sort_unstable_by(|a, b| b.cmp(a));
        ranked.into_iter().take(count).map(|(_, units, name)| HotPrefix { name, units }).collect()
    }

    /// Forgets all: the backend was restarted.
    pub fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
    }

    /// Names held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether it holds none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(blocks: &[u8]) -> Vec<u64> {
        let body: Vec<u8> = blocks.iter().flat_map(|fill| [*fill; PREFIX_UNITS]).collect();
        names("m", &body)
    }

    #[test]
    fn a_name_stands_for_all_bytes_up_to_its_border_and_the_model() {
        let body = [vec![1; PREFIX_UNITS], vec![2; PREFIX_UNITS], vec![3; 5]].concat();
        let names = names("m", &body);
        assert_eq!(names.len(), 2, "the broken block has no name");
        assert_eq!(names, prompt(&[1, 2]));
        assert_eq!(names[..1], prompt(&[1]));
        assert_ne!(names[1], prompt(&[9, 2])[1], "what comes before counts");
        assert_ne!(names, super::names("n", &body));
        assert!(super::names("m", &body[..PREFIX_UNITS - 1]).is_empty());
        assert_eq!(super::names("m", &vec![0; (NAMES_MAX + 9) * PREFIX_UNITS]).len(), NAMES_MAX);
        assert_eq!(names[0], 0x38791141cd262d5e, "frozen: nodes of different versions share them");
    }

    #[test]
    fn the_longest_known_prefix_counts() {
        let mut table = PrefixTable::new(100);
        table.used(&prompt(&[1, 2, 3]));
        for (blocks, cached) in
            [(&[1, 2, 3][..], 3), (&[1, 2, 3, 4], 3), (&[1, 2, 9], 2), (&[1], 1), (&[2, 3], 0), (&[], 0)]
        {
            assert_eq!(table.cached_units(&prompt(blocks)) as usize, cached * PREFIX_UNITS, "{blocks:?}");
        }
        assert_eq!(table.cached_units(&prompt(&[1, 2, 3])[2..]), 0, "out of its place");
        table.clear();
        assert_eq!(table.cached_units(&prompt(&[1])), 0);
    }

    #[test]
    fn the_least_recently_used_goes_first_and_a_prompt_from_its_end() {
        let mut table = PrefixTable::new(4);
        table.used(&prompt(&[1, 2, 3]));
        table.used(&prompt(&[5, 6]));
        assert_eq!(table.len(), 4);
        let cached = |table: &PrefixTable, blocks| table.cached_units(&prompt(blocks)) as usize / PREFIX_UNITS;
        assert_eq!((cached(&table, &[1, 2, 3]), cached(&table, &[5, 6])), (2, 2));
        table.used(&prompt(&[1]));
        table.used(&prompt(&[7]));
        table.used(&prompt(&[8]));
        assert_eq!((cached(&table, &[1, 2, 3]), cached(&table, &[5, 6]), cached(&table, &[8])), (1, 1, 1));
    }

    #[test]
    fn a_summary_names_the_ends_of_what_is_used_most() {
        let mut table = PrefixTable::new(100);
        for last in 10..15 {
            table.used(&prompt(&[1, 2, last])); // A shared beginning of two blocks.
        }
        for _ in 0..3 {
            table.used(&prompt(&[7, 8])); // One conversation that comes again.
        }
        let hot = table.hot(2);
        let blocks = |n: usize| u32::try_from(n * PREFIX_UNITS).expect("small");
        assert_eq!(
            hot,
            [
                HotPrefix { name: prompt(&[1, 2])[1], units: blocks(2) },
                HotPrefix { name: prompt(&[7, 8])[1], units: blocks(2) }
            ]
        );
        let mut far = PrefixTable::new(100);
        hot.into_iter().for_each(|prefix| far.heard(prefix));
        assert_eq!(far.cached_units(&prompt(&[1, 2, 99])), blocks(2), "told by a summary");
    }

    #[test]
    fn counts_fade_and_memory_is_bounded() {
        let mut table = PrefixTable::new(8);
        (0..50).for_each(|_| table.used(&prompt(&[1])));
        for round in 0..400_u64 {
            table.used(&[round + 10]);
            table.used(&prompt(&[1]));
        }
        assert_eq!((table.len(), table.order.len()), (8, 8));
        assert!(table.entries[&prompt(&[1])[0]].uses < 140, "{:?}", table.entries);
    }
}
