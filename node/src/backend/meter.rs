//! What an answer of a server with a price costs: by the tokens that it reports, or else by the bytes on both sides.
//! Invariant: what the server reports last is what counts; streamed or not, the same answer costs the same.

use crate::openai::request::UNITS_PER_TOKEN;
use serde::Deserialize;
use serde_json::value::RawValue;
use spillway_ledger::{Credits, Price, Usage};

/// How much of an answer's end is kept to find its usage in, where it is no stream.
const TAIL_BYTES_MAX: usize = 8192;
/// The most that one work can cost: beyond, a report is no report.
const COST_MAX: Credits = Credits::new(1_000_000_000_000);

/// Counts one work.
#[derive(Debug)]
pub(super) struct Meter {
    price: Price,
    /// By bytes, until the server reports.
    estimate: Usage,
    answer_units: u64,
    reported: Option<Usage>,
    /// The end of an answer that is no stream.
    tail: Vec<u8>,
    told: Option<Credits>,
}

/// Token counts in all the forms that servers report them in.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Reported {
    /// OpenAI's chats, completions and embeddings.
    prompt_tokens: Option<u64>,
    completion_tokens: Option<u64>,
    prompt_tokens_details: Option<Details>,
    /// DeepSeek's word for the cached part of it.
    prompt_cache_hit_tokens: Option<u64>,
    /// OpenAI's Responses and images, Anthropic's Messages.
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    input_tokens_details: Option<Details>,
    /// Anthropic's, both beside `input_tokens` and not within.
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Details {
    cached_tokens: Option<u64>,
}

impl Reported {
    /// What it says, over what was said before: some servers report the prompt first and the answer at the end.
    fn over(&self, before: Option<Usage>) -> Option<Usage> {
        let output = self.completion_tokens.or(self.output_tokens);
        let whole = self.prompt_tokens.or(self.input_tokens);
        if whole.is_none() && output.is_none() {
            return None;
        }
        let before = before.unwrap_or_default();
        let (input, cached) = match whole {
            None => (before.input, before.cached),
            Some(fresh) if self.cache_read_input_tokens.is_some() || self.cache_creation_input_tokens.is_some() => {
                let made = self.cache_creation_input_tokens.unwrap_or(0);
                (fresh.saturating_add(made), self.cache_read_input_tokens.unwrap_or(0))
            }
            Some(whole) => {
                let details = self.prompt_tokens_details.as_ref().or(self.input_tokens_details.as_ref());
                let cached = details.and_then(|details| details.cached_tokens).or(self.prompt_cache_hit_tokens);
                let cached = cached.unwrap_or(0).min(whole);
                (whole - cached, cached)
            }
        };
        Some(Usage { input, cached, output: output.unwrap_or(before.output) })
    }
}

impl Meter {
    /// For a request of so many bytes.
    pub(super) fn new(price: Price, request_bytes: usize) -> Self {
        let input = (request_bytes as u64).div_ceil(UNITS_PER_TOKEN);
        let estimate = Usage { input, cached: 0, output: 0 };
        Self { price, estimate, answer_units: 0, reported: None, tail: Vec::new(), told: None }
    }

    /// The server began to answer: what is owed in all, if that is news.
    pub(super) fn begun(&mut self) -> Option<Credits> {
        self.news()
    }

    /// An event of a stream that delivers so many units of text.
    pub(super) fn event(&mut self, json: &[u8], units: usize) -> Option<Credits> {
        self.answer_units = self.answer_units.saturating_add(units as u64);
        self.estimate.output = self.answer_units.div_ceil(UNITS_PER_TOKEN);
        if memchr::memmem::find(json, b"\"usage\"").is_some() {
            self.read(usage_of(json));
        }
        self.news()
    }

    /// A part of an answer that is no stream.
    pub(super) fn part(&mut self, bytes: &[u8]) {
        let keep = bytes.len().min(TAIL_BYTES_MAX);
        self.tail.extend_from_slice(&bytes[bytes.len() - keep..]);
        let over = self.tail.len().saturating_sub(TAIL_BYTES_MAX);
        self.tail.drain(..over);
    }

    /// The answer is complete.
    pub(super) fn ended(&mut self) -> Option<Credits> {
        // Usage stands at the end of the object, or near its beginning where that is all there is.
        if let Some(at) = memchr::memmem::rfind(&self.tail, b"\"usage\"") {
            let behind = self.tail[at + b"\"usage\"".len()..].trim_ascii_start();
            let value = behind.strip_prefix(b":").unwrap_or_default();
            let first = serde_json::Deserializer::from_slice(value).into_iter::<Reported>().next();
            self.read(first.and_then(Result::ok));
        }
        self.news()
    }

    fn read(&mut self, reported: Option<Reported>) {
        if let Some(usage) = reported.and_then(|reported| reported.over(self.reported)) {
            self.reported = Some(usage);
        }
    }

