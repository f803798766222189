//! The serving half of a peer: quotes, admits strangers' jobs to what is idle, and delivers only what is paid.
//! Invariants: text leaves only once its cost lies below the best voucher, and after that was told to disk;
//! a claim on the ledger is what was delivered, never what was merely promised.

mod admit;
mod close;
mod load;

use crate::consumer::{prompt_digest, transcript_digest};
use crate::context::{Alarm, Context};
use crate::event::{BackendError, Effect, LedgerCommand, ProbeId, StreamId, WorkId};
use crate::job::{Kind, OUTPUT_UNITS_MAX};
use crate::offer::{QUOTE_LIFETIME, Quote};
use crate::own::{Start, WorkFor};
use crate::paying::SESSION_JOBS_MAX;
use crate::prefix;
use crate::record::{Earning, Record};
use crate::selling::{Sell, Slots};
use crate::time::Now;
use crate::wire::{Abort, Frame, Load, OpenJob, Probe, ProbeReply, Refusal};
use spillway_ledger::{
    CoSigned, Credits, Digest, JobId, NodeId, Price, Receipt, SessionId, Signature, Signed, SignedBytes, Usage,
    Voucher, merkle_root,
};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Answer bytes held for one job while its consumer does not pay.
const HELD_BYTES_MAX: usize = 16 << 20;
/// How long a job may wait for its session, or for a top-up that its vouchers count on, to appear on this node's copy of the ledger.
const SESSION_WAIT: Duration = Duration::from_secs(3);
/// How long to wait for the consumer's signature below a receipt.
const CO_SIGN_WAIT: Duration = Duration::from_secs(10);
/// A session that ends sooner than this takes no new job, and is settled for the last time.
const EXPIRY_MARGIN: Duration = Duration::from_secs(300);
/// A session that never rests is claimed after so many times the rest that is waited for otherwise.
const BUSY_FACTOR: u32 = 4;

#[derive(Debug)]
struct Serving {
    peer: NodeId,
    open: Box<OpenJob>,
    session: SessionId,
    price: Price,
    window: u64,
    /// Input units that are billed at the cached price, by the quote.
    cached: u64,
    /// The names of the body's prefix blocks.
    names: Vec<u64>,
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
    /// When it next shows that it is there while it waits for its session, or gives up waiting.
    fn show_life_at(&self, cx: &Context) -> Now {
        cx.now.after(cx.config.alive_every).min(self.began.after(SESSION_WAIT))
    }

    fn input(&self) -> u64 {
        (self.open.body.len() + self.open.prefix.len()) as u64
    }

    /// This much output, as it is billed.
    fn usage(&self, output: u64) -> Usage {
        let cached = self.cached.min(self.input());
        Usage { input: self.input() - cached, cached, output }
    }

    fn cost(&self, output: u64) -> Credits {
        self.price.cost(self.usage(output)).expect("the worst case was computed on admission")
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
    /// Since when a leg is over that no claim covers.
    unclaimed: Option<Now>,
    early: Option<Early>,
    /// The business id of the claim that the ledger has not answered yet.
    settling: Option<[u8; 16]>,
}

/// The serving half.
#[derive(Debug, Default)]
pub(crate) struct Provider {
    serving: BTreeMap<StreamId, Serving>,
    sessions: BTreeMap<SessionId, EarningSession>,
}

/// A voucher above the deposit that this node's copy of the ledger shows. The top-up that it counts on may be on its way.
#[derive(Debug)]
struct Early {
    total: Credits,
    voucher: SignedBytes,
    /// Which job brought the first such.
    stream: StreamId,
    since: Now,
}

impl EarningSession {
    const fn new(now: Now, record: Earning) -> Self {
        Self { record, legs: Vec::new(), last_active: now, unclaimed: None, early: None, settling: None }
    }

    /// Whether it has had all jobs that one session may have.
    fn is_full(&self) -> bool {
        self.record.receipts.len() >= SESSION_JOBS_MAX
    }

    /// Whether no job may begin on it any more: it nears its end, or has had all its jobs.
    fn takes_no_more(&self, now: Now) -> bool {
        now >= self.nears_end_at() || self.is_full()
    }

    /// From when on it is too near its end for another job.
    fn nears_end_at(&self) -> Now {
        Now::from_ms(self.record.expires_ms).before(EXPIRY_MARGIN)
    }

    /// When what was delivered is to be claimed: after a rest of `settle_after`, or in use after a few times that long.
    fn claim_at(&self, settle_after: Duration) -> Now {
        let rested = self.last_active.after(settle_after);
        let longest = settle_after.saturating_mul(BUSY_FACTOR);
        self.unclaimed.map_or(rested, |since| rested.min(since.after(longest)))
    }
}

fn add(a: Credits, b: Credits) -> Credits {
    a.checked_add(b).expect("bounded by the deposit")
}

impl Provider {
    /// Takes back a session that paid this node before a restart.
    pub(crate) fn restore(&mut self, cx: &mut Context, record: Earning) {
        cx.timers.set(Alarm::Settle(record.session), cx.now);
        let session = record.session;
        self.sessions.insert(session, EarningSession::new(cx.now, record));
    }

