//! The page of a comparison: who is in time how often, and for how much.
//! Invariant: policies come in one order in all charts and tables, the best attainment first.

use super::chart::{Caption, HALF, Mark, Role, Rows, WIDE};
use super::html::Markup;
use super::scale::{Axis, digits, number};
use super::scatter::Scatter;
use super::{Origin, html, tile};
use crate::fleet::{Comparison, Interval, Row};
use serde::Serialize;

const NEVER: f64 = f64::INFINITY;
const LOG_FROM: f64 = 15.0;

/// A column of a table: its name, what it shows, its factor.
type Column = (&'static str, fn(&Row) -> Interval, f64);

const CLIENTS: &[Column] = &[
    ("in time, %", |row| row.slo, 100.0),
    ("TTFT p50, ms", |row| row.ttft_p50_ms, 1.0),
    ("TTFT p90, ms", |row| row.ttft_p90_ms, 1.0),
    ("TTFT p95, ms", |row| row.ttft_p95_ms, 1.0),
    ("TTFT p99, ms", |row| row.ttft_p99_ms, 1.0),
    ("TPOT mean, ms", |row| row.tpot_mean_ms, 1.0),
    ("TPOT p99, ms", |row| row.tpot_p99_ms, 1.0),
    ("E2E p50, s", |row| row.e2e_p50_s, 1.0),
    ("E2E p95, s", |row| row.e2e_p95_s, 1.0),
    ("refused, %", |row| row.refused_share, 100.0),
    ("failed, %", |row| row.failed_share, 100.0),
    ("waited, %", |row| row.waited_share, 100.0),
];

const MARKET: &[Column] = &[
    ("cost, credits", |row| row.cost, 1.0),
    ("spilled, %", |row| row.spill_share, 100.0),
    ("providers earned, credits", |row| row.provider_revenue, 1.0),
    ("fairness, Jain", |row| row.fairness, 1.0),
    ("cached prompt, %", |row| row.hit_rate, 100.0),
    ("output, tokens/s", |row| row.output_tokens_per_s, 1.0),
    ("probes/job", |row| row.probes_per_job, 1.0),
    ("turned away/job", |row| row.turned_away_per_job, 1.0),
    ("refused while free, jobs", |row| row.refused_while_free, 1.0),
    ("events", |row| row.events, 1.0),
];

const fn axis<'a>(name: &'a str, unit: &'a str) -> Axis<'a> {
    Axis { name, unit, from_zero: true, most: NEVER, log_from: NEVER }
}

fn role(row: &Row) -> Role {
    match &*row.policy {
        "spillway" => Role::Spillway,
        "oracle" => Role::Bound,
        _ => Role::Other,
    }
}

fn times(it: Interval, factor: f64) -> Interval {
    Interval { mean: it.mean * factor, low: it.low * factor, high: it.high * factor }
}

/// The interval without what cannot be: less than nothing, or more than `most`.
fn within(it: Interval, most: f64) -> Interval {
    Interval { low: it.low.max(0.0), high: it.high.min(most), ..it }
}

/// A share in percent.
fn percent(it: Interval) -> Interval {
    within(times(it, 100.0), 100.0)
}

/// What a policy's providers earned of a day.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Earned {
    /// The policy.
    pub policy: String,
    /// Credits that organisations with a gateway earned, for other organisations' jobs.
    pub own: Interval,
    /// Credits that strangers earned.
    pub strangers: Interval,
}

/// A gateway's own day.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Day {
    /// The log's path.
    pub log: String,
    /// How many jobs.
    pub jobs: u64,
    /// From the first to the last, in seconds.
    pub span_s: u64,
    /// By policy.
    pub earned: Vec<Earned>,
}

/// The page of a comparison.
#[must_use]
pub fn comparison(comparison: &Comparison, origin: &Origin) -> String {
    write(&format!("{}: routing policies compared", comparison.scenario), None, comparison, origin)
}

/// The page of a gateway's own day.
#[must_use]
pub fn replay(day: &Day, comparison: &Comparison, origin: &Origin) -> String {
    let hours = day.span_s as f64 / 3600.0;
    let title = format!("{}: {} jobs in {hours:.1} h", day.log, number(day.jobs as f64, 0));
    write(&title, Some(day), comparison, origin)
}

