//! Azure's trace of a conversation service, 2023: `TIMESTAMP,ContextTokens,GeneratedTokens`.
//! Source: Azure/AzurePublicDataset, AzureLLMInferenceTrace_conv.csv; Patel et al., Splitwise, ISCA 2024.
//! Invariant: every request is a conversation of its own, of client 0: the trace tells neither. [`Trace::spread`] names clients.

use super::Request;
use super::error::{Problem, TraceError};
use super::lines::{Lines, Table};
use super::sampling::TOKENS_MAX;
use super::trace::{Gathered, Trace};
use std::path::Path;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

const COLUMNS: [&str; 3] = ["TIMESTAMP", "ContextTokens", "GeneratedTokens"];

/// Reads a file, plain or `.zst`.
pub fn read(path: &Path) -> Result<Trace, TraceError> {
    parse(Lines::open(path)?)
}

/// The first 1,300 requests, four minutes, which lie in the repository.
///
/// # Panics
/// Never: a test reads it.
#[must_use]
pub fn cut() -> Trace {
    let bytes = include_bytes!("../../data/azure_conv.csv");
    parse(Lines::of("azure_conv.csv", bytes)).expect("a test reads it")
}

pub(super) fn parse(lines: Lines<'_>) -> Result<Trace, TraceError> {
    let mut table = Table::new(lines, &COLUMNS)?;
    let file = table.file().to_owned();
    let mut gathered = Gathered::default();
    let mut begin = None;
    let mut last = 0;
    let mut session = 0;
    while let Some(row) = table.row()? {
        let text = row.text(0);
        let Some(now) = micros(text) else { return Err(row.error(0, Problem::not(text, "a date and time in order"))) };
        // The first row is the beginning; the rest follow in order.
        let at = now - *begin.get_or_insert(now);
        let Ok(at_us) = u64::try_from(at) else {
            return Err(row.error(0, Problem::not(text, "a date and time in order")));
        };
        if at_us < last {
            return Err(row.error(0, Problem::not(text, "a date and time in order")));
        }
        last = at_us;
        let input = row.whole(1, 1, TOKENS_MAX)?;
        let output = row.whole(2, 1, TOKENS_MAX)?;
        gathered.push(&file, Request { at_us, client: 0, session, input, output, prefix: Box::default() })?;
        session += 1;
    }
    Ok(Trace::new(gathered.all(&file)?))
}

/// Microseconds since 1970 of `2023-11-16 18:15:46.6805900`, which is taken as UTC.
fn micros(text: &str) -> Option<i64> {
    // With its `T` and `Z` it is RFC 3339.
    let (date, time) = text.split_once(' ')?;
    let parsed = OffsetDateTime::parse(&format!("{date}T{time}Z"), &Rfc3339).ok()?;
    i64::try_from(parsed.unix_timestamp_nanos() / 1000).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Result<Trace, TraceError> {
        parse(Lines::of("a.csv", text.as_bytes()))
    }

    #[test]
    fn the_cut_has_the_traces_rate() {
        let trace = cut();
        assert_eq!(trace.requests().len(), 1300);
        assert_eq!(
            trace.requests()[1],
            Request { at_us: 4_314_579, session: 1, input: 396, output: 109, ..Request::default() }
        );
        let rate = 1300.0 * 1e6 / trace.span_us() as f64;
        // The whole hour has 5.53; its first minutes are a little quieter.
        assert!((rate - 4.77).abs() < 0.01, "{rate} requests a second");
    }

    #[test]
    fn errors_name_the_field() {
        let cases = [
            ("2023-11-16 18:15:46.68,0,44", "a.csv:2: ContextTokens: 0 is not from 1 to 10000000"),
            ("2023-11-16 18:15:46.68,3,", "a.csv:2: GeneratedTokens: missing"),
            ("yesterday,3,4", "a.csv:2: TIMESTAMP: \"yesterday\" is not a date and time in order"),
            (
                "2023-13-16 18:15:46.68,3,4",
                "a.csv:2: TIMESTAMP: \"2023-13-16 18:15:46.68\" is not a date and time in order",
            ),
            (
                "2023-11-16 18:15:46.68,3,4\n2023-11-16 18:15:46.67,3,4",
                "a.csv:3: TIMESTAMP: \"2023-11-16 18:15:46.67\" is not a date and time in order",
            ),
            ("", "a.csv: empty"),
        ];
        for (rows, error) in cases {
            assert_eq!(
                text(&format!("TIMESTAMP,ContextTokens,GeneratedTokens\n{rows}")).unwrap_err().to_string(),
                error
            );
        }
    }
}
