//! Which provider: weighs price, predicted time, load, distance, prefix and standing of those that may serve a job.
//! Invariants: hard limits come first and are the caller's; an estimate alone never turns a job away; nothing here knows
//! what names a provider, so that the node (by node id) and the simulator (by number) run the same code.
//!
//! One [`Router`] holds what is known of a model's providers. A caller asks [`Router::decide`], probes whom it is told to,
//! feeds the answers to [`Router::reported`] and asks again, until it says where to go or that nobody is left.
//! `docs/routing.md`, "Choosing a provider".

mod ask;
pub mod coordinate;
mod estimate;
mod holders;
mod known;
pub mod preference;
pub mod spill;

pub use ask::{ALL_MAX, Ask, CHEAPEST, Candidate, DRAWN, Market, Weights};
pub use coordinate::Coordinate;
pub use estimate::{Certainty, Estimate};
pub use holders::Holders;
pub use known::{Report, Served};
pub use preference::{Preferences, Sort};
pub use spill::{Gate, OwnView};

use crate::time::Now;
use estimate::{Target, better};
use known::{Known, Typical};
use std::collections::BTreeMap;
use std::time::Duration;

/// What a router may be told to do otherwise. The defaults are the shipped ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterRules {
    /// Providers probed at once for one job.
    pub probes_max: usize,
    /// Providers whose load is kept fresh beyond single jobs. Prequal (NSDI'24) uses 16.
    pub pool_max: usize,
    /// A load older than this is no ground to send a job without asking again. Prequal drops its probes after 1 s, too.
    pub fresh_for: Duration,
    /// Of the candidates' loads, those above this quantile are left out while others are free. Prequal uses 0.84.
    pub hot_quantile: f64,
    /// From this share of a prompt in a provider's prefix cache on, the conversation stays there. llm-d uses 0.8.
    pub affinity_gate: f64,
    /// Unless staying costs that many more milliseconds than going; or, where that is more, than going costs those whose jobs
    /// run there already: a prompt that is read anew holds up each of them. Nothing where jobs wait already, and elsewhere not.
    pub affinity_bound_ms: f64,
    /// How many jobs of a thousand go to a provider drawn at random within the limits.
    pub explore_per_mille: u32,
    /// How much of the time to the first text that a target allows is used up at most by prediction; the rest is for what
    /// predictions miss.
    pub target_share: f64,
    /// Of those that meet a target, how much dearer one counts whose slots are all taken, as a share of its price: a batch
    /// that fills up slows everyone in it.
    pub load_weight: f64,
    /// Providers probed in the background after a job was placed without asking.
    pub refresh_max: usize,
}

impl Default for RouterRules {
    fn default() -> Self {
        Self {
            probes_max: 3,
            pool_max: 16,
            fresh_for: Duration::from_secs(1),
            hot_quantile: 0.84,
            affinity_gate: 0.8,
            affinity_bound_ms: 1_000.0,
            explore_per_mille: 10,
            target_share: 0.5,
            load_weight: 0.5,
            refresh_max: 1,
        }
    }
}

/// Providers of one model that are remembered; the one not heard of for longest makes room.
pub const KNOWN_MAX: usize = 16_384;

/// Providers that kept their word lately and are always looked at; the one that did so longest ago makes room.
pub const PROVEN_MAX: usize = 32;
/// How much one stranger's conduct says of the next one's.
const CREDIT_STEP: f64 = 0.125;
/// Below this share of strangers that keep their word, their word counts for nothing.
const CREDIT_MIN: f64 = 0.5;

/// Where a job goes next.
#[derive(Clone, Debug, PartialEq)]
pub enum Decision<P> {
    /// There. Tell the router by [`Router::sent`].
    Go {
        /// The provider.
        to: P,
        /// What is expected of it.
        expected: Estimate,
        /// Whom to probe in the background, so that the next job finds their loads fresh.
        refresh: Vec<P>,
    },
    /// Probe these, then decide again. At most [`RouterRules::probes_max`].
    Probe(Vec<P>),
    /// Nobody who may serve it is free, or nobody may.
    Nobody {
        /// When the first of those that are busy expects a free slot; `None` if nobody said.
        free_at: Option<Now>,
    },
}

/// A provider that kept its word.
#[derive(Clone, Copy, Debug)]
struct Proven<P> {
    id: P,
    /// It ended a job well; until then it has only given text for one.
    ended: bool,
}

