//! Streams that survive their provider's death: long answers, and providers that leave for good in the middle of one, each
//! replaced by a newcomer. Half of them vanish without a word, as in a power cut.
//! Invariant: whether an answer is whole is judged by the rules of every run, byte by byte against the oracle.

use super::bound::{Bound, Side};
use super::{Failure, Spread};
use crate::check::{LegEnd, Rule, Went};
use crate::network::Nat;
use crate::scenario::{
    Arrivals, Clients, FaultRules, Fleet, GpuRules, MarketRules, NetworkRules, Preference, Scenario,
};
use crate::{Observed, Simulation, parallel};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;

/// The least share of streams that must survive, in percent.
pub const SURVIVE_PERCENT: f64 = 99.0;
/// A death is noticed sooner than this, on a stream that was under way, in milliseconds.
pub const NOTICE_MS: f64 = 2000.0;

/// One rate of churn.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// How many of a hundred providers are replaced in an hour.
    pub replaced_percent_per_hour: f64,
    /// Virtual hours, all runs together.
    pub hours: f64,
    /// Providers that left for good.
    pub deaths: u64,
    /// Answers asked for.
    pub streams: u64,
    /// How many of a hundred of them ended whole.
    pub whole_percent: f64,
    /// Answers whose provider left in the middle of them.
    pub hit: u64,
    /// How many of a hundred of these ended whole all the same.
    pub survived_percent: f64,
    /// Runs in which a client's text was not the oracle's, byte for byte.
    pub text_broken: u64,
    /// From a provider's death to the moment in which its consumer gives it up, on streams that were under way.
    pub noticed: Spread,
    /// From a provider's death to the opening of the next leg.
    pub opened: Spread,
    /// From a provider's death to the next leg's first text.
    pub went_on: Spread,
}

/// What the trial showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Streams {
    /// Runs for each row.
    pub seeds: u64,
    /// By rate of churn.
    pub rows: Vec<Row>,
    /// What is promised.
    pub bounds: Vec<Bound>,
    /// Runs in which a rule did not hold.
    pub failures: Vec<Failure>,
}

impl Streams {
    /// Whether every rule and every bound held.
    #[must_use]
    pub fn held(&self) -> bool {
        self.failures.is_empty() && self.bounds.iter().all(|bound| bound.held)
    }
}

/// What is promised of a row.
#[must_use]
pub fn bounds(row: &Row) -> Vec<Bound> {
    let churn = format!("{:.0} % an hour", row.replaced_percent_per_hour);
    let of = |count: u64, figure: f64| (count > 0).then_some(figure);
    vec![
        Bound::new(
            format!("{churn}, answers that end whole"),
            of(row.streams, row.whole_percent),
            Side::AtLeast,
            SURVIVE_PERCENT,
            "%",
        ),
        Bound::new(
            format!("{churn}, of those hit in the midst"),
            of(row.hit, row.survived_percent),
            Side::AtLeast,
            SURVIVE_PERCENT,
            "%",
        ),
        Bound::new(
            format!("{churn}, runs with bytes lost or doubled"),
            of(row.streams, row.text_broken as f64),
            Side::AtMost,
            0.0,
            "runs",
        ),
        Bound::new(
            format!("{churn}, longest until a death is noticed"),
            of(row.noticed.count, row.noticed.max_ms as f64),
            Side::Below,
            NOTICE_MS,
            "ms",
        ),
    ]
}

/// Two gateways without hardware and 24 providers in four regions, about half of whose slots are taken by answers of half a
/// minute to a minute and a half.
#[must_use]
pub fn scenario(duration_s: u64, replaced_per_mille_per_hour: u64) -> Scenario {
    let provider = |region: &str| Fleet {
        name: format!("provider-{region}"),
        count: 6,
        region: region.into(),
        starts_s: 0,
        balance_micro: 0,
        provide: true,
        price_input_micro: 20_000,
        price_output_micro: 200_000,
        price_cached_micro: None,
        reserved_slots: 0,
        sell: "always".into(),
        preempt: true,
        nat: Nat::Open,
        adversary: None,
        gpu: Some(GpuRules {
            model: "m".into(),
            slots: 2,
            bytes_per_s: 200,
            prefill_bytes_per_s: 40_000,
            event_bytes: 100,
        }),
    };
    let gateway = |region: &str| Fleet {
        name: format!("gateway-{region}"),
        count: 1,
        starts_s: 0,
        balance_micro: 1_000_000_000,
        provide: false,
        gpu: None,
        ..provider(region)
    };
    let clients = |region: &str| Clients {
        fleet: format!("gateway-{region}"),
        model: "m".into(),
        // 24 answers of a minute at once, in all.
        arrivals: Arrivals::Poisson { per_minute: 12 },
        prompt_bytes: [200, 4000],
        answer_bytes: [6000, 18_000],
        prefer: Preference::OwnFirst,
        price_input_max_micro: 1_000_000,
        price_output_max_micro: 1_000_000,
        leave_per_mille: 0,
        bad_per_mille: 0,
        single_per_mille: 0,
    };
    Scenario {
        name: format!("streams, {} % an hour", replaced_per_mille_per_hour as f64 / 10.0),
        about: "Long answers, and providers that leave for good in the middle of one.".into(),
        duration_s,
        slo_ms: 2000,
        fleets: vec![
            gateway("france"),
            gateway("us-east"),
            provider("france"),
            provider("us-east"),
            provider("us-west"),
            provider("asia-southeast"),
        ],
        clients: vec![clients("france"), clients("us-east")],
        network: NetworkRules { jitter_us: 10_000, ..NetworkRules::default() },
        market: MarketRules {
            deposit_micro: 50_000,
            window: 1024,
            session_s: duration_s + 1200,
            settle_after_s: 60,
            ..MarketRules::default()
        },
        // They leave until the last clients come.
        faults: FaultRules { until_s: duration_s, replaced_per_mille_per_hour, ..FaultRules::default() },
    }
}

