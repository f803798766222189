//! The oracle: sees every replica as it is, and jobs on their way.
//!
//! Of the replicas with a free slot, those where the fewest promises are predicted to be broken: the job's own, and those to the
//! jobs that are there. Of these the cheapest; if the job is late everywhere, the fastest. [`Oracle::fast`] takes the fastest in
//! any case, whatever it costs: so the two bound money and time. Both are greedy: they do not know what comes. Something to
//! compare with, not a proven bound.

use super::common::Outputs;
use crate::fleet::{Ask, Choice, News, Policy, ReplicaId, View};

/// The oracle.
#[derive(Default)]
pub struct Oracle {
    outputs: Outputs,
    fast: bool,
}

impl Oracle {
    /// The one that minds no cost.
    #[must_use]
    pub fn fast() -> Self {
        Self { fast: true, ..Self::default() }
    }
}

impl Policy for Oracle {
    fn route(&mut self, now_us: u64, ask: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let truth = view.truth().expect("an oracle sees all");
        let left_us = (ask.since_us + ask.ttft_limit_us).saturating_sub(now_us);
        let tpot_limit_us = view.slo().tpot_ms * 1000;
        let mut best: Option<((u32, u64, u64), ReplicaId)> = None;
        for &id in view.candidates() {
            if !truth.free(id) {
                continue;
            }
            let (ttft_us, tpot_us) = (truth.ttft_us(id, ask), truth.tpot_us(id, ask));
            // What has begun is only held to its pace.
            let in_time = (ask.delivered > 0 || ttft_us <= left_us) && tpot_us <= tpot_limit_us;
            let missed = u32::from(!in_time) + truth.victims(id, ask);
            let output = self.outputs.expected();
            let by_cost = in_time && !self.fast;
            let cost = if by_cost { truth.cost_micro(id, ask, output) } else { 0 };
            let whole_us = ttft_us + tpot_us * u64::from(output);
            let rank = (missed, cost, whole_us);
            if best.is_none_or(|(least, _)| rank < least) {
                best = Some((rank, id));
            }
        }
        best.map_or(Choice::Wait, |(_, id)| Choice::Replica(id))
    }

    fn told(&mut self, _: u64, _: ReplicaId, news: &News<'_>, _: &mut View<'_>) {
        if let News::Done { made, .. } = news {
            self.outputs.learn(*made);
        }
    }

    fn places_own(&self) -> bool {
        true
    }

    fn sees_all(&self) -> bool {
        true
    }
}
