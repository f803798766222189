//! A request under way by a policy: one job after the other, as its [`Course`] says, looking to its client like one.
//! Invariants: the client gets pieces of one attempt only; what all attempts cost is what the request cost; dropping it leaves
//! the job under way.

use super::Policies;
use super::plan::job_for;
use crate::gateway::error::ApiError;
use crate::jobs::{Beside, JobEvent, JobHandle, Jobs, JobsFull};
use spillway_ledger::{Credits, JobId};
use spillway_protocol::policy::{Course, Effect, End, Event, Limit, NodeId};
use spillway_protocol::{Considered, Failure, Job, Leg, Outcome, Prefer, Reason};
use std::time::{Duration, Instant};

/// How long an attempt that was stopped may take to say what it cost.
const STOP_WAIT: Duration = Duration::from_secs(5);
/// How long a copy may be under way.
const SHADOW_WAIT: Duration = Duration::from_secs(300);

/// A request's attempts.
#[derive(Debug)]
pub struct Attempts {
    policies: Policies,
    course: Course,
    jobs: Jobs,
    /// What the client asked for; each attempt's job is made of it.
    base: Job,
    /// What was set aside, and what of it attempts that are over have used.
    most: Credits,
    /// What goes with each of them.
    beside: Beside,
    spent: Credits,
    legs: Vec<Leg>,
    /// Who was weighed for the last attempt that asked the market.
    considered: Vec<Considered>,
    current: Option<Current>,
    begun: Instant,
    first_ms: Option<u64>,
    /// A piece went to the client.
    committed: bool,
    /// How the last attempt failed.
    last: Option<Failure>,
    over: bool,
    /// There is no target for it: its end is yet to be told.
    none: bool,
}

#[derive(Debug)]
struct Current {
    handle: JobHandle,
    target: NodeId,
    attempt: u32,
    since: Instant,
    /// Which limit it broke, and until when its end is waited for.
    stopped: Option<(Limit, Instant)>,
}

/// The id of a request's nth attempt. The first is the request's own; what was promised for any of them is found by it.
fn attempt_id(id: JobId, attempt: u32) -> JobId {
    let mut bytes = id.0;
    bytes[15] = u8::try_from(attempt).unwrap_or(u8::MAX);
    JobId(bytes)
}

impl Attempts {
    /// The id of a request whose attempts are to be numbered.
    #[must_use]
    pub fn first_id(id: JobId) -> JobId {
        attempt_id(id, 0)
    }

    /// Every id that an attempt of the request may have.
    #[must_use]
    pub fn ids(id: JobId) -> std::ops::RangeInclusive<JobId> {
        attempt_id(id, 0)..=attempt_id(id, u32::from(u8::MAX))
    }

    /// Begins the first attempt.
    pub(super) fn begin(
        policies: Policies,
        mut course: Course,
        jobs: Jobs,
        base: Job,
        most: Credits,
        beside: Beside,
    ) -> Result<Self, JobsFull> {
        let now = policies.now();
        course.handle(now, Event::Begin, &mut policies.0.breakers.lock().expect("no holder panics"));
        let mut attempts = Self {
            policies,
            course,
            jobs,
            base,
            most,
            beside,
            spent: Credits::ZERO,
            legs: Vec::new(),
            considered: Vec::new(),
            current: None,
            begun: Instant::now(),
            first_ms: None,
            committed: false,
            last: None,
            over: false,
            none: false,
        };
        while let Some(effect) = attempts.course.poll() {
            match effect {
                Effect::Shadow => attempts.shadow(),
                Effect::Try { target, attempt } => {
                    let started = attempts.start(target, attempt);
                    if let Err(JobsFull) = started {
                        attempts.tell(Event::Left);
                        return Err(JobsFull);
                    }
                }
                Effect::Stop(_) => {}
                Effect::Over => attempts.none = true,
            }
        }
        Ok(attempts)
    }

    /// The request's id.
    #[must_use]
    pub fn id(&self) -> JobId {
        self.base.id
    }

    /// The attempt under way, or the last one, and what those before it cost.
    #[must_use]
    pub fn behind(&self) -> (JobId, Credits) {
        (self.current.as_ref().map_or(self.base.id, |current| current.handle.id()), self.spent)
    }

    fn tell(&mut self, event: Event) {
        let now = self.policies.now();
        self.course.handle(now, event, &mut self.policies.0.breakers.lock().expect("no holder panics"));
    }

