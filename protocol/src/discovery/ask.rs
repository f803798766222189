//! What peers ask each other about offers, and the answers.
//! Invariant: an answer holds no more than was asked for, and both are bounded before they are read.

use super::notice::{Beat, ContentId, Link, SHARDS};
use spillway_ledger::{Document, SignedBytes};

/// The protocol name of these calls; the version is negotiated by it.
pub const OFFERS_PROTOCOL: &str = "/spillway/offers/2";
/// Shards that one question may name.
pub const MARKS_MAX: usize = 16;
/// Notices that one question may ask for by tag.
pub const LOST_MAX: usize = 64;
/// Offers that one question may ask for.
pub const CONTENTS_MAX: usize = 32;
/// Own offers of which news is told at once.
pub const TELL_MAX: usize = 4;
/// Longest question, in bytes.
pub const ASK_BYTES_MAX: usize = 1024;
/// Longest answer, in bytes.
pub const ANSWER_BYTES_MAX: usize = 64 << 10;
/// A place in a peer's log: wherever its newer half begins. Of that, signs of life are told and no notices.
pub const RECENT: u64 = u64::MAX;

/// How far somebody has read a peer's log of a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Mark {
    /// The shard's number.
    pub shard: u16,
    /// The place after the last change that was read; 0 for the beginning, or [`RECENT`].
    pub place: u64,
    /// How many notices of the shard whoever says this has.
    pub size: u32,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub enum Ask {
    /// What has changed?
    News {
        /// Which log the places are of; a peer that has started anew has another.
        log: u64,
        /// From where on, by shard.
        marks: Vec<Mark>,
        /// Notices of which only signs came, by tag.
        lost: Vec<u32>,
    },
    /// Which of these offers do you have?
    Offers(Vec<ContentId>),
    /// No question: news of the asking peer's own offers. Answered by nothing.
    Tell(Vec<News>),
}

impl Document for Ask {
    const DOMAIN: &'static str = "spillway/ask/1";
    const BYTES_MAX: usize = ASK_BYTES_MAX;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::News { marks, lost, .. } => {
                if marks.len() > MARKS_MAX || !marks.is_sorted_by(|a, b| a.shard < b.shard) {
                    return Err("marks: more than 16, or not strictly sorted by shard");
                }
                if marks.last().is_some_and(|mark| mark.shard > SHARDS) {
                    return Err("marks.shard: above 64");
                }
                if lost.len() > LOST_MAX {
                    return Err("lost: more than 64");
                }
                Ok(())
            }
            Self::Offers(contents) if contents.len() > CONTENTS_MAX => Err("contents: more than 32"),
            Self::Tell(news) if news.len() > TELL_MAX => Err("news: more than 4"),
            Self::Offers(_) | Self::Tell(_) => Ok(()),
        }
    }
}

/// A notice and the newest sign of life that is known of it.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct News {
    /// The notice.
    pub notice: SignedBytes,
    /// The sign's number; 0 if there was none yet.
    pub number: u8,
    /// The sign's link.
    pub link: Link,
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub enum Answer {
    /// What has changed.
    News {
        /// Which log the places are of.
        log: u64,
        /// How far this answer goes, for the shards that were asked about and that the peer knows.
        marks: Vec<Mark>,
        /// Whether there is more behind that.
        more: bool,
        /// Notices that are new since, and those that were lost.
        news: Vec<News>,
        /// Signs of life of notices that are older than that.
        beats: Vec<Beat>,
    },
    /// Those that are at hand, of the offers asked for.
    Offers(Vec<SignedBytes>),
}

impl Document for Answer {
    const DOMAIN: &'static str = "spillway/answer/1";
    const BYTES_MAX: usize = ANSWER_BYTES_MAX;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::News { marks, .. } if marks.len() > MARKS_MAX => Err("marks: more than 16"),
            Self::Offers(offers) if offers.len() > CONTENTS_MAX => Err("offers: more than 32"),
            Self::News { .. } | Self::Offers(_) => Ok(()),
        }
    }
}
