//! Spillway's own policy: the gate and the router that ship in `protocol`, driven by what a gateway of this level knows.
//! Invariant: every decision is [`gate`]'s or [`Router::decide`]'s; what is here only translates.

use super::common::Outputs;
use crate::draws::key;
use crate::fleet::{Ask as Job, Choice, GatewayId, News, Pace, Policy, Probes, ReplicaId, Seen, View};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng as _;
use spillway_ledger::{Credits, Price};
use spillway_protocol::Now;
use spillway_protocol::router::{
    ALL_MAX, Ask, CHEAPEST, Candidate, DRAWN, Decision, Estimate, Gate, Market, OwnView, Report, Router, RouterRules,
    Served, Weights, spill,
};
use std::collections::BTreeMap;

/// What a second is worth where a job has no target, in micro-credits: the shipped default.
const SECOND_WORTH: Credits = Credits::new(1_000);
/// How soon a replica that refused without saying when is asked again, in microseconds.
const REFUSED_US: u64 = 300_000;
/// How long a job on an own replica is taken to run before any has ended, in milliseconds.
const OWN_JOB_MS: f64 = 10_000.0;
/// Rounds of probes for one job before it waits.
const ROUNDS_MAX: usize = 8;
/// Jobs whose looks are remembered.
const LOOKS_MAX: usize = 65_536;

/// A job under way.
#[derive(Clone, Copy, Debug)]
struct Flight {
    expected: Estimate,
    first_us: Option<u64>,
}

/// A look at the market that goes on while probes are out.
#[derive(Clone, Debug, Default)]
struct Look {
    asked: Vec<u32>,
    rounds: usize,
}

/// Spillway's gateway.
pub struct Spillway {
    router: Router<u32>,
    rng: ChaCha8Rng,
    looks: BTreeMap<u64, Look>,
    flights: BTreeMap<u64, Flight>,
    outputs: Outputs,
    /// Strangers by price, the cheapest first; made once.
    by_price: Vec<ReplicaId>,
    /// When each replica's load was last handed to the router, in microseconds.
    heard_us: Vec<u64>,
    /// The newest word on each replica's speed.
    pace: Vec<Pace>,
    /// Whether jobs are asked to be in time by the setting's promise, or time is weighed against price.
    targets: bool,
    /// How long jobs run on own replicas, smoothed, in milliseconds.
    own_job_ms: f64,
}

impl Spillway {
    /// For a gateway, by the shipped rules.
    #[must_use]
    pub fn new(seed: u64, gateway: GatewayId) -> Self {
        Self::with(RouterRules::default(), seed, gateway)
    }

    /// For a gateway, by other rules.
    #[must_use]
    pub fn with(rules: RouterRules, seed: u64, gateway: GatewayId) -> Self {
        Self {
            router: Router::new(rules),
            rng: ChaCha8Rng::from_seed(key(seed, "policy spillway", u64::from(gateway.0))),
            looks: BTreeMap::new(),
            flights: BTreeMap::new(),
            outputs: Outputs::default(),
            by_price: Vec::new(),
            heard_us: Vec::new(),
            pace: Vec::new(),
            targets: true,
            own_job_ms: OWN_JOB_MS,
        }
    }

    /// For jobs without a target: time is weighed against price.
    #[must_use]
    pub const fn without_target(mut self) -> Self {
        self.targets = false;
        self
    }

    /// Hands the router a load that it has not had yet.
    fn hear(&mut self, now_us: u64, replica: ReplicaId, rtt_us: u64, seen: &Seen) {
        let index = replica.index();
        if self.heard_us.len() <= index {
            self.heard_us.resize(index + 1, 0);
            self.pace.resize(index + 1, Pace::default());
        }
        if seen.at_us < self.heard_us[index] {
            return;
        }
        self.heard_us[index] = seen.at_us.max(1);
        if let Some(pace) = seen.speed {
            self.pace[index] = pace;
        }
        self.router.reported(Now(now_us), replica.0, report(now_us, rtt_us, seen, &self.pace[index]));
    }

