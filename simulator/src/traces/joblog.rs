//! A gateway's own day: a JSON object for each job, without content. Format: `docs/simulator.md`, "Workloads".
//! Invariant: jobs are in order of time; clients, sessions and models are numbered by their first appearance in it, so nothing
//! of a log but times and sizes reaches a run.

use super::Request;
use super::error::{Problem, TraceError};
use super::lines::Lines;
use super::sampling::TOKENS_MAX;
use super::trace::{REQUESTS_MAX, Trace};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::Path;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Bytes of a name: a model, a key, a session.
const NAME_MAX: usize = 256;
/// Models of one log.
const MODELS_MAX: usize = 4096;
/// 1970 to 2100, in milliseconds.
const TIME_MAX_MS: u64 = 4_102_444_800_000;

/// A gateway's jobs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JobLog {
    /// When the first job came, in Unix microseconds. The requests' times count from there.
    pub begin_us: u64,
    /// The models, as [`Job::model`] numbers them.
    pub models: Vec<String>,
    /// The jobs.
    pub jobs: Vec<Job>,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// Which model.
    pub model: usize,
    /// The rest. Its sizes are in units, as the log has them.
    pub request: Request,
}

impl JobLog {
    /// Reads a file, plain or `.zst`. Its lines may be in any order.
    pub fn read(path: &Path) -> Result<Self, TraceError> {
        Self::parse(Lines::open(path)?)
    }

    /// The jobs of one model, or of all, as a workload. A token is `units_per_token` units: 1 if the meter counts tokens, about
    /// 4 if it counts bytes of English text.
    #[must_use]
    pub fn trace(&self, model: Option<&str>, units_per_token: u32) -> Trace {
        let wanted =
            |job: &&Job| model.is_none_or(|model| self.models.get(job.model).is_some_and(|name| name == model));
        let tokens = |units: u32| units.div_ceil(units_per_token.max(1)).max(1);
        let request = |job: &Job| Request {
            input: tokens(job.request.input),
            output: tokens(job.request.output),
            ..job.request.clone()
        };
        Trace::new(self.jobs.iter().filter(wanted).map(request).collect())
    }

    pub(super) fn parse(mut lines: Lines<'_>) -> Result<Self, TraceError> {
        let mut read: Vec<Line> = Vec::new();
        let mut names = Names::default();
        while lines.advance()? {
            if read.len() == REQUESTS_MAX {
                return Err(TraceError::TooMany { file: lines.file().to_owned(), what: "jobs", max: REQUESTS_MAX });
            }
            let line = line(&lines, &mut names)?;
            if names.models.len() > MODELS_MAX {
                return Err(TraceError::TooMany { file: lines.file().to_owned(), what: "models", max: MODELS_MAX });
            }
            read.push(line);
        }
        read.sort_by_key(|line| line.time_us);
        let Some(begin_us) = read.first().map(|line| line.time_us) else {
            return Err(TraceError::Empty { file: lines.file().to_owned() });
        };
        let (mut clients, mut sessions) = (Numbers::default(), Numbers::default());
        let mut models = Numbers::default();
        let jobs = read.iter().enumerate().map(|(index, line)| Job {
            model: models.of(line.model) as usize,
            request: Request {
                at_us: line.time_us - begin_us,
                client: clients.of(line.client) as u32,
                // A job without a session is a conversation of its own.
                session: sessions.of(line.session.unwrap_or(u64::MAX - index as u64)),
                input: line.input,
                output: line.output,
                prefix: Box::default(),
            },
        });
        let jobs = jobs.collect();
        let mut by_number = vec![String::new(); models.0.len()];
        for (name, id) in names.models {
            by_number[models.of(id) as usize] = name;
        }
        Ok(Self { begin_us, models: by_number, jobs })
    }
}

/// A line, its names numbered as they were met.
struct Line {
    time_us: u64,
    model: u64,
    client: u64,
    session: Option<u64>,
    input: u32,
    output: u32,
}

#[derive(Default)]
struct Names {
    models: BTreeMap<String, u64>,
    clients: BTreeMap<String, u64>,
    /// A session belongs to a client: two clients may use the same name.
    sessions: BTreeMap<(u64, String), u64>,
}

/// Numbers what it is given, from 0, in the order in which it meets them.
#[derive(Default)]
struct Numbers(BTreeMap<u64, u64>);

impl Numbers {
    fn of(&mut self, thing: u64) -> u64 {
        let count = self.0.len() as u64;
        *self.0.entry(thing).or_insert(count)
    }
}

