//! A job's whole way between peers: where it goes, what it costs, and what happens when somebody fails.

use crate::common::{MODEL, World, consumer, job, price, provider};
use spillway_ledger::{CoSigned, Credits, Receipt, Signed, Usage};
use spillway_protocol::{
    Abort, BackendError, Event, Frame, Job, Kind, Load, MarketConfig, Prefer, Readiness, Reason, Record, Refusal,
    Route, Sell, Selling,
};
use std::time::Duration;

/// A gateway with one slot, and two strangers: a cheap one and a dear one.
fn market() -> (World, usize, usize, usize) {
    let mut world = World::new();
    let gateway = world.add(1, 1, consumer());
    let cheap = world.add(2, 4, provider(200_000));
    let dear = world.add(3, 4, provider(900_000));
    (world, gateway, cheap, dear)
}

fn reasons(world: &World, node: usize) -> Vec<Reason> {
    world.nodes[node].placed.iter().map(|(_, reason, _)| *reason).collect()
}

#[test]
fn own_hardware_is_first_and_costs_nothing() {
    let (mut world, gateway, ..) = market();
    let id = world.submit(gateway, job(1));
    world.say(gateway, "hello");
    world.finish(gateway);
    assert_eq!(world.text(gateway, id), "hello");
    let outcome = &world.nodes[gateway].ended[&id];
    assert_eq!(outcome.result, Ok("stop".into()));
    assert_eq!(outcome.cost, Credits::ZERO);
    assert_eq!(outcome.legs[0].usage.output, 5, "own work is recorded all the same");
    assert_eq!(reasons(&world, gateway), [Reason::OwnFree]);
    assert!(world.wire.is_empty());
}

#[test]
fn a_saturated_gateway_spills_to_the_cheapest_and_pays_what_was_delivered() {
    let (mut world, gateway, cheap, _) = market();
    world.submit(gateway, job(1));
    let id = world.submit(gateway, job(2));
    for _ in 0..20 {
        world.say(cheap, "twenty bytes of text");
        world.pass(Duration::from_millis(150));
    }
    world.finish(cheap);
    assert_eq!(world.text(gateway, id).len(), 400);
    let outcome = &world.nodes[gateway].ended[&id];
    assert_eq!(outcome.legs[0].provider, Some(world.nodes[cheap].id));
    assert_eq!(outcome.legs[0].reason, Reason::OwnSaturated);
    let due =
        price(50_000, 200_000).cost(Usage { input: job(2).body.len() as u64, cached: 0, output: 400 }).expect("small");
    assert_eq!(outcome.cost, due);

    // Both keep the receipt with both signatures, and the ledger is asked for exactly that much.
    for node in [gateway, cheap] {
        let receipts = world.nodes[node].disk.values().filter_map(|record| match record {
            Record::Receipt { both: true, bytes, .. } => CoSigned::from_bytes(bytes).ok(),
            _ => None,
        });
        let [receipt] = receipts.collect::<Vec<_>>().try_into().expect("one receipt");
        assert_eq!(receipt.receipt().cost, due);
        assert!(receipt.verify(&world.nodes[cheap].account.0, &world.nodes[gateway].account.0));
    }
    world.pass(Duration::from_secs(10));
    let session = world.sessions.values().next().expect("one session");
    assert_eq!(session.settled, due);
    // At most one window was ever promised beyond what was delivered.
    let window = price(50_000, 200_000).cost(Usage { input: 0, cached: 0, output: 64 }).expect("small");
    assert!(session.vouched <= due.checked_add(window).expect("small"), "{session:?}", session = session.vouched);
}

/// What was weighed comes with the outcome: who was taken, who was not, and at what price.
#[test]
fn the_candidates_that_were_not_taken_are_told() {
    let (mut world, gateway, cheap, dear) = market();
    let own = world.submit(gateway, job(1));
    let id = world.submit(gateway, job(2));
    world.say(cheap, "text");
    world.finish(cheap);
    let told: Vec<_> = world.nodes[gateway].ended[&id]
        .considered
        .iter()
        .map(|it| (it.provider, it.taken, it.price.output, it.readiness))
        .collect();
    let (cheap, dear) = (world.nodes[cheap].id, world.nodes[dear].id);
    let row = |node, taken, output| (node, taken, Credits::new(output), Readiness::Free);
    assert_eq!(told, [row(cheap, true, 200_000), row(dear, false, 900_000)]);
    world.finish(gateway);
    assert!(world.nodes[gateway].ended[&own].considered.is_empty(), "own hardware was free: nobody was weighed");

    // However many there are, only so many are told.
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let providers: Vec<usize> = (2..22).map(|seed| world.add(seed, 4, provider(100_000 * u64::from(seed)))).collect();
    let id = world.submit(gateway, job(1));
    world.say(providers[0], "text");
    world.finish(providers[0]);
    let considered = &world.nodes[gateway].ended[&id].considered;
    assert_eq!(considered.len(), spillway_protocol::job::CONSIDERED_MAX);
    assert!(considered[0].taken && considered[1..].iter().all(|it| !it.taken), "{considered:?}");
}

