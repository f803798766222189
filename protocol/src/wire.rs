//! What peers say to each other: frames on a job's stream, and probes.
//! Invariant: a frame is never allocated before its length was checked against its limit.

use crate::job::{BODY_BYTES_MAX, Kind, MODEL_BYTES_MAX};
use crate::prefix::{HOT_MAX, HotPrefix, NAMES_MAX};
use spillway_ledger::{CodecError, Document, JobId, NetworkId, Signature, SignedBytes, decode, encode};

/// The protocol name of a job's stream; the version is negotiated by it.
pub const JOB_PROTOCOL: &str = "/spillway/job/2";
/// The protocol name of probes.
pub const PROBE_PROTOCOL: &str = "/spillway/probe/2";
/// Longest text that a continuation may carry along, in bytes.
pub const PREFIX_BYTES_MAX: usize = 1 << 20;
/// Longest chunk, in bytes.
pub const CHUNK_BYTES_MAX: usize = 256 << 10;
/// Longest frame, in bytes, its length prefix not counted.
pub const FRAME_BYTES_MAX: usize = BODY_BYTES_MAX + PREFIX_BYTES_MAX + (16 << 10);
/// Bytes of the length before each frame: a little-endian `u32`.
pub const LENGTH_BYTES: usize = 4;

/// The first frame of a job, consumer to provider.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct OpenJob {
    /// The job.
    pub job: JobId,
    /// Which attempt of the job this is, from 0.
    pub leg: u32,
    /// The model.
    pub model: String,
    /// The endpoint.
    pub kind: Kind,
    /// The request, opaque here.
    pub body: Vec<u8>,
    /// The text that earlier legs delivered; the answer goes on right behind it.
    pub prefix: Vec<u8>,
    /// Most output of the whole answer, prefix included, in work units.
    pub output_max: u64,
    /// Whether another provider may go on after the first byte. Where the owner needs a slot, such a job makes way first.
    pub continuable: bool,
    /// The quote that the provider gave.
    pub quote: SignedBytes,
    /// Pays for the prompt and one window.
    pub voucher: SignedBytes,
}

/// Why a provider turns a job down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, wincode::SchemaRead, wincode::SchemaWrite)]
pub enum Refusal {
    /// No slot is free for strangers.
    Busy,
    /// It does not serve the model or kind.
    UnknownModel,
    /// The quote is not its own, lapsed, or for somebody else.
    BadQuote,
    /// The ledger knows no such session with it.
    UnknownSession,
    /// The voucher's signature does not hold.
    ForgedVoucher,
    /// The voucher promises more than the deposit.
    OverDeposit,
    /// The voucher does not pay for the prompt and a window.
    Underpaid,
    /// The job asks for more than the provider's limits.
    TooLarge,
    /// The session ends too soon.
    SessionExpiring,
    /// It cannot go on with a chat's answer that was begun elsewhere.
    CannotContinue,
}

impl Refusal {
    /// Whether it costs the provider reputation. It does not where the consumer is at fault, or the job is none for that provider.
    #[must_use]
    pub const fn is_providers_fault(self) -> bool {
        match self {
            Self::BadQuote
            | Self::ForgedVoucher
            | Self::OverDeposit
            | Self::Underpaid
            | Self::TooLarge
            | Self::SessionExpiring
            | Self::CannotContinue => false,
            Self::Busy | Self::UnknownModel | Self::UnknownSession => true,
        }
    }
}

/// Why a provider breaks off a job that it had accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, wincode::SchemaRead, wincode::SchemaWrite)]
pub enum Abort {
    /// Its backend failed.
    Backend,
    /// Its backend is rate-limited.
    BackendBusy,
    /// Vouchers stopped.
    Unpaid,
    /// It shuts down.
    Leaving,
    /// The consumer cancelled.
    Cancelled,
    /// The provider's owner needs the slot.
    Preempted,
}

/// How busy a provider is with one model, and how fast it expects to be for one more job. It rides on every reply.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Load {
    /// Slots free for strangers.
    pub slots_free: u32,
    /// Jobs taken in and not yet started. A provider keeps no queue: these wait for nothing but their session.
    pub pending: u32,
    /// Jobs running, the owner's too.
    pub running: u32,
    /// Predicted wait for the first text without the reading of the job's own prompt, in milliseconds.
    pub start_ms: u32,
    /// Predicted time to read 1,000 uncached units of prompt, in microseconds.
    pub read_us_per_kilo: u32,
    /// Predicted time per output unit, in microseconds.
    pub per_unit_us: u32,
}

/// One message on a job's stream.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub enum Frame {
    /// Consumer: here is the job.
    Open(OpenJob),
    /// Provider: it has a slot.
    Accepted {
        /// Its load, this job counted.
        load: Load,
    },
    /// Provider: it is not taken.
    Refused {
        /// Why.
        refusal: Refusal,
        /// When a slot is predicted to be free, in milliseconds; 0 if that is unknown or changes nothing.
        retry_after_ms: u32,
        /// Its load.
        load: Load,
    },
    /// Provider: part of the answer.
    Chunk {
        /// Counts chunks of this leg, from 0.
        sequence: u32,
        /// Where its text begins in the whole answer, in bytes.
        offset: u64,
        /// One event of the backend, opaque here.
        bytes: Vec<u8>,
    },
    /// Provider: still at work; sent while there is nothing to deliver, and when something waits for payment.
    Alive {
        /// The text of the next chunk, in work units, if it waits for a voucher; else 0.
        held: u64,
    },
    /// Consumer: more money.
    Voucher(SignedBytes),
    /// Consumer: stop; what was delivered is paid.
    Cancel,
    /// Provider: this was all.
    Done {
        /// The backend's finish reason.
        finish: String,
        /// The receipt, signed by the provider.
        receipt: SignedBytes,
        /// Its load, without this job.
        load: Load,
    },
    /// Provider: broken off; the receipt is for what was delivered, if anything was.
    Aborted {
        /// Why.
        abort: Abort,
        /// The receipt for what was delivered.
        receipt: Option<SignedBytes>,
    },
    /// Provider: the backend refused the request itself; another would too.
    Rejected {
        /// The backend's HTTP status, 400 to 499.
        status: u16,
        /// Its error body, at most 4 KiB.
        message: String,
    },
    /// Consumer: its signature below the receipt.
    CoSigned(Signature),
}

