//! The last jobs' times and sizes, for replaying one's own day in the simulator: `spillway jobs export`.
//! Invariants: nothing of a prompt or an answer is in it, and keys and conversations are hashed under a secret of this node; at
//! most [`JOBS_MAX`] jobs are kept, the oldest go first.
//!
//! A row is a line of the format that the simulator reads: `docs/simulator.md`, "Workloads".

use super::keys::KeyId;
use super::writer::{Change, Writer};
use serde::{Deserialize, Serialize};
use spillway_ledger::store::{Batch, Store, Table};
use spillway_ledger::{Credits, Digest, JobId, StoreError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};
use zeroize::Zeroizing;

/// Jobs kept.
pub const JOBS_MAX: u64 = 100_000;
/// What rows of [`Table::Meta`] begin with that hold a job; the rest is its number, big-endian.
const ROW: &[u8] = b"day/";
/// The row of [`Table::Meta`] with the secret.
const SECRET: &[u8] = b"day.secret";
/// Rows read at a time.
const PAGE: usize = 1024;
/// Hexadecimal digits of a hashed name.
const NAME_CHARS: usize = 16;

/// One job: its times and sizes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DayJob {
    /// When it came, in Unix milliseconds.
    pub time: u64,
    /// The model asked for.
    pub model: String,
    /// The prompt's size, in work units.
    pub input_units: u64,
    /// The answer's size, in work units, as far as it was delivered.
    pub output_units: u64,
    /// The key, hashed.
    pub key: String,
    /// The conversation, hashed, where the client named it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
}

/// A job as it is kept: with what it cost, which the simulator does not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpentJob {
    /// Its times and sizes.
    #[serde(flatten)]
    pub day: DayJob,
    /// Its id; empty for rows from before ids were kept.
    #[serde(default)]
    pub job: String,
    /// What it cost, in micro-credits.
    #[serde(default)]
    pub cost_micro: u64,
}

/// Which jobs are wanted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DayQuery {
    /// The number of the first; what the last answer gave as `next`.
    pub from: u64,
    /// Those that came at this time or later, in Unix milliseconds.
    pub since_ms: Option<u64>,
    /// Those that came before this time, in Unix milliseconds.
    pub until_ms: Option<u64>,
}

/// The log of the last jobs; cheap to clone.
#[derive(Clone, Debug)]
pub struct DayLog(Arc<Inner>);

struct Inner {
    store: Arc<Store>,
    writer: Writer,
    secret: Zeroizing<[u8; 32]>,
    /// The next job's number.
    next: AtomicU64,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DayLog").field("next", &self.next).finish_non_exhaustive()
    }
}

/// A job under way, to be noted when it ends.
#[derive(Debug)]
pub struct Note {
    log: DayLog,
    job: SpentJob,
}

impl DayLog {
    /// Goes on with the log in `store`.
    ///
    /// # Errors
    /// If the store cannot be read or written, or the system gives no random bytes.
    pub fn open(store: Arc<Store>, writer: Writer) -> Result<Self, DayLogError> {
        let mut secret = Zeroizing::new([0; 32]);
        let kept = store.get(Table::Meta, SECRET)?.and_then(|kept| <[u8; 32]>::try_from(kept).ok());
        let mut batch = Batch::new();
        match kept {
            Some(kept) => *secret = kept,
            None => {
                getrandom::fill(&mut *secret).map_err(|_| DayLogError::NoRandom)?;
                batch.put(Table::Meta, SECRET, secret.to_vec());
            }
        }
        let next = next(&store)?;
        // A commit that failed may have left more than there should be.
        let mut from = ROW.to_vec();
        while let Some(number) = first(&store, &from)?.filter(|number| number + JOBS_MAX < next) {
            batch.delete(Table::Meta, row_key(number));
            from = row_key(number + 1);
        }
        if !batch.is_empty() {
            store.commit(batch)?;
        }
        Ok(Self(Arc::new(Inner { store, writer, secret, next: AtomicU64::new(next) })))
    }

