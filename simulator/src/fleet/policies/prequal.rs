//! Prequal: asynchronous, reusable probes; the fastest of those that are not hot.
//! Invariant: the pool holds at most [`POOL_MAX`] answers, none older than [`AGE_MAX_US`], none used more often than allowed.
//!
//! Source: Wydrowski et al., "Load is Not What You Should Balance: Introducing Prequal", NSDI 2024, with its parameters: 3
//! probes and 1 removal for each query, hot from the 0.84 quantile of requests in flight (2^-1/4), delta 1.

use super::common::{any, draws};
use crate::draws::Draws;
use crate::fleet::{Ask, Choice, GatewayId, News, Policy, ReplicaId, View};
use std::collections::VecDeque;

/// Answers in the pool.
const POOL_MAX: usize = 16;
/// With fewer, a replica is drawn.
const POOL_MIN: usize = 2;
/// Probes for each query.
const PROBES: u64 = 3;
/// The age at which an answer is dropped, in microseconds.
const AGE_MAX_US: u64 = 1_000_000;
/// Answers from which the quantile is taken.
const RECENT: usize = 128;
/// The quantile from which a replica is hot, in percent.
const HOT_PERCENT: usize = 84;

/// An answer in the pool.
#[derive(Clone, Copy, Debug)]
struct Answer {
    replica: ReplicaId,
    /// Requests in flight there, those sent since counted.
    in_flight: u32,
    latency_us: u64,
    at_us: u64,
    uses_left: u32,
}

/// Prequal's balancer.
pub struct Prequal {
    draws: Draws,
    /// The oldest first.
    pool: Vec<Answer>,
    recent: VecDeque<u32>,
    /// Removals alternate between the oldest and the worst.
    oldest_next: bool,
    /// Replicas that it chooses from, as last seen: the reuse budget depends on how many there are.
    replicas: usize,
}

impl Prequal {
    /// For a gateway.
    #[must_use]
    pub fn new(seed: u64, gateway: GatewayId) -> Self {
        let draws = draws(seed, gateway);
        Self { draws, pool: Vec::new(), recent: VecDeque::new(), oldest_next: true, replicas: 0 }
    }

    /// How often an answer may be used: max(1, (1 + delta) / ((1 - m/n) r_probe - r_remove)) on average, drawn to a whole
    /// number. In hundredths: delta 1, r_remove 1.
    fn uses(&mut self) -> u32 {
        let replicas = self.replicas.max(1) as u64;
        let fresh = replicas.saturating_sub(POOL_MAX as u64);
        // Hundredths of (1 - m/n) * 3 - 1; where it is not above 0, the pool cannot be filled faster than it is emptied.
        let gain = (fresh * PROBES * 100 / replicas).saturating_sub(100);
        let hundredths = (2_u64 * 100 * 100).checked_div(gain).map_or(100 * POOL_MAX as u64, |it| it.clamp(100, 1600));
        let more = self.draws.below(100) < hundredths % 100;
        (hundredths / 100) as u32 + u32::from(more)
    }

    /// From how many requests in flight a replica is hot.
    fn hot_from(&self) -> u32 {
        let mut sorted: Vec<u32> = self.recent.iter().copied().collect();
        sorted.sort_unstable();
        sorted.get(sorted.len() * HOT_PERCENT / 100).copied().unwrap_or(u32::MAX)
    }

    /// Drops what was removed for this query: by turns the oldest, and the worst: of the hot the one with the most requests
    /// in flight, else the slowest.
    fn remove_one(&mut self, hot_from: u32) {
        if self.pool.is_empty() {
            return;
        }
        let index = if self.oldest_next {
            0
        } else {
            let worst = |answer: &Answer| {
                let hot = answer.in_flight >= hot_from;
                (hot, if hot { u64::from(answer.in_flight) } else { answer.latency_us })
            };
            (0..self.pool.len()).max_by_key(|index| worst(&self.pool[*index])).expect("the pool is not empty")
        };
        self.oldest_next = !self.oldest_next;
        self.pool.remove(index);
    }
}

impl Policy for Prequal {
    fn route(&mut self, now_us: u64, ask: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let candidates = view.candidates();
        self.replicas = candidates.len();
        for _ in 0..PROBES {
            let replica = any(&mut self.draws, view);
            view.probe(replica, ask.input);
        }
        self.pool.retain(|answer| answer.at_us + AGE_MAX_US >= now_us && answer.uses_left > 0);
        let hot_from = self.hot_from();
        let open: Vec<usize> = (0..self.pool.len())
            .filter(|index| candidates.binary_search(&self.pool[*index].replica).is_ok())
            .filter(|index| view.up(self.pool[*index].replica))
            .collect();
        if open.len() < POOL_MIN.min(candidates.len()) {
            return Choice::Replica(any(&mut self.draws, view));
        }
        // Cold before hot; the cold by latency, the hot by requests in flight.
        let rank = |answer: &Answer| {
            let hot = answer.in_flight >= hot_from;
            (hot, if hot { u64::from(answer.in_flight) } else { answer.latency_us })
        };
        let best = open.into_iter().min_by_key(|index| rank(&self.pool[*index])).expect("at least one is open");
        let answer = &mut self.pool[best];
        answer.uses_left -= 1;
        answer.in_flight += 1;
        let replica = answer.replica;
        self.remove_one(hot_from);
        Choice::Replica(replica)
    }

    fn told(&mut self, now_us: u64, replica: ReplicaId, news: &News<'_>, _: &mut View<'_>) {
        let News::Probed { seen } = news else { return };
        let in_flight = seen.running + seen.waiting;
        self.recent.push_back(in_flight);
        if self.recent.len() > RECENT {
            self.recent.pop_front();
        }
        let uses_left = self.uses();
        if self.pool.len() >= POOL_MAX {
            self.pool.remove(0);
        }
        let latency_us = seen.ttft_us.unwrap_or(0);
        self.pool.push(Answer { replica, in_flight, latency_us, at_us: now_us, uses_left });
    }
}
