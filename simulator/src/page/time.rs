//! Charts over time: columns of jobs by their end, and lines of how long first texts took.
//! Invariant: one picture has one time axis, in the unit that fits the run's length.

use super::chart::{Caption, Mark, Plot, WIDE, axis_below, axis_left, figure, px};
use super::html::{Attributes, Markup};
use super::scale::{Axis, Scale};
use crate::course::{Course, Interval};
use crate::fleet;

const HEIGHT: f64 = 290.0;

/// Part of a column: its class, its name, its count.
type Part = (&'static str, &'static str, fn(&Interval) -> u64);

const PARTS: [Part; 5] = [
    ("own", "own hardware", |it| it.own),
    ("network", "strangers", |it| it.network),
    ("refused", "refused", |it| it.refused),
    ("failed", "failed", |it| it.failed),
    ("left", "client left", |it| it.left),
];

fn only(mean: f64) -> fleet::Interval {
    fleet::Interval { mean, low: mean, high: mean }
}

/// A span of time in the unit that fits it.
fn told(ms: u64) -> String {
    match ms / 1_000 {
        seconds if seconds < 120 => format!("{seconds} s"),
        seconds if seconds < 7_200 => format!("{:.1} min", seconds as f64 / 60.0),
        seconds => format!("{:.1} h", seconds as f64 / 3_600.0),
    }
}

/// The time axis: it, its scale, and how many milliseconds its unit has.
fn time(course: &Course) -> (Axis<'static>, Scale, f64) {
    let end_ms = course.intervals().len().max(1) as f64 * course.length_ms() as f64;
    let (unit, ms) = match end_ms {
        end if end <= 300_000.0 => ("s", 1e3),
        end if end <= 18_000_000.0 => ("min", 6e4),
        _ => ("h", 3.6e6),
    };
    let axis =
        Axis { name: "time since the run began", unit, from_zero: true, most: f64::INFINITY, log_from: f64::INFINITY };
    let scale = Scale::fit(&axis, &[only(end_ms / ms)], 10);
    (axis, scale, ms)
}

const PLOT: Plot = Plot { left: 76.0, right: WIDE - 20.0, top: 34.0, bottom: HEIGHT - 44.0 };

/// Jobs by where they went, column by column.
pub(super) fn jobs(markup: &mut Markup, course: &Course) {
    let (below, across, unit) = time(course);
    let parts: Vec<_> = PARTS.iter().filter(|(_, _, of)| course.intervals().iter().any(|it| of(it) > 0)).collect();
    let sums = course.intervals().iter().map(|it| only(PARTS.iter().map(|(_, _, of)| of(it)).sum::<u64>() as f64));
    let per = format!("jobs in {}", told(course.length_ms()));
    let left = Axis { name: "jobs ended", unit: &per, from_zero: true, most: f64::INFINITY, log_from: f64::INFINITY };
    let up = Scale::fit(&left, &sums.collect::<Vec<_>>(), 5);
    let legend: Vec<_> = parts.iter().map(|(class, name, _)| (Mark::Bar, *class, *name)).collect();
    let legend = if legend.is_empty() { vec![(Mark::Bar, "own", "no job ended")] } else { legend };
    let caption =
        Caption { title: "Where jobs went", note: "Each job where it ended, in the interval in which it did." };
    figure(markup, &caption, (WIDE, HEIGHT), &legend, |markup| {
        axis_below(markup, &below, &across, &PLOT);
        axis_left(markup, &left, &up, &PLOT);
        let length = course.length_ms() as f64 / unit;
        for (index, it) in course.intervals().iter().enumerate() {
            let (from, to) = (index as f64 * length, (index as f64 + 1.0) * length);
            let (from, to) = (PLOT.x(across.at(from)), PLOT.x(across.at(to)));
            let mut sum = 0;
            for (class, _, of) in parts.iter().filter(|(_, _, of)| of(it) > 0) {
                let (low, high) = (PLOT.y(up.at(sum as f64)), PLOT.y(up.at((sum + of(it)) as f64)));
                sum += of(it);
                let class = format!("{class} column");
                let place: Attributes<'_> = &[
                    ("x", &px(from + 0.5)),
                    ("y", &px(high)),
                    ("width", &px((to - from - 1.0).max(0.5))),
                    ("height", &px(low - high)),
                    ("class", &class),
                ];
                markup.shape("rect", place);
            }
        }
    });
}

/// How long first texts took: mean and slowest of each interval. An interval without any is a gap.
pub(super) fn firsts(markup: &mut Markup, course: &Course) {
    let (below, across, unit) = time(course);
    let left = Axis { name: "time to first text", unit: "ms", from_zero: true, most: f64::INFINITY, log_from: 15.0 };
    let mean = |it: &Interval| (it.firsts > 0).then(|| it.first_sum_ms as f64 / it.firsts as f64);
    let slowest = |it: &Interval| (it.firsts > 0).then_some(it.first_max_ms as f64);
    let all = course.intervals().iter().flat_map(|it| [mean(it), slowest(it)]).flatten().map(only);
    let up = Scale::fit(&left, &all.collect::<Vec<_>>(), 6);
    let legend = [(Mark::Line, "own", "mean of an interval"), (Mark::Line, "left", "slowest of an interval")];
    let note = format!("First texts that came within each {}.", told(course.length_ms()));
    let caption = Caption { title: "Time to first text", note: &note };
    figure(markup, &caption, (WIDE, HEIGHT), &legend, |markup| {
        axis_below(markup, &below, &across, &PLOT);
        axis_left(markup, &left, &up, &PLOT);
        let length = course.length_ms() as f64 / unit;
        for (class, of) in [("left line", &slowest as &dyn Fn(&Interval) -> Option<f64>), ("own line", &mean)] {
            let mut path = String::new();
            let mut broken = true;
            for (index, it) in course.intervals().iter().enumerate() {
                let Some(figure) = of(it) else {
                    broken = true;
                    continue;
                };
                let (x, y) = (PLOT.x(across.at((index as f64 + 0.5) * length)), PLOT.y(up.at(figure)));
                // A line that begins has a length even if it ends at once.
                path += &if broken { format!("M{x:.1} {y:.1}h1") } else { format!("L{x:.1} {y:.1}") };
                broken = false;
            }
            if !path.is_empty() {
                markup.shape("path", &[("d", &path), ("class", class)]);
            }
        }
    });
}
