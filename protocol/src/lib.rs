//! What Spillway peers say to each other and decide, as machines without I/O.
//!
//! [`Peer`] is a whole node's market logic: it takes [`Event`]s and time, and gives [`Effect`]s. The node drives it with
//! sockets and disks, the simulator with virtual ones; neither can tell the other apart.
//! Nothing here reads a clock, a disk, a socket or a random source.

pub mod config;
mod consumer;
mod context;
mod crowd;
pub mod directory;
pub mod discovery;
pub mod earn;
pub mod event;
pub mod job;
pub mod known;
pub mod offer;
mod own;
mod paying;
pub mod peer;
pub mod policy;
pub mod prefix;
mod provider;
pub mod rate;
pub mod record;
pub mod reputation;
pub mod router;
pub mod selling;
pub mod speed;
pub mod subnet;
pub mod telemetry;
pub mod time;
mod timers;
pub mod wire;

pub use config::{MarketConfig, NodeConfig};
pub use directory::{Directory, Listing, OfferError};
pub use discovery::{Discovery, Settings as DiscoverySettings};
pub use earn::{CashEffect, CashEvent, CashPolicy, Cashier, Earn, Intent};
pub use event::{BackendError, Capacity, Effect, Event, LedgerCommand, ProbeId, StreamId, WorkId};
pub use job::{Considered, Failure, Job, Kind, Leg, Outcome, OwnChoice, Prefer, Readiness, Reason, Route};
pub use known::{Keep, Known, KnownPeers};
pub use offer::{ModelOffer, Offer, Quote};
#[cfg(feature = "sabotage")]
pub use peer::Sabotage;
pub use peer::{Identity, Peer};
pub use prefix::{HotPrefix, PREFIX_UNITS, PrefixTable};
pub use rate::{Currency, Rate};
pub use record::{Record, RecordKind};
pub use reputation::{Experience, Reputation, Score, SnapshotError};
pub use router::{Preferences, Sort};
pub use selling::{Sell, Selling, Slots, Utilisation};
pub use speed::{Correction, Predicted, Speed};
pub use time::Now;
pub use wire::{Abort, Frame, Load, OpenJob, Probe, ProbeReply, Refusal};
