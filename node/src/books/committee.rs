//! A validator's seat: takes entries like a lone authority, and lets the committee's engine decide the blocks.
//! Invariant: each submission is answered once, after a final block with it is on this disk, or the entry is refused.

use super::group::{Answer, Group, SUBMISSIONS_MAX, Submission, now_ms, refusal, screen};
use super::handle::{BooksError, Keeper, events_of};
use super::wire::{LedgerReply, Notice};
use crate::network::Topic;
use spillway_bft::{Host, Settings, Validator, lock};
use spillway_ledger::{Committed, Evidence, Replica, SecretKey, SignedBytes, SubmitError, Submitted, Ticket, encode};
use std::collections::HashMap;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

/// Who may wait for one entry: its submitter, and retries of it.
const ANSWERS_MAX: usize = 16;
/// Final blocks that wait to be told of; beyond it, the engine waits.
const TOLD_MAX: usize = 16;
/// Offences that wait to be put on the ledger; more are dropped, and are on other validators' lists.
const OFFENCES_MAX: usize = 64;

/// What the engine is given.
struct Seat {
    replica: Arc<Mutex<Replica>>,
    /// Final blocks, to be told of by a thread that may wait.
    told: SyncSender<Committed>,
    offences: mpsc::Sender<Evidence>,
}

impl Host for Seat {
    fn replica(&self) -> &Mutex<Replica> {
        &self.replica
    }

    fn committed(&self, committed: &Committed) {
        // With the node gone, nobody listens; the block is on the disk all the same.
        let _ = self.told.send(committed.clone());
    }

    fn evidence(&self, evidence: Evidence) {
        if self.offences.try_send(evidence).is_err() {
            tracing::warn!("too many offences at once: one is left to other validators");
        }
    }

    fn now_ms(&self) -> u64 {
        now_ms()
    }
}

/// Who waits for what: bounded by the replica's queue, since an entry that leaves it is answered.
type Waiting = Arc<Mutex<HashMap<Ticket, Vec<Answer>>>>;

/// Starts the engine and the threads around it. They end when the books stop. Offences are for the caller to report.
pub(super) async fn start(
    keeper: Keeper,
    replica: Arc<Mutex<Replica>>,
    key: SecretKey,
    settings: Settings,
) -> Result<(mpsc::Sender<Submission>, mpsc::Receiver<Evidence>), BooksError> {
    let (submissions, received) = mpsc::channel(SUBMISSIONS_MAX);
    let (offences, reported) = mpsc::channel(OFFENCES_MAX);
    let (told, blocks) = sync_channel(TOLD_MAX);
    let (ready, groups) = sync_channel(1);
    let runtime = Handle::current();
    let mut stopping = keeper.stopping.clone();

    let seat = Arc::new(Seat { replica: Arc::clone(&replica), told, offences });
    let validator = Arc::new(Validator::start(settings, key, seat).await?);
    let waiting = Waiting::default();

    let thread = |name: &str, body: Box<dyn FnOnce() + Send>| {
        std::thread::Builder::new().name(name.into()).spawn(body).map_err(BooksError::Thread)
    };
    let verify = {
        let (stopping, runtime) = (stopping.clone(), runtime.clone());
        move || screen(stopping, received, &ready, &runtime)
    };
    let take = {
        let (replica, waiting, validator) = (Arc::clone(&replica), Arc::clone(&waiting), Arc::clone(&validator));
        let runtime = runtime.clone();
        move || {
            for group in groups {
                let wires = take(&replica, &waiting, group);
                runtime.block_on(validator.share(&wires));
            }
        }
    };
    thread("books-verify", Box::new(verify))?;
    thread("books-take", Box::new(take))?;
    thread("books", Box::new(move || tell(keeper, &replica, &waiting, &blocks, &runtime)))?;
    tokio::spawn(async move {
        tokio::select! {
            _ = stopping.wait_for(|stop| *stop) => {}
            ended = validator.ended() => {
                if let Err(failure) = ended {
                    tracing::error!(%failure, "this node no longer validates; restart it");
                }
            }
        }
        validator.halt().await;
    });
    Ok((submissions, reported))
}

/// Queues a group; gives those that the other validators should know of.
fn take(replica: &Mutex<Replica>, waiting: &Waiting, group: Group) -> Vec<SignedBytes> {
    let mut wires = Vec::with_capacity(group.len());
    let mut answers = Vec::new();
    {
        let mut replica = lock(replica);
        // Taken before any block can be made of them: an answer never comes before its question.
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for (entry, answer) in group {
            let wire = entry.entry().to_wire();
            match replica.submit_screened(entry) {
                Ok(Submitted::Ticket(ticket)) => {
                    let who = waiting.entry(ticket).or_default();
                    if who.len() < ANSWERS_MAX {
                        who.push(answer);
                        wires.push(wire);
                    } else {
                        answers.push((answer, LedgerReply::Busy));
                    }
                }
                Ok(Submitted::Already { height }) => answers.push((answer, LedgerReply::In { height })),
                Err(SubmitError::Refused(error)) => answers.push((answer, refusal(replica.height(), &error))),
                Err(SubmitError::QueueFull) => answers.push((answer, LedgerReply::Busy)),
            }
        }
    }
    answers.into_iter().for_each(|(answer, reply)| answer.give(&reply));
    wires
}

/// Tells the node, its peers and the submitters of each final block, in order.
fn tell(keeper: Keeper, replica: &Mutex<Replica>, waiting: &Waiting, blocks: &Receiver<Committed>, runtime: &Handle) {
    for Committed { block, applied } in blocks {
        let header = block.block.header;
        let (refused, height) = {
            let mut replica = lock(replica);
            (replica.take_refused(), replica.height())
        };
        for event in events_of(&block, applied) {
            // With the node gone, nobody listens; the block is on the disk all the same.
            let _ = runtime.block_on(keeper.events.send(event));
        }
        keeper.reached.send_replace(header.height);
        let included =
            block.block.entries.iter().map(|wire| (Ticket::of(wire), LedgerReply::In { height: header.height }));
        let refused = refused.into_iter().map(|(ticket, error)| (ticket, refusal(height, &error)));
        let replies: Vec<(Ticket, LedgerReply)> = included.chain(refused).collect();
        keeper.network.publish(Topic::Blocks, encode(&Notice { header, certificate: block.certificate }));
        let mut waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
        for (ticket, reply) in replies {
            waiting.remove(&ticket).into_iter().flatten().for_each(|answer| answer.give(&reply));
        }
    }
}
