//! The demo's network in use: its clients, its tally, and the order of the steps.
//! Invariant: every job that a step begins is counted, however it ends.

use super::Summary;
use super::tally::{Tally, Told};
use super::voice::Voice;
use crate::client::{Answer, ChatStream, OpenAi};
use crate::testnet::Testnet;
use crate::topology::{GATEWAY, GUIDE};
use crate::wait::until;
use anyhow::{Context, Result, bail};
use serde_json::Value;
use spillway_ledger::{Credits, Genesis};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

/// How many steps there are.
pub(super) const STEPS: usize = 9;
/// How long an entry may take from the ledger's keeper to its follower.
pub(super) const LEDGER_WAIT: Duration = Duration::from_secs(15);
/// How long a child of the command line may take.
const COMMAND_WAIT: Duration = Duration::from_secs(60);

/// A network in use.
pub(super) struct Run {
    pub(super) voice: Voice,
    pub(super) network: Option<Testnet>,
    pub(super) genesis: Genesis,
    binary: PathBuf,
    pub(super) folder: PathBuf,
    /// Nodes by their key as a peer, in hex: a killed one is still to be named.
    pub(super) names: BTreeMap<String, String>,
    /// The gateway's client and its key, once made.
    pub(super) api: Option<(OpenAi, String)>,
    pub(super) tally: Tally,
}

/// Micro-credits for people.
pub(super) fn money(micro: u64) -> String {
    Credits::new(micro).to_string()
}

/// The beginning of a text for people.
pub(super) fn quoted(text: &str) -> String {
    let text = text.trim();
    let short: String = text.chars().take(60).collect();
    if short.len() < text.len() { format!("\"{short}…\"") } else { format!("\"{short}\"") }
}

impl Run {
    pub(super) fn new(network: Testnet, voice: Voice) -> Result<Self> {
        let mut names = BTreeMap::new();
        for name in network.names() {
            names.insert(network.node(name)?.ready().node.to_string(), name.clone());
        }
        Ok(Self {
            voice,
            genesis: network.genesis().clone(),
            binary: network.binary().into(),
            folder: network.folder().into(),
            network: Some(network),
            names,
            api: None,
            tally: Tally::default(),
        })
    }

    pub(super) fn network(&self) -> Result<&Testnet> {
        self.network.as_ref().context("the network was stopped")
    }

    pub(super) fn api(&self) -> Result<&OpenAi> {
        self.api.as_ref().map(|(api, _)| api).context("there is no API key yet")
    }

    pub(super) fn api_key(&self) -> Option<&str> {
        self.api.as_ref().map(|(_, key)| key.as_str())
    }

    pub(super) fn base_url(&self) -> Result<String> {
        self.network()?.node(GATEWAY)?.ready().base_url.clone().context("the gateway has no base URL")
    }

    pub(super) fn edge(&self) -> Result<String> {
        self.network()?.node(GATEWAY)?.ready().edge.clone().context("the gateway has no edge")
    }

    pub(super) fn name<'a>(&'a self, provider: &'a str) -> &'a str {
        self.names.get(provider).map_or(provider, String::as_str)
    }

    /// Stops every node.
    pub(super) async fn stop(&mut self) -> Result<()> {
        match self.network.take() {
            Some(network) => network.stop().await,
            None => Ok(()),
        }
    }

    /// Every step between the start and the verification.
    pub(super) async fn walk(&mut self, summary: &mut Summary) -> Result<()> {
        let walked = self.steps(summary).await;
        summary.jobs = self.tally.jobs;
        summary.reasons = self.tally.reasons.clone();
        summary.providers = self.tally.earned.len();
        walked
    }

    pub(super) async fn steps(&mut self, summary: &mut Summary) -> Result<()> {
        self.discover().await.context("discovery")?;
        self.money_and_key().await.context("money and key")?;
        summary.answer = self.first_answer().await.context("the first answer")?;
        self.burst().await.context("the burst")?;
        self.edge_job().await.context("the job from the edge")?;
        self.kill_in_mid_stream(&summary.answer).await.context("the provider killed in mid-stream")?;
        summary.settled = self.settled().await.context("the settlement")?;
        let jobs = self.tally.jobs;
        if jobs.failed > 0 {
            bail!("{} of {} jobs failed", jobs.failed, jobs.total);
        }
        if jobs.own == 0 || jobs.network < 2 || self.tally.earned.len() < 2 {
            bail!(
                "{} jobs on own hardware and {} on the network, over {} providers: expected at least 1, 2 and 2",
                jobs.own,
                jobs.network,
                self.tally.earned.len()
            );
        }
        Ok(())
    }

    pub(super) async fn told(&self, job: &str) -> Result<Told> {
        let api = self.api()?;
        // The account of a job is closed a moment after its stream.
        until("the account of a job", LEDGER_WAIT, async || {
            let body = api.generation(job).await?;
            match body.get("status").and_then(Value::as_str) {
                Some("running") => Ok(None),
                _ => Told::read(&body).map(Some),
            }
        })
        .await
    }

    /// Asks a question; one that is refused is counted as failed.
    pub(super) async fn begin(&mut self, question: &str) -> Result<ChatStream> {
        let begun = self.api()?.ask(GUIDE, question).await;
        if begun.is_err() {
            self.tally.add_failed();
        }
        begun
    }

    /// Reads an answer to its end and counts it.
    pub(super) async fn whole(&mut self, stream: Result<ChatStream>, victim: Option<&str>) -> Result<Answer> {
        let answer = match stream {
            Ok(stream) => stream.finish(String::new()).await,
            Err(error) => Err(error),
        };
        self.count(answer, victim).await.map(|(answer, _)| answer)
    }

    pub(super) async fn count(&mut self, answer: Result<Answer>, victim: Option<&str>) -> Result<(Answer, Told)> {
        match answer {
            Ok(answer) => {
                let told = self.told(&answer.placement.job).await?;
                self.tally.add(&told, victim);
                Ok((answer, told))
            }
            Err(error) => {
                self.tally.add_failed();
                Err(error)
            }
        }
    }

    /// Runs this program with `arguments` and gives its standard output.
    pub(super) async fn command(&self, arguments: &[&str], key: Option<&str>) -> Result<String> {
        let mut command = tokio::process::Command::new(&self.binary);
        command.args(arguments).stdin(Stdio::null()).kill_on_drop(true);
        if let Some(key) = key {
            // Not an argument: those are for everyone on the machine to see.
            command.env("SPILLWAY_KEY", key);
        }
        let output = tokio::time::timeout(COMMAND_WAIT, command.output())
            .await
            .with_context(|| format!("`spillway {}` took longer than {} s", arguments[0], COMMAND_WAIT.as_secs()))?
            .with_context(|| format!("cannot start {}", self.binary.display()))?;
        if !output.status.success() {
            let words = String::from_utf8_lossy(&output.stderr);
            bail!("`spillway {}` ended with {}: {}", arguments[0], output.status, words.trim());
        }
        String::from_utf8(output.stdout).context("its output is not UTF-8")
    }
}
