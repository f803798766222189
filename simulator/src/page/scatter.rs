//! The chart of two figures against each other: a point for each policy, with its name.
//! Invariant: every point has its name; names avoid each other, the points, and the edges, as far as there is room.

use super::chart::{
    Caption, Mark, Plot, Role, WIDE, axis_below, axis_left, figure, legend, mark, px, short, text_width,
};
use super::html::{Attributes, Markup};
use super::scale::{Axis, Scale};
use crate::fleet::Interval;

const HEIGHT: f64 = 470.0;

/// A chart of two figures.
pub(super) struct Scatter<'a> {
    /// Its caption.
    pub(super) caption: Caption<'a>,
    /// The level axis.
    pub(super) x: Axis<'a>,
    /// The upright axis.
    pub(super) y: Axis<'a>,
    /// Name, whose it is, and where.
    pub(super) of: Vec<(String, Role, Interval, Interval)>,
}

/// What a name must not lie on.
#[derive(Clone, Copy, Debug)]
struct Area {
    left: f64,
    right: f64,
    top: f64,
    bottom: f64,
}

impl Area {
    const fn around(x: f64, y: f64, half: f64) -> Self {
        Self { left: x - half, right: x + half, top: y - half, bottom: y + half }
    }

    /// How much of the two lies on each other, in square pixels.
    fn shared(&self, other: &Self) -> f64 {
        let width = self.right.min(other.right) - self.left.max(other.left);
        let height = self.bottom.min(other.bottom) - self.top.max(other.top);
        width.max(0.0) * height.max(0.0)
    }

    fn outside(&self, plot: &Plot) -> bool {
        self.left < plot.left || self.right > plot.right || self.top < plot.top || self.bottom > plot.bottom
    }
}

impl Scatter<'_> {
    /// Draws it.
    pub(super) fn draw(&self, markup: &mut Markup) {
        let plot = Plot { left: 76.0, right: WIDE - 20.0, top: 34.0, bottom: HEIGHT - 44.0 };
        let finite = |of: &&(String, Role, Interval, Interval)| of.2.mean.is_finite() && of.3.mean.is_finite();
        let mut points: Vec<_> = self.of.iter().filter(finite).collect();
        // The last is drawn on top, and the first is named first.
        points.sort_by_key(|(_, role, ..)| match role {
            Role::Spillway => 0,
            Role::Bound => 1,
            Role::Other => 2,
        });
        let (xs, ys): (Vec<_>, Vec<_>) = points.iter().map(|(_, _, x, y)| (*x, *y)).unzip();
        let (across, up) = (Scale::fit(&self.x, &framed(&xs), 9), Scale::fit(&self.y, &framed(&ys), 7));
        let place =
            |(_, _, x, y): &(String, Role, Interval, Interval)| (plot.x(across.at(x.mean)), plot.y(up.at(y.mean)));
        let legend = legend(
            "other policies",
            points.iter().map(|(_, role, ..)| *role),
            &[(Mark::Dot, "")],
            &[&xs[..], &ys[..]].concat(),
        );
        figure(markup, &self.caption, (WIDE, HEIGHT), &legend, |markup| {
            axis_below(markup, &self.x, &across, &plot);
            axis_left(markup, &self.y, &up, &plot);
            let mut taken: Vec<(Area, f64)> = Vec::new();
            for point in &points {
                let (x, y) = place(point);
                taken.push((Area::around(x, y, 6.0), 8.0));
                let (low, high) = (plot.x(across.at(point.2.low)), plot.x(across.at(point.2.high)));
                taken.push((Area { left: low, right: high, top: y - 2.0, bottom: y + 2.0 }, 1.0));
                let (low, high) = (plot.y(up.at(point.3.low)), plot.y(up.at(point.3.high)));
                taken.push((Area { left: x - 2.0, right: x + 2.0, top: high, bottom: low }, 1.0));
            }
            let mut names = Vec::new();
            for (name, role, x, y) in points.iter().map(|it| (short(&it.0), it.1, place(it).0, place(it).1)) {
                let area = free(&name, (x, y), &plot, &taken);
                taken.push((area, 40.0));
                names.push((name, role, (x, y), area));
            }
            for point in points.iter().rev() {
                let (x, y) = place(point);
                markup.open("g", &[]);
                let told =
                    format!("{}: {:.3} {}, {:.3} {}", point.0, point.3.mean, self.y.unit, point.2.mean, self.x.unit);
                markup.leaf("title", &[], &told);
                for (x1, x2, y1, y2) in [
                    (plot.x(across.at(point.2.low)), plot.x(across.at(point.2.high)), y, y),
                    (x, x, plot.y(up.at(point.3.low)), plot.y(up.at(point.3.high))),
                ] {
                    let class = format!("reach {}", point.1.class());
                    let line: Attributes<'_> =
                        &[("x1", &px(x1)), ("x2", &px(x2)), ("y1", &px(y1)), ("y2", &px(y2)), ("class", &class)];
                    markup.shape("line", line);
                }
                mark(markup, Mark::Dot, point.1.class(), (x, y), 0.0);
                markup.close();
            }
            for (name, role, (x, y), area) in names {
                let (near_x, near_y) = (x.clamp(area.left, area.right), y.clamp(area.top, area.bottom));
                let far = (near_x - x) * (near_x - x) + (near_y - y) * (near_y - y);
                if far > 14.0 * 14.0 {
                    let line: Attributes<'_> = &[
                        ("x1", &px(x)),
                        ("y1", &px(y)),
                        ("x2", &px(near_x)),
                        ("y2", &px(near_y)),
                        ("class", "leader"),
                    ];
                    markup.shape("line", line);
                }
                let at: Attributes<'_> =
                    &[("x", &px(area.left + 2.0)), ("y", &px(area.bottom - 4.0)), ("class", role.class())];
                markup.leaf("text", at, &name);
            }
        });
    }
}

