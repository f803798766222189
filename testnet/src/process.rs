//! One node as a process: started, heard from, stopped or killed.
//! Invariant: a [`Node`] that is dropped leaves no process behind, and one whose parent dies stops by itself.

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};
use spillway_ledger::{Account, NodeId};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::{Child, ChildStdin, Command};

/// How long a node may take from its start to its ready line.
const READY_WAIT: Duration = Duration::from_secs(30);
/// How long a node may take to stop cleanly before it is killed.
pub const STOP_WAIT: Duration = Duration::from_secs(10);
/// How many lines of its log a failed start shows.
const LOG_TAIL_LINES: usize = 12;
/// How many bytes of its log are read for that.
const LOG_TAIL_BYTES: u64 = 16 << 10;

/// What a node says on standard output once it serves, and keeps in `run.json` while it runs.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Its process.
    pub pid: u32,
    /// Its libp2p name.
    pub peer_id: String,
    /// Its key as a peer.
    pub node: NodeId,
    /// The account that pays and is paid.
    pub account: Account,
    /// Where it listens, with its peer id.
    pub addresses: Vec<String>,
    /// Its OpenAI API; `None` without a gateway.
    pub base_url: Option<String>,
    /// Its QUIC edge; `None` without one.
    pub edge: Option<String>,
}

/// A running node, supervised by this process.
#[derive(Debug)]
pub struct Node {
    name: String,
    folder: PathBuf,
    ready: Ready,
    child: Child,
    /// Held open: the node stops when it closes, which the system sees to if this process dies.
    _stdin: Option<ChildStdin>,
}

/// The file that a node's log goes to.
#[must_use]
pub fn log_file(folder: &Path) -> PathBuf {
    folder.join("log")
}

/// The end of a log, for people: at most [`LOG_TAIL_LINES`] lines.
#[must_use]
pub fn log_tail(path: &Path) -> String {
    use std::io::{Read, Seek, SeekFrom};
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL_BYTES)))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL_BYTES).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let lines: Vec<&str> = text.lines().collect();
            lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join("\n")
        }
        Err(error) => format!("(no log: {error})"),
    }
}

fn command(binary: &Path, folder: &Path) -> Result<Command> {
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(log_file(folder))
        .with_context(|| format!("cannot write {}", log_file(folder).display()))?;
    let mut command = Command::new(binary);
    command
        .arg("up")
        .arg("--folder")
        .arg(folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::from(log))
        // Its own group: a ctrl-c at the terminal reaches the supervisor, which stops its nodes in order.
        .process_group(0);
    Ok(command)
}

/// Reads the ready line of a node just started.
async fn heard(name: &str, folder: &Path, child: &mut Child) -> Result<Ready> {
    let stdout = child.stdout.take().context("the node's standard output is not piped")?;
    let mut lines = BufReader::new(stdout).lines();
    let line = tokio::time::timeout(READY_WAIT, lines.next_line()).await;
    let why = match line {
        Ok(Ok(Some(line))) => match serde_json::from_str(&line) {
            Ok(ready) => return Ok(ready),
            Err(error) => format!("said something else than its ready line ({error}): {line}"),
        },
        Ok(Ok(None)) => match child.wait().await {
            Ok(status) => format!("ended before it was ready ({status})"),
            Err(error) => format!("ended before it was ready ({error})"),
        },
        Ok(Err(error)) => format!("cannot be heard: {error}"),
        Err(_) => format!("was not ready within {} s", READY_WAIT.as_secs()),
    };
    let log = log_file(folder);
    bail!("node {name} {why}\nthe end of {}:\n{}", log.display(), log_tail(&log))
}

/// Starts the node in `folder` for good: it outlives this process.
///
/// # Errors
/// As [`Node::start`].
pub async fn start_detached(binary: &Path, name: &str, folder: &Path) -> Result<Ready> {
    let mut child = command(binary, folder)?
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("cannot start {}", binary.display()))?;
    let ready = heard(name, folder, &mut child).await;
    if ready.is_err() {
        // It may still run, only late; nobody would know of it.
        child.kill().await.ok();
    }
    ready
}

impl Node {
    /// Starts `spillway up` in `folder` and waits until it serves.
    ///
    /// # Errors
    /// If it does not start or is not ready in time; the end of its log is in the error.
    pub async fn start(binary: &Path, name: &str, folder: &Path) -> Result<Self> {
        let mut child = command(binary, folder)?
            .arg("--until-stdin-closes")
            .stdin(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let stdin = child.stdin.take();
        let ready = heard(name, folder, &mut child).await?;
        Ok(Self { name: name.into(), folder: folder.into(), ready, child, _stdin: stdin })
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its folder.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What it said when it was ready.
    #[must_use]
    pub const fn ready(&self) -> &Ready {
        &self.ready
    }

    /// Asks it to stop (SIGTERM) and waits; kills it after [`STOP_WAIT`].
    ///
    /// # Errors
    /// If it had to be killed, or ended with another code than 0.
    pub async fn stop(mut self) -> Result<()> {
        if self.child.try_wait().context("cannot wait for a node")?.is_none() {
            signal(self.ready.pid, Signal::TERM);
        }
        match tokio::time::timeout(STOP_WAIT, self.child.wait()).await {
            Ok(status) => {
                let status = status.context("cannot wait for a node")?;
                if !status.success() {
                    bail!("node {} ended with {status}; see {}", self.name, log_file(&self.folder).display());
                }
                Ok(())
            }
            Err(_) => {
                self.child.kill().await.ok();
                bail!(
                    "node {} did not stop within {} s and was killed; see {}",
                    self.name,
                    STOP_WAIT.as_secs(),
                    log_file(&self.folder).display()
                )
            }
        }
    }

    /// Kills it (SIGKILL), as a power cut would, and waits until it is gone.
    ///
    /// # Errors
    /// If the system refuses.
    pub async fn kill(mut self) -> Result<()> {
        self.child.kill().await.with_context(|| format!("cannot kill node {}", self.name))
    }
}

/// Sends a signal to a process; one that is gone is fine.
pub(crate) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        kill_process(pid, signal).ok();
    }
}
