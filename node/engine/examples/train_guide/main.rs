//! Makes the guide model from nothing: draws its corpus, trains its vocabulary and its weights, writes a GGUF.
//! Invariant: the same seed, sizes and number of threads give the same file, byte for byte, on the same kind of processor.
//!
//!     RAYON_NUM_THREADS=1 cargo run --release -p spillway-engine --example train_guide -- --out node/engine/models/guide.gguf
//!     cargo run --release -p spillway-engine --example train_guide -- --eval node/engine/models/guide.gguf

mod corpus;
mod eval;
mod gguf;
mod network;
mod topics;
mod vocabulary;

use std::{path::PathBuf, time::Instant};

use anyhow::{Context, Result, ensure};
use candle_core::{D, Device, Tensor};
use candle_nn::optim::{AdamW, Optimizer, ParamsAdamW};
use clap::Parser;

use corpus::{Rng, Sample};
use network::{Network, Shape};
use vocabulary::Vocabulary;

/// Trains the guide model.
#[derive(Parser)]
struct Options {
    /// Steps of training.
    #[arg(long, default_value_t = 1500)]
    steps: usize,
    /// Where the GGUF goes.
    #[arg(long, required_unless_present = "eval")]
    out: Option<PathBuf>,
    /// Trains nothing, and measures this GGUF.
    #[arg(long, conflicts_with = "out")]
    eval: Option<PathBuf>,
    /// With --eval: prints what was answered otherwise than taught.
    #[arg(long, requires = "eval")]
    misses: bool,
    /// Seed of corpus, weights and order.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Conversations in the corpus.
    #[arg(long, default_value_t = 6000)]
    conversations: usize,
    /// Width of the model; a multiple of 32 times the heads.
    #[arg(long, default_value_t = 256)]
    width: usize,
    /// Width inside the feed-forward part; a multiple of 32.
    #[arg(long, default_value_t = 512)]
    feed_forward: usize,
}

/// Texts per step.
const BATCH: usize = 16;
/// Highest rate of learning; it falls to a twentieth along a cosine.
const RATE: f64 = 1e-3;
/// Steps over which the rate rises.
const WARM_UP: f64 = 40.0;
/// What each token's loss counts: the answer's first tokens choose the topic, the question's only teach the language.
const WEIGHT_FIRST: f32 = 4.0;
const FIRST: usize = 5;
const WEIGHT_ANSWER: f32 = 1.0;
const WEIGHT_QUESTION: f32 = 0.2;

/// One training text: its tokens, and the weight of the loss on each of them.
struct Text {
    ids: Vec<u32>,
    weights: Vec<f32>,
}

fn encode(vocabulary: &Vocabulary, sample: &Sample) -> Result<Text> {
    let (mut ids, mut weights) = (Vec::new(), Vec::new());
    let mut add = |text: &str, weight: &dyn Fn(usize) -> f32| -> Result<()> {
        let part = vocabulary.encode(text)?;
        weights.extend((0..part.len()).map(weight));
        ids.extend(part);
        Ok(())
    };
    match sample {
        Sample::Plain(text) => add(&format!("{text}<|im_end|>"), &|_| WEIGHT_ANSWER)?,
        Sample::Chat(turns) => {
            for (role, text) in turns {
                add(&format!("<|im_start|>{role}\n"), &|_| 0.0)?;
                let answer = *role == "assistant";
                add(&format!("{text}<|im_end|>"), &|i| match (answer, i < FIRST) {
                    (true, true) => WEIGHT_FIRST,
                    (true, false) => WEIGHT_ANSWER,
                    (false, _) => WEIGHT_QUESTION,
                })?;
                add("\n", &|_| 0.0)?;
            }
        }
    }
    Ok(Text { ids, weights })
}

