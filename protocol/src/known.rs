//! Peers to come back to: which ones a node remembers across a restart, and which it asks first.
//! Invariant: at most [`KNOWN_MAX`] are remembered, and at most [`PER_SUBNET_MAX`] of one subnet, near ones excepted; who
//! served this node gives way to nobody who did not.

use crate::subnet::Subnet;
use crate::time::Now;
use spillway_ledger::{Document, NodeId, encode};
use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

/// Peers that are remembered.
pub const KNOWN_MAX: usize = 256;
/// Of one subnet.
pub const PER_SUBNET_MAX: usize = 8;
/// Peers of one subnet that one choice has.
const CHOSEN_PER_SUBNET_MAX: usize = 2;
/// Addresses of one peer.
const ADDRESSES_MAX: usize = 4;
/// After so many failures in a row, with nothing good between them, a peer is forgotten.
const FAILURES_MAX: u8 = 5;

/// A peer to come back to.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Known {
    /// Who.
    pub node: NodeId,
    /// Where it was reached, as multiaddresses without a peer id.
    pub addresses: Vec<String>,
    /// How often it did something for this node: served a job.
    pub served: u32,
    /// When it was first met, Unix milliseconds.
    pub first_ms: u64,
    /// When it was last met, Unix milliseconds.
    pub last_ms: u64,
    /// Failures to reach it since.
    pub failures: u8,
}

impl Document for Known {
    const DOMAIN: &'static str = "spillway/known-peer/1";
    const BYTES_MAX: usize = 1024;

    fn check(&self) -> Result<(), &'static str> {
        if self.addresses.is_empty() || self.addresses.len() > ADDRESSES_MAX {
            return Err("addresses: none, or more than 4");
        }
        if self.addresses.iter().any(|address| address.len() > 128) {
            return Err("addresses: one is over 128 bytes");
        }
        Ok(())
    }
}

impl Known {
    fn subnet(&self) -> Option<Subnet> {
        self.addresses.iter().find_map(|address| Subnet::of(address))
    }

    /// The better it is, the greater: who served most, then who is known longest, then who was met last.
    const fn worth(&self) -> (u32, u64, u64) {
        (self.served, self.last_ms.saturating_sub(self.first_ms), self.last_ms)
    }
}

/// What is to be done with what is kept on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Keep {
    /// Keep this in place of what was kept of the peer.
    Put(Known),
    /// Keep nothing of the peer.
    Remove(NodeId),
}

/// The peers to come back to.
#[derive(Debug, Default)]
pub struct KnownPeers {
    peers: BTreeMap<NodeId, Known>,
    keeps: VecDeque<Keep>,
}

impl KnownPeers {
    /// What was kept before a restart; what is too much of it is left out, the least worth first.
    #[must_use]
    pub fn new(kept: impl IntoIterator<Item = Known>) -> Self {
        let mut known = Self::default();
        for peer in kept {
            known.insert(peer);
        }
        known.keeps.clear();
        known
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.peers.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.peers.is_empty()
    }

    /// A peer was reached at an address.
    pub fn met(&mut self, now: Now, node: NodeId, address: &str) {
        let mut peer = self.peers.get(&node).cloned().unwrap_or_else(|| Known {
            node,
            addresses: Vec::new(),
            served: 0,
            first_ms: now.ms(),
            last_ms: now.ms(),
            failures: 0,
        });
        peer.last_ms = peer.last_ms.max(now.ms());
        peer.failures = 0;
        // The address that worked last is tried first.
        peer.addresses.retain(|known| known != address);
        peer.addresses.insert(0, address.to_owned());
        peer.addresses.truncate(ADDRESSES_MAX);
        if peer.check().is_ok() {
            self.insert(peer);
        }
    }

    /// A peer served a job of this node. Nothing happens if it was not met.
    pub fn served(&mut self, node: &NodeId) {
        if let Some(peer) = self.peers.get_mut(node) {
            peer.served = peer.served.saturating_add(1);
            self.keeps.push_back(Keep::Put(peer.clone()));
        }
    }

    /// A peer could not be reached where it was.
    pub fn failed(&mut self, node: &NodeId) {
        let Some(peer) = self.peers.get_mut(node) else { return };
        peer.failures = peer.failures.saturating_add(1);
        if peer.failures >= FAILURES_MAX {
            self.peers.remove(node);
            self.keeps.push_back(Keep::Remove(*node));
        } else {
            self.keeps.push_back(Keep::Put(peer.clone()));
        }
    }

    /// Up to `k` peers to connect to first: the best, at most two of a subnet.
    #[must_use]
    pub fn choose(&self, k: usize) -> Vec<&Known> {
        let mut all: Vec<&Known> = self.peers.values().collect();
        all.sort_by_key(|peer| (peer.failures, Reverse(peer.worth())));
        let mut taken: BTreeMap<Subnet, usize> = BTreeMap::new();
        let mut chosen = Vec::new();
        for peer in all {
            if chosen.len() == k {
                break;
            }
            if let Some(subnet) = peer.subnet() {
                let count = taken.entry(subnet).or_default();
                if *count == CHOSEN_PER_SUBNET_MAX {
                    continue;
                }
                *count += 1;
            }
            chosen.push(peer);
        }
        chosen
    }

