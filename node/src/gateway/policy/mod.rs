//! Policies at the gateway: which one a request goes by, and what it needs to be driven through it.
//! Invariant: a policy widens nothing: models, budgets, preferences and labels of a key hold for each of its targets.
//!
//! What is decided is decided by [`spillway_protocol::policy`]; here are the names, the clock, and the translation of dialects.

mod attempts;
mod facts;
mod plan;
pub mod portkey;

pub use attempts::Attempts;
pub(super) use plan::{Plan, cost_max, tokens_max};

use super::cache::{CacheWish, Keeping, Tenant};
use super::error::ApiError;
use super::keys::Caller;
use super::similar::SIMILAR_DEFAULT;
use super::terms::CACHE_S_MAX;
use crate::backend::connection::below;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use reqwest::Url;
use serde_json::{Map, Value};
use spillway_ledger::Price;
use spillway_protocol::config::BackendSection;
use spillway_protocol::policy::{Breakers, Place, Policy, Target, Tree};
use spillway_protocol::{NodeConfig, Now};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// For how many seconds answers are kept where a config asks for a cache and names no age: as Portkey's documentation says.
const CACHE_S_DEFAULT: u64 = 7 * 24 * 3600;
/// Copies of requests under way at shadows; beyond, none is made.
const SHADOWS_MAX: usize = 32;

/// An own backend, as policies know it.
#[derive(Clone, Debug)]
struct Known {
    name: String,
    /// Its base URL, if it is a server.
    url: Option<Url>,
    /// What a million tokens cost.
    price: Price,
}

/// The node's policies, and what all requests that go by one share; cheap to clone.
#[derive(Clone, Debug)]
pub struct Policies(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    named: BTreeMap<String, Named>,
    backends: Vec<Known>,
    breakers: Mutex<Breakers>,
    attempts: Family<AttemptLabels, Counter>,
    shadows: Arc<Semaphore>,
    since: Instant,
}

/// How an attempt is counted.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct AttemptLabels {
    /// The policy's name in the configuration; `request` for those that requests bring along.
    policy: String,
    /// `done`, `late`, or what kind of failure: `429`, `4xx`, `5xx`.
    result: &'static str,
}

/// A policy that an operator named.
#[derive(Clone, Debug)]
struct Named {
    policy: Arc<Policy>,
    cache: Option<CacheConfig>,
}

/// Counts the targets that their breakers let rest, when asked.
#[derive(Debug)]
struct Resting(Policies);

impl Collector for Resting {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> std::fmt::Result {
        let resting = self.0.0.breakers.lock().expect("no holder panics").open(self.0.now());
        let help = "Targets of policies that rest because they failed too often";
        let metric = encoder.encode_descriptor("breakers_open", help, None, MetricType::Gauge)?;
        ConstGauge::new(resting as u64).encode(metric)
    }
}

/// What a client asks of the response cache, in Portkey's words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Whether requests that mean the same may have the same answer, or only those that are the same.
    pub semantic: bool,
    /// How old an answer may be, in seconds.
    pub max_age_s: Option<u64>,
}

/// What a request says of how it is to go, beside its body.
#[derive(Clone, Debug, Default)]
pub struct Hints {
    /// The policy that it asks for, and what its breakers are kept by.
    policy: Option<(Arc<Policy>, String)>,
    /// What conditions may ask about it.
    metadata: Map<String, Value>,
    /// Whether it wants answers kept, and for how long.
    pub cache: Option<CacheConfig>,
    /// What this one request wishes of kept answers.
    pub wish: CacheWish,
}

impl Hints {
    /// How a key's answers are kept by the word of the request or its policy.
    pub(super) fn cache_of(&self, caller: &Caller) -> Option<Keeping> {
        let config = self.cache.as_ref()?;
        let seconds = config.max_age_s.unwrap_or(CACHE_S_DEFAULT).min(u64::from(CACHE_S_MAX));
        Some(Keeping {
            tenant: Tenant::Key(caller.id),
            lasts: Duration::from_secs(seconds),
            similar: config.semantic.then_some(SIMILAR_DEFAULT),
        })
    }

    /// What decides, beside the request itself, where it goes.
    pub(super) fn way(&self, caller: &Caller) -> String {
        format!("{:?} {:?} {:?}", self.policy, self.metadata, caller.policy())
    }
}

