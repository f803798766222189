//! The engines that published results were measured on.
//! Invariant: each number is measured, or derived from a source beside it; none was chosen by looking at a result.

use crate::engine::{EngineRules, StepModel};
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

/// Llama-3-70B on 8 H100, bf16.
pub(super) fn h100x8_llama_70b() -> EngineRules {
    measured("8x H100 80GB HBM3", "Llama-3-70B bf16 TP8", "h100x8-llama-3-70b")
}

/// Llama-3-70B on 8 A800 as a prefill node: the H100's coefficients where the GPU does not matter for a prompt, and the dense
/// layers and the attention of the A100, which the A800 is but for NVLink at 400 GB/s.
pub(super) fn a800x8_llama_70b(kv_tokens: u32) -> EngineRules {
    let h100 = h100x8_llama_70b();
    // Vidur's profile of Meta-Llama-3-70B at TP8 on A100 (microsoft/vidur, MIT): dense kernels of all layers, without
    // attention and all-reduce, 96.60 ms for 1,024 tokens and 364.66 ms for 4,096; never below 14.44 ms, at 1 token.
    let dense_per_token_us = (364_660.0 - 96_600.0) / 3072.0;
    let dense_us = 364_660.0 - 4096.0 * dense_per_token_us;
    // Two all-reduces a layer and one for the embedding, 8,192 values of 2 bytes a token, 2 (8 - 1) / 8 times over NVLink: a
    // direction of 200 GB/s, of which NCCL reaches as much as on the H100 in `scripts/measure_gpu.py`: 365 of 450.
    let all_reduce_us = 161.0 * 2.0 * 7.0 / 8.0 * 8192.0 * 2.0 / (200e3 * 365.0 / 450.0);
    // Attention of a pair of tokens is 4 * 8192 * 80 operations over 8 GPUs; FlashAttention-2 reaches some 200 TFLOP/s on an
    // A100, causal, heads of 128, 16k tokens (Dao, 2023, figure 5).
    let prefill_per_token2_us = 4.0 * 8192.0 * 80.0 / 8.0 / 200e6;
    EngineRules {
        name: "a800x8-llama-3-70b".to_owned(),
        step: StepModel {
            weight_floor_us: 14_440.0,
            dense_us,
            dense_per_token_us: dense_per_token_us + all_reduce_us,
            prefill_per_token2_us,
            ..h100.step
        },
        kv_tokens,
        ..h100
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Batch, Chunk};

    #[test]
    fn an_a800_node_reads_a_prompt_at_half_its_peak() {
        let engine = a800x8_llama_70b(3_000_000);
        let chunk = [Chunk { tokens: 8192, prefix: 0 }];
        let step_us = engine.step.step_us(&Batch { decoding: 0, decoding_kv: 0, chunks: &chunk });
        // 2 * 70.6e9 operations a token, and attention; 8 A800 at 312 TFLOP/s.
        let operations = 8192.0 * 2.0 * 70.6e9 + 8192.0 * 8192.0 / 2.0 * 4.0 * 8192.0 * 80.0;
        let share = operations / (step_us * 8.0 * 312e6);
        assert!((0.4..0.6).contains(&share), "{share}");
        // Splitwise measured 1.55 s for 8,192 tokens on a DGX A100 in 2023, with the software of then.
        assert!(step_us < 1.55e6, "{step_us}");
    }
}
