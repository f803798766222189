//! Whether a slot stood idle for a job that was turned away, told from the true state of all nodes.
//! Invariant: no peer is asked. Who is free, who is known, who can be reached and who can pay follow from what crossed the
//! world; where that leaves a doubt, the refusal is excused.
//!
//! A refusal is wrongful if for the whole of the job's last look at the market, at least [`World::look_us`] before the
//! refusal, an own slot or a slot of one provider was free for it without a break, beside those that jobs on their way from
//! the same gateway at that time were to take. That provider must have been up and
//! reachable, its offer known to the gateway and within the job's limits, the gateway able to pay it, and it must not
//! have given the gateway cause to leave it out.

use crate::host::Host;
use crate::network::{HostId, LinkId};
use crate::world::World;
use spillway_ledger::{Account, Credits, Price, Usage};
use spillway_protocol::{Frame, Kind, Now, Offer, Prefer, StreamId};
use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

/// Providers that are asked at the same time; `docs/routing.md`, "Probe".
const PROBES_AT_ONCE: u64 = 3;
/// How long a round of probes may wait for its first answer, in microseconds, where nobody answers in time.
const PATIENCE_US: u64 = 2_000_000;
/// For how long a trouble with the ledger excuses that a session could not be opened.
const LEDGER_TROUBLE: Duration = Duration::from_secs(15);
/// The first ban, the longest, as market.md states them: they double until a job is served.
const BAN: [Duration; 2] = [Duration::from_secs(15), Duration::from_secs(3600)];
/// A session that ends sooner than this takes no new job.
const SESSION_MARGIN: Duration = Duration::from_secs(600);

/// What a job needs of whoever serves it.
#[derive(Clone, Debug)]
pub struct Need {
    /// The model.
    pub model: String,
    /// The endpoint.
    pub kind: Kind,
    /// Where it may run.
    pub prefer: Prefer,
    /// The highest price it accepts.
    pub price_max: Price,
    /// Prompt, in units.
    pub input: u64,
    /// Most output, in units.
    pub output_max: u64,
    /// When its client came.
    pub submitted: Now,
}

/// A model that a gateway was told somebody serves.
#[derive(Clone, Debug)]
struct Known {
    price: Price,
    kinds: Vec<String>,
    expires_ms: u64,
    since: Now,
}

/// Why a gateway may leave a provider out for a while.
#[derive(Clone, Copy, Debug)]
struct Cause {
    until: Now,
    next: Duration,
}

/// How far a stream has come, as its consumer sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    /// The provider turned it down.
    Refused,
    /// It ended properly; the consumer's signature is awaited.
    Done,
    /// It ended, and both have signed.
    Agreed,
}

/// What this rule remembers of the world.
#[derive(Debug, Default)]
pub struct Idle {
    known: BTreeMap<(HostId, HostId), BTreeMap<String, Known>>,
    causes: BTreeMap<(HostId, HostId), Cause>,
    heard: BTreeMap<LinkId, Heard>,
    /// Streams whose end their consumer is yet to be told of, if it is frozen.
    ending: BTreeMap<(HostId, StreamId), (LinkId, HostId)>,
    /// When the way between two nodes, the lower first, was last in trouble.
    trouble: BTreeMap<(HostId, HostId), Now>,
    balances: BTreeMap<Account, (Credits, Now)>,
    /// Jobs on their way, by their streams: from which gateway to which provider.
    under_way: BTreeMap<LinkId, (HostId, HostId)>,
    /// How many they are.
    coming: BTreeMap<(HostId, HostId), (usize, Levels)>,
}

impl Idle {
    /// A gateway is told an offer.
    pub fn learns(&mut self, now: Now, gateway: HostId, provider: HostId, offer: &Offer) {
        let models = self.known.entry((gateway, provider)).or_default();
        for model in &offer.models {
            let before =
                models.get(&model.id).filter(|known| known.expires_ms > now.ms() && known.price == model.price);
            let since = before.map_or(now, |known| known.since);
            let known = Known { price: model.price, kinds: model.kinds.clone(), expires_ms: offer.expires_ms, since };
            models.insert(model.id.clone(), known);
        }
    }

    /// A gateway is told that an offer is taken back.
    pub fn unlearns(&mut self, gateway: HostId, provider: HostId, offer: &Offer) {
        if let Some(models) = self.known.get_mut(&(gateway, provider)) {
            models.retain(|id, _| offer.models.iter().all(|model| model.id != *id));
        }
    }

