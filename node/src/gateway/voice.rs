//! How an answer is said to the client: in the form of the endpoint it called, streamed or in one piece.
//! Invariant: a stream's last frame is its form's own end, or an error; one piece is what the stream would have come to.

use super::answer::Detail;
use super::error::ApiError;
use super::job::{AdmittedJob, Translation};
use crate::openai::endpoint::{Answer, Choices, Events, endpoint};
use crate::openai::fields::Fields;
use crate::openai::messages::MessagesAnswer;
use crate::openai::named::Named;
use crate::openai::responses::ResponsesAnswer;
use crate::openai::sse::{DONE, frame, named_frame};
use crate::openai::stitch::CannotContinue;
use crate::openai::{Aggregate, Stitch, one_piece};
use bytes::Bytes;
use spillway_ledger::Credits;
use spillway_protocol::Kind;
use std::collections::VecDeque;
use std::time::SystemTime;

/// What is said of a job at its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bill<'a> {
    /// What it cost.
    pub(super) cost: Credits,
    /// Its legs, if the client wants to know.
    pub(super) detail: Option<&'a Detail>,
}

/// An answer in the making.
#[derive(Debug)]
pub(super) struct Voice {
    asked: Kind,
    /// Whether usage goes at a stream's end.
    usage: bool,
    /// How chunks have their choices, where the backend's answer is made of them.
    choices: Option<Choices>,
    /// Nothing came yet.
    fresh: bool,
    form: Form,
}

#[derive(Debug)]
enum Form {
    /// Chunks with choices, as they came.
    Choices { stitch: Stitch, whole: Box<Aggregate>, one_piece: Option<Vec<u8>> },
    /// Events with a type, as they came.
    Named(Box<Named>),
    /// Made of a chat's chunks.
    Responses { stitch: Stitch, answer: Box<ResponsesAnswer> },
    /// Made of a chat's chunks.
    Messages { stitch: Stitch, answer: Box<MessagesAnswer> },
}

