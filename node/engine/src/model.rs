//! A Llama (or Qwen2) network from a GGUF, and its forward pass over the rows of many sequences at once.
//! Invariant: what a row computes depends on its own sequence alone, whatever else is in the step.
//! Sources: the GGUF specification for names and shapes; llama.cpp for which architecture pairs which dimensions.

use std::{
    collections::BTreeSet,
    io::{Read, Seek},
};

use candle_core::{Device, quantized::QTensor};
use pulp::Arch;

use crate::{
    attention::{self, Cache, Heads, View},
    error::LoadError,
    gguf::Gguf,
    matrix::{Stack, Vocabulary, quantised},
};

const ARCHITECTURE: &str = "general.architecture";
/// Bounds on what a file may ask for; the largest open models stay well below.
const WIDTH_MAX: usize = 1 << 16;
const LAYERS_MAX: usize = 1 << 10;
const HEADS_MAX: usize = 1 << 10;
const CONTEXT_MAX: usize = 1 << 24;

/// Which two numbers of a head are turned together by the rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pairs {
    /// x[2i] and x[2i+1]: `llama`.
    Neighbours,
    /// x[i] and x[i+n/2]: `qwen2`.
    Halves,
}

struct Layer {
    attention_norm: Vec<f32>,
    /// Queries, keys and values in one product, and what is added to them (empty: nothing).
    qkv: Stack,
    qkv_bias: Vec<f32>,
    attention_out: Stack,
    feed_norm: Vec<f32>,
    /// Gate and up in one product.
    gate_up: Stack,
    down: Stack,
}

/// One token of one sequence in a step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// Which of the step's caches it belongs to. Rows of one sequence stand in order, side by side or not.
    pub(crate) cache: usize,
    /// Its token.
    pub(crate) token: u32,
    /// Whether the logits after it are wanted.
    pub(crate) logits: bool,
}

/// The network.
pub(crate) struct Model {
    architecture: String,
    context: usize,
    width: usize,
    heads: Heads,
    pairs: Pairs,
    epsilon: f32,
    /// Frequency of each pair.
    frequencies: Vec<f32>,
    tokens: usize,
    parameters: u64,
    quantization: String,
    vocabulary: Vocabulary,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    arch: Arch,
}

fn vector<R: Read + Seek>(gguf: &mut Gguf<R>, name: &str, length: usize) -> Result<Vec<f32>, LoadError> {
    Ok(gguf.tensor(name, &[length])?.dequantize(&Device::Cpu)?.to_vec1()?)
}

