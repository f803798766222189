//! Writes small GGUFs whose weights are noise: any architecture, any way of storing weights, at will.
//! Invariant: the same description gives the same file.

use std::io::Cursor;

use candle_core::{
    Device, Tensor,
    quantized::{
        GgmlDType, QTensor,
        gguf_file::{self, Value},
    },
};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

/// What to write.
pub struct Model<'a> {
    pub dtype: GgmlDType,
    pub architecture: &'static str,
    pub tied: bool,
    /// Metadata to set otherwise, or to leave out.
    pub change: Vec<(&'static str, Option<Value>)>,
    /// Tensors to leave out.
    pub without: Vec<&'a str>,
    /// Whether no token ends an answer.
    pub endless: bool,
    /// Whether each head's rows are reordered from the one rotary convention to the other.
    pub halves: bool,
}

impl Default for Model<'_> {
    fn default() -> Self {
        Self {
            dtype: GgmlDType::Q8_0,
            architecture: "llama",
            tied: true,
            change: Vec::new(),
            without: Vec::new(),
            endless: false,
            halves: false,
        }
    }
}

const WIDTH: usize = 256;
const HEADS: usize = 4;
const HEADS_KV: usize = 2;
const HEAD: usize = WIDTH / HEADS;
const LAYERS: usize = 2;

fn noise(name: &str, n: usize) -> Vec<f32> {
    let mut bytes = vec![0; 2 * n];
    blake3::Hasher::new().update(name.as_bytes()).finalize_xof().fill(&mut bytes);
    bytes.chunks_exact(2).map(|b| (f32::from(u16::from_le_bytes([b[0], b[1]])) / 65535.0 - 0.5) * 0.4).collect()
}

impl Model<'_> {
    /// The file.
    pub fn write(&self) -> Vec<u8> {
        // All bytes, a few words, and the tokens that frame a turn.
        let mut tokens: Vec<String> = ByteLevel::alphabet().into_iter().map(String::from).collect();
        tokens.sort();
        let merges = ["Ġ t", "h e", "Ġt he", "i n", "e r", "Ġ a", "o n", "r e"];
        tokens.extend(merges.iter().map(|m| m.replace(' ', "")));
        let normal = tokens.len();
        tokens.extend(
            if self.endless { ["<|turn|>", "<|over|>"] } else { ["<|im_start|>", "<|im_end|>"] }.map(String::from),
        );
        let vocabulary = 288;
        tokens.extend((tokens.len()..vocabulary).map(|i| format!("<|unused_{i}|>")));

        let text = |t: &str| Value::String(t.into());
        let number = |n: usize| Value::U32(n as u32);
        let a = self.architecture;
        let template = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}<|im_start|>assistant\n";
        let mut metadata: Vec<(String, Value)> = vec![
            ("general.architecture".into(), text(a)),
            ("general.name".into(), text("noise")),
            (format!("{a}.context_length"), number(1024)),
            (format!("{a}.embedding_length"), number(WIDTH)),
            (format!("{a}.block_count"), number(LAYERS)),
            (format!("{a}.feed_forward_length"), number(WIDTH)),
            (format!("{a}.attention.head_count"), number(HEADS)),
            (format!("{a}.attention.head_count_kv"), number(HEADS_KV)),
            (format!("{a}.rope.freq_base"), Value::F32(500_000.0)),
            (format!("{a}.attention.layer_norm_rms_epsilon"), Value::F32(1e-5)),
            ("tokenizer.ggml.model".into(), text("gpt2")),
            ("tokenizer.ggml.pre".into(), text("qwen2")),
            ("tokenizer.ggml.tokens".into(), Value::Array(tokens.iter().map(|t| text(t)).collect())),
            (
                "tokenizer.ggml.token_type".into(),
                Value::Array((0..vocabulary).map(|i| Value::I32(if i < normal { 1 } else { 3 })).collect()),
            ),
            ("tokenizer.ggml.merges".into(), Value::Array(merges.iter().map(|m| text(m)).collect())),
            ("tokenizer.ggml.eos_token_id".into(), number(normal + 1)),
            ("tokenizer.chat_template".into(), text(template)),
        ];
        if self.endless {
            metadata.retain(|(k, _)| k != "tokenizer.ggml.eos_token_id");
        }
        for (key, value) in &self.change {
            metadata.retain(|(k, _)| k != key);
            metadata.extend(value.clone().map(|v| (key.to_string(), v)));
        }

        let mut shapes: Vec<(String, Vec<usize>)> =
            vec![("token_embd.weight".into(), vec![vocabulary, WIDTH]), ("output_norm.weight".into(), vec![WIDTH])];
        if !self.tied {
            shapes.push(("output.weight".into(), vec![vocabulary, WIDTH]));
        }
        let kv = HEADS_KV * HEAD;
        for i in 0..LAYERS {
            let matrices = [
                ("attn_q", WIDTH),
                ("attn_k", kv),
                ("attn_v", kv),
                ("attn_output", WIDTH),
                ("ffn_gate", WIDTH),
                ("ffn_up", WIDTH),
                ("ffn_down", WIDTH),
            ];
            shapes.extend(matrices.map(|(part, rows)| (format!("blk.{i}.{part}.weight"), vec![rows, WIDTH])));
            shapes.extend(["attn_norm", "ffn_norm"].map(|part| (format!("blk.{i}.{part}.weight"), vec![WIDTH])));
            if a == "qwen2" {
                shapes.extend(
                    [("attn_q", WIDTH), ("attn_k", kv), ("attn_v", kv)]
                        .map(|(part, rows)| (format!("blk.{i}.{part}.bias"), vec![rows])),
                );
            }
        }
        shapes.retain(|(name, _)| !self.without.contains(&name.as_str()));
        let tensors: Vec<(String, QTensor)> =
            shapes.into_iter().map(|(name, shape)| (name.clone(), self.tensor(&name, &shape))).collect();
        let mut file = Cursor::new(Vec::new());
        let metadata: Vec<_> = metadata.iter().map(|(k, v)| (k.as_str(), v)).collect();
        let tensors: Vec<_> = tensors.iter().map(|(k, v)| (k.as_str(), v)).collect();
        gguf_file::write(&mut file, &metadata, &tensors).expect("memory takes it");
        file.into_inner()
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> QTensor {
        let mut values = noise(name, shape.iter().product());
        if name.contains("norm") {
            values.iter_mut().for_each(|v| *v += 1.0);
        }
        if self.halves && (name.contains("attn_q") || name.contains("attn_k")) {
            let row = shape.get(1).copied().unwrap_or(1);
            values = values
                .chunks(HEAD * row)
                .flat_map(|head| {
                    (0..HEAD)
                        .flat_map(|i| head[(i % (HEAD / 2) * 2 + i / (HEAD / 2)) * row..][..row].to_vec())
                        .collect::<Vec<_>>()
                })
                .collect();
        }
        let tensor = Tensor::from_vec(values, shape, &Device::Cpu).expect("the shape holds the values");
        QTensor::quantize(&tensor, if shape.len() == 1 { GgmlDType::F32 } else { self.dtype })
            .expect("rows fill blocks")
    }
}
