//! `spillway doctor`: looks at a node's folder, settings, clock, backends and ports, and says what is wrong in words.
//! Invariant: every line reports something that was tried just now, and nothing is changed.

use super::table::{self, Show};
use super::{Listing, Place, Verdict};
use anyhow::{Context, Result, anyhow};
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use spillway_node::backend::connection::{below, connection, uri};
use spillway_node::run::{load_config, load_genesis};
use spillway_protocol::NodeConfig;
use spillway_protocol::config::{BackendSection, LedgerRole};
use spillway_testnet::Admin;
use spillway_testnet::genesis::{ACCOUNT_KEY, AUTHORITY_KEY, NODE_KEY};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// How long a backend may take to list its models.
const BACKEND_WAIT: Duration = Duration::from_secs(3);
/// The longest list of models that is read, in bytes.
const LIST_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, Args)]
pub(crate) struct DoctorArguments {
    #[command(flatten)]
    place: Place,
    #[command(flatten)]
    listing: Listing,
}

/// What a check found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Finding {
    Ok,
    /// It works, but perhaps not as wanted.
    Note,
    Bad,
}

#[derive(Clone, Debug, Serialize)]
struct Check {
    what: String,
    finding: Finding,
    words: String,
}

#[derive(Default)]
struct Report(Vec<Check>);

impl Report {
    fn add(&mut self, what: &str, finding: Finding, words: impl Into<String>) {
        self.0.push(Check { what: what.into(), finding, words: words.into() });
    }

    fn result(&mut self, what: &str, result: Result<String>) -> bool {
        let good = result.is_ok();
        match result {
            Ok(words) => self.add(what, Finding::Ok, words),
            Err(error) => self.add(what, Finding::Bad, format!("{error:#}")),
        }
        good
    }
}

/// Runs `spillway doctor`.
pub(crate) async fn doctor(arguments: &DoctorArguments) -> Result<Verdict> {
    let folder = &arguments.place.folder;
    let mut report = Report::default();
    report.result("folder", writable(folder));
    for name in [NODE_KEY, ACCOUNT_KEY] {
        report.result("keys", key(&folder.join(name)));
    }
    match load_config(folder) {
        Ok(config) => {
            report.add("settings", Finding::Ok, "spillway.toml is valid");
            settings(&mut report, folder, &config).await;
        }
        Err(error) => report.add("settings", Finding::Bad, format!("{error:#}")),
    }
    let bad = report.0.iter().any(|check| check.finding == Finding::Bad);
    let body = json!({"checks": report.0, "healthy": !bad});
    let columns = [("CHECK", "/what", Show::Plain), ("", "/finding", Show::Plain), ("", "/words", Show::Plain)];
    table::list(&body, "checks", arguments.listing.json, &columns, "nothing to check")?;
    Ok(if bad { Verdict::Failed } else { Verdict::Done })
}

/// Everything that depends on the settings.
async fn settings(report: &mut Report, folder: &Path, config: &NodeConfig) {
    report.result("genesis", genesis(folder, config));
    if config.ledger.role == LedgerRole::Solo {
        report.result("keys", key(&folder.join(AUTHORITY_KEY)));
    }
    if config.backend.is_empty() {
        report.add("backends", Finding::Note, "none: every job goes to the network");
    }
    for backend in &config.backend {
        report.result("backends", reachable(folder, backend).await);
    }
    match Admin::in_folder(folder) {
        Ok(admin) => match admin.get("/admin/status").await {
            Ok(status) => running(report, config, &admin, &status).await,
            Err(error) => {
                report.add("node", Finding::Note, format!("does not run, or hangs: {error:#}"));
                ports(report, config);
            }
        },
        Err(error) => {
            report.add("node", Finding::Note, format!("{error:#}"));
            ports(report, config);
        }
    }
}

fn writable(folder: &Path) -> Result<String> {
    let path = folder.join(format!("doctor-{}", std::process::id()));
    std::fs::write(&path, "try")
        .and_then(|()| std::fs::remove_file(&path))
        .with_context(|| format!("{} cannot be written", folder.display()))
        .map(|()| format!("{} can be written", folder.display()))
}

fn key(path: &Path) -> Result<String> {
    let text = std::fs::read_to_string(path)
        .with_context(|| format!("cannot read {}; `spillway init` writes it", path.display()))?;
    if hex::decode(text.trim()).map_or(0, |bytes| bytes.len()) != 32 {
        anyhow::bail!("{} is not 64 hexadecimal digits", path.display());
    }
    let mode = std::fs::metadata(path).context("no metadata")?.permissions().mode();
    if mode & 0o077 != 0 {
        anyhow::bail!("{} can be read by others (mode {:o}); run: chmod 600 {0}", path.display(), mode & 0o777);
    }
    Ok(format!("{} is there, for its owner only", path.display()))
}

fn genesis(folder: &Path, config: &NodeConfig) -> Result<String> {
    let genesis = load_genesis(folder, config)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    if now.as_millis() < u128::from(genesis.time_ms) {
        anyhow::bail!("the clock is before the network's beginning: is it set right?");
    }
    Ok(format!(
        "network {} ({}…), and the clock is after its beginning",
        genesis.name,
        &genesis.network_id().0.to_string()[..8]
    ))
}

