//! A replica: an engine, and who may use it.
//! Invariant: its owner's jobs go first. Strangers' jobs run only beside the reserved slots, never while one of the owner's
//! waits, and make room for it.

use super::gateway::{Pace, Seen};
use super::job::JobKey;
use super::policy::ReplicaId;
use super::setting::{Churn, PriceRules};
use crate::engine::{Batch, Engine, EngineRules, Progress};
use std::collections::VecDeque;

/// What became of a job at the door.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// It is in the engine.
    Runs,
    /// It is in the engine in place of this one, of which so many tokens were made.
    RunsInstead(JobKey, u32),
    /// It is the owner's, and waits in the replica's queue.
    Waits,
    /// There is no room for it.
    Refused,
}

/// A replica.
#[derive(Debug)]
pub(super) struct Replica {
    pub(super) id: ReplicaId,
    pub(super) region: usize,
    /// The organisation that it belongs to, which earns what others pay.
    pub(super) owner: usize,
    pub(super) sells: bool,
    pub(super) price: PriceRules,
    pub(super) slots: u32,
    pub(super) reserved: u32,
    pub(super) queue_max: u32,
    pub(super) churn: Option<Churn>,
    pub(super) up: bool,
    /// Jobs on their way here, and the tokens they bring.
    pub(super) coming: u32,
    pub(super) coming_tokens: u64,
    pub(super) engine: Engine,
    rules: EngineRules,
    /// Owner's jobs in the engine.
    owners: Vec<JobKey>,
    /// Strangers' jobs in the engine, the newest last.
    strangers: Vec<JobKey>,
    /// Owner's jobs that wait for a slot.
    queue: VecDeque<JobKey>,
    /// Tokens of prompts in `queue`.
    queue_tokens: u64,
}

/// Who a replica is; the rest follows.
#[derive(Debug)]
pub(super) struct Site {
    pub(super) id: ReplicaId,
    pub(super) region: usize,
    pub(super) owner: usize,
}

/// A job as an engine takes it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Work<'a> {
    pub(super) key: JobKey,
    pub(super) input: u32,
    pub(super) output: u32,
    pub(super) prefix: &'a [u64],
}

impl Replica {
    pub(super) fn new(site: &Site, rules: &super::setting::ReplicaRules, engine: EngineRules) -> Self {
        Self {
            id: site.id,
            region: site.region,
            owner: site.owner,
            sells: rules.sells,
            price: rules.price,
            slots: rules.slots,
            reserved: rules.reserved_slots,
            queue_max: rules.queue_max,
            churn: rules.churn,
            up: true,
            coming: 0,
            coming_tokens: 0,
            engine: Engine::new(engine.clone()),
            rules: engine,
            owners: Vec::new(),
            strangers: Vec::new(),
            queue: VecDeque::new(),
            queue_tokens: 0,
        }
    }

    /// Jobs in the engine, begun or not.
    pub(super) fn admitted(&self) -> u32 {
        u32::try_from(self.owners.len() + self.strangers.len()).expect("at most `slots`")
    }

    /// Jobs that it would take at once now, from its owner or from a stranger.
    pub(super) fn slots_free(&self, stranger: bool) -> u32 {
        if !self.up || !self.queue.is_empty() {
            return 0;
        }
        if stranger {
            let open = if self.sells { self.slots.saturating_sub(self.reserved) } else { 0 };
            return open.saturating_sub(self.admitted());
        }
        // Strangers' jobs make room.
        self.slots - u32::try_from(self.owners.len()).expect("at most `slots`")
    }

    /// The jobs in the engine.
    pub(super) fn inside(&self) -> impl Iterator<Item = JobKey> {
        self.owners.iter().chain(&self.strangers).copied()
    }

    /// Owner's jobs that wait for a slot.
    pub(super) fn queued(&self) -> u32 {
        u32::try_from(self.queue.len()).expect("at most `queue_max`")
    }

    /// Its load as it is.
    pub(super) fn seen(&self, now_us: u64, stranger: bool) -> Seen {
        let load = self.engine.load();
        Seen {
            at_us: now_us,
            running: load.running,
            waiting: load.waiting + self.queued(),
            waiting_tokens: load.waiting_tokens + self.queue_tokens,
            kv_used: u64::from(load.kv_used),
            kv_tokens: u64::from(load.kv_tokens),
            slots_free: self.slots_free(stranger),
            ttft_us: None,
            ttft_input: 0,
            speed: None,
        }
    }

