//! Everything a [`Peer`](crate::Peer) is told, and everything it asks for.
//! Invariant: a driver carries out the effects of one drain in order, and makes every
//! [`Effect::Persist`] durable before any effect that comes after it.

use crate::job::{Job, Kind, Outcome, OwnChoice, Reason, Route};
use crate::offer::Offer;
use crate::record::Record;
use crate::wire::{Frame, Probe, ProbeReply};
use spillway_ledger::{
    Account, Credits, Digest, JobId, NodeId, Price, PublicKey, SessionId, Signed, SignedBytes, Usage,
};
use std::sync::Arc;
use std::time::Duration;

/// A job's stream to or from another peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StreamId {
    /// Opened by this node; numbered by the machine.
    Out(u64),
    /// Opened by the other node; numbered by the driver, never twice.
    In(u64),
}

/// A piece of work at an own backend; numbered by the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkId(pub u64);

/// A probe under way. Outgoing ones are numbered by the machine, incoming ones by the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ProbeId(pub u64);

/// A model that an own backend serves, and how well it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    /// Canonical id.
    pub model: String,
    /// blake3 of the weights; zero where the backend does not tell.
    pub weights: Digest,
    /// Quantisation; empty where unknown.
    pub quantization: String,
    /// The engine's name.
    pub engine: String,
    /// Longest context in tokens; 0 where unknown.
    pub context_max: u32,
    /// The kinds it serves, strictly sorted.
    pub kinds: Vec<Kind>,
    /// Requests it serves at once.
    pub slots: u32,
    /// How many of them are at backends that cost money for each request: those are for the owner's jobs alone.
    pub rented: u32,
    /// How many separate backends that cost nothing share the slots: where there are two, the other can be asked if one is late.
    pub replicas: u32,
    /// The most that one of its backends costs, per million tokens; nothing for own hardware.
    pub token_price: Price,
    /// Whether a chat's answer that was begun elsewhere can be gone on with here; see [`Self::goes_on`].
    pub continues: bool,
    /// Whether it answers.
    pub healthy: bool,
}

impl Capacity {
    /// Whether an answer that was begun elsewhere can be gone on with here: behind a completion's prompt the text just follows,
    /// while of a chat the server must know that its last message is not over.
    #[must_use]
    pub fn goes_on(&self, kind: Kind) -> bool {
        self.continues || kind != Kind::Chat
    }
}

/// How work at a backend ended without a finish reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendError {
    /// It refused the request itself (HTTP 4xx but 429): nobody else would take it either.
    Rejected {
        /// HTTP status, 400 to 499.
        status: u16,
        /// The error body, shortened to 4 KiB.
        message: String,
    },
    /// It is rate-limited or full.
    Busy {
        /// When it says that it is worth trying again, in milliseconds.
        retry_after_ms: Option<u64>,
    },
    /// It answered with an error that is its own or its operator's fault, and not the request's (HTTP 401, 404, 5xx, …).
    Answered {
        /// HTTP status.
        status: u16,
        /// When it says that it is worth trying again, in milliseconds.
        retry_after_ms: Option<u64>,
        /// What it said, shortened to 4 KiB.
        message: String,
    },
    /// It failed or cannot be reached.
    Failed(String),
}

