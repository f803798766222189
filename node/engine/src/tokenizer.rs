//! Byte-level BPE built from a GGUF's own metadata: text to tokens, and tokens to the bytes they stand for.
//! Invariant: ids are the GGUF's ids, and the bytes of a text's tokens, one after another, are the text.
//! Sources: the GGUF specification for the keys; llama.cpp's `llama-vocab.cpp` for how each `tokenizer.ggml.pre` splits.

use std::{
    collections::BTreeSet,
    io::{Read, Seek},
};

use tokenizers::{
    AddedToken, PreTokenizerWrapper, Tokenizer as Bpe,
    models::bpe::BpeBuilder,
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
    tokenizer::SplitDelimiterBehavior,
};

use crate::{
    error::{LoadError, SubmitError},
    gguf::Gguf,
};

const MODEL: &str = "tokenizer.ggml.model";
const PRE: &str = "tokenizer.ggml.pre";
const TOKENS: &str = "tokenizer.ggml.tokens";
const TYPES: &str = "tokenizer.ggml.token_type";
const MERGES: &str = "tokenizer.ggml.merges";
/// Largest vocabulary, in tokens; the largest in use have about 260,000.
const TOKENS_MAX: usize = 1 << 20;
/// Longest token, in bytes of its text in the byte-level alphabet.
const TOKEN_LENGTH_MAX: usize = 4096;

/// GGUF's number for a control token: recognised in text, and never shown.
const TYPE_CONTROL: i64 = 3;
/// GGUF's number for a token that was added by hand: recognised in text, and shown as it is.
const TYPE_USER_DEFINED: i64 = 4;

/// Control tokens that end an answer whatever the metadata say: llama.cpp stops at them, too.
const ENDS: [&str; 6] = ["<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>", "</s>"];

const SPLIT_LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SPLIT_QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const SPLIT_DIGIT: &str = r"\p{N}";

/// A text's tokens.
pub(crate) struct Encoded {
    /// The ids.
    pub(crate) ids: Vec<u32>,
    /// How many ids at the end belong to the last word: those a longer text might split otherwise.
    pub(crate) last_word: usize,
}

/// A vocabulary with its rules.
pub(crate) struct Tokenizer {
    bpe: Bpe,
    /// What each token stands for; empty for control tokens.
    bytes: Vec<Box<[u8]>>,
    longest: usize,
    texts: Vec<String>,
    ends: BTreeSet<u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    digest: [u8; 32],
}

fn pre_tokenizer(name: &str) -> Result<(PreTokenizerWrapper, bool), LoadError> {
    let wrong = |e: tokenizers::Error| LoadError::bad_key(PRE, e.to_string());
    let split = |pattern: &str| {
        Split::new(SplitPattern::Regex(pattern.into()), SplitDelimiterBehavior::Isolated, false)
            .map(PreTokenizerWrapper::Split)
            .map_err(wrong)
    };
    let bytes_only = || PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, false));
    let gpt2 = || PreTokenizerWrapper::ByteLevel(ByteLevel::new(false, true, true));
    let after = |first: PreTokenizerWrapper, then: PreTokenizerWrapper| {
        PreTokenizerWrapper::Sequence(Sequence::new(vec![first, then]))
    };
    // The flag says whether a word that is a token is taken whole, whatever the merges say.
    Ok(match name {
        "gpt-2" | "phi-2" => (gpt2(), false),
        "llama-bpe" | "llama3" | "llama-v3" => (after(split(SPLIT_LLAMA3)?, bytes_only()), true),
        "qwen2" | "deepseek-r1-qwen" => (after(split(SPLIT_QWEN2)?, bytes_only()), false),
        "smollm" | "starcoder" | "refact" => (after(split(SPLIT_DIGIT)?, gpt2()), false),
        other => {
            return Err(LoadError::Unsupported {
                key: PRE.into(),
                value: other.into(),
                supported: "supported: gpt-2, llama-bpe, qwen2, smollm",
            });
        }
    })
}

/// The byte that `c` stands for in GPT-2's alphabet: printable Latin-1 is itself, the rest is shifted to U+0100 and on.
fn byte_of(c: char) -> Option<u8> {
    let printable = |b: u32| matches!(b, 0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF);
    let code = u32::from(c);
    if code < 256 {
        return printable(code).then_some(code as u8);
    }
    let shifted = usize::try_from(code - 256).ok()?;
    (0..=255u8).filter(|b| !printable(u32::from(*b))).nth(shifted)
}

