//! Scenarios: who takes part, what clients ask, and what goes wrong. TOML files.
//! Invariant: a [`Scenario`] that passed [`Scenario::validate`] runs; every number in it is an integer with its unit in
//! its name, so that the file means the same on every machine.

use crate::adversary::Adversary;
use crate::data::regions::REGIONS;
use crate::draws::Draws;
use crate::network::{DRAWN_REGIONS, Nat};
use serde::{Deserialize, Serialize};

/// A whole setting.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scenario {
    /// Its name in reports.
    pub name: String,
    /// What it shows, in a sentence.
    #[serde(default)]
    pub about: String,
    /// How long clients keep asking, in seconds.
    pub duration_s: u64,
    /// A job is in time if its first text comes within this, in milliseconds.
    #[serde(default = "default_slo")]
    pub slo_ms: u64,
    /// Groups of like nodes.
    #[serde(rename = "fleet")]
    pub fleets: Vec<Fleet>,
    /// Groups of like clients.
    #[serde(default)]
    pub clients: Vec<Clients>,
    /// What frames go through.
    #[serde(default)]
    pub network: NetworkRules,
    /// Limits of the market, the same for every node.
    #[serde(default)]
    pub market: MarketRules,
    /// What goes wrong.
    #[serde(default)]
    pub faults: FaultRules,
}

const fn default_slo() -> u64 {
    2000
}

/// A group of like nodes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fleet {
    /// What clients and reports call it.
    pub name: String,
    /// How many nodes.
    #[serde(default = "one")]
    pub count: u32,
    /// One of [`REGIONS`].
    pub region: String,
    /// When its nodes start, in seconds. Until then its clients are turned away.
    #[serde(default)]
    pub starts_s: u64,
    /// What each node's account begins with, in micro-credits.
    #[serde(default)]
    pub balance_micro: u64,
    /// Whether it serves strangers.
    #[serde(default)]
    pub provide: bool,
    /// Asked per million input bytes, in micro-credits.
    #[serde(default = "default_price_input")]
    pub price_input_micro: u64,
    /// Asked per million output bytes, in micro-credits.
    #[serde(default = "default_price_output")]
    pub price_output_micro: u64,
    /// Asked per million input bytes that are cached, in micro-credits; as for others if absent.
    pub price_cached_micro: Option<u64>,
    /// Slots that strangers never get.
    #[serde(default)]
    pub reserved_slots: u32,
    /// How it can be reached.
    #[serde(default)]
    pub nat: Nat,
    /// How it breaks the rules, if it does.
    #[serde(default)]
    pub adversary: Option<Adversary>,
    /// When it serves strangers, as in a node's configuration.
    #[serde(default = "always")]
    pub sell: String,
    /// Whether its own jobs take strangers' slots.
    #[serde(default = "yes")]
    pub preempt: bool,
    /// Its hardware, if it has any.
    pub gpu: Option<GpuRules>,
}

fn always() -> String {
    "always".into()
}
const fn yes() -> bool {
    true
}
const fn one() -> u32 {
    1
}
const fn default_price_input() -> u64 {
    50_000
}
const fn default_price_output() -> u64 {
    200_000
}

/// A simple GPU: each slot has a rate of its own.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GpuRules {
    /// The model it serves.
    pub model: String,
    /// Requests at once.
    pub slots: u32,
    /// Text per second and slot, in bytes.
    pub bytes_per_s: u64,
    /// Prompt read per second, in bytes.
    #[serde(default = "default_prefill")]
    pub prefill_bytes_per_s: u64,
    /// Text per event, in bytes.
    #[serde(default = "default_event")]
    pub event_bytes: u64,
}

const fn default_prefill() -> u64 {
    20_000
}
const fn default_event() -> u64 {
    48
}

/// When clients come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase", deny_unknown_fields)]
pub enum Arrivals {
    /// Independently of each other.
    Poisson {
        /// Requests per minute.
        per_minute: u64,
    },
    /// In bursts: on for a while, off for a while, both exponential.
    Burst {
        /// Requests per minute while on.
        per_minute: u64,
        /// Mean length of a burst, in milliseconds.
        on_ms: u64,
        /// Mean length of a lull, in milliseconds.
        off_ms: u64,
    },
}

