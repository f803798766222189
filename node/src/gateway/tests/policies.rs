//! Policies, several backends and third parties, with real servers behind a whole node.

use super::node::{Node, Reply, Server, WAIT, said};
use serde_json::{Value, json};
use std::collections::HashSet;

const SAYS_A: &[Reply] = &[Reply::Say("from a")];
const SAYS_B: &[Reply] = &[Reply::Say("from b")];

/// Two backends called `a` and `b`, and what else `spillway.toml` has.
fn two(a: &Server, b: &Server, rest: &str) -> String {
    format!("{}{}{rest}", backend("a", a, ""), backend("b", b, ""))
}

fn backend(name: &str, server: &Server, more: &str) -> String {
    format!("[[backend]]\nkind = \"openai\"\nname = \"{name}\"\nurl = \"{}\"\nslots = 2\n{more}\n", server.url)
}

/// A policy called `p`: these fields, and these targets.
fn policy(fields: &str, targets: &[&str]) -> String {
    let targets: String = targets.iter().map(|target| format!("[[policy.p.target]]\n{target}\n")).collect();
    format!("[policy.p]\n{fields}\n{targets}")
}

async fn by_policy(node: &Node, model: &str, more: Value) -> (u16, String) {
    let (status, text, _) = said(node.chat(model, more).header("x-spillway-policy", "p")).await;
    (status, text)
}

fn answer(text: &str) -> (u16, String) {
    (200, text.to_owned())
}

