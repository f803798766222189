//! Deposits: locked before a job needs them, raised before they run dry, bounded, and back in the end.

use crate::common::{World, consumer, job, price, provider};
use spillway_ledger::{Account, Credits, JobId, SessionId};
use spillway_protocol::config::{LedgerSection, NetworkSection, ProvideSection, SpendSection, TelemetrySection};
use spillway_protocol::{
    Event, Frame, Job, LedgerCommand, Load, MarketConfig, NodeConfig, Prefer, Reason, Record, Refusal,
};
use std::collections::BTreeMap;
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

/// A consumer with the shipped readiness.
fn ready() -> MarketConfig {
    MarketConfig { sessions_ahead: 3, ..consumer() }
}

/// What was locked for whom by new sessions, in the order it was asked for.
fn opened(world: &World) -> Vec<(Account, Credits)> {
    let opens = world.asked.iter().filter_map(|(_, _, command)| match command {
        LedgerCommand::Open { provider, deposit, .. } => Some((*provider, *deposit)),
        LedgerCommand::TopUp { .. } | LedgerCommand::Settle { .. } | LedgerCommand::Refund { .. } => None,
    });
    opens.collect()
}

/// The top-ups that were asked for: business id, session, amount.
fn raises(world: &World) -> Vec<([u8; 16], SessionId, Credits)> {
    let raises = world.asked.iter().filter_map(|(_, business, command)| match command {
        LedgerCommand::TopUp { session, amount } => Some((*business, *session, *amount)),
        LedgerCommand::Open { .. } | LedgerCommand::Settle { .. } | LedgerCommand::Refund { .. } => None,
    });
    raises.collect()
}

/// A node's sessions on its disk, as payer or as payee, with their deposits.
fn kept(world: &World, node: usize) -> BTreeMap<SessionId, Credits> {
    let records = world.nodes[node].disk.values().filter_map(|record| match record {
        Record::Paying(paying) => Some((paying.session, paying.deposit)),
        Record::Earning(earning) => Some((earning.session, earning.deposit)),
        Record::Spending(_) | Record::Receipt { .. } | Record::PayingOver(_) | Record::EarningOver(_) => None,
    });
    records.collect()
}

fn failure(world: &World, node: usize, id: JobId) -> Reason {
    world.nodes[node].ended[&id].result.clone().expect_err("failed").reason
}

// ---- before a job needs it ----

#[test]
fn the_first_job_to_a_prepared_provider_does_not_wait_for_the_ledger() {
    let mut world = World::new();
    let gateway = world.add(1, 1, ready());
    let cheap = world.add(2, 4, provider(200_000));
    let dear = world.add(3, 4, provider(900_000));
    world.submit(gateway, job(1));
    world.pass(SECOND);
    let accounts: Vec<Account> = opened(&world).into_iter().map(|(account, _)| account).collect();
    assert_eq!(accounts, [world.nodes[cheap].account, world.nodes[dear].account], "the likeliest first, each once");

    world.asked.clear();
    world.ledger_waits = true;
    world.submit(gateway, job(2));
    assert_eq!(world.nodes[cheap].work.len(), 1, "its stream is open at once");
    assert!(world.asked.is_empty(), "{:?}", world.asked);
}