/// Where jobs may run; as `Prefer` of the protocol.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Preference {
    /// Own hardware first.
    #[default]
    OwnFirst,
    /// Own hardware or an error.
    Own,
    /// The best of both.
    Any,
}

/// A group of like clients.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Clients {
    /// The fleet whose gateways they ask.
    pub fleet: String,
    /// The model they ask for.
    pub model: String,
    /// When they come.
    pub arrivals: Arrivals,
    /// Least and most bytes of a prompt.
    #[serde(default = "default_prompt")]
    pub prompt_bytes: [u64; 2],
    /// Least and most bytes of an answer.
    #[serde(default = "default_answer")]
    pub answer_bytes: [u64; 2],
    /// Where their jobs may run.
    #[serde(default)]
    pub prefer: Preference,
    /// The most they pay per million input bytes, in micro-credits.
    #[serde(default = "default_price_max")]
    pub price_input_max_micro: u64,
    /// The most they pay per million output bytes, in micro-credits.
    #[serde(default = "default_price_max")]
    pub price_output_max_micro: u64,
    /// How many leave before the end, per thousand.
    #[serde(default)]
    pub leave_per_mille: u32,
    /// How many ask for what no backend takes, per thousand.
    #[serde(default)]
    pub bad_per_mille: u32,
    /// How many ask for what only one provider can finish (tool calls and the like), per thousand.
    #[serde(default)]
    pub single_per_mille: u32,
}

const fn default_prompt() -> [u64; 2] {
    [100, 1500]
}
const fn default_answer() -> [u64; 2] {
    [50, 900]
}
const fn default_price_max() -> u64 {
    10_000_000
}

/// What frames go through.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct NetworkRules {
    /// Most that is added to a frame's way, in microseconds.
    pub jitter_us: u64,
    /// How many of a million frames break their stream, until the faults stop.
    pub break_per_million: u32,
    /// How many of a million probes, offers and ledger messages get lost, until the faults stop.
    pub drop_per_million: u32,
    /// How many of these come twice.
    pub double_per_million: u32,
    /// How many of these take longer than others, so that later ones overtake them.
    pub lag_per_million: u32,
    /// The most that they take longer, in microseconds.
    pub lag_us: u64,
}

impl Default for NetworkRules {
    fn default() -> Self {
        Self {
            jitter_us: 2000,
            break_per_million: 0,
            drop_per_million: 0,
            double_per_million: 0,
            lag_per_million: 0,
            lag_us: 400_000,
        }
    }
}

/// Limits of the market that runs shorten, so that settlement and refund are seen within minutes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct MarketRules {
    /// Deposit of a new session, in micro-credits.
    pub deposit_micro: u64,
    /// How many providers have a session ready before a job needs it.
    pub sessions_ahead: u32,
    /// How long a session lasts, in seconds. The protocol opens no job on one that ends within 600.
    pub session_s: u64,
    /// How long after its end the rest may be taken back, in seconds.
    pub grace_s: u64,
    /// How long an earning session rests before it is settled, in seconds.
    pub settle_after_s: u64,
    /// Output units paid ahead.
    pub window: u64,
    /// How many own jobs may wait.
    pub queue_max: u64,
    /// How long one may wait, in seconds.
    pub queue_wait_s: u64,
    /// How long the ledger gathers entries for a block, in milliseconds.
    pub block_ms: u64,
}

impl Default for MarketRules {
    fn default() -> Self {
        Self {
            deposit_micro: 20_000,
            sessions_ahead: 3,
            session_s: 1200,
            grace_s: 60,
            settle_after_s: 10,
            window: 256,
            queue_max: 64,
            queue_wait_s: 30,
            block_ms: 40,
        }
    }
}

