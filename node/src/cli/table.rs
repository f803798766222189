//! Listings: the same rows as a table for people or as JSON for programs.
//! Invariant: JSON mode prints what the node said, unchanged.

use anyhow::{Context, Result};
use serde_json::Value;
use spillway_ledger::Credits;
use std::io::Write;

/// How a value is shown to people.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Show {
    /// As it is.
    Plain,
    /// The first eight characters of an id.
    Short,
    /// Micro-credits as credits.
    Money,
    /// Yes or no.
    Flag,
    /// Milliseconds.
    Millis,
    /// A number between 0 and 1, in percent.
    Share,
}

/// A column: its heading, where its value lies in a row (a JSON pointer), and how it is shown.
pub(crate) type Column = (&'static str, &'static str, Show);

fn shown(value: Option<&Value>, show: Show) -> String {
    let Some(value) = value.filter(|value| !value.is_null()) else { return "-".into() };
    match show {
        Show::Plain => match value {
            Value::String(text) => text.clone(),
            Value::Array(items) => {
                items.iter().map(|item| shown(Some(item), Show::Plain)).collect::<Vec<_>>().join(",")
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Object(_) => value.to_string(),
        },
        Show::Short => value.as_str().map_or_else(|| value.to_string(), |text| text.chars().take(8).collect()),
        Show::Money => value.as_u64().map_or_else(|| value.to_string(), |micro| Credits::new(micro).to_string()),
        Show::Flag => if value.as_bool() == Some(true) { "yes" } else { "no" }.into(),
        Show::Share => value.as_f64().map_or_else(|| value.to_string(), |share| format!("{:.0} %", 100.0 * share)),
        Show::Millis => value.as_u64().map_or_else(|| value.to_string(), |ms| format!("{ms} ms")),
    }
}

/// The rows as text: headings, then a line for each, columns aligned.
pub(crate) fn render(rows: &[Value], columns: &[Column]) -> String {
    let mut cells: Vec<Vec<String>> = vec![columns.iter().map(|(heading, ..)| (*heading).to_owned()).collect()];
    for row in rows {
        cells.push(columns.iter().map(|(_, pointer, show)| shown(row.pointer(pointer), *show)).collect());
    }
    let width = |column: usize| cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let mut text = String::new();
    for row in &cells {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line.push_str(&format!("{cell:width$}  "));
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Prints `body` as JSON, or the rows at `list` in it as a table; `none` if there are no rows.
pub(crate) fn list(body: &Value, list: &str, json: bool, columns: &[Column], none: &str) -> Result<()> {
    if json {
        return line(&serde_json::to_string_pretty(body)?);
    }
    let rows =
        body.get(list).and_then(Value::as_array).with_context(|| format!("the node's answer has no `{list}`"))?;
    if rows.is_empty() {
        return line(none);
    }
    line(render(rows, columns).trim_end())
}

/// Prints a line; a reader that went away (`| head`) is no failure worth words.
pub(crate) fn line(text: &str) -> Result<()> {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(error).context("cannot print"),
        Ok(()) | Err(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Show, render};
    use serde_json::json;

    #[test]
    fn columns_align_and_absent_values_are_dashes() {
        let rows = [
            json!({"id": "0123456789abcdef", "cost": 1_500_000, "own": true, "part": 0.279, "deep": {"ms": 12}}),
            json!({"id": "ff", "cost": null, "own": false, "deep": {}}),
        ];
        let columns = [
            ("ID", "/id", Show::Short),
            ("COST", "/cost", Show::Money),
            ("OWN", "/own", Show::Flag),
            ("RTT", "/deep/ms", Show::Millis),
            ("PART", "/part", Show::Share),
        ];
        let expected = "ID        COST         OWN  RTT    PART\n01234567  1.500000 cr  yes  12 ms  28 %\nff        -            no   -      -\n";
        assert_eq!(render(&rows, &columns), expected);
    }
}
