//! The page of one run: where jobs went, how soon text came, who was paid, and which checks held.
//! Invariant: a check that did not hold stands above everything else.

use super::chart::{Caption, HALF, Mark, Role, Rows};
use super::html::Markup;
use super::scale::{Axis, digits, number};
use super::{Origin, html, tile, time};
use crate::Report;
use crate::fleet::Interval;

const fn only(mean: f64) -> Interval {
    Interval { mean, low: mean, high: mean }
}

const fn axis<'a>(name: &'a str, unit: &'a str) -> Axis<'a> {
    Axis { name, unit, from_zero: true, most: f64::INFINITY, log_from: f64::INFINITY }
}

/// The page of a run.
#[must_use]
pub fn report(report: &Report, origin: &Origin) -> String {
    let title = format!("{}, seed {}", report.scenario, report.seed);
    html::page(&title, |markup| {
        markup.leaf("h1", &[], &title);
        checks(markup, report);
        markup.open("div", &[("class", "tiles")]);
        tile(markup, &number(report.jobs.total as f64, 0), "jobs");
        tile(markup, &format!("{:.1} %", report.slo * 100.0), "had their first text in time");
        tile(markup, &format!("{} ms", number(report.ttft_ms.p95 as f64, 0)), "until the first text at p95");
        tile(markup, &number(report.cost, digits(report.cost)), "credits paid for all jobs");
        tile(markup, &format!("{:.1} %", report.provider_share * 100.0), "of what was settled went to providers");
        markup.close();
        markup.open("div", &[("class", "charts")]);
        time::jobs(markup, &report.course);
        time::firsts(markup, &report.course);
        fleets(markup, report);
        markup.close();
        table(markup, report);
        origin.write(markup, &report.seed.to_string());
    })
}

fn checks(markup: &mut Markup, report: &Report) {
    if report.violations.is_empty() {
        markup.leaf("p", &[("class", "verdict")], "All checks held: money, text, and every job's end.");
        return;
    }
    markup.open("div", &[("class", "verdict bad")]);
    let count = report.violations.len();
    markup.leaf("b", &[], &format!("{count} {} broken.", if count == 1 { "rule was" } else { "rules were" }));
    for violation in &report.violations {
        markup.leaf("p", &[], &violation.to_string());
    }
    markup.leaf("p", &[], &format!("Replay: {}", report.replay)).close();
}

/// By fleet: first texts of its clients' jobs, and what it earned.
fn fleets(markup: &mut Markup, report: &Report) {
    let of_clients = report.ttft_ms_by_fleet.iter().filter(|(_, of)| of.p99 > 0);
    let ttft = of_clients.map(|(name, of)| {
        let figures = [of.p50, of.p95, of.p99].map(|ms| only(ms as f64));
        (name.clone(), Role::Other, figures.to_vec())
    });
    let ttft: Vec<_> = ttft.collect();
    if !ttft.is_empty() {
        Rows {
            caption: Caption {
                title: "Time to first text by fleet",
                note: "Of the jobs that its own clients brought.",
            },
            width: HALF,
            rows: "fleet",
            others: "a fleet",
            axis: Axis { from_zero: false, log_from: 15.0, ..axis("time to first text", "ms") },
            series: &[(Mark::Dot, "p50"), (Mark::Diamond, "p95"), (Mark::Square, "p99")],
            of: ttft,
        }
        .draw(markup);
    }
    let earned = report.earned_micro_by_fleet.iter();
    let of: Vec<_> = earned.map(|(name, micro)| (name.clone(), Role::Other, vec![only(*micro as f64 / 1e6)])).collect();
    if !of.is_empty() {
        Rows {
            caption: Caption { title: "Earned by fleet", note: "For serving strangers." },
            width: HALF,
            rows: "fleet",
            others: "a fleet",
            axis: axis("earned", "credits"),
            series: &[(Mark::Bar, "credits")],
            of,
        }
        .draw(markup);
    }
}

fn table(markup: &mut Markup, report: &Report) {
    let (jobs, ttft) = (&report.jobs, &report.ttft_ms);
    let share = |count: u64| format!("{:.2} %", count as f64 / jobs.total.max(1) as f64 * 100.0);
    let left = jobs.total.saturating_sub(jobs.own + jobs.network + jobs.refused + jobs.failed);
    markup.leaf("h2", &[], "Figures").open("dl", &[]);
    for (name, what) in [
        ("Jobs", number(jobs.total as f64, 0)),
        ("On own hardware", format!("{} ({})", number(jobs.own as f64, 0), share(jobs.own))),
        ("With strangers' help", format!("{} ({})", number(jobs.network as f64, 0), share(jobs.network))),
        ("Refused", format!("{} ({})", number(jobs.refused as f64, 0), share(jobs.refused))),
        ("Failed", format!("{} ({})", number(jobs.failed as f64, 0), share(jobs.failed))),
        ("Client left, or not ended", format!("{} ({})", number(left as f64, 0), share(left))),
        ("First text, p50 / p95 / p99", format!("{} / {} / {} ms", ttft.p50, ttft.p95, ttft.p99)),
        ("Cost", format!("{:.6} credits", report.cost)),
        ("Providers' share", format!("{:.2} %", report.provider_share * 100.0)),
        ("Events", number(report.events as f64, 0)),
        ("Hash of all events", report.hash.clone()),
    ] {
        markup.leaf("dt", &[], name).leaf("dd", &[], &what);
    }
    markup.close();
}
