//! A market whose models are scripts.

use crate::jobs::{Command, JobEvent, JobRequest, Jobs, Kinds, MarketModel, MarketView, OfferView};
use crate::openai::parts::{body, head};
use crate::telemetry::TraceHeaders;
use spillway_ledger::{Credits, JobId, NodeId, Price, SecretKey, Usage};
use spillway_protocol::{Failure, Job, Kind, Leg, Outcome, Reason, Route};
use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use tokio::sync::{Notify, mpsc, oneshot};

/// What the market saw.
pub(super) struct Market {
    /// Jobs as they were submitted.
    pub(super) jobs: mpsc::UnboundedReceiver<Job>,
    /// What own servers would be told of their traces.
    pub(super) traces: mpsc::UnboundedReceiver<Option<TraceHeaders>>,
    /// Jobs whose client left.
    pub(super) left: mpsc::UnboundedReceiver<JobId>,
    /// Lets a `queued` job begin.
    pub(super) release: Arc<Notify>,
}

/// What each leg costs, in micro-credits.
pub(super) const LEG_COST: u64 = 1234;
/// What a `cheap` job costs.
pub(super) const CHEAP_COST: u64 = 3;
/// What a job costs whose client left.
pub(super) const LEFT_COST: u64 = 55;

/// What the models serve whose names do not begin with `whole`.
const CHATS: [Kind; 2] = [Kind::Chat, Kind::Completion];

pub(super) const MODELS: [&str; 15] = [
    "queued",
    "exact",
    "cheap",
    "plain",
    "legs",
    "full",
    "reject",
    "broken",
    "endless",
    "tools",
    "cut",
    "nobody",
    "whole",
    "whole-broken",
    "whole-cut",
];

/// A strangers' node.
pub(super) fn stranger() -> NodeId {
    NodeId(SecretKey::generate([9; 32]).public())
}

impl Market {
    pub(super) fn start() -> (Jobs, Self) {
        let (commands, mut orders) = mpsc::channel(4096);
        let jobs = Jobs::new(commands);
        let model = |id: &str| MarketModel {
            id: id.into(),
            own: id == "plain",
            providers: 1,
            own_kinds: if id == "plain" { CHATS.into_iter().collect() } else { Kinds::default() },
            kinds: if id.starts_with("whole") { Kind::ALL.into_iter().collect() } else { CHATS.into_iter().collect() },
            price_min: None,
            token_price: spillway_ledger::Price::ZERO,
        };
        let offer = |output: u64| OfferView {
            node: stranger(),
            account: SecretKey::generate([9; 32]).account(),
            region: String::new(),
            model: "legs".into(),
            price: Price { input: Credits::ZERO, cached: Credits::ZERO, output: Credits::new(output) },
            slots: 1,
            age_ms: 0,
            rtt_ms: None,
            reputation: 1.0,
            addresses: Vec::new(),
        };
        let offers = vec![offer(9_000_000), offer(2_000_000)];
        let models: Vec<_> = MODELS.iter().map(|id| model(id)).collect();
        jobs.set_market(MarketView { models: models.into(), offers, ..MarketView::default() });
        let (saw_job, seen_jobs) = mpsc::unbounded_channel();
        let (saw_trace, seen_traces) = mpsc::unbounded_channel();
        let (saw_left, seen_left) = mpsc::unbounded_channel();
        let log = jobs.clone();
        let release = Arc::new(Notify::new());
        let released = Arc::clone(&release);
        tokio::spawn(async move {
            let waiting: Arc<Mutex<HashMap<JobId, oneshot::Sender<()>>>> = Arc::default();
            while let Some(command) = orders.recv().await {
                match command {
                    Command::Submit(request) => {
                        let (leave, left) = oneshot::channel();
                        waiting.lock().expect("no panic").insert(request.job.id, leave);
                        let _ = saw_job.send(request.job.clone());
                        let _ = saw_trace.send(request.beside.trace.clone());
                        tokio::spawn(play(*request, left, Arc::clone(&released), log.clone()));
                    }
                    Command::ClientLeft(job) => {
                        let _ = saw_left.send(job);
                        drop(waiting.lock().expect("no panic").remove(&job));
                    }
                }
            }
        });
        (jobs, Self { jobs: seen_jobs, traces: seen_traces, left: seen_left, release })
    }
}

