//! The policies by name: Spillway's, the published ones it is measured against, and an oracle.
//! Invariant: [`TABLE`] is the only place where a policy gets its name.

mod load;

use super::policy::{GatewayId, Policy};

/// A policy that can be asked for.
pub struct Entry {
    /// What it is asked for by.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub about: &'static str,
    /// Makes one for a gateway, from a seed.
    pub make: fn(u64, GatewayId) -> Box<dyn Policy>,
}

/// All policies.
pub const TABLE: &[Entry] = &[
    Entry { name: "random", about: "Any replica.", make: |seed, gateway| Box::new(load::Random::new(seed, gateway)) },
    Entry { name: "round-robin", about: "One after the other.", make: |_, _| Box::new(load::RoundRobin::default()) },
    Entry {
        name: "least-load",
        about: "The replica with the fewest jobs.",
        make: |seed, gateway| Box::new(load::LeastLoad::new(seed, gateway)),
    },
    Entry {
        name: "two-choices",
        about: "The less loaded of two drawn ones.",
        make: |seed, gateway| Box::new(load::TwoChoices::new(seed, gateway)),
    },
];

/// The policy of that name.
///
/// # Errors
/// There is none; says which there are.
pub fn named(name: &str) -> Result<&'static Entry, String> {
    let known = || TABLE.iter().map(|entry| entry.name).collect::<Vec<_>>().join(", ");
    TABLE
        .iter()
        .find(|entry| entry.name == name)
        .ok_or_else(|| format!("no policy is named `{name}`; there are {}", known()))
}
