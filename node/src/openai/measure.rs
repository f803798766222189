//! What text an event delivers: the one rule that providers and consumers count by.
//! Invariant: it depends on the event's bytes and nothing else, so both sides always come to the same number.

use super::endpoint::{Answer, Choices, endpoint};
use super::event::{Choice, Event, text};
use super::parts::text_of_part;
use serde::Deserialize;
use serde_json::value::RawValue;
use spillway_protocol::Kind;
use std::borrow::Cow;

/// What one part of an answer delivers; its length in bytes is the output in work units.
///
/// Of an answer that a server gave as a whole, see [`text_of_part`]. Of an event that names its type: `delta` of those whose
/// type ends in `.delta` (Responses); `delta.text`, `delta.thinking` and `delta.partial_json` (Messages); the names of called
/// functions. Of a chunk, for each choice, in the order of the chunk:
/// - chat: `delta.reasoning_content` (or, where that is absent, `delta.reasoning`), `delta.content`, `delta.refusal`, then
///   name and arguments of each of `delta.tool_calls`, then those of `delta.function_call`;
/// - completion: `text`.
///
/// A string counts as it is; of a list of parts, each part's `text`. Everything else is free: roles, ids, log
/// probabilities, usage. What is no event, or names a field twice, delivers nothing.
#[must_use]
pub fn text_of_event(kind: Kind, bytes: &[u8]) -> Vec<u8> {
    match endpoint(kind).answer {
        Answer::Choices(choices) => text_of_chunk(choices, bytes),
        Answer::Events(_) => text_of_named(bytes),
        Answer::Whole(measure) => text_of_part(measure, bytes),
    }
}

/// As [`text_of_event`], of a chunk.
#[must_use]
pub fn text_of_chunk(choices: Choices, bytes: &[u8]) -> Vec<u8> {
    Event::parse(bytes).map(|event| text_of_parsed(choices, &event)).unwrap_or_default()
}

/// As [`text_of_chunk`], of a chunk that was read before.
#[must_use]
pub fn text_of_parsed(choices: Choices, event: &Event<'_>) -> Vec<u8> {
    let mut delivered = String::new();
    for choice in &event.choices {
        match choices {
            Choices::Chat => chat(choice, &mut delivered),
            Choices::Completion => delivered.push_str(&text(choice.text)),
        }
    }
    delivered.into_bytes()
}

/// The text of an event that names its type. Nothing of the one API is a name of the other's.
fn text_of_named(bytes: &[u8]) -> Vec<u8> {
    let Ok(event) = serde_json::from_slice::<Named<'_>>(bytes) else { return Vec::new() };
    let mut delivered = String::new();
    if event.r#type.ends_with(".delta") {
        delivered.push_str(&text(event.delta));
    } else if event.r#type == "content_block_delta" {
        let delta =
            event.delta.and_then(|raw| serde_json::from_str::<BlockDelta<'_>>(raw.get()).ok()).unwrap_or_default();
        for piece in [delta.thinking, delta.text, delta.partial_json] {
            delivered.push_str(&text(piece));
        }
    }
    let begun = [event.item, event.content_block];
    for begun in
        begun.into_iter().flatten().filter(|_| event.r#type.ends_with("_start") || event.r#type.ends_with(".added"))
    {
        if let Ok(begun) = serde_json::from_str::<Begun<'_>>(begun.get()) {
            delivered.push_str(&text(begun.name));
        }
    }
    delivered.into_bytes()
}

#[derive(Deserialize)]
struct Named<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow, default)]
    delta: Option<&'a RawValue>,
    #[serde(borrow, default)]
    item: Option<&'a RawValue>,
    #[serde(borrow, default)]
    content_block: Option<&'a RawValue>,
}

#[derive(Default, Deserialize)]
struct BlockDelta<'a> {
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    thinking: Option<&'a RawValue>,
    #[serde(borrow, default)]
    partial_json: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Begun<'a> {
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
}

fn chat(choice: &Choice<'_>, delivered: &mut String) {
    let delta = &choice.delta;
    delivered.push_str(&text(delta.reasoning_content.or(delta.reasoning)));
    delivered.push_str(&text(delta.content));
    delivered.push_str(&text(delta.refusal));
    let calls: Vec<&RawValue> =
        delta.tool_calls.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
    for call in calls {
        if let Ok(call) = serde_json::from_str::<Call<'_>>(call.get()) {
            function(call.function, delivered);
        }
    }
    function(delta.function_call, delivered);
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow, default)]
    function: Option<&'a RawValue>,
}

fn function(raw: Option<&RawValue>, delivered: &mut String) {
    #[derive(Deserialize)]
    struct Function<'a> {
        #[serde(borrow, default)]
        name: Option<&'a RawValue>,
        #[serde(borrow, default)]
        arguments: Option<&'a RawValue>,
    }
    if let Some(Ok(function)) = raw.map(|raw| serde_json::from_str::<Function<'_>>(raw.get())) {
        delivered.push_str(&text(function.name));
        delivered.push_str(&text(function.arguments));
    }
}

