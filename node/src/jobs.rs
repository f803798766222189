//! The door to the market for everything in this node that has clients: submit a job, get its events.
//! Invariants: every submitted job's handle ends with one [`JobEvent::Ended`] unless it was cut for reading too slowly;
//! a handle that is dropped earlier tells the market that its client left.

use crate::openai::Tokens;
use crate::records::Aside;
use crate::telemetry::TraceHeaders;
use serde::Serialize;
use spillway_ledger::{Account, Credits, JobId, NodeId, Price, Usage};
use spillway_protocol::router::Sort;
use spillway_protocol::router::preference::DataCollection;
use spillway_protocol::{Considered, Job, Kind, Outcome, Reason, Route};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, RwLock};
use std::time::SystemTime;
use tokio::sync::mpsc;

/// Events held for a client that reads slowly; one that falls further behind is cut, as if it had left.
pub const EVENTS_MAX: usize = 4096;
/// Jobs remembered for `explain`.
const LOG_MAX: usize = 10_000;
/// Bytes that are remembered of a job's wishes.
const WISHES_BYTES_MAX: usize = 512;

/// What a job's client gets.
#[derive(Clone, Debug)]
pub enum JobEvent {
    /// A leg that delivers has begun; before its first chunk.
    Placed {
        /// Counts the attempts, from 0.
        leg: u32,
        /// Own hardware or the network.
        route: Route,
        /// The provider, if not own.
        provider: Option<NodeId>,
        /// Why there.
        reason: Reason,
    },
    /// One event of the backend: the JSON of one `data:` line; or one [part](crate::openai::parts) of an answer that is none.
    Chunk(Vec<u8>),
    /// The end.
    Ended(Outcome),
}

/// A job on its way to the market.
#[derive(Debug)]
pub struct JobRequest {
    /// The job.
    pub job: Job,
    /// Where its events go.
    pub events: mpsc::Sender<JobEvent>,
    /// What goes with it.
    pub beside: Beside,
}

/// What goes with a job, and is nothing to the market.
#[derive(Clone, Debug, Default)]
pub struct Beside {
    /// What is to be kept with the first promise to pay for it.
    pub aside: Option<Arc<Aside>>,
    /// What own servers are told of the trace that it is part of.
    pub trace: Option<TraceHeaders>,
}

/// What the market is told by its clients.
#[derive(Debug)]
pub enum Command {
    /// A new job.
    Submit(Box<JobRequest>),
    /// The client of a job is gone.
    ClientLeft(JobId),
}

/// The market takes no more jobs at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many jobs wait to be taken up")]
pub struct JobsFull;

/// A handle to the market; cheap to clone.
#[derive(Clone, Debug)]
pub struct Jobs {
    commands: mpsc::Sender<Command>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    log: Mutex<Log>,
    market: RwLock<MarketView>,
}

/// A snapshot of what is callable.
#[derive(Clone, Debug, Default)]
pub struct MarketView {
    /// By model.
    pub models: Arc<[MarketModel]>,
    /// Models of own backends none of which answers.
    pub resting: Vec<String>,
    /// By provider.
    pub offers: Vec<OfferView>,
    /// How busy this node is.
    pub load: Load,
}

/// How busy this node is.
#[derive(Clone, Debug, Default)]
pub struct Load {
    /// Peers connected.
    pub peers: usize,
    /// Own slots taken, by model.
    pub running: BTreeMap<String, u32>,
    /// Own hardware, by model.
    pub backends: Vec<BackendLoad>,
}

/// How busy own hardware is with one model.
#[derive(Clone, Debug)]
pub struct BackendLoad {
    /// The model.
    pub model: String,
    /// Whether it answers.
    pub healthy: bool,
    /// Requests it serves at once.
    pub slots: u32,
    /// Slots taken.
    pub running: u32,
    /// Own jobs that wait for one.
    pub queued: u32,
}

/// A model that can be asked for now.
#[derive(Clone, Debug, Serialize)]
pub struct MarketModel {
    /// Its id in requests.
    pub id: String,
    /// Whether an own backend serves it.
    pub own: bool,
    /// Strangers that offer it.
    pub providers: usize,
    /// What own backends serve of it.
    pub own_kinds: Kinds,
    /// What anyone serves of it, own backends too.
    pub kinds: Kinds,
    /// The lowest price on offer, per million units in micro-credits.
    pub price_min: Option<Price>,
    /// The most that an own backend of it costs, per million tokens in micro-credits; nothing for own hardware.
    #[serde(skip)]
    pub token_price: Price,
}

/// A set of endpoints.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kinds(u32);

