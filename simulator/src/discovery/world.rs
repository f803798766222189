//! The world: virtual time, connections, the gossip mesh, calls, churn.
//! Invariant: a message reaches a node only over a connection, once, and both ends are charged for each copy.

use super::cost;
use super::memo::Memo;
use super::nodes::{For, Index, MODELS, Node, model_name};
use super::{Setup, draws};
use crate::draws::Draws;
use crate::timeline::{START, Timeline};
use spillway_ledger::{NodeId, SignedBytes, decode};
use spillway_protocol::discovery::{Answer, Ask, AskId, Effect, Event, Judgement, Shard, Token};
use spillway_protocol::offer::OFFER_PERIOD;
use spillway_protocol::{Now, Offer};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// All nodes start within this time.
const STARTING: Duration = Duration::from_secs(600);
/// From then on it is measured.
pub(super) const SETTLED: Duration = Duration::from_secs(1200);
/// Of 100 nodes, those that go in an hour; as many come. Every second of them goes without a word.
const CHURN_PERCENT: u64 = 5;
/// Mean time between two changes of a provider's price, in seconds.
const PRICE_EVERY_S: u64 = 7_200;
/// Peers of a shard that a node connects to when it joins; others connect to it in turn, so that it has twice as many.
const CONNECTS: usize = 4;
/// Peers of a shard beyond which it looks for no more.
const PEERS_MAX: usize = 16;
/// How often a node looks for more at the most.
const SEEK_EVERY: Duration = Duration::from_secs(60);
/// One way of a message, in microseconds.
const DELAY_US: [u64; 2] = [10_000, 150_000];
/// How long a call waits for a peer that is gone, in microseconds.
const CALL_WAIT_US: u64 = 10_000_000;
/// A sign of life in an answer, and what comes with a notice there, in bytes.
const BEAT_BYTES: usize = 17;
const NEWS_BYTES: usize = 13;
/// Newcomers whose spread is watched.
const WATCHED_MAX: usize = 40;
/// When it is looked at who knows a newcomer, in milliseconds after it came.
pub(super) const LOOKS_MS: [u64; 17] = [
    200, 500, 1_000, 2_000, 3_000, 5_000, 10_000, 20_000, 30_000, 60_000, 90_000, 120_000, 180_000, 300_000, 600_000,
    1_200_000, 1_800_000,
];

/// Something that is to happen.
enum Happening {
    Start(Index),
    Wake(Index),
    /// A provider's market issues its offer anew.
    Issue(Index),
    Price(Index),
    /// A copy of a gossiped message arrives: at whom, from whom.
    Gossip(u64, Index, Index),
    /// A question arrives: at whom, from whom.
    Question(Index, Index, AskId, Vec<u8>),
    /// Its answer arrives, or its time is up: at whom, from whom.
    Answer(Index, Index, Question, Option<Vec<u8>>),
    /// A node goes, and another comes.
    Churn,
    /// Who knows a newcomer by now?
    Look(usize, usize),
    /// Attackers come.
    Attack,
    Count,
    Tidy,
}

/// What a question is about.
#[derive(Clone, Copy, PartialEq, Eq)]
enum About {
    News,
    Offers,
    /// Nothing: something is told.
    Nothing,
}

/// A question under way.
#[derive(Clone, Copy)]
struct Question {
    ask: AskId,
    bytes: usize,
    about: About,
}

/// A gossiped message.
struct Message {
    shard: Shard,
    bytes: Vec<u8>,
    /// Who has it, by bit.
    seen: Vec<u64>,
    copies: usize,
}

/// A newcomer, and how many of those that use its model knew it at each look.
pub(super) struct Watched {
    pub(super) index: Index,
    model: u64,
    pub(super) looks: Vec<(usize, usize)>,
}

/// What is attacked.
pub(super) struct Attack {
    pub(super) model: u64,
    pub(super) sybils: usize,
}

