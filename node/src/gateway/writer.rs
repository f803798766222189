//! Writes the gateway's small changes to the store, many to a commit.
//! Invariant: changes reach the disk in the order they were queued, and whoever waits is told only after they have.

use spillway_ledger::StoreError;
use spillway_ledger::store::{Batch, Store, Table};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// With so many queued orders a commit waits for no more.
const GROUP_MAX: usize = 1024;
/// How long changes that nobody waits for gather before they are committed: a commit costs as much as many requests.
const LINGER: Duration = Duration::from_millis(50);

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

#[derive(Debug)]
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
pub struct Writer(Arc<Handle>);

#[derive(Debug)]
struct Handle(Arc<Queue>);

#[derive(Debug, Default)]
struct Queue {
    waiting: Mutex<Waiting>,
    called: Condvar,
}

#[derive(Debug, Default)]
struct Waiting {
    orders: Vec<Order>,
    /// Whether somebody waits for one of them.
    awaited: bool,
    /// Whether the thread sleeps until it is called.
    idle: bool,
    /// Whether no more will come.
    closed: bool,
    /// Whether the thread is gone.
    dead: bool,
}

/// Resolves once the changes are durable.
#[derive(Debug)]
pub struct Written(oneshot::Receiver<Result<(), WriteFailed>>);

impl Writer {
    /// Starts the writing thread.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(store: Arc<Store>) -> std::io::Result<Self> {
        let queue = Arc::new(Queue::default());
        let ours = Alive(Arc::clone(&queue));
        std::thread::Builder::new().name("gateway-writer".into()).spawn(move || write(&store, &ours.0))?;
        Ok(Self(Arc::new(Handle(queue))))
    }

    /// Queues changes that become durable together, which nobody waits for: within [`LINGER`] and a commit.
    pub fn note(&self, changes: Vec<Change>) {
        self.0.0.push(Order { changes, done: None });
    }

    /// Queues changes that become durable together and at once, with all that was queued before.
    pub fn queue(&self, changes: Vec<Change>) -> Written {
        let (done, written) = oneshot::channel();
        self.0.0.push(Order { changes, done: Some(done) });
        Written(written)
    }
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, order: Order) {
        let mut waiting = self.waiting();
        if waiting.dead {
            // The log has said why; who waits is told by the end of `order`.
            return;
        }
        waiting.awaited |= order.done.is_some();
        waiting.orders.push(order);
        // While changes gather, the thread wakes by itself: calling it for each costs more than the change.
        if waiting.idle || waiting.awaited || waiting.orders.len() >= GROUP_MAX {
            waiting.idle = false;
            drop(waiting);
            self.called.notify_one();
        }
    }

    /// Waits for orders, and for more where nobody waits for these; `None` once no more will come.
    fn next(&self) -> Option<Vec<Order>> {
        let mut waiting = self.waiting();
        while waiting.orders.is_empty() {
            if waiting.closed {
                return None;
            }
            waiting.idle = true;
            waiting = self.called.wait(waiting).unwrap_or_else(PoisonError::into_inner);
        }
        waiting.idle = false;
        let until = Instant::now() + LINGER;
        while !waiting.awaited && !waiting.closed && waiting.orders.len() < GROUP_MAX {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            waiting = self.called.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        waiting.awaited = false;
        Some(std::mem::take(&mut waiting.orders))
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.0.waiting().closed = true;
        self.0.called.notify_one();
    }
}

/// The writing thread's hold of the queue: when it is gone, nobody waits for it.
struct Alive(Arc<Queue>);

impl Drop for Alive {
    fn drop(&mut self) {
        let mut waiting = self.0.waiting();
        waiting.dead = true;
        waiting.orders.clear();
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

fn write(store: &Store, queue: &Queue) {
    while let Some(mut orders) = queue.next() {
        let mut batch = Batch::new();
        for change in orders.iter_mut().flat_map(|order| std::mem::take(&mut order.changes)) {
            match change.value {
                Some(value) => batch.put(change.table, change.key, value),
                None => batch.delete(change.table, change.key),
            };
        }
        let result = store.commit(batch).map_err(|error: StoreError| {
            tracing::error!(%error, "keys and budgets cannot be written");
            WriteFailed
        });
        for done in orders.into_iter().filter_map(|order| order.done) {
            let _ = done.send(result);
        }
    }
}
