//! What is recorded of one request, for the access log, the SIEM and traces.
//! Invariant: it has no secret in it, and nothing that a client wrote or got but a model's name, unless the access log asks for
//! content; content goes into the access log only.

use super::trace::Trace;
use crate::openai::Tokens;
use serde::Serialize;
use spillway_ledger::{Credits, JobId, NodeId, Usage};
use spillway_protocol::Kind;
use std::sync::Arc;
use std::time::SystemTime;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest body or answer that is kept as content, in bytes.
pub const CONTENT_BYTES_MAX: usize = 64 << 10;

/// Where a request came in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Door {
    /// Over HTTP.
    Http,
    /// Over the QUIC edge.
    Edge,
}

/// What a client wrote and got.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Content {
    /// The request's body, as it came.
    pub request: Vec<u8>,
    /// The answer's text.
    pub answer: Vec<u8>,
}

impl Content {
    /// Adds to a text, up to its bound.
    pub fn add(text: &mut Vec<u8>, bytes: &[u8]) {
        text.extend_from_slice(&bytes[..bytes.len().min(CONTENT_BYTES_MAX - text.len())]);
    }
}

/// One request, at its end.
#[derive(Clone, Debug)]
pub struct Access {
    /// When it came.
    pub time: SystemTime,
    /// Where it came in.
    pub door: Door,
    /// The job that it became, if it did.
    pub job: Option<JobId>,
    /// The key that asked, if it was known: eight hexadecimal digits, not the secret.
    pub key: Option<String>,
    /// The project of the key.
    pub project: Option<String>,
    /// The endpoint that was called.
    pub endpoint: Kind,
    /// The model that was asked for.
    pub model: Option<Arc<str>>,
    /// Whether as a stream.
    pub stream: bool,
    /// The HTTP status that it was answered with; 499 if the client left.
    pub status: u16,
    /// The error's code.
    pub code: Option<String>,
    /// Why the answer ended.
    pub finish: Option<String>,
    /// `own`, `network`, or `none`: where it began.
    pub route: &'static str,
    /// The provider, if it began at a stranger's.
    pub provider: Option<NodeId>,
    /// Why there, or why nowhere.
    pub reason: Option<&'static str>,
    /// The places that it was at.
    pub legs: usize,
    /// What its server reported.
    pub tokens: Option<Tokens>,
    /// What was billed for, all places together.
    pub units: Usage,
    /// What it cost.
    pub cost: Credits,
    /// From its coming to the first piece of the answer, in microseconds.
    pub first_us: Option<u64>,
    /// From its coming to its end, in microseconds.
    pub total_us: u64,
    /// Its place in a trace.
    pub trace: Option<Trace>,
    /// What the client wrote and got, if the access log asks for it.
    pub content: Option<Box<Content>>,
}

/// A line as it is written.
#[derive(Serialize)]
struct Line<'a> {
    record: &'static str,
    time: String,
    door: Door,
    job: Option<String>,
    key: Option<&'a str>,
    project: Option<&'a str>,
    endpoint: &'static str,
    model: Option<&'a str>,
    stream: bool,
    status: u16,
    code: Option<&'a str>,
    finish: Option<&'a str>,
    route: &'static str,
    provider: Option<String>,
    reason: Option<&'static str>,
    legs: usize,
    input_tokens: Option<u64>,
    cached_tokens: Option<u64>,
    output_tokens: Option<u64>,
    reasoning_tokens: Option<u64>,
    input_units: u64,
    cached_units: u64,
    output_units: u64,
    cost_micro: u64,
    first_ms: Option<f64>,
    total_ms: f64,
    trace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    answer: Option<String>,
}

/// A time as RFC 3339, in UTC; empty for one that no calendar has.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    OffsetDateTime::from(time).format(&Rfc3339).unwrap_or_default()
}

#[expect(clippy::cast_precision_loss, reason = "microseconds of a request are far below 2^52")]
fn ms(us: u64) -> f64 {
    us as f64 / 1e3
}

