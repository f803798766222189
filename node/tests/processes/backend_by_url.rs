//! A node that points at another OpenAI-compatible server serves that server's model to a second node over libp2p.
//! Unknown request fields and tool calls pass through untouched, both ways.

use crate::common::{WAIT, binary, ready_client};
use anyhow::{Context, Result};
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde_json::{Value, json};
use spillway_protocol::Kind;
use spillway_testnet::{Plan, Statement, Testnet, Topology, until};
use std::sync::{Arc, Mutex};

const MODEL: &str = "their-model-7b";
const ARGUMENTS: [&str; 3] = ["{\"city\": ", "\"Zürich\", \"unit\"", ": \"celsius\"}"];

/// The bodies that the server was sent, as bytes.
type Seen = Arc<Mutex<Vec<Vec<u8>>>>;

async fn completions(State(seen): State<Seen>, body: axum::body::Bytes) -> impl IntoResponse {
    seen.lock().unwrap().push(body.to_vec());
    let chunk = |delta: Value, finish: Value| {
        let chunk = json!({
            "id": "theirs-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": MODEL,
            "system_fingerprint": "fp_theirs",
            "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
        });
        format!("data: {chunk}\n\n")
    };
    let call = |fields: Value| json!({"tool_calls": [fields]});
    let mut stream = chunk(json!({"role": "assistant", "content": null}), Value::Null);
    stream += &chunk(
        call(json!({"index": 0, "id": "call_1", "type": "function", "function": {"name": "weather", "arguments": ""}})),
        Value::Null,
    );
    for part in ARGUMENTS {
        stream += &chunk(call(json!({"index": 0, "function": {"arguments": part}})), Value::Null);
    }
    stream += &chunk(json!({}), json!("tool_calls"));
    let usage = json!({"prompt_tokens": 7, "completion_tokens": 11, "total_tokens": 18});
    let last = json!({"id": "theirs-1", "object": "chat.completion.chunk", "created": 1_700_000_000, "model": MODEL,
        "choices": [], "usage": usage});
    stream += &format!("data: {last}\n\ndata: [DONE]\n\n");
    ([(CONTENT_TYPE, "text/event-stream")], stream)
}

/// What the server answers to a request for vectors, and to one for speech: bytes that no writer of JSON would write so.
const VECTORS: &[u8] = b"{ \"data\":[{\"embedding\": [1.0,1e400]}] }\n";
static SOUND: [u8; 300_000] = [0xfb; 300_000];

async fn embeddings(State(seen): State<Seen>, body: axum::body::Bytes) -> impl IntoResponse {
    seen.lock().unwrap().push(body.to_vec());
    ([(CONTENT_TYPE, "application/json")], VECTORS)
}

async fn speech(State(seen): State<Seen>, body: axum::body::Bytes) -> impl IntoResponse {
    seen.lock().unwrap().push(body.to_vec());
    ([(CONTENT_TYPE, "audio/mpeg")], SOUND.to_vec())
}

