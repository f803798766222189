//! What the network is told at its start, and the limits it keeps.
//! Invariant: every limit that a peer could press against is named here or beside the behaviour that keeps it.

use spillway_ledger::NetworkId;
use std::time::Duration;

/// How a node joins the network.
#[derive(Clone, Debug)]
pub struct NetworkSettings {
    /// The market; peers of another are disconnected.
    pub network: NetworkId,
    /// Multiaddresses to listen on, such as `/ip4/0.0.0.0/udp/4600/quic-v1`; port 0 takes a free one. May be empty.
    pub listen: Vec<String>,
    /// Where to knock first, and again whenever the connection is lost: multiaddresses that end in `/p2p/<peer id>`.
    pub bootstrap: Vec<String>,
    /// Peers of an earlier run, in the same form; tried a few times, and of no consequence if they do not read.
    pub known: Vec<String>,
    /// Whether to look for peers on the local network by multicast DNS.
    pub mdns: bool,
    /// Holds back what comes in by this much, in order, so that a local test network has a far peer. Zero is off.
    pub emulated_rtt: Duration,
}

/// Why a node cannot join; each names the setting at fault.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// An address to listen on cannot be read.
    #[error("network.listen: `{address}` is not a multiaddress such as /ip4/0.0.0.0/udp/4600/quic-v1")]
    BadListen {
        /// As it was given.
        address: String,
    },
    /// A bootstrap address cannot be read, or does not say whose it is.
    #[error("network.bootstrap: `{address}` is not a multiaddress that ends in /p2p/<ed25519 peer id>")]
    BadBootstrap {
        /// As it was given.
        address: String,
    },
    /// The node cannot listen there, for instance because the port is taken.
    #[error("network.listen: cannot listen on {address}: {why}")]
    Listen {
        /// As it was given.
        address: String,
        /// In the operating system's words.
        why: String,
    },
    /// A part of the network stack cannot be set up on this machine.
    #[error("the network cannot start: {part}: {why}")]
    Setup {
        /// Which part.
        part: &'static str,
        /// In its words.
        why: String,
    },
}

/// Events that wait for the node; beyond it inbound streams and calls are refused and gossip is ignored.
pub(crate) const EVENTS_MAX: usize = 1024;
/// Commands that wait for the swarm's task; beyond it publishing is dropped and calls wait.
pub(crate) const COMMANDS_MAX: usize = 1024;
/// Calls of this node that may be under way at once.
pub(crate) const CALLS_MAX: usize = 1024;
/// Connections that are being set up, each way.
pub(crate) const PENDING_MAX: u32 = 64;
/// Connections each way. An idle one costs about 2.3 KB a minute.
pub(crate) const CONNECTIONS_MAX: u32 = 256;
/// Connections with one peer: QUIC and TCP at once, from both sides.
pub(crate) const CONNECTIONS_PER_PEER_MAX: u32 = 4;
/// Connections with one /24 (IPv4) or /48 (IPv6), loopback and private ones excepted.
pub(crate) const CONNECTIONS_PER_SUBNET_MAX: usize = 32;
/// No new connection while the process takes more than this share of the machine's memory.
pub(crate) const MEMORY_SHARE_MAX: f64 = 0.8;
/// Job streams on one QUIC connection, each way; further ones wait, or go over another connection.
pub(crate) const JOB_STREAMS_QUIC_MAX: usize = 128;
/// Job streams on one TCP connection, each way. Fewer, because each brings a window of 256 KiB, and yamux can stand still
/// for good when both ways are full beyond what the operating system buffers.
pub(crate) const JOB_STREAMS_TCP_MAX: usize = 64;
/// Streams of every kind that a peer may hold open on one connection: jobs must leave room for pings and calls, whose
/// failure would cost the connection. Exceeding it is a QUIC peer's wait and a yamux peer's loss of the connection.
pub(crate) const STREAMS_MAX: u32 = 512;
/// Bytes in flight on one QUIC stream.
pub(crate) const STREAM_BYTES_MAX: u32 = 1 << 20;
/// Bytes in flight on one QUIC connection.
pub(crate) const CONNECTION_BYTES_MAX: u32 = 4 << 20;
/// A connection that nobody uses is closed after this; longer than libp2p's 10 s, since peers are used in bursts.
pub(crate) const IDLE_MAX: Duration = Duration::from_secs(300);
/// A QUIC connection whose far side says nothing for this long is dead: three keep-alives.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(10);
/// How often QUIC shows that it lives.
pub(crate) const KEEP_ALIVE: Duration = Duration::from_secs(3);
/// How often the round-trip time is measured.
pub(crate) const PING_EVERY: Duration = Duration::from_secs(5);
/// Unanswered pings in a row after which a connection is closed; what keep-alive is to QUIC, for TCP.
pub(crate) const PINGS_LOST_MAX: u32 = 2;
/// Longest gossiped message, in bytes.
pub(crate) const GOSSIP_BYTES_MAX: usize = 16 << 10;
/// Between two tries at a bootstrap address, at first; it doubles up to [`REDIAL_MAX`].
pub(crate) const REDIAL_MIN: Duration = Duration::from_secs(1);
/// Between two tries at a bootstrap address, at most.
pub(crate) const REDIAL_MAX: Duration = Duration::from_secs(60);
/// Bootstrap addresses; more are an error.
pub(crate) const BOOTSTRAP_MAX: usize = 64;
