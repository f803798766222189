//! Tables of the real world: what hosts ask for a model, and how far apart regions are.
//! Invariant: each is parsed once; what does not parse fails a test, not a run.

pub mod prices;
pub mod regions;
