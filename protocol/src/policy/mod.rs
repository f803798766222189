//! Policies: where a request may go, in which order and share, when it is tried again, and how long each may take.
//! Invariant: a [`Policy`] is a tree within bounds whose leaves are [`Target`]s; every dialect of policies becomes one.
//!
//! [`Course`] takes one request through a policy, [`Breakers`] remember which targets failed lately. Neither reads a clock or
//! a random source. What becomes of a target is the market's matter: a policy stands above it, one job for each attempt.
//! `docs/backends.md`, "Policies".

pub mod breaker;
pub mod condition;
pub mod course;
pub mod file;
pub mod rule;

pub use breaker::Breakers;
pub use condition::{Condition, Facts};
pub use course::{Course, Effect, End, Event, Limit};
pub use file::PolicySection;
pub use rule::{BreakerRule, Retry, Statuses, Timeouts};

use serde_json::{Map, Value};
use std::time::Duration;

/// Most targets and forks of one policy.
pub const NODES_MAX: usize = 64;
/// Most forks between a policy's root and a target.
pub const DEPTH_MAX: usize = 8;
/// Most attempts of one request, over all targets.
pub const ATTEMPTS_MAX: u32 = 32;
/// Longest name of a policy, a target or a backend, in bytes.
pub const NAME_BYTES_MAX: usize = 64;

/// Where an attempt goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// As without a policy: own hardware, and the network where the key's preference allows it.
    Market,
    /// Own backends of these names, and nowhere else; empty means any of them.
    Own(Vec<String>),
    /// Strangers only.
    Network,
}

/// A leaf: one way to have a request served.
#[derive(Clone, Debug, PartialEq)]
pub struct Target {
    /// What people call it; breakers are kept by it.
    pub name: String,
    /// Where.
    pub place: Place,
    /// The model, if it is not the one that was asked for.
    pub model: Option<String>,
    /// Fields of the request that are set, whatever the client said; their values are JSON and not read here.
    pub overrides: Map<String, Value>,
    /// When and how often it is tried again.
    pub retry: Retry,
    /// How long it may take.
    pub timeouts: Timeouts,
    /// When it is left alone for a while.
    pub breaker: Option<BreakerRule>,
}

impl Target {
    /// A target that is tried once, with no limits of its own.
    #[must_use]
    pub fn new(name: &str, place: Place) -> Self {
        Self {
            name: name.to_owned(),
            place,
            model: None,
            overrides: Map::new(),
            retry: Retry::default(),
            timeouts: Timeouts::default(),
            breaker: None,
        }
    }
}

/// A policy as dialects write it down.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    /// A leaf.
    Target(Box<Target>),
    /// One of these, drawn by weight.
    Weighted {
        /// Weights and what they are of; a weight of 0 is never drawn first.
        choices: Vec<(u32, Tree)>,
        /// On which failures the others are tried, too, drawn by weight.
        on: Statuses,
        /// Whether requests that belong together go the same way.
        sticky: bool,
    },
    /// The first, and on failure the next.
    Fallback {
        /// In order.
        tries: Vec<Tree>,
        /// On which failures.
        on: Statuses,
    },
    /// The first whose condition holds.
    Conditional {
        /// In order.
        cases: Vec<(Condition, Tree)>,
        /// Where none holds; without one, nothing is tried.
        default: Option<Box<Tree>>,
    },
}

/// A second copy of some requests, whose answer nobody sees.
#[derive(Clone, Debug, PartialEq)]
pub struct Shadow {
    /// Where it goes.
    pub target: Target,
    /// Of how many requests, per million.
    pub per_million: u32,
}

/// A checked policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Policy {
    nodes: Vec<Node>,
    /// How long a request may take over all attempts.
    pub total: Option<Duration>,
    /// Which requests are copied.
    pub shadow: Option<Shadow>,
}

