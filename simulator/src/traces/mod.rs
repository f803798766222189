//! Workloads: real traces, and arrivals drawn from published statistics.
//! Invariant: a workload is a stream of requests in order of time that follows from its source and a seed alone.

pub mod arrivals;
pub mod azure;
mod error;
pub mod joblog;
mod lines;
pub mod mooncake;
pub mod names;
pub mod prefixes;
pub mod sampling;
pub mod servegen;
pub mod spec;
pub mod talk;
mod trace;

pub use error::{Problem, SettingError, TraceError};
pub use spec::{Spec, SpecError};
pub use trace::{Replay, Trace};

/// One request of a workload. Sizes are in tokens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// When it comes, in microseconds since the workload began.
    pub at_us: u64,
    /// Who asks: a customer of a gateway. Numbered from 0.
    pub client: u32,
    /// The conversation it belongs to; requests of one conversation share a growing prefix.
    pub session: u64,
    /// Tokens of the prompt.
    pub input: u32,
    /// Tokens of the answer, at least 1.
    pub output: u32,
    /// Names the prompt's successive whole blocks of [`PREFIX_BLOCK`] tokens, each name covering all before it too: two
    /// prompts share their first `n` blocks exactly if they share their first `n` names. Empty where nothing is known.
    pub prefix: Box<[u64]>,
}

/// Tokens that one name in [`Request::prefix`] covers. Mooncake's traces use 512.
pub const PREFIX_BLOCK: u32 = 512;

/// Something that asks: a trace, a sampler or a group of users.
pub trait Workload {
    /// The next request that nothing holds back. Never earlier than the one before. `None` if no more come this way, or none
    /// until a request has ended.
    fn next(&mut self) -> Option<Request>;

    /// Tells that `request` ended at `now_us`, served or not; every request of a workload ends once. Gives the request that
    /// only this end brings about, if one follows: a user's next turn, `now_us` or later, and possibly after requests that
    /// [`Workload::next`] gives. It ends like any other.
    fn ended(&mut self, now_us: u64, request: &Request) -> Option<Request> {
        let _ = (now_us, request);
        None
    }
}

#[cfg(test)]
mod tests;
