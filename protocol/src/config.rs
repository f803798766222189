//! What an operator can set: the file `spillway.toml`, and the market's limits drawn from it.
//! Invariant: a [`NodeConfig`] that passed [`NodeConfig::validate`] needs no further check.

mod server;

pub use server::{PriceSection, ServerSection};

use crate::earn::Earn;
use crate::job::{Kind, MODEL_BYTES_MAX};
use crate::policy::file::is_name;
use crate::policy::{Policy, PolicySection};
use crate::rate::{Rate, credits_of};
use crate::selling::{Sell, SellError, Selling};
pub use crate::telemetry::{Signal, TelemetrySection};
use serde::{Deserialize, Serialize};
use spillway_ledger::{Credits, Price};
use std::collections::BTreeMap;
use std::time::Duration;

/// The limits that the market machines work within. Each field's default is the shipped one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MarketConfig {
    /// Where this node is, for offers.
    pub region: String,
    /// Whether it serves strangers.
    pub provide: bool,
    /// What it asks of them, per million units.
    pub price: Price,
    /// Whether it promises them to keep nothing of what they send.
    pub keeps_nothing: bool,
    /// What strangers may have of own slots, while `provide` is set.
    pub selling: Selling,
    /// Whether an owner's job that finds no free slot takes a stranger's. The stranger is paid for what it delivered so far.
    pub preempt: bool,
    /// How much prompt text the backend's prefix cache is taken to hold per model, in units; 0 is none.
    pub cache_units: u64,
    /// The output units it wants paid ahead; it takes less from who offers less, down to an eighth.
    pub window: u64,
    /// The most output units it pays ahead to a provider without history; doubles with each paid job up to `window_max`.
    pub window_start: u64,
    /// The most output units it ever pays ahead.
    pub window_max: u64,
    /// The deposit of a new session, if no single job needs more.
    pub deposit: Credits,
    /// How many providers have an unused session ready, opened before a job needs it; 0 opens none ahead of a job.
    pub sessions_ahead: u32,
    /// How much of the money at hand may lie in sessions that no job has used yet, in per cent.
    pub ahead_percent: u8,
    /// How much of the balance one top-up that no job waits for may take, in per cent.
    pub top_up_percent: u8,
    /// How long a session lasts.
    pub session_lifetime: Duration,
    /// How long after a session's end the consumer waits for a refund; from genesis.
    pub session_grace: Duration,
    /// How long an earning session rests before it is settled; one that never rests is settled every four times that.
    pub settle_after: Duration,
    /// How long a paying stream may be silent before the provider counts as dead.
    pub silence_max: Duration,
    /// How often a provider with nothing to deliver says that it lives.
    pub alive_every: Duration,
    /// How long a provider waits for the next voucher.
    pub payment_wait: Duration,
    /// How long a probe may take.
    pub probe_wait: Duration,
    /// How long the opening of a session and of a stream may take, each.
    pub open_wait: Duration,
    /// How many own jobs may wait for an own slot.
    pub queue_max: usize,
    /// How long an own job may wait for an own slot.
    pub queue_wait: Duration,
    /// Whether an own job whose backend is late is given to another own one as well, within a quarter of the idle slots.
    pub hedge: bool,
    /// How many jobs may be under way at once, own clients' and strangers' each.
    pub jobs_max: usize,
    /// Credits that one second of waiting is worth when price and speed are weighed against each other.
    pub second_worth: Credits,
}

impl Default for MarketConfig {
    fn default() -> Self {
        Self {
            region: String::new(),
            provide: false,
            keeps_nothing: false,
            price: Price { input: Credits::new(50_000), cached: Credits::new(50_000), output: Credits::new(200_000) },
            selling: Selling::default(),
            preempt: true,
            cache_units: 1 << 20,
            window: 1024,
            window_start: 1024,
            window_max: 16 << 10,
            deposit: Credits::new(1_000_000),
            sessions_ahead: 3,
            ahead_percent: 25,
            top_up_percent: 50,
            session_lifetime: Duration::from_secs(24 * 3600),
            session_grace: Duration::from_secs(3600),
            settle_after: Duration::from_secs(60),
            silence_max: Duration::from_millis(1500),
            alive_every: Duration::from_millis(400),
            payment_wait: Duration::from_secs(60),
            probe_wait: Duration::from_millis(250),
            open_wait: Duration::from_secs(5),
            queue_max: 64,
            queue_wait: Duration::from_secs(30),
            hedge: false,
            jobs_max: 4096,
            second_worth: Credits::new(1_000),
        }
    }
}

