//! A job that was admitted: its events, and its money's way back.
//! Invariant: whatever becomes of the client, the reservation is settled to what the job cost, once its market says so.

use super::ApiError;
use super::budget::Rates;
use super::cache::{CacheState, Kept, Recording};
use super::day_log::Note;
use super::keys::Reservation;
use super::policy::Attempts;
use super::tokens_of;
use super::watch::Watch;
use crate::jobs::{JobEvent, JobHandle, Jobs};
use crate::metrics::Metrics;
use crate::openai::responses::Echo;
use spillway_ledger::{Credits, JobId};
use spillway_protocol::{Kind, Outcome};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// How long the outcome of a job whose client left is waited for.
const OUTCOME_WAIT: Duration = Duration::from_secs(300);
/// How often the job log is looked at for the outcome of a job whose events were cut.
const LOG_LOOK_EVERY: Duration = Duration::from_millis(250);

/// An endpoint of the client's that was translated into a chat.
#[derive(Clone, Debug)]
pub enum Translation {
    /// OpenAI's Responses, and what a response repeats of its request.
    Responses(Echo),
    /// Anthropic's Messages.
    Messages,
}

/// What the client asked for, as far as the answer depends on it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// The endpoint that the client called.
    pub endpoint: Kind,
    /// The endpoint that the job is for: another one where the client's is translated.
    pub kind: Kind,
    /// How the job's answer becomes one of the client's endpoint, where the two differ.
    pub translation: Option<Translation>,
    /// The model.
    pub model: String,
    /// Whether as a stream.
    pub stream: bool,
    /// Whether with usage at the stream's end.
    pub include_usage: bool,
}

/// What a request runs as.
#[derive(Debug)]
pub(super) enum Underway {
    /// One job.
    One(JobHandle),
    /// By a policy: one job after the other.
    Course(Box<Attempts>),
    /// An answer that was kept, given again.
    Kept(JobId, VecDeque<JobEvent>),
}

impl Underway {
    fn id(&self) -> JobId {
        match self {
            Self::One(handle) => handle.id(),
            Self::Course(attempts) => attempts.id(),
            Self::Kept(id, _) => *id,
        }
    }

    async fn next(&mut self) -> Option<JobEvent> {
        match self {
            Self::One(handle) => handle.next().await,
            Self::Course(attempts) => attempts.next().await,
            Self::Kept(_, events) => events.pop_front(),
        }
    }

    async fn leave(self) -> Option<Outcome> {
        match self {
            Self::One(handle) => handle.leave().await,
            Self::Course(attempts) => attempts.leave().await,
            Self::Kept(_, events) => events.into_iter().find_map(|event| match event {
                JobEvent::Ended(outcome) => Some(outcome),
                JobEvent::Placed { .. } | JobEvent::Chunk(_) => None,
            }),
        }
    }

    /// The job whose end the log will tell, and what those before it cost.
    fn behind(&self) -> (JobId, Credits) {
        match self {
            Self::One(handle) => (handle.id(), Credits::ZERO),
            Self::Course(attempts) => attempts.behind(),
            Self::Kept(id, _) => (*id, Credits::ZERO),
        }
    }
}

/// A job under way. Dropping it tells the market that the client left.
#[derive(Debug)]
pub struct AdmittedJob {
    id: JobId,
    asked: Asked,
    rates: Rates,
    handle: Option<Underway>,
    closing: Option<Closing>,
    cache: Option<CacheState>,
    recording: Option<Recording>,
}

impl AdmittedJob {
    pub(super) fn new(
        asked: Asked,
        handle: Underway,
        reservation: Reservation,
        note: Option<Note>,
        watch: Watch,
        jobs: Jobs,
        metrics: Arc<Metrics>,
    ) -> Self {
        metrics.job_begins();
        let (id, rates) = (handle.id(), reservation.rates());
        let model = asked.model.clone();
        let closing = Closing { id, kind: asked.kind, model, reservation, note, watch, jobs, metrics };
        Self { id, asked, rates, handle: Some(handle), closing: Some(closing), cache: None, recording: None }
    }

    /// An answer that was kept, given again.
    pub(super) fn again(
        id: JobId,
        asked: Asked,
        kept: &Kept,
        reservation: Reservation,
        watch: Watch,
        jobs: Jobs,
        metrics: Arc<Metrics>,
    ) -> Self {
        let outcome = Outcome {
            result: Ok(kept.finish.clone()),
            legs: Vec::new(),
            considered: Vec::new(),
            cost: Credits::ZERO,
            first_ms: Some(0),
            total_ms: 0,
        };
        let chunks = kept.chunks.iter().cloned().map(JobEvent::Chunk);
        let events = Underway::Kept(id, chunks.chain([JobEvent::Ended(outcome)]).collect());
        Self::new(asked, events, reservation, None, watch, jobs, metrics)
    }

    /// With what the cache has to do with it.
    pub(super) fn with_cache(mut self, cache: Option<CacheState>, recording: Option<Recording>) -> Self {
        self.cache = cache;
        self.recording = recording;
        self
    }

    /// What the cache did for it; `None` where the key has none.
    #[must_use]
    pub const fn cache(&self) -> Option<CacheState> {
        self.cache
    }

    /// The job.
    #[must_use]
    pub const fn id(&self) -> JobId {
        self.id
    }

    /// What the client asked for.
    #[must_use]
    pub const fn asked(&self) -> &Asked {
        &self.asked
    }

