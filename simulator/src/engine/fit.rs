//! Step models of GPUs that were not measured whole: from kernel times, data sheets, and what the two measured ones showed.
//! Invariant: each coefficient follows from the data in `data/gpu` and the constants here, in plain arithmetic.
//!
//! - Dense layers: Vidur's kernel times by batch size. `weight_floor` is what batches of up to 64 tokens take, `dense` the
//!   line through those of 256 and more; both by least relative squares. The output head, which Vidur leaves out, is added
//!   as the time to read its weights.
//! - All-reduce, which Vidur leaves out too: two in each layer; the bytes over the bus bandwidth that NCCL reaches with large
//!   messages, and a latency with small ones.
//! - Attention: bytes of KV over the memory's bandwidth, and operations over the tensor cores' rate, times the efficiency
//!   that the two measured GPUs reach ([`KV_EFFICIENCY`], [`ATTENTION_EFFICIENCY`]).
//! - Overhead of a step: as on the two measured machines ([`OVERHEAD_US`]).
//!
//! So they are less certain: no run of such an engine has been compared. Splitwise's measurements of 2023 are the check that
//! the example `engine_presets` prints.

use super::step::StepModel;

/// Of the data sheet's bandwidth, what decode attention reads: 89 % on the RTX 4090, 80 % on the RTX PRO 6000.
const KV_EFFICIENCY: f64 = 0.85;

/// Of the data sheet's dense rate, what prefill attention computes: 72 % of 165 Tflop/s on the RTX 4090, 42 % of 504 on the
/// RTX PRO 6000.
const ATTENTION_EFFICIENCY: f64 = 0.57;

/// Scheduling, launch and sampling in a step: 1.4 ms and 3.5 ms on the two measured machines.
const OVERHEAD_US: f64 = 2_450.0;

/// Start of a layer's decode attention: 0.46 and 0.43 ms for the 32 layers measured.
const DECODE_US_PER_LAYER: f64 = 14.0;

/// Start of a layer's prefill attention: 0.31 ms for the 32 layers measured.
const PREFILL_US_PER_LAYER: f64 = 9.7;

/// Decode attention beside a prompt's chunk: 1.89 and 1.44 times as long on the two measured GPUs.
const MIXED_DECODE: f64 = 1.67;

/// A sequence's sampling: 7.5 and 4 µs measured.
const PER_SEQ_US: f64 = 5.7;

/// An all-reduce of few bytes over NVLink.
const ALL_REDUCE_US: f64 = 10.0;

/// A GPU's data sheet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gpu {
    /// As Vidur names it.
    pub(super) name: &'static str,
    /// Memory that an engine can use, in bytes.
    pub(super) memory: f64,
    /// Memory bandwidth, bytes in a microsecond.
    bandwidth: f64,
    /// Dense bf16 rate of the tensor cores, operations in a microsecond.
    rate: f64,
    /// NCCL's bus bandwidth with large messages, bytes in a microsecond.
    bus: f64,
}

/// A100 SXM, 80 GB.
pub(super) const A100: Gpu = Gpu { name: "a100", memory: 79.2 * GIB, bandwidth: 2.039e6, rate: 312e6, bus: 230e3 };

/// A800 SXM, 80 GB: an A100 with NVLink at 400 instead of 600 GB/s.
pub(super) const A800: Gpu = Gpu { bus: A100.bus * 400.0 / 600.0, ..A100 };

/// H100 SXM, 80 GB.
pub(super) const H100: Gpu = Gpu { name: "h100", memory: 79.2 * GIB, bandwidth: 3.35e6, rate: 989e6, bus: 450e3 };

const GIB: f64 = 1_073_741_824.0;

/// What of a model sets its speed. All weights and KV in 16 bits, as its authors publish it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Model {
    layers: f64,
    hidden: f64,
    /// Query heads times the size of a head.
    heads: f64,
    /// Key and value heads times the size of a head.
    kv_heads: f64,
    vocabulary: f64,
    /// All parameters.
    parameters: f64,
}

pub(super) const LLAMA_2_70B: Model = Model {
    layers: 80.0,
    hidden: 8_192.0,
    heads: 8_192.0,
    kv_heads: 1_024.0,
    vocabulary: 32_000.0,
    parameters: 68.98e9,
};
pub(super) const LLAMA_3_70B: Model = Model { vocabulary: 128_256.0, parameters: 70.55e9, ..LLAMA_2_70B };
pub(super) const LLAMA_3_8B: Model = Model {
    layers: 32.0,
    hidden: 4_096.0,
    heads: 4_096.0,
    kv_heads: 1_024.0,
    vocabulary: 128_256.0,
    parameters: 8.03e9,
};
pub(super) const QWEN3_32B: Model = Model {
    layers: 64.0,
    hidden: 5_120.0,
    heads: 8_192.0,
    kv_heads: 1_024.0,
    vocabulary: 151_936.0,
    parameters: 32.76e9,
};

