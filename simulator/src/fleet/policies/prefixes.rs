//! Which replicas were sent which prefixes: a router's own guess at their caches.
//! Invariant: at most [`PAIRS_MAX`] pairs of a block and a replica are kept; the least recently sent goes first.

use crate::fleet::{Ask, ReplicaId, View};
use std::collections::{BTreeMap, VecDeque};

/// Pairs of a block and a replica that are kept.
pub(super) const PAIRS_MAX: usize = 1 << 20;

/// A prefix tree over all replicas. Since a block's name covers all before it, a map from names does for a tree.
#[derive(Debug, Default)]
pub(super) struct Prefixes {
    /// When each block was last sent to each replica.
    sent: BTreeMap<(u64, ReplicaId), u64>,
    /// In order of sending; stale where `sent` holds a later time.
    order: VecDeque<(u64, (u64, ReplicaId))>,
    time: u64,
    /// Blocks by replica.
    sizes: BTreeMap<ReplicaId, usize>,
}

impl Prefixes {
    /// A prompt is sent to a replica.
    pub(super) fn sent(&mut self, prefix: &[u64], replica: ReplicaId) {
        for &name in prefix {
            self.time += 1;
            let pair = (name, replica);
            if self.sent.insert(pair, self.time).is_none() {
                *self.sizes.entry(replica).or_default() += 1;
            }
            self.order.push_back((self.time, pair));
        }
        while self.sent.len() > PAIRS_MAX || self.order.len() > 2 * PAIRS_MAX {
            let Some((time, pair)) = self.order.pop_front() else { return };
            if self.sent.get(&pair) == Some(&time) {
                self.sent.remove(&pair);
                *self.sizes.get_mut(&pair.1).expect("counted when it came") -= 1;
            }
        }
    }

    /// A replica lost its cache.
    pub(super) fn lost(&mut self, replica: ReplicaId) {
        if self.sizes.remove(&replica).is_some_and(|size| size > 0) {
            self.sent.retain(|pair, _| pair.1 != replica);
        }
    }

    /// Blocks of this prompt that a replica was sent.
    pub(super) fn blocks(&self, prefix: &[u64], replica: ReplicaId) -> u32 {
        let known = prefix.iter().rposition(|name| self.sent.contains_key(&(*name, replica)));
        known.map_or(0, |last| u32::try_from(last + 1).expect("a prompt has fewer than 2^32 tokens"))
    }

    /// Tokens of this prompt that a replica was sent.
    pub(super) fn tokens(&self, ask: &Ask<'_>, replica: ReplicaId) -> u32 {
        self.blocks(ask.prefix, replica).saturating_mul(ask.prefix_block).min(ask.input)
    }

    /// Blocks that a replica was sent, of any prompt.
    pub(super) fn size(&self, replica: ReplicaId) -> usize {
        self.sizes.get(&replica).copied().unwrap_or(0)
    }
}

/// Tokens of the prompt that a replica has cached: as it tells, else as guessed by what it was sent.
pub(super) fn cached(view: &View<'_>, prefixes: &Prefixes, replica: ReplicaId, ask: &Ask<'_>) -> u32 {
    view.cached_tokens(replica, ask).unwrap_or_else(|| prefixes.tokens(ask, replica))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_known_part_counts_until_the_cache_is_lost() {
        let mut prefixes = Prefixes::default();
        let [one, two] = [ReplicaId(1), ReplicaId(2)];
        prefixes.sent(&[10, 11, 12], one);
        prefixes.sent(&[10], two);
        for (prefix, replica, blocks) in
            [(&[10, 11, 12, 13][..], one, 3), (&[10, 11], two, 1), (&[20], one, 0), (&[], one, 0)]
        {
            assert_eq!(prefixes.blocks(prefix, replica), blocks, "{prefix:?} at {replica:?}");
        }
        assert_eq!((prefixes.size(one), prefixes.size(two)), (3, 1));
        prefixes.lost(one);
        assert_eq!((prefixes.blocks(&[10], one), prefixes.blocks(&[10], two), prefixes.size(one)), (0, 1, 0));
    }

    #[test]
    fn it_is_bounded() {
        let mut prefixes = Prefixes::default();
        for name in 0..PAIRS_MAX as u64 + 10 {
            prefixes.sent(&[name], ReplicaId(0));
        }
        assert_eq!((prefixes.sent.len(), prefixes.size(ReplicaId(0))), (PAIRS_MAX, PAIRS_MAX));
        assert_eq!((prefixes.blocks(&[9], ReplicaId(0)), prefixes.blocks(&[10], ReplicaId(0))), (0, 1));
    }
}
