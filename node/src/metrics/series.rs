//! What is counted of requests by endpoint, model and route: cells that a request finds once and then only adds to.
//! Invariant: there are at most [`SERIES_MAX`] pairs of endpoint and model, and one pair more for each endpoint; whatever names
//! clients and strangers make up, what comes later counts as `other`.

use super::histogram::{DURATION_US, FIRST_US, GAP_US, Histogram, Snapshot, TOKENS};
use crate::openai::Tokens;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::registry::Unit;
use spillway_ledger::{Credits, Usage};
use spillway_protocol::{Kind, Route};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

/// Most pairs of endpoint and model that have cells of their own.
pub const SERIES_MAX: usize = 256;
/// The model of what came after those.
pub const OTHER: &str = "other";
/// The model of requests that were refused before it was known to be one here.
pub const NO_MODEL: &str = "none";

/// How a request was answered, as far as series go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Status {
    /// With what was asked for.
    Done,
    /// With an error that is the client's to mend, or the key's limits.
    Refused,
    /// With an error that is none of the client's.
    Failed,
    /// The client did not wait for the end.
    Left,
}

impl Status {
    /// Every status.
    pub const ALL: [Self; 4] = [Self::Done, Self::Refused, Self::Failed, Self::Left];

    /// Of an HTTP status.
    #[must_use]
    pub const fn of(status: u16) -> Self {
        match status {
            499 => Self::Left,
            400..=498 => Self::Refused,
            500.. => Self::Failed,
            0..400 => Self::Done,
        }
    }

    /// The label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "2xx",
            Self::Refused => "4xx",
            Self::Failed => "5xx",
            Self::Left => "left",
        }
    }
}

/// Where requests went, in the order of a series' cells.
pub const ROUTES: [&str; 3] = ["own", "network", "none"];

const fn place(route: Option<Route>) -> usize {
    match route {
        Some(Route::Own) => 0,
        Some(Route::Network) => 1,
        None => 2,
    }
}

/// The cells of one endpoint, model and route.
#[derive(Debug)]
pub struct Cells {
    /// Microseconds from the request to the end of its answer, by [`Status`].
    pub duration: [Histogram; 4],
    /// Microseconds from the request to the first piece of the answer.
    pub first: Histogram,
    /// Microseconds from one piece of a streamed answer to the next.
    pub gap: Histogram,
    /// Microseconds for each token after the first.
    pub per_token: Histogram,
    /// Tokens of a prompt.
    pub input: Histogram,
    /// Tokens of an answer.
    pub output: Histogram,
    tokens: [AtomicU64; 4],
    units: [AtomicU64; 3],
    cost_micro: AtomicU64,
}

/// The labels of [`Cells::tokens`].
const TOKEN_TYPES: [&str; 4] = ["input", "cached", "output", "reasoning"];
/// The labels of [`Cells::units`].
const UNIT_TYPES: [&str; 3] = ["input", "cached", "output"];

