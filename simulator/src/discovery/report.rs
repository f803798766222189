//! What a run showed: bytes for each node and minute, how soon a newcomer is known, how stale what is known is.
//! Invariant: only nodes that were there for a minute or more are counted, each for the time that it was there.

use super::cost;
use super::nodes::{For, Node, market, model_name};
use super::world::{LOOKS_MS, SETTLED, World};
use crate::timeline::START;
use serde::Serialize;
use spillway_ledger::NodeId;
use spillway_protocol::Now;
use spillway_protocol::discovery::{Fault, ModelTag};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

/// What is spent on offers that are not used.
const UNUSED: [For; 7] = [For::Gossip, For::Signs, For::Notices, For::Rounds, For::Tells, For::Lobby, For::Vain];

/// Over all nodes, in bytes a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Figures {
    /// The mean.
    pub mean: f64,
    /// What half of them spend no more than.
    pub p50: f64,
    /// What 99 of 100 spend no more than.
    pub p99: f64,
    /// The most.
    pub max: f64,
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "a mean")]
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let Some(max) = values.last().copied() else { return Self::default() };
        let at = |per_cent: usize| values[(values.len() - 1) * per_cent / 100];
        Self { mean: values.iter().sum::<f64>() / values.len() as f64, p50: at(50), p99: at(99), max }
    }
}

/// How soon newcomers were known.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Spread {
    /// Newcomers that were watched.
    pub count: usize,
    /// Until half of those that use its model knew of one, in seconds; the middle newcomer.
    pub half_s: f64,
    /// Until 99 of 100 did; the middle newcomer.
    pub most_s: f64,
    /// The same; the slowest newcomer of ten.
    pub most_p90_s: f64,
}

/// What attackers achieved.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Eclipse {
    /// How many there were, in the one shard.
    pub sybils: usize,
    /// Honest nodes that use its model.
    pub honest: usize,
    /// Of those, how many have the offer of an honest provider at hand; 1 is all.
    pub found_one: f64,
    /// Of the honest providers, how many an honest user knows of on average; 1 is all.
    pub known: f64,
    /// Offers at hand on average: of honest providers, and of all.
    pub at_hand: [f64; 2],
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Discovered {
    /// Honest nodes.
    pub nodes: usize,
    /// The seed.
    pub seed: u64,
    /// Minutes measured.
    pub minutes: u64,
    /// Offers alive at the end.
    pub offers: usize,
    /// Offers in the largest shard, and its period in seconds.
    pub largest: (usize, u64),
    /// Gossiped notices.
    pub gossip: Figures,
    /// Signs of life, read in logs and shown.
    pub signs: Figures,
    /// Notices, read in logs and shown.
    pub notices_read: Figures,
    /// Envelopes and marks of both.
    pub rounds: Figures,
    /// Peers told of own offers.
    pub tells: Figures,
    /// Pulls that gave offers.
    pub pulls: Figures,
    /// Pulls of offers that were seen in the lobby, of models that the node does not use.
    pub lobby: Figures,
    /// Pulls that gave none.
    pub vain: Figures,
    /// Connections that were made for an offer.
    pub dials: Figures,
    /// What is spent on offers that are not used: all but the pulls of those that are and the connections made for them, though
    /// some of the gossip and of the logs is about offers in use.
    pub unused: Figures,
    /// All but idle connections.
    pub all: Figures,
    /// Idle connections, which everything on a node shares.
    pub idle: Figures,
    /// How soon newcomers were known.
    pub newcomers: Spread,
    /// Of the live providers of the models that a node uses, how many it knows; 1 is all.
    pub known: f64,
    /// Of those that it takes to be alive, how many are gone.
    pub dead: f64,
    /// Offers at hand for each model that a node uses.
    pub at_hand: f64,
    /// Notices that a node keeps, on average.
    pub notices: f64,
    /// Rules that peers were found to have broken; only Sybils may.
    pub faults: u64,
    /// How often each rule was broken.
    pub faults_by_kind: BTreeMap<String, u64>,
    /// Notices that were gossiped, from the start on.
    pub gossiped: u64,
    /// Events that were simulated.
    pub events: u64,
    /// What attackers achieved, if there were any.
    pub eclipse: Option<Eclipse>,
}

