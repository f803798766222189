//! The engine: what is submitted, computed step by step, and told.
//! Invariant: between two calls the state is that of the step in flight, which has been scheduled and has not ended; steps
//! that would schedule the same sequences again are joined into one flight, whose times are those of single steps.

use super::kv::{BLOCK, Kv};
use super::sequence::{Queue, Slots, Stage, Ticket};
use super::step::{Batch, Chunk, PS_PER_US, StepModel, Ticks};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use thiserror::Error;

/// What an engine is: its speed, its memory, its limits.
#[derive(Clone, Debug, PartialEq)]
pub struct EngineRules {
    /// GPU and model, as in [`presets`](super::presets).
    pub name: String,
    /// How long a step takes.
    pub step: StepModel,
    /// KV memory, in tokens.
    pub kv_tokens: u32,
    /// Sequences in a step.
    pub seqs_max: u32,
    /// Tokens in a step. At least `seqs_max`.
    pub chunk_budget: u32,
    /// Tokens that one name of a prefix covers, a multiple of 16; 0 for no prefix cache.
    pub prefix_grain: u32,
    /// Whether a step is decided while the one before it runs, as vLLM does since 0.14: what comes, and what ends, during
    /// a step counts from the next but one on.
    pub async_scheduling: bool,
}

/// Why rules do not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum RulesError {
    /// No sequence could run.
    #[error("seqs_max is 0")]
    NoSequences,
    /// A step could not hold every running sequence.
    #[error("chunk_budget {chunk_budget} is below seqs_max {seqs_max}")]
    SmallBudget {
        /// The budget given.
        chunk_budget: u32,
        /// The sequences it must hold.
        seqs_max: u32,
    },
    /// A named piece would not be whole blocks.
    #[error("prefix_grain {0} is not a multiple of 16")]
    BrokenGrain(u32),
}

impl EngineRules {
    /// Whether an engine can follow these rules.
    ///
    /// # Errors
    /// The first field that does not hold.
    pub const fn validate(&self) -> Result<(), RulesError> {
        if self.seqs_max == 0 {
            return Err(RulesError::NoSequences);
        }
        if self.chunk_budget < self.seqs_max {
            return Err(RulesError::SmallBudget { chunk_budget: self.chunk_budget, seqs_max: self.seqs_max });
        }
        if !self.prefix_grain.is_multiple_of(BLOCK) {
            return Err(RulesError::BrokenGrain(self.prefix_grain));
        }
        Ok(())
    }
}

/// What an engine tells. Times are ends of steps, rounded up to whole microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The first token of an answer is out.
    First {
        /// Whose.
        id: u64,
        /// When.
        at_us: u64,
        /// Prompt tokens that the prefix cache held.
        cached: u32,
    },
    /// The answer is complete; the engine has forgotten `id`.
    Done {
        /// Whose.
        id: u64,
        /// When.
        at_us: u64,
        /// Prompt tokens that the prefix cache held.
        cached: u32,
    },
    /// The answer has grown; only after [`Engine::emit_tokens`].
    Tokens {
        /// Whose.
        id: u64,
        /// When.
        at_us: u64,
        /// Tokens of the answer so far.
        count: u32,
    },
}

/// How busy an engine is, as of its last call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences that are computed.
    pub running: u32,
    /// Requests in the waiting queue.
    pub waiting: u32,
    /// Prompt tokens still to compute, of waiting and running requests, less what the cache held when they came.
    pub waiting_tokens: u64,
    /// KV memory in use, in tokens, whole blocks. What is cached without a user is not in use.
    pub kv_used: u32,
    /// KV memory, in tokens.
    pub kv_tokens: u32,
}

/// When something is to tell about a decoding sequence: at the end of `step`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Milestone {
    step: u64,
    order: u64,
    ticket: Ticket,
}

/// Steps that are computed one after the other, of the same sequences. Times in picoseconds.
#[derive(Clone, Copy, Debug)]
struct Flight {
    start: u64,
    steps: u64,
    /// The first step's time.
    first: u64,
    /// How much longer each step takes than the one before.
    growth: u64,
}

impl Flight {
    const fn lasts(&self, steps: u64) -> u64 {
        steps * self.first + self.growth * (steps * steps.saturating_sub(1) / 2)
    }

    const fn end(&self) -> u64 {
        self.start + self.lasts(self.steps)
    }

