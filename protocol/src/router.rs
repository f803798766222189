//! Which provider: ranks offers before probing, and quotes after it, in money and time.
//! Invariant: nothing here changes state; the same inputs give the same order.

use crate::directory::Listing;
use crate::event::ProbeId;
use crate::job::Job;
use crate::offer::Quote;
use crate::reputation::Reputation;
use crate::wire::ProbeReply;
use rand::seq::SliceRandom;
use spillway_ledger::{Account, Credits, NodeId, Price, Signed, Usage};
use std::time::Duration;

/// Providers probed for one job.
pub const PROBES_MAX: usize = 3;
/// Round trip assumed of a peer that was never measured, in milliseconds: pessimistic, so that known near peers win.
const RTT_UNKNOWN_MS: f64 = 150.0;
/// Output assumed when ranking, in units, unless the job allows less.
const OUTPUT_EXPECTED: u64 = 512;

/// A provider that a job may go to.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) node: NodeId,
    pub(crate) account: Account,
    pub(crate) price: Price,
    pub(crate) addresses: Vec<String>,
}

impl From<&Listing> for Candidate {
    fn from(listing: &Listing) -> Self {
        Self {
            node: listing.node(),
            account: listing.account(),
            price: listing.model().price,
            addresses: listing.offer.value().addresses.clone(),
        }
    }
}

/// A candidate that answered its probe with a quote that holds.
#[derive(Clone, Debug)]
pub(crate) struct Quoted {
    pub(crate) candidate: Candidate,
    pub(crate) quote: Signed<Quote>,
    pub(crate) score: f64,
}

/// What a probe is about.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) probe: ProbeId,
    pub(crate) candidate: Candidate,
}

/// What an answer of the expected length costs, in micro-credits, and the worth of the time it takes added.
fn score(job: &Job, price: &Price, seconds: f64, second_worth: Credits, reputation: f64) -> f64 {
    let expected = Usage { input: job.prompt_units(), cached: 0, output: job.output_max.min(OUTPUT_EXPECTED) };
    #[expect(clippy::cast_precision_loss, reason = "a ranking")]
    let (money, worth) =
        (price.cost(expected).map_or(f64::MAX / 1e6, |cost| cost.micro() as f64), second_worth.micro() as f64);
    (money + worth * seconds) / reputation
}

/// The providers to probe: the best two on paper, and one drawn at random so that newcomers are seen.
pub(crate) fn shortlist(
    job: &Job,
    mut candidates: Vec<Candidate>,
    reputation: &Reputation,
    second_worth: Credits,
    rng: &mut impl rand::Rng,
) -> Vec<Candidate> {
    let on_paper = |candidate: &Candidate| {
        let rtt = reputation.rtt_ms(&candidate.node).unwrap_or(RTT_UNKNOWN_MS);
        score(job, &candidate.price, rtt / 1e3, second_worth, reputation.lower_bound(&candidate.node))
    };
    // Shuffled first: equals share the work instead of the lowest id getting it all.
    candidates.shuffle(rng);
    candidates.sort_by(|a, b| on_paper(a).total_cmp(&on_paper(b)));
    if candidates.len() > PROBES_MAX {
        let rest = &mut candidates[PROBES_MAX - 1..];
        rest.shuffle(rng);
        candidates.truncate(PROBES_MAX);
    }
    candidates
}

/// How good a quote is: lower is better, in micro-credits.
pub(crate) fn score_quote(
    job: &Job,
    quote: &Quote,
    reply: &ProbeReply,
    rtt: Duration,
    reputation: f64,
    second_worth: Credits,
) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a ranking")]
    let output = job.output_max.min(OUTPUT_EXPECTED) as f64;
    let load = &reply.load;
    #[expect(clippy::cast_precision_loss, reason = "a ranking")]
    let unread = job.prompt_units().saturating_sub(quote.cached) as f64;
    let first = f64::from(load.start_ms) / 1e3 + unread * f64::from(load.read_us_per_kilo) / 1e9;
    let seconds = rtt.as_secs_f64() + first + output * f64::from(load.per_unit_us) / 1e6;
    score(job, &quote.price, seconds, second_worth, reputation)
}
