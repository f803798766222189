//! What several policies need.
//! Invariant: it uses the view alone, so that no policy sees more than its setting allows.

use crate::draws::Draws;
use crate::fleet::{Ask, GatewayId, ReplicaId, Seen, View};

/// The stream of draws of one gateway's policy.
pub(super) fn draws(seed: u64, gateway: GatewayId) -> Draws {
    Draws::new(seed, &format!("policy {}", gateway.0))
}

/// How long what was learned of a stranger's load is taken for its load, in microseconds: about as long as jobs take. A
/// replica that was full a minute ago would else be shunned for ever, since only jobs bring news.
const FRESH_US: u64 = 5_000_000;

/// A replica's load, if it is known and not too old.
pub(super) fn fresh(view: &View<'_>, replica: ReplicaId) -> Option<Seen> {
    view.seen(replica).filter(|seen| seen.at_us + FRESH_US >= view.now_us())
}

/// The jobs at a replica, as far as this gateway knows: what it saw there, and at least those it sent itself. Jobs on their
/// way are counted where they are seen.
pub(super) fn load(view: &View<'_>, replica: ReplicaId) -> u32 {
    let seen = fresh(view, replica).map_or(0, |seen| seen.running + seen.waiting);
    (seen + view.coming(replica)).max(view.in_flight(replica))
}

/// A drawn candidate; one that is up if a few draws find one.
pub(super) fn any(draws: &mut Draws, view: &View<'_>) -> ReplicaId {
    let candidates = view.candidates();
    let mut drawn = candidates[0];
    for _ in 0..4 {
        let index = draws.below(candidates.len() as u64);
        drawn = candidates[usize::try_from(index).expect("below a length")];
        if view.up(drawn) {
            break;
        }
    }
    drawn
}

/// Of `replicas`, the one with the lowest rank, of those that are up if any is; equal ones share by a draw.
pub(super) fn lowest<R: PartialOrd + Copy>(
    draws: &mut Draws,
    view: &View<'_>,
    replicas: &[ReplicaId],
    rank: impl Fn(ReplicaId) -> R,
) -> Option<ReplicaId> {
    let mut best: Option<(R, ReplicaId)> = None;
    let mut equal = 0;
    for &replica in replicas {
        if !view.up(replica) {
            continue;
        }
        let rank = rank(replica);
        match &best {
            Some((least, _)) if rank > *least => {}
            Some((least, _)) if rank == *least => {
                equal += 1;
                if draws.below(equal) == 0 {
                    best = Some((rank, replica));
                }
            }
            _ => {
                equal = 1;
                best = Some((rank, replica));
            }
        }
    }
    best.map(|(_, replica)| replica)
}

/// The round trip assumed of a replica that was never in contact, in microseconds: pessimistic, so that known near ones win.
pub(super) const RTT_UNKNOWN_US: u64 = 150_000;
/// The answer assumed before any was seen, in tokens: the mean of Azure's conversation trace of 2023, rounded.
const OUTPUT_PRIOR: f64 = 200.0;

/// The mean length of answers so far.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outputs(f64);

impl Default for Outputs {
    fn default() -> Self {
        Self(OUTPUT_PRIOR)
    }
}

impl Outputs {
    /// An answer had that many tokens.
    pub(super) fn learn(&mut self, made: u32) {
        self.0 += (f64::from(made) - self.0) / 64.0;
    }

    /// What the next one is expected to have.
    pub(super) const fn expected(self) -> u32 {
        self.0 as u32
    }
}

/// What a job is expected to cost at a replica, in micro-credits, if nothing is cached.
pub(super) fn cost(view: &View<'_>, replica: ReplicaId, ask: &Ask<'_>, outputs: Outputs) -> u64 {
    view.price(replica).cost_micro(ask.input, 0, outputs.expected())
}