    /// A node crashed, and forgets what it was told and whom it held it against.
    pub fn forgets(&mut self, gateway: HostId) {
        self.known.retain(|(to, _), _| *to != gateway);
        self.causes.retain(|(to, _), _| *to != gateway);
        self.ending.retain(|(to, _), _| *to != gateway);
    }

    /// Something between two nodes got lost, or may have.
    pub fn troubled(&mut self, now: Now, a: HostId, b: HostId) {
        self.trouble.insert((a.min(b), a.max(b)), now);
    }

    fn clear_since(&self, a: HostId, b: HostId) -> Now {
        self.trouble.get(&(a.min(b), a.max(b))).copied().unwrap_or_default()
    }

    /// An account's balance is now that.
    pub fn balance(&mut self, now: Now, account: Account, balance: Credits) {
        let (held, grown) = self.balances.entry(account).or_insert((balance, now));
        if balance > *held {
            *grown = now;
        }
        *held = balance;
    }

    /// A frame of a provider reaches its consumer.
    pub fn hears(&mut self, link: LinkId, frame: &Frame) {
        match frame {
            Frame::Refused { .. } | Frame::Rejected { .. } => self.heard.insert(link, Heard::Refused),
            Frame::Done { .. } => self.heard.insert(link, Heard::Done),
            _ => None,
        };
    }

    /// A consumer signs a receipt.
    pub fn agrees(&mut self, link: LinkId) {
        if self.heard.get(&link) == Some(&Heard::Done) {
            self.heard.insert(link, Heard::Agreed);
        }
    }

    /// A gateway opens a stream for a job: a slot that the job will take is not idle.
    pub fn leaves(&mut self, now: Now, link: LinkId, gateway: HostId, provider: HostId) {
        self.under_way.insert(link, (gateway, provider));
        let (count, levels) = self.coming.entry((gateway, provider)).or_default();
        *count += 1;
        levels.note(now, *count);
    }

    /// The job on that stream has got to its provider, or never will.
    pub fn arrives(&mut self, now: Now, link: LinkId) {
        let Some(pair) = self.under_way.remove(&link) else { return };
        let (count, levels) = self.coming.get_mut(&pair).expect("counted when it left");
        *count -= 1;
        levels.note(now, *count);
    }

    /// A consumer is to be told that a stream is over.
    pub fn ends(&mut self, gateway: HostId, stream: StreamId, link: LinkId, provider: HostId) {
        self.ending.insert((gateway, stream), (link, provider));
    }

    /// A consumer is told that a stream is over.
    pub fn told(&mut self, now: Now, gateway: HostId, stream: StreamId) {
        if let Some((link, provider)) = self.ending.remove(&(gateway, stream)) {
            self.over(now, link, gateway, provider);
        }
    }

    /// A consumer's side of a stream is over.
    pub fn over(&mut self, now: Now, link: LinkId, gateway: HostId, provider: HostId) {
        let cause = self.causes.entry((gateway, provider)).or_insert(Cause { until: now, next: BAN[0] });
        match self.heard.remove(&link) {
            Some(Heard::Refused) => {}
            // A ban that runs goes on, but the next is a first one again.
            Some(Heard::Agreed) => cause.next = BAN[0],
            Some(Heard::Done) | None => {
                *cause = Cause { until: now.after(cause.next), next: (cause.next * 2).min(BAN[1]) };
            }
        }
    }
}

/// Since when something has held without a break.
#[derive(Clone, Copy, Debug, Default)]
pub struct Since(Option<Now>);

impl Since {
    /// Notes whether it holds now.
    pub const fn note(&mut self, now: Now, holds: bool) {
        match (self.0, holds) {
            (None, true) => self.0 = Some(now),
            (Some(_), false) => self.0 = None,
            (None, false) | (Some(_), true) => {}
        }
    }

    /// Whether it has held at and ever since `then`.
    #[must_use]
    pub fn held_at(&self, then: Now) -> bool {
        self.0.is_some_and(|since| since <= then)
    }
}

/// A count over the last [`LEVELS_FOR`].
#[derive(Clone, Debug, Default)]
pub struct Levels(VecDeque<(Now, usize)>);

/// Longer than any last look at the market.
const LEVELS_FOR: Duration = Duration::from_secs(30);

impl Levels {
    /// Notes the count from now on.
    pub fn note(&mut self, now: Now, count: usize) {
        if self.0.back().is_none_or(|(_, last)| *last != count) {
            self.0.push_back((now, count));
        }
        let old = now.before(LEVELS_FOR);
        while self.0.get(1).is_some_and(|(since, _)| *since <= old) {
            self.0.pop_front();
        }
    }

