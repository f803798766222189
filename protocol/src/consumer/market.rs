//! A model's market as this node sees it: the router's memory, and quotes at hand.
//! Invariants: a quote kept here was signed by the provider that it binds, for this node; nothing here outgrows its bounds.

use super::*;
use crate::directory::{Directory, Listing};
use crate::reputation::Reputation;
use crate::router::preference::Named;
use crate::router::{
    ALL_MAX, CHEAPEST, Candidate as Weighed, Certainty, Coordinate, DRAWN, Market, Report, Router, RouterRules,
};

/// Models whose markets are remembered; the one not used for longest makes room.
const MODELS_MAX: usize = 64;
/// Quotes kept of one model.
const QUOTES_MAX: usize = 64;
/// When a busy provider that names no time is looked at again, in milliseconds.
const RETRY_UNKNOWN_MS: u32 = 1_000;

/// A quote at hand. While it lasts it serves several jobs, each billed as cached what it quotes of that job's own prompt.
#[derive(Clone, Debug)]
pub(super) struct AtHand {
    pub(super) quote: Signed<Quote>,
    pub(super) taken: Now,
}

#[derive(Debug)]
pub(super) struct ModelMarket {
    pub(super) router: Router<NodeId>,
    pub(super) quotes: BTreeMap<NodeId, AtHand>,
    used: Now,
}

impl ModelMarket {
    /// Keeps a quote, in place of an older one of the same provider.
    pub(super) fn keep(&mut self, now: Now, quote: Signed<Quote>) {
        let provider = quote.value().provider;
        if self.quotes.len() >= QUOTES_MAX && !self.quotes.contains_key(&provider) {
            self.quotes.retain(|_, at_hand| at_hand.quote.value().is_valid(now));
            if self.quotes.len() >= QUOTES_MAX {
                let oldest = self.quotes.iter().min_by_key(|(_, at_hand)| at_hand.taken).map(|(id, _)| *id);
                oldest.map(|oldest| self.quotes.remove(&oldest));
            }
        }
        self.quotes.insert(provider, AtHand { quote, taken: now });
    }

    pub(super) fn quote(&self, provider: &NodeId) -> Option<&Signed<Quote>> {
        self.quotes.get(provider).map(|at_hand| &at_hand.quote)
    }

    pub(super) fn drop_quote(&mut self, provider: &NodeId) {
        self.quotes.remove(provider);
    }
}

/// Every model's market.
#[derive(Debug, Default)]
pub(super) struct Markets(BTreeMap<String, ModelMarket>);

impl Markets {
    pub(super) fn of(&mut self, now: Now, model: &str) -> &mut ModelMarket {
        if !self.0.contains_key(model) {
            if self.0.len() >= MODELS_MAX {
                let oldest = self.0.iter().min_by_key(|(_, market)| market.used).map(|(name, _)| name.clone());
                oldest.map(|oldest| self.0.remove(&oldest));
            }
            let fresh = ModelMarket {
                router: Router::new(RouterRules::default()).telling(),
                quotes: BTreeMap::new(),
                used: now,
            };
            self.0.insert(model.to_owned(), fresh);
        }
        let market = self.0.get_mut(model).expect("just put there");
        market.used = now;
        market
    }

    pub(super) fn find(&mut self, model: &str) -> Option<&mut ModelMarket> {
        self.0.get_mut(model)
    }
}

/// The providers that one job may go to, for the router.
pub(super) struct Eligible<'a> {
    pub(super) now: Now,
    pub(super) me: (NodeId, Account),
    pub(super) job: &'a Job,
    /// Text that the client has already, in units: what a continuation reads beside the prompt.
    pub(super) delivered: u64,
    pub(super) tried: &'a BTreeSet<NodeId>,
    pub(super) directory: &'a Directory,
    pub(super) reputation: &'a Reputation,
    pub(super) coordinate: Coordinate,
    pub(super) paying: &'a PayingSessions,
    pub(super) quotes: &'a BTreeMap<NodeId, AtHand>,
    /// How long a session takes to open, in milliseconds.
    pub(super) opening_ms: f64,
}

