//! A server's answers that are no stream of chunks with choices: events that name their type, and answers as a whole.
//! Invariant: an answer that a server did not finish never ends as if it had.

use super::upstream::{ERROR_BYTES_MAX, Incoming, content_type_of, more_events};
use super::{Out, cut};
use crate::openai::SseParser;
use crate::openai::aggregate::GATHERED_BYTES_MAX;
use crate::openai::endpoint::Choices;
use crate::openai::one_piece::{self, NoAnswer};
use crate::openai::parts::{BODY_BYTES_MAX, body, head};
use serde::Deserialize;
use serde_json::value::RawValue;
use spillway_protocol::BackendError;
use std::borrow::Cow;

/// Most bytes of an answer as a whole.
const WHOLE_BYTES_MAX: usize = 64 << 20;

/// Passes an answer on as it is; gives the finish reason.
pub(super) async fn whole(mut response: Incoming, out: &Out) -> Result<String, BackendError> {
    let mut first = Some(head(content_type_of(&response.response).unwrap_or("application/octet-stream")));
    let mut left = WHOLE_BYTES_MAX;
    loop {
        let bytes = response.piece("the answer").await?;
        // Not before the server has said something: a request that it drops at once may be tried elsewhere.
        if let Some(first) = first.take() {
            out.event(first).await?;
        }
        let Some(bytes) = bytes else { return Ok("stop".into()) };
        out.part(&bytes);
        left = left
            .checked_sub(bytes.len())
            .ok_or_else(|| BackendError::Failed("the server's answer is over 64 MiB".into()))?;
        for piece in bytes.chunks(BODY_BYTES_MAX) {
            out.event(body(piece)).await?;
        }
    }
}

/// Passes on an answer with choices that is no stream; gives the finish reason.
pub(super) async fn in_one_piece(choices: Choices, mut response: Incoming, out: &Out) -> Result<String, BackendError> {
    let mut bytes = Vec::new();
    while let Some(piece) = response.piece("the answer").await? {
        if bytes.len() + piece.len() > GATHERED_BYTES_MAX {
            return Err(BackendError::Failed("the server's answer is over 32 MiB".into()));
        }
        bytes.extend_from_slice(&piece);
    }
    let answer = one_piece::read(choices, bytes).map_err(|error| match error {
        NoAnswer::Error(error) => BackendError::Failed(cut(error, ERROR_BYTES_MAX)),
        NoAnswer::Unknown => BackendError::Failed("the server sent an answer that is none of OpenAI's".into()),
    })?;
    out.whole(answer.json, answer.text).await?;
    Ok(answer.finish)
}

/// What of an event says how the answer goes.
#[derive(Deserialize)]
struct Event<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
    #[serde(borrow, default)]
    response: Option<&'a RawValue>,
    #[serde(borrow, default)]
    delta: Option<&'a RawValue>,
}

/// Passes a stream's events on as they are; gives the finish reason.
pub(super) async fn named_events(mut response: Incoming, out: &Out) -> Result<String, BackendError> {
    let (mut parser, mut events, mut finish) = (SseParser::default(), Vec::new(), None);
    loop {
        let ended = more_events(&mut response, &mut parser, &mut events).await?;
        for data in events.drain(..) {
            if data.trim_ascii() == b"[DONE]" {
                continue; // Some servers end these streams so, too; the events have said it before.
            }
            let Ok(event) = serde_json::from_slice::<Event<'_>>(&data) else {
                return Err(BackendError::Failed("the server sent an event without a type".into()));
            };
            let end = match &*event.r#type {
                "error" => {
                    let why = event.error.or(event.message).map_or("the server failed", RawValue::get);
                    return Err(BackendError::Failed(cut(why.to_owned(), ERROR_BYTES_MAX)));
                }
                "response.failed" => {
                    let why = event.response.map_or("the server failed", RawValue::get);
                    return Err(BackendError::Failed(cut(why.to_owned(), ERROR_BYTES_MAX)));
                }
                "message_delta" => {
                    finish = event.delta.and_then(stop_reason).or(finish);
                    false
                }
                "message_stop" => true,
                "response.completed" => {
                    finish = Some("stop".into());
                    true
                }
                "response.incomplete" => {
                    finish = Some("length".into());
                    true
                }
                _ => false,
            };
            out.event(data).await?;
            if end {
                return Ok(finish.unwrap_or_else(|| "stop".into()));
            }
        }
        if ended {
            return Err(BackendError::Failed("the stream ended early".into()));
        }
    }
}

fn stop_reason(delta: &RawValue) -> Option<String> {
    #[derive(Deserialize)]
    struct Delta {
        stop_reason: Option<String>,
    }
    serde_json::from_str::<Delta>(delta.get()).ok()?.stop_reason
}