/// Readiness costs: it is for those whose jobs could leave.
#[test]
fn nothing_is_locked_where_no_job_could_leave() {
    type Change = fn(&mut World, usize);
    let cases: [(&str, u32, MarketConfig, Change); 7] = [
        ("no job at all", 1, ready(), |_, _| {}),
        ("a slot to spare", 2, ready(), |world, node| {
            world.submit(node, job(1));
        }),
        ("only jobs that stay", 1, ready(), |world, node| {
            world.submit(node, Job { prefer: Prefer::Own, ..job(1) });
            world.submit(node, Job { prefer: Prefer::Own, ..job(2) });
        }),
        ("readiness switched off", 1, consumer(), |world, node| {
            world.submit(node, job(1));
        }),
        ("a price limit below every offer", 1, ready(), |world, node| {
            world.submit(node, Job { price_max: price(1, 1), ..job(1) });
        }),
        ("a model that nobody has", 0, ready(), |world, node| {
            world.submit(node, Job { model: "nobody-has-it".into(), ..job(1) });
        }),
        ("no balance", 1, ready(), |world, node| {
            world.event(node, Event::Balance(Credits::ZERO));
            world.submit(node, job(1));
        }),
    ];
    for (what, slots, config, change) in cases {
        let mut world = World::new();
        let gateway = world.add(1, slots, config);
        world.add(2, 4, provider(200_000));
        change(&mut world, gateway);
        world.pass(Duration::from_secs(120));
        assert!(world.asked.is_empty(), "{what}: {:?}", world.asked);
    }
}

#[test]
fn what_lies_ready_stays_within_its_share_and_count() {
    // Balance, deposit, sessions ahead, share in per cent; and the deposits that are then locked for five providers.
    let cases: [(u64, u64, u32, u8, &[u64]); 6] = [
        (10_000_000, 1_000_000, 3, 25, &[1_000_000, 1_000_000, 500_000]),
        (100_000_000, 1_000_000, 3, 25, &[1_000_000; 3]),
        (100_000_000, 1_000_000, 2, 25, &[1_000_000; 2]),
        (2_000_000, 1_000_000, 3, 25, &[500_000]),
        (2_000_000, 1_000_000, 3, 0, &[]),
        // Less than one job may cost is no use.
        (2_000, 1_000_000, 3, 25, &[]),
    ];
    for (balance, deposit, sessions_ahead, ahead_percent, locked) in cases {
        let mut world = World::new();
        let config = MarketConfig { deposit: Credits::new(deposit), sessions_ahead, ahead_percent, ..ready() };
        let gateway = world.add(1, 1, config);
        for seed in 2..7 {
            world.add(seed, 4, provider(200_000));
        }
        // The test's ledger tells no balances: it is told once, and again with what is left.
        world.event(gateway, Event::Balance(Credits::new(balance)));
        world.submit(gateway, job(1));
        world.pass(Duration::from_secs(200));
        let opened = opened(&world);
        let deposits: Vec<u64> = opened.iter().map(|(_, deposit)| deposit.micro()).collect();
        assert_eq!(deposits, locked, "balance {balance}, deposit {deposit}, {sessions_ahead} at {ahead_percent} %");
        let mut accounts: Vec<Account> = opened.into_iter().map(|(account, _)| account).collect();
        accounts.sort_unstable();
        accounts.dedup();
        assert_eq!(accounts.len(), locked.len(), "no provider has two");
    }
}

#[test]
fn a_refused_opening_ahead_is_not_asked_again_at_once() {
    let mut world = World::new();
    let gateway = world.add(1, 1, ready());
    world.add(2, 4, provider(200_000));
    world.add(3, 4, provider(900_000));
    world.ledger_waits = true;
    world.submit(gateway, job(1));
    world.pass(SECOND);
    assert_eq!(opened(&world).len(), 1, "one entry at a time");
    world.answer(false);
    world.pass(Duration::from_secs(8));
    assert_eq!(opened(&world).len(), 1);
    world.pass(Duration::from_secs(15));
    assert_eq!(opened(&world).len(), 2);
}

#[test]
fn what_nobody_used_ends_and_comes_back() {
    let mut world = World::new();
    let gateway = world.add(1, 1, ready());
    let cheap = world.add(2, 4, provider(200_000));
    world.submit(gateway, job(1));
    world.pass(SECOND);
    world.say(gateway, "own");
    world.finish(gateway);
    assert_eq!(kept(&world, gateway).len(), 1);
    // Two hours of life and one of grace: all the while nothing more is locked, and nothing is asked back too early.
    world.pass(Duration::from_secs(3 * 3600 - 10));
    assert_eq!(world.asked.len(), 1, "{:?}", world.asked);
    world.pass(Duration::from_secs(20));
    let session = *world.sessions.keys().next().expect("one");
    assert_eq!(world.asked.last().expect("two").2, LedgerCommand::Refund { session });
    assert!(kept(&world, gateway).is_empty() && kept(&world, cheap).is_empty());
    world.pass(Duration::from_secs(24 * 3600));
    assert_eq!(world.asked.len(), 2, "{:?}", world.asked);
}

