//! What strangers get of own hardware: when, until the owner needs it, at which price, and what they are told meanwhile.

use crate::common::{MODEL, START, World, consumer, job, network, price, provider};
use spillway_ledger::{CoSigned, Credits, Price, Signed, Usage};
use spillway_protocol::{
    Abort, Effect, Event, Frame, Job, Kind, Load, MarketConfig, Now, PREFIX_UNITS, Prefer, Probe, ProbeId, ProbeReply,
    Quote, Reason, Record, Refusal, Sell, Selling,
};
use std::time::Duration;

/// An owner with some slots who sells, a gateway without hardware, and a dear provider to go to otherwise.
fn setting(slots: u32, config: MarketConfig) -> (World, usize, usize, usize) {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let owner = world.add(2, slots, config);
    let other = world.add(3, 4, provider(900_000));
    (world, gateway, owner, other)
}

fn sell(mode: &str, reserved_slots: u32) -> MarketConfig {
    MarketConfig { selling: Selling { mode: mode.parse().expect("a mode"), reserved_slots }, ..provider(200_000) }
}

/// Asks a node as `gateway` would, and gives its answer.
fn ask(world: &mut World, gateway: usize, node: usize, prefix: Vec<u64>) -> ProbeReply {
    let request = Probe {
        network: network(),
        model: MODEL.into(),
        kind: Kind::Chat,
        prompt_units: 10_000,
        output_max: 100,
        window_max: 1024,
        prefix,
    };
    let (now, peer) = (world.now, world.nodes[gateway].id);
    let machine = world.nodes[node].peer.as_mut().expect("up");
    machine.handle(now, Event::ProbeReceived { probe: ProbeId(1 << 40), peer, request });
    let reply = std::iter::from_fn(|| machine.poll()).find_map(|effect| match effect {
        Effect::ReplyProbe { reply, .. } => Some(reply),
        _ => None,
    });
    reply.expect("a probe is answered at once")
}

#[test]
fn the_owner_takes_a_strangers_slot_and_the_stranger_goes_on_elsewhere() {
    let (mut world, gateway, owner, other) = setting(1, sell("always", 0));
    let id = world.submit(gateway, job(1));
    world.say(owner, "half of the");
    world.submit(owner, job(2));
    assert_eq!(world.nodes[owner].work.len(), 1, "the owner's job has the slot");
    assert_eq!(world.nodes[owner].ended.len() + world.nodes[gateway].ended.len(), 0, "both go on");
    world.say(owner, "mine");
    assert_eq!(world.nodes[owner].placed[0].1, Reason::OwnFree, "as if nobody had been there");
    assert_eq!(world.nodes[other].work.values().next().expect("taken over"), b"half of the");
    world.say(other, " answer");
    world.finish(other);
    assert_eq!(world.text(gateway, id), "half of the answer");
    let outcome = world.nodes[gateway].ended[&id].clone();
    assert_eq!(outcome.result, Ok("stop".into()));
    assert_eq!(outcome.legs[1].reason, Reason::ProviderPreempted);
    let input = job(1).body.len() as u64;
    let due = price(50_000, 200_000).cost(Usage { input, cached: 0, output: 11 });
    assert_eq!(Some(outcome.legs[0].cost), due, "what was delivered is paid");
    let told = |frame: &Frame| matches!(frame, Frame::Aborted { abort: Abort::Preempted, receipt: Some(_) });
    assert!(world.wire.iter().any(|(from, _, frame)| *from == owner && told(frame)));
    world.pass(Duration::from_secs(10));
    let settled = world.sessions.values().find(|session| session.provider == owner).expect("one").settled;
    assert_eq!(Some(settled), due, "and claimed");

    // It says so and is not to blame: nobody shuns it as if it had stalled.
    let gateway = world.nodes[gateway].peer.as_ref().expect("up");
    assert!(!gateway.reputation().is_banned(world.now, &world.nodes[owner].id));
    assert!(gateway.reputation().lower_bound(&world.nodes[owner].id) > 0.2);
}

