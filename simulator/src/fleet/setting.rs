//! Settings: who takes part, how far apart they are, what is promised to clients, what they ask.
//! Invariant: a [`Setting`] that passed [`Setting::validate`] runs; numbers are integers with their unit in their name.

use super::market::MarketRules;
use super::policies;
use super::policy::GatewayId;
use crate::data::regions;
use crate::engine::{self, EngineRules};
use crate::traces::{Request, Spec, Workload};
use serde::Deserialize;

/// Who takes part and by which rules. TOML.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Setting {
    /// Its name in reports.
    pub name: String,
    /// What it shows, in a sentence.
    #[serde(default)]
    pub about: String,
    /// How long clients keep asking, in seconds.
    pub duration_s: u64,
    /// Jobs that come before that many seconds load the replicas but are not measured.
    #[serde(default)]
    pub warmup_s: u64,
    /// One data centre: every gateway sees every replica's load and cache as they are, as the published central schedulers
    /// do. Otherwise a gateway sees its own replicas so, and of strangers only what it learned.
    #[serde(default)]
    pub live: bool,
    /// Gateways use own replicas while one is free and in time, and ask their policy about strangers only for the rest. A
    /// policy with [`Policy::places_own`](super::Policy::places_own) decides that itself.
    #[serde(default)]
    pub own_first: bool,
    /// Which gateway a client asks.
    #[serde(default)]
    pub assign: Assign,
    /// What is promised to clients.
    #[serde(default)]
    pub slo: SloRules,
    /// What messages go through.
    #[serde(default)]
    pub network: NetworkRules,
    /// The gateways' queues.
    #[serde(default)]
    pub queue: QueueRules,
    /// What own hardware costs its owner for each job. Nothing by default.
    #[serde(default)]
    pub own_cost: PriceRules,
    /// Where jobs come in.
    #[serde(rename = "gateway", default)]
    pub gateways: Vec<GatewayRules>,
    /// Where jobs run.
    #[serde(rename = "replica", default)]
    pub replicas: Vec<ReplicaRules>,
    /// Tokens that one name in [`Request::prefix`](crate::traces::Request::prefix) covers, and that engines cache as one piece;
    /// a multiple of 16. Other than the traces' [`PREFIX_BLOCK`](crate::traces::PREFIX_BLOCK) only for workloads that name so.
    #[serde(default = "prefix_block")]
    pub prefix_block: u32,
    /// Engines that are no presets; they go before presets of the same name. From code alone.
    #[serde(skip)]
    pub engines: Vec<EngineRules>,
    /// What clients ask. Needed to compare policies; from code, a workload can be handed in instead.
    #[serde(default)]
    pub workload: Option<Spec>,
    /// The workload's time runs so many times as fast: what comes in an hour comes in an hour over this.
    #[serde(default = "one_u64")]
    pub pace: u64,
    /// Organisations and strangers that are drawn, besides those named above.
    #[serde(default)]
    pub market: Option<MarketRules>,
    /// The policies that are compared, unless others are asked for. Names as in [`policies::TABLE`].
    #[serde(default)]
    pub policies: Vec<String>,
}

/// Which gateway a client asks. A gateway's [`clients`](GatewayRules::clients) go before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Assign {
    /// The clients' numbers go round the gateways.
    #[default]
    Spread,
    /// The clients' numbers go round the organisations; a session asks always the same of its organisation's gateways.
    Organisation,
}

/// When a job counts as served well.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SloRules {
    /// The first token comes within this, in milliseconds,
    pub ttft_ms: u64,
    /// and this more for each 1,000 tokens of the prompt.
    pub ttft_per_1000_input_ms: u64,
    /// The mean time between the tokens after the first is at most this, in milliseconds.
    pub tpot_ms: u64,
}

impl Default for SloRules {
    fn default() -> Self {
        Self { ttft_ms: 2000, ttft_per_1000_input_ms: 500, tpot_ms: 100 }
    }
}

impl SloRules {
    /// The time limit of the first token, in microseconds after the client asked.
    #[must_use]
    pub const fn ttft_limit_us(&self, input: u32) -> u64 {
        self.ttft_ms * 1000 + self.ttft_per_1000_input_ms * input as u64
    }
}

