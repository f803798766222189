//! The machine: what it knows of topics, peers and own offers, and how it takes events.
//! Invariant: a shard is known exactly while this node uses or serves one of its models.

use super::ask::{Answer, Ask};
use super::issue::Own;
use super::notice::{ContentId, ModelTag, Notice, Shard};
use super::pull::{Liars, Want};
use super::round::{Partner, ROUND_MIN};
use super::table::{Room, Table, node_key};
use super::{ANSWER_BYTES_MAX, AskId, Effect, Event, Fault, period_on};
use crate::offer::Offer;
use crate::time::Now;
use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha12Rng;
use spillway_ledger::{Digest, NetworkId, NodeId, SecretKey, Signed, SignedBytes, SignedError, decode, encode};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Models that a node uses, and peers that it trusts, at the most.
const USES_MAX: usize = 64;
/// Connected peers that are looked at.
const PEERS_MAX: usize = 1024;
/// Questions under way.
pub(super) const ASKS_MAX: usize = 32;
/// How long an answer may take.
pub(super) const ASK_WAIT: Duration = Duration::from_secs(15);
/// Faults within [`FAULTS_FORGET`] after which a peer is let alone for [`MUTE`].
const FAULTS_MAX: u32 = 3;
const FAULTS_FORGET: Duration = Duration::from_secs(600);
const MUTE: Duration = Duration::from_secs(3600);
/// What one peer may be answered: at once, and each minute.
const ANSWERS_BURST: u64 = 512 << 10;
const ANSWERS_PER_MINUTE: u64 = 64 << 10;
/// Notices that are taken from gossip in one shard: at once, and each minute. What is more spreads by the logs.
const GOSSIP_BURST: u64 = 120;
const GOSSIP_PER_MINUTE: u64 = 4;
/// Messages of one peer that are verified: at once, and each minute.
const VERIFY_BURST: u64 = 1_200;
const VERIFY_PER_MINUTE: u64 = 300;

/// What a node may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Offers of one model that are asked for and kept.
    pub offers_per_model: usize,
    /// Peers of a shard whose logs are read.
    pub partners: usize,
    /// Notices of one shard that are kept.
    pub notices_per_shard: usize,
    /// Whether it is in the lobby, where it sees a sample of all offers and shows its own while there is room.
    pub is_in_lobby: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { offers_per_model: 64, partners: 2, notices_per_shard: 16_384, is_in_lobby: true }
    }
}

/// Checks signatures. A simulator may remember what it has checked; [`Verify`] checks each time.
pub trait Opener {
    /// Accepts a notice whose signature holds.
    ///
    /// # Errors
    /// As [`Signed::open`].
    fn notice(&mut self, wire: SignedBytes) -> Result<Arc<Signed<Notice>>, SignedError>;
    /// Accepts an offer whose signature holds.
    ///
    /// # Errors
    /// As [`Signed::open`].
    fn offer(&mut self, wire: SignedBytes) -> Result<Arc<Signed<Offer>>, SignedError>;
}

/// Checks each signature when it comes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Verify;

impl Opener for Verify {
    fn notice(&mut self, wire: SignedBytes) -> Result<Arc<Signed<Notice>>, SignedError> {
        Signed::open(wire).map(Arc::new)
    }

    fn offer(&mut self, wire: SignedBytes) -> Result<Arc<Signed<Offer>>, SignedError> {
        Signed::open(wire).map(Arc::new)
    }
}

/// A right to do something so often, that grows back.
#[derive(Clone, Copy, Debug)]
pub(super) struct Allowance {
    left: u64,
    burst: u64,
    per_minute: u64,
    since: Now,
}

impl Allowance {
    pub(super) const fn new(now: Now, burst: u64, per_minute: u64) -> Self {
        Self { left: burst, burst, per_minute, since: now }
    }

    pub(super) fn take(&mut self, now: Now, amount: u64) -> bool {
        let back = u128::from(self.per_minute) * now.since(self.since).as_micros() / 60_000_000;
        if back > 0 {
            self.left = self.left.saturating_add(u64::try_from(back).unwrap_or(u64::MAX)).min(self.burst);
            self.since = now;
        }
        let has = self.left >= amount;
        if has {
            self.left -= amount;
        }
        has
    }

    /// When it has so much, if nothing is taken before.
    pub(super) fn ready_at(&self, now: Now, amount: u64) -> Now {
        let lacks = amount.saturating_sub(self.left).saturating_mul(60_000_000);
        self.since.after(Duration::from_micros(lacks.div_ceil(self.per_minute.max(1)))).max(now)
    }
}

