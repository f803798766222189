//! Keys and budgets in this node's own store: decided in memory, written behind by one thread.
//! Invariants: changes are queued for the disk in the order they were made, under the lock they were made under. No request
//! waits for the disk, and no money is lost in a kill: what a job may cost is kept with the first promise to pay for it, what it
//! did cost before anyone is told, and both go in the same commit that charges it.

use super::super::error::ApiError;
use super::super::keys::KeysError;
use super::super::writer::{Change, WriteFailed, Writer};
use super::{Held, Holder, Identity, KeyId, ProjectId, Record, Refusal, Work, decide, now_ms};
use super::{store_unavailable, too_many, unknown};
use crate::gateway::budget::{Amount, Limits, Rates, Tally};
use crate::records::Aside;
use spillway_ledger::store::{Batch, Store, Table};
use spillway_ledger::{Credits, JobId};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// Rows read at a time.
const PAGE: usize = 1024;
/// Budgets' rows of versions before windows: this and the key's id; the value is micro-credits, big-endian.
const SPENT: u8 = b's';
/// Budgets' rows of tallies: this, the holder's kind, its id; the value is JSON.
const TALLY: u8 = b't';
/// Budgets' rows of reservations: this and the job's id; the value is the key's id, then the project's if there is one.
const RESERVED: u8 = b'r';
/// What projects' rows begin with in the table of keys, whose own rows are four bytes.
const PROJECT: u8 = b'p';

/// One node's keys and projects.
#[derive(Clone)]
pub struct Embedded(Arc<Inner>);

struct Inner {
    held: Mutex<BTreeMap<Holder, Held>>,
    holders_max: usize,
    writer: Writer,
}

impl std::fmt::Debug for Embedded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Embedded").field("count", &self.held().len()).finish()
    }
}

