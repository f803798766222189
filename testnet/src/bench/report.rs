//! What a run found: a figure for each gateway and measure, the median over the rounds.
//! Invariant: what is said to be added is the difference to the direct way in the same round.

use super::load::{Calls, Frames};
use super::{Load, Memory, Turn};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;

/// One measured number.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Figure {
    /// The gateway.
    pub of: String,
    /// What was measured.
    pub what: String,
    /// How much.
    pub value: f64,
    /// In what.
    pub unit: &'static str,
    /// What it is meant to stay within, where a goal is set: at most, or for `%` at least.
    pub limit: Option<f64>,
    /// The same measure of this gateway over that of the direct way, in the same rounds; absent where there is none.
    pub ratio: Option<f64>,
}

/// All figures of a run.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Which benchmark.
    pub name: &'static str,
    /// Gateway by gateway.
    pub figures: Vec<Figure>,
}

impl Report {
    /// Whether every figure of `of` is within its limit.
    #[must_use]
    pub fn holds(&self, of: &str) -> bool {
        self.figures.iter().filter(|figure| figure.of == of).all(Figure::holds)
    }

    /// The measures as rows, the gateways as columns.
    #[must_use]
    pub fn table(&self) -> String {
        let (mut gateways, mut rows): (Vec<&str>, Vec<(&str, &str)>) = (Vec::new(), Vec::new());
        for figure in &self.figures {
            if !gateways.contains(&figure.of.as_str()) {
                gateways.push(&figure.of);
            }
            if !rows.contains(&(figure.what.as_str(), figure.unit)) {
                rows.push((&figure.what, figure.unit));
            }
        }
        let widest = rows.iter().map(|(what, unit)| what.len() + unit.len() + 2).max().unwrap_or(0);
        let mut text = format!("{:widest$}", "");
        for gateway in &gateways {
            write!(text, "  {gateway:>11}").expect("a string takes all");
        }
        writeln!(text, "  {:>9}", "limit").expect("a string takes all");
        for (what, unit) in rows {
            write!(text, "{:widest$}", format!("{what}, {unit}")).expect("a string takes all");
            let of = |gateway: &str| self.figures.iter().find(|figure| figure.of == gateway && figure.what == what);
            for gateway in &gateways {
                let value = of(gateway).map_or_else(|| "-".into(), |figure| shown(figure.value));
                write!(text, "  {value:>11}").expect("a string takes all");
            }
            let limit = gateways.iter().find_map(|gateway| of(gateway)?.limit);
            writeln!(text, "  {:>9}", limit.map_or_else(String::new, shown)).expect("a string takes all");
        }
        text
    }
}

impl Figure {
    /// Whether it is within its limit, if it has one.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.limit.is_none_or(|limit| if self.unit == "%" { self.value >= limit } else { self.value <= limit })
    }
}

fn shown(value: f64) -> String {
    if value.abs() >= 1000.0 { format!("{value:.0}") } else { format!("{value:.1}") }
}

/// The middle one; of an even number, the mean of the two in the middle.
fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match values.len() {
        0 => None,
        even if even % 2 == 0 => Some(f64::midpoint(values[half - 1], values[half])),
        _ => Some(values[half]),
    }
}

/// A measure of one turn; `None` if it was not taken.
type Measure<'a, T> = &'a dyn Fn(&T) -> Option<f64>;

/// One gateway's turns beside those of the direct way.
struct Beside<'a, T> {
    name: &'a str,
    turns: Vec<&'a T>,
    direct: Option<Vec<&'a T>>,
}

