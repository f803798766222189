//! One event of a backend's stream, as far as this node reads it.
//! Invariant: reading never changes the event; a field of an unexpected type counts as absent.

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// Most choices that an event may number.
pub const INDEX_MAX: u32 = 127;

/// A stream's event.
#[derive(Debug, Default, Deserialize)]
pub struct Event<'a> {
    /// What it has for each choice it names; empty in usage events.
    #[serde(borrow, default, deserialize_with = "null_is_default")]
    pub choices: Vec<Choice<'a>>,
    /// Token counts, as the backend reports them.
    #[serde(borrow, default)]
    pub usage: Option<&'a RawValue>,
    /// A failure in mid-stream.
    #[serde(borrow, default)]
    pub error: Option<&'a RawValue>,
}

/// One choice's part of an event.
#[derive(Debug, Default, Deserialize)]
pub struct Choice<'a> {
    /// Which choice.
    #[serde(default)]
    pub index: u32,
    /// What is new of a chat message.
    #[serde(borrow, default, deserialize_with = "null_is_default")]
    pub delta: Delta<'a>,
    /// What is new of a completion.
    #[serde(borrow, default)]
    pub text: Option<&'a RawValue>,
    /// Why it ended, in the last event of a choice.
    #[serde(borrow, default)]
    pub finish_reason: Option<&'a RawValue>,
}

/// What is new of a chat message.
#[derive(Debug, Default, Deserialize)]
pub struct Delta<'a> {
    /// Who speaks; in the first event.
    #[serde(borrow, default)]
    pub role: Option<&'a RawValue>,
    /// The answer.
    #[serde(borrow, default)]
    pub content: Option<&'a RawValue>,
    /// The thoughts before the answer.
    #[serde(borrow, default)]
    pub reasoning_content: Option<&'a RawValue>,
    /// The same by its other name; servers that send both send the same text.
    #[serde(borrow, default)]
    pub reasoning: Option<&'a RawValue>,
    /// Why the model will not answer.
    #[serde(borrow, default)]
    pub refusal: Option<&'a RawValue>,
    /// Calls to the client's tools.
    #[serde(borrow, default)]
    pub tool_calls: Option<&'a RawValue>,
    /// The older form of the same.
    #[serde(borrow, default)]
    pub function_call: Option<&'a RawValue>,
}

impl<'a> Event<'a> {
    /// Reads an event; `None` if it is no JSON object, or its choices are no list of objects.
    #[must_use]
    pub fn parse(json: &'a [u8]) -> Option<Self> {
        let event: Self = serde_json::from_slice(json).ok()?;
        event.choices.iter().all(|choice| choice.index <= INDEX_MAX).then_some(event)
    }
}

impl Choice<'_> {
    /// Why the choice ended, if it did.
    #[must_use]
    pub fn finish(&self) -> Option<String> {
        self.finish_reason.and_then(|raw| serde_json::from_str(raw.get()).ok())
    }
}

/// The text in a field: a string, or a list of parts with `text` in them.
#[must_use]
pub fn text(raw: Option<&RawValue>) -> String {
    #[derive(Deserialize)]
    struct Part {
        #[serde(default)]
        text: String,
    }
    let Some(raw) = raw else { return String::new() };
    let json = raw.get();
    if json.starts_with('"') {
        return serde_json::from_str(json).unwrap_or_default();
    }
    let parts: Vec<&RawValue> = serde_json::from_str(json).unwrap_or_default();
    parts.iter().filter_map(|part| serde_json::from_str::<Part>(part.get()).ok()).map(|part| part.text).collect()
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}
