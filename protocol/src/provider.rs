//! The serving half of a peer: quotes, admits strangers' jobs to what is idle, and delivers only what is paid.
//! Invariants: text leaves only once its cost lies below the best voucher, and after that was told to disk;
//! a claim on the ledger is what was delivered, never what was merely promised.

use crate::consumer::{prompt_digest, transcript_digest};
use crate::context::{Alarm, Context};
use crate::event::{BackendError, Effect, LedgerCommand, ProbeId, StreamId, WorkId};
use crate::job::{Kind, OUTPUT_UNITS_MAX};
use crate::offer::{QUOTE_LIFETIME, Quote};
use crate::own::WorkFor;
use crate::record::{Earning, Record};
use crate::time::Now;
use crate::wire::{Abort, Frame, OpenJob, Probe, ProbeReply, Refusal};
use spillway_ledger::{
    CoSigned, Credits, Digest, JobId, NodeId, Price, Receipt, SessionId, Signature, Signed, SignedBytes, Usage,
    Voucher, merkle_root,
};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Receipts of one session; a session that has so many takes no new job.
const RECEIPTS_MAX: usize = 4096;
/// Answer bytes held for one job while its consumer does not pay.
const HELD_BYTES_MAX: usize = 16 << 20;
/// How long a job may wait for its session to appear on this node's copy of the ledger.
const SESSION_WAIT: Duration = Duration::from_secs(3);
/// How long to wait for the consumer's signature below a receipt.
const CO_SIGN_WAIT: Duration = Duration::from_secs(10);
/// A session that ends sooner than this takes no new job, and is settled for the last time.
const EXPIRY_MARGIN: Duration = Duration::from_secs(300);

#[derive(Debug)]
struct Serving {
    peer: NodeId,
    open: Box<OpenJob>,
    session: SessionId,
    price: Price,
    window: u64,
    stage: Stage,
    /// When this leg began here.
    began: Now,
    first: Option<Now>,
    sequence: u32,
    /// Delivered output, in units.
    sent: u64,
    transcript: Vec<u8>,
    /// Backend events that are not yet delivered, with their text.
    held: VecDeque<(Vec<u8>, Vec<u8>)>,
    held_bytes: usize,
    held_units: u64,
    /// Since when the next event waits for a voucher.
    unpaid: Option<Now>,
    last_sent: Now,
    ended: Option<Ending>,
}

#[derive(Clone, Debug)]
enum Ending {
    Finished(String),
    Aborted(Abort),
    Rejected(u16, String),
}

#[derive(Clone, Debug)]
enum Stage {
    /// Waits until the ledger shows its session.
    Parked { voucher: Box<Signed<Voucher>> },
    /// The backend is at work.
    Running(WorkId),
    /// The backend is done; what is held still waits for payment.
    Draining,
    /// All was delivered; the consumer's signature is awaited.
    Delivered { leg: u32, receipt: Box<Signed<Receipt>> },
}

impl Serving {
    fn input(&self) -> u64 {
        (self.open.body.len() + self.open.prefix.len()) as u64
    }

    fn cost(&self, output: u64) -> Credits {
        self.price
            .cost(Usage { input: self.input(), cached: 0, output })
            .expect("the worst case was computed on admission")
    }

    fn output_max(&self) -> u64 {
        self.open.output_max.saturating_sub(self.open.prefix.len() as u64)
    }

    /// What the consumer must have paid ahead at this point.
    fn ahead(&self) -> Credits {
        self.cost(self.sent.saturating_add(self.window).min(self.output_max()))
    }

    /// What is owed for this leg now: nothing before the first text or the proper end.
    fn owed(&self) -> Credits {
        let finished = matches!(self.ended, Some(Ending::Finished(_)));
        let drained = self.held.is_empty();
        if self.sent > 0 || (finished && drained) { self.cost(self.sent) } else { Credits::ZERO }
    }
}

