//! What a routing policy is asked, may answer, and is told.
//! Invariant: a policy sees a job's prompt, never how long its answer will be.

use super::gateway::Seen;
use super::view::View;

/// A replica's number in its setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReplicaId(pub u32);

impl ReplicaId {
    /// The number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A gateway's number in its setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct GatewayId(pub u32);

impl GatewayId {
    /// The number as an index.
    #[must_use]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// Providers probed at once for one job.
pub const PROBES_MAX: usize = 3;

/// The replicas to probe for a job.
pub type Probes = arrayvec::ArrayVec<ReplicaId, PROBES_MAX>;

/// A job that is to be placed.
#[derive(Clone, Copy, Debug)]
pub struct Ask<'a> {
    /// Names it: the same in every question and piece of news about this job.
    pub job: u64,
    /// Who asks, of those of this workload.
    pub client: u32,
    /// Its conversation.
    pub session: u64,
    /// Tokens to be read: the prompt, and the text so far if it is continued.
    pub input: u32,
    /// The names of the prompt's blocks, as in [`Request::prefix`](crate::traces::Request::prefix).
    pub prefix: &'a [u64],
    /// Tokens that each of these names covers.
    pub prefix_block: u32,
    /// When its client asked, in microseconds.
    pub since_us: u64,
    /// Replicas that refused, died or stopped it so far.
    pub attempts: u32,
    /// Tokens that its client has already: more than 0 if it is continued.
    pub delivered: u32,
    /// The probes ordered for it with [`Choice::Probe`] have answered or were given up.
    pub probed: bool,
    /// Another gateway forwarded it here; it cannot be forwarded again.
    pub forwarded: bool,
    /// The first token is in time if it comes within this of `since_us`, in microseconds.
    pub ttft_limit_us: u64,
}

/// What to do with a job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Choice {
    /// Send it there.
    Replica(ReplicaId),
    /// Let it wait in the gateway's queue. The first in the queue is asked about again whenever something is learned.
    Wait,
    /// Tell the client no.
    Refuse,
    /// Let another gateway route it.
    Forward(GatewayId),
    /// Ask those replicas for their load, and ask about the job again once all have answered or were given up.
    Probe(Probes),
}

/// What a gateway learned. The job is as it was when it was sent.
#[derive(Clone, Copy, Debug)]
pub enum News<'a> {
    /// A probe's answer is in.
    Probed {
        /// What it said.
        seen: Seen,
    },
    /// A probe has had no answer for so long; one that comes yet is told as any other.
    ProbeLost {
        /// Microseconds since it was sent.
        after_us: u64,
    },
    /// The first text of a job came.
    First {
        /// The job.
        ask: Ask<'a>,
        /// From sending the job to its first text, in microseconds.
        after_us: u64,
        /// Tokens of the prompt that the replica had cached.
        cached: u32,
    },
    /// The last text of a job came.
    Done {
        /// The job.
        ask: Ask<'a>,
        /// From sending the job to its last text, in microseconds.
        after_us: u64,
        /// Tokens that this replica made of it.
        made: u32,
        /// Tokens of the prompt that the replica had cached.
        cached: u32,
    },
    /// The replica had no room.
    Refused {
        /// The job.
        ask: Ask<'a>,
    },
    /// The replica stopped the job for one of its owner's.
    Cut {
        /// The job.
        ask: Ask<'a>,
    },
    /// The replica fell silent.
    Died {
        /// The job.
        ask: Ask<'a>,
    },
}

/// Chooses where jobs go, for one gateway. Every gateway has an instance of its own.
pub trait Policy: Send {
    /// Where this job goes now.
    ///
    /// A replica that is no candidate, or a gateway for a job that was forwarded, is a bug of the policy: the run panics.
    fn route(&mut self, now_us: u64, ask: &Ask<'_>, view: &mut View<'_>) -> Choice;

    /// Something was learned about `replica`. [`View`] knows it already.
    fn told(&mut self, now_us: u64, replica: ReplicaId, news: &News<'_>, view: &mut View<'_>) {
        let _ = (now_us, replica, news, view);
    }

    /// Whether it decides itself when own hardware serves. Otherwise, where the setting says own hardware first, it is asked
    /// for a replica among the free own ones if there are any, else among the strangers'.
    fn places_own(&self) -> bool {
        false
    }

    /// Whether [`View::truth`] is open to it. For oracles alone.
    fn sees_all(&self) -> bool {
        false
    }
}
