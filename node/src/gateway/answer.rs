//! A job's events as an HTTP response: a stream of server-sent events, or one JSON object.
//! Invariant: a stream ends with `[DONE]` or with an error event; a plain response is what its stream would have come to.

use super::error::ApiError;
use super::job::AdmittedJob;
use crate::jobs::JobEvent;
use crate::metrics::Metrics;
use crate::openai::sse::{DONE, KEEP_ALIVE, frame};
use crate::openai::stitch::decimal;
use crate::openai::{Aggregate, Stitch};
use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use bytes::Bytes;
use serde::Serialize;
use spillway_ledger::{JobId, NodeId};
use spillway_protocol::{Outcome, Reason, Route};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

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
/// The cost in credits; on plain responses, and in `usage.cost` on both.
const COST: HeaderName = HeaderName::from_static("x-spillway-cost");

/// What of the response the client chose beside the request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wishes {
    /// Whether `usage.x_spillway` tells of each leg: the request header `x-spillway-detail: legs`.
    pub detail: bool,
}

/// `usage.x_spillway`
#[derive(Serialize)]
struct Detail {
    job: String,
    legs: Vec<LegDetail>,
    first_ms: Option<u64>,
    total_ms: u64,
}

#[derive(Serialize)]
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
struct Place {
    route: Route,
    provider: Option<NodeId>,
    reason: Reason,
}

impl Place {
    fn add_to(self, headers: &mut HeaderMap) {
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
    let response =
        if job.asked().stream { stream(job, wishes, waits, metrics).await } else { plain(job, wishes).await };
    let mut response = response.unwrap_or_else(IntoResponse::into_response);
    response.headers_mut().insert(JOB, text_value(&id.to_string()));
    response
}

fn stitch_for(job: &AdmittedJob) -> Stitch {
    let created_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Stitch::new(job.asked().kind, &format!("chatcmpl-{}", job.id()), created_s, &job.asked().model)
}

/// The market stopped, or this client read so slowly that it was cut off.
fn cut() -> ApiError {
    ApiError::new(502, "cut", "the job was cut off: its events were read too slowly, or the node is stopping")
}

async fn plain(mut job: AdmittedJob, wishes: Wishes) -> Result<Response<Body>, ApiError> {
    let mut stitch = stitch_for(&job);
    let mut whole = Aggregate::new(job.asked().kind);
    let mut begun_at: Option<Place> = None;
    let too_long =
        |error: crate::openai::aggregate::AnswerTooLong| ApiError::new(502, "answer_too_long", error.to_string());
    loop {
        match job.next().await.ok_or_else(cut)? {
            JobEvent::Placed { route, provider, reason, .. } => {
                stitch.leg().map_err(|error| ApiError::new(502, "cannot_continue", error.to_string()))?;
                begun_at.get_or_insert(Place { route, provider, reason });
            }
            JobEvent::Chunk(bytes) => {
                if let Some(event) = stitch.event(bytes) {
                    whole.push(&event).map_err(too_long)?;
                }
            }
            JobEvent::Ended(outcome) => {
                let finish = outcome.result.as_ref().map_err(ApiError::from)?;
                if let Some(event) = stitch.finish(finish) {
                    whole.push(&event).map_err(too_long)?;
                }
                let detail = wishes.detail.then(|| Detail::new(job.id(), &outcome));
                let mut response = Response::new(Body::from(whole.finish(stitch.usage(outcome.cost, detail.as_ref()))));
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
                headers.insert(COST, text_value(&decimal(outcome.cost)));
                if let Some(place) = begun_at {
                    place.add_to(headers);
                }
                return Ok(response);
            }
        }
    }
}

async fn stream(
    mut job: AdmittedJob,
    wishes: Wishes,
    waits: Waits,
    metrics: Arc<Metrics>,
) -> Result<Response<Body>, ApiError> {
    let mut stitch = stitch_for(&job);
    let mut ready = VecDeque::new();
    let mut begun_at = None;
    match tokio::time::timeout(waits.headers, job.next()).await {
        Ok(None) => return Err(cut()),
        Ok(Some(JobEvent::Ended(Outcome { result: Err(failure), .. }))) => return Err(ApiError::from(&failure)),
        Ok(Some(JobEvent::Placed { route, provider, reason, .. })) => {
            stitch.leg().map_err(|error| ApiError::new(502, "cannot_continue", error.to_string()))?;
            begun_at = Some(Place { route, provider, reason });
        }
        Ok(Some(event @ (JobEvent::Chunk(_) | JobEvent::Ended(_)))) => ready.push_back(event),
        Err(_) => {}
    }
    metrics.stream_begins();
    let streaming = Streaming {
        job,
        stitch,
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
    stitch: Stitch,
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
                if let Err(error) = self.stitch.leg() {
                    self.fail(&ApiError::new(502, "cannot_continue", error.to_string()));
                }
            }
            JobEvent::Chunk(bytes) => self.out.extend(self.stitch.event(bytes).map(|event| frame(&event))),
            JobEvent::Ended(outcome) => self.end(&outcome),
        }
    }

    fn end(&mut self, outcome: &Outcome) {
        let finish = match &outcome.result {
            Ok(finish) => finish,
            Err(failure) => return self.fail(&ApiError::from(failure)),
        };
        self.over = true;
        self.out.extend(self.stitch.finish(finish).map(|event| frame(&event)));
        if self.job.asked().include_usage || self.wishes.detail {
            let detail = self.wishes.detail.then(|| Detail::new(self.job.id(), outcome));
            let usage = self.stitch.usage(outcome.cost, detail.as_ref());
            self.out.push_back(frame(&self.stitch.usage_event(usage)));
        }
        self.out.push_back(Bytes::from_static(DONE));
    }

    fn fail(&mut self, error: &ApiError) {
        self.over = true;
        self.out.push_back(frame(&error.to_json()));
    }
}
