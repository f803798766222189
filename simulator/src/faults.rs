//! What goes wrong: crashes, freezes, GPUs that stall or fail, cuts of the network, a ledger that stands still. Then calm.
//! Invariant: every fault ends by itself, and no fault begins after the scenario's last moment for faults.

use crate::gpu::Gpu;
use crate::network::{HostId, IDLE_US};
use crate::timeline::START;
use crate::world::{Happening, World};
use spillway_protocol::{BackendError, Event, Now};
use std::collections::BTreeSet;
use std::time::Duration;

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A process is gone, and comes back with what is on its disk.
    Crash {
        /// Whose.
        host: HostId,
        /// Where it strikes in what the process is about to do.
        torn: Torn,
        /// Nobody is told; others notice when it does not answer.
        silent: bool,
        /// How long it is down, in microseconds.
        length: u64,
    },
    /// A process stands still.
    Freeze(HostId, u64),
    /// A GPU stands still.
    Stall(HostId, u64),
    /// A GPU fails all it runs, and takes nothing.
    GpuFails(HostId, u64),
    /// The network falls in two, or only lets nothing out of one part.
    Cut {
        /// The part.
        side: BTreeSet<HostId>,
        /// Others still get in.
        one_way: bool,
        /// How long, in microseconds.
        length: u64,
    },
    /// The network falls in two and heals, so many times, each for that long.
    Flap(BTreeSet<HostId>, u32, u64),
    /// What a node says goes out slowly: so many bytes a second.
    Slow(HostId, u64, u64),
    /// A provider leaves for good, in the middle of its work if any does, and this one takes its place.
    Replace {
        /// The newcomer.
        spare: HostId,
        /// As for a crash.
        silent: bool,
    },
    /// The ledger makes no blocks.
    LedgerPause(u64),
}

/// Where in what a process is about to do a crash strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Torn {
    /// Between two events.
    No,
    /// After the next record is kept, before what follows it.
    Kept,
    /// Before the next record is on disk: it and what follows are lost.
    Lost,
}

/// How often a flapping network flaps.
const FLAPS: u32 = 6;

/// Some places and a first one, drawn; never all.
fn side(world: &mut World, first: HostId) -> BTreeSet<HostId> {
    // The authority counts as one more place.
    let places = world.hosts.len() as u64 + 1;
    let mut side = BTreeSet::from([first]);
    for _ in 0..world.fault_draws.below(places - 1) {
        side.insert(world.fault_draws.below(places) as HostId);
    }
    side
}

/// Draws all that will go wrong.
pub fn plan(world: &mut World) {
    let rules = world.scenario.faults;
    let until = rules.until_s * 1_000_000;
    let all: Vec<HostId> = (0..world.hosts.len()).collect();
    let (providers, gateways): (Vec<HostId>, Vec<HostId>) =
        all.iter().copied().partition(|host| world.hosts[*host].config.provide);
    let with_gpu: Vec<HostId> = all.iter().copied().filter(|host| world.hosts[*host].gpu.is_some()).collect();
    type Make = fn(&mut World, HostId, u64) -> Fault;
    let crash: Make = |world, host, length| {
        let torn = match world.fault_draws.happens(world.scenario.faults.torn_per_mille * 1000) {
            false => Torn::No,
            true if world.fault_draws.happens(300_000) => Torn::Lost,
            true => Torn::Kept,
        };
        Fault::Crash { host, torn, silent: world.fault_draws.happens(500_000), length }
    };
    let kinds: [(u64, &[HostId], Make); 10] = [
        (rules.provider_crashes_per_hour, &providers, crash),
        (rules.gateway_crashes_per_hour, &gateways, crash),
        (rules.freezes_per_hour, &all, |_, host, length| Fault::Freeze(host, length)),
        (rules.gpu_stalls_per_hour, &with_gpu, |_, host, length| Fault::Stall(host, length)),
        (rules.gpu_failures_per_hour, &with_gpu, |_, host, length| Fault::GpuFails(host, length)),
        (rules.partitions_per_hour, &all, |world, first, length| {
            let side = side(world, first);
            Fault::Cut { side, one_way: false, length }
        }),
        (rules.ledger_pauses_per_hour, &all, |_, _, length| Fault::LedgerPause(length)),
        (rules.one_way_per_hour, &all, |world, first, length| {
            let side = side(world, first);
            Fault::Cut { side, one_way: true, length }
        }),
        (rules.flaps_per_hour, &all, |world, first, length| {
            let side = side(world, first);
            Fault::Flap(side, FLAPS, (length / u64::from(2 * FLAPS)).max(1))
        }),
        (rules.slow_links_per_hour, &all, |world, host, length| {
            Fault::Slow(host, world.fault_draws.within([3_000, 50_000]), length)
        }),
    ];
    for (at, spare) in std::mem::take(&mut world.churn) {
        let silent = world.fault_draws.happens(500_000);
        world.line.at(START.after(Duration::from_micros(at)), Happening::Fault(Fault::Replace { spare, silent }));
    }
    for (per_hour, hosts, make) in kinds {
        if per_hour == 0 || hosts.is_empty() {
            continue;
        }
        let mut at = 0;
        loop {
            at += world.fault_draws.wait(3_600_000_000 / per_hour);
            if at >= until {
                break;
            }
            let host = hosts[world.fault_draws.below(hosts.len() as u64) as usize];
            let length = world.fault_draws.within(rules.length_ms) * 1000;
            let fault = make(world, host, length);
            world.line.at(START.after(Duration::from_micros(at)), Happening::Fault(fault));
        }
    }
}

