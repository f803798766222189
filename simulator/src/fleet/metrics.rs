//! What a run showed.
//! Invariant: every measured job is counted once, under how it ended; times are kept in histograms, not one by one.

use super::job::Job;
use super::policy::ReplicaId;
use super::setting::{PriceRules, Setting};
use hdrhistogram::Histogram;
use serde::Serialize;

/// A provider's share of a job's price, in percent. Source: `docs/payments.md`.
const PROVIDER_PERCENT: u64 = 70;
/// Significant digits of the histograms: quantiles are off by at most 0.1 %.
const DIGITS: u8 = 3;

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum End {
    /// Its client has the whole answer.
    Served,
    /// It was told no before anything was delivered.
    Refused,
    /// It broke off after something was delivered.
    Failed,
}

/// One job, kept only if a caller asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Record {
    /// When its client asked, in microseconds.
    pub at_us: u64,
    /// Which client.
    pub client: u32,
    /// The conversation.
    pub session: u64,
    /// The gateway asked.
    pub gateway: u32,
    /// The last replica that worked for it.
    pub replica: Option<u32>,
    /// Tokens of the prompt.
    pub input: u32,
    /// Tokens of the whole answer.
    pub output: u32,
    /// Tokens of the prompt that the last replica had cached.
    pub cached: u32,
    /// Replicas that refused, died or stopped it.
    pub attempts: u32,
    /// From asking to the first token at the client, in microseconds.
    pub ttft_us: Option<u64>,
    /// From asking to its end, in microseconds.
    pub e2e_us: u64,
    /// Micro-credits.
    pub cost_micro: u64,
    /// How it ended.
    pub end: End,
}

/// What one provider earned.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Provider {
    /// The owner's name.
    pub owner: String,
    /// Credits: 70 % of what was paid.
    pub revenue: f64,
    /// What its replicas that sell can make in all, in tokens per second at full slots.
    pub capacity_tokens_per_s: f64,
    /// Jobs that ended there or broke off there with something delivered.
    pub jobs: u64,
}

/// Quantiles and the mean of one measure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Spread {
    /// The mean.
    pub mean: f64,
    /// The median.
    pub p50: f64,
    /// One in ten is above.
    pub p90: f64,
    /// One in twenty.
    pub p95: f64,
    /// One in a hundred.
    pub p99: f64,
}

/// Counts of jobs that came after the warm-up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// All.
    pub total: u64,
    /// Served by own replicas alone.
    pub own: u64,
    /// Served with at least one stranger's help.
    pub network: u64,
    /// Broke off.
    pub failed: u64,
    /// Were told no.
    pub refused: u64,
    /// Waited in a gateway's queue at some time.
    pub waited: u64,
    /// Served in time: first token and mean time between tokens.
    pub in_time: u64,
    /// Were told no while a replica that may serve them had a slot free.
    pub refused_while_free: u64,
    /// Legs that a replica stopped for its owner's job.
    pub cut: u64,
    /// Legs that ended with a replica's death.
    pub died: u64,
    /// Times that a replica had no room.
    pub turned_away: u64,
}

/// What a run showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// The policy.
    pub policy: String,
    /// The seed.
    pub seed: u64,
    /// Follows from every job's end, in order.
    pub hash: String,
    /// Everything that happened: messages, timers, engine steps that had something to tell, arrivals.
    pub events: u64,
    /// Jobs by their end.
    pub jobs: Counts,
    /// In time, of all.
    pub slo: f64,
    /// Time to first token, in milliseconds, of jobs that got one.
    pub ttft_ms: Spread,
    /// Mean time between tokens, in milliseconds, of jobs served with more than one token.
    pub tpot_ms: Spread,
    /// Time to the end, in seconds, of jobs served.
    pub e2e_s: Spread,
    /// Credits that clients paid or, where own hardware has a cost, that it cost.
    pub cost: f64,
    /// Of the jobs served, those that strangers helped with.
    pub spill_share: f64,
    /// Jain's index over providers' revenue for each token per second that they offer; 1 is equal. 1 if nobody sells.
    pub fairness: f64,
    /// What each provider that sells earned.
    pub providers: Vec<Provider>,
    /// Of the tokens of all prompts that were read, those that were cached.
    pub hit_rate: f64,
    /// Tokens that reached clients, for each second from the end of the warm-up to the last job's end.
    pub output_tokens_per_s: f64,
    /// Probes for each job.
    pub probes_per_job: f64,
    /// When the last job ended, in seconds.
    pub end_s: f64,
    /// The most jobs alive at once.
    pub alive_max: u64,
    /// Every measured job, if they were asked for.
    #[serde(skip)]
    pub records: Vec<Record>,
}

