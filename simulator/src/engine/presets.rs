//! Engines that are known: a GPU with a model.
//! Invariant: each number has its source beside it.

use super::machine::EngineRules;
use super::step::StepModel;
use crate::traces::PREFIX_BLOCK;

/// A known engine.
#[derive(Clone, Copy, Debug)]
pub struct Preset {
    /// GPU and model.
    pub name: &'static str,
    step: StepModel,
    kv_tokens: u32,
    seqs_max: u32,
    async_scheduling: bool,
}

/// All known engines.
#[must_use]
pub const fn presets() -> &'static [Preset] {
    PRESETS
}

/// The rules of a known engine, with vLLM's chunk budget and a prefix cache at the traces' grain; none if there is none of
/// that name.
#[must_use]
pub fn preset(name: &str) -> Option<EngineRules> {
    let preset = PRESETS.iter().find(|preset| preset.name == name)?;
    Some(EngineRules {
        name: preset.name.to_owned(),
        step: preset.step,
        kv_tokens: preset.kv_tokens,
        seqs_max: preset.seqs_max,
        chunk_budget: 2048,
        prefix_grain: PREFIX_BLOCK,
        async_scheduling: preset.async_scheduling,
    })
}

const PRESETS: &[Preset] = &[
    Preset {
        name: "rtx4090-llama-3.1-8b",
        step: StepModel {
            fixed_us: 1_399.0,
            weight_floor_us: 16_428.0,
            dense_us: 5_724.0,
            dense_per_token_us: 87.42,
            per_seq_us: 7.46,
            decode_us: 460.0,
            decode_per_kv_us: 0.1465,
            mixed_decode: 1.89,
            prefill_us: 310.0,
            prefill_per_token_us: 0.515,
            prefill_per_token2_us: 0.004_402,
        },
        // 2,588 blocks, of which vLLM keeps one.
        kv_tokens: 41_392,
        seqs_max: 256,
        async_scheduling: true,
    },
    Preset {
        name: "rtxpro6000-llama-3.1-8b",
        step: StepModel {
            fixed_us: 3_505.0,
            weight_floor_us: 10_448.0,
            dense_us: 6_139.0,
            dense_per_token_us: 34.36,
            per_seq_us: 3.96,
            decode_us: 428.0,
            decode_per_kv_us: 0.091,
            mixed_decode: 1.44,
            prefill_us: 311.0,
            prefill_per_token_us: 0.164,
            prefill_per_token2_us: 0.002_470,
        },
        kv_tokens: 500_000,
        seqs_max: 128,
        async_scheduling: true,
    },
];
