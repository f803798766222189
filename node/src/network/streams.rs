//! Job streams: a libp2p behaviour of our own, because `libp2p-stream` opens one stream at a time on a connection and
//! drops inbound ones silently.
//!
//! Invariant: every request to connect or to open is answered once, or its asker has stopped waiting. Outbound streams
//! open in parallel, on the best connection first (QUIC before TCP). Inbound streams go straight into the node's event
//! queue; when that is full they are refused.

use super::address::Reach;
use super::event::NetworkEvent;
use super::frames::JobStream;
use super::handle::OpenError;
use super::identity::node_id;
use super::settings::{JOB_STREAMS_QUIC_MAX, JOB_STREAMS_TCP_MAX};
use libp2p::core::Endpoint;
use libp2p::core::transport::PortUse;
use libp2p::core::upgrade::ReadyUpgrade;
use libp2p::multiaddr::Protocol;
use libp2p::swarm::dial_opts::{DialOpts, PeerCondition};
use libp2p::swarm::handler::{
    ConnectionEvent, ConnectionHandler, ConnectionHandlerEvent, DialUpgradeError, FullyNegotiatedInbound,
    FullyNegotiatedOutbound,
};
use libp2p::swarm::{
    ConnectionDenied, ConnectionId, DialError, FromSwarm, NetworkBehaviour, Stream, StreamUpgradeError,
    SubstreamProtocol, THandler, THandlerInEvent, THandlerOutEvent, ToSwarm,
};
use libp2p::{Multiaddr, PeerId, StreamProtocol};
use spillway_ledger::NodeId;
use spillway_protocol::wire::JOB_PROTOCOL;
use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot};

const PROTOCOL: StreamProtocol = StreamProtocol::new(JOB_PROTOCOL);
/// Requests to connect that wait for the swarm's task, or for a dial's end.
const CONNECTS_MAX: usize = 1024;
/// Requests to open a stream that wait on one connection.
const OPENS_MAX: usize = 256;

/// Asks for a connection.
struct Connect {
    peer: PeerId,
    addresses: Vec<Multiaddr>,
    reply: oneshot::Sender<Result<(), OpenError>>,
}

/// Asks a connection for a stream.
struct Open {
    wait: Duration,
    place: OwnedSemaphorePermit,
    reply: oneshot::Sender<Result<JobStream, OpenError>>,
}

/// An established connection, as seen from outside the swarm.
struct Connection {
    id: ConnectionId,
    rank: Rank,
    /// Places for streams that this node opens.
    places: Arc<Semaphore>,
    opens: mpsc::Sender<Open>,
}

/// How good a connection is for jobs; the lower, the better.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rank {
    Quic,
    Tcp,
}

impl Rank {
    fn of(address: &Multiaddr) -> Self {
        if address.iter().any(|part| matches!(part, Protocol::QuicV1)) { Self::Quic } else { Self::Tcp }
    }

    const fn streams_max(self) -> usize {
        match self {
            Self::Quic => JOB_STREAMS_QUIC_MAX,
            Self::Tcp => JOB_STREAMS_TCP_MAX,
        }
    }
}

type Connections = HashMap<PeerId, Vec<Connection>>;

fn locked(connections: &Mutex<Connections>) -> MutexGuard<'_, Connections> {
    // No code panics while it holds the lock, and the map is valid between any two statements.
    connections.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The way to the behaviour from outside the swarm's task.
#[derive(Clone)]
pub(crate) struct Control {
    connections: Arc<Mutex<Connections>>,
    connects: mpsc::Sender<Connect>,
    reach: Reach,
}

impl Control {
    /// Whether a connection to `peer` stands.
    pub(crate) fn is_connected(&self, peer: &PeerId) -> bool {
        locked(&self.connections).contains_key(peer)
    }

    /// Returns once a connection to `peer` stands. Dials what `claimed` allows and what the swarm knows, if none does.
    pub(crate) async fn connect(&self, peer: PeerId, claimed: &[String]) -> Result<(), OpenError> {
        if self.is_connected(&peer) {
            return Ok(());
        }
        let (reply, connected) = oneshot::channel();
        let addresses = self.reach.dialable(claimed);
        self.connects.send(Connect { peer, addresses, reply }).await.map_err(|_| OpenError::Stopped)?;
        connected.await.map_err(|_| OpenError::Stopped)?
    }