    /// How many steps have ended at `now`.
    fn ended(&self, now: u64) -> u64 {
        let past = now.saturating_sub(self.start);
        if past < self.first {
            return 0;
        }
        // Positive root of growth/2 n² + (first - growth/2) n - past, then put right by at most a few steps.
        let (first, growth) = (self.first as f64, self.growth as f64);
        let linear = first - growth / 2.0;
        let root = 2.0 * past as f64 / (linear + (linear * linear + 2.0 * growth * past as f64).sqrt());
        let mut steps = (root as u64).min(self.steps);
        while self.lasts(steps) > past {
            steps -= 1;
        }
        while steps < self.steps && self.lasts(steps + 1) <= past {
            steps += 1;
        }
        steps
    }
}

/// An inference engine in virtual time. It reads no clock: each call says when it is, never earlier than the last.
#[derive(Debug)]
pub struct Engine {
    pub(super) rules: EngineRules,
    pub(super) ticks: Ticks,
    /// Picoseconds are counted from here, so that they never run out.
    origin_us: u64,
    /// The last call's time.
    now: u64,
    pub(super) slots: Slots,
    pub(super) queue: Queue,
    pub(super) kv: Kv,
    /// Decoding sequences, newest last, with stale tickets between them.
    newest: Vec<Ticket>,
    milestones: BinaryHeap<Reverse<Milestone>>,
    pub(super) decoding: u32,
    /// Tokens of context that the step in flight's decoding sequences attend to.
    pub(super) decoding_kv: u64,
    /// Decoding sequences by the steps, modulo 16, in which they need a new block.
    needs: [u32; BLOCK as usize],
    /// Running sequences whose prompt is being computed.
    prefilling: u32,
    /// The newest running sequence, if more of its prompt than this step's chunk is left.
    tail: Option<u32>,
    /// The prompts in the step in flight.
    chunks: Vec<(Ticket, Chunk)>,
    batch: Vec<Chunk>,
    /// Number of the step in flight.
    step: u64,
    flight: Option<Flight>,
    /// Sequences that are done and keep their memory and their place until one more step is decided.
    leaving: Vec<(u32, u32)>,
    /// Whether the head of the queue cannot run before a running sequence leaves.
    blocked: bool,
    admitted: u64,
    pub(super) waiting_tokens: u64,
    /// Mean length of the answers so far.
    pub(super) mean_output: f64,
    tokens_every: u32,
    told: Vec<Progress>,
    flights: u64,
}

impl Engine {
    /// An idle engine.
    ///
    /// # Panics
    /// If the rules do not hold; check them before with [`EngineRules::validate`].
    #[must_use]
    pub fn new(rules: EngineRules) -> Self {
        if let Err(error) = rules.validate() {
            panic!("engine {}: {error}", rules.name);
        }
        Self {
            ticks: Ticks::of(&rules.step),
            origin_us: 0,
            now: 0,
            slots: Slots::default(),
            queue: Queue::default(),
            kv: Kv::new(rules.kv_tokens, rules.prefix_grain),
            newest: Vec::new(),
            milestones: BinaryHeap::new(),
            decoding: 0,
            decoding_kv: 0,
            needs: [0; BLOCK as usize],
            prefilling: 0,
            tail: None,
            chunks: Vec::new(),
            batch: Vec::new(),
            step: 0,
            flight: None,
            leaving: Vec::new(),
            blocked: false,
            admitted: 0,
            waiting_tokens: 0,
            mean_output: super::predict::OUTPUT_PRIOR,
            tokens_every: 0,
            told: Vec::new(),
            flights: 0,
            rules,
        }
    }

    /// The rules it follows.
    #[must_use]
    pub const fn rules(&self) -> &EngineRules {
        &self.rules
    }

    /// From now on tells [`Progress::Tokens`] at each multiple of `every` tokens of an answer; 0 for never. Answers that are
    /// already being decoded keep what they had until their next progress.
    pub const fn emit_tokens(&mut self, every: u32) {
        self.tokens_every = every;
    }

    /// Whether a request of that size can ever be computed: its whole KV must fit the memory.
    #[must_use]
    pub const fn fits(&self, input: u32, output: u32) -> bool {
        let tokens = input as u64 + output as u64 - (output > 0) as u64;
        input > 0 && output > 0 && tokens.div_ceil(BLOCK as u64) <= self.kv.capacity() as u64
    }

