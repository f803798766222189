//! One answer on its way: what is still to be fed to the network, and what comes out.
//! Invariant: the tokens chosen depend on the request alone; a continued answer takes the choices of the uninterrupted one.
//!
//! How an answer is continued: the words of the delivered text before its last one are fed as they are. The last word is
//! generated again, held to its delivered bytes: its tokens may have been others than the text alone would give (the cut may
//! even lie within a token), and the model, asked in the same place with the same seed, chooses the same ones again. Only what
//! goes beyond the delivered bytes is sent.

use std::time::{Duration, Instant};

use tokio::sync::mpsc;

use crate::{
    attention::Cache,
    generation::{Finish, Piece, TokenInfo, TopToken, Usage},
    output::{Output, Release},
    sampling::{self, Sampling},
    tokenizer::Tokenizer,
};

/// Pieces that may lie unread; the sequence pauses when they do, and its slot stays taken.
const UNREAD_MAX: usize = 64;
/// Pieces that one step can add: text, and the last one.
const PIECES_PER_STEP: usize = 2;

/// A request that was checked and split into tokens.
pub(crate) struct Job {
    /// The prompt's tokens; not empty.
    pub(crate) prompt: Vec<u32>,
    /// Tokens of the delivered text that are fed as they are.
    pub(crate) kept: Vec<u32>,
    /// The delivered bytes after them, which are generated again.
    pub(crate) replay: Vec<u8>,
    /// The delivered text.
    pub(crate) prefix: String,
    /// Most tokens of the whole answer.
    pub(crate) answer_max: usize,
    pub(crate) sampling: Sampling,
    pub(crate) stop: Vec<String>,
    pub(crate) logprobs: Option<usize>,
    pub(crate) pieces: mpsc::Sender<Piece>,
}

/// A channel wide enough for a sequence never to find it full.
pub(crate) fn channel() -> (mpsc::Sender<Piece>, mpsc::Receiver<Piece>) {
    mpsc::channel(UNREAD_MAX + PIECES_PER_STEP)
}

impl Job {
    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.pieces.is_closed()
    }

    /// Ends a job that never ran.
    pub(crate) fn cancel(self) {
        let usage = Usage {
            prompt_tokens: self.prompt.len(),
            completion_tokens: self.kept.len(),
            prefix_tokens: self.kept.len(),
        };
        send(&self.pieces, Piece::Done { finish: Finish::Cancelled, usage });
    }
}

fn send(pieces: &mpsc::Sender<Piece>, piece: Piece) {
    match pieces.try_send(piece) {
        // Nobody waits for it: the sequence is dropped before the next step.
        Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => {}
        Err(mpsc::error::TrySendError::Full(_)) => unreachable!("a sequence runs only while its channel has room"),
    }
}

/// A job in a slot.
pub(crate) struct Sequence {
    job: Job,
    pub(crate) cache: Cache,
    /// Tokens to be fed, and how many of them were.
    feed: Vec<u32>,
    fed: usize,
    /// Tokens of the answer so far.
    place: usize,
    /// Tokens of the answer that were wholly in the delivered text, and those that were sent since.
    prefix_tokens: usize,
    sent_tokens: usize,
    output: Output,
    /// Not before this instant is the next token made.
    due: Instant,
    interval: Duration,
}

impl Sequence {
    /// Takes a slot, and says so.
    pub(crate) fn start(job: Job, cache: Cache, now: Instant, interval: Duration) -> Self {
        send(&job.pieces, Piece::Started { prompt_tokens: job.prompt.len() });
        let feed = [&job.prompt[..], &job.kept].concat();
        let output = Output::new(&job.stop, &job.prefix);
        let kept = job.kept.len();
        Self { job, cache, feed, fed: 0, place: kept, prefix_tokens: kept, sent_tokens: 0, output, due: now, interval }
    }

    /// Whether nobody waits for the answer any more.
    pub(crate) fn is_abandoned(&self) -> bool {
        self.job.is_abandoned()
    }

    /// Tokens that wait to be fed: 1 while generating, more while the prompt is read.
    pub(crate) fn unfed(&self) -> &[u32] {
        &self.feed[self.fed..]
    }

