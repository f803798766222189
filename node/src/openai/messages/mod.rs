//! Anthropic's Messages for backends that have chats alone: the request as a chat, and the chat's answer as a message.
//! Invariant: what has no place in a chat and would change the answer is an error that names it.
//!
//! Source: Anthropic's public API reference, "Messages".

mod answer;
mod request;

pub use answer::MessagesAnswer;
pub use request::{count_tokens, field_of, to_chat};
