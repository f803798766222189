//! The gateway: OpenAI's HTTP API for clients with keys, and the operator's own routes.
//! Invariant: nothing becomes a job before its key is known and its worst case is reserved; HTTP and the edge take the
//! same way in.

pub mod admin;
pub mod answer;
pub mod budget;
pub mod cache;
pub mod day_log;
mod deeds;
pub mod desk;
pub mod error;
mod generation;
pub mod guard;
pub mod holder;
pub mod http;
pub mod job;
pub mod keys;
pub mod ledger_log;
mod managed;
mod openapi;
pub mod policy;
pub mod rate_headers;
pub mod server;
pub mod similar;
pub mod stall;
pub mod store;
mod surface;
pub mod terms;
mod voice;
mod watch;
mod whole;
pub mod writer;

#[cfg(test)]
mod tests;

pub use cache::Cache;
pub use day_log::{DayJob, DayLog};
pub use desk::Desk;
pub use error::ApiError;
pub use job::{AdmittedJob, Asked, Translation};
pub use keys::{Caller, Keys, KeysError, Terms};
pub use policy::{Hints, Policies};
pub use server::Serving;
pub use store::Shared;
pub use watch::Arrival;

use crate::audit::AuditLog;
use crate::jobs::{Beside, JobEvent, Jobs, JobsFull};
use crate::keystore;
use crate::metrics::{Metrics, TurnedAway};
use crate::openai::parts::Part;
use crate::openai::request::UNITS_PER_TOKEN;
use crate::openai::{Request, endpoint};
use crate::records;
use crate::telemetry::{Door, Telemetry};
use budget::Amount;
use cache::{CacheState, CacheWish, Recording};
use day_log::DayLogError;
use job::Underway;
use keys::KeyId;
use policy::{Attempts, Plan};
use similar::{Question, Vector};
use spillway_ledger::store::Store;
use spillway_ledger::{Credits, Digest, JobId, Price};
use spillway_protocol::job::BODY_BYTES_MAX;
use spillway_protocol::{Job, Kind, OwnChoice, Prefer, Preferences, Reason};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use subtle::ConstantTimeEq;
use tokio::sync::Semaphore;
use watch::Watch;
use zeroize::Zeroizing;

/// The admin token's file in the node's folder.
pub const ADMIN_TOKEN_FILE: &str = "admin.token";
/// Jobs whose key is remembered, so that the key's owner may ask about them; as many as the job log keeps.
const OWNERS_MAX: usize = 10_000;

/// Vectors that are made at once; a request that finds none free goes without, since it was not yet held to its key's limits.
const VECTORS_MAX: usize = 32;
/// How long a question's vector may take; a client waits for it.
const VECTOR_WAIT: Duration = Duration::from_secs(2);

/// A price that is no limit.
const UNLIMITED: Credits = Credits::new(u64::MAX);

/// What a gateway is made of.
pub struct Parts<'a> {
    /// The node's folder: for the admin token.
    pub folder: &'a Path,
    /// Keys and budgets, unless they are shared.
    pub store: Arc<Store>,
    /// Where keys and budgets are shared with other gateways, if they are.
    pub shared: Option<Shared>,
    /// The market.
    pub jobs: Jobs,
    /// The rest of the node, for the operator's routes.
    pub desk: Arc<dyn Desk>,
    /// What is told of requests, and counted.
    pub telemetry: Telemetry,
    /// What the operator does.
    pub audit: AuditLog,
    /// The highest price that any key's jobs accept.
    pub price_max: Price,
    /// Whether times and sizes of the last jobs are kept; if not, what was kept is removed.
    pub job_log: bool,
    /// How many bytes of answers are kept to be given again.
    pub cache_bytes: usize,
    /// The own model whose vectors tell which questions mean the same.
    pub cache_embedding: Option<String>,
    /// Where requests may be sent, and by which rules.
    pub policies: Policies,
    /// What each job may have cost by the vouchers signed for it, or did cost: the node's `Record::Spending`, as a crash left
    /// them. Once they are accounted for, they are removed from the store.
    pub promised: BTreeMap<JobId, Credits>,
}

/// The way in for clients; cheap to clone.
#[derive(Clone)]
pub struct Gateway(Arc<Inner>);