    /// Removes all that was kept in `store`, the secret too.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn clear(store: &Store) -> Result<(), StoreError> {
        loop {
            let mut batch = Batch::new();
            for (key, _) in store.range(Table::Meta, ROW, PAGE)? {
                if key.starts_with(ROW) {
                    batch.delete(Table::Meta, key);
                }
            }
            if batch.is_empty() {
                break;
            }
            store.commit(batch)?;
        }
        if store.get(Table::Meta, SECRET)?.is_some() {
            let mut batch = Batch::new();
            batch.delete(Table::Meta, SECRET);
            store.commit(batch)?;
        }
        Ok(())
    }

    /// A job that comes now.
    #[must_use]
    pub fn begin(&self, job: JobId, key: KeyId, session: Option<&str>, model: &str, input_units: u64) -> Note {
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let (key, hashed) = (key.to_string(), self.key_name(key));
        let day = DayJob {
            time: u64::try_from(time.as_millis()).unwrap_or(u64::MAX),
            model: model.to_owned(),
            input_units,
            output_units: 0,
            // A conversation's name is the client's own: two keys may use the same.
            session: session.map(|session| self.hashed(&[b"session", key.as_bytes(), session.as_bytes()])),
            key: hashed,
        };
        Note { log: self.clone(), job: SpentJob { day, job: job.to_string(), cost_micro: 0 } }
    }

    fn key_name(&self, key: KeyId) -> String {
        self.hashed(&[b"key", key.to_string().as_bytes()])
    }

    fn hashed(&self, parts: &[&[u8]]) -> String {
        let parts: Vec<&[u8]> = std::iter::once(&self.0.secret[..]).chain(parts.iter().copied()).collect();
        let mut name = Digest::of("spillway/day-log/1", &parts).to_string();
        name.truncate(NAME_CHARS);
        name
    }

    /// The jobs that are wanted, in the order they ended: at most `max`, and where to go on if there may be more.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn read(&self, query: &DayQuery, max: usize) -> Result<(Vec<DayJob>, Option<u64>), StoreError> {
        let (jobs, next) = self.select(query, max, |_| true)?;
        Ok((jobs.into_iter().map(|job| job.day).collect(), next))
    }

    /// What jobs cost, in the order they ended: those of `key` if it is given, and the one `job` if that is; at most `max`.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn spending(
        &self,
        query: &DayQuery,
        key: Option<KeyId>,
        job: Option<&str>,
        max: usize,
    ) -> Result<Vec<SpentJob>, StoreError> {
        let key = key.map(|key| self.key_name(key));
        let wanted = |spent: &SpentJob| {
            key.as_ref().is_none_or(|key| *key == spent.day.key) && job.is_none_or(|job| job == spent.job)
        };
        Ok(self.select(query, max, wanted)?.0)
    }

    fn select(
        &self,
        query: &DayQuery,
        max: usize,
        wanted: impl Fn(&SpentJob) -> bool,
    ) -> Result<(Vec<SpentJob>, Option<u64>), StoreError> {
        let mut jobs = Vec::new();
        let mut from = row_key(query.from);
        loop {
            let rows = self.0.store.range(Table::Meta, &from, PAGE)?;
            for (key, value) in &rows {
                let Some(number) = number_of(key) else { return Ok((jobs, None)) };
                if jobs.len() == max {
                    return Ok((jobs, Some(number)));
                }
                from = row_key(number.saturating_add(1));
                // A row of a later version is none of this one's.
                let Ok(job) = serde_json::from_slice::<SpentJob>(value) else { continue };
                let late = query.until_ms.is_some_and(|until| job.day.time >= until);
                if !late && query.since_ms.is_none_or(|since| job.day.time >= since) && wanted(&job) {
                    jobs.push(job);
                }
            }
            if rows.len() < PAGE {
                return Ok((jobs, None));
            }
        }
    }
}

impl Note {
    /// The job is over, delivered so much, and cost so much.
    pub fn ended(mut self, output_units: u64, cost: Credits) {
        self.job.day.output_units = output_units;
        self.job.cost_micro = cost.micro();
        let inner = &*self.log.0;
        let number = inner.next.fetch_add(1, Ordering::Relaxed);
        let row = serde_json::to_vec(&self.job).expect("text and numbers are JSON");
        let mut changes = vec![Change { table: Table::Meta, key: row_key(number), value: Some(row) }];
        if let Some(oldest) = number.checked_sub(JOBS_MAX) {
            changes.push(Change { table: Table::Meta, key: row_key(oldest), value: None });
        }
        inner.writer.note(changes);
    }
}

/// Why the log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DayLogError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// For the secret.
    #[error("the system gives no random bytes")]
    NoRandom,
}

fn row_key(number: u64) -> Vec<u8> {
    [ROW, &number.to_be_bytes()].concat()
}

fn number_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.strip_prefix(ROW)?.try_into().ok()?))
}

/// The number of the first row at `from` or behind it.
fn first(store: &Store, from: &[u8]) -> Result<Option<u64>, StoreError> {
    Ok(store.range(Table::Meta, from, 1)?.first().and_then(|(key, _)| number_of(key)))
}