/// Reads a world that has come to its end.
#[expect(clippy::cast_precision_loss, reason = "shares and means")]
pub(super) fn report(world: &World) -> Discovered {
    let now = world.now();
    let honest: Vec<&Node> = world.nodes.iter().filter(|node| node.is_up && !node.is_sybil).collect();
    let counted: Vec<(&&Node, f64)> = honest
        .iter()
        .map(|node| (node, now.since(node.counted_from).as_secs_f64() / 60.0))
        .filter(|(_, minutes)| *minutes >= 1.0)
        .collect();
    let figures = |what: &[For]| {
        let spent = |node: &Node| what.iter().map(|what| node.spent.both(*what)).sum::<u64>() as f64;
        Figures::of(counted.iter().map(|(node, minutes)| spent(node) / minutes).collect())
    };
    let idle = |node: &Node| (node.connections() as u64 * cost::IDLE_PER_MINUTE) as f64;
    let mut providers: BTreeMap<u64, BTreeSet<NodeId>> = BTreeMap::new();
    for node in &honest {
        for model in &node.serves {
            providers.entry(*model).or_default().insert(node.id);
        }
    }
    let mut in_shards: BTreeMap<u16, usize> = BTreeMap::new();
    for node in &honest {
        let shards: BTreeSet<u16> =
            node.serves.iter().map(|model| ModelTag::of(&market(), &model_name(*model)).shard().number()).collect();
        for shard in shards {
            *in_shards.entry(shard).or_default() += 1;
        }
    }
    let largest = in_shards.values().copied().max().unwrap_or(0);
    let mut faults: BTreeMap<Fault, u64> = BTreeMap::new();
    for node in &honest {
        for (fault, count) in node.machine.faults() {
            *faults.entry(*fault).or_default() += count;
        }
    }
    let (known, dead) = freshness(&honest, &providers, now);
    let uses = honest.iter().map(|node| node.uses.len()).sum::<usize>().max(1);
    Discovered {
        nodes: world.setup.nodes,
        seed: world.setup.seed,
        minutes: now.since(START.after(SETTLED)).as_secs() / 60,
        offers: honest.iter().filter(|node| !node.serves.is_empty()).count(),
        largest: (largest, spillway_protocol::discovery::period(largest).as_secs()),
        gossip: figures(&[For::Gossip]),
        signs: figures(&[For::Signs]),
        notices_read: figures(&[For::Notices]),
        rounds: figures(&[For::Rounds]),
        tells: figures(&[For::Tells]),
        pulls: figures(&[For::Pulls]),
        lobby: figures(&[For::Lobby]),
        vain: figures(&[For::Vain]),
        dials: figures(&[For::Dials]),
        unused: figures(&UNUSED),
        all: figures(&[&UNUSED[..], &[For::Pulls, For::Dials]].concat()),
        idle: Figures::of(honest.iter().map(|node| idle(node)).collect()),
        newcomers: spread(world),
        known,
        dead,
        at_hand: honest.iter().map(|node| node.machine.at_hand().count()).sum::<usize>() as f64 / uses as f64,
        notices: honest.iter().map(|node| node.machine.sizes()[0]).sum::<usize>() as f64 / honest.len().max(1) as f64,
        faults: faults.values().sum(),
        faults_by_kind: faults.iter().map(|(fault, count)| (format!("{fault:?}"), *count)).collect(),
        gossiped: world.gossiped,
        events: world.events,
        eclipse: eclipse(world, &honest, &providers),
    }
}

/// Of the providers that live, how many are known; of those known, how many are gone.
#[expect(clippy::cast_precision_loss, reason = "shares")]
fn freshness(honest: &[&Node], providers: &BTreeMap<u64, BTreeSet<NodeId>>, now: Now) -> (f64, f64) {
    let (mut live, mut known, mut believed) = (0_usize, 0_usize, 0_usize);
    // A few hundred nodes tell as much as all.
    let step = (honest.len() / 300).max(1);
    for node in honest.iter().step_by(step) {
        for model in &node.uses {
            let name = model_name(*model);
            let others: Vec<&NodeId> =
                providers.get(model).into_iter().flatten().filter(|other| **other != node.id).collect();
            live += others.len();
            known +=
                others.iter().filter(|other| node.machine.knows(&name, other).is_some_and(|it| it > now.ms())).count();
            believed += node.machine.known(&name) - usize::from(node.serves.contains(model));
        }
    }
    (known as f64 / live.max(1) as f64, believed.saturating_sub(known) as f64 / believed.max(1) as f64)
}

#[expect(clippy::cast_precision_loss, reason = "seconds")]
fn spread(world: &World) -> Spread {
    let mut halves = Vec::new();
    let mut most = Vec::new();
    for watched in &world.watched {
        let when = |per_mille: usize| {
            let known = |(know, all): &(usize, usize)| *all > 0 && know * 1000 >= all * per_mille;
            let at = watched.looks.iter().position(known)?;
            Some(LOOKS_MS[at] as f64 / 1000.0)
        };
        // One that nobody could know, or that left before it was known, says nothing.
        if let (Some(half), Some(nearly_all)) = (when(500), when(990)) {
            halves.push(half);
            most.push(nearly_all);
        }
    }
    halves.sort_by(f64::total_cmp);
    most.sort_by(f64::total_cmp);
    let at = |values: &[f64], per_cent: usize| values.get(values.len().saturating_sub(1) * per_cent / 100).copied();
    Spread {
        count: halves.len(),
        half_s: at(&halves, 50).unwrap_or(0.0),
        most_s: at(&most, 50).unwrap_or(0.0),
        most_p90_s: at(&most, 90).unwrap_or(0.0),
    }
}

