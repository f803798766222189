//! What is told of requests, and to whom: an access log, a SIEM's log, an OTLP collector.
//! Invariants: a request pays for no more than handing its record over, which never waits; all of it is off unless the operator
//! turned it on; no secret is told, and content to nobody but an access log that asks for it.

pub mod access;
pub mod audit_export;
pub mod lines;
pub mod otlp;
pub mod spool;
pub mod trace;

#[cfg(test)]
mod tests;

pub use access::{Access, Content, Door};
pub use trace::{Parent, Trace, TraceHeaders};

use crate::audit::AuditLog;
use crate::metrics::{Metrics, Sink};
use anyhow::Context as _;
use audit_export::{Cursor, export};
use axum::http::HeaderMap;
use lines::Lines;
use otlp::Collector;
use otlp::encode::Origin;
use spillway_ledger::{JobId, NodeId};
use spillway_protocol::config::{Signal, TelemetrySection};
use spool::Spool;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinSet;
use zeroize::Zeroizing;

/// Records that may wait to be taken, of each kind.
const WAITING_MAX: usize = 8192;
/// From so many on they are taken at once.
const CALL_AT: usize = 512;
/// How long lines wait for others to be written with.
const WRITE_EVERY: Duration = Duration::from_millis(200);

/// Where records of requests go; cheap to clone.
#[derive(Clone)]
pub struct Telemetry(Arc<Inner>);

struct Inner {
    metrics: Arc<Metrics>,
    traces: Option<Spool<Arc<Access>>>,
    logs: Option<Spool<Arc<Access>>>,
    access: Option<Spool<Arc<Access>>>,
    siem: Option<Spool<Arc<Access>>>,
    content: bool,
    ratio: f64,
    collector: Option<Collector>,
    stop: watch::Sender<bool>,
    tasks: Mutex<JoinSet<()>>,
}

impl std::fmt::Debug for Telemetry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Telemetry").field("traces", &self.0.traces.is_some()).finish_non_exhaustive()
    }
}

impl Telemetry {
    /// Tells nobody anything.
    #[must_use]
    pub fn off(metrics: Arc<Metrics>) -> Self {
        Self(Arc::new(Inner {
            metrics,
            traces: None,
            logs: None,
            access: None,
            siem: None,
            content: false,
            ratio: 0.0,
            collector: None,
            stop: watch::Sender::new(false),
            tasks: Mutex::default(),
        }))
    }

    /// As the operator wants it. Files are relative to `folder`.
    ///
    /// # Errors
    /// The setting that does not hold, or the file that cannot be opened.
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start(
        section: &TelemetrySection,
        folder: &Path,
        node: &NodeId,
        metrics: &Arc<Metrics>,
        audit: &AuditLog,
    ) -> anyhow::Result<Self> {
        let (stop, stopped) = watch::channel(false);
        let mut tasks = JoinSet::new();
        let (bytes_max, files_max) = (u64::from(section.log_mib_max) << 20, section.log_files_max);
        let spool = |sink| Spool::new(sink, WAITING_MAX, CALL_AT, Arc::clone(metrics));
        let open = |name: &str| Lines::file(&folder.join(name), bytes_max, files_max);
        let access = match section.access_log.as_deref() {
            Some(name) => {
                let lines =
                    if name == "stderr" { Lines::stderr() } else { open(name).context("telemetry.access_log")? };
                let spool = spool(Sink::AccessLog);
                let to = Writing { sink: Sink::AccessLog, content: section.access_log_content, audit: None };
                tasks.spawn(write(lines, spool.clone(), to, Arc::clone(metrics), stopped.clone()));
                Some(spool)
            }
            None => None,
        };
        let siem = match section.siem_log.as_deref() {
            Some(name) => {
                let lines = open(name).context("telemetry.siem_log")?;
                let spool = spool(Sink::SiemLog);
                let to = Writing { sink: Sink::SiemLog, content: false, audit: Some(audit.clone()) };
                tasks.spawn(write(lines, spool.clone(), to, Arc::clone(metrics), stopped.clone()));
                Some(spool)
            }
            None => None,
        };
        let collector = collector(section, folder, node, metrics)?;
        let (mut traces, mut logs) = (None, None);
        if let Some(collector) = &collector {
            let wants = |signal| section.otlp_signals.contains(&signal);
            if wants(Signal::Traces) {
                let spool = traces.insert(spool(Sink::Traces)).clone();
                tasks.spawn(collector.clone().forward(Sink::Traces, spool, stopped.clone()));
            }
            if wants(Signal::Logs) {
                let spool = logs.insert(spool(Sink::Logs)).clone();
                tasks.spawn(collector.clone().forward(Sink::Logs, spool, stopped.clone()));
                tasks.spawn(export(audit.clone(), collector.clone(), Arc::clone(metrics), stopped.clone()));
            }
            if wants(Signal::Metrics) {
                let every = Duration::from_secs(u64::from(section.metrics_every_s));
                tasks.spawn(collector.clone().report(every, stopped));
            }
        }
        Ok(Self(Arc::new(Inner {
            metrics: Arc::clone(metrics),
            traces,
            logs,
            access,
            siem,
            content: section.access_log_content,
            ratio: section.sample_ratio,
            collector,
            stop,
            tasks: Mutex::new(tasks),
        })))
    }