#[test]
fn nobody_is_stopped_without_need() {
    let any = Job { prefer: Prefer::Any, ..job(9) };
    let off = MarketConfig { preempt: false, ..sell("always", 0) };
    // Slots, the owner's terms, the owner's job: whether the stranger goes on.
    for (slots, config, own, stays) in [
        (1, sell("always", 0), job(9), false),
        (1, sell("always", 0), Job { prefer: Prefer::Own, ..job(9) }, false),
        (2, sell("always", 0), job(9), true),
        (2, sell("always", 1), job(9), true),
        (1, sell("always", 0), any, true),
        (1, off, job(9), true),
        (1, sell("always", 0), Job { model: "other".into(), ..job(9) }, true),
    ] {
        let what = format!("{slots} slots, {:?}, {:?}, preempt {}", own.prefer, config.selling, config.preempt);
        let (mut world, gateway, owner, _) = setting(slots, config);
        let id = world.submit(gateway, job(1));
        world.say(owner, "text");
        world.submit(owner, own);
        world.finish(owner);
        let ended = world.nodes[gateway].ended.get(&id).is_some_and(|outcome| outcome.result.is_ok());
        assert_eq!(ended, stays, "{what}");
    }
}

#[test]
fn of_two_owners_jobs_each_takes_one_stranger_and_a_third_waits() {
    let (mut world, gateway, owner, other) = setting(2, sell("always", 0));
    world.submit(gateway, job(1));
    world.submit(gateway, job(2));
    assert_eq!((world.nodes[owner].work.len(), world.nodes[other].work.len()), (2, 0));
    for id in 3..6 {
        world.submit(owner, Job { prefer: Prefer::Own, ..job(id) });
    }
    assert_eq!((world.nodes[owner].work.len(), world.nodes[other].work.len()), (2, 2));
    world.say(owner, "own");
    assert_eq!(world.nodes[owner].placed.len(), 2, "the third waits for the owner's own");
    let reply = ask(&mut world, gateway, owner, vec![]);
    assert_eq!((reply.quote, reply.load.running), (Err(Refusal::Busy), 2));
    world.finish(owner);
    world.say(owner, "own");
    assert_eq!(world.nodes[owner].placed.len(), 3);
    assert_eq!(ask(&mut world, gateway, owner, vec![]).load.slots_free, 1);
}

#[test]
fn a_job_that_cannot_be_continued_makes_way_last_and_ends_with_its_reason() {
    let (mut world, gateway, owner, other) = setting(2, sell("always", 0));
    let single = world.submit(gateway, Job { continuable: false, ..job(1) });
    let whole = world.submit(gateway, job(2));
    world.say(owner, "some text");
    world.submit(owner, job(3));
    assert!(world.nodes[gateway].ended.is_empty(), "the other made way");
    assert_eq!(world.nodes[other].work.len(), 1);
    world.submit(owner, job(4));
    let failure = world.nodes[gateway].ended[&single].result.clone().expect_err("nobody can go on with it");
    assert_eq!(failure.reason, Reason::ProviderPreempted);
    world.finish(other);
    assert_eq!(world.nodes[gateway].ended[&whole].result, Ok("stop".into()));
}

