//! What is seen of a job from its client's side: when its answer began, how it came, how it ended.
//! Invariant: a job that was admitted is counted and recorded once, at its end, whatever became of its client.

use super::error::ApiError;
use super::generation::answer_id;
use super::keys::{Caller, KeyId};
use super::{Gateway, Inner};
use crate::jobs::{JobEvent, JobLog, Report};
use crate::metrics::series::NO_MODEL;
use crate::metrics::{Cells, Series, Status};
use crate::openai::endpoint::{Answer, endpoint};
use crate::openai::{Tokens, one_piece, text_of_event};
use crate::telemetry::{Access, Content, Door, Parent, Telemetry, Trace};
use axum::http::HeaderMap;
use spillway_ledger::{Credits, JobId, NodeId, Usage};
use spillway_protocol::{Kind, Outcome, Reason, Route};
use std::sync::Arc;
use std::time::{Instant, SystemTime};

/// A request, as it came in.
#[derive(Clone, Debug)]
pub struct Arrival {
    at: Instant,
    time: SystemTime,
    door: Door,
    pub(super) parent: Option<Parent>,
}

impl Arrival {
    /// A request that comes in now.
    #[must_use]
    pub fn now(door: Door, parent: Option<Parent>) -> Self {
        Self { at: Instant::now(), time: SystemTime::now(), door, parent }
    }
}

/// A job that is watched.
#[derive(Debug)]
pub(super) struct Watch {
    arrival: Arrival,
    telemetry: Telemetry,
    series: Arc<Series>,
    /// The model, where its series has another name.
    model: Option<Arc<str>>,
    job: JobId,
    endpoint: Kind,
    /// The endpoint whose answer comes: another one where it is translated.
    kind: Kind,
    stream: bool,
    key: KeyId,
    project: Option<String>,
    trace: Option<Trace>,
    route: Option<Route>,
    provider: Option<NodeId>,
    reason: Option<Reason>,
    first: Option<Instant>,
    last: Option<Instant>,
    tokens: Option<Tokens>,
    /// What its server calls the answer.
    answer: Option<Box<str>>,
    /// The status and code of an error that the client was told, where the job's own outcome is another.
    told: Option<(u16, String)>,
    content: Option<Box<Content>>,
}

/// What is known of a job at its end.
struct End<'a> {
    status: u16,
    code: Option<String>,
    finish: Option<&'a str>,
    legs: usize,
    units: Usage,
    cost: Credits,
}

