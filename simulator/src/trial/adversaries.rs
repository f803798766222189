//! Adversaries: each kind at no, a tenth, a third and half of the providers or of the consumers. What honest consumers lose,
//! what honest providers give for nothing, what the adversary gains, and how soon it is left out.
//! Invariant: the bounds of market.md are rules of every run (`ConsumerExposed`, `DeliveredUnpaid`); the rest are figures.

use super::bound::{Bound, Side};
use super::{Failure, Spread};
use crate::adversary::Adversary;
use crate::check::{LegEnd, Went};
use crate::network::Nat;
use crate::scenario::{
    Arrivals, Clients, FaultRules, Fleet, GpuRules, MarketRules, NetworkRules, Preference, Scenario,
};
use crate::{Observed, Simulation, parallel};
use serde::Serialize;
use std::collections::BTreeMap;
use std::ops::Range;

/// How many nodes of the side that has adversaries in it.
const NODES: u32 = 30;
/// For how long clients keep asking, in seconds.
const DURATION_S: u64 = 120;
/// A quote-refuser gets no more jobs of one consumer than this to refuse.
const REFUSALS_MAX: f64 = 20.0;
/// Of a hundred honest jobs at most so many are not served.
const UNSERVED_PERCENT: f64 = 1.0;
/// How many of them are adversaries, in the order of the tables.
pub const SHARES: [u32; 4] = [0, 3, 10, 15];

/// One kind at one share.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// How they break the rules.
    pub adversary: Adversary,
    /// How many of a hundred providers, or consumers, do.
    pub share_percent: f64,
    /// Jobs of honest consumers.
    pub jobs: u64,
    /// How many of a hundred ended well.
    pub served_percent: f64,
    /// How many of a hundred legs of honest consumers went to adversaries.
    pub legs_percent: f64,
    /// What honest consumers paid for nothing, in credits per 1,000 jobs of theirs.
    pub loss_per_1000_jobs: f64,
    /// The most that one of them lost to one provider, in what it may lose there: for each leg that broke off a prompt
    /// and a window, or one event that its provider said was larger, and what was paid ahead for legs that ran beside it.
    pub loss_of_bound: f64,
    /// The most that one honest consumer lost to one provider, in credits.
    pub loss_max: f64,
    /// What honest consumers lost beyond what they may lose, in credits.
    pub loss_beyond: f64,
    /// What the adversaries had beyond the worth of what they delivered, or consumed beyond what they paid, in credits.
    pub gain: f64,
    /// What honest providers delivered and were not paid, in credits.
    pub unpaid: f64,
    /// The most text that an honest provider gave an adversary that came once, in windows. The opening of a second job would
    /// pay for the first one's text.
    pub given_windows: f64,
    /// How often an adversary came once to an honest provider.
    pub came_once: u64,
    /// Legs at adversaries that delivered text.
    pub legs_with_text: u64,
    /// Of these, those whose receipt an honest consumer signed.
    pub legs_signed: u64,
    /// Text that honest providers' hardware made and nobody paid for, in bytes per job of an adversary.
    pub wasted_bytes_per_job: f64,
    /// Jobs that one honest consumer lost to one adversary's refusal or silence: the most, and the mean.
    pub tries_max: u64,
    /// See `tries_max`.
    pub tries_mean: f64,
    /// From a job's submission to its first text, for honest consumers.
    pub first_text: Spread,
}

/// What 1,000 names of one owner bring it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SybilRow {
    /// What they do.
    pub what: String,
    /// How many names.
    pub names: u32,
    /// Honest providers beside them.
    pub honest: u32,
    /// Jobs of honest consumers.
    pub jobs: u64,
    /// How many of a hundred ended well.
    pub served_percent: f64,
    /// How many of a hundred legs went to the Sybils.
    pub legs_percent: f64,
    /// How many legs went to one Sybil for each that went to one honest provider.
    pub rank: f64,
    /// What honest consumers paid for nothing, in credits per 1,000 jobs.
    pub loss_per_1000_jobs: f64,
    /// What the owner spent on the books, all its accounts together, in credits; below zero it gained.
    pub cost: f64,
    /// From a job's submission to its first text.
    pub first_text: Spread,
}