#[test]
fn a_schedule_opens_and_closes_advertisement_probe_and_admission_together() {
    // The world begins at 22:13:20 UTC.
    let minutes_in = START.ms() / 60_000 % 1440;
    assert_eq!(minutes_in, 22 * 60 + 13);
    let (mut world, gateway, owner, _) = setting(1, sell("22:15-22:20", 0));
    let listed = |world: &World| {
        let (id, now) = (world.nodes[owner].id, world.now);
        let peer = world.nodes[gateway].peer.as_ref().expect("up");
        peer.directory().all(now).any(|listing| listing.node() == id)
    };
    assert!(!listed(&world), "what is not for sale is not advertised");
    let reply = ask(&mut world, gateway, owner, vec![]);
    assert_eq!((reply.quote, reply.load.slots_free), (Err(Refusal::Busy), 0));
    assert_eq!(reply.retry_after_ms, 100_000, "until it opens");
    world.pass(Duration::from_millis(100_000));
    assert!(listed(&world), "the offer comes with the opening");
    let reply = ask(&mut world, gateway, owner, vec![]);
    assert_eq!((reply.quote.is_ok(), reply.load.slots_free, reply.retry_after_ms), (true, 1, 0));
    let id = world.submit(gateway, job(1));
    world.pass(Duration::from_secs(299));
    world.say(owner, "in time");
    world.pass(Duration::from_secs(2));
    world.say(owner, ", and what began is finished");
    world.finish(owner);
    assert_eq!(world.text(gateway, id), "in time, and what began is finished");
    assert_eq!(ask(&mut world, gateway, owner, vec![]).quote, Err(Refusal::Busy));
    assert!(!listed(&world), "and the offer was taken back with the closing");
    world.pass(Duration::from_secs(24 * 3600 - 400));
    assert!(!listed(&world), "until the next evening");
    world.pass(Duration::from_secs(120));
    assert!(listed(&world));
    assert!(ask(&mut world, gateway, owner, vec![]).quote.is_ok());
}

/// What closes by the owner's use, or by a backend's fault, may be back any moment: its offer is left to lapse.
#[test]
fn only_a_schedule_takes_offers_back() {
    for (mode, slots) in [("below 40%", 2), ("always", 1)] {
        let (mut world, gateway, owner, _) = setting(slots, sell(mode, 0));
        let listed = |world: &World| {
            let (id, now) = (world.nodes[owner].id, world.now);
            world.nodes[gateway].peer.as_ref().expect("up").directory().all(now).any(|listing| listing.node() == id)
        };
        assert!(listed(&world));
        if mode == "always" {
            world.event(owner, Event::Capacity(vec![]));
        } else {
            world.submit(owner, job(9));
        }
        world.pass(Duration::from_secs(100));
        assert!(listed(&world), "{mode}: not at once");
        world.pass(Duration::from_secs(200));
        assert!(!listed(&world), "{mode}: but it lapses");
    }
}

#[test]
fn above_the_owners_utilisation_nothing_is_sold() {
    let (mut world, gateway, owner, _) = setting(2, sell("below 40%", 0));
    world.submit(owner, job(9));
    world.pass(Duration::from_secs(60));
    let reply = ask(&mut world, gateway, owner, vec![]);
    assert_eq!((reply.quote.clone(), reply.load.slots_free), (Err(Refusal::Busy), 0), "one of two slots is half");
    assert!(reply.retry_after_ms >= 15_000);
    world.finish(owner);
    world.pass(Duration::from_secs(60));
    assert_eq!(ask(&mut world, gateway, owner, vec![]).load.slots_free, 2, "a quarter now");
}

#[test]
fn a_refusal_says_when_a_slot_is_predicted_to_be_free() {
    let (mut world, gateway, owner, _) = setting(1, sell("always", 0));
    // The backend is seen to take 2 s for 500 units, again and again.
    for number in 0..20 {
        world.submit(gateway, job(number));
        world.pass(Duration::from_millis(100));
        for _ in 0..20 {
            world.say(owner, &"x".repeat(25));
            world.pass(Duration::from_millis(100));
        }
        world.finish(owner);
    }
    world.submit(gateway, job(50));
    world.pass(Duration::from_millis(100));
    let early = ask(&mut world, gateway, owner, vec![]);
    assert_eq!(early.quote, Err(Refusal::Busy));
    assert!((1_600..2_600).contains(&early.retry_after_ms), "{early:?}");
    for _ in 0..12 {
        world.say(owner, &"x".repeat(25));
        world.pass(Duration::from_millis(100));
    }
    let later = ask(&mut world, gateway, owner, vec![]);
    assert!((500..1_300).contains(&later.retry_after_ms), "{later:?}");
    let Load { start_ms, per_unit_us, .. } = later.load;
    assert!((80..130).contains(&start_ms) && (3_600..4_600).contains(&per_unit_us), "{:?}", later.load);
}