/// A connected peer.
#[derive(Debug)]
pub(super) struct PeerState {
    /// The shards that it is on, by bit.
    shards: u128,
    faults: u32,
    fault_at: Now,
    muted_until: Now,
    answers: Allowance,
    pub(super) verify: Allowance,
    /// The question to it that is under way.
    pub(super) asked: Option<AskId>,
}

impl PeerState {
    fn new(now: Now) -> Self {
        Self {
            shards: 0,
            faults: 0,
            fault_at: now,
            muted_until: Now::default(),
            answers: Allowance::new(now, ANSWERS_BURST, ANSWERS_PER_MINUTE),
            verify: Allowance::new(now, VERIFY_BURST, VERIFY_PER_MINUTE),
            asked: None,
        }
    }

    pub(super) const fn is_on(&self, shard: Shard) -> bool {
        self.shards & bit(shard) != 0
    }

    pub(super) fn is_muted(&self, now: Now) -> bool {
        self.muted_until > now
    }
}

pub(super) const fn bit(shard: Shard) -> u128 {
    1 << shard.number()
}

/// A shard that this node is on.
#[derive(Debug)]
pub(super) struct Topic {
    pub(super) table: Table,
    pub(super) partners: Vec<Partner>,
    pub(super) next_round: Now,
    pub(super) rounds: u64,
    /// One peer's log was read from beginning to end.
    pub(super) is_filled: bool,
    /// How many offers were alive when it was last swept.
    pub(super) live: usize,
    /// Notices came or went since offers were last chosen, of which some would be or were chosen.
    pub(super) is_changed: bool,
    /// The highest rank that is chosen, by model, where there are more than enough; in the lobby, of all models.
    pub(super) cutoffs: BTreeMap<Option<ModelTag>, u32>,
    pub(super) gossip: Allowance,
}

/// What a question was.
#[derive(Debug)]
pub(super) enum Asking {
    /// A peer's log, of these shards.
    News(Vec<Shard>),
    /// These offers.
    Offers(Vec<ContentId>),
    /// Nothing: it was told something.
    Nothing,
}

/// A question under way.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) peer: NodeId,
    pub(super) what: Asking,
    pub(super) until: Now,
}

/// An offer of another that is at hand.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) offer: Arc<Signed<Offer>>,
    /// The shards whose models it is kept for, by bit.
    pub(super) shards: u128,
}

/// The machine. `O` checks signatures.
pub struct Discovery<O = Verify> {
    pub(super) network: NetworkId,
    pub(super) market: u64,
    pub(super) key: SecretKey,
    pub(super) node: NodeId,
    pub(super) settings: Settings,
    pub(super) opener: O,
    pub(super) rng: ChaCha12Rng,
    pub(super) secret: [u8; 32],
    /// Names this machine's logs, so that a mark of an earlier run is not taken for one of this.
    log: u64,
    /// When its rounds begin, within each half minute.
    pub(super) phase: Duration,
    pub(super) now: Now,
    effects: VecDeque<Effect>,
    pub(super) topics: BTreeMap<Shard, Topic>,
    pub(super) uses: BTreeSet<ModelTag>,
    pub(super) anchors: BTreeSet<NodeId>,
    pub(super) peers: BTreeMap<NodeId, PeerState>,
    pub(super) own: Vec<Own>,
    pub(super) sequence: u64,
    next_ask: u64,
    pub(super) asks: BTreeMap<AskId, Pending>,
    pub(super) offers: BTreeMap<ContentId, Held>,
    pub(super) wants: BTreeMap<ContentId, Want>,
    pub(super) next_pull: Option<Now>,
    /// An offer is wanted from somebody who is being asked something else.
    pub(super) awaits_answer: bool,
    pub(super) dials: Allowance,
    pub(super) liars: Liars,
    faults: BTreeMap<Fault, u64>,
    pub(super) is_leaving: bool,
}

