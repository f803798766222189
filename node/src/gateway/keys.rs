//! API keys and the projects they belong to: who may ask, for which models, where, and within what limits.
//! Invariant: a secret is shown once and never stored; what a key has spent and reserved never exceeds its budgets, nor
//! what the keys of a project have together the project's.

use super::budget::{Amount, Rates, Refused, Window};
use super::cache::{Keeping, Tenant};
use super::error::ApiError;
pub use super::holder::{Holder, KeyId, ProjectId};
use super::store::{
    Embedded, HOLDERS_MAX, Held, Identity, KeyStore, Postgres, Previous, Record, Refusal, Shared, Unreachable, Work,
};
use super::store::{now_ms, store_unavailable, unknown};
use super::terms::bad;
pub use super::terms::{PreferName, Terms};
use super::writer::Writer;
use crate::records::Aside;
use serde::Serialize;
use serde_json::{Map, Value};
use spillway_ledger::store::Store;
use spillway_ledger::{Credits, Digest, JobId, Price, StoreError};
use spillway_protocol::{Prefer, Preferences};
use std::sync::Arc;
use std::time::Duration;
use subtle::ConstantTimeEq;
use zeroize::Zeroizing;

/// What every secret begins with.
const PREFIX: &str = "sk-spillway-";
/// Separates this hash from every other use of blake3 here.
const DOMAIN: &str = "spillway/api-key/1";
/// How long the old secret still opens after a rotation, if nothing else is said.
pub const OVERLAP_S_DEFAULT: u64 = 86_400;
/// The longest it may.
pub const OVERLAP_S_MAX: u64 = 90 * 86_400;

/// A key or project as operators see it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct View {
    /// Its id, eight hexadecimal digits.
    pub id: String,
    /// What it allows.
    #[serde(flatten)]
    pub terms: Terms,
    /// What it spent, in micro-credits.
    pub spent_micro: Credits,
    /// What it spent today, in UTC.
    pub spent_day_micro: Credits,
    /// What it spent since Monday.
    pub spent_week_micro: Credits,
    /// What it spent this month.
    pub spent_month_micro: Credits,
    /// What jobs under way may still spend, in micro-credits.
    pub reserved_micro: Credits,
    /// Jobs under way.
    pub running: u32,
    /// Whether it is void.
    pub revoked: bool,
    /// When it was made, in Unix milliseconds; 0 if that was before times were kept.
    pub created_ms: u64,
    /// Until when the secret before the last rotation opens, too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_until_ms: Option<u64>,
}

impl View {
    fn new(holder: Holder, held: &Held, now_ms: u64) -> Self {
        let (record, tally) = (&held.record, &held.tally);
        let until = record.previous.map(|previous| previous.until_ms);
        Self {
            id: format!("{:08x}", u32::from_be_bytes(holder.bytes())),
            terms: record.terms.clone(),
            spent_micro: tally.spent(Window::Total, now_ms),
            spent_day_micro: tally.spent(Window::Day, now_ms),
            spent_week_micro: tally.spent(Window::Week, now_ms),
            spent_month_micro: tally.spent(Window::Month, now_ms),
            reserved_micro: tally.reserved(),
            running: tally.running(),
            revoked: record.revoked,
            created_ms: record.created_ms,
            previous_until_ms: until.filter(|until| *until > now_ms),
        }
    }
}

/// Who asks: a key that was presented and is good.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The key.
    pub id: KeyId,
    key: Arc<Record>,
    project: Option<Arc<Record>>,
}

impl Caller {
    /// Whether `model` may be used.
    #[must_use]
    pub fn allows(&self, model: &str) -> bool {
        self.key.terms.allows(model) && self.project.as_ref().is_none_or(|project| project.terms.allows(model))
    }

    /// Where jobs may run.
    #[must_use]
    pub fn prefer(&self) -> Prefer {
        let only_own = self.project.as_ref().is_some_and(|project| project.terms.prefer == PreferName::Own);
        if only_own { Prefer::Own } else { self.key.terms.prefer.into() }
    }

    /// The most that jobs pay, where the node pays at most `price`.
    #[must_use]
    pub fn lower(&self, price: Price) -> Price {
        let price = self.key.terms.lower(price);
        self.project.as_ref().map_or(price, |project| project.terms.lower(price))
    }

