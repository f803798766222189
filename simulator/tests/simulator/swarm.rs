//! Many seeds, each with a setting and faults of its own. Every check must hold in all of them.
//! `SPILLWAY_SEEDS` asks for more; the gate plays 1,000.

use spillway_simulator::swarm::swarm;

#[test]
fn seeds_with_faults_pass() {
    let count = std::env::var("SPILLWAY_SEEDS").map_or(60, |text| text.parse().expect("a number"));
    let result = swarm(0..count, |_| {});
    assert_eq!(result.seeds, count);
    let failures: Vec<_> =
        result.failures.iter().map(|failure| format!("{}\n  replay: {}", failure.what, failure.replay)).collect();
    assert!(failures.is_empty(), "{} of {count} seeds failed:\n{}", failures.len(), failures.join("\n"));
}
