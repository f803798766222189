//! A store for what can be rebuilt: known peers, prices seen, answers kept. Losing all of it costs time and nothing else.
//!
//! What is always true here:
//! - [`Cache::open`] gives a cache, empty if need be, whatever lies in the folder; it fails only where another process has
//!   it open, or where the folder cannot be written.
//! - A value that is read is one that was put under that key: a damaged one is a miss.
//! - Entries, bytes and the space on the disk are bounded.
//!
//! It lies on sled 0.34, which acknowledges before the disk has it, and of which one kill in some hundreds leaves a folder
//! that it cannot open: `docs/storage.md`, "The cache".

mod cache;
mod engine;
mod record;
#[cfg(test)]
mod tests;

pub use cache::{Cache, CacheError, KEY_BYTES_MAX, Limits, VALUE_BYTES_MAX};