impl Embedded {
    /// Reads the keys, of which there may be `holders_max`, and as many projects. Reservations that a crash left open are settled to
    /// what `promised` says: what the job did cost, or may have cost by the vouchers that were signed for it.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn open(
        store: &Store,
        writer: Writer,
        holders_max: usize,
        promised: impl Fn(JobId) -> Option<Credits>,
    ) -> Result<Self, KeysError> {
        let mut held = BTreeMap::new();
        each_row(store, Table::Keys, |key, value| {
            let damaged = || KeysError::Damaged(hex::encode(key));
            let record: Record = serde_json::from_slice(value).map_err(|_| damaged())?;
            let held_now = Held { record: Arc::new(record), tally: Tally::default() };
            held.insert(holder_of(key).ok_or_else(damaged)?, held_now);
            Ok(())
        })?;
        let now_ms = now_ms();
        let mut open = Vec::new();
        each_row(store, Table::Budgets, |key, value| {
            let damaged = || KeysError::Damaged(hex::encode(key));
            match key {
                [SPENT, id @ ..] => {
                    let id = Holder::Key(KeyId(id.try_into().map_err(|_| damaged())?));
                    let spent = u64::from_be_bytes(value.try_into().map_err(|_| damaged())?);
                    if let Some(held) = held.get_mut(&id) {
                        held.tally.charge(Credits::new(spent), now_ms);
                    }
                }
                [TALLY, holder @ ..] => {
                    let tally: Tally = serde_json::from_slice(value).map_err(|_| damaged())?;
                    if let Some(held) = held.get_mut(&holder_of(holder).ok_or_else(damaged)?) {
                        held.tally = tally.at_rest();
                    }
                }
                [RESERVED, job @ ..] => {
                    let job = JobId(job.try_into().map_err(|_| damaged())?);
                    open.push((job, owners(value).ok_or_else(damaged)?));
                }
                _ => return Err(damaged()),
            }
            Ok(())
        })?;
        let mut batch = Batch::new();
        for (job, (key, project)) in open {
            let cost = promised(job).unwrap_or_default();
            for holder in holders(key, project) {
                if let Some(held) = held.get_mut(&holder) {
                    held.tally.charge(cost, now_ms);
                    put_tally(&mut batch, holder, &held.tally);
                }
            }
            batch.delete(Table::Budgets, reserved_key(job));
            batch.delete(Table::Jobs, job.0);
            tracing::info!(job = %job, key = %key, cost_micro = cost.micro(), "settled what a crash left open");
        }
        if !batch.is_empty() {
            store.commit(batch)?;
        }
        Ok(Self(Arc::new(Inner { held: Mutex::new(held), holders_max, writer })))
    }

    pub(super) async fn insert(
        &self,
        mut holder: Holder,
        make: impl FnOnce(Holder) -> Record + Send,
    ) -> Result<Holder, ApiError> {
        let (evicted, written) = {
            let mut held = self.held();
            let mut changes = Vec::new();
            let first = holder.with_bytes([0; 4]);
            let last = holder.with_bytes([0xff; 4]);
            let mut evicted = None;
            if held.range(first..=last).count() >= self.0.holders_max {
                // The oldest that is void and has nothing under way makes room.
                let void = |held: &Held| held.record.revoked && held.tally.running() == 0;
                let oldest = held.range(first..=last).filter(|(_, held)| void(held));
                let oldest = oldest.min_by_key(|(_, held)| held.record.created_ms).map(|(holder, _)| *holder);
                let oldest = oldest.ok_or_else(|| too_many(holder, self.0.holders_max))?;
                changes.push(Change { table: Table::Keys, key: record_key(oldest), value: None });
                changes.push(Change { table: Table::Budgets, key: tally_key(oldest), value: None });
                evicted = held.remove(&oldest).map(|held| (oldest, held));
            }
            while held.contains_key(&holder) {
                holder = holder.with_bytes(u32::from_be_bytes(holder.bytes()).wrapping_add(1).to_be_bytes());
            }
            let record = make(holder);
            changes.push(record_change(holder, &record));
            held.insert(holder, Held { record: Arc::new(record), tally: Tally::default() });
            (evicted, self.0.writer.queue(changes))
        };
        if written.wait().await.is_err() {
            let mut held = self.held();
            held.remove(&holder);
            held.extend(evicted);
            return Err(store_unavailable());
        }
        Ok(holder)
    }

    pub(super) async fn change(
        &self,
        holder: Holder,
        change: impl FnOnce(&mut Record) -> Result<(), ApiError> + Send,
    ) -> Result<Held, ApiError> {
        let (after, written) = {
            let mut held = self.held();
            let held = held.get_mut(&holder).ok_or_else(|| unknown(holder))?;
            let mut record = (*held.record).clone();
            change(&mut record)?;
            let written = self.0.writer.queue(vec![record_change(holder, &record)]);
            held.record = Arc::new(record);
            (held.clone(), written)
        };
        // A change that could not be written holds until the node stops, which it soon does without a disk.
        written.wait().await.map_err(|WriteFailed| store_unavailable())?;
        Ok(after)
    }

    pub(super) fn one(&self, holder: Holder) -> Option<Held> {
        self.held().get(&holder).cloned()
    }

    pub(super) fn all(&self, like: Holder) -> Vec<(Holder, Held)> {
        let held = self.held();
        let kind = held.range(like.with_bytes([0; 4])..=like.with_bytes([0xff; 4]));
        kind.map(|(holder, held)| (*holder, held.clone())).collect()
    }

    pub(super) fn identify(&self, id: KeyId) -> Option<Identity> {
        let held = self.held();
        let key = Arc::clone(&held.get(&Holder::Key(id))?.record);
        let project = key.terms.project.and_then(|id| held.get(&Holder::Project(id)));
        let project = project.map(|held| Arc::clone(&held.record));
        Some(Identity { key, project })
    }

    pub(super) fn reserve(&self, work: &Work, now_ms: u64) -> Result<Rates, Refusal> {
        let mut held = self.held();
        // Tallies are small and are written back only if the job may begin.
        let mut key = held.get(&Holder::Key(work.key)).cloned().ok_or(Refusal::Unknown)?;
        let project_holder = work.project.map(Holder::Project);
        let mut project = project_holder.and_then(|holder| held.get(&holder).cloned());
        let rates = decide(
            work,
            (&*key.record, &mut key.tally),
            project.as_mut().map(|held| (&*held.record, &mut held.tally)),
            now_ms,
        )?;
        if let Some(kept) = held.get_mut(&Holder::Key(work.key)) {
            kept.tally = key.tally;
        }
        if let (Some(holder), Some(project)) = (project_holder, project)
            && let Some(kept) = held.get_mut(&holder)
        {
            kept.tally = project.tally;
        }
        Ok(rates)
    }

    pub(super) fn settle(&self, work: &Work, used: Amount, kept_with: &[JobId], now_ms: u64) {
        let mut held = self.held();
        let mut changes = Vec::with_capacity(4);
        if !kept_with.is_empty() {
            changes.push(Change { table: Table::Budgets, key: reserved_key(work.job), value: None });
        }
        // With the reservation goes what the market noted of the cost for the case of a crash.
        changes.extend(kept_with.iter().map(|job| Change { table: Table::Jobs, key: job.0.to_vec(), value: None }));
        for holder in holders(work.key, work.project) {
            let Some(held) = held.get_mut(&holder) else { continue };
            let limits = held.record.terms.limits();
            held.tally.settle(&limits, work.most, used, now_ms);
            if !used.money.is_zero() || limits != Limits::default() {
                changes.push(Change {
                    table: Table::Budgets,
                    key: tally_key(holder),
                    value: Some(tally_row(&held.tally)),
                });
            }
        }
        // Queued under the lock, so that an older tally never overwrites a newer one.
        if !changes.is_empty() {
            self.0.writer.note(changes);
        }
    }

    pub(super) async fn flush(&self) -> Result<(), WriteFailed> {
        self.0.writer.queue(Vec::new()).wait().await
    }

    fn held(&self) -> MutexGuard<'_, BTreeMap<Holder, Held>> {
        self.0.held.lock().expect("nothing panics while it holds the keys")
    }
}