struct Inner {
    keys: Keys,
    jobs: Jobs,
    desk: Arc<dyn Desk>,
    metrics: Arc<Metrics>,
    telemetry: Telemetry,
    audit: AuditLog,
    price_max: Price,
    policies: Policies,
    day_log: Option<DayLog>,
    cache: Arc<Cache>,
    cache_embedding: Option<String>,
    vectors: Semaphore,
    admin_hash: Digest,
    owners: Mutex<Owners>,
    stopping: AtomicBool,
    since: Instant,
}

#[derive(Default)]
struct Owners {
    by_job: HashMap<JobId, KeyId>,
    order: VecDeque<JobId>,
}

/// Why a gateway cannot start.
#[derive(Debug, thiserror::Error)]
pub enum GatewayError {
    /// The keys.
    #[error("keys: {0}")]
    Keys(#[from] KeysError),
    /// The log of the last jobs.
    #[error("the job log: {0}")]
    DayLog(#[from] DayLogError),
    /// The admin token's file.
    #[error("{0:#}")]
    AdminToken(anyhow::Error),
    /// The address.
    #[error("gateway.listen: {address}: {source}")]
    Listen {
        /// As configured.
        address: String,
        /// Why not.
        source: std::io::Error,
    },
}

impl std::fmt::Debug for Gateway {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gateway").field("keys", &self.0.keys).finish_non_exhaustive()
    }
}

impl Gateway {
    /// Reads the keys, settles what a crash left open, and makes the admin token if there is none.
    ///
    /// # Errors
    /// If the keys or the token cannot be read or written.
    pub async fn open(parts: Parts<'_>) -> Result<Self, GatewayError> {
        // What was promised for any attempt of a request was promised for the request.
        let promised = |job: JobId| {
            let attempts = parts.promised.range(Attempts::ids(job)).map(|(_, credits)| credits.micro());
            attempts.reduce(u64::saturating_add).map(Credits::new)
        };
        let keys = match parts.shared {
            None => Keys::open(Arc::clone(&parts.store), promised)?,
            Some(shared) => Keys::open_shared(Arc::clone(&parts.store), shared, promised).await?,
        };
        records::forget_spendings(&parts.store).map_err(KeysError::from)?;
        let day_log = if parts.job_log {
            Some(DayLog::open(parts.store, keys.writer())?)
        } else {
            DayLog::clear(&parts.store).map_err(DayLogError::from)?;
            None
        };
        parts.telemetry.metrics().watch(parts.jobs.clone());
        let token = admin_token(parts.folder).map_err(GatewayError::AdminToken)?;
        let cache = Arc::new(Cache::new(parts.cache_bytes));
        parts.telemetry.metrics().watch_cache(Arc::clone(&cache));
        parts.telemetry.metrics().extend(|registry| parts.policies.register(registry));
        Ok(Self(Arc::new(Inner {
            keys,
            jobs: parts.jobs,
            desk: parts.desk,
            metrics: Arc::clone(parts.telemetry.metrics()),
            telemetry: parts.telemetry,
            audit: parts.audit,
            price_max: parts.price_max,
            policies: parts.policies,
            day_log,
            cache,
            cache_embedding: parts.cache_embedding,
            vectors: Semaphore::new(VECTORS_MAX),
            admin_hash: admin_hash(&token),
            owners: Mutex::default(),
            stopping: AtomicBool::new(false),
            since: Instant::now(),
        })))
    }

    /// Serves HTTP on `address`, such as `127.0.0.1:8080`; port 0 takes a free one.
    ///
    /// # Errors
    /// If the address cannot be listened on.
    pub async fn serve(&self, address: &str) -> Result<Serving, GatewayError> {
        let fail = |source| GatewayError::Listen { address: address.to_owned(), source };
        let listener = tokio::net::TcpListener::bind(address).await.map_err(fail)?;
        let bound = listener.local_addr().map_err(fail)?;
        self.0.telemetry.serves_at(bound);
        Ok(Serving::start(listener, bound, http::router(self.clone())))
    }

    /// Takes no more jobs; those under way go on. Readiness turns false.
    pub fn stop_admitting(&self) {
        self.0.stopping.store(true, Ordering::Relaxed);
    }

