//! A late own backend and a second one: who gets the job, and what a hedge may never take.

use crate::common::{MODEL, World, job, price};
use spillway_protocol::{
    BackendError, Capacity, Event, Job, Kind, MarketConfig, OwnChoice, Prefer, Reason, Route, WorkId,
};
use std::time::Duration;

/// Longer than any first text may take that is not late, by the speed that is assumed of a backend nobody has measured.
const LATE: Duration = Duration::from_secs(1);

/// A node with so many slots at two backends.
fn world(slots: u32) -> (World, usize) {
    with(MarketConfig { hedge: true, ..MarketConfig::default() }, slots, |_| {})
}

fn with(config: MarketConfig, slots: u32, change: impl Fn(&mut Capacity)) -> (World, usize) {
    let mut world = World::new();
    let node = world.add(1, slots, config);
    let mut capacity = world.nodes[node].capacity.clone();
    capacity[0].replicas = 2;
    change(&mut capacity[0]);
    world.event(node, Event::Capacity(capacity));
    (world, node)
}

fn works(world: &World, node: usize) -> Vec<WorkId> {
    world.nodes[node].work.keys().copied().collect()
}

fn says(world: &mut World, node: usize, work: WorkId, text: &str) {
    let bytes = text.as_bytes().to_vec();
    world.event(node, Event::Output { work, bytes: bytes.clone(), text: bytes });
}

fn taken(world: &World, node: usize) -> u32 {
    world.nodes[node].peer.as_ref().expect("it runs").running(MODEL)
}

#[test]
fn whoever_speaks_first_has_the_job() {
    for hedge_is_first in [true, false] {
        let (mut world, node) = world(8);
        let id = world.submit(node, job(1));
        world.pass(LATE);
        let [late, hedge] = works(&world, node).try_into().expect("two at work");
        let (first, second) = if hedge_is_first { (hedge, late) } else { (late, hedge) };
        says(&mut world, node, first, "one");
        assert_eq!(works(&world, node), [first], "the other is stopped");
        says(&mut world, node, second, "two");
        says(&mut world, node, first, " more");
        assert_eq!(taken(&world, node), 1);
        world.finish(node);
        assert_eq!((world.text(node, id).as_str(), taken(&world, node)), ("one more", 0));
        let outcome = &world.nodes[node].ended[&id];
        assert_eq!(outcome.result.as_deref(), Ok("stop"));
        let reasons: Vec<_> = outcome.legs.iter().map(|leg| (leg.route, leg.reason, leg.usage.output)).collect();
        let expected: &[_] = if hedge_is_first {
            &[(Route::Own, Reason::OwnFree, 0), (Route::Own, Reason::OwnHedged, 8)]
        } else {
            &[(Route::Own, Reason::OwnFree, 8)]
        };
        assert_eq!(reasons, expected);
        assert_eq!(world.nodes[node].placed, [(id, expected[expected.len() - 1].1, None)]);
    }
}

#[test]
fn hedges_hold_a_quarter_of_the_idle_slots_at_most() {
    for (slots, jobs, hedges) in
        [(2, 1, 0), (4, 1, 0), (5, 1, 1), (8, 1, 1), (16, 4, 3), (16, 8, 2), (16, 12, 1), (16, 13, 0), (40, 4, 4)]
    {
        let (mut world, node) = world(slots);
        for id in 0..jobs {
            world.submit(node, job(id));
        }
        world.pass(4 * LATE);
        assert_eq!(works(&world, node).len(), usize::from(jobs + hedges), "{jobs} jobs in {slots} slots");
    }
}

#[test]
fn a_hedge_makes_way_for_the_owners_next_job() {
    let (mut world, node) = world(8);
    for id in 0..2 {
        world.submit(node, job(id));
    }
    world.pass(LATE);
    assert_eq!(works(&world, node).len(), 3, "one of the two is hedged");
    for id in 2..8 {
        world.submit(node, job(id));
        assert_eq!(taken(&world, node), (u32::from(id) + 2).min(8));
    }
    world.pass(4 * LATE);
    assert_eq!(works(&world, node).len(), 8, "each job once");
    let queued = world.submit(node, job(8));
    world.say(node, "text");
    world.finish(node);
    world.say(node, "late");
    world.finish(node);
    assert_eq!((taken(&world, node), world.text(node, queued).as_str()), (0, "late"));
    assert!(world.nodes[node].ended.values().all(|outcome| outcome.result.is_ok() && outcome.legs.len() == 1));
}