#[test]
fn a_wanted_session_has_a_successor_before_it_ends_and_an_unwanted_one_has_none() {
    let mut world = World::new();
    // No job begins on a session in its last ten minutes: these can be used for two.
    let gateway = world.add(1, 1, MarketConfig { session_lifetime: Duration::from_secs(720), ..ready() });
    world.add(2, 4, provider(200_000));
    world.submit(gateway, job(1));
    world.pass(Duration::from_secs(85));
    assert_eq!(opened(&world).len(), 1, "one is enough while it lasts");
    world.pass(Duration::from_secs(30));
    assert_eq!(opened(&world).len(), 2, "the next one is there before it cannot be used");
    world.pass(Duration::from_secs(3600));
    let wanted_for_five_minutes = opened(&world).len();
    assert!((3..=4).contains(&wanted_for_five_minutes), "{wanted_for_five_minutes}");
    world.pass(Duration::from_secs(3 * 3600));
    assert_eq!(opened(&world).len(), wanted_for_five_minutes);
    assert!(kept(&world, gateway).is_empty(), "all came back");
}

// ---- a job that would have to wait ----

#[test]
fn a_job_goes_where_a_session_is_ready_unless_that_is_much_worse() {
    // Both are dearer than the new one; the history of the old one makes up for some of it.
    for (output, waits) in [(4_000_000, false), (8_000_000, true)] {
        let mut world = World::new();
        let gateway = world.add(1, 0, ready());
        let dear = world.add(2, 4, provider(output));
        world.submit(gateway, job(1));
        world.finish(dear);
        let cheap = world.add(3, 4, provider(200_000));
        world.ledger_waits = true;
        world.asked.clear();
        let id = world.submit(gateway, job(2));
        assert_eq!(world.nodes[dear].work.len(), usize::from(!waits), "price {output}");
        world.pass(SECOND);
        assert_eq!(opened(&world), [(world.nodes[cheap].account, Credits::new(1_000_000))], "price {output}");
        world.answer(true);
        // The better one is ready for the next job in any case, or for this one.
        let next = world.submit(gateway, job(3));
        assert_eq!(world.nodes[cheap].work.len(), 1 + usize::from(waits), "price {output}");
        for node in [dear, cheap] {
            world.say(node, "text");
            world.finish(node);
        }
        for id in [id, next] {
            assert_eq!(world.nodes[gateway].ended[&id].result, Ok("stop".into()));
        }
    }
}

// ---- before it runs dry ----

/// A consumer without hardware, a provider, and two jobs on one session that may use 820 of its 2,000 each: the second
/// leaves too little for a third. The ledger answers from now on only when told to.
fn nearly_dry() -> (World, usize, usize, SessionId) {
    let mut world = World::new();
    let patient = MarketConfig { open_wait: Duration::from_secs(60), ..consumer() };
    let gateway = world.add(1, 0, MarketConfig { deposit: Credits::new(2_000), ..patient });
    let provider = world.add(2, 8, provider(200_000));
    world.submit(gateway, job(1));
    let session = *world.sessions.keys().next().expect("opened for the first job");
    assert!(raises(&world).is_empty(), "enough is left for a second");
    world.ledger_waits = true;
    world.submit(gateway, job(2));
    (world, gateway, provider, session)
}

/// Lets every job at `provider` say `bytes` and more, in pieces that a window covers.
fn say(world: &mut World, provider: usize, bytes: usize) {
    for _ in 0..bytes.div_ceil(60) {
        world.say(provider, &"x".repeat(60));
        world.pass(Duration::from_millis(150));
    }
}

