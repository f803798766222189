//! What must hold: safety after each step, liveness once the faults have stopped.
//! Invariant: nothing here asks a peer what it thinks; jobs, text and money are counted anew from what crosses the world.

use crate::adversary::Adversary;
use crate::course::Course;
use crate::idle::Need;
use crate::network::HostId;
use crate::oracle::{self, Answer};
use crate::timeline::START;
use serde::Serialize;
use spillway_ledger::{Credits, JobId, NodeId, Price, SessionId, Usage};
use spillway_protocol::{Job, Now, Outcome, Prefer, Reason, Route, StreamId};
use std::collections::{BTreeMap, BTreeSet};

/// Violations kept of one run; the first tells most.
const KEPT_MAX: usize = 32;

/// What can be broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// Balances plus deposits are what was minted.
    Conservation,
    /// Of each session the provider gets at least 70 %.
    ProviderShare,
    /// No session settles above its deposit.
    SettledAboveDeposit,
    /// No voucher promises more than the deposit.
    VoucherAboveDeposit,
    /// No honest provider settles more than it delivered.
    OverClaim,
    /// No consumer promises more than what it has to pay, and a prompt and one window for each leg that runs on its session; and
    /// none pays more than what it got, unless a leg breaks off: then at most what was promised until its provider knew.
    ConsumerExposed,
    /// No provider delivers what is not promised.
    DeliveredUnpaid,
    /// What was delivered and agreed upon is settled in the end.
    Unclaimed,
    /// Deposits come back once a session is over.
    MoneyStuck,
    /// What is kept on disk never says less of money than before.
    Forgotten,
    /// A job ends at most once.
    EndedTwice,
    /// Nothing comes for a job that is over, or was never submitted.
    EventOutsideJob,
    /// Every job ends.
    NeverEnded,
    /// Without faults, or once they are over, no job is broken off.
    NeedlessFailure,
    /// No job is turned away while a slot that it could have had stands idle; see [`crate::idle`].
    WrongfulRefusal,
    /// Clients get the answer's bytes, each once and in order.
    TextDiffers,
    /// A job that ended well delivered all of its answer.
    TextMissing,
    /// What every backend rejects never ends well.
    BadRequestServed,
    /// Jobs bound to own hardware do not leave it.
    OwnJobLeft,
    /// No job pays more than its limits.
    OverPrice,
    /// A job that only one provider can finish is not continued.
    Continued,
    /// Frames decode to what was encoded.
    BadFrame,
    /// A peer asks for what its driver cannot do.
    BadEffect,
    /// No deposit is locked at a node whose clients never asked for anything.
    IdleMoney,
    /// Streams, work, probes and entries do not outlive their jobs.
    LeftBehind,
    /// Time goes on.
    Spinning,
}

/// A rule that was broken, when and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Violation {
    /// Virtual milliseconds since the run began.
    pub at_ms: u64,
    /// The run's seed.
    pub seed: u64,
    /// The rule.
    pub rule: Rule,
    /// What was seen.
    pub what: String,
}

impl std::fmt::Display for Violation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?} at {}.{:03} s: {}", self.rule, self.at_ms / 1000, self.at_ms % 1000, self.what)
    }
}

/// What became of a leg, as its consumer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LegEnd {
    /// Turned down.
    Refused,
    /// Ended, and both have signed.
    Agreed,
    /// Broke off, or the two did not agree.
    Broken,
}

/// A leg that is over, for figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LegSeen {
    /// Whose part it was.
    pub job: JobId,
    /// Who asked.
    pub consumer: HostId,
    /// Who was asked.
    pub provider: HostId,
    /// When the opening was sent.
    pub opened: Now,
    /// When its first text arrived, if any did.
    pub first: Option<Now>,
    /// When it was over.
    pub over: Now,
    /// How.
    pub end: LegEnd,
    /// Text that arrived, in bytes.
    pub received: u64,
    /// Output paid ahead by the quote, in units.
    pub window: u64,
    /// What the received costs.
    pub worth: Credits,
    /// The most that the consumer may ever pay for it, as in [`Rule::ConsumerExposed`].
    pub bound: Credits,
}

/// A job that is over, for figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct JobSeen {
    /// Its name.
    pub job: JobId,
    /// Its gateway.
    pub host: HostId,
    /// When its client came.
    pub submitted: Now,
    /// From then to its first text, in microseconds; `None` if it had none.
    pub first_us: Option<u64>,
    /// From then to its end, in microseconds.
    pub total_us: u64,
    /// Text that its client got, in bytes.
    pub given: u64,
    /// What it cost its gateway by its own count.
    pub cost: Credits,
    /// How many places had a part in it.
    pub legs: usize,
    /// How it went.
    pub went: Went,
}