impl Tokenizer {
    /// Builds the tokenizer that `gguf` describes.
    pub(crate) fn load<R: Read + Seek>(gguf: &Gguf<R>) -> Result<Self, LoadError> {
        let model = gguf.text(MODEL)?.ok_or_else(|| LoadError::MissingKey(MODEL.into()))?;
        if model != "gpt2" {
            return Err(LoadError::Unsupported {
                key: MODEL.into(),
                value: model.into(),
                supported: "supported: gpt2, byte-level BPE",
            });
        }
        let pre = gguf.text(PRE)?.ok_or_else(|| LoadError::MissingKey(PRE.into()))?;
        let (pre_tokenizer, whole_words) = pre_tokenizer(pre)?;
        let texts = gguf.texts(TOKENS)?.to_vec();
        if texts.is_empty() || texts.len() > TOKENS_MAX {
            return Err(LoadError::bad_key(TOKENS, format!("{} tokens (1 to {TOKENS_MAX})", texts.len())));
        }
        let types = gguf.integers(TYPES)?.unwrap_or(&[]);
        if !types.is_empty() && types.len() != texts.len() {
            return Err(LoadError::bad_key(TYPES, format!("{} types for {} tokens", types.len(), texts.len())));
        }
        let kind = |id: usize| types.get(id).copied().unwrap_or(1);

        let mut vocabulary = std::collections::HashMap::new();
        let mut bytes: Vec<Box<[u8]>> = Vec::with_capacity(texts.len());
        let mut added = Vec::new();
        for (id, text) in texts.iter().enumerate() {
            if text.is_empty() || text.len() > TOKEN_LENGTH_MAX {
                return Err(LoadError::bad_key(
                    TOKENS,
                    format!("token {id} has {} bytes (1 to {TOKEN_LENGTH_MAX})", text.len()),
                ));
            }
            if vocabulary.insert(text.clone(), id as u32).is_some() {
                return Err(LoadError::bad_key(TOKENS, format!("token {id} `{text}` appears twice")));
            }
            bytes.push(match kind(id) {
                TYPE_CONTROL => {
                    added.push(AddedToken::from(text.clone(), true));
                    Box::default()
                }
                TYPE_USER_DEFINED => {
                    added.push(AddedToken::from(text.clone(), false).normalized(false));
                    text.as_bytes().into()
                }
                // A normal token is written in the byte-level alphabet; what is not, is meant literally.
                _ => text.chars().map(byte_of).collect::<Option<Box<[u8]>>>().unwrap_or_else(|| text.as_bytes().into()),
            });
        }
        // Bytes that no UTF-8 text has may be absent.
        let single: BTreeSet<u8> = bytes.iter().filter_map(|t| if let [b] = **t { Some(b) } else { None }).collect();
        let mut needed = (0..=255u8).filter(|b| !matches!(b, 0xC0 | 0xC1 | 0xF5..=0xFF));
        if let Some(byte) = needed.find(|b| !single.contains(b)) {
            return Err(LoadError::bad_key(TOKENS, format!("no token stands for the byte {byte:#04x}")));
        }
        let mut merges = Vec::new();
        for merge in gguf.texts(MERGES)? {
            let pair = merge.split_once(' ').filter(|(a, b)| {
                vocabulary.contains_key(*a)
                    && vocabulary.contains_key(*b)
                    && vocabulary.contains_key(&format!("{a}{b}"))
            });
            let Some((a, b)) = pair else {
                return Err(LoadError::bad_key(MERGES, format!("`{merge}` does not join two tokens to a third")));
            };
            merges.push((a.to_string(), b.to_string()));
        }

        let special = |key: &str| -> Result<Option<u32>, LoadError> {
            let id = gguf.count(key, texts.len() - 1)?;
            Ok(id.map(|id| id as u32))
        };
        let bos = special("tokenizer.ggml.bos_token_id")?;
        let eos = special("tokenizer.ggml.eos_token_id")?;
        let mut ends: BTreeSet<u32> =
            [eos, special("tokenizer.ggml.eot_token_id")?, special("tokenizer.ggml.eom_token_id")?]
                .into_iter()
                .flatten()
                .collect();
        ends.extend(
            ENDS.iter()
                .filter_map(|text| vocabulary.get(*text).copied())
                .filter(|id| kind(*id as usize) == TYPE_CONTROL),
        );
        let add_bos = gguf.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(whole_words) && bos.is_some();

        let mut digest = blake3::Hasher::new();
        for part in [model, pre]
            .into_iter()
            .chain(texts.iter().map(String::as_str))
            .chain(gguf.texts(MERGES)?.iter().map(String::as_str))
        {
            digest.update(&(part.len() as u64).to_le_bytes());
            digest.update(part.as_bytes());
        }
        for id in 0..texts.len() {
            digest.update(&kind(id).to_le_bytes());
        }
        for id in [bos, eos] {
            digest.update(&id.map_or(u64::MAX, u64::from).to_le_bytes());
        }

        let wrong = |e: tokenizers::Error| LoadError::bad_key(MERGES, e.to_string());
        let model = BpeBuilder::new()
            .vocab_and_merges(vocabulary.into_iter().collect::<tokenizers::models::bpe::Vocab>(), merges)
            .ignore_merges(whole_words)
            .build()
            .map_err(wrong)?;
        let mut bpe = Bpe::new(model);
        bpe.with_pre_tokenizer(Some(pre_tokenizer));
        bpe.add_tokens(added).map_err(wrong)?;
        let longest =
            bytes.iter().map(|b| b.len()).max().unwrap_or(1).max(texts.iter().map(String::len).max().unwrap_or(1));
        Ok(Self { bpe, bytes, longest, texts, ends, bos, eos, add_bos, digest: *digest.finalize().as_bytes() })
    }

