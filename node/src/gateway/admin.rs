//! The operator's routes, under `/admin`.
//! Invariant: each wants the token in `admin.token` and refuses requests that a browser sends for another page.

use super::day_log::DayQuery;
use super::deeds;
use super::desk::{Mint, Wish};
use super::error::ApiError;
use super::generation;
use super::http::{Routes, drain, json_response, query_value, read_body};
use super::keys::{Holder, OVERLAP_S_DEFAULT, View};
use super::ledger_log::{KINDS, LogQuery};
use super::terms::typed;
use super::{Gateway, Terms, guard};
use crate::audit::Who;
use crate::metrics::TurnedAway;
use axum::body::Body;
use axum::extract::{FromRequestParts, Path, RawQuery, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::routing::{get, post};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::json;
use spillway_ledger::{JobId, SessionId};
use std::str::FromStr;

/// Longest body of an operator's request, in bytes.
const BODY_MAX: usize = 64 << 10;
/// Most blocks in one answer; callers ask again from where it ended.
const BLOCKS_MAX: usize = 256;
/// Most lines of the ledger's log, and most receipts, in one answer.
const LINES_MAX: usize = 10_000;
/// Most lines of the audit log in one answer.
const AUDIT_LINES_MAX: usize = 1_000;

pub(super) fn routes(routes: Routes) -> Routes {
    let routes = routes
        .route("/admin/keys", get(list_keys).post(create_key))
        .route("/admin/keys/{id}", get(show_key).patch(update_key).delete(revoke_key))
        .route("/admin/keys/{id}/rotate", post(rotate_key))
        .route("/admin/projects", get(list_projects).post(create_project))
        .route("/admin/projects/{id}", get(show_project).patch(update_project))
        .route("/admin/jobs", get(list_jobs))
        .route("/admin/jobs/{id}", get(show_job))
        .route("/admin/audit", get(audit_lines))
        .route("/admin/audit/head", get(audit_head))
        .route("/admin/market", get(market))
        .route("/admin/status", get(status))
        .route("/admin/ledger/account", get(account))
        .route("/admin/ledger/blocks", get(blocks))
        .route("/admin/ledger/log", get(log))
        .route("/admin/ledger/receipts", get(receipts))
        .route("/admin/ledger/payouts", get(payouts))
        .route("/admin/ledger/proof", get(proof))
        .route("/admin/ledger/mint", post(mint))
        .route("/admin/ledger/entries", post(submit));
    super::managed::routes(routes)
}

/// Proof that the request has the operator's token; a route that takes it cannot be called without. It says who calls.
struct Operator(Who);

impl FromRequestParts<Gateway> for Operator {
    type Rejection = ApiError;

    async fn from_request_parts(head: &mut Parts, gateway: &Gateway) -> Result<Self, ApiError> {
        guard::origin(&head.headers)?;
        if gateway.is_admin(guard::secret(&head.headers).unwrap_or_default()) {
            return Ok(Self(deeds::who(&head.headers, &head.extensions)));
        }
        gateway.0.metrics.turned_away(TurnedAway::Unauthorized);
        let message = "these routes want the token in the node's `admin.token`, as `Authorization: Bearer …`";
        Err(ApiError { message: message.into(), ..ApiError::unauthorized() })
    }
}

async fn body<T: DeserializeOwned>(request: Request) -> Result<T, ApiError> {
    let bytes = read_body(request.into_body(), BODY_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::new(400, "invalid_request", error.to_string()))
}

pub(super) fn job_id(text: &str) -> Result<JobId, ApiError> {
    text.parse().map_err(|_| ApiError {
        param: Some("id".into()),
        ..ApiError::new(400, "invalid_request", "id: not a job's id, which has 32 hexadecimal digits")
    })
}

pub(super) fn unknown_job(text: &str) -> ApiError {
    ApiError::new(404, "job_not_found", format!("the job `{text}` is not among the last ones here"))
}

/// Runs what reads the disk where that may block.
async fn off_thread<T: Send + 'static>(
    gateway: &Gateway,
    read: impl FnOnce(&dyn super::Desk) -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    let desk = gateway.0.desk.clone();
    tokio::task::spawn_blocking(move || read(&*desk))
        .await
        .unwrap_or_else(|_| Err(ApiError::internal("reading the node's files failed; its log says more")))
}

