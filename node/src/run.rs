//! A whole node: configure, build, run, drain.
//! Invariant: nothing is served before the node's copy of the ledger is open and its market knows its sessions.

use crate::audit::{AuditLog, changes};
use crate::backend::Backends;
use crate::books::{Books, BooksRole};
use crate::desk::NodeDesk;
use crate::driver::{self, Parts};
use crate::edge::EdgeServer;
use crate::gateway::{self, Gateway, Policies};
use crate::jobs::Jobs;
use crate::keystore;
use crate::metrics::Metrics;
use crate::network::{Network, NetworkSettings, node_of};
use crate::payouts::cash::{self, Cash};
use crate::peers::PeerCache;
use crate::records;
use crate::telemetry::Telemetry;
use anyhow::{Context as _, ensure};
use serde::{Deserialize, Serialize};
use spillway_ledger::store::{Batch, Store, Table};
use spillway_ledger::{Digest, Genesis, NodeId};
use spillway_protocol::config::{GatewaySection, LedgerRole};
use spillway_protocol::discovery::Verify;
use spillway_protocol::{Discovery, DiscoverySettings, Identity, NodeConfig, Peer};
use sqlx::postgres::PgConnectOptions;
use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use zeroize::Zeroizing;

/// Clients' commands that may wait for the market.
const COMMANDS_MAX: usize = 1024;
/// How long clients' connections may take to end when the node stops.
const DRAIN_WAIT: Duration = Duration::from_secs(5);

/// How long what was recorded last may take to reach where it goes when the node stops.
const TELEMETRY_WAIT: Duration = Duration::from_secs(3);
/// The row of the store with the digests of the configuration that the node ran with last.
const CONFIG_ROW: &[u8] = b"audit.config";

/// What a node says once it serves; also written to `run.json` in its folder.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Ready {
    /// Always true.
    pub ready: bool,
    /// The process.
    pub pid: u32,
    /// The libp2p peer id.
    pub peer_id: String,
    /// The node id in hex.
    pub node: String,
    /// The account in hex.
    pub account: String,
    /// Where peers reach it, with its peer id.
    pub addresses: Vec<String>,
    /// The OpenAI-compatible server, if there is one.
    pub base_url: Option<String>,
    /// The QUIC server for clients without a node, if there is one.
    pub edge: Option<String>,
}

/// Reads and checks `spillway.toml` in `folder`.
///
/// # Errors
/// If it cannot be read, or a field does not hold; the field is named.
pub fn load_config(folder: &Path) -> anyhow::Result<NodeConfig> {
    let path = folder.join("spillway.toml");
    let text = fs::read_to_string(&path)
        .with_context(|| format!("{}: cannot be read; `spillway init` makes one", path.display()))?;
    let config: NodeConfig = toml::from_str(&text).with_context(|| path.display().to_string())?;
    config.validate().with_context(|| path.display().to_string())?;
    Ok(config)
}

/// Reads and checks the genesis that a configuration names.
///
/// # Errors
/// If it cannot be read, or a field does not hold; the field is named.
pub fn load_genesis(folder: &Path, config: &NodeConfig) -> anyhow::Result<Genesis> {
    let path = folder.join(&config.genesis);
    let text = fs::read_to_string(&path).with_context(|| format!("{}: cannot be read", path.display()))?;
    let genesis: Genesis = serde_json::from_str(&text).with_context(|| path.display().to_string())?;
    genesis.validate().with_context(|| path.display().to_string())?;
    Ok(genesis)
}

