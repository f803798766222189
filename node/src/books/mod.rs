//! The node's copy of the ledger: written by an authority or a committee, checked and kept by everyone else.
//!
//! What is always true here:
//! - A copy holds only blocks that the committee signed and that this node executed itself.
//! - A copy is durable before anybody hears of it: events, answers and gossip come after the disk.
//! - An account has one entry of this node under way at a time, and an entry is tried until it is in or refused; a retry
//!   never does a thing twice, because it carries the same business id.

#[cfg(feature = "validator")]
mod committee;
mod follow;
mod group;
mod handle;
mod serve;
mod solo;
mod submit;
#[cfg(test)]
mod tests;
mod wire;

pub use handle::{BookEvent, Books, BooksError, BooksRole};
pub use submit::EntryRefused;
pub use wire::{LedgerCall, LedgerReply, Notice, Remedy};
