//! What all own backends serve together, and which of them takes the next work.
//! Invariant: the published list has each model once, and counts every work from its pick to its end.

use spillway_protocol::Capacity;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use tokio::sync::watch;

/// What the backends serve.
#[derive(Debug)]
pub(super) struct Merge {
    state: Mutex<State>,
    all: watch::Sender<Vec<Capacity>>,
}

#[derive(Debug)]
struct State {
    /// By backend.
    served: Vec<Vec<Capacity>>,
    /// Works under way, by backend and model.
    busy: BTreeMap<(usize, String), u32>,
}

/// A work under way at a backend; counted until dropped.
#[derive(Debug)]
pub(super) struct Busy<'a> {
    merge: &'a Merge,
    backend: usize,
    model: String,
}

impl Merge {
    /// For so many backends, none of which serves anything yet.
    #[must_use]
    pub(super) fn new(backends: usize) -> (Self, watch::Receiver<Vec<Capacity>>) {
        let (all, receiver) = watch::channel(Vec::new());
        let state = Mutex::new(State { served: vec![Vec::new(); backends], busy: BTreeMap::new() });
        (Self { state, all }, receiver)
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

    /// The backend for the next work: one that answers and has the most free slots for the model.
    #[must_use]
    pub(super) fn pick(&self, model: &str) -> Option<(usize, Busy<'_>)> {
        let mut state = self.state();
        let free = |backend: usize, slots: u32| {
            let busy = state.busy.get(&(backend, model.to_owned())).copied().unwrap_or(0);
            i64::from(slots) - i64::from(busy)
        };
        let candidates = state.served.iter().enumerate().filter_map(|(backend, serves)| {
            let capacity = serves.iter().find(|capacity| capacity.model == model && capacity.healthy)?;
            Some((free(backend, capacity.slots), std::cmp::Reverse(backend)))
        });
        let (_, std::cmp::Reverse(backend)) = candidates.max()?;
        *state.busy.entry((backend, model.to_owned())).or_default() += 1;
        Some((backend, Busy { merge: self, backend, model: model.to_owned() }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the list")
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        let mut state = self.merge.state();
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
    use spillway_ledger::Digest;
    use spillway_protocol::Kind;

    fn capacity(model: &str, slots: u32, healthy: bool) -> Capacity {
        Capacity {
            model: model.into(),
            weights: Digest::ZERO,
            quantization: String::new(),
            engine: "test".into(),
            context_max: 0,
            kinds: vec![Kind::Chat],
            slots,
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
            let (merge, list) = Merge::new(served.len());
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
        let (merge, _list) = Merge::new(3);
        merge.publish(0, vec![capacity("a", 1, true)]);
        merge.publish(1, vec![capacity("a", 2, true)]);
        merge.publish(2, vec![capacity("a", 9, false)]);
        let picks: Vec<_> = (0..4).map(|_| merge.pick("a").expect("two answer")).collect();
        assert_eq!(picks.iter().map(|(backend, _)| *backend).collect::<Vec<_>>(), [1, 0, 1, 0]);
        drop(picks);
        assert_eq!(merge.pick("a").map(|(backend, _)| backend), Some(1));
        assert!(merge.state().busy.is_empty());
        assert!(merge.pick("b").is_none());
        merge.fail(0);
        merge.fail(1);
        assert!(merge.pick("a").is_none());
    }
}