    fn news(&mut self) -> Option<Credits> {
        let usage = self.reported.map_or(self.estimate, |reported| Usage {
            // What was delivered beyond the last report counts, until there is a report of it.
            output: if reported.output == 0 { self.estimate.output } else { reported.output },
            ..reported
        });
        let cost = self.price.cost(usage).map_or(COST_MAX, |cost| cost.min(COST_MAX));
        (self.told != Some(cost)).then(|| {
            self.told = Some(cost);
            cost
        })
    }
}

/// The usage in an event, where events of chats, responses and messages have it.
fn usage_of(json: &[u8]) -> Option<Reported> {
    #[derive(Deserialize)]
    struct Inner<'a> {
        #[serde(borrow, default)]
        usage: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(borrow, default)]
        usage: Option<&'a RawValue>,
        #[serde(borrow, default)]
        response: Option<&'a RawValue>,
        #[serde(borrow, default)]
        message: Option<&'a RawValue>,
    }
    let outer: Outer<'_> = serde_json::from_slice(json).ok()?;
    let inner = |value: &'_ RawValue| {
        serde_json::from_str::<Inner<'_>>(value.get()).ok()?.usage.map(|usage| usage.get().to_owned())
    };
    let usage = outer.usage.map(|usage| usage.get().to_owned());
    let usage = usage.filter(|usage| usage != "null");
    let usage = usage.or_else(|| outer.response.and_then(inner)).or_else(|| outer.message.and_then(inner))?;
    serde_json::from_str(&usage).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRICE: Price =
        Price { input: Credits::new(1_000_000), cached: Credits::new(100_000), output: Credits::new(10_000_000) };

    /// Costs are in micro-credits: 1 for a token of input, 0.1 cached, 10 for one of output.
    #[test]
    fn servers_reports_are_what_counts() {
        for (events, cost) in [
            // OpenAI, thoughts within the answer's tokens.
            (
                &[
                    r#"{"choices":[{"delta":{"content":"hello"}}],"usage":null}"#,
                    r#"{"choices":[],"usage":{"prompt_tokens":100,"completion_tokens":7,"prompt_tokens_details":{"cached_tokens":60},"completion_tokens_details":{"reasoning_tokens":5}}}"#,
                ][..],
                40 + 6 + 70,
            ),
            // A server that reports with each event.
            (
                &[
                    r#"{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":1}}"#,
                    r#"{"choices":[],"usage":{"prompt_tokens":10,"completion_tokens":2}}"#,
                ],
                30,
            ),
            (&[r#"{"usage":{"prompt_tokens":10,"prompt_cache_hit_tokens":10,"completion_tokens":1}}"#], 11),
            (
                &[
                    r#"{"type":"response.completed","response":{"usage":{"input_tokens":20,"input_tokens_details":{"cached_tokens":10},"output_tokens":3}}}"#,
                ],
                10 + 1 + 30,
            ),
            (
                &[
                    r#"{"type":"message_start","message":{"usage":{"input_tokens":5,"cache_read_input_tokens":20,"cache_creation_input_tokens":4,"output_tokens":1}}}"#,
                    r#"{"type":"message_delta","usage":{"output_tokens":3}}"#,
                ],
                9 + 2 + 30,
            ),
            // Nothing reported: 40 bytes of prompt, five of text.
            (&[r#"{"choices":[{"delta":{"content":"hello"}}]}"#], 10 + 20),
            (&[r#"{"choices":[],"usage":{"prompt_tokens":"many"}}"#], 10),
        ] {
            let mut meter = Meter::new(PRICE, 40);
            let mut last = meter.begun();
            assert_eq!(last, Some(Credits::new(10)), "the prompt is owed once it is read");
            for event in events {
                let units = if event.contains("hello") { 5 } else { 0 };
                last = meter.event(event.as_bytes(), units).or(last);
            }
            last = meter.ended().or(last);
            assert_eq!(last, Some(Credits::new(cost)), "{events:?}");
        }
    }

    #[test]
    fn whole_answers_are_read_from_their_end() {
        let vectors = "0.5,".repeat(TAIL_BYTES_MAX);
        for (parts, cost) in [
            (vec![r#"{"data":[],"usage" : {"prompt_tokens":8,"total_tokens":8}}"#.to_owned()], 8),
            (vec![format!(r#"{{"data":[{vectors}"#), r#"0],"usage":{"prompt"#.into(), r#"_tokens":8}}"#.into()], 8),
            (vec![r#"{"created":1,"data":[],"usage":{"input_tokens":2,"output_tokens":1}}"#.into()], 12),
            (vec!["ID3 sound".into()], 10),
            (vec![r#""usage""#.into()], 10),
        ] {
            let mut meter = Meter::new(PRICE, 40);
            let mut last = meter.begun();
            parts.iter().for_each(|part| meter.part(part.as_bytes()));
            last = meter.ended().or(last);
            assert_eq!(last, Some(Credits::new(cost)), "{}", parts.last().expect("some"));
        }
    }

    #[test]
    fn a_senseless_report_has_a_bound() {
        let mut meter = Meter::new(PRICE, 40);
        let cost = meter
            .event(br#"{"usage":{"prompt_tokens":18446744073709551615,"completion_tokens":18446744073709551615}}"#, 0);
        assert_eq!(cost, Some(COST_MAX));
    }
}
