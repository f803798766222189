//! A chat's answer as blocks, one after the other: thoughts, text, a refusal, calls of tools. The APIs of blocks are made of it.
//! Invariant: one block is open at a time, and what comes for another while a call is open waits, so that no call is cut.

use super::event::{Event, text};
use super::fields::Fields;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::ops::Range;

/// Most blocks of one answer.
const BLOCKS_MAX: usize = 256;

/// One block.
#[derive(Clone, Debug)]
pub struct Block {
    /// What it is.
    pub kind: BlockKind,
    /// Its text so far; of a call, its arguments in JSON.
    pub text: String,
    /// The log probabilities of its text's tokens, as the backend wrote them.
    pub logprobs: Vec<Box<RawValue>>,
}

/// What a block is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BlockKind {
    /// What the model thought before it answered.
    Thinking,
    /// The answer.
    Text,
    /// Why there is none.
    Refusal,
    /// A call of one of the client's tools.
    Call {
        /// Which of the answer's calls.
        number: u32,
        /// The call's id; empty if the backend gave none.
        id: String,
        /// The tool.
        name: String,
    },
}

/// What became of the blocks; each names its block by its place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// It begins.
    Open(usize),
    /// It has more text, and these of its log probabilities with it.
    More(usize, String, Range<usize>),
    /// It is complete.
    Close(usize),
}

/// The blocks of an answer.
#[derive(Debug, Default)]
pub struct Blocks {
    blocks: Vec<Block>,
    is_open: bool,
    waiting: Vec<Block>,
    finish: Option<String>,
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(default)]
    index: u32,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    function: Option<Function<'a>>,
}

#[derive(Default, Deserialize)]
struct Function<'a> {
    #[serde(borrow, default)]
    name: Option<&'a RawValue>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
}

impl Blocks {
    /// Takes a chat's chunk; of its choices the first counts, as nobody asked for more.
    pub fn event(&mut self, bytes: &[u8]) -> Vec<Step> {
        let Some(event) = Event::parse(bytes) else { return Vec::new() };
        let Some(choice) = event.choices.iter().find(|choice| choice.index == 0) else { return Vec::new() };
        if let Some(finish) = choice.finish() {
            self.finish = Some(finish);
        }
        let mut steps = Vec::new();
        let delta = &choice.delta;
        let texts = [
            (BlockKind::Thinking, delta.reasoning_content.or(delta.reasoning)),
            (BlockKind::Text, delta.content),
            (BlockKind::Refusal, delta.refusal),
        ];
        for (kind, piece) in texts {
            let piece = text(piece);
            if piece.is_empty() {
                continue;
            }
            let logprobs = if kind == BlockKind::Text { logprobs(bytes) } else { Vec::new() };
            self.add(kind, piece, logprobs, &mut steps);
        }
        let calls: Vec<&RawValue> =
            delta.tool_calls.and_then(|raw| serde_json::from_str(raw.get()).ok()).unwrap_or_default();
        for call in calls.iter().filter_map(|call| serde_json::from_str::<Call<'_>>(call.get()).ok()) {
            let function = call.function.unwrap_or_default();
            let kind = BlockKind::Call { number: call.index, id: text(call.id), name: text(function.name) };
            self.add(kind, text(function.arguments), Vec::new(), &mut steps);
        }
        steps
    }

    /// The answer is complete.
    pub fn finish(&mut self) -> Vec<Step> {
        let mut steps = Vec::new();
        self.close(&mut steps);
        for block in std::mem::take(&mut self.waiting) {
            let (piece, logprobs) = (block.text.clone(), 0..block.logprobs.len());
            self.blocks.push(block);
            let place = self.blocks.len() - 1;
            steps.push(Step::Open(place));
            if !piece.is_empty() {
                steps.push(Step::More(place, piece, logprobs));
            }
            steps.push(Step::Close(place));
        }
        steps
    }

    /// The blocks.
    #[must_use]
    pub fn blocks(&self) -> &[Block] {
        &self.blocks
    }

    /// The reason that the backend gave for the end.
    #[must_use]
    pub fn finish_reason(&self) -> Option<&str> {
        self.finish.as_deref()
    }

    fn add(&mut self, kind: BlockKind, piece: String, logprobs: Vec<Box<RawValue>>, steps: &mut Vec<Step>) {
        let place = self.blocks.len().wrapping_sub(1);
        match self.blocks.last_mut().filter(|_| self.is_open) {
            Some(open) if is_same(&open.kind, &kind) => {
                if !piece.is_empty() {
                    let before = open.logprobs.len();
                    open.text.push_str(&piece);
                    open.logprobs.extend(logprobs);
                    steps.push(Step::More(place, piece, before..open.logprobs.len()));
                }
                return;
            }
            Some(Block { kind: BlockKind::Call { .. }, .. }) => return self.wait(kind, &piece, logprobs),
            Some(_) | None => {}
        }
        if self.blocks.len() + self.waiting.len() >= BLOCKS_MAX {
            return;
        }
        self.close(steps);
        let place = self.blocks.len();
        steps.push(Step::Open(place));
        if !piece.is_empty() {
            steps.push(Step::More(place, piece.clone(), 0..logprobs.len()));
        }
        self.blocks.push(Block { kind, text: piece, logprobs });
        self.is_open = true;
    }