    /// How its answers are kept, and with whom it shares them; the key's own word comes before its project's.
    #[must_use]
    pub fn cache(&self) -> Option<Keeping> {
        let keeping = |tenant, terms: &Terms| {
            let lasts = Duration::from_secs(u64::from(terms.cache_s?));
            Some(Keeping { tenant, lasts, similar: terms.cache_similar })
        };
        let own = keeping(Tenant::Key(self.id), &self.key.terms);
        own.or_else(|| keeping(Tenant::Project(self.key.terms.project?), &self.project.as_ref()?.terms))
    }

    /// The time to first text that jobs ask for, in milliseconds.
    #[must_use]
    pub fn target_ms(&self) -> Option<u32> {
        self.key.terms.target_ms.or_else(|| self.project.as_ref()?.terms.target_ms)
    }

    /// The policy that requests go by where they name none.
    #[must_use]
    pub fn policy(&self) -> Option<&str> {
        let project = self.project.as_ref().and_then(|project| project.terms.policy.as_deref());
        self.key.terms.policy.as_deref().or(project)
    }

    /// Adds to a request's wishes what the key and its project say of providers.
    ///
    /// # Errors
    /// 403 if the request wants only providers that are not allowed.
    pub fn direct(&self, wishes: &mut Preferences) -> Result<(), ApiError> {
        self.key.terms.direct(wishes)?;
        self.project.as_ref().map_or(Ok(()), |project| project.terms.direct(wishes))
    }

    /// What the key allows.
    #[must_use]
    pub fn terms(&self) -> &Terms {
        &self.key.terms
    }
}

/// Every key and project of the node, or of all gateways that share a store; cheap to clone.
#[derive(Clone, Debug)]
pub struct Keys {
    store: KeyStore,
    writer: Writer,
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
    /// The shared store.
    #[error("gateway.store: {0}")]
    Shared(#[from] sqlx::Error),
    /// For this gateway's name in the shared store.
    #[error("the system gives no random bytes")]
    NoRandom,
}

impl Keys {
    /// Reads the keys in this node's own store. Reservations that a crash left open are settled to what `promised` says: what the
    /// job did cost, or may have cost by the vouchers that were signed for it; nothing if there were none.
    ///
    /// # Errors
    /// If the store cannot be read or written.
    pub fn open(store: Arc<Store>, promised: impl Fn(JobId) -> Option<Credits>) -> Result<Self, KeysError> {
        Self::open_for(store, HOLDERS_MAX, promised)
    }

    /// As [`Self::open`], with room for so many keys and as many projects.
    pub(super) fn open_for(
        store: Arc<Store>,
        holders_max: usize,
        promised: impl Fn(JobId) -> Option<Credits>,
    ) -> Result<Self, KeysError> {
        let writer = Writer::start(Arc::clone(&store))?;
        let embedded = Embedded::open(&store, writer.clone(), holders_max, promised)?;
        Ok(Self { store: KeyStore::Embedded(embedded), writer })
    }

    /// Opens the keys in a database that several gateways share; `store` is this node's own. What this gateway left open
    /// there when it last stopped is settled as in [`Self::open`].
    ///
    /// # Errors
    /// If the database does not answer or does not let it, or the node's own store cannot be read or written.
    pub async fn open_shared(
        store: Arc<Store>,
        shared: Shared,
        promised: impl Fn(JobId) -> Option<Credits> + Send,
    ) -> Result<Self, KeysError> {
        Self::open_shared_for(store, shared, HOLDERS_MAX, promised).await
    }

    /// As [`Self::open_shared`], with room for so many keys and as many projects.
    pub(super) async fn open_shared_for(
        store: Arc<Store>,
        shared: Shared,
        holders_max: usize,
        promised: impl Fn(JobId) -> Option<Credits> + Send,
    ) -> Result<Self, KeysError> {
        let writer = Writer::start(Arc::clone(&store))?;
        let postgres = Postgres::open(shared, &store, writer.clone(), holders_max, promised).await?;
        Ok(Self { store: KeyStore::Postgres(postgres), writer })
    }

