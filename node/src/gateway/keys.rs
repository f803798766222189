//! API keys: who may ask, for which models, where, and within what budget.
//! Invariant: a secret is shown once and never stored; what a key has spent and reserved never exceeds its budget.

use super::budget::{Refused, Tally};
use super::error::ApiError;
use super::writer::{Change, WriteFailed, Writer};
use serde::{Deserialize, Serialize};
use spillway_ledger::store::{Batch, Store, Table};
use spillway_ledger::{Credits, Digest, JobId, Price, StoreError};
use spillway_protocol::Prefer;
use std::collections::HashMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard};
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// Most keys of one node.
pub const KEYS_MAX: usize = 10_000;
/// Longest name of a key, in bytes.
pub const NAME_BYTES_MAX: usize = 64;
/// Most models a key may list.
pub const MODELS_MAX: usize = 64;
/// What every secret begins with.
const PREFIX: &str = "sk-spillway-";
/// Separates this hash from every other use of blake3 here.
const DOMAIN: &str = "spillway/api-key/1";

/// Names a key; also the middle of its secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyId([u8; 4]);

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for KeyId {
    type Err = hex::FromHexError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut id = [0; 4];
        hex::decode_to_slice(text, &mut id).map(|()| Self(id))
    }
}

/// Where a key's jobs may run, as it is written in JSON.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PreferName {
    /// [`Prefer::OwnFirst`]
    #[default]
    OwnFirst,
    /// [`Prefer::Own`]
    Own,
    /// [`Prefer::Any`]
    Any,
}

impl From<PreferName> for Prefer {
    fn from(name: PreferName) -> Self {
        match name {
            PreferName::OwnFirst => Self::OwnFirst,
            PreferName::Own => Self::Own,
            PreferName::Any => Self::Any,
        }
    }
}

/// What a key allows: the body of `POST /admin/keys`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// What people call it.
    pub name: String,
    /// The most it may spend in all, in micro-credits; `None` sets no limit.
    #[serde(default)]
    pub budget_micro: Option<Credits>,
    /// Where its jobs may run.
    #[serde(default)]
    pub prefer: PreferName,
    /// The models it may use; `None` allows all.
    #[serde(default)]
    pub models: Option<Vec<String>>,
    /// The most it pays per million units, in micro-credits, if that is less than the node's own limit.
    #[serde(default)]
    pub price_max: Option<Price>,
    /// The most jobs under way at once; `None` sets no limit.
    #[serde(default)]
    pub concurrency: Option<u32>,
    /// The time to first text that its jobs ask for, in milliseconds, where a request does not say: the cheapest place that
    /// meets it is taken. `None` weighs time against price.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ms: Option<u32>,
}

impl Terms {
    fn check(&self) -> Result<(), ApiError> {
        let bad = |field: &str, why: String| {
            Err(ApiError {
                param: Some(field.into()),
                ..ApiError::new(400, "invalid_request", format!("{field}: {why}"))
            })
        };
        if self.name.is_empty() || self.name.len() > NAME_BYTES_MAX || self.name.chars().any(char::is_control) {
            return bad("name", format!("empty, over {NAME_BYTES_MAX} bytes, or with control characters"));
        }
        if let Some(models) = &self.models {
            let too_long = models.iter().any(|model| model.is_empty() || model.len() > 256);
            if models.is_empty() || models.len() > MODELS_MAX || too_long {
                return bad("models", format!("not 1 to {MODELS_MAX} names of 1 to 256 bytes"));
            }
        }
        if self.concurrency == Some(0) {
            return bad("concurrency", "0 would allow nothing; revoke the key instead".into());
        }
        if self.target_ms == Some(0) {
            return bad("target_ms", "nobody answers in no time".into());
        }
        Ok(())
    }
}

/// A key as it is stored; its secret is not in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Stored {
    hash: Digest,
    revoked: bool,
    terms: Terms,
}

/// A key as operators see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct KeyView {
    /// Its id, eight hexadecimal digits.
    pub id: String,
    /// What it allows.
    #[serde(flatten)]
    pub terms: Terms,
    /// What it spent, in micro-credits.
    pub spent_micro: Credits,
    /// What jobs under way may still spend, in micro-credits.
    pub reserved_micro: Credits,
    /// Jobs under way.
    pub running: u32,
    /// Whether it is void.
    pub revoked: bool,
}