fn holders(key: KeyId, project: Option<ProjectId>) -> impl Iterator<Item = Holder> {
    std::iter::once(Holder::Key(key)).chain(project.map(Holder::Project))
}

/// The row by which a start finds whose job it was.
pub(super) fn aside(work: &Work) -> Aside {
    let mut owners = Vec::with_capacity(8);
    for holder in holders(work.key, work.project) {
        owners.extend_from_slice(&holder.bytes());
    }
    Aside::new(Table::Budgets, reserved_key(work.job), owners)
}

/// A key's row is its id; a project's has a letter before.
fn record_key(holder: Holder) -> Vec<u8> {
    match holder {
        Holder::Key(KeyId(id)) => id.to_vec(),
        Holder::Project(ProjectId(id)) => [&[PROJECT], &id[..]].concat(),
    }
}

fn holder_of(key: &[u8]) -> Option<Holder> {
    match key {
        [PROJECT, id @ ..] if id.len() == 4 => Some(Holder::Project(ProjectId(id.try_into().ok()?))),
        id => Some(Holder::Key(KeyId(id.try_into().ok()?))),
    }
}

fn record_change(holder: Holder, record: &Record) -> Change {
    let value = serde_json::to_vec(record).expect("a record has string keys only");
    Change { table: Table::Keys, key: record_key(holder), value: Some(value) }
}

fn tally_key(holder: Holder) -> Vec<u8> {
    [&[TALLY], &record_key(holder)[..]].concat()
}

fn tally_row(tally: &Tally) -> Vec<u8> {
    serde_json::to_vec(tally).expect("numbers are JSON")
}

fn put_tally(batch: &mut Batch, holder: Holder, tally: &Tally) {
    batch.put(Table::Budgets, tally_key(holder), tally_row(tally));
    if let Holder::Key(id) = holder {
        batch.delete(Table::Budgets, [&[SPENT], &id.0[..]].concat());
    }
}

fn reserved_key(job: JobId) -> Vec<u8> {
    [&[RESERVED], &job.0[..]].concat()
}

/// The key and project of a reservation's row.
fn owners(value: &[u8]) -> Option<(KeyId, Option<ProjectId>)> {
    let (key, project) = value.split_first_chunk::<4>()?;
    let project = if project.is_empty() { None } else { Some(ProjectId(project.try_into().ok()?)) };
    Some((KeyId(*key), project))
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
