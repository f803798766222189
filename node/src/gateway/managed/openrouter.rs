//! OpenRouter's routes for keys and credits: `/api/v1/key`, `/api/v1/credits`, `/api/v1/keys`. The provisioning key is the admin
//! token, a key's `hash` is its id, a dollar is a credit.
//! Source: openrouter.ai/docs, "Limits" and "Provisioning API Keys".

use super::{BODY_MAX, budget_of, credits, micro, moment, set_budget, who};
use crate::gateway::budget::Window;
use crate::gateway::error::ApiError;
use crate::gateway::http::{Routes, drain, json_response, read_body};
use crate::gateway::keys::{Holder, KeyId, View};
use crate::gateway::terms::{Terms, bad};
use crate::gateway::{Gateway, deeds};
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, StatusCode, header};
use axum::routing::get;
use serde_json::{Map, Value, json};
use spillway_ledger::Credits;

pub(super) fn routes(routes: Routes) -> Routes {
    routes
        .route("/api/v1/key", get(own))
        .route("/api/v1/auth/key", get(own))
        .route("/api/v1/credits", get(balance))
        .route("/api/v1/keys", get(list).post(create))
        .route("/api/v1/keys/{hash}", get(show).patch(update).delete(delete))
}

async fn operator(gateway: &Gateway, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(_) = who(gateway, headers).await? else { return Ok(()) };
    Err(ApiError::new(403, "not_the_operator", "keys are managed with the admin token as the provisioning key"))
}

async fn body(request: Request) -> Result<Map<String, Value>, ApiError> {
    let bytes = read_body(request.into_body(), BODY_MAX).await?;
    serde_json::from_slice(&bytes).map_err(|error| ApiError::new(400, "invalid_request", error.to_string()))
}

fn id(hash: &str) -> Result<Holder, ApiError> {
    let unknown =
        |_| ApiError::new(404, "key_not_found", "a key's hash here is its id, which has 8 hexadecimal digits");
    hash.parse::<KeyId>().map(Holder::Key).map_err(unknown)
}

const fn reset(window: Window) -> Option<&'static str> {
    match window {
        Window::Day => Some("daily"),
        Window::Week => Some("weekly"),
        Window::Month => Some("monthly"),
        Window::Total => None,
    }
}

/// What both routes about one key tell.
fn told(view: &View) -> Map<String, Value> {
    let budget = budget_of(view);
    let left = budget.map(|(_, budget, spent)| credits(budget.saturating_sub(spent)));
    Map::from_iter(
        [
            ("label", format!("sk-spillway-{}_…", view.id).into()),
            ("limit", budget.map(|(_, budget, _)| credits(budget)).into()),
            ("limit_remaining", left.into()),
            ("limit_reset", budget.and_then(|(window, ..)| reset(window)).into()),
            ("usage", credits(view.spent_micro)),
            ("usage_daily", credits(view.spent_day_micro)),
            ("usage_weekly", credits(view.spent_week_micro)),
            ("usage_monthly", credits(view.spent_month_micro)),
        ]
        .map(|(name, value)| (name.to_owned(), value)),
    )
}

fn managed(view: &View) -> Map<String, Value> {
    let mut fields = told(view);
    for (name, value) in [
        ("hash", view.id.clone().into()),
        ("name", view.terms.name.clone().into()),
        ("disabled", (view.terms.blocked || view.revoked).into()),
        ("created_at", moment(view.created_ms)),
        ("expires_at", view.terms.expires_ms.map_or(Value::Null, moment)),
    ] {
        fields.insert(name.into(), value);
    }
    fields
}

async fn own(State(gateway): State<Gateway>, headers: HeaderMap) -> Result<Response<Body>, ApiError> {
    let Some(key) = who(&gateway, &headers).await? else {
        return Err(ApiError::new(403, "not_a_key", "the admin token is no key; ask with a key's secret"));
    };
    let view = gateway.0.keys.view(Holder::Key(key)).await?;
    let mut fields = told(&view);
    fields.insert("is_free_tier".into(), false.into());
    fields.insert("is_provisioning_key".into(), false.into());
    if let Some(requests) = view.terms.requests_per_minute {
        fields.insert("rate_limit".into(), json!({"requests": requests, "interval": "1m"}));
    }
    Ok(json_response(&json!({"data": fields})))
}