    // ---- a leg under way ----

    fn voucher(&mut self, cx: &mut Context, stream: StreamId, wire: SignedBytes) {
        let Ok(voucher) = Signed::<Voucher>::open(wire) else { return self.cancel(cx, stream) };
        let serving = self.serving.get(&stream).expect("the caller saw it");
        let Some(session) = self.sessions.get_mut(&serving.session) else { return };
        let value = voucher.value();
        let forged = voucher.signer() != session.record.voucher_key
            || value.network != cx.identity.network
            || value.session != session.record.session;
        if forged {
            return self.cancel(cx, stream);
        }
        if value.total > session.record.deposit {
            // It counts for nothing yet. Without the top-up that it needs, `overdue` ends the job.
            let first = session.early.take().filter(|early| self.serving.contains_key(&early.stream));
            let (stream, since) = first.map_or((stream, cx.now), |early| (early.stream, early.since));
            session.early = Some(Early { total: value.total, voucher: voucher.to_wire(), stream, since });
            return;
        }
        let id = session.record.session;
        // The same again, or an older one, adds nothing to what is kept.
        if value.total > session.record.vouched {
            accept_voucher(session, value.total, voucher.to_wire());
            self.keep(cx, id);
        }
        self.flush_all(cx, id);
    }

    /// Delivers what every leg of a session holds, as far as it is paid: they share its vouchers.
    fn flush_all(&mut self, cx: &mut Context, id: SessionId) {
        let legs = self.sessions.get(&id).map(|session| session.legs.clone()).unwrap_or_default();
        for leg in legs {
            self.flush(cx, leg);
        }
    }

    /// Keeps a session as it is, running legs counted as if they ended here: after a crash that much is claimed, and no
    /// more. What is kept of a session never shrinks.
    fn keep(&self, cx: &mut Context, id: SessionId) {
        let Some(session) = self.sessions.get(&id) else { return };
        let mut kept = session.record.clone();
        kept.spent = self.delivered(session);
        for serving in session.legs.iter().filter_map(|stream| self.serving.get(stream)) {
            if !serving.owed().is_zero() {
                let usage = serving.usage(serving.sent);
                kept.usage = kept.usage.checked_add(usage).unwrap_or(kept.usage);
            }
        }
        cx.emit(Effect::Persist(Record::Earning(kept)));
    }

    /// Delivers what is held and paid for.
    fn flush(&mut self, cx: &mut Context, stream: StreamId) {
        let Some(serving) = self.serving.get(&stream) else { return };
        let Some(session) = self.sessions.get(&serving.session) else { return };
        let others = self.delivered(session).saturating_sub(serving.owed());
        let vouched = session.record.vouched;
        let serving = self.serving.get_mut(&stream).expect("seen above");
        let mut frames = Vec::new();
        let mut stuck = None;
        while let Some((_, text)) = serving.held.front() {
            let after = serving.sent + text.len() as u64;
            // Events without text cost nothing, but the first text costs the prompt.
            let due = if text.is_empty() { serving.owed() } else { serving.cost(after) };
            if add(others, due) > vouched {
                if serving.unpaid.is_none() {
                    serving.unpaid = Some(cx.now);
                    stuck = Some(text.len() as u64);
                }
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
        let window = serving.window;
        if !frames.is_empty() {
            serving.last_sent = cx.now;
            let id = serving.session;
            self.sessions.get_mut(&id).expect("seen above").last_active = cx.now;
            self.keep(cx, id);
            for frame in frames {
                cx.emit(Effect::Send { stream, frame });
            }
        }
        // One event may be larger than the window: the consumer must know, or both would wait for each other.
        if let Some(held) = stuck.filter(|held| *held > window) {
            cx.emit(Effect::Send { stream, frame: Frame::Alive { held } });
        }
        self.end_if_drained(cx, stream);
    }

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
            BackendError::Rejected { .. } | BackendError::Answered { .. } | BackendError::Failed(_) => {
                Ending::Aborted(Abort::Backend)
            }
            BackendError::Busy { .. } => Ending::Aborted(Abort::BackendBusy),
        };
        // What the backend had said before it failed is good text: it is delivered as far as it is paid.
        self.flush(cx, stream);
        self.work_over(cx, stream, work, ending);
    }
}

/// Takes a voucher that promises more than the best so far. The caller keeps the session before it acts on it.
fn accept_voucher(session: &mut EarningSession, total: Credits, wire: SignedBytes) {
    if total > session.record.vouched || session.record.voucher.is_none() {
        session.record.vouched = total;
        session.record.voucher = Some(wire);
    }
}
