//! What all own backends serve together, and which of them takes the next work.
//! Invariant: the published list has each model once, and counts every work from its pick to its end.

use spillway_ledger::Price;
use spillway_protocol::{Capacity, Kind, WorkId};
use std::collections::{BTreeMap, HashMap};
use std::sync::{Mutex, MutexGuard};
use tokio::sync::watch;

/// What the backends serve.
#[derive(Debug)]
pub(super) struct Merge {
    names: Vec<String>,
    state: Mutex<State>,
    all: watch::Sender<Vec<Capacity>>,
}

#[derive(Debug)]
struct State {
    /// By backend.
    served: Vec<Vec<Capacity>>,
    /// Works under way, by backend and model.
    busy: BTreeMap<(usize, String), u32>,
    /// Where each is.
    at: HashMap<WorkId, usize>,
}

/// A work under way at a backend; counted until dropped.
#[derive(Debug)]
pub(super) struct Busy<'a> {
    merge: &'a Merge,
    work: WorkId,
    backend: usize,
    model: String,
}

/// Which backends may take a work.
#[derive(Clone, Debug)]
pub(super) struct Wanted {
    /// Whether it is the owner's: a stranger's runs nowhere that costs money.
    pub(super) own: bool,
    /// Whether none may that is rented.
    pub(super) owned_only: bool,
    /// Their names; empty means any.
    pub(super) backends: Vec<String>,
    /// The most that one may cost, per million tokens.
    pub(super) token_price_max: Option<Price>,
    /// The endpoint of the answer, if it is one that was begun elsewhere.
    pub(super) begun: Option<Kind>,
    /// For late work that is to run a second time: what it runs beside, at another backend that costs nothing and has a free slot.
    pub(super) beside: Option<WorkId>,
}

impl Wanted {
    fn takes(&self, name: &String, capacity: &Capacity) -> bool {
        let named = self.backends.is_empty() || self.backends.contains(name);
        let within = self.token_price_max.is_none_or(|max| capacity.token_price.within(&max));
        let rented = capacity.rented > 0;
        let goes_on = self.begun.is_none_or(|kind| capacity.goes_on(kind));
        named && goes_on && (!rented || (self.own && !self.owned_only && within))
    }

    /// Why no backend was found.
    pub(super) fn in_vain(&self, model: &str) -> String {
        if self.begun.is_some() {
            format!("no own backend of `{model}` can go on with this answer now")
        } else if self.backends.is_empty() {
            format!("no own backend serves `{model}` now, within what may be paid")
        } else {
            format!("of the backends {} none serves `{model}` now, within what may be paid", self.backends.join(", "))
        }
    }
}

impl Merge {
    /// For backends of these names, none of which serves anything yet.
    #[must_use]
    pub(super) fn new(names: Vec<String>) -> (Self, watch::Receiver<Vec<Capacity>>) {
        let (all, receiver) = watch::channel(Vec::new());
        let state =
            Mutex::new(State { served: vec![Vec::new(); names.len()], busy: BTreeMap::new(), at: HashMap::new() });
        (Self { names, state, all }, receiver)
    }

    /// Replaces what one backend serves.
    pub(super) fn publish(&self, backend: usize, serves: Vec<Capacity>) {
        let mut state = self.state();
        state.served[backend] = serves;
        let all = merged(&state.served);
        // Sent under the lock, so that an older list never replaces a newer one.
        self.all.send_if_modified(|old| {
            let changed = *old != all;
            *old = all;
            changed
        });
    }

    /// Marks everything that one backend serves as not answering.
    pub(super) fn fail(&self, backend: usize) {
        let mut serves = self.state().served[backend].clone();
        serves.iter_mut().for_each(|capacity| capacity.healthy = false);
        self.publish(backend, serves);
    }