    /// Opens a stream, dialling first if need be; each connection is tried once, best first.
    pub(crate) async fn open(&self, peer: PeerId, claimed: &[String], wait: Duration) -> Result<JobStream, OpenError> {
        let mut tried = Vec::new();
        loop {
            self.connect(peer, claimed).await?;
            let best = {
                let connections = locked(&self.connections);
                let untried = connections.get(&peer).into_iter().flatten().filter(|to| !tried.contains(&to.id));
                untried.min_by_key(|to| to.rank).map(|to| (to.id, Arc::clone(&to.places), to.opens.clone()))
            };
            let Some((id, places, opens)) = best else {
                return Err(OpenError::Unreachable("every connection failed".into()));
            };
            tried.push(id);
            // With others to fall back on, a connection that hangs must leave them time.
            let patience = wait / 2;
            let opened = async {
                let place = places.acquire_owned().await.ok()?;
                let (reply, opened) = oneshot::channel();
                opens.send(Open { wait: patience, place, reply }).await.ok()?;
                opened.await.ok()
            };
            match tokio::time::timeout(patience, opened).await {
                Ok(Some(Ok(stream))) => return Ok(stream),
                Ok(Some(Err(OpenError::Unsupported))) => return Err(OpenError::Unsupported),
                Ok(Some(Err(error))) => tracing::debug!(%peer, %error, "a stream could not be opened"),
                Ok(None) | Err(_) => tracing::debug!(%peer, "a connection does not open streams"),
            }
        }
    }
}

/// Somebody waits for a connection to this peer, and no address of it is known.
#[derive(Debug)]
pub(crate) struct Unknown(pub(crate) PeerId);

/// Lives in the swarm.
pub(crate) struct Behaviour {
    connections: Arc<Mutex<Connections>>,
    /// Handlers whose connection another behaviour may still deny.
    admitted: HashMap<ConnectionId, Connection>,
    connects: mpsc::Receiver<Connect>,
    waiting: HashMap<PeerId, Vec<oneshot::Sender<Result<(), OpenError>>>>,
    dials: VecDeque<DialOpts>,
    unknown: VecDeque<PeerId>,
    events: mpsc::Sender<NetworkEvent>,
    hold: Duration,
}

impl Behaviour {
    /// `hold` is the emulated distance, see [`JobStream`].
    pub(crate) fn new(events: mpsc::Sender<NetworkEvent>, reach: Reach, hold: Duration) -> (Self, Control) {
        let (connects, received) = mpsc::channel(CONNECTS_MAX);
        let connections = Arc::default();
        let control = Control { connections: Arc::clone(&connections), connects, reach };
        let behaviour = Self {
            connections,
            admitted: HashMap::new(),
            connects: received,
            waiting: HashMap::new(),
            dials: VecDeque::new(),
            unknown: VecDeque::new(),
            events,
            hold,
        };
        (behaviour, control)
    }

    /// Answers those who wait for a connection to `peer`.
    pub(crate) fn answer(&mut self, peer: &PeerId, answer: &Result<(), OpenError>) {
        for reply in self.waiting.remove(peer).into_iter().flatten() {
            let _ = reply.send(answer.clone());
        }
    }

    fn connect(&mut self, connect: Connect) {
        let Connect { peer, addresses, reply } = connect;
        if locked(&self.connections).contains_key(&peer) {
            let _ = reply.send(Ok(()));
            return;
        }
        self.waiting.retain(|_, replies| {
            replies.retain(|reply| !reply.is_closed());
            !replies.is_empty()
        });
        if self.waiting.values().map(Vec::len).sum::<usize>() >= CONNECTS_MAX {
            let _ = reply.send(Err(OpenError::Busy));
            return;
        }
        self.waiting.entry(peer).or_default().push(reply);
        self.dials.push_back(
            DialOpts::peer_id(peer)
                .condition(PeerCondition::DisconnectedAndNotDialing)
                .addresses(addresses)
                .extend_addresses_through_behaviour()
                .build(),
        );
    }

    fn admit(&mut self, id: ConnectionId, peer: PeerId, remote: &Multiaddr) -> Result<Handler, ConnectionDenied> {
        let node = node_id(&peer).map_err(ConnectionDenied::new)?;
        let rank = Rank::of(remote);
        let (opens, asked) = mpsc::channel(OPENS_MAX);
        let places = Arc::new(Semaphore::new(rank.streams_max()));
        self.admitted.insert(id, Connection { id, rank, places, opens });
        let places = Arc::new(Semaphore::new(rank.streams_max()));
        Ok(Handler { node, asked, places, events: self.events.clone(), hold: self.hold })
    }

    fn failed(&mut self, id: ConnectionId, peer: Option<PeerId>, error: &DialError) {
        self.admitted.remove(&id);
        let Some(peer) = peer else { return };
        match error {
            // Another dial is under way, or stands already: its end is the answer.
            DialError::DialPeerConditionFalse(_) => {}
            // The swarm's task looks the peer up, dials or answers.
            DialError::NoAddresses => {
                if self.waiting.contains_key(&peer) {
                    self.unknown.push_back(peer);
                }
            }
            DialError::LocalPeerId { .. }
            | DialError::Aborted
            | DialError::WrongPeerId { .. }
            | DialError::Denied { .. }
            | DialError::Transport(_) => self.answer(&peer, &Err(OpenError::Unreachable(error.to_string()))),
        }
    }
}

impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = Handler;
    type ToSwarm = Unknown;

    fn handle_established_inbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        local: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(id, peer, local)
    }

    fn handle_established_outbound_connection(
        &mut self,
        id: ConnectionId,
        peer: PeerId,
        remote: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        self.admit(id, peer, remote)
    }

    fn on_swarm_event(&mut self, event: FromSwarm) {
        // The other events do not concern connections; the list of them grows with libp2p.
        if let FromSwarm::ConnectionEstablished(opened) = event {
            if let Some(connection) = self.admitted.remove(&opened.connection_id) {
                locked(&self.connections).entry(opened.peer_id).or_default().push(connection);
                self.answer(&opened.peer_id, &Ok(()));
            }
        } else if let FromSwarm::ConnectionClosed(closed) = event {
            let mut connections = locked(&self.connections);
            if let Some(of_peer) = connections.get_mut(&closed.peer_id) {
                of_peer.retain(|connection| connection.id != closed.connection_id);
                if of_peer.is_empty() {
                    connections.remove(&closed.peer_id);
                }
            }
        } else if let FromSwarm::DialFailure(failure) = event {
            self.failed(failure.connection_id, failure.peer_id, failure.error);
        } else if let FromSwarm::ListenFailure(failure) = event {
            self.admitted.remove(&failure.connection_id);
        }
    }

    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<ToSwarm<Unknown, THandlerInEvent<Self>>> {
        loop {
            if let Some(peer) = self.unknown.pop_front() {
                return Poll::Ready(ToSwarm::GenerateEvent(Unknown(peer)));
            }
            if let Some(opts) = self.dials.pop_front() {
                return Poll::Ready(ToSwarm::Dial { opts });
            }
            match self.connects.poll_recv(cx) {
                Poll::Ready(Some(connect)) => self.connect(connect),
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }
}

/// Lives beside one connection.
pub(crate) struct Handler {
    node: NodeId,
    asked: mpsc::Receiver<Open>,
    /// Places for streams that the peer opens.
    places: Arc<Semaphore>,
    events: mpsc::Sender<NetworkEvent>,
    hold: Duration,
}

impl Handler {
    /// Hands a peer's stream to the node. Without a free place on the connection or in the node's queue it is dropped,
    /// which resets it.
    fn accept(&self, stream: Stream) {
        let place = Arc::clone(&self.places).try_acquire_owned();
        match (place, self.events.try_reserve()) {
            (Ok(place), Ok(queue)) => {
                queue.send(NetworkEvent::Stream { peer: self.node, stream: JobStream::new(stream, self.hold, place) })
            }
            (Err(_), _) => tracing::warn!(peer = %self.node, "a job's stream is refused: the peer has too many"),
            (Ok(_), Err(_)) => tracing::warn!(peer = %self.node, "a job's stream is refused: the node is behind"),
        }
    }
}

impl ConnectionHandler for Handler {
    type FromBehaviour = Infallible;
    type ToBehaviour = Infallible;
    type InboundProtocol = ReadyUpgrade<StreamProtocol>;
    type OutboundProtocol = ReadyUpgrade<StreamProtocol>;
    type InboundOpenInfo = ();
    type OutboundOpenInfo = (OwnedSemaphorePermit, oneshot::Sender<Result<JobStream, OpenError>>);

    fn listen_protocol(&self) -> SubstreamProtocol<Self::InboundProtocol> {
        SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), ())
    }

    fn poll(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<ConnectionHandlerEvent<Self::OutboundProtocol, Self::OutboundOpenInfo, Infallible>> {
        // Places bound how many are asked for at once.
        loop {
            match self.asked.poll_recv(cx) {
                Poll::Ready(Some(open)) if open.reply.is_closed() => {}
                Poll::Ready(Some(Open { wait, place, reply })) => {
                    let protocol = SubstreamProtocol::new(ReadyUpgrade::new(PROTOCOL), (place, reply));
                    return Poll::Ready(ConnectionHandlerEvent::OutboundSubstreamRequest {
                        protocol: protocol.with_timeout(wait),
                    });
                }
                Poll::Ready(None) | Poll::Pending => return Poll::Pending,
            }
        }
    }

    fn on_behaviour_event(&mut self, event: Infallible) {
        match event {}
    }

    fn on_connection_event(
        &mut self,
        event: ConnectionEvent<'_, Self::InboundProtocol, Self::OutboundProtocol, (), Self::OutboundOpenInfo>,
    ) {
        // The other events do not concern streams; the list of them grows with libp2p.
        if let ConnectionEvent::FullyNegotiatedInbound(FullyNegotiatedInbound { protocol, .. }) = event {
            self.accept(protocol);
        } else if let ConnectionEvent::FullyNegotiatedOutbound(FullyNegotiatedOutbound { protocol, info }) = event {
            let (place, reply) = info;
            let _ = reply.send(Ok(JobStream::new(protocol, self.hold, place)));
        } else if let ConnectionEvent::DialUpgradeError(DialUpgradeError { info: (_, reply), error }) = event {
            let _ = reply.send(Err(match error {
                StreamUpgradeError::Timeout => OpenError::TimedOut,
                StreamUpgradeError::NegotiationFailed => OpenError::Unsupported,
                StreamUpgradeError::Io(error) => OpenError::Unreachable(error.to_string()),
                StreamUpgradeError::Apply(never) => match never {},
            }));
        }
    }
}
