//! Policies that look at load alone, or at nothing: the classic ones.
//! Invariant: a replica that is known to be down is chosen only if all are.

use crate::draws::Draws;
use crate::fleet::{Ask, Choice, GatewayId, Policy, ReplicaId, View};

/// The stream of draws of one gateway's policy.
pub(super) fn draws(seed: u64, gateway: GatewayId) -> Draws {
    Draws::new(seed, &format!("policy {}", gateway.0))
}

/// The jobs at a replica, as far as this gateway knows: what it saw there, and at least those it sent itself. Jobs on their
/// way are counted where they are seen.
pub(super) fn load(view: &View<'_>, replica: ReplicaId) -> u32 {
    let seen = view.seen(replica).map_or(0, |seen| seen.running + seen.waiting);
    (seen + view.coming(replica)).max(view.in_flight(replica))
}

/// A drawn candidate; one that is up if a few draws find one.
pub(super) fn any(draws: &mut Draws, view: &View<'_>) -> ReplicaId {
    let candidates = view.candidates();
    let mut drawn = candidates[0];
    for _ in 0..4 {
        let index = draws.below(candidates.len() as u64);
        drawn = candidates[usize::try_from(index).expect("below a length")];
        if view.up(drawn) {
            break;
        }
    }
    drawn
}

/// Of `replicas`, the one with the lowest rank, of those that are up if any is; equal ones share by a draw.
pub(super) fn lowest<R: PartialOrd + Copy>(
    draws: &mut Draws,
    view: &View<'_>,
    replicas: &[ReplicaId],
    rank: impl Fn(ReplicaId) -> R,
) -> Option<ReplicaId> {
    let mut best: Option<(R, ReplicaId)> = None;
    let mut equal = 0;
    for &replica in replicas {
        if !view.up(replica) {
            continue;
        }
        let rank = rank(replica);
        match &best {
            Some((least, _)) if rank > *least => {}
            Some((least, _)) if rank == *least => {
                equal += 1;
                if draws.below(equal) == 0 {
                    best = Some((rank, replica));
                }
            }
            _ => {
                equal = 1;
                best = Some((rank, replica));
            }
        }
    }
    best.map(|(_, replica)| replica)
}

/// Any replica.
pub struct Random(Draws);

impl Random {
    /// For a gateway.
    #[must_use]
    pub fn new(seed: u64, gateway: GatewayId) -> Self {
        Self(draws(seed, gateway))
    }
}

impl Policy for Random {
    fn route(&mut self, _: u64, _: &Ask<'_>, view: &mut View<'_>) -> Choice {
        Choice::Replica(any(&mut self.0, view))
    }
}

/// One after the other.
#[derive(Default)]
pub struct RoundRobin {
    last: Option<ReplicaId>,
}

impl Policy for RoundRobin {
    fn route(&mut self, _: u64, _: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let candidates = view.candidates();
        let start = self.last.map_or(0, |last| candidates.partition_point(|id| *id <= last));
        let mut turn = (0..candidates.len()).map(|step| candidates[(start + step) % candidates.len()]);
        let first = candidates[start % candidates.len()];
        let next = turn.find(|id| view.up(*id)).unwrap_or(first);
        self.last = Some(next);
        Choice::Replica(next)
    }
}

/// The replica with the fewest jobs, as far as the gateway knows.
pub struct LeastLoad(Draws);

impl LeastLoad {
    /// For a gateway.
    #[must_use]
    pub fn new(seed: u64, gateway: GatewayId) -> Self {
        Self(draws(seed, gateway))
    }
}

impl Policy for LeastLoad {
    fn route(&mut self, _: u64, _: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let least = lowest(&mut self.0, view, view.candidates(), |id| load(view, id));
        Choice::Replica(least.unwrap_or_else(|| any(&mut self.0, view)))
    }
}

/// The less loaded of two drawn replicas. Source: Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing",
/// IEEE TPDS 12(10), 2001.
pub struct TwoChoices(Draws);

impl TwoChoices {
    /// For a gateway.
    #[must_use]
    pub fn new(seed: u64, gateway: GatewayId) -> Self {
        Self(draws(seed, gateway))
    }
}

impl Policy for TwoChoices {
    fn route(&mut self, _: u64, _: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let (one, other) = (any(&mut self.0, view), any(&mut self.0, view));
        Choice::Replica(if load(view, other) < load(view, one) { other } else { one })
    }
}
