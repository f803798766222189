//! One stream for the client out of the several places that an answer came from.
//! Invariant: the client sees one id, one role and one finish reason per choice, and one usage at most; a stream from a
//! single place passes byte for byte, but for usage.

use super::endpoint::Choices;
use super::event::{Choice, Event, text};
use super::fields::{Fields, literal, object, raw};
use super::measure::{is_beyond_text, text_of_parsed};
use super::template::Template;
use serde::Serialize;
use serde_json::value::RawValue;
use spillway_ledger::Credits;
use spillway_ledger::money::MICRO_PER_CREDIT;
use std::collections::BTreeMap;

/// The part of an answer that was delivered is no plain text, so nobody else can go on behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the answer broke off behind thoughts or a tool call, where no other provider can go on")]
pub struct CannotContinue;

/// Joins the events of a job's legs.
#[derive(Debug)]
pub struct Stitch {
    kind: Choices,
    head: Vec<(&'static str, Box<RawValue>)>,
    /// Whether `head` is from a backend yet.
    has_head: bool,
    choices: BTreeMap<u32, Seen>,
    beyond_text: bool,
    /// Whether an earlier leg delivered something.
    continued: bool,
    /// The usage that the newest leg to have one reported, and how many events with text came before that leg.
    usage: Option<(Box<RawValue>, u64)>,
    /// Events with text of the earlier legs, and of this one.
    events_before: u64,
    events: u64,
    template: Template,
}

/// What the client has of a choice.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    role: bool,
    finished: bool,
}

/// The fields that name an answer as a whole.
const HEAD: [&str; 4] = ["id", "created", "model", "system_fingerprint"];

impl Stitch {
    /// For one answer. `id`, `created_s` (Unix seconds) and `model` stand in where no backend says them.
    #[must_use]
    pub fn new(kind: Choices, id: &str, created_s: u64, model: &str) -> Self {
        Self {
            kind,
            head: vec![("id", raw(id)), ("created", raw(&created_s)), ("model", raw(model))],
            has_head: false,
            choices: BTreeMap::new(),
            beyond_text: false,
            continued: false,
            usage: None,
            events_before: 0,
            events: 0,
            template: Template::new(kind),
        }
    }

    /// The job was placed, for the first time or anew.
    ///
    /// # Errors
    /// If what was delivered cannot be gone on with: the stream is to end with an error.
    pub fn leg(&mut self) -> Result<(), CannotContinue> {
        if self.beyond_text {
            return Err(CannotContinue);
        }
        self.continued = !self.choices.is_empty();
        self.events_before += std::mem::take(&mut self.events);
        Ok(())
    }

    /// The next event of a backend, as the client gets it; `None` if it is not for the client: usage, which
    /// [`Self::usage`] has, what repeats an earlier leg, and what is no event.
    #[must_use]
    pub fn event(&mut self, bytes: Vec<u8>) -> Option<Vec<u8>> {
        if !self.continued
            && let Some(text) = self.template.text(&bytes)
        {
            // More of what an event of this leg began.
            self.events += u64::from(!text.is_empty());
            return Some(bytes);
        }
        let event = Event::parse(&bytes)?;
        if event.error.is_some() {
            return None;
        }
        if let Some(usage) = event.usage.filter(|usage| usage.get().starts_with('{')) {
            self.usage = Some((usage.to_owned(), self.events_before));
        }
        if event.choices.is_empty() && (event.usage.is_some() || self.continued) {
            return None;
        }
        // What is passed on as it is need not be taken apart.
        let touched = !self.has_head || self.continued || event.usage.is_some();
        let fields = if touched { Fields::parse(&bytes).ok()? } else { Fields::default() };
        if !self.has_head {
            self.has_head = true;
            for name in HEAD {
                if let Some(value) = fields.raw(name).filter(|value| value.get() != "null") {
                    self.head.retain(|(other, _)| *other != name);
                    self.head.push((name, value.to_owned()));
                }
            }
        }
        let rewritten = match (self.continued, event.usage.is_some()) {
            (false, false) => None,
            (false, true) => Some(without_usage(&fields)),
            (true, _) => Some(self.rewrite(&event, &fields)?),
        };
        self.beyond_text |= is_beyond_text(&event);
        self.events += u64::from(!text_of_parsed(self.kind, &event).is_empty());
        for choice in &event.choices {
            let seen = self.choices.entry(choice.index).or_default();
            seen.role |= choice.delta.role.is_some();
            seen.finished |= choice.finish_reason.is_some();
        }
        self.template.learn(&bytes, &event);
        Some(rewritten.unwrap_or(bytes))
    }