/// What adversaries showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Adversaries {
    /// Runs for each row.
    pub seeds: u64,
    /// By kind and share.
    pub rows: Vec<Row>,
    /// 1,000 names of one owner.
    pub sybils: Vec<SybilRow>,
    /// What is promised.
    pub bounds: Vec<Bound>,
    /// Runs in which a rule did not hold.
    pub failures: Vec<Failure>,
}

fn provider(name: &str, count: u32, price_output_micro: u64, adversary: Option<Adversary>) -> Fleet {
    Fleet {
        name: name.into(),
        count,
        region: "france".into(),
        balance_micro: 0,
        provide: true,
        price_input_micro: 50_000,
        price_output_micro,
        price_cached_micro: None,
        sell: "always".into(),
        preempt: true,
        reserved_slots: 0,
        nat: Nat::Open,
        adversary,
        gpu: Some(GpuRules {
            model: "m".into(),
            slots: 2,
            bytes_per_s: 300,
            prefill_bytes_per_s: 20_000,
            event_bytes: 60,
        }),
    }
}

fn consumer(name: &str, count: u32, adversary: Option<Adversary>) -> Fleet {
    Fleet {
        name: name.into(),
        count,
        region: "france".into(),
        balance_micro: 100_000_000,
        provide: false,
        nat: Nat::Open,
        adversary,
        gpu: None,
        ..provider(name, count, 0, None)
    }
}

fn clients(fleet: &str, per_minute: u64) -> Clients {
    Clients {
        fleet: fleet.into(),
        model: "m".into(),
        arrivals: Arrivals::Poisson { per_minute },
        prompt_bytes: [100, 1500],
        answer_bytes: [300, 1500],
        prefer: Preference::OwnFirst,
        price_input_max_micro: 1_000_000,
        price_output_max_micro: 10_000_000,
        leave_per_mille: 0,
        bad_per_mille: 0,
        single_per_mille: 0,
    }
}

fn scenario(name: String, duration_s: u64, fleets: Vec<Fleet>, clients: Vec<Clients>) -> Scenario {
    Scenario {
        name,
        about: "Honest nodes among adversaries.".into(),
        duration_s,
        slo_ms: 2000,
        fleets,
        clients,
        network: NetworkRules::default(),
        market: MarketRules { deposit_micro: 100_000, window: 256, queue_wait_s: 15, ..MarketRules::default() },
        faults: FaultRules::default(),
    }
}

/// `bad` of [`NODES`] nodes are adversaries of that kind. They ask a tenth less than honest providers, so that they are
/// first choice until they are known.
#[must_use]
pub fn among(adversary: Adversary, bad: u32, duration_s: u64) -> Scenario {
    let name = format!("{adversary} {bad} of {NODES}");
    let good = NODES - bad;
    let some = |mut fleets: Vec<Fleet>, more: Fleet| {
        if more.count > 0 {
            fleets.push(more);
        }
        fleets
    };
    if adversary.is_provider() {
        let fleets = vec![consumer("gateway", 4, None), provider("honest", good, 400_000, None)];
        let fleets = some(fleets, provider("adversary", bad, 360_000, Some(adversary)));
        return scenario(name, duration_s, fleets, vec![clients("gateway", 240)]);
    }
    let fleets = vec![provider("honest", 12, 400_000, None), consumer("gateway", good, None)];
    let fleets = some(fleets, consumer("adversary", bad, Some(adversary)));
    let per_minute = |count: u32| u64::from(count) * 8;
    let mut all = vec![clients("gateway", per_minute(good))];
    if bad > 0 {
        all.push(clients("adversary", per_minute(bad)));
    }
    scenario(name, duration_s, fleets, all)
}

/// Honest providers beside the Sybils.
const HONEST: u32 = 10;