#[test]
fn an_own_only_job_never_leaves() {
    let (mut world, gateway, ..) = market();
    world.submit(gateway, job(1));
    let waiting = world.submit(gateway, spillway_protocol::Job { prefer: Prefer::Own, ..job(2) });
    let missing =
        world.submit(gateway, spillway_protocol::Job { prefer: Prefer::Own, model: "other".into(), ..job(3) });
    world.pass(Duration::from_secs(40));
    let failure = |id| world.nodes[gateway].ended[&id].result.clone().expect_err("failed").reason;
    assert_eq!(failure(waiting), Reason::OwnSaturated);
    assert_eq!(failure(missing), Reason::LabelForbidsNetwork);
    assert!(world.wire.is_empty() && world.sessions.is_empty());
}

#[test]
fn an_unplaceable_job_says_why() {
    let dear = spillway_protocol::Job { price_max: price(1, 1), model: MODEL.into(), ..job(1) };
    let unknown = spillway_protocol::Job { model: "nobody-has-it".into(), ..job(2) };
    for (job, reason) in [(dear, Reason::PriceCap), (unknown, Reason::NoOffer)] {
        let mut world = World::new();
        let gateway = world.add(1, 0, consumer());
        world.add(2, 4, provider(200_000));
        let id = world.submit(gateway, job);
        assert_eq!(world.nodes[gateway].ended[&id].result.clone().expect_err("failed").reason, reason);
    }
}

#[test]
fn without_balance_nothing_is_opened() {
    let (mut world, gateway, ..) = market();
    world.event(gateway, Event::Balance(Credits::ZERO));
    world.submit(gateway, job(1));
    let id = world.submit(gateway, job(2));
    // The own slot may still come free: the job waits for it, and runs there.
    assert!(!world.nodes[gateway].ended.contains_key(&id) && world.sessions.is_empty());
    world.finish(gateway);
    world.say(gateway, "own after all");
    world.finish(gateway);
    assert_eq!(world.text(gateway, id), "own after all");
}

/// Kills the provider after every number of chunks: the client's text is whole, and no byte is doubled.
#[test]
fn a_provider_that_dies_is_continued_elsewhere() {
    for (cut, silent) in (0..6).flat_map(|cut| [(cut, false), (cut, true)]) {
        let mut world = World::new();
        let gateway = world.add(1, 0, consumer());
        let cheap = world.add(2, 4, provider(200_000));
        let dear = world.add(3, 4, provider(900_000));
        let id = world.submit(gateway, job(1));
        for piece in 0..cut {
            world.say(cheap, &format!("<{piece}>"));
        }
        if silent {
            world.muted.push(cheap);
            world.pass(Duration::from_millis(1_999));
        } else {
            world.kill(cheap);
        }
        let prefix = world.nodes[dear].work.values().next().expect("the other took over").clone();
        assert_eq!(prefix, world.nodes[gateway].text.get(&id).cloned().unwrap_or_default(), "cut at {cut}");
        for piece in cut..6 {
            world.say(dear, &format!("<{piece}>"));
        }
        world.finish(dear);
        assert_eq!(world.text(gateway, id), "<0><1><2><3><4><5>");
        let outcome = &world.nodes[gateway].ended[&id];
        assert_eq!(outcome.result, Ok("stop".into()));
        let last = outcome.legs.last().expect("two legs");
        assert_eq!((last.route, last.reason), (Route::Network, Reason::ProviderStalled));
        // What the first one delivered is paid for, and nothing if that was nothing.
        assert_eq!(outcome.legs[0].cost == Credits::ZERO, cut == 0, "cut at {cut}");
    }
}

