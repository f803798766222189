//! Everything around the validators: time, the network, what breaks, and clients.
//! Invariant: one seed, one history; nothing here asks the machine's clock or its randomness.

use std::collections::BTreeMap;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use arc_malachitebft_core_consensus::Input;
use spillway_ledger::{Action, Credits, Digest, Genesis, PublicKey, Replica, Replicator, SecretKey, Split};
use spillway_simulator::draws::{Draws, key};
use tempfile::TempDir;

use crate::app::Failure;
use crate::check::{Checks, Tally};
use crate::context::Ledger;
use crate::host::{Host, lock};
use crate::log::Log;
use crate::node::{Machine, Out, Seat, Stop, Target, Wire};
use crate::plan::{Kill, Plan, SECOND_US, Sabotage, index, settings};

/// When the network began, in Unix milliseconds.
const START_MS: u64 = 1_790_000_000_000;
/// How many more heights each honest validator must decide once the faults have stopped, how far behind the first it
/// may be then, and by when.
const FURTHER: u64 = 3;
const BEHIND: u64 = 1;
const HEALED_US: u64 = 60 * SECOND_US;
/// How soon somebody starts a validator that ended by itself, in microseconds.
const RESTART_US: u64 = 300_000;
/// The most things that happen in a run: far above any that ends.
const EVENTS_MAX: u64 = 2_000_000;

/// Something that happens at a moment.
enum Happening {
    Start(usize),
    Arrives {
        from: usize,
        to: usize,
        wire: Rc<Wire>,
    },
    Timer {
        node: usize,
        life: u64,
        id: u64,
    },
    Answered {
        node: usize,
        life: u64,
        input: Box<Input<Ledger>>,
    },
    IdleOver {
        node: usize,
        life: u64,
        height: u64,
    },
    Status {
        node: usize,
        life: u64,
    },
    Client,
    Kill(Kill),
    /// A kill that found nothing to interrupt strikes now.
    Strike {
        node: usize,
        life: u64,
        down_us: u64,
    },
}

/// A validator's place, running or not.
struct Node {
    seat: Seat,
    folder: TempDir,
    life: u64,
    machine: Option<Box<Machine>>,
    /// While it is down.
    log: Log,
    /// How long it is down when its fuse burns out, in microseconds.
    down_us: u64,
}

/// What a run came to.
#[derive(Debug)]
pub struct Outcome {
    pub hash: Digest,
    pub tally: Tally,
    pub violation: Option<String>,
}

/// The world.
pub struct World {
    plan: Plan,
    genesis: Genesis,
    issuer: SecretKey,
    nodes: Vec<Node>,
    checks: Checks,
    now_us: u64,
    line: BTreeMap<(u64, u64), Happening>,
    made: u64,
    network: Draws,
    faults: Draws,
    clients: Draws,
    submitted: u64,
    hash: Digest,
    trace: bool,
}

/// A folder in memory where there is one: what a disk does under a crash is tested elsewhere.
fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.expect("a temporary folder can be made")
}

/// Runs one plan to its end, or to the first thing that must not happen.
pub fn run(seed: u64, plan: Plan, trace: bool) -> Outcome {
    // The application's loop makes timers, which need a runtime to belong to; none of them ever fires.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let _entered = runtime.enter();
    let mut world = World::new(seed, plan, trace);
    let violation = world.live().err();
    Outcome { hash: world.hash, tally: world.checks.tally, violation }
}

