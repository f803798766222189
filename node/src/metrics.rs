//! What this node counts, for Prometheus at `/metrics`. Every name begins with `spillway_`.
//! Invariant: labels take values from closed sets only, so no client or peer can make series grow.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use spillway_protocol::{Kind, Outcome, Reason};
use std::sync::Mutex;

/// How a job is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    /// `chat` or `completion`.
    kind: &'static str,
    /// `own`, `network`, or `none` if it was placed nowhere.
    route: &'static str,
    /// The reason code of its first place, or of its failure.
    reason: &'static str,
    /// `done`, `failed` or `left`.
    outcome: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RouteLabel {
    route: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct UnitLabels {
    route: &'static str,
    direction: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WhyLabel {
    why: &'static str,
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

/// The gateway's counters.
#[derive(Debug)]
pub struct Metrics {
    registry: Mutex<Registry>,
    jobs: Family<JobLabels, Counter>,
    units: Family<UnitLabels, Counter>,
    cost_micro: Counter,
    first_chunk: Family<RouteLabel, Histogram, fn() -> Histogram>,
    total: Family<RouteLabel, Histogram, fn() -> Histogram>,
    running: Gauge,
    streams: Gauge,
    turned_away: Family<WhyLabel, Counter>,
}

fn seconds() -> Histogram {
    // 1 ms to 65 s, doubling.
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
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
        let mut registry = Registry::with_prefix("spillway");
        let jobs = Family::default();
        registry.register("jobs", "Jobs that ended, by endpoint, first route, reason code and outcome", jobs.clone());
        let units = Family::default();
        let help = "Work units (bytes of prompt and of delivered text) of jobs that ended, by route";
        registry.register("work_units", help, units.clone());
        let cost_micro = Counter::default();
        registry.register("cost_micro_credits", "What jobs cost, in millionths of a credit", cost_micro.clone());
        let first_chunk = Family::new_with_constructor(seconds as fn() -> Histogram);
        let help = "From submission to the first chunk, by first route";
        registry.register_with_unit("first_chunk", help, Unit::Seconds, first_chunk.clone());
        let total = Family::new_with_constructor(seconds as fn() -> Histogram);
        let help = "From submission to the end, by first route";
        registry.register_with_unit("job_duration", help, Unit::Seconds, total.clone());
        let running = Gauge::default();
        registry.register("jobs_running", "Jobs of own clients under way", running.clone());
        let streams = Gauge::default();
        registry.register("streams_open", "Responses being streamed to clients", streams.clone());
        let turned_away = Family::default();
        registry.register("turned_away", "Requests that became no job, by cause", turned_away.clone());
        let registry = Mutex::new(registry);
        Self { registry, jobs, units, cost_micro, first_chunk, total, running, streams, turned_away }
    }

    /// Adds further metrics of the node's, under the same prefix.
    ///
    /// # Panics
    /// If `register` panics.
    pub fn extend(&self, register: impl FnOnce(&mut Registry)) {
        register(&mut self.registry.lock().expect("registering does not panic"));
    }

    /// All of it as text for Prometheus.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().expect("registering does not panic");
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes any text");
        text
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
        let Some(outcome) = outcome else { return };
        for leg in &outcome.legs {
            let usage = leg.usage;
            let route = leg.route.as_str();
            for (direction, units) in [("input", usage.input.saturating_add(usage.cached)), ("output", usage.output)] {
                self.units.get_or_create(&UnitLabels { route, direction }).inc_by(units);
            }
        }
        self.cost_micro.inc_by(outcome.cost.micro());
        #[expect(clippy::cast_precision_loss, reason = "milliseconds of a job are far below 2^52")]
        let as_seconds = |ms: u64| ms as f64 / 1000.0;
        if let Some(first_ms) = outcome.first_ms {
            self.first_chunk.get_or_create(&RouteLabel { route }).observe(as_seconds(first_ms));
        }
        self.total.get_or_create(&RouteLabel { route }).observe(as_seconds(outcome.total_ms));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spillway_ledger::{Credits, Usage};
    use spillway_protocol::{Failure, Leg, Route};

    #[test]
    fn jobs_are_counted_by_route_reason_and_outcome() {
        let metrics = Metrics::new();
        let leg = |route, reason, output| Leg {
            route,
            provider: None,
            reason,
            usage: Usage { input: 10, cached: 0, output },
            cost: Credits::new(7),
        };
        let outcome =
            |result, legs: Vec<Leg>| Outcome { result, legs, cost: Credits::new(7), first_ms: Some(20), total_ms: 90 };
        let left = Failure {
            reason: Reason::ClientLeft,
            retry_after_ms: None,
            status: None,
            upstream: None,
            message: String::new(),
        };
        let legs = vec![leg(Route::Own, Reason::OwnFree, 5), leg(Route::Network, Reason::ProviderStalled, 6)];
        for outcome in [Some(outcome(Ok("stop".into()), legs)), Some(outcome(Err(left), Vec::new())), None] {
            metrics.job_begins();
            metrics.job_ends(Kind::Chat, outcome.as_ref());
        }
        metrics.job_begins();
        metrics.turned_away(TurnedAway::Budget);
        let text = metrics.to_text();
        for line in [
            r#"spillway_jobs_total{kind="chat",route="own",reason="own_free",outcome="done"} 1"#,
            r#"spillway_jobs_total{kind="chat",route="none",reason="client_left",outcome="left"} 1"#,
            r#"spillway_jobs_total{kind="chat",route="none",reason="upstream_error",outcome="failed"} 1"#,
            r#"spillway_work_units_total{route="network",direction="output"} 6"#,
            "spillway_cost_micro_credits_total 14",
            r#"spillway_first_chunk_seconds_count{route="own"} 1"#,
            "spillway_jobs_running 1",
            r#"spillway_turned_away_total{why="budget"} 1"#,
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
