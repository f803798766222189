//! Requests, counts and actions as OTLP's messages, by the semantic conventions for generative AI.
//! Invariant: no content and no secret is in any of them.
//! Source: OpenTelemetry, "Semantic conventions for generative AI": spans and metrics, as of 1.41.

use crate::audit::AuditRecord;
use crate::metrics::histogram::{Histogram, Snapshot};
use crate::metrics::{Cells, Metrics, Series, Status};
use crate::telemetry::access::Access;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs, SeverityNumber};
use opentelemetry_proto::tonic::metrics::v1::metric::Data;
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Histogram as HistogramData, HistogramDataPoint, Metric, ResourceMetrics, ScopeMetrics,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use opentelemetry_proto::tonic::trace::v1::status::StatusCode;
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span, Status as SpanStatus};
use spillway_protocol::Kind;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

/// What `gen_ai.provider.name` says: the place that answers for the model, whoever's hardware it ran on.
const PROVIDER: &str = "spillway";
/// The flags of a span whose parent was called over a network, with the trace's own.
const REMOTE_PARENT: u32 = 0x300;

/// What this node says of itself.
#[derive(Debug)]
pub struct Origin {
    /// `service.name`
    pub service: String,
    /// `service.instance.id`: the node's id.
    pub instance: String,
    /// Where the gateway listens, once it does.
    pub server: OnceLock<std::net::SocketAddr>,
}

impl Origin {
    fn resource(&self) -> Option<Resource> {
        let attributes = vec![
            text("service.name", &self.service),
            text("service.version", env!("CARGO_PKG_VERSION")),
            text("service.instance.id", &self.instance),
        ];
        Some(Resource { attributes, ..Resource::default() })
    }

    fn server(&self) -> Vec<KeyValue> {
        let told = |address: &std::net::SocketAddr| {
            vec![text("server.address", &address.ip().to_string()), number("server.port", u64::from(address.port()))]
        };
        self.server.get().map(told).unwrap_or_default()
    }
}

fn scope() -> Option<InstrumentationScope> {
    let (name, version) = ("spillway".to_owned(), env!("CARGO_PKG_VERSION").to_owned());
    Some(InstrumentationScope { name, version, ..InstrumentationScope::default() })
}

fn any(value: Value) -> Option<AnyValue> {
    Some(AnyValue { value: Some(value) })
}

fn pair(key: &str, value: Value) -> KeyValue {
    KeyValue { key: key.to_owned(), value: any(value), ..KeyValue::default() }
}

fn text(key: &str, value: &str) -> KeyValue {
    pair(key, Value::StringValue(value.to_owned()))
}

fn number(key: &str, value: u64) -> KeyValue {
    pair(key, Value::IntValue(i64::try_from(value).unwrap_or(i64::MAX)))
}

fn float(key: &str, value: f64) -> KeyValue {
    pair(key, Value::DoubleValue(value))
}

fn nanos(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

/// `gen_ai.operation.name`: the conventions' word where there is one, else the endpoint's own.
#[must_use]
pub const fn operation(kind: Kind) -> &'static str {
    match kind {
        Kind::Chat | Kind::Response | Kind::Message => "chat",
        Kind::Completion => "text_completion",
        Kind::Embedding => "embeddings",
        Kind::Rerank => "rerank",
        Kind::Image | Kind::Speech => "generate_content",
        Kind::Transcription => "transcription",
        Kind::Moderation => "moderation",
    }
}

fn seconds(micros: u64) -> f64 {
    crate::metrics::series::seconds(micros)
}

/// What is told of a request as attributes, of a span or of a record.
fn attributes(origin: &Origin, access: &Access) -> Vec<KeyValue> {
    let mut told = vec![
        text("gen_ai.operation.name", operation(access.endpoint)),
        text("gen_ai.provider.name", PROVIDER),
        number("http.response.status_code", u64::from(access.status)),
        text("spillway.endpoint", access.endpoint.as_str()),
        text("spillway.route", access.route),
        number("spillway.legs", access.legs as u64),
        pair("spillway.stream", Value::BoolValue(access.stream)),
        number("spillway.usage.input_units", access.units.input),
        number("spillway.usage.output_units", access.units.output),
        number("spillway.cost_micro", access.cost.micro()),
    ];
    told.extend(origin.server());
    if let Some(model) = &access.model {
        told.push(text("gen_ai.request.model", model));
    }
    if let Some(job) = access.job {
        told.push(text("gen_ai.response.id", &job.to_string()));
    }
    if let Some(finish) = &access.finish {
        let reason = AnyValue { value: Some(Value::StringValue(finish.clone())) };
        told.push(pair("gen_ai.response.finish_reasons", Value::ArrayValue(ArrayValue { values: vec![reason] })));
        if let Some(model) = &access.model {
            told.push(text("gen_ai.response.model", model));
        }
    }
    if let Some(tokens) = &access.tokens {
        told.push(number("gen_ai.usage.input_tokens", tokens.input));
        told.push(number("gen_ai.usage.output_tokens", tokens.output));
        told.push(number("gen_ai.usage.cache_read.input_tokens", tokens.cached));
        told.push(number("gen_ai.usage.reasoning.output_tokens", tokens.reasoning));
    }
    if let Some(first) = access.first_us.filter(|_| access.stream) {
        told.push(float("gen_ai.response.time_to_first_chunk", seconds(first)));
    }
    for (key, value) in [
        ("spillway.key", access.key.as_deref()),
        ("spillway.project", access.project.as_deref()),
        ("spillway.reason", access.reason),
        ("error.type", access.code.as_deref()),
    ] {
        told.extend(value.map(|value| text(key, value)));
    }
    told.extend(access.provider.map(|node| text("spillway.provider", &node.to_string())));
    told
}