/// Distances. By default between the regions of the published matrix.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkRules {
    /// The most that a message takes longer than its distance, in microseconds; drawn evenly.
    pub jitter_us: u64,
    /// A stream from which nothing came for that long is taken for dead, in milliseconds.
    pub silence_ms: u64,
    /// A probe is given up after that, in milliseconds.
    pub probe_limit_ms: u64,
    /// Regions of one's own, instead of the published ones.
    pub regions: Vec<String>,
    /// Their round trips in milliseconds, row by row.
    pub rtt_ms: Vec<Vec<u64>>,
}

impl Default for NetworkRules {
    fn default() -> Self {
        Self { jitter_us: 2000, silence_ms: 1500, probe_limit_ms: 250, regions: Vec::new(), rtt_ms: Vec::new() }
    }
}

/// The queue of each gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct QueueRules {
    /// Jobs that may wait; more are refused.
    pub length_max: u32,
    /// How long a job may wait before it is refused, in milliseconds.
    pub wait_ms: u64,
    /// After how many refusals by replicas a job waits before it tries again.
    pub refusals_max: u32,
    /// How often a queue is looked at if nothing is learned, in milliseconds.
    pub retry_ms: u64,
}

impl Default for QueueRules {
    fn default() -> Self {
        Self { length_max: 1000, wait_ms: 30_000, refusals_max: 4, retry_ms: 200 }
    }
}

/// Like gateways.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GatewayRules {
    /// What reports call it.
    pub name: String,
    /// How many.
    #[serde(default = "one")]
    pub count: u32,
    /// Where.
    pub region: String,
    /// Whose. Replicas of that owner are its own.
    pub organisation: String,
    /// The clients that ask here: the first and the last number. All others are spread by [`Setting::assign`].
    #[serde(default)]
    pub clients: Option<[u32; 2]>,
    /// The clients that ask here, one by one. From code alone.
    #[serde(skip)]
    pub members: Vec<u32>,
}

/// Like replicas.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReplicaRules {
    /// What reports call it.
    pub name: String,
    /// How many.
    #[serde(default = "one")]
    pub count: u32,
    /// The engine's preset, or a name in [`Setting::engines`].
    pub engine: String,
    /// Where.
    pub region: String,
    /// Whose: an organisation with gateways, or a stranger that only sells. Who is paid.
    pub owner: String,
    /// Whether others than the owner may use it.
    #[serde(default)]
    pub sells: bool,
    /// What others pay.
    #[serde(default)]
    pub price: PriceRules,
    /// Jobs that it takes at once. More of the owner's wait in its queue, more of others' are refused.
    pub slots: u32,
    /// Slots that others never get.
    #[serde(default)]
    pub reserved_slots: u32,
    /// Jobs of the owner's that may wait at the replica.
    #[serde(default = "queue_default")]
    pub queue_max: u32,
    /// When it dies and comes back.
    #[serde(default)]
    pub churn: Option<Churn>,
    /// Times at which it is down: from and until, in seconds.
    #[serde(default)]
    pub down_s: Vec<[u64; 2]>,
}

const fn prefix_block() -> u32 {
    crate::traces::PREFIX_BLOCK
}
const fn one() -> u32 {
    1
}
const fn one_u64() -> u64 {
    1
}
const fn queue_default() -> u32 {
    10_000
}

/// What a replica charges, in micro-credits per million tokens.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PriceRules {
    /// Tokens of the prompt that it had to read.
    pub input_micro: u64,
    /// Tokens of the prompt that it had cached; as those that it had to read if left out.
    #[serde(default)]
    pub cached_micro: Option<u64>,
    /// Tokens of the answer that reached the client.
    pub output_micro: u64,
}

impl PriceRules {
    /// The price of a million cached tokens, in micro-credits.
    #[must_use]
    pub const fn cached(&self) -> u64 {
        match self.cached_micro {
            Some(micro) => micro,
            None => self.input_micro,
        }
    }

