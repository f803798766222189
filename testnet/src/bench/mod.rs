//! `spillway bench gateway`: what a gateway costs over calling its upstream directly.
//!
//! One mock upstream, and everything that is measured in front of it, in one run: the upstream called directly, a node of this very
//! binary, and any other gateways that run already ([`Gateway`]). They take turns in every round, so that what else the machine does
//! meets all of them alike; figures are medians over the rounds.
//! Invariant: an answer that is not the upstream's, byte for byte of its text, is counted as failed, never as fast.

mod load;
mod meter;
mod report;
mod upstream;

pub use report::{Figure, Report};

use crate::process::Node;
use crate::topology::{BOOKS, Plan, Topology};
use crate::wait::until;
use crate::{Testnet, process};
use anyhow::{Context, Result, bail};
use load::{Calls, Frames};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use upstream::Upstream;

/// The model that the mock upstream serves.
pub const MODEL: &str = "bench-model";
/// Jobs that the node under test may have at its backend at once: more than any load here, so that nothing queues.
const SLOTS: u32 = 128;
/// How long a gateway may take until it answers its first request.
const SERVED_WAIT: Duration = Duration::from_secs(60);
/// What is asked before anything is measured, so that connections, caches and compilers are warm.
const WARM_UP: Duration = Duration::from_millis(500);
/// How long a gateway rests before its memory counts as recovered.
const REST: Duration = Duration::from_secs(10);

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `spillway` binary under test.
    pub binary: PathBuf,
    /// Where the mock upstream listens.
    pub listen: SocketAddr,
    /// Gateways that run already, set to the mock upstream.
    pub beside: Vec<Gateway>,
    /// How often each takes its turn.
    pub rounds: u32,
    /// How long each load of a turn lasts.
    pub period: Duration,
}

/// A gateway that somebody started, in front of the mock upstream.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Gateway {
    /// What the report calls it.
    pub name: String,
    /// Its OpenAI API, such as `http://127.0.0.1:4000/v1`.
    pub base_url: String,
    /// What its clients must send, such as `authorization`.
    #[serde(default)]
    pub headers: BTreeMap<String, String>,
    /// Its process; its descendants count with it. Absent: neither CPU time nor memory are measured.
    pub pid: Option<u32>,
}

/// The loads of one turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Load {
    /// So many clients, each with its next request as soon as the last one is answered.
    Clients(usize),
    /// So many streams at once.
    Streams(usize),
}

const LOADS: [Load; 4] = [Load::Clients(1), Load::Clients(8), Load::Clients(32), Load::Streams(16)];

/// What one load of one turn gave.
#[derive(Clone, Debug)]
enum Turn {
    Calls(Calls),
    Frames(Frames),
}

/// Resident memory of one gateway in MB: before any load, the most seen after a load, and after a rest.
#[derive(Clone, Copy, Debug)]
struct Memory {
    idle: f64,
    loaded: f64,
    recovered: f64,
}

/// Runs it all; `say` is told what is under way.
///
/// # Errors
/// If the upstream, the node or a gateway beside cannot be reached. Wrong answers are figures, not errors.
pub async fn run(options: &Options, say: impl Fn(&str)) -> Result<Report> {
    let upstream = Upstream::start(options.listen).await?;
    let folder = tempfile::tempdir().context("a temporary folder")?;
    let mut plan = Plan::books().with_server(&upstream.base_url(), SLOTS);
    // Each request is logged, as by an operator who keeps an account of them.
    plan.config.telemetry.access_log = Some("access.jsonl".into());
    let testnet = Testnet::start(&options.binary, folder.path(), &Topology { plans: vec![plan] }).await?;
    let measured = measure(options, &upstream, testnet.node(BOOKS)?, &testnet, say).await;
    let stopped = testnet.stop().await;
    let report = measured?;
    stopped?;
    Ok(report)
}

