//! Deposits that are locked ahead of jobs, on a ledger that is slow.

use spillway_simulator::{Scenario, Simulation};

/// Bursts spill from one own slot to five strangers of different price and distance. A block takes 1.5 s, and a session can
/// be used for two minutes, so that many are opened in a short run.
fn slow_ledger(sessions_ahead: u32) -> Scenario {
    let text = r#"
        name = "slow-ledger"
        duration_s = 600
        fleet = [
            { name = "gateway", region = "france", balance_micro = 2_000_000, gpu = { model = "m", slots = 1, bytes_per_s = 300 } },
            { name = "near", region = "france", provide = true, price_output_micro = 600_000, gpu = { model = "m", slots = 2, bytes_per_s = 300 } },
            { name = "middle", count = 2, region = "us-east", provide = true, price_output_micro = 300_000, gpu = { model = "m", slots = 2, bytes_per_s = 300 } },
            { name = "far", count = 2, region = "us-west", provide = true, gpu = { model = "m", slots = 2, bytes_per_s = 300 } },
        ]
        clients = [{ fleet = "gateway", model = "m", arrivals = { kind = "burst", per_minute = 120, on_ms = 6000, off_ms = 9000 } }]
        market = { block_ms = 1500, session_s = 720, deposit_micro = 2_000 }
    "#;
    let mut scenario = Scenario::from_toml(text).expect("a scenario");
    scenario.market.sessions_ahead = sessions_ahead;
    scenario
}

/// How many jobs went to strangers from the second minute on, and how many of them waited for the ledger.
fn late(sessions_ahead: u32) -> (usize, usize) {
    let runs = (1..=3).map(|seed| Simulation::new(seed).scenario(slow_ledger(sessions_ahead)).run().assert_clean());
    let mut sum = (0, 0);
    for report in runs {
        let (spilled, waited) = report.ledger_waits.since(60_000);
        let p95 = report.ttft_ms.p95;
        println!("seed {}, {sessions_ahead} ahead: {waited} of {spilled} waited, ttft p95 {p95} ms", report.seed);
        sum = (sum.0 + spilled, sum.1 + waited);
    }
    sum
}

#[test]
fn with_sessions_ahead_next_to_no_job_waits_for_a_slow_ledger() {
    let (spilled, waited) = late(3);
    assert!(spilled > 500 && waited * 100 <= spilled, "{waited} of {spilled} waited");
    let (spilled, waited) = late(0);
    assert!(waited * 20 >= spilled, "without them only {waited} of {spilled} waited: the test shows nothing");
}
