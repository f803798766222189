//! What this node counts, for Prometheus at `/metrics` and for OTLP. Names begin with `spillway_`, the process's own aside.
//! Invariant: labels take values from closed sets, or from sets that are cut off at a bound, so no client or peer can make series
//! grow for ever. `docs/observability.md` lists every name; a test compares the two.

pub mod histogram;
pub mod live;
pub mod process;
pub mod series;

pub use histogram::{Histogram, Snapshot};
pub use series::{Cells, Series, Status};

use crate::gateway::Cache;
use crate::jobs::Jobs;
use live::{Kept, Live};
use process::Process;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use series::SeriesTable;
use spillway_protocol::{Kind, Outcome, Reason, Route};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

/// How a job is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    /// The endpoint.
    kind: &'static str,
    /// `own`, `network`, or `none` if it was placed nowhere.
    route: &'static str,
    /// The reason code of its first place, or of its failure.
    reason: &'static str,
    /// `done`, `failed` or `left`.
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabel {
    why: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabel {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct KindLabel {
    endpoint: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SinkLabel {
    sink: &'static str,
}

/// Why a request was turned away before it became a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnedAway {
    /// No or a wrong key.
    Unauthorized,
    /// A field does not hold, or the body is too large.
    BadRequest,
    /// The model is unknown, or not for this key.
    Model,
    /// The key's budget does not cover it.
    Budget,
    /// The key has too many jobs under way.
    Concurrency,
    /// Too many requests or tokens in a minute.
    Rate,
    /// The market takes no more jobs, or the node is stopping.
    Full,
    /// This node's own fault.
    Internal,
}

impl TurnedAway {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Unauthorized => "unauthorized",
            Self::BadRequest => "bad_request",
            Self::Model => "model",
            Self::Budget => "budget",
            Self::Concurrency => "concurrency",
            Self::Rate => "rate",
            Self::Full => "full",
            Self::Internal => "internal",
        }
    }
}

/// Where records of requests and actions go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sink {
    /// Spans, over OTLP.
    Traces,
    /// Counts, over OTLP.
    Metrics,
    /// Records of requests, over OTLP.
    Logs,
    /// Records of the operator's actions, over OTLP.
    AuditLogs,
    /// The access log's lines.
    AccessLog,
    /// The SIEM's lines.
    SiemLog,
}

impl Sink {
    /// Every sink.
    pub const ALL: [Self; 6] =
        [Self::Traces, Self::Metrics, Self::Logs, Self::AuditLogs, Self::AccessLog, Self::SiemLog];

    /// The label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Traces => "otlp_traces",
            Self::Metrics => "otlp_metrics",
            Self::Logs => "otlp_logs",
            Self::AuditLogs => "otlp_audit",
            Self::AccessLog => "access_log",
            Self::SiemLog => "siem_log",
        }
    }
}

