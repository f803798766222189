//! Own hardware: which models it serves, who has its slots, how fast it is, and which prompts it has read.
//! Invariant: running work never exceeds a model's slots, and strangers never take the reserved ones.

use crate::event::{Capacity, StreamId, WorkId};
use crate::job::Kind;
use crate::prefix::{HOT_MAX, HotPrefix, PREFIX_UNITS, PrefixTable};
use crate::selling::{Selling, Slots, Utilisation};
use crate::speed::{RATE_UNITS_MIN, Speed};
use crate::time::Now;
use std::collections::BTreeMap;
use std::time::Duration;

/// After so many units a long answer's rate is learned, and measured anew.
const RATE_UNITS_MAX: u64 = 1024;
/// The length of an answer before any has ended, in units.
const ANSWER_DEFAULT: f64 = 512.0;
/// What the newest answer weighs in the usual length.
const ANSWER_WEIGHT: f64 = 0.1;
/// Of so many idle slots one may hold a hedge.
const HEDGED: u32 = 4;

/// Whether an own job can run here now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OwnState {
    /// A slot is free.
    Free,
    /// All slots are taken.
    Saturated,
    /// The backend does not answer.
    Unhealthy,
    /// No own backend has the model.
    Missing,
}

/// For whom a piece of work runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WorkFor {
    /// One of the owner's jobs.
    Owner(spillway_ledger::JobId),
    /// The same, a second time, beside a backend that is late.
    Hedge(spillway_ledger::JobId),
    /// A stranger's job, on this stream.
    Stranger(StreamId),
}

/// What is to start.
#[derive(Debug)]
pub(crate) struct Start<'a> {
    pub(crate) model: &'a str,
    pub(crate) whose: WorkFor,
    /// Prompt and prefix, in units.
    pub(crate) prompt: u64,
    /// The names of the prompt's prefix blocks.
    pub(crate) names: Vec<u64>,
    /// The most output, in units.
    pub(crate) output_max: u64,
    /// Whether another provider may go on in the middle of the answer.
    pub(crate) continuable: bool,
    /// Whether the answer comes in one piece.
    pub(crate) whole: bool,
}

#[derive(Debug)]
struct Model {
    capacity: Capacity,
    speed: Speed,
    cached: PrefixTable,
    used: Utilisation,
    /// The usual length of an answer, in units.
    answer: f64,
    own: u32,
    hedges: u32,
    strangers: u32,
    /// Prompts of running work that has not said anything yet, in uncached units. When the prompt of an answer in one piece was
    /// read is not told: those are left out.
    unread: u64,
    /// The sum over time of the work that runs, in jobs times microseconds, up to `at`.
    worked: u64,
    at: Now,
}

#[derive(Debug)]
struct Work {
    model: String,
    whose: WorkFor,
    started: Now,
    prompt_uncached: u64,
    /// Work that ran when this one began.
    beside: u32,
    /// Prompts that were to be read before this one, in uncached units.
    ahead: u64,
    names: Vec<u64>,
    output_max: u64,
    continuable: bool,
    whole: bool,
    /// Something was said, if only an event without text.
    begun: bool,
    units: u64,
    /// From where on the rate is measured; set by the first text.
    mark: Option<Mark>,
    last: Mark,
}

/// How far a piece of work was at a moment.
#[derive(Clone, Copy, Debug)]
struct Mark {
    at: Now,
    units: u64,
    worked: u64,
}

/// How many other pieces of work ran beside one from a moment to a later one, on average.
fn beside(from: Mark, until: Mark) -> f64 {
    #[expect(clippy::cast_precision_loss, reason = "a speed estimate")]
    let worked = (until.worked - from.worked) as f64;
    (worked / (until.at.since(from.at).as_secs_f64() * 1e6).max(1.0) - 1.0).max(0.0)
}

/// The own backends, as capacity.
#[derive(Debug, Default)]
pub(crate) struct Own {
    models: BTreeMap<String, Model>,
    work: BTreeMap<WorkId, Work>,
    /// The owner's jobs that wait for a slot, by model.
    pub(crate) waiting: BTreeMap<String, u32>,
    /// A slot may have become free since this was last looked at.
    pub(crate) freed: bool,
    next: u64,
}

impl Model {
    const fn running(&self) -> u32 {
        self.own + self.hedges + self.strangers
    }

    /// All of it but for hedges.
    const fn first_hand(&self) -> u32 {
        self.own + self.strangers
    }