async fn reachable(folder: &Path, backend: &BackendSection) -> Result<String> {
    match backend {
        BackendSection::Embedded { model, gguf: None, slots, .. } => {
            Ok(format!("{model}: the embedded guide model, {slots} slots"))
        }
        BackendSection::Embedded { model, gguf: Some(gguf), slots, .. } => {
            let path = folder.join(gguf);
            let mut magic = [0; 4];
            use std::io::Read;
            std::fs::File::open(&path)
                .and_then(|mut file| file.read_exact(&mut magic))
                .with_context(|| format!("cannot read {}", path.display()))?;
            if &magic != b"GGUF" {
                anyhow::bail!("{} is no GGUF file", path.display());
            }
            Ok(format!("{model}: {}, {slots} slots", path.display()))
        }
        BackendSection::OpenAi(server) => {
            let (url, slots) = (&server.url, server.slots);
            let (client, base) = connection(server, folder).map_err(|(field, why)| anyhow!("{url}: {field}: {why}"))?;
            let models = uri(&below(&base, "models"));
            let asked = tokio::time::timeout(BACKEND_WAIT, client.get(&models)).await;
            let asked = asked.map_err(|_| anyhow!("{url} does not answer in time"))?;
            let mut response = asked.map_err(|why| anyhow!("{url} does not answer: {why}"))?;
            if !server.models.is_empty() && !matches!(response.status().as_u16(), 401 | 403 | 429 | 500..) {
                return Ok(format!("{url}: answers; serves {} by your word, {slots} slots", server.models.join(", ")));
            }
            let status = response.status();
            let read = tokio::time::timeout(BACKEND_WAIT, response.bytes(LIST_BYTES_MAX)).await;
            let read = read.map_err(|_| anyhow!("{url} does not go on in time"))?;
            let text = read.map_err(|why| anyhow!("{url}: {why}"))?;
            if !status.is_success() {
                anyhow::bail!("{url}/models answered {status}: is it the base URL, with /v1, and is the key right?");
            }
            let listed: Value = serde_json::from_slice(&text).with_context(|| format!("{url}/models is no JSON"))?;
            let models: Vec<&str> = listed
                .get("data")
                .and_then(Value::as_array)
                .with_context(|| format!("{url}/models lists no `data`"))?
                .iter()
                .filter_map(|model| model.get("id").and_then(Value::as_str))
                .collect();
            if models.is_empty() {
                anyhow::bail!("{url} answers but serves no model");
            }
            Ok(format!("{url}: serves {}, {slots} slots", models.join(", ")))
        }
    }
}

/// Whether the ports that the settings name are free, as the node does not hold them.
fn ports(report: &mut Report, config: &NodeConfig) {
    if let Some(gateway) = &config.gateway {
        let free = TcpListener::bind(&gateway.listen)
            .with_context(|| format!("[gateway] cannot listen on {}", gateway.listen));
        report.result("ports", free.map(|_| format!("{} is free for the API", gateway.listen)));
    }
    if let Some(edge) = &config.edge {
        let free = UdpSocket::bind(&edge.listen).with_context(|| format!("[edge] cannot listen on {}", edge.listen));
        report.result("ports", free.map(|_| format!("{} is free for the edge", edge.listen)));
    }
    for address in &config.network.listen {
        // `/ip4/0.0.0.0/udp/4600/quic-v1`; other forms are the network's to judge.
        let mut parts = address.split('/').skip(1);
        let (Some(family), Some(ip), Some(transport), Some(port)) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            report.add(
                "ports",
                Finding::Bad,
                format!("network.listen: {address} is no address such as /ip4/0.0.0.0/tcp/4600"),
            );
            continue;
        };
        let place = if family == "ip6" { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
        let free = match transport {
            "udp" => UdpSocket::bind(&place).map(drop),
            "tcp" => TcpListener::bind(&place).map(drop),
            _ => continue,
        };
        let free = free.with_context(|| format!("network.listen: cannot listen on {address}"));
        report.result("ports", free.map(|()| format!("{address} is free for peers")));
    }
}

/// What a running node says of itself, and why no jobs may come.
async fn running(report: &mut Report, config: &NodeConfig, admin: &Admin, status: &Value) {
    let number = |field: &str| status.get(field).and_then(Value::as_u64);
    report.add("node", Finding::Ok, format!("runs as process {}", admin.ready().pid));
    match number("peers") {
        Some(0) => report.add("peers", Finding::Note, "none: check network.bootstrap, and whether UDP is blocked"),
        Some(peers) => report.add("peers", Finding::Ok, format!("connected to {peers}")),
        None => {}
    }
    if let Some(height) = number("height") {
        report.add("books", Finding::Ok, format!("at block {height}"));
    }
    if let Ok(market) = admin.get("/admin/market").await {
        let offers = market.get("offers").and_then(Value::as_array).map_or(0, Vec::len);
        let finding = if offers == 0 { Finding::Note } else { Finding::Ok };
        report.add("market", finding, format!("{offers} offers of others known"));
    }
    if !config.provide.enabled {
        report.add("earning", Finding::Note, "no strangers' jobs come: [provide] enabled is false");
    } else if config.backend.is_empty() {
        report.add("earning", Finding::Bad, "no strangers' jobs come: [provide] is enabled but there is no backend");
    } else {
        report.add("earning", Finding::Ok, "strangers may use what is idle");
    }
}
