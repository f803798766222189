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

/// Longest id of an answer that is remembered, in bytes.
const ID_BYTES_MAX: usize = 128;
/// How much of an answer's first piece is searched for it.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// What is known of the job that an id names: its own, or that of its answer, be it ours or its server's. Of those of `is_mine` only:
/// somebody else's job is answered like one that never was.
///
/// # Errors
/// 400 for what is no id, 404 if no job has it.
pub(super) fn named(gateway: &Gateway, text: &str, is_mine: impl Fn(JobId) -> bool) -> Result<JobLog, ApiError> {
    let jobs = &gateway.0.jobs;
    let ids = match ID_PREFIXES.iter().find_map(|prefix| text.strip_prefix(prefix)) {
        None => vec![admin::job_id(text)?],
        Some(rest) => admin::job_id(rest).into_iter().chain(jobs.with_answer(text)).collect(),
    };
    let mut mine = ids.into_iter().filter(|job| is_mine(*job));
    mine.find_map(|job| jobs.log(job)).ok_or_else(|| admin::unknown_job(text))
}

/// The id that an answer's first piece gives the whole. Within text or arguments its quotes would be escaped, and ids of parts
/// begin otherwise.
pub(super) fn answer_id(piece: &[u8]) -> Option<Box<str>> {
    let piece = &piece[..piece.len().min(HEAD_BYTES_MAX)];
    memchr::memmem::find_iter(piece, br#""id""#).find_map(|at| {
        let value = piece[at + 4..].trim_ascii_start().strip_prefix(b":")?.trim_ascii_start().strip_prefix(b"\"")?;
        let value = &value[..value.len().min(ID_BYTES_MAX + 1)];
        let id = std::str::from_utf8(&value[..memchr::memchr(b'"', value)?]).ok()?;
        let is_id = ID_PREFIXES.iter().any(|prefix| id.starts_with(prefix)) && !id.contains('\\');
        is_id.then(|| id.into())
    })
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
    let report = log.report.as_ref();
    let tokens = report.and_then(|report| report.tokens);
    let first_leg = log.legs.first();
    let input = tokens.map_or_else(|| tokens_of(first_leg.map_or(0, |leg| leg.input)), |tokens| tokens.input);
    let units = log.legs.iter().fold(0, |sum: u64, leg| sum.saturating_add(leg.output));
    let output = tokens.map_or_else(|| tokens_of(units), |tokens| tokens.output);
    let provider = first_leg.map(|leg| leg.provider.clone().unwrap_or_else(|| leg.route.to_owned()));
    let left = log.error.as_ref().is_some_and(|error| error.starts_with("client_left"));
    let created = SystemTime::UNIX_EPOCH + Duration::from_millis(log.created_ms);
    json!({
        "id": log.job,
        "upstream_id": report.and_then(|report| report.answer.as_deref()),
        "model": log.model,
        "created_at": crate::telemetry::access::rfc3339(created),
        "streamed": report.is_some_and(|report| report.stream),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answers_id_is_found_in_its_first_piece() {
        let long = format!(r#"{{"id":"chatcmpl-{}"}}"#, "x".repeat(ID_BYTES_MAX));
        for (piece, want) in [
            (r#"{"id":"chatcmpl-1","object":"chat.completion.chunk"}"#, Some("chatcmpl-1")),
            (r#"{"choices":[{"delta":{"tool_calls":[{"id":"call_1"}]}}], "id" : "cmpl-2"}"#, Some("cmpl-2")),
            (r#"{"type":"response.created","response":{"id":"resp_3"}}"#, Some("resp_3")),
            (r#"{"choices":[{"delta":{"content":"\"id\":\"chatcmpl-4\""}}],"id":"msg_5"}"#, Some("msg_5")),
            (r#"{"id":"chatcmpl-6\u0020"}"#, None),
            (r#"{"id":7}"#, None),
            (r#"{"id":"chatcmpl-"#, None),
            (r#"{"id""#, None),
            (&long, None),
            ("", None),
        ] {
            assert_eq!(answer_id(piece.as_bytes()).as_deref(), want, "{piece}");
        }
    }
}
