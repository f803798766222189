//! A drawn market: organisations with fleets of their own, and strangers that sell.
//! Invariant: the same seed and setting draw the same market. An organisation's fleet is sized for what its own clients ask on
//! average, never for their peaks.

use super::setting::{Churn, GatewayRules, PriceRules, ReplicaRules, Setting, SettingError, hold, range};
use crate::data::{prices, regions};
use crate::draws::Draws;
use crate::engine::{Engine, EngineRules, Progress};
use crate::traces::Request;
use serde::Deserialize;

/// Requests of an organisation that its fleet's speed is measured with.
const MIX: usize = 400;

/// How organisations and strangers are drawn.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MarketRules {
    /// How many organisations. Each has a gateway, and the clients whose number modulo this is its own.
    pub organisations: u32,
    /// What their fleets are made of.
    pub own: Hardware,
    /// The share of a fleet's speed that its own clients need on average, in percent.
    pub utilisation_percent: u32,
    /// So many replicas for each organisation, instead of those that its clients need. Strangers are drawn as without it.
    #[serde(default)]
    pub own_count: Option<u32>,
    /// Whether organisations sell what their clients leave idle.
    #[serde(default)]
    pub own_sells: bool,
    /// What strangers' fleets are made of; each stranger draws one.
    pub strangers: Vec<Hardware>,
    /// Strangers are drawn until all together are as fast as this share of the organisations' fleets, in percent.
    pub strangers_percent: u32,
    /// The most replicas of one stranger; from 1 to this many, drawn evenly.
    pub stranger_replicas_max: u32,
    /// The model in the table of prices. Each seller draws one of its hosts' prices.
    pub model: String,
    /// Where they are; each draws one. All regions if left out.
    #[serde(default)]
    pub regions: Vec<String>,
    /// How strangers come and go.
    #[serde(default)]
    pub churn: Option<Churn>,
}

/// What a replica is made of.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hardware {
    /// The engine's preset.
    pub engine: String,
    /// Jobs that it takes at once.
    pub slots: u32,
    /// Slots that others than the owner never get.
    #[serde(default)]
    pub reserved_slots: u32,
}

impl Hardware {
    fn validate(&self, name: &str, setting: &Setting) -> Result<(), SettingError> {
        let known = setting.engine(&self.engine).is_some();
        hold(&format!("{name}.engine"), known, &format!("no engine is named `{}`", self.engine))?;
        range(&format!("{name}.slots"), u64::from(self.slots), 1, 1 << 20)?;
        range(&format!("{name}.reserved_slots"), u64::from(self.reserved_slots), 0, u64::from(self.slots))
    }

    fn replicas(&self, name: String, count: u32, owner: String, region: &str) -> ReplicaRules {
        ReplicaRules {
            name,
            count,
            engine: self.engine.clone(),
            region: region.to_owned(),
            owner,
            sells: true,
            price: PriceRules::default(),
            slots: self.slots,
            reserved_slots: self.reserved_slots,
            queue_max: 0,
            churn: None,
            down_s: Vec::new(),
        }
    }
}

/// What the clients of an organisation ask.
#[derive(Clone, Debug, Default)]
struct Demand {
    count: u64,
    /// Some of it, drawn evenly.
    mix: Vec<Request>,
}

impl MarketRules {
    pub(super) fn validate(&self, setting: &Setting) -> Result<(), SettingError> {
        range("market.organisations", u64::from(self.organisations), 1, 10_000)?;
        self.own.validate("market.own", setting)?;
        range("market.utilisation_percent", u64::from(self.utilisation_percent), 1, 1000)?;
        let some = !self.strangers.is_empty() || self.strangers_percent == 0;
        hold("market.strangers", some, "is empty, but `strangers_percent` is not 0")?;
        for (index, hardware) in self.strangers.iter().enumerate() {
            hardware.validate(&format!("market.strangers[{index}]"), setting)?;
        }
        range("market.own_count", u64::from(self.own_count.unwrap_or(0)), 0, 10_000)?;
        range("market.strangers_percent", u64::from(self.strangers_percent), 0, 100_000)?;
        range("market.stranger_replicas_max", u64::from(self.stranger_replicas_max), 1, 10_000)?;
        let models: Vec<_> = prices::models().collect();
        let priced = !prices::prices(&self.model).is_empty();
        hold("market.model", priced, &format!("`{}` is none of {models:?}", self.model))?;
        hold(
            "market.regions",
            setting.network.regions.is_empty(),
            "are the published ones, but `network.regions` is set",
        )?;
        for (index, region) in self.regions.iter().enumerate() {
            setting.known_region(&format!("market.regions[{index}]"), region)?;
        }
        Ok(())
    }