    /// Splits `text`; control tokens are recognised in it, none is added.
    pub(crate) fn encode(&self, text: &str) -> Result<Encoded, SubmitError> {
        let encoding = self.bpe.encode_fast(text, false).map_err(|e| SubmitError::Tokenize(e.to_string()))?;
        let words = encoding.get_word_ids();
        let last_word = words.iter().rev().take_while(|w| Some(*w) == words.last()).count();
        Ok(Encoded { ids: encoding.get_ids().to_vec(), last_word })
    }

    /// Splits a prompt: like [`Self::encode`], with the token that starts a document where the model wants it.
    pub(crate) fn encode_prompt(&self, text: &str) -> Result<Vec<u32>, SubmitError> {
        let mut ids = self.encode(text)?.ids;
        if self.add_bos && ids.first().copied() != self.bos {
            ids.splice(0..0, self.bos);
        }
        Ok(ids)
    }

    /// The fewest tokens that `bytes` bytes can become.
    pub(crate) fn fewest(&self, bytes: usize) -> usize {
        bytes / self.longest
    }

    /// What `id` stands for; empty for control tokens.
    pub(crate) fn bytes(&self, id: u32) -> &[u8] {
        self.bytes.get(id as usize).map_or(&[], |b| b)
    }

    /// Whether `id` ends an answer.
    pub(crate) fn is_end(&self, id: u32) -> bool {
        self.ends.contains(&id)
    }

    /// Tokens in the vocabulary.
    pub(crate) fn size(&self) -> usize {
        self.texts.len()
    }

    /// Texts of the tokens that start and end a document; empty where there are none.
    pub(crate) fn bos_eos(&self) -> (&str, &str) {
        let text = |id: Option<u32>| id.map_or("", |id| &self.texts[id as usize]);
        (text(self.bos), text(self.eos))
    }

    /// blake3 over model, split, tokens, merges, types and special ids.
    pub(crate) fn digest(&self) -> [u8; 32] {
        self.digest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_covers_every_byte_once() {
        let alphabet = ByteLevel::alphabet();
        let bytes: BTreeSet<u8> = alphabet.iter().filter_map(|c| byte_of(*c)).collect();
        assert_eq!((alphabet.len(), bytes.len()), (256, 256));
        for (c, want) in [
            ('Ġ', Some(b' ')),
            ('Ċ', Some(b'\n')),
            ('a', Some(b'a')),
            ('é', Some(0xE9)),
            ('Ń', Some(0xAD)),
            ('ń', None),
            (' ', None),
            ('漢', None),
        ] {
            assert_eq!(byte_of(c), want, "{c:?}");
        }
    }

    /// Splits as the published tokenizers do; the cases are those of llama.cpp's regex comments.
    #[test]
    fn text_is_split_as_its_model_was_trained() {
        use tokenizers::{OffsetReferential, OffsetType, PreTokenizedString, PreTokenizer};
        let cases: [(&str, &str, &[&str]); 4] = [
            ("gpt-2", "it's 12345  days\n\nok!", &["it", "'s", " 12345", " ", " days", "\n", "\n", "ok", "!"]),
            ("llama-bpe", "it's 12345  days\n\nok!", &["it", "'s", " ", "123", "45", " ", " days", "\n\n", "ok", "!"]),
            ("qwen2", "IT'S 12  days\n\nok!", &["IT", "'S", " ", "1", "2", " ", " days", "\n\n", "ok", "!"]),
            ("smollm", "a 12 b", &["a", " ", "1", "2", " b"]),
        ];
        for (pre, text, want) in cases {
            let (splitter, _) = pre_tokenizer(pre).expect(pre);
            let mut string = PreTokenizedString::from(text);
            splitter.pre_tokenize(&mut string).expect(pre);
            let words: Vec<String> = string
                .get_splits(OffsetReferential::Original, OffsetType::Byte)
                .into_iter()
                .map(|(word, ..)| {
                    String::from_utf8(word.chars().filter_map(byte_of).collect()).expect("text stays text")
                })
                .collect();
            assert_eq!(words, want, "{pre}");
        }
        assert!(
            pre_tokenizer("tekken").is_err_and(|e| e.to_string().contains("`tokenizer.ggml.pre` asks for `tekken`"))
        );
    }
}