    /// An event of a later leg as part of the first leg's stream; `None` if nothing of it is new.
    fn rewrite(&self, event: &Event<'_>, fields: &Fields<'_>) -> Option<Vec<u8>> {
        let raw_choices: Vec<Fields<'_>> = serde_json::from_str(fields.get("choices")?).ok()?;
        let mut kept = Vec::with_capacity(raw_choices.len());
        for (choice, mut fields) in event.choices.iter().zip(raw_choices) {
            let seen = self.choices.get(&choice.index).copied().unwrap_or_default();
            if seen.finished {
                continue; // The answer was complete; what a later leg adds is not part of it.
            }
            if seen.role && choice.delta.role.is_some() {
                let delta = fields.get("delta").unwrap_or("{}").to_owned();
                let mut delta = Fields::parse(delta.as_bytes()).ok()?;
                delta.remove("role");
                if says_nothing(choice) {
                    continue;
                }
                fields.set("delta", delta.to_raw());
            }
            kept.push(fields.to_raw());
        }
        if kept.is_empty() {
            return None;
        }
        let mut fields = fields.clone();
        for (name, value) in &self.head {
            fields.set(name, value.clone());
        }
        fields.set("choices", raw(&kept));
        fields.remove("usage");
        Some(fields.to_bytes())
    }

    /// The event that ends each choice that has begun and not ended, for a job cut at its limit; `None` if all have ended.
    #[must_use]
    pub fn finish(&mut self, finish: &str) -> Option<Vec<u8>> {
        self.choices.entry(0).or_default();
        let mut open = Vec::new();
        for (index, seen) in &mut self.choices {
            if !std::mem::replace(&mut seen.finished, true) {
                let (index, finish) = (raw(index), raw(finish));
                open.push(match self.kind {
                    Choices::Chat => object([("index", index), ("delta", literal("{}")), ("finish_reason", finish)]),
                    Choices::Completion => object([("index", index), ("text", raw("")), ("finish_reason", finish)]),
                });
            }
        }
        if open.is_empty() { None } else { Some(self.own_event(raw(&open), None)) }
    }

    /// The usage of the whole answer with its cost in credits: the backend's own fields, then `cost`, then `x_spillway` if
    /// `detail` is given.
    ///
    /// Of an answer that several legs had a part in, the last leg counts the earlier text as prompt. That text is moved to
    /// the completion: as many tokens as the backend says in `prefix_tokens` (the embedded engine does), else one for each
    /// event, which is what servers send.
    #[must_use]
    pub fn usage<T: Serialize>(&self, cost: Credits, detail: Option<&T>) -> Box<RawValue> {
        let (reported, events_before) = self.usage.as_ref().map_or(("{}", 0), |(usage, events)| (usage.get(), *events));
        let mut usage = Fields::parse(reported.as_bytes()).unwrap_or_default();
        let prefix_tokens = usage.read::<u64>("prefix_tokens");
        usage.remove("prefix_tokens");
        if events_before > 0
            && let (Some(prompt), Some(completion)) =
                (usage.read::<u64>("prompt_tokens"), usage.read::<u64>("completion_tokens"))
        {
            let moved = prefix_tokens.unwrap_or(events_before).min(prompt);
            usage.set("prompt_tokens", raw(&(prompt - moved)));
            usage.set("completion_tokens", raw(&completion.saturating_add(moved)));
        }
        usage.set("cost", credits(cost));
        if let Some(detail) = detail {
            usage.set("x_spillway", raw(detail));
        }
        usage.to_raw()
    }

