//! The consensus state machine in virtual time, under faults: what ships, without threads, sockets or clocks.
//!
//! Each validator is the engine's own state machine with the crate's own application, codecs, keys and books; the world
//! around them is drawn from a seed. The crate's modules are compiled into this test as they are, since they are nobody
//! else's business.
//!
//! `SPILLWAY_SEEDS=5000 cargo test -p spillway-bft --test virtual_time` runs more seeds, `SPILLWAY_SEED=17` one of them,
//! with everything that happens.

#[path = "../../src/app.rs"]
mod app;
#[path = "../../src/codec.rs"]
mod codec;
#[path = "../../src/context.rs"]
mod context;
#[path = "../../src/held.rs"]
mod held;
#[path = "../../src/host.rs"]
mod host;
#[path = "../../src/part.rs"]
mod part;
#[path = "../../src/pool.rs"]
mod pool;
#[path = "../../src/progress.rs"]
mod progress;
#[path = "../../src/signer.rs"]
mod signer;
#[path = "../../src/wire.rs"]
mod wire;

mod books;
mod check;
mod lies;
mod log;
mod node;
mod plan;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use check::Tally;
use plan::{Plan, Sabotage};
use world::Outcome;

/// How many seeds run by default.
const SEEDS: u64 = 100;
/// How many seeds a sabotaged driver may go unnoticed.
const SABOTAGED: u64 = 40;

/// What the environment asks for.
fn asked(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name} must be a number, not {text:?}")))
}

fn run(seed: u64, sabotage: Sabotage, trace: bool) -> Result<Outcome, String> {
    let run = || world::run(seed, Plan::drawn(seed, sabotage), trace);
    let outcome = catch_unwind(AssertUnwindSafe(run)).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("it panicked: {}", text.unwrap_or_default())
    })?;
    match outcome.violation {
        Some(violation) => Err(violation),
        None => Ok(outcome),
    }
}

/// Runs seeds on all cores; gives what they came to, and the failures by seed.
fn run_all(seeds: std::ops::Range<u64>, sabotage: Sabotage) -> (Tally, Vec<(u64, String)>) {
    let next = AtomicU64::new(seeds.start);
    let all = Mutex::new((Tally::default(), Vec::new()));
    thread::scope(|scope| {
        for _ in 0..thread::available_parallelism().map_or(1, std::num::NonZero::get) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds.end {
                        return;
                    }
                    let outcome = run(seed, sabotage, false);
                    let mut all = all.lock().expect("nobody panics with it");
                    match outcome {
                        Ok(outcome) => all.0.add(&outcome.tally),
                        Err(what) => all.1.push((seed, what)),
                    }
                }
            });
        }
    });
    let (tally, mut failures) = all.into_inner().expect("nobody panics with it");
    failures.sort();
    (tally, failures)
}

#[test]
fn no_fault_makes_honest_validators_fork_lie_or_stop() {
    if let Some(seed) = asked("SPILLWAY_SEED") {
        eprintln!("{:#?}", Plan::drawn(seed, Sabotage::None));
        let outcome = run(seed, Sabotage::None, true);
        println!("{outcome:?}");
        assert!(outcome.is_ok(), "seed {seed}: {}", outcome.unwrap_err());
        return;
    }
    let seeds = asked("SPILLWAY_SEEDS").unwrap_or(SEEDS);
    let (tally, failures) = run_all(0..seeds, Sabotage::None);
    println!("{tally:?}");
    let replay = |(seed, what): &(u64, String)| {
        format!("seed {seed}: {what}\n  SPILLWAY_SEED={seed} cargo test -p spillway-bft --test virtual_time no_fault")
    };
    let shown: Vec<String> = failures.iter().take(10).map(replay).collect();
    assert!(failures.is_empty(), "{} seeds failed:\n{}", failures.len(), shown.join("\n"));
    if seeds < SEEDS {
        return;
    }
    // Seeds under which nothing goes wrong would show nothing.
    for (what, count) in [
        ("kills", tally.kills),
        ("cuts", tally.cuts),
        ("lost messages", tally.lost),
        ("replayed logs", tally.replays),
        ("rounds above the first", tally.rounds),
        ("blocks fetched from others", tally.synced),
        ("evidence", tally.evidence),
        ("liars removed", tally.removed),
        ("entries", tally.entries),
    ] {
        assert!(count > 0, "no {what} in any seed");
    }
}

#[test]
fn one_seed_is_one_history() {
    for seed in [1, 2] {
        let hash = || run(seed, Sabotage::None, false).map(|outcome| (outcome.hash, outcome.tally));
        assert_eq!(hash(), hash(), "seed {seed}");
    }
}

/// In an idle network, one that was away for long gets to where the others are, and stays there.
#[test]
fn one_that_was_down_for_long_catches_up_though_nothing_happens() {
    for seed in 0..4 {
        let outcome = world::run(seed, Plan::away(seed), false);
        assert_eq!(outcome.violation, None, "seed {seed}");
        println!("seed {seed}: level with the others {} ms after its restart", outcome.tally.healed_ms);
    }
}

/// Each sabotage must be noticed, and as what it is.
#[test]
fn the_checks_notice_what_is_broken_on_purpose() {
    for (sabotage, signs) in [
        (Sabotage::ForgetsLog, &["said two things"][..]),
        (Sabotage::LowQuorum, &["ended by itself", "bad certificate", "two blocks are final"]),
        (Sabotage::StaysCut, &["not all are at height"]),
    ] {
        let failures = (0..SABOTAGED).filter_map(|seed| Some((seed, run(seed, sabotage, false).err()?)));
        let mut noticed = failures.filter(|(_, what)| signs.iter().any(|sign| what.contains(sign)));
        let Some((seed, what)) = noticed.next() else { panic!("{sabotage:?} went unnoticed in {SABOTAGED} seeds") };
        println!("{sabotage:?}, seed {seed}: {what}");
    }
}
