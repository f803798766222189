//! The one writer of a gateway's reservations and settlements in the shared store: many to a transaction.
//! Invariant: a settlement is tried until it is written; a reservation whose asker is gone, or of which nobody knows
//! whether it was written, is freed.

use super::super::super::writer::{Change, Writer};
use super::super::{Holder, KeyId, ProjectId, Refusal, Work, decide};
use super::{held_of, json, name_of};
use crate::gateway::budget::{Amount, Rates};
use spillway_ledger::store::Table;
use spillway_ledger::{Credits, JobId};
use sqlx::Row;
use sqlx::postgres::{PgConnection, PgPool, PgRow};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Most operations in one transaction.
const BATCH_MAX: usize = 256;
/// How long one transaction may take.
const BATCH_WAIT: Duration = Duration::from_secs(5);
/// How long after a failure it is tried again, at first and at most; doubling.
const RETRY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));

type Granted = Result<(Rates, Unused), Refusal>;

/// What is to be done.
pub(super) enum Op {
    /// Set something aside.
    Reserve { work: Work, unused: Unused, reply: oneshot::Sender<Granted> },
    /// Charge what was used, free the rest.
    Settle { work: Work, used: Amount },
    /// Charge in full what a dead gateway left.
    Charge { work: Work },
    /// Tell once all before it is written.
    Flush(oneshot::Sender<()>),
}

/// Frees what was set aside when it is dropped, unless it was said to be kept.
pub(super) struct Unused {
    ops: mpsc::UnboundedSender<Op>,
    work: Option<Work>,
}

impl Unused {
    pub(super) const fn new(ops: mpsc::UnboundedSender<Op>, work: Work) -> Self {
        Self { ops, work: Some(work) }
    }

    /// It is used: somebody else settles it.
    pub(super) fn keep(mut self) {
        self.work = None;
    }
}

impl Drop for Unused {
    fn drop(&mut self) {
        if let Some(work) = self.work.take() {
            let _ = self.ops.send(Op::Settle { work, used: Amount::default() });
        }
    }
}

/// Works until the queue ends.
pub(super) async fn work(pool: PgPool, owner: [u8; 16], writer: Writer, mut queue: mpsc::UnboundedReceiver<Op>) {
    let (mut pending, mut wait) = (Vec::new(), RETRY.0);
    loop {
        if pending.is_empty() {
            let Some(op) = queue.recv().await else { return };
            pending.push(op);
        }
        while pending.len() < BATCH_MAX
            && let Ok(op) = queue.try_recv()
        {
            pending.push(op);
        }
        let ran = tokio::time::timeout(BATCH_WAIT, run(&pool, &owner, &pending)).await;
        match ran.unwrap_or(Err(sqlx::Error::PoolTimedOut)) {
            Ok(decisions) => {
                wait = RETRY.0;
                deliver(pending.drain(..), decisions, &writer);
            }
            Err(error) => {
                tracing::error!(%error, "the shared store does not answer");
                pending = pending.into_iter().filter_map(after_failure).collect();
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY.1);
            }
        }
    }
}

/// Tells those who wait, in order; `decisions` are those of the reservations.
fn deliver(ops: impl Iterator<Item = Op>, decisions: Vec<Result<Rates, Refusal>>, writer: &Writer) {
    let mut decisions = decisions.into_iter();
    let mut settled = Vec::new();
    for op in ops {
        match op {
            Op::Reserve { unused, reply, .. } => {
                let decision = match decisions.next() {
                    Some(Ok(rates)) => Ok((rates, unused)),
                    Some(Err(refusal)) => {
                        unused.keep();
                        Err(refusal)
                    }
                    // Dropping `unused` frees what nobody decided.
                    None => Err(Refusal::Unreachable),
                };
                // If nobody waits any more, `unused` goes with the answer and frees what was set aside.
                let _ = reply.send(decision);
            }
            // With the reservation goes what the market noted of the job's cost for the case of a crash.
            Op::Settle { work, .. } => {
                settled.push(Change { table: Table::Jobs, key: work.job.0.to_vec(), value: None });
            }
            Op::Charge { .. } => {}
            Op::Flush(done) => {
                let _ = done.send(());
            }
        }
    }
    if !settled.is_empty() {
        writer.note(settled);
    }
}

