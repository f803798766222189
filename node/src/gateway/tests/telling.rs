//! What is told of requests and of the operator's actions: over a real socket, in files.

use super::{World, error_of, json_of};
use crate::audit::{AuditRecord, LOG_FILE, scan};
use crate::gateway::store::tests::Place;
use crate::gateway::{Policies, Terms, tests};
use crate::telemetry::Telemetry;
use reqwest::Method;
use serde_json::{Value, json};
use spillway_ledger::{NodeId, SecretKey};
use spillway_protocol::config::TelemetrySection;
use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

/// A world with an access log, and what it tells.
async fn telling() -> (World, Telemetry) {
    let place = Place::embedded().await;
    let section = TelemetrySection { access_log: Some("access.jsonl".into()), ..TelemetrySection::default() };
    let (jobs, market) = tests::market::Market::start();
    let store = place.store().await;
    let metrics = Arc::new(crate::metrics::Metrics::new());
    let key = SecretKey::generate([5; 32]);
    let node = NodeId(key.public());
    let folder = place.folder().path();
    let audit = crate::audit::AuditLog::open(folder, Arc::clone(&store), key, Arc::clone(&metrics)).expect("a log");
    let telemetry = Telemetry::start(&section, folder, &node, &metrics, &audit).expect("started");
    drop(audit);
    let gateway =
        tests::open_telling(place.folder(), store, jobs, true, None, Policies::none(), telemetry.clone()).await;
    let serving = gateway.serve("127.0.0.1:0").await.expect("a port");
    let project =
        gateway.0.keys.create_project(Terms { name: "p".into(), ..Terms::default() }).await.expect("a project");
    let terms = Terms { name: "test".into(), project: project.id.parse().ok(), ..Terms::default() };
    let (_, secret) = gateway.0.keys.create(terms).await.expect("a key");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    (World { place, gateway, serving, market, client, key: secret.to_string() }, telemetry)
}