/// What is known of one model's providers.
#[derive(Clone, Debug)]
pub struct Router<P> {
    rules: RouterRules,
    known: BTreeMap<P, Known>,
    /// Providers whose last word was that a slot is free, the newest last.
    pool: Vec<P>,
    /// The next time the pool is full, its worst goes instead of its oldest.
    drop_worst: bool,
    holders: Holders<P>,
    typical: Typical,
    /// Providers that kept their word, the latest last.
    proven: Vec<Proven<P>>,
    /// What share of strangers took the job that they had quoted for, the latest weighing most. Names cost nothing: where most
    /// of them lie, who is proven comes first, and the rest are tried in turn, whatever they promise.
    credit: f64,
    /// Room for candidates, so that a decision allocates nothing.
    proposed: Vec<P>,
    /// Whether `weighed` is kept.
    tells: bool,
    /// Who was weighed in the last decision, in the order of their names.
    weighed: Vec<(P, Estimate)>,
}

impl<P: Copy + Ord> Router<P> {
    /// Knows nobody yet.
    #[must_use]
    pub const fn new(rules: RouterRules) -> Self {
        Self {
            rules,
            known: BTreeMap::new(),
            pool: Vec::new(),
            drop_worst: false,
            holders: Holders::new(),
            typical: Typical::new(),
            proven: Vec::new(),
            credit: 1.0,
            proposed: Vec::new(),
            tells: false,
            weighed: Vec::new(),
        }
    }

    /// Remembers who was weighed in its last decision, for [`Self::weighed`].
    #[must_use]
    pub fn telling(mut self) -> Self {
        self.tells = true;
        self
    }

    /// Who was weighed in the last decision; empty unless the router is [`Self::telling`].
    #[must_use]
    pub fn weighed(&self) -> &[(P, Estimate)] {
        &self.weighed
    }

    /// Decides where a job goes, given whom `asked` names as probed for this job already.
    ///
    /// Goes at once if a provider with a fresh load suits and no other is likely to suit so much better that asking is
    /// worth the wait; otherwise names whom to probe.
    pub fn decide(
        &mut self,
        now: Now,
        ask: &Ask<'_>,
        asked: &[P],
        market: &impl Market<P>,
        rng: &mut impl rand::Rng,
    ) -> Decision<P> {
        let mut proposed = std::mem::take(&mut self.proposed);
        proposed.clear();
        proposed.extend(self.pool.iter().copied().chain(self.proven.iter().map(|proven| proven.id)));
        self.holders.of(ask.prefix, &mut proposed);
        let busy = |id: &P| !ask.thorough && self.known.get(id).is_some_and(|known| known.is_busy(now));
        market.propose(&mut proposed, busy, self.credit < CREDIT_MIN, rng);
        // Later finds are as good as earlier ones: the order of a set, so that it depends on nothing but who they are.
        proposed.sort_unstable();
        proposed.dedup();
        let decision = self.weigh(now, ask, asked, &proposed, market, rng);
        self.proposed = proposed;
        decision
    }