    /// Waits until all that was settled so far is durable. For a clean stop, after the jobs have ended; what is missed here is
    /// settled at the next start, to what was promised instead of what was delivered.
    pub async fn flush(&self) {
        if self.0.keys.flush().await.is_err() {
            tracing::error!("what keys spent last could not be written");
        }
    }

    /// Admits a request: knows its key, reads it, reserves its worst case, and hands it to the market.
    ///
    /// # Errors
    /// In this order: 401 for a wrong key, 503 while stopping, 413 and 400 for the body, 403 and 404 for the model, 429 and
    /// 402 for the key's limits, 429 if the market is full. An error leaves nothing reserved.
    ///
    /// The answer's events are those of `kind`: what nobody serves as such is refused.
    pub async fn admit(&self, secret: &str, kind: Kind, body: &[u8]) -> Result<AdmittedJob, ApiError> {
        let arrival = Arrival::now(Door::Edge, None);
        let mut known = None;
        let admitted = async {
            let caller = known.insert(self.authenticate(secret).await?);
            self.admit_job(caller, kind, body, false, &Hints::default(), arrival.clone()).await
        };
        let admitted = admitted.await;
        admitted.inspect_err(|error| self.refused(kind, &arrival, known.as_ref(), error))
    }

    /// Whose secret this is.
    ///
    /// # Errors
    /// 401, 403 if the key is blocked, 503 if the keys cannot be looked up.
    pub async fn authenticate(&self, secret: &str) -> Result<Caller, ApiError> {
        let known = self.0.keys.authenticate(secret).await;
        known.inspect_err(|_| self.0.metrics.turned_away(TurnedAway::Unauthorized))
    }

    /// As [`Self::admit`], for a caller that is known. Where a model is to be had by chats alone, a request for a response or a
    /// message becomes a chat, and says so in [`Asked::translation`].
    ///
    /// # Errors
    /// As [`Self::admit`].
    pub async fn admit_as(
        &self,
        caller: &Caller,
        kind: Kind,
        body: &[u8],
        hints: &Hints,
        arrival: Arrival,
    ) -> Result<AdmittedJob, ApiError> {
        self.admit_job(caller, kind, body, true, hints, arrival).await
    }

    /// The node's policies.
    #[must_use]
    pub fn policies(&self) -> &Policies {
        &self.0.policies
    }

    async fn admit_job(
        &self,
        caller: &Caller,
        kind: Kind,
        body: &[u8],
        translate: bool,
        hints: &Hints,
        arrival: Arrival,
    ) -> Result<AdmittedJob, ApiError> {
        let inner = &*self.0;
        self.check_admit(caller, kind, body, translate, hints, arrival).await.inspect_err(|error| {
            inner.metrics.turned_away(match (error.status, error.code.as_str()) {
                (401, _) => TurnedAway::Unauthorized,
                (402, _) | (429, "budget_reserved") => TurnedAway::Budget,
                (429, "rate_limit_exceeded") => TurnedAway::Rate,
                (403 | 404, _) => TurnedAway::Model,
                (429, "concurrency_limit") => TurnedAway::Concurrency,
                (429 | 503, _) => TurnedAway::Full,
                (400..=499, _) => TurnedAway::BadRequest,
                _ => TurnedAway::Internal,
            });
        })
    }

