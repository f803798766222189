//! SkyWalker: a balancer in each region that pushes a job only to a replica without pending jobs.
//! Invariant: no job goes to a replica that had one waiting when it was last looked at; it waits at its balancer instead. It
//! looks every [`PROBE_US`], as the paper's balancer probes.
//!
//! Of the region's replicas without pending jobs, the one with the longest cached prefix if that is at least half of the
//! prompt, else the least loaded. If the region has none, the same among the other regions': by way of the organisation's
//! balancer there, or straight to the replica where there is none. Source: Xia et al., "SkyWalker: A Locality-Aware
//! Cross-Region Load Balancer for LLM Inference", EuroSys 2026 (arXiv:2505.24095), selective pushing by pending requests and
//! prefix trees.

use super::common::{RTT_UNKNOWN_US, draws, fresh, load, lowest};
use super::prefixes::{Prefixes, cached};
use crate::draws::Draws;
use crate::fleet::{Ask, Choice, GatewayId, News, Policy, ReplicaId, View};
use std::cmp::Reverse;

/// How often a replica is looked at, in microseconds.
const PROBE_US: u64 = 100_000;
/// The least share of the prompt, in percent, that has to be cached to go by the cache.
const CACHE_PERCENT: u64 = 50;

/// SkyWalker's balancer.
pub struct SkyWalker {
    draws: Draws,
    prefixes: Prefixes,
    /// By replica: when it was last looked at, and whether nothing waited there.
    looked: Vec<Option<(u64, bool)>>,
}

impl SkyWalker {
    /// For a gateway.
    #[must_use]
    pub fn new(seed: u64, gateway: GatewayId) -> Self {
        Self { draws: draws(seed, gateway), prefixes: Prefixes::default(), looked: Vec::new() }
    }

    /// Whether a replica has no pending job, as far as is known. A slot that is known to be taken is one.
    fn free(&mut self, now_us: u64, view: &View<'_>, replica: ReplicaId) -> bool {
        if self.looked.len() <= replica.index() {
            self.looked.resize(replica.index() + 1, None);
        }
        let looked = &mut self.looked[replica.index()];
        let free = match *looked {
            Some((at_us, free)) if now_us < at_us + PROBE_US => free,
            Some(_) | None => {
                let free = fresh(view, replica).is_none_or(|seen| seen.waiting == 0 && seen.slots_free > 0);
                *looked = Some((now_us, free));
                free
            }
        };
        free && view.up(replica)
    }

    fn best(&mut self, view: &View<'_>, free: &[ReplicaId], ask: &Ask<'_>) -> Option<ReplicaId> {
        let known = |id| cached(view, &self.prefixes, id, ask);
        let rtt_us = |id| view.rtt_us(id).unwrap_or(RTT_UNKNOWN_US);
        let longest = lowest(&mut self.draws, view, free, |id| (Reverse(known(id)), load(view, id)))?;
        if u64::from(known(longest)) * 100 >= u64::from(ask.input) * CACHE_PERCENT {
            return Some(longest);
        }
        lowest(&mut self.draws, view, free, |id| (load(view, id), rtt_us(id)))
    }
}

impl Policy for SkyWalker {
    fn route(&mut self, now_us: u64, ask: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let here = view.gateway_region(view.gateway());
        let candidates = view.candidates().iter().copied().filter(|id| self.free(now_us, view, *id));
        let (near, far): (Vec<_>, Vec<_>) = candidates.partition(|id| view.region(*id) == here);
        let chosen = if let Some(chosen) = self.best(view, &near, ask) {
            chosen
        } else {
            if ask.forwarded {
                return Choice::Wait;
            }
            let Some(chosen) = self.best(view, &far, ask) else { return Choice::Wait };
            let there = view.region(chosen);
            let balancer = view.siblings().find(|gateway| view.gateway_region(*gateway) == there);
            if let Some(balancer) = balancer.filter(|_| view.is_own(chosen)) {
                self.prefixes.sent(ask.prefix, chosen);
                return Choice::Forward(balancer);
            }
            chosen
        };
        self.prefixes.sent(ask.prefix, chosen);
        Choice::Replica(chosen)
    }

    fn told(&mut self, _: u64, replica: ReplicaId, news: &News<'_>, _: &mut View<'_>) {
        if let News::Died { .. } = news {
            self.prefixes.lost(replica);
        }
    }
}