    /// Accounts for the time up to now, before anything changes.
    fn note(&mut self, now: Now) {
        let span = u64::try_from(now.since(self.at).as_micros()).unwrap_or(u64::MAX);
        self.worked = self.worked.saturating_add(span.saturating_mul(u64::from(self.running())));
        self.used.note(now, self.own, self.capacity.slots);
        self.at = now;
    }

    const fn count(&mut self, whose: WorkFor) -> &mut u32 {
        match whose {
            WorkFor::Owner(_) => &mut self.own,
            WorkFor::Hedge(_) => &mut self.hedges,
            WorkFor::Stranger(_) => &mut self.strangers,
        }
    }

    /// How much of an answer in one piece is predicted to be written by now, in units.
    fn written(&self, now: Now, work: &Work, per_unit_us: u64) -> u64 {
        let first = self.speed.predict(work.prompt_uncached, work.beside, work.ahead).ttft_us;
        let since = u64::try_from(now.since(work.started).as_micros()).unwrap_or(u64::MAX);
        since.saturating_sub(first) / per_unit_us.max(1)
    }

    fn learn_rate(&mut self, from: Mark, until: Mark) {
        let elapsed = until.at.since(from.at);
        if elapsed.is_zero() || until.units - from.units < RATE_UNITS_MIN {
            return;
        }
        self.speed.observe_rate(until.units - from.units, beside(from, until), elapsed);
    }
}

impl Own {
    /// Replaces the list of models; what was learned of known ones is kept. A backend that does not answer has lost its cache.
    pub(crate) fn set(&mut self, now: Now, capacities: Vec<Capacity>, cache_units: u64) {
        self.freed = true;
        let mut old = std::mem::take(&mut self.models);
        let names_max = usize::try_from(cache_units / PREFIX_UNITS as u64).unwrap_or(usize::MAX);
        for capacity in capacities {
            let mut model = old.remove(&capacity.model).unwrap_or_else(|| Model {
                capacity: capacity.clone(),
                speed: Speed::default(),
                cached: PrefixTable::new(names_max),
                used: Utilisation::default(),
                answer: ANSWER_DEFAULT,
                own: 0,
                hedges: 0,
                strangers: 0,
                unread: 0,
                worked: 0,
                at: now,
            });
            model.note(now);
            if !capacity.healthy {
                model.cached.clear();
            }
            // Counted anew: work outlives a model that was missing from the list for a while.
            (model.own, model.hedges, model.strangers, model.unread) = (0, 0, 0, 0);
            for work in self.work.values().filter(|work| work.model == capacity.model) {
                *model.count(work.whose) += 1;
                model.unread += if work.mark.is_none() { work.prompt_uncached } else { 0 };
            }
            model.capacity = capacity;
            self.models.insert(model.capacity.model.clone(), model);
        }
    }

    pub(crate) fn capacity(&self, model: &str) -> Option<&Capacity> {
        self.models.get(model).map(|model| &model.capacity)
    }

    /// Whether the owner's next job of this kind could start.
    pub(crate) fn state(&self, model: &str, kind: Kind) -> OwnState {
        let Some(model) = self.models.get(model) else { return OwnState::Missing };
        if !model.capacity.kinds.contains(&kind) {
            return OwnState::Missing;
        }
        if !model.capacity.healthy {
            return OwnState::Unhealthy;
        }
        // A hedge makes way.
        if model.first_hand() < model.capacity.slots { OwnState::Free } else { OwnState::Saturated }
    }

    /// Whether an answer that was begun elsewhere can be gone on with here.
    pub(crate) fn goes_on(&self, model: &str, kind: Kind) -> bool {
        self.capacity(model).is_some_and(|capacity| capacity.goes_on(kind))
    }

    /// What a model's slots do now. `None` if strangers cannot have it at all.
    pub(crate) fn slots(&mut self, now: Now, model: &str, kind: Kind) -> Option<Slots> {
        let own_pending = self.waiting.get(model).copied().unwrap_or(0);
        let model = self.models.get_mut(model)?;
        let owned = model.capacity.slots.saturating_sub(model.capacity.rented);
        if !model.capacity.healthy || !model.capacity.kinds.contains(&kind) || owned == 0 {
            return None;
        }
        model.note(now);
        Some(Slots {
            slots: owned,
            own_running: model.own + model.hedges,
            strangers_running: model.strangers,
            own_pending,
            utilisation_percent: model.used.percent(),
        })
    }

