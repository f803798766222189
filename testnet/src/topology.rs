//! Which nodes a network has and how each is set.
//! Invariant: the first plans keep the books, and are everyone's bootstrap addresses.

use spillway_protocol::config::{
    BackendSection, EdgeSection, GatewaySection, LedgerRole, LedgerSection, NetworkSection, ProvideSection,
    ServerSection, SpendSection, TelemetrySection,
};
use spillway_protocol::{Kind, NodeConfig};

/// The name of the node that keeps the books.
pub const BOOKS: &str = "books";
/// What validators' names begin with.
pub const VALIDATOR: &str = "validator-";
/// The name of the node whose clients the demo plays.
pub const GATEWAY: &str = "gateway";
/// The model of the demo: the guide that ships with Spillway.
pub const GUIDE: &str = "guide";
/// An answer's speed on demo nodes, in tokens per second: slow enough to watch, and to be interrupted.
const GUIDE_SPEED: f64 = 30.0;

/// One node to be.
#[derive(Clone, Debug)]
pub struct Plan {
    /// Its folder's name, and its own to people.
    pub name: String,
    /// Its settings. Bootstrap addresses and the authority are filled in when the books are up.
    pub config: NodeConfig,
}

impl Plan {
    /// A node on free loopback ports with an admin API, and nothing else: no backend, no edge, not for strangers.
    #[must_use]
    pub fn new(name: &str) -> Self {
        let config = NodeConfig {
            genesis: crate::genesis::GENESIS_FILE.into(),
            network: NetworkSection {
                listen: vec!["/ip4/127.0.0.1/udp/0/quic-v1".into(), "/ip4/127.0.0.1/tcp/0".into()],
                bootstrap: Vec::new(),
                mdns: false,
                region: "local".into(),
                emulated_rtt_ms: 0,
            },
            gateway: Some(GatewaySection { listen: "127.0.0.1:0".into(), ..GatewaySection::default() }),
            edge: None,
            backend: Vec::new(),
            policy: std::collections::BTreeMap::new(),
            provide: ProvideSection::default(),
            spend: SpendSection::default(),
            ledger: LedgerSection::default(),
            telemetry: TelemetrySection::default(),
        };
        Self { name: name.into(), config }
    }

    /// The node that keeps the books.
    #[must_use]
    pub fn books() -> Self {
        let mut plan = Self::new(BOOKS);
        plan.config.ledger.role = LedgerRole::Solo;
        plan
    }

    /// One of a committee's validators, of which each keeps the books; addresses are filled in when the network is founded.
    #[must_use]
    pub fn validator(number: usize) -> Self {
        let mut plan = Self::new(&format!("{VALIDATOR}{number}"));
        plan.config.ledger.role = LedgerRole::Validate;
        plan
    }

    /// Whether this node keeps the books, alone or with others.
    #[must_use]
    pub fn keeps_books(&self) -> bool {
        match self.config.ledger.role {
            LedgerRole::Solo | LedgerRole::Validate => true,
            LedgerRole::Follow => false,
        }
    }

    /// With the guide model in the embedded engine, `slots` answers at once.
    #[must_use]
    pub fn with_guide(mut self, slots: u32) -> Self {
        self.config.backend.push(BackendSection::Embedded {
            name: None,
            model: GUIDE.into(),
            gguf: None,
            slots,
            tokens_per_second: Some(GUIDE_SPEED),
        });
        self
    }

    /// With an OpenAI-compatible server by URL as its backend.
    #[must_use]
    pub fn with_server(mut self, url: &str, slots: u32) -> Self {
        let server = ServerSection { slots, ..ServerSection::new(url) };
        self.config.backend.push(BackendSection::OpenAi(Box::new(server)));
        self
    }

    /// With servers that serve these endpoints.
    #[must_use]
    pub fn serving(mut self, kinds: &[Kind]) -> Self {
        for backend in &mut self.config.backend {
            if let BackendSection::OpenAi(server) = backend {
                server.endpoints = kinds.to_vec();
            }
        }
        self
    }

    /// With a QUIC edge for clients that are no peers.
    #[must_use]
    pub fn with_edge(mut self) -> Self {
        self.config.edge = Some(EdgeSection { listen: "127.0.0.1:0".into() });
        self
    }

    /// In `region`, `rtt_ms` away from everyone.
    #[must_use]
    pub fn at(mut self, region: &str, rtt_ms: u32) -> Self {
        self.config.network.region = region.into();
        self.config.network.emulated_rtt_ms = rtt_ms;
        self
    }

    /// For strangers, at these credits per million units. Small windows and prompt settlement, so that a short run sees
    /// several vouchers and the split.
    #[must_use]
    pub fn provides(mut self, price_input: f64, price_output: f64) -> Self {
        self.config.provide = ProvideSection {
            enabled: true,
            price_input,
            price_output,
            reserved_slots: 0,
            window: 128,
            settle_after_s: 0.5,
            ..ProvideSection::default()
        };
        self
    }
}

/// The nodes of a network.
#[derive(Clone, Debug)]
pub struct Topology {
    /// In the order they start; those that keep the books come first.
    pub plans: Vec<Plan>,
}

impl Topology {
    /// The demo's: the books, a gateway with one slot of its own, and two strangers, near and dear, far and cheap.
    #[must_use]
    pub fn demo() -> Self {
        Self {
            plans: vec![
                Plan::books(),
                Plan::new(GATEWAY).with_guide(1).with_edge(),
                Plan::new("near").at("near", 0).with_guide(4).provides(0.10, 0.40),
                Plan::new("far").at("far", 120).with_guide(4).provides(0.05, 0.20),
            ],
        }
    }

    /// The plans that keep the books: the first ones.
    #[must_use]
    pub fn keepers(&self) -> &[Plan] {
        let count = self.plans.iter().take_while(|plan| plan.keeps_books()).count();
        &self.plans[..count]
    }

    /// With a committee of `count` validators in place of a lone authority.
    #[must_use]
    pub fn with_validators(mut self, count: usize) -> Self {
        self.plans.retain(|plan| !plan.keeps_books());
        self.plans.splice(..0, (1..=count).map(Plan::validator));
        self
    }
}