/// What a driver tells the machine.
#[derive(Clone, Debug)]
pub enum Event {
    /// A client's request. Answered by exactly one [`Effect::Ended`].
    Submit(Job),
    /// The client of a job is gone.
    ClientLeft(JobId),
    /// The full list of what the own backends serve now.
    Capacity(Vec<Capacity>),
    /// Where this node can be reached, as multiaddresses.
    Addresses(Vec<String>),
    /// A backend's event, with the text that it delivers.
    Output {
        /// The work.
        work: WorkId,
        /// The event as it goes to the client, at most `CHUNK_BYTES_MAX`.
        bytes: Vec<u8>,
        /// The text within, as both sides count it.
        text: Vec<u8>,
    },
    /// What work at a backend that costs money has cost so far, as far as is known; each tells the whole, not what was added.
    Charged {
        /// The work.
        work: WorkId,
        /// In all.
        cost: Credits,
    },
    /// The backend is done.
    Finished {
        /// The work.
        work: WorkId,
        /// Its finish reason, at most 32 bytes.
        finish: String,
    },
    /// The backend gave up.
    BackendFailed {
        /// The work.
        work: WorkId,
        /// Why.
        error: BackendError,
    },
    /// An outgoing stream is open; frames may be sent.
    StreamOpened(StreamId),
    /// A frame came in. For a chunk, `text` is the text within `bytes`, read by the same rule as the provider's.
    FrameReceived {
        /// On which stream.
        stream: StreamId,
        /// From whom; authenticated by the transport.
        peer: NodeId,
        /// The frame.
        frame: Frame,
        /// The text in a chunk; empty for any other frame.
        text: Vec<u8>,
    },
    /// A stream could not be opened, broke, or ended.
    StreamClosed(StreamId),
    /// A peer asks for load and a quote. Answered by one [`Effect::ReplyProbe`].
    ProbeReceived {
        /// The driver's number.
        probe: ProbeId,
        /// From whom.
        peer: NodeId,
        /// What it asks.
        request: Probe,
    },
    /// A probe's answer, or `None` if there was none.
    ProbeReplied {
        /// The machine's number.
        probe: ProbeId,
        /// The answer.
        reply: Option<ProbeReply>,
    },
    /// An offer, from gossip or from a peer directly; already checked to be signed.
    OfferReceived(Signed<Offer>),
    /// A round trip to a peer was measured, by a ping.
    RoundTrip {
        /// To whom.
        peer: NodeId,
        /// How long.
        rtt: Duration,
    },
    /// An offer is good until then (Unix milliseconds), though it says less itself: its issuer has shown signs of life
    /// since. A moment that is past takes it back. As [`Directory::hold`](crate::Directory::hold).
    OfferHeld {
        /// The offer; already checked to be signed.
        offer: Arc<Signed<Offer>>,
        /// When it lapses.
        until_ms: u64,
    },
    /// A peer is gone: no connection to it is left.
    PeerLost(NodeId),
    /// The ledger opened a session that names this node's account as consumer or provider. Told again after a restart, with
    /// what is locked by then.
    SessionOpened {
        /// The session.
        session: SessionId,
        /// The business id of the opening entry.
        business: [u8; 16],
        /// Who pays.
        consumer: Account,
        /// Who is paid.
        provider: Account,
        /// The key whose vouchers count.
        voucher_key: PublicKey,
        /// What is locked.
        deposit: Credits,
        /// The highest price it may pay.
        price_cap: Price,
        /// When the provider can no longer settle, Unix milliseconds.
        expires_ms: u64,
    },
    /// The ledger raised the deposit of a session of this node's account. Told in order with the rest of the session's news.
    SessionToppedUp {
        /// The session.
        session: SessionId,
        /// What is locked in all.
        deposit: Credits,
    },
    /// The ledger paid a session of this node's account up to `settled`.
    SessionSettled {
        /// The session.
        session: SessionId,
        /// Paid in all so far.
        settled: Credits,
        /// Whether it is closed.
        closed: bool,
    },
    /// The ledger refused an entry for good.
    EntryRefused {
        /// Its business id.
        business: [u8; 16],
        /// Why, in words.
        why: String,
    },
    /// What this node's account can spend now.
    Balance(Credits),
    /// Time has come; see [`Peer::deadline`](crate::Peer::deadline).
    Tick,
}

