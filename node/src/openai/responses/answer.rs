//! A chat's answer as a response: its events, and the response itself.
//! Invariant: the response in one piece is the one that the stream's last event carries.

use super::super::blocks::{Block, BlockKind, Blocks, Step};
use super::super::fields::{Fields, literal, object, raw};
use super::super::sse::named_frame;
use super::request::Echo;
use bytes::Bytes;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use std::collections::VecDeque;

/// A response in the making.
#[derive(Debug)]
pub struct ResponsesAnswer {
    echo: Echo,
    id: String,
    created_s: u64,
    model: String,
    blocks: Blocks,
    begun: bool,
    /// Events so far.
    sequence: u64,
}

impl ResponsesAnswer {
    /// For one answer of the job named `id`, begun at `created_s` (Unix seconds).
    #[must_use]
    pub fn new(echo: Echo, id: &str, created_s: u64, model: &str) -> Self {
        Self {
            echo,
            id: id.to_owned(),
            created_s,
            model: model.to_owned(),
            blocks: Blocks::default(),
            begun: false,
            sequence: 0,
        }
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
        let (status, response) = self.response(finish, usage);
        self.event(&format!("response.{status}"), vec![("response", response)], out);
    }

    /// The response in one piece.
    #[must_use]
    pub fn whole(mut self, finish: &str, usage: &RawValue) -> Vec<u8> {
        let _ = self.blocks.finish();
        self.response(finish, usage).1.get().as_bytes().to_vec()
    }

    /// The event that ends the stream badly.
    #[must_use]
    pub fn error(&self, code: &str, message: &str, param: Option<&str>) -> Bytes {
        let event = json!({
            "type": "error", "sequence_number": self.sequence, "code": code, "message": message, "param": param,
        });
        named_frame("error", event.to_string().as_bytes())
    }

    fn begin(&mut self, out: &mut VecDeque<Bytes>) {
        if std::mem::replace(&mut self.begun, true) {
            return;
        }
        for name in ["response.created", "response.in_progress"] {
            let response = self.object("in_progress", literal("null"), Vec::new(), literal("null"));
            self.event(name, vec![("response", response)], out);
        }
    }

    fn event(&mut self, name: &str, fields: Vec<(&str, Box<RawValue>)>, out: &mut VecDeque<Bytes>) {
        let mut event = Fields::default();
        event.set("type", raw(name));
        event.set("sequence_number", raw(&self.sequence));
        for (field, value) in fields {
            event.set(field, value);
        }
        self.sequence += 1;
        out.push_back(named_frame(name, &event.to_bytes()));
    }

    fn tell(&mut self, steps: Vec<Step>, out: &mut VecDeque<Bytes>) {
        for step in steps {
            let (Step::Open(place) | Step::More(place, ..) | Step::Close(place)) = step;
            let block = &self.blocks.blocks()[place];
            let id = ("item_id", raw(&self.item_id(place, block)));
            let index = ("output_index", raw(&place));
            let part = ("content_index", raw(&0));
            match step {
                Step::Open(_) => {
                    let (item, begun) = (self.item(place, block, false), content(block, false));
                    self.event("response.output_item.added", vec![index.clone(), ("item", item)], out);
                    if let Some(begun) = begun {
                        self.event("response.content_part.added", vec![id, index, part, ("part", begun)], out);
                    }
                }
                Step::More(_, piece, logprobs) => {
                    let delta = ("delta", raw(&piece));
                    let (name, fields) = match &block.kind {
                        BlockKind::Call { .. } => ("function_call_arguments", vec![id, index, delta]),
                        BlockKind::Text => {
                            let logprobs = ("logprobs", raw(&block.logprobs[logprobs]));
                            ("output_text", vec![id, index, part, delta, logprobs])
                        }
                        BlockKind::Thinking => ("reasoning_text", vec![id, index, part, delta]),
                        BlockKind::Refusal => ("refusal", vec![id, index, part, delta]),
                    };
                    self.event(&format!("response.{name}.delta"), fields, out);
                }
                Step::Close(_) => {
                    let text = raw(&block.text);
                    let at = vec![id.clone(), index.clone(), part.clone()];
                    let (name, fields) = match &block.kind {
                        BlockKind::Call { name, .. } => {
                            let fields = vec![id, index.clone(), ("name", raw(name)), ("arguments", text)];
                            ("function_call_arguments", fields)
                        }
                        BlockKind::Text => {
                            let logprobs = ("logprobs", raw(&block.logprobs));
                            ("output_text", vec![id, index.clone(), part, ("text", text), logprobs])
                        }
                        BlockKind::Thinking => ("reasoning_text", vec![id, index.clone(), part, ("text", text)]),
                        BlockKind::Refusal => ("refusal", vec![id, index.clone(), part, ("refusal", text)]),
                    };
                    let (item, done) = (self.item(place, block, true), content(block, true));
                    self.event(&format!("response.{name}.done"), fields, out);
                    if let Some(done) = done {
                        let fields = at.into_iter().chain([("part", done)]).collect();
                        self.event("response.content_part.done", fields, out);
                    }
                    self.event("response.output_item.done", vec![index, ("item", item)], out);
                }
            }
        }
    }

