//! `spillway-sim compare`: routing policies side by side on one workload.

use super::output::{Folder, command};
use super::{Seeds, parse_seeds};
use crate::fleet::policies::{Entry, TABLE, named};
use crate::fleet::{self, Setting};
use crate::page::{self, Origin};
use anyhow::Context as _;
use std::path::{Path, PathBuf};
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
    /// Writes a page with charts and the JSON into this folder.
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

/// Prints the comparison.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let folder = args.report.as_deref().map(Folder::new).transpose()?;
    let (setting, text) = read(&args.scenario)?;
    let policies = policies(&args.policies, &setting);
    let Seeds { first, end } = args.seeds;
    let comparison =
        fleet::compare(&setting, &policies, first..end, progress).with_context(|| format!("in {}", args.scenario))?;
    if let Some(folder) = folder {
        let origin = Origin { command: command(), setting: text };
        folder.write(&page::comparison(&comparison, &origin), &comparison)?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&comparison)?);
    } else {
        print!("{comparison}");
    }
    Ok(ExitCode::SUCCESS)
}

/// The policies asked for, else the setting's, else all.
pub(super) fn policies(asked: &[&'static Entry], setting: &Setting) -> Vec<&'static Entry> {
    match (asked, &setting.policies[..]) {
        ([], []) => TABLE.iter().collect(),
        ([], names) => names.iter().map(|name| named(name).expect("the setting is valid")).collect(),
        (asked, _) => asked.to_vec(),
    }
}

/// Says now and then how far it is.
pub(super) fn progress(done: u64, total: u64) {
    let step = (total / 20).max(1);
    if done.is_multiple_of(step) || done == total {
        eprintln!("{done} of {total} runs");
    }
}

/// A file if there is one of that name, else a built-in setting; with its text.
fn read(scenario: &str) -> anyhow::Result<(Setting, String)> {
    if !Path::new(scenario).exists() {
        let text = fleet::text(scenario).context("it is neither a file nor a built-in setting")?;
        return Ok((fleet::named(scenario)?, text.to_owned()));
    }
    let text = std::fs::read_to_string(scenario).with_context(|| format!("cannot read {scenario}"))?;
    let setting = Setting::from_toml(&text).with_context(|| format!("in {scenario}"))?;
    Ok((setting, text))
}
