//! A whole node's market logic: routes events to its consuming and its serving half, and publishes what it offers.
//! Invariant: the same seed and the same events give the same effects, on every machine.

use crate::config::MarketConfig;
use crate::consumer::Consumer;
use crate::context::{Alarm, Context};
use crate::directory::Directory;
use crate::event::{Effect, Event};
use crate::job::Kind;
use crate::offer::{METER, ModelOffer, OFFER_LIFETIME, OFFER_PERIOD, Offer};
use crate::own::{Own, WorkFor};
use crate::provider::Provider;
use crate::record::{Earning, Paying, Record};
use crate::reputation::{Reputation, SnapshotError};
use crate::router::Coordinate;
use crate::time::Now;
use crate::timers::Timers;
use rand::SeedableRng as _;
use rand_chacha::ChaCha12Rng;
use spillway_ledger::{Account, Credits, Digest, Document as _, NodeId, Signed, Usage, encode};
use std::collections::VecDeque;
use std::time::Duration;

pub use crate::context::Identity;
#[cfg(feature = "sabotage")]
pub use crate::context::Sabotage;

/// How often expired offers are dropped.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
/// An alarm that is that late says that the process did not run; what came meanwhile has yet to be read.
const ASLEEP_AFTER: Duration = Duration::from_millis(250);
/// An offer's coordinate is renewed once the node seems to be that many milliseconds from it.
const MOVED_MS: u128 = 10;

/// What the last offers said.
#[derive(Debug, Default)]
struct Published {
    models: Vec<ModelOffer>,
    /// Offers are out that were neither taken back nor left to lapse.
    is_out: bool,
    coordinate: Coordinate,
}

/// The market machine of one node. `docs/routing.md`.
#[derive(Debug)]
pub struct Peer {
    cx: Context,
    consumer: Consumer,
    provider: Provider,
    addresses: Vec<String>,
    /// What the last offers said, so that only news is published out of turn.
    published: Published,
    restored: Vec<Record>,
}

impl Peer {
    /// A peer that knows what `restored` says, as kept by [`Effect::Persist`] before a restart.
    /// `seed` feeds every random choice.
    #[must_use]
    pub fn new(config: MarketConfig, identity: Identity, seed: [u8; 32], restored: Vec<Record>) -> Self {
        let (node, account) = (NodeId(identity.node.public()), Account(identity.account.public()));
        let secret = *Digest::of("spillway/directory-secret/1", &[&seed]).as_bytes();
        let directory = Directory::new(identity.network).ranked_by(secret);
        let cx = Context {
            now: Now::default(),
            woke: Now::default(),
            config,
            identity,
            node,
            account,
            rng: ChaCha12Rng::from_seed(seed),
            effects: VecDeque::new(),
            timers: Timers::default(),
            own: Own::default(),
            directory,
            reputation: Reputation::default(),
            balance: Credits::ZERO,
            coordinate: Coordinate::default(),
            preempted: VecDeque::new(),
            #[cfg(feature = "sabotage")]
            sabotage: None,
        };
        Self {
            cx,
            consumer: Consumer::default(),
            provider: Provider::default(),
            addresses: Vec::new(),
            published: Published::default(),
            restored,
        }
    }

    /// This node's id.
    #[must_use]
    pub const fn node(&self) -> NodeId {
        self.cx.node
    }

    /// This node's account.
    #[must_use]
    pub const fn account(&self) -> Account {
        self.cx.account
    }

    /// What others offer.
    #[must_use]
    pub const fn directory(&self) -> &Directory {
        &self.cx.directory
    }

    /// What this node thinks of others.
    #[must_use]
    pub const fn reputation(&self) -> &Reputation {
        &self.cx.reputation
    }

    /// Takes in what [`Reputation::export`] gave before a restart; says of how many peers. An error changes nothing.
    ///
    /// # Errors
    /// If it is damaged or of another version.
    pub fn import_reputation(&mut self, now: Now, snapshot: &[u8]) -> Result<usize, SnapshotError> {
        self.cx.reputation.import(now, snapshot)
    }

