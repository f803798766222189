//! What conditions may ask about a request.
//! Invariant: bounded, whatever a client sends; prompts are no part of it.

use crate::gateway::keys::Caller;
use crate::openai::{Fields, endpoint};
use serde_json::{Map, Value};
use spillway_ledger::Digest;
use spillway_protocol::Kind;
use spillway_protocol::policy::Facts;

/// Most facts of each source.
const FACTS_MAX: usize = 64;
/// Longest text that is a fact, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// Whether a value can be compared: the parts of a prompt are arrays and objects.
fn is_plain(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => true,
        Value::String(text) => text.len() <= TEXT_BYTES_MAX,
        Value::Array(_) | Value::Object(_) => false,
    }
}

/// The facts of a request: `metadata.…` from its headers and its body, `params.…` from its body, `key.…` from its key's labels.
pub(super) fn facts(
    caller: &Caller,
    kind: Kind,
    body: &[u8],
    model: &str,
    session: Option<&str>,
    metadata: &Map<String, Value>,
) -> Facts {
    let mut facts = Facts::default();
    let fields = Fields::parse(body).unwrap_or_default();
    let of_body: Map<String, Value> = fields.read("metadata").unwrap_or_default();
    for (name, value) in of_body.iter().chain(metadata).filter(|(_, value)| is_plain(value)).take(FACTS_MAX) {
        facts.insert(format!("metadata.{name}"), value.clone());
    }
    for (name, value) in fields.iter().take(FACTS_MAX) {
        // What is long is a prompt, and a part of one is no parameter.
        let text = value.get();
        if text.len() <= TEXT_BYTES_MAX
            && !matches!(name, "prompt" | "input" | "query")
            && let Ok(value) = serde_json::from_str::<Value>(text)
            && is_plain(&value)
        {
            facts.insert(format!("params.{name}"), value);
        }
    }
    facts.insert("params.model".into(), model.into());
    facts.insert("url.pathname".into(), format!("/v1/{}", endpoint(kind).path).into());
    for (name, value) in &caller.terms().labels {
        facts.insert(format!("key.{name}"), value.clone().into());
    }
    let user = fields.read::<String>("user");
    let together = session.or(user.as_deref()).unwrap_or_default();
    let key = caller.id.to_string();
    let hash = Digest::of("spillway/sticky/1", &[key.as_bytes(), together.as_bytes()]);
    let first: [u8; 8] = hash.as_bytes()[..8].try_into().expect("a digest is longer");
    facts.sticky = Some(u64::from_le_bytes(first));
    facts
}
