//! Finding a provider: probes and quotes.
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
        let best = loop {
            let Some(best) = rest.pop() else { return self.probe(cx, id, reason) };
            if best.quote.value().is_valid(cx.now) {
                break best;
            }
        };
        let money = leg_money(active, best.quote.value());
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
        self.fund(cx, id, best, rest, worst, reason);
    }
}

/// What a leg at the provider of `quote` would be, as far as money is concerned.
pub(super) fn leg_money(active: &Active, quote: &Quote) -> LegMoney {
    let prefix = active.delivered.len() as u64;
    LegMoney {
        price: quote.price,
        input: active.job.prompt_units() + prefix,
        delivered: 0,
        window: quote.window,
        held: 0,
        asks: false,
        output_max: active.job.output_max.saturating_sub(prefix),
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
        && value.window <= window_for(cx, &candidate.node);
    holds.then_some(quote)
}