    /// What is counted.
    #[must_use]
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.0.metrics
    }

    /// Whether there is an access log, so that the node's own log need not say what it says.
    #[must_use]
    pub fn has_access_log(&self) -> bool {
        self.0.access.is_some()
    }

    /// Whether what clients write and get is recorded.
    #[must_use]
    pub fn wants_content(&self) -> bool {
        self.0.content
    }

    /// Whether anybody wants records of requests.
    #[must_use]
    pub fn wants_records(&self) -> bool {
        let inner = &*self.0;
        inner.traces.is_some() || inner.logs.is_some() || inner.access.is_some() || inner.siem.is_some()
    }

    /// What a request says of its trace.
    #[must_use]
    pub fn parent(&self, headers: &HeaderMap) -> Option<Parent> {
        Parent::read(headers)
    }

    /// A job's place in a trace, if requests are traced, and what own servers are told of it.
    #[must_use]
    pub fn trace(&self, parent: Option<Parent>, job: JobId) -> (Option<Trace>, Option<TraceHeaders>) {
        if self.0.traces.is_none() {
            return (None, parent.map(|parent| parent.headers()));
        }
        let trace = Trace::of(parent, job, self.0.ratio);
        let headers = trace.headers();
        (Some(trace), Some(headers))
    }

    /// The gateway listens there.
    pub fn serves_at(&self, address: SocketAddr) {
        if let Some(collector) = &self.0.collector {
            // It is said once; a second gateway of one node would be told as the first.
            let _ = collector.origin.server.set(address);
        }
    }

    /// A request is over.
    pub fn record(&self, access: Access) {
        let inner = &*self.0;
        let access = Arc::new(access);
        let sampled = access.trace.as_ref().is_some_and(|trace| trace.sampled);
        if let Some(traces) = inner.traces.as_ref().filter(|_| sampled) {
            traces.push(Arc::clone(&access));
        }
        for spool in [&inner.logs, &inner.access, &inner.siem].into_iter().flatten() {
            spool.push(Arc::clone(&access));
        }
    }

    /// Hands over what waits, for at most so long, and stops.
    pub async fn stop(&self, wait: Duration) {
        self.0.stop.send_replace(true);
        let mut tasks = std::mem::take(&mut *self.0.tasks.lock().unwrap_or_else(PoisonError::into_inner));
        let _ = tokio::time::timeout(wait, async { while tasks.join_next().await.is_some() {} }).await;
    }
}

fn collector(
    section: &TelemetrySection,
    folder: &Path,
    node: &NodeId,
    metrics: &Arc<Metrics>,
) -> anyhow::Result<Option<Collector>> {
    let Some(url) = &section.otlp_endpoint else { return Ok(None) };
    let secrets = if let Some(name) = &section.otlp_headers_env {
        let text = std::env::var(name).with_context(|| {
            format!("telemetry.otlp_headers_env: the environment has no {name}, or it is not UTF-8")
        })?;
        Some(("telemetry.otlp_headers_env", Zeroizing::new(text)))
    } else if let Some(file) = &section.otlp_headers_file {
        let path = folder.join(file);
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("telemetry.otlp_headers_file: {} cannot be read", path.display()))?;
        Some(("telemetry.otlp_headers_file", Zeroizing::new(text)))
    } else {
        None
    };
    let origin = Origin { service: section.service_name.clone(), instance: node.to_string(), server: OnceLock::new() };
    let collector = Collector::new(url, secrets, origin, Arc::clone(metrics));
    Ok(Some(collector.map_err(|(field, why)| anyhow::anyhow!("{field}: {why}"))?))
}

/// Which lines a log's file gets.
struct Writing {
    sink: Sink,
    content: bool,
    /// The audit log, whose lines it gets, too.
    audit: Option<AuditLog>,
}

/// Writes what comes through `spool`, until `stopped` and it is empty.
async fn write(
    mut lines: Lines,
    spool: Spool<Arc<Access>>,
    to: Writing,
    metrics: Arc<Metrics>,
    mut stopped: watch::Receiver<bool>,
) {
    let mut cursor = to.audit.as_ref().map(|_| Cursor::new(to.sink));
    loop {
        let records = tokio::select! {
            records = spool.take(WRITE_EVERY) => records,
            _ = stopped.wait_for(|stopped| *stopped) => spool.take_now(),
        };
        let over = *stopped.borrow();
        let due = match (&to.audit, &mut cursor) {
            (Some(audit), Some(cursor)) => cursor.due(audit).await,
            _ => None,
        };
        if !records.is_empty() || due.is_some() {
            let (sink, content, counts) = (to.sink, to.content, Arc::clone(&metrics));
            let actions = due.as_ref().map(|due| due.lines.join("\n") + "\n").unwrap_or_default();
            // The disk may block; and records are made text here, where no request waits for it.
            let wrote = tokio::task::spawn_blocking(move || {
                let mut bytes = actions.into_bytes();
                let durable = !bytes.is_empty();
                records.iter().for_each(|access| access.write(content, &mut bytes));
                let written = lines.write(&bytes, durable);
                match &written {
                    Ok(()) => counts.told(sink, records.len()),
                    Err(error) => {
                        tracing::warn!(sink = sink.as_str(), %error, "lines cannot be written");
                        counts.failed(sink);
                        counts.lost(sink, records.len());
                    }
                }
                (lines, written.is_ok())
            });
            let Ok((back, ok)) = wrote.await else { return };
            lines = back;
            if let (Some(cursor), Some(due), Some(audit)) = (&mut cursor, due, &to.audit)
                && ok
            {
                cursor.reached(audit, due, &metrics).await;
            }
        }
        if over {
            return;
        }
    }
}
