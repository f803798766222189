//! The Llama that is trained: parameters named as in a GGUF, and a forward pass that has a backward pass.
//! Invariant: rotary embedding pairs neighbours (x[2i], x[2i+1]) as GGUF's `llama` does, so nothing is permuted on writing.

use std::collections::BTreeMap;

use candle_core::{D, DType, Device, Result, Tensor, Var};
use candle_nn::ops::softmax;

use crate::corpus::Rng;

/// Sizes of the network.
#[derive(Clone, Copy)]
pub struct Shape {
    /// Width of the residual stream.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub heads_kv: usize,
    /// Width inside the feed-forward part.
    pub feed_forward: usize,
    /// Tokens in the vocabulary.
    pub vocabulary: usize,
    /// Longest context, in tokens.
    pub context: usize,
}

/// Base of the rotary frequencies.
pub const ROPE_BASE: f32 = 10_000.0;
/// Added to the mean square before its root.
pub const NORM_EPSILON: f32 = 1e-5;

/// The network under training; the output matrix is tied to the embedding.
pub struct Network {
    /// Its sizes.
    pub shape: Shape,
    /// Parameters by GGUF name, in the order they are written.
    pub parameters: Vec<(String, Var)>,
    by_name: BTreeMap<String, usize>,
    cos: Tensor,
    sin: Tensor,
}

impl Network {
    /// Draws all weights from `rng`.
    pub fn new(shape: Shape, rng: &mut Rng) -> Result<Self> {
        let head = shape.width / shape.heads;
        let (d, kv, ff) = (shape.width, shape.heads_kv * head, shape.feed_forward);
        let narrow = 0.02 / (2.0 * shape.layers as f32).sqrt();
        let mut parameters = Vec::new();
        let mut add = |name: String, dims: &[usize], spread: Option<f32>| -> Result<()> {
            let n = dims.iter().product();
            let values: Vec<f32> = match spread {
                Some(spread) => (0..n).map(|_| rng.normal() * spread).collect(),
                None => vec![1.0; n],
            };
            parameters.push((name, Var::from_tensor(&Tensor::from_vec(values, dims, &Device::Cpu)?)?));
            Ok(())
        };
        add("token_embd.weight".into(), &[shape.vocabulary, d], Some(0.02))?;
        for i in 0..shape.layers {
            let block = |part: &str| format!("blk.{i}.{part}.weight");
            add(block("attn_norm"), &[d], None)?;
            add(block("attn_q"), &[d, d], Some(0.02))?;
            add(block("attn_k"), &[kv, d], Some(0.02))?;
            add(block("attn_v"), &[kv, d], Some(0.02))?;
            add(block("attn_output"), &[d, d], Some(narrow))?;
            add(block("ffn_norm"), &[d], None)?;
            add(block("ffn_gate"), &[ff, d], Some(0.02))?;
            add(block("ffn_up"), &[ff, d], Some(0.02))?;
            add(block("ffn_down"), &[d, ff], Some(narrow))?;
        }
        add("output_norm.weight".into(), &[d], None)?;

        let inverse: Vec<f32> = (0..head / 2).map(|i| ROPE_BASE.powf(-(2.0 * i as f32) / head as f32)).collect();
        let angles = Tensor::arange(0u32, shape.context as u32, &Device::Cpu)?
            .to_dtype(DType::F32)?
            .reshape((shape.context, 1))?
            .matmul(&Tensor::from_vec(inverse, (1, head / 2), &Device::Cpu)?)?;
        let by_name = parameters.iter().enumerate().map(|(i, (name, _))| (name.clone(), i)).collect();
        Ok(Self { shape, parameters, by_name, cos: angles.cos()?, sin: angles.sin()? })
    }

    /// Number of weights.
    pub fn size(&self) -> usize {
        self.parameters.iter().map(|(_, v)| v.elem_count()).sum()
    }

    /// The embedding, which is also the output matrix: [vocabulary, width].
    pub fn embedding(&self) -> &Tensor {
        self.weight("token_embd.weight")
    }

    fn weight(&self, name: &str) -> &Tensor {
        self.parameters[self.by_name[name]].1.as_tensor()
    }

    fn norm(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        let root = (x.sqr()?.mean_keepdim(D::Minus1)? + f64::from(NORM_EPSILON))?.sqrt()?;
        x.broadcast_div(&root)?.broadcast_mul(self.weight(name))
    }

    fn linear(&self, x: &Tensor, name: &str) -> Result<Tensor> {
        x.matmul(&self.weight(name).t()?)
    }

    /// Token ids [batch, time] to the last hidden states [batch * time, width].
    pub fn forward(&self, ids: &Tensor) -> Result<Tensor> {
        let (b, t) = ids.dims2()?;
        let s = self.shape;
        let head = s.width / s.heads;
        let group = s.heads / s.heads_kv;
        let mask: Vec<f32> =
            (0..t).flat_map(|i| (0..t).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 })).collect();
        let mask = Tensor::from_vec(mask, (1, 1, t, t), ids.device())?;
        let (cos, sin) = (self.cos.narrow(0, 0, t)?, self.sin.narrow(0, 0, t)?);
        let mut x = self.embedding().index_select(&ids.flatten_all()?, 0)?;
        for i in 0..s.layers {
            let block = |part: &str| format!("blk.{i}.{part}.weight");
            let split = |y: Tensor, heads: usize| y.reshape((b, t, heads, head))?.transpose(1, 2)?.contiguous();
            let y = self.norm(&x, &block("attn_norm"))?;
            // The fused rotary kernels have no backward pass; this one has.
            let rope = |y: Tensor| candle_nn::rotary_emb::rope_i_slow(&y, &cos, &sin);
            let q = rope(split(self.linear(&y, &block("attn_q"))?, s.heads)?)?;
            let k = rope(split(self.linear(&y, &block("attn_k"))?, s.heads_kv)?)?;
            let v = split(self.linear(&y, &block("attn_v"))?, s.heads_kv)?;
            // Grouped heads without repeating keys and values: the group is folded into the query's time.
            let q = q.reshape((b, s.heads_kv, group * t, head))?;
            let scores = (q.matmul(&k.t()?)? * (1.0 / (head as f64).sqrt()))?
                .reshape((b, s.heads, t, t))?
                .broadcast_add(&mask)?;
            let scores = softmax(&scores, D::Minus1)?.reshape((b, s.heads_kv, group * t, t))?;
            let y = scores
                .matmul(&v)?
                .reshape((b, s.heads, t, head))?
                .transpose(1, 2)?
                .contiguous()?
                .reshape((b * t, s.width))?;
            x = (x + self.linear(&y, &block("attn_output"))?)?;
            let y = self.norm(&x, &block("ffn_norm"))?;
            let y = (self.linear(&y, &block("ffn_gate"))?.silu()? * self.linear(&y, &block("ffn_up"))?)?;
            x = (x + self.linear(&y, &block("ffn_down"))?)?;
        }
        self.norm(&x, "output_norm.weight")
    }
}