    /// Its load as it tells strangers: what it expects of its speed comes along.
    pub(super) fn told(&self, now_us: u64) -> Seen {
        let (start_us, kilo_us) = (self.engine.predict_ttft_us(1, 0), self.engine.predict_ttft_us(1001, 0));
        let load = self.engine.load();
        let joined = Batch { decoding: load.running + 1, decoding_kv: u64::from(load.kv_used), chunks: &[] };
        let token_us = self.rules.step.step_us(&joined) as u64;
        let speed = Pace { start_us, read_us_per_kilo: kilo_us.saturating_sub(start_us), token_us };
        Seen { speed: Some(speed), ..self.seen(now_us, true) }
    }

    /// A job comes in.
    pub(super) fn admit(&mut self, now_us: u64, work: Work<'_>, stranger: bool) -> Admission {
        if !self.engine.fits(work.input, work.output) {
            return Admission::Refused;
        }
        if self.slots_free(stranger) == 0 {
            if stranger || self.queued() >= self.queue_max {
                return Admission::Refused;
            }
            self.queue.push_back(work.key);
            self.queue_tokens += u64::from(work.input);
            return Admission::Waits;
        }
        let cut = if self.admitted() == self.slots {
            let newest = self.strangers.pop().expect("a slot is free for the owner, so strangers hold some");
            Some((newest, self.stop(now_us, newest)))
        } else {
            None
        };
        self.start(now_us, work, stranger);
        cut.map_or(Admission::Runs, |(key, made)| Admission::RunsInstead(key, made))
    }

    fn start(&mut self, now_us: u64, work: Work<'_>, stranger: bool) {
        let priority = u8::from(stranger);
        let taken = self.engine.submit(now_us, work.key.number(), work.input, work.output, work.prefix, priority);
        assert!(taken, "a job that fits is taken once");
        if stranger {
            self.strangers.push(work.key);
        } else {
            self.owners.push(work.key);
        }
    }

    /// Stops a job in the engine; gives the tokens that were made of it.
    fn stop(&mut self, now_us: u64, key: JobKey) -> u32 {
        let made = self.engine.given(now_us, key.number());
        self.engine.cancel(now_us, key.number());
        made.expect("it is in the engine: what was done by now was told before")
    }

    /// Computes until now.
    pub(super) fn advance(&mut self, now_us: u64, out: &mut Vec<Progress>) {
        self.engine.advance(now_us, out);
    }

    /// A job is done. Gives the owner's job that goes in next, if one waits; [`Replica::go_in`] then has to follow.
    pub(super) fn ended(&mut self, key: JobKey, stranger: bool) -> Option<JobKey> {
        let jobs = if stranger { &mut self.strangers } else { &mut self.owners };
        let place = jobs.iter().position(|it| *it == key).expect("it was started");
        jobs.remove(place);
        self.queue.front().copied().filter(|_| self.admitted() < self.slots)
    }

    /// Moves the first of the queue, which `work` is, into the engine.
    pub(super) fn go_in(&mut self, now_us: u64, work: Work<'_>) {
        let first = self.queue.pop_front();
        assert_eq!(first, Some(work.key), "the first of the queue goes in");
        self.queue_tokens -= u64::from(work.input);
        self.start(now_us, work, false);
    }

    /// It dies: what was in it is gone. Gives how many tokens were made of each of `jobs`, which are those in it.
    pub(super) fn die(&mut self, now_us: u64, jobs: &[JobKey]) -> Vec<u32> {
        let made = jobs.iter().map(|key| self.engine.given(now_us, key.number()).unwrap_or(0)).collect();
        self.engine = Engine::new(self.rules.clone());
        self.owners.clear();
        self.strangers.clear();
        self.queue.clear();
        self.queue_tokens = 0;
        self.up = false;
        made
    }

    /// The rules of its engine.
    pub(super) const fn rules(&self) -> &EngineRules {
        &self.rules
    }

    /// Its own prediction of the time to first token, in microseconds without the network.
    pub(super) fn predict_ttft_us(&self, input: u32, prefix: &[u64]) -> u64 {
        self.engine.predict_ttft_us(input, self.engine.cached_tokens(prefix).min(input))
    }
}
