//! What a run showed.
//! Invariant: the JSON of a [`Report`] has exactly the fields of the simulator's documentation, in that order.

use crate::check::{LedgerWaits, Violation, Went};
use crate::course::Course;
use crate::world::World;
use serde::Serialize;
use std::collections::BTreeMap;

/// How a run's jobs went. A job whose client left counts in `total` alone.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct JobCounts {
    /// Brought by clients.
    pub total: u64,
    /// Ended well on own hardware.
    pub own: u64,
    /// Ended well, some of it at a stranger's.
    pub network: u64,
    /// Broken off, lost with their gateway, or brought to one that was down.
    pub failed: u64,
    /// Turned away before their first text.
    pub refused: u64,
}

/// Milliseconds from a job's submission to its first text.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Percentiles {
    /// Half of all jobs are no slower.
    pub p50: u64,
    /// 95 % are no slower.
    pub p95: u64,
    /// 99 % are no slower.
    pub p99: u64,
}

impl Percentiles {
    /// Of a sorted list.
    fn of(sorted: &[u64]) -> Self {
        let at = |per_mille: usize| {
            let index = (sorted.len() * per_mille).div_ceil(1000).saturating_sub(1);
            sorted.get(index).copied().unwrap_or_default()
        };
        Self { p50: at(500), p95: at(950), p99: at(990) }
    }
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// The scenario's name.
    pub scenario: String,
    /// The seed.
    pub seed: u64,
    /// Of all that peers were told, in order.
    pub hash: String,
    /// How many times a peer was told something.
    pub events: u64,
    /// How the jobs went.
    pub jobs: JobCounts,
    /// The share of all jobs whose first text came in time.
    pub slo: f64,
    /// How long first texts took.
    pub ttft_ms: Percentiles,
    /// The same, of the jobs that each fleet's own clients brought; not in the JSON.
    #[serde(skip)]
    pub ttft_ms_by_fleet: BTreeMap<String, Percentiles>,
    /// What each fleet's accounts were paid for serving strangers, in micro-credits; not in the JSON.
    #[serde(skip)]
    pub earned_micro_by_fleet: BTreeMap<String, u64>,
    /// What all jobs cost, in credits.
    pub cost: f64,
    /// The providers' share of what was settled; 1 if nothing was.
    pub provider_share: f64,
    /// What was broken, oldest first; a run ends at the first moment something is.
    pub violations: Vec<Violation>,
    /// Which jobs had to wait for a deposit.
    #[serde(skip)]
    pub ledger_waits: LedgerWaits,
    /// How it went over time; not in the JSON.
    #[serde(skip)]
    pub course: Course,
    /// The command that runs it again.
    #[serde(skip)]
    pub replay: String,
}

impl Report {
    pub(crate) fn of(world: &World, slo_ms: u64, replay: String) -> Self {
        let checks = world.checks();
        let first = checks.first_ms();
        let in_time = first.partition_point(|ms| *ms <= slo_ms) as u64;
        let (settled, theirs) = world.settled();
        let share = |part: u64, whole: u64| if whole == 0 { 1.0 } else { part as f64 / whole as f64 };
        Self {
            scenario: world.scenario.name.clone(),
            seed: world.seed,
            hash: world.hash(),
            events: world.events(),
            jobs: JobCounts {
                total: checks.total(),
                own: checks.went(Went::Own),
                network: checks.went(Went::Network),
                failed: checks.went(Went::Failed),
                refused: checks.went(Went::Refused),
            },
            slo: share(in_time, checks.total()),
            ttft_ms: Percentiles::of(&first),
            ttft_ms_by_fleet: world
                .fleets()
                .map(|(name, hosts)| (name.clone(), Percentiles::of(&checks.first_ms_of(|host| hosts.contains(&host)))))
                .collect(),
            earned_micro_by_fleet: world.fleets().map(|(name, hosts)| (name.clone(), world.earned(hosts))).collect(),
            cost: checks.cost() as f64 / 1e6,
            provider_share: share(theirs, settled),
            violations: checks.violations().to_vec(),
            ledger_waits: checks.ledger_waits().clone(),
            course: checks.course().clone(),
            replay,
        }
    }

    /// Passes on a run in which every check held.
    ///
    /// # Panics
    /// With seed, scenario, what was broken and the command that replays it, if a check did not hold.
    #[track_caller]
    pub fn assert_clean(self) -> Self {
        assert!(self.violations.is_empty(), "{}", self.failure().unwrap_or_default());
        self
    }

    /// What was broken first, and the command that replays it; `None` if nothing was.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let first = self.violations.first()?;
        Some(format!("scenario {}, seed {}: {first}\n  replay: {}", self.scenario, self.seed, self.replay))
    }
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let jobs = &self.jobs;
        writeln!(f, "scenario       {} (seed {}, {} events)", self.scenario, self.seed, self.events)?;
        writeln!(f, "hash           {}", self.hash)?;
        writeln!(
            f,
            "jobs           {} in all: {} own, {} network, {} failed, {} refused",
            jobs.total, jobs.own, jobs.network, jobs.failed, jobs.refused
        )?;
        let Percentiles { p50, p95, p99 } = self.ttft_ms;
        writeln!(f, "first text     {p50} ms (half), {p95} ms (95 %), {p99} ms (99 %)")?;
        writeln!(f, "in time        {:.1} %", self.slo * 100.0)?;
        writeln!(f, "cost           {:.6} credits", self.cost)?;
        writeln!(f, "provider share {:.2} %", self.provider_share * 100.0)?;
        if self.violations.is_empty() {
            return writeln!(f, "checks         all held");
        }
        for violation in &self.violations {
            writeln!(f, "violation      {violation}")?;
        }
        writeln!(f, "replay         {}", self.replay)
    }
}