    /// What that much costs, in micro-credits, rounded up.
    #[must_use]
    pub const fn cost_micro(&self, input: u32, cached: u32, output: u32) -> u64 {
        let read = input.saturating_sub(cached);
        let sum = self.input_micro as u128 * read as u128
            + self.cached() as u128 * cached as u128
            + self.output_micro as u128 * output as u128;
        sum.div_ceil(1_000_000) as u64
    }
}

/// Lives and absences, both exponential.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Churn {
    /// Mean life in seconds.
    pub up_s: u64,
    /// Mean absence in seconds.
    pub down_s: u64,
}

/// Why a setting does not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// It is not TOML of this shape; the parser names line and field.
    #[error("not a setting: {0}")]
    Malformed(String),
    /// A field does not hold.
    #[error("{field}: {why}")]
    Field {
        /// Such as `replica[0].engine`.
        field: String,
        /// What is wrong.
        why: String,
    },
    /// There is none of that name.
    #[error("no setting for comparing policies is named `{0}`; there are {1}")]
    Unknown(String, String),
}

/// An error that names a field.
pub(super) fn field(field: impl Into<String>, why: impl Into<String>) -> SettingError {
    SettingError::Field { field: field.into(), why: why.into() }
}

pub(super) fn hold(name: &str, holds: bool, why: &str) -> Result<(), SettingError> {
    if holds { Ok(()) } else { Err(field(name, why)) }
}

pub(super) fn range(name: &str, value: u64, least: u64, most: u64) -> Result<(), SettingError> {
    hold(name, (least..=most).contains(&value), &format!("{value} is not between {least} and {most}"))
}

/// The highest price, in micro-credits per million tokens: a thousand credits.
const PRICE_MAX_MICRO: u64 = 1_000_000_000;
const WEEKS_S: u64 = 28 * 86_400;

