//! Routes of other gateways by which programs manage keys and read what they spent, translated to this one's own.
//! Invariant: a dialect decides nothing; it renames fields. What it cannot express here is refused and named.

mod litellm;
mod openrouter;

use super::budget::Window;
use super::error::ApiError;
use super::http::Routes;
use super::keys::{KeyId, View};
use super::terms::bad;
use super::{Gateway, guard};
use axum::http::HeaderMap;
use serde_json::{Map, Value, json};
use spillway_ledger::Credits;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Longest body of a request here, in bytes.
const BODY_MAX: usize = 64 << 10;
/// Most credits that a budget may have here.
pub(super) const CREDITS_MAX: u32 = 1_000_000_000;

pub(super) fn routes(routes: Routes) -> Routes {
    openrouter::routes(litellm::routes(routes))
}

/// Whether the operator asks, or else which key.
///
/// # Errors
/// 403 for requests that a browser sends for another page; as [`Gateway::authenticate`].
async fn who(gateway: &Gateway, headers: &HeaderMap) -> Result<Option<KeyId>, ApiError> {
    guard::origin(headers)?;
    let secret = guard::secret(headers).unwrap_or_default();
    if gateway.is_admin(secret) {
        return Ok(None);
    }
    Ok(Some(gateway.authenticate(secret).await?.id))
}

/// The field of our own that holds a budget for a window.
const fn budget_field(window: Window) -> &'static str {
    match window {
        Window::Day => "budget_day_micro",
        Window::Week => "budget_week_micro",
        Window::Month => "budget_month_micro",
        Window::Total => "budget_micro",
    }
}

/// The tightest budget of a key as one number and its window: the shortest window that has one. The dialects know one.
fn budget_of(view: &View) -> Option<(Window, Credits, Credits)> {
    let terms = &view.terms;
    [
        (Window::Day, terms.budget_day_micro, view.spent_day_micro),
        (Window::Week, terms.budget_week_micro, view.spent_week_micro),
        (Window::Month, terms.budget_month_micro, view.spent_month_micro),
        (Window::Total, terms.budget_micro, view.spent_micro),
    ]
    .into_iter()
    .find_map(|(window, budget, spent)| Some((window, budget?, spent)))
}

/// Sets one budget and takes the others away: the dialects know one at a time.
fn set_budget(fields: &mut Map<String, Value>, window: Window, micro: Option<u64>) {
    for other in Window::ALL {
        fields.insert(budget_field(other).into(), Value::Null);
    }
    fields.insert(budget_field(window).into(), micro.into());
}

/// Credits, written as a number, as micro-credits.
fn micro(field: &str, value: &Value) -> Result<u64, ApiError> {
    let credits = value.as_f64().ok_or_else(|| bad(field, "not a number of credits"))?;
    if !(0.0..=f64::from(CREDITS_MAX)).contains(&credits) {
        return Err(bad(field, format!("not between 0 and {CREDITS_MAX}")));
    }
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to lie within 0 and 1e15")]
    Ok((credits * 1e6).round() as u64)
}

/// Micro-credits as a number of credits.
fn credits(micro: Credits) -> Value {
    #[expect(clippy::cast_precision_loss, reason = "a number in JSON has no more")]
    let credits = micro.micro() as f64 / 1e6;
    json!(credits)
}

/// A moment in Unix milliseconds as RFC 3339.
fn moment(ms: u64) -> Value {
    let at = i64::try_from(ms / 1000).ok().and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    at.and_then(|at| at.format(&Rfc3339).ok()).map_or(Value::Null, Value::from)
}
