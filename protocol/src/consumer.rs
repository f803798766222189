//! The consuming half of a peer: finds a place for each of its clients' jobs, pays for it, and goes on elsewhere if it fails.
//! Invariants: a submitted job ends exactly once; its client gets every byte of the answer once and in order;
//! no voucher is sent before it is to be kept on disk.

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

#[derive(Debug)]
struct Opening {
    provider: Account,
    price_cap: Price,
    deposit: Credits,
    waiting: Vec<JobId>,
}

/// The consuming half.
#[derive(Debug, Default)]
pub(crate) struct Consumer {
    jobs: BTreeMap<JobId, Active>,
    queue: VecDeque<JobId>,
    streams: BTreeMap<StreamId, JobId>,
    probes: BTreeMap<ProbeId, JobId>,
    paying: PayingSessions,
    opening: BTreeMap<[u8; 16], Opening>,
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
        let reason = match (active.last, active.queued_until) {
            (Some(last), _) => last,
            (None, Some(_)) => Reason::OwnQueued,
            (None, None) => Reason::OwnFree,
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

    // ---- finding a provider ----

    fn probe(&mut self, cx: &mut Context, id: JobId, reason: Reason) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let candidates: Vec<Candidate> = cx
            .directory
            .candidates(cx.now, &active.job)
            .filter(|listing| listing.node() != cx.node && listing.account() != cx.account)
            .filter(|listing| !active.tried.contains(&listing.node()))
            .filter(|listing| !cx.reputation.is_banned(cx.now, &listing.node()))
            .map(Candidate::from)
            .collect();
        if candidates.is_empty() {
            let dearer = cx.directory.serving(cx.now, &active.job.model, active.job.kind).any(|l| l.node() != cx.node);
            let why = match (active.last, dearer, active.tried.is_empty()) {
                (Some(last), ..) => last,
                (None, true, true) => Reason::PriceCap,
                (None, true, false) => Reason::ProviderRefused,
                (None, false, _) => Reason::NoOffer,
            };
            return self.unplaced(cx, id, why);
        }
        let second_worth = cx.config.second_worth;
        let chosen = shortlist(&active.job, candidates, &cx.reputation, second_worth, &mut cx.rng);
        let mut asked = Vec::with_capacity(chosen.len());
        for candidate in chosen {
            let probe = ProbeId(self.next_probe);
            self.next_probe += 1;
            self.probes.insert(probe, id);
            let request = Probe {
                network: cx.identity.network,
                model: active.job.model.clone(),
                kind: active.job.kind,
                prompt_units: active.job.prompt_units() + active.delivered.len() as u64,
                output_max: active.job.output_max,
                window_max: window_for(cx, &candidate.node),
            };
            cx.emit(Effect::SendProbe { probe, peer: candidate.node, addresses: candidate.addresses.clone(), request });
            asked.push(Asked { probe, candidate });
        }
        cx.timers.set(Alarm::Job(id), cx.now.after(cx.config.probe_wait));
        active.stage = Stage::Probing { asked, sent: cx.now, quotes: Vec::new(), reason };
    }