    /// Makes a key; it is durable when this returns. The secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// 400 naming the field; 409 if there are too many keys; 503 if it cannot be written.
    pub async fn create(&self, terms: Terms) -> Result<(View, Zeroizing<String>), ApiError> {
        terms.check()?;
        self.check_project(&terms).await?;
        let (wanted, part) = random()?;
        let mut made = None;
        let record = |holder: Holder| {
            let Holder::Key(id) = holder else { unreachable!("a key's id becomes a key's id") };
            let secret = secret_of(id, &part);
            let hash = hash(&secret);
            made = Some(secret);
            Record { hash, previous: None, revoked: false, created_ms: now_ms(), terms }
        };
        let holder = self.store.insert(Holder::Key(KeyId(wanted)), record).await?;
        let secret = made.expect("a record that was inserted was made");
        Ok((self.view(holder).await?, secret))
    }

    /// Makes a project; it is durable when this returns.
    ///
    /// # Errors
    /// As [`Self::create`].
    pub async fn create_project(&self, terms: Terms) -> Result<View, ApiError> {
        terms.check()?;
        no_project(&terms)?;
        let (wanted, _) = random()?;
        let record = |_| Record { hash: Digest::ZERO, previous: None, revoked: false, created_ms: now_ms(), terms };
        let holder = self.store.insert(Holder::Project(ProjectId(wanted)), record).await?;
        self.view(holder).await
    }

    /// What writes this node's keys and budgets, for what else the gateway keeps.
    pub(super) fn writer(&self) -> Writer {
        self.writer.clone()
    }

    /// Every key, by id.
    ///
    /// # Errors
    /// 503 if the store does not answer.
    pub async fn list(&self) -> Result<Vec<View>, ApiError> {
        self.list_of(Holder::Key(KeyId([0; 4]))).await
    }

    /// Every project, by id.
    ///
    /// # Errors
    /// As [`Self::list`].
    pub async fn projects(&self) -> Result<Vec<View>, ApiError> {
        self.list_of(Holder::Project(ProjectId([0; 4]))).await
    }

    async fn list_of(&self, like: Holder) -> Result<Vec<View>, ApiError> {
        let (all, now_ms) = (self.store.all(like).await?, now_ms());
        Ok(all.iter().map(|(holder, held)| View::new(*holder, held, now_ms)).collect())
    }

    /// A key or project.
    ///
    /// # Errors
    /// 404 if there is none; 503 if the store does not answer.
    pub async fn view(&self, holder: Holder) -> Result<View, ApiError> {
        let held = self.store.one(holder).await?.ok_or_else(|| unknown(holder))?;
        Ok(View::new(holder, &held, now_ms()))
    }

    /// Puts the fields of `patch` in place of the terms' own; `null` takes a limit away. Jobs under way go on.
    ///
    /// # Errors
    /// 400 naming the field, 404 if there is none, 503 if it cannot be written.
    pub async fn update(&self, holder: Holder, patch: Map<String, Value>) -> Result<View, ApiError> {
        if let Some(Value::String(project)) = patch.get("project") {
            let project = project.parse().map_err(|error| bad("project", error))?;
            self.check_project(&Terms { project: Some(project), ..Terms::default() }).await?;
        }
        let change = |record: &mut Record| {
            if record.revoked {
                return Err(unknown(holder));
            }
            let terms = record.terms.patched(patch)?;
            if matches!(holder, Holder::Project(_)) {
                no_project(&terms)?;
            }
            record.terms = terms;
            Ok(())
        };
        let held = self.store.change(holder, change).await?;
        Ok(View::new(holder, &held, now_ms()))
    }

    /// Gives a key a new secret. The one before opens for `overlap_s` seconds more, beside it; one from before that no
    /// longer. The secret is in the answer and nowhere else.
    ///
    /// # Errors
    /// 400 if `overlap_s` is too long, 404 if there is no such key, 503 if it cannot be written.
    pub async fn rotate(&self, id: KeyId, overlap_s: u64) -> Result<(View, Zeroizing<String>), ApiError> {
        if overlap_s > OVERLAP_S_MAX {
            return Err(bad("overlap_s", format!("over {OVERLAP_S_MAX}, which is 90 days")));
        }
        let (_, part) = random()?;
        let secret = secret_of(id, &part);
        let (new, now) = (hash(&secret), now_ms());
        let change = |record: &mut Record| {
            if record.revoked {
                return Err(unknown(Holder::Key(id)));
            }
            let until_ms = now.saturating_add(overlap_s * 1000);
            record.previous = (overlap_s > 0).then_some(Previous { hash: record.hash, until_ms });
            record.hash = new;
            Ok(())
        };
        let held = self.store.change(Holder::Key(id), change).await?;
        Ok((View::new(Holder::Key(id), &held, now), secret))
    }