    fn start(&mut self, target: NodeId, attempt: u32) -> Result<(), JobsFull> {
        let place = self.course.policy().target(target).expect("courses try targets");
        let mut job = job_for(&self.base, place).expect("it was made once before");
        job.id = attempt_id(self.base.id, attempt);
        if let (Some(target_ms), true) = (job.target_ms, attempt > 0) {
            // What is left of the time that the request gives its first text.
            let waited = u32::try_from(self.begun.elapsed().as_millis()).unwrap_or(u32::MAX);
            job.target_ms = Some(target_ms.saturating_sub(waited).max(1));
        }
        let handle = self.jobs.submit(job, self.beside.clone())?;
        self.current = Some(Current { handle, target, attempt, since: Instant::now(), stopped: None });
        Ok(())
    }

    /// Sends a copy where its answer is read and thrown away; the key does not pay for it.
    fn shadow(&self) {
        let Some(shadow) = &self.course.policy().shadow else { return };
        let Ok(permit) = std::sync::Arc::clone(&self.policies.0.shadows).try_acquire_owned() else {
            return tracing::debug!("a copy was not made: too many are under way");
        };
        let Ok(mut job) = job_for(&self.base, &shadow.target) else { return };
        let mut id = [0; 16];
        if getrandom::fill(&mut id).is_err() {
            return;
        }
        (job.id, job.prefer) = (JobId(id), Prefer::Own);
        let Ok(mut handle) = self.jobs.submit(job, Beside::default()) else { return };
        tokio::spawn(async move {
            let _permit = permit;
            let read = async { while let Some(JobEvent::Placed { .. } | JobEvent::Chunk(_)) = handle.next().await {} };
            // Dropping the handle ends what takes too long.
            let _ = tokio::time::timeout(SHADOW_WAIT, read).await;
        });
    }

    /// The next event; as [`JobHandle::next`]. Cancel-safe: nothing that was received is lost.
    pub async fn next(&mut self) -> Option<JobEvent> {
        loop {
            if std::mem::take(&mut self.none) {
                self.over = true;
                return Some(self.end(None));
            }
            if let Some(ended) = self.act() {
                return Some(ended);
            }
            if self.over && self.current.is_none() {
                return None;
            }
            let stopped = self.current.as_ref().and_then(|current| current.stopped).map(|(_, until)| until);
            let deadline = self.course.deadline().map(|at| self.policies.instant(at));
            let wake = stopped.into_iter().chain(deadline).min();
            let received = match (&mut self.current, wake) {
                (Some(current), None) => Some(current.handle.next().await),
                (Some(current), Some(wake)) => tokio::select! {
                    biased;
                    event = current.handle.next() => Some(event),
                    () = tokio::time::sleep_until(wake.into()) => None,
                },
                (None, Some(wake)) => {
                    tokio::time::sleep_until(wake.into()).await;
                    None
                }
                (None, None) => return None,
            };
            let is_stopped = stopped.is_some();
            match received {
                None => match stopped {
                    Some(until) if Instant::now() >= until => self.lost(),
                    Some(_) | None => self.tell(Event::Tick),
                },
                Some(None) => {
                    // Cut: what it cost is in the log.
                    self.over = true;
                    self.tell(Event::Left);
                    return None;
                }
                Some(Some(JobEvent::Placed { .. } | JobEvent::Chunk(_))) if is_stopped => {}
                Some(Some(JobEvent::Placed { leg, route, provider, reason })) => {
                    self.said();
                    let before = u32::try_from(self.legs.len()).unwrap_or(u32::MAX);
                    return Some(JobEvent::Placed { leg: leg.saturating_add(before), route, provider, reason });
                }
                Some(Some(JobEvent::Chunk(bytes))) => {
                    self.said();
                    return Some(JobEvent::Chunk(bytes));
                }
                Some(Some(JobEvent::Ended(outcome))) => {
                    if let Some(ended) = self.ended(outcome) {
                        return Some(ended);
                    }
                }
            }
        }
    }

    fn said(&mut self) {
        self.committed = true;
        if self.first_ms.is_none() {
            self.first_ms = Some(millis(self.begun.elapsed()));
        }
        self.tell(Event::Output);
    }

    /// Does what the course asks for. Gives the request's end, if that is it.
    fn act(&mut self) -> Option<JobEvent> {
        while let Some(effect) = self.course.poll() {
            match effect {
                Effect::Shadow => self.shadow(),
                Effect::Try { target, attempt } => {
                    if self.dearest(target) > self.most.saturating_sub(self.spent) && attempt > 0 {
                        // What is left of what was set aside does not cover it: how the last one ended is how it ends.
                        self.tell(Event::Left);
                        self.over = true;
                        return Some(self.end(None));
                    }
                    if self.start(target, attempt).is_err() {
                        let message = "too many jobs wait on this node already".to_owned();
                        let reason = Reason::QueueFull;
                        self.last =
                            Some(Failure { reason, retry_after_ms: Some(1000), status: None, upstream: None, message });
                        self.tell(Event::Ended(End::Failed { status: 429, retry_after: None }));
                    }
                }
                Effect::Stop(limit) => {
                    if let Some(current) = &mut self.current {
                        current.handle.stop();
                        current.stopped = Some((limit, Instant::now() + STOP_WAIT));
                    }
                }
                Effect::Over => {
                    self.over = true;
                    return Some(self.end(None));
                }
            }
        }
        None
    }

