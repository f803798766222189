//! What every fuzz target shares: an allocator that counts, the laws of a decoder, and a small world of fixed keys.
//! Invariant: a decoder that breaks a law, or asks for more memory than its limit, panics; so libFuzzer keeps the bytes.

mod allocator;
mod laws;
mod world;

pub use allocator::watched;
pub use laws::{document, memory_max, signed};
pub use world::{Cast, START_MS, cast};