#[derive(Debug)]
struct EarningSession {
    record: Earning,
    /// Legs running on it.
    legs: Vec<StreamId>,
    last_active: Now,
    /// The business id of the claim that the ledger has not answered yet.
    settling: Option<[u8; 16]>,
}

/// The serving half.
#[derive(Debug, Default)]
pub(crate) struct Provider {
    serving: BTreeMap<StreamId, Serving>,
    sessions: BTreeMap<SessionId, EarningSession>,
}

fn add(a: Credits, b: Credits) -> Credits {
    a.checked_add(b).expect("bounded by the deposit")
}

impl Provider {
    /// Takes back a session that paid this node before a restart.
    pub(crate) fn restore(&mut self, cx: &mut Context, record: Earning) {
        cx.timers.set(Alarm::Settle(record.session), cx.now);
        let session = record.session;
        let session_state = EarningSession { record, legs: Vec::new(), last_active: cx.now, settling: None };
        self.sessions.insert(session, session_state);
    }

    // ---- quotes ----

    /// The one rule for what is advertised and what is admitted.
    fn refusal(&self, cx: &Context, model: &str, kind: Kind, output_max: u64) -> Option<Refusal> {
        if !cx.config.provide || cx.own.capacity(model).is_none_or(|capacity| !capacity.kinds.contains(&kind)) {
            return Some(Refusal::UnknownModel);
        }
        if output_max > OUTPUT_UNITS_MAX {
            return Some(Refusal::TooLarge);
        }
        let full = self.serving.len() >= cx.config.jobs_max;
        if full || cx.own.free_for_strangers(model, kind, cx.config.reserved_slots) == 0 {
            return Some(Refusal::Busy);
        }
        None
    }

    pub(crate) fn probed(&self, cx: &mut Context, probe: ProbeId, peer: NodeId, request: &Probe) {
        let wrong_market = request.network != cx.identity.network;
        // Who pays too little ahead is refused; who offers less than wanted, within reason, is quoted what it offers.
        let window = cx.config.window.min(request.window_max);
        let refusal = if wrong_market {
            Some(Refusal::UnknownModel)
        } else if window < cx.config.window / 8 {
            Some(Refusal::Underpaid)
        } else {
            self.refusal(cx, &request.model, request.kind, request.output_max)
        };
        let quote = match refusal {
            Some(refusal) => Err(refusal),
            None => {
                let quote = Quote {
                    network: cx.identity.network,
                    provider: cx.node,
                    account: cx.account,
                    consumer: peer,
                    model: request.model.clone(),
                    price: cx.config.price,
                    window,
                    valid_until_ms: cx.now.after(QUOTE_LIFETIME).ms(),
                };
                Ok(Signed::sign(quote, &cx.identity.node).to_wire())
            }
        };
        let (ttft_ms, per_unit_us) = cx.own.speed(&request.model);
        let reply = ProbeReply {
            slots_free: cx.own.free_for_strangers(&request.model, request.kind, cx.config.reserved_slots),
            pending: 0,
            running: cx.own.running(&request.model),
            ttft_ms,
            per_unit_us,
            quote,
        };
        cx.emit(Effect::ReplyProbe { probe, reply });
    }

    // ---- admission ----

    pub(crate) fn frame(&mut self, cx: &mut Context, stream: StreamId, peer: NodeId, frame: Frame) {
        if let Frame::Open(open) = frame {
            return self.opened(cx, stream, peer, open);
        }
        let Some(serving) = self.serving.get(&stream) else { return }; // Late, not wrong.
        if serving.peer != peer {
            return;
        }
        match frame {
            Frame::Voucher(wire) => self.voucher(cx, stream, wire),
            Frame::Cancel => self.cancel(cx, stream),
            Frame::CoSigned(signature) => self.co_signed(cx, stream, signature),
            Frame::Open(_)
            | Frame::Accepted
            | Frame::Refused { .. }
            | Frame::Chunk { .. }
            | Frame::Alive
            | Frame::Done { .. }
            | Frame::Aborted { .. }
            | Frame::Rejected { .. } => self.cancel(cx, stream), // A consumer says none of these.
        }
    }

