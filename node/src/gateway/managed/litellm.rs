//! LiteLLM's routes for keys and spending: `/key/…` and `/spend/logs`. The master key is the admin token, a team is a project,
//! a dollar is a credit.
//! Source: docs.litellm.ai, "Virtual Keys" and "Spend Tracking".

use super::{BODY_MAX, budget_of, credits, micro, moment, set_budget, who};
use crate::audit::Who;
use crate::gateway::budget::Window;
use crate::gateway::day_log::DayQuery;
use crate::gateway::error::ApiError;
use crate::gateway::http::{Routes, json_response, query_value, read_body};
use crate::gateway::keys::{Holder, KeyId, View};
use crate::gateway::store::now_ms;
use crate::gateway::terms::{Terms, bad};
use crate::gateway::{Gateway, deeds, tokens_of};
use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, header};
use axum::routing::{get, post};
use serde_json::{Map, Value, json};
use spillway_ledger::Credits;
use time::{Date, Month};

/// Most entries of `/spend/logs` in one answer.
const LOGS_MAX: usize = 10_000;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .route("/key/generate", post(generate))
        .route("/key/update", post(update))
        .route("/key/info", get(info))
        .route("/key/list", get(list))
        .route("/key/block", post(async |state, request| block(state, request, true).await))
        .route("/key/unblock", post(async |state, request| block(state, request, false).await))
        .route("/key/delete", post(delete))
        .route("/spend/logs", get(logs))
}

/// Who of the operators asks, and the body of the request.
async fn operators(gateway: &Gateway, request: Request) -> Result<(Who, Map<String, Value>), ApiError> {
    let (head, body) = request.into_parts();
    let caller = deeds::who(&head.headers, &head.extensions);
    if who(gateway, &head.headers).await?.is_some() {
        return Err(ApiError::new(403, "not_the_operator", "keys are managed with the admin token as the master key"));
    }
    let bytes = read_body(body, BODY_MAX).await?;
    let bytes = if bytes.is_empty() { b"{}".to_vec() } else { bytes };
    let fields = serde_json::from_slice(&bytes);
    let fields = fields.map_err(|error| ApiError::new(400, "invalid_request", error.to_string()))?;
    Ok((caller, fields))
}

/// A key by its secret or its id.
fn key_id(field: &str, text: &str) -> Result<KeyId, ApiError> {
    let id = text.strip_prefix("sk-spillway-").and_then(|rest| rest.split('_').next()).unwrap_or(text);
    id.parse().map_err(|_| bad(field, "neither a key nor the id of one"))
}

fn wanted_key(fields: &mut Map<String, Value>) -> Result<KeyId, ApiError> {
    let key = fields.remove("key").ok_or_else(|| bad("key", "missing"))?;
    key_id("key", key.as_str().ok_or_else(|| bad("key", "not a string"))?)
}

/// `30s`, `15m`, `12h`, `30d`, in seconds.
fn seconds(field: &str, value: &Value) -> Result<u64, ApiError> {
    let parse = || {
        let text = value.as_str()?;
        let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
        let unit = match unit {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            "w" => 7 * 86_400,
            _ => return None,
        };
        count.parse::<u64>().ok()?.checked_mul(unit)
    };
    parse().ok_or_else(|| bad(field, "not a duration such as 30s, 15m, 12h, 30d"))
}

/// The window of a budget's duration. Windows begin at midnight UTC for all keys.
fn window(value: &Value) -> Result<Window, ApiError> {
    match value.as_str() {
        Some("1d" | "24h" | "daily") => Ok(Window::Day),
        Some("7d" | "1w" | "weekly") => Ok(Window::Week),
        Some("30d" | "1mo" | "monthly") => Ok(Window::Month),
        Some(_) => Err(bad("budget_duration", "not one of 1d, 24h, 7d, 30d, 1mo: budgets are per day, week or month")),
        None => Err(bad("budget_duration", "not a string")),
    }
}

const fn duration(window: Window) -> Option<&'static str> {
    match window {
        Window::Day => Some("1d"),
        Window::Week => Some("7d"),
        Window::Month => Some("1mo"),
        Window::Total => None,
    }
}

