//! Measures the embedded engine on this machine: tokens per second at several numbers of sequences at once.
//! Invariant: every figure is measured over whole answers of the same length, after one run to warm up.
//!
//!     cargo run --release -p spillway-engine --example bench_engine [-- FILE.gguf]

use std::{path::PathBuf, time::Instant};

use anyhow::{Result, bail};
use clap::Parser;
use spillway_engine::{Engine, EngineConfig, Piece, Prompt, Request};

/// Measures decoding and reading of prompts.
#[derive(Parser)]
struct Options {
    /// A model; the guide if there is none.
    file: Option<PathBuf>,
    /// Tokens of each answer.
    #[arg(long, default_value_t = 256)]
    tokens: usize,
    /// Tokens of the long prompt.
    #[arg(long, default_value_t = 512)]
    prompt: usize,
    /// Threads; one per core if there is no number.
    #[arg(long)]
    threads: Option<usize>,
    /// Numbers of sequences at once.
    #[arg(long, value_delimiter = ',', default_values_t = [1, 8, 16])]
    batch: Vec<usize>,
}

/// Tokens of all answers to `requests` together.
fn run(engine: &Engine, requests: Vec<Request>) -> Result<usize> {
    let generations = requests.into_iter().map(|r| engine.submit(r)).collect::<Result<Vec<_>, _>>()?;
    let mut tokens = 0;
    for mut generation in generations {
        loop {
            match generation.blocking_next() {
                Some(Piece::Started { .. } | Piece::Text { .. }) => {}
                Some(Piece::Done { usage, .. }) => break tokens += usage.completion_tokens,
                Some(Piece::Failed(why)) => bail!(why),
                None => bail!("the answer has no end"),
            }
        }
    }
    Ok(tokens)
}

fn main() -> Result<()> {
    let options = Options::parse();
    let begun = Instant::now();
    let config = EngineConfig {
        slots: options.batch.iter().copied().max().unwrap_or(1),
        threads: options.threads,
        ..EngineConfig::default()
    };
    let engine = match &options.file {
        Some(file) => Engine::load_file(file, config)?,
        None => Engine::guide(config)?,
    };
    let info = engine.info();
    println!(
        "{} ({}, {} parameters, {}) loaded in {:.0?}",
        info.name,
        info.architecture,
        info.parameters,
        info.quantization,
        begun.elapsed()
    );
    // At this temperature the answers wander on and end at their limit only.
    let request = |seed| Request {
        max_tokens: Some(options.tokens),
        temperature: 5.0,
        seed,
        ..Request::new(Prompt::Text("What is spill-over?".into()))
    };
    run(&engine, vec![request(0)])?;
    for batch in &options.batch {
        let mut best = 0.0f64;
        for round in 0..3 {
            let begun = Instant::now();
            let tokens = run(&engine, (0..*batch as u64).map(|i| request(round * 1000 + i)).collect())?;
            best = best.max(tokens as f64 / begun.elapsed().as_secs_f64());
        }
        println!("decode, batch {batch:>2}: {best:>7.0} tokens/s");
    }
    let mut text = String::new();
    while engine.tokenize(&text).len() < options.prompt {
        text += " the network and the ledger";
    }
    let begun = Instant::now();
    run(&engine, vec![Request { max_tokens: Some(1), ..Request::new(Prompt::Text(text.clone())) }])?;
    println!(
        "prompt of {} tokens: {:>7.0} tokens/s",
        engine.tokenize(&text).len(),
        engine.tokenize(&text).len() as f64 / begun.elapsed().as_secs_f64()
    );
    Ok(())
}
