//! One validator: the engine, its log, its connections, and the loop that answers it.
//! Invariant: one validator for each key and folder; the folder's log outlives a crash.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use arc_malachitebft_app_channel::app::config::NodeConfig;
use arc_malachitebft_app_channel::app::types::Keypair;
use arc_malachitebft_app_channel::app::types::codec::Codec;
use arc_malachitebft_app_channel::{
    Channels, ConsensusContext, EngineBuilder, EngineHandle, NetworkContext, NetworkIdentity, NetworkMsg,
    RequestContext, SyncContext, WalContext,
};
use arc_malachitebft_config::{ConsensusConfig, PubSubProtocol, ValuePayload, ValueSyncConfig};
use arc_malachitebft_engine::util::events::{Event, RxEvent};
use spillway_ledger::block::VALIDATORS_MAX;
use spillway_ledger::{Digest, Document, NetworkId, SecretKey, SignedBytes};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{Notify, mpsc, watch};
use tracing::{error, info};

use crate::app::{App, Failure};
use crate::codec::{LogCodec, WireCodec, message};
use crate::context::{Address, Ledger, Members};
use crate::held::Held;
use crate::host::{Host, lock};
use crate::part::{Part, shared};
use crate::pool::Pool;
use crate::progress::Progress;
use crate::settings::{Settings, SettingsError};
use crate::signer::{LedgerSigner, LedgerVerifier};
use crate::wire::{SYNC_BLOCKS_MAX, SYNC_BYTES_MAX};

/// The engine's log in its folder.
pub const LOG_FILE: &str = "votes.log";

/// How many messages with shared entries may wait to be verified.
const SHARED_WAITING_MAX: usize = 64;
/// How long the engine has to end, when it is told to.
const STOP_WAIT: Duration = Duration::from_secs(5);

/// Why a validator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The operator's to fix.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// The folder for the log cannot be made.
    #[error("validator setting `folder`: {0}")]
    Folder(std::io::Error),
    /// The engine: an address in use, a log that cannot be read.
    #[error("the ordering engine does not start: {0}")]
    Engine(String),
}

/// A running validator. Dropping it stops it without waiting; prefer [`Validator::stop`].
#[derive(Debug)]
pub struct Validator {
    key: SecretKey,
    network: NetworkId,
    wake: Arc<Notify>,
    parts: mpsc::Sender<NetworkMsg<Ledger>>,
    stop: watch::Sender<bool>,
    ended: watch::Receiver<Option<Result<(), Arc<Failure>>>>,
    replayed: Arc<AtomicU64>,
    threads: Vec<thread::JoinHandle<()>>,
    engine: Engine,
}

/// Ends the engine with the validator.
struct Engine(EngineHandle);

impl std::fmt::Debug for Engine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Engine")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.0.actor.stop(None);
    }
}

impl Validator {
    /// Starts to decide, or to follow where `key` is no validator (yet). Within a tokio runtime of several threads.
    pub async fn start<H: Host>(settings: Settings, key: SecretKey, host: Arc<H>) -> Result<Validator, StartError> {
        settings.validate()?;
        std::fs::create_dir_all(&settings.folder).map_err(StartError::Folder)?;
        let (network, height, validators) = {
            let replica = lock(host.replica());
            (replica.network(), replica.height() + 1, replica.validators())
        };
        let members = Members::from(&validators);
        let held = Held::default();
        let (channels, engine) = start_engine(&settings, network, &key, held.clone()).await?;

        let replayed = Arc::new(AtomicU64::new(0));
        // The log is read when the loop below begins, so nothing is missed.
        tokio::spawn(count_replayed(channels.events.subscribe(), replayed.clone()));
        let wake = Arc::new(Notify::new());
        let (stop, stopped) = watch::channel(false);
        let (end, ended) = watch::channel(None);
        let (shared, waiting) = mpsc::channel(SHARED_WAITING_MAX);
        let taken = Arc::new(Progress::default());
        let taking = take_shared(host.clone(), waiting, wake.clone(), taken.clone());
        let app = App {
            host,
            key: key.clone(),
            network,
            timeouts: settings.timeouts(),
            idle: Duration::from_millis(settings.idle_ms),
            ahead_ms: settings.ahead_ms,
            pool: Pool::new(network, held.clone(), height, members.clone()),
            held,
            parts: channels.network.clone(),
            shared,
            taken,
            wake: wake.clone(),
            members,
            keys: validators.keys().to_vec(),
            verdicts: std::collections::BTreeMap::new(),
            started: 0,
            fetched: 0,
        };
        let runtime = tokio::runtime::Handle::current();
        let messages = channels.consensus;
        // It executes blocks and waits for the disk, so it has a thread of its own.
        let answering = thread::spawn(move || {
            let result = runtime.block_on(app.run(messages, stopped));
            if let Err(failure) = &result {
                error!(%failure, "the validator stopped");
            }
            end.send_replace(Some(result.map_err(Arc::new)));
        });
        let (parts, threads) = (channels.network, vec![answering, taking]);
        Ok(Validator { key, network, wake, parts, stop, ended, replayed, threads, engine })
    }

