//! A stepper that joins no steps, keeps no sums and no order it can find again: what [`Engine`] must equal, to the
//! microsecond, in thousands of drawn histories.

use crate::draws::Draws;
use crate::engine::step::Ticks;
use crate::engine::{Batch, Chunk, Engine, EngineRules, Progress, StepModel};

const PS: u64 = 1_000_000;

#[derive(Clone)]
struct Sequence {
    id: u64,
    input: u32,
    output: u32,
    names: Vec<u64>,
    stranger: bool,
    given: u32,
    computed: u32,
    cached: Option<u32>,
    shared: Vec<u64>,
    named: usize,
    from: u64,
    decodes: bool,
}

impl Sequence {
    fn target(&self) -> u32 {
        self.input + self.given
    }
}

struct Named {
    name: u64,
    users: u32,
    idle_since: u64,
}

struct Naive {
    rules: EngineRules,
    now: u64,
    step: u64,
    running: Vec<Sequence>,
    waiting: Vec<Sequence>,
    leaving: Vec<Sequence>,
    /// Whose token or chunk the step computes, whether it decodes; and the step's end.
    flight: Option<(Vec<(u64, bool)>, u64)>,
    cache: Vec<Named>,
    clock: u64,
    every: u32,
    preempted: u64,
    told: Vec<Progress>,
}

impl Naive {
    fn blocks(&self, sequence: &Sequence) -> u32 {
        sequence.computed.div_ceil(16) - sequence.shared.len() as u32 * (self.rules.prefix_grain / 16)
    }

    fn used(&self) -> u32 {
        let own: u32 = self.running.iter().chain(&self.leaving).map(|sequence| self.blocks(sequence)).sum();
        own + self.cache.iter().filter(|piece| piece.users > 0).count() as u32 * (self.rules.prefix_grain / 16)
    }

    fn free(&self) -> u32 {
        self.rules.kv_tokens / 16 - self.used()
    }

    fn evict(&mut self) {
        let piece = self.rules.prefix_grain / 16;
        while self.used() + self.cache.iter().filter(|piece| piece.users == 0).count() as u32 * piece
            > self.rules.kv_tokens / 16
        {
            let idle = self.cache.iter().enumerate().filter(|(_, piece)| piece.users == 0);
            let (at, _) = idle.min_by_key(|(_, piece)| piece.idle_since).expect("something idle");
            self.cache.remove(at);
        }
    }

    fn known(&self, names: &[u64], target: u32) -> usize {
        if self.rules.prefix_grain == 0 {
            return 0;
        }
        let most = ((target - 1) / self.rules.prefix_grain) as usize;
        let here = |name: &&u64| self.cache.iter().any(|piece| piece.name == **name);
        names.iter().take(most).take_while(here).count()
    }

    fn name(&mut self, sequence: &mut Sequence) {
        while self.rules.prefix_grain > 0
            && sequence.named < sequence.names.len()
            && (sequence.named as u32 + 1) * self.rules.prefix_grain <= sequence.computed
        {
            let name = sequence.names[sequence.named];
            sequence.named += 1;
            if !self.cache.iter().any(|piece| piece.name == name) {
                self.cache.push(Named { name, users: 1, idle_since: 0 });
                sequence.shared.push(name);
            }
        }
    }

    fn name_running(&mut self, at: usize) {
        let mut sequence = self.running[at].clone();
        self.name(&mut sequence);
        self.running[at] = sequence;
    }

    fn release(&mut self, sequence: &mut Sequence) {
        while let Some(name) = sequence.shared.pop() {
            let piece = self.cache.iter_mut().find(|piece| piece.name == name).expect("a used piece is here");
            piece.users -= 1;
            if piece.users == 0 {
                self.clock += 1;
                piece.idle_since = self.clock;
            }
        }
        sequence.computed = 0;
        sequence.named = 0;
        sequence.decodes = false;
    }

    fn advance(&mut self, now_us: u64) {
        while let Some((_, end)) = &self.flight
            && *end <= now_us * PS
        {
            self.finish();
            self.schedule();
        }
    }

