//! Offers: what a provider publishes about itself, signed, and quotes: what it binds itself to for one consumer.
//! Invariant: an [`Offer`] in a directory was signed by the node that it names.

use crate::prefix::PREFIX_UNITS;
use crate::router::Coordinate;
use crate::time::Now;
use spillway_ledger::{Account, Digest, Document, NetworkId, NodeId, Price, encode};
use std::time::Duration;

/// How long an offer is good for: three rounds of re-issue.
pub const OFFER_LIFETIME: Duration = Duration::from_secs(180);
/// How often an offer is issued anew.
pub const OFFER_PERIOD: Duration = Duration::from_secs(60);
/// How far an offer's clock may run ahead of ours.
pub const OFFER_AHEAD_MAX: Duration = Duration::from_secs(30);
/// How long a quote binds the provider.
pub const QUOTE_LIFETIME: Duration = Duration::from_secs(10);
/// The highest price per million units that is taken for meant: 10,000 credits.
pub const PRICE_MAX_MICRO: u64 = 10_000_000_000;
/// The meter of this version: one work unit is one UTF-8 byte of delivered text. `docs/payments.md`, "What is counted".
pub const METER: &str = "bytes";

/// One model that a provider serves.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct ModelOffer {
    /// Canonical id, as in requests.
    pub id: String,
    /// blake3 of the weights; zero where the backend does not tell.
    pub weights: Digest,
    /// Quantisation, such as `Q8_0`; empty where unknown.
    pub quantization: String,
    /// The engine that runs it.
    pub engine: String,
    /// Longest context, in tokens; 0 where unknown.
    pub context_max: u32,
    /// The kinds of request, by [`Kind::as_str`](crate::Kind::as_str), strictly sorted.
    pub kinds: Vec<String>,
    /// How work is counted: [`METER`].
    pub meter: String,
    /// Price per million units.
    pub price: Price,
    /// Requests it serves at once.
    pub slots: u32,
    /// Whether it promises to keep nothing of what it is sent. A promise: nothing on this side can check it.
    pub keeps_nothing: bool,
}

/// A provider's catalogue. At most 1 KiB encoded; a provider with many models publishes several groups.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Offer {
    /// The market it belongs to.
    pub network: NetworkId,
    /// Who serves; also the signer.
    pub node: NodeId,
    /// Who is paid.
    pub account: Account,
    /// Grows with each issue; an older one is dropped.
    pub sequence: u64,
    /// When it was issued, Unix milliseconds.
    pub issued_ms: u64,
    /// When it lapses, Unix milliseconds.
    pub expires_ms: u64,
    /// Where it is, for people and for region rules.
    pub region: String,
    /// Where it is in the network's space, to estimate round trips to it before they are measured.
    pub coordinate: Coordinate,
    /// Where it listens, as multiaddresses, most direct first.
    pub addresses: Vec<String>,
    /// What it serves, at most 8, strictly sorted by id.
    pub models: Vec<ModelOffer>,
}

impl Offer {
    /// Names what it says, whenever it was issued: the digest of everything but its number and its two times.
    #[must_use]
    pub fn content(&self) -> Digest {
        let timeless = Self { sequence: 0, issued_ms: 0, expires_ms: 0, ..self.clone() };
        Digest::of("spillway/offer-content/1", &[&encode(&timeless)])
    }

    /// Whether `other` says the same, whenever it was issued.
    #[must_use]
    pub fn says(&self, other: &Self) -> bool {
        self.network == other.network
            && self.node == other.node
            && self.account == other.account
            && self.region == other.region
            && self.coordinate == other.coordinate
            && self.addresses == other.addresses
            && self.models == other.models
    }
}

impl Document for Offer {
    const DOMAIN: &'static str = "spillway/offer/2";
    const BYTES_MAX: usize = 1024;

    fn check(&self) -> Result<(), &'static str> {
        if self.models.len() > 8 {
            return Err("models: more than 8");
        }
        if self.addresses.len() > 8 || self.addresses.iter().any(|address| address.len() > 128) {
            return Err("addresses: more than 8, or one over 128 bytes");
        }
        if self.region.len() > 32 {
            return Err("region: over 32 bytes");
        }
        if !self.models.is_sorted_by(|a, b| a.id < b.id) {
            return Err("models: not strictly sorted by id");
        }
        for model in &self.models {
            if model.id.is_empty() || model.id.len() > crate::job::MODEL_BYTES_MAX {
                return Err("models.id: empty or over 256 bytes");
            }
            if !model.kinds.is_sorted_by(|a, b| a < b) {
                return Err("models.kinds: not strictly sorted");
            }
        }
        Ok(())
    }
}

/// A binding price for one consumer, good for [`QUOTE_LIFETIME`].
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Quote {
    /// The market it belongs to.
    pub network: NetworkId,
    /// Who is bound; also the signer.
    pub provider: NodeId,
    /// Who is paid.
    pub account: Account,
    /// Who may use it.
    pub consumer: NodeId,
    /// The model.
    pub model: String,
    /// Price per million units.
    pub price: Price,
    /// How many output units must be paid ahead.
    pub window: u64,
    /// So many input units are billed at the cached price if the job's body begins with the prefix: whole prefix blocks.
    pub cached: u64,
    /// The name of the prefix of `cached` units, one that the probe named; 0 if nothing is cached.
    pub prefix: u64,
    /// When it lapses, Unix milliseconds.
    pub valid_until_ms: u64,
}

impl Quote {
    /// Whether it still binds.
    #[must_use]
    pub const fn is_valid(&self, now: Now) -> bool {
        now.ms() <= self.valid_until_ms
    }

    /// The input units that are billed at the cached price for a body with these prefix names: all that is quoted, or none.
    /// Both sides ask this of the body itself.
    #[must_use]
    pub fn cached_of(&self, names: &[u64]) -> u64 {
        let blocks = usize::try_from(self.cached / PREFIX_UNITS as u64).unwrap_or(usize::MAX);
        let named = blocks.checked_sub(1).and_then(|last| names.get(last)) == Some(&self.prefix);
        if named && self.cached.is_multiple_of(PREFIX_UNITS as u64) { self.cached } else { 0 }
    }
}

impl Document for Quote {
    const DOMAIN: &'static str = "spillway/quote/2";
    const BYTES_MAX: usize = 1024;

    fn check(&self) -> Result<(), &'static str> {
        if self.model.len() > crate::job::MODEL_BYTES_MAX {
            return Err("model: over 256 bytes");
        }
        Ok(())
    }
}
