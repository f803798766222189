//! Talks to a node's OpenAI API with a key.
//! Invariant: every call ends in bounded time and memory, and an error names the node's own words.

use anyhow::{Context, Result, bail};
use futures::StreamExt;
use futures::stream::BoxStream;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::time::Duration;

/// How long one call may take, streams included.
const CALL_WAIT: Duration = Duration::from_secs(120);
/// How long a connection to a node on this machine may take.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// Longest line of a stream, in bytes; a longer one is no answer of a node.
const LINE_BYTES_MAX: usize = 1 << 20;

/// An HTTP client for nodes.
pub(crate) fn http() -> Result<reqwest::Client> {
    // Nodes are on this machine or named by the user: no proxy is wanted between.
    reqwest::Client::builder()
        .no_proxy()
        .connect_timeout(CONNECT_WAIT)
        .timeout(CALL_WAIT)
        .build()
        .context("cannot make an HTTP client")
}

/// The response, or the error that its body tells of.
pub(crate) async fn checked(response: reqwest::Response) -> Result<reqwest::Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let text = response.text().await.unwrap_or_default();
    let told = serde_json::from_str::<Value>(&text).ok().and_then(|body| {
        let error = body.get("error")?;
        let message = error.get("message")?.as_str()?.to_owned();
        Some(match error.get("code").and_then(Value::as_str) {
            Some(code) => format!("{message} ({code})"),
            None => message,
        })
    });
    bail!("{status}: {}", told.unwrap_or(text))
}

/// A client of the OpenAI API of one node.
#[derive(Clone, Debug)]
pub struct OpenAi {
    http: reqwest::Client,
    base_url: String,
    key: String,
}

/// What a node says of a job in its answer's headers.
#[derive(Clone, Debug)]
pub struct Placement {
    /// The job's id, in hex.
    pub job: String,
    /// `own` or `network`.
    pub route: String,
    /// Why there, as a code.
    pub reason: String,
    /// The provider's key in hex, if not own.
    pub provider: Option<String>,
}

/// A streamed answer under way. Dropping it leaves the job.
pub struct ChatStream {
    /// Where it runs.
    pub placement: Placement,
    bytes: BoxStream<'static, reqwest::Result<Vec<u8>>>,
    buffer: Vec<u8>,
    finish: Option<String>,
}

/// A whole answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// Where it began.
    pub placement: Placement,
    /// The text.
    pub text: String,
    /// Why it ended.
    pub finish: String,
}

impl OpenAi {
    /// A client with a base URL that ends in `/v1`, and a key.
    ///
    /// # Errors
    /// If the system gives no HTTP client.
    pub fn new(base_url: &str, key: &str) -> Result<Self> {
        Ok(Self { http: http()?, base_url: base_url.trim_end_matches('/').into(), key: key.into() })
    }

    /// Sends any body to `/chat/completions` and gives the response as it is, errors included.
    ///
    /// # Errors
    /// If the node does not answer.
    pub async fn post(&self, body: &Value) -> Result<reqwest::Response> {
        self.http
            .post(format!("{}/chat/completions", self.base_url))
            .bearer_auth(&self.key)
            .header("content-type", "application/json")
            .body(body.to_string())
            .send()
            .await
            .with_context(|| format!("no answer from {}", self.base_url))
    }

    /// Asks one question, streamed, at temperature 0.
    ///
    /// # Errors
    /// If the node does not answer or refuses; its words are in the error.
    pub async fn ask(&self, model: &str, question: &str) -> Result<ChatStream> {
        let body = json!({
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "stream": true,
        });
        self.stream(&body).await
    }