/// `names` Sybils beside ten honest providers; `washers` consumers of the same owner buy of them alone.
#[must_use]
pub fn sybils(adversary: Adversary, names: u32, price_output_micro: u64, washers: u32, duration_s: u64) -> Scenario {
    let mut fleets = vec![consumer("gateway", 4, None), provider("honest", HONEST, 400_000, None)];
    let mut all = vec![clients("gateway", 120)];
    fleets.push(provider("adversary", names, price_output_micro, Some(adversary)));
    if washers > 0 {
        fleets.push(consumer("washer", washers, Some(Adversary::Washer)));
        all.push(clients("washer", 600));
    }
    scenario(format!("{names} Sybils, {adversary}"), duration_s, fleets, all)
}

/// What one run adds to a row.
#[derive(Debug, Default)]
struct Tally {
    jobs: u64,
    served: u64,
    legs: u64,
    legs_at_adversaries: u64,
    lost: u64,
    loss_max: u64,
    loss_of_bound: f64,
    loss_beyond: u64,
    gain: i64,
    unpaid: u64,
    given_windows: f64,
    came_once: u64,
    legs_with_text: u64,
    legs_signed: u64,
    wasted: u64,
    bad_jobs: u64,
    tries: Vec<u64>,
    first: Vec<u64>,
    spent: i64,
}

impl Tally {
    fn add(&mut self, run: &Observed) {
        let bad = |host: usize| run.hosts[host].adversary.is_some();
        for job in &run.jobs {
            if bad(job.host) {
                self.bad_jobs += 1;
                continue;
            }
            self.jobs += 1;
            self.served += u64::from(matches!(job.went, Went::Own | Went::Network));
            self.first.extend(job.first_us);
        }
        // By who dealt with whom: what arrived, the most that it may cost, and what was paid.
        #[derive(Default)]
        struct Dealing {
            worth: u64,
            bound: u64,
            paid: u64,
            legs: u64,
            tries: u64,
            /// What the last leg gave.
            given_windows: f64,
        }
        let mut dealings: BTreeMap<(usize, usize), Dealing> = BTreeMap::new();
        for leg in &run.legs {
            let dealing = dealings.entry((leg.consumer, leg.provider)).or_default();
            dealing.worth += leg.worth.micro();
            dealing.legs += 1;
            dealing.tries += u64::from(leg.end != LegEnd::Agreed);
            match (bad(leg.consumer), bad(leg.provider)) {
                (false, false) => self.legs += 1,
                (false, true) => {
                    self.legs += 1;
                    self.legs_at_adversaries += 1;
                    let text = leg.received > 0;
                    self.legs_with_text += u64::from(text);
                    self.legs_signed += u64::from(text && leg.end == LegEnd::Agreed);
                }
                (true, false) => dealing.given_windows = leg.received as f64 / leg.window.max(1) as f64,
                (true, true) => {}
            }
        }
        for session in &run.sessions {
            let dealing = dealings.entry((session.consumer, session.provider)).or_default();
            dealing.paid += session.settled.micro();
            dealing.bound += session.bound.micro();
        }
        for ((consumer, provider), dealing) in dealings {
            let lost = dealing.paid.saturating_sub(dealing.worth);
            match (bad(consumer), bad(provider)) {
                (false, adversary) => {
                    self.lost += lost;
                    self.loss_max = self.loss_max.max(lost);
                    // Each leg's cost is rounded up.
                    let exposed = dealing.bound.saturating_sub(dealing.worth) + dealing.legs;
                    self.loss_beyond += lost.saturating_sub(exposed);
                    self.loss_of_bound = self.loss_of_bound.max(lost as f64 / exposed.max(1) as f64);
                    if adversary {
                        self.tries.push(dealing.tries);
                        self.gain += lost as i64;
                    }
                }
                (true, false) => {
                    self.gain += dealing.worth as i64 - dealing.paid as i64;
                    self.unpaid += dealing.worth.saturating_sub(dealing.paid);
                    if dealing.legs == 1 {
                        self.given_windows = self.given_windows.max(dealing.given_windows);
                        self.came_once += 1;
                    }
                }
                (true, true) => {}
            }
        }
        let honest = run.hosts.iter().filter(|host| host.adversary.is_none());
        self.wasted += honest.map(|host| host.made.saturating_sub(host.sent)).sum::<u64>();
        let theirs = run.hosts.iter().filter(|host| host.adversary.is_some());
        let money = |side: usize| theirs.clone().map(|host| host.balance[side].micro() as i64).sum::<i64>();
        self.spent += money(0) - money(1);
    }
}