    /// Asks for `output` tokens after a prompt of `input`, both at least 1.
    ///
    /// `prefix` names the prompt's successive whole pieces of [`EngineRules::prefix_grain`] tokens; names beyond the prompt
    /// are those of the answer, and are cached when it is done. Priority 0 goes before all others in the queue; within one,
    /// first come, first served. A step in flight is not changed.
    ///
    /// False, and nothing changes, if `id` is here already or the request does not [fit](Self::fits).
    pub fn submit(&mut self, now_us: u64, id: u64, input: u32, output: u32, prefix: &[u64], priority: u8) -> bool {
        self.settle(now_us);
        if !self.fits(input, output) {
            return false;
        }
        let Some(slot) = self.slots.open(id) else { return false };

        let pieces = (input + output - 1).checked_div(self.rules.prefix_grain).unwrap_or(0) as usize;
        let names = &prefix[..prefix.len().min(pieces)];
        let known = self.known(names, input);
        // The step in flight, and with asynchronous scheduling the one after it too, has been decided.
        let ahead = if self.flight.is_none() { 0 } else { 1 + u64::from(self.rules.async_scheduling) };
        let sequence = self.slots.get_mut(slot);
        sequence.stranger = priority > 0;
        sequence.input = input;
        sequence.output = output;
        sequence.names.clear();
        sequence.names.extend_from_slice(names);
        sequence.given = 0;
        sequence.computed = 0;
        sequence.cached = None;
        sequence.from = self.step + ahead;
        sequence.counted = input - known * self.rules.prefix_grain;
        self.waiting_tokens += u64::from(sequence.counted);
        let ticket = self.slots.enter(slot, Stage::Waiting);
        self.queue.push_back(ticket, priority > 0);

        if self.flight.is_none() {
            self.origin_us = now_us;
            self.now = 0;
            self.schedule(0);
        } else if !self.blocked || self.queue.head(&self.slots, u64::MAX) == Some(slot) {
            self.cut(ahead);
        }
        true
    }

    /// Takes a request back, wherever it is. False if it is not here: unknown, or done.
    pub fn cancel(&mut self, now_us: u64, id: u64) -> bool {
        self.settle(now_us);
        let Some(slot) = self.slots.find(id) else { return false };
        match self.slots.get(slot).stage {
            Stage::Waiting => {
                self.uncount(slot);
                self.slots.forget(slot);
                self.slots.vacate(slot);
                self.queue.forget(&self.slots);
            }
            Stage::Prefill => {
                self.uncount(slot);
                let blocks = self.slots.get(slot).computed.div_ceil(BLOCK);
                self.release(slot, blocks);
                self.prefilling -= 1;
                if self.tail == Some(slot) {
                    self.tail = None;
                }
                self.slots.forget(slot);
                self.slots.vacate(slot);
            }
            Stage::Decode => {
                let blocks = self.kv_of(slot).div_ceil(BLOCK);
                self.stop_decoding(slot);
                self.release(slot, blocks);
                self.slots.forget(slot);
                self.slots.vacate(slot);
            }
            Stage::Gone => unreachable!("a vacant slot has no id"),
        }
        self.cut(1);
        true
    }

    /// Tokens of an answer that are out at `now_us`, which is not past [`next_at`](Self::next_at). `None` if the request is not
    /// here: unknown, or done.
    #[must_use]
    pub fn given(&self, now_us: u64, id: u64) -> Option<u32> {
        let sequence = self.slots.get(self.slots.find(id)?);
        if sequence.stage != Stage::Decode {
            return Some(sequence.given);
        }
        let ended = self.flight.map_or(0, |flight| flight.ended(self.inside(now_us)));
        Some(sequence.given + (self.step + ended - sequence.since) as u32)
    }

    /// Flights so far: what was computed at once, one step or many.
    #[must_use]
    pub const fn flights(&self) -> u64 {
        self.flights
    }

    /// Steps so far, the one in flight not included.
    #[must_use]
    pub const fn steps(&self) -> u64 {
        self.step
    }