/// Who asks: a key that was presented and is good.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The key.
    pub id: KeyId,
    /// What it allows.
    pub terms: Arc<Terms>,
}

struct Entry {
    hash: Digest,
    revoked: bool,
    terms: Arc<Terms>,
    tally: Tally,
}

/// Every key of the node.
#[derive(Clone)]
pub struct Keys(Arc<Inner>);

struct Inner {
    entries: Mutex<HashMap<KeyId, Entry>>,
    writer: Writer,
}

impl fmt::Debug for Keys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Keys").field("count", &self.entries().len()).finish()
    }
}

/// Why the keys cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum KeysError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A row is not what was written.
    #[error("the row of key {0} is damaged")]
    Damaged(String),
    /// No thread for writing.
    #[error("no thread for writing: {0}")]
    Thread(#[from] std::io::Error),
}

/// Rows read at a time.
const PAGE: usize = 1024;
/// Budgets' rows of what a key spent: this and the key's id; the value is micro-credits, big-endian.
const SPENT: u8 = b's';
/// Budgets' rows of reservations: this and the job's id; the value is the key's id.
const RESERVED: u8 = b'r';

impl Keys {
    /// Reads the keys. Reservations that a crash left open are settled to what `promised` says the job may have cost by the
    /// vouchers that were signed for it: nothing if there were none.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn open(store: Arc<Store>, promised: impl Fn(JobId) -> Option<Credits>) -> Result<Self, KeysError> {
        let mut entries = HashMap::new();
        each_row(&store, Table::Keys, |key, value| {
            let id = KeyId(key.try_into().map_err(|_| KeysError::Damaged(hex::encode(key)))?);
            let stored: Stored = serde_json::from_slice(value).map_err(|_| KeysError::Damaged(hex::encode(key)))?;
            let tally = Tally { budget: stored.terms.budget_micro, ..Tally::default() };
            let (hash, revoked, terms) = (stored.hash, stored.revoked, Arc::new(stored.terms));
            entries.insert(id, Entry { hash, revoked, terms, tally });
            Ok(())
        })?;
        let mut open = Vec::new();
        each_row(&store, Table::Budgets, |key, value| {
            let damaged = || KeysError::Damaged(hex::encode(key));
            match key {
                [SPENT, id @ ..] => {
                    let id = KeyId(id.try_into().map_err(|_| damaged())?);
                    let spent = u64::from_be_bytes(value.try_into().map_err(|_| damaged())?);
                    if let Some(entry) = entries.get_mut(&id) {
                        entry.tally.spent = Credits::new(spent);
                    }
                }
                [RESERVED, job @ ..] => {
                    let job = JobId(job.try_into().map_err(|_| damaged())?);
                    open.push((job, KeyId(value.try_into().map_err(|_| damaged())?)));
                }
                _ => return Err(damaged()),
            }
            Ok(())
        })?;
        let mut batch = Batch::new();
        for (job, id) in open {
            let cost = promised(job).unwrap_or_default();
            if let Some(entry) = entries.get_mut(&id) {
                entry.tally.charge(cost);
                batch.put(Table::Budgets, spent_key(id), entry.tally.spent.micro().to_be_bytes());
            }
            batch.delete(Table::Budgets, reserved_key(job));
            batch.delete(Table::Jobs, job.0);
            tracing::info!(job = %job, key = %id, cost_micro = cost.micro(), "settled what a crash left open");
        }
        if !batch.is_empty() {
            store.commit(batch)?;
        }
        let writer = Writer::start(store)?;
        Ok(Self(Arc::new(Inner { entries: Mutex::new(entries), writer })))
    }

    /// Makes a key; it is durable when this returns. The secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// 400 naming the field; 409 if there are [`KEYS_MAX`] keys; 500 if it cannot be written.
    pub async fn create(&self, terms: Terms) -> Result<(KeyView, Zeroizing<String>), ApiError> {
        terms.check()?;
        let mut random = Zeroizing::new([0; 20]);
        getrandom::fill(&mut *random).map_err(|_| ApiError::internal("the system gives no random bytes"))?;
        let secret_part = Zeroizing::new(hex::encode(&random[4..]));
        let (id, secret, view, written) = {
            let mut entries = self.entries();
            if entries.len() >= KEYS_MAX {
                return Err(ApiError::new(409, "too_many_keys", format!("there are {KEYS_MAX} keys already")));
            }
            let mut id = KeyId([random[0], random[1], random[2], random[3]]);
            while entries.contains_key(&id) {
                id = KeyId(u32::from_be_bytes(id.0).wrapping_add(1).to_be_bytes());
            }
            let secret = Zeroizing::new(format!("{PREFIX}{id}_{}", &*secret_part));
            let tally = Tally { budget: terms.budget_micro, ..Tally::default() };
            let entry = Entry { hash: hash(&secret), revoked: false, terms: Arc::new(terms), tally };
            let view = view(id, &entry);
            let written = self.0.writer.queue(vec![stored(id, &entry)]);
            entries.insert(id, entry);
            (id, secret, view, written)
        };
        if written.wait().await.is_err() {
            self.entries().remove(&id);
            return Err(not_written());
        }
        Ok((view, secret))
    }

    /// What writes this node's keys and budgets, for what else the gateway keeps.
    pub(super) fn writer(&self) -> Writer {
        self.0.writer.clone()
    }

    /// Every key, by id.
    #[must_use]
    pub fn list(&self) -> Vec<KeyView> {
        let mut views: Vec<_> = self.entries().iter().map(|(id, entry)| view(*id, entry)).collect();
        views.sort_by(|a, b| a.id.cmp(&b.id));
        views
    }

    /// Voids a key: at once for new requests, durable when this returns. Jobs under way go on.
    ///
    /// # Errors
    /// 404 if there is none; 500 if it cannot be written.
    pub async fn revoke(&self, id: KeyId) -> Result<(), ApiError> {
        let written = {
            let mut entries = self.entries();
            let Some(entry) = entries.get_mut(&id) else {
                return Err(ApiError::new(404, "key_not_found", format!("there is no key `{id}`")));
            };
            entry.revoked = true;
            self.0.writer.queue(vec![stored(id, entry)])
        };
        written.wait().await.map_err(|WriteFailed| not_written())
    }

    /// Whose secret this is.
    ///
    /// # Errors
    /// 401, whatever is wrong with it.
    pub fn authenticate(&self, secret: &str) -> Result<Caller, ApiError> {
        let id = secret.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).and_then(|(id, _)| id.parse().ok());
        let presented = hash(secret);
        let entries = self.entries();
        let entry = id.and_then(|id: KeyId| entries.get(&id).map(|entry| (id, entry)));
        // An unknown id costs the same comparison as a known one.
        let expected = entry.map_or(Digest::ZERO, |(_, entry)| entry.hash);
        let same = bool::from(presented.as_bytes().ct_eq(expected.as_bytes()));
        match entry {
            Some((id, entry)) if same && !entry.revoked => Ok(Caller { id, terms: Arc::clone(&entry.terms) }),
            Some(_) | None => Err(ApiError::unauthorized()),
        }
    }

    /// Sets `amount` aside for a job, before any work is done for it. If the key has a budget, the reservation is durable
    /// when this returns.
    ///
    /// # Errors
    /// 402 if it does not fit the budget; 429 if the key has too many jobs under way; 500 if it cannot be written.
    pub async fn reserve(&self, caller: &Caller, job: JobId, amount: Credits) -> Result<Reservation, ApiError> {
        let reservation = self.set_aside(caller.id, job, amount)?;
        let row = Change { table: Table::Budgets, key: reserved_key(job), value: Some(caller.id.0.to_vec()) };
        let written = self.0.writer.queue(vec![row]);
        if caller.terms.budget_micro.is_some() && written.wait().await.is_err() {
            reservation.settle(Credits::ZERO);
            return Err(not_written());
        }
        Ok(reservation)
    }

    /// Waits until all that was settled so far is durable; for a clean stop.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn flush(&self) -> Result<(), WriteFailed> {
        self.0.writer.queue(Vec::new()).wait().await
    }

    fn set_aside(&self, id: KeyId, job: JobId, amount: Credits) -> Result<Reservation, ApiError> {
        let mut entries = self.entries();
        let Some(entry) = entries.get_mut(&id) else { return Err(ApiError::unauthorized()) };
        if let Err(refused) = entry.tally.reserve(amount, entry.terms.concurrency) {
            return Err(match refused {
                Refused::Concurrency { limit } => ApiError::busy(
                    "concurrency_limit",
                    format!("the key has {limit} jobs under way, as many as it may"),
                    1,
                ),
                Refused::Budget { left } => ApiError::new(
                    402,
                    "budget_exceeded",
                    format!(
                        "the request could cost up to {amount} and the key has {left} left; a smaller `max_tokens` costs less"
                    ),
                ),
            });
        }
        Ok(Reservation { keys: self.clone(), key: id, job, amount: Some(amount) })
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<KeyId, Entry>> {
        self.0.entries.lock().expect("nothing panics while it holds the keys")
    }
}