/// The key or project that a path names.
fn holder<T: FromStr>(text: &str, kind: &str) -> Result<T, ApiError> {
    let code = format!("{kind}_not_found");
    text.parse().map_err(|_| ApiError::new(404, &code, format!("a {kind}'s id has 8 hexadecimal digits")))
}

/// A key with its secret: never to be stored on the way.
fn with_secret(status: StatusCode, secret: &str, view: &View) -> Response<Body> {
    #[derive(Serialize)]
    struct Created<'a> {
        secret: &'a str,
        #[serde(flatten)]
        view: &'a View,
    }
    let mut response = json_response(&Created { secret, view });
    *response.status_mut() = status;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

async fn list_keys(_: Operator, State(gateway): State<Gateway>) -> Result<Response<Body>, ApiError> {
    Ok(json_response(&json!({"keys": gateway.0.keys.list().await?})))
}

async fn create_key(
    Operator(who): Operator,
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let terms = Terms::read(body(request).await?)?;
    let (view, secret) = deeds::create_key(&gateway, who, terms).await?;
    tracing::info!(key = view.id, name = view.terms.name, "key made");
    Ok(with_secret(StatusCode::CREATED, &secret, &view))
}

async fn show_key(
    _: Operator,
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let id = Holder::Key(holder(&id, "key")?);
    Ok(json_response(&gateway.0.keys.view(id).await?))
}

async fn update_key(
    Operator(who): Operator,
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let view = deeds::update(&gateway, who, Holder::Key(holder(&id, "key")?), body(request).await?).await?;
    tracing::info!(key = view.id, name = view.terms.name, "key changed");
    Ok(json_response(&view))
}

async fn rotate_key(
    Operator(who): Operator,
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Rotate {
        #[serde(default = "overlap_s")]
        overlap_s: u64,
    }
    const fn overlap_s() -> u64 {
        OVERLAP_S_DEFAULT
    }
    let Rotate { overlap_s } = typed(body(request).await?)?;
    let (view, secret) = deeds::rotate(&gateway, who, holder(&id, "key")?, overlap_s).await?;
    tracing::info!(key = view.id, overlap_s, "key rotated");
    Ok(with_secret(StatusCode::OK, &secret, &view))
}

async fn revoke_key(
    Operator(who): Operator,
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
    request: Request,
) -> Result<StatusCode, ApiError> {
    drain(request.into_body()).await;
    deeds::revoke(&gateway, who, holder(&id, "key")?).await?;
    tracing::info!(key = id, "key revoked");
    Ok(StatusCode::NO_CONTENT)
}

async fn list_projects(_: Operator, State(gateway): State<Gateway>) -> Result<Response<Body>, ApiError> {
    Ok(json_response(&json!({"projects": gateway.0.keys.projects().await?})))
}

async fn create_project(
    Operator(who): Operator,
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let view = deeds::create_project(&gateway, who, Terms::read(body(request).await?)?).await?;
    tracing::info!(project = view.id, name = view.terms.name, "project made");
    let mut response = json_response(&view);
    *response.status_mut() = StatusCode::CREATED;
    Ok(response)
}

async fn show_project(
    _: Operator,
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let id = Holder::Project(holder(&id, "project")?);
    Ok(json_response(&gateway.0.keys.view(id).await?))
}

async fn update_project(
    Operator(who): Operator,
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let view = deeds::update(&gateway, who, Holder::Project(holder(&id, "project")?), body(request).await?).await?;
    tracing::info!(project = view.id, name = view.terms.name, "project changed");
    Ok(json_response(&view))
}

