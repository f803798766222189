//! llm-d: an index of what every pod has cached, against choosing at random.
//!
//! Choices where the source leaves something open, and why: `docs/published.md`.

use super::engines::measured;
use super::lab::setting;
use super::{Lab, PaperError, Row};
use crate::draws::Draws;
use crate::fleet::{Ask, Choice, Outcome, Policy, Record, ReplicaId, Setting, View};
use crate::traces::names::{Prompt, mix};
use crate::traces::sampling::exponential;
use crate::traces::{Request, Workload};

pub(super) const SOURCE: &str =
    "llm-d, KV-Cache Wins You Can See, 2025-09-24, and guide precise-prefix-cache-aware (Apache-2.0)";

/// Figures are means over so many runs.
const SEEDS: u64 = 3;
/// Customers, each with a context of its own, and users of each.
const GROUPS: u32 = 150;
const USERS: u32 = 5;
/// Tokens of a customer's context, of a user's question, and of an answer.
const CONTEXT: u32 = 6000;
const QUESTION: u32 = 1200;
const ANSWER: u32 = 1000;
/// vLLM's block size, by the guide.
const BLOCK: u32 = 64;
/// What a pod's KV cache holds, by the blog's appendix.
const POD_TOKENS: u32 = 307_328;

/// Requests a second, and for how many seconds: the guide's `guide.yaml`. The first is the warm-up, one request of each user.
const LADDER: &[(u32, u32)] = &[
    (15, 50),
    (3, 20),
    (10, 20),
    (15, 20),
    (20, 38),
    (22, 34),
    (25, 30),
    (30, 25),
    (35, 21),
    (40, 38),
    (43, 36),
    (46, 33),
    (49, 30),
    (52, 29),
    (55, 27),
    (57, 26),
    (60, 25),
];

/// The load generator's stages: Poisson arrivals, as many as rate times duration; a stage begins when all of the one before have
/// ended, as in inference-perf. The prompts, one for each user, are shuffled once and sent over and over.
struct Ladder {
    stages: &'static [(u32, u32)],
    prompts: Vec<Request>,
    draws: Draws,
    sent: usize,
    /// Of this stage.
    left: u32,
    alive: u32,
    at_us: u64,
}

impl Ladder {
    fn new(seed: u64, stages: &'static [(u32, u32)]) -> Self {
        let mut draws = Draws::new(seed, "llm-d ladder");
        let mut prompts: Vec<Request> = (0..GROUPS * USERS)
            .map(|user| {
                let mut prompt = Prompt::of_blocks(BLOCK);
                prompt.push(mix(1, u64::from(user / USERS)), CONTEXT);
                prompt.push(mix(2, u64::from(user)), QUESTION);
                Request {
                    at_us: 0,
                    client: user,
                    session: u64::from(user),
                    input: CONTEXT + QUESTION,
                    output: ANSWER,
                    prefix: prompt.names(),
                }
            })
            .collect();
        for left in (1..prompts.len()).rev() {
            prompts.swap(left, draws.below(left as u64 + 1) as usize);
        }
        let left = stages.first().map_or(0, |(rate, seconds)| rate * seconds);
        Self { stages, prompts, draws, sent: 0, left, alive: 0, at_us: 0 }
    }
}

impl Workload for Ladder {
    fn next(&mut self) -> Option<Request> {
        if self.left == 0 {
            return None;
        }
        let (rate, _) = self.stages[0];
        self.left -= 1;
        self.alive += 1;
        self.at_us += (exponential(&mut self.draws) * 1e6 / f64::from(rate)) as u64;
        let prompt = &self.prompts[self.sent % self.prompts.len()];
        self.sent += 1;
        Some(Request { at_us: self.at_us, ..prompt.clone() })
    }

    fn ended(&mut self, now_us: u64, _: &Request) -> Option<Request> {
        self.alive -= 1;
        if self.alive == 0 && self.left == 0 && self.stages.len() > 1 {
            self.stages = &self.stages[1..];
            self.left = self.stages[0].0 * self.stages[0].1;
            // inference-perf gives its workers a second before a stage.
            self.at_us = now_us + 1_000_000;
        }
        None
    }
}

/// llm-d's scheduler: the highest sum of 2 × the share of the prompt that is cached, 1 × the share of KV memory that is free and
/// 1 × how short the queue is among all (the guide's scorers and weights).
#[derive(Default)]
struct Precise;

