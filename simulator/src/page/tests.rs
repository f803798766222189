//! Pages are XML that a parser takes, and every chart says what it shows, in what unit, and whose colours are whose.

use super::{Day, Earned, Origin, comparison, replay, report};
use crate::fleet::{Comparison, Interval, Row};
use crate::{Scenario, Simulation};
use quick_xml::Reader;
use quick_xml::events::Event;
use std::collections::BTreeMap;

/// An element, read back.
#[derive(Debug, Default)]
struct Element {
    tag: String,
    attributes: BTreeMap<String, String>,
    children: Vec<Element>,
    text: String,
}

impl Element {
    fn all<'a>(&'a self, wanted: &dyn Fn(&Element) -> bool, into: &mut Vec<&'a Element>) {
        if wanted(self) {
            into.push(self);
        }
        self.children.iter().for_each(|child| child.all(wanted, into));
    }

    fn of_tag(&self, tag: &str) -> Vec<&Element> {
        let mut all = Vec::new();
        self.all(&|it| it.tag == tag, &mut all);
        all
    }

    fn of_class(&self, class: &str) -> Vec<&Element> {
        let mut all = Vec::new();
        let has = |it: &Element| it.attributes.get("class").is_some_and(|of| of.split(' ').any(|one| one == class));
        self.all(&has, &mut all);
        all
    }
}

/// Reads a page as XML; fails if it is none, or if anything in it could ask for something elsewhere or run.
fn parse(page: &str) -> Element {
    let mut reader = Reader::from_str(page);
    reader.config_mut().check_end_names = true;
    let mut open = vec![Element::default()];
    loop {
        let event = reader.read_event().expect("well-formed XML");
        let start = match &event {
            Event::Start(start) | Event::Empty(start) => Some(start),
            _ => None,
        };
        if let Some(start) = start {
            let attributes = start.attributes().map(|attribute| {
                let attribute = attribute.expect("an attribute with its value in quotes, once");
                let value = attribute.normalized_value(quick_xml::XmlVersion::Implicit1_0).expect("known entities");
                (attribute.key.into_inner().to_owned(), value.into_owned())
            });
            let element = Element {
                tag: start.name().into_inner().to_owned(),
                attributes: attributes.collect(),
                ..Element::default()
            };
            assert!(!["script", "link", "img", "iframe", "object", "use"].contains(&&*element.tag), "{element:?}");
            for name in element.attributes.keys() {
                assert!(!name.starts_with("on") && !["src", "href", "style"].contains(&&**name), "{element:?}");
            }
            open.push(element);
        }
        match event {
            Event::Empty(_) | Event::End(_) => {
                let closed = open.pop().expect("it was opened");
                open.last_mut().expect("the document").children.push(closed);
            }
            Event::Text(text) => open.last_mut().expect("the document").text += &text.xml10_content(),
            Event::GeneralRef(entity) => {
                let name = entity.xml10_content();
                let known = quick_xml::escape::unescape(&format!("&{name};")).expect("a known entity").into_owned();
                open.last_mut().expect("the document").text += &known;
            }
            Event::Eof => break,
            _ => {}
        }
    }
    assert_eq!(open.len(), 1, "everything is closed");
    open.pop().expect("the document")
}

/// Every chart has a title, both axes' names with units, ticks, a legend, and nothing but numbers as places.
fn check_charts(document: &Element, count: usize) {
    let charts = document.of_tag("svg");
    assert_eq!(charts.len(), count);
    for chart in charts {
        let title = &chart.of_tag("title").first().expect("a title").text;
        assert!(!title.is_empty() && chart.attributes["aria-label"] == *title);
        let labels: Vec<_> = chart.of_class("axis-label").iter().map(|label| label.text.clone()).collect();
        assert!(labels.len() >= 2, "{title}: {labels:?}");
        let units = labels.iter().filter(|label| label.contains(" (") && label.contains(')')).count();
        let categories = labels.iter().filter(|label| ["policy", "fleet"].contains(&&***label)).count();
        assert!(units >= 1 && units + categories == labels.len(), "{title}: {labels:?}");
        assert!(chart.of_class("tick").len() >= 2, "{title}");
        let legend = chart.of_class("legend");
        assert!(legend.len() == 1 && !legend[0].of_tag("text").is_empty(), "{title}");
        let view: Vec<f64> = chart.attributes["viewBox"].split(' ').map(|it| it.parse().expect("a number")).collect();
        let mut shapes = Vec::new();
        chart.all(&|it| it.attributes.contains_key("x"), &mut shapes);
        for shape in shapes {
            for (name, most) in [("x", view[2]), ("y", view[3])] {
                let at: f64 = shape.attributes[name].parse().expect("a number");
                assert!((0.0..=most).contains(&at), "{title}: {shape:?} lies outside");
            }
        }
        let mut paths = Vec::new();
        chart.all(&|it| it.attributes.get("d").is_some_and(|d| d.contains("NaN") || d.contains("inf")), &mut paths);
        assert!(paths.is_empty(), "{title}: {paths:?}");
    }
}