#[test]
fn load_rides_on_every_reply() {
    let (mut world, gateway, owner, _) = setting(3, sell("always", 1));
    world.submit(owner, job(9));
    world.submit(gateway, job(1));
    world.say(owner, "text");
    world.finish(owner);
    let said: Vec<(u32, u32)> = world
        .wire
        .iter()
        .filter(|(from, ..)| *from == owner)
        .filter_map(|(_, _, frame)| match frame {
            Frame::Accepted { load } | Frame::Done { load, .. } => Some((load.slots_free, load.running)),
            _ => None,
        })
        .collect();
    assert_eq!(said, [(0, 2), (2, 0)], "with the job, and without both");
}

/// A body of two prefix blocks and a question.
fn long(id: u8, question: &str) -> Job {
    let body = [vec![b'a'; 2 * PREFIX_UNITS], question.as_bytes().to_vec()].concat();
    let prefix = spillway_protocol::prefix::names(MODEL, &body);
    Job { body, prefix, ..job(id) }
}

const DISCOUNT: Price =
    Price { input: Credits::new(50_000), cached: Credits::new(5_000), output: Credits::new(200_000) };

#[test]
fn a_cached_prefix_is_billed_at_the_cached_price_by_both_sides() {
    let (mut world, gateway, owner, _) = setting(2, MarketConfig { price: DISCOUNT, ..sell("always", 0) });
    let cached = 2 * PREFIX_UNITS as u64;
    let told = long(1, "why?").prefix;
    assert_eq!(ask(&mut world, gateway, owner, told.clone()).cached_units, 0);
    // Job, what of it is billed as cached: the second finds what the first has left; who names nothing pays in full.
    for (job, cached) in
        [(long(1, "why?"), 0), (long(2, "and how?"), cached), (Job { prefix: vec![], ..long(3, "when?") }, 0)]
    {
        let (id, whole) = (job.id, job.body.len() as u64);
        world.pass(Duration::from_secs(11)); // Earlier quotes lapse.
        world.submit(gateway, job);
        world.say(owner, "because");
        world.finish(owner);
        let leg = world.nodes[gateway].ended[&id].legs[0].clone();
        assert_eq!(leg.usage, Usage { input: whole - cached, cached, output: 7 });
        assert_eq!(Some(leg.cost), DISCOUNT.cost(leg.usage));
        for node in [gateway, owner] {
            let record = world.nodes[node].disk.values().find_map(|record| match record {
                Record::Receipt { job, both: true, bytes, .. } if *job == id => CoSigned::from_bytes(bytes).ok(),
                _ => None,
            });
            assert_eq!(record.expect("both signed").receipt().usage, leg.usage);
        }
    }
    let reply = ask(&mut world, gateway, owner, told.clone());
    assert_eq!((u64::from(reply.cached_units), reply.hot.first().map(|hot| hot.name)), (cached, Some(told[1])));
    let quote = Signed::<Quote>::open(reply.quote.expect("free")).expect("signed");
    assert_eq!((quote.value().cached, quote.value().prefix), (cached, told[1]));
    // A known name at another place is no prefix, and nothing breaks by it.
    for wrong in [vec![told[1]], vec![0, 0, told[1]], vec![told[1]; 64]] {
        let reply = ask(&mut world, gateway, owner, wrong.clone());
        let quote = Signed::<Quote>::open(reply.quote.expect("free")).expect("signed");
        assert_eq!(quote.value().cached, if wrong.len() == 64 { cached } else { 0 });
    }
    world.pass(Duration::from_secs(10));
    let spent = world.nodes[gateway].ended.values().map(|outcome| outcome.cost.micro()).sum::<u64>();
    assert_eq!(world.sessions.values().map(|session| session.settled.micro()).sum::<u64>(), spent);
}