async fn play(request: JobRequest, left: oneshot::Receiver<()>, released: Arc<Notify>, log: Jobs) {
    let JobRequest { job, events, .. } = request;
    let mut legs = Vec::new();
    let send = async |event: JobEvent| events.send(event).await.is_ok();
    let mut place = |route, reason| {
        let provider = (route == Route::Network).then(stranger);
        let leg = u32::try_from(legs.len()).expect("few");
        let usage = Usage { input: job.body.len() as u64, cached: 0, output: 5 };
        let cost = if route == Route::Own { Credits::ZERO } else { Credits::new(LEG_COST) };
        legs.push(Leg { route, provider, reason, usage, cost });
        JobEvent::Placed { leg, route, provider, reason }
    };
    let failure = |reason, retry_after_ms, status, message: &str| {
        Err(Failure { reason, retry_after_ms, status, upstream: None, message: message.into() })
    };
    if job.model == "queued" {
        released.notified().await;
    }
    let mut cost = None;
    let result = match job.model.as_str() {
        "plain" | "queued" => {
            send(place(Route::Network, Reason::OwnSaturated)).await;
            for chunk in [ROLE, HEL, LO, STOP, USAGE] {
                send(JobEvent::Chunk(chunk.into())).await;
            }
            Ok("stop".into())
        }
        "legs" => {
            send(place(Route::Own, Reason::OwnFree)).await;
            for chunk in [ROLE, HEL] {
                send(JobEvent::Chunk(chunk.into())).await;
            }
            send(place(Route::Network, Reason::ProviderStalled)).await;
            for chunk in [OTHER_ROLE, OTHER_LO, OTHER_STOP] {
                send(JobEvent::Chunk(chunk.into())).await;
            }
            Ok("stop".into())
        }
        "tools" => {
            send(place(Route::Own, Reason::OwnFree)).await;
            for chunk in TOOLS {
                send(JobEvent::Chunk(chunk.into())).await;
            }
            Ok("tool_calls".into())
        }
        "cut" => {
            send(place(Route::Own, Reason::OwnFree)).await;
            send(JobEvent::Chunk(HEL.into())).await;
            Ok("length".into())
        }
        "whole" | "whole-broken" | "whole-cut" => {
            send(place(Route::Own, Reason::OwnFree)).await;
            for chunk in whole(job.kind) {
                send(JobEvent::Chunk(chunk)).await;
            }
            match job.model.as_str() {
                "whole-broken" => failure(Reason::UpstreamError, None, None, "it broke"),
                "whole-cut" => Ok("length".into()),
                _ => {
                    if let Some(end) = [(Kind::Response, RESPONSE_END), (Kind::Message, MESSAGE_END)]
                        .iter()
                        .find_map(|(kind, end)| (*kind == job.kind).then_some(*end))
                    {
                        send(JobEvent::Chunk(end.into())).await;
                    }
                    Ok("stop".into())
                }
            }
        }
        // Whoever says `far` is far from those who do not; `unknown` has no vector.
        "vectors" => {
            let says = |word: &str| String::from_utf8_lossy(&job.body).contains(word);
            if says("unknown") {
                failure(Reason::UpstreamError, None, None, "it broke")
            } else {
                send(place(Route::Own, Reason::OwnFree)).await;
                send(JobEvent::Chunk(head("application/json"))).await;
                let vector = if says("far") { "[0.0,1.0]" } else { "[1.0,0.0]" };
                send(JobEvent::Chunk(body(format!(r#"{{"data":[{{"embedding":{vector}}}]}}"#).as_bytes()))).await;
                Ok("stop".into())
            }
        }
        "broken" => {
            send(place(Route::Network, Reason::ModelNotLocal)).await;
            send(JobEvent::Chunk(HEL.into())).await;
            failure(Reason::UpstreamError, None, None, "it broke")
        }
        "endless" => {
            send(place(Route::Network, Reason::ModelNotLocal)).await;
            send(JobEvent::Chunk(HEL.into())).await;
            let _ = left.await;
            cost = Some(Credits::new(LEFT_COST));
            failure(Reason::ClientLeft, None, None, "")
        }
        // Their cost is what one token reserves, or less.
        "exact" | "cheap" => {
            send(place(Route::Network, Reason::OwnSaturated)).await;
            send(JobEvent::Chunk(HEL.into())).await;
            cost = Some(Credits::new(if job.model == "exact" { 8 } else { CHEAP_COST }));
            Ok("stop".into())
        }
        "full" => failure(Reason::QueueFull, Some(2500), None, "too many wait"),
        "reject" => failure(Reason::UpstreamError, None, Some(422), r#"{"error":{"message":"no","param":"top_k"}}"#),
        _ => failure(Reason::NoOffer, None, None, "nobody offers it"),
    };
    let cost = cost.unwrap_or_else(|| Credits::new(legs.iter().map(|leg| leg.cost.micro()).sum()));
    let outcome = Outcome { result, legs, considered: Vec::new(), cost, first_ms: Some(1), total_ms: 2 };
    log.ended(job.id, &outcome);
    send(JobEvent::Ended(outcome)).await;
}

/// What a server of `kind` answers.
fn whole(kind: Kind) -> Vec<Vec<u8>> {
    match kind {
        Kind::Response => RESPONSE.iter().map(|event| event.as_bytes().to_vec()).collect(),
        Kind::Message => MESSAGE.iter().map(|event| event.as_bytes().to_vec()).collect(),
        _ => {
            let kind = if kind == Kind::Speech { "audio/mpeg" } else { "application/json" };
            std::iter::once(head(kind)).chain(WHOLE.iter().map(|bytes| body(bytes))).collect()
        }
    }
}

/// The events of a response, and of a message, up to the last but one.
pub(super) const RESPONSE: [&str; 2] = [
    r#"{"type":"response.created","response":{"id":"r","x":1e400}}"#,
    r#"{"type":"response.output_text.delta","delta":"Hi"}"#,
];
pub(super) const MESSAGE: [&str; 2] = [
    r#"{"type":"message_start","message":{"id":"m","content":[],"usage":{"input_tokens":1}}}"#,
    r#"{"type":"content_block_start","index":0,"content_block":{"type":"text","text":"Hi"}}"#,
];
/// Their last.
pub(super) const RESPONSE_END: &str = r#"{"type":"response.completed","response":{"id":"r", "x":1e400}}"#;
pub(super) const MESSAGE_END: &str = r#"{"type":"message_stop"}"#;

/// An answer that is no stream, in the parts it comes in.
pub(super) const WHOLE: [&[u8]; 2] = [b"{\"data\": [1.0,", b" 1e400], \"x\":\xff}"];

pub(super) const ROLE: &str = r#"{"id":"c1","object":"chat.completion.chunk","created":5,"model":"plain","choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}"#;
pub(super) const HEL: &str = r#"{"id":"c1","object":"chat.completion.chunk","created":5,"model":"plain","x_unknown":1.50,"choices":[{"index":0,"delta":{"content":"Hel"},"finish_reason":null}]}"#;
pub(super) const LO: &str = r#"{"id":"c1","object":"chat.completion.chunk","created":5,"model":"plain","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":null}]}"#;
pub(super) const STOP: &str = r#"{"id":"c1","object":"chat.completion.chunk","created":5,"model":"plain","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#;
const USAGE: &str = r#"{"id":"c1","object":"chat.completion.chunk","created":5,"model":"plain","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11}}"#;
const OTHER_ROLE: &str = r#"{"id":"d2","created":6,"model":"other","choices":[{"index":0,"delta":{"role":"assistant"},"finish_reason":null}]}"#;
const OTHER_LO: &str =
    r#"{"id":"d2","created":6,"model":"other","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":null}]}"#;
const OTHER_STOP: &str = r#"{"id":"d2","created":6,"model":"other","choices":[{"index":0,"delta":{},"finish_reason":"stop"}],"usage":{"prompt_tokens":10,"completion_tokens":1,"total_tokens":11}}"#;
const TOOLS: [&str; 3] = [
    r#"{"id":"t","choices":[{"index":0,"delta":{"role":"assistant","content":null,"tool_calls":[{"index":0,"id":"call_1","type":"function","function":{"name":"get_weather","arguments":""}}]}}]}"#,
    r#"{"id":"t","choices":[{"index":0,"delta":{"tool_calls":[{"index":0,"function":{"arguments":"{\"city\":\"Zürich\"}"}}]}}]}"#,
    r#"{"id":"t","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
];
