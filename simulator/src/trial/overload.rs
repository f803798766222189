//! Overload: more work than there are slots, at many gateways and providers at once, and not one job turned away while a
//! slot that it could have had stands idle. And what selling idle slots costs the owner's own jobs.
//! Invariant: nothing but load goes wrong here, so that no refusal has an excuse.

use super::{Failure, Spread};
use crate::check::Went;
use crate::draws::Draws;
use crate::network::{DRAWN_REGIONS as REGIONS, Nat};
use crate::scenario::{
    Arrivals, Clients, FaultRules, Fleet, GpuRules, MarketRules, NetworkRules, Preference, Scenario,
};
use crate::{Simulation, parallel};
use serde::Serialize;
use std::ops::Range;

/// What overload showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Overload {
    /// Runs.
    pub seeds: u64,
    /// Jobs that clients brought.
    pub jobs: u64,
    /// Served on own hardware.
    pub own: u64,
    /// Served by strangers, wholly or in part.
    pub network: u64,
    /// Turned away.
    pub refused: u64,
    /// Of these, while a slot that they could have had stood idle.
    pub wrongful: u64,
    /// Broken off after their first text.
    pub failed: u64,
    /// From a job's submission to its first text.
    pub first_text: Spread,
    /// From a refused job's submission to its refusal.
    pub refusal: Spread,
    /// Own jobs' first text at nodes that sell nothing, under the same own load as the next.
    pub owner_alone: Spread,
    /// Own jobs' first text at nodes whose idle slots are sold to twice as many strangers as there are slots.
    pub owner_selling: Spread,
    /// Strangers' jobs that these nodes served beside.
    pub sold: u64,
    /// Runs in which a rule did not hold.
    pub failures: Vec<Failure>,
}

/// The scenario that a seed draws: one to four gateways, some with an own slot or two, two to six providers, and one to
/// three times the work that all of them can do.
#[must_use]
pub fn scenario(seed: u64) -> Scenario {
    let mut draws = Draws::new(seed, "trial overload");
    let region = |draws: &mut Draws| REGIONS[draws.below(REGIONS.len() as u64) as usize].to_owned();
    let bytes_per_s = draws.within([150, 500]);
    let gpu = |slots, draws: &mut Draws| GpuRules {
        model: "m".into(),
        slots,
        bytes_per_s,
        prefill_bytes_per_s: draws.within([5000, 40_000]),
        event_bytes: draws.within([40, 120]),
    };
    let mut fleets = Vec::new();
    let mut clients = Vec::new();
    let mut slots = 0;
    for index in 0..draws.within([2, 4]) {
        let (count, each) = (draws.within([1, 2]) as u32, draws.within([1, 4]) as u32);
        slots += count * each;
        fleets.push(Fleet {
            name: format!("provider-{index}"),
            count,
            region: region(&mut draws),
            starts_s: 0,
            balance_micro: 0,
            provide: true,
            price_input_micro: draws.within([0, 200_000]),
            price_cached_micro: None,
            sell: "always".into(),
            preempt: true,
            price_output_micro: draws.within([100_000, 800_000]),
            reserved_slots: 0,
            nat: Nat::Open,
            adversary: None,
            gpu: Some(gpu(each, &mut draws)),
        });
    }
    let groups = draws.within([1, 3]);
    let answer = [100, draws.within([400, 2000])];
    for index in 0..groups {
        let (count, own) = (draws.within([1, 2]) as u32, draws.below(3) as u32);
        slots += count * own;
        let provide = own > 0 && draws.happens(400_000);
        fleets.push(Fleet {
            name: format!("gateway-{index}"),
            count,
            region: region(&mut draws),
            starts_s: 0,
            balance_micro: 1_000_000_000,
            provide,
            price_input_micro: 100_000,
            price_cached_micro: None,
            sell: "always".into(),
            preempt: true,
            price_output_micro: draws.within([100_000, 800_000]),
            reserved_slots: u32::from(own > 0 && draws.happens(500_000)),
            nat: Nat::Open,
            adversary: None,
            gpu: (own > 0).then(|| gpu(own, &mut draws)),
        });
    }
    // A job takes its answer's time, and a second for the rest.
    let job_ms = (answer[0] + answer[1]) / 2 * 1000 / bytes_per_s + 1000;
    let load = draws.within([100, 300]);
    let per_minute = (u64::from(slots) * 60_000 * load / 100 / job_ms / groups).max(1);
    for index in 0..groups {
        clients.push(Clients {
            fleet: format!("gateway-{index}"),
            model: "m".into(),
            arrivals: if draws.happens(500_000) {
                Arrivals::Poisson { per_minute }
            } else {
                Arrivals::Burst { per_minute: per_minute * 3, on_ms: 4000, off_ms: 8000 }
            },
            prompt_bytes: [40, draws.within([100, 3000])],
            answer_bytes: answer,
            prefer: if draws.happens(200_000) { Preference::Any } else { Preference::OwnFirst },
            price_input_max_micro: 1_000_000,
            // Some find part of the providers too dear.
            price_output_max_micro: if draws.happens(250_000) { 400_000 } else { 1_000_000 },
            leave_per_mille: draws.within([0, 50]) as u32,
            bad_per_mille: draws.within([0, 10]) as u32,
            single_per_mille: draws.within([0, 200]) as u32,
        });
    }
    Scenario {
        name: format!("overload {seed}"),
        about: "More work than slots, and nothing else goes wrong.".into(),
        duration_s: 30,
        slo_ms: 2000,
        fleets,
        clients,
        network: NetworkRules { jitter_us: draws.within([0, 30_000]), ..NetworkRules::default() },
        market: MarketRules {
            deposit_micro: 10_000_000,
            queue_max: draws.within([0, 16]),
            queue_wait_s: draws.within([1, 15]),
            block_ms: draws.within([10, 200]),
            window: draws.within([128, 2048]),
            ..MarketRules::default()
        },
        faults: FaultRules::default(),
    }
}

