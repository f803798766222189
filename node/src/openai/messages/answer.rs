//! A chat's answer as a message: its events, and the message itself.
//! Invariant: the message in one piece has the blocks, the reason and the usage of the stream.

use super::super::blocks::{BlockKind, Blocks, Step};
use super::super::sse::named_frame;
use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::VecDeque;

/// A message in the making.
#[derive(Debug)]
pub struct MessagesAnswer {
    id: String,
    model: String,
    blocks: Blocks,
    begun: bool,
}

impl MessagesAnswer {
    /// For one answer of the job named `id`.
    #[must_use]
    pub fn new(id: &str, model: &str) -> Self {
        Self { id: id.to_owned(), model: model.to_owned(), blocks: Blocks::default(), begun: false }
    }

    /// Takes a chat's chunk; adds the frames that it comes to.
    pub fn chunk(&mut self, bytes: &[u8], out: &mut VecDeque<Bytes>) {
        self.begin(out);
        let steps = self.blocks.event(bytes);
        self.tell(steps, out);
    }

    /// The answer is complete: adds the frames that end it. `finish` is the job's reason, `usage` that of the chat.
    pub fn end(&mut self, finish: &str, usage: &RawValue, out: &mut VecDeque<Bytes>) {
        self.begin(out);
        let steps = self.blocks.finish();
        self.tell(steps, out);
        let delta = json!({"stop_reason": self.reason(finish), "stop_sequence": null});
        event("message_delta", json!({"type": "message_delta", "delta": delta, "usage": counts(usage)}), out);
        event("message_stop", json!({"type": "message_stop"}), out);
    }

    /// The message in one piece.
    #[must_use]
    pub fn whole(mut self, finish: &str, usage: &RawValue) -> Vec<u8> {
        let _ = self.blocks.finish();
        let places = 0..self.blocks.blocks().len();
        let content = places.map(|place| self.block(place, true)).collect();
        let mut message = self.message(content, counts(usage));
        message["stop_reason"] = self.reason(finish).into();
        message.to_string().into_bytes()
    }

    fn begin(&mut self, out: &mut VecDeque<Bytes>) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        // What a chat counts comes at its end.
        let message = self.message(Vec::new(), json!({"input_tokens": 0, "output_tokens": 0}));
        event("message_start", json!({"type": "message_start", "message": message}), out);
    }

    fn message(&self, content: Vec<Value>, usage: Value) -> Value {
        json!({
            "id": format!("msg_{}", self.id),
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": null,
            "stop_sequence": null,
            "usage": usage,
        })
    }

    fn tell(&self, steps: Vec<Step>, out: &mut VecDeque<Bytes>) {
        for step in steps {
            match step {
                Step::Open(place) => {
                    let block = self.block(place, false);
                    let start = json!({"type": "content_block_start", "index": place, "content_block": block});
                    event("content_block_start", start, out);
                }
                Step::More(place, piece, _) => {
                    let delta = match &self.blocks.blocks()[place].kind {
                        BlockKind::Thinking => json!({"type": "thinking_delta", "thinking": piece}),
                        BlockKind::Text | BlockKind::Refusal => json!({"type": "text_delta", "text": piece}),
                        BlockKind::Call { .. } => json!({"type": "input_json_delta", "partial_json": piece}),
                    };
                    let more = json!({"type": "content_block_delta", "index": place, "delta": delta});
                    event("content_block_delta", more, out);
                }
                Step::Close(place) => {
                    event("content_block_stop", json!({"type": "content_block_stop", "index": place}), out);
                }
            }
        }
    }

    fn block(&self, place: usize, is_done: bool) -> Value {
        let block = &self.blocks.blocks()[place];
        let text = if is_done { block.text.as_str() } else { "" };
        match &block.kind {
            BlockKind::Thinking => json!({"type": "thinking", "thinking": text, "signature": ""}),
            BlockKind::Text | BlockKind::Refusal => json!({"type": "text", "text": text}),
            BlockKind::Call { id, name, .. } => {
                let id = if id.is_empty() { format!("toolu_{}_{place}", self.id) } else { id.clone() };
                // A model may write what is no JSON; the client sees what it was.
                let input = match text {
                    "" => json!({}),
                    text => serde_json::from_str(text).unwrap_or_else(|_| json!(text)),
                };
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
        }
    }

    fn reason(&self, finish: &str) -> &'static str {
        let refused = self.blocks.blocks().iter().any(|block| block.kind == BlockKind::Refusal);
        match self.blocks.finish_reason().unwrap_or(finish) {
            "length" => "max_tokens",
            "tool_calls" | "function_call" => "tool_use",
            "content_filter" => "refusal",
            _ if refused => "refusal",
            _ => "end_turn",
        }
    }
}

