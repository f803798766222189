//! Entries on their way into a block: who waits for which, and the verifying of their signatures.
//! Invariant: each submission is answered once. What leaves here as a group holds, as far as signatures go.

use super::wire::{LedgerReply, Remedy};
use crate::network::Reply;
use spillway_ledger::block::ENTRIES_MAX;
use spillway_ledger::{ApplyError, Screened, SignedBytes, encode};
use std::sync::mpsc::SyncSender;
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, oneshot, watch};

/// Submissions that wait for the thread; beyond it, submitters are told to come back.
pub(super) const SUBMISSIONS_MAX: usize = 4096;

/// An entry that somebody wants on the ledger.
pub(super) struct Submission {
    pub(super) entry: SignedBytes,
    pub(super) answer: Answer,
}

/// Where the answer goes.
pub(super) enum Answer {
    Peer(Reply),
    Here(oneshot::Sender<LedgerReply>),
}

impl Answer {
    pub(super) fn give(self, reply: &LedgerReply) {
        match self {
            Self::Peer(peer) => peer.send(encode(reply)),
            Self::Here(here) => {
                let _ = here.send(reply.clone());
            }
        }
    }
}

/// Entries whose signatures hold, for one block.
pub(super) type Group = Vec<(Screened, Answer)>;

/// Verifies what is submitted, as many at a time as have come, until the books stop or their last handle is gone.
/// Signatures are the dear part, and need no lock.
pub(super) fn screen(
    mut stopping: watch::Receiver<bool>,
    mut submissions: mpsc::Receiver<Submission>,
    ready: &SyncSender<Group>,
    runtime: &tokio::runtime::Handle,
) {
    loop {
        let first = runtime.block_on(async {
            tokio::select! {
                _ = stopping.wait_for(|stop| *stop) => None,
                first = submissions.recv() => first,
            }
        });
        let Some(first) = first else { return };
        let mut group = vec![first];
        while group.len() < ENTRIES_MAX {
            let Ok(next) = submissions.try_recv() else { break };
            group.push(next);
        }
        let (wires, answers): (Vec<SignedBytes>, Vec<Answer>) =
            group.into_iter().map(|submission| (submission.entry, submission.answer)).unzip();
        let mut screened = Vec::with_capacity(wires.len());
        for (entry, answer) in Screened::open_all(&wires).into_iter().zip(answers) {
            match entry {
                Ok(entry) => screened.push((entry, answer)),
                Err(error) => answer.give(&LedgerReply::refused(&error, Remedy::None)),
            }
        }
        if !screened.is_empty() && ready.send(screened).is_err() {
            return;
        }
    }
}

/// What to tell the submitter of an entry that the book refuses after the block of `height`.
pub(super) fn refusal(height: u64, error: &ApplyError) -> LedgerReply {
    // Only these two are about what the submitter could not know; the rest is what it asked for.
    let remedy = if let ApplyError::BadNonce { expected } = error {
        Remedy::Nonce(*expected)
    } else if matches!(error, ApplyError::Expired { .. } | ApplyError::TooFarExpiry { .. }) {
        Remedy::Height(height)
    } else if let ApplyError::AlreadyApplied { height } = error {
        return LedgerReply::In { height: *height };
    } else {
        Remedy::None
    };
    LedgerReply::refused(error, remedy)
}

/// Wall time in Unix milliseconds. Blocks' times never go back: the ledger sees to that.
pub(super) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}