    fn opened(&mut self, cx: &mut Context, stream: StreamId, peer: NodeId, open: OpenJob) {
        if self.serving.contains_key(&stream) {
            return self.cancel(cx, stream);
        }
        match self.check_open(cx, peer, &open) {
            Err(refusal) => refuse(cx, stream, refusal),
            Ok((quote, voucher)) => {
                let session = voucher.value().session;
                let until = cx.now.after(SESSION_WAIT);
                let serving = Serving {
                    peer,
                    open: Box::new(open),
                    session,
                    price: quote.value().price,
                    window: quote.value().window,
                    stage: Stage::Parked { voucher: Box::new(voucher) },
                    began: cx.now,
                    first: None,
                    sequence: 0,
                    sent: 0,
                    transcript: Vec::new(),
                    held: VecDeque::new(),
                    held_bytes: 0,
                    held_units: 0,
                    unpaid: None,
                    last_sent: cx.now,
                    ended: None,
                };
                self.serving.insert(stream, serving);
                if self.sessions.contains_key(&session) {
                    self.admit(cx, stream);
                } else {
                    cx.timers.set(Alarm::Serve(stream), until);
                }
            }
        }
    }

    /// What can be said of an opening without the ledger. The voucher's signature is the first check.
    fn check_open(
        &self,
        cx: &Context,
        peer: NodeId,
        open: &OpenJob,
    ) -> Result<(Signed<Quote>, Signed<Voucher>), Refusal> {
        if self.serving.len() >= cx.config.jobs_max {
            return Err(Refusal::Busy);
        }
        let voucher = Signed::<Voucher>::open(open.voucher.clone()).map_err(|_| Refusal::ForgedVoucher)?;
        if voucher.value().network != cx.identity.network {
            return Err(Refusal::ForgedVoucher);
        }
        let quote = Signed::<Quote>::open(open.quote.clone()).map_err(|_| Refusal::BadQuote)?;
        let value = quote.value();
        let good = quote.signer() == cx.node.0
            && value.network == cx.identity.network
            && value.consumer == peer
            && value.account == cx.account
            && value.model == open.model
            && value.is_valid(cx.now);
        if !good {
            return Err(Refusal::BadQuote);
        }
        if let Some(refusal) = self.refusal(cx, &open.model, open.kind, open.output_max) {
            return Err(refusal);
        }
        let worst = Usage { input: (open.body.len() + open.prefix.len()) as u64, cached: 0, output: open.output_max };
        value.price.cost(worst).ok_or(Refusal::TooLarge)?;
        Ok((quote, voucher))
    }

    /// The session is known: the money is checked, then the job starts.
    fn admit(&mut self, cx: &mut Context, stream: StreamId) {
        let serving = self.serving.get(&stream).expect("the caller put it there");
        let Stage::Parked { voucher } = &serving.stage else { return };
        let session = self.sessions.get(&serving.session).expect("the caller saw it");
        let record = &session.record;
        let value = voucher.value();
        let best = value.total.max(record.vouched);
        let first = add(self.committed(session), serving.ahead());
        let refusal = if voucher.signer() != record.voucher_key {
            Some(Refusal::ForgedVoucher)
        } else if value.total > record.deposit {
            Some(Refusal::OverDeposit)
        } else if !serving.price.within(&record.price_cap) {
            Some(Refusal::BadQuote)
        } else if cx.now.after(EXPIRY_MARGIN).ms() >= record.expires_ms || record.receipts.len() >= RECEIPTS_MAX {
            Some(Refusal::SessionExpiring)
        } else if best < first {
            Some(Refusal::Underpaid)
        } else {
            self.refusal(cx, &serving.open.model, serving.open.kind, serving.open.output_max)
        };
        if let Some(refusal) = refusal {
            self.serving.remove(&stream);
            cx.timers.clear(Alarm::Serve(stream));
            return refuse(cx, stream, refusal);
        }
        // Every check has passed: nothing below can fail.
        let wire = voucher.to_wire();
        let total = value.total;
        let serving = self.serving.get_mut(&stream).expect("seen above");
        let session = self.sessions.get_mut(&serving.session).expect("seen above");
        let work = cx.own.start(cx.now, &serving.open.model, WorkFor::Stranger(stream));
        serving.stage = Stage::Running(work);
        serving.last_sent = cx.now;
        session.legs.push(stream);
        session.last_active = cx.now;
        accept_voucher(cx, session, total, wire);
        cx.emit(Effect::Send { stream, frame: Frame::Accepted });
        cx.emit(Effect::Run {
            work,
            model: serving.open.model.clone(),
            kind: serving.open.kind,
            body: serving.open.body.clone(),
            prefix: serving.open.prefix.clone(),
            own: false,
        });
        cx.timers.set(Alarm::Serve(stream), cx.now.after(cx.config.alive_every));
    }

