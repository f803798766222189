//! A follower's task: fetches blocks from the authority, executes each, and tells the node.
//! Invariant: the copy advances one verified block at a time; a block that does not hold changes nothing.

use super::handle::{Authorities, Copy, Keeper, events_of};
use super::wire::{BLOCKS_MAX, LedgerCall, LedgerReply};
use crate::network::CallKind;
use spillway_ledger::{CertifiedBlock, FollowError, NodeId, decode, encode};
use std::ops::ControlFlow;
use std::sync::{Arc, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;
use tokio::time::Instant;

/// How often blocks are asked for when no notice comes.
const POLL: Duration = Duration::from_secs(1);
/// How often a connection to the authority is tried for, when there is none.
const SEEK: Duration = Duration::from_secs(3);
/// How long an answer may take.
const ANSWER_WAIT: Duration = Duration::from_secs(10);

/// Runs until the books stop or the copy can no longer be written.
pub(super) async fn run(mut keeper: Keeper, authorities: Arc<Authorities>, news: Arc<Notify>) {
    let mut stopping = keeper.stopping.clone();
    let work = async {
        let mut sought: Option<Instant> = None;
        loop {
            let authority = authorities.present();
            let connected = keeper.network.is_connected(&authority);
            let due = connected || sought.is_none_or(|at| at.elapsed() >= SEEK);
            if due {
                sought = Some(Instant::now());
                match catch_up(&mut keeper, authority).await {
                    ControlFlow::Break(()) => return,
                    ControlFlow::Continue(true) => {}
                    ControlFlow::Continue(false) => authorities.turn_from(authority),
                }
            }
            // A notice that comes while blocks are fetched is kept for the next round.
            let _ = tokio::time::timeout(POLL, news.notified()).await;
        }
    };
    tokio::select! {
        () = work => {}
        _ = stopping.wait_for(|stop| *stop) => {}
    }
}

/// Fetches until there is nothing new; says whether `authority` is of use. Breaks if the copy can no longer be written.
async fn catch_up(keeper: &mut Keeper, authority: NodeId) -> ControlFlow<(), bool> {
    loop {
        let from = keeper.copy.read().unwrap_or_else(PoisonError::into_inner).height() + 1;
        let request = encode(&LedgerCall::Blocks { from, max: BLOCKS_MAX });
        let answer = keeper.network.call(authority, &[], CallKind::Ledger, request, ANSWER_WAIT).await;
        let reply = match answer {
            Ok(bytes) => decode::<LedgerReply>(&bytes),
            Err(error) => {
                tracing::debug!(%error, "the ledger's authority does not answer");
                return ControlFlow::Continue(false);
            }
        };
        let blocks = match reply {
            Ok(LedgerReply::Blocks(blocks)) => blocks,
            Ok(LedgerReply::Busy) => return ControlFlow::Continue(true),
            Ok(LedgerReply::In { .. } | LedgerReply::Refused { .. } | LedgerReply::NotAuthority) | Err(_) => {
                tracing::warn!("the ledger's authority answers something else than blocks");
                return ControlFlow::Continue(false);
            }
        };
        if blocks.is_empty() {
            return ControlFlow::Continue(true);
        }
        for bytes in blocks {
            match add(keeper, &bytes).await {
                Added::Block => {}
                Added::Nothing => return ControlFlow::Continue(false),
                Added::Failed => return ControlFlow::Break(()),
            }
        }
    }
}

enum Added {
    Block,
    /// The block does not hold; another answer may.
    Nothing,
    /// The copy can no longer be written.
    Failed,
}

async fn add(keeper: &mut Keeper, bytes: &[u8]) -> Added {
    let block = match CertifiedBlock::from_bytes(bytes) {
        Ok(block) => block,
        Err(error) => {
            tracing::warn!(%error, "a block cannot be read");
            return Added::Nothing;
        }
    };
    let copy = Arc::clone(&keeper.copy);
    let committed = tokio::task::spawn_blocking(move || {
        let mut copy = copy.write().unwrap_or_else(PoisonError::into_inner);
        let Copy::Follower(follower) = &mut *copy else { unreachable!("this task is started for a follower only") };
        follower.commit(block.clone()).map(|applied| (block, applied))
    });
    match committed.await.expect("committing does not panic, and nobody aborts it") {
        Ok((block, applied)) => {
            let height = block.block.header.height;
            for event in events_of(&block, applied) {
                // With the node gone, nobody listens; the block is on the disk all the same.
                let _ = keeper.events.send(event).await;
            }
            keeper.reached.send_replace(height);
            Added::Block
        }
        Err(FollowError::Known { .. }) => Added::Nothing,
        Err(error @ FollowError::Conflict { .. }) => {
            tracing::error!(%error, "the ledger's authority has forked the books; this copy stays as it is");
            Added::Failed
        }
        Err(FollowError::Block(error)) => {
            tracing::warn!(%error, "a block of the authority does not hold");
            Added::Nothing
        }
        Err(error @ (FollowError::Store(_) | FollowError::Halted)) => {
            tracing::error!(%error, "the books can no longer be written; restart the node");
            Added::Failed
        }
    }
}