/// Two nodes with four slots each, own clients that keep half of them busy, and if they sell what is idle, strangers that
/// would take twice what there is.
#[must_use]
pub fn owners(seed: u64, selling: bool) -> Scenario {
    let mut draws = Draws::new(seed, "trial overload owners");
    let gpu = GpuRules { model: "m".into(), slots: 4, bytes_per_s: 300, prefill_bytes_per_s: 20_000, event_bytes: 60 };
    let owner = Fleet {
        name: "owner".into(),
        count: 2,
        region: "france".into(),
        starts_s: 0,
        balance_micro: 0,
        provide: selling,
        price_input_micro: 100_000,
        price_cached_micro: None,
        sell: "always".into(),
        preempt: true,
        price_output_micro: 400_000,
        reserved_slots: 1,
        nat: Nat::Open,
        adversary: None,
        gpu: Some(gpu.clone()),
    };
    let stranger = Fleet {
        name: "stranger".into(),
        count: 1,
        region: "us-east".into(),
        starts_s: 0,
        balance_micro: 1_000_000_000,
        provide: false,
        reserved_slots: 0,
        nat: Nat::Open,
        adversary: None,
        gpu: None,
        ..owner.clone()
    };
    let answer = [200, 1000];
    // 2.5 s each, 8 slots: half of them busy.
    let own = Clients {
        fleet: "owner".into(),
        model: "m".into(),
        arrivals: Arrivals::Poisson { per_minute: 96 },
        prompt_bytes: [100, draws.within([500, 2000])],
        answer_bytes: answer,
        prefer: Preference::Own,
        price_input_max_micro: 1_000_000,
        price_output_max_micro: 1_000_000,
        leave_per_mille: 0,
        bad_per_mille: 0,
        single_per_mille: 0,
    };
    let theirs = Clients {
        fleet: "stranger".into(),
        arrivals: Arrivals::Poisson { per_minute: 384 },
        prefer: Preference::OwnFirst,
        ..own.clone()
    };
    Scenario {
        name: format!("owners {seed}"),
        about: "Own jobs beside strangers who want twice what there is.".into(),
        duration_s: 60,
        slo_ms: 2000,
        fleets: vec![owner, stranger],
        clients: if selling { vec![own, theirs] } else { vec![own] },
        network: NetworkRules::default(),
        market: MarketRules { deposit_micro: 10_000_000, ..MarketRules::default() },
        faults: FaultRules::default(),
    }
}

