//! A promise with a figure: what was promised, what was measured, and whether that is within it.
//! Invariant: a bound that nothing was measured for does not hold.

use serde::Serialize;

/// Which side of the limit is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Side {
    /// The limit itself holds, and what lies below it.
    AtMost,
    /// What lies below the limit, but not the limit itself.
    Below,
    /// The limit itself holds, and what lies above it.
    AtLeast,
}

/// A promise, and what a trial measured of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Bound {
    /// What is promised.
    pub what: String,
    /// What was measured; `None` if there was nothing to measure it on.
    pub measured: Option<f64>,
    /// Which side of the limit is good.
    pub side: Side,
    /// The limit.
    pub limit: f64,
    /// Of both figures.
    pub unit: &'static str,
    /// Whether the measured is within the limit.
    pub held: bool,
}

impl Bound {
    /// Of a promise and the figure measured for it.
    #[must_use]
    pub fn new(what: impl Into<String>, measured: Option<f64>, side: Side, limit: f64, unit: &'static str) -> Self {
        let held = measured.is_some_and(|figure| match side {
            Side::AtMost => figure <= limit,
            Side::Below => figure < limit,
            Side::AtLeast => figure >= limit,
        });
        Self { what: what.into(), measured, side, limit, unit, held }
    }
}

impl std::fmt::Display for Bound {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let side = match self.side {
            Side::AtMost => "at most",
            Side::Below => "below",
            Side::AtLeast => "at least",
        };
        let held = if self.held { "holds " } else { "BROKEN" };
        write!(f, "{held} {}: ", self.what)?;
        match self.measured {
            Some(figure) => write!(f, "{} {}", Short(figure), self.unit)?,
            None => write!(f, "nothing was measured")?,
        }
        write!(f, ", {side} {} {}", Short(self.limit), self.unit)
    }
}

/// A figure with as many decimals as it needs, six at most.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let text = format!("{:.6}", self.0);
        let text = text.trim_end_matches('0').trim_end_matches('.');
        f.write_str(if text == "-0" { "0" } else { text })
    }
}

#[cfg(test)]
mod tests {
    use super::{Bound, Side};

    #[test]
    fn a_bound_holds_on_its_side_and_never_without_a_figure() {
        for (measured, side, limit, held) in [
            (Some(1.0), Side::AtMost, 1.0, true),
            (Some(1.1), Side::AtMost, 1.0, false),
            (Some(1.0), Side::Below, 1.0, false),
            (Some(0.9), Side::Below, 1.0, true),
            (Some(1.0), Side::AtLeast, 1.0, true),
            (Some(0.9), Side::AtLeast, 1.0, false),
            (Some(f64::NAN), Side::AtMost, 1.0, false),
            (None, Side::AtMost, 1.0, false),
            (None, Side::AtLeast, 1.0, false),
        ] {
            assert_eq!(Bound::new("it", measured, side, limit, "%").held, held, "{measured:?} {side:?} {limit}");
        }
    }

    #[test]
    fn a_bound_reads_as_a_sentence() {
        let bound = Bound::new("a stall costs", Some(0.25), Side::AtMost, 1.0, "windows");
        assert_eq!(bound.to_string(), "holds  a stall costs: 0.25 windows, at most 1 windows");
        let bound = Bound::new("a stall costs", None, Side::Below, 2000.0, "ms");
        assert_eq!(bound.to_string(), "BROKEN a stall costs: nothing was measured, below 2000 ms");
    }
}