    /// What a session's vouchers are spoken for: what was delivered, and a window for each running leg.
    fn committed(&self, session: &EarningSession) -> Credits {
        let legs = session.legs.iter().filter_map(|stream| self.serving.get(stream));
        legs.map(Serving::ahead).fold(session.record.spent, add)
    }

    /// What was delivered on a session, running legs counted.
    fn delivered(&self, session: &EarningSession) -> Credits {
        let legs = session.legs.iter().filter_map(|stream| self.serving.get(stream));
        legs.map(Serving::owed).fold(session.record.spent, add)
    }

    // ---- money ----

    fn voucher(&mut self, cx: &mut Context, stream: StreamId, wire: SignedBytes) {
        let Ok(voucher) = Signed::<Voucher>::open(wire) else { return self.cancel(cx, stream) };
        let serving = self.serving.get(&stream).expect("the caller saw it");
        let Some(session) = self.sessions.get_mut(&serving.session) else { return };
        let value = voucher.value();
        let forged = voucher.signer() != session.record.voucher_key
            || value.network != cx.identity.network
            || value.session != session.record.session;
        if forged || value.total > session.record.deposit {
            return self.cancel(cx, stream);
        }
        if value.total <= session.record.vouched {
            return; // The same again, or an older one: neither adds anything.
        }
        accept_voucher(cx, session, value.total, voucher.to_wire());
        let legs = session.legs.clone();
        for leg in legs {
            self.flush(cx, leg);
        }
    }

    /// Delivers what is held and paid for.
    fn flush(&mut self, cx: &mut Context, stream: StreamId) {
        let Some(serving) = self.serving.get(&stream) else { return };
        let Some(session) = self.sessions.get(&serving.session) else { return };
        let mut others = self.delivered(session).saturating_sub(serving.owed());
        let vouched = session.record.vouched;
        let serving = self.serving.get_mut(&stream).expect("seen above");
        let mut frames = Vec::new();
        while let Some((_, text)) = serving.held.front() {
            let after = serving.sent + text.len() as u64;
            // Events without text cost nothing, but the first text costs the prompt.
            let due = if text.is_empty() { serving.owed() } else { serving.cost(after) };
            if add(others, due) > vouched {
                serving.unpaid.get_or_insert(cx.now);
                break;
            }
            let (bytes, text) = serving.held.pop_front().expect("just seen");
            serving.held_bytes -= bytes.len();
            serving.held_units -= text.len() as u64;
            serving.unpaid = None;
            let offset = serving.open.prefix.len() as u64 + serving.sent;
            frames.push(Frame::Chunk { sequence: serving.sequence, offset, bytes });
            serving.sequence += 1;
            serving.sent = after;
            serving.transcript.extend_from_slice(&text);
            if !text.is_empty() {
                serving.first.get_or_insert(cx.now);
            }
        }
        if !frames.is_empty() {
            serving.last_sent = cx.now;
            others = add(others, serving.owed());
            let (units, input) = (serving.sent, serving.input());
            let id = serving.session;
            let session = self.sessions.get_mut(&id).expect("seen above");
            session.last_active = cx.now;
            // What is kept counts this leg as if it ended here: after a crash that much is claimed, and no more.
            let mut kept = session.record.clone();
            kept.spent = others;
            kept.usage = kept.usage.checked_add(Usage { input, cached: 0, output: units }).unwrap_or(kept.usage);
            cx.emit(Effect::Persist(Record::Earning(kept)));
            for frame in frames {
                cx.emit(Effect::Send { stream, frame });
            }
        }
        self.end_if_drained(cx, stream);
    }