#[test]
fn what_is_not_hedged() {
    let on = MarketConfig { hedge: true, ..MarketConfig::default() };
    type Change = fn(&mut Capacity);
    let keep: Change = |_| {};
    let cases: [(&str, MarketConfig, Change, Job); 6] = [
        ("unless it is turned on", MarketConfig::default(), keep, job(1)),
        ("one backend alone", on.clone(), |capacity| capacity.replicas = 1, job(1)),
        ("slots that cost money", on.clone(), |capacity| capacity.rented = 7, job(1)),
        ("an answer in one piece", on.clone(), keep, Job { whole: true, ..job(1) }),
        (
            "what a server may remember",
            on.clone(),
            |capacity| capacity.kinds = vec![Kind::Response],
            Job { kind: Kind::Response, ..job(1) },
        ),
        ("what has spoken", on, keep, job(1)),
    ];
    for (what, config, change, job) in cases {
        let (mut world, node) = with(config, 8, change);
        world.submit(node, job);
        if what == "what has spoken" {
            world.say(node, "a word");
        }
        world.pass(4 * LATE);
        assert_eq!(works(&world, node).len(), 1, "{what}");
    }
}

#[test]
fn a_failure_of_one_leaves_the_job_to_the_other() {
    let failed = |world: &mut World, node: usize, work| {
        world.nodes[node].work.remove(&work);
        world.event(node, Event::BackendFailed { work, error: BackendError::Failed("it broke".into()) });
    };
    for (first, second) in [(0, 1), (1, 0)] {
        let (mut world, node) = world(8);
        let id = world.submit(node, Job { prefer: Prefer::Own, ..job(1) });
        world.pass(LATE);
        let both = works(&world, node);
        failed(&mut world, node, both[first]);
        assert!(world.nodes[node].ended.is_empty(), "the other is still at it");
        assert_eq!(works(&world, node), [both[second]]);
        failed(&mut world, node, both[second]);
        let outcome = &world.nodes[node].ended[&id];
        assert_eq!(outcome.result.as_ref().err().map(|failure| failure.message.as_str()), Some("it broke"));
        assert_eq!(taken(&world, node), 0);
    }
    // Nobody would take a request that one refused.
    let (mut world, node) = world(8);
    let id = world.submit(node, job(1));
    world.pass(LATE);
    let [late, _] = works(&world, node).try_into().expect("two at work");
    let error = BackendError::Rejected { status: 400, message: "no".into() };
    world.event(node, Event::BackendFailed { work: late, error });
    assert!(world.nodes[node].ended[&id].result.is_err());
    assert_eq!(taken(&world, node), 0);
}

#[test]
fn a_client_that_leaves_stops_both() {
    let (mut world, node) = world(8);
    let id = world.submit(node, job(1));
    world.pass(LATE);
    world.event(node, Event::ClientLeft(id));
    assert_eq!((works(&world, node), taken(&world, node)), (vec![], 0));
}

#[test]
fn what_a_late_backend_costs_is_counted_and_a_hedge_costs_nothing() {
    // Half of the slots are at a third party: the job began there.
    let (mut world, node) = with(MarketConfig { hedge: true, ..MarketConfig::default() }, 16, |capacity| {
        (capacity.rented, capacity.token_price) = (8, price(1, 1));
    });
    let choice = OwnChoice { token_price_max: Some(price(1, 1)), ..OwnChoice::default() };
    let id = world.submit(node, Job { own: choice, ..job(1) });
    world.pass(LATE);
    let [late, hedge] = works(&world, node).try_into().expect("two at work");
    world.event(node, Event::Charged { work: late, cost: spillway_ledger::Credits::new(70) });
    world.event(node, Event::Charged { work: hedge, cost: spillway_ledger::Credits::new(9_000) });
    says(&mut world, node, hedge, "text");
    world.finish(node);
    assert_eq!(world.nodes[node].ended[&id].cost.micro(), 70);
}