impl<O: Opener> Discovery<O> {
    /// A machine for the node with this key. `seed` feeds every random choice.
    #[must_use]
    pub fn new(network: NetworkId, key: SecretKey, settings: Settings, opener: O, seed: [u8; 32]) -> Self {
        let mut rng = ChaCha12Rng::from_seed(seed);
        let secret = *Digest::of("spillway/rank-secret/1", &[&seed]).as_bytes();
        let log = rng.random();
        let phase = Duration::from_millis(rng.random_range(0..30_000));
        Self {
            market: Notice::market(&network),
            node: NodeId(key.public()),
            network,
            key,
            settings,
            opener,
            rng,
            secret,
            log,
            phase,
            now: Now::default(),
            effects: VecDeque::new(),
            topics: BTreeMap::new(),
            uses: BTreeSet::new(),
            anchors: BTreeSet::new(),
            peers: BTreeMap::new(),
            own: Vec::new(),
            sequence: 0,
            next_ask: 0,
            asks: BTreeMap::new(),
            offers: BTreeMap::new(),
            wants: BTreeMap::new(),
            next_pull: None,
            awaits_answer: false,
            dials: Allowance::new(Now::default(), super::pull::DIALS_BURST, super::pull::DIALS_PER_MINUTE),
            liars: Liars::default(),
            faults: BTreeMap::new(),
            is_leaving: false,
        }
    }

    /// Takes in one event. Call [`Discovery::poll`] until it is empty afterwards.
    pub fn handle(&mut self, now: Now, event: Event) {
        self.now = self.now.max(now);
        match event {
            Event::Publish(offer) => self.publish(offer),
            Event::Uses(models) => {
                self.uses = models.iter().take(USES_MAX).map(|model| ModelTag::of(&self.network, model)).collect();
                self.follow();
                self.topics.values_mut().for_each(|topic| topic.is_changed = true);
                self.pull_soon(super::pull::PULL_AFTER);
            }
            Event::Anchors(nodes) => {
                self.anchors = nodes.into_iter().take(USES_MAX).collect();
                self.topics.values_mut().for_each(|topic| topic.is_changed = true);
                self.pull_soon(super::pull::PULL_AFTER);
            }
            Event::Joined { peer, shard } => self.joined(peer, shard),
            Event::Parted { peer, shard } => {
                if let Some(state) = self.peers.get_mut(&peer) {
                    state.shards &= !bit(shard);
                }
                if let Some(topic) = self.topics.get_mut(&shard) {
                    topic.partners.retain(|partner| partner.peer != peer);
                }
            }
            Event::PeerLost(peer) => {
                self.peers.remove(&peer);
                for topic in self.topics.values_mut() {
                    topic.partners.retain(|partner| partner.peer != peer);
                }
            }
            Event::Heard { message, shard, from, bytes } => {
                let judgement = self.heard(shard, from, &bytes);
                self.emit(Effect::Judge { message, judgement });
            }
            Event::Asked { call, from, bytes } => {
                let bytes = self.answer(from, &bytes);
                self.emit(Effect::Answer { call, bytes });
            }
            Event::Answered { ask, bytes } => self.answered(ask, bytes),
            Event::Withdraw => {
                let own = std::mem::take(&mut self.own);
                self.take_back(own);
                self.follow();
            }
            Event::Leave => {
                self.is_leaving = true;
                let own = std::mem::take(&mut self.own);
                self.take_back(own);
            }
            Event::Tick => {}
        }
        self.show_signs();
        self.forget_asks();
        self.rounds();
        self.pull();
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Effect> {
        self.effects.pop_front()
    }

    /// When to come back with [`Event::Tick`] at the latest, if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Now> {
        let rounds = self.topics.values().map(|topic| topic.next_round);
        let own = self.own.iter().map(|own| own.next_beat.min(Now::from_ms(own.offer.value().expires_ms)));
        let asks = self.asks.values().map(|ask| ask.until);
        rounds.chain(own).chain(asks).chain(self.next_pull).min()
    }

    pub(super) fn emit(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    /// This node.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.node
    }

    /// How often peers broke each rule.
    #[must_use]
    pub const fn faults(&self) -> &BTreeMap<Fault, u64> {
        &self.faults
    }

    /// How many providers of a model are known to be alive, whether or not their offers are at hand.
    #[must_use]
    pub fn known(&self, model: &str) -> usize {
        let tag = ModelTag::of(&self.network, model);
        self.topics.get(&tag.shard()).map_or(0, |topic| {
            topic.table.entries().filter(|(_, entry)| entry.serves(tag) && entry.is_live(self.now)).count()
        })
    }

    /// When a provider of a model lapses (Unix milliseconds), if it is known to be alive.
    #[must_use]
    pub fn knows(&self, model: &str, node: &NodeId) -> Option<u64> {
        let tag = ModelTag::of(&self.network, model);
        let topic = self.topics.get(&tag.shard())?;
        let live = topic.table.of_node(node).filter(|entry| entry.serves(tag) && entry.is_live(self.now));
        live.map(|entry| entry.until_ms).max()
    }

