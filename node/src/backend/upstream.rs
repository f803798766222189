//! An OpenAI-compatible server by URL, such as vLLM, SGLang, llama.cpp's server or Ollama.
//! Invariant: this node connects to the configured URL and nowhere else: no redirects, no proxies from the environment,
//! and of a client's request nothing but the body.

use super::answer::{in_one_piece, named_events, whole};
use super::connection::{BadSetting, Connections, Received, below, connection, uri};
use super::merge::Merge;
use super::meter::Meter;
use super::models::{ANSWER_BYTES_MAX, CHECK_WAIT, RETRY_AFTER_MIN, configured, discovered};
use super::prompt::for_upstream;
use super::{Out, Work, cut};
use crate::openai::endpoint::Choices;
use crate::openai::event::Event;
use crate::openai::measure::text_of_parsed;
use crate::openai::template::Template;
use crate::openai::{Answer, SseParser, endpoint};
use crate::telemetry::trace::{TRACEPARENT, TRACESTATE};
use axum::http::header::{CONTENT_TYPE, DATE, RETRY_AFTER};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Request, Uri};
use bytes::Bytes;
use spillway_ledger::Price;
use spillway_protocol::config::ServerSection;
use spillway_protocol::{BackendError, Capacity, Kind};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// How long work waits for a place within the server's limit: a place becomes free a moment after its work was stopped.
const PLACE_WAIT: Duration = Duration::from_secs(2);
/// Most bytes of an error's body that are read.
pub(super) const ERROR_BYTES_MAX: usize = 4096;
/// The version of Anthropic's API whose requests and events the gateway knows.
const ANTHROPIC_VERSION: &str = "2023-06-01";

/// A server.
#[derive(Debug)]
pub(super) struct Upstream {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    connections: Connections,
    /// Of each endpoint, in the order of [`Kind::ALL`].
    urls: Vec<Uri>,
    models_url: Uri,
    endpoints: Vec<Kind>,
    models: Vec<String>,
    names: Names,
    slots: u32,
    /// Whether its chats go on behind a begun answer, where the operator knows.
    continues: Option<bool>,
    /// What a million tokens cost, if they cost anything.
    price: Option<Price>,
    check_every: Duration,
    /// How long it may be silent, and before an answer in one piece.
    silence: Duration,
    whole_wait: Duration,
    places: Semaphore,
    /// A work could not reach the server: check it now.
    doubt: Notify,
}

