//! The deposits that pay providers: locked before a job needs them, raised before they run dry, and taken back.
//! Invariants: a session has at most one top-up in flight, and no deposit is asked for that the balance does not cover;
//! what was locked without a job that waits for it stays within its share of the money at hand; a job waits for the
//! ledger only if that is worth more than going where a session is at hand. `docs/payments.md`, "Sessions".

use super::*;
use crate::job::Kind;
use crate::paying::{EXPIRY_MARGIN, smooth};

/// How long a model that was short here stays worth preparing for.
const WANTED_FOR: Duration = Duration::from_secs(300);
/// Models prepared for at once; the one that was short longest ago makes room.
const WISHES_MAX: usize = 16;
/// How soon after a job that found its model short; its own opening goes first, and a burst counts once.
const LOOK_AFTER: Duration = Duration::from_millis(100);
/// Jobs cause no look sooner than that after the last one: it ranks all providers of a model.
const LOOK_APART: Duration = Duration::from_secs(1);
/// How often it is looked again while something is wanted: offers, prices and standing change.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// How long a session that was opened ahead lasts at most. If nobody uses it, its deposit is back soon.
const AHEAD_LIFETIME: Duration = Duration::from_secs(2 * 3600);
/// How long before a wanted session can take no more jobs its successor is opened.
const RENEW_BEFORE: Duration = Duration::from_secs(60);
/// So many jobs before it can take no more, its successor is opened as well.
const RENEW_BEFORE_JOBS: usize = 512;
/// After a refusal, how long the ledger is not asked for the same again.
const AFTER_REFUSAL: Duration = Duration::from_secs(10);
/// How long the ledger is taken to need before it was ever asked, in milliseconds.
const ANSWER_UNKNOWN_MS: f64 = 500.0;
/// Round trip assumed of a provider that was never measured, in milliseconds.
const RTT_UNKNOWN_MS: f64 = 150.0;
/// Output assumed when ranking, in units, unless jobs allow less.
const OUTPUT_EXPECTED: u64 = 512;

/// A deposit that the ledger was asked for and has not answered.
#[derive(Debug)]
pub(super) struct Opening {
    provider: Account,
    price_cap: Price,
    /// What the entry locks.
    amount: Credits,
    /// What those who wait for it may count on together.
    room: Credits,
    /// The session that it raises; `None` if it opens one.
    raises: Option<SessionId>,
    since: Now,
    pub(super) waiting: Vec<JobId>,
}

/// What is expected of the next jobs, and so prepared for.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    /// Models that were short here lately.
    wishes: BTreeMap<(String, Kind), Wish>,
    /// Jobs cause no look before this.
    looks_from: Now,
    /// Nothing is opened ahead before this: the ledger has just refused.
    quiet_until: Now,
    /// How long the ledger takes to lock a deposit, smoothed, in microseconds.
    answer_us: u64,
}

/// What jobs for a model are like.
#[derive(Debug)]
struct Wish {
    /// When the model was short last.
    seen: Now,
    /// The last such job's price limit.
    price_max: Price,
    /// Prompt and most output of a job, smoothed, in units.
    usage: Usage,
}

impl Ahead {
    fn note(&mut self, now: Now, job: &Job) {
        let key = (job.model.clone(), job.kind);
        if !self.wishes.contains_key(&key) && self.wishes.len() >= WISHES_MAX {
            let oldest = self.wishes.iter().min_by_key(|(_, wish)| wish.seen).map(|(key, _)| key.clone());
            oldest.and_then(|key| self.wishes.remove(&key));
        }
        let wish =
            self.wishes.entry(key).or_insert(Wish { seen: now, price_max: job.price_max, usage: Usage::default() });
        (wish.seen, wish.price_max) = (now, job.price_max);
        wish.usage.input = smooth(wish.usage.input, job.prompt_units());
        wish.usage.output = smooth(wish.usage.output, job.output_max);
    }