/// A backend that would begin a new answer behind the old one gets none that was begun, and that is no fault of its node.
#[test]
fn an_answer_is_continued_only_where_it_can_be() {
    // What the own backend and the two other strangers can, and where the job is in the end.
    for (kind, can, want) in [
        (Kind::Chat, [true, true, true], Some(0)),
        (Kind::Chat, [false, true, true], Some(2)),
        (Kind::Chat, [false, false, true], Some(3)),
        (Kind::Chat, [false, false, false], None),
        (Kind::Completion, [false, false, false], Some(0)),
    ] {
        let mut world = World::new();
        let gateway = world.add(1, 1, consumer());
        let cheap = world.add(2, 4, provider(200_000));
        let (dear, dearest) = (world.add(3, 4, provider(300_000)), world.add(4, 4, provider(900_000)));
        let set = |world: &mut World, node: usize, continues: bool| {
            let mut capacity = world.nodes[node].capacity.clone();
            capacity[0].continues = continues;
            world.nodes[node].capacity = capacity.clone();
            world.event(node, Event::Capacity(capacity));
        };
        // The own slot is taken, and free again before the stranger dies.
        world.submit(gateway, job(1));
        let id = world.submit(gateway, Job { kind, ..job(2) });
        world.say(cheap, "<0>");
        for (node, can) in [gateway, dear, dearest].into_iter().zip(can) {
            set(&mut world, node, can);
        }
        world.finish(gateway);
        world.kill(cheap);
        world.pass(Duration::from_secs(60));
        let at: Vec<usize> = (0..4).filter(|node| !world.nodes[*node].work.is_empty()).collect();
        assert_eq!(at, want.into_iter().collect::<Vec<_>>(), "{kind:?} {can:?}");
        if let Some(node) = want {
            assert_eq!(world.nodes[node].work.values().collect::<Vec<_>>(), [b"<0>"]);
        } else {
            let failure = world.nodes[gateway].ended[&id].result.as_ref().expect_err("it broke off");
            assert_eq!(failure.reason, Reason::ProviderRefused);
            assert!(failure.message.contains("broke off"), "{}", failure.message);
        }
        assert_eq!(world.text(gateway, id), "<0>");
        let reputation = world.nodes[gateway].peer.as_ref().expect("up").reputation();
        assert_eq!(reputation.lower_bound(&world.nodes[dear].id), reputation.lower_bound(&world.nodes[dearest].id));
    }
}

#[test]
fn a_backend_error_moves_the_job_but_a_bad_request_does_not() {
    let rejected = BackendError::Rejected { status: 422, message: "no such tool".into() };
    for (error, moved) in [
        (BackendError::Failed("oops".into()), true),
        (BackendError::Busy { retry_after_ms: None }, true),
        (rejected, false),
    ] {
        let mut world = World::new();
        let gateway = world.add(1, 0, consumer());
        let cheap = world.add(2, 4, provider(200_000));
        let dear = world.add(3, 4, provider(900_000));
        let id = world.submit(gateway, job(1));
        let work = *world.nodes[cheap].work.keys().next().expect("at the cheap one");
        world.event(cheap, Event::BackendFailed { work, error });
        assert_eq!(!world.nodes[dear].work.is_empty(), moved);
        if !moved {
            let failure = world.nodes[gateway].ended[&id].result.clone().expect_err("failed");
            assert_eq!((failure.status, failure.message.as_str()), (Some(422), "no such tool"));
            assert_eq!(world.nodes[gateway].ended[&id].cost, Credits::ZERO);
        }
    }
}

#[test]
fn a_client_that_leaves_pays_for_what_it_got() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let cheap = world.add(2, 4, provider(200_000));
    let id = world.submit(gateway, job(1));
    world.say(cheap, "ten bytes.");
    world.event(gateway, Event::ClientLeft(id));
    assert!(world.nodes[cheap].work.is_empty(), "the backend is stopped");
    let outcome = &world.nodes[gateway].ended[&id];
    assert_eq!(outcome.result.clone().expect_err("left").reason, Reason::ClientLeft);
    let due =
        price(50_000, 200_000).cost(Usage { input: job(1).body.len() as u64, cached: 0, output: 10 }).expect("small");
    assert_eq!(outcome.cost, due);
    world.pass(Duration::from_secs(10));
    assert_eq!(world.sessions.values().next().expect("one").settled, due);
}