    /// When [`advance`](Self::advance) is next needed, if nothing is submitted or cancelled before. It may then have nothing
    /// to tell: the end of a step that computed the middle of a long prompt, or made room.
    #[must_use]
    pub fn next_at(&self) -> Option<u64> {
        match self.told.first() {
            Some(Progress::First { at_us, .. } | Progress::Done { at_us, .. } | Progress::Tokens { at_us, .. }) => {
                Some(*at_us)
            }
            None => self.flight.map(|flight| self.outside(flight.end())),
        }
    }

    /// Computes until `now_us` and appends what there is to tell, in order of time.
    pub fn advance(&mut self, now_us: u64, out: &mut Vec<Progress>) {
        self.settle(now_us);
        out.append(&mut self.told);
    }

    /// How busy it is, as of the last call that gave a time.
    #[must_use]
    pub const fn load(&self) -> Load {
        let kv_used = self.kv.used() * BLOCK;
        let running = self.decoding + self.prefilling;
        Load {
            running,
            waiting: self.queue.len(),
            waiting_tokens: self.waiting_tokens,
            kv_used,
            kv_tokens: self.rules.kv_tokens,
        }
    }

    /// What is left of the step in flight, seen from the last call.
    pub(super) fn in_flight_us(&self) -> u64 {
        self.flight.map_or(0, |flight| (flight.start + flight.first).saturating_sub(self.now).div_ceil(PS_PER_US))
    }

    /// Tokens of a prompt with that prefix that would not have to be computed now.
    #[must_use]
    pub fn cached_tokens(&self, prefix: &[u64]) -> u32 {
        if self.rules.prefix_grain == 0 { 0 } else { self.kv.known(prefix) * self.rules.prefix_grain }
    }

    /// Runs until `now_us`: ends the flights that end by then, and the steps of the last that do.
    fn settle(&mut self, now_us: u64) {
        self.now = self.inside(now_us);
        while let Some(flight) = self.flight {
            // Anew each time: to schedule may shift the origin.
            let now = self.inside(now_us);
            let end = flight.end();
            if end > now {
                self.skip(flight.ended(now));
                return;
            }
            self.skip(flight.steps - 1);
            self.finish(self.outside(end));
            self.schedule(end);
        }
    }

    /// Ends the first `steps` of the flight, of which nothing is to tell, and schedules as many more.
    fn skip(&mut self, steps: u64) {
        if steps == 0 {
            return;
        }
        let rest = (1..=steps % u64::from(BLOCK)).map(|ahead| self.need(ahead)).sum::<u32>();
        let blocks = (steps / u64::from(BLOCK)) as u32 * self.decoding + rest;
        self.kv.take(blocks);
        self.step += steps;
        self.decoding_kv += steps * u64::from(self.decoding);
        let flight = self.flight.as_mut().expect("only a flight's steps are skipped");
        flight.start += flight.lasts(steps);
        flight.first += flight.growth * steps;
        flight.steps -= steps;
    }

    /// Ends the flight's last step, and tells what came of it.
    fn finish(&mut self, at_us: u64) {
        let ended = self.step;
        self.step += 1;
        self.decoding_kv += u64::from(self.decoding);
        self.flight = None;

        while let Some(Reverse(milestone)) = self.milestones.peek().copied() {
            let valid = self.slots.valid(milestone.ticket);
            if valid && milestone.step > ended {
                break;
            }
            self.milestones.pop();
            if !valid {
                continue;
            }
            let slot = milestone.ticket.slot;
            let sequence = self.slots.get(slot);
            let count = sequence.given + (self.step - sequence.since) as u32;
            if count == sequence.output {
                let tokens = self.kv_of(slot) - 1;
                self.stop_decoding(slot);
                self.done(slot, tokens, at_us);
            } else {
                self.told.push(Progress::Tokens { id: sequence.id, at_us, count });
                self.milestones.push(Reverse(Milestone { step: self.next_milestone(slot), ..milestone }));
            }
        }

        for at in 0..self.chunks.len() {
            let (ticket, chunk) = self.chunks[at];
            if self.slots.valid(ticket) {
                self.finish_chunk(ticket.slot, chunk.tokens, at_us);
            }
        }
        self.chunks.clear();
    }

