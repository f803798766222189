//! What goes wrong for a client, in OpenAI's shape.
//! Invariant: every error a client sees has a status, a stable `code`, and where a field is at fault, its name in `param`.

use super::budget::Rates;
use super::rate_headers;
use crate::openai::BadRequest;
use axum::body::Body;
use axum::http::{HeaderValue, Response, StatusCode, header};
use axum::response::IntoResponse;
use serde::{Deserialize, Serialize};
use spillway_protocol::{Failure, Kind, Reason};

/// An error for a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// HTTP status.
    pub status: u16,
    /// Stable name, such as `model_not_found`; where a job failed, the code of its [`Reason`].
    pub code: String,
    /// In words.
    pub message: String,
    /// The field at fault.
    pub param: Option<String>,
    /// When to try again, in seconds.
    pub retry_after_s: Option<u64>,
    /// How the limits per minute stand, where one of a key's limits is the cause.
    pub rates: Option<Box<Rates>>,
}

impl ApiError {
    /// An error without a field or a time to retry.
    #[must_use]
    pub fn new(status: u16, code: &str, message: impl Into<String>) -> Self {
        Self { status, code: code.to_owned(), message: message.into(), param: None, retry_after_s: None, rates: None }
    }

    /// 401: the key is missing or wrong; the two are not told apart.
    #[must_use]
    pub fn unauthorized() -> Self {
        Self::new(
            401,
            "invalid_api_key",
            "missing or incorrect API key; pass it as `Authorization: Bearer …` or `x-api-key`",
        )
    }

    /// 404: nothing here or on offer has that name.
    #[must_use]
    pub fn unknown_model(model: &str) -> Self {
        Self {
            param: Some("model".into()),
            ..Self::new(404, "model_not_found", format!("the model `{model}` is neither here nor on offer"))
        }
    }

    /// 413.
    #[must_use]
    pub fn too_large(limit: usize) -> Self {
        Self::new(413, "request_too_large", format!("the body is over {limit} bytes"))
    }

    /// 429: worth trying again after a while.
    #[must_use]
    pub fn busy(code: &str, message: impl Into<String>, retry_after_s: u64) -> Self {
        Self { retry_after_s: Some(retry_after_s), ..Self::new(429, code, message) }
    }

    /// 500: this node's own fault; the details go to its log.
    #[must_use]
    pub fn internal(what: &str) -> Self {
        Self::new(500, "internal_error", what)
    }

    /// 503: the node is going down.
    #[must_use]
    pub fn stopping() -> Self {
        Self { retry_after_s: Some(5), ..Self::new(503, "stopping", "this node is shutting down") }
    }

    /// The error class that clients switch on.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self.status {
            401 => "authentication_error",
            402 => "insufficient_quota",
            403 => "permission_error",
            429 => "rate_limit_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        }
    }

    /// The body: `{"error":{"message","type","param","code"}}`.
    #[must_use]
    pub fn to_json(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Outer<'a> {
            error: Inner<'a>,
        }
        #[derive(Serialize)]
        struct Inner<'a> {
            message: &'a str,
            r#type: &'static str,
            param: Option<&'a str>,
            code: &'a str,
        }
        let error =
            Inner { message: &self.message, r#type: self.kind(), param: self.param.as_deref(), code: &self.code };
        serde_json::to_vec(&Outer { error }).expect("strings are JSON")
    }
}

impl ApiError {
    /// 404: the model is here or on offer, and no place that has it serves the endpoint.
    #[must_use]
    pub fn not_served(path: &str, model: &str) -> Self {
        let message = format!("nobody who has the model `{model}` serves `/v1/{path}`");
        Self { param: Some("model".into()), ..Self::new(404, "endpoint_not_served", message) }
    }

    /// The event that ends a stream of OpenAI's Responses.
    #[must_use]
    pub fn to_responses_event(&self) -> Vec<u8> {
        let event = serde_json::json!({
            "type": "error", "code": self.code, "message": self.message, "param": self.param,
        });
        event.to_string().into_bytes()
    }

    /// The body, and the event that ends a stream, in the shape of Anthropic's API; `code` and `param` are there, too.
    #[must_use]
    pub fn to_messages_json(&self) -> Vec<u8> {
        let kind = match self.status {
            401 => "authentication_error",
            402 => "billing_error",
            403 => "permission_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            400..=499 => "invalid_request_error",
            _ => "api_error",
        };
        let error = serde_json::json!({
            "type": "error",
            "error": {"type": kind, "message": self.message, "code": self.code, "param": self.param},
        });
        error.to_string().into_bytes()
    }

    /// The response, in the shape of `kind`'s API.
    #[must_use]
    pub fn into_response_of(self, kind: Kind) -> Response<Body> {
        if kind != Kind::Message {
            return self.into_response();
        }
        let body = self.to_messages_json();
        let mut response = self.into_response();
        *response.body_mut() = Body::from(body);
        response
    }
}

impl From<BadRequest> for ApiError {
    fn from(bad: BadRequest) -> Self {
        Self { param: bad.field.clone(), ..Self::new(400, "invalid_request", bad.to_string()) }
    }
}