#[test]
fn a_session_in_use_is_topped_up_once_and_vouchers_stay_below_the_deposit_until_then() {
    let (mut world, gateway, provider, session) = nearly_dry();
    let [(business, topped, amount)] = raises(&world).try_into().expect("one top-up");
    assert_eq!(topped, session);
    assert!(amount >= Credits::new(1_600) && amount <= Credits::new(1_700), "two jobs' worth is free again: {amount}");
    // A third job waits for it, and asks for nothing beside it.
    let third = world.submit(gateway, job(3));
    assert_eq!((raises(&world).len(), opened(&world).len()), (1, 1));
    assert_eq!(world.nodes[provider].work.len(), 2);
    say(&mut world, provider, 3_900);
    assert!(world.sessions[&session].vouched <= Credits::new(2_000));

    world.answer(true);
    assert_eq!(world.nodes[provider].work.len(), 3, "the third goes on");
    world.finish(provider);
    assert_eq!(world.nodes[gateway].ended[&third].result, Ok("stop".into()));
    // Whatever is asked for next, it is not the same again.
    assert!(raises(&world).iter().skip(1).all(|(next, ..)| *next != business));
    world.answer(true);
    for id in 4..6 {
        world.submit(gateway, job(id));
    }
    say(&mut world, provider, 3_900);
    world.finish(provider);
    assert!(world.sessions[&session].vouched > Credits::new(2_000), "what was added is used");
    assert_eq!(world.sessions.len(), 1, "on the one session");
    for id in 4..6 {
        assert_eq!(world.text(gateway, job(id).id).len(), 3_900);
    }
    world.pass(Duration::from_secs(10));
    world.answer(true);
    let state = &world.sessions[&session];
    assert!(state.settled > Credits::new(2_000), "and it is claimed");
    for node in [gateway, provider] {
        assert_eq!(kept(&world, node)[&session], state.deposit);
    }
}

/// Topped up again and again, a session may never rest: its provider is paid all the same, and not for each job alone.
#[test]
fn a_session_that_never_rests_is_claimed_while_it_is_in_use() {
    let mut world = World::new();
    let gateway = world.add(1, 0, MarketConfig { deposit: Credits::new(2_000), ..consumer() });
    let provider = world.add(2, 8, provider(200_000));
    let claims = |world: &World| {
        let settles = world.asked.iter().filter(|(.., command)| matches!(command, LedgerCommand::Settle { .. }));
        settles.count()
    };
    // A session rests for five seconds before it is claimed; here text is under way at every moment.
    world.submit(gateway, job(1));
    let mut claimed = Vec::new();
    for id in 2..42 {
        world.submit(gateway, job(id));
        world.say(provider, "a word or two");
        let oldest = *world.nodes[provider].work.keys().next().expect("two run");
        world.nodes[provider].work.remove(&oldest);
        world.event(provider, Event::Finished { work: oldest, finish: "stop".into() });
        world.pass(SECOND * 2);
        claimed.push(claims(&world));
    }
    assert_eq!(world.sessions.len(), 1, "on one session");
    assert!((4..=6).contains(&claims(&world)), "every twenty seconds or so of eighty: {claimed:?}");
    let first = claimed.iter().position(|count| *count > 0);
    assert!(first.is_some_and(|steps| steps >= 9), "not for each job: {claimed:?}");
    // What is left is claimed after the rest.
    world.finish(provider);
    world.pass(SECOND * 6);
    let spent: u64 = world.nodes[gateway].ended.values().map(|outcome| outcome.cost.micro()).sum();
    let session = world.sessions.values().next().expect("one");
    assert_eq!((world.nodes[gateway].ended.len(), session.settled.micro()), (41, spent));
}