    async fn check_admit(
        &self,
        caller: &Caller,
        endpoint_asked: Kind,
        body: &[u8],
        translate: bool,
        hints: &Hints,
        arrival: Arrival,
    ) -> Result<AdmittedJob, ApiError> {
        let inner = &*self.0;
        if self.is_stopping() {
            return Err(ApiError::stopping());
        }
        if body.len() > BODY_BYTES_MAX {
            return Err(ApiError::too_large(BODY_BYTES_MAX));
        }
        let on_offer = inner.jobs.models();
        let known = |name: &str| on_offer.iter().any(|model| model.id == name);
        let named = surface::with_model(endpoint_asked, body, &on_offer, |model| caller.allows(model));
        let body = named.as_deref().unwrap_or(body);
        let mut request = Request::parse(endpoint_asked, body)?;
        let is_backend = |name: &str| inner.policies.is_backend(name);
        request.resolve(known, is_backend)?;
        let plan = Plan::of(&inner.policies, caller, &request, hints)?;
        // A policy whose every target sets the model leaves the request's own name to be anything.
        let set: Option<Vec<String>> =
            plan.as_ref().and_then(Plan::models).map(|names| names.into_iter().map(str::to_owned).collect());
        let serving = set.as_ref().and_then(|names| names.first()).map_or(request.model(), String::as_str);
        let mut translation = None;
        if translate && surface::is_translated(endpoint_asked, serving, &on_offer, caller.prefer()) {
            (request, translation) = surface::translated(endpoint_asked, body)?;
            request.resolve(known, is_backend)?;
        }
        let kind = request.kind;
        if request.body.len() > BODY_BYTES_MAX {
            return Err(ApiError::too_large(BODY_BYTES_MAX));
        }
        // The models that may be asked for, and where they are named.
        let mut asks: Vec<(&str, &str)> =
            request.models.iter().map(|model| (model.field.as_str(), model.name.as_str())).collect();
        if let Some(names) = &set {
            asks = names.iter().map(|name| ("model", name.as_str())).collect();
        }
        let also = plan.iter().flat_map(Plan::set_models).map(|name| ("model", name));
        if let Some((field, name)) = asks.iter().copied().chain(also).find(|(_, name)| !caller.allows(name)) {
            let message = format!("the key is not for the model `{name}`");
            return Err(ApiError { param: Some(field.into()), ..ApiError::new(403, "model_not_allowed", message) });
        }
        if !asks.iter().any(|(_, name)| known(name)) {
            let (field, name) = asks[0];
            if asks.iter().any(|(_, name)| inner.jobs.rests(name)) {
                let message = format!("no place is available now: the own backend of `{name}` does not answer");
                let error = ApiError::new(503, Reason::OwnUnhealthy.as_str(), message);
                return Err(ApiError { param: Some(field.into()), retry_after_s: Some(1), ..error });
            }
            return Err(ApiError { param: Some(field.into()), ..ApiError::unknown_model(name) });
        }
        let serves = |name: &str| on_offer.iter().any(|model| model.id == name && model.kinds.has(kind));
        if !asks.iter().any(|(_, name)| serves(name)) {
            return Err(ApiError::not_served(endpoint(endpoint_asked).path, asks[0].1));
        }
        let model = request.model().to_owned();
        let asked = Asked {
            endpoint: endpoint_asked,
            kind,
            translation,
            model: model.clone(),
            stream: request.stream,
            include_usage: request.include_usage,
        };
        caller.direct(&mut request.routing.preferences)?;
        let mut state = None;
        let mut recording = None;
        let wish = hints.wish;
        if let Some(keeping) = caller.cache().or_else(|| hints.cache_of(caller)) {
            let (tenant, way) = (keeping.tenant, hints.way(caller));
            let name = cache::name(tenant, endpoint_asked, &request, &way);
            if wish == CacheWish::Use
                && let Some(kept) = inner.cache.find(name, keeping.lasts, Instant::now())
            {
                return self.again(caller, asked, CacheState::Hit, &kept, body, arrival).await;
            }
            let mut question = None;
            if let (Some(least), true) = (keeping.similar, wish != CacheWish::Bypass)
                && let Some(asks) = Question::of(tenant, endpoint_asked, &request, &way)
                && let Some(vector) = self.vector_of(&asks.text).await
            {
                let found = (wish == CacheWish::Use)
                    .then(|| inner.cache.find_similar((&asks, &vector), least, keeping.lasts, Instant::now()));
                if let Some(kept) = found.flatten() {
                    return self.again(caller, asked, CacheState::Similar, &kept, body, arrival).await;
                }
                question = Some((asks, vector));
            }
            if wish == CacheWish::Use {
                inner.cache.missed();
            }
            state = Some(match wish {
                CacheWish::Use => CacheState::Miss,
                CacheWish::Refresh => CacheState::Refreshed,
                CacheWish::Bypass => CacheState::Bypassed,
            });
            if wish != CacheWish::Bypass {
                recording = Some(Recording::new(Arc::clone(&inner.cache), name, question));
            }
        }
        let preferences = request.routing.preferences.clone();
        let mut id = new_job()?;
        if plan.is_some() {
            id = Attempts::first_id(id);
        }
        let no_limit = Price { input: UNLIMITED, cached: UNLIMITED, output: UNLIMITED };
        let own = OwnChoice {
            backends: Vec::new(),
            // A label that keeps jobs on own hardware keeps them from third parties, too.
            owned_only: caller.prefer() == Prefer::Own,
            token_price_max: request.routing.token_price_max(caller.lower(no_limit)),
        };
        let job = Job {
            id,
            model: model.clone(),
            kind,
            prefix: spillway_protocol::prefix::names(&model, &request.body),
            body: request.body,
            output_max: request.output_max,
            continuable: request.continuable,
            prefer: caller.prefer(),
            price_max: request.routing.lower(caller.lower(inner.price_max)),
            alternatives: request.models.into_iter().skip(1).map(|model| model.name).collect(),
            target_ms: preferences.preferred_max_latency_ms.or(caller.target_ms()),
            preferences,
            own,
            // At the edge, a client gets the events as they come.
            whole: translate && !request.stream,
        };
        let (money, tokens) = match &plan {
            None => (policy::cost_max(&inner.policies, &job, &on_offer)?, policy::tokens_max(&job)),
            Some(plan) => plan.most(&job, &on_offer)?,
        };
        let reservation = inner.keys.reserve(caller, id, Amount { money, tokens }).await?;
        let session = request.session.as_deref();
        let note = inner.day_log.as_ref().map(|log| log.begin(id, caller.id, session, &model, job.prompt_units()));
        let (trace, to_servers) = inner.telemetry.trace(arrival.parent.clone(), id);
        let kinds = (endpoint_asked, kind);
        let watch = Watch::new(arrival, &inner.telemetry, caller, id, kinds, &model, request.stream, trace, body);
        let beside = Beside { aside: reservation.aside(), trace: to_servers };
        let submitted = match plan {
            None => inner.jobs.submit(job, beside).map(Underway::One),
            Some(plan) => {
                let mut seed = [0; 32];
                // Without random bytes the draws are those of one seed: still a choice that the weights allow.
                let _ = getrandom::fill(&mut seed);
                let jobs = inner.jobs.clone();
                let attempts = plan.begin(jobs, job, caller, session, hints, money, beside, seed);
                attempts.map(|attempts| Underway::Course(Box::new(attempts)))
            }
        };
        let handle = match submitted {
            Ok(handle) => handle,
            Err(JobsFull) => {
                reservation.settle(Credits::ZERO, 0);
                return Err(ApiError::busy("queue_full", "too many jobs wait on this node already", 1));
            }
        };
        inner.owners.lock().expect("inserting does not panic").insert(id, caller.id);
        let job =
            AdmittedJob::new(asked, handle, reservation, note, watch, inner.jobs.clone(), Arc::clone(&inner.metrics));
        Ok(job.with_cache(state, recording))
    }