/// The weighted mean loss of `batch`, and the plain mean over its answers' tokens.
fn loss(network: &Network, batch: &[Text]) -> Result<(Tensor, f64)> {
    let t = batch.iter().map(|x| x.ids.len()).max().context("a batch has texts")? - 1;
    let mut input = vec![0u32; batch.len() * t];
    let (mut at, mut target, mut weights) = (Vec::new(), Vec::new(), Vec::new());
    for (row, text) in batch.iter().enumerate() {
        for j in 0..text.ids.len() - 1 {
            input[row * t + j] = text.ids[j];
            if text.weights[j + 1] > 0.0 {
                at.push((row * t + j) as u32);
                target.push(text.ids[j + 1]);
                weights.push(text.weights[j + 1]);
            }
        }
    }
    let n = at.len();
    let device = &Device::Cpu;
    let hidden = network.forward(&Tensor::from_vec(input, (batch.len(), t), device)?)?;
    let hidden = hidden.index_select(&Tensor::from_vec(at, n, device)?, 0)?;
    let logits = hidden.matmul(&network.embedding().t()?)?;
    let likelihood = candle_nn::ops::log_softmax(&logits, D::Minus1)?
        .gather(&Tensor::from_vec(target, (n, 1), device)?, 1)?
        .squeeze(1)?;
    let values = likelihood.detach().to_vec1::<f32>()?;
    let answers: Vec<f64> =
        values.iter().zip(&weights).filter(|(_, w)| **w >= WEIGHT_ANSWER).map(|(v, _)| -f64::from(*v)).collect();
    let sum: f32 = weights.iter().sum();
    let weights: Vec<f32> = weights.iter().map(|w| -w / sum).collect();
    let loss = (likelihood * Tensor::from_vec(weights, n, device)?)?.sum_all()?;
    Ok((loss, answers.iter().sum::<f64>() / answers.len().max(1) as f64))
}

fn main() -> Result<()> {
    let options = Options::parse();
    if let Some(file) = &options.eval {
        return eval::eval(file, options.misses);
    }
    let out = options.out.as_deref().context("--out says where the GGUF goes")?;
    ensure!(options.conversations > BATCH, "--conversations must be more than {BATCH}");
    ensure!(options.steps > 0, "--steps must be at least 1");
    let begun = Instant::now();
    let mut rng = Rng::new(options.seed);

    let samples: Vec<Sample> = (0..options.conversations).map(|_| corpus::sample(&mut rng)).collect();
    let mut texts: Vec<String> = ["system\n", "user\n", "assistant\n"].map(String::from).to_vec();
    for sample in &samples {
        match sample {
            Sample::Plain(text) => texts.push(text.to_string()),
            Sample::Chat(turns) => texts.extend(turns.iter().map(|(_, text)| text.clone())),
        }
    }
    let vocabulary = Vocabulary::train(1024, &texts)?;
    let mut data = samples.iter().map(|s| encode(&vocabulary, s)).collect::<Result<Vec<_>>>()?;
    // Neighbours have about the same length, so that a batch of neighbours has little padding.
    data.sort_by_key(|text| text.ids.len());
    let tokens: usize = data.iter().map(|text| text.ids.len()).sum();
    let longest = data.last().map_or(0, |text| text.ids.len());
    println!(
        "{} conversations, {tokens} tokens, longest {longest}; {} tokens and {} merges in the vocabulary ({:.1?})",
        data.len(),
        vocabulary.tokens.len(),
        vocabulary.merges.len(),
        begun.elapsed()
    );

    let shape = Shape {
        width: options.width,
        layers: 4,
        heads: 8,
        heads_kv: 2,
        feed_forward: options.feed_forward,
        vocabulary: vocabulary.tokens.len(),
        context: 1024,
    };
    ensure!(
        longest <= shape.context,
        "a conversation has {longest} tokens, more than the context of {}",
        shape.context
    );
    let network = Network::new(shape, &mut rng)?;
    println!("{} weights", network.size());

    let variables = network.parameters.iter().map(|(_, v)| v.clone()).collect();
    let mut optimiser =
        AdamW::new(variables, ParamsAdamW { lr: RATE, weight_decay: 0.01, beta2: 0.98, ..Default::default() })?;
    let (mut seen, started, mut sum, mut count) = (0, Instant::now(), 0.0, 0);
    for step in 0..options.steps {
        let done = step as f64 / options.steps as f64;
        let warm = ((step + 1) as f64 / WARM_UP).min(1.0);
        optimiser.set_learning_rate(RATE * warm * (0.05 + 0.95 * 0.5 * (1.0 + (std::f64::consts::PI * done).cos())));
        let at = rng.below(data.len() - BATCH + 1);
        let batch = &data[at..at + BATCH];
        seen += batch.iter().map(|x| x.ids.len()).sum::<usize>();
        let (loss, answer) = loss(&network, batch)?;
        optimiser.backward_step(&loss)?;
        sum += answer;
        count += 1;
        let last = step + 1 == options.steps;
        if (step + 1) % 50 == 0 || last {
            println!(
                "step {}: {:.4} nats per answer token, {:.0} tokens/s, {:.0?}",
                step + 1,
                sum / f64::from(count),
                seen as f64 / started.elapsed().as_secs_f64(),
                started.elapsed()
            );
            (sum, count) = (0.0, 0);
        }
        // A long run can be tried out before it is over.
        if (step + 1) % 500 == 0 || last {
            gguf::write(out, &network, &vocabulary)?;
        }
    }
    println!("wrote {} ({:.1?})", out.display(), begun.elapsed());
    Ok(())
}
