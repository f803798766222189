//! The audit log's lines on their way to others: each at least once, however often the other side or this node fails.
//! Invariant: the cursor moves behind a line only after whoever gets it has taken it; the audit log itself is the queue, so
//! nothing waits in memory but one batch.

use super::otlp::{Collector, encode};
use crate::audit::AuditLog;
use crate::metrics::{Metrics, Sink};
use spillway_ledger::store::{Batch, Table};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Most lines that are handed over at once.
const BATCH_MAX: usize = 256;
/// How long to wait after a failure, at first and at most.
const RETRY_MIN: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(60);

/// How far one sink has the audit log.
#[derive(Debug)]
pub struct Cursor {
    sink: Sink,
    row: Vec<u8>,
    /// The byte behind the last line that it has, and that line's number.
    at: Option<(u64, u64)>,
}

/// Lines that a sink is to get next.
#[derive(Debug)]
pub struct Due {
    /// The lines, without their ends.
    pub lines: Vec<String>,
    /// The byte behind the last.
    behind: u64,
}

impl Cursor {
    /// Of one sink.
    #[must_use]
    pub fn new(sink: Sink) -> Self {
        Self { sink, row: [b"audit.cursor/", sink.as_str().as_bytes()].concat(), at: None }
    }

    /// The lines that it does not have yet; `None` if there are none, or they cannot be read now.
    pub async fn due(&mut self, audit: &AuditLog) -> Option<Due> {
        if self.at.is_some_and(|(_, seq)| seq >= audit.head().seq) {
            return None;
        }
        let (log, row, at) = (audit.clone(), self.row.clone(), self.at);
        let read = tokio::task::spawn_blocking(move || {
            let at = match at {
                Some(at) => at,
                None => {
                    let kept = log.store().get(Table::Meta, &row).ok()?;
                    kept.and_then(|kept| serde_json::from_slice(&kept).ok()).unwrap_or((0, 0))
                }
            };
            // A log that was begun anew is shorter than the cursor says.
            let at = if at.1 > log.head().seq { (0, 0) } else { at };
            Some((at, log.lines(at.0, BATCH_MAX).ok()?))
        });
        let ((from, seq), (lines, behind)) = read.await.ok().flatten()?;
        self.at = Some((from, seq));
        (!lines.is_empty()).then_some(Due { lines, behind })
    }

    /// The sink has these lines.
    pub async fn reached(&mut self, audit: &AuditLog, due: Due, metrics: &Metrics) {
        let count = due.lines.len();
        let seq = self.at.map_or(0, |(_, seq)| seq) + count as u64;
        let at = (due.behind, seq);
        let mut batch = Batch::new();
        batch.put(Table::Meta, self.row.clone(), serde_json::to_vec(&at).expect("numbers are JSON"));
        let store = Arc::clone(audit.store());
        let kept = tokio::task::spawn_blocking(move || store.commit(batch)).await;
        if !matches!(kept, Ok(Ok(()))) {
            // They are handed over once more after the next start: at least once is what was promised.
            tracing::warn!(sink = self.sink.as_str(), "how far the audit log was handed over cannot be kept");
        }
        self.at = Some(at);
        metrics.told(self.sink, count);
        metrics.audit_unsent(self.sink, audit.head().seq.saturating_sub(seq));
    }
}

/// Hands the audit log's lines over as they come, until `stopped`.
pub async fn export(audit: AuditLog, collector: Collector, metrics: Arc<Metrics>, mut stopped: watch::Receiver<bool>) {
    let mut cursor = Cursor::new(Sink::AuditLogs);
    let mut appended = audit.watch();
    let mut retry = RETRY_MIN;
    loop {
        let Some(due) = cursor.due(&audit).await else {
            tokio::select! {
                _ = appended.changed() => continue,
                // It may be that the log could not be read just now.
                () = tokio::time::sleep(RETRY_MAX) => continue,
                _ = stopped.wait_for(|stopped| *stopped) => return,
            }
        };
        match collector.send("v1/logs", &encode::audit_logs(&collector.origin, &due.lines)).await {
            Ok(()) => {
                retry = RETRY_MIN;
                cursor.reached(&audit, due, &metrics).await;
            }
            Err(error) => {
                tracing::debug!(why = error.why, "the collector did not take the audit log's records");
                metrics.failed(Sink::AuditLogs);
                let unsent = cursor.at.map_or(0, |(_, seq)| audit.head().seq.saturating_sub(seq));
                metrics.audit_unsent(Sink::AuditLogs, unsent);
                let wait = error.after.unwrap_or(retry);
                retry = (retry * 2).min(RETRY_MAX);
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    _ = stopped.wait_for(|stopped| *stopped) => return,
                }
            }
        }
    }
}