/// Counts as it goes.
#[derive(Debug)]
pub(super) struct Metrics {
    from_us: u64,
    pub(super) counts: Counts,
    ttft_us: Histogram<u64>,
    tpot_us: Histogram<u64>,
    e2e_us: Histogram<u64>,
    sums: [u128; 3],
    cost_micro: u128,
    read: u128,
    cached: u128,
    output: u128,
    pub(super) probes: u64,
    pub(super) events: u64,
    pub(super) alive_max: u64,
    end_us: u64,
    /// By provider: micro-credits and jobs.
    earned: Vec<(u128, u64)>,
    hash: blake3::Hasher,
    records: Option<Vec<Record>>,
}

fn histogram() -> Histogram<u64> {
    // Up to a week in microseconds; what is longer counts as a week.
    Histogram::new_with_bounds(1, 7 * 86_400 * 1_000_000, DIGITS).expect("the bounds are in order")
}

impl Metrics {
    pub(super) fn new(setting: &Setting, providers: usize) -> Self {
        Self {
            from_us: setting.warmup_s * 1_000_000,
            counts: Counts::default(),
            ttft_us: histogram(),
            tpot_us: histogram(),
            e2e_us: histogram(),
            sums: [0; 3],
            cost_micro: 0,
            read: 0,
            cached: 0,
            output: 0,
            probes: 0,
            events: 0,
            alive_max: 0,
            end_us: 0,
            earned: vec![(0, 0); providers],
            hash: blake3::Hasher::new(),
            records: None,
        }
    }

    /// From now on every measured job leaves a [`Record`].
    pub(super) fn keep_records(&mut self) {
        self.records.get_or_insert_default();
    }

    /// Whether a job that came then is measured.
    pub(super) const fn counts(&self, at_us: u64) -> bool {
        at_us >= self.from_us
    }

    /// Bills a leg that ended, whole or not; gives the cost in micro-credits. What made nothing costs nothing.
    pub(super) fn bill(&mut self, job: &Job, price: PriceRules, provider: usize, made: u32) -> u64 {
        if made == 0 {
            return 0;
        }
        let cost = price.cost_micro(job.input(), job.cached, made);
        if self.counts(job.request.at_us) {
            self.read += u128::from(job.input());
            self.cached += u128::from(job.cached);
            self.output += u128::from(made);
            self.cost_micro += u128::from(cost);
            if job.stranger {
                self.earned[provider].0 += u128::from(cost * PROVIDER_PERCENT / 100);
                self.earned[provider].1 += 1;
            }
        }
        cost
    }

    /// A job ended, at its client at `now_us`.
    pub(super) fn ended(&mut self, now_us: u64, job: &Job, last: Option<ReplicaId>, end: End, setting: &Setting) {
        let at_us = job.request.at_us;
        let ttft_us = job.first_us.map(|first| first - at_us);
        let e2e_us = now_us - at_us;
        self.end_us = self.end_us.max(now_us);
        for number in [
            at_us,
            u64::from(job.request.client),
            last.map_or(u64::MAX, |replica| u64::from(replica.0)),
            ttft_us.unwrap_or(u64::MAX),
            e2e_us,
            job.cost_micro,
            end as u64,
        ] {
            self.hash.update(&number.to_le_bytes());
        }
        if !self.counts(at_us) {
            return;
        }
        let counts = &mut self.counts;
        counts.total += 1;
        counts.waited += u64::from(job.waited);
        if let Some(ttft_us) = ttft_us {
            self.ttft_us.saturating_record(ttft_us);
            self.sums[0] += u128::from(ttft_us);
        }
        match end {
            End::Served => {
                if job.spilled {
                    counts.network += 1;
                } else {
                    counts.own += 1;
                }
                let first = ttft_us.expect("what was served began");
                let gaps = u64::from(job.request.output.saturating_sub(1));
                let tpot_us = (e2e_us - first).checked_div(gaps);
                if let Some(tpot_us) = tpot_us {
                    self.tpot_us.saturating_record(tpot_us);
                    self.sums[1] += u128::from(tpot_us);
                }
                self.e2e_us.saturating_record(e2e_us);
                self.sums[2] += u128::from(e2e_us);
                let in_time = first <= setting.slo.ttft_limit_us(job.request.input)
                    && tpot_us.is_none_or(|us| us <= setting.slo.tpot_ms * 1000);
                counts.in_time += u64::from(in_time);
            }
            End::Refused => counts.refused += 1,
            End::Failed => counts.failed += 1,
        }
        if let Some(records) = &mut self.records {
            records.push(Record {
                at_us,
                client: job.request.client,
                session: job.request.session,
                gateway: job.home.0,
                replica: last.map(|replica| replica.0),
                input: job.request.input,
                output: job.request.output,
                cached: job.cached,
                attempts: job.attempts,
                ttft_us,
                e2e_us,
                cost_micro: job.cost_micro,
                end,
            });
        }
    }