/// How a job went, for the report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Went {
    /// On own hardware alone.
    Own,
    /// With some of it at a stranger's.
    Network,
    /// Its client left.
    Left,
    /// Turned away before its first text.
    Refused,
    /// Broken off, or lost with its gateway.
    Failed,
}

#[derive(Debug)]
struct Track {
    host: HostId,
    submitted: Now,
    /// What the client should get; `None` once the job is over.
    answer: Option<Answer>,
    given: usize,
    /// Something went to the client, if only an event without text.
    begun: bool,
    first_us: Option<u64>,
    prefer: Prefer,
    price_max: Price,
    cost_max: Credits,
    need: Need,
    /// A leg was at an adversary; the last was at one with another model.
    met: bool,
    other: bool,
    continuable: bool,
    left: bool,
    /// A provider's owner took its slot.
    taken: bool,
    over: bool,
    /// It has been at a stranger's, or has waited for the ledger on its way there.
    spilled: bool,
    waited: bool,
}

/// Which jobs that went to strangers had to wait for a deposit: when each was brought, in milliseconds since the run began,
/// in the order of their first opening.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LedgerWaits {
    /// Those that were sent to a stranger.
    pub spilled: Vec<u64>,
    /// Those of them that went on only when the ledger had locked a deposit.
    pub waited: Vec<u64>,
}

impl LedgerWaits {
    /// How many were sent to strangers, and how many of them waited, of those that were brought from `from_ms` on.
    #[must_use]
    pub fn since(&self, from_ms: u64) -> (usize, usize) {
        let count = |all: &[u64]| all.iter().filter(|ms| **ms >= from_ms).count();
        (count(&self.spilled), count(&self.waited))
    }
}

#[derive(Debug)]
struct LegTrack {
    leg: (JobId, u32),
    session: SessionId,
    price: Price,
    input: u64,
    cached: u64,
    sent: u64,
    /// All was delivered: the prompt is owed even if there was no text.
    done: bool,
    /// The provider has said that it is over, well or not: it delivers no more.
    ended: bool,
    agreed: bool,
}

impl LegTrack {
    fn cost(&self) -> Credits {
        // The prompt is owed from the first text on, or at the proper end.
        if self.sent == 0 && !self.done {
            return Credits::ZERO;
        }
        let usage = Usage { input: self.input.saturating_sub(self.cached), cached: self.cached, output: self.sent };
        self.price.cost(usage).unwrap_or_default()
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct SessionTrack {
    promised: Credits,
    vouched: Credits,
    sent: u64,
    agreed: u64,
    /// The most that its consumer may have to pay for all legs that are over.
    bound: u64,
    /// What its consumer has to take as spent: what it got of legs that are over, and where one broke off, all that was promised
    /// beyond what it got of those that run. See [`Checks::leg_over`].
    spent: u64,
    /// The highest promise that the consumer kept on disk, sent or not.
    kept: u64,
    consumer: Option<HostId>,
}

/// A leg as its provider sees it open.
#[derive(Clone, Copy, Debug)]
pub struct Opened {
    /// Whose part it is, and which.
    pub leg: (JobId, u32),
    /// The session that pays.
    pub session: SessionId,
    /// At what price.
    pub price: Price,
    /// Prompt and prefix, in units.
    pub input: u64,
    /// How much of that is billed as cached.
    pub cached: u64,
    /// What the voucher promises in all.
    pub vouched: Credits,
}

/// A leg as its consumer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Bought {
    /// Whose part it is.
    pub job: JobId,
    /// Which part, from 0.
    pub leg: u32,
    /// Who is asked.
    pub provider: HostId,
    /// The session that pays.
    pub session: SessionId,
    /// At what price.
    pub price: Price,
    /// Prompt and prefix, in units.
    pub input: u64,
    /// How much of that is billed as cached.
    pub cached: u64,
    /// Output paid ahead by the quote, in units.
    pub window: u64,
    /// The largest event that its provider said waits for payment, in units, as far as the consumer may pay that ahead.
    pub held: u64,
    /// Most output of this leg, in units.
    pub output_max: u64,
    /// When the opening was sent.
    pub opened: Now,
    /// When its first text arrived, if any did.
    pub first: Option<Now>,
    /// Text that arrived, in units.
    pub received: u64,
    /// How it ended, if that is known.
    pub end: Option<LegEnd>,
}

impl Bought {
    fn cost(&self, output: u64) -> Credits {
        let usage = Usage { input: self.input.saturating_sub(self.cached), cached: self.cached, output };
        self.price.cost(usage).unwrap_or(Credits::new(u64::MAX))
    }