fn write(title: &str, day: Option<&Day>, comparison: &Comparison, origin: &Origin) -> String {
    let [first, end] = comparison.seeds;
    let seeds = format!("{first} to {}", end.saturating_sub(1));
    let mut rows: Vec<&Row> = comparison.policies.iter().collect();
    rows.sort_by(|a, b| b.slo.mean.total_cmp(&a.slo.mean).then(a.cost.mean.total_cmp(&b.cost.mean)));
    html::page(title, |markup| {
        markup.leaf("h1", &[], title);
        let runs = match end.saturating_sub(first) {
            1 => format!("One seed ({first}), so without intervals."),
            count => format!("Means over {count} seeds ({seeds}), with 95 % intervals (Student's t)."),
        };
        markup.leaf("p", &[("class", "soft")], &runs);
        summary(markup, &rows);
        markup.open("div", &[("class", "charts")]);
        charts(markup, &rows);
        if let Some(day) = day {
            earned(markup, &rows, &day.earned);
        }
        markup.close();
        table(markup, "What clients got", &rows, CLIENTS);
        table(markup, "What the market did", &rows, MARKET);
        markup.leaf("p", &[("class", "soft")], WORDS);
        origin.write(markup, &seeds);
    })
}

const WORDS: &str = "In time: served, with first token and mean time between tokens within the setting's limits; refused and \
    broken-off jobs count as missed. TTFT: time to first token. TPOT: time per output token. E2E: time to the last token. \
    Below each mean: half the width of its 95 % interval.";

/// The figures that matter most, and a sentence about who is ahead.
fn summary(markup: &mut Markup, rows: &[&Row]) {
    let Some(ours) = rows.iter().find(|row| role(row) == Role::Spillway) else { return };
    markup.open("div", &[("class", "tiles")]);
    tile(markup, &format!("{:.1} %", ours.slo.mean * 100.0), "of jobs in time with Spillway");
    tile(markup, &number(ours.cost.mean, digits(ours.cost.mean)), "credits paid with Spillway");
    tile(markup, &format!("{} ms", number(ours.ttft_p95_ms.mean, 0)), "until the first token at p95");
    if let Some(oracle) = rows.iter().find(|row| role(row) == Role::Bound && row.slo.mean > 0.0) {
        tile(markup, &format!("{:.1} %", ours.slo.mean / oracle.slo.mean * 100.0), "of the oracle's jobs in time");
    }
    markup.close();
    let others: Vec<_> = rows.iter().filter(|row| role(row) == Role::Other).collect();
    if others.is_empty() {
        return;
    }
    let who = |which: &dyn Fn(&Row) -> bool| {
        let names: Vec<_> = others.iter().filter(|row| which(row)).map(|row| row.policy.as_str()).collect();
        match names.len() {
            0 => "none".to_owned(),
            1..=4 => names.join(", "),
            count => format!("{count} of {}", others.len()),
        }
    };
    let text = format!(
        "Of the other policies, in time more often than Spillway: {}. For less: {}. Both at once: {}. By means; the intervals \
         say how sure that is.",
        who(&|row| row.slo.mean > ours.slo.mean),
        who(&|row| row.cost.mean < ours.cost.mean),
        who(&|row| row.slo.mean > ours.slo.mean && row.cost.mean < ours.cost.mean),
    );
    markup.leaf("p", &[("class", "verdict")], &text);
}

/// A chart with a row for each policy.
const fn row_chart<'a>(
    title: &'a str,
    note: &'a str,
    width: f64,
    axis: Axis<'a>,
    series: &'a [(Mark, &'a str)],
    of: Vec<(String, Role, Vec<Interval>)>,
) -> Rows<'a> {
    Rows { caption: Caption { title, note }, width, rows: "policy", others: "other policies", axis, series, of }
}

