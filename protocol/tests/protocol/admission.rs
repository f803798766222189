//! What a provider refuses, by name: forged, stale and overdrawn vouchers, foreign and lapsed quotes. Nothing is lost by it.

use crate::common::{MODEL, START, World, consumer, job, network, price, provider, secret};
use spillway_ledger::{Credits, Digest, NetworkId, Price, SecretKey, SessionId, Signed, SignedBytes, Voucher};
use spillway_protocol::{Frame, Kind, LedgerCommand, OpenJob, Quote, Record, Refusal};
use std::time::Duration;

const PRICE: Price = Price { input: Credits::new(50_000), cached: Credits::new(50_000), output: Credits::new(200_000) };

/// A provider, a consumer whose frames the test writes by hand, and a session between them with a deposit of 1,000.
struct Bench {
    world: World,
    provider: usize,
    consumer: usize,
    session: SessionId,
    next: u64,
}

struct Bad {
    key: SecretKey,
    network: NetworkId,
    session: SessionId,
    total: u64,
    quote: Quote,
    quote_key: SecretKey,
    break_signature: bool,
}

impl Bench {
    fn new() -> Self {
        let mut world = World::new();
        let consumer = world.add(1, 0, consumer());
        let provider = world.add(2, 4, provider(200_000));
        let command = LedgerCommand::Open {
            provider: world.nodes[provider].account,
            voucher_key: world.nodes[consumer].account.0,
            deposit: Credits::new(1_000),
            price_cap: price(50_000, 200_000),
            expires_ms: START.after(Duration::from_secs(3600)).ms(),
        };
        world.ledger_for(consumer, command);
        let session = *world.sessions.keys().next().expect("opened");
        Self { world, provider, consumer, session, next: 0 }
    }

    fn good(&self) -> Bad {
        let quote = Quote {
            network: network(),
            provider: self.world.nodes[self.provider].id,
            account: self.world.nodes[self.provider].account,
            consumer: self.world.nodes[self.consumer].id,
            model: MODEL.into(),
            price: PRICE,
            window: 64,
            cached: 0,
            prefix: 0,
            valid_until_ms: START.after(Duration::from_secs(10)).ms(),
        };
        Bad {
            key: secret(1, 2),
            network: network(),
            session: self.session,
            total: 100,
            quote,
            quote_key: secret(2, 1),
            break_signature: false,
        }
    }

    fn voucher(bad: &Bad) -> SignedBytes {
        let voucher = Voucher {
            network: bad.network,
            session: bad.session,
            sequence: 1,
            total: Credits::new(bad.total),
            input: 0,
            output: 0,
        };
        let mut wire = Signed::sign(voucher, &bad.key).to_wire();
        if bad.break_signature {
            *wire.document.last_mut().expect("not empty") ^= 1;
        }
        wire
    }

    /// Opens a job by hand; returns the stream and what the provider says first, signs of life aside.
    fn open(&mut self, bad: &Bad) -> (spillway_protocol::StreamId, Frame) {
        let (stream, open) = self.opening(bad);
        let before = self.world.wire.len();
        self.frame(stream, Frame::Open(open));
        self.world.pass(Duration::from_secs(4));
        let mut said = self.world.wire[before..].iter().map(|(_, _, frame)| frame);
        let answer = said.find(|frame| !matches!(frame, Frame::Alive { .. })).expect("an answer");
        (stream, answer.clone())
    }

    /// A stream to the provider, and a job's first frame.
    fn opening(&mut self, bad: &Bad) -> (spillway_protocol::StreamId, OpenJob) {
        self.next += 1;
        let stream = spillway_protocol::StreamId::In(1_000_000 + self.next);
        let here = spillway_protocol::StreamId::Out(1_000_000 + self.next);
        self.world.streams.insert((self.provider, stream), (self.consumer, here));
        self.world.streams.insert((self.consumer, here), (self.provider, stream));
        let open = OpenJob {
            job: job(9).id,
            leg: 0,
            model: MODEL.into(),
            kind: Kind::Chat,
            body: b"{}".to_vec(),
            prefix: vec![],
            output_max: 1_000,
            continuable: true,
            quote: Signed::sign(bad.quote.clone(), &bad.quote_key).to_wire(),
            voucher: Self::voucher(bad),
        };
        (stream, open)
    }