impl Setting {
    /// Reads and validates a setting.
    ///
    /// # Errors
    /// [`SettingError::Malformed`], then [`SettingError::Field`].
    pub fn from_toml(text: &str) -> Result<Self, SettingError> {
        let setting: Self = toml::from_str(text).map_err(|error| SettingError::Malformed(error.to_string()))?;
        setting.validate()?;
        Ok(setting)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The first field that does not hold.
    pub fn validate(&self) -> Result<(), SettingError> {
        self.validate_rules()?;
        self.network.validate()?;
        if let Some(market) = &self.market {
            market.validate(self)?;
        }
        let least = u64::from(self.market.is_none());
        let gateways = self.gateways.iter().map(|gateway| u64::from(gateway.count)).sum();
        range("gateway", gateways, least, 100_000)?;
        range("replica", self.replicas.iter().map(|replica| u64::from(replica.count)).sum(), least, 1_000_000)?;
        for (index, gateway) in self.gateways.iter().enumerate() {
            let at = |name: &str| format!("gateway[{index}].{name}");
            let twice = self.gateways[..index].iter().any(|other| other.name == gateway.name);
            hold(&at("name"), !gateway.name.is_empty() && !twice, "is empty or used twice")?;
            range(&at("count"), u64::from(gateway.count), 1, 100_000)?;
            self.known_region(&at("region"), &gateway.region)?;
            hold(&at("organisation"), !gateway.organisation.is_empty(), "is empty")?;
            if let Some([first, last]) = gateway.clients {
                range(&at("clients"), u64::from(last), u64::from(first), (1 << 20) - 1)?;
            }
        }
        for (index, replica) in self.replicas.iter().enumerate() {
            let at = |name: &str| format!("replica[{index}].{name}");
            let twice = self.replicas[..index].iter().any(|other| other.name == replica.name);
            hold(&at("name"), !replica.name.is_empty() && !twice, "is empty or used twice")?;
            range(&at("count"), u64::from(replica.count), 1, 1_000_000)?;
            if self.engine(&replica.engine).is_none() {
                let known: Vec<_> = engine::presets().iter().map(|preset| preset.name.as_str()).collect();
                return Err(field(
                    at("engine"),
                    format!("no engine is named `{}`; there are {known:?}", replica.engine),
                ));
            }
            self.known_region(&at("region"), &replica.region)?;
            hold(&at("owner"), !replica.owner.is_empty(), "is empty")?;
            let owned = self.gateways.iter().any(|gateway| gateway.organisation == replica.owner);
            hold(&at("sells"), owned || replica.sells, "is not set, and no gateway is of its owner's organisation")?;
            for (name, micro) in [
                ("price.input_micro", replica.price.input_micro),
                ("price.cached_micro", replica.price.cached()),
                ("price.output_micro", replica.price.output_micro),
            ] {
                range(&at(name), micro, 0, PRICE_MAX_MICRO)?;
            }
            range(&at("slots"), u64::from(replica.slots), 1, 1 << 20)?;
            range(&at("reserved_slots"), u64::from(replica.reserved_slots), 0, u64::from(replica.slots))?;
            range(&at("queue_max"), u64::from(replica.queue_max), 0, 1 << 20)?;
            if let Some(churn) = replica.churn {
                range(&at("churn.up_s"), churn.up_s, 1, WEEKS_S)?;
                range(&at("churn.down_s"), churn.down_s, 1, WEEKS_S)?;
            }
            let mut end = 0;
            for (nth, [from, until]) in replica.down_s.iter().enumerate() {
                let name = at(&format!("down_s[{nth}]"));
                hold(&name, *from >= end && from < until, "is not after the one before, or ends before it begins")?;
                end = *until;
            }
        }
        for (index, name) in self.policies.iter().enumerate() {
            policies::named(name).map_err(|why| field(format!("policies[{index}]"), why))?;
        }
        Ok(())
    }

    fn validate_rules(&self) -> Result<(), SettingError> {
        hold("name", !self.name.is_empty(), "is empty")?;
        range("duration_s", self.duration_s, 1, WEEKS_S)?;
        range("pace", self.pace, 1, 100_000)?;
        let paced = self.pace == 1 || matches!(self.workload, Some(Spec::Servegen { .. }));
        hold("pace", paced, "is for a workload of kind `servegen` alone")?;
        range("warmup_s", self.warmup_s, 0, self.duration_s - 1)?;
        let blocks = self.prefix_block >= 16 && self.prefix_block.is_multiple_of(16);
        hold("prefix_block", blocks, "is not a multiple of 16")?;
        range("slo.ttft_ms", self.slo.ttft_ms, 1, 3_600_000)?;
        range("slo.ttft_per_1000_input_ms", self.slo.ttft_per_1000_input_ms, 0, 3_600_000)?;
        range("slo.tpot_ms", self.slo.tpot_ms, 1, 3_600_000)?;
        range("queue.length_max", u64::from(self.queue.length_max), 0, 10_000_000)?;
        range("queue.wait_ms", self.queue.wait_ms, 0, WEEKS_S * 1000)?;
        range("queue.refusals_max", u64::from(self.queue.refusals_max), 1, 1000)?;
        range("queue.retry_ms", self.queue.retry_ms, 1, 60_000)
    }

    pub(super) fn known_region(&self, name: &str, region: &str) -> Result<(), SettingError> {
        let known = self.network.regions();
        hold(name, known.iter().any(|it| it == region), &format!("`{region}` is none of {known:?}"))
    }

    /// The setting with everyone in it that is drawn: as it is, without a [`Setting::market`].
    ///
    /// # Errors
    /// The field of the workload or of the market that does not hold.
    pub fn drawn(&self, seed: u64) -> Result<Self, SettingError> {
        self.validate()?;
        let Some(market) = &self.market else { return Ok(self.clone()) };
        let (gateways, replicas) = market.draw(seed, self)?;
        let mut drawn = self.clone();
        drawn.market = None;
        drawn.gateways.extend(gateways);
        drawn.replicas.extend(replicas);
        drawn.validate()?;
        Ok(drawn)
    }

    /// The workload that the setting names.
    ///
    /// # Errors
    /// The field of the workload that does not hold.
    pub fn requests(&self, seed: u64) -> Result<Box<dyn Workload>, SettingError> {
        let spec = self.workload.as_ref().ok_or_else(|| field("workload", "is missing"))?;
        let workload = spec.workload(seed).map_err(|error| field("workload", error.to_string()))?;
        Ok(if self.pace == 1 { workload } else { Box::new(Paced { workload, pace: self.pace }) })
    }

    /// The engine of that name.
    #[must_use]
    pub fn engine(&self, name: &str) -> Option<EngineRules> {
        let own = self.engines.iter().find(|rules| rules.name == name).cloned();
        own.or_else(|| engine::preset(name))
    }
}

impl NetworkRules {
    fn validate(&self) -> Result<(), SettingError> {
        range("network.jitter_us", self.jitter_us, 0, 10_000_000)?;
        range("network.silence_ms", self.silence_ms, 1, 600_000)?;
        range("network.probe_limit_ms", self.probe_limit_ms, 1, 60_000)?;
        hold("network.rtt_ms", self.rtt_ms.len() == self.regions.len(), "has not one row for each of `regions`")?;
        for (index, row) in self.rtt_ms.iter().enumerate() {
            let name = format!("network.rtt_ms[{index}]");
            hold(&name, row.len() == self.regions.len(), "has not one number for each of `regions`")?;
            for ms in row {
                range(&name, *ms, 0, 60_000)?;
            }
        }
        Ok(())
    }