    /// Voids a key for good: at once for new requests, durable when this returns. Jobs under way go on.
    ///
    /// # Errors
    /// 404 if there is none; 503 if it cannot be written.
    pub async fn revoke(&self, id: KeyId) -> Result<(), ApiError> {
        let change = |record: &mut Record| {
            record.revoked = true;
            Ok(())
        };
        self.store.change(Holder::Key(id), change).await.map(drop)
    }

    /// Whose secret this is.
    ///
    /// # Errors
    /// 401 if it is nobody's or the key is over, 403 if it is blocked, 503 if the store does not answer.
    pub async fn authenticate(&self, secret: &str) -> Result<Caller, ApiError> {
        let id = secret.strip_prefix(PREFIX).and_then(|rest| rest.split_once('_')).and_then(|(id, _)| id.parse().ok());
        let presented = hash(secret);
        let identity = match id {
            Some(id) => self.store.identify(id).await?,
            None => None,
        };
        let now_ms = now_ms();
        // An unknown id costs the same comparisons as a known one.
        let current = identity.as_ref().map_or(Digest::ZERO, |identity| identity.key.hash);
        let previous = identity.as_ref().and_then(|identity| identity.key.previous);
        let previous = previous.filter(|previous| now_ms < previous.until_ms).map_or(Digest::ZERO, |old| old.hash);
        let same = presented.as_bytes().ct_eq(current.as_bytes()) | presented.as_bytes().ct_eq(previous.as_bytes());
        let (Some(id), Some(Identity { key, project })) = (id, identity) else { return Err(ApiError::unauthorized()) };
        if !bool::from(same) || key.revoked {
            return Err(ApiError::unauthorized());
        }
        for terms in std::iter::once(&key.terms).chain(project.as_ref().map(|project| &project.terms)) {
            if terms.blocked || terms.expired(now_ms) {
                return Err(closed(terms.blocked));
            }
        }
        Ok(Caller { id, key, project })
    }

    /// Sets aside what a job may use, before any work is done for it.
    ///
    /// # Errors
    /// 429 and 402 for the limits of the key and its project, 401 and 403 if one of them was closed meanwhile, 503 if the
    /// store does not answer.
    pub async fn reserve(&self, caller: &Caller, job: JobId, most: Amount) -> Result<Reservation, ApiError> {
        let work = Work { job, key: caller.id, project: caller.key.terms.project, most };
        match self.store.reserve(work).await {
            Ok(rates) => {
                let aside = self.store.aside(&work).map(Arc::new);
                Ok(Reservation { store: self.store.clone(), work, rates, aside })
            }
            Err(refusal) => Err(refused(&refusal, most)),
        }
    }

    /// Waits until all that was settled so far is durable; for a clean stop.
    ///
    /// # Errors
    /// If it cannot be written.
    pub async fn flush(&self) -> Result<(), Unreachable> {
        self.store.flush().await?;
        // What else is written behind it.
        Ok(self.writer.queue(Vec::new()).wait().await?)
    }

    async fn check_project(&self, terms: &Terms) -> Result<(), ApiError> {
        let Some(project) = terms.project else { return Ok(()) };
        let held = self.store.one(Holder::Project(project)).await?;
        held.map(drop).ok_or_else(|| bad("project", format!("there is no project {project}")))
    }
}

impl From<Unreachable> for ApiError {
    fn from(Unreachable: Unreachable) -> Self {
        store_unavailable()
    }
}

/// What is set aside for one job.
///
/// Dropped without [`Self::settle`], it stays set aside until the node starts anew and learns from its records what the
/// job may have cost; that only happens when the node stops under a job.
#[derive(Debug)]
#[must_use = "what is not settled stays reserved"]
pub struct Reservation {
    store: KeyStore,
    work: Work,
    rates: Rates,
    aside: Option<Arc<Aside>>,
}

impl Reservation {
    /// The key it is of.
    #[must_use]
    pub const fn key(&self) -> KeyId {
        self.work.key
    }

    /// How the limits per minute stand after it.
    #[must_use]
    pub const fn rates(&self) -> Rates {
        self.rates
    }

