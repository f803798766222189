//! Mooncake's traces: a JSON object a line with `timestamp` (ms), `input_length`, `output_length` and `hash_ids`, which names
//! the blocks of 512 tokens of the prompt, the last one too where it is not whole.
//! Source: kvcache-ai/Mooncake, FAST25-release/traces; Qin et al., Mooncake, FAST 2025.
//! Invariant: names chain. In the published traces each id already comes after one other id alone; here each name is made of
//! the id and the name before it, so that any file keeps what [`Request::prefix`] promises.

use super::error::{Problem, TraceError};
use super::lines::Lines;
use super::names::mix;
use super::sampling::TOKENS_MAX;
use super::trace::{Gathered, Trace};
use super::{PREFIX_BLOCK, Request};
use crate::draws::Draws;
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::Path;

/// The published traces' clock ticks every three seconds.
pub const TICK_MS: u64 = 3000;
/// What the first name of a prompt comes after.
const ROOT: u64 = mix(0, u64::from_le_bytes(*b"mooncake"));

/// Reads a file, plain or `.zst`. Requests of one tick are spread evenly over it, by `seed`, in the file's order.
///
/// The trace does not tell conversations: a request belongs to an earlier one's if it begins with all whole blocks of it, and
/// the last of these was new with it. All are of client 0; [`Trace::spread`] names clients.
pub fn read(path: &Path, seed: u64) -> Result<Trace, TraceError> {
    parse(Lines::open(path)?, seed)
}

/// The first five minutes of the conversation trace, which lie in the repository.
///
/// # Panics
/// Never: a test reads it.
#[must_use]
pub fn cut(seed: u64) -> Trace {
    let bytes = include_bytes!("../../data/mooncake_conversation.jsonl.zst");
    parse(Lines::of("mooncake_conversation.jsonl.zst", bytes), seed).expect("a test reads it")
}

pub(super) fn parse(mut lines: Lines<'_>, seed: u64) -> Result<Trace, TraceError> {
    let file = lines.file().to_owned();
    let mut gathered = Gathered::default();
    let mut sessions = Sessions::default();
    while lines.advance()? {
        let record: Value = serde_json::from_str(lines.text()?)
            .map_err(|_| lines.error("line", Problem::not(lines.text().unwrap_or_default(), "a JSON object")))?;
        let number = |field: &str, min: u64, max: u64| match record.get(field) {
            None => Err(lines.error(field, Problem::Missing)),
            Some(value) => match value.as_u64() {
                None => Err(lines.error(field, Problem::not(value, "a whole number"))),
                Some(number) if (min..=max).contains(&number) => Ok(number),
                Some(number) => Err(lines.error(field, Problem::range(number, min as f64, max as f64))),
            },
        };
        /// A hundred years.
        const TIME_MAX_MS: u64 = 100 * 366 * 86_400_000;
        let at_ms = number("timestamp", 0, TIME_MAX_MS)?;
        let input = number("input_length", 1, u64::from(TOKENS_MAX))? as u32;
        // A request that failed has no output; it would have had some.
        let output = number("output_length", 0, u64::from(TOKENS_MAX))?.max(1) as u32;
        let ids = record.get("hash_ids").ok_or_else(|| lines.error("hash_ids", Problem::Missing))?;
        let ids = ids.as_array().ok_or_else(|| lines.error("hash_ids", Problem::not(ids, "an array")))?;
        let whole = input / PREFIX_BLOCK;
        let blocks = input.div_ceil(PREFIX_BLOCK);
        if !(whole as usize..=blocks as usize).contains(&ids.len()) {
            return Err(lines.error("hash_ids", Problem::range(ids.len(), whole.into(), blocks.into())));
        }
        let mut name = ROOT;
        let mut prefix = Vec::with_capacity(whole as usize);
        for id in ids {
            let Some(id) = id.as_u64() else { return Err(lines.error("hash_ids", Problem::not(id, "a whole number"))) };
            name = mix(name, id);
            prefix.push(name);
        }
        // The last may name a block that is not whole.
        prefix.truncate(whole as usize);
        let session = sessions.of(&prefix);
        gathered
            .push(&file, Request { at_us: at_ms * 1000, client: 0, session, input, output, prefix: prefix.into() })?;
    }
    let mut requests = gathered.all(&file)?;
    requests.sort_by_key(|request| tick(request.at_us));
    spread_ticks(&mut requests, seed);
    Ok(Trace::new(requests))
}

/// Which tick a time belongs to: the nearest, as the published times are some milliseconds beside.
const fn tick(at_us: u64) -> u64 {
    (at_us + TICK_MS * 500) / (TICK_MS * 1000)
}

/// Gives the requests of each tick times within it, in their order.
fn spread_ticks(requests: &mut [Request], seed: u64) {
    let mut draws = Draws::new(seed, "mooncake ticks");
    for group in requests.chunk_by_mut(|a, b| tick(a.at_us) == tick(b.at_us)) {
        let begin = tick(group[0].at_us) * TICK_MS * 1000;
        let mut times: Vec<u64> = group.iter().map(|_| begin + draws.below(TICK_MS * 1000)).collect();
        times.sort_unstable();
        for (request, at_us) in group.iter_mut().zip(times) {
            request.at_us = at_us;
        }
    }
}

