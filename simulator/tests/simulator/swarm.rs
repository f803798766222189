//! Two hundred seeds, each with a setting and faults of its own. Every check must hold in all of them.

use spillway_simulator::swarm::swarm;

#[test]
fn two_hundred_seeds_with_faults_pass() {
    let result = swarm(0..200, |_| {});
    assert_eq!(result.seeds, 200);
    let failures: Vec<_> =
        result.failures.iter().map(|failure| format!("{}\n  replay: {}", failure.what, failure.replay)).collect();
    assert!(failures.is_empty(), "{} of 200 seeds failed:\n{}", failures.len(), failures.join("\n"));
}