    /// What is to be kept with the first promise to pay for the job.
    #[must_use]
    pub fn aside(&self) -> Option<Arc<Aside>> {
        self.aside.clone()
    }

    /// Charges what the job used and frees the rest. Its tokens count as at most what was set aside.
    pub fn settle(self, money: Credits, tokens: u64) {
        let used = Amount { money, tokens: tokens.min(self.work.most.tokens) };
        let kept_with = self.aside.as_ref().map(|aside| aside.kept_with()).unwrap_or_default();
        self.store.settle(&self.work, used, &kept_with);
    }

    /// Charges all that was set aside: for a job of which nobody can tell any more what it used.
    pub fn settle_in_full(self) {
        let mut kept_with = self.aside.as_ref().map(|aside| aside.kept_with()).unwrap_or_default();
        kept_with.extend(self.aside.as_ref().map(|_| self.work.job));
        self.store.settle(&self.work, self.work.most, &kept_with);
    }
}

/// Random bytes for an id, and for a secret's last part.
fn random() -> Result<([u8; 4], Zeroizing<String>), ApiError> {
    let mut random = Zeroizing::new([0; 20]);
    getrandom::fill(&mut *random).map_err(|_| ApiError::internal("the system gives no random bytes"))?;
    Ok(([random[0], random[1], random[2], random[3]], Zeroizing::new(hex::encode(&random[4..]))))
}

fn secret_of(id: KeyId, part: &str) -> Zeroizing<String> {
    Zeroizing::new(format!("{PREFIX}{id}_{part}"))
}

fn hash(secret: &str) -> Digest {
    Digest::of(DOMAIN, &[secret.as_bytes()])
}

fn no_project(terms: &Terms) -> Result<(), ApiError> {
    terms.project.map_or(Ok(()), |_| Err(bad("project", "a project belongs to no other")))
}

fn closed(blocked: bool) -> ApiError {
    if blocked {
        ApiError::new(403, "key_blocked", "the key, or its project, is blocked")
    } else {
        ApiError::new(401, "key_expired", "the key, or its project, has expired")
    }
}

fn refused(refusal: &Refusal, most: Amount) -> ApiError {
    let (holder, refused, rates) = match refusal {
        Refusal::Unknown => return ApiError::unauthorized(),
        Refusal::Closed { blocked } => return closed(*blocked),
        Refusal::Unreachable => return store_unavailable(),
        Refusal::Limit { holder, refused, rates } => (holder.kind(), *refused, *rates),
    };
    let most = most.money;
    let error = match refused {
        Refused::Concurrency { limit } => ApiError::busy(
            "concurrency_limit",
            format!("the {holder} has {limit} jobs under way, as many as it may"),
            1,
        ),
        Refused::Requests { limit, wait_ms } => ApiError::busy(
            "rate_limit_exceeded",
            format!("the {holder} may make {limit} requests per minute"),
            wait_ms.div_ceil(1000).max(1),
        ),
        Refused::Tokens { limit, wait_ms: Some(wait_ms) } => ApiError::busy(
            "rate_limit_exceeded",
            format!("the {holder} may use {limit} tokens per minute; a smaller `max_tokens` asks for fewer"),
            wait_ms.div_ceil(1000).max(1),
        ),
        Refused::Tokens { limit, wait_ms: None } => ApiError::new(
            429,
            "rate_limit_exceeded",
            format!(
                "the request could use more than the {limit} tokens per minute of the {holder}, and so never fits; a \
                 smaller `max_tokens` asks for fewer"
            ),
        ),
        Refused::Budget { window, left, .. } => ApiError::new(
            402,
            "budget_exceeded",
            format!(
                "the request could cost up to {most} and the {holder} has {left} left{}; a smaller `max_tokens` costs less",
                in_window(window)
            ),
        ),
        Refused::Reserved { window, free } => ApiError::busy(
            "budget_reserved",
            format!(
                "the request could cost up to {most} and the {holder} has {free} left{} that is not set aside for jobs \
                 under way",
                in_window(window)
            ),
            1,
        ),
    };
    ApiError { rates: Some(Box::new(rates)), ..error }
}

const fn in_window(window: Window) -> &'static str {
    match window {
        Window::Day => " for today",
        Window::Week => " for this week",
        Window::Month => " for this month",
        Window::Total => "",
    }
}
