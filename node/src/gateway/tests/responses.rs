//! What clients get: streams, plain responses, their headers, usage and errors.

use super::market::{HEL, LEFT_COST, LEG_COST, LO, ROLE, STOP, stranger};
use super::{World, data_of, error_of, json_of};
use crate::gateway::answer::{Waits, Wishes, answer};
use futures::StreamExt;
use serde_json::{Value, json};
use spillway_protocol::Kind;
use std::sync::Arc;
use std::time::Duration;

#[tokio::test]
async fn a_stream_is_the_backends_own_bytes() {
    let mut world = World::new().await;
    let response = world.chat("plain", r#","stream":true,"x_mine":1e400"#).await;
    assert_eq!(response.status(), 200);
    let header = |name: &str| response.headers().get(name).map(|value| value.to_str().expect("text").to_owned());
    assert_eq!(header("content-type").as_deref(), Some("text/event-stream"));
    assert_eq!(header("x-spillway-route").as_deref(), Some("network"));
    assert_eq!(header("x-spillway-reason").as_deref(), Some("own_saturated"));
    assert_eq!(header("x-spillway-provider"), Some(stranger().to_string()));
    let job = world.market.jobs.recv().await.expect("a job");
    assert_eq!(header("x-spillway-job"), Some(job.id.to_string()));
    assert_eq!(
        String::from_utf8(job.body).expect("JSON"),
        r#"{"messages":[{"role":"user","content":"hi"}],"model":"plain","max_tokens":1,"stream":true,"x_mine":1e400,"stream_options":{"include_usage":true}}"#
    );
    assert_eq!((job.output_max, job.continuable), (8, true));
    let text = response.text().await.expect("a stream");
    assert_eq!(text, [ROLE, HEL, LO, STOP, "[DONE]"].map(|data| format!("data: {data}\n\n")).concat());
    assert_eq!(world.tally().await, (LEG_COST, 0));
}

#[tokio::test]
async fn usage_comes_on_request_with_the_cost() {
    let world = World::new().await;
    let text = world
        .chat("plain", r#","stream":true,"stream_options":{"include_usage":true}"#)
        .await
        .text()
        .await
        .expect("a stream");
    let data = data_of(&text);
    assert_eq!(
        data[4],
        r#"{"object":"chat.completion.chunk","id":"c1","created":5,"model":"plain","choices":[],"usage":{"prompt_tokens":9,"completion_tokens":2,"total_tokens":11,"cost":0.001234}}"#
    );
    assert_eq!(data[5..], ["[DONE]"]);
}

#[tokio::test]
async fn several_legs_are_one_stream() {
    let world = World::new().await;
    let body = r#"{"model":"legs","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
    let response =
        world.post("/v1/chat/completions", body).header("x-spillway-detail", "legs").send().await.expect("an answer");
    assert_eq!(response.headers()["x-spillway-route"], "own");
    let text = response.text().await.expect("a stream");
    let data = data_of(&text);
    assert_eq!(
        data[..4],
        [
            ROLE,
            HEL,
            r#"{"id":"c1","created":5,"model":"plain","choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":null}]}"#,
            r#"{"id":"c1","created":5,"model":"plain","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}"#,
        ]
    );
    let usage: Value = serde_json::from_str(data[4]).expect("JSON");
    let usage = &usage["usage"];
    // The text of the first leg, one event, was part of the second's prompt.
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(9), &json!(2)));
    assert_eq!(usage["x_spillway"]["legs"][1]["reason"], "provider_stalled");
    assert_eq!(usage["x_spillway"]["legs"][1]["cost_micro"], LEG_COST);
    assert_eq!(data[5..], ["[DONE]"]);
}

#[tokio::test]
async fn a_plain_response_is_what_its_stream_comes_to() {
    let world = World::new().await;
    for model in ["plain", "legs"] {
        let response = world.chat(model, "").await;
        assert_eq!(response.headers()["x-spillway-cost"], "0.001234");
        assert_eq!(response.headers()["content-type"], "application/json");
        let mut body = json_of(response).await;
        assert_eq!(body["usage"].as_object_mut().expect("usage").remove("cost"), Some(json!(0.001234)));
        assert_eq!(
            body,
            json!({
                "id": "c1", "object": "chat.completion", "created": 5, "model": "plain", "x_unknown": 1.5,
                "choices": [{
                    "index": 0, "message": {"role": "assistant", "content": "Hello"},
                    "logprobs": null, "finish_reason": "stop",
                }],
                "usage": {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11},
            }),
            "{model}"
        );
    }
    let body = json_of(world.chat("tools", "").await).await;
    assert_eq!(
        body["choices"][0]["message"],
        json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": "{\"city\":\"Zürich\"}"}},
        ]})
    );
    let body = json_of(world.chat("cut", "").await).await;
    assert_eq!(
        (&body["choices"][0]["message"]["content"], &body["choices"][0]["finish_reason"]),
        (&json!("Hel"), &json!("length"))
    );
}

#[tokio::test]
async fn failures_have_their_status_before_the_first_byte() {
    let world = World::new().await;
    for stream in ["", r#","stream":true"#] {
        for (model, status, code, param, retry) in [
            ("full", 429, "queue_full", None, Some("3")),
            ("reject", 422, "upstream_rejected", Some("top_k"), None),
            ("nobody", 503, "no_offer", None, None),
        ] {
            let response = world.chat(model, stream).await;
            assert!(response.headers().contains_key("x-spillway-job"));
            assert_eq!(response.headers().get("retry-after").map(|value| value.to_str().expect("text")), retry);
            assert_eq!(error_of(response).await, (status, code.into(), param.map(str::to_owned)), "{model}{stream}");
        }
    }
    assert_eq!(world.tally().await, (0, 0));
}

