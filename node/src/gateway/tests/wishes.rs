//! What a request wishes of the market reaches its job, and nothing of it the backends.

use super::{Terms, World, error_of, json_of, open};
use crate::gateway::tests::market::Market;
use reqwest::Method;
use serde_json::json;
use spillway_ledger::store::Store;
use spillway_ledger::{Credits, Price};
use spillway_protocol::router::Sort;
use spillway_protocol::router::preference::DataCollection;
use spillway_protocol::{Job, Preferences};
use std::sync::Arc;

/// The job that a chat becomes.
async fn job(world: &mut World, model: &str, rest: &str) -> Job {
    let response = world.chat(model, rest).await;
    assert_eq!(response.status(), 200, "{model}{rest}: {:?}", response.text().await);
    world.market.jobs.recv().await.expect("a job")
}

#[tokio::test]
async fn wishes_reach_the_job_and_not_the_body() {
    let mut world = World::with(Terms { name: "test".into(), target_ms: Some(900), ..Terms::default() }).await;
    let plain = job(&mut world, "plain", "").await;
    assert_eq!((&plain.preferences, plain.target_ms), (&Preferences::default(), Some(900)));
    assert!(plain.alternatives.is_empty());
    let rest = r#","models":["plain","legs","nothing-like-it"],"route":"fallback","x_mine":1.10,
        "provider":{"only":["aabbccdd"],"sort":"latency","zdr":true,"preferred_max_latency":0.5,
        "max_price":{"prompt":5,"completion":0.4}}"#;
    let wished = job(&mut world, "plain", rest).await;
    assert_eq!(
        wished.preferences,
        Preferences {
            only: vec!["aabbccdd".into()],
            sort: Some(Sort::Latency),
            data_collection: DataCollection::Deny,
            preferred_max_latency_ms: Some(500),
            ..Preferences::default()
        }
    );
    assert_eq!(
        (wished.model.as_str(), &*wished.alternatives),
        ("plain", &["legs", "nothing-like-it"].map(String::from)[..])
    );
    assert_eq!(wished.target_ms, Some(500), "the request's before its key's");
    // The node's own limit is 0 for the prompt, and 1 credit a million units for the answer.
    let limit = Price { input: Credits::ZERO, cached: Credits::ZERO, output: Credits::new(100_000) };
    assert_eq!(wished.price_max, limit);
    assert_eq!(
        String::from_utf8(wished.body).expect("JSON"),
        r#"{"messages":[{"role":"user","content":"hi"}],"model":"plain","max_tokens":1,"x_mine":1.10,"stream":true,"stream_options":{"include_usage":true}}"#
    );
    let told = json_of(world.admin(Method::GET, &format!("/admin/jobs/{}", wished.id), "").await).await;
    assert_eq!(
        told["wishes"],
        "first text within 500 ms; sorted by latency; keeps nothing; only aabbccdd; or else the model legs, nothing-like-it"
    );
}

