//! `spillway up`: runs a node until it is told to stop.
//! Invariant: standard output carries one line, once the node serves; the log goes to standard error.

use super::{Place, Verdict};
use anyhow::{Context, Result};
use clap::Args;
use spillway_node::run::{Ready, load_config, run};
use std::io::{Read, Write};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// What is logged unless `RUST_LOG` says otherwise.
const LOG_DEFAULT: &str = "info";

#[derive(Debug, Args)]
pub(crate) struct UpArguments {
    #[command(flatten)]
    place: Place,
    /// Write the log as JSON lines
    #[arg(long)]
    log_json: bool,
    /// Stop when standard input closes, as it does when the program that started this node ends
    #[arg(long)]
    until_stdin_closes: bool,
    /// Threads for connections, the gateway and the market; by default one for every four cores. Engines and disks have their own
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,
}

/// Cores for one thread. What a second thread takes off the first costs more than it brings while one is not busy: half as much
/// processor time again for each request. `docs/performance.md`.
const CORES_PER_THREAD: usize = 4;

impl UpArguments {
    /// How many threads wait and decide.
    pub(super) fn threads(&self) -> usize {
        let cores = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        self.threads.map_or_else(|| (cores() / CORES_PER_THREAD).max(1), usize::from)
    }
}

fn log_to_stderr(json: bool) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(LOG_DEFAULT));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    if json {
        builder.json().init();
    } else {
        use std::io::IsTerminal;
        builder.with_ansi(std::io::stderr().is_terminal()).init();
    }
}

/// Says on standard output that the node serves, in one line.
fn announce(ready: &Ready) {
    let line = serde_json::to_string(ready).expect("strings and numbers are JSON");
    let mut out = std::io::stdout();
    // Nobody may be reading; the node serves all the same.
    writeln!(out, "{line}").and_then(|()| out.flush()).ok();
}

/// Resolves when standard input closes. A thread of its own: a pending read must not hold up the end of the program.
async fn stdin_closed() {
    let (closed, seen) = tokio::sync::oneshot::channel();
    std::thread::spawn(move || {
        let mut buffer = [0; 256];
        let mut stdin = std::io::stdin();
        while matches!(stdin.read(&mut buffer), Ok(1..)) {}
        closed.send(()).ok();
    });
    seen.await.ok();
}

/// Runs the node.
pub(crate) async fn up(arguments: UpArguments) -> Result<Verdict> {
    log_to_stderr(arguments.log_json);
    let folder = arguments.place.folder;
    let config = load_config(&folder)?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for ctrl-c")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let until_stdin_closes = arguments.until_stdin_closes;
    let stop = async move {
        let closed = async {
            if until_stdin_closes {
                stdin_closed().await;
            } else {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            _ = interrupt.recv() => tracing::info!("stopping: interrupted"),
            _ = terminate.recv() => tracing::info!("stopping: asked to"),
            () = closed => tracing::info!("stopping: standard input closed"),
        }
    };
    run(&folder, config, announce, stop).await?;
    Ok(Verdict::Done)
}