    // ---- the backend ----

    pub(crate) fn output(&mut self, cx: &mut Context, stream: StreamId, bytes: Vec<u8>, text: Vec<u8>) {
        let Some(serving) = self.serving.get_mut(&stream) else { return };
        let Stage::Running(work) = serving.stage else { return };
        let units = serving.sent + serving.held_units + text.len() as u64;
        if units > serving.output_max() {
            // The backend counts tokens, the job is limited in units: here it ends.
            self.stop(cx, stream, work, Ending::Finished("length".into()));
            return;
        }
        serving.held_bytes += bytes.len();
        serving.held_units += text.len() as u64;
        serving.held.push_back((bytes, text));
        if serving.held_bytes > HELD_BYTES_MAX {
            return self.stop(cx, stream, work, Ending::Aborted(Abort::Unpaid));
        }
        self.flush(cx, stream);
    }

    /// Ends the backend's work before its own end.
    fn stop(&mut self, cx: &mut Context, stream: StreamId, work: WorkId, ending: Ending) {
        cx.emit(Effect::Stop(work));
        self.work_over(cx, stream, work, ending);
    }

    fn work_over(&mut self, cx: &mut Context, stream: StreamId, work: WorkId, ending: Ending) {
        cx.own.finish(cx.now, work);
        let Some(serving) = self.serving.get_mut(&stream) else { return };
        serving.stage = Stage::Draining;
        if !matches!(ending, Ending::Finished(_)) {
            serving.held.clear();
            serving.held_bytes = 0;
            serving.held_units = 0;
        }
        serving.ended = Some(ending);
        self.end_if_drained(cx, stream);
    }

    pub(crate) fn finished(&mut self, cx: &mut Context, stream: StreamId, work: WorkId, finish: String) {
        self.work_over(cx, stream, work, Ending::Finished(finish));
    }

    pub(crate) fn backend_failed(&mut self, cx: &mut Context, stream: StreamId, work: WorkId, error: BackendError) {
        let sent = self.serving.get(&stream).map_or(0, |serving| serving.sequence);
        let ending = match error {
            BackendError::Rejected { status, message } if sent == 0 => Ending::Rejected(status, message),
            BackendError::Rejected { .. } | BackendError::Failed(_) => Ending::Aborted(Abort::Backend),
            BackendError::Busy => Ending::Aborted(Abort::BackendBusy),
        };
        // What the backend had said before it failed is good text: it is delivered as far as it is paid.
        self.flush(cx, stream);
        self.work_over(cx, stream, work, ending);
    }

    // ---- a leg's end ----