impl Eligible<'_> {
    /// Why `listing` may not serve the job, if it may not: the hard limits.
    fn admits(&self, listing: &Listing) -> Option<u16> {
        let node = listing.node();
        if self.tried.contains(&node) || self.reputation.is_banned(self.now, &node) {
            return None;
        }
        self.suits(listing)
    }

    /// As [`Self::admits`], whoever was tried or rests counted.
    fn suits(&self, listing: &Listing) -> Option<u16> {
        let (node, account) = (listing.node(), listing.account());
        let model = listing.model();
        let strange = node != self.me.0 && account != self.me.1;
        if !strange || !model.price.within(&self.job.price_max) {
            return None;
        }
        if self.job.preferences.is_default() {
            return Some(0);
        }
        let (node, account) = (node.to_string(), account.to_string());
        self.job.preferences.rank(&Named {
            node: &node,
            account: &account,
            region: &listing.offer.value().region,
            quantization: &model.quantization,
            keeps_nothing: model.keeps_nothing,
        })
    }

    /// When the first of those is back that would suit and rest after a failure; `None` if none does.
    pub(super) fn rests_until(&self) -> Option<Now> {
        let all = self.directory.serving(self.now, &self.job.model, self.job.kind);
        let resting = all.filter(|listing| self.suits(listing).is_some());
        resting.filter_map(|listing| self.reputation.banned_until(self.now, &listing.node())).min()
    }

    /// Whether anybody is left who might serve it, busy or not.
    pub(super) fn any(&self) -> bool {
        let mut all = self.directory.serving(self.now, &self.job.model, self.job.kind);
        all.any(|listing| self.admits(listing).is_some())
    }
}

impl Market<NodeId> for Eligible<'_> {
    fn candidate(&self, id: &NodeId) -> Option<Weighed> {
        let listing = self.directory.lookup(self.now, &self.job.model, id).filter(|it| it.serves(self.job.kind))?;
        let rank = self.admits(listing)?;
        let rtt = self.reputation.rtt_ms(id);
        // The job is billed by the quote that is at hand, not by the offer.
        let at_hand = self.quotes.get(id).filter(|at_hand| {
            let quote = at_hand.quote.value();
            quote.is_valid(self.now) && quote.price.within(&self.job.price_max)
        });
        let price = at_hand.map_or(listing.model().price, |at_hand| at_hand.quote.value().price);
        let billed = at_hand.map(|at_hand| at_hand.quote.value().cached_of(&self.job.prefix));
        let most = Usage {
            input: self.job.prompt_units() + self.delivered,
            cached: 0,
            output: self.job.output_max.saturating_sub(self.delivered),
        };
        let ready = price
            .cost(most)
            .is_some_and(|worst| self.paying.fitting(self.now, &listing.account(), &price, worst).is_some());
        Some(Weighed {
            price,
            slots: listing.model().slots,
            distance_ms: rtt.or_else(|| {
                let theirs = listing.offer.value().coordinate.bounded();
                let known = self.coordinate.is_settled() && theirs.is_settled();
                known.then(|| self.coordinate.distance(&theirs).as_secs_f64() * 1e3)
            }),
            standing: self.reputation.lower_bound(id),
            cached: None,
            billed,
            ready_ms: if ready { 0.0 } else { self.opening_ms },
            rank,
        })
    }

    fn propose(&self, into: &mut Vec<NodeId>, busy: impl Fn(&NodeId) -> bool, doubt: bool, rng: &mut impl rand::Rng) {
        let (now, model) = (self.now, &self.job.model);
        if self.directory.providers(model) <= ALL_MAX {
            let all = self.directory.serving(now, model, self.job.kind);
            return into.extend(all.map(Listing::node));
        }
        let admits = |listing: &Listing| listing.serves(self.job.kind) && self.admits(listing).is_some();
        let free = |listing: &Listing| admits(listing) && !busy(&listing.node());
        if doubt {
            let drawn = self.directory.sample_where(now, model, CHEAPEST + DRAWN, rng, free);
            return into.extend(drawn.into_iter().map(Listing::node));
        }
        into.extend(self.directory.cheapest(now, model, CHEAPEST, free).into_iter().map(Listing::node));
        into.extend(self.directory.sample_where(now, model, DRAWN, rng, admits).into_iter().map(Listing::node));
    }
}