#[test]
fn who_does_not_pay_gets_one_window() {
    let mut world = World::new();
    let gateway = world.add(1, 0, MarketConfig { payment_wait: Duration::from_secs(60), ..consumer() });
    let cheap = world.add(2, 4, provider(200_000));
    world.vouchers_lost = true;
    let id = world.submit(gateway, job(1));
    for _ in 0..50 {
        world.say(cheap, "sixteen bytes ..");
    }
    assert!(world.text(gateway, id).len() <= 64, "{}", world.text(gateway, id).len());
    world.pass(Duration::from_secs(61));
    let aborted = |frame: &Frame| matches!(frame, Frame::Aborted { abort: Abort::Unpaid, receipt: Some(_) });
    assert!(world.wire.iter().any(|(_, _, frame)| aborted(frame)));
    assert!(world.nodes[cheap].work.is_empty());
}

#[test]
fn an_event_larger_than_the_window_is_paid_for_and_delivered() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let cheap = world.add(2, 4, provider(200_000));
    let id = world.submit(gateway, job(1));
    for _ in 0..4 {
        world.say(cheap, &"x".repeat(200));
        world.pass(Duration::from_millis(500));
    }
    world.finish(cheap);
    assert_eq!(world.text(gateway, id).len(), 800);
    assert_eq!(world.nodes[gateway].ended[&id].result, Ok("stop".into()));
}

#[test]
fn a_restarted_provider_settles_what_it_delivered() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let cheap = world.add(2, 4, provider(200_000));
    let id = world.submit(gateway, job(1));
    world.say(cheap, "twelve bytes");
    world.kill(cheap);
    assert_eq!(world.text(gateway, id), "twelve bytes");
    world.start(cheap);
    world.pass(Duration::from_secs(20));
    let due =
        price(50_000, 200_000).cost(Usage { input: job(1).body.len() as u64, cached: 0, output: 12 }).expect("small");
    assert_eq!(world.sessions.values().next().expect("one").settled, due);
}

#[test]
fn a_restarted_gateway_promises_nothing_twice() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let cheap = world.add(2, 4, provider(200_000));
    world.submit(gateway, job(1));
    world.say(cheap, "twelve bytes");
    let before = world.sessions.values().next().expect("one").vouched;
    world.kill(gateway);
    world.start(gateway);
    // The offers come again with the next round.
    world.pass(Duration::from_secs(61));
    let id = world.submit(gateway, job(2));
    world.say(cheap, "ten bytes.");
    world.finish(cheap);
    assert_eq!(world.nodes[gateway].ended[&id].result, Ok("stop".into()));
    world.pass(Duration::from_secs(20));
    assert_eq!(world.sessions.len(), 1, "the session is used again");
    let session = world.sessions.values().next().expect("one");
    assert!(session.vouched > before && session.settled <= session.vouched);
}

#[test]
fn a_busy_provider_refuses_and_the_next_is_asked() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let cheap = world.add(2, 1, provider(200_000));
    let dear = world.add(3, 1, provider(900_000));
    let (first, second) = (world.submit(gateway, job(1)), world.submit(gateway, job(2)));
    assert_eq!((world.nodes[cheap].work.len(), world.nodes[dear].work.len()), (1, 1));
    let third = world.submit(gateway, job(3));
    assert!(!world.nodes[gateway].ended.contains_key(&third), "all are busy: it waits");
    world.say(cheap, "done");
    world.finish(cheap);
    // Its slot is free: the one that waits looks again soon, and gets it.
    world.pass(Duration::from_secs(3));
    assert_eq!((world.nodes[cheap].work.len(), world.nodes[dear].work.len()), (1, 1));
    for node in [cheap, dear] {
        world.say(node, "done");
        world.finish(node);
    }
    for id in [first, second, third] {
        assert_eq!(world.nodes[gateway].ended[&id].result, Ok("stop".into()));
    }
    assert_eq!(world.nodes[gateway].ended[&third].legs.len(), 1);
}