/// The node's counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    series: Arc<SeriesTable>,
    jobs: Family<JobLabels, Counter>,
    running: Gauge,
    streams: Gauge,
    turned_away: Family<WhyLabel, Counter>,
    retries: Family<ReasonLabel, Counter>,
    spills: Family<ReasonLabel, Counter>,
    left: Family<KindLabel, Counter>,
    told: Family<SinkLabel, Counter>,
    lost: Family<SinkLabel, Counter>,
    failures: Family<SinkLabel, Counter>,
    audit_records: Counter,
    audit_unsent: Family<SinkLabel, Gauge>,
    since: SystemTime,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// Counters at zero.
    #[must_use]
    pub fn new() -> Self {
        let since = SystemTime::now();
        let since_s = since.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        let mut root = Registry::default();
        root.register_collector(Box::new(Process { since_s }));
        let registry = root.sub_registry_with_prefix("spillway");
        registry.register("build", "What runs here", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let series = Arc::new(SeriesTable::default());
        registry.register_collector(Box::new(Arc::clone(&series)));
        let jobs = Family::default();
        registry.register("jobs", "Jobs that ended, by endpoint, first route, reason code and outcome", jobs.clone());
        let running = Gauge::default();
        registry.register("jobs_running", "Jobs of own clients under way", running.clone());
        let streams = Gauge::default();
        registry.register("streams_open", "Responses being streamed to clients", streams.clone());
        let turned_away = Family::default();
        registry.register("turned_away", "Requests that became no job, by cause", turned_away.clone());
        let retries = Family::default();
        registry.register("retries", "Further places that jobs were tried at, by reason code", retries.clone());
        let spills = Family::default();
        registry.register("spills", "Jobs whose first place was on the network, by reason code", spills.clone());
        let left = Family::default();
        registry.register("client_disconnects", "Clients that left before the end, by endpoint", left.clone());
        let told = Family::default();
        registry.register("telemetry_records", "Records that reached where they go", told.clone());
        let lost = Family::default();
        registry.register("telemetry_dropped", "Records that were lost: what takes them is slow or gone", lost.clone());
        let failures = Family::default();
        registry.register("telemetry_failures", "Attempts to hand records over that failed", failures.clone());
        let audit_records = Counter::default();
        registry.register("audit_records", "Actions of the operator that were recorded", audit_records.clone());
        let audit_unsent = Family::default();
        let help = "Recorded actions that have yet to reach where they go";
        registry.register("audit_unsent_records", help, audit_unsent.clone());
        Self {
            registry: Mutex::new(root),
            series,
            jobs,
            running,
            streams,
            turned_away,
            retries,
            spills,
            left,
            told,
            lost,
            failures,
            audit_records,
            audit_unsent,
            since,
        }
    }

    /// Adds further metrics of the node's, under the same prefix.
    ///
    /// # Panics
    /// If `register` panics.
    pub fn extend(&self, register: impl FnOnce(&mut Registry)) {
        let mut registry = self.registry.lock().expect("registering does not panic");
        register(registry.sub_registry_with_prefix("spillway"));
    }

    /// Shows from now on what `jobs` knows of the market and of own hardware.
    pub fn watch(&self, jobs: Jobs) {
        self.extend(|registry| registry.register_collector(Box::new(Live::new(jobs))));
    }

    /// Shows from now on what `cache` counts.
    pub fn watch_cache(&self, cache: Arc<Cache>) {
        self.extend(|registry| registry.register_collector(Box::new(Kept::new(cache))));
    }

    /// All of it as text for Prometheus.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().expect("registering does not panic");
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes any text");
        text
    }

    /// When counting began.
    #[must_use]
    pub const fn since(&self) -> SystemTime {
        self.since
    }

    /// The cells of an endpoint and a model: found once for a request, and then only added to.
    pub(crate) fn series(&self, endpoint: Kind, model: &str) -> Arc<Series> {
        self.series.of(endpoint, model)
    }

    /// Every series.
    pub(crate) fn all_series(&self) -> Vec<Arc<Series>> {
        self.series.all()
    }

    /// Jobs of own clients under way.
    #[must_use]
    pub fn running(&self) -> u64 {
        u64::try_from(self.running.get()).unwrap_or(0)
    }

    pub(crate) fn job_begins(&self) {
        self.running.inc();
    }

    pub(crate) fn stream_begins(&self) {
        self.streams.inc();
    }

    pub(crate) fn stream_ends(&self) {
        self.streams.dec();
    }

    pub(crate) fn turned_away(&self, why: TurnedAway) {
        self.turned_away.get_or_create(&WhyLabel { why: why.as_str() }).inc();
    }

    /// So many records reached where they go.
    pub(crate) fn told(&self, sink: Sink, count: usize) {
        self.told.get_or_create(&SinkLabel { sink: sink.as_str() }).inc_by(count as u64);
    }

    /// So many records were lost.
    pub(crate) fn lost(&self, sink: Sink, count: usize) {
        if count > 0 {
            self.lost.get_or_create(&SinkLabel { sink: sink.as_str() }).inc_by(count as u64);
        }
    }

    /// An attempt to hand records over failed.
    pub(crate) fn failed(&self, sink: Sink) {
        self.failures.get_or_create(&SinkLabel { sink: sink.as_str() }).inc();
    }

    /// An action of the operator's was recorded.
    pub(crate) fn audited(&self) {
        self.audit_records.inc();
    }

    /// How many recorded actions have yet to reach a sink.
    pub(crate) fn audit_unsent(&self, sink: Sink, count: u64) {
        let count = i64::try_from(count).unwrap_or(i64::MAX);
        self.audit_unsent.get_or_create(&SinkLabel { sink: sink.as_str() }).set(count);
    }

    /// A job ended; `None` if the market went away under it.
    pub(crate) fn job_ends(&self, kind: Kind, outcome: Option<&Outcome>) {
        self.running.dec();
        let first = outcome.and_then(|outcome| outcome.legs.first());
        let route = first.map_or("none", |leg| leg.route.as_str());
        let failure = outcome.map(|outcome| outcome.result.as_ref().err().map(|failure| failure.reason));
        let (reason, result) = match (failure, first) {
            (None, _) => (Reason::UpstreamError.as_str(), "failed"),
            (Some(Some(Reason::ClientLeft)), _) => (Reason::ClientLeft.as_str(), "left"),
            (Some(Some(reason)), _) => (reason.as_str(), "failed"),
            (Some(None), Some(leg)) => (leg.reason.as_str(), "done"),
            (Some(None), None) => ("none", "done"),
        };
        self.jobs.get_or_create(&JobLabels { kind: kind.as_str(), route, reason, outcome: result }).inc();
        if result == "left" {
            self.left.get_or_create(&KindLabel { endpoint: kind.as_str() }).inc();
        }
        if let Some(leg) = first.filter(|leg| leg.route == Route::Network) {
            self.spills.get_or_create(&ReasonLabel { reason: leg.reason.as_str() }).inc();
        }
        for leg in outcome.iter().flat_map(|outcome| outcome.legs.iter().skip(1)) {
            self.retries.get_or_create(&ReasonLabel { reason: leg.reason.as_str() }).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::series::SERIES_MAX;
    use super::*;
    use crate::jobs::{BackendLoad, Load, MarketView};
    use crate::openai::Tokens;
    use spillway_ledger::{Credits, Digest, Usage};
    use spillway_protocol::{Failure, Leg};
    use std::collections::BTreeSet;
    use std::time::{Duration, Instant};
    use tokio::sync::mpsc;

    const DOCS: &str = include_str!("../../../docs/observability.md");
    const DASHBOARD: &str = include_str!("../../../dashboards/spillway.json");

    fn outcome(result: Result<String, Failure>, legs: Vec<Leg>) -> Outcome {
        Outcome { result, legs, considered: Vec::new(), cost: Credits::new(7), first_ms: Some(20), total_ms: 90 }
    }

    fn leg(route: Route, reason: Reason) -> Leg {
        let usage = Usage { input: 10, cached: 0, output: 5 };
        Leg { route, provider: None, reason, usage, cost: Credits::new(7) }
    }

    /// Metrics in which every family has something.
    fn full() -> Metrics {
        let metrics = Metrics::new();
        let left = Failure {
            reason: Reason::ClientLeft,
            retry_after_ms: None,
            status: None,
            upstream: None,
            message: String::new(),
        };
        let legs = vec![leg(Route::Network, Reason::OwnSaturated), leg(Route::Network, Reason::ProviderStalled)];
        for outcome in [Some(outcome(Ok("stop".into()), legs)), Some(outcome(Err(left), Vec::new())), None] {
            metrics.job_begins();
            metrics.job_ends(Kind::Chat, outcome.as_ref());
        }
        metrics.job_begins();
        metrics.turned_away(TurnedAway::Budget);
        for sink in Sink::ALL {
            metrics.told(sink, 1);
            metrics.lost(sink, 2);
            metrics.failed(sink);
            metrics.audit_unsent(sink, 3);
        }
        metrics.audited();
        let series = metrics.series(Kind::Chat, "m");
        let cells = series.at(Some(Route::Own));
        cells.duration[Status::Done as usize].observe(1_500_000);
        cells.first.observe(2_000);
        cells.gap.observe(30_000);
        cells.per_token.observe(30_000);
        cells.add_tokens(&Tokens { input: 9, cached: 4, output: 2, reasoning: 1 });
        cells.add_units(Usage { input: 40, cached: 10, output: 6 });
        cells.add_cost(Credits::new(1_250_000));
        let (commands, _) = mpsc::channel(1);
        let jobs = Jobs::new(commands);
        let backend = BackendLoad { model: "m".into(), healthy: true, slots: 4, running: 1, queued: 2 };
        let load = Load { peers: 3, backends: vec![backend], ..Load::default() };
        jobs.set_market(MarketView { load, ..MarketView::default() });
        metrics.watch(jobs);
        let cache = Arc::new(Cache::new(1 << 20));
        let (name, now) = (Digest::of("spillway/test/1", &[]), Instant::now());
        let kept = crate::gateway::cache::Kept {
            chunks: vec![b"x".to_vec()],
            finish: "stop".into(),
            cost: Credits::new(1_250_000),
        };
        assert!(cache.find(name, Duration::from_secs(1), now).is_none());
        cache.missed();
        cache.keep(name, kept, None, now);
        assert!(cache.find(name, Duration::from_secs(1), now).is_some());
        metrics.watch_cache(cache);
        let policies = crate::gateway::Policies::none();
        policies.count("none", "done");
        metrics.extend(|registry| policies.register(registry));
        metrics
    }

    /// Name, with its unit, and type of every family in a text.
    fn exported(text: &str) -> BTreeSet<(String, String)> {
        let lines = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let suffixed = |name: &str, kind: &str| match kind {
            "counter" => format!("{name}_total"),
            "info" => format!("{name}_info"),
            _ => name.to_owned(),
        };
        let pair = |line: &str| {
            let (name, kind) = line.split_once(' ').expect("a name and a type");
            (suffixed(name, kind), kind.to_owned())
        };
        lines.map(pair).collect()
    }

    #[test]
    fn what_happened_is_counted() {
        let text = full().to_text();
        for line in [
            r#"spillway_jobs_total{kind="chat",route="network",reason="own_saturated",outcome="done"} 1"#,
            r#"spillway_jobs_total{kind="chat",route="none",reason="client_left",outcome="left"} 1"#,
            r#"spillway_jobs_total{kind="chat",route="none",reason="upstream_error",outcome="failed"} 1"#,
            "spillway_jobs_running 1",
            r#"spillway_turned_away_total{why="budget"} 1"#,
            r#"spillway_spills_total{reason="own_saturated"} 1"#,
            r#"spillway_retries_total{reason="provider_stalled"} 1"#,
            r#"spillway_client_disconnects_total{endpoint="chat"} 1"#,
            r#"spillway_requests_total{endpoint="chat",model="m",route="own",status="2xx"} 1"#,
            r#"spillway_request_duration_seconds_sum{endpoint="chat",model="m",route="own",status="2xx"} 1.5"#,
            r#"spillway_request_duration_seconds_bucket{le="1.28",endpoint="chat",model="m",route="own",status="2xx"} 0"#,
            r#"spillway_request_duration_seconds_bucket{le="+Inf",endpoint="chat",model="m",route="own",status="2xx"} 1"#,
            r#"spillway_time_to_first_token_seconds_count{endpoint="chat",model="m",route="own"} 1"#,
            r#"spillway_inter_token_seconds_count{endpoint="chat",model="m",route="own"} 1"#,
            r#"spillway_tokens_total{endpoint="chat",model="m",route="own",type="cached"} 4"#,
            r#"spillway_work_units_total{endpoint="chat",model="m",route="own",type="output"} 6"#,
            r#"spillway_cost_credits_total{endpoint="chat",model="m",route="own"} 1.25"#,
            r#"spillway_backend_up{model="m"} 1"#,
            r#"spillway_queued_jobs{model="m"} 2"#,
            r#"spillway_telemetry_dropped_total{sink="otlp_traces"} 2"#,
            r#"spillway_audit_unsent_records{sink="siem_log"} 3"#,
            "spillway_peers_connected 3",
            r#"spillway_cache_lookups_total{result="hit"} 1"#,
            r#"spillway_cache_lookups_total{result="similar"} 0"#,
            r#"spillway_cache_lookups_total{result="miss"} 1"#,
            "spillway_cache_saved_credits_total 1.25",
            "spillway_cache_answers 1",
            r#"spillway_policy_attempts_total{policy="request",result="done"} 1"#,
            "spillway_breakers_open 0",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        let fds = text.lines().find_map(|line| line.strip_prefix("process_open_fds ")).expect("on Linux");
        assert!(fds.parse::<u64>().expect("a number") > 0);
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn names_that_are_made_up_do_not_make_series_grow() {
        let metrics = full();
        let grow = |from: usize| {
            for index in from..from + 10_000 {
                let series = metrics.series(Kind::ALL[index % Kind::ALL.len()], &format!("made-up-{index}"));
                series.at(Some(Route::Network)).duration[0].observe(1);
            }
            metrics.to_text().lines().count()
        };
        let first = grow(0);
        assert_eq!(grow(10_000), first, "further names find no room");
        assert!(metrics.all_series().len() <= SERIES_MAX + Kind::ALL.len());
        let text = metrics.to_text();
        assert!(text.contains(r#"model="other""#) && text.contains(r#"model="m""#) && !text.contains("made-up-9999"));
    }

    #[test]
    fn the_documentation_lists_every_metric_and_no_other() {
        let row = |line: &str| {
            let mut cells = line.strip_prefix("| `")?.split(" | ");
            let name = cells.next()?.split('`').next()?.split('{').next()?.to_owned();
            let kind = cells.next()?.to_owned();
            let is_metric = name.starts_with("spillway_") || name.starts_with("process_");
            is_metric.then_some((name, kind))
        };
        let listed: BTreeSet<(String, String)> = DOCS.lines().filter_map(row).collect();
        assert_eq!(listed, exported(&full().to_text()));
    }

    #[test]
    fn the_dashboard_asks_for_metrics_that_exist() {
        let known: BTreeSet<String> = exported(&full().to_text()).into_iter().map(|(name, _)| name).collect();
        let dashboard: serde_json::Value = serde_json::from_str(DASHBOARD).expect("JSON");
        let mut asked = BTreeSet::new();
        let mut stack = vec![&dashboard];
        while let Some(value) = stack.pop() {
            match value {
                serde_json::Value::Object(fields) => {
                    for (name, value) in fields {
                        if let (true, Some(text)) = (matches!(name.as_str(), "expr" | "query"), value.as_str()) {
                            let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
                            let words = text.split(|c| !is_word(c));
                            let ours =
                                words.filter(|word| ["spillway_", "process_"].iter().any(|it| word.starts_with(it)));
                            asked.extend(ours.map(str::to_owned));
                        }
                        stack.push(value);
                    }
                }
                serde_json::Value::Array(items) => stack.extend(items),
                _ => {}
            }
        }
        assert!(asked.len() >= 15, "{asked:?}");
        for name in asked {
            let bare = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end)).unwrap_or(&name);
            assert!(known.contains(&name) || known.contains(bare), "{name} is no metric");
        }
    }
}
