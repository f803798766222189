//! An answer as a whole, such as a list of vectors or a recording: passed on byte for byte.
//! Invariant: what the client gets is the whole answer, or something that cannot be taken for it.

use super::answer::{Place, Wishes, cut, job_headers};
use super::error::ApiError;
use super::job::AdmittedJob;
use crate::jobs::JobEvent;
use crate::metrics::Metrics;
use crate::openai::aggregate::GATHERED_BYTES_MAX;
use crate::openai::parts::Part;
use crate::openai::sse::frame;
use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Response, header};
use bytes::Bytes;
use spillway_protocol::{Kind, Outcome};
use std::io;
use std::sync::Arc;

/// Whether the answer goes to the client while it comes: where it asked for a stream, and recordings, which play from their
/// beginning on.
fn is_relayed(job: &AdmittedJob) -> bool {
    job.asked().stream || job.asked().kind == Kind::Speech
}

/// The response.
pub(super) async fn whole(
    mut job: AdmittedJob,
    wishes: Wishes,
    metrics: Arc<Metrics>,
) -> Result<Response<Body>, ApiError> {
    match gathered(&mut job, wishes).await {
        Ok(Gathered::All(response)) => Ok(response),
        Ok(Gathered::Begun(place, kind)) => Ok(relayed(job, place, kind, metrics)),
        Err(error) => {
            job.fail(&error);
            Err(error)
        }
    }
}

/// An answer, or the beginning of one that is passed on while it comes.
enum Gathered {
    All(Response<Body>),
    Begun(Option<Place>, HeaderValue),
}

async fn gathered(job: &mut AdmittedJob, wishes: Wishes) -> Result<Gathered, ApiError> {
    let (mut place, mut head, mut bytes) = (None, None, Vec::new());
    loop {
        match job.next().await.ok_or_else(cut)? {
            JobEvent::Placed { route, provider, reason, .. } => {
                if head.is_some() {
                    return Err(broken());
                }
                place = Some(Place { route, provider, reason });
            }
            JobEvent::Chunk(part) => match Part::read(&part) {
                Some(Part::Head(kind)) if head.is_none() => {
                    let kind = content_type(kind);
                    if is_relayed(job) {
                        return Ok(Gathered::Begun(place, kind));
                    }
                    head = Some(kind);
                }
                Some(Part::Body(piece)) if head.is_some() => {
                    if bytes.len() + piece.len() > GATHERED_BYTES_MAX {
                        return Err(ApiError::new(502, "answer_too_long", "the answer is over 32 MiB"));
                    }
                    bytes.extend_from_slice(piece);
                }
                Some(Part::Head(_) | Part::Body(_)) | None => return Err(broken()),
            },
            JobEvent::Ended(outcome) => {
                complete(&outcome)?;
                let mut response = Response::new(Body::from(bytes));
                let headers = response.headers_mut();
                headers.insert(header::CONTENT_TYPE, head.ok_or_else(broken)?);
                headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
                job_headers(headers, job.id(), place, &outcome, wishes);
                return Ok(Gathered::All(response));
            }
        }
    }
}

/// Whether the outcome is that of a whole answer.
fn complete(outcome: &Outcome) -> Result<(), ApiError> {
    match &outcome.result {
        Ok(finish) if finish == "stop" => Ok(()),
        Ok(_) => Err(ApiError::new(502, "answer_too_long", "the answer reached the job's limit before its own end")),
        Err(failure) => Err(ApiError::from(failure)),
    }
}

fn broken() -> ApiError {
    ApiError::new(502, "upstream_error", "the answer broke off, or came in no order")
}

/// What the client is told the bytes are. They may be a stranger's: nothing that a browser would run.
fn content_type(kind: &str) -> HeaderValue {
    let essence = kind.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    let is_harmless = matches!(essence.as_str(), "application/json" | "text/plain" | "text/event-stream" | "text/vtt")
        || essence.starts_with("audio/")
        || (essence.starts_with("image/") && essence != "image/svg+xml");
    let harmless = HeaderValue::from_str(kind).ok().filter(|_| is_harmless);
    harmless.unwrap_or_else(|| HeaderValue::from_static("application/octet-stream"))
}

fn relayed(job: AdmittedJob, place: Option<Place>, kind: HeaderValue, metrics: Arc<Metrics>) -> Response<Body> {
    metrics.stream_begins();
    let is_events = kind.as_bytes().starts_with(b"text/event-stream");
    let relay = Relay { job, is_events, over: false, metrics };
    let parts = futures::stream::unfold(relay, |mut relay| async move {
        let bytes = relay.next().await?;
        Some((bytes, relay))
    });
    let mut response = Response::new(Body::from_stream(parts));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, kind);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    if let Some(place) = place {
        place.add_to(headers);
    }
    response
}

/// An answer on its way. Nothing is read ahead of what the client's connection takes.
struct Relay {
    job: AdmittedJob,
    is_events: bool,
    over: bool,
    metrics: Arc<Metrics>,
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.metrics.stream_ends();
    }
}

impl Relay {
    async fn next(&mut self) -> Option<Result<Bytes, io::Error>> {
        while !self.over {
            match self.job.next().await {
                Some(JobEvent::Chunk(part)) => match Part::read(&part) {
                    Some(Part::Body([])) => {}
                    Some(Part::Body(bytes)) => return Some(Ok(Bytes::copy_from_slice(bytes))),
                    Some(Part::Head(_)) | None => return Some(self.fail(&broken())),
                },
                Some(JobEvent::Placed { .. }) => return Some(self.fail(&broken())),
                Some(JobEvent::Ended(outcome)) => {
                    self.over = true;
                    if let Err(error) = complete(&outcome) {
                        return Some(self.fail(&error));
                    }
                }
                None => return Some(self.fail(&cut())),
            }
        }
        None
    }

    /// A stream of events ends with an error's; other bytes break off, so that they are not taken for all.
    fn fail(&mut self, error: &ApiError) -> Result<Bytes, io::Error> {
        self.over = true;
        self.job.fail(error);
        if self.is_events { Ok(frame(&error.to_json())) } else { Err(io::Error::other(error.to_string())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_browser_would_run_is_passed_on_as_such() {
        for (kind, want) in [
            ("application/json; charset=utf-8", "application/json; charset=utf-8"),
            ("audio/mpeg", "audio/mpeg"),
            ("image/png", "image/png"),
            ("text/event-stream", "text/event-stream"),
            ("text/html", "application/octet-stream"),
            ("image/svg+xml", "application/octet-stream"),
            ("application/javascript", "application/octet-stream"),
            ("", "application/octet-stream"),
        ] {
            assert_eq!(content_type(kind), want, "{kind}");
        }
    }
}