    /// Sends a body with `"stream": true`.
    ///
    /// # Errors
    /// As [`OpenAi::ask`].
    pub async fn stream(&self, body: &Value) -> Result<ChatStream> {
        let response = checked(self.post(body).await?).await?;
        let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let placement = Placement {
            job: header("x-spillway-job").context("the answer has no x-spillway-job header")?,
            route: header("x-spillway-route").context("the answer has no x-spillway-route header")?,
            reason: header("x-spillway-reason").context("the answer has no x-spillway-reason header")?,
            provider: header("x-spillway-provider"),
        };
        let bytes = response.bytes_stream().map(|chunk| chunk.map(|bytes| bytes.to_vec())).boxed();
        Ok(ChatStream { placement, bytes, buffer: Vec::new(), finish: None })
    }

    /// All that the node knows of a job.
    ///
    /// # Errors
    /// If the node does not answer, or knows no such job.
    pub async fn generation(&self, job: &str) -> Result<Value> {
        let origin = self.base_url.trim_end_matches("/v1");
        let response = self
            .http
            .get(format!("{origin}/api/v1/generation?id={job}"))
            .bearer_auth(&self.key)
            .send()
            .await
            .with_context(|| format!("no answer from {origin}"))?;
        let body: Value = decoded(checked(response).await?).await?;
        Ok(match body.pointer("/data/x_spillway") {
            Some(told) => told.clone(),
            None => body,
        })
    }
}

impl ChatStream {
    /// The next data event as JSON; `None` after `[DONE]`.
    ///
    /// # Errors
    /// If the stream breaks off, carries an error event, or something that is no event.
    pub async fn event(&mut self) -> Result<Option<Value>> {
        loop {
            while let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=end).collect();
                let line = String::from_utf8(line).context("a line of the stream is not UTF-8")?;
                // Comments keep the connection alive; blank lines end an event.
                let Some(data) = line.trim_end().strip_prefix("data:") else { continue };
                let data = data.trim_start();
                if data == "[DONE]" {
                    return Ok(None);
                }
                let event: Value = serde_json::from_str(data).with_context(|| format!("not a JSON event: {data}"))?;
                if let Some(error) = event.get("error") {
                    let message = error.get("message").and_then(Value::as_str).unwrap_or("no message");
                    bail!("the stream ended with an error: {message}");
                }
                return Ok(Some(event));
            }
            if self.buffer.len() > LINE_BYTES_MAX {
                bail!("a line of the stream is longer than {LINE_BYTES_MAX} bytes");
            }
            match self.bytes.next().await {
                Some(bytes) => self.buffer.extend_from_slice(&bytes.context("the stream broke off")?),
                None => bail!("the stream ended without [DONE]"),
            }
        }
    }

    /// The next piece of text; `None` at the proper end.
    ///
    /// # Errors
    /// As [`ChatStream::event`].
    pub async fn text(&mut self) -> Result<Option<String>> {
        while let Some(event) = self.event().await? {
            let Some(choice) = event.pointer("/choices/0") else { continue };
            if let Some(finish) = choice.get("finish_reason").and_then(Value::as_str) {
                self.finish = Some(finish.into());
            }
            match choice.pointer("/delta/content").and_then(Value::as_str) {
                Some(text) if !text.is_empty() => return Ok(Some(text.into())),
                Some(_) | None => {}
            }
        }
        Ok(None)
    }

    /// The whole answer, after its end was read: `text` is all of it.
    ///
    /// # Errors
    /// If it has no finish reason.
    pub fn finish_now(self, text: String) -> Result<Answer> {
        let finish = self.finish.context("the answer has no finish_reason")?;
        Ok(Answer { placement: self.placement, text, finish })
    }

    /// Reads to the end, after `text` that was read before.
    ///
    /// # Errors
    /// As [`ChatStream::event`], and an end without a finish reason.
    pub async fn finish(mut self, mut text: String) -> Result<Answer> {
        while let Some(more) = self.text().await? {
            text.push_str(&more);
        }
        self.finish_now(text)
    }
}

/// A response as JSON.
pub(crate) async fn decoded<T: DeserializeOwned>(response: reqwest::Response) -> Result<T> {
    let url = response.url().clone();
    let text = response.text().await.with_context(|| format!("{url} broke off"))?;
    serde_json::from_str(&text).with_context(|| format!("{url} answered something unexpected: {text}"))
}