/// A span for each request that is traced.
#[must_use]
pub fn traces(origin: &Origin, records: &[Arc<Access>]) -> ExportTraceServiceRequest {
    let spans = records.iter().filter_map(|access| span(origin, access)).collect();
    let scope_spans = vec![ScopeSpans { scope: scope(), spans, ..ScopeSpans::default() }];
    let spans = ResourceSpans { resource: origin.resource(), scope_spans, ..ResourceSpans::default() };
    ExportTraceServiceRequest { resource_spans: vec![spans] }
}

fn span(origin: &Origin, access: &Access) -> Option<Span> {
    let trace = access.trace.as_ref()?;
    let name = match &access.model {
        Some(model) => format!("{} {model}", operation(access.endpoint)),
        None => operation(access.endpoint).to_owned(),
    };
    // By the conventions for HTTP servers, a client's mistake is no error of the server's span.
    let status = (access.status >= 500)
        .then(|| SpanStatus { message: access.code.clone().unwrap_or_default(), code: StatusCode::Error.into() });
    Some(Span {
        trace_id: trace.trace.to_vec(),
        span_id: trace.span.to_vec(),
        parent_span_id: trace.parent.map(|parent| parent.to_vec()).unwrap_or_default(),
        trace_state: trace.state.clone().unwrap_or_default(),
        flags: u32::from(trace.sampled) | if trace.parent.is_some() { REMOTE_PARENT } else { 0 },
        name,
        kind: SpanKind::Server.into(),
        start_time_unix_nano: nanos(access.time),
        end_time_unix_nano: nanos(access.time + Duration::from_micros(access.total_us)),
        attributes: attributes(origin, access),
        status,
        ..Span::default()
    })
}

fn logs(origin: &Origin, log_records: Vec<LogRecord>) -> ExportLogsServiceRequest {
    let scope_logs = vec![ScopeLogs { scope: scope(), log_records, ..ScopeLogs::default() }];
    let logs = ResourceLogs { resource: origin.resource(), scope_logs, ..ResourceLogs::default() };
    ExportLogsServiceRequest { resource_logs: vec![logs] }
}

/// A record for each request.
#[must_use]
pub fn access_logs(origin: &Origin, records: &[Arc<Access>]) -> ExportLogsServiceRequest {
    let record = |access: &Arc<Access>| {
        let severity = match access.status {
            500.. => SeverityNumber::Error,
            400.. => SeverityNumber::Warn,
            _ => SeverityNumber::Info,
        };
        let trace = access.trace.as_ref();
        let end = nanos(access.time + Duration::from_micros(access.total_us));
        let mut attributes = attributes(origin, access);
        attributes.push(float("spillway.duration", seconds(access.total_us)));
        LogRecord {
            time_unix_nano: end,
            observed_time_unix_nano: end,
            severity_number: severity.into(),
            body: any(Value::StringValue("request".into())),
            attributes,
            trace_id: trace.map(|trace| trace.trace.to_vec()).unwrap_or_default(),
            span_id: trace.map(|trace| trace.span.to_vec()).unwrap_or_default(),
            event_name: "spillway.request".into(),
            ..LogRecord::default()
        }
    };
    logs(origin, records.iter().map(record).collect())
}

/// A record for each of the operator's actions; its body is the line of the audit log, byte for byte, so that the chain can be
/// checked where it arrives.
#[must_use]
pub fn audit_logs(origin: &Origin, lines: &[String]) -> ExportLogsServiceRequest {
    let record = |line: &String| {
        let mut attributes = Vec::new();
        let mut time = 0;
        if let Ok(record) = serde_json::from_str::<AuditRecord>(line) {
            time = record.time_ms.saturating_mul(1_000_000);
            attributes = vec![
                number("spillway.audit.seq", record.seq),
                text("spillway.audit.action", &record.action),
                text("spillway.audit.what", &record.what),
                text("spillway.audit.result", &record.result),
                text("spillway.audit.who", record.who.from.as_deref().unwrap_or(&record.who.with)),
            ];
        }
        LogRecord {
            time_unix_nano: time,
            observed_time_unix_nano: time,
            severity_number: SeverityNumber::Info.into(),
            body: any(Value::StringValue(line.clone())),
            attributes,
            event_name: "spillway.audit".into(),
            ..LogRecord::default()
        }
    };
    logs(origin, lines.iter().map(record).collect())
}

