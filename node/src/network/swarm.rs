//! The task that owns the libp2p swarm.
//! Invariant: it never waits for the node. What the node does not take in time is refused or dropped, except who came
//! and who left, which is kept, at most one item for each peer.

use super::address::{Reach, ip, is_near};
use super::behaviour::{Node, NodeEvent, ident, identify_name};
use super::calls::CallKind;
use super::dial::Bootstrap;
use super::discovery::{Discovery, Found};
use super::event::{NetworkEvent, Reply, Topic, Verdict};
use super::handle::{CallError, OpenError};
use super::identity::node_id;
use super::settings::{
    CALLS_MAX, CONNECTION_BYTES_MAX, IDLE_MAX, KEEP_ALIVE, NetworkError, PINGS_LOST_MAX, SILENCE_MAX, STREAM_BYTES_MAX,
    STREAMS_MAX,
};
use futures::StreamExt;
use libp2p::core::ConnectedPoint;
use libp2p::gossipsub::{MessageAcceptance, MessageId, TopicHash};
use libp2p::identity::Keypair;
use libp2p::request_response::{self, OutboundRequestId, ResponseChannel};
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::{ConnectionId, DialError, SwarmEvent};
use libp2p::{Multiaddr, PeerId, Swarm, SwarmBuilder, gossipsub, identify, mdns, noise, ping, tcp, yamux};
use spillway_ledger::{NetworkId, NodeId};
use spillway_protocol::discovery::Shard;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::Instant;

/// How often bootstrap addresses and announcements are looked at.
const TICK: Duration = Duration::from_millis(500);
/// How long a listener may take to come up.
const LISTEN_WAIT: Duration = Duration::from_secs(5);
/// How long saying goodbye may take.
const GOODBYE_WAIT: Duration = Duration::from_secs(1);
/// Calls from others that an emulated distance holds back at once.
const HELD_CALLS_MAX: usize = 256;

/// Who waits for a call's answer.
type Asker = oneshot::Sender<Result<Vec<u8>, CallError>>;

/// What the rest of the node wants of the swarm.
pub(crate) enum Command {
    /// Send a question.
    Call { peer: PeerId, kind: CallKind, request: Vec<u8>, reply: Asker },
    /// Send an answer.
    Answer { kind: CallKind, channel: ResponseChannel<Vec<u8>>, response: Vec<u8> },
    /// Decide on a gossiped message.
    Judge { id: MessageId, source: PeerId, acceptance: MessageAcceptance },
    /// Gossip something.
    Publish { topic: Topic, bytes: Vec<u8> },
    /// Be on a topic of notices.
    Join(Shard),
    /// Be on it no longer.
    Part(Shard),
    /// Connect to peers that are on it.
    Seek(Shard),
    /// Announce exactly these models.
    Provide(Vec<String>),
    /// Connect to providers of a model, and say who they are.
    Find(String, oneshot::Sender<Vec<NodeId>>),
    /// Say goodbye and stop.
    Shutdown(oneshot::Sender<()>),
}

/// Builds the swarm with its transports and their limits.
pub(crate) fn build(key: Keypair, node: Node) -> Result<Swarm<Node>, NetworkError> {
    let setup = |part, why: String| NetworkError::Setup { part, why };
    let muxer = || {
        let mut config = yamux::Config::default();
        config.set_max_num_streams(STREAMS_MAX as usize);
        config
    };
    let builder = SwarmBuilder::with_existing_identity(key)
        .with_tokio()
        .with_tcp(tcp::Config::default().nodelay(true), noise::Config::new, muxer)
        .map_err(|error| setup("tcp", error.to_string()))?
        .with_quic_config(|mut config| {
            config.max_concurrent_stream_limit = STREAMS_MAX;
            config.max_stream_data = STREAM_BYTES_MAX;
            config.max_connection_data = CONNECTION_BYTES_MAX;
            config.keep_alive_interval = KEEP_ALIVE;
            config.max_idle_timeout = u32::try_from(SILENCE_MAX.as_millis()).expect("ten seconds fit");
            config
        })
        .with_dns()
        .map_err(|error| setup("dns", error.to_string()))?
        .with_behaviour(|_| node)
        .map_err(|never| match never {})?;
    Ok(builder
        .with_swarm_config(|config| {
            config
                .with_idle_connection_timeout(IDLE_MAX)
                .with_smart_dial()
                // Saves a round trip for each stream.
                .with_substream_upgrade_protocol_override(libp2p::core::upgrade::Version::V1Lazy)
        })
        .build())
}