/// A key with a budget that never resets has that much in all; any other draws on the account's balance, as the operator does.
async fn balance(State(gateway): State<Gateway>, headers: HeaderMap) -> Result<Response<Body>, ApiError> {
    let spent = match who(&gateway, &headers).await? {
        Some(key) => {
            let view = gateway.0.keys.view(Holder::Key(key)).await?;
            if let Some(budget) = view.terms.budget_micro {
                let data = json!({"total_credits": credits(budget), "total_usage": credits(view.spent_micro)});
                return Ok(json_response(&json!({"data": data})));
            }
            view.spent_micro
        }
        None => {
            let all = gateway.0.keys.list().await?;
            Credits::new(all.iter().fold(0, |sum: u64, view| sum.saturating_add(view.spent_micro.micro())))
        }
    };
    let desk = gateway.0.desk.clone();
    let account = tokio::task::spawn_blocking(move || desk.account(None)).await;
    let account = account.map_err(|_| ApiError::internal("reading the node's books failed; its log says more"))?;
    let total = Credits::new(account.balance_micro.micro().saturating_add(spent.micro()));
    Ok(json_response(&json!({"data": {"total_credits": credits(total), "total_usage": credits(spent)}})))
}

async fn list(State(gateway): State<Gateway>, headers: HeaderMap) -> Result<Response<Body>, ApiError> {
    operator(&gateway, &headers).await?;
    let views = gateway.0.keys.list().await?;
    Ok(json_response(&json!({"data": views.iter().map(managed).collect::<Vec<_>>()})))
}

/// Fields of ours from fields of theirs. `before` is what the key had, for a limit of which only one half is given.
fn ours(fields: Map<String, Value>, before: Option<&View>) -> Result<Map<String, Value>, ApiError> {
    let mut ours = Map::new();
    let (mut limit, mut window) = (None, None);
    for (field, value) in fields {
        match (field.as_str(), &value) {
            ("name", _) => drop(ours.insert("name".into(), value)),
            ("disabled", _) => drop(ours.insert("blocked".into(), value)),
            ("limit", Value::Null) => limit = Some(None),
            ("limit", value) => limit = Some(Some(micro("limit", value)?)),
            ("limit_reset", Value::Null) => window = Some(Window::Total),
            ("limit_reset", value) => {
                let text = value.as_str().unwrap_or_default();
                let named = Window::ALL.into_iter().find(|window| reset(*window) == Some(text));
                window = Some(named.ok_or_else(|| bad("limit_reset", "not one of daily, weekly, monthly"))?);
            }
            ("include_byok_in_limit", _) => {}
            _ => return Err(bad(&field, "not supported here")),
        }
    }
    if limit.is_some() || window.is_some() {
        let had = before.and_then(budget_of);
        let amount = limit.unwrap_or_else(|| had.map(|(_, budget, _)| budget.micro()));
        set_budget(&mut ours, window.or_else(|| had.map(|(window, ..)| window)).unwrap_or(Window::Total), amount);
    }
    Ok(ours)
}

async fn create(State(gateway): State<Gateway>, request: Request) -> Result<Response<Body>, ApiError> {
    operator(&gateway, request.headers()).await?;
    let who = deeds::who(request.headers(), request.extensions());
    let mut fields = ours(body(request).await?, None)?;
    fields.retain(|_, value| !value.is_null());
    let (view, secret) = deeds::create_key(&gateway, who, Terms::read(fields.into())?).await?;
    tracing::info!(key = view.id, name = view.terms.name, "key made");
    let mut response = json_response(&json!({"data": managed(&view), "key": secret.as_str()}));
    *response.status_mut() = StatusCode::CREATED;
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    Ok(response)
}

async fn show(
    State(gateway): State<Gateway>,
    Path(hash): Path<String>,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    operator(&gateway, &headers).await?;
    Ok(json_response(&json!({"data": managed(&gateway.0.keys.view(id(&hash)?).await?)})))
}

async fn update(
    State(gateway): State<Gateway>,
    Path(hash): Path<String>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    operator(&gateway, request.headers()).await?;
    let who = deeds::who(request.headers(), request.extensions());
    let holder = id(&hash)?;
    let before = gateway.0.keys.view(holder).await?;
    let view = deeds::update(&gateway, who, holder, ours(body(request).await?, Some(&before))?).await?;
    tracing::info!(key = view.id, name = view.terms.name, "key changed");
    Ok(json_response(&json!({"data": managed(&view)})))
}

async fn delete(
    State(gateway): State<Gateway>,
    Path(hash): Path<String>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    operator(&gateway, request.headers()).await?;
    let who = deeds::who(request.headers(), request.extensions());
    drain(request.into_body()).await;
    let Holder::Key(key) = id(&hash)? else { unreachable!("a hash names a key") };
    deeds::revoke(&gateway, who, key).await?;
    tracing::info!(key = %key, "key revoked");
    Ok(json_response(&json!({"deleted": true})))
}