/// Fields of ours from fields of theirs. `before` is what the key had, for a budget of which only one half is given.
fn ours(fields: Map<String, Value>, before: Option<&View>) -> Result<Map<String, Value>, ApiError> {
    let mut ours = Map::new();
    let (mut max_budget, mut budget_duration) = (None, None);
    for (field, value) in fields {
        let absent = value.is_null();
        match field.as_str() {
            "max_budget" => max_budget = Some(if absent { None } else { Some(micro("max_budget", &value)?) }),
            "budget_duration" => budget_duration = Some(if absent { Window::Total } else { window(&value)? }),
            "duration" if absent => drop(ours.insert("expires_ms".into(), Value::Null)),
            "duration" => {
                let end = now_ms().saturating_add(seconds("duration", &value)?.saturating_mul(1000));
                ours.insert("expires_ms".into(), end.into());
            }
            "rpm_limit" => drop(ours.insert("requests_per_minute".into(), value)),
            "tpm_limit" => drop(ours.insert("tokens_per_minute".into(), value)),
            "max_parallel_requests" => drop(ours.insert("concurrency".into(), value)),
            "models" if value == json!([]) => drop(ours.insert("models".into(), Value::Null)),
            "models" => drop(ours.insert("models".into(), value)),
            "blocked" => drop(ours.insert("blocked".into(), value)),
            "team_id" => drop(ours.insert("project".into(), value)),
            "key_alias" => drop(ours.insert("name".into(), value)),
            "metadata" => drop(ours.insert("labels".into(), labels(value)?)),
            // Said by clients that say all fields there are.
            _ if absent || value == json!({}) || value == json!([]) => {}
            "user_id" => {}
            _ => return Err(bad(&field, "not supported here")),
        }
    }
    if max_budget.is_some() || budget_duration.is_some() {
        let had = before.and_then(budget_of);
        let amount = max_budget.unwrap_or_else(|| had.map(|(_, budget, _)| budget.micro()));
        let window = budget_duration.or_else(|| had.map(|(window, ..)| window)).unwrap_or(Window::Total);
        set_budget(&mut ours, window, amount);
    }
    // Errors name the fields that were sent.
    Ok(ours)
}

/// Metadata as labels: what is no text is kept as JSON.
fn labels(value: Value) -> Result<Value, ApiError> {
    match value {
        Value::Null => Ok(Value::Null),
        Value::Object(fields) => {
            let text = |value: Value| match value {
                Value::String(text) => Value::String(text),
                other => Value::String(other.to_string()),
            };
            Ok(fields.into_iter().map(|(name, value)| (name, text(value))).collect::<Map<_, _>>().into())
        }
        _ => Err(bad("metadata", "not an object")),
    }
}

/// An error in our field's name, in theirs.
fn renamed(error: ApiError) -> ApiError {
    let theirs = match error.param.as_deref() {
        Some("requests_per_minute") => "rpm_limit",
        Some("tokens_per_minute") => "tpm_limit",
        Some("concurrency") => "max_parallel_requests",
        Some("project") => "team_id",
        Some("name") => "key_alias",
        Some("labels") => "metadata",
        Some(_) | None => return error,
    };
    let why = error.message.split_once(": ").map_or(error.message.as_str(), |(_, why)| why);
    ApiError { param: Some(theirs.into()), message: format!("{theirs}: {why}"), ..error }
}

fn theirs(view: &View) -> Map<String, Value> {
    let terms = &view.terms;
    let budget = budget_of(view);
    let spend = budget.map_or(view.spent_micro, |(_, _, spent)| spent);
    let fields = json!({
        "token": view.id,
        "key_name": format!("sk-spillway-{}_…", view.id),
        "key_alias": terms.name,
        "spend": credits(spend),
        "max_budget": budget.map(|(_, budget, _)| credits(budget)),
        "budget_duration": budget.and_then(|(window, ..)| duration(window)),
        "budget_reset_at": budget.map(|(window, ..)| moment_of_reset(window)),
        "expires": terms.expires_ms.map(moment),
        "models": terms.models.clone().unwrap_or_default(),
        "metadata": terms.labels,
        "rpm_limit": terms.requests_per_minute,
        "tpm_limit": terms.tokens_per_minute,
        "max_parallel_requests": terms.concurrency,
        "blocked": terms.blocked || view.revoked,
        "team_id": terms.project,
        "created_at": moment(view.created_ms),
    });
    let Value::Object(fields) = fields else { unreachable!("it is written as an object above") };
    fields
}

fn moment_of_reset(window: Window) -> Value {
    match window.end_ms(now_ms()) {
        u64::MAX => Value::Null,
        end => moment(end),
    }
}

