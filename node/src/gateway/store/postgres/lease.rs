//! A gateway's lease in the shared store, and what becomes of those that ran out.
//! Invariant: while a gateway renews its lease, nobody else ends its reservations.

use super::Lease;
use super::batch::{Op, orphaned};
use sqlx::postgres::PgPool;
use tokio::sync::mpsc;

/// Orphans that are charged at a time.
const ORPHANS_MAX: usize = 1000;
/// How long what was charged in full is kept, so that its gateway can set it right.
const CHARGED_FOR: &str = "30 days";

/// Renews a lease.
pub(super) async fn renew(pool: &PgPool, owner: &[u8; 16], lease: Lease) -> Result<(), sqlx::Error> {
    sqlx::query(
        "insert into spillway_gateways (owner, alive_until) values ($1, now() + make_interval(secs => $2))
           on conflict (owner) do update set alive_until = excluded.alive_until",
    )
    .bind(&owner[..])
    .bind(lease.lasts.as_secs_f64())
    .execute(pool)
    .await
    .map(drop)
}

/// Keeps the lease, and charges in full what gateways left whose lease ran out: their jobs may have cost all of it.
pub(super) async fn keep(pool: PgPool, owner: [u8; 16], lease: Lease, ops: mpsc::WeakUnboundedSender<Op>) {
    loop {
        tokio::time::sleep(lease.every).await;
        if let Err(error) = once(&pool, &owner, lease, &ops).await {
            tracing::error!(%error, "the lease in the shared store was not renewed");
        }
    }
}

async fn once(
    pool: &PgPool,
    owner: &[u8; 16],
    lease: Lease,
    ops: &mpsc::WeakUnboundedSender<Op>,
) -> Result<(), sqlx::Error> {
    renew(pool, owner, lease).await?;
    let orphans = orphaned(pool, ORPHANS_MAX).await?;
    let Some(ops) = ops.upgrade() else { return Ok(()) };
    for work in orphans {
        tracing::warn!(job = %work.job, key = %work.key, "charged in full: its gateway's lease ran out");
        let _ = ops.send(Op::Charge { work });
    }
    let old = "delete from spillway_reservations where charged and at < now() - $1::interval";
    sqlx::query(old).bind(CHARGED_FOR).execute(pool).await?;
    let gone = "delete from spillway_gateways where alive_until < now() - $1::interval";
    sqlx::query(gone).bind(CHARGED_FOR).execute(pool).await?;
    Ok(())
}
