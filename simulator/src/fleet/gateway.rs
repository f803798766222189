//! A gateway: its queue, and what it knows of each replica.
//! Invariant: of a stranger it knows only what a message told it, and when.

use super::job::JobKey;
use super::policy::{GatewayId, ReplicaId};
use std::collections::VecDeque;

/// A replica's load as a gateway knows it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// When it was so, in microseconds.
    pub at_us: u64,
    /// Jobs in the engine that have begun.
    pub running: u32,
    /// Jobs in the engine and the owner's queue that have not.
    pub waiting: u32,
    /// Tokens of prompts that are still to be read.
    pub waiting_tokens: u64,
    /// Tokens of KV cache in use by jobs.
    pub kv_used: u64,
    /// Tokens that its KV cache holds.
    pub kv_tokens: u64,
    /// Jobs that it would take now, of whoever asks.
    pub slots_free: u32,
    /// Its own prediction of the time to first token, in microseconds without the network, for a prompt of
    /// [`ttft_input`](Seen::ttft_input) tokens of which none is cached. `None` in load that rides on replies.
    pub ttft_us: Option<u64>,
    /// The prompt that the prediction is for, in tokens.
    pub ttft_input: u32,
    /// What it says of its speed, in what it sends to strangers.
    pub speed: Option<Pace>,
}

/// What a replica says of its speed: the parts of a prediction for any prompt, as Spillway's providers report them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pace {
    /// From a job's arrival to the first token of an empty prompt, in microseconds.
    pub start_us: u64,
    /// Reading 1,000 tokens of a prompt, in microseconds.
    pub read_us_per_kilo: u64,
    /// Time for each token of the answer with the jobs that run, in microseconds.
    pub token_us: u64,
}

/// How long a replica that died or stalled is left alone, at first, in microseconds. Doubles each time, up to
/// [`BAN_MAX_US`].
const BAN_US: u64 = 15_000_000;
/// The longest time it is left alone.
const BAN_MAX_US: u64 = 600_000_000;

/// What a gateway knows of one replica.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Known {
    pub(super) seen: Option<Seen>,
    /// Smoothed round trip; 0 is not measured.
    pub(super) rtt_us: u64,
    /// Jobs sent there that have not come back.
    pub(super) in_flight: u32,
    /// Taken for down until then.
    pub(super) banned_until_us: u64,
    /// How long the last ban was.
    ban_us: u64,
}

impl Known {
    /// Notes a round trip.
    pub(super) const fn measured(&mut self, rtt_us: u64) {
        let rtt_us = if rtt_us == 0 { 1 } else { rtt_us };
        self.rtt_us = if self.rtt_us == 0 { rtt_us } else { (7 * self.rtt_us + rtt_us) / 8 };
    }

    /// Keeps the newer of what it knows and what came.
    pub(super) fn learned(&mut self, seen: Seen) {
        if self.seen.is_none_or(|old| old.at_us <= seen.at_us) {
            self.seen = Some(seen);
        }
    }

    /// It died or stalled.
    pub(super) fn ban(&mut self, now_us: u64) {
        self.ban_us = if self.ban_us == 0 { BAN_US } else { (2 * self.ban_us).min(BAN_MAX_US) };
        self.banned_until_us = now_us + self.ban_us;
    }

    /// It served a job to its end.
    pub(super) const fn served(&mut self) {
        self.ban_us = 0;
        self.banned_until_us = 0;
    }
}

/// A gateway.
#[derive(Debug)]
pub(super) struct Gateway {
    pub(super) id: GatewayId,
    pub(super) region: usize,
    pub(super) organisation: usize,
    /// Replicas of its organisation.
    pub(super) own: Vec<ReplicaId>,
    /// Replicas of others that sell.
    pub(super) network: Vec<ReplicaId>,
    /// Both, in order of their numbers.
    pub(super) all: Vec<ReplicaId>,
    /// By replica.
    pub(super) known: Vec<Known>,
    /// Jobs that wait here, the first first.
    pub(super) queue: VecDeque<JobKey>,
    /// A look at the queue is due.
    pub(super) retrying: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bans_double_and_end_with_a_job_served() {
        let mut known = Known::default();
        known.ban(0);
        assert_eq!(known.banned_until_us, 15_000_000);
        known.ban(100_000_000);
        assert_eq!(known.banned_until_us, 130_000_000);
        known.served();
        known.ban(0);
        assert_eq!(known.banned_until_us, 15_000_000);
    }

    #[test]
    fn older_news_changes_nothing() {
        let mut known = Known::default();
        known.learned(Seen { at_us: 5, running: 1, ..Seen::default() });
        known.learned(Seen { at_us: 4, running: 2, ..Seen::default() });
        assert_eq!(known.seen.map(|seen| seen.running), Some(1));
    }
}
