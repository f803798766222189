//! The way into the network from the rest of the node.
//! Invariant: nothing here waits longer than its caller allows.

use super::address::Reach;
use super::behaviour::Node;
use super::calls::CallKind;
use super::dial::Bootstrap;
use super::event::{NetworkEvent, Topic};
use super::frames::JobStream;
use super::identity::{keypair, peer_id};
use super::settings::{COMMANDS_MAX, EVENTS_MAX, NetworkError, NetworkSettings};
use super::streams::{self, Control};
use super::swarm::{Command, Task, Wiring, build, listen};
use libp2p::{Multiaddr, PeerId};
use spillway_ledger::{NodeId, PublicKey, SecretKey};
use spillway_protocol::discovery::Shard;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

/// Why there is no stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The node id is no usable key; no retry helps.
    #[error("the node id is not a usable key")]
    BadNode,
    /// The peer is this node itself.
    #[error("a node opens no stream to itself")]
    Myself,
    /// Nobody knows where the peer is.
    #[error("no address of the peer is known")]
    NoAddress,
    /// The peer does not answer, or is somebody else.
    #[error("the peer cannot be reached: {0}")]
    Unreachable(String),
    /// The peer does not speak this protocol.
    #[error("the peer does not take jobs")]
    Unsupported,
    /// This node connects to too many peers already; worth a retry.
    #[error("too many connections are being made")]
    Busy,
    /// The wait is over.
    #[error("timed out")]
    TimedOut,
    /// The network was shut down.
    #[error("the network is shut down")]
    Stopped,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// The peer could not be connected to.
    #[error(transparent)]
    Connect(#[from] OpenError),
    /// The question is longer than its kind allows; nothing was sent.
    #[error("a question of {got} bytes, where at most {max} are allowed")]
    TooLong {
        /// The limit in bytes.
        max: usize,
        /// The question, in bytes.
        got: usize,
    },
    /// The peer gave no answer: it was too busy, refused, or broke the rules of the protocol. What was asked may have
    /// been done all the same.
    #[error("the peer gave no answer: {0}")]
    NoAnswer(String),
}

/// A node's place in the network. Clones share it; it ends with [`Network::shutdown`], or with the last clone.
#[derive(Clone)]
pub struct Network(Arc<Inner>);

struct Inner {
    node: NodeId,
    peer: PeerId,
    commands: mpsc::Sender<Command>,
    control: Control,
    addresses: Arc<RwLock<Vec<Multiaddr>>>,
    hold: Duration,
}

impl Network {
    /// Joins the network; returns once this node listens. Events must be taken from the receiver, or streams and calls
    /// of other peers are refused.
    ///
    /// # Errors
    /// In the order of [`NetworkError`].
    pub async fn start(
        settings: NetworkSettings,
        key: &SecretKey,
    ) -> Result<(Self, mpsc::Receiver<NetworkEvent>), NetworkError> {
        Self::start_with(settings, key, EVENTS_MAX).await
    }

    /// As [`Network::start`], with room for `events_max` events.
    pub(crate) async fn start_with(
        settings: NetworkSettings,
        key: &SecretKey,
        events_max: usize,
    ) -> Result<(Self, mpsc::Receiver<NetworkEvent>), NetworkError> {
        let keypair = keypair(key);
        let peer = keypair.public().to_peer_id();
        let mut to_listen = Vec::with_capacity(settings.listen.len());
        for text in &settings.listen {
            let address: Multiaddr = text.parse().map_err(|_| NetworkError::BadListen { address: text.clone() })?;
            to_listen.push(address);
        }
        let mut bootstrap = Bootstrap::new(&settings.bootstrap, peer, Instant::now())?;
        // Who listens nowhere is where those are whom it knocks at.
        let reach = if to_listen.is_empty() { Reach::of(&bootstrap.addresses()) } else { Reach::of(&to_listen) };
        bootstrap.add_known(&settings.known, reach, peer, Instant::now());
        let (events, received) = mpsc::channel(events_max);
        let (commands, commanded) = mpsc::channel(COMMANDS_MAX);
        let hold = settings.emulated_rtt;
        let (streams, control) = streams::Behaviour::new(events.clone(), reach, hold);
        let node = Node::new(&keypair, &settings.network, reach, settings.mdns, streams)?;
        let mut swarm = build(keypair, node)?;
        let listening = listen(&mut swarm, to_listen).await?;
        let addresses = Arc::new(RwLock::new(listening));
        let wiring = Wiring {
            network: settings.network,
            reach,
            bootstrap,
            commands: commanded,
            back: commands.downgrade(),
            events,
            addresses: Arc::clone(&addresses),
            hold,
        };
        tokio::spawn(Task::new(swarm, wiring).run());
        let node = NodeId(key.public());
        Ok((Self(Arc::new(Inner { node, peer, commands, control, addresses, hold })), received))
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.0.node
    }

    /// This node's peer id in its usual text form.
    #[must_use]
    pub fn peer_id(&self) -> String {
        self.0.peer.to_string()
    }