    /// Once all is delivered: the receipt.
    fn end_if_drained(&mut self, cx: &mut Context, stream: StreamId) {
        let Some(serving) = self.serving.get(&stream) else { return };
        let (Stage::Draining, Some(ending), true) = (&serving.stage, &serving.ended, serving.held.is_empty()) else {
            return;
        };
        let ending = ending.clone();
        let finish = match &ending {
            Ending::Finished(finish) => finish.clone(),
            Ending::Aborted(abort) => match abort {
                Abort::Cancelled => "cancelled".to_owned(),
                Abort::Backend | Abort::BackendBusy | Abort::Unpaid | Abort::Leaving => "aborted".to_owned(),
            },
            Ending::Rejected(..) => {
                let Ending::Rejected(status, message) = ending else { unreachable!("just matched") };
                cx.emit(Effect::Send { stream, frame: Frame::Rejected { status, message } });
                return self.forget(cx, stream);
            }
        };
        let receipt = self.receipt(cx, stream, finish.clone());
        let wire = receipt.as_ref().map(Signed::to_wire);
        let frame = match (ending, wire) {
            (Ending::Finished(_), Some(receipt)) => Frame::Done { finish, receipt },
            (Ending::Aborted(abort), receipt) => Frame::Aborted { abort, receipt },
            (Ending::Finished(_), None) | (Ending::Rejected(..), _) => unreachable!("a finished leg has a receipt"),
        };
        cx.emit(Effect::Send { stream, frame });
        match receipt {
            None => self.forget(cx, stream),
            Some(receipt) => {
                let serving = self.serving.get_mut(&stream).expect("seen above");
                let until = cx.now.after(CO_SIGN_WAIT);
                serving.stage = Stage::Delivered { leg: serving.open.leg, receipt: Box::new(receipt) };
                cx.timers.set(Alarm::Serve(stream), until);
            }
        }
    }

    /// Books what the leg delivered, and signs the receipt for it; `None` if nothing is owed.
    fn receipt(&mut self, cx: &mut Context, stream: StreamId, finish: String) -> Option<Signed<Receipt>> {
        let serving = self.serving.get(&stream)?;
        let owed = serving.owed();
        let finished = matches!(serving.ended, Some(Ending::Finished(_)));
        if serving.sent == 0 && !finished {
            self.release(cx, stream, None);
            return None;
        }
        let usage = Usage { input: serving.input(), cached: 0, output: serving.sent };
        let model = &serving.open.model;
        let receipt = Receipt {
            network: cx.identity.network,
            session: serving.session,
            job: serving.open.job,
            leg: serving.open.leg,
            model: model.clone(),
            weights: cx.own.capacity(model).map_or(Digest::from_bytes([0; 32]), |capacity| capacity.weights),
            kind: serving.open.kind.as_str().to_owned(),
            prompt: prompt_digest(&serving.open.body, &serving.open.prefix),
            transcript: transcript_digest(&serving.transcript),
            usage,
            price: serving.price,
            cost: owed,
            first_token_ms: millis(serving.first.unwrap_or(cx.now).since(serving.began)),
            total_ms: millis(cx.now.since(serving.began)),
            finish,
            time_ms: cx.now.ms(),
        };
        let (job, leg) = (receipt.job, receipt.leg);
        let receipt = Signed::sign(receipt, &cx.identity.account);
        cx.emit(Effect::Persist(Record::Receipt { job, leg, both: false, bytes: receipt.to_bytes() }));
        self.release(cx, stream, Some((usage, owed, receipt.digest())));
        Some(receipt)
    }

    /// Takes the leg off its session; what it delivered is booked.
    fn release(&mut self, cx: &mut Context, stream: StreamId, delivered: Option<(Usage, Credits, Digest)>) {
        let Some(serving) = self.serving.get(&stream) else { return };
        let Some(session) = self.sessions.get_mut(&serving.session) else { return };
        if !session.legs.contains(&stream) {
            return;
        }
        session.legs.retain(|leg| *leg != stream);
        session.last_active = cx.now;
        if let Some((usage, owed, digest)) = delivered {
            session.record.spent = add(session.record.spent, owed);
            session.record.usage = session.record.usage.checked_add(usage).unwrap_or(session.record.usage);
            session.record.receipts.push(digest);
        }
        cx.emit(Effect::Persist(Record::Earning(session.record.clone())));
        cx.timers.set(Alarm::Settle(session.record.session), cx.now.after(cx.config.settle_after));
    }

    fn co_signed(&mut self, cx: &mut Context, stream: StreamId, signature: Signature) {
        let Some(serving) = self.serving.get(&stream) else { return };
        let Stage::Delivered { leg, receipt, .. } = &serving.stage else { return };
        let Some(session) = self.sessions.get(&serving.session) else { return };
        let (job, leg) = (serving.open.job, *leg);
        if let Ok(both) = CoSigned::join((**receipt).clone(), session.record.voucher_key, signature) {
            cx.emit(Effect::Persist(Record::Receipt { job, leg, both: true, bytes: both.to_bytes() }));
        }
        self.forget(cx, stream);
    }

