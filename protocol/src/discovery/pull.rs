//! Pulls: which offers are wanted, and who is asked for them.
//! Invariants: at most [`Settings::offers_per_model`](super::Settings) offers of a model are at hand or wanted; they are
//! those of the lowest rank, by a secret of this node, so that nobody can push itself among them; a peer is asked one
//! thing at a time, and what nobody has is not asked for again and again.

use super::ask::{Ask, CONTENTS_MAX};
use super::machine::{Asking, Discovery, Held, Opener, bit};
use super::notice::{ContentId, FAREWELL, ModelTag, Shard};
use super::table::{NodeKey, node_key};
use super::{Effect, Fault};
use crate::time::Now;
use rand::RngExt as _;
use spillway_ledger::{NodeId, SignedBytes};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How soon after news offers are chosen.
pub(super) const PULL_AFTER: Duration = Duration::from_millis(500);
/// How long to wait before the next peer is asked for the same offer.
const PULL_AGAIN: Duration = Duration::from_secs(4);
/// Nothing is asked for again sooner, whatever is wanted.
const PULL_MIN: Duration = Duration::from_secs(1);
/// Connected peers that are asked for an offer before its provider is dialled for it.
const HELPERS_MAX: usize = 6;
/// Peers that are asked at once.
const PULLS_MAX: usize = 4;
/// Providers that are dialled for their offers: at once, and each minute.
pub(super) const DIALS_BURST: u64 = 16;
pub(super) const DIALS_PER_MINUTE: u64 = 2;
/// How long an offer that its provider did not give is let alone, at first; it doubles up to [`PERIOD_MAX`].
const UNAVAILABLE: Duration = Duration::from_secs(300);
const UNAVAILABLE_MAX: Duration = super::PERIOD_MAX;
/// How long a provider's notices are ignored whose offer was not what it announced.
const LIAR: Duration = Duration::from_secs(3600);
/// Providers that are remembered for that.
const LIARS_MAX: usize = 1024;

/// An offer that is wanted.
#[derive(Debug)]
pub(super) struct Want {
    shards: u128,
    pub(super) provider: NodeId,
    models: Vec<ModelTag>,
    /// Who was asked for it, or is being asked.
    tried: Vec<NodeKey>,
    /// How often its provider was dialled in vain.
    failures: u32,
    next: Now,
}

/// Who is asked for an offer.
enum Whom {
    /// This peer, now.
    Peer(NodeId),
    /// One that is being asked something else: its turn comes with the answer.
    Busy,
    /// Nobody before another connection may be made.
    Nobody,
}

/// Providers that announced something else than they offer.
#[derive(Debug, Default)]
pub(super) struct Liars(BTreeMap<NodeId, Now>);

impl Liars {
    pub(super) fn has(&self, now: Now, node: &NodeId) -> bool {
        self.0.get(node).is_some_and(|until| *until > now)
    }

    fn add(&mut self, now: Now, node: NodeId) {
        if self.0.len() >= LIARS_MAX {
            self.0.retain(|_, until| *until > now);
        }
        if self.0.len() < LIARS_MAX {
            self.0.insert(node, now.after(LIAR));
        }
    }
}

impl<O: Opener> Discovery<O> {
    /// Chooses the offers that are wanted, and asks for those that are not at hand.
    pub(super) fn pull(&mut self) {
        if self.next_pull.is_none_or(|at| at > self.now) {
            return;
        }
        for shard in self.shards().collect::<Vec<_>>() {
            self.choose(shard);
        }
        let mut plan: BTreeMap<NodeId, Vec<ContentId>> = BTreeMap::new();
        let mut helpers: BTreeMap<Shard, Vec<NodeId>> = BTreeMap::new();
        let due: Vec<ContentId> =
            self.wants.iter().filter(|(_, want)| want.next <= self.now).map(|(content, _)| *content).collect();
        let now = self.now;
        for content in due {
            match self.whom_to_ask(&content, &plan, &mut helpers) {
                Whom::Peer(peer) => plan.entry(peer).or_default().push(content),
                Whom::Busy => {} // It stays due.
                Whom::Nobody => {
                    let at = self.dials.ready_at(now, 1);
                    self.wants.get_mut(&content).expect("it is due").next = at.max(now.after(PULL_MIN));
                }
            }
        }
        for (peer, contents) in plan {
            if !self.ask(peer, &Ask::Offers(contents.clone()), Asking::Offers(contents.clone())) {
                continue;
            }
            for content in contents {
                if let Some(want) = self.wants.get_mut(&content) {
                    want.tried.push(node_key(&peer));
                    want.next = now.after(super::machine::ASK_WAIT).after(PULL_AGAIN);
                }
            }
        }
        // What is still due waits for an answer that is under way, and is looked at when that comes or is given up.
        self.awaits_answer = self.wants.values().any(|want| want.next <= now);
        let soonest = self.wants.values().map(|want| want.next).filter(|at| *at > now).min();
        self.next_pull = soonest.map(|at| at.max(now.after(PULL_MIN)));
    }

