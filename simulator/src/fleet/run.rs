//! The loop: what happens next, and what follows from it.
//! Invariant: every job ends once; the same seed, setting, workload and policy give the same run on every machine.

mod dispatch;
mod probing;
mod serving;

use super::events::{Event, Events, Wakes};
use super::gateway::{Gateway, Known, Seen};
use super::job::{Job, JobKey, Jobs, Place};
use super::metrics::{End, Metrics, Outcome};
use super::policy::{Ask, Choice, GatewayId, News, Policy, Probes, ReplicaId};
use super::replica::{Admission, Replica, Site, Work};
use super::setting::{Homes, PriceRules, Setting, SettingError};
use super::view::{Scene, View, Ways};
use crate::draws::Draws;
use crate::engine::{Batch, Progress};
use crate::traces::{Request, Workload};
use probing::Probe;
use std::collections::VecDeque;

/// Makes the policy of a gateway.
pub type Make<'a> = &'a dyn Fn(GatewayId) -> Box<dyn Policy>;

/// One run.
pub struct Fleet {
    seed: u64,
    policy: String,
    setting: Setting,
    now_us: u64,
    events: Events,
    wakes: Wakes,
    jobs: Jobs,
    gateways: Vec<Gateway>,
    replicas: Vec<Replica>,
    policies: Vec<Box<dyn Policy>>,
    /// Some policy sees all.
    sees_all: bool,
    /// By organisation: its gateways.
    gateways_of: Vec<Vec<GatewayId>>,
    providers: Vec<String>,
    homes: Homes,
    /// The least that a replica's memory holds, in tokens.
    context_min: u32,
    ways: Ways,
    jitter: Draws,
    churn: Draws,
    probes: Vec<Probe>,
    probes_free: Vec<u32>,
    workload: Box<dyn Workload>,
    next: Option<Request>,
    metrics: Metrics,
    // Taken out while in use, so that nothing is allocated for each event.
    told: Vec<Progress>,
    ordered: Vec<(ReplicaId, u32)>,
    chosen: Vec<ReplicaId>,
}

impl Fleet {
    /// A run of a setting. `policy` is what reports call the policy that `make` makes for each gateway.
    ///
    /// # Errors
    /// The field of the setting that does not hold.
    pub fn new(
        seed: u64,
        setting: Setting,
        workload: Box<dyn Workload>,
        policy: &str,
        make: Make<'_>,
    ) -> Result<Self, SettingError> {
        setting.validate()?;
        let regions = setting.network.regions();
        let region = |name: &str| regions.iter().position(|it| it == name).expect("validated");
        let mut organisations: Vec<String> = Vec::new();
        let mut organisation = |name: &str| {
            organisations.iter().position(|it| it == name).unwrap_or_else(|| {
                organisations.push(name.to_owned());
                organisations.len() - 1
            })
        };
        let mut gateways = Vec::new();
        for rules in &setting.gateways {
            for _ in 0..rules.count {
                gateways.push(Gateway {
                    id: GatewayId(u32::try_from(gateways.len()).expect("validated")),
                    region: region(&rules.region),
                    organisation: organisation(&rules.organisation),
                    own: Vec::new(),
                    network: Vec::new(),
                    all: Vec::new(),
                    known: Vec::new(),
                    queue: VecDeque::new(),
                    retrying: false,
                });
            }
        }
        let mut replicas = Vec::new();
        for rules in &setting.replicas {
            let mut engine = setting.engine(&rules.engine).expect("validated");
            if engine.prefix_grain > 0 {
                engine.prefix_grain = setting.prefix_block;
            }
            let owner = organisation(&rules.owner);
            for _ in 0..rules.count {
                let id = ReplicaId(u32::try_from(replicas.len()).expect("validated"));
                let site = Site { id, region: region(&rules.region), owner };
                replicas.push(Replica::new(&site, rules, engine.clone()));
            }
        }
        for gateway in &mut gateways {
            gateway.known = vec![Known::default(); replicas.len()];
            for replica in &replicas {
                if replica.owner == gateway.organisation {
                    gateway.own.push(replica.id);
                } else if replica.sells {
                    gateway.network.push(replica.id);
                } else {
                    continue;
                }
                gateway.all.push(replica.id);
            }
        }
        let mut gateways_of = vec![Vec::new(); organisations.len()];
        for gateway in &gateways {
            gateways_of[gateway.organisation].push(gateway.id);
        }
        let count = regions.len();
        let us = (0..count * count).map(|pair| setting.network.one_way_us(pair / count, pair % count)).collect();
        let policies: Vec<_> = gateways.iter().map(|gateway| make(gateway.id)).collect();
        let mut fleet = Self {
            seed,
            policy: policy.to_owned(),
            now_us: 0,
            events: Events::default(),
            wakes: Wakes::new(replicas.len()),
            jobs: Jobs::default(),
            metrics: Metrics::new(&setting, organisations.len()),
            homes: Homes::of(&setting),
            context_min: replicas.iter().map(|replica| replica.rules().kv_tokens).min().unwrap_or(0),
            gateways,
            replicas,
            sees_all: policies.iter().any(|policy| policy.sees_all()),
            policies,
            gateways_of,
            providers: organisations,
            ways: Ways { us, regions: count },
            jitter: Draws::new(seed, "fleet jitter"),
            churn: Draws::new(seed, "fleet churn"),
            probes: Vec::new(),
            probes_free: Vec::new(),
            workload,
            next: None,
            told: Vec::new(),
            ordered: Vec::new(),
            chosen: Vec::new(),
            setting,
        };
        fleet.plan_deaths();
        fleet.next = fleet.workload.next();
        Ok(fleet)
    }