fn percent(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 * 100.0 / whole as f64 }
}

fn credits(micro: f64) -> f64 {
    micro / 1e6
}

fn played(seeds: Range<u64>, scenario: &Scenario, failures: &mut Vec<Failure>) -> Tally {
    let runs = parallel::each(seeds, |seed| Simulation::new(seed).scenario(scenario.clone()).observe(), |_| {});
    let mut tally = Tally::default();
    for run in runs {
        if let Some(violation) = run.report.violations.first() {
            let mut failure = Failure::of("adversaries", run.report.seed, violation);
            failure.what = format!("{}: {}", scenario.name, failure.what);
            failures.push(failure);
        }
        tally.add(&run);
    }
    tally
}

fn row(adversary: Adversary, bad: u32, tally: Tally) -> Row {
    let per_job = |part: f64, jobs: u64| if jobs == 0 { 0.0 } else { part / jobs as f64 };
    Row {
        adversary,
        share_percent: percent(bad.into(), NODES.into()),
        jobs: tally.jobs,
        served_percent: percent(tally.served, tally.jobs),
        legs_percent: percent(tally.legs_at_adversaries, tally.legs),
        loss_per_1000_jobs: credits(per_job(tally.lost as f64 * 1000.0, tally.jobs)),
        loss_of_bound: tally.loss_of_bound,
        loss_max: credits(tally.loss_max as f64),
        loss_beyond: credits(tally.loss_beyond as f64),
        gain: credits(tally.gain as f64),
        unpaid: credits(tally.unpaid as f64),
        given_windows: tally.given_windows,
        came_once: tally.came_once,
        legs_with_text: tally.legs_with_text,
        legs_signed: tally.legs_signed,
        wasted_bytes_per_job: per_job(tally.wasted as f64, tally.bad_jobs),
        tries_max: tally.tries.iter().copied().max().unwrap_or_default(),
        tries_mean: per_job(tally.tries.iter().sum::<u64>() as f64, tally.tries.len() as u64),
        first_text: Spread::of(tally.first),
    }
}

/// Plays one kind at one share.
#[must_use]
pub fn one(adversary: Adversary, bad: u32, duration_s: u64, seeds: Range<u64>) -> (Row, Vec<Failure>) {
    let mut failures = Vec::new();
    let tally = played(seeds, &among(adversary, bad, duration_s), &mut failures);
    (row(adversary, bad, tally), failures)
}

/// Legs at one Sybil for each at one honest provider.
fn rank(tally: &Tally, names: u32) -> f64 {
    let per = |legs: u64, nodes: u32| legs as f64 / f64::from(nodes.max(1));
    let honest = per(tally.legs - tally.legs_at_adversaries, HONEST);
    if honest > 0.0 { per(tally.legs_at_adversaries, names) / honest } else { f64::INFINITY }
}

/// The settings in which one owner has many names.
fn sybil_settings(names: u32, duration_s: u64) -> [(String, Scenario); 5] {
    use Adversary::{FalseCapacity, Silent, Sybil};
    let sybils = |kind, price, washers| sybils(kind, names, price, washers, duration_s);
    [
        ("serve well at the honest price".into(), sybils(Sybil, 400_000, 0)),
        ("and buy of themselves, for a history".into(), sybils(Sybil, 400_000, 10)),
        ("refuse what they quote, at the honest price".into(), sybils(FalseCapacity, 400_000, 0)),
        ("refuse what they quote, at a quarter of the price".into(), sybils(FalseCapacity, 100_000, 0)),
        ("take the first voucher and fall silent, at a quarter of the price".into(), sybils(Silent, 100_000, 0)),
    ]
}

