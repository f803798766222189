//! Rounds: each shard's partners are asked now and then what changed.
//! Invariant: the logs of at most [`Settings::partners`](super::Settings) peers of a shard are read at a time, and each
//! from where it was read last.

use super::ask::{Ask, LOST_MAX, MARKS_MAX, Mark, RECENT};
use super::machine::{Asking, Discovery, Opener};
use super::notice::Shard;
use super::{Beat, Effect, News};
use crate::time::Now;
use rand::RngExt as _;
use spillway_ledger::NodeId;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The shortest time between two rounds of a shard.
pub(super) const ROUND_MIN: Duration = Duration::from_secs(30);
/// After so many rounds one partner is changed for another.
const PARTNER_ROUNDS: u64 = 12;
/// Questions that follow an answer at once because there is more, at the most.
const FOLLOW_UPS_MAX: u32 = 16;
/// Notices of which a partner showed signs only, that are remembered.
const LOST_KEPT: usize = 1024;
/// A partner that has none of more than so many notices of which it showed signs is changed for another.
const BASELESS_MAX: usize = 4;
/// Below so many connected peers of a shard, more are looked for.
const PEERS_WANTED: usize = 4;

/// A peer whose log of a shard is read.
#[derive(Clone, Debug)]
pub(super) struct Partner {
    pub(super) peer: NodeId,
    /// Which of its logs, and how far it was read.
    log: u64,
    place: u64,
    /// Notices of which it showed signs only; it must have them.
    lost: BTreeSet<u32>,
    /// Notices whose signs are late; it may have them.
    sought: BTreeSet<u32>,
    /// How many of `lost` it is being asked for.
    asked: usize,
    follow_ups: u32,
    is_due: bool,
    /// Its log is or was read from the beginning.
    is_whole: bool,
}

/// The first moment from `at` on, a second before included, at which this node's rounds begin: together, so that a peer
/// is asked once for all that is due.
fn on_grid(at: Now, phase: Duration) -> Now {
    let step = u64::try_from(ROUND_MIN.as_micros()).expect("seconds");
    let phase = u64::try_from(phase.as_micros()).expect("seconds") % step;
    let from = at.0.saturating_sub(1_000_000).saturating_sub(phase);
    Now(from.div_ceil(step).saturating_mul(step).saturating_add(phase))
}

impl<O: Opener> Discovery<O> {
    /// Begins the rounds that are due.
    pub(super) fn rounds(&mut self) {
        let now = self.now;
        let due: Vec<Shard> =
            self.topics.iter().filter(|(_, topic)| topic.next_round <= now).map(|(shard, _)| *shard).collect();
        for shard in due {
            self.begin_round(shard);
        }
        self.ask_partners();
    }

    fn begin_round(&mut self, shard: Shard) {
        let now = self.now;
        let mut gone = Vec::new();
        let candidates: Vec<NodeId> = self.peers_on(shard).collect();
        let elsewhere: BTreeSet<NodeId> =
            self.topics.values().flat_map(|topic| topic.partners.iter().map(|partner| partner.peer)).collect();
        let topic = self.topics.get_mut(&shard).expect("the caller found it");
        let (live, late) = topic.table.sweep(now, &mut gone);
        topic.live = live;
        topic.rounds += 1;
        let round = Self::round_of(shard, live);
        let mut wait = round;
        let mut sought = BTreeSet::new();
        let is_rotated = topic.rounds.is_multiple_of(PARTNER_ROUNDS);
        if late >= 4 && late * 4 > live {
            // Too many fell silent at once: perhaps the partners keep their signs back. Others are asked for them.
            topic.partners.clear();
            sought = topic.table.late(now, LOST_MAX);
            wait /= 2;
        } else if is_rotated && !topic.partners.is_empty() {
            let out = self.rng.random_range(0..topic.partners.len() as u64);
            topic.partners.swap_remove(usize::try_from(out).expect("below a length"));
        }
        topic.next_round = on_grid(now.after(wait.max(ROUND_MIN)), self.phase);
        let is_filled = topic.is_filled;
        let mut free: Vec<NodeId> =
            candidates.iter().filter(|peer| topic.partners.iter().all(|known| known.peer != **peer)).copied().collect();
        while topic.partners.len() < self.settings.partners && !free.is_empty() {
            // The first is a peer that was good to us, if one is here; then come those that are asked for other shards
            // anyway. In place of one that had its time one is drawn.
            let is_first = topic.partners.is_empty();
            let anchor = free.iter().position(|peer| is_first && self.anchors.contains(peer));
            let shared = free.iter().position(|peer| !is_rotated && elsewhere.contains(peer));
            let drawn = self.rng.random_range(0..free.len() as u64);
            let at = anchor.or(shared).unwrap_or_else(|| usize::try_from(drawn).expect("below a length"));
            // The first log is read whole; what a later one has beyond it shows by its signs.
            let place = if is_filled || !topic.partners.is_empty() { RECENT } else { 0 };
            topic.partners.push(Partner {
                peer: free.swap_remove(at),
                log: 0,
                place,
                lost: BTreeSet::new(),
                sought: sought.clone(),
                asked: 0,
                follow_ups: 0,
                is_due: false,
                is_whole: place == 0,
            });
        }
        for partner in &mut topic.partners {
            partner.is_due = true;
            partner.follow_ups = 0;
        }
        let few = candidates.len() < PEERS_WANTED || (late >= 4 && late * 4 > live);
        self.gone(shard, gone);
        if few {
            self.emit(Effect::Seek(shard));
        }
    }