#[derive(Debug, Default)]
struct Tally {
    deaths: u64,
    streams: u64,
    whole: u64,
    hit: u64,
    survived: u64,
    text_broken: u64,
    noticed: Vec<u64>,
    opened: Vec<u64>,
    went_on: Vec<u64>,
}

impl Tally {
    fn add(&mut self, run: &Observed) {
        self.deaths += run.hosts.iter().filter(|host| host.left.is_some()).count() as u64;
        let text = |rule| matches!(rule, Rule::TextDiffers | Rule::TextMissing);
        self.text_broken += u64::from(run.report.violations.iter().any(|one| text(one.rule)));
        let mut hit = BTreeMap::new();
        for (index, leg) in run.legs.iter().enumerate() {
            let Some(left) = run.hosts[leg.provider].left else { continue };
            // Under way: opened before, some text has arrived, and not over by itself.
            let under_way =
                leg.end == LegEnd::Broken && leg.first.is_some_and(|first| first <= left) && leg.over >= left;
            if !under_way {
                continue;
            }
            hit.insert(leg.job, ());
            self.noticed.push(leg.over.0 - left.0);
            let mut later = run.legs[index + 1..].iter().filter(|next| next.job == leg.job && next.opened >= leg.over);
            self.opened.extend(later.clone().map(|next| next.opened.0 - left.0).min());
            self.went_on.extend(later.find_map(|next| next.first).map(|first| first.0 - left.0));
        }
        for job in &run.jobs {
            let whole = matches!(job.went, Went::Own | Went::Network);
            self.streams += 1;
            self.whole += u64::from(whole);
            if hit.contains_key(&job.job) {
                self.hit += 1;
                self.survived += u64::from(whole);
            }
        }
    }
}

/// What some runs showed of streams and deaths.
#[must_use]
pub fn of_runs(runs: &[Observed]) -> Row {
    let mut tally = Tally::default();
    for run in runs {
        tally.add(run);
    }
    let percent = |part: u64, whole: u64| if whole == 0 { 100.0 } else { part as f64 * 100.0 / whole as f64 };
    Row {
        replaced_percent_per_hour: 0.0,
        hours: 0.0,
        deaths: tally.deaths,
        streams: tally.streams,
        whole_percent: percent(tally.whole, tally.streams),
        hit: tally.hit,
        survived_percent: percent(tally.survived, tally.hit),
        text_broken: tally.text_broken,
        noticed: Spread::of(tally.noticed),
        opened: Spread::of(tally.opened),
        went_on: Spread::of(tally.went_on),
    }
}

/// Plays the trial: hours at a tenth of the providers an hour, and shorter stretches in which all are replaced three times an
/// hour. `progress` is told how many runs of both are done.
pub fn streams(seeds: Range<u64>, progress: impl Fn(u64) + Sync) -> Streams {
    let count = seeds.end.saturating_sub(seeds.start);
    let mut rows = Vec::new();
    let mut failures = Vec::new();
    for (index, (duration_s, replaced)) in [(3600, 100), (600, 3000)].into_iter().enumerate() {
        let setting = scenario(duration_s, replaced);
        let before = index as u64 * count;
        let runs = parallel::each(
            seeds.clone(),
            |seed| Simulation::new(seed).scenario(setting.clone()).observe(),
            |done| progress(before + done),
        );
        failures.extend(
            runs.iter().filter_map(|run| {
                run.report.violations.first().map(|one| Failure::of("streams", run.report.seed, one))
            }),
        );
        let mut row = of_runs(&runs);
        row.replaced_percent_per_hour = replaced as f64 / 10.0;
        row.hours = (count * duration_s) as f64 / 3600.0;
        rows.push(row);
    }
    let bounds = rows.iter().flat_map(bounds).collect();
    Streams { seeds: count, rows, bounds, failures }
}

impl std::fmt::Display for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for row in &self.rows {
            writeln!(
                f,
                "{:.0} % of providers replaced an hour, {:.1} hours, {} deaths",
                row.replaced_percent_per_hour, row.hours, row.deaths
            )?;
            writeln!(f, "  streams           {}, {:.3} % whole", row.streams, row.whole_percent)?;
            writeln!(f, "  hit in the midst  {}, {:.2} % survived", row.hit, row.survived_percent)?;
            writeln!(f, "  noticed           {}", row.noticed)?;
            writeln!(f, "  next leg opened   {}", row.opened)?;
            writeln!(f, "  text went on      {}", row.went_on)?;
        }
        for bound in &self.bounds {
            writeln!(f, "{bound}")?;
        }
        for failure in &self.failures {
            writeln!(f, "seed {}: {}\n  replay: {}", failure.seed, failure.what, failure.replay)?;
        }
        Ok(())
    }
}