    /// A question's vector by the model that is configured for it, on own hardware that costs nothing; `None` without one, if it does
    /// not answer in time, or while too many others wait for theirs.
    async fn vector_of(&self, text: &str) -> Option<Vector> {
        let inner = &*self.0;
        let model = inner.cache_embedding.as_ref()?;
        let _one = inner.vectors.try_acquire().ok()?;
        let body = serde_json::to_vec(&serde_json::json!({"model": model, "input": text})).expect("text is JSON");
        let request = Request::parse(Kind::Embedding, &body).ok()?;
        let free = Price { input: Credits::ZERO, cached: Credits::ZERO, output: Credits::ZERO };
        let job = Job {
            id: new_job().ok()?,
            model: model.clone(),
            kind: Kind::Embedding,
            prefix: Vec::new(),
            body: request.body,
            output_max: request.output_max,
            continuable: false,
            // What a client asks goes nowhere for this.
            prefer: Prefer::Own,
            price_max: free,
            alternatives: Vec::new(),
            target_ms: None,
            preferences: Preferences::default(),
            own: OwnChoice { backends: Vec::new(), owned_only: true, token_price_max: None },
            whole: false,
        };
        let mut handle = inner.jobs.submit(job, Beside::default()).ok()?;
        let answer = async {
            let mut answer = Vec::new();
            loop {
                match handle.next().await? {
                    JobEvent::Chunk(part) => match Part::read(&part)? {
                        Part::Body(bytes) if answer.len() + bytes.len() <= cache::ANSWER_BYTES_MAX => {
                            answer.extend_from_slice(bytes);
                        }
                        Part::Body(_) => return None,
                        Part::Head(_) => {}
                    },
                    JobEvent::Ended(outcome) => return outcome.result.is_ok().then_some(answer),
                    JobEvent::Placed { .. } => {}
                }
            }
        };
        // Dropped, the handle tells the market that nobody waits any more.
        let answer = tokio::time::timeout(VECTOR_WAIT, answer).await.ok()??;
        Vector::read(&answer)
    }

