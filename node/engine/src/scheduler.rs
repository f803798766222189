//! The engine's thread: one step after another, each with the rows of all sequences that can go on.
//! Invariants: at most `slots` sequences run and `waiting_max` requests wait beyond them; a long prompt is read in parts, so
//! that every running sequence gets its token in every step; an abandoned sequence is gone before the next step.

use std::{
    collections::VecDeque,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use crate::{
    attention::Cache,
    error::SubmitError,
    generation::{Finish, Piece},
    model::{Model, Row},
    sequence::{Job, Sequence},
    tokenizer::Tokenizer,
};

/// Prompt tokens in one step while other sequences wait for their next token.
const PREFILL_BESIDE: usize = 32;
/// Prompt tokens in one step otherwise.
const PREFILL_ALONE: usize = 128;

/// What the engine's thread and its handles share.
pub(crate) struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    slots: usize,
    waiting_max: usize,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Job>,
    running: usize,
    asleep: bool,
    stopped: bool,
}

impl Shared {
    pub(crate) fn new(slots: usize, waiting_max: usize) -> Self {
        Self { state: Mutex::default(), wake: Condvar::new(), slots, waiting_max }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it holds the lock; if something did, the state would still be sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Wakes the thread if it sleeps: a receiver has made room, or went away.
    pub(crate) fn nudge(&self) {
        if self.lock().asleep {
            self.wake.notify_one();
        }
    }

    /// Ends the thread after its current step.
    pub(crate) fn stop(&self) {
        self.lock().stopped = true;
        self.wake.notify_one();
    }

    /// (running, waiting)
    pub(crate) fn load(&self) -> (usize, usize) {
        let state = self.lock();
        (state.running, state.waiting.len())
    }

    /// Adds `job` to the queue.
    pub(crate) fn enqueue(&self, job: Job) -> Result<(), SubmitError> {
        let mut state = self.lock();
        if state.stopped {
            return Err(SubmitError::Stopped);
        }
        state.waiting.retain(|job| !job.is_abandoned());
        let (running, waiting) = (state.running, state.waiting.len());
        if running + waiting >= self.slots + self.waiting_max {
            return Err(SubmitError::QueueFull { running, waiting });
        }
        // Every check has passed: nothing below can fail.
        state.waiting.push_back(job);
        self.wake.notify_one();
        Ok(())
    }
}

/// What the thread owns.
pub(crate) struct Scheduler {
    pub(crate) model: Model,
    pub(crate) tokenizer: Arc<Tokenizer>,
    pub(crate) shared: Arc<Shared>,
    /// Least time between two tokens of one sequence.
    pub(crate) interval: Duration,
}

impl Scheduler {
    /// Runs until the last handle is gone, with the help of the rayon pool it is called in.
    pub(crate) fn run(self) {
        let mut sequences: Vec<Sequence> = Vec::new();
        while let Some(plan) = self.wait(&mut sequences) {
            let outcome = catch_unwind(AssertUnwindSafe(|| self.step(&mut sequences, &plan)));
            let why = match outcome {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => error.to_string(),
                Err(_) => "the engine panicked".to_string(),
            };
            // The step's caches are in doubt; the model is not, since it never changes.
            let failed = sequences.drain(..).map(|s| (s, Piece::Failed(why.clone()))).collect();
            self.end(&sequences, failed);
        }
        let waiting: Vec<Job> = self.shared.lock().waiting.drain(..).collect();
        waiting.into_iter().for_each(Job::cancel);
        let cancelled = sequences
            .drain(..)
            .map(|s| {
                let last = s.done(Finish::Cancelled);
                (s, last)
            })
            .collect();
        self.end(&sequences, cancelled);
    }

    /// Frees the slots of `ended` sequences, and only then tells their receivers, who may want to use them at once.
    fn end(&self, still: &[Sequence], ended: Vec<(Sequence, Piece)>) {
        self.shared.lock().running = still.len();
        for (sequence, last) in ended {
            sequence.end(last);
        }
    }

    /// Sleeps until something can be done; says how many tokens each sequence is fed. `None` when the engine stops.
    fn wait(&self, sequences: &mut Vec<Sequence>) -> Option<Vec<usize>> {
        let mut state = self.shared.lock();
        loop {
            if state.stopped {
                return None;
            }
            let now = Instant::now();
            sequences.retain(|s| !s.is_abandoned());
            while sequences.len() < self.shared.slots {
                let Some(job) = state.waiting.pop_front() else { break };
                if !job.is_abandoned() {
                    sequences.push(Sequence::start(job, self.model.cache(), now, self.interval));
                }
            }
            state.running = sequences.len();
            let plan = plan(sequences, now);
            if plan.iter().any(|n| *n > 0) {
                return Some(plan);
            }
            let due = sequences.iter().filter(|s| s.has_room()).map(Sequence::due).min();
            state.asleep = true;
            state = match due {
                Some(due) => {
                    self.shared
                        .wake
                        .wait_timeout(state, due.saturating_duration_since(now))
                        .unwrap_or_else(PoisonError::into_inner)
                        .0
                }
                None => self.shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner),
            };
            state.asleep = false;
        }
    }

