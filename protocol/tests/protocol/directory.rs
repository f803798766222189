//! The table of offers under pressure: who stays when it is full, and how providers are drawn from it.

use crate::common::{START, network, price};
use rand::SeedableRng as _;
use rand_chacha::ChaCha8Rng;
use spillway_ledger::{Account, Digest, NodeId, SecretKey, Signed};
use spillway_protocol::directory::Bounds;
use spillway_protocol::discovery::LIFE_MAX;
use spillway_protocol::offer::{METER, OFFER_LIFETIME};
use spillway_protocol::{Directory, ModelOffer, Now, Offer, OfferError};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

fn key(what: u8, index: u32) -> SecretKey {
    let mut seed = [what; 32];
    seed[..4].copy_from_slice(&index.to_le_bytes());
    SecretKey::from_bytes(&seed)
}

fn node(index: u32) -> NodeId {
    NodeId(key(1, index).public())
}

/// The offer of a provider, paid to an account, at an address.
fn offer(provider: u32, account: u32, address: &str, models: &[&str]) -> Signed<Offer> {
    let model = |id: &&str| ModelOffer {
        id: (*id).to_owned(),
        weights: Digest::ZERO,
        quantization: String::new(),
        engine: "test".into(),
        context_max: 1024,
        kinds: vec!["chat".into()],
        meter: METER.into(),
        price: price(1, 2),
        slots: 1,
        keeps_nothing: false,
    };
    let offer = Offer {
        network: network(),
        node: node(provider),
        account: Account(key(2, account).public()),
        sequence: START.ms(),
        issued_ms: START.ms(),
        expires_ms: START.after(OFFER_LIFETIME).ms(),
        region: String::new(),
        coordinate: spillway_protocol::router::Coordinate::default(),
        addresses: vec![address.to_owned()],
        models: models.iter().map(model).collect(),
    };
    Signed::sign(offer, &key(1, provider))
}

const FULL: u32 = 50;
const SMALL: Bounds = Bounds { in_all: 60, per_model: FULL as usize, per_provider: 8 };
const NEAR: &str = "/ip4/127.0.0.1/tcp/1";

#[test]
fn a_full_table_gives_up_its_most_crowded_group_from_the_newest_on() {
    let mut directory = Directory::bounded(network(), SMALL);
    let full = FULL;
    // Three honest providers; then one account with all the rest, of which one serves us well.
    for honest in 0..3 {
        directory.insert(START, offer(honest, honest, NEAR, &["m"])).expect("there is room");
    }
    for sybil in 3..full {
        directory.insert(START, offer(sybil, 9, NEAR, &["m"])).expect("there is room");
    }
    directory.anchor(node(full - 1));
    let one_more = directory.insert(START, offer(full, 9, NEAR, &["m"]));
    assert_eq!(one_more, Err(OfferError::Full), "the most crowded account gets no more");
    // Newcomers displace the newest of the crowd, and nobody else.
    for honest in full + 1..full + 11 {
        directory.insert(START, offer(honest, honest, NEAR, &["m"])).expect("the crowd gives way");
    }
    assert_eq!(directory.providers("m"), SMALL.per_model);
    let is_in = |provider: u32| directory.get("m", &node(provider)).is_some();
    assert!((0..3).chain(full + 1..full + 11).all(is_in), "the honest are in");
    assert!(is_in(full - 1), "an anchor stays");
    let gone: Vec<u32> = (3..full).filter(|sybil| !is_in(*sybil)).collect();
    assert_eq!(gone, (full - 11..full - 1).collect::<Vec<_>>());
    assert_eq!(directory.len(), SMALL.per_model);
}