impl Upstream {
    /// For the server of this section; files are relative to `folder`.
    ///
    /// # Errors
    /// The setting that does not hold, and why.
    pub(super) fn new(section: &ServerSection, folder: &Path, price: Price) -> Result<Self, BadSetting> {
        let (connections, base) = connection(section, folder)?;
        let mut endpoints = section.endpoints.clone();
        endpoints.sort_unstable();
        endpoints.dedup();
        let shared = Shared {
            connections,
            urls: Kind::ALL.iter().map(|kind| uri(&below(&base, endpoint(*kind).path))).collect(),
            models_url: uri(&below(&base, "models")),
            endpoints,
            models: section.models.clone(),
            names: Names::new(&section.rename),
            slots: section.slots,
            continues: section.continues,
            price: (section.price.is_some()).then_some(price),
            check_every: Duration::from_secs_f64(section.check_s),
            silence: Duration::from_secs_f64(section.silence_s),
            whole_wait: Duration::from_secs_f64(section.whole_s),
            places: Semaphore::new(section.slots as usize),
            doubt: Notify::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// Checks the server from now on and publishes what it has, until `merge` is gone.
    pub(super) fn watch(&self, index: usize, merge: Weak<Merge>) {
        tokio::spawn(watch(Arc::clone(&self.shared), index, merge));
    }

    /// Has the server do work; gives the finish reason.
    pub(super) async fn run(&self, work: Work, out: &Out) -> Result<String, BackendError> {
        let shared = &*self.shared;
        // What costs money is counted as it comes: whoever leaves owes what came until then.
        let in_one = work.whole && shared.price.is_none();
        let model = shared.names.theirs(&work.model);
        let (body, content_type) = for_upstream(work.kind, model, &work.body, &work.prefix, in_one)?;
        let place = tokio::time::timeout(PLACE_WAIT, shared.places.acquire());
        let Ok(place) = place.await else { return Err(BackendError::Busy { retry_after_ms: None }) };
        let _place = place.expect("the semaphore is never closed");
        let row = endpoint(work.kind);
        if let Some(price) = shared.price {
            out.meter(Meter::new(price, body.len()));
        }
        let mut request = Request::post(shared.urls[work.kind as usize].clone()).header(CONTENT_TYPE, content_type);
        if work.kind == Kind::Message {
            request = request.header("anthropic-version", HeaderValue::from_static(ANTHROPIC_VERSION));
        }
        if let Some(trace) = work.trace {
            request = request.header(TRACEPARENT, trace.parent);
            if let Some(state) = trace.state {
                request = request.header(TRACESTATE, state);
            }
        }
        let request = request.body(body.into()).map_err(|error| BackendError::Failed(error.to_string()))?;
        let silence = if in_one { shared.whole_wait } else { shared.silence };
        let response = tokio::time::timeout(silence, shared.connections.send(request)).await;
        let response = response.unwrap_or_else(|_| Err(LATE.to_owned())).map_err(|why| {
            shared.doubt.notify_one();
            BackendError::Failed(format!("the server cannot be reached: {why}"))
        })?;
        if !response.status().is_success() {
            return Err(refusal(response, shared.silence).await);
        }
        out.begun().await?;
        let is_stream = content_type_of(&response)
            .is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream"));
        let response = Incoming { response, silence: if is_stream { shared.silence } else { silence } };
        match row.answer {
            Answer::Whole(_) => whole(response, out).await,
            Answer::Events(_) if is_stream => named_events(response, out).await,
            Answer::Choices(choices) if is_stream => relay(choices, response, out).await,
            Answer::Choices(choices) if in_one => in_one_piece(choices, response, out).await,
            Answer::Events(_) | Answer::Choices(_) => {
                Err(BackendError::Failed("the server did not answer with a stream of events".into()))
            }
        }
    }
}

const LATE: &str = "no answer in time";

/// What a response says that it is.
pub(super) fn content_type_of(response: &Received) -> Option<&str> {
    response.headers().get(CONTENT_TYPE)?.to_str().ok()
}

/// An answer on its way.
pub(super) struct Incoming {
    pub(super) response: Received,
    /// How long nothing may come.
    silence: Duration,
}

impl Incoming {
    /// The next piece; `None` at the end. What broke off is called `what`.
    pub(super) async fn piece(&mut self, what: &str) -> Result<Option<Bytes>, BackendError> {
        let piece = tokio::time::timeout(self.silence, self.response.chunk()).await;
        let piece = piece.unwrap_or_else(|_| Err(LATE.to_owned()));
        piece.map_err(|why| BackendError::Failed(format!("{what} broke off: {why}")))
    }
}

/// Reads the next piece of a stream into the events that it completes; whether that was the last.
pub(super) async fn more_events(
    response: &mut Incoming,
    parser: &mut SseParser,
    events: &mut Vec<Vec<u8>>,
) -> Result<bool, BackendError> {
    let bytes = response.piece("the stream").await?;
    let ended = bytes.is_none();
    match bytes {
        Some(bytes) => parser.push(&bytes, events).map_err(|error| BackendError::Failed(error.to_string()))?,
        None => events.extend(std::mem::take(parser).finish()),
    }
    Ok(ended)
}

/// Passes the stream's events on as they are; gives the finish reason.
async fn relay(choices: Choices, mut response: Incoming, out: &Out) -> Result<String, BackendError> {
    let mut parser = SseParser::default();
    let mut finish = None;
    let mut events = Vec::new();
    let mut template = Template::new(choices);
    loop {
        let ended = more_events(&mut response, &mut parser, &mut events).await?;
        for data in events.drain(..) {
            if data.trim_ascii() == b"[DONE]" {
                return Ok(finish.unwrap_or_else(|| "stop".into()));
            }
            if let Some(text) = template.text(&data) {
                let text = text.into_owned().into_bytes();
                out.event_with(data, text).await?;
                continue;
            }
            let Some(event) = Event::parse(&data) else {
                return Err(BackendError::Failed("the server sent an event that is none of OpenAI's".into()));
            };
            if let Some(error) = event.error {
                return Err(BackendError::Failed(cut(error.get().to_owned(), ERROR_BYTES_MAX)));
            }
            if let Some(reason) = event.choices.iter().find_map(|choice| choice.finish()) {
                finish = Some(reason);
            }
            let text = text_of_parsed(choices, &event);
            template.learn(&data, &event);
            out.event_with(data, text).await?;
        }
        if ended {
            // Some servers leave out `[DONE]`; what has a finish reason is complete all the same.
            return finish.ok_or_else(|| BackendError::Failed("the stream ended early".into()));
        }
    }
}

/// What a server asks to wait, in milliseconds. Where it names a moment (RFC 9110), that is taken by its own clock: clocks differ.
fn retry_after_ms(headers: &HeaderMap) -> Option<u64> {
    let number =
        |name: &'static str| headers.get(HeaderName::from_static(name))?.to_str().ok()?.trim().parse::<f64>().ok();
    let ms = number("retry-after-ms").or_else(|| number("x-ms-retry-after-ms"));
    let ms = ms.or_else(|| number("retry-after").map(|seconds| seconds * 1e3));
    let date = |name: HeaderName| httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok();
    let until = || date(RETRY_AFTER)?.duration_since(date(DATE)?).ok();
    let ms = ms.or_else(|| until().map(|wait| wait.as_secs_f64() * 1e3))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within a day")]
    (0.0..=86_400_000.0).contains(&ms).then(|| ms.ceil() as u64)
}

/// What an error status means for the job.
async fn refusal(mut response: Received, wait: Duration) -> BackendError {
    let status = response.status().as_u16();
    let retry_after_ms = retry_after_ms(response.headers());
    let mut body = Vec::new();
    let read = async {
        while body.len() < ERROR_BYTES_MAX
            && let Ok(Some(bytes)) = response.chunk().await
        {
            body.extend_from_slice(&bytes[..bytes.len().min(ERROR_BYTES_MAX - body.len())]);
        }
    };
    // What came of it in time will do.
    let _ = tokio::time::timeout(wait, read).await;
    let message = cut(String::from_utf8_lossy(&body).into_owned(), ERROR_BYTES_MAX);
    match status {
        429 => BackendError::Busy { retry_after_ms },
        // The operator's key, the server's model list or a proxy is at fault, and not the request: another place may do it.
        400..=499 if !matches!(status, 401 | 402 | 403 | 404 | 407 | 408) => BackendError::Rejected { status, message },
        _ => {
            let message = format!("the server answered {status}: {message}");
            BackendError::Answered { status, retry_after_ms, message }
        }
    }
}

async fn watch(shared: Arc<Shared>, index: usize, merge: Weak<Merge>) {
    let mut retry_after = RETRY_AFTER_MIN;
    let mut answered = None;
    loop {
        let result = tokio::time::timeout(CHECK_WAIT, shared.check()).await;
        let result = result.unwrap_or_else(|_| Err("no answer in time".into()));
        let Some(merge) = merge.upgrade() else { return };
        let wait = match result {
            Ok(models) => {
                if answered != Some(true) {
                    tracing::info!(url = %shared.models_url, models = models.len(), "backend answers");
                }
                answered = Some(true);
                merge.publish(index, models);
                retry_after = RETRY_AFTER_MIN;
                shared.check_every
            }
            Err(why) => {
                if answered != Some(false) {
                    tracing::warn!(url = %shared.models_url, why, "backend does not answer");
                }
                answered = Some(false);
                merge.fail(index);
                let wait = retry_after;
                retry_after = (retry_after * 2).min(shared.check_every);
                wait
            }
        };
        drop(merge);
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = shared.doubt.notified() => {}
        }
    }
}

/// The models of a server that clients know by other names.
#[derive(Debug)]
struct Names {
    theirs: BTreeMap<String, String>,
    ours: BTreeMap<String, String>,
}

impl Names {
    fn new(rename: &BTreeMap<String, String>) -> Self {
        let ours = rename.iter().map(|(ours, theirs)| (theirs.clone(), ours.clone())).collect();
        Self { theirs: rename.clone(), ours }
    }

