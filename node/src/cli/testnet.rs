//! `spillway demo` and `spillway testnet`: local networks of this very binary.
//! Invariant: nodes run the binary that was asked to start them, so what is seen is what was built.

use super::table::{self, Show};
use super::{Listing, Verdict};
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use serde_json::json;
use spillway_testnet::topology::GATEWAY;
use spillway_testnet::{Topology, demo, detached};
use std::path::PathBuf;

#[derive(Debug, Args)]
pub(crate) struct DemoArguments {
    /// Stay up at the end, with a base URL and an API key; ctrl-c stops it
    #[arg(long)]
    keep: bool,
    /// Print one JSON object on standard output; progress goes to standard error
    #[arg(long)]
    json: bool,
    /// Where its files go, and stay; otherwise a temporary folder that is removed unless a step failed
    #[arg(long, value_name = "DIR")]
    folder: Option<PathBuf>,
}

#[derive(Debug, Subcommand)]
pub(crate) enum TestnetCommand {
    /// Start a network (the demo's nodes), or those of its nodes that do not run
    Up(UpArguments),
    /// Show which nodes run
    Status(StatusArguments),
    /// Kill a node with SIGKILL, as a power cut would; `up` starts it again
    Kill(KillArguments),
    /// Stop every node cleanly
    Down(Where),
}

#[derive(Debug, Args)]
pub(crate) struct UpArguments {
    #[command(flatten)]
    place: Where,
    /// A committee of this many validators keeps the books, in place of one node (only in a new folder; needs a program
    /// built with `--features validator`)
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u8).range(1..=32))]
    validators: Option<u8>,
}

#[derive(Debug, Args)]
pub(crate) struct Where {
    /// The network's folder
    #[arg(long, value_name = "DIR", default_value = "testnet-data")]
    folder: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArguments {
    #[command(flatten)]
    place: Where,
    #[command(flatten)]
    listing: Listing,
}

#[derive(Debug, Args)]
pub(crate) struct KillArguments {
    /// The node's name, from `spillway testnet status`
    name: String,
    #[command(flatten)]
    place: Where,
}

fn this_binary() -> Result<PathBuf> {
    std::env::current_exe().context("cannot find this program's own file")
}

/// Runs `spillway demo`.
pub(crate) async fn demo(arguments: DemoArguments) -> Result<Verdict> {
    let options =
        demo::Options { binary: this_binary()?, folder: arguments.folder, keep: arguments.keep, json: arguments.json };
    Ok(if demo::run(&options).await? { Verdict::Done } else { Verdict::Failed })
}

/// Runs `spillway testnet …`.
pub(crate) async fn run(command: TestnetCommand) -> Result<Verdict> {
    match command {
        TestnetCommand::Up(UpArguments { place, validators }) => {
            if validators.is_some() && !cfg!(feature = "validator") {
                anyhow::bail!(
                    "--validators: this program was built without them; build it with `--features validator`"
                );
            }
            let asked = validators.map(usize::from);
            let found = detached::validators(&place.folder)?;
            if let (Some(asked), Some(found)) = (asked, found)
                && asked != found
            {
                anyhow::bail!("--validators: the network in {} has {found}", place.folder.display());
            }
            let topology = match asked.or(found) {
                None | Some(0) => Topology::demo(),
                Some(count) => Topology::demo().with_validators(count),
            };
            let started = detached::up(&this_binary()?, &place.folder, &topology).await?;
            let folder = place.folder.display();
            if started.is_empty() {
                table::line(&format!("every node in {folder} runs already"))?;
                return Ok(Verdict::Done);
            }
            table::line(&format!("started {} in {folder}", started.join(", ")))?;
            table::line(&format!(
                "a key for its API: spillway key create --folder {}",
                place.folder.join(GATEWAY).display()
            ))?;
            table::line(&format!("how it is:         spillway testnet status --folder {folder}"))?;
            table::line(&format!("stop it:           spillway testnet down --folder {folder}"))?;
        }
        TestnetCommand::Status(StatusArguments { place, listing }) => {
            let body = json!({"nodes": detached::status(&place.folder).await?});
            let columns = [
                ("NODE", "/name", Show::Plain),
                ("RUNS", "/running", Show::Flag),
                ("PID", "/pid", Show::Plain),
                ("PEERS", "/peers", Show::Plain),
                ("HEIGHT", "/height", Show::Plain),
                ("BASE URL", "/base_url", Show::Plain),
                ("EDGE", "/edge", Show::Plain),
            ];
            table::list(&body, "nodes", listing.json, &columns, "no nodes")?;
        }
        TestnetCommand::Kill(KillArguments { name, place }) => {
            let pid = detached::kill(&place.folder, &name).await?;
            table::line(&format!("killed {name} (process {pid}); `spillway testnet up` starts it again"))?;
        }
        TestnetCommand::Down(place) => {
            let stopped = detached::down(&place.folder).await?;
            let words =
                if stopped.is_empty() { "nothing ran".into() } else { format!("stopped {}", stopped.join(", ")) };
            table::line(&words)?;
        }
    }
    Ok(Verdict::Done)
}
