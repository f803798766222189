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
use crate::timeline::START;
use crate::{Observed, Simulation, parallel};
use serde::Serialize;
use spillway_protocol::Now;
use std::collections::BTreeMap;
use std::ops::Range;
use std::time::Duration;

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
/// Names of one owner.
const NAMES: u32 = 1000;
/// Where Sybils serve as well as others: gateways, and honest providers. A gateway's jobs go to a few providers that it knows, so
/// that what counts is how many gateways choose, and there must be enough to choose of either kind. How many jobs each has matters
/// little: they are one gateway's choice.
const CHOOSING: (u32, u32) = (100, 200);
/// How often a setting of these is played for a seed, for the same reason: more gateways in one market cost more than a
/// second market.
const CHOOSING_RUNS: u64 = 4;
/// Jobs a minute of each gateway where Sybils serve, and where they lie.
const PER_MINUTE: (u64, u64) = (3, 30);
/// Where Sybils lie: gateways, and honest providers, one in a hundred.
const DECEIVED: (u32, u32) = (4, 10);
/// When Sybils come to a market that has served for a while, in seconds.
const LATE_S: u64 = 60;
/// Whoever serves alike ranks alike, so that a measured rank is above 1 as often as below it. What is promised is that it is not
/// above 1 by more than chance, and not above this with any likelihood.
const RANK_MAX: f64 = 1.5;
/// Standard errors on either side of what 95 of 100 measurements lie within.
const LIKELY: f64 = 1.96;

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
    /// Its standard error: gateways choose independently, the jobs of one do not.
    pub rank_error: f64,
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
        starts_s: 0,
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

/// Many names of one owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Crowd {
    /// What they do, in words.
    pub what: &'static str,
    /// What they do.
    pub kind: Adversary,
    /// How many names.
    pub names: u32,
    /// What they ask per million output bytes, in micro-credits; the honest ask 400,000.
    pub price_output_micro: u64,
    /// Consumers of the same owner, which buy of these names alone.
    pub washers: u32,
    /// Gateways, and honest providers beside them.
    pub among: (u32, u32),
    /// When they come, in seconds. What was before does not count.
    pub comes_s: u64,
    /// Until when clients ask, in seconds.
    pub duration_s: u64,
    /// Runs for each seed.
    pub runs: u64,
}

impl Crowd {
    /// The settings of the trial, in the order of its table.
    #[must_use]
    pub fn all() -> [Self; 6] {
        use Adversary::{FalseCapacity, Silent, Sybil};
        let same = Self {
            what: "serve well at the honest price",
            kind: Sybil,
            names: NAMES,
            price_output_micro: 400_000,
            washers: 0,
            among: CHOOSING,
            comes_s: 0,
            duration_s: DURATION_S,
            runs: CHOOSING_RUNS,
        };
        let lies = Self { among: DECEIVED, runs: 1, ..same.clone() };
        [
            same.clone(),
            Self { what: "and buy of themselves, for a history", washers: 10, ..same.clone() },
            Self {
                what: "serve as well, but come when others have served for a minute",
                comes_s: LATE_S,
                duration_s: LATE_S + DURATION_S,
                runs: 1,
                ..same
            },
            Self { what: "refuse what they quote, at the honest price", kind: FalseCapacity, ..lies.clone() },
            Self {
                what: "refuse what they quote, at a quarter of the price",
                kind: FalseCapacity,
                price_output_micro: 100_000,
                ..lies.clone()
            },
            Self {
                what: "take the first voucher and fall silent, at a quarter of the price",
                kind: Silent,
                price_output_micro: 100_000,
                ..lies
            },
        ]
    }

    /// They, among others.
    #[must_use]
    pub fn scenario(&self) -> Scenario {
        let (gateways, honest) = self.among;
        let mut fleets = vec![consumer("gateway", gateways, None), provider("honest", honest, 400_000, None)];
        let mut all =
            vec![clients("gateway", u64::from(gateways) * if self.lies() { PER_MINUTE.1 } else { PER_MINUTE.0 })];
        let them = provider("adversary", self.names, self.price_output_micro, Some(self.kind));
        fleets.push(Fleet { starts_s: self.comes_s, ..them });
        if self.washers > 0 {
            fleets.push(consumer("washer", self.washers, Some(Adversary::Washer)));
            all.push(clients("washer", 60 * u64::from(self.washers)));
        }
        scenario(format!("{} Sybils, {}", self.names, self.what), self.duration_s, fleets, all)
    }

    fn lies(&self) -> bool {
        self.kind != Adversary::Sybil
    }
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
    /// Of each honest consumer, its legs at adversaries and at others.
    choices: Vec<[u64; 2]>,
}

impl Tally {
    /// What a run showed, from that moment on.
    fn of(run: &Observed, from: Now) -> Self {
        let mut tally = Self::default();
        tally.add(run, from);
        tally
    }