impl Voice {
    /// For a job whose answer is a stream at its backend.
    ///
    /// # Panics
    /// For one whose answer is a whole.
    pub(super) fn new(job: &AdmittedJob) -> Self {
        let asked = job.asked();
        let created_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |since| since.as_secs());
        let id = job.id().to_string();
        let stitch = |choices| Stitch::new(choices, &format!("chatcmpl-{id}"), created_s, &asked.model);
        let form = match (endpoint(asked.kind).answer, &asked.translation) {
            (Answer::Choices(choices), None) => {
                let whole = Box::new(Aggregate::new(choices));
                Form::Choices { stitch: stitch(choices), whole, one_piece: None }
            }
            (Answer::Choices(choices), Some(Translation::Responses(echo))) => {
                let answer = ResponsesAnswer::new(echo.clone(), &id, created_s, &asked.model);
                Form::Responses { stitch: stitch(choices), answer: Box::new(answer) }
            }
            (Answer::Choices(choices), Some(Translation::Messages)) => {
                let answer = MessagesAnswer::new(&id, &asked.model);
                Form::Messages { stitch: stitch(choices), answer: Box::new(answer) }
            }
            (Answer::Events(events), _) => Form::Named(Box::new(Named::new(events))),
            (Answer::Whole(_), _) => unreachable!("a whole answer is passed on as it is"),
        };
        let choices = match endpoint(asked.kind).answer {
            Answer::Choices(choices) => Some(choices),
            Answer::Events(_) | Answer::Whole(_) => None,
        };
        Self { asked: asked.endpoint, usage: asked.include_usage, choices, fresh: true, form }
    }

    /// The job was placed, for the first time or anew.
    pub(super) fn leg(&mut self) -> Result<(), CannotContinue> {
        self.unfold();
        match &mut self.form {
            Form::Choices { stitch, .. } | Form::Responses { stitch, .. } | Form::Messages { stitch, .. } => {
                stitch.leg()
            }
            Form::Named(named) => named.leg(),
        }
    }

    /// The frames of a backend's event.
    pub(super) fn chunk(&mut self, bytes: Vec<u8>, out: &mut VecDeque<Bytes>) {
        // An answer in one piece comes alone.
        let bytes = match self.choices {
            Some(choices) if std::mem::take(&mut self.fresh) => one_piece::as_event(choices, bytes),
            Some(_) | None => bytes,
        };
        match &mut self.form {
            Form::Choices { stitch, .. } => out.extend(stitch.event(bytes).map(|event| frame(&event))),
            Form::Named(named) => out.extend(named.event(&bytes).map(|name| named_frame(&name, &bytes))),
            Form::Responses { stitch, answer } => {
                if let Some(event) = stitch.event(bytes) {
                    answer.chunk(&event, out);
                }
            }
            Form::Messages { stitch, answer } => {
                if let Some(event) = stitch.event(bytes) {
                    answer.chunk(&event, out);
                }
            }
        }
    }

    /// The frames that end a stream well.
    pub(super) fn end(&mut self, finish: &str, bill: Bill<'_>, out: &mut VecDeque<Bytes>) {
        match &mut self.form {
            Form::Choices { stitch, .. } => {
                out.extend(stitch.finish(finish).map(|event| frame(&event)));
                if self.usage || bill.detail.is_some() {
                    let usage = stitch.usage(bill.cost, bill.detail);
                    out.push_back(frame(&stitch.usage_event(usage)));
                }
                out.push_back(Bytes::from_static(DONE));
            }
            Form::Named(named) => {
                if !named.is_over() {
                    out.push_back(error_frame(self.asked, &cut_at_limit()));
                }
            }
            Form::Responses { stitch, answer } => answer.end(finish, &stitch.usage(bill.cost, bill.detail), out),
            Form::Messages { stitch, answer } => answer.end(finish, &stitch.usage(bill.cost, bill.detail), out),
        }
    }

    /// The frame that ends a stream badly.
    pub(super) fn error(&self, error: &ApiError) -> Bytes {
        match &self.form {
            Form::Responses { answer, .. } => answer.error(&error.code, &error.message, error.param.as_deref()),
            Form::Choices { .. } | Form::Named(_) | Form::Messages { .. } => error_frame(self.asked, error),
        }
    }

    /// What looked like an answer in one piece has more behind it: it was a completion's last event, but for usage.
    fn unfold(&mut self) {
        if let (Form::Choices { stitch, whole, one_piece }, Some(choices)) = (&mut self.form, self.choices)
            && let Some(first) = one_piece.take()
            && let Some(event) = stitch.event(one_piece::as_event(choices, first))
        {
            // It is the first, and within the limit of all.
            let _ = whole.push(&event);
        }
    }

    /// Keeps a backend's event for the answer in one piece.
    pub(super) fn gather(&mut self, bytes: Vec<u8>) -> Result<(), ApiError> {
        self.unfold();
        match &mut self.form {
            Form::Choices { one_piece, .. }
                if self.fresh && self.choices.is_some_and(|choices| one_piece::is_answer(choices, &bytes)) =>
            {
                self.fresh = false;
                *one_piece = Some(bytes);
                Ok(())
            }
            Form::Choices { stitch, whole, .. } => {
                self.fresh = false;
                stitch.event(bytes).map_or(Ok(()), |event| whole.push(&event)).map_err(too_long)
            }
            Form::Named(named) => named.gather(&bytes).map_err(too_long),
            // What they gather is bounded by the job's output; their frames are nobody's here.
            Form::Responses { .. } | Form::Messages { .. } => {
                self.chunk(bytes, &mut VecDeque::new());
                Ok(())
            }
        }
    }

    /// The answer in one piece.
    pub(super) fn whole(self, finish: &str, bill: Bill<'_>) -> Result<Vec<u8>, ApiError> {
        match self.form {
            Form::Choices { mut stitch, one_piece: Some(json), .. } => {
                let mut answer = Fields::parse(&json).map_err(|_| {
                    ApiError::new(502, "upstream_error", "the backend's answer names a field twice, or has too many")
                })?;
                if let Some(usage) = answer.raw("usage").filter(|usage| usage.get().starts_with('{')) {
                    stitch.reported(usage.to_owned());
                }
                answer.set("usage", stitch.usage(bill.cost, bill.detail));
                Ok(answer.to_bytes())
            }
            Form::Choices { mut stitch, mut whole, one_piece: None } => {
                if let Some(event) = stitch.finish(finish) {
                    whole.push(&event).map_err(too_long)?;
                }
                Ok(whole.finish(stitch.usage(bill.cost, bill.detail)))
            }
            Form::Named(named) => named.whole().ok_or_else(cut_at_limit),
            Form::Responses { stitch, answer } => Ok(answer.whole(finish, &stitch.usage(bill.cost, bill.detail))),
            Form::Messages { stitch, answer } => Ok(answer.whole(finish, &stitch.usage(bill.cost, bill.detail))),
        }
    }
}

fn too_long(error: crate::openai::aggregate::AnswerTooLong) -> ApiError {
    ApiError::new(502, "answer_too_long", error.to_string())
}

/// The job's limit is counted in bytes and the server's in tokens: it wrote more than eight bytes for each of them.
fn cut_at_limit() -> ApiError {
    ApiError::new(502, "answer_too_long", "the answer reached the job's limit before its own end")
}

/// An error in the form in which `kind`'s streams have them.
fn error_frame(kind: Kind, error: &ApiError) -> Bytes {
    match endpoint(kind).answer {
        Answer::Events(Events::Responses) => named_frame("error", &error.to_responses_event()),
        Answer::Events(Events::Messages) => named_frame("error", &error.to_messages_json()),
        Answer::Choices(_) | Answer::Whole(_) => frame(&error.to_json()),
    }
}
