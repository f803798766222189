//! What can go wrong when a model is loaded or a request is handed in, and who has to act.
//! Invariant: a message names the metadata key, tensor or field at fault.

use thiserror::Error;

/// Why a GGUF could not be loaded. Nothing was started.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file could not be read.
    #[error("cannot read the model file: {0}")]
    Io(#[from] std::io::Error),
    /// The bytes are no well-formed GGUF: truncated, wrong magic, or lengths that cannot be true.
    #[error("not a valid GGUF: {0}")]
    Malformed(String),
    /// A metadata key that is needed is absent.
    #[error("the GGUF has no metadata key `{0}`")]
    MissingKey(String),
    /// A metadata key has a value of the wrong type or out of range.
    #[error("the GGUF's metadata key `{key}` is wrong: {reason}")]
    BadKey {
        /// The key.
        key: String,
        /// What is wrong with its value.
        reason: String,
    },
    /// The file is sound, but asks for something this engine does not have.
    #[error("the GGUF's metadata key `{key}` asks for `{value}`, which this engine does not support ({supported})")]
    Unsupported {
        /// The key.
        key: String,
        /// What it asks for.
        value: String,
        /// What would be supported.
        supported: &'static str,
    },
    /// A tensor is absent, has the wrong shape, or a type that this engine does not have.
    #[error("the GGUF's tensor `{tensor}` cannot be used: {reason}")]
    BadTensor {
        /// The tensor's name.
        tensor: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A field of [`crate::EngineConfig`] is out of range.
    #[error("the engine's setting `{field}` is wrong: {reason}")]
    BadConfig {
        /// The field.
        field: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// The tensor library failed.
    #[error("the model's weights cannot be set up: {0}")]
    Weights(#[from] candle_core::Error),
}

impl LoadError {
    pub(crate) fn bad_key(key: &str, reason: impl Into<String>) -> Self {
        Self::BadKey { key: key.into(), reason: reason.into() }
    }

    pub(crate) fn bad_tensor(tensor: &str, reason: impl Into<String>) -> Self {
        Self::BadTensor { tensor: tensor.into(), reason: reason.into() }
    }
}

/// Why a request was not taken. Nothing was started, and nothing will arrive.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SubmitError {
    /// The request's field is out of range: the caller's fault, the same request will fail again.
    #[error("`{field}` is out of range: {reason}")]
    OutOfRange {
        /// The field of [`crate::Request`].
        field: &'static str,
        /// What would be in range.
        reason: String,
    },
    /// The model has no chat template, so that it can only complete [`crate::Prompt::Text`].
    #[error("the model has no chat template (`tokenizer.chat_template`)")]
    NoTemplate,
    /// The model's chat template refuses these messages.
    #[error("the chat template refuses the messages: {0}")]
    BadTemplate(String),
    /// The text could not be split into tokens.
    #[error("the prompt cannot be tokenised: {0}")]
    Tokenize(String),
    /// Prompt and answer do not fit into the context: the caller's fault.
    #[error(
        "the prompt has {prompt_tokens} tokens and the answer so far {prefix_tokens}; the context of {context} leaves no room"
    )]
    ContextExceeded {
        /// Tokens of the prompt; a lower bound where the text was too long to be tokenised at all.
        prompt_tokens: usize,
        /// Tokens of the answer that was already delivered.
        prefix_tokens: usize,
        /// What fits, in tokens.
        context: usize,
    },
    /// Every slot and every place in the queue is taken: try again later.
    #[error("{running} requests run and {waiting} wait: the queue is full")]
    QueueFull {
        /// Sequences in slots.
        running: usize,
        /// Requests in the queue.
        waiting: usize,
    },
    /// The engine's thread has stopped.
    #[error("the engine has stopped")]
    Stopped,
}
