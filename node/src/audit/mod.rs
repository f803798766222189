//! The audit log: every action of the operator's, in a file of JSON lines that are chained by hashes.
//! Invariants: an action is answered only once its line is on the disk; one that the node stopped in the middle of has a line,
//! too, from the next start on; no line has a secret in it. Each gateway keeps the log of what was done at it, whatever store it
//! shares with others.
//!
//! What makes a cut end show: the node signs the last line's number and hash into `audit.head`, keeps both in `node.redb`, and
//! tells them to whoever gets the records.

mod record;
mod verify;

#[cfg(test)]
mod tests;

pub use record::{AuditRecord, Deed, LineError, Who, changes};
pub use verify::{Fault, HEAD_FILE, Head, LOG_FILE, Scan, SignedHead, scan, signed_head, verify};

use crate::gateway::ApiError;
use crate::keystore::owner_only;
use crate::metrics::Metrics;
use record::{bounded, cut};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use spillway_ledger::store::{Batch, Store, Table};
use spillway_ledger::{SecretKey, StoreError};
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;
use tokio::sync::watch;

/// The row of [`Table::Meta`] with the log's end.
const HEAD_ROW: &[u8] = b"audit.head";
/// What rows of [`Table::Meta`] begin with that hold an action under way.
const PENDING: &[u8] = b"audit.pending/";
/// Most actions under way that are read at a start; there are as many as the admin API has requests at once.
const PENDING_MAX: usize = 4096;

/// What an action did.
#[derive(Debug)]
pub struct Done<T> {
    /// What it gives.
    pub value: T,
    /// What it was done to, if that is only known now.
    pub what: Option<String>,
    /// What it changed, as it was.
    pub before: Value,
    /// As it is now.
    pub after: Value,
}

/// The log; cheap to clone.
#[derive(Clone)]
pub struct AuditLog(Arc<Inner>);

struct Inner {
    folder: PathBuf,
    store: Arc<Store>,
    key: SecretKey,
    metrics: Arc<Metrics>,
    state: Mutex<State>,
    next_pending: AtomicU64,
    appended: watch::Sender<Head>,
}

struct State {
    file: File,
    head: Head,
    /// The bytes of the lines up to the head.
    bytes: u64,
}

/// The log's end, as `node.redb` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Kept {
    #[serde(flatten)]
    head: Head,
    bytes: u64,
}

/// An action under way, as `node.redb` has it.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Pending {
    time_ms: u64,
    who: Who,
    action: String,
    what: String,
}