    /// How long a job is expected to wait where a session has yet to be opened, in milliseconds.
    pub(super) fn wait_ms(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a prediction")]
        let ms = self.answer_us as f64 / 1e3;
        if self.answer_us == 0 { ANSWER_UNKNOWN_MS } else { ms }
    }

    fn answered(&mut self, took: Duration) {
        self.answer_us = smooth(self.answer_us, u64::try_from(took.as_micros()).unwrap_or(u64::MAX));
    }
}

/// A provider that the next jobs may go to.
#[derive(Clone, Copy, Debug)]
struct Likely {
    account: Account,
    price: Price,
}

/// The providers that jobs like these will most likely go to, best first, each account once: ranked on paper as before
/// probing, by price, distance and standing, without the draw.
fn likely(cx: &Context, model: &str, kind: Kind, wish: &Wish) -> Vec<Likely> {
    let expected = Usage { output: wish.usage.output.min(OUTPUT_EXPECTED), ..wish.usage };
    #[expect(clippy::cast_precision_loss, reason = "a ranking")]
    let second_worth = cx.config.second_worth.micro() as f64;
    let listings = cx.directory.serving(cx.now, model, kind);
    let mut ranked: Vec<(f64, u32, Likely)> = listings
        .filter(|listing| listing.node() != cx.node && listing.account() != cx.account)
        .filter(|listing| listing.model().price.within(&wish.price_max))
        .filter(|listing| !cx.reputation.is_banned(cx.now, &listing.node()))
        .filter_map(|listing| {
            let (node, price) = (listing.node(), listing.model().price);
            let seconds = cx.reputation.rtt_ms(&node).unwrap_or(RTT_UNKNOWN_MS) / 1e3;
            #[expect(clippy::cast_precision_loss, reason = "a ranking")]
            let money = price.cost(expected)?.micro() as f64;
            let score = (money + second_worth * seconds) / cx.reputation.lower_bound(&node);
            Some((score, cx.directory.rank(&node), Likely { account: listing.account(), price }))
        })
        .collect();
    // Equals have one order, which nobody can make a name for.
    ranked.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
    let mut seen = BTreeSet::new();
    ranked.into_iter().map(|(.., likely)| likely).filter(|likely| seen.insert(likely.account)).collect()
}

fn part_of(amount: Credits, percent: u8) -> Credits {
    let part = u128::from(amount.micro()) * u128::from(percent.min(100)) / 100;
    Credits::new(u64::try_from(part).expect("at most the whole"))
}

fn total(parts: impl Iterator<Item = Credits>) -> Credits {
    parts.fold(Credits::ZERO, |sum, part| sum.checked_add(part).unwrap_or(Credits::MAX))
}

impl Consumer {
    /// What of the balance no entry in flight will take.
    fn free(&self, cx: &Context) -> Credits {
        cx.balance.saturating_sub(total(self.opening.values().map(|opening| opening.amount)))
    }

    // ---- for a job ----

    /// Finds the money for a leg at `best`, which no session at hand covers, by waiting for the ledger. That wait was weighed
    /// when `best` was chosen: see [`Ahead::wait_ms`].
    pub(super) fn fund(
        &mut self,
        cx: &mut Context,
        id: JobId,
        best: Quoted,
        rest: Vec<Quoted>,
        worst: Credits,
        reason: Reason,
    ) {
        let active = self.jobs.get(&id).expect("the caller holds the job");
        let price_cap = active.job.price_max;
        let (account, price) = (best.candidate.account, best.quote.value().price);
        let shared = self.shared(&account, &price, worst);
        // The cap is the job's, so that the provider's next, slightly other price needs no new session.
        let Some(business) = shared.or_else(|| self.lock(cx, account, &price, price_cap, worst)) else {
            let active = self.jobs.get_mut(&id).expect("seen above");
            active.last = Some(Reason::NoDeposit);
            active.tried.insert(best.candidate.node);
            return self.next_quote(cx, id, rest, Reason::NoDeposit);
        };
        self.opening.get_mut(&business).expect("found or made above").waiting.push(id);
        let active = self.jobs.get_mut(&id).expect("seen above");
        active.stage = Stage::Opening { business, best: Box::new(best), rest, reason };
        cx.timers.set(Alarm::Job(id), cx.now.after(cx.config.open_wait));
    }