    /// The slots to advertise: what strangers could have if nothing ran.
    pub(crate) fn advertised(&mut self, now: Now, selling: &Selling) -> Vec<(Capacity, u32)> {
        let idle = |model: &mut Model| {
            model.note(now);
            let slots = model.capacity.slots.saturating_sub(model.capacity.rented);
            let idle = Slots { slots, utilisation_percent: model.used.percent(), ..Slots::default() };
            (model.capacity.clone(), selling.slots_for_strangers(now, idle))
        };
        let healthy = self.models.values_mut().filter(|model| model.capacity.healthy);
        healthy.map(idle).filter(|(_, slots)| *slots > 0).collect()
    }

    /// Work under way for a model.
    pub(crate) fn running(&self, model: &str) -> u32 {
        self.models.get(model).map_or(0, Model::running)
    }

    /// The same, but for hedges.
    pub(crate) fn first_hand(&self, model: &str) -> u32 {
        self.models.get(model).map_or(0, Model::first_hand)
    }

    /// Whether another hedge may run: on separate hardware, for nobody who waits, and within a quarter of what is idle.
    pub(crate) fn may_hedge(&self, model: &str) -> bool {
        let waiting = self.waiting.get(model).is_some_and(|waiting| *waiting > 0);
        self.models.get(model).is_some_and(|model| {
            let owned = model.capacity.slots.saturating_sub(model.capacity.rented);
            let idle = owned.saturating_sub(model.first_hand());
            model.capacity.healthy && model.capacity.replicas > 1 && !waiting && model.hedges < idle / HEDGED
        })
    }

    /// The newest hedge, if all slots are taken.
    pub(crate) fn hedge_in_the_way(&self, name: &str) -> Option<(WorkId, spillway_ledger::JobId)> {
        let model = self.models.get(name)?;
        if model.hedges == 0 || model.running() < model.capacity.slots {
            return None;
        }
        self.work.iter().rev().filter(|(_, work)| work.model == name).find_map(|(id, work)| match work.whose {
            WorkFor::Hedge(job) => Some((*id, job)),
            WorkFor::Owner(_) | WorkFor::Stranger(_) => None,
        })
    }

    /// The step model, and what it is to be asked with: the work that runs, and the prompts that are not read yet.
    pub(crate) fn speed(&self, model: &str) -> Option<(&Speed, u32, u64)> {
        self.models.get(model).map(|model| (&model.speed, model.running(), model.unread))
    }

    /// How much of a prompt with these names is believed to be cached, in units.
    pub(crate) fn cached_units(&self, model: &str, names: &[u64]) -> u32 {
        self.models.get(model).map_or(0, |model| model.cached.cached_units(names))
    }

    /// The prefixes that a model is asked for most.
    pub(crate) fn hot(&self, model: &str) -> Vec<HotPrefix> {
        self.models.get(model).map(|model| model.cached.hot(HOT_MAX)).unwrap_or_default()
    }

    /// Takes a slot. The caller has seen that one is free, or held by a hedge and freed of it.
    pub(crate) fn start(&mut self, now: Now, start: Start<'_>) -> WorkId {
        let id = WorkId(self.next);
        self.next += 1;
        let cached = u64::from(self.cached_units(start.model, &start.names));
        let mut work = Work {
            model: start.model.to_owned(),
            whose: start.whose,
            started: now,
            prompt_uncached: start.prompt.saturating_sub(cached),
            beside: 0,
            ahead: 0,
            names: start.names,
            output_max: start.output_max,
            continuable: start.continuable,
            whole: start.whole,
            begun: false,
            units: 0,
            mark: None,
            last: Mark { at: now, units: 0, worked: 0 },
        };
        if let Some(model) = self.models.get_mut(start.model) {
            model.note(now);
            (work.beside, work.ahead) = (model.running(), model.unread);
            *model.count(start.whose) += 1;
            work.last.worked = model.worked;
            if !work.whole {
                model.unread += work.prompt_uncached;
            }
        }
        self.work.insert(id, work);
        id
    }

    /// Whose work this is, if it is under way.
    pub(crate) fn whose(&self, id: WorkId) -> Option<WorkFor> {
        self.work.get(&id).map(|work| work.whose)
    }