    /// Where this node listens now, each address with `/p2p/<peer id>` at its end. Loopback addresses are left out if
    /// there are others.
    #[must_use]
    pub fn addresses(&self) -> Vec<String> {
        let addresses = self.0.addresses.read().unwrap_or_else(PoisonError::into_inner);
        let near = |address: &&Multiaddr| super::address::ip(address).is_some_and(|ip| ip.is_loopback());
        let far: Vec<_> = addresses.iter().filter(|address| !near(address)).collect();
        let told = if far.is_empty() { addresses.iter().collect() } else { far };
        told.into_iter().map(|address| format!("{address}/p2p/{}", self.0.peer)).collect()
    }

    /// Opens a job's stream to `peer`, dialling `addresses` first if there is no connection. A peer that vanished
    /// without a word may still yield a stream for some seconds: frames on it then go unanswered.
    ///
    /// # Errors
    /// As [`OpenError`] says; [`OpenError::TimedOut`] after `wait` at the latest.
    pub async fn open(&self, peer: NodeId, addresses: &[String], wait: Duration) -> Result<JobStream, OpenError> {
        let peer = self.other(&peer)?;
        timeout(wait, self.0.control.open(peer, addresses, wait)).await.unwrap_or(Err(OpenError::TimedOut))
    }

    /// Asks `peer` something, dialling `addresses` first if there is no connection.
    ///
    /// # Errors
    /// As [`CallError`] says; [`OpenError::TimedOut`] after `wait` at the latest.
    pub async fn call(
        &self,
        peer: NodeId,
        addresses: &[String],
        kind: CallKind,
        request: Vec<u8>,
        wait: Duration,
    ) -> Result<Vec<u8>, CallError> {
        let max = kind.request_bytes_max();
        if request.len() > max {
            return Err(CallError::TooLong { max, got: request.len() });
        }
        let peer = self.other(&peer)?;
        let asked = async {
            self.0.control.connect(peer, addresses).await?;
            let (reply, answered) = oneshot::channel();
            let call = Command::Call { peer, kind, request, reply };
            self.0.commands.send(call).await.map_err(|_| OpenError::Stopped)?;
            let answer = answered.await.map_err(|_| OpenError::Stopped)?;
            tokio::time::sleep(self.0.hold).await;
            answer
        };
        timeout(wait, asked).await.unwrap_or(Err(OpenError::TimedOut.into()))
    }

    /// Gossips `bytes`, at most 16 KiB. Nothing is kept for peers that join later: publish again.
    pub fn publish(&self, topic: Topic, bytes: Vec<u8>) {
        self.command(Command::Publish { topic, bytes });
    }

    /// Takes part in a topic of notices from now on, and lets it be known where to look for its peers.
    pub fn join(&self, shard: Shard) {
        self.command(Command::Join(shard));
    }

    /// Takes part in it no longer.
    pub fn part(&self, shard: Shard) {
        self.command(Command::Part(shard));
    }

    /// Looks for peers that take part in a topic of notices, and begins to connect to them.
    pub fn seek(&self, shard: Shard) {
        self.command(Command::Seek(shard));
    }

    /// Tells the network that this node provides exactly these models.
    pub fn provide(&self, models: Vec<String>) {
        self.command(Command::Provide(models));
    }

    /// Looks for peers that provide `model`, and begins to connect to them. For nodes that start cold: never wait for it on
    /// a job's path. Nobody, if there is none, or `wait` is over, or too many such searches run.
    pub async fn find(&self, model: &str, wait: Duration) -> Vec<NodeId> {
        let (reply, found) = oneshot::channel();
        let searched = async {
            self.0.commands.send(Command::Find(model.to_owned(), reply)).await.ok()?;
            found.await.ok()
        };
        timeout(wait, searched).await.ok().flatten().unwrap_or_default()
    }

    /// Closes every connection and stops; returns when that is done. The system may hold a QUIC port a moment longer.
    pub async fn shutdown(&self) {
        let (done, stopped) = oneshot::channel();
        if self.0.commands.send(Command::Shutdown(done)).await.is_ok() {
            let _ = stopped.await;
        }
    }

    /// Whether a connection to `peer` stands.
    #[must_use]
    pub fn is_connected(&self, peer: &NodeId) -> bool {
        peer_id(peer).is_ok_and(|peer| self.0.control.is_connected(&peer))
    }

    fn other(&self, node: &NodeId) -> Result<PeerId, OpenError> {
        if *node == self.0.node {
            return Err(OpenError::Myself);
        }
        // A key that came off the wire may be weak; libp2p would not mind.
        PublicKey::from_bytes(node.0.as_bytes()).map_err(|_| OpenError::BadNode)?;
        peer_id(node).map_err(|_| OpenError::BadNode)
    }

    fn command(&self, command: Command) {
        if self.0.commands.try_send(command).is_err() {
            tracing::warn!("the network is behind or shut down: a message to it is dropped");
        }
    }
}
