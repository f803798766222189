//! The market itself: what is paid against OpenRouter's 1/price² and the cheapest that is in time, and how many jobs are in time
//! against an oracle.
//!
//! Both on the built-in setting `spillover`: organisations with fleets for their mean load, strangers for the peaks, prices of
//! real hosts, ServeGen's clients. Choices, and why: `docs/published.md`.

use super::{Lab, PaperError, Row};
use crate::fleet::{Outcome, Setting, named};

pub(super) const PRICE_SOURCE: &str =
    "openrouter.ai/docs, Provider Routing; prices of models.dev and LiteLLM, July 2026; ServeGen (Xiang et al., 2025)";
pub(super) const ORACLE_SOURCE: &str = "no publication: a policy that sees all";

/// Runs over so many seeds: each draws another market and other arrivals.
const SEEDS: u64 = 3;

/// Sums over the seeds.
#[derive(Clone, Copy, Debug, Default)]
struct Sums {
    jobs: f64,
    in_time: f64,
    cost: f64,
    spilled: f64,
    ttft_p99_ms: f64,
}

impl Sums {
    fn of(outcomes: &[Outcome]) -> Self {
        let sum = |of: fn(&Outcome) -> f64| outcomes.iter().map(of).sum::<f64>();
        Self {
            jobs: sum(|it| it.jobs.total as f64),
            in_time: sum(|it| it.jobs.in_time as f64),
            cost: sum(|it| it.cost),
            spilled: sum(|it| it.jobs.network as f64),
            ttft_p99_ms: sum(|it| it.ttft_ms.p99) / outcomes.len().max(1) as f64,
        }
    }

    fn slo(&self) -> f64 {
        100.0 * self.in_time / self.jobs
    }

    /// Credits for a thousand jobs that strangers served.
    fn per_spilled(&self) -> f64 {
        1000.0 * self.cost / self.spilled
    }
}

fn outcomes(lab: &Lab<'_>, setting: &Setting, policy: &str) -> Result<Sums, PaperError> {
    let mut outcomes = Vec::new();
    for seed in 1..=SEEDS {
        outcomes.push(lab.run(seed, &setting.drawn(seed)?, setting.requests(seed)?, policy)?);
    }
    Ok(Sums::of(&outcomes))
}

fn spillover(lab: &Lab<'_>) -> Result<Setting, PaperError> {
    let mut setting = named("spillover")?;
    if lab.cut() {
        setting.duration_s = 300;
    }
    Ok(setting)
}

pub(super) fn price(lab: &Lab<'_>) -> Result<Vec<Row>, PaperError> {
    let setting = spillover(lab)?;
    let weighted = outcomes(lab, &setting, "openrouter")?;
    let feasible = outcomes(lab, &setting, "oracle")?;
    let ours = outcomes(lab, &setting, "spillway")?;
    let in_time = "Of all jobs; first token and pace.";
    Ok(vec![
        Row::new("jobs in time, 1/price²", "%").reproduced(weighted.slo()).ours(ours.slo()).because(in_time),
        Row::new("jobs in time, at least as with 1/price²", "points")
            .ours(ours.slo() - weighted.slo())
            .achieves("ours ≥ -0.5", |it| it >= -0.5),
        Row::new("spill share, 1/price²", "%")
            .reproduced(100.0 * weighted.spilled / weighted.jobs)
            .ours(100.0 * ours.spilled / ours.jobs),
        Row::new("credits for 1,000 spilled jobs, 1/price²", "")
            .reproduced(weighted.per_spilled())
            .ours(ours.per_spilled()),
        Row::new("cost in all, of 1/price²'s", "×")
            .reproduced(1.0)
            .ours(ours.cost / weighted.cost)
            .achieves("ours < 1", |it| it < 1.0),
        Row::new("cost in all, of the cheapest feasible's", "×")
            .reproduced(weighted.cost / feasible.cost)
            .ours(ours.cost / feasible.cost)
            .achieves("ours ≤ 1.2", |it| it <= 1.2)
            .because("The cheapest feasible: an oracle that takes the cheapest that is in time, else the fastest."),
    ])
}

pub(super) fn oracle(lab: &Lab<'_>) -> Result<Vec<Row>, PaperError> {
    let setting = spillover(lab)?;
    let oracle = outcomes(lab, &setting, "oracle")?;
    let ours = outcomes(lab, &setting, "spillway")?;
    let mut rows = vec![
        Row::new("jobs in time, oracle", "%").reproduced(oracle.slo()).ours(ours.slo()),
        Row::new("jobs in time, of the oracle's", "%")
            .reproduced(100.0)
            .ours(100.0 * ours.slo() / oracle.slo())
            .achieves("ours ≥ 90", |it| it >= 90.0),
        Row::new("TTFT p99, oracle", "ms").reproduced(oracle.ttft_p99_ms).ours(ours.ttft_p99_ms),
    ];
    for policy in ["own-only", "least-load", "prequal", "openrouter"] {
        let other = outcomes(lab, &setting, policy)?;
        rows.push(
            Row::new(format!("jobs in time, {policy}"), "%").reproduced(other.slo()).because("For comparison alone."),
        );
    }
    Ok(rows)
}