async fn show_job(
    _: Operator,
    State(gateway): State<Gateway>,
    Path(id): Path<String>,
) -> Result<Response<Body>, ApiError> {
    let log = gateway.0.jobs.log(job_id(&id)?).ok_or_else(|| unknown_job(&id))?;
    Ok(json_response(&generation::explained(&gateway, &log)))
}

/// The audit log's lines, as they are on the disk, from a byte on.
async fn audit_lines(
    _: Operator,
    State(gateway): State<Gateway>,
    RawQuery(query): RawQuery,
) -> Result<Response<Body>, ApiError> {
    let from: u64 = field(query.as_deref(), "from", "not a number of bytes")?.unwrap_or(0);
    let audit = gateway.0.audit.clone();
    let read = tokio::task::spawn_blocking(move || audit.lines(from, AUDIT_LINES_MAX)).await;
    let unreadable = || ApiError::internal("the audit log cannot be read");
    let (lines, behind) = read.map_err(|_| unreadable())?.map_err(|error| match error.kind() {
        std::io::ErrorKind::InvalidInput => ApiError {
            param: Some("from".into()),
            ..ApiError::new(400, "invalid_request", "from: no line of the log begins there")
        },
        _ => unreadable(),
    })?;
    let next = (lines.len() == AUDIT_LINES_MAX).then_some(behind);
    Ok(json_response(&json!({"lines": lines, "next": next})))
}

/// The audit log's end, signed by the node: to be kept elsewhere.
async fn audit_head(_: Operator, State(gateway): State<Gateway>) -> Response<Body> {
    json_response(&gateway.0.audit.signed())
}

/// The last jobs' times and sizes, for `spillway jobs export`.
async fn list_jobs(
    _: Operator,
    State(gateway): State<Gateway>,
    RawQuery(query): RawQuery,
) -> Result<Response<Body>, ApiError> {
    let query = query.as_deref();
    let wanted = DayQuery {
        from: field(query, "from", "not a number of jobs")?.unwrap_or(0),
        since_ms: field(query, "since", "not Unix milliseconds")?,
        until_ms: field(query, "until", "not Unix milliseconds")?,
    };
    let Some(log) = gateway.0.day_log.clone() else {
        return Err(ApiError::new(409, "job_log_off", "gateway.job_log: this node keeps no log of its jobs"));
    };
    // What has ended is told.
    gateway.flush().await;
    let read = tokio::task::spawn_blocking(move || log.read(&wanted, LINES_MAX)).await;
    let (jobs, next) =
        read.ok().and_then(Result::ok).ok_or_else(|| ApiError::internal("the job log cannot be read"))?;
    Ok(json_response(&json!({"jobs": jobs, "next": next})))
}

async fn market(_: Operator, State(gateway): State<Gateway>) -> Response<Body> {
    json_response(&json!({"offers": gateway.0.jobs.offers(), "models": &*gateway.0.jobs.models()}))
}

async fn status(_: Operator, State(gateway): State<Gateway>) -> Result<Response<Body>, ApiError> {
    #[derive(Serialize)]
    struct Status {
        #[serde(flatten)]
        node: super::desk::NodeStatus,
        uptime_s: u64,
        jobs_running: u64,
        version: &'static str,
    }
    let node = off_thread(&gateway, |desk| Ok(desk.status())).await?;
    Ok(json_response(&Status {
        node,
        uptime_s: gateway.0.since.elapsed().as_secs(),
        jobs_running: gateway.0.metrics.running(),
        version: env!("CARGO_PKG_VERSION"),
    }))
}

/// The value of a query's field, if it is there.
fn field<T: FromStr>(query: Option<&str>, name: &'static str, form: &str) -> Result<Option<T>, ApiError> {
    let parsed = query_value(query, name).map(|text| text.parse());
    parsed.transpose().map_err(|_| ApiError {
        param: Some(name.into()),
        ..ApiError::new(400, "invalid_request", format!("{name}: {form}"))
    })
}

const ACCOUNT_FORM: &str = "not an account, which has 64 hexadecimal digits";
const HEIGHT_FORM: &str = "not a block's height";

