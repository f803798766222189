//! A request as an upstream server gets it, and how it is told to go on behind text that was already delivered.
//! Invariants: the model is the one that the market agreed on, whatever the body says; beside that, `stream` and
//! `stream_options`, only what a continuation needs is touched.

use super::rejected;
use crate::openai::endpoint::{Answer, Choices, Encoding, endpoint};
use crate::openai::fields::{Fields, literal, raw};
use crate::openai::form::Form;
use crate::openai::request::{UNITS_PER_TOKEN, for_backend, with_stream};
use serde_json::value::RawValue;
use spillway_protocol::{BackendError, Kind};

/// Fields by which servers and proxies choose a model other than `model`: OpenRouter's `models`, `route`, `provider` and
/// `preset`, and the `fallbacks` of LiteLLM and Bifrost. The price was quoted for one model, and a key may be for one.
const CHOOSES_MODEL: [&str; 6] = ["model", "models", "route", "provider", "preset", "fallbacks"];

/// Whether a server might take a field for one that chooses the model. Servers in Go read fields by their names without
/// regard to case, with Unicode's simple folding.
fn chooses_model(name: &str) -> bool {
    let folded = || {
        name.chars().map(|letter| match letter {
            'ſ' => 's',
            '\u{212a}' => 'k',
            letter => letter.to_ascii_lowercase(),
        })
    };
    name != "model" && CHOOSES_MODEL.iter().any(|field| field.chars().eq(folded()))
}

/// The body to send for `model`, and what it is. With `in_one`, chunks with choices are asked for in one piece.
pub(super) fn for_upstream(
    kind: Kind,
    model: &str,
    body: &[u8],
    prefix: &[u8],
    in_one: bool,
) -> Result<(Vec<u8>, String), BackendError> {
    let row = endpoint(kind);
    if !prefix.is_empty() && !matches!(row.answer, Answer::Choices(_)) {
        return Err(BackendError::Failed("an answer that is no plain text cannot be gone on with".into()));
    }
    if row.encoding == Encoding::Multipart {
        let mut form = Form::parse(body).map_err(|error| rejected("body", &error.to_string()))?;
        form.remove_where(chooses_model);
        form.set("model", model);
        let body = form.to_bytes();
        let content_type = crate::openai::form::content_type(&body).expect("it was just written");
        return Ok((body, content_type));
    }
    let body = match row.answer {
        Answer::Choices(choices) => for_choices(choices, model, body, prefix, in_one)?,
        Answer::Events(_) | Answer::Whole(_) => {
            let mut fields = Fields::parse(body).map_err(|error| rejected("body", &error.to_string()))?;
            let mut touched = fields.remove_where(chooses_model);
            if fields.read::<String>("model").as_deref() != Some(model) {
                fields.set("model", raw(model));
                touched = true;
            }
            if matches!(row.answer, Answer::Events(_)) && fields.get("stream") != Some("true") {
                fields.set("stream", literal("true"));
                touched = true;
            }
            if touched { fields.to_bytes() } else { body.to_vec() }
        }
    };
    Ok((body, "application/json".into()))
}