    /// Notes output, to learn how fast the backend is, and that it has read the prompt.
    pub(crate) fn output(&mut self, now: Now, id: WorkId, units: u64) {
        let Some(work) = self.work.get_mut(&id) else { return };
        work.begun = true;
        if units == 0 {
            return;
        }
        work.units += units;
        let Some(model) = self.models.get_mut(&work.model) else { return };
        model.note(now);
        let began = std::mem::replace(&mut work.last, Mark { at: now, units: work.units, worked: model.worked });
        match work.mark {
            None if work.whole => {
                work.mark = Some(work.last);
                let (waited, running) = (now.since(work.started), beside(began, work.last));
                model.speed.observe_whole(work.prompt_uncached, work.beside, work.ahead, units, running, waited);
                model.cached.used(&work.names);
            }
            None => {
                work.mark = Some(work.last);
                model.unread = model.unread.saturating_sub(work.prompt_uncached);
                let waited = now.since(work.started);
                model.speed.observe_first(work.prompt_uncached, work.beside, work.ahead, waited);
                model.cached.used(&work.names);
            }
            Some(mark) if work.units - mark.units >= RATE_UNITS_MAX => {
                work.mark = Some(work.last);
                model.learn_rate(mark, work.last);
            }
            Some(_) => {}
        }
    }

    /// Gives the slot back.
    pub(crate) fn finish(&mut self, now: Now, id: WorkId) {
        self.freed = true;
        let Some(work) = self.release(now, id) else { return };
        let Some(model) = self.models.get_mut(&work.model) else { return };
        if let Some(mark) = work.mark {
            model.learn_rate(mark, work.last);
            #[expect(clippy::cast_precision_loss, reason = "a length estimate")]
            let units = work.units as f64;
            model.answer += ANSWER_WEIGHT * (units - model.answer);
        }
    }

    fn release(&mut self, now: Now, id: WorkId) -> Option<Work> {
        let work = self.work.remove(&id)?;
        if let Some(model) = self.models.get_mut(&work.model) {
            model.note(now);
            let count = model.count(work.whose);
            *count = count.saturating_sub(1);
            if work.mark.is_none() && !work.whole {
                model.unread = model.unread.saturating_sub(work.prompt_uncached);
            }
        }
        Some(work)
    }

    /// How many strangers' jobs could be stopped for a slot. None where one slot less would still be one too many.
    pub(crate) fn preemptible(&self, model: &str) -> u32 {
        self.models
            .get(model)
            .map_or(0, |model| if model.running() > model.capacity.slots { 0 } else { model.strangers })
    }

    /// Takes the slot of a stranger's job for the owner, if that gives one: of those that others can go on with rather than
    /// not, the one that has said least, and of these the newest.
    pub(crate) fn preempt(&mut self, now: Now, model: &str) -> Option<(WorkId, StreamId)> {
        if self.preemptible(model) == 0 {
            return None;
        }
        let strangers = self.work.iter().filter(|(_, work)| work.model == model).filter_map(|(id, work)| {
            let WorkFor::Stranger(stream) = work.whose else { return None };
            Some((!work.continuable && work.begun, work.units, std::cmp::Reverse(*id), stream))
        });
        let (_, _, std::cmp::Reverse(id), stream) = strangers.min()?;
        self.release(now, id)?;
        Some((id, stream))
    }

    /// The wait for the first text of a job that starts now, its prompt's cached part not counted.
    pub(crate) fn first_text(&self, model: &str, prompt: u64, names: &[u64]) -> Duration {
        let unread = prompt.saturating_sub(u64::from(self.cached_units(model, names)));
        let us = self.speed(model).map_or(0, |(speed, running, ahead)| speed.predict(unread, running, ahead).ttft_us);
        Duration::from_micros(us)
    }

    /// When `count` pieces of a model's work are predicted to have ended, from now on; those that run, and then others like
    /// them.
    pub(crate) fn ended(&self, now: Now, model: &str, count: u32) -> Duration {
        let (ends, count) = (self.ends(now, model), count as usize);
        let (Some(last), Some(index)) = (ends.last(), count.checked_sub(1)) else { return Duration::ZERO };
        let rounds = u32::try_from(index / ends.len()).unwrap_or(u32::MAX);
        ends[index % ends.len()].saturating_add(last.saturating_mul(rounds))
    }

