//! The table of offers that this node knows, so that no lookup lies on a job's path.
//! Invariant: every entry was signed by its provider, is of this market, not expired, and the newest seen.

use crate::job::{Job, Kind};
use crate::offer::{METER, OFFER_AHEAD_MAX, OFFER_LIFETIME, Offer, PRICE_MAX_MICRO};
use crate::time::Now;
use spillway_ledger::{Account, Credits, NetworkId, NodeId, Price, Signed};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most (model, provider) pairs held; a new one is dropped when full.
pub const ENTRIES_MAX: usize = 16_384;

/// Why an offer is dropped, in the order of the checks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
pub enum OfferError {
    /// Of another market.
    #[error("network: the offer is of another market")]
    WrongNetwork,
    /// Not signed by the node that it names.
    #[error("node: signed by somebody else")]
    WrongSigner,
    /// Its clock is ahead by more than [`OFFER_AHEAD_MAX`].
    #[error("issued_ms: lies in the future")]
    FromFuture,
    /// Its life is over, or longer than an offer may live.
    #[error("expires_ms: over, or further off than an offer may live")]
    Expired,
    /// A price beyond reason.
    #[error("models.price: out of bounds")]
    PriceOutOfBounds,
    /// A newer one of the same provider is known.
    #[error("sequence: a newer offer is known")]
    Old,
    /// The table is full.
    #[error("the table of offers is full")]
    Full,
}

/// One provider of one model.
#[derive(Clone, Debug)]
pub struct Listing {
    /// The offer that it is part of.
    pub offer: Arc<Signed<Offer>>,
    /// Which of the offer's models it is.
    pub index: usize,
}

impl Listing {
    /// Who serves.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.offer.value().node
    }

    /// Who is paid.
    #[must_use]
    pub fn account(&self) -> Account {
        self.offer.value().account
    }

    /// The model.
    #[must_use]
    pub fn model(&self) -> &crate::offer::ModelOffer {
        &self.offer.value().models[self.index]
    }
}

/// Offers by model and provider.
#[derive(Debug)]
pub struct Directory {
    network: NetworkId,
    listings: BTreeMap<String, BTreeMap<NodeId, Listing>>,
    len: usize,
    dropped: BTreeMap<OfferError, u64>,
}

impl Directory {
    /// An empty table for one market.
    #[must_use]
    pub const fn new(network: NetworkId) -> Self {
        Self { network, listings: BTreeMap::new(), len: 0, dropped: BTreeMap::new() }
    }

    /// Takes an offer in, or drops and counts it.
    ///
    /// # Errors
    /// Why it was dropped. The table is then unchanged.
    pub fn insert(&mut self, now: Now, offer: Signed<Offer>) -> Result<(), OfferError> {
        let checked = self.check(now, &offer);
        if let Err(error) = checked {
            *self.dropped.entry(error).or_default() += 1;
            return Err(error);
        }
        // Every check has passed: nothing below can fail.
        let offer = Arc::new(offer);
        for (index, model) in offer.value().models.iter().enumerate() {
            let listing = Listing { offer: Arc::clone(&offer), index };
            if self.listings.entry(model.id.clone()).or_default().insert(offer.value().node, listing).is_none() {
                self.len += 1;
            }
        }
        Ok(())
    }

    fn check(&self, now: Now, offer: &Signed<Offer>) -> Result<(), OfferError> {
        let value = offer.value();
        if value.network != self.network {
            return Err(OfferError::WrongNetwork);
        }
        if offer.signer() != value.node.0 {
            return Err(OfferError::WrongSigner);
        }
        if value.issued_ms > now.after(OFFER_AHEAD_MAX).ms() {
            return Err(OfferError::FromFuture);
        }
        let life = u64::try_from(OFFER_LIFETIME.as_millis()).expect("minutes");
        if value.expires_ms <= now.ms() || value.expires_ms > value.issued_ms.saturating_add(life) {
            return Err(OfferError::Expired);
        }
        let top = Credits::new(PRICE_MAX_MICRO);
        let cap = Price { input: top, cached: top, output: top };
        if value.models.iter().any(|model| !model.price.within(&cap)) {
            return Err(OfferError::PriceOutOfBounds);
        }
        let known = |id: &String| self.listings.get(id).and_then(|nodes| nodes.get(&value.node));
        if value
            .models
            .iter()
            .any(|model| known(&model.id).is_some_and(|listing| listing.offer.value().sequence >= value.sequence))
        {
            return Err(OfferError::Old);
        }
        let new = value.models.iter().filter(|model| known(&model.id).is_none()).count();
        if self.len + new > ENTRIES_MAX {
            return Err(OfferError::Full);
        }
        Ok(())
    }

    /// Providers that could serve `job` at its price limit, in the order of their ids.
    pub fn candidates<'a>(&'a self, now: Now, job: &'a Job) -> impl Iterator<Item = &'a Listing> {
        self.serving(now, &job.model, job.kind).filter(|listing| listing.model().price.within(&job.price_max))
    }

    /// Providers of a model and kind at any price.
    pub fn serving<'a>(&'a self, now: Now, model: &str, kind: Kind) -> impl Iterator<Item = &'a Listing> {
        let nodes = self.listings.get(model).into_iter().flat_map(|nodes| nodes.values());
        nodes.filter(move |listing| is_good(now, listing, kind))
    }

    /// One provider of a model and kind.
    #[must_use]
    pub fn get(&self, now: Now, model: &str, kind: Kind, node: &NodeId) -> Option<&Listing> {
        let listing = self.listings.get(model)?.get(node)?;
        is_good(now, listing, kind).then_some(listing)
    }

    /// Up to `count` providers of a model and kind, drawn at random.
    pub fn sample(&self, now: Now, model: &str, kind: Kind, count: usize, rng: &mut impl rand::Rng) -> Vec<Listing> {
        let mut all: Vec<&Listing> = self.serving(now, model, kind).collect();
        let mut drawn = Vec::with_capacity(count.min(all.len()));
        while drawn.len() < count && !all.is_empty() {
            let index = (u128::from(rng.next_u64()) * all.len() as u128) >> 64;
            drawn.push(all.swap_remove(usize::try_from(index).expect("below a length")).clone());
        }
        drawn
    }

    /// Every listing that is still good, by model.
    pub fn all(&self, now: Now) -> impl Iterator<Item = &Listing> {
        self.listings
            .values()
            .flat_map(|nodes| nodes.values())
            .filter(move |listing| listing.offer.value().expires_ms > now.ms())
    }

    /// Drops what has expired.
    pub fn sweep(&mut self, now: Now) {
        for nodes in self.listings.values_mut() {
            nodes.retain(|_, listing| listing.offer.value().expires_ms > now.ms());
        }
        self.listings.retain(|_, nodes| !nodes.is_empty());
        self.len = self.listings.values().map(BTreeMap::len).sum();
    }

    /// How many offers were dropped, by reason.
    #[must_use]
    pub const fn dropped(&self) -> &BTreeMap<OfferError, u64> {
        &self.dropped
    }
}

/// Whether a listing has not expired, counts work as this node does, and is for that kind.
fn is_good(now: Now, listing: &Listing, kind: Kind) -> bool {
    listing.offer.value().expires_ms > now.ms()
        && listing.model().meter == METER
        && listing.model().kinds.iter().any(|name| name == kind.as_str())
}