impl World {
    fn new(seed: u64, plan: Plan, trace: bool) -> World {
        let mut keys: Vec<SecretKey> =
            (0..plan.validators as u64).map(|number| SecretKey::generate(key(seed, "validator", number))).collect();
        keys.sort_by_key(SecretKey::public);
        let public: Vec<PublicKey> = keys.iter().map(SecretKey::public).collect();
        let other = |name| SecretKey::generate(key(seed, name, 0));
        let issuer = other("issuer");
        let genesis = Genesis {
            name: "virtual time".to_owned(),
            time_ms: START_MS,
            issuer: issuer.account(),
            committee: public.clone(),
            treasury: other("treasury").account(),
            validators: other("pool").account(),
            split: Split::default(),
            grace_ms: 1_000,
            mint_max_per_epoch: Credits::new(1_000_000_000),
            epoch_blocks: 1_000,
            validator_bond: Credits::ZERO,
            unbond_ms: 0,
            payout_min: Credits::ZERO,
            bootstrap: Vec::new(),
        };
        let honest = (0..plan.validators).map(|node| plan.honest(node)).collect();
        let nodes = keys.into_iter().enumerate().map(|(index, key)| Node {
            seat: Seat { key, lie: plan.lies[index], report: plan.report, sabotage: plan.sabotage },
            folder: folder(),
            life: 0,
            machine: None,
            log: Log::default(),
            down_us: 0,
        });
        World {
            nodes: nodes.collect(),
            checks: Checks::new(&genesis, &public, honest, folder()),
            genesis,
            issuer,
            plan,
            now_us: 0,
            line: BTreeMap::new(),
            made: 0,
            network: Draws::new(seed, "network"),
            faults: Draws::new(seed, "faults"),
            clients: Draws::new(seed, "clients"),
            submitted: 0,
            hash: Digest::ZERO,
            trace,
        }
    }

    fn at(&mut self, at_us: u64, what: Happening) {
        self.made += 1;
        self.line.insert((at_us.max(self.now_us), self.made), what);
    }

    fn after(&mut self, wait_us: u64, what: Happening) {
        self.at(self.now_us + wait_us, what);
    }

    fn live(&mut self) -> Result<(), String> {
        for node in 0..self.nodes.len() {
            let wait = self.faults.below(200_000);
            self.at(wait, Happening::Start(node));
        }
        for kill in self.plan.kills.clone() {
            self.at(kill.at_us, Happening::Kill(kill));
        }
        self.checks.tally.cuts = self.plan.cuts.len() as u64;
        self.at(SECOND_US, Happening::Client);
        let mut goal = None;
        let mut events = 0;
        while let Some(((at_us, _), what)) = self.line.pop_first() {
            if goal.is_none() && at_us >= self.plan.calm_us {
                goal = Some(self.checks.height() + FURTHER);
            }
            self.now_us = at_us;
            self.happen(what)?;
            events += 1;
            if let Some(goal) = goal {
                if self.all_reached(goal.max(self.checks.height().saturating_sub(BEHIND))) {
                    self.checks.tally.healed_ms = (self.now_us - self.plan.calm_us) / 1_000;
                    return Ok(());
                }
                if self.now_us > self.plan.calm_us + HEALED_US || events > EVENTS_MAX {
                    return Err(self.stuck(goal));
                }
            }
        }
        Err("nothing happens any more".to_owned())
    }

    fn height_of(&self, node: usize) -> Option<u64> {
        self.nodes[node].machine.as_ref().map(|machine| lock(machine.books.replica()).height())
    }

    fn all_reached(&self, goal: u64) -> bool {
        let mut honest = (0..self.nodes.len()).filter(|node| self.plan.honest(*node));
        honest.all(|node| self.height_of(node).is_some_and(|height| height >= goal))
    }

    fn stuck(&self, goal: u64) -> String {
        let heights: Vec<String> = (0..self.nodes.len())
            .map(|node| {
                let lie = self.plan.lies[node].map_or_else(String::new, |lie| format!(" ({lie:?})"));
                match &self.nodes[node].machine {
                    Some(machine) => format!("{node}{lie}: {}", machine.place()),
                    None => format!("{node}{lie}: down"),
                }
            })
            .collect();
        let after_s = HEALED_US / SECOND_US;
        format!("{after_s} s after the faults stopped not all are at height {goal}: {}", heights.join("; "))
    }

    // ---- what happens ----

