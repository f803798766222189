//! How offers spread: notices by shard, signs of life, and offers that are asked for. `docs/discovery.md`.
//! Invariants: an offer is believed for its signature and never for who passed it on; whatever peers send, every map and
//! queue here is bounded, and so is what is asked, verified and answered for each of them.
//!
//! A provider gossips a small signed [`Notice`] once, on the topics of its models' shards. From then on it shows a sign of
//! life each period, 17 bytes, which nobody gossips: peers of a shard read each other's logs of what changed. The period
//! grows with the shard, so that a peer spends no more on a large one than on a small one. Who uses a model asks for the
//! offers behind some of its notices, drawn fairly; a provider that is not among them costs its notice and signs only.

mod ask;
mod hear;
mod issue;
mod machine;
mod notice;
mod pull;
mod round;
mod table;

pub use ask::{
    ANSWER_BYTES_MAX, ASK_BYTES_MAX, Answer, Ask, CONTENTS_MAX, LOST_MAX, MARKS_MAX, Mark, News, OFFERS_PROTOCOL,
    RECENT, TELL_MAX,
};
pub use machine::{Discovery, Opener, Settings, Verify};
pub(crate) use notice::rank;
pub use notice::{
    Beat, Chain, ContentId, FAREWELL, LOBBY_NOTICES, Link, ModelTag, NOTICE_MODELS_MAX, Notice, SHARDS, Shard,
};

use crate::offer::Offer;
use spillway_ledger::{NodeId, Signed};
use std::sync::Arc;
use std::time::Duration;

/// The shortest period between two signs of life of an offer.
pub const PERIOD_MIN: Duration = Duration::from_secs(60);
/// The longest.
pub const PERIOD_MAX: Duration = Duration::from_secs(3600);
/// How many periods an offer lives on its last sign.
pub const LIVES: u8 = 3;
/// How long an offer may live on its last sign of life: three of the longest periods.
pub const LIFE_MAX: Duration = Duration::from_secs(3 * 3600);
/// How far another's clock may run ahead of ours.
pub const AHEAD_MAX: Duration = crate::offer::OFFER_AHEAD_MAX;
/// Longest notice, signature included, in bytes.
pub const NOTICE_BYTES_MAX: usize = 200;
/// Notices of one node in one shard.
pub const NODE_NOTICES_MAX: usize = 8;

/// What a peer spends on the signs of life of one shard, in bytes a minute, both ways.
const SIGNS_BYTES_PER_MINUTE: u64 = 4_000;
/// By how much the lobby's period is longer than a shard's.
const LOBBY_STRETCH: usize = 8;
/// What one sign of life costs a peer of its shard, in bytes, both ways: it comes twice and goes twice.
const SIGN_BYTES: u64 = 70;

/// The period for a shard in which so many offers are alive.
#[must_use]
pub fn period(live: usize) -> Duration {
    let seconds = (live as u64).saturating_mul(SIGN_BYTES * 60) / SIGNS_BYTES_PER_MINUTE;
    Duration::from_secs(seconds).clamp(PERIOD_MIN, PERIOD_MAX)
}

/// The period for a shard of that kind: each node is in the lobby, whatever it uses, so that less is spent on it.
pub(crate) fn period_on(shard: Shard, live: usize) -> Duration {
    period(if shard == Shard::LOBBY { live.saturating_mul(LOBBY_STRETCH) } else { live })
}

/// A question under way; numbered by the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AskId(pub u64);

/// A gossiped message, or a peer's question, that waits for a word of the machine; numbered by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Token(pub u64);

/// What becomes of a gossiped message.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Judgement {
    /// It is passed on.
    Accept,
    /// It is not passed on, and nobody is at fault.
    Ignore,
    /// It is not passed on, and held against whoever sent it.
    Reject,
}

/// How a peer broke the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A message that cannot be read, or whose signature does not hold.
    Malformed,
    /// A notice of another market, or on a topic that is not its own.
    Misplaced,
    /// A sign of life that is not of its chain.
    Forged,
    /// An answer that nobody asked for.
    Unasked,
    /// It announced something else than it offers.
    Mislabelled,
}

/// What a driver tells the machine.
#[derive(Clone, Debug)]
pub enum Event {
    /// An own offer, new or issued anew; one that is not issued anew before it expires is taken back.
    Publish(Arc<Signed<Offer>>),
    /// All own offers are taken back.
    Withdraw,
    /// The full list of the models that this node uses now; the first 64 count.
    Uses(Vec<String>),
    /// The full list of peers that this node has good experience with; the first 64 count.
    Anchors(Vec<NodeId>),
    /// A connected peer is on a topic.
    Joined {
        /// Who.
        peer: NodeId,
        /// Which.
        shard: Shard,
    },
    /// A connected peer is no longer on a topic.
    Parted {
        /// Who.
        peer: NodeId,
        /// Which.
        shard: Shard,
    },
    /// No connection to a peer is left.
    PeerLost(NodeId),
    /// Something was gossiped. Answered by one [`Effect::Judge`].
    Heard {
        /// The driver's number.
        message: Token,
        /// On which topic.
        shard: Shard,
        /// Who passed it on.
        from: NodeId,
        /// The message.
        bytes: Vec<u8>,
    },
    /// A peer asks. Answered by one [`Effect::Answer`].
    Asked {
        /// The driver's number.
        call: Token,
        /// Who.
        from: NodeId,
        /// Its question.
        bytes: Vec<u8>,
    },
    /// A question's answer, or `None` if there was none.
    Answered {
        /// The machine's number.
        ask: AskId,
        /// The answer.
        bytes: Option<Vec<u8>>,
    },
    /// This node stops: it takes its offers back.
    Leave,
    /// Time has come; see [`Discovery::deadline`].
    Tick,
}

/// What the machine asks its driver to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// Be on a topic.
    Join(Shard),
    /// Be no longer on a topic.
    Part(Shard),
    /// Too few peers of a shard are connected: look for some.
    Seek(Shard),
    /// Gossip on a topic.
    Gossip {
        /// Which.
        shard: Shard,
        /// A signed notice.
        bytes: Vec<u8>,
    },
    /// Decide on a gossiped message.
    Judge {
        /// The driver's number.
        message: Token,
        /// How.
        judgement: Judgement,
    },
    /// Ask a peer, connecting to it if need be. Answered by one [`Event::Answered`].
    Ask {
        /// Its number.
        ask: AskId,
        /// Whom.
        peer: NodeId,
        /// The question.
        bytes: Vec<u8>,
    },
    /// Answer a peer.
    Answer {
        /// The driver's number.
        call: Token,
        /// The answer; empty if the peer asked against the rules or too much.
        bytes: Vec<u8>,
    },
    /// An offer is good until then (Unix milliseconds), as [`Directory::hold`](crate::Directory::hold) takes it.
    Hold {
        /// The offer.
        offer: Arc<Signed<Offer>>,
        /// When it lapses; 0 if it is taken back.
        until_ms: u64,
    },
    /// A peer broke the rules; the machine itself keeps away from who does so often.
    Blame {
        /// Who.
        peer: NodeId,
        /// How.
        fault: Fault,
    },
}