    /// The own replica to go to, if the gate lets it; otherwise when the first text would come from waiting here.
    fn own(&self, job: &Job<'_>, view: &View<'_>, target_ms: f64) -> Result<ReplicaId, Option<f64>> {
        let mut best: Option<(u64, ReplicaId)> = None;
        let mut wait_ms: Option<f64> = None;
        let own_slots: u32 = view.own().iter().filter(|id| view.up(**id)).map(|id| view.slots(*id)).sum();
        let queued = view.queue(view.gateway()) as f64;
        // Slots become free one after the other, and those that wait go first.
        let slot_ms = self.own_job_ms * (queued + 1.0) / f64::from(own_slots.max(1));
        for id in view.own().iter().copied().filter(|id| view.candidates().binary_search(id).is_ok() && view.up(*id)) {
            let Some(seen) = view.seen(id) else { continue };
            let (slots, coming) = (view.slots(id), view.coming(id));
            let first_us = view.ttft_us(id, job).unwrap_or(0);
            let running = slots.saturating_sub(seen.slots_free) + coming;
            let own = OwnView {
                healthy: true,
                slots,
                running,
                preemptible: 0,
                pending: seen.waiting,
                first_ms: first_us as f64 / 1e3,
                wait_ms: slot_ms,
            };
            match spill::gate(&own, Some(target_ms)) {
                Gate::Own | Gate::Preempt => {
                    if best.is_none_or(|(least, _)| first_us < least) {
                        best = Some((first_us, id));
                    }
                }
                Gate::Spill { own_first_ms } => {
                    wait_ms = Some(wait_ms.map_or(own_first_ms, |least| least.min(own_first_ms)));
                }
                Gate::Nothing => {}
            }
        }
        best.map(|(_, id)| id).ok_or(wait_ms)
    }
}

fn report(now_us: u64, rtt_us: u64, seen: &Seen, pace: &Pace) -> Report {
    let whole = |us: u64| u32::try_from(us).unwrap_or(u32::MAX);
    Report {
        at: Now(now_us),
        covers: Now(now_us.saturating_sub(rtt_us)),
        slots_free: seen.slots_free,
        pending: seen.waiting,
        running: seen.running,
        start_ms: whole(pace.start_us / 1000),
        read_us_per_kilo: whole(pace.read_us_per_kilo),
        per_unit_us: whole(pace.token_us),
        free_at: Now(now_us + REFUSED_US),
    }
}

/// A gateway's view as a market.
struct Stalls<'a, 'b> {
    view: &'a View<'b>,
    job: &'a Job<'a>,
    by_price: &'a [ReplicaId],
    strangers: bool,
}

impl Market<u32> for Stalls<'_, '_> {
    fn candidate(&self, id: &u32) -> Option<Candidate> {
        let (view, replica) = (self.view, ReplicaId(*id));
        if view.candidates().binary_search(&replica).is_err() || !view.up(replica) {
            return None;
        }
        if self.strangers && view.is_own(replica) {
            return None;
        }
        let price = view.price(replica);
        Some(Candidate {
            price: Price {
                input: Credits::new(price.input_micro),
                cached: Credits::new(price.cached_micro.unwrap_or(price.input_micro)),
                output: Credits::new(price.output_micro),
            },
            slots: view.slots(replica),
            distance_ms: view.rtt_us(replica).map(|us| us as f64 / 1e3),
            standing: 1.0,
            cached: view.cached_tokens(replica, self.job).map(u64::from),
            billed: None,
            ready_ms: 0.0,
            rank: 0,
        })
    }

    // Nobody breaks its word here, so that nothing is ever in doubt.
    fn propose(
        &self,
        into: &mut Vec<u32>,
        busy: impl Fn(&u32) -> bool,
        _doubt: bool,
        rng: &mut impl rand_chacha::rand_core::Rng,
    ) {
        let all = if self.strangers { self.view.network() } else { self.view.candidates() };
        if all.len() <= ALL_MAX {
            return into.extend(all.iter().map(|id| id.0));
        }
        let open = |id: &&ReplicaId| self.view.up(**id) && !busy(&id.0);
        into.extend(self.by_price.iter().filter(open).take(CHEAPEST).map(|id| id.0));
        for _ in 0..DRAWN {
            let index = (u128::from(rng.next_u64()) * all.len() as u128) >> 64;
            into.push(all[usize::try_from(index).expect("below a length")].0);
        }
    }
}

