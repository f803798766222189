//! What this node knows at first hand of the providers it used.
//! Invariant: at most [`PEERS_MAX`] peers are remembered; a stranger counts as somewhat worse than an average peer.

use crate::time::Now;
use spillway_ledger::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Peers remembered; the one not heard of for longest makes room.
pub const PEERS_MAX: usize = 4096;
/// Half of what was seen is forgotten in this time.
const HALF_LIFE: Duration = Duration::from_secs(14 * 24 * 3600);
/// The first ban; each further one without a success between is twice as long.
const BAN_FIRST: Duration = Duration::from_secs(15);
/// The longest ban.
const BAN_MAX: Duration = Duration::from_secs(3600);

/// Something that happened with a provider, weighed by how bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experience {
    /// A job was served to its end.
    Served,
    /// It broke off, fell silent or vanished.
    Stalled,
    /// It refused a job that it had quoted for.
    RefusedQuote,
    /// Its owner needed the slot: it broke off, said so, and billed what it had delivered.
    Preempted,
    /// Its count of the work differs from ours, or it sent what nobody asked for.
    Disputed,
}

#[derive(Clone, Debug)]
struct Standing {
    good: f64,
    bad: f64,
    updated: Now,
    banned_until: Now,
    ban: Duration,
    served: u32,
    rtt_ms: Option<f64>,
}

/// First-hand standing of providers: a decayed Beta distribution each. `docs/routing.md`, "Reputation".
#[derive(Debug, Default)]
pub struct Reputation {
    peers: BTreeMap<NodeId, Standing>,
}

impl Reputation {
    /// Takes in an experience; a stall and a dispute also ban the provider for a while.
    pub fn record(&mut self, now: Now, peer: NodeId, what: Experience) {
        let standing = self.entry(now, peer);
        standing.decay(now);
        let bad = match what {
            Experience::Served => {
                standing.good += 1.0;
                standing.served = standing.served.saturating_add(1);
                standing.ban = BAN_FIRST;
                return;
            }
            Experience::RefusedQuote => {
                standing.bad += 0.5;
                return;
            }
            Experience::Preempted => {
                standing.bad += 0.25;
                return;
            }
            Experience::Stalled => 2.0,
            Experience::Disputed => 3.0,
        };
        standing.bad += bad;
        standing.banned_until = now.after(standing.ban);
        standing.ban = (standing.ban * 2).min(BAN_MAX);
    }

    /// Takes in a measured round trip.
    pub fn measured_rtt(&mut self, now: Now, peer: NodeId, rtt: Duration) {
        let standing = self.entry(now, peer);
        let ms = rtt.as_secs_f64() * 1e3;
        standing.rtt_ms = Some(standing.rtt_ms.map_or(ms, |old| old + 0.25 * (ms - old)));
    }

    /// The measured round trip, smoothed, in milliseconds.
    #[must_use]
    pub fn rtt_ms(&self, peer: &NodeId) -> Option<f64> {
        self.peers.get(peer)?.rtt_ms
    }

    /// Whether nothing is asked of this provider for now.
    #[must_use]
    pub fn is_banned(&self, now: Now, peer: &NodeId) -> bool {
        self.peers.get(peer).is_some_and(|standing| now < standing.banned_until)
    }

    /// Jobs it served to the end.
    #[must_use]
    pub fn served(&self, peer: &NodeId) -> u32 {
        self.peers.get(peer).map_or(0, |standing| standing.served)
    }

    /// The chance that it serves a job well, at the lower 5 % quantile; within 0.02 and 1.
    #[must_use]
    pub fn lower_bound(&self, peer: &NodeId) -> f64 {
        // The prior: two good experiences and one bad one, so that a stranger is tried, at a disadvantage.
        let (good, bad) = self.peers.get(peer).map_or((2.0, 1.0), |s| (2.0 + s.good, 1.0 + s.bad));
        let n = good + bad;
        let mean = good / n;
        let deviation = (good * bad / (n * n * (n + 1.0))).sqrt();
        (mean - 1.645 * deviation).clamp(0.02, 1.0)
    }

    fn entry(&mut self, now: Now, peer: NodeId) -> &mut Standing {
        if !self.peers.contains_key(&peer) && self.peers.len() >= PEERS_MAX {
            let oldest = self.peers.iter().min_by_key(|(_, standing)| standing.updated).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                self.peers.remove(&oldest);
            }
        }
        let standing = self.peers.entry(peer).or_insert(Standing {
            good: 0.0,
            bad: 0.0,
            updated: now,
            banned_until: Now(0),
            ban: BAN_FIRST,
            served: 0,
            rtt_ms: None,
        });
        standing.updated = standing.updated.max(now);
        standing
    }
}

impl Standing {
    fn decay(&mut self, now: Now) {
        let factor = (-(now.since(self.updated).as_secs_f64()) / HALF_LIFE.as_secs_f64()).exp2();
        self.good *= factor;
        self.bad *= factor;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spillway_ledger::SecretKey;

    fn peer(seed: u8) -> NodeId {
        NodeId(SecretKey::from_bytes(&[seed; 32]).public())
    }

    #[test]
    fn standing_follows_experience() {
        let now = Now::from_ms(1);
        let mut reputation = Reputation::default();
        let stranger = reputation.lower_bound(&peer(1));
        for _ in 0..20 {
            reputation.record(now, peer(1), Experience::Served);
        }
        reputation.record(now, peer(2), Experience::RefusedQuote);
        reputation.record(now, peer(3), Experience::Disputed);
        assert!(reputation.lower_bound(&peer(1)) > 0.8);
        assert!(reputation.lower_bound(&peer(2)) < stranger);
        assert!(reputation.lower_bound(&peer(3)) < reputation.lower_bound(&peer(2)));
        assert_eq!(reputation.served(&peer(1)), 20);
    }

    #[test]
    fn bans_double_until_a_success() {
        let mut reputation = Reputation::default();
        let mut now = Now::from_ms(1_000);
        for seconds in [15, 30, 60] {
            reputation.record(now, peer(1), Experience::Stalled);
            assert!(reputation.is_banned(now.after(Duration::from_secs(seconds - 1)), &peer(1)));
            now = now.after(Duration::from_secs(seconds));
            assert!(!reputation.is_banned(now, &peer(1)));
        }
        reputation.record(now, peer(1), Experience::Served);
        reputation.record(now, peer(1), Experience::Stalled);
        assert!(!reputation.is_banned(now.after(Duration::from_secs(15)), &peer(1)));
    }

    #[test]
    fn memory_is_bounded() {
        let mut reputation = Reputation::default();
        for i in 0..u32::try_from(PEERS_MAX).expect("small") + 10 {
            let mut seed = [0; 32];
            seed[..4].copy_from_slice(&i.to_le_bytes());
            let peer = NodeId(SecretKey::from_bytes(&seed).public());
            reputation.measured_rtt(Now(u64::from(i)), peer, Duration::from_millis(5));
        }
        assert_eq!(reputation.peers.len(), PEERS_MAX);
    }
}