/// The file `spillway.toml`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeConfig {
    /// The genesis file, relative to the configuration's folder.
    #[serde(default = "default_genesis")]
    pub genesis: String,
    /// Peers.
    #[serde(default)]
    pub network: NetworkSection,
    /// The OpenAI-compatible server; absent means none.
    pub gateway: Option<GatewaySection>,
    /// The QUIC server for clients without a node; absent means none.
    pub edge: Option<EdgeSection>,
    /// Own inference servers.
    #[serde(default)]
    pub backend: Vec<BackendSection>,
    /// Where requests go that ask for a policy by name, or whose key does.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub policy: BTreeMap<String, PolicySection>,
    /// What strangers get, and for how much.
    #[serde(default)]
    pub provide: ProvideSection,
    /// What own jobs may spend.
    #[serde(default)]
    pub spend: SpendSection,
    /// The books.
    #[serde(default)]
    pub ledger: LedgerSection,
    /// What is told of requests, and to whom.
    #[serde(default)]
    pub telemetry: TelemetrySection,
}

fn default_genesis() -> String {
    "genesis.json".into()
}

/// `[network]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkSection {
    /// Multiaddresses to listen on.
    pub listen: Vec<String>,
    /// Multiaddresses with peer ids, beside those in genesis.
    pub bootstrap: Vec<String>,
    /// Whether to look for peers on the local network.
    pub mdns: bool,
    /// Where this node is, at most 32 bytes.
    pub region: String,
    /// Adds this round-trip time to what others send here, in milliseconds. For local test networks; 0 is off.
    pub emulated_rtt_ms: u32,
}

impl Default for NetworkSection {
    fn default() -> Self {
        Self {
            listen: vec!["/ip4/0.0.0.0/udp/4600/quic-v1".into(), "/ip4/0.0.0.0/tcp/4600".into()],
            bootstrap: Vec::new(),
            mdns: true,
            region: String::new(),
            emulated_rtt_ms: 0,
        }
    }
}

/// `[gateway]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewaySection {
    /// Address and port; port 0 takes a free one.
    #[serde(default = "default_gateway_listen")]
    pub listen: String,
    /// Whether times and sizes of the last jobs are kept, for `spillway jobs export`.
    #[serde(default = "default_job_log")]
    pub job_log: bool,
    /// Memory for answers that are given again to keys whose terms say so, in MiB; 0 keeps none.
    #[serde(default = "default_cache_mib")]
    pub cache_mib: u32,
    /// The model of an own backend whose vectors tell which questions mean the same, for keys whose terms allow one's answer for the
    /// other. Absent means that only the same request gets an answer again.
    #[serde(default)]
    pub cache_embedding: Option<String>,
    /// Where several gateways share keys, budgets and limits: a PostgreSQL URL, without a password. Absent means in this
    /// node's own store.
    #[serde(default)]
    pub store: Option<String>,
    /// The environment variable that holds the store's password.
    #[serde(default)]
    pub store_password_env: Option<String>,
    /// The file that holds the store's password, relative to the configuration's folder.
    #[serde(default)]
    pub store_password_file: Option<String>,
}

impl Default for GatewaySection {
    fn default() -> Self {
        Self {
            listen: default_gateway_listen(),
            job_log: default_job_log(),
            cache_mib: default_cache_mib(),
            cache_embedding: None,
            store: None,
            store_password_env: None,
            store_password_file: None,
        }
    }
}

impl GatewaySection {
    /// The first field that does not hold, and why.
    fn fault(&self) -> Option<(&'static str, &'static str)> {
        if self.cache_embedding.as_ref().is_some_and(|name| name.is_empty() || name.len() > MODEL_BYTES_MAX) {
            return Some(("gateway.cache_embedding", "not a model's name of 1 to 256 bytes"));
        }
        let Some(url) = &self.store else {
            let alone = "set without gateway.store";
            let env = self.store_password_env.is_some().then_some(("gateway.store_password_env", alone));
            return env
                .or_else(|| self.store_password_file.is_some().then_some(("gateway.store_password_file", alone)));
        };
        let rest = url.strip_prefix("postgres://").or_else(|| url.strip_prefix("postgresql://"));
        let Some(rest) = rest else { return Some(("gateway.store", "not a URL that begins with postgres://")) };
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let has_password = authority.rsplit_once('@').is_some_and(|(user, _)| user.contains(':'));
        if has_password || rest.contains("password=") {
            return Some(("gateway.store", "holds a password; use store_password_file or store_password_env"));
        }
        let both = self.store_password_env.is_some() && self.store_password_file.is_some();
        both.then_some(("gateway.store_password_env", "set beside gateway.store_password_file"))
    }
}