    /// Up to `k` peers that served this node, those that did most often first.
    #[must_use]
    pub fn anchors(&self, k: usize) -> Vec<NodeId> {
        let mut served: Vec<&Known> = self.peers.values().filter(|peer| peer.served > 0).collect();
        served.sort_by_key(|peer| Reverse(peer.worth()));
        served.into_iter().take(k).map(|peer| peer.node).collect()
    }

    /// The next change to what is kept on disk.
    pub fn poll(&mut self) -> Option<Keep> {
        self.keeps.pop_front()
    }

    fn insert(&mut self, peer: Known) {
        if !self.peers.contains_key(&peer.node) {
            let subnet = peer.subnet();
            let beside = self.peers.values().filter(|other| subnet.is_some() && other.subnet() == subnet);
            let full = self.peers.len() >= KNOWN_MAX;
            let least = if beside.clone().count() >= PER_SUBNET_MAX {
                beside.min_by_key(|other| other.worth())
            } else if full {
                self.peers.values().min_by_key(|other| other.worth())
            } else {
                None
            };
            if let Some(least) = least {
                if least.served > peer.served {
                    return;
                }
                let gone = least.node;
                self.peers.remove(&gone);
                self.keeps.push_back(Keep::Remove(gone));
            } else if full {
                return;
            }
        }
        debug_assert!(encode(&peer).len() <= Known::BYTES_MAX, "four addresses of 128 bytes fit");
        self.keeps.push_back(Keep::Put(peer.clone()));
        self.peers.insert(peer.node, peer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spillway_ledger::SecretKey;

    fn node(index: u32) -> NodeId {
        let mut seed = [5; 32];
        seed[..4].copy_from_slice(&index.to_le_bytes());
        NodeId(SecretKey::from_bytes(&seed).public())
    }

    fn address(index: u32) -> String {
        format!("/ip4/20.{}.{}.1/udp/4600/quic-v1", index / 250, index % 250)
    }

    #[test]
    fn who_served_stays_when_others_crowd_in() {
        let mut known = KnownPeers::default();
        for index in 0..10 {
            known.met(Now::from_ms(1_000), node(index), &address(index));
            known.served(&node(index));
        }
        for index in 10..2_000 {
            known.met(Now::from_ms(2_000), node(index), &address(index));
            assert!(known.len() <= KNOWN_MAX);
        }
        let mut anchors = known.anchors(20);
        anchors.sort();
        let mut expected: Vec<_> = (0..10).map(node).collect();
        expected.sort();
        assert_eq!(anchors, expected);
        let first: Vec<_> = known.choose(10).iter().map(|peer| peer.node).collect();
        assert!(first.iter().all(|peer| expected.contains(peer)));
    }

    #[test]
    fn one_subnet_has_few_places_and_near_ones_have_all() {
        let mut known = KnownPeers::default();
        for index in 0..100 {
            known.met(Now::from_ms(1_000), node(index), &format!("/ip4/20.0.0.{index}/tcp/1"));
        }
        assert_eq!((known.len(), known.choose(50).len()), (PER_SUBNET_MAX, 2));
        for index in 100..200 {
            known.met(Now::from_ms(1_000), node(index), &format!("/ip4/127.0.0.1/tcp/{index}"));
        }
        assert_eq!((known.len(), known.choose(500).len()), (PER_SUBNET_MAX + 100, 102));
    }

    #[test]
    fn what_is_kept_comes_back_and_failures_end_it() {
        let mut known = KnownPeers::default();
        known.met(Now::from_ms(1_000), node(1), "/ip4/20.0.0.1/tcp/1");
        known.met(Now::from_ms(5_000), node(1), "/ip4/20.0.0.1/udp/1/quic-v1");
        known.met(Now::from_ms(5_000), node(2), "/ip4/20.0.0.2/tcp/1");
        let mut disk: BTreeMap<NodeId, Vec<u8>> = BTreeMap::new();
        let mut sync = |known: &mut KnownPeers| {
            while let Some(keep) = known.poll() {
                match keep {
                    Keep::Put(peer) => disk.insert(peer.node, encode(&peer)),
                    Keep::Remove(node) => disk.remove(&node),
                };
            }
            disk.values().map(|bytes| spillway_ledger::decode::<Known>(bytes).expect("kept")).collect::<Vec<_>>()
        };
        let mut again = KnownPeers::new(sync(&mut known));
        assert_eq!(again.choose(1)[0].addresses, ["/ip4/20.0.0.1/udp/1/quic-v1", "/ip4/20.0.0.1/tcp/1"]);
        for _ in 0..FAILURES_MAX - 1 {
            again.failed(&node(1));
        }
        assert_eq!(again.choose(1)[0].node, node(2), "one that fails is tried later");
        again.failed(&node(1));
        assert_eq!(sync(&mut again).len(), 1);
        assert_eq!(again.len(), 1);
    }
}
