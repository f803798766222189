//! Keys and budgets in PostgreSQL, shared by several gateways.
//! Invariant: whoever changes a tally holds its row's lock and writes what [`decide`] made of it in the same transaction.
//! Reservations name the gateway that owes their end; that gateway's lease bounds how long they can stay.

mod batch;
mod lease;

use super::super::keys::KeysError;
use super::super::writer::Writer;
use super::{Held, Holder, Identity, KeyId, ProjectId, Record, Refusal, Unreachable, Work};
use super::{store_unavailable, too_many, unknown};
use crate::gateway::ApiError;
use crate::gateway::budget::{Amount, Rates};
use batch::{Op, Unused};
use spillway_ledger::store::{Batch, Store, Table};
use spillway_ledger::{Credits, JobId};
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions, PgRow};
use sqlx::{Postgres as Sql, Row, Transaction};
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

/// Where this gateway's name as an owner of reservations lies in [`Table::Meta`].
const OWNER: &[u8] = b"gateway/owner";
/// Connections of one gateway: one for requests' money, one for the lease, the rest for look-ups and operators.
const CONNECTIONS: u32 = 8;
/// Look-ups at once: a flood of unknown keys takes no connection that money needs.
const LOOKUPS: usize = 4;
/// How long a key's record is taken to be as it was; reservations look again in any case.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// Most keys remembered, known and unknown.
const KNOWN_MAX: usize = 20_000;
/// How long a connection is waited for.
const CONNECT_WAIT: Duration = Duration::from_secs(3);
/// How long a request waits for its money to be set aside.
const RESERVE_WAIT: Duration = Duration::from_secs(10);

/// How a gateway's lease is kept.
#[derive(Clone, Copy, Debug)]
pub struct Lease {
    /// How long it runs.
    pub lasts: Duration,
    /// How often it is renewed, and those of others looked at.
    pub every: Duration,
}

impl Default for Lease {
    fn default() -> Self {
        // Five renewals may fail before others charge this gateway's jobs in full.
        Self { lasts: Duration::from_secs(60), every: Duration::from_secs(10) }
    }
}

/// What a shared store is made of.
#[derive(Debug)]
pub struct Shared {
    /// Where it is.
    pub options: PgConnectOptions,
    /// How this gateway's lease is kept.
    pub lease: Lease,
}

/// The shared store; cheap to clone.
#[derive(Clone)]
pub struct Postgres(Arc<Inner>);

type Known = HashMap<KeyId, (Instant, Option<Identity>)>;

struct Inner {
    pool: PgPool,
    ops: mpsc::UnboundedSender<Op>,
    known: Mutex<Known>,
    lookups: Semaphore,
    holders_max: usize,
    tasks: [AbortHandle; 2],
}

impl Drop for Inner {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl std::fmt::Debug for Postgres {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Postgres").finish_non_exhaustive()
    }
}

/// A holder's row is named by a letter for its kind and its id.
fn name_of(holder: Holder) -> Vec<u8> {
    let kind = match holder {
        Holder::Key(_) => b'k',
        Holder::Project(_) => b'p',
    };
    [&[kind], &holder.bytes()[..]].concat()
}

fn holder_of(name: &[u8]) -> Option<Holder> {
    let (kind, id) = name.split_first()?;
    let id = id.try_into().ok()?;
    match kind {
        b'k' => Some(Holder::Key(KeyId(id))),
        b'p' => Some(Holder::Project(ProjectId(id))),
        _ => None,
    }
}

/// A row's holder, record and tally; `None` for what a later version wrote.
fn held_of(row: &PgRow) -> Result<Option<(Holder, Held)>, sqlx::Error> {
    let Some(holder) = holder_of(row.try_get::<&[u8], _>("holder")?) else { return Ok(None) };
    let record = serde_json::from_str(row.try_get::<&str, _>("record")?);
    let tally = serde_json::from_str(row.try_get::<&str, _>("tally")?);
    let (Ok(record), Ok(tally)) = (record, tally) else {
        tracing::error!(%holder, "its row in the shared store cannot be understood");
        return Ok(None);
    };
    Ok(Some((holder, Held { record: Arc::new(record), tally })))
}

fn json(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).expect("string keys only")
}