const fn default_cache_mib() -> u32 {
    64
}

const fn default_job_log() -> bool {
    true
}

fn default_gateway_listen() -> String {
    "127.0.0.1:8080".into()
}

/// `[edge]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EdgeSection {
    /// Address and UDP port; port 0 takes a free one.
    #[serde(default = "default_edge_listen")]
    pub listen: String,
}

fn default_edge_listen() -> String {
    "127.0.0.1:4601".into()
}

/// `[[backend]]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum BackendSection {
    /// The embedded engine.
    Embedded {
        /// What policies and people call it; absent means `backend` and its place in the file, from 0.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        name: Option<String>,
        /// The model's name to clients.
        model: String,
        /// A GGUF file, relative to the configuration's folder; absent means the guide model that ships with Spillway.
        gguf: Option<String>,
        /// Requests at once.
        #[serde(default = "default_slots")]
        slots: u32,
        /// An upper limit on each answer's speed, in tokens per second.
        tokens_per_second: Option<f64>,
    },
    /// Any OpenAI-compatible server.
    OpenAi(Box<ServerSection>),
}

impl BackendSection {
    /// What policies and people call the backend at this place of the file.
    #[must_use]
    pub fn name(&self, index: usize) -> String {
        let name = match self {
            Self::Embedded { name, .. } => name,
            Self::OpenAi(server) => &server.name,
        };
        name.clone().unwrap_or_else(|| format!("backend{index}"))
    }
}

/// What a server is taken to serve whose section does not say.
#[must_use]
pub fn default_endpoints() -> Vec<Kind> {
    vec![Kind::Chat, Kind::Completion]
}

const fn default_slots() -> u32 {
    4
}

/// Most named policies.
const POLICIES_MAX: usize = 256;

/// The largest prefix cache that is kept account of, in units per model: 2^20 names.
const CACHE_UNITS_MAX: u64 = 1 << 31;

/// `[provide]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ProvideSection {
    /// Whether strangers may use what is idle here.
    pub enabled: bool,
    /// Credits per million input units (bytes).
    pub price_input: f64,
    /// Credits per million input units that the backend has cached; as `price_input` if absent, never above it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub price_cached: Option<f64>,
    /// Credits per million output units (bytes).
    pub price_output: f64,
    /// When strangers are served: `always`, `never`, daily windows in UTC such as `22:00-06:00, 12:00-13:00`, or `below 70%`
    /// of own use over the last five minutes.
    pub sell: String,
    /// Whether an own job that finds no free slot takes a stranger's.
    pub preempt: bool,
    /// Prompt text that the backends' prefix caches hold per model, in units (bytes); 0 where they have none.
    pub cache_units: u64,
    /// Slots per model kept for the owner.
    pub reserved_slots: u32,
    /// Output units wanted ahead.
    pub window: u64,
    /// Seconds of rest before a session is settled; four times that where it never rests.
    pub settle_after_s: f64,
    /// Promises strangers that nothing of what they send is kept: only for backends that log no prompts.
    pub keeps_nothing: bool,
}

impl Default for ProvideSection {
    fn default() -> Self {
        Self {
            enabled: false,
            price_input: 0.05,
            price_cached: None,
            price_output: 0.2,
            sell: "always".into(),
            preempt: true,
            cache_units: 1 << 20,
            reserved_slots: 1,
            window: 1024,
            settle_after_s: 60.0,
            keeps_nothing: false,
        }
    }
}

/// `[spend]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SpendSection {
    /// The most it pays per million input units, in credits.
    pub price_input_max: f64,
    /// The most it pays per million output units, in credits.
    pub price_output_max: f64,
    /// Deposit of a new session, in credits.
    pub deposit: f64,
    /// How many providers have a session ready before a job needs it; 0 opens none ahead of a job.
    pub sessions_ahead: u32,
    /// How much of the money at hand may lie in sessions that no job has used yet, 0 to 1.
    pub ahead_share: f64,
    /// How much of the balance one top-up that no job waits for may take, 0 to 1.
    pub top_up_share: f64,
    /// What a second of waiting is worth, in credits: high prefers the near and fast, low the cheap.
    pub second_worth: f64,
    /// How many own jobs may wait for an own slot.
    pub queue_max: usize,
    /// Whether an own job whose backend is late is given to another own one as well, within a quarter of the idle slots.
    pub hedge: bool,
}