    /// Keeps a [`Record`](super::Record) of every measured job: memory then grows with what has happened.
    #[must_use]
    pub fn keep_records(mut self) -> Self {
        self.metrics.keep_records();
        self
    }

    /// Deaths that the setting fixes, and the first of those that are drawn.
    fn plan_deaths(&mut self) {
        let mut first = 0;
        for rules in &self.setting.replicas {
            for _ in 0..rules.count {
                let id = ReplicaId(first);
                first += 1;
                for [from, until] in &rules.down_s {
                    self.events.push(from * 1_000_000, Event::Down(id));
                    self.events.push(until * 1_000_000, Event::Up(id));
                }
                if let Some(churn) = rules.churn {
                    self.events.push(self.churn.wait(churn.up_s * 1_000_000), Event::Down(id));
                }
            }
        }
    }

    /// Runs until the last job has ended.
    #[must_use]
    pub fn run(mut self) -> Outcome {
        let end_us = self.setting.duration_s * 1_000_000;
        loop {
            self.next = self.next.take().filter(|request| request.at_us < end_us);
            let arrival = self.next.as_ref().map_or(u64::MAX, |request| request.at_us);
            if arrival == u64::MAX && self.jobs.alive() == 0 {
                break; // What is left are timers.
            }
            let (wake, replica) = self.wakes.next();
            let message = self.events.next_at();
            self.now_us = wake.min(message).min(arrival);
            assert!(self.now_us < u64::MAX, "{} jobs are alive and nothing is due", self.jobs.alive());
            self.metrics.events += 1;
            if wake == self.now_us {
                self.step(replica);
            } else if message == self.now_us {
                let event = self.events.pop().expect("one is due");
                self.handle(event);
            } else {
                let request = self.next.take().expect("one is due");
                self.next = self.workload.next();
                let key = self.enter(request);
                self.arrive(key);
            }
        }
        let capacities = self.capacities();
        self.metrics.outcome(&self.policy, self.seed, capacities)
    }

    /// By organisation: what its replicas that sell can make, in tokens per second, with all slots decoding at 1,000 tokens
    /// of context.
    fn capacities(&self) -> Vec<(String, f64)> {
        let mut capacities: Vec<_> = self.providers.iter().map(|name| (name.clone(), 0.0)).collect();
        for replica in self.replicas.iter().filter(|replica| replica.sells) {
            let rules = replica.rules();
            let decoding = (replica.slots - replica.reserved).min(rules.seqs_max).min(rules.kv_tokens / 1000);
            let batch = Batch { decoding, decoding_kv: 1000 * u64::from(decoding), chunks: &[] };
            capacities[replica.owner].1 += f64::from(decoding) * 1e6 / rules.step.step_us(&batch);
        }
        capacities
    }

    fn enter(&mut self, request: Request) -> JobKey {
        let home = self.homes.of_client(request.client, request.session);
        let key = self.jobs.add(Job::new(request, home));
        self.metrics.alive_max = self.metrics.alive_max.max(self.jobs.alive() as u64);
        key
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive(key) => self.arrive(key),
            Event::Forwarded(key) => self.offer(key, false),
            Event::Deliver(key) => self.deliver(key),
            Event::First(key) => self.first(key),
            Event::Done(key) => self.done(key),
            Event::Refused(key) => self.refused(key),
            Event::Cut(key) => self.broken(key, false),
            Event::Silent(key) => self.broken(key, true),
            Event::Expire(key) => self.expire(key),
            Event::Probe(probe) => self.probed(probe),
            Event::Answer(probe) => self.answer(probe),
            Event::ProbeLimit(probe, turn) => self.probe_limit(probe, turn),
            Event::Retry(gateway) => {
                self.gateways[gateway.index()].retrying = false;
                self.pump(gateway);
                self.retry_later(gateway);
            }
            Event::Down(replica) => self.down(replica),
            Event::Up(replica) => self.up(replica),
        }
    }

    fn job(&self, key: JobKey) -> &Job {
        self.jobs.get(key).expect("a job lives until its end is handled")
    }

    fn job_mut(&mut self, key: JobKey) -> &mut Job {
        self.jobs.get_mut(key).expect("a job lives until its end is handled")
    }

    /// How long a message takes between two regions.
    fn way_us(&mut self, from: usize, to: usize) -> u64 {
        let jitter = self.setting.network.jitter_us;
        self.ways.us(from, to) + if jitter == 0 { 0 } else { self.jitter.below(jitter) }
    }
}
