//! Nodes that break the rules: a real peer between a driver that lies. It changes, drops and adds what the peer asks for,
//! and keeps from the peer what it should not hear, with the node's own keys and on the real wire.
//! Invariant: an honest node hears of all this only what a stranger could have sent it.

mod consumer;
mod provider;

use crate::draws::Draws;
use crate::network::HostId;
use crate::world::{Happening, World};
use serde::{Deserialize, Serialize};
use spillway_ledger::{NodeId, SessionId, SignedBytes};
use spillway_protocol::{Effect, Event, StreamId};
use std::collections::{BTreeMap, BTreeSet};

/// How a node breaks the rules. What is not said here it does as everyone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Adversary {
    /// Provider: receipts say three times what was delivered, and all that was vouched is claimed.
    Overcount,
    /// Provider: delivers the first text of each answer and then falls silent; claims all that was vouched.
    Stall,
    /// Provider: takes each job and never says a word; claims all that was vouched.
    Silent,
    /// Provider: quotes whatever its load, refuses each job, and claims the voucher that came with it.
    FalseCapacity,
    /// Provider: says that a huge event waits for payment, falls silent, and claims all that was vouched.
    GrabAhead,
    /// Provider: offers at a tenth of what it quotes.
    PriceBait,
    /// Provider: answers every probe with the first quote that the consumer had from it.
    OldQuotes,
    /// Provider: gives another text of the same length, as a smaller model would.
    OtherText,
    /// Consumer: pays what comes with a job's opening and nothing after it.
    NonPayer,
    /// Consumer: raises what its vouchers promise without signing anew.
    ForgedVouchers,
    /// Consumer: signs its vouchers with a key that is not the session's.
    OtherKey,
    /// Consumer: pays with vouchers of sessions that it has with others.
    ForeignVouchers,
    /// Consumer: pays each job of a session with the session's first voucher.
    OldVouchers,
    /// Consumer: promises ten times the deposit.
    OverDeposit,
    /// Consumer: locks the same money for two providers at once, and opens each job twice on one voucher.
    DoubleOpen,
    /// Consumer: sends probes and openings without money to everyone, fifty a second.
    Flood,
    /// Provider: serves as everyone does; one of many names of one owner.
    Sybil,
    /// Consumer: buys of adversaries alone, to give them a history.
    Washer,
}

impl Adversary {
    /// Every provider among them, but [`Adversary::Sybil`], who harms nobody by itself.
    pub const PROVIDERS: [Self; 8] = [
        Self::Overcount,
        Self::Stall,
        Self::Silent,
        Self::FalseCapacity,
        Self::GrabAhead,
        Self::PriceBait,
        Self::OldQuotes,
        Self::OtherText,
    ];
    /// Every consumer among them, but [`Adversary::Washer`], who harms nobody by itself.
    pub const CONSUMERS: [Self; 8] = [
        Self::NonPayer,
        Self::ForgedVouchers,
        Self::OtherKey,
        Self::ForeignVouchers,
        Self::OldVouchers,
        Self::OverDeposit,
        Self::DoubleOpen,
        Self::Flood,
    ];

    /// Whether it claims all that was ever vouched to it.
    const fn is_thief(self) -> bool {
        matches!(self, Self::Overcount | Self::Stall | Self::Silent | Self::FalseCapacity | Self::GrabAhead)
    }

    /// Whether it cheats as a provider, and so has no use for others' offers.
    #[must_use]
    pub fn is_provider(self) -> bool {
        self == Self::Sybil || Self::PROVIDERS.contains(&self)
    }
}

impl std::fmt::Display for Adversary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // As in scenario files.
        let name = serde_json::to_string(self).map_err(|_| std::fmt::Error)?;
        f.pad(name.trim_matches('"'))
    }
}