    /// A deposit under way that has room for one more job.
    fn shared(&self, provider: &Account, price: &Price, worst: Credits) -> Option<[u8; 16]> {
        let shared = self.opening.iter().find(|(_, opening)| {
            let sharers = u64::try_from(opening.waiting.len()).unwrap_or(u64::MAX).saturating_add(1);
            opening.provider == *provider
                && price.within(&opening.price_cap)
                && worst.micro().saturating_mul(sharers) <= opening.room.micro()
        });
        shared.map(|(business, _)| *business)
    }

    /// Whether there is money for a leg that may cost `worst`: in a session, under way, or still to be locked.
    pub(super) fn affords(&self, cx: &Context, provider: &Account, price: &Price, worst: Credits) -> bool {
        #[cfg(feature = "sabotage")]
        if cx.sabotaged(crate::context::Sabotage::IgnoreDeposit) {
            return true;
        }
        let free = self.free(cx);
        let lacks = self.growable(cx.now, provider, price).and_then(|session| self.paying.get(&session));
        let lacks = lacks.map_or(worst, |paying| paying.lacks(worst));
        self.paying.fitting(cx.now, provider, price, worst).is_some()
            || self.shared(provider, price, worst).is_some()
            || (lacks <= free && !free.is_zero())
    }

    /// Asks the ledger for what a job needs that will wait for it: more in a session that there is, or a new one.
    fn lock(
        &mut self,
        cx: &mut Context,
        provider: Account,
        price: &Price,
        price_cap: Price,
        worst: Credits,
    ) -> Option<[u8; 16]> {
        let free = self.free(cx);
        if let Some(session) = self.growable(cx.now, &provider, price) {
            let paying = self.paying.get(&session).expect("just found");
            let amount = paying.lacks(paying.goal(cx.config.deposit).max(worst)).min(free);
            return (amount >= paying.lacks(worst)).then(|| self.top_up(cx, session, amount));
        }
        let deposit = cx.config.deposit.max(worst).min(free);
        if deposit < worst || deposit.is_zero() {
            return None;
        }
        Some(self.open(cx, provider, price_cap, deposit, cx.config.session_lifetime))
    }

    /// A session with that provider that may be topped up, and with which none is in flight; the one with the most free.
    fn growable(&self, now: Now, provider: &Account, price: &Price) -> Option<SessionId> {
        self.paying
            .iter()
            .filter(|session| {
                let record = &session.record;
                record.provider == *provider
                    && price.within(&record.price_cap)
                    && session.takes_jobs(now)
                    && session.may_grow(now)
            })
            .filter(|session| self.raising(&session.record.session).is_none())
            .max_by_key(|session| session.available())
            .map(|session| session.record.session)
    }

    fn raising(&self, session: &SessionId) -> Option<&Opening> {
        self.opening.values().find(|opening| opening.raises.as_ref() == Some(session))
    }

    fn open(
        &mut self,
        cx: &mut Context,
        provider: Account,
        price_cap: Price,
        deposit: Credits,
        lifetime: Duration,
    ) -> [u8; 16] {
        let mut business = [0; 16];
        cx.rng.fill_bytes(&mut business);
        let opening = Opening {
            provider,
            price_cap,
            amount: deposit,
            room: deposit,
            raises: None,
            since: cx.now,
            waiting: Vec::new(),
        };
        self.opening.insert(business, opening);
        let expires_ms = cx.now.after(lifetime).ms();
        let voucher_key = voucher_key(&cx.account);
        let command = LedgerCommand::Open { provider, voucher_key, deposit, price_cap, expires_ms };
        cx.emit(Effect::Ledger { business, command });
        business
    }