impl Postgres {
    /// Connects, makes the tables if there are none, settles what this gateway left open when it last stopped, and begins
    /// its lease. `local` is this node's own store: it keeps this gateway's name.
    ///
    /// # Errors
    /// If the database does not answer or does not let it, or the node's own store cannot be read.
    pub(in crate::gateway) async fn open(
        shared: Shared,
        local: &Store,
        writer: Writer,
        holders_max: usize,
        promised: impl Fn(JobId) -> Option<Credits> + Send,
    ) -> Result<Self, KeysError> {
        let owner = owner(local)?;
        // A commit need not wait for the database's disk: after a crash of the database, not of a gateway, the last half
        // second may be as if it had not been asked for.
        let options = shared.options.options([("synchronous_commit", "off")]);
        let pool = PgPoolOptions::new().max_connections(CONNECTIONS).acquire_timeout(CONNECT_WAIT);
        let pool = pool.connect_with(options).await?;
        schema(&pool).await?;
        lease::renew(&pool, &owner, shared.lease).await?;
        let (ops, queue) = mpsc::unbounded_channel();
        for work in batch::owned(&pool, &owner).await? {
            let money = promised(work.job).unwrap_or_default();
            tracing::info!(job = %work.job, key = %work.key, cost_micro = money.micro(), "settled what a crash left open");
            let used = Amount { money, tokens: work.most.tokens };
            ops.send(Op::Settle { work, used }).expect("the queue is open");
        }
        let (done, settled) = oneshot::channel();
        ops.send(Op::Flush(done)).expect("the queue is open");
        let working = tokio::spawn(batch::work(pool.clone(), owner, writer, queue));
        let leasing = tokio::spawn(lease::keep(pool.clone(), owner, shared.lease, ops.downgrade()));
        let tasks = [working.abort_handle(), leasing.abort_handle()];
        let inner = Inner { pool, ops, known: Mutex::default(), lookups: Semaphore::new(LOOKUPS), holders_max, tasks };
        let opened = Self(Arc::new(inner));
        settled.await.map_err(|_| KeysError::Shared(sqlx::Error::WorkerCrashed))?;
        Ok(opened)
    }

    pub(super) async fn insert(
        &self,
        holder: Holder,
        make: impl FnOnce(Holder) -> Record + Send,
    ) -> Result<Holder, ApiError> {
        self.try_insert(holder, make).await.map_err(failed)?
    }