    fn finish_chunk(&mut self, slot: u32, tokens: u32, at_us: u64) {
        let sequence = self.slots.get_mut(slot);
        let counted = tokens.min(sequence.counted);
        sequence.counted -= counted;
        self.waiting_tokens -= u64::from(counted);
        if sequence.computed < sequence.target() {
            return;
        }

        sequence.given += 1;
        if sequence.given == 1 {
            let cached = sequence.cached.unwrap_or(0);
            self.told.push(Progress::First { id: sequence.id, at_us, cached });
        }
        let tokens = sequence.computed;
        if sequence.given == sequence.output {
            self.uncount(slot);
            self.prefilling -= 1;
            self.done(slot, tokens, at_us);
        } else {
            self.start_decoding(slot);
        }
    }

    fn start_decoding(&mut self, slot: u32) {
        self.uncount(slot);
        self.prefilling -= 1;
        let ticket = self.slots.enter(slot, Stage::Decode);
        let sequence = self.slots.get_mut(slot);
        sequence.since = self.step;
        let order = sequence.order;
        let computed = sequence.computed;
        self.decoding += 1;
        self.decoding_kv += u64::from(computed) + 1;
        self.needs[need_class(self.step, computed)] += 1;
        if self.newest.len() > 2 * self.decoding as usize + 64 {
            self.newest.retain(|ticket| self.slots.valid(*ticket));
        }
        self.newest.push(ticket);
        if self.milestones.len() > 2 * self.decoding as usize + 64 {
            self.milestones.retain(|Reverse(milestone)| self.slots.valid(milestone.ticket));
        }
        self.milestones.push(Reverse(Milestone { step: self.next_milestone(slot), order, ticket }));
    }

    /// Takes a sequence out of the sums of those that decode. Its stage and its memory are the caller's to change.
    fn stop_decoding(&mut self, slot: u32) {
        self.decoding -= 1;
        self.decoding_kv -= u64::from(self.kv_of(slot));
        let sequence = self.slots.get(slot);
        self.needs[need_class(sequence.since, sequence.computed)] -= 1;
    }

    /// Ends a sequence that has computed `tokens`, the answer's but its last included.
    fn done(&mut self, slot: u32, tokens: u32, at_us: u64) {
        self.name_pieces(slot, tokens);
        let sequence = self.slots.get(slot);
        self.mean_output += (f64::from(sequence.output) - self.mean_output) * super::predict::OUTPUT_WEIGHT;
        self.told.push(Progress::Done { id: sequence.id, at_us, cached: sequence.cached.unwrap_or(0) });
        self.slots.forget(slot);
        self.leaving.push((slot, tokens.div_ceil(BLOCK)));
        if !self.rules.async_scheduling {
            self.let_go();
        }
    }

    /// Frees what those that are done still hold.
    fn let_go(&mut self) {
        while let Some((slot, blocks)) = self.leaving.pop() {
            self.release(slot, blocks);
            self.slots.vacate(slot);
        }
    }

    /// Decides what the next step computes, and starts it `at`.
    fn schedule(&mut self, at: u64) {
        loop {
            self.decide();
            let alike = self.chunks.is_empty() && self.leaving.is_empty() && (self.blocked || self.queue.len() == 0);
            self.let_go();
            if self.decoding > 0 || !self.chunks.is_empty() {
                self.take_off(at, alike);
                return;
            }
            if self.queue.len() == 0 {
                return;
            }
            // What waits was not yet to be seen, or was not yet free, when this empty step was decided.
            self.step += 1;
        }
    }

    /// Chooses what the current step computes: running sequences first, then the queue.
    fn decide(&mut self) {
        let mut preempted = false;
        while self.need(0) + self.tail_need() > self.kv.free() {
            self.preempt_newest();
            preempted = true;
        }
        self.kv.take(self.need(0));
        let mut budget = self.rules.chunk_budget - self.decoding;
        if let Some(slot) = self.tail.take() {
            budget -= self.compute_chunk(slot, budget);
        }

        self.blocked = false;
        while !preempted && budget > 0 {
            let Some(slot) = self.queue.head(&self.slots, self.step) else { break };
            let full = self.decoding + self.prefilling + self.leaving.len() as u32 >= self.rules.seqs_max;
            if full || !self.admit(slot) {
                // Unless someone who could not be seen yet comes before it.
                self.blocked = self.queue.head(&self.slots, u64::MAX) == Some(slot);
                break;
            }
            budget -= self.compute_chunk(slot, budget);
        }
    }

