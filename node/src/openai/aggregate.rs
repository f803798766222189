//! A stream's events gathered into one plain response.
//! Invariant: texts are joined in order, and whatever is not known here is kept as its last event said it.

use super::endpoint::Choices;
use super::event::{Event, INDEX_MAX};
use super::fields::{Fields, literal, raw};
use super::template::Template;
use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Most bytes of events that are gathered for one response.
pub const GATHERED_BYTES_MAX: usize = 32 << 20;

/// An answer over [`GATHERED_BYTES_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer is over 32 MiB")]
pub struct AnswerTooLong;

/// Gathers the events of one answer.
#[derive(Debug)]
pub struct Aggregate {
    kind: Choices,
    bytes: usize,
    /// The answer's own fields, last one wins.
    head: Fields<'static>,
    choices: BTreeMap<u32, Whole>,
    template: Template,
    /// Whose text the template's events have.
    of: u32,
}

/// One choice so far.
#[derive(Debug, Default)]
struct Whole {
    /// Fields of the message (chat) that are texts.
    texts: Vec<(String, String)>,
    /// Content that came as parts.
    parts: Vec<Box<RawValue>>,
    /// Other fields of the message, last one wins.
    message: Fields<'static>,
    tool_calls: BTreeMap<u32, Call>,
    function_call: Option<Call>,
    /// The lists within `logprobs`.
    logprobs: Option<Vec<(String, Vec<Box<RawValue>>)>>,
    /// Other fields of the choice, last one wins.
    rest: Fields<'static>,
}

/// A tool call so far.
#[derive(Debug, Default)]
struct Call {
    rest: Fields<'static>,
    function: Fields<'static>,
    name: Option<String>,
    arguments: Option<String>,
}

/// Message fields whose pieces are joined; of any other field the last one counts.
const TEXTS: [&str; 4] = ["content", "reasoning_content", "reasoning", "refusal"];

impl Aggregate {
    /// For one answer.
    #[must_use]
    pub fn new(kind: Choices) -> Self {
        let mut head = Fields::default();
        let object = match kind {
            Choices::Chat => "chat.completion",
            Choices::Completion => "text_completion",
        };
        for (name, value) in [("id", literal("null")), ("object", raw(object))] {
            head.set(name, value);
        }
        Self { kind, bytes: 0, head, choices: BTreeMap::new(), template: Template::new(kind), of: 0 }
    }

    /// Adds an event, as it comes from a [`Stitch`](super::Stitch).
    ///
    /// # Errors
    /// If the answer grows too long.
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), AnswerTooLong> {
        self.bytes += bytes.len();
        if self.bytes > GATHERED_BYTES_MAX {
            return Err(AnswerTooLong);
        }
        if let Some(text) = self.template.text(bytes) {
            // Whatever else the event says, the one that the template is of has said.
            let name = match self.kind {
                Choices::Chat => "content",
                Choices::Completion => "text",
            };
            self.choices.entry(self.of).or_default().push_text(name, &text);
            return Ok(());
        }
        let Ok(fields) = Fields::parse(bytes) else { return Ok(()) };
        let choices: Vec<Fields<'_>> = match fields.get("choices") {
            None => Vec::new(),
            Some(choices) => match serde_json::from_str(choices) {
                Ok(choices) => choices,
                Err(_) => return Ok(()),
            },
        };
        for (name, value) in fields.iter() {
            if !matches!(name, "object" | "choices" | "usage") {
                keep(&mut self.head, name, value);
            }
        }
        for choice in &choices {
            let index = choice.read::<u32>("index").unwrap_or(0);
            if index <= INDEX_MAX {
                self.choices.entry(index).or_default().add(self.kind, choice);
            }
        }
        if let Some(event) = Event::parse(bytes)
            && self.template.learn(bytes, &event)
        {
            self.of = event.choices[0].index;
        }
        Ok(())
    }

    /// The response.
    #[must_use]
    pub fn finish(mut self, usage: Box<RawValue>) -> Vec<u8> {
        let choices: Vec<_> =
            self.choices.into_iter().map(|(index, choice)| choice.finish(self.kind, index).to_raw()).collect();
        self.head.set("choices", raw(&choices));
        self.head.set("usage", usage);
        self.head.to_bytes()
    }
}