fn charts(markup: &mut Markup, rows: &[&Row]) {
    let attainment = Axis { from_zero: false, most: 100.0, ..axis("jobs in time", "%") };
    let cost = axis("cost of all jobs", "credits");
    let of = |figures: &dyn Fn(&Row) -> Vec<Interval>| {
        rows.iter().map(|row| (row.policy.clone(), role(row), figures(row))).collect::<Vec<_>>()
    };
    Scatter {
        caption: Caption {
            title: "Jobs in time against cost",
            note: "Up and to the left is better: more jobs in time, for less. Lines are 95 % intervals.",
        },
        x: Axis { from_zero: false, ..cost },
        y: attainment,
        of: rows.iter().map(|row| (row.policy.clone(), role(row), within(row.cost, NEVER), percent(row.slo))).collect(),
    }
    .draw(markup);
    row_chart(
        "SLO attainment",
        "More is better. The axis does not begin at 0.",
        HALF,
        attainment,
        &[(Mark::Dot, "mean")],
        of(&|row| vec![percent(row.slo)]),
    )
    .draw(markup);
    row_chart("Cost", "Less is better.", HALF, cost, &[(Mark::Bar, "mean")], of(&|row| vec![within(row.cost, NEVER)]))
        .draw(markup);
    let ttft = Axis { from_zero: false, log_from: LOG_FROM, ..axis("time to first token", "ms") };
    row_chart(
        "Time to first token",
        "Less is better. Of the jobs that got a token: a policy that refuses many looks fast here.",
        WIDE,
        ttft,
        &[(Mark::Dot, "p50"), (Mark::Diamond, "p95"), (Mark::Square, "p99")],
        of(&|row| vec![row.ttft_p50_ms, row.ttft_p95_ms, row.ttft_p99_ms]),
    )
    .draw(markup);
    row_chart(
        "Spilled over",
        "Of the jobs served, those that strangers helped with.",
        HALF,
        Axis { most: 100.0, ..axis("served by strangers", "%") },
        &[(Mark::Bar, "mean")],
        of(&|row| vec![percent(row.spill_share)]),
    )
    .draw(markup);
    row_chart(
        "Fairness among providers",
        "More is fairer. Jain's index of revenue by capacity.",
        HALF,
        Axis { most: 1.0, ..axis("Jain's index", "1 is equal") },
        &[(Mark::Bar, "mean")],
        of(&|row| vec![within(row.fairness, 1.0)]),
    )
    .draw(markup);
}

/// Who earned what of a day.
fn earned(markup: &mut Markup, rows: &[&Row], all: &[Earned]) {
    for (title, note, of) in [
        (
            "Earned by own hardware",
            "By organisations with a gateway, for other organisations' jobs.",
            (|it| it.own) as fn(&Earned) -> Interval,
        ),
        ("Earned by strangers", "For the jobs that spilled over, after the market's shares.", |it| it.strangers),
    ] {
        let figure = |row: &Row| all.iter().find(|it| it.policy == row.policy).map(of).unwrap_or_default();
        Rows {
            caption: Caption { title, note },
            width: HALF,
            rows: "policy",
            others: "other policies",
            axis: axis("earned", "credits"),
            series: &[(Mark::Bar, "mean")],
            of: rows.iter().map(|row| (row.policy.clone(), role(row), vec![within(figure(row), NEVER)])).collect(),
        }
        .draw(markup);
    }
}

fn table(markup: &mut Markup, title: &str, rows: &[&Row], columns: &[Column]) {
    markup.leaf("h2", &[], title).open("div", &[("class", "scroll")]).open("table", &[]);
    markup.open("thead", &[]).open("tr", &[]).leaf("th", &[], "policy");
    for (name, ..) in columns {
        markup.leaf("th", &[], name);
    }
    markup.close().close().open("tbody", &[]);
    for row in rows {
        markup.open("tr", &[("class", role(row).class())]).leaf("td", &[], &row.policy);
        for (_, figure, factor) in columns {
            let most = rows.iter().map(|row| figure(row).mean * factor).fold(0.0, f64::max);
            let it = times(figure(row), *factor);
            markup.open("td", &[]).text(&number(it.mean, digits(most)));
            if it.high > it.low {
                markup.leaf("small", &[], &format!("±{}", number(it.high - it.mean, digits(most))));
            }
            markup.close();
        }
        markup.close();
    }
    markup.close().close().close();
}
