//! One figure: as published, as reproduced here, and ours.
//! Invariant: `pass` is set exactly where there is a goal and what it judges was measured.

use serde::Serialize;
use std::fmt;

/// What one published result came to.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Page {
    /// Its name.
    pub name: &'static str,
    /// Where it was published.
    pub source: &'static str,
    /// Its figures.
    pub rows: Vec<Row>,
}

/// One figure.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Row {
    /// What is measured.
    pub what: String,
    /// As published, if it was.
    pub published: Option<f64>,
    /// The published method, in this simulator.
    pub reproduced: Option<f64>,
    /// Spillway's.
    pub ours: Option<f64>,
    /// Of all three.
    pub unit: &'static str,
    /// Whether the goal is met; `None` without a goal, or if what it judges is absent.
    pub pass: Option<bool>,
    /// What is to be met, if anything.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub goal: String,
    /// Why it differs or is absent, and what is missing.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

impl Row {
    /// A figure of which nothing is known yet.
    pub(super) fn new(what: impl Into<String>, unit: &'static str) -> Self {
        Self { what: what.into(), unit, ..Self::default() }
    }

    pub(super) const fn published(mut self, figure: f64) -> Self {
        self.published = Some(figure);
        self
    }

    pub(super) fn reproduced(mut self, figure: impl Into<Option<f64>>) -> Self {
        self.reproduced = figure.into().filter(|figure| figure.is_finite());
        self
    }

    pub(super) fn ours(mut self, figure: impl Into<Option<f64>>) -> Self {
        self.ours = figure.into().filter(|figure| figure.is_finite());
        self
    }

    /// Judges the reproduced figure.
    pub(super) fn reproduces(mut self, goal: &str, holds: impl FnOnce(f64) -> bool) -> Self {
        goal.clone_into(&mut self.goal);
        self.pass = self.reproduced.map(holds);
        self
    }

    /// Judges ours.
    pub(super) fn achieves(mut self, goal: &str, holds: impl FnOnce(f64) -> bool) -> Self {
        goal.clone_into(&mut self.goal);
        self.pass = self.ours.map(holds);
        self
    }

    pub(super) fn because(mut self, why: impl Into<String>) -> Self {
        self.why = why.into();
        self
    }
}

/// Three significant digits, or as many as stand before the point.
fn digits(figure: Option<f64>) -> String {
    let Some(figure) = figure else { return "-".to_owned() };
    let places = match figure.abs() {
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        size if size >= 1.0 => 2,
        _ => 3,
    };
    format!("{figure:.places$}")
}

impl fmt::Display for Page {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {}", self.name, self.source)?;
        let wide = self.rows.iter().map(|row| row.what.chars().count()).max().unwrap_or(0).max(4);
        writeln!(f, "{:wide$} {:>10} {:>10} {:>10}  {:6} pass", "what", "published", "reproduced", "ours", "unit")?;
        for row in &self.rows {
            let pass = match row.pass {
                Some(true) => "yes",
                Some(false) => "NO",
                None => "-",
            };
            let [published, reproduced, ours] = [row.published, row.reproduced, row.ours].map(digits);
            write!(f, "{:wide$} {published:>10} {reproduced:>10} {ours:>10}  {:6} {pass}", row.what, row.unit)?;
            if !row.goal.is_empty() {
                write!(f, "  (goal: {})", row.goal)?;
            }
            writeln!(f)?;
            if !row.why.is_empty() {
                writeln!(f, "    {}", row.why)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_is_not_judged() {
        let row = Row::new("x", "s").published(2.0).reproduced(1.9);
        assert_eq!(row.clone().reproduces("within 10 %", |it| it > 1.8).pass, Some(true));
        assert_eq!(row.clone().reproduces("within 1 %", |it| it > 1.98).pass, Some(false));
        assert_eq!(row.achieves("below 1", |it| it < 1.0).pass, None);
        assert_eq!(Row::new("x", "s").reproduced(f64::NAN).reproduces("any", |_| true).pass, None);
    }

    #[test]
    fn figures_have_three_digits() {
        for (figure, text) in [(8730.4, "8730"), (92.55, "92.5"), (3.733, "3.73"), (0.5415, "0.541"), (0.0, "0.000")] {
            assert_eq!(digits(Some(figure)), text);
        }
        assert_eq!(digits(None), "-");
    }
}