impl From<&Failure> for ApiError {
    fn from(failure: &Failure) -> Self {
        if let Some(status) = failure.status.filter(|status| (400..500).contains(status)) {
            return refused_by_backend(status, &failure.message);
        }
        let retry_after_s = failure.retry_after_ms.map(|ms| ms.div_ceil(1000).max(1));
        let status = match failure.reason {
            Reason::OwnSaturated | Reason::OwnQueued | Reason::OwnHedged | Reason::QueueFull | Reason::Upstream429 => {
                429
            }
            Reason::LabelForbidsNetwork if retry_after_s.is_some() => 429,
            Reason::LabelForbidsNetwork => 403,
            Reason::NoDeposit => 402,
            Reason::ModelNotLocal
            | Reason::PriceCap
            | Reason::NoOffer
            | Reason::OwnUnhealthy
            | Reason::ProviderRefused
            | Reason::ProviderPreempted
            | Reason::NoPlace => 503,
            Reason::Timeout => 504,
            Reason::ProviderStalled | Reason::UpstreamError => 502,
            Reason::ClientLeft => 499,
            Reason::OwnFree => 500,
        };
        // Clients retry a 429 by its header, so that one is always there.
        let retry_after_s = if status == 429 { retry_after_s.or(Some(1)) } else { retry_after_s };
        Self { retry_after_s, ..Self::new(status, failure.reason.as_str(), failure.message.clone()) }
    }
}

/// The backend's own refusal, with its words, field and code as far as they can be read.
fn refused_by_backend(status: u16, body: &str) -> ApiError {
    #[derive(Default, Deserialize)]
    struct Outer {
        #[serde(default)]
        error: Option<Inner>,
        #[serde(default)]
        message: Option<String>,
        #[serde(default)]
        detail: Option<serde_json::Value>,
    }
    #[derive(Default, Deserialize)]
    struct Inner {
        #[serde(default)]
        message: Option<String>,
        #[serde(default)]
        param: Option<String>,
        #[serde(default)]
        code: Option<serde_json::Value>,
    }
    let outer: Outer = serde_json::from_str(body).unwrap_or_default();
    let inner = outer.error.unwrap_or_default();
    let message = inner
        .message
        .or(outer.message)
        .or_else(|| outer.detail.map(|detail| detail.as_str().map_or_else(|| detail.to_string(), str::to_owned)))
        .unwrap_or_else(|| if body.is_empty() { "the backend refused the request".into() } else { body.to_owned() });
    let code =
        inner.code.and_then(|code| code.as_str().map(str::to_owned)).unwrap_or_else(|| "upstream_rejected".into());
    ApiError { param: inner.param, ..ApiError::new(status, &code, message) }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(seconds) = self.retry_after_s {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if let Some(rates) = &self.rates {
            rate_headers::add(rates, headers);
        }
        if self.status == 429 && self.retry_after_s.is_none() {
            // OpenAI's clients heed it: what never fits need not be tried again.
            headers.insert("x-should-retry", HeaderValue::from_static("false"));
        }
        if self.status == 401 {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(reason: Reason, retry_after_ms: Option<u64>, status: Option<u16>, message: &str) -> Failure {
        Failure { reason, retry_after_ms, status, upstream: None, message: message.into() }
    }

    #[test]
    fn every_reason_has_a_status() {
        for reason in Reason::ALL {
            let error = ApiError::from(&failure(reason, None, None, "why"));
            assert_eq!(error.code, reason.as_str());
            assert!((400..600).contains(&error.status), "{reason:?}: {}", error.status);
            assert_eq!(error.retry_after_s.is_some(), error.status == 429, "{reason:?}");
        }
        let cases = [
            (failure(Reason::QueueFull, Some(2500), None, ""), 429, Some(3)),
            (failure(Reason::QueueFull, Some(1), None, ""), 429, Some(1)),
            (failure(Reason::LabelForbidsNetwork, Some(1000), None, ""), 429, Some(1)),
            (failure(Reason::NoOffer, Some(1000), None, ""), 503, Some(1)),
            (failure(Reason::UpstreamError, None, Some(422), ""), 422, None),
            (failure(Reason::UpstreamError, None, Some(200), ""), 502, None),
        ];
        for (failure, status, retry) in cases {
            let error = ApiError::from(&failure);
            assert_eq!((error.status, error.retry_after_s), (status, retry), "{failure:?}");
        }
    }

    #[test]
    fn a_backends_refusal_keeps_its_words() {
        let cases = [
            (
                r#"{"error":{"message":"too long","param":"messages","code":"context_length_exceeded"}}"#,
                "too long",
                Some("messages"),
                "context_length_exceeded",
            ),
            (r#"{"error":{"message":"bad","code":400}}"#, "bad", None, "upstream_rejected"),
            (r#"{"object":"error","message":"vllm says"}"#, "vllm says", None, "upstream_rejected"),
            (r#"{"detail":[{"loc":["body"]}]}"#, r#"[{"loc":["body"]}]"#, None, "upstream_rejected"),
            ("plain words", "plain words", None, "upstream_rejected"),
            ("", "the backend refused the request", None, "upstream_rejected"),
        ];
        for (body, message, param, code) in cases {
            let error = ApiError::from(&failure(Reason::UpstreamError, None, Some(400), body));
            assert_eq!(
                (error.message.as_str(), error.param.as_deref(), error.code.as_str()),
                (message, param, code),
                "{body}"
            );
        }
    }

    #[test]
    fn the_body_has_openais_shape() {
        assert_eq!(
            String::from_utf8(ApiError::unknown_model("x\"y").to_json()).expect("JSON"),
            r#"{"error":{"message":"the model `x\"y` is neither here nor on offer","type":"invalid_request_error","param":"model","code":"model_not_found"}}"#
        );
    }
}