    /// When each piece of a model's work is predicted to end from now on, soonest first.
    pub(crate) fn ends(&self, now: Now, model: &str) -> Vec<Duration> {
        let Some(found) = self.models.get(model) else { return Vec::new() };
        let beside = found.running().saturating_sub(1);
        let per_unit = found.speed.predict(0, beside, 0).per_unit_us;
        let mut ends: Vec<Duration> = self
            .work
            .values()
            .filter(|work| work.model == model)
            .map(|work| {
                let to_first = match work.mark {
                    Some(_) => Duration::ZERO,
                    None => {
                        let predicted = found.speed.predict(work.prompt_uncached, work.beside, work.ahead).ttft_us;
                        Duration::from_micros(predicted).saturating_sub(now.since(work.started))
                    }
                };
                // How long an answer will be is not known. What has run for long is likely to run on.
                #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a length estimate")]
                let usual = found.answer.max(1.0) as u64;
                let units = if work.whole { found.written(now, work, per_unit) } else { work.units };
                let left = usual.saturating_sub(units).max(usual / 4).max(1);
                let left = left.min(work.output_max.saturating_sub(units));
                to_first + Duration::from_micros(left.saturating_mul(per_unit))
            })
            .collect();
        ends.sort_unstable();
        ends
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use spillway_ledger::{Digest, JobId, Price};

    const START: Now = Now::from_ms(1_700_000_000_000);

    fn own(slots: u32) -> Own {
        let mut own = Own::default();
        own.set(START, vec![capacity(slots)], 1 << 20);
        own
    }

    fn capacity(slots: u32) -> Capacity {
        Capacity {
            model: "m".into(),
            weights: Digest::from_bytes([0; 32]),
            quantization: String::new(),
            engine: "test".into(),
            context_max: 0,
            kinds: vec![Kind::Chat],
            slots,
            rented: 0,
            replicas: 1,
            token_price: Price::ZERO,
            continues: true,
            healthy: true,
        }
    }

    fn start(own: &mut Own, now: Now, whose: WorkFor, continuable: bool) -> WorkId {
        let whole = false;
        own.start(now, Start { model: "m", whose, prompt: 1_000, names: vec![], output_max: 4_096, continuable, whole })
    }

    const OWNER: WorkFor = WorkFor::Owner(JobId([1; 16]));

    const fn stranger(number: u64) -> WorkFor {
        WorkFor::Stranger(StreamId::In(number))
    }

    #[test]
    fn the_stranger_with_the_least_text_makes_way() {
        // Each stranger: units said, continuable. Who goes, by place.
        for (strangers, goes) in [
            (&[(5, true), (2, true), (9, true)][..], 1),
            (&[(0, true), (0, true)], 1),
            (&[(3, true), (3, true), (4, true)], 1),
            (&[(1, false), (50, true)], 1),
            (&[(1, false), (50, false)], 0),
            (&[(7, true), (0, false)], 0),
        ] {
            let mut own = own(u32::try_from(strangers.len()).unwrap() + 1);
            start(&mut own, START, OWNER, true);
            for (number, (units, continuable)) in (0..).zip(strangers) {
                let work = start(&mut own, START, stranger(number), *continuable);
                own.output(START, work, *units);
            }
            assert_eq!(own.state("m", Kind::Chat), OwnState::Saturated);
            let (_, stream) = own.preempt(START, "m").expect("a stranger runs");
            assert_eq!(stream, StreamId::In(goes), "{strangers:?}");
            assert_eq!(own.state("m", Kind::Chat), OwnState::Free);
        }
        let mut only = own(1);
        start(&mut only, START, OWNER, true);
        assert!(only.preempt(START, "m").is_none(), "the owner's own work is not stopped");
    }

    #[test]
    fn nobody_is_stopped_where_that_frees_no_slot() {
        let mut own = own(3);
        for number in 0..3 {
            start(&mut own, START, stranger(number), true);
        }
        own.set(START, vec![capacity(2)], 1 << 20);
        assert!(own.preempt(START, "m").is_none());
        own.set(START, vec![], 0);
        own.set(START, vec![capacity(3)], 1 << 20);
        assert_eq!(own.running("m"), 3, "work outlives its model's absence");
        assert!(own.preempt(START, "m").is_some());
    }

    /// Jobs one after the other and side by side on a made-up backend: the figures that it would report are learned.
    #[test]
    fn speed_is_learned_from_the_work_itself() {
        let mut own = own(2);
        let mut now = START;
        for round in 0..30 {
            let count = 1 + round % 2;
            let works: Vec<_> = (0..count).map(|number| start(&mut own, now, stranger(number), true)).collect();
            for work in &works {
                now = now.after(Duration::from_millis(50));
                own.output(now, *work, 1);
            }
            for _ in 0..40 {
                now = now.after(Duration::from_millis(10 + 10 * count));
                works.iter().for_each(|work| own.output(now, *work, 10));
            }
            works.iter().for_each(|work| own.finish(now, *work));
        }
        let (speed, running, unread) = own.speed("m").expect("known");
        assert_eq!((running, unread), (0, 0));
        let (alone, beside) = (speed.predict(1_000, 0, 0), speed.predict(1_000, 1, 1_000));
        for (what, got, truth) in [
            ("first text alone", alone.ttft_us, 50_000),
            ("unit alone", alone.per_unit_us, 2_000),
            ("unit beside another", beside.per_unit_us, 3_000),
        ] {
            assert!(got.abs_diff(truth) * 10 <= truth, "{what}: {got} for {truth}");
        }
    }

    /// Answers in one piece tell only what they took in all: that is learned, and how long one that runs has to go.
    #[test]
    fn speed_is_learned_from_answers_in_one_piece() {
        let mut own = own(2);
        let mut now = START;
        let whole = |own: &mut Own, now, prompt| {
            let start = Start {
                model: "m",
                whose: OWNER,
                prompt,
                names: vec![],
                output_max: 4_096,
                continuable: false,
                whole: true,
            };
            own.start(now, start)
        };
        let took = |prompt: u64, units: u64| Duration::from_millis(20 + prompt / 20 + 2 * units);
        for round in 0..60 {
            let (prompt, units) = (400 + 800 * (round % 3), 100 + 150 * (round % 4));
            let work = whole(&mut own, now, prompt);
            assert_eq!(own.speed("m").expect("known").2, 0, "nobody knows when its prompt is read");
            now = now.after(took(prompt, units));
            own.output(now, work, units);
            own.finish(now, work);
        }
        let (speed, running, unread) = own.speed("m").expect("known");
        assert_eq!((running, unread), (0, 0));
        for (prompt, units) in [(400, 100), (2_000, 550), (1_200, 250)] {
            let predicted = speed.predict(prompt, 0, 0);
            let (got, truth) = (predicted.ttft_us + units * predicted.per_unit_us, took(prompt, units).as_micros());
            let got = u128::from(got);
            assert!(got.abs_diff(truth) * 5 <= truth, "{prompt} and {units}: {got} for {truth}");
        }
        let work = whole(&mut own, now, 1_000);
        let (at_once, later) = (own.ends(now, "m")[0], own.ends(now.after(Duration::from_millis(400)), "m")[0]);
        assert!(later < at_once && at_once - later > Duration::from_millis(200), "{at_once:?}, {later:?}");
        own.finish(now, work);
    }

    #[test]
    fn ends_are_predicted_from_progress() {
        let mut own = own(4);
        let early = start(&mut own, START, OWNER, true);
        own.output(START, early, 400);
        start(&mut own, START, stranger(1), true);
        let [soon, late] = own.ends(START, "m").try_into().expect("two");
        assert!(soon < late && soon > Duration::ZERO, "{soon:?}, {late:?}");
        let limited = Start {
            model: "m",
            whose: stranger(2),
            prompt: 0,
            names: vec![],
            output_max: 0,
            continuable: true,
            whole: false,
        };
        own.start(START, limited);
        assert!(own.ends(START, "m")[0] < soon, "no answer is longer than it may be");
    }

    #[test]
    fn read_prompts_are_cached_until_the_backend_fails() {
        let mut own = own(1);
        let names = vec![1, 2, 3];
        let run = |own: &mut Own, says: u64| {
            let start = Start {
                model: "m",
                whose: OWNER,
                prompt: 7_000,
                names: names.clone(),
                output_max: 9,
                continuable: true,
                whole: false,
            };
            let work = own.start(START, start);
            own.output(START, work, says);
            own.finish(START, work);
            own.cached_units("m", &[1, 2, 9])
        };
        assert_eq!(run(&mut own, 0), 0, "what said nothing may not have been read");
        assert_eq!(run(&mut own, 1), 4096);
        assert_eq!(own.hot("m"), [HotPrefix { name: 3, units: 6144 }]);
        own.set(START, vec![Capacity { healthy: false, ..capacity(1) }], 1 << 20);
        assert_eq!(own.cached_units("m", &[1, 2, 9]), 0);
    }
}
