//! Own replicas alone: what a fleet without the network has.

use super::common::{draws, load, lowest};
use crate::draws::Draws;
use crate::fleet::{Ask, Choice, GatewayId, Policy, View};

/// The least loaded own replica with a slot; without one the job waits.
pub struct OwnOnly(Draws);

impl OwnOnly {
    /// For a gateway.
    #[must_use]
    pub fn new(seed: u64, gateway: GatewayId) -> Self {
        Self(draws(seed, gateway))
    }
}

impl Policy for OwnOnly {
    fn route(&mut self, _: u64, _: &Ask<'_>, view: &mut View<'_>) -> Choice {
        let open = |id| view.is_own(id) && view.seen(id).is_some_and(|seen| seen.slots_free > view.coming(id));
        let own: Vec<_> = view.candidates().iter().copied().filter(|id| open(*id)).collect();
        lowest(&mut self.0, view, &own, |id| load(view, id)).map_or(Choice::Wait, Choice::Replica)
    }

    fn places_own(&self) -> bool {
        true
    }
}