    fn finish(&mut self) {
        let (batch, end) = self.flight.take().expect("a step is in flight");
        self.now = end;
        let at_us = end.div_ceil(PS);
        self.step += 1;
        // Decoding sequences tell first, then prompts.
        for decodes in [true, false] {
            for id in batch.iter().filter(|(_, decoding)| *decoding == decodes).map(|(id, _)| *id) {
                self.finish_one(id, decodes, at_us);
            }
        }
    }

    fn finish_one(&mut self, id: u64, decoding: bool, at_us: u64) {
        // A cancelled one tells nothing.
        let Some(at) = self.running.iter().position(|sequence| sequence.id == id) else { return };
        let sequence = &mut self.running[at];
        if sequence.computed < sequence.target() {
            return;
        }
        sequence.given += 1;
        sequence.decodes = true;
        let cached = sequence.cached.expect("it was admitted");
        if sequence.given == 1 {
            self.told.push(Progress::First { id, at_us, cached });
        }
        if sequence.given == sequence.output {
            self.told.push(Progress::Done { id, at_us, cached });
            let mut sequence = self.running.remove(at);
            self.name(&mut sequence);
            self.leaving.push(sequence);
            if !self.rules.async_scheduling {
                self.let_go();
            }
        } else if self.every > 0 && decoding && sequence.given.is_multiple_of(self.every) {
            self.told.push(Progress::Tokens { id, at_us, count: sequence.given });
        }
    }

    fn let_go(&mut self) {
        while let Some(mut sequence) = self.leaving.pop() {
            self.release(&mut sequence);
        }
    }

    fn schedule(&mut self) {
        loop {
            let (batch, decoding, decoding_kv, chunks) = self.decide();
            self.let_go();
            if !batch.is_empty() {
                let took = Ticks::of(&self.rules.step).step(&Batch { decoding, decoding_kv, chunks: &chunks }).max(1);
                self.flight = Some((batch, self.now + took));
                return;
            }
            if self.waiting.is_empty() {
                return;
            }
            self.step += 1;
        }
    }

    fn decide(&mut self) -> (Vec<(u64, bool)>, u32, u64, Vec<Chunk>) {
        let mut budget = self.rules.chunk_budget;
        let mut preempted = false;
        let mut batch = Vec::new();
        let (mut decoding, mut decoding_kv, mut chunks) = (0, 0, Vec::new());
        let mut at = 0;
        while at < self.running.len() && budget > 0 {
            let sequence = &self.running[at];
            let tokens = budget.min(sequence.target() - sequence.computed);
            let need = (sequence.computed + tokens).div_ceil(16) - sequence.computed.div_ceil(16);
            let mut gone = false;
            while need > self.free() {
                let mut newest = self.running.pop().expect("at least this one runs");
                self.release(&mut newest);
                newest.from = self.step;
                preempted = true;
                self.preempted += 1;
                let before = self.waiting.iter().position(|other| other.stranger == newest.stranger);
                let front = before.unwrap_or(if newest.stranger { self.waiting.len() } else { 0 });
                self.waiting.insert(front, newest);
                gone = at == self.running.len();
                if gone {
                    break;
                }
            }
            if gone {
                break;
            }
            let sequence = &mut self.running[at];
            let prefix = sequence.computed;
            sequence.computed += tokens;
            batch.push((sequence.id, sequence.decodes));
            if sequence.decodes {
                decoding += 1;
                decoding_kv += u64::from(sequence.computed);
            } else {
                chunks.push(Chunk { tokens, prefix });
            }
            budget -= tokens;
            at += 1;
        }
        // Who is preempted makes room before anything cached gives way.
        self.evict();
        for at in 0..self.running.len() {
            if !self.running[at].decodes {
                self.name_running(at);
            }
        }
        while !preempted && budget > 0 {
            let Some(at) = self.head() else { break };
            let mut sequence = self.waiting[at].clone();
            if (self.running.len() + self.leaving.len()) as u32 >= self.rules.seqs_max {
                break;
            }
            let known = self.known(&sequence.names, sequence.target());
            let cached = known as u32 * self.rules.prefix_grain;
            let idle = |name: &&u64| self.cache.iter().any(|piece| piece.name == **name && piece.users == 0);
            let idle = sequence.names[..known].iter().filter(idle).count() as u32 * (self.rules.prefix_grain / 16);
            if idle + sequence.target().div_ceil(16) - cached / 16 > self.free() {
                break;
            }
            self.waiting.remove(at);
            for name in sequence.names[..known].iter().copied() {
                self.cache.iter_mut().find(|piece| piece.name == name).expect("known").users += 1;
                sequence.shared.push(name);
            }
            sequence.named = known;
            sequence.cached.get_or_insert(cached);
            let tokens = budget.min(sequence.target() - cached);
            sequence.computed = cached + tokens;
            chunks.push(Chunk { tokens, prefix: cached });
            batch.push((sequence.id, false));
            budget -= tokens;
            self.running.push(sequence);
            self.evict();
            self.name_running(self.running.len() - 1);
        }
        (batch, decoding, decoding_kv, chunks)
    }