    fn worst(&self) -> Credits {
        self.cost(self.output_max)
    }

    fn worth(&self) -> Credits {
        let nothing = self.received == 0 && self.end != Some(LegEnd::Agreed);
        if nothing { Credits::ZERO } else { self.cost(self.received) }
    }

    /// The most that its consumer ever promised for it: a window ahead, or one event that is larger.
    fn ahead(&self) -> Credits {
        self.cost(self.received.saturating_add(self.window.max(self.held)).min(self.output_max))
    }

    /// The most that its consumer may have to pay if nothing else ran on its session.
    fn bound(&self) -> Credits {
        match self.end {
            Some(LegEnd::Agreed) => self.worth(),
            Some(LegEnd::Refused | LegEnd::Broken) | None => self.ahead(),
        }
    }
}

/// Everything that is watched.
#[derive(Debug)]
pub struct Checks {
    seed: u64,
    /// Jobs that come later have no excuse to fail.
    calm: Now,
    now: Now,
    violations: Vec<Violation>,
    jobs: BTreeMap<JobId, Track>,
    legs: BTreeMap<(HostId, StreamId), LegTrack>,
    /// Consumers' ends of open legs.
    out: BTreeMap<(HostId, StreamId), JobId>,
    /// Legs as their consumers see them.
    bought: BTreeMap<(HostId, StreamId), Bought>,
    legs_seen: Vec<LegSeen>,
    adversaries: Vec<Option<Adversary>>,
    sessions: BTreeMap<SessionId, SessionTrack>,
    went: BTreeMap<Went, u64>,
    total: u64,
    /// Of each job that had text: whose gateway brought it, and milliseconds to its first text.
    first_ms: Vec<(HostId, u64)>,
    cost: u64,
    waited: BTreeSet<(HostId, StreamId)>,
    ledger: LedgerWaits,
    seen: Vec<JobSeen>,
    course: Course,
}

impl Checks {
    /// Nothing seen yet; jobs that come after `calm` may not be broken off. `adversaries` are by node.
    #[must_use]
    pub const fn new(seed: u64, calm: Now, adversaries: Vec<Option<Adversary>>) -> Self {
        Self {
            seed,
            calm,
            now: START,
            violations: Vec::new(),
            jobs: BTreeMap::new(),
            legs: BTreeMap::new(),
            out: BTreeMap::new(),
            bought: BTreeMap::new(),
            legs_seen: Vec::new(),
            adversaries,
            sessions: BTreeMap::new(),
            went: BTreeMap::new(),
            total: 0,
            first_ms: Vec::new(),
            cost: 0,
            waited: BTreeSet::new(),
            ledger: LedgerWaits { spilled: Vec::new(), waited: Vec::new() },
            seen: Vec::new(),
            course: Course::new(),
        }
    }

    /// Tells the time.
    pub const fn at(&mut self, now: Now) {
        self.now = now;
    }

    /// Notes a broken rule.
    pub fn broken(&mut self, rule: Rule, what: String) {
        if self.violations.len() < KEPT_MAX {
            let at_ms = self.now.ms() - START.ms();
            self.violations.push(Violation { at_ms, seed: self.seed, rule, what });
        }
    }

    fn hold(&mut self, rule: Rule, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.broken(rule, what());
        }
    }

    /// What was broken so far, oldest first.
    #[must_use]
    pub fn violations(&self) -> &[Violation] {
        &self.violations
    }

    // ---- jobs ----

    /// A client asks its gateway.
    pub fn submitted(&mut self, host: HostId, job: &Job) {
        self.total += 1;
        let track = Track {
            host,
            submitted: self.now,
            answer: Some(oracle::answer(&job.body)),
            given: 0,
            begun: false,
            first_us: None,
            prefer: job.prefer,
            price_max: job.price_max,
            cost_max: job.cost_max().unwrap_or_default(),
            need: Need {
                model: job.model.clone(),
                kind: job.kind,
                prefer: job.prefer,
                price_max: job.price_max,
                input: job.prompt_units(),
                output_max: job.output_max,
                submitted: self.now,
            },
            met: false,
            other: false,
            continuable: job.continuable,
            left: false,
            taken: false,
            over: false,
            spilled: false,
            waited: false,
        };
        self.jobs.insert(job.id, track);
    }

    /// A client finds its gateway down.
    pub fn turned_away(&mut self) {
        self.total += 1;
        *self.went.entry(Went::Failed).or_default() += 1;
        self.course.ended(self.now, Went::Failed);
    }

    /// A client leaves. Gives its gateway, unless the job is over.
    pub fn leaves(&mut self, job: &JobId) -> Option<HostId> {
        let track = self.jobs.get_mut(job).filter(|track| !track.over)?;
        track.left = true;
        Some(track.host)
    }

