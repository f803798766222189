//! `spillway demo`: the main job, shown with real processes: discover, answer, saturate, spill, settle, verify.
//! Invariant: what the summary says was observed from outside: answers' headers, the books, and the verifier's verdict.

mod proof;
mod run;
mod steps;
mod tally;
mod voice;

use crate::process::log_file;
use crate::testnet::Testnet;
use crate::topology::{BOOKS, GATEWAY, Topology};
use anyhow::{Context, Result, bail};
use run::{Run, STEPS};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;
use tokio::signal::unix::{SignalKind, signal};
use voice::Voice;

/// What to do.
#[derive(Clone, Debug)]
pub struct Options {
    /// The `spillway` binary.
    pub binary: PathBuf,
    /// Where the files go; `None` takes a temporary folder.
    pub folder: Option<PathBuf>,
    /// Stay up at the end.
    pub keep: bool,
    /// Print one JSON object instead of words.
    pub json: bool,
}

/// How many jobs there were.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Jobs {
    /// In all.
    pub total: u64,
    /// Answered by own hardware alone.
    pub own: u64,
    /// Answered by strangers, at least in part.
    pub network: u64,
    /// Not answered to the end.
    pub failed: u64,
}

/// What was settled on the ledger, in micro-credits.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub struct Settled {
    /// What the consumer paid.
    pub gross: u64,
    /// What those got who did the work.
    pub provider: u64,
    /// What the network got: gateways, validators and the treasury.
    pub network: u64,
}

/// The one object of `--json`.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// The first answer's text.
    pub answer: String,
    /// How many jobs.
    pub jobs: Jobs,
    /// How many legs of jobs went where they went for which reason, by code.
    pub reasons: BTreeMap<String, u64>,
    /// The money.
    pub settled: Settled,
    /// Whether `spillway ledger verify` found the books in order.
    pub ledger_verified: bool,
    /// How many strangers served.
    pub providers: usize,
    /// How long it took.
    pub seconds: f64,
    /// What did not hold; empty when all is well.
    pub problems: Vec<String>,
    /// With `--keep`: the gateway's OpenAI API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_url: Option<String>,
    /// With `--keep`: a key for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub api_key: Option<String>,
    /// With `--keep`: the address for `spillway submit --via`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub edge: Option<String>,
    /// Where the files are, if they were left.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub folder: Option<PathBuf>,
}

/// Its files: where the user said, or a temporary folder that goes unless something failed.
struct Files {
    path: PathBuf,
    temporary: Option<tempfile::TempDir>,
}

impl Files {
    fn new(chosen: Option<&Path>) -> Result<Self> {
        match chosen {
            Some(path) => {
                std::fs::create_dir_all(path).with_context(|| format!("cannot create {}", path.display()))?;
                let path = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
                if path.join(BOOKS).exists() {
                    bail!("{} holds another network's files; choose an empty folder", path.display());
                }
                Ok(Self { path, temporary: None })
            }
            None => {
                let folder =
                    tempfile::Builder::new().prefix("spillway-demo-").tempdir().context("no temporary folder")?;
                let path = folder.path().canonicalize().context("no temporary folder")?;
                Ok(Self { path, temporary: Some(folder) })
            }
        }
    }

    /// Ends with the folder left in place; its path.
    fn leave(self) -> PathBuf {
        if let Some(temporary) = self.temporary {
            // `keep` only disarms the removal.
            let _ = temporary.keep();
        }
        self.path
    }

    fn is_temporary(&self) -> bool {
        self.temporary.is_some()
    }
}

/// Runs the demo; whether everything held.
///
/// # Errors
/// If it could not run at all, such as a folder that cannot be written.
pub async fn run(options: &Options) -> Result<bool> {
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot listen for ctrl-c")?;
    let mut terminate = signal(SignalKind::terminate()).context("cannot listen for SIGTERM")?;
    let interrupted = async move {
        tokio::select! {
            _ = interrupt.recv() => {},
            _ = terminate.recv() => {},
        }
    };
    tokio::pin!(interrupted);

    let files = Files::new(options.folder.as_deref())?;
    let mut voice = Voice::new(STEPS, options.json);
    voice.line("Spillway: jobs run on your own hardware first and spill over to strangers' when it is full.");
    voice.line("This demo is a whole network on this machine: separate processes, real protocols, play money.");
    let begun = Instant::now();
    let mut summary = Summary::default();

    let started = tokio::select! {
        started = start(options, &files.path, &mut voice) => started,
        () = &mut interrupted => { voice.rest(); bail!("interrupted") }
    };
    let mut run = match started {
        Ok(network) => Run::new(network, voice)?,
        Err(error) => {
            summary.problems.push(format!("{error:#}"));
            return finish(options, files, summary, begun, &voice);
        }
    };
    let walked = tokio::select! {
        walked = run.walk(&mut summary) => Some(walked),
        () = &mut interrupted => None,
    };
    let Some(walked) = walked else {
        run.voice.rest();
        run.stop().await?;
        bail!("interrupted");
    };
    summary.problems.extend(walked.err().map(|error| format!("{error:#}")));
    if options.keep && summary.problems.is_empty() {
        let verified = run.verify(&mut summary).await;
        summary.problems.extend(verified.err().map(|error| format!("{error:#}")));
    }
    if options.keep && summary.problems.is_empty() {
        run.voice.rest();
        summary.base_url = Some(run.base_url()?);
        summary.api_key = run.api_key().map(str::to_owned);
        summary.edge = Some(run.edge()?);
        summary.folder = Some(files.path.clone());
        summary.seconds = begun.elapsed().as_secs_f64();
        conclude(options, &summary, &run.voice)?;
        interrupted.await;
        run.voice.line("\nStopping.");
        run.stop().await?;
        return Ok(true);
    }
    // Without --keep the books are checked as they are left on the disk, after a clean stop.
    run.voice.wait("stopping the nodes");
    summary.problems.extend(run.stop().await.err().map(|error| format!("{error:#}")));
    if summary.problems.is_empty() {
        let verified = run.verify(&mut summary).await;
        summary.problems.extend(verified.err().map(|error| format!("{error:#}")));
    }
    finish(options, files, summary, begun, &run.voice)
}

