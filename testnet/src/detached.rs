//! A network that outlives the command that started it: `spillway testnet up`, `status`, `kill`, `down`.
//! Invariant: no process is signalled unless it is a node of this folder; a process id that was given to another program
//! since is left alone.

use crate::admin::{Admin, running};
use crate::process::{Ready, STOP_WAIT, log_file, signal};
use crate::testnet::{CONFIG_FILE, Layout};
use crate::topology::{Plan, Topology, VALIDATOR};
use anyhow::{Context, Result, bail};
use rustix::process::Signal;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The file that names a network's nodes.
pub const STATE_FILE: &str = "testnet.json";
/// How often a process that was signalled is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How long a killed process may take to be gone.
const KILL_WAIT: Duration = Duration::from_secs(5);

/// What is kept of a network beside its nodes' folders.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct State {
    binary: PathBuf,
    /// The books' keeper first.
    nodes: Vec<String>,
}

/// How a node of a network is.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Whether its process runs.
    pub running: bool,
    /// Its process, while it runs.
    pub pid: Option<u32>,
    /// Its OpenAI API.
    pub base_url: Option<String>,
    /// Its QUIC edge.
    pub edge: Option<String>,
    /// How many peers it is connected to, if it answers.
    pub peers: Option<u64>,
    /// The height of its copy of the books, if it answers.
    pub height: Option<u64>,
    /// Its log.
    pub log: PathBuf,
}

/// Notes in `folder` which nodes there are.
pub(crate) fn remember(folder: &Path, binary: &Path, nodes: &[String]) -> Result<()> {
    let state = State { binary: binary.into(), nodes: nodes.to_vec() };
    let path = folder.join(STATE_FILE);
    let text = serde_json::to_string_pretty(&state).context("the network's state as JSON")?;
    std::fs::write(&path, text + "\n").with_context(|| format!("cannot write {}", path.display()))
}

fn recall(folder: &Path) -> Result<State> {
    let path = folder.join(STATE_FILE);
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            bail!("no network in {}; start one with `spillway testnet up --folder {0}`", folder.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot read {}", path.display())),
    };
    serde_json::from_str(&text).with_context(|| format!("{}", path.display()))
}

/// A process's command line, if it runs.
fn command_line(pid: u32) -> Option<String> {
    if Path::new("/proc/self").exists() {
        let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let text = String::from_utf8_lossy(&bytes).replace('\0', " ");
        // A process that ended and was not waited for has an empty one.
        return (!text.is_empty()).then_some(text);
    }
    let output = std::process::Command::new("ps").args(["-o", "command=", "-p", &pid.to_string()]).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    (output.status.success() && !text.is_empty()).then_some(text)
}

/// The node in `folder`, if its process runs.
fn alive(folder: &Path) -> Option<Ready> {
    let ready = running(folder).ok()?;
    let line = command_line(ready.pid)?;
    line.contains(folder.to_str()?).then_some(ready)
}

