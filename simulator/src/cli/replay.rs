//! `spillway-sim replay`: a gateway's own day, under each policy.
//! Invariant: the setting that runs is the one that the report shows, as TOML; running it with `compare` gives the same
//! figures.

use super::compare::{policies, progress};
use super::output::{Folder, command};
use super::{Seeds, parse_seeds};
use crate::fleet::policies::{Entry, named};
use crate::fleet::{self, Comparison, Interval, Outcome, Setting, interval};
use crate::page::{self, Day, Earned, Origin};
use crate::traces::joblog::JobLog;
use anyhow::Context as _;
use serde::Serialize;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::ExitCode;
use toml::{Table, Value};

/// Which day, and who was there.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// The log: one JSON object a job, plain or `.zst`.
    log: PathBuf,
    /// A setting (TOML) whose workload the log becomes; by default own replicas, and strangers as in `spillover`.
    #[arg(long, value_name = "FILE")]
    setting: Option<PathBuf>,
    /// Own replicas; by default as many as the day needs on average, at 70 % of their speed.
    #[arg(long, value_name = "N", conflicts_with = "setting", value_parser = clap::value_parser!(u32).range(..=10_000))]
    own: Option<u32>,
    /// What own replicas are made of.
    #[arg(long, value_name = "PRESET", conflicts_with = "setting", default_value = "rtx4090-llama-3.1-8b")]
    engine: String,
    /// Jobs that an own replica takes at once.
    #[arg(long, value_name = "N", conflicts_with = "setting", default_value_t = 16)]
    slots: u32,
    /// Only the jobs of this model.
    #[arg(long)]
    model: Option<String>,
    /// How many of the log's units are a token: 1 if the meter counts tokens, about 4 if it counts bytes.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1_000))]
    units_per_token: u32,
    /// First seed, and the one after the last: strangers and their prices are drawn by it.
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

/// What is printed as JSON.
#[derive(Debug, Serialize)]
struct Replay<'a> {
    #[serde(flatten)]
    day: &'a Day,
    #[serde(flatten)]
    comparison: &'a Comparison,
}

/// Plays the day.
pub(super) fn run(args: &Args) -> anyhow::Result<ExitCode> {
    let folder = args.report.as_deref().map(Folder::new).transpose()?;
    let log = JobLog::read(&args.log)?;
    let trace = log.trace(args.model.as_deref(), args.units_per_token);
    let Some(last) = trace.requests().last() else {
        let model = args.model.as_deref().unwrap_or_default();
        anyhow::bail!("--model: {} has no job of `{model}`; there are {:?}", args.log.display(), log.models);
    };
    let jobs = trace.requests().len();
    let span_s = last.at_us / 1_000_000 + 1;
    let text = setting(args, span_s)?;
    let read = Setting::from_toml(&text);
    let from =
        args.setting.as_ref().map_or_else(|| "the built-in setting".to_owned(), |path| path.display().to_string());
    let setting = read.with_context(|| format!("in {from}"))?;
    let policies = policies(&args.policies, &setting);
    let Seeds { first, end } = args.seeds;
    // Who is drawn is named alike for every seed.
    let drawn = setting.drawn(first).with_context(|| format!("in {from}"))?;
    let own: BTreeSet<&str> = drawn.gateways.iter().map(|gateway| &*gateway.organisation).collect();
    let outcomes = fleet::outcomes(&setting, &policies, first..end, progress).with_context(|| format!("in {from}"))?;
    let comparison = Comparison::of(&setting.name, &policies, first..end, &outcomes);
    let earned = policies.iter().enumerate().map(|(index, policy)| {
        let over = |owned: bool| {
            let sum = |outcome: &Outcome| -> f64 {
                let theirs = outcome.providers.iter().filter(|it| own.contains(&*it.owner) == owned);
                theirs.map(|provider| provider.revenue).sum()
            };
            interval(&outcomes.iter().map(|of_seed| sum(&of_seed[index])).collect::<Vec<_>>())
        };
        Earned { policy: policy.name.to_owned(), own: over(true), strangers: over(false) }
    });
    let log = args.log.display().to_string();
    let day = Day { log, jobs: jobs as u64, span_s, earned: earned.collect() };
    let replay = Replay { day: &day, comparison: &comparison };
    if let Some(folder) = folder {
        let origin = Origin { command: command(), setting: text };
        folder.write(&page::replay(&day, &comparison, &origin), &replay)?;
    }
    if args.json {
        println!("{}", serde_json::to_string(&replay)?);
        return Ok(ExitCode::SUCCESS);
    }
    println!("{}: {jobs} jobs in {:.2} h", day.log, span_s as f64 / 3600.0);
    print!("{comparison}");
    let width = day.earned.iter().map(|it| it.policy.len()).max().unwrap_or(0).max(6);
    println!(
        "\n{:<width$} {:>20} {:>20} {:>20}  (credits)",
        "policy", "the day cost", "own earned", "strangers earned"
    );
    let money = |it: Interval| format!("{:.4} ±{:.4}", it.mean, it.high - it.mean);
    for (row, earned) in comparison.policies.iter().zip(&day.earned) {
        let (cost, own, strangers) = (money(row.cost), money(earned.own), money(earned.strangers));
        println!("{:<width$} {cost:>20} {own:>20} {strangers:>20}", row.policy);
    }
    Ok(ExitCode::SUCCESS)
}