/// A place in a policy; for a target, its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NodeId(usize);

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Target(Box<Target>),
    Weighted { choices: Vec<(u32, NodeId)>, on: Statuses, sticky: bool },
    Fallback { tries: Vec<NodeId>, on: Statuses },
    Conditional { cases: Vec<(Condition, NodeId)>, default: Option<NodeId> },
}

/// Why a tree is no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// A fork without branches.
    #[error("nothing to choose from")]
    Empty,
    /// Over [`NODES_MAX`].
    #[error("more than {NODES_MAX} targets and forks")]
    TooLarge,
    /// Over [`DEPTH_MAX`].
    #[error("nested deeper than {DEPTH_MAX}")]
    TooDeep,
    /// No choice has a weight.
    #[error("every weight is 0")]
    NoWeight,
}

impl Policy {
    /// The root.
    pub const ROOT: NodeId = NodeId(0);

    /// Checks a tree.
    ///
    /// # Errors
    /// The first bound that it breaks.
    pub fn new(tree: Tree) -> Result<Self, PolicyError> {
        let mut nodes = Vec::new();
        plant(&mut nodes, tree, 0)?;
        Ok(Self { nodes, total: None, shadow: None })
    }

    /// Every target, with its place.
    pub fn targets(&self) -> impl Iterator<Item = (NodeId, &Target)> {
        self.nodes.iter().enumerate().filter_map(|(index, node)| match node {
            Node::Target(target) => Some((NodeId(index), &**target)),
            Node::Weighted { .. } | Node::Fallback { .. } | Node::Conditional { .. } => None,
        })
    }

    /// The target at `id`, if it is one.
    #[must_use]
    pub fn target(&self, id: NodeId) -> Option<&Target> {
        match self.nodes.get(id.0)? {
            Node::Target(target) => Some(target),
            Node::Weighted { .. } | Node::Fallback { .. } | Node::Conditional { .. } => None,
        }
    }

    /// Whether a request may be tried more than once.
    #[must_use]
    pub fn tries_again(&self) -> bool {
        self.targets().count() > 1 || self.targets().any(|(_, target)| target.retry.attempts > 0)
    }

    fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0]
    }
}

fn plant(nodes: &mut Vec<Node>, tree: Tree, depth: usize) -> Result<NodeId, PolicyError> {
    if nodes.len() >= NODES_MAX {
        return Err(PolicyError::TooLarge);
    }
    if depth > DEPTH_MAX {
        return Err(PolicyError::TooDeep);
    }
    let id = NodeId(nodes.len());
    // Its place is taken before its children's.
    nodes.push(Node::Fallback { tries: Vec::new(), on: Statuses::default() });
    let node = match tree {
        Tree::Target(target) => Node::Target(target),
        Tree::Weighted { choices, on, sticky } => {
            if choices.is_empty() {
                return Err(PolicyError::Empty);
            }
            if choices.iter().all(|(weight, _)| *weight == 0) {
                return Err(PolicyError::NoWeight);
            }
            let choices: Result<_, _> =
                choices.into_iter().map(|(weight, tree)| Ok((weight, plant(nodes, tree, depth + 1)?))).collect();
            Node::Weighted { choices: choices?, on, sticky }
        }
        Tree::Fallback { tries, on } => {
            if tries.is_empty() {
                return Err(PolicyError::Empty);
            }
            let tries: Result<_, _> = tries.into_iter().map(|tree| plant(nodes, tree, depth + 1)).collect();
            Node::Fallback { tries: tries?, on }
        }
        Tree::Conditional { cases, default } => {
            if cases.is_empty() && default.is_none() {
                return Err(PolicyError::Empty);
            }
            let cases: Result<_, _> =
                cases.into_iter().map(|(condition, tree)| Ok((condition, plant(nodes, tree, depth + 1)?))).collect();
            let cases = cases?;
            let default = default.map(|tree| plant(nodes, *tree, depth + 1)).transpose()?;
            Node::Conditional { cases, default }
        }
    };
    nodes[id.0] = node;
    Ok(id)
}
