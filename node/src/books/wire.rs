//! What nodes say to each other about the ledger.
//! Invariant: nothing here is trusted; entries and blocks carry the signatures that count.

use spillway_ledger::block::VALIDATORS_MAX;
use spillway_ledger::{Certificate, CertifiedBlock, Document, Entry, Header, SignedBytes};

/// Longest reason for a refusal, in bytes.
const WHY_BYTES_MAX: usize = 512;
/// Blocks in one answer.
pub const BLOCKS_MAX: u32 = 256;

/// What a node asks.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub enum LedgerCall {
    /// Put this entry on the ledger. Answered once it is in a block or refused; asking again is harmless.
    Submit(SignedBytes),
    /// Give blocks from a height on, as many as fit an answer, at most `max`.
    Blocks {
        /// The first.
        from: u64,
        /// How many, at most [`BLOCKS_MAX`].
        max: u32,
    },
}

impl Document for LedgerCall {
    const DOMAIN: &'static str = "spillway/ledger-call/1";
    const BYTES_MAX: usize = 4096;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Submit(entry) if entry.document.len() > Entry::BYTES_MAX => Err("entry: longer than an entry can be"),
            Self::Blocks { max, .. } if *max > BLOCKS_MAX => Err("max: over 256"),
            Self::Submit(_) | Self::Blocks { .. } => Ok(()),
        }
    }
}

/// What helps against a refusal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub enum Remedy {
    /// Nothing.
    None,
    /// This nonce.
    Nonce(u64),
    /// An expiry counted from this height.
    Height(u64),
}

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub enum LedgerReply {
    /// The entry is in this block, now or since earlier.
    In {
        /// The block's height.
        height: u64,
    },
    /// The entry cannot be applied as it is.
    Refused {
        /// In words.
        why: String,
        /// What helps.
        remedy: Remedy,
    },
    /// Not now; try again.
    Busy,
    /// This node writes no blocks.
    NotAuthority,
    /// Encoded [`CertifiedBlock`]s, in order; empty if there are none yet.
    Blocks(Vec<Vec<u8>>),
}

impl LedgerReply {
    /// Bytes of blocks that fit one answer; a single block always does.
    pub(super) const BLOCKS_BYTES_MAX: usize = CertifiedBlock::BYTES_MAX;

    /// A refusal, its reason cut to what fits.
    pub(super) fn refused(why: &dyn std::fmt::Display, remedy: Remedy) -> Self {
        let mut why = why.to_string();
        let mut end = why.len().min(WHY_BYTES_MAX);
        while !why.is_char_boundary(end) {
            end -= 1;
        }
        why.truncate(end);
        Self::Refused { why, remedy }
    }
}

impl Document for LedgerReply {
    const DOMAIN: &'static str = "spillway/ledger-reply/1";
    // The blocks, a length for each, the list's own length and the variant.
    const BYTES_MAX: usize = Self::BLOCKS_BYTES_MAX + 8 * BLOCKS_MAX as usize + 16;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Refused { why, .. } if why.len() > WHY_BYTES_MAX => Err("why: over 512 bytes"),
            Self::Blocks(blocks) if blocks.len() > BLOCKS_MAX as usize => Err("blocks: more than 256"),
            Self::Refused { .. } | Self::Blocks(_) | Self::In { .. } | Self::Busy | Self::NotAuthority => Ok(()),
        }
    }
}

const _: () = assert!(LedgerReply::BYTES_MAX <= crate::network::CallKind::Ledger.response_bytes_max());
const _: () = assert!(LedgerCall::BYTES_MAX <= crate::network::CallKind::Ledger.request_bytes_max());

/// Gossiped when a block is final: the proof that it is, without the entries.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Notice {
    /// The block's summary.
    pub header: Header,
    /// What makes it final.
    pub certificate: Certificate,
}

impl Document for Notice {
    const DOMAIN: &'static str = "spillway/block-notice/1";
    const BYTES_MAX: usize = Header::BYTES_MAX + 32 + 4 + 8 + VALIDATORS_MAX * 96;
}