    /// A gateway lost all it did not keep: its clients see their connections break.
    pub fn crashed(&mut self, host: HostId) {
        // What was promised counts as spent from then on.
        for track in self.sessions.values_mut().filter(|track| track.consumer == Some(host)) {
            track.spent = track.spent.max(track.kept);
        }
        for track in self.jobs.values_mut().filter(|track| track.host == host && !track.over) {
            (track.over, track.answer) = (true, None);
            *self.went.entry(Went::Failed).or_default() += 1;
            self.course.ended(self.now, Went::Failed);
        }
    }

    /// A leg of a job begins.
    pub fn placed(&mut self, host: HostId, job: &JobId, route: Route) {
        let Some(track) = self.under_way(host, job, "placed") else { return };
        let left_own = track.prefer == Prefer::Own && route == Route::Network;
        self.hold(Rule::OwnJobLeft, !left_own, || format!("job {job} is placed on the network"));
    }

    /// Text comes for a client.
    pub fn delivered(&mut self, host: HostId, job: &JobId, text: &[u8]) {
        let now = self.now;
        let Some(track) = self.under_way(host, job, "delivered") else { return };
        let Some(Answer::Text(answer)) = &track.answer else {
            return self.broken(Rule::BadRequestServed, format!("job {job} gets {} bytes", text.len()));
        };
        let (from, to) = (track.given, track.given + text.len());
        let other = track.other && answer.get(from..to).is_some_and(|should| oracle::agrees(text, should));
        if answer.get(from..to) != Some(text) && !other {
            let again = answer[..from].ends_with(text);
            let how = if again { "bytes given before come again" } else { "other bytes come" };
            return self.broken(Rule::TextDiffers, format!("job {job} at byte {from}: {how} ({} bytes)", text.len()));
        }
        track.given = to;
        track.begun = true;
        if from == 0 && to > 0 {
            let first = now.since(track.submitted);
            track.first_us = Some(first.as_micros() as u64);
            self.first_ms.push((host, u64::try_from(first.as_millis()).unwrap_or(u64::MAX)));
            self.course.first(now, first);
        }
    }

    /// Whether a client of somebody's brought that job.
    #[must_use]
    pub fn knows(&self, job: &JobId) -> bool {
        self.jobs.contains_key(job)
    }

    /// A job is over. Gives what it needed, if it was turned away.
    pub fn ended(&mut self, host: HostId, job: &JobId, outcome: &Outcome) -> Option<Need> {
        let seen = self.jobs.get(job).map(|track| track.over && track.host == host);
        if seen == Some(true) {
            self.broken(Rule::EndedTwice, format!("job {job}"));
            return None;
        }
        let track = self.under_way(host, job, "ended")?;
        track.over = true;
        let (answer, given, left, cost_max) = (track.answer.take(), track.given, track.left, track.cost_max);
        let (submitted, single, taken) = (track.submitted, !track.continuable, track.taken);
        let need = track.need.clone();
        let (begun, first_us, met) = (track.begun, track.first_us, track.met);
        let sound = matches!(answer, Some(Answer::Text(_)));
        let continued = !track.continuable && outcome.legs.iter().filter(|leg| leg.usage.output > 0).count() > 1;
        self.hold(Rule::Continued, !continued, || format!("job {job} was served in parts"));
        match (&outcome.result, answer) {
            (Ok(_), Some(Answer::Text(answer))) => {
                self.hold(Rule::TextMissing, given == answer.len(), || {
                    format!("job {job} ended well after {given} of {} bytes", answer.len())
                });
            }
            (Ok(_), _) => self.broken(Rule::BadRequestServed, format!("job {job} ended well")),
            (Err(_), _) => {}
        }
        let sum = outcome.legs.iter().map(|leg| leg.cost.micro()).sum::<u64>();
        let cost = outcome.cost;
        self.hold(Rule::OverPrice, cost.micro() == sum && cost <= cost_max, || {
            format!("job {job} costs {cost}, its legs {sum} micro-credits, its limit is {cost_max}")
        });
        self.cost += cost.micro();
        let far = outcome.legs.iter().any(|leg| leg.route == Route::Network && leg.usage.output > 0)
            || outcome.legs.last().is_some_and(|leg| leg.route == Route::Network);
        let went = match &outcome.result {
            Ok(_) if far => Went::Network,
            Ok(_) => Went::Own,
            Err(_) if left => Went::Left,
            Err(failure) if given == 0 && is_refusal(failure.reason, failure.status) => Went::Refused,
            Err(_) => Went::Failed,
        };
        *self.went.entry(went).or_default() += 1;
        self.course.ended(self.now, went);
        // An owner may take the slot of a job at any time. One that nobody else can go on with then ends, and so does one
        // whose gateway has no money left for another provider, or that has waited for one as long as it may.
        let excused = taken
            && matches!(&outcome.result, Err(failure)
                if failure.reason == Reason::NoDeposit
                    || (failure.reason == Reason::ProviderPreempted && single)
                    || (matches!(failure.reason, Reason::ProviderPreempted | Reason::ProviderRefused) && failure.retry_after_ms.is_some()));
        let excused = excused || met || self.adversaries[host].is_some();
        let needless = went == Went::Failed && submitted >= self.calm && !excused;
        let (now, given_units) = (self.now, given as u64);
        self.seen.push(JobSeen {
            job: *job,
            host,
            submitted,
            first_us,
            total_us: now.0 - submitted.0,
            given: given_units,
            cost,
            legs: outcome.legs.len(),
            went,
        });
        self.hold(Rule::NeedlessFailure, !needless, || {
            format!("job {job}: {:?}, legs {:?}", outcome.result, outcome.legs)
        });
        let honest = self.adversaries[host].is_none();
        (honest && sound && !begun && matches!(went, Went::Refused | Went::Failed)).then_some(need)
    }