    fn frame(&mut self, stream: spillway_protocol::StreamId, frame: Frame) {
        let peer = self.world.nodes[self.consumer].id;
        let event = spillway_protocol::Event::FrameReceived { stream, peer, frame, text: vec![] };
        self.world.event(self.provider, event);
    }

    fn vouched(&self) -> Option<Credits> {
        self.world.nodes[self.provider].disk.values().find_map(|record| match record {
            Record::Earning(earning) => Some(earning.vouched),
            Record::Paying(_)
            | Record::Spending(_)
            | Record::Receipt { .. }
            | Record::PayingOver(_)
            | Record::EarningOver(_) => None,
        })
    }
}

#[test]
fn a_good_opening_is_accepted() {
    let mut bench = Bench::new();
    let good = bench.good();
    assert!(matches!(bench.open(&good).1, Frame::Accepted { .. }));
    assert_eq!(bench.vouched(), Some(Credits::new(100)), "kept before it was accepted");
}

#[test]
fn each_bad_opening_is_refused_by_name() {
    type Spoil = fn(&mut Bad);
    let cases: [(&str, Spoil, Refusal); 14] = [
        ("another's signature", |bad| bad.key = secret(3, 2), Refusal::ForgedVoucher),
        ("a broken signature", |bad| bad.break_signature = true, Refusal::ForgedVoucher),
        ("another network", |bad| bad.network = NetworkId(Digest::of("test", &[b"other"])), Refusal::ForgedVoucher),
        ("an unknown session", |bad| bad.session = SessionId(Digest::of("test", &[])), Refusal::UnknownSession),
        ("above the deposit", |bad| bad.total = 1_001, Refusal::OverDeposit),
        ("far above the deposit", |bad| bad.total = u64::MAX, Refusal::OverDeposit),
        ("too little", |bad| bad.total = 5, Refusal::Underpaid),
        ("nothing", |bad| bad.total = 0, Refusal::Underpaid),
        ("another's quote", |bad| bad.quote_key = secret(3, 1), Refusal::BadQuote),
        ("a quote for another consumer", |bad| bad.quote.consumer = bad.quote.provider, Refusal::BadQuote),
        ("a lapsed quote", |bad| bad.quote.valid_until_ms = START.ms() - 1, Refusal::BadQuote),
        ("a quote for another model", |bad| bad.quote.model = "other".into(), Refusal::BadQuote),
        ("a price above the session's cap", |bad| bad.quote.price = price(60_000, 200_000), Refusal::BadQuote),
        ("a price beyond reason", |bad| bad.quote.price = price(u64::MAX, u64::MAX), Refusal::BadQuote),
    ];
    for (what, spoil, expected) in cases {
        let mut bench = Bench::new();
        let mut bad = bench.good();
        spoil(&mut bad);
        let (_, answer) = bench.open(&bad);
        assert!(matches!(answer, Frame::Refused { refusal, .. } if refusal == expected), "{what}: {answer:?}");
        assert!(bench.world.nodes[bench.provider].work.is_empty(), "{what}: nothing was started");
        // The next honest job is served as if nothing had been.
        let mut good = bench.good();
        good.quote.valid_until_ms = bench.world.now.after(Duration::from_secs(10)).ms();
        assert!(matches!(bench.open(&good).1, Frame::Accepted { .. }), "after {what}");
    }
}

#[test]
fn who_waits_for_the_ledger_shows_that_it_is_there() {
    let mut bench = Bench::new();
    let unknown = Bad { session: SessionId(Digest::of("test", &[])), ..bench.good() };
    let (stream, open) = bench.opening(&unknown);
    bench.frame(stream, Frame::Open(open));
    bench.world.pass(Duration::from_millis(2_900));
    let signs = bench.world.wire.iter().filter(|(_, _, frame)| *frame == Frame::Alive { held: 0 }).count();
    assert_eq!((signs, bench.world.wire.len()), (7, 7), "one each 0.4 s, and nothing else");
    bench.world.pass(Duration::from_millis(200));
    let last = &bench.world.wire.last().expect("an answer").2;
    assert!(matches!(last, Frame::Refused { refusal: Refusal::UnknownSession, .. }), "{last:?}");
}