impl Model {
    /// Reads the network that `gguf` describes, whose vocabulary has `tokens` tokens.
    pub(crate) fn load<R: Read + Seek>(gguf: &mut Gguf<R>, tokens: usize) -> Result<Self, LoadError> {
        let architecture =
            gguf.text(ARCHITECTURE)?.ok_or_else(|| LoadError::MissingKey(ARCHITECTURE.into()))?.to_string();
        let pairs = match architecture.as_str() {
            "llama" => Pairs::Neighbours,
            "qwen2" => Pairs::Halves,
            other => {
                return Err(LoadError::Unsupported {
                    key: ARCHITECTURE.into(),
                    value: other.into(),
                    supported: "supported: llama, qwen2",
                });
            }
        };
        let key = |name: &str| format!("{architecture}.{name}");
        let needed = |gguf: &Gguf<R>, name: &str, most: usize| -> Result<usize, LoadError> {
            match gguf.count(&key(name), most)? {
                None => Err(LoadError::MissingKey(key(name))),
                Some(0) => Err(LoadError::bad_key(&key(name), "it is 0")),
                Some(n) => Ok(n),
            }
        };
        let context = needed(gguf, "context_length", CONTEXT_MAX)?;
        let width = needed(gguf, "embedding_length", WIDTH_MAX)?;
        let layer_count = needed(gguf, "block_count", LAYERS_MAX)?;
        let feed = needed(gguf, "feed_forward_length", 4 * WIDTH_MAX)?;
        let query = needed(gguf, "attention.head_count", HEADS_MAX)?;
        let heads_kv = gguf.count(&key("attention.head_count_kv"), HEADS_MAX)?.unwrap_or(query);
        if heads_kv == 0 || query % heads_kv != 0 {
            return Err(LoadError::bad_key(
                &key("attention.head_count_kv"),
                format!("{heads_kv} does not divide {query} heads"),
            ));
        }
        let length = match gguf.count(&key("attention.key_length"), WIDTH_MAX)? {
            Some(length) => length,
            None if width % query == 0 => width / query,
            None => {
                return Err(LoadError::bad_key(
                    &key("attention.head_count"),
                    format!("{query} does not divide the width {width}"),
                ));
            }
        };
        if gguf.count(&key("attention.value_length"), WIDTH_MAX)?.is_some_and(|v| v != length) {
            return Err(LoadError::bad_key(&key("attention.value_length"), "it differs from the key's length"));
        }
        if gguf.count(&key("expert_count"), usize::MAX)?.is_some_and(|n| n > 0) {
            return Err(LoadError::Unsupported {
                key: key("expert_count"),
                value: "experts".into(),
                supported: "dense models only",
            });
        }
        let heads = Heads { query, key: heads_kv, length };
        let epsilon_key = key("attention.layer_norm_rms_epsilon");
        let epsilon = gguf.float(&epsilon_key)?.ok_or_else(|| LoadError::MissingKey(epsilon_key.clone()))?;
        if !(0.0..1.0).contains(&epsilon) {
            return Err(LoadError::bad_key(&epsilon_key, "it is not within 0 and 1"));
        }

        let frequencies = frequencies(gguf, &architecture, length)?;
        let mut known: BTreeSet<String> =
            ["token_embd.weight", "output_norm.weight", "output.weight", "rope_freqs.weight"].map(String::from).into();
        let parameters = gguf.tensors().map(|(_, t)| t.shape.iter().product::<usize>() as u64).sum();
        let embedding = quantised("token_embd.weight", gguf.tensor("token_embd.weight", &[tokens, width])?)?;
        let mut quantization = embedding.dtype();
        let output = match gguf.has_tensor("output.weight") {
            true => Some(quantised("output.weight", gguf.tensor("output.weight", &[tokens, width])?)?),
            false => None,
        };
        let vocabulary = Vocabulary::new(embedding, output)?;
        let norm = vector(gguf, "output_norm.weight", width)?;
        let (q, kv) = (query * length, heads_kv * length);
        let mut layers = Vec::new();
        for i in 0..layer_count {
            let mut tensor = |part: &str, rows: usize, columns: usize| -> Result<QTensor, LoadError> {
                let name = format!("blk.{i}.{part}.weight");
                let tensor = quantised(&name, gguf.tensor(&name, &[rows, columns])?)?;
                known.insert(name);
                Ok(tensor)
            };
            let gate = tensor("ffn_gate", feed, width)?;
            quantization = gate.dtype();
            let qkv = Stack::new(vec![
                tensor("attn_q", q, width)?,
                tensor("attn_k", kv, width)?,
                tensor("attn_v", kv, width)?,
            ])?;
            let attention_out = Stack::new(vec![tensor("attn_output", width, q)?])?;
            let gate_up = Stack::new(vec![gate, tensor("ffn_up", feed, width)?])?;
            let down = Stack::new(vec![tensor("ffn_down", width, feed)?])?;
            let mut qkv_bias = Vec::new();
            let biases = [("attn_q", q), ("attn_k", kv), ("attn_v", kv)]
                .map(|(part, length)| (format!("blk.{i}.{part}.bias"), length));
            if biases.iter().any(|(name, _)| gguf.has_tensor(name)) {
                for (name, length) in biases {
                    qkv_bias.extend(vector(gguf, &name, length)?);
                    known.insert(name);
                }
            }
            let mut norm = |part: &str| {
                let name = format!("blk.{i}.{part}.weight");
                known.insert(name.clone());
                vector(gguf, &name, width)
            };
            layers.push(Layer {
                attention_norm: norm("attn_norm")?,
                feed_norm: norm("ffn_norm")?,
                qkv,
                qkv_bias,
                attention_out,
                gate_up,
                down,
            });
        }
        // A tensor that is left over would change the results if it were used: better no model than a wrong one.
        if let Some((name, _)) = gguf.tensors().find(|(name, _)| !known.contains(*name)) {
            return Err(LoadError::bad_tensor(
                name,
                format!("`{architecture}` as this engine knows it has no such tensor"),
            ));
        }
        Ok(Self {
            architecture,
            context,
            width,
            heads,
            pairs,
            epsilon,
            frequencies,
            tokens,
            parameters,
            quantization: format!("{quantization:?}").replace('K', "_K"),
            vocabulary,
            layers,
            norm,
            arch: Arch::new(),
        })
    }