    /// The most that an attempt at a target costs.
    fn dearest(&self, target: NodeId) -> Credits {
        let place = self.course.policy().target(target).expect("courses try targets");
        let models = self.jobs.models();
        let job = job_for(&self.base, place).ok();
        let cost = job.and_then(|job| super::plan::cost_max(&self.policies, &job, &models).ok());
        cost.unwrap_or(Credits::new(u64::MAX))
    }

    /// An attempt ended.
    fn ended(&mut self, outcome: Outcome) -> Option<JobEvent> {
        let current = self.current.take().expect("only what is under way ends");
        self.spent = Credits::new(self.spent.micro().saturating_add(outcome.cost.micro()));
        self.legs.extend(outcome.legs);
        if !outcome.considered.is_empty() {
            self.considered = outcome.considered;
        }
        let failure = match outcome.result {
            Ok(finish) => {
                self.policies.count(self.course.scope(), "done");
                self.tell(Event::Ended(End::Done));
                self.over = true;
                return Some(self.end(Some(finish)));
            }
            Err(failure) => failure,
        };
        let failure = match current.stopped {
            Some((limit, _)) => late(limit),
            None => failure,
        };
        self.failed(&current, failure);
        None
    }

    /// An attempt that was stopped does not say what it cost: it is taken to have cost all that it could.
    fn lost(&mut self) {
        let Some(current) = self.current.take() else { return };
        self.spent = Credits::new(
            self.spent.micro().saturating_add(self.dearest(current.target).micro()).min(self.most.micro()),
        );
        let limit = current.stopped.map_or(Limit::Total, |(limit, _)| limit);
        self.failed(&current, late(limit));
    }

    fn failed(&mut self, current: &Current, failure: Failure) {
        let status = failure.upstream.unwrap_or_else(|| ApiError::from(&failure).status);
        let retry_after = failure.retry_after_ms.map(Duration::from_millis);
        let result = match (failure.reason, status) {
            (Reason::Timeout, _) => "late",
            (_, 429) => "429",
            (_, 400..=499) => "4xx",
            _ => "5xx",
        };
        self.policies.count(self.course.scope(), result);
        tracing::info!(
            job = %self.base.id,
            attempt = current.attempt,
            target = self.course.policy().target(current.target).map_or("", |target| &target.name),
            status,
            reason = failure.reason.as_str(),
            ms = millis(current.since.elapsed()),
            "an attempt failed"
        );
        self.last = Some(failure);
        self.tell(Event::Ended(End::Failed { status, retry_after }));
    }

    /// How the request ended.
    fn end(&mut self, finish: Option<String>) -> JobEvent {
        let none = || Failure {
            reason: Reason::NoPlace,
            retry_after_ms: None,
            status: None,
            upstream: None,
            message: "no target of the policy is for this request".into(),
        };
        let result = finish.ok_or_else(|| self.last.take().unwrap_or_else(none));
        let outcome = self.outcome(result);
        self.jobs.ended(self.base.id, &outcome);
        JobEvent::Ended(outcome)
    }

    fn outcome(&mut self, result: Result<String, Failure>) -> Outcome {
        Outcome {
            result,
            legs: std::mem::take(&mut self.legs),
            considered: std::mem::take(&mut self.considered),
            cost: self.spent,
            first_ms: self.first_ms,
            total_ms: millis(self.begun.elapsed()),
        }
    }

    /// The client is gone; as [`JobHandle::leave`].
    pub async fn leave(mut self) -> Option<Outcome> {
        self.tell(Event::Left);
        let left = || Failure {
            reason: Reason::ClientLeft,
            retry_after_ms: None,
            status: None,
            upstream: None,
            message: "the client left".into(),
        };
        let mut result = Err(left());
        if let Some(current) = self.current.take() {
            let outcome = current.handle.leave().await?;
            self.spent = Credits::new(self.spent.micro().saturating_add(outcome.cost.micro()));
            self.legs.extend(outcome.legs);
            if !outcome.considered.is_empty() {
                self.considered = outcome.considered;
            }
            result = outcome.result;
        }
        let outcome = self.outcome(result);
        self.jobs.ended(self.base.id, &outcome);
        Some(outcome)
    }
}

fn late(limit: Limit) -> Failure {
    let (reason, message) = (Reason::Timeout, limit.as_str().to_owned());
    Failure { reason, retry_after_ms: None, status: None, upstream: None, message }
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}