const HOSTILE: &str = "</svg></title><script>alert(1)</script> \"'&amp; \u{0}";

fn row(policy: &str, slo: f64, cost: f64) -> Row {
    let of = |mean: f64| Interval { mean, low: mean * 0.95, high: mean * 1.05 };
    Row {
        policy: policy.to_owned(),
        slo: of(slo),
        ttft_p50_ms: of(120.0),
        ttft_p90_ms: of(400.0),
        ttft_p95_ms: of(900.0),
        ttft_p99_ms: of(9_000.0),
        tpot_mean_ms: of(22.0),
        tpot_p99_ms: of(40.0),
        e2e_p50_s: of(4.0),
        e2e_p95_s: of(20.0),
        cost: of(cost),
        spill_share: of(0.3),
        refused_share: of(0.0),
        failed_share: of(0.0),
        waited_share: of(0.1),
        refused_while_free: of(0.0),
        provider_revenue: of(cost),
        fairness: of(0.7),
        hit_rate: of(0.0),
        output_tokens_per_s: of(900.0),
        probes_per_job: of(1.2),
        turned_away_per_job: of(0.01),
        events: of(1e6),
    }
}

fn rows() -> Vec<Row> {
    let mut nothing = row("nobody-was-served", 0.0, 0.0);
    nothing.ttft_p50_ms = Interval { mean: f64::NAN, low: f64::NAN, high: f64::NAN };
    vec![row("spillway", 0.97, 1.2), row("oracle", 0.99, 1.0), row(HOSTILE, 0.9, 1.4), nothing]
}

fn origin() -> Origin {
    Origin { command: format!("spillway-sim compare '{HOSTILE}'"), setting: format!("name = {HOSTILE}") }
}

#[test]
fn a_comparison_is_a_page_with_six_whole_charts() {
    for policies in [rows(), rows()[..1].to_vec(), Vec::new()] {
        let shown = Comparison { scenario: HOSTILE.to_owned(), seeds: [0, 10], policies };
        let page = comparison(&shown, &origin());
        let document = parse(&page);
        check_charts(&document, 6);
        let hostile = HOSTILE.replace('\0', "\u{fffd}");
        assert_eq!(document.of_tag("h1")[0].text, format!("{hostile}: routing policies compared"));
        assert_eq!(document.of_tag("pre")[0].text, format!("name = {hostile}"));
        assert!(!page.contains("<script"));
    }
}

#[test]
fn a_day_is_a_comparison_and_what_was_earned() {
    let of = |mean: f64| Interval { mean, low: mean, high: mean };
    let earned = |row: &Row| Earned { policy: row.policy.clone(), own: of(0.0), strangers: of(row.cost.mean) };
    let day = Day { log: HOSTILE.to_owned(), jobs: 4, span_s: 7200, earned: rows().iter().map(earned).collect() };
    let shown = Comparison { scenario: "day".to_owned(), seeds: [3, 4], policies: rows() };
    let document = parse(&replay(&day, &shown, &origin()));
    check_charts(&document, 8);
    assert!(document.of_tag("h1")[0].text.ends_with(": 4 jobs in 2.0 h"));
}

#[test]
fn a_run_is_a_page_whose_columns_are_its_jobs() {
    let mut scenario = Scenario::named("burst", 3).expect("it is built in");
    scenario.name = HOSTILE.replace('\0', "");
    let shown = Simulation::new(3).scenario(scenario).run().assert_clean();
    let ended: u64 = shown.course.intervals().iter().map(|it| it.own + it.network + it.refused + it.failed).sum();
    let jobs = shown.jobs;
    assert_eq!(ended, jobs.own + jobs.network + jobs.refused + jobs.failed);
    let document = parse(&report(&shown, &origin()));
    check_charts(&document, 4);
    assert!(!document.of_class("column").is_empty());
    assert_eq!(document.of_class("bad").len(), 0);
}
