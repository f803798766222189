//! An OpenAI-compatible server by URL, such as vLLM, SGLang, llama.cpp's server or Ollama.
//! Invariant: this node connects to the configured URL and nowhere else: no redirects, no proxies from the environment,
//! and of a client's request nothing but the body.

use super::answer::{named_events, whole};
use super::merge::Merge;
use super::models::{ANSWER_BYTES_MAX, CHECK_EVERY, CHECK_WAIT, RETRY_AFTER_MIN, configured, discovered};
use super::prompt::for_upstream;
use super::{Out, Work, cut};
use crate::openai::event::Event;
use crate::openai::{Answer, SseParser, endpoint};
use crate::telemetry::trace::{TRACEPARENT, TRACESTATE};
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Client, Response, Url};
use spillway_protocol::{BackendError, Capacity, Kind};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// How long connecting may take.
const CONNECT_WAIT: Duration = Duration::from_secs(5);
/// How long a server may say nothing: a long prompt on slow hardware takes minutes until the first token.
const SILENCE_MAX: Duration = Duration::from_secs(300);
/// How long an idle connection is kept. Shorter than common servers keep theirs (5 s), so that a request is never written to
/// a connection that is being closed.
const IDLE_MAX: Duration = Duration::from_secs(4);
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
    client: Client,
    base: Url,
    models_url: Url,
    endpoints: Vec<Kind>,
    models: Vec<String>,
    slots: u32,
    places: Semaphore,
    /// A work could not reach the server: check it now.
    doubt: Notify,
}