/// Tells conversations by their prefixes.
#[derive(Default)]
struct Sessions {
    /// For each block met, the conversation of the last prompt that ended with it, if it was new then.
    ends: BTreeMap<u64, Option<u64>>,
    count: u64,
}

impl Sessions {
    fn of(&mut self, prefix: &[u64]) -> u64 {
        let earlier = prefix.iter().rev().find_map(|name| self.ends.get(name).copied().flatten());
        let session = earlier.unwrap_or_else(|| {
            self.count += 1;
            self.count - 1
        });
        let new_end = prefix.last().is_some_and(|name| !self.ends.contains_key(name));
        for name in prefix {
            self.ends.entry(*name).or_default();
        }
        if let (Some(end), true) = (prefix.last(), new_end) {
            self.ends.insert(*end, Some(session));
        }
        session
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Result<Trace, TraceError> {
        parse(Lines::of("m.jsonl", text.as_bytes()), 1)
    }

    fn line(timestamp: u64, input: u32, ids: &str) -> String {
        format!("{{\"timestamp\":{timestamp},\"input_length\":{input},\"output_length\":5,\"hash_ids\":[{ids}]}}\n")
    }

    #[test]
    fn the_cut_is_spread_over_ticks_and_shares_prefixes() {
        let trace = cut(1);
        let requests = trace.requests();
        assert_eq!(requests.len(), 918);
        assert!(requests.windows(2).all(|pair| pair[0].at_us <= pair[1].at_us));
        // Nothing waits for a tick: thirds of a tick are equally full.
        let mut thirds = [0; 3];
        for request in requests {
            thirds[(request.at_us / 1_000_000 % 3) as usize] += 1;
            assert_eq!(request.prefix.len() as u32, request.input / PREFIX_BLOCK);
        }
        assert!(thirds.iter().all(|count| (270..345).contains(count)), "{thirds:?}");
        // All begin with the same system prompt.
        assert!(requests.iter().all(|request| request.prefix.first().is_none_or(|name| *name == mix(ROOT, 0))));
        assert_ne!(cut(2), trace, "another seed, other times");
        assert_eq!(cut(1), trace);
    }

    #[test]
    fn a_name_covers_what_comes_before() {
        // Ids that do not chain by themselves: 2 comes after 1 and after 3.
        let trace = text(&(line(0, 1024, "1,2") + &line(0, 1024, "3,2") + &line(0, 1500, "1,2,9"))).unwrap();
        let prefix = |index: usize| &trace.requests()[index].prefix;
        assert_ne!(prefix(0)[1], prefix(1)[1]);
        assert_eq!(prefix(0)[..2], prefix(2)[..]);
    }

    #[test]
    fn conversations_are_told_by_prefix() {
        let lines = [
            line(0, 1600, "0,1,2,3"),      // Conversation 0 with a system prompt 0.
            line(0, 1100, "0,4,5"),        // 1: shares the system prompt alone.
            line(3000, 2100, "0,1,2,6,7"), // Goes on with 0: the block 3 was not whole.
            line(6000, 1700, "0,4,8,9"),   // Goes on with 1.
            line(9000, 600, "0,10"),       // The system prompt alone is nobody's.
            line(9000, 2700, "0,1,2,6,11,12"),
        ];
        let trace = text(&lines.concat()).unwrap();
        let sessions: Vec<u64> = trace.requests().iter().map(|request| request.session).collect();
        assert_eq!(sessions, [0, 1, 0, 1, 2, 0]);
    }

    #[test]
    fn errors_name_the_field() {
        let cases = [
            ("[]", "m.jsonl:1: timestamp: missing"),
            ("{", "m.jsonl:1: line: \"{\" is not a JSON object"),
            ("{\"timestamp\":-1}", "m.jsonl:1: timestamp: \"-1\" is not a whole number"),
            ("{\"timestamp\":1,\"input_length\":0}", "m.jsonl:1: input_length: 0 is not from 1 to 10000000"),
            ("{\"timestamp\":1,\"input_length\":1}", "m.jsonl:1: output_length: missing"),
            ("{\"timestamp\":1,\"input_length\":1,\"output_length\":1}", "m.jsonl:1: hash_ids: missing"),
            (
                "{\"timestamp\":1,\"input_length\":1,\"output_length\":1,\"hash_ids\":7}",
                "m.jsonl:1: hash_ids: \"7\" is not an array",
            ),
            (
                "{\"timestamp\":1,\"input_length\":1000,\"output_length\":1,\"hash_ids\":[1,2,3]}",
                "m.jsonl:1: hash_ids: 3 is not from 1 to 2",
            ),
            (
                "{\"timestamp\":1,\"input_length\":1000,\"output_length\":1,\"hash_ids\":[1,\"x\"]}",
                "m.jsonl:1: hash_ids: \"\\\"x\\\"\" is not a whole number",
            ),
        ];
        for (line, error) in cases {
            assert_eq!(text(line).unwrap_err().to_string(), error);
        }
        assert!(text(&"[".repeat(100_000)).is_err(), "deep nesting is an error, not a full stack");
    }
}