    /// Strangers' jobs under way here.
    #[must_use]
    pub fn serving(&self) -> usize {
        self.provider.jobs().count()
    }

    /// Own slots of a model that are taken.
    #[must_use]
    pub fn running(&self, model: &str) -> u32 {
        self.cx.own.running(model)
    }

    /// Own jobs of a model that wait for a slot.
    #[must_use]
    pub fn waiting(&self, model: &str) -> u32 {
        self.cx.own.waiting.get(model).copied().unwrap_or(0)
    }

    /// Turns a deliberate fault on.
    #[cfg(feature = "sabotage")]
    pub const fn sabotage(&mut self, how: Sabotage) {
        self.cx.sabotage = Some(how);
    }

    /// Takes in one event. Call [`Peer::poll`] until it is empty afterwards.
    pub fn handle(&mut self, now: Now, event: Event) {
        self.cx.now = self.cx.now.max(now);
        if self.cx.timers.next().is_some_and(|due| self.cx.now.since(due) > ASLEEP_AFTER) {
            self.cx.woke = self.cx.now;
        }
        if !self.restored.is_empty() {
            self.restore();
        }
        self.tick();
        self.make_way();
        self.dispatch(event);
        self.consumer.drain(&mut self.cx);
        self.make_way();
        let waiting = self.consumer.waiting(&self.cx.own);
        if waiting != self.cx.own.waiting {
            self.cx.own.waiting = waiting;
        }
    }

    /// Tells strangers whose slots the owner took.
    fn make_way(&mut self) {
        while let Some(stream) = self.cx.preempted.pop_front() {
            self.provider.preempted(&mut self.cx, stream);
        }
    }

    /// The next thing to do.
    pub fn poll(&mut self) -> Option<Effect> {
        self.cx.effects.pop_front()
    }

    /// When to come back with [`Event::Tick`] at the latest, if nothing else happens.
    #[must_use]
    pub fn deadline(&self) -> Option<Now> {
        self.cx.timers.next()
    }

    fn restore(&mut self) {
        for record in std::mem::take(&mut self.restored) {
            match record {
                Record::Paying(record) => self.consumer.restore(&mut self.cx, record),
                Record::Earning(record) => self.provider.restore(&mut self.cx, record),
                Record::Spending(_) | Record::Receipt { .. } | Record::PayingOver(_) | Record::EarningOver(_) => {}
            }
        }
    }

    fn tick(&mut self) {
        let cx = &mut self.cx;
        while let Some(alarm) = cx.timers.pop(cx.now) {
            match alarm {
                Alarm::Job(job) => self.consumer.overdue(cx, job),
                Alarm::Voucher(session) => self.consumer.pay(cx, session),
                Alarm::Refund(session) => self.consumer.refund_due(cx, session),
                Alarm::Ahead => self.consumer.look_ahead(cx),
                Alarm::Serve(stream) => self.provider.overdue(cx, stream),
                Alarm::Settle(session) => self.provider.settle_due(cx, session),
                Alarm::Publish => {
                    self.published.models.clear();
                    publish(cx, &self.addresses, &mut self.published);
                }
                Alarm::Sweep => {
                    cx.directory.sweep(cx.now);
                    cx.reputation.age(cx.now);
                    cx.timers.set(Alarm::Sweep, cx.now.after(SWEEP_EVERY));
                }
            }
        }
    }