    /// Counts `n` tokens as fed.
    pub(crate) fn mark_fed(&mut self, n: usize) {
        self.fed += n;
    }

    /// Whether the receiver has room for what a step brings.
    pub(crate) fn has_room(&self) -> bool {
        self.job.pieces.capacity() >= PIECES_PER_STEP
    }

    /// When it may make its next token.
    pub(crate) fn due(&self) -> Instant {
        self.due
    }

    /// Takes the logits after the last fed token, and sends what came of them; gives the last piece if the answer ended.
    pub(crate) fn advance(&mut self, tokenizer: &Tokenizer, logits: &[f32], now: Instant) -> Option<Piece> {
        if !logits.iter().all(|l| l.is_finite()) {
            return Some(Piece::Failed("the model computed a number that is not finite".into()));
        }
        let Some(id) = self.choose(tokenizer, logits) else {
            return Some(Piece::Failed("the model's vocabulary cannot spell the answer so far".into()));
        };
        if tokenizer.is_end(id) {
            let rest = self.output.finish();
            self.send(rest);
            return Some(self.done(Finish::Stop));
        }
        self.place += 1;
        let bytes = tokenizer.bytes(id);
        let again = bytes.len().min(self.job.replay.len());
        self.job.replay.drain(..again);
        if again > 0 && again == bytes.len() {
            // All of it was delivered before.
            self.prefix_tokens += 1;
        } else {
            let token = self.token(tokenizer, logits, id);
            let release = self.output.push(token, again);
            let stopped = release.stopped;
            self.send(release);
            if stopped {
                return Some(self.done(Finish::Stop));
            }
            self.due = now.max(self.due + self.interval);
        }
        if self.place >= self.job.answer_max {
            let rest = self.output.finish();
            self.send(rest);
            return Some(self.done(Finish::Length));
        }
        self.feed.clear();
        self.feed.push(id);
        self.fed = 0;
        None
    }

    /// The token that sampling gives, or, where it would contradict the delivered text, the likeliest that does not.
    fn choose(&self, tokenizer: &Tokenizer, logits: &[f32]) -> Option<u32> {
        let chosen = self.job.sampling.choose(logits, self.place);
        let replay = &self.job.replay[..];
        let fits = |id: u32| {
            let bytes = tokenizer.bytes(id);
            !bytes.is_empty() && (replay.starts_with(bytes) || bytes.starts_with(replay))
        };
        if replay.is_empty() || fits(chosen) { Some(chosen) } else { sampling::likeliest(logits, fits) }
    }

    fn token(&self, tokenizer: &Tokenizer, logits: &[f32], id: u32) -> TokenInfo {
        let bytes = |id| tokenizer.bytes(id).to_vec();
        let Some(n) = self.job.logprobs else {
            return TokenInfo { id, bytes: bytes(id), logprob: None, top: Vec::new() };
        };
        let sum = sampling::log_sum(logits);
        let logprob = |id: u32| (f64::from(logits[id as usize]) - sum) as f32;
        let top = sampling::top(logits, n)
            .into_iter()
            .map(|id| TopToken { id, bytes: bytes(id), logprob: logprob(id) })
            .collect();
        TokenInfo { id, bytes: bytes(id), logprob: Some(logprob(id)), top }
    }

    fn send(&mut self, release: Release) {
        self.sent_tokens += release.tokens.len();
        if !release.text.is_empty() || !release.tokens.is_empty() {
            send(&self.job.pieces, Piece::Text { text: release.text, tokens: release.tokens });
        }
    }

    /// The last piece of an answer that ends now.
    pub(crate) fn done(&self, finish: Finish) -> Piece {
        let completion_tokens = self.prefix_tokens + self.sent_tokens;
        Piece::Done {
            finish,
            usage: Usage { prompt_tokens: self.job.prompt.len(), completion_tokens, prefix_tokens: self.prefix_tokens },
        }
    }

    /// Sends the last piece.
    pub(crate) fn end(self, last: Piece) {
        send(&self.job.pieces, last);
    }
}