impl<T> Beside<'_, T> {
    /// The measure as it is.
    fn figure(&self, what: String, unit: &'static str, measure: Measure<T>) -> Option<Figure> {
        let of = |turns: &[&T]| median(turns.iter().filter_map(|turn| measure(turn)).collect());
        let value = of(&self.turns)?;
        let direct = self.direct.as_ref().and_then(|turns| of(turns)).filter(|direct| *direct != 0.0);
        Some(Figure { of: self.name.into(), what, value, unit, limit: None, ratio: direct.map(|base| value / base) })
    }

    /// By how much the measure is above the direct way's of the same round; for the direct way itself, the measure.
    fn added(&self, what: &str, unit: &'static str, limit: Option<f64>, measure: Measure<T>) -> Option<Figure> {
        let Some(direct) = &self.direct else { return self.figure(what.into(), unit, measure) };
        let pairs = self.turns.iter().zip(direct);
        let value = median(pairs.filter_map(|(turn, direct)| Some(measure(turn)? - measure(direct)?)).collect())?;
        let ratio = self.figure(what.into(), unit, measure)?.ratio;
        Some(Figure { of: self.name.into(), what: what.into(), value, unit, limit, ratio })
    }
}

/// The goals are Spillway's own; others' figures stand beside them without.
fn goal(name: &str, limit: f64) -> Option<f64> {
    (name == "spillway").then_some(limit)
}