    /// An answer came, or none will: whoever was asked may be asked for an offer again.
    pub(super) fn pull_if_awaited(&mut self) {
        if self.awaits_answer {
            self.pull_soon(Duration::ZERO);
        }
    }

    /// The provider itself if it is connected, else connected peers of the shard one after the other, else the provider,
    /// for which a connection must be made.
    fn whom_to_ask(
        &mut self,
        content: &ContentId,
        plan: &BTreeMap<NodeId, Vec<ContentId>>,
        helpers: &mut BTreeMap<Shard, Vec<NodeId>>,
    ) -> Whom {
        let want = &self.wants[content];
        let is_free = |peer: &NodeId| self.peers.get(peer).is_none_or(|state| state.asked.is_none());
        let has_room = |peer: &NodeId| match plan.get(peer) {
            Some(contents) => contents.len() < CONTENTS_MAX,
            None => plan.len() < PULLS_MAX,
        };
        let provider = want.provider;
        let is_tried = |peer: &NodeId| want.tried.contains(&node_key(peer));
        if self.peers.contains_key(&provider) && !is_tried(&provider) {
            return if is_free(&provider) && has_room(&provider) { Whom::Peer(provider) } else { Whom::Busy };
        }
        if want.tried.len() < HELPERS_MAX {
            let shard = Shard::all().find(|shard| want.shards & bit(*shard) != 0).expect("what is wanted has a shard");
            let known = helpers.entry(shard).or_insert_with(|| self.peers_on(shard).filter(is_free).collect());
            // Whoever is asked already is asked for this too.
            let planned = known.iter().find(|peer| plan.contains_key(peer) && !is_tried(peer) && has_room(peer));
            if let Some(peer) = planned {
                return Whom::Peer(*peer);
            }
            let fresh: Vec<NodeId> = known.iter().filter(|peer| !is_tried(peer) && has_room(peer)).copied().collect();
            if !fresh.is_empty() {
                let drawn = self.rng.random_range(0..fresh.len() as u64);
                return Whom::Peer(fresh[usize::try_from(drawn).expect("below a length")]);
            }
            if self.peers_on(shard).any(|peer| !is_tried(&peer)) {
                return Whom::Busy;
            }
        }
        if is_tried(&provider) || plan.contains_key(&provider) {
            return Whom::Nobody;
        }
        if !has_room(&provider) {
            return Whom::Busy;
        }
        if self.dials.take(self.now, 1) { Whom::Peer(provider) } else { Whom::Nobody }
    }

    /// Chooses anew which offers of a shard are wanted, if its notices have changed.
    fn choose(&mut self, shard: Shard) {
        let now = self.now;
        let Some(topic) = self.topics.get_mut(&shard).filter(|topic| topic.is_changed) else { return };
        topic.is_changed = false;
        topic.cutoffs.clear();
        let mut chosen: BTreeMap<ContentId, (NodeId, Vec<ModelTag>)> = BTreeMap::new();
        let uses: Vec<Option<ModelTag>> = if shard == Shard::LOBBY {
            vec![None]
        } else {
            self.uses.iter().filter(|model| model.shard() == shard).map(|model| Some(*model)).collect()
        };
        for model in uses {
            let mut ranked: Vec<(bool, u32, u32)> = topic
                .table
                .entries()
                .filter(|(_, entry)| entry.number != FAREWELL && model.is_none_or(|model| entry.serves(model)))
                .filter(|(_, entry)| entry.node() != self.node)
                .map(|(tag, entry)| (!self.anchors.contains(&entry.node()), entry.rank, tag))
                .collect();
            if ranked.len() > self.settings.offers_per_model {
                ranked.select_nth_unstable(self.settings.offers_per_model);
                ranked.truncate(self.settings.offers_per_model);
                // Those with a rank below the highest chosen would be chosen.
                let highest = ranked.iter().filter(|(is_stranger, ..)| *is_stranger).map(|(_, rank, _)| *rank).max();
                topic.cutoffs.insert(model, highest.unwrap_or(0));
            }
            for (_, _, tag) in ranked {
                let entry = topic.table.get(tag).expect("it was listed");
                let value = entry.notice.value();
                chosen.insert(value.content, (entry.node(), value.models.clone()));
            }
        }
        self.drop_offers(shard, |content| !chosen.contains_key(content));
        for (content, (provider, models)) in chosen {
            if let Some(held) = self.offers.get_mut(&content) {
                held.shards |= bit(shard);
                continue;
            }
            let fresh = || Want { shards: 0, provider, models, tried: Vec::new(), failures: 0, next: now };
            self.wants.entry(content).or_insert_with(fresh).shards |= bit(shard);
        }
    }

