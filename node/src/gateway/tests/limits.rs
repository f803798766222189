//! Who is turned away, and how.

use super::{PRICE_MAX, Terms, World, error_of, open};
use crate::gateway::ApiError;
use crate::gateway::tests::market::Market;
use spillway_ledger::store::Store;
use spillway_ledger::{Credits, Price};
use spillway_protocol::{Kind, Prefer};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

fn terms() -> Terms {
    Terms { name: "test".into(), ..Terms::default() }
}

#[tokio::test]
async fn every_route_but_two_wants_a_key() {
    let world = World::new().await;
    for path in ["/healthz", "/readyz"] {
        assert_eq!(world.client.get(world.url(path)).send().await.expect("an answer").status(), 200);
    }
    let id = "0".repeat(32);
    let gets = [
        "/v1/models",
        "/v1/models/plain",
        "/metrics",
        "/admin/keys",
        "/admin/projects",
        "/admin/jobs",
        "/admin/status",
        "/admin/audit",
        "/admin/audit/head",
        "/admin/market",
        "/admin/ledger/log",
    ];
    for path in
        gets.map(str::to_owned).into_iter().chain([format!("/api/v1/generation?id={id}"), format!("/admin/jobs/{id}")])
    {
        for key in ["", "sk-spillway-00000000_00000000000000000000000000000000"] {
            let response = world.client.get(world.url(&path)).bearer_auth(key).send().await.expect("an answer");
            assert_eq!(response.headers()["www-authenticate"], "Bearer");
            assert_eq!(error_of(response).await, (401, "invalid_api_key".into(), None), "{path}");
        }
    }
    for path in ["/v1/chat/completions", "/v1/completions", "/admin/keys", "/admin/ledger/mint"] {
        // Also with a body that would be refused: who asks comes first.
        for body in ["{}".to_owned(), "x".repeat(5 << 20)] {
            let response = world.client.post(world.url(path)).body(body).send().await.expect("an answer");
            assert_eq!(error_of(response).await.0, 401, "{path}");
        }
    }
    // A client's key is no operator's, and the other way round.
    assert_eq!(world.get("/admin/keys").send().await.expect("an answer").status(), 401);
    let models = world.client.get(world.url("/v1/models")).bearer_auth(world.admin_token());
    assert_eq!(models.send().await.expect("an answer").status(), 401);
    let with_header = world.client.get(world.url("/v1/models")).header("x-api-key", &world.key);
    assert_eq!(with_header.send().await.expect("an answer").status(), 200);
}