#[test]
fn later_vouchers_only_ever_raise_what_is_promised() {
    let mut bench = Bench::new();
    let good = bench.good();
    let (stream, _) = bench.open(&good);
    for (what, total, expected) in
        [("equal", 100, 100), ("stale", 50, 100), ("higher", 300, 300), ("stale again", 299, 300)]
    {
        let voucher = Bench::voucher(&Bad { total, ..bench.good() });
        bench.frame(stream, Frame::Voucher(voucher));
        assert_eq!(bench.vouched(), Some(Credits::new(expected)), "{what}");
        assert!(!bench.world.nodes[bench.provider].work.is_empty(), "{what}: the job goes on");
    }
}

#[test]
fn a_forged_or_overdrawn_voucher_ends_the_job_and_takes_nothing() {
    let other = SessionId(Digest::of("test", &[b"other session"]));
    type Spoil = fn(&mut Bad, SessionId);
    let cases: [(&str, Spoil); 4] = [
        ("forged", |bad, _| bad.key = secret(3, 2)),
        ("broken", |bad, _| bad.break_signature = true),
        ("cross-session", |bad, other| bad.session = other),
        ("above the deposit", |bad, _| bad.total = 1_001),
    ];
    for (what, spoil) in cases {
        let mut bench = Bench::new();
        let good = bench.good();
        let (stream, _) = bench.open(&good);
        bench.world.say(bench.provider, "delivered");
        let mut bad = bench.good();
        bad.total = 900;
        spoil(&mut bad, other);
        bench.frame(stream, Frame::Voucher(Bench::voucher(&bad)));
        assert_eq!(bench.vouched(), Some(Credits::new(100)), "{what}");
        if what == "above the deposit" {
            // A top-up might be on its way: for a while the job goes on with what is paid.
            bench.world.pass(Duration::from_secs(4));
            assert_eq!(bench.vouched(), Some(Credits::new(100)), "{what}");
        }
        assert!(bench.world.nodes[bench.provider].work.is_empty(), "{what}: the backend is stopped");
        bench.world.pass(Duration::from_secs(30));
        let settled = bench.world.sessions[&bench.session].settled;
        let due = PRICE.cost(spillway_ledger::Usage { input: 2, cached: 0, output: 9 });
        assert_eq!(Some(settled), due, "{what}: what was delivered is claimed, and no more");
    }
}

/// The consumer may see a top-up before the provider does: what counts on it waits, and holds as soon as it is seen.
#[test]
fn a_voucher_that_is_ahead_of_the_ledger_waits_for_it() {
    let raise = |bench: &mut Bench| {
        let command = LedgerCommand::TopUp { session: bench.session, amount: Credits::new(500) };
        bench.world.ledger_for(bench.consumer, command);
    };
    // In a running job.
    let mut bench = Bench::new();
    let good = bench.good();
    let (stream, _) = bench.open(&good);
    let voucher = Bench::voucher(&Bad { total: 1_400, ..bench.good() });
    bench.frame(stream, Frame::Voucher(voucher));
    bench.world.pass(Duration::from_secs(2));
    assert_eq!(bench.vouched(), Some(Credits::new(100)), "it counts for nothing yet");
    assert!(!bench.world.nodes[bench.provider].work.is_empty(), "the job goes on");
    raise(&mut bench);
    assert_eq!(bench.vouched(), Some(Credits::new(1_400)));
    bench.world.pass(Duration::from_secs(4));
    assert!(!bench.world.nodes[bench.provider].work.is_empty(), "the job goes on");

    // In an opening.
    let mut bench = Bench::new();
    let (stream, open) = bench.opening(&Bad { total: 1_400, ..bench.good() });
    bench.frame(stream, Frame::Open(open));
    assert!(bench.world.wire.is_empty() && bench.world.nodes[bench.provider].work.is_empty(), "it waits");
    raise(&mut bench);
    assert!(matches!(bench.world.wire.last().expect("an answer").2, Frame::Accepted { .. }));
    assert_eq!(bench.vouched(), Some(Credits::new(1_400)));
}