impl Policy for Precise {
    fn route(&mut self, _: u64, ask: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let waiting = |id: ReplicaId| view.seen(id).map_or(0, |seen| seen.waiting);
        let queues = view.candidates().iter().map(|id| waiting(*id));
        let (short, long) = queues.fold((u32::MAX, 0), |(short, long), queue| (short.min(queue), long.max(queue)));
        let score = |id: ReplicaId| {
            let cached = f64::from(view.cached_tokens(id, ask).unwrap_or(0)) / f64::from(ask.input);
            let memory = view.seen(id).map_or(0.0, |seen| 1.0 - seen.kv_used as f64 / seen.kv_tokens.max(1) as f64);
            let queue = if long == short { 1.0 } else { f64::from(long - waiting(id)) / f64::from(long - short) };
            2.0 * cached + memory + queue
        };
        let best = view.candidates().iter().copied().max_by(|a, b| score(*a).total_cmp(&score(*b)).then(b.cmp(a)));
        best.map_or(Choice::Wait, Choice::Replica)
    }
}

fn pods() -> Result<Setting, PaperError> {
    let toml = r#"
        name = "llm-d"
        duration_s = 100000
        prefix_block = 64
        live = true
        slo = { ttft_ms = 1, ttft_per_1000_input_ms = 0, tpot_ms = 100 }
        network = { jitter_us = 0 }
        queue = { length_max = 100000, wait_ms = 100000000 }
        [[gateway]]
        name = "scheduler"
        region = "us-east"
        organisation = "llm-d"
        [[replica]]
        name = "pod"
        count = 8
        engine = "h100x2-qwen3-32b"
        region = "us-east"
        owner = "llm-d"
        slots = 100000
        "#;
    let mut engine = measured("2x H100 80GB HBM3", "Qwen3-32B bf16 TP2", "h100x2-qwen3-32b");
    engine.kv_tokens = POD_TOKENS;
    Ok(setting(toml, vec![engine])?)
}

/// What one stage came to.
#[derive(Clone, Copy, Debug)]
struct Stage {
    rate: u32,
    output_per_s: f64,
    ttft_p90_s: f64,
}

/// Stage by stage, the warm-up left out.
fn stages(outcome: &Outcome, ladder: &[(u32, u32)]) -> Vec<Stage> {
    let mut records: Vec<&Record> = outcome.records.iter().collect();
    records.sort_by_key(|record| record.at_us);
    let mut stages = Vec::new();
    for &(rate, seconds) in ladder {
        let count = ((rate * seconds) as usize).min(records.len());
        let of_stage: Vec<&Record> = records.drain(..count).collect();
        let Some(first) = of_stage.first() else { break };
        let end_us = of_stage.iter().map(|record| record.at_us + record.e2e_us).max().unwrap_or(0);
        let tokens: u64 = of_stage.iter().map(|record| u64::from(record.output)).sum();
        let mut ttft: Vec<u64> = of_stage.iter().filter_map(|record| record.ttft_us).collect();
        ttft.sort_unstable();
        stages.push(Stage {
            rate,
            output_per_s: tokens as f64 * 1e6 / (end_us - first.at_us) as f64,
            ttft_p90_s: ttft.get(ttft.len() * 9 / 10).map_or(f64::NAN, |us| *us as f64 / 1e6),
        });
    }
    stages.remove(0);
    stages
}

fn mean(stages: &[Stage], of: impl Fn(&Stage) -> f64) -> f64 {
    stages.iter().map(of).sum::<f64>() / stages.len() as f64
}

fn output(stages: &[Stage]) -> f64 {
    mean(stages, |stage| stage.output_per_s)
}

fn p90(stages: &[Stage]) -> f64 {
    mean(stages, |stage| stage.ttft_p90_s)
}

/// Each stage's mean over the runs.
fn over_seeds(
    ladder: &[(u32, u32)],
    seeds: u64,
    run: impl Fn(u64) -> Result<Outcome, PaperError>,
) -> Result<Vec<Stage>, PaperError> {
    let mut runs = Vec::new();
    for seed in 1..=seeds {
        runs.push(stages(&run(seed)?, ladder));
    }
    let mean = |at: usize, of: fn(&Stage) -> f64| runs.iter().map(|run| of(&run[at])).sum::<f64>() / seeds as f64;
    let stage = |(at, stage): (usize, &Stage)| Stage {
        rate: stage.rate,
        output_per_s: mean(at, |it| it.output_per_s),
        ttft_p90_s: mean(at, |it| it.ttft_p90_s),
    };
    Ok(runs[0].iter().enumerate().map(stage).collect())
}