#[expect(clippy::cast_precision_loss, reason = "shares")]
fn eclipse(world: &World, honest: &[&Node], providers: &BTreeMap<u64, BTreeSet<NodeId>>) -> Option<Eclipse> {
    let attack = world.attack.as_ref()?;
    let now = world.now();
    let none = BTreeSet::new();
    let good = providers.get(&attack.model).unwrap_or(&none);
    let name = model_name(attack.model);
    let settled = |node: &&&Node| node.uses.contains(&attack.model) && now.since(node.started).as_secs() >= 600;
    let users: Vec<&&Node> = honest.iter().filter(settled).collect();
    let (mut found, mut known, mut all, mut at_hand) = (0, 0, 0, [0, 0]);
    for user in &users {
        let offers: Vec<NodeId> = user
            .machine
            .at_hand()
            .filter(|offer| offer.value().models.iter().any(|model| model.id == name))
            .map(|offer| offer.value().node)
            .collect();
        let of_good = offers.iter().filter(|node| good.contains(node)).count();
        found += usize::from(of_good > 0);
        at_hand[0] += of_good;
        at_hand[1] += offers.len();
        let others = good.iter().filter(|other| **other != user.id);
        let (those, here): (usize, usize) = others.fold((0, 0), |(those, here), other| {
            let knows = user.machine.knows(&name, other).is_some_and(|until| until > now.ms());
            (those + 1, here + usize::from(knows))
        });
        known += here;
        all += those;
    }
    let count = users.len().max(1) as f64;
    Some(Eclipse {
        sybils: attack.sybils,
        honest: users.len(),
        found_one: found as f64 / count,
        known: known as f64 / all.max(1) as f64,
        at_hand: at_hand.map(|sum| sum as f64 / count),
    })
}

/// Runs side by side, for people.
pub(super) fn table(all: &[Discovered]) -> String {
    let mut text = String::new();
    let mut row = |name: &str, cell: &dyn Fn(&Discovered) -> String| {
        let _ = write!(text, "{name:<44}");
        for one in all {
            let _ = write!(text, "{:>18}", cell(one));
        }
        text.push('\n');
    };
    let bytes = |figures: &Figures| format!("{:.0} ({:.0})", figures.mean, figures.p99);
    row("nodes", &|it| it.nodes.to_string());
    row("offers", &|it| it.offers.to_string());
    row("largest shard: offers, period", &|it| format!("{}, {} s", it.largest.0, it.largest.1));
    row("bytes per node and minute: mean (p99)", &|_| String::new());
    row("  notices gossiped", &|it| bytes(&it.gossip));
    row("  signs of life in logs", &|it| bytes(&it.signs));
    row("  notices in logs", &|it| bytes(&it.notices_read));
    row("  envelopes and marks of these", &|it| bytes(&it.rounds));
    row("  own offers told to peers", &|it| bytes(&it.tells));
    row("  pulls from the lobby", &|it| bytes(&it.lobby));
    row("  pulls in vain", &|it| bytes(&it.vain));
    row("  = on offers not used, at most", &|it| bytes(&it.unused));
    row("  pulls that gave offers", &|it| bytes(&it.pulls));
    row("  connections made for an offer", &|it| bytes(&it.dials));
    row("  = all", &|it| bytes(&it.all));
    row("  (idle connections, shared by all else)", &|it| bytes(&it.idle));
    row("newcomers: known to half of its users", &|it| format!("{:.1} s", it.newcomers.half_s));
    row("  to 99 %", &|it| format!("{:.1} s", it.newcomers.most_s));
    row("  to 99 %, slowest of ten", &|it| format!("{:.1} s", it.newcomers.most_p90_s));
    row("live providers known", &|it| format!("{:.2} %", it.known * 100.0));
    row("taken to be alive, but gone", &|it| format!("{:.2} %", it.dead * 100.0));
    row("offers at hand for each model used", &|it| format!("{:.1}", it.at_hand));
    row("notices kept", &|it| format!("{:.0}", it.notices));
    row("faults found", &|it| it.faults.to_string());
    row("events", &|it| it.events.to_string());
    if all.iter().any(|one| one.eclipse.is_some()) {
        let of = |it: &Discovered, cell: &dyn Fn(&Eclipse) -> String| it.eclipse.as_ref().map_or(String::new(), cell);
        row("Sybils for honest users", &|it| of(it, &|one| format!("{} for {}", one.sybils, one.honest)));
        row("  users with an honest offer at hand", &|it| of(it, &|one| format!("{:.2} %", one.found_one * 100.0)));
        row("  honest providers known", &|it| of(it, &|one| format!("{:.2} %", one.known * 100.0)));
        row("  offers at hand: honest, of all", &|it| {
            of(it, &|one| format!("{:.1} of {:.1}", one.at_hand[0], one.at_hand[1]))
        });
    }
    text
}