impl Kinds {
    /// Whether it has `kind`.
    #[must_use]
    pub const fn has(self, kind: Kind) -> bool {
        self.0 & (1 << kind as u32) != 0
    }
}

impl Extend<Kind> for Kinds {
    fn extend<T: IntoIterator<Item = Kind>>(&mut self, kinds: T) {
        kinds.into_iter().for_each(|kind| self.0 |= 1 << kind as u32);
    }
}

impl FromIterator<Kind> for Kinds {
    fn from_iter<T: IntoIterator<Item = Kind>>(kinds: T) -> Self {
        let mut set = Self::default();
        set.extend(kinds);
        set
    }
}

impl Serialize for Kinds {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(Kind::ALL.into_iter().filter(|kind| self.has(*kind)))
    }
}

/// One provider's offer of one model, for people.
#[derive(Clone, Debug, Serialize)]
pub struct OfferView {
    /// Who.
    pub node: NodeId,
    /// Who is paid.
    pub account: Account,
    /// Where it says it is.
    pub region: String,
    /// The model.
    pub model: String,
    /// Per million units, in micro-credits.
    pub price: Price,
    /// Requests it serves at once.
    pub slots: u32,
    /// Since it was issued, in milliseconds.
    pub age_ms: u64,
    /// Measured round trip, in milliseconds.
    pub rtt_ms: Option<u64>,
    /// The lower bound of the chance that it serves well, 0 to 1.
    pub reputation: f64,
    /// Where it listens.
    pub addresses: Vec<String>,
}

/// What is remembered of a job.
#[derive(Clone, Debug, Serialize)]
pub struct JobLog {
    /// The job.
    pub job: String,
    /// The model asked for.
    pub model: String,
    /// The endpoint.
    pub kind: &'static str,
    /// `running`, `done` or `failed`.
    pub status: &'static str,
    /// The finish reason, if it is done.
    pub finish: Option<String>,
    /// Why it failed, if it did: the reason code and the message.
    pub error: Option<String>,
    /// Its cost in micro-credits.
    pub cost_micro: u64,
    /// From submission to the first chunk.
    pub first_ms: Option<u64>,
    /// From submission to the end.
    pub total_ms: u64,
    /// When it came, in Unix milliseconds.
    pub created_ms: u64,
    /// Whether as a stream, and the tokens that its server reported; `None` until it ends, and where nobody told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// Where it was, in order.
    pub legs: Vec<LegLog>,
    /// Who was weighed when it was placed on the network or nowhere; the one taken first, then from the best on.
    pub considered: Vec<ConsideredLog>,
    /// What it wished of the market, in words; `None` if nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wishes: Option<String>,
}

/// What the gateway saw of a job's answer.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Whether as a stream.
    pub stream: bool,
    /// The tokens that its server reported.
    pub tokens: Option<Tokens>,
    /// What its server called the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub answer: Option<Box<str>>,
}

/// A provider that was weighed for a job.
#[derive(Clone, Debug, Serialize)]
pub struct ConsideredLog {
    /// The provider.
    pub provider: NodeId,
    /// What it asked, per million units in micro-credits.
    pub price: Price,
    /// The predicted time to the first text, in milliseconds.
    pub first_ms: u64,
    /// `free`, `unasked` or `busy`: what it had said when the job was placed.
    pub readiness: &'static str,
    /// Whether the job went there.
    pub taken: bool,
    /// What the job would have cost there, in micro-credits; `None` if that exceeds what money can count.
    pub would_cost_micro: Option<Credits>,
}

/// One place a job was at.
#[derive(Clone, Debug, Serialize)]
pub struct LegLog {
    /// `own` or `network`.
    pub route: &'static str,
    /// The provider's node id in hex, if not own.
    pub provider: Option<String>,
    /// The reason code.
    pub reason: &'static str,
    /// Input units.
    pub input: u64,
    /// Output units.
    pub output: u64,
    /// Its cost in micro-credits.
    pub cost_micro: u64,
}

#[derive(Debug, Default)]
struct Log {
    by_id: HashMap<JobId, Box<JobLog>>,
    order: VecDeque<JobId>,
}

impl Jobs {
    /// A handle whose commands arrive at the other end of `commands`.
    #[must_use]
    pub fn new(commands: mpsc::Sender<Command>) -> Self {
        Self { commands, shared: Arc::new(Shared::default()) }
    }

