//! How long one step of an engine takes.
//! Invariant: a step's time is a whole number of picoseconds, computed in integers; so the sum of many steps has a closed
//! form that equals adding them one by one, on every machine.

/// Picoseconds in a microsecond.
pub(super) const PS_PER_US: u64 = 1_000_000;

/// The coefficients of a GPU with a model, in microseconds. Source: `docs/simulator.md`, "The GPU".
///
/// ```text
/// step = fixed + max(weight_floor, dense + dense_per_token * tokens) + per_seq * sequences
///      + (decode + decode_per_kv * kv) * (mixed_decode if there is a chunk too)         if anything decodes
///      + prefill + prefill_per_token * chunk
///        + prefill_per_token2 * chunk * (prefix + chunk / 2)                            for each chunk
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepModel {
    /// Each step's overhead: scheduling, launch, sampling.
    pub fixed_us: f64,
    /// The dense layers' least time: reading the weights.
    pub weight_floor_us: f64,
    /// The dense layers' time at no tokens, on the line that holds above the floor.
    pub dense_us: f64,
    /// The dense layers' time for a token.
    pub dense_per_token_us: f64,
    /// Output head and sampler for a sequence.
    pub per_seq_us: f64,
    /// Decode attention: start.
    pub decode_us: f64,
    /// Decode attention: reading a token of context.
    pub decode_per_kv_us: f64,
    /// What decode attention is multiplied with when the step holds a chunk of a prompt too.
    pub mixed_decode: f64,
    /// Prefill attention: start of a chunk.
    pub prefill_us: f64,
    /// Prefill attention: a token of a chunk.
    pub prefill_per_token_us: f64,
    /// Prefill attention: a pair of a chunk's token and one that it attends to.
    pub prefill_per_token2_us: f64,
}

/// What one step computes.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// Sequences that decode, one token each.
    pub decoding: u32,
    /// Tokens of context that these attend to, their new ones included.
    pub decoding_kv: u64,
    /// The pieces of prompts.
    pub chunks: &'a [Chunk],
}

/// A piece of a prompt that one step computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Tokens computed.
    pub tokens: u32,
    /// Tokens before these, computed earlier or found in the cache.
    pub prefix: u32,
}

impl StepModel {
    /// The time of a step that computes `batch`, in microseconds: a whole number of picoseconds.
    #[must_use]
    pub fn step_us(&self, batch: &Batch<'_>) -> f64 {
        Ticks::of(self).step(batch) as f64 / PS_PER_US as f64
    }
}

/// [`StepModel`] in picoseconds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticks {
    fixed: u64,
    weight_floor: u64,
    dense: u64,
    dense_per_token: u64,
    per_seq: u64,
    decode: u64,
    pub(super) decode_per_kv: u64,
    mixed_decode_ppm: u64,
    prefill: u64,
    prefill_per_token: u64,
    prefill_per_token2: u64,
}

impl Ticks {
    pub(super) fn of(model: &StepModel) -> Self {
        // Negative and not-a-number become 0, as a cast does.
        let ps = |us: f64| (us * PS_PER_US as f64 + 0.5) as u64;
        Self {
            fixed: ps(model.fixed_us),
            weight_floor: ps(model.weight_floor_us),
            dense: ps(model.dense_us),
            dense_per_token: ps(model.dense_per_token_us),
            per_seq: ps(model.per_seq_us),
            decode: ps(model.decode_us),
            decode_per_kv: ps(model.decode_per_kv_us),
            mixed_decode_ppm: ps(model.mixed_decode),
            prefill: ps(model.prefill_us),
            prefill_per_token: ps(model.prefill_per_token_us),
            prefill_per_token2: ps(model.prefill_per_token2_us),
        }
    }

    pub(super) fn step(&self, batch: &Batch<'_>) -> u64 {
        let sequences = u64::from(batch.decoding) + batch.chunks.len() as u64;
        let tokens = u64::from(batch.decoding) + batch.chunks.iter().map(|chunk| u64::from(chunk.tokens)).sum::<u64>();
        let mut decode = if batch.decoding == 0 { 0 } else { self.decode + self.decode_per_kv * batch.decoding_kv };
        if !batch.chunks.is_empty() {
            decode = decode * self.mixed_decode_ppm / 1_000_000;
        }
        let prefill = |chunk: &Chunk| {
            let (tokens, prefix) = (u64::from(chunk.tokens), u64::from(chunk.prefix));
            self.prefill
                + self.prefill_per_token * tokens
                + self.prefill_per_token2 * tokens * (2 * prefix + tokens) / 2
        };
        self.fixed
            + self.weight_floor.max(self.dense + self.dense_per_token * tokens)
            + self.per_seq * sequences
            + decode
            + batch.chunks.iter().map(prefill).sum::<u64>()
    }
}