#[tokio::test]
async fn a_stream_never_ends_silently() {
    let world = World::new().await;
    let text = world.chat("broken", r#","stream":true"#).await.text().await.expect("a stream");
    assert_eq!(
        data_of(&text),
        [HEL, r#"{"error":{"message":"it broke","type":"api_error","param":null,"code":"upstream_error"}}"#]
    );
    assert_eq!(error_of(world.chat("broken", "").await).await, (502, "upstream_error".into(), None));
    let text = world.chat("cut", r#","stream":true"#).await.text().await.expect("a stream");
    let data = data_of(&text);
    assert!(data[1].contains(r#""finish_reason":"length""#), "{text}");
    assert_eq!(data[2..], ["[DONE]"]);
}

#[tokio::test]
async fn a_queued_stream_is_kept_alive() {
    let mut world = World::new().await;
    let body = r#"{"model":"queued","messages":[{"role":"user","content":"hi"}],"stream":true}"#;
    let job = world.gateway.admit(&world.key, Kind::Chat, body.as_bytes()).await.expect("admitted");
    let waits = Waits { headers: Duration::from_millis(10), keep_alive: Duration::from_millis(10) };
    let response = answer(job, Wishes::default(), waits, Arc::clone(&world.gateway.0.metrics)).await;
    assert_eq!(response.status(), 200);
    assert!(!response.headers().contains_key("x-spillway-route"));
    let mut stream = response.into_body().into_data_stream();
    for _ in 0..3 {
        assert_eq!(stream.next().await.expect("a comment").expect("bytes"), ": keep-alive\n\n");
    }
    world.market.jobs.recv().await.expect("a job");
    world.market.release.notify_one();
    let mut text = Vec::new();
    while let Some(bytes) = stream.next().await {
        text.extend_from_slice(&bytes.expect("bytes"));
    }
    let text = String::from_utf8(text).expect("text").replace(": keep-alive\n\n", "");
    assert_eq!(data_of(&text), [ROLE, HEL, LO, STOP, "[DONE]"]);
}

#[tokio::test]
async fn a_client_that_leaves_is_charged_what_it_got() {
    let mut world = World::with(super::Terms {
        name: "test".into(),
        budget_micro: Some(spillway_ledger::Credits::new(100)),
        ..super::Terms::default()
    })
    .await;
    // In mid-stream, and while waiting for a plain response.
    let mut stream = world.chat("endless", r#","stream":true"#).await.bytes_stream();
    let first = stream.next().await.expect("an event").expect("bytes");
    assert_eq!(first, format!("data: {HEL}\n\n"));
    assert_eq!(world.tally().await, (0, 8));
    drop(stream);
    let job = world.market.jobs.recv().await.expect("a job").id;
    assert_eq!(world.market.left.recv().await, Some(job));
    let waiting = tokio::time::timeout(Duration::from_millis(200), world.chat("endless", ""));
    assert!(waiting.await.is_err());
    let job = world.market.jobs.recv().await.expect("a job").id;
    assert_eq!(world.market.left.recv().await, Some(job));
    let settled = async {
        while world.tally().await != (2 * LEFT_COST, 0) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), settled).await.expect("both are settled");
}

#[tokio::test]
async fn stopping_lets_streams_finish() {
    let mut world = World::new().await;
    let mut stream = world.chat("endless", r#","stream":true"#).await.bytes_stream();
    stream.next().await.expect("an event").expect("bytes");
    let job = world.market.jobs.recv().await.expect("a job").id;
    world.gateway.stop_admitting();
    assert_eq!(world.client.get(world.url("/readyz")).send().await.expect("an answer").status(), 503);
    assert_eq!(error_of(world.chat("plain", "").await).await.0, 503);
    let stopping = tokio::spawn(world.serving.stop(Duration::from_millis(200)));
    // The one that would not end is cut after the drain, and its market told.
    stopping.await.expect("no panic");
    assert_eq!(world.market.left.recv().await, Some(job));
    assert!(stream.next().await.expect("an end").is_err());
}

#[tokio::test]
async fn completions_and_models() {
    let world = World::new().await;
    let response = world.post("/v1/completions", r#"{"model":"cut","prompt":"a"}"#).send().await.expect("an answer");
    let body = json_of(response).await;
    assert_eq!((&body["object"], &body["choices"][0]["finish_reason"]), (&json!("text_completion"), &json!("length")));
    let list = json_of(world.get("/v1/models").send().await.expect("an answer")).await;
    let ids: Vec<_> = list["data"].as_array().expect("a list").iter().map(|model| model["id"].clone()).collect();
    assert!(ids.contains(&json!("plain")) && ids.len() == super::market::MODELS.len(), "{list}");
    let one = json_of(world.get("/v1/models/plain").send().await.expect("an answer")).await;
    assert_eq!((&one["id"], &one["owned_by"]), (&json!("plain"), &json!("own")));
    assert_eq!(world.get("/v1/models/absent").send().await.expect("an answer").status(), 404);
}