    /// A kept answer as a job of its own, which counts as a request and costs nothing.
    async fn again(
        &self,
        caller: &Caller,
        asked: Asked,
        state: CacheState,
        kept: &cache::Kept,
        body: &[u8],
        arrival: Arrival,
    ) -> Result<AdmittedJob, ApiError> {
        let inner = &*self.0;
        let id = new_job()?;
        let reservation = inner.keys.reserve(caller, id, Amount { money: Credits::ZERO, tokens: 0 }).await?;
        inner.owners.lock().expect("inserting does not panic").insert(id, caller.id);
        inner.jobs.note_kept(id, &asked.model, asked.kind, &kept.finish);
        let trace = inner.telemetry.trace(arrival.parent.clone(), id).0;
        let kinds = (asked.endpoint, asked.kind);
        let watch = Watch::new(arrival, &inner.telemetry, caller, id, kinds, &asked.model, asked.stream, trace, body);
        let job =
            AdmittedJob::again(id, asked, kept, reservation, watch, inner.jobs.clone(), Arc::clone(&inner.metrics));
        Ok(job.with_cache(Some(state), None))
    }

    fn is_stopping(&self) -> bool {
        self.0.stopping.load(Ordering::Relaxed)
    }

    /// Whether `token` is the operator's.
    fn is_admin(&self, token: &str) -> bool {
        bool::from(admin_hash(token).as_bytes().ct_eq(self.0.admin_hash.as_bytes()))
    }

    fn is_owner(&self, caller: &Caller, job: JobId) -> bool {
        self.0.owners.lock().expect("inserting does not panic").by_job.get(&job) == Some(&caller.id)
    }
}

impl Owners {
    fn insert(&mut self, job: JobId, key: KeyId) {
        self.by_job.insert(job, key);
        self.order.push_back(job);
        if self.order.len() > OWNERS_MAX
            && let Some(oldest) = self.order.pop_front()
        {
            self.by_job.remove(&oldest);
        }
    }
}

fn new_job() -> Result<JobId, ApiError> {
    let mut id = JobId([0; 16]);
    getrandom::fill(&mut id.0).map_err(|_| ApiError::internal("the system gives no random bytes"))?;
    Ok(id)
}

/// The tokens that so many work units are taken for.
pub(crate) const fn tokens_of(units: u64) -> u64 {
    units.div_ceil(UNITS_PER_TOKEN)
}

fn admin_hash(token: &str) -> Digest {
    Digest::of("spillway/admin-token/1", &[token.as_bytes()])
}

fn admin_token(folder: &Path) -> anyhow::Result<Zeroizing<String>> {
    let path = folder.join(ADMIN_TOKEN_FILE);
    if !path.exists() {
        let mut random = Zeroizing::new([0; 32]);
        getrandom::fill(&mut *random).map_err(|error| anyhow::anyhow!("the system gives no random bytes: {error}"))?;
        keystore::write_secret(&path, &Zeroizing::new(hex::encode(*random)))?;
    }
    let token = Zeroizing::new(keystore::read_secret(&path)?);
    let trimmed = Zeroizing::new(token.trim().to_owned());
    anyhow::ensure!(trimmed.len() >= 32, "{}: under 32 characters, which can be guessed", path.display());
    Ok(trimmed)
}