    /// The usage that a server reported in an answer that is no stream.
    pub fn reported(&mut self, usage: Box<RawValue>) {
        self.usage = Some((usage, 0));
    }

    /// The event that carries usage at a stream's end.
    #[must_use]
    pub fn usage_event(&self, usage: Box<RawValue>) -> Vec<u8> {
        self.own_event(literal("[]"), Some(usage))
    }

    fn own_event(&self, choices: Box<RawValue>, usage: Option<Box<RawValue>>) -> Vec<u8> {
        let mut event = Fields::default();
        let object = match self.kind {
            Choices::Chat => "chat.completion.chunk",
            Choices::Completion => "text_completion",
        };
        event.set("object", raw(object));
        for (name, value) in &self.head {
            event.set(name, value.clone());
        }
        event.set("choices", choices);
        if let Some(usage) = usage {
            event.set("usage", usage);
        }
        event.to_bytes()
    }
}

/// An amount as a JSON number in credits, with all six places.
#[must_use]
pub fn credits(amount: Credits) -> Box<RawValue> {
    literal(decimal(amount))
}

/// An amount in credits, with all six places, as in the `x-spillway-cost` header.
#[must_use]
pub fn decimal(amount: Credits) -> String {
    format!("{}.{:06}", amount.micro() / MICRO_PER_CREDIT, amount.micro() % MICRO_PER_CREDIT)
}

/// A choice's delta that only opens the message.
fn says_nothing(choice: &Choice<'_>) -> bool {
    let delta = &choice.delta;
    choice.finish_reason.is_none()
        && text(delta.content).is_empty()
        && text(delta.reasoning_content).is_empty()
        && text(delta.reasoning).is_empty()
        && text(delta.refusal).is_empty()
        && delta.tool_calls.is_none()
        && delta.function_call.is_none()
}

