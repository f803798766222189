//! Clients of a gateway, each with a connection of its own that it keeps, and what they saw.
//! Invariant: only answers that are the upstream's count in times; every other one counts as failed.

use super::upstream::{FRAMES, PACED, TEXT, now_us};
use super::{Gateway, MODEL};
use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;
use hdrhistogram::Histogram;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode, Uri, header};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use std::time::{Duration, Instant};
use tokio::net::TcpStream;

/// How long one request may take before it counts as failed.
const REQUEST_WAIT: Duration = Duration::from_secs(30);
/// The longest time that is told apart, in microseconds.
const LONGEST_US: u64 = 60_000_000;

/// Requests of one load.
#[derive(Clone, Debug)]
pub(super) struct Calls {
    /// From the first byte sent to the last received, in microseconds.
    pub(super) took: Histogram<u64>,
    /// Requests that gave something else than the upstream's answer.
    pub(super) failed: u64,
    /// How long the load lasted.
    pub(super) lasted: Duration,
    /// CPU time that the gateway took meanwhile, where its process is known.
    pub(super) cpu: Option<Duration>,
}

/// Streams of one load.
#[derive(Clone, Debug)]
pub(super) struct Frames {
    /// From the request to the first frame, in microseconds.
    pub(super) first: Histogram<u64>,
    /// From the upstream's sending of a frame to its arrival, in microseconds; first frames are not in it.
    pub(super) delay: Histogram<u64>,
    /// How much longer or shorter the time between two frames was at its end than at its beginning, in microseconds.
    pub(super) jitter: Histogram<u64>,
    /// Streams with every frame, once, in order, and a proper end.
    pub(super) intact: u64,
    /// Streams that were asked for.
    pub(super) asked: u64,
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LONGEST_US, 3).expect("bounds and digits are in the crate's range")
}

/// One client's connection; made anew when the gateway closed it.
struct Client<'a> {
    gateway: &'a Gateway,
    uri: Uri,
    sender: Option<SendRequest<Full<Bytes>>>,
}

impl<'a> Client<'a> {
    fn new(gateway: &'a Gateway) -> Result<Self> {
        let url = format!("{}/chat/completions", gateway.base_url.trim_end_matches('/'));
        let uri: Uri = url.parse().with_context(|| format!("base_url of {}: {url}", gateway.name))?;
        ensure!(uri.scheme_str() == Some("http"), "base_url of {}: {url} is no http URL", gateway.name);
        Ok(Self { gateway, uri, sender: None })
    }

    async fn connected(&mut self) -> Result<&mut SendRequest<Full<Bytes>>> {
        let open = match self.sender.take() {
            Some(mut sender) => sender.ready().await.is_ok().then_some(sender),
            None => None,
        };
        let sender = match open {
            Some(sender) => sender,
            None => {
                let authority = self.uri.authority().context("base_url has no host")?;
                let port = authority.port_u16().unwrap_or(80);
                let socket = TcpStream::connect((authority.host(), port)).await.context("cannot connect")?;
                socket.set_nodelay(true).context("cannot set TCP_NODELAY")?;
                let (sender, connection) = handshake(TokioIo::new(socket)).await.context("no HTTP connection")?;
                tokio::spawn(connection);
                sender
            }
        };
        Ok(self.sender.insert(sender))
    }

