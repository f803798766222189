//! How far a worker has come with what it was given, for a thread that would rather wait than do the work twice.
//! Invariant: never more is done than was begun; a count may be behind by what is just being handed over.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// Counts what was begun and is not done.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Below zero for a moment, where the worker is quicker than who counts for it.
    open: Mutex<i64>,
    less: Condvar,
}

impl Progress {
    fn add(&self, more: i64) {
        *self.open.lock().unwrap_or_else(PoisonError::into_inner) += more;
        self.less.notify_all();
    }

    /// The worker was given one thing.
    pub(crate) fn begin_one(&self) {
        self.add(1);
    }

    /// The worker has done one thing.
    pub(crate) fn done_one(&self) {
        self.add(-1);
    }

    /// Waits until everything is done, but no longer than `patience`.
    pub(crate) fn wait(&self, patience: Duration) {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let _in_time = self.less.wait_timeout_while(open, patience, |open| *open > 0);
    }
}
