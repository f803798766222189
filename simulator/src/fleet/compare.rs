//! Policies side by side, on the same seeds.
//! Invariant: the figures depend on the setting, the policies and the seeds, not on how many cores ran them.

use super::metrics::Outcome;
use super::policies::Entry;
use super::run::Fleet;
use super::setting::{Setting, SettingError};
use rayon::prelude::*;
use serde::Serialize;
use std::fmt;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// A mean over seeds and its 95 % interval: Student's t, of `seeds - 1` degrees. Without width for a single seed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Interval {
    /// The mean.
    pub mean: f64,
    /// The lower end.
    pub low: f64,
    /// The upper end.
    pub high: f64,
}

/// One policy's figures.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// The policy.
    pub policy: String,
    /// Jobs served in time, of all; refused ones count as missed.
    pub slo: Interval,
    /// Time to first token.
    pub ttft_p50_ms: Interval,
    /// Time to first token.
    pub ttft_p90_ms: Interval,
    /// Time to first token.
    pub ttft_p95_ms: Interval,
    /// Time to first token.
    pub ttft_p99_ms: Interval,
    /// Mean time between tokens.
    pub tpot_mean_ms: Interval,
    /// Mean time between a job's tokens.
    pub tpot_p99_ms: Interval,
    /// Time to the end.
    pub e2e_p50_s: Interval,
    /// Time to the end.
    pub e2e_p95_s: Interval,
    /// Credits, in all.
    pub cost: Interval,
    /// Of the jobs served, those that strangers helped with.
    pub spill_share: Interval,
    /// Of all jobs, those refused.
    pub refused_share: Interval,
    /// Of all jobs, those that broke off.
    pub failed_share: Interval,
    /// Of all jobs, those that waited at a gateway.
    pub waited_share: Interval,
    /// Jobs refused while a replica that may serve them had a slot free.
    pub refused_while_free: Interval,
    /// Credits that all providers together earned.
    pub provider_revenue: Interval,
    /// Jain's index over providers' revenue by capacity.
    pub fairness: Interval,
    /// Of the tokens read, those that were cached.
    pub hit_rate: Interval,
    /// Tokens that reached clients.
    pub output_tokens_per_s: Interval,
    /// Probes for each job.
    pub probes_per_job: Interval,
    /// Jobs that a replica turned away, for each job.
    pub turned_away_per_job: Interval,
    /// Events of a run.
    pub events: Interval,
}

/// What a comparison showed.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Comparison {
    /// The setting.
    pub scenario: String,
    /// The first seed, and the one after the last.
    pub seeds: [u64; 2],
    /// A row for each policy, in the order asked for.
    pub policies: Vec<Row>,
}

/// Runs each policy on each seed, on all cores. `progress` is told how many of how many runs are done.
///
/// # Errors
/// The field of the setting that does not hold.
pub fn compare(
    setting: &Setting,
    policies: &[&Entry],
    seeds: Range<u64>,
    progress: impl Fn(u64, u64) + Sync,
) -> Result<Comparison, SettingError> {
    let all = outcomes(setting, policies, seeds.clone(), progress)?;
    Ok(Comparison::of(&setting.name, policies, seeds, &all))
}

/// The outcomes behind a comparison: by seed, then by policy.
///
/// # Errors
/// The field of the setting that does not hold.
pub fn outcomes(
    setting: &Setting,
    policies: &[&Entry],
    seeds: Range<u64>,
    progress: impl Fn(u64, u64) + Sync,
) -> Result<Vec<Vec<Outcome>>, SettingError> {
    let seeds: Vec<u64> = seeds.collect();
    let drawn = seeds.par_iter().map(|seed| setting.drawn(*seed)).collect::<Result<Vec<_>, _>>()?;
    let pairs: Vec<_> =
        (0..seeds.len()).flat_map(|seed| (0..policies.len()).map(move |policy| (seed, policy))).collect();
    let done = AtomicU64::new(0);
    let run = |(seed, policy): &(usize, usize)| {
        let (entry, setting, seed) = (policies[*policy], &drawn[*seed], seeds[*seed]);
        let make = |gateway| (entry.make)(seed, gateway);
        let outcome = Fleet::new(seed, setting.clone(), setting.requests(seed)?, entry.name, &make)?.run();
        progress(done.fetch_add(1, Ordering::Relaxed) + 1, pairs.len() as u64);
        Ok(outcome)
    };
    let mut flat = pairs.par_iter().map(run).collect::<Result<Vec<_>, SettingError>>()?.into_iter();
    Ok(seeds.iter().map(|_| flat.by_ref().take(policies.len()).collect()).collect())
}

impl Comparison {
    /// Of [`outcomes`] of the same policies and seeds.
    #[must_use]
    pub fn of(scenario: &str, policies: &[&Entry], seeds: Range<u64>, outcomes: &[Vec<Outcome>]) -> Self {
        let rows = policies.iter().enumerate().map(|(index, entry)| {
            let of_policy: Vec<_> = outcomes.iter().map(|of_seed| &of_seed[index]).collect();
            Row::of(entry.name, &of_policy)
        });
        Self { scenario: scenario.to_owned(), seeds: [seeds.start, seeds.end], policies: rows.collect() }
    }
}

