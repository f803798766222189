//! Engines that are known: a GPU with a model.
//! Invariant: each number has its source beside it.

use super::fit::{self, A100, A800, Dense, H100, LLAMA_2_70B, LLAMA_3_8B, LLAMA_3_70B, QWEN3_32B};
use super::machine::EngineRules;
use super::step::StepModel;
use crate::traces::PREFIX_BLOCK;
use std::sync::LazyLock;

/// A known engine.
#[derive(Clone, Debug)]
pub struct Preset {
    /// GPUs and model: `h100x4-llama-3-70b` is four H100 that share each layer.
    pub name: String,
    /// Whether a run of this engine was measured and compared. If not, it is derived, and less certain.
    pub measured: bool,
    step: StepModel,
    kv_tokens: u32,
    seqs_max: u32,
    chunk_budget: u32,
    async_scheduling: bool,
}

/// All known engines.
#[must_use]
pub fn presets() -> &'static [Preset] {
    &PRESETS
}

/// The rules of a known engine, with a prefix cache at the traces' grain; none if there is none of that name.
#[must_use]
pub fn preset(name: &str) -> Option<EngineRules> {
    let preset = PRESETS.iter().find(|preset| preset.name == name)?;
    Some(EngineRules {
        name: preset.name.clone(),
        step: preset.step,
        kv_tokens: preset.kv_tokens,
        seqs_max: preset.seqs_max,
        chunk_budget: preset.chunk_budget,
        prefix_grain: PREFIX_BLOCK,
        async_scheduling: preset.async_scheduling,
    })
}

static PRESETS: LazyLock<Vec<Preset>> = LazyLock::new(|| measured().into_iter().chain(derived()).collect());

/// From kernel profiles of vLLM 0.19 on these GPUs, but for `fixed_us`: that was set so that the first 150 requests of a
/// real run take as long per token as they did. Limits as in those runs.
fn measured() -> [Preset; 2] {
    let rtx_4090 = StepModel {
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
    };
    let rtx_pro_6000 = StepModel {
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
    };
    let of = |name: &str, step, kv_tokens, seqs_max| Preset {
        name: name.to_owned(),
        measured: true,
        step,
        kv_tokens,
        seqs_max,
        chunk_budget: 2_048,
        async_scheduling: true,
    };
    [
        // 2,588 blocks, of which vLLM keeps one to itself.
        of("rtx4090-llama-3.1-8b", rtx_4090, 41_392, 256),
        of("rtxpro6000-llama-3.1-8b", rtx_pro_6000, 500_000, 128),
    ]
}

/// As `fit.rs` says. Limits are vLLM's defaults for a server: 2,048 tokens and 256 sequences on an A100, 8,192 and 1,024 on
/// an H100. Steps are decided one after the other, as vLLM did until 0.14, which the published results that they are for ran.
fn derived() -> Vec<Preset> {
    let of = |name: String, gpu: &fit::Gpu, model: &fit::Model, parallel: u32, dense: Dense| {
        let large = gpu.name == H100.name;
        Preset {
            name,
            measured: false,
            step: fit::step(gpu, model, parallel, dense),
            kv_tokens: fit::kv_tokens(gpu, model, parallel),
            seqs_max: if large { 1_024 } else { 256 },
            chunk_budget: if large { 8_192 } else { 2_048 },
            async_scheduling: false,
        }
    };
    let (llama_2, llama_3) = ("meta-llama/Llama-2-70b-hf", "meta-llama/Meta-Llama-3-70B");
    let mut all = Vec::new();
    for parallel in [8, 4, 2] {
        let a100_2 = Dense::vidur(&A100, llama_2, parallel);
        let a100_3 = Dense::vidur(&A100, llama_3, parallel);
        // Of Llama 2 and 3 with 70 billion parameters, the layers are the same; Vidur has only the first on an H100.
        let h100 = Dense::vidur(&H100, llama_2, parallel);
        all.push(of(format!("a100x{parallel}-llama-2-70b"), &A100, &LLAMA_2_70B, parallel, a100_2));
        all.push(of(format!("a100x{parallel}-llama-3-70b"), &A100, &LLAMA_3_70B, parallel, a100_3));
        all.push(of(format!("h100x{parallel}-llama-2-70b"), &H100, &LLAMA_2_70B, parallel, h100));
        all.push(of(format!("h100x{parallel}-llama-3-70b"), &H100, &LLAMA_3_70B, parallel, h100));
        if parallel == 8 {
            // Mooncake's nodes.
            all.push(of("a800x8-llama-3-70b".to_owned(), &A800, &LLAMA_3_70B, parallel, a100_3));
        }
    }

    let a100_8b = Dense::vidur(&A100, "meta-llama/Meta-Llama-3-8B", 1);
    // Vidur has no Llama 3 with 8 billion parameters on an H100: the A100's, as much faster as Llama 2 with 7 billion is.
    let [a100_7b, h100_7b] = [&A100, &H100].map(|gpu| Dense::vidur(gpu, "meta-llama/Llama-2-7b-hf", 1));
    all.push(of("a100-llama-3-8b".to_owned(), &A100, &LLAMA_3_8B, 1, a100_8b));
    all.push(of("h100-llama-3-8b".to_owned(), &H100, &LLAMA_3_8B, 1, a100_8b.on(h100_7b.over(a100_7b))));

    // Two H100 share Qwen3-32B as four share Llama 2 with 70 billion: nearly as many parameters on each.
    let share = (QWEN3_32B.layer_parameters() / 2.0) / (LLAMA_2_70B.layer_parameters() / 4.0);
    let qwen = of("h100x2-qwen3-32b".to_owned(), &H100, &QWEN3_32B, 2, Dense::vidur(&H100, llama_2, 4).times(share));
    // KV memory as llm-d has published it for this pod.
    all.push(Preset { kv_tokens: 307_328, ..qwen });
    all
}
