//! Offers that are taken in, and those that are dropped, each for its reason.

use crate::common::{START, job, network, price, secret};
use spillway_ledger::{Account, CodecError, Credits, Digest, NetworkId, NodeId, Signed, SignedError};
use spillway_protocol::offer::{METER, OFFER_LIFETIME, PRICE_MAX_MICRO};
use spillway_protocol::{Directory, ModelOffer, Now, Offer, OfferError};
use std::time::Duration;

fn model(id: &str) -> ModelOffer {
    ModelOffer {
        id: id.into(),
        weights: Digest::from_bytes([0; 32]),
        quantization: "Q8_0".into(),
        engine: "test".into(),
        context_max: 1024,
        kinds: vec!["chat".into()],
        meter: METER.into(),
        price: price(1, 2),
        slots: 1,
        keeps_nothing: false,
    }
}

fn offer() -> Offer {
    Offer {
        network: network(),
        node: NodeId(secret(2, 1).public()),
        account: Account(secret(2, 2).public()),
        sequence: 7,
        issued_ms: START.ms(),
        expires_ms: START.after(OFFER_LIFETIME).ms(),
        region: "near".into(),
        coordinate: spillway_protocol::router::Coordinate::default(),
        addresses: vec!["/ip4/127.0.0.1/tcp/1".into()],
        models: vec![model("guide")],
    }
}

#[test]
fn each_bad_offer_is_dropped_for_its_reason() {
    let ahead = |seconds| START.after(Duration::from_secs(seconds)).ms();
    type Spoil = Box<dyn Fn(&mut Offer)>;
    let cases: Vec<(&str, Spoil, Result<(), OfferError>)> = vec![
        ("good", Box::new(|_| {}), Ok(())),
        ("30 s ahead", Box::new(move |o| o.issued_ms = ahead(30)), Ok(())),
        ("from the future", Box::new(move |o| o.issued_ms = ahead(31)), Err(OfferError::FromFuture)),
        ("far future", Box::new(|o| o.issued_ms = u64::MAX), Err(OfferError::FromFuture)),
        ("expired", Box::new(|o| o.expires_ms = START.ms()), Err(OfferError::Expired)),
        ("for ever", Box::new(|o| o.expires_ms = u64::MAX), Err(OfferError::Expired)),
        (
            "of another market",
            Box::new(|o| o.network = NetworkId(Digest::of("test", &[b"other"]))),
            Err(OfferError::WrongNetwork),
        ),
        ("in another's name", Box::new(|o| o.node = NodeId(secret(9, 1).public())), Err(OfferError::WrongSigner)),
        (
            "beyond reason",
            Box::new(|o| o.models[0].price.output = Credits::new(PRICE_MAX_MICRO + 1)),
            Err(OfferError::PriceOutOfBounds),
        ),
    ];
    for (what, spoil, expected) in cases {
        let mut directory = Directory::new(network());
        let mut offer = offer();
        spoil(&mut offer);
        assert_eq!(directory.insert(START, Signed::sign(offer, &secret(2, 1))), expected, "{what}");
        assert_eq!(directory.all(START).count(), usize::from(expected.is_ok()), "{what}");
        if let Err(error) = expected {
            assert_eq!(directory.dropped()[&error], 1, "{what} is counted");
        }
    }
}

#[test]
fn the_newest_offer_counts() {
    let mut directory = Directory::new(network());
    let mut put = |sequence, output| {
        let mut offer = Offer { sequence, ..offer() };
        offer.models[0].price.output = Credits::new(output);
        let result = directory.insert(START, Signed::sign(offer, &secret(2, 1)));
        let output = directory.all(START).next().map(|listing| listing.model().price.output.micro());
        (result, output)
    };
    assert_eq!(put(7, 10), (Ok(()), Some(10)));
    assert_eq!(put(8, 20), (Ok(()), Some(20)));
    assert_eq!(put(7, 10), (Err(OfferError::Old), Some(20)));
    assert_eq!(put(8, 30), (Err(OfferError::Old), Some(20)), "the same number again says nothing new");
}

#[test]
fn an_offer_lapses() {
    let mut directory = Directory::new(network());
    directory.insert(START, Signed::sign(offer(), &secret(2, 1))).expect("good");
    let later = START.after(OFFER_LIFETIME);
    for (now, count) in [(START, 1), (Now(later.0 - 1_000), 1), (later, 0)] {
        assert_eq!(directory.candidates(now, &job(1)).count(), count);
    }
    directory.sweep(later);
    assert_eq!(directory.all(START).count(), 0, "it is gone, not merely hidden");
}

#[test]
fn unsigned_oversized_and_unordered_offers_are_no_offers() {
    let good = Signed::sign(offer(), &secret(2, 1));
    let mut bytes = good.to_bytes();
    assert_eq!(Signed::<Offer>::from_bytes(&bytes).map(|offer| offer.value().sequence), Ok(7));
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    assert!(matches!(
        Signed::<Offer>::from_bytes(&bytes),
        Err(SignedError::BadSignature | SignedError::Malformed | SignedError::NotCanonical(_))
    ));
    let big = Offer { models: (0..9).map(|i| model(&format!("model-{i}"))).collect(), ..offer() };
    assert!(matches!(
        Signed::try_sign(big, &secret(2, 1)),
        Err(CodecError::TooLong { .. } | CodecError::NotCanonical(_))
    ));
    let unordered = Offer { models: vec![model("b"), model("a")], ..offer() };
    assert!(
        matches!(Signed::try_sign(unordered, &secret(2, 1)), Err(CodecError::NotCanonical(why)) if why.contains("sorted"))
    );
}
