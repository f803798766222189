//! A provider's inference engine as a step model: continuous batching, chunked prefill, KV blocks, prefix cache, preemption.
//! Invariant: what [`Engine`] tells follows from what was submitted and cancelled, and when; nothing else.
//!
//! The order of scheduling is that of vLLM v1. Formula, validation and limits: `docs/simulator.md`, "The GPU".

mod fit;
mod kv;
mod machine;
mod predict;
mod presets;
mod sequence;
mod step;
#[cfg(test)]
mod tests;

pub use machine::{Engine, EngineRules, Load, Progress, RulesError};
pub use presets::{Preset, preset, presets};
pub use step::{Batch, Chunk, StepModel};
