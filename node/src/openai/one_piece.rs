//! An answer with choices that a server gave in one piece: passed on as it is, and as the one event of a stream where one is wanted.
//! Invariant: nothing that the server said is lost.

use super::endpoint::Choices;
use super::event::{Choice, Delta, Event, INDEX_MAX};
use super::fields::{Fields, raw};
use super::measure::text_of_parsed;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// An answer in one piece.
#[derive(Debug)]
pub struct OnePiece {
    /// Its JSON, such as [`is_answer`] tells.
    pub json: Vec<u8>,
    /// The text that it delivers, counted as that of a stream.
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

/// As much of an answer as this node reads.
#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow, default)]
    object: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    choices: Vec<Whole<'a>>,
}

#[derive(Deserialize)]
struct Whole<'a> {
    #[serde(default)]
    index: u32,
    #[serde(borrow, default)]
    message: Option<Delta<'a>>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    finish_reason: Option<&'a RawValue>,
}

const CHAT: &str = "chat.completion";

impl<'a> Answer<'a> {
    fn parse(json: &'a [u8]) -> Option<Self> {
        serde_json::from_slice(json).ok()
    }

    /// The choices as an event has them; `None` if they are not of this kind.
    fn event(self, kind: Choices) -> Option<Event<'a>> {
        let choice = |whole: Whole<'a>| {
            let Whole { index, message, text, finish_reason } = whole;
            match kind {
                Choices::Chat => Some(Choice { index, delta: message?, text: None, finish_reason }),
                Choices::Completion => {
                    Some(Choice { index, delta: Delta::default(), text: Some(text?), finish_reason })
                }
            }
        };
        let choices: Option<Vec<_>> = self.choices.into_iter().map(choice).collect();
        let holds =
            |choices: &Vec<Choice<'_>>| !choices.is_empty() && choices.iter().all(|choice| choice.index <= INDEX_MAX);
        choices.filter(holds).map(|choices| Event { choices, usage: None, error: None })
    }
}

/// Reads what a server answered.
///
/// # Errors
/// If it is no answer.
pub fn read(kind: Choices, json: Vec<u8>) -> Result<OnePiece, NoAnswer> {
    let answer = Answer::parse(&json).ok_or(NoAnswer::Unknown)?;
    if let Some(error) = answer.error.filter(|error| error.get() != "null") {
        return Err(NoAnswer::Error(error.get().to_owned()));
    }
    let is_named = kind == Choices::Completion || answer.object.as_deref() == Some(CHAT);
    let event = answer.event(kind).ok_or(NoAnswer::Unknown)?;
    let finish = event.choices.first().and_then(Choice::finish).unwrap_or_else(|| "stop".into());
    let text = text_of_parsed(kind, &event);
    let named = (!is_named).then(|| {
        let mut fields = Fields::parse(&json).map_err(|_| NoAnswer::Unknown)?;
        fields.set("object", raw(CHAT));
        Ok(fields.to_bytes())
    });
    let json = named.transpose()?.unwrap_or(json);
    Ok(OnePiece { json, text, finish })
}

/// Whether this is an answer in one piece, and no event of a stream. A completion's event that ends it is both.
#[must_use]
pub fn is_answer(kind: Choices, json: &[u8]) -> bool {
    Answer::parse(json).is_some_and(|answer| match kind {
        Choices::Chat => answer.object.as_deref() == Some(CHAT),
        Choices::Completion => {
            let is_over = |choice: &Whole<'_>| choice.finish_reason.is_some();
            !answer.choices.is_empty() && answer.choices.iter().all(is_over)
        }
    })
}

/// The text of an answer, or of an event.
#[must_use]
pub fn text(kind: Choices, json: &[u8]) -> Vec<u8> {
    let whole = Answer::parse(json).and_then(|answer| answer.event(kind)).map(|event| text_of_parsed(kind, &event));
    whole.unwrap_or_else(|| super::measure::text_of_chunk(kind, json))
}

/// An answer as the one event of a stream. An event is one already.
#[must_use]
pub fn as_event(kind: Choices, json: Vec<u8>) -> Vec<u8> {
    if kind == Choices::Completion || !is_answer(kind, &json) {
        return json;
    }
    let event = Fields::parse(&json).ok().and_then(|mut fields| {
        let choices = chunked(fields.raw("choices")?)?;
        fields.set("object", raw("chat.completion.chunk"));
        fields.set("choices", choices);
        Some(fields.to_bytes())
    });
    event.unwrap_or(json)
}

/// Each choice with its message as its delta.
fn chunked(choices: &RawValue) -> Option<Box<RawValue>> {
    let mut choices: Vec<Fields<'_>> = serde_json::from_str(choices.get()).ok()?;
    for choice in &mut choices {
        choice.rename("message", "delta");
        let delta = choice.get("delta").unwrap_or("{}");
        if delta.contains("\"tool_calls\"") {
            let delta = numbered(delta)?;
            choice.set("delta", delta);
        }
    }
    Some(raw(&choices))
}

/// A message whose tool calls say which they are, as those of a stream do.
fn numbered(message: &str) -> Option<Box<RawValue>> {
    let mut message = Fields::parse(message.as_bytes()).ok()?;
    if let Some(calls) = message.get("tool_calls") {
        let mut calls: Vec<Fields<'_>> = serde_json::from_str(calls).ok()?;
        for (index, call) in calls.iter_mut().enumerate() {
            if call.get("index").is_none() {
                call.set("index", raw(&index));
            }
        }
        let calls = raw(&calls);
        message.set("tool_calls", calls);
    }
    Some(message.to_raw())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::{Aggregate, Stitch};
    use serde_json::Value;
    use spillway_ledger::Credits;

    /// An answer as the event that it is, gathered again.
    fn through(kind: Choices, answer: &str) -> Value {
        let event = as_event(kind, answer.as_bytes().to_vec());
        let (mut stitch, mut whole) = (Stitch::new(kind, "id", 1, "m"), Aggregate::new(kind));
        stitch.leg().expect("the first");
        whole.push(&stitch.event(event).expect("for the client")).expect("short");
        assert!(stitch.finish("stop").is_none(), "the event has said it");
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
            let piece = read(kind, answer.clone().into_bytes()).expect("an answer");
            assert!(is_answer(kind, &piece.json) && piece.json == answer.as_bytes());
            let event = as_event(kind, piece.json);
            assert!(kind == Choices::Completion || !is_answer(kind, &event));
            let is_same = |json: &[u8]| super::text(kind, json) == piece.text;
            assert!(is_same(&event) && is_same(answer.as_bytes()));
            assert_eq!(crate::openai::measure::text_of_chunk(kind, &event), piece.text, "it counts as a stream does");
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
            assert_eq!(read(kind, bytes.as_bytes().to_vec()).expect_err("none"), want, "{bytes}");
        }
        let event = br#"{"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"a"}}]}"#;
        assert!(!is_answer(Choices::Chat, event));
        assert_eq!(as_event(Choices::Chat, event.to_vec()), event);
        // A server that does not name what it sends has it named.
        let unnamed = read(Choices::Chat, br#"{"choices":[{"message":{"content":"a"}}]}"#.to_vec()).expect("an answer");
        assert!(is_answer(Choices::Chat, &unnamed.json) && unnamed.text == b"a" && unnamed.finish == "stop");
    }
}