impl Cells {
    fn new() -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            duration: std::array::from_fn(|_| Histogram::new(DURATION_US)),
            first: Histogram::new(FIRST_US),
            gap: Histogram::new(GAP_US),
            per_token: Histogram::new(GAP_US),
            input: Histogram::new(TOKENS),
            output: Histogram::new(TOKENS),
            tokens: std::array::from_fn(|_| zero()),
            units: std::array::from_fn(|_| zero()),
            cost_micro: zero(),
        }
    }

    /// Adds the tokens that a server reported for a request.
    pub fn add_tokens(&self, tokens: &Tokens) {
        self.input.observe(tokens.input);
        self.output.observe(tokens.output);
        for (cell, count) in self.tokens.iter().zip([tokens.input, tokens.cached, tokens.output, tokens.reasoning]) {
            cell.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Adds what a leg was billed for.
    pub fn add_units(&self, usage: Usage) {
        for (cell, count) in self.units.iter().zip([usage.input, usage.cached, usage.output]) {
            cell.fetch_add(count, Ordering::Relaxed);
        }
    }

    /// Adds what a request cost.
    pub fn add_cost(&self, cost: Credits) {
        self.cost_micro.fetch_add(cost.micro(), Ordering::Relaxed);
    }
}

/// The cells of one endpoint and model.
#[derive(Debug)]
pub struct Series {
    /// The endpoint.
    pub endpoint: Kind,
    /// The model, or [`OTHER`], or [`NO_MODEL`].
    pub model: Arc<str>,
    routes: [OnceLock<Box<Cells>>; 3],
}

impl Series {
    fn new(endpoint: Kind, model: Arc<str>) -> Self {
        Self { endpoint, model, routes: std::array::from_fn(|_| OnceLock::new()) }
    }

    /// The cells of a route; `None` is nowhere.
    pub fn at(&self, route: Option<Route>) -> &Cells {
        self.routes[place(route)].get_or_init(|| Box::new(Cells::new()))
    }

    /// The routes that have cells, by name.
    pub fn cells(&self) -> impl Iterator<Item = (&'static str, &Cells)> {
        ROUTES.into_iter().zip(&self.routes).filter_map(|(route, cells)| Some((route, &**cells.get()?)))
    }
}

type ByModel = BTreeMap<Arc<str>, Arc<Series>>;

/// Every series.
#[derive(Debug)]
pub struct SeriesTable {
    by_kind: [RwLock<ByModel>; Kind::ALL.len()],
    count: AtomicUsize,
}

impl Default for SeriesTable {
    fn default() -> Self {
        Self { by_kind: std::array::from_fn(|_| RwLock::default()), count: AtomicUsize::new(0) }
    }
}

impl SeriesTable {
    /// The cells of an endpoint and a model.
    pub fn of(&self, endpoint: Kind, model: &str) -> Arc<Series> {
        let lock = &self.by_kind[endpoint as usize];
        if let Some(known) = lock.read().expect("no holder panics").get(model) {
            return Arc::clone(known);
        }
        let mut series = lock.write().expect("no holder panics");
        if let Some(known) = series.get(model) {
            return Arc::clone(known);
        }
        let is_one_of_ours = matches!(model, OTHER | NO_MODEL);
        let model =
            if is_one_of_ours || self.count.fetch_add(1, Ordering::Relaxed) < SERIES_MAX { model } else { OTHER };
        if let Some(other) = series.get(model) {
            return Arc::clone(other);
        }
        let name: Arc<str> = model.into();
        let fresh = Arc::new(Series::new(endpoint, Arc::clone(&name)));
        series.insert(name, Arc::clone(&fresh));
        fresh
    }

    /// All there are, by endpoint and model.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Series>> {
        let of = |lock: &RwLock<ByModel>| lock.read().expect("no holder panics").values().cloned().collect::<Vec<_>>();
        self.by_kind.iter().flat_map(of).collect()
    }
}

/// Microseconds as seconds.
#[must_use]
pub fn seconds(us: u64) -> f64 {
    number(us) / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "a number for people and graphs")]
const fn number(count: u64) -> f64 {
    count as f64
}

/// A family's labels, its own beside those that all have.
type Labels<'a> = [(&'static str, &'a str); 4];

/// A family of histograms: name, unit, help, and its cells with the value of its own label.
struct Family {
    name: &'static str,
    unit: Option<Unit>,
    help: &'static str,
    own: Option<&'static str>,
    each: for<'a> fn(&'a Cells) -> Vec<(&'static str, &'a Histogram)>,
}

fn families() -> [Family; 5] {
    [
        Family {
            name: "request_duration",
            unit: Some(Unit::Seconds),
            help: "From a request to the end of its answer",
            own: Some("status"),
            each: |cells| Status::ALL.into_iter().map(Status::as_str).zip(&cells.duration).collect(),
        },
        Family {
            name: "time_to_first_token",
            unit: Some(Unit::Seconds),
            help: "From a request to the first piece of its answer",
            own: None,
            each: |cells| vec![("", &cells.first)],
        },
        Family {
            name: "inter_token",
            unit: Some(Unit::Seconds),
            help: "From one piece of a streamed answer to the next",
            own: None,
            each: |cells| vec![("", &cells.gap)],
        },
        Family {
            name: "time_per_output_token",
            unit: Some(Unit::Seconds),
            help: "The time of an answer behind its first token, for each further token",
            own: None,
            each: |cells| vec![("", &cells.per_token)],
        },
        Family {
            name: "request_tokens",
            unit: None,
            help: "Tokens of a request, as its server reported them",
            own: Some("type"),
            each: |cells| vec![("input", &cells.input), ("output", &cells.output)],
        },
    ]
}

