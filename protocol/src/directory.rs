//! The table of offers that this node knows, so that no lookup lies on a job's path.
//! Invariant: every entry was signed by its provider, is of this market, not expired, and the newest seen; the table is
//! bounded by provider, by model and in all, and its most crowded group gives way first.

use crate::crowd::{Crowd, Group, Groups};
use crate::discovery::{LIFE_MAX, rank};
use crate::job::{Job, Kind};
use crate::offer::{METER, OFFER_AHEAD_MAX, OFFER_LIFETIME, Offer, PRICE_MAX_MICRO};
use crate::router::Coordinate;
use crate::time::Now;
use rand::{Rng, RngExt as _};
use spillway_ledger::{Account, Credits, NetworkId, NodeId, Price, Signed};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// How many entries a table has at the most; what is more displaces the most crowded, or is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// (model, provider) pairs.
    pub in_all: usize,
    /// Providers of one model.
    pub per_model: usize,
    /// Models of one provider.
    pub per_provider: usize,
}

impl Bounds {
    /// The shipped ones: about 50 MB of offers if all are of the greatest size.
    pub const SHIPPED: Self = Self { in_all: 32_768, per_model: 16_384, per_provider: 64 };
}

/// Most providers that are never evicted; one more displaces the one that was named first.
pub const ANCHORS_MAX: usize = 256;

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
    /// The provider has as many models as it may, or the table is full and none of its groups is more
    /// crowded than the provider's own.
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
    /// When it lapses, Unix milliseconds: as the offer says, or later if its issuer has prolonged it since.
    pub until_ms: u64,
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

    fn is_live(&self, now: Now) -> bool {
        self.until_ms > now.ms()
    }

    /// Whether it is for that kind, and counts work as this node does.
    #[must_use]
    pub fn serves(&self, kind: Kind) -> bool {
        self.model().meter == METER && self.model().kinds.iter().any(|name| name == kind.as_str())
    }
}

/// Prices of output and input, rank, and whose.
type Priced = (Credits, Credits, u32, NodeId);

/// The providers of one model: in a row for drawing from, and by id.
#[derive(Debug, Default)]
struct Providers {
    row: Vec<Listing>,
    at: BTreeMap<NodeId, usize>,
    /// By the price of output, then of input, the cheapest first; equals by their rank here.
    by_price: BTreeSet<Priced>,
    crowd: Crowd,
}

/// What is known of a provider as a whole.
#[derive(Debug)]
struct Provider {
    groups: Groups,
    arrival: u64,
    models: BTreeSet<Arc<str>>,
}

/// Offers by model and provider.
#[derive(Debug)]
pub struct Directory {
    network: NetworkId,
    bounds: Bounds,
    secret: [u8; 32],
    models: BTreeMap<Arc<str>, Providers>,
    providers: BTreeMap<NodeId, Provider>,
    crowd: Crowd,
    anchors: BTreeSet<NodeId>,
    anchors_in_order: VecDeque<NodeId>,
    arrivals: u64,
    len: usize,
    dropped: BTreeMap<OfferError, u64>,
}

impl Directory {
    /// An empty table for one market.
    #[must_use]
    pub const fn new(network: NetworkId) -> Self {
        Self::bounded(network, Bounds::SHIPPED)
    }

    /// As [`Directory::new`], with other bounds.
    #[must_use]
    pub const fn bounded(network: NetworkId, bounds: Bounds) -> Self {
        Self {
            network,
            bounds,
            secret: [0; 32],
            models: BTreeMap::new(),
            providers: BTreeMap::new(),
            crowd: Crowd { groups: BTreeMap::new(), by_size: BTreeSet::new() },
            anchors: BTreeSet::new(),
            anchors_in_order: VecDeque::new(),
            arrivals: 0,
            len: 0,
            dropped: BTreeMap::new(),
        }
    }

    /// The same table, empty yet, with a secret that its ranks follow from.
    #[must_use]
    pub fn ranked_by(self, secret: [u8; 32]) -> Self {
        assert!(self.is_empty(), "ranks are kept with what is in the table");
        Self { secret, ..self }
    }

    /// The order of those who ask the same. Only this node knows it, so that nobody can make a name that comes first.
    #[must_use]
    pub fn rank(&self, node: &NodeId) -> u32 {
        rank(&self.secret, node)
    }

    /// Takes an offer in, or drops and counts it.
    ///
    /// # Errors
    /// Why it was dropped. The table is then unchanged.
    pub fn insert(&mut self, now: Now, offer: Signed<Offer>) -> Result<(), OfferError> {
        let value = offer.value();
        let (until_ms, own_life) = (value.expires_ms, value.expires_ms.saturating_sub(value.issued_ms));
        let fits = own_life <= millis(OFFER_LIFETIME);
        let known = value.models.iter().filter_map(|model| self.get(&model.id, &value.node));
        let old = known.into_iter().any(|listing| listing.offer.value().sequence >= value.sequence);
        self.admit(now, Arc::new(offer), until_ms, fits, old)
    }

