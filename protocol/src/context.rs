//! What a peer's consuming and serving halves share.
//! Invariant: effects leave in the order in which they were decided.

use crate::config::MarketConfig;
use crate::directory::Directory;
use crate::event::{Effect, StreamId};
use crate::own::Own;
use crate::reputation::Reputation;
use crate::router::Coordinate;
use crate::time::Now;
use crate::timers::Timers;
use rand_chacha::ChaCha12Rng;
use spillway_ledger::{Account, Credits, JobId, NetworkId, NodeId, SecretKey, SessionId};
use std::collections::VecDeque;
use std::time::Duration;

/// Who a peer is.
#[derive(Debug)]
pub struct Identity {
    /// The market it takes part in.
    pub network: NetworkId,
    /// The transport's key: signs offers and quotes.
    pub node: SecretKey,
    /// The ledger's key: signs vouchers and receipts.
    pub account: SecretKey,
}

/// What an alarm is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    /// A step of an own client's job takes too long.
    Job(JobId),
    /// A voucher may be signed again.
    Voucher(SessionId),
    /// A paying session may be refunded.
    Refund(SessionId),
    /// A session may be wanted before a job needs it.
    Ahead,
    /// A stranger's job: show life, or give up waiting.
    Serve(StreamId),
    /// An earning session may be settled.
    Settle(SessionId),
    /// The offer is to be issued anew.
    Publish,
    /// Expired offers are to be dropped.
    Sweep,
}

/// Deliberate faults, for tests that must see them caught.
#[cfg(feature = "sabotage")]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sabotage {
    /// Forgets a job whose provider vanished.
    DropJobs,
    /// A continuation repeats the end of what was delivered.
    RepeatText,
    /// Settles all that was vouched, not what was delivered.
    OverClaim,
    /// Opens jobs on sessions whose deposit is used up.
    IgnoreDeposit,
    /// Turns a job away as soon as those that were asked first will not have it.
    Hasty,
}

#[derive(Debug)]
pub(crate) struct Context {
    pub(crate) now: Now,
    /// When this node last went on after it had not run for a while: nobody counts as silent for that time.
    pub(crate) woke: Now,
    pub(crate) config: MarketConfig,
    pub(crate) identity: Identity,
    pub(crate) node: NodeId,
    pub(crate) account: Account,
    pub(crate) rng: ChaCha12Rng,
    pub(crate) effects: VecDeque<Effect>,
    pub(crate) timers: Timers<Alarm>,
    pub(crate) own: Own,
    pub(crate) directory: Directory,
    pub(crate) reputation: Reputation,
    pub(crate) balance: Credits,
    /// Where this node is in the network's space.
    pub(crate) coordinate: Coordinate,
    /// Strangers' jobs that lost their slot to the owner and do not know it yet.
    pub(crate) preempted: VecDeque<StreamId>,
    #[cfg(feature = "sabotage")]
    pub(crate) sabotage: Option<Sabotage>,
}

impl Context {
    /// Takes in a measured round trip to a peer; if that says where it is, it tells this node where it is itself.
    pub(crate) fn measured(&mut self, peer: NodeId, rtt: Duration) {
        self.reputation.measured_rtt(self.now, peer, rtt);
        if let Some(theirs) = self.directory.coordinate(&peer) {
            self.coordinate.learn(&theirs, rtt);
        }
    }

    pub(crate) fn emit(&mut self, effect: Effect) {
        self.effects.push_back(effect);
    }

    /// Frees a slot of a model for one of the owner's jobs. The caller has seen that a stranger's job can be stopped for it.
    pub(crate) fn make_way(&mut self, model: &str) {
        let Some((work, stream)) = self.own.preempt(self.now, model) else { return };
        // The backend stops before it starts the owner's job; whose job it was is told with the same event.
        self.emit(Effect::Stop(work));
        self.preempted.push_back(stream);
    }

    /// Whether a deliberate fault is on.
    #[cfg(feature = "sabotage")]
    pub(crate) fn sabotaged(&self, how: Sabotage) -> bool {
        self.sabotage == Some(how)
    }
}
