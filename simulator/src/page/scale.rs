//! From figures to places on an axis, and the ticks in between.
//! Invariant: every figure that a scale was fitted to lies on it, ticks lie on it too, and there are at least two.

use crate::fleet::Interval;

/// One axis of a chart.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis<'a> {
    /// What it shows.
    pub(super) name: &'a str,
    /// In what.
    pub(super) unit: &'a str,
    /// It begins at 0, so that lengths can be compared.
    pub(super) from_zero: bool,
    /// Nothing is beyond: 100 % is the most.
    pub(super) most: f64,
    /// Figures that differ by more than a factor of this are shown by their logarithm.
    pub(super) log_from: f64,
}

impl Axis<'_> {
    /// Its label: name and unit.
    pub(super) fn label(&self) -> String {
        format!("{} ({})", self.name, self.unit)
    }
}

/// An axis with its ends.
#[derive(Clone, Debug)]
pub(super) struct Scale {
    from: f64,
    to: f64,
    log: bool,
    ticks: Vec<f64>,
    digits: usize,
}

/// Whether an axis may be logarithmic is for figures above this.
const LOG_LEAST: f64 = 1e-6;

impl Scale {
    /// The scale for these figures. Whatever is not finite is left out; without any figure it goes from 0 to 1.
    pub(super) fn fit(axis: &Axis<'_>, figures: &[Interval], ticks_max: usize) -> Self {
        let known = figures.iter().flat_map(|it| [it.low, it.mean, it.high]).filter(|figure| figure.is_finite());
        let least = known.clone().fold(f64::INFINITY, f64::min);
        let most = known.fold(f64::NEG_INFINITY, f64::max);
        let means = figures.iter().map(|it| it.mean).filter(|mean| mean.is_finite() && *mean > 0.0);
        let (lowest, highest) =
            means.fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), mean| (low.min(mean), high.max(mean)));
        if !least.is_finite() {
            return Self::linear(0.0, 1.0, ticks_max);
        }
        if lowest > LOG_LEAST && highest / lowest > axis.log_from {
            // An interval may reach 0 or below: it is cut off at half of the least mean.
            return Self::log(least.max(lowest / 2.0), most, ticks_max);
        }
        let (from, to) = if axis.from_zero {
            (0.0, most.max(0.0))
        } else {
            let room = (most - least) * 0.06;
            (least - room, most + room)
        };
        let from = if least >= 0.0 { from.max(0.0) } else { from };
        let to = if most <= axis.most { to.min(axis.most) } else { to };
        if to - from > from.abs() * 1e-9 && to - from > f64::MIN_POSITIVE {
            return Self::linear(from, to, ticks_max);
        }
        // One figure only: some room on either side.
        let room = if to == 0.0 { 1.0 } else { to.abs() * 0.1 };
        Self::linear(if least >= 0.0 { (from - room).max(0.0) } else { from - room }, to + room, ticks_max)
    }

    fn linear(from: f64, to: f64, ticks_max: usize) -> Self {
        let raw = (to - from) / ticks_max.max(2) as f64;
        let power = libm::floor(libm::log10(raw));
        let unit = libm::pow(10.0, power);
        let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|it| it * unit).find(|step| *step >= raw * 0.999);
        let step = step.unwrap_or(unit * 10.0);
        let (first, last) = (libm::floor(from / step + 1e-9), libm::ceil(to / step - 1e-9));
        let digits = (0..9).find(|digits| {
            let tens = libm::pow(10.0, f64::from(*digits));
            let scaled = step * tens;
            (scaled - libm::round(scaled)).abs() < 1e-6
        });
        let ticks = (0..=(last - first) as usize).map(|nth| (first + nth as f64) * step).collect();
        let digits = digits.unwrap_or(9) as usize;
        Self { from: first * step, to: last * step, log: false, ticks, digits }
    }

    fn log(from: f64, to: f64, ticks_max: usize) -> Self {
        let decades = libm::ceil(libm::log10(to)) - libm::floor(libm::log10(from));
        let steps: &[f64] = if decades * 3.0 <= ticks_max as f64 { &[1.0, 2.0, 5.0] } else { &[1.0] };
        let mut all = Vec::new();
        let mut power = libm::floor(libm::log10(from)) as i32;
        while libm::pow(10.0, f64::from(power)) < to * 10.0 && power < 300 {
            all.extend(steps.iter().map(|step| step * libm::pow(10.0, f64::from(power))));
            power += 1;
        }
        let begin = all.iter().rposition(|tick| *tick <= from * 1.000_001).unwrap_or(0);
        let end = all.iter().position(|tick| *tick >= to * 0.999_999).unwrap_or(all.len() - 1).max(begin + 1);
        let ticks: Vec<f64> = all[begin..=end.min(all.len() - 1)].to_vec();
        let (from, to) = (ticks[0], *ticks.last().expect("two ticks"));
        let digits = (0..9).find(|digits| from * libm::pow(10.0, f64::from(*digits)) >= 0.999).unwrap_or(9);
        Self { from, to, log: true, ticks, digits: digits as usize }
    }

    /// Whether equal distances are equal factors.
    pub(super) const fn is_log(&self) -> bool {
        self.log
    }

    /// Where a figure lies: 0 at the beginning, 1 at the end; what is beyond lies at the end.
    pub(super) fn at(&self, figure: f64) -> f64 {
        let share = if self.log {
            let begin = libm::log10(self.from);
            (libm::log10(figure.max(self.from)) - begin) / (libm::log10(self.to) - begin)
        } else {
            (figure - self.from) / (self.to - self.from)
        };
        share.clamp(0.0, 1.0)
    }

    /// The ticks, with what is written at them.
    pub(super) fn ticks(&self) -> impl Iterator<Item = (f64, String)> {
        self.ticks.iter().map(|tick| {
            let whole = self.log && *tick >= 1.0;
            (self.at(*tick), number(*tick, if whole { 0 } else { self.digits }))
        })
    }
}