impl Row {
    fn of(policy: &str, outcomes: &[&Outcome]) -> Self {
        let over = |figure: &dyn Fn(&Outcome) -> f64| {
            interval(&outcomes.iter().map(|outcome| figure(outcome)).collect::<Vec<_>>())
        };
        let share = |part: u64, outcome: &Outcome| part as f64 / outcome.jobs.total.max(1) as f64;
        Self {
            policy: policy.to_owned(),
            slo: over(&|it| it.slo),
            ttft_p50_ms: over(&|it| it.ttft_ms.p50),
            ttft_p90_ms: over(&|it| it.ttft_ms.p90),
            ttft_p95_ms: over(&|it| it.ttft_ms.p95),
            ttft_p99_ms: over(&|it| it.ttft_ms.p99),
            tpot_mean_ms: over(&|it| it.tpot_ms.mean),
            tpot_p99_ms: over(&|it| it.tpot_ms.p99),
            e2e_p50_s: over(&|it| it.e2e_s.p50),
            e2e_p95_s: over(&|it| it.e2e_s.p95),
            cost: over(&|it| it.cost),
            spill_share: over(&|it| it.spill_share),
            refused_share: over(&|it| share(it.jobs.refused, it)),
            failed_share: over(&|it| share(it.jobs.failed, it)),
            waited_share: over(&|it| share(it.jobs.waited, it)),
            refused_while_free: over(&|it| it.jobs.refused_while_free as f64),
            provider_revenue: over(&|it| it.providers.iter().map(|provider| provider.revenue).sum()),
            fairness: over(&|it| it.fairness),
            hit_rate: over(&|it| it.hit_rate),
            output_tokens_per_s: over(&|it| it.output_tokens_per_s),
            probes_per_job: over(&|it| it.probes_per_job),
            turned_away_per_job: over(&|it| share(it.jobs.turned_away, it)),
            events: over(&|it| it.events as f64),
        }
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, end] = self.seeds;
        writeln!(
            out,
            "{}, seeds {first} to {}; means, and half the width of their 95 % intervals",
            self.scenario,
            end - 1
        )?;
        let width = self.policies.iter().map(|row| row.policy.len()).max().unwrap_or(0).max(6);
        write!(out, "{:<width$}", "policy")?;
        for head in [
            "SLO %",
            "TTFT p50 ms",
            "p95 ms",
            "p99 ms",
            "E2E p95 s",
            "cost",
            "spilled %",
            "refused %",
            "fairness",
            "probes/job",
        ] {
            write!(out, " {head:>16}")?;
        }
        writeln!(out)?;
        for row in &self.policies {
            write!(out, "{:<width$}", row.policy)?;
            for (interval, unit, digits) in [
                (row.slo, 100.0, 2),
                (row.ttft_p50_ms, 1.0, 0),
                (row.ttft_p95_ms, 1.0, 0),
                (row.ttft_p99_ms, 1.0, 0),
                (row.e2e_p95_s, 1.0, 2),
                (row.cost, 1.0, 3),
                (row.spill_share, 100.0, 1),
                (row.refused_share, 100.0, 2),
                (row.fairness, 1.0, 3),
                (row.probes_per_job, 1.0, 2),
            ] {
                let (mean, half) = (interval.mean * unit, (interval.high - interval.mean) * unit);
                write!(out, " {:>16}", format!("{mean:.digits$} ±{half:.digits$}"))?;
            }
            writeln!(out)?;
        }
        Ok(())
    }
}

/// The mean of independent figures with its 95 % interval.
#[must_use]
pub fn interval(figures: &[f64]) -> Interval {
    let count = figures.len() as f64;
    let mean = figures.iter().sum::<f64>() / count;
    if figures.len() < 2 {
        return Interval { mean, low: mean, high: mean };
    }
    let squares: f64 = figures.iter().map(|figure| (figure - mean) * (figure - mean)).sum();
    let half = t_975(figures.len() - 1) * (squares / (count - 1.0) / count).sqrt();
    Interval { mean, low: mean - half, high: mean + half }
}

/// The 0.975 quantile of Student's t with that many degrees of freedom, at least 1: from tables up to 30, then by the first
/// terms of its expansion around the normal one (Abramowitz and Stegun 26.7.5), exact to three digits.
fn t_975(degrees: usize) -> f64 {
    const TABLE: [f64; 30] = [
        12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131,
        2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042,
    ];
    const NORMAL: f64 = 1.959_964;
    if let Some(known) = TABLE.get(degrees - 1) {
        return *known;
    }
    let cube = NORMAL * NORMAL * NORMAL;
    NORMAL + (cube + NORMAL) / (4.0 * degrees as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_students() {
        // By hand: mean 3, standard deviation 1.5811, its error 0.7071, times 2.776.
        let found = interval(&[1.0, 2.0, 3.0, 4.0, 5.0]);
        assert!((found.mean - 3.0).abs() < 1e-12 && (found.high - 4.9629).abs() < 1e-3, "{found:?}");
        assert!((found.low + found.high - 6.0).abs() < 1e-12);
        assert_eq!(interval(&[7.0]), Interval { mean: 7.0, low: 7.0, high: 7.0 });
        for (degrees, t) in [(1, 12.706), (9, 2.262), (40, 2.021), (60, 2.000), (120, 1.980)] {
            assert!((t_975(degrees) - t).abs() < 2e-3, "{degrees}");
        }
    }
}