    fn under_way(&mut self, host: HostId, job: &JobId, what: &str) -> Option<&mut Track> {
        let known = self.jobs.get(job).is_some_and(|track| track.host == host && !track.over);
        self.hold(Rule::EventOutsideJob, known, || format!("job {job} is not under way at node {host}, yet {what}"));
        if known { self.jobs.get_mut(job) } else { None }
    }

    /// Whether any job is not over.
    #[must_use]
    pub fn busy(&self) -> bool {
        self.jobs.values().any(|track| !track.over)
    }

    // ---- deposits ----

    /// A node asks the ledger to lock a deposit.
    pub fn locks(&mut self, host: HostId) {
        let asked = self.jobs.values().any(|track| track.host == host);
        self.hold(Rule::IdleMoney, asked, || {
            format!("node {host} locks a deposit, and none of its clients ever asked")
        });
    }

    /// A stream is opened as soon as the ledger has locked a deposit: its job waited for that.
    pub fn waited(&mut self, host: HostId, stream: StreamId) {
        self.waited.insert((host, stream));
    }

    /// A job is sent to a stranger.
    pub fn spills(&mut self, host: HostId, stream: StreamId, job: &JobId) {
        let waited = self.waited.remove(&(host, stream));
        let Some(track) = self.jobs.get_mut(job) else { return };
        let brought = track.submitted.ms() - START.ms();
        if !std::mem::replace(&mut track.spilled, true) {
            self.ledger.spilled.push(brought);
        }
        if waited && !std::mem::replace(&mut track.waited, true) {
            self.ledger.waited.push(brought);
        }
    }

    // ---- legs ----

    /// A consumer opens a leg.
    pub fn opens(&mut self, job: &JobId, provider: &NodeId, at: HostId, price: &Price, prefix: usize) {
        let adversary = self.adversaries.get(at).copied().flatten();
        let Some(track) = self.jobs.get_mut(job) else {
            return self
                .broken(Rule::EventOutsideJob, format!("job {job} is opened at {provider}, and nobody asked for it"));
        };
        let (own, within, given) = (track.prefer == Prefer::Own, price.within(&track.price_max), track.given);
        track.met |= adversary.is_some();
        track.other = adversary == Some(Adversary::OtherText);
        let continued = !track.continuable && prefix > 0;
        self.hold(Rule::OwnJobLeft, !own, || format!("job {job} is sent to {provider}"));
        self.hold(Rule::OverPrice, within, || format!("job {job} is opened above its price limit"));
        self.hold(Rule::Continued, !continued, || format!("job {job} is opened with {prefix} bytes of prefix"));
        self.hold(Rule::TextDiffers, prefix == given, || {
            format!("job {job} goes on from byte {prefix}, its client has {given}")
        });
    }

    /// On which stream of which consumer a leg runs.
    pub fn opened_on(&mut self, host: HostId, stream: StreamId, job: JobId) {
        self.out.insert((host, stream), job);
    }

    /// A consumer hears that the provider's owner took the slot.
    pub fn taken(&mut self, host: HostId, stream: StreamId) {
        if let Some(track) = self.out.get(&(host, stream)).and_then(|job| self.jobs.get_mut(job)) {
            track.taken = true;
        }
    }