/// All of it.
pub(super) struct World {
    pub(super) setup: Setup,
    line: Timeline<Happening>,
    pub(super) nodes: Vec<Node>,
    by_id: BTreeMap<NodeId, Index>,
    topics: Vec<BTreeSet<Index>>,
    topic_rows: Vec<Vec<Index>>,
    messages: BTreeMap<u64, Message>,
    next_message: u64,
    /// Who waits for which answer, by the number that the asked one knows it by.
    calls: BTreeMap<u64, (Index, Question)>,
    next_call: u64,
    network: Draws,
    churn: Draws,
    memo: Memo,
    pub(super) watched: Vec<Watched>,
    pub(super) attack: Option<Attack>,
    pub(super) events: u64,
    pub(super) gossiped: u64,
}

impl World {
    pub(super) fn new(setup: Setup) -> Self {
        Self {
            setup,
            line: Timeline::new(),
            nodes: Vec::new(),
            by_id: BTreeMap::new(),
            topics: vec![BTreeSet::new(); Shard::all().count()],
            topic_rows: vec![Vec::new(); Shard::all().count()],
            messages: BTreeMap::new(),
            next_message: 0,
            calls: BTreeMap::new(),
            next_call: 0,
            network: draws(setup.seed, "network"),
            churn: draws(setup.seed, "churn"),
            memo: Memo::default(),
            watched: Vec::new(),
            attack: None,
            events: 0,
            gossiped: 0,
        }
    }

    pub(super) const fn now(&self) -> Now {
        self.line.now()
    }

    pub(super) fn run(&mut self) {
        let starting = u64::try_from(STARTING.as_micros()).expect("minutes");
        for index in 0..self.setup.nodes {
            let at = self.churn.below(starting);
            self.line.after(at, Happening::Start(index));
            self.add(Node::honest);
            self.nodes[index].is_up = false;
        }
        let end = START.after(SETTLED).after(self.setup.measured);
        let measured = u64::try_from(self.setup.measured.as_micros()).expect("hours");
        let goes = self.setup.nodes as u64 * CHURN_PERCENT * self.setup.measured.as_secs() / 3600 / 100;
        for _ in 0..goes.max(1) {
            let at = self.churn.below(measured);
            self.line.at(START.after(SETTLED).after(Duration::from_micros(at)), Happening::Churn);
        }
        self.line.at(START.after(SETTLED), Happening::Count);
        self.line.at(START.after(STARTING), Happening::Tidy);
        if self.setup.sybils_percent > 0 {
            self.line.at(START.after(STARTING), Happening::Attack);
        }
        while let Some(happening) = self.line.next(end) {
            self.events += 1;
            self.happen(happening);
        }
    }

