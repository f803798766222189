//! What this node knows at first hand of the peers it dealt with: four scores each.
//! Invariant: at most [`PEERS_MAX`] peers are remembered; a stranger counts as somewhat worse than an average peer.

mod snapshot;

pub use snapshot::{SNAPSHOT_PEERS_MAX, SnapshotError};

use crate::time::Now;
use spillway_ledger::NodeId;
use std::collections::BTreeMap;
use std::time::Duration;

/// Peers remembered; the one not heard of for longest makes room.
pub const PEERS_MAX: usize = 4096;
/// Half of what was seen is forgotten in this time.
const HALF_LIFE: Duration = Duration::from_secs(14 * 24 * 3600);
/// How often what nothing happens to fades.
const AGE_EVERY: Duration = Duration::from_secs(3600);
/// The first quarantine; each further one without a success between is twice as long.
const BAN_FIRST: Duration = Duration::from_secs(15);
/// The longest quarantine.
const BAN_MAX: Duration = Duration::from_secs(3600);
/// The least and the most that one experience weighs, by what was paid against what is usually paid: a thousand jobs for
/// nothing make no name.
const WEIGHT: (f64, f64) = (0.1, 2.0);

/// Something that happened with a peer. What it says of which score, and how much, is in one table: [`Experience::says`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experience {
    /// A job was served to its end, and both agreed what it was.
    Served,
    /// It broke off, fell silent or vanished.
    Stalled,
    /// It refused a job that it had quoted for, and was not at fault for more than that.
    RefusedQuote,
    /// Its owner needed the slot: it broke off, said so, and billed what it had delivered.
    Preempted,
    /// Its quote asked for more than its offer.
    Baited,
    /// Its count of the work differs from ours, or it sent what nobody asked for.
    Disputed,
    /// What it delivered is not what the model that it promised would have said.
    FailedAudit,
    /// It kept to what it had predicted of its speed.
    OnTime,
    /// It took more than twice as long as it had predicted.
    Late,
    /// As a consumer, it paid for a job to its end.
    Paid,
    /// As a consumer, it let work wait for its voucher until that was given up.
    Unpaid,
}

/// One of the four scores.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Score {
    /// Whether it says the truth about its work.
    Integrity,
    /// Whether it takes what it quotes for and ends what it takes.
    Availability,
    /// Whether it is as fast as it says.
    Speed,
    /// As a consumer: whether it pays.
    Payment,
}

impl Experience {
    /// Which scores it touches: good and bad weight for each, and whether it puts the peer in quarantine.
    const fn says(self) -> (&'static [(Score, f64, f64)], bool) {
        use Score::{Availability, Integrity, Payment, Speed};
        match self {
            Self::Served => (&[(Integrity, 1.0, 0.0), (Availability, 1.0, 0.0)], false),
            Self::Stalled => (&[(Availability, 0.0, 2.0)], true),
            Self::Preempted => (&[(Availability, 0.0, 0.25)], false),
            Self::RefusedQuote => (&[(Availability, 0.0, 1.0)], false),
            Self::Baited => (&[(Integrity, 0.0, 1.0), (Availability, 0.0, 1.0)], false),
            Self::Disputed => (&[(Integrity, 0.0, 3.0)], true),
            Self::FailedAudit => (&[(Integrity, 0.0, 25.0)], true),
            Self::OnTime => (&[(Speed, 1.0, 0.0)], false),
            Self::Late => (&[(Speed, 0.0, 1.0)], false),
            Self::Paid => (&[(Payment, 1.0, 0.0)], false),
            Self::Unpaid => (&[(Payment, 0.0, 2.0)], false),
        }
    }
}

/// A Beta distribution's evidence beyond its prior.
#[derive(Clone, Copy, Debug, Default)]
struct Evidence {
    good: f64,
    bad: f64,
}

impl Evidence {
    /// The lower 5 % quantile by the normal approximation, within 0.02 and 1.
    fn lower(self, prior: (f64, f64)) -> f64 {
        let (good, bad) = (prior.0 + self.good, prior.1 + self.bad);
        let n = good + bad;
        let deviation = (good * bad / (n * n * (n + 1.0))).sqrt();
        (good / n - 1.645 * deviation).clamp(0.02, 1.0)
    }
}