    /// No provider will have it: the own queue if there is one, else the end.
    fn unplaced(&mut self, cx: &mut Context, id: JobId, why: Reason) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let own_is_busy = !active.own_failed && cx.own.state(&active.job.model, active.job.kind) == OwnState::Saturated;
        if own_is_busy {
            return self.enqueue(cx, id);
        }
        let (retry, message) = match why {
            Reason::NoOffer => (None, "nobody offers this model now"),
            Reason::PriceCap => (None, "providers offer this model, but none within the price limit"),
            Reason::NoDeposit => (None, "the balance covers no deposit for this job"),
            Reason::OwnFree
            | Reason::OwnQueued
            | Reason::OwnSaturated
            | Reason::OwnUnhealthy
            | Reason::ModelNotLocal
            | Reason::LabelForbidsNetwork
            | Reason::ProviderRefused
            | Reason::ProviderStalled
            | Reason::Upstream429
            | Reason::UpstreamError
            | Reason::ClientLeft
            | Reason::QueueFull => (Some(RETRY_AFTER_MS), "every provider that was asked is busy or failed"),
        };
        self.fail(cx, id, why, retry, message);
    }

    pub(crate) fn probe_replied(&mut self, cx: &mut Context, probe: ProbeId, reply: Option<ProbeReply>) {
        let Some(id) = self.probes.remove(&probe) else { return }; // Late, not wrong.
        let Some(active) = self.jobs.get_mut(&id) else { return };
        let Stage::Probing { asked, sent, quotes, .. } = &mut active.stage else { return }; // Late, not wrong.
        let Some(index) = asked.iter().position(|asked| asked.probe == probe) else { return };
        let Asked { candidate, .. } = asked.swap_remove(index);
        let rtt = cx.now.since(*sent);
        match reply.map(|reply| (check_quote(cx, &active.job, &candidate, &reply), reply)) {
            Some((Some(quote), reply)) => {
                cx.reputation.measured_rtt(cx.now, candidate.node, rtt);
                let standing = cx.reputation.lower_bound(&candidate.node);
                let score = score_quote(&active.job, quote.value(), &reply, rtt, standing, cx.config.second_worth);
                quotes.push(Quoted { candidate, quote, score });
            }
            Some((None, reply)) => {
                if reply.quote.is_err() {
                    cx.reputation.measured_rtt(cx.now, candidate.node, rtt); // Busy, and honest about it.
                }
                active.tried.insert(candidate.node);
            }
            None => {
                active.tried.insert(candidate.node);
            }
        }
        if asked.is_empty() {
            self.choose(cx, id);
        }
    }

    /// Goes to the best of the quotes at hand.
    fn choose(&mut self, cx: &mut Context, id: JobId) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let Stage::Probing { asked, mut quotes, reason, .. } = std::mem::replace(&mut active.stage, Stage::Placing)
        else {
            unreachable!("only a probing job chooses")
        };
        for late in asked {
            self.probes.remove(&late.probe);
        }
        // Best last, so that the next best is a pop away.
        quotes.sort_by(|a, b| b.score.total_cmp(&a.score));
        self.next_quote(cx, id, quotes, reason);
    }

    /// Tries the last of `quotes`, or looks for other providers if there is none.
    fn next_quote(&mut self, cx: &mut Context, id: JobId, mut rest: Vec<Quoted>, reason: Reason) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        active.stage = Stage::Placing;
        if active.legs.len() >= LEGS_MAX as usize {
            return self.place(cx, id);
        }
        let prefix = active.delivered.len() as u64;
        let best = loop {
            let Some(best) = rest.pop() else { return self.probe(cx, id, reason) };
            if best.quote.value().is_valid(cx.now) {
                break best;
            }
        };
        let money = LegMoney {
            price: best.quote.value().price,
            input: active.job.prompt_units() + prefix,
            delivered: 0,
            window: best.quote.value().window,
            output_max: active.job.output_max.saturating_sub(prefix),
        };
        let Some(worst) = money.worst() else {
            active.tried.insert(best.candidate.node);
            return self.next_quote(cx, id, rest, reason);
        };
        let fitting = self.paying.fitting(cx.now, &best.candidate.account, &money.price, worst);
        #[cfg(feature = "sabotage")]
        let fitting = fitting.or_else(|| {
            cx.sabotaged(crate::context::Sabotage::IgnoreDeposit)
                .then(|| self.paying.any_of(&best.candidate.account))
                .flatten()
        });
        if let Some(session) = fitting {
            return self.open_leg(cx, id, best, rest, session, money, reason);
        }
        self.open_session(cx, id, best, rest, worst, reason);
    }

    fn open_session(
        &mut self,
        cx: &mut Context,
        id: JobId,
        best: Quoted,
        rest: Vec<Quoted>,
        worst: Credits,
        reason: Reason,
    ) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let (account, price) = (best.candidate.account, best.quote.value().price);
        let under_way = self.opening.iter_mut().find(|(_, opening)| {
            let sharers = u64::try_from(opening.waiting.len()).unwrap_or(u64::MAX).saturating_add(1);
            opening.provider == account
                && price.within(&opening.price_cap)
                && worst.micro().saturating_mul(sharers) <= opening.deposit.micro()
        });
        let business = if let Some((business, opening)) = under_way {
            opening.waiting.push(id);
            *business
        } else {
            let deposit = cx.config.deposit.max(worst).min(cx.balance);
            if deposit < worst || deposit.is_zero() {
                active.last = Some(Reason::NoDeposit);
                active.tried.insert(best.candidate.node);
                return self.next_quote(cx, id, rest, Reason::NoDeposit);
            }
            let mut business = [0; 16];
            cx.rng.fill_bytes(&mut business);
            cx.balance = cx.balance.saturating_sub(deposit);
            // The cap is the job's, so that the provider's next, slightly other price needs no new session.
            let price_cap = active.job.price_max;
            self.opening.insert(business, Opening { provider: account, price_cap, deposit, waiting: vec![id] });
            let expires_ms = cx.now.after(cx.config.session_lifetime).ms();
            let voucher_key = cx.account.0;
            let command = LedgerCommand::Open { provider: account, voucher_key, deposit, price_cap, expires_ms };
            cx.emit(Effect::Ledger { business, command });
            business
        };
        active.stage = Stage::Opening { business, best: Box::new(best), rest, reason };
        cx.timers.set(Alarm::Job(id), cx.now.after(cx.config.open_wait));
    }

    /// The ledger opened a session that this node pays.
    pub(crate) fn session_opened(&mut self, cx: &mut Context, business: [u8; 16], record: Paying) {
        if self.paying.get(&record.session).is_none() {
            self.schedule_refund(cx, &record);
            cx.emit(Effect::Persist(Record::Paying(record.clone())));
            self.paying.insert(record);
        }
        let waiting = self.opening.remove(&business).map(|opening| opening.waiting).unwrap_or_default();
        for id in waiting {
            if let Some((best, mut rest, reason)) = self.take_opening(id, business) {
                rest.push(best);
                self.next_quote(cx, id, rest, reason);
            }
        }
    }

    /// The ledger refused to open a session.
    pub(crate) fn open_refused(&mut self, cx: &mut Context, business: [u8; 16]) {
        let waiting = self.opening.remove(&business).map(|opening| opening.waiting).unwrap_or_default();
        for id in waiting {
            if let Some((best, rest, _)) = self.take_opening(id, business) {
                let active = self.jobs.get_mut(&id).expect("the stage was just taken");
                active.last = Some(Reason::NoDeposit);
                active.tried.insert(best.candidate.node);
                self.next_quote(cx, id, rest, Reason::NoDeposit);
            }
        }
    }

    fn take_opening(&mut self, id: JobId, opened: [u8; 16]) -> Option<(Quoted, Vec<Quoted>, Reason)> {
        let active = self.jobs.get_mut(&id)?;
        match std::mem::replace(&mut active.stage, Stage::Placing) {
            Stage::Opening { business, best, rest, reason } if business == opened => Some((*best, rest, reason)),
            other => {
                active.stage = other; // It went elsewhere meanwhile.
                None
            }
        }
    }

    // ---- at a provider ----

    #[expect(clippy::too_many_arguments, reason = "one call site, and each is a different thing")]
    fn open_leg(
        &mut self,
        cx: &mut Context,
        id: JobId,
        best: Quoted,
        rest: Vec<Quoted>,
        session: SessionId,
        money: LegMoney,
        reason: Reason,
    ) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let stream = StreamId::Out(self.next_stream);
        self.next_stream += 1;
        self.streams.insert(stream, id);
        self.paying.get_mut(&session).expect("the caller found it").begin(id, money);
        let Quoted { candidate, quote, .. } = best;
        cx.emit(Effect::OpenStream { stream, peer: candidate.node, addresses: candidate.addresses.clone() });
        cx.timers.set(Alarm::Job(id), cx.now.after(cx.config.open_wait));
        active.stage = Stage::Remote(Box::new(Remote {
            stream,
            candidate,
            quote,
            session,
            rest,
            reason,
            phase: Phase::Connecting,
            sequence: 0,
            prefix: active.delivered.len(),
            placed: false,
            heard: cx.now,
            leaving: false,
        }));
    }

    fn at(&mut self, stream: StreamId) -> Option<(JobId, &mut Active)> {
        let id = *self.streams.get(&stream)?;
        self.jobs.get_mut(&id).map(|active| (id, active))
    }

    pub(crate) fn stream_opened(&mut self, cx: &mut Context, stream: StreamId) {
        let Some((id, active)) = self.at(stream) else { return cx.emit(Effect::CloseStream(stream)) };
        let Stage::Remote(remote) = &mut active.stage else { return };
        if remote.phase != Phase::Connecting {
            return;
        }
        remote.phase = Phase::Sent;
        remote.heard = cx.now;
        let session = remote.session;
        let quote = remote.quote.to_wire();
        let voucher = self.sign(cx, session).to_wire();
        let active = self.jobs.get(&id).expect("seen above");
        let open = OpenJob {
            job: id,
            leg: u32::try_from(active.legs.len()).expect("at most LEGS_MAX"),
            model: active.job.model.clone(),
            kind: active.job.kind,
            body: active.job.body.clone(),
            prefix: active.delivered.clone(),
            output_max: active.job.output_max,
            quote,
            voucher,
        };
        cx.emit(Effect::Send { stream, frame: Frame::Open(open) });
        cx.timers.set(Alarm::Job(id), cx.now.after(cx.config.open_wait));
    }

    /// Signs the session's next voucher and has it kept, with what each running job may cost by it.
    fn sign(&mut self, cx: &mut Context, session: SessionId) -> Signed<spillway_ledger::Voucher> {
        let paying = self.paying.get_mut(&session).expect("a leg's session is kept until the leg ends");
        let voucher = paying.sign(cx.now, cx.identity.network, &cx.identity.account);
        cx.emit(Effect::Persist(Record::Paying(paying.record.clone())));
        for (job, promised) in paying.promised_by_job() {
            let Some(active) = self.jobs.get(&job) else { continue };
            let Stage::Remote(remote) = &active.stage else { continue };
            let before = total_cost(&active.legs);
            let promised = before.checked_add(promised).expect("bounded by deposits");
            let provider = remote.candidate.node;
            cx.emit(Effect::Persist(Record::Spending(Spending { job, provider, promised })));
        }
        voucher
    }

    /// Sends a voucher if one is wanted and may be signed already.
    fn pay(&mut self, cx: &mut Context, session: SessionId) {
        let Some(paying) = self.paying.get(&session) else { return };
        if !paying.wants_voucher() {
            return;
        }
        let at = paying.voucher_at(cx.now);
        if at > cx.now {
            return cx.timers.set_earlier(Alarm::Voucher(session), at);
        }
        let stream = paying.jobs().find_map(|job| match &self.jobs.get(&job)?.stage {
            Stage::Remote(remote) if remote.phase == Phase::Accepted => Some(remote.stream),
            Stage::Remote(_)
            | Stage::Placing
            | Stage::Queued
            | Stage::Own { .. }
            | Stage::Probing { .. }
            | Stage::Opening { .. } => None,
        });
        let Some(stream) = stream else { return };
        let voucher = self.sign(cx, session);
        cx.emit(Effect::Send { stream, frame: Frame::Voucher(voucher.to_wire()) });
    }

    pub(crate) fn voucher_due(&mut self, cx: &mut Context, session: SessionId) {
        self.pay(cx, session);
    }

    pub(crate) fn owns(&self, stream: StreamId) -> bool {
        self.streams.contains_key(&stream)
    }

    pub(crate) fn frame(&mut self, cx: &mut Context, stream: StreamId, peer: NodeId, frame: Frame, text: &[u8]) {
        let Some((id, active)) = self.at(stream) else { return }; // Late, not wrong.
        let Stage::Remote(remote) = &mut active.stage else { return };
        if remote.candidate.node != peer {
            return;
        }
        remote.heard = cx.now;
        match frame {
            Frame::Accepted => {
                remote.phase = Phase::Accepted;
                cx.timers.set(Alarm::Job(id), cx.now.after(cx.config.silence_max));
                let session = remote.session;
                self.pay(cx, session);
            }
            Frame::Alive => {}
            Frame::Chunk { sequence, offset, bytes } => self.chunk(cx, id, sequence, offset, bytes, text),
            Frame::Refused { refusal, .. } => {
                let experience = (!refusal.is_consumers_fault()).then_some(Experience::RefusedQuote);
                self.leg_failed(cx, id, Reason::ProviderRefused, experience, Bill::Nothing);
            }
            Frame::Done { finish, receipt } => self.done(cx, id, finish, receipt),
            Frame::Aborted { abort, receipt } => {
                let (reason, experience) = match abort {
                    Abort::Backend | Abort::Leaving => (Reason::ProviderStalled, Some(Experience::Stalled)),
                    Abort::BackendBusy => (Reason::ProviderRefused, Some(Experience::RefusedQuote)),
                    Abort::Unpaid | Abort::Cancelled => (Reason::ProviderStalled, None),
                };
                self.leg_failed(cx, id, reason, experience, receipt.map_or(Bill::Nothing, Bill::Receipt));
            }
            Frame::Rejected { status, message } => {
                let failure =
                    Failure { reason: Reason::UpstreamError, retry_after_ms: None, status: Some(status), message };
                self.end_leg(cx, id, LegEnd::Void);
                self.finish(cx, id, Err(failure));
            }
            Frame::Open(_) | Frame::Voucher(_) | Frame::Cancel | Frame::CoSigned(_) => {
                self.leg_failed(cx, id, Reason::ProviderStalled, Some(Experience::Disputed), Bill::Unknown);
            }
        }
    }

    fn chunk(&mut self, cx: &mut Context, id: JobId, sequence: u32, offset: u64, bytes: Vec<u8>, text: &[u8]) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let Stage::Remote(remote) = &mut active.stage else { unreachable!("the caller saw it") };
        let in_order = sequence == remote.sequence && offset == active.delivered.len() as u64;
        let fits = active.delivered.len() + text.len() <= usize::try_from(active.job.output_max).unwrap_or(usize::MAX);
        if remote.phase != Phase::Accepted || !in_order || !fits {
            return self.leg_failed(cx, id, Reason::ProviderStalled, Some(Experience::Disputed), Bill::Unknown);
        }
        remote.sequence += 1;
        active.delivered.extend_from_slice(text);
        let session = remote.session;
        if !remote.leaving {
            let leg = u32::try_from(active.legs.len()).expect("at most LEGS_MAX");
            deliver(
                cx,
                id,
                leg,
                active.first.get_or_insert(cx.now),
                &mut remote.placed,
                bytes,
                Placed { route: Route::Network, provider: Some(remote.candidate.node), reason: remote.reason },
            );
        }
        if let Some(paying) = self.paying.get_mut(&session) {
            paying.delivered(&id, text.len() as u64);
        }
        self.pay(cx, session);
    }

    fn done(&mut self, cx: &mut Context, id: JobId, finish: String, receipt: SignedBytes) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let Stage::Remote(remote) = &active.stage else { unreachable!("the caller saw it") };
        let (node, leaving) = (remote.candidate.node, remote.leaving);
        if remote.phase != Phase::Accepted {
            return self.leg_failed(cx, id, Reason::ProviderStalled, Some(Experience::Disputed), Bill::Unknown);
        }
        let agreed = self.co_sign(cx, id, receipt);
        cx.reputation.record(cx.now, node, if agreed { Experience::Served } else { Experience::Disputed });
        self.end_leg(cx, id, if agreed { LegEnd::Agreed } else { LegEnd::Broken });
        if leaving {
            return self.finish_left(cx, id);
        }
        self.finish(cx, id, Ok(finish));
    }

    /// Signs the provider's receipt if it says what was delivered here. Says whether it did.
    fn co_sign(&mut self, cx: &mut Context, id: JobId, receipt: SignedBytes) -> bool {
        let Some(active) = self.jobs.get(&id) else { return false };
        let Stage::Remote(remote) = &active.stage else { return false };
        let Some(money) = self.paying.get(&remote.session).and_then(|paying| paying.leg(&id)) else { return false };
        let Ok(receipt) = Signed::<Receipt>::open(receipt) else { return false };
        let leg = u32::try_from(active.legs.len()).expect("at most LEGS_MAX");
        let quote = remote.quote.value();
        let value = receipt.value();
        let agreed = receipt.signer() == quote.account.0
            && value.network == cx.identity.network
            && value.session == remote.session
            && value.job == id
            && value.leg == leg
            && value.model == active.job.model
            && value.price == quote.price
            && value.usage == (Usage { input: money.input, cached: 0, output: money.delivered })
            && value.cost == money.earned()
            && value.prompt == prompt_digest(&active.job.body, &active.delivered[..remote.prefix])
            && value.transcript == transcript_digest(&active.delivered[remote.prefix..]);
        if !agreed {
            return false;
        }
        let stream = remote.stream;
        let both = CoSigned::co_sign(receipt, &cx.identity.account);
        let (_, signature) = both.consumer();
        cx.emit(Effect::Persist(Record::Receipt { job: id, leg, both: true, bytes: both.to_bytes() }));
        cx.emit(Effect::Send { stream, frame: Frame::CoSigned(signature) });
        true
    }

    /// Ends the leg at a provider: what is owed for it is fixed and kept.
    fn end_leg(&mut self, cx: &mut Context, id: JobId, how: LegEnd) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let Stage::Remote(remote) = std::mem::replace(&mut active.stage, Stage::Placing) else {
            unreachable!("the caller saw it")
        };
        self.streams.remove(&remote.stream);
        cx.timers.clear(Alarm::Job(id));
        cx.emit(Effect::CloseStream(remote.stream));
        if let Some(paying) = self.paying.get_mut(&remote.session) {
            let (usage, cost) = paying.end(&id, how);
            cx.emit(Effect::Persist(Record::Paying(paying.record.clone())));
            let (provider, reason) = (Some(remote.candidate.node), remote.reason);
            active.legs.push(Leg { route: Route::Network, provider, reason, usage, cost });
        }
        active.tried.insert(remote.candidate.node);
    }

    /// A provider refused, failed or fell silent: on to the next, from where the client is.
    fn leg_failed(&mut self, cx: &mut Context, id: JobId, why: Reason, experience: Option<Experience>, bill: Bill) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let Stage::Remote(remote) = &mut active.stage else { unreachable!("the caller saw it") };
        let leaving = remote.leaving;
        let rest = std::mem::take(&mut remote.rest);
        if let (Some(what), false) = (experience, leaving) {
            cx.reputation.record(cx.now, remote.candidate.node, what);
        }
        let delivered_here = active.delivered.len() > remote.prefix;
        let begun = remote.phase != Phase::Connecting;
        let how = match bill {
            Bill::Receipt(receipt) => {
                if self.co_sign(cx, id, receipt) {
                    LegEnd::Agreed
                } else {
                    LegEnd::Broken
                }
            }
            Bill::Nothing if !delivered_here => LegEnd::Void,
            Bill::Unknown if !begun => LegEnd::Void,
            Bill::Nothing | Bill::Unknown => LegEnd::Broken,
        };
        self.end_leg(cx, id, how);
        if leaving {
            return self.finish_left(cx, id);
        }
        #[cfg(feature = "sabotage")]
        if delivered_here && cx.sabotaged(crate::context::Sabotage::DropJobs) {
            self.jobs.remove(&id);
            return;
        }
        let active = self.jobs.get_mut(&id).expect("only its stage changed");
        #[cfg(feature = "sabotage")]
        if cx.sabotaged(crate::context::Sabotage::RepeatText) {
            let keep = active.delivered.len().saturating_sub(8);
            active.delivered.truncate(keep);
        }
        active.last = Some(why);
        if active.first.is_some() && !active.job.continuable {
            return self.fail(
                cx,
                id,
                why,
                None,
                "the provider failed in the middle of an answer that cannot be continued",
            );
        }
        if delivered_here {
            // Quotes from before do not know the prompt that is to be gone on from.
            return self.place(cx, id);
        }
        self.next_quote(cx, id, rest, why);
    }

    pub(crate) fn stream_closed(&mut self, cx: &mut Context, stream: StreamId) {
        let Some((id, active)) = self.at(stream) else { return }; // Late, not wrong.
        if matches!(active.stage, Stage::Remote(_)) {
            self.leg_failed(cx, id, Reason::ProviderStalled, Some(Experience::Stalled), Bill::Unknown);
        }
    }

    /// Every connection to `peer` is gone: its streams are, too.
    pub(crate) fn peer_lost(&mut self, cx: &mut Context, peer: NodeId) {
        let lost: Vec<StreamId> = self
            .jobs
            .values()
            .filter_map(|active| match &active.stage {
                Stage::Remote(remote) if remote.candidate.node == peer && remote.phase != Phase::Connecting => {
                    Some(remote.stream)
                }
                Stage::Remote(_)
                | Stage::Placing
                | Stage::Queued
                | Stage::Own { .. }
                | Stage::Probing { .. }
                | Stage::Opening { .. } => None,
            })
            .collect();
        for stream in lost {
            self.stream_closed(cx, stream);
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
        deliver(cx, id, leg, active.first.get_or_insert(cx.now), placed, bytes, place);
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

    // ---- sessions' ends ----

    pub(crate) fn session_settled(&mut self, cx: &mut Context, session: SessionId, settled: Credits, closed: bool) {
        let Some(paying) = self.paying.get_mut(&session) else { return };
        if closed && paying.is_idle() {
            self.paying.remove(&session);
            cx.timers.clear(Alarm::Refund(session));
            cx.timers.clear(Alarm::Voucher(session));
            cx.emit(Effect::Persist(Record::PayingOver(session)));
            return;
        }
        paying.record.settled = settled;
        if closed {
            // Legs still run on it: they end unpaid at the provider's own wish. No new one begins.
            paying.record.expires_ms = 0;
        }
        cx.emit(Effect::Persist(Record::Paying(paying.record.clone())));
    }

    /// A session is over and its grace, too: what is left comes back.
    pub(crate) fn refund_due(&mut self, cx: &mut Context, session: SessionId) {
        if self.paying.get(&session).is_none() {
            return;
        }
        let digest = Digest::of("spillway/refund", &[session.0.as_bytes()]);
        let mut business = [0; 16];
        business.copy_from_slice(&digest.as_bytes()[..16]);
        cx.emit(Effect::Ledger { business, command: LedgerCommand::Refund { session } });
        // Block time may lag behind this node's clock: ask again until the session is closed.
        cx.timers.set(Alarm::Refund(session), cx.now.after(Duration::from_secs(60)));
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

fn deliver(cx: &mut Context, job: JobId, leg: u32, _first: &mut Now, placed: &mut bool, bytes: Vec<u8>, at: Placed) {
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

/// The output units paid ahead to a provider: more with each job it has served.
fn window_for(cx: &Context, peer: &NodeId) -> u64 {
    let doublings = cx.reputation.served(peer).min(16);
    (cx.config.window_start << doublings).min(cx.config.window_max)
}

/// The quote in a probe's answer, if it holds for this job.
fn check_quote(cx: &Context, job: &Job, candidate: &Candidate, reply: &ProbeReply) -> Option<Signed<Quote>> {
    let quote = Signed::<Quote>::open(reply.quote.clone().ok()?).ok()?;
    let value = quote.value();
    let holds = quote.signer() == candidate.node.0
        && value.provider == candidate.node
        && value.network == cx.identity.network
        && value.account == candidate.account
        && value.consumer == cx.node
        && value.model == job.model
        && value.is_valid(cx.now)
        && value.price.within(&job.price_max)
        && value.window <= window_for(cx, &candidate.node);
    holds.then_some(quote)
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