    /// Starts what was decided: one step, or as many as are `alike` until something is to tell.
    fn take_off(&mut self, at: u64, alike: bool) {
        self.batch.clear();
        self.batch.extend(self.chunks.iter().map(|(_, chunk)| *chunk));
        let batch = Batch { decoding: self.decoding, decoding_kv: self.decoding_kv, chunks: &self.batch };
        let first = self.ticks.step(&batch).max(1);
        let steps = if alike { self.steps_alike() } else { 1 };
        let growth = self.ticks.decode_per_kv * u64::from(self.decoding);
        self.flights += 1;
        let shift = if at > u64::MAX / 4 { at / PS_PER_US } else { 0 };
        self.origin_us += shift;
        self.now = self.now.saturating_sub(shift * PS_PER_US);
        self.flight = Some(Flight { start: at - shift * PS_PER_US, steps, first, growth });
    }

    /// Steps from this one on in which the same sequences decode: until something is to tell, or memory runs out.
    fn steps_alike(&mut self) -> u64 {
        let next = loop {
            let Reverse(milestone) = self.milestones.peek().expect("each decoding sequence has a milestone");
            if self.slots.valid(milestone.ticket) {
                break milestone.step;
            }
            self.milestones.pop();
        };
        let cycles = self.kv.free() / self.decoding;
        let mut free = self.kv.free() % self.decoding;
        let mut more = u64::from(cycles) * u64::from(BLOCK);
        while self.need(more + 1) <= free {
            free -= self.need(more + 1);
            more += 1;
        }
        (next - self.step + 1).min(more + 1)
    }

    /// Admits the head of the queue, if memory for all that it has to compute is free.
    fn admit(&mut self, slot: u32) -> bool {
        let sequence = self.slots.get(slot);
        let known = self.known(&sequence.names, sequence.target());
        let cached = known * self.rules.prefix_grain;
        let names = &sequence.names[..known as usize];
        let blocks = sequence.target().div_ceil(BLOCK) - cached / BLOCK + self.kv.idle_blocks(names);
        if blocks > self.kv.free() {
            return false;
        }
        // Every check has passed: nothing below can fail.
        self.queue.pop(sequence.stranger);
        self.slots.enter(slot, Stage::Prefill);
        self.prefilling += 1;
        self.admitted += 1;
        let sequence = self.slots.get_mut(slot);
        sequence.order = self.admitted;
        sequence.cached.get_or_insert(cached);
        sequence.computed = cached;
        sequence.named = known;
        for at in 0..known as usize {
            let piece = self.kv.share(sequence.names[at]);
            sequence.pieces.push(piece);
        }
        let counted = sequence.target() - cached;
        self.waiting_tokens = self.waiting_tokens - u64::from(sequence.counted) + u64::from(counted);
        sequence.counted = counted;
        true
    }

    /// Puts the next chunk of a prompt into the step; its memory is free. Returns the chunk's tokens.
    fn compute_chunk(&mut self, slot: u32, budget: u32) -> u32 {
        let sequence = self.slots.get_mut(slot);
        let prefix = sequence.computed;
        let tokens = budget.min(sequence.target() - prefix);
        sequence.computed += tokens;
        self.kv.take(sequence.computed.div_ceil(BLOCK) - prefix.div_ceil(BLOCK));
        let computed = sequence.computed;
        if computed < sequence.target() {
            self.tail = Some(slot);
        }
        self.chunks.push((self.slots.ticket(slot), Chunk { tokens, prefix }));
        // Whoever is admitted from now on reads it after this step has written it.
        self.name_pieces(slot, computed);
        tokens
    }

    /// Sends the newest running sequence back to the queue; what it computed is lost, but for pieces that stay cached.
    fn preempt_newest(&mut self) {
        let slot = if let Some(slot) = self.tail.take() {
            self.prefilling -= 1;
            self.uncount(slot);
            self.release(slot, self.slots.get(slot).computed.div_ceil(BLOCK));
            slot
        } else {
            let slot = loop {
                let ticket = self.newest.pop().expect("a lone sequence fits, so one is left to preempt");
                if self.slots.valid(ticket) {
                    break ticket.slot;
                }
            };
            let tokens = self.kv_of(slot) - 1;
            self.stop_decoding(slot);
            self.release(slot, tokens.div_ceil(BLOCK));
            let sequence = self.slots.get_mut(slot);
            sequence.given += (self.step - sequence.since) as u32;
            slot
        };
        let sequence = self.slots.get(slot);
        let counted = sequence.target() - self.known(&sequence.names, sequence.target()) * self.rules.prefix_grain;
        self.waiting_tokens += u64::from(counted);
        let sequence = self.slots.get_mut(slot);
        sequence.counted = counted;
        sequence.computed = 0;
        sequence.from = self.step;
        let stranger = sequence.stranger;
        let ticket = self.slots.enter(slot, Stage::Waiting);
        self.queue.push_front(ticket, stranger);
    }