    fn head(&self) -> Option<usize> {
        let first = |stranger| {
            let at = self.waiting.iter().position(|sequence| sequence.stranger == stranger)?;
            (self.waiting[at].from <= self.step).then_some(at)
        };
        first(false).or_else(|| first(true))
    }

    fn submit(&mut self, now_us: u64, id: u64, [input, output]: [u32; 2], names: &[u64], stranger: bool) {
        self.advance(now_us);
        let ahead = if self.flight.is_some() { 1 + u64::from(self.rules.async_scheduling) } else { 0 };
        let most = (input + output - 1).checked_div(self.rules.prefix_grain).unwrap_or(0) as usize;
        let sequence = Sequence {
            id,
            input,
            output,
            names: names[..names.len().min(most)].to_vec(),
            stranger,
            given: 0,
            computed: 0,
            cached: None,
            shared: Vec::new(),
            named: 0,
            from: self.step + ahead,
            decodes: false,
        };
        let end = if stranger { None } else { self.waiting.iter().position(|other| other.stranger) };
        self.waiting.insert(end.unwrap_or(self.waiting.len()), sequence);
        if self.flight.is_none() {
            self.now = now_us * PS;
            self.schedule();
        }
    }

    fn cancel(&mut self, now_us: u64, id: u64) -> bool {
        self.advance(now_us);
        if let Some(at) = self.waiting.iter().position(|sequence| sequence.id == id) {
            self.waiting.remove(at);
            return true;
        }
        let Some(at) = self.running.iter().position(|sequence| sequence.id == id) else { return false };
        let mut sequence = self.running.remove(at);
        self.release(&mut sequence);
        true
    }
}

/// What happened in a history.
#[derive(Debug, Default)]
struct Seen {
    preempted: u64,
    /// Requests that found a part of their prompt in the cache.
    reused: u64,
    cancelled: u64,
    /// Single steps above the engine's flights.
    joined: u64,
}

/// What one history draws from.
struct Draw {
    rules: EngineRules,
    /// Microseconds between submissions, in the mean.
    gap_us: u64,
    requests: u64,
    input_max: u64,
    output_max: u64,
    cancels_ppm: u32,
    every: u32,
}

fn draw(draws: &mut Draws) -> Draw {
    let us = |draws: &mut Draws, max: u64| draws.within([0, max * 1_000]) as f64 / 1_000.0;
    let step = StepModel {
        fixed_us: us(draws, 2_000),
        weight_floor_us: us(draws, 20_000),
        dense_us: us(draws, 6_000),
        dense_per_token_us: us(draws, 90),
        per_seq_us: us(draws, 10),
        decode_us: us(draws, 500),
        decode_per_kv_us: us(draws, 1),
        mixed_decode: 1.0 + us(draws, 1),
        prefill_us: us(draws, 300),
        prefill_per_token_us: us(draws, 1),
        prefill_per_token2_us: us(draws, 1) / 100.0,
    };
    let seqs_max = draws.within([1, 12]) as u32;
    let rules = EngineRules {
        name: "drawn".to_owned(),
        step,
        kv_tokens: draws.within([160, 2_000]) as u32,
        seqs_max,
        chunk_budget: draws.within([u64::from(seqs_max), 300]) as u32,
        prefix_grain: [0, 16, 32, 64][draws.below(4) as usize],
        async_scheduling: draws.below(2) == 0,
    };
    Draw {
        rules,
        gap_us: draws.within([1_000, 300_000]),
        requests: draws.within([1, 40]),
        input_max: draws.within([1, 400]),
        output_max: draws.within([1, 120]),
        cancels_ppm: [0, 0, 100_000, 400_000][draws.below(4) as usize],
        every: [0, 0, 1, 7][draws.below(4) as usize],
    }
}