    fn step(&self, sequences: &mut Vec<Sequence>, plan: &[usize]) -> candle_core::Result<()> {
        let mut rows = Vec::new();
        for (cache, (sequence, n)) in sequences.iter().zip(plan).enumerate() {
            let unfed = sequence.unfed();
            rows.extend(unfed[..*n].iter().enumerate().map(|(i, token)| Row {
                cache,
                token: *token,
                logits: i + 1 == unfed.len(),
            }));
        }
        let mut caches: Vec<&mut Cache> = sequences.iter_mut().map(|s| &mut s.cache).collect();
        let mut logits = self.model.step(&mut caches, &rows)?.into_iter();
        let now = Instant::now();
        let (mut still, mut ended) = (Vec::new(), Vec::new());
        for (mut sequence, n) in sequences.drain(..).zip(plan) {
            sequence.mark_fed(*n);
            if *n == 0 || !sequence.unfed().is_empty() {
                still.push(sequence);
                continue;
            }
            let logits = logits.next().expect("one row per sequence that was fed to its end wants logits");
            match sequence.advance(&self.tokenizer, &logits, now) {
                None => still.push(sequence),
                Some(last) => ended.push((sequence, last)),
            }
        }
        *sequences = still;
        if !ended.is_empty() {
            self.end(sequences, ended);
        }
        Ok(())
    }
}

/// How many tokens each sequence is fed in the next step.
fn plan(sequences: &[Sequence], now: Instant) -> Vec<usize> {
    let ready = |s: &Sequence| s.has_room() && s.due() <= now;
    let generating = |s: &Sequence| s.unfed().len() == 1;
    let mut left = if sequences.iter().any(|s| generating(s) && ready(s)) { PREFILL_BESIDE } else { PREFILL_ALONE };
    sequences
        .iter()
        .map(|s| {
            if !ready(s) {
                return 0;
            }
            if generating(s) {
                return 1;
            }
            let n = s.unfed().len().min(left);
            left -= n;
            n
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{attention::Heads, sampling::Sampling, sequence};

    /// A sequence with `unfed` tokens to go, generating if that is 1; its receiver reads nothing and has `unread` pieces.
    fn sequence(unfed: usize, unread: usize, now: Instant) -> (Sequence, tokio::sync::mpsc::Receiver<Piece>) {
        let (pieces, receiver) = sequence::channel();
        // One piece is the start.
        for _ in 1..unread {
            pieces.try_send(Piece::Failed(String::new())).expect("room");
        }
        let sampling = Sampling { temperature: 0.0, top_p: 1.0, seed: 0 };
        let (kept, replay, prefix, stop) = (Vec::new(), Vec::new(), String::new(), Vec::new());
        let job =
            Job { prompt: vec![0; unfed], kept, replay, prefix, answer_max: 9, sampling, stop, logprobs: None, pieces };
        let cache = Cache::new(1, Heads { query: 1, key: 1, length: 2 });
        (Sequence::start(job, cache, now, Duration::ZERO), receiver)
    }

    #[test]
    fn a_long_prompt_leaves_every_other_sequence_its_token() {
        let now = Instant::now();
        type Case<'a> = (&'a [(usize, usize)], &'a [usize]);
        // (unfed, unread), fed in the next step
        let cases: &[Case<'_>] = &[
            (&[(1, 1), (1000, 1), (10, 1), (1, 1)], &[1, PREFILL_BESIDE, 0, 1]),
            (&[(20, 1), (1, 1), (20, 1)], &[20, 1, PREFILL_BESIDE - 20]),
            (&[(1000, 1)], &[PREFILL_ALONE]),
            (&[(100, 1), (100, 1)], &[100, PREFILL_ALONE - 100]),
            (&[(1, 64), (1, 65), (1000, 1)], &[1, 0, PREFILL_BESIDE]),
            (&[(1, 65), (1000, 1)], &[0, PREFILL_ALONE]),
        ];
        for (given, want) in cases {
            let (sequences, _receivers): (Vec<_>, Vec<_>) =
                given.iter().map(|(unfed, unread)| sequence(*unfed, *unread, now)).unzip();
            assert_eq!(plan(&sequences, now), *want, "{given:?}");
        }
        let (early, _receiver) = sequence(1, 1, now + Duration::from_secs(1));
        assert_eq!(plan(&[early], now), [0]);
    }
}