#[test]
fn a_refused_top_up_is_not_asked_again_at_once_and_jobs_find_another_way() {
    for new_one in [true, false] {
        let (mut world, gateway, provider, _) = nearly_dry();
        let third = world.submit(gateway, job(3));
        world.answer(false);
        // The session may be over: a new one is tried.
        assert_eq!((raises(&world).len(), opened(&world).len()), (1, 2));
        world.answer(new_one);
        assert_eq!(world.nodes[provider].work.len(), if new_one { 3 } else { 2 });
        if !new_one {
            assert_eq!(failure(&world, gateway, third), Reason::NoDeposit);
        }
        world.finish(provider);
        world.submit(gateway, job(4));
        assert_eq!(raises(&world).len(), 1, "not so soon");
        world.pass(Duration::from_secs(11));
        world.submit(gateway, job(5));
        world.submit(gateway, job(6));
        assert_eq!(raises(&world).len(), 2, "later it may be granted");
    }
}

#[test]
fn without_balance_no_top_up_is_asked_for() {
    for (balance, asks) in [(0, 0), (500, 0), (4_000, 1)] {
        let mut world = World::new();
        let gateway = world.add(1, 0, MarketConfig { deposit: Credits::new(2_000), ..consumer() });
        world.add(2, 8, provider(200_000));
        world.submit(gateway, job(1));
        world.event(gateway, Event::Balance(Credits::new(balance)));
        world.submit(gateway, job(2));
        assert_eq!(raises(&world).len(), asks, "with {balance}");
        // Half of the balance is the most that a top-up takes if no job waits for it.
        let amounts: Vec<u64> = raises(&world).iter().map(|(.., amount)| amount.micro()).collect();
        assert!(amounts.iter().all(|amount| *amount <= balance / 2), "{amounts:?}");
        assert_eq!(world.nodes[gateway].ended.len(), 0, "what runs is not disturbed");
    }
}

#[test]
fn a_restart_with_a_top_up_in_flight_asks_for_the_same_and_raises_once() {
    for in_before in [true, false] {
        let (mut world, gateway, provider, session) = nearly_dry();
        let [(business, _, amount)] = raises(&world).try_into().expect("one top-up");
        world.kill(gateway);
        if in_before {
            world.answer(true);
        }
        world.start(gateway);
        // The ledger tells each open session again, with what is locked by then.
        let record = world.nodes[gateway].disk.values().find_map(|record| match record {
            Record::Paying(paying) => Some(paying.clone()),
            Record::Earning(_)
            | Record::Spending(_)
            | Record::Receipt { .. }
            | Record::PayingOver(_)
            | Record::EarningOver(_) => None,
        });
        let record = record.expect("kept");
        assert_eq!(record.deposit, Credits::new(2_000), "what the crash did not let it hear");
        let account = world.nodes[gateway].account;
        let again = Event::SessionOpened {
            session,
            business: [0; 16],
            consumer: account,
            provider: world.nodes[provider].account,
            voucher_key: account.0,
            deposit: world.sessions[&session].deposit,
            price_cap: record.price_cap,
            expires_ms: record.expires_ms,
        };
        world.event(gateway, again);
        // The offers come again with the next round.
        world.pass(Duration::from_secs(61));
        for id in 3..6 {
            world.submit(gateway, job(id));
        }
        let raised: Vec<_> = raises(&world).iter().map(|(business, ..)| *business).collect();
        if in_before {
            assert!(raised.iter().skip(1).all(|later| *later != business), "that one is done");
        } else {
            assert_eq!(raised[1], business, "the same entry: the ledger does it once");
        }
        world.answer(true);
        let first = Credits::new(2_000).checked_add(amount).expect("small");
        let deposit = world.sessions[&session].deposit;
        assert!(if in_before { deposit >= first } else { deposit == first }, "{deposit}");
        assert_eq!(kept(&world, gateway)[&session], deposit);
        assert_eq!(world.sessions.len(), 1);
        assert_eq!(world.nodes[provider].work.len(), 3, "all of the new jobs run");
    }
}