pub(super) fn run(lab: &Lab<'_>) -> Result<Vec<Row>, PaperError> {
    on(lab, LADDER, SEEDS)
}

fn on(lab: &Lab<'_>, ladder: &'static [(u32, u32)], seeds: u64) -> Result<Vec<Row>, PaperError> {
    let setting = pods()?;
    let workload = |seed| Box::new(Ladder::new(seed, ladder));
    let precise = over_seeds(ladder, seeds, |seed| {
        lab.run_with(seed, &setting, workload(seed), "precise index", &|_| Box::<Precise>::default())
    })?;
    let random = over_seeds(ladder, seeds, |seed| lab.run(seed, &setting, workload(seed), "random"))?;
    let ours = over_seeds(ladder, seeds, |seed| lab.ours_untargeted(seed, &setting, workload(seed)))?;
    for (name, stages) in [("precise", &precise), ("random", &random), ("ours", &ours)] {
        for Stage { rate, output_per_s, ttft_p90_s } in stages {
            lab.says(&format!("llm-d: {name} at {rate}/s: {output_per_s:.0} tokens/s, TTFT p90 {ttft_p90_s:.3} s"));
        }
    }
    let last = |stages: &[Stage], of: fn(&Stage) -> f64| stages.last().map_or(f64::NAN, of);
    let blog = "The blog's run, whose stages are not published; a mean over stages, as its report makes it.";
    let guide = "The guide's run, with the stages used here.";
    Ok(vec![
        Row::new("output tokens/s, precise index", "1/s")
            .published(8730.0)
            .reproduced(output(&precise))
            .ours(output(&ours))
            .because(blog),
        Row::new("output tokens/s, random", "1/s").published(4428.7).reproduced(output(&random)).because(blog),
        Row::new("output, index / random", "×")
            .published(8730.0 / 4428.7)
            .reproduced(output(&precise) / output(&random))
            .ours(output(&ours) / output(&random))
            .achieves("ours ≥ 1.9", |it| it >= 1.9),
        Row::new("output tokens/s, precise index (guide)", "1/s")
            .published(12_598.0)
            .reproduced(output(&precise))
            .ours(output(&ours))
            .because(guide),
        Row::new("output tokens/s, round robin (guide)", "1/s")
            .published(5722.0)
            .reproduced(output(&random))
            .because(format!("{guide} A Kubernetes service there, random here.")),
        Row::new("TTFT p90, precise index", "s").published(0.542).reproduced(p90(&precise)).ours(p90(&ours)),
        Row::new("TTFT p90, random", "s").published(92.551).reproduced(p90(&random)),
        Row::new("TTFT p90 at 60/s, precise index (guide)", "s")
            .published(0.300)
            .reproduced(last(&precise, |stage| stage.ttft_p90_s))
            .ours(last(&ours, |stage| stage.ttft_p90_s))
            .achieves("ours < 1 s", |it| it < 1.0),
        Row::new("output tokens/s at 60/s, precise index (guide)", "1/s")
            .published(15_733.0)
            .reproduced(last(&precise, |stage| stage.output_per_s))
            .ours(last(&ours, |stage| stage.output_per_s)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stage_begins_when_the_one_before_has_ended() {
        let mut ladder = Ladder::new(1, &[(3, 2), (5, 1)]);
        let first: Vec<_> = std::iter::from_fn(|| ladder.next()).collect();
        assert_eq!(first.len(), 6);
        for request in &first {
            assert_eq!((request.input, request.output, request.prefix.len()), (7200, 1000, 112));
            assert_eq!(ladder.next(), None, "{request:?} has not ended");
            ladder.ended(99_000_000, request);
        }
        let second: Vec<_> = std::iter::from_fn(|| ladder.next()).collect();
        assert_eq!(second.len(), 5);
        assert!(second[0].at_us > 100_000_000);
    }

    #[test]
    fn the_index_beats_chance() {
        static SHORT: &[(u32, u32)] = &[(15, 20), (20, 10)];
        let rows = on(&Lab::on_cuts(&|_| {}), SHORT, 1).unwrap();
        let p90 = |at: usize| rows[at].reproduced.unwrap();
        assert!(2.0 * p90(5) < p90(6), "{rows:?}");
    }
}
