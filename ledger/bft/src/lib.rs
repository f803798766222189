//! Byzantine ordering of the ledger: a committee of validators, of which fewer than a third may lie, on the Malachite
//! engine.
//!
//! What is always true here:
//! - Validators sign ledger documents only, so what the engine decides is a certified block that anyone can check.
//! - No block is voted for that re-execution has not found to follow from the stored ones.
//! - A decided block is on the disk before the next height begins.
//!
//! [`Validator::start`] is the way in; [`Host`] is what it needs from the program around it.

mod app;
mod codec;
mod context;
mod held;
mod host;
mod part;
mod pool;
mod progress;
mod settings;
mod signer;
#[cfg(test)]
mod tests;
mod validator;
mod wire;

pub use app::Failure;
pub use host::{Host, lock};
pub use settings::{Settings, SettingsError};
pub use validator::{LOG_FILE, StartError, Validator};
