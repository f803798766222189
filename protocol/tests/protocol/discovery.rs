//! How offers spread between machines, and what hostile ones achieve: nothing that grows.

use crate::common::{START, network, price};
use rand::{Rng as _, RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;
use spillway_ledger::{
    Account, Digest, Document as _, NetworkId, NodeId, SecretKey, Signed, SignedBytes, decode, encode,
};
use spillway_protocol::discovery::{
    ANSWER_BYTES_MAX, ASK_BYTES_MAX, Answer, Ask, Beat, Chain, ContentId, Effect, Event, FAREWELL, Fault, Judgement,
    LIVES, LOBBY_NOTICES, Mark, ModelTag, NOTICE_BYTES_MAX, News, Notice, PERIOD_MAX, PERIOD_MIN, RECENT, Shard, Token,
    Verify, period,
};
use spillway_protocol::offer::{METER, OFFER_LIFETIME, OFFER_PERIOD};
use spillway_protocol::{Discovery, DiscoverySettings, ModelOffer, Now, Offer};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

fn key(index: u32) -> SecretKey {
    let mut seed = [3; 32];
    seed[..4].copy_from_slice(&index.to_le_bytes());
    SecretKey::from_bytes(&seed)
}

fn id(index: u32) -> NodeId {
    NodeId(key(index).public())
}

fn model(id: &str, output: u64) -> ModelOffer {
    ModelOffer {
        id: id.into(),
        weights: Digest::ZERO,
        quantization: String::new(),
        engine: "test".into(),
        context_max: 1024,
        kinds: vec!["chat".into()],
        meter: METER.into(),
        price: price(1, output),
        slots: 1,
        keeps_nothing: false,
    }
}

fn offer(index: u32, now: Now, models: &[(&str, u64)]) -> Arc<Signed<Offer>> {
    let offer = Offer {
        network: network(),
        node: id(index),
        account: Account(key(index + 1_000_000).public()),
        sequence: now.ms(),
        issued_ms: now.ms(),
        expires_ms: now.after(OFFER_LIFETIME).ms(),
        region: String::new(),
        coordinate: spillway_protocol::router::Coordinate::default(),
        addresses: vec!["/ip4/127.0.0.1/tcp/1".into()],
        models: models.iter().map(|(id, output)| model(id, *output)).collect(),
    };
    Arc::new(Signed::sign(offer, &key(index)))
}

fn notice_of(index: u32, now: Now, offer: &Offer, sequence: u64, period_s: u32) -> (Notice, Chain) {
    let content = ContentId::of(offer);
    let chain = Chain::new(&key(index), sequence, content);
    let mut models: Vec<_> = offer.models.iter().map(|model| ModelTag::of(&network(), &model.id)).collect();
    models.sort_unstable();
    let notice = Notice {
        market: Notice::market(&network()),
        sequence,
        issued_ms: now.ms(),
        period_s,
        content,
        anchor: chain.link(0),
        models,
    };
    (notice, chain)
}

struct Node {
    machine: Discovery,
    serves: Vec<(&'static str, u64)>,
    is_up: bool,
    held: BTreeMap<NodeId, u64>,
    blamed: Vec<(NodeId, Fault)>,
}

/// Machines that all know each other, in a network without delay.
struct Net {
    nodes: Vec<Node>,
    now: Now,
    queue: VecDeque<(usize, Event)>,
    calls: BTreeMap<Token, (usize, spillway_protocol::discovery::AskId)>,
    on: BTreeMap<(usize, Shard), ()>,
    next: u64,
    gossiped: usize,
    asked: usize,
    settings: DiscoverySettings,
}

/// Without the lobby, so that a test sees what the shards alone do.
const PLAIN: DiscoverySettings =
    DiscoverySettings { offers_per_model: 64, partners: 2, notices_per_shard: 16_384, is_in_lobby: false };

impl Net {
    fn new() -> Self {
        Self {
            settings: PLAIN,
            nodes: Vec::new(),
            now: START,
            queue: VecDeque::new(),
            calls: BTreeMap::new(),
            on: BTreeMap::new(),
            next: 0,
            gossiped: 0,
            asked: 0,
        }
    }

    fn add(&mut self, uses: &[&str], serves: &[(&'static str, u64)]) -> usize {
        let at = self.nodes.len();
        let index = u32::try_from(at).expect("few");
        let machine = Discovery::new(network(), key(index), self.settings, Verify, [at.to_le_bytes()[0]; 32]);
        let serves = serves.to_vec();
        self.nodes.push(Node { machine, serves, is_up: true, held: BTreeMap::new(), blamed: Vec::new() });
        for (other, shard) in self.on.keys().copied().collect::<Vec<_>>() {
            if self.nodes[other].is_up {
                self.tell(at, Event::Joined { peer: self.nodes[other].machine.node(), shard });
            }
        }
        self.tell(at, Event::Uses(uses.iter().map(|model| (*model).to_owned()).collect()));
        self.publish(at);
        self.settle();
        at
    }

    fn publish(&mut self, at: usize) {
        if !self.nodes[at].serves.is_empty() {
            let offer = offer(u32::try_from(at).expect("few"), self.now, &self.nodes[at].serves);
            self.tell(at, Event::Publish(offer));
        }
    }

    fn tell(&mut self, at: usize, event: Event) {
        self.queue.push_back((at, event));
    }

    fn settle(&mut self) {
        while let Some((at, event)) = self.queue.pop_front() {
            if !self.nodes[at].is_up {
                continue;
            }
            self.nodes[at].machine.handle(self.now, event);
            while let Some(effect) = self.nodes[at].machine.poll() {
                self.perform(at, effect);
            }
        }
    }

    fn perform(&mut self, at: usize, effect: Effect) {
        let node = self.nodes[at].machine.node();
        let others: Vec<usize> =
            (0..self.nodes.len()).filter(|other| *other != at && self.nodes[*other].is_up).collect();
        match effect {
            Effect::Join(shard) => {
                self.on.insert((at, shard), ());
                for other in others {
                    self.tell(other, Event::Joined { peer: node, shard });
                }
            }
            Effect::Part(shard) => {
                self.on.remove(&(at, shard));
                for other in others {
                    self.tell(other, Event::Parted { peer: node, shard });
                }
            }
            Effect::Gossip { shard, bytes } => {
                assert!(bytes.len() <= NOTICE_BYTES_MAX);
                self.gossiped += 1;
                for other in others {
                    if self.on.contains_key(&(other, shard)) {
                        self.next += 1;
                        let message = Token(self.next);
                        self.tell(other, Event::Heard { message, shard, from: node, bytes: bytes.clone() });
                    }
                }
            }
            Effect::Ask { ask, peer, bytes } => {
                assert!(bytes.len() <= ASK_BYTES_MAX);
                self.asked += 1;
                let to = others.into_iter().find(|other| self.nodes[*other].machine.node() == peer);
                let Some(to) = to else { return self.tell(at, Event::Answered { ask, bytes: None }) };
                self.next += 1;
                self.calls.insert(Token(self.next), (at, ask));
                self.tell(to, Event::Asked { call: Token(self.next), from: node, bytes });
            }
            Effect::Answer { call, bytes } => {
                assert!(bytes.len() <= ANSWER_BYTES_MAX);
                let (to, ask) = self.calls.remove(&call).expect("one answer for each question");
                self.tell(to, Event::Answered { ask, bytes: Some(bytes) });
            }
            Effect::Hold { offer, until_ms } => {
                self.nodes[at].held.insert(offer.value().node, until_ms);
            }
            Effect::Blame { peer, fault } => self.nodes[at].blamed.push((peer, fault)),
            Effect::Judge { .. } | Effect::Seek(_) => {}
        }
    }

    /// Lets time pass; providers issue their offers anew as the market does.
    fn run(&mut self, span: Duration) {
        let end = self.now.after(span);
        let mut issue = self.now;
        loop {
            let due = self.nodes.iter().filter(|node| node.is_up).filter_map(|node| node.machine.deadline()).min();
            let next = due.unwrap_or(end).max(self.now).min(issue).min(end);
            self.now = next;
            if next >= issue {
                (0..self.nodes.len()).filter(|at| self.nodes[*at].is_up).collect::<Vec<_>>().into_iter().for_each(
                    |at| {
                        self.publish(at);
                    },
                );
                issue = issue.after(OFFER_PERIOD);
            }
            for at in 0..self.nodes.len() {
                if self.nodes[at].machine.deadline().is_some_and(|due| due <= next) {
                    self.tell(at, Event::Tick);
                }
            }
            self.settle();
            if next >= end {
                return;
            }
        }
    }

    fn lose(&mut self, at: usize) {
        self.nodes[at].is_up = false;
        self.on.retain(|(other, _), ()| *other != at);
        let peer = self.nodes[at].machine.node();
        for other in 0..self.nodes.len() {
            self.tell(other, Event::PeerLost(peer));
        }
        self.settle();
    }

    fn holds(&self, at: usize, provider: usize) -> bool {
        let node = self.nodes[provider].machine.node();
        self.nodes[at].held.get(&node).is_some_and(|until| *until > self.now.ms())
    }
}

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn who_uses_a_model_gets_the_offers_of_it_and_nobody_else_does() {
    let mut net = Net::new();
    let providers: Vec<usize> = (0..5).map(|_| net.add(&[], &[("a", 2)])).collect();
    let other = net.add(&[], &[("b", 2)]);
    let (user, late, idle) = (net.add(&["a"], &[]), net.add(&["a", "b"], &[]), net.add(&["c"], &[]));
    net.run(MINUTE);
    assert!(providers.iter().all(|provider| net.holds(user, *provider) && net.holds(late, *provider)));
    assert!(net.holds(late, other) && !net.holds(user, other));
    assert!(net.nodes[idle].held.is_empty());
    assert_eq!(net.nodes[user].machine.known("a"), 5);
    // Signs of life keep them, without a single further gossip or pull.
    let (gossiped, pulled) = (net.gossiped, net.nodes[user].held.len());
    net.run(20 * MINUTE);
    assert!(providers.iter().all(|provider| net.holds(user, *provider)));
    assert_eq!((net.gossiped, net.nodes[user].held.len()), (gossiped, pulled));
    // No node found fault with another.
    assert!(net.nodes.iter().all(|node| node.blamed.is_empty() && node.machine.faults().is_empty()));
}

#[test]
fn who_only_browses_sees_what_is_in_the_lobby_and_the_lobby_stays_small() {
    let mut net = Net::new();
    net.settings = DiscoverySettings::default();
    let browser = net.add(&[], &[]);
    let first = net.add(&[], &[("a", 2)]);
    net.run(Duration::from_secs(5));
    assert!(net.holds(browser, first), "a small market is seen as a whole, and at once");
    for _ in 0..LOBBY_NOTICES + 12 {
        net.add(&[], &[("b", 2)]);
        net.run(Duration::from_secs(3));
    }
    let [notices, at_hand, ..] = net.nodes[browser].machine.sizes();
    assert!((LOBBY_NOTICES..LOBBY_NOTICES + 8).contains(&notices), "{notices} notices");
    assert_eq!(at_hand, 64);
    let user = net.add(&["b"], &[]);
    net.run(12 * MINUTE);
    assert_eq!(net.nodes[user].machine.known("b"), LOBBY_NOTICES + 12, "who uses a model knows all that serve it");
}

#[test]
fn a_provider_that_dies_lapses_after_three_periods_and_one_that_leaves_at_once() {
    let mut net = Net::new();
    let (dies, leaves, stays) = (net.add(&[], &[("a", 2)]), net.add(&[], &[("a", 2)]), net.add(&[], &[("a", 2)]));
    let user = net.add(&["a"], &[]);
    net.run(5 * MINUTE);
    assert!([dies, leaves, stays].iter().all(|provider| net.holds(user, *provider)));
    net.tell(leaves, Event::Leave);
    net.settle();
    assert!(!net.holds(user, leaves), "it said so");
    net.lose(dies);
    net.lose(leaves);
    assert!(net.holds(user, dies), "nobody knows yet");
    net.run(PERIOD_MIN * u32::from(LIVES));
    assert!(!net.holds(user, dies) && !net.holds(user, leaves) && net.holds(user, stays));
    net.run(5 * MINUTE);
    assert_eq!(net.nodes[user].machine.sizes()[..3], [1, 1, 0], "the dead are forgotten");
}

#[test]
fn an_offer_that_the_market_no_longer_issues_is_taken_back() {
    let mut net = Net::new();
    let (provider, user) = (net.add(&[], &[("a", 2), ("b", 2)]), net.add(&["a"], &[]));
    net.run(MINUTE);
    assert!(net.holds(user, provider));
    net.nodes[provider].serves.clear();
    net.run(OFFER_LIFETIME + MINUTE);
    assert!(!net.holds(user, provider));
    assert_eq!(net.nodes[provider].machine.shards().count(), 0, "it is on no topic that is of no use to it");
}

#[test]
fn what_a_schedule_closes_is_taken_back_at_once_and_comes_back() {
    let mut net = Net::new();
    let (provider, user) = (net.add(&[], &[("a", 2), ("b", 2)]), net.add(&["a"], &[]));
    net.run(MINUTE);
    assert!(net.holds(user, provider));
    for _ in 0..3 {
        let serves = std::mem::take(&mut net.nodes[provider].serves);
        net.tell(provider, Event::Withdraw);
        net.settle();
        assert!(!net.holds(user, provider), "it said so");
        net.run(10 * MINUTE);
        assert!(!net.holds(user, provider), "no late sign brings it back");
        net.nodes[provider].serves = serves;
        net.publish(provider);
        net.run(MINUTE);
        assert!(net.holds(user, provider), "it is open again");
    }
}

#[test]
fn a_change_of_price_replaces_the_offer() {
    let mut net = Net::new();
    let (provider, user) = (net.add(&[], &[("a", 2)]), net.add(&["a"], &[]));
    net.run(MINUTE);
    for output in 3..20 {
        net.nodes[provider].serves[0].1 = output;
        net.publish(provider);
        net.run(MINUTE);
        let prices: Vec<u64> =
            net.nodes[user].machine.at_hand().map(|offer| offer.value().models[0].price.output.micro()).collect();
        assert_eq!(prices, [output]);
    }
}

#[test]
fn the_period_grows_with_the_shard_within_its_bounds() {
    assert_eq!(period(0), PERIOD_MIN);
    assert_eq!(period(57), PERIOD_MIN);
    assert_eq!(period(600), Duration::from_secs(630));
    assert_eq!(period(usize::MAX), PERIOD_MAX);
    assert!((1..5_000).all(|live| period(live) >= period(live - 1)));
}

/// A machine that uses `a`, and has heard of one provider from one peer.
fn listener() -> (Discovery, Shard, NodeId) {
    let mut machine = Discovery::new(network(), key(99), PLAIN, Verify, [1; 32]);
    machine.handle(START, Event::Uses(vec!["a".into()]));
    let shard = Shard::of(&network(), "a");
    let peer = id(50);
    machine.handle(START, Event::Joined { peer, shard });
    while machine.poll().is_some() {}
    (machine, shard, peer)
}

fn hear(machine: &mut Discovery, now: Now, shard: Shard, from: NodeId, bytes: Vec<u8>) -> Judgement {
    machine.handle(now, Event::Heard { message: Token(7), shard, from, bytes });
    let mut judged = None;
    while let Some(effect) = machine.poll() {
        if let Effect::Judge { message: Token(7), judgement } = effect {
            assert!(judged.replace(judgement).is_none(), "one verdict");
        }
    }
    judged.expect("a verdict")
}

#[test]
fn each_bad_notice_gets_its_verdict() {
    let other_shard = Shard::all().find(|shard| *shard != Shard::of(&network(), "a")).expect("64");
    let ahead = |seconds| START.after(Duration::from_secs(seconds)).ms();
    type Spoil = Box<dyn Fn(&mut Notice)>;
    let cases: Vec<(&str, Spoil, Judgement)> = vec![
        ("good", Box::new(|_| {}), Judgement::Accept),
        ("30 s ahead", Box::new(move |it| it.issued_ms = ahead(30)), Judgement::Accept),
        ("from the future", Box::new(move |it| it.issued_ms = ahead(31)), Judgement::Ignore),
        ("from the end of time", Box::new(|it| it.issued_ms = u64::MAX), Judgement::Ignore),
        ("expired", Box::new(|it| it.issued_ms = START.ms() - 180_000), Judgement::Ignore),
        ("of another market", Box::new(|it| it.market ^= 1), Judgement::Reject),
        ("of another model", Box::new(|it| it.models = vec![ModelTag::of(&network(), "zzz")]), Judgement::Reject),
    ];
    for (what, spoil, expected) in cases {
        let (mut machine, shard, peer) = listener();
        let (mut notice, _) = notice_of(1, START, offer(1, START, &[("a", 2)]).value(), 1, 60);
        spoil(&mut notice);
        let bytes = Signed::sign(notice, &key(1)).to_bytes();
        assert_eq!(hear(&mut machine, START, shard, peer, bytes.clone()), expected, "{what}");
        assert_eq!(machine.sizes()[0], usize::from(expected == Judgement::Accept), "{what}");
        if expected == Judgement::Accept {
            assert_eq!(hear(&mut machine, START, shard, peer, bytes.clone()), Judgement::Ignore, "{what}, again");
            assert_eq!(hear(&mut machine, START, other_shard, peer, bytes.clone()), Judgement::Ignore, "elsewhere");
        }
        for cut in [0, 1, 50, bytes.len() - 1] {
            let (mut machine, shard, peer) = listener();
            assert_eq!(hear(&mut machine, START, shard, peer, bytes[..cut].to_vec()), Judgement::Reject, "{cut} bytes");
            let longer = [&bytes[..], &[0; 300]].concat();
            assert_eq!(hear(&mut machine, START, shard, peer, longer), Judgement::Reject, "oversize");
            let mut forged = bytes.clone();
            forged[40] ^= 1;
            assert_eq!(hear(&mut machine, START, shard, peer, forged), Judgement::Reject, "forged");
            assert_eq!(machine.faults()[&Fault::Malformed], 3);
            // Three faults, and nothing of that peer is looked at for an hour.
            assert_eq!(hear(&mut machine, START, shard, peer, vec![1]), Judgement::Ignore, "muted");
            let later = START.after(Duration::from_secs(3601));
            assert_eq!(hear(&mut machine, later, shard, peer, vec![1]), Judgement::Reject, "and then again");
        }
    }
}

#[test]
fn an_old_notice_does_not_come_back() {
    let (mut machine, shard, peer) = listener();
    let sent = |sequence, output| {
        let offer = offer(1, START, &[("a", output)]);
        Signed::sign(notice_of(1, START, offer.value(), sequence, 60).0, &key(1)).to_bytes()
    };
    assert_eq!(hear(&mut machine, START, shard, peer, sent(5, 10)), Judgement::Accept);
    assert_eq!(hear(&mut machine, START, shard, peer, sent(6, 20)), Judgement::Accept);
    for replay in [sent(5, 10), sent(6, 20), sent(6, 30)] {
        assert_eq!(hear(&mut machine, START, shard, peer, replay), Judgement::Ignore);
    }
    assert_eq!(machine.sizes()[0], 1);
}

/// The question that a machine asks next, after it was given time for it.
fn question(machine: &mut Discovery, now: Now) -> Option<(spillway_protocol::discovery::AskId, NodeId, Ask)> {
    machine.handle(now, Event::Tick);
    let mut found = None;
    while let Some(effect) = machine.poll() {
        if let Effect::Ask { ask, peer, bytes } = effect {
            found = Some((ask, peer, decode::<Ask>(&bytes).expect("readable")));
        }
    }
    found
}

#[test]
fn signs_of_life_count_in_order_in_time_and_of_the_chain_only() {
    let at = |seconds| START.after(Duration::from_secs(seconds));
    let the_offer = offer(1, START, &[("a", 2)]);
    let (notice, chain) = notice_of(1, START, the_offer.value(), 1, 60);
    let tag = notice.anchor.tag();
    let beat = |number| Beat { tag, number, link: chain.link(number) };
    let forged = Beat { link: chain.link(7), ..beat(1) };
    let foreign = Beat { tag: tag ^ 1, ..beat(1) };
    // What is told, seconds after the start, and when the provider lapses then, in seconds after the start.
    let cases = [
        ("the next", vec![beat(1)], 40, Some(240)),
        ("the next but one", vec![beat(2)], 100, Some(300)),
        ("too early", vec![beat(2)], 80, Some(180)),
        ("an old one behind a new one", vec![beat(2), beat(1)], 100, Some(300)),
        ("forged", vec![forged], 40, Some(180)),
        ("of another chain", vec![foreign], 40, Some(180)),
        ("farewell", vec![beat(FAREWELL)], 40, None),
        ("a sign behind the farewell", vec![beat(FAREWELL), beat(1)], 40, None),
    ];
    for (what, beats, seconds, until) in cases {
        let (mut machine, shard, peer) = listener();
        hear(&mut machine, START, shard, peer, Signed::sign(notice.clone(), &key(1)).to_bytes());
        let (ask, to, _) = (0..60)
            .find_map(|second| question(&mut machine, at(second)).filter(|(_, _, ask)| matches!(ask, Ask::News { .. })))
            .expect("it reads the peer's log");
        assert_eq!(to, peer);
        let marks = vec![Mark { shard: shard.number(), place: 9, size: 1 }];
        let answer = Answer::News { log: 1, marks, more: false, news: Vec::new(), beats };
        machine.handle(at(seconds), Event::Answered { ask, bytes: Some(encode(&answer)) });
        assert_eq!(machine.knows("a", &id(1)), until.map(|until| at(until).ms()), "{what}");
        assert_eq!(machine.faults().contains_key(&Fault::Forged), what == "forged", "{what}");
    }
}

#[test]
fn an_offer_that_is_not_what_its_notice_says_costs_its_provider_the_hearing() {
    let (mut machine, shard, peer) = listener();
    // It announces `a`, and offers `b`.
    let the_offer = offer(1, START, &[("b", 2)]);
    let (mut notice, _) = notice_of(1, START, the_offer.value(), 1, 60);
    notice.models = vec![ModelTag::of(&network(), "a")];
    let bytes = Signed::sign(notice, &key(1)).to_bytes();
    assert_eq!(hear(&mut machine, START, shard, peer, bytes.clone()), Judgement::Accept);
    let at = |seconds| START.after(Duration::from_secs(seconds));
    let mut pulled = 0;
    for second in 0..30 {
        let Some((ask, to, question)) = question(&mut machine, at(second)) else { continue };
        let Ask::Offers(contents) = question else { continue };
        assert_eq!((to, contents), (peer, vec![ContentId::of(the_offer.value())]));
        let answer = Answer::Offers(vec![the_offer.to_wire()]);
        machine.handle(at(second), Event::Answered { ask, bytes: Some(encode(&answer)) });
        pulled += 1;
    }
    assert_eq!((pulled, machine.faults()[&Fault::Mislabelled]), (1, 1));
    assert_eq!(machine.sizes()[..3], [0, 0, 0]);
    assert_eq!(hear(&mut machine, at(30), shard, peer, bytes), Judgement::Ignore, "it is not heard again");
}

#[test]
fn offers_that_nobody_asked_for_are_dropped_and_counted() {
    let (mut machine, shard, peer) = listener();
    let wanted = offer(1, START, &[("a", 2)]);
    let bytes = Signed::sign(notice_of(1, START, wanted.value(), 1, 60).0, &key(1)).to_bytes();
    hear(&mut machine, START, shard, peer, bytes);
    let (ask, ..) = (0..30)
        .find_map(|second| {
            question(&mut machine, START.after(Duration::from_secs(second)))
                .filter(|(_, _, ask)| matches!(ask, Ask::Offers(_)))
        })
        .expect("it asks for the offer");
    let other = offer(2, START, &[("a", 2)]);
    let answer = Answer::Offers(vec![other.to_wire(), wanted.to_wire()]);
    machine.handle(START.after(Duration::from_secs(30)), Event::Answered { ask, bytes: Some(encode(&answer)) });
    assert_eq!(machine.faults()[&Fault::Unasked], 1);
    assert_eq!(machine.sizes()[1], 0);
}

#[test]
fn a_flood_fills_nothing_beyond_its_bound_and_leaves_a_fair_sample() {
    let settings = DiscoverySettings { notices_per_shard: 64, ..PLAIN };
    let mut machine = Discovery::new(network(), key(99), settings, Verify, [1; 32]);
    machine.handle(START, Event::Uses(vec!["a".into()]));
    let shard = Shard::of(&network(), "a");
    let mut accepted = 0;
    for index in 0..1_500_u32 {
        // The honest come first, and are one in five.
        let from = id(5_000 + index % 16);
        let now = START.after(Duration::from_secs(u64::from(index)));
        machine.handle(now, Event::Joined { peer: from, shard });
        let the_offer = offer(index, now, &[("a", 2)]);
        let notice = notice_of(index, now, the_offer.value(), 1, 3600).0;
        let judgement = hear(&mut machine, now, shard, from, Signed::sign(notice, &key(index)).to_bytes());
        accepted += usize::from(judgement == Judgement::Accept);
        let [notices, offers, wants, asks, peers] = machine.sizes();
        assert!(notices <= 64 && offers + wants <= 64 && asks <= 32 && peers <= 1024, "{:?}", machine.sizes());
    }
    // 120 at once and four a minute; of those, what ranks too high for a full table is not passed on.
    assert!((60..=120 + 100).contains(&accepted), "{accepted}");
    // Who came first has no better place than who came last: those are in by rank.
    let kept: Vec<u32> = (0..1_500).filter(|index| machine.knows("a", &id(*index)).is_some()).collect();
    assert!(kept.len() >= 32 && kept.iter().any(|index| *index > 200), "{kept:?}");
}

#[test]
fn a_peer_that_asks_too_much_gets_nothing() {
    let (mut machine, shard, peer) = listener();
    let ask = |ask: &Ask| Event::Asked { call: Token(1), from: peer, bytes: encode(ask) };
    let news = Ask::News { log: 0, marks: vec![Mark { shard: shard.number(), place: 0, size: 0 }], lost: Vec::new() };
    let mut answered = 0;
    for _ in 0..4_000 {
        machine.handle(START, ask(&news));
        while let Some(effect) = machine.poll() {
            if let Effect::Answer { bytes, .. } = effect {
                answered += usize::from(!bytes.is_empty());
            }
        }
    }
    assert!((1_000..=2_048).contains(&answered), "{answered}");
    machine.handle(START.after(MINUTE), ask(&news));
    let again = std::iter::from_fn(|| machine.poll())
        .any(|effect| matches!(effect, Effect::Answer { bytes, .. } if !bytes.is_empty()));
    assert!(again, "a minute later it is answered again");
}

#[test]
fn no_bytes_make_a_machine_panic_or_answer_at_length() {
    for seed in 0..300 {
        let (mut machine, shard, peer) = listener();
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        for step in 0..20 {
            let mut bytes = vec![0; rng.random_range(0..400)];
            rng.fill_bytes(&mut bytes);
            if rng.random_bool(0.5) && bytes.len() > 4 {
                bytes[..4].copy_from_slice(&rng.random_range(0..4_u32).to_le_bytes());
            }
            let now = START.after(Duration::from_secs(step));
            let event = match rng.random_range(0..3) {
                0 => Event::Heard { message: Token(1), shard, from: peer, bytes },
                1 => Event::Asked { call: Token(1), from: peer, bytes },
                _ => match question(&mut machine, now) {
                    Some((ask, ..)) => Event::Answered { ask, bytes: Some(bytes) },
                    None => Event::Tick,
                },
            };
            machine.handle(now, event);
            while let Some(effect) = machine.poll() {
                if let Effect::Answer { bytes, .. } = effect {
                    assert!(bytes.len() <= ANSWER_BYTES_MAX, "seed {seed}");
                }
            }
        }
    }
}

#[test]
fn bytes_on_the_wire_are_frozen() {
    let the_offer = offer(1, START, &[("a", 2), ("b", 3)]);
    let (notice, chain) = notice_of(1, START, the_offer.value(), 7, 90);
    let beat = Beat { tag: notice.anchor.tag(), number: 3, link: chain.link(3) };
    let signed = Signed::sign(notice.clone(), &key(1));
    assert_eq!(Notice::BYTES_MAX + 104, NOTICE_BYTES_MAX);
    let wire = SignedBytes { signer: key(1).public(), signature: *signed.signature(), document: vec![1, 2] };
    let all = [
        encode(&notice),
        signed.to_bytes(),
        encode(&Ask::News { log: 1, marks: vec![Mark { shard: 2, place: RECENT, size: 0 }], lost: vec![4] }),
        encode(&Ask::Offers(vec![notice.content])),
        encode(&Ask::Tell(vec![News { notice: wire.clone(), number: FAREWELL, link: chain.link(FAREWELL) }])),
        encode(&Answer::News {
            log: 1,
            marks: vec![Mark { shard: 2, place: 3, size: 1 }],
            more: true,
            news: vec![News { notice: wire.clone(), number: 3, link: chain.link(3) }],
            beats: vec![beat],
        }),
        encode(&Answer::Offers(vec![wire])),
    ];
    assert_eq!(all.each_ref().map(Vec::len), [72, 176, 46, 28, 131, 187, 118]);
    let digest = Digest::of("test", &all.each_ref().map(Vec::as_slice));
    assert_eq!(digest.to_string(), FROZEN, "a change is a new version: OFFERS_PROTOCOL and the domains must say so");
    let tag = |model| format!("{:?} {}", ModelTag::of(&network(), model), Shard::of(&network(), model).number());
    assert_eq!((tag("a"), tag("b")), (TAG_A.to_owned(), TAG_B.to_owned()));
    let _: NetworkId = network();
}

const FROZEN: &str = "c1e303e61de602c67f64d81b53c123e59c0098379c81a36cc985cbd767d556b3";
const TAG_A: &str = "ModelTag(733311444) 20";
const TAG_B: &str = "ModelTag(1860684434) 18";