    /// Takes in an offer that its issuer has prolonged until `until_ms` (Unix milliseconds), by signs of life that were
    /// checked before; or prolongs it if it is here. A moment that is past takes it out.
    ///
    /// # Errors
    /// Why it was dropped. The table is then unchanged.
    pub fn hold(&mut self, now: Now, offer: Arc<Signed<Offer>>, until_ms: u64) -> Result<(), OfferError> {
        let value = offer.value();
        if until_ms <= now.ms() {
            let models: Vec<_> = value.models.iter().map(|model| model.id.clone()).collect();
            for model in models {
                if self.get(&model, &value.node).is_some_and(|it| it.offer.value().sequence <= value.sequence) {
                    self.remove(&model, &value.node);
                }
            }
            return Ok(());
        }
        let same = |listing: &Listing| Arc::ptr_eq(&listing.offer, &offer) || listing.offer.value().says(value);
        let mut old = false;
        let mut held = !value.models.is_empty();
        for model in &value.models {
            match self.get(&model.id, &value.node) {
                Some(listing) if same(listing) => {}
                Some(listing) => {
                    old |= listing.offer.value().sequence >= value.sequence;
                    held = false;
                }
                None => held = false,
            }
        }
        let fits = until_ms <= now.ms().saturating_add(millis(LIFE_MAX) + millis(OFFER_AHEAD_MAX));
        if held && fits {
            // All of it is here and says the same: only its life is new.
            for model in &value.models {
                let listing =
                    self.models.get_mut(model.id.as_str()).and_then(|providers| providers.get_mut(&value.node));
                let listing = listing.expect("it was found above");
                listing.until_ms = listing.until_ms.max(until_ms);
            }
            return Ok(());
        }
        self.admit(now, offer, until_ms, fits, old)
    }

    fn admit(
        &mut self,
        now: Now,
        offer: Arc<Signed<Offer>>,
        until_ms: u64,
        fits: bool,
        old: bool,
    ) -> Result<(), OfferError> {
        if let Err(error) = self.check(now, &offer, until_ms, fits, old).and_then(|()| self.make_room(&offer)) {
            *self.dropped.entry(error).or_default() += 1;
            return Err(error);
        }
        // Every check has passed: nothing below can fail.
        let node = offer.value().node;
        let groups = Group::of(offer.value());
        self.regroup(node, groups);
        for (index, model) in offer.value().models.iter().enumerate() {
            let listing = Listing { offer: Arc::clone(&offer), index, until_ms };
            self.put(&model.id, node, listing);
        }
        Ok(())
    }

    fn check(&self, now: Now, offer: &Signed<Offer>, until_ms: u64, fits: bool, old: bool) -> Result<(), OfferError> {
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
        if until_ms <= now.ms() || !fits {
            return Err(OfferError::Expired);
        }
        let top = Credits::new(PRICE_MAX_MICRO);
        let cap = Price { input: top, cached: top, output: top };
        if value.models.iter().any(|model| !model.price.within(&cap)) {
            return Err(OfferError::PriceOutOfBounds);
        }
        if old {
            return Err(OfferError::Old);
        }
        Ok(())
    }

    /// Evicts whoever must go for a new offer to have a place.
    fn make_room(&mut self, offer: &Signed<Offer>) -> Result<(), OfferError> {
        let value = offer.value();
        let groups = Group::of(value);
        let new: Vec<_> = value.models.iter().filter(|model| self.get(&model.id, &value.node).is_none()).collect();
        let has = self.providers.get(&value.node).map_or(0, |provider| provider.models.len());
        if has + new.len() > self.bounds.per_provider {
            return Err(OfferError::Full);
        }
        let is_anchor = |node: &NodeId| *node == value.node || self.anchors.contains(node);
        let mut victims = Vec::new();
        for model in &new {
            let Some(providers) = self.models.get(model.id.as_str()) else { continue };
            if providers.row.len() >= self.bounds.per_model {
                victims.push((providers.crowd.victim(groups, is_anchor).ok_or(OfferError::Full)?, Some(&model.id)));
            }
        }
        if self.len + new.len() > self.bounds.in_all + victims.len() {
            // Whoever it is offers at least one model; an offer of several may wait for the next to go.
            let victim = self.crowd.victim(groups, is_anchor).ok_or(OfferError::Full)?;
            let freed = self.providers.get(&victim).map_or(0, |provider| provider.models.len());
            if self.len + new.len() > self.bounds.in_all + freed {
                return Err(OfferError::Full);
            }
            victims.push((victim, None));
        }
        for (victim, model) in victims {
            match model {
                Some(model) => self.remove(model, &victim),
                None => self.remove_all(&victim),
            }
        }
        Ok(())
    }