/// What a lying driver remembers.
#[derive(Debug)]
pub(crate) struct Mischief {
    kind: Adversary,
    draws: Draws,
    /// The best voucher that came in, by session.
    loot: BTreeMap<SessionId, (u64, SignedBytes)>,
    /// The first quote given, by consumer; the first voucher given, by session.
    quotes: BTreeMap<NodeId, SignedBytes>,
    vouchers: BTreeMap<SessionId, SignedBytes>,
    /// Streams on which nothing is said any more.
    hushed: BTreeSet<StreamId>,
    /// Whom probes are to be answered.
    asking: BTreeMap<spillway_protocol::ProbeId, NodeId>,
    /// What is to be sent on streams that the peer knows nothing of, once they are open.
    own_streams: BTreeMap<StreamId, spillway_protocol::Frame>,
    /// Whom a flooder has asked.
    floods: BTreeMap<spillway_protocol::ProbeId, HostId>,
    made: u64,
}

impl Mischief {
    pub(crate) fn new(seed: u64, id: HostId, kind: Adversary) -> Self {
        Self {
            kind,
            draws: Draws::new(seed, &format!("adversary {id}")),
            loot: BTreeMap::new(),
            quotes: BTreeMap::new(),
            vouchers: BTreeMap::new(),
            hushed: BTreeSet::new(),
            asking: BTreeMap::new(),
            own_streams: BTreeMap::new(),
            floods: BTreeMap::new(),
            made: 0,
        }
    }

    /// A number for a probe or stream that the peer will never use itself.
    fn number(&mut self) -> u64 {
        self.made += 1;
        (1 << 40) + self.made
    }
}

/// How often a thief claims what it can, and a flooder floods, in microseconds.
const CLAIM_US: u64 = 15_000_000;
const FLOOD_US: u64 = 20_000;

impl World {
    /// How a node breaks the rules, if it does.
    pub(crate) fn adversary(&self, id: HostId) -> Option<Adversary> {
        self.hosts.get(id)?.adversary
    }

    /// What the driver of an adversary makes of what its peer asks for.
    pub(crate) fn twist(&mut self, id: HostId, effect: Effect) -> Vec<Effect> {
        let Some(mut mischief) = self.hosts[id].mischief.take() else { return vec![effect] };
        let effects = if mischief.kind.is_provider() {
            self.twist_provider(id, &mut mischief, effect)
        } else {
            self.twist_consumer(id, &mut mischief, effect)
        };
        self.hosts[id].mischief = Some(mischief);
        effects
    }

    /// What the peer of an adversary is told of what happened; `None` if nothing.
    pub(crate) fn colour(&mut self, id: HostId, event: Event) -> Option<Event> {
        let Some(mut mischief) = self.hosts[id].mischief.take() else { return Some(event) };
        let event = if mischief.kind.is_provider() {
            self.colour_provider(id, &mut mischief, event)
        } else {
            self.colour_consumer(id, &mut mischief, event)
        };
        self.hosts[id].mischief = Some(mischief);
        event
    }

    /// An adversary starts, and with it what it does of its own accord.
    pub(crate) fn begin_mischief(&mut self, id: HostId) {
        let Some(kind) = self.adversary(id) else { return };
        let life = self.hosts[id].life;
        if kind.is_thief() {
            self.line.after(CLAIM_US, Happening::Mischief(id, life));
        } else if kind == Adversary::Flood {
            self.line.after(FLOOD_US, Happening::Mischief(id, life));
        }
    }

    /// An adversary does something of its own accord.
    pub(crate) fn mischief(&mut self, id: HostId, life: u32) {
        if self.hosts[id].life != life || self.hosts[id].peer.is_none() {
            return;
        }
        let Some(mut mischief) = self.hosts[id].mischief.take() else { return };
        let again = if mischief.kind.is_thief() {
            self.claim_all(id, &mischief);
            CLAIM_US
        } else {
            self.flood(id, &mut mischief);
            FLOOD_US
        };
        self.hosts[id].mischief = Some(mischief);
        let scenario = &self.scenario;
        // Thieves go on until their sessions have ended; floods stop with the clients.
        let until = if again == CLAIM_US { scenario.market.session_s } else { 0 } + scenario.duration_s;
        if self.line.elapsed().as_secs() < until {
            self.line.after(again, Happening::Mischief(id, life));
        }
    }
}
