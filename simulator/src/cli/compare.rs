//! `spillway-sim compare`: routing policies side by side on one workload.

use super::{Seeds, parse_seeds};
use crate::fleet::policies::{Entry, TABLE, named};
use crate::fleet::{self, Setting};
use anyhow::Context as _;
use std::path::Path;
use std::process::ExitCode;

/// What is compared.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// A built-in setting (`spillover`, `corner`), or a TOML file.
    scenario: String,
    /// First seed, and the one after the last: `0..10`.
    #[arg(long, value_parser = parse_seeds, default_value = "0..10")]
    seeds: Seeds,
    /// Names, separated by commas; by default those of the setting, and if it names none, all.
    #[arg(long, value_delimiter = ',', value_parser = named)]
    policies: Vec<&'static Entry>,
    /// Prints one JSON object.
    #[arg(long)]
    json: bool,
}

/// Prints the comparison.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let setting = read(&args.scenario)?;
    let policies: Vec<&Entry> = match (&args.policies[..], &setting.policies[..]) {
        ([], []) => TABLE.iter().collect(),
        ([], names) => names.iter().map(|name| named(name).expect("the setting is valid")).collect(),
        (asked, _) => asked.to_vec(),
    };
    let Seeds { first, end } = args.seeds;
    let comparison = fleet::compare(&setting, &policies, first..end, |done, total| {
        let step = (total / 20).max(1);
        if done % step == 0 || done == total {
            eprintln!("{done} of {total} runs");
        }
    })
    .with_context(|| format!("in {}", args.scenario))?;
    if args.json {
        println!("{}", serde_json::to_string(&comparison)?);
    } else {
        print!("{comparison}");
    }
    Ok(ExitCode::SUCCESS)
}

/// A file if there is one of that name, else a built-in setting.
fn read(scenario: &str) -> anyhow::Result<Setting> {
    if !Path::new(scenario).exists() {
        return fleet::named(scenario).context("it is neither a file nor a built-in setting");
    }
    let text = std::fs::read_to_string(scenario).with_context(|| format!("cannot read {scenario}"))?;
    Setting::from_toml(&text).with_context(|| format!("in {scenario}"))
}
