//! A job's events as an HTTP response: a stream of server-sent events, one JSON object, or bytes as they are.
//! Invariant: a stream ends with its form's own end or with an error event; a plain response is what its stream would have
//! come to.

use super::error::ApiError;
use super::job::AdmittedJob;
use super::voice::{Bill, Voice};
use super::whole::whole;
use crate::jobs::JobEvent;
use crate::metrics::Metrics;
use crate::openai::endpoint::{Answer, endpoint};
use crate::openai::sse::KEEP_ALIVE;
use crate::openai::stitch::{CannotContinue, decimal};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use bytes::Bytes;
use serde::Serialize;
use spillway_ledger::{JobId, NodeId};
use spillway_protocol::{Outcome, Reason, Route};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

/// How long a stream is silent before something is sent all the same.
#[derive(Clone, Copy, Debug)]
pub struct Waits {
    /// How long a stream's headers wait for the job to be placed, so that they can tell where, and so that a job that fails
    /// at once is answered with its own status.
    pub headers: Duration,
    /// How often a silent stream gets a comment, so that nothing between here and the client gives it up.
    pub keep_alive: Duration,
}

impl Default for Waits {
    fn default() -> Self {
        Self { headers: Duration::from_secs(5), keep_alive: Duration::from_secs(5) }
    }
}

/// The job, in hexadecimal.
const JOB: HeaderName = HeaderName::from_static("x-spillway-job");
/// `own` or `network`: where the job began.
const ROUTE: HeaderName = HeaderName::from_static("x-spillway-route");
/// Why there.
const REASON: HeaderName = HeaderName::from_static("x-spillway-reason");
/// The provider's node id, if it began at a stranger's.
const PROVIDER: HeaderName = HeaderName::from_static("x-spillway-provider");
/// What `usage.x_spillway` tells, where an answer has no `usage` of the gateway's.
const DETAIL: HeaderName = HeaderName::from_static("x-spillway-detail");
/// What the cache did for the answer, where the key has one: `hit`, `miss`, `refresh` or `bypass`.
const CACHE: HeaderName = HeaderName::from_static("x-spillway-cache");
/// The cost in credits; on plain responses, and in `usage.cost` on both.
const COST: HeaderName = HeaderName::from_static("x-spillway-cost");

/// What of the response the client chose beside the request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Whether `usage.x_spillway` tells of each leg: the request header `x-spillway-detail: legs`.
    pub detail: bool,
}

/// `usage.x_spillway`
#[derive(Debug, Serialize)]
pub(super) struct Detail {
    job: String,
    legs: Vec<LegDetail>,
    first_ms: Option<u64>,
    total_ms: u64,
}

#[derive(Debug, Serialize)]
struct LegDetail {
    route: &'static str,
    provider: Option<String>,
    reason: &'static str,
    input: u64,
    output: u64,
    cost_micro: u64,
}

impl Detail {
    fn new(job: JobId, outcome: &Outcome) -> Self {
        let leg = |leg: &spillway_protocol::Leg| LegDetail {
            route: leg.route.as_str(),
            provider: leg.provider.map(|node| node.to_string()),
            reason: leg.reason.as_str(),
            input: leg.usage.input,
            output: leg.usage.output,
            cost_micro: leg.cost.micro(),
        };
        Self {
            job: job.to_string(),
            legs: outcome.legs.iter().map(leg).collect(),
            first_ms: outcome.first_ms,
            total_ms: outcome.total_ms,
        }
    }
}

/// Where a job began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) route: Route,
    pub(super) provider: Option<NodeId>,
    pub(super) reason: Reason,
}

impl Place {
    pub(super) fn add_to(self, headers: &mut HeaderMap) {
        headers.insert(ROUTE, HeaderValue::from_static(self.route.as_str()));
        headers.insert(REASON, HeaderValue::from_static(self.reason.as_str()));
        if let Some(node) = self.provider {
            headers.insert(PROVIDER, text_value(&node.to_string()));
        }
    }
}

fn text_value(text: &str) -> HeaderValue {
    HeaderValue::from_str(text).expect("hexadecimal and decimal digits are header text")
}

/// The response to an admitted job.
pub async fn answer(job: AdmittedJob, wishes: Wishes, waits: Waits, metrics: Arc<Metrics>) -> Response<Body> {
    let id = job.id();
    let asked = job.asked().endpoint;
    let cache = job.cache();
    let response = match endpoint(job.asked().kind).answer {
        Answer::Whole(_) => whole(job, wishes, metrics).await,
        Answer::Choices(_) | Answer::Events(_) if job.asked().stream => stream(job, wishes, waits, metrics).await,
        Answer::Choices(_) | Answer::Events(_) => {
            let mut job = job;
            plain(&mut job, wishes).await.inspect_err(|error| job.fail(error))
        }
    };
    let mut response = response.unwrap_or_else(|error| error.into_response_of(asked));
    response.headers_mut().insert(JOB, text_value(&id.to_string()));
    if let Some(cache) = cache {
        response.headers_mut().insert(CACHE, HeaderValue::from_static(cache.as_str()));
    }
    response
}

/// The market stopped, or this client read so slowly that it was cut off.
pub(super) fn cut() -> ApiError {
    ApiError::new(502, "cut", "the job was cut off: its events were read too slowly, or the node is stopping")
}

