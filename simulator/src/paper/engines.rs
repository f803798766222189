//! The engines that published results were measured on.
//! Invariant: each number is measured, or derived from a source beside it; none was chosen by looking at a result.

use crate::engine::{EngineRules, StepModel, preset};
use crate::traces::PREFIX_BLOCK;

/// Coefficients measured on real GPUs. Source: `docs/simulator.md`, "The GPU".
const TABLE: &str = include_str!("../../data/gpu/step_time_coefficients.csv");

/// A row of the table of measured coefficients, named `name`.
///
/// # Panics
/// If the table has no such row or it does not parse; a test reads all that are used.
pub(super) fn measured(gpu: &str, model: &str, name: &str) -> EngineRules {
    let row =
        TABLE.lines().map(|line| line.split(',').collect::<Vec<_>>()).find(|row| row[0] == gpu && row[1] == model);
    let row = row.unwrap_or_else(|| panic!("no coefficients of {model} on {gpu}"));
    let number = |at: usize| row[at].parse::<f64>().unwrap_or_else(|_| panic!("{gpu}, {model}: {:?}", row[at]));
    EngineRules {
        name: name.to_owned(),
        step: StepModel {
            fixed_us: number(2) * 1000.0,
            weight_floor_us: number(3) * 1000.0,
            dense_us: number(4) * 1000.0,
            dense_per_token_us: number(5),
            per_seq_us: number(6),
            decode_us: number(7) * 1000.0,
            decode_per_kv_us: number(8),
            mixed_decode: number(9),
            prefill_us: number(10) * 1000.0,
            prefill_per_token_us: number(11),
            prefill_per_token2_us: number(12),
        },
        kv_tokens: number(13) as u32,
        seqs_max: number(14) as u32,
        chunk_budget: number(15) as u32,
        prefix_grain: PREFIX_BLOCK,
        async_scheduling: true,
    }
}

/// Llama-3-70B on 8 A800 as a prefill node: the preset, with a cache of so many tokens in the node's memory.
pub(super) fn a800x8_llama_70b(kv_tokens: u32) -> EngineRules {
    EngineRules { kv_tokens, ..preset("a800x8-llama-3-70b").expect("a preset") }
}

/// Llama-3.1-8B on one L4: the RTX 4090's coefficients, which the same generation's L4 follows by its published peaks: 300 of
/// 1,008 GB/s where memory is read, 121 of 165.2 TFLOP/s (bf16, sums in fp32) where it computes.
pub(super) fn l4_llama_8b() -> EngineRules {
    let rules = preset("rtx4090-llama-3.1-8b").expect("a preset");
    let (memory, compute) = (1008.0 / 300.0, 165.2 / 121.0);
    let step = rules.step;
    EngineRules {
        name: "l4-llama-3.1-8b".to_owned(),
        step: StepModel {
            weight_floor_us: step.weight_floor_us * memory,
            dense_us: step.dense_us * compute,
            dense_per_token_us: step.dense_per_token_us * compute,
            per_seq_us: step.per_seq_us * memory,
            decode_per_kv_us: step.decode_per_kv_us * memory,
            prefill_per_token_us: step.prefill_per_token_us * compute,
            prefill_per_token2_us: step.prefill_per_token2_us * compute,
            ..step
        },
        // SGLang's share of 0.88 of 23,034 MiB, less 14.96 GiB of weights, at 128 KiB a token.
        kv_tokens: 39_568,
        ..rules
    }
}

/// Qwen3.5-35B-A3B in FP8 on two L40S, as GORGO's authors measured it (atoniolo76/GORGO, `paper.md`); not on the run that is
/// reproduced: prompts at 0.057 ms a token (their calibration, April 5th), 8.1 ms between tokens where load is lowest (April
/// 2nd).
pub(super) fn l40s_x2_qwen_35b_a3b() -> EngineRules {
    // Both cards read 864 GB/s, of which 80 % are reached.
    let bytes_per_us = 2.0 * 864e3 * 0.8;
    EngineRules {
        name: "l40sx2-qwen3.5-35b-a3b".to_owned(),
        step: StepModel {
            fixed_us: 0.0,
            weight_floor_us: 8_100.0,
            dense_us: 8_100.0 - 57.0,
            dense_per_token_us: 57.0,
            // Each further sequence has 8 of 256 experts read, of 35 GB in all.
            per_seq_us: 35e9 * 8.0 / 256.0 / bytes_per_us,
            decode_us: 0.0,
            // 10 of 40 layers with full attention, 2 KV heads of 256, key and value, bf16.
            decode_per_kv_us: 10.0 * 2.0 * 256.0 * 2.0 * 2.0 / bytes_per_us,
            mixed_decode: 1.0,
            prefill_us: 0.0,
            prefill_per_token_us: 0.0,
            prefill_per_token2_us: 0.0,
        },
        // 0.88 of 96 GB, less 35 GB, at 20,480 bytes a token.
        kv_tokens: 2_400_000,
        seqs_max: 256,
        chunk_budget: 8192,
        prefix_grain: PREFIX_BLOCK,
        async_scheduling: true,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_engines_hold() {
        let qwen = measured("2x H100 80GB HBM3", "Qwen3-32B bf16 TP2", "q");
        assert_eq!((qwen.kv_tokens, qwen.chunk_budget), (307_280, 8192));
        for engine in [qwen, a800x8_llama_70b(3_000_000), l4_llama_8b(), l40s_x2_qwen_35b_a3b()] {
            assert_eq!(engine.validate(), Ok(()), "{}", engine.name);
            assert!(
                engine.step.dense_us >= 0.0 && engine.step.weight_floor_us > engine.step.dense_us,
                "{}",
                engine.name
            );
        }
    }
}