    /// The least that it was above `other` at and since `then`.
    #[must_use]
    pub fn least_above(&self, other: &Self, then: Now) -> usize {
        let changes = self.0.iter().chain(&other.0).map(|(since, _)| *since).filter(|since| *since > then);
        let above = |at| self.at(at).saturating_sub(other.at(at));
        changes.map(above).fold(above(then), usize::min)
    }

    fn at(&self, then: Now) -> usize {
        let next = self.0.partition_point(|(since, _)| *since <= then);
        next.checked_sub(1).map_or(0, |last| self.0[last].1)
    }
}

impl World {
    /// Notes what a node can do now. To be called after everything that may have changed it.
    pub(crate) fn note_state(&mut self, id: HostId) {
        let now = self.line.now();
        let Host { peer, frozen, gpu, gpu_down, config, awake, own_free, sold_free, .. } = &mut self.hosts[id];
        let up = peer.is_some() && !*frozen;
        let free = gpu.as_ref().filter(|_| up && !*gpu_down).map_or(0, crate::gpu::Gpu::free);
        awake.note(now, up);
        own_free.note(now, free > 0);
        let sold = if config.provide { free.saturating_sub(config.selling.reserved_slots as usize) } else { 0 };
        sold_free.note(now, sold);
    }

    /// How long a job's last look at the market may take, in microseconds: its gateway asks [`PROBES_AT_ONCE`] of the
    /// providers that it knows and that are within the job's limits at a time, and gives each round the probe's time limit
    /// and the longest round trip; [`PATIENCE_US`] more for each of them that cannot answer.
    fn look_us(&self, gateway: HostId, known: &[HostId]) -> u64 {
        let now = self.line.now();
        let limit = u64::try_from(self.hosts[gateway].config.probe_wait.as_micros()).unwrap_or(u64::MAX);
        let away =
            known.iter().map(|provider| self.network.round_trip_us(gateway, *provider)).max().unwrap_or_default();
        let rounds = (known.len() as u64).div_ceil(PROBES_AT_ONCE);
        let once = rounds * (limit + away);
        let long_ago = now.before(Duration::from_micros(once + PATIENCE_US));
        let answers = |provider: &&HostId| {
            self.network.connected(gateway, **provider)
                && self.network.can_meet(gateway, **provider)
                && self.hosts[**provider].awake.held_at(long_ago)
                && self.idle.clear_since(gateway, **provider) < long_ago
        };
        once + PATIENCE_US * (known.len() - known.iter().filter(answers).count()) as u64
    }

    /// A slot that was free for a job all through its last look at the market, though the job is turned away now.
    pub(crate) fn idle_slot(&self, gateway: HostId, need: &Need) -> Option<String> {
        let now = self.line.now();
        let host = &self.hosts[gateway];
        let own = host.gpu.as_ref().is_some_and(|gpu| gpu.rules().model == need.model);
        let moment = now.before(Duration::from_micros(1));
        if own && host.own_free.held_at(moment) && host.stalled_until < moment && host.gpu_failed < need.submitted {
            return Some(format!("{} has an own slot free", host.name));
        }
        if need.prefer == Prefer::Own {
            return None;
        }
        let known: Vec<(HostId, &Known)> = (0..self.hosts.len())
            .filter(|provider| *provider != gateway && self.hosts[*provider].account != host.account)
            .filter_map(|provider| Some((provider, self.idle.known.get(&(gateway, provider))?.get(&need.model)?)))
            .filter(|(_, known)| known.expires_ms > now.ms() && known.price.within(&need.price_max))
            .filter(|(_, known)| known.kinds.iter().any(|kind| kind == need.kind.as_str()))
            .collect();
        let all: Vec<HostId> = known.iter().map(|(provider, _)| *provider).collect();
        let look = self.look_us(gateway, &all);
        let then = now.before(Duration::from_micros(look));
        if !host.awake.held_at(then) {
            return None;
        }
        let idle = known.into_iter().find(|(provider, known)| {
            let (pair, seller) = ((gateway, *provider), &self.hosts[*provider]);
            seller.adversary.is_none()
                && self.idle_for(gateway, *provider, then) > 0
                && seller.stalled_until < then
                && known.since <= then
                && self.network.connected(gateway, *provider)
                && self.network.can_meet(gateway, *provider)
                && !self.network.is_slow(then, gateway)
                && !self.network.is_slow(then, *provider)
                && self.idle.clear_since(gateway, *provider) < then
                && self.idle.causes.get(&pair).is_none_or(|cause| cause.until < then)
                && self.can_pay(gateway, *provider, known.price, need)
        });
        let (provider, _) = idle?;
        let name = &self.hosts[provider].name;
        Some(format!("{name} has a slot free, and had one for the last {} ms and more", look / 1000))
    }