impl Upstream {
    /// For the server at `url`; its key is in the environment's `key_env`.
    ///
    /// # Errors
    /// The setting that does not hold, and why.
    pub(super) fn new(
        url: &str,
        key_env: Option<&str>,
        models: Vec<String>,
        slots: u32,
        mut endpoints: Vec<Kind>,
    ) -> Result<Self, (&'static str, String)> {
        endpoints.sort_unstable();
        endpoints.dedup();
        let base = base_url(url)?;
        let mut headers = HeaderMap::new();
        if let Some(name) = key_env {
            let key = std::env::var(name).map_err(|_| ("key_env", format!("the environment has no {name}")))?;
            let value = HeaderValue::from_str(&format!("Bearer {key}"));
            let mut value = value.map_err(|_| ("key_env", format!("what {name} holds cannot be sent in a header")))?;
            value.set_sensitive(true);
            headers.insert(AUTHORIZATION, value);
            if endpoints.contains(&Kind::Message) {
                // Servers of Anthropic's Messages want it here.
                let value = HeaderValue::from_str(&key);
                let mut value =
                    value.map_err(|_| ("key_env", format!("what {name} holds cannot be sent in a header")))?;
                value.set_sensitive(true);
                headers.insert("x-api-key", value);
            }
        }
        let mut client = Client::builder()
            .redirect(Policy::none())
            .no_proxy()
            .default_headers(headers)
            .connect_timeout(CONNECT_WAIT)
            .read_timeout(SILENCE_MAX)
            .pool_idle_timeout(IDLE_MAX)
            .pool_max_idle_per_host(slots as usize)
            .tcp_nodelay(true);
        if base.scheme() == "http" {
            // A machine without certificates can still reach the server beside it.
            client = client.tls_certs_only([]);
        }
        let client = client.build().map_err(|error| ("url", error.to_string()))?;
        let shared = Shared {
            client,
            models_url: below(&base, "models"),
            base,
            endpoints,
            models,
            slots,
            places: Semaphore::new(slots as usize),
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
        let (body, content_type) = for_upstream(work.kind, &work.model, &work.body, &work.prefix)?;
        let place = tokio::time::timeout(PLACE_WAIT, shared.places.acquire());
        let Ok(place) = place.await else { return Err(BackendError::Busy) };
        let _place = place.expect("the semaphore is never closed");
        let row = endpoint(work.kind);
        let mut request =
            shared.client.post(below(&shared.base, row.path)).header(CONTENT_TYPE, content_type).body(body);
        if work.kind == Kind::Message {
            request = request.header("anthropic-version", ANTHROPIC_VERSION);
        }
        if let Some(trace) = work.trace {
            request = request.header(TRACEPARENT, trace.parent);
            if let Some(state) = trace.state {
                request = request.header(TRACESTATE, state);
            }
        }
        let response = request.send().await.map_err(|error| {
            shared.doubt.notify_one();
            BackendError::Failed(format!("the server cannot be reached: {}", in_words(&error)))
        })?;
        if !response.status().is_success() {
            return Err(refusal(response).await);
        }
        if let Answer::Whole(_) = row.answer {
            return whole(response, out).await;
        }
        let is_stream = response
            .headers()
            .get(CONTENT_TYPE)
            .and_then(|value| value.to_str().ok())
            .is_some_and(|kind| kind.trim_start().to_ascii_lowercase().starts_with("text/event-stream"));
        if !is_stream {
            return Err(BackendError::Failed("the server did not answer with a stream of events".into()));
        }
        match row.answer {
            Answer::Events(_) => named_events(response, out).await,
            Answer::Choices(_) | Answer::Whole(_) => relay(response, out).await,
        }
    }
}

/// Reads the next piece of a stream into the events that it completes; whether that was the last.
pub(super) async fn more_events(
    response: &mut Response,
    parser: &mut SseParser,
    events: &mut Vec<Vec<u8>>,
) -> Result<bool, BackendError> {
    let bytes = response.chunk().await;
    let bytes = bytes.map_err(|error| BackendError::Failed(format!("the stream broke off: {}", in_words(&error))))?;
    let ended = bytes.is_none();
    match bytes {
        Some(bytes) => parser.push(&bytes, events).map_err(|error| BackendError::Failed(error.to_string()))?,
        None => events.extend(std::mem::take(parser).finish()),
    }
    Ok(ended)
}

/// Passes the stream's events on as they are; gives the finish reason.
async fn relay(mut response: Response, out: &Out) -> Result<String, BackendError> {
    let mut parser = SseParser::default();
    let mut finish = None;
    let mut events = Vec::new();
    loop {
        let ended = more_events(&mut response, &mut parser, &mut events).await?;
        for data in events.drain(..) {
            if data.trim_ascii() == b"[DONE]" {
                return Ok(finish.unwrap_or_else(|| "stop".into()));
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
            out.event(data).await?;
        }
        if ended {
            // Some servers leave out `[DONE]`; what has a finish reason is complete all the same.
            return finish.ok_or_else(|| BackendError::Failed("the stream ended early".into()));
        }
    }
}

/// What an error status means for the job.
async fn refusal(mut response: Response) -> BackendError {
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while body.len() < ERROR_BYTES_MAX
        && let Ok(Some(bytes)) = response.chunk().await
    {
        body.extend_from_slice(&bytes[..bytes.len().min(ERROR_BYTES_MAX - body.len())]);
    }
    let message = cut(String::from_utf8_lossy(&body).into_owned(), ERROR_BYTES_MAX);
    match status {
        429 => BackendError::Busy,
        // The operator's key, the server's model list or a proxy is at fault, and not the request: another place may do it.
        401 | 403 | 404 | 407 | 408 => BackendError::Failed(format!("the server answered {status}: {message}")),
        400..=499 => BackendError::Rejected { status, message },
        _ => BackendError::Failed(format!("the server answered {status}: {message}")),
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
                CHECK_EVERY
            }
            Err(why) => {
                if answered != Some(false) {
                    tracing::warn!(url = %shared.models_url, why, "backend does not answer");
                }
                answered = Some(false);
                merge.fail(index);
                let wait = retry_after;
                retry_after = (retry_after * 2).min(CHECK_EVERY);
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

impl Shared {
    async fn check(&self) -> Result<Vec<Capacity>, String> {
        let mut response = self.client.get(self.models_url.clone()).send().await.map_err(|error| in_words(&error))?;
        let status = response.status();
        let refused = status.is_server_error() || matches!(status.as_u16(), 401 | 403 | 429);
        if refused || (self.models.is_empty() && !status.is_success()) {
            return Err(format!("it answered {status}"));
        }
        if !self.models.is_empty() {
            // The operator's list is used as it is; any other answer shows that the server is there.
            return Ok(self.serving(configured(&self.models, self.slots)));
        }
        let mut body = Vec::new();
        while let Some(bytes) = response.chunk().await.map_err(|error| in_words(&error))? {
            if body.len() + bytes.len() > ANSWER_BYTES_MAX {
                return Err("its list of models is over 4 MiB".into());
            }
            body.extend_from_slice(&bytes);
        }
        let models = discovered(&body, self.slots).ok_or_else(|| "it answered with no list of models".to_owned());
        models.map(|models| self.serving(models))
    }

    /// The models with what they serve by the operator's word.
    fn serving(&self, mut models: Vec<Capacity>) -> Vec<Capacity> {
        models.iter_mut().for_each(|capacity| capacity.kinds.clone_from(&self.endpoints));
        models
    }
}

/// A URL that paths can be put below.
fn base_url(text: &str) -> Result<Url, (&'static str, String)> {
    let url: Url = text.parse().map_err(|error| ("url", format!("{text}: {error}")))?;
    let fail = |why: &str| Err(("url", format!("{text}: {why}")));
    if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty) {
        return fail("neither http:// nor https:// with a host");
    }
    if !url.username().is_empty() || url.password().is_some() {
        return fail("holds a password; use key_env");
    }
    if url.query().is_some() || url.fragment().is_some() {
        return fail("has a query or a fragment");
    }
    Ok(url)
}

fn below(base: &Url, path: &str) -> Url {
    let mut url = base.clone();
    url.set_path(&format!("{}/{path}", base.path().trim_end_matches('/')));
    url
}

/// The innermost cause, which says more than the outer ones, and without the URL.
pub(crate) fn in_words(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    if std::ptr::addr_eq(cause, error as &dyn std::error::Error) && error.is_timeout() {
        return "no answer in time".into();
    }
    cause.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_checked_and_joined() {
        let cases = [
            ("http://127.0.0.1:8000/v1", Some("http://127.0.0.1:8000/v1/chat/completions")),
            ("http://127.0.0.1:8000/v1/", Some("http://127.0.0.1:8000/v1/chat/completions")),
            ("https://api.example.org", Some("https://api.example.org/chat/completions")),
            ("ftp://host/v1", None),
            ("file:///etc/passwd", None),
            ("http://user:secret@host/v1", None),
            ("http://host/v1?key=secret", None),
            ("host:8000/v1", None),
            ("", None),
        ];
        for (text, want) in cases {
            let got = base_url(text).ok().map(|base| below(&base, "chat/completions").to_string());
            assert_eq!(got.as_deref(), want, "{text}");
        }
    }

    #[test]
    fn a_missing_key_is_named() {
        let error = Upstream::new("http://localhost/v1", Some("SPILLWAY_TEST_UNSET"), Vec::new(), 1, vec![Kind::Chat])
            .expect_err("unset");
        assert_eq!(error, ("key_env", "the environment has no SPILLWAY_TEST_UNSET".into()));
    }
}
