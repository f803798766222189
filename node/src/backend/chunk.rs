//! The embedded engine's answers as OpenAI's stream events, the same as other servers send.
//! Invariant: one answer's events share one id, and the last has the usage.

use crate::openai::endpoint::Choices;
use serde_json::{Value, json};
use spillway_engine::{Finish, TokenInfo, Usage};
use std::time::SystemTime;

/// Writes the events of one answer.
#[derive(Debug)]
pub(super) struct Chunks {
    kind: Choices,
    id: String,
    created_s: u64,
    model: String,
    logprobs: bool,
    /// Where the next text begins in the answer, in bytes, for completions' `text_offset`.
    offset: usize,
}

impl Chunks {
    /// `prefix_bytes` is how much of the answer was delivered before.
    pub(super) fn new(kind: Choices, number: u64, model: &str, logprobs: bool, prefix_bytes: usize) -> Self {
        let created_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let name = match kind {
            Choices::Chat => "chatcmpl",
            Choices::Completion => "cmpl",
        };
        let id = format!("{name}-{created_s:x}{number:08x}");
        Self { kind, id, created_s, model: model.to_owned(), logprobs, offset: prefix_bytes }
    }

    fn event(&self, choices: Value, usage: Option<Value>) -> Vec<u8> {
        let object = match self.kind {
            Choices::Chat => "chat.completion.chunk",
            Choices::Completion => "text_completion",
        };
        let mut event = json!({
            "id": self.id,
            "object": object,
            "created": self.created_s,
            "model": self.model,
            "choices": choices,
        });
        if let Some(usage) = usage {
            event["usage"] = usage;
        }
        event.to_string().into_bytes()
    }

    /// What opens a chat's answer; completions have no such event.
    pub(super) fn begin(&self) -> Option<Vec<u8>> {
        match self.kind {
            Choices::Chat => Some(self.event(
                json!([{"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": null, "finish_reason": null}]),
                None,
            )),
            Choices::Completion => None,
        }
    }

    /// More of the answer.
    pub(super) fn text(&mut self, text: &str, tokens: &[TokenInfo]) -> Vec<u8> {
        let choice = match self.kind {
            Choices::Chat => {
                let logprobs =
                    self.logprobs.then(|| json!({"content": tokens.iter().map(chat_logprob).collect::<Vec<_>>()}));
                json!([{"index": 0, "delta": {"content": text}, "logprobs": logprobs, "finish_reason": null}])
            }
            Choices::Completion => {
                let logprobs = self.logprobs.then(|| self.completion_logprobs(tokens));
                json!([{"index": 0, "text": text, "logprobs": logprobs, "finish_reason": null}])
            }
        };
        self.offset += text.len();
        self.event(choice, None)
    }

    /// The end of the answer.
    pub(super) fn finish(&self, finish: Finish) -> Vec<u8> {
        let finish = finish_name(finish);
        self.event(
            match self.kind {
                Choices::Chat => json!([{"index": 0, "delta": {}, "logprobs": null, "finish_reason": finish}]),
                Choices::Completion => json!([{"index": 0, "text": "", "logprobs": null, "finish_reason": finish}]),
            },
            None,
        )
    }

    /// What the answer took. As other servers do, text of earlier places counts as prompt; `prefix_tokens` says how much.
    pub(super) fn usage(&self, usage: Usage) -> Vec<u8> {
        let prompt = usage.prompt_tokens + usage.prefix_tokens;
        let completion = usage.completion_tokens.saturating_sub(usage.prefix_tokens);
        let mut counts = json!({
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
        });
        if usage.prefix_tokens > 0 {
            counts["prefix_tokens"] = json!(usage.prefix_tokens);
        }
        self.event(json!([]), Some(counts))
    }

    fn completion_logprobs(&self, tokens: &[TokenInfo]) -> Value {
        let mut offset = self.offset;
        let offsets: Vec<_> = tokens
            .iter()
            .map(|token| {
                let at = offset;
                offset += token.bytes.len();
                at
            })
            .collect();
        let top = |token: &TokenInfo| {
            let entries = token.top.iter().map(|top| (text_of(&top.bytes), json!(top.logprob)));
            Value::Object(entries.collect())
        };
        json!({
            "tokens": tokens.iter().map(|token| text_of(&token.bytes)).collect::<Vec<_>>(),
            "token_logprobs": tokens.iter().map(|token| token.logprob).collect::<Vec<_>>(),
            "top_logprobs": tokens.iter().map(top).collect::<Vec<_>>(),
            "text_offset": offsets,
        })
    }
}

/// OpenAI's name for how an answer ended.
pub(super) const fn finish_name(finish: Finish) -> &'static str {
    match finish {
        Finish::Stop => "stop",
        Finish::Length => "length",
        Finish::Cancelled => "cancelled",
    }
}

fn chat_logprob(token: &TokenInfo) -> Value {
    let top: Vec<_> = token
        .top
        .iter()
        .map(|top| json!({"token": text_of(&top.bytes), "logprob": top.logprob, "bytes": top.bytes}))
        .collect();
    json!({"token": text_of(&token.bytes), "logprob": token.logprob, "bytes": token.bytes, "top_logprobs": top})
}

fn text_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::openai::measure::text_of_chunk;
    use spillway_engine::TopToken;

    fn token(bytes: &[u8]) -> TokenInfo {
        let top = vec![TopToken { id: 1, bytes: bytes.to_vec(), logprob: -0.5 }];
        TokenInfo { id: 1, bytes: bytes.to_vec(), logprob: Some(-0.5), top }
    }

    #[test]
    fn events_are_counted_as_their_text() {
        for kind in [Choices::Chat, Choices::Completion] {
            let mut chunks = Chunks::new(kind, 1, "m", true, 4);
            let text = chunks.text("Hé", &[token("H".as_bytes()), token("é".as_bytes())]);
            assert_eq!(text_of_chunk(kind, &text), "Hé".as_bytes());
            let more = chunks.text("!", &[token(b"!")]);
            let value: Value = serde_json::from_slice(&more).expect("JSON");
            match kind {
                Choices::Chat => {
                    assert_eq!(value["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["bytes"], json!([33]));
                }
                Choices::Completion => assert_eq!(value["choices"][0]["logprobs"]["text_offset"], json!([4 + 3])),
            }
            let usage = Usage { prompt_tokens: 5, completion_tokens: 9, prefix_tokens: 2 };
            for silent in [chunks.begin(), Some(chunks.finish(Finish::Length)), Some(chunks.usage(usage))] {
                assert_eq!(text_of_chunk(kind, &silent.unwrap_or_default()), b"");
            }
            let value: Value = serde_json::from_slice(&chunks.usage(usage)).expect("JSON");
            let counts = json!({"prompt_tokens": 7, "completion_tokens": 7, "total_tokens": 14, "prefix_tokens": 2});
            assert_eq!(value["usage"], counts);
        }
    }
}
