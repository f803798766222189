//! Nodes: what each uses and serves, its offers, and what it spent.
//! Invariant: what a node is follows from the seed and its number alone.

use super::memo::Memo;
use crate::draws::{Draws, key};
use spillway_ledger::{Account, Credits, Digest, NetworkId, NodeId, Price, SecretKey, Signed};
use spillway_protocol::discovery::{Discovery, Settings, Shard};
use spillway_protocol::offer::{METER, OFFER_LIFETIME};
use spillway_protocol::{ModelOffer, Now, Offer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Models in the market; the k-th is used 1/k as much as the first.
pub(super) const MODELS: u64 = 40;
/// Of 100 nodes, those that serve a model.
const PROVIDERS_PERCENT: u64 = 40;

/// A node's number, never used twice.
pub(super) type Index = usize;

/// The market that they are in.
pub(super) fn market() -> NetworkId {
    NetworkId(Digest::of("spillway-simulator/discovery", &[]))
}

pub(super) fn model_name(number: u64) -> String {
    format!("vendor/model-{number:02}-instruct")
}

/// What is sent and received, by what it is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum For {
    /// Gossiped notices.
    Gossip,
    /// Signs of life that are read in logs.
    Signs,
    /// Notices that are read in logs.
    Notices,
    /// Reading logs, and being read, beside what is read.
    Rounds,
    /// Telling peers of own offers.
    Tells,
    /// Asking for offers, and being asked, where an offer came of it.
    Pulls,
    /// The same where offers came of it of models that the node does not use: it saw them in the lobby.
    Lobby,
    /// The same where none did.
    Vain,
    /// Connections made for one offer, and the search for the address.
    Dials,
}

/// Bytes, by what for.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Spent {
    pub(super) sent: [u64; 9],
    pub(super) received: [u64; 9],
}

impl Spent {
    pub(super) fn sends(&mut self, what: For, bytes: u64) {
        self.sent[what as usize] += bytes;
    }

    pub(super) fn receives(&mut self, what: For, bytes: u64) {
        self.received[what as usize] += bytes;
    }

    pub(super) fn both(&self, what: For) -> u64 {
        self.sent[what as usize] + self.received[what as usize]
    }
}

/// One node.
pub(super) struct Node {
    pub(super) id: NodeId,
    pub(super) machine: Discovery<Memo>,
    secret: SecretKey,
    account: Account,
    pub(super) uses: Vec<u64>,
    pub(super) serves: Vec<u64>,
    prices: u64,
    pub(super) is_sybil: bool,
    pub(super) is_up: bool,
    pub(super) started: Now,
    /// When it is to be woken.
    pub(super) wakes: Option<Now>,
    /// Connected peers by shard.
    pub(super) mesh: BTreeMap<Shard, BTreeSet<Index>>,
    /// When it last looked for peers of a shard.
    pub(super) sought: BTreeMap<Shard, Now>,
    pub(super) spent: Spent,
    /// When its spending was last set to nothing.
    pub(super) counted_from: Now,
}

/// A model, drawn by its popularity.
fn popular(draws: &mut Draws) -> u64 {
    let weight = |number: u64| 1_000_000 / (number + 1);
    let mut at = draws.below((0..MODELS).map(weight).sum());
    (0..MODELS)
        .find(|number| {
            let here = weight(*number);
            let found = at < here;
            at = at.saturating_sub(here);
            found
        })
        .unwrap_or(MODELS - 1)
}

impl Node {
    /// An honest node: it uses one to three models, and two in five serve one, one in fifty two.
    pub(super) fn honest(seed: u64, index: Index, now: Now, memo: Memo) -> Self {
        let mut draws = super::draws(seed, &format!("node {index}"));
        let mut uses: Vec<u64> = (0..draws.within([1, 3])).map(|_| popular(&mut draws)).collect();
        let mut serves = Vec::new();
        if draws.below(100) < PROVIDERS_PERCENT {
            serves.push(popular(&mut draws));
            uses.truncate(1);
            if draws.below(20) == 0 {
                serves.push(popular(&mut draws));
            }
        }
        for list in [&mut uses, &mut serves] {
            list.sort_unstable();
            list.dedup();
        }
        Self::new(seed, index, now, memo, uses, serves, false)
    }

    /// One that pretends to serve a model.
    pub(super) fn sybil(seed: u64, index: Index, now: Now, memo: Memo, model: u64) -> Self {
        Self::new(seed, index, now, memo, Vec::new(), vec![model], true)
    }

    fn new(seed: u64, index: Index, now: Now, memo: Memo, uses: Vec<u64>, serves: Vec<u64>, is_sybil: bool) -> Self {
        let secret = SecretKey::from_bytes(&key(seed, "discovery node", index as u64));
        let machine = Discovery::new(
            market(),
            secret.clone(),
            Settings::default(),
            memo,
            key(seed, "discovery seed", index as u64),
        );
        Self {
            id: machine.node(),
            machine,
            account: Account(SecretKey::from_bytes(&key(seed, "discovery account", index as u64)).public()),
            secret,
            uses,
            serves,
            prices: 0,
            is_sybil,
            is_up: true,
            started: now,
            wakes: None,
            mesh: BTreeMap::new(),
            sought: BTreeMap::new(),
            spent: Spent::default(),
            counted_from: now,
        }
    }

    /// The offer that the market of this node issues now.
    pub(super) fn offer(&self, index: Index, now: Now) -> Arc<Signed<Offer>> {
        let [_, a, b, c, ..] = (index as u64).to_be_bytes().map(u64::from);
        let [.., d, e] = (index as u64).to_be_bytes();
        let output = Credits::new(100_000 + 1_000 * (index as u64 % 97) + self.prices);
        let model = |number: &u64| ModelOffer {
            id: model_name(*number),
            weights: Digest::of("weights", &[&number.to_le_bytes()]),
            quantization: "Q4_K_M".into(),
            engine: "vllm 0.11".into(),
            context_max: 131_072,
            kinds: vec!["chat".into(), "completion".into()],
            meter: METER.into(),
            price: Price { input: Credits::new(50_000), cached: Credits::new(10_000), output },
            slots: 8,
            keeps_nothing: false,
        };
        let host = format!("{}.{}.{}.{}", 11 + (a + b + c) % 90, d, e, 10);
        let offer = Offer {
            network: market(),
            node: self.id,
            account: self.account,
            sequence: now.ms(),
            issued_ms: now.ms(),
            expires_ms: now.after(OFFER_LIFETIME).ms(),
            region: "eu-west".into(),
            coordinate: spillway_protocol::router::Coordinate::default(),
            addresses: vec![format!("/ip4/{host}/udp/4600/quic-v1"), format!("/ip4/{host}/tcp/4600")],
            models: self.serves.iter().map(model).collect(),
        };
        Arc::new(Signed::sign(offer, &self.secret))
    }

    /// Asks another price from now on.
    pub(super) const fn change_price(&mut self) {
        self.prices += 1;
    }

    /// How many peers it is connected to.
    pub(super) fn connections(&self) -> usize {
        self.mesh.values().flatten().collect::<BTreeSet<_>>().len()
    }
}
