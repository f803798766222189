//! The bootstrap addresses: tried at the start, and again whenever the peer behind one is not connected.
//! Invariant: two tries at one address are at least [`REDIAL_MIN`] apart, and further with each failure.

use super::address::{Reach, split};
use super::identity::node_id;
use super::settings::{BOOTSTRAP_MAX, NetworkError, REDIAL_MAX, REDIAL_MIN};
use libp2p::{Multiaddr, PeerId};
use std::time::Duration;
use tokio::time::Instant;

/// Addresses of an earlier run's peers that are tried.
const KNOWN_MAX: usize = 32;
/// How often each is tried.
const KNOWN_TRIES: u32 = 3;

/// One bootstrap peer at one address.
struct Target {
    peer: PeerId,
    address: Multiaddr,
    next: Instant,
    pause: Duration,
    /// Tries that are left; `None` for one that is never given up.
    left: Option<u32>,
}

/// All of them.
pub(crate) struct Bootstrap(Vec<Target>);

impl Bootstrap {
    /// Reads the addresses; this node's own is left out.
    pub(crate) fn new(addresses: &[String], own: PeerId, now: Instant) -> Result<Self, NetworkError> {
        let bad = |address: &String| NetworkError::BadBootstrap { address: address.clone() };
        if let Some(address) = addresses.get(BOOTSTRAP_MAX) {
            return Err(bad(address));
        }
        let mut targets = Vec::new();
        for text in addresses {
            let (address, peer) = split(text.parse().map_err(|_| bad(text))?);
            let peer = peer.filter(|peer| node_id(peer).is_ok()).ok_or_else(|| bad(text))?;
            if peer != own {
                targets.push(Target { peer, address, next: now, pause: REDIAL_MIN, left: None });
            }
        }
        Ok(Self(targets))
    }

    /// Adds peers of an earlier run, at most [`KNOWN_MAX`] addresses, each to be tried a few times. What does not read, or
    /// may not be dialled, is left out.
    pub(crate) fn add_known(&mut self, addresses: &[String], reach: Reach, own: PeerId, now: Instant) {
        for text in addresses.iter().take(KNOWN_MAX) {
            let Ok((address, Some(peer))) = text.parse().map(split) else { continue };
            if node_id(&peer).is_ok() && peer != own && reach.may_dial(&address) {
                self.0.push(Target { peer, address, next: now, pause: REDIAL_MIN, left: Some(KNOWN_TRIES) });
            }
        }
    }

    /// Every address.
    pub(crate) fn addresses(&self) -> Vec<Multiaddr> {
        self.0.iter().map(|target| target.address.clone()).collect()
    }

    /// What to dial now, given who is connected.
    pub(crate) fn due(&mut self, now: Instant, connected: impl Fn(&PeerId) -> bool) -> Vec<(PeerId, Multiaddr)> {
        let mut due = Vec::new();
        for target in &mut self.0 {
            if connected(&target.peer) {
                target.next = now;
                target.pause = REDIAL_MIN;
            } else if target.next <= now && target.left != Some(0) {
                target.left = target.left.map(|left| left - 1);
                target.next = now + target.pause;
                target.pause = (target.pause * 2).min(REDIAL_MAX);
                due.push((target.peer, target.address.clone()));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use libp2p::identity::Keypair;

    #[test]
    fn tries_are_spaced_out_until_the_peer_is_there() {
        let start = Instant::now();
        let peer = Keypair::generate_ed25519().public().to_peer_id();
        let own = Keypair::generate_ed25519().public().to_peer_id();
        let addresses = [format!("/ip4/127.0.0.1/tcp/1/p2p/{peer}"), format!("/ip4/127.0.0.1/tcp/2/p2p/{own}")];
        let mut bootstrap = Bootstrap::new(&addresses, own, start).expect("readable");
        // Second, whether the peer is connected then, and whether it is to be dialled.
        let cases = [
            (0, false, 1),
            (0, false, 0),
            (1, false, 1),
            (2, false, 0),
            (3, false, 1),
            (6, false, 0),
            (7, true, 0),
            (8, false, 1),
            (9, false, 1),
        ];
        for (second, connected, dials) in cases {
            let due = bootstrap.due(start + Duration::from_secs(second), |_| connected);
            assert_eq!(due.len(), dials, "second {second}");
        }
    }

    #[test]
    fn peers_of_an_earlier_run_are_tried_a_few_times() {
        let start = Instant::now();
        let [peer, own] = [(); 2].map(|()| Keypair::generate_ed25519().public().to_peer_id());
        let mut bootstrap = Bootstrap::new(&[], own, start).expect("none");
        let known = [
            format!("/ip4/8.8.8.8/tcp/1/p2p/{peer}"),
            format!("/ip4/127.0.0.1/tcp/1/p2p/{peer}"),
            format!("/ip4/8.8.8.8/tcp/1/p2p/{own}"),
            "nonsense".to_owned(),
            "/ip4/8.8.8.8/tcp/1".to_owned(),
        ];
        bootstrap.add_known(&known, Reach::Far, own, start);
        let dials = (0..1_000).map(|second| bootstrap.due(start + Duration::from_secs(second), |_| false).len());
        assert_eq!(dials.sum::<usize>(), KNOWN_TRIES as usize, "the one that may be dialled, three times");
    }

    #[test]
    fn an_address_says_whose_it_is() {
        let own = Keypair::generate_ed25519().public().to_peer_id();
        for text in ["", "nonsense", "/ip4/127.0.0.1/tcp/1", "/p2p/QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"] {
            let read = Bootstrap::new(&[text.to_owned()], own, Instant::now());
            assert!(matches!(read, Err(NetworkError::BadBootstrap { address }) if address == text), "{text}");
        }
    }
}