/// A load is good for a second, wherever it came from.
#[test]
fn the_load_on_a_jobs_frames_spares_probes_and_wakes_who_waits() {
    let tenths = |count: u32| Duration::from_millis(100) * count;
    // Tenths of a second from the first job to its end, and on to the second job; and the probes that the second needs.
    for (lasts, then, probes) in [(30, 5, 0), (30, 15, 1), (5, 6, 0), (0, 5, 0), (0, 15, 1)] {
        let mut world = World::new();
        let gateway = world.add(1, 0, consumer());
        let only = world.add(2, 4, provider(200_000));
        world.submit(gateway, job(1));
        world.say(only, "text");
        world.pass(tenths(lasts));
        if lasts > 0 {
            world.finish(only);
        }
        world.pass(tenths(then));
        let before = world.probes.len();
        world.submit(gateway, job(2));
        assert_eq!(world.probes.len() - before, probes, "{lasts} and {then} tenths of a second");
        assert_eq!(world.nodes[only].work.len(), if lasts > 0 { 1 } else { 2 });
    }

    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let only = world.add(2, 1, provider(200_000));
    world.submit(gateway, job(1));
    let waits = world.submit(gateway, job(2));
    assert!(!world.nodes[gateway].ended.contains_key(&waits), "all are busy: it waits");
    world.finish(only);
    assert_eq!(world.nodes[only].work.len(), 1, "the first one's end says that there is room");
    world.say(only, "text");
    world.finish(only);
    assert_eq!(world.nodes[gateway].ended[&waits].legs.len(), 1);
}

#[test]
fn a_job_waits_for_a_strangers_slot_only_so_long_and_only_behind_so_many() {
    let mut world = World::new();
    let gateway = world.add(1, 0, MarketConfig { queue_max: 1, ..consumer() });
    let only = world.add(2, 1, provider(200_000));
    world.submit(gateway, job(1));
    let (waits, surplus) = (world.submit(gateway, job(2)), world.submit(gateway, job(3)));
    assert_eq!(world.nodes[only].work.len(), 1);
    let failure = world.nodes[gateway].ended[&surplus].result.clone().expect_err("the queue is full");
    assert_eq!(failure.reason, Reason::ProviderRefused);
    assert!(failure.retry_after_ms.is_some_and(|ms| ms >= 1_000), "it is told when to come again");
    for _ in 0..35 {
        world.say(only, "goes on ");
        world.pass(Duration::from_secs(1));
    }
    let failure = world.nodes[gateway].ended[&waits].result.clone().expect_err("no slot became free");
    assert_eq!(failure.reason, Reason::ProviderRefused);
    assert!(failure.retry_after_ms.is_some());
}

#[test]
fn a_job_falls_back_to_its_next_model_and_keeps_to_its_preferences() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let cheap = world.add(2, 4, provider(200_000));
    let dear = world.add(3, 4, provider(900_000));
    let fallen = spillway_protocol::Job { model: "nobody".into(), alternatives: vec![MODEL.into()], ..job(1) };
    world.submit(gateway, fallen);
    assert_eq!(world.nodes[cheap].work.len(), 1);
    let avoids = spillway_protocol::Preferences {
        ignore: vec![world.nodes[cheap].id.to_string()],
        ..spillway_protocol::Preferences::default()
    };
    world.submit(gateway, spillway_protocol::Job { preferences: avoids, ..job(2) });
    assert_eq!((world.nodes[cheap].work.len(), world.nodes[dear].work.len()), (1, 1));
    let nowhere = spillway_protocol::Preferences {
        only: vec!["region:nowhere".into()],
        ..spillway_protocol::Preferences::default()
    };
    let id = world.submit(gateway, spillway_protocol::Job { preferences: nowhere, ..job(3) });
    assert_eq!(world.nodes[gateway].ended[&id].result.clone().expect_err("nobody").reason, Reason::PriceCap);
}

#[test]
fn strangers_never_get_the_reserved_slot() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let owner = world.add(
        2,
        2,
        MarketConfig { selling: Selling { mode: Sell::Always, reserved_slots: 1 }, ..provider(200_000) },
    );
    world.submit(gateway, job(1));
    let id = world.submit(gateway, job(2));
    assert_eq!(world.nodes[owner].work.len(), 1);
    assert!(!world.nodes[gateway].ended.contains_key(&id), "it waits");
    world.submit(owner, job(3));
    assert_eq!(world.nodes[owner].work.len(), 2, "the owner has it at once");
}

