//! What the market looks like to people at a moment: models, offers, load.
//! Invariant: only what can be asked for now is in it: healthy own backends, and offers that have not expired.

use crate::jobs::{BackendLoad, Kinds, Load, MarketModel, MarketView, OfferView};
use spillway_ledger::Price;
use spillway_protocol::{Capacity, Kind, Now, Peer};
use std::collections::BTreeMap;

/// The view of `peer`, whose own backends are `capacity` and which is connected to `peers` others.
pub(crate) fn market_view(peer: &Peer, capacity: &[Capacity], peers: usize, now: Now) -> MarketView {
    let mut models: BTreeMap<String, MarketModel> = BTreeMap::new();
    let resting = capacity.iter().filter(|capacity| !capacity.healthy).map(|capacity| capacity.model.clone()).collect();
    for capacity in capacity.iter().filter(|capacity| capacity.healthy) {
        let id = capacity.model.clone();
        let kinds: Kinds = capacity.kinds.iter().copied().collect();
        let model = MarketModel {
            id: id.clone(),
            own: true,
            providers: 0,
            own_kinds: kinds,
            kinds,
            price_min: None,
            token_price: capacity.token_price,
        };
        models.insert(id, model);
    }
    let mut offers = Vec::new();
    for listing in peer.directory().all(now) {
        let (offer, model, node) = (listing.offer.value(), listing.model(), listing.node());
        let entry = models.entry(model.id.clone()).or_insert_with(|| MarketModel {
            id: model.id.clone(),
            own: false,
            providers: 0,
            own_kinds: Kinds::default(),
            kinds: Kinds::default(),
            price_min: None,
            token_price: Price::ZERO,
        });
        entry.providers += 1;
        entry.kinds.extend(model.kinds.iter().filter_map(|name| Kind::named(name)));
        if entry.price_min.is_none_or(|price| model.price.output < price.output) {
            entry.price_min = Some(model.price);
        }
        offers.push(OfferView {
            node,
            account: listing.account(),
            region: offer.region.clone(),
            model: model.id.clone(),
            price: model.price,
            slots: model.slots,
            age_ms: now.ms().saturating_sub(offer.issued_ms),
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "`as` saturates; never negative"
            )]
            rtt_ms: peer.reputation().rtt_ms(&node).map(|rtt| rtt as u64),
            reputation: peer.reputation().lower_bound(&node),
            addresses: offer.addresses.clone(),
        });
    }
    let running = |capacity: &Capacity| (capacity.model.clone(), peer.running(&capacity.model));
    let running = capacity.iter().map(running).collect();
    let backend = |capacity: &Capacity| BackendLoad {
        model: capacity.model.clone(),
        healthy: capacity.healthy,
        slots: capacity.slots,
        running: peer.running(&capacity.model),
        queued: peer.waiting(&capacity.model),
    };
    let load = Load { peers, running, backends: capacity.iter().map(backend).collect() };
    MarketView { models: models.into_values().collect(), resting, offers, load }
}
