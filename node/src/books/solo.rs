//! The authority's threads: one verifies signatures, the other makes blocks of what holds and tells everyone.
//! Invariant: each submission is answered once, after its block is on the disk or the entry is refused. As soon as
//! something waits, a block is made of all that waits; while it is written, the next one's signatures are verified.

use super::group::{Answer, Group, SUBMISSIONS_MAX, Submission, now_ms, refusal, screen};
use super::handle::{Copy, Keeper, events_of};
use super::wire::{LedgerReply, Notice};
use crate::network::Topic;
use spillway_ledger::{Committed, Solo, SubmitError, Submitted, Ticket, encode};
use std::collections::HashMap;
use std::io;
use std::sync::PoisonError;
use std::sync::mpsc::{Receiver, sync_channel};
use tokio::sync::mpsc;

/// Starts the threads. They end when the books stop or their last handle is gone.
pub(super) fn start(keeper: Keeper) -> io::Result<mpsc::Sender<Submission>> {
    let (submissions, received) = mpsc::channel(SUBMISSIONS_MAX);
    let (ready, groups) = sync_channel(1);
    let runtime = tokio::runtime::Handle::current();
    let stopping = keeper.stopping.clone();
    let screening = runtime.clone();
    std::thread::Builder::new().name("books".into()).spawn(move || write(keeper, &groups, &runtime))?;
    let screen = move || screen(stopping, received, &ready, &screening);
    std::thread::Builder::new().name("books-verify".into()).spawn(screen)?;
    Ok(submissions)
}

fn write(mut keeper: Keeper, groups: &Receiver<Group>, runtime: &tokio::runtime::Handle) {
    while let Ok(group) = groups.recv() {
        make_block(&mut keeper, group, runtime);
    }
}

/// Puts a group of entries on the ledger and answers each.
fn make_block(keeper: &mut Keeper, group: Group, runtime: &tokio::runtime::Handle) {
    let outcome = {
        let mut copy = keeper.copy.write().unwrap_or_else(PoisonError::into_inner);
        let Copy::Solo(solo) = &mut *copy else { unreachable!("this thread is started for an authority only") };
        commit(solo, group)
    };
    let Some(committed) = outcome.committed else {
        return outcome.answers.into_iter().for_each(|(answer, reply)| answer.give(&reply));
    };
    let header = committed.block.block.header;
    for event in events_of(&committed.block, committed.applied) {
        // With the node gone, nobody listens; the block is on the disk all the same.
        let _ = runtime.block_on(keeper.events.send(event));
    }
    keeper.reached.send_replace(header.height);
    let notice = Notice { header, certificate: committed.block.certificate };
    keeper.network.publish(Topic::Blocks, encode(&notice));
    outcome.answers.into_iter().for_each(|(answer, reply)| answer.give(&reply));
}

/// What became of a group.
struct Outcome {
    committed: Option<Committed>,
    answers: Vec<(Answer, LedgerReply)>,
}

fn commit(solo: &mut Solo, entries: Group) -> Outcome {
    let mut answers = Vec::with_capacity(entries.len());
    // A retry may come while the first try still waits: one ticket, several answers.
    let mut waiting: HashMap<Ticket, Vec<Answer>> = HashMap::new();
    for (entry, answer) in entries {
        match solo.submit_screened(entry) {
            Ok(Submitted::Ticket(ticket)) => waiting.entry(ticket).or_default().push(answer),
            Ok(Submitted::Already { height }) => answers.push((answer, LedgerReply::In { height })),
            Err(SubmitError::Refused(error)) => answers.push((answer, refusal(solo.height(), &error))),
            Err(SubmitError::QueueFull) => answers.push((answer, LedgerReply::Busy)),
        }
    }
    let committed = solo.produce(now_ms()).unwrap_or_else(|error| {
        tracing::error!(%error, "no block can be written");
        None
    });
    for (ticket, error) in solo.take_refused() {
        let reply = refusal(solo.height(), &error);
        answers.extend(waiting.remove(&ticket).into_iter().flatten().map(|answer| (answer, reply.clone())));
    }
    // What is left is in the block; without a block, the disk has failed, and trying again is all there is.
    let height = committed.as_ref().map(|committed| committed.block.block.header.height);
    let reply = height.map_or(LedgerReply::Busy, |height| LedgerReply::In { height });
    answers.extend(waiting.into_values().flatten().map(|answer| (answer, reply.clone())));
    Outcome { committed, answers }
}
