//! What edge clients and nodes say to each other.
//! Invariant: the first message of a stream is an [`EdgeJob`]; all that follow, from the node, are [`EdgeFrame`]s.

use spillway_ledger::Document;
use spillway_protocol::Kind;
use spillway_protocol::job::BODY_BYTES_MAX;
use spillway_protocol::wire::CHUNK_BYTES_MAX;
use std::fmt;
use wincode::{SchemaRead, SchemaWrite};

/// The ALPN name; the version is negotiated by it.
pub(super) const ALPN: &[u8] = b"spillway-edge/1";

/// A job from the edge.
#[derive(Clone, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct EdgeJob {
    /// An API key of the node.
    pub key: String,
    /// The endpoint that it is meant for.
    pub kind: Kind,
    /// The request in OpenAI's JSON, at most 4 MiB.
    pub body: Vec<u8>,
}

impl fmt::Debug for EdgeJob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EdgeJob").field("kind", &self.kind).field("body", &self.body.len()).finish_non_exhaustive()
    }
}

impl Document for EdgeJob {
    const DOMAIN: &'static str = "spillway/edge-job/1";
    const BYTES_MAX: usize = BODY_BYTES_MAX + 1024;

    fn check(&self) -> Result<(), &'static str> {
        if self.key.len() > 256 {
            return Err("key: over 256 bytes");
        }
        if self.body.len() > BODY_BYTES_MAX {
            return Err("body: over 4 MiB");
        }
        Ok(())
    }
}

/// What a node answers, in this order: any number of placements, chunks and signs of life, then one end.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum EdgeFrame {
    /// A part of the answer comes from here.
    Placed {
        /// `own` or `network`.
        route: String,
        /// The reason code.
        reason: String,
        /// The provider's node id in hex, if not own.
        provider: Option<String>,
    },
    /// One event of the answer: the JSON of one `data:` line of its stream; or one [part](crate::openai::parts) of an answer
    /// that is none.
    Chunk(Vec<u8>),
    /// Still at work.
    Alive,
    /// The end.
    Done {
        /// The finish reason.
        finish: String,
        /// What it cost, in micro-credits.
        cost_micro: u64,
        /// The job's id, for `spillway explain`.
        job: String,
    },
    /// The end, without a proper one.
    Failed {
        /// The HTTP status that the gateway would have answered with.
        status: u16,
        /// The stable code.
        code: String,
        /// In words.
        message: String,
    },
}

impl Document for EdgeFrame {
    const DOMAIN: &'static str = "spillway/edge-frame/1";
    const BYTES_MAX: usize = CHUNK_BYTES_MAX + 1024;
}
