//! What all charts share: caption, legend, axes; and the chart that has a row for each policy.
//! Invariant: every chart has a title, a legend, and axes whose labels name their unit. Colours are classes, so that one
//! picture serves light, dark and print.

use super::html::{Attributes, Markup};
use super::scale::{Axis, Scale, digits, number};
use crate::fleet::Interval;

/// Width of a chart over the whole page, in the units of its picture.
pub(super) const WIDE: f64 = 1060.0;
/// Width of one of two beside each other.
pub(super) const HALF: f64 = 510.0;
const LEGEND_HEIGHT: f64 = 24.0;
const ROW_HEIGHT: f64 = 22.0;
/// From the axis down: ticks and label.
const BELOW: f64 = 40.0;

/// Whose figures they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// Ours.
    Spillway,
    /// The oracle's: nobody can be expected to do better.
    Bound,
    /// What it is compared with.
    Other,
}

impl Role {
    /// The class in the style sheet.
    pub(super) const fn class(self) -> &'static str {
        match self {
            Self::Spillway => "spillway",
            Self::Bound => "bound",
            Self::Other => "other",
        }
    }
}

/// How a figure is marked, and an entry of the legend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mark {
    /// A bar from 0.
    Bar,
    /// A full circle.
    Dot,
    /// A hollow diamond.
    Diamond,
    /// A hollow square.
    Square,
    /// A line from one end of the interval to the other.
    Whisker,
    /// A line over time.
    Line,
}

/// The caption of a chart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Caption<'a> {
    /// What it is.
    pub(super) title: &'a str,
    /// How to read it.
    pub(super) note: &'a str,
}

/// A coordinate as SVG has it.
pub(super) fn px(place: f64) -> String {
    format!("{place:.1}")
}

/// About how wide a text of 12 px is.
pub(super) fn text_width(text: &str) -> f64 {
    text.chars().count() as f64 * 6.4
}

