//! What the network tells the node.
//! Invariant: each event that wants an answer carries the means to give it, and dropping it is an answer too.

use super::calls::CallKind;
use super::frames::JobStream;
use super::swarm::Command;
use libp2p::PeerId;
use libp2p::gossipsub::{MessageAcceptance, MessageId};
use libp2p::request_response::ResponseChannel;
use spillway_ledger::{NetworkId, NodeId};
use spillway_protocol::discovery::Shard;
use std::time::Duration;
use tokio::sync::mpsc;

/// What is gossiped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Topic {
    /// Signed notices of offers, of the models of one shard. A node is on those that it uses or serves.
    Notices(Shard),
    /// New blocks of the ledger. Every node is on it.
    Blocks,
}

impl Topic {
    /// Every topic.
    pub fn all() -> impl Iterator<Item = Self> {
        Shard::all().map(Self::Notices).chain([Self::Blocks])
    }

    /// The topic's name on the wire. It travels with each message, so that of the many small ones is short.
    pub(crate) fn name(self, network: &NetworkId) -> String {
        match self {
            Self::Notices(shard) => format!("/spillway/{}/notices/1/{}", network.0.short(), shard.number()),
            Self::Blocks => format!("/spillway/{}/blocks/1", network.0),
        }
    }
}

/// What happens. Peers are authenticated by the transport, and of this network.
pub enum NetworkEvent {
    /// The first connection to a peer stands.
    PeerConnected(NodeId),
    /// No connection to the peer is left. It is on no topic any more.
    PeerLost(NodeId),
    /// A connected peer is on a topic of notices.
    TopicJoined {
        /// Who.
        peer: NodeId,
        /// Which.
        shard: Shard,
    },
    /// A connected peer has left a topic of notices.
    TopicLeft {
        /// Who.
        peer: NodeId,
        /// Which.
        shard: Shard,
    },
    /// A round trip was measured, without an emulated distance at the far side.
    Rtt {
        /// To whom.
        peer: NodeId,
        /// How long.
        rtt: Duration,
    },
    /// A gossiped message; it is passed on only if the verdict says so.
    Gossip {
        /// On which topic.
        topic: Topic,
        /// Who passed it on.
        from: NodeId,
        /// Opaque here, at most 16 KiB; whoever wrote them must have signed them inside.
        bytes: Vec<u8>,
        /// What becomes of it.
        verdict: Verdict,
    },
    /// A peer asks something.
    Call {
        /// Who.
        peer: NodeId,
        /// What kind of question.
        kind: CallKind,
        /// Opaque here, within [`CallKind::request_bytes_max`].
        request: Vec<u8>,
        /// The way back.
        reply: Reply,
    },
    /// A peer opened a job's stream.
    Stream {
        /// Who.
        peer: NodeId,
        /// The stream; dropping it refuses it.
        stream: JobStream,
    },
}

/// Decides what becomes of a gossiped message. Dropping it is [`Verdict::ignore`].
pub struct Verdict {
    commands: mpsc::WeakSender<Command>,
    message: Option<(MessageId, PeerId)>,
}

impl Verdict {
    pub(crate) fn new(commands: mpsc::WeakSender<Command>, id: MessageId, source: PeerId) -> Self {
        Self { commands, message: Some((id, source)) }
    }

    /// The message is good: pass it on.
    pub fn accept(mut self) {
        self.give(MessageAcceptance::Accept);
    }

    /// The message breaks the rules: do not pass it on, and hold it against the peer that sent it.
    pub fn reject(mut self) {
        self.give(MessageAcceptance::Reject);
    }

    /// The message is of no use, but nobody is at fault: old, or a duplicate.
    pub fn ignore(mut self) {
        self.give(MessageAcceptance::Ignore);
    }

    fn give(&mut self, acceptance: MessageAcceptance) {
        let Some((id, source)) = self.message.take() else { return };
        // With the task gone or behind, the message lapses as if ignored.
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.try_send(Command::Judge { id, source, acceptance });
        }
    }
}

impl Drop for Verdict {
    fn drop(&mut self) {
        self.give(MessageAcceptance::Ignore);
    }
}

/// The way back to a caller. Dropping it tells the caller that there is no answer.
pub struct Reply {
    commands: mpsc::WeakSender<Command>,
    kind: CallKind,
    channel: ResponseChannel<Vec<u8>>,
}

impl Reply {
    pub(crate) fn new(commands: mpsc::WeakSender<Command>, kind: CallKind, channel: ResponseChannel<Vec<u8>>) -> Self {
        Self { commands, kind, channel }
    }

    /// Sends the answer, at most [`CallKind::response_bytes_max`]. If the caller has left, nothing happens.
    pub fn send(self, response: Vec<u8>) {
        if response.len() > self.kind.response_bytes_max() {
            tracing::error!(kind = ?self.kind, bytes = response.len(), "an answer of this node is over its limit");
            return;
        }
        if let Some(commands) = self.commands.upgrade() {
            let _ = commands.try_send(Command::Answer { kind: self.kind, channel: self.channel, response });
        }
    }
}
