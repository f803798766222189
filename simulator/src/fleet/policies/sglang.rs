//! SGLang's cache-aware rule.
//! Invariant: it knows its own requests alone: a tree of prompts for each replica, and the requests it has in flight there.
//!
//! Where load is out of balance, the shortest queue. Else the replica that was sent the longest part of this prompt, if that
//! is more than a threshold; else the one whose tree is smallest. Source: SGLang router, policy `cache_aware`
//! (sgl-project/sglang, Apache-2.0), version 0.4 and later.

use super::common::{draws, lowest};
use super::prefixes::Prefixes;
use crate::draws::Draws;
use crate::fleet::{Ask, Choice, GatewayId, News, Policy, ReplicaId, View};
use std::cmp::Reverse;

/// The rule's settings.
#[derive(Clone, Copy, Debug)]
pub struct SglangRules {
    /// The least share of the prompt, in percent, that has to be known to go by the cache.
    pub cache_percent: u32,
    /// Out of balance: the longest queue is more than this longer than the shortest,
    pub balance_abs: u32,
    /// and more than this times as long, in parts per ten thousand.
    pub balance_rel_per_10k: u32,
}

/// The defaults of version 0.4: 0.5, 32, 1.0001.
pub const FIRST: SglangRules = SglangRules { cache_percent: 50, balance_abs: 32, balance_rel_per_10k: 10_001 };
/// The defaults since 2025, with the first threshold: 0.5, 64, 1.5.
pub const LATER: SglangRules = SglangRules { cache_percent: 50, balance_abs: 64, balance_rel_per_10k: 15_000 };

/// SGLang's router.
pub struct Sglang {
    rules: SglangRules,
    draws: Draws,
    prefixes: Prefixes,
}

impl Sglang {
    /// For a gateway.
    #[must_use]
    pub fn new(rules: SglangRules, seed: u64, gateway: GatewayId) -> Self {
        Self { rules, draws: draws(seed, gateway), prefixes: Prefixes::default() }
    }
}

impl Policy for Sglang {
    fn route(&mut self, _: u64, ask: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let up = || view.candidates().iter().copied().filter(|id| view.up(*id));
        let (mut least, mut most) = (u32::MAX, 0);
        for id in up() {
            let queue = view.in_flight(id);
            (least, most) = (least.min(queue), most.max(queue));
        }
        let SglangRules { cache_percent, balance_abs, balance_rel_per_10k } = self.rules;
        let unbalanced = most.saturating_sub(least) > balance_abs
            && u64::from(most) * 10_000 > u64::from(least) * u64::from(balance_rel_per_10k);
        let candidates = view.candidates();
        let chosen = if unbalanced {
            lowest(&mut self.draws, view, candidates, |id| view.in_flight(id))
        } else {
            let known = |id| self.prefixes.tokens(ask, id);
            let longest = lowest(&mut self.draws, view, candidates, |id| Reverse(known(id)));
            match longest {
                Some(id) if u64::from(known(id)) * 100 > u64::from(ask.input) * u64::from(cache_percent) => Some(id),
                _ => lowest(&mut self.draws, view, candidates, |id| self.prefixes.size(id)),
            }
        };
        let Some(chosen) = chosen else { return Choice::Wait };
        self.prefixes.sent(ask.prefix, chosen);
        Choice::Replica(chosen)
    }

    fn told(&mut self, _: u64, replica: ReplicaId, news: &News<'_>, _: &mut View<'_>) {
        if let News::Died { .. } = news {
            self.prefixes.lost(replica);
        }
    }
}
