//! Own offers: notices of them, and the signs of life that keep those.
//! Invariant: an offer is shown to be alive exactly as long as the market issues it anew.

use super::ask::{Ask, TELL_MAX};
use super::machine::{Asking, Discovery, Opener, Topic};
use super::notice::{Chain, ContentId, FAREWELL, LOBBY_NOTICES, ModelTag, Notice, Shard};
use super::table::node_key;
use super::{Beat, Effect, News, PERIOD_MIN, period_on};
use crate::offer::Offer;
use crate::time::Now;
use rand::RngExt as _;
use spillway_ledger::{NodeId, Signed};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Own notices.
const OWN_MAX: usize = 64;
/// Connected peers of each shard that are told of an own offer and its signs of life.
const TELL_PEERS: usize = 3;
/// Connected peers of each shard that are told when an offer is taken back.
const FAREWELL_PEERS: usize = 6;
/// A change of an offer is gossiped at most once in so long for each offer in its shard; sooner ones spread by the logs.
const CHANGE_EVERY: Duration = Duration::from_secs(90);

/// An own offer.
pub(super) struct Own {
    pub(super) offer: Arc<Signed<Offer>>,
    pub(super) content: ContentId,
    pub(super) notice: Arc<Signed<Notice>>,
    chain: Chain,
    number: u8,
    pub(super) next_beat: Now,
    gossiped: Now,
    /// The topics that it is on.
    pub(super) shards: BTreeSet<Shard>,
    /// Those on which nobody was there to hear it.
    unheard: BTreeSet<Shard>,
}

impl<O: Opener> Discovery<O> {
    pub(super) fn publish(&mut self, offer: Arc<Signed<Offer>>) {
        let value = offer.value();
        if self.is_leaving || value.node != self.node || value.models.is_empty() || value.expires_ms <= self.now.ms() {
            return;
        }
        let content = ContentId::of(value);
        if let Some(own) = self.own.iter_mut().find(|own| own.content == content) {
            own.offer = offer;
            return;
        }
        let shares = |own: &Own| {
            own.offer.value().models.iter().any(|model| value.models.iter().any(|other| other.id == model.id))
        };
        let before = self.own.iter().filter(|own| shares(own));
        let before = before.map(|own| (own.gossiped, own.shards.contains(&Shard::LOBBY))).max();
        // Their notices give way to the new one wherever it comes.
        self.own.retain(|own| !shares(own));
        if self.own.len() >= OWN_MAX {
            return;
        }
        let mut models: Vec<ModelTag> =
            offer.value().models.iter().map(|model| ModelTag::of(&self.network, &model.id)).collect();
        models.sort_unstable();
        models.dedup();
        self.announce(offer, content, models, before);
    }

    /// Issues a notice of an own offer, and gossips it if its last one was long enough ago.
    fn announce(
        &mut self,
        offer: Arc<Signed<Offer>>,
        content: ContentId,
        models: Vec<ModelTag>,
        before: Option<(Now, bool)>,
    ) {
        let mut shards: BTreeSet<Shard> = models.iter().map(|model| model.shard()).collect();
        if before.is_some_and(|(_, was_in_lobby)| was_in_lobby) {
            shards.insert(Shard::LOBBY);
        }
        let live = |shard| self.topics.get(shard).map_or(0, |topic: &Topic| topic.live.max(topic.table.len()));
        let wanted = shards.iter().map(|shard| period_on(*shard, live(shard)));
        let period = wanted.max().unwrap_or(PERIOD_MIN);
        let live = shards.iter().map(live).max().unwrap_or(0);
        self.sequence = self.sequence.saturating_add(1).max(self.now.ms());
        let chain = Chain::new(&self.key, self.sequence, content);
        let notice = Notice {
            market: self.market,
            sequence: self.sequence,
            issued_ms: self.now.ms(),
            period_s: u32::try_from(period.as_secs()).expect("at most an hour"),
            content,
            anchor: chain.link(0),
            models,
        };
        let notice = Arc::new(Signed::sign(notice, &self.key));
        let every = CHANGE_EVERY.saturating_mul(u32::try_from(live).unwrap_or(u32::MAX));
        let is_loud = before.is_none_or(|(last, _)| self.now.since(last) >= every);
        let mut own = Own {
            offer,
            content,
            notice: Arc::clone(&notice),
            chain,
            number: 0,
            next_beat: self.now.after(period),
            gossiped: before.map_or(self.now, |(last, _)| if is_loud { self.now } else { last }),
            shards: BTreeSet::new(),
            unheard: BTreeSet::new(),
        };
        for shard in shards {
            self.show_on(&mut own, shard, is_loud);
        }
        self.tell_peers(&[&own], TELL_PEERS);
        self.own.push(own);
        self.follow();
        self.enter_lobby();
    }

    /// Puts an own notice on a topic.
    fn show_on(&mut self, own: &mut Own, shard: Shard, is_loud: bool) {
        own.shards.insert(shard);
        self.join(shard);
        let node = self.node;
        self.tell(shard, Arc::clone(&own.notice), own.number, own.chain.link(own.number), &node);
        if !is_loud {
            return;
        }
        if self.peers_on(shard).next().is_none() {
            own.unheard.insert(shard);
        }
        self.emit(Effect::Gossip { shard, bytes: own.notice.to_bytes() });
    }