/// Plays the settings in which one owner has so many names.
#[must_use]
pub fn many_names(
    names: u32,
    duration_s: u64,
    seeds: Range<u64>,
    progress: impl Fn(&str),
) -> (Vec<SybilRow>, Vec<Failure>) {
    let mut failures = Vec::new();
    let mut rows = Vec::new();
    for (what, scenario) in sybil_settings(names, duration_s) {
        progress(&scenario.name);
        let tally = played(seeds.clone(), &scenario, &mut failures);
        rows.push(SybilRow {
            what,
            names,
            honest: HONEST,
            jobs: tally.jobs,
            served_percent: percent(tally.served, tally.jobs),
            legs_percent: percent(tally.legs_at_adversaries, tally.legs),
            rank: rank(&tally, names),
            loss_per_1000_jobs: credits(tally.lost as f64 * 1000.0 / tally.jobs.max(1) as f64),
            cost: credits(tally.spent as f64),
            first_text: Spread::of(tally.first),
        });
    }
    (rows, failures)
}

/// Plays the trial: every kind at every share, and 1,000 names of one owner.
pub fn adversaries(seeds: Range<u64>, progress: impl Fn(&str)) -> Adversaries {
    let mut failures = Vec::new();
    let mut rows = Vec::new();
    for kinds in [Adversary::PROVIDERS, Adversary::CONSUMERS] {
        // Without any of them, all kinds of a side are the same run.
        let mut none = None;
        for adversary in kinds {
            for bad in SHARES {
                let played = || {
                    progress(&format!("{adversary}, {bad} of {NODES}"));
                    one(adversary, bad, DURATION_S, seeds.clone())
                };
                let (row, failed) = match (bad, &none) {
                    (0, Some(row)) => (Row { adversary, ..Row::clone(row) }, Vec::new()),
                    _ => played(),
                };
                if bad == 0 {
                    none = Some(row.clone());
                }
                rows.push(row);
                failures.extend(failed);
            }
        }
    }
    let (sybils, failed) = many_names(1000, DURATION_S, seeds.clone(), progress);
    failures.extend(failed);
    let bounds = bounds(&rows).into_iter().chain(sybil_bounds(&sybils)).collect();
    Adversaries { seeds: seeds.end.saturating_sub(seeds.start), rows, sybils, bounds, failures }
}

impl Adversaries {
    /// Whether every rule and every bound held.
    #[must_use]
    pub fn held(&self) -> bool {
        self.failures.is_empty() && self.bounds.iter().all(|bound| bound.held)
    }
}

/// The greatest of some figures; `None` of none.
fn greatest(figures: impl IntoIterator<Item = f64>) -> Option<f64> {
    figures.into_iter().reduce(f64::max)
}

