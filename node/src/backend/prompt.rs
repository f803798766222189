//! A request as an upstream server gets it, and how it is told to go on behind text that was already delivered.
//! Invariant: beside `stream` and `stream_options`, only what a continuation needs is touched.

use super::rejected;
use crate::openai::fields::{Fields, literal, raw};
use crate::openai::request::{for_backend, with_stream};
use serde_json::value::RawValue;
use spillway_protocol::{BackendError, Kind};

/// Bytes of text that a token is taken for when a continuation's limit is worked out; near the truth for English, and low
/// enough that the limit is rather too high than too low for others. The market's own limit holds beside it.
const BYTES_PER_TOKEN: u64 = 4;

/// The body to send. With a `prefix`, a chat gets it as the begun answer, in the form that vLLM, SGLang and llama.cpp
/// understand (`continue_final_message`); a completion gets it behind its prompt.
pub(super) fn for_upstream(kind: Kind, body: &[u8], prefix: &[u8]) -> Result<Vec<u8>, BackendError> {
    let mut fields = Fields::parse(body).map_err(|error| rejected("body", &error.to_string()))?;
    if prefix.is_empty() {
        return Ok(for_backend(body, fields));
    }
    let prefix =
        std::str::from_utf8(prefix).map_err(|_| BackendError::Failed("the delivered text is not UTF-8".into()))?;
    match kind {
        Kind::Chat => {
            let mut messages: Vec<Box<RawValue>> =
                fields.read("messages").ok_or_else(|| rejected("messages", "not an array"))?;
            let mut begun = Fields::default();
            begun.set("role", raw("assistant"));
            begun.set("content", raw(prefix));
            messages.push(begun.to_raw());
            fields.set("messages", raw(&messages));
            fields.set("continue_final_message", literal("true"));
            fields.set("add_generation_prompt", literal("false"));
        }
        Kind::Completion => {
            let prompt: String = fields.read("prompt").ok_or_else(|| rejected("prompt", "not a string"))?;
            fields.set("prompt", raw(&(prompt + prefix)));
        }
    }
    for name in ["max_completion_tokens", "max_tokens"] {
        if let Some(limit) = fields.read::<u64>(name) {
            let left = limit.saturating_sub(prefix.len() as u64 / BYTES_PER_TOKEN).max(1);
            fields.set(name, raw(&left));
        }
    }
    Ok(with_stream(fields).to_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_made_for_upstreams() {
        let stream = r#""stream":true,"stream_options":{"include_usage":true}"#;
        let chat = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"top_k":1.0,"tools":[{"x":1e3}]"#;
        let cases = [
            (Kind::Chat, format!("{chat}}}"), "", Ok(format!("{chat},{stream}}}"))),
            (Kind::Chat, format!("{chat},  {stream}}}"), "", Ok(format!("{chat},  {stream}}}"))),
            (
                Kind::Chat,
                format!(r#"{{"messages":[{{"role":"user","content":"hi"}}],"max_tokens":10,{stream}}}"#),
                "twelve bytes",
                Ok(format!(
                    r#"{{"messages":[{{"role":"user","content":"hi"}},{{"role":"assistant","content":"twelve bytes"}}],"max_tokens":7,{stream},"continue_final_message":true,"add_generation_prompt":false}}"#
                )),
            ),
            (
                Kind::Completion,
                r#"{"prompt":"On\"ce","max_tokens":1,"x":null}"#.into(),
                " upon a time",
                Ok(format!(r#"{{"prompt":"On\"ce upon a time","max_tokens":1,"x":null,{stream}}}"#)),
            ),
            (Kind::Completion, r#"{"prompt":[1]}"#.into(), "x", Err(400)),
            (Kind::Chat, r#"{"messages":1}"#.into(), "x", Err(400)),
            (Kind::Chat, "[]".into(), "", Err(400)),
            (Kind::Chat, r#"{"a":1,"a":2}"#.into(), "", Err(400)),
        ];
        for (kind, body, prefix, want) in cases {
            let got = for_upstream(kind, body.as_bytes(), prefix.as_bytes());
            let got = got.map(|bytes| String::from_utf8(bytes).expect("JSON")).map_err(|error| match error {
                BackendError::Rejected { status, .. } => status,
                BackendError::Busy | BackendError::Failed(_) => 0,
            });
            assert_eq!(got, want, "{body} behind {prefix:?}");
        }
    }
}
