//! One line of the audit log, and what chains it to the line before.
//! Invariant: a line's hash covers every byte of it that comes before the hash, the hash of the line before among them; so no
//! line can be changed, taken out, put in or moved without the lines behind it telling.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use spillway_ledger::Digest;

/// Separates these hashes from every other use of blake3 here.
const DOMAIN: &str = "spillway/audit/1";
/// What stands between a line's fields and its hash.
const BEFORE_HASH: &str = ",\"hash\":\"";
/// The end of a line: what is before the hash, the hash, a quote and a bracket.
const TAIL_BYTES: usize = BEFORE_HASH.len() + 64 + 2;
/// Longest value of `before` or `after` that is written as it is, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 << 10;
/// Longest text of a client's that is written, in bytes.
pub const TEXT_BYTES_MAX: usize = 256;

/// Who did it, as far as the node can tell.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Who {
    /// What was shown: `admin` is the admin token, `node` the node itself.
    pub with: String,
    /// The address it came from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// What the program called itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<String>,
}

impl Who {
    /// The node itself.
    #[must_use]
    pub fn node() -> Self {
        Self { with: "node".into(), from: None, agent: None }
    }
}

/// What was done, or tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deed {
    /// Who.
    pub who: Who,
    /// Such as `key.create`.
    pub action: &'static str,
    /// To what, such as `key 9a3b5c7d`, as far as it is known before.
    pub what: String,
}

/// A line of the log.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditRecord {
    /// Counts the lines, from 1.
    pub seq: u64,
    /// When, in Unix milliseconds.
    pub time_ms: u64,
    /// Who.
    pub who: Who,
    /// What was done.
    pub action: String,
    /// To what.
    pub what: String,
    /// `done`; `refused: ` and the error's code; or `unknown`, where the node stopped in the middle of it.
    pub result: String,
    /// What it changed, as it was: `null` where there was nothing.
    pub before: Value,
    /// The same, as it is now.
    pub after: Value,
    /// The hash of the line before; 64 zeros in the first.
    pub prev: Digest,
    /// The hash of this line.
    #[serde(skip_serializing, default = "no_hash")]
    pub hash: Digest,
}

const fn no_hash() -> Digest {
    Digest::ZERO
}

/// Why a line is none of this chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// It is no record.
    #[error("is no record of the audit log")]
    NoRecord,
    /// Its hash is not that of its bytes.
    #[error("was changed: its hash is not that of its bytes")]
    Changed,
    /// It does not follow the line before.
    #[error("does not follow the line before it: a line was taken out, put in or moved")]
    Unchained,
}

impl AuditRecord {
    /// The line, without its end, and with its hash set.
    pub(super) fn seal(&mut self) -> String {
        let mut line = serde_json::to_string(self).expect("text, numbers and JSON are JSON");
        line.pop();
        self.hash = Digest::of(DOMAIN, &[line.as_bytes()]);
        line.push_str(BEFORE_HASH);
        line.push_str(&self.hash.to_string());
        line.push_str("\"}");
        line
    }

    /// Reads a line that follows one with the number `seq` and the hash `prev`.
    ///
    /// # Errors
    /// In the order of [`LineError`].
    pub fn read(line: &str, seq: u64, prev: Digest) -> Result<Self, LineError> {
        let at =
            line.len().checked_sub(TAIL_BYTES).filter(|at| line.is_char_boundary(*at)).ok_or(LineError::NoRecord)?;
        let (body, tail) = line.split_at(at);
        let hash = tail.strip_prefix(BEFORE_HASH).and_then(|rest| rest.strip_suffix("\"}"));
        let hash: Digest = hash.and_then(|hash| hash.parse().ok()).ok_or(LineError::NoRecord)?;
        if Digest::of(DOMAIN, &[body.as_bytes()]) != hash {
            return Err(LineError::Changed);
        }
        let record: Self = serde_json::from_str(line).map_err(|_| LineError::NoRecord)?;
        if record.seq != seq + 1 || record.prev != prev {
            return Err(LineError::Unchained);
        }
        Ok(record)
    }
}

/// A value as it is written: one that is too long is left out, and says so.
#[must_use]
pub(super) fn bounded(value: Value) -> Value {
    let length = value.to_string().len();
    if length <= VALUE_BYTES_MAX { value } else { json!({"omitted_bytes": length}) }
}

/// A client's text as it is written.
#[must_use]
pub(super) fn cut(text: &str) -> String {
    let end = (0..=TEXT_BYTES_MAX.min(text.len())).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    text[..end].to_owned()
}

/// The fields of two objects that differ; what is no object is told as it is.
#[must_use]
pub fn changes(before: &Value, after: &Value) -> (Value, Value) {
    let (Value::Object(old), Value::Object(new)) = (before, after) else { return (before.clone(), after.clone()) };
    let differs = |name: &&String| old.get(*name) != new.get(*name);
    let only = |fields: &serde_json::Map<String, Value>| {
        fields.iter().filter(|(name, _)| differs(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
    };
    (Value::Object(only(old)), Value::Object(only(new)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_changed_is_told() {
        let (before, after) = changes(&json!({"a": 1, "b": 2, "c": 3}), &json!({"a": 1, "b": 4, "d": null}));
        assert_eq!((before, after), (json!({"b": 2, "c": 3}), json!({"b": 4, "d": null})));
        assert_eq!(changes(&Value::Null, &json!({"a": 1})), (Value::Null, json!({"a": 1})));
    }

    #[test]
    fn what_is_too_long_is_left_out() {
        let long = json!("x".repeat(VALUE_BYTES_MAX));
        assert_eq!(bounded(long), json!({"omitted_bytes": VALUE_BYTES_MAX + 2}));
        assert_eq!(cut(&"é".repeat(200)).len(), TEXT_BYTES_MAX);
    }
}