    /// The architecture's name in GGUF.
    pub(crate) fn architecture(&self) -> &str {
        &self.architecture
    }

    /// Longest context it was trained for, in tokens.
    pub(crate) fn context(&self) -> usize {
        self.context
    }

    /// Numbers in the file's tensors.
    pub(crate) fn parameters(&self) -> u64 {
        self.parameters
    }

    /// How the matrices are stored while they are used.
    pub(crate) fn quantization(&self) -> &str {
        &self.quantization
    }

    /// An empty cache for one sequence.
    pub(crate) fn cache(&self) -> Cache {
        Cache::new(self.layers.len(), self.heads)
    }

    /// Runs `rows` through the network; each cache grows by its rows. Gives the logits after each row that wants them,
    /// in order. Uses the rayon pool it is called in. After an error the caches are of no more use.
    pub(crate) fn step(&self, caches: &mut [&mut Cache], rows: &[Row]) -> candle_core::Result<Vec<Vec<f32>>> {
        let mut next: Vec<usize> = caches.iter().map(|c| c.positions()).collect();
        let positions: Vec<usize> = rows
            .iter()
            .map(|row| {
                next[row.cache] += 1;
                next[row.cache] - 1
            })
            .collect();
        let turns = self.turns(&positions);
        let ids: Vec<u32> = rows.iter().map(|r| r.token).collect();
        let mut x = self.vocabulary.embed(&ids)?;

        let (q, kv) = (self.heads.query * self.heads.length, self.heads.key * self.heads.length);
        for (i, layer) in self.layers.iter().enumerate() {
            let mut qkv = layer.qkv.multiply(&self.normalised(&x, &layer.attention_norm))?;
            let mut queries = Vec::with_capacity(rows.len() * q);
            for ((row, of), turn) in rows.iter().zip(qkv.chunks_exact_mut(q + 2 * kv)).zip(&turns) {
                for (value, bias) in of.iter_mut().zip(&layer.qkv_bias) {
                    *value += bias;
                }
                let (turned, values) = of.split_at_mut(q + kv);
                self.rotate(turned, turn);
                queries.extend_from_slice(&turned[..q]);
                caches[row.cache].push(i, self.heads, &turned[q..], values);
            }
            let views: Vec<View<'_>> = rows
                .iter()
                .zip(&positions)
                .map(|(row, position)| View { cache: &*caches[row.cache], position: *position })
                .collect();
            let mixed = attention::attend(self.arch, i, self.heads, &queries, &views);
            add(&mut x, &layer.attention_out.multiply(&mixed)?);

            let gate_up = layer.gate_up.multiply(&self.normalised(&x, &layer.feed_norm))?;
            let gated = self.arch.dispatch(Gated { both: &gate_up, row: layer.gate_up.rows() });
            add(&mut x, &layer.down.multiply(&gated)?);
        }
        for (cache, next) in caches.iter_mut().zip(next) {
            let grown = next - cache.positions();
            cache.advance(grown);
        }

        let wanted: Vec<f32> = rows
            .iter()
            .zip(x.chunks_exact(self.width))
            .filter(|(row, _)| row.logits)
            .flat_map(|(_, x)| x)
            .copied()
            .collect();
        if wanted.is_empty() {
            return Ok(Vec::new());
        }
        let logits = self.vocabulary.logits(&self.normalised(&wanted, &self.norm))?;
        Ok(logits.chunks_exact(self.tokens).map(<[f32]>::to_vec).collect())
    }

