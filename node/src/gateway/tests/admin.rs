//! The operator's routes, and what is told about jobs.

use super::{World, account, error_of, json_of};
use reqwest::{Method, Response};
use serde_json::{Value, json};
use spillway_ledger::SecretKey;

impl World {
    pub(super) async fn admin(&self, method: Method, path: &str, body: &str) -> Response {
        let request = self.client.request(method, self.url(path)).bearer_auth(self.admin_token());
        request.body(body.to_owned()).send().await.expect("an answer")
    }

    pub(super) async fn admin_json(&self, path: &str) -> Value {
        let response = self.admin(Method::GET, path, "").await;
        assert_eq!(response.status(), 200, "{path}");
        json_of(response).await
    }
}

#[tokio::test]
async fn keys_are_made_listed_and_revoked() {
    let world = World::new().await;
    let wanted = r#"{"name":"demo","budget_micro":5000000,"prefer":"any","models":["plain"],"concurrency":3}"#;
    let response = world.admin(Method::POST, "/admin/keys", wanted).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["cache-control"]),
        (201, &"no-store".parse().expect("a value"))
    );
    let made = json_of(response).await;
    let secret = made["secret"].as_str().expect("a secret");
    let shown = json!({
        "id": made["id"], "name": "demo", "budget_micro": 5_000_000, "prefer": "any", "models": ["plain"],
        "price_max": null, "concurrency": 3, "spent_micro": 0, "spent_day_micro": 0, "spent_week_micro": 0,
        "spent_month_micro": 0, "reserved_micro": 0, "running": 0, "revoked": false, "created_ms": made["created_ms"],
    });
    let list = world.admin_json("/admin/keys").await;
    assert!(list["keys"].as_array().expect("a list").contains(&shown), "{list}");
    assert!(!list.to_string().contains("secret"));
    let models = || world.client.get(world.url("/v1/models")).bearer_auth(secret).send();
    assert_eq!(models().await.expect("an answer").status(), 200);
    let path = format!("/admin/keys/{}", made["id"].as_str().expect("an id"));
    assert_eq!(world.admin(Method::DELETE, &path, "").await.status(), 204);
    assert_eq!(models().await.expect("an answer").status(), 401);
    for (path, status) in [("/admin/keys/00000000", 404), ("/admin/keys/zz", 404)] {
        assert_eq!(error_of(world.admin(Method::DELETE, path, "").await).await.0, status);
    }
    for (body, field) in [
        (r#"{"name":""}"#, Some("name")),
        (r#"{"name":"a","concurrency":0}"#, Some("concurrency")),
        (r#"{"nom":"a"}"#, Some("nom")),
        (r#"{"name":"a","budget_day_micro":"5"}"#, Some("budget_day_micro")),
        (r#"{"name":"a","project":"00000000"}"#, Some("project")),
    ] {
        let error = error_of(world.admin(Method::POST, "/admin/keys", body).await).await;
        assert_eq!(error, (400, "invalid_request".into(), field.map(str::to_owned)), "{body}");
    }
}

#[tokio::test]
async fn keys_and_projects_are_changed() {
    let world = World::new().await;
    let project = r#"{"name":"team","budget_month_micro":9000000,"models":["plain"]}"#;
    let response = world.admin(Method::POST, "/admin/projects", project).await;
    assert_eq!(response.status(), 201);
    let project = json_of(response).await;
    let project_id = project["id"].as_str().expect("an id");
    let body = json!({"name": "demo", "project": project_id}).to_string();
    let made = json_of(world.admin(Method::POST, "/admin/keys", &body).await).await;
    let path = format!("/admin/keys/{}", made["id"].as_str().expect("an id"));
    let models = async |secret: &Value| {
        let secret = secret.as_str().expect("a secret");
        let response = world.client.get(world.url("/v1/models")).bearer_auth(secret).send().await.expect("an answer");
        (response.status().as_u16(), response.text().await.expect("text").matches("\"id\"").count())
    };
    assert_eq!(models(&made["secret"]).await, (200, 1), "the project's models only");

    let changed = world.admin(Method::PATCH, &path, r#"{"budget_micro":7,"project":null}"#).await;
    assert_eq!(changed.status(), 200);
    let changed = json_of(changed).await;
    assert_eq!(
        (&changed["budget_micro"], &changed["project"], &changed["name"]),
        (&json!(7), &Value::Null, &json!("demo"))
    );
    assert_eq!(world.admin_json(&path).await, changed);
    assert!(models(&made["secret"]).await.1 > 1);

    let response = world.admin(Method::POST, &format!("{path}/rotate"), r#"{"overlap_s":60}"#).await;
    assert_eq!(
        (response.status().as_u16(), &response.headers()["cache-control"]),
        (200, &"no-store".parse().expect("a value"))
    );
    let rotated = json_of(response).await;
    assert_eq!((models(&made["secret"]).await.0, models(&rotated["secret"]).await.0), (200, 200));
    let rotated = json_of(world.admin(Method::POST, &format!("{path}/rotate"), r#"{"overlap_s":0}"#).await).await;
    assert_eq!((models(&made["secret"]).await.0, models(&rotated["secret"]).await.0), (401, 200));

    let project_path = format!("/admin/projects/{project_id}");
    let list = world.admin_json("/admin/projects").await;
    assert_eq!(list["projects"], json!([world.admin_json(&project_path).await]));
    for (method, path, body, want) in [
        (Method::PATCH, path.as_str(), r#"{"concurrency":0}"#, (400, Some("concurrency"))),
        (Method::PATCH, path.as_str(), r#"{"project":"zz"}"#, (400, Some("project"))),
        (Method::PATCH, path.as_str(), "[]", (400, None)),
        (Method::PATCH, "/admin/keys/00000000", "{}", (404, None)),
        (Method::GET, "/admin/keys/zz", "", (404, None)),
        (Method::POST, "/admin/keys/00000000/rotate", "{}", (404, None)),
        (Method::POST, &format!("{path}/rotate"), r#"{"overlap":1}"#, (400, Some("overlap"))),
        (Method::PATCH, project_path.as_str(), r#"{"budget_day_micro":1.5}"#, (400, Some("budget_day_micro"))),
        (Method::PATCH, project_path.as_str(), &json!({"project": project_id}).to_string(), (400, Some("project"))),
        (Method::POST, "/admin/projects", r#"{"name":""}"#, (400, Some("name"))),
        (Method::GET, "/admin/projects/00000000", "", (404, None)),
    ] {
        let (status, _, param) = error_of(world.admin(method.clone(), path, body).await).await;
        assert_eq!((status, param.as_deref()), want, "{method} {path} {body}");
    }
}

#[tokio::test]
async fn jobs_are_told_to_their_owners() {
    let world = World::new().await;
    let response = world.chat("legs", "").await;
    let job = response.headers()["x-spillway-job"].to_str().expect("text").to_owned();
    let path = format!("/api/v1/generation?id={job}");
    let told = json_of(world.get(&path).send().await.expect("an answer")).await;
    let ours = &told["data"]["x_spillway"];
    assert_eq!((&ours["status"], &ours["legs"][1]["reason"]), (&json!("done"), &json!("provider_stalled")));
    assert_eq!(world.admin_json(&format!("/admin/jobs/{job}")).await, *ours);
    assert_eq!(world.admin_json(&path).await, told);
    for (field, want) in [
        ("id", json!(job)),
        ("model", json!("legs")),
        ("streamed", json!(false)),
        ("cancelled", json!(false)),
        ("provider_name", json!("own")),
        ("finish_reason", json!("stop")),
        ("latency", json!(1)),
        ("generation_time", json!(1)),
        ("native_tokens_prompt", json!(10)),
        ("native_tokens_completion", json!(1)),
        ("total_cost", json!(0.001234)),
        ("usage", json!(0.001234)),
    ] {
        assert_eq!(told["data"][field], want, "{field}");
    }
    assert!(told["data"]["created_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{told}");
    // Clients know an answer's own id.
    let by_answer = world.get(&format!("/api/v1/generation?id=chatcmpl-{job}")).send().await.expect("an answer");
    assert_eq!(json_of(by_answer).await, told);
    let (_, other) =
        world.gateway.0.keys.create(super::Terms { name: "b".into(), ..Default::default() }).await.expect("a key");
    let asked = world.client.get(world.url(&path)).bearer_auth(&*other).send().await.expect("an answer");
    assert_eq!(error_of(asked).await, (404, "job_not_found".into(), None));
    for id in ["", "zz"] {
        let asked = world.get(&format!("/api/v1/generation?id={id}")).send().await.expect("an answer");
        assert_eq!(error_of(asked).await, (400, "invalid_request".into(), Some("id".into())));
    }
}

#[tokio::test]
async fn the_books_and_the_node_are_shown() {
    let world = World::new().await;
    let status = world.admin_json("/admin/status").await;
    assert_eq!((&status["peers"], &status["height"], &status["jobs_running"]), (&json!(3), &json!(2), &json!(0)));
    assert_eq!(
        status["backends"],
        json!([{"model": "plain", "engine": "test", "slots": 2, "free": 1, "healthy": true}])
    );
    assert!(status["uptime_s"].is_u64() && status["version"].is_string());
    let mut shown = json!({
        "account": account(), "balance_micro": 5, "locked_micro": 6, "payouts_micro": 0, "bond_micro": 0,
        "unbonding_micro": 0, "unbonding_due_ms": 0, "nonce": 0, "height": 2,
    });
    assert_eq!(world.admin_json("/admin/ledger/account").await, shown);
    let other = SecretKey::generate([8; 32]).account();
    shown["account"] = json!(other);
    assert_eq!(world.admin_json(&format!("/admin/ledger/account?account={other}")).await, shown);
    let blocks = world.admin(Method::GET, "/admin/ledger/blocks?from=1", "").await.bytes().await.expect("bytes");
    assert_eq!(&blocks[..], [3, 0, 0, 0, 1, 1, 1, 3, 0, 0, 0, 2, 2, 2]);
    let blocks = world.admin(Method::GET, "/admin/ledger/blocks?from=3", "").await.bytes().await.expect("bytes");
    assert!(blocks.is_empty());
    let line = |session: Value, kind: Value, account: Value, to: Value| json!([{"height": 7, "to": to, "action": kind, "session": session, "account": account}]);
    let log = world.admin_json("/admin/ledger/log?from=7").await;
    assert_eq!(log, json!({"entries": line(Value::Null, Value::Null, Value::Null, Value::Null), "more": false}));
    let session = "07".repeat(32);
    let path = format!("/admin/ledger/log?from=7&to=9&kind=burn&session={session}&account={other}&limit=3");
    let log = world.admin_json(&path).await;
    assert_eq!(log, json!({"entries": line(json!(session), json!("burn"), json!(other), json!(9)), "more": true}));
    let payouts = world.admin_json("/admin/ledger/payouts").await;
    assert_eq!((&payouts["height"], &payouts["payouts"][0]["amount_micro"]), (&json!(4), &json!(9)));
    let proof = async |query: &str| {
        world
            .admin(Method::GET, &format!("/admin/ledger/proof{query}"), "")
            .await
            .bytes()
            .await
            .expect("bytes")
            .to_vec()
    };
    assert_eq!(proof("").await, b"own");
    assert_eq!(proof(&format!("?account={other}")).await, other.0.as_bytes());
    assert_eq!(proof(&format!("?job={}&leg=2", "0".repeat(32))).await, [2]);
    let receipts = format!("/admin/ledger/receipts?job={}", "0".repeat(32));
    assert_eq!(world.admin_json(&receipts).await, json!({"receipts": []}));
    assert_eq!(
        world.admin_json("/admin/market").await["models"].as_array().map(Vec::len),
        Some(super::market::MODELS.len())
    );
    for (path, status) in [
        ("/admin/ledger/receipts", 500),
        ("/admin/ledger/receipts?job=1", 400),
        ("/admin/ledger/log?from=x", 400),
        ("/admin/ledger/log?to=x", 400),
        ("/admin/ledger/log?kind=steal", 400),
        ("/admin/ledger/log?account=1", 400),
        ("/admin/ledger/log?session=1", 400),
        ("/admin/ledger/log?limit=-1", 400),
        ("/admin/ledger/account?account=zz", 400),
        ("/admin/ledger/proof?leg=x", 400),
    ] {
        assert_eq!(error_of(world.admin(Method::GET, path, "").await).await.0, status, "{path}");
    }
    let mint = |reference: &str| json!({"to": account(), "amount_micro": 77, "reference": reference}).to_string();
    let minted = json_of(world.admin(Method::POST, "/admin/ledger/mint", &mint("a")).await).await;
    assert_eq!(minted, json!({"height": 77}));
    let refused = error_of(world.admin(Method::POST, "/admin/ledger/mint", &mint("used")).await).await;
    assert_eq!(refused, (400, "ledger_refused".into(), None));
    assert_eq!(error_of(world.admin(Method::POST, "/admin/ledger/mint", "{}").await).await.0, 400);
}

#[tokio::test]
async fn wishes_become_entries_or_errors() {
    let world = World::new().await;
    let id = "07".repeat(32);
    let payout = spillway_ledger::Digest::of("test", &[b"payout"]);
    for (body, answer) in [
        (
            json!({"action": "payout_request", "amount_micro": 5, "payee": id}),
            Ok(json!({"height": 1, "payout": payout})),
        ),
        (
            json!({"action": "payout_request", "amount_micro": 5, "payee": id, "once": "a"}),
            Ok(json!({"height": 1, "payout": payout})),
        ),
        (json!({"action": "payout_reject", "payout": id, "reason": "returned"}), Ok(json!({"height": 2}))),
        (json!({"action": "bond", "amount_micro": 5}), Ok(json!({"height": 2}))),
        (json!({"action": "unbond", "amount_micro": 5, "once": null}), Ok(json!({"height": 2}))),
        (json!({"action": "transfer", "to": account(), "amount_micro": 5}), Ok(json!({"height": 2}))),
        (json!({"action": "burn", "payout": id, "reference": "x"}), Err("ledger_refused")),
        (json!({"action": "steal", "amount_micro": 5}), Err("invalid_request")),
        (json!({"action": "bond", "amount_micro": -5}), Err("invalid_request")),
        (json!({"action": "bond", "amount_micro": 5, "extra": 1}), Err("invalid_request")),
        (json!({"action": "payout_reject", "payout": id, "reason": "mood"}), Err("invalid_request")),
    ] {
        let response = world.admin(Method::POST, "/admin/ledger/entries", &body.to_string()).await;
        match answer {
            Ok(answer) => assert_eq!(json_of(response).await, answer, "{body}"),
            Err(code) => assert_eq!(error_of(response).await, (400, code.into(), None), "{body}"),
        }
    }
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let world = World::new().await;
    world.chat("legs", "").await;
    world.chat("full", "").await;
    world.chat("absent", "").await;
    let request = world.client.get(world.url("/metrics")).bearer_auth(world.admin_token());
    let text = request.send().await.expect("an answer").text().await.expect("text");
    for line in [
        r#"spillway_jobs_total{kind="chat",route="own",reason="own_free",outcome="done"} 1"#,
        r#"spillway_jobs_total{kind="chat",route="none",reason="queue_full",outcome="failed"} 1"#,
        r#"spillway_turned_away_total{why="model"} 1"#,
        "spillway_jobs_running 0",
        r#"spillway_requests_total{endpoint="chat",model="legs",route="own",status="2xx"} 1"#,
        r#"spillway_requests_total{endpoint="chat",model="full",route="none",status="4xx"} 1"#,
        r#"spillway_requests_total{endpoint="chat",model="none",route="none",status="4xx"} 1"#,
        r#"spillway_tokens_total{endpoint="chat",model="legs",route="own",type="input"} 10"#,
        r#"spillway_retries_total{reason="provider_stalled"} 1"#,
        r#"spillway_cost_credits_total{endpoint="chat",model="legs",route="own"} 0.001234"#,
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
}
