//! The oracle: sees every replica as it is, and jobs on their way.
//!
//! Of the replicas with a free slot, the cheapest that is predicted to meet the promise; if none is, the fastest. It is greedy:
//! it does not know what comes, nor how long answers will be. A bound to compare with, not to reach.

use super::common::Outputs;
use crate::fleet::{Ask, Choice, News, Policy, ReplicaId, View};

/// The oracle.
#[derive(Default)]
pub struct Oracle(Outputs);

impl Policy for Oracle {
    fn route(&mut self, now_us: u64, ask: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let truth = view.truth().expect("an oracle sees all");
        let left_us = (ask.since_us + ask.ttft_limit_us).saturating_sub(now_us);
        let tpot_limit_us = view.slo().tpot_ms * 1000;
        let mut best: Option<((bool, u64, u64), ReplicaId)> = None;
        for &id in view.candidates() {
            if !truth.free(id) {
                continue;
            }
            let ttft_us = truth.ttft_us(id, ask);
            // What has begun is only held to its pace.
            let in_time = (ask.delivered > 0 || ttft_us <= left_us) && truth.tpot_us(id, ask) <= tpot_limit_us;
            let cost = if in_time { truth.cost_micro(id, ask, self.0.expected()) } else { 0 };
            let rank = (!in_time, cost, ttft_us);
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, id));
            }
        }
        best.map_or(Choice::Wait, |(_, id)| Choice::Replica(id))
    }

    fn told(&mut self, _: u64, _: ReplicaId, news: &News<'_>, _: &mut View<'_>) {
        if let News::Done { made, .. } = news {
            self.0.learn(*made);
        }
    }

    fn places_own(&self) -> bool {
        true
    }

    fn sees_all(&self) -> bool {
        true
    }
}
