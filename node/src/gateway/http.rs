//! The routes for clients, and how a request's body is read.
//! Invariant: every route but `/healthz`, `/readyz` and `/openapi.json` wants a key, and no body is read further than its
//! limit.

use super::answer::{Waits, Wishes, answer};
use super::cache::CacheWish;
use super::error::ApiError;
use super::policy::portkey;
use super::terms::bad;
use super::{Caller, Gateway, admin, generation, guard, rate_headers};
use crate::openai::{Fields, endpoint, messages};
use axum::Router;
use axum::body::Body;
use axum::extract::{RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, Response, header};
use axum::routing::{MethodRouter, get, post};
use http_body_util::BodyExt;
use serde_json::json;
use spillway_protocol::Kind;
use spillway_protocol::job::BODY_BYTES_MAX;
use std::time::Duration;

/// How long a client may take to send a body.
const BODY_WAIT: Duration = Duration::from_secs(60);
/// How much more of a refused body is read and thrown away, so that the client gets to read why: one that is still writing
/// when the connection closes sees only that.
const DRAIN_BYTES_MAX: usize = 32 << 20;
/// How long that may take.
const DRAIN_WAIT: Duration = Duration::from_secs(5);

/// Every route.
pub(super) fn router(gateway: Gateway) -> Router {
    routes()
        .router
        .fallback(async || ApiError::new(404, "not_found", "there is no such route"))
        .method_not_allowed_fallback(async || {
            ApiError::new(405, "method_not_allowed", "the route takes another method")
        })
        .with_state(gateway)
}

/// Routes and their paths: the description of the API is compared with them.
#[derive(Default)]
pub(super) struct Routes {
    router: Router<Gateway>,
    #[cfg(test)]
    paths: Vec<String>,
}

impl Routes {
    /// As [`Router::route`].
    pub(super) fn route(mut self, path: &str, methods: MethodRouter<Gateway>) -> Self {
        self.router = self.router.route(path, methods);
        #[cfg(test)]
        self.paths.push(path.to_owned());
        self
    }

    /// The paths, as axum writes them.
    #[cfg(test)]
    pub(super) fn paths(&self) -> &[String] {
        &self.paths
    }
}

/// Every route.
pub(super) fn routes() -> Routes {
    let mut routes = Routes::default();
    for kind in Kind::ALL {
        // Large, and moved by each layer around it unless it is boxed.
        let handler =
            async move |State(gateway): State<Gateway>, request: Request| Box::pin(job(&gateway, kind, request)).await;
        routes = routes.route(&format!("/v1/{}", endpoint(kind).path), post(handler));
    }
    let routes = routes
        .route("/healthz", get(async || "ok"))
        .route("/readyz", get(ready))
        .route("/metrics", get(metrics))
        .route("/openapi.json", get(openapi))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/messages/count_tokens", post(count_tokens))
        .route("/api/v1/generation", get(show_generation));
    admin::routes(routes)
}

/// Reads a body of at most `limit` bytes.
///
/// # Errors
/// 413 above the limit, 408 if the client is too slow, 400 if the connection breaks.
pub(super) async fn read_body(body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let read = async {
        let (mut body, mut bytes) = (body, Vec::new());
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| ApiError::new(400, "incomplete_body", "the body ended early"))?;
            let Ok(data) = frame.into_data() else { continue };
            if bytes.len() + data.len() > limit {
                drop(bytes);
                drain(body).await;
                return Err(ApiError::too_large(limit));
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    };
    let late = |_| Err(ApiError::new(408, "body_timeout", "the body did not arrive in time"));
    tokio::time::timeout(BODY_WAIT, read).await.unwrap_or_else(late)
}

/// Throws away what is left of a refused body, within limits.
pub(super) async fn drain(mut body: Body) {
    let read = async {
        let mut left = DRAIN_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(after) = left.checked_sub(frame.data_ref().map_or(0, bytes::Bytes::len)) else { return };
            left = after;
        }
    };
    let _ = tokio::time::timeout(DRAIN_WAIT, read).await;
}