fn encode_histogram(mut encoder: MetricEncoder<'_>, snapshot: &Snapshot, per_unit: f64) -> fmt::Result {
    let bounds = snapshot.bounds.iter().map(|bound| number(*bound) / per_unit).chain([f64::INFINITY]);
    let buckets: Vec<(f64, u64)> = bounds.zip(snapshot.counts.iter().copied()).collect();
    encoder.encode_histogram::<NoLabelSet>(number(snapshot.sum) / per_unit, snapshot.count(), &buckets, None)
}

/// Calls `body` with each route's cells and the labels that all families have.
fn each_cells(
    series: &[Arc<Series>],
    mut body: impl FnMut([(&'static str, &str); 3], &Cells) -> fmt::Result,
) -> fmt::Result {
    for one in series {
        for (route, cells) in one.cells() {
            let labels = [("endpoint", one.endpoint.as_str()), ("model", &*one.model), ("route", route)];
            body(labels, cells)?;
        }
    }
    Ok(())
}

fn with<'a>([a, b, c]: [(&'static str, &'a str); 3], own: (&'static str, &'a str)) -> Labels<'a> {
    [a, b, c, own]
}

fn count(encoder: &mut MetricEncoder<'_>, labels: &impl EncodeLabelSet, value: u64) -> fmt::Result {
    encoder.encode_family(labels)?.encode_counter::<NoLabelSet, _, u64>(&value, None)
}

impl Collector for SeriesTable {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let series = self.all();
        for family in families() {
            let kind = MetricType::Histogram;
            let mut metric = encoder.encode_descriptor(family.name, family.help, family.unit.as_ref(), kind)?;
            let per_unit = if family.unit.is_some() { 1e6 } else { 1.0 };
            each_cells(&series, |labels, cells| {
                for (value, histogram) in
                    (family.each)(cells).into_iter().filter(|(_, histogram)| !histogram.is_empty())
                {
                    let snapshot = histogram.snapshot();
                    match family.own {
                        Some(own) => {
                            encode_histogram(metric.encode_family(&with(labels, (own, value)))?, &snapshot, per_unit)?;
                        }
                        None => encode_histogram(metric.encode_family(&labels)?, &snapshot, per_unit)?,
                    }
                }
                Ok(())
            })?;
        }
        let help = "Requests, by how they were answered";
        let mut metric = encoder.encode_descriptor("requests", help, None, MetricType::Counter)?;
        each_cells(&series, |labels, cells| {
            for (status, histogram) in Status::ALL.into_iter().zip(&cells.duration) {
                let value = histogram.snapshot().count();
                if value > 0 {
                    count(&mut metric, &with(labels, ("status", status.as_str())), value)?;
                }
            }
            Ok(())
        })?;
        type Counts = for<'a> fn(&'a Cells) -> &'a [AtomicU64];
        let counters: [(&str, &str, &[&'static str], Counts); 2] = [
            ("tokens", "Tokens, as servers reported them", &TOKEN_TYPES, |cells| &cells.tokens),
            ("work_units", "Work units (bytes) that were billed", &UNIT_TYPES, |cells| &cells.units),
        ];
        for (name, help, types, cells_of) in counters {
            let mut metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            each_cells(&series, |labels, cells| {
                for (kind, cell) in types.iter().zip(cells_of(cells)) {
                    let value = cell.load(Ordering::Relaxed);
                    if value > 0 {
                        count(&mut metric, &with(labels, ("type", kind)), value)?;
                    }
                }
                Ok(())
            })?;
        }
        let unit = Unit::Other("credits".into());
        let mut metric = encoder.encode_descriptor("cost", "What requests cost", Some(&unit), MetricType::Counter)?;
        each_cells(&series, |labels, cells| {
            let micro = cells.cost_micro.load(Ordering::Relaxed);
            if micro == 0 {
                return Ok(());
            }
            metric.encode_family(&labels)?.encode_counter::<NoLabelSet, _, u64>(&(number(micro) / 1e6), None)
        })
    }
}
