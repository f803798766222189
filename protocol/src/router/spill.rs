//! Own hardware or the network: when a job leaves.
//! Invariant: an own place that is eligible is never passed over for a stranger's.

/// Own hardware for one model, as the gate sees it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OwnView {
    /// Whether any of it answers.
    pub healthy: bool,
    /// Jobs it runs at once.
    pub slots: u32,
    /// Jobs running, the owner's and strangers'.
    pub running: u32,
    /// Strangers' jobs among them that the owner may push out.
    pub preemptible: u32,
    /// The owner's jobs that wait for it.
    pub pending: u32,
    /// Milliseconds to the first text if the job started now.
    pub first_ms: f64,
    /// Milliseconds until a slot is expected to be free for the job, if none is; those that wait before it counted.
    pub wait_ms: f64,
}

/// What the gate says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Gate {
    /// Run here, now.
    Own,
    /// Run here, in place of a stranger's job.
    Preempt,
    /// Not here now; waiting here would bring the first text after that many milliseconds.
    Spill {
        /// Wait and first text together.
        own_first_ms: f64,
    },
    /// There is nothing here that answers.
    Nothing,
}

/// Own hardware is eligible while the owner has nothing pending there and the target is expected to be met.
#[must_use]
pub fn gate(own: &OwnView, target_ms: Option<f64>) -> Gate {
    if !own.healthy || own.slots == 0 {
        return Gate::Nothing;
    }
    // A target that even an idle machine would miss here is none to leave for: the network would have to be asked first.
    let meets = target_ms.is_none_or(|target| own.first_ms <= target) || own.running == 0;
    if own.pending == 0 && meets {
        if own.running < own.slots {
            return Gate::Own;
        }
        if own.preemptible > 0 {
            return Gate::Preempt;
        }
    }
    let free = own.running < own.slots && own.pending == 0;
    let wait_ms = if free { 0.0 } else { own.wait_ms };
    Gate::Spill { own_first_ms: wait_ms + own.first_ms }
}

/// How much sooner waiting here must look than going: a wait is a guess, and jobs queue up behind one that waits in vain.
const SOONER: f64 = 2.0;

/// Whether a job that the gate let go waits for own hardware after all, since the best place that was found is not as soon:
/// `own_first_ms` is [`Gate::Spill`]'s, `away_first_ms` what is expected there, both in milliseconds from now.
#[must_use]
pub fn waits(own_first_ms: f64, away_first_ms: f64, target_ms: Option<f64>) -> bool {
    let limit = target_ms.map_or(away_first_ms, |target| target.min(away_first_ms));
    own_first_ms * SOONER <= limit
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gate() {
        let own = OwnView {
            healthy: true,
            slots: 4,
            running: 2,
            preemptible: 0,
            pending: 0,
            first_ms: 300.0,
            wait_ms: 900.0,
        };
        let spill = |ms| Gate::Spill { own_first_ms: ms };
        for (what, view, target, want) in [
            ("free", own, None, Gate::Own),
            ("free and soon enough", own, Some(400.0), Gate::Own),
            ("free, but too slow with what runs", own, Some(200.0), spill(300.0)),
            ("idle: nothing here would be sooner", OwnView { running: 0, ..own }, Some(200.0), Gate::Own),
            ("somebody waits already", OwnView { pending: 1, ..own }, None, spill(1200.0)),
            ("full", OwnView { running: 4, ..own }, None, spill(1200.0)),
            ("full of strangers", OwnView { running: 4, preemptible: 1, ..own }, None, Gate::Preempt),
            ("down", OwnView { healthy: false, ..own }, None, Gate::Nothing),
        ] {
            assert_eq!(gate(&view, target), want, "{what}");
        }
    }

    #[test]
    fn a_wait_must_look_twice_as_soon() {
        for (what, own, away, target, want) in [
            ("twice as soon", 100.0, 200.0, None, true),
            ("sooner, but not by much", 150.0, 200.0, None, false),
            ("in time for the target", 100.0, 500.0, Some(200.0), true),
            ("late for the target, like the other place", 150.0, 500.0, Some(200.0), false),
        ] {
            assert_eq!(waits(own, away, target), want, "{what}");
        }
    }
}