    /// The fewest slots that a provider had free since `then`, each time beside those for the gateway's jobs that were on
    /// their way to it: its word of that time is read so.
    fn idle_for(&self, gateway: HostId, provider: HostId, then: Now) -> usize {
        let none = Levels::default();
        let coming = self.idle.coming.get(&(gateway, provider)).map_or(&none, |(_, levels)| levels);
        self.hosts[provider].sold_free.least_above(coming, then)
    }

    /// Whether a gateway could surely have paid a provider for a job: on a session that is open, or on a new one.
    fn can_pay(&self, gateway: HostId, provider: HostId, price: Price, need: &Need) -> bool {
        let now = self.line.now();
        let (payer, payee) = (&self.hosts[gateway], &self.hosts[provider]);
        let Some(worst) = price.cost(Usage { input: need.input, cached: 0, output: need.output_max }) else {
            return false;
        };
        // Nothing between the three of them and the ledger has been in trouble.
        let ledger = self.hosts.len();
        let long_ago = now.before(LEDGER_TROUBLE);
        let clear = [gateway, provider]
            .iter()
            .all(|host| self.network.connected(*host, ledger) && self.idle.clear_since(*host, ledger) < long_ago);
        if !clear || self.authority.paused_until >= long_ago || !payee.awake.held_at(long_ago) {
            return false;
        }
        let waiting = payer.clerk.waiting();
        // A leg that is still connecting has its part of a session, and nothing of it has crossed the world yet.
        let connecting = self.network.links(|link| {
            let [out, called] = &link.ends;
            let theirs = out.host == gateway && called.host == provider && !out.closed;
            theirs && !self.checks.has_reserved(gateway, out.stream)
        });
        let session = connecting.is_empty()
            && self.authority.sessions().any(|(id, seen)| {
                seen.consumer == payer.account
                    && seen.provider == payee.account
                    && !seen.closed
                    && price.within(&seen.price_cap)
                    // What was locked just now is for the jobs that asked for it, and its payer may not have heard of it.
                    && seen.raised_at < long_ago
                    && now.after(SESSION_MARGIN).ms() < seen.expires_ms
                    && self.checks.uses_at_most(id).checked_add(worst).is_some_and(|total| total <= seen.deposit)
            });
        if session {
            return true;
        }
        let (balance, grown) = self.idle.balances.get(&payer.account).copied().unwrap_or_default();
        let each = self.scenario.market.block_ms * 1000 + self.network.round_trip_us(gateway, ledger);
        let in_time = (waiting as u64 + 2) * each < payer.config.open_wait.as_micros() as u64;
        let free = balance.saturating_sub(payer.clerk.locking());
        in_time && grown < long_ago && worst.max(payer.config.deposit) <= free
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_tells_the_last_unbroken_stretch() {
        let mut since = Since::default();
        for (at, holds) in [(5, false), (10, true), (12, true), (20, false), (25, true)] {
            since.note(Now(at), holds);
        }
        assert_eq!([24, 25, 26].map(|then| since.held_at(Now(then))), [false, true, true]);
    }

    #[test]
    fn a_slot_that_a_job_on_its_way_takes_was_never_idle() {
        let (mut free, mut idle) = (Levels::default(), Idle::default());
        free.note(Now(0), 1);
        idle.leaves(Now(10), 7, 0, 1);
        // Another job ends before this one arrives.
        free.note(Now(20), 2);
        idle.arrives(Now(30), 7);
        free.note(Now(30), 1);
        let coming = &idle.coming[&(0, 1)].1;
        assert_eq!([5, 15, 20, 30].map(|then| free.least_above(coming, Now(then))), [0, 0, 1, 1]);
    }

    #[test]
    fn a_provider_that_breaks_off_is_left_out_for_longer_each_time_until_it_serves() {
        let mut idle = Idle::default();
        let until = |idle: &Idle| idle.causes[&(0, 1)].until;
        let mut now = Now(1_000_000);
        for seconds in [15, 30, 60] {
            idle.over(now, 7, 0, 1);
            assert_eq!(until(&idle), now.after(Duration::from_secs(seconds)));
            now = until(&idle);
        }
        idle.hears(
            8,
            &Frame::Refused {
                refusal: spillway_protocol::Refusal::Busy,
                retry_after_ms: 0,
                load: spillway_protocol::Load::default(),
            },
        );
        idle.over(now, 8, 0, 1);
        assert_eq!(until(&idle), now, "being busy is no cause");
    }
}
