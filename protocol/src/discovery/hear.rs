//! Notices and signs of life of others: what is believed, kept and passed on.
//! Invariant: what does not hold changes nothing but a count, and a peer that says such things too often is let alone.

use super::machine::{Discovery, Opener};
use super::notice::{ContentId, FAREWELL, Link, Notice, Shard, rank};
use super::table::{Entry, Told, node_key};
use super::{Beat, Effect, Fault, Judgement, NOTICE_BYTES_MAX, News};
use spillway_ledger::{NodeId, Signed, SignedBytes};
use std::collections::BTreeSet;
use std::sync::Arc;

impl<O: Opener> Discovery<O> {
    pub(super) fn heard(&mut self, shard: Shard, from: NodeId, bytes: &[u8]) -> Judgement {
        let now = self.now;
        if !self.topics.contains_key(&shard) {
            return Judgement::Ignore;
        }
        if let Some(state) = self.peers.get_mut(&from)
            && (state.is_muted(now) || !state.verify.take(now, 1))
        {
            return Judgement::Ignore;
        }
        let Some(notice) = wire_of(bytes).and_then(|wire| self.opener.notice(wire).ok()) else {
            self.blame(from, Fault::Malformed);
            return Judgement::Reject;
        };
        if notice.value().market != self.market || !notice.value().is_of(shard) {
            self.blame(from, Fault::Misplaced);
            return Judgement::Reject;
        }
        if notice.signer() == self.node.0 || self.liars.has(now, &NodeId(notice.signer())) {
            return Judgement::Ignore;
        }
        let topic = self.topics.get_mut(&shard).expect("found above");
        if !topic.gossip.take(now, 1) {
            return Judgement::Ignore; // It comes by the logs.
        }
        let link = notice.value().anchor;
        match self.tell(shard, notice, 0, link, &from) {
            Told::New => Judgement::Accept,
            Told::Known | Told::Untimely | Told::NoRoom | Told::Unknown | Told::Forged => Judgement::Ignore,
        }
    }

    /// Takes a notice into a shard's table.
    pub(super) fn tell(
        &mut self,
        shard: Shard,
        notice: Arc<Signed<Notice>>,
        number: u8,
        link: Link,
        from: &NodeId,
    ) -> Told {
        let node = NodeId(notice.signer());
        let favoured = node == self.node || self.anchors.contains(&node);
        let (rank, key, content) = (rank(&self.secret, &node), node_key(from), notice.value().content);
        let tag = notice.value().anchor.tag();
        let Some(topic) = self.topics.get_mut(&shard) else { return Told::NoRoom };
        let mut gone = Vec::new();
        let is_low = |cutoff: Option<&u32>| favoured || cutoff.is_none_or(|cutoff| rank < *cutoff);
        let is_chosen = if shard == Shard::LOBBY {
            is_low(topic.cutoffs.get(&None))
        } else {
            let mut models = notice.value().models.iter().filter(|model| self.uses.contains(model));
            models.any(|model| is_low(topic.cutoffs.get(&Some(*model))))
        };
        let told = topic.table.tell(self.now, notice, number, link, rank, favoured, key, &mut gone);
        if told == Told::New {
            if is_chosen && node != self.node {
                topic.is_changed = true;
                self.pull_soon(super::pull::PULL_AFTER);
            }
            self.renewed(shard, tag, Some(content));
        }
        self.gone(shard, gone);
        told
    }

    /// Entries have left a shard's table: their offers go too, unless another notice of the same node keeps them.
    pub(super) fn gone(&mut self, shard: Shard, gone: Vec<Entry>) {
        let now = self.now;
        let Some(topic) = self.topics.get_mut(&shard) else { return };
        let (mut is_changed, mut lost) = (false, BTreeSet::new());
        for entry in gone {
            let (node, content) = (entry.node(), entry.notice.value().content);
            // Whoever else named the same content has no say in it.
            let is_held = self.offers.get(&content).is_some_and(|held| held.offer.value().node == node);
            if !is_held && self.wants.get(&content).is_none_or(|want| want.provider != node) {
                continue;
            }
            is_changed = true;
            if topic.table.until_of(&node, &content).is_none_or(|until_ms| until_ms <= now.ms()) {
                lost.insert(content);
            }
        }
        if !is_changed {
            return;
        }
        topic.is_changed = true;
        self.drop_offers(shard, |content| lost.contains(content));
        self.pull_soon(super::pull::PULL_AFTER);
    }

    /// A notice is new or showed a sign: if its offer is at hand, it lives on.
    fn renewed(&mut self, shard: Shard, tag: u32, content: Option<ContentId>) {
        let Some(entry) = self.topics.get(&shard).and_then(|topic| topic.table.get(tag)) else { return };
        let content = content.unwrap_or(entry.notice.value().content);
        let until_ms = if entry.number == FAREWELL { 0 } else { entry.until_ms };
        let Some(held) = self.offers.get(&content) else { return };
        let offer = Arc::clone(&held.offer);
        self.emit(Effect::Hold { offer, until_ms });
        if until_ms == 0 {
            self.offers.remove(&content);
            if let Some(topic) = self.topics.get_mut(&shard) {
                topic.is_changed = true;
            }
            self.pull_soon(super::pull::PULL_AFTER);
        }
    }

    /// Takes what a peer's log said.
    pub(super) fn read(&mut self, shards: &[Shard], from: NodeId, news: Vec<News>, beats: &[Beat]) -> BTreeSet<u32> {
        for item in news {
            let Ok(notice) = self.opener.notice(item.notice) else {
                self.blame(from, Fault::Malformed);
                return BTreeSet::new();
            };
            if notice.value().market != self.market {
                self.blame(from, Fault::Misplaced);
                return BTreeSet::new();
            }
            let node = NodeId(notice.signer());
            if node == self.node || self.liars.has(self.now, &node) {
                continue;
            }
            for shard in shards.iter().filter(|shard| notice.value().is_of(**shard)) {
                if self.tell(*shard, Arc::clone(&notice), item.number, item.link, &from) == Told::Forged {
                    self.blame(from, Fault::Forged);
                    return BTreeSet::new();
                }
            }
        }
        let key = node_key(&from);
        let mut lost = BTreeSet::new();
        for beat in beats {
            let mut told = Told::Unknown;
            for shard in shards {
                let Some(topic) = self.topics.get_mut(shard) else { continue };
                let here = topic.table.beat(self.now, *beat, key);
                match here {
                    Told::Unknown if told == Told::Unknown && !topic.table.is_roomy() => told = Told::NoRoom,
                    Told::Unknown => {}
                    Told::New => {
                        told = here;
                        self.renewed(*shard, beat.tag, None);
                    }
                    Told::Known | Told::Untimely | Told::NoRoom | Told::Forged => told = here,
                }
            }
            match told {
                Told::Unknown if beat.number != FAREWELL => {
                    lost.insert(beat.tag);
                }
                Told::Forged => {
                    self.blame(from, Fault::Forged);
                    return BTreeSet::new();
                }
                Told::New | Told::Known | Told::Untimely | Told::NoRoom | Told::Unknown => {}
            }
        }
        lost
    }
}

/// Reads an envelope; nothing in it is checked yet.
fn wire_of(bytes: &[u8]) -> Option<SignedBytes> {
    if bytes.len() > NOTICE_BYTES_MAX {
        return None;
    }
    wincode::deserialize_exact(bytes).ok()
}
