//! Where keys, projects and what they use are kept: in this node's own store, or in PostgreSQL for several gateways.
//! Invariant: the decision is [`budget`](super::budget)'s alone; a store makes it atomic and durable.

mod embedded;
mod postgres;
#[cfg(test)]
pub(super) mod tests;

pub use embedded::Embedded;
pub use postgres::{Lease, Postgres, Shared};

use super::budget::{Amount, Rates, Refused, Tally};
use super::error::ApiError;
use super::holder::{Holder, KeyId, ProjectId};
use super::terms::Terms;
use super::writer::WriteFailed;
use crate::records::Aside;
use serde::{Deserialize, Serialize};
use spillway_ledger::{Digest, JobId};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

/// Most keys, and most projects.
pub const HOLDERS_MAX: usize = 10_000;

/// A secret that is replaced but still opens.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Previous {
    /// Its hash.
    pub hash: Digest,
    /// When it no longer does, in Unix milliseconds.
    pub until_ms: u64,
}

/// A key or a project as it is stored; a key's secret is not in it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// The hash of a key's secret; [`Digest::ZERO`] for a project, which no secret has.
    pub hash: Digest,
    /// A key's other live secret.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Previous>,
    /// Whether it is void for good.
    pub revoked: bool,
    /// When it was made, in Unix milliseconds.
    #[serde(default)]
    pub created_ms: u64,
    /// What it allows.
    pub terms: Terms,
}

/// A record with its state.
#[derive(Clone, Debug)]
pub struct Held {
    /// The record.
    pub record: Arc<Record>,
    /// What it used.
    pub tally: Tally,
}

/// A key with the project it belongs to.
#[derive(Clone, Debug)]
pub struct Identity {
    /// The key.
    pub key: Arc<Record>,
    /// Its project.
    pub project: Option<Arc<Record>>,
}

/// A job that has something set aside, or wants to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Work {
    /// The job.
    pub job: JobId,
    /// Whose it is.
    pub key: KeyId,
    /// The project that the key belonged to when the job began.
    pub project: Option<ProjectId>,
    /// What it uses at most.
    pub most: Amount,
}

/// Why nothing was set aside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The key is unknown or revoked.
    Unknown,
    /// The key or its project is blocked, or else over.
    Closed {
        /// Which of the two.
        blocked: bool,
    },
    /// A limit.
    Limit {
        /// Whose.
        holder: Holder,
        /// Which.
        refused: Refused,
        /// How the limits per minute stand.
        rates: Rates,
    },
    /// The store does not answer.
    Unreachable,
}

/// The store does not answer, or cannot be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store of keys and budgets does not answer")]
pub struct Unreachable;

impl From<WriteFailed> for Unreachable {
    fn from(WriteFailed: WriteFailed) -> Self {
        Self
    }
}

/// The store that the configuration chose; cheap to clone.
#[derive(Clone, Debug)]
pub enum KeyStore {
    /// This node's own.
    Embedded(Embedded),
    /// A database that several gateways share.
    Postgres(Postgres),
}

impl KeyStore {
    /// Adds a record under the holder's id, or the next free one; durable when this returns.
    ///
    /// # Errors
    /// 409 if there are [`HOLDERS_MAX`] that are not revoked; 503 if it cannot be written.
    pub async fn insert(&self, holder: Holder, make: impl FnOnce(Holder) -> Record + Send) -> Result<Holder, ApiError> {
        match self {
            Self::Embedded(store) => store.insert(holder, make).await,
            Self::Postgres(store) => store.insert(holder, make).await,
        }
    }

    /// Changes a record; durable when this returns.
    ///
    /// # Errors
    /// 404 if there is none or it is revoked, `change`'s own, 503 if it cannot be written. An error changes nothing.
    pub async fn change(
        &self,
        holder: Holder,
        change: impl FnOnce(&mut Record) -> Result<(), ApiError> + Send,
    ) -> Result<Held, ApiError> {
        match self {
            Self::Embedded(store) => store.change(holder, change).await,
            Self::Postgres(store) => store.change(holder, change).await,
        }
    }