/// Lets something go wrong now.
pub fn strike(world: &mut World, fault: Fault) {
    if world.trace {
        eprintln!("{:>10.6} fault        {fault:?}", world.line.elapsed().as_secs_f64());
    }
    let end = |world: &World, length| Now(world.line.now().0 + length);
    match fault {
        Fault::Crash { host, torn: Torn::No, silent, length } => crash(world, host, silent, Some(length)),
        Fault::Crash { host, torn, silent, length } => {
            if world.hosts[host].peer.is_some() {
                world.hosts[host].torn = Some((torn, silent, length));
            }
        }
        Fault::Freeze(host, length) => {
            if !std::mem::replace(&mut world.hosts[host].frozen, true) {
                world.note_state(host);
                world.line.after(length, Happening::Thaw(host));
            }
        }
        Fault::Stall(host, length) => {
            let end = end(world, length);
            let until = &mut world.hosts[host].stalled_until;
            *until = end.max(*until);
        }
        Fault::GpuFails(host, length) => {
            if std::mem::replace(&mut world.hosts[host].gpu_down, true) {
                return;
            }
            world.line.after(length, Happening::GpuWell(host));
            world.hosts[host].gpu_failed = world.line.now();
            world.hosts[host].for_strangers.clear();
            let life = world.hosts[host].life;
            for work in world.hosts[host].gpu.as_mut().map(Gpu::fail).unwrap_or_default() {
                let error = BackendError::Failed("out of memory".into());
                world.deliver(host, life, Event::BackendFailed { work, error });
            }
            let capacity = world.capacity(host);
            world.deliver(host, life, capacity);
            world.note_state(host);
        }
        Fault::Cut { side, one_way, length } => {
            world.cuts += 1;
            world.trouble_across(&side);
            world.network.cut(world.cuts, side, one_way);
            world.line.after(length, Happening::Heal(world.cuts));
            world.line.after(IDLE_US, Happening::Sever(world.cuts));
        }
        Fault::Flap(side, times, each) => {
            strike(world, Fault::Cut { side: side.clone(), one_way: false, length: each });
            if times > 1 {
                world.line.after(2 * each, Happening::Fault(Fault::Flap(side, times - 1, each)));
            }
        }
        Fault::Slow(host, bytes_per_s, length) => {
            let until = end(world, length);
            world.network.slow_down(host, bytes_per_s, until);
        }
        Fault::Replace { spare, silent } => replace(world, spare, silent),
        Fault::LedgerPause(length) => {
            let end = end(world, length);
            world.authority.paused_until = end.max(world.authority.paused_until);
        }
    }
}

