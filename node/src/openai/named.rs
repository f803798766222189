//! A stream of events that name their type, as a server of OpenAI's Responses or Anthropic's Messages sends it.
//! Invariant: its events pass byte for byte, and what they come to in one piece is what the server would have answered.

use super::aggregate::{AnswerTooLong, GATHERED_BYTES_MAX};
use super::endpoint::Events;
use super::stitch::CannotContinue;
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};
use std::borrow::Cow;

/// Most content blocks of one message.
const BLOCKS_MAX: usize = 1024;

/// A stream so far.
#[derive(Debug)]
pub struct Named {
    events: Events,
    begun: bool,
    over: bool,
    bytes: usize,
    /// The last event's `response` (Responses).
    response: Option<Box<RawValue>>,
    /// The message with its blocks (Messages).
    message: Map<String, Value>,
    blocks: Vec<Block>,
}

#[derive(Debug, Default)]
struct Block {
    value: Map<String, Value>,
    /// A tool's input, as it comes in pieces of JSON.
    input: String,
}

#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow, default)]
    response: Option<&'a RawValue>,
}

impl Named {
    /// For one answer.
    #[must_use]
    pub fn new(events: Events) -> Self {
        Self { events, begun: false, over: false, bytes: 0, response: None, message: Map::new(), blocks: Vec::new() }
    }

    /// The job was placed, for the first time or anew.
    ///
    /// # Errors
    /// If something was delivered: what these servers say cannot be gone on with elsewhere.
    pub const fn leg(&self) -> Result<(), CannotContinue> {
        if self.begun { Err(CannotContinue) } else { Ok(()) }
    }

    /// Notes an event; its type, if it is one for the client.
    pub fn event(&mut self, bytes: &[u8]) -> Option<String> {
        let event: Event<'_> = serde_json::from_slice(bytes).ok()?;
        if self.over || event.r#type.contains(['\r', '\n']) {
            return None;
        }
        self.begun = true;
        let ends = match self.events {
            Events::Responses => {
                matches!(&*event.r#type, "response.completed" | "response.incomplete" | "response.failed")
            }
            Events::Messages => event.r#type == "message_stop",
        };
        if ends {
            self.over = true;
            self.response = event.response.map(ToOwned::to_owned);
        }
        Some(event.r#type.into_owned())
    }

    /// Whether the stream has had its end.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.over
    }

    /// Keeps an event for the answer in one piece.
    ///
    /// # Errors
    /// If the answer grows too long.
    pub fn gather(&mut self, bytes: &[u8]) -> Result<(), AnswerTooLong> {
        self.bytes += bytes.len();
        if self.bytes > GATHERED_BYTES_MAX {
            return Err(AnswerTooLong);
        }
        if self.event(bytes).is_some() && self.events == Events::Messages {
            self.add(serde_json::from_slice(bytes).unwrap_or_default());
        }
        Ok(())
    }

    /// Adds an event of Messages.
    fn add(&mut self, mut event: Map<String, Value>) {
        let index = event.get("index").and_then(Value::as_u64).and_then(|index| usize::try_from(index).ok());
        let index = index.filter(|index| *index < BLOCKS_MAX);
        let kind = event.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
        match (kind.as_str(), index) {
            ("message_start", _) => {
                if let Some(Value::Object(message)) = event.remove("message") {
                    self.message = message;
                }
            }
            ("content_block_start", Some(index)) => {
                if let Some(Value::Object(value)) = event.remove("content_block") {
                    self.blocks.resize_with(self.blocks.len().max(index + 1), Block::default);
                    self.blocks[index] = Block { value, input: String::new() };
                }
            }
            ("content_block_delta", Some(index)) => {
                if let (Some(block), Some(Value::Object(delta))) = (self.blocks.get_mut(index), event.remove("delta")) {
                    block.add(delta);
                }
            }
            ("message_delta", _) => {
                for name in ["delta", "usage"] {
                    let Some(Value::Object(news)) = event.remove(name) else { continue };
                    let target = match name {
                        "usage" => match self.message.entry("usage").or_insert_with(|| json!({})) {
                            Value::Object(usage) => usage,
                            _ => continue,
                        },
                        _ => &mut self.message,
                    };
                    target.extend(news);
                }
            }
            _ => {}
        }
    }

