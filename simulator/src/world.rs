//! The world: virtual time, the nodes in it, and what happens next.
//! Invariant: everything that happens follows from the seed and the scenario; the hash of what happened proves it.

use crate::books::{Authority, Verdict, genesis};
use crate::check::{Checks, Rule};
use crate::draws::Draws;
use crate::faults::{self, Fault};
use crate::gpu::Gpu;
use crate::host::{Host, region};
use crate::idle::Idle;
use crate::network::{HostId, LinkId, Network, Parcel, Side};
use crate::scenario::Scenario;
use crate::timeline::{START, Timeline};
use crate::workload::Source;
use spillway_ledger::{Account, Credits, Entry, JobId, NetworkId, NodeId, SessionId, Signed, decode};
use spillway_protocol::{Event, Now, Offer, Peer, ProbeId, ProbeReply, WorkId};
use std::collections::BTreeMap;
use std::time::Duration;

/// After the last fault and the last client, jobs have that long to end.
const CALM: Duration = Duration::from_secs(180);
/// After the last fault has ended, peers have that long to find each other again; jobs that come later may not fail.
const RECOVERY: Duration = Duration::from_secs(20);
/// After that, and the rest before settlement, claims have that long to reach the ledger.
const SETTLING: Duration = Duration::from_secs(60);

/// Something that is to happen.
#[derive(Clone, Debug)]
pub enum Happening {
    /// A node starts.
    Start(HostId),
    /// A peer is told something, if it is still the same life.
    Tell(HostId, u32, Box<Event>),
    /// A peer's deadline.
    Tick(HostId, u32),
    /// Something may have arrived on a stream.
    Arrive(LinkId, Side),
    /// The other side of a stream is gone.
    Broken(LinkId, Side),
    /// A call has waited long enough.
    CallOver(LinkId),
    /// A probe arrives: from, to, the prober's number, and its bytes.
    Probed(HostId, HostId, u32, ProbeId, Vec<u8>),
    /// A probe's answer arrives, or its time is up.
    ProbeOver(HostId, u32, ProbeId, Option<Vec<u8>>),
    /// An offer arrives: from, to.
    Offered(HostId, HostId, Box<Signed<Offer>>),
    /// A GPU's work goes on.
    Step(HostId, u32, WorkId),
    /// An adversary does something of its own accord.
    Mischief(HostId, u32),
    /// An entry reaches the authority.
    Submitted(HostId, u32, Box<Signed<Entry>>),
    /// A clerk has waited long enough for its verdict.
    Resubmit(HostId, u32, [u8; 16]),
    /// The authority makes a block.
    Block,
    /// A verdict reaches a clerk.
    Heard(HostId, u32, [u8; 16], Verdict),
    /// News from the ledger may have arrived.
    News(HostId, u32),
    /// A client comes.
    Client(usize),
    /// A client leaves.
    Leaves(JobId),
    /// Something goes wrong.
    Fault(Fault),
    /// A frozen process goes on.
    Thaw(HostId),
    /// A failed GPU works again.
    GpuWell(HostId),
    /// A cut heals.
    Heal(u64),
    /// A cut has lasted so long that connections across it are given up.
    Sever(u64),
}

/// Called for each peer that is made: its node's name, and the peer.
pub type Hook = Box<dyn Fn(&str, &mut Peer)>;

/// The whole of it.
pub struct World {
    pub(crate) seed: u64,
    pub(crate) scenario: Scenario,
    pub(crate) line: Timeline<Happening>,
    pub(crate) network: Network,
    pub(crate) hosts: Vec<Host>,
    pub(crate) authority: Authority,
    pub(crate) checks: Checks,
    pub(crate) fault_draws: Draws,
    pub(crate) cuts: u64,
    pub(crate) market: NetworkId,
    pub(crate) trace: bool,
    pub(crate) by_account: BTreeMap<Account, Vec<HostId>>,
    pub(crate) by_node: BTreeMap<NodeId, HostId>,
    pub(crate) idle: Idle,
    /// When a provider leaves for good, in microseconds from the beginning, and who takes its place.
    pub(crate) churn: Vec<(u64, HostId)>,
    sources: Vec<Source>,
    fleets: BTreeMap<String, Vec<HostId>>,
    pub(crate) hook: Hook,
    pub(crate) log: blake3::Hasher,
    pub(crate) events: u64,
    pub(crate) spins: (Now, u32),
}