/// What a broken leg set aside may leave a running one without money: it is topped up, or goes on elsewhere.
#[test]
fn a_leg_whose_deposit_is_all_promised_is_rescued_if_there_is_money() {
    for (balance, rescued) in [(10_000, true), (0, false)] {
        let mut world = World::new();
        let gateway = world.add(1, 0, MarketConfig { deposit: Credits::new(1_640), ..consumer() });
        let provider = world.add(2, 8, provider(200_000));
        world.submit(gateway, job(1));
        world.event(gateway, Event::Balance(Credits::ZERO));
        say(&mut world, provider, 3_900);
        let second = world.submit(gateway, job(2));
        say(&mut world, provider, 60);
        let mut streams = world.streams.keys().filter(|(node, _)| *node == gateway).map(|(_, stream)| *stream);
        let (first_stream, stream) = (streams.next().expect("two jobs"), streams.next().expect("two jobs"));
        drop(streams);
        let peer = world.nodes[provider].id;
        let waits = || Event::FrameReceived { stream, peer, frame: Frame::Alive { held: 256 }, text: vec![] };
        world.event(gateway, waits());
        world.pass(Duration::from_millis(150));
        // All that was promised beyond what came of the second is set aside for the first: too much for both.
        world.event(gateway, Event::StreamClosed(first_stream));
        say(&mut world, provider, 3_900);
        assert_eq!(world.text(gateway, second).len(), 3_960);
        world.event(gateway, Event::Balance(Credits::new(balance)));
        assert!(raises(&world).is_empty());
        world.ledger_waits = true;
        for _ in 0..3 {
            // The first voucher promises all that there is; it does not do.
            world.event(gateway, waits());
            world.pass(Duration::from_millis(150));
        }
        assert_eq!(raises(&world).len(), usize::from(rescued), "one, however often the provider asks");
        assert_eq!(world.streams.contains_key(&(gateway, stream)), rescued);
        world.answer(true);
        if rescued {
            world.say(provider, &"x".repeat(100));
            world.finish(provider);
            assert_eq!(world.nodes[gateway].ended[&second].legs.len(), 1);
            assert_eq!(world.text(gateway, second).len(), 4_060);
        }
    }
}

#[test]
fn what_does_not_hold_in_the_configuration_is_named() {
    let config = |spend: SpendSection| NodeConfig {
        genesis: "genesis.json".into(),
        network: NetworkSection::default(),
        gateway: None,
        edge: None,
        backend: vec![],
        policy: std::collections::BTreeMap::new(),
        provide: ProvideSection::default(),
        spend,
        ledger: LedgerSection::default(),
        telemetry: TelemetrySection::default(),
    };
    let good = SpendSection::default;
    let market = config(good()).market().expect("the defaults hold");
    assert_eq!(
        (market.sessions_ahead, market.ahead_percent, market.top_up_percent),
        (MarketConfig::default().sessions_ahead, 25, 50)
    );
    for (spend, field) in [
        (SpendSection { sessions_ahead: 65, ..good() }, "spend.sessions_ahead"),
        (SpendSection { ahead_share: 1.01, ..good() }, "spend.ahead_share"),
        (SpendSection { ahead_share: f64::NAN, ..good() }, "spend.ahead_share"),
        (SpendSection { top_up_share: -0.1, ..good() }, "spend.top_up_share"),
    ] {
        assert_eq!(config(spend).market().expect_err("refused").field, field);
    }
}

#[test]
fn money_in_flight_is_not_spent_twice() {
    let mut world = World::new();
    let gateway = world.add(1, 0, MarketConfig { deposit: Credits::new(2_000), ..consumer() });
    for seed in 2..5 {
        world.add(seed, 1, provider(200_000));
    }
    world.event(gateway, Event::Balance(Credits::new(3_000)));
    world.ledger_waits = true;
    for id in 1..4 {
        world.submit(gateway, job(id));
    }
    // News of the balance that does not know what is in flight yet.
    world.event(gateway, Event::Balance(Credits::new(3_000)));
    world.submit(gateway, job(4));
    let asked: u64 = opened(&world).iter().map(|(_, deposit)| deposit.micro()).sum();
    assert!(asked <= 3_000, "{:?}", opened(&world));
    assert!(world.nodes[gateway].ended.values().all(|outcome| outcome.result.is_err()));
}

