//! Own hardware: which models it serves, which slots are taken, and how fast it has been.
//! Invariant: running work never exceeds a model's slots, and strangers never take the reserved ones.

use crate::event::{Capacity, WorkId};
use crate::job::Kind;
use crate::time::Now;
use std::collections::BTreeMap;

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
    /// A stranger's job, on this stream.
    Stranger(crate::event::StreamId),
}

#[derive(Debug)]
struct Model {
    capacity: Capacity,
    /// Smoothed time from start to first output, in milliseconds.
    first_ms: f64,
    /// Smoothed time per output unit, in microseconds.
    per_unit_us: f64,
}

#[derive(Debug)]
struct Work {
    model: String,
    whose: WorkFor,
    started: Now,
    first: Option<Now>,
    units: u64,
}

/// The own backends, as capacity.
#[derive(Debug, Default)]
pub(crate) struct Own {
    models: BTreeMap<String, Model>,
    work: BTreeMap<WorkId, Work>,
    next: u64,
}

impl Own {
    /// Replaces the list of models; speeds of known ones are kept.
    pub(crate) fn set(&mut self, capacities: Vec<Capacity>) {
        let mut old = std::mem::take(&mut self.models);
        for capacity in capacities {
            let (first_ms, per_unit_us) =
                old.remove(&capacity.model).map_or((100.0, 5_000.0), |model| (model.first_ms, model.per_unit_us));
            self.models.insert(capacity.model.clone(), Model { capacity, first_ms, per_unit_us });
        }
    }

    /// What is served, by model.
    pub(crate) fn capacities(&self) -> impl Iterator<Item = &Capacity> {
        self.models.values().map(|model| &model.capacity)
    }

    pub(crate) fn capacity(&self, model: &str) -> Option<&Capacity> {
        self.models.get(model).map(|model| &model.capacity)
    }

    /// Whether the owner's next job of this kind could start.
    pub(crate) fn state(&self, model: &str, kind: Kind) -> OwnState {
        let Some(Model { capacity, .. }) = self.models.get(model) else { return OwnState::Missing };
        if !capacity.kinds.contains(&kind) {
            return OwnState::Missing;
        }
        if !capacity.healthy {
            return OwnState::Unhealthy;
        }
        if self.running(model) < capacity.slots { OwnState::Free } else { OwnState::Saturated }
    }

    /// Slots that a stranger could have now: advertised in probes and honoured by admission.
    pub(crate) fn free_for_strangers(&self, model: &str, kind: Kind, reserved: u32) -> u32 {
        match self.state(model, kind) {
            OwnState::Free => {
                let slots = self.models.get(model).map_or(0, |model| model.capacity.slots);
                slots.saturating_sub(reserved).saturating_sub(self.running(model))
            }
            OwnState::Saturated | OwnState::Unhealthy | OwnState::Missing => 0,
        }
    }

    /// Work under way for a model. Linear in the work under way, which the slots bound.
    pub(crate) fn running(&self, model: &str) -> u32 {
        u32::try_from(self.work.values().filter(|work| work.model == model).count()).unwrap_or(u32::MAX)
    }

    /// Takes a slot. The caller has seen that one is free.
    pub(crate) fn start(&mut self, now: Now, model: &str, whose: WorkFor) -> WorkId {
        let id = WorkId(self.next);
        self.next += 1;
        self.work.insert(id, Work { model: model.to_owned(), whose, started: now, first: None, units: 0 });
        id
    }

    /// Whose work this is, if it is under way.
    pub(crate) fn whose(&self, id: WorkId) -> Option<WorkFor> {
        self.work.get(&id).map(|work| work.whose)
    }

    /// Notes output, to learn how fast the backend is.
    pub(crate) fn output(&mut self, now: Now, id: WorkId, units: u64) {
        let Some(work) = self.work.get_mut(&id) else { return };
        if work.first.is_none() && units > 0 {
            work.first = Some(now);
            if let Some(model) = self.models.get_mut(&work.model) {
                model.first_ms += 0.25 * (now.since(work.started).as_secs_f64() * 1e3 - model.first_ms);
            }
        }
        work.units += units;
    }

    /// Gives the slot back.
    pub(crate) fn finish(&mut self, now: Now, id: WorkId) {
        let Some(work) = self.work.remove(&id) else { return };
        if let (Some(first), Some(model), 16..) = (work.first, self.models.get_mut(&work.model), work.units) {
            #[expect(clippy::cast_precision_loss, reason = "a speed estimate")]
            let per_unit = now.since(first).as_secs_f64() * 1e6 / work.units as f64;
            model.per_unit_us += 0.25 * (per_unit - model.per_unit_us);
        }
    }

    /// Predicted time to first output in milliseconds and per output unit in microseconds.
    pub(crate) fn speed(&self, model: &str) -> (u32, u32) {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "`as` saturates, and neither is negative"
        )]
        self.models.get(model).map_or((0, 0), |model| (model.first_ms as u32, model.per_unit_us as u32))
    }
}
