//! A job: one request, its limits, and how it ended.
//! Invariant: every job that was submitted ends once, with one [`Outcome`].

use crate::router::Preferences;
use spillway_ledger::{Credits, JobId, NodeId, Price, Usage};

/// Longest request body, in bytes; the gateway answers 413 above it.
pub const BODY_BYTES_MAX: usize = 4 << 20;
/// Most output a job may ask for, in work units (bytes of delivered text).
pub const OUTPUT_UNITS_MAX: u64 = 1 << 20;
/// Most models that a job may fall back to.
pub const ALTERNATIVES_MAX: usize = 4;
/// Longest model name, in bytes.
pub const MODEL_BYTES_MAX: usize = 256;

/// What is asked of a model: one of the API's endpoints.
///
/// New kinds go to the end: their places are their names on the wire.
#[derive(
    Clone,
    Copy,
    Debug,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    serde::Serialize,
    serde::Deserialize,
    wincode::SchemaRead,
    wincode::SchemaWrite,
)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A conversation: `/v1/chat/completions`.
    Chat,
    /// A text to go on with: `/v1/completions`.
    Completion,
    /// Vectors of texts: `/v1/embeddings`.
    Embedding,
    /// A conversation in the form of OpenAI's Responses: `/v1/responses`.
    Response,
    /// A conversation in the form of Anthropic's Messages: `/v1/messages`.
    Message,
    /// Documents by their worth for a question: `/v1/rerank`.
    Rerank,
    /// Images of a text: `/v1/images/generations`.
    Image,
    /// The text of a recording: `/v1/audio/transcriptions`.
    Transcription,
    /// A text spoken: `/v1/audio/speech`.
    Speech,
    /// Whether a text is harmful: `/v1/moderations`.
    Moderation,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Chat,
        Self::Completion,
        Self::Embedding,
        Self::Response,
        Self::Message,
        Self::Rerank,
        Self::Image,
        Self::Transcription,
        Self::Speech,
        Self::Moderation,
    ];

    /// The name in offers, receipts, logs and the configuration.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Chat => "chat",
            Self::Completion => "completion",
            Self::Embedding => "embedding",
            Self::Response => "response",
            Self::Message => "message",
            Self::Rerank => "rerank",
            Self::Image => "image",
            Self::Transcription => "transcription",
            Self::Speech => "speech",
            Self::Moderation => "moderation",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == name)
    }
}

/// Where a job may run. `docs/routing.md`, "Preferences".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Prefer {
    /// Own hardware first, then the network.
    #[default]
    OwnFirst,
    /// Own hardware or an error: nothing leaves this node's own backends.
    Own,
    /// The best of own hardware and the network at the moment.
    Any,
}

/// Where a leg of a job ran.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Route {
    /// On one of this node's own backends.
    Own,
    /// At another node, paid by vouchers.
    Network,
}

impl Route {
    /// The name in the `x-spillway-route` header.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Own => "own",
            Self::Network => "network",
        }
    }
}

/// Why a job went where it went, or nowhere. Closed: headers, logs, metrics and `explain` share these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// An own slot was free.
    OwnFree,
    /// It waited in the own queue because nothing better was to be had.
    OwnQueued,
    /// The own backend that it ran at first was late, and another one answered.
    OwnHedged,
    /// Every own slot was taken.
    OwnSaturated,
    /// The own backend does not answer.
    OwnUnhealthy,
    /// No own backend has the model.
    ModelNotLocal,
    /// Its key keeps it on own hardware.
    LabelForbidsNetwork,
    /// Offers exist, none within the price limit.
    PriceCap,
    /// Nobody offers the model.
    NoOffer,
    /// The balance covers no deposit.
    NoDeposit,
    /// Every provider that was asked refused.
    ProviderRefused,
    /// The provider fell silent or vanished; the job went on elsewhere.
    ProviderStalled,
    /// The provider's owner needed the slot; the job went on elsewhere.
    ProviderPreempted,
    /// The backend is rate-limited.
    Upstream429,
    /// The backend failed.
    UpstreamError,
    /// The client left.
    ClientLeft,
    /// Too many jobs wait on this node already.
    QueueFull,
    /// Whoever would serve it failed a short while ago, and rests.
    NoPlace,
    /// It took longer than its policy allows.
    Timeout,
}

impl Reason {
    /// Every code, for documentation and tests.
    pub const ALL: [Self; 19] = [
        Self::OwnFree,
        Self::OwnQueued,
        Self::OwnHedged,
        Self::OwnSaturated,
        Self::OwnUnhealthy,
        Self::ModelNotLocal,
        Self::LabelForbidsNetwork,
        Self::PriceCap,
        Self::NoOffer,
        Self::NoDeposit,
        Self::ProviderRefused,
        Self::ProviderStalled,
        Self::ProviderPreempted,
        Self::Upstream429,
        Self::UpstreamError,
        Self::ClientLeft,
        Self::QueueFull,
        Self::NoPlace,
        Self::Timeout,
    ];

    /// The code as users see it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::OwnFree => "own_free",
            Self::OwnQueued => "own_queued",
            Self::OwnHedged => "own_hedged",
            Self::OwnSaturated => "own_saturated",
            Self::OwnUnhealthy => "own_unhealthy",
            Self::ModelNotLocal => "model_not_local",
            Self::LabelForbidsNetwork => "label_forbids_network",
            Self::PriceCap => "price_cap",
            Self::NoOffer => "no_offer",
            Self::NoDeposit => "no_deposit",
            Self::ProviderRefused => "provider_refused",
            Self::ProviderStalled => "provider_stalled",
            Self::ProviderPreempted => "provider_preempted",
            Self::Upstream429 => "upstream_429",
            Self::UpstreamError => "upstream_error",
            Self::ClientLeft => "client_left",
            Self::QueueFull => "queue_full",
            Self::NoPlace => "no_place",
            Self::Timeout => "timeout",
        }
    }
}

