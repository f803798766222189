//! Credits on their way out, to be paid in cash.
//! Invariant: what a payout locks is neither spent nor gone until the issuer burns it or gives it back.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use wincode::{SchemaRead, SchemaWrite};

use crate::codec::Document;
use crate::keys::{Account, Digest, KeyError};
use crate::money::Credits;
use crate::voucher::{NetworkId, digest_text};

/// Names a request to be paid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, SchemaRead, SchemaWrite)]
#[serde(transparent)]
pub struct PayoutId(pub Digest);

digest_text!(PayoutId);

impl PayoutId {
    /// The payout that `account`'s `PayoutRequest` entry with account nonce `nonce` asks for.
    pub fn derive(network: &NetworkId, account: &Account, nonce: u64) -> PayoutId {
        let parts: [&[u8]; 3] = [network.0.as_bytes(), account.0.as_bytes(), &nonce.to_le_bytes()];
        PayoutId(Digest::of("spillway/payout/1", &parts))
    }
}

/// A payout that waits for the issuer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct PayoutState {
    /// Who asked, and gets it back if it is rejected.
    pub account: Account,
    /// What is locked.
    pub amount: Credits,
    /// The digest of whom to pay in the outer world: bank details do not lie on the ledger.
    pub payee: Digest,
    /// The height of the block that locked it.
    pub height: u64,
    /// The time of that block, in Unix milliseconds.
    pub time_ms: u64,
}

impl Document for PayoutState {
    const DOMAIN: &'static str = "spillway/state/payout/1";
    const BYTES_MAX: usize = 32 + 8 + 32 + 8 + 8;
}

/// Why the issuer gives a payout back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, SchemaRead, SchemaWrite)]
#[serde(rename_all = "snake_case")]
pub enum RejectReason {
    /// Nobody showed details with the payee's digest.
    UnknownPayee,
    /// The bank or processor said no.
    Returned,
    /// The law, or the issuer's rules, forbid it.
    Compliance,
    /// Asked for by the account itself.
    Withdrawn,
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RejectReason::UnknownPayee => "unknown_payee",
            RejectReason::Returned => "returned",
            RejectReason::Compliance => "compliance",
            RejectReason::Withdrawn => "withdrawn",
        })
    }
}