/// The number behind the last row's: the least that has no row at or behind it, by bisection.
fn next(store: &Store) -> Result<u64, StoreError> {
    let (mut low, mut high) = (0, u64::MAX);
    while low < high {
        let middle = low + (high - low) / 2;
        match first(store, &row_key(middle))? {
            Some(number) => low = number.saturating_add(1),
            None => high = middle,
        }
    }
    Ok(low)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(time: u64) -> Vec<u8> {
        format!(r#"{{"time":{time},"model":"m","input_units":1,"output_units":2,"key":"k"}}"#).into_bytes()
    }

    #[tokio::test]
    async fn the_oldest_go_first_and_a_restart_goes_on() {
        let folder = tempfile::tempdir().expect("a folder");
        let store = Arc::new(Store::open(folder.path().join("node.redb")).expect("a store"));
        let mut batch = Batch::new();
        // One row too many at the front, one that nobody can read, neighbours on both sides.
        batch.put(Table::Meta, b"cash".to_vec(), *b"x").put(Table::Meta, b"leaf/".to_vec(), *b"x");
        batch.put(Table::Meta, row_key(6), row(6)).put(Table::Meta, row_key(7), row(7));
        batch.put(Table::Meta, row_key(8), *b"[]").put(Table::Meta, row_key(6 + JOBS_MAX), row(9));
        store.commit(batch).expect("kept");
        let writer = Writer::start(Arc::clone(&store)).expect("a thread");
        let open = || DayLog::open(Arc::clone(&store), writer.clone()).expect("a log");
        let times = |log: &DayLog, query: DayQuery, max| {
            let (jobs, next) = log.read(&query, max).expect("readable");
            (jobs.iter().map(|job| job.time).collect::<Vec<_>>(), next)
        };
        let log = open();
        let all = DayQuery::default();
        assert_eq!(times(&log, all, 9), (vec![7, 9], None), "row 6 is one too many");
        assert_eq!(times(&log, all, 1), (vec![7], Some(8)));
        assert_eq!(times(&log, DayQuery { from: 8, ..all }, 1), (vec![9], None));
        assert_eq!(times(&log, DayQuery { since_ms: Some(8), ..all }, 9), (vec![9], None));
        assert_eq!(times(&log, DayQuery { until_ms: Some(9), ..all }, 9), (vec![7], None));

        let key: KeyId = "00000001".parse().expect("an id");
        let job = |number: u8| JobId([number; 16]);
        log.begin(job(1), key, Some("talk"), "m", 30).ended(4, Credits::new(70));
        writer.queue(Vec::new()).wait().await.expect("written");
        assert_eq!(first(&store, ROW).expect("readable"), Some(8), "row 7 made room");
        let log = open();
        log.begin(job(2), key, None, "m", 50).ended(6, Credits::new(80));
        writer.queue(Vec::new()).wait().await.expect("written");
        let costs = |key: Option<&str>, job: Option<JobId>, max| {
            let (key, job) = (key.map(|key| key.parse().expect("an id")), job.map(|job| job.to_string()));
            let spent = log.spending(&all, key, job.as_deref(), max).expect("readable");
            spent.iter().map(|spent| spent.cost_micro).collect::<Vec<_>>()
        };
        assert_eq!(costs(Some("00000001"), None, 9), [70, 80]);
        assert_eq!(costs(Some("00000001"), None, 1), [70]);
        assert_eq!(costs(Some("00000002"), None, 9), [0; 0]);
        assert_eq!(costs(None, Some(job(2)), 9), [80]);
        assert_eq!(costs(None, None, 9), [0, 70, 80], "rows from before have no cost");
        let (jobs, _) = log.read(&DayQuery { from: 7 + JOBS_MAX, ..all }, 9).expect("readable");
        let sizes: Vec<_> = jobs.iter().map(|job| (job.input_units, job.output_units, job.session.is_some())).collect();
        assert_eq!(sizes, [(30, 4, true), (50, 6, false)]);

        DayLog::clear(&store).expect("cleared");
        assert_eq!(store.range(Table::Meta, &[], 9).expect("readable").len(), 2, "the neighbours stay");
    }

    #[test]
    fn names_are_hashed_under_the_nodes_secret() {
        let folder = tempfile::tempdir().expect("a folder");
        let log = |name: &str| {
            let store = Arc::new(Store::open(folder.path().join(name)).expect("a store"));
            let writer = Writer::start(Arc::clone(&store)).expect("a thread");
            DayLog::open(store, writer).expect("a log")
        };
        let (here, there) = (log("a"), log("b"));
        let key = |number: u8| format!("0000000{number}").parse::<KeyId>().expect("an id");
        let names = |log: &DayLog, number, session| {
            let job = log.begin(JobId([0; 16]), key(number), session, "m", 1).job.day;
            (job.key, job.session)
        };
        let first = names(&here, 1, Some("talk"));
        assert_eq!(first, names(&here, 1, Some("talk")));
        assert_eq!(first.0.len(), NAME_CHARS);
        assert_ne!(first.0, names(&here, 2, None).0);
        assert_ne!(first.1, names(&here, 2, Some("talk")).1, "another key's conversation is another one");
        assert_ne!(first.0, names(&there, 1, None).0, "another node's secret");
    }
}
