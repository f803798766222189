//! Records on their way to whatever takes them: handed over without waiting, taken away many at once.
//! Invariant: it holds at most as many as it was made for; what finds no room is counted, and whoever hands over never waits.

use crate::metrics::{Metrics, Sink};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::Notify;

/// A queue of one kind of records; cheap to clone.
#[derive(Debug)]
pub struct Spool<T>(Arc<Inner<T>>);

#[derive(Debug)]
struct Inner<T> {
    waiting: Mutex<Vec<T>>,
    max: usize,
    /// From so many on, whoever takes them is called.
    call_at: usize,
    called: Notify,
    sink: Sink,
    metrics: Arc<Metrics>,
}

impl<T> Clone for Spool<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Spool<T> {
    /// For at most `max` records; whoever takes them is called once there are `call_at`.
    #[must_use]
    pub fn new(sink: Sink, max: usize, call_at: usize, metrics: Arc<Metrics>) -> Self {
        let waiting = Mutex::new(Vec::new());
        Self(Arc::new(Inner { waiting, max, call_at, called: Notify::new(), sink, metrics }))
    }

    /// Hands a record over; one that finds no room is lost, and counted.
    pub fn push(&self, record: T) {
        let inner = &*self.0;
        let mut waiting = inner.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        if waiting.len() >= inner.max {
            drop(waiting);
            return inner.metrics.lost(inner.sink, 1);
        }
        waiting.push(record);
        let count = waiting.len();
        drop(waiting);
        if count == inner.call_at {
            inner.called.notify_one();
        }
    }

    /// Waits until there are many, or so long, and takes what there is.
    pub async fn take(&self, wait: Duration) -> Vec<T> {
        let _ = tokio::time::timeout(wait, self.0.called.notified()).await;
        self.take_now()
    }

    /// Takes what there is.
    #[must_use]
    pub fn take_now(&self) -> Vec<T> {
        std::mem::take(&mut *self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_finds_no_room_is_counted() {
        let metrics = Arc::new(Metrics::new());
        let spool = Spool::new(Sink::Traces, 4, 3, Arc::clone(&metrics));
        (0..7).for_each(|number| spool.push(number));
        assert_eq!(spool.take(Duration::from_secs(600)).await, [0, 1, 2, 3], "called at three");
        assert!(spool.take_now().is_empty());
        assert!(metrics.to_text().contains(r#"spillway_telemetry_dropped_total{sink="otlp_traces"} 3"#));
    }
}