    async fn try_insert(
        &self,
        mut holder: Holder,
        make: impl FnOnce(Holder) -> Record + Send,
    ) -> Result<Result<Holder, ApiError>, sqlx::Error> {
        let mut transaction = self.durable().await?;
        sqlx::query("select pg_advisory_xact_lock(hashtext('spillway_holders'))").execute(&mut *transaction).await?;
        let like = &name_of(holder)[..1];
        let count: i64 = sqlx::query("select count(*) from spillway_holders where substr(holder, 1, 1) = $1")
            .bind(like)
            .fetch_one(&mut *transaction)
            .await?
            .try_get(0)?;
        if usize::try_from(count).is_ok_and(|count| count >= self.0.holders_max) {
            // The oldest that is void and has nothing under way makes room.
            let evicted = sqlx::query(
                "delete from spillway_holders where holder = (
                   select holder from spillway_holders where substr(holder, 1, 1) = $1 and (record->>'revoked')::bool
                     and (tally->>'running')::bigint = 0
                   order by (record->>'created_ms')::bigint, holder limit 1)",
            );
            if evicted.bind(like).execute(&mut *transaction).await?.rows_affected() == 0 {
                return Ok(Err(too_many(holder, self.0.holders_max)));
            }
        }
        let taken = "select 1 from spillway_holders where holder = $1";
        while sqlx::query(taken).bind(name_of(holder)).fetch_optional(&mut *transaction).await?.is_some() {
            holder = holder.with_bytes(u32::from_be_bytes(holder.bytes()).wrapping_add(1).to_be_bytes());
        }
        sqlx::query("insert into spillway_holders (holder, record, tally) values ($1, $2::jsonb, $3::jsonb)")
            .bind(name_of(holder))
            .bind(json(&make(holder)))
            .bind(json(&super::Tally::default()))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        self.known().clear();
        Ok(Ok(holder))
    }

    pub(super) async fn change(
        &self,
        holder: Holder,
        change: impl FnOnce(&mut Record) -> Result<(), ApiError> + Send,
    ) -> Result<Held, ApiError> {
        self.try_change(holder, change).await.map_err(failed)?
    }

    async fn try_change(
        &self,
        holder: Holder,
        change: impl FnOnce(&mut Record) -> Result<(), ApiError> + Send,
    ) -> Result<Result<Held, ApiError>, sqlx::Error> {
        let mut transaction = self.durable().await?;
        let row =
            sqlx::query("select holder, record::text, tally::text from spillway_holders where holder = $1 for update");
        let row = row.bind(name_of(holder)).fetch_optional(&mut *transaction).await?;
        let Some((_, held)) = row.as_ref().map(held_of).transpose()?.flatten() else { return Ok(Err(unknown(holder))) };
        let mut record = (*held.record).clone();
        if let Err(error) = change(&mut record) {
            return Ok(Err(error));
        }
        sqlx::query("update spillway_holders set record = $2::jsonb where holder = $1")
            .bind(name_of(holder))
            .bind(json(&record))
            .execute(&mut *transaction)
            .await?;
        transaction.commit().await?;
        self.known().clear();
        Ok(Ok(Held { record: Arc::new(record), ..held }))
    }

    /// A transaction whose commit is on the database's disk when it returns.
    async fn durable(&self) -> Result<Transaction<'_, Sql>, sqlx::Error> {
        let mut transaction = self.0.pool.begin().await?;
        sqlx::query("set local synchronous_commit = on").execute(&mut *transaction).await?;
        Ok(transaction)
    }

    pub(super) async fn one(&self, holder: Holder) -> Result<Option<Held>, Unreachable> {
        let row = sqlx::query("select holder, record::text, tally::text from spillway_holders where holder = $1");
        let row = row.bind(name_of(holder)).fetch_optional(&self.0.pool).await.map_err(unreachable)?;
        let held = row.as_ref().map(held_of).transpose().map_err(unreachable)?;
        Ok(held.flatten().map(|(_, held)| held))
    }

    pub(super) async fn all(&self, like: Holder) -> Result<Vec<(Holder, Held)>, Unreachable> {
        let rows = sqlx::query(
            "select holder, record::text, tally::text from spillway_holders where substr(holder, 1, 1) = $1 order by holder",
        );
        let rows = rows.bind(&name_of(like)[..1]).fetch_all(&self.0.pool).await.map_err(unreachable)?;
        let held: Result<Vec<_>, _> = rows.iter().map(held_of).collect();
        Ok(held.map_err(unreachable)?.into_iter().flatten().collect())
    }

    pub(super) async fn identify(&self, id: KeyId) -> Result<Option<Identity>, Unreachable> {
        let fresh = |known: &Known| {
            let (since, identity) = known.get(&id)?;
            (since.elapsed() < KNOWN_FOR).then(|| identity.clone())
        };
        let found = fresh(&self.known());
        if let Some(identity) = found {
            return Ok(identity);
        }
        let _permit = self.0.lookups.acquire().await.map_err(|_| Unreachable)?;
        // Another request may have looked while this one waited.
        let found = fresh(&self.known());
        if let Some(identity) = found {
            return Ok(identity);
        }
        let asked = Instant::now();
        let row = sqlx::query(
            "select k.record::text as key, p.record::text as project from spillway_holders k
               left join spillway_holders p on p.holder = decode('70' || (k.record->'terms'->>'project'), 'hex')
               where k.holder = $1",
        );
        let row = row.bind(name_of(Holder::Key(id))).fetch_optional(&self.0.pool).await.map_err(unreachable)?;
        let read = |text: &str| serde_json::from_str::<Record>(text).ok().map(Arc::new);
        let identity = match &row {
            None => None,
            Some(row) => {
                let project = row.try_get::<Option<&str>, _>("project").map_err(unreachable)?;
                let key = read(row.try_get("key").map_err(unreachable)?);
                key.map(|key| Identity { key, project: project.and_then(read) })
            }
        };
        let mut known = self.known();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(id, (asked, identity.clone()));
        Ok(identity)
    }

    pub(super) async fn reserve(&self, work: Work) -> Result<Rates, Refusal> {
        let (reply, answer) = oneshot::channel();
        let unused = Unused::new(self.0.ops.clone(), work);
        self.0.ops.send(Op::Reserve { work, unused, reply }).map_err(|_| Refusal::Unreachable)?;
        // If nobody waits any more, what was set aside is freed when the answer is dropped.
        match tokio::time::timeout(RESERVE_WAIT, answer).await {
            Ok(Ok(granted)) => granted.map(|(rates, unused)| {
                unused.keep();
                rates
            }),
            Ok(Err(_)) | Err(_) => Err(Refusal::Unreachable),
        }
    }

    pub(super) fn settle(&self, work: &Work, used: Amount) {
        // Without the queue the node is going down, and the next start settles what is open.
        let _ = self.0.ops.send(Op::Settle { work: *work, used });
    }

    pub(super) async fn flush(&self) -> Result<(), Unreachable> {
        let (done, settled) = oneshot::channel();
        self.0.ops.send(Op::Flush(done)).map_err(|_| Unreachable)?;
        settled.await.map_err(|_| Unreachable)
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.known.lock().expect("nothing panics while it holds what is known")
    }
}

fn unreachable(error: sqlx::Error) -> Unreachable {
    tracing::error!(%error, "the shared store does not answer");
    Unreachable
}

fn failed(error: sqlx::Error) -> ApiError {
    let Unreachable = unreachable(error);
    store_unavailable()
}

/// This gateway's name as an owner of reservations, which outlives its process.
fn owner(local: &Store) -> Result<[u8; 16], KeysError> {
    if let Some(kept) = local.get(Table::Meta, OWNER)?.and_then(|kept| <[u8; 16]>::try_from(kept).ok()) {
        return Ok(kept);
    }
    let mut owner = [0; 16];
    getrandom::fill(&mut owner).map_err(|_| KeysError::NoRandom)?;
    let mut batch = Batch::new();
    batch.put(Table::Meta, OWNER, owner);
    local.commit(batch)?;
    Ok(owner)
}

/// Makes the tables if there are none. Several gateways may start at once.
async fn schema(pool: &PgPool) -> Result<(), sqlx::Error> {
    let mut transaction = pool.begin().await?;
    sqlx::query("select pg_advisory_xact_lock(hashtext('spillway_schema'))").execute(&mut *transaction).await?;
    sqlx::raw_sql(include_str!("postgres/schema.sql")).execute(&mut *transaction).await?;
    transaction.commit().await
}