impl Score {
    const ALL: [Self; 4] = [Self::Integrity, Self::Availability, Self::Speed, Self::Payment];

    /// What is assumed of a stranger, as good and bad experiences.
    const fn prior(self) -> (f64, f64) {
        match self {
            // Lying is rare and dear: a stranger is mostly believed, since little is at stake.
            Self::Integrity => (9.0, 1.0),
            Self::Availability => (4.0, 1.0),
            Self::Speed | Self::Payment => (2.0, 1.0),
        }
    }
}

#[derive(Clone, Debug)]
struct Standing {
    /// As of `decayed`.
    scores: [Evidence; 4],
    /// When it was dealt with last.
    updated: Now,
    decayed: Now,
    banned_until: Now,
    ban: Duration,
    served: u32,
    rtt_ms: Option<f64>,
}

/// First-hand standing of peers: a decayed Beta distribution for each score. `docs/routing.md`, "Reputation".
#[derive(Debug, Default)]
pub struct Reputation {
    peers: BTreeMap<NodeId, Standing>,
}

impl Reputation {
    /// Takes in an experience that weighs 1.
    pub fn record(&mut self, now: Now, peer: NodeId, what: Experience) {
        self.record_weighed(now, peer, what, 1.0);
    }

    /// Takes in an experience; `weight` is what was paid over what is usually paid. Only good experiences are weighed:
    /// harm counts in full, however little was at stake.
    pub fn record_weighed(&mut self, now: Now, peer: NodeId, what: Experience, weight: f64) {
        let standing = self.entry(now, peer);
        standing.decay(now);
        standing.updated = standing.updated.max(now);
        let weight = if weight.is_finite() { weight.clamp(WEIGHT.0, WEIGHT.1) } else { 1.0 };
        let (touched, bans) = what.says();
        for (score, good, bad) in touched {
            let evidence = &mut standing.scores[*score as usize];
            evidence.good += good * weight;
            evidence.bad += bad;
        }
        if what == Experience::Served {
            standing.served = standing.served.saturating_add(1);
            standing.ban = BAN_FIRST;
        }
        // What befell several jobs at once is one incident, and counts once.
        if bans && now >= standing.banned_until {
            standing.banned_until = now.after(standing.ban);
            standing.ban = (standing.ban * 2).min(BAN_MAX);
        }
    }

    /// Lets fade what nothing happens to: who is shunned for what it did is tried again one day.
    pub fn age(&mut self, now: Now) {
        for standing in self.peers.values_mut().filter(|standing| now.since(standing.decayed) >= AGE_EVERY) {
            standing.decay(now);
        }
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

    /// Until when nothing is asked of this provider, if that is yet to come.
    #[must_use]
    pub fn banned_until(&self, now: Now, peer: &NodeId) -> Option<Now> {
        self.peers.get(peer).map(|standing| standing.banned_until).filter(|until| now < *until)
    }

    /// Jobs it served to the end.
    #[must_use]
    pub fn served(&self, peer: &NodeId) -> u32 {
        self.peers.get(peer).map_or(0, |standing| standing.served)
    }

    /// One score's lower 5 % quantile, within 0.02 and 1.
    #[must_use]
    pub fn score(&self, peer: &NodeId, score: Score) -> f64 {
        let evidence = self.peers.get(peer).map(|standing| standing.scores[score as usize]);
        evidence.unwrap_or_default().lower(score.prior())
    }

    /// All four scores, in the order of [`Score`].
    #[must_use]
    pub fn scores(&self, peer: &NodeId) -> [f64; 4] {
        Score::ALL.map(|score| self.score(peer, score))
    }

    /// The chance that it serves a job honestly and to its end, at the lower 5 % quantiles; within 0.02 and 1. Speed is not
    /// in it: routing corrects each provider's predictions by what was measured instead.
    #[must_use]
    pub fn lower_bound(&self, peer: &NodeId) -> f64 {
        (self.score(peer, Score::Integrity) * self.score(peer, Score::Availability)).clamp(0.02, 1.0)
    }

    fn entry(&mut self, now: Now, peer: NodeId) -> &mut Standing {
        if !self.peers.contains_key(&peer) && self.peers.len() >= PEERS_MAX {
            let oldest = self.peers.iter().min_by_key(|(_, standing)| standing.updated).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                self.peers.remove(&oldest);
            }
        }
        self.peers.entry(peer).or_insert(Standing {
            scores: [Evidence::default(); 4],
            updated: now,
            decayed: now,
            banned_until: Now(0),
            ban: BAN_FIRST,
            served: 0,
            rtt_ms: None,
        })
    }
}

