//! Writes the trained guide as a standard GGUF that any llama.cpp-based server loads as well.
//! Invariant: matrices are Q8_0, norms F32, and the file carries tokenizer and chat template.

use std::{fs::File, io::BufWriter, path::Path};

use anyhow::Result;
use candle_core::quantized::{
    GgmlDType, QTensor,
    gguf_file::{self, Value},
};

use crate::{
    network::{NORM_EPSILON, Network, ROPE_BASE},
    vocabulary::{END_OF_TURN, SPECIAL, Vocabulary},
};

/// ChatML, as llama.cpp knows it.
pub const TEMPLATE: &str = "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";

/// GGUF's number for "mostly Q8_0".
const FILE_TYPE_Q8_0: u32 = 7;
/// GGUF's numbers for a special token and for a normal one.
const TOKEN_CONTROL: i32 = 3;
const TOKEN_NORMAL: i32 = 1;

/// Writes `network` and `vocabulary` to `path`.
pub fn write(path: &Path, network: &Network, vocabulary: &Vocabulary) -> Result<()> {
    let s = network.shape;
    let text = |t: &str| Value::String(t.into());
    let number = |n: usize| Value::U32(n as u32);
    let texts = |of: &[String]| Value::Array(of.iter().map(|t| text(t)).collect());
    let kind = |id: usize| Value::I32(if id < SPECIAL.len() { TOKEN_CONTROL } else { TOKEN_NORMAL });
    let metadata = [
        ("general.architecture", text("llama")),
        ("general.name", text("guide")),
        ("general.type", text("model")),
        ("general.file_type", Value::U32(FILE_TYPE_Q8_0)),
        ("general.quantization_version", number(2)),
        ("llama.context_length", number(s.context)),
        ("llama.embedding_length", number(s.width)),
        ("llama.block_count", number(s.layers)),
        ("llama.feed_forward_length", number(s.feed_forward)),
        ("llama.attention.head_count", number(s.heads)),
        ("llama.attention.head_count_kv", number(s.heads_kv)),
        ("llama.rope.dimension_count", number(s.width / s.heads)),
        ("llama.rope.freq_base", Value::F32(ROPE_BASE)),
        ("llama.attention.layer_norm_rms_epsilon", Value::F32(NORM_EPSILON)),
        ("llama.vocab_size", number(s.vocabulary)),
        ("tokenizer.ggml.model", text("gpt2")),
        ("tokenizer.ggml.pre", text("gpt-2")),
        ("tokenizer.ggml.tokens", texts(&vocabulary.tokens)),
        ("tokenizer.ggml.token_type", Value::Array((0..vocabulary.tokens.len()).map(kind).collect())),
        ("tokenizer.ggml.merges", texts(&vocabulary.merges)),
        ("tokenizer.ggml.bos_token_id", number(0)),
        ("tokenizer.ggml.eos_token_id", number(END_OF_TURN)),
        ("tokenizer.ggml.padding_token_id", number(0)),
        ("tokenizer.ggml.add_bos_token", Value::Bool(false)),
        ("tokenizer.chat_template", text(TEMPLATE)),
    ];
    let tensors = network
        .parameters
        .iter()
        .map(|(name, var)| {
            let dtype = if var.rank() == 1 { GgmlDType::F32 } else { GgmlDType::Q8_0 };
            Ok((name.as_str(), QTensor::quantize(var.as_tensor(), dtype)?))
        })
        .collect::<Result<Vec<_>>>()?;
    let metadata: Vec<_> = metadata.iter().map(|(k, v)| (*k, v)).collect();
    let tensors: Vec<_> = tensors.iter().map(|(k, v)| (*k, v)).collect();
    gguf_file::write(&mut BufWriter::new(File::create(path)?), &metadata, &tensors)?;
    Ok(())
}