    /// A leg reaches its provider.
    pub fn arrives(&mut self, host: HostId, stream: StreamId, opened: Opened) {
        let Opened { leg, session, price, input, cached, vouched } = opened;
        self.vouched(session, vouched);
        let leg = LegTrack { leg, session, price, input, cached, sent: 0, done: false, ended: false, agreed: false };
        self.legs.insert((host, stream), leg);
    }

    /// A provider says that a leg is over.
    pub fn ends(&mut self, host: HostId, stream: StreamId) {
        let Some(leg) = self.legs.get_mut(&(host, stream)) else { return };
        let (leg, session, before) = (leg.leg, leg.session, std::mem::replace(&mut leg.ended, true));
        if !before && !self.has_consumer(session, leg) {
            self.all_promised(session);
        }
    }

    /// Whether the leg still runs at its consumer.
    fn has_consumer(&self, session: SessionId, leg: (JobId, u32)) -> bool {
        self.bought.values().any(|bought| bought.session == session && (bought.job, bought.leg) == leg)
    }

    /// Whether a provider goes on with a leg of the session that is over at its consumer.
    fn lingers(&self, session: SessionId) -> bool {
        let mut legs = self.legs.values().filter(|leg| leg.session == session && !leg.ended);
        legs.any(|leg| !self.has_consumer(session, leg.leg))
    }

    /// What has come of a session's running legs, and what may be promised for them: a prompt and a window more.
    fn running(&self, session: SessionId) -> (u64, u64) {
        let legs = self.bought.values().filter(|bought| bought.session == session);
        legs.fold((0, 0), |(worth, ahead), leg| (worth + leg.worth().micro(), ahead + leg.ahead().micro()))
    }

    /// All that was promised until now may have been used for legs that are over, but for what came of those that run.
    fn all_promised(&mut self, session: SessionId) {
        let (worth, _) = self.running(session);
        let track = self.sessions.entry(session).or_default();
        track.bound = track.bound.max(track.promised.micro().saturating_sub(worth));
    }

    /// A voucher reaches the provider.
    pub fn vouched(&mut self, session: SessionId, total: Credits) {
        let track = self.sessions.entry(session).or_default();
        track.vouched = track.vouched.max(total);
    }

    /// A provider sends text of that many units, or the proper end. `sent`: whether it truly went out, or was lost in a
    /// crash between the record of it and its sending, which the provider may claim all the same.
    pub fn works(&mut self, host: HostId, stream: StreamId, units: u64, done: bool, sent: bool) {
        let Some(leg) = self.legs.get_mut(&(host, stream)) else { return };
        let before = leg.cost();
        leg.done |= done;
        leg.sent += units;
        let more = leg.cost().micro() - before.micro();
        let session = leg.session;
        let track = self.sessions.entry(session).or_default();
        track.sent += more;
        let (owed, promised) = (track.sent, track.vouched.micro());
        // An empty answer's end tells the price of its prompt, and delivers nothing.
        if sent && units > 0 && self.adversaries[host].is_none() {
            self.hold(Rule::DeliveredUnpaid, owed <= promised, || {
                format!("node {host} has delivered {owed} micro-credits on {}, vouchers promise {promised}", session.0)
            });
        }
    }

    /// The consumer's signature below a receipt reaches the provider.
    pub fn agrees(&mut self, host: HostId, stream: StreamId) {
        let Some(leg) = self.legs.get_mut(&(host, stream)) else { return };
        if !std::mem::replace(&mut leg.agreed, true) {
            let (session, cost) = (leg.session, leg.cost().micro());
            self.sessions.entry(session).or_default().agreed += cost;
        }
    }

    /// A stream is over at one side.
    ///
    /// What a provider may claim of a session when all its legs are over, `bound`, follows from one rule that vouchers enforce:
    /// what it has delivered of all legs together is worth no more than what was promised until then. So whenever a leg that
    /// broke off is over at either side, and whenever another ends while one that is over here goes on there, those that are
    /// over have used at most what is promised, less what came of those that run. In between, a leg that ends with both
    /// signatures adds exactly what came of it. No rounding is left over: each leg's cost is rounded up alone on both sides.
    pub fn leg_over(&mut self, host: HostId, stream: StreamId) {
        self.ends(host, stream);
        self.legs.remove(&(host, stream));
        self.out.remove(&(host, stream));
        let Some(bought) = self.bought.remove(&(host, stream)) else { return };
        let (session, bound) = (bought.session, bought.bound());
        let honest = self.adversaries.get(bought.provider).is_none_or(Option::is_none);
        let (broke, least) = match bought.end {
            Some(LegEnd::Agreed) => (false, bound.micro()),
            // Whoever is honest has taken nothing for it, not even its voucher.
            Some(LegEnd::Refused) => (!honest, 0),
            Some(LegEnd::Broken) | None => (true, bound.micro()),
        };
        let (worth, _) = self.running(session);
        let lingers = self.lingers(session);
        let track = self.sessions.entry(session).or_default();
        let promised = track.promised.micro().saturating_sub(worth);
        let refused = bought.end == Some(LegEnd::Refused);
        track.bound = track.bound.saturating_add(least).max(if broke || lingers { promised } else { 0 });
        track.spent = track.spent.saturating_add(least).max(if broke && !refused { promised } else { 0 });
        self.legs_seen.push(LegSeen {
            job: bought.job,
            consumer: host,
            provider: bought.provider,
            opened: bought.opened,
            first: bought.first,
            over: self.now,
            end: bought.end.unwrap_or(LegEnd::Broken),
            received: bought.received,
            window: bought.window,
            worth: bought.worth(),
            bound,
        });
    }

