//! Local Spillway networks of real processes: genesis, topologies, supervision, the demo.
//!
//! Every node is the shipped `spillway` binary in a process and a folder of its own. This crate talks to a node the way
//! anyone can: its ready line, HTTP, QUIC and signals. It never reaches into a node's memory, so what it shows is what
//! users get.

pub mod admin;
pub mod bench;
pub mod client;
pub mod demo;
pub mod detached;
pub mod genesis;
pub mod process;
pub mod statement;
pub mod testnet;
pub mod topology;
pub mod wait;

pub use admin::Admin;
pub use client::{ChatStream, OpenAi};
pub use process::{Node, Ready};
pub use statement::Statement;
pub use testnet::Testnet;
pub use topology::{Plan, Topology};
pub use wait::until;