/// What is left to do of an operation that failed. Whether it was written is not known: each may be done twice.
fn after_failure(op: Op) -> Option<Op> {
    match op {
        Op::Reserve { work, unused, reply } => {
            unused.keep();
            let _ = reply.send(Err(Refusal::Unreachable));
            Some(Op::Settle { work, used: Amount::default() })
        }
        // The next look at the leases finds it again.
        Op::Charge { .. } => None,
        Op::Settle { .. } | Op::Flush(_) => Some(op),
    }
}

fn to_sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn from_sql(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

fn job_bytes(job: JobId) -> Vec<u8> {
    job.0.to_vec()
}

fn jobs_of<T>(by_job: &BTreeMap<JobId, T>) -> Vec<Vec<u8>> {
    by_job.keys().map(|job| job_bytes(*job)).collect()
}

/// A reservation's row as work.
fn work_of(row: &PgRow) -> Result<Option<Work>, sqlx::Error> {
    let job = row.try_get::<&[u8], _>("job")?.try_into().ok();
    let key = row.try_get::<&[u8], _>("key")?.try_into().ok();
    let project = row.try_get::<Option<&[u8]>, _>("project")?.and_then(|id| id.try_into().ok());
    let money = Credits::new(from_sql(row.try_get("money")?));
    let most = Amount { money, tokens: from_sql(row.try_get("tokens")?) };
    let (Some(job), Some(key)) = (job, key) else { return Ok(None) };
    Ok(Some(Work { job: JobId(job), key: KeyId(key), project: project.map(ProjectId), most }))
}

/// What a gateway has set aside.
pub(super) async fn owned(pool: &PgPool, owner: &[u8; 16]) -> Result<Vec<Work>, sqlx::Error> {
    let rows = sqlx::query("select job, key, project, money, tokens from spillway_reservations where owner = $1");
    let rows = rows.bind(&owner[..]).fetch_all(pool).await?;
    Ok(rows.iter().map(work_of).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

/// What gateways have set aside whose lease ran out, at most `max`, and that is not charged yet.
pub(super) async fn orphaned(pool: &PgPool, max: usize) -> Result<Vec<Work>, sqlx::Error> {
    let rows = sqlx::query(
        "select job, key, project, money, tokens from spillway_reservations r where not charged and not exists
           (select 1 from spillway_gateways g where g.owner = r.owner and g.alive_until > now()) limit $1",
    );
    let rows = rows.bind(to_sql(max as u64)).fetch_all(pool).await?;
    Ok(rows.iter().map(work_of).collect::<Result<Vec<_>, _>>()?.into_iter().flatten().collect())
}

fn holders(work: &Work) -> impl Iterator<Item = Holder> + use<> {
    std::iter::once(Holder::Key(work.key)).chain(work.project.map(Holder::Project))
}

/// Does all of `ops` in one transaction; returns the decisions on the reservations among them, in order.
async fn run(pool: &PgPool, owner: &[u8; 16], ops: &[Op]) -> Result<Vec<Result<Rates, Refusal>>, sqlx::Error> {
    let (mut reserve, mut settle, mut charge) = (Vec::new(), BTreeMap::new(), BTreeMap::new());
    let mut names = BTreeSet::new();
    for op in ops {
        let work = match op {
            Op::Reserve { work, .. } => {
                reserve.push(*work);
                work
            }
            Op::Settle { work, used } => {
                settle.insert(work.job, (*work, *used));
                work
            }
            Op::Charge { work } => {
                charge.insert(work.job, *work);
                work
            }
            Op::Flush(_) => continue,
        };
        names.extend(holders(work).map(name_of));
    }
    if names.is_empty() {
        return Ok(Vec::new());
    }
    let mut transaction = pool.begin().await?;
    // Every gateway locks in this order, so none waits for another that waits for it.
    let rows = sqlx::query(
        "select holder, record::text, tally::text, (extract(epoch from clock_timestamp()) * 1000)::bigint as now_ms
           from spillway_holders where holder = any($1) order by holder for update",
    );
    let rows = rows.bind(names.into_iter().collect::<Vec<_>>()).fetch_all(&mut *transaction).await?;
    let (mut held, mut now_ms) = (BTreeMap::new(), 0);
    for row in &rows {
        // The database's clock is the one that all gateways share.
        now_ms = now_ms.max(from_sql(row.try_get("now_ms")?));
        held.extend(held_of(row)?);
    }
    let before: BTreeMap<_, _> = held.iter().map(|(holder, held)| (*holder, held.tally)).collect();

    // Money that comes free first: who asks in the same breath may have it.
    for (job, charged) in ended(&mut transaction, jobs_of(&settle)).await? {
        let Some((work, used)) = settle.get(&job) else { continue };
        for holder in holders(work) {
            let Some(held) = held.get_mut(&holder) else { continue };
            if charged {
                held.tally.refund(work.most.money);
                held.tally.charge(used.money, now_ms);
            } else {
                held.tally.settle(&held.record.terms.limits(), work.most, *used, now_ms);
            }
        }
    }
    for job in charged(&mut transaction, jobs_of(&charge)).await? {
        let Some(work) = charge.get(&job) else { continue };
        for holder in holders(work) {
            let Some(held) = held.get_mut(&holder) else { continue };
            held.tally.settle(&held.record.terms.limits(), work.most, work.most, now_ms);
        }
    }
    let mut granted = Vec::new();
    let mut decisions = Vec::with_capacity(reserve.len());
    for work in &reserve {
        let Some(mut key) = held.get(&Holder::Key(work.key)).cloned() else {
            decisions.push(Err(Refusal::Unknown));
            continue;
        };
        let project_holder = work.project.map(Holder::Project);
        let mut project = project_holder.and_then(|holder| held.get(&holder).cloned());
        let others = project.as_mut().map(|held| (&*held.record, &mut held.tally));
        let decision = decide(work, (&*key.record, &mut key.tally), others, now_ms);
        if decision.is_ok() {
            granted.push(*work);
            held.insert(Holder::Key(work.key), key);
            held.extend(project_holder.zip(project));
        }
        decisions.push(decision);
    }
    insert(&mut transaction, owner, &granted).await?;
    let changed: Vec<_> = held.iter().filter(|(holder, held)| before.get(holder) != Some(&held.tally)).collect();
    if !changed.is_empty() {
        sqlx::query(
            "update spillway_holders h set tally = new.tally::jsonb
               from unnest($1::bytea[], $2::text[]) as new(holder, tally) where h.holder = new.holder",
        )
        .bind(changed.iter().map(|(holder, _)| name_of(**holder)).collect::<Vec<_>>())
        .bind(changed.iter().map(|(_, held)| json(&held.tally)).collect::<Vec<_>>())
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(decisions)
}

/// Removes reservations; returns those there were, and whether they had been charged in full.
async fn ended(connection: &mut PgConnection, jobs: Vec<Vec<u8>>) -> Result<Vec<(JobId, bool)>, sqlx::Error> {
    let mut ended = Vec::new();
    if jobs.is_empty() {
        return Ok(ended);
    }
    let rows = sqlx::query("delete from spillway_reservations where job = any($1) returning job, charged");
    for row in rows.bind(jobs).fetch_all(connection).await? {
        if let Ok(job) = row.try_get::<&[u8], _>("job")?.try_into() {
            ended.push((JobId(job), row.try_get("charged")?));
        }
    }
    Ok(ended)
}

/// Marks reservations as charged in full; returns those that were not yet.
async fn charged(connection: &mut PgConnection, jobs: Vec<Vec<u8>>) -> Result<Vec<JobId>, sqlx::Error> {
    let mut charged = Vec::new();
    if jobs.is_empty() {
        return Ok(charged);
    }
    let rows = sqlx::query(
        "update spillway_reservations set charged = true where job = any($1) and not charged returning job",
    );
    for row in rows.bind(jobs).fetch_all(connection).await? {
        charged.extend(row.try_get::<&[u8], _>("job")?.try_into().ok().map(JobId));
    }
    Ok(charged)
}

async fn insert(connection: &mut PgConnection, owner: &[u8; 16], works: &[Work]) -> Result<(), sqlx::Error> {
    if works.is_empty() {
        return Ok(());
    }
    sqlx::query(
        "insert into spillway_reservations (job, key, project, money, tokens, owner)
           select job, key, project, money, tokens, $6
           from unnest($1::bytea[], $2::bytea[], $3::bytea[], $4::bigint[], $5::bigint[])
             as new(job, key, project, money, tokens)",
    )
    .bind(works.iter().map(|work| job_bytes(work.job)).collect::<Vec<_>>())
    .bind(works.iter().map(|work| work.key.0.to_vec()).collect::<Vec<_>>())
    .bind(works.iter().map(|work| work.project.map(|id| id.0.to_vec())).collect::<Vec<_>>())
    .bind(works.iter().map(|work| to_sql(work.most.money.micro())).collect::<Vec<_>>())
    .bind(works.iter().map(|work| to_sql(work.most.tokens)).collect::<Vec<_>>())
    .bind(&owner[..])
    .execute(connection)
    .await
    .map(drop)
}