    /// The consumer wants no more, or broke the rules: what was delivered is booked, the rest is dropped.
    fn cancel(&mut self, cx: &mut Context, stream: StreamId) {
        let Some(serving) = self.serving.get_mut(&stream) else { return };
        match serving.stage {
            Stage::Running(work) => self.stop(cx, stream, work, Ending::Aborted(Abort::Cancelled)),
            Stage::Draining => {
                serving.held.clear();
                serving.held_bytes = 0;
                serving.held_units = 0;
                serving.ended = Some(Ending::Aborted(Abort::Cancelled));
                self.end_if_drained(cx, stream);
            }
            Stage::Parked { .. } | Stage::Delivered { .. } => self.forget(cx, stream),
        }
    }

    pub(crate) fn stream_closed(&mut self, cx: &mut Context, stream: StreamId) {
        self.cancel(cx, stream);
        self.forget(cx, stream);
    }

    pub(crate) fn peer_lost(&mut self, cx: &mut Context, peer: NodeId) {
        let lost: Vec<StreamId> =
            self.serving.iter().filter(|(_, serving)| serving.peer == peer).map(|(stream, _)| *stream).collect();
        for stream in lost {
            self.stream_closed(cx, stream);
        }
    }

    fn forget(&mut self, cx: &mut Context, stream: StreamId) {
        if self.serving.remove(&stream).is_some() {
            cx.timers.clear(Alarm::Serve(stream));
            cx.emit(Effect::CloseStream(stream));
        }
    }

    /// A leg's alarm: show life, or give up waiting.
    pub(crate) fn overdue(&mut self, cx: &mut Context, stream: StreamId) {
        let Some(serving) = self.serving.get_mut(&stream) else { return };
        match &serving.stage {
            Stage::Parked { .. } => {
                self.serving.remove(&stream);
                refuse(cx, stream, Refusal::UnknownSession);
            }
            Stage::Delivered { .. } => self.forget(cx, stream),
            Stage::Running(_) | Stage::Draining => {
                if serving.unpaid.is_some_and(|since| cx.now.since(since) >= cx.config.payment_wait) {
                    let stage = serving.stage.clone();
                    if let Stage::Running(work) = stage {
                        return self.stop(cx, stream, work, Ending::Aborted(Abort::Unpaid));
                    }
                    serving.held.clear();
                    serving.held_bytes = 0;
                    serving.held_units = 0;
                    serving.ended = Some(Ending::Aborted(Abort::Unpaid));
                    return self.end_if_drained(cx, stream);
                }
                let due = serving.last_sent.after(cx.config.alive_every);
                if cx.now >= due {
                    serving.last_sent = cx.now;
                    cx.emit(Effect::Send { stream, frame: Frame::Alive });
                    return cx.timers.set(Alarm::Serve(stream), cx.now.after(cx.config.alive_every));
                }
                cx.timers.set(Alarm::Serve(stream), due);
            }
        }
    }

    // ---- sessions on the ledger ----

    pub(crate) fn session_opened(&mut self, cx: &mut Context, record: Earning) {
        let id = record.session;
        // Not kept yet: the ledger tells it again after a restart, until there is something to claim.
        let session = EarningSession { record, legs: Vec::new(), last_active: cx.now, settling: None };
        self.sessions.entry(id).or_insert(session);
        let waiting: Vec<StreamId> = self
            .serving
            .iter()
            .filter(|(_, serving)| serving.session == id && matches!(serving.stage, Stage::Parked { .. }))
            .map(|(stream, _)| *stream)
            .collect();
        for stream in waiting {
            self.admit(cx, stream);
        }
    }