async fn generate(State(gateway): State<Gateway>, request: Request) -> Result<Response<Body>, ApiError> {
    let (who, fields) = operators(&gateway, request).await?;
    let mut fields = ours(fields, None)?;
    fields.retain(|_, value| !value.is_null());
    fields.entry("name").or_insert_with(|| "litellm".into());
    let terms = Terms::read(fields.into()).map_err(renamed)?;
    let (view, secret) = deeds::create_key(&gateway, who, terms).await.map_err(renamed)?;
    tracing::info!(key = view.id, name = view.terms.name, "key made");
    let mut answer = theirs(&view);
    answer.insert("key".into(), secret.as_str().into());
    let mut response = json_response(&answer);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn update(State(gateway): State<Gateway>, request: Request) -> Result<Response<Body>, ApiError> {
    let (who, mut fields) = operators(&gateway, request).await?;
    let holder = Holder::Key(wanted_key(&mut fields)?);
    let before = gateway.0.keys.view(holder).await?;
    let view = deeds::update(&gateway, who, holder, ours(fields, Some(&before))?).await.map_err(renamed)?;
    tracing::info!(key = view.id, name = view.terms.name, "key changed");
    Ok(json_response(&theirs(&view)))
}

async fn info(
    State(gateway): State<Gateway>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let caller = who(&gateway, &headers).await?;
    let asked = query_value(query.as_deref(), "key").map(|text| key_id("key", text)).transpose()?;
    let id = match (caller, asked) {
        (None, Some(id)) => id,
        (None, None) => return Err(bad("key", "missing")),
        (Some(own), None) => own,
        (Some(own), Some(id)) if own == id => own,
        (Some(_), Some(_)) => return Err(ApiError::new(403, "not_the_operator", "a key may ask about itself only")),
    };
    let view = gateway.0.keys.view(Holder::Key(id)).await?;
    Ok(json_response(&json!({"key": view.id, "info": theirs(&view)})))
}

async fn list(State(gateway): State<Gateway>, request: Request) -> Result<Response<Body>, ApiError> {
    operators(&gateway, request).await?;
    let keys: Vec<_> = gateway.0.keys.list().await?.iter().map(|view| view.id.clone()).collect();
    let count = keys.len();
    Ok(json_response(&json!({"keys": keys, "total_count": count, "current_page": 1, "total_pages": 1})))
}

async fn block(State(gateway): State<Gateway>, request: Request, blocked: bool) -> Result<Response<Body>, ApiError> {
    let (who, mut fields) = operators(&gateway, request).await?;
    let holder = Holder::Key(wanted_key(&mut fields)?);
    let patch = Map::from_iter([("blocked".to_owned(), blocked.into())]);
    let view = deeds::update(&gateway, who, holder, patch).await?;
    tracing::info!(key = view.id, blocked, "key changed");
    Ok(json_response(&theirs(&view)))
}

async fn delete(State(gateway): State<Gateway>, request: Request) -> Result<Response<Body>, ApiError> {
    let (who, fields) = operators(&gateway, request).await?;
    let keys = fields.get("keys").and_then(Value::as_array).ok_or_else(|| bad("keys", "missing, or not a list"))?;
    let mut ids = Vec::with_capacity(keys.len());
    for key in keys {
        ids.push(key_id("keys", key.as_str().ok_or_else(|| bad("keys", "not a list of strings"))?)?);
    }
    for id in ids {
        deeds::revoke(&gateway, who.clone(), id).await?;
        tracing::info!(key = %id, "key revoked");
    }
    Ok(json_response(&json!({"deleted_keys": keys})))
}

/// A date such as `2026-11-25`, in UTC, as Unix milliseconds.
fn date(field: &str, text: &str) -> Result<u64, ApiError> {
    let parse = || {
        let mut parts = text.splitn(3, '-');
        let (year, month, day) = (parts.next()?, parts.next()?, parts.next()?);
        let month = Month::try_from(month.parse::<u8>().ok()?).ok()?;
        let date = Date::from_calendar_date(year.parse().ok()?, month, day.parse().ok()?).ok()?;
        u64::try_from(date.midnight().assume_utc().unix_timestamp()).ok()?.checked_mul(1000)
    };
    parse().ok_or_else(|| bad(field, "not a date such as 2026-11-25"))
}

async fn logs(
    State(gateway): State<Gateway>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let caller = who(&gateway, &headers).await?;
    let query = query.as_deref();
    let asked = query_value(query, "api_key").map(|text| key_id("api_key", text)).transpose()?;
    let key = match (caller, asked) {
        (Some(own), Some(other)) if own != other => {
            return Err(ApiError::new(403, "not_the_operator", "a key may ask about itself only"));
        }
        (own, asked) => own.or(asked),
    };
    let since_ms = query_value(query, "start_date").map(|text| date("start_date", text)).transpose()?;
    // The end is a day that counts.
    let until_ms = query_value(query, "end_date").map(|text| date("end_date", text)).transpose()?;
    let wanted = DayQuery { from: 0, since_ms, until_ms: until_ms.map(|end| end.saturating_add(86_400_000)) };
    let job = query_value(query, "request_id").map(str::to_owned);
    let Some(log) = gateway.0.day_log.clone() else {
        return Err(ApiError::new(409, "job_log_off", "gateway.job_log: this node keeps no log of its jobs"));
    };
    gateway.flush().await;
    let read = tokio::task::spawn_blocking(move || log.spending(&wanted, key, job.as_deref(), LOGS_MAX)).await;
    let spent = read.ok().and_then(Result::ok).ok_or_else(|| ApiError::internal("the job log cannot be read"))?;
    let entries: Vec<_> = spent
        .iter()
        .map(|row| {
            let (input, output) = (tokens_of(row.day.input_units), tokens_of(row.day.output_units));
            json!({
                "request_id": row.job,
                "api_key": key.map(|id| id.to_string()),
                "model": row.day.model,
                "spend": credits(Credits::new(row.cost_micro)),
                "prompt_tokens": input,
                "completion_tokens": output,
                "total_tokens": input.saturating_add(output),
                "startTime": moment(row.day.time),
            })
        })
        .collect();
    Ok(json_response(&entries))
}