    fn item_id(&self, place: usize, block: &Block) -> String {
        let name = match &block.kind {
            BlockKind::Thinking => "rs",
            BlockKind::Text | BlockKind::Refusal => "msg",
            BlockKind::Call { .. } => "fc",
        };
        format!("{name}_{}_{place}", self.id)
    }

    fn item(&self, place: usize, block: &Block, is_done: bool) -> Box<RawValue> {
        let id = raw(&self.item_id(place, block));
        let status = raw(if is_done { "completed" } else { "in_progress" });
        let parts = raw(&content(block, true).filter(|_| is_done).map(|part| vec![part]).unwrap_or_default());
        match &block.kind {
            BlockKind::Thinking => object([
                ("id", id),
                ("type", raw("reasoning")),
                ("summary", literal("[]")),
                ("content", parts),
                ("status", status),
            ]),
            BlockKind::Text | BlockKind::Refusal => object([
                ("id", id),
                ("type", raw("message")),
                ("role", raw("assistant")),
                ("status", status),
                ("content", parts),
            ]),
            BlockKind::Call { id: call, name, .. } => {
                let call = if call.is_empty() { format!("call_{}_{place}", self.id) } else { call.clone() };
                object([
                    ("id", id),
                    ("type", raw("function_call")),
                    ("call_id", raw(&call)),
                    ("name", raw(name)),
                    ("arguments", raw(if is_done { block.text.as_str() } else { "" })),
                    ("status", status),
                ])
            }
        }
    }

    /// The status at the end, and the response.
    fn response(&self, finish: &str, usage: &RawValue) -> (&'static str, Box<RawValue>) {
        let incomplete = match self.blocks.finish_reason().unwrap_or(finish) {
            "length" => Some("max_output_tokens"),
            "content_filter" => Some("content_filter"),
            _ => None,
        };
        let status = if incomplete.is_some() { "incomplete" } else { "completed" };
        let details = incomplete.map_or_else(|| literal("null"), |reason| object([("reason", raw(reason))]));
        let blocks = self.blocks.blocks();
        let output = blocks.iter().enumerate().map(|(place, block)| self.item(place, block, true)).collect();
        (status, self.object(status, details, output, counts(usage)))
    }

    fn object(
        &self,
        status: &str,
        incomplete: Box<RawValue>,
        output: Vec<Box<RawValue>>,
        usage: Box<RawValue>,
    ) -> Box<RawValue> {
        let mut response = Fields::default();
        response.set("id", raw(&format!("resp_{}", self.id)));
        response.set("object", raw("response"));
        response.set("created_at", raw(&self.created_s));
        response.set("status", raw(status));
        response.set("background", literal("false"));
        response.set("error", literal("null"));
        response.set("incomplete_details", incomplete);
        response.set("model", raw(&self.model));
        response.set("output", raw(&output));
        response.set("previous_response_id", literal("null"));
        for (name, value) in &self.echo.0 {
            response.set(name, literal(value.as_str()));
        }
        response.set("store", literal("false"));
        response.set("truncation", raw("disabled"));
        response.set("usage", usage);
        response.to_raw()
    }
}

/// The one part of an item's content; calls have none.
fn content(block: &Block, is_done: bool) -> Option<Box<RawValue>> {
    let text = raw(if is_done { block.text.as_str() } else { "" });
    let none = Vec::new();
    let logprobs = raw(if is_done { &block.logprobs } else { &none });
    match &block.kind {
        BlockKind::Thinking => Some(object([("type", raw("reasoning_text")), ("text", text)])),
        BlockKind::Text => Some(object([
            ("type", raw("output_text")),
            ("text", text),
            ("annotations", literal("[]")),
            ("logprobs", logprobs),
        ])),
        BlockKind::Refusal => Some(object([("type", raw("refusal")), ("refusal", text)])),
        BlockKind::Call { .. } => None,
    }
}

/// A chat's usage by a response's names; what has the same name in both stays as it is.
fn counts(usage: &RawValue) -> Box<RawValue> {
    let usage: Value = serde_json::from_str(usage.get()).unwrap_or_default();
    let count = |name: &str| usage.get(name).and_then(Value::as_u64).unwrap_or(0);
    let within = |name: &str, part: &str| usage.get(name).and_then(|of| of.get(part)).and_then(Value::as_u64);
    let (input, output) = (count("prompt_tokens"), count("completion_tokens"));
    let mut counts = json!({
        "input_tokens": input,
        "input_tokens_details": {"cached_tokens": within("prompt_tokens_details", "cached_tokens").unwrap_or(0)},
        "output_tokens": output,
        "output_tokens_details": {
            "reasoning_tokens": within("completion_tokens_details", "reasoning_tokens").unwrap_or(0),
        },
        "total_tokens": input + output,
    });
    for name in ["cost", "x_spillway"] {
        if let Some(value) = usage.get(name) {
            counts[name] = value.clone();
        }
    }
    raw(&counts)
}