/// What goes wrong, and how often in the whole world. Then calm: nothing goes wrong after `until_s`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FaultRules {
    /// When the faults stop, in seconds.
    pub until_s: u64,
    /// Least and most length of each, in milliseconds.
    pub length_ms: [u64; 2],
    /// Crashes of nodes that serve strangers, per hour.
    pub provider_crashes_per_hour: u64,
    /// Crashes of nodes that do not, per hour.
    pub gateway_crashes_per_hour: u64,
    /// How many crashes strike between two effects of one event, per thousand.
    pub torn_per_mille: u32,
    /// Processes that freeze and go on, per hour.
    pub freezes_per_hour: u64,
    /// GPUs that stop for a while, per hour.
    pub gpu_stalls_per_hour: u64,
    /// GPUs that fail all they run, per hour.
    pub gpu_failures_per_hour: u64,
    /// Cuts of the network in two, per hour.
    pub partitions_per_hour: u64,
    /// Pauses of the ledger, per hour.
    pub ledger_pauses_per_hour: u64,
    /// Cuts through which nothing of one part gets out, while others get in, per hour.
    pub one_way_per_hour: u64,
    /// Cuts that come and go, per hour.
    pub flaps_per_hour: u64,
    /// Links that are slow for a while, per hour.
    pub slow_links_per_hour: u64,
    /// How many of a thousand providers leave for good in an hour, in the middle of their work; a newcomer takes each
    /// one's place. Fleets with clients stay.
    pub replaced_per_mille_per_hour: u64,
    /// The most by which a node's clock is off, either way, in milliseconds.
    pub clock_skew_ms: u64,
}

impl Default for FaultRules {
    fn default() -> Self {
        Self {
            until_s: 0,
            length_ms: [200, 8000],
            provider_crashes_per_hour: 0,
            gateway_crashes_per_hour: 0,
            torn_per_mille: 300,
            freezes_per_hour: 0,
            gpu_stalls_per_hour: 0,
            gpu_failures_per_hour: 0,
            partitions_per_hour: 0,
            ledger_pauses_per_hour: 0,
            one_way_per_hour: 0,
            flaps_per_hour: 0,
            slow_links_per_hour: 0,
            replaced_per_mille_per_hour: 0,
            clock_skew_ms: 0,
        }
    }
}

/// Why a scenario does not run.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ScenarioError {
    /// It is not TOML of this shape; the parser names line and field.
    #[error("not a scenario: {0}")]
    Malformed(String),
    /// A field does not hold.
    #[error("{field}: {why}")]
    Field {
        /// Such as `fleet[0].region`.
        field: String,
        /// What is wrong.
        why: String,
    },
    /// There is none of that name.
    #[error("no scenario is named `{0}`; there are {known}", known = names().join(", "))]
    Unknown(String),
}

/// The scenarios that ship with the simulator, as TOML.
const BUILT_IN: [&str; 6] = [
    include_str!("../scenarios/calm.toml"),
    include_str!("../scenarios/burst.toml"),
    include_str!("../scenarios/churn.toml"),
    include_str!("../scenarios/faults.toml"),
    include_str!("../scenarios/tight.toml"),
    include_str!("../scenarios/sold.toml"),
];

/// The name under which a seed draws its own scenario.
pub const SWARM: &str = "swarm";

fn names() -> Vec<String> {
    built_in().into_iter().map(|scenario| scenario.name).chain([SWARM.to_owned()]).collect()
}

/// The scenarios that ship with the simulator.
#[must_use]
pub fn built_in() -> Vec<Scenario> {
    BUILT_IN.iter().map(|text| Scenario::from_toml(text).expect("a test reads every built-in scenario")).collect()
}

impl Scenario {
    /// The built-in scenario of that name, or for [`SWARM`] the one that `seed` draws.
    ///
    /// # Errors
    /// [`ScenarioError::Unknown`] names those that there are.
    pub fn named(name: &str, seed: u64) -> Result<Self, ScenarioError> {
        if name == SWARM {
            return Ok(Self::drawn(seed));
        }
        let found = built_in().into_iter().find(|scenario| scenario.name == name);
        found.ok_or_else(|| ScenarioError::Unknown(name.to_owned()))
    }

    /// Reads and validates a scenario.
    ///
    /// # Errors
    /// [`ScenarioError::Malformed`], then [`ScenarioError::Field`].
    pub fn from_toml(text: &str) -> Result<Self, ScenarioError> {
        let scenario: Self = toml::from_str(text).map_err(|error| ScenarioError::Malformed(error.to_string()))?;
        scenario.validate()?;
        Ok(scenario)
    }

