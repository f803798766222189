//! A whole node with real servers behind it, for tests of what only a whole node does.

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, State};
use axum::http::{HeaderMap, Response, StatusCode};
use axum::routing::{get, post};
use futures::StreamExt;
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};
use spillway_testnet::genesis::{ACCOUNT_KEY, GENESIS_FILE, NODE_KEY, found, key_file, write};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tempfile::TempDir;
use tokio::sync::oneshot;

/// How long any one condition may take; the machine may be busy.
pub(super) const WAIT: Duration = Duration::from_secs(60);

/// What a server does with a request for an answer.
#[derive(Clone, Debug)]
pub(super) enum Reply {
    /// Says this, with a report of 10 tokens read, 4 of them cached, and 2 written.
    Say(&'static str),
    /// Answers with this status, and asks to wait so many seconds.
    Refuse(u16, Option<&'static str>),
    /// Never answers.
    Hang,
    /// Says this, and then nothing more.
    Stall(&'static str),
}

/// A request that a server got.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    pub(super) headers: HeaderMap,
    pub(super) body: Value,
    /// Where the connection came from: two requests on one connection have the same.
    pub(super) from: SocketAddr,
}

/// A server on loopback. It does the first of its replies, then the next, and the last one for ever.
#[derive(Clone)]
pub(super) struct Server {
    pub(super) url: String,
    state: Arc<Mutex<Play>>,
}

struct Play {
    replies: Vec<Reply>,
    seen: Vec<Seen>,
    models: Vec<&'static str>,
}

impl Server {
    pub(super) async fn start(replies: &[Reply]) -> Self {
        Self::with_models(replies, &["m"]).await
    }

    pub(super) async fn with_models(replies: &[Reply], models: &[&'static str]) -> Self {
        let play = Play { replies: replies.iter().rev().cloned().collect(), seen: Vec::new(), models: models.to_vec() };
        let state = Arc::new(Mutex::new(play));
        let router = Router::new()
            .route("/v1/models", get(list))
            .route("/v1/chat/completions", post(chat))
            .with_state(Arc::clone(&state))
            .into_make_service_with_connect_info::<SocketAddr>();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/v1", listener.local_addr().expect("its address"));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { url, state }
    }

    /// What it got so far.
    pub(super) fn seen(&self) -> Vec<Seen> {
        self.state.lock().expect("no panic").seen.clone()
    }

    /// Waits until it got so many requests.
    pub(super) async fn wait_for(&self, count: usize) -> Vec<Seen> {
        let reached = async {
            while self.seen().len() < count {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(WAIT, reached).await.expect("in time");
        self.seen()
    }
}

async fn list(State(play): State<Arc<Mutex<Play>>>) -> String {
    let models: Vec<Value> = play.lock().expect("no panic").models.iter().map(|id| json!({"id": id})).collect();
    json!({"object": "list", "data": models}).to_string()
}

async fn chat(
    State(play): State<Arc<Mutex<Play>>>,
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    headers: HeaderMap,
    body: Bytes,
) -> Response<Body> {
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    let model = body["model"].clone();
    let reply = {
        let mut play = play.lock().expect("no panic");
        play.seen.push(Seen { headers, body, from });
        if play.replies.len() > 1 { play.replies.pop().expect("some") } else { play.replies[0].clone() }
    };
    let chunk = |delta: Value, finish: Value| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": finish});
        format!("data: {}\n\n", json!({"id": "chatcmpl-x", "model": model, "choices": [choice]}))
    };
    let usage = json!({"prompt_tokens": 10, "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens": 2});
    let sse = |body| Response::builder().header("content-type", "text/event-stream").body(body).expect("a response");
    match reply {
        Reply::Say(text) => sse(Body::from(
            chunk(json!({"role": "assistant", "content": text}), Value::Null)
                + &chunk(json!({}), "stop".into())
                + &format!("data: {}\n\ndata: [DONE]\n\n", json!({"choices": [], "usage": usage})),
        )),
        Reply::Refuse(status, retry_after) => {
            let mut response = Response::new(Body::from("{\"error\":{\"message\":\"not now\"}}"));
            *response.status_mut() = StatusCode::from_u16(status).expect("a status");
            if let Some(seconds) = retry_after {
                response.headers_mut().insert("retry-after", seconds.parse().expect("a value"));
            }
            response
        }
        Reply::Hang => std::future::pending().await,
        Reply::Stall(text) => {
            let first = Ok::<_, Infallible>(Bytes::from(chunk(json!({"content": text}), Value::Null)));
            sse(Body::from_stream(futures::stream::iter([first]).chain(futures::stream::pending())))
        }
    }
}

/// A node that keeps its own books, in this process.
pub(super) struct Node {
    pub(super) folder: TempDir,
    pub(super) base_url: String,
    pub(super) client: Client,
    pub(super) key: String,
    admin: String,
    stop: Option<oneshot::Sender<()>>,
    running: Option<std::thread::JoinHandle<anyhow::Result<()>>>,
}

impl Node {
    /// With these sections of `spillway.toml`; waits until all of `models` are served.
    pub(super) async fn start(sections: &str, models: &[&str]) -> Self {
        Self::in_folder(TempDir::new().expect("a folder"), sections, models).await
    }

    pub(super) async fn in_folder(folder: TempDir, sections: &str, models: &[&str]) -> Self {
        for name in [NODE_KEY, ACCOUNT_KEY] {
            key_file(&folder.path().join(name)).expect("a key");
        }
        let genesis = found(folder.path(), "test").expect("a genesis");
        write(&genesis, &folder.path().join(GENESIS_FILE)).expect("written");
        let settings = format!(
            "[network]\nlisten = [\"/ip4/127.0.0.1/tcp/0\"]\nmdns = false\n[gateway]\nlisten = \"127.0.0.1:0\"\n\
             [ledger]\nrole = \"solo\"\n{sections}"
        );
        let config: spillway_protocol::NodeConfig = toml::from_str(&settings).expect("settings");
        config.validate().expect("good settings");
        let (ready, is_ready) = oneshot::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let path = folder.path().to_owned();
        let running = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            let on_ready = |told: &crate::run::Ready| _ = ready.send(told.base_url.clone());
            runtime.block_on(crate::run::run(&path, config, on_ready, async { _ = stopped.await }))
        });
        let base_url = tokio::time::timeout(WAIT, is_ready).await.expect("in time").expect("it runs").expect("a URL");
        let admin = std::fs::read_to_string(folder.path().join("admin.token")).expect("a token").trim().to_owned();
        let client = Client::builder().no_proxy().build().expect("a client");
        let (stop, running) = (Some(stop), Some(running));
        let mut node = Self { folder, base_url, client, key: String::new(), admin, stop, running };
        node.key = node.new_key(json!({"name": "test"})).await;
        let all = async {
            while !node.serves(models).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(WAIT, all).await.expect("in time");
        node
    }

    async fn serves(&self, models: &[&str]) -> bool {
        let url = format!("{}/models", self.base_url);
        let list = self.client.get(url).bearer_auth(&self.key).send().await.expect("an answer");
        let list: Value = serde_json::from_slice(&list.bytes().await.expect("a body")).expect("JSON");
        let has = |model: &&str| list["data"].as_array().is_some_and(|list| list.iter().any(|it| it["id"] == **model));
        models.iter().all(has)
    }

    pub(super) fn admin(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        let origin = self.base_url.trim_end_matches("/v1");
        self.client.request(method, format!("{origin}{path}")).bearer_auth(&self.admin)
    }

    /// A key of these terms.
    pub(super) async fn new_key(&self, terms: Value) -> String {
        let made = self.admin(reqwest::Method::POST, "/admin/keys").body(terms.to_string()).send().await.expect("made");
        let made: Value = serde_json::from_slice(&made.bytes().await.expect("a body")).expect("JSON");
        made["secret"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
    }

    /// Spent and reserved of the key of this name, in micro-credits.
    pub(super) async fn tally(&self, name: &str) -> (u64, u64) {
        let list = self.admin(reqwest::Method::GET, "/admin/keys").send().await.expect("an answer");
        let list: Value = serde_json::from_slice(&list.bytes().await.expect("a body")).expect("JSON");
        let keys = list["keys"].as_array().expect("a list");
        let key = keys.iter().find(|key| key["name"] == name).expect("the key");
        (key["spent_micro"].as_u64().expect("a number"), key["reserved_micro"].as_u64().expect("a number"))
    }

    /// A chat, with more fields.
    pub(super) fn chat(&self, model: &str, more: Value) -> RequestBuilder {
        let mut body = json!({"model": model, "messages": [{"role": "user", "content": "hi"}], "max_tokens": 8});
        if let (Some(body), Value::Object(more)) = (body.as_object_mut(), more) {
            body.extend(more);
        }
        let url = format!("{}/chat/completions", self.base_url);
        self.client.post(url).bearer_auth(&self.key).body(body.to_string())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(running) = self.running.take() {
            let ended = running.join();
            if !std::thread::panicking() {
                ended.expect("no panic").expect("a clean end");
            }
        }
    }
}

/// Status, the answer's text or the error's code, and the headers.
pub(super) async fn said(request: RequestBuilder) -> (u16, String, HeaderMap) {
    let response = tokio::time::timeout(WAIT, request.send()).await.expect("in time").expect("an answer");
    let (status, headers) = (response.status().as_u16(), response.headers().clone());
    let body: Value = serde_json::from_slice(&response.bytes().await.expect("a body")).expect("JSON");
    let text = body["choices"][0]["message"]["content"].as_str().or(body["error"]["code"].as_str());
    (status, text.unwrap_or_else(|| panic!("{body}")).to_owned(), headers)
}