    fn add(&mut self, make: impl FnOnce(u64, Index, Now, Memo) -> Node) -> Index {
        let index = self.nodes.len();
        let node = make(self.setup.seed, index, self.line.now(), self.memo.clone());
        self.by_id.insert(node.id, index);
        self.nodes.push(node);
        index
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Start(index) => self.start(index),
            Happening::Wake(index) => {
                if self.nodes[index].wakes == Some(self.now()) {
                    self.nodes[index].wakes = None;
                    self.tell(index, Event::Tick);
                }
            }
            Happening::Issue(index) => {
                if self.nodes[index].is_up {
                    let offer = self.nodes[index].offer(index, self.now());
                    self.tell(index, Event::Publish(offer));
                    self.line.after(micros(OFFER_PERIOD), Happening::Issue(index));
                }
            }
            Happening::Price(index) => {
                if self.nodes[index].is_up {
                    self.nodes[index].change_price();
                    let offer = self.nodes[index].offer(index, self.now());
                    self.tell(index, Event::Publish(offer));
                    let wait = self.churn.wait(PRICE_EVERY_S * 1_000_000);
                    self.line.after(wait, Happening::Price(index));
                }
            }
            Happening::Gossip(message, to, from) => self.gossip_arrives(message, to, from),
            Happening::Question(to, from, ask, bytes) => self.question_arrives(to, from, ask, bytes),
            Happening::Answer(to, from, question, bytes) => {
                self.charge(to, from, question, bytes.as_deref());
                self.tell(to, Event::Answered { ask: question.ask, bytes });
            }
            Happening::Churn => self.churn(),
            Happening::Look(which, look) => self.look(which, look),
            Happening::Attack => self.begin_attack(),
            Happening::Count => {
                let now = self.now();
                for node in &mut self.nodes {
                    node.spent = super::nodes::Spent::default();
                    node.counted_from = now;
                }
            }
            Happening::Tidy => {
                self.memo.tidy();
                self.line.after(300_000_000, Happening::Tidy);
            }
        }
    }

    /// Charges both ends of a call for it, once it is known what came of it.
    fn charge(&mut self, asker: Index, asked: Index, question: Question, answer: Option<&[u8]>) {
        let (there, back) = (cost::call(question.bytes), answer.map_or(0, |bytes| cost::call(bytes.len())));
        match (question.about, answer.map(decode::<Answer>)) {
            (About::Nothing, _) => self.charge_for(asker, asked, For::Tells, there, back),
            (About::News, Some(Ok(Answer::News { news, beats, .. }))) => {
                let signs = (BEAT_BYTES * beats.len()) as u64;
                let notices = news.iter().map(|item| item.notice.encoded_len() + NEWS_BYTES).sum::<usize>() as u64;
                self.charge_for(asker, asked, For::Signs, 0, signs);
                self.charge_for(asker, asked, For::Notices, 0, notices);
                self.charge_for(asker, asked, For::Rounds, there, back.saturating_sub(signs + notices));
            }
            (About::News, _) => self.charge_for(asker, asked, For::Rounds, there, back),
            (About::Offers, Some(Ok(Answer::Offers(offers)))) if !offers.is_empty() => {
                let uses: Vec<String> = self.nodes[asker].uses.iter().map(|model| model_name(*model)).collect();
                let is_used = |wire: &&SignedBytes| {
                    let offer = decode::<Offer>(&wire.document).expect("nodes answer with offers");
                    offer.models.iter().any(|model| uses.contains(&model.id))
                };
                let (all, used) = (offers.len() as u64, offers.iter().filter(is_used).count() as u64);
                self.charge_for(asker, asked, For::Pulls, there * used / all, back * used / all);
                self.charge_for(asker, asked, For::Lobby, there * (all - used) / all, back * (all - used) / all);
            }
            (About::Offers, _) => self.charge_for(asker, asked, For::Vain, there, back),
        }
    }

    /// Who was asked pays for it if it answered.
    fn charge_for(&mut self, asker: Index, asked: Index, what: For, there: u64, back: u64) {
        self.nodes[asker].spent.sends(what, there);
        self.nodes[asker].spent.receives(what, back);
        if back > 0 {
            self.nodes[asked].spent.receives(what, there);
            self.nodes[asked].spent.sends(what, back);
        }
    }

    fn start(&mut self, index: Index) {
        let now = self.now();
        let node = &mut self.nodes[index];
        node.is_up = true;
        node.started = now;
        node.counted_from = now;
        let uses = node.uses.iter().map(|model| model_name(*model)).collect();
        let serves = !node.serves.is_empty();
        self.tell(index, Event::Uses(uses));
        if serves {
            self.happen(Happening::Issue(index));
            let wait = self.churn.wait(PRICE_EVERY_S * 1_000_000);
            self.line.after(wait, Happening::Price(index));
        }
    }

    fn churn(&mut self) {
        let honest: Vec<Index> =
            (0..self.nodes.len()).filter(|index| self.nodes[*index].is_up && !self.nodes[*index].is_sybil).collect();
        let drawn = usize::try_from(self.churn.below(honest.len() as u64)).expect("below a length");
        let with_a_word = self.churn.below(2) == 0;
        if let Some(index) = honest.get(drawn) {
            if with_a_word {
                self.tell(*index, Event::Leave);
            }
            self.go(*index);
        }
        let index = self.add(Node::honest);
        self.start(index);
        if let Some(model) = self.nodes[index].serves.first().copied()
            && self.watched.len() < WATCHED_MAX
        {
            self.watched.push(Watched { index, model, looks: Vec::new() });
            self.line.after(LOOKS_MS[0] * 1000, Happening::Look(self.watched.len() - 1, 0));
        }
    }

    fn go(&mut self, index: Index) {
        let peer = self.nodes[index].id;
        self.nodes[index].is_up = false;
        let mesh = std::mem::take(&mut self.nodes[index].mesh);
        let mut peers = BTreeSet::new();
        for (shard, others) in mesh {
            self.leave_topic(shard, index);
            for other in others {
                if let Some(mesh) = self.nodes[other].mesh.get_mut(&shard) {
                    mesh.remove(&index);
                }
                peers.insert(other);
            }
        }
        for other in peers {
            self.tell(other, Event::PeerLost(peer));
        }
    }

    fn look(&mut self, which: usize, look: usize) {
        let now = self.now();
        let Watched { index, model, .. } = self.watched[which];
        if !self.nodes[index].is_up {
            return;
        }
        let (name, id) = (model_name(model), self.nodes[index].id);
        let (mut all, mut know) = (0, 0);
        for node in self.nodes.iter().filter(|node| node.is_up && !node.is_sybil && node.uses.contains(&model)) {
            // Who came later than it is no measure of how it spread.
            if node.id != id && node.started <= self.nodes[index].started {
                all += 1;
                know += usize::from(node.machine.knows(&name, &id).is_some_and(|until| until > now.ms()));
            }
        }
        self.watched[which].looks.push((know, all));
        if let Some(next) = LOOKS_MS.get(look + 1) {
            self.line.after((next - LOOKS_MS[look]) * 1000, Happening::Look(which, look + 1));
        }
    }

    // ---- an attack ----

    /// Sybils take over a shard: there are several for each honest subscriber, they connect like anybody, all pretend to
    /// serve its model, and keep back whatever honest nodes say.
    fn begin_attack(&mut self) {
        let honest = |world: &Self, model: u64| {
            let shard = Shard::of(&super::nodes::market(), &model_name(model));
            world.topics[usize::from(shard.number())].len()
        };
        // The model of middling popularity that somebody serves.
        let served: Vec<u64> = (0..MODELS)
            .filter(|model| self.nodes.iter().filter(|node| node.is_up && node.serves.contains(model)).count() > 1)
            .collect();
        let Some(model) = served.get(served.len() / 2).copied() else { return };
        let sybils = honest(self, model) * self.setup.sybils_percent as usize / 100;
        self.attack = Some(Attack { model, sybils });
        for _ in 0..sybils {
            let index = self.add(|seed, index, now, memo| Node::sybil(seed, index, now, memo, model));
            let wait = self.churn.below(60_000_000);
            self.nodes[index].is_up = false;
            self.line.after(wait, Happening::Start(index));
        }
    }

    // ---- connections ----

    fn join_topic(&mut self, shard: Shard, index: Index) {
        let topic = usize::from(shard.number());
        if self.topics[topic].insert(index) {
            self.topic_rows[topic].push(index);
        }
        self.nodes[index].mesh.entry(shard).or_default();
        self.connect(shard, index);
    }

    fn leave_topic(&mut self, shard: Shard, index: Index) {
        let topic = usize::from(shard.number());
        if self.topics[topic].remove(&index) {
            self.topic_rows[topic].retain(|other| *other != index);
        }
    }

    /// Connects a node to some peers of a shard, as a search for the shard's key finds them.
    fn connect(&mut self, shard: Shard, index: Index) {
        let topic = usize::from(shard.number());
        for _ in 0..CONNECTS {
            let row = &self.topic_rows[topic];
            let drawn = self.network.below(row.len() as u64);
            let Some(other) = row.get(usize::try_from(drawn).expect("below a length")).copied() else { return };
            if other == index || !self.nodes[index].mesh.get_mut(&shard).is_some_and(|mesh| mesh.insert(other)) {
                continue;
            }
            self.nodes[other].mesh.entry(shard).or_default().insert(index);
            for (here, there) in [(index, other), (other, index)] {
                // Sybils read no logs but each other's: they know what they want to say.
                if self.nodes[here].is_sybil == self.nodes[there].is_sybil || !self.nodes[here].is_sybil {
                    let peer = self.nodes[there].id;
                    self.tell_later(here, Event::Joined { peer, shard });
                }
            }
        }
    }

    // ---- gossip ----

    fn gossip(&mut self, index: Index, shard: Shard, bytes: Vec<u8>) {
        self.gossiped += 1;
        self.next_message += 1;
        let mut seen = vec![0_u64; self.nodes.len() / 64 + 1];
        seen[index / 64] |= 1 << (index % 64);
        self.messages.insert(self.next_message, Message { shard, bytes, seen, copies: 0 });
        self.pass_on(self.next_message, index, None);
    }

    /// Sends a message to all peers of the mesh but the one that it came from.
    fn pass_on(&mut self, number: u64, index: Index, from: Option<Index>) {
        let Some(message) = self.messages.get_mut(&number) else { return };
        let bytes = message.bytes.len() as u64 + cost::GOSSIP_ENVELOPE;
        let to: Vec<Index> = self.nodes[index].mesh.get(&message.shard).into_iter().flatten().copied().collect();
        for other in to.into_iter().filter(|other| Some(*other) != from) {
            self.nodes[index].spent.sends(For::Gossip, bytes);
            self.nodes[other].spent.receives(For::Gossip, bytes);
            if !message.has(other) {
                message.copies += 1;
                self.line.after(self.network.within(DELAY_US), Happening::Gossip(number, other, index));
            }
        }
        if message.copies == 0 {
            self.messages.remove(&number);
        }
    }

    fn gossip_arrives(&mut self, number: u64, to: Index, from: Index) {
        let Some(message) = self.messages.get_mut(&number) else { return };
        message.copies -= 1;
        let is_new = !message.has(to);
        message.mark(to);
        // A Sybil keeps back what honest nodes say.
        let hears = is_new
            && self.nodes[to].is_up
            && (!self.nodes[to].is_sybil || self.nodes[from].is_sybil)
            && self.nodes[to].mesh.contains_key(&message.shard);
        if hears {
            let (shard, bytes) = (message.shard, message.bytes.clone());
            let heard = Event::Heard { message: Token(number), shard, from: self.nodes[from].id, bytes };
            self.now_from(to, from, heard);
        } else if message.copies == 0 {
            self.messages.remove(&number);
        }
    }

    fn now_from(&mut self, to: Index, from: Index, event: Event) {
        let now = self.now();
        self.nodes[to].machine.handle(now, event);
        self.drain(to, Some(from));
    }

    // ---- calls ----

    fn question_arrives(&mut self, to: Index, from: Index, ask: AskId, bytes: Vec<u8>) {
        let about = match decode::<Ask>(&bytes).expect("asked by a machine") {
            Ask::News { .. } => About::News,
            Ask::Offers(_) => About::Offers,
            Ask::Tell(_) => About::Nothing,
        };
        let question = Question { ask, bytes: bytes.len(), about };
        if !self.nodes[to].is_up {
            return self.line.after(CALL_WAIT_US, Happening::Answer(from, to, question, None));
        }
        self.next_call += 1;
        self.calls.insert(self.next_call, (from, question));
        let call = Token(self.next_call);
        let from = self.nodes[from].id;
        self.tell(to, Event::Asked { call, from, bytes });
    }

    // ---- machines ----

    fn tell(&mut self, index: Index, event: Event) {
        if !self.nodes[index].is_up {
            return;
        }
        let now = self.now();
        self.nodes[index].machine.handle(now, event);
        self.drain(index, None);
    }

    /// As [`World::tell`], for events that come of another machine's effects: that one is drained first.
    fn tell_later(&mut self, index: Index, event: Event) {
        let now = self.now();
        if self.nodes[index].is_up {
            self.nodes[index].machine.handle(now, event);
            let at = Now(now.0 + 1);
            self.nodes[index].wakes = Some(at);
            self.line.at(at, Happening::Wake(index));
        }
    }

    fn drain(&mut self, index: Index, from: Option<Index>) {
        while let Some(effect) = self.nodes[index].machine.poll() {
            self.perform(index, from, effect);
        }
        self.wake(index);
    }

    /// Sees to it that a machine is woken when it wants to be.
    fn wake(&mut self, index: Index) {
        let now = self.now();
        let node = &mut self.nodes[index];
        let Some(at) = node.machine.deadline() else { return };
        let at = at.max(Now(now.0 + 1));
        if node.wakes.is_none_or(|set| at < set) {
            node.wakes = Some(at);
            self.line.at(at, Happening::Wake(index));
        }
    }

    fn perform(&mut self, index: Index, from: Option<Index>, effect: Effect) {
        match effect {
            Effect::Join(shard) => self.join_topic(shard, index),
            Effect::Part(shard) => {
                self.leave_topic(shard, index);
                let peer = self.nodes[index].id;
                for other in self.nodes[index].mesh.remove(&shard).unwrap_or_default() {
                    if let Some(mesh) = self.nodes[other].mesh.get_mut(&shard) {
                        mesh.remove(&index);
                    }
                    self.tell_later(other, Event::Parted { peer, shard });
                }
            }
            Effect::Seek(shard) => {
                let now = self.now();
                let last = self.nodes[index].sought.get(&shard).copied();
                let few = self.nodes[index].mesh.get(&shard).is_none_or(|mesh| mesh.len() < PEERS_MAX);
                if few && last.is_none_or(|last| now.since(last) >= SEEK_EVERY) {
                    self.nodes[index].sought.insert(shard, now);
                    self.connect(shard, index);
                }
            }
            Effect::Gossip { shard, bytes } => self.gossip(index, shard, bytes),
            Effect::Judge { message, judgement } => {
                if judgement == Judgement::Accept {
                    self.pass_on(message.0, index, from);
                } else if self.messages.get(&message.0).is_some_and(|message| message.copies == 0) {
                    self.messages.remove(&message.0);
                }
            }
            Effect::Ask { ask, peer, bytes } => {
                let to = *self.by_id.get(&peer).expect("machines ask nodes that exist");
                let delay = self.network.within(DELAY_US);
                if !self.nodes[index].mesh.values().any(|mesh| mesh.contains(&to)) {
                    self.nodes[index].spent.sends(For::Dials, cost::DIAL + cost::LOOKUP_SENT);
                    self.nodes[index].spent.receives(For::Dials, cost::DIAL + cost::LOOKUP_RECEIVED);
                    self.nodes[to].spent.sends(For::Dials, cost::DIAL);
                    self.nodes[to].spent.receives(For::Dials, cost::DIAL);
                }
                self.line.after(delay, Happening::Question(to, index, ask, bytes));
            }
            Effect::Answer { call, bytes } => {
                let (to, question) = self.calls.remove(&call.0).expect("one answer for each question");
                let delay = self.network.within(DELAY_US);
                self.line.after(delay, Happening::Answer(to, index, question, Some(bytes)));
            }
            Effect::Hold { .. } | Effect::Blame { .. } => {}
        }
    }
}

fn micros(wait: Duration) -> u64 {
    u64::try_from(wait.as_micros()).expect("hours")
}

impl Message {
    fn has(&self, index: Index) -> bool {
        self.seen.get(index / 64).is_some_and(|word| word & (1 << (index % 64)) != 0)
    }

    fn mark(&mut self, index: Index) {
        if self.seen.len() <= index / 64 {
            self.seen.resize(index / 64 + 1, 0);
        }
        self.seen[index / 64] |= 1 << (index % 64);
    }
}
