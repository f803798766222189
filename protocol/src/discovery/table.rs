//! The notices of one shard, with a log of what changed, so that a peer can be told what is new to it.
//! Invariant: each entry has exactly one place in the log, that of its last change; a node's notices that share a model
//! are one, the newest.

use super::NODE_NOTICES_MAX;
use super::ask::{Mark, News, RECENT};
use super::notice::{Beat, ContentId, FAREWELL, Link, ModelTag, Notice};
use crate::time::Now;
use spillway_ledger::{NodeId, Signed};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// A node's id, short; who makes two that are alike shares a place with itself.
pub(super) type NodeKey = u64;

pub(super) fn node_key(node: &NodeId) -> NodeKey {
    u64::from_le_bytes(*node.0.as_bytes().first_chunk().expect("a key has 32 bytes"))
}

/// One notice and its last sign of life.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) notice: Arc<Signed<Notice>>,
    /// The last sign; 0 if there was none yet.
    pub(super) number: u8,
    pub(super) link: Link,
    /// By which number a fair sample is drawn.
    pub(super) rank: u32,
    /// When it lapses. A farewell stays until then, so that an old sign does not bring it back.
    pub(super) until_ms: u64,
    /// From when on its sign is late by more than a period: kept here, since every entry is looked at in every round.
    late_ms: u64,
    /// Who told it; nobody has to tell them.
    from: NodeKey,
    /// Where in the log the notice came, and where its last change is.
    born: u64,
    place: u64,
}

impl Entry {
    pub(super) fn node(&self) -> NodeId {
        NodeId(self.notice.signer())
    }

    pub(super) fn is_live(&self, now: Now) -> bool {
        self.number != FAREWELL && self.until_ms > now.ms()
    }

    pub(super) fn serves(&self, model: ModelTag) -> bool {
        self.notice.value().models.contains(&model)
    }

    /// Whether its sign is late by more than a period. A chain's last sign has no successor.
    const fn is_late(&self, now: Now) -> bool {
        self.number < FAREWELL - 1 && self.late_ms <= now.ms() && self.until_ms > now.ms()
    }

    fn news(&self) -> News {
        News { notice: self.notice.to_wire(), number: self.number, link: self.link }
    }
}

/// What became of something that was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// It is new, and kept.
    New,
    /// It is known, or older than what is known. Nobody's fault.
    Known,
    /// Its time is over or has not come; clocks differ. Nobody's fault.
    Untimely,
    /// There is no place for it.
    NoRoom,
    /// A sign of a notice that is not here.
    Unknown,
    /// Forged.
    Forged,
}

/// The notices of one shard.
#[derive(Debug)]
pub(super) struct Table {
    entries: BTreeMap<u32, Entry>,
    by_node: BTreeSet<(NodeKey, u32)>,
    log: BTreeMap<u64, u32>,
    end: u64,
    max: usize,
    /// Nodes above this rank have no place, since the table was full.
    rank_max: u32,
}

