//! An answer with choices that a server gave in one piece, as the one event of a stream.
//! Invariant: nothing that the server said is lost; gathered again, it is the answer that it was.

use super::endpoint::Choices;
use super::event::Event;
use super::fields::{Fields, raw};
use super::measure::text_of_parsed;
use serde_json::value::RawValue;

/// An answer as one event.
#[derive(Debug)]
pub struct OnePiece {
    /// The event's JSON.
    pub event: Vec<u8>,
    /// The text that it delivers.
    pub text: Vec<u8>,
    /// Why it ended: what the first choice says.
    pub finish: String,
}

/// What a server sent is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// It says that it failed: its `error`.
    #[error("the server failed: {0}")]
    Error(String),
    /// It is no JSON object with choices.
    #[error("no answer with choices")]
    Unknown,
}

/// The event that an answer is.
///
/// # Errors
/// If it is none.
pub fn as_event(kind: Choices, answer: &[u8]) -> Result<OnePiece, NoAnswer> {
    let mut fields = Fields::parse(answer).map_err(|_| NoAnswer::Unknown)?;
    if let Some(error) = fields.get("error") {
        return Err(NoAnswer::Error(error.to_owned()));
    }
    let event = match kind {
        Choices::Completion => answer.to_vec(),
        Choices::Chat => {
            let choices = chunked(fields.raw("choices").ok_or(NoAnswer::Unknown)?)?;
            fields.set("object", raw("chat.completion.chunk"));
            fields.set("choices", choices);
            fields.to_bytes()
        }
    };
    let parsed = Event::parse(&event).ok_or(NoAnswer::Unknown)?;
    let finish = parsed.choices.first().ok_or(NoAnswer::Unknown)?.finish();
    let text = text_of_parsed(kind, &parsed);
    Ok(OnePiece { text, finish: finish.unwrap_or_else(|| "stop".into()), event })
}

/// Each choice with its message as its delta.
fn chunked(choices: &RawValue) -> Result<Box<RawValue>, NoAnswer> {
    let mut choices: Vec<Fields<'_>> = serde_json::from_str(choices.get()).map_err(|_| NoAnswer::Unknown)?;
    for choice in &mut choices {
        if !choice.rename("message", "delta") {
            return Err(NoAnswer::Unknown);
        }
        let delta = choice.get("delta").unwrap_or("{}");
        if delta.contains("\"tool_calls\"") {
            let delta = numbered(delta)?;
            choice.set("delta", delta);
        }
    }
    Ok(raw(&choices))
}

/// A message whose tool calls say which they are, as those of a stream do.
fn numbered(message: &str) -> Result<Box<RawValue>, NoAnswer> {
    let mut message = Fields::parse(message.as_bytes()).map_err(|_| NoAnswer::Unknown)?;
    if let Some(calls) = message.get("tool_calls") {
        let mut calls: Vec<Fields<'_>> = serde_json::from_str(calls).map_err(|_| NoAnswer::Unknown)?;
        for (index, call) in calls.iter_mut().enumerate() {
            if call.get("index").is_none() {
                call.set("index", raw(&index));
            }
        }
        let calls = raw(&calls);
        message.set("tool_calls", calls);
    }
    Ok(message.to_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{Aggregate, Stitch};
    use serde_json::Value;
    use spillway_ledger::Credits;

    /// An answer as a client gets it that way.
    fn through(kind: Choices, answer: &str) -> Value {
        let piece = as_event(kind, answer.as_bytes()).expect("an answer");
        let (mut stitch, mut whole) = (Stitch::new(kind, "id", 1, "m"), Aggregate::new(kind));
        stitch.leg().expect("the first");
        whole.push(&stitch.event(piece.event).expect("for the client")).expect("short");
        assert!(stitch.finish(&piece.finish).is_none(), "the event has said it");
        let usage = stitch.usage(Credits::ZERO, None::<&()>);
        serde_json::from_slice(&whole.finish(usage)).expect("JSON")
    }

    #[test]
    fn an_answer_stays_what_it_was() {
        let usage = r#""usage":{"prompt_tokens":5,"completion_tokens":2,"prompt_tokens_details":{"cached_tokens":1},"cost":0.000000}"#;
        for (kind, answer, text, finish) in [
            (
                Choices::Chat,
                r#"{"id":"c-1","object":"chat.completion","created":7,"model":"m","system_fingerprint":"f","choices":[{"index":0,"message":{"role":"assistant","content":"Hé \"there\"","reasoning_content":"Hm. "},"logprobs":null,"finish_reason":"stop","stop_reason":null,"token_ids":[1,2]}],"prompt_logprobs":null,"timings":{"predicted_ms":1.50}"#,
                "Hm. Hé \"there\"",
                "stop",
            ),
            (
                Choices::Chat,
                r#"{"id":"c-2","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[{"id":"a","type":"function","function":{"name":"f","arguments":"{\"x\":1}"}},{"id":"b","type":"function","function":{"name":"g","arguments":"{}"}}]},"logprobs":null,"finish_reason":"tool_calls"}]"#,
                "f{\"x\":1}g{}",
                "tool_calls",
            ),
            (
                Choices::Chat,
                r#"{"id":"c-3","object":"chat.completion","created":7,"model":"m","choices":[{"index":0,"message":{"role":"assistant","content":"a","annotations":[]},"logprobs":{"content":[{"token":"a","logprob":-0.10}]},"finish_reason":"length"},{"index":1,"message":{"role":"assistant","content":"b","refusal":null},"logprobs":null,"finish_reason":"stop"}]"#,
                "ab",
                "length",
            ),
            (
                Choices::Completion,
                r#"{"id":"c-4","object":"text_completion","created":7,"model":"m","choices":[{"index":0,"text":" on","logprobs":null,"finish_reason":"length"}]"#,
                " on",
                "length",
            ),
        ] {
            let answer = format!("{answer},{usage}}}");
            let piece = as_event(kind, answer.as_bytes()).expect("an answer");
            assert_eq!((String::from_utf8(piece.text).expect("text").as_str(), piece.finish.as_str()), (text, finish));
            let want: Value = serde_json::from_str(&answer).expect("JSON");
            assert_eq!(through(kind, &answer), want);
        }
    }

    #[test]
    fn what_is_no_answer_is_told() {
        for (kind, bytes, want) in [
            (Choices::Chat, r#"{"error":{"message":"no"}}"#, NoAnswer::Error(r#"{"message":"no"}"#.into())),
            (Choices::Completion, r#"{"error":"no","choices":[]}"#, NoAnswer::Error("\"no\"".into())),
            (Choices::Chat, "data: x", NoAnswer::Unknown),
            (Choices::Chat, "[]", NoAnswer::Unknown),
            (Choices::Chat, "{}", NoAnswer::Unknown),
            (Choices::Chat, r#"{"choices":[]}"#, NoAnswer::Unknown),
            (Choices::Chat, r#"{"choices":[{"index":0,"text":"of another kind"}]}"#, NoAnswer::Unknown),
            (
                Choices::Chat,
                r#"{"choices":[{"message":{"content":"a"},"message":{"content":"b"}}]}"#,
                NoAnswer::Unknown,
            ),
            (Choices::Chat, r#"{"choices":[{"index":4096,"message":{"content":"a"}}]}"#, NoAnswer::Unknown),
            (Choices::Completion, r#"{"choices":[]}"#, NoAnswer::Unknown),
        ] {
            assert_eq!(as_event(kind, bytes.as_bytes()).expect_err("none"), want, "{bytes}");
        }
    }
}