    /// Hands a job to the market.
    ///
    /// # Errors
    /// [`JobsFull`] if the market is too far behind to take it, or stopped.
    pub fn submit(&self, job: Job, beside: Beside) -> Result<JobHandle, JobsFull> {
        let (events, receiver) = mpsc::channel(EVENTS_MAX);
        let id = job.id;
        let entry = JobLog {
            job: id.to_string(),
            model: job.model.clone(),
            kind: job.kind.as_str(),
            status: "running",
            finish: None,
            error: None,
            cost_micro: 0,
            first_ms: None,
            total_ms: 0,
            created_ms: created_ms(),
            report: None,
            legs: Vec::new(),
            considered: Vec::new(),
            wishes: wishes(&job),
        };
        // Noted first: the job may be over before this returns.
        self.shared.log.lock().expect("no holder panics").insert(id, entry);
        if self.commands.try_send(Command::Submit(Box::new(JobRequest { job, events, beside }))).is_err() {
            self.shared.log.lock().expect("no holder panics").remove(&id);
            return Err(JobsFull);
        }
        Ok(JobHandle { id, events: receiver, commands: self.commands.clone(), over: false })
    }

    /// Notes a job whose answer was kept from an earlier one: it is over as it begins.
    pub fn note_kept(&self, job: JobId, model: &str, kind: Kind, finish: &str) {
        let entry = JobLog {
            job: job.to_string(),
            model: model.to_owned(),
            kind: kind.as_str(),
            status: "done",
            finish: Some(finish.to_owned()),
            error: None,
            cost_micro: 0,
            first_ms: Some(0),
            total_ms: 0,
            created_ms: created_ms(),
            report: None,
            legs: Vec::new(),
            considered: Vec::new(),
            wishes: Some("answered from the cache".into()),
        };
        self.shared.log.lock().expect("no holder panics").insert(job, entry);
    }

    /// What is remembered of a job; at most the last 10,000 are.
    #[must_use]
    pub fn log(&self, job: JobId) -> Option<JobLog> {
        self.shared.log.lock().expect("no holder panics").by_id.get(&job).map(|entry| (**entry).clone())
    }

    /// The jobs whose answer has this name at its server, the newest first.
    #[must_use]
    pub fn with_answer(&self, answer: &str) -> Vec<JobId> {
        let log = self.shared.log.lock().expect("no holder panics");
        let is_it = |id: &&JobId| {
            let report = log.by_id.get(*id).and_then(|entry| entry.report.as_ref());
            report.is_some_and(|report| report.answer.as_deref() == Some(answer))
        };
        log.order.iter().rev().filter(is_it).copied().collect()
    }

    /// What can be asked for now.
    #[must_use]
    pub fn models(&self) -> Arc<[MarketModel]> {
        Arc::clone(&self.shared.market.read().expect("no holder panics").models)
    }

    /// Whether a model is an own backend's that does not answer now, and nobody else's.
    #[must_use]
    pub fn rests(&self, model: &str) -> bool {
        let market = self.shared.market.read().expect("no holder panics");
        market.resting.iter().any(|name| name == model) && !market.models.iter().any(|known| known.id == model)
    }

    /// What strangers offer now.
    #[must_use]
    pub fn offers(&self) -> Vec<OfferView> {
        self.shared.market.read().expect("no holder panics").offers.clone()
    }

    /// How busy this node is now.
    #[must_use]
    pub fn load(&self) -> Load {
        self.shared.market.read().expect("no holder panics").load.clone()
    }

    /// Replaces the snapshot of the market. For whoever drives the market.
    pub fn set_market(&self, view: MarketView) {
        *self.shared.market.write().expect("no holder panics") = view;
    }

    /// Notes how a job ended. For whoever drives the market.
    pub fn ended(&self, job: JobId, outcome: &Outcome) {
        let mut log = self.shared.log.lock().expect("no holder panics");
        let Some(entry) = log.by_id.get_mut(&job) else { return };
        match &outcome.result {
            Ok(finish) => {
                entry.status = "done";
                entry.finish = Some(finish.clone());
            }
            Err(failure) => {
                entry.status = "failed";
                entry.error = Some(format!("{}: {}", failure.reason.as_str(), failure.message));
            }
        }
        entry.cost_micro = outcome.cost.micro();
        entry.first_ms = outcome.first_ms;
        entry.total_ms = outcome.total_ms;
        let leg = |leg: &spillway_protocol::Leg| LegLog {
            route: leg.route.as_str(),
            provider: leg.provider.map(|node| node.to_string()),
            reason: leg.reason.as_str(),
            input: leg.usage.input,
            output: leg.usage.output,
            cost_micro: leg.cost.micro(),
        };
        entry.legs = outcome.legs.iter().map(leg).collect();
        let usage = used(outcome);
        let considered = |it: &Considered| ConsideredLog {
            provider: it.provider,
            price: it.price,
            first_ms: it.first_ms,
            readiness: it.readiness.as_str(),
            taken: it.taken,
            would_cost_micro: it.price.cost(usage),
        };
        entry.considered = outcome.considered.iter().map(considered).collect();
    }

