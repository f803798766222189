//! OpenAI's Responses for backends that have chats alone: the request as a chat, and the chat's answer as a response.
//! Invariant: what has no place in a chat and would change the answer is an error that names it.
//!
//! Source: OpenAI's public API reference, "Responses".

mod answer;
mod request;

pub use answer::ResponsesAnswer;
pub use request::{Echo, field_of, to_chat};