    /// How the key's limits per minute stood when the job was admitted.
    #[must_use]
    pub const fn rates(&self) -> Rates {
        self.rates
    }

    /// The client is told `error`, which is not the job's own. For before the job's end.
    pub(super) fn fail(&mut self, error: &ApiError) {
        if let Some(closing) = &mut self.closing {
            closing.watch.fail(error);
        }
    }

    /// The next event. [`JobEvent::Ended`] is the last; its cost is settled when it is returned. `None` after it, or if the
    /// client read so slowly that it was cut off, or if the market stopped.
    ///
    /// Cancel-safe: a dropped future loses no event.
    pub async fn next(&mut self) -> Option<JobEvent> {
        let event = self.handle.as_mut()?.next().await;
        if let (Some(event), Some(closing)) = (&event, &mut self.closing) {
            closing.watch.see(event);
        }
        match &event {
            Some(JobEvent::Placed { .. }) => {
                if let Some(recording) = &mut self.recording {
                    recording.placed();
                }
            }
            Some(JobEvent::Chunk(bytes)) => {
                if let Some(recording) = &mut self.recording {
                    recording.chunk(bytes);
                }
            }
            Some(JobEvent::Ended(outcome)) => {
                self.handle = None;
                if let (Some(recording), Ok(finish)) = (self.recording.take(), &outcome.result) {
                    recording.end(finish, outcome.cost);
                }
                if let Some(closing) = self.closing.take() {
                    closing.close(outcome);
                }
            }
            None => {
                let behind = self.handle.take().map(|handle| handle.behind());
                if let (Some(closing), Some((last, before))) = (self.closing.take(), behind) {
                    tokio::spawn(closing.close_by_log(last, before));
                }
            }
        }
        event
    }
}

impl Drop for AdmittedJob {
    fn drop(&mut self) {
        let (Some(handle), Some(closing)) = (self.handle.take(), self.closing.take()) else { return };
        // Without a runtime the node is going down, and the next start settles what is open.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (last, before) = handle.behind();
        runtime.spawn(async move {
            match tokio::time::timeout(OUTCOME_WAIT, handle.leave()).await {
                Ok(Some(outcome)) => closing.close(&outcome),
                Ok(None) | Err(_) => closing.close_by_log(last, before).await,
            }
        });
    }
}

/// What is left to do when a job ends.
#[derive(Debug)]
struct Closing {
    id: JobId,
    kind: Kind,
    model: String,
    reservation: Reservation,
    note: Option<Note>,
    watch: Watch,
    jobs: Jobs,
    metrics: Arc<Metrics>,
}

impl Closing {
    fn close(mut self, outcome: &Outcome) {
        self.metrics.job_ends(self.kind, Some(outcome));
        // The access log says the same, and more.
        if !self.watch.has_access_log() {
            self.say(outcome);
        }
        self.jobs.report(self.id, self.watch.report());
        self.watch.end(outcome);
        if let Some(note) = self.note {
            note.ended(outcome.legs.iter().map(|leg| leg.usage.output).sum(), outcome.cost);
        }
        let units = outcome.legs.iter().map(|leg| leg.usage.input.saturating_add(leg.usage.output)).sum();
        self.reservation.settle(outcome.cost, tokens_of(units));
    }

    fn say(&self, outcome: &Outcome) {
        let first = outcome.legs.first();
        let failure = outcome.result.as_ref().err();
        tracing::info!(
            job = %self.id,
            key = %self.reservation.key(),
            model = self.model,
            route = first.map_or("none", |leg| leg.route.as_str()),
            reason = failure.map_or_else(|| first.map_or("none", |leg| leg.reason.as_str()), |failure| failure.reason.as_str()),
            finish = outcome.result.as_deref().unwrap_or("none"),
            error = failure.map_or("", |failure| failure.message.as_str()),
            legs = outcome.legs.len(),
            cost_micro = outcome.cost.micro(),
            first_ms = outcome.first_ms,
            total_ms = outcome.total_ms,
            "job ended"
        );
    }

    /// For a job whose events ended before its outcome: the job log has it once the market is done with its last attempt.
    async fn close_by_log(self, last: JobId, before: Credits) {
        let looks = OUTCOME_WAIT.as_millis() / LOG_LOOK_EVERY.as_millis();
        for _ in 0..looks {
            match self.jobs.log(last) {
                Some(log) if log.status == "running" => {}
                Some(log) => {
                    self.metrics.job_ends(self.kind, None);
                    let cost = Credits::new(log.cost_micro.saturating_add(before.micro()));
                    tracing::info!(job = %self.id, cost_micro = cost.micro(), "a cut job ended");
                    self.watch.end_by_log(Some(&log));
                    if let Some(note) = self.note {
                        note.ended(log.legs.iter().map(|leg| leg.output).sum(), cost);
                    }
                    let units = log.legs.iter().map(|leg| leg.input.saturating_add(leg.output)).sum();
                    self.reservation.settle(cost, tokens_of(units));
                    return;
                }
                None => break,
            }
            tokio::time::sleep(LOG_LOOK_EVERY).await;
        }
        self.metrics.job_ends(self.kind, None);
        tracing::warn!(job = %self.id, "a job's outcome is unknown; all that was reserved for it is charged");
        self.watch.end_by_log(None);
        self.reservation.settle_in_full();
    }
}