    fn happen(&mut self, what: Happening) -> Result<(), String> {
        match what {
            Happening::Start(node) => return self.start(node),
            Happening::Arrives { from, to, wire } => {
                if self.cut(from, to) {
                    self.checks.tally.lost += 1;
                    return Ok(());
                }
                let life = self.nodes[to].life;
                return self.with(to, life, &format!("{to} hears {from}"), |machine| machine.hear(from, &wire));
            }
            Happening::Timer { node, life, id } => {
                return self.with(node, life, &format!("{node} timer"), |machine| machine.timer(id));
            }
            Happening::Answered { node, life, input } => {
                return self.with(node, life, &format!("{node} answer"), |machine| machine.answered(*input));
            }
            Happening::IdleOver { node, life, height } => {
                return self.with(node, life, &format!("{node} idle"), |machine| machine.idle_over(height));
            }
            Happening::Status { node, life } => {
                if self.nodes[node].life == life {
                    self.after(settings().status_ms * 1_000, Happening::Status { node, life });
                    return self.with(node, life, &format!("{node} status"), Machine::status);
                }
            }
            Happening::Client => {
                let wait = self.clients.wait(self.plan.client_us);
                self.after(wait, Happening::Client);
                let node = index(&mut self.clients, self.nodes.len());
                self.submitted += 1;
                let (salt, life) = (self.submitted, self.nodes[node].life);
                let amount = Credits::new(1 + self.clients.below(1_000));
                let reference = format!("deposit {salt}");
                let action = Action::Mint { to: self.nodes[node].seat.key.account(), amount, reference };
                let issuer = self.issuer.clone();
                return self
                    .with(node, life, &format!("{node} client"), |machine| machine.submit(&issuer, salt, action));
            }
            Happening::Kill(kill) => {
                let node = &mut self.nodes[kill.node];
                if let Some(machine) = &mut node.machine {
                    machine.fuse = Some((kill.effects, kill.reached));
                    node.down_us = kill.down_us;
                    let life = node.life;
                    self.after(2 * SECOND_US, Happening::Strike { node: kill.node, life, down_us: kill.down_us });
                }
            }
            Happening::Strike { node, life, down_us } => {
                if self.nodes[node].life == life && self.nodes[node].machine.is_some() {
                    self.down(node, down_us);
                }
            }
        }
        Ok(())
    }

    fn start(&mut self, node: usize) -> Result<(), String> {
        let place = &mut self.nodes[node];
        if place.machine.is_some() {
            return Ok(());
        }
        let replica = Replica::open(place.folder.path(), &self.genesis);
        let replica = replica.map_err(|error| format!("{node}'s books do not open again: {error}"))?;
        place.life += 1;
        let life = place.life;
        let log = std::mem::take(&mut place.log);
        place.machine = Some(Box::new(Machine::new(&place.seat, replica, log)));
        let wait = self.faults.below(settings().status_ms * 1_000);
        self.after(wait, Happening::Status { node, life });
        self.with(node, life, &format!("{node} starts"), Machine::start)
    }

    /// A machine dies: its memory is gone, and of what its log had not flushed, any end.
    fn down(&mut self, node: usize, down_us: u64) {
        self.checks.tally.kills += 1;
        let place = &mut self.nodes[node];
        let Some(machine) = place.machine.take() else { return };
        place.log = machine.into_log();
        let kept = index(&mut self.faults, place.log.unflushed() + 1);
        place.log.crashed(kept);
        if self.plan.sabotage == Sabotage::ForgetsLog {
            place.log = Log::default();
        }
        let wait = if self.now_us < self.plan.calm_us { down_us } else { down_us.min(RESTART_US) };
        self.after(wait, Happening::Start(node));
    }

    /// Lets a machine do something, and carries out what comes of it.
    fn with(
        &mut self,
        node: usize,
        life: u64,
        what: &str,
        act: impl FnOnce(&mut Machine) -> Result<(), Stop>,
    ) -> Result<(), String> {
        let now_ms = START_MS + self.now_us / 1_000;
        let place = &mut self.nodes[node];
        let Some(machine) = place.machine.as_mut().filter(|_| place.life == life) else { return Ok(()) };
        self.hash = Digest::of("virtual time/1", &[self.hash.as_bytes(), &self.now_us.to_le_bytes(), what.as_bytes()]);
        machine.now_us = self.now_us;
        machine.books.set_clock(now_ms.saturating_add_signed(self.plan.skew_ms[node]));
        let result = act(machine);
        let outs = std::mem::take(&mut machine.out);
        if self.trace {
            eprintln!("{:>10} {what}: {} -> {result:?}", self.now_us, machine.place());
        }
        for out in outs {
            if self.trace {
                eprintln!("{:>14} {out:?}", "");
            }
            self.carry_out(node, life, now_ms, out)?;
        }
        match result {
            Ok(()) => Ok(()),
            Err(Stop::Killed) => {
                self.down(node, self.nodes[node].down_us);
                Ok(())
            }
            Err(Stop::Failed(Failure::Missing { .. })) => {
                self.checks.tally.missing += 1;
                self.down(node, RESTART_US);
                Ok(())
            }
            Err(Stop::Failed(failure)) => Err(format!("{node} ended by itself: {failure}")),
            Err(Stop::Broken(what)) => Err(format!("{node}: {what}")),
        }
    }

