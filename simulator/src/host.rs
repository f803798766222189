//! A node in the world: its peer, its disk, its GPU, its clerk, and how the peer is told what happens.
//! Invariant: a peer hears only what was meant for its present life, and in order.

use crate::adversary::{Adversary, Mischief};
use crate::books::Clerk;
use crate::check::Rule;
use crate::data::regions;
use crate::draws::key;
use crate::faults::Torn;
use crate::gpu::{Gpu, Made};
use crate::idle::{Levels, Since};
use crate::network::HostId;
use crate::oracle;
use crate::scenario::{Fleet, Scenario};
use crate::timeline::START;
use crate::world::{Happening, World};
use spillway_ledger::{Account, Credits, Digest, NodeId, Price, SecretKey, Signed};
use spillway_protocol::peer::Identity;
use spillway_protocol::{
    BackendError, Capacity, Event, Kind, MarketConfig, Now, Offer, Peer, ProbeId, Record, RecordKind, Selling, WorkId,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// Ticks in a row at one moment after which time counts as standing still.
const SPINS_MAX: u32 = 1000;

/// A node: its peer, and all that its peer needs.
pub(crate) struct Host {
    pub(crate) name: String,
    pub(crate) fleet: String,
    pub(crate) config: MarketConfig,
    pub(crate) gpu: Option<Gpu>,
    /// How it breaks the rules, if it does, and what its driver needs for that.
    pub(crate) adversary: Option<Adversary>,
    pub(crate) mischief: Option<Mischief>,
    pub(crate) node_secret: SecretKey,
    pub(crate) account_secret: SecretKey,
    pub(crate) node: NodeId,
    pub(crate) account: Account,
    /// `None` while it is down.
    pub(crate) peer: Option<Peer>,
    /// Counts restarts: what was meant for an earlier life is dropped.
    pub(crate) life: u32,
    /// Whether others see at once that it is down.
    pub(crate) silent: bool,
    /// Crashes at the next record: where, whether silently, and for how long.
    pub(crate) torn: Option<(Torn, bool, u64)>,
    /// It starts only when it takes another's place.
    pub(crate) spare: bool,
    /// When its fleet starts, in microseconds from the beginning.
    pub(crate) starts_us: u64,
    /// When it left for good.
    pub(crate) left: Option<Now>,
    /// By how much its clock is ahead, in microseconds.
    pub(crate) skew_us: i64,
    pub(crate) frozen: bool,
    /// What came while it was frozen.
    pub(crate) inbox: VecDeque<Event>,
    pub(crate) stalled_until: Now,
    /// Work that is not the owner's.
    pub(crate) for_strangers: BTreeSet<WorkId>,
    /// What its GPU has said for strangers, and what of it went out, in bytes.
    pub(crate) made: u64,
    pub(crate) sent: u64,
    pub(crate) gpu_down: bool,
    /// When its GPU last failed.
    pub(crate) gpu_failed: Now,
    /// It is up and not frozen.
    pub(crate) awake: Since,
    /// An own job could start.
    pub(crate) own_free: Since,
    /// A stranger's job could start.
    pub(crate) sold_free: Levels,
    pub(crate) disk: BTreeMap<(RecordKind, Vec<u8>), Vec<u8>>,
    pub(crate) clerk: Clerk,
    /// News from the ledger on its way, in order.
    pub(crate) news: VecDeque<(Now, Event)>,
    pub(crate) probes: BTreeSet<ProbeId>,
    /// Probes to answer: who asked, in which life, under which number.
    pub(crate) probed: BTreeMap<ProbeId, (HostId, u32, ProbeId)>,
    pub(crate) offers: Vec<Signed<Offer>>,
    /// The streams and probes that came in so far.
    pub(crate) called: u64,
    /// It is being told that a deposit is locked: whoever goes on now has waited for the ledger.
    pub(crate) hears_of_deposit: bool,
    tick_at: Option<Now>,
}

impl Host {
    /// The `number`-th node of a fleet, not yet started.
    pub(crate) fn new(seed: u64, id: HostId, scenario: &Scenario, fleet: &Fleet, number: u32) -> Self {
        let node_secret = SecretKey::generate(key(seed, "node", id as u64));
        let account_secret = SecretKey::generate(key(seed, "account", id as u64));
        Self {
            name: format!("{}-{number}", fleet.name),
            fleet: fleet.name.clone(),
            config: config(scenario, fleet),
            gpu: fleet.gpu.clone().map(Gpu::new),
            node: NodeId(node_secret.public()),
            account: Account(account_secret.public()),
            adversary: fleet.adversary,
            mischief: fleet.adversary.map(|kind| Mischief::new(seed, id, kind)),
            node_secret,
            account_secret,
            peer: None,
            life: 0,
            silent: false,
            torn: None,
            spare: false,
            starts_us: fleet.starts_s.saturating_mul(1_000_000),
            left: None,
            skew_us: 0,
            frozen: false,
            inbox: VecDeque::new(),
            stalled_until: START,
            for_strangers: BTreeSet::new(),
            made: 0,
            sent: 0,
            gpu_down: false,
            gpu_failed: Now(0),
            awake: Since::default(),
            own_free: Since::default(),
            sold_free: Levels::default(),
            disk: BTreeMap::new(),
            clerk: Clerk::default(),
            news: VecDeque::new(),
            probes: BTreeSet::new(),
            probed: BTreeMap::new(),
            offers: Vec::new(),
            called: 0,
            hears_of_deposit: false,
            tick_at: None,
        }
    }
}

impl Host {
    /// What its clock shows.
    pub(crate) const fn clock(&self, now: Now) -> Now {
        Now(now.0.saturating_add_signed(self.skew_us))
    }

    /// When its peer wants to be woken, by the world's clock.
    fn deadline(&self) -> Option<Now> {
        let due = self.peer.as_ref()?.deadline()?;
        Some(Now(due.0.saturating_add_signed(-self.skew_us)))
    }
}

/// A region's index.
pub(crate) fn region(name: &str) -> usize {
    regions::region(name).expect("validated with the scenario")
}

fn config(scenario: &Scenario, fleet: &Fleet) -> MarketConfig {
    let rules = &scenario.market;
    let input = Credits::new(fleet.price_input_micro);
    MarketConfig {
        region: fleet.region.clone(),
        provide: fleet.provide,
        price: Price {
            input,
            cached: fleet.price_cached_micro.map_or(input, Credits::new),
            output: Credits::new(fleet.price_output_micro),
        },
        selling: Selling {
            mode: fleet.sell.parse().expect("validated with the scenario"),
            reserved_slots: fleet.reserved_slots,
        },
        preempt: fleet.preempt,
        window: rules.window,
        window_start: rules.window,
        window_max: rules.window * 16,
        deposit: Credits::new(rules.deposit_micro),
        sessions_ahead: rules.sessions_ahead,
        session_lifetime: Duration::from_secs(rules.session_s),
        session_grace: Duration::from_secs(rules.grace_s),
        settle_after: Duration::from_secs(rules.settle_after_s),
        queue_max: usize::try_from(rules.queue_max).expect("validated to be small"),
        queue_wait: Duration::from_secs(rules.queue_wait_s),
        ..MarketConfig::default()
    }
}

impl World {
    /// Starts a node with what its disk holds.
    pub(crate) fn start(&mut self, id: HostId) {
        let host = &mut self.hosts[id];
        let restored = host.disk.values();
        let restored = restored.map(|bytes| Record::from_bytes(bytes).expect("written by a peer"));
        let secret = |secret: &SecretKey| SecretKey::from_bytes(&secret.to_bytes());
        let identity =
            Identity { network: self.market, node: secret(&host.node_secret), account: secret(&host.account_secret) };
        let seed = key(self.seed, &host.name, u64::from(host.life));
        let mut peer = Peer::new(host.config.clone(), identity, seed, restored.collect());
        (self.hook)(&host.name, &mut peer);
        host.peer = Some(peer);
        host.silent = false;
        // Each life has its own clock.
        let most = self.scenario.faults.clock_skew_ms * 1000;
        let skew = if most == 0 { 0 } else { self.fault_draws.below(2 * most + 1) as i64 - most as i64 };
        self.hosts[id].skew_us = skew;
        let host = &mut self.hosts[id];
        let (life, account, gpu_down) = (host.life, host.account, host.gpu_down);
        self.deliver(id, life, Event::Addresses(vec![format!("/sim/{id}")]));
        if !gpu_down {
            let capacity = self.capacity(id);
            self.deliver(id, life, capacity);
        }
        for event in self.authority.snapshot(&account) {
            self.tell_news(id, event);
        }
        for other in 0..self.hosts.len() {
            if self.hosts[other].peer.is_some() {
                self.exchange(other, id);
            }
        }
        self.begin_mischief(id);
    }

    /// What a node's GPU serves.
    pub(crate) fn capacity(&self, host: HostId) -> Event {
        let Some(gpu) = &self.hosts[host].gpu else { return Event::Capacity(Vec::new()) };
        let rules = gpu.rules();
        Event::Capacity(vec![Capacity {
            model: rules.model.clone(),
            weights: Digest::of("spillway-simulator weights", &[rules.model.as_bytes()]),
            quantization: String::new(),
            engine: "simulated".into(),
            context_max: 0,
            kinds: vec![Kind::Chat, Kind::Completion],
            slots: rules.slots,
            rented: 0,
            replicas: 1,
            token_price: spillway_ledger::Price::ZERO,
            continues: true,
            healthy: !self.hosts[host].gpu_down,
        }])
    }

    /// Whether a node has no use for offers: there may be very many of its kind.
    pub(crate) fn is_deaf(&self, id: HostId) -> bool {
        self.hosts[id].adversary.is_some_and(Adversary::is_provider)
    }

    /// Gives `to` what `from` offers, as peers do when they connect.
    pub(crate) fn exchange(&mut self, from: HostId, to: HostId) {
        if from == to || self.is_deaf(to) || !self.network.connected(from, to) {
            return;
        }
        for offer in self.hosts[from].offers.clone() {
            let wait = self.network.delay(self.line.now(), from, to, 1024);
            self.line.after(wait, Happening::Offered(from, to, Box::new(offer)));
        }
    }

    /// Tells a peer something, now or when it thaws.
    pub(crate) fn deliver(&mut self, id: HostId, life: u32, event: Event) {
        let host = &mut self.hosts[id];
        if host.life != life || host.peer.is_none() {
            return;
        }
        if host.frozen {
            host.inbox.push_back(event);
            return;
        }
        let event = if host.adversary.is_some() {
            let Some(event) = self.colour(id, event) else { return };
            event
        } else {
            event
        };
        let host = &mut self.hosts[id];
        self.events += 1;
        let now = self.line.now();
        crate::log::note(&mut self.log, now, id, &event);
        if self.trace {
            eprintln!("{:>10.6} {:<12} <- {}", self.line.elapsed().as_secs_f64(), host.name, crate::log::brief(&event));
        }
        let over = if let Event::StreamClosed(stream) = event { Some(stream) } else { None };
        host.hears_of_deposit = matches!(event, Event::SessionOpened { .. } | Event::SessionToppedUp { .. });
        if let Event::OfferReceived(offer) = &event
            && let Some(from) = self.by_node.get(&offer.value().node)
        {
            self.idle.learns(now, id, *from, offer.value());
        }
        if let Event::OfferHeld { offer, until_ms: 0 } = &event
            && let Some(from) = self.by_node.get(&offer.value().node)
        {
            self.idle.unlearns(id, *from, offer.value());
        }
        if let Event::FrameReceived { stream, frame: spillway_protocol::Frame::Chunk { .. }, text, .. } = &event {
            self.checks.receives(id, *stream, text.len() as u64);
        }
        if let Event::SessionSettled { session, settled, .. } = &event {
            self.checks.told_settled(id, *session, *settled);
        }
        if let Some(stream) = over {
            self.idle.told(now, id, stream);
            if matches!(stream, spillway_protocol::StreamId::Out(_)) {
                // What the consumer does now, it does without this leg.
                self.checks.leg_over(id, stream);
            }
        }
        let clock = host.clock(now);
        host.peer.as_mut().expect("seen above").handle(clock, event);
        self.carry(id);
        self.hosts[id].hears_of_deposit = false;
        if let Some(stream) = over {
            self.checks.leg_over(id, stream);
        }
        self.note_state(id);
        self.plan_tick(id);
    }

    /// Plans to come back at the peer's deadline.
    pub(crate) fn plan_tick(&mut self, id: HostId) {
        let now = self.line.now();
        let host = &mut self.hosts[id];
        let Some(due) = host.deadline() else { return };
        let due = due.max(now);
        if host.tick_at.is_none_or(|at| due < at || at < now) {
            host.tick_at = Some(due);
            self.line.at(due, Happening::Tick(id, host.life));
        }
    }

    pub(crate) fn tick(&mut self, id: HostId, life: u32) {
        let now = self.line.now();
        let host = &mut self.hosts[id];
        if host.life != life || host.tick_at != Some(now) || host.frozen {
            return;
        }
        host.tick_at = None;
        let Some(due) = host.deadline() else { return };
        if due > now {
            return self.plan_tick(id);
        }
        self.spins = if self.spins.0 == now { (now, self.spins.1 + 1) } else { (now, 0) };
        if self.spins.1 > SPINS_MAX {
            let name = &self.hosts[id].name;
            return self.checks.broken(Rule::Spinning, format!("{name} always wants to be woken at once"));
        }
        self.deliver(id, life, Event::Tick);
    }

    /// Forgets what was planned for the earlier life.
    pub(crate) fn forget_tick(&mut self, id: HostId) {
        self.hosts[id].tick_at = None;
    }

    pub(crate) fn step_gpu(&mut self, id: HostId, life: u32, work: WorkId) {
        let host = &mut self.hosts[id];
        if host.life != life {
            return;
        }
        if host.stalled_until > self.line.now() {
            return self.line.at(host.stalled_until, Happening::Step(id, life, work));
        }
        let Some((made, wait)) = host.gpu.as_mut().and_then(|gpu| gpu.step(work)) else { return };
        if let Some(wait) = wait {
            self.line.after(wait, Happening::Step(id, life, work));
        }
        let event = match made {
            Made::Output(bytes) => {
                let text = oracle::text_of(&bytes).to_vec();
                if host.for_strangers.contains(&work) {
                    host.made += text.len() as u64;
                }
                Event::Output { work, bytes, text }
            }
            Made::Finished => Event::Finished { work, finish: "stop".into() },
            Made::Rejected => {
                let error = BackendError::Rejected { status: 400, message: "not a request".into() };
                Event::BackendFailed { work, error }
            }
        };
        if wait.is_none() {
            self.hosts[id].for_strangers.remove(&work);
        }
        self.next_work(id);
        self.note_state(id);
        self.deliver(id, life, event);
    }

    /// Starts what waits for a slot.
    pub(crate) fn next_work(&mut self, id: HostId) {
        while let Some((work, wait)) = self.hosts[id].gpu.as_mut().and_then(Gpu::next) {
            self.line.after(wait, Happening::Step(id, self.hosts[id].life, work));
        }
    }
}
