//! What validators send one another beside votes: blocks in pieces, and entries that wait.
//! Invariant: each message is signed by a validator and names its network, so a stranger can take up neither memory nor
//! time; and each is small, so a vote never waits long behind it.

use arc_malachitebft_core_types as types;
use spillway_ledger::signed::ENVELOPE_BYTES;
use spillway_ledger::{Block, Digest, Document, Entry, NetworkId, SecretKey, Signed, SignedBytes, encode};
use wincode::{SchemaRead, SchemaWrite};

use crate::context::Ledger;

/// How much of a block one message carries, in bytes.
pub const PIECE_BYTES: usize = 128 << 10;
/// The most entries that one message shares.
pub const SHARED_ENTRIES_MAX: usize = 256;
/// The most bytes of entries that one message shares, with what surrounds them.
pub const SHARED_BYTES_MAX: usize = 256 << 10;

// An entry of the largest size always fits a message.
const _: () = assert!(ENVELOPE_BYTES + Entry::BYTES_MAX + 64 <= SHARED_BYTES_MAX);

/// Announces a block in pieces. Signed by whose turn it is to propose. It is no [`spillway_ledger::Proposal`]: after a
/// crash the same validator may announce another block for the same round, and only proposals, which are logged before
/// they are sent, must never differ.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Opening {
    /// The network.
    pub network: NetworkId,
    /// The height that is decided.
    pub height: u64,
    /// The attempt at that height, from 0.
    pub round: u32,
    /// The earlier round in which this block had enough prevotes, if one did.
    pub valid_round: Option<u32>,
    /// The block's digest.
    pub block: Digest,
    /// The length of the whole encoded block, in bytes.
    pub bytes: u32,
}

impl Document for Opening {
    const DOMAIN: &'static str = "spillway/opening/1";
    const BYTES_MAX: usize = 32 + 8 + 4 + 5 + 32 + 4;

    fn check(&self) -> Result<(), &'static str> {
        if !(1..=Block::BYTES_MAX).contains(&(self.bytes as usize)) {
            return Err("bytes must be 1 to the largest block's");
        }
        Ok(())
    }
}

impl Opening {
    /// How many pieces the block comes in.
    pub fn pieces(&self) -> usize {
        (self.bytes as usize).div_ceil(PIECE_BYTES)
    }

    /// The length of piece `index`, in bytes; `None` if there is none.
    pub fn piece_bytes(&self, index: usize) -> Option<usize> {
        let left = (self.bytes as usize).checked_sub(index.checked_mul(PIECE_BYTES)?)?;
        (left > 0).then_some(left.min(PIECE_BYTES))
    }
}

/// A part of a block, which says itself what it is part of: pieces may come in any order.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Piece {
    /// The signed [`Opening`].
    pub opening: SignedBytes,
    /// Which piece, from 0.
    pub index: u32,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// Entries that wait for a block, told to the other validators so that whose turn it is has them.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Shared {
    /// The network.
    pub network: NetworkId,
    /// The signed entries; nothing in them is checked yet.
    pub entries: Vec<SignedBytes>,
}

impl Document for Shared {
    const DOMAIN: &'static str = "spillway/shared-entries/1";
    const BYTES_MAX: usize = SHARED_BYTES_MAX;

    fn check(&self) -> Result<(), &'static str> {
        if self.entries.len() > SHARED_ENTRIES_MAX {
            return Err("entries must be at most 256");
        }
        Ok(())
    }
}

/// One message on the engine's channel for proposal parts.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Part {
    /// Part of a proposed block.
    Piece(Piece),
    /// A signed [`Shared`].
    Shared(SignedBytes),
}

impl Document for Part {
    const DOMAIN: &'static str = "spillway/part/1";
    const BYTES_MAX: usize = 64 + 2 * ENVELOPE_BYTES + SHARED_BYTES_MAX;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Part::Piece(piece) if piece.opening.document.len() > Opening::BYTES_MAX => {
                Err("opening is longer than an opening can be")
            }
            Part::Piece(piece) if !(1..=PIECE_BYTES).contains(&piece.bytes.len()) => {
                Err("bytes must be 1 to 128 KiB of a block")
            }
            Part::Piece(_) | Part::Shared(_) => Ok(()),
        }
    }
}

// The engine asks in order to put streams together; each of our messages stands for itself.
impl types::ProposalPart<Ledger> for Part {
    fn is_first(&self) -> bool {
        true
    }

    fn is_last(&self) -> bool {
        true
    }
}

/// The pieces of an encoded block under one signed opening.
pub(crate) fn pieces(opening: &SignedBytes, bytes: &[u8]) -> Vec<Part> {
    let piece = |(index, part): (usize, &[u8])| {
        let index = u32::try_from(index).expect("a block has a handful of pieces");
        Part::Piece(Piece { opening: opening.clone(), index, bytes: part.to_vec() })
    };
    bytes.chunks(PIECE_BYTES).enumerate().map(piece).collect()
}

/// `entries` in as few messages as the limits allow.
pub(crate) fn shared(network: NetworkId, entries: &[SignedBytes], key: &SecretKey) -> Vec<Part> {
    let mut messages = Vec::new();
    let mut rest = entries;
    while !rest.is_empty() {
        let mut bytes = 64;
        let fits = |entry: &&SignedBytes| {
            bytes += entry.encoded_len();
            bytes <= SHARED_BYTES_MAX
        };
        // One entry always fits; taking at least one also ends the loop for one that no reader would accept.
        let count = rest.iter().take(SHARED_ENTRIES_MAX).take_while(fits).count().max(1);
        let (now, later) = rest.split_at(count);
        if let Ok(signed) = Signed::try_sign(Shared { network, entries: now.to_vec() }, key) {
            messages.push(Part::Shared(signed.to_wire()));
        }
        rest = later;
    }
    messages
}

/// The encoded block and its signed opening.
pub(crate) fn announce(
    network: NetworkId,
    round: u32,
    valid_round: Option<u32>,
    block: &Block,
    key: &SecretKey,
) -> (Signed<Opening>, Vec<u8>) {
    let bytes = encode(block);
    let opening = Opening {
        network,
        height: block.header.height,
        round,
        valid_round,
        block: block.header.digest(),
        bytes: u32::try_from(bytes.len()).expect("a block is at most a few MiB"),
    };
    (Signed::sign(opening, key), bytes)
}