async fn account(
    _: Operator,
    State(gateway): State<Gateway>,
    RawQuery(query): RawQuery,
) -> Result<Response<Body>, ApiError> {
    let account = field(query.as_deref(), "account", ACCOUNT_FORM)?;
    Ok(json_response(&off_thread(&gateway, move |desk| Ok(desk.account(account))).await?))
}

fn binary_response(bytes: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::from(bytes));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    response
}

async fn blocks(
    _: Operator,
    State(gateway): State<Gateway>,
    RawQuery(query): RawQuery,
) -> Result<Response<Body>, ApiError> {
    let from = field(query.as_deref(), "from", HEIGHT_FORM)?.unwrap_or(0);
    let blocks = off_thread(&gateway, move |desk| desk.blocks(from, BLOCKS_MAX)).await?;
    let mut bytes = Vec::with_capacity(blocks.iter().map(|block| block.len() + 4).sum());
    for block in blocks {
        let length = u32::try_from(block.len()).expect("a block is at most about 1 MiB");
        bytes.extend_from_slice(&length.to_le_bytes());
        bytes.extend_from_slice(&block);
    }
    Ok(binary_response(bytes))
}

async fn log(
    _: Operator,
    State(gateway): State<Gateway>,
    RawQuery(query): RawQuery,
) -> Result<Response<Body>, ApiError> {
    let query = query.as_deref();
    let kind: Option<String> = field(query, "kind", "")?;
    if kind.as_deref().is_some_and(|kind| !KINDS.contains(&kind)) {
        return Err(ApiError {
            param: Some("kind".into()),
            ..ApiError::new(400, "invalid_request", format!("kind: not one of {}", KINDS.join(", ")))
        });
    }
    let session: Option<SessionId> = field(query, "session", "not a session's id, which has 64 hexadecimal digits")?;
    let query = LogQuery {
        from: field(query, "from", HEIGHT_FORM)?.unwrap_or(0),
        to: field(query, "to", HEIGHT_FORM)?,
        account: field(query, "account", ACCOUNT_FORM)?,
        kind,
        session,
        limit: field(query, "limit", "not a number of entries")?,
    };
    let (entries, more) = off_thread(&gateway, move |desk| desk.log(&query, LINES_MAX)).await?;
    Ok(json_response(&json!({"entries": entries, "more": more})))
}

async fn receipts(
    _: Operator,
    State(gateway): State<Gateway>,
    RawQuery(query): RawQuery,
) -> Result<Response<Body>, ApiError> {
    let job = query_value(query.as_deref(), "job").map(job_id).transpose()?;
    let receipts = off_thread(&gateway, move |desk| desk.receipts(job, LINES_MAX)).await?;
    Ok(json_response(&json!({"receipts": receipts})))
}

async fn payouts(_: Operator, State(gateway): State<Gateway>) -> Result<Response<Body>, ApiError> {
    let (payouts, height) = off_thread(&gateway, |desk| Ok(desk.payouts())).await?;
    Ok(json_response(&json!({"payouts": payouts, "height": height})))
}

async fn proof(
    _: Operator,
    State(gateway): State<Gateway>,
    RawQuery(query): RawQuery,
) -> Result<Response<Body>, ApiError> {
    let query = query.as_deref();
    let job = query_value(query, "job").map(job_id).transpose()?;
    let leg = field(query, "leg", "not a leg's number")?.unwrap_or(0);
    let account = field(query, "account", ACCOUNT_FORM)?;
    let proof = off_thread(&gateway, move |desk| match job {
        Some(job) => desk.prove_receipt(job, leg),
        None => desk.prove_account(account),
    });
    Ok(binary_response(proof.await?))
}

async fn submit(
    Operator(who): Operator,
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let wish: Wish = body(request).await?;
    let done = deeds::submit(&gateway, who, wish).await?;
    Ok(json_response(&done))
}

async fn mint(
    Operator(who): Operator,
    State(gateway): State<Gateway>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let mint: Mint = body(request).await?;
    let height = deeds::mint(&gateway, who, mint).await?;
    Ok(json_response(&json!({"height": height})))
}