/// Starts listening; returns the addresses once each listener has its first.
pub(crate) async fn listen(swarm: &mut Swarm<Node>, to: Vec<Multiaddr>) -> Result<Vec<Multiaddr>, NetworkError> {
    let mut waiting = HashMap::new();
    for address in to {
        let failed = |why: String| NetworkError::Listen { address: address.to_string(), why };
        let id = swarm.listen_on(address.clone()).map_err(|error| failed(in_words(&error)))?;
        waiting.insert(id, address);
    }
    let mut listening = Vec::new();
    let until = Instant::now() + LISTEN_WAIT;
    while let Some(address) = waiting.values().next() {
        let failed = |address: &Multiaddr, why: String| NetworkError::Listen { address: address.to_string(), why };
        let Ok(event) = tokio::time::timeout_at(until, swarm.select_next_some()).await else {
            return Err(failed(address, "no answer from the operating system".into()));
        };
        match event {
            SwarmEvent::NewListenAddr { listener_id, address } => {
                waiting.remove(&listener_id);
                listening.push(address);
            }
            SwarmEvent::ListenerClosed { listener_id, reason, .. } => {
                if let Some(address) = waiting.get(&listener_id) {
                    let why = reason.err().map_or_else(|| "closed".into(), |error| in_words(&error));
                    return Err(failed(address, why));
                }
            }
            SwarmEvent::ListenerError { listener_id, error } => {
                if let Some(address) = waiting.get(&listener_id) {
                    return Err(failed(address, in_words(&error)));
                }
            }
            _ => {} // Nothing is connected yet; libp2p's list of events is open.
        }
    }
    Ok(listening)
}

/// An error and what caused it; libp2p's own texts often leave out the second, and with it the point.
fn in_words(error: &dyn std::error::Error) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !text.is_empty() && words.last().is_none_or(|last| !last.contains(&text)) {
            words.push(text);
        }
        next = error.source();
    }
    words.join(": ")
}

/// One connection.
struct Link {
    peer: PeerId,
    remote: Multiaddr,
    dialled: bool,
    pings_lost: u32,
}

/// The task's state.
pub(crate) struct Task {
    swarm: Swarm<Node>,
    network: NetworkId,
    bootstrap: Bootstrap,
    discovery: Discovery,
    commands: mpsc::Receiver<Command>,
    /// For answers and verdicts; weak, so that the task ends with the last handle.
    back: mpsc::WeakSender<Command>,
    events: mpsc::Sender<NetworkEvent>,
    addresses: Arc<RwLock<Vec<Multiaddr>>>,
    hold: Duration,
    held: Arc<Semaphore>,
    links: HashMap<ConnectionId, Link>,
    /// Peers that have shown to be of this network.
    known: HashMap<PeerId, NodeId>,
    /// The topics of notices that connected peers are on.
    on_topics: HashMap<PeerId, BTreeSet<Shard>>,
    topics: HashMap<TopicHash, Topic>,
    calls: HashMap<(CallKind, OutboundRequestId), Asker>,
    /// Comings (`true`) and goings that the node has not taken yet, of peers and of peers on a topic.
    news: VecDeque<(NodeId, Option<Shard>, bool)>,
}

