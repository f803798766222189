//! The same seed is the same run: twice in one process, on every machine, in debug and in release.
//!
//! `hashes.txt` holds scenario, seed and hash. It changes whenever peers behave differently under these seeds, which is
//! often right and must always be on purpose: look at why, then write it anew with
//! `SPILLWAY_FREEZE=1 cargo test -p spillway-simulator --test simulator determinism`.

use spillway_simulator::Simulation;
use std::fmt::Write as _;

const CASES: [(&str, u64); 9] = [
    ("calm", 1),
    ("burst", 1),
    ("churn", 1),
    ("faults", 1),
    ("tight", 1),
    ("sold", 1),
    ("swarm", 1),
    ("swarm", 2),
    ("swarm", 3),
];

fn hash(scenario: &str, seed: u64) -> String {
    Simulation::new(seed).named(scenario).run().hash
}

#[test]
fn the_same_seed_gives_the_same_hash_twice_and_another_seed_another() {
    let all: Vec<_> = (0..4).map(|seed| hash("burst", seed)).collect();
    for (seed, first) in (0..).zip(&all) {
        assert_eq!(hash("burst", seed), *first, "seed {seed}");
        assert_eq!(all.iter().filter(|other| *other == first).count(), 1, "seed {seed} is like another");
    }
}

#[test]
fn hashes_are_the_frozen_ones() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/simulator/hashes.txt");
    let mut now = String::new();
    for (scenario, seed) in CASES {
        writeln!(now, "{scenario} {seed} {}", hash(scenario, seed)).expect("writing to a string");
    }
    if std::env::var_os("SPILLWAY_FREEZE").is_some() {
        std::fs::write(path, &now).expect("the test folder can be written");
    }
    let frozen = std::fs::read_to_string(path).expect("tests/simulator/hashes.txt");
    assert_eq!(frozen, now, "frozen left, this build right; how to freeze anew is said above");
}