    /// Notes what the gateway saw of a job's answer.
    pub fn report(&self, job: JobId, report: Report) {
        if let Some(entry) = self.shared.log.lock().expect("no holder panics").by_id.get_mut(&job) {
            entry.report = Some(report);
        }
    }
}

fn created_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// What one place would have had to read and write for the whole of a job, without a cache.
fn used(outcome: &Outcome) -> Usage {
    let input = outcome.legs.iter().map(|leg| leg.usage.input.saturating_add(leg.usage.cached)).min().unwrap_or(0);
    let output = outcome.legs.iter().fold(0, |sum: u64, leg| sum.saturating_add(leg.usage.output));
    Usage { input, cached: 0, output }
}

/// A job's wishes in words, at most [`WISHES_BYTES_MAX`].
fn wishes(job: &Job) -> Option<String> {
    let wish = &job.preferences;
    let mut words = Vec::new();
    if let Some(ms) = job.target_ms {
        words.push(format!("first text within {ms} ms"));
    }
    if let Some(rate) = wish.preferred_min_throughput {
        words.push(format!("at least {rate} units a second"));
    }
    if let Some(sort) = wish.sort {
        let sort = match sort {
            Sort::Price => "price",
            Sort::Throughput => "throughput",
            Sort::Latency => "latency",
        };
        words.push(format!("sorted by {sort}"));
    }
    if wish.data_collection == DataCollection::Deny {
        words.push("keeps nothing".into());
    }
    let then = if wish.allow_fallbacks { "first" } else { "in this order and no other" };
    for (names, what) in [
        (&wish.only, "only"),
        (&wish.ignore, "not"),
        (&wish.quantizations, "quantised as"),
        (&wish.order, then),
        (&job.alternatives, "or else the model"),
    ] {
        if !names.is_empty() {
            words.push(format!("{what} {}", names.join(", ")));
        }
    }
    let mut words = words.join("; ");
    if words.len() > WISHES_BYTES_MAX {
        let end = (0..=WISHES_BYTES_MAX - '…'.len_utf8()).rev().find(|end| words.is_char_boundary(*end));
        words.truncate(end.unwrap_or(0));
        words.push('…');
    }
    (!words.is_empty()).then_some(words)
}

impl Log {
    fn insert(&mut self, id: JobId, entry: JobLog) {
        if self.by_id.insert(id, Box::new(entry)).is_none() {
            self.order.push_back(id);
        }
        while self.order.len() > LOG_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.by_id.remove(&oldest);
            }
        }
    }

    /// Takes back the newest entry, of a job that was not taken.
    fn remove(&mut self, id: &JobId) {
        self.by_id.remove(id);
        self.order.retain(|known| known != id);
    }
}

/// A submitted job, from its client's side.
#[derive(Debug)]
pub struct JobHandle {
    id: JobId,
    events: mpsc::Receiver<JobEvent>,
    commands: mpsc::Sender<Command>,
    over: bool,
}

impl JobHandle {
    /// The job.
    #[must_use]
    pub const fn id(&self) -> JobId {
        self.id
    }

    /// The next event; `None` after the end, or if this client read so slowly that it was cut.
    pub async fn next(&mut self) -> Option<JobEvent> {
        let event = self.events.recv().await;
        self.over |= matches!(event, None | Some(JobEvent::Ended(_)));
        event
    }

    /// Tells the market that nobody wants the rest; the end is still to come.
    pub fn stop(&self) {
        if let Err(mpsc::error::TrySendError::Full(command)) = self.commands.try_send(Command::ClientLeft(self.id)) {
            // The market is behind; it must still learn of it, or the job would run on for nobody.
            let commands = self.commands.clone();
            if let Ok(runtime) = tokio::runtime::Handle::try_current() {
                runtime.spawn(async move { commands.send(command).await });
            }
        }
    }

    /// Leaves the job and waits for how it ended, chunks left unread; `None` if the market stopped.
    pub async fn leave(mut self) -> Option<Outcome> {
        if !self.over {
            let _ = self.commands.send(Command::ClientLeft(self.id)).await;
        }
        while let Some(event) = self.events.recv().await {
            if let JobEvent::Ended(outcome) = event {
                self.over = true;
                return Some(outcome);
            }
        }
        self.over = true;
        None
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        if !self.over {
            self.stop();
        }
    }
}