#[tokio::test]
async fn every_request_has_one_line_and_none_has_a_secret() {
    let (mut world, telemetry) = telling().await;
    let body = |model: &str, rest: &str| {
        format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"MY PROMPT"}}]{rest}}}"#)
    };
    let post = async |body: String| world.post("/v1/chat/completions", body).send().await.expect("an answer");
    assert_eq!(post(body("legs", r#","max_tokens":1"#)).await.status(), 200);
    let streamed = post(body("plain", r#","stream":true"#)).await.text().await.expect("a stream");
    assert!(streamed.ends_with("data: [DONE]\n\n"));
    assert_eq!(error_of(post(body("full", "")).await).await.0, 429);
    assert_eq!(error_of(post(body("absent", "")).await).await.0, 404);
    assert_eq!(error_of(post(body("plain", r#","temperature":9"#)).await).await.0, 400);
    let stranger = world.client.post(world.url("/v1/chat/completions")).bearer_auth("sk-spillway-00000000_MYSECRET");
    assert_eq!(error_of(stranger.body("{}").send().await.expect("an answer")).await.0, 401);
    let embedding = world.post("/v1/embeddings", r#"{"model":"whole-broken","input":"x"}"#).send().await;
    assert_eq!(error_of(embedding.expect("an answer")).await.0, 502);
    // A client that leaves.
    let mut endless = post(body("endless", r#","stream":true"#)).await;
    endless.chunk().await.expect("a piece");
    drop(endless);
    world.market.left.recv().await.expect("told");
    // Its money comes back with its line.
    let begun = std::time::Instant::now();
    while world.tally().await.1 > 0 {
        assert!(begun.elapsed() < Duration::from_secs(20), "it never ended");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    telemetry.stop(Duration::from_secs(20)).await;
    let text = std::fs::read_to_string(world.place.folder().path().join("access.jsonl")).expect("a log");
    for secret in ["MY PROMPT", "MYSECRET", "Hel", world.key.split('_').next_back().expect("a secret")] {
        assert!(!text.contains(secret), "{secret} is in\n{text}");
    }
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| {
            let text = |field: &str| line[field].as_str().unwrap_or("-").to_owned();
            (line["status"].as_u64().expect("a status"), text("code"), text("model"), text("route"), text("endpoint"))
        })
        .collect();
    let row = |status, code: &str, model: &str, route: &str, endpoint: &str| {
        (status, code.to_owned(), model.to_owned(), route.to_owned(), endpoint.to_owned())
    };
    assert_eq!(
        told,
        [
            row(200, "-", "legs", "own", "chat"),
            row(200, "-", "plain", "network", "chat"),
            row(429, "queue_full", "full", "none", "chat"),
            row(404, "model_not_found", "-", "none", "chat"),
            row(400, "invalid_request", "-", "none", "chat"),
            row(401, "invalid_api_key", "-", "none", "chat"),
            row(502, "upstream_error", "whole-broken", "own", "embedding"),
            row(499, "client_left", "endless", "network", "chat"),
        ]
    );
    let first = &lines[0];
    for (field, want) in [
        ("record", json!("access")),
        ("door", json!("http")),
        ("stream", json!(false)),
        ("finish", json!("stop")),
        ("reason", json!("own_free")),
        ("legs", json!(2)),
        ("input_tokens", json!(10)),
        ("output_tokens", json!(1)),
        ("output_units", json!(10)),
        ("cost_micro", json!(1234)),
        ("provider", Value::Null),
    ] {
        assert_eq!(first[field], want, "{field}");
    }
    let key = world.key.trim_start_matches("sk-spillway-").split('_').next().expect("an id");
    assert_eq!((&first["key"], first["project"].as_str().map(str::len)), (&json!(key), Some(8)));
    assert!(lines[1]["stream"] == true && lines[1]["first_ms"].as_f64() <= lines[1]["total_ms"].as_f64());
    assert_eq!((&lines[5]["key"], &lines[5]["job"]), (&Value::Null, &Value::Null));
    assert_eq!(lines[7]["cost_micro"], super::market::LEFT_COST);
}

#[tokio::test]
async fn a_clients_trace_reaches_own_servers() {
    let mut world = World::new().await;
    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let body = r#"{"model":"plain","messages":[{"role":"user","content":"hi"}]}"#;
    for (value, wanted) in [(Some(PARENT), Some(PARENT)), (Some("nonsense"), None), (None, None)] {
        let mut request = world.post("/v1/chat/completions", body);
        if let Some(value) = value {
            request = request.header("traceparent", value);
        }
        assert_eq!(request.send().await.expect("an answer").status(), 200);
        let told = world.market.traces.recv().await.expect("a job");
        assert_eq!(told.map(|it| it.parent.to_str().expect("text").to_owned()).as_deref(), wanted);
    }
}

#[tokio::test]
async fn the_operators_actions_are_in_the_audit_log_whatever_the_dialect() {
    let world = World::new().await;
    let made = json_of(world.admin(Method::POST, "/admin/keys", r#"{"name":"a","budget_day_micro":5}"#).await).await;
    let id = made["id"].as_str().expect("an id");
    let path = format!("/admin/keys/{id}");
    let patch = r#"{"budget_day_micro":7}"#;
    assert_eq!(world.admin(Method::PATCH, &path, patch).await.status(), 200);
    let rotated = json_of(world.admin(Method::POST, &format!("{path}/rotate"), "{}").await).await;
    assert_eq!(world.admin(Method::DELETE, &path, "").await.status(), 204);
    assert_eq!(world.admin(Method::PATCH, &path, patch).await.status(), 404, "refused, and told");
    let project = json_of(world.admin(Method::POST, "/admin/projects", r#"{"name":"p"}"#).await).await;
    let project_path = format!("/admin/projects/{}", project["id"].as_str().expect("an id"));
    assert_eq!(world.admin(Method::PATCH, &project_path, r#"{"blocked":true}"#).await.status(), 200);
    let litellm = json_of(world.admin(Method::POST, "/key/generate", r#"{"max_budget":1}"#).await).await;
    let token = litellm["token"].as_str().expect("an id");
    let body = json!({"key": token, "max_budget": 2}).to_string();
    assert_eq!(world.admin(Method::POST, "/key/update", &body).await.status(), 200);
    assert_eq!(world.admin(Method::POST, "/key/block", &json!({"key": token}).to_string()).await.status(), 200);
    assert_eq!(world.admin(Method::POST, "/key/delete", &json!({"keys": [token]}).to_string()).await.status(), 200);
    let openrouter = json_of(world.admin(Method::POST, "/api/v1/keys", r#"{"name":"o"}"#).await).await;
    let hash = openrouter["data"]["hash"].as_str().expect("an id");
    assert_eq!(world.admin(Method::PATCH, &format!("/api/v1/keys/{hash}"), r#"{"disabled":true}"#).await.status(), 200);
    assert_eq!(world.admin(Method::DELETE, &format!("/api/v1/keys/{hash}"), "").await.status(), 200);
    let mint = json!({"to": super::account(), "amount_micro": 77, "reference": "r"}).to_string();
    assert_eq!(world.admin(Method::POST, "/admin/ledger/mint", &mint).await.status(), 200);
    let bond = r#"{"action":"bond","amount_micro":5}"#;
    assert_eq!(world.admin(Method::POST, "/admin/ledger/entries", bond).await.status(), 200);
    // What only reads, or is no action at all, has no line.
    world.admin_json("/admin/keys").await;
    assert_eq!(world.admin(Method::POST, "/admin/keys", "[]").await.status(), 400);

    let log = world.place.folder().path().join(LOG_FILE);
    let mut records: Vec<AuditRecord> = Vec::new();
    scan(File::open(&log).expect("a log"), |record, _| records.push(record.clone())).expect("holds");
    let told: Vec<_> = records.iter().map(|it| (it.action.as_str(), it.what.clone(), it.result.as_str())).collect();
    let (key, token, hash) = (format!("key {id}"), format!("key {token}"), format!("key {hash}"));
    let project = format!("project {}", project["id"].as_str().expect("an id"));
    let account = format!("account {}", super::account());
    assert_eq!(
        told,
        [
            ("key.create", key.clone(), "done"),
            ("key.update", key.clone(), "done"),
            ("key.rotate", key.clone(), "done"),
            ("key.revoke", key.clone(), "done"),
            ("key.update", key, "refused: key_not_found"),
            ("project.create", project.clone(), "done"),
            ("project.update", project, "done"),
            ("key.create", token.clone(), "done"),
            ("key.update", token.clone(), "done"),
            ("key.update", token.clone(), "done"),
            ("key.revoke", token, "done"),
            ("key.create", hash.clone(), "done"),
            ("key.update", hash.clone(), "done"),
            ("key.revoke", hash, "done"),
            ("ledger.mint", account, "done"),
            ("ledger.entry", "bond".to_owned(), "done"),
        ]
    );
    assert_eq!(
        (&records[1].before, &records[1].after),
        (&json!({"budget_day_micro": 5}), &json!({"budget_day_micro": 7}))
    );
    assert_eq!((&records[3].before, &records[3].after), (&json!({"revoked": false}), &json!({"revoked": true})));
    assert!(records.iter().all(|record| record.who.with == "admin"));
    assert!(records[0].who.from.as_ref().is_some_and(|from| from.starts_with("127.0.0.1:")), "{:?}", records[0].who);
    let text = std::fs::read_to_string(&log).expect("a log");
    for secret in [&made["secret"], &rotated["secret"], &litellm["key"], &openrouter["key"]] {
        let secret = secret.as_str().and_then(|secret| secret.split('_').next_back()).expect("a secret");
        assert!(!text.contains(secret));
    }
    assert!(!text.contains(&world.admin_token()));
    // The same over HTTP.
    let lines = world.admin_json("/admin/audit").await;
    assert_eq!(lines["lines"].as_array().map(Vec::len), Some(records.len()));
    let last = records.last().expect("some");
    let head = world.admin_json("/admin/audit/head").await;
    assert_eq!((&head["seq"], &head["hash"]), (&json!(last.seq), &json!(last.hash)));
}

#[tokio::test]
async fn a_job_of_own_hardware_is_told_with_what_others_ask() {
    let world = World::new().await;
    let response = world.chat("legs", "").await;
    let job = response.headers()["x-spillway-job"].to_str().expect("text").to_owned();
    let told = world.admin_json(&format!("/admin/jobs/{job}")).await;
    let offers = told["offers_now"].as_array().expect("a list");
    let costs: Vec<_> = offers.iter().map(|offer| offer["would_cost_micro"].as_u64().expect("a cost")).collect();
    // Two legs delivered five units each, at 2 and at 9 micro-credits a unit; dearer ones come last.
    assert_eq!(costs, [20, 90], "{told}");
}