    /// What it all was. `providers` are names and capacities in tokens per second; those without any do not sell.
    pub(super) fn outcome(self, policy: &str, seed: u64, providers: Vec<(String, f64)>) -> Outcome {
        let counts = self.counts;
        let per = |part: f64, whole: f64| if whole > 0.0 { part / whole } else { 0.0 };
        let spread = |histogram: &Histogram<u64>, sum: u128, unit: f64| {
            let at = |quantile: f64| histogram.value_at_quantile(quantile) as f64 / unit;
            if histogram.is_empty() {
                return Spread::default();
            }
            let mean = sum as f64 / histogram.len() as f64 / unit;
            Spread { mean, p50: at(0.5), p90: at(0.9), p95: at(0.95), p99: at(0.99) }
        };
        let providers: Vec<_> = providers
            .into_iter()
            .zip(&self.earned)
            .filter(|((_, capacity), _)| *capacity > 0.0)
            .map(|((owner, capacity_tokens_per_s), (micro, jobs))| Provider {
                owner,
                revenue: *micro as f64 / 1e6,
                capacity_tokens_per_s,
                jobs: *jobs,
            })
            .collect();
        let rates = providers.iter().map(|provider| provider.revenue / provider.capacity_tokens_per_s);
        let seconds = self.end_us.saturating_sub(self.from_us) as f64 / 1e6;
        Outcome {
            policy: policy.to_owned(),
            seed,
            hash: self.hash.finalize().to_hex().to_string(),
            events: self.events,
            jobs: counts,
            slo: per(counts.in_time as f64, counts.total as f64),
            ttft_ms: spread(&self.ttft_us, self.sums[0], 1e3),
            tpot_ms: spread(&self.tpot_us, self.sums[1], 1e3),
            e2e_s: spread(&self.e2e_us, self.sums[2], 1e6),
            cost: self.cost_micro as f64 / 1e6,
            spill_share: per(counts.network as f64, (counts.network + counts.own) as f64),
            fairness: jain(rates),
            providers,
            hit_rate: per(self.cached as f64, self.read as f64),
            output_tokens_per_s: per(self.output as f64, seconds),
            probes_per_job: per(self.probes as f64, counts.total as f64),
            end_s: self.end_us as f64 / 1e6,
            alive_max: self.alive_max,
            records: self.records.unwrap_or_default(),
        }
    }
}

/// Jain's index of fairness: 1 if all are equal, 1/n if one has all. 1 if there is nothing to share.
/// Source: Jain, Chiu and Hawe, DEC-TR-301, 1984.
fn jain(shares: impl Iterator<Item = f64>) -> f64 {
    let (mut count, mut sum, mut squares) = (0.0, 0.0, 0.0);
    for share in shares {
        count += 1.0;
        sum += share;
        squares += share * share;
    }
    if squares > 0.0 { sum * sum / (count * squares) } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jains_index() {
        for (shares, index) in
            [(vec![1.0, 1.0, 1.0], 1.0), (vec![3.0, 0.0, 0.0], 1.0 / 3.0), (vec![2.0, 1.0], 0.9), (vec![], 1.0)]
        {
            let found = jain(shares.iter().copied());
            assert!((found - index).abs() < 1e-12, "{shares:?} gave {found}");
        }
    }
}