#[test]
fn models_that_nobody_asks_for_fill_no_table() {
    let mut directory = Directory::bounded(network(), SMALL);
    for honest in 0..3 {
        directory.insert(START, offer(honest, honest, NEAR, &["m"])).expect("there is room");
    }
    let names: Vec<String> = (0..4).map(|index| format!("made-up-{index}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // Nodes of one account, each with four models of its own invention.
    let sybils = (10..40).filter(|sybil| directory.insert(START, offer(*sybil, 9, NEAR, &names)).is_ok()).count();
    assert_eq!((sybils, directory.len()), (14, 59));
    directory.insert(START, offer(3, 3, NEAR, &["m"])).expect("there is room for one");
    directory.insert(START, offer(4, 4, NEAR, &["m"])).expect("the crowd gives way");
    assert_eq!((directory.providers("m"), directory.len()), (5, 57), "one of the crowd is gone, with all its models");
}

#[test]
fn a_subnet_is_a_crowd_too_and_loopback_is_not() {
    let full = FULL;
    for (address, evicts) in [("/ip4/198.51.100.7/tcp/1", true), (NEAR, false)] {
        let mut directory = Directory::bounded(network(), SMALL);
        for sybil in 0..full {
            directory.insert(START, offer(sybil, sybil, address, &["m"])).expect("there is room");
        }
        let newcomer = directory.insert(START, offer(full, full, "/ip4/203.0.113.9/tcp/1", &["m"]));
        assert_eq!(newcomer.is_ok(), evicts, "{address}");
    }
}

#[test]
fn a_provider_has_so_many_models_and_no_more() {
    let mut directory = Directory::new(network());
    let names: Vec<String> = (0..=Bounds::SHIPPED.per_provider).map(|index| format!("model-{index:03}")).collect();
    for (index, name) in names.iter().enumerate() {
        let expected = if index < Bounds::SHIPPED.per_provider { Ok(()) } else { Err(OfferError::Full) };
        assert_eq!(directory.insert(START, offer(1, 1, NEAR, &[name])), expected, "{name}");
    }
    directory.sweep(START.after(OFFER_LIFETIME));
    assert!(directory.is_empty());
    assert_eq!(directory.insert(START, offer(1, 1, NEAR, &[&names[0]])), Ok(()), "what expired counts no more");
}

#[test]
fn a_sample_is_fair_distinct_and_alive() {
    let mut directory = Directory::new(network());
    for provider in 0..40 {
        directory.insert(START, offer(provider, provider, NEAR, &["m"])).expect("there is room");
    }
    directory.insert(START, offer(99, 99, NEAR, &["other"])).expect("there is room");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mut drawn: BTreeMap<NodeId, u32> = BTreeMap::new();
    for _ in 0..2_000 {
        let sample = directory.sample(START, "m", 4, &mut rng);
        let mut nodes: Vec<_> = sample.iter().map(|listing| listing.node()).collect();
        nodes.sort();
        nodes.dedup();
        assert_eq!(nodes.len(), 4);
        for node in nodes {
            *drawn.entry(node).or_default() += 1;
        }
    }
    // 200 each is expected; five standard deviations are 67.
    assert_eq!(drawn.len(), 40);
    assert!(drawn.values().all(|count| (133..267).contains(count)), "{drawn:?}");
    assert_eq!(directory.sample(START, "m", 100, &mut rng).len(), 40, "all there are");
    assert_eq!(directory.sample(START, "unheard of", 4, &mut rng).len(), 0);
    assert_eq!(directory.sample(START.after(OFFER_LIFETIME), "m", 4, &mut rng).len(), 0, "none has life left");
    let even = |listing: &spillway_protocol::Listing| (0..40).step_by(2).any(|index| node(index) == listing.node());
    let sample = directory.sample_where(START, "m", 4, &mut rng, even);
    assert!(sample.len() == 4 && sample.iter().all(|listing| even(listing)));
}

#[test]
fn among_equals_no_name_comes_first_for_everyone() {
    let mut firsts = std::collections::BTreeSet::new();
    for secret in 0..32 {
        let mut directory = Directory::new(network()).ranked_by([secret; 32]);
        for provider in 0..16 {
            directory.insert(START, offer(provider, provider, NEAR, &["m"])).expect("there is room");
        }
        let mut cheap = offer(99, 99, NEAR, &["m"]).into_value();
        cheap.models[0].price.output = spillway_ledger::Credits::new(0);
        directory.insert(START, Signed::sign(cheap, &key(1, 99))).expect("there is room");
        let found = directory.cheapest(START, "m", 3, |_| true);
        let nodes: Vec<NodeId> = found.iter().map(|listing| listing.node()).collect();
        assert_eq!(nodes[0], node(99), "a lower price goes before any rank");
        assert!(directory.rank(&nodes[1]) <= directory.rank(&nodes[2]));
        firsts.insert(nodes[1]);
    }
    // Of 16, drawn 32 times: about 14 different ones.
    assert!(firsts.len() >= 9, "{} come first", firsts.len());
}

#[test]
fn a_sign_of_life_prolongs_an_offer_and_a_farewell_ends_it() {
    let mut directory = Directory::new(network());
    let first = Arc::new(offer(1, 1, NEAR, &["a", "b"]));
    let at = |seconds| START.after(Duration::from_secs(seconds));
    let held = |directory: &mut Directory, now: Now, until: Now| directory.hold(now, Arc::clone(&first), until.ms());
    assert_eq!(held(&mut directory, START, at(600)), Ok(()));
    assert_eq!(directory.all(at(599)).count(), 2);
    assert_eq!(directory.all(at(600)).count(), 0);
    // The bare offer, issued again, says the same: the life it was given stays.
    assert_eq!(held(&mut directory, at(500), at(5_000)), Ok(()));
    assert_eq!(held(&mut directory, at(500), at(900)), Ok(()), "a shorter life takes nothing back");
    assert_eq!(directory.lookup(at(4_999), "b", &node(1)).map(|listing| listing.until_ms), Some(at(5_000).ms()));
    let too_long = at(500).after(LIFE_MAX).after(Duration::from_secs(31));
    assert_eq!(held(&mut directory, at(500), too_long), Err(OfferError::Expired));
    // A newer offer at another price takes its place, and the old one is not heard again.
    let mut newer = offer(1, 1, NEAR, &["a", "b"]).into_value();
    newer.sequence += 1;
    newer.models[0].price = price(7, 7);
    let newer = Arc::new(Signed::sign(newer, &key(1, 1)));
    assert_eq!(directory.hold(at(500), newer, at(5_000).ms()), Ok(()));
    assert_eq!(held(&mut directory, at(500), at(6_000)), Err(OfferError::Old));
    assert_eq!(held(&mut directory, at(500), at(500)), Ok(()));
    assert_eq!(directory.len(), 2, "the farewell of an old offer ends no newer one");
    let newest = Arc::clone(&directory.get("a", &node(1)).expect("held").offer);
    assert_eq!(directory.hold(at(501), newest, 0), Ok(()));
    assert!(directory.is_empty());
}