    /// Asks each partner that is due, for all shards that it is due for, in one question.
    fn ask_partners(&mut self) {
        let mut plans: BTreeMap<NodeId, Vec<Shard>> = BTreeMap::new();
        for (shard, topic) in &self.topics {
            for partner in topic.partners.iter().filter(|partner| partner.is_due) {
                let shards = plans.entry(partner.peer).or_default();
                if shards.len() < MARKS_MAX {
                    shards.push(*shard);
                }
            }
        }
        for (peer, mut shards) in plans {
            // A log has one name for all its shards; marks of another go in a question of their own.
            let log_of = |shard: &Shard| self.partner(*shard, &peer).map_or(0, |partner| partner.log);
            let log = log_of(&shards[0]);
            shards.retain(|shard| log_of(shard) == log);
            let marks = shards
                .iter()
                .filter_map(|shard| {
                    let place = self.partner(*shard, &peer)?.place;
                    Some(Mark { shard: shard.number(), place, size: self.topics[shard].table.size() })
                })
                .collect();
            let (mut lost, mut asked) = (Vec::new(), Vec::new());
            for partner in shards.iter().filter_map(|shard| self.partner(*shard, &peer)) {
                let room = LOST_MAX - lost.len();
                let all = partner.lost.iter().chain(&partner.sought).copied();
                lost.extend(all.take(room));
                asked.push(partner.lost.len().min(room));
            }
            let ask = Ask::News { log, marks, lost };
            if !self.ask(peer, &ask, Asking::News(shards.clone())) {
                continue; // It is being asked something else: its turn comes with the answer.
            }
            for (shard, asked) in shards.into_iter().zip(asked) {
                if let Some(partner) = self.partner_mut(shard, &peer) {
                    partner.is_due = false;
                    partner.asked = asked;
                    partner.sought.clear();
                }
            }
        }
    }

    fn partner(&self, shard: Shard, peer: &NodeId) -> Option<&Partner> {
        self.topics.get(&shard)?.partners.iter().find(|partner| partner.peer == *peer)
    }

    fn partner_mut(&mut self, shard: Shard, peer: &NodeId) -> Option<&mut Partner> {
        self.topics.get_mut(&shard)?.partners.iter_mut().find(|partner| partner.peer == *peer)
    }

    #[expect(clippy::too_many_arguments, reason = "an answer's parts")]
    pub(super) fn news_came(
        &mut self,
        peer: NodeId,
        shards: &[Shard],
        log: u64,
        marks: &[Mark],
        more: bool,
        news: Vec<News>,
        beats: &[Beat],
    ) {
        let before = self.faults().values().sum::<u64>();
        let told = news.len();
        let lost = self.read(shards, peer, news, beats);
        if self.faults().values().sum::<u64>() > before {
            return self.no_news(peer, shards);
        }
        for shard in shards {
            let Some(mark) = marks.iter().find(|mark| mark.shard == shard.number()) else {
                // It is not on the shard after all.
                self.no_news(peer, &[*shard]);
                continue;
            };
            let size = self.topics.get(shard).map_or(0, |topic| topic.table.size());
            let Some(partner) = self.partner_mut(*shard, &peer) else { continue };
            partner.log = log;
            partner.place = mark.place;
            // It knows of far more: what was read first was not all. What it says of that is believed once.
            if !more && !partner.is_whole && mark.size > size + size / 8 {
                partner.is_whole = true;
                partner.place = 0;
                partner.is_due = true;
            }
            // It showed signs of notices that it does not have. A few may have been replaced meanwhile.
            let is_baseless = partner.asked > BASELESS_MAX && told == 0;
            for _ in 0..partner.asked {
                partner.lost.pop_first();
            }
            partner.asked = 0;
            partner.lost.extend(lost.iter().copied());
            while partner.lost.len() > LOST_KEPT {
                partner.lost.pop_last();
            }
            partner.follow_ups += 1;
            let again = more || !partner.lost.is_empty();
            if again && partner.follow_ups < FOLLOW_UPS_MAX {
                partner.is_due = true;
            }
            if is_baseless {
                self.no_news(peer, &[*shard]);
            } else if !more && let Some(topic) = self.topics.get_mut(shard) {
                topic.is_filled = true;
                self.enter_lobby();
            }
        }
    }

    /// A partner gave no answer that is of use: another takes its place in the next round.
    pub(super) fn no_news(&mut self, peer: NodeId, shards: &[Shard]) {
        for shard in shards {
            if let Some(topic) = self.topics.get_mut(shard) {
                topic.partners.retain(|partner| partner.peer != peer);
            }
        }
    }
}
