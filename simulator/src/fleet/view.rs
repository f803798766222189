//! What a gateway's policy sees.
//! Invariant: strangers only as messages told of them, unless the setting is one data centre; the truth only for oracles.

use super::gateway::{Gateway, Pace, Seen};
use super::job::Jobs;
use super::policy::{Ask, GatewayId, ReplicaId};
use super::replica::Replica;
use super::setting::{PriceRules, Setting, SloRules};
use crate::engine::{Batch, Chunk};

/// What all views look at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Scene<'a> {
    pub(super) setting: &'a Setting,
    pub(super) gateways: &'a [Gateway],
    pub(super) replicas: &'a [Replica],
    pub(super) ways: &'a Ways,
    pub(super) jobs: &'a Jobs,
}

/// One-way times between regions, without jitter.
#[derive(Clone, Debug)]
pub(super) struct Ways {
    pub(super) us: Vec<u64>,
    pub(super) regions: usize,
}

impl Ways {
    pub(super) fn us(&self, from: usize, to: usize) -> u64 {
        self.us[from * self.regions + to]
    }
}

/// What one gateway knows now.
#[derive(Debug)]
pub struct View<'a> {
    pub(super) now_us: u64,
    pub(super) scene: Scene<'a>,
    pub(super) gateway: &'a Gateway,
    pub(super) candidates: &'a [ReplicaId],
    pub(super) sees_all: bool,
    /// Probes ordered in this call.
    pub(super) probes: &'a mut Vec<(ReplicaId, u32)>,
}

impl<'a> View<'a> {
    /// The time, in microseconds.
    #[must_use]
    pub const fn now_us(&self) -> u64 {
        self.now_us
    }