    /// Looks at what is wanted after `wait` at the latest.
    pub(super) fn pull_soon(&mut self, wait: Duration) {
        let at = self.now.after(wait);
        self.next_pull = Some(self.next_pull.map_or(at, |set| set.min(at)));
    }

    /// Lets go of a shard's offers, at hand or wanted, that are no longer of use to it.
    pub(super) fn drop_offers(&mut self, shard: Shard, is_useless: impl Fn(&ContentId) -> bool) {
        let keeps = |content: &ContentId, shards: &mut u128| {
            if *shards & bit(shard) != 0 && is_useless(content) {
                *shards &= !bit(shard);
            }
            *shards != 0
        };
        self.offers.retain(|content, held| keeps(content, &mut held.shards));
        self.wants.retain(|content, want| keeps(content, &mut want.shards));
    }

    /// Takes the offers that a peer gave; those of `asked` that are not among them are asked for elsewhere.
    pub(super) fn offers_came(&mut self, peer: NodeId, asked: Vec<ContentId>, offers: Vec<SignedBytes>) {
        let mut left: BTreeSet<ContentId> = asked.into_iter().collect();
        for wire in offers {
            let Ok(offer) = self.opener.offer(wire) else {
                self.blame(peer, Fault::Malformed);
                break;
            };
            let value = offer.value();
            let content = ContentId::of(value);
            if !left.remove(&content) || value.network != self.network {
                self.blame(peer, Fault::Unasked);
                break;
            }
            let Some(want) = self.wants.remove(&content) else { continue }; // No longer wanted: late, not wrong.
            let mut models: Vec<ModelTag> =
                value.models.iter().map(|model| ModelTag::of(&self.network, &model.id)).collect();
            models.sort_unstable();
            models.dedup();
            if offer.signer() != want.provider.0 || value.node != want.provider || models != want.models {
                // It is what its notice named, so the notice's signer is at fault and not who passed it on.
                self.lied(want.provider);
                continue;
            }
            let until_ms = Shard::all()
                .filter(|shard| want.shards & bit(*shard) != 0)
                .filter_map(|shard| self.topics.get(&shard)?.table.until_of(&want.provider, &content))
                .max();
            let Some(until_ms) = until_ms else { continue }; // It has lapsed meanwhile.
            self.emit(Effect::Hold { offer: Arc::clone(&offer), until_ms });
            self.offers.insert(content, Held { offer, shards: want.shards });
        }
        let now = self.now;
        for content in left {
            let Some(want) = self.wants.get_mut(&content) else { continue };
            want.next = now.after(PULL_AGAIN);
            if want.provider == peer {
                want.tried.clear();
                let pause = UNAVAILABLE * 2_u32.saturating_pow(want.failures.min(8));
                want.failures += 1;
                want.next = now.after(pause.min(UNAVAILABLE_MAX));
            }
        }
        if !self.wants.is_empty() {
            self.pull_soon(PULL_AGAIN);
        }
    }

    /// Forgets all that a provider announced, and does not listen to it for a while.
    fn lied(&mut self, provider: NodeId) {
        self.blame(provider, Fault::Mislabelled);
        self.liars.add(self.now, provider);
        for shard in self.shards().collect::<Vec<_>>() {
            let Some(topic) = self.topics.get_mut(&shard) else { continue };
            let gone = topic.table.remove_node(&provider);
            self.gone(shard, gone);
        }
    }
}
