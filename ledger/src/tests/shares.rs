//! The split's promise: 70 % to the provider however the payments are cut, and never a micro-credit lost.

use rand::{RngExt as _, SeedableRng as _};
use rand_chacha::ChaCha8Rng;

use crate::*;

fn sum(parts: &Parts) -> u64 {
    [parts.provider, parts.gateway, parts.validators, parts.treasury].into_iter().map(Credits::micro).sum()
}

#[test]
fn shares_are_a_whole_with_seventy_per_cent_for_the_provider() {
    let cases = [
        ((7_000, 1_000, 1_000, 1_000), Ok(())),
        ((10_000, 0, 0, 0), Ok(())),
        ((7_000, 3_000, 0, 0), Ok(())),
        ((6_999, 1_001, 1_000, 1_000), Err(SplitError::ProviderTooLow(6_999))),
        ((7_000, 1_000, 1_000, 999), Err(SplitError::NotWhole(9_999))),
        ((7_000, 1_000, 1_000, 1_001), Err(SplitError::NotWhole(10_001))),
        ((u32::MAX, u32::MAX, u32::MAX, u32::MAX), Err(SplitError::NotWhole(4 * u64::from(u32::MAX)))),
    ];
    for ((provider, gateway, validators, treasury), want) in cases {
        let got = Split::new(provider, gateway, validators, treasury);
        assert_eq!(got.map(|_| ()), want, "{provider} {gateway} {validators} {treasury}");
    }
    let low = r#"{"provider_bp":6000,"gateway_bp":2000,"validators_bp":1000,"treasury_bp":1000}"#;
    let error = serde_json::from_str::<Split>(low).expect_err("a file cannot lower the provider's share either");
    assert!(error.to_string().contains("provider_bp is 6000"), "{error}");
}

#[test]
fn parts_of_known_totals() {
    // before, after, provider, gateway, validators, treasury
    let cases = [
        (0, 0, [0, 0, 0, 0]),
        (0, 1, [1, 0, 0, 0]),
        (1, 2, [1, 0, 0, 0]),
        (2, 3, [1, 0, 0, 0]),
        (3, 4, [0, 0, 0, 1]),
        (0, 10, [7, 1, 1, 1]),
        (0, 1_000, [700, 100, 100, 100]),
        (1_000, 1_001, [1, 0, 0, 0]),
    ];
    for (before, after, want) in cases {
        let parts = Split::default().parts(Credits::new(before), Credits::new(after));
        let got = [parts.provider, parts.gateway, parts.validators, parts.treasury].map(Credits::micro);
        assert_eq!(got, want, "from {before} to {after}");
    }
    let all = Split::default().parts(Credits::ZERO, Credits::MAX);
    assert_eq!(sum(&all), u64::MAX);
}

#[test]
fn no_part_ever_shrinks_by_one_more_micro_credit() {
    for split in [(7_000, 1_000, 1_000, 1_000), (7_001, 2_997, 1, 1), (9_999, 0, 0, 1), (7_000, 0, 3_000, 0)] {
        let split = Split::new(split.0, split.1, split.2, split.3).expect("a whole");
        for total in 0..20_000 {
            let parts = split.parts(Credits::new(total), Credits::new(total + 1));
            assert_eq!(sum(&parts), 1, "at {total}");
        }
    }
}

/// Many small settlements pay what one large one does; at each the provider has its share of what was settled, and
/// each other part is within two micro-credits of its own.
#[test]
fn small_settlements_never_erode_the_seventy_per_cent() {
    for seed in 0..512 {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        let provider = rng.random_range(7_000..=10_000);
        let gateway = rng.random_range(0..=10_000 - provider);
        let validators = rng.random_range(0..=10_000 - provider - gateway);
        let treasury = 10_000 - provider - gateway - validators;
        let split = Split::new(provider, gateway, validators, treasury).expect("a whole");
        let bps = [provider, gateway, validators, treasury];
        let (mut total, mut paid) = (0_u64, [0_u64; 4]);
        for _ in 0..rng.random_range(1..60) {
            let most = if rng.random_bool(0.5) { 20 } else { 1_000_000_000_000 };
            let step = rng.random_range(0..most);
            let after = total + step;
            let parts = split.parts(Credits::new(total), Credits::new(after));
            assert_eq!(sum(&parts), step, "seed {seed}");
            let now = [parts.provider, parts.gateway, parts.validators, parts.treasury];
            for (had, part) in paid.iter_mut().zip(now) {
                *had += part.micro();
            }
            total = after;
            assert!(u128::from(paid[0]) * 10_000 >= u128::from(total) * u128::from(provider), "seed {seed}");
            for (had, bp) in paid.iter().zip(bps) {
                let exact = u128::from(total) * u128::from(bp);
                let off = (u128::from(*had) * 10_000).abs_diff(exact);
                assert!(off < 20_000, "seed {seed}: {had} of {total} at {bp} bp");
            }
        }
        let once = split.parts(Credits::ZERO, Credits::new(total));
        let once = [once.provider, once.gateway, once.validators, once.treasury].map(Credits::micro);
        assert_eq!(once, paid, "seed {seed}");
    }
}

#[test]
fn a_split_says_its_shares() {
    let split = Split::new(7_100, 1_200, 900, 800).expect("a whole");
    let said = (split.provider_bp(), split.gateway_bp(), split.validators_bp(), split.treasury_bp());
    assert_eq!(said, (7_100, 1_200, 900, 800));
}