    /// A record and its state.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn one(&self, holder: Holder) -> Result<Option<Held>, Unreachable> {
        match self {
            Self::Embedded(store) => Ok(store.one(holder)),
            Self::Postgres(store) => store.one(holder).await,
        }
    }

    /// All of the kind of `like`, by id.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn all(&self, like: Holder) -> Result<Vec<(Holder, Held)>, Unreachable> {
        match self {
            Self::Embedded(store) => Ok(store.all(like)),
            Self::Postgres(store) => store.all(like).await,
        }
    }

    /// A key and its project, perhaps as they were a second ago: [`Self::reserve`] looks again.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn identify(&self, id: KeyId) -> Result<Option<Identity>, Unreachable> {
        match self {
            Self::Embedded(store) => Ok(store.identify(id)),
            Self::Postgres(store) => store.identify(id).await,
        }
    }

    /// Sets aside what a job may use, at its key and its project, or at neither.
    ///
    /// # Errors
    /// In the order of [`Refusal`].
    pub async fn reserve(&self, work: Work) -> Result<Rates, Refusal> {
        match self {
            Self::Embedded(store) => store.reserve(&work, now_ms()),
            Self::Postgres(store) => store.reserve(work).await,
        }
    }

    /// What is to be kept with the first promise to pay for the job, so that a start after a kill charges it to its key.
    #[must_use]
    pub fn aside(&self, work: &Work) -> Option<Aside> {
        match self {
            Self::Embedded(_) if work.most.money.is_zero() => None, // What costs nothing leaves nothing to settle.
            Self::Embedded(_) => Some(embedded::aside(work)),
            Self::Postgres(_) => None, // The database has it before the job begins.
        }
    }

    /// Charges what a job used and frees the rest. Settling twice is settling once. `kept_with` are the jobs with
    /// whose promises what [`Self::aside`] gave was kept.
    pub fn settle(&self, work: &Work, used: Amount, kept_with: &[JobId]) {
        match self {
            Self::Embedded(store) => store.settle(work, used, kept_with, now_ms()),
            Self::Postgres(store) => store.settle(work, used),
        }
    }

    /// Waits until all that was settled so far is durable; for a clean stop.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn flush(&self) -> Result<(), Unreachable> {
        match self {
            Self::Embedded(store) => Ok(store.flush().await?),
            Self::Postgres(store) => store.flush().await,
        }
    }
}

/// The clock, in Unix milliseconds.
#[must_use]
pub fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// That something is not there.
pub(super) fn unknown(holder: Holder) -> ApiError {
    let code = match holder {
        Holder::Key(_) => "key_not_found",
        Holder::Project(_) => "project_not_found",
    };
    ApiError::new(404, code, format!("there is no {holder}"))
}

fn too_many(holder: Holder, max: usize) -> ApiError {
    let code = match holder {
        Holder::Key(_) => "too_many_keys",
        Holder::Project(_) => "too_many_projects",
    };
    ApiError::new(409, code, format!("there are {max} {}s already", holder.kind()))
}

/// That the store cannot be read or written.
pub(super) fn store_unavailable() -> ApiError {
    ApiError { retry_after_s: Some(1), ..ApiError::new(503, "store_unavailable", Unreachable.to_string()) }
}

/// What a store checks before the limits.
fn open_for(record: &Record, now_ms: u64) -> Result<(), Refusal> {
    if record.revoked {
        return Err(Refusal::Unknown);
    }
    if record.terms.blocked || record.terms.expired(now_ms) {
        return Err(Refusal::Closed { blocked: record.terms.blocked });
    }
    Ok(())
}

/// The one decision, for any store: what is known of a key and its project in, what becomes of them out.
///
/// # Errors
/// In the order of [`Refusal`]; nothing is changed then.
fn decide(
    work: &Work,
    key: (&Record, &mut Tally),
    project: Option<(&Record, &mut Tally)>,
    now_ms: u64,
) -> Result<Rates, Refusal> {
    let holder = Holder::Key(work.key);
    open_for(key.0, now_ms)?;
    let limits = key.0.terms.limits();
    let (Some(project_id), Some(project)) = (work.project, project) else {
        let before = key.1.rates(&limits, now_ms);
        return super::budget::reserve(&mut [(limits, key.1)], work.most, now_ms)
            .map_err(|(_, refused)| Refusal::Limit { holder, refused, rates: before });
    };
    let other = Holder::Project(project_id);
    open_for(project.0, now_ms)?;
    let others = project.0.terms.limits();
    let before = key.1.rates(&limits, now_ms).tighter(project.1.rates(&others, now_ms));
    let purses = &mut [(limits, key.1), (others, project.1)];
    super::budget::reserve(purses, work.most, now_ms).map_err(|(index, refused)| Refusal::Limit {
        holder: if index == 0 { holder } else { other },
        refused,
        rates: before,
    })
}
