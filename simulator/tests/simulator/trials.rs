//! The trials in short form; `spillway-sim trial NAME` plays them whole.

use spillway_simulator::trial::{adversaries, overload, streams};
use spillway_simulator::{Adversary, Simulation};

/// How many seeds a trial plays here: that of `SPILLWAY_TRIALS`, or a few.
fn seeds(few: u64) -> std::ops::Range<u64> {
    0..std::env::var("SPILLWAY_TRIALS").map_or(few, |text| text.parse().expect("a number"))
}

#[test]
fn overloaded_nobody_is_turned_away_while_a_slot_stands_idle() {
    let result = overload::overload(seeds(4), |_| {});
    assert!(result.failures.is_empty(), "{result}");
    assert!(result.refused > 100, "there is too little load to tell: {result}");
    assert!(result.network > 100 && result.own > 10, "{result}");
}

#[test]
fn among_adversaries_the_bounds_hold_and_the_honest_are_served() {
    for adversary in Adversary::PROVIDERS.into_iter().chain(Adversary::CONSUMERS) {
        // A third of them. Longer, and at other shares: `spillway-sim trial adversaries`.
        let (row, failures) = adversaries::one(adversary, 10, 12, seeds(1));
        assert!(failures.is_empty(), "{failures:?}");
        assert!(row.jobs > 15, "{row:?}");
        assert!(row.served_percent > 99.0, "{row:?}");
        assert!((row.unpaid - 0.0).abs() < 1e-9, "honest providers deliver nothing that is not promised: {row:?}");
        let gains = match adversary {
            // They are paid ahead, once for each leg: a prompt and a window.
            Adversary::Overcount | Adversary::Stall | Adversary::Silent | Adversary::FalseCapacity => {
                row.loss_of_bound <= 2.0
            }
            // An event may be sixteen windows long.
            Adversary::GrabAhead => row.loss_of_bound <= 16.0,
            _ => row.gain <= 1e-9,
        };
        assert!(gains, "{row:?}");
    }
}

#[test]
fn streams_survive_their_providers() {
    let setting = streams::scenario(90, 30_000);
    let row = streams::of_runs(
        &seeds(1).map(|seed| Simulation::new(seed).scenario(setting.clone()).observe()).collect::<Vec<_>>(),
    );
    assert!(row.deaths > 5 && row.hit > 5, "{row:?}");
    assert!(row.survived_percent >= streams::SURVIVE_PERCENT, "{row:?}");
    assert!(row.noticed.max_ms < streams::NOTICE_MS, "{row:?}");
}