/// An entry the machine wants on the ledger; the driver signs it with the account's key and retries until it is in or refused.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LedgerCommand {
    /// Lock a deposit for a provider.
    Open {
        /// Whom it is for.
        provider: Account,
        /// The key whose vouchers count.
        voucher_key: PublicKey,
        /// How much.
        deposit: Credits,
        /// The highest price it may pay.
        price_cap: Price,
        /// When it ends, Unix milliseconds.
        expires_ms: u64,
    },
    /// Lock more in an open session.
    TopUp {
        /// The session.
        session: SessionId,
        /// How much more.
        amount: Credits,
    },
    /// Collect what a voucher pays.
    Settle {
        /// The highest voucher.
        voucher: SignedBytes,
        /// What is claimed of it: what was delivered, never more.
        claim: Credits,
        /// Units delivered so far in the session.
        usage: Usage,
        /// Merkle root of the session's receipts.
        receipts: Digest,
        /// Closes the session and returns the rest.
        last: bool,
    },
    /// Take back what an expired session left.
    Refund {
        /// The session.
        session: SessionId,
    },
}

/// What the machine asks its driver to do.
#[derive(Clone, Debug)]
pub enum Effect {
    /// A leg of a job started; comes before the leg's first [`Effect::Deliver`], once per leg that delivers.
    Placed {
        /// The job.
        job: JobId,
        /// Counts the attempts of the job, from 0.
        leg: u32,
        /// Where.
        route: Route,
        /// The provider, if not own.
        provider: Option<NodeId>,
        /// Why there.
        reason: Reason,
    },
    /// An event of the backend for the job's client.
    Deliver {
        /// The job.
        job: JobId,
        /// As it came.
        bytes: Vec<u8>,
    },
    /// The job is over; nothing more comes for it.
    Ended {
        /// The job.
        job: JobId,
        /// How.
        outcome: Outcome,
    },
    /// Start work at an own backend. Answered by `Output`s and one `Finished` or `BackendFailed`.
    Run {
        /// Its number.
        work: WorkId,
        /// The model.
        model: String,
        /// The endpoint.
        kind: Kind,
        /// The request.
        body: Vec<u8>,
        /// Text already delivered; the answer goes on right behind it.
        prefix: Vec<u8>,
        /// Whether it is the owner's own job; a stranger's runs nowhere that costs money.
        own: bool,
        /// Whether the answer may come as one output: see [`Job::whole`](crate::Job::whole).
        whole: bool,
        /// Which backends may.
        choice: OwnChoice,
        /// The owner's job that it is for; `None` for a stranger's.
        job: Option<JobId>,
        /// A hedge: the work of the same job that is late. It runs at another backend that costs nothing and has a free slot, or
        /// fails.
        beside: Option<WorkId>,
    },
    /// Stop work; nothing that still comes of it counts.
    Stop(WorkId),
    /// Open a stream. Answered by `StreamOpened` or `StreamClosed`.
    OpenStream {
        /// Its number.
        stream: StreamId,
        /// To whom.
        peer: NodeId,
        /// Where the peer said it listens.
        addresses: Vec<String>,
    },
    /// Send a frame.
    Send {
        /// Where.
        stream: StreamId,
        /// What.
        frame: Frame,
    },
    /// Close a stream after what was sent on it.
    CloseStream(StreamId),
    /// Ask a peer for load and a quote.
    SendProbe {
        /// Its number.
        probe: ProbeId,
        /// Whom.
        peer: NodeId,
        /// Where the peer said it listens.
        addresses: Vec<String>,
        /// What.
        request: Probe,
    },
    /// Answer a probe.
    ReplyProbe {
        /// The driver's number.
        probe: ProbeId,
        /// The answer.
        reply: ProbeReply,
    },
    /// Tell the market.
    Publish(Signed<Offer>),
    /// Take back all that was told it: nothing is for sale for now.
    Withdraw,
    /// Put an entry on the ledger.
    Ledger {
        /// Its business id: the same entry on a retry.
        business: [u8; 16],
        /// What.
        command: LedgerCommand,
    },
    /// Keep this across a crash.
    Persist(Record),
}
