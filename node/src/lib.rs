//! The Spillway node: the only crate with sockets and tasks. It drives `spillway-protocol`'s machines with real ones.

pub mod audit;
pub mod backend;
pub mod books;
pub mod desk;
pub mod driver;
pub mod edge;
pub mod gateway;
pub mod jobs;
pub mod keystore;
mod market_view;
pub mod metrics;
pub mod network;
pub mod openai;
pub mod payouts;
pub mod peers;
pub mod records;
pub mod run;
pub mod telemetry;
