//! The headers that tell how limits per minute stand, as OpenAI's API has them.
//! Invariant: a limit that a key does not have is not told.

use super::budget::{Rate, Rates};
use axum::http::{HeaderMap, HeaderName, HeaderValue};

type Names = [HeaderName; 3];

const REQUESTS: Names = [
    HeaderName::from_static("x-ratelimit-limit-requests"),
    HeaderName::from_static("x-ratelimit-remaining-requests"),
    HeaderName::from_static("x-ratelimit-reset-requests"),
];
const TOKENS: Names = [
    HeaderName::from_static("x-ratelimit-limit-tokens"),
    HeaderName::from_static("x-ratelimit-remaining-tokens"),
    HeaderName::from_static("x-ratelimit-reset-tokens"),
];

/// Adds the headers for what limits there are.
pub fn add(rates: &Rates, headers: &mut HeaderMap) {
    for (rate, names) in [(rates.requests, REQUESTS), (rates.tokens, TOKENS)] {
        let Some(Rate { limit, remaining, reset_ms }) = rate else { continue };
        let [limit_name, remaining_name, reset_name] = names;
        headers.insert(limit_name, HeaderValue::from(limit));
        headers.insert(remaining_name, HeaderValue::from(remaining));
        let reset = HeaderValue::from_str(&duration(reset_ms)).expect("digits and letters are header text");
        headers.insert(reset_name, reset);
    }
}

/// A duration as OpenAI writes it: `20ms`, `8.64s`, `1m0s`.
fn duration(ms: u64) -> String {
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (minutes, seconds, rest) = (ms / 60_000, ms / 1000 % 60, ms % 1000);
    let fraction = if rest == 0 { String::new() } else { format!(".{rest:03}").trim_end_matches('0').to_owned() };
    if minutes == 0 { format!("{seconds}{fraction}s") } else { format!("{minutes}m{seconds}{fraction}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_written_as_openai_does() {
        for (ms, want) in
            [(0, "0ms"), (20, "20ms"), (1000, "1s"), (8640, "8.64s"), (60_000, "1m0s"), (361_005, "6m1.005s")]
        {
            assert_eq!(duration(ms), want);
        }
    }
}
