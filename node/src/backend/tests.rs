//! Backends over a small OpenAI-compatible server, and the embedded engine with the guide model.

use super::{BackendEvent, Backends, Running, Work};
use crate::openai::text_of_event;
use crate::telemetry::TraceHeaders;
use serde_json::{Value, json};
use spillway_protocol::config::{BackendSection, ServerSection};
use spillway_protocol::{BackendError, Capacity, Kind, OwnChoice, WorkId};
use std::path::Path;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};

/// What the server does with a request for an answer.
#[derive(Clone, Copy, Debug)]
enum Script {
    /// Sends this as the whole response.
    Say(&'static str),
    /// Sends this, and then nothing until the other side closes.
    Hang(&'static str),
}

/// A server on loopback: `GET /v1/models` lists one model, `POST` plays the script.
struct Server {
    url: String,
    /// Head and body of each `POST`.
    requests: mpsc::UnboundedReceiver<(String, String)>,
    /// One for each connection of a hung answer that the other side closed.
    closed: mpsc::UnboundedReceiver<()>,
}

const SSE: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
const MODELS: &str = r#"{"object":"list","data":[{"id":"far-model","owned_by":"vllm","max_model_len":4096}]}"#;

impl Server {
    async fn start(script: Script) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("its address"));
        let (saw, requests) = mpsc::unbounded_channel();
        let (gone, closed) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, script, saw.clone(), gone.clone()));
            }
        });
        Self { url, requests, closed }
    }
}

