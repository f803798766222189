//! The loop: what happens next, and what follows from it.
//! Invariant: every job ends once; the same seed, setting, workload and policy give the same run on every machine.

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
use std::collections::VecDeque;

/// A probe that is out.
#[derive(Clone, Copy, Debug)]
struct Probe {
    gateway: GatewayId,
    replica: ReplicaId,
    job: Option<JobKey>,
    input: u32,
    sent_us: u64,
    answer: Option<Seen>,
    /// Counts the probes that had this place.
    turn: u32,
    out: bool,
}

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
        let policies = gateways.iter().map(|gateway| make(gateway.id)).collect();
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

    // ---- At gateways -----------------------------------------------------------------------------------------------

    /// A client asks.
    fn arrive(&mut self, key: JobKey) {
        let gateway = &self.gateways[self.job(key).at.index()];
        let behind = gateway.queue.front().is_some_and(|first| self.job(*first).not_before_us <= self.now_us);
        if behind {
            self.enqueue(key, false);
        } else {
            self.offer(key, false);
        }
    }

    /// Asks the policy about a job that is in no queue, and does what it says. `front`: it goes first if it is to wait.
    fn offer(&mut self, key: JobKey, front: bool) {
        let (refusals_max, retry_us) = (self.setting.queue.refusals_max, self.setting.queue.retry_ms * 1000);
        let now_us = self.now_us;
        if self.too_late(key) {
            return self.refuse(key);
        }
        let asks = self.job(key).refusals < refusals_max;
        if asks {
            let choice = self.ask(key);
            if choice != Choice::Wait {
                return self.carry(key, choice);
            }
        }
        let job = self.job_mut(key);
        if !job.refused_by.is_empty() {
            // It has asked around: strangers are left alone for a while. Those it has not asked come first then.
            if asks {
                job.refused_by.clear();
            }
            job.refusals = 0;
            job.not_before_us = now_us + retry_us;
        }
        self.enqueue(key, front);
    }

    fn too_late(&self, key: JobKey) -> bool {
        self.now_us > self.job(key).waits_since_us + self.setting.queue.wait_ms * 1000
    }

    /// Does what the policy says with a job that is in no queue. `Wait` is the caller's.
    fn carry(&mut self, key: JobKey, choice: Choice) {
        match choice {
            Choice::Replica(replica) => self.send(key, replica),
            Choice::Refuse => self.refuse(key),
            Choice::Forward(to) => self.forward(key, to),
            Choice::Probe(replicas) => self.probe_for(key, &replicas),
            Choice::Wait => unreachable!("the caller lets it wait"),
        }
    }

    fn enqueue(&mut self, key: JobKey, front: bool) {
        let gateway = self.job(key).at;
        let queue = &mut self.gateways[gateway.index()].queue;
        if queue.len() >= self.setting.queue.length_max as usize {
            return self.refuse(key);
        }
        if front {
            queue.push_front(key);
        } else {
            queue.push_back(key);
        }
        let job = self.job_mut(key);
        job.place = Place::Queued;
        job.waited = true;
        let until = job.waits_since_us;
        self.events.push(until + self.setting.queue.wait_ms * 1000 + 1, Event::Expire(key));
        self.retry_later(gateway);
    }

    fn retry_later(&mut self, id: GatewayId) {
        let at = self.now_us + self.setting.queue.retry_ms * 1000;
        let gateway = &mut self.gateways[id.index()];
        if !gateway.retrying && !gateway.queue.is_empty() {
            gateway.retrying = true;
            self.events.push(at, Event::Retry(id));
        }
    }

    /// A job's time in the queue may be up.
    fn expire(&mut self, key: JobKey) {
        let waits = self.jobs.get(key).is_some_and(|job| job.place == Place::Queued);
        if waits && self.too_late(key) {
            let at = self.job(key).at;
            let queue = &mut self.gateways[at.index()].queue;
            let place = queue.iter().position(|it| *it == key).expect("a queued job is in its gateway's queue");
            queue.remove(place);
            // A last try, of all.
            let job = self.job_mut(key);
            job.refused_by.clear();
            job.not_before_us = 0;
            match self.ask(key) {
                Choice::Wait => self.refuse(key),
                choice => self.carry(key, choice),
            }
        }
    }

    /// Places what can be placed of a gateway's queue, in order, up to the first that the policy lets wait.
    fn pump(&mut self, id: GatewayId) {
        let mut index = 0;
        while let Some(key) = self.gateways[id.index()].queue.get(index).copied() {
            let backs_off = self.job(key).not_before_us > self.now_us;
            if backs_off && !self.own_open(id) {
                index += 1;
                continue;
            }
            match self.ask(key) {
                Choice::Wait if backs_off => index += 1,
                Choice::Wait => return,
                choice => {
                    self.gateways[id.index()].queue.remove(index);
                    self.carry(key, choice);
                }
            }
        }
    }

    /// Whether an own replica has room, so that jobs that leave strangers alone can be asked about.
    fn own_open(&self, id: GatewayId) -> bool {
        self.gateways[id.index()].own.iter().any(|own| {
            let replica = &self.replicas[own.index()];
            replica.slots_free(false) > replica.coming && replica.engine.load().waiting == 0
        })
    }

    /// Pumps the gateways that see this replica as it is.
    fn pump_watchers(&mut self, replica: ReplicaId) {
        if self.setting.live {
            for index in 0..self.gateways.len() {
                if !self.gateways[index].queue.is_empty() {
                    self.pump(self.gateways[index].id);
                }
            }
            return;
        }
        let owner = self.replicas[replica.index()].owner;
        for index in 0..self.gateways_of[owner].len() {
            let id = self.gateways_of[owner][index];
            if !self.gateways[id.index()].queue.is_empty() {
                self.pump(id);
            }
        }
    }

    fn ask(&mut self, key: JobKey) -> Choice {
        let Self { jobs, gateways, replicas, policies, setting, ways, now_us, ordered, chosen, context_min, .. } = self;
        let job = jobs.get(key).expect("alive");
        let id = job.at;
        let gateway = &gateways[id.index()];
        let policy = &mut policies[id.index()];
        let ask = ask_of(key, job, setting);
        let backs_off = job.not_before_us > *now_us;
        let mut candidates = if backs_off { &gateway.own[..] } else { &gateway.all[..] };
        let open = |id: &ReplicaId| replicas[id.index()].rules().kv_tokens > ask.input && !job.refused_by.contains(id);
        chosen.clear();
        if setting.own_first && !policy.places_own() {
            let own = gateway.own.iter().copied().filter(open);
            chosen.extend(own.filter(|own| free(&replicas[own.index()], &ask)));
            if !chosen.is_empty() || backs_off {
                candidates = chosen;
            } else if !gateway.network.is_empty() {
                candidates = &gateway.network;
            }
        }
        // What is too long for some replica, or was refused by some, goes to the others.
        if ask.input >= *context_min || !job.refused_by.is_empty() {
            let left: Vec<_> = candidates.iter().copied().filter(open).collect();
            *chosen = left;
            candidates = chosen;
        }
        let sees_all = policy.sees_all();
        let scene = Scene { setting, gateways, replicas, ways, jobs };
        ordered.clear();
        let mut view = View { now_us: *now_us, scene, gateway, candidates, sees_all, probes: ordered };
        let choice = if candidates.is_empty() { Choice::Wait } else { policy.route(*now_us, &ask, &mut view) };
        match &choice {
            Choice::Replica(replica) => {
                assert!(candidates.binary_search(replica).is_ok(), "{replica:?} is no candidate of {id:?}");
            }
            Choice::Forward(to) => assert!(!ask.forwarded && *to != id, "{id:?} cannot forward to {to:?}"),
            Choice::Wait | Choice::Refuse | Choice::Probe(_) => {}
        }
        self.send_probes(id);
        // To probe nobody is to wait.
        if matches!(&choice, Choice::Probe(replicas) if replicas.is_empty()) { Choice::Wait } else { choice }
    }

    /// Tells the policy of the gateway that routes this job what was learned.
    fn tell(&mut self, key: JobKey, replica: ReplicaId, news: impl for<'a> FnOnce(Ask<'a>, &Job) -> News<'a>) {
        let Self { jobs, gateways, replicas, policies, setting, ways, now_us, ordered, .. } = self;
        let job = jobs.get(key).expect("alive");
        let id = job.at;
        let news = news(ask_of(key, job, setting), job);
        let policy = &mut policies[id.index()];
        let gateway = &gateways[id.index()];
        let scene = Scene { setting, gateways, replicas, ways, jobs };
        let sees_all = policy.sees_all();
        ordered.clear();
        let mut view = View { now_us: *now_us, scene, gateway, candidates: &gateway.all, sees_all, probes: ordered };
        policy.told(*now_us, replica, &news, &mut view);
        self.send_probes(id);
    }

    fn tell_probe(&mut self, id: GatewayId, replica: ReplicaId, news: &News<'_>) {
        let Self { jobs, gateways, replicas, policies, setting, ways, now_us, ordered, .. } = self;
        let policy = &mut policies[id.index()];
        let gateway = &gateways[id.index()];
        let scene = Scene { setting, gateways, replicas, ways, jobs };
        let sees_all = policy.sees_all();
        ordered.clear();
        let mut view = View { now_us: *now_us, scene, gateway, candidates: &gateway.all, sees_all, probes: ordered };
        policy.told(*now_us, replica, news, &mut view);
        self.send_probes(id);
    }

    fn send(&mut self, key: JobKey, replica: ReplicaId) {
        let now_us = self.now_us;
        let at = self.job(key).at;
        let organisation = self.gateways[at.index()].organisation;
        let there = &mut self.replicas[replica.index()];
        let (to, stranger) = (there.region, there.owner != organisation);
        there.coming += 1;
        let job = self.jobs.get_mut(key).expect("alive");
        there.coming_tokens += u64::from(job.input());
        job.place = Place::Sent(replica);
        job.sent_us = now_us;
        job.news_us = 0;
        job.probed = false;
        job.cached = 0;
        job.made = 0;
        job.stranger = stranger;
        job.rides = [None; 2];
        let gateway = &mut self.gateways[at.index()];
        gateway.known[replica.index()].in_flight += 1;
        let from = gateway.region;
        let way = self.way_us(from, to);
        self.job_mut(key).rtt_us = way;
        self.events.push(now_us + way, Event::Deliver(key));
    }

    fn forward(&mut self, key: JobKey, to: GatewayId) {
        let (from, there) = (self.job(key).at, self.gateways[to.index()].region);
        let way = self.way_us(self.gateways[from.index()].region, there);
        let job = self.job_mut(key);
        job.at = to;
        job.place = Place::Coming;
        self.events.push(self.now_us + way, Event::Forwarded(key));
    }

    /// The job comes back to its gateway from the replica it was sent to.
    fn back(&mut self, key: JobKey) -> ReplicaId {
        let job = self.job(key);
        let Place::Returning(replica) = job.place else { unreachable!("news of a leg comes while it returns") };
        let (at, rtt_us, ride) = (job.at, job.rtt_us, job.rides[1]);
        let known = &mut self.gateways[at.index()].known[replica.index()];
        known.in_flight -= 1;
        if let Some(seen) = ride {
            known.measured(rtt_us);
            known.learned(seen);
        }
        replica
    }

    fn first(&mut self, key: JobKey) {
        let job = self.job(key);
        let replica = job.place.replica().expect("it is at the replica that began it");
        let (at, rtt_us, ride, sent_us) = (job.at, job.rtt_us, job.rides[0], job.sent_us);
        if let Some(seen) = ride {
            let known = &mut self.gateways[at.index()].known[replica.index()];
            known.measured(rtt_us);
            known.learned(seen);
        }
        let after_us = self.now_us - sent_us;
        self.tell(key, replica, |ask, job| News::First { ask, after_us, cached: job.cached });
        self.pump(at);
    }

    fn done(&mut self, key: JobKey) {
        let replica = self.back(key);
        let job = self.job(key);
        let at = job.at;
        let after_us = self.now_us - job.sent_us;
        self.gateways[at.index()].known[replica.index()].served();
        self.bill(key, replica);
        self.tell(key, replica, |ask, job| News::Done { ask, after_us, made: job.made, cached: job.cached });
        self.end(key, Some(replica), End::Served);
        self.pump(at);
    }

    fn refused(&mut self, key: JobKey) {
        let replica = self.back(key);
        let counted = self.metrics.counts(self.job(key).request.at_us);
        self.metrics.counts.turned_away += u64::from(counted);
        let job = self.job_mut(key);
        job.attempts += 1;
        job.refusals += 1;
        job.refused_by.push(replica);
        job.place = Place::Coming;
        let at = job.at;
        self.tell(key, replica, |ask, _| News::Refused { ask });
        self.offer(key, true);
        self.pump(at);
    }

    /// The leg broke off: the replica died, or stopped it. The job goes on elsewhere with the text so far.
    fn broken(&mut self, key: JobKey, died: bool) {
        let replica = self.back(key);
        let now_us = self.now_us;
        self.bill(key, replica);
        let counted = self.metrics.counts(self.job(key).request.at_us);
        let count = if died { &mut self.metrics.counts.died } else { &mut self.metrics.counts.cut };
        *count += u64::from(counted);
        let at = self.job(key).at;
        if died {
            self.gateways[at.index()].known[replica.index()].ban(now_us);
            self.tell(key, replica, |ask, _| News::Died { ask });
        } else {
            self.tell(key, replica, |ask, _| News::Cut { ask });
        }
        let job = self.job_mut(key);
        job.delivered += job.made;
        job.refused_by.clear();
        job.refusals = 0;
        job.attempts += 1;
        job.place = Place::Coming;
        job.waits_since_us = now_us;
        self.offer(key, true);
        self.pump(at);
    }

    /// Counts and charges what the present leg delivered.
    fn bill(&mut self, key: JobKey, replica: ReplicaId) {
        let there = &self.replicas[replica.index()];
        let job = self.jobs.get_mut(key).expect("alive");
        let price: PriceRules = if job.stranger { there.price } else { self.setting.own_cost };
        let cost = self.metrics.bill(job, price, there.owner, job.made);
        job.cost_micro += cost;
        job.spilled |= job.stranger && job.made > 0;
    }

    fn refuse(&mut self, key: JobKey) {
        let job = self.job(key);
        let end = if job.delivered == 0 { End::Refused } else { End::Failed };
        let gateway = &self.gateways[job.at.index()];
        let idle = gateway.all.iter().any(|id| {
            let replica = &self.replicas[id.index()];
            replica.slots_free(replica.owner != gateway.organisation) > replica.coming
                && replica.engine.fits(job.input(), job.output_left())
        });
        if idle && self.metrics.counts(job.request.at_us) {
            self.metrics.counts.refused_while_free += 1;
        }
        self.end(key, None, end);
    }

    fn end(&mut self, key: JobKey, last: Option<ReplicaId>, end: End) {
        let job = self.jobs.remove(key).expect("it ends once");
        // A forwarded job's text has still to get from the gateway that routed it to its client's.
        let hop = if job.at == job.home { 0 } else { self.hop_us(&job) };
        let at_us = (self.now_us + hop).max(job.first_us.unwrap_or(0));
        self.metrics.ended(at_us, &job, last, end, &self.setting);
        if let Some(request) = self.workload.ended(at_us, &job.request)
            && request.at_us < self.setting.duration_s * 1_000_000
        {
            let at_us = request.at_us.max(self.now_us);
            let key = self.enter(request);
            self.events.push(at_us, Event::Arrive(key));
        }
        if self.next.is_none() {
            self.next = self.workload.next();
        }
    }

    fn hop_us(&self, job: &Job) -> u64 {
        self.ways.us(self.gateways[job.at.index()].region, self.gateways[job.home.index()].region)
    }

    // ---- At replicas -----------------------------------------------------------------------------------------------

    /// When a message that a replica sends now about this job arrives at its gateway. Nothing overtakes.
    fn news_at(&mut self, key: JobKey, replica: ReplicaId, from_us: u64) -> u64 {
        let at = self.job(key).at;
        let (from, to) = (self.replicas[replica.index()].region, self.gateways[at.index()].region);
        let way = self.way_us(from, to);
        let job = self.job_mut(key);
        job.news_us = (from_us + way).max(job.news_us + 1);
        job.news_us
    }

    /// The load that rides on a message to the gateway, unless that sees the replica anyway.
    fn ride(&self, key: JobKey, replica: ReplicaId) -> Option<Seen> {
        let job = self.job(key);
        (job.stranger && !self.setting.live).then(|| self.replicas[replica.index()].told(self.now_us))
    }

    fn deliver(&mut self, key: JobKey) {
        let now_us = self.now_us;
        let Place::Sent(replica) = self.job(key).place else { unreachable!("it was sent") };
        let silence_us = self.setting.network.silence_ms * 1000;
        let job = self.jobs.get_mut(key).expect("alive");
        let there = &mut self.replicas[replica.index()];
        there.coming -= 1;
        there.coming_tokens -= u64::from(job.input());
        if !there.up {
            job.place = Place::Returning(replica);
            let noticed = now_us.max(job.sent_us + silence_us);
            self.events.push(noticed, Event::Silent(key));
            return;
        }
        let work = Work { key, input: job.input(), output: job.output_left(), prefix: &job.request.prefix };
        let admission = there.admit(now_us, work, job.stranger);
        job.place = match admission {
            Admission::Runs | Admission::RunsInstead(..) => Place::Running(replica),
            Admission::Waits => Place::Waiting(replica),
            Admission::Refused => Place::Returning(replica),
        };
        match admission {
            Admission::Runs => {}
            Admission::RunsInstead(cut, made) => {
                let at_us = self.news_at(cut, replica, now_us);
                let ride = self.ride(cut, replica);
                let job = self.job_mut(cut);
                job.place = Place::Returning(replica);
                job.made = made;
                job.rides[1] = ride;
                self.events.push(at_us, Event::Cut(cut));
            }
            Admission::Waits => return,
            Admission::Refused => {
                let at_us = self.news_at(key, replica, now_us);
                let ride = self.ride(key, replica);
                let job = self.job_mut(key);
                job.rides[1] = ride;
                job.rtt_us += at_us - now_us;
                self.events.push(at_us, Event::Refused(key));
                return;
            }
        }
        let next = self.replicas[replica.index()].engine.next_at();
        self.wakes.set(replica, next);
    }

    /// A replica's engine is due.
    fn step(&mut self, replica: ReplicaId) {
        let mut told = std::mem::take(&mut self.told);
        told.clear();
        self.replicas[replica.index()].advance(self.now_us, &mut told);
        for progress in told.drain(..) {
            match progress {
                Progress::First { id, at_us, cached } => self.begun(JobKey::of(id), replica, at_us, cached),
                Progress::Done { id, at_us, .. } => self.finished(JobKey::of(id), replica, at_us),
                Progress::Tokens { .. } => {}
            }
        }
        self.told = told;
        let next = self.replicas[replica.index()].engine.next_at();
        self.wakes.set(replica, next);
        self.pump_watchers(replica);
    }

    fn begun(&mut self, key: JobKey, replica: ReplicaId, from_us: u64, cached: u32) {
        let at_us = self.news_at(key, replica, from_us);
        let ride = self.ride(key, replica);
        let job = self.job(key);
        let hop = if job.at == job.home { 0 } else { self.hop_us(job) };
        let job = self.job_mut(key);
        job.cached = cached;
        job.rides[0] = ride;
        job.rtt_us += at_us - from_us;
        job.first_us.get_or_insert(at_us + hop);
        self.events.push(at_us, Event::First(key));
    }

    fn finished(&mut self, key: JobKey, replica: ReplicaId, from_us: u64) {
        let at_us = self.news_at(key, replica, from_us);
        let job = self.job_mut(key);
        job.place = Place::Returning(replica);
        job.made = job.output_left();
        let stranger = job.stranger;
        let next = self.replicas[replica.index()].ended(key, stranger);
        if let Some(next) = next {
            let job = self.jobs.get_mut(next).expect("it waits, so it is alive");
            job.place = Place::Running(replica);
            let work = Work { key: next, input: job.input(), output: job.output_left(), prefix: &job.request.prefix };
            self.replicas[replica.index()].go_in(self.now_us, work);
        }
        let ride = self.ride(key, replica);
        self.job_mut(key).rides[1] = ride;
        self.events.push(at_us, Event::Done(key));
    }

    fn down(&mut self, replica: ReplicaId) {
        let there = &mut self.replicas[replica.index()];
        if let Some(churn) = there.churn {
            let back = self.churn.wait(churn.down_s * 1_000_000);
            self.events.push(self.now_us + back, Event::Up(replica));
        }
        if !there.up {
            return; // A fixed absence and a drawn one overlap: it stays down until the first of them ends.
        }
        let lost = self.jobs.at(replica);
        let made = self.replicas[replica.index()].die(self.now_us, &lost);
        self.wakes.set(replica, None);
        let silence_us = self.setting.network.silence_ms * 1000;
        for (key, made) in lost.into_iter().zip(made) {
            let at_us = self.news_at(key, replica, self.now_us);
            let job = self.job_mut(key);
            job.place = Place::Returning(replica);
            job.made = made;
            self.events.push(at_us + silence_us, Event::Silent(key));
        }
    }

    fn up(&mut self, replica: ReplicaId) {
        let there = &mut self.replicas[replica.index()];
        there.up = true;
        if let Some(churn) = there.churn {
            let life = self.churn.wait(churn.up_s * 1_000_000);
            self.events.push(self.now_us + life, Event::Down(replica));
        }
        self.pump_watchers(replica);
    }

    // ---- Probes ----------------------------------------------------------------------------------------------------

    /// Sends the probes that a policy ordered in passing.
    fn send_probes(&mut self, gateway: GatewayId) {
        if self.ordered.is_empty() {
            return;
        }
        let ordered = std::mem::take(&mut self.ordered);
        for (replica, input) in &ordered {
            self.send_probe(gateway, *replica, *input, None);
        }
        self.ordered = ordered;
    }

    fn probe_for(&mut self, key: JobKey, replicas: &Probes) {
        let (gateway, input) = (self.job(key).at, self.job(key).input());
        self.job_mut(key).place = Place::Probing(u32::try_from(replicas.len()).expect("at most PROBES_MAX"));
        for replica in replicas {
            self.send_probe(gateway, *replica, input, Some(key));
        }
    }

    fn send_probe(&mut self, gateway: GatewayId, replica: ReplicaId, input: u32, job: Option<JobKey>) {
        let sent_us = self.now_us;
        let probe = Probe { gateway, replica, job, input, sent_us, answer: None, turn: 0, out: true };
        let index = match self.probes_free.pop() {
            Some(index) => {
                let place = &mut self.probes[index as usize];
                *place = Probe { turn: place.turn.wrapping_add(1), ..probe };
                index
            }
            None => {
                self.probes.push(probe);
                u32::try_from(self.probes.len() - 1).expect("fewer than 2^32 probes are out")
            }
        };
        self.metrics.probes += 1;
        let (from, to) = (self.gateways[gateway.index()].region, self.replicas[replica.index()].region);
        let way = self.way_us(from, to);
        let turn = self.probes[index as usize].turn;
        self.events.push(sent_us + way, Event::Probe(index));
        self.events.push(sent_us + self.setting.network.probe_limit_ms * 1000, Event::ProbeLimit(index, turn));
    }

    /// A probe is at its replica. A dead one does not answer.
    fn probed(&mut self, index: u32) {
        let probe = self.probes[index as usize];
        let gateway = &self.gateways[probe.gateway.index()];
        let there = &self.replicas[probe.replica.index()];
        if !there.up {
            return;
        }
        let stranger = there.owner != gateway.organisation;
        let mut seen = if stranger { there.told(self.now_us) } else { there.seen(self.now_us, false) };
        seen.ttft_us = Some(there.predict_ttft_us(probe.input, &[]));
        seen.ttft_input = probe.input;
        self.probes[index as usize].answer = Some(seen);
        let (from, to) = (there.region, gateway.region);
        let way = self.way_us(from, to);
        self.events.push(self.now_us + way, Event::Answer(index));
    }

    fn answer(&mut self, index: u32) {
        let probe = self.probes[index as usize];
        let known = &mut self.gateways[probe.gateway.index()].known[probe.replica.index()];
        known.measured(self.now_us - probe.sent_us);
        let seen = probe.answer.expect("an answer was sent");
        known.learned(seen);
        known.banned_until_us = 0;
        self.tell_probe(probe.gateway, probe.replica, &News::Probed { seen });
        // After the limit it is late, not wrong: what it says is kept, and its job no longer waits for it.
        if probe.out {
            self.probes[index as usize].out = false;
            self.probe_ended(probe);
        } else {
            self.probes_free.push(index);
        }
    }

    fn probe_limit(&mut self, index: u32, turn: u32) {
        let probe = self.probes[index as usize];
        if probe.turn != turn {
            return;
        }
        if !probe.out {
            self.probes_free.push(index);
            return;
        }
        self.probes[index as usize].out = false;
        if probe.answer.is_none() {
            self.probes_free.push(index);
        }
        self.tell_probe(probe.gateway, probe.replica, &News::ProbeLost { after_us: self.now_us - probe.sent_us });
        self.probe_ended(probe);
    }

    fn probe_ended(&mut self, probe: Probe) {
        if let Some(key) = probe.job {
            let job = self.job_mut(key);
            let Place::Probing(left) = job.place else { unreachable!("it waits for its probes") };
            job.place = Place::Probing(left - 1);
            if left == 1 {
                job.place = Place::Coming;
                job.probed = true;
                self.offer(key, true);
            }
        }
        self.pump(probe.gateway);
    }
}

fn ask_of<'a>(key: JobKey, job: &'a Job, setting: &Setting) -> Ask<'a> {
    Ask {
        job: key.number(),
        client: job.request.client,
        session: job.request.session,
        input: job.input(),
        prefix: &job.request.prefix,
        prefix_block: setting.prefix_block,
        since_us: job.request.at_us,
        attempts: job.attempts,
        delivered: job.delivered,
        probed: job.probed,
        forwarded: job.at != job.home,
        ttft_limit_us: setting.slo.ttft_limit_us(job.request.input),
    }
}

/// Whether an own replica is free for a job: nothing pends there, a slot is open for the owner, and the first token is
/// predicted to be in time. An idle one is free whatever it predicts. Source: `docs/routing.md`, as `protocol` has it.
fn free(replica: &Replica, ask: &Ask<'_>) -> bool {
    let load = replica.engine.load();
    let open = replica.slots_free(false) > replica.coming && load.waiting == 0;
    open && (load.running + replica.coming == 0 || replica.predict_ttft_us(ask.input, ask.prefix) <= ask.ttft_limit_us)
}