impl Default for SpendSection {
    fn default() -> Self {
        Self {
            price_input_max: 2.0,
            price_output_max: 10.0,
            deposit: 1.0,
            sessions_ahead: 3,
            ahead_share: 0.25,
            top_up_share: 0.5,
            second_worth: 0.001,
            queue_max: 64,
            hedge: false,
        }
    }
}

/// The most nodes that a follower asks for blocks.
const AUTHORITIES_MAX: usize = 128;

/// `[ledger]`
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LedgerSection {
    /// `solo` writes the books alone (its key is genesis's committee), `validate` writes them with others, `follow` checks
    /// and keeps a copy.
    pub role: LedgerRole,
    /// The peer ids of nodes that write the books, one or a list; needed to follow. The first that answers is asked.
    #[serde(with = "one_or_many")]
    pub authority: Vec<String>,
    /// Needed to validate.
    pub validator: Option<ValidatorSection>,
    /// `credits` keeps what is earned for own jobs, `cash` asks for a payout of what is above `cash_threshold`.
    pub earn: Earn,
    /// With `earn = "cash"`: the credits that stay for own jobs. A decimal number.
    pub cash_threshold: String,
    /// What the issuer pays for one credit, in the payee's currency. A decimal number.
    pub cash_rate: Rate,
    /// The payee file, relative to the configuration's folder: where cash goes. Needed for `earn = "cash"`.
    pub payee: String,
}

impl Default for LedgerSection {
    fn default() -> Self {
        Self {
            role: LedgerRole::Follow,
            authority: Vec::new(),
            validator: None,
            earn: Earn::Credits,
            cash_threshold: "10".into(),
            cash_rate: Rate::ONE,
            payee: String::new(),
        }
    }
}

impl LedgerSection {
    /// The credits that stay for own jobs when the rest is paid out.
    ///
    /// # Errors
    /// If the number is none.
    pub fn threshold(&self) -> Result<Credits, ConfigError> {
        credits_of(&self.cash_threshold).map_err(|why| ConfigError { field: "ledger.cash_threshold".into(), why })
    }
}

/// `[ledger.validator]`: how validators reach each other. Their key is the file `validator.key`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ValidatorSection {
    /// Where the others reach this one: `/ip4/…/tcp/…` or `/ip6/…/tcp/…`.
    pub listen: String,
    /// Where the others are, all of them, in the same form.
    #[serde(default)]
    pub peers: Vec<String>,
}

/// One text, or a list of texts.
mod one_or_many {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    #[derive(Serialize, Deserialize)]
    #[serde(untagged)]
    enum OneOrMany<T> {
        One(T),
        Many(Vec<T>),
    }

    pub(super) fn serialize<S: Serializer>(texts: &[String], serializer: S) -> Result<S::Ok, S::Error> {
        match texts {
            [one] => OneOrMany::One(one).serialize(serializer),
            many => OneOrMany::Many(many.iter().collect()).serialize(serializer),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<String>, D::Error> {
        Ok(match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(one) => vec![one],
            OneOrMany::Many(many) => many,
        })
    }
}

/// Who writes the books.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LedgerRole {
    /// This node, alone.
    Solo,
    /// This node, with others that need not trust it, nor it them.
    Validate,
    /// Another node.
    Follow,
}

/// A setting that does not hold: its name in the file, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {why}")]
pub struct ConfigError {
    /// Such as `provide.price_input`.
    pub field: String,
    /// What is wrong.
    pub why: String,
}

