//! Finding a provider: probes, quotes, and the session that pays the chosen one.
//! Invariant: a job waits for at most one thing at a time, and for each only so long.

use super::*;

impl Consumer {
    pub(super) fn probe(&mut self, cx: &mut Context, id: JobId, reason: Reason) {
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
                prefix: active.job.prefix.iter().take(NAMES_MAX).copied().collect(),
            };
            cx.emit(Effect::SendProbe { probe, peer: candidate.node, addresses: candidate.addresses.clone(), request });
            asked.push(Asked { probe, candidate });
        }
        cx.timers.set(Alarm::Job(id), cx.now.after(cx.config.probe_wait));
        active.stage = Stage::Probing { asked, sent: cx.now, quotes: Vec::new(), reason };
    }

    /// No provider will have it: the own queue if there is one, else the end.
    pub(super) fn unplaced(&mut self, cx: &mut Context, id: JobId, why: Reason) {
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
            | Reason::ProviderPreempted
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
    pub(super) fn choose(&mut self, cx: &mut Context, id: JobId) {
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
    pub(super) fn next_quote(&mut self, cx: &mut Context, id: JobId, mut rest: Vec<Quoted>, reason: Reason) {
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
            cached: best.quote.value().cached,
            delivered: 0,
            window: best.quote.value().window,
            held: 0,
            asks: false,
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

    pub(super) fn open_session(
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

    pub(super) fn take_opening(&mut self, id: JobId, opened: [u8; 16]) -> Option<(Quoted, Vec<Quoted>, Reason)> {
        let active = self.jobs.get_mut(&id)?;
        match std::mem::replace(&mut active.stage, Stage::Placing) {
            Stage::Opening { business, best, rest, reason } if business == opened => Some((*best, rest, reason)),
            other => {
                active.stage = other; // It went elsewhere meanwhile.
                None
            }
        }
    }

    pub(crate) fn session_settled(&mut self, cx: &mut Context, session: SessionId, settled: Credits, closed: bool) {
        let Some(paying) = self.paying.get_mut(&session) else { return };
        if closed && paying.is_idle() {
            self.paying.remove(&session);
            cx.timers.clear(Alarm::Refund(session));
            cx.timers.clear(Alarm::Voucher(session));
            cx.emit(Effect::Persist(Record::PayingOver(session)));
            return;
        }
        paying.settled(settled);
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
        && value.price.cached <= value.price.input
        && value.is_for(&job.prefix)
        && value.window <= window_for(cx, &candidate.node);
    holds.then_some(quote)
}