    /// Checks every field.
    ///
    /// # Errors
    /// The first field that does not hold.
    pub fn validate(&self) -> Result<(), ScenarioError> {
        let hold = |field: &str, holds: bool, why: &str| {
            if holds { Ok(()) } else { Err(ScenarioError::Field { field: field.to_owned(), why: why.to_owned() }) }
        };
        let range = |field: &str, value: u64, least: u64, most: u64| {
            hold(field, (least..=most).contains(&value), &format!("{value} is not between {least} and {most}"))
        };
        let pair = |field: &str, value: [u64; 2], least: u64, most: u64| {
            range(field, value[0], least, most)?;
            range(field, value[1], value[0], most)
        };
        hold("name", !self.name.is_empty(), "is empty")?;
        range("duration_s", self.duration_s, 1, 7 * 86_400)?;
        range("slo_ms", self.slo_ms, 1, 3_600_000)?;
        range("fleet", self.fleets.iter().map(|fleet| u64::from(fleet.count)).sum(), 1, 4096)?;
        for (index, fleet) in self.fleets.iter().enumerate() {
            let at = |name: &str| format!("fleet[{index}].{name}");
            let twice = self.fleets[..index].iter().any(|other| other.name == fleet.name);
            hold(&at("name"), !fleet.name.is_empty() && !twice, "is empty or used twice")?;
            hold(&at("region"), REGIONS.contains(&fleet.region.as_str()), &format!("is none of {REGIONS:?}"))?;
            range(&at("count"), u64::from(fleet.count), 1, 4096)?;
            range(&at("starts_s"), fleet.starts_s, 0, self.duration_s)?;
            range(&at("balance_micro"), fleet.balance_micro, 0, 1_000_000_000_000)?;
            range(&at("price_input_micro"), fleet.price_input_micro, 0, spillway_protocol::offer::PRICE_MAX_MICRO)?;
            range(&at("price_output_micro"), fleet.price_output_micro, 0, spillway_protocol::offer::PRICE_MAX_MICRO)?;
            range(&at("price_cached_micro"), fleet.price_cached_micro.unwrap_or_default(), 0, fleet.price_input_micro)?;
            if let Err(error) = fleet.sell.parse::<spillway_protocol::Sell>() {
                hold(&at("sell"), false, &error.to_string())?;
            }
            hold(&at("gpu"), fleet.gpu.is_some() || !fleet.provide, "is missing, but `provide` is set")?;
            let Some(gpu) = &fleet.gpu else { continue };
            hold(&at("gpu.model"), (1..=64).contains(&gpu.model.len()), "is not 1 to 64 bytes long")?;
            range(&at("gpu.slots"), u64::from(gpu.slots), 1, 4096)?;
            range(&at("gpu.bytes_per_s"), gpu.bytes_per_s, 1, 1_000_000_000)?;
            range(&at("gpu.prefill_bytes_per_s"), gpu.prefill_bytes_per_s, 1, 1_000_000_000)?;
            range(&at("gpu.event_bytes"), gpu.event_bytes, 1, 65_536)?;
        }
        for (index, clients) in self.clients.iter().enumerate() {
            let at = |name: &str| format!("clients[{index}].{name}");
            let known = self.fleets.iter().any(|fleet| fleet.name == clients.fleet);
            hold(&at("fleet"), known, &format!("no fleet is named `{}`", clients.fleet))?;
            hold(&at("model"), (1..=64).contains(&clients.model.len()), "is not 1 to 64 bytes long")?;
            pair(&at("prompt_bytes"), clients.prompt_bytes, crate::oracle::HEADER_BYTES as u64, 1 << 20)?;
            pair(&at("answer_bytes"), clients.answer_bytes, 0, 1 << 20)?;
            match clients.arrivals {
                Arrivals::Poisson { per_minute } => range(&at("arrivals.per_minute"), per_minute, 1, 6_000_000)?,
                Arrivals::Burst { per_minute, on_ms, off_ms } => {
                    range(&at("arrivals.per_minute"), per_minute, 1, 6_000_000)?;
                    range(&at("arrivals.on_ms"), on_ms, 1, 86_400_000)?;
                    range(&at("arrivals.off_ms"), off_ms, 1, 86_400_000)?;
                }
            }
            for (name, share) in [
                ("leave_per_mille", clients.leave_per_mille),
                ("bad_per_mille", clients.bad_per_mille),
                ("single_per_mille", clients.single_per_mille),
            ] {
                range(&at(name), u64::from(share), 0, 1000)?;
            }
        }
        range("network.jitter_us", self.network.jitter_us, 0, 10_000_000)?;
        range("network.break_per_million", u64::from(self.network.break_per_million), 0, 1_000_000)?;
        range("network.drop_per_million", u64::from(self.network.drop_per_million), 0, 900_000)?;
        range("network.double_per_million", u64::from(self.network.double_per_million), 0, 1_000_000)?;
        range("network.lag_per_million", u64::from(self.network.lag_per_million), 0, 1_000_000)?;
        range("network.lag_us", self.network.lag_us, 0, 10_000_000)?;
        range("faults.clock_skew_ms", self.faults.clock_skew_ms, 0, 10_000)?;
        range("market.deposit_micro", self.market.deposit_micro, 1, 1_000_000_000_000)?;
        range("market.sessions_ahead", u64::from(self.market.sessions_ahead), 0, 64)?;
        range("market.session_s", self.market.session_s, 660, 30 * 86_400)?;
        range("market.grace_s", self.market.grace_s, 1, 30 * 86_400)?;
        range("market.settle_after_s", self.market.settle_after_s, 0, self.market.session_s / 2)?;
        range("market.window", self.market.window, 16, 1 << 20)?;
        range("market.queue_max", self.market.queue_max, 0, 65_536)?;
        range("market.queue_wait_s", self.market.queue_wait_s, 0, 3600)?;
        range("market.block_ms", self.market.block_ms, 1, 60_000)?;
        range("faults.until_s", self.faults.until_s, 0, 7 * 86_400)?;
        pair("faults.length_ms", self.faults.length_ms, 1, 600_000)?;
        range("faults.torn_per_mille", u64::from(self.faults.torn_per_mille), 0, 1000)?;
        for (name, rate) in [
            ("provider_crashes_per_hour", self.faults.provider_crashes_per_hour),
            ("gateway_crashes_per_hour", self.faults.gateway_crashes_per_hour),
            ("freezes_per_hour", self.faults.freezes_per_hour),
            ("gpu_stalls_per_hour", self.faults.gpu_stalls_per_hour),
            ("gpu_failures_per_hour", self.faults.gpu_failures_per_hour),
            ("partitions_per_hour", self.faults.partitions_per_hour),
            ("ledger_pauses_per_hour", self.faults.ledger_pauses_per_hour),
            ("one_way_per_hour", self.faults.one_way_per_hour),
            ("flaps_per_hour", self.faults.flaps_per_hour),
            ("slow_links_per_hour", self.faults.slow_links_per_hour),
            ("replaced_per_mille_per_hour", self.faults.replaced_per_mille_per_hour),
        ] {
            range(&format!("faults.{name}"), rate, 0, 36_000)?;
        }
        Ok(())
    }