fn without_usage(fields: &Fields<'_>) -> Vec<u8> {
    let mut fields = fields.clone();
    fields.remove("usage");
    fields.to_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stitch() -> Stitch {
        Stitch::new(Choices::Chat, "own", 7, "m")
    }

    /// Feeds legs of events; what the client gets.
    fn run(stitch: &mut Stitch, legs: &[&[&str]]) -> Vec<String> {
        let mut got = Vec::new();
        for leg in legs {
            stitch.leg().expect("plain text");
            got.extend(leg.iter().filter_map(|event| stitch.event(event.as_bytes().to_vec())));
        }
        got.into_iter().map(|event| String::from_utf8(event).expect("JSON is UTF-8")).collect()
    }

    const OPEN_A: &str =
        r#"{"id":"a","created":1,"model":"A","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;
    const TEXT_A: &str =
        r#"{"id":"a", "created":1,"model":"A","x":1.0,"choices":[{"index":0,"delta":{"content":"On"}}]}"#;
    const OPEN_B: &str =
        r#"{"id":"b","created":2,"model":"B","choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}"#;
    const TEXT_B: &str = r#"{"id":"b","created":2,"model":"B","choices":[{"index":0,"logprobs":null,"delta":{"role":"assistant","content":"ce","y":2.50}}]}"#;
    const STOP_B: &str = r#"{"id":"b","created":2,"model":"B","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":11,"completion_tokens":3,"total_tokens":14,"deep":{"z":1.0}}}"#;

    #[test]
    fn one_leg_passes_byte_for_byte() {
        let usage = r#"{"id":"a","choices":[],"usage":{"prompt_tokens":1}}"#;
        let nulls = r#"{"id":"a","choices":[{"index":0,"delta":{"content":"x"},"finish_reason":null}],"usage":null}"#;
        let first = r#"{"choices":[],"prompt_filter_results":[]}"#;
        assert_eq!(run(&mut stitch(), &[&[first, OPEN_A, TEXT_A, nulls, usage]]), [first, OPEN_A, TEXT_A, nulls]);
    }

    #[test]
    fn later_legs_become_part_of_the_first_stream() {
        let mut stitch = stitch();
        let got = run(&mut stitch, &[&[OPEN_A, TEXT_A], &[OPEN_B, TEXT_B, STOP_B, TEXT_B]]);
        assert_eq!(
            got,
            [
                OPEN_A,
                TEXT_A,
                r#"{"id":"a","created":1,"model":"A","choices":[{"index":0,"logprobs":null,"delta":{"content":"ce","y":2.50}}]}"#,
                r#"{"id":"a","created":1,"model":"A","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
            ]
        );
        assert!(stitch.finish("stop").is_none());
        // One event had come before the leg that counted, as part of its prompt.
        assert_eq!(
            stitch.usage::<()>(Credits::new(1_000_002), None).get(),
            r#"{"prompt_tokens":10,"completion_tokens":4,"total_tokens":14,"deep":{"z":1.0},"cost":1.000002}"#
        );
    }

    #[test]
    fn a_backend_that_counts_the_prefix_is_believed() {
        let mut stitch = stitch();
        let usage =
            r#"{"choices":[],"usage":{"prompt_tokens":20,"completion_tokens":3,"total_tokens":23,"prefix_tokens":7}}"#;
        assert_eq!(run(&mut stitch, &[&[OPEN_A, TEXT_A], &[TEXT_B, usage]]).len(), 3);
        assert_eq!(
            stitch.usage::<()>(Credits::ZERO, None).get(),
            r#"{"prompt_tokens":13,"completion_tokens":10,"total_tokens":23,"cost":0.000000}"#
        );
    }

    #[test]
    fn a_leg_that_delivered_nothing_leaves_no_trace() {
        let mut stitch = stitch();
        assert_eq!(run(&mut stitch, &[&[], &[OPEN_B, TEXT_B]]), [OPEN_B, TEXT_B]);
    }

    #[test]
    fn an_answer_that_had_ended_is_not_gone_on_with() {
        let end = r#"{"id":"a","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
        assert_eq!(run(&mut stitch(), &[&[OPEN_A, end], &[OPEN_B, TEXT_B, STOP_B]]), [OPEN_A, end]);
    }

    #[test]
    fn what_is_no_event_is_left_out() {
        for event in ["", "[DONE]", "5", r#"{"error":{"message":"x"}}"#, r#"{"choices":[{"index":0}],"choices":[]}"#] {
            assert_eq!(stitch().event(event.as_bytes().to_vec()), None, "{event}");
        }
    }

    #[test]
    fn thoughts_and_tool_calls_cannot_be_continued() {
        for delta in [r#"{"reasoning":"hm"}"#, r#"{"tool_calls":[{"index":0,"function":{"name":"f"}}]}"#] {
            let mut stitch = stitch();
            stitch.leg().expect("the first leg");
            let event = format!(r#"{{"choices":[{{"index":0,"delta":{delta}}}]}}"#);
            assert!(stitch.event(event.into_bytes()).is_some());
            assert_eq!(stitch.leg(), Err(CannotContinue), "{delta}");
        }
    }

    #[test]
    fn a_cut_answer_gets_its_finish_reason() {
        let mut cut = stitch();
        let _ = run(&mut cut, &[&[TEXT_A]]);
        let got = String::from_utf8(cut.finish("length").expect("open")).expect("JSON");
        assert_eq!(
            got,
            r#"{"object":"chat.completion.chunk","id":"a","created":1,"model":"A","choices":[{"index":0,"delta":{},"finish_reason":"length"}]}"#
        );
        assert!(cut.finish("length").is_none());
        let empty = String::from_utf8(stitch().finish("stop").expect("open")).expect("JSON");
        assert!(empty.contains(r#""id":"own","created":7,"model":"m""#), "{empty}");
    }

    #[test]
    fn usage_always_tells_the_cost() {
        let stitch = stitch();
        assert_eq!(stitch.usage::<()>(Credits::new(5), None).get(), r#"{"cost":0.000005}"#);
        let detailed = stitch.usage(Credits::ZERO, Some(&[1]));
        assert_eq!(detailed.get(), r#"{"cost":0.000000,"x_spillway":[1]}"#);
        let event = String::from_utf8(stitch.usage_event(detailed)).expect("JSON");
        assert!(event.ends_with(r#""choices":[],"usage":{"cost":0.000000,"x_spillway":[1]}}"#), "{event}");
    }
}