    /// Entries wait in the replica: do not idle.
    pub fn wake(&self) {
        self.wake.notify_one();
    }

    /// Tells the other validators of entries that wait here, so that whose turn it is can propose them; and wakes.
    /// Entries are lost on the way when a validator is down or busy; then they are proposed from here in their turn.
    pub async fn share(&self, entries: &[SignedBytes]) {
        for part in shared(self.network, entries, &self.key) {
            let _engine_may_have_stopped = self.parts.send(NetworkMsg::PublishProposalPart(message(part))).await;
        }
        self.wake();
    }

    /// How many entries of its log the engine replayed at its start: above 0 where the process before was ended in the
    /// middle of a height. Set once the first height has begun.
    pub fn replayed(&self) -> Arc<AtomicU64> {
        self.replayed.clone()
    }

    /// Waits until the validator ends by itself or by [`Validator::stop`]. After a failure, start the process anew.
    pub async fn ended(&self) -> Result<(), Arc<Failure>> {
        let mut ended = self.ended.clone();
        let result = ended.wait_for(Option::is_some).await;
        result.map_or_else(|_| Err(Arc::new(Failure::Engine)), |result| result.clone().expect("waited for"))
    }

    /// Stops, as [`Validator::stop`], for one that is shared; the engine's own tasks may end a little later.
    pub async fn halt(&self) {
        self.stop.send_replace(true);
        let _how = self.ended().await;
        self.engine.0.actor.stop(None);
    }

    /// Stops, and returns once nothing runs any more and the host is let go.
    pub async fn stop(mut self) {
        self.stop.send_replace(true);
        for thread in self.threads.drain(..) {
            let _panicked = tokio::task::spawn_blocking(|| thread.join()).await;
        }
        self.engine.0.actor.stop(None);
        let _in_time = tokio::time::timeout(STOP_WAIT, &mut self.engine.0.handle).await;
    }
}

/// Starts the engine. Apart from what is generic over the host, so that it is compiled once.
async fn start_engine(
    settings: &Settings,
    network: NetworkId,
    key: &SecretKey,
    held: Held,
) -> Result<(Channels<Ledger>, Engine), StartError> {
    let signer = LedgerSigner::new(key.clone());
    let identity = identity(network, &settings.listen, key, &signer)?;
    let (channels, engine) = EngineBuilder::new(Ledger { network }, Config::new(settings, network)?)
        .with_default_wal(WalContext::new(settings.folder.join(LOG_FILE), LogCodec::new(held)))
        .with_default_network(NetworkContext::new(identity, WireCodec))
        .with_default_sync(SyncContext::new(WireCodec))
        .with_default_consensus(ConsensusContext::new_validator(
            Address(key.public()),
            Box::new(LedgerVerifier::new(network)),
            Box::new(signer),
        ))
        .with_default_request(RequestContext::new(16))
        .build()
        .await
        .map_err(|error| StartError::Engine(format!("{error:#}")))?;
    Ok((channels, Engine(engine)))
}

/// Notes the size of the replayed log; ends with the first height.
async fn count_replayed(mut events: RxEvent<Ledger>, replayed: Arc<AtomicU64>) {
    loop {
        match events.recv().await {
            Ok(Event::WalReplayBegin(height, entries)) => {
                info!(%height, entries, "going on in the middle of a height");
                replayed.store(entries as u64, Ordering::Relaxed);
                return;
            }
            Ok(Event::Decided { .. }) | Err(RecvError::Closed) => return,
            Ok(_) | Err(RecvError::Lagged(_)) => {}
        }
    }
}

