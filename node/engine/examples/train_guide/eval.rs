//! Measures a guide: how many questions it answers word for word.
//! Invariant: nothing that is counted as unseen was ever drawn into a corpus.

use std::path::Path;

use anyhow::{Result, bail};
use spillway_engine::{Engine, EngineConfig, Piece, Request};

use crate::{
    corpus::{FORMS_HELD, Rng, question},
    topics::{OFF_TOPIC, OFF_TOPIC_ANSWER, TOPICS},
};

/// Questions at once: more would only wait.
const SLOTS: usize = 16;
/// Longest answer in tokens; longer than any that is taught.
const ANSWER_MAX: usize = 128;

/// Asks everything; gives how many of how many were answered word for word.
fn ask(engine: &Engine, what: &str, cases: &[(String, &str)], misses: bool) -> Result<()> {
    let mut right = 0;
    for cases in cases.chunks(SLOTS) {
        let open = cases
            .iter()
            .map(|(q, want)| {
                Ok((q, want, engine.submit(Request { max_tokens: Some(ANSWER_MAX), ..Request::ask(q.as_str()) })?))
            })
            .collect::<Result<Vec<_>>>()?;
        for (question, want, mut generation) in open {
            let mut answer = String::new();
            while let Some(piece) = generation.blocking_next() {
                match piece {
                    Piece::Text { text, .. } => answer += &text,
                    Piece::Started { .. } | Piece::Done { .. } => {}
                    Piece::Failed(why) => bail!(why),
                }
            }
            if answer == **want {
                right += 1;
            } else if misses {
                println!("  {question}\n    {answer}");
            }
        }
    }
    println!("{what}: {right} of {} word for word", cases.len());
    Ok(())
}

/// Measures the guide in `file`; with `misses` prints what it answered wrongly.
pub fn eval(file: &Path, misses: bool) -> Result<()> {
    let engine = Engine::load_file(file, EngineConfig { slots: SLOTS, ..EngineConfig::default() })?;
    let forms = TOPICS
        .iter()
        .flat_map(|t| {
            t.names.iter().flat_map(|name| FORMS_HELD.iter().map(|form| (form.replace("{}", name), t.answer)))
        })
        .collect::<Vec<_>>();
    ask(&engine, "unseen forms of question about known names", &forms, misses)?;
    let held = TOPICS.iter().flat_map(|t| t.held.iter().map(|q| (q.to_string(), t.answer))).collect::<Vec<_>>();
    ask(&engine, "unseen whole questions", &held, misses)?;
    let mut rng = Rng::new(u64::MAX);
    let seen = TOPICS
        .iter()
        .flat_map(|t| (0..6).map(|_| (question(&mut rng, t), t.answer)).collect::<Vec<_>>())
        .collect::<Vec<_>>();
    ask(&engine, "known questions with new slips of the pen", &seen, misses)?;
    let off = OFF_TOPIC.iter().map(|q| (q.to_string(), OFF_TOPIC_ANSWER)).collect::<Vec<_>>();
    ask(&engine, "questions on other things, declined", &off, misses)
}
