//! A leg at a provider: chunks come in, vouchers go out, and at the end both sign the receipt.
//! Invariant: a leg's chunks are taken in order and without gaps; a leg that breaks that is over.

use super::place::ask;
use super::*;

impl Consumer {
    #[expect(clippy::too_many_arguments, reason = "one call site, and each is a different thing")]
    pub(super) fn open_leg(
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
        let Quoted { candidate, quote, expected } = best;
        let node = candidate.node;
        cx.emit(Effect::OpenStream { stream, peer: node, addresses: candidate.addresses.clone() });
        cx.timers.set(Alarm::Job(id), cx.now.after(doubt_wait(cx, &node).min(cx.config.open_wait)));
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
            expected,
            opened: cx.now,
            asked: cx.now,
            first: None,
            heard: cx.now,
            refused: None,
            leaving: false,
        }));
        let router = &mut self.markets.of(cx.now, &active.job.model).router;
        let ask = ask(cx.now, active, router.output_expected(active.job.output_max), cx.config.second_worth);
        router.sent(cx.now, node, &ask, expected.cached);
        self.top_up_if_low(cx, session);
    }

    pub(super) fn at(&mut self, stream: StreamId) -> Option<(JobId, &mut Active)> {
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
        (remote.asked, remote.heard) = (cx.now, cx.now);
        let node = remote.candidate.node;
        let session = remote.session;
        let quote = remote.quote.to_wire();
        self.paying.get_mut(&session).expect("a leg's session is kept until the leg ends").opens(&id);
        let voucher = self.sign(cx, session).to_wire();
        let active = self.jobs.get(&id).expect("seen above");
        let open = OpenJob {
            job: id,
            leg: u32::try_from(active.legs.len()).expect("at most TRIES_MAX"),
            model: active.job.model.clone(),
            kind: active.job.kind,
            body: active.job.body.clone(),
            prefix: active.delivered.clone(),
            output_max: active.job.output_max,
            continuable: active.job.continuable,
            quote,
            voucher,
        };
        cx.emit(Effect::Send { stream, frame: Frame::Open(open) });
        cx.timers.set(Alarm::Job(id), cx.now.after(doubt_wait(cx, &node).min(cx.config.open_wait)));
    }

    /// Signs the session's next voucher and has it kept, with what each running job may cost by it.
    pub(super) fn sign(&mut self, cx: &mut Context, session: SessionId) -> Signed<spillway_ledger::Voucher> {
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
    pub(crate) fn pay(&mut self, cx: &mut Context, session: SessionId) {
        let Some(paying) = self.paying.get(&session) else { return };
        if !paying.wants_voucher() {
            return;
        }
        let at = paying.voucher_at(cx.now);
        if at > cx.now {
            return cx.timers.set_earlier(Alarm::Voucher(session), at);
        }
        // A provider that asks is answered on the stream it asks on.
        let stream =
            paying.asking().into_iter().chain(paying.jobs()).find_map(|job| match &self.jobs.get(&job)?.stage {
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
            Frame::Accepted { load } => {
                if remote.phase != Phase::Sent {
                    return; // Said twice, or of an opening that was never sent: it changes nothing.
                }
                remote.phase = Phase::Accepted;
                cx.timers.set(Alarm::Job(id), cx.now.after(cx.config.silence_max));
                let (session, opened, model) = (remote.session, remote.opened, active.job.model.clone());
                self.pay(cx, session);
                self.heard_load(cx, &model, peer, opened, load);
            }
            Frame::Alive { held } => {
                let session = remote.session;
                let held = held.min(cx.config.window_max);
                if let Some(paying) = self.paying.get_mut(&session) {
                    paying.held(&id, held);
                    if held > 0 && paying.is_exhausted() && !self.rescue(cx, session) {
                        // It cannot be paid here any more: on with another session.
                        return self.leg_failed(cx, id, Reason::NoDeposit, None, Bill::Unknown);
                    }
                }
                self.pay(cx, session);
            }
            Frame::Chunk { sequence, offset, bytes } => self.chunk(cx, id, sequence, offset, bytes, text),
            Frame::Refused { refusal, retry_after_ms, load } => {
                let wait = Duration::from_millis(u64::from(retry_after_ms).clamp(100, RETRY_AFTER_MAX_MS));
                remote.refused = Some((cx.now.after(wait), load));
                let session = remote.session;
                let mut is_theirs = refusal.is_providers_fault();
                if refusal == Refusal::SessionExpiring {
                    // The next job there opens another one. Whoever says so of each would have deposits locked for nothing.
                    is_theirs = !self.paying.get_mut(&session).is_some_and(|paying| paying.fill(cx.now));
                }
                let experience = is_theirs.then_some(Experience::RefusedQuote);
                self.leg_failed(cx, id, Reason::ProviderRefused, experience, Bill::Nothing);
            }
            Frame::Done { finish, receipt, load } => self.done(cx, id, finish, receipt, load),
            Frame::Aborted { abort, receipt } => {
                if abort == Abort::Preempted {
                    let model = active.job.model.clone();
                    if let Some(market) = self.markets.find(&model) {
                        // It has no slot now, whatever it said before.
                        market.drop_quote(&peer);
                        market.router.silent(&peer);
                    }
                }
                let (reason, experience) = match abort {
                    Abort::Backend | Abort::Leaving => (Reason::ProviderStalled, Some(Experience::Stalled)),
                    Abort::BackendBusy => (Reason::ProviderRefused, Some(Experience::RefusedQuote)),
                    Abort::Preempted => (Reason::ProviderPreempted, Some(Experience::Preempted)),
                    Abort::Unpaid | Abort::Cancelled => (Reason::ProviderStalled, None),
                };
                self.leg_failed(cx, id, reason, experience, receipt.map_or(Bill::Nothing, Bill::Receipt));
            }
            Frame::Rejected { status, message } => {
                let failure = Failure {
                    reason: Reason::UpstreamError,
                    retry_after_ms: None,
                    status: Some(status),
                    upstream: None,
                    message,
                };
                self.end_leg(cx, id, LegEnd::Void);
                self.finish(cx, id, Err(failure));
            }
            Frame::Open(_) | Frame::Voucher(_) | Frame::Cancel | Frame::CoSigned(_) => {
                self.leg_failed(cx, id, Reason::ProviderStalled, Some(Experience::Disputed), Bill::Unknown);
            }
        }
    }

    pub(super) fn chunk(
        &mut self,
        cx: &mut Context,
        id: JobId,
        sequence: u32,
        offset: u64,
        bytes: Vec<u8>,
        text: &[u8],
    ) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let Stage::Remote(remote) = &mut active.stage else { unreachable!("the caller saw it") };
        let in_order = sequence == remote.sequence && offset == active.delivered.len() as u64;
        let fits = active.delivered.len() + text.len() <= usize::try_from(active.job.output_max).unwrap_or(usize::MAX);
        if remote.phase != Phase::Accepted || !in_order || !fits {
            return self.leg_failed(cx, id, Reason::ProviderStalled, Some(Experience::Disputed), Bill::Unknown);
        }
        remote.sequence += 1;
        if !text.is_empty() && remote.first.is_none() {
            remote.first = Some(cx.now);
            if let Some(market) = self.markets.find(&active.job.model) {
                market.router.spoke(remote.candidate.node);
            }
        }
        active.delivered.extend_from_slice(text);
        let session = remote.session;
        if !remote.leaving {
            let leg = u32::try_from(active.legs.len()).expect("at most TRIES_MAX");
            active.first.get_or_insert(cx.now);
            let place = Placed { route: Route::Network, provider: Some(remote.candidate.node), reason: remote.reason };
            deliver(cx, id, leg, &mut remote.placed, bytes, place);
        }
        if let Some(paying) = self.paying.get_mut(&session) {
            paying.delivered(&id, text.len() as u64);
        }
        self.pay(cx, session);
    }

    pub(super) fn done(&mut self, cx: &mut Context, id: JobId, finish: String, receipt: SignedBytes, load: Load) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let Stage::Remote(remote) = &active.stage else { unreachable!("the caller saw it") };
        let (node, leaving, opened) = (remote.candidate.node, remote.leaving, remote.opened);
        let model = active.job.model.clone();
        if remote.phase != Phase::Accepted {
            return self.leg_failed(cx, id, Reason::ProviderStalled, Some(Experience::Disputed), Bill::Unknown);
        }
        let agreed = self.co_sign(cx, id, receipt);
        cx.reputation.record(cx.now, node, if agreed { Experience::Served } else { Experience::Disputed });
        self.end_leg(cx, id, if agreed { LegEnd::Agreed } else { LegEnd::Broken });
        if leaving {
            self.finish_left(cx, id);
        } else {
            self.finish(cx, id, Ok(finish));
        }
        if agreed {
            if let Some(market) = self.markets.find(&model) {
                market.router.proved(node);
            }
            self.heard_load(cx, &model, node, opened, load);
        }
    }

    /// Signs the provider's receipt if it says what was delivered here. Says whether it did.
    pub(super) fn co_sign(&mut self, cx: &mut Context, id: JobId, receipt: SignedBytes) -> bool {
        let Some(active) = self.jobs.get(&id) else { return false };
        let Stage::Remote(remote) = &active.stage else { return false };
        let Some(money) = self.paying.get(&remote.session).and_then(|paying| paying.leg(&id)) else { return false };
        let Ok(receipt) = Signed::<Receipt>::open(receipt) else { return false };
        let leg = u32::try_from(active.legs.len()).expect("at most TRIES_MAX");
        let quote = remote.quote.value();
        let value = receipt.value();
        let agreed = receipt.signer() == quote.account.0
            && value.network == cx.identity.network
            && value.session == remote.session
            && value.job == id
            && value.leg == leg
            && value.model == active.job.model
            && value.price == quote.price
            && value.usage == money.usage()
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
    pub(super) fn end_leg(&mut self, cx: &mut Context, id: JobId, how: LegEnd) {
        self.note_leg(cx, id);
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
            if remote.refused.is_some() {
                active.refusals += 1;
            } else {
                active.legs.push(Leg { route: Route::Network, provider, reason, usage, cost });
            }
        }
        active.tried.insert(remote.candidate.node);
        self.leg_over(cx, remote.session);
    }

    /// A provider refused, failed or fell silent: on to the next, from where the client is.
    pub(super) fn leg_failed(
        &mut self,
        cx: &mut Context,
        id: JobId,
        why: Reason,
        experience: Option<Experience>,
        bill: Bill,
    ) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let Stage::Remote(remote) = &mut active.stage else { unreachable!("the caller saw it") };
        let leaving = remote.leaving;
        let rest = std::mem::take(&mut remote.rest);
        if let (Some(what), false) = (experience, leaving) {
            cx.reputation.record(cx.now, remote.candidate.node, what);
        }
        let delivered_here = active.delivered.len() > remote.prefix;
        let begun = remote.phase != Phase::Connecting;
        if remote.phase == Phase::Accepted
            && !leaving
            && matches!(experience, Some(Experience::Stalled | Experience::Disputed))
            && let Some(market) = self.markets.find(&active.job.model)
        {
            market.router.failed(&remote.candidate.node);
        }
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
        // Time has passed since the others were asked.
        active.asked.clear();
        active.rounds = 0;
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
}