impl Policies {
    /// The policies of a configuration; files are relative to `folder`.
    ///
    /// # Errors
    /// The field that does not hold.
    pub fn open(config: &NodeConfig, folder: &Path) -> anyhow::Result<Self> {
        let mut backends = Vec::with_capacity(config.backend.len());
        for (index, section) in config.backend.iter().enumerate() {
            let (url, price) = match section {
                BackendSection::Embedded { .. } => (None, Price::ZERO),
                BackendSection::OpenAi(server) => {
                    (server.url.parse().ok(), server.token_price(&format!("backend[{index}]"))?)
                }
            };
            backends.push(Known { name: section.name(index), url, price });
        }
        let mut policies = Self::of(backends);
        let named = Arc::get_mut(&mut policies.0).expect("just made");
        for (name, policy) in config.policies()? {
            named.named.insert(name, Named { policy: Arc::new(policy), cache: None });
        }
        for (name, section) in &config.policy {
            let Some(file) = &section.portkey else { continue };
            let path = folder.join(file);
            let place = format!("policy.{name}.portkey: {}", path.display());
            let text = std::fs::read(&path).map_err(|error| anyhow::anyhow!("{place}: {error}"))?;
            let value = serde_json::from_slice(&text).map_err(|error| anyhow::anyhow!("{place}: {error}"))?;
            let config = portkey::Config::read(&value, false, &policies);
            let config = config.map_err(|bad| anyhow::anyhow!("{place}: {bad}"))?;
            let named = Arc::get_mut(&mut policies.0).expect("nobody else has it yet");
            named.named.insert(name.clone(), Named { policy: Arc::new(config.policy), cache: config.cache });
        }
        Ok(policies)
    }

    fn of(backends: Vec<Known>) -> Self {
        Self(Arc::new(Shared {
            named: BTreeMap::new(),
            backends,
            breakers: Mutex::default(),
            attempts: Family::default(),
            shadows: Arc::new(Semaphore::new(SHADOWS_MAX)),
            since: Instant::now(),
        }))
    }

    /// Without backends that have names, and without policies.
    #[must_use]
    pub fn none() -> Self {
        Self::of(Vec::new())
    }

    /// Whether an own backend is called so.
    #[must_use]
    pub fn is_backend(&self, name: &str) -> bool {
        self.0.backends.iter().any(|known| known.name == name)
    }

    /// The backend at a URL, if one is configured there. Nothing else of a client's URL is ever used.
    fn backend_at(&self, url: &str) -> Option<&str> {
        let url: Url = url.parse().ok()?;
        let same = |known: &&Known| known.url.as_ref().is_some_and(|own| below(own, "") == below(&url, ""));
        let plain = url.username().is_empty() && url.password().is_none() && url.query().is_none();
        self.0.backends.iter().find(same).filter(|_| plain).map(|known| known.name.as_str())
    }

    /// The most that a million tokens cost at these backends.
    fn price_of(&self, names: &[String]) -> Price {
        let these = self.0.backends.iter().filter(|known| names.contains(&known.name));
        these.fold(Price::ZERO, |most, known| Price {
            input: most.input.max(known.price.input),
            cached: most.cached.max(known.price.cached),
            output: most.output.max(known.price.output),
        })
    }

    /// Asks for a policy by its name; `field` is where the name stands.
    ///
    /// # Errors
    /// 400 if there is none of that name.
    pub fn named(&self, field: &str, name: &str, hints: &mut Hints) -> Result<(), ApiError> {
        let Some(named) = self.0.named.get(name) else {
            let shown: String = name.chars().take(64).collect();
            return Err(ApiError {
                param: Some(field.into()),
                ..ApiError::new(400, "policy_not_found", format!("{field}: there is no policy `{shown}`"))
            });
        };
        hints.policy = Some((Arc::clone(&named.policy), name.to_owned()));
        if hints.cache.is_none() {
            hints.cache.clone_from(&named.cache);
        }
        Ok(())
    }

    /// Has `registry` show how attempts ended, and how many targets rest.
    pub fn register(&self, registry: &mut Registry) {
        let help = "Attempts of requests that went by a policy, by how they ended";
        registry.register("policy_attempts", help, self.0.attempts.clone());
        registry.register_collector(Box::new(Resting(self.clone())));
    }

    /// An attempt of a request ended so, whose breakers are kept by `scope`.
    pub(crate) fn count(&self, scope: &str, result: &'static str) {
        let policy = if self.0.named.contains_key(scope) { scope } else { "request" };
        self.0.attempts.get_or_create(&AttemptLabels { policy: policy.to_owned(), result }).inc();
    }

    /// The policy of one own backend and nothing else.
    fn only(&self, backend: &str) -> (Arc<Policy>, String) {
        let target = Target::new(backend, Place::Own(vec![backend.to_owned()]));
        let policy = Policy::new(Tree::Target(Box::new(target))).expect("one target is within bounds");
        (Arc::new(policy), "only".into())
    }

    fn now(&self) -> Now {
        // Breakers and courses only compare moments, so that the clock may begin anywhere.
        Now(u64::try_from(self.0.since.elapsed().as_micros()).unwrap_or(u64::MAX))
    }

    fn instant(&self, at: Now) -> Instant {
        self.0.since + std::time::Duration::from_micros(at.0)
    }
}