fn error(status: u16, code: &str) -> (u16, String) {
    (status, code.to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn several_backends_serve_one_model_and_connections_are_used_again() {
    let (a, b) = (Server::start(&[Reply::Hang]).await, Server::start(SAYS_B).await);
    let sections = backend("a", &a, "") + &backend("b", &b, "").replace("slots = 2", "slots = 1");
    let node = Node::start(&sections, &["m"]).await;
    // Two hang at `a`, which has the most free slots: all others are served by `b`.
    let hung: Vec<_> = (0..4).map(|_| tokio::spawn(node.chat("m", json!({})).send())).collect();
    a.wait_for(2).await;
    for _ in 0..4 {
        assert_eq!(said(node.chat("m", json!({}))).await.1, "from b");
    }
    assert_eq!(a.seen().len(), 2, "no more than it has slots");
    hung.iter().for_each(tokio::task::JoinHandle::abort);
    let from: HashSet<_> = b.seen().iter().rev().take(4).map(|seen| seen.from).collect();
    assert_eq!(from.len(), 1, "one connection for requests that follow each other");
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_target_is_tried_on_chosen_statuses() {
    for (on, got) in
        [("", answer("from b")), ("on = [429]", error(502, "upstream_error")), ("on = [503]", answer("from b"))]
    {
        let (a, b) = (Server::start(&[Reply::Refuse(503, None)]).await, Server::start(SAYS_B).await);
        let targets = ["backends = [\"a\"]", "backends = [\"b\"]\npriority = 1"];
        let node = Node::start(&two(&a, &b, &policy(on, &targets)), &["m"]).await;
        assert_eq!(by_policy(&node, "m", json!({})).await, got, "{on}");
        assert_eq!((a.seen().len(), b.seen().len()), (1, usize::from(got.0 == 200)), "{on}");
        assert_eq!(node.tally("test").await, (0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_heed_the_server_within_bounds() {
    // What the server asks to wait, the most that is waited, and how often `a` and `b` are asked.
    for (asks, most, seen, got) in [("0", "5.0", (2, 0), "from a"), ("600", "5.0", (1, 1), "from b")] {
        let a = Server::start(&[Reply::Refuse(429, Some(asks)), Reply::Say("from a")]).await;
        let b = Server::start(SAYS_B).await;
        let first = format!("backends = [\"a\"]\nretries = 2\nretry_wait_s = 0.01\nretry_wait_max_s = {most}");
        let targets = [&*first, "backends = [\"b\"]\npriority = 1"];
        let node = Node::start(&two(&a, &b, &policy("", &targets)), &["m"]).await;
        assert_eq!(by_policy(&node, "m", json!({})).await, answer(got));
        assert_eq!((a.seen().len(), b.seen().len()), seen);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn weights_share_requests_out_and_keys_bind_to_policies() {
    let (a, b) = (Server::start(SAYS_A).await, Server::start(SAYS_B).await);
    let targets = ["backends = [\"a\"]\nweight = 1", "backends = [\"b\"]\nweight = 1"];
    let all_b =
        "[policy.q]\n[[policy.q.target]]\nbackends = [\"b\"]\n[[policy.q.target]]\nbackends = [\"a\"]\nweight = 0\n";
    let rest = policy("", &targets) + all_b;
    let mut node = Node::start(&two(&a, &b, &rest), &["m"]).await;
    let mut texts = HashSet::new();
    // Each goes either way with even chances: that 64 go one way has a chance of 1 in 2^63.
    for _ in 0..64 {
        texts.insert(by_policy(&node, "m", json!({})).await.1);
    }
    assert_eq!(texts.len(), 2);
    // The key's policy, and one that the request names instead.
    node.key = node.new_key(json!({"name": "bound", "policy": "q"})).await;
    for _ in 0..8 {
        assert_eq!(said(node.chat("m", json!({}))).await.1, "from b");
    }
    let other = r#"{"provider": "a"}"#;
    assert_eq!(said(node.chat("m", json!({})).header("x-portkey-config", other)).await.1, "from a");
    node.key = node.new_key(json!({"name": "lost", "policy": "gone"})).await;
    assert_eq!(said(node.chat("m", json!({}))).await.0, 503);
    assert_eq!(said(node.chat("m", json!({})).header("x-spillway-policy", "none")).await.1, "policy_not_found");
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_choose_by_metadata_and_parameters() {
    let (a, b) = (Server::start(SAYS_A).await, Server::start(SAYS_B).await);
    let targets = [
        "backends = [\"a\"]\nwhen = { \"metadata.plan\" = \"gold\", \"params.max_tokens\" = { \"$lte\" = 8 } }",
        "backends = [\"b\"]\npriority = 1",
    ];
    let node = Node::start(&two(&a, &b, &policy("", &targets)), &["m"]).await;
    for (more, got) in [
        (json!({"metadata": {"plan": "gold"}}), "from a"),
        (json!({"metadata": {"plan": "gold"}, "max_tokens": 9}), "from b"),
        (json!({}), "from b"),
    ] {
        assert_eq!(by_policy(&node, "m", more.clone()).await, answer(got), "{more}");
    }
    let by_header =
        node.chat("m", json!({})).header("x-spillway-policy", "p").header("x-portkey-metadata", r#"{"plan":"gold"}"#);
    assert_eq!(said(by_header).await.1, "from a");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_that_fails_rests() {
    let (a, b) = (Server::start(&[Reply::Refuse(500, None)]).await, Server::start(SAYS_B).await);
    let targets = ["backends = [\"a\"]\nbreaker = { failures = 2 }", "backends = [\"b\"]\npriority = 1"];
    let node = Node::start(&two(&a, &b, &policy("", &targets)), &["m"]).await;
    for _ in 0..6 {
        assert_eq!(by_policy(&node, "m", json!({})).await, answer("from b"));
    }
    assert_eq!(a.seen().len(), 2);
    let metrics = node.admin(reqwest::Method::GET, "/metrics").send().await.expect("an answer");
    let metrics = metrics.text().await.expect("text");
    for line in [
        r#"spillway_policy_attempts_total{policy="p",result="done"} 6"#,
        r#"spillway_policy_attempts_total{policy="p",result="5xx"} 2"#,
        "spillway_breakers_open 1",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_takes_too_long_is_left() {
    let hangs = &[Reply::Hang][..];
    let stalls = &[Reply::Stall("begun")][..];
    for (replies, limit, got) in [
        (hangs, "first_s = 0.2", answer("from b")),
        (hangs, "total_s = 0.2", answer("from b")),
        // What was begun is not begun again elsewhere.
        (stalls, "between_s = 0.2", error(504, "timeout")),
        (stalls, "total_s = 0.5", error(504, "timeout")),
    ] {
        let (a, b) = (Server::start(replies).await, Server::start(SAYS_B).await);
        let first = format!("backends = [\"a\"]\n{limit}");
        let targets = [&*first, "backends = [\"b\"]\npriority = 1"];
        let node = Node::start(&two(&a, &b, &policy("", &targets)), &["m"]).await;
        assert_eq!(by_policy(&node, "m", json!({})).await, got, "{limit}");
    }
    // A stream ends with an error of its own.
    let (a, b) = (Server::start(stalls).await, Server::start(SAYS_B).await);
    let node = Node::start(&two(&a, &b, &policy("", &["backends = [\"a\"]\nbetween_s = 0.2"])), &["m"]).await;
    let stream = node.chat("m", json!({"stream": true})).header("x-spillway-policy", "p");
    let response = tokio::time::timeout(WAIT, stream.send()).await.expect("in time").expect("an answer");
    let text = tokio::time::timeout(WAIT, response.text()).await.expect("in time").expect("a body");
    assert!(text.contains("begun") && text.contains("\"code\":\"timeout\"") && !text.contains("[DONE]"), "{text}");
    assert_eq!(b.seen().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn copies_go_to_the_shadow_and_cost_nothing() {
    let (a, b) = (Server::start(SAYS_A).await, Server::start(SAYS_B).await);
    let sections = backend("a", &a, "")
        + &backend("b", &b, "price = { input = 1000.0, output = 1000.0 }")
        + &policy("", &["backends = [\"a\"]"])
        + "[policy.p.shadow]\nbackends = [\"b\"]\npercent = 100\nmodel = \"m\"\n";
    let node = Node::start(&sections, &["m"]).await;
    for count in 1..=3 {
        assert_eq!(by_policy(&node, "m", json!({})).await, answer("from a"));
        b.wait_for(count).await;
    }
    assert_eq!(node.tally("test").await, (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_target_sets_the_model_and_fields() {
    let a = Server::with_models(&[Reply::Refuse(500, None)], &["big"]).await;
    let b = Server::with_models(SAYS_B, &["small"]).await;
    let targets = [
        "backends = [\"a\"]\nmodel = \"big\"\noverride = { temperature = 0.5 }",
        "backends = [\"b\"]\nmodel = \"small\"\npriority = 1",
    ];
    let mut node = Node::start(&two(&a, &b, &policy("", &targets)), &["big", "small"]).await;
    assert_eq!(by_policy(&node, "anything", json!({"temperature": 1})).await, answer("from b"));
    let (big, small) = (a.seen().remove(0).body, b.seen().remove(0).body);
    assert_eq!((&big["model"], &big["temperature"]), (&json!("big"), &json!(0.5)));
    assert_eq!((&small["model"], &small["temperature"]), (&json!("small"), &json!(1)));
    assert!(small.get("metadata").is_none());
    // A key that is not for one of the models is not served by way of a policy.
    node.key = node.new_key(json!({"name": "few", "models": ["big"]})).await;
    assert_eq!(by_policy(&node, "big", json!({})).await, error(403, "model_not_allowed"));
}

#[tokio::test(flavor = "multi_thread")]
async fn third_parties_are_paid_for_by_their_own_count() {
    let folder = tempfile::TempDir::new().expect("a folder");
    std::fs::write(folder.path().join("party.key"), "sk-of-the-third-party\n").expect("written");
    let a = Server::with_models(&[Reply::Say("dear"), Reply::Say("dear"), Reply::Stall("dear words")], &["gpt-x-2026"])
        .await;
    let section = backend(
        "party",
        &a,
        "key_file = \"party.key\"\nrename = { gpt = \"gpt-x-2026\" }\nprice = { input = 100.0, cached = 10.0, output = 1000.0 }",
    );
    let mut node = Node::in_folder(folder, &section, &["gpt"]).await;
    // 6 tokens at 100, 4 cached at 10 and 2 written at 1,000 micro-credits each, streamed or not.
    let (status, text, headers) = said(node.chat("gpt", json!({}))).await;
    assert_eq!((status, text.as_str()), (200, "dear"));
    assert_eq!(headers["x-spillway-cost"], "0.002640");
    let stream = node.chat("gpt", json!({"stream": true, "stream_options": {"include_usage": true}}));
    let text = stream.send().await.expect("an answer").text().await.expect("a body");
    assert!(text.contains("\"cost\":0.002640"), "{text}");
    assert_eq!(node.tally("test").await, (5280, 0));
    let seen = a.seen().remove(0);
    assert_eq!(seen.headers["authorization"], "Bearer sk-of-the-third-party");
    assert_eq!(seen.body["model"], "gpt-x-2026");
    // The server's own name for it is none of ours.
    assert_eq!(said(node.chat("gpt-x-2026", json!({}))).await.1, "model_not_found");
    // A client that leaves pays for the prompt and for what came.
    let stream = node.chat("gpt", json!({"stream": true})).send().await.expect("an answer");
    let size = a.wait_for(3).await[2].body.to_string().len() as u64;
    drop(stream);
    let settled = async {
        while node.tally("test").await.1 > 0 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(WAIT, settled).await.expect("in time");
    let paid = node.tally("test").await.0 - 5280;
    let prompt = size.div_ceil(4) * 100;
    assert!(paid >= prompt - 400 && paid <= prompt + 3 * 1000 + 400, "{paid} for {size} bytes");
    // A budget that does not cover the most it can cost, and one that names a price below it.
    node.key = node.new_key(json!({"name": "poor", "budget_micro": 100, "providers_only": ["own"]})).await;
    assert_eq!(said(node.chat("gpt", json!({}))).await.1, "budget_exceeded");
    // A third party is not own hardware: a key that keeps its jobs there does not reach it, whatever it asks for.
    node.key = node.new_key(json!({"name": "private", "prefer": "own"})).await;
    for model in ["gpt", "gpt@party"] {
        assert_eq!(said(node.chat(model, json!({}))).await.0, 502);
    }
    assert_eq!(a.seen().len(), 3);
    node.key = node.new_key(json!({"name": "rich"})).await;
    let cheap = json!({"provider": {"only": ["own"], "max_price": {"prompt": 1, "completion": 1}}});
    let (status, _, _) = said(node.chat("gpt", cheap)).await;
    assert!(status >= 500 && a.seen().len() == 3, "{status}");
    // Nothing that the node keeps holds the key; its file is the operator's.
    for entry in std::fs::read_dir(node.folder.path()).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_file() && !path.ends_with("party.key") {
            let bytes = std::fs::read(&path).expect("read");
            assert!(memchr::memmem::find(&bytes, b"sk-of-the-third").is_none(), "{}", path.display());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn portkeys_configs_and_unifys_names_are_taken_as_they_are() {
    let (a, b) = (Server::start(&[Reply::Refuse(500, None)]).await, Server::start(SAYS_B).await);
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = json!({"strategy": {"mode": "fallback"}, "targets": [{"provider": "a"}, {"provider": "b"}]});
    std::fs::write(folder.path().join("pc.json"), file.to_string()).expect("written");
    let sections = two(&a, &b, "[policy.pc-main-1]\nportkey = \"pc.json\"\n");
    let mut node = Node::in_folder(folder, &sections, &["m"]).await;
    let config = |config: Value| node.chat("m", json!({})).header("x-portkey-config", config.to_string());
    assert_eq!(said(config(file.clone())).await.1, "from b");
    let named = node.chat("m", json!({})).header("x-portkey-config", "pc-main-1");
    assert_eq!(said(named).await.1, "from b");
    let once = json!({"strategy": {"mode": "fallback", "on_status_codes": [429]}, "targets": [{"provider": "a"}, {"provider": "b"}]});
    assert_eq!(said(config(once)).await.0, 502);
    let conditional = json!({
        "strategy": {"mode": "conditional", "default": "first", "conditions": [
            {"query": {"metadata.who": {"$in": ["me"]}}, "then": "second"},
        ]},
        "targets": [{"name": "first", "provider": "a"}, {"name": "second", "provider": "b"}],
    });
    assert_eq!(said(config(conditional.clone())).await.0, 502);
    assert_eq!(said(config(conditional).header("x-portkey-metadata", r#"{"who":"me"}"#)).await.1, "from b");
    // No host but a backend's.
    let url = b.url.clone();
    for (request, want) in [
        (config(json!({"custom_host": url})), (200, "from b")),
        (config(json!({"custom_host": "http://169.254.169.254/"})), (403, "host_not_allowed")),
        (config(json!({"targets": [{"custom_host": "http://[::1]:9/v1"}]})), (403, "host_not_allowed")),
        (node.chat("m", json!({})).header("x-portkey-custom-host", "http://localhost:1/v1"), (403, "host_not_allowed")),
        (config(json!({"provider": "b", "api_key": "sk-mine"})), (400, "invalid_request")),
        (config(json!({"provider": "cohere"})), (400, "invalid_request")),
        (config(json!({"guardrails": []})), (400, "invalid_request")),
        // Unify's names, and Portkey's.
        (node.chat("m@b", json!({})), (200, "from b")),
        (node.chat("@b/m", json!({})), (200, "from b")),
        (node.chat("m@quality", json!({})), (400, "invalid_request")),
    ] {
        let (status, text, _) = said(request).await;
        assert_eq!((status, text.as_str()), want);
    }
    let (status, _, _) = said(node.chat("m@lowest-ttft|input-cost<5", json!({}))).await;
    assert!(matches!(status, 200 | 502), "{status}: it names the model and how to choose");
    // Portkey's clients send the key in a header of their own.
    let secret = std::mem::take(&mut node.key);
    let url = format!("{}/chat/completions", node.base_url);
    let body = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]}).to_string();
    let request =
        node.client.post(url).header("x-portkey-api-key", secret).header("x-portkey-provider", "b").body(body);
    assert_eq!(said(request).await.1, "from b");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_is_gone_is_said_to_be() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/v1", listener.local_addr().expect("its address"));
    let b = Server::with_models(SAYS_B, &["other"]).await;
    // It listens and never answers; its models are known by its operator's word.
    let sections =
        format!("[[backend]]\nkind = \"openai\"\nurl = \"{url}\"\nmodels = [\"m\"]\n{}", backend("b", &b, ""));
    let server = axum::Router::new().fallback(async || "");
    listener.set_nonblocking(true).expect("set");
    let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
    let serving = tokio::spawn(async move { axum::serve(listener, server).await });
    let node = Node::start(&sections, &["m", "other"]).await;
    serving.abort();
    let _ = serving.await;
    let resting = async {
        loop {
            let (status, code, headers) = said(node.chat("m", json!({}))).await;
            if code == "own_unhealthy" {
                assert_eq!((status, headers["retry-after"].to_str().expect("text")), (503, "1"));
                return;
            }
            // Until the node has seen it, the failure itself is told.
            assert!(status == 502 || status == 503, "{status} {code}");
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(WAIT, resting).await.expect("in time");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_late_backend_is_hedged_with_another_and_let_go() {
    let (a, b) = (Server::start(&[Reply::Hang]).await, Server::start(SAYS_B).await);
    let slots = |server: &str| server.replace("slots = 2", "slots = 4");
    for (hedge, got) in [("true", Some("own_hedged")), ("false", None)] {
        let node = Node::start(&format!("{}[spend]\nhedge = {hedge}\n", slots(&two(&a, &b, ""))), &["m"]).await;
        let before = (a.seen().len(), b.seen().len());
        let stream = node.chat("m", json!({"stream": true}));
        let sent = tokio::spawn(stream.send());
        a.wait_for(before.0 + 1).await;
        let Some(reason) = got else {
            // Long after the other was late.
            let late = tokio::time::timeout(std::time::Duration::from_secs(2), sent).await;
            assert!(late.is_err() && b.seen().len() == before.1, "nobody else is asked");
            continue;
        };
        let response = tokio::time::timeout(WAIT, sent).await.expect("in time").expect("no panic").expect("an answer");
        assert_eq!(response.headers()["x-spillway-reason"], reason);
        let text = response.text().await.expect("a body");
        assert!(text.contains("from b") && text.ends_with("data: [DONE]\n\n"), "{text}");
        assert_eq!((a.seen().len(), b.seen().len()), (before.0 + 1, before.1 + 1), "each was asked once");
        assert_eq!(node.tally("test").await, (0, 0));
    }
}

/// Programs made for OpenRouter ask by the answer's `id`, which is its server's; the newest answer of that name counts.
#[tokio::test(flavor = "multi_thread")]
async fn a_generation_is_found_by_its_answers_own_id() {
    let server = Server::start(SAYS_A).await;
    let node = Node::start(&backend("a", &server, ""), &["m"]).await;
    let url = format!("{}/generation?id=", node.base_url.replace("/v1", "/api/v1"));
    let ask = async |key: &str, id: &str| {
        let response = node.client.get(format!("{url}{id}")).bearer_auth(key).send().await.expect("an answer");
        let (status, body) = (response.status().as_u16(), response.bytes().await.expect("a body"));
        (status, serde_json::from_slice::<Value>(&body).expect("JSON"))
    };
    for stream in [false, true] {
        let response = node.chat("m", json!({"stream": stream})).send().await.expect("an answer");
        let job = response.headers()["x-spillway-job"].to_str().expect("text").to_owned();
        response.bytes().await.expect("all of it");
        // The last of a stream is sent before its end is noted.
        let found = tokio::time::timeout(WAIT, async {
            loop {
                let (status, told) = ask(&node.key, "chatcmpl-x").await;
                if status == 200 && told["data"]["id"] == *job {
                    return told;
                }
                tokio::task::yield_now().await;
            }
        });
        let told = found.await.expect("in time");
        assert_eq!((&told["data"]["upstream_id"], &told["data"]["streamed"]), (&json!("chatcmpl-x"), &json!(stream)));
    }
    let other = node.new_key(json!({"name": "other"})).await;
    for (key, id, want) in [
        (&other, "chatcmpl-x", (404, "job_not_found")),
        (&node.key, "chatcmpl-y", (404, "job_not_found")),
        (&node.key, "call_x", (400, "invalid_request")),
    ] {
        let (status, told) = ask(key, id).await;
        assert_eq!((status, told["error"]["code"].as_str()), (want.0, Some(want.1)), "{id}");
    }
}

/// When a busy server says to come again is what its client is told, also where nobody else was to be found.
#[tokio::test(flavor = "multi_thread")]
async fn a_servers_own_wait_is_told() {
    let server = Server::start(&[Reply::Refuse(429, Some("7"))]).await;
    let node = Node::start(&backend("a", &server, ""), &["m"]).await;
    let (status, code, headers) = said(node.chat("m", json!({}))).await;
    let wait = headers.get("retry-after").and_then(|value| value.to_str().ok());
    assert_eq!((status, code.as_str(), wait), (429, "upstream_429", Some("7")));
}
