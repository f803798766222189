//! What an OpenAI-compatible server says it has: its `/models`.
//! Invariant: the list is bounded, and a name that a request could not carry is left out.

use serde::Deserialize;
use serde_json::value::RawValue;
use spillway_ledger::{Digest, Price};
use spillway_protocol::job::MODEL_BYTES_MAX;
use spillway_protocol::{Capacity, Kind};
use std::time::Duration;

/// Most models of one server.
pub(super) const MODELS_MAX: usize = 256;
/// Longest answer, in bytes.
pub(super) const ANSWER_BYTES_MAX: usize = 4 << 20;
/// What calls itself so in its list has chats go on behind the last message. vLLM and SGLang do by `continue_final_message`,
/// llama.cpp's own server by that or by itself; others begin a new answer, which nobody could tell from the rest of the old one.
const CONTINUES: [&str; 3] = ["vllm", "sglang", "llamacpp"];
/// How long a check may take.
pub(super) const CHECK_WAIT: Duration = Duration::from_secs(2);
/// How soon one that does not is asked again; doubles up to how often one that does is.
pub(super) const RETRY_AFTER_MIN: Duration = Duration::from_millis(250);

#[derive(Deserialize)]
struct List<'a> {
    #[serde(borrow)]
    data: Vec<&'a RawValue>,
}

#[derive(Deserialize)]
struct Model {
    id: String,
    #[serde(default)]
    owned_by: Option<String>,
    /// vLLM and SGLang.
    #[serde(default)]
    max_model_len: Option<u32>,
    /// llama.cpp.
    #[serde(default)]
    meta: Option<Meta>,
}

#[derive(Deserialize)]
struct Meta {
    #[serde(default)]
    n_ctx: Option<u32>,
    #[serde(default)]
    n_ctx_train: Option<u32>,
}

/// What the server's answer offers; `None` if it is no list of models.
#[must_use]
pub(super) fn discovered(json: &[u8], slots: u32) -> Option<Vec<Capacity>> {
    let list: List<'_> = serde_json::from_slice(json).ok()?;
    let mut capacities: Vec<_> = list
        .data
        .iter()
        .filter_map(|raw| serde_json::from_str::<Model>(raw.get()).ok())
        .filter(|model| {
            !model.id.is_empty() && model.id.len() <= MODEL_BYTES_MAX && !model.id.chars().any(char::is_control)
        })
        .take(MODELS_MAX)
        .map(|model| {
            let of_meta = model.meta.and_then(|meta| meta.n_ctx.or(meta.n_ctx_train));
            let context_max = model.max_model_len.or(of_meta).unwrap_or(0);
            let engine = model.owned_by.filter(|by| !by.is_empty() && by.len() <= 32 && by.is_ascii());
            capacity(model.id, engine.unwrap_or_else(|| "openai".into()), context_max, slots)
        })
        .collect();
    capacities.sort_by(|a, b| a.model.cmp(&b.model));
    capacities.dedup_by(|a, b| a.model == b.model);
    Some(capacities)
}

/// What the operator says the server has.
#[must_use]
pub(super) fn configured(models: &[String], slots: u32) -> Vec<Capacity> {
    models.iter().map(|model| capacity(model.clone(), "openai".into(), 0, slots)).collect()
}

fn capacity(model: String, engine: String, context_max: u32, slots: u32) -> Capacity {
    Capacity {
        model,
        weights: Digest::ZERO,
        quantization: String::new(),
        continues: CONTINUES.contains(&&*engine),
        engine,
        context_max,
        kinds: vec![Kind::Chat, Kind::Completion],
        slots,
        rented: 0,
        replicas: 1,
        token_price: Price::ZERO,
        healthy: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_of_common_servers_are_read() {
        let long = format!(r#"{{"data":[{{"id":"{}"}}]}}"#, "x".repeat(MODEL_BYTES_MAX + 1));
        let many = format!(
            r#"{{"data":[{}]}}"#,
            (0..MODELS_MAX + 9).map(|i| format!(r#"{{"id":"m{i}"}}"#)).collect::<Vec<_>>().join(",")
        );
        type Found = Option<&'static [(&'static str, &'static str, u32)]>;
        let cases: [(&str, Found); 9] = [
            (
                r#"{"object":"list","data":[{"id":"q","object":"model","owned_by":"vllm","max_model_len":4096}]}"#,
                Some(&[("q", "vllm", 4096)]),
            ),
            (
                r#"{"models":[{}],"data":[{"id":"g","owned_by":"llamacpp","meta":{"n_ctx_train":2048,"size":1}}]}"#,
                Some(&[("g", "llamacpp", 2048)]),
            ),
            (r#"{"data":[{"id":"b"},{"id":"a"},{"id":"b"}]}"#, Some(&[("a", "openai", 0), ("b", "openai", 0)])),
            (r#"{"data":[{"id":""},{"id":"a\nb"},{"no":1},7]}"#, Some(&[])),
            (&long, Some(&[])),
            (r#"{"data":[]}"#, Some(&[])),
            (r#"{"data":null}"#, None),
            (r#"[]"#, None),
            ("<html>", None),
        ];
        for (json, want) in cases {
            let got = discovered(json.as_bytes(), 3);
            let got: Option<Vec<_>> =
                got.as_ref().map(|list| list.iter().map(|c| (&*c.model, &*c.engine, c.context_max)).collect());
            assert_eq!(got.as_deref(), want, "{json}");
        }
        for (by, want) in
            [("vllm", true), ("sglang", true), ("llamacpp", true), ("me", false), ("library", false), ("openai", false)]
        {
            let json = format!(r#"{{"data":[{{"id":"m","owned_by":"{by}"}}]}}"#);
            assert_eq!(discovered(json.as_bytes(), 1).expect("a list")[0].continues, want, "{by}");
        }
        assert!(!configured(&["m".into()], 1)[0].continues);
        assert_eq!(discovered(many.as_bytes(), 1).expect("a list").len(), MODELS_MAX);
    }
}