/// Runs a node from its folder until `stop` resolves. `on_ready` is called once it serves.
///
/// # Errors
/// If any part cannot start, or the node can no longer keep what it owes on disk.
pub async fn run(
    folder: &Path,
    config: NodeConfig,
    on_ready: impl FnOnce(&Ready),
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let genesis = load_genesis(folder, &config)?;
    let node_key = keystore::load_or_create(&folder.join("node.key"))?;
    let account_key = keystore::load_or_create(&folder.join("account.key"))?;
    let store = Arc::new(Store::open_noted(folder.join("node.redb")).context("node.redb")?);
    let restored = records::restore(&store).context("node.redb")?;
    let cash = Cash::of(folder, &config, &genesis)?;
    let payout_under_way = cash::restore(&store).context("node.redb")?;

    let mut bootstrap = genesis.bootstrap.clone();
    bootstrap.extend(config.network.bootstrap.iter().cloned());
    let known = PeerCache::open(&folder.join("cache"));
    let settings = NetworkSettings {
        network: genesis.network_id(),
        listen: config.network.listen.clone(),
        bootstrap,
        known: known.addresses(),
        mdns: config.network.mdns,
        emulated_rtt: Duration::from_millis(u64::from(config.network.emulated_rtt_ms)),
    };
    let (network, network_events) = Network::start(settings, &node_key).await?;

    let role = match config.ledger.role {
        LedgerRole::Solo => {
            let authority = keystore::load(&folder.join("authority.key")).context("ledger.role = \"solo\"")?;
            ensure!(
                genesis.committee == [authority.public()],
                "ledger.role = \"solo\": authority.key is not the one key of genesis' committee"
            );
            BooksRole::Solo { authority }
        }
        LedgerRole::Validate => validate(folder, &config)?,
        LedgerRole::Follow => BooksRole::Follow { authorities: authorities_of(&config)? },
    };
    let (books, book_events) =
        Books::open(folder, &genesis, role, account_key.clone(), network.clone()).await.context("ledger.redb")?;

    let (backends, capacity) = Backends::start(&config.backend, folder).context("backend")?;
    let desk_capacity = capacity.clone();
    let (commands_in, commands) = mpsc::channel(COMMANDS_MAX);
    let jobs = Jobs::new(commands_in);
    let mut market = config.market()?;
    market.session_grace = Duration::from_millis(genesis.grace_ms);
    let discovery = Discovery::new(
        genesis.network_id(),
        node_key.clone(),
        DiscoverySettings::default(),
        Verify,
        driver::new_seed()?,
    );
    let identity = Identity { network: genesis.network_id(), node: node_key.clone(), account: account_key };
    let peer = Peer::new(market, identity, driver::new_seed()?, restored.clone());
    let (node, account) = (peer.node(), peer.account());

    let parts = Parts {
        peer,
        discovery,
        known,
        store: Arc::clone(&store),
        network: network.clone(),
        network_events,
        books: books.clone(),
        book_events,
        backends,
        capacity,
        jobs: jobs.clone(),
        commands,
    };
    let (stop_driver, driver_stopped) = oneshot::channel::<()>();
    let driving = driver::drive(parts, restored, async {
        let _ = driver_stopped.await;
    });
    let mut driving = tokio::spawn(driving);
    if let Some(cash) = cash {
        // It ends with the books.
        tokio::spawn(cash::drive(books.clone(), Arc::clone(&store), cash, payout_under_way));
    }

    let desk = NodeDesk::new(
        network.peer_id(),
        node,
        &genesis,
        books.clone(),
        Arc::clone(&store),
        jobs.clone(),
        desk_capacity,
    );
    let metrics = Arc::new(Metrics::new());
    let audit = AuditLog::open(folder, Arc::clone(&store), node_key.clone(), Arc::clone(&metrics))
        .context("the log of the operator's actions")?;
    note_config(&audit, &store, &config)?;
    let telemetry = Telemetry::start(&config.telemetry, folder, &node, &metrics, &audit)?;
    let gateway = Gateway::open(gateway::Parts {
        folder,
        policies: Policies::open(&config, folder)?,
        promised: records::spendings(&store)?,
        store,
        jobs,
        desk: Arc::new(desk),
        telemetry: telemetry.clone(),
        audit,
        price_max: config.price_max()?,
        cache_bytes: (config.gateway.as_ref().map_or(0, |section| section.cache_mib) as usize) << 20,
        cache_embedding: config.gateway.as_ref().and_then(|section| section.cache_embedding.clone()),
        job_log: config.gateway.as_ref().is_none_or(|section| section.job_log),
        shared: shared_keys(folder, config.gateway.as_ref())?,
    })
    .await?;
    let http = match &config.gateway {
        Some(section) => Some(gateway.serve(&section.listen).await.context("gateway.listen")?),
        None => None,
    };
    let edge = match &config.edge {
        Some(section) => Some(EdgeServer::start(&section.listen, &node_key, gateway.clone()).context("edge.listen")?),
        None => None,
    };

    let ready = Ready {
        ready: true,
        pid: std::process::id(),
        peer_id: network.peer_id(),
        node: node.to_string(),
        account: account.to_string(),
        addresses: network.addresses(),
        base_url: http.as_ref().map(|http| format!("http://{}/v1", http.address())),
        edge: edge.as_ref().map(EdgeServer::address),
    };
    let run_file = folder.join("run.json");
    fs::write(&run_file, serde_json::to_vec_pretty(&ready)?).with_context(|| run_file.display().to_string())?;
    on_ready(&ready);

    let result = tokio::select! {
        () = stop => Ok(()),
        ended = &mut driving => ended.context("the market's task")?,
    };
    tracing::info!("stopping: no new requests, those under way get {} s", DRAIN_WAIT.as_secs());
    gateway.stop_admitting();
    if let Some(http) = http {
        http.stop(DRAIN_WAIT).await;
    }
    if let Some(edge) = edge {
        edge.stop().await;
    }
    let _ = stop_driver.send(());
    if !driving.is_finished() {
        let _ = tokio::time::timeout(DRAIN_WAIT, &mut driving).await;
    }
    gateway.flush().await;
    telemetry.stop(TELEMETRY_WAIT).await;
    books.stop().await;
    network.shutdown().await;
    let _ = fs::remove_file(&run_file);
    result
}