/// Intervals for the axis: the means decide it, and intervals go beyond them by half of their span at most. What is cut off
/// runs into the picture's edge.
fn framed(figures: &[Interval]) -> Vec<Interval> {
    let means = || figures.iter().map(|it| it.mean);
    let (least, most) = (means().fold(f64::INFINITY, f64::min), means().fold(f64::NEG_INFINITY, f64::max));
    let room = (most - least) / 2.0;
    if room <= 0.0 {
        return figures.to_vec();
    }
    let cut = |it: &Interval| Interval { low: it.low.max(least - room), high: it.high.min(most + room), ..*it };
    figures.iter().map(cut).collect()
}

/// The place for a name that lies on the least, of places around its point, the nearest among equals.
fn free(name: &str, (x, y): (f64, f64), plot: &Plot, taken: &[(Area, f64)]) -> Area {
    const WAYS: [(f64, f64); 12] = [
        (1.0, 0.0),
        (-1.0, 0.0),
        (0.0, -1.0),
        (0.0, 1.0),
        (0.8, -0.8),
        (-0.8, -0.8),
        (0.8, 0.8),
        (-0.8, 0.8),
        (0.95, -0.4),
        (-0.95, -0.4),
        (0.95, 0.4),
        (-0.95, 0.4),
    ];
    let (width, height) = (text_width(name) + 4.0, 16.0);
    let mut best = (f64::INFINITY, Area::around(x, y, 8.0));
    for reach in [9.0, 16.0, 26.0, 38.0, 52.0, 68.0, 86.0, 110.0, 140.0] {
        for (way_x, way_y) in WAYS {
            let near_x = x + way_x * reach;
            let left = if way_x > 0.1 {
                near_x
            } else if way_x < -0.1 {
                near_x - width
            } else {
                near_x - width / 2.0
            };
            let middle = y + way_y * (reach + height / 4.0);
            let area = Area { left, right: left + width, top: middle - height / 2.0, bottom: middle + height / 2.0 };
            let on: f64 = taken.iter().map(|(other, weight)| area.shared(other) * weight).sum();
            let cost = on + reach * 2.0 + if area.outside(plot) { 10_000.0 } else { 0.0 };
            if cost < best.0 {
                best = (cost, area);
            }
        }
    }
    best.1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_in_a_crowd_do_not_lie_on_each_other() {
        let plot = Plot { left: 0.0, right: 900.0, top: 0.0, bottom: 400.0 };
        let mut taken: Vec<(Area, f64)> = Vec::new();
        let points: Vec<_> =
            (0..16).map(|nth| (500.0 + f64::from(nth % 4) * 9.0, 200.0 + f64::from(nth / 4) * 7.0)).collect();
        taken.extend(points.iter().map(|(x, y)| (Area::around(*x, *y, 6.0), 8.0)));
        let mut names: Vec<Area> = Vec::new();
        for point in points {
            let area = free("longest-prefix", point, &plot, &taken);
            assert!(!area.outside(&plot) && names.iter().all(|other| other.shared(&area) == 0.0), "{area:?}");
            taken.push((area, 40.0));
            names.push(area);
        }
    }
}
