//! Peers: connections, discovery, gossip, small calls, and one stream of frames per job.
//!
//! What is always true here:
//! - libp2p's types stop at this module. Outside, a peer is a [`NodeId`](spillway_ledger::NodeId), an address is text.
//! - Everything a peer can fill is bounded: connections, streams, frames, calls, gossip, and the queue of
//!   [`NetworkEvent`]s. When that queue is full, inbound streams and calls are refused, never kept.
//! - No answer of a peer is waited for without a limit.
//!
//! [`Network::start`] spawns one task (`swarm`) that owns the libp2p swarm. A [`Network`] is the handle to it.

mod address;
mod behaviour;
mod calls;
mod dial;
mod discovery;
mod event;
mod frames;
mod handle;
mod identity;
mod settings;
mod streams;
mod subnet;
mod swarm;
#[cfg(test)]
pub(crate) mod tests;
mod wire;

pub use calls::CallKind;
pub use event::{NetworkEvent, Reply, Topic, Verdict};
pub use frames::{FrameReader, FrameWriter, JobStream};
pub use handle::{CallError, Network, OpenError};
pub use identity::{NotAPeer, node_of, peer_of};
pub use settings::{NetworkError, NetworkSettings};
pub use wire::{FrameError, LengthReader, LengthWriter};

pub(crate) use identity::keypair;
