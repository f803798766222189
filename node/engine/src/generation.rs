//! The stream of one answer, as its receiver sees it.
//! Invariant: a stream ends with exactly one `Done` or `Failed`; a receiver that goes away frees the answer's slot.

use std::sync::Arc;

use tokio::sync::mpsc;

use crate::scheduler::Shared;

/// One token of an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenInfo {
    /// Its id.
    pub id: u32,
    /// What it stands for, which need not be whole characters; empty for control tokens.
    pub bytes: Vec<u8>,
    /// ln of its probability, before temperature and `top_p`; if log-probabilities were asked for.
    pub logprob: Option<f32>,
    /// The likeliest tokens in its place, likeliest first; as many as were asked for.
    pub top: Vec<TopToken>,
}

/// One of the likeliest tokens.
#[derive(Debug, Clone, PartialEq)]
pub struct TopToken {
    /// Its id.
    pub id: u32,
    /// What it stands for.
    pub bytes: Vec<u8>,
    /// ln of its probability.
    pub logprob: f32,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The model ended it, or a stop string.
    Stop,
    /// `max_tokens` or the context is used up.
    Length,
    /// The engine was shut down.
    Cancelled,
}

/// Tokens of a finished answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens of the whole answer, [`crate::Request::prefix`] included, and the token that ends it not. Tokens that fell to
    /// a stop string are not counted.
    pub completion_tokens: usize,
    /// How many of those tokens the prefix had; a token begun in the prefix and ended here counts as generated here.
    pub prefix_tokens: usize,
}

/// What arrives of an answer.
#[derive(Debug, Clone, PartialEq)]
pub enum Piece {
    /// The request has a slot. The first piece always, unless the engine stops or fails before.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: usize,
    },
    /// More of the answer: whole characters, and nothing of a stop string.
    Text {
        /// The text.
        text: String,
        /// The tokens that ended in this text.
        tokens: Vec<TokenInfo>,
    },
    /// The answer is complete. Nothing follows.
    Done {
        /// Why it ended.
        finish: Finish,
        /// Its tokens.
        usage: Usage,
    },
    /// The engine could not go on; what was sent is valid. Nothing follows.
    Failed(String),
}

/// Receives one answer. Dropping it cancels what is left of the answer.
pub struct Generation {
    pieces: mpsc::Receiver<Piece>,
    shared: Arc<Shared>,
    ended: bool,
}

impl Generation {
    pub(crate) fn new(pieces: mpsc::Receiver<Piece>, shared: Arc<Shared>) -> Self {
        Self { pieces, shared, ended: false }
    }

    /// The next piece; `None` after the last. Dropping the future loses no piece.
    pub async fn next(&mut self) -> Option<Piece> {
        if self.ended {
            return None;
        }
        let piece = self.pieces.recv().await;
        self.received(piece)
    }

    /// The next piece, for a thread that may block; `None` after the last.
    ///
    /// # Panics
    ///
    /// Panics inside an asynchronous task, as tokio's `blocking_recv` does.
    pub fn blocking_next(&mut self) -> Option<Piece> {
        if self.ended {
            return None;
        }
        let piece = self.pieces.blocking_recv();
        self.received(piece)
    }

    fn received(&mut self, piece: Option<Piece>) -> Option<Piece> {
        let piece = piece.unwrap_or_else(|| Piece::Failed("the engine stopped".into()));
        match piece {
            Piece::Started { .. } | Piece::Text { .. } => self.shared.nudge(),
            Piece::Done { .. } | Piece::Failed(_) => self.ended = true,
        }
        Some(piece)
    }
}

impl std::fmt::Debug for Generation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Generation")
            .field("unread", &self.pieces.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.pieces.close();
        self.shared.nudge();
    }
}