/// Runs one history on both: all that is told, and every load, must be the same.
fn compare(seed: u64) -> Seen {
    let mut draws = Draws::new(seed, "engine");
    let draw = draw(&mut draws);
    let mut engine = Engine::new(draw.rules.clone());
    engine.emit_tokens(draw.every);
    let mut naive = Naive {
        rules: draw.rules,
        now: 0,
        step: 0,
        running: Vec::new(),
        waiting: Vec::new(),
        leaving: Vec::new(),
        flight: None,
        cache: Vec::new(),
        clock: 0,
        every: draw.every,
        preempted: 0,
        told: Vec::new(),
    };
    let mut seen = Seen::default();
    let mut out = Vec::new();
    let mut now = draws.below(1_000_000);
    let same = |engine: &Engine, naive: &Naive| {
        engine.check();
        let load = engine.load();
        assert_eq!(load.running, naive.running.len() as u32, "running, seed {seed}");
        assert_eq!(load.waiting, naive.waiting.len() as u32, "waiting, seed {seed}");
        assert_eq!(load.kv_used, naive.used() * 16, "kv, seed {seed}");
    };
    for id in 0..draw.requests {
        now += draws.wait(draw.gap_us);
        // Sometimes as its owner would, at each time it asks for; sometimes late, or between.
        let how = draws.below(4);
        while how > 0
            && let Some(at) = engine.next_at()
            && at <= now
        {
            engine.advance(at, &mut out);
            if how == 1 {
                naive.advance(at);
                same(&engine, &naive);
            }
        }
        let [input, output] = [draw.input_max, draw.output_max].map(|max| draws.within([1, max]) as u32);
        // A few families of prompts, which part ways at some piece.
        let family = draws.below(3);
        let own = draws.below(12);
        let names: Vec<_> =
            (0..12).map(|at| if at < own { family * 100 + at } else { 1_000 * (id + 1) + at }).collect();
        let stranger = draws.below(3) > 0;
        let fits = engine.submit(now, id, input, output, &names, u8::from(stranger));
        assert_eq!(fits, engine.fits(input, output), "seed {seed}");
        if fits {
            naive.submit(now, id, [input, output], &names, stranger);
        } else {
            naive.advance(now);
        }
        same(&engine, &naive);
        if draws.happens(draw.cancels_ppm) {
            now += draws.below(draw.gap_us);
            let id = draws.below(id + 1);
            let cancelled = naive.cancel(now, id);
            assert_eq!(engine.cancel(now, id), cancelled, "cancel {id}, seed {seed}");
            seen.cancelled += u64::from(cancelled);
            same(&engine, &naive);
        }
        let known = naive.cache.iter().map(|piece| piece.name).collect::<Vec<_>>();
        let cached = names.iter().take_while(|name| known.contains(name)).count() as u32 * naive.rules.prefix_grain;
        assert_eq!(engine.cached_tokens(&names), cached, "cached, seed {seed}");
    }
    while let Some(at) = engine.next_at() {
        engine.advance(at, &mut out);
        naive.advance(at);
        same(&engine, &naive);
    }
    assert_eq!(out, naive.told, "seed {seed}");
    assert!(naive.flight.is_none() && engine.load().kv_used == 0 && engine.load().waiting_tokens == 0, "seed {seed}");
    seen.reused = out.iter().filter(|told| matches!(told, Progress::First { cached: 1.., .. })).count() as u64;
    seen.preempted = naive.preempted;
    seen.joined = naive.step - engine.flights();
    seen
}

#[test]
fn joined_steps_end_when_single_ones_do() {
    let mut seen = Seen::default();
    for seed in 0..2_000 {
        let Seen { preempted, reused, cancelled, joined } = compare(seed);
        seen.preempted += preempted;
        seen.reused += reused;
        seen.cancelled += cancelled;
        seen.joined += joined;
    }
    // The histories are not all easy.
    assert!(
        seen.preempted > 1_000 && seen.reused > 5_000 && seen.cancelled > 1_000 && seen.joined > 20_000,
        "{seen:?}"
    );
}
