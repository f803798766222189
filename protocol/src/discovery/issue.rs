//! Own offers: notices of them, and the signs of life that keep those.
//! Invariant: an offer is shown to be alive exactly as long as the market issues it anew.

use super::ask::{Ask, FAREWELLS_MAX};
use super::machine::{Asking, Discovery, Opener, Topic};
use super::notice::{Chain, ContentId, FAREWELL, ModelTag, Notice, Shard};
use super::table::node_key;
use super::{Beat, Effect, period};
use crate::offer::Offer;
use crate::time::Now;
use spillway_ledger::{NodeId, Signed};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// Own notices.
const OWN_MAX: usize = 64;
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
        let before = self.own.iter().filter(|own| shares(own)).map(|own| own.gossiped).max();
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
        self.follow();
    }

    /// Issues a notice of an own offer, and gossips it if its last one was long enough ago.
    fn announce(
        &mut self,
        offer: Arc<Signed<Offer>>,
        content: ContentId,
        models: Vec<ModelTag>,
        gossiped: Option<Now>,
    ) {
        let shards: BTreeSet<Shard> = models.iter().map(|model| model.shard()).collect();
        let live = |shard| self.topics.get(shard).map_or(0, |topic: &Topic| topic.live.max(topic.table.len()));
        let live = shards.iter().map(live).max().unwrap_or(0);
        self.sequence = self.sequence.saturating_add(1).max(self.now.ms());
        let chain = Chain::new(&self.key, self.sequence, content);
        let period = period(live);
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
        let is_loud = gossiped.is_none_or(|last| self.now.since(last) >= every);
        self.own.push(Own {
            offer,
            content,
            notice: Arc::clone(&notice),
            chain,
            number: 0,
            next_beat: self.now.after(period),
            gossiped: if is_loud { self.now } else { gossiped.unwrap_or(self.now) },
        });
        self.follow();
        let node = self.node;
        for shard in shards {
            let link = notice.value().anchor;
            self.tell(shard, Arc::clone(&notice), 0, link, &node);
            if is_loud {
                self.emit(Effect::Gossip { shard, bytes: notice.to_bytes() });
            }
        }
    }

    /// Shows the signs of life that are due, takes back what was not issued anew, and begins new chains.
    pub(super) fn show_signs(&mut self) {
        let now = self.now;
        if self.own.iter().all(|own| own.next_beat > now && own.offer.value().expires_ms > now.ms()) {
            return;
        }
        let (over, alive): (Vec<Own>, Vec<Own>) =
            std::mem::take(&mut self.own).into_iter().partition(|own| own.offer.value().expires_ms <= now.ms());
        self.take_back(&over);
        for mut own in alive {
            if own.next_beat > now {
                self.own.push(own);
                continue;
            }
            let value = own.notice.value();
            let due = u8::try_from(value.number_at(now)).unwrap_or(FAREWELL);
            let live = value.models.iter().filter_map(|model| self.topics.get(&model.shard())).map(|topic| topic.live);
            let wanted = period(live.max().unwrap_or(0));
            let fits = wanted <= 2 * value.period() && 2 * wanted >= value.period();
            if due == FAREWELL || !fits {
                let models = value.models.clone();
                // Not gossiped: who has the old one learns the new one from the logs, well before that lapses.
                let gossiped = own.gossiped.max(now);
                self.announce(own.offer, own.content, models, Some(gossiped));
                continue;
            }
            own.number = due;
            own.next_beat = Now::from_ms(value.due_ms(due + 1)).max(now.after(Duration::from_secs(1)));
            self.show(&own, due);
            self.own.push(own);
        }
        if !over.is_empty() {
            self.follow();
        }
    }

    fn show(&mut self, own: &Own, number: u8) -> Beat {
        let beat = Beat { tag: own.notice.value().anchor.tag(), number, link: own.chain.link(number) };
        for model in &own.notice.value().models {
            if let Some(topic) = self.topics.get_mut(&model.shard()) {
                topic.table.beat(self.now, beat, node_key(&self.node));
            }
        }
        beat
    }

    /// Shows the farewells of own offers, and sends them to peers at once: this node may not be there to be asked.
    pub(super) fn take_back(&mut self, over: &[Own]) {
        let mut told: BTreeMap<NodeId, Vec<Beat>> = BTreeMap::new();
        for own in over {
            let beat = self.show(own, FAREWELL);
            for model in &own.notice.value().models {
                for peer in self.peers_on(model.shard()).take(FAREWELL_PEERS) {
                    let beats = told.entry(peer).or_default();
                    if beats.len() < FAREWELLS_MAX && !beats.contains(&beat) {
                        beats.push(beat);
                    }
                }
            }
        }
        for (peer, beats) in told {
            self.ask(peer, &Ask::Farewell(beats), Asking::Nothing);
        }
    }
}
