//! `spillway bench`: measures, always beside something else in the same run.
//! Invariant: what is measured is this very binary, started as anyone would start it.

use super::Verdict;
use super::table;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use spillway_testnet::bench;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// What the gateway costs over calling its upstream directly: latency, CPU, streams, memory
    Gateway(GatewayArguments),
}

#[derive(Debug, Args)]
pub(crate) struct GatewayArguments {
    /// How often each takes its turn; figures are medians over the rounds
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// How long each load of a turn lasts, in milliseconds
    #[arg(long, value_name = "MS", default_value_t = 2000, value_parser = clap::value_parser!(u64).range(10..=600_000))]
    period: u64,
    /// Where the mock upstream listens, for gateways beside that must know it before; port 0 takes a free one
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:0")]
    upstream: SocketAddr,
    /// Other gateways that run already, set to that upstream and the model `bench-model`: a JSON file with an array of
    /// {"name", "base_url", "headers": {}, "pid"}
    #[arg(long, value_name = "FILE")]
    beside: Option<PathBuf>,
    /// Print one JSON object; progress goes to standard error
    #[arg(long)]
    json: bool,
}

/// Runs `spillway bench …`.
pub(crate) async fn run(command: BenchCommand) -> Result<Verdict> {
    let BenchCommand::Gateway(arguments) = command;
    let options = bench::Options {
        binary: std::env::current_exe().context("cannot find this program's own file")?,
        listen: arguments.upstream,
        beside: arguments.beside.as_deref().map(bench::beside).transpose()?.unwrap_or_default(),
        rounds: arguments.rounds,
        period: Duration::from_millis(arguments.period),
    };
    if cfg!(debug_assertions) {
        eprintln!("this program was built without optimisation: its figures say little");
    }
    let report = bench::run(&options, |step| eprintln!("{step}")).await?;
    if arguments.json {
        table::line(&serde_json::to_string(&report).context("the report as JSON")?)?;
    } else {
        table::line(report.table().trim_end())?;
    }
    Ok(Verdict::Done)
}
