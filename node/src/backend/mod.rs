//! Own inference: the embedded engine, and any OpenAI-compatible server by URL, behind one interface.
//! Invariant: each work ends with one [`BackendEvent::Finished`] or [`BackendEvent::Failed`], unless it is stopped: dropping
//! its [`Running`] cancels it at the backend at once, and nothing more comes of it.

mod answer;
mod chunk;
pub mod connection;
mod embedded;
mod merge;
mod meter;
mod models;
mod prompt;
mod upstream;

#[cfg(test)]
mod tests;

use crate::openai::text_of_event;
use crate::telemetry::TraceHeaders;
use embedded::Embedded;
use futures::future::BoxFuture;
use merge::{Merge, Wanted};
use meter::Meter;
use spillway_ledger::Credits;
use spillway_protocol::config::BackendSection;
use spillway_protocol::wire::CHUNK_BYTES_MAX;
use spillway_protocol::{BackendError, Capacity, Kind, OwnChoice, WorkId};
use std::path::Path;
use std::sync::{Arc, Mutex};
use tokio::sync::{mpsc, watch};
use upstream::Upstream;
pub(crate) use upstream::in_words;

/// Longest finish reason, in bytes; longer ones are cut, as frames and receipts hold no more.
const FINISH_BYTES_MAX: usize = 32;

/// What a backend is asked to do.
#[derive(Debug)]
pub struct Work {
    /// Its number.
    pub id: WorkId,
    /// The model that is to answer.
    pub model: String,
    /// The endpoint.
    pub kind: Kind,
    /// The request.
    pub body: Vec<u8>,
    /// Text already delivered; the answer goes on right behind it.
    pub prefix: Vec<u8>,
    /// Whether it is the owner's own; a stranger's runs nowhere that costs money.
    pub own: bool,
    /// Whether the answer may come as one event.
    pub whole: bool,
    /// Which backends may.
    pub choice: OwnChoice,
    /// What the server is told of the trace that it is part of.
    pub trace: Option<TraceHeaders>,
    /// Late work that it runs beside: at another backend, that costs nothing and has a free slot.
    pub beside: Option<WorkId>,
}

/// What comes of work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendEvent {
    /// One event of the answer's stream, or one part of an answer that is none.
    Output {
        /// The work.
        work: WorkId,
        /// The event's JSON, at most [`CHUNK_BYTES_MAX`], but for an answer in one piece.
        bytes: Vec<u8>,
        /// The text that it delivers.
        text: Vec<u8>,
    },
    /// What it has cost so far, in all; only where it costs anything.
    Charged {
        /// The work.
        work: WorkId,
        /// In all.
        cost: Credits,
    },
    /// The answer is complete.
    Finished {
        /// The work.
        work: WorkId,
        /// Why it ended, at most 32 bytes.
        finish: String,
    },
    /// There is no, or no complete, answer.
    Failed {
        /// The work.
        work: WorkId,
        /// Why.
        error: BackendError,
    },
}

/// Work under way; dropping it stops the work.
#[derive(Debug)]
pub struct Running(tokio::task::AbortHandle);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Why the backends cannot start; each names its place in the configuration.
#[derive(Debug, thiserror::Error)]
pub enum BackendStartError {
    /// The model file.
    #[error("backend[{index}]: {source}")]
    Load {
        /// Which backend.
        index: usize,
        /// Why not.
        source: spillway_engine::LoadError,
    },
    /// A setting.
    #[error("backend[{index}].{field}: {why}")]
    Setting {
        /// Which backend.
        index: usize,
        /// Which setting.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
}

/// One backend.
#[derive(Debug)]
enum Backend {
    Embedded(Embedded),
    Upstream(Upstream),
}

/// The own backends; cheap to clone. The last clone's end stops health checks and engines.
#[derive(Clone, Debug)]
pub struct Backends {
    backends: Arc<[Backend]>,
    merge: Arc<Merge>,
}

impl Backends {
    /// Loads models, which takes a moment, and begins to ask servers what they have; those appear in the list when they answer.
    /// Files are relative to `folder`. The receiver always has the whole list of what is served.
    ///
    /// # Errors
    /// If a model file or a setting is wrong. A server that does not answer is no error.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        sections: &[BackendSection],
        folder: &Path,
    ) -> Result<(Self, watch::Receiver<Vec<Capacity>>), BackendStartError> {
        let names = sections.iter().enumerate().map(|(index, section)| section.name(index)).collect();
        let (merge, capacity) = Merge::new(names);
        let merge = Arc::new(merge);
        let mut backends = Vec::with_capacity(sections.len());
        for (index, section) in sections.iter().enumerate() {
            backends.push(match section {
                BackendSection::Embedded { model, gguf, slots, tokens_per_second, .. } => {
                    let file = gguf.as_ref().map(|file| folder.join(file));
                    let engine = Embedded::load(model.clone(), file.as_deref(), *slots, *tokens_per_second)
                        .map_err(|source| BackendStartError::Load { index, source })?;
                    merge.publish(index, vec![engine.capacity()]);
                    Backend::Embedded(engine)
                }
                BackendSection::OpenAi(server) => {
                    let setting = |(field, why)| BackendStartError::Setting { index, field, why };
                    let price = server.token_price("").map_err(|error| setting(("price", error.to_string())))?;
                    let upstream = Upstream::new(server, folder, price).map_err(setting)?;
                    upstream.watch(index, Arc::downgrade(&merge));
                    Backend::Upstream(upstream)
                }
            });
        }
        Ok((Self { backends: backends.into(), merge }, capacity))
    }