pub(super) fn build(names: &[&str], turns: &BTreeMap<(usize, Load), Vec<Turn>>, memory: &[Option<Memory>]) -> Report {
    let calls = |at: usize, clients| -> Vec<&Calls> {
        let turns = turns.get(&(at, Load::Clients(clients))).into_iter().flatten();
        turns.filter_map(|turn| if let Turn::Calls(calls) = turn { Some(calls) } else { None }).collect()
    };
    let frames = |at: usize, count| -> Vec<&Frames> {
        let turns = turns.get(&(at, Load::Streams(count))).into_iter().flatten();
        turns.filter_map(|turn| if let Turn::Frames(frames) = turn { Some(frames) } else { None }).collect()
    };
    let mut figures = Vec::new();
    for (at, name) in names.iter().enumerate() {
        for load in super::LOADS {
            match load {
                Load::Clients(clients) => {
                    let direct = (at > 0).then(|| calls(0, clients));
                    let beside = Beside { name, turns: calls(at, clients), direct };
                    let with = if clients == 1 { "1 client".into() } else { format!("{clients} clients") };
                    if clients == 1 {
                        for (word, quantile, limit) in [("p50", 0.5, None), ("p99", 0.99, goal(name, 100.0))] {
                            let what = format!("added {word}, {with}");
                            figures.extend(beside.added(&what, "us", limit, &|calls| {
                                (!calls.took.is_empty()).then(|| calls.took.value_at_quantile(quantile) as f64)
                            }));
                        }
                    }
                    figures.extend(beside.figure(format!("requests, {with}"), "1/s", &|calls| {
                        Some(calls.took.len() as f64 / calls.lasted.as_secs_f64())
                    }));
                    let cpu = beside.figure(format!("CPU per request, {with}"), "us", &|calls| {
                        let cpu = calls.cpu?;
                        (!calls.took.is_empty()).then(|| cpu.as_secs_f64() * 1e6 / calls.took.len() as f64)
                    });
                    let limit = if clients == 1 { None } else { goal(name, 90.0) };
                    figures.extend(cpu.map(|figure| Figure { limit, ..figure }));
                    let failed: u64 = beside.turns.iter().map(|calls| calls.failed).sum();
                    figures.push(Figure {
                        of: (*name).into(),
                        what: format!("failed requests, {with}"),
                        value: failed as f64,
                        unit: "",
                        limit: goal(name, 0.0),
                        ratio: None,
                    });
                }
                Load::Streams(count) => {
                    let beside = Beside { name, turns: frames(at, count), direct: (at > 0).then(|| frames(0, count)) };
                    let at_quantile = |histogram: &hdrhistogram::Histogram<u64>, quantile| {
                        (!histogram.is_empty()).then(|| histogram.value_at_quantile(quantile) as f64)
                    };
                    figures.extend(beside.added("added time to first token p50", "us", goal(name, 300.0), &|frames| {
                        at_quantile(&frames.first, 0.5)
                    }));
                    figures
                        .extend(beside.added("added delay of a frame p50", "us", None, &|frames| {
                            at_quantile(&frames.delay, 0.5)
                        }));
                    figures.extend(
                        beside.added("added delay of a frame p99", "us", None, &|frames| {
                            at_quantile(&frames.delay, 0.99)
                        }),
                    );
                    figures
                        .extend(beside.added("added gap p99", "us", None, &|frames| at_quantile(&frames.jitter, 0.99)));
                    let sum = |of: fn(&Frames) -> u64| beside.turns.iter().map(|frames| of(frames)).sum::<u64>() as f64;
                    figures.push(Figure {
                        of: (*name).into(),
                        what: format!("of {count} streams at once, with every frame"),
                        value: 100.0 * sum(|frames| frames.intact) / sum(|frames| frames.asked).max(1.0),
                        unit: "%",
                        limit: goal(name, 100.0),
                        ratio: None,
                    });
                }
            }
        }
        if let Some(memory) = memory.get(at).copied().flatten() {
            let sizes = [
                ("idle", memory.idle, goal(name, 25.0)),
                ("loaded", memory.loaded, None),
                ("recovered", memory.recovered, None),
            ];
            figures.extend(sizes.map(|(when, value, limit)| Figure {
                of: (*name).into(),
                what: format!("resident memory, {when}"),
                value,
                unit: "MB",
                limit,
                ratio: None,
            }));
        }
    }
    Report { name: "gateway", figures }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hdrhistogram::Histogram;
    use std::time::Duration;

    fn calls(took_us: &[u64], cpu_us: Option<u64>) -> Turn {
        let mut took = Histogram::new_with_bounds(1, 60_000_000, 3).expect("bounds");
        took_us.iter().for_each(|us| took.saturating_record(*us));
        let cpu = cpu_us.map(Duration::from_micros);
        Turn::Calls(Calls { took, failed: 0, lasted: Duration::from_secs(1), cpu })
    }

    #[test]
    fn what_is_added_is_the_median_of_differences_within_rounds() {
        // A slow second round slows both; the differences are 50, 60 and 70.
        let turns = BTreeMap::from([
            ((0, Load::Clients(1)), vec![calls(&[100], None), calls(&[900], None), calls(&[110], None)]),
            ((1, Load::Clients(1)), vec![calls(&[150], Some(10)), calls(&[960], Some(40)), calls(&[180], Some(20))]),
        ]);
        let report = build(&["direct", "spillway"], &turns, &[None, None]);
        let figure = |of: &str, what: &str| {
            report.figures.iter().find(|figure| figure.of == of && figure.what == what).expect("measured").clone()
        };
        assert_eq!(figure("direct", "added p50, 1 client").value, 110.0);
        let added = figure("spillway", "added p50, 1 client");
        assert!((added.value - 60.0).abs() <= 1.0, "{added:?}");
        assert!(added.ratio.is_some_and(|ratio| (ratio - 180.0 / 110.0).abs() < 0.02), "{added:?}");
        assert_eq!(figure("spillway", "CPU per request, 1 client").value, 20.0);
        assert!(report.figures.iter().all(|figure| figure.of == "spillway" || figure.limit.is_none()));
    }

    #[test]
    fn a_limit_is_at_most_but_for_shares() {
        let figure = |value, unit, limit| {
            let (of, what) = ("spillway".into(), "x".into());
            Figure { of, what, value, unit, limit, ratio: None }.holds()
        };
        assert!(figure(90.0, "us", Some(90.0)) && !figure(90.1, "us", Some(90.0)));
        assert!(figure(100.0, "%", Some(100.0)) && !figure(99.9, "%", Some(100.0)));
        assert!(figure(1e9, "us", None));
    }
}
