//! GORGO: the lowest sum of network, prefill and queue.
//!
//! `round trip + prefill * uncached tokens + queue * (tokens that wait + tokens of KV in use)`. The two weights are tuned for
//! a deployment. The tokens are those that the replica told, and at least those that this proxy has there itself. Source: Ricci Toniolo, Thorstenson and Dinesh, "GORGO: Online Tuning for Cross-Region Network-Aware LLM
//! Serving" (arXiv:2602.11688), version 3.

use super::common::{RTT_UNKNOWN_US, draws, fresh, lowest};
use super::prefixes::{Prefixes, cached};
use crate::draws::Draws;
use crate::fleet::{Ask, Choice, GatewayId, News, Policy, ReplicaId, View};

/// The weights.
#[derive(Clone, Copy, Debug)]
pub struct GorgoRules {
    /// What a token of the prompt that is not cached costs, in nanoseconds.
    pub prefill_ns: u64,
    /// What a token in the replica's queue or memory costs, in nanoseconds.
    pub queue_ns: u64,
}

impl Default for GorgoRules {
    /// Tuned as the paper does, on p95 of the time to first token, for the setting `spillover`: `docs/simulator.md`.
    fn default() -> Self {
        Self { prefill_ns: 60_000, queue_ns: 20_000 }
    }
}

/// GORGO's proxy.
pub struct Gorgo {
    rules: GorgoRules,
    draws: Draws,
    prefixes: Prefixes,
    /// By replica: tokens of the prompts that are there.
    sent: Vec<u64>,
}

impl Gorgo {
    /// For a gateway.
    #[must_use]
    pub fn new(rules: GorgoRules, seed: u64, gateway: GatewayId) -> Self {
        Self { rules, draws: draws(seed, gateway), prefixes: Prefixes::default(), sent: Vec::new() }
    }
}

impl Policy for Gorgo {
    fn route(&mut self, _: u64, ask: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let GorgoRules { prefill_ns, queue_ns } = self.rules;
        let score = |id| {
            let uncached = u64::from(ask.input - cached(view, &self.prefixes, id, ask));
            let told = fresh(view, id).map_or(0, |seen| seen.waiting_tokens + seen.kv_used);
            let queued = told.max(self.sent.get(id.index()).copied().unwrap_or(0));
            view.rtt_us(id).unwrap_or(RTT_UNKNOWN_US) * 1000 + prefill_ns * uncached + queue_ns * queued
        };
        let Some(chosen) = lowest(&mut self.draws, view, view.candidates(), score) else { return Choice::Wait };
        self.prefixes.sent(ask.prefix, chosen);
        self.sent.resize(view.replicas(), 0);
        self.sent[chosen.index()] += u64::from(ask.input);
        Choice::Replica(chosen)
    }

    fn told(&mut self, _: u64, replica: ReplicaId, news: &News<'_>, _: &mut View<'_>) {
        match news {
            News::Done { ask, .. } | News::Refused { ask } | News::Cut { ask } | News::Died { ask } => {
                self.sent[replica.index()] -= u64::from(ask.input);
            }
            News::First { .. } | News::Probed { .. } | News::ProbeLost { .. } => {}
        }
        if let News::Died { .. } = news {
            self.prefixes.lost(replica);
        }
    }
}