/// A request whose sender waits for leave to send the body: refusing it needs no draining.
fn waits_for_leave(headers: &HeaderMap) -> bool {
    headers.get(header::EXPECT).is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Who asks, and what the body is.
async fn caller(gateway: &Gateway, headers: &HeaderMap, body: Body) -> Result<(Caller, Vec<u8>), ApiError> {
    match gateway.authenticate(guard::secret(headers).unwrap_or_default()).await {
        Ok(caller) => Ok((caller, read_body(body, BODY_BYTES_MAX).await?)),
        Err(error) => {
            if !waits_for_leave(headers) {
                drain(body).await;
            }
            Err(error)
        }
    }
}

async fn job(gateway: &Gateway, kind: Kind, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let header = |name: &str| head.headers.get(name).and_then(|value| value.to_str().ok());
    let arrival = gateway.arrives(&head.headers);
    let mut known = None;
    let admitted = async {
        let wish = CacheWish::read(header("x-spillway-cache"), header("cache-control"))
            .ok_or_else(|| bad("x-spillway-cache", "none of `use`, `refresh` and `bypass`"));
        let (caller, bytes) = caller(gateway, &head.headers, body).await?;
        let caller = known.insert(caller);
        let stream = || Fields::parse(&bytes).is_ok_and(|fields| fields.get("stream") == Some("true"));
        let mut hints = portkey::hints(&head.headers, stream, gateway.policies())?;
        hints.wish = wish?;
        gateway.admit_as(caller, kind, &bytes, &hints, arrival.clone()).await
    };
    let wishes = Wishes { detail: head.headers.get("x-spillway-detail").is_some_and(|value| value == "legs") };
    let admitted = admitted.await;
    match admitted {
        Ok(job) => {
            let rates = job.rates();
            let mut response = answer(job, wishes, Waits::default(), gateway.0.metrics.clone()).await;
            rate_headers::add(&rates, response.headers_mut());
            response
        }
        Err(error) => {
            gateway.refused(kind, &arrival, known.as_ref(), &error);
            error.into_response_of(kind)
        }
    }
}

/// About how many tokens a request for a message has, without doing it.
async fn count_tokens(State(gateway): State<Gateway>, request: Request) -> Response<Body> {
    let (head, body) = request.into_parts();
    let counted = async {
        let caller = caller(&gateway, &head.headers, body).await;
        let (caller, body) = caller?;
        let tokens = messages::count_tokens(&body)?;
        let model = Fields::parse(&body).ok().and_then(|fields| fields.read::<String>("model")).unwrap_or_default();
        let is_known = gateway.0.jobs.models().iter().any(|known| known.id == model);
        if !is_known || !caller.allows(&model) {
            return Err(ApiError::unknown_model(&model));
        }
        Ok(json_response(&json!({"input_tokens": tokens})))
    };
    counted.await.unwrap_or_else(|error| error.into_response_of(Kind::Message))
}

pub(super) fn json_response(value: &impl serde::Serialize) -> Response<Body> {
    let mut response = Response::new(Body::from(serde_json::to_vec(value).expect("views have string keys only")));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

async fn ready(State(gateway): State<Gateway>) -> Result<Response<Body>, ApiError> {
    if gateway.is_stopping() {
        return Err(ApiError::stopping());
    }
    Ok(json_response(&json!({"ready": true, "models": gateway.0.jobs.models().len()})))
}

/// What the API is, for programs; it says nothing about this node.
async fn openapi() -> Response<Body> {
    json_response(&super::openapi::description())
}

/// Metrics say how busy the node is and what it spends, which is for its operator; any key of the node will do, and so
/// will the admin token.
async fn metrics(State(gateway): State<Gateway>, headers: HeaderMap) -> Result<Response<Body>, ApiError> {
    let secret = guard::secret(&headers).unwrap_or_default();
    if !gateway.is_admin(secret) {
        gateway.authenticate(secret).await?;
    }
    let mut response = Response::new(Body::from(gateway.0.metrics.to_text()));
    let text = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, text);
    Ok(response)
}

fn model_json(model: &crate::jobs::MarketModel) -> serde_json::Value {
    json!({
        "id": model.id,
        "object": "model",
        // No model here has a date; clients want the field.
        "created": 0,
        "owned_by": if model.own { "own" } else { "network" },
        "x_spillway": {"own": model.own, "providers": model.providers, "price_min": model.price_min, "endpoints": model.kinds},
    })
}

async fn models(State(gateway): State<Gateway>, headers: HeaderMap) -> Result<Response<Body>, ApiError> {
    let caller = gateway.authenticate(guard::secret(&headers).unwrap_or_default()).await?;
    let models = gateway.0.jobs.models();
    let data: Vec<_> = models.iter().filter(|model| caller.allows(&model.id)).map(model_json).collect();
    Ok(json_response(&json!({"object": "list", "data": data})))
}

async fn model(
    State(gateway): State<Gateway>,
    axum::extract::Path(id): axum::extract::Path<String>,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let caller = gateway.authenticate(guard::secret(&headers).unwrap_or_default()).await?;
    let models = gateway.0.jobs.models();
    let model = models.iter().find(|model| model.id == id && caller.allows(&id));
    model.map(|model| json_response(&model_json(model))).ok_or_else(|| ApiError::unknown_model(&id))
}

/// The value of `name` in a query; ids and numbers need no unescaping.
pub(super) fn query_value<'a>(query: Option<&'a str>, name: &str) -> Option<&'a str> {
    query?.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
}

async fn show_generation(
    State(gateway): State<Gateway>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Result<Response<Body>, ApiError> {
    let secret = guard::secret(&headers).unwrap_or_default();
    let caller = if gateway.is_admin(secret) { None } else { Some(gateway.authenticate(secret).await?) };
    let text = query_value(query.as_deref(), "id").unwrap_or_default();
    let is_mine = |job| caller.as_ref().is_none_or(|caller| gateway.is_owner(caller, job));
    let log = generation::named(&gateway, text, is_mine)?;
    Ok(json_response(&json!({"data": generation::told(&gateway, &log)})))
}
