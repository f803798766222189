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
    let (mut rows, mut failures) = (Vec::new(), Vec::new());
    for adversary in Adversary::PROVIDERS.into_iter().chain(Adversary::CONSUMERS) {
        // A third of them. Longer, and at other shares: `spillway-sim trial adversaries`.
        let (row, failed) = adversaries::one(adversary, 10, 12, seeds(1));
        failures.extend(failed);
        assert!(row.jobs > 15, "{row:?}");
        rows.push(row);
    }
    assert!(failures.is_empty(), "{failures:#?}");
    let broken: Vec<_> = adversaries::bounds(&rows).into_iter().filter(|bound| !bound.held).collect();
    assert!(broken.is_empty(), "{broken:?}\n{rows:#?}");
}

#[test]
fn streams_survive_their_providers() {
    let setting = streams::scenario(90, 30_000);
    let runs: Vec<_> = seeds(1).map(|seed| Simulation::new(seed).scenario(setting.clone()).observe()).collect();
    for run in &runs {
        assert!(run.report.violations.is_empty(), "{}", run.report.failure().unwrap_or_default());
    }
    let row = streams::of_runs(&runs);
    assert!(row.deaths > 5 && row.hit > 5, "{row:?}");
    let broken: Vec<_> = streams::bounds(&row).into_iter().filter(|bound| !bound.held).collect();
    assert!(broken.is_empty(), "{broken:?}");
}