    fn weigh(
        &mut self,
        now: Now,
        ask: &Ask<'_>,
        asked: &[P],
        proposed: &[P],
        market: &impl Market<P>,
        rng: &mut impl rand::Rng,
    ) -> Decision<P> {
        let mut sure: Vec<(P, Estimate)> = Vec::new();
        let mut unsure: Vec<(P, Estimate)> = Vec::new();
        let mut free_at: Option<Now> = None;
        self.weighed.clear();
        for id in proposed {
            let Some(candidate) = market.candidate(id) else { continue };
            let known = self.known.get(id);
            let held = self.holders.held(ask.prefix, id).min(ask.units);
            let mut estimate = estimate::estimate(now, ask, &candidate, known, held, &self.typical, &self.rules);
            if self.doubts(id) {
                estimate.doubt = Some(candidate.standing);
            }
            if self.tells {
                self.weighed.push((*id, estimate));
            }
            match estimate.certainty {
                Certainty::Sure => sure.push((*id, estimate)),
                Certainty::Busy(at) => free_at = Some(free_at.map_or(at, |first| first.min(at))),
                // Who was asked for this job and did not say yes is not asked again.
                Certainty::Unsure if asked.contains(id) => {}
                Certainty::Unsure => unsure.push((*id, estimate)),
            }
        }
        let target = Target::of(ask, &self.rules);
        if target.is_none() {
            // With a target, who is too hot to meet it comes last anyway, and who meets it may be filled up.
            cool(&mut sure, self.rules.hot_quantile);
        }
        // Equals are drawn for: otherwise the lowest name would get all the work.
        for found in [&mut sure, &mut unsure] {
            shuffle(found, rng);
            found.sort_by(|a, b| better(&a.1, &b.1, target));
        }
        let best = self.settled(ask, &sure, target, rng);
        match (best, unsure.first()) {
            (None, None) => Decision::Nobody { free_at },
            (Some((to, expected)), None) => Decision::Go { to, expected, refresh: Vec::new() },
            (None, Some(_)) if ask.settled => Decision::Nobody { free_at },
            (Some((to, expected)), Some((_, other))) if ask.settled || !worth_asking(&expected, other, target) => {
                let refresh = draw(&mut unsure, self.rules.refresh_max, rng);
                Decision::Go { to, expected, refresh }
            }
            (_, Some(_)) => {
                // The best on paper, and one drawn from the rest, so that newcomers are seen.
                let probes = self.rules.probes_max.max(1);
                let mut chosen: Vec<P> = unsure.iter().take(probes.saturating_sub(1).max(1)).map(|it| it.0).collect();
                unsure.drain(..chosen.len());
                chosen.extend(draw(&mut unsure, probes - chosen.len(), rng));
                Decision::Probe(chosen)
            }
        }
    }

    /// The one to go to among those that are sure: the holder of most of the prompt's prefix unless that is too slow, now
    /// and then anyone, else the best.
    fn settled(
        &self,
        ask: &Ask<'_>,
        sure: &[(P, Estimate)],
        target: Option<Target>,
        rng: &mut impl rand::Rng,
    ) -> Option<(P, Estimate)> {
        let best = *sure.first()?;
        let units = ask.units.max(1);
        let keeps = |cached: u64| cached as f64 >= self.rules.affinity_gate * units as f64;
        let holder = sure.iter().filter(|(_, it)| keeps(it.cached) && it.rank == best.1.rank && it.doubt.is_none());
        let holder = holder.min_by(|a, b| better(&a.1, &b.1, target));
        if self.rules.explore_per_mille > 0 && below(rng, 1000) < u64::from(self.rules.explore_per_mille) {
            let index = usize::try_from(below(rng, sure.len() as u64)).expect("below a length");
            let drawn = sure[index];
            // Exploring is for knowledge: never at the price of a target that another meets, nor of a prefix that another holds:
            // the copy would push out of the drawn one's cache what is wanted there.
            let meets = target.is_none_or(|it| it.met_by(&drawn.1) || !it.met_by(&best.1));
            if meets && drawn.1.doubt.is_none() && holder.is_none() && drawn.1.rank == best.1.rank {
                return Some(drawn);
            }
        }
        match holder {
            Some(holder) if self.stays(&holder.1, &best.1, target) => Some(*holder),
            Some(_) | None => Some(best),
        }
    }

    /// Whether a job stays where its prefix is rather than go, though it waits longer there: reading it anew would hold up those
    /// whose jobs run elsewhere. Not where jobs wait already while nobody waits elsewhere.
    fn stays(&self, stay: &Estimate, go: &Estimate, target: Option<Target>) -> bool {
        if target.is_some_and(|target| target.met_by(go) && !target.met_by(stay)) {
            return false;
        }
        let bound_ms = if stay.pending > 0 && go.pending == 0 {
            0.0
        } else {
            self.rules.affinity_bound_ms.max(go.delays_ms - stay.delays_ms)
        };
        stay.first_ms <= go.first_ms + bound_ms
    }

    /// A provider told its load when it was asked.
    pub fn reported(&mut self, now: Now, id: P, report: Report) {
        self.typical.learn(&report);
        self.entry(now, id).report(now, report);
        self.pooled(id, report.slots_free > 0);
    }

    /// A provider told its load unasked, on a job's stream.
    pub fn overheard(&mut self, now: Now, id: P, report: Report) {
        self.typical.learn(&report);
        self.entry(now, id).overheard(now, report);
        self.pooled(id, report.slots_free > 0);
    }

