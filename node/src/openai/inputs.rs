//! The checks of requests that are neither chats nor completions: what the gateway depends on, and what every server wants.
//! Invariant: a field that is not named here is not looked at.

use super::fields::Fields;
use super::form::Form;
use super::request::{BadRequest, TOKENS_DEFAULT, UNITS_PER_TOKEN_MAX, integer, typed};
use serde_json::value::RawValue;
use spillway_protocol::Kind;
use spillway_protocol::job::OUTPUT_UNITS_MAX;

/// Most texts of one request; OpenAI's limit for embeddings.
const INPUTS_MAX: usize = 2048;
/// Most images of one request; OpenAI's limit.
const IMAGES_MAX: u64 = 10;
/// Work units reserved for each image: 4 MiB.
const IMAGE_UNITS_MAX: u64 = 1 << 16;

/// Checks a JSON request; the most output it can come to, in work units.
pub(super) fn check(kind: Kind, fields: &Fields<'_>) -> Result<u64, BadRequest> {
    match kind {
        Kind::Embedding => {
            texts(fields, "input", INPUTS_MAX)?;
            integer(fields, "dimensions", 1, 1 << 16)?;
            typed::<String>(fields, "encoding_format", "a string")?;
            Ok(1)
        }
        Kind::Moderation => list_or_text(fields, "input").map(|()| 1),
        Kind::Rerank => {
            text(fields, "query")?;
            list(fields, "documents", INPUTS_MAX)?;
            integer(fields, "top_n", 1, u64::MAX)?;
            Ok(1)
        }
        Kind::Speech => text(fields, "input").map(|()| 1),
        Kind::Image => {
            text(fields, "prompt")?;
            let images = integer(fields, "n", 1, IMAGES_MAX)?.unwrap_or(1);
            Ok(images.saturating_mul(IMAGE_UNITS_MAX).min(OUTPUT_UNITS_MAX))
        }
        Kind::Response => {
            if fields.get("prompt").is_none() {
                list_or_text(fields, "input")?;
            }
            // OpenAI's least is 16.
            let tokens = integer(fields, "max_output_tokens", 1, u64::MAX)?.unwrap_or(TOKENS_DEFAULT);
            Ok(tokens.saturating_mul(UNITS_PER_TOKEN_MAX))
        }
        Kind::Message => {
            list(fields, "messages", usize::MAX)?;
            let tokens = integer(fields, "max_tokens", 1, u64::MAX)?;
            let tokens = tokens.ok_or_else(|| BadRequest::new("max_tokens", "missing"))?;
            Ok(tokens.saturating_mul(UNITS_PER_TOKEN_MAX))
        }
        Kind::Chat | Kind::Completion | Kind::Transcription => Ok(OUTPUT_UNITS_MAX),
    }
}

/// Checks a form; the most output it can come to, in work units.
pub(super) fn check_form(kind: Kind, form: &Form) -> Result<u64, BadRequest> {
    match kind {
        Kind::Transcription if !form.has_file("file") => Err(BadRequest::new("file", "missing, or not a file")),
        _ => Ok(1),
    }
}

fn text(fields: &Fields<'_>, name: &str) -> Result<(), BadRequest> {
    match typed::<String>(fields, name, "a string")? {
        None => Err(BadRequest::new(name, "missing")),
        Some(text) if text.is_empty() => Err(BadRequest::new(name, "empty")),
        Some(_) => Ok(()),
    }
}

fn list(fields: &Fields<'_>, name: &str, max: usize) -> Result<(), BadRequest> {
    match typed::<Vec<&RawValue>>(fields, name, "an array")? {
        None => Err(BadRequest::new(name, "missing")),
        Some(list) if list.is_empty() => Err(BadRequest::new(name, "empty")),
        Some(list) if list.len() > max => Err(BadRequest::new(name, format!("more than {max}"))),
        Some(_) => Ok(()),
    }
}

fn list_or_text(fields: &Fields<'_>, name: &str) -> Result<(), BadRequest> {
    match fields.get(name) {
        None => Err(BadRequest::new(name, "missing")),
        Some(value) if value.starts_with('[') => list(fields, name, usize::MAX),
        Some(value) if value.starts_with('"') => Ok(()),
        Some(_) => Err(BadRequest::new(name, "neither a string nor an array")),
    }
}

