//! What a provider would make of a job: time, money, and how sure that is.
//! Invariant: every figure is finite; a lower score is better.

use super::RouterRules;
use super::ask::{Ask, Candidate};
use super::known::{Known, Typical};
use crate::time::Now;
use spillway_ledger::Usage;
use std::cmp::Ordering;

/// Round trip assumed where there is not even an estimate, in milliseconds: pessimistic, so that known near peers win.
const DISTANCE_UNKNOWN_MS: f64 = 150.0;

/// How much is known of a provider's load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Certainty {
    /// Its word is fresh, and leaves room for the job.
    Sure,
    /// Nothing fresh is known: it must be asked.
    Unsure,
    /// Its word is fresh: no slot, until then.
    Busy(Now),
}

/// What is expected of a provider.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Estimate {
    /// How sure it is.
    pub certainty: Certainty,
    /// Milliseconds to the first text.
    pub first_ms: f64,
    /// Microseconds per unit of output.
    pub per_unit_us: f64,
    /// Units of the prompt that its cache is believed to hold.
    pub cached: u64,
    /// What the job costs there, in micro-credits.
    pub money: f64,
    /// The round trip, in milliseconds.
    pub distance_ms: f64,
    /// Jobs there for each slot.
    pub load: f64,
    /// Jobs that wait there, as it told.
    pub pending: u32,
    /// Milliseconds that reading what is not cached takes from the jobs that run there, all together.
    pub delays_ms: f64,
    /// Money and the worth of time over standing, in micro-credits.
    pub score: f64,
    /// What a millisecond is worth, in micro-credits.
    pub ms_worth: f64,
    /// Its place in the user's order.
    pub rank: u16,
    /// Its standing, where the word of its kind counts for nothing: [`Router::proved`](super::Router::proved).
    pub doubt: Option<f64>,
}

pub(super) fn estimate(
    now: Now,
    ask: &Ask<'_>,
    candidate: &Candidate,
    known: Option<&Known>,
    held: u64,
    typical: &Typical,
    rules: &RouterRules,
) -> Estimate {
    let distance_ms = candidate.distance_ms.unwrap_or(DISTANCE_UNKNOWN_MS).max(0.0);
    let certainty = match known {
        Some(known) if ask.thorough && known.free() == 0 => Certainty::Unsure,
        Some(known) if known.is_busy(now) => Certainty::Busy(known.last().map_or(now, |report| report.free_at)),
        Some(known) if known.is_fresh(now, rules.fresh_for) && known.free() > 0 => Certainty::Sure,
        Some(_) | None => Certainty::Unsure,
    };
    let told = known.and_then(|known| known.last().filter(|report| report.per_unit_us > 0).map(|it| (known, it)));
    let (start, read, rate, (first_bias, rate_bias)) = match told {
        Some((known, report)) => {
            let (start, read) = (f64::from(report.start_ms), f64::from(report.read_us_per_kilo));
            let waits = units(known.ahead_units()) * read / 1e6;
            (start + waits, read, f64::from(report.per_unit_us), known.biases())
        }
        None => {
            let (start, read, rate) = typical.pessimistic();
            (start, read, rate, (1.0, 1.0))
        }
    };
    // What a quote bills as cached, its provider has said to hold.
    let billed = candidate.billed.map(|units| units.min(ask.units));
    let cached = candidate.cached.unwrap_or(held).max(billed.unwrap_or(0)).min(ask.units);
    let fresh = ask.units - cached;
    let read_ms = units(fresh) * read / 1e6;
    let delays_ms = read_ms * f64::from(known.map_or(0, Known::running));
    let first_ms = distance_ms + candidate.ready_ms.max(0.0) + (start + read_ms) * first_bias;
    let per_unit_us = rate * rate_bias;
    let billed = billed.unwrap_or(cached);
    let usage = Usage { input: ask.units - billed, cached: billed, output: ask.output };
    let money = candidate.price.cost(usage).map_or(1e18, |cost| units(cost.micro()));
    let weights = &ask.weights;
    let rest_ms = units(ask.output) * per_unit_us / 1e3;
    let worth = money * weights.money + first_ms * weights.first_ms + rest_ms * weights.rest_ms;
    Estimate {
        certainty,
        first_ms,
        per_unit_us,
        cached,
        money: money / candidate.standing.clamp(0.01, 1.0),
        distance_ms,
        load: f64::from(known.map_or(0, Known::requests)) / f64::from(candidate.slots.max(1)),
        pending: told.map_or(0, |(_, report)| report.pending),
        delays_ms,
        score: worth / candidate.standing.clamp(0.01, 1.0),
        ms_worth: weights.first_ms,
        rank: candidate.rank,
        doubt: None,
    }
}

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target {
    first_ms: f64,
    per_unit_us: f64,
    load_weight: f64,
}

impl Target {
    /// What a job asks for; of the time to the first text, less the share that is kept for what predictions miss.
    pub(super) fn of(ask: &Ask<'_>, rules: &RouterRules) -> Option<Self> {
        if ask.target_ms.is_none() && ask.rate_us.is_none() {
            return None;
        }
        Some(Self {
            first_ms: ask.target_ms.map_or(f64::MAX, |wish| wish * rules.target_share),
            per_unit_us: ask.rate_us.unwrap_or(f64::MAX),
            load_weight: rules.load_weight,
        })
    }

    /// What the job costs there, with what it costs those that run there already.
    fn laden(self, it: &Estimate) -> f64 {
        it.money * (1.0 + self.load_weight * it.load)
    }

    /// Whether that is expected to meet it.
    pub(super) fn met_by(self, it: &Estimate) -> bool {
        it.first_ms <= self.first_ms && it.per_unit_us <= self.per_unit_us
    }
}

/// Which of two is better. With a target the cheapest that meets it, load counted; otherwise the lower score. Those whose word
/// is doubted come last, and among them nothing counts but how they were found so far.
pub(super) fn better(a: &Estimate, b: &Estimate, target: Option<Target>) -> Ordering {
    let by_rank = a.rank.cmp(&b.rank).then(a.doubt.is_some().cmp(&b.doubt.is_some()));
    if let (Some(a), Some(b)) = (a.doubt, b.doubt) {
        return by_rank.then(b.total_cmp(&a));
    }
    let Some(target) = target else { return by_rank.then(a.score.total_cmp(&b.score)) };
    by_rank.then(match (target.met_by(a), target.met_by(b)) {
        (true, true) => target.laden(a).total_cmp(&target.laden(b)).then(a.load.total_cmp(&b.load)),
        (true, false) => Ordering::Less,
        (false, true) => Ordering::Greater,
        (false, false) => a.first_ms.total_cmp(&b.first_ms),
    })
}

#[expect(clippy::cast_precision_loss, reason = "a ranking")]
const fn units(count: u64) -> f64 {
    count as f64
}
