//! Spillway's embedded engine: loads a GGUF of the Llama family and generates on the CPU, with nothing else installed.
//! Invariant: an answer depends on its request alone, never on what else runs: a batch gives what each request gives alone.
//!
//! One thread per engine makes one step after another; sequences join and leave at any step. Everything is bounded: slots,
//! queue, context, unread pieces. Network, tokenizer, chat template, sampling and the
//! products of Q8_0 matrices are this crate's own; candle supplies the other ways of storing weights.
//!
//! ```
//! use spillway_engine::{Engine, EngineConfig, Piece, Request};
//!
//! let engine = Engine::guide(EngineConfig::default())?;
//! let mut generation = engine.submit(Request::ask("What is spill-over?"))?;
//! let mut answer = String::new();
//! while let Some(piece) = generation.blocking_next() {
//!     if let Piece::Text { text, .. } = piece {
//!         answer += &text;
//!     }
//! }
//! assert!(answer.contains("your own hardware"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod attention;
mod engine;
mod error;
mod generation;
mod gguf;
mod matrix;
mod model;
mod output;
mod q8;
mod request;
mod sampling;
mod scheduler;
mod sequence;
mod template;
mod tokenizer;

pub use engine::{Engine, EngineConfig};
pub use error::{LoadError, SubmitError};
pub use generation::{Finish, Generation, Piece, TokenInfo, TopToken, Usage};
pub use request::{ChatMessage, LOGPROBS_MAX, ModelInfo, Prompt, Request, STOP_LENGTH_MAX, STOPS_MAX, TEMPERATURE_MAX};