    /// The providers whose offers are at hand, with when each lapses (Unix milliseconds).
    pub fn at_hand(&self) -> impl Iterator<Item = &Arc<Signed<Offer>>> {
        self.offers.values().map(|held| &held.offer)
    }

    /// The shards that this node is on.
    pub fn shards(&self) -> impl Iterator<Item = Shard> {
        self.topics.keys().copied()
    }

    /// The sizes of all that grows, for tests of bounds: notices, offers at hand, offers wanted, questions, peers.
    #[must_use]
    pub fn sizes(&self) -> [usize; 5] {
        let notices = self.topics.values().map(|topic| topic.table.len()).sum();
        [notices, self.offers.len(), self.wants.len(), self.asks.len(), self.peers.len()]
    }

    // ---- topics ----

    /// Joins and leaves topics so that they are those of what is used and served.
    pub(super) fn follow(&mut self) {
        let served = self.own.iter().flat_map(|own| own.shards.iter().copied());
        let mut wanted: BTreeSet<Shard> = self.uses.iter().map(|model| model.shard()).chain(served).collect();
        if self.settings.is_in_lobby {
            wanted.insert(Shard::LOBBY);
        }
        let gone: Vec<Shard> = self.topics.keys().filter(|shard| !wanted.contains(shard)).copied().collect();
        for shard in gone {
            self.topics.remove(&shard);
            self.drop_offers(shard, |_| true);
            self.emit(Effect::Part(shard));
        }
        for shard in wanted {
            self.join(shard);
        }
    }

    /// Joins a topic, unless this node is on it.
    pub(super) fn join(&mut self, shard: Shard) {
        if self.topics.contains_key(&shard) {
            return;
        }
        let notices_max =
            if shard == Shard::LOBBY { 4 * super::LOBBY_NOTICES } else { self.settings.notices_per_shard };
        let topic = Topic {
            table: Table::new(notices_max),
            partners: Vec::new(),
            next_round: self.now.after(Duration::from_secs(2)),
            rounds: 0,
            is_filled: false,
            live: 0,
            is_changed: false,
            cutoffs: BTreeMap::new(),
            gossip: Allowance::new(self.now, GOSSIP_BURST, GOSSIP_PER_MINUTE),
        };
        self.topics.insert(shard, topic);
        self.emit(Effect::Join(shard));
    }