impl Model {
    /// Bytes of a token's keys and values.
    fn kv_bytes(&self) -> f64 {
        2.0 * self.kv_heads * 2.0 * self.layers
    }

    /// Parameters of the layers, without embedding and output head.
    pub(super) fn layer_parameters(&self) -> f64 {
        self.parameters - 2.0 * self.vocabulary * self.hidden
    }
}

/// Dense time of a step, in microseconds: at least `floor`, else on the line.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dense {
    floor: f64,
    start: f64,
    per_token: f64,
}

impl Dense {
    /// From Vidur's rows of a GPU and a model with that tensor parallelism.
    ///
    /// # Panics
    /// If there are none.
    pub(super) fn vidur(gpu: &Gpu, model: &str, parallel: u32) -> Self {
        let key = format!("{},{model},{parallel},", gpu.name);
        let rows: Vec<[f64; 2]> = include_str!("../../data/gpu/vidur-dense-ms.csv")
            .lines()
            .filter_map(|line| line.strip_prefix(&key)?.split_once(','))
            .map(|(tokens, ms)| [tokens, ms].map(|field| field.parse().expect("a number")))
            .collect();
        assert!(!rows.is_empty(), "Vidur has no rows {key}");
        let of = |share: &dyn Fn(f64, f64) -> f64, used: &dyn Fn(f64) -> bool| {
            rows.iter()
                .filter(|[tokens, _]| used(*tokens))
                .map(|[tokens, ms]| share(*tokens, ms * 1_000.0))
                .sum::<f64>()
        };
        let few = |tokens: f64| tokens <= 64.0;
        let many = |tokens: f64| tokens >= 256.0;
        // Least squares of the relative error: each row weighs as its time's inverse square.
        let floor = of(&|_, us| 1.0 / us, &few) / of(&|_, us| 1.0 / us / us, &few);
        let w = of(&|_, us| 1.0 / us / us, &many);
        let wx = of(&|tokens, us| tokens / us / us, &many);
        let wxx = of(&|tokens, us| tokens * tokens / us / us, &many);
        let wy = of(&|_, us| 1.0 / us, &many);
        let wxy = of(&|tokens, us| tokens / us, &many);
        let per_token = (w * wxy - wx * wy) / (w * wxx - wx * wx);
        Self { floor, start: (wy - per_token * wx) / w, per_token }
    }

    /// For a model of so many times the parameters on each GPU, or a GPU so many times slower.
    pub(super) fn times(self, factor: f64) -> Self {
        Self { floor: self.floor * factor, start: self.start * factor, per_token: self.per_token * factor }
    }

    /// How much slower this is than `other`: in reading weights, and in computing.
    pub(super) fn over(self, other: Self) -> [f64; 2] {
        [self.floor / other.floor, self.per_token / other.per_token]
    }

    /// For a GPU that reads and computes so many times slower.
    pub(super) fn on(self, [read, compute]: [f64; 2]) -> Self {
        Self { floor: self.floor * read, start: self.start * compute, per_token: self.per_token * compute }
    }
}

/// The step model of `parallel` GPUs that share each layer.
pub(super) fn step(gpu: &Gpu, model: &Model, parallel: u32, dense: Dense) -> StepModel {
    let shares = f64::from(parallel);
    let head_us = 2.0 * model.vocabulary * model.hidden / shares / gpu.bandwidth;
    let all_reduces = if parallel > 1 { 2.0 * model.layers } else { 0.0 };
    let ring = 2.0 * (shares - 1.0) / shares;
    StepModel {
        fixed_us: OVERHEAD_US + all_reduces * ALL_REDUCE_US,
        weight_floor_us: dense.floor + head_us,
        dense_us: dense.start + head_us,
        dense_per_token_us: dense.per_token + all_reduces * ring * 2.0 * model.hidden / gpu.bus,
        per_seq_us: PER_SEQ_US,
        decode_us: DECODE_US_PER_LAYER * model.layers,
        decode_per_kv_us: model.kv_bytes() / shares / gpu.bandwidth / KV_EFFICIENCY,
        mixed_decode: MIXED_DECODE,
        prefill_us: PREFILL_US_PER_LAYER * model.layers,
        prefill_per_token_us: 0.0,
        // Two products of each query with a key and a value, a multiplication and an addition each.
        prefill_per_token2_us: 4.0 * model.heads * model.layers / shares / gpu.rate / ATTENTION_EFFICIENCY,
    }
}

/// KV memory in tokens: 90 % of each GPU, less the weights and 3 GiB a GPU for activations and graphs.
pub(super) fn kv_tokens(gpu: &Gpu, model: &Model, parallel: u32) -> u32 {
    let all = f64::from(parallel) * (0.9 * gpu.memory - 3.0 * GIB) - 2.0 * model.parameters;
    (all / model.kv_bytes()) as u32 / 16 * 16
}