/// A quote outlives the job that it was asked for. The next turn of the conversation finds more in the cache than it says.
#[test]
fn a_kept_quote_is_renewed_where_the_discount_is_worth_a_round_trip() {
    let cached = 2 * PREFIX_UNITS as u64;
    let flat = Price { cached: DISCOUNT.input, ..DISCOUNT };
    // Price, round trip in milliseconds; whether the next turn asks for a new quote, and what is billed as cached.
    for (price, rtt_ms, asks, billed) in [(DISCOUNT, 0, true, cached), (DISCOUNT, 1_000, false, 0), (flat, 0, false, 0)]
    {
        let mut world = World::new();
        let gateway = world.add(1, 0, consumer());
        let owner = world.add(2, 2, MarketConfig { price, ..sell("always", 0) });
        world.submit(gateway, long(1, "why?"));
        world.say(owner, "because");
        world.finish(owner);
        let peer = world.nodes[owner].id;
        for _ in 0..30 {
            world.event(gateway, Event::RoundTrip { peer, rtt: Duration::from_millis(rtt_ms) });
        }
        world.pass(Duration::from_millis(500)); // The load is fresh, and the quote is good.
        let before = world.probes.len();
        let job = long(2, "and how?");
        let (id, whole) = (job.id, job.body.len() as u64);
        world.submit(gateway, job);
        assert_eq!(world.probes.len() - before, usize::from(asks), "{price:?}, {rtt_ms} ms away");
        world.say(owner, "so");
        world.finish(owner);
        let leg = world.nodes[gateway].ended[&id].legs[0].clone();
        assert_eq!(leg.usage, Usage { input: whole - billed, cached: billed, output: 2 });
        let signed = world.wire.iter().filter(|(_, _, frame)| matches!(frame, Frame::CoSigned(_))).count();
        assert_eq!(signed, 2, "both bill it alike");
    }
}

#[test]
fn who_names_anothers_prefix_pays_in_full() {
    let (mut world, gateway, owner, _) = setting(2, MarketConfig { price: DISCOUNT, ..sell("always", 0) });
    world.submit(gateway, long(1, "why?"));
    world.say(owner, "because");
    world.finish(owner);
    world.pass(Duration::from_secs(11)); // The quote from before lapses.
    let mut liar = long(2, "why?");
    liar.body[0] = b'b';
    let whole = liar.body.len() as u64;
    let id = world.submit(gateway, liar);
    world.say(owner, "because");
    world.finish(owner);
    let quoted = world.wire.iter().rev().find_map(|(_, _, frame)| match frame {
        Frame::Open(open) => Some(Signed::<Quote>::open(open.quote.clone()).expect("signed").value().cached),
        _ => None,
    });
    assert_eq!(quoted, Some(2 * PREFIX_UNITS as u64), "the provider had to believe it until it saw the body");
    assert_eq!(world.nodes[gateway].ended[&id].legs[0].usage, Usage { input: whole, cached: 0, output: 7 });
    let signed = world.wire.iter().filter(|(_, _, frame)| matches!(frame, Frame::CoSigned(_))).count();
    assert_eq!(signed, 2, "both counts agree");
}

#[test]
fn a_quote_whose_cached_price_is_above_its_price_is_not_taken() {
    let trap = Price { cached: Credits::new(60_000), ..DISCOUNT };
    let (mut world, gateway, owner, other) = setting(2, MarketConfig { price: trap, ..sell("always", 0) });
    world.submit(gateway, long(1, "why?"));
    assert_eq!((world.nodes[owner].work.len(), world.nodes[other].work.len()), (0, 1));
}

#[test]
fn a_mode_is_read_from_its_text() {
    assert_eq!("below 5%".parse(), Ok(Sell::Below(5)));
    assert_eq!(sell("never", 0).selling.slots_for_strangers(Now(0), spillway_protocol::Slots::default()), 0);
}