    fn joined(&mut self, peer: NodeId, shard: Shard) {
        if peer == self.node || (self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&peer)) {
            return;
        }
        let now = self.now;
        self.peers.entry(peer).or_insert_with(|| PeerState::new(now)).shards |= bit(shard);
        self.gossip_to_the_first(shard);
        // The first peer of a shard is asked at once.
        if let Some(topic) = self.topics.get_mut(&shard).filter(|topic| !topic.is_filled) {
            topic.next_round = topic.next_round.min(now.after(Duration::from_secs(1)));
        }
    }

    /// Counts a fault, and lets a peer alone that has too many.
    pub(super) fn blame(&mut self, peer: NodeId, fault: Fault) {
        *self.faults.entry(fault).or_default() += 1;
        if let Some(state) = self.peers.get_mut(&peer) {
            if self.now.since(state.fault_at) > FAULTS_FORGET {
                state.faults = 0;
            }
            state.fault_at = self.now;
            state.faults += 1;
            if state.faults >= FAULTS_MAX {
                state.faults = 0;
                state.muted_until = self.now.after(MUTE);
                for topic in self.topics.values_mut() {
                    topic.partners.retain(|partner| partner.peer != peer);
                }
            }
        }
        self.emit(Effect::Blame { peer, fault });
    }

    // ---- answers to others ----

    fn answer(&mut self, from: NodeId, bytes: &[u8]) -> Vec<u8> {
        let Ok(ask) = decode::<Ask>(bytes) else {
            self.blame(from, Fault::Malformed);
            return Vec::new();
        };
        let now = self.now;
        if self.peers.len() >= PEERS_MAX && !self.peers.contains_key(&from) {
            return Vec::new();
        }
        let state = self.peers.entry(from).or_insert_with(|| PeerState::new(now));
        // The question itself counts too, so that empty answers are not free.
        if state.muted_until > now || !state.answers.take(now, 256) {
            return Vec::new();
        }
        let answer = match ask {
            Ask::News { log, marks, lost } => {
                let mut room = Room { left: ANSWER_BYTES_MAX / 2, ..Room::default() };
                let asker = node_key(&from);
                let mut more = false;
                for mark in &marks {
                    let Some(shard) = Shard::new(mark.shard) else { continue };
                    let Some(topic) = self.topics.get(&shard) else { continue };
                    let place = if log == self.log || mark.place == super::RECENT { mark.place } else { 0 };
                    let (place, rest) = topic.table.since(place, asker, &mut room);
                    more |= rest;
                    room.marks.push(super::Mark { shard: mark.shard, place, size: topic.table.size() });
                    for tag in &lost {
                        topic.table.find(*tag, &mut room);
                    }
                }
                Answer::News { log: self.log, marks: room.marks, more, news: room.news, beats: room.beats }
            }
            Ask::Offers(contents) => {
                let own = |content: &ContentId| self.own.iter().find(|own| own.content == *content);
                let find = |content: &ContentId| {
                    own(content).map(|own| &own.offer).or_else(|| self.offers.get(content).map(|held| &held.offer))
                };
                Answer::Offers(contents.iter().filter_map(find).map(|offer| offer.to_wire()).collect())
            }
            Ask::Tell(news) => {
                if news.iter().any(|item| item.notice.signer != from.0) {
                    self.blame(from, Fault::Unasked);
                } else {
                    let shards: Vec<Shard> = self.topics.keys().copied().collect();
                    self.read(&shards, from, news, &[]);
                }
                return Vec::new();
            }
        };
        let bytes = encode(&answer);
        let state = self.peers.get_mut(&from).expect("entered above");
        if bytes.len() > 256 && !state.answers.take(now, bytes.len() as u64) {
            return Vec::new();
        }
        bytes
    }

    // ---- questions to others ----

    pub(super) fn ask(&mut self, peer: NodeId, ask: &Ask, what: Asking) -> bool {
        if self.asks.len() >= ASKS_MAX || self.peers.get(&peer).is_some_and(|state| state.asked.is_some()) {
            return false;
        }
        let id = AskId(self.next_ask);
        self.next_ask += 1;
        self.asks.insert(id, Pending { peer, what, until: self.now.after(ASK_WAIT) });
        if let Some(state) = self.peers.get_mut(&peer) {
            state.asked = Some(id);
        }
        self.emit(Effect::Ask { ask: id, peer, bytes: encode(ask) });
        true
    }

    fn answered(&mut self, ask: AskId, bytes: Option<Vec<u8>>) {
        let Some(pending) = self.asks.remove(&ask) else { return }; // Late, not wrong.
        if let Some(state) = self.peers.get_mut(&pending.peer) {
            state.asked = None;
        }
        self.pull_if_awaited();
        let peer = pending.peer;
        let answer = bytes.filter(|bytes| !bytes.is_empty()).map(|bytes| decode::<Answer>(&bytes));
        if let Some(Err(_)) = answer {
            self.blame(peer, Fault::Malformed);
        }
        match (pending.what, answer.and_then(Result::ok)) {
            (Asking::News(shards), Some(Answer::News { log, marks, more, news, beats })) => {
                self.news_came(peer, &shards, log, &marks, more, news, &beats);
            }
            (Asking::Offers(contents), Some(Answer::Offers(offers))) => self.offers_came(peer, contents, offers),
            (Asking::Nothing, _) => {}
            (Asking::News(shards), other) => {
                if other.is_some() {
                    self.blame(peer, Fault::Unasked);
                }
                self.no_news(peer, &shards);
            }
            (Asking::Offers(contents), other) => {
                if other.is_some() {
                    self.blame(peer, Fault::Unasked);
                }
                self.offers_came(peer, contents, Vec::new());
            }
        }
    }

    fn forget_asks(&mut self) {
        while let Some(ask) = self.asks.iter().find(|(_, pending)| pending.until <= self.now).map(|(id, _)| *id) {
            self.answered(ask, None);
        }
    }

    /// Connected peers on a shard that may be asked.
    pub(super) fn peers_on(&self, shard: Shard) -> impl Iterator<Item = NodeId> {
        let now = self.now;
        self.peers.iter().filter(move |(_, state)| state.is_on(shard) && !state.is_muted(now)).map(|(peer, _)| *peer)
    }

    /// How long a shard's round is: an eighth of its period, so that a sign reaches everyone well before it is missed.
    pub(super) fn round_of(shard: Shard, live: usize) -> Duration {
        (period_on(shard, live) / 8).max(ROUND_MIN)
    }
}