    /// The names of the regions.
    #[must_use]
    pub fn regions(&self) -> Vec<String> {
        if self.regions.is_empty() {
            return regions::REGIONS.iter().map(|name| (*name).to_owned()).collect();
        }
        self.regions.clone()
    }

    /// How long a message takes between two regions, without jitter, in microseconds.
    #[must_use]
    pub fn one_way_us(&self, from: usize, to: usize) -> u64 {
        if self.regions.is_empty() {
            return regions::rtt_us(from, to) / 2;
        }
        self.rtt_ms[from][to] * 500
    }
}

/// A workload in faster time.
struct Paced {
    workload: Box<dyn Workload>,
    pace: u64,
}

impl Workload for Paced {
    fn next(&mut self) -> Option<Request> {
        let mut request = self.workload.next()?;
        request.at_us /= self.pace;
        Some(request)
    }
}

/// Which gateway each client asks.
#[derive(Clone, Debug)]
pub(super) struct Homes {
    /// By client, for those that are named.
    named: std::collections::BTreeMap<u32, GatewayId>,
    ranges: Vec<([u32; 2], GatewayId)>,
    /// Gateways of those that are not, by organisation; one group if organisations do not matter.
    groups: Vec<Vec<GatewayId>>,
    assign: Assign,
}

impl Homes {
    pub(super) fn of(setting: &Setting) -> Self {
        let mut homes =
            Self { named: Default::default(), ranges: Vec::new(), groups: Vec::new(), assign: setting.assign };
        let mut organisations: Vec<&str> = Vec::new();
        let mut next = 0;
        for rules in &setting.gateways {
            for _ in 0..rules.count {
                let id = GatewayId(next);
                next += 1;
                for client in &rules.members {
                    homes.named.entry(*client).or_insert(id);
                }
                if let Some(range) = rules.clients {
                    homes.ranges.push((range, id));
                }
                let known = match setting.assign {
                    Assign::Spread => (!homes.groups.is_empty()).then_some(0),
                    Assign::Organisation => organisations.iter().position(|it| *it == rules.organisation),
                };
                match known {
                    Some(group) => homes.groups[group].push(id),
                    None => {
                        organisations.push(&rules.organisation);
                        homes.groups.push(vec![id]);
                    }
                }
            }
        }
        homes
    }

    /// The gateway that this client asks in this session.
    pub(super) fn of_client(&self, client: u32, session: u64) -> GatewayId {
        if let Some(id) = self.named.get(&client) {
            return *id;
        }
        let mut within = self.ranges.iter().filter(|([first, last], _)| (*first..=*last).contains(&client));
        if let Some((range, first)) = within.clone().next() {
            // A group of gateways with one range shares its clients.
            let same: Vec<_> = within.by_ref().filter(|(other, _)| other == range).collect();
            return same.get(client as usize % same.len()).map_or(*first, |(_, id)| *id);
        }
        let (group, member) = match self.assign {
            Assign::Spread => (0, u64::from(client)),
            Assign::Organisation => (client as usize % self.groups.len(), session),
        };
        let group = &self.groups[group];
        let index = usize::try_from(member % group.len() as u64).expect("below a length");
        group[index]
    }
}
