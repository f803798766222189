//! A deliberately broken peer must be caught, by the rule that is made for it, within a few seeds.

use spillway_protocol::peer::Sabotage;
use spillway_simulator::{Rule, Simulation};

/// Runs `scenario` with every peer sabotaged, seed after seed, until a rule breaks.
fn caught(scenario: &str, how: Sabotage) -> Option<(u64, Rule, String)> {
    (1..=80).find_map(|seed| {
        let run = Simulation::new(seed).named(scenario).with_peers(move |_, peer| peer.sabotage(how));
        let report = run.run();
        let first = report.violations.first()?;
        Some((seed, first.rule, report.failure().unwrap_or_default()))
    })
}

#[test]
fn each_sabotage_is_caught_by_its_rule() {
    for (how, scenario, rule) in [
        (Sabotage::DropJobs, "churn", Rule::NeverEnded),
        (Sabotage::RepeatText, "churn", Rule::TextDiffers),
        (Sabotage::OverClaim, "burst", Rule::OverClaim),
        (Sabotage::IgnoreDeposit, "tight", Rule::VoucherAboveDeposit),
        (Sabotage::Hasty, "burst", Rule::WrongfulRefusal),
    ] {
        let (seed, by, what) = caught(scenario, how).unwrap_or_else(|| panic!("{how:?} is not caught in 80 seeds"));
        assert_eq!(by, rule, "{how:?}, seed {seed}: {what}");
        assert!(what.contains("spillway-sim run"), "the failure says how to replay it: {what}");
    }
}

#[test]
fn the_same_runs_are_clean_without_sabotage() {
    for scenario in ["churn", "burst", "tight"] {
        for seed in 1..=3 {
            let _clean = Simulation::new(seed).named(scenario).run().assert_clean();
        }
    }
}
