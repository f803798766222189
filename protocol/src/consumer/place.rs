//! Finding a provider: probes and quotes.
//! Invariant: a job waits for at most one thing at a time, and for each only so long.

use super::market::{Eligible, considered, overheard, quote_of, report_of, window_for};
use super::*;
use crate::router::{Ask, Decision, Report, Served, Weights, spill};

/// Rounds of probes in one look at the market.
const ROUNDS_MAX: u32 = 8;
/// A provider is on time if its first text comes within twice what was expected, and this many milliseconds more.
const LATE_MS: f64 = 250.0;
/// Probes under way at once; beyond, none is sent in the background.
const PROBES_MAX: usize = 4096;

impl Consumer {
    /// Looks at the market for a job: goes where the router says, probes whom it wants to hear, or gives up for now.
    pub(super) fn look(&mut self, cx: &mut Context, id: JobId, reason: Reason) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let market = self.markets.of(cx.now, &active.job.model);
        let eligible = Eligible {
            now: cx.now,
            me: (cx.node, cx.account),
            job: &active.job,
            delivered: active.delivered.len() as u64,
            tried: &active.tried,
            directory: &cx.directory,
            reputation: &cx.reputation,
            coordinate: cx.coordinate,
            paying: &self.paying,
            quotes: &market.quotes,
            opening_ms: self.ahead.wait_ms(),
        };
        let output = market.router.output_expected(active.job.output_max);
        let ask = ask(cx.now, active, output, cx.config.second_worth);
        let decision = market.router.decide(cx.now, &ask, &active.asked, &eligible, &mut cx.rng);
        let any = eligible.any();
        let rests_until = eligible.rests_until();
        let told = match &decision {
            Decision::Go { to, .. } => considered(&market.router, &eligible, Some(*to)),
            Decision::Nobody { .. } => considered(&market.router, &eligible, None),
            Decision::Probe(_) => Vec::new(),
        };
        match decision {
            Decision::Go { to, expected, refresh } => {
                let own_is_sooner =
                    active.own_first_ms.is_some_and(|ms| spill::waits(ms, expected.first_ms, ask.target_ms));
                let over = active.queued_until.is_some_and(|until| cx.now >= until);
                if own_is_sooner && !over && self.queue.len() < cx.config.queue_max {
                    self.stop_probing(id);
                    return self.enqueue(cx, id, None);
                }
                let window = window_for(cx, &to);
                let usable = market.quote(&to).filter(|quote| {
                    let quote = quote.value();
                    quote.is_valid(cx.now) && quote.price.within(&active.job.price_max) && quote.window <= window
                });
                let may_ask = !active.asked.contains(&to) && active.rounds < ROUNDS_MAX;
                if may_ask && usable.is_some_and(|quote| is_worth_a_new_quote(quote.value(), &ask, &expected)) {
                    return self.ask_all(cx, id, vec![to], reason);
                }
                let Some(quote) = usable.cloned() else {
                    // Its load is fresh, its quote is not good for this job: ask for one that is. It may have said that it is
                    // busy when it was asked, and since then on another job's stream that it no longer is.
                    let lapsed = market.quote(&to).is_none_or(|quote| !quote.value().is_valid(cx.now));
                    let may_again = lapsed && active.rounds < ROUNDS_MAX;
                    if active.asked.contains(&to) && !may_again {
                        active.tried.insert(to);
                        return self.look(cx, id, reason);
                    }
                    return self.ask_all(cx, id, vec![to], reason);
                };
                let Some(candidate) = candidate_of(cx, &active.job, &to) else {
                    active.tried.insert(to);
                    return self.look(cx, id, reason);
                };
                active.considered = told;
                let model = active.job.model.clone();
                let money = leg_money(active, quote.value());
                if money.worst().is_some_and(|worst| !self.affords(cx, &candidate.account, &money.price, worst)) {
                    // Others that were asked may yet answer.
                    let active = self.jobs.get_mut(&id).expect("seen above");
                    active.tried.insert(to);
                    active.last = Some(Reason::NoDeposit);
                    return self.look(cx, id, Reason::NoDeposit);
                }
                self.stop_probing(id);
                for peer in refresh {
                    self.send_probe(cx, &model, id, &peer, false);
                }
                let quoted = Quoted { candidate, quote, expected };
                self.next_quote(cx, id, vec![quoted], reason);
            }
            Decision::Probe(who) => self.ask_all(cx, id, who, reason),
            Decision::Nobody { free_at } => {
                if let Stage::Probing { waiting, sent, .. } = &active.stage
                    && !waiting.is_empty()
                {
                    // Somebody may yet answer.
                    let gives_up = (*sent).max(cx.woke).after(PATIENCE.max(cx.config.probe_wait));
                    if cx.now < gives_up {
                        return cx.timers.set(Alarm::Job(id), gives_up);
                    }
                }
                active.considered = told;
                self.stop_probing(id);
                self.unplaced(cx, id, any, free_at, rests_until);
            }
        }
    }

    /// Probes providers for a job that then waits for their answers.
    fn ask_all(&mut self, cx: &mut Context, id: JobId, who: Vec<NodeId>, reason: Reason) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let model = active.job.model.clone();
        active.rounds += 1;
        active.asked.extend(who.iter().copied());
        let mut waiting = match std::mem::replace(&mut active.stage, Stage::Placing) {
            Stage::Probing { waiting, .. } => waiting,
            Stage::Placing | Stage::Queued | Stage::Own { .. } | Stage::Opening { .. } | Stage::Remote(_) => Vec::new(),
        };
        waiting.extend(who.iter().filter_map(|peer| self.send_probe(cx, &model, id, peer, true)));
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        active.stage = Stage::Probing { waiting, sent: cx.now, reason };
        cx.timers.set(Alarm::Job(id), cx.now.after(cx.config.probe_wait));
    }

    /// Probes one provider, for a job that waits for it or to know its load.
    fn send_probe(&mut self, cx: &mut Context, model: &str, id: JobId, peer: &NodeId, waits: bool) -> Option<ProbeId> {
        if !waits && self.probes.len() >= PROBES_MAX {
            return None;
        }
        let active = self.jobs.get(&id)?;
        let candidate = candidate_of(cx, &active.job, peer)?;
        let probe = ProbeId(self.next_probe);
        self.next_probe += 1;
        let request = Probe {
            network: cx.identity.network,
            model: model.to_owned(),
            kind: active.job.kind,
            prompt_units: active.job.prompt_units() + active.delivered.len() as u64,
            output_max: active.job.output_max,
            window_max: window_for(cx, peer),
            prefix: active.job.prefix.iter().take(NAMES_MAX).copied().collect(),
        };
        let addresses = candidate.addresses.clone();
        let (sent, prefix) = (cx.now, request.prefix.clone());
        let asked = Asked { job: waits.then_some(id), model: model.to_owned(), candidate, prefix, sent };
        self.probes.insert(probe, asked);
        cx.emit(Effect::SendProbe { probe, peer: *peer, addresses, request });
        Some(probe)
    }

    /// The job no longer waits for answers; those that come are still good to know.
    pub(super) fn stop_probing(&mut self, id: JobId) {
        let Some(active) = self.jobs.get_mut(&id) else { return };
        if let Stage::Probing { waiting, .. } = &active.stage {
            for probe in waiting {
                if let Some(asked) = self.probes.get_mut(probe) {
                    asked.job = None;
                }
            }
            active.stage = Stage::Placing;
        }
    }

    /// Nobody on the network will have it now: it waits for a slot, tries its next model, or ends.
    fn unplaced(&mut self, cx: &mut Context, id: JobId, any: bool, free_at: Option<Now>, rests_until: Option<Now>) {
        #[cfg(feature = "sabotage")]
        if cx.sabotaged(crate::context::Sabotage::Hasty) {
            return self.fail(cx, id, Reason::ProviderRefused, None, "it was in haste");
        }
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        let own = active.own_state(&cx.own);
        if own == OwnState::Free {
            // A slot became free here while others were asked.
            return self.run_own(cx, id);
        }
        let own_is_busy = own == OwnState::Saturated;
        let over = active.queued_until.is_some_and(|until| cx.now >= until);
        if (own_is_busy || any) && !over && self.queue.len() < cx.config.queue_max {
            return self.enqueue(cx, id, free_at);
        }
        let stale = active.refusals > active.last_look.0 && active.last_look.1 < LAST_LOOKS_MAX;
        if (own_is_busy || any || stale) && (!active.thorough || stale) {
            // The last look asks those again that said they are busy, or turned this job down before.
            active.thorough = true;
            active.last_look = (active.refusals, active.last_look.1 + 1);
            active.tried.clear();
            active.asked.clear();
            active.rounds = 0;
            let reason = active.last.unwrap_or(Reason::ProviderRefused);
            return self.look(cx, id, reason);
        }
        if active.first.is_none() && !active.job.alternatives.is_empty() {
            active.next_model();
            return self.place(cx, id);
        }
        let (last, untried, begun) = (active.last, active.tried.is_empty(), active.first.is_some());
        let own_rests = own == OwnState::Unhealthy;
        let mut offers = cx.directory.serving(cx.now, &active.job.model, active.job.kind);
        let dearer = offers.any(|listing| listing.node() != cx.node && listing.account() != cx.account);
        drop(offers);
        let why = match (last, any, dearer) {
            (Some(last), ..) => last,
            (None, true, _) if own_is_busy => Reason::OwnSaturated,
            (None, true, _) => Reason::ProviderRefused,
            (None, false, _) if own_is_busy => Reason::OwnSaturated,
            (None, false, _) if rests_until.is_some() => Reason::NoPlace,
            (None, false, true) if untried && !own_rests => Reason::PriceCap,
            (None, false, _) if own_rests => Reason::OwnUnhealthy,
            (None, false, true) => Reason::ProviderRefused,
            (None, false, false) => Reason::NoOffer,
        };
        let (waits, message) = match why {
            Reason::NoOffer => (false, "nobody offers this model now"),
            Reason::PriceCap => (false, "providers offer this model, but none within the job's price and preferences"),
            Reason::NoDeposit => (false, "the balance covers no deposit for this job"),
            Reason::NoPlace => {
                (true, "no place is available now: whoever would serve this job failed a short while ago")
            }
            Reason::OwnUnhealthy => (true, "no place is available now: the own backend does not answer"),
            Reason::UpstreamError => {
                (true, "no place is available now: the own backend failed, and nobody else has it")
            }
            Reason::OwnFree
            | Reason::OwnQueued
            | Reason::OwnHedged
            | Reason::OwnSaturated
            | Reason::ModelNotLocal
            | Reason::LabelForbidsNetwork
            | Reason::ProviderRefused
            | Reason::ProviderStalled
            | Reason::ProviderPreempted
            | Reason::Upstream429
            | Reason::ClientLeft
            | Reason::QueueFull
            | Reason::Timeout => (true, "every place for this job is taken, and it has waited as long as it may"),
        };
        let free_at = if why == Reason::NoPlace { rests_until } else { free_at };
        let said = self.jobs.get_mut(&id).and_then(|active| active.own_said.take()).unwrap_or_default();
        // What the own backend said is the better explanation, and its status is what policies go by.
        let own_failed = matches!(why, Reason::UpstreamError | Reason::Upstream429) && !said.message.is_empty();
        let asks_ms = said.asks_ms.filter(|_| own_failed);
        let retry = waits.then(|| asks_ms.unwrap_or_else(|| self.retry_after_ms(cx, free_at)));
        let broke_off = "the answer broke off, and nobody can go on with it now";
        let message = if own_failed { said.message } else { (if begun { broke_off } else { message }).to_owned() };
        let failure = Failure { reason: why, retry_after_ms: retry, status: None, upstream: said.upstream, message };
        self.finish(cx, id, Err(failure));
    }

    /// When it is worth trying again, in milliseconds: when the next slot is expected, behind those that wait already.
    fn retry_after_ms(&self, cx: &Context, free_at: Option<Now>) -> u64 {
        let next = free_at.map_or(RETRY_AFTER_MS, |at| millis(at.since(cx.now)));
        (next.max(RETRY_AFTER_MS) + RETRY_AFTER_MS * self.queue.len() as u64 / 8).min(RETRY_AFTER_MAX_MS)
    }

    pub(crate) fn probe_replied(&mut self, cx: &mut Context, probe: ProbeId, reply: Option<ProbeReply>) {
        let Some(asked) = self.probes.remove(&probe) else { return }; // Late, not wrong.
        let Asked { job, model, candidate, prefix, sent } = asked;
        let node = candidate.node;
        let quote = reply.as_ref().and_then(|reply| quote_of(cx, &candidate, &model, reply));
        let market = self.markets.of(cx.now, &model);
        match (&reply, quote) {
            // Quoted, or busy and honest about it.
            (Some(reply), quote) if quote.is_some() || reply.quote.is_err() => {
                cx.measured(node, cx.now.since(sent));
                market.router.reported(cx.now, node, report_of(cx.now, cx.now.since(sent), reply));
                market.router.holds_of(node, &prefix, PREFIX_UNITS as u64, u64::from(reply.cached_units));
                market.router.holds(node, reply.hot.iter().map(|hot| (hot.name, u64::from(hot.units))));
                match quote {
                    Some(quote) => {
                        if !quote.value().price.within(&candidate.price) {
                            cx.reputation.record(cx.now, node, Experience::Baited);
                        }
                        market.keep(cx.now, quote);
                    }
                    None => market.drop_quote(&node),
                }
            }
            // Silent, or its quote does not hold.
            (Some(_) | None, _) => market.router.silent(&node),
        }
        let free = market.router.report(&node).is_some_and(|report| report.slots_free > 0);
        if let Some(id) = job
            && let Some(active) = self.jobs.get_mut(&id)
            && let Stage::Probing { waiting, sent, reason } = &mut active.stage
        {
            waiting.retain(|other| *other != probe);
            let (reason, late) = (*reason, cx.now >= sent.after(cx.config.probe_wait));
            // A job on its last look is in no queue: what it finds is its own before any that waits there is woken.
            let found = free && active.thorough;
            if waiting.is_empty() || late || found {
                self.look(cx, id, reason);
            }
        }
        if free {
            self.wake(cx, &model);
        }
    }

    /// A place may be free at a stranger's: the job that has waited longest for one looks again.
    pub(super) fn wake(&mut self, cx: &mut Context, model: &str) {
        let waits = |id: &&JobId| {
            self.jobs.get(*id).is_some_and(|active| active.job.model == model && active.job.prefer != Prefer::Own)
        };
        let Some(id) = self.queue.iter().find(waits).copied() else { return };
        self.look_again(cx, id);
    }

    /// A queued job looks at the market.
    pub(super) fn look_again(&mut self, cx: &mut Context, id: JobId) {
        self.queue.retain(|queued| *queued != id);
        let Some(active) = self.jobs.get_mut(&id) else { return };
        active.stage = Stage::Placing;
        active.tried.clear();
        active.asked.clear();
        active.rounds = 0;
        active.thorough = active.queued_until.is_some_and(|until| cx.now >= until);
        let reason = active.last.unwrap_or(Reason::OwnSaturated);
        self.look(cx, id, reason);
    }

    /// What was seen of a leg's provider goes to the router, before the leg is ended.
    pub(super) fn note_leg(&mut self, cx: &mut Context, id: JobId) {
        let Some(active) = self.jobs.get(&id) else { return };
        let Stage::Remote(remote) = &active.stage else { return };
        let Some(market) = self.markets.find(&active.job.model) else { return };
        let node = remote.candidate.node;
        if let Some((free_at, load)) = remote.refused {
            market.drop_quote(&node);
            market.router.failed(&node);
            market.router.refused(cx.now, node, free_at);
            // Whatever the load says: it has just turned a job down.
            let rtt = cx.reputation.rtt_ms(&node).map(|ms| Duration::from_secs_f64(ms / 1e3));
            let told = overheard(cx.now, rtt, remote.opened, Load { slots_free: 0, ..load });
            return market.router.overheard(cx.now, node, Report { free_at, ..told });
        }
        if remote.phase == Phase::Connecting {
            market.router.silent(&node);
        }
        if remote.phase != Phase::Accepted && !remote.leaving {
            market.router.failed(&node);
        }
        let units = (active.delivered.len() - remote.prefix) as u64;
        let served = remote.first.map(|first| {
            let measured_ms = first.since(remote.opened).as_secs_f64() * 1e3;
            let rest_us = remote.heard.since(first).as_secs_f64() * 1e6;
            #[expect(clippy::cast_precision_loss, reason = "a speed estimate")]
            let rate = (units >= 64).then(|| (remote.expected.per_unit_us, rest_us / units as f64));
            Served { first_ms: (remote.expected.first_ms, measured_ms), per_unit_us: rate, output: units }
        });
        if let Some(Served { first_ms: (expected, measured), .. }) = &served {
            let late = *measured > 2.0 * expected + LATE_MS;
            cx.reputation.record(cx.now, node, if late { Experience::Late } else { Experience::OnTime });
        }
        market.router.ended(cx.now, node, served);
    }

    /// A provider told its load on the stream of a leg that began at `opened`, and the leg goes on or ended well.
    pub(super) fn heard_load(&mut self, cx: &mut Context, model: &str, node: NodeId, opened: Now, load: Load) {
        let rtt = cx.reputation.rtt_ms(&node).map(|ms| Duration::from_secs_f64(ms / 1e3));
        let Some(market) = self.markets.find(model) else { return };
        market.router.overheard(cx.now, node, overheard(cx.now, rtt, opened, load));
        if load.slots_free > 0 {
            self.wake(cx, model);
        }
    }

    /// Tries the last of `quotes`, or looks for other providers if there is none.
    pub(super) fn next_quote(&mut self, cx: &mut Context, id: JobId, mut rest: Vec<Quoted>, reason: Reason) {
        let active = self.jobs.get_mut(&id).expect("the caller holds the job");
        active.stage = Stage::Placing;
        if active.is_spent() {
            return self.place(cx, id);
        }
        let best = loop {
            let Some(best) = rest.pop() else { return self.look(cx, id, reason) };
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
        cached: cached_by(quote, &active.job),
        delivered: 0,
        window: quote.window,
        held: 0,
        asks: false,
        output_max: active.job.output_max.saturating_sub(prefix),
        is_open: false,
    }
}

