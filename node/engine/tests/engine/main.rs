//! The engine through its public face, with the committed guide model and with small models of noise.
//! Invariant: no test waits for time to pass; each waits for a piece, or compares whole answers.

mod answers;
mod continuation;
mod limits;
mod load;
mod noise;

use spillway_engine::{Engine, EngineConfig, Finish, Generation, Piece, Request, TokenInfo, Usage};

/// A whole answer.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    pieces: Vec<String>,
    tokens: Vec<TokenInfo>,
    finish: Finish,
    usage: Usage,
}

impl Answer {
    fn text(&self) -> String {
        self.pieces.concat()
    }
}

/// Reads `generation` to its end, and checks that it is well formed.
fn collect(mut generation: Generation) -> Answer {
    let first = generation.blocking_next();
    assert!(matches!(first, Some(Piece::Started { .. })), "an answer began with {first:?}");
    let (mut pieces, mut tokens) = (Vec::new(), Vec::new());
    loop {
        match generation.blocking_next() {
            Some(Piece::Text { text, tokens: more }) => {
                pieces.push(text);
                tokens.extend(more);
            }
            Some(Piece::Done { finish, usage }) => {
                assert_eq!(generation.blocking_next(), None, "something followed the end");
                return Answer { pieces, tokens, finish, usage };
            }
            other => panic!("after {pieces:?} came {other:?}"),
        }
    }
}

fn answer(engine: &Engine, request: Request) -> Answer {
    collect(engine.submit(request).expect("the request is taken"))
}

fn guide(slots: usize) -> Engine {
    Engine::guide(EngineConfig { slots, threads: Some(2), ..EngineConfig::default() }).expect("the guide loads")
}

/// Questions that the guide was made for.
const QUESTIONS: [&str; 8] = [
    "What is spill-over?",
    "How does the 70/30 split work?",
    "How do I run a node?",
    "How do I create a key?",
    "Who can read my prompts?",
    "What is a voucher?",
    "How do I earn?",
    "What is the capital of France?",
];