/// A picture with its caption; `draw` makes what is inside.
pub(super) fn figure(
    markup: &mut Markup,
    caption: &Caption<'_>,
    size: (f64, f64),
    legend: &[(Mark, &'static str, &str)],
    draw: impl FnOnce(&mut Markup),
) {
    let (width, height) = size;
    markup.open("figure", &[("class", if width > HALF { "wide" } else { "half" })]);
    markup.open("figcaption", &[]).leaf("b", &[], caption.title).leaf("span", &[], caption.note).close();
    let view = format!("0 0 {width:.0} {height:.0}");
    let attributes: Attributes<'_> =
        &[("xmlns", "http://www.w3.org/2000/svg"), ("viewBox", &view), ("role", "img"), ("aria-label", caption.title)];
    markup.open("svg", attributes).leaf("title", &[], caption.title);
    markup.open("g", &[("class", "legend")]);
    let mut x = 4.0;
    for (kind, class, text) in legend {
        mark(markup, *kind, class, (x + 9.0, 10.0), 9.0);
        markup.leaf("text", &[("x", &px(x + 24.0)), ("y", "14")], text);
        x += 24.0 + text_width(text) + 12.0;
    }
    markup.close();
    draw(markup);
    markup.close().close();
}

/// A mark at a place; `reach` is half the length of those that are long.
pub(super) fn mark(markup: &mut Markup, kind: Mark, class: &str, (x, y): (f64, f64), reach: f64) {
    let (full, hollow) = (format!("{class} fill"), format!("{class} hollow"));
    match kind {
        Mark::Bar => {
            let place: Attributes<'_> = &[
                ("x", &px(x - reach)),
                ("y", &px(y - 5.0)),
                ("width", &px(2.0 * reach)),
                ("height", "10"),
                ("class", &full),
            ];
            markup.shape("rect", place);
        }
        Mark::Dot => {
            markup.shape("circle", &[("cx", &px(x)), ("cy", &px(y)), ("r", "5"), ("class", &full)]);
        }
        Mark::Diamond => {
            let path = format!("M{x:.1} {:.1}l6 6l-6 6l-6 -6z", y - 6.0);
            markup.shape("path", &[("d", &path), ("class", &hollow)]);
        }
        Mark::Square => {
            let place: Attributes<'_> =
                &[("x", &px(x - 4.5)), ("y", &px(y - 4.5)), ("width", "9"), ("height", "9"), ("class", &hollow)];
            markup.shape("rect", place);
        }
        Mark::Whisker => whisker(markup, (x - reach, y), (x + reach, y)),
        Mark::Line => {
            let path = format!("M{:.1} {y:.1}h{:.1}", x - reach, 2.0 * reach);
            markup.shape("path", &[("d", &path), ("class", &format!("{class} line"))]);
        }
    }
}

/// An interval: a line with an end stop on both sides, level or upright.
pub(super) fn whisker(markup: &mut Markup, (x1, y1): (f64, f64), (x2, y2): (f64, f64)) {
    let level = (y1 - y2).abs() < 0.05;
    if level && (x1 - x2).abs() < 0.05 {
        return;
    }
    let stop = if level { "m0 -4v8" } else { "m-4 0h8" };
    let path = format!("M{x1:.1} {y1:.1}{stop}M{x1:.1} {y1:.1}L{x2:.1} {y2:.1}{stop}");
    markup.shape("path", &[("d", &path), ("class", "whisker")]);
}

/// The level axis below a plot: lines up through it, ticks, and its label.
pub(super) fn axis_below(markup: &mut Markup, axis: &Axis<'_>, scale: &Scale, plot: &Plot) {
    for (at, text) in scale.ticks() {
        let x = px(plot.x(at));
        let line: Attributes<'_> =
            &[("x1", &x), ("x2", &x), ("y1", &px(plot.top)), ("y2", &px(plot.bottom)), ("class", "grid")];
        markup.shape("line", line);
        let place: Attributes<'_> =
            &[("x", &x), ("y", &px(plot.bottom + 16.0)), ("text-anchor", "middle"), ("class", "tick")];
        markup.leaf("text", place, &text);
    }
    let log = if scale.is_log() { ", logarithmic" } else { "" };
    let middle = px((plot.left + plot.right) / 2.0);
    let place: Attributes<'_> =
        &[("x", &middle), ("y", &px(plot.bottom + 34.0)), ("text-anchor", "middle"), ("class", "axis-label")];
    markup.leaf("text", place, &format!("{}{log}", axis.label()));
}

/// The upright axis left of a plot.
pub(super) fn axis_left(markup: &mut Markup, axis: &Axis<'_>, scale: &Scale, plot: &Plot) {
    for (at, text) in scale.ticks() {
        let y = plot.y(at);
        let line: Attributes<'_> =
            &[("x1", &px(plot.left)), ("x2", &px(plot.right)), ("y1", &px(y)), ("y2", &px(y)), ("class", "grid")];
        markup.shape("line", line);
        let place: Attributes<'_> =
            &[("x", &px(plot.left - 7.0)), ("y", &px(y + 4.0)), ("text-anchor", "end"), ("class", "tick")];
        markup.leaf("text", place, &text);
    }
    let log = if scale.is_log() { ", logarithmic" } else { "" };
    let middle = (plot.top + plot.bottom) / 2.0;
    let turn = format!("translate(14 {middle:.1}) rotate(-90)");
    let place: Attributes<'_> = &[("transform", &turn), ("text-anchor", "middle"), ("class", "axis-label")];
    markup.leaf("text", place, &format!("{}{log}", axis.label()));
}

/// Where a chart's figures are drawn.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plot {
    /// Its edges.
    pub(super) left: f64,
    /// Its edges.
    pub(super) right: f64,
    /// Its edges.
    pub(super) top: f64,
    /// Its edges.
    pub(super) bottom: f64,
}

impl Plot {
    /// A share of the way from left to right.
    pub(super) fn x(&self, share: f64) -> f64 {
        self.left + share * (self.right - self.left)
    }

    /// A share of the way from the bottom up.
    pub(super) fn y(&self, share: f64) -> f64 {
        self.bottom - share * (self.bottom - self.top)
    }
}

/// A chart with a row for each policy.
pub(super) struct Rows<'a> {
    /// Its caption.
    pub(super) caption: Caption<'a>,
    /// Its width.
    pub(super) width: f64,
    /// What the rows are.
    pub(super) rows: &'a str,
    /// What the legend calls those that are neither Spillway's nor the oracle's.
    pub(super) others: &'a str,
    /// The axis of the figures.
    pub(super) axis: Axis<'a>,
    /// The marks of a row's figures, and what each is.
    pub(super) series: &'a [(Mark, &'a str)],
    /// Name, whose it is, and a figure for each mark.
    pub(super) of: Vec<(String, Role, Vec<Interval>)>,
}