/// Lets one of a fleet leave for good, and another come a while later.
fn replace(world: &mut World, spare: HostId, silent: bool) {
    let fleet = &world.hosts[spare].fleet;
    let there: Vec<HostId> = (0..world.hosts.len())
        .filter(|id| world.hosts[*id].fleet == *fleet && world.hosts[*id].peer.is_some())
        .collect();
    let serving = |id: &HostId| {
        let theirs = world.network.links(|link| link.opened && link.ends[1].host == *id && !link.ends[1].closed);
        !theirs.is_empty()
    };
    let at_work: Vec<HostId> = there.iter().copied().filter(serving).collect();
    let from = if at_work.is_empty() { there } else { at_work };
    if !from.is_empty() {
        let leaves = from[world.fault_draws.below(from.len() as u64) as usize];
        world.hosts[leaves].left = Some(world.line.now());
        crash(world, leaves, silent, None);
    }
    let wait = world.fault_draws.within([1_000_000, 30_000_000]);
    world.line.after(wait, Happening::Start(spare));
}

/// Takes a node down; it starts again after `length` microseconds, if ever.
pub fn crash(world: &mut World, id: HostId, silent: bool, length: Option<u64>) {
    let host = &mut world.hosts[id];
    if host.peer.take().is_none() {
        return; // Down already.
    }
    host.life += 1;
    host.silent = silent;
    host.torn = None;
    host.inbox.clear();
    host.news.clear();
    host.clerk = crate::books::Clerk::default();
    host.probes.clear();
    host.probed.clear();
    host.offers.clear();
    host.for_strangers.clear();
    if let Some(gpu) = &mut host.gpu {
        gpu.fail();
    }
    world.forget_tick(id);
    world.checks.crashed(id);
    world.idle.forgets(id);
    world.note_state(id);
    if let Some(length) = length {
        world.line.after(length, Happening::Start(id));
    }
    // Whoever is not told notices by itself, at the latest when the node is back and knows nothing of it.
    let notice = if silent { length.map_or(IDLE_US, |length| length.min(IDLE_US)) } else { 0 };
    for link in world.network.links(|link| link.ends.iter().any(|end| end.host == id && !end.closed)) {
        let side = usize::from(world.network.link(link).is_some_and(|found| found.ends[1].host == id));
        let stream = world.network.link(link).map(|found| found.ends[side].stream);
        world.network.close(link, side);
        world.idle.arrives(world.line.now(), link);
        if let Some(stream) = stream {
            world.checks.leg_over(id, stream);
        }
        world.line.after(notice, Happening::Broken(link, 1 - side));
    }
    // Streams that had ended, and of which a frozen node was yet to be told: it never will be.
    for stream in world.checks.streams_of(id) {
        world.checks.leg_over(id, stream);
    }
    let node = world.hosts[id].node;
    for other in (0..world.hosts.len()).filter(|other| *other != id) {
        let wait = notice + world.network.delay(world.line.now(), id, other, 0);
        world.line.after(wait, Happening::Tell(other, world.hosts[other].life, Box::new(Event::PeerLost(node))));
    }
}

/// The network is whole again, unless something else cuts it.
pub fn heal(world: &mut World, cut: u64) {
    let Some(side) = world.network.heal(cut) else { return };
    world.trouble_across(&side);
    for (link, end, wait) in world.network.overdue(world.line.now()) {
        world.line.after(wait, Happening::Arrive(link, end));
    }
    for id in 0..world.hosts.len() {
        world.line.after(1000, Happening::News(id, world.hosts[id].life));
        for other in 0..world.hosts.len() {
            if side.contains(&id) != side.contains(&other) && world.hosts[id].peer.is_some() {
                world.exchange(id, other);
            }
        }
    }
}

/// A cut has lasted so long that both sides give up on their connections across it.
pub fn sever(world: &mut World, cut: u64) {
    if !world.network.is_cut(cut) {
        return;
    }
    for link in world.network.severed() {
        world.end_stream(link, 0);
        world.end_stream(link, 1);
    }
    for id in 0..world.hosts.len() {
        for other in 0..world.hosts.len() {
            if !world.network.connected(id, other) {
                let (life, node) = (world.hosts[id].life, world.hosts[other].node);
                world.deliver(id, life, Event::PeerLost(node));
            }
        }
    }
}