#[cfg(test)]
mod tests {
    use super::super::request::to_chat;
    use super::*;

    fn answer(request: &str, chunks: &[&str], finish: &str) -> (Vec<(String, Value)>, Value) {
        let (_, echo) = to_chat(request.as_bytes()).expect(request);
        let usage = literal(
            r#"{"prompt_tokens":9,"completion_tokens":4,"prompt_tokens_details":{"cached_tokens":3},"cost":0.000012}"#,
        );
        let mut streamed = ResponsesAnswer::new(echo.clone(), "job", 7, "m");
        let mut plain = ResponsesAnswer::new(echo, "job", 7, "m");
        let mut out = VecDeque::new();
        for chunk in chunks {
            streamed.chunk(chunk.as_bytes(), &mut out);
            plain.chunk(chunk.as_bytes(), &mut VecDeque::new());
        }
        streamed.end(finish, &usage, &mut out);
        let events = out.iter().map(|frame| {
            let frame = std::str::from_utf8(frame).expect("text");
            let (name, data) =
                frame.strip_prefix("event: ").and_then(|rest| rest.split_once("\ndata: ")).expect("a name");
            let data: Value = serde_json::from_str(data.trim()).expect("JSON");
            assert_eq!(data["type"], name);
            (name.to_owned(), data)
        });
        let whole = serde_json::from_slice(&plain.whole(finish, &usage)).expect("JSON");
        (events.collect(), whole)
    }

    #[test]
    fn an_answer_is_the_same_streamed_or_not() {
        let request = r#"{"model":"m","input":"hi","temperature":0.5,"metadata":{"a":"b"},"tools":[{"type":"function","name":"f"}]}"#;
        let chunks = [
            r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"reasoning_content":"hm"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"Hel"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"content":"lo"}}]}"#,
            r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"id":"c","function":{"name":"f","arguments":"{}"}}]}}]}"#,
            r#"{"choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
        ];
        let (events, whole) = answer(request, &chunks, "tool_calls");
        let names: Vec<_> =
            events.iter().map(|(name, _)| name.strip_prefix("response.").expect("of a response")).collect();
        assert_eq!(
            names,
            [
                "created",
                "in_progress",
                "output_item.added",
                "content_part.added",
                "reasoning_text.delta",
                "reasoning_text.done",
                "content_part.done",
                "output_item.done",
                "output_item.added",
                "content_part.added",
                "output_text.delta",
                "output_text.delta",
                "output_text.done",
                "content_part.done",
                "output_item.done",
                "output_item.added",
                "function_call_arguments.delta",
                "function_call_arguments.done",
                "output_item.done",
                "completed",
            ]
        );
        for (index, (_, event)) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], index);
        }
        assert_eq!(events.last().expect("an end").1["response"], whole);
        assert_eq!(events[7].1["item"], whole["output"][0]);
        assert_eq!(events[14].1["item"], whole["output"][1]);
        assert_eq!(
            whole["output"],
            json!([
                {"id": "rs_job_0", "type": "reasoning", "summary": [], "status": "completed", "content": [{"type": "reasoning_text", "text": "hm"}]},
                {"id": "msg_job_1", "type": "message", "role": "assistant", "status": "completed",
                 "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}]},
                {"id": "fc_job_2", "type": "function_call", "call_id": "c", "name": "f", "arguments": "{}", "status": "completed"},
            ])
        );
        assert_eq!(
            whole["usage"],
            json!({"input_tokens": 9, "input_tokens_details": {"cached_tokens": 3}, "output_tokens": 4,
                   "output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": 13, "cost": 0.000012})
        );
        assert_eq!(
            (&whole["temperature"], &whole["metadata"], &whole["status"]),
            (&json!(0.5), &json!({"a": "b"}), &json!("completed"))
        );
    }

    #[test]
    fn an_answer_that_was_cut_says_so() {
        let (events, whole) = answer(
            r#"{"model":"m","input":"hi"}"#,
            &[r#"{"choices":[{"index":0,"delta":{"content":"H"}}]}"#],
            "length",
        );
        assert_eq!(events.last().expect("an end").0, "response.incomplete");
        assert_eq!(
            (&whole["status"], &whole["incomplete_details"]),
            (&json!("incomplete"), &json!({"reason": "max_output_tokens"}))
        );
        let (events, whole) = answer(r#"{"model":"m","input":"hi"}"#, &[], "stop");
        assert_eq!((events.len(), &whole["output"]), (3, &json!([])));
    }
}