    /// Asks the ledger to add to a session. The entry's name follows from the deposit so far: asked again after a restart,
    /// it is the same entry, and done once.
    fn top_up(&mut self, cx: &mut Context, session: SessionId, amount: Credits) -> [u8; 16] {
        let paying = self.paying.get(&session).expect("the caller found it");
        let record = &paying.record;
        let business = name_of("spillway/top-up", &[session.0.as_bytes(), &record.deposit.micro().to_le_bytes()]);
        let after = paying.available().checked_add(amount).unwrap_or(Credits::MAX);
        let opening = Opening {
            provider: record.provider,
            price_cap: record.price_cap,
            amount,
            room: after.saturating_sub(paying.lacks(Credits::ZERO)),
            raises: Some(session),
            since: cx.now,
            waiting: Vec::new(),
        };
        self.opening.insert(business, opening);
        cx.emit(Effect::Ledger { business, command: LedgerCommand::TopUp { session, amount } });
        business
    }

    // ---- before a job needs it ----

    /// A leg has set aside what it may cost, or is over: if little is left for the next one, the session is topped up.
    pub(super) fn top_up_if_low(&mut self, cx: &mut Context, session: SessionId) {
        let Some(paying) = self.paying.get(&session) else { return };
        let usual = cx.config.deposit;
        let low = paying.low_water(usual);
        let wanted = paying.available() < low && paying.takes_jobs(cx.now) && paying.may_grow(cx.now);
        if !wanted || self.raising(&session).is_some() {
            return;
        }
        let most = part_of(self.free(cx), cx.config.top_up_percent);
        let amount = paying.lacks(paying.goal(usual)).min(most);
        // What leaves it low is not worth an entry.
        if amount >= paying.lacks(low) {
            self.top_up(cx, session, amount);
        }
    }

    /// A running leg needs more than the whole deposit. Says whether a top-up is on its way that will do.
    pub(super) fn rescue(&mut self, cx: &mut Context, session: SessionId) -> bool {
        if let Some(opening) = self.raising(&session) {
            return cx.now < opening.since.after(cx.config.open_wait);
        }
        let Some(paying) = self.paying.get(&session) else { return false };
        let amount = paying.lacks(paying.goal(cx.config.deposit)).min(self.free(cx));
        let enough = paying.may_grow(cx.now) && !amount.is_zero() && amount >= paying.lacks(Credits::ZERO);
        if enough {
            self.top_up(cx, session, amount);
        }
        enough
    }

    /// A job looks for a place. If its model is short here, the next ones will want a stranger.
    pub(super) fn foresee(&mut self, cx: &mut Context, id: JobId) {
        let Some(Active { job, .. }) = self.jobs.get(&id) else { return };
        let may_spill = cx.config.sessions_ahead > 0 && job.prefer != Prefer::Own;
        let short = match cx.own.state(&job.model, job.kind) {
            // This job takes the last slot.
            OwnState::Free => cx
                .own
                .capacity(&job.model)
                .is_none_or(|own| cx.own.first_hand(&job.model).saturating_add(1) >= own.slots),
            OwnState::Saturated | OwnState::Unhealthy | OwnState::Missing => true,
        };
        if may_spill && short && cx.directory.candidates(cx.now, job).next().is_some() {
            self.ahead.note(cx.now, job);
            cx.timers.set_earlier(Alarm::Ahead, cx.now.after(LOOK_AFTER).max(self.ahead.looks_from));
        }
    }