    fn normalised(&self, x: &[f32], weights: &[f32]) -> Vec<f32> {
        self.arch.dispatch(Normalised { x, weights, epsilon: self.epsilon })
    }

    /// Cosine and sine of every pair's angle, for each position.
    fn turns(&self, positions: &[usize]) -> Vec<Vec<(f32, f32)>> {
        positions
            .iter()
            .map(|p| self.frequencies.iter().map(|f| (*p as f32 * f).sin_cos()).map(|(s, c)| (c, s)).collect())
            .collect()
    }

    fn rotate(&self, x: &mut [f32], turn: &[(f32, f32)]) {
        for head in x.chunks_exact_mut(self.heads.length) {
            for (i, (cos, sin)) in turn.iter().enumerate() {
                let (a, b) = match self.pairs {
                    Pairs::Neighbours => (2 * i, 2 * i + 1),
                    Pairs::Halves => (i, i + turn.len()),
                };
                (head[a], head[b]) = (head[a] * cos - head[b] * sin, head[a] * sin + head[b] * cos);
            }
        }
    }
}

/// How fast each pair of a head of `length` numbers turns with the position.
fn frequencies<R: Read + Seek>(gguf: &mut Gguf<R>, architecture: &str, length: usize) -> Result<Vec<f32>, LoadError> {
    let key = |name: &str| format!("{architecture}.rope.{name}");
    let turned = gguf.count(&key("dimension_count"), length)?.unwrap_or(length);
    if turned == 0 || turned % 2 != 0 {
        return Err(LoadError::bad_key(&key("dimension_count"), format!("{turned} is not a positive even number")));
    }
    let base = gguf.float(&key("freq_base"))?.unwrap_or(10_000.0);
    if base <= 0.0 {
        return Err(LoadError::bad_key(&key("freq_base"), "it is not above 0"));
    }
    let scale = match gguf.text(&key("scaling.type"))? {
        None | Some("none") => 1.0,
        Some("linear") => gguf
            .float(&key("scaling.factor"))?
            .filter(|f| *f > 0.0)
            .ok_or_else(|| LoadError::bad_key(&key("scaling.factor"), "it is not above 0"))?,
        Some(other) => {
            return Err(LoadError::Unsupported {
                key: key("scaling.type"),
                value: other.into(),
                supported: "supported: none, linear",
            });
        }
    };
    let factors = if gguf.has_tensor("rope_freqs.weight") {
        vector(gguf, "rope_freqs.weight", turned / 2)?
    } else {
        vec![1.0; turned / 2]
    };
    Ok(factors
        .iter()
        .enumerate()
        .map(|(i, factor)| base.powf(-(2.0 * i as f32) / turned as f32) / factor / scale)
        .collect())
}

fn add(x: &mut [f32], y: &[f32]) {
    for (x, y) in x.iter_mut().zip(y) {
        *x += y;
    }
}

/// Each vector in `x` divided by its root mean square, times the weights.
struct Normalised<'a> {
    x: &'a [f32],
    weights: &'a [f32],
    epsilon: f32,
}

impl pulp::NullaryFnOnce for Normalised<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn call(self) -> Vec<f32> {
        let mut out = vec![0.0; self.x.len()];
        let width = self.weights.len();
        for (x, out) in self.x.chunks_exact(width).zip(out.chunks_exact_mut(width)) {
            let scale = (attention::dot(x, x) / width as f32 + self.epsilon).sqrt().recip();
            for ((out, x), weight) in out.iter_mut().zip(x).zip(self.weights) {
                *out = x * scale * weight;
            }
        }
        out
    }
}

/// silu(gate) * up, where each row of `both` holds its gate and then its up.
struct Gated<'a> {
    both: &'a [f32],
    row: usize,
}

impl pulp::NullaryFnOnce for Gated<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    fn call(self) -> Vec<f32> {
        let mut out = vec![0.0; self.both.len() / 2];
        for (both, out) in self.both.chunks_exact(self.row).zip(out.chunks_exact_mut(self.row / 2)) {
            let (gate, up) = both.split_at(self.row / 2);
            for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
                *out = gate / (1.0 + attention::exp(-gate)) * up;
            }
        }
        out
    }
}