impl Whole {
    fn add(&mut self, kind: Choices, choice: &Fields<'_>) {
        for (name, value) in choice.iter() {
            match name {
                "index" => {}
                "delta" if kind == Choices::Chat => {
                    if let Ok(delta) = Fields::parse(value.get().as_bytes()) {
                        self.add_delta(&delta);
                    }
                }
                "text" if kind == Choices::Completion => self.add_text("text", value),
                "logprobs" => self.add_logprobs(value),
                _ => keep(&mut self.rest, name, value),
            }
        }
    }

    fn add_delta(&mut self, delta: &Fields<'_>) {
        for (name, value) in delta.iter() {
            match name {
                "tool_calls" => {
                    let calls: Vec<Fields<'_>> = serde_json::from_str(value.get()).unwrap_or_default();
                    for (position, call) in (0u32..).zip(&calls).take(128) {
                        let index = call.read::<u32>("index").unwrap_or(position);
                        if index < 128 {
                            self.tool_calls.entry(index).or_default().add(call);
                        }
                    }
                }
                "function_call" => {
                    if let Ok(function) = Fields::parse(value.get().as_bytes()) {
                        self.function_call.get_or_insert_default().add_function(&function);
                    }
                }
                name if TEXTS.contains(&name) && (name == "content" || value.get() != "null") => {
                    self.add_text(name, value)
                }
                name => keep(&mut self.message, name, value),
            }
        }
    }

    fn add_text(&mut self, name: &str, value: &RawValue) {
        if value.get().starts_with('[') {
            self.parts.extend(serde_json::from_str::<Vec<Box<RawValue>>>(value.get()).unwrap_or_default());
        }
        let Ok(piece) = serde_json::from_str::<String>(value.get()) else { return };
        self.push_text(name, &piece);
    }

    fn push_text(&mut self, name: &str, piece: &str) {
        match self.texts.iter_mut().find(|(other, _)| other == name) {
            Some((_, text)) => text.push_str(piece),
            None => self.texts.push((name.to_owned(), piece.to_owned())),
        }
    }

    fn add_logprobs(&mut self, value: &RawValue) {
        let Ok(lists) = Fields::parse(value.get().as_bytes()) else { return };
        let logprobs = self.logprobs.get_or_insert_default();
        for (name, list) in lists.iter() {
            let Ok(list) = serde_json::from_str::<Vec<Box<RawValue>>>(list.get()) else { continue };
            match logprobs.iter_mut().find(|(other, _)| other == name) {
                Some((_, whole)) => whole.extend(list),
                None => logprobs.push((name.to_owned(), list)),
            }
        }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        let position = self.texts.iter().position(|(other, _)| other == name)?;
        Some(self.texts.remove(position).1)
    }

    fn finish(mut self, kind: Choices, index: u32) -> Fields<'static> {
        let mut choice = Fields::default();
        choice.set("index", raw(&index));
        match kind {
            Choices::Chat => {
                let message = self.message();
                choice.set("message", message.to_raw());
            }
            Choices::Completion => choice.set("text", raw(&self.text("text").unwrap_or_default())),
        }
        let logprobs = self.logprobs.map(|lists| {
            let mut fields = Fields::default();
            for (name, list) in lists {
                fields.set(&name, raw(&list));
            }
            fields
        });
        choice.set("logprobs", raw(&logprobs));
        choice.set("finish_reason", literal("null"));
        for (name, value) in self.rest.iter() {
            choice.set(name, value.to_owned());
        }
        choice
    }

    fn message(&mut self) -> Fields<'static> {
        let mut message = Fields::default();
        message.set("role", raw("assistant"));
        // A message of tool calls alone has the content `null`; one that said nothing at all has an empty text.
        let has_calls = !self.tool_calls.is_empty() || self.function_call.is_some();
        let text = self.text("content").filter(|text| !(text.is_empty() && has_calls));
        message.set(
            "content",
            match text {
                Some(text) if self.parts.is_empty() => raw(&text),
                None if self.parts.is_empty() && !has_calls => raw(""),
                None if self.parts.is_empty() => literal("null"),
                Some(_) | None => raw(&self.parts),
            },
        );
        for (name, text) in std::mem::take(&mut self.texts) {
            message.set(&name, raw(&text));
        }
        if !self.tool_calls.is_empty() {
            let calls: Vec<_> = self.tool_calls.values().map(|call| call.finish().to_raw()).collect();
            message.set("tool_calls", raw(&calls));
        }
        if let Some(call) = &self.function_call {
            message.set("function_call", call.function().to_raw());
        }
        for (name, value) in self.message.iter() {
            // A text that was `null` at first may have come later.
            if message.raw(name).is_none() || !TEXTS.contains(&name) {
                message.set(name, value.to_owned());
            }
        }
        message
    }
}

