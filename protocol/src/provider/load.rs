//! What a provider says of its load, and when it will have room.
//! Invariant: the free slots that a reply names are those that admission would give at that moment.

use super::*;

/// Where own use has to fall first: the resolution at which it is measured.
const UTILISATION_WAIT: Duration = Duration::from_secs(15);

/// How many more of strangers' jobs could start now.
pub(super) fn slots_free(cx: &mut Context, model: &str, kind: Kind) -> u32 {
    if !cx.config.provide {
        return 0;
    }
    let slots = cx.own.slots(cx.now, model, kind);
    slots.map_or(0, |slots| cx.config.selling.slots_for_strangers(cx.now, slots))
}

impl Provider {
    /// The load of a model, for one more job. Nothing but zeros where strangers do not get it at all.
    pub(super) fn load(&self, cx: &mut Context, model: &str, kind: Kind) -> Load {
        let slots_free = slots_free(cx, model, kind);
        if !cx.config.provide {
            return Load::default();
        }
        let Some((speed, running, unread)) = cx.own.speed(model) else { return Load::default() };
        let parked = |serving: &&Serving| matches!(serving.stage, Stage::Parked { .. }) && serving.open.model == model;
        Load {
            slots_free,
            pending: u32::try_from(self.serving.values().filter(parked).count()).unwrap_or(u32::MAX),
            running,
            start_ms: speed.start_ms(running, unread),
            read_us_per_kilo: speed.read_us_per_kilo(),
            per_unit_us: u32::try_from(speed.predict(0, running, 0).per_unit_us).unwrap_or(u32::MAX),
        }
    }

    /// When a stranger's job may find a slot, in milliseconds: when enough of what runs is predicted to have ended, and the
    /// owner sells. 0 if one is free, or if nothing lets expect that one will be.
    pub(super) fn retry_after_ms(&self, cx: &mut Context, model: &str, kind: Kind) -> u32 {
        if slots_free(cx, model, kind) > 0 || !cx.config.provide {
            return 0;
        }
        let Some(slots) = cx.own.slots(cx.now, model, kind) else { return 0 };
        let selling = &cx.config.selling;
        let idle = Slots { own_running: 0, strangers_running: 0, own_pending: 0, ..slots };
        let mut wait = Duration::ZERO;
        if selling.slots_for_strangers(cx.now, idle) == 0 {
            wait = match (&selling.mode, selling.turns_at(cx.now)) {
                _ if slots.slots <= selling.reserved_slots => return 0,
                (Sell::Below(_), _) => UTILISATION_WAIT,
                (_, Some(opens)) => opens.since(cx.now),
                (Sell::Never | Sell::Always | Sell::Schedule(_), None) => return 0,
            };
        }
        let taken = slots.own_running + slots.strangers_running + slots.own_pending;
        let room = slots.slots.saturating_sub(selling.reserved_slots);
        // So many have to end until one slot is free.
        let enough = (taken + 1).saturating_sub(room);
        wait = wait.max(cx.own.ended(cx.now, model, enough));
        u32::try_from(wait.as_millis()).unwrap_or(u32::MAX).max(1)
    }

    /// Turns a job down, and says when to come again.
    pub(super) fn refuse(&self, cx: &mut Context, stream: StreamId, open: &OpenJob, refusal: Refusal) {
        let load = self.load(cx, &open.model, open.kind);
        let retry_after_ms = match refusal {
            Refusal::Busy => self.retry_after_ms(cx, &open.model, open.kind),
            Refusal::UnknownModel
            | Refusal::BadQuote
            | Refusal::UnknownSession
            | Refusal::ForgedVoucher
            | Refusal::OverDeposit
            | Refusal::Underpaid
            | Refusal::TooLarge
            | Refusal::SessionExpiring
            | Refusal::CannotContinue => 0,
        };
        cx.emit(Effect::Send { stream, frame: Frame::Refused { refusal, retry_after_ms, load } });
        cx.emit(Effect::CloseStream(stream));
    }
}
