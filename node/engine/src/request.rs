//! What is asked of an engine, and what it tells about the model it runs.
//! Invariant: a request that passes [`Request::check`] can be sampled from without further checks.

use crate::error::SubmitError;

/// Most stop strings in a request.
pub const STOPS_MAX: usize = 16;
/// Longest stop string, in bytes: as much text as may be held back.
pub const STOP_LENGTH_MAX: usize = 256;
/// Most alternatives that [`Request::logprobs`] may ask for.
pub const LOGPROBS_MAX: usize = 20;
/// Highest temperature.
pub const TEMPERATURE_MAX: f32 = 100.0;

/// One message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatMessage {
    /// `system`, `user`, `assistant`, or what else the model's template knows.
    pub role: String,
    /// What was said.
    pub content: String,
}

/// What the model goes on from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Prompt {
    /// A conversation, set by the model's own chat template; the answer is the assistant's next turn.
    Chat(Vec<ChatMessage>),
    /// Text to complete, as it is.
    Text(String),
}

/// One answer to generate.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// What the model goes on from.
    pub prompt: Prompt,
    /// Text of the answer that was already delivered. Generation goes on right after it, and gives the text that an
    /// uninterrupted run with the same seed would have given, wherever the cut was; it is not sent again.
    /// This holds as long as the model had split the words before the last one as its tokenizer splits text.
    pub prefix: String,
    /// Most tokens of the whole answer, those of `prefix` included; `None` for what the context holds.
    pub max_tokens: Option<usize>,
    /// 0 takes the likeliest token always; 1 samples as the model was trained.
    pub temperature: f32,
    /// Samples only from the likeliest tokens that together have this probability: above 0, up to 1.
    pub top_p: f32,
    /// What sampling depends on, together with a token's place in the answer.
    pub seed: u64,
    /// Texts that end the answer; they are not sent, nor is any part of them.
    pub stop: Vec<String>,
    /// Log-probabilities: of each chosen token, and of so many of the likeliest.
    pub logprobs: Option<usize>,
}

impl Request {
    /// A greedy request with no limits of its own.
    pub fn new(prompt: Prompt) -> Self {
        Self {
            prompt,
            prefix: String::new(),
            max_tokens: None,
            temperature: 0.0,
            top_p: 1.0,
            seed: 0,
            stop: Vec::new(),
            logprobs: None,
        }
    }

    /// A greedy request with one message of a user.
    pub fn ask(question: impl Into<String>) -> Self {
        Self::new(Prompt::Chat(vec![ChatMessage { role: "user".into(), content: question.into() }]))
    }

    pub(crate) fn check(&self) -> Result<(), SubmitError> {
        let wrong = |field, reason: String| Err(SubmitError::OutOfRange { field, reason });
        if !(0.0..=TEMPERATURE_MAX).contains(&self.temperature) {
            return wrong("temperature", format!("{} is not within 0 and {TEMPERATURE_MAX}", self.temperature));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong("top_p", format!("{} is not above 0 and at most 1", self.top_p));
        }
        if self.max_tokens == Some(0) {
            return wrong("max_tokens", "an answer has at least 1 token".into());
        }
        if self.stop.len() > STOPS_MAX {
            return wrong("stop", format!("{} texts (most: {STOPS_MAX})", self.stop.len()));
        }
        if let Some(stop) = self.stop.iter().find(|s| s.is_empty() || s.len() > STOP_LENGTH_MAX) {
            return wrong("stop", format!("a text of {} bytes (1 to {STOP_LENGTH_MAX})", stop.len()));
        }
        match self.logprobs {
            Some(n) if n > LOGPROBS_MAX => wrong("logprobs", format!("{n} alternatives (most: {LOGPROBS_MAX})")),
            Some(_) | None => Ok(()),
        }
    }
}

/// What a loaded model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelInfo {
    /// `general.name` of the file.
    pub name: String,
    /// `general.architecture` of the file.
    pub architecture: String,
    /// Numbers in its tensors.
    pub parameters: u64,
    /// How the matrices are stored while they are used, for example `Q8_0`; unquantised files are quantised to that on load.
    pub quantization: String,
    /// Most tokens of prompt and answer together: the model's own limit, or the operator's if that is lower.
    pub context_length: usize,
    /// blake3 of the whole file.
    pub weights_digest: [u8; 32],
    /// blake3 of what decides how text is split: two files that count alike have the same.
    pub tokenizer_digest: [u8; 32],
    /// blake3 of the chat template; of nothing where there is none.
    pub template_digest: [u8; 32],
}