// ---- how many jobs one takes ----

/// Jobs of one session, as `docs/payments.md` says.
const SESSION_JOBS_MAX: usize = 4096;

fn numbered(number: usize) -> Job {
    let mut id = [0; 16];
    id[..8].copy_from_slice(&(number as u64 + 1).to_le_bytes());
    Job { id: JobId(id), output_max: 16, ..job(1) }
}

/// Has a job done at the only provider; its reason, if it failed.
fn served(world: &mut World, gateway: usize, provider: usize, number: usize) -> Option<Reason> {
    let job = numbered(number);
    let id = job.id;
    world.submit(gateway, job);
    world.say(provider, "text");
    world.finish(provider);
    world.pass(Duration::from_millis(10));
    // The harness keeps all that went over the wire.
    world.wire.clear();
    world.nodes[gateway].ended.remove(&id).expect("it has ended").result.err().map(|failure| failure.reason)
}

#[test]
fn a_session_that_has_had_its_jobs_gives_way_to_another_and_is_closed() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let provider = world.add(2, 4, provider(200_000));
    for number in 0..SESSION_JOBS_MAX + 5 {
        assert_eq!(served(&mut world, gateway, provider, number), None, "job {number}");
    }
    let accounts = opened(&world).len();
    assert_eq!(accounts, 2, "one after the other");
    world.pass(SECOND);
    let lasts =
        world.asked.iter().filter(|(_, _, command)| matches!(command, LedgerCommand::Settle { last: true, .. }));
    assert_eq!(lasts.count(), 1, "the first is settled for the last time");
}

/// A provider counts more than its consumer does after a restart. It is believed where that may be.
#[test]
fn a_session_that_its_provider_calls_full_is_left_for_another() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let provider = world.add(2, 4, provider(200_000));
    for number in 0..SESSION_JOBS_MAX {
        if number == SESSION_JOBS_MAX - 1 {
            for node in [gateway, provider] {
                world.kill(node);
                world.start(node);
            }
            // The provider's last claim stays unanswered, so that the session seems to be there.
            world.ledger_waits = true;
        }
        assert_eq!(served(&mut world, gateway, provider, number), None, "job {number}");
    }
    assert_eq!(opened(&world).len(), 1);
    let id = world.submit(gateway, numbered(SESSION_JOBS_MAX));
    assert_eq!(opened(&world).len(), 2);
    world.answer(true);
    world.say(provider, "text");
    world.finish(provider);
    assert!(world.nodes[gateway].ended[&id].result.is_ok());
}

/// Otherwise one refusal after the other would lock one deposit after the other.
#[test]
fn a_session_that_cannot_be_full_is_not_left_whatever_its_provider_says() {
    let mut world = World::new();
    let gateway = world.add(1, 0, consumer());
    let provider = world.add(2, 4, provider(200_000));
    for number in 0..3 {
        assert_eq!(served(&mut world, gateway, provider, number), None, "job {number}");
    }
    let standing = |world: &World| {
        let peer = world.nodes[gateway].peer.as_ref().expect("it runs");
        peer.reputation().lower_bound(&world.nodes[provider].id)
    };
    let before = standing(&world);
    world.muted.push(provider);
    world.submit(gateway, numbered(3));
    let ((_, stream), _) = world.streams.iter().find(|((node, _), _)| *node == gateway).expect("a stream");
    let (stream, peer) = (*stream, world.nodes[provider].id);
    let load = Load { slots_free: 4, ..Load::default() };
    let frame = Frame::Refused { refusal: Refusal::SessionExpiring, retry_after_ms: 100, load };
    world.event(gateway, Event::FrameReceived { stream, peer, frame, text: vec![] });
    world.pass(SECOND);
    assert_eq!(opened(&world).len(), 1);
    assert!(standing(&world) < before);
}
