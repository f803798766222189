//! Quotes and admission: who is served, at what price, and what is refused.
//! Invariant: what a probe is told and what an opening gets come from the same rule.

use super::load::slots_free;
use super::*;
use crate::reputation::Score;

/// Consumers below this payment score are quoted nothing: those that let two windows in a row go unpaid.
const PAYMENT_MIN: f64 = 0.05;

/// An opening that passed every check that needs no ledger.
pub(super) struct Checked {
    quote: Signed<Quote>,
    voucher: Signed<Voucher>,
    /// The names of the body's prefix blocks.
    names: Vec<u64>,
}

impl Provider {
    /// The one rule for what is advertised and what is admitted.
    pub(super) fn refusal(&self, cx: &mut Context, model: &str, kind: Kind, output_max: u64) -> Option<Refusal> {
        if !cx.config.provide || cx.own.capacity(model).is_none_or(|capacity| !capacity.kinds.contains(&kind)) {
            return Some(Refusal::UnknownModel);
        }
        if output_max > OUTPUT_UNITS_MAX {
            return Some(Refusal::TooLarge);
        }
        let full = self.serving.len() >= cx.config.jobs_max;
        if full || slots_free(cx, model, kind) == 0 {
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
        } else if window < cx.config.window / 8 || cx.reputation.score(&peer, Score::Payment) < PAYMENT_MIN {
            Some(Refusal::Underpaid)
        } else {
            self.refusal(cx, &request.model, request.kind, request.output_max)
        };
        let cached_units = cx.own.cached_units(&request.model, &request.prefix);
        let quote = match refusal {
            Some(refusal) => Err(refusal),
            None => {
                let blocks = cached_units as usize / prefix::PREFIX_UNITS;
                let quote = Quote {
                    network: cx.identity.network,
                    provider: cx.node,
                    account: cx.account,
                    consumer: peer,
                    model: request.model.clone(),
                    price: cx.config.price,
                    window,
                    cached: u64::from(cached_units),
                    prefix: blocks.checked_sub(1).map_or(0, |last| request.prefix[last]),
                    valid_until_ms: cx.now.after(QUOTE_LIFETIME).ms(),
                };
                Ok(Signed::sign(quote, &cx.identity.node).to_wire())
            }
        };
        let load = self.load(cx, &request.model, request.kind);
        let retry_after_ms = if quote.is_ok() { 0 } else { self.retry_after_ms(cx, &request.model, request.kind) };
        let hot = cx.own.hot(&request.model);
        let reply = ProbeReply { load, cached_units, hot, retry_after_ms, quote };
        cx.emit(Effect::ReplyProbe { probe, reply });
    }

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
            | Frame::Accepted { .. }
            | Frame::Refused { .. }
            | Frame::Chunk { .. }
            | Frame::Alive { .. }
            | Frame::Done { .. }
            | Frame::Aborted { .. }
            | Frame::Rejected { .. } => self.cancel(cx, stream), // A consumer says none of these.
        }
    }

    pub(super) fn opened(&mut self, cx: &mut Context, stream: StreamId, peer: NodeId, open: OpenJob) {
        if self.serving.contains_key(&stream) {
            return self.cancel(cx, stream);
        }
        match self.check_open(cx, peer, &open) {
            Err(refusal) => self.refuse(cx, stream, &open, refusal),
            Ok(Checked { quote, voucher, names }) => {
                let session = voucher.value().session;
                let serving = Serving {
                    peer,
                    open: Box::new(open),
                    session,
                    price: quote.value().price,
                    window: quote.value().window,
                    cached: quote.value().cached_of(&names),
                    names,
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
                cx.timers.set(Alarm::Serve(stream), serving.show_life_at(cx));
                self.serving.insert(stream, serving);
                if self.sessions.contains_key(&session) {
                    self.admit(cx, stream);
                }
            }
        }
    }

    /// What can be said of an opening without the ledger. The voucher's signature is the first check.
    pub(super) fn check_open(&self, cx: &mut Context, peer: NodeId, open: &OpenJob) -> Result<Checked, Refusal> {
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
        if !open.prefix.is_empty() && !cx.own.goes_on(&open.model, open.kind) {
            return Err(Refusal::CannotContinue);
        }
        let worst = Usage { input: (open.body.len() + open.prefix.len()) as u64, cached: 0, output: open.output_max };
        value.price.cost(worst).ok_or(Refusal::TooLarge)?;
        // From the body itself: what a probe named may be another prompt's.
        let names = prefix::names(&open.model, &open.body);
        Ok(Checked { quote, voucher, names })
    }

    /// The session is known: the money is checked, then the job starts.
    pub(super) fn admit(&mut self, cx: &mut Context, stream: StreamId) {
        let serving = self.serving.get(&stream).expect("the caller put it there");
        let Stage::Parked { voucher } = &serving.stage else { return };
        let session = self.sessions.get(&serving.session).expect("the caller saw it");
        let record = &session.record;
        let value = voucher.value();
        let patience = serving.began.after(SESSION_WAIT);
        if voucher.signer() == record.voucher_key && value.total > record.deposit && cx.now < patience {
            // The consumer may know of a top-up that has not reached this node's copy of the ledger.
            return cx.timers.set(Alarm::Serve(stream), serving.show_life_at(cx));
        }
        let best = value.total.max(record.vouched);
        // Running legs are counted as delivered, not with their windows: what is on its way to the consumer was not yet in
        // the voucher that it signed. They wait for the next one, as always.
        let first = add(self.delivered(session), serving.ahead());
        let refusal = if voucher.signer() != record.voucher_key {
            Some(Refusal::ForgedVoucher)
        } else if value.total > record.deposit {
            Some(Refusal::OverDeposit)
        } else if !serving.price.within(&record.price_cap) {
            Some(Refusal::BadQuote)
        } else if session.takes_no_more(cx.now) {
            Some(Refusal::SessionExpiring)
        } else if best < first {
            Some(Refusal::Underpaid)
        } else {
            self.refusal(cx, &serving.open.model, serving.open.kind, serving.open.output_max)
        };
        if let Some(refusal) = refusal {
            let parked = self.serving.remove(&stream).expect("seen above");
            cx.timers.clear(Alarm::Serve(stream));
            return self.refuse(cx, stream, &parked.open, refusal);
        }
        // Every check has passed: nothing below can fail.
        let wire = voucher.to_wire();
        let total = value.total;
        let serving = self.serving.get_mut(&stream).expect("seen above");
        let session = self.sessions.get_mut(&serving.session).expect("seen above");
        let start = Start {
            model: &serving.open.model,
            whose: WorkFor::Stranger(stream),
            prompt: serving.input(),
            names: serving.names.clone(),
            output_max: serving.output_max(),
            continuable: serving.open.continuable,
            whole: false,
        };
        let work = cx.own.start(cx.now, start);
        serving.stage = Stage::Running(work);
        serving.last_sent = cx.now;
        session.legs.push(stream);
        session.last_active = cx.now;
        accept_voucher(session, total, wire);
        let id = session.record.session;
        self.keep(cx, id);
        let serving = self.serving.get(&stream).expect("seen above");
        let load = self.load(cx, &serving.open.model, serving.open.kind);
        cx.emit(Effect::Send { stream, frame: Frame::Accepted { load } });
        cx.emit(Effect::Run {
            work,
            model: serving.open.model.clone(),
            kind: serving.open.kind,
            body: serving.open.body.clone(),
            prefix: serving.open.prefix.clone(),
            own: false,
            whole: false,
            choice: crate::job::OwnChoice::default(),
            job: None,
            beside: None,
        });
        cx.timers.set(Alarm::Serve(stream), cx.now.after(cx.config.alive_every));
        // Its voucher may be what other legs of the session wait for.
        self.flush_all(cx, id);
    }

    /// What was delivered on a session, running legs counted.
    pub(super) fn delivered(&self, session: &EarningSession) -> Credits {
        let legs = session.legs.iter().filter_map(|stream| self.serving.get(stream));
        legs.map(Serving::owed).fold(session.record.spent, add)
    }
}
