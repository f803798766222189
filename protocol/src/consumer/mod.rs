//! The consuming half of a peer: finds a place for each of its clients' jobs, pays for it, and goes on elsewhere if it fails.
//! Invariants: a submitted job ends exactly once; its client gets every byte of the answer once and in order;
//! no voucher is sent before it is to be kept on disk.

mod place;
mod remote;
mod sessions;

use crate::context::{Alarm, Context};
use crate::event::{BackendError, Effect, LedgerCommand, ProbeId, StreamId, WorkId};
use crate::job::{Failure, Job, LEGS_MAX, Leg, OUTPUT_UNITS_MAX, Outcome, Prefer, Reason, Route};
use crate::offer::Quote;
use crate::own::{OwnState, WorkFor};
use crate::paying::{LegEnd, LegMoney, PayingSessions};
use crate::record::{Paying, Record, Spending};
use crate::reputation::Experience;
use crate::router::{Asked, Candidate, Quoted, score_quote, shortlist};
use crate::time::Now;
use crate::wire::{Abort, Frame, OpenJob, Probe, ProbeReply};
use rand::Rng as _;
use spillway_ledger::{
    Account, CoSigned, Credits, Digest, JobId, NodeId, Price, PublicKey, Receipt, SessionId, Signed, SignedBytes, Usage,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

/// How often a job in the own queue looks at the market again.
const REQUEUE_EVERY: Duration = Duration::from_secs(2);
/// How long to wait for the first probe's answer when none came in time to have a choice.
const PATIENCE: Duration = Duration::from_secs(2);
/// What a client should wait before it tries again when all are busy, in milliseconds.
const RETRY_AFTER_MS: u64 = 1_000;

#[derive(Debug)]
struct Active {
    job: Job,
    submitted: Now,
    /// The text delivered so far; what a continuation goes on from.
    delivered: Vec<u8>,
    /// When the first event went to the client: the commit point.
    first: Option<Now>,
    legs: Vec<Leg>,
    tried: BTreeSet<NodeId>,
    /// Own hardware failed this job: it is not tried again.
    own_failed: bool,
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
    Own { work: WorkId, units: u64, placed: bool, reason: Reason },
    /// Waits for quotes.
    Probing { asked: Vec<Asked>, sent: Now, quotes: Vec<Quoted>, reason: Reason },
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
    probes: BTreeMap<ProbeId, JobId>,
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
        let refused = if self.jobs.len() >= cx.config.jobs_max {
            Some((Reason::QueueFull, "too many jobs are under way on this node"))
        } else if job.output_max > OUTPUT_UNITS_MAX || job.cost_max().is_none() {
            Some((Reason::PriceCap, "output_max or price_max is beyond what can be counted"))
        } else {
            None
        };
        if let Some((reason, message)) = refused {
            let retry_after_ms = (reason == Reason::QueueFull).then_some(RETRY_AFTER_MS);
            let failure = Failure { reason, retry_after_ms, status: None, message: message.into() };
            let outcome =
                Outcome { result: Err(failure), legs: Vec::new(), cost: Credits::ZERO, first_ms: None, total_ms: 0 };
            cx.emit(Effect::Ended { job: id, outcome });
            return;
        }
        let active = Active {
            job,
            submitted: cx.now,
            delivered: Vec::new(),
            first: None,
            legs: Vec::new(),
            tried: BTreeSet::new(),
            own_failed: false,
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
        if active.legs.len() >= LEGS_MAX as usize {
            let reason = active.last.unwrap_or(Reason::ProviderRefused);
            return self.fail(cx, id, reason, None, "every place that was tried failed");
        }
        let own = if active.own_failed { OwnState::Missing } else { cx.own.state(&active.job.model, active.job.kind) };
        let reason = match own {
            OwnState::Free => return self.run_own(cx, id),
            OwnState::Saturated => Reason::OwnSaturated,
            OwnState::Unhealthy => Reason::OwnUnhealthy,
            OwnState::Missing => Reason::ModelNotLocal,
        };
        match active.job.prefer {
            Prefer::Own => match own {
                OwnState::Saturated => self.enqueue(cx, id),
                OwnState::Unhealthy => {
                    self.fail(cx, id, reason, Some(RETRY_AFTER_MS), "the own backend does not answer")
                }
                OwnState::Free | OwnState::Missing => {
                    let reason = active.last.unwrap_or(Reason::LabelForbidsNetwork);
                    self.fail(cx, id, reason, None, "the key keeps this job on own hardware, which cannot serve it");
                }
            },
            Prefer::OwnFirst | Prefer::Any => {
                let reason = active.last.unwrap_or(reason);
                self.probe(cx, id, reason);
            }
        }
    }

    fn run_own(&mut self, cx: &mut Context, id: JobId) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let work = cx.own.start(cx.now, &active.job.model, WorkFor::Owner(id));
        let reason = match (active.queued_until, active.last) {
            (Some(_), _) if active.first.is_none() => Reason::OwnQueued,
            (_, Some(last)) => last,
            (_, None) => Reason::OwnFree,
        };
        cx.timers.clear(Alarm::Job(id));
        cx.emit(Effect::Run {
            work,
            model: active.job.model.clone(),
            kind: active.job.kind,
            body: active.job.body.clone(),
            prefix: active.delivered.clone(),
            own: true,
        });
        active.stage = Stage::Own { work, units: 0, placed: false, reason };
    }

    /// Puts the job into the own queue, or fails it if the queue is full.
    fn enqueue(&mut self, cx: &mut Context, id: JobId) {
        let waiting = self.queue.len();
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        if waiting >= cx.config.queue_max {
            let reason = active.last.unwrap_or(Reason::OwnSaturated);
            return self.fail(cx, id, reason, Some(RETRY_AFTER_MS), "all slots are taken and the queue is full");
        }
        let until = *active.queued_until.get_or_insert(cx.now.after(cx.config.queue_wait));
        active.stage = Stage::Queued;
        // Whoever could also go to strangers looks at the market again before giving up.
        let look = if active.job.prefer == Prefer::Own { until } else { until.min(cx.now.after(REQUEUE_EVERY)) };
        cx.timers.set(Alarm::Job(id), look);
        self.queue.push_back(id);
    }

    /// Starts queued jobs whose model has a free slot, oldest first.
    pub(crate) fn drain(&mut self, cx: &mut Context) {
        let mut index = 0;
        while let Some(id) = self.queue.get(index).copied() {
            let job = &self.jobs.get(&id).expect("a queued job is under way").job;
            if cx.own.state(&job.model, job.kind) == OwnState::Free {
                self.queue.remove(index);
                self.run_own(cx, id);
            } else {
                index += 1;
            }
        }
    }

    // ---- on own hardware ----

    pub(crate) fn output(&mut self, cx: &mut Context, id: JobId, work: WorkId, bytes: Vec<u8>, text: &[u8]) {
        let Some(active) = self.jobs.get_mut(&id) else { return };
        let Stage::Own { work: running, units, placed, reason } = &mut active.stage else { return };
        if *running != work {
            return;
        }
        *units += text.len() as u64;
        active.delivered.extend_from_slice(text);
        let leg = u32::try_from(active.legs.len()).expect("at most LEGS_MAX");
        let place = Placed { route: Route::Own, provider: None, reason: *reason };
        active.first.get_or_insert(cx.now);
        deliver(cx, id, leg, placed, bytes, place);
    }

    pub(crate) fn finished(&mut self, cx: &mut Context, id: JobId, work: WorkId, finish: String) {
        if self.end_own(cx, id, work) {
            self.finish(cx, id, Ok(finish));
        }
    }

    pub(crate) fn backend_failed(&mut self, cx: &mut Context, id: JobId, work: WorkId, error: BackendError) {
        if !self.end_own(cx, id, work) {
            return;
        }
        let active = self.jobs.get_mut(&id).expect("end_own saw it");
        let (reason, message) = match error {
            BackendError::Rejected { status, message } => {
                let failure =
                    Failure { reason: Reason::UpstreamError, retry_after_ms: None, status: Some(status), message };
                return self.finish(cx, id, Err(failure));
            }
            BackendError::Busy => (Reason::Upstream429, "the own backend is rate-limited".to_owned()),
            BackendError::Failed(why) => (Reason::UpstreamError, why),
        };
        active.own_failed = true;
        active.last = Some(reason);
        let stays = active.job.prefer == Prefer::Own || (active.first.is_some() && !active.job.continuable);
        if stays {
            let retry = (reason == Reason::Upstream429).then_some(RETRY_AFTER_MS);
            return self.fail(cx, id, reason, retry, &message);
        }
        self.place(cx, id);
    }

    /// Ends the leg on own hardware, if it is this work. Says whether it was.
    fn end_own(&mut self, cx: &mut Context, id: JobId, work: WorkId) -> bool {
        let Some(active) = self.jobs.get_mut(&id) else { return false };
        let Stage::Own { work: running, units, reason, .. } = active.stage else { return false };
        if running != work {
            return false;
        }
        cx.own.finish(cx.now, work);
        let prefix = active.delivered.len() as u64 - units;
        let usage = Usage { input: active.job.prompt_units() + prefix, cached: 0, output: units };
        active.legs.push(Leg { route: Route::Own, provider: None, reason, usage, cost: Credits::ZERO });
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
        self.finish(cx, id, Err(Failure { reason, retry_after_ms, status: None, message: message.to_owned() }));
    }

    fn finish(&mut self, cx: &mut Context, id: JobId, result: Result<String, Failure>) {
        let active = self.jobs.remove(&id).expect("a job ends once");
        cx.timers.clear(Alarm::Job(id));
        self.queue.retain(|queued| *queued != id);
        match active.stage {
            Stage::Probing { asked, .. } => {
                for asked in asked {
                    self.probes.remove(&asked.probe);
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
            first_ms: active.first.map(|first| millis(first.since(active.submitted))),
            total_ms: millis(cx.now.since(active.submitted)),
        };
        cx.emit(Effect::Ended { job: id, outcome });
    }

    /// A step took too long.
    pub(crate) fn overdue(&mut self, cx: &mut Context, id: JobId) {
        let Some(active) = self.jobs.get_mut(&id) else { return };
        match &mut active.stage {
            Stage::Queued => {
                self.queue.retain(|queued| *queued != id);
                let until = active.queued_until.unwrap_or(cx.now);
                if cx.now >= until {
                    let reason = active.last.unwrap_or(Reason::OwnSaturated);
                    return self.fail(cx, id, reason, Some(RETRY_AFTER_MS), "waited too long for a free slot");
                }
                active.tried.clear();
                self.place(cx, id);
            }
            Stage::Probing { asked, sent, quotes, .. } => {
                let gives_up = sent.after(PATIENCE.max(cx.config.probe_wait));
                if quotes.is_empty() && cx.now < gives_up {
                    return cx.timers.set(Alarm::Job(id), gives_up);
                }
                // Who did not answer is not asked again for this job.
                active.tried.extend(asked.iter().map(|asked| asked.candidate.node));
                self.choose(cx, id);
            }
            Stage::Opening { business, .. } => {
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
                let patience =
                    if remote.phase == Phase::Accepted { cx.config.silence_max } else { cx.config.open_wait };
                let dead = remote.heard.after(patience);
                if cx.now < dead {
                    return cx.timers.set(Alarm::Job(id), dead);
                }
                self.leg_failed(cx, id, Reason::ProviderStalled, Some(Experience::Stalled), Bill::Unknown);
            }
            Stage::Placing | Stage::Own { .. } => {}
        }
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
    legs.iter().fold(Credits::ZERO, |sum, leg| sum.checked_add(leg.cost).expect("bounded by deposits"))
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