/// A small OpenAI-compatible server; its base URL.
async fn their_server(seen: Seen) -> Result<String> {
    let models = Json(json!({"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "them"}]}));
    let app = Router::new()
        .route("/v1/models", get(move || async move { models }))
        .route("/v1/chat/completions", post(completions))
        .route("/v1/embeddings", post(embeddings))
        .route("/v1/audio/speech", post(speech))
        .with_state(seen);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let url = format!("http://{}/v1", listener.local_addr()?);
    tokio::spawn(async move { axum::serve(listener, app).await });
    Ok(url)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_by_url_serves_a_second_node_over_libp2p() -> Result<()> {
    let _alone = crate::common::alone().await;
    let seen = Seen::default();
    let url = their_server(seen.clone()).await?;
    let folder = tempfile::tempdir()?;
    let topology = Topology {
        plans: vec![
            Plan::books(),
            Plan::new("consumer"),
            Plan::new("provider")
                .with_server(&url, 4)
                .serving(&[Kind::Chat, Kind::Embedding, Kind::Speech])
                .provides(1.0, 4.0),
        ],
    };
    let network = Testnet::start(binary(), &folder.path().canonicalize()?, &topology).await?;
    let (api, key) = ready_client(&network, "consumer", MODEL).await?;

    let tools = json!([{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]);
    let body = json!({
        "model": MODEL,
        "messages": [{"role": "user", "content": "Wie ist das Wetter in Zürich? 🌦"}],
        "tools": tools,
        "tool_choice": "auto",
        "a_field_of_next_year": {"deep": [1, 2.5, null, "ä"], "flag": true},
        "stream": true,
    });
    let mut stream = api.stream(&body).await?;
    assert_eq!(stream.placement.route, "network");
    assert_eq!(stream.placement.provider.as_deref(), Some(network.node("provider")?.ready().node.to_string().as_str()));
    let job = stream.placement.job.clone();
    let (mut name, mut arguments, mut finish) = (String::new(), String::new(), None);
    while let Some(event) = stream.event().await? {
        let Some(choice) = event.pointer("/choices/0") else { continue };
        if let Some(call) = choice.pointer("/delta/tool_calls/0") {
            name.push_str(call.pointer("/function/name").and_then(Value::as_str).unwrap_or(""));
            arguments.push_str(call.pointer("/function/arguments").and_then(Value::as_str).unwrap_or(""));
        }
        if let Some(reason) = choice.get("finish_reason").and_then(Value::as_str) {
            finish = Some(reason.to_owned());
        }
    }
    assert_eq!((name.as_str(), finish.as_deref()), ("weather", Some("tool_calls")));
    assert_eq!(arguments, ARGUMENTS.concat());

    // What the server was sent is what the client sent, but for what the gateway says it sets.
    let sent = seen.lock().unwrap().clone();
    assert_eq!(sent.len(), 1, "the server was asked once");
    let sent: Value = serde_json::from_slice(&sent[0])?;
    let sent = sent.as_object().context("the server was sent no object")?;
    for (field, value) in body.as_object().context("no object")? {
        assert_eq!(sent.get(field), Some(value), "field {field}");
    }
    let added: Vec<&String> = sent.keys().filter(|field| body.get(field.as_str()).is_none()).collect();
    assert!(added.iter().all(|field| *field == "stream_options"), "added: {added:?}");

    // The same unstreamed, from the plain model list to the message.
    let response = api.post(&json!({"model": MODEL, "messages": body["messages"], "tools": tools})).await?;
    assert_eq!(response.status(), 200);
    let whole: Value = serde_json::from_str(&response.text().await?)?;
    let call = whole.pointer("/choices/0/message/tool_calls/0/function").context("no tool call")?;
    assert_eq!(call, &json!({"name": "weather", "arguments": ARGUMENTS.concat()}), "{whole}");
    assert_eq!(whole.pointer("/choices/0/finish_reason"), Some(&json!("tool_calls")), "{whole}");
    assert_eq!(whole.pointer("/usage/completion_tokens"), Some(&json!(11)), "{whole}");

    others_pass_untouched(&network, &key, &seen).await?;

    // And it is paid for.
    let cost = until("the account of the job", WAIT, async || {
        let told = api.generation(&job).await?;
        Ok(told.get("cost_micro").and_then(Value::as_u64).filter(|cost| *cost > 0))
    })
    .await?;
    until("the settlement of both jobs", WAIT, async || {
        let statement = Statement::replay(network.genesis(), &network.books()?.blocks().await?)?;
        statement.check()?;
        Ok((statement.gross > cost).then_some(()))
    })
    .await?;
    network.stop().await
}

/// Endpoints that are no streams, over the network: the client's bytes reach the server, and the server's the client. A message
/// is a chat to the server.
async fn others_pass_untouched(network: &Testnet, key: &str, seen: &Seen) -> Result<()> {
    let base_url = network.node("consumer")?.ready().base_url.clone().context("no base URL")?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let post = |path: &str, body: &str| http.post(format!("{base_url}/{path}")).bearer_auth(key).body(body.to_owned());
    let vectors = format!(r#"{{"model":"{MODEL}", "input" : ["a"],"a_field_of_next_year":{{"deep":1e400}}}}"#);
    let spoken = format!(r#"{{"model":"{MODEL}","input":"say it","voice":"theirs"}}"#);
    for (path, body, want, kind) in
        [("embeddings", &vectors, VECTORS, "application/json"), ("audio/speech", &spoken, &SOUND[..], "audio/mpeg")]
    {
        seen.lock().unwrap().clear();
        let response = post(path, body).send().await?;
        assert_eq!(response.status(), 200, "{path}");
        assert_eq!(
            (&response.headers()["content-type"], &response.headers()["x-spillway-route"]),
            (&kind.parse()?, &"network".parse()?)
        );
        assert_eq!(response.bytes().await?, want, "{path}");
        let sent = seen.lock().unwrap().clone();
        assert_eq!(sent, [body.replace(r#", "input" : "#, r#","input":"#).into_bytes()], "{path}");
    }
    let refused = post("rerank", &format!(r#"{{"model":"{MODEL}","query":"q","documents":["a"]}}"#)).send().await?;
    assert_eq!(refused.status(), 404);
    let refused: Value = serde_json::from_slice(&refused.bytes().await?)?;
    assert_eq!(refused.pointer("/error/code"), Some(&json!("endpoint_not_served")), "{refused}");

    seen.lock().unwrap().clear();
    let message = json!({
        "model": MODEL, "max_tokens": 99, "messages": [{"role": "user", "content": "Wetter?"}],
        "tools": [{"name": "weather", "input_schema": {"type": "object"}}], "a_field_of_next_year": [2.5],
    });
    let answer = post("messages", &message.to_string()).send().await?;
    let answer: Value = serde_json::from_slice(&answer.bytes().await?)?;
    let input: Value = serde_json::from_str(&ARGUMENTS.concat())?;
    assert_eq!(answer.pointer("/content/0/input"), Some(&input), "{answer}");
    assert_eq!(answer.pointer("/stop_reason"), Some(&json!("tool_use")), "{answer}");
    let sent = seen.lock().unwrap().clone();
    let sent: Value = serde_json::from_slice(sent.first().context("nothing was sent")?)?;
    assert_eq!(sent.get("a_field_of_next_year"), Some(&json!([2.5])), "{sent}");
    assert_eq!(sent.pointer("/tools/0/function/parameters/type"), Some(&json!("object")), "{sent}");
    Ok(())
}