/// Plays the trial.
pub fn overload(seeds: Range<u64>, progress: impl Fn(u64) + Sync) -> Overload {
    const OWNERS_EVERY: u64 = 10;
    let count = seeds.end.saturating_sub(seeds.start);
    let runs = parallel::each(
        seeds,
        |seed| {
            let main = Simulation::new(seed).scenario(scenario(seed)).observe();
            // One seed in ten is enough to compare owners by.
            let owners = seed
                .is_multiple_of(OWNERS_EVERY)
                .then(|| [false, true].map(|selling| Simulation::new(seed).scenario(owners(seed, selling)).observe()));
            (main, owners)
        },
        progress,
    );
    let mut total = Overload {
        seeds: count,
        jobs: 0,
        own: 0,
        network: 0,
        refused: 0,
        wrongful: 0,
        failed: 0,
        first_text: Spread::default(),
        refusal: Spread::default(),
        owner_alone: Spread::default(),
        owner_selling: Spread::default(),
        sold: 0,
        failures: Vec::new(),
    };
    let (mut first, mut refusal, mut own) = (Vec::new(), Vec::new(), [Vec::new(), Vec::new()]);
    for (main, owners) in runs {
        let jobs = main.report.jobs;
        total.jobs += jobs.total;
        total.own += jobs.own;
        total.network += jobs.network;
        total.refused += jobs.refused;
        total.failed += jobs.failed;
        first.extend(main.jobs.iter().filter_map(|job| job.first_us));
        refusal.extend(main.jobs.iter().filter(|job| job.went == Went::Refused).map(|job| job.total_us));
        let mut reports = vec![&main.report];
        for (index, run) in owners.iter().flatten().enumerate() {
            own[index].extend(run.jobs_of("owner", &[Went::Own]).filter_map(|job| job.first_us));
            total.sold += run.jobs_of("stranger", &[Went::Network]).count() as u64;
            reports.push(&run.report);
        }
        for report in reports {
            let wrongful = report.violations.iter().filter(|one| one.rule == crate::Rule::WrongfulRefusal).count();
            total.wrongful += wrongful as u64;
            total.failures.extend(report.violations.first().map(|one| Failure::of("overload", report.seed, one)));
        }
    }
    total.first_text = Spread::of(first);
    total.refusal = Spread::of(refusal);
    let [alone, selling] = own;
    (total.owner_alone, total.owner_selling) = (Spread::of(alone), Spread::of(selling));
    total
}

impl std::fmt::Display for Overload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { seeds, jobs, own, network, refused, wrongful, failed, .. } = self;
        writeln!(f, "runs               {seeds}")?;
        writeln!(f, "jobs               {jobs}: {own} own, {network} network, {refused} refused, {failed} failed")?;
        writeln!(f, "wrongful refusals  {wrongful}")?;
        writeln!(f, "first text         {}", self.first_text)?;
        writeln!(f, "until refusal      {}", self.refusal)?;
        writeln!(f, "own jobs' first text, selling nothing     {}", self.owner_alone)?;
        writeln!(f, "own jobs' first text, selling what is idle {} beside {} sold", self.owner_selling, self.sold)?;
        for failure in &self.failures {
            writeln!(f, "seed {}: {}\n  replay: {}", failure.seed, failure.what, failure.replay)?;
        }
        Ok(())
    }
}