impl Table {
    pub(super) const fn new(max: usize) -> Self {
        Self {
            entries: BTreeMap::new(),
            by_node: BTreeSet::new(),
            log: BTreeMap::new(),
            end: 1,
            max,
            rank_max: u32::MAX,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// How many entries there are, as said in marks.
    pub(super) fn size(&self) -> u32 {
        u32::try_from(self.entries.len()).unwrap_or(u32::MAX)
    }

    pub(super) fn get(&self, tag: u32) -> Option<&Entry> {
        self.entries.get(&tag)
    }

    pub(super) fn of_node(&self, node: &NodeId) -> impl Iterator<Item = &Entry> {
        let (key, node) = (node_key(node), *node);
        let entries = self.by_node.range((key, 0)..=(key, u32::MAX)).map(|(_, tag)| &self.entries[tag]);
        entries.filter(move |entry| entry.node() == node)
    }

    /// When the notice of that offer lapses, Unix milliseconds.
    pub(super) fn until_of(&self, node: &NodeId, content: &ContentId) -> Option<u64> {
        let mut entries = self.of_node(node).filter(|entry| entry.number != FAREWELL);
        entries.find(|entry| entry.notice.value().content == *content).map(|entry| entry.until_ms)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (u32, &Entry)> {
        self.entries.iter().map(|(tag, entry)| (*tag, entry))
    }

    /// Whether everyone has a place here.
    pub(super) const fn is_roomy(&self) -> bool {
        self.rank_max == u32::MAX
    }

    /// Takes a notice in that was checked to be of this market and shard. `favoured` has a place whatever its rank.
    /// The entries that it takes the place of go to `gone`.
    #[expect(clippy::too_many_arguments, reason = "all of what is known of a notice")]
    pub(super) fn tell(
        &mut self,
        now: Now,
        notice: Arc<Signed<Notice>>,
        number: u8,
        link: Link,
        rank: u32,
        favoured: bool,
        from: NodeKey,
        gone: &mut Vec<Entry>,
    ) -> Told {
        let value = notice.value();
        let (tag, key) = (value.anchor.tag(), node_key(&NodeId(notice.signer())));
        if let Some(known) = self.entries.get(&tag) {
            if known.notice.value() == value && known.notice.signer() == notice.signer() {
                return self.beat(now, Beat { tag, number, link }, from);
            }
            return Told::NoRoom; // Two anchors that begin alike: its issuer's next notice has another.
        }
        if number == FAREWELL || value.until_ms(number) <= now.ms() || !value.may_show(now, number) {
            return Told::Untimely;
        }
        if link.back(number) != value.anchor {
            return Told::Forged;
        }
        let own: Vec<u32> = self.by_node.range((key, 0)..=(key, u32::MAX)).map(|(_, tag)| *tag).collect();
        let rivals = own.iter().filter(|own| {
            let entry = &self.entries[*own];
            entry.notice.signer() == notice.signer() && value.models.iter().any(|model| entry.serves(*model))
        });
        let rivals: Vec<u32> = rivals.copied().collect();
        if rivals.iter().any(|rival| self.entries[rival].notice.value().sequence >= value.sequence) {
            return Told::Known;
        }
        if own.len() - rivals.len() >= NODE_NOTICES_MAX || (rank > self.rank_max && !favoured) {
            return Told::NoRoom;
        }
        // Every check has passed: nothing below can fail.
        gone.extend(rivals.into_iter().filter_map(|rival| self.remove(rival)));
        self.end += 1;
        let (until_ms, late_ms) = (value.until_ms(number), value.late_ms(number));
        let entry = Entry { notice, number, link, rank, until_ms, late_ms, from, born: self.end, place: self.end };
        self.entries.insert(tag, entry);
        self.by_node.insert((key, tag));
        self.log.insert(self.end, tag);
        if self.entries.len() > self.max {
            self.thin(gone);
        }
        Told::New
    }

    /// Takes a sign of life in.
    pub(super) fn beat(&mut self, now: Now, beat: Beat, from: NodeKey) -> Told {
        let Some(entry) = self.entries.get_mut(&beat.tag) else { return Told::Unknown };
        if beat.number <= entry.number {
            return Told::Known;
        }
        if !entry.notice.value().may_show(now, beat.number) {
            return Told::Untimely;
        }
        if beat.link.back(beat.number - entry.number) != entry.link {
            return Told::Forged;
        }
        self.log.remove(&entry.place);
        self.end += 1;
        entry.number = beat.number;
        entry.link = beat.link;
        entry.from = from;
        entry.place = self.end;
        if beat.number != FAREWELL {
            let value = entry.notice.value();
            (entry.until_ms, entry.late_ms) = (value.until_ms(beat.number), value.late_ms(beat.number));
        }
        self.log.insert(self.end, beat.tag);
        Told::New
    }

    /// Drops those of the highest rank, a sixteenth, and with them all who come later and rank as high.
    fn thin(&mut self, gone: &mut Vec<Entry>) {
        let mut ranks: Vec<u32> = self.entries.values().map(|entry| entry.rank).collect();
        ranks.sort_unstable();
        self.rank_max = ranks[self.max - self.max / 16];
        let high: Vec<u32> =
            self.entries.iter().filter(|(_, entry)| entry.rank > self.rank_max).map(|(tag, _)| *tag).collect();
        gone.extend(high.into_iter().filter_map(|tag| self.remove(tag)));
    }

    pub(super) fn remove(&mut self, tag: u32) -> Option<Entry> {
        let entry = self.entries.remove(&tag)?;
        self.by_node.remove(&(node_key(&entry.node()), tag));
        self.log.remove(&entry.place);
        Some(entry)
    }

    /// Takes out all that one node said.
    pub(super) fn remove_node(&mut self, node: &NodeId) -> Vec<Entry> {
        let tags: Vec<u32> = self.of_node(node).map(|entry| entry.notice.value().anchor.tag()).collect();
        tags.into_iter().filter_map(|tag| self.remove(tag)).collect()
    }

    /// Drops what has lapsed; says how many live on, and how many of them are late by more than a period.
    pub(super) fn sweep(&mut self, now: Now, gone: &mut Vec<Entry>) -> (usize, usize) {
        let (mut over, mut live, mut late) = (Vec::new(), 0, 0);
        for (tag, entry) in &self.entries {
            if entry.until_ms <= now.ms() {
                over.push(*tag);
                continue;
            }
            live += usize::from(entry.number != FAREWELL);
            late += usize::from(entry.is_late(now));
        }
        gone.extend(over.into_iter().filter_map(|tag| self.remove(tag)));
        if self.entries.len() < self.max / 4 * 3 {
            self.rank_max = u32::MAX;
        }
        (live, late)
    }

    /// Some of those whose signs are late, the longest silent first.
    pub(super) fn late(&self, now: Now, max: usize) -> BTreeSet<u32> {
        let in_order = self.log.values().filter(|tag| self.entries[tag].is_late(now));
        in_order.take(max).copied().collect()
    }

    /// What a peer does not know yet that has read the log up to `place`, for as long as `room` has room for it. What it
    /// told itself is left out. Gives the place that this goes up to, and whether there is more.
    pub(super) fn since(&self, place: u64, asker: NodeKey, room: &mut Room) -> (u64, bool) {
        if place == RECENT {
            for tag in self.log.values().rev().take(self.log.len().div_ceil(2)) {
                let entry = &self.entries[tag];
                if entry.from != asker && !room.beat(Beat { tag: *tag, number: entry.number, link: entry.link }) {
                    break;
                }
            }
            return (self.end, false);
        }
        let mut read = place;
        for (at, tag) in self.log.range(place.saturating_add(1)..) {
            let entry = &self.entries[tag];
            if entry.from != asker {
                let fits = if entry.born > place && entry.number != FAREWELL {
                    room.news(entry.news())
                } else if entry.born > place {
                    true // It came and went while the peer was not looking.
                } else {
                    room.beat(Beat { tag: *tag, number: entry.number, link: entry.link })
                };
                if !fits {
                    return (read, true);
                }
            }
            read = *at;
        }
        (self.end, false)
    }

    /// Adds a notice that a peer lost.
    pub(super) fn find(&self, tag: u32, room: &mut Room) {
        if let Some(entry) = self.entries.get(&tag).filter(|entry| entry.number != FAREWELL) {
            room.news(entry.news());
        }
    }
}

/// An answer that is being filled.
#[derive(Debug, Default)]
pub(super) struct Room {
    pub(super) marks: Vec<Mark>,
    pub(super) news: Vec<News>,
    pub(super) beats: Vec<Beat>,
    pub(super) left: usize,
}

/// A sign of life in an answer, in bytes.
const BEAT_BYTES: usize = 17;

impl Room {
    fn news(&mut self, news: News) -> bool {
        let bytes = news.notice.encoded_len() + 13;
        let fits = bytes <= self.left;
        if fits {
            self.left -= bytes;
            self.news.push(news);
        }
        fits
    }

    fn beat(&mut self, beat: Beat) -> bool {
        let fits = BEAT_BYTES <= self.left;
        if fits {
            self.left -= BEAT_BYTES;
            self.beats.push(beat);
        }
        fits
    }
}
