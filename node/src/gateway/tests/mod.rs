//! The gateway over a real socket, with a market played by the test.

mod admin;
mod cache;
mod limits;
mod managed;
mod market;
mod node;
mod policies;
mod race;
mod responses;
mod surface;
mod telling;
mod wishes;

use super::desk::{AccountStatus, BackendStatus, Done, Mint, NodeStatus, ReceiptView, Wish};
use super::ledger_log::LogQuery;
use super::store::tests::Place;
use super::{ApiError, Desk, Gateway, Parts, Policies, Serving, Shared, Terms};
use crate::audit::AuditLog;
use crate::jobs::Jobs;
use crate::metrics::Metrics;
use crate::payouts::Waiting;
use crate::telemetry::Telemetry;
use futures::future::BoxFuture;
use market::Market;
use reqwest::{Client, RequestBuilder, Response};
use serde_json::Value;
use spillway_ledger::store::Store;
use spillway_ledger::{Account, Book, Credits, Digest, Genesis, JobId, NodeId, PayoutId, Price, SecretKey, Split};
use std::collections::BTreeMap;
use std::sync::Arc;
use tempfile::TempDir;

/// A running gateway, its market, and a key.
struct World {
    place: Place,
    gateway: Gateway,
    serving: Serving,
    market: Market,
    client: Client,
    key: String,
}

/// Price limits of the tests' node, per million units: what a test reserves is easy to work out.
const PRICE_MAX: Price = Price { input: Credits::ZERO, cached: Credits::ZERO, output: Credits::new(1_000_000) };

impl World {
    async fn new() -> Self {
        Self::with(Terms { name: "test".into(), ..Terms::default() }).await
    }

    /// With a key of these terms.
    async fn with(terms: Terms) -> Self {
        Self::on(Place::embedded().await, terms).await
    }

    /// With a key of these terms, in this store.
    async fn on(place: Place, terms: Terms) -> Self {
        let (jobs, market) = Market::start();
        let gateway = open_on(place.folder(), place.store().await, jobs, true, place.shared()).await;
        let serving = gateway.serve("127.0.0.1:0").await.expect("a port");
        let (_, secret) = gateway.0.keys.create(terms).await.expect("a key");
        let client = Client::builder().no_proxy().build().expect("a client");
        Self { place, gateway, serving, market, client, key: secret.to_string() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.serving.address())
    }

    fn get(&self, path: &str) -> RequestBuilder {
        self.client.get(self.url(path)).bearer_auth(&self.key)
    }

    fn post(&self, path: &str, body: impl Into<reqwest::Body>) -> RequestBuilder {
        self.client.post(self.url(path)).bearer_auth(&self.key).body(body)
    }

    /// A chat with a model of the test market; `rest` is added to the body.
    async fn chat(&self, model: &str, rest: &str) -> Response {
        let body =
            format!(r#"{{"model":"{model}","messages":[{{"role":"user","content":"hi"}}],"max_tokens":1{rest}}}"#);
        self.post("/v1/chat/completions", body).send().await.expect("an answer")
    }

    fn admin_token(&self) -> String {
        std::fs::read_to_string(self.place.folder().path().join("admin.token")).expect("a token")
    }

    /// What the test's key spent and has reserved.
    async fn tally(&self) -> (u64, u64) {
        let view = self.gateway.0.keys.list().await.expect("listed").remove(0);
        (view.spent_micro.micro(), view.reserved_micro.micro())
    }
}

async fn open(folder: &TempDir, store: Arc<Store>, jobs: Jobs, job_log: bool) -> Gateway {
    open_on(folder, store, jobs, job_log, None).await
}

async fn open_on(folder: &TempDir, store: Arc<Store>, jobs: Jobs, job_log: bool, shared: Option<Shared>) -> Gateway {
    open_with(folder, store, jobs, job_log, shared, Policies::none()).await
}

async fn open_with(
    folder: &TempDir,
    store: Arc<Store>,
    jobs: Jobs,
    job_log: bool,
    shared: Option<Shared>,
    policies: Policies,
) -> Gateway {
    let metrics = Arc::new(Metrics::new());
    let telemetry = Telemetry::off(Arc::clone(&metrics));
    open_telling(folder, store, jobs, job_log, shared, policies, telemetry).await
}

async fn open_telling(
    folder: &TempDir,
    store: Arc<Store>,
    jobs: Jobs,
    job_log: bool,
    shared: Option<Shared>,
    policies: Policies,
    telemetry: Telemetry,
) -> Gateway {
    let desk = Arc::new(TestDesk);
    let key = SecretKey::generate([5; 32]);
    let audit = AuditLog::open(folder.path(), Arc::clone(&store), key, Arc::clone(telemetry.metrics())).expect("a log");
    Gateway::open(Parts {
        folder: folder.path(),
        store,
        jobs,
        desk,
        telemetry,
        audit,
        price_max: PRICE_MAX,
        job_log,
        cache_bytes: 1 << 20,
        cache_embedding: Some("vectors".into()),
        policies,
        promised: BTreeMap::new(),
        shared,
    })
    .await
    .expect("a gateway")
}

/// Status, then the error's `code` and `param`.
async fn error_of(response: Response) -> (u16, String, Option<String>) {
    let status = response.status().as_u16();
    assert_eq!(response.headers()["content-type"], "application/json");
    let body = json_of(response).await;
    let error = &body["error"];
    assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{body}");
    assert!(error["type"].is_string(), "{body}");
    (status, error["code"].as_str().unwrap_or_default().into(), error["param"].as_str().map(str::to_owned))
}

/// The body as JSON.
async fn json_of(response: Response) -> Value {
    serde_json::from_slice(&response.bytes().await.expect("a body")).expect("JSON")
}

/// The data of a stream's events, comments left out.
fn data_of(stream: &str) -> Vec<&str> {
    stream.split("\n\n").filter_map(|event| event.strip_prefix("data: ")).collect()
}

fn account() -> Account {
    SecretKey::generate([7; 32]).account()
}

fn genesis() -> Genesis {
    Genesis {
        name: "test".into(),
        time_ms: 1,
        issuer: account(),
        committee: vec![account().0],
        treasury: account(),
        validators: account(),
        split: Split::default(),
        grace_ms: 0,
        mint_max_per_epoch: Credits::new(1),
        epoch_blocks: 1,
        validator_bond: Credits::ZERO,
        unbond_ms: 0,
        payout_min: Credits::ZERO,
        bootstrap: Vec::new(),
    }
}

/// The rest of a node that has nothing but an account and three blocks.
struct TestDesk;

impl Desk for TestDesk {
    fn status(&self) -> NodeStatus {
        let backend = BackendStatus { model: "plain".into(), engine: "test".into(), slots: 2, free: 1, healthy: true };
        let node = NodeId(SecretKey::generate([7; 32]).public());
        NodeStatus { peer_id: "12D3".into(), node, account: account(), peers: 3, height: 2, backends: vec![backend] }
    }

