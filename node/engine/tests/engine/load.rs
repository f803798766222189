//! Files that are no model of ours are refused by name, and none brings the process down.

use candle_core::quantized::gguf_file::Value;
use spillway_engine::{Engine, EngineConfig, LoadError, Prompt, Request};

use crate::{answer, noise::Model};

fn config() -> EngineConfig {
    EngineConfig { slots: 1, threads: Some(1), ..EngineConfig::default() }
}

fn refused(what: &str, file: &[u8]) -> String {
    match Engine::load_bytes(file, config()) {
        Ok(_) => panic!("{what}: loaded"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn what_is_not_supported_is_named() {
    let text = |t: &str| Some(Value::String(t.into()));
    let number = |n: u32| Some(Value::U32(n));
    let texts = |of: &[&str]| Some(Value::Array(of.iter().map(|t| Value::String(t.to_string())).collect()));
    let cases: Vec<(&str, Option<Value>, &str)> = vec![
        ("general.architecture", text("mamba"), "`general.architecture` asks for `mamba`"),
        ("general.architecture", None, "no metadata key `general.architecture`"),
        ("tokenizer.ggml.model", text("llama"), "`tokenizer.ggml.model` asks for `llama`"),
        ("tokenizer.ggml.pre", text("tekken"), "`tokenizer.ggml.pre` asks for `tekken`"),
        ("tokenizer.ggml.tokens", None, "no metadata key `tokenizer.ggml.tokens`"),
        ("tokenizer.ggml.tokens", texts(&["a", "b"]), "`tokenizer.ggml.token_type`"),
        ("tokenizer.ggml.merges", texts(&["zz zz"]), "`zz zz` does not join two tokens"),
        ("tokenizer.ggml.eos_token_id", number(288), "`tokenizer.ggml.eos_token_id`"),
        ("tokenizer.chat_template", text("{% if %}"), "`tokenizer.chat_template`"),
        ("llama.embedding_length", number(0), "`llama.embedding_length`"),
        ("llama.embedding_length", number(128), "tensor `token_embd.weight` cannot be used"),
        ("llama.embedding_length", number(u32::MAX), "`llama.embedding_length`"),
        ("llama.block_count", number(3), "tensor `blk.2.ffn_gate.weight` cannot be used: it is absent"),
        (
            "llama.block_count",
            number(1),
            "tensor `blk.1.attn_k.weight` cannot be used: `llama` as this engine knows it has no such tensor",
        ),
        ("llama.attention.head_count", number(3), "`llama.attention.head_count_kv`"),
        ("llama.attention.head_count_kv", number(0), "`llama.attention.head_count_kv`"),
        (
            "llama.attention.layer_norm_rms_epsilon",
            Some(Value::F32(f32::NAN)),
            "`llama.attention.layer_norm_rms_epsilon`",
        ),
        ("llama.rope.freq_base", Some(Value::F32(0.0)), "`llama.rope.freq_base`"),
        ("llama.rope.dimension_count", number(7), "`llama.rope.dimension_count`"),
        ("llama.rope.scaling.type", text("yarn"), "`llama.rope.scaling.type` asks for `yarn`"),
        ("llama.expert_count", number(8), "`llama.expert_count`"),
        ("llama.context_length", text("long"), "`llama.context_length`"),
    ];
    for (key, value, want) in cases {
        let message = refused(key, &Model { change: vec![(key, value)], ..Model::default() }.write());
        assert!(message.contains(want), "{key}: {message}");
    }
    let message = refused("norm", &Model { without: vec!["blk.1.ffn_norm.weight"], ..Model::default() }.write());
    assert!(message.contains("tensor `blk.1.ffn_norm.weight` cannot be used: it is absent"), "{message}");
}

#[test]
fn settings_out_of_range_are_named() {
    let file = Model::default().write();
    let cases = [
        ("slots", EngineConfig { slots: 0, ..config() }),
        ("waiting_max", EngineConfig { waiting_max: usize::MAX, ..config() }),
        ("threads", EngineConfig { threads: Some(0), ..config() }),
        ("context_max", EngineConfig { context_max: Some(1), ..config() }),
        ("tokens_per_second", EngineConfig { tokens_per_second: Some(0.0), ..config() }),
        ("tokens_per_second", EngineConfig { tokens_per_second: Some(f64::NAN), ..config() }),
    ];
    for (field, config) in cases {
        match Engine::load_bytes(&file, config) {
            Err(LoadError::BadConfig { field: got, .. }) => assert_eq!(got, field),
            Err(other) => panic!("{field}: {other}"),
            Ok(_) => panic!("{field}: accepted"),
        }
    }
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let file = Model::default().write();
    for length in (0..4096).chain((4096..file.len()).step_by(9973)) {
        refused(&format!("cut to {length} bytes"), &file[..length]);
    }
}

/// Bytes of the header changed at random: refused or loaded, never a panic; and what loads, answers or fails in words.
#[test]
fn a_damaged_header_does_no_harm() {
    let whole = Model::default().write();
    let header = 6000;
    let mut loaded = 0;
    for seed in 0..600u32 {
        let mut file = whole.clone();
        let random = blake3::hash(&seed.to_le_bytes());
        for change in random.as_bytes().chunks_exact(4).take(1 + seed as usize % 3) {
            let at = u16::from_le_bytes([change[0], change[1]]) as usize % header;
            file[at] = if change[2] < 128 { change[3] } else { 0xFF };
        }
        if let Ok(engine) = Engine::load_bytes(&file, config()) {
            loaded += 1;
            let request = Request { max_tokens: Some(3), ..Request::new(Prompt::Text("the".into())) };
            if let Ok(mut generation) = engine.submit(request) {
                while generation.blocking_next().is_some() {}
            }
        }
    }
    assert!(
        loaded > 0 && loaded < 600,
        "{loaded} of 600 loaded: the damage was too great or too small to show anything"
    );
}

/// The same network in the two rotary conventions, its heads' rows reordered to match, has the same opinion of what comes
/// next; without the reordering it has another.
#[test]
fn both_rotary_conventions_are_right() {
    let biases: Vec<String> = (0..2).flat_map(|i| ["q", "k", "v"].map(|p| format!("blk.{i}.attn_{p}.bias"))).collect();
    let opinions = |architecture, halves| -> Vec<f32> {
        let without = biases.iter().map(String::as_str).collect();
        let file = Model { architecture, halves, without, ..Model::default() }.write();
        let engine = Engine::load_bytes(&file, config()).expect(architecture);
        let request = Request {
            max_tokens: Some(1),
            logprobs: Some(20),
            ..Request::new(Prompt::Text("the inner ring on there".into()))
        };
        let mut top = answer(&engine, request).tokens[0].top.clone();
        top.sort_by_key(|t| t.id);
        top.iter().map(|t| t.id as f32 + t.logprob / 100.0).collect()
    };
    let apart = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    let (llama, qwen, wrong) = (opinions("llama", false), opinions("qwen2", true), opinions("qwen2", false));
    // The sums run in another order, and quantised vectors magnify that a little.
    assert!(apart(&llama, &qwen) < 0.002, "{llama:?} {qwen:?}");
    assert!(apart(&llama, &wrong) > 0.1, "{llama:?} {wrong:?}");
}

#[test]
fn a_file_on_disk_is_the_same_model() {
    let bytes = Model::default().write();
    let path = std::env::temp_dir().join(format!("spillway-engine-{}.gguf", std::process::id()));
    std::fs::write(&path, &bytes).expect("the temporary folder takes a file");
    let (file, memory) = (
        Engine::load_file(&path, config()).expect("from disk"),
        Engine::load_bytes(&bytes, config()).expect("from memory"),
    );
    std::fs::remove_file(&path).expect("it is ours");
    assert_eq!(file.info(), memory.info());
    assert_eq!(file.info().weights_digest, *blake3::hash(&bytes).as_bytes());
    assert!(matches!(Engine::load_file(&path, config()), Err(LoadError::Io(_))));
}
