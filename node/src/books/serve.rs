//! Answers peers' questions about the ledger.
//! Invariant: a question costs a bounded amount of work, and none at all when too many are being answered.

use super::group::{Answer, Submission};
use super::handle::{Books, Copy, Writer};
use super::wire::{LedgerCall, LedgerReply};
use crate::network::Reply;
use spillway_ledger::{NodeId, StoreError, decode, encode};
use std::sync::{Arc, PoisonError, RwLock};

/// Answers one question, or drops it if it is none: its asker sees that.
pub(super) fn call(books: &Books, peer: NodeId, request: &[u8], reply: Reply) {
    let call = match decode::<LedgerCall>(request) {
        Ok(call) => call,
        Err(error) => {
            tracing::debug!(%peer, %error, "a question about the ledger cannot be read");
            return;
        }
    };
    match call {
        LedgerCall::Submit(entry) => match &books.0.writer {
            Writer::Here(writer) => {
                if let Err(full) = writer.try_send(Submission { entry, answer: Answer::Peer(reply) }) {
                    full.into_inner().answer.give(&LedgerReply::Busy);
                }
            }
            Writer::There(_) => reply.send(encode(&LedgerReply::NotAuthority)),
        },
        LedgerCall::Blocks { from, max } => {
            let Ok(place) = Arc::clone(&books.0.serving).try_acquire_owned() else {
                return reply.send(encode(&LedgerReply::Busy));
            };
            let copy = Arc::clone(&books.0.copy);
            tokio::task::spawn_blocking(move || {
                match blocks(&copy, from, max) {
                    Ok(blocks) => reply.send(encode(&LedgerReply::Blocks(blocks))),
                    Err(error) => tracing::error!(%error, "the ledger's blocks cannot be read"),
                }
                drop(place);
            });
        }
    }
}

/// Encoded blocks from `from` on, as many as fit one answer.
fn blocks(copy: &RwLock<Copy>, from: u64, max: u32) -> Result<Vec<Vec<u8>>, StoreError> {
    let mut blocks = Vec::new();
    let mut room = LedgerReply::BLOCKS_BYTES_MAX;
    for height in (from.max(1)..).take(max as usize) {
        // One at a time: a block may be a mebibyte, and the writer must not wait long.
        let found = copy.read().unwrap_or_else(PoisonError::into_inner).blocks(height, 1)?;
        let Some(block) = found.first() else { break };
        let bytes = block.to_bytes();
        let Some(left) = room.checked_sub(bytes.len()) else { break };
        room = left;
        blocks.push(bytes);
    }
    Ok(blocks)
}
