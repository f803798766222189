//! Policies that go by price: the cheapest, and OpenRouter's.

use super::common::{Outputs, any, cost, draws, load, lowest};
use crate::draws::Draws;
use crate::fleet::{Ask, Choice, GatewayId, News, Policy, ReplicaId, View};

/// The cheapest replica that has not refused this job; equal ones by load.
pub struct Cheapest {
    draws: Draws,
    outputs: Outputs,
}

impl Cheapest {
    /// For a gateway.
    #[must_use]
    pub fn new(seed: u64, gateway: GatewayId) -> Self {
        Self { draws: draws(seed, gateway), outputs: Outputs::default() }
    }
}

impl Policy for Cheapest {
    fn route(&mut self, _: u64, ask: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let rank = |id| (cost(view, id, ask, self.outputs), load(view, id));
        lowest(&mut self.draws, view, view.candidates(), rank).map_or(Choice::Wait, Choice::Replica)
    }

    fn told(&mut self, _: u64, _: ReplicaId, news: &News<'_>, _: &mut View<'_>) {
        if let News::Done { made, .. } = news {
            self.outputs.learn(*made);
        }
    }
}

/// How long a provider that failed counts as unstable, in microseconds.
const UNSTABLE_US: u64 = 30_000_000;

/// OpenRouter's default: of the providers without a failure in the last 30 seconds, one drawn with weight 1/price²; if it
/// refuses, the others in the same way; then the unstable ones. Source: openrouter.ai/docs, "Provider Routing", July 2026.
pub struct OpenRouter {
    draws: Draws,
    outputs: Outputs,
    /// By replica: when it last failed.
    failed_us: Vec<Option<u64>>,
}

impl OpenRouter {
    /// For a gateway.
    #[must_use]
    pub fn new(seed: u64, gateway: GatewayId) -> Self {
        Self { draws: draws(seed, gateway), outputs: Outputs::default(), failed_us: Vec::new() }
    }

    fn stable(&self, now_us: u64, replica: ReplicaId) -> bool {
        let failed = self.failed_us.get(replica.index()).copied().flatten();
        failed.is_none_or(|at_us| now_us > at_us + UNSTABLE_US)
    }

    fn weighted(&mut self, view: &View<'_>, ask: &Ask<'_>, from: &[ReplicaId]) -> Option<ReplicaId> {
        // Weights in integers: the square of how much cheaper than the dearest, at most 2^20 times.
        let costs: Vec<u64> = from.iter().map(|id| cost(view, *id, ask, self.outputs).max(1)).collect();
        let dearest = costs.iter().copied().max()?;
        let weight = |cost: u64| {
            let ratio = (u128::from(dearest) * 1000 / u128::from(cost)).min(1000 << 20);
            u64::try_from(ratio * ratio / 1000).expect("below 2^64")
        };
        let mut left = self.draws.below(costs.iter().map(|cost| weight(*cost)).sum());
        for (id, cost) in from.iter().zip(&costs) {
            let weight = weight(*cost);
            if left < weight {
                return Some(*id);
            }
            left -= weight;
        }
        unreachable!("the draw is below the sum of the weights")
    }
}

impl Policy for OpenRouter {
    fn route(&mut self, now_us: u64, ask: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let candidates = view.candidates();
        let stable: Vec<_> = candidates.iter().copied().filter(|id| self.stable(now_us, *id) && view.up(*id)).collect();
        let chosen = if stable.is_empty() {
            any(&mut self.draws, view)
        } else {
            self.weighted(view, ask, &stable).expect("there are some")
        };
        Choice::Replica(chosen)
    }

    fn told(&mut self, now_us: u64, replica: ReplicaId, news: &News<'_>, view: &mut View<'_>) {
        match news {
            News::Done { made, .. } => self.outputs.learn(*made),
            News::Died { .. } | News::Cut { .. } => {
                self.failed_us.resize(view.replicas(), None);
                self.failed_us[replica.index()] = Some(now_us);
            }
            // A full provider is no outage: the next one is tried.
            News::Refused { .. } | News::First { .. } | News::Probed { .. } | News::ProbeLost { .. } => {}
        }
    }
}