/// Money set aside for one job.
///
/// Dropped without [`Self::settle`], it stays set aside until the node starts anew and learns from its records what the
/// job may have cost; that only happens when the market goes away under a job.
#[derive(Debug)]
pub struct Reservation {
    keys: Keys,
    key: KeyId,
    job: JobId,
    amount: Option<Credits>,
}

impl Reservation {
    /// The key it is of.
    #[must_use]
    pub const fn key(&self) -> KeyId {
        self.key
    }

    /// Charges what the job cost and frees the rest.
    pub fn settle(mut self, cost: Credits) {
        let Some(amount) = self.amount.take() else { return };
        let mut entries = self.keys.entries();
        // With the reservation goes what the market noted of the job's cost for the case of a crash.
        let mut changes = vec![
            Change { table: Table::Budgets, key: reserved_key(self.job), value: None },
            Change { table: Table::Jobs, key: self.job.0.to_vec(), value: None },
        ];
        if let Some(entry) = entries.get_mut(&self.key) {
            entry.tally.release(amount);
            entry.tally.charge(cost);
            if !cost.is_zero() {
                let spent = entry.tally.spent.micro().to_be_bytes().to_vec();
                changes.push(Change { table: Table::Budgets, key: spent_key(self.key), value: Some(spent) });
            }
        }
        // Queued under the lock, so that a smaller total never overwrites a larger one.
        drop(self.keys.0.writer.queue(changes));
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.amount.is_some()
            && let Some(entry) = self.keys.entries().get_mut(&self.key)
        {
            entry.tally.running = entry.tally.running.saturating_sub(1);
        }
    }
}

