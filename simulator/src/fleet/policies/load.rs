//! Policies that look at load alone, or at nothing: the classic ones.
//! Invariant: a replica that is known to be down is chosen only if all are.

use super::common::{any, draws, load, lowest};
use crate::draws::Draws;
use crate::fleet::{Ask, Choice, GatewayId, Policy, ReplicaId, View};

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