    fn dispatch(&mut self, event: Event) {
        let cx = &mut self.cx;
        match event {
            Event::Submit(job) => self.consumer.submit(cx, job),
            Event::ClientLeft(job) => self.consumer.client_left(cx, job),
            Event::Capacity(capacities) => {
                cx.own.set(cx.now, capacities, cx.config.cache_units);
                publish(cx, &self.addresses, &mut self.published);
            }
            Event::Addresses(addresses) => {
                if self.addresses != addresses {
                    self.addresses = addresses;
                    self.published.models.clear();
                    publish(cx, &self.addresses, &mut self.published);
                }
            }
            Event::Output { work, bytes, text } => {
                cx.own.output(cx.now, work, text.len() as u64);
                match cx.own.whose(work) {
                    Some(WorkFor::Owner(job) | WorkFor::Hedge(job)) => {
                        self.consumer.output(cx, job, work, bytes, &text)
                    }
                    Some(WorkFor::Stranger(stream)) => self.provider.output(cx, stream, bytes, text),
                    None => {} // Late, not wrong.
                }
            }
            Event::Charged { work, cost } => match cx.own.whose(work) {
                Some(WorkFor::Owner(job)) => self.consumer.charged(job, work, cost),
                // Neither hedges nor strangers' work run where it costs money; and what is late is not wrong.
                Some(WorkFor::Hedge(_) | WorkFor::Stranger(_)) | None => {}
            },
            Event::Finished { work, mut finish } => {
                truncate(&mut finish, 32);
                match cx.own.whose(work) {
                    Some(WorkFor::Owner(job) | WorkFor::Hedge(job)) => self.consumer.finished(cx, job, work, finish),
                    Some(WorkFor::Stranger(stream)) => self.provider.finished(cx, stream, work, finish),
                    None => {} // Late, not wrong.
                }
            }
            Event::BackendFailed { work, error } => match cx.own.whose(work) {
                Some(WorkFor::Owner(job) | WorkFor::Hedge(job)) => self.consumer.backend_failed(cx, job, work, error),
                Some(WorkFor::Stranger(stream)) => self.provider.backend_failed(cx, stream, work, error),
                None => {} // Late, not wrong.
            },
            Event::StreamOpened(stream) => self.consumer.stream_opened(cx, stream),
            Event::FrameReceived { stream, peer, frame, text } => {
                if self.consumer.owns(stream) {
                    self.consumer.frame(cx, stream, peer, frame, &text);
                } else if matches!(stream, crate::event::StreamId::In(_)) {
                    self.provider.frame(cx, stream, peer, frame);
                }
            }
            Event::StreamClosed(stream) => {
                self.consumer.stream_closed(cx, stream);
                self.provider.stream_closed(cx, stream);
            }
            Event::ProbeReceived { probe, peer, request } => self.provider.probed(cx, probe, peer, &request),
            Event::ProbeReplied { probe, reply } => self.consumer.probe_replied(cx, probe, reply),
            Event::OfferReceived(offer) => {
                if offer.value().node != cx.node && cx.directory.insert(cx.now, offer).is_ok() {
                    cx.timers.set_earlier(Alarm::Sweep, cx.now.after(SWEEP_EVERY));
                }
            }
            Event::RoundTrip { peer, rtt } => cx.measured(peer, rtt),
            Event::OfferHeld { offer, until_ms } => {
                if offer.value().node != cx.node && cx.directory.hold(cx.now, offer, until_ms).is_ok() {
                    cx.timers.set_earlier(Alarm::Sweep, cx.now.after(SWEEP_EVERY));
                }
            }
            Event::PeerLost(peer) => {
                self.consumer.peer_lost(cx, peer);
                self.provider.peer_lost(cx, peer);
            }
            Event::SessionOpened {
                session,
                business,
                consumer,
                provider,
                voucher_key,
                deposit,
                price_cap,
                expires_ms,
            } => {
                let (nothing, none) = (Credits::ZERO, Usage::default());
                if consumer == cx.account && voucher_key == crate::consumer::voucher_key(&cx.account) {
                    let record = Paying {
                        session,
                        provider,
                        deposit,
                        price_cap,
                        expires_ms,
                        sequence: 0,
                        promised: nothing,
                        spent: nothing,
                        usage: none,
                        settled: nothing,
                    };
                    self.consumer.session_opened(cx, business, record);
                }
                if provider == cx.account {
                    let record = Earning {
                        session,
                        consumer,
                        voucher_key,
                        deposit,
                        price_cap,
                        expires_ms,
                        voucher: None,
                        vouched: nothing,
                        spent: nothing,
                        usage: none,
                        settled: nothing,
                        receipts: Vec::new(),
                    };
                    self.provider.session_opened(cx, record);
                }
            }
            Event::SessionToppedUp { session, deposit } => {
                self.consumer.session_topped_up(cx, session, deposit);
                self.provider.session_topped_up(cx, session, deposit);
            }
            Event::SessionSettled { session, settled, closed } => {
                self.consumer.session_settled(cx, session, settled, closed);
                self.provider.session_settled(cx, session, settled, closed);
            }
            Event::EntryRefused { business, why: _ } => {
                self.consumer.entry_refused(cx, business);
                self.provider.settle_refused(cx, business);
            }
            Event::Balance(balance) => cx.balance = balance,
            Event::Tick => {}
        }
    }
}