/// Which own backends may run a job.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct OwnChoice {
    /// Their names; empty means any.
    pub backends: Vec<String>,
    /// Whether none may that is rented: a third party's is not the owner's hardware.
    pub owned_only: bool,
    /// The most that one of them may cost, per million tokens; `None` sets no limit. What costs nothing is always within.
    pub token_price_max: Option<Price>,
}

/// One request, with what routing needs to know beside its opaque body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Names it everywhere.
    pub id: JobId,
    /// The model's canonical id, at most [`MODEL_BYTES_MAX`].
    pub model: String,
    /// The endpoint.
    pub kind: Kind,
    /// The request as the backend gets it, at most [`BODY_BYTES_MAX`]. Its length is the prompt's size in work units.
    pub body: Vec<u8>,
    /// Most output, in work units, at most [`OUTPUT_UNITS_MAX`].
    pub output_max: u64,
    /// Whether another provider may go on after the first byte (one choice, plain text).
    pub continuable: bool,
    /// Where it may run.
    pub prefer: Prefer,
    /// The highest price it accepts.
    pub price_max: Price,
    /// The names of the body's prefix blocks, as [`prefix::names`](crate::prefix::names) gives them. They are told to the
    /// providers that are probed. Empty: nothing of the prompt is told, and nothing is billed as cached.
    pub prefix: Vec<u64>,
    /// Models to try in this order once nobody will serve `model`, before the first byte; at most [`ALTERNATIVES_MAX`].
    pub alternatives: Vec<String>,
    /// Which providers it may go to, and in which order.
    pub preferences: Preferences,
    /// Which own backends may run it, where own hardware may.
    pub own: OwnChoice,
    /// Whether an own backend may give the answer in one piece: its client waits for all of it, and nothing limits the pauses
    /// within it. A stranger is paid as it delivers, and always streams.
    pub whole: bool,
    /// The time to first text that is asked for, in milliseconds: the cheapest place that meets it is taken. `None` weighs
    /// time against price.
    pub target_ms: Option<u32>,
}

impl Job {
    /// The prompt's size in work units: the body's bytes.
    #[must_use]
    pub fn prompt_units(&self) -> u64 {
        self.body.len() as u64
    }

    /// The most the job can cost at its price limit; `None` if that exceeds what money can count.
    #[must_use]
    pub fn cost_max(&self) -> Option<Credits> {
        // A continued job pays the prompt, and what was delivered before, to every provider that goes on with it.
        let prompt = self.prompt_units().checked_add(self.output_max)?.checked_mul(u64::from(LEGS_MAX))?;
        self.price_max.cost(Usage { input: prompt, cached: 0, output: self.output_max })
    }
}

/// Most places that give one job text, first and continuing legs together.
pub const LEGS_MAX: u32 = 6;
/// Most places one job is tried at, those counted that never said a word: where most names are a liar's, more are needed.
pub const TRIES_MAX: u32 = 256;

/// One attempt of a job at one place, as `explain` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leg {
    /// Own hardware or the network.
    pub route: Route,
    /// The provider, if not own.
    pub provider: Option<NodeId>,
    /// Why it went there.
    pub reason: Reason,
    /// What was delivered, in work units.
    pub usage: Usage,
    /// What it cost.
    pub cost: Credits,
}

/// Most candidates that are told of one decision.
pub const CONSIDERED_MAX: usize = 8;

/// How sure a provider was when a job was placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Readiness {
    /// It had said that a slot is free.
    Free,
    /// It had not been asked, or had not answered.
    Unasked,
    /// It had said that no slot is free.
    Busy,
}

impl Readiness {
    /// The name in logs and in `explain`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Free => "free",
            Self::Unasked => "unasked",
            Self::Busy => "busy",
        }
    }
}

/// A provider that was weighed when a job was placed on the network, as `explain` shows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Considered {
    /// The provider.
    pub provider: NodeId,
    /// What it asked.
    pub price: Price,
    /// The predicted time to the first text, in milliseconds.
    pub first_ms: u64,
    /// How sure that was.
    pub readiness: Readiness,
    /// Whether the job went there.
    pub taken: bool,
}

/// How a job ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The backend's finish reason (`stop`, `length`, `tool_calls`, …), or why there is none.
    pub result: Result<String, Failure>,
    /// Every place it ran at or was tried at, in order; at most [`TRIES_MAX`].
    pub legs: Vec<Leg>,
    /// Who was weighed in the last decision that placed it on the network or nowhere, the one taken first, then from the best
    /// on; at most [`CONSIDERED_MAX`]. Empty where nobody was asked.
    pub considered: Vec<Considered>,
    /// What it cost in all.
    pub cost: Credits,
    /// From submission to the first chunk, in milliseconds.
    pub first_ms: Option<u64>,
    /// From submission to the end, in milliseconds.
    pub total_ms: u64,
}

/// Why a job has no proper end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// The code.
    pub reason: Reason,
    /// When it is worth trying again, in milliseconds; `None` if it is not.
    pub retry_after_ms: Option<u64>,
    /// The HTTP status the backend answered with, if it was the backend's refusal of the request itself (4xx).
    pub status: Option<u16>,
    /// The HTTP status that an own backend answered with, whatever it means; `None` if there was none, or it is not known.
    pub upstream: Option<u16>,
    /// In words, for the client.
    pub message: String,
}