    fn theirs<'a>(&'a self, ours: &'a str) -> &'a str {
        self.theirs.get(ours).map_or(ours, String::as_str)
    }

    fn ours(&self, theirs: String) -> String {
        self.ours.get(&theirs).cloned().unwrap_or(theirs)
    }
}

impl Shared {
    async fn check(&self) -> Result<Vec<Capacity>, String> {
        let mut response = self.connections.get(&self.models_url).await?;
        let status = response.status();
        let refused = status.is_server_error() || matches!(status.as_u16(), 401 | 403 | 429);
        if refused || (self.models.is_empty() && !status.is_success()) {
            return Err(format!("it answered {status}"));
        }
        if !self.models.is_empty() {
            // The operator's list is used as it is; any other answer shows that the server is there.
            return Ok(self.serving(configured(&self.models, self.slots)));
        }
        let body = response.bytes(ANSWER_BYTES_MAX).await?;
        let models = discovered(&body, self.slots).ok_or_else(|| "it answered with no list of models".to_owned());
        models.map(|models| self.serving(models))
    }

    /// The models with what they serve by the operator's word.
    fn serving(&self, mut models: Vec<Capacity>) -> Vec<Capacity> {
        for capacity in &mut models {
            capacity.kinds.clone_from(&self.endpoints);
            capacity.continues = self.continues.unwrap_or(capacity.continues);
            capacity.model = self.names.ours(std::mem::take(&mut capacity.model));
            if let Some(price) = self.price {
                (capacity.rented, capacity.replicas, capacity.token_price) = (capacity.slots, 0, price);
            }
        }
        models.sort_by(|a, b| a.model.cmp(&b.model));
        models.dedup_by(|a, b| a.model == b.model);
        models
    }
}

/// The innermost cause, which says more than the outer ones, and without the URL.
pub(crate) fn in_words(error: &(dyn std::error::Error + 'static)) -> String {
    let mut cause = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if cause.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout) {
        return LATE.into();
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_have_two_names() {
        let renames = [("gpt", "gpt-4o-2024"), ("other", "theirs")].map(|(a, b)| (a.to_owned(), b.to_owned()));
        let names = Names::new(&renames.into_iter().collect());
        assert_eq!(names.theirs("gpt"), "gpt-4o-2024");
        assert_eq!(names.theirs("plain"), "plain");
        assert_eq!(names.ours("gpt-4o-2024".into()), "gpt");
        assert_eq!(names.ours("plain".into()), "plain");
        // A request cannot pick the server's own name by going around ours.
        assert_eq!(names.ours("theirs".into()), "other");
    }

    #[test]
    fn waits_are_read() {
        let headers = |pairs: &[(&'static str, &str)]| {
            let pair =
                |(name, value): &(&'static str, &str)| (HeaderName::from_static(name), value.parse().expect("a value"));
            pairs.iter().map(pair).collect::<HeaderMap>()
        };
        for (pairs, ms) in [
            (&[("retry-after", "2")][..], Some(2000)),
            (&[("retry-after", "0.5")], Some(500)),
            (&[("retry-after-ms", "30"), ("retry-after", "9")], Some(30)),
            (&[("x-ms-retry-after-ms", "40")], Some(40)),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT")], None),
            (
                &[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), ("date", "Wed, 21 Oct 2015 07:27:30 GMT")],
                Some(30_000),
            ),
            (&[("retry-after", "Wed, 21 Oct 2015 07:28:00 GMT"), ("date", "Wed, 21 Oct 2015 07:28:01 GMT")], None),
            (&[("retry-after", "1e300")], None),
            (&[], None),
        ] {
            assert_eq!(retry_after_ms(&headers(pairs)), ms, "{pairs:?}");
        }
    }
}