    /// Notes that a provider belongs to these groups from now on.
    fn regroup(&mut self, node: NodeId, groups: Groups) {
        let Some(provider) = self.providers.get_mut(&node) else {
            self.arrivals += 1;
            self.crowd.insert(groups, self.arrivals, node);
            self.providers.insert(node, Provider { groups, arrival: self.arrivals, models: BTreeSet::new() });
            return;
        };
        if provider.groups == groups {
            return;
        }
        let before = std::mem::replace(&mut provider.groups, groups);
        let arrival = provider.arrival;
        self.crowd.remove(before, arrival, node);
        self.crowd.insert(groups, arrival, node);
        for model in &provider.models {
            let crowd = &mut self.models.get_mut(model).expect("a provider's models are in the table").crowd;
            crowd.remove(before, arrival, node);
            crowd.insert(groups, arrival, node);
        }
    }

    fn put(&mut self, model: &str, node: NodeId, listing: Listing) {
        let provider = self.providers.get_mut(&node).expect("noted before");
        if let Some(known) = self.models.get_mut(model).and_then(|providers| providers.get_mut(&node)) {
            let (before, after) = (priced(&self.secret, known), priced(&self.secret, &listing));
            *known = listing;
            if before != after {
                let providers = self.models.get_mut(model).expect("just seen");
                providers.by_price.remove(&before);
                providers.by_price.insert(after);
            }
            return;
        }
        let name = self.models.get_key_value(model).map_or_else(|| Arc::from(model), |(name, _)| Arc::clone(name));
        let providers = self.models.entry(Arc::clone(&name)).or_default();
        providers.at.insert(node, providers.row.len());
        providers.by_price.insert(priced(&self.secret, &listing));
        providers.row.push(listing);
        providers.crowd.insert(provider.groups, provider.arrival, node);
        provider.models.insert(name);
        self.len += 1;
    }

    fn remove(&mut self, model: &str, node: &NodeId) {
        let Some(providers) = self.models.get_mut(model) else { return };
        let Some(at) = providers.at.remove(node) else { return };
        let gone = providers.row.swap_remove(at);
        providers.by_price.remove(&priced(&self.secret, &gone));
        if let Some(moved) = providers.row.get(at) {
            providers.at.insert(moved.node(), at);
        }
        let provider = self.providers.get_mut(node).expect("who has a listing is noted");
        providers.crowd.remove(provider.groups, provider.arrival, *node);
        if providers.row.is_empty() {
            self.models.remove(model);
        }
        provider.models.remove(model);
        self.len -= 1;
        if provider.models.is_empty() {
            self.crowd.remove(provider.groups, provider.arrival, *node);
            self.providers.remove(node);
        }
    }

    fn remove_all(&mut self, node: &NodeId) {
        let models = self.providers.get(node).map(|provider| provider.models.clone()).unwrap_or_default();
        for model in models {
            self.remove(&model, node);
        }
    }

    /// Never evicts this provider from now on: this node's own experience with it is good. Of the last
    /// [`ANCHORS_MAX`] named.
    pub fn anchor(&mut self, node: NodeId) {
        if !self.anchors.insert(node) {
            return;
        }
        self.anchors_in_order.push_back(node);
        if self.anchors_in_order.len() > ANCHORS_MAX
            && let Some(first) = self.anchors_in_order.pop_front()
        {
            self.anchors.remove(&first);
        }
    }

    /// Takes back [`Directory::anchor`].
    pub fn unanchor(&mut self, node: &NodeId) {
        if self.anchors.remove(node) {
            self.anchors_in_order.retain(|other| other != node);
        }
    }

    /// The providers that are never evicted, in the order of their ids.
    pub fn anchors(&self) -> impl Iterator<Item = &NodeId> {
        self.anchors.iter()
    }

    /// The listing of one provider of one model, expired or not. Takes O(log n).
    #[must_use]
    pub fn get(&self, model: &str, node: &NodeId) -> Option<&Listing> {
        self.models.get(model).and_then(|providers| providers.get(node))
    }

    /// The listing of one provider of one model, unless it has expired. Takes O(log n).
    #[must_use]
    pub fn lookup(&self, now: Now, model: &str, node: &NodeId) -> Option<&Listing> {
        self.get(model, node).filter(|listing| listing.is_live(now))
    }

    /// Where a provider says that it is in the network's space.
    #[must_use]
    pub fn coordinate(&self, node: &NodeId) -> Option<Coordinate> {
        let model = self.providers.get(node)?.models.first()?;
        Some(self.models.get(model)?.get(node)?.offer.value().coordinate)
    }