/// Notes in the log of the operator's actions which sections of the configuration are others than at the last start: each by
/// the digest of what it says.
fn note_config(audit: &AuditLog, store: &Store, config: &NodeConfig) -> anyhow::Result<()> {
    let serde_json::Value::Object(sections) = serde_json::to_value(config)? else { return Ok(()) };
    let digest = |text: String| Digest::of("spillway/config-section/1", &[text.as_bytes()]).to_string();
    let now: serde_json::Value =
        sections.into_iter().map(|(name, section)| (name, digest(section.to_string()))).collect();
    let kept = store.get(Table::Meta, CONFIG_ROW)?;
    let before = kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or(serde_json::Value::Null);
    if before == now {
        return Ok(());
    }
    let (old, new) = changes(&before, &now);
    audit.note("config.change", "spillway.toml", old, new)?;
    let mut batch = Batch::new();
    batch.put(Table::Meta, CONFIG_ROW, serde_json::to_vec(&now)?);
    Ok(store.commit(batch)?)
}

/// The database that keys and budgets are shared in, if `gateway.store` names one.
fn shared_keys(folder: &Path, section: Option<&GatewaySection>) -> anyhow::Result<Option<gateway::Shared>> {
    let Some((section, url)) = section.and_then(|section| Some((section, section.store.as_deref()?))) else {
        return Ok(None);
    };
    let mut options: PgConnectOptions = url.parse().context("gateway.store")?;
    options = options.application_name("spillway");
    if let Some(name) = &section.store_password_env {
        let password = Zeroizing::new(std::env::var(name).with_context(|| {
            format!("gateway.store_password_env: the environment has no {name}, or it is not UTF-8")
        })?);
        options = options.password(&password);
    } else if let Some(file) = &section.store_password_file {
        let path = folder.join(file);
        let password = Zeroizing::new(
            fs::read_to_string(&path)
                .with_context(|| format!("gateway.store_password_file: {} cannot be read", path.display()))?,
        );
        options = options.password(password.trim_end_matches(['\r', '\n']));
    }
    Ok(Some(gateway::Shared { options, lease: gateway::store::Lease::default() }))
}

fn authorities_of(config: &NodeConfig) -> anyhow::Result<Vec<NodeId>> {
    config.ledger.authority.iter().map(|peer| node_of(peer).context("ledger.authority")).collect()
}

#[cfg(feature = "validator")]
fn validate(folder: &Path, config: &NodeConfig) -> anyhow::Result<BooksRole> {
    let key = keystore::load(&folder.join("validator.key")).context("ledger.role = \"validate\"")?;
    let section = config.ledger.validator.clone().context("ledger.validator: missing")?;
    let settings = spillway_bft::Settings::new(section.listen, section.peers, folder.join("validator"));
    settings.validate().context("ledger.validator")?;
    Ok(BooksRole::Validate { key, settings })
}

#[cfg(not(feature = "validator"))]
fn validate(_folder: &Path, _config: &NodeConfig) -> anyhow::Result<BooksRole> {
    anyhow::bail!(
        "ledger.role = \"validate\": this program was built without validators; build it with `--features validator`"
    )
}