    /// What was added to drawn scenarios later, by a stream of draws of its own, so that the rest of each stays as it was.
    fn widen(
        seed: u64,
        fleets: &mut Vec<Fleet>,
        clients: &mut Vec<Clients>,
        network: &mut NetworkRules,
        faults: &mut FaultRules,
    ) {
        let mut draws = Draws::new(seed, "scenario, wider");
        let mut some = |most: u64| if draws.happens(500_000) { draws.below(most) } else { 0 };
        network.double_per_million = some(30_000) as u32;
        network.lag_per_million = some(50_000) as u32;
        // One in eight goes on without anything that goes wrong: see `until_s`.
        faults.one_way_per_hour = some(250);
        faults.flaps_per_hour = some(150);
        faults.slow_links_per_hour = some(250);
        faults.replaced_per_mille_per_hour = some(30_000);
        faults.clock_skew_ms = some(2_000);
        for fleet in fleets.iter_mut() {
            fleet.nat = match draws.below(10) {
                0 => Nat::Closed,
                1 | 2 => Nat::Relayed,
                _ => Nat::Open,
            };
        }
        // One in four has an adversary among its providers, one in ten among its consumers.
        if draws.happens(250_000) {
            let like = fleets.iter().rfind(|fleet| fleet.provide).expect("each has a provider").clone();
            let kind = Adversary::PROVIDERS[draws.below(Adversary::PROVIDERS.len() as u64) as usize];
            let count = draws.within([1, 2]) as u32;
            fleets.push(Fleet { name: "adversary".into(), count, adversary: Some(kind), ..like });
        }
        if draws.happens(100_000) {
            let kind = Adversary::CONSUMERS[draws.below(Adversary::CONSUMERS.len() as u64) as usize];
            let (like, asks) = (fleets[0].clone(), clients[0].clone());
            let name = "adversary-consumer".to_owned();
            let arrivals = Arrivals::Poisson { per_minute: draws.within([5, 20]) };
            clients.push(Clients { fleet: name.clone(), arrivals, ..asks });
            fleets.push(Fleet { name, count: 1, provide: false, gpu: None, adversary: Some(kind), ..like });
        }
    }