    /// How many providers of a model there are; some may have expired since the last [`Directory::sweep`].
    #[must_use]
    pub fn providers(&self, model: &str) -> usize {
        self.models.get(model).map_or(0, |providers| providers.row.len())
    }

    /// Up to `k` different providers of a model that have not expired, drawn at random. Takes O(k log k), however many
    /// there are.
    pub fn sample(&self, now: Now, model: &str, k: usize, rng: &mut impl Rng) -> Vec<&Listing> {
        self.sample_where(now, model, k, rng, |_| true)
    }

    /// As [`Directory::sample`], of those that `keep` wants. At most 8 `k` + 16 are looked at, so fewer than `k` may
    /// come back though more exist, if most are unwanted.
    pub fn sample_where(
        &self,
        now: Now,
        model: &str,
        k: usize,
        rng: &mut impl Rng,
        keep: impl Fn(&Listing) -> bool,
    ) -> Vec<&Listing> {
        let row = self.models.get(model).map_or(&[][..], |providers| &providers.row);
        let looks = row.len().min(k.saturating_mul(8).saturating_add(16));
        let mut drawn = Vec::with_capacity(k.min(row.len()));
        // The first steps of a Fisher-Yates shuffle of the row, which itself stays as it is.
        let mut moved: BTreeMap<usize, usize> = BTreeMap::new();
        for step in 0..looks {
            if drawn.len() == k {
                break;
            }
            let place = rng.random_range(step as u64..row.len() as u64);
            let place = usize::try_from(place).expect("below a length");
            let at = moved.get(&place).copied().unwrap_or(place);
            moved.insert(place, moved.get(&step).copied().unwrap_or(step));
            let listing = &row[at];
            if listing.is_live(now) && keep(listing) {
                drawn.push(listing);
            }
        }
        drawn
    }

    /// Up to `k` of the cheapest providers of a model that have not expired and that `keep` wants, the cheapest first, equals by
    /// [`Directory::rank`]. Looks at 8 `k` at most.
    pub fn cheapest(&self, now: Now, model: &str, k: usize, keep: impl Fn(&Listing) -> bool) -> Vec<&Listing> {
        let Some(providers) = self.models.get(model) else { return Vec::new() };
        let by_price = providers.by_price.iter().take(k.saturating_mul(8));
        let listings = by_price.map(|(.., node)| providers.get(node).expect("priced while it is here"));
        listings.filter(|listing| listing.is_live(now) && keep(listing)).take(k).collect()
    }

    /// Providers that could serve `job` at its price limit, in the order of their ids.
    pub fn candidates<'a>(&'a self, now: Now, job: &'a Job) -> impl Iterator<Item = &'a Listing> {
        self.serving(now, &job.model, job.kind).filter(|listing| listing.model().price.within(&job.price_max))
    }

    /// Providers of a model and kind at any price, in the order of their ids.
    pub fn serving<'a>(&'a self, now: Now, model: &str, kind: Kind) -> impl Iterator<Item = &'a Listing> {
        let providers = self.models.get(model).into_iter().flat_map(Providers::in_order);
        providers.filter(move |listing| listing.is_live(now) && listing.serves(kind))
    }

    /// Every listing that is still good, by model.
    pub fn all(&self, now: Now) -> impl Iterator<Item = &Listing> {
        self.models.values().flat_map(Providers::in_order).filter(move |listing| listing.is_live(now))
    }

    /// How many (model, provider) pairs there are.
    #[must_use]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Drops what has expired.
    pub fn sweep(&mut self, now: Now) {
        let mut over = Vec::new();
        for (model, providers) in &self.models {
            let dead = providers.row.iter().filter(|listing| !listing.is_live(now));
            over.extend(dead.map(|listing| (Arc::clone(model), listing.node())));
        }
        for (model, node) in over {
            self.remove(&model, &node);
        }
    }

    /// How many offers were dropped, by reason.
    #[must_use]
    pub const fn dropped(&self) -> &BTreeMap<OfferError, u64> {
        &self.dropped
    }
}

impl Providers {
    fn get(&self, node: &NodeId) -> Option<&Listing> {
        self.at.get(node).map(|at| &self.row[*at])
    }

    fn get_mut(&mut self, node: &NodeId) -> Option<&mut Listing> {
        self.at.get(node).map(|at| &mut self.row[*at])
    }

    fn in_order(&self) -> impl Iterator<Item = &Listing> {
        self.at.values().map(|at| &self.row[*at])
    }
}

fn priced(secret: &[u8; 32], listing: &Listing) -> Priced {
    let (price, node) = (listing.model().price, listing.node());
    (price.output, price.input, rank(secret, &node), node)
}

fn millis(wait: Duration) -> u64 {
    u64::try_from(wait.as_millis()).expect("hours")
}
