//! A leg's end and its money: the receipt, and the claim on the ledger.
//! Invariant: a leg is booked once, and a claim never exceeds what was delivered or what was vouched.

use super::*;
use crate::reputation::Experience;

impl Provider {
    /// Once all is delivered: the receipt.
    pub(super) fn end_if_drained(&mut self, cx: &mut Context, stream: StreamId) {
        let Some(serving) = self.serving.get(&stream) else { return };
        let (Stage::Draining, Some(ending), true) = (&serving.stage, &serving.ended, serving.held.is_empty()) else {
            return;
        };
        let ending = ending.clone();
        let finish = match &ending {
            Ending::Finished(finish) => finish.clone(),
            Ending::Aborted(abort) => match abort {
                Abort::Cancelled => "cancelled".to_owned(),
                Abort::Preempted => "preempted".to_owned(),
                Abort::Backend | Abort::BackendBusy | Abort::Unpaid | Abort::Leaving => "aborted".to_owned(),
            },
            Ending::Rejected(..) => {
                let Ending::Rejected(status, message) = ending else { unreachable!("just matched") };
                cx.emit(Effect::Send { stream, frame: Frame::Rejected { status, message } });
                return self.forget(cx, stream);
            }
        };
        let (model, kind) = (serving.open.model.clone(), serving.open.kind);
        let receipt = self.receipt(cx, stream, finish.clone());
        let wire = receipt.as_ref().map(Signed::to_wire);
        let frame = match (ending, wire) {
            (Ending::Finished(_), Some(receipt)) => Frame::Done { finish, receipt, load: self.load(cx, &model, kind) },
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
    pub(super) fn receipt(&mut self, cx: &mut Context, stream: StreamId, finish: String) -> Option<Signed<Receipt>> {
        let serving = self.serving.get(&stream)?;
        let owed = serving.owed();
        let finished = matches!(serving.ended, Some(Ending::Finished(_)));
        if serving.sent == 0 && !finished {
            self.release(cx, stream, None);
            return None;
        }
        let usage = serving.usage(serving.sent);
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
    pub(super) fn release(&mut self, cx: &mut Context, stream: StreamId, delivered: Option<(Usage, Credits, Digest)>) {
        let Some(serving) = self.serving.get(&stream) else { return };
        let Some(session) = self.sessions.get_mut(&serving.session) else { return };
        if !session.legs.contains(&stream) {
            return;
        }
        session.legs.retain(|leg| *leg != stream);
        session.last_active = cx.now;
        if let Some((usage, owed, digest)) = delivered {
            session.unclaimed.get_or_insert(cx.now);
            session.record.spent = add(session.record.spent, owed);
            session.record.usage = session.record.usage.checked_add(usage).unwrap_or(session.record.usage);
            session.record.receipts.push(digest);
        }
        let id = session.record.session;
        let due = if session.is_full() { cx.now } else { session.claim_at(cx.config.settle_after) };
        self.keep(cx, id);
        cx.timers.set(Alarm::Settle(id), due);
    }

    pub(super) fn co_signed(&mut self, cx: &mut Context, stream: StreamId, signature: Signature) {
        let Some(serving) = self.serving.get(&stream) else { return };
        let Stage::Delivered { leg, receipt, .. } = &serving.stage else { return };
        let Some(session) = self.sessions.get(&serving.session) else { return };
        let (job, leg, peer) = (serving.open.job, *leg, serving.peer);
        cx.reputation.record(cx.now, peer, Experience::Paid);
        if let Ok(both) = CoSigned::join((**receipt).clone(), session.record.voucher_key, signature) {
            cx.emit(Effect::Persist(Record::Receipt { job, leg, both: true, bytes: both.to_bytes() }));
        }
        self.forget(cx, stream);
    }

    /// The consumer wants no more, or broke the rules: what was delivered is booked, the rest is dropped.
    pub(super) fn cancel(&mut self, cx: &mut Context, stream: StreamId) {
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

    /// The owner took the slot; the backend was stopped. What was delivered is billed.
    pub(crate) fn preempted(&mut self, cx: &mut Context, stream: StreamId) {
        let Some(Serving { stage: Stage::Running(work), .. }) = self.serving.get(&stream) else { return };
        let work = *work;
        self.work_over(cx, stream, work, Ending::Aborted(Abort::Preempted));
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

    pub(super) fn forget(&mut self, cx: &mut Context, stream: StreamId) {
        if self.serving.remove(&stream).is_some() {
            cx.timers.clear(Alarm::Serve(stream));
            cx.emit(Effect::CloseStream(stream));
        }
    }

    /// A leg's alarm: show life, or give up waiting.
    pub(crate) fn overdue(&mut self, cx: &mut Context, stream: StreamId) {
        let Some(serving) = self.serving.get_mut(&stream) else { return };
        match &serving.stage {
            Stage::Parked { .. } if cx.now < serving.began.after(SESSION_WAIT) => {
                // It waits for what the ledger says of its session.
                serving.last_sent = cx.now;
                cx.emit(Effect::Send { stream, frame: Frame::Alive { held: 0 } });
                cx.timers.set(Alarm::Serve(stream), serving.show_life_at(cx));
            }
            Stage::Parked { .. } if self.sessions.contains_key(&serving.session) => self.admit(cx, stream),
            Stage::Parked { .. } => {
                let parked = self.serving.remove(&stream).expect("seen above");
                self.refuse(cx, stream, &parked.open, Refusal::UnknownSession);
            }
            Stage::Delivered { .. } => self.forget(cx, stream),
            Stage::Running(_) | Stage::Draining => {
                let early = self.sessions.get(&serving.session).and_then(|session| session.early.as_ref());
                if early.is_some_and(|early| early.stream == stream && early.since.after(SESSION_WAIT) <= cx.now) {
                    return self.cancel(cx, stream); // No top-up came: the voucher promises what is not there.
                }
                if serving.unpaid.is_some_and(|since| cx.now.since(since) >= cx.config.payment_wait) {
                    cx.reputation.record(cx.now, serving.peer, Experience::Unpaid);
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
                    let held = serving.held.front().map_or(0, |(_, text)| text.len() as u64);
                    cx.emit(Effect::Send { stream, frame: Frame::Alive { held } });
                    return cx.timers.set(Alarm::Serve(stream), cx.now.after(cx.config.alive_every));
                }
                cx.timers.set(Alarm::Serve(stream), due);
            }
        }
    }

    pub(crate) fn session_opened(&mut self, cx: &mut Context, record: Earning) {
        let id = record.session;
        // Not kept yet: the ledger tells it again after a restart, until there is something to claim.
        if self.sessions.contains_key(&id) {
            return self.session_topped_up(cx, id, record.deposit);
        }
        self.sessions.insert(id, EarningSession::new(cx.now, record));
        self.admit_waiting(cx, id);
    }

    /// The ledger raised what is locked in a session: vouchers that counted on it hold.
    pub(crate) fn session_topped_up(&mut self, cx: &mut Context, id: SessionId, deposit: Credits) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        if deposit <= session.record.deposit {
            return; // Told before.
        }
        session.record.deposit = deposit;
        if let Some(early) = session.early.take_if(|early| early.total <= deposit) {
            accept_voucher(session, early.total, early.voucher);
        }
        // As with an opening, the ledger tells it again until there is something to claim.
        if session.record.voucher.is_some() {
            self.keep(cx, id);
        }
        self.admit_waiting(cx, id);
        self.flush_all(cx, id);
    }

    /// Looks again at the jobs that wait for what the ledger says of their session.
    fn admit_waiting(&mut self, cx: &mut Context, id: SessionId) {
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

    /// Claims what was delivered, once the session has rested for a while, nears its end, or was in use for too long
    /// without a claim: one that is topped up again and again may never rest. Legs that run are claimed when they are over.
    pub(crate) fn settle_due(&mut self, cx: &mut Context, id: SessionId) {
        let Some(session) = self.sessions.get_mut(&id) else { return };
        let last = session.takes_no_more(cx.now) && session.legs.is_empty();
        let due = session.claim_at(cx.config.settle_after);
        if session.settling.is_some() {
            return;
        }
        if !last && cx.now < due {
            return cx.timers.set(Alarm::Settle(id), due);
        }
        let record = &session.record;
        // Never above the voucher, which the ledger would refuse.
        let claim = record.spent.min(record.vouched);
        #[cfg(feature = "sabotage")]
        let claim = if cx.sabotaged(crate::context::Sabotage::OverClaim) { record.vouched } else { claim };
        let Some(voucher) = record.voucher.clone() else { return };
        // The last claim may repeat what is settled: it closes the session and returns the rest to the consumer.
        if claim < record.settled || (claim == record.settled && !last) {
            let end = session.nears_end_at();
            if cx.now < end {
                cx.timers.set(Alarm::Settle(id), end);
            }
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
        // What was delivered while the ledger answered.
        let more = session.record.spent > session.record.settled;
        session.unclaimed = more.then_some(cx.now);
        let near_end = session.nears_end_at().max(cx.now);
        let at = match more {
            _ if session.is_full() => cx.now,
            true => cx.now.after(cx.config.settle_after),
            false => near_end,
        };
        self.keep(cx, id);
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

fn millis(span: Duration) -> u32 {
    u32::try_from(span.as_millis()).unwrap_or(u32::MAX)
}