#[test]
fn a_receipt_that_overcounts_is_not_signed() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let cheap = world.add(2, 4, provider(200_000));
    let id = world.submit(gateway, job(1));
    world.say(cheap, "honest");
    // The provider's machine never lies: the frame is forged on its way.
    let ((_, stream), _) = world.streams.iter().find(|((node, _), _)| *node == gateway).expect("a stream");
    let stream = *stream;
    let session = *world.sessions.keys().next().expect("one");
    let receipt = Receipt {
        network: crate::common::network(),
        session,
        job: id,
        leg: 0,
        model: MODEL.into(),
        weights: spillway_ledger::Digest::from_bytes([0; 32]),
        kind: "chat".into(),
        prompt: spillway_ledger::Digest::from_bytes([0; 32]),
        transcript: spillway_ledger::Digest::from_bytes([0; 32]),
        usage: Usage { input: job(1).body.len() as u64, cached: 0, output: 4000 },
        price: price(50_000, 200_000),
        cost: Credits::new(900),
        first_token_ms: 1,
        total_ms: 2,
        finish: "stop".into(),
        time_ms: 0,
    };
    let receipt = Signed::sign(receipt, &crate::common::secret(2, 2)).to_wire();
    let frame = Frame::Done { finish: "stop".into(), receipt, load: Load::default() };
    let peer = world.nodes[cheap].id;
    world.event(gateway, Event::FrameReceived { stream, peer, frame, text: vec![] });
    let outcome = &world.nodes[gateway].ended[&id];
    let own_count = Usage { input: job(1).body.len() as u64, cached: 0, output: 6 };
    assert_eq!(Some(outcome.cost), price(50_000, 200_000).cost(own_count), "the client pays by its own count");
    assert!(!world.wire.iter().any(|(from, _, frame)| *from == gateway && matches!(frame, Frame::CoSigned(_))));
}

/// A place is busy when it is asked, and free before the job has decided: another job's stream says so.
#[test]
fn a_place_that_said_it_was_busy_is_asked_again_once_it_says_on_another_stream_that_it_is_free() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let place = world.add(2, 1, provider(200_000));
    // It is known, and never answers: whoever asks both waits for it.
    let gone = world.add(3, 4, provider(900_000));
    world.kill(gone);
    world.submit(gateway, job(1));
    world.pass(Duration::from_millis(300));
    world.say(place, "the first");
    // What it said of its load is too old to act on: the second job asks both.
    world.pass(Duration::from_secs(2));
    let before = world.probes.len();
    let id = world.submit(gateway, job(2));
    assert_eq!(world.probes[before..].iter().filter(|(_, to)| *to == place).count(), 1);
    world.finish(place);
    world.pass(Duration::from_millis(300));
    assert_eq!(world.probes[before..].iter().filter(|(_, to)| *to == place).count(), 2, "it is asked again");
    world.pass(Duration::from_millis(300));
    world.say(place, "the second");
    assert_eq!(world.text(gateway, id), "the second");
}

/// Cheap strangers that quote, take the first voucher and never say a word.
#[test]
fn where_strangers_fall_silent_the_next_one_is_tried_sooner() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    for seed in 2..32 {
        let silent = world.add(seed, 4, provider(100_000));
        world.muted.push(silent);
    }
    world.submit(gateway, job(1));
    let tried = |world: &World| world.wire.iter().filter(|(.., frame)| matches!(frame, Frame::Open(_))).count();
    // Until most have broken their word each is given a second and a half.
    world.pass(Duration::from_millis(8_900));
    assert_eq!(tried(&world), 6);
    world.pass(Duration::from_millis(3_100));
    assert!(tried(&world) >= 10, "{} tried", tried(&world));
}

/// Signs of life do not keep a job with somebody who never takes it.
#[test]
fn a_job_that_is_not_accepted_moves_on_whatever_signs_of_life_come() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let silent = world.add(2, 4, provider(100_000));
    let other = world.add(3, 4, provider(900_000));
    world.muted.push(silent);
    let id = world.submit(gateway, job(1));
    let ((_, stream), _) = world.streams.iter().find(|((node, _), _)| *node == gateway).expect("a stream");
    let (stream, peer) = (*stream, world.nodes[silent].id);
    for _ in 0..12 {
        world.pass(Duration::from_millis(400));
        let frame = Frame::Alive { held: 0 };
        world.event(gateway, Event::FrameReceived { stream, peer, frame, text: vec![] });
    }
    assert!(world.nodes[other].work.is_empty());
    world.pass(Duration::from_millis(300));
    world.say(other, "taken");
    assert_eq!(world.text(gateway, id), "taken");
}