impl World {
    /// A world that has not begun.
    #[must_use]
    pub fn new(seed: u64, scenario: Scenario, hook: Hook, trace: bool) -> Self {
        let (genesis, issuer) = genesis(seed, &scenario);
        let mut hosts: Vec<Host> = Vec::new();
        let mut regions = Vec::new();
        let mut balances = Vec::new();
        let mut fleets: BTreeMap<String, Vec<HostId>> = BTreeMap::new();
        let mut by_account: BTreeMap<Account, Vec<HostId>> = BTreeMap::new();
        let mut by_node = BTreeMap::new();
        let mut idle = Idle::default();
        for fleet in &scenario.fleets {
            for number in 0..fleet.count {
                let id = hosts.len();
                let host = Host::new(seed, id, &scenario, fleet, number);
                regions.push(region(&fleet.region));
                balances.push((host.account, Credits::new(fleet.balance_micro)));
                fleets.entry(fleet.name.clone()).or_default().push(id);
                by_account.entry(host.account).or_default().push(id);
                by_node.insert(host.node, id);
                idle.balance(START, host.account, Credits::new(fleet.balance_micro));
                hosts.push(host);
            }
        }
        // Newcomers, each to take the place of one who leaves. Gateways stay: their clients have nowhere else to go.
        let mut churn = Vec::new();
        let mut churn_draws = Draws::new(seed, "churn");
        for fleet in &scenario.fleets {
            let asked = scenario.clients.iter().any(|clients| clients.fleet == fleet.name);
            let rate = u64::from(fleet.count) * scenario.faults.replaced_per_mille_per_hour;
            if !fleet.provide || asked || rate == 0 {
                continue;
            }
            let mut at = 0;
            for number in fleet.count.. {
                at += churn_draws.wait(3_600_000_000_000 / rate);
                if at >= scenario.faults.until_s * 1_000_000 {
                    break;
                }
                let id = hosts.len();
                let mut host = Host::new(seed, id, &scenario, fleet, number);
                host.spare = true;
                regions.push(region(&fleet.region));
                balances.push((host.account, Credits::new(fleet.balance_micro)));
                fleets.entry(fleet.name.clone()).or_default().push(id);
                by_account.entry(host.account).or_default().push(id);
                by_node.insert(host.node, id);
                idle.balance(START, host.account, Credits::new(fleet.balance_micro));
                hosts.push(host);
                churn.push((at, id));
            }
        }
        let nat = hosts.iter().map(|host| {
            let fleet = scenario.fleets.iter().find(|fleet| fleet.name == host.fleet);
            fleet.map_or(crate::network::Nat::Open, |fleet| fleet.nat)
        });
        let nat = nat.collect();
        // The authority is the last place in the network.
        regions.push(regions.first().copied().unwrap_or_default());
        let sources = scenario.clients.iter().cloned().enumerate();
        let recovered = Duration::from_millis(scenario.faults.length_ms[1]) + RECOVERY;
        let calm = match scenario.faults.until_s {
            0 => START,
            until_s => START.after(Duration::from_secs(until_s)).after(recovered),
        };
        Self {
            seed,
            network: Network::new(
                seed,
                scenario.network,
                regions,
                START.after(Duration::from_secs(scenario.faults.until_s)),
            )
            .with_nat(nat),
            authority: Authority::new(&genesis, &issuer, &balances),
            checks: Checks::new(seed, calm, hosts.iter().map(|host| host.adversary).collect()),
            fault_draws: Draws::new(seed, "faults"),
            market: genesis.network_id(),
            line: Timeline::new(),
            sources: sources.map(|(index, rules)| Source::new(seed, index, rules)).collect(),
            hosts,
            by_account,
            by_node,
            idle,
            churn,
            fleets,
            hook,
            scenario,
            trace,
            cuts: 0,
            log: blake3::Hasher::new(),
            events: 0,
            spins: (START, 0),
        }
    }