    /// Claims what was delivered, once the session has rested for a while or nears its end.
    pub(crate) fn settle_due(&mut self, cx: &mut Context, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let last = cx.now.after(EXPIRY_MARGIN).ms() >= session.record.expires_ms && session.legs.is_empty();
        let rested = session.last_active.after(cx.config.settle_after);
        if session.settling.is_some() {
            return;
        }
        if !last && cx.now < rested {
            return cx.timers.set(Alarm::Settle(id), rested);
        }
        let record = &session.record;
        // Never above the voucher, which the ledger would refuse.
        let claim = record.spent.min(record.vouched);
        #[cfg(feature = "sabotage")]
        let claim = if cx.sabotaged(crate::context::Sabotage::OverClaim) { record.vouched } else { claim };
        let Some(voucher) = record.voucher.clone() else { return };
        if claim <= record.settled {
            return;
        }
        let digest = Digest::of("spillway/settle", &[id.0.as_bytes(), &claim.micro().to_le_bytes()]);
        let mut business = [0; 16];
        business.copy_from_slice(&digest.as_bytes()[..16]);
        session.settling = Some(business);
        let command = LedgerCommand::Settle {
            voucher,
            claim,
            usage: record.usage,
            receipts: merkle_root(&record.receipts),
            last,
        };
        cx.emit(Effect::Ledger { business, command });
    }

    pub(crate) fn session_settled(&mut self, cx: &mut Context, id: SessionId, settled: Credits, closed: bool) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        session.settling = None;
        session.record.settled = session.record.settled.max(settled);
        if closed {
            let legs = session.legs.clone();
            for stream in legs {
                self.cancel(cx, stream);
            }
            self.sessions.remove(&id);
            cx.timers.clear(Alarm::Settle(id));
            cx.emit(Effect::Persist(Record::EarningOver(id)));
            return;
        }
        let mut kept = session.record.clone();
        let more = kept.spent > kept.settled;
        let session = self.sessions.get(&id).expect("seen above");
        kept.spent = self.delivered(session);
        cx.emit(Effect::Persist(Record::Earning(kept)));
        let near_end = Now::from_ms(self.sessions.get(&id).map_or(0, |session| session.record.expires_ms));
        let at = if more { cx.now.after(cx.config.settle_after) } else { before(near_end, EXPIRY_MARGIN).max(cx.now) };
        cx.timers.set(Alarm::Settle(id), at);
    }

    /// The ledger refused a claim for good: it is tried again later, when more may have been delivered.
    pub(crate) fn settle_refused(&mut self, cx: &mut Context, business: [u8; 16]) {
        let refused = self.sessions.values_mut().find(|session| session.settling == Some(business));
        if let Some(session) = refused {
            session.settling = None;
            let at = cx.now.after(cx.config.settle_after.max(Duration::from_secs(10)));
            cx.timers.set(Alarm::Settle(session.record.session), at);
        }
    }

    /// Jobs of strangers under way.
    pub(crate) fn jobs(&self) -> impl Iterator<Item = JobId> {
        self.serving.values().map(|serving| serving.open.job)
    }
}

fn before(moment: Now, span: Duration) -> Now {
    Now(moment.0.saturating_sub(u64::try_from(span.as_micros()).unwrap_or(u64::MAX)))
}

/// Keeps a voucher that promises more than the best so far.
fn accept_voucher(cx: &mut Context, session: &mut EarningSession, total: Credits, wire: SignedBytes) {
    if total <= session.record.vouched && session.record.voucher.is_some() {
        return;
    }
    session.record.vouched = total;
    session.record.voucher = Some(wire);
    cx.emit(Effect::Persist(Record::Earning(session.record.clone())));
}

fn refuse(cx: &mut Context, stream: StreamId, refusal: Refusal) {
    let retry_after_ms = if refusal == Refusal::Busy { 1_000 } else { 0 };
    cx.emit(Effect::Send { stream, frame: Frame::Refused { refusal, retry_after_ms } });
    cx.emit(Effect::CloseStream(stream));
}

fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}