    fn merge(&mut self, other: Self) {
        let Self { tries, first, choices, .. } = other;
        self.jobs += other.jobs;
        self.served += other.served;
        self.legs += other.legs;
        self.legs_at_adversaries += other.legs_at_adversaries;
        self.lost += other.lost;
        self.loss_max = self.loss_max.max(other.loss_max);
        self.loss_of_bound = self.loss_of_bound.max(other.loss_of_bound);
        self.loss_beyond += other.loss_beyond;
        self.gain += other.gain;
        self.unpaid += other.unpaid;
        self.given_windows = self.given_windows.max(other.given_windows);
        self.came_once += other.came_once;
        self.legs_with_text += other.legs_with_text;
        self.legs_signed += other.legs_signed;
        self.wasted += other.wasted;
        self.bad_jobs += other.bad_jobs;
        self.spent += other.spent;
        self.tries.extend(tries);
        self.first.extend(first);
        self.choices.extend(choices);
    }

    fn add(&mut self, run: &Observed, from: Now) {
        let bad = |host: usize| run.hosts[host].adversary.is_some();
        for job in run.jobs.iter().filter(|job| job.submitted >= from) {
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
        let mut choices: BTreeMap<usize, [u64; 2]> = BTreeMap::new();
        for leg in &run.legs {
            if !bad(leg.consumer) && leg.opened >= from {
                choices.entry(leg.consumer).or_default()[usize::from(!bad(leg.provider))] += 1;
            }
            let dealing = dealings.entry((leg.consumer, leg.provider)).or_default();
            dealing.worth += leg.worth.micro();
            dealing.legs += 1;
            dealing.tries += u64::from(leg.end != LegEnd::Agreed);
            match (bad(leg.consumer), bad(leg.provider)) {
                (false, false) => self.legs += u64::from(leg.opened >= from),
                (false, true) => {
                    self.legs += u64::from(leg.opened >= from);
                    self.legs_at_adversaries += u64::from(leg.opened >= from);
                    let text = leg.received > 0;
                    self.legs_with_text += u64::from(text);
                    self.legs_signed += u64::from(text && leg.end == LegEnd::Agreed);
                }
                (true, false) => dealing.given_windows = leg.received as f64 / leg.window.max(1) as f64,
                (true, true) => {}
            }
        }
        self.choices.extend(choices.into_values());
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

/// What is played for each seed.
struct Play {
    scenario: Scenario,
    /// What was before this moment, in seconds, does not count.
    from_s: u64,
    /// How often.
    runs: u64,
}

impl Play {
    const fn once(scenario: Scenario) -> Self {
        Self { scenario, from_s: 0, runs: 1 }
    }

    fn of(crowd: &Crowd) -> Self {
        Self { scenario: crowd.scenario(), from_s: crowd.comes_s, runs: crowd.runs }
    }
}

/// Plays scenarios over seeds, as many at once as there are cores. Gives a tally for each.
fn played(plays: &[Play], seeds: &Range<u64>, progress: impl Fn(&str) + Sync) -> (Vec<Tally>, Vec<Failure>) {
    let runs = plays
        .iter()
        .enumerate()
        .flat_map(|(at, play)| seeds.clone().flat_map(move |seed| (0..play.runs).map(move |run| (at, seed, run))));
    let runs: Vec<_> = runs.collect();
    let play = |task: u64| {
        let (at, seed, run) = runs[task as usize];
        let Play { scenario, from_s, .. } = &plays[at];
        progress(&format!("{}, seed {seed}, run {run}", scenario.name));
        // The first run of a seed is that of the seed alone.
        let run = Simulation::new(seed ^ (run << 32)).scenario(scenario.clone()).observe();
        let failure = run.report.violations.first().map(|violation| {
            let failure = Failure::of("adversaries", seed, violation);
            Failure { what: format!("{}: {}", scenario.name, failure.what), ..failure }
        });
        (Tally::of(&run, START.after(Duration::from_secs(*from_s))), failure)
    };
    let mut tallies: Vec<Tally> = plays.iter().map(|_| Tally::default()).collect();
    let mut failures = Vec::new();
    let shown = parallel::each(0..runs.len() as u64, play, |_| {});
    for ((at, ..), (tally, failure)) in runs.iter().zip(shown) {
        tallies[*at].merge(tally);
        failures.extend(failure);
    }
    (tallies, failures)
}

fn row(adversary: Adversary, bad: u32, tally: &Tally) -> Row {
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
        first_text: Spread::of(tally.first.iter().copied()),
    }
}

/// Plays one kind at one share.
#[must_use]
pub fn one(adversary: Adversary, bad: u32, duration_s: u64, seeds: Range<u64>) -> (Row, Vec<Failure>) {
    let (tallies, failures) = played(&[Play::once(among(adversary, bad, duration_s))], &seeds, |_| {});
    (row(adversary, bad, &tallies[0]), failures)
}

/// Legs at one Sybil for each at one honest provider, and its standard error over the consumers that chose.
fn rank(tally: &Tally, names: u32, honest: u32) -> (f64, f64) {
    let sum = |side: usize| tally.choices.iter().map(|legs| legs[side]).sum::<u64>() as f64;
    let (theirs, others) = (sum(0), sum(1));
    if others == 0.0 {
        return (f64::INFINITY, f64::INFINITY);
    }
    let rank = theirs / f64::from(names.max(1)) / (others / f64::from(honest.max(1)));
    // The error of a ratio of two sums over independent consumers.
    let off = |legs: &[u64; 2]| legs[0] as f64 / theirs.max(1.0) - legs[1] as f64 / others;
    let count = tally.choices.len() as f64;
    let spread = tally.choices.iter().map(|legs| off(legs) * off(legs)).sum::<f64>();
    (rank, rank * (spread * count / (count - 1.0).max(1.0)).sqrt())
}

fn sybil_row(crowd: &Crowd, tally: &Tally) -> SybilRow {
    let (_, honest) = crowd.among;
    let (rank, rank_error) = rank(tally, crowd.names, honest);
    SybilRow {
        what: crowd.what.into(),
        names: crowd.names,
        honest,
        jobs: tally.jobs,
        served_percent: percent(tally.served, tally.jobs),
        legs_percent: percent(tally.legs_at_adversaries, tally.legs),
        rank,
        rank_error,
        loss_per_1000_jobs: credits(tally.lost as f64 * 1000.0 / tally.jobs.max(1) as f64),
        cost: credits(tally.spent as f64),
        first_text: Spread::of(tally.first.iter().copied()),
    }
}

/// Plays settings in which one owner has many names.
#[must_use]
pub fn many_names(
    crowds: &[Crowd],
    seeds: Range<u64>,
    progress: impl Fn(&str) + Sync,
) -> (Vec<SybilRow>, Vec<Failure>) {
    let plays: Vec<_> = crowds.iter().map(Play::of).collect();
    let (tallies, failures) = played(&plays, &seeds, progress);
    (crowds.iter().zip(&tallies).map(|(crowd, tally)| sybil_row(crowd, tally)).collect(), failures)
}

/// Plays the trial: 1,000 names of one owner, and every kind at every share.
pub fn adversaries(seeds: Range<u64>, progress: impl Fn(&str) + Sync) -> Adversaries {
    let crowds = Crowd::all();
    let mut plays: Vec<_> = crowds.iter().map(Play::of).collect();
    // Which row is of which scenario: without any adversary, all kinds of a side are the same run.
    let mut places = Vec::new();
    for kinds in [Adversary::PROVIDERS, Adversary::CONSUMERS] {
        let none = plays.len();
        plays.push(Play::once(among(kinds[0], 0, DURATION_S)));
        for adversary in kinds {
            for bad in SHARES {
                if bad > 0 {
                    plays.push(Play::once(among(adversary, bad, DURATION_S)));
                }
                places.push((adversary, bad, if bad > 0 { plays.len() - 1 } else { none }));
            }
        }
    }
    let (tallies, failures) = played(&plays, &seeds, progress);
    let sybils: Vec<_> = crowds.iter().zip(&tallies).map(|(crowd, tally)| sybil_row(crowd, tally)).collect();
    let rows: Vec<_> = places.into_iter().map(|(kind, bad, place)| row(kind, bad, &tallies[place])).collect();
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

/// What is promised of many names of one owner, of the rows of [`Crowd::all`].
#[must_use]
pub fn sybil_bounds(rows: &[SybilRow]) -> Vec<Bound> {
    let rank = |what: &str, index: usize, errors: f64, limit: f64| {
        let measured = rows.get(index).map(|row| row.rank + errors * row.rank_error);
        let end = if errors > 0.0 { "at most" } else { "at least" };
        Bound::new(format!("rank of a Sybil that {what}, {end}, with 95 %"), measured, Side::AtMost, limit, "times")
    };
    vec![
        rank("serves as well at the same price", 0, -LIKELY, 1.0),
        rank("serves as well at the same price", 0, LIKELY, RANK_MAX),
        rank("buys a history besides", 1, -LIKELY, 1.0),
        rank("buys a history besides", 1, LIKELY, RANK_MAX),
        rank("comes to a market that has served", 2, LIKELY, 1.0),
        Bound::new(
            "rank of a Sybil that lies",
            rows.get(3..).and_then(|rows| greatest(rows.iter().map(|row| row.rank))),
            Side::AtMost,
            1.0,
            "times",
        ),
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
                "{} Sybils beside {} honest: {}\n  {} jobs, {:.2} % served, {:.2} % of legs at Sybils (rank {:.3} ± {:.3}), \
                 {:.6} credits lost per 1,000 jobs, cost to their owner {:.6} credits\n  first text {}",
                row.names,
                row.honest,
                row.what,
                row.jobs,
                row.served_percent,
                row.legs_percent,
                row.rank,
                LIKELY * row.rank_error,
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