/// Why the log cannot be gone on with.
#[derive(Debug, thiserror::Error)]
pub enum AuditError {
    /// It is not what this node wrote.
    #[error(
        "{0}; the node does not write behind it. Restore the file, or remove it and run `spillway audit restart` to begin a \
         new one that says so"
    )]
    Fault(#[from] Fault),
    /// The disk.
    #[error("{LOG_FILE}: {0}")]
    Io(#[from] io::Error),
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl std::fmt::Debug for AuditLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuditLog").field("head", &self.head()).finish_non_exhaustive()
    }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// The error of an action whose line cannot be written.
fn unavailable(error: &dyn std::fmt::Display) -> ApiError {
    tracing::error!(%error, "the audit log cannot be written");
    let message =
        "the audit log cannot be written, and nothing is done that it does not have; the node's log says more";
    ApiError::new(503, "audit_unavailable", message)
}

impl AuditLog {
    /// Goes on with the log in `folder`, or begins one. Actions that a crash interrupted get their lines now.
    ///
    /// # Errors
    /// If the log is not what `store` says that this node wrote, or it cannot be read or written.
    pub fn open(folder: &Path, store: Arc<Store>, key: SecretKey, metrics: Arc<Metrics>) -> Result<Self, AuditError> {
        let path = folder.join(LOG_FILE);
        let row = store.get(Table::Meta, HEAD_ROW)?;
        let kept: Option<Kept> = row.and_then(|row| serde_json::from_slice(&row).ok());
        let mut pending: Vec<(Vec<u8>, Option<Pending>)> = store
            .range(Table::Meta, PENDING, PENDING_MAX)?
            .into_iter()
            .take_while(|(key, _)| key.starts_with(PENDING))
            .map(|(key, value)| (key, serde_json::from_slice(&value).ok()))
            .collect();
        let kept = kept.unwrap_or(Kept { head: Head::NONE, bytes: 0 });
        if kept.head.seq > 0 && !path.exists() {
            return Err(Fault::Truncated { has: 0, seq: kept.head.seq, by: "node.redb" }.into());
        }
        let mut file = owner_only().read(true).append(true).create(true).open(&path)?;
        let mut last = None;
        let mut at_kept = kept.head.seq == 0;
        let found = scan(&mut file, |record, _| {
            at_kept |= record.seq == kept.head.seq && record.hash == kept.head.hash;
            last = Some((record.who.clone(), record.action.clone(), record.what.clone()));
        })?;
        if found.head.seq < kept.head.seq {
            return Err(Fault::Truncated { has: found.head.seq, seq: kept.head.seq, by: "node.redb" }.into());
        }
        if !at_kept {
            return Err(Fault::Rewritten { line: kept.head.seq, by: "node.redb" }.into());
        }
        // A line may be on the disk whose note is not: then its action is still under way in the store.
        if found.head.seq > kept.head.seq {
            let written = |pending: &Pending| {
                let line = last.as_ref();
                line.is_some_and(|(who, action, what)| {
                    *who == pending.who
                        && *action == pending.action
                        && (*what == pending.what || pending.what.is_empty())
                })
            };
            let index = pending.iter().position(|(_, it)| it.as_ref().is_some_and(written));
            let (Some(index), true) = (index, found.head.seq == kept.head.seq + 1) else {
                return Err(Fault::Added { has: found.head.seq, seq: kept.head.seq }.into());
            };
            let (row, _) = pending.remove(index);
            let mut batch = Batch::new();
            batch.delete(Table::Meta, row);
            batch.put(Table::Meta, HEAD_ROW, kept_row(found.head, found.bytes));
            store.commit(batch)?;
        }
        if found.torn_bytes > 0 {
            file.set_len(found.bytes)?;
        }
        file.sync_all()?;
        sync_folder(folder)?;
        let state = State { file, head: found.head, bytes: found.bytes };
        let log = Self(Arc::new(Inner {
            folder: folder.to_owned(),
            store,
            key,
            metrics,
            state: Mutex::new(state),
            next_pending: AtomicU64::new(0),
            appended: watch::Sender::new(found.head),
        }));
        log.0.write_head(&found.head)?;
        for (row, it) in pending {
            let Pending { who, action, what, .. } = it.unwrap_or_else(|| Pending {
                time_ms: 0,
                who: Who::node(),
                action: "unknown".into(),
                what: String::new(),
            });
            let entry = Entry { who, action, what, result: "unknown".into(), before: Value::Null, after: Value::Null };
            log.0.append(entry, Some(row))?;
        }
        Ok(log)
    }

    /// The last line's number and hash.
    #[must_use]
    pub fn head(&self) -> Head {
        *self.0.appended.borrow()
    }

    /// Tells the log's end whenever a line was added.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Head> {
        self.0.appended.subscribe()
    }

    /// The head with this node's signature.
    #[must_use]
    pub fn signed(&self) -> SignedHead {
        SignedHead::new(self.head(), now_ms(), &self.0.key)
    }

    /// Does `work`, and answers once the log has it. It is done to its end even where the caller goes away meanwhile.
    ///
    /// # Errors
    /// 503 if the log cannot be written: before `work`, which is then not done; or after it, and then the next start notes that.
    /// Otherwise the error of `work`, which the log has, too.
    pub async fn act<T: Send + 'static>(
        &self,
        deed: Deed,
        work: impl Future<Output = Result<Done<T>, ApiError>> + Send + 'static,
    ) -> Result<T, ApiError> {
        let inner = Arc::clone(&self.0);
        let acting = tokio::spawn(async move {
            let Deed { mut who, action, what } = deed;
            who.agent = who.agent.as_deref().map(cut);
            let what = cut(&what);
            let pending = Pending { time_ms: now_ms(), who: who.clone(), action: action.into(), what: what.clone() };
            let row = inner.begin(pending).await.map_err(|error| unavailable(&error))?;
            let (entry, answer) = match work.await {
                Ok(Done { value, what: known, before, after }) => {
                    let what = known.as_deref().map_or(what, cut);
                    let (before, after) = (bounded(before), bounded(after));
                    (Entry { who, action: action.into(), what, result: "done".into(), before, after }, Ok(value))
                }
                Err(error) => {
                    let result = format!("refused: {}", cut(&error.code));
                    let (before, after) = (Value::Null, Value::Null);
                    (Entry { who, action: action.into(), what, result, before, after }, Err(error))
                }
            };
            let inner = Arc::clone(&inner);
            let written = tokio::task::spawn_blocking(move || inner.append(entry, Some(row))).await;
            match written {
                Ok(Ok(())) => answer,
                Ok(Err(error)) => Err(unavailable(&error)),
                Err(error) => Err(unavailable(&error)),
            }
        });
        acting.await.unwrap_or_else(|_| Err(ApiError::internal("the action failed; the node's log says more")))
    }

    /// Notes what the node itself found or did.
    ///
    /// # Errors
    /// If the log cannot be written.
    pub fn note(&self, action: &str, what: &str, before: Value, after: Value) -> Result<(), AuditError> {
        let (before, after) = (bounded(before), bounded(after));
        let (who, action, what, result) = (Who::node(), action.to_owned(), cut(what), "done".to_owned());
        self.0.append(Entry { who, action, what, result, before, after }, None)
    }

    /// The lines from byte `from` on, whole lines only: at most `max` of them, and the byte behind the last.
    ///
    /// # Errors
    /// If the file cannot be read; [`io::ErrorKind::InvalidInput`] if no line begins at `from`.
    pub fn lines(&self, from: u64, max: usize) -> io::Result<(Vec<String>, u64)> {
        let end = self.0.state.lock().unwrap_or_else(PoisonError::into_inner).bytes;
        let mut file = File::open(self.0.folder.join(LOG_FILE))?;
        if let Some(before) = from.checked_sub(1).filter(|before| *before < end) {
            let mut byte = [0];
            file.seek(SeekFrom::Start(before))?;
            file.read_exact(&mut byte)?;
            if byte != *b"\n" {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "no line begins there"));
            }
        }
        file.seek(SeekFrom::Start(from))?;
        let mut file = BufReader::new(file.take(end.saturating_sub(from)));
        let (mut lines, mut at) = (Vec::new(), from);
        while lines.len() < max {
            let mut line = String::new();
            let read = file.read_line(&mut line)?;
            if read == 0 {
                break;
            }
            at += read as u64;
            line.truncate(line.trim_end_matches('\n').len());
            lines.push(line);
        }
        Ok((lines, at))
    }

    /// The store that cursors are kept in.
    pub(crate) fn store(&self) -> &Arc<Store> {
        &self.0.store
    }
}