async fn measure(
    options: &Options,
    upstream: &Upstream,
    node: &Node,
    testnet: &Testnet,
    say: impl Fn(&str),
) -> Result<Report> {
    let limits = json!({
        "name": "bench",
        "budget_micro": 1_000_000_000_000_u64,
        "budget_day_micro": 1_000_000_000_000_u64,
        "requests_per_minute": 100_000_000,
        "tokens_per_minute": 1_000_000_000,
        "concurrency": 1000,
    });
    let key = testnet.admin(BOOKS)?.post("/admin/keys", &limits).await?;
    let secret = key.get("secret").and_then(serde_json::Value::as_str).context("the node made no key")?;
    let base_url = node.ready().base_url.clone().context("the node has no gateway")?;
    let direct = Gateway { name: "direct".into(), base_url: upstream.base_url(), headers: BTreeMap::new(), pid: None };
    let ours = Gateway {
        name: "spillway".into(),
        base_url,
        headers: BTreeMap::from([("authorization".into(), format!("Bearer {secret}"))]),
        pid: Some(node.ready().pid),
    };
    let gateways: Vec<&Gateway> = [&direct, &ours].into_iter().chain(&options.beside).collect();
    for gateway in &gateways {
        say(&format!("waiting for {}", gateway.name));
        let what = format!("{} at {} gives the upstream's answer", gateway.name, gateway.base_url);
        until(&what, SERVED_WAIT, async || load::once(gateway).await.map(Some)).await.map_err(|error| {
            let log = process::log_tail(&process::log_file(node.folder()));
            if gateway.pid == ours.pid { error.context(format!("its log ends with\n{log}")) } else { error }
        })?;
    }
    let resident = |gateway: &Gateway| gateway.pid.map(meter::resident_mb).transpose();
    let mut memory: Vec<Option<Memory>> = Vec::new();
    for gateway in &gateways {
        memory.push(resident(gateway)?.map(|idle| Memory { idle, loaded: idle, recovered: idle }));
    }
    let mut turns: BTreeMap<(usize, Load), Vec<Turn>> = BTreeMap::new();
    for round in 0..options.rounds as usize {
        for turn in 0..gateways.len() {
            // Who begins changes from round to round.
            let at = (round + turn) % gateways.len();
            let gateway = gateways[at];
            say(&format!("round {} of {}: {}", round + 1, options.rounds, gateway.name));
            load::calls(gateway, 8, WARM_UP).await?;
            for load in LOADS {
                let result = match load {
                    Load::Clients(clients) => {
                        let before = gateway.pid.map(meter::cpu).transpose()?;
                        let mut calls = load::calls(gateway, clients, options.period).await?;
                        if let (Some(before), Some(pid)) = (before, gateway.pid) {
                            calls.cpu = Some(meter::cpu(pid)?.saturating_sub(before));
                        }
                        Turn::Calls(calls)
                    }
                    Load::Streams(streams) => Turn::Frames(load::streams(gateway, streams).await?),
                };
                turns.entry((at, load)).or_default().push(result);
                if let (Some(memory), Some(now)) = (&mut memory[at], resident(gateway)?) {
                    memory.loaded = memory.loaded.max(now);
                }
            }
        }
    }
    say("resting");
    tokio::time::sleep(REST).await;
    for (gateway, memory) in gateways.iter().zip(&mut memory) {
        if let (Some(memory), Some(now)) = (memory, resident(gateway)?) {
            memory.recovered = now;
        }
    }
    let names: Vec<&str> = gateways.iter().map(|gateway| gateway.name.as_str()).collect();
    Ok(report::build(&names, &turns, &memory))
}

/// Reads the gateways beside from JSON: an array of objects with `name`, `base_url`, and if need be `headers` and `pid`.
///
/// # Errors
/// A file that cannot be read or is no such array; the field is named.
pub fn beside(path: &std::path::Path) -> Result<Vec<Gateway>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let gateways: Vec<Gateway> = serde_json::from_str(&text).with_context(|| format!("{}", path.display()))?;
    for gateway in &gateways {
        if gateway.name == "direct" || gateway.name == "spillway" {
            bail!("{}: name: \"{}\" is taken by this run", path.display(), gateway.name);
        }
    }
    Ok(gateways)
}