async fn start(options: &Options, folder: &Path, voice: &mut Voice) -> Result<Testnet> {
    voice.step("Start four nodes, each a process and a folder of its own");
    voice.wait("starting");
    let begun = Instant::now();
    let topology = Topology::demo();
    let network = Testnet::start(&options.binary, folder, &topology).await?;
    crate::detached::remember(folder, &options.binary, network.names())?;
    voice.say("books    keeps the ledger; the one address everyone knows");
    voice.say("gateway  yours: an OpenAI API, and own hardware with one slot");
    voice.say("near     a stranger: close by, dear");
    voice.say("far      a stranger: 120 ms away, cheap");
    voice.say(&format!("up after {:.1} s, files in {}", begun.elapsed().as_secs_f64(), folder.display()));
    Ok(network)
}

/// Prints the end of a run that does not stay up; whether everything held.
fn finish(options: &Options, files: Files, mut summary: Summary, begun: Instant, voice: &Voice) -> Result<bool> {
    voice.rest();
    summary.seconds = begun.elapsed().as_secs_f64();
    let failed = !summary.problems.is_empty();
    if failed || !files.is_temporary() {
        summary.folder = Some(files.leave());
    }
    conclude(options, &summary, voice)?;
    Ok(!failed)
}

/// The last words: the summary, what failed and where to look, or what to try next.
fn conclude(options: &Options, summary: &Summary, voice: &Voice) -> Result<()> {
    if options.json {
        println!("{}", serde_json::to_string(summary).context("the summary as JSON")?);
    }
    if !summary.problems.is_empty() {
        voice.line("\nThe demo failed:");
        for problem in &summary.problems {
            voice.line(&format!("  - {problem}"));
        }
        if let Some(folder) = &summary.folder {
            let logs = Topology::demo().plans.into_iter().map(|plan| log_file(&folder.join(plan.name)));
            for log in logs.filter(|log| log.exists()) {
                voice.line(&format!("  look at {}", log.display()));
            }
        }
        return Ok(());
    }
    let Jobs { total, own, network, failed } = summary.jobs;
    voice.line(&format!(
        "\n{total} jobs: {own} on own hardware, {network} by {} strangers, {failed} failed. Took {:.0} s.",
        summary.providers, summary.seconds
    ));
    voice.line("\nTry next");
    let binary = options.binary.display();
    match (&summary.base_url, &summary.api_key, &summary.edge, &summary.folder) {
        (Some(base_url), Some(key), Some(edge), Some(folder)) => {
            let gateway = folder.join(GATEWAY);
            let books = folder.join(BOOKS);
            voice.line("  point any OpenAI client at it:");
            voice.line(&format!("    base URL  {base_url}\n    API key   {key}"));
            voice.line(&format!(
                "    curl {base_url}/chat/completions -H 'authorization: Bearer {key}' -H 'content-type: application/json' \\\n      \
                 -d '{{\"model\": \"guide\", \"messages\": [{{\"role\": \"user\", \"content\": \"how do i earn?\"}}]}}'"
            ));
            voice.line("  a job from the edge, from no node:");
            voice.line(&format!("    {binary} submit --via {edge} --key {key} --model guide 'how do i earn?'"));
            voice.line("  who offers what; where a job went and why; what was paid:");
            voice.line(&format!("    {binary} market --folder {}", gateway.display()));
            voice.line(&format!("    {binary} explain JOB --folder {}", gateway.display()));
            voice.line(&format!("    {binary} ledger log --folder {}", books.display()));
            voice.line("  kill a stranger, and see who serves then:");
            voice.line(&format!("    {binary} testnet kill near --folder {}", folder.display()));
            voice.line("\nStays up until ctrl-c.");
        }
        _ => {
            voice.line(&format!(
                "  {binary} demo --keep     leave it running, with a base URL and a key for any OpenAI client"
            ));
            voice
                .line(&format!("  {binary} init            keys and a commented spillway.toml for a node of your own"));
            voice.line(&format!("  {binary} up              run it"));
            voice.line("  docs/getting-started.md  the next quarter of an hour");
        }
    }
    Ok(())
}
