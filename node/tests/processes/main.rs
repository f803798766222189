//! Tests with real processes of the built binary, all in one program so that it is linked once.

mod backend_by_url;
mod common;
mod demo;
mod gateway_killed;
mod recorded;
mod treasury;
#[cfg(feature = "validator")]
mod validators;