    fn account(&self, other: Option<Account>) -> AccountStatus {
        let mut status = AccountStatus::of(&Book::new(&genesis()), other.unwrap_or_else(account), 2);
        (status.balance_micro, status.locked_micro) = (Credits::new(5), Credits::new(6));
        status
    }

    fn blocks(&self, from: u64, max: usize) -> Result<Vec<Vec<u8>>, ApiError> {
        Ok((from..3).take(max).map(|height| vec![height as u8; 3]).collect())
    }

    fn log(&self, query: &LogQuery, _: usize) -> Result<(Vec<Value>, bool), ApiError> {
        let line = serde_json::json!({
            "height": query.from, "to": query.to, "action": query.kind, "session": query.session,
            "account": query.account,
        });
        Ok((vec![line], query.limit.is_some()))
    }

    fn receipts(&self, job: Option<JobId>, _: usize) -> Result<Vec<ReceiptView>, ApiError> {
        match job {
            Some(_) => Ok(Vec::new()),
            None => Err(ApiError::internal("the store cannot be read")),
        }
    }

    fn payouts(&self) -> (Vec<Waiting>, u64) {
        let waiting = Waiting {
            payout: Digest::of("test", &[b"payout"]),
            account: account(),
            amount_micro: Credits::new(9),
            payee: Digest::ZERO,
            height: 2,
            time_ms: 3,
        };
        (vec![waiting], 4)
    }

    fn prove_account(&self, account: Option<Account>) -> Result<Vec<u8>, ApiError> {
        Ok(account.map_or_else(|| b"own".to_vec(), |account| account.0.as_bytes().to_vec()))
    }

    fn prove_receipt(&self, _: JobId, leg: u32) -> Result<Vec<u8>, ApiError> {
        Ok(vec![u8::try_from(leg).expect("small")])
    }

    fn submit(&self, wish: Wish) -> BoxFuture<'_, Result<Done, ApiError>> {
        Box::pin(async move {
            match wish {
                Wish::PayoutRequest { .. } => {
                    Ok(Done { height: 1, payout: Some(PayoutId(Digest::of("test", &[b"payout"]))) })
                }
                Wish::Burn { .. } => Err(ApiError::new(400, "ledger_refused", "only the issuer may do this")),
                Wish::PayoutReject { .. } | Wish::Bond { .. } | Wish::Unbond { .. } | Wish::Transfer { .. } => {
                    Ok(Done { height: 2, payout: None })
                }
            }
        })
    }

    fn mint(&self, mint: Mint) -> BoxFuture<'_, Result<u64, ApiError>> {
        Box::pin(async move {
            if mint.reference == "used" {
                return Err(ApiError::new(400, "ledger_refused", "the reference was used before"));
            }
            Ok(mint.amount_micro.micro())
        })
    }
}
