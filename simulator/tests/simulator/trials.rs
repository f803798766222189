//! The trials in short form; `spillway-sim trial NAME` plays them whole.

use spillway_simulator::trial::overload;

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
