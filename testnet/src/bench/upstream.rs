//! An upstream that answers at once: the same chat for everyone, whole or as a stream, as it is asked; or, to who asks for it by
//! [`PACED`], a stream of frames in time that bear when they were sent.
//! Invariant: what it sends is known in advance but for those times, so that a client can tell a lost or changed frame.

use super::MODEL;
use anyhow::{Context, Result};
use bytes::Bytes;
use futures::stream::{self, StreamExt};
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::json;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::LazyLock;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

/// What a question holds that is to be answered by frames in time. Gateways drop fields; the question they pass on.
pub(super) const PACED: &str = "in paced frames";
/// Frames of one paced stream.
pub(super) const FRAMES: usize = 64;
/// From one frame to the next.
pub(super) const FRAME_EVERY: Duration = Duration::from_millis(20);
/// The text of a whole answer.
pub(super) const TEXT: &str = "Idle hardware earns, busy hardware spills over, and the books show who did the work. \
    This answer is the same every time, so that whoever asked can tell whether all of it came back unchanged.";
/// Largest request that is read, in bytes.
const REQUEST_BYTES_MAX: usize = 1 << 20;

/// What times in frames count from: this process' own clock, which the clients that read them share.
static EPOCH: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Microseconds since this process' epoch.
pub(super) fn now_us() -> u64 {
    u64::try_from(EPOCH.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// A running upstream; it ends with this value.
#[derive(Debug)]
pub(super) struct Upstream {
    address: SocketAddr,
    accepting: JoinHandle<()>,
}

impl Drop for Upstream {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

impl Upstream {
    pub(super) async fn start(listen: SocketAddr) -> Result<Self> {
        let listener = TcpListener::bind(listen).await.with_context(|| format!("cannot listen at {listen}"))?;
        let address = listener.local_addr().context("the upstream's address")?;
        let accepting = tokio::spawn(async move {
            loop {
                let Ok((socket, _)) = listener.accept().await else { continue };
                socket.set_nodelay(true).ok();
                tokio::spawn(async move {
                    // A client that leaves ends its connection, and that is all there is to it.
                    hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(socket), service_fn(answer))
                        .await
                        .ok();
                });
            }
        });
        Ok(Self { address, accepting })
    }

    pub(super) fn base_url(&self) -> String {
        format!("http://{}/v1", self.address)
    }
}

async fn answer(request: Request<Incoming>) -> Result<Response<Body>, Infallible> {
    let path = request.uri().path().to_owned();
    let limited = http_body_util::Limited::new(request.into_body(), REQUEST_BYTES_MAX);
    let Ok(body) = limited.collect().await else { return Ok(whole(StatusCode::BAD_REQUEST, "{}")) };
    Ok(match path.as_str() {
        "/v1/models" => whole(
            StatusCode::OK,
            &json!({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "bench"}]}).to_string(),
        ),
        "/v1/chat/completions" => {
            let body = body.to_bytes();
            let asked: serde_json::Value = serde_json::from_slice(&body).unwrap_or_default();
            let paced = memchr::memmem::find(&body, PACED.as_bytes()).is_some();
            match (asked["stream"] == true, paced) {
                (true, true) => frames(),
                (true, false) => at_once(),
                (false, _) => whole(StatusCode::OK, &WHOLE),
            }
        }
        _ => whole(StatusCode::NOT_FOUND, "{}"),
    })
}

static WHOLE: LazyLock<String> = LazyLock::new(|| {
    json!({
        "id": "chatcmpl-bench", "object": "chat.completion", "created": 1_764_000_000, "model": MODEL,
        "choices": [{
            "index": 0, "message": {"role": "assistant", "content": TEXT}, "logprobs": null, "finish_reason": "stop",
        }],
        "usage": {"prompt_tokens": 48, "completion_tokens": 40, "total_tokens": 88},
    })
    .to_string()
});

fn whole(status: StatusCode, body: &str) -> Response<Body> {
    let body = Full::new(Bytes::copy_from_slice(body.as_bytes())).boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("application/json"));
    response
}

/// The answer as a stream, a word in each event, as servers write a token in each.
fn at_once() -> Response<Body> {
    static EVENTS: LazyLock<Vec<Bytes>> = LazyLock::new(|| {
        let event = |delta: serde_json::Value, finish: Option<&str>| {
            json!({
                "id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_764_000_000, "model": MODEL,
                "choices": [{"index": 0, "delta": delta, "logprobs": null, "finish_reason": finish}],
            })
        };
        let mut events = vec![event(json!({"role": "assistant", "content": ""}), None)];
        events.extend(TEXT.split_inclusive(' ').map(|word| event(json!({"content": word}), None)));
        events.push(event(json!({}), Some("stop")));
        events.push(json!({
            "id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_764_000_000, "model": MODEL,
            "choices": [], "usage": {"prompt_tokens": 48, "completion_tokens": 40, "total_tokens": 88},
        }));
        let events = events.iter().map(|event| Bytes::from(format!("data: {event}\n\n")));
        events.chain([Bytes::from_static(b"data: [DONE]\n\n")]).collect()
    });
    let body = StreamBody::new(stream::iter(EVENTS.iter().cloned()).map(|bytes| Ok(Frame::data(bytes))));
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
    response
}

/// One frame: its number and the time it is sent, as text of the answer.
fn frame(number: usize) -> Bytes {
    let chunk = json!({
        "id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_764_000_000, "model": MODEL,
        "choices": [{"index": 0, "delta": {"content": format!("{number}@{} ", now_us())}, "finish_reason": null}],
    });
    Bytes::from(format!("data: {chunk}\n\n"))
}

fn frames() -> Response<Body> {
    let begun = tokio::time::Instant::now();
    let frames = stream::iter(0..FRAMES).then(move |number| async move {
        let at = begun + FRAME_EVERY * u32::try_from(number).unwrap_or(u32::MAX);
        tokio::time::sleep_until(at).await;
        frame(number)
    });
    let last = json!({
        "id": "chatcmpl-bench", "object": "chat.completion.chunk", "created": 1_764_000_000, "model": MODEL,
        "choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 48, "completion_tokens": FRAMES, "total_tokens": 48 + FRAMES},
    });
    let end = stream::once(async move { Bytes::from(format!("data: {last}\n\ndata: [DONE]\n\n")) });
    let body = StreamBody::new(frames.chain(end).map(|bytes| Ok(Frame::data(bytes))));
    let mut response = Response::new(body.boxed_unsync());
    response.headers_mut().insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/event-stream"));
    response
}