    async fn ask(&mut self, body: &Bytes) -> Result<Response<Incoming>> {
        let mut request = Request::post(self.uri.path())
            .header(header::HOST, self.uri.authority().map_or("", |authority| authority.as_str()))
            .header(header::CONTENT_TYPE, "application/json");
        for (name, value) in &self.gateway.headers {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body.clone())).context("headers of a gateway")?;
        let response = self.connected().await?.send_request(request).await.context("no answer")?;
        if response.status() != StatusCode::OK {
            let status = response.status();
            let text = response.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            bail!("{status}: {}", String::from_utf8_lossy(&text[..text.len().min(300)]));
        }
        Ok(response)
    }

    /// One whole answer.
    async fn call(&mut self, body: &Bytes) -> Result<()> {
        let answer = self.ask(body).await?.into_body().collect().await.context("the answer broke off")?.to_bytes();
        let answer: Value = serde_json::from_slice(&answer).context("the answer is no JSON")?;
        let text = answer.pointer("/choices/0/message/content").and_then(Value::as_str);
        ensure!(text == Some(TEXT), "another answer than the upstream's: {text:?}");
        Ok(())
    }

    /// One stream; its frames' numbers, when each was sent and when it came, and when it was asked for, in microseconds.
    async fn stream(&mut self, body: &Bytes) -> Result<(u64, Vec<(usize, u64, u64)>)> {
        let asked = now_us();
        let mut incoming = self.ask(body).await?.into_body();
        let (mut buffer, mut frames, mut done) = (Vec::new(), Vec::with_capacity(FRAMES), false);
        while let Some(part) = incoming.frame().await {
            let came = now_us();
            let Ok(data) = part.context("the stream broke off")?.into_data() else { continue };
            buffer.extend_from_slice(&data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = buffer.drain(..=end).collect();
                let Some(data) = line.strip_prefix(b"data:").map(<[u8]>::trim_ascii) else { continue };
                if data == b"[DONE]" {
                    done = true;
                    continue;
                }
                let event: Value = serde_json::from_slice(data).context("an event is no JSON")?;
                let text = event.pointer("/choices/0/delta/content").and_then(Value::as_str).unwrap_or_default();
                for word in text.split_whitespace() {
                    let (number, sent) = word.split_once('@').context("a frame is not the upstream's")?;
                    frames.push((number.parse().context("a frame's number")?, sent.parse().context("its time")?, came));
                }
            }
        }
        ensure!(done, "the stream ended without [DONE]");
        Ok((asked, frames))
    }
}

fn body(stream: bool) -> Bytes {
    let mut body = json!({
        "model": MODEL,
        "messages": [
            {"role": "system", "content": "You answer briefly, and say so where you do not know."},
            {"role": "user", "content": "A node has four slots and five jobs. Which of them goes to a stranger, and what is paid for it?"},
        ],
        "temperature": 0.2,
        "max_tokens": 256,
        "user": "bench",
    });
    if stream {
        body["stream"] = true.into();
        body["messages"][1]["content"] = format!("Say how a market works, {PACED}.").into();
    }
    Bytes::from(body.to_string())
}

/// One request, to see whether the gateway serves.
pub(super) async fn once(gateway: &Gateway) -> Result<()> {
    let mut client = Client::new(gateway)?;
    tokio::time::timeout(REQUEST_WAIT, client.call(&body(false))).await.context("no answer in time")?
}

/// `clients` clients that ask without a pause for `period`.
pub(super) async fn calls(gateway: &Gateway, clients: usize, period: Duration) -> Result<Calls> {
    let body = body(false);
    let begun = Instant::now();
    let one = || async {
        let mut client = Client::new(gateway)?;
        let (mut took, mut failed) = (histogram(), 0);
        while begun.elapsed() < period {
            let asked = Instant::now();
            match tokio::time::timeout(REQUEST_WAIT, client.call(&body)).await {
                Ok(Ok(())) => took.saturating_record(micros(asked.elapsed())),
                Ok(Err(_)) | Err(_) => {
                    failed += 1;
                    client = Client::new(gateway)?;
                }
            }
        }
        anyhow::Ok((took, failed))
    };
    let mut all = Calls { took: histogram(), failed: 0, lasted: Duration::ZERO, cpu: None };
    for (took, failed) in futures::future::try_join_all((0..clients).map(|_| one())).await? {
        all.took.add(took).context("histograms of one shape")?;
        all.failed += failed;
    }
    all.lasted = begun.elapsed();
    Ok(all)
}

/// `count` streams at once.
pub(super) async fn streams(gateway: &Gateway, count: usize) -> Result<Frames> {
    let body = body(true);
    let one = |_| async {
        let mut client = Client::new(gateway)?;
        anyhow::Ok(tokio::time::timeout(REQUEST_WAIT, client.stream(&body)).await)
    };
    let ended = futures::future::try_join_all((0..count).map(one)).await?;
    let mut all =
        Frames { first: histogram(), delay: histogram(), jitter: histogram(), intact: 0, asked: count as u64 };
    for end in ended {
        let Ok(Ok((asked, frames))) = end else { continue };
        if frames.len() != FRAMES || frames.iter().enumerate().any(|(at, (number, ..))| at != *number) {
            continue;
        }
        all.intact += 1;
        all.first.saturating_record(frames[0].2.saturating_sub(asked).max(1));
        for pair in frames.windows(2) {
            let ((_, sent_before, came_before), (_, sent, came)) = (pair[0], pair[1]);
            all.delay.saturating_record(came.saturating_sub(sent).max(1));
            all.jitter.saturating_record((came - came_before).abs_diff(sent - sent_before).max(1));
        }
    }
    Ok(all)
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}