/// A metric in the making: its name, unit and description, how many of what is counted are one unit, and its points.
struct Instrument {
    name: &'static str,
    unit: &'static str,
    description: &'static str,
    per_unit: f64,
    points: Vec<HistogramDataPoint>,
}

impl Instrument {
    fn new(name: &'static str, description: &'static str) -> Self {
        Self { name, unit: "s", description, per_unit: 1e6, points: Vec::new() }
    }

    fn metric(self) -> Metric {
        let temporality = AggregationTemporality::Cumulative.into();
        let data = HistogramData { data_points: self.points, aggregation_temporality: temporality };
        Metric {
            name: self.name.into(),
            description: self.description.into(),
            unit: self.unit.into(),
            data: Some(Data::Histogram(data)),
            ..Metric::default()
        }
    }
}

/// All that is counted of requests, since the node began to count.
#[must_use]
pub fn metrics(origin: &Origin, counts: &Metrics) -> ExportMetricsServiceRequest {
    let (start, now) = (nanos(counts.since()), nanos(SystemTime::now()));
    let mut tokens = Instrument::new("gen_ai.client.token.usage", "Number of input and output tokens used.");
    (tokens.unit, tokens.per_unit) = ("{token}", 1.0);
    let mut duration = Instrument::new("gen_ai.client.operation.duration", "GenAI operation duration.");
    let mut request = Instrument::new("gen_ai.server.request.duration", "Time to the last byte of an answer.");
    let mut chunk = Instrument::new("gen_ai.client.operation.time_to_first_chunk", "Time to the first chunk.");
    let mut first = Instrument::new("gen_ai.server.time_to_first_token", "Time to the first token.");
    let mut gap = Instrument::new("gen_ai.client.operation.time_per_output_chunk", "Time between chunks.");
    let mut each = Instrument::new("gen_ai.server.time_per_output_token", "Time for each token after the first.");
    for series in counts.all_series() {
        for (route, cells) in series.cells() {
            let common = labels(origin, &series, route);
            let mut put = |instrument: &mut Instrument, histogram: &Histogram, more: Option<KeyValue>| {
                if !histogram.is_empty() {
                    let attributes = common.iter().cloned().chain(more).collect();
                    instrument.points.push(point(&histogram.snapshot(), instrument.per_unit, attributes, start, now));
                }
            };
            put_all(
                &mut put,
                cells,
                [&mut tokens, &mut duration, &mut request, &mut chunk, &mut first, &mut gap, &mut each],
            );
        }
    }
    let all = [tokens, duration, request, chunk, first, gap, each];
    let metrics = all.into_iter().filter(|it| !it.points.is_empty()).map(Instrument::metric).collect();
    let scope_metrics = vec![ScopeMetrics { scope: scope(), metrics, ..ScopeMetrics::default() }];
    let metrics = ResourceMetrics { resource: origin.resource(), scope_metrics, ..ResourceMetrics::default() };
    ExportMetricsServiceRequest { resource_metrics: vec![metrics] }
}

fn put_all(
    put: &mut impl FnMut(&mut Instrument, &Histogram, Option<KeyValue>),
    cells: &Cells,
    [tokens, duration, request, chunk, first, gap, each]: [&mut Instrument; 7],
) {
    put(tokens, &cells.input, Some(text("gen_ai.token.type", "input")));
    put(tokens, &cells.output, Some(text("gen_ai.token.type", "output")));
    for (status, histogram) in Status::ALL.into_iter().zip(&cells.duration) {
        let error = || (status != Status::Done).then(|| text("error.type", status.as_str()));
        put(duration, histogram, error());
        put(request, histogram, error());
    }
    put(chunk, &cells.first, None);
    put(first, &cells.first, None);
    put(gap, &cells.gap, None);
    put(each, &cells.per_token, None);
}

fn labels(origin: &Origin, series: &Series, route: &str) -> Vec<KeyValue> {
    let mut labels = vec![
        text("gen_ai.operation.name", operation(series.endpoint)),
        text("gen_ai.provider.name", PROVIDER),
        text("gen_ai.request.model", &series.model),
        text("spillway.endpoint", series.endpoint.as_str()),
        text("spillway.route", route),
    ];
    labels.extend(origin.server());
    labels
}

fn point(
    snapshot: &Snapshot,
    per_unit: f64,
    attributes: Vec<KeyValue>,
    start_time_unix_nano: u64,
    time_unix_nano: u64,
) -> HistogramDataPoint {
    #[expect(clippy::cast_precision_loss, reason = "a number for graphs")]
    let scaled = |value: u64| value as f64 / per_unit;
    HistogramDataPoint {
        attributes,
        start_time_unix_nano,
        time_unix_nano,
        count: snapshot.count(),
        sum: Some(scaled(snapshot.sum)),
        bucket_counts: snapshot.counts.clone(),
        explicit_bounds: snapshot.bounds.iter().map(|bound| scaled(*bound)).collect(),
        ..HistogramDataPoint::default()
    }
}
