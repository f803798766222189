//! The known engines: their coefficients, what these mean for a user, and Splitwise's measurements beside the derived ones.
//!
//! `cargo run -p spillway-simulator --example engine_presets`
//!
//! Splitwise ran Llama 2 with 70 billion parameters on the vLLM of 2023, whose attention kernel was slower and whose steps
//! took some 30 ms of the processor. So its times are above the model's; they are a check, not a fit.

use spillway_simulator::engine::{Batch, Chunk, EngineRules, preset, presets};

fn ms(rules: &EngineRules, decoding: u32, context: u64, prompt: u32) -> f64 {
    // A prompt longer than a step's budget takes several.
    let mut total = 0.0;
    let mut prefix = 0;
    loop {
        let tokens = (prompt - prefix).min(rules.chunk_budget - decoding);
        let chunk = [Chunk { tokens, prefix }];
        let chunks = if tokens > 0 { &chunk[..] } else { &[] };
        total += rules.step.step_us(&Batch { decoding, decoding_kv: u64::from(decoding) * context, chunks }) / 1_000.0;
        prefix += tokens;
        if prefix == prompt {
            return total;
        }
    }
}

fn main() {
    println!(
        "{:<26} {:>9} {:>6} {:>6} | {:>7} {:>7} {:>7} | {:>7} {:>7} {:>8}",
        "", "KV tokens", "seqs", "budget", "step 1", "32", "128", "prompt", "2,048", "8,192"
    );
    for known in presets() {
        let rules = preset(&known.name).expect("each preset has a name");
        println!(
            "{:<26} {:>9} {:>6} {:>6} | {:>7.2} {:>7.2} {:>7.2} | {:>7.1} {:>7.1} {:>8.1}",
            format!("{}{}", rules.name, if known.measured { " *" } else { "" }),
            rules.kv_tokens,
            rules.seqs_max,
            rules.chunk_budget,
            ms(&rules, 1, 1_024, 0),
            ms(&rules, 32, 1_024, 0),
            ms(&rules, 128, 1_024, 0),
            ms(&rules, 0, 0, 512),
            ms(&rules, 0, 0, 2_048),
            ms(&rules, 0, 0, 8_192),
        );
    }
    println!(
        "Milliseconds: a step with 1, 32, 128 sequences of 1,024 tokens; a prompt of 512, 2,048, 8,192. * measured.\n"
    );

    for known in presets() {
        println!("{}: {:?}", known.name, preset(&known.name).expect("each preset has a name").step);
    }

    println!("\nSplitwise, batch of 1: GPU, parallel, prompt; prompt and token ms measured; the model's");
    for line in include_str!("../data/gpu/splitwise-llama-2-70b-ms.csv").lines().skip(1) {
        let fields: Vec<_> = line.split(',').collect();
        let [gpu, parallel, prompt, batch, prompt_ms, token_ms, _] = fields[..] else { panic!("{line}") };
        let Some(gpu) = gpu.strip_suffix("-80gb").filter(|_| batch == "1") else { continue };
        let name = format!("{gpu}x{parallel}-llama-2-70b");
        let Some(rules) = preset(&name) else { continue };
        let prompt: u32 = prompt.parse().expect("a number");
        let [prompt_ms, token_ms] = [prompt_ms, token_ms].map(|ms| ms.parse::<f64>().expect("a number"));
        let ours = [ms(&rules, 0, 0, prompt), ms(&rules, 1, u64::from(prompt), 0)];
        println!("{name} {prompt:>5}: {prompt_ms:>7.1} {token_ms:>5.1}; {:>7.1} {:>5.1}", ours[0], ours[1]);
    }
}
