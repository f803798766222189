//! The API's JSON: the one place that reads it. Requests become [`Request`]; answers stay the bytes the backend sent.
//! Invariant: what this room does not know passes through as it was written, numbers included.

pub mod aggregate;
pub mod blocks;
pub mod endpoint;
pub mod event;
pub mod fields;
pub mod form;
pub mod inputs;
pub mod measure;
pub mod messages;
pub mod named;
pub mod one_piece;
pub mod parts;
pub mod preference;
pub mod request;
pub mod responses;
pub mod sse;
pub mod stitch;
pub mod template;
pub mod tokens;
pub mod unify;

pub use aggregate::Aggregate;
pub use endpoint::{Answer, endpoint};
pub use fields::Fields;
pub use measure::text_of_event;
pub use preference::{ModelName, Routing};
pub use request::{BadRequest, Request};
pub use sse::SseParser;
pub use stitch::Stitch;
pub use tokens::Tokens;