    /// Prepares for the next jobs: opens a session with the likeliest provider that has none, one after the other.
    pub(crate) fn look_ahead(&mut self, cx: &mut Context) {
        self.ahead.wishes.retain(|_, wish| cx.now.since(wish.seen) < WANTED_FOR);
        if self.ahead.wishes.is_empty() {
            return;
        }
        self.ahead.looks_from = cx.now.after(LOOK_APART);
        cx.timers.set(Alarm::Ahead, cx.now.after(LOOK_EVERY));
        let used = self.paying.iter().filter(|session| session.signed_within(cx.now, WANTED_FOR));
        let used: BTreeSet<Account> = used.map(|session| session.record.provider).collect();
        let count = usize::try_from(cx.config.sessions_ahead).unwrap_or(usize::MAX);
        let mut wishes: Vec<_> = self.ahead.wishes.iter().collect();
        wishes.sort_by_key(|(_, wish)| std::cmp::Reverse(wish.seen));
        let ranked: Vec<(Likely, Price, Usage)> = wishes
            .into_iter()
            .flat_map(|((model, kind), wish)| {
                let likely = likely(cx, model, *kind, wish).into_iter().enumerate();
                // The likeliest on paper, and those that jobs went to lately.
                likely
                    .filter(|(rank, likely)| *rank < count || used.contains(&likely.account))
                    .map(|(_, likely)| (likely, wish.price_max, wish.usage))
            })
            .collect();
        let accounts: BTreeSet<Account> = ranked.iter().map(|(likely, ..)| likely.account).collect();
        let unused = self.paying.iter().filter(|session| {
            session.is_unused() && session.is_open(cx.now) && accounts.contains(&session.record.provider)
        });
        let mut ready = unused.count();
        for (Likely { account, price }, price_cap, usage) in ranked {
            let Some(worst) = price.cost(usage) else { continue };
            if ready < count && self.prepare(cx, account, &price, price_cap, worst) {
                ready += 1;
            }
        }
    }

    /// Sees to a session with that provider for jobs that may cost `worst`, none of which waits for it. Says whether one
    /// is now being opened.
    fn prepare(
        &mut self,
        cx: &mut Context,
        provider: Account,
        price: &Price,
        price_cap: Price,
        worst: Credits,
    ) -> bool {
        let lifetime = cx.config.session_lifetime.min(AHEAD_LIFETIME);
        let usable = lifetime.saturating_sub(EXPIRY_MARGIN);
        let with = |session: &&crate::paying::PayingSession| {
            session.record.provider == provider && price.within(&session.record.price_cap)
        };
        let renew_at = cx.now.after(RENEW_BEFORE.min(usable / 4));
        let lasts =
            |session: &&crate::paying::PayingSession| session.is_open(renew_at) && session.room() > RENEW_BEFORE_JOBS;
        let known = self.paying.iter().filter(with).find(lasts);
        if let Some((session, unused)) = known.map(|session| (session.record.session, session.is_unused())) {
            // What nobody has used stays as it is: its share of the money at hand was weighed when it was opened.
            if !unused {
                self.top_up_if_low(cx, session);
            }
            return false;
        }
        // One entry at a time, so that a job's own opening never waits behind a row of these.
        let busy = self.opening.values().any(|opening| opening.raises.is_none());
        if cx.config.sessions_ahead == 0 || usable.is_zero() || busy || cx.now < self.ahead.quiet_until {
            return false;
        }
        let idle = self.paying.iter().filter(|session| session.is_unused()).map(|session| session.record.deposit);
        let idle = total(idle);
        let free = self.free(cx);
        let at_hand = free.checked_add(idle).unwrap_or(Credits::MAX);
        let most = part_of(at_hand, cx.config.ahead_percent).saturating_sub(idle).min(free);
        let deposit = cx.config.deposit.max(worst).min(most);
        if deposit < worst || deposit.is_zero() {
            return false;
        }
        self.open(cx, provider, price_cap, deposit, lifetime);
        true
    }

    // ---- what the ledger says ----

    /// The ledger opened a session that this node pays, or tells of one that it has opened before.
    pub(crate) fn session_opened(&mut self, cx: &mut Context, business: [u8; 16], record: Paying) {
        if self.paying.get(&record.session).is_some() {
            return self.session_topped_up(cx, record.session, record.deposit);
        }
        self.schedule_refund(cx, &record);
        cx.emit(Effect::Persist(Record::Paying(record.clone())));
        self.paying.insert(record);
        self.locked(cx, business);
    }