/// Whether an event delivers anything but plain answer text: thoughts, a refusal, or a tool call, behind which no other
/// provider can go on.
#[must_use]
pub fn is_beyond_text(event: &Event<'_>) -> bool {
    event.choices.iter().any(|choice| {
        let delta = &choice.delta;
        let texts = [delta.reasoning_content, delta.reasoning, delta.refusal];
        texts.iter().any(|raw| !text(*raw).is_empty())
            || delta.tool_calls.is_some_and(|raw| raw.get() != "[]")
            || delta.function_call.is_some()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chat_event(delta: &str) -> String {
        format!(
            r#"{{"id":"c","object":"chat.completion.chunk","choices":[{{"index":0,"delta":{delta},"finish_reason":null}}]}}"#
        )
    }

    #[test]
    fn text_is_counted_by_one_rule() {
        let chats = [
            (chat_event(r#"{"role":"assistant","content":"Hé"}"#), "Hé"),
            (chat_event(r#"{"content":null}"#), ""),
            (chat_event("null"), ""),
            (chat_event(r#"{"content":"a\n\u00e9"}"#), "a\né"),
            (chat_event(r#"{"content":[{"type":"text","text":"x"},{"type":"image"},{"text":"y"},7]}"#), "xy"),
            (chat_event(r#"{"reasoning_content":"th","reasoning":"th","content":"c"}"#), "thc"),
            (chat_event(r#"{"reasoning":"th"}"#), "th"),
            (chat_event(r#"{"refusal":"no"}"#), "no"),
            (
                chat_event(
                    r#"{"tool_calls":[{"index":0,"id":"1","function":{"name":"f","arguments":"{\"a\""}},{"index":1,"function":{"arguments":":1}"}}]}"#,
                ),
                r#"f{"a":1}"#,
            ),
            (chat_event(r#"{"function_call":{"name":"g","arguments":"{}"}}"#), "g{}"),
            (chat_event(r#"{"content":5}"#), ""),
            (chat_event(r#"{"content":"a","content":"b"}"#), ""),
            (r#"{"choices":[{"index":1,"delta":{"content":"b"}},{"index":0,"delta":{"content":"a"}}]}"#.into(), "ba"),
            (r#"{"choices":[],"usage":{"prompt_tokens":1}}"#.into(), ""),
            (r#"{"choices":null}"#.into(), ""),
            (r#"{"choices":[{"index":128,"delta":{"content":"far"}}]}"#.into(), ""),
            (r#"{"choices":[{"index":0,"text":"not a chat"}]}"#.into(), ""),
            (r#"{"choices":{}}"#.into(), ""),
            ("[DONE]".into(), ""),
            (String::new(), ""),
        ];
        for (event, want) in &chats {
            assert_eq!(String::from_utf8_lossy(&text_of_event(Kind::Chat, event.as_bytes())), *want, "{event}");
        }
        let completions = [
            (r#"{"choices":[{"index":0,"text":"go"},{"index":1,"text":"on"}]}"#, "goon"),
            (r#"{"choices":[{"index":0,"text":null}]}"#, ""),
            (r#"{"choices":[{"index":0,"delta":{"content":"not a completion"}}]}"#, ""),
        ];
        for (event, want) in completions {
            assert_eq!(String::from_utf8_lossy(&text_of_event(Kind::Completion, event.as_bytes())), want, "{event}");
        }
    }

    #[test]
    fn events_that_name_their_type_are_counted() {
        let cases = [
            (Kind::Response, r#"{"type":"response.output_text.delta","delta":"Hé"}"#, "Hé"),
            (Kind::Response, r#"{"type":"response.function_call_arguments.delta","delta":"{\"a\""}"#, "{\"a\""),
            (Kind::Response, r#"{"type":"response.output_text.done","text":"Hé"}"#, ""),
            (
                Kind::Response,
                r#"{"type":"response.output_item.added","item":{"type":"function_call","name":"f"}}"#,
                "f",
            ),
            (Kind::Response, r#"{"type":"response.output_item.done","item":{"type":"function_call","name":"f"}}"#, ""),
            (Kind::Message, r#"{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}"#, "a"),
            (Kind::Message, r#"{"type":"content_block_delta","delta":{"thinking":"b"}}"#, "b"),
            (Kind::Message, r#"{"type":"content_block_delta","delta":{"partial_json":"{"}}"#, "{"),
            (Kind::Message, r#"{"type":"content_block_start","content_block":{"type":"tool_use","name":"g"}}"#, "g"),
            (Kind::Message, r#"{"type":"message_delta","delta":{"stop_reason":"end_turn"}}"#, ""),
            (Kind::Message, r#"{"delta":{"text":"a"}}"#, ""),
            (Kind::Message, "[DONE]", ""),
        ];
        for (kind, event, want) in cases {
            assert_eq!(String::from_utf8_lossy(&text_of_event(kind, event.as_bytes())), want, "{event}");
        }
    }

    #[test]
    fn what_no_other_provider_can_go_on_with_is_known() {
        for (delta, want) in [
            (r#"{"content":"a"}"#, false),
            (r#"{"content":"a","reasoning_content":"","tool_calls":[],"refusal":null}"#, false),
            (r#"{"reasoning":"a"}"#, true),
            (r#"{"refusal":"a"}"#, true),
            (r#"{"tool_calls":[{"index":0}]}"#, true),
            (r#"{"function_call":{}}"#, true),
        ] {
            let event = chat_event(delta);
            assert_eq!(is_beyond_text(&Event::parse(event.as_bytes()).expect("an event")), want, "{delta}");
        }
    }
}