    /// Everything, from the first node's start until the last deposit is back.
    pub fn run(&mut self) {
        for host in (0..self.hosts.len()).filter(|host| !self.hosts[*host].spare).collect::<Vec<_>>() {
            let wait = self.fault_draws.below(500_000);
            self.line.after(self.hosts[host].starts_us + wait, Happening::Start(host));
        }
        for source in 0..self.sources.len() {
            let wait = 1_000_000 + self.sources[source].wait();
            self.line.after(wait, Happening::Client(source));
        }
        faults::plan(self);
        let over = START.after(Duration::from_secs(self.scenario.duration_s.max(self.scenario.faults.until_s)));
        let ended = over.after(CALM);
        if !self.until(ended) {
            return;
        }
        self.checks.at(ended);
        self.checks.all_ended();
        self.nothing_is_left();
        let settled = ended.after(Duration::from_secs(self.scenario.market.settle_after_s)).after(SETTLING);
        if !self.until(settled) {
            return;
        }
        self.checks.at(settled);
        let paid: BTreeMap<SessionId, (Credits, bool)> = self
            .authority
            .sessions()
            .filter(|(_, seen)| self.honest(&seen.consumer))
            .map(|(id, seen)| (*id, (seen.settled, self.honest(&seen.provider) && !self.left(&seen.provider))))
            .collect();
        self.checks.all_settled(|session| paid.get(session).copied());
        // What was opened for jobs that never came ends, too. Whose clock is ahead asks too early, and again a minute later.
        let again = if self.scenario.faults.clock_skew_ms > 0 { SETTLING } else { Duration::ZERO };
        let mut back = settled;
        loop {
            let last = self.authority.sessions().map(|(_, seen)| seen.expires_ms).max().unwrap_or_default();
            let due =
                Now::from_ms(last).after(Duration::from_secs(self.scenario.market.grace_s)).after(SETTLING + again);
            if due <= back {
                break;
            }
            back = due;
            if !self.until(back) {
                return;
            }
        }
        self.checks.at(self.line.now());
        // An adversary may leave its own money where it is.
        let theirs = self.authority.sessions().filter(|(_, seen)| !seen.closed && !self.honest(&seen.consumer));
        let theirs = theirs.fold(0, |sum, (_, seen)| sum + (seen.deposit.micro() - seen.settled.micro()));
        let locked = self.authority.book.locked().saturating_sub(Credits::new(theirs));
        if locked > Credits::ZERO {
            self.checks.broken(Rule::MoneyStuck, format!("{locked} are still locked after every session's grace"));
        }
        let busy = self
            .hosts
            .iter()
            .find(|host| host.adversary.is_none() && !host.clerk.is_idle())
            .map(|host| host.name.clone());
        if let Some(name) = busy {
            self.checks.broken(Rule::LeftBehind, format!("{name} still tries to bring an entry to the ledger"));
        }
        // Each node has its deadline, and offers on their way to all others.
        let (ahead, hosts) = (self.line.ahead(), self.hosts.len());
        if ahead > 64 + 4 * hosts * hosts {
            self.checks
                .broken(Rule::LeftBehind, format!("{ahead} things are still to happen among {hosts} idle nodes"));
        }
    }

    /// Goes on until that moment; `false` if time stands still or the first rule is broken.
    fn until(&mut self, end: Now) -> bool {
        while let Some(what) = self.line.next(end) {
            self.checks.at(self.line.now());
            self.happen(what);
            if !self.checks.violations().is_empty() {
                return false;
            }
        }
        true
    }

    fn nothing_is_left(&mut self) {
        let mut left = Vec::new();
        let honest = |host: HostId| self.hosts[host].adversary.is_none();
        let cheated = self.hosts.iter().any(|host| host.adversary.is_some_and(|kind| !kind.is_provider()));
        let streams = self.network.links(|link| link.ends.iter().all(|end| honest(end.host))).len();
        if streams > 0 {
            left.push(format!("{streams} streams"));
        }
        for host in self.hosts.iter().filter(|host| host.adversary.is_none()) {
            // Who cheats may go on asking for longer than the calm lasts.
            let load = if cheated { 0 } else { host.gpu.as_ref().map_or(0, Gpu::load) };
            let things =
                [(load, "pieces of work"), (host.probes.len(), "probes"), (host.probed.len(), "unanswered probes")];
            for (count, what) in things.into_iter().filter(|(count, _)| *count > 0) {
                left.push(format!("{count} {what} at {}", host.name));
            }
        }
        if !left.is_empty() {
            self.checks.broken(Rule::LeftBehind, left.join(", "));
        }
    }

    // ---- what happens ----

