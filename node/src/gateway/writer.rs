//! Writes the gateway's small changes to the store, many to a commit.
//! Invariant: changes reach the disk in the order they were queued, and whoever waits is told only after they have.

use spillway_ledger::StoreError;
use spillway_ledger::store::{Batch, Store, Table};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// Most queued requests that one commit takes along.
const GROUP_MAX: usize = 1024;
/// How long changes that nobody waits for gather before they are committed: a commit costs as much as many requests.
const LINGER: Duration = Duration::from_millis(10);

/// One change of one key.
#[derive(Clone, Debug)]
pub struct Change {
    /// Where.
    pub table: Table,
    /// Which.
    pub key: Vec<u8>,
    /// The new value; `None` removes it.
    pub value: Option<Vec<u8>>,
}

struct Order {
    changes: Vec<Change>,
    /// Who waits; `None` if nobody does.
    done: Option<oneshot::Sender<Result<(), WriteFailed>>>,
}

/// The changes are not on the disk; the log says why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store cannot be written")]
pub struct WriteFailed;

/// Queues changes for the writing thread, which ends when the last of these is dropped.
///
/// The queue is bounded by its users: a job has at most three orders in it, and jobs are bounded.
#[derive(Clone, Debug)]
pub struct Writer(mpsc::Sender<Order>);

/// Resolves once the changes are durable.
#[derive(Debug)]
pub struct Written(oneshot::Receiver<Result<(), WriteFailed>>);

impl Writer {
    /// Starts the writing thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(store: Arc<Store>) -> std::io::Result<Self> {
        let (sender, receiver) = mpsc::channel();
        std::thread::Builder::new().name("gateway-writer".into()).spawn(move || write(&store, receiver))?;
        Ok(Self(sender))
    }

    /// Queues changes that become durable together, which nobody waits for: within [`LINGER`] and a commit.
    pub fn note(&self, changes: Vec<Change>) {
        // If the thread is gone, the log has said why.
        let _ = self.0.send(Order { changes, done: None });
    }

    /// Queues changes that become durable together and at once, with all that was queued before.
    pub fn queue(&self, changes: Vec<Change>) -> Written {
        let (done, written) = oneshot::channel();
        // If the thread is gone, `done` is dropped with the order, and `Written` tells.
        let _ = self.0.send(Order { changes, done: Some(done) });
        Written(written)
    }
}

impl Written {
    /// Waits until the changes are durable.
    ///
    /// # Errors
    /// If they cannot be written.
    pub async fn wait(self) -> Result<(), WriteFailed> {
        self.0.await.unwrap_or(Err(WriteFailed))
    }
}

fn write(store: &Store, orders: mpsc::Receiver<Order>) {
    let mut group: Vec<Order> = Vec::new();
    while let Ok(first) = orders.recv() {
        let until = Instant::now() + LINGER;
        let mut awaited = first.done.is_some();
        group.push(first);
        while group.len() < GROUP_MAX {
            let wait = if awaited { Duration::ZERO } else { until.saturating_duration_since(Instant::now()) };
            let Ok(order) = orders.recv_timeout(wait) else { break };
            awaited |= order.done.is_some();
            group.push(order);
        }
        let mut batch = Batch::new();
        for change in group.iter_mut().flat_map(|order| std::mem::take(&mut order.changes)) {
            match change.value {
                Some(value) => batch.put(change.table, change.key, value),
                None => batch.delete(change.table, change.key),
            };
        }
        let result = store.commit(batch).map_err(|error: StoreError| {
            tracing::error!(%error, "keys and budgets cannot be written");
            WriteFailed
        });
        for done in group.drain(..).filter_map(|order| order.done) {
            let _ = done.send(result);
        }
    }
}
