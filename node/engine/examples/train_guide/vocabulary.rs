//! Trains the guide's byte-level BPE on its corpus, and hands out the pieces that a GGUF stores.
//! Invariant: the three special tokens have the ids 0, 1 and 2, and every byte can be encoded.

use anyhow::{Context, Result, anyhow};
use tokenizers::{
    AddedToken, Tokenizer,
    models::{
        TrainerWrapper,
        bpe::{BPE, BpeTrainerBuilder},
    },
    pre_tokenizers::byte_level::ByteLevel,
};

/// The special tokens in the order of their ids: padding and start, start of a turn, end of a turn.
pub const SPECIAL: [&str; 3] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"];
/// The token that ends an answer.
pub const END_OF_TURN: usize = 2;

/// A trained vocabulary.
pub struct Vocabulary {
    tokenizer: Tokenizer,
    /// Token texts in the byte-level alphabet, by id.
    pub tokens: Vec<String>,
    /// Merges in order of rank, as `left right`.
    pub merges: Vec<String>,
}

impl Vocabulary {
    /// Trains `size` tokens on `texts`.
    pub fn train(size: usize, texts: &[String]) -> Result<Self> {
        let special: Vec<AddedToken> = SPECIAL.iter().map(|s| AddedToken::from(*s, true)).collect();
        let mut tokenizer = Tokenizer::new(BPE::default());
        tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
        tokenizer.with_decoder(Some(ByteLevel::default()));
        let mut trainer: TrainerWrapper = BpeTrainerBuilder::new()
            .vocab_size(size)
            .show_progress(false)
            .special_tokens(special.clone())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build()
            .into();
        tokenizer.train(&mut trainer, texts.iter().map(String::as_str)).map_err(|e| anyhow!(e))?;
        tokenizer.add_special_tokens(special).map_err(|e| anyhow!(e))?;

        let mut tokens = vec![String::new(); tokenizer.get_vocab_size(true)];
        for (text, id) in tokenizer.get_vocab(true) {
            tokens[id as usize] = text;
        }
        let json: serde_json::Value = serde_json::from_str(&tokenizer.to_string(false).map_err(|e| anyhow!(e))?)?;
        let merges = json["model"]["merges"]
            .as_array()
            .context("the tokenizer has no merges")?
            .iter()
            .map(|m| Some(format!("{} {}", m[0].as_str()?, m[1].as_str()?)))
            .collect::<Option<Vec<_>>>()
            .context("a merge is not a pair of strings")?;
        Ok(Self { tokenizer, tokens, merges })
    }

    /// The ids of `text`; special tokens are recognised in it.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(text, false).map_err(|e| anyhow!(e))?.get_ids().to_vec())
    }
}