/// A text, tokens, or a list of either.
fn texts(fields: &Fields<'_>, name: &str, max: usize) -> Result<(), BadRequest> {
    list_or_text(fields, name)?;
    let json = fields.get(name).unwrap_or_default();
    if json.starts_with('"') || serde_json::from_str::<Vec<u64>>(json).is_ok() {
        return Ok(());
    }
    let count = match (serde_json::from_str::<Vec<String>>(json), serde_json::from_str::<Vec<Vec<u64>>>(json)) {
        (Ok(texts), _) => texts.len(),
        (_, Ok(tokens)) => tokens.len(),
        (Err(_), Err(_)) => return Err(BadRequest::new(name, "neither a string nor an array of strings or of tokens")),
    };
    if count > max { Err(BadRequest::new(name, format!("more than {max}"))) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::super::Request;
    use super::*;

    #[test]
    fn bad_fields_are_named() {
        let many = format!(r#"{{"model":"m","input":[{}"a"]}}"#, r#""a","#.repeat(INPUTS_MAX));
        let cases = [
            (Kind::Embedding, r#"{"model":"m"}"#, "input"),
            (Kind::Embedding, r#"{"input":"a"}"#, "model"),
            (Kind::Embedding, r#"{"model":"m","input":[]}"#, "input"),
            (Kind::Embedding, r#"{"model":"m","input":{}}"#, "input"),
            (Kind::Embedding, r#"{"model":"m","input":["a",1]}"#, "input"),
            (Kind::Embedding, &many, "input"),
            (Kind::Embedding, r#"{"model":"m","input":"a","dimensions":0}"#, "dimensions"),
            (Kind::Embedding, r#"{"model":"m","input":"a","encoding_format":1}"#, "encoding_format"),
            (Kind::Embedding, r#"{"model":"m","input":"a","provider":{"sort":1}}"#, "provider.sort"),
            (Kind::Rerank, r#"{"model":"m","documents":["a"]}"#, "query"),
            (Kind::Rerank, r#"{"model":"m","query":"a","documents":[]}"#, "documents"),
            (Kind::Rerank, r#"{"model":"m","query":"a","documents":["a"],"top_n":0}"#, "top_n"),
            (Kind::Image, r#"{"model":"m","prompt":""}"#, "prompt"),
            (Kind::Image, r#"{"model":"m","prompt":"a","n":11}"#, "n"),
            (Kind::Speech, r#"{"model":"m","input":["a"]}"#, "input"),
            (Kind::Moderation, r#"{"model":"m","input":5}"#, "input"),
            (Kind::Response, r#"{"model":"m"}"#, "input"),
            (Kind::Response, r#"{"model":"m","input":"a","max_output_tokens":-1}"#, "max_output_tokens"),
            (Kind::Message, r#"{"model":"m","messages":[1]}"#, "max_tokens"),
            (Kind::Message, r#"{"model":"m","max_tokens":1}"#, "messages"),
            (Kind::Message, r#"{"model":"m","max_tokens":1,"messages":[1],"stream":1}"#, "stream"),
        ];
        for (kind, json, field) in cases {
            let error = Request::parse(kind, json.as_bytes()).expect_err(json);
            assert_eq!(error.field.as_deref(), Some(field), "{json}: {error}");
        }
    }

    #[test]
    fn the_backend_gets_the_clients_bytes() {
        let cases = [
            (Kind::Embedding, r#"{"model":"m","input":[1,2],"x":{"deep":1e400},"dimensions":8}"#, 1),
            (Kind::Image, r#"{"model":"m","prompt":"a","n":2,"size":"1x1"}"#, 2 * IMAGE_UNITS_MAX),
            (Kind::Rerank, r#"{"model":"m","query":"q","documents":[{"text":"a"}],"top_n":1.0e0}"#, 1),
            (Kind::Message, r#"{"messages":[{"role":"user"}],"model":"m","max_tokens":3,"stream":true}"#, 24),
        ];
        for (kind, json, output_max) in cases {
            let json = json.replace("1.0e0", "1");
            let request = Request::parse(kind, json.as_bytes()).expect(&json);
            let mut sent = Fields::parse(json.as_bytes()).expect("an object");
            sent.put_first(&["messages", "prompt"]);
            assert_eq!(request.body, sent.to_bytes(), "{json}");
            assert_eq!((request.output_max, request.continuable), (output_max, false), "{json}");
        }
        let sent = r#"{"model":"m","input":"a","provider":{"sort":"price"},"models":["n"],"y":1.50}"#;
        let request = Request::parse(Kind::Embedding, sent.as_bytes()).expect(sent);
        assert_eq!(request.body, br#"{"model":"m","input":"a","y":1.50}"#);
        assert_eq!(request.models.len(), 2);
    }

    #[test]
    fn forms_have_a_model_and_a_file() {
        let form = |parts: &[(&str, &str)]| {
            let part = |(name, value): &(&str, &str)| {
                format!("--x\r\nContent-Disposition: form-data; name={name}\r\n\r\n{value}\r\n")
            };
            format!("{}--x--\r\n", parts.iter().map(part).collect::<String>())
        };
        let file = ("\"file\"; filename=\"a.wav\"", "RIFF");
        let request = Request::parse(Kind::Transcription, form(&[("model", "m"), file, ("stream", "true")]).as_bytes());
        let request = request.expect("a form");
        assert_eq!((request.model(), request.stream, request.output_max), ("m", true, 1));
        for (body, field) in [
            (form(&[file]), Some("model")),
            (form(&[("model", "m"), ("model", "n"), file]), Some("model")),
            (form(&[("model", "m")]), Some("file")),
            (form(&[("model", "m"), ("file", "RIFF")]), Some("file")),
            (form(&[("model", "m"), file, ("stream", "maybe")]), Some("stream")),
            ("{}".into(), None),
        ] {
            let error = Request::parse(Kind::Transcription, body.as_bytes()).expect_err(&body);
            assert_eq!(error.field.as_deref(), field, "{body}: {error}");
        }
    }
}