    /// The backend for the next work, of those that are wanted and answer: one with a free slot before one without, one that
    /// costs nothing before one that does, then the one with the most free slots for the model.
    #[must_use]
    pub(super) fn pick(&self, work: WorkId, model: &str, wanted: &Wanted) -> Option<(usize, Busy<'_>)> {
        let mut state = self.state();
        let taken = wanted.beside.and_then(|beside| state.at.get(&beside).copied());
        let free = |backend: usize, slots: u32| {
            let busy = state.busy.get(&(backend, model.to_owned())).copied().unwrap_or(0);
            i64::from(slots) - i64::from(busy)
        };
        let candidates = state.served.iter().enumerate().filter_map(|(backend, serves)| {
            let capacity = serves.iter().find(|capacity| capacity.model == model && capacity.healthy)?;
            if !wanted.takes(&self.names[backend], capacity) {
                return None;
            }
            let (free, owned) = (free(backend, capacity.slots), capacity.rented == 0);
            if wanted.beside.is_some() && (taken == Some(backend) || !owned || free <= 0) {
                return None;
            }
            Some((free > 0, owned, free, std::cmp::Reverse(backend)))
        });
        let (.., std::cmp::Reverse(backend)) = candidates.max()?;
        *state.busy.entry((backend, model.to_owned())).or_default() += 1;
        state.at.insert(work, backend);
        Some((backend, Busy { merge: self, work, backend, model: model.to_owned() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the list")
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.merge.state();
        state.at.remove(&self.work);
        let key = (self.backend, std::mem::take(&mut self.model));
        if let Some(busy) = state.busy.get_mut(&key) {
            *busy -= 1;
            if *busy == 0 {
                state.busy.remove(&key);
            }
        }
    }
}

/// Each model once: the slots of all backends that answer, or of all if none does.
fn merged(served: &[Vec<Capacity>]) -> Vec<Capacity> {
    let mut models: BTreeMap<&str, Capacity> = BTreeMap::new();
    for capacity in served.iter().flatten() {
        match models.get_mut(capacity.model.as_str()) {
            None => {
                models.insert(&capacity.model, capacity.clone());
            }
            Some(other) if other.healthy == capacity.healthy => {
                other.slots = other.slots.saturating_add(capacity.slots);
                other.rented = other.rented.saturating_add(capacity.rented);
                other.replicas = other.replicas.saturating_add(capacity.replicas);
                // One that can will be asked.
                other.continues |= capacity.continues;
                let (a, b) = (other.token_price, capacity.token_price);
                other.token_price = Price {
                    input: a.input.max(b.input),
                    cached: a.cached.max(b.cached),
                    output: a.output.max(b.output),
                };
                // What two backends disagree on, this node cannot promise.
                if other.weights != capacity.weights {
                    other.weights = spillway_ledger::Digest::ZERO;
                }
                other.context_max = other.context_max.min(capacity.context_max);
                other.kinds.retain(|kind| capacity.kinds.contains(kind));
            }
            Some(other) if capacity.healthy => *other = capacity.clone(),
            Some(_) => {}
        }
    }
    models.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use spillway_ledger::{Credits, Digest};

    const ANY: Wanted =
        Wanted { own: true, owned_only: false, backends: Vec::new(), token_price_max: None, begun: None, beside: None };

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("b{number}")).collect()
    }

    fn capacity(model: &str, slots: u32, healthy: bool) -> Capacity {
        Capacity {
            model: model.into(),
            weights: Digest::ZERO,
            quantization: String::new(),
            engine: "test".into(),
            context_max: 0,
            kinds: vec![Kind::Chat],
            slots,
            rented: 0,
            replicas: 1,
            token_price: Price::ZERO,
            continues: true,
            healthy,
        }
    }

    #[test]
    fn models_of_several_backends_are_one() {
        let cases = [
            (
                vec![vec![capacity("a", 2, true)], vec![capacity("a", 3, true), capacity("b", 1, false)]],
                vec![("a", 5, true), ("b", 1, false)],
            ),
            (vec![vec![capacity("a", 2, false)], vec![capacity("a", 3, true)]], vec![("a", 3, true)]),
            (vec![vec![capacity("a", 2, true)], vec![capacity("a", 3, false)]], vec![("a", 2, true)]),
            (vec![vec![], vec![]], vec![]),
        ];
        for (served, want) in cases {
            let (merge, list) = Merge::new(names(served.len()));
            for (backend, serves) in served.into_iter().enumerate() {
                merge.publish(backend, serves);
            }
            let got: Vec<_> = list.borrow().iter().map(|c| (c.model.clone(), c.slots, c.healthy)).collect();
            let want: Vec<_> =
                want.into_iter().map(|(model, slots, healthy)| (model.to_owned(), slots, healthy)).collect();
            assert_eq!(got, want);
        }
    }

    #[test]
    fn work_goes_where_most_is_free() {
        let (merge, _list) = Merge::new(names(3));
        merge.publish(0, vec![capacity("a", 1, true)]);
        merge.publish(1, vec![capacity("a", 2, true)]);
        merge.publish(2, vec![capacity("a", 9, false)]);
        let picks: Vec<_> = (0..4).map(|work| merge.pick(WorkId(work), "a", &ANY).expect("two answer")).collect();
        assert_eq!(picks.iter().map(|(backend, _)| *backend).collect::<Vec<_>>(), [1, 0, 1, 0]);
        drop(picks);
        assert_eq!(merge.pick(WorkId(9), "a", &ANY).map(|(backend, _)| backend), Some(1));
        assert!(merge.state().busy.is_empty() && merge.state().at.is_empty());
        assert!(merge.pick(WorkId(9), "b", &ANY).is_none());
        merge.fail(0);
        merge.fail(1);
        assert!(merge.pick(WorkId(9), "a", &ANY).is_none());
    }

    #[test]
    fn what_was_begun_goes_where_it_can_be_continued() {
        let begins = Capacity { continues: false, ..capacity("a", 9, true) };
        let begun = Wanted { begun: Some(Kind::Chat), ..ANY };
        let (merge, list) = Merge::new(names(2));
        merge.publish(0, vec![begins.clone()]);
        assert!(!list.borrow()[0].continues);
        assert!(merge.pick(WorkId(1), "a", &begun).is_none());
        assert_eq!(begun.in_vain("a"), "no own backend of `a` can go on with this answer now");
        merge.publish(1, vec![capacity("a", 1, true)]);
        assert!(list.borrow()[0].continues);
        assert_eq!(merge.pick(WorkId(1), "a", &begun).map(|(backend, _)| backend), Some(1));
        assert_eq!(merge.pick(WorkId(2), "a", &ANY).map(|(backend, _)| backend), Some(0));
    }

    #[test]
    fn work_goes_where_it_may() {
        let price =
            |micro| Price { input: Credits::new(micro), cached: Credits::new(micro), output: Credits::new(micro) };
        let rented = |micro| Capacity { rented: 4, replicas: 0, token_price: price(micro), ..capacity("a", 4, true) };
        let (merge, list) = Merge::new(names(3));
        merge.publish(0, vec![rented(9)]);
        merge.publish(1, vec![capacity("a", 1, true)]);
        merge.publish(2, vec![rented(3)]);
        let all = list.borrow()[0].clone();
        assert_eq!((all.slots, all.rented, all.replicas, all.token_price), (9, 8, 1, price(9)));
        let only = |names: &[&str]| Wanted { backends: names.iter().map(|name| (*name).to_owned()).collect(), ..ANY };
        // Who wants it, and where it goes while nothing runs and while the own slot is taken.
        let cases = [
            (ANY, Some(1), Some(0)),
            (Wanted { own: false, ..ANY }, Some(1), Some(1)),
            (Wanted { owned_only: true, ..ANY }, Some(1), Some(1)),
            (Wanted { owned_only: true, ..only(&["b0"]) }, None, None),
            (Wanted { token_price_max: Some(price(3)), ..ANY }, Some(1), Some(2)),
            (only(&["b2"]), Some(2), Some(2)),
            (only(&["b1", "b2"]), Some(1), Some(2)),
            (only(&["none"]), None, None),
            (Wanted { token_price_max: Some(price(1)), ..only(&["b0"]) }, None, None),
        ];
        let pick = |wanted: &Wanted| merge.pick(WorkId(9), "a", wanted).map(|(backend, _)| backend);
        for (wanted, idle, _) in &cases {
            assert_eq!(pick(wanted), *idle, "{wanted:?}");
        }
        let _taken = merge.pick(WorkId(1), "a", &only(&["b1"]));
        for (wanted, _, busy) in &cases {
            assert_eq!(pick(wanted), *busy, "{wanted:?}");
        }
    }

    #[test]
    fn a_hedge_runs_apart_from_what_it_is_beside_and_costs_nothing() {
        let (merge, list) = Merge::new(names(3));
        merge.publish(0, vec![capacity("a", 2, true)]);
        merge.publish(1, vec![capacity("a", 1, true)]);
        merge.publish(2, vec![Capacity { rented: 4, replicas: 0, ..capacity("a", 4, true) }]);
        assert_eq!(list.borrow()[0].replicas, 2);
        let beside = |work| Wanted { beside: Some(WorkId(work)), ..ANY };
        let at = |picked: &Option<(usize, Busy<'_>)>| picked.as_ref().map(|(backend, _)| *backend);
        let late = merge.pick(WorkId(1), "a", &ANY);
        assert_eq!(at(&late), Some(0));
        let hedge = merge.pick(WorkId(2), "a", &beside(1));
        assert_eq!(at(&hedge), Some(1), "though the first has as many free slots");
        assert_eq!(at(&merge.pick(WorkId(3), "a", &beside(1))), None, "no slot is free elsewhere but at what costs");
        assert_eq!(at(&merge.pick(WorkId(3), "a", &beside(2))), Some(0));
        drop(hedge);
        merge.fail(1);
        assert_eq!(at(&merge.pick(WorkId(3), "a", &beside(1))), None);
    }
}