    fn wait(&mut self, kind: BlockKind, piece: &str, logprobs: Vec<Box<RawValue>>) {
        if let Some(waiting) = self.waiting.iter_mut().find(|waiting| is_same(&waiting.kind, &kind)) {
            waiting.text.push_str(piece);
            waiting.logprobs.extend(logprobs);
        } else if self.blocks.len() + self.waiting.len() < BLOCKS_MAX {
            self.waiting.push(Block { kind, text: piece.to_owned(), logprobs });
        }
    }

    fn close(&mut self, steps: &mut Vec<Step>) {
        if std::mem::take(&mut self.is_open) {
            steps.push(Step::Close(self.blocks.len() - 1));
        }
    }
}

/// Whether a piece belongs to a block; a call's id and name come with its first piece alone.
fn is_same(open: &BlockKind, piece: &BlockKind) -> bool {
    match (open, piece) {
        (BlockKind::Call { number, .. }, BlockKind::Call { number: other, .. }) => number == other,
        (open, piece) => open == piece,
    }
}

fn logprobs(bytes: &[u8]) -> Vec<Box<RawValue>> {
    let read = || {
        let event = Fields::parse(bytes).ok()?;
        let choices: Vec<Fields<'_>> = event.read_borrowed("choices")?;
        Fields::parse(choices.first()?.get("logprobs")?.as_bytes()).ok()?.read("content")
    };
    read().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(delta: &str) -> String {
        format!(r#"{{"choices":[{{"index":0,"delta":{delta}}}]}}"#)
    }

    #[test]
    fn blocks_come_one_after_the_other() {
        let mut blocks = Blocks::default();
        let mut steps = Vec::new();
        for delta in [
            r#"{"role":"assistant","content":""}"#,
            r#"{"reasoning":"h"}"#,
            r#"{"reasoning":"m"}"#,
            r#"{"content":"Hel"}"#,
            r#"{"content":"lo"}"#,
            r#"{"tool_calls":[{"index":0,"id":"c0","function":{"name":"f","arguments":""}}]}"#,
            r#"{"tool_calls":[{"index":1,"id":"c1","function":{"name":"g","arguments":"["}},{"index":0,"function":{"arguments":"{}"}}]}"#,
            r#"{"content":"late","tool_calls":[{"index":1,"function":{"arguments":"]"}}]}"#,
        ] {
            steps.extend(blocks.event(chunk(delta).as_bytes()));
        }
        assert_eq!(blocks.finish_reason(), None);
        let end = r#"{"choices":[{"index":1,"delta":{"content":"other"}},{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#;
        steps.extend(blocks.event(end.as_bytes()));
        steps.extend(blocks.finish());
        let more = |place, text: &str| Step::More(place, text.into(), 0..0);
        let want = [
            vec![Step::Open(0), more(0, "h"), more(0, "m"), Step::Close(0)],
            vec![Step::Open(1), more(1, "Hel"), more(1, "lo"), Step::Close(1)],
            vec![Step::Open(2), more(2, "{}"), Step::Close(2)],
            vec![Step::Open(3), more(3, "[]"), Step::Close(3)],
            vec![Step::Open(4), more(4, "late"), Step::Close(4)],
        ];
        assert_eq!(steps, want.concat());
        let kinds: Vec<_> = blocks.blocks().iter().map(|block| (block.kind.clone(), block.text.as_str())).collect();
        let call = |number, id: &str, name: &str| BlockKind::Call { number, id: id.into(), name: name.into() };
        assert_eq!(
            kinds,
            [
                (BlockKind::Thinking, "hm"),
                (BlockKind::Text, "Hello"),
                (call(0, "c0", "f"), "{}"),
                (call(1, "c1", "g"), "[]"),
                (BlockKind::Text, "late"),
            ]
        );
        assert_eq!(blocks.finish_reason(), Some("tool_calls"));
    }

    #[test]
    fn log_probabilities_stay_as_they_were_written() {
        let mut blocks = Blocks::default();
        let event = r#"{"choices":[{"index":0,"delta":{"content":"a"},"logprobs":{"content":[{"token":"a","logprob":-0.10}]}}]}"#;
        blocks.event(event.as_bytes());
        assert_eq!(blocks.blocks()[0].logprobs[0].get(), r#"{"token":"a","logprob":-0.10}"#);
    }
}
