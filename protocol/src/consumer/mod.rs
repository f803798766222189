//! The consuming half of a peer: finds a place for each of its clients' jobs, pays for it, and goes on elsewhere if it fails.
//! Invariants: a submitted job ends exactly once; its client gets every byte of the answer once and in order;
//! no voucher is sent before it is to be kept on disk.

mod hedge;
mod market;
mod place;
mod remote;
mod sessions;

use crate::context::{Alarm, Context};
use crate::directory::Listing;
use crate::event::{BackendError, Effect, LedgerCommand, ProbeId, StreamId, WorkId};
use crate::job::{
    CONSIDERED_MAX, Considered, Failure, Job, LEGS_MAX, Leg, OUTPUT_UNITS_MAX, Outcome, Prefer, Readiness, Reason,
    Route, TRIES_MAX,
};
use crate::offer::Quote;
use crate::own::{Own, OwnState, Start, WorkFor};
use crate::paying::{LegEnd, LegMoney, PayingSessions};
use crate::prefix::{self, NAMES_MAX, PREFIX_UNITS};
use crate::record::{Paying, Record, Spending};
use crate::reputation::Experience;
use crate::router::{Estimate, Gate, OwnView, spill};
use crate::time::Now;
use crate::wire::{Abort, Frame, Load, OpenJob, Probe, ProbeReply, Refusal};
use market::Markets;
use rand::Rng as _;
use spillway_ledger::{
    Account, CoSigned, Credits, Digest, JobId, NodeId, Price, PublicKey, Receipt, SessionId, Signed, SignedBytes, Usage,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How often a job in the own queue looks at the market again.
const REQUEUE_EVERY: Duration = Duration::from_secs(2);
/// Last looks of one job: after each place that refused it in its last look, the others are asked once more.
const LAST_LOOKS_MAX: u32 = 16;
/// Places that may turn one job down after they had quoted for it.
const REFUSALS_MAX: u32 = 1024;
/// A job in the queue does not look again sooner than this, whatever was promised.
const RELOOK_MIN: Duration = Duration::from_millis(50);
/// How long a stranger may be silent whose word counts for nothing now, beside four round trips: half as long again as the time
/// between two signs of life.
const DOUBT_WAIT: Duration = Duration::from_millis(600);
/// The round trip assumed of it if none was measured, in milliseconds.
const DOUBT_RTT_MS: f64 = 150.0;
/// How long to wait for the first probe's answer when none came in time to have a choice.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a client should wait before it tries again when all are busy, in milliseconds.
const RETRY_AFTER_MS: u64 = 1_000;
/// The longest a client is told to wait, in milliseconds.
const RETRY_AFTER_MAX_MS: u64 = 60_000;

/// A provider that a job may go to.
#[derive(Clone, Debug)]
struct Candidate {
    node: NodeId,
    account: Account,
    price: Price,
    addresses: Vec<String>,
}

impl From<&Listing> for Candidate {
    fn from(listing: &Listing) -> Self {
        Self {
            node: listing.node(),
            account: listing.account(),
            price: listing.model().price,
            addresses: listing.offer.value().addresses.clone(),
        }
    }
}

/// A candidate with a quote that holds for the job, and what is expected of it.
#[derive(Clone, Debug)]
struct Quoted {
    candidate: Candidate,
    quote: Signed<Quote>,
    expected: Estimate,
}

/// A probe under way.
#[derive(Clone, Debug)]
struct Asked {
    /// The job that waits for it, if any still does.
    job: Option<JobId>,
    model: String,
    candidate: Candidate,
    /// The names of the prompt's prefix blocks.
    prefix: Vec<u64>,
    sent: Now,
}

#[derive(Debug)]
struct Active {
    job: Job,
    submitted: Now,
    /// The text delivered so far; what a continuation goes on from.
    delivered: Vec<u8>,
    /// When the first event went to the client: the commit point.
    first: Option<Now>,
    legs: Vec<Leg>,
    /// Who was weighed in the last decision that said where to go, or that nobody is left.
    considered: Vec<Considered>,
    tried: BTreeSet<NodeId>,
    /// Places that quoted and then refused.
    refusals: u32,
    /// Probed in the present look at the market.
    asked: Vec<NodeId>,
    /// Rounds of probes in the present look.
    rounds: u32,
    /// The present look is the last: the busy are asked again, too.
    thorough: bool,
    /// Refusals before the last look began, and last looks so far: what was heard before a place refused is old.
    last_look: (u32, u32),
    /// When own hardware is expected to give the first text, in milliseconds from now, if the job could wait for it.
    own_first_ms: Option<f64>,
    /// Own hardware failed this job: it is not tried again.
    own_failed: bool,
    /// What it said then, and the HTTP status it said it with.
    own_said: Option<Said>,
    /// Why the job is not where it was tried last.
    last: Option<Reason>,
    /// When it gives up waiting for an own slot; set once.
    queued_until: Option<Now>,
    stage: Stage,
}

#[derive(Debug)]
enum Stage {
    /// Between two stages, within one call.
    Placing,
    /// Waits for an own slot.
    Queued,
    /// Runs on own hardware.
    Own { work: WorkId, hedge: Option<WorkId>, units: u64, cost: Credits, placed: bool, reason: Reason },
    /// Waits for quotes.
    Probing { waiting: Vec<ProbeId>, sent: Now, reason: Reason },
    /// Waits for the ledger to open a session with the best provider.
    Opening { business: [u8; 16], best: Box<Quoted>, rest: Vec<Quoted>, reason: Reason },
    /// At a provider.
    Remote(Box<Remote>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Connecting,
    Sent,
    Accepted,
}

#[derive(Debug)]
struct Remote {
    stream: StreamId,
    candidate: Candidate,
    quote: Signed<Quote>,
    session: SessionId,
    rest: Vec<Quoted>,
    reason: Reason,
    phase: Phase,
    /// The next chunk's number.
    sequence: u32,
    /// How much of the answer earlier legs delivered.
    prefix: usize,
    placed: bool,
    /// What was expected when it was chosen.
    expected: Estimate,
    /// When the leg began.
    opened: Now,
    /// When the stream was asked for, or, once that is open, the job was sent.
    asked: Now,
    /// When its first text came.
    first: Option<Now>,
    /// It refused: when it said to come again, and its load.
    refused: Option<(Now, Load)>,
    heard: Now,
    /// The client is gone; only the receipt is awaited.
    leaving: bool,
}

/// The consuming half.
#[derive(Debug, Default)]
pub(crate) struct Consumer {
    jobs: BTreeMap<JobId, Active>,
    queue: VecDeque<JobId>,
    streams: BTreeMap<StreamId, JobId>,
    probes: BTreeMap<ProbeId, Asked>,
    markets: Markets,
    paying: PayingSessions,
    opening: BTreeMap<[u8; 16], sessions::Opening>,
    ahead: sessions::Ahead,
    next_stream: u64,
    next_probe: u64,
}

impl Consumer {
    /// Takes back a session that this node paid before a restart. Legs that were under way are over;
    /// whatever was promised for them may still be claimed.
    pub(crate) fn restore(&mut self, cx: &mut Context, mut record: Paying) {
        record.spent = record.spent.max(record.promised);
        self.schedule_refund(cx, &record);
        self.paying.insert(record);
    }

    fn schedule_refund(&self, cx: &mut Context, record: &Paying) {
        let at = Now::from_ms(record.expires_ms).after(cx.config.session_grace).after(Duration::from_secs(1));
        cx.timers.set(Alarm::Refund(record.session), at);
    }

    // ---- a job's beginning ----

    pub(crate) fn submit(&mut self, cx: &mut Context, job: Job) {
        let id = job.id;
        if self.jobs.contains_key(&id) {
            return; // The driver numbers jobs at random; a repeat is the same submission.
        }
        let bad = job.alternatives.len() > crate::job::ALTERNATIVES_MAX || job.preferences.check().is_err();
        let refused = if bad {
            Some((Reason::PriceCap, "more alternatives or preferences than a job may have"))
        } else if self.jobs.len() >= cx.config.jobs_max {
            Some((Reason::QueueFull, "too many jobs are under way on this node"))
        } else if job.output_max > OUTPUT_UNITS_MAX || job.cost_max().is_none() {
            Some((Reason::PriceCap, "output_max or price_max is beyond what can be counted"))
        } else {
            None
        };
        if let Some((reason, message)) = refused {
            let retry_after_ms = (reason == Reason::QueueFull).then_some(RETRY_AFTER_MS);
            let failure = Failure { reason, retry_after_ms, status: None, upstream: None, message: message.into() };
            let outcome = Outcome {
                result: Err(failure),
                legs: Vec::new(),
                considered: Vec::new(),
                cost: Credits::ZERO,
                first_ms: None,
                total_ms: 0,
            };
            cx.emit(Effect::Ended { job: id, outcome });
            return;
        }
        let active = Active {
            job,
            submitted: cx.now,
            delivered: Vec::new(),
            first: None,
            legs: Vec::new(),
            considered: Vec::new(),
            tried: BTreeSet::new(),
            refusals: 0,
            asked: Vec::new(),
            rounds: 0,
            thorough: false,
            last_look: (0, 0),
            own_first_ms: None,
            own_failed: false,
            own_said: None,
            last: None,
            queued_until: None,
            stage: Stage::Placing,
        };
        self.jobs.insert(id, active);
        self.place(cx, id);
    }

    /// Decides where the job goes next: own hardware first, then the network, then the own queue.
    fn place(&mut self, cx: &mut Context, id: JobId) {
        self.foresee(cx, id);
        let Some(active) = self.jobs.get_mut(&id) else { return };
        active.stage = Stage::Placing;
        if active.is_spent() {
            let reason = active.last.unwrap_or(Reason::ProviderRefused);
            return self.fail(cx, id, reason, None, "every place that was tried failed");
        }
        let own = active.own_state(&cx.own);
        let target_ms = active.target_ms(cx.now);
        let active = &self.jobs[&id];
        let gate = spill::gate(&own_view(cx, &active.job, own, &self.queue, &self.jobs), target_ms);
        let active = self.jobs.get_mut(&id).expect("seen above");
        active.own_first_ms = None;
        let reason = match (gate, own) {
            (Gate::Own, _) => return self.run_own(cx, id),
            (Gate::Preempt, _) => {
                cx.make_way(&active.job.model);
                return self.run_own(cx, id);
            }
            (Gate::Spill { own_first_ms }, _) => {
                active.own_first_ms = Some(own_first_ms);
                Reason::OwnSaturated
            }
            (Gate::Nothing, OwnState::Unhealthy) => Reason::OwnUnhealthy,
            (Gate::Nothing, OwnState::Free | OwnState::Saturated | OwnState::Missing) => Reason::ModelNotLocal,
        };
        match (active.job.prefer, own) {
            (Prefer::Own, OwnState::Saturated | OwnState::Free) => {
                if self.queue.len() >= cx.config.queue_max {
                    let reason = active.last.unwrap_or(Reason::OwnSaturated);
                    let retry = Some(RETRY_AFTER_MS);
                    return self.fail(cx, id, reason, retry, "all slots are taken and the queue is full");
                }
                self.enqueue(cx, id, None);
            }
            (Prefer::Own, OwnState::Unhealthy) => {
                self.fail(cx, id, reason, Some(RETRY_AFTER_MS), "the own backend does not answer");
            }
            (Prefer::Own, OwnState::Missing) => {
                if active.first.is_none() && !active.job.alternatives.is_empty() {
                    active.next_model();
                    return self.place(cx, id);
                }
                let reason = active.last.unwrap_or(Reason::LabelForbidsNetwork);
                self.fail(cx, id, reason, None, "the key keeps this job on own hardware, which cannot serve it");
            }
            (Prefer::OwnFirst | Prefer::Any, _) => {
                let reason = active.last.unwrap_or(reason);
                active.asked.clear();
                active.rounds = 0;
                active.thorough = false;
                self.look(cx, id, reason);
            }
        }
    }

    fn run_own(&mut self, cx: &mut Context, id: JobId) {
        self.make_room(cx, id);
        let late_at = self.late_at(cx, id);
        let work = self.start_own(cx, id, WorkFor::Owner(id), None);
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let reason = match (active.queued_until, active.last) {
            (Some(_), _) if active.first.is_none() => Reason::OwnQueued,
            (_, Some(last)) => last,
            (_, None) => Reason::OwnFree,
        };
        active.stage = Stage::Own { work, hedge: None, units: 0, cost: Credits::ZERO, placed: false, reason };
        match late_at {
            Some(at) => cx.timers.set(Alarm::Job(id), at),
            None => cx.timers.clear(Alarm::Job(id)),
        }
    }

    /// Starts work on the job on own hardware, beside some that is late or for the first time.
    fn start_own(&self, cx: &mut Context, id: JobId, whose: WorkFor, beside: Option<WorkId>) -> WorkId {
        let Active { job, delivered, .. } = &self.jobs[&id];
        let whole = job.whole && delivered.is_empty();
        let start = Start {
            model: &job.model,
            whose,
            prompt: job.prompt_units() + delivered.len() as u64,
            names: job.prefix.clone(),
            output_max: job.output_max.saturating_sub(delivered.len() as u64),
            continuable: job.continuable,
            whole,
        };
        let work = cx.own.start(cx.now, start);
        cx.emit(Effect::Run {
            work,
            model: job.model.clone(),
            kind: job.kind,
            body: job.body.clone(),
            prefix: delivered.clone(),
            own: true,
            whole,
            choice: job.own.clone(),
            job: Some(id),
            beside,
        });
        work
    }

    /// Puts the job into the queue, by the time it came. The caller has seen that there is room.
    fn enqueue(&mut self, cx: &mut Context, id: JobId, free_at: Option<Now>) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let until = *active.queued_until.get_or_insert(cx.now.after(cx.config.queue_wait));
        active.stage = Stage::Queued;
        // Whoever could also go to strangers looks at the market again, at the latest before giving up.
        let again =
            cx.now.after(REQUEUE_EVERY).min(free_at.map_or(Now(u64::MAX), |at| at.max(cx.now.after(RELOOK_MIN))));
        let look = if active.job.prefer == Prefer::Own { until } else { until.min(again) };
        cx.timers.set(Alarm::Job(id), look);
        let submitted = active.submitted;
        let later = |other: &JobId| self.jobs.get(other).is_some_and(|other| other.submitted > submitted);
        let place = self.queue.iter().position(later).unwrap_or(self.queue.len());
        self.queue.insert(place, id);
    }

    /// Starts queued jobs whose model has a free slot, oldest first.
    pub(crate) fn drain(&mut self, cx: &mut Context) {
        let mut index = 0;
        while let Some(id) = self.queue.get(index).copied() {
            if self.jobs.get(&id).expect("a queued job is under way").own_state(&cx.own) == OwnState::Free {
                self.queue.remove(index);
                self.run_own(cx, id);
            } else {
                index += 1;
            }
        }
        if std::mem::take(&mut cx.own.freed) {
            self.call_back(cx);
        }
    }

    /// A slot became free here: of the jobs that only look at the market yet, the oldest that may have it does.
    fn call_back(&mut self, cx: &mut Context) {
        loop {
            let looking = self.jobs.iter().filter(|(_, active)| {
                matches!(active.stage, Stage::Probing { .. }) && active.own_state(&cx.own) == OwnState::Free
            });
            let oldest = looking.min_by_key(|(id, active)| (active.submitted, **id)).map(|(id, _)| *id);
            let Some(id) = oldest else { return };
            self.stop_probing(id);
            self.run_own(cx, id);
        }
    }

    /// How many jobs wait for an own slot, by model.
    pub(crate) fn waiting(&self, own: &Own) -> BTreeMap<String, u32> {
        let mut waiting = BTreeMap::new();
        for job in self.queue.iter().filter_map(|id| self.jobs.get(id)).filter(|active| active.own_may(own)) {
            match waiting.get_mut(&job.job.model) {
                Some(count) => *count += 1,
                None => _ = waiting.insert(job.job.model.clone(), 1),
            }
        }
        waiting
    }

    // ---- on own hardware ----

    pub(crate) fn output(&mut self, cx: &mut Context, id: JobId, work: WorkId, bytes: Vec<u8>, text: &[u8]) {
        if !self.speaks(cx, id, work) {
            return;
        }
        let Some(active) = self.jobs.get_mut(&id) else { return };
        let Stage::Own { units, placed, reason, .. } = &mut active.stage else { return };
        *units += text.len() as u64;
        active.delivered.extend_from_slice(text);
        let leg = u32::try_from(active.legs.len()).expect("at most TRIES_MAX");
        let place = Placed { route: Route::Own, provider: None, reason: *reason };
        active.first.get_or_insert(cx.now);
        deliver(cx, id, leg, placed, bytes, place);
    }

    /// What the work costs, as far as it is known.
    pub(crate) fn charged(&mut self, id: JobId, work: WorkId, in_all: Credits) {
        let Some(active) = self.jobs.get_mut(&id) else { return };
        if let Stage::Own { work: running, cost, .. } = &mut active.stage
            && *running == work
        {
            *cost = in_all;
        }
    }

    pub(crate) fn finished(&mut self, cx: &mut Context, id: JobId, work: WorkId, finish: String) {
        if !self.hedge_ended(cx, id, work) && self.end_own(cx, id, work) {
            self.finish(cx, id, Ok(finish));
        }
    }

    pub(crate) fn backend_failed(&mut self, cx: &mut Context, id: JobId, work: WorkId, error: BackendError) {
        if self.hedge_ended(cx, id, work) {
            return;
        }
        let is_rejected = matches!(error, BackendError::Rejected { .. });
        if !is_rejected && self.take_over(cx, id, work) {
            return; // Another one has it already.
        }
        if !self.end_own(cx, id, work) {
            return;
        }
        let active = self.jobs.get_mut(&id).expect("end_own saw it");
        let (reason, upstream, asks_ms, message) = match error {
            BackendError::Rejected { status, message } => {
                let failure = Failure {
                    reason: Reason::UpstreamError,
                    retry_after_ms: None,
                    status: Some(status),
                    upstream: Some(status),
                    message,
                };
                return self.finish(cx, id, Err(failure));
            }
            BackendError::Busy { retry_after_ms } => {
                (Reason::Upstream429, Some(429), retry_after_ms, "the own backend is rate-limited".to_owned())
            }
            BackendError::Answered { status, retry_after_ms, message } => {
                (Reason::UpstreamError, Some(status), retry_after_ms, message)
            }
            BackendError::Failed(why) => (Reason::UpstreamError, None, None, why),
        };
        active.own_failed = true;
        let asks_ms = asks_ms.map(|ms| ms.min(RETRY_AFTER_MAX_MS));
        active.own_said = Some(Said { message: message.clone(), upstream, asks_ms });
        active.last = Some(reason);
        let stays = active.job.prefer == Prefer::Own || (active.first.is_some() && !active.job.continuable);
        if stays {
            let retry = asks_ms.or((reason == Reason::Upstream429).then_some(RETRY_AFTER_MS));
            let failure = Failure { reason, retry_after_ms: retry, status: None, upstream, message };
            return self.finish(cx, id, Err(failure));
        }
        self.place(cx, id);
    }

    /// Ends the leg on own hardware, if it is this work. Says whether it was.
    fn end_own(&mut self, cx: &mut Context, id: JobId, work: WorkId) -> bool {
        let Some(active) = self.jobs.get_mut(&id) else { return false };
        let Stage::Own { work: running, hedge, units, cost, reason, .. } = active.stage else { return false };
        if running != work {
            return false;
        }
        if let Some(hedge) = hedge {
            hedge::stop(cx, hedge);
        }
        cx.own.finish(cx.now, work);
        let prefix = active.delivered.len() as u64 - units;
        let usage = Usage { input: active.job.prompt_units() + prefix, cached: 0, output: units };
        active.legs.push(Leg { route: Route::Own, provider: None, reason, usage, cost });
        active.stage = Stage::Placing;
        true
    }

    // ---- a job's end ----

    pub(crate) fn client_left(&mut self, cx: &mut Context, id: JobId) {
        let Some(active) = self.jobs.get_mut(&id) else { return }; // It ended meanwhile.
        match &mut active.stage {
            Stage::Own { work, .. } => {
                let work = *work;
                cx.emit(Effect::Stop(work));
                self.end_own(cx, id, work);
                self.finish_left(cx, id);
            }
            Stage::Remote(remote) if remote.phase == Phase::Connecting => {
                self.end_leg(cx, id, LegEnd::Void);
                self.finish_left(cx, id);
            }
            Stage::Remote(remote) => {
                if !remote.leaving {
                    remote.leaving = true;
                    let stream = remote.stream;
                    cx.emit(Effect::Send { stream, frame: Frame::Cancel });
                    cx.timers.set(Alarm::Job(id), cx.now.after(cx.config.silence_max));
                }
            }
            Stage::Placing | Stage::Queued | Stage::Probing { .. } | Stage::Opening { .. } => self.finish_left(cx, id),
        }
    }

    fn finish_left(&mut self, cx: &mut Context, id: JobId) {
        self.fail(cx, id, Reason::ClientLeft, None, "the client left");
    }

    fn fail(&mut self, cx: &mut Context, id: JobId, reason: Reason, retry_after_ms: Option<u64>, message: &str) {
        let message = message.to_owned();
        self.finish(cx, id, Err(Failure { reason, retry_after_ms, status: None, upstream: None, message }));
    }

    fn finish(&mut self, cx: &mut Context, id: JobId, result: Result<String, Failure>) {
        let active = self.jobs.remove(&id).expect("a job ends once");
        cx.timers.clear(Alarm::Job(id));
        self.queue.retain(|queued| *queued != id);
        match active.stage {
            Stage::Probing { waiting, .. } => {
                for probe in waiting {
                    if let Some(asked) = self.probes.get_mut(&probe) {
                        asked.job = None;
                    }
                }
            }
            Stage::Opening { business, .. } => {
                if let Some(opening) = self.opening.get_mut(&business) {
                    opening.waiting.retain(|waiting| *waiting != id);
                }
            }
            Stage::Placing | Stage::Queued | Stage::Own { .. } | Stage::Remote(_) => {}
        }
        let outcome = Outcome {
            result,
            cost: total_cost(&active.legs),
            legs: active.legs,
            considered: active.considered,
            first_ms: active.first.map(|first| millis(first.since(active.submitted))),
            total_ms: millis(cx.now.since(active.submitted)),
        };
        cx.emit(Effect::Ended { job: id, outcome });
    }

    /// A step took too long.
    pub(crate) fn overdue(&mut self, cx: &mut Context, id: JobId) {
        let Some(active) = self.jobs.get_mut(&id) else { return };
        match &mut active.stage {
            Stage::Queued if active.job.prefer == Prefer::Own => {
                let reason = active.last.unwrap_or(Reason::OwnSaturated);
                self.fail(cx, id, reason, Some(RETRY_AFTER_MS), "waited too long for a free slot");
            }
            Stage::Queued => self.look_again(cx, id),
            Stage::Probing { reason, .. } => {
                let reason = *reason;
                self.look(cx, id, reason);
            }
            Stage::Opening { business, .. } => {
                let dead = cx.woke.after(cx.config.open_wait);
                if cx.now < dead {
                    // This node slept: the ledger's word may be here already.
                    return cx.timers.set(Alarm::Job(id), dead);
                }
                let business = *business;
                if let Some(opening) = self.opening.get_mut(&business) {
                    opening.waiting.retain(|waiting| *waiting != id);
                }
                if let Some((best, rest, _)) = self.take_opening(id, business) {
                    let active = self.jobs.get_mut(&id).expect("the stage was just taken");
                    active.last = Some(Reason::NoDeposit);
                    active.tried.insert(best.candidate.node);
                    self.next_quote(cx, id, rest, Reason::NoDeposit);
                }
            }
            Stage::Remote(remote) if remote.leaving => {
                self.leg_failed(cx, id, Reason::ClientLeft, None, Bill::Unknown);
            }
            Stage::Remote(remote) => {
                let node = &remote.candidate.node;
                let market = self.markets.find(&active.job.model);
                let dead = remote.dead_at(cx, market.is_some_and(|market| market.router.doubts(node)));
                if cx.now < dead {
                    return cx.timers.set(Alarm::Job(id), dead);
                }
                self.leg_failed(cx, id, Reason::ProviderStalled, Some(Experience::Stalled), Bill::Unknown);
            }
            Stage::Own { .. } => self.late(cx, id),
            Stage::Placing => {}
        }
    }
}

impl Remote {
    /// When it is given up if nothing more is heard of it. Signs of life alone do not keep a job that was not accepted.
    fn dead_at(&self, cx: &Context, is_doubted: bool) -> Now {
        let heard = self.heard.max(cx.woke);
        let most = self.asked.max(cx.woke).after(cx.config.open_wait);
        match self.phase {
            Phase::Accepted => heard.after(cx.config.silence_max),
            Phase::Connecting | Phase::Sent if is_doubted => {
                heard.after(doubt_wait(cx, &self.candidate.node)).min(most)
            }
            Phase::Connecting => most,
            Phase::Sent => heard.after(cx.config.silence_max).min(most),
        }
    }
}

/// How long a doubted stranger may be silent before it has taken a job.
fn doubt_wait(cx: &Context, node: &NodeId) -> Duration {
    let rtt_ms = cx.reputation.rtt_ms(node).unwrap_or(DOUBT_RTT_MS);
    DOUBT_WAIT + Duration::from_secs_f64(4.0 * rtt_ms / 1e3)
}

/// What an own backend said as it failed.
#[derive(Debug, Default)]
struct Said {
    message: String,
    /// Its HTTP status.
    upstream: Option<u16>,
    /// When it says that it is worth trying again, in milliseconds.
    asks_ms: Option<u64>,
}

impl Active {
    /// What is left of the time that the job gives its first text, in milliseconds.
    fn target_ms(&self, now: Now) -> Option<f64> {
        let waited_ms = now.since(self.submitted).as_secs_f64() * 1e3;
        self.job.target_ms.map(|target| (f64::from(target) - waited_ms).max(0.0))
    }

    /// Whether own hardware may have the job.
    fn own_may(&self, own: &Own) -> bool {
        let can = self.delivered.is_empty() || own.goes_on(&self.job.model, self.job.kind);
        can && !self.own_failed && self.job.preferences.allows_own()
    }

    /// Own hardware as it is for this job.
    fn own_state(&self, own: &Own) -> OwnState {
        if self.own_may(own) { own.state(&self.job.model, self.job.kind) } else { OwnState::Missing }
    }

    /// Whether it was tried at as many places as it may be.
    fn is_spent(&self) -> bool {
        let spoke = self.legs.iter().filter(|leg| leg.usage.output > 0).count();
        let (spoke, tried) = (spoke >= LEGS_MAX as usize, self.legs.len() >= TRIES_MAX as usize);
        spoke || tried || self.refusals >= REFUSALS_MAX
    }

    /// Goes on to the next model of the job's list.
    fn next_model(&mut self) {
        self.job.model = self.job.alternatives.remove(0);
        if !self.job.prefix.is_empty() {
            self.job.prefix = prefix::names(&self.job.model, &self.job.body);
        }
        self.tried.clear();
        self.asked.clear();
        (self.rounds, self.thorough, self.own_failed) = (0, false, false);
        self.queued_until = None;
    }
}

/// Own hardware as the gate sees it.
fn own_view(
    cx: &Context,
    job: &Job,
    state: OwnState,
    queue: &VecDeque<JobId>,
    jobs: &BTreeMap<JobId, Active>,
) -> OwnView {
    let waits =
        |id: &&JobId| jobs.get(*id).is_some_and(|active| active.job.model == job.model && active.own_may(&cx.own));
    let pending = u32::try_from(queue.iter().filter(waits).count()).unwrap_or(u32::MAX);
    let slots = cx.own.capacity(&job.model).map_or(0, |capacity| capacity.slots);
    let running = cx.own.first_hand(&job.model);
    let may_preempt = cx.config.preempt && job.prefer != Prefer::Any;
    let ms = |span: Duration| span.as_secs_f64() * 1e3;
    let enough = running.saturating_add(pending).saturating_add(1).saturating_sub(slots);
    OwnView {
        healthy: matches!(state, OwnState::Free | OwnState::Saturated),
        slots,
        running,
        preemptible: if may_preempt { cx.own.preemptible(&job.model) } else { 0 },
        pending,
        first_ms: ms(cx.own.first_text(&job.model, job.prompt_units(), &job.prefix)),
        wait_ms: ms(cx.own.ended(cx.now, &job.model, enough)),
    }
}

/// What a provider says is owed for a leg that failed.
#[derive(Debug)]
enum Bill {
    /// It refused, or says so: nothing.
    Nothing,
    /// What its receipt states.
    Receipt(SignedBytes),
    /// It said nothing.
    Unknown,
}

struct Placed {
    route: Route,
    provider: Option<NodeId>,
    reason: Reason,
}

fn deliver(cx: &mut Context, job: JobId, leg: u32, placed: &mut bool, bytes: Vec<u8>, at: Placed) {
    if !*placed {
        *placed = true;
        let Placed { route, provider, reason } = at;
        cx.emit(Effect::Placed { job, leg, route, provider, reason });
    }
    cx.emit(Effect::Deliver { job, bytes });
}

fn total_cost(legs: &[Leg]) -> Credits {
    // Strangers' legs are bounded by deposits; what own backends cost is what the driver says.
    legs.iter().fold(Credits::ZERO, |sum, leg| Credits::new(sum.micro().saturating_add(leg.cost.micro())))
}

fn millis(span: Duration) -> u64 {
    u64::try_from(span.as_millis()).unwrap_or(u64::MAX)
}

/// Names a leg's prompt in receipts: the body and the text it goes on from.
pub(crate) fn prompt_digest(body: &[u8], prefix: &[u8]) -> Digest {
    Digest::of("spillway/prompt/1", &[body, prefix])
}

/// Names what a leg delivered in receipts.
pub(crate) fn transcript_digest(text: &[u8]) -> Digest {
    Digest::of("spillway/transcript/1", &[text])
}

/// The key whose vouchers a session of `account` counts, in this version the account's own.
pub(crate) const fn voucher_key(account: &Account) -> PublicKey {
    account.0
}
