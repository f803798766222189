//! Endpoints that are neither chats nor completions: passed on as they are, or translated into chats.

use super::market::{MESSAGE, MESSAGE_END, RESPONSE, RESPONSE_END, WHOLE};
use super::{World, error_of, json_of};
use reqwest::Response;
use serde_json::{Value, json};
use spillway_protocol::{Kind, Prefer};

/// The least request of each endpoint that is passed on as it is.
const REQUESTS: [(Kind, &str, &str); 5] = [
    (Kind::Embedding, "embeddings", r#""input":["a"],"x_mine":1e400"#),
    (Kind::Rerank, "rerank", r#""query":"q","documents":["a"]"#),
    (Kind::Image, "images/generations", r#""prompt":"p""#),
    (Kind::Speech, "audio/speech", r#""input":"a","voice":"v""#),
    (Kind::Moderation, "moderations", r#""input":"a""#),
];

impl World {
    async fn ask(&self, path: &str, model: &str, rest: &str) -> Response {
        let body = format!(r#"{{"model":"{model}",{rest}}}"#);
        self.post(&format!("/v1/{path}"), body).send().await.expect("an answer")
    }
}

/// Name and data of each event.
fn events_of(stream: &str) -> Vec<(&str, &str)> {
    let frames = stream.split("\n\n").filter(|frame| !frame.is_empty() && !frame.starts_with(':'));
    frames
        .map(|frame| {
            let named = frame.strip_prefix("event: ").and_then(|rest| rest.split_once("\ndata: "));
            named.unwrap_or_else(|| panic!("{frame} has no name"))
        })
        .collect()
}

#[tokio::test]
async fn whole_answers_pass_byte_for_byte() {
    let mut world = World::new().await;
    for (kind, path, rest) in REQUESTS {
        let response = world.ask(path, "whole", rest).await;
        assert_eq!(response.status(), 200, "{path}");
        let headers = response.headers().clone();
        let content_type = if kind == Kind::Speech { "audio/mpeg" } else { "application/json" };
        assert_eq!(headers["content-type"], content_type);
        assert_eq!(
            (&headers["x-spillway-route"], &headers["x-content-type-options"]),
            (&"own".parse().expect("text"), &"nosniff".parse().expect("text"))
        );
        assert_eq!(headers.contains_key("x-spillway-cost"), kind != Kind::Speech, "{path}");
        let job = world.market.jobs.recv().await.expect("a job");
        assert_eq!(headers["x-spillway-job"], job.id.to_string().as_str());
        assert_eq!((job.kind, job.continuable), (kind, false));
        let body = String::from_utf8(job.body).expect("JSON");
        let want: Value =
            serde_json::from_str(&format!(r#"{{"model":"whole",{rest}}}"#).replace("1e400", "1")).expect("JSON");
        assert_eq!(serde_json::from_str::<Value>(&body.replace("1e400", "1")).expect("JSON"), want);
        assert_eq!(response.bytes().await.expect("a body"), WHOLE.concat(), "{path}");
    }
    assert_eq!(world.tally().await.1, 0);
}

#[tokio::test]
async fn a_form_reaches_its_server() {
    let mut world = World::new().await;
    let form = |model: &str| {
        format!(
            "--b\r\nContent-Disposition: form-data; name=\"model\"\r\n\r\n{model}\r\n--b\r\n\
             Content-Disposition: form-data; name=\"file\"; filename=\"a.wav\"\r\n\r\nRIFF\r\n--b--\r\n"
        )
    };
    let send = |model: &str| world.post("/v1/audio/transcriptions", form(model)).send();
    assert_eq!(send("whole").await.expect("an answer").bytes().await.expect("a body"), WHOLE.concat());
    assert_eq!(
        error_of(send("plain").await.expect("an answer")).await,
        (404, "endpoint_not_served".into(), Some("model".into()))
    );
    assert_eq!(
        error_of(send("none").await.expect("an answer")).await,
        (404, "model_not_found".into(), Some("model".into()))
    );
    let job = world.market.jobs.recv().await.expect("a job");
    let got = crate::openai::form::Form::parse(&job.body).expect("a form");
    assert_eq!((got.text("model"), got.has_file("file"), job.output_max), (Ok(Some("whole")), true, 1));
}

#[tokio::test]
async fn an_answer_that_is_not_whole_is_none() {
    let world = World::new().await;
    for (model, code) in [("whole-broken", "upstream_error"), ("whole-cut", "answer_too_long")] {
        assert_eq!(error_of(world.ask("embeddings", model, r#""input":"a""#).await).await, (502, code.into(), None));
        // The bytes break off, whether or not the beginning has left: they do not look complete.
        let body = format!(r#"{{"model":"{model}","input":"a"}}"#);
        if let Ok(broken) = world.post("/v1/audio/speech", body).send().await {
            assert_eq!(broken.status(), 200);
            assert!(broken.bytes().await.is_err(), "{model}");
        }
    }
}

#[tokio::test]
async fn what_nobody_serves_is_not_found() {
    let world = World::new().await;
    for (_, path, rest) in REQUESTS {
        let refused = (404, "endpoint_not_served".to_owned(), Some("model".to_owned()));
        assert_eq!(error_of(world.ask(path, "plain", rest).await).await, refused, "{path}");
        let unknown = (404, "model_not_found".to_owned(), Some("model".to_owned()));
        assert_eq!(error_of(world.ask(path, "none", rest).await).await, unknown, "{path}");
        assert_eq!(error_of(world.ask(path, "whole", "\"x\":1").await).await.0, 400, "{path}");
    }
    // Clients of moderations name no model.
    let response = world.post("/v1/moderations", r#"{"input":"a"}"#).send().await.expect("an answer");
    assert_eq!(response.bytes().await.expect("a body"), WHOLE.concat());
}

#[tokio::test]
async fn events_with_names_pass_byte_for_byte() {
    let world = World::new().await;
    let cases = [
        ("responses", r#""input":"hi""#, &RESPONSE[..], RESPONSE_END),
        ("messages", r#""max_tokens":5,"messages":[{"role":"user","content":"hi"}]"#, &MESSAGE[..], MESSAGE_END),
    ];
    for (path, rest, begin, end) in cases {
        let text = world.ask(path, "whole", &format!(r#"{rest},"stream":true"#)).await.text().await.expect("a stream");
        let data: Vec<&str> = events_of(&text).iter().map(|(_, data)| *data).collect();
        assert_eq!(data, [begin, &[end]].concat());
        for (name, data) in events_of(&text) {
            assert!(data.contains(&format!(r#""type":"{name}""#)), "{name}: {data}");
        }
        for model in ["whole-broken", "whole-cut"] {
            let text =
                world.ask(path, model, &format!(r#"{rest},"stream":true"#)).await.text().await.expect("a stream");
            let events = events_of(&text);
            assert_eq!((events.len(), events[2].0), (3, "error"), "{text}");
            assert_eq!(world.ask(path, model, rest).await.status(), 502);
        }
    }
    let whole = world.ask("responses", "whole", r#""input":"hi""#).await.text().await.expect("a body");
    assert_eq!(whole, r#"{"id":"r", "x":1e400}"#);
    let whole = json_of(world.ask("messages", "whole", r#""max_tokens":5,"messages":[{}]"#).await).await;
    assert_eq!(whole, json!({"id": "m", "content": [{"type": "text", "text": "Hi"}], "usage": {"input_tokens": 1}}));
}

#[tokio::test]
async fn a_response_is_made_of_a_chat() {
    let mut world = World::new().await;
    let rest = r#""input":"hi","instructions":"be brief","max_output_tokens":1,"x_mine":1e400"#;
    let whole = world.ask("responses", "plain", rest).await;
    assert_eq!(whole.headers()["x-spillway-cost"], "0.001234");
    let whole = json_of(whole).await;
    let job = world.market.jobs.recv().await.expect("a job");
    assert_eq!((job.kind, job.output_max), (Kind::Chat, 8));
    assert_eq!(
        String::from_utf8(job.body).expect("JSON"),
        r#"{"messages":[{"role":"system","content":"be brief"},{"role":"user","content":"hi"}],"model":"plain","x_mine":1e400,"max_tokens":1,"stream":true,"stream_options":{"include_usage":true}}"#
    );
    assert_eq!(whole["id"], format!("resp_{}", job.id));
    assert_eq!(whole["output"][0]["content"][0]["text"], "Hello");
    assert_eq!((&whole["usage"]["input_tokens"], &whole["usage"]["cost"]), (&json!(9), &json!(0.001234)));
    assert_eq!((&whole["instructions"], &whole["status"]), (&json!("be brief"), &json!("completed")));

    let text =
        world.ask("responses", "plain", &format!(r#"{rest},"stream":true"#)).await.text().await.expect("a stream");
    let events = events_of(&text);
    assert_eq!((events[0].0, events.last().expect("an end").0), ("response.created", "response.completed"));
    let end: Value = serde_json::from_str(events.last().expect("an end").1).expect("JSON");
    assert_eq!(end["response"]["output"][0]["content"], whole["output"][0]["content"]);
    // Several legs are one response; one that breaks off ends with an error.
    let text = world.ask("responses", "legs", r#""input":"hi","stream":true"#).await.text().await.expect("a stream");
    assert!(text.contains(r#""text":"Hello""#), "{text}");
    let text = world.ask("responses", "broken", r#""input":"hi","stream":true"#).await.text().await.expect("a stream");
    let (name, data) = *events_of(&text).last().expect("an end");
    let data: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!((name, &data["code"], &data["message"]), ("error", &json!("upstream_error"), &json!("it broke")));
    let cut = json_of(world.ask("responses", "cut", r#""input":"hi""#).await).await;
    assert_eq!(cut["incomplete_details"]["reason"], "max_output_tokens");
    let call = json_of(world.ask("responses", "tools", r#""input":"hi""#).await).await;
    assert_eq!(
        (&call["output"][0]["type"], &call["output"][0]["name"]),
        (&json!("function_call"), &json!("get_weather"))
    );
    let refused = |field: &str| (400, "invalid_request".to_owned(), Some(field.to_owned()));
    for (rest, field) in [
        (r#""input":"hi","previous_response_id":"r""#, "previous_response_id"),
        (r#""input":"hi","max_output_tokens":0"#, "max_output_tokens"),
        (r#""input":"hi","temperature":"hot""#, "temperature"),
    ] {
        assert_eq!(error_of(world.ask("responses", "plain", rest).await).await, refused(field), "{rest}");
    }
}

#[tokio::test]
async fn a_message_is_made_of_a_chat() {
    let world = World::new().await;
    let rest = r#""max_tokens":1,"system":"be brief","messages":[{"role":"user","content":"hi"}]"#;
    let body = format!(r#"{{"model":"plain",{rest}}}"#);
    let by_key = world.client.post(world.url("/v1/messages")).header("x-api-key", &world.key);
    let whole = by_key.header("anthropic-version", "2023-06-01").body(body).send().await.expect("an answer");
    let whole = json_of(whole).await;
    assert_eq!(whole["content"], json!([{"type": "text", "text": "Hello"}]));
    assert_eq!((&whole["stop_reason"], &whole["usage"]["output_tokens"]), (&json!("end_turn"), &json!(2)));
    let text =
        world.ask("messages", "plain", &format!(r#"{rest},"stream":true"#)).await.text().await.expect("a stream");
    let names: Vec<_> = events_of(&text).iter().map(|(name, _)| *name).collect();
    let want = "message_start content_block_start content_block_delta content_block_delta content_block_stop message_delta message_stop";
    assert_eq!(names.join(" "), want);
    let text =
        world.ask("messages", "broken", &format!(r#"{rest},"stream":true"#)).await.text().await.expect("a stream");
    let (name, data) = *events_of(&text).last().expect("an end");
    let data: Value = serde_json::from_str(data).expect("JSON");
    assert_eq!((name, &data["type"], &data["error"]["type"]), ("error", &json!("error"), &json!("api_error")));
    // Errors have the API's own shape.
    for (model, status, kind) in
        [("full", 429, "rate_limit_error"), ("reject", 422, "invalid_request_error"), ("none", 404, "not_found_error")]
    {
        let response = world.ask("messages", model, rest).await;
        assert_eq!(response.status(), status);
        let error = json_of(response).await;
        assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!(kind)));
    }
    let nobody = world.client.post(world.url("/v1/messages")).body("{}").send().await.expect("an answer");
    assert_eq!(nobody.status(), 401);
    assert_eq!(json_of(nobody).await["error"]["type"], "authentication_error");
    let error = json_of(world.ask("messages", "plain", r#""messages":[{"role":"user","content":"hi"}]"#).await).await;
    assert_eq!(error["error"]["param"], "max_tokens");

    let counted = json_of(world.ask("messages/count_tokens", "plain", rest).await).await;
    assert!(counted["input_tokens"].as_u64().is_some_and(|tokens| tokens > 5), "{counted}");
    assert_eq!(world.ask("messages/count_tokens", "none", rest).await.status(), 404);
}

#[tokio::test]
async fn the_edge_gets_no_translation() {
    let world = World::new().await;
    let body = br#"{"model":"plain","input":"hi"}"#;
    let error = world.gateway.admit(&world.key, Kind::Response, body).await.expect_err("not served as such");
    assert_eq!((error.status, error.code.as_str()), (404, "endpoint_not_served"));
    assert!(!super::super::surface::is_translated(Kind::Chat, "plain", &[], Prefer::OwnFirst));
}

#[tokio::test]
async fn the_description_has_every_route_and_no_other() {
    let world = World::new().await;
    let response = world.client.get(world.url("/openapi.json")).send().await.expect("an answer");
    assert_eq!(response.status(), 200, "it wants no key");
    let description = json_of(response).await;
    let described = description["paths"].as_object().expect("paths");
    // axum's `{*id}` takes slashes, which OpenAPI cannot say.
    let routes: Vec<String> =
        crate::gateway::http::routes().paths().iter().map(|path| path.replace("{*", "{")).collect();
    let mut paths: Vec<&String> = routes.iter().collect();
    paths.sort();
    assert_eq!(paths, described.keys().collect::<Vec<_>>());
    for path in &routes {
        let url = world.url(&path.replace("{id}", "x").replace("{hash}", "x"));
        for method in ["get", "post", "put", "patch", "delete"] {
            let request = world.client.request(method.to_uppercase().parse().expect("a method"), &url);
            let status = request.send().await.expect("an answer").status();
            assert_eq!(described[path].get(method).is_some(), status != 405, "{method} {path}: {status}");
            let is_open = described[path][method]["security"] == json!([]);
            assert_eq!(is_open, status == 200, "{method} {path}: {status} without a key");
        }
    }
}