fn hash(secret: &str) -> Digest {
    Digest::of(DOMAIN, &[secret.as_bytes()])
}

fn view(id: KeyId, entry: &Entry) -> KeyView {
    KeyView {
        id: id.to_string(),
        terms: (*entry.terms).clone(),
        spent_micro: entry.tally.spent,
        reserved_micro: entry.tally.reserved,
        running: entry.tally.running,
        revoked: entry.revoked,
    }
}

fn stored(id: KeyId, entry: &Entry) -> Change {
    let row = Stored { hash: entry.hash, revoked: entry.revoked, terms: (*entry.terms).clone() };
    let value = serde_json::to_vec(&row).expect("a key has string fields only");
    Change { table: Table::Keys, key: id.0.to_vec(), value: Some(value) }
}

fn spent_key(id: KeyId) -> Vec<u8> {
    [&[SPENT], &id.0[..]].concat()
}

fn reserved_key(job: JobId) -> Vec<u8> {
    [&[RESERVED], &job.0[..]].concat()
}

fn not_written() -> ApiError {
    ApiError::internal("the node's store cannot be written")
}

fn each_row(
    store: &Store,
    table: Table,
    mut row: impl FnMut(&[u8], &[u8]) -> Result<(), KeysError>,
) -> Result<(), KeysError> {
    let mut from = Vec::new();
    loop {
        let rows = store.range(table, &from, PAGE)?;
        for (key, value) in &rows {
            row(key, value)?;
        }
        match rows.last() {
            // The next key after this one.
            Some((key, _)) if rows.len() == PAGE => from = [key, &[0][..]].concat(),
            Some(_) | None => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests;
