//! Answers that are given again: to whom, in which form, and what they cost.

use super::market::LEG_COST;
use super::{Terms, World, error_of};
use axum::http::HeaderMap;
use reqwest::Response;
use serde_json::json;
use spillway_protocol::Prefer;

fn terms() -> Terms {
    Terms { name: "test".into(), cache_s: Some(3600), ..Terms::default() }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name).map(|value| value.to_str().expect("text"))
}

/// What the cache did for the answer, and the answer.
async fn told(response: Response) -> (Option<String>, String) {
    assert_eq!(response.status(), 200);
    let state = header(response.headers(), "x-spillway-cache").map(str::to_owned);
    (state, response.text().await.expect("an answer"))
}

#[tokio::test]
async fn a_kept_answer_is_the_same_and_costs_nothing() {
    let mut world = World::with(terms()).await;
    let first = told(world.chat("plain", r#","stream":true"#).await).await;
    assert_eq!(first.0.as_deref(), Some("miss"));
    assert_eq!(world.tally().await, (LEG_COST, 0));
    let again = world.chat("plain", r#","stream":true"#).await;
    let headers = again.headers().clone();
    assert_eq!(told(again).await, (Some("hit".into()), first.1));
    assert_eq!(world.tally().await, (LEG_COST, 0));
    assert_eq!(header(&headers, "x-spillway-route"), None, "it was nowhere");
    let job = header(&headers, "x-spillway-job").expect("a job of its own");
    let known = world.get(&format!("/api/v1/generation?id={job}")).send().await.expect("an answer");
    assert_eq!(known.status(), 200);
    // One job reached the market.
    world.market.jobs.recv().await.expect("the first");
    assert!(world.market.jobs.try_recv().is_err());
    let counts = world.gateway.0.cache.counts();
    assert_eq!((counts.hits, counts.misses, counts.saved_micro, counts.answers), (1, 1, LEG_COST, 1));
}

#[tokio::test]
async fn a_streams_answer_serves_who_wants_it_whole_and_the_other_way_round() {
    for (first, second) in
        [(r#","stream":true"#, ""), ("", r#","stream":true,"stream_options":{"include_usage":true}"#)]
    {
        let (cached, fresh) = (World::with(terms()).await, World::new().await);
        told(cached.chat("plain", first).await).await;
        let (state, again) = told(cached.chat("plain", second).await).await;
        assert_eq!(state.as_deref(), Some("hit"));
        let (state, plain) = told(fresh.chat("plain", second).await).await;
        assert_eq!(state, None, "a key without a cache is told nothing of one");
        assert_eq!(again, plain.replace(r#""cost":0.001234"#, r#""cost":0.000000"#));
    }
}

#[tokio::test]
async fn the_client_may_want_a_new_answer() {
    let mut world = World::with(terms()).await;
    for (name, value, state, reaches_market) in [
        ("x-spillway-cache", "bypass", "bypass", true),
        ("x-spillway-cache", "use", "miss", true),
        ("x-spillway-cache", "use", "hit", false),
        ("cache-control", "no-cache", "refresh", true),
        ("cache-control", "no-store", "bypass", true),
        ("cache-control", "max-age=5", "hit", false),
    ] {
        let body = r#"{"model":"plain","messages":[{"role":"user","content":"hi"}]}"#;
        let response = world.post("/v1/chat/completions", body).header(name, value).send().await.expect("an answer");
        assert_eq!(told(response).await.0.as_deref(), Some(state), "{name}: {value}");
        assert_eq!(world.market.jobs.try_recv().is_ok(), reaches_market, "{name}: {value}");
    }
    let response = world.post("/v1/chat/completions", "{}").header("x-spillway-cache", "maybe");
    let error = error_of(response.send().await.expect("an answer")).await;
    assert_eq!((error.0, error.2.as_deref()), (400, Some("x-spillway-cache")));
}

#[tokio::test]
async fn keys_share_answers_only_where_their_project_says_so() {
    let world = World::with(terms()).await;
    let keys = &world.gateway.0.keys;
    let project = keys.create_project(Terms { name: "shared".into(), ..terms() }).await.expect("a project");
    let project = project.id.parse().expect("an id");
    let member = Terms { name: "member".into(), project: Some(project), ..Terms::default() };
    let lone = Terms { name: "lone".into(), project: Some(project), ..terms() };
    let mut secrets = Vec::new();
    for terms in [member.clone(), member, lone, terms()] {
        secrets.push(keys.create(terms).await.expect("a key").1.to_string());
    }
    let body = json!({"model": "plain", "messages": [{"role": "user", "content": "hi"}]}).to_string();
    let mut states = Vec::new();
    for secret in secrets.iter().chain(&secrets) {
        let url = world.url("/v1/chat/completions");
        let response = world.client.post(url).bearer_auth(secret).body(body.clone()).send().await.expect("an answer");
        states.push(told(response).await.0.expect("a state"));
    }
    assert_eq!(states, ["miss", "hit", "miss", "miss", "hit", "hit", "hit", "hit"]);
}

#[tokio::test]
async fn no_key_gets_an_answer_that_it_may_not_ask_for() {
    let world = World::with(terms()).await;
    let keys = &world.gateway.0.keys;
    let project = keys.create_project(Terms { name: "shared".into(), ..terms() }).await.expect("a project");
    let member = Terms { name: "any".into(), project: Some(project.id.parse().expect("an id")), ..Terms::default() };
    let barred = Terms { name: "barred".into(), providers_only: vec!["aabbccdd".into()], ..member.clone() };
    let mut secrets = Vec::new();
    for terms in [member, barred] {
        secrets.push(keys.create(terms).await.expect("a key").1.to_string());
    }
    for (rest, status, states) in
        [("", 200, ["miss", "miss"]), (r#","provider":{"only":["own"]}"#, 403, ["miss", "none"])]
    {
        let body = format!(r#"{{"model":"plain","messages":[{{"role":"user","content":"hi"}}]{rest}}}"#);
        for (index, (secret, state)) in secrets.iter().zip(states).enumerate() {
            let url = world.url("/v1/chat/completions");
            let response = world.client.post(url).bearer_auth(secret).body(body.clone()).send().await;
            let response = response.expect("an answer");
            assert_eq!(response.status(), if index == 0 { 200 } else { status }, "{rest}");
            assert_eq!(header(response.headers(), "x-spillway-cache").unwrap_or("none"), state, "{rest}");
        }
    }
}

#[tokio::test]
async fn what_is_no_whole_answer_is_not_given_again() {
    let world = World::with(terms()).await;
    for (model, status) in [("legs", 200), ("broken", 502), ("full", 429), ("reject", 422)] {
        for _ in 0..2 {
            let response = world.chat(model, "").await;
            assert_eq!(response.status(), status, "{model}");
            assert_ne!(header(response.headers(), "x-spillway-cache"), Some("hit"), "{model}");
        }
    }
    // Whole answers, bytes and all, are.
    for state in ["miss", "hit"] {
        let body = r#"{"model":"whole","input":"hi"}"#;
        let response = world.post("/v1/embeddings", body).send().await.expect("an answer");
        assert_eq!(header(response.headers(), "content-type"), Some("application/json"));
        assert_eq!(told(response).await.0.as_deref(), Some(state));
    }
}

#[tokio::test]
async fn a_kept_answer_counts_as_a_request() {
    let world = World::with(Terms { requests_per_minute: Some(2), ..terms() }).await;
    for state in ["miss", "hit"] {
        assert_eq!(told(world.chat("plain", "").await).await.0.as_deref(), Some(state));
    }
    assert_eq!(error_of(world.chat("plain", "").await).await.0, 429);
}

#[tokio::test]
async fn a_portkey_config_asks_for_a_cache_of_its_keys_own() {
    let world = World::new().await;
    let body = r#"{"model":"plain","messages":[{"role":"user","content":"hi"}]}"#;
    let ask = async |config: &str| {
        let request = world.post("/v1/chat/completions", body).header("x-portkey-config", config);
        told(request.send().await.expect("an answer")).await.0
    };
    let simple = r#"{"cache":{"mode":"simple","max_age":60}}"#;
    assert_eq!(ask(simple).await.as_deref(), Some("miss"));
    assert_eq!(ask(simple).await.as_deref(), Some("hit"));
    let semantic = r#"{"cache":{"mode":"semantic"}}"#;
    assert_eq!(ask(semantic).await.as_deref(), Some("miss"));
    assert_eq!(ask(semantic).await.as_deref(), Some("hit"));
    assert_eq!(ask("{}").await, None);
}

/// A key whose answers serve questions that mean the same.
fn similar() -> Terms {
    Terms { cache_similar: Some(0.95), ..terms() }
}

async fn asked(world: &World, secret: &str, question: &str, wish: &str) -> (Option<String>, String) {
    let body = json!({"model": "plain", "messages": [{"role": "user", "content": question}]}).to_string();
    let request = world.client.post(world.url("/v1/chat/completions")).bearer_auth(secret).body(body);
    told(request.header("x-spillway-cache", wish).send().await.expect("an answer")).await
}

#[tokio::test]
async fn a_question_that_means_the_same_gets_the_answer_where_the_key_allows_it() {
    let mut world = World::with(similar()).await;
    let own = world.key.clone();
    let other = world.gateway.0.keys.create(similar()).await.expect("a key").1.to_string();
    let exact = world.gateway.0.keys.create(terms()).await.expect("a key").1.to_string();
    for (secret, question, wish, state) in [
        (&own, "How do I reset my password?", "use", "miss"),
        (&own, "how can I reset my password", "use", "similar"),
        (&own, "how can I reset my password", "bypass", "bypass"),
        (&own, "How do I not reset my password?", "use", "miss"),
        (&own, "How far do I reset my password?", "use", "miss"),
        (&own, "How do I reset an unknown password?", "use", "miss"),
        (&own, "How do I reset my password?", "use", "hit"),
        (&own, "how could I reset my password", "refresh", "refresh"),
        (&other, "how can I reset my password", "use", "miss"),
        (&exact, "How do I reset my password?", "use", "miss"),
        (&exact, "how can I reset my password", "use", "miss"),
    ] {
        assert_eq!(asked(&world, secret, question, wish).await.0.as_deref(), Some(state), "{question}, {wish}");
    }
    let counts = world.gateway.0.cache.counts();
    assert_eq!((counts.hits, counts.similar, counts.misses), (1, 1, 7));
    let mut vectors = 0;
    while let Ok(job) = world.market.jobs.try_recv() {
        if job.model == "vectors" {
            vectors += 1;
            assert!(job.prefer == Prefer::Own && job.own.owned_only, "{job:?}");
        }
    }
    assert_eq!(vectors, 7, "not for a hit, a bypass, or a key that wants the same request only");
}

#[tokio::test]
async fn an_answer_given_to_another_question_costs_nothing() {
    let world = World::with(similar()).await;
    let secret = world.key.clone();
    let first = asked(&world, &secret, "What is the capital of France?", "use").await;
    assert_eq!(world.tally().await, (LEG_COST, 0));
    let second = asked(&world, &secret, "what's the capital of France", "use").await;
    assert_eq!(second.0.as_deref(), Some("similar"));
    assert_eq!(second.1, first.1.replace(r#""cost":0.001234"#, r#""cost":0.000000"#));
    assert_eq!(world.tally().await, (LEG_COST, 0));
}

#[tokio::test]
async fn while_too_many_wait_for_vectors_a_request_goes_without() {
    let mut world = World::with(similar()).await;
    let secret = world.key.clone();
    {
        let _all = world.gateway.0.vectors.try_acquire_many(32).expect("all are free");
        for state in ["miss", "hit"] {
            assert_eq!(asked(&world, &secret, "What is it?", "use").await.0.as_deref(), Some(state));
        }
    }
    assert_eq!(world.market.jobs.recv().await.expect("the first").model, "plain");
    assert!(world.market.jobs.try_recv().is_err(), "no vector was made");
    assert_eq!(asked(&world, &secret, "what is it", "use").await.0.as_deref(), Some("miss"), "the first had none");
    assert_eq!(asked(&world, &secret, "so what is it", "use").await.0.as_deref(), Some("similar"));
}
