//! `spillway-sim trial NAME`: campaigns with figures.
//! Invariant: the exit code is 0 only if every rule and every bound held.

use super::{Seeds, parse_seeds};
use crate::trial::{adversaries, overload, streams};
use serde::Serialize;
use std::fmt::Display;
use std::process::ExitCode;

/// Which trial, and how much of it.
#[derive(Clone, Debug, clap::Args)]
pub struct TrialArgs {
    /// What is tried.
    #[command(subcommand)]
    trial: Trial,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Trial {
    /// More work than slots: no job is turned away while a slot that it could have had stands idle.
    Overload(Common),
    /// Long answers whose providers leave for good in mid-stream: how many survive, and how soon a death is noticed.
    Streams(Common),
    /// Every kind of adversary at 0, 10, 33 and 50 %, and 1,000 names of one owner: losses, gains, and how soon it is known.
    Adversaries(Common),
}

#[derive(Clone, Debug, clap::Args)]
struct Common {
    /// First seed, and the one after the last; a default of its own for each trial.
    #[arg(long, value_parser = parse_seeds)]
    seeds: Option<Seeds>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

impl Common {
    fn seeds(&self, most: u64) -> std::ops::Range<u64> {
        self.seeds.map_or(0..most, |Seeds { first, end }| first..end)
    }

    fn show(&self, result: &(impl Serialize + Display), held: bool) -> anyhow::Result<ExitCode> {
        if self.json {
            println!("{}", serde_json::to_string(result)?);
        } else {
            print!("{result}");
        }
        Ok(if held { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

/// Tells how many are done, a few times in all.
fn told(total: u64) -> impl Fn(u64) + Sync {
    let step = (total / 20).max(1);
    move |done| {
        if done % step == 0 || done == total {
            eprintln!("{done} of {total}");
        }
    }
}

/// Plays a trial and prints what it showed.
///
/// # Errors
/// If the result cannot be written.
pub fn run(args: &TrialArgs) -> anyhow::Result<ExitCode> {
    match &args.trial {
        Trial::Overload(common) => {
            let seeds = common.seeds(1000);
            let result = overload::overload(seeds.clone(), told(seeds.end - seeds.start));
            common.show(&result, result.failures.is_empty())
        }
        Trial::Streams(common) => {
            let seeds = common.seeds(40);
            let total = 2 * (seeds.end - seeds.start);
            let result = streams::streams(seeds, told(total));
            common.show(&result, result.held())
        }
        Trial::Adversaries(common) => {
            let result = adversaries::adversaries(common.seeds(3), |what| eprintln!("{what}"));
            common.show(&result, result.held())
        }
    }
}
