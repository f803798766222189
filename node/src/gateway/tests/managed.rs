//! Keys managed as LiteLLM's and OpenRouter's clients do.

use super::{World, error_of, json_of};
use reqwest::{Method, Response};
use serde_json::{Value, json};

async fn asked(world: &World, secret: &str, method: &Method, path: &str, body: &Value) -> Response {
    let request = world.client.request(method.clone(), world.url(path)).bearer_auth(secret);
    let request = if body.is_null() { request } else { request.body(body.to_string()) };
    request.send().await.expect("an answer")
}

async fn told(world: &World, secret: &str, method: Method, path: &str, body: Value) -> Value {
    let response = asked(world, secret, &method, path, &body).await;
    let status = response.status();
    let answer = json_of(response).await;
    assert!(status.is_success(), "{method} {path} {body}: {answer}");
    answer
}

#[tokio::test]
async fn litellms_key_routes() {
    let world = World::new().await;
    let token = world.admin_token();
    let body = json!({
        "max_budget": 1.5, "budget_duration": "30d", "rpm_limit": 5, "tpm_limit": 9000, "max_parallel_requests": 2,
        "models": ["plain"], "metadata": {"team": "red", "seats": 4}, "duration": "30d", "key_alias": "laptop",
        "user_id": "u", "aliases": {},
    });
    let made = told(&world, &token, Method::POST, "/key/generate", body).await;
    let secret = made["key"].as_str().expect("a secret");
    for (field, value) in [
        ("max_budget", json!(1.5)),
        ("budget_duration", json!("1mo")),
        ("rpm_limit", json!(5)),
        ("tpm_limit", json!(9000)),
        ("max_parallel_requests", json!(2)),
        ("models", json!(["plain"])),
        ("metadata", json!({"team": "red", "seats": "4"})),
        ("key_alias", json!("laptop")),
        ("spend", json!(0.0)),
        ("blocked", json!(false)),
    ] {
        assert_eq!(made[field], value, "{field}");
    }
    assert!(made["expires"].is_string() && made["budget_reset_at"].is_string(), "{made}");
    let chat = json!({"model": "plain", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
    let asked_chat = async || asked(&world, secret, &Method::POST, "/v1/chat/completions", &chat).await;
    let answer = asked_chat().await;
    assert_eq!(answer.status(), 200);
    let job = answer.headers()["x-spillway-job"].to_str().expect("text").to_owned();
    json_of(answer).await;

    // A key may ask about itself, the operator about any.
    let info = told(&world, secret, Method::GET, "/key/info", Value::Null).await;
    assert_eq!((&info["info"]["spend"], &info["key"]), (&json!(0.001_234), &made["token"]));
    let path = format!("/key/info?key={secret}");
    assert_eq!(told(&world, &token, Method::GET, &path, Value::Null).await, info);
    let logs = told(&world, secret, Method::GET, "/spend/logs", Value::Null).await;
    assert_eq!(logs.as_array().map(Vec::len), Some(1), "{logs}");
    assert_eq!((&logs[0]["request_id"], &logs[0]["spend"]), (&json!(job), &json!(0.001_234)));
    let none = told(&world, &token, Method::GET, "/spend/logs?end_date=2020-01-01", Value::Null).await;
    assert_eq!(none, json!([]));
    let one = told(&world, &token, Method::GET, &format!("/spend/logs?request_id={job}"), Value::Null).await;
    assert_eq!(one[0]["model"], "plain");

    let id = &made["token"];
    told(&world, &token, Method::POST, "/key/block", json!({"key": secret})).await;
    assert_eq!(error_of(asked_chat().await).await.1, "key_blocked");
    told(&world, &token, Method::POST, "/key/unblock", json!({"key": id})).await;
    assert_eq!(asked_chat().await.status(), 200);
    let changed = json!({"key": id, "max_budget": 0.000_001, "models": [], "tpm_limit": null});
    let changed = told(&world, &token, Method::POST, "/key/update", changed).await;
    assert_eq!((&changed["max_budget"], &changed["budget_duration"]), (&json!(0.000_001), &json!("1mo")));
    assert_eq!(
        (&changed["models"], &changed["tpm_limit"], &changed["rpm_limit"]),
        (&json!([]), &Value::Null, &json!(5))
    );
    assert_eq!(error_of(asked_chat().await).await.1, "budget_exceeded");
    let list = told(&world, &token, Method::GET, "/key/list", Value::Null).await;
    assert!(list["keys"].as_array().is_some_and(|keys| keys.contains(id)), "{list}");
    told(&world, &token, Method::POST, "/key/delete", json!({"keys": [secret]})).await;
    assert_eq!(asked_chat().await.status(), 401);

    for (path, body, want) in [
        ("/key/generate", json!({"budget_duration": "12h"}), (400, Some("budget_duration"))),
        ("/key/generate", json!({"duration": "soon"}), (400, Some("duration"))),
        ("/key/generate", json!({"max_budget": -1}), (400, Some("max_budget"))),
        ("/key/generate", json!({"rpm_limit": 0}), (400, Some("rpm_limit"))),
        ("/key/generate", json!({"tpm_limit": "x"}), (400, Some("tpm_limit"))),
        ("/key/generate", json!({"max_parallel_requests": 0}), (400, Some("max_parallel_requests"))),
        ("/key/generate", json!({"team_id": "00000000"}), (400, Some("team_id"))),
        ("/key/generate", json!({"aliases": {"a": "b"}}), (400, Some("aliases"))),
        ("/key/generate", json!({"metadata": 5}), (400, Some("metadata"))),
        ("/key/update", json!({"max_budget": 1}), (400, Some("key"))),
        ("/key/update", json!({"key": "00000000"}), (404, None)),
        ("/key/block", json!({"key": "?"}), (400, Some("key"))),
        ("/key/delete", json!({}), (400, Some("keys"))),
    ] {
        let (status, _, param) = error_of(asked(&world, &token, &Method::POST, path, &body).await).await;
        assert_eq!((status, param.as_deref()), want, "{path} {body}");
    }
    // A key manages no keys, and is told of no other.
    for (method, path) in [
        (Method::POST, "/key/generate"),
        (Method::GET, "/key/list"),
        (Method::GET, "/key/info?key=00000000"),
        (Method::GET, "/spend/logs?api_key=00000000"),
        (Method::GET, "/api/v1/keys"),
    ] {
        assert_eq!(asked(&world, &world.key, &method, path, &Value::Null).await.status(), 403, "{path}");
        assert_eq!(asked(&world, "nobody", &method, path, &Value::Null).await.status(), 401, "{path}");
    }
}

#[tokio::test]
async fn openrouters_key_routes() {
    let world = World::new().await;
    let token = world.admin_token();
    let body = json!({"name": "app", "limit": 2, "limit_reset": "daily"});
    let made = told(&world, &token, Method::POST, "/api/v1/keys", body).await;
    let secret = made["key"].as_str().expect("a secret");
    let path = format!("/api/v1/keys/{}", made["data"]["hash"].as_str().expect("a hash"));
    let chat = json!({"model": "plain", "messages": [{"role": "user", "content": "hi"}], "max_tokens": 1});
    assert_eq!(asked(&world, secret, &Method::POST, "/v1/chat/completions", &chat).await.status(), 200);
    let own = told(&world, secret, Method::GET, "/api/v1/key", Value::Null).await;
    for (field, value) in [
        ("limit", json!(2.0)),
        ("limit_remaining", json!(1.998_766)),
        ("limit_reset", json!("daily")),
        ("usage", json!(0.001_234)),
        ("usage_daily", json!(0.001_234)),
        ("is_free_tier", json!(false)),
    ] {
        assert_eq!(own["data"][field], value, "{field}");
    }
    // The account has 5 micro-credits; a key without a total budget draws on them.
    let credits = told(&world, secret, Method::GET, "/api/v1/credits", Value::Null).await;
    assert_eq!(credits["data"], json!({"total_credits": 0.001_239, "total_usage": 0.001_234}));
    assert_eq!(told(&world, &token, Method::GET, "/api/v1/credits", Value::Null).await, credits);
    let changed = told(&world, &token, Method::PATCH, &path, json!({"limit_reset": null, "name": "new"})).await;
    assert_eq!((&changed["data"]["limit"], &changed["data"]["limit_reset"]), (&json!(2.0), &Value::Null));
    let credits = told(&world, secret, Method::GET, "/api/v1/credits", Value::Null).await;
    assert_eq!(credits["data"], json!({"total_credits": 2.0, "total_usage": 0.001_234}));
    assert_eq!(told(&world, &token, Method::GET, &path, Value::Null).await, changed);
    let list = told(&world, &token, Method::GET, "/api/v1/keys", Value::Null).await;
    assert!(list["data"].as_array().is_some_and(|keys| keys.contains(&changed["data"])), "{list}");
    told(&world, &token, Method::PATCH, &path, json!({"disabled": true})).await;
    assert_eq!(asked(&world, secret, &Method::GET, "/api/v1/key", &Value::Null).await.status(), 403);
    told(&world, &token, Method::DELETE, &path, Value::Null).await;
    assert_eq!(asked(&world, secret, &Method::GET, "/api/v1/key", &Value::Null).await.status(), 401);
    for (body, field) in [
        (json!({"name": "a", "limit": "x"}), "limit"),
        (json!({"name": "a", "limit_reset": "hourly"}), "limit_reset"),
        (json!({"name": ""}), "name"),
        (json!({"name": "a", "colour": 1}), "colour"),
    ] {
        let (status, _, param) = error_of(asked(&world, &token, &Method::POST, "/api/v1/keys", &body).await).await;
        assert_eq!((status, param.as_deref()), (400, Some(field)), "{body}");
    }
    assert_eq!(asked(&world, &token, &Method::GET, "/api/v1/keys/zz", &Value::Null).await.status(), 404);
}

#[tokio::test]
async fn what_the_description_says_of_a_key_is_read_and_nothing_else() {
    let world = World::new().await;
    let token = world.admin_token();
    let description = told(&world, &token, Method::GET, "/openapi.json", Value::Null).await;
    for (path, body) in [("/key/generate", json!({})), ("/api/v1/keys", json!({"name": "a"}))] {
        let operation = &description["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"];
        let schema = operation["$ref"].as_str().and_then(|name| name.strip_prefix('#')).expect("a reference");
        let properties = description.pointer(schema).expect("a schema")["properties"].as_object().expect("fields");
        let with = async |field: &str, value: &Value| {
            let mut body = body.clone();
            body[field] = value.clone();
            let answer = asked(&world, &token, &Method::POST, path, &body).await;
            (answer.status(), json_of(answer).await)
        };
        for (field, property) in properties {
            let named = property["enum"].as_array().cloned().unwrap_or_default();
            for value in &named {
                let (status, answer) = with(field, value).await;
                assert!(status.is_success(), "{path} {field} {value}: {answer}");
            }
            let (_, answer) = with(field, &json!(1)).await;
            assert!(!answer.to_string().contains("not supported here"), "{path} {field}: {answer}");
        }
        let (status, answer) = with("nothing", &json!(1)).await;
        assert_eq!((status.as_u16(), &answer["error"]["param"]), (400, &json!("nothing")), "{path}");
    }
}
