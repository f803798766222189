//! The policies by name: Spillway's, the published ones it is measured against, and an oracle.
//! Invariant: [`TABLE`] is the only place where a policy gets its name.

mod common;
mod gorgo;
mod load;
mod oracle;
mod own;
mod prefix;
mod prefixes;
mod prequal;
mod price;
mod session;
mod sglang;
mod skywalker;
mod spillway;

#[cfg(test)]
mod tests;

pub use gorgo::{Gorgo, GorgoRules};
pub use load::{LeastLoad, Random, RoundRobin, TwoChoices};
pub use oracle::Oracle;
pub use own::OwnOnly;
pub use prefix::LongestPrefix;
pub use prequal::Prequal;
pub use price::{Cheapest, OpenRouter};
pub use session::SessionHash;
pub use sglang::{Sglang, SglangRules};
pub use skywalker::SkyWalker;
pub use spillway::Spillway;

use super::policy::{GatewayId, Policy};

/// A policy that can be asked for.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// What it is asked for by.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
    /// Makes one for a gateway, from a seed.
    pub make: fn(u64, GatewayId) -> Box<dyn Policy>,
}

const fn entry(name: &'static str, about: &'static str, make: fn(u64, GatewayId) -> Box<dyn Policy>) -> Entry {
    Entry { name, about, make }
}

/// All policies.
pub const TABLE: &[Entry] = &[
    entry("spillway", "Own hardware first, then the shipped router.", |seed, gateway| {
        Box::new(Spillway::new(seed, gateway))
    }),
    entry("oracle", "Sees all: the cheapest that is in time, else the fastest.", |_, _| Box::<Oracle>::default()),
    entry("oracle-fast", "Sees all: the fastest.", |_, _| Box::new(Oracle::fast())),
    entry("own-only", "Own replicas alone.", |seed, gateway| Box::new(OwnOnly::new(seed, gateway))),
    entry("random", "Any replica.", |seed, gateway| Box::new(Random::new(seed, gateway))),
    entry("round-robin", "One after the other.", |_, _| Box::<RoundRobin>::default()),
    entry("least-load", "The fewest jobs.", |seed, gateway| Box::new(LeastLoad::new(seed, gateway))),
    entry("two-choices", "The less loaded of two drawn ones.", |seed, gateway| {
        Box::new(TwoChoices::new(seed, gateway))
    }),
    entry("prequal", "Asynchronous probes; the fastest that is not hot.", |seed, gateway| {
        Box::new(Prequal::new(seed, gateway))
    }),
    entry("session-hash", "A conversation stays where it is.", |seed, gateway| {
        Box::new(SessionHash::new(seed, gateway))
    }),
    entry("longest-prefix", "The longest cached prefix.", |seed, gateway| Box::new(LongestPrefix::new(seed, gateway))),
    entry("sglang", "SGLang's cache-aware rule, as of 0.4.", |seed, gateway| {
        Box::new(Sglang::new(sglang::FIRST, seed, gateway))
    }),
    entry("sglang-2025", "The same with the balance thresholds since 2025.", |seed, gateway| {
        Box::new(Sglang::new(sglang::LATER, seed, gateway))
    }),
    entry("skywalker", "Regional balancers that push only where nothing waits.", |seed, gateway| {
        Box::new(SkyWalker::new(seed, gateway))
    }),
    entry("gorgo", "Network, uncached prefill and queue in one sum.", |seed, gateway| {
        Box::new(Gorgo::new(GorgoRules::default(), seed, gateway))
    }),
    entry("openrouter", "Drawn by 1/price² among the stable.", |seed, gateway| {
        Box::new(OpenRouter::new(seed, gateway))
    }),
    entry("cheapest", "The lowest price.", |seed, gateway| Box::new(Cheapest::new(seed, gateway))),
];

/// The policy of that name.
///
/// # Errors
/// There is none; says which there are.
pub fn named(name: &str) -> Result<&'static Entry, String> {
    TABLE.iter().find(|entry| entry.name == name).ok_or_else(|| {
        let known: Vec<_> = TABLE.iter().map(|entry| entry.name).collect();
        format!("no policy is named `{name}`; there are {}", known.join(", "))
    })
}