/// What is promised of the rows.
#[must_use]
pub fn bounds(rows: &[Row]) -> Vec<Bound> {
    let among = |holds: fn(&Row) -> bool| rows.iter().filter(move |row| row.share_percent > 0.0 && holds(row));
    let providers = |row: &Row| row.adversary.is_provider();
    let consumers = |row: &Row| !row.adversary.is_provider();
    let overcounters = |row: &Row| row.adversary == Adversary::Overcount;
    let texts = among(overcounters).map(|row| row.legs_with_text).sum::<u64>();
    let signed = among(overcounters).map(|row| row.legs_signed).sum::<u64>();
    vec![
        Bound::new(
            "honest consumers' loss beyond a prompt and a window, or an announced event, for each leg cut short and those beside it",
            greatest(among(providers).map(|row| row.loss_beyond)),
            Side::AtMost,
            0.0,
            "credits",
        ),
        Bound::new(
            "the most that one lost to one provider, of what it may lose there",
            greatest(among(providers).map(|row| row.loss_of_bound)),
            Side::AtMost,
            1.0,
            "times",
        ),
        Bound::new(
            "overcounted receipts that a consumer signed",
            (texts > 0).then_some(signed as f64),
            Side::AtMost,
            0.0,
            "receipts",
        ),
        Bound::new(
            "what overcounting gained beyond the window paid ahead",
            greatest(among(overcounters).map(|row| row.loss_beyond)),
            Side::AtMost,
            0.0,
            "credits",
        ),
        Bound::new(
            "the most text that a non-payer gets for one opening",
            greatest(
                among(|row| row.adversary == Adversary::NonPayer && row.came_once > 0).map(|row| row.given_windows),
            ),
            Side::AtMost,
            1.0,
            "windows",
        ),
        Bound::new(
            "what cheating consumers got and did not pay",
            greatest(among(consumers).map(|row| row.unpaid)),
            Side::AtMost,
            0.0,
            "credits",
        ),
        Bound::new(
            format!("jobs that one consumer loses to one quote-refuser in {DURATION_S} s"),
            greatest(among(|row| row.adversary == Adversary::FalseCapacity).map(|row| row.tries_max as f64)),
            Side::AtMost,
            REFUSALS_MAX,
            "jobs",
        ),
        Bound::new(
            "honest jobs that are not served, at any share",
            greatest(rows.iter().map(|row| 100.0 - row.served_percent)),
            Side::AtMost,
            UNSERVED_PERCENT,
            "%",
        ),
    ]
}

/// What is promised of many names of one owner.
#[must_use]
pub fn sybil_bounds(rows: &[SybilRow]) -> Vec<Bound> {
    let rank = |what: &str, index: usize| {
        Bound::new(
            format!("rank of a Sybil that {what}, against an honest provider"),
            rows.get(index).map(|row| row.rank),
            Side::AtMost,
            1.0,
            "times",
        )
    };
    vec![
        rank("serves at the same price", 0),
        rank("buys a history besides", 1),
        Bound::new(
            "honest jobs that are not served among Sybils",
            greatest(rows.iter().map(|row| 100.0 - row.served_percent)),
            Side::AtMost,
            UNSERVED_PERCENT,
            "%",
        ),
    ]
}

impl std::fmt::Display for Adversaries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(
            f,
            "{:<16} {:>6} {:>6} {:>7} {:>7} {:>11} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "adversary",
            "share",
            "jobs",
            "served",
            "legs",
            "lost/1000",
            "of",
            "most lost",
            "gain",
            "unpaid",
            "wasted",
            "tries",
            "TTFT p99",
        )?;
        writeln!(
            f,
            "{:<16} {:>6} {:>6} {:>7} {:>7} {:>11} {:>7} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9}",
            "", "%", "", "%", "%", "credits", "bound", "credits", "credits", "credits", "bytes/job", "mean/most", "ms",
        )?;
        for row in &self.rows {
            writeln!(
                f,
                "{:<16} {:>6.1} {:>6} {:>7.2} {:>7.2} {:>11.6} {:>7.2} {:>9.6} {:>9.6} {:>9.6} {:>9.0} {:>5.1}/{:<3} {:>9}",
                row.adversary,
                row.share_percent,
                row.jobs,
                row.served_percent,
                row.legs_percent,
                row.loss_per_1000_jobs,
                row.loss_of_bound,
                row.loss_max,
                row.gain,
                row.unpaid,
                row.wasted_bytes_per_job,
                row.tries_mean,
                row.tries_max,
                row.first_text.p99_ms,
            )?;
        }
        for row in &self.sybils {
            writeln!(
                f,
                "{} Sybils beside {} honest: {}\n  {} jobs, {:.2} % served, {:.2} % of legs at Sybils (rank {:.4}), \
                 {:.6} credits lost per 1,000 jobs, cost to their owner {:.6} credits\n  first text {}",
                row.names,
                row.honest,
                row.what,
                row.jobs,
                row.served_percent,
                row.legs_percent,
                row.rank,
                row.loss_per_1000_jobs,
                row.cost,
                row.first_text,
            )?;
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
