//! When an engine thinks that a new request would get its first token.
//! Invariant: it uses only what a real engine knows of itself; not how long the running answers will be.

use super::kv::BLOCK;
use super::machine::Engine;
use super::step::{Batch, Chunk, PS_PER_US};

/// The mean answer, in tokens, before any was seen: that of Azure's conversation trace of 2023 (211), rounded.
pub(super) const OUTPUT_PRIOR: f64 = 200.0;

/// How much the newest answer weighs in the mean.
pub(super) const OUTPUT_WEIGHT: f64 = 1.0 / 32.0;

impl Engine {
    /// The time from now to the first token of a request of `input` tokens of which `cached` are in the prefix cache, if it
    /// were submitted now behind all that wait: the steps that the queue's and its own prompt take, and the wait until
    /// enough sequences have ended to give it a place and memory. It supposes answers as long as the last ones were.
    #[must_use]
    pub fn predict_ttft_us(&self, input: u32, cached: u32) -> u64 {
        let load = self.load();
        let own = input.saturating_sub(cached).max(1);
        let room = self.rules.chunk_budget.saturating_sub(self.decoding).max(1);
        let budget = u64::from(room);
        let ahead = self.waiting_tokens;
        let prompt_steps = (ahead + u64::from(own)).div_ceil(budget);

        // Full chunks for the queue and the long part of the prompt, then what is left.
        let step = |tokens: u32, prefix: u32| {
            let chunk = [Chunk { tokens, prefix }];
            let batch = Batch { decoding: self.decoding, decoding_kv: self.decoding_kv, chunks: &chunk };
            self.ticks.step(&batch) / PS_PER_US
        };
        let last = ((ahead + u64::from(own) - 1) % budget) as u32 + 1;
        let prefill_us = (prompt_steps - 1) * step(room, cached + own / 2) + step(last, input.saturating_sub(last));

        let running = f64::from(load.running.max(1));
        // Each step ends one running sequence in `mean_output` of them, and frees what it holds.
        let queued = f64::from(load.waiting + 1);
        let places = f64::from(self.rules.seqs_max - load.running.min(self.rules.seqs_max));
        let place_steps = (queued - places).max(0.0) * self.mean_output / running;
        let needed = ahead as f64 + f64::from(input.saturating_sub(cached)) + queued * f64::from(BLOCK);
        let free = f64::from(self.kv.free() * BLOCK);
        let memory_steps = (needed - free).max(0.0) * self.mean_output / f64::from((load.kv_used).max(1));
        let wait_steps = (place_steps.max(memory_steps) - prompt_steps as f64).max(0.0);
        let batch = Batch { decoding: self.decoding.max(1), decoding_kv: self.decoding_kv, chunks: &[] };
        let decode_us = self.ticks.step(&batch) as f64 / PS_PER_US as f64;
        prefill_us + (wait_steps * decode_us) as u64 + self.in_flight_us()
    }
}