#[tokio::test]
async fn bad_requests_name_the_field() {
    let world = World::new().await;
    let body = |rest: &str| format!(r#"{{"model":"plain","messages":[{{"role":"user","content":"hi"}}]{rest}}}"#);
    let cases = [
        ("{".to_owned(), 400, "invalid_request", None),
        (r#"{"model":"plain"}"#.into(), 400, "invalid_request", Some("messages")),
        (body(r#","temperature":"hot""#), 400, "invalid_request", Some("temperature")),
        (body(r#","max_tokens":0"#), 400, "invalid_request", Some("max_tokens")),
        (r#"{"model":"absent","messages":[{"role":"user"}]}"#.into(), 404, "model_not_found", Some("model")),
        (format!("{{\"pad\":\"{}\"}}", "x".repeat(5 << 20)), 413, "request_too_large", None),
    ];
    for (body, status, code, param) in cases {
        let start: String = body.chars().take(60).collect();
        let response = world.post("/v1/chat/completions", body).send().await.expect("an answer");
        assert_eq!(error_of(response).await, (status, code.into(), param.map(str::to_owned)), "{start}");
    }
    let response =
        world.post("/v1/chat/completions", r#"{"model":"absent","messages":[{"role":"user"}]}"#).send().await;
    assert!(response.expect("an answer").text().await.expect("text").contains("`absent`"));
    assert_eq!(error_of(world.post("/v1/nothing", "").send().await.expect("an answer")).await.0, 404);
    assert_eq!(error_of(world.get("/v1/completions").send().await.expect("an answer")).await.0, 405);
}

#[tokio::test]
async fn keys_limit_models_money_and_numbers() {
    let models = Some(vec!["plain".into(), "endless".into()]);
    // One job of one token reserves 8 units at one micro-credit each.
    let world =
        World::with(Terms { models, budget_micro: Some(Credits::new(2000)), concurrency: Some(1), ..terms() }).await;
    assert_eq!(error_of(world.chat("cut", "").await).await, (403, "model_not_allowed".into(), Some("model".into())));
    let list = world.get("/v1/models").send().await.expect("an answer").text().await.expect("text");
    assert!(list.contains("endless") && !list.contains("cut"), "{list}");
    let stream = world.chat("endless", r#","stream":true"#).await;
    let response = world.chat("plain", "").await;
    assert_eq!(response.headers()["retry-after"], "1");
    assert_eq!(error_of(response).await, (429, "concurrency_limit".into(), None));
    drop(stream);
    let free = async {
        while world.tally().await.1 != 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), free).await.expect("settled");
    assert_eq!(error_of(world.chat("plain", r#","max_completion_tokens":1000"#).await).await.0, 402);
    assert_eq!(world.chat("plain", "").await.status(), 200);
    assert_eq!(world.chat("plain", "").await.status(), 200);
    // 55 and twice 1,234 are spent: the last job cost more than the market may charge, which nothing here hides.
    assert_eq!(world.tally().await, (2523, 0));
    let response = world.chat("plain", "").await;
    assert_eq!(error_of(response).await, (402, "budget_exceeded".into(), None));
}

#[tokio::test]
async fn limits_per_minute_are_told_as_openai_does() {
    let world = World::with(Terms { requests_per_minute: Some(2), tokens_per_minute: Some(600), ..terms() }).await;
    let header = |response: &reqwest::Response, name: &str| response.headers()[name].to_str().expect("text").to_owned();
    let response = world.chat("plain", "").await;
    assert_eq!(response.status(), 200);
    assert_eq!(header(&response, "x-ratelimit-limit-requests"), "2");
    assert_eq!(header(&response, "x-ratelimit-remaining-requests"), "1");
    assert_eq!(header(&response, "x-ratelimit-reset-requests"), "30s");
    assert_eq!(header(&response, "x-ratelimit-limit-tokens"), "600");
    // What goes to the backend is 129 to 132 bytes and is taken for 33 tokens; one is asked for.
    assert_eq!(header(&response, "x-ratelimit-remaining-tokens"), "566");
    assert_eq!(header(&response, "x-ratelimit-reset-tokens"), "3.4s");
    let never = world.chat("plain", r#","max_completion_tokens":600"#).await;
    assert_eq!(never.headers()["x-should-retry"], "false");
    assert!(!never.headers().contains_key("retry-after"));
    assert_eq!(error_of(never).await, (429, "rate_limit_exceeded".into(), None));
    let streamed = world.chat("plain", r#","stream":true"#).await;
    assert_eq!(header(&streamed, "x-ratelimit-remaining-requests"), "0");
    let refused = world.chat("plain", "").await;
    assert_eq!(header(&refused, "x-ratelimit-remaining-requests"), "0");
    assert!(header(&refused, "retry-after").parse::<u64>().is_ok_and(|seconds| (1..=30).contains(&seconds)));
    assert_eq!(error_of(refused).await, (429, "rate_limit_exceeded".into(), None));
    // A key without limits has no such headers.
    let free = World::new().await.chat("plain", "").await;
    assert!(free.headers().keys().all(|name| !name.as_str().starts_with("x-ratelimit")));
}

#[tokio::test]
async fn a_keys_terms_go_with_the_job() {
    let cap = Price { input: Credits::new(9), cached: Credits::ZERO, output: Credits::new(7) };
    let prefer = crate::gateway::keys::PreferName::Own;
    let (providers_only, providers_order) = (vec!["aabbccdd".to_owned()], vec!["region:here".to_owned()]);
    let providers = Terms { providers_only, providers_order, ..terms() };
    let mut world =
        World::with(Terms { prefer, price_max: Some(cap), budget_micro: Some(Credits::ZERO), ..providers }).await;
    assert_eq!(world.chat("cut", "").await.status(), 200);
    let job = world.market.jobs.recv().await.expect("a job");
    assert_eq!(job.prefer, Prefer::Own);
    assert_eq!(
        (&job.preferences.only[..], &job.preferences.order[..]),
        (&["aabbccdd".into()][..], &["region:here".into()][..])
    );
    let other = world.chat("cut", r#","provider":{"only":["eeeeffff"]}"#).await;
    assert_eq!(error_of(other).await, (403, "provider_not_allowed".into(), Some("provider.only".into())));
    assert_eq!(job.price_max, Price { input: PRICE_MAX.input, cached: Credits::ZERO, output: Credits::new(7) });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_requests_never_exceed_a_budget() {
    // The last of a hundred fills the budget exactly.
    let world = World::with(Terms { budget_micro: Some(Credits::new(100 * 8)), ..terms() }).await;
    let body = r#"{"model":"endless","messages":[{"role":"user","content":"hi"}],"max_tokens":1}"#;
    let tasks: Vec<_> = (0..1000)
        .map(|_| {
            let (gateway, key) = (world.gateway.clone(), world.key.clone());
            tokio::spawn(async move { gateway.admit(&key, Kind::Chat, body.as_bytes()).await })
        })
        .collect();
    let (mut admitted, mut refused) = (Vec::new(), 0);
    for task in tasks {
        match task.await.expect("no panic") {
            Ok(job) => admitted.push(job),
            Err(ApiError { status: 429, code, .. }) if code == "budget_reserved" => refused += 1,
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!((admitted.len(), refused), (100, 900));
    assert_eq!(world.tally().await, (0, 800));
}

#[tokio::test]
async fn a_restart_frees_what_was_reserved_and_keeps_what_was_spent() {
    let world = World::with(Terms { budget_micro: Some(Credits::new(10_000)), ..terms() }).await;
    assert_eq!(world.chat("plain", "").await.status(), 200);
    let body = r#"{"model":"endless","messages":[{"role":"user","content":"hi"}],"max_tokens":1}"#;
    let open_job = world.gateway.admit(&world.key, Kind::Chat, body.as_bytes()).await.expect("admitted");
    assert_eq!(world.tally().await, (1234, 8));
    // As after a kill: a copy of the file while the job is under way.
    world.gateway.flush().await;
    let (copy, key) = (tempfile::TempDir::new().expect("a folder"), world.key.clone());
    std::fs::copy(world.place.folder().path().join("node.redb"), copy.path().join("node.redb")).expect("copied");
    let store = Arc::new(Store::open(copy.path().join("node.redb")).expect("a store"));
    let gateway = open(&copy, store, Market::start().0, true).await;
    let view = gateway.0.keys.list().await.expect("listed").remove(0);
    assert_eq!((view.spent_micro, view.reserved_micro), (Credits::new(1234), Credits::ZERO));
    assert!(gateway.authenticate(&key).await.is_ok());
    drop(open_job);
}

/// One request as it is, and the first line of the answer.
async fn raw(world: &World, request: &str) -> String {
    let mut stream = TcpStream::connect(world.serving.address()).await.expect("connected");
    stream.write_all(request.as_bytes()).await.expect("written");
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.expect("read");
    String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned()
}

#[tokio::test]
async fn web_pages_reach_nothing() {
    let world = World::new().await;
    let (key, token) = (&world.key, world.admin_token());
    let cases = [
        ("Host: localhost:1", "/healthz", key, "200"),
        ("Host: [::1]:1", "/healthz", key, "200"),
        ("Host: evil.example", "/healthz", key, "403"),
        ("Host: evil.example", "/v1/models", key, "403"),
        ("Host: 127.0.0.1.evil.example", "/v1/models", key, "403"),
        ("Host: localhost", "/v1/models", key, "200"),
        ("Host: localhost", "/admin/keys", &token, "200"),
        ("Host: localhost\r\nOrigin: http://localhost", "/admin/keys", &token, "200"),
        ("Host: localhost\r\nOrigin: http://evil.example", "/admin/keys", &token, "403"),
        ("Host: localhost\r\nOrigin: null", "/admin/keys", &token, "403"),
        ("Host: localhost\r\nSec-Fetch-Site: cross-site", "/admin/keys", &token, "403"),
        ("Host: evil.example\r\nOrigin: http://evil.example", "/admin/keys", &token, "403"),
    ];
    for (headers, path, secret, status) in cases {
        let request =
            format!("GET {path} HTTP/1.1\r\n{headers}\r\nAuthorization: Bearer {secret}\r\nConnection: close\r\n\r\n");
        let line = raw(&world, &request).await;
        assert_eq!(line.split(' ').nth(1), Some(status), "{headers} {path}: {line}");
    }
}