fn truncate(text: &mut String, bytes: usize) {
    if text.len() > bytes {
        let end = (0..=bytes).rev().find(|index| text.is_char_boundary(*index)).unwrap_or(0);
        text.truncate(end);
    }
}

/// Publishes what is served, if that is news, in as many offers as it takes.
/// The kinds by name, strictly sorted, as offers list them.
fn names(kinds: &[Kind]) -> Vec<String> {
    let mut names: Vec<_> = kinds.iter().map(|kind| kind.as_str().to_owned()).collect();
    names.sort_unstable();
    names.dedup();
    names
}

fn publish(cx: &mut Context, addresses: &[String], published: &mut Published) {
    if !cx.config.provide || addresses.is_empty() {
        return;
    }
    let models: Vec<ModelOffer> = cx
        .own
        .advertised(cx.now, &cx.config.selling)
        .into_iter()
        .map(|(capacity, slots)| ModelOffer {
            id: capacity.model,
            weights: capacity.weights,
            quantization: capacity.quantization,
            engine: capacity.engine,
            context_max: capacity.context_max,
            kinds: names(&capacity.kinds),
            meter: METER.to_owned(),
            price: cx.config.price,
            slots,
            keeps_nothing: cx.config.keeps_nothing,
        })
        .collect();
    let turns = cx.config.selling.turns_at(cx.now).unwrap_or(Now(u64::MAX));
    cx.timers.set(Alarm::Publish, cx.now.after(OFFER_PERIOD).min(turns));
    let moved = published.coordinate.distance(&cx.coordinate).as_millis() > MOVED_MS
        || cx.coordinate.error_per_mille * 2 < published.coordinate.error_per_mille;
    // What is for sale no more because a schedule closed is known to be so; what may be back any moment is left to lapse.
    if published.is_out && cx.config.selling.is_closed(cx.now) {
        published.is_out = false;
        cx.emit(Effect::Withdraw);
    }
    if published.models == models && !moved {
        return;
    }
    if moved {
        published.coordinate = cx.coordinate;
    }
    let coordinate = published.coordinate;
    let issued_ms = cx.now.ms();
    let offer = |models: Vec<ModelOffer>| Offer {
        network: cx.identity.network,
        node: cx.node,
        account: cx.account,
        sequence: issued_ms,
        issued_ms,
        expires_ms: cx.now.after(OFFER_LIFETIME).ms(),
        region: cx.config.region.clone(),
        coordinate,
        addresses: addresses.iter().take(8).cloned().collect(),
        models,
    };
    let mut groups: Vec<Vec<ModelOffer>> = Vec::new();
    for model in &models {
        if let Some(group) = groups.last_mut() {
            let mut larger = group.clone();
            larger.push(model.clone());
            if larger.len() <= 8 && encode(&offer(larger.clone())).len() <= Offer::BYTES_MAX {
                *group = larger;
                continue;
            }
        }
        groups.push(vec![model.clone()]);
    }
    let offers: Vec<Signed<Offer>> =
        groups.into_iter().filter_map(|group| Signed::try_sign(offer(group), &cx.identity.node).ok()).collect();
    published.is_out |= !offers.is_empty();
    for offer in offers {
        cx.emit(Effect::Publish(offer));
    }
    published.models = models;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_listed_as_offers_want_them() {
        let listed = names(&[Kind::Chat, Kind::Rerank, Kind::Embedding, Kind::Chat]);
        assert_eq!(listed, ["chat", "embedding", "rerank"]);
        assert!(names(&Kind::ALL).is_sorted_by(|a, b| a < b));
    }
}
