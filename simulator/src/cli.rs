//! The simulator's command line, for `spillway-sim` and `spillway sim` alike.
//! Invariant: what is asked for goes to standard output, progress to standard error.

mod compare;
mod output;
mod replay;
mod trial;

use crate::page::{self, Origin};
use crate::scenario::{SWARM, Scenario, built_in};
use crate::swarm::swarm;
use crate::{Report, Simulation};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Runs Spillway's market in virtual time.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, clap::Subcommand)]
enum Command {
    /// Runs one scenario and prints what it showed; fails if a check does not hold.
    Run {
        /// A built-in scenario (see `list`), `swarm` for the one its seed draws, or a TOML file.
        scenario: String,
        /// What everything random follows from.
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
        /// Prints every event and effect to standard error.
        #[arg(long)]
        trace: bool,
        /// Writes a page with charts and the JSON into this folder.
        #[arg(long, value_name = "DIR")]
        report: Option<PathBuf>,
    },
    /// Compares routing policies on one workload, over seeds.
    Compare(compare::Args),
    /// Plays a gateway's own log of jobs, and says what its day would have cost and earned under each policy.
    Replay(replay::Args),
    /// Runs many seeds, each with a scenario of its own; fails if any check does not hold.
    Swarm {
        /// First seed, and the one after the last: `0..200`.
        #[arg(long, value_parser = parse_seeds)]
        seeds: Seeds,
        /// Prints one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Reproduces a published result: as published, as its method does here, and ours.
    Paper(crate::paper::command::Args),
    /// Shows how offers spread among many nodes: bytes, times, staleness, and what Sybils achieve.
    Discovery(crate::discovery::Args),
    /// Plays many runs to put a figure on a promise; fails if a rule or a bound does not hold.
    Trial(trial::TrialArgs),
    /// Prints a scenario as TOML, to start your own from.
    Show {
        /// As for `run`.
        scenario: String,
        /// Matters for `swarm` alone.
        #[arg(long, default_value_t = 1)]
        seed: u64,
    },
    /// Lists the built-in scenarios.
    List {
        /// Prints one JSON array.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seeds {
    first: u64,
    end: u64,
}

fn parse_seeds(text: &str) -> Result<Seeds, String> {
    let parsed = text.split_once("..").and_then(|(first, end)| {
        let seeds = Seeds { first: first.trim().parse().ok()?, end: end.trim().parse().ok()? };
        (seeds.first < seeds.end).then_some(seeds)
    });
    parsed.ok_or_else(|| format!("`{text}` is not a range of seeds such as 0..200"))
}

/// Does what the arguments say. The exit code is 0 if every check held, 1 if not.
///
/// # Errors
/// If the scenario does not exist, does not read, or does not hold; the error names the field.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    match args.command {
        Command::Run { scenario, seed, json, trace, report: folder } => {
            let folder = folder.as_deref().map(output::Folder::new).transpose()?;
            let report = run_one(&scenario, seed, trace)?;
            if let Some(folder) = folder {
                let origin = Origin { command: output::command(), setting: toml::to_string(&read(&scenario, seed)?)? };
                folder.write(&page::report(&report, &origin), &report)?;
            }
            if json {
                println!("{}", serde_json::to_string(&report)?);
            } else {
                print!("{report}");
            }
            if let Some(failure) = report.failure() {
                eprintln!("{failure}");
                return Ok(ExitCode::FAILURE);
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Compare(args) => compare::run(&args),
        Command::Replay(args) => replay::run(&args),
        Command::Swarm { seeds: Seeds { first, end }, json } => {
            let total = end - first;
            let step = (total / 20).max(1);
            let result = swarm(first..end, |done| {
                if done % step == 0 || done == total {
                    eprintln!("{done} of {total} seeds");
                }
            });
            if json {
                println!("{}", serde_json::to_string(&result)?);
            } else {
                for failure in &result.failures {
                    println!("seed {}: {}\n  replay: {}", failure.seed, failure.what, failure.replay);
                }
                println!("{} seeds, {} failures", result.seeds, result.failures.len());
            }
            Ok(if result.failures.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Command::Paper(args) => crate::paper::command::run(args),
        Command::Discovery(args) => crate::discovery::command(&args),
        Command::Trial(args) => trial::run(&args),
        Command::Show { scenario, seed } => {
            print!("{}", toml::to_string(&read(&scenario, seed)?)?);
            Ok(ExitCode::SUCCESS)
        }
        Command::List { json } => {
            let all = built_in();
            if json {
                let list: Vec<_> =
                    all.iter().map(|it| serde_json::json!({ "name": it.name, "about": it.about })).collect();
                println!("{}", serde_json::to_string(&list)?);
            } else {
                for scenario in all {
                    println!("{:<8} {}", scenario.name, scenario.about);
                }
                println!("{SWARM:<8} The scenario that its seed draws.");
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

fn run_one(scenario: &str, seed: u64, trace: bool) -> anyhow::Result<Report> {
    let simulation = Simulation::new(seed).trace(trace).scenario(read(scenario, seed)?);
    Ok(simulation.from_file(scenario).run())
}

/// A file if there is one of that name, else a built-in scenario.
fn read(scenario: &str, seed: u64) -> anyhow::Result<Scenario> {
    if !Path::new(scenario).exists() {
        return Scenario::named(scenario, seed).context("it is neither a file nor a built-in scenario");
    }
    let text = std::fs::read_to_string(scenario).with_context(|| format!("cannot read {scenario}"))?;
    Scenario::from_toml(&text).with_context(|| format!("in {scenario}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_of_seeds() {
        for (text, range) in
            [("0..200", Some((0, 200))), ("7..8", Some((7, 8))), ("8..8", None), ("x..2", None), ("5", None)]
        {
            let parsed = parse_seeds(text).ok().map(|seeds| (seeds.first, seeds.end));
            assert_eq!(parsed, range, "{text}");
        }
    }
}
