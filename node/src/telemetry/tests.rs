//! Records on their way to files and to a collector that the test plays.

use super::access::tests::access;
use super::*;
use crate::audit::{Deed, Done, Head, Who};
use axum::Router;
use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use prost::Message;
use serde_json::{Value as Json, json};
use spillway_ledger::SecretKey;
use spillway_ledger::store::Store;
use spillway_protocol::{Kind, Route};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU16, Ordering};
use tempfile::TempDir;
use tokio::sync::mpsc;

/// A request as the collector saw it: path, the header `x-team`, body.
type Seen = (String, Option<String>, Bytes);

struct FakeCollector {
    url: String,
    seen: mpsc::UnboundedReceiver<Seen>,
    status: Arc<AtomicU16>,
}

impl FakeCollector {
    async fn start() -> Self {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/base", listener.local_addr().expect("its address"));
        let (saw, seen) = mpsc::unbounded_channel();
        let status = Arc::new(AtomicU16::new(200));
        let state = (saw, Arc::clone(&status));
        let take = async |State((saw, status)): State<(mpsc::UnboundedSender<Seen>, Arc<AtomicU16>)>,
                          request: Request| {
            let (head, body) = request.into_parts();
            let bytes = axum::body::to_bytes(body, usize::MAX).await.expect("a body");
            assert_eq!(head.headers["content-type"], "application/x-protobuf");
            let team = head.headers.get("x-team").map(|team| team.to_str().expect("text").to_owned());
            let _ = saw.send((head.uri.path().to_owned(), team, bytes));
            StatusCode::from_u16(status.load(Ordering::Relaxed)).expect("a status")
        };
        let router = Router::new().fallback(take).with_state(state);
        tokio::spawn(async move {
            use hyper_util::rt::TokioIo;
            while let Ok((stream, _)) = listener.accept().await {
                let service = hyper_util::service::TowerToHyperService::new(router.clone());
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { url, seen, status }
    }
}

struct Bench {
    folder: TempDir,
    store: Arc<Store>,
    metrics: Arc<Metrics>,
}

impl Bench {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Arc::new(Store::open(folder.path().join("node.redb")).expect("a store"));
        Self { folder, store, metrics: Arc::new(Metrics::new()) }
    }

    fn key() -> SecretKey {
        SecretKey::generate([5; 32])
    }

    fn audit(&self) -> AuditLog {
        let store = Arc::clone(&self.store);
        AuditLog::open(self.folder.path(), store, Self::key(), Arc::clone(&self.metrics)).expect("a log")
    }

    fn start(&self, section: &TelemetrySection, audit: &AuditLog) -> anyhow::Result<Telemetry> {
        let node = NodeId(Self::key().public());
        Telemetry::start(section, self.folder.path(), &node, &self.metrics, audit)
    }

    fn count(&self, line: &str) -> Option<u64> {
        let text = self.metrics.to_text();
        text.lines().find_map(|found| found.strip_prefix(line)?.trim().parse().ok())
    }
}

async fn act(audit: &AuditLog, what: &str) {
    let who = Who { with: "admin".into(), from: None, agent: None };
    let done = Done { value: (), what: None, before: Json::Null, after: json!({"budget_micro": 2}) };
    audit.act(Deed { who, action: "key.update", what: what.into() }, async { Ok(done) }).await.expect("done");
}

const WAIT: Duration = Duration::from_secs(20);

fn attributes(pairs: &[KeyValue]) -> BTreeMap<String, Json> {
    let value = |value: &Value| match value {
        Value::StringValue(text) => json!(text),
        Value::IntValue(number) => json!(number),
        Value::DoubleValue(number) => json!(number),
        Value::BoolValue(flag) => json!(flag),
        Value::ArrayValue(array) => json!(array.values.len()),
        other => panic!("{other:?} is not told"),
    };
    let pair = |pair: &KeyValue| {
        let told = pair.value.as_ref().and_then(|any| any.value.as_ref()).expect("a value");
        (pair.key.clone(), value(told))
    };
    pairs.iter().map(pair).collect()
}

#[tokio::test]
async fn requests_become_spans_and_records_by_the_conventions() {
    let mut collector = FakeCollector::start().await;
    let bench = Bench::new();
    std::fs::write(bench.folder.path().join("headers"), "x-team=core\n").expect("written");
    let section = TelemetrySection {
        otlp_endpoint: Some(collector.url.clone()),
        otlp_headers_file: Some("headers".into()),
        otlp_signals: vec![Signal::Traces, Signal::Logs],
        ..TelemetrySection::default()
    };
    let audit = bench.audit();
    let telemetry = bench.start(&section, &audit).expect("started");
    telemetry.serves_at("127.0.0.1:8080".parse().expect("an address"));
    telemetry.record(access());
    let mut refused = access();
    (refused.status, refused.code, refused.tokens) = (503, Some("no_offer".into()), None);
    telemetry.record(refused);
    let mut unsampled = access();
    if let Some(trace) = &mut unsampled.trace {
        trace.sampled = false;
    }
    telemetry.record(unsampled);
    telemetry.stop(WAIT).await;
    let (mut spans, mut records) = (Vec::new(), Vec::new());
    while let Ok((path, team, body)) = collector.seen.try_recv() {
        assert_eq!(team.as_deref(), Some("core"));
        assert!(!String::from_utf8_lossy(&body).contains("SECRET"), "no content goes out");
        match path.as_str() {
            "/base/v1/traces" => {
                let message = ExportTraceServiceRequest::decode(body).expect("spans");
                let resource = message.resource_spans[0].resource.as_ref().expect("a resource");
                assert_eq!(attributes(&resource.attributes)["service.name"], "spillway");
                spans.extend(message.resource_spans.into_iter().flat_map(|it| it.scope_spans).flat_map(|it| it.spans));
            }
            "/base/v1/logs" => {
                let message = ExportLogsServiceRequest::decode(body).expect("records");
                let scopes = message.resource_logs.into_iter().flat_map(|it| it.scope_logs);
                records.extend(scopes.flat_map(|it| it.log_records));
            }
            other => panic!("{other}"),
        }
    }
    assert_eq!((spans.len(), records.len()), (2, 3), "what is not sampled has no span");
    let span = &spans[0];
    assert_eq!((span.name.as_str(), span.kind), ("chat m", i32::from(SpanKind::Server)));
    assert_eq!((span.trace_id.as_slice(), span.span_id.len(), span.parent_span_id.len()), (&[0xab; 16][..], 8, 0));
    assert_eq!(span.end_time_unix_nano - span.start_time_unix_nano, 20_000_000);
    let told = attributes(&span.attributes);
    for (key, want) in [
        ("gen_ai.operation.name", json!("chat")),
        ("gen_ai.provider.name", json!("spillway")),
        ("gen_ai.request.model", json!("m")),
        ("gen_ai.response.model", json!("m")),
        ("gen_ai.response.id", json!("ab".repeat(16))),
        ("gen_ai.response.finish_reasons", json!(1)),
        ("gen_ai.response.time_to_first_chunk", json!(0.00125)),
        ("gen_ai.usage.input_tokens", json!(9)),
        ("gen_ai.usage.output_tokens", json!(2)),
        ("gen_ai.usage.cache_read.input_tokens", json!(4)),
        ("server.address", json!("127.0.0.1")),
        ("server.port", json!(8080)),
        ("http.response.status_code", json!(200)),
        ("spillway.route", json!("own")),
        ("spillway.key", json!("0011aabb")),
        ("spillway.cost_micro", json!(7)),
    ] {
        assert_eq!(told.get(key), Some(&want), "{key}");
    }
    assert!(!told.contains_key("error.type") && span.status.is_none());
    let failed = attributes(&spans[1].attributes);
    assert_eq!((&failed["error.type"], failed.contains_key("gen_ai.usage.input_tokens")), (&json!("no_offer"), false));
    assert_eq!(spans[1].status.as_ref().map(|status| status.message.as_str()), Some("no_offer"));
    assert_eq!((records[0].event_name.as_str(), records[0].trace_id.len()), ("spillway.request", 16));
    assert_eq!(bench.count(r#"spillway_telemetry_records_total{sink="otlp_traces"}"#), Some(2));
}

#[tokio::test]
async fn counts_go_out_as_the_conventions_histograms() {
    let mut collector = FakeCollector::start().await;
    let bench = Bench::new();
    let section = TelemetrySection {
        otlp_endpoint: Some(collector.url.clone()),
        otlp_signals: vec![Signal::Metrics],
        metrics_every_s: 3600,
        ..TelemetrySection::default()
    };
    let audit = bench.audit();
    let telemetry = bench.start(&section, &audit).expect("started");
    let series = bench.metrics.series(Kind::Embedding, "m");
    let cells = series.at(Some(Route::Network));
    cells.duration[0].observe(1_500_000);
    cells.duration[2].observe(10);
    cells.first.observe(2_000);
    cells.gap.observe(30_000);
    cells.per_token.observe(30_000);
    cells.add_tokens(&crate::openai::Tokens { input: 9, cached: 0, output: 2, reasoning: 0 });
    telemetry.stop(WAIT).await;
    let (path, _, body) = collector.seen.try_recv().expect("once more at the end");
    assert_eq!(path, "/base/v1/metrics");
    let message = ExportMetricsServiceRequest::decode(body).expect("metrics");
    let metrics = &message.resource_metrics[0].scope_metrics[0].metrics;
    let mut told = BTreeMap::new();
    for metric in metrics {
        let Some(opentelemetry_proto::tonic::metrics::v1::metric::Data::Histogram(data)) = &metric.data else {
            panic!("{metric:?}");
        };
        for point in &data.data_points {
            assert_eq!(point.bucket_counts.len(), point.explicit_bounds.len() + 1);
            assert!(point.start_time_unix_nano > 0 && point.start_time_unix_nano <= point.time_unix_nano);
            assert_eq!(attributes(&point.attributes)["gen_ai.operation.name"], "embeddings");
        }
        let sum: f64 = data.data_points.iter().filter_map(|point| point.sum).sum();
        told.insert((metric.name.as_str(), metric.unit.as_str()), (data.data_points.len(), sum));
    }
    let want = BTreeMap::from([
        (("gen_ai.client.token.usage", "{token}"), (2, 11.0)),
        (("gen_ai.client.operation.duration", "s"), (2, 1.50001)),
        (("gen_ai.client.operation.time_to_first_chunk", "s"), (1, 0.002)),
        (("gen_ai.client.operation.time_per_output_chunk", "s"), (1, 0.03)),
        (("gen_ai.server.request.duration", "s"), (2, 1.50001)),
        (("gen_ai.server.time_to_first_token", "s"), (1, 0.002)),
        (("gen_ai.server.time_per_output_token", "s"), (1, 0.03)),
    ]);
    assert_eq!(told.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    for (name, (points, sum)) in want {
        let (got_points, got_sum) = told[&name];
        assert!(got_points == points && (got_sum - sum).abs() < 1e-9, "{name:?}: {got_points} points, {got_sum}");
    }
}

#[tokio::test]
async fn a_dead_collector_costs_records_and_nothing_else() {
    // Nobody listens on a port that was just given back.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}", listener.local_addr().expect("its address"));
    drop(listener);
    let bench = Bench::new();
    let section = TelemetrySection { otlp_endpoint: Some(url), ..TelemetrySection::default() };
    let audit = bench.audit();
    let telemetry = bench.start(&section, &audit).expect("a collector that is away is no error");
    // Nothing else runs while this thread does not wait, so what is above the bound is lost for sure.
    for _ in 0..WAITING_MAX + 100 {
        telemetry.record(access());
    }
    assert_eq!(bench.count(r#"spillway_telemetry_dropped_total{sink="otlp_traces"}"#), Some(100));
    telemetry.stop(Duration::ZERO).await;
}

#[tokio::test]
async fn audit_records_arrive_at_least_once_whatever_fails() {
    let mut collector = FakeCollector::start().await;
    let bench = Bench::new();
    let section = TelemetrySection {
        otlp_endpoint: Some(collector.url.clone()),
        otlp_signals: vec![Signal::Logs],
        siem_log: Some("siem.jsonl".into()),
        ..TelemetrySection::default()
    };
    let audit = bench.audit();
    act(&audit, "key 1").await;
    collector.status.store(503, Ordering::Relaxed);
    let telemetry = bench.start(&section, &audit).expect("started");
    let lines_of = |body: Bytes| {
        let message = ExportLogsServiceRequest::decode(body).expect("records");
        let records = message.resource_logs.into_iter().flat_map(|it| it.scope_logs).flat_map(|it| it.log_records);
        let body = |record: opentelemetry_proto::tonic::logs::v1::LogRecord| match record.body.and_then(|it| it.value) {
            Some(Value::StringValue(line)) => line,
            other => panic!("{other:?}"),
        };
        records.map(body).collect::<Vec<String>>()
    };
    let next = async |collector: &mut FakeCollector| {
        let seen = tokio::time::timeout(WAIT, collector.seen.recv()).await.expect("in time");
        let (path, _, body) = seen.expect("a request");
        assert_eq!(path, "/base/v1/logs");
        lines_of(body)
    };
    let wanted = |count: usize| {
        let text = std::fs::read_to_string(bench.folder.path().join(crate::audit::LOG_FILE)).expect("a log");
        text.lines().take(count).map(str::to_owned).collect::<Vec<String>>()
    };
    assert_eq!(next(&mut collector).await, wanted(1), "refused");
    act(&audit, "key 2").await;
    collector.status.store(200, Ordering::Relaxed);
    // It comes again until it is taken; the second may have been written before or after that.
    let mut got = Vec::new();
    while got.last() != wanted(2).last() {
        got.extend(next(&mut collector).await);
    }
    got.dedup();
    assert!(got.ends_with(&wanted(2)), "{got:?}");
    telemetry.stop(WAIT).await;

    // The next start goes on behind what was taken.
    act(&audit, "key 3").await;
    let telemetry = bench.start(&section, &audit).expect("started");
    let got = next(&mut collector).await;
    assert!(got == wanted(3)[2..] || got == wanted(3)[1..], "at most the last batch twice: {got:?}");
    telemetry.stop(WAIT).await;
    let siem = std::fs::read_to_string(bench.folder.path().join("siem.jsonl")).expect("a log");
    assert_eq!(siem.lines().map(str::to_owned).collect::<Vec<_>>(), wanted(3), "byte for byte, once each");
    // The end of the log that the SIEM has is an anchor for the log itself.
    let last: crate::audit::AuditRecord = serde_json::from_str(siem.lines().last().expect("a line")).expect("a record");
    let anchor = Head { seq: last.seq, hash: last.hash };
    let node = NodeId(Bench::key().public());
    crate::audit::verify(bench.folder.path(), &node, &[(anchor, "a SIEM")]).expect("holds");
}

#[tokio::test]
async fn requests_become_lines_and_content_goes_into_the_access_log_only() {
    let bench = Bench::new();
    let section = TelemetrySection {
        access_log: Some("access.jsonl".into()),
        access_log_content: true,
        siem_log: Some("siem.jsonl".into()),
        ..TelemetrySection::default()
    };
    let audit = bench.audit();
    let telemetry = bench.start(&section, &audit).expect("started");
    assert!(telemetry.wants_content() && telemetry.has_access_log());
    for _ in 0..1_000 {
        telemetry.record(access());
    }
    telemetry.stop(WAIT).await;
    let read = |name: &str| std::fs::read_to_string(bench.folder.path().join(name)).expect("a log");
    let (access, siem) = (read("access.jsonl"), read("siem.jsonl"));
    assert_eq!((access.lines().count(), siem.lines().count()), (1_000, 1_000));
    assert!(access.contains("SECRET PROMPT") && !siem.contains("SECRET"));
    assert!(siem.lines().all(|line| serde_json::from_str::<Json>(line).is_ok()));
    assert_eq!(bench.count(r#"spillway_telemetry_records_total{sink="access_log"}"#), Some(1_000));
}

#[tokio::test]
async fn what_cannot_be_opened_is_named() {
    let bench = Bench::new();
    let audit = bench.audit();
    for (section, says) in [
        (
            TelemetrySection { access_log: Some("none/a.jsonl".into()), ..TelemetrySection::default() },
            "telemetry.access_log",
        ),
        (
            TelemetrySection { siem_log: Some("none/a.jsonl".into()), ..TelemetrySection::default() },
            "telemetry.siem_log",
        ),
        (
            TelemetrySection {
                otlp_endpoint: Some("http://127.0.0.1:1".into()),
                otlp_headers_file: Some("none".into()),
                ..TelemetrySection::default()
            },
            "telemetry.otlp_headers_file",
        ),
        (
            TelemetrySection {
                otlp_endpoint: Some("http://127.0.0.1:1".into()),
                otlp_headers_env: Some("SPILLWAY_TEST_UNSET".into()),
                ..TelemetrySection::default()
            },
            "telemetry.otlp_headers_env",
        ),
    ] {
        let error = bench.start(&section, &audit).expect_err(says);
        assert!(format!("{error:#}").starts_with(says), "{error:#}");
    }
}
