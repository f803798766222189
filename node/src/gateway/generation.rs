//! What became of a job: as OpenRouter tells of a generation, and as `spillway explain` does.
//! Invariant: a price that is told is one that was asked, in the decision or now, and it is said which.
//! Source: openrouter.ai/docs, "Get request & usage metadata for a generation".

use super::error::ApiError;
use super::{Gateway, admin, tokens_of};
use crate::jobs::JobLog;
use serde_json::{Value, json};
use spillway_ledger::{Credits, JobId, Usage};
use std::time::{Duration, SystemTime};

/// What ids of answers begin with that clients may ask by; the job's id is behind it.
const ID_PREFIXES: [&str; 5] = ["chatcmpl-", "cmpl-", "resp_", "msg_", "gen-"];
/// Most offers of now that are told beside a job.
const OFFERS_MAX: usize = 8;

/// The job that an id names: its own, or that of its answer.
///
/// # Errors
/// 400 for one that names none.
pub(super) fn job_of(text: &str) -> Result<JobId, ApiError> {
    admin::job_id(ID_PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)).unwrap_or(text))
}

/// Micro-credits as a number of credits.
#[expect(clippy::cast_precision_loss, reason = "a number in JSON has no more")]
fn credits(micro: u64) -> f64 {
    micro as f64 / 1e6
}

/// Where a job might have gone that no offer was weighed for: what its model costs at others now.
fn offers_now(gateway: &Gateway, log: &JobLog) -> Vec<Value> {
    if !log.considered.is_empty() || log.legs.is_empty() {
        return Vec::new();
    }
    let input = log.legs.iter().map(|leg| leg.input).min().unwrap_or(0);
    let output = log.legs.iter().fold(0, |sum: u64, leg| sum.saturating_add(leg.output));
    let usage = Usage { input, cached: 0, output };
    let mut offers: Vec<(Option<Credits>, Value)> = gateway
        .0
        .jobs
        .offers()
        .into_iter()
        .filter(|offer| offer.model == log.model)
        .map(|offer| {
            let cost = offer.price.cost(usage);
            (cost, json!({"provider": offer.node, "price": offer.price, "would_cost_micro": cost}))
        })
        .collect();
    offers.sort_by_key(|(cost, _)| cost.map_or(u64::MAX, Credits::micro));
    offers.into_iter().take(OFFERS_MAX).map(|(_, offer)| offer).collect()
}

/// All that is known of a job.
pub(super) fn explained(gateway: &Gateway, log: &JobLog) -> Value {
    let mut told = json!(log);
    told["offers_now"] = offers_now(gateway, log).into();
    told
}

/// All that is known of a job, in OpenRouter's fields, and our own under `x_spillway`.
pub(super) fn told(gateway: &Gateway, log: &JobLog) -> Value {
    let tokens = log.report.and_then(|report| report.tokens);
    let first_leg = log.legs.first();
    let input = tokens.map_or_else(|| tokens_of(first_leg.map_or(0, |leg| leg.input)), |tokens| tokens.input);
    let units = log.legs.iter().fold(0, |sum: u64, leg| sum.saturating_add(leg.output));
    let output = tokens.map_or_else(|| tokens_of(units), |tokens| tokens.output);
    let provider = first_leg.map(|leg| leg.provider.clone().unwrap_or_else(|| leg.route.to_owned()));
    let left = log.error.as_ref().is_some_and(|error| error.starts_with("client_left"));
    let created = SystemTime::UNIX_EPOCH + Duration::from_millis(log.created_ms);
    json!({
        "id": log.job,
        "upstream_id": null,
        "model": log.model,
        "created_at": crate::telemetry::access::rfc3339(created),
        "streamed": log.report.is_some_and(|report| report.stream),
        "cancelled": left,
        "origin": "",
        "api_type": if log.kind == "chat" || log.kind == "completion" { "completions" } else { log.kind },
        "app_id": null,
        "is_byok": false,
        "router": null,
        "provider_name": provider,
        "finish_reason": log.finish,
        "native_finish_reason": log.finish,
        "latency": log.first_ms,
        "generation_time": log.first_ms.map(|first| log.total_ms.saturating_sub(first)),
        "moderation_latency": null,
        "tokens_prompt": input,
        "tokens_completion": output,
        "native_tokens_prompt": tokens.map(|tokens| tokens.input),
        "native_tokens_completion": tokens.map(|tokens| tokens.output),
        "native_tokens_reasoning": tokens.map(|tokens| tokens.reasoning),
        "native_tokens_cached": tokens.map(|tokens| tokens.cached),
        "num_media_prompt": null,
        "num_media_completion": null,
        "num_search_results": null,
        "usage": credits(log.cost_micro),
        "total_cost": credits(log.cost_micro),
        "upstream_inference_cost": null,
        "cache_discount": null,
        "x_spillway": explained(gateway, log),
    })
}