impl Call {
    fn add(&mut self, call: &Fields<'_>) {
        for (name, value) in call.iter() {
            match name {
                "index" => {}
                "function" => {
                    if let Ok(function) = Fields::parse(value.get().as_bytes()) {
                        self.add_function(&function);
                    }
                }
                _ => keep(&mut self.rest, name, value),
            }
        }
    }

    fn add_function(&mut self, function: &Fields<'_>) {
        for (name, value) in function.iter() {
            let text = match name {
                "name" => &mut self.name,
                "arguments" => &mut self.arguments,
                _ => {
                    keep(&mut self.function, name, value);
                    continue;
                }
            };
            if let Ok(piece) = serde_json::from_str::<String>(value.get()) {
                text.get_or_insert_default().push_str(&piece);
            }
        }
    }

    fn function(&self) -> Fields<'static> {
        let mut function = Fields::default();
        function.set("name", raw(self.name.as_deref().unwrap_or_default()));
        function.set("arguments", raw(self.arguments.as_deref().unwrap_or_default()));
        for (name, value) in self.function.iter() {
            function.set(name, value.to_owned());
        }
        function
    }

    fn finish(&self) -> Fields<'static> {
        let mut call = Fields::default();
        for (name, value) in self.rest.iter() {
            call.set(name, value.to_owned());
        }
        call.set("function", self.function().to_raw());
        call
    }
}