fn line(lines: &Lines<'_>, names: &mut Names) -> Result<Line, TraceError> {
    let text = lines.text()?;
    let Ok(record) = serde_json::from_str::<Map<String, Value>>(text) else {
        return Err(lines.error("line", Problem::not(text, "a JSON object")));
    };
    let field = |name: &str| record.get(name).filter(|value| !value.is_null());
    let must = |name: &str| field(name).ok_or_else(|| lines.error(name, Problem::Missing));
    let name = |name: &str, value: &Value| match value {
        Value::String(text) if text.len() > NAME_MAX => Err(lines.error(name, Problem::TooLong { max: NAME_MAX })),
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        other => Err(lines.error(name, Problem::not(other, "a name"))),
    };
    let units = |name: &str| {
        let value = must(name)?;
        let Some(units) = value.as_u64() else { return Err(lines.error(name, Problem::not(value, "a whole number"))) };
        // A job that failed has no output. What is above counts bytes, at most.
        let max = TOKENS_MAX * 8;
        match u32::try_from(units) {
            Ok(units) if units <= max => Ok(units),
            _ => Err(lines.error(name, Problem::range(units, 0.0, max.into()))),
        }
    };
    let time = must("time")?;
    let time_us = match time {
        Value::Number(number) => match number.as_u64() {
            Some(ms) if ms <= TIME_MAX_MS => ms * 1000,
            _ => return Err(lines.error("time", Problem::range(number, 0.0, TIME_MAX_MS as f64))),
        },
        Value::String(text) => {
            let parsed = OffsetDateTime::parse(text, &Rfc3339).ok();
            let micros = parsed.and_then(|time| u64::try_from(time.unix_timestamp_nanos() / 1000).ok());
            match micros {
                Some(micros) if micros <= TIME_MAX_MS * 1000 => micros,
                _ => return Err(lines.error("time", Problem::not(text, "RFC 3339, from 1970 to 2100"))),
            }
        }
        other => return Err(lines.error("time", Problem::not(other, "RFC 3339 or Unix milliseconds"))),
    };
    let model = name("model", must("model")?)?;
    let (input, output) = (units("input_units")?, units("output_units")?);
    let who = if field("client").is_some() { "client" } else { "key" };
    let client = name(who, must(who)?)?;
    let session = field("session").map(|session| name("session", session)).transpose()?;
    // Every check has passed: only now are names kept.
    let count = names.models.len() as u64;
    let model = *names.models.entry(model).or_insert(count);
    let count = names.clients.len() as u64;
    let client = *names.clients.entry(client).or_insert(count);
    let count = names.sessions.len() as u64;
    let session = session.map(|session| *names.sessions.entry((client, session)).or_insert(count));
    Ok(Line { time_us, model, client, session, input, output })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(text: &str) -> Result<JobLog, TraceError> {
        JobLog::parse(Lines::of("jobs.jsonl", text.as_bytes()))
    }

    #[test]
    fn a_day_is_read_in_order_of_time() {
        let log = log(concat!(
            r#"{"time":"2026-07-01T09:00:02.5Z","model":"b","input_units":90,"output_units":0,"key":"k2"}"#,
            "\n\n",
            r#"{"time":"2026-07-01T11:00:00+02:00","model":"a","input_units":100,"output_units":20,"key":"k1","session":7}"#,
            "\n",
            r#"{"time":1782896410250,"model":"a","input_units":130,"output_units":9,"key":"k1","session":"7","cost_micro":3}"#,
            "\n",
            r#"{"time":1782896411000,"model":"a","input_units":130,"output_units":9,"client":"k2","key":"x","session":"7"}"#,
        ))
        .unwrap();
        assert_eq!(log.begin_us, 1_782_896_400_000_000);
        assert_eq!(log.models, ["a", "b"]);
        let bare: Vec<_> = log
            .jobs
            .iter()
            .map(|job| (job.model, job.request.at_us, job.request.client, job.request.session))
            .collect();
        // The same session name of another client is another session.
        assert_eq!(bare, [(0, 0, 0, 0), (1, 2_500_000, 1, 1), (0, 10_250_000, 0, 0), (0, 11_000_000, 1, 2)]);
        let sizes =
            |trace: Trace| trace.requests().iter().map(|request| (request.input, request.output)).collect::<Vec<_>>();
        assert_eq!(sizes(log.trace(None, 1)), [(100, 20), (90, 1), (130, 9), (130, 9)]);
        assert_eq!(sizes(log.trace(Some("b"), 4)), [(23, 1)]);
        assert_eq!(sizes(log.trace(Some("c"), 4)), []);
    }

    #[test]
    fn errors_name_the_field() {
        let cases = [
            ("[1]", "line: \"[1]\" is not a JSON object"),
            ("{}", "time: missing"),
            (r#"{"time":null}"#, "time: missing"),
            (r#"{"time":-5}"#, "time: -5 is not from 0 to 4102444800000"),
            (r#"{"time":true}"#, "time: \"true\" is not RFC 3339 or Unix milliseconds"),
            (r#"{"time":"2026-07-01"}"#, "time: \"2026-07-01\" is not RFC 3339, from 1970 to 2100"),
            (r#"{"time":"1960-07-01T00:00:00Z"}"#, "time: \"1960-07-01T00:00:00Z\" is not RFC 3339, from 1970 to 2100"),
            (r#"{"time":1}"#, "model: missing"),
            (r#"{"time":1,"model":["x"]}"#, "model: \"[\\\"x\\\"]\" is not a name"),
            (r#"{"time":1,"model":"m"}"#, "input_units: missing"),
            (r#"{"time":1,"model":"m","input_units":1.5}"#, "input_units: \"1.5\" is not a whole number"),
            (r#"{"time":1,"model":"m","input_units":90000000}"#, "input_units: 90000000 is not from 0 to 80000000"),
            (r#"{"time":1,"model":"m","input_units":1,"output_units":2}"#, "key: missing"),
        ];
        for (line, error) in cases {
            assert_eq!(log(line).unwrap_err().to_string(), format!("jobs.jsonl:1: {error}"));
        }
        let long = format!(r#"{{"time":1,"model":"{}"}}"#, "m".repeat(257));
        assert_eq!(log(&long).unwrap_err().to_string(), "jobs.jsonl:1: model: longer than 256 bytes");
        assert_eq!(log("\n").unwrap_err().to_string(), "jobs.jsonl: empty");
    }
}
