//! Promises to pay, given off the ledger while a job runs.
//! Invariant: a voucher's amounts are cumulative over its session, so the highest one wins and signing several is
//! harmless.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::codec::Document;
use crate::keys::{Account, Digest, KeyError};
use crate::money::Credits;

/// Gives a digest newtype its text form.
macro_rules! digest_text {
    ($name:ident) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = KeyError;

            fn from_str(text: &str) -> Result<Self, KeyError> {
                text.parse().map($name)
            }
        }
    };
}
pub(crate) use digest_text;

/// Names a network: the digest of its genesis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite)]
#[serde(transparent)]
pub struct NetworkId(pub Digest);

digest_text!(NetworkId);

/// Names a payment session between one consumer and one provider.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite)]
#[serde(transparent)]
pub struct SessionId(pub Digest);

digest_text!(SessionId);

impl SessionId {
    /// The session that `consumer`'s `Open` entry with account nonce `nonce` opens.
    pub fn derive(network: &NetworkId, consumer: &Account, nonce: u64) -> SessionId {
        let parts: [&[u8]; 3] = [network.0.as_bytes(), consumer.0.as_bytes(), &nonce.to_le_bytes()];
        SessionId(Digest::of("spillway/session/1", &parts))
    }
}

/// A promise of `total`, signed by the session's voucher key.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Voucher {
    /// The network that the session was opened on.
    pub network: NetworkId,
    /// The session that pays.
    pub session: SessionId,
    /// Counts up by one with each voucher of the session.
    pub sequence: u64,
    /// The whole amount promised since the session began.
    pub total: Credits,
    /// Units read since the session began, cached ones included.
    pub input: u64,
    /// Units delivered since the session began.
    pub output: u64,
}

impl Document for Voucher {
    const DOMAIN: &'static str = "spillway/voucher/1";
    const BYTES_MAX: usize = 32 + 32 + 4 * 8;
}
