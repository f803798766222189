//! A stream's events differ in little but their text: the shape of the last one tells the text of the next without reading it anew.
//! Invariant: an event that fits has, but for the string in its place, the very bytes of one that was read in full, and so the same
//! meaning.

use super::endpoint::Choices;
use super::event::Event;
use super::fields::Fields;
use serde_json::value::RawValue;
use std::borrow::Cow;

/// How often a stream's shape is looked for; one whose events all differ is read event by event.
const TRIES_MAX: u32 = 16;

/// What the events of one stream have in common, once it is known.
#[derive(Debug)]
pub struct Template {
    choices: Choices,
    tries: u32,
    /// The bytes before and behind the text's string.
    shape: Option<(Vec<u8>, Vec<u8>)>,
}

impl Template {
    /// For a stream whose shape is not known yet.
    #[must_use]
    pub const fn new(choices: Choices) -> Self {
        Self { choices, tries: 0, shape: None }
    }

    /// The text of an event of the known shape; `None` if it has another, and must be read.
    #[must_use]
    pub fn text<'a>(&self, bytes: &'a [u8]) -> Option<Cow<'a, str>> {
        let (before, behind) = self.shape.as_ref()?;
        let string = bytes.strip_prefix(before.as_slice())?.strip_suffix(behind.as_slice())?;
        // One string and nothing else, or it would be another event.
        #[derive(serde::Deserialize)]
        struct Text<'a>(#[serde(borrow)] Cow<'a, str>);
        serde_json::from_slice::<Text<'a>>(string).ok().map(|text| text.0)
    }

    /// Takes the shape of an event that was read, if it is one choice's text and nothing else; whether it was taken.
    pub fn learn(&mut self, bytes: &[u8], event: &Event<'_>) -> bool {
        if self.tries >= TRIES_MAX {
            return false;
        }
        let Some(string) = only_text(self.choices, bytes, event) else { return false };
        self.tries += 1;
        // Both are slices of the same event.
        let at = string.as_ptr() as usize - bytes.as_ptr() as usize;
        self.shape = Some((bytes[..at].to_vec(), bytes[at + string.len()..].to_vec()));
        true
    }
}

/// The string of an event that says the text of one choice, and nothing that adds up over events.
fn only_text<'a>(choices: Choices, bytes: &'a [u8], event: &Event<'a>) -> Option<&'a str> {
    let [choice] = event.choices.as_slice() else { return None };
    let is_null = |raw: Option<&RawValue>| raw.is_none_or(|raw| raw.get() == "null");
    if !is_null(event.usage) || !is_null(event.error) || !is_null(choice.finish_reason) {
        return None;
    }
    let fields = Fields::parse(bytes).ok()?;
    let all: Vec<Fields<'_>> = serde_json::from_str(fields.get("choices")?).ok()?;
    let [whole] = all.as_slice() else { return None };
    if whole.get("logprobs").is_some() {
        return None;
    }
    let string = match choices {
        Choices::Chat => {
            let delta = Fields::parse(whole.get("delta")?.as_bytes()).ok()?;
            if delta.iter().any(|(name, value)| name != "content" && value.get() != "null") {
                return None;
            }
            choice.delta.content?
        }
        Choices::Completion => choice.text?,
    };
    string.get().starts_with('"').then(|| string.get())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn learnt(choices: Choices, event: &str) -> Template {
        let mut template = Template::new(choices);
        template.learn(event.as_bytes(), &Event::parse(event.as_bytes()).expect("an event"));
        template
    }

    #[test]
    fn the_text_of_like_events_is_told() {
        let event = |text: &str| {
            format!(
                r#"{{"id":"a","choices":[{{"index":0,"delta":{{"content":{text},"reasoning":null}},"logprobs":null,"finish_reason":null}}]}}"#
            )
        };
        let template = learnt(Choices::Chat, &event(r#""Hé""#));
        for (string, text) in [(r#""llo""#, "llo"), (r#""""#, ""), (r#""\"\u00e9\n""#, "\"é\n"), (r#"  "a" "#, "a")] {
            assert_eq!(template.text(event(string).as_bytes()).as_deref(), Some(text), "{string}");
        }
        // What is no single string makes another event of it.
        for other in [r#""a","x":"b""#, "null", r#"["a"]"#, r#""a" "b""#, "", r#"""#, "\"\u{0}\""] {
            assert_eq!(template.text(event(other).as_bytes()), None, "{other}");
        }
        for other in [
            event("\"a\"").replace("\"index\":0", "\"index\":1"),
            event("\"a\"").replace("\"id\":\"a\"", "\"id\":\"b\""),
            event("\"a\"").replace("\"finish_reason\":null", "\"finish_reason\":\"stop\""),
        ] {
            assert_eq!(template.text(other.as_bytes()), None, "{other}");
        }
        assert_eq!(Template::new(Choices::Chat).text(event("\"a\"").as_bytes()), None);
    }

    #[test]
    fn nothing_is_learnt_of_events_that_say_more_than_a_text() {
        let plain = r#"{"choices":[{"index":0,"text":"a"}]}"#;
        assert!(learnt(Choices::Completion, plain).shape.is_some());
        for (choices, event) in [
            (Choices::Chat, plain),
            (Choices::Completion, r#"{"choices":[{"index":0,"text":"a","logprobs":{"tokens":[]}}]}"#),
            (Choices::Completion, r#"{"choices":[{"index":0,"text":"a","finish_reason":"stop"}]}"#),
            (Choices::Completion, r#"{"choices":[{"index":0,"text":"a"},{"index":1,"text":"a"}]}"#),
            (Choices::Completion, r#"{"choices":[{"index":0,"text":"a"}],"usage":{"total_tokens":1}}"#),
            (Choices::Chat, r#"{"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#),
            (Choices::Chat, r#"{"choices":[{"index":0,"delta":{"content":"a","reasoning":"b"}}]}"#),
            (Choices::Chat, r#"{"choices":[{"index":0,"delta":{"content":[{"text":"a"}]}}]}"#),
            (Choices::Chat, r#"{"choices":[{"index":0,"delta":{"tool_calls":[]}}]}"#),
            (Choices::Chat, r#"{"choices":[]}"#),
        ] {
            assert!(learnt(choices, event).shape.is_none(), "{event}");
        }
    }
}