/// A figure with so many digits after the point, and a comma after each thousand.
pub(super) fn number(figure: f64, digits: usize) -> String {
    if !figure.is_finite() {
        return "–".to_owned();
    }
    let text = format!("{figure:.digits$}");
    let (sign, text) = text.strip_prefix('-').map_or(("", &*text), |rest| ("−", rest));
    let (whole, rest) = text.split_once('.').map_or((text, ""), |(whole, rest)| (whole, rest));
    let mut grouped = String::new();
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    let zero = !text.contains(|digit: char| digit.is_ascii_digit() && digit != '0');
    let sign = if zero { "" } else { sign };
    if rest.is_empty() { format!("{sign}{grouped}") } else { format!("{sign}{grouped}.{rest}") }
}

/// As many digits as tell figures of that size apart: three that count.
pub(super) fn digits(figure: f64) -> usize {
    match figure.abs() {
        size if !size.is_finite() || size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 || size == 0.0 => 2,
        size if size >= 0.1 => 3,
        size if size >= 0.01 => 4,
        _ => 6,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(mean: f64) -> Interval {
        Interval { mean, low: mean, high: mean }
    }

    fn scale(figures: &[f64], from_zero: bool, most: f64, log_from: f64) -> (Scale, Vec<String>) {
        let axis = Axis { name: "time", unit: "ms", from_zero, most, log_from };
        let scale = Scale::fit(&axis, &figures.iter().copied().map(only).collect::<Vec<_>>(), 6);
        let ticks = scale.ticks().map(|(_, text)| text).collect();
        (scale, ticks)
    }

    #[test]
    fn ticks_are_round_and_hold_all_figures() {
        let none = f64::INFINITY;
        for (figures, from_zero, most, log_from, wanted) in [
            (&[3.0, 97.0][..], true, none, none, &["0", "20", "40", "60", "80", "100"][..]),
            (&[91.2, 99.6], false, 100.0, none, &["90", "92", "94", "96", "98", "100"]),
            (&[0.0], true, none, none, &["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
            (&[], true, none, none, &["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]),
            (&[40.0, 9_000.0], false, none, 20.0, &["10", "100", "1,000", "10,000"]),
            (&[40.0, 900.0], false, none, 20.0, &["20", "50", "100", "200", "500", "1,000"]),
            (
                &[0.000_02, 0.000_09],
                true,
                none,
                none,
                &["0.00000", "0.00002", "0.00004", "0.00006", "0.00008", "0.00010"],
            ),
            (&[f64::NAN, 1.0, 2.0], true, none, none, &["0.0", "0.5", "1.0", "1.5", "2.0"]),
        ] {
            let (scale, ticks) = scale(figures, from_zero, most, log_from);
            assert_eq!(ticks, wanted, "{figures:?}");
            for figure in figures.iter().filter(|figure| figure.is_finite()) {
                let at = scale.at(*figure);
                assert!((0.0..=1.0).contains(&at) && scale.from <= *figure && *figure <= scale.to, "{figure}: {at}");
            }
        }
    }

    #[test]
    fn any_figures_have_an_axis() {
        let sizes = [0.0, 1e-300, 1e-9, 0.3, 1.0, 99.999_999, 1e6, 1e15, 1e300];
        for low in sizes {
            for high in sizes {
                for (from_zero, log_from) in [(true, f64::INFINITY), (false, f64::INFINITY), (false, 20.0)] {
                    let (scale, ticks) = scale(&[low, high], from_zero, f64::INFINITY, log_from);
                    assert!((2..=40).contains(&ticks.len()) || scale.is_log(), "{low} {high}: {ticks:?}");
                    assert!(scale.ticks().count() >= 2 && scale.at(low).is_finite() && scale.at(high).is_finite());
                }
            }
        }
    }

    #[test]
    fn numbers_are_grouped() {
        for (figure, digits, text) in [
            (0.0, 0, "0"),
            (-0.0, 2, "0.00"),
            (1234.5, 1, "1,234.5"),
            (-1_234_567.0, 0, "−1,234,567"),
            (f64::NAN, 1, "–"),
        ] {
            assert_eq!(number(figure, digits), text);
        }
    }
}