    /// The streams on which a node has a leg, as a consumer or as a provider.
    #[must_use]
    pub fn streams_of(&self, host: HostId) -> Vec<StreamId> {
        let all = self.bought.keys().chain(self.legs.keys());
        all.filter(|(whose, _)| *whose == host).map(|(_, stream)| *stream).collect()
    }

    /// A consumer sends an opening.
    pub fn buys(&mut self, host: HostId, stream: StreamId, mut bought: Bought) {
        bought.opened = self.now;
        self.sessions.entry(bought.session).or_default().consumer = Some(host);
        self.bought.insert((host, stream), bought);
    }

    /// A provider tells its consumer that so much waits for payment.
    pub fn waits(&mut self, host: HostId, stream: StreamId, held: u64) {
        if let Some(bought) = self.bought.get_mut(&(host, stream)) {
            bought.held = bought.held.max(held);
        }
    }

    /// Text reaches a consumer.
    pub fn receives(&mut self, host: HostId, stream: StreamId, units: u64) {
        if let Some(bought) = self.bought.get_mut(&(host, stream)) {
            if units > 0 {
                bought.first.get_or_insert(self.now);
            }
            bought.received += units;
        }
    }

    /// A consumer learns that it is turned down, or signs the receipt.
    pub fn bought_ends(&mut self, host: HostId, stream: StreamId, end: LegEnd) {
        if let Some(bought) = self.bought.get_mut(&(host, stream)) {
            bought.end = Some(end);
        }
    }

    /// Every leg that is over, in the order in which their consumers saw the end.
    #[must_use]
    pub fn legs_seen(&self) -> &[LegSeen] {
        &self.legs_seen
    }

    /// Whether a consumer's stream carries a leg already.
    #[must_use]
    pub fn has_reserved(&self, host: HostId, stream: StreamId) -> bool {
        self.bought.contains_key(&(host, stream))
    }

    /// A consumer promises so much in all. What it opens with the promise is bought already.
    pub fn promises(&mut self, session: SessionId, total: Credits) {
        let (_, ahead) = self.running(session);
        let track = self.sessions.entry(session).or_default();
        let most = track.promised.micro().max(track.spent.saturating_add(ahead));
        track.promised = track.promised.max(total);
        self.hold(Rule::ConsumerExposed, total.micro() <= most, || {
            format!("{} promises {total} micro-credits, {most} at most are called for", session.0)
        });
    }

    /// A node hears what a session has paid. Its consumer takes what is beyond the running legs for delivered, whatever arrived.
    pub fn told_settled(&mut self, host: HostId, session: SessionId, settled: Credits) {
        let (_, ahead) = self.running(session);
        if let Some(track) = self.sessions.get_mut(&session).filter(|track| track.consumer == Some(host)) {
            track.spent = track.spent.max(settled.micro().saturating_sub(ahead));
        }
    }

    /// A consumer keeps on disk that it has promised so much.
    pub fn keeps(&mut self, host: HostId, session: SessionId, promised: Credits) {
        let track = self.sessions.entry(session).or_default();
        track.consumer = Some(host);
        track.kept = track.kept.max(promised.micro());
    }

    /// The most that a session's running legs and all its earlier ones can use of its deposit.
    #[must_use]
    pub fn uses_at_most(&self, session: &SessionId) -> Credits {
        let promised = self.sessions.get(session).map_or(Credits::ZERO, |track| track.promised);
        let running = self.bought.values().filter(|bought| bought.session == *session).map(Bought::worst);
        running.fold(promised, |sum, worst| sum.checked_add(worst).unwrap_or(Credits::new(u64::MAX)))
    }

    /// The most that a session's consumer may have to pay for what is over, as [`Rule::ConsumerExposed`] has it.
    #[must_use]
    pub fn bound_of(&self, session: &SessionId) -> Credits {
        Credits::new(self.sessions.get(session).map_or(0, |track| track.bound))
    }