    /// Begins work. Its events go to `sink`; a full sink holds the backend back.
    #[must_use = "dropping it stops the work"]
    pub fn run(&self, work: Work, sink: impl Sink + 'static) -> Running {
        let Work { id, kind, own, whole, .. } = work;
        let prefix = work.prefix.len();
        tracing::debug!(work = id.0, model = work.model, kind = kind.as_str(), own, whole, prefix, "work begins");
        let (backends, merge) = (Arc::clone(&self.backends), Arc::clone(&self.merge));
        let task = tokio::spawn(async move {
            let out = Out { work: id, kind, sink: Box::new(sink), meter: Mutex::default() };
            let wanted = Wanted {
                own,
                owned_only: work.choice.owned_only,
                backends: work.choice.backends.clone(),
                token_price_max: work.choice.token_price_max,
                begun: (prefix > 0).then_some(kind),
                beside: work.beside,
            };
            let result = match merge.pick(id, &work.model, &wanted) {
                Some((index, _busy)) => match &backends[index] {
                    Backend::Embedded(engine) => engine.run(work, &out).await,
                    Backend::Upstream(upstream) => upstream.run(work, &out).await,
                },
                None => Err(BackendError::Failed(wanted.in_vain(&work.model))),
            };
            out.end(result).await;
        });
        Running(task.abort_handle())
    }
}

/// Where a work's events go.
#[derive(Debug)]
struct Out {
    work: WorkId,
    kind: Kind,
    sink: Box<dyn Sink>,
    /// Counts what the work costs, where it costs anything.
    meter: Mutex<Option<Meter>>,
}

/// Where backends' events go.
pub trait Sink: std::fmt::Debug + Send + Sync {
    /// Passes an event on, and waits while there is no room for it.
    fn send(&self, event: BackendEvent) -> BoxFuture<'_, Result<(), Gone>>;
}

impl Sink for mpsc::Sender<BackendEvent> {
    fn send(&self, event: BackendEvent) -> BoxFuture<'_, Result<(), Gone>> {
        Box::pin(async { Self::send(self, event).await.map_err(|_| Gone) })
    }
}

/// Nobody listens any more.
#[derive(Clone, Copy, Debug)]
pub struct Gone;

impl Out {
    /// Passes an event on, with the text that it delivers.
    async fn event(&self, bytes: Vec<u8>) -> Result<(), BackendError> {
        let text = text_of_event(self.kind, &bytes);
        self.event_with(bytes, text).await
    }

    /// As [`Self::event`], where the text is known.
    async fn event_with(&self, bytes: Vec<u8>, text: Vec<u8>) -> Result<(), BackendError> {
        if bytes.len() > CHUNK_BYTES_MAX {
            return Err(BackendError::Failed("an event is over 256 KiB".into()));
        }
        self.charge(|meter| meter.event(&bytes, text.len())).await?;
        self.send(BackendEvent::Output { work: self.work, bytes, text }).await
    }

    /// The answer of own work in one piece: it stays within this node, and no frame need hold it.
    async fn whole(&self, bytes: Vec<u8>, text: Vec<u8>) -> Result<(), BackendError> {
        self.send(BackendEvent::Output { work: self.work, bytes, text }).await
    }

    async fn send(&self, event: BackendEvent) -> Result<(), BackendError> {
        self.sink.send(event).await.map_err(|Gone| BackendError::Failed("nobody listens".into()))
    }

    /// From now on what the work costs is counted.
    fn meter(&self, meter: Meter) {
        *self.meter.lock().expect("nothing panics while it counts") = Some(meter);
    }

    /// The server began to answer.
    async fn begun(&self) -> Result<(), BackendError> {
        self.charge(Meter::begun).await
    }

    /// A part of an answer that is no stream came.
    fn part(&self, bytes: &[u8]) {
        if let Some(meter) = &mut *self.meter.lock().expect("nothing panics while it counts") {
            meter.part(bytes);
        }
    }

    async fn charge(&self, count: impl FnOnce(&mut Meter) -> Option<Credits>) -> Result<(), BackendError> {
        let cost = self.meter.lock().expect("nothing panics while it counts").as_mut().and_then(count);
        let Some(cost) = cost else { return Ok(()) };
        self.send(BackendEvent::Charged { work: self.work, cost }).await
    }

    async fn end(&self, result: Result<String, BackendError>) {
        if result.is_ok() && self.charge(Meter::ended).await.is_err() {
            return;
        }
        let event = match result {
            Ok(finish) => BackendEvent::Finished { work: self.work, finish: cut(finish, FINISH_BYTES_MAX) },
            Err(error) => BackendEvent::Failed { work: self.work, error },
        };
        // If nobody listens, nobody needs to know.
        let _: Result<(), Gone> = self.sink.send(event).await;
    }
}

/// The start of a text, at most `max` bytes, in whole characters.
fn cut(mut text: String, max: usize) -> String {
    let end = (0..=max.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text.truncate(end);
    text
}

/// A request that this backend cannot take, naming the field.
fn rejected(field: &str, why: &str) -> BackendError {
    let error = serde_json::json!({"error": {
        "message": format!("{field}: {why}"),
        "type": "invalid_request_error",
        "param": field,
        "code": "invalid_request",
    }});
    BackendError::Rejected { status: 400, message: error.to_string() }
}