/// What is to become a line.
struct Entry {
    who: Who,
    action: String,
    what: String,
    result: String,
    before: Value,
    after: Value,
}

impl Inner {
    /// Notes that an action begins; gives its row.
    async fn begin(self: &Arc<Self>, pending: Pending) -> Result<Vec<u8>, StoreError> {
        let number = self.next_pending.fetch_add(1, Ordering::Relaxed);
        let row = [PENDING, &number.to_be_bytes()].concat();
        let mut batch = Batch::new();
        batch.put(Table::Meta, row.clone(), serde_json::to_vec(&pending).expect("text and numbers are JSON"));
        let store = Arc::clone(&self.store);
        tokio::task::spawn_blocking(move || store.commit(batch)).await.expect("a commit does not panic")?;
        Ok(row)
    }

    /// Writes a line, and with the note of it takes away the row of its action.
    fn append(&self, entry: Entry, row: Option<Vec<u8>>) -> Result<(), AuditError> {
        let Entry { who, action, what, result, before, after } = entry;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Head { seq, hash: prev } = state.head;
        let (seq, time_ms, hash) = (seq + 1, now_ms(), prev);
        let mut record = AuditRecord { seq, time_ms, who, action, what, result, before, after, prev, hash };
        let mut line = record.seal();
        line.push('\n');
        let written = state.file.write_all(line.as_bytes()).and_then(|()| state.file.sync_data());
        if let Err(error) = written {
            // Nothing half written may stay in front of the next line.
            let bytes = state.bytes;
            state.file.set_len(bytes)?;
            return Err(error.into());
        }
        let head = Head { seq, hash: record.hash };
        let bytes = state.bytes + line.len() as u64;
        let mut batch = Batch::new();
        batch.put(Table::Meta, HEAD_ROW, kept_row(head, bytes));
        if let Some(row) = row {
            batch.delete(Table::Meta, row);
        }
        if let Err(error) = self.store.commit(batch) {
            let bytes = state.bytes;
            state.file.set_len(bytes)?;
            return Err(error.into());
        }
        (state.head, state.bytes) = (head, bytes);
        self.write_head(&head)?;
        drop(state);
        self.metrics.audited();
        self.appended.send_replace(head);
        Ok(())
    }