async fn serve(
    stream: TcpStream,
    script: Script,
    saw: mpsc::UnboundedSender<(String, String)>,
    gone: mpsc::UnboundedSender<()>,
) {
    let mut stream = BufReader::new(stream);
    let (mut head, mut length) = (String::new(), 0);
    loop {
        let mut line = String::new();
        if stream.read_line(&mut line).await.expect("a line") == 0 {
            return;
        }
        if line == "\r\n" {
            break;
        }
        if let Some(value) = line.to_ascii_lowercase().strip_prefix("content-length:") {
            length = value.trim().parse().expect("a length");
        }
        head.push_str(&line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("the body");
    if head.starts_with("GET /v1/models ") {
        let answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{MODELS}", MODELS.len());
        stream.write_all(answer.as_bytes()).await.expect("written");
        return;
    }
    let _ = saw.send((head, String::from_utf8(body).expect("JSON")));
    match script {
        Script::Say(answer) => stream.write_all(answer.as_bytes()).await.expect("written"),
        Script::Hang(start) => {
            stream.write_all(start.as_bytes()).await.expect("written");
            // The other side closing is an end or a reset.
            let _ = stream.read(&mut [0]).await;
            let _ = gone.send(());
        }
    }
}

fn section(url: &str, models: &[&str]) -> BackendSection {
    let models = models.iter().map(|model| (*model).to_owned()).collect();
    let server = ServerSection { models, slots: 2, endpoints: Kind::ALL.to_vec(), ..ServerSection::new(url) };
    BackendSection::OpenAi(Box::new(server))
}

async fn start(section: BackendSection) -> (Backends, watch::Receiver<Vec<Capacity>>) {
    let (backends, mut capacity) = Backends::start(&[section], Path::new("/")).expect("backends");
    let healthy = capacity.wait_for(|list| list.iter().any(|capacity| capacity.healthy));
    tokio::time::timeout(Duration::from_secs(20), healthy).await.expect("in time").expect("backends are there");
    (backends, capacity)
}

fn run(
    backends: &Backends,
    model: &str,
    kind: Kind,
    body: &str,
    prefix: &str,
) -> (Running, mpsc::Receiver<BackendEvent>) {
    let (sink, events) = mpsc::channel(8);
    let (body, prefix) = (body.as_bytes().to_vec(), prefix.as_bytes().to_vec());
    (backends.run(work(model, kind, body, prefix), sink), events)
}

fn work(model: &str, kind: Kind, body: Vec<u8>, prefix: Vec<u8>) -> Work {
    let choice = OwnChoice::default();
    Work {
        id: WorkId(7),
        model: model.into(),
        kind,
        body,
        prefix,
        own: true,
        whole: false,
        choice,
        trace: None,
        beside: None,
    }
}

/// The events' bytes and text until the end, and the end.
async fn all(mut events: mpsc::Receiver<BackendEvent>) -> (Vec<String>, String, Result<String, BackendError>) {
    let (mut seen, mut whole) = (Vec::new(), Vec::new());
    loop {
        let next = tokio::time::timeout(Duration::from_secs(60), events.recv()).await.expect("in time");
        match next.expect("an end") {
            BackendEvent::Output { work: WorkId(7), bytes, text } => {
                seen.push(String::from_utf8(bytes).expect("JSON"));
                whole.extend(text);
            }
            BackendEvent::Finished { work: WorkId(7), finish } => return (seen, text_from(whole), Ok(finish)),
            BackendEvent::Failed { work: WorkId(7), error } => return (seen, text_from(whole), Err(error)),
            other => panic!("another work's {other:?}"),
        }
    }
}

fn text_from(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).expect("text")
}

const BODY: &str = r#"{"model":"far-model","messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function","function":{"name":"f"}}],"top_k":40,"x_deep":{"n":1.10,"big":1e400},"stream":true,"stream_options":{"include_usage":true}}"#;

#[tokio::test]
async fn requests_and_answers_pass_untouched() {
    const CALL: &str = r#"{"id":"x","x_new":{"v":1.50},"choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\": 1.0}"},"x":null}]}}]}"#;
    const END: &str = r#"{"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#;
    const ANSWER: &str = concat!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\nconnection: close\r\n\r\n: hello\n\ndata: ",
        r#"{"id":"x","x_new":{"v":1.50},"choices":[{"index":0,"delta":{"role":"assistant","tool_calls":[{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\": 1.0}"},"x":null}]}}]}"#,
        "\n\ndata: ",
        r#"{"id":"x","choices":[{"index":0,"delta":{},"finish_reason":"tool_calls"}]}"#,
        "\n\ndata: [DONE]\n\n"
    );
    let mut server = Server::start(Script::Say(ANSWER)).await;
    let (backends, capacity) = start(section(&server.url, &[])).await;
    let found = capacity.borrow()[0].clone();
    assert_eq!((&*found.model, &*found.engine, found.context_max, found.slots), ("far-model", "vllm", 4096, 2));
    let (_running, events) = run(&backends, "far-model", Kind::Chat, BODY, "");
    let (seen, text, end) = all(events).await;
    assert_eq!(
        (seen, text.as_str(), end),
        (vec![CALL.to_owned(), END.to_owned()], r#"f{"a": 1.0}"#, Ok("tool_calls".into()))
    );
    let (head, body) = server.requests.recv().await.expect("a request");
    assert!(head.starts_with("POST /v1/chat/completions HTTP/1.1\r\n"), "{head}");
    assert!(!head.to_ascii_lowercase().contains("authorization"), "{head}");
    assert_eq!(body, BODY);
}

#[tokio::test]
async fn a_server_is_told_of_the_trace_it_is_part_of() {
    let mut server = Server::start(Script::Say("HTTP/1.1 500 x\r\nconnection: close\r\n\r\n")).await;
    let (backends, _capacity) = start(section(&server.url, &["mine"])).await;
    for (trace, wanted) in [(true, true), (false, false)] {
        let headers = TraceHeaders {
            parent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().expect("a value"),
            state: Some("a=1".parse().expect("a value")),
        };
        let (sink, events) = mpsc::channel(8);
        let body = BODY.as_bytes().to_vec();
        let trace = trace.then_some(headers);
        let _running = backends.run(Work { trace, ..work("mine", Kind::Chat, body, Vec::new()) }, sink);
        all(events).await.2.expect_err("500");
        let (head, _) = server.requests.recv().await.expect("a request");
        let told = head
            .contains("traceparent: 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\ntracestate: a=1\r\n");
        assert_eq!(told, wanted, "{head}");
    }
}

#[tokio::test]
async fn a_strangers_body_is_made_a_stream() {
    let mut server = Server::start(Script::Say("HTTP/1.1 500 x\r\nconnection: close\r\n\r\n")).await;
    let (backends, _capacity) = start(section(&server.url, &["mine"])).await;
    let (_running, events) = run(&backends, "mine", Kind::Completion, r#"{"prompt":"a","stream":false}"#, "b");
    assert!(matches!(all(events).await.2, Err(BackendError::Answered { status: 500, .. })));
    let (head, body) = server.requests.recv().await.expect("a request");
    assert!(head.starts_with("POST /v1/completions HTTP/1.1\r\n"), "{head}");
    assert_eq!(body, r#"{"prompt":"ab","stream":true,"model":"mine","stream_options":{"include_usage":true}}"#);
}

#[tokio::test]
async fn an_answer_in_one_piece_is_asked_for_as_such() {
    const WHOLE: &str = concat!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n",
        r#"{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hi."},"finish_reason":"length","x":1.50}],"usage":{"prompt_tokens":3}}"#
    );
    const PIECE: &str = r#"{"id":"x","object":"chat.completion","choices":[{"index":0,"message":{"role":"assistant","content":"Hi."},"finish_reason":"length","x":1.50}],"usage":{"prompt_tokens":3}}"#;
    // Some servers stream whatever they are asked for.
    const STREAM: &str = concat!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: ",
        r#"{"choices":[{"index":0,"delta":{"content":"Hi."},"finish_reason":"length"}]}"#,
        "\n\ndata: [DONE]\n\n"
    );
    const EVENT: &str = r#"{"choices":[{"index":0,"delta":{"content":"Hi."},"finish_reason":"length"}]}"#;
    let failed = |why: &str| Err(BackendError::Failed(why.into()));
    let json = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n";
    let cut = format!("{json}content-length: 900\r\n\r\n{{\"choices\":[");
    let error = format!("{json}\r\n{{\"error\":{{\"code\":5}}}}");
    let none = format!("{json}\r\n{{}}");
    for (answer, events, text, want) in [
        (WHOLE, vec![PIECE], "Hi.", Ok("length".to_owned())),
        (STREAM, vec![EVENT], "Hi.", Ok("length".to_owned())),
        (cut.leak(), vec![], "", failed("the answer broke off: end of file before message length reached")),
        (error.leak(), vec![], "", failed("{\"code\":5}")),
        (none.leak(), vec![], "", failed("the server sent an answer that is none of OpenAI's")),
    ] {
        let mut server = Server::start(Script::Say(answer)).await;
        let (backends, _capacity) = start(section(&server.url, &["m"])).await;
        let (sink, outputs) = mpsc::channel(8);
        let work = Work { whole: true, ..work("m", Kind::Chat, BODY.as_bytes().to_vec(), Vec::new()) };
        let _running = backends.run(work, sink);
        let (seen, said, end) = all(outputs).await;
        assert_eq!((seen, said.as_str(), end), (events.into_iter().map(str::to_owned).collect(), text, want));
        let (_, body) = server.requests.recv().await.expect("a request");
        let asked = BODY.replace(r#","stream":true,"stream_options":{"include_usage":true}"#, "");
        assert_eq!(body, asked.replace("far-model", "m"));
    }
}

#[tokio::test]
async fn what_costs_money_is_streamed_however_it_is_wanted() {
    let mut server = Server::start(Script::Say("HTTP/1.1 500 x\r\nconnection: close\r\n\r\n")).await;
    let BackendSection::OpenAi(mut priced) = section(&server.url, &["m"]) else { unreachable!("it is a server") };
    priced.price = Some(serde_json::from_value(json!({"input": 1.0, "output": 2.0})).expect("a price"));
    let (backends, _capacity) = start(BackendSection::OpenAi(priced)).await;
    let (sink, outputs) = mpsc::channel(8);
    let body = br#"{"prompt":"a"}"#.to_vec();
    let _running = backends.run(Work { whole: true, ..work("m", Kind::Completion, body, Vec::new()) }, sink);
    all(outputs).await.2.expect_err("500");
    let (_, body) = server.requests.recv().await.expect("a request");
    assert_eq!(body, r#"{"prompt":"a","model":"m","stream":true,"stream_options":{"include_usage":true}}"#);
}

#[tokio::test]
async fn the_servers_failures_are_told_apart() {
    let rejected = |status, message: &str| Err(BackendError::Rejected { status, message: message.into() });
    let failed = |why: &str| Err(BackendError::Failed(why.into()));
    let answered =
        |status, why: &str| Err(BackendError::Answered { status, retry_after_ms: None, message: why.into() });
    let cases = [
        ("HTTP/1.1 400 x\r\ncontent-length: 5\r\n\r\nwhy: ", rejected(400, "why: ")),
        ("HTTP/1.1 422 x\r\ncontent-length: 0\r\n\r\n", rejected(422, "")),
        ("HTTP/1.1 429 x\r\ncontent-length: 0\r\n\r\n", Err(BackendError::Busy { retry_after_ms: None })),
        ("HTTP/1.1 401 x\r\ncontent-length: 0\r\n\r\n", answered(401, "the server answered 401: ")),
        ("HTTP/1.1 404 x\r\ncontent-length: 0\r\n\r\n", answered(404, "the server answered 404: ")),
        ("HTTP/1.1 503 x\r\ncontent-length: 4\r\n\r\nload", answered(503, "the server answered 503: load")),
        // Redirects are not followed: the operator named this server and no other.
        (
            "HTTP/1.1 307 x\r\nlocation: http://127.0.0.1:9/\r\ncontent-length: 0\r\n\r\n",
            answered(307, "the server answered 307: "),
        ),
        (
            "HTTP/1.1 200 x\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}",
            failed("the server did not answer with a stream of events"),
        ),
        (
            "HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: {\"error\":{\"code\":5}}\n\n",
            failed("{\"code\":5}"),
        ),
        (
            "HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: what\n\n",
            failed("the server sent an event that is none of OpenAI's"),
        ),
        (
            "HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n: ",
            failed("the stream ended early"),
        ),
        (
            "HTTP/1.1 200 x\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"length\"}]}",
            Ok("length".to_owned()),
        ),
    ];
    for (answer, want) in cases {
        let server = Server::start(Script::Say(answer)).await;
        let (backends, _capacity) = start(section(&server.url, &["m"])).await;
        let (_running, events) = run(&backends, "m", Kind::Chat, BODY, "");
        assert_eq!(all(events).await.2, want, "{answer}");
    }
}

#[tokio::test]
async fn stopping_closes_the_servers_connection() {
    const START: &str = concat!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: ",
        r#"{"choices":[{"index":0,"delta":{"content":"a"}}]}"#,
        "\n\n"
    );
    // Before the first byte of the answer, and in the middle of it.
    for start_of_answer in ["", START] {
        let mut server = Server::start(Script::Hang(start_of_answer)).await;
        let (backends, _capacity) = start(section(&server.url, &["m"])).await;
        let (running, mut events) = run(&backends, "m", Kind::Chat, BODY, "");
        server.requests.recv().await.expect("a request");
        if !start_of_answer.is_empty() {
            assert!(matches!(events.recv().await, Some(BackendEvent::Output { .. })));
        }
        drop(running);
        let closed = tokio::time::timeout(Duration::from_secs(5), server.closed.recv()).await;
        assert_eq!(closed, Ok(Some(())), "{start_of_answer:?}");
        assert_eq!(events.recv().await, None);
    }
}

#[tokio::test]
async fn a_server_that_goes_away_is_marked_and_comes_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (backends, mut capacity) =
        Backends::start(&[section(&format!("http://{address}/v1"), &["m"])], Path::new("/")).expect("backends");
    // It answers one check, and then nobody listens any more.
    let (saw, _requests) = mpsc::unbounded_channel();
    let (gone, _closed) = mpsc::unbounded_channel();
    let (stream, _) = listener.accept().await.expect("a check");
    serve(stream, Script::Say(SSE), saw.clone(), gone.clone()).await;
    let wait = Duration::from_secs(20);
    let healthy =
        |want: bool| move |list: &Vec<Capacity>| list.first().is_some_and(|capacity| capacity.healthy == want);
    tokio::time::timeout(wait, capacity.wait_for(healthy(true))).await.expect("in time").expect("backends");
    drop(listener);
    let (_running, events) = run(&backends, "m", Kind::Chat, BODY, "");
    assert!(matches!(all(events).await.2, Err(BackendError::Failed(_))));
    tokio::time::timeout(wait, capacity.wait_for(healthy(false))).await.expect("in time").expect("backends");
    let listener = TcpListener::bind(address).await.expect("the same port");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, Script::Say(SSE), saw.clone(), gone.clone()));
        }
    });
    tokio::time::timeout(wait, capacity.wait_for(healthy(true))).await.expect("in time").expect("backends");
}