impl Policy for Spillway {
    fn route(&mut self, now_us: u64, job: &Job<'_>, view: &mut View<'_>) -> Choice {
        let waited_us = now_us - job.since_us;
        let target_ms = job.ttft_limit_us.saturating_sub(waited_us) as f64 / 1e3;
        let strangers = !view.own().is_empty() && view.network().iter().any(|id| !view.is_own(*id));
        let mut own_first_ms = None;
        if strangers {
            match self.own(job, view, target_ms) {
                Ok(replica) => {
                    self.looks.remove(&job.job);
                    return Choice::Replica(replica);
                }
                Err(wait) => own_first_ms = wait,
            }
        }
        if self.by_price.is_empty() && view.network().len() > ALL_MAX {
            self.by_price = view.network().to_vec();
            self.by_price.sort_by_key(|id| (view.price(*id).output_micro, *id));
        }
        // In one data centre everything is seen as it is: loads need no probes.
        for id in view.candidates() {
            if view.is_live(*id) && !(strangers && view.is_own(*id)) {
                let Some(mut seen) = view.seen(*id) else { continue };
                // Jobs on their way are not in what is seen; the router knows those it sent since the last look.
                if view.coming(*id) > 0 && self.heard_us.get(id.index()).is_some_and(|at_us| *at_us > 0) {
                    continue;
                }
                seen.at_us = now_us;
                let first_us = view.ttft_us(*id, job).unwrap_or(0);
                let pace = view.pace(*id).unwrap_or_default();
                // The prediction is for this very prompt: what reading it takes is told apart where its cache is seen, else
                // nothing is left to be read beside it.
                let fresh = view.cached_tokens(*id, job).map_or(0, |cached| u64::from(job.input - cached));
                let read_us = (fresh * pace.read_us_per_kilo / 1000).min(first_us);
                let read_us_per_kilo = (read_us * 1000).checked_div(fresh).unwrap_or(0);
                let token_us = pace.token_us.max(1);
                seen.speed = Some(Pace { start_us: first_us - read_us, read_us_per_kilo, token_us });
                self.hear(now_us, *id, 0, &seen);
            }
        }
        let stalls = Stalls { view, job, by_price: &self.by_price, strangers };
        let ask = Ask {
            units: u64::from(job.input),
            output: u64::from(self.outputs.expected()),
            prefix: job.prefix,
            prefix_units: u64::from(job.prefix_block),
            target_ms: self.targets.then_some(target_ms),
            rate_us: self.targets.then_some(view.slo().tpot_ms as f64 * 1e3),
            weights: Weights::new(SECOND_WORTH, None),
            thorough: false,
            settled: self.looks.get(&job.job).is_some_and(|look| look.rounds >= ROUNDS_MAX),
        };
        let look = self.looks.entry(job.job).or_default();
        match self.router.decide(Now(now_us), &ask, &look.asked, &stalls, &mut self.rng) {
            Decision::Go { to, expected, refresh } => {
                self.looks.remove(&job.job);
                if own_first_ms.is_some_and(|ms| spill::waits(ms, expected.first_ms, Some(target_ms))) {
                    return Choice::Wait;
                }
                self.router.sent(Now(now_us), to, &ask, expected.cached);
                self.flights.insert(job.job, Flight { expected, first_us: None });
                for id in refresh {
                    view.probe(ReplicaId(id), job.input);
                }
                Choice::Replica(ReplicaId(to))
            }
            Decision::Probe(who) => {
                look.rounds += 1;
                look.asked.extend(who.iter().copied());
                let probes: Probes = who.into_iter().map(ReplicaId).collect();
                if self.looks.len() > LOOKS_MAX {
                    self.looks.pop_first();
                }
                Choice::Probe(probes)
            }
            Decision::Nobody { .. } => {
                self.looks.remove(&job.job);
                Choice::Wait
            }
        }
    }

    fn told(&mut self, now_us: u64, replica: ReplicaId, news: &News<'_>, view: &mut View<'_>) {
        let now = Now(now_us);
        if !view.is_live(replica)
            && let Some(seen) = view.seen(replica).filter(|seen| seen.speed.is_some())
        {
            self.hear(now_us, replica, view.rtt_us(replica).unwrap_or(0), &seen);
        }
        match news {
            News::Probed { seen } => self.hear(now_us, replica, view.rtt_us(replica).unwrap_or(0), seen),
            // From far away an answer is late rather than lost; it is told when it comes.
            News::ProbeLost { after_us } => {
                if view.rtt_us(replica).is_none_or(|rtt_us| rtt_us < *after_us) {
                    self.router.silent(&replica.0);
                }
            }
            News::First { ask, after_us, .. } => {
                if let Some(flight) = self.flights.get_mut(&ask.job) {
                    flight.first_us = Some(*after_us);
                }
            }
            News::Done { ask, after_us, made, .. } => {
                self.outputs.learn(*made);
                if view.is_own(replica) {
                    self.own_job_ms += (*after_us as f64 / 1e3 - self.own_job_ms) / 32.0;
                }
                let Some(flight) = self.flights.remove(&ask.job) else { return };
                let served = flight.first_us.map(|first_us| {
                    let rest_us = after_us.saturating_sub(first_us) as f64;
                    let rate = (*made >= 16).then(|| (flight.expected.per_unit_us, rest_us / f64::from(*made - 1)));
                    Served {
                        first_ms: (flight.expected.first_ms, first_us as f64 / 1e3),
                        per_unit_us: rate,
                        output: u64::from(*made),
                    }
                });
                self.router.ended(now, replica.0, served);
            }
            News::Refused { ask } => {
                if self.flights.remove(&ask.job).is_some() {
                    self.router.refused(now, replica.0, Now(now_us + REFUSED_US));
                }
            }
            News::Cut { ask } => {
                if self.flights.remove(&ask.job).is_some() {
                    self.router.ended(now, replica.0, None);
                }
            }
            News::Died { ask } => {
                if self.flights.remove(&ask.job).is_some() {
                    self.router.ended(now, replica.0, None);
                    self.router.silent(&replica.0);
                }
            }
        }
    }

    fn places_own(&self) -> bool {
        true
    }
}