impl Access {
    /// The line, with its end, behind what `line` has; with the content only if it is wanted.
    pub fn write(&self, with_content: bool, line: &mut Vec<u8>) {
        let content = self.content.as_ref().filter(|_| with_content);
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let tokens = self.tokens.as_ref();
        let told = Line {
            record: "access",
            time: rfc3339(self.time),
            door: self.door,
            job: self.job.map(|job| job.to_string()),
            key: self.key.as_deref(),
            project: self.project.as_deref(),
            endpoint: self.endpoint.as_str(),
            model: self.model.as_deref(),
            stream: self.stream,
            status: self.status,
            code: self.code.as_deref(),
            finish: self.finish.as_deref(),
            route: self.route,
            provider: self.provider.map(|node| node.to_string()),
            reason: self.reason,
            legs: self.legs,
            input_tokens: tokens.map(|tokens| tokens.input),
            cached_tokens: tokens.map(|tokens| tokens.cached),
            output_tokens: tokens.map(|tokens| tokens.output),
            reasoning_tokens: tokens.map(|tokens| tokens.reasoning),
            input_units: self.units.input,
            cached_units: self.units.cached,
            output_units: self.units.output,
            cost_micro: self.cost.micro(),
            first_ms: self.first_us.map(ms),
            total_ms: ms(self.total_us),
            trace: self.trace.as_ref().map(|trace| hex::encode(trace.trace)),
            request: content.map(|content| text(&content.request)),
            answer: content.map(|content| text(&content.answer)),
        };
        serde_json::to_writer(&mut *line, &told).expect("text and numbers are JSON, and memory takes them");
        line.push(b'\n');
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A request that went well.
    pub(in crate::telemetry) fn access() -> Access {
        Access {
            time: SystemTime::UNIX_EPOCH + std::time::Duration::from_millis(1_782_896_400_250),
            door: Door::Http,
            job: Some(JobId([0xab; 16])),
            key: Some("0011aabb".into()),
            project: None,
            endpoint: Kind::Chat,
            model: Some("m".into()),
            stream: true,
            status: 200,
            code: None,
            finish: Some("stop".into()),
            route: "own",
            provider: None,
            reason: Some("own_free"),
            legs: 1,
            tokens: Some(Tokens { input: 9, cached: 4, output: 2, reasoning: 0 }),
            units: Usage { input: 40, cached: 0, output: 5 },
            cost: Credits::new(7),
            first_us: Some(1_250),
            total_us: 20_000,
            trace: Some(Trace::of(None, JobId([0xab; 16]), 1.0)),
            content: Some(Box::new(Content { request: b"SECRET PROMPT".to_vec(), answer: b"SECRET ANSWER".to_vec() })),
        }
    }

    #[test]
    fn a_line_has_no_content_unless_it_is_asked_for() {
        let mut line = Vec::new();
        access().write(false, &mut line);
        let told = String::from_utf8(line).expect("text");
        assert!(!told.contains("SECRET") && told.ends_with("}\n") && told.lines().count() == 1, "{told}");
        let told: serde_json::Value = serde_json::from_str(&told).expect("JSON");
        for (field, want) in [
            ("record", serde_json::json!("access")),
            ("time", "2026-07-01T09:00:00.25Z".into()),
            ("job", "ab".repeat(16).into()),
            ("key", "0011aabb".into()),
            ("project", serde_json::Value::Null),
            ("endpoint", "chat".into()),
            ("status", 200.into()),
            ("input_tokens", 9.into()),
            ("output_units", 5.into()),
            ("cost_micro", 7.into()),
            ("first_ms", 1.25.into()),
            ("total_ms", 20.0.into()),
            ("trace", "ab".repeat(16).into()),
        ] {
            assert_eq!(told[field], want, "{field}");
        }
        let mut line = Vec::new();
        access().write(true, &mut line);
        let told: serde_json::Value = serde_json::from_slice(&line).expect("JSON");
        assert_eq!((told["request"].as_str(), told["answer"].as_str()), (Some("SECRET PROMPT"), Some("SECRET ANSWER")));
        let mut text = vec![0; CONTENT_BYTES_MAX - 1];
        Content::add(&mut text, b"xyz");
        assert_eq!(text.len(), CONTENT_BYTES_MAX);
    }
}
