//! Drives Spillway's own protocol and ledger code in virtual time, under load and faults.
//!
//! What runs here is what ships: every peer is a [`Peer`], every payment goes through the real book, every frame through
//! the real encoding. Only time, network, disks, GPUs and clients are made up, and all of them follow from one seed. So
//! what a run finds is a bug in the product, and the seed is the bug report.
//!
//! ```
//! use spillway_simulator::Simulation;
//!
//! // An hour of wall-clock time takes well under a second.
//! let report = Simulation::new(7).named("burst").run().assert_clean();
//! assert!(report.jobs.own > 0 && report.jobs.network > 0, "bursts spill over");
//! assert!(report.provider_share >= 0.7);
//!
//! // The same seed is the same run.
//! assert_eq!(report.hash, Simulation::new(7).named("burst").run().hash);
//! ```
//!
//! Your own setting is a TOML file, or a [`Scenario`] made in code:
//!
//! ```
//! use spillway_simulator::{Scenario, Simulation};
//!
//! let scenario = Scenario::from_toml(
//!     r#"
//!     name = "one stranger"
//!     duration_s = 20
//!     fleet = [
//!         { name = "me", region = "france", balance_micro = 1_000_000 },
//!         { name = "stranger", region = "us-east", provide = true, gpu = { model = "m", slots = 4, bytes_per_s = 500 } },
//!     ]
//!     clients = [{ fleet = "me", model = "m", arrivals = { kind = "poisson", per_minute = 30 } }]
//!     "#,
//! )?;
//! let report = Simulation::new(1).scenario(scenario).run().assert_clean();
//! assert_eq!(report.jobs.own, 0, "without own hardware everything goes to the stranger");
//! # Ok::<(), spillway_simulator::ScenarioError>(())
//! ```

pub mod adversary;
mod books;
mod carry;
pub mod check;
pub mod cli;
pub mod course;
pub mod data;
pub mod discovery;
pub mod draws;
pub mod engine;
mod faults;
pub mod fleet;
mod gpu;
mod host;
mod idle;
mod log;
mod network;
pub mod observed;
mod oracle;
pub mod page;
pub mod paper;
mod parallel;
mod post;
pub mod report;
pub mod scenario;
pub mod swarm;
mod timeline;
pub mod traces;
pub mod trial;
mod workload;
mod world;

pub use adversary::Adversary;
pub use check::{Rule, Violation};
pub use observed::Observed;
pub use report::Report;
pub use scenario::{Scenario, ScenarioError};

use spillway_protocol::Peer;

/// One run: a seed, a scenario, and what a test wants to change.
pub struct Simulation {
    seed: u64,
    scenario: Scenario,
    source: String,
    trace: bool,
    hook: world::Hook,
}

impl Simulation {
    /// A run whose scenario is drawn by its seed, until another is set.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        let source = scenario::SWARM.to_owned();
        Self { seed, scenario: Scenario::drawn(seed), source, trace: false, hook: Box::new(|_, _| {}) }
    }

    /// Runs this scenario.
    ///
    /// # Panics
    /// If it does not hold; check it before with [`Scenario::validate`].
    #[must_use]
    pub fn scenario(mut self, scenario: Scenario) -> Self {
        if let Err(error) = scenario.validate() {
            panic!("scenario {}: {error}", scenario.name);
        }
        self.source = scenario.name.clone();
        self.scenario = scenario;
        self
    }

    /// Runs the built-in scenario of that name.
    ///
    /// # Panics
    /// If there is none; [`Scenario::named`] gives an error instead.
    #[must_use]
    pub fn named(self, name: &str) -> Self {
        let scenario = Scenario::named(name, self.seed).unwrap_or_else(|error| panic!("{error}"));
        self.scenario(scenario)
    }

    /// What the replay command names, if it is not the scenario's name: a file.
    #[must_use]
    pub fn from_file(mut self, path: &str) -> Self {
        path.clone_into(&mut self.source);
        self
    }

    /// Prints each event and effect to standard error.
    #[must_use]
    pub const fn trace(mut self, on: bool) -> Self {
        self.trace = on;
        self
    }

    /// Calls `hook` with each peer that is made, restarts included, and its node's name (fleet and number).
    #[must_use]
    pub fn with_peers(mut self, hook: impl Fn(&str, &mut Peer) + 'static) -> Self {
        self.hook = Box::new(hook);
        self
    }

    /// Runs to the end: until the last deposit is back, or the first check fails.
    #[must_use]
    pub fn run(self) -> Report {
        self.observe().report
    }

    /// As [`Simulation::run`], and tells of each job and node.
    #[must_use]
    pub fn observe(self) -> Observed {
        let slo_ms = self.scenario.slo_ms;
        let replay = format!("spillway-sim run {} --seed {}", self.source, self.seed);
        let mut world = world::World::new(self.seed, self.scenario, self.hook, self.trace);
        world.run();
        Observed::of(&world, Report::of(&world, slo_ms, replay))
    }
}