    // ---- money ----

    /// A session was settled up to `claim`, of which its provider had `provider` in all; whether that one is honest.
    pub fn settled(&mut self, session: SessionId, deposit: Credits, claim: Credits, provider: Credits, honest: bool) {
        let delivered = self.sessions.get(&session).map_or(0, |track| track.sent);
        let (id, claimed) = (session.0, claim.micro());
        self.hold(Rule::SettledAboveDeposit, claim <= deposit, || format!("{id} settles {claim} of {deposit}"));
        self.hold(Rule::ProviderShare, u128::from(provider.micro()) * 10 >= u128::from(claimed) * 7, || {
            format!("{id} has paid {provider} of {claim} to its provider")
        });
        self.hold(Rule::OverClaim, !honest || claimed <= delivered, || {
            format!("{id} settles {claimed} micro-credits, {delivered} were delivered")
        });
    }

    /// The run is long over: what was agreed upon must have been paid, and nobody paid for more than a window too much.
    /// `settled` tells what a session paid, if its consumer is honest, and whether its provider is, too.
    pub fn all_settled(&mut self, settled: impl Fn(&SessionId) -> Option<(Credits, bool)>) {
        let sessions: Vec<_> = self.sessions.iter().map(|(id, track)| (*id, *track)).collect();
        for (id, SessionTrack { agreed, bound, .. }) in sessions {
            let Some((paid, honest)) = settled(&id) else { continue };
            let paid = paid.micro();
            self.hold(Rule::ConsumerExposed, paid <= bound, || {
                format!("{} was settled for {paid} micro-credits, its consumer is bound for {bound} at most", id.0)
            });
            self.hold(Rule::Unclaimed, !honest || agreed <= paid, || {
                format!("{} was settled for {paid} micro-credits, both have signed for {agreed}", id.0)
            });
        }
    }

    /// The faults are long over: every job must have ended.
    pub fn all_ended(&mut self) {
        let open: Vec<_> =
            self.jobs.iter().filter(|(_, track)| !track.over).map(|(id, track)| (*id, track.host)).collect();
        for (job, host) in open {
            if self.adversaries[host].is_some() {
                continue; // Whoever cheats may wait as long as it likes.
            }
            self.broken(Rule::NeverEnded, format!("job {job} at node {host}"));
        }
    }

    // ---- figures ----

    /// Jobs that clients brought.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.total
    }

    /// Jobs that went that way.
    #[must_use]
    pub fn went(&self, how: Went) -> u64 {
        self.went.get(&how).copied().unwrap_or_default()
    }

    /// Milliseconds from submission to first text, of every job that had any, sorted.
    #[must_use]
    pub fn first_ms(&self) -> Vec<u64> {
        self.first_ms_of(|_| true)
    }

    /// The same, of the jobs that those gateways brought.
    #[must_use]
    pub fn first_ms_of(&self, counts: impl Fn(HostId) -> bool) -> Vec<u64> {
        let mut all: Vec<u64> = self.first_ms.iter().filter(|(host, _)| counts(*host)).map(|(_, ms)| *ms).collect();
        all.sort_unstable();
        all
    }

    /// Which jobs waited for the ledger.
    #[must_use]
    pub const fn ledger_waits(&self) -> &LedgerWaits {
        &self.ledger
    }

    /// Every job that is over, in the order in which they ended. Jobs lost with their gateway are not among them.
    #[must_use]
    pub fn seen(&self) -> &[JobSeen] {
        &self.seen
    }

    /// How it went over time.
    #[must_use]
    pub const fn course(&self) -> &Course {
        &self.course
    }

    /// What all jobs cost, in micro-credits.
    #[must_use]
    pub const fn cost(&self) -> u64 {
        self.cost
    }
}

/// Whether a job with that reason was turned away, rather than broken off.
const fn is_refusal(reason: Reason, status: Option<u16>) -> bool {
    match reason {
        Reason::OwnSaturated
        | Reason::OwnUnhealthy
        | Reason::OwnQueued
        | Reason::OwnHedged
        | Reason::OwnFree
        | Reason::ModelNotLocal
        | Reason::LabelForbidsNetwork
        | Reason::PriceCap
        | Reason::NoOffer
        | Reason::NoDeposit
        | Reason::ProviderRefused
        | Reason::ProviderPreempted
        | Reason::Upstream429
        | Reason::QueueFull
        | Reason::NoPlace
        | Reason::Timeout => true,
        Reason::UpstreamError | Reason::ProviderStalled | Reason::ClientLeft => status.is_some(),
    }
}