/// What of a job is known at its end.
pub(super) fn job_headers(
    headers: &mut HeaderMap,
    job: JobId,
    place: Option<Place>,
    outcome: &Outcome,
    wishes: Wishes,
) {
    headers.insert(COST, text_value(&decimal(outcome.cost)));
    if let Some(place) = place {
        place.add_to(headers);
    }
    if wishes.detail {
        // Where the answer has no usage of ours to put it in.
        let detail = serde_json::to_string(&Detail::new(job, outcome)).expect("names and numbers");
        headers.insert(DETAIL, text_value(&detail));
    }
}

async fn plain(job: &mut AdmittedJob, wishes: Wishes) -> Result<Response<Body>, ApiError> {
    let mut voice = Voice::new(job);
    let mut begun_at: Option<Place> = None;
    loop {
        match job.next().await.ok_or_else(cut)? {
            JobEvent::Placed { route, provider, reason, .. } => {
                voice.leg().map_err(cannot_continue)?;
                begun_at.get_or_insert(Place { route, provider, reason });
            }
            JobEvent::Chunk(bytes) => voice.gather(bytes)?,
            JobEvent::Ended(outcome) => {
                let finish = outcome.result.as_ref().map_err(ApiError::from)?;
                let detail = wishes.detail.then(|| Detail::new(job.id(), &outcome));
                let bill = Bill { cost: outcome.cost, detail: detail.as_ref() };
                let mut response = Response::new(Body::from(voice.whole(finish, bill)?));
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                job_headers(headers, job.id(), begun_at, &outcome, Wishes::default());
                return Ok(response);
            }
        }
    }
}

fn cannot_continue(error: CannotContinue) -> ApiError {
    ApiError::new(502, "cannot_continue", error.to_string())
}

async fn stream(
    mut job: AdmittedJob,
    wishes: Wishes,
    waits: Waits,
    metrics: Arc<Metrics>,
) -> Result<Response<Body>, ApiError> {
    let mut voice = Voice::new(&job);
    let mut ready = VecDeque::new();
    let mut begun_at = None;
    match tokio::time::timeout(waits.headers, job.next()).await {
        Ok(None) => return Err(cut()),
        Ok(Some(JobEvent::Ended(Outcome { result: Err(failure), .. }))) => return Err(ApiError::from(&failure)),
        Ok(Some(JobEvent::Placed { route, provider, reason, .. })) => {
            voice.leg().map_err(cannot_continue).inspect_err(|error| job.fail(error))?;
            begun_at = Some(Place { route, provider, reason });
        }
        Ok(Some(event @ (JobEvent::Chunk(_) | JobEvent::Ended(_)))) => ready.push_back(event),
        Err(_) => {}
    }
    metrics.stream_begins();
    let streaming = Streaming {
        job,
        voice,
        wishes,
        ready,
        out: VecDeque::new(),
        over: false,
        keep_alive: waits.keep_alive,
        metrics,
    };
    let events = futures::stream::unfold(streaming, |mut streaming| async move {
        let bytes = streaming.next().await?;
        Some((Ok::<_, Infallible>(bytes), streaming))
    });
    let mut response = Response::new(Body::from_stream(events));
    *response.status_mut() = StatusCode::OK;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // For reverse proxies that would gather the events.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    if let Some(place) = begun_at {
        place.add_to(headers);
    }
    Ok(response)
}

/// A stream on its way to the client. Nothing is read ahead of what the client's connection takes.
struct Streaming {
    job: AdmittedJob,
    voice: Voice,
    wishes: Wishes,
    /// Events that came before the headers were sent; at most one.
    ready: VecDeque<JobEvent>,
    /// What is to be sent next; at most what one event gives.
    out: VecDeque<Bytes>,
    over: bool,
    keep_alive: Duration,
    metrics: Arc<Metrics>,
}

impl Drop for Streaming {
    fn drop(&mut self) {
        self.metrics.stream_ends();
    }
}

impl Streaming {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.out.pop_front() {
                return Some(bytes);
            }
            if self.over {
                return None;
            }
            if let Some(event) = self.ready.pop_front() {
                self.take(event);
                continue;
            }
            match tokio::time::timeout(self.keep_alive, self.job.next()).await {
                Err(_) => return Some(Bytes::from_static(KEEP_ALIVE)),
                Ok(Some(event)) => self.take(event),
                Ok(None) => self.fail(&cut()),
            }
        }
    }

    fn take(&mut self, event: JobEvent) {
        match event {
            JobEvent::Placed { .. } => {
                if let Err(error) = self.voice.leg() {
                    self.fail(&cannot_continue(error));
                }
            }
            JobEvent::Chunk(bytes) => self.voice.chunk(bytes, &mut self.out),
            JobEvent::Ended(outcome) => self.end(&outcome),
        }
    }

    fn end(&mut self, outcome: &Outcome) {
        let finish = match &outcome.result {
            Ok(finish) => finish,
            Err(failure) => return self.fail(&ApiError::from(failure)),
        };
        self.over = true;
        let detail = self.wishes.detail.then(|| Detail::new(self.job.id(), outcome));
        let bill = Bill { cost: outcome.cost, detail: detail.as_ref() };
        self.voice.end(finish, bill, &mut self.out);
    }

    fn fail(&mut self, error: &ApiError) {
        self.over = true;
        self.job.fail(error);
        self.out.push_back(self.voice.error(error));
    }
}