pub(super) fn ask(now: Now, active: &Active, output: u64, second_worth: Credits) -> Ask<'_> {
    Ask {
        units: active.job.prompt_units() + active.delivered.len() as u64,
        output,
        prefix: &active.job.prefix,
        prefix_units: PREFIX_UNITS as u64,
        target_ms: active.target_ms(now),
        rate_us: active.job.preferences.preferred_min_throughput.map(|rate| 1e6 / f64::from(rate.max(1))),
        weights: Weights::new(second_worth, active.job.preferences.sort),
        thorough: active.thorough,
        settled: active.rounds >= ROUNDS_MAX,
    }
}

/// Whether a quote that is kept from an earlier job bills so much less of this prompt as cached than its provider seems to hold
/// that a round trip for a new one pays, and leaves the target in reach.
fn is_worth_a_new_quote(quote: &Quote, ask: &Ask<'_>, expected: &Estimate) -> bool {
    let missing = expected.cached.saturating_sub(quote.cached_of(ask.prefix));
    let discount = quote.price.input.micro().saturating_sub(quote.price.cached.micro());
    #[expect(clippy::cast_precision_loss, reason = "a weight")]
    let saves = missing as f64 * discount as f64 / 1e6 * ask.weights.money;
    let in_time = ask.target_ms.is_none_or(|target| {
        let asked = expected.first_ms + expected.distance_ms;
        asked <= target || expected.first_ms > target
    });
    in_time && saves > expected.distance_ms * ask.weights.first_ms
}

/// How much of the job's prompt the quote's provider bills as cached: it compares the body, not what was named to it.
fn cached_by(quote: &Quote, job: &Job) -> u64 {
    if quote.cached == 0 { 0 } else { quote.cached_of(&prefix::names(&job.model, &job.body)) }
}

/// A provider by its offer.
fn candidate_of(cx: &Context, job: &Job, node: &NodeId) -> Option<Candidate> {
    cx.directory.lookup(cx.now, &job.model, node).filter(|it| it.serves(job.kind)).map(Candidate::from)
}