    /// Its place in the pool, if it is free.
    fn pooled(&mut self, id: P, free: bool) {
        if let Some(index) = self.pool.iter().position(|other| *other == id) {
            self.pool.remove(index);
        }
        // A full one would only take the room of one that is not, and what is free but dear would be forgotten in a rush.
        if !free {
            return;
        }
        self.pool.push(id);
        if self.pool.len() > self.rules.pool_max.max(1) {
            let index = if self.drop_worst { self.worst() } else { 0 };
            self.drop_worst = !self.drop_worst;
            self.pool.remove(index);
        }
    }

    /// A provider told which prefixes its cache holds, by name and units.
    pub fn holds(&mut self, id: P, prefixes: impl IntoIterator<Item = (u64, u64)>) {
        for (name, units) in prefixes {
            self.holders.insert(name, units, id);
        }
    }

    /// A provider told how many units of a prompt its cache holds: what was remembered of it beyond that is wrong.
    pub fn holds_of(&mut self, id: P, prefix: &[u64], prefix_units: u64, units: u64) {
        self.holders.lost(prefix, &id, units);
        let blocks = usize::try_from(units / prefix_units.max(1)).unwrap_or(usize::MAX);
        self.remember(id, &prefix[..blocks.min(prefix.len())], prefix_units);
    }

    /// Its cache holds these blocks of a prompt.
    fn remember(&mut self, id: P, prefix: &[u64], prefix_units: u64) {
        for (index, name) in prefix.iter().enumerate() {
            self.holders.insert(*name, (index as u64 + 1) * prefix_units, id);
        }
    }

    /// A probe had no answer, or a stream could not be opened: what was known of its load no longer counts.
    pub fn silent(&mut self, id: &P) {
        self.pool.retain(|other| other != id);
        if let Some(known) = self.known.get_mut(id) {
            known.forget_load();
        }
    }

    /// A job was sent there.
    pub fn sent(&mut self, now: Now, id: P, ask: &Ask<'_>, cached: u64) {
        let known = self.entry(now, id);
        known.sent(now, ask.units.saturating_sub(cached));
        self.remember(id, ask.prefix, ask.prefix_units);
    }

    /// Whether its word counts for nothing now: most strangers break theirs of late, and it has not kept one yet.
    #[must_use]
    pub fn doubts(&self, id: &P) -> bool {
        self.credit < CREDIT_MIN && self.proof(id).is_none()
    }

    fn proof(&self, id: &P) -> Option<usize> {
        self.proven.iter().position(|proven| proven.id == *id)
    }

    fn prove(&mut self, id: P, ended: bool) {
        if self.proven.len() >= PROVEN_MAX {
            // Whoever only spoke takes nobody's place who has ended a job.
            match self.proven.iter().position(|proven| !proven.ended) {
                None if !ended => return,
                at => self.proven.remove(at.unwrap_or(0)),
            };
        }
        self.proven.push(Proven { id, ended });
    }

    /// It gave the first text for a job: those who look for somebody that keeps his word may go there.
    pub fn spoke(&mut self, id: P) {
        if self.proof(&id).is_none() {
            self.prove(id, false);
        }
    }

    /// A job there ended well, and both agreed what it was.
    pub fn proved(&mut self, id: P) {
        let before = self.proof(&id).map(|at| self.proven.remove(at));
        if before.is_none_or(|before| !before.ended) {
            self.credit += CREDIT_STEP * (1.0 - self.credit);
        }
        self.prove(id, true);
    }

    /// It turned a job down that it had quoted for, never said a word, or broke off in the midst. Whoever has ended a job well
    /// may: its slot was taken meanwhile.
    pub fn failed(&mut self, id: &P) {
        let proof = self.proof(id);
        if proof.is_some_and(|at| self.proven[at].ended) {
            return;
        }
        if let Some(at) = proof {
            self.proven.remove(at);
        }
        self.credit -= CREDIT_STEP * self.credit;
    }

    /// It turned a job away though its load had looked free; `free_at` is when it said to come again.
    pub fn refused(&mut self, now: Now, id: P, free_at: Now) {
        self.pool.retain(|other| *other != id);
        let known = self.entry(now, id);
        known.ended();
        known.busy_until(now, free_at);
    }