    /// The organisations and the strangers. The setting has passed validation.
    pub(super) fn draw(
        &self,
        seed: u64,
        setting: &Setting,
    ) -> Result<(Vec<GatewayRules>, Vec<ReplicaRules>), SettingError> {
        let mut draws = Draws::new(seed, "fleet market");
        let demands = self.demands(seed, setting)?;
        let region = |draws: &mut Draws| match self.regions.len() as u64 {
            0 => regions::REGIONS[draws.below(regions::COUNT as u64) as usize].to_owned(),
            count => self.regions[draws.below(count) as usize].clone(),
        };
        let hosts = prices::prices(&self.model);
        let price = |draws: &mut Draws| {
            let host = &hosts[draws.below(hosts.len() as u64) as usize];
            let (input_micro, output_micro) = (host.input_micro, host.output_micro);
            PriceRules { input_micro, cached_micro: host.cached_micro, output_micro }
        };
        let engine = |hardware: &Hardware| setting.engine(&hardware.engine).expect("validated");
        let (mut gateways, mut replicas) = (Vec::new(), Vec::new());
        let mut own_rate = 0.0;
        let everyone: Vec<Request> = demands.iter().flat_map(|demand| demand.mix.iter().take(60).cloned()).collect();
        for (index, demand) in demands.iter().enumerate() {
            let name = format!("organisation-{index}");
            let region = region(&mut draws);
            let members = Vec::new();
            gateways.push(GatewayRules {
                name: name.clone(),
                count: 1,
                region: region.clone(),
                organisation: name.clone(),
                clients: None,
                members,
            });
            let rate = rate(engine(&self.own), self.own.slots, &demand.mix);
            let asked = demand.count as f64 / setting.duration_s as f64;
            let count = whole_above(asked * 100.0 / f64::from(self.utilisation_percent) / rate);
            own_rate += f64::from(count) * rate;
            let mut fleet = self.own.replicas(format!("{name}-gpu"), count, name, &region);
            fleet.sells = self.own_sells;
            fleet.price = price(&mut draws);
            fleet.queue_max = 10_000;
            fleet.count = self.own_count.unwrap_or(count);
            if fleet.count > 0 {
                replicas.push(fleet);
            }
        }
        let wanted = own_rate * f64::from(self.strangers_percent) / 100.0;
        let rates: Vec<f64> =
            self.strangers.iter().map(|hardware| rate(engine(hardware), hardware.slots, &everyone)).collect();
        let (mut strangers_rate, mut strangers) = (0.0, 0);
        while strangers_rate < wanted {
            let kind = draws.below(self.strangers.len() as u64) as usize;
            let count = draws.within([1, u64::from(self.stranger_replicas_max)]) as u32;
            let name = format!("stranger-{strangers}");
            strangers += 1;
            let region = region(&mut draws);
            let mut fleet = self.strangers[kind].replicas(name.clone(), count, name, &region);
            fleet.price = price(&mut draws);
            fleet.churn = self.churn;
            strangers_rate += f64::from(count) * rates[kind];
            replicas.push(fleet);
        }
        Ok((gateways, replicas))
    }

    /// What each organisation's clients ask: one pass over the workload.
    fn demands(&self, seed: u64, setting: &Setting) -> Result<Vec<Demand>, SettingError> {
        let mut draws = Draws::new(seed, "fleet mix");
        let mut demands = vec![Demand::default(); self.organisations as usize];
        let mut workload = setting.requests(seed)?;
        while let Some(request) = workload.next().filter(|it| it.at_us < setting.duration_s * 1_000_000) {
            let demand = &mut demands[(request.client % self.organisations) as usize];
            demand.count += 1;
            // A reservoir: each request is in it with the same chance.
            if demand.mix.len() < MIX {
                demand.mix.push(request);
            } else if let Some(place) = demand.mix.get_mut(draws.below(demand.count) as usize) {
                *place = request;
            }
        }
        Ok(demands)
    }
}

fn whole_above(number: f64) -> u32 {
    let whole = number as u32;
    (whole + u32::from(f64::from(whole) < number)).max(1)
}

/// Requests a second that an engine serves if `slots` of these are always in it. 1 if there are none.
fn rate(engine: EngineRules, slots: u32, requests: &[Request]) -> f64 {
    let mut engine = Engine::new(engine);
    let mut left = requests.iter().filter(|request| engine.fits(request.input, request.output)).collect::<Vec<_>>();
    let count = left.len();
    let (mut now_us, mut id, mut told) = (0, 0, Vec::new());
    loop {
        while engine.load().running + engine.load().waiting < slots
            && let Some(request) = left.pop()
        {
            engine.submit(now_us, id, request.input, request.output, &request.prefix, 0);
            id += 1;
        }
        let Some(next_us) = engine.next_at() else { break };
        now_us = next_us;
        told.clear();
        engine.advance(now_us, &mut told);
        debug_assert!(told.iter().all(|it| !matches!(it, Progress::Tokens { .. })));
    }
    if now_us == 0 { 1.0 } else { count as f64 * 1e6 / now_us as f64 }
}