fn credits(field: &str, amount: f64) -> Result<Credits, ConfigError> {
    let micro = amount * 1e6;
    if !micro.is_finite() || !(0.0..=1e15).contains(&micro) {
        return Err(ConfigError {
            field: field.into(),
            why: format!("{amount} is not between 0 and 1,000,000,000 credits"),
        });
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie within 0 and 1e15")]
    Ok(Credits::new(micro.round() as u64))
}

fn percent(field: &str, share: f64) -> Result<u8, ConfigError> {
    if !(0.0..=1.0).contains(&share) {
        return Err(ConfigError { field: field.into(), why: format!("{share} is not between 0 and 1") });
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie within 0 and 1")]
    Ok((share * 100.0).round() as u8)
}

impl NodeConfig {
    /// Checks every field.
    ///
    /// # Errors
    /// The first field that does not hold.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.market().map(|_| ())?;
        let fail = |field: String, why: &str| Err(ConfigError { field, why: why.into() });
        if self.network.region.len() > 32 {
            return fail("network.region".into(), "longer than 32 bytes");
        }
        if self.network.emulated_rtt_ms > 10_000 {
            return fail("network.emulated_rtt_ms".into(), "more than 10,000");
        }
        if let Some((field, why)) = self.gateway.as_ref().and_then(GatewaySection::fault) {
            return fail(field.into(), why);
        }
        if let Some((field, why)) = self.telemetry.bad() {
            return fail(field.into(), why);
        }
        if self.ledger.role == LedgerRole::Follow && self.ledger.authority.is_empty() {
            return fail("ledger.authority".into(), "missing: the peer id of a node that writes the books");
        }
        if self.ledger.authority.len() > AUTHORITIES_MAX {
            return fail("ledger.authority".into(), "more than 128 peer ids");
        }
        if self.ledger.role == LedgerRole::Validate && self.ledger.validator.is_none() {
            return fail("ledger.validator".into(), "missing: `listen` and `peers` of a validator");
        }
        self.ledger.threshold()?;
        if self.ledger.earn == Earn::Cash && self.ledger.payee.is_empty() {
            let why = "missing: the payee file that cash goes to; `spillway ledger payee new` makes one";
            return fail("ledger.payee".into(), why);
        }
        for (index, backend) in self.backend.iter().enumerate() {
            let (slots, name) = match backend {
                BackendSection::Embedded { model, slots, tokens_per_second, .. } => {
                    if tokens_per_second.is_some_and(|rate| !(rate.is_finite() && rate > 0.0)) {
                        return fail(format!("backend[{index}].tokens_per_second"), "not above 0");
                    }
                    (*slots, model)
                }
                BackendSection::OpenAi(server) => {
                    server.validate(&format!("backend[{index}]"))?;
                    (server.slots, &server.url)
                }
            };
            if name.is_empty() {
                return fail(format!("backend[{index}]"), "model or url is empty");
            }
            if slots == 0 || slots > 4096 {
                return fail(format!("backend[{index}].slots"), "not between 1 and 4096");
            }
            let name = backend.name(index);
            if !is_name(&name) || matches!(name.as_str(), "own" | "network" | "market") {
                let why = "not 1 to 64 letters, digits, dots, underscores and dashes, or a name with a meaning";
                return fail(format!("backend[{index}].name"), why);
            }
            if self.backend[..index].iter().enumerate().any(|(other, section)| section.name(other) == name) {
                return fail(format!("backend[{index}].name"), "another backend has this name");
            }
        }
        self.policies().map(|_| ())
    }

    /// The names of the own backends, in the file's order.
    #[must_use]
    pub fn backend_names(&self) -> Vec<String> {
        self.backend.iter().enumerate().map(|(index, section)| section.name(index)).collect()
    }

    /// The policies by name; those that are kept in a file of Portkey's form are not read here.
    ///
    /// # Errors
    /// The first field that does not hold.
    pub fn policies(&self) -> Result<BTreeMap<String, Policy>, ConfigError> {
        if self.policy.len() > POLICIES_MAX {
            return Err(ConfigError { field: "policy".into(), why: format!("more than {POLICIES_MAX}") });
        }
        let backends = self.backend_names();
        let mut policies = BTreeMap::new();
        for (name, section) in &self.policy {
            if let Some(policy) = section.policy(name, &backends)? {
                policies.insert(name.clone(), policy);
            }
        }
        Ok(policies)
    }

    /// The market's limits that this file sets; the rest are the defaults.
    ///
    /// # Errors
    /// The first money field that does not hold.
    pub fn market(&self) -> Result<MarketConfig, ConfigError> {
        let input = credits("provide.price_input", self.provide.price_input)?;
        let cached = match self.provide.price_cached {
            Some(price) => credits("provide.price_cached", price)?,
            None => input,
        };
        if cached > input {
            return Err(ConfigError { field: "provide.price_cached".into(), why: "above provide.price_input".into() });
        }
        let output = credits("provide.price_output", self.provide.price_output)?;
        let mode: Sell = self.provide.sell.parse().map_err(|error: SellError| ConfigError {
            field: "provide.sell".into(),
            why: format!("`{}`: {error}", self.provide.sell),
        })?;
        if self.provide.cache_units > CACHE_UNITS_MAX {
            return Err(ConfigError { field: "provide.cache_units".into(), why: "more than 2147483648".into() });
        }
        if self.provide.window < 64 || self.provide.window > 1 << 20 {
            return Err(ConfigError { field: "provide.window".into(), why: "not between 64 and 1048576".into() });
        }
        if !(self.provide.settle_after_s.is_finite() && (0.0..=86_400.0).contains(&self.provide.settle_after_s)) {
            return Err(ConfigError { field: "provide.settle_after_s".into(), why: "not between 0 and 86400".into() });
        }
        if self.spend.sessions_ahead > 64 {
            return Err(ConfigError { field: "spend.sessions_ahead".into(), why: "not between 0 and 64".into() });
        }
        Ok(MarketConfig {
            region: self.network.region.clone(),
            provide: self.provide.enabled,
            keeps_nothing: self.provide.keeps_nothing,
            price: Price { input, cached, output },
            selling: Selling { mode, reserved_slots: self.provide.reserved_slots },
            preempt: self.provide.preempt,
            cache_units: self.provide.cache_units,
            window: self.provide.window,
            deposit: credits("spend.deposit", self.spend.deposit)?,
            sessions_ahead: self.spend.sessions_ahead,
            ahead_percent: percent("spend.ahead_share", self.spend.ahead_share)?,
            top_up_percent: percent("spend.top_up_share", self.spend.top_up_share)?,
            settle_after: Duration::from_secs_f64(self.provide.settle_after_s),
            second_worth: credits("spend.second_worth", self.spend.second_worth)?,
            queue_max: self.spend.queue_max,
            hedge: self.spend.hedge,
            ..MarketConfig::default()
        })
    }

    /// The highest price that own jobs accept, unless a key sets a lower one.
    ///
    /// # Errors
    /// The field that does not hold.
    pub fn price_max(&self) -> Result<Price, ConfigError> {
        let input = credits("spend.price_input_max", self.spend.price_input_max)?;
        Ok(Price { input, cached: input, output: credits("spend.price_output_max", self.spend.price_output_max)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(provide: ProvideSection) -> NodeConfig {
        NodeConfig {
            genesis: default_genesis(),
            network: NetworkSection::default(),
            gateway: None,
            edge: None,
            backend: Vec::new(),
            policy: BTreeMap::new(),
            provide,
            spend: SpendSection::default(),
            ledger: LedgerSection { role: LedgerRole::Solo, ..LedgerSection::default() },
            telemetry: TelemetrySection::default(),
        }
    }

    #[test]
    fn a_shared_store_is_named_without_its_password() {
        let section = |store: Option<&str>, env: Option<&str>, file: Option<&str>| GatewaySection {
            store: store.map(str::to_owned),
            store_password_env: env.map(str::to_owned),
            store_password_file: file.map(str::to_owned),
            ..GatewaySection::default()
        };
        for (store, env, file, at_fault) in [
            (None, None, None, None),
            (Some("postgres://gate@db.internal:5432/keys?sslmode=verify-full"), None, Some("p"), None),
            (Some("postgresql:///keys?host=/run/postgresql"), Some("P"), None, None),
            (Some("postgres://gate:secret@db/keys"), None, None, Some("gateway.store")),
            (Some("postgres://db/keys?password=secret"), None, None, Some("gateway.store")),
            (Some("mysql://db/keys"), None, None, Some("gateway.store")),
            (None, Some("P"), None, Some("gateway.store_password_env")),
            (None, None, Some("p"), Some("gateway.store_password_file")),
            (Some("postgres://db/keys"), Some("P"), Some("p"), Some("gateway.store_password_env")),
        ] {
            let gateway = Some(section(store, env, file));
            let config = NodeConfig { gateway, ..node(ProvideSection::default()) };
            let field = config.validate().err().map(|error| error.field);
            assert_eq!(field.as_deref(), at_fault, "{store:?}");
        }
    }

    #[test]
    fn a_model_that_compares_questions_has_a_name() {
        for (name, holds) in [("nomic-embed-text".to_owned(), true), (String::new(), false), ("m".repeat(257), false)] {
            let gateway = Some(GatewaySection { cache_embedding: Some(name.clone()), ..GatewaySection::default() });
            let config = NodeConfig { gateway, ..node(ProvideSection::default()) };
            let field = config.validate().err().map(|error| error.field);
            assert_eq!(field.as_deref(), (!holds).then_some("gateway.cache_embedding"), "{name}");
        }
    }

    #[test]
    fn what_is_provided_is_read_or_its_field_is_named() {
        type Change = fn(&mut ProvideSection);
        let cases: [(Change, &str); 8] = [
            (|_| {}, ""),
            (|provide| provide.price_cached = Some(provide.price_input), ""),
            (|provide| provide.sell = "22:00-06:00, 12:00-13:00".into(), ""),
            (|provide| provide.cache_units = 0, ""),
            (|provide| provide.price_cached = Some(0.06), "provide.price_cached: above provide.price_input"),
            (|provide| provide.price_cached = Some(f64::NAN), "provide.price_cached: NaN is not between"),
            (|provide| provide.sell = "nightly".into(), "provide.sell: `nightly`: neither `always`, `never`"),
            (|provide| provide.cache_units = u64::MAX, "provide.cache_units: more than"),
        ];
        for (change, says) in cases {
            let mut provide = ProvideSection::default();
            change(&mut provide);
            let said = node(provide).validate().map_or_else(|error| error.to_string(), |()| String::new());
            assert!(said.starts_with(says) && said.is_empty() == says.is_empty(), "{said:?} for {says:?}");
        }
    }

    #[test]
    fn a_server_serves_something() {
        let with = |endpoints: &[Kind]| {
            let server = ServerSection { endpoints: endpoints.to_vec(), ..ServerSection::new("http://127.0.0.1:1/v1") };
            NodeConfig { backend: vec![BackendSection::OpenAi(Box::new(server))], ..node(ProvideSection::default()) }
        };
        assert!(with(&default_endpoints()).validate().is_ok() && with(&Kind::ALL).validate().is_ok());
        assert_eq!(with(&[]).validate().expect_err("nothing").to_string(), "backend[0].endpoints: empty");
    }

    #[test]
    fn what_is_wrong_with_a_backend_is_named() {
        type Change = fn(&mut ServerSection);
        let cases: [(Change, &str); 10] = [
            (|_| {}, ""),
            (|server| server.price = Some(PriceSection { input: 2.5, cached: Some(0.5), output: 10.0 }), ""),
            (
                |server| server.price = Some(PriceSection { input: -1.0, cached: None, output: 1.0 }),
                "backend[0].price.input",
            ),
            (
                |server| server.price = Some(PriceSection { input: 1.0, cached: Some(2.0), output: 1.0 }),
                "backend[0].price.cached",
            ),
            (|server| (server.key_env, server.key_file) = (Some("A".into()), Some("b".into())), "backend[0].key_env"),
            (|server| server.name = Some("network".into()), "backend[0].name"),
            (|server| server.name = Some("backend1".into()), "backend[1].name"),
            (|server| server.connect_s = 0.0, "backend[0].connect_s"),
            (|server| server.models = vec![String::new()], "backend[0].models"),
            (|server| _ = server.rename.insert("a".into(), "b\n".into()), "backend[0].rename"),
        ];
        for (change, field) in cases {
            let mut first = ServerSection::new("http://127.0.0.1:1/v1");
            change(&mut first);
            let servers = [first, ServerSection::new("http://127.0.0.1:2/v1")];
            let backend = servers.map(|server| BackendSection::OpenAi(Box::new(server))).to_vec();
            let config = NodeConfig { backend, ..node(ProvideSection::default()) };
            let said = config.validate().err().map(|error| error.field).unwrap_or_default();
            assert_eq!(said, field);
        }
    }

    #[test]
    fn the_market_sells_as_configured() {
        let provide = ProvideSection {
            price_cached: Some(0.01),
            sell: "below 70%".into(),
            reserved_slots: 2,
            preempt: false,
            ..ProvideSection::default()
        };
        let market = node(provide).market().expect("good");
        assert_eq!(market.price.cached, Credits::new(10_000));
        assert_eq!(market.selling, Selling { mode: Sell::Below(70), reserved_slots: 2 });
        assert!(!market.preempt);
        let default = node(ProvideSection::default()).market().expect("good");
        assert_eq!(default.price.cached, default.price.input, "no discount unless one is set");
    }
}