#[test]
fn refusals_name_who_is_at_fault() {
    use Refusal::{
        BadQuote, Busy, CannotContinue, ForgedVoucher, OverDeposit, SessionExpiring, TooLarge, Underpaid, UnknownModel,
        UnknownSession,
    };
    for refusal in [BadQuote, ForgedVoucher, OverDeposit, SessionExpiring, TooLarge, Underpaid, CannotContinue] {
        assert!(!refusal.is_providers_fault(), "{refusal:?}");
    }
    for refusal in [Busy, UnknownModel, UnknownSession] {
        assert!(refusal.is_providers_fault(), "{refusal:?}");
    }
}

/// After a provider's backend failed it rests a while; who has nobody else is told so, and when to come again.
#[test]
fn a_place_that_rests_is_no_matter_of_price() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let only = world.add(2, 4, provider(200_000));
    world.submit(gateway, job(1));
    let work = *world.nodes[only].work.keys().next().expect("it runs there");
    world.event(only, Event::BackendFailed { work, error: BackendError::Failed("oops".into()) });
    world.pass(Duration::from_secs(5));
    let id = world.submit(gateway, job(2));
    let failure = world.nodes[gateway].ended[&id].result.clone().expect_err("nobody is left");
    assert_eq!(failure.reason, Reason::NoPlace, "{}", failure.message);
    let wait = failure.retry_after_ms.expect("it comes back");
    assert!((1_000..=60_000).contains(&wait), "{wait}");
    world.pass(Duration::from_millis(wait));
    let id = world.submit(gateway, job(3));
    assert!(!world.nodes[gateway].ended.contains_key(&id), "it is back when it was said to be");
    // What is too dear stays a matter of price.
    let dear = spillway_protocol::Job { price_max: price(1, 1), ..job(4) };
    let id = world.submit(gateway, dear);
    assert_eq!(world.nodes[gateway].ended[&id].result.as_ref().expect_err("dear").reason, Reason::PriceCap);
}

/// An own backend that does not answer is the reason, where nobody else has the model.
#[test]
fn an_own_backend_that_does_not_answer_is_said() {
    let mut world = World::new();
    let gateway = world.add(1, 1, consumer());
    let mut capacity = world.nodes[gateway].capacity.clone();
    capacity[0].healthy = false;
    world.event(gateway, Event::Capacity(capacity));
    let id = world.submit(gateway, job(1));
    let failure = world.nodes[gateway].ended[&id].result.clone().expect_err("it is down");
    assert_eq!((failure.reason, failure.retry_after_ms), (Reason::OwnUnhealthy, Some(1_000)));
}

/// What an own backend costs is the leg's cost, whatever becomes of the answer; each word on it replaces the one before.
#[test]
fn what_own_backends_cost_is_counted() {
    for ends in [true, false] {
        let mut world = World::new();
        let gateway = world.add(1, 1, consumer());
        let id = world.submit(gateway, job(1));
        let work = *world.nodes[gateway].work.keys().next().expect("it runs");
        for cost in [10, 30, 25] {
            world.event(gateway, Event::Charged { work, cost: Credits::new(cost) });
        }
        if ends {
            world.finish(gateway);
        } else {
            world.event(gateway, Event::ClientLeft(id));
        }
        let outcome = &world.nodes[gateway].ended[&id];
        assert_eq!((outcome.cost, outcome.legs[0].cost), (Credits::new(25), Credits::new(25)), "{ends}");
    }
}

/// Slots that cost the owner money are not for strangers.
#[test]
fn rented_slots_are_not_sold() {
    for (slots, rented, served) in [(4, 0, true), (4, 2, true), (4, 4, false)] {
        let mut world = World::new();
        let gateway = world.add(1, 0, consumer());
        let owner = world.add(2, slots, provider(200_000));
        let mut capacity = world.nodes[owner].capacity.clone();
        capacity[0].rented = rented;
        world.nodes[owner].capacity = capacity.clone();
        world.event(owner, Event::Capacity(capacity));
        world.pass(Duration::from_secs(1));
        let id = world.submit(gateway, job(1));
        world.pass(Duration::from_secs(40));
        assert_eq!(
            !world.nodes[owner].work.is_empty(),
            served,
            "{slots} {rented}: {:?}",
            world.nodes[gateway].ended.get(&id)
        );
    }
}