    /// The replicas that this job may be sent to, in order of their numbers. Some may be down, or full.
    #[must_use]
    pub const fn candidates(&self) -> &'a [ReplicaId] {
        self.candidates
    }

    /// Replicas of this gateway's organisation.
    #[must_use]
    pub fn own(&self) -> &'a [ReplicaId] {
        &self.gateway.own
    }

    /// Replicas of others that sell.
    #[must_use]
    pub fn network(&self) -> &'a [ReplicaId] {
        &self.gateway.network
    }

    /// How many replicas there are, known to this gateway or not.
    #[must_use]
    pub const fn replicas(&self) -> usize {
        self.scene.replicas.len()
    }

    /// This gateway.
    #[must_use]
    pub const fn gateway(&self) -> GatewayId {
        self.gateway.id
    }

    /// All gateways, this one too.
    #[must_use]
    pub const fn gateways(&self) -> usize {
        self.scene.gateways.len()
    }

    /// What is promised to clients.
    #[must_use]
    pub const fn slo(&self) -> SloRules {
        self.scene.setting.slo
    }

    /// The other gateways of this organisation: those that a job may be forwarded to.
    pub fn siblings(&self) -> impl Iterator<Item = GatewayId> + 'a {
        let (id, organisation) = (self.gateway.id, self.gateway.organisation);
        let others = self.scene.gateways.iter();
        others.filter(move |it| it.organisation == organisation && it.id != id).map(|it| it.id)
    }

    /// Jobs that wait at a gateway: this one, or any in one data centre; 0 where it is not known.
    #[must_use]
    pub fn queue(&self, gateway: GatewayId) -> usize {
        if gateway == self.gateway.id || self.scene.setting.live || self.sees_all {
            return self.scene.gateways[gateway.index()].queue.len();
        }
        0
    }

    /// The region of a gateway, as a number.
    #[must_use]
    pub fn gateway_region(&self, gateway: GatewayId) -> usize {
        self.scene.gateways[gateway.index()].region
    }

    /// The region that a replica states, as a number.
    #[must_use]
    pub fn region(&self, replica: ReplicaId) -> usize {
        self.scene.replicas[replica.index()].region
    }

    /// The round trip to another gateway, in microseconds.
    #[must_use]
    pub fn gateway_rtt_us(&self, gateway: GatewayId) -> u64 {
        2 * self.scene.ways.us(self.gateway.region, self.gateway_region(gateway))
    }

    /// Whether a replica belongs to this gateway's organisation.
    #[must_use]
    pub fn is_own(&self, replica: ReplicaId) -> bool {
        self.scene.replicas[replica.index()].owner == self.gateway.organisation
    }

    /// Whether this gateway sees the replica as it is.
    #[must_use]
    pub fn is_live(&self, replica: ReplicaId) -> bool {
        self.sees_all || self.scene.setting.live || self.is_own(replica)
    }

    /// What a job costs there, by what its offer says. 0 for an own replica.
    #[must_use]
    pub fn price(&self, replica: ReplicaId) -> PriceRules {
        if self.is_own(replica) { PriceRules::default() } else { self.scene.replicas[replica.index()].price }
    }

    /// Jobs that a replica takes from this gateway at most, by what its offer says.
    #[must_use]
    pub fn slots(&self, replica: ReplicaId) -> u32 {
        let it = &self.scene.replicas[replica.index()];
        if self.is_own(replica) { it.slots } else { it.slots - it.reserved }
    }

    /// The longest text, prompt and answer, that a replica takes, by what its offer says, in tokens.
    #[must_use]
    pub fn context_max(&self, replica: ReplicaId) -> u32 {
        self.scene.replicas[replica.index()].rules().kv_tokens
    }

    /// Whether a replica is taken for up. One that died or stalled is left alone for 15 s, doubling.
    #[must_use]
    pub fn up(&self, replica: ReplicaId) -> bool {
        if self.is_live(replica) {
            return self.scene.replicas[replica.index()].up;
        }
        self.gateway.known[replica.index()].banned_until_us <= self.now_us
    }

    /// A replica's load: as it is if this gateway sees it so, else as last learned; `None` if nothing was learned yet.
    #[must_use]
    pub fn seen(&self, replica: ReplicaId) -> Option<Seen> {
        if self.is_live(replica) {
            return Some(self.scene.replicas[replica.index()].seen(self.now_us, !self.is_own(replica)));
        }
        self.gateway.known[replica.index()].seen
    }

    /// Jobs that this gateway sent there and that have not come back.
    #[must_use]
    pub fn in_flight(&self, replica: ReplicaId) -> u32 {
        self.gateway.known[replica.index()].in_flight
    }

    /// Jobs sent to a replica by any gateway that have not reached it: live only, else 0.
    #[must_use]
    pub fn coming(&self, replica: ReplicaId) -> u32 {
        if self.is_live(replica) { self.scene.replicas[replica.index()].coming } else { 0 }
    }

    /// The round trip, in microseconds: measured, or as it is in one data centre and to own replicas. `None` if there was no
    /// contact yet.
    #[must_use]
    pub fn rtt_us(&self, replica: ReplicaId) -> Option<u64> {
        if self.is_live(replica) {
            let region = self.scene.replicas[replica.index()].region;
            return Some(2 * self.scene.ways.us(self.gateway.region, region));
        }
        Some(self.gateway.known[replica.index()].rtt_us).filter(|rtt_us| *rtt_us > 0)
    }

    /// Tokens of the prompt that a replica has cached. `None` if this gateway cannot see it: own replicas outside of one data
    /// centre do not tell either.
    #[must_use]
    pub fn cached_tokens(&self, replica: ReplicaId, ask: &Ask<'_>) -> Option<u32> {
        let open = self.sees_all || self.scene.setting.live;
        open.then(|| self.scene.replicas[replica.index()].engine.cached_tokens(ask.prefix).min(ask.input))
    }

    /// A replica's own prediction of the time to first token, in microseconds without the network, cache included. `None` if
    /// this gateway does not see the replica as it is.
    #[must_use]
    pub fn ttft_us(&self, replica: ReplicaId, ask: &Ask<'_>) -> Option<u64> {
        let it = &self.scene.replicas[replica.index()];
        self.is_live(replica).then(|| it.predict_ttft_us(ask.input, ask.prefix))
    }

    /// What a replica expects of its speed. `None` if this gateway does not see the replica as it is.
    #[must_use]
    pub fn pace(&self, replica: ReplicaId) -> Option<Pace> {
        let it = &self.scene.replicas[replica.index()];
        self.is_live(replica).then(|| it.told(self.now_us).speed).flatten()
    }

    /// Asks a replica for its load and its prediction for a prompt of that many tokens. The answer comes as
    /// [`News::Probed`](super::News::Probed), or not at all.
    pub fn probe(&mut self, replica: ReplicaId, input: u32) {
        self.probes.push((replica, input));
    }

    /// Everything, for a policy that [sees all](super::Policy::sees_all).
    #[must_use]
    pub const fn truth(&self) -> Option<Truth<'a>> {
        if self.sees_all { Some(Truth { now_us: self.now_us, scene: self.scene, gateway: self.gateway }) } else { None }
    }
}