/// Who was weighed in a router's last decision, for people: the one taken first, then from the best on.
pub(super) fn considered(router: &Router<NodeId>, eligible: &Eligible<'_>, taken: Option<NodeId>) -> Vec<Considered> {
    let mut weighed: Vec<(bool, Readiness, NodeId, &Estimate)> = router
        .weighed()
        .iter()
        .map(|(id, estimate)| {
            let readiness = match estimate.certainty {
                Certainty::Sure => Readiness::Free,
                Certainty::Unsure => Readiness::Unasked,
                Certainty::Busy(_) => Readiness::Busy,
            };
            (taken != Some(*id), readiness, *id, estimate)
        })
        .collect();
    weighed.sort_by(|a, b| (a.0, a.1).cmp(&(b.0, b.1)).then(a.3.score.total_cmp(&b.3.score)).then(a.2.cmp(&b.2)));
    weighed.truncate(CONSIDERED_MAX);
    let told = |(other, readiness, provider, estimate): (bool, Readiness, NodeId, &Estimate)| {
        let price = eligible.candidate(&provider)?.price;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "`as` saturates; never negative")]
        let first_ms = estimate.first_ms as u64;
        Some(Considered { provider, price, first_ms, readiness, taken: !other })
    };
    weighed.into_iter().filter_map(told).collect()
}

/// The load in a probe's answer. A job's stream has to be opened before the job goes out on it, so that one sent two round trips
/// ago has just arrived.
pub(super) fn report_of(now: Now, rtt: Duration, reply: &ProbeReply) -> Report {
    let load = Load { slots_free: if reply.quote.is_ok() { reply.load.slots_free } else { 0 }, ..reply.load };
    report(now, now.before(2 * rtt), load, retry_at(now, reply.retry_after_ms))
}

/// The load on a frame of a job's leg that began at `opened`: as with a probe, and the job itself had surely arrived.
pub(super) fn overheard(now: Now, rtt: Option<Duration>, opened: Now, load: Load) -> Report {
    let covers = rtt.map_or(opened, |rtt| now.before(2 * rtt).max(opened));
    report(now, covers, load, retry_at(now, 0))
}

/// When one without a free slot is looked at again.
fn retry_at(now: Now, retry_after_ms: u32) -> Now {
    let wait = if retry_after_ms == 0 { RETRY_UNKNOWN_MS } else { retry_after_ms };
    now.after(Duration::from_millis(u64::from(wait)))
}

fn report(now: Now, covers: Now, load: Load, free_at: Now) -> Report {
    Report {
        at: now,
        covers,
        slots_free: load.slots_free,
        pending: load.pending,
        running: load.running,
        start_ms: load.start_ms,
        read_us_per_kilo: load.read_us_per_kilo,
        per_unit_us: load.per_unit_us.max(1),
        free_at,
    }
}

/// The quote in a probe's answer, if it was signed by whom it binds, and for this node.
pub(super) fn quote_of(cx: &Context, candidate: &Candidate, model: &str, reply: &ProbeReply) -> Option<Signed<Quote>> {
    let quote = Signed::<Quote>::open(reply.quote.clone().ok()?).ok()?;
    let value = quote.value();
    let holds = quote.signer() == candidate.node.0
        && value.provider == candidate.node
        && value.network == cx.identity.network
        && value.account == candidate.account
        && value.consumer == cx.node
        && value.model == model
        && value.price.cached <= value.price.input
        && value.is_valid(cx.now);
    holds.then_some(quote)
}

/// The output units paid ahead to a provider: more with each job it has served.
pub(super) fn window_for(cx: &Context, peer: &NodeId) -> u64 {
    let doublings = cx.reputation.served(peer).min(16);
    (cx.config.window_start << doublings).min(cx.config.window_max)
}
