//! The replica with the longest cached prefix, whatever its load; equal ones by load.
//!
//! The global prefix index of AIBrix' `prefix-cache` and Preble (Srivatsa et al., ICLR 2025) without their load terms: what
//! the others improve on.

use super::common::{draws, load, lowest};
use super::prefixes::{Prefixes, cached};
use crate::draws::Draws;
use crate::fleet::{Ask, Choice, GatewayId, News, Policy, ReplicaId, View};
use std::cmp::Reverse;

/// Longest prefix first.
pub struct LongestPrefix {
    draws: Draws,
    prefixes: Prefixes,
}

impl LongestPrefix {
    /// For a gateway.
    #[must_use]
    pub fn new(seed: u64, gateway: GatewayId) -> Self {
        Self { draws: draws(seed, gateway), prefixes: Prefixes::default() }
    }
}

impl Policy for LongestPrefix {
    fn route(&mut self, _: u64, ask: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let rank = |id| (Reverse(cached(view, &self.prefixes, id, ask)), load(view, id));
        let Some(chosen) = lowest(&mut self.draws, view, view.candidates(), rank) else { return Choice::Wait };
        self.prefixes.sent(ask.prefix, chosen);
        Choice::Replica(chosen)
    }

    fn told(&mut self, _: u64, replica: ReplicaId, news: &News<'_>, _: &mut View<'_>) {
        if let News::Died { .. } = news {
            self.prefixes.lost(replica);
        }
    }
}
