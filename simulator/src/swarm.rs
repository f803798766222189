//! Many seeds at once, each drawing its own scenario.
//! Invariant: the result depends on the seeds alone, not on how many threads ran them.

use crate::{Simulation, parallel};
use serde::Serialize;

/// A seed that broke a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// The seed.
    pub seed: u64,
    /// What was broken first.
    pub what: String,
    /// The command that runs it again.
    pub replay: String,
}

/// What many seeds showed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Swarm {
    /// How many ran.
    pub seeds: u64,
    /// Those that broke a rule, by seed.
    pub failures: Vec<Failure>,
}

/// Runs `seeds`, on as many threads as there are cores. `progress` is told how many are done.
///
/// A seed that makes the code panic counts as a failure; the panic's own message goes to standard error.
#[must_use]
pub fn swarm(seeds: std::ops::Range<u64>, progress: impl Fn(u64) + Sync) -> Swarm {
    let count = seeds.end.saturating_sub(seeds.start);
    let failures = parallel::each(seeds, one, progress);
    Swarm { seeds: count, failures: failures.into_iter().flatten().collect() }
}

fn one(seed: u64) -> Option<Failure> {
    let replay = format!("spillway-sim run {} --seed {seed}", crate::scenario::SWARM);
    let Ok(report) = std::panic::catch_unwind(|| Simulation::new(seed).run()) else {
        return Some(Failure { seed, what: "it panicked".into(), replay });
    };
    let what = report.violations.first()?.to_string();
    Some(Failure { seed, what, replay })
}
