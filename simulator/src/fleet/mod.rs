//! Routing at scale: gateways, replicas and a network between them, with any policy in the gateways.
//!
//! The whole-protocol runs of this crate pay for signatures and frames. This level leaves both out and keeps what decides
//! where a job goes: what a gateway knows and when it learns it, admission at the replicas, queues, pre-emption, death and
//! continuation. So millions of requests can be routed by one policy after another, on the same workload.
//!
//! [`Setting`] says who takes part, [`Fleet`] runs it, a [`Policy`] chooses, [`Outcome`] is what it showed. `compare` runs
//! policies side by side over seeds.

mod built_in;
mod compare;
mod events;
mod gateway;
mod job;
mod market;
mod metrics;
pub mod policies;
mod policy;
mod replica;
mod run;
mod setting;
#[cfg(test)]
mod tests;
mod view;

pub use built_in::{built_in, named, text};
pub use compare::{Comparison, Interval, Row, compare, interval, outcomes};
pub use gateway::{Pace, Seen};
pub use market::{Hardware, MarketRules};
pub use metrics::{Counts, End, Outcome, Provider, Record, Spread};
pub use policy::{Ask, Choice, GatewayId, News, PROBES_MAX, Policy, Probes, ReplicaId};
pub use run::Fleet;
pub use setting::{
    Assign, Churn, GatewayRules, NetworkRules, PriceRules, QueueRules, ReplicaRules, Setting, SettingError, SloRules,
};
pub use view::{Truth, View};