/// The setting as TOML: the file's or the built-in one, with the log as its workload, for as long as the log is.
fn setting(args: &Args, span_s: u64) -> anyhow::Result<String> {
    let mut table: Table = match &args.setting {
        Some(path) => {
            let text =
                std::fs::read_to_string(path).with_context(|| format!("--setting: cannot read {}", path.display()))?;
            toml::from_str(&text).with_context(|| format!("in {}", path.display()))?
        }
        None => built_in(args)?,
    };
    let path = args.log.to_str().context("the log's path is not UTF-8")?;
    let mut workload = Table::from_iter([
        ("kind".to_owned(), "job_log".into()),
        ("path".to_owned(), path.into()),
        ("units_per_token".to_owned(), i64::from(args.units_per_token).into()),
    ]);
    if let Some(model) = &args.model {
        workload.insert("model".to_owned(), model.as_str().into());
    }
    table.insert("workload".to_owned(), workload.into());
    table.insert("duration_s".to_owned(), i64::try_from(span_s)?.into());
    table.remove("pace");
    Ok(toml::to_string(&table)?)
}

/// Own replicas, and strangers as in `spillover`.
fn built_in(args: &Args) -> anyhow::Result<Table> {
    let mut table: Table = toml::from_str(fleet::text("spillover")?)?;
    table.insert("name".to_owned(), "own day".into());
    table.insert("about".to_owned(), "A gateway's own day: own replicas first, and strangers for the peaks.".into());
    let market = table.get_mut("market").and_then(Value::as_table_mut).context("`spillover` has a market")?;
    let mut own = Table::new();
    own.insert("engine".to_owned(), args.engine.as_str().into());
    own.insert("slots".to_owned(), i64::from(args.slots).into());
    // Strangers serve the same model, at the prices of the nearest one in the table of prices.
    let model = match &*args.engine {
        small if small.ends_with("-8b") => "llama-3.1-8b",
        large if large.ends_with("-70b") => "llama-3.3-70b",
        qwen if qwen.ends_with("qwen3-32b") => "qwen3-32b",
        other => anyhow::bail!("--engine: no prices are known for `{other}`; name a --setting"),
    };
    if model != "llama-3.1-8b" {
        market.insert("strangers".to_owned(), vec![Value::Table(own.clone())].into());
    }
    market.insert("model".to_owned(), model.into());
    market.insert("own".to_owned(), own.into());
    market.insert("own_sells".to_owned(), true.into());
    market.insert("organisations".to_owned(), 1.into());
    if let Some(count) = args.own {
        market.insert("own_count".to_owned(), i64::from(count).into());
    }
    Ok(table)
}