    /// The first peer of a shard has come: what was gossiped to nobody is gossiped again.
    pub(super) fn gossip_to_the_first(&mut self, shard: Shard) {
        let mut all: Vec<Vec<u8>> = Vec::new();
        for own in self.own.iter_mut().filter(|own| own.number == 0) {
            if own.unheard.remove(&shard) {
                all.push(own.notice.to_bytes());
            }
        }
        for bytes in all {
            self.emit(Effect::Gossip { shard, bytes });
        }
    }

    /// Shows own offers in the lobby, if there is room by what a peer of it said.
    pub(super) fn enter_lobby(&mut self) {
        let Some(lobby) = self.topics.get(&Shard::LOBBY).filter(|lobby| lobby.is_filled) else { return };
        let mut room = LOBBY_NOTICES.saturating_sub(lobby.table.len());
        if self.own.iter().all(|own| own.shards.contains(&Shard::LOBBY)) {
            return;
        }
        let mut all = std::mem::take(&mut self.own);
        for own in all.iter_mut().filter(|own| !own.shards.contains(&Shard::LOBBY)) {
            if room == 0 {
                break;
            }
            room -= 1;
            // Gossip is for first notices; a sign of life goes from peer to peer.
            self.show_on(own, Shard::LOBBY, own.number == 0);
            self.tell_peers(&[own], TELL_PEERS);
        }
        self.own = all;
    }

    /// Shows the signs of life that are due, takes back what was not issued anew, and begins new chains.
    pub(super) fn show_signs(&mut self) {
        let now = self.now;
        if self.own.iter().all(|own| own.next_beat > now && own.offer.value().expires_ms > now.ms()) {
            return;
        }
        let (over, alive): (Vec<Own>, Vec<Own>) =
            std::mem::take(&mut self.own).into_iter().partition(|own| own.offer.value().expires_ms <= now.ms());
        let is_over = !over.is_empty();
        self.take_back(over);
        let mut shown = Vec::new();
        for mut own in alive {
            if own.next_beat > now {
                self.own.push(own);
                continue;
            }
            let value = own.notice.value();
            let due = u8::try_from(value.number_at(now)).unwrap_or(FAREWELL);
            let wanted = own.shards.iter().filter_map(|shard| Some(period_on(*shard, self.topics.get(shard)?.live)));
            let wanted = wanted.max().unwrap_or(PERIOD_MIN);
            let fits = wanted <= 2 * value.period() && 2 * wanted >= value.period();
            if due == FAREWELL || !fits {
                let models = value.models.clone();
                let in_lobby = own.shards.contains(&Shard::LOBBY);
                // Not gossiped: who has the old one learns the new one from the logs, well before that lapses.
                self.announce(own.offer, own.content, models, Some((now, in_lobby)));
                continue;
            }
            own.next_beat = Now::from_ms(value.due_ms(due + 1)).max(now.after(Duration::from_secs(1)));
            self.show(&mut own, due);
            shown.push(own);
        }
        self.tell_peers(&shown.iter().collect::<Vec<_>>(), TELL_PEERS);
        self.own.extend(shown);
        if is_over {
            self.follow();
        }
    }

    fn show(&mut self, own: &mut Own, number: u8) {
        own.number = number;
        let beat = Beat { tag: own.notice.value().anchor.tag(), number, link: own.chain.link(number) };
        for shard in &own.shards {
            if let Some(topic) = self.topics.get_mut(shard) {
                topic.table.beat(self.now, beat, node_key(&self.node));
            }
        }
    }

    /// Shows the farewells of own offers.
    pub(super) fn take_back(&mut self, over: Vec<Own>) {
        let mut all = over;
        for own in &mut all {
            self.show(own, FAREWELL);
        }
        self.tell_peers(&all.iter().collect::<Vec<_>>(), FAREWELL_PEERS);
    }

    /// Tells some peers of each shard of own offers: perhaps none of them reads this node's log.
    fn tell_peers(&mut self, all: &[&Own], peers_max: usize) {
        let mut told: BTreeMap<NodeId, Vec<News>> = BTreeMap::new();
        for own in all {
            let news = News { notice: own.notice.to_wire(), number: own.number, link: own.chain.link(own.number) };
            for shard in &own.shards {
                let mut peers: Vec<NodeId> = self.peers_on(*shard).collect();
                // Who is told of another shard's is told of this too.
                let (mut left, mut at) = (peers_max, 0);
                while left > 0 && at < peers.len() {
                    let planned = (at..peers.len()).find(|peer| told.contains_key(&peers[*peer]));
                    let drawn = self.rng.random_range(at as u64..peers.len() as u64);
                    let peer = planned.unwrap_or_else(|| usize::try_from(drawn).expect("below a length"));
                    peers.swap(at, peer);
                    let items = told.entry(peers[at]).or_default();
                    if items.len() < TELL_MAX && !items.contains(&news) {
                        items.push(news.clone());
                    }
                    (left, at) = (left - 1, at + 1);
                }
            }
        }
        for (peer, news) in told {
            self.ask(peer, &Ask::Tell(news), Asking::Nothing);
        }
    }
}