fn event(name: &str, data: Value, out: &mut VecDeque<Bytes>) {
    out.push_back(named_frame(name, data.to_string().as_bytes()));
}

/// A chat's usage by a message's names: what was cached is counted apart.
fn counts(usage: &RawValue) -> Value {
    let usage: Value = serde_json::from_str(usage.get()).unwrap_or_default();
    let count = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
    let cached = usage.get("prompt_tokens_details").and_then(|of| of.get("cached_tokens")).and_then(Value::as_u64);
    let cached = cached.unwrap_or(0);
    let mut counts = json!({
        "input_tokens": count("prompt_tokens").saturating_sub(cached),
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": count("completion_tokens"),
    });
    for name in ["cost", "x_spillway"] {
        if let Some(value) = usage.get(name) {
            counts[name] = value.clone();
        }
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::super::super::endpoint::Events;
    use super::super::super::fields::literal;
    use super::super::super::named::Named;
    use super::*;

    fn check(chunks: &[&str], finish: &str) -> (Vec<String>, Value) {
        let usage = literal(
            r#"{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":3},"cost":0.000012}"#,
        );
        let (mut streamed, mut plain) = (MessagesAnswer::new("job", "m"), MessagesAnswer::new("job", "m"));
        let mut out = VecDeque::new();
        for chunk in chunks {
            streamed.chunk(chunk.as_bytes(), &mut out);
            plain.chunk(chunk.as_bytes(), &mut VecDeque::new());
        }
        streamed.end(finish, &usage, &mut out);
        let (mut names, mut gathered) = (Vec::new(), Named::new(Events::Messages));
        for frame in &out {
            let frame = std::str::from_utf8(frame).expect("text");
            let (name, data) =
                frame.strip_prefix("event: ").and_then(|rest| rest.split_once("\ndata: ")).expect("a name");
            gathered.gather(data.trim().as_bytes()).expect("short");
            names.push(name.to_owned());
        }
        let whole: Value = serde_json::from_slice(&plain.whole(finish, &usage)).expect("JSON");
        let gathered: Value = serde_json::from_slice(&gathered.whole().expect("an end")).expect("JSON");
        assert_eq!(gathered, whole, "the stream comes to the message");
        (names, whole)
    }

    #[test]
    fn an_answer_is_the_same_streamed_or_not() {
        let (names, whole) = check(
            &[
                r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"reasoning":"hm"}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"content":"Hel"}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"content":"lo"}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{\"a\":1}"}}]}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"function":{"name":"g","arguments":""}}]}}]}"#,
                r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
            ],
            "stop",
        );
        let block = ["content_block_start", "content_block_delta", "content_block_stop"];
        let want = [
            &["message_start"][..],
            &block[..],
            &[block[0], block[1], block[1], block[2]][..],
            &block[..],
            &[block[0], block[2]][..],
            &["message_delta", "message_stop"][..],
        ];
        assert_eq!(names, want.concat());
        assert_eq!(
            whole,
            json!({
                "id": "msg_job", "type": "message", "role": "assistant", "model": "m",
                "stop_reason": "tool_use", "stop_sequence": null,
                "content": [
                    {"type": "thinking", "thinking": "hm", "signature": ""},
                    {"type": "text", "text": "Hello"},
                    {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}},
                    {"type": "tool_use", "id": "toolu_job_3", "name": "g", "input": {}},
                ],
                "usage": {"input_tokens": 6, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 3,
                          "output_tokens": 4, "cost": 0.000012},
            })
        );
    }

    #[test]
    fn reasons_are_translated() {
        let text = r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#;
        let no = r#"{"choices":[{"index":0,"delta":{"refusal":"no"},"finish_reason":"stop"}]}"#;
        for (chunks, finish, want) in [
            (vec![], "stop", "end_turn"),
            (vec![text], "length", "max_tokens"),
            (vec![text], "tool_calls", "tool_use"),
            (vec![text], "content_filter", "refusal"),
            (vec![no], "stop", "refusal"),
        ] {
            assert_eq!(check(&chunks, finish).1["stop_reason"], want);
        }
    }
}
