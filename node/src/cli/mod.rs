//! The command line: one file for each noun, all of them thin over the node's and the testnet's libraries.
//! Invariant: a command that asks a running node goes through its admin API, as anyone with the token could.

mod audit;
mod bench;
mod doctor;
mod init;
mod jobs;
mod keys;
mod ledger;
mod limits;
mod market;
mod projects;
mod submit;
mod table;
mod testnet;
mod up;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use spillway_testnet::Admin;
use std::path::PathBuf;
use std::process::ExitCode;

/// Jobs run on your own hardware first and spill over to strangers' when it is full; idle hardware earns.
#[derive(Debug, Parser)]
#[command(name = "spillway", version, arg_required_else_help = true)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

impl Arguments {
    /// How many threads wait and decide; `None` for one on each core.
    pub fn threads(&self) -> Option<usize> {
        if let Command::Up(arguments) = &self.command { Some(arguments.threads()) } else { None }
    }
}

/// How a command ended that did not end in an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// As asked.
    Done,
    /// It ran, and what it found is bad; it has said so.
    Failed,
}

/// Which node is meant.
#[derive(Clone, Debug, Args)]
struct Place {
    /// The node's folder: spillway.toml, keys, books
    #[arg(long, value_name = "DIR", default_value = ".")]
    folder: PathBuf,
}

impl Place {
    /// The admin API of the node that runs there.
    fn admin(&self) -> Result<Admin> {
        Admin::in_folder(&self.folder)
    }
}

/// How a listing is printed.
#[derive(Clone, Copy, Debug, Args)]
struct Listing {
    /// Print JSON instead of a table
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A whole network on this machine, shown at work: answers, saturates, spills, survives a kill, settles, verifies
    Demo(testnet::DemoArguments),
    /// Write keys and a commented spillway.toml
    Init(init::InitArguments),
    /// Run a node from its spillway.toml
    Up(up::UpArguments),
    /// Send one job to a node's QUIC edge and print the answer as it comes
    Submit(submit::SubmitArguments),
    /// What can be called now: models, who has them, from which price
    Models(market::MarketArguments),
    /// Who offers what: price, slots, distance, reputation, per provider
    Market(market::MarketArguments),
    /// API keys of a running node
    #[command(subcommand)]
    Key(keys::KeyCommand),
    /// Projects of a running node: limits that several keys share
    #[command(subcommand)]
    Project(projects::ProjectCommand),
    /// Why a job went where it went, and what it cost
    Explain(market::ExplainArguments),
    /// The log of the operator's actions: show it, and verify that it is whole
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    /// The last jobs of a running node: times and sizes, to replay your own day in the simulator
    #[command(subcommand)]
    Jobs(jobs::JobsCommand),
    /// The books: balance, log, receipts, verification
    #[command(subcommand)]
    Ledger(ledger::LedgerCommand),
    /// The simulator: the shipped market and ledger code in virtual time
    Sim(spillway_simulator::cli::Args),
    /// A local network that stays up: start, look, kill, stop
    #[command(subcommand)]
    Testnet(testnet::TestnetCommand),
    /// Measure, beside something else in the same run
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    /// What is wrong with this node, in words
    Doctor(doctor::DoctorArguments),
}

/// Does what the command line asks for.
///
/// # Errors
/// What went wrong, worded for the user.
pub async fn run(arguments: Arguments) -> Result<Verdict> {
    match arguments.command {
        Command::Demo(arguments) => testnet::demo(arguments).await,
        Command::Init(arguments) => init::init(&arguments),
        Command::Up(arguments) => up::up(arguments).await,
        Command::Submit(arguments) => submit::submit(arguments).await,
        Command::Models(arguments) => market::models(&arguments).await,
        Command::Market(arguments) => market::market(&arguments).await,
        Command::Key(command) => keys::run(command).await,
        Command::Project(command) => projects::run(command).await,
        Command::Explain(arguments) => market::explain(&arguments).await,
        Command::Audit(command) => audit::run(command).await,
        Command::Jobs(command) => jobs::run(command).await,
        Command::Ledger(command) => ledger::run(command).await,
        Command::Sim(arguments) => simulate(arguments).await,
        Command::Testnet(command) => testnet::run(command).await,
        Command::Bench(command) => bench::run(command).await,
        Command::Doctor(arguments) => doctor::doctor(&arguments).await,
    }
}

async fn simulate(arguments: spillway_simulator::cli::Args) -> Result<Verdict> {
    // It computes for seconds to minutes: not on a thread that others' timers need.
    let code = tokio::task::spawn_blocking(move || spillway_simulator::cli::run(arguments))
        .await
        .context("the simulation was cut short")??;
    Ok(if code == ExitCode::SUCCESS { Verdict::Done } else { Verdict::Failed })
}