/// Hands shared entries to the host, one message after the other, beside the loop.
fn take_shared<H: Host>(
    host: Arc<H>,
    mut waiting: mpsc::Receiver<Vec<SignedBytes>>,
    wake: Arc<Notify>,
    taken: Arc<Progress>,
) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        while let Some(entries) = waiting.blocking_recv() {
            host.entries(&entries);
            taken.done_one();
            wake.notify_one();
        }
    })
}

/// The network identity is a key of its own, made from the validator's: what one signs can never be shown as the
/// other's. The address goes in too: a second process that runs the same key elsewhere, by mistake, is then told apart
/// from the first, and what it signs comes to light.
fn identity(
    network: NetworkId,
    listen: &str,
    key: &SecretKey,
    signer: &LedgerSigner,
) -> Result<NetworkIdentity, StartError> {
    let engine = |error: &dyn std::fmt::Display| StartError::Engine(error.to_string());
    let secret = key.to_bytes();
    let parts: [&[u8]; 3] = [&*secret, network.0.as_bytes(), listen.as_bytes()];
    let mut seed = *Digest::of("spillway/bft-identity/1", &parts).as_bytes();
    let keypair = Keypair::ed25519_from_bytes(&mut seed).map_err(|error| engine(&error))?;
    let proof = signer.proof(keypair.public().to_peer_id().to_bytes());
    let proof = Codec::encode(&WireCodec, &proof).map_err(|error| engine(&error))?;
    let key = key.public();
    Ok(NetworkIdentity::new_validator(key.short(), keypair, key.to_string(), proof))
}

/// A number of bytes as the engine's configuration has it.
fn size<T: std::str::FromStr>(bytes: usize) -> Result<T, StartError> {
    format!("{bytes} B").parse().map_err(|_| StartError::Engine(format!("{bytes} bytes are no size")))
}

/// Our settings in the engine's words.
#[derive(Clone)]
struct Config {
    moniker: String,
    consensus: ConsensusConfig,
    sync: ValueSyncConfig,
}

impl Config {
    fn new(settings: &Settings, network: NetworkId) -> Result<Config, StartError> {
        // The addresses were checked before; this cannot fail any more.
        let parse = |field: &'static str, text: &str| {
            text.parse().map_err(|_| SettingsError { field, rule: "is no address".to_owned() })
        };
        let mut consensus = ConsensusConfig { value_payload: ValuePayload::ProposalAndParts, ..Default::default() };
        let p2p = &mut consensus.p2p;
        p2p.listen_addr = parse("listen", &settings.listen)?;
        for peer in &settings.peers {
            p2p.persistent_peers.push(parse("peers", peer)?);
        }
        p2p.protocol = PubSubProtocol::Broadcast;
        p2p.discovery.max_connections_per_ip = settings.connections_per_ip_max;
        p2p.discovery.num_inbound_peers = 2 * VALIDATORS_MAX;
        p2p.discovery.num_outbound_peers = 2 * VALIDATORS_MAX;
        p2p.pubsub_max_size = size(2 * Part::BYTES_MAX)?;
        p2p.rpc_max_size = size(SYNC_BYTES_MAX + 1_024)?;
        // A validator that was restarted must be back at once.
        p2p.discovery.ip_throttle_duration = Duration::ZERO;
        // Another network's validator is told apart while the connection is made.
        p2p.protocol_names.consensus = format!("/spillway/bft/1/{}", network.0);

        let sync = ValueSyncConfig {
            status_update_interval: Duration::from_millis(settings.status_ms),
            request_timeout: Duration::from_secs(5),
            batch_size: SYNC_BLOCKS_MAX,
            max_response_size: size(SYNC_BYTES_MAX)?,
            ..Default::default()
        };
        Ok(Config { moniker: String::new(), consensus, sync })
    }
}

impl NodeConfig for Config {
    fn moniker(&self) -> &str {
        &self.moniker
    }

    fn consensus(&self) -> &ConsensusConfig {
        &self.consensus
    }

    fn consensus_mut(&mut self) -> &mut ConsensusConfig {
        &mut self.consensus
    }

    fn value_sync(&self) -> &ValueSyncConfig {
        &self.sync
    }

    fn value_sync_mut(&mut self) -> &mut ValueSyncConfig {
        &mut self.sync
    }
}