/// Keeps the newest value of a field; `null` and the empty string do not replace one, as later pieces repeat them.
fn keep(fields: &mut Fields<'static>, name: &str, value: &RawValue) {
    match fields.raw(name) {
        None => fields.set(name, value.to_owned()),
        // Most fields of an answer's events are the same in each.
        Some(old) if old.get() == value.get() || matches!(value.get(), "null" | "\"\"") => {}
        Some(_) => fields.set(name, value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(kind: Choices, events: &[&str], want: &str) {
        let mut aggregate = Aggregate::new(kind);
        for event in events {
            aggregate.push(event.as_bytes()).expect("short");
        }
        let got = String::from_utf8(aggregate.finish(literal(r#"{"total_tokens":3}"#))).expect("JSON");
        assert_eq!(got, want.replace("\n", ""));
    }

    #[test]
    fn a_plain_chat() {
        check(
            Choices::Chat,
            &[
                r#"{"id":"a","object":"chat.completion.chunk","created":1,"model":"m","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#,
                r#"{"id":"a","choices":[{"index":0,"delta":{"content":"Hé"},"logprobs":{"content":[{"token":"H","logprob":-0.10}]}}]}"#,
                r#"{"id":"a","system_fingerprint":"fp","choices":[{"index":0,"delta":{"content":"llo","x_mine":1.0},"logprobs":{"content":[{"token":"llo","logprob":-1e-7}]}}]}"#,
                r#"{"id":"a","choices":[{"index":0,"delta":{},"finish_reason":"stop","stop_reason":7}]}"#,
                "not an event",
            ],
            r#"{"id":"a","object":"chat.completion","created":1,"model":"m","system_fingerprint":"fp","choices":[{"index":0,
"message":{"role":"assistant","content":"Héllo","x_mine":1.0},
"logprobs":{"content":[{"token":"H","logprob":-0.10},{"token":"llo","logprob":-1e-7}]},
"finish_reason":"stop","stop_reason":7}],"usage":{"total_tokens":3}}"#,
        );
    }

    #[test]
    fn choices_that_take_turns_and_come_together() {
        check(
            Choices::Chat,
            &[
                r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
                r#"{"choices":[{"index":1,"delta":{"content":"x"}}]}"#,
                r#"{"choices":[{"index":1,"delta":{"content":"y"}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"content":"b"}},{"index":1,"delta":{"content":"z"}}]}"#,
                r#"{"choices":[{"index":1,"delta":{"content":"!"}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"content":"c"}}]}"#,
            ],
            r#"{"id":null,"object":"chat.completion","choices":[
{"index":0,"message":{"role":"assistant","content":"abc"},"logprobs":null,"finish_reason":null},
{"index":1,"message":{"role":"assistant","content":"xyz!"},"logprobs":null,"finish_reason":null}],"usage":{"total_tokens":3}}"#,
        );
    }

    #[test]
    fn tool_calls_by_index() {
        check(
            Choices::Chat,
            &[
                r#"{"id":"a","choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"c0","type":"function","function":{"name":"get","arguments":""}}]}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":1,"id":"c1","type":"function","function":{"name":"put","arguments":"{}"}},{"index":0,"id":"","function":{"arguments":"{\"a\":"}}]}}]}"#,
                r#"{"choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"1.0}"}}]},"finish_reason":"tool_calls"}]}"#,
            ],
            r#"{"id":"a","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":null,"tool_calls":[
{"id":"c0","type":"function","function":{"name":"get","arguments":"{\"a\":1.0}"}},
{"id":"c1","type":"function","function":{"name":"put","arguments":"{}"}}]},
"logprobs":null,"finish_reason":"tool_calls"}],"usage":{"total_tokens":3}}"#,
        );
    }

    #[test]
    fn several_choices_thoughts_and_refusals() {
        check(
            Choices::Chat,
            &[
                r#"{"id":"a","choices":[{"index":1,"delta":{"reasoning_content":"h"}},{"index":0,"delta":{"refusal":"N"}}]}"#,
                r#"{"choices":[{"index":1,"delta":{"reasoning_content":"m","content":"B"},"finish_reason":"stop"},{"index":0,"delta":{"refusal":"o"},"finish_reason":"length"}]}"#,
            ],
            r#"{"id":"a","object":"chat.completion","choices":[
{"index":0,"message":{"role":"assistant","content":"","refusal":"No"},"logprobs":null,"finish_reason":"length"},
{"index":1,"message":{"role":"assistant","content":"B","reasoning_content":"hm"},"logprobs":null,"finish_reason":"stop"}],
"usage":{"total_tokens":3}}"#,
        );
    }

    #[test]
    fn a_completion() {
        check(
            Choices::Completion,
            &[
                r#"{"id":"c","object":"text_completion","choices":[{"index":0,"text":"a","logprobs":{"tokens":["a"],"token_logprobs":[null]}}]}"#,
                r#"{"id":"c","choices":[{"index":0,"text":"b","logprobs":{"tokens":["b"],"token_logprobs":[-2.0]},"finish_reason":"length"}]}"#,
            ],
            r#"{"id":"c","object":"text_completion","choices":[{"index":0,"text":"ab",
"logprobs":{"tokens":["a","b"],"token_logprobs":[null,-2.0]},"finish_reason":"length"}],"usage":{"total_tokens":3}}"#,
        );
    }

    #[test]
    fn an_endless_answer_is_refused() {
        let mut aggregate = Aggregate::new(Choices::Chat);
        let event = format!(r#"{{"choices":[{{"index":0,"delta":{{"content":"{}"}}}}]}}"#, "x".repeat(200 << 10));
        let pushed = (0..=GATHERED_BYTES_MAX / event.len()).try_for_each(|_| aggregate.push(event.as_bytes()));
        assert_eq!(pushed, Err(AnswerTooLong));
    }
}