    fn carry_out(&mut self, node: usize, life: u64, now_ms: u64, out: Out) -> Result<(), String> {
        let tally = &mut self.checks.tally;
        match out {
            Out::Send(target, wire) => self.send(node, target, wire),
            Out::Timer(id, wait) => self.after(micros(wait), Happening::Timer { node, life, id }),
            Out::Soon(input) => {
                let wait = match *input {
                    // A block takes longer to make than to look at.
                    Input::Propose(_) => self.network.below(30_000),
                    _ => self.network.below(2_000),
                };
                self.after(wait, Happening::Answered { node, life, input });
            }
            Out::Idle(height, wait) => self.after(micros(wait), Happening::IdleOver { node, life, height }),
            Out::Said(said) => self.checks.said(node, &said)?,
            Out::Committed(block) => {
                if self.plan.honest(node) && self.checks.committed(node, &block, now_ms)? {
                    self.valid_everywhere(&block)?;
                }
            }
            Out::Evidence(evidence) => {
                if self.plan.honest(node) {
                    self.checks.reported(node, &evidence)?;
                }
            }
            Out::Replayed => tally.replays += 1,
            Out::Synced => tally.synced += 1,
            Out::Round(round) => {
                tally.rounds += 1;
                tally.round_max = tally.round_max.max(u64::from(round));
            }
        }
        Ok(())
    }

    /// Each honest validator that is where the block follows finds it good, whether or not it voted for it.
    fn valid_everywhere(&mut self, block: &spillway_ledger::CertifiedBlock) -> Result<(), String> {
        let height = block.block.header.height;
        for (node, place) in self.nodes.iter().enumerate() {
            let Some(machine) = place.machine.as_ref().filter(|_| self.plan.honest(node)) else { continue };
            let mut replica = lock(machine.books.replica());
            if replica.height() + 1 == height {
                let found = replica.validate(&block.block);
                found.map_err(|error| format!("block {height} is final, but not valid at {node}: {error}"))?;
            }
        }
        Ok(())
    }

    // ---- the network ----

    fn cut(&self, from: usize, to: usize) -> bool {
        let mut open = self.plan.cuts.iter().filter(|cut| (cut.at_us..cut.until_us).contains(&self.now_us));
        open.any(|cut| cut.side.contains(&from) != cut.side.contains(&to))
    }

    fn send(&mut self, from: usize, target: Target, wire: Wire) {
        self.hash = Digest::of("virtual time/2", &[self.hash.as_bytes(), wire.bytes()]);
        let wire = Rc::new(wire);
        let mut reached = 0;
        for to in (0..self.nodes.len()).filter(|to| *to != from) {
            let meant = match target {
                Target::All => true,
                Target::One(one) => to == one,
                Target::Even => to % 2 == 0,
                Target::Odd => to % 2 == 1,
                Target::First(count) => reached < count,
            };
            if !meant {
                continue;
            }
            reached += 1;
            self.checks.tally.messages += 1;
            if self.cut(from, to)
                || (self.now_us < self.plan.calm_us && self.network.happens(self.plan.drop_per_million))
            {
                self.checks.tally.lost += 1;
                continue;
            }
            let copies = if self.network.happens(self.plan.twice_per_million) { 2 } else { 1 };
            for _ in 0..copies {
                let wait = self.plan.way_us[from][to] + self.network.wait(self.plan.jitter_us);
                self.after(wait, Happening::Arrives { from, to, wire: wire.clone() });
            }
        }
    }
}

fn micros(wait: Duration) -> u64 {
    u64::try_from(wait.as_micros()).expect("less than millennia")
}