    /// The scenario that `seed` draws: small, and with some of every fault.
    #[must_use]
    pub fn drawn(seed: u64) -> Self {
        let mut draws = Draws::new(seed, "scenario");
        let region = |draws: &mut Draws| DRAWN_REGIONS[draws.below(DRAWN_REGIONS.len() as u64) as usize].to_owned();
        let gpu = |draws: &mut Draws| GpuRules {
            model: "m".into(),
            slots: draws.within([1, 4]) as u32,
            bytes_per_s: draws.within([60, 600]),
            prefill_bytes_per_s: draws.within([2000, 40_000]),
            event_bytes: draws.within([8, 160]),
        };
        let mut fleets = Vec::new();
        let mut clients = Vec::new();
        for index in 0..draws.within([1, 2]) {
            let own = draws.happens(450_000);
            fleets.push(Fleet {
                name: format!("gateway-{index}"),
                count: draws.within([1, 2]) as u32,
                region: region(&mut draws),
                // Some run out of money.
                starts_s: 0,
                balance_micro: if draws.happens(150_000) { 30_000 } else { 10_000_000 },
                provide: own && draws.happens(300_000),
                price_input_micro: draws.within([0, 200_000]),
                price_output_micro: draws.within([0, 800_000]),
                price_cached_micro: None,
                reserved_slots: draws.within([0, 1]) as u32,
                nat: Nat::Open,
                adversary: None,
                sell: always(),
                preempt: draws.happens(700_000),
                gpu: own.then(|| GpuRules { slots: 1, ..gpu(&mut draws) }),
            });
            clients.push(Clients {
                fleet: format!("gateway-{index}"),
                model: "m".into(),
                arrivals: if draws.happens(500_000) {
                    Arrivals::Poisson { per_minute: draws.within([15, 45]) }
                } else {
                    Arrivals::Burst { per_minute: draws.within([40, 120]), on_ms: 5000, off_ms: 10_000 }
                },
                prompt_bytes: [40, draws.within([100, 3000])],
                answer_bytes: [0, draws.within([200, 3000])],
                prefer: match draws.below(10) {
                    0 if own => Preference::Own,
                    1 | 2 => Preference::Any,
                    _ => Preference::OwnFirst,
                },
                price_input_max_micro: draws.within([100_000, 400_000]),
                price_output_max_micro: draws.within([400_000, 1_600_000]),
                leave_per_mille: draws.within([0, 150]) as u32,
                bad_per_mille: draws.within([0, 40]) as u32,
                single_per_mille: draws.within([0, 200]) as u32,
            });
        }
        for index in 0..draws.within([1, 3]) {
            let price_input_micro = draws.within([0, 200_000]);
            fleets.push(Fleet {
                name: format!("provider-{index}"),
                count: draws.within([1, 2]) as u32,
                region: region(&mut draws),
                starts_s: 0,
                balance_micro: 0,
                provide: true,
                price_input_micro,
                price_output_micro: draws.within([1, 800_000]),
                price_cached_micro: draws.happens(500_000).then(|| draws.within([0, price_input_micro])),
                reserved_slots: 0,
                nat: Nat::Open,
                adversary: None,
                sell: if draws.happens(100_000) { format!("below {}%", draws.within([1, 100])) } else { always() },
                preempt: true,
                gpu: Some(gpu(&mut draws)),
            });
        }
        // One in eight is without faults: nothing excuses a failure there.
        let until_s = if draws.happens(125_000) { 0 } else { 40 };
        let mut rate = |most: u64| if draws.happens(700_000) { draws.below(most) } else { 0 };
        let mut faults = FaultRules {
            until_s,
            length_ms: [50, 9000],
            provider_crashes_per_hour: rate(900),
            gateway_crashes_per_hour: rate(250),
            torn_per_mille: 500,
            freezes_per_hour: rate(250),
            gpu_stalls_per_hour: rate(250),
            gpu_failures_per_hour: rate(250),
            partitions_per_hour: rate(250),
            ledger_pauses_per_hour: rate(120),
            ..FaultRules::default()
        };
        let mut market = MarketRules {
            deposit_micro: draws.within([500, 40_000]),
            settle_after_s: draws.within([1, 30]),
            window: draws.within([64, 2048]),
            session_s: draws.within([660, 1500]),
            queue_max: draws.within([0, 16]),
            queue_wait_s: draws.within([1, 20]),
            block_ms: draws.within([10, 1500]),
            ..MarketRules::default()
        };
        let mut network = NetworkRules {
            jitter_us: draws.within([0, 40_000]),
            break_per_million: draws.within([0, 3000]) as u32,
            drop_per_million: draws.within([0, 50_000]) as u32,
            ..NetworkRules::default()
        };
        market.sessions_ahead = draws.within([0, 4]) as u32;
        Self::widen(seed, &mut fleets, &mut clients, &mut network, &mut faults);
        let about = "drawn by its seed".into();
        // Clients go on after the faults, to see whether all is well again.
        let duration_s = if until_s == 0 { 40 } else { until_s + 45 };
        Self { name: SWARM.into(), about, duration_s, slo_ms: 2000, fleets, clients, network, market, faults }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_built_in_reads_and_survives_writing() {
        for text in BUILT_IN {
            let scenario = Scenario::from_toml(text).unwrap();
            let written = toml::to_string(&scenario).unwrap();
            assert_eq!(Scenario::from_toml(&written).unwrap(), scenario);
            assert_eq!(Scenario::named(&scenario.name, 0).unwrap(), scenario);
        }
    }

    #[test]
    fn whatever_a_seed_draws_is_valid() {
        for seed in 0..500 {
            Scenario::drawn(seed).validate().unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        }
    }

    #[test]
    fn what_does_not_hold_is_named() {
        let good = BUILT_IN[1];
        for (from, to, says) in [
            ("duration_s = 60", "duration_s = 0", "duration_s: 0 is not between"),
            ("duration_s = 60", "duration = 60", "unknown field `duration`"),
            ("region = \"france\"", "region = \"mars\"", "fleet[0].region: is none of"),
            ("slots = 1", "slots = 0", "fleet[0].gpu.slots: 0"),
            ("region = \"france\"", "region = \"france\"\nsell = \"at times\"", "fleet[0].sell: neither `always`"),
            ("fleet = \"gateway\"", "fleet = \"nobody\"", "clients[0].fleet: no fleet is named `nobody`"),
            ("per_minute = ", "per_hour = ", "per_hour"),
        ] {
            assert!(good.contains(from), "the built-in no longer has `{from}`");
            let error = Scenario::from_toml(&good.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(says), "{from} -> {to} says: {error}");
        }
        assert!(
            Scenario::named("none", 0)
                .unwrap_err()
                .to_string()
                .contains("calm, burst, churn, faults, tight, sold, swarm")
        );
    }
}
