//! How offers spread among thousands of nodes: each runs the shipped [`Discovery`](spillway_protocol::Discovery) machine,
//! and every notice, question and answer goes through its real encoding. `docs/discovery.md`.
//! Invariant: everything follows from the settings and the seed; nothing but time, connections and the gossip mesh is
//! made up, and what those cost is written down in `cost`.
//!
//! Not run here: libp2p itself. A signature is verified once in the whole world and then remembered ([`memo`]), since the
//! same notice reaches thousands of nodes.

mod cost;
mod memo;
mod nodes;
mod report;
mod world;

pub use report::{Discovered, Figures, Spread};

use crate::draws::Draws;
use std::process::ExitCode;
use std::time::Duration;

/// How a simulation of discovery is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// Nodes that are there at a time, Sybils not counted.
    pub nodes: usize,
    /// What everything random follows from.
    pub seed: u64,
    /// How long it is measured, after the network has come together.
    pub measured: Duration,
    /// Sybils for 100 subscribers of one shard, which they attack; 0 for none. 400 are four in five.
    pub sybils_percent: u32,
}

impl Setup {
    /// An hour of so many nodes.
    #[must_use]
    pub const fn new(nodes: usize, seed: u64) -> Self {
        Self { nodes, seed, measured: Duration::from_secs(3600), sybils_percent: 0 }
    }
}

/// Runs it.
#[must_use]
pub fn run(setup: Setup) -> Discovered {
    let mut world = world::World::new(setup);
    world.run();
    report::report(&world)
}

/// The arguments of `spillway-sim discovery`.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// How many nodes; several numbers, with commas between them, are shown side by side.
    #[arg(long, value_delimiter = ',', default_values_t = [100, 1_000])]
    nodes: Vec<usize>,
    /// What everything random follows from.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Hours that are measured, after twenty minutes in which the network comes together.
    #[arg(long, default_value_t = 1)]
    hours: u64,
    /// Sybils for 100 honest subscribers of one shard: 400 are four in five.
    #[arg(long, default_value_t = 0)]
    sybils: u32,
    /// Prints one JSON array.
    #[arg(long)]
    json: bool,
}

/// Does what the arguments say.
///
/// # Errors
/// If a number is out of its range; it is named.
pub fn command(args: &Args) -> anyhow::Result<ExitCode> {
    anyhow::ensure!(
        args.nodes.iter().all(|nodes| (10..=100_000).contains(nodes)) && !args.nodes.is_empty(),
        "--nodes: not between 10 and 100,000"
    );
    anyhow::ensure!((1..=24).contains(&args.hours), "--hours: not between 1 and 24");
    anyhow::ensure!(args.sybils <= 2_000, "--sybils: more than 2,000");
    let mut all = Vec::new();
    for nodes in &args.nodes {
        eprintln!("{nodes} nodes, {} h of virtual time", args.hours);
        let measured = Duration::from_secs(3600 * args.hours);
        all.push(run(Setup { nodes: *nodes, seed: args.seed, measured, sybils_percent: args.sybils }));
    }
    if args.json {
        println!("{}", serde_json::to_string(&all)?);
    } else {
        print!("{}", report::table(&all));
    }
    Ok(ExitCode::SUCCESS)
}

/// A stream of draws for one concern of this simulation.
fn draws(seed: u64, concern: &str) -> Draws {
    Draws::new(seed, &format!("discovery {concern}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn short(nodes: usize, seed: u64) -> Setup {
        Setup { measured: Duration::from_secs(900), ..Setup::new(nodes, seed) }
    }

    #[test]
    fn the_same_seed_gives_the_same_figures_and_another_seed_others() {
        let first = run(short(60, 1));
        assert_eq!(first, run(short(60, 1)));
        assert_ne!(first, run(short(60, 2)));
    }

    #[test]
    fn everybody_finds_everybody_and_nobody_pays_much() {
        let found = run(short(120, 3));
        assert!(found.known >= 0.98, "{found:?}");
        assert!(found.dead <= 0.10, "{found:?}");
        let newcomers = &found.newcomers;
        // Few come within a quarter of an hour; at some seeds, none.
        assert!(newcomers.half_s <= 5.0 && newcomers.most_s <= 180.0, "{found:?}");
        assert!(found.unused.mean <= 12_000.0, "{found:?}");
        assert_eq!(found.faults, 0, "honest nodes find no fault with each other");
    }

    #[test]
    fn four_sybils_for_each_honest_node_hide_no_honest_provider() {
        let setup = Setup { sybils_percent: 400, ..short(120, 4) };
        let eclipse = run(setup).eclipse.expect("there are Sybils");
        assert!(eclipse.sybils >= 4 * eclipse.honest, "{eclipse:?}");
        // Everybody hears of every honest provider. The 64 offers at hand are a sample of all, so that with four fifths Sybils
        // it holds an honest one only most of the time.
        assert!(eclipse.found_one >= 0.5, "{eclipse:?}");
        assert!(eclipse.known >= 0.95, "{eclipse:?}");
    }
}