impl Rows<'_> {
    /// Draws it. With one mark, each row ends with its mean in figures.
    pub(super) fn draw(&self, markup: &mut Markup) {
        let all: Vec<Interval> = self.of.iter().flat_map(|(_, _, figures)| figures.iter().copied()).collect();
        let names = self.of.iter().map(|(name, ..)| short(name)).collect::<Vec<_>>();
        let left = names.iter().map(|name| text_width(name)).fold(text_width(self.rows), f64::max) + 14.0;
        let single = self.series.len() == 1;
        let most = all.iter().map(|it| it.mean.abs()).filter(|mean| mean.is_finite()).fold(0.0, f64::max);
        let value = |it: &Interval| number(it.mean, digits(most));
        let values = all.iter().map(|it| text_width(&value(it))).fold(0.0, f64::max);
        let top = LEGEND_HEIGHT + 20.0;
        let bottom = top + ROW_HEIGHT * self.of.len() as f64;
        let right = self.width - if single { values + 22.0 } else { 24.0 };
        let plot = Plot { left, right, top, bottom };
        let scale = Scale::fit(&self.axis, &all, if self.width > HALF { 9 } else { 5 });
        let legend = legend(self.others, self.of.iter().map(|(_, role, _)| *role), self.series, &all);
        figure(markup, &self.caption, (self.width, bottom + BELOW), &legend, |markup| {
            let head: Attributes<'_> = &[("x", "4"), ("y", &px(top - 7.0)), ("class", "axis-label")];
            markup.leaf("text", head, self.rows);
            axis_below(markup, &self.axis, &scale, &plot);
            for (index, (name, role, figures)) in self.of.iter().enumerate() {
                let y = top + ROW_HEIGHT * (index as f64 + 0.5);
                let place: Attributes<'_> =
                    &[("x", &px(left - 8.0)), ("y", &px(y + 4.0)), ("text-anchor", "end"), ("class", role.class())];
                markup.leaf("text", place, &names[index]);
                self.row(markup, &scale, &plot, y, (name, *role, figures));
                if let (true, [only]) = (single, &figures[..]) {
                    let end = px(self.width - 6.0);
                    let place: Attributes<'_> =
                        &[("x", &end), ("y", &px(y + 4.0)), ("text-anchor", "end"), ("class", role.class())];
                    markup.leaf("text", place, &value(only));
                }
            }
        });
    }

    fn row(&self, markup: &mut Markup, scale: &Scale, plot: &Plot, y: f64, of: (&str, Role, &[Interval])) {
        let (name, role, figures) = of;
        let place = |figure: f64| plot.x(scale.at(figure));
        let finite = || figures.iter().filter(|it| it.mean.is_finite());
        markup.open("g", &[]);
        let told: Vec<_> = finite().map(|it| number(it.mean, digits(it.mean))).collect();
        markup.leaf("title", &[], &format!("{name}: {} {}", told.join(", "), self.axis.unit));
        if !self.series.iter().any(|(mark, _)| *mark == Mark::Bar) && figures.len() > 1 {
            let ends = finite().map(|it| place(it.mean));
            let (from, to) = ends.fold((f64::MAX, f64::MIN), |(from, to), x| (from.min(x), to.max(x)));
            let class = format!("span stroke {}", role.class());
            if from < to {
                let line: Attributes<'_> =
                    &[("x1", &px(from)), ("x2", &px(to)), ("y1", &px(y)), ("y2", &px(y)), ("class", &class)];
                markup.shape("line", line);
            }
        }
        for ((kind, _), it) in self.series.iter().zip(figures).filter(|(_, it)| it.mean.is_finite()) {
            let x = place(it.mean);
            if *kind == Mark::Bar {
                let (from, class) = (place(0.0), format!("{} fill", role.class()));
                let bar: Attributes<'_> = &[
                    ("x", &px(from)),
                    ("y", &px(y - 7.0)),
                    ("width", &px((x - from).max(0.0))),
                    ("height", "14"),
                    ("class", &class),
                ];
                markup.shape("rect", bar);
                whisker(markup, (place(it.low), y), (place(it.high), y));
            } else {
                whisker(markup, (place(it.low), y), (place(it.high), y));
                mark(markup, *kind, role.class(), (x, y), 0.0);
            }
        }
        markup.close();
    }
}

/// The legend of a chart of policies: whose colours are whose, what the marks are, and the intervals if they have a width.
pub(super) fn legend<'a>(
    others: &'a str,
    roles: impl Iterator<Item = Role> + Clone,
    series: &[(Mark, &'a str)],
    figures: &[Interval],
) -> Vec<(Mark, &'static str, &'a str)> {
    let mut legend = Vec::new();
    let single = series.len() == 1;
    let kind = if single { series[0].0 } else { Mark::Bar };
    for (role, text) in [(Role::Spillway, "Spillway"), (Role::Other, others), (Role::Bound, "oracle (a bound)")] {
        // A chart without any row still says what its marks would be.
        if roles.clone().any(|it| it == role) || (role == Role::Other && roles.clone().next().is_none()) {
            legend.push((kind, role.class(), text));
        }
    }
    if !single {
        legend.extend(series.iter().map(|(mark, text)| (*mark, Role::Other.class(), *text)));
    }
    if figures.iter().any(|it| it.high > it.low) {
        legend.push((Mark::Whisker, Role::Other.class(), "95 % interval"));
    }
    legend
}

/// A name that has room beside a chart.
pub(super) fn short(name: &str) -> String {
    const MOST: usize = 24;
    if name.chars().count() <= MOST {
        return name.to_owned();
    }
    name.chars().take(MOST - 1).chain(['…']).collect()
}