    fn happen(&mut self, what: Happening) {
        match what {
            Happening::Start(host) => self.start(host),
            Happening::Tell(host, life, event) => self.deliver(host, life, *event),
            Happening::Tick(host, life) => self.tick(host, life),
            Happening::Arrive(link, side) => self.arrive(link, side),
            Happening::Broken(link, side) => self.send_parcel(link, side, Parcel::Closed),
            Happening::CallOver(link) => {
                if self.network.link(link).is_some_and(|found| !found.opened) {
                    self.end_stream(link, 0);
                    self.end_stream(link, 1);
                }
            }
            Happening::Probed(from, to, life, probe, bytes) => self.probed(from, to, life, probe, &bytes),
            Happening::ProbeOver(host, life, probe, bytes) => {
                if self.hosts[host].life != life || !self.hosts[host].probes.remove(&probe) {
                    return; // Answered before, or asked in an earlier life.
                }
                let reply = bytes.map(|bytes| decode::<ProbeReply>(&bytes).expect("encoded by a peer"));
                self.deliver(host, life, Event::ProbeReplied { probe, reply });
            }
            Happening::Offered(from, to, offer) => {
                if self.network.carries(from, to) {
                    let life = self.hosts[to].life;
                    self.deliver(to, life, Event::OfferReceived(*offer));
                    self.ping(to, from);
                }
            }
            Happening::Step(host, life, work) => self.step_gpu(host, life, work),
            Happening::Mischief(host, life) => self.mischief(host, life),
            Happening::Submitted(host, life, entry) => {
                if self.network.carries(host, self.hosts.len()) {
                    self.authority.submit(host, life, *entry);
                    self.plan_block();
                }
            }
            Happening::Resubmit(host, life, business) => {
                if self.hosts[host].life == life
                    && let Some(entry) = self.hosts[host].clerk.unanswered(business)
                {
                    self.hand_in(host, entry);
                }
            }
            Happening::Block => self.block(),
            Happening::Heard(host, life, business, verdict) => self.heard(host, life, business, &verdict),
            Happening::News(host, life) => {
                if self.hosts[host].life == life {
                    self.read_news(host);
                }
            }
            Happening::Client(source) => self.client(source),
            Happening::Leaves(job) => {
                if let Some(host) = self.checks.leaves(&job) {
                    let life = self.hosts[host].life;
                    self.deliver(host, life, Event::ClientLeft(job));
                }
            }
            Happening::Fault(fault) => faults::strike(self, fault),
            Happening::Thaw(host) => {
                self.hosts[host].frozen = false;
                self.note_state(host);
                while let Some(event) = self.hosts[host].inbox.pop_front() {
                    let life = self.hosts[host].life;
                    self.deliver(host, life, event);
                }
                self.plan_tick(host);
            }
            Happening::GpuWell(host) => {
                self.hosts[host].gpu_down = false;
                let (life, event) = (self.hosts[host].life, self.capacity(host));
                self.deliver(host, life, event);
            }
            Happening::Heal(cut) => faults::heal(self, cut),
            Happening::Sever(cut) => faults::sever(self, cut),
        }
    }

    /// A node pings those that it happens to be connected to: a third of all. The others' distances it has to estimate.
    fn ping(&mut self, from: HostId, to: HostId) {
        if (from + to).is_multiple_of(3) && self.network.can_meet(from, to) {
            let now = self.line.now();
            let wait = self.network.delay(now, from, to, 64) + self.network.delay(now, to, from, 64);
            let (life, peer) = (self.hosts[from].life, self.hosts[to].node);
            let event = Event::RoundTrip { peer, rtt: Duration::from_micros(wait) };
            self.line.after(wait, Happening::Tell(from, life, Box::new(event)));
        }
    }

    // ---- clients ----

    fn client(&mut self, source: usize) {
        let now = self.line.elapsed();
        if now >= Duration::from_secs(self.scenario.duration_s) {
            return;
        }
        let gateways = &self.fleets[self.sources[source].fleet()];
        let client = self.sources[source].client(gateways.len());
        let host = gateways[client.gateway];
        let wait = self.sources[source].wait();
        self.line.after(wait, Happening::Client(source));
        if self.hosts[host].peer.is_none() {
            return self.checks.turned_away();
        }
        self.checks.submitted(host, &client.job);
        if let Some(leaves) = client.leaves {
            self.line.after(leaves, Happening::Leaves(client.job.id));
        }
        let life = self.hosts[host].life;
        self.deliver(host, life, Event::Submit(client.job));
    }

    // ---- figures ----

    /// The fleets' nodes, by name.
    pub(crate) fn fleets(&self) -> impl Iterator<Item = (&String, &Vec<HostId>)> {
        self.fleets.iter()
    }

    /// The hash of all that peers were told, in order.
    #[must_use]
    pub fn hash(&self) -> String {
        self.log.finalize().to_hex().to_string()
    }

    /// How many times a peer was told something.
    #[must_use]
    pub const fn events(&self) -> u64 {
        self.events
    }

    /// What was watched.
    #[must_use]
    pub const fn checks(&self) -> &Checks {
        &self.checks
    }

    /// What these nodes were paid for serving strangers, in micro-credits.
    pub(crate) fn earned(&self, hosts: &[HostId]) -> u64 {
        let theirs = |account: &Account| hosts.iter().any(|host| self.hosts[*host].account == *account);
        let sessions = self.authority.sessions().filter(|(_, seen)| theirs(&seen.provider));
        sessions.map(|(_, seen)| seen.to_provider.micro()).sum()
    }

    /// What sessions have settled, all shares together, and what providers had of it, in micro-credits.
    #[must_use]
    pub fn settled(&self) -> (u64, u64) {
        let sessions = self.authority.sessions();
        sessions
            .fold((0, 0), |(all, theirs), (_, seen)| (all + seen.settled.micro(), theirs + seen.to_provider.micro()))
    }
}