async fn gone(folder: &Path, wait: Duration) -> bool {
    let begun = Instant::now();
    while alive(folder).is_some() {
        if begun.elapsed() >= wait {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

fn canonical(folder: &Path) -> Result<PathBuf> {
    folder.canonicalize().with_context(|| format!("cannot find {}", folder.display()))
}

/// How many validators the network in `folder` has; `None` where there is no network yet.
///
/// # Errors
/// If the network's state cannot be read.
pub fn validators(folder: &Path) -> Result<Option<usize>> {
    if !folder.join(STATE_FILE).exists() {
        return Ok(None);
    }
    let state = recall(folder)?;
    Ok(Some(state.nodes.iter().filter(|name| name.starts_with(VALIDATOR)).count()))
}

/// Starts the network in `folder`, founding it first if there is none; nodes that run are left as they are.
/// Gives the names of those that were started.
///
/// # Errors
/// If a node does not start. Those that did run on: `down` stops them.
pub async fn up(binary: &Path, folder: &Path, topology: &Topology) -> Result<Vec<String>> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    let folder = canonical(folder)?;
    let layout = Layout { binary, folder: &folder };
    let mut topology = topology.clone();
    layout.prepare(&topology)?;
    layout.connect_validators(&mut topology)?;
    let names: Vec<String> = topology.plans.iter().map(|plan| plan.name.clone()).collect();
    remember(&folder, binary, &names)?;
    let mut started = Vec::new();
    let mut books: Vec<Ready> = Vec::new();
    for plan in &topology.plans {
        let Plan { name, .. } = plan;
        let ready = match alive(&folder.join(name)) {
            Some(ready) => ready,
            None => {
                if !folder.join(name).join(CONFIG_FILE).exists() {
                    layout.settle(plan, &books)?;
                }
                let ready = layout.start_detached(name).await?;
                layout.pin(name, &ready)?;
                started.push(name.clone());
                ready
            }
        };
        if plan.keeps_books() {
            books.push(ready);
        }
    }
    Ok(started)
}

/// How every node of the network is.
///
/// # Errors
/// If there is no network in `folder`.
pub async fn status(folder: &Path) -> Result<Vec<Status>> {
    let state = recall(folder)?;
    let folder = canonical(folder)?;
    let mut all = Vec::new();
    for name in state.nodes {
        let folder = folder.join(&name);
        let ready = alive(&folder);
        let told = match (&ready, Admin::in_folder(&folder)) {
            (Some(_), Ok(admin)) => admin.get("/admin/status").await.ok(),
            (Some(_) | None, _) => None,
        };
        let number = |field: &str| told.as_ref().and_then(|told| told.get(field)).and_then(Value::as_u64);
        all.push(Status {
            running: ready.is_some(),
            pid: ready.as_ref().map(|ready| ready.pid),
            base_url: ready.as_ref().and_then(|ready| ready.base_url.clone()),
            edge: ready.and_then(|ready| ready.edge),
            peers: number("peers"),
            height: number("height"),
            log: log_file(&folder),
            name,
        });
    }
    Ok(all)
}

/// Kills a node with SIGKILL, as a power cut would.
///
/// # Errors
/// If the network has no such node, it does not run, or it stays.
pub async fn kill(folder: &Path, name: &str) -> Result<u32> {
    let state = recall(folder)?;
    if !state.nodes.iter().any(|known| known == name) {
        bail!("no node {name} in {}; there are {}", folder.display(), state.nodes.join(", "));
    }
    let folder = canonical(folder)?.join(name);
    let Some(ready) = alive(&folder) else { bail!("node {name} does not run") };
    signal(ready.pid, Signal::KILL);
    if gone(&folder, KILL_WAIT).await {
        Ok(ready.pid)
    } else {
        bail!("process {} of node {name} is still there", ready.pid)
    }
}

/// Stops every node cleanly, the books' keeper last; kills those that do not stop in time. Gives the names of those
/// that ran.
///
/// # Errors
/// If there is no network, or a process stays even so.
pub async fn down(folder: &Path) -> Result<Vec<String>> {
    let state = recall(folder)?;
    let folder = canonical(folder)?;
    let (books, others) = state.nodes.split_first().context("the network has no nodes")?;
    let mut stopped = Vec::new();
    for group in [others, std::slice::from_ref(books)] {
        let ran: Vec<(&String, PathBuf, Ready)> = group
            .iter()
            .filter_map(|name| {
                let folder = folder.join(name);
                alive(&folder).map(|ready| (name, folder, ready))
            })
            .collect();
        for (_, _, ready) in &ran {
            signal(ready.pid, Signal::TERM);
        }
        for (name, folder, ready) in ran {
            if !gone(&folder, STOP_WAIT).await {
                signal(ready.pid, Signal::KILL);
                if !gone(&folder, KILL_WAIT).await {
                    bail!("process {} of node {name} is still there", ready.pid);
                }
            }
            stopped.push(name.clone());
        }
    }
    Ok(stopped)
}

#[cfg(test)]
mod tests {
    use super::{alive, command_line, kill, remember};
    use crate::admin::RUN_FILE;
    use serde_json::json;
    use std::path::Path;

    fn write_run(folder: &Path, pid: u32) {
        let key = "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a";
        let ready = json!({"pid": pid, "peer_id": "p", "node": key, "account": key, "addresses": [], "base_url": null, "edge": null});
        std::fs::write(folder.join(RUN_FILE), ready.to_string()).unwrap();
    }

    #[tokio::test]
    async fn a_process_id_that_is_another_programs_by_now_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        let node = folder.path().join("near");
        std::fs::create_dir(&node).unwrap();
        remember(folder.path(), "/bin/true".as_ref(), &["near".into()]).unwrap();
        // This very test runs, and is no node of that folder: a signal would end it.
        write_run(&node, std::process::id());
        assert!(command_line(std::process::id()).is_some());
        assert!(alive(&node).is_none());
        assert_eq!(kill(folder.path(), "near").await.unwrap_err().to_string(), "node near does not run");
        assert!(kill(folder.path(), "nobody").await.unwrap_err().to_string().contains("there are near"));
    }
}