    /// The answer in one piece; `None` if it has no end.
    #[must_use]
    pub fn whole(mut self) -> Option<Vec<u8>> {
        if !self.over {
            return None;
        }
        match self.events {
            Events::Responses => self.response.map(|response| response.get().as_bytes().to_vec()),
            Events::Messages => {
                let blocks = self.blocks.into_iter().map(|block| Value::Object(block.finish())).collect();
                self.message.insert("content".into(), Value::Array(blocks));
                Some(Value::Object(self.message).to_string().into_bytes())
            }
        }
    }
}

impl Block {
    fn add(&mut self, delta: Map<String, Value>) {
        for (name, value) in delta {
            match (name.as_str(), &value) {
                ("type", _) => {}
                ("partial_json", Value::String(piece)) => self.input.push_str(piece),
                ("citation", _) => match self.value.entry("citations").or_insert_with(|| json!([])) {
                    Value::Array(citations) => citations.push(value),
                    other => *other = json!([value]),
                },
                (_, Value::String(piece)) => match self.value.entry(name).or_insert_with(|| json!("")) {
                    Value::String(text) => text.push_str(piece),
                    other => *other = value,
                },
                _ => _ = self.value.insert(name, value),
            }
        }
    }

    fn finish(mut self) -> Map<String, Value> {
        if !self.input.is_empty() {
            let input = serde_json::from_str(&self.input).unwrap_or(Value::String(self.input));
            self.value.insert("input".into(), input);
        }
        self.value
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn feed(events: Events, stream: &[&str]) -> Named {
        let mut named = Named::new(events);
        for event in stream {
            named.gather(event.as_bytes()).expect("short");
        }
        named
    }

    #[test]
    fn a_response_in_one_piece_is_the_last_events() {
        let created = r#"{"type":"response.created","response":{"id":"r","status":"in_progress"}}"#;
        let done = r#"{"type":"response.completed","sequence_number":9,"response":{"id":"r", "x":1e400}}"#;
        assert_eq!(
            feed(Events::Responses, &[created, done]).whole().as_deref(),
            Some(&br#"{"id":"r", "x":1e400}"#[..])
        );
        let open = feed(Events::Responses, &[created]);
        assert_eq!(open.leg(), Err(CannotContinue));
        assert_eq!(open.whole(), None);
    }

    #[test]
    fn a_message_in_one_piece_has_all_blocks() {
        let stream = [
            r#"{"type":"message_start","message":{"id":"m","type":"message","role":"assistant","content":[],"stop_reason":null,"usage":{"input_tokens":7,"output_tokens":1}}}"#,
            r#"{"type":"content_block_start","index":0,"content_block":{"type":"thinking","thinking":"","signature":""}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}"#,
            r#"{"type":"content_block_delta","index":0,"delta":{"type":"signature_delta","signature":"s"}}"#,
            r#"{"type":"ping"}"#,
            r#"{"type":"content_block_start","index":1,"content_block":{"type":"text","text":""}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"He"}}"#,
            r#"{"type":"content_block_delta","index":1,"delta":{"type":"text_delta","text":"llo"}}"#,
            r#"{"type":"content_block_start","index":2,"content_block":{"type":"tool_use","id":"t","name":"f","input":{}}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"{\"a\":"}}"#,
            r#"{"type":"content_block_delta","index":2,"delta":{"type":"input_json_delta","partial_json":"1}"}}"#,
            r#"{"type":"message_delta","delta":{"stop_reason":"tool_use","stop_sequence":null},"usage":{"output_tokens":9}}"#,
            r#"{"type":"message_stop"}"#,
        ];
        let whole: Value =
            serde_json::from_slice(&feed(Events::Messages, &stream).whole().expect("an end")).expect("JSON");
        let want = json!({
            "id": "m", "type": "message", "role": "assistant", "stop_reason": "tool_use", "stop_sequence": null,
            "usage": {"input_tokens": 7, "output_tokens": 9},
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "Hello"},
                {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
            ],
        });
        assert_eq!(whole, want);
        assert_eq!(feed(Events::Messages, &stream[..12]).whole(), None);
    }
}