impl Document for Frame {
    const DOMAIN: &'static str = "spillway/frame/2";
    const BYTES_MAX: usize = FRAME_BYTES_MAX;

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Self::Open(open) => {
                if open.model.len() > MODEL_BYTES_MAX {
                    return Err("model: over 256 bytes");
                }
                if open.body.len() > BODY_BYTES_MAX {
                    return Err("body: over 4 MiB");
                }
                if open.prefix.len() > PREFIX_BYTES_MAX {
                    return Err("prefix: over 1 MiB");
                }
                Ok(())
            }
            Self::Chunk { bytes, .. } if bytes.len() > CHUNK_BYTES_MAX => Err("bytes: over 256 KiB"),
            Self::Done { finish, .. } if finish.len() > 32 => Err("finish: over 32 bytes"),
            Self::Rejected { message, .. } if message.len() > 4096 => Err("message: over 4 KiB"),
            Self::Rejected { status, .. } if !(400..500).contains(status) => Err("status: not 400 to 499"),
            Self::Chunk { .. }
            | Self::Done { .. }
            | Self::Rejected { .. }
            | Self::Accepted { .. }
            | Self::Refused { .. }
            | Self::Alive { .. }
            | Self::Voucher(_)
            | Self::Cancel
            | Self::Aborted { .. }
            | Self::CoSigned(_) => Ok(()),
        }
    }
}

impl Frame {
    /// The frame with its length before it, as it goes on a stream.
    #[must_use]
    pub fn to_wire(&self) -> Vec<u8> {
        let body = encode(self);
        let length = u32::try_from(body.len()).expect("FRAME_BYTES_MAX is below 4 GiB");
        let mut wire = Vec::with_capacity(LENGTH_BYTES + body.len());
        wire.extend_from_slice(&length.to_le_bytes());
        wire.extend_from_slice(&body);
        wire
    }

    /// Reads the length before a frame. Call this before allocating room for the frame.
    ///
    /// # Errors
    /// [`CodecError::TooLong`] if the frame would exceed [`FRAME_BYTES_MAX`].
    pub fn length(prefix: [u8; LENGTH_BYTES]) -> Result<usize, CodecError> {
        let got = u32::from_le_bytes(prefix) as usize;
        if got > FRAME_BYTES_MAX {
            return Err(CodecError::TooLong { max: FRAME_BYTES_MAX, got });
        }
        Ok(got)
    }

    /// Reads a frame's body, its length prefix already taken off.
    ///
    /// # Errors
    /// As [`decode`]: too long, truncated or malformed, or not canonical.
    pub fn from_wire(body: &[u8]) -> Result<Self, CodecError> {
        decode(body)
    }
}

/// Asks a provider how soon and at what price it would serve a job.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Probe {
    /// The market.
    pub network: NetworkId,
    /// The model.
    pub model: String,
    /// The endpoint.
    pub kind: Kind,
    /// The prompt's size in work units.
    pub prompt_units: u64,
    /// Most output units.
    pub output_max: u64,
    /// The most output units that the consumer pays ahead.
    pub window_max: u64,
    /// The names of the prompt's prefix blocks, shortest first, at most [`NAMES_MAX`]; empty tells nothing of the prompt.
    pub prefix: Vec<u64>,
}

impl Document for Probe {
    const DOMAIN: &'static str = "spillway/probe/2";
    const BYTES_MAX: usize = 1024;

    fn check(&self) -> Result<(), &'static str> {
        if self.model.len() > MODEL_BYTES_MAX {
            return Err("model: over 256 bytes");
        }
        if self.prefix.len() > NAMES_MAX {
            return Err("prefix: more than 64 names");
        }
        Ok(())
    }
}

/// A provider's load, and its binding quote if it would take the job now.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct ProbeReply {
    /// Its load.
    pub load: Load,
    /// How many units of this prompt's prefix it believes to have cached.
    pub cached_units: u32,
    /// The prefixes that it has cached and is asked for most, at most [`HOT_MAX`].
    pub hot: Vec<HotPrefix>,
    /// When a slot is predicted to be free, in milliseconds; 0 if one is, or if that is unknown.
    pub retry_after_ms: u32,
    /// A quote, or why not.
    pub quote: Result<SignedBytes, Refusal>,
}

impl Document for ProbeReply {
    const DOMAIN: &'static str = "spillway/probe-reply/2";
    const BYTES_MAX: usize = 2048;

    fn check(&self) -> Result<(), &'static str> {
        if self.hot.len() > HOT_MAX {
            return Err("hot: more than 16 prefixes");
        }
        Ok(())
    }
}
