//! The QUIC edge: for programs that have jobs and no node. One connection, one stream a job.
//! Invariant: a client knows its node by the peer id alone; keys, budgets and limits are the gateway's, as over HTTP.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use futures::StreamExt;
//! use spillway_node::edge::{Client, EdgeFrame, EdgeJob};
//!
//! let client = Client::connect("/ip4/127.0.0.1/udp/4601/quic-v1/p2p/12D3KooW…").await?;
//! let body = br#"{"model": "guide", "messages": [{"role": "user", "content": "what is spill-over?"}]}"#;
//! let job = EdgeJob { key: "sk-spillway-…".into(), kind: spillway_protocol::Kind::Chat, body: body.to_vec() };
//! let mut frames = client.submit(job).await?;
//! while let Some(frame) = frames.next().await {
//!     if let EdgeFrame::Chunk(event) = frame? {
//!         println!("{}", String::from_utf8_lossy(&event));
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod client;
mod server;
#[cfg(test)]
mod tests;
mod wire;

pub use client::{Client, EdgeError, Frames};
pub use server::{EdgeHandler, EdgeServer, EdgeServerError, EdgeWork};
pub use wire::{EdgeFrame, EdgeJob};