fn embedded() -> BackendSection {
    BackendSection::Embedded { name: None, model: "guide".into(), gguf: None, slots: 2, tokens_per_second: None }
}

#[tokio::test]
async fn the_embedded_engine_answers_like_other_servers() {
    let (backends, capacity) = start(embedded()).await;
    let found = capacity.borrow()[0].clone();
    assert_eq!((&*found.model, found.slots, found.healthy), ("guide", 2, true));
    let body =
        json!({"model": "guide", "messages": [{"role": "user", "content": "What is spill-over?"}], "max_tokens": 60});
    let (_running, events) = run(&backends, "guide", Kind::Chat, &body.to_string(), "");
    let (seen, whole, end) = all(events).await;
    assert!(matches!(end.as_deref(), Ok("stop" | "length")), "{end:?}");
    assert!(whole.len() > 10, "{whole}");
    let values: Vec<Value> = seen.iter().map(|event| serde_json::from_str(event).expect("JSON")).collect();
    assert_eq!(values[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(values.iter().all(|value| value["id"] == values[0]["id"] && value["object"] == "chat.completion.chunk"));
    let usage = &values[values.len() - 1]["usage"];
    assert!(usage["completion_tokens"].as_u64().is_some_and(|tokens| tokens > 0), "{usage}");

    // Cut anywhere, another run goes on with the very same text.
    let cut = whole.char_indices().nth(whole.chars().count() / 2).expect("a middle").0;
    let (_running, events) = run(&backends, "guide", Kind::Chat, &body.to_string(), &whole[..cut]);
    assert_eq!(all(events).await.1, whole[cut..]);
}

#[tokio::test]
async fn the_embedded_engine_refuses_what_it_has_not() {
    let (backends, _capacity) = start(embedded()).await;
    let body = r#"{"model":"guide","messages":[{"role":"user","content":"hi"}],"tools":[{"type":"function"}]}"#;
    let (_running, events) = run(&backends, "guide", Kind::Chat, body, "");
    let (seen, _, end) = all(events).await;
    assert!(seen.is_empty());
    assert!(matches!(end, Err(BackendError::Rejected { status: 400, .. })), "{end:?}");
    let (_running, events) = run(&backends, "absent", Kind::Chat, body, "");
    assert!(matches!(all(events).await.2, Err(BackendError::Failed(_))));
    // Completions with probabilities, each event counted by its text.
    let body = r#"{"model":"guide","prompt":"Spill-over","max_tokens":5,"logprobs":2}"#;
    let (_running, events) = run(&backends, "guide", Kind::Completion, body, "");
    let (seen, whole, end) = all(events).await;
    assert!(end.is_ok(), "{end:?}");
    let counted: Vec<u8> = seen.iter().flat_map(|event| text_of_event(Kind::Completion, event.as_bytes())).collect();
    assert_eq!(counted, whole.as_bytes());
    assert!(seen[0].contains("token_logprobs"), "{}", seen[0]);
}

#[tokio::test]
async fn other_endpoints_pass_untouched() {
    const VECTORS: &str =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 13\r\n\r\n{\"x\": 1.10, \n";
    const RESPONSE: &str = concat!(
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\nevent: response.created\ndata: ",
        r#"{"type":"response.created","x":1e400}"#,
        "\n\nevent: response.completed\ndata: ",
        r#"{"type":"response.completed","response":{}}"#,
        "\n\n"
    );
    let created = r#"{"type":"response.created","x":1e400}"#;
    let completed = r#"{"type":"response.completed","response":{}}"#;
    let cases: [(Kind, &'static str, &str, &str, Vec<&str>); 3] = [
        (
            Kind::Embedding,
            VECTORS,
            r#"{"model":"m","input" : ["a"],"x":1e400}"#,
            "/v1/embeddings",
            vec!["happlication/json", "b{\"x\": 1.10, \n"],
        ),
        (
            Kind::Rerank,
            VECTORS,
            r#"{"model":"m","query":"q"}"#,
            "/v1/rerank",
            vec!["happlication/json", "b{\"x\": 1.10, \n"],
        ),
        (
            Kind::Response,
            RESPONSE,
            r#"{"model":"m","input":"a", "stream":true}"#,
            "/v1/responses",
            vec![created, completed],
        ),
    ];
    for (kind, answer, body, path, want) in cases {
        let mut server = Server::start(Script::Say(answer)).await;
        let (backends, capacity) = start(section(&server.url, &["m"])).await;
        assert_eq!(capacity.borrow()[0].kinds, Kind::ALL);
        let (_running, events) = run(&backends, "m", kind, body, "");
        let (seen, _, end) = all_of(events).await;
        assert_eq!((seen, end), (want.iter().map(|part| part.as_bytes().to_vec()).collect(), Ok("stop".into())));
        let (head, got) = server.requests.recv().await.expect("a request");
        assert!(head.starts_with(&format!("POST {path} HTTP/1.1\r\n")), "{head}");
        assert_eq!(got, body);
    }
    // A message's server is told the version; a stream that stops early is no answer.
    let begun = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: {\"type\":\"message_start\"}\n\n";
    let mut server = Server::start(Script::Say(begun)).await;
    let (backends, _capacity) = start(section(&server.url, &["m"])).await;
    let (_running, events) = run(&backends, "m", Kind::Message, r#"{"model":"m","messages":[]}"#, "");
    assert_eq!(all_of(events).await.2, Err(BackendError::Failed("the stream ended early".into())));
    let (head, _) = server.requests.recv().await.expect("a request");
    assert!(head.to_ascii_lowercase().contains("anthropic-version: 2023-06-01\r\n"), "{head}");
}

/// As [`all`], with what is no text.
async fn all_of(mut events: mpsc::Receiver<BackendEvent>) -> (Vec<Vec<u8>>, Vec<u8>, Result<String, BackendError>) {
    let (mut seen, mut units) = (Vec::new(), Vec::new());
    loop {
        let next = tokio::time::timeout(Duration::from_secs(60), events.recv()).await.expect("in time");
        match next.expect("an end") {
            BackendEvent::Output { bytes, text, .. } => {
                seen.push(bytes);
                units.extend(text);
            }
            BackendEvent::Finished { finish, .. } => return (seen, units, Ok(finish)),
            BackendEvent::Charged { .. } => panic!("nothing costs anything here"),
            BackendEvent::Failed { error, .. } => return (seen, units, Err(error)),
        }
    }
}

/// What a server hears first.
async fn first_bytes(server: ServerSection, listener: TcpListener) -> Vec<u8> {
    let section = BackendSection::OpenAi(Box::new(server));
    let (_backends, _capacity) = Backends::start(&[section], Path::new("/")).expect("backends");
    let (mut stream, _) = listener.accept().await.expect("a connection");
    let mut first = vec![0; 24];
    stream.read_exact(&mut first).await.expect("bytes");
    first
}

#[tokio::test]
async fn http2_is_spoken_where_it_is_wanted() {
    for (http2, want) in [(true, &b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]), (false, b"GET /v1/models HTTP/1.1\r\n")] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("its address"));
        let first = first_bytes(ServerSection { http2, ..ServerSection::new(&url) }, listener).await;
        assert_eq!(first, want[..24]);
    }
}

/// A certificate authority of the operator's own is trusted, and no other that is not the system's; HTTP/2 is agreed on.
#[tokio::test]
async fn tls_trusts_the_operators_authority() {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(made.key_pair.serialize_der()).expect("a key");
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("ca.pem"), made.cert.pem()).expect("written");
    let provider = std::sync::Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .expect("a server");
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
    for (ca_file, trusted) in [(Some("ca.pem".to_owned()), true), (None, false)] {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("https://localhost:{}/v1", listener.local_addr().expect("its address").port());
        let server = ServerSection { ca_file, ..ServerSection::new(&url) };
        let section = BackendSection::OpenAi(Box::new(server));
        let (_backends, _capacity) = Backends::start(&[section], folder.path()).expect("backends");
        let (stream, _) = listener.accept().await.expect("a connection");
        let accepted = acceptor.accept(stream).await;
        assert_eq!(accepted.is_ok(), trusted, "{url}");
        let Ok(mut stream) = accepted else { continue };
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        let mut first = [0; 14];
        stream.read_exact(&mut first).await.expect("bytes");
        assert_eq!(&first, b"PRI * HTTP/2.0");
    }
}