    /// A job there is over, well or not; `served` has what was measured, if anything was delivered.
    pub fn ended(&mut self, now: Now, id: P, served: Option<Served>) {
        if let Some(served) = &served {
            self.typical.served(served);
        }
        let usual = self.typical.usual_output();
        let known = self.entry(now, id);
        known.ended();
        if let Some(served) = served {
            known.served(&served, usual);
        }
    }

    /// The output of a job of this model that is to be expected, in units.
    #[must_use]
    pub fn output_expected(&self, output_max: u64) -> u64 {
        self.typical.output().min(output_max)
    }

    /// Jobs of this router under way there.
    #[must_use]
    pub fn in_flight(&self, id: &P) -> u32 {
        self.known.get(id).map_or(0, Known::in_flight)
    }

    /// The last load that it told, however old.
    #[must_use]
    pub fn report(&self, id: &P) -> Option<&Report> {
        self.known.get(id)?.last()
    }

    fn worst(&self) -> usize {
        let score = |id: &P| self.known.get(id).map_or(f64::MAX, Known::last_score);
        let worst = self.pool.iter().enumerate().max_by(|a, b| score(a.1).total_cmp(&score(b.1)));
        worst.map_or(0, |(index, _)| index)
    }

    fn entry(&mut self, now: Now, id: P) -> &mut Known {
        if !self.known.contains_key(&id) && self.known.len() >= KNOWN_MAX {
            let oldest = self.known.iter().min_by_key(|(_, known)| known.heard()).map(|(id, _)| *id);
            if let Some(oldest) = oldest {
                self.known.remove(&oldest);
                self.pool.retain(|other| *other != oldest);
            }
        }
        let known = self.known.entry(id).or_default();
        known.touch(now);
        known
    }
}

/// Leaves out those whose load is above the quantile, as long as others remain.
fn cool<P>(sure: &mut Vec<(P, Estimate)>, quantile: f64) {
    if sure.len() < 4 {
        return;
    }
    let mut loads: Vec<f64> = sure.iter().map(|(_, it)| it.load).collect();
    loads.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a rank within a short list")]
    let rank = (quantile.clamp(0.0, 1.0) * (loads.len() - 1) as f64).ceil() as usize;
    let hot = loads[rank];
    // Who holds the prompt's prefix is warm for a reason; the bound on its time decides about it.
    sure.retain(|(_, it)| it.load <= hot || it.cached > 0);
}

/// Whether asking somebody promises enough to wait for the answer.
fn worth_asking(sure: &Estimate, unsure: &Estimate, target: Option<Target>) -> bool {
    if unsure.rank != sure.rank {
        return unsure.rank < sure.rank;
    }
    if unsure.doubt.is_some() || sure.doubt.is_some() {
        // What a doubted one promises is not worth asking for.
        return unsure.doubt.is_none();
    }
    let asked = Estimate { first_ms: unsure.first_ms + unsure.distance_ms, ..*unsure };
    match target {
        Some(target) if target.met_by(sure) => target.met_by(&asked) && unsure.money < sure.money * 0.9,
        Some(target) if target.met_by(&asked) => true,
        Some(_) => asked.first_ms < sure.first_ms * 0.9,
        None => unsure.score + unsure.distance_ms * unsure.ms_worth < sure.score * 0.9,
    }
}

/// Takes up to `count` at random.
fn draw<P>(from: &mut Vec<(P, Estimate)>, count: usize, rng: &mut impl rand::Rng) -> Vec<P> {
    let mut drawn = Vec::with_capacity(count.min(from.len()));
    while drawn.len() < count && !from.is_empty() {
        let index = usize::try_from(below(rng, from.len() as u64)).expect("below a length");
        drawn.push(from.swap_remove(index).0);
    }
    drawn
}

fn shuffle<T>(items: &mut [T], rng: &mut impl rand::Rng) {
    for last in (1..items.len()).rev() {
        let other = usize::try_from(below(rng, last as u64 + 1)).expect("at most a length");
        items.swap(last, other);
    }
}

/// A number below `end`, by the upper half of a product: the same on every machine, with no loop.
fn below(rng: &mut impl rand::Rng, end: u64) -> u64 {
    u64::try_from((u128::from(rng.next_u64()) * u128::from(end)) >> 64).expect("the upper half of 128 bits")
}

#[cfg(test)]
mod tests;
