//! Peers to come back to, kept in the cache on disk: those that served this node, tried first at the next start.
//! Invariant: a cache that is lost, damaged or in use elsewhere costs time and nothing else.

use crate::network::peer_of;
use spillway_cache::Cache;
use spillway_ledger::{NodeId, decode, encode};
use spillway_protocol::{Keep, Known, KnownPeers, Now};
use std::path::Path;

/// What the keys of peers in the cache begin with.
const PREFIX: &[u8] = b"peer/";
/// Peers that are tried at a start.
const TRIED_MAX: usize = 8;

/// The peers, and where they are kept.
pub struct PeerCache {
    known: KnownPeers,
    cache: Option<Cache>,
}

impl PeerCache {
    /// Opens the cache in `folder` and reads the peers in it. Without a cache they are remembered while the node runs.
    #[must_use]
    pub fn open(folder: &Path) -> Self {
        let cache = match Cache::open(folder) {
            Ok(cache) => Some(cache),
            Err(error) => {
                tracing::warn!(%error, "peers are not remembered across a restart");
                None
            }
        };
        let entries = cache.iter().flat_map(Cache::iter).filter(|(key, _)| key.starts_with(PREFIX));
        let known = KnownPeers::new(entries.filter_map(|(_, bytes)| decode::<Known>(&bytes).ok()));
        Self { known, cache }
    }

    /// Where to try first, as multiaddresses that end in a peer id.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let with_peer = |peer: &&Known| {
            let id = peer_of(&peer.node).ok()?;
            Some(peer.addresses.iter().map(move |address| format!("{address}/p2p/{id}")).collect::<Vec<_>>())
        };
        self.known.choose(TRIED_MAX).iter().filter_map(with_peer).flatten().collect()
    }

    /// The peers that served this node most, up to `k`.
    #[must_use]
    pub fn anchors(&self, k: usize) -> Vec<NodeId> {
        self.known.anchors(k)
    }

    /// A peer served a job; it says that it listens at `addresses`. Whether it is remembered, and had not served before.
    pub fn served(&mut self, now: Now, node: NodeId, addresses: &[String]) -> bool {
        // An offer's addresses end in the peer's id, which is known anyway.
        let plain = |address: &String| address.split("/p2p/").next().unwrap_or_default().to_owned();
        let direct = addresses.iter().rev().filter(|address| !address.contains("/p2p-circuit")).map(plain);
        for address in direct.filter(|address| !address.is_empty()) {
            self.known.met(now, node, &address);
        }
        let before = self.known.anchors(usize::MAX).len();
        self.known.served(&node);
        self.keep();
        self.known.anchors(usize::MAX).len() > before
    }

    /// Writes out what was kept.
    pub fn flush(&self) {
        if let Some(cache) = &self.cache {
            cache.flush();
        }
    }

    fn keep(&mut self) {
        while let Some(keep) = self.known.poll() {
            let Some(cache) = &self.cache else { continue };
            let key = |node: &NodeId| [PREFIX, node.0.as_bytes()].concat();
            match keep {
                Keep::Put(peer) => {
                    if let Err(error) = cache.put(&key(&peer.node), &encode(&peer)) {
                        tracing::debug!(%error, "a peer is not kept");
                    }
                }
                Keep::Remove(node) => cache.remove(&key(&node)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spillway_ledger::SecretKey;

    #[test]
    fn who_served_is_tried_after_a_restart() {
        let folder = tempfile::tempdir().expect("a folder");
        let node = NodeId(SecretKey::generate([1; 32]).public());
        let id = peer_of(&node).expect("valid");
        let offered = ["/ip4/20.0.0.1/udp/1/quic-v1", "/ip4/20.0.0.1/tcp/1"].map(|it| format!("{it}/p2p/{id}"));
        {
            let mut known = PeerCache::open(folder.path());
            assert!(known.addresses().is_empty());
            assert!(known.served(Now::from_ms(1), node, &offered), "the first time");
            assert!(!known.served(Now::from_ms(2), node, &offered), "it is known by now");
            known.flush();
        }
        let known = PeerCache::open(folder.path());
        assert_eq!(known.addresses(), offered);
        assert_eq!(known.anchors(9), [node]);
        // A second one has no cache, and does without.
        let mut second = PeerCache::open(folder.path());
        assert!(second.addresses().is_empty());
        assert!(second.served(Now::from_ms(3), node, &offered));
        assert_eq!(known.anchors(9), second.anchors(9));
    }
}