/// The body of a chat or a completion. With a `prefix`, a chat gets it as the begun answer, in the form that vLLM, SGLang and llama.cpp
/// understand (`continue_final_message`); a completion gets it behind its prompt.
fn for_choices(
    choices: Choices,
    model: &str,
    body: &[u8],
    prefix: &[u8],
    in_one: bool,
) -> Result<Vec<u8>, BackendError> {
    let mut fields = Fields::parse(body).map_err(|error| rejected("body", &error.to_string()))?;
    let mut touched = fields.remove_where(chooses_model);
    if fields.read::<String>("model").as_deref() != Some(model) {
        fields.set("model", raw(model));
        touched = true;
    }
    if in_one && prefix.is_empty() {
        touched |= fields.remove("stream");
        touched |= fields.remove("stream_options");
        return Ok(if touched { fields.to_bytes() } else { body.to_vec() });
    }
    if prefix.is_empty() {
        return Ok(if touched { with_stream(fields).to_bytes() } else { for_backend(body, fields) });
    }
    let prefix =
        std::str::from_utf8(prefix).map_err(|_| BackendError::Failed("the delivered text is not UTF-8".into()))?;
    match choices {
        Choices::Chat => {
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
        Choices::Completion => {
            let prompt: String = fields.read("prompt").ok_or_else(|| rejected("prompt", "not a string"))?;
            fields.set("prompt", raw(&(prompt + prefix)));
        }
    }
    for name in ["max_completion_tokens", "max_tokens"] {
        if let Some(limit) = fields.read::<u64>(name) {
            // Rather too high than too low a limit; the market's own holds beside it.
            let left = limit.saturating_sub(prefix.len() as u64 / UNITS_PER_TOKEN).max(1);
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
                format!(r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}}],"max_tokens":10,{stream}}}"#),
                "twelve bytes",
                Ok(format!(
                    r#"{{"model":"m","messages":[{{"role":"user","content":"hi"}},{{"role":"assistant","content":"twelve bytes"}}],"max_tokens":7,{stream},"continue_final_message":true,"add_generation_prompt":false}}"#
                )),
            ),
            (
                Kind::Completion,
                r#"{"model":"m","prompt":"On\"ce","max_tokens":1,"x":null}"#.into(),
                " upon a time",
                Ok(format!(r#"{{"model":"m","prompt":"On\"ce upon a time","max_tokens":1,"x":null,{stream}}}"#)),
            ),
            (Kind::Completion, r#"{"prompt":[1]}"#.into(), "x", Err(400)),
            (Kind::Chat, r#"{"messages":1}"#.into(), "x", Err(400)),
            (Kind::Chat, "[]".into(), "", Err(400)),
            (Kind::Chat, r#"{"a":1,"a":2}"#.into(), "", Err(400)),
        ];
        for (kind, body, prefix, want) in cases {
            let got = for_upstream(kind, "m", body.as_bytes(), prefix.as_bytes(), false);
            let got = got.map(|(bytes, _)| String::from_utf8(bytes).expect("JSON")).map_err(|error| match error {
                BackendError::Rejected { status, .. } => status,
                BackendError::Busy { .. } | BackendError::Answered { .. } | BackendError::Failed(_) => 0,
            });
            assert_eq!(got, want, "{body} behind {prefix:?}");
        }
    }

    #[test]
    fn the_model_is_the_one_that_was_agreed_on() {
        let stream = r#""stream":true,"stream_options":{"include_usage":true}"#;
        // What a consumer sent, and what the server gets.
        let cases = [
            (r#""model":"dear","prompt":"a","top_p":1.0"#, r#""model":"cheap","prompt":"a","top_p":1.0"#),
            (r#""model":["dear"],"prompt":"a""#, r#""model":"cheap","prompt":"a""#),
            (r#""model":"cheap","Model":"dear","MODEL":"dear","prompt":"a""#, r#""model":"cheap","prompt":"a""#),
            (r#""model":"cheap","models":["dear"],"prompt":"a""#, r#""model":"cheap","prompt":"a""#),
            (
                r#""model":"cheap","prompt":"a","fallbac\u212as":["dear"],"preſet":"dear","route":"x","provider":{}"#,
                r#""model":"cheap","prompt":"a""#,
            ),
            (r#""model": "ch\u0065ap", "prompt": "a""#, r#""model": "ch\u0065ap", "prompt": "a""#),
        ];
        for (sent, got) in cases {
            let separator = if sent.contains(": ") { ", " } else { "," };
            let sent = format!("{{{sent}{separator}{stream}}}");
            let (body, _) = for_upstream(Kind::Completion, "cheap", sent.as_bytes(), b"", false).expect(&sent);
            assert_eq!(String::from_utf8_lossy(&body), format!("{{{got}{separator}{stream}}}"), "{sent}");
        }
        let sent = format!(r#"{{"prompt":"a",{stream}}}"#);
        let (named, _) = for_upstream(Kind::Completion, "cheap", sent.as_bytes(), b"", false).expect(&sent);
        assert_eq!(String::from_utf8_lossy(&named), format!(r#"{{"prompt":"a",{stream},"model":"cheap"}}"#));
        let sent = r#"{"model":"dear","prompt":"a"}"#;
        let (behind, _) = for_upstream(Kind::Completion, "cheap", sent.as_bytes(), b"b", false).expect(sent);
        assert_eq!(String::from_utf8_lossy(&behind), format!(r#"{{"model":"cheap","prompt":"ab",{stream}}}"#));
    }

    #[test]
    fn other_endpoints_get_the_clients_bytes_and_the_agreed_model() {
        let cases = [
            (Kind::Embedding, r#"{"model":"m","input" : ["a"],"x":1.0}"#, r#"{"model":"m","input" : ["a"],"x":1.0}"#),
            (Kind::Embedding, r#"{"model":"dear","input" : "a"}"#, r#"{"model":"m","input":"a"}"#),
            (Kind::Rerank, r#"{"MODEL":"dear","model":"m","query":"a"}"#, r#"{"model":"m","query":"a"}"#),
            (
                Kind::Response,
                r#"{"model":"m", "input":"a","stream":false}"#,
                r#"{"model":"m","input":"a","stream":true}"#,
            ),
            (Kind::Message, r#"{"model":"m", "stream":true}"#, r#"{"model":"m", "stream":true}"#),
        ];
        for (kind, sent, want) in cases {
            let (body, content_type) = for_upstream(kind, "m", sent.as_bytes(), b"", false).expect(sent);
            assert_eq!((String::from_utf8_lossy(&body).as_ref(), &*content_type), (want, "application/json"));
            assert!(for_upstream(kind, "m", sent.as_bytes(), b"so far", false).is_err());
        }
        let part = |name: &str, value: &str| {
            format!("--x\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n")
        };
        let sent = [
            part("Model", "dear"),
            part("model", "dear"),
            part("model", "dearer"),
            part("language", "de"),
            "--x--".into(),
        ]
        .concat();
        let (body, content_type) = for_upstream(Kind::Transcription, "m", sent.as_bytes(), b"", false).expect("a form");
        let form = Form::parse(&body).expect("a form");
        assert_eq!(
            (form.text("model"), form.text("Model"), form.text("language")),
            (Ok(Some("m")), Ok(None), Ok(Some("de")))
        );
        assert!(content_type.starts_with("multipart/form-data; boundary="), "{content_type}");
    }
}