    /// Puts the signed head in place of the one before, as one step.
    fn write_head(&self, head: &Head) -> io::Result<()> {
        let signed = SignedHead::new(*head, now_ms(), &self.key);
        let (path, fresh) = (self.folder.join(HEAD_FILE), self.folder.join(format!("{HEAD_FILE}.new")));
        let mut file = File::create(&fresh)?;
        file.write_all(&serde_json::to_vec(&signed).expect("text and numbers are JSON"))?;
        file.sync_all()?;
        fs::rename(&fresh, &path)?;
        sync_folder(&self.folder)
    }
}

fn kept_row(head: Head, bytes: u64) -> Vec<u8> {
    serde_json::to_vec(&Kept { head, bytes }).expect("text and numbers are JSON")
}

fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The log's end as a stopped node's store has it; `None` if it never had a log.
///
/// # Errors
/// If the store cannot be read.
pub fn kept_head(store: &Store) -> Result<Option<Head>, StoreError> {
    let row = store.get(Table::Meta, HEAD_ROW)?;
    Ok(row.and_then(|row| serde_json::from_slice::<Kept>(&row).ok()).map(|kept| kept.head))
}

/// Begins a new log in `folder`, where the old one is lost: its first line says which end the old one had, and why it was given
/// up. For a node that does not run.
///
/// # Errors
/// If a log is there, or the new one cannot be written.
pub fn restart(folder: &Path, store: Arc<Store>, key: SecretKey, why: &str) -> Result<Head, AuditError> {
    let path = folder.join(LOG_FILE);
    if path.exists() {
        let why = "is there; move it away first, and keep it".to_owned();
        return Err(Fault::Io(io::Error::new(io::ErrorKind::AlreadyExists, why)).into());
    }
    let old = kept_head(&store)?;
    let mut batch = Batch::new();
    batch.delete(Table::Meta, HEAD_ROW);
    store.commit(batch)?;
    let log = AuditLog::open(folder, store, key, Arc::new(Metrics::new()))?;
    let before = old.map_or(Value::Null, |head| serde_json::json!({"seq": head.seq, "hash": head.hash}));
    log.note("audit.restart", "audit log", before, serde_json::json!({"why": cut(why)}))?;
    Ok(log.head())
}