/// What a task is made of.
pub(crate) struct Wiring {
    pub(crate) network: NetworkId,
    pub(crate) reach: Reach,
    pub(crate) bootstrap: Bootstrap,
    pub(crate) commands: mpsc::Receiver<Command>,
    pub(crate) back: mpsc::WeakSender<Command>,
    pub(crate) events: mpsc::Sender<NetworkEvent>,
    pub(crate) addresses: Arc<RwLock<Vec<Multiaddr>>>,
    pub(crate) hold: Duration,
}

impl Task {
    pub(crate) fn new(swarm: Swarm<Node>, wiring: Wiring) -> Self {
        let Wiring { network, reach, bootstrap, commands, back, events, addresses, hold } = wiring;
        Self {
            swarm,
            network,
            bootstrap,
            discovery: Discovery::new(network, reach),
            commands,
            back,
            events,
            addresses,
            hold,
            held: Arc::new(Semaphore::new(HELD_CALLS_MAX)),
            links: HashMap::new(),
            known: HashMap::new(),
            on_topics: HashMap::new(),
            topics: Topic::all().map(|topic| (ident(topic, &network).hash(), topic)).collect(),
            calls: HashMap::new(),
            news: VecDeque::new(),
        }
    }

    /// Runs until it is told to stop or the last handle is gone.
    pub(crate) async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let events = self.events.clone();
        let done = loop {
            tokio::select! {
                event = self.swarm.select_next_some() => self.swarm_event(event),
                command = self.commands.recv() => match command {
                    Some(Command::Shutdown(done)) => break Some(done),
                    Some(command) => self.command(command),
                    None => break None,
                },
                place = events.reserve(), if !self.news.is_empty() => self.tell_news(place),
                _ = tick.tick() => self.tick(),
            }
        };
        self.say_goodbye().await;
        drop(self);
        if let Some(done) = done {
            let _ = done.send(());
        }
    }

    fn tell_news(&mut self, place: Result<mpsc::Permit<'_, NetworkEvent>, mpsc::error::SendError<()>>) {
        let Some((node, shard, came)) = self.news.pop_front() else { return };
        if let Ok(place) = place {
            place.send(match (shard, came) {
                (None, true) => NetworkEvent::PeerConnected(node),
                (None, false) => NetworkEvent::PeerLost(node),
                (Some(shard), true) => NetworkEvent::TopicJoined { peer: node, shard },
                (Some(shard), false) => NetworkEvent::TopicLeft { peer: node, shard },
            });
        }
        // Otherwise nobody listens any more, and the news are of no use.
    }

    /// Notes that a peer came or left, or joined or left a topic. News of that which was not told yet is the opposite:
    /// together they are none.
    fn note(&mut self, node: NodeId, shard: Option<Shard>, came: bool) {
        if shard.is_none() && !came {
            // Who is gone is on no topic.
            self.news.retain(|(other, topic, _)| *other != node || topic.is_none());
        }
        let untold = self.news.len();
        self.news.retain(|(other, topic, _)| *other != node || *topic != shard);
        if self.news.len() == untold {
            self.news.push_back((node, shard, came));
        }
    }

    /// A peer has joined or left a topic of notices.
    fn on_topic(&mut self, peer: PeerId, topic: &TopicHash, came: bool) {
        let Some(Topic::Notices(shard)) = self.topics.get(topic).copied() else { return };
        let shards = self.on_topics.entry(peer).or_default();
        let is_news = if came { shards.insert(shard) } else { shards.remove(&shard) };
        // Of one that is not known yet it is told when it is.
        if is_news && let Some(node) = self.known.get(&peer) {
            self.note(*node, Some(shard), came);
        }
    }

    fn tick(&mut self) {
        let swarm = &mut self.swarm;
        for (peer, address) in self.bootstrap.due(Instant::now(), |peer| swarm.is_connected(peer)) {
            dial(swarm, peer, vec![address]);
        }
        self.discovery.renew(&mut self.swarm.behaviour_mut().kad);
    }

    fn command(&mut self, command: Command) {
        let node = self.swarm.behaviour_mut();
        match command {
            Command::Call { peer, kind, request, reply } => {
                self.calls.retain(|_, reply| !reply.is_closed());
                if self.calls.len() >= CALLS_MAX {
                    let _ = reply.send(Err(OpenError::Busy.into()));
                    return;
                }
                let id = node.calls(kind).send_request(&peer, request);
                self.calls.insert((kind, id), reply);
            }
            Command::Answer { kind, channel, response } => {
                // A caller that has left is no fault of anyone's.
                let _ = node.calls(kind).send_response(channel, response);
            }
            Command::Judge { id, source, acceptance } => {
                node.gossip.report_message_validation_result(&id, &source, acceptance);
            }
            Command::Publish { topic, bytes } => match node.gossip.publish(ident(topic, &self.network), bytes) {
                // Who joins later asks; a duplicate is already out there.
                Ok(_) | Err(gossipsub::PublishError::NoPeersSubscribedToTopic | gossipsub::PublishError::Duplicate) => {
                }
                Err(error) => tracing::warn!(?topic, %error, "not gossiped"),
            },
            Command::Join(shard) => {
                if let Err(error) = node.gossip.subscribe(&ident(Topic::Notices(shard), &self.network)) {
                    tracing::warn!(shard = shard.number(), %error, "a topic cannot be joined");
                }
                self.discovery.join(&mut node.kad, shard);
            }
            Command::Part(shard) => {
                node.gossip.unsubscribe(&ident(Topic::Notices(shard), &self.network));
                self.discovery.part(&mut node.kad, shard);
            }
            Command::Seek(shard) => self.discovery.seek(&mut node.kad, shard),
            Command::Provide(models) => self.discovery.provide(&mut node.kad, models),
            Command::Find(model, reply) => self.discovery.find_model(&mut node.kad, &model, reply),
            Command::Shutdown(_) => unreachable!("`run` takes it"),
        }
    }

    fn swarm_event(&mut self, event: SwarmEvent<NodeEvent>) {
        match event {
            SwarmEvent::Behaviour(event) => self.behaviour_event(event),
            SwarmEvent::ConnectionEstablished { peer_id, connection_id, endpoint, .. } => {
                self.established(peer_id, connection_id, &endpoint);
            }
            SwarmEvent::ConnectionClosed { peer_id, connection_id, num_established, cause, .. } => {
                self.links.remove(&connection_id);
                tracing::debug!(peer = %peer_id, ?cause, left = num_established, "a connection closed");
                if num_established == 0 {
                    self.on_topics.remove(&peer_id);
                    if let Some(node) = self.known.remove(&peer_id) {
                        self.note(node, None, false);
                    }
                }
            }
            SwarmEvent::NewListenAddr { address, .. } => {
                let mut addresses = self.addresses.write().unwrap_or_else(PoisonError::into_inner);
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            SwarmEvent::ExpiredListenAddr { address, .. } => {
                self.addresses.write().unwrap_or_else(PoisonError::into_inner).retain(|known| *known != address);
            }
            SwarmEvent::ListenerClosed { addresses, reason, .. } => {
                tracing::error!(?addresses, ?reason, "no longer listening");
            }
            SwarmEvent::OutgoingConnectionError { peer_id, error, .. } => {
                tracing::debug!(?peer_id, %error, "a dial failed");
            }
            _ => {} // For logs and statistics only; libp2p's list of events is open.
        }
    }

    fn established(&mut self, peer: PeerId, id: ConnectionId, endpoint: &ConnectedPoint) {
        let remote = endpoint.get_remote_address().clone();
        let dialled = endpoint.is_dialer();
        // Somebody from outside has reached this node, so its outside addresses work. Near ones prove nothing.
        if !dialled && ip(&remote).is_some_and(|ip| !is_near(ip)) {
            let own: Vec<_> = self.swarm.listeners().cloned().collect();
            for address in own.into_iter().filter(|own| ip(own).is_some_and(|ip| !is_near(ip))) {
                self.swarm.add_external_address(address);
            }
        }
        self.links.insert(id, Link { peer, remote, dialled, pings_lost: 0 });
    }

    fn behaviour_event(&mut self, event: NodeEvent) {
        match event {
            NodeEvent::Streams(super::streams::Unknown(peer)) => {
                if !self.discovery.find_peer(&mut self.swarm.behaviour_mut().kad, peer) {
                    self.swarm.behaviour_mut().streams.answer(&peer, &Err(OpenError::Busy));
                }
            }
            NodeEvent::Identify(identify::Event::Received { connection_id, peer_id, info }) => {
                self.identified(connection_id, peer_id, &info);
            }
            NodeEvent::Identify(_) => {}
            NodeEvent::Ping(ping) => self.pinged(&ping),
            NodeEvent::Kad(event) => {
                let found = self.discovery.handle(&mut self.swarm.behaviour_mut().kad, event);
                for found in found {
                    self.found(found);
                }
            }
            NodeEvent::Gossip(gossipsub::Event::Message { propagation_source, message_id, message }) => {
                self.gossiped(propagation_source, message_id, message);
            }
            NodeEvent::Gossip(gossipsub::Event::Subscribed { peer_id, topic }) => {
                self.on_topic(peer_id, &topic, true);
            }
            NodeEvent::Gossip(gossipsub::Event::Unsubscribed { peer_id, topic }) => {
                self.on_topic(peer_id, &topic, false);
            }
            NodeEvent::Gossip(_) => {}
            NodeEvent::Probes(event) => self.call_event(CallKind::Probe, event),
            NodeEvent::Offers(event) => self.call_event(CallKind::Offers, event),
            NodeEvent::Ledger(event) => self.call_event(CallKind::Ledger, event),
            NodeEvent::Mdns(mdns::Event::Discovered(peers)) => {
                for (peer, address) in peers {
                    dial(&mut self.swarm, peer, vec![address]);
                }
            }
            NodeEvent::Mdns(mdns::Event::Expired(_)) => {}
        }
    }

    fn identified(&mut self, connection: ConnectionId, peer: PeerId, info: &identify::Info) {
        let Some(link) = self.links.get(&connection) else { return };
        let Ok(node) = node_id(&peer) else { return };
        if info.protocol_version != identify_name(&self.network) {
            tracing::info!(peer = %node, theirs = %info.protocol_version, "a peer of another network is disconnected");
            let _ = self.swarm.disconnect_peer_id(peer);
            return;
        }
        let kad = &mut self.swarm.behaviour_mut().kad;
        self.discovery.identified(kad, peer, &link.remote, link.dialled, info);
        if self.known.insert(peer, node).is_none() {
            self.note(node, None, true);
            for shard in self.on_topics.get(&peer).cloned().unwrap_or_default() {
                self.note(node, Some(shard), true);
            }
        }
    }

    fn pinged(&mut self, event: &ping::Event) {
        let Some(link) = self.links.get_mut(&event.connection) else { return };
        match &event.result {
            Ok(rtt) => {
                link.pings_lost = 0;
                if let Some(peer) = self.known.get(&link.peer) {
                    // The next measurement is as good: when the node is behind, this one is dropped.
                    let _ = self.events.try_send(NetworkEvent::Rtt { peer: *peer, rtt: *rtt + self.hold });
                }
            }
            Err(ping::Failure::Unsupported) => {}
            Err(ping::Failure::Timeout | ping::Failure::Other { .. }) => {
                link.pings_lost += 1;
                if link.pings_lost >= PINGS_LOST_MAX {
                    self.swarm.close_connection(event.connection);
                }
            }
        }
    }

    fn found(&mut self, found: Found) {
        match found {
            Found::Provider(peer) => {
                if peer != *self.swarm.local_peer_id() && !self.swarm.is_connected(&peer) {
                    let opts = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).build();
                    if let Err(DialError::NoAddresses) = self.swarm.dial(opts) {
                        self.discovery.find_peer(&mut self.swarm.behaviour_mut().kad, peer);
                    }
                }
            }
            Found::Peer(peer, addresses) if addresses.is_empty() => {
                self.swarm.behaviour_mut().streams.answer(&peer, &Err(OpenError::NoAddress));
            }
            // Its success or failure answers those who wait.
            Found::Peer(peer, addresses) => dial(&mut self.swarm, peer, addresses),
        }
    }

    fn gossiped(&mut self, source: PeerId, id: MessageId, message: gossipsub::Message) {
        let verdict = Verdict::new(self.back.clone(), id, source);
        if let (Some(topic), Ok(from)) = (self.topics.get(&message.topic).copied(), node_id(&source)) {
            // A full queue drops the message, and with it the verdict, which then ignores the message.
            let _ = self.events.try_send(NetworkEvent::Gossip { topic, from, bytes: message.data, verdict });
        }
    }

    fn call_event(&mut self, kind: CallKind, event: request_response::Event<Vec<u8>, Vec<u8>>) {
        match event {
            request_response::Event::Message { peer, message, .. } => match message {
                request_response::Message::Request { request, channel, .. } => {
                    let Ok(node) = node_id(&peer) else { return };
                    let reply = Reply::new(self.back.clone(), kind, channel);
                    self.asked(NetworkEvent::Call { peer: node, kind, request, reply });
                }
                request_response::Message::Response { request_id, response } => {
                    self.answered(kind, request_id, Ok(response));
                }
            },
            request_response::Event::OutboundFailure { request_id, error, .. } => {
                self.answered(kind, request_id, Err(CallError::NoAnswer(error.to_string())));
            }
            request_response::Event::InboundFailure { peer, error, .. } => {
                tracing::debug!(%peer, ?kind, %error, "a call from a peer failed");
            }
            request_response::Event::ResponseSent { .. } => {}
        }
    }

    /// Hands a call to the node, later if a distance is emulated. When the node is behind, the caller gets no answer.
    fn asked(&self, call: NetworkEvent) {
        if self.hold.is_zero() {
            let _ = self.events.try_send(call);
            return;
        }
        let Ok(place) = Arc::clone(&self.held).try_acquire_owned() else { return };
        let (events, hold) = (self.events.clone(), self.hold);
        tokio::spawn(async move {
            tokio::time::sleep(hold).await;
            let _ = events.try_send(call);
            drop(place);
        });
    }

    fn answered(&mut self, kind: CallKind, id: OutboundRequestId, answer: Result<Vec<u8>, CallError>) {
        if let Some(reply) = self.calls.remove(&(kind, id)) {
            let _ = reply.send(answer);
        }
    }

    /// Closes every connection, so that peers know at once.
    async fn say_goodbye(&mut self) {
        let peers: Vec<PeerId> = self.swarm.connected_peers().copied().collect();
        for peer in peers {
            let _ = self.swarm.disconnect_peer_id(peer);
        }
        let closed = async {
            while self.swarm.connected_peers().next().is_some() {
                self.swarm.select_next_some().await;
            }
        };
        let _ = tokio::time::timeout(GOODBYE_WAIT, closed).await;
    }
}

/// Dials unless there is a connection or a dial already. Whether it works shows in the swarm's events.
fn dial(swarm: &mut Swarm<Node>, peer: PeerId, addresses: Vec<Multiaddr>) {
    let opts = DialOpts::peer_id(peer).condition(PeerCondition::DisconnectedAndNotDialing).addresses(addresses).build();
    if let Err(error) = swarm.dial(opts) {
        tracing::debug!(%peer, %error, "not dialled");
    }
}
