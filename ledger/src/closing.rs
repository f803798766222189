//! The end of a session that both sides agree on.
//! Invariant: one side's signature is the entry's, the other's is here, over the same final total.

use wincode::{SchemaRead, SchemaWrite};

use crate::codec::Document;
use crate::keys::Digest;
use crate::money::{Credits, Usage};
use crate::voucher::{NetworkId, SessionId};

/// What the other side of a session agrees to end it with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Closing {
    /// The network that the session was opened on.
    pub network: NetworkId,
    /// The session.
    pub session: SessionId,
    /// What the provider's work comes to since the session began; the rest of the deposit goes back.
    pub total: Credits,
    /// The work done since the last settlement.
    pub usage: Usage,
    /// The Merkle root of the receipts for that work.
    pub receipts: Digest,
}

impl Document for Closing {
    const DOMAIN: &'static str = "spillway/closing/1";
    const BYTES_MAX: usize = 32 + 32 + 8 + 24 + 32;
}