#[tokio::test]
async fn shortcuts_in_a_models_name() {
    let mut world = World::new().await;
    for (name, sort, only) in [
        ("plain:floor", Some(Sort::Price), ""),
        ("plain:nitro", Some(Sort::Throughput), ""),
        ("plain@own", None, "own"),
        ("plain@region:france:floor", Some(Sort::Price), "region:france"),
    ] {
        let job = job(&mut world, name, "").await;
        assert_eq!((job.model.as_str(), job.preferences.sort), ("plain", sort), "{name}");
        assert_eq!(job.preferences.only.join(","), only, "{name}");
        let body = String::from_utf8(job.body).expect("JSON");
        assert!(body.contains(r#""model":"plain""#) && !body.contains(name), "{body}");
    }
    // Without `model`, the first of `models` is the first choice; one that is not on offer is tried all the same.
    let body = r#"{"messages":[{"role":"user","content":"hi"}],"models":["legs:floor","plain:floor"]}"#;
    assert_eq!(world.post("/v1/chat/completions", body).send().await.expect("an answer").status(), 200);
    let job = world.market.jobs.recv().await.expect("a job");
    assert_eq!(
        (job.model.as_str(), job.alternatives.join(","), job.preferences.sort),
        ("legs", "plain".into(), Some(Sort::Price))
    );
    assert!(String::from_utf8(job.body).expect("JSON").contains(r#""model":"legs""#));
    let found = world.chat("absent", r#","models":["plain"]"#).await;
    assert_ne!(found.status(), 404, "the second one is on offer");
}

#[tokio::test]
async fn bad_wishes_are_named() {
    let models = Some(vec!["plain".into()]);
    let world = World::with(Terms { name: "test".into(), models, ..Terms::default() }).await;
    for (model, rest, status, code, param) in [
        ("plain", r#","provider":"own""#, 400, "invalid_request", "provider"),
        ("plain", r#","provider":{"sort":"cheapest"}"#, 400, "invalid_request", "provider.sort"),
        ("plain", r#","provider":{"only":["own","openai"]}"#, 400, "invalid_request", "provider.only[1]"),
        ("plain", r#","provider":{"max_price":{"prompt":"x"}}"#, 400, "invalid_request", "provider.max_price.prompt"),
        ("plain", r#","provider":{"onyl":[]}"#, 400, "invalid_request", "provider.onyl"),
        ("plain", r#","models":["plain","x",7]"#, 400, "invalid_request", "models[2]"),
        ("plain", r#","models":["a","b","c","d","e"]"#, 400, "invalid_request", "models"),
        ("plain", r#","route":1"#, 400, "invalid_request", "route"),
        ("plain@own", r#","provider":{"only":["aabbccdd"]}"#, 400, "invalid_request", "model"),
        ("plain", r#","models":["legs"]"#, 403, "model_not_allowed", "models[0]"),
        ("legs:floor", "", 403, "model_not_allowed", "model"),
    ] {
        let error = error_of(world.chat(model, rest).await).await;
        assert_eq!(error, (status, code.into(), Some(param.into())), "{model}{rest}");
    }
    let world = World::new().await;
    let error = error_of(world.chat("absent:floor", r#","models":["absent-too"]"#).await).await;
    assert_eq!(error, (404, "model_not_found".into(), Some("model".into())));
    let error = error_of(world.admin(Method::POST, "/admin/keys", r#"{"name":"a","target_ms":0}"#).await).await;
    assert_eq!(error, (400, "invalid_request".into(), Some("target_ms".into())));
}

#[tokio::test]
async fn a_day_is_exported_as_the_simulator_reads_it() {
    let mut world = World::new().await;
    let mut units = Vec::new();
    for (model, rest) in [
        ("legs", r#","session_id":"a talk""#),
        ("plain", r#","prompt_cache_key":"another talk""#),
        ("legs", r#","session_id":"a talk""#),
    ] {
        units.push(job(&mut world, model, rest).await.prompt_units());
    }
    let (_, other) = world.gateway.0.keys.create(Terms { name: "b".into(), ..Terms::default() }).await.expect("a key");
    world.key = other.to_string();
    assert_eq!(world.chat("full", r#","session_id":"a talk""#).await.status(), 429);
    let page = world.admin_json("/admin/jobs").await;
    assert_eq!(page["next"], json!(null));
    let lines: String = page["jobs"].as_array().expect("jobs").iter().map(|job| format!("{job}\n")).collect();
    for told in ["hi", "talk", world.key.as_str(), "session_id"] {
        assert!(!lines.contains(&format!("\"{told}\"")), "{told} is in {lines}");
    }
    let file = world.place.folder().path().join("jobs.jsonl");
    std::fs::write(&file, &lines).expect("written");
    let day = spillway_simulator::traces::joblog::JobLog::read(&file).expect("the simulator's format");
    assert_eq!(day.models, ["legs", "plain", "full"]);
    let read: Vec<_> =
        day.jobs.iter().map(|job| (job.model, job.request.client, job.request.session, job.request.output)).collect();
    // Two legs delivered 5 units each; the same session name of another key is another conversation.
    assert_eq!(read, [(0, 0, 0, 10), (1, 0, 1, 5), (0, 0, 0, 10), (2, 1, 2, 0)]);
    let inputs: Vec<_> = day.jobs[..3].iter().map(|job| u64::from(job.request.input)).collect();
    assert_eq!(inputs, units);

    let first = page["jobs"][0]["time"].as_u64().expect("a time");
    let count = async |query: &str| {
        world.admin_json(&format!("/admin/jobs?{query}")).await["jobs"].as_array().expect("jobs").len()
    };
    assert_eq!(count(&format!("until={first}")).await, 0);
    assert_eq!(count(&format!("since={first}")).await, 4);
    assert_eq!(count("from=3").await, 1);
    for (query, field) in [("since=x", "since"), ("until=-1", "until"), ("from=x", "from")] {
        let error = error_of(world.admin(Method::GET, &format!("/admin/jobs?{query}"), "").await).await;
        assert_eq!(error, (400, "invalid_request".into(), Some(field.into())));
    }
}

#[tokio::test]
async fn a_node_that_keeps_no_log_says_so() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let store = Arc::new(Store::open(folder.path().join("node.redb")).expect("a store"));
    let (jobs, _market) = Market::start();
    let gateway = open(&folder, store, jobs, false).await;
    let serving = gateway.serve("127.0.0.1:0").await.expect("a port");
    let token = std::fs::read_to_string(folder.path().join("admin.token")).expect("a token");
    let client = reqwest::Client::builder().no_proxy().build().expect("a client");
    let asked = client.get(format!("http://{}/admin/jobs", serving.address())).bearer_auth(token).send();
    assert_eq!(error_of(asked.await.expect("an answer")).await, (409, "job_log_off".into(), None));
}