    /// The ledger raised what is locked in a session.
    pub(crate) fn session_topped_up(&mut self, cx: &mut Context, session: SessionId, deposit: Credits) {
        let Some(paying) = self.paying.get_mut(&session) else { return };
        if !paying.raise(deposit) {
            return; // Told before.
        }
        cx.emit(Effect::Persist(Record::Paying(paying.record.clone())));
        self.pay(cx, session);
        let asked = self.opening.iter().find(|(_, opening)| opening.raises == Some(session));
        if let Some(business) = asked.map(|(business, _)| *business) {
            self.locked(cx, business);
        }
    }

    /// What an entry asked for is locked: those who waited for it go on.
    fn locked(&mut self, cx: &mut Context, business: [u8; 16]) {
        let Some(opening) = self.opening.remove(&business) else { return };
        // The ledger tells the balance after the news of the block.
        cx.balance = cx.balance.saturating_sub(opening.amount);
        self.ahead.answered(cx.now.since(opening.since));
        self.hasten(cx);
        for id in opening.waiting {
            if let Some((best, mut rest, reason)) = self.take_opening(id, business) {
                rest.push(best);
                self.next_quote(cx, id, rest, reason);
            }
        }
    }

    fn hasten(&self, cx: &mut Context) {
        if !self.ahead.wishes.is_empty() {
            cx.timers.set_earlier(Alarm::Ahead, cx.now);
        }
    }

    /// The ledger refused an entry for good. If it was to lock a deposit, those who waited for it try something else.
    pub(crate) fn entry_refused(&mut self, cx: &mut Context, business: [u8; 16]) {
        let Some(opening) = self.opening.remove(&business) else { return };
        let again = cx.now.after(AFTER_REFUSAL);
        if let Some(paying) = opening.raises.and_then(|session| self.paying.get_mut(&session)) {
            paying.grow_from(again);
        }
        self.ahead.quiet_until = again;
        for id in opening.waiting {
            let Some((best, mut rest, reason)) = self.take_opening(id, business) else { continue };
            if opening.raises.is_some() {
                // The session may be over; a new one may still be had.
                rest.push(best);
                self.next_quote(cx, id, rest, reason);
                continue;
            }
            let active = self.jobs.get_mut(&id).expect("the stage was just taken");
            active.last = Some(Reason::NoDeposit);
            active.tried.insert(best.candidate.node);
            self.next_quote(cx, id, rest, Reason::NoDeposit);
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
            return self.forget_session(cx, session);
        }
        paying.settled(settled);
        if closed {
            // Legs still run on it: they end unpaid at the provider's own wish. No new one begins.
            paying.end_all();
        }
        cx.emit(Effect::Persist(Record::Paying(paying.record.clone())));
    }

    /// A leg is over: its session is forgotten if the ledger has ended it, or made fit for the next one.
    pub(super) fn leg_over(&mut self, cx: &mut Context, session: SessionId) {
        let Some(paying) = self.paying.get(&session) else { return };
        if paying.is_over() && paying.is_idle() {
            return self.forget_session(cx, session);
        }
        self.top_up_if_low(cx, session);
    }

    fn forget_session(&mut self, cx: &mut Context, session: SessionId) {
        self.paying.remove(&session);
        cx.timers.clear(Alarm::Refund(session));
        cx.timers.clear(Alarm::Voucher(session));
        cx.emit(Effect::Persist(Record::PayingOver(session)));
    }

    /// A session is over and its grace, too: what is left comes back.
    pub(crate) fn refund_due(&mut self, cx: &mut Context, session: SessionId) {
        if self.paying.get(&session).is_none() {
            return;
        }
        let business = name_of("spillway/refund", &[session.0.as_bytes()]);
        cx.emit(Effect::Ledger { business, command: LedgerCommand::Refund { session } });
        // Block time may lag behind this node's clock: ask again until the session is closed.
        cx.timers.set(Alarm::Refund(session), cx.now.after(Duration::from_secs(60)));
    }
}

/// The business id of an entry that follows from what it is for.
fn name_of(domain: &str, parts: &[&[u8]]) -> [u8; 16] {
    let digest = Digest::of(domain, parts);
    std::array::from_fn(|index| digest.as_bytes()[index])
}
