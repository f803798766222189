//! Peers to come back to, and what is thought of them, kept in the cache on disk: those that served this node are tried first
//! at the next start.
//! Invariant: a cache that is lost, damaged or in use elsewhere costs time and nothing else.

use crate::network::peer_of;
use spillway_cache::Cache;
use spillway_ledger::{NodeId, decode, encode};
use spillway_protocol::{Keep, Known, KnownPeers, Now, Peer};
use std::path::Path;

/// What the keys of peers in the cache begin with.
const PREFIX: &[u8] = b"peer/";
/// The key of what is thought of peers.
const REPUTATION: &[u8] = b"reputation";
/// Peers that are tried at a start.
const TRIED_MAX: usize = 8;

/// The peers, and where they are kept.
pub struct PeerCache {
    known: KnownPeers,
    cache: Option<Cache>,
    /// The reputations that were kept last.
    reputation: Vec<u8>,
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
        Self { known, cache, reputation: Vec::new() }
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

    /// Tells the market what it thought of others before the restart. What cannot be read is thrown away.
    pub fn restore_reputation(&self, now: Now, peer: &mut Peer) {
        let Some(cache) = &self.cache else { return };
        let Some(kept) = cache.get(REPUTATION) else { return };
        match peer.import_reputation(now, &kept) {
            Ok(peers) => tracing::info!(peers, "reputations are known from before"),
            Err(error) => {
                tracing::warn!(%error, "the reputations from before are thrown away");
                cache.remove(REPUTATION);
            }
        }
    }

    /// Keeps what the market thinks of others, if that is news.
    pub fn keep_reputation(&mut self, peer: &Peer) {
        let Some(cache) = &self.cache else { return };
        let reputation = peer.reputation().export();
        if reputation == self.reputation {
            return;
        }
        if let Err(error) = cache.put(REPUTATION, &reputation) {
            tracing::debug!(%error, "reputations are not kept");
        }
        self.reputation = reputation;
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
    use spillway_ledger::{Digest, NetworkId, SecretKey};
    use spillway_protocol::{Experience, Identity, MarketConfig, Reputation};

    fn market() -> Peer {
        let network = NetworkId(Digest::of("test", &[b"network"]));
        let (node, account) = (SecretKey::from_bytes(&[1; 32]), SecretKey::from_bytes(&[2; 32]));
        Peer::new(MarketConfig::default(), Identity { network, node, account }, [3; 32], Vec::new())
    }

    #[test]
    fn what_is_thought_of_others_outlives_a_restart_and_damage_costs_no_more_than_that() {
        let folder = tempfile::tempdir().expect("a folder");
        let now = Now::from_ms(1_700_000_000_000);
        let other = NodeId(SecretKey::from_bytes(&[4; 32]).public());
        let mut thinks = Reputation::default();
        for _ in 0..3 {
            thinks.record(now, other, Experience::Served);
        }
        {
            let mut cache = PeerCache::open(folder.path());
            let mut first = market();
            cache.restore_reputation(now, &mut first);
            assert_eq!(first.reputation().served(&other), 0, "nothing was kept yet");
            first.import_reputation(now, &thinks.export()).expect("good");
            cache.keep_reputation(&first);
            cache.flush();
        }
        let known = |cache: &PeerCache| {
            let mut again = market();
            cache.restore_reputation(now, &mut again);
            again.reputation().served(&other)
        };
        let cache = PeerCache::open(folder.path());
        assert_eq!(known(&cache), 3);
        assert!(cache.addresses().is_empty(), "it is no peer to come back to");
        let store = cache.cache.as_ref().expect("open");
        for damaged in [&b""[..], b"x", &[0xff; 4096]] {
            store.put(REPUTATION, damaged).expect("it fits");
            assert_eq!(known(&cache), 0);
            assert_eq!(store.get(REPUTATION), None, "thrown away");
        }
    }

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