fn micros(span: std::time::Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

impl Watch {
    #[expect(clippy::too_many_arguments, reason = "what is known of a job at its beginning, named once")]
    pub(super) fn new(
        arrival: Arrival,
        telemetry: &Telemetry,
        caller: &Caller,
        job: JobId,
        (endpoint, kind): (Kind, Kind),
        model: &str,
        stream: bool,
        trace: Option<Trace>,
        request: &[u8],
    ) -> Self {
        let content = telemetry.wants_content().then(|| {
            let mut content = Box::new(Content::default());
            Content::add(&mut content.request, request);
            content
        });
        let series = telemetry.metrics().series(endpoint, model);
        let other = (*series.model != *model && telemetry.wants_records()).then(|| model.into());
        Self {
            arrival,
            telemetry: telemetry.clone(),
            series,
            model: other,
            job,
            endpoint,
            kind,
            stream,
            key: caller.id,
            project: caller.terms().project.map(|project| project.to_string()),
            trace,
            route: None,
            provider: None,
            reason: None,
            first: None,
            last: None,
            tokens: None,
            answer: None,
            told: None,
            content,
        }
    }

    fn cells(&self) -> &Cells {
        self.series.at(self.route)
    }

    /// Something came for the client.
    pub(super) fn see(&mut self, event: &JobEvent) {
        match event {
            JobEvent::Placed { route, provider, reason, .. } => {
                if self.reason.is_none() {
                    (self.route, self.provider, self.reason) = (Some(*route), *provider, Some(*reason));
                }
            }
            JobEvent::Chunk(bytes) => {
                let now = Instant::now();
                match self.last {
                    None => {
                        self.first = Some(now);
                        self.answer = answer_id(bytes);
                    }
                    Some(last) if self.stream => self.cells().gap.observe(micros(now - last)),
                    Some(_) => {}
                }
                self.last = Some(now);
                let mut tokens = self.tokens.unwrap_or_default();
                if tokens.read(bytes) {
                    self.tokens = Some(tokens);
                }
                if let Some(content) = &mut self.content {
                    let text = match endpoint(self.kind).answer {
                        Answer::Choices(choices) => one_piece::text(choices, bytes),
                        Answer::Events(_) | Answer::Whole(_) => text_of_event(self.kind, bytes),
                    };
                    Content::add(&mut content.answer, &text);
                }
            }
            JobEvent::Ended(_) => {}
        }
    }

    /// What was seen of the answer.
    pub(super) fn report(&mut self) -> Report {
        Report { stream: self.stream, tokens: self.tokens, answer: self.answer.take() }
    }

    /// Whether there is a log that says how the job ended, so that the node's own need not.
    pub(super) fn has_access_log(&self) -> bool {
        self.telemetry.has_access_log()
    }

    /// The client is told an error that is not the job's own.
    pub(super) fn fail(&mut self, error: &ApiError) {
        self.told.get_or_insert_with(|| (error.status, error.code.clone()));
    }

    /// The job is over.
    pub(super) fn end(self, outcome: &Outcome) {
        let (status, code) = match &outcome.result {
            Ok(_) => (200, None),
            Err(failure) => {
                let error = ApiError::from(failure);
                (error.status, Some(error.code))
            }
        };
        let mut units = Usage { input: 0, cached: 0, output: 0 };
        for leg in &outcome.legs {
            self.series.at(Some(leg.route)).add_units(leg.usage);
            units = units.checked_add(leg.usage).unwrap_or(units);
        }
        let finish = outcome.result.as_deref().ok();
        self.close(End { status, code, finish, legs: outcome.legs.len(), units, cost: outcome.cost });
    }

    /// As [`Self::end`], for a job of which only the log knows how it ended, or nobody.
    pub(super) fn end_by_log(self, log: Option<&JobLog>) {
        let mut units = Usage { input: 0, cached: 0, output: 0 };
        for leg in log.iter().flat_map(|log| &log.legs) {
            units.input = units.input.saturating_add(leg.input);
            units.output = units.output.saturating_add(leg.output);
        }
        let cost = Credits::new(log.map_or(0, |log| log.cost_micro));
        let legs = log.map_or(0, |log| log.legs.len());
        self.close(End { status: 502, code: Some("cut".into()), finish: None, legs, units, cost });
    }

    fn close(mut self, end: End<'_>) {
        let now = Instant::now();
        let End { mut status, mut code, finish, legs, units, cost } = end;
        if let Some((other, word)) = self.told.take() {
            (status, code) = (other, Some(word));
        }
        let total_us = micros(now - self.arrival.at);
        let first_us = self.first.map(|first| micros(first - self.arrival.at));
        let cells = self.cells();
        cells.duration[Status::of(status) as usize].observe(total_us);
        // An answer that came in one piece has no first text before its last.
        let in_pieces = self.last > self.first;
        if let Some(first_us) = first_us.filter(|_| self.stream || in_pieces) {
            cells.first.observe(first_us);
        }
        if cost > Credits::ZERO {
            cells.add_cost(cost);
        }
        if let Some(tokens) = &self.tokens {
            cells.add_tokens(tokens);
            if let (Some(first), Some(last), true) = (self.first, self.last, in_pieces && tokens.output > 1) {
                cells.per_token.observe(micros(last - first) / (tokens.output - 1));
            }
        }
        if !self.telemetry.wants_records() {
            return;
        }
        let telemetry = self.telemetry.clone();
        telemetry.record(Access {
            time: self.arrival.time,
            door: self.arrival.door,
            job: Some(self.job),
            key: Some(self.key.to_string()),
            project: self.project,
            endpoint: self.endpoint,
            model: Some(self.model.unwrap_or_else(|| Arc::clone(&self.series.model))),
            stream: self.stream,
            status,
            code,
            finish: finish.map(str::to_owned),
            route: self.route.map_or("none", Route::as_str),
            provider: self.provider,
            reason: self.reason.map(Reason::as_str),
            legs,
            tokens: self.tokens,
            units,
            cost,
            first_us,
            total_us,
            trace: self.trace,
            content: self.content,
        });
    }
}

impl Gateway {
    /// A request that comes in now over HTTP.
    pub(super) fn arrives(&self, headers: &HeaderMap) -> Arrival {
        Arrival::now(Door::Http, self.0.telemetry.parent(headers))
    }

    /// Counts and records a request that became no job.
    pub(super) fn refused(&self, endpoint: Kind, arrival: &Arrival, caller: Option<&Caller>, error: &ApiError) {
        let inner: &Inner = &self.0;
        let total_us = micros(arrival.at.elapsed());
        let series = inner.metrics.series(endpoint, NO_MODEL);
        series.at(None).duration[Status::of(error.status) as usize].observe(total_us);
        if !inner.telemetry.wants_records() {
            return;
        }
        // It has no job to name a trace after; a client's own trace is told of it.
        let trace = arrival.parent.clone().and_then(|parent| {
            let mut id = JobId([0; 16]);
            getrandom::fill(&mut id.0).ok()?;
            inner.telemetry.trace(Some(parent), id).0
        });
        inner.telemetry.record(Access {
            time: arrival.time,
            door: arrival.door,
            job: None,
            key: caller.map(|caller| caller.id.to_string()),
            project: caller.and_then(|caller| caller.terms().project).map(|project| project.to_string()),
            endpoint,
            model: None,
            stream: false,
            status: error.status,
            code: Some(error.code.clone()),
            finish: None,
            route: "none",
            provider: None,
            reason: None,
            legs: 0,
            tokens: None,
            units: Usage { input: 0, cached: 0, output: 0 },
            cost: Credits::ZERO,
            first_us: None,
            total_us,
            trace,
            content: None,
        });
    }
}