/// Everything as it is.
#[derive(Clone, Copy, Debug)]
pub struct Truth<'a> {
    now_us: u64,
    scene: Scene<'a>,
    gateway: &'a Gateway,
}

impl Truth<'_> {
    /// Whether a job that is sent now finds a slot, if nobody else sends one later that arrives before; jobs on their way
    /// counted.
    #[must_use]
    pub fn free(&self, replica: ReplicaId) -> bool {
        let it = &self.scene.replicas[replica.index()];
        it.up && it.slots_free(it.owner != self.gateway.organisation) > it.coming
    }

    /// The predicted time to first token at the client if the job is sent there now, in microseconds: the network, what the
    /// replica has to do, the jobs on their way to it, and the part of the prompt that it has not cached.
    #[must_use]
    pub fn ttft_us(&self, replica: ReplicaId, ask: &Ask<'_>) -> u64 {
        let it = &self.scene.replicas[replica.index()];
        let network = 2 * self.scene.ways.us(self.gateway.region, it.region);
        let coming = it.coming_tokens.min(u64::from(u32::MAX - ask.input));
        let input = ask.input + u32::try_from(coming).expect("bounded above");
        network + it.predict_ttft_us(input, ask.prefix)
    }

    /// The time between tokens there if the job joins those in the engine and those on their way, in microseconds.
    #[must_use]
    pub fn tpot_us(&self, replica: ReplicaId, ask: &Ask<'_>) -> u64 {
        let it = &self.scene.replicas[replica.index()];
        let load = it.engine.load();
        let batch = Batch {
            decoding: load.running + load.waiting + it.coming + 1,
            decoding_kv: u64::from(load.kv_used) + u64::from(ask.input),
            chunks: &[],
        };
        it.rules().step.step_us(&batch) as u64
    }

    /// How many of the jobs in the engine would become too slow because of this one: their mean time between tokens, now
    /// within the promise, would end beyond it, for the steps become longer and its prompt has to be read.
    #[must_use]
    pub fn victims(&self, replica: ReplicaId, ask: &Ask<'_>) -> u32 {
        let it = &self.scene.replicas[replica.index()];
        let limit_us = self.scene.setting.slo.tpot_ms * 1000;
        let read = ask.input - it.engine.cached_tokens(ask.prefix).min(ask.input);
        let step_us = |decoding, tokens| {
            let chunk = [Chunk { tokens, prefix: 0 }];
            let chunks = if tokens == 0 { &[][..] } else { &chunk };
            it.rules().step.step_us(&Batch { decoding, decoding_kv: u64::from(it.engine.load().kv_used), chunks })
                as u64
        };
        let running = it.engine.load().running;
        let (before_us, after_us) = (step_us(running, 0), step_us(running + 1, 0));
        let stall_us = step_us(running, read).saturating_sub(before_us);
        let mut victims = 0;
        for key in it.inside() {
            let job = self.scene.jobs.get(key).expect("what is in an engine is alive");
            let (Some(first_us), Some(given)) = (job.first_us, it.engine.given(self.now_us, key.number())) else {
                continue;
            };
            let gaps = u64::from(job.request.output.saturating_sub(1));
            let left = u64::from(job.output_left().saturating_sub(given));
            let past_us = self.now_us.saturating_sub(first_us);
            let late = |step_us: u64, stall_us: u64| past_us + left * step_us + stall_us > gaps * limit_us;
            victims += u32::from(!late(before_us, 0) && late(after_us, stall_us));
        }
        victims
    }

    /// What the job costs there, in micro-credits: the cache as it is, and `output` tokens.
    #[must_use]
    pub fn cost_micro(&self, replica: ReplicaId, ask: &Ask<'_>, output: u32) -> u64 {
        let it = &self.scene.replicas[replica.index()];
        if it.owner == self.gateway.organisation {
            return 0;
        }
        it.price.cost_micro(ask.input, it.engine.cached_tokens(ask.prefix).min(ask.input), output)
    }
}