impl Standing {
    fn decay(&mut self, now: Now) {
        let factor = libm::exp2(-now.since(self.decayed).as_secs_f64() / HALF_LIFE.as_secs_f64());
        self.decayed = self.decayed.max(now);
        for evidence in &mut self.scores {
            evidence.good *= factor;
            evidence.bad *= factor;
        }
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
        reputation.record(now, peer(3), Experience::FailedAudit);
        assert!(reputation.lower_bound(&peer(1)) > 0.75);
        assert!(reputation.lower_bound(&peer(2)) < stranger);
        assert!(reputation.lower_bound(&peer(3)) < 0.2 * stranger);
        assert_eq!(reputation.served(&peer(1)), 20);
    }

    #[test]
    fn each_experience_touches_its_own_scores() {
        let now = Now::from_ms(1);
        for (what, touched) in [
            (Experience::Served, [1, 1, 0, 0]),
            (Experience::Stalled, [0, -1, 0, 0]),
            (Experience::RefusedQuote, [0, -1, 0, 0]),
            (Experience::Baited, [-1, -1, 0, 0]),
            (Experience::Disputed, [-1, 0, 0, 0]),
            (Experience::FailedAudit, [-1, 0, 0, 0]),
            (Experience::OnTime, [0, 0, 1, 0]),
            (Experience::Late, [0, 0, -1, 0]),
            (Experience::Paid, [0, 0, 0, 1]),
            (Experience::Unpaid, [0, 0, 0, -1]),
        ] {
            let mut reputation = Reputation::default();
            let before = reputation.scores(&peer(1));
            reputation.record(now, peer(1), what);
            let after = reputation.scores(&peer(1));
            let moved: Vec<i32> =
                before.iter().zip(after).map(|(old, new)| i32::from(new > *old) - i32::from(new < *old)).collect();
            assert_eq!(moved, touched, "{what:?}");
        }
    }

    #[test]
    fn a_thousand_cheap_jobs_make_no_more_of_a_name_than_a_hundred_usual_ones() {
        let now = Now::from_ms(1);
        let mut reputation = Reputation::default();
        for _ in 0..1000 {
            reputation.record_weighed(now, peer(1), Experience::Served, 0.0);
        }
        for _ in 0..100 {
            reputation.record(now, peer(2), Experience::Served);
        }
        assert!((reputation.lower_bound(&peer(1)) - reputation.lower_bound(&peer(2))).abs() < 1e-9);
        reputation.record_weighed(now, peer(1), Experience::Stalled, 0.0);
        assert!(reputation.lower_bound(&peer(1)) < reputation.lower_bound(&peer(2)), "harm counts in full");
    }

    #[test]
    fn a_quote_refuser_is_demoted_within_five_jobs() {
        let now = Now::from_ms(1);
        let mut reputation = Reputation::default();
        let stranger = reputation.lower_bound(&peer(2));
        for _ in 0..5 {
            reputation.record(now, peer(1), Experience::RefusedQuote);
        }
        // Three times as dear as a stranger, in the eyes of the router.
        assert!(reputation.lower_bound(&peer(1)) * 3.0 < stranger);
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
    fn what_befalls_many_jobs_at_once_bans_once() {
        let mut reputation = Reputation::default();
        let mut now = Now::from_ms(1_000);
        for seconds in [15, 30] {
            let before = reputation.score(&peer(1), Score::Availability);
            for _ in 0..3 {
                reputation.record(now, peer(1), Experience::Stalled);
                reputation.record(now.after(Duration::from_secs(2)), peer(1), Experience::Disputed);
            }
            assert_eq!(reputation.banned_until(now, &peer(1)), Some(now.after(Duration::from_secs(seconds))));
            assert!(reputation.score(&peer(1), Score::Availability) < before, "each counts for its standing");
            now = now.after(Duration::from_secs(seconds));
        }
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