    /// The flight ends after at most `steps` steps, the one in flight included: what follows is to be decided anew.
    fn cut(&mut self, steps: u64) {
        if let Some(flight) = &mut self.flight {
            flight.steps = flight.steps.min(steps);
        }
    }

    /// Known pieces of a prompt of `target` tokens; its last token is computed in any case, to give the next.
    fn known(&self, names: &[u64], target: u32) -> u32 {
        let Some(pieces) = (target - 1).checked_div(self.rules.prefix_grain) else { return 0 };
        self.kv.known(&names[..names.len().min(pieces as usize)])
    }

    /// Names the pieces among a sequence's first `computed` tokens.
    fn name_pieces(&mut self, slot: u32, computed: u32) {
        let sequence = self.slots.get_mut(slot);
        let Some(pieces) = computed.checked_div(self.rules.prefix_grain) else { return };
        for at in sequence.named..pieces.min(sequence.names.len() as u32) {
            sequence.named = at + 1;
            if let Some(piece) = self.kv.name(sequence.names[at as usize]) {
                sequence.pieces.push(piece);
            }
        }
    }

    /// Frees a sequence's memory, `blocks` in all. Its last pieces go first, so that they are the first to give way.
    fn release(&mut self, slot: u32, blocks: u32) {
        let sequence = self.slots.get_mut(slot);
        self.kv.give(blocks - sequence.pieces.len() as u32 * self.kv.piece());
        while let Some(piece) = sequence.pieces.pop() {
            self.kv.leave(piece);
        }
        sequence.named = 0;
    }

    /// Takes what a sequence still has to compute out of the load.
    fn uncount(&mut self, slot: u32) {
        let sequence = self.slots.get_mut(slot);
        self.waiting_tokens -= u64::from(sequence.counted);
        sequence.counted = 0;
    }

    /// Tokens that a decoding sequence attends to in the current step.
    fn kv_of(&self, slot: u32) -> u32 {
        let sequence = self.slots.get(slot);
        sequence.computed + (self.step - sequence.since) as u32 + 1
    }

    /// Blocks that the decoding sequences need in the step that is `ahead` of the current one.
    fn need(&self, ahead: u64) -> u32 {
        self.needs[((self.step + ahead) % u64::from(BLOCK)) as usize]
    }

    /// Blocks that the next chunk of the tail needs.
    fn tail_need(&self) -> u32 {
        let Some(slot) = self.tail else { return 0 };
        let sequence = self.slots.get(slot);
        let budget = self.rules.chunk_budget - self.decoding;
        let computed = sequence.computed + budget.min(sequence.target() - sequence.computed);
        computed.div_ceil(BLOCK) - sequence.computed.div_ceil(BLOCK)
    }

    /// The step after which a decoding sequence has next something to tell.
    fn next_milestone(&self, slot: u32) -> u64 {
        let sequence = self.slots.get(slot);
        let given = sequence.given + (self.step - sequence.since) as u32;
        let mark = (given + 1).checked_next_multiple_of(self.tokens_every).unwrap_or(sequence.output);
        self.step + u64::from(mark.min(sequence.output) - given) - 1
    }

    const fn inside(&self, us: u64) -> u64 {
        us.saturating_sub(self.origin_us).saturating_mul(PS_PER_US)
    }

    /// Microseconds, rounded up, of a time inside.
    const fn outside(&self, ps: u64) -> u64 {
        self.origin_us + ps.div_ceil(PS_PER_US)
    }

    /// Counts again what the sums say.
    #[cfg(test)]
    pub(super) fn check(&self) {
        self.kv.check();
    }
}

/// In which steps, modulo 16, a sequence needs a new block that decodes from the step `since` on, after `computed` tokens.
const fn need_class(since: u64, computed: u32) -> usize {
    ((since + (BLOCK - computed % BLOCK) as u64) % BLOCK as u64) as usize
}
