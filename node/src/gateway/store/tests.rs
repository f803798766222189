//! One suite for every store: secrets, terms, projects, budgets, restarts.

use super::{Lease, Shared};
use crate::gateway::ApiError;
use crate::gateway::budget::Amount;
use crate::gateway::keys::{Caller, Holder, KeyId, Keys, ProjectId, Reservation, Terms, View};
use crate::records::Aside;
use serde_json::{Value, json};
use spillway_ledger::store::{Batch, Store};
use spillway_ledger::{Credits, JobId, StoreError};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection, Row};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;
use tempfile::TempDir;

/// Room for so many keys, so that a full store is quickly made.
const HOLDERS_MAX: usize = 24;

/// Where one test's node keeps its keys.
pub(in crate::gateway) struct Place {
    folder: TempDir,
    /// A schema of its own in the database that `SPILLWAY_TEST_POSTGRES` names.
    shared: Option<PgConnectOptions>,
}

impl Place {
    pub(in crate::gateway) async fn embedded() -> Self {
        Self { folder: TempDir::new().expect("a folder"), shared: None }
    }

    pub(in crate::gateway) async fn postgres() -> Self {
        let url = std::env::var("SPILLWAY_TEST_POSTGRES").expect("scripts/postgres_store.sh sets it");
        let options: PgConnectOptions = url.parse().expect("a URL");
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("random bytes");
        let schema = format!("test_{}", hex::encode(random));
        let mut connection = options.connect().await.expect("a database");
        sqlx::raw_sql(&format!("create schema {schema}")).execute(&mut connection).await.expect("a schema");
        connection.close().await.expect("closed");
        let shared = options.options([("search_path", &schema)]).application_name(&schema);
        Self { folder: TempDir::new().expect("a folder"), shared: Some(shared) }
    }

    /// Another node with the same shared store.
    fn neighbour(&self) -> Self {
        Self { folder: TempDir::new().expect("a folder"), shared: self.shared.clone() }
    }

    pub(in crate::gateway) fn folder(&self) -> &TempDir {
        &self.folder
    }

    pub(in crate::gateway) fn shared(&self) -> Option<Shared> {
        self.shared.clone().map(|options| Shared { options, lease: Lease::default() })
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("node.redb")
    }

    /// The node's own store.
    pub(in crate::gateway) async fn store(&self) -> Arc<Store> {
        // The writing thread of the node before may hold the file a moment longer.
        loop {
            match Store::open(self.file()) {
                Ok(store) => return Arc::new(store),
                Err(StoreError::InUse(_)) => tokio::task::yield_now().await,
                Err(error) => panic!("{error}"),
            }
        }
    }

    async fn open_with(&self, lease: Lease, promised: impl Fn(JobId) -> Option<Credits> + Send) -> Keys {
        let store = self.store().await;
        match &self.shared {
            None => Keys::open_for(store, HOLDERS_MAX, promised).expect("keys open"),
            Some(options) => {
                let shared = Shared { options: options.clone(), lease };
                Keys::open_shared_for(store, shared, HOLDERS_MAX, promised).await.expect("keys open")
            }
        }
    }

    /// A node that starts.
    async fn open(&self, promised: impl Fn(JobId) -> Option<Credits> + Send) -> Keys {
        self.open_with(Lease::default(), promised).await
    }

    async fn start(&self) -> Keys {
        self.open(|_| None).await
    }

    /// All that is stored.
    async fn bytes(&self) -> Vec<u8> {
        let mut bytes = std::fs::read(self.file()).expect("the store");
        if let Some(options) = &self.shared {
            let mut connection = options.connect().await.expect("a database");
            let rows = sqlx::query("select h::text from spillway_holders h").fetch_all(&mut connection).await;
            for row in rows.expect("rows") {
                bytes.extend(row.get::<String, _>(0).into_bytes());
            }
        }
        bytes
    }
}

/// Each test, on each store. Those on PostgreSQL want one: `scripts/postgres_store.sh`.
macro_rules! on_every_store {
    ($($test:ident),* $(,)?) => {
        mod embedded {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            async fn $test() {
                super::$test($crate::gateway::store::tests::Place::embedded().await).await;
            })*
        }

        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
            #[ignore = "wants PostgreSQL: scripts/postgres_store.sh"]
            async fn $test() {
                super::$test($crate::gateway::store::tests::Place::postgres().await).await;
            })*
        }
    };
}
pub(in crate::gateway) use on_every_store;

on_every_store!(
    only_the_very_secret_opens,
    two_secrets_open_while_one_is_replaced,
    no_secret_is_in_the_store,
    bad_terms_are_named,
    terms_are_changed_and_keys_blocked,
    keys_of_a_project_share_its_limits,
    parallel_requests_never_exceed_a_budget,
    a_restart_charges_what_was_promised,
    a_job_without_a_promise_leaves_nothing_on_the_disk,
    concurrency_is_limited,
    requests_and_tokens_per_minute_are_limited,
    the_oldest_void_key_makes_room,
    who_leaves_while_waiting_leaves_nothing_reserved,
);

fn terms(budget: Option<u64>, concurrency: Option<u32>) -> Terms {
    Terms { name: "test".into(), budget_micro: budget.map(Credits::new), concurrency, ..Terms::default() }
}

fn job(number: u64) -> JobId {
    JobId((u128::from(number) + 1).to_be_bytes())
}

fn money(micro: u64) -> Amount {
    Amount { money: Credits::new(micro), tokens: 0 }
}

fn key(view: &View) -> KeyId {
    view.id.parse().expect("an id")
}

async fn caller(keys: &Keys, terms: Terms) -> (View, Caller) {
    let (view, secret) = keys.create(terms).await.expect("a key");
    let caller = keys.authenticate(&secret).await.expect("the secret");
    (view, caller)
}

async fn refused(keys: &Keys, caller: &Caller, number: u64, most: Amount) -> ApiError {
    keys.reserve(caller, job(number), most).await.expect_err("refused")
}

async fn granted(keys: &Keys, caller: &Caller, number: u64, most: Amount) -> Reservation {
    keys.reserve(caller, job(number), most).await.expect("granted")
}

/// What is spent and reserved, and the jobs under way, once that is `want`.
async fn comes_to(keys: &Keys, holder: Holder, want: (u64, u64, u32)) {
    let mut last = None;
    let reached = async {
        loop {
            let view = keys.view(holder).await.expect("a view");
            let now = (view.spent_micro.micro(), view.reserved_micro.micro(), view.running);
            last = Some(now);
            if now == want {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    let in_time = tokio::time::timeout(Duration::from_secs(30), reached).await;
    assert!(in_time.is_ok(), "{last:?} where {want:?} was expected");
}

fn patch(value: Value) -> serde_json::Map<String, Value> {
    value.as_object().expect("an object").clone()
}

async fn only_the_very_secret_opens(place: Place) {
    let keys = place.start().await;
    let (view, secret) = keys.create(terms(None, None)).await.expect("a key");
    assert_eq!(secret.len(), "sk-spillway-".len() + 8 + 1 + 32);
    assert_eq!(keys.authenticate(&secret).await.expect("the secret").id.to_string(), view.id);
    let other = keys.create(terms(None, None)).await.expect("a key").1;
    let swapped = format!("{}{}", &secret[..21], &other[21..]);
    let unknown = format!("sk-spillway-00000000_{}", &secret[21..]);
    for wrong in ["", "sk-spillway-", "sk-spillway-zz_1", &secret[..secret.len() - 1], &swapped, &unknown] {
        assert_eq!(keys.authenticate(wrong).await.expect_err(wrong).status, 401);
    }
    let known = keys.authenticate(&secret).await.expect("the secret");
    keys.revoke(key(&view)).await.expect("revoked");
    assert_eq!(refused(&keys, &known, 1, money(0)).await.status, 401, "nor with what was known of it before");
    assert_eq!(keys.revoke("00000000".parse().expect("an id")).await.expect_err("unknown").status, 404);
    drop((keys, known));
    let keys = place.start().await;
    assert_eq!(keys.authenticate(&secret).await.expect_err("void").status, 401);
    assert!(keys.authenticate(&other).await.is_ok());
}

async fn two_secrets_open_while_one_is_replaced(place: Place) {
    let keys = place.start().await;
    let (view, first) = keys.create(terms(None, None)).await.expect("a key");
    let id = key(&view);
    let (view, second) = keys.rotate(id, 60).await.expect("a new secret");
    assert!(view.previous_until_ms.is_some_and(|until| until > view.created_ms));
    drop(keys);
    let keys = place.start().await;
    assert!(keys.authenticate(&first).await.is_ok() && keys.authenticate(&second).await.is_ok());
    let third = keys.rotate(id, 60).await.expect("a new secret").1;
    drop(keys);
    let keys = place.start().await;
    assert_eq!(keys.authenticate(&first).await.expect_err("two are enough").status, 401);
    assert!(keys.authenticate(&second).await.is_ok() && keys.authenticate(&third).await.is_ok());
    let (view, fourth) = keys.rotate(id, 0).await.expect("a new secret");
    assert_eq!(view.previous_until_ms, None);
    drop(keys);
    let keys = place.start().await;
    assert_eq!(keys.authenticate(&third).await.expect_err("replaced at once").status, 401);
    assert!(keys.authenticate(&fourth).await.is_ok());
    assert_eq!(keys.rotate(id, u64::MAX).await.expect_err("too long").param.as_deref(), Some("overlap_s"));
    keys.revoke(id).await.expect("revoked");
    assert_eq!(keys.rotate(id, 0).await.expect_err("void").status, 404);
}

async fn no_secret_is_in_the_store(place: Place) {
    let keys = place.start().await;
    let (view, secret) = keys.create(terms(Some(5), None)).await.expect("a key");
    let rotated = keys.rotate(key(&view), 60).await.expect("a new secret").1;
    drop(keys);
    drop(place.start().await);
    let bytes = place.bytes().await;
    for secret in [secret, rotated] {
        let tail = &secret.as_bytes()[21..];
        let raw = hex::decode(tail).expect("hexadecimal");
        for needle in [secret.as_bytes(), tail, &raw[..]] {
            assert!(!bytes.windows(needle.len()).any(|window| window == needle));
        }
    }
}

async fn bad_terms_are_named(place: Place) {
    let keys = place.start().await;
    let none: ProjectId = "00000001".parse().expect("an id");
    for (terms, field) in [
        (Terms { name: String::new(), ..terms(None, None) }, "name"),
        (Terms { project: Some(none), ..terms(None, None) }, "project"),
    ] {
        assert_eq!(keys.create(terms.clone()).await.expect_err(field).param.as_deref(), Some(field));
        assert_eq!(keys.create_project(terms).await.expect_err(field).param.as_deref(), Some(field));
    }
    let view = keys.create(terms(None, None)).await.expect("a key").0;
    for (fields, field) in [
        (json!({"project": "00000001"}), "project"),
        (json!({"project": "x"}), "project"),
        (json!({"concurrency": 0}), "concurrency"),
    ] {
        let error = keys.update(Holder::Key(key(&view)), patch(fields)).await.expect_err(field);
        assert_eq!(error.param.as_deref(), Some(field));
    }
    assert_eq!(keys.view(Holder::Key(key(&view))).await.expect("a view").terms, terms(None, None));
    assert_eq!(keys.update(Holder::Project(none), patch(json!({}))).await.expect_err("unknown").status, 404);
}

async fn terms_are_changed_and_keys_blocked(place: Place) {
    let keys = place.start().await;
    let (view, secret) = keys.create(terms(Some(10), None)).await.expect("a key");
    let id = Holder::Key(key(&view));
    let before = keys.authenticate(&secret).await.expect("the secret");
    keys.update(id, patch(json!({"budget_micro": 4, "labels": {"team": "red"}}))).await.expect("changed");
    let error = refused(&keys, &before, 1, money(5)).await;
    assert_eq!((error.status, error.code.as_str()), (402, "budget_exceeded"), "what holds now counts");
    let after = keys.update(id, patch(json!({"blocked": true}))).await.expect("blocked");
    assert_eq!((after.terms.budget_micro, after.terms.labels["team"].as_str()), (Some(Credits::new(4)), "red"));
    let error = refused(&keys, &before, 1, money(0)).await;
    assert_eq!((error.status, error.code.as_str()), (403, "key_blocked"));
    drop((keys, before));
    let keys = place.start().await;
    assert_eq!(keys.authenticate(&secret).await.expect_err("blocked").code, "key_blocked");
    keys.update(id, patch(json!({"blocked": null, "expires_ms": 1}))).await.expect("changed");
    drop(keys);
    let keys = place.start().await;
    let error = keys.authenticate(&secret).await.expect_err("expired");
    assert_eq!((error.status, error.code.as_str()), (401, "key_expired"));
    keys.revoke(key(&view)).await.expect("revoked");
    assert_eq!(keys.update(id, patch(json!({"blocked": true}))).await.expect_err("void").status, 404);
}

async fn keys_of_a_project_share_its_limits(place: Place) {
    let keys = place.start().await;
    let models = Some(vec!["a".to_owned(), "b".to_owned()]);
    let made = keys.create_project(Terms { models, ..terms(Some(10), None) }).await.expect("a project");
    let project: ProjectId = made.id.parse().expect("an id");
    let of =
        |budget| Terms { project: Some(project), models: Some(vec!["b".into(), "c".into()]), ..terms(budget, None) };
    let ((first_view, first), (_, second)) = (caller(&keys, of(Some(8))).await, caller(&keys, of(None)).await);
    assert_eq!(["a", "b", "c"].map(|model| first.allows(model)), [false, true, false]);
    let one = granted(&keys, &first, 1, money(6)).await;
    let error = refused(&keys, &second, 2, money(5)).await;
    assert_eq!((error.status, error.code.as_str()), (429, "budget_reserved"));
    assert!(error.message.contains("project"), "{error}");
    let error = refused(&keys, &first, 2, money(9)).await;
    assert!(error.message.contains("the key has"), "{error}");
    // Where one of the two refuses, neither has set anything aside.
    let two = granted(&keys, &second, 2, money(4)).await;
    one.settle(Credits::new(5), 0);
    two.settle(Credits::new(4), 0);
    comes_to(&keys, Holder::Project(project), (9, 0, 0)).await;
    comes_to(&keys, Holder::Key(key(&first_view)), (5, 0, 0)).await;
    assert_eq!(refused(&keys, &second, 3, money(2)).await.code, "budget_exceeded");
    keys.update(Holder::Project(project), patch(json!({"blocked": true}))).await.expect("blocked");
    assert_eq!(refused(&keys, &second, 3, money(0)).await.code, "key_blocked");
    let list = keys.projects().await.expect("listed");
    assert_eq!((list.len(), list[0].spent_day_micro, list[0].spent_micro), (1, Credits::new(9), Credits::new(9)));
    drop((keys, first, second));
    let keys = place.start().await;
    comes_to(&keys, Holder::Project(project), (9, 0, 0)).await;
}

async fn parallel_requests_never_exceed_a_budget(place: Place) {
    let keys = place.start().await;
    let (view, caller) = caller(&keys, terms(Some(100 * 7 + 6), None)).await;
    let ask = |number| {
        let (keys, caller) = (keys.clone(), caller.clone());
        tokio::spawn(async move { keys.reserve(&caller, job(number), money(7)).await })
    };
    let tasks: Vec<_> = (0..1000).map(ask).collect();
    let mut all = Vec::new();
    for task in tasks {
        match task.await.expect("no panic") {
            Ok(reservation) => all.push(reservation),
            Err(error) => assert_eq!((error.status, error.code.as_str()), (429, "budget_reserved")),
        }
    }
    assert_eq!(all.len(), 100);
    for reservation in all {
        reservation.settle(Credits::new(3), 0);
    }
    let id = Holder::Key(key(&view));
    comes_to(&keys, id, (300, 0, 0)).await;
    // What was not used is there again, to the last micro-credit.
    let last: Vec<_> = futures::future::join_all((2000..2058).map(|n| keys.reserve(&caller, job(n), money(7)))).await;
    assert_eq!(last.iter().filter(|granted| granted.is_ok()).count(), 58);
    for reservation in last.into_iter().flatten() {
        reservation.settle(Credits::new(7), 0);
    }
    comes_to(&keys, id, (706, 0, 0)).await;
    assert_eq!(refused(&keys, &caller, 3000, money(1)).await.status, 402);
    keys.flush().await.expect("written");
    drop((keys, caller));
    let keys = place.open(|_| panic!("nothing is open")).await;
    comes_to(&keys, id, (706, 0, 0)).await;
}

async fn a_restart_charges_what_was_promised(place: Place) {
    let keys = place.start().await;
    let (view, caller) = caller(&keys, terms(Some(1000), None)).await;
    // Two jobs are under way when the node dies; for one of them vouchers were signed.
    let left = (granted(&keys, &caller, 0, money(400)).await, granted(&keys, &caller, 1, money(400)).await);
    assert_eq!(refused(&keys, &caller, 2, money(400)).await.status, 429);
    let aside = left.0.aside();
    drop((keys, left, caller));
    promise(&place, aside).await;
    for _ in 0..2 {
        let keys = place.open(|id| (id == job(0)).then_some(Credits::new(123))).await;
        comes_to(&keys, Holder::Key(key(&view)), (123, 0, 0)).await;
    }
}

/// What the market does when it first promises to pay for a job; then the node dies.
async fn promise(place: &Place, aside: Option<Arc<Aside>>) {
    let mut batch = Batch::new();
    if let Some(aside) = aside {
        aside.put(&mut batch, job(0));
    }
    place.store().await.commit(batch).expect("kept");
}

async fn a_job_without_a_promise_leaves_nothing_on_the_disk(place: Place) {
    let keys = place.start().await;
    let (view, secret) = keys.create(terms(None, None)).await.expect("a key");
    let caller = keys.authenticate(&secret).await.expect("the secret");
    let own = granted(&keys, &caller, 0, money(400)).await;
    let bought = granted(&keys, &caller, 1, money(400)).await;
    let aside = bought.aside();
    own.settle(Credits::ZERO, 0);
    drop((keys, bought, caller));
    promise(&place, aside).await;
    // It had ended, at less than was promised, and was not charged yet.
    let asked = std::sync::Mutex::new(Vec::new());
    let keys = place
        .open(|id| {
            asked.lock().expect("no panic").push(id);
            (id == job(1)).then_some(Credits::new(7))
        })
        .await;
    comes_to(&keys, Holder::Key(key(&view)), (7, 0, 0)).await;
    let asked = asked.into_inner().expect("no panic");
    assert!(asked.contains(&job(1)));
    assert!(place.shared.is_some() || asked == [job(1)], "{asked:?}");
    let caller = keys.authenticate(&secret).await.expect("the secret");
    let again = granted(&keys, &caller, 2, money(400)).await;
    again.settle(Credits::new(1), 0);
    keys.flush().await.expect("written");
    drop((keys, caller));
    comes_to(&place.open(|_| panic!("nothing is open")).await, Holder::Key(key(&view)), (8, 0, 0)).await;
}

async fn concurrency_is_limited(place: Place) {
    let keys = place.start().await;
    let (view, caller) = caller(&keys, terms(None, Some(2))).await;
    let first = granted(&keys, &caller, 0, money(0)).await;
    let second = granted(&keys, &caller, 1, money(0)).await;
    let error = refused(&keys, &caller, 2, money(0)).await;
    assert_eq!((error.status, error.retry_after_s), (429, Some(1)));
    first.settle(Credits::ZERO, 0);
    second.settle_in_full();
    comes_to(&keys, Holder::Key(key(&view)), (0, 0, 0)).await;
    let third = granted(&keys, &caller, 3, money(0)).await;
    third.settle(Credits::ZERO, 0);
}

async fn requests_and_tokens_per_minute_are_limited(place: Place) {
    let keys = place.start().await;
    let limits = Terms { requests_per_minute: Some(3), tokens_per_minute: Some(60_000), ..terms(None, None) };
    let (view, caller) = caller(&keys, limits).await;
    let tokens = |tokens| Amount { money: Credits::ZERO, tokens };
    let first = granted(&keys, &caller, 0, tokens(50_000)).await;
    let rates = first.rates();
    assert_eq!(rates.requests.map(|rate| (rate.limit, rate.remaining, rate.reset_ms)), Some((3, 2, 20_000)));
    assert_eq!(rates.tokens.map(|rate| (rate.limit, rate.remaining, rate.reset_ms)), Some((60_000, 10_000, 50_000)));
    let error = refused(&keys, &caller, 1, tokens(40_000)).await;
    assert_eq!((error.status, error.code.as_str()), (429, "rate_limit_exceeded"));
    assert!(error.retry_after_s.is_some_and(|seconds| (1..=30).contains(&seconds)), "{error:?}");
    assert!(
        error
            .rates
            .as_ref()
            .and_then(|rates| rates.tokens)
            .is_some_and(|rate| rate.remaining >= 10_000 && rate.remaining < 40_000)
    );
    assert_eq!(refused(&keys, &caller, 1, tokens(60_001)).await.retry_after_s, None, "it never fits");
    // More than was asked for counts as what was asked for; less is given back.
    first.settle(Credits::ZERO, 10);
    comes_to(&keys, Holder::Key(key(&view)), (0, 0, 0)).await;
    let second = granted(&keys, &caller, 2, tokens(40_000)).await;
    second.settle(Credits::ZERO, u64::MAX);
    granted(&keys, &caller, 3, tokens(0)).await.settle(Credits::ZERO, 0);
    let error = refused(&keys, &caller, 4, tokens(0)).await;
    assert!(error.message.contains("3 requests"), "{error}");
    assert!(error.retry_after_s.is_some_and(|seconds| (1..=20).contains(&seconds)), "{error:?}");
}

async fn the_oldest_void_key_makes_room(place: Place) {
    let keys = place.start().await;
    let names = 0..HOLDERS_MAX;
    let made = names.map(|number| keys.create(Terms { name: number.to_string(), ..Terms::default() }));
    let made: Vec<_> = futures::future::join_all(made).await.into_iter().map(|made| made.expect("a key").0).collect();
    assert_eq!(keys.create(terms(None, None)).await.expect_err("full").code, "too_many_keys");
    keys.revoke(key(&made[7])).await.expect("revoked");
    keys.create(terms(None, None)).await.expect("room");
    assert_eq!(keys.view(Holder::Key(key(&made[7]))).await.expect_err("gone").status, 404);
    assert_eq!(keys.list().await.expect("listed").len(), HOLDERS_MAX);
    drop(keys);
    assert_eq!(place.start().await.list().await.expect("listed").len(), HOLDERS_MAX);
}

async fn who_leaves_while_waiting_leaves_nothing_reserved(place: Place) {
    let keys = place.start().await;
    // Enough for all at once: on a shared store a leaver's money may still be set aside when the next one asks.
    let (view, caller) = caller(&keys, terms(Some(50 * 90), None)).await;
    for number in 0..50 {
        let asked = keys.reserve(&caller, job(number), money(90));
        // On a shared store nobody waits for the answer; on the embedded one it is there at once.
        if let Ok(granted) = tokio::time::timeout(Duration::ZERO, asked).await {
            granted.expect("room").settle(Credits::ZERO, 0);
        }
    }
    keys.flush().await.expect("written");
    comes_to(&keys, Holder::Key(key(&view)), (0, 0, 0)).await;
}

/// What only a shared store does.
mod several_gateways {
    use super::*;

    /// Short, for tests that wait for it.
    const SHORT: Lease = Lease { lasts: Duration::from_millis(100), every: Duration::from_millis(20) };

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    #[ignore = "wants PostgreSQL: scripts/postgres_store.sh"]
    async fn a_key_of_one_opens_at_the_other_and_has_one_budget() {
        let (here, there) = both().await;
        let (keys, others) = (here.start().await, there.start().await);
        let (view, secret) = keys.create(terms(Some(700), None)).await.expect("a key");
        let (one, other) = (keys.authenticate(&secret).await, others.authenticate(&secret).await);
        let callers = [(keys.clone(), one.expect("the secret")), (others.clone(), other.expect("the secret"))];
        let tasks: Vec<_> = (0..1000)
            .map(|number| {
                let (keys, caller) = callers[number % 2].clone();
                tokio::spawn(async move { keys.reserve(&caller, job(number as u64), money(7)).await })
            })
            .collect();
        let mut all = Vec::new();
        for task in tasks {
            match task.await.expect("no panic") {
                Ok(reservation) => all.push(reservation),
                Err(error) => assert_eq!((error.status, error.code.as_str()), (429, "budget_reserved")),
            }
        }
        assert_eq!(all.len(), 100);
        for reservation in all {
            reservation.settle(Credits::new(7), 0);
        }
        let id = Holder::Key(key(&view));
        comes_to(&keys, id, (700, 0, 0)).await;
        comes_to(&others, id, (700, 0, 0)).await;
        keys.revoke(key(&view)).await.expect("revoked");
        assert_eq!(refused(&others, &callers[1].1, 5000, money(0)).await.status, 401);
    }

    async fn both() -> (Place, Place) {
        let here = Place::postgres().await;
        let there = here.neighbour();
        (here, there)
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    #[ignore = "wants PostgreSQL: scripts/postgres_store.sh"]
    async fn what_a_dead_gateway_left_is_charged_until_it_says_better() {
        let (here, there) = both().await;
        let keys = here.open_with(SHORT, |_| None).await;
        let (view, caller) = caller(&keys, terms(Some(1000), None)).await;
        let left = (granted(&keys, &caller, 0, money(400)).await, granted(&keys, &caller, 1, money(300)).await);
        drop((keys, left, caller));
        let others = there.open_with(SHORT, |_| None).await;
        let id = Holder::Key(key(&view));
        comes_to(&others, id, (700, 0, 0)).await;
        // It comes back, and knows for which of its jobs vouchers were signed.
        let keys = here.open(|id| (id == job(0)).then_some(Credits::new(123))).await;
        comes_to(&keys, id, (123, 0, 0)).await;
        comes_to(&others, id, (123, 0, 0)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    #[ignore = "wants PostgreSQL: scripts/postgres_store.sh"]
    async fn what_a_living_gateway_holds_stays() {
        let (here, there) = both().await;
        let keys = here.start().await;
        let (view, caller) = caller(&keys, terms(Some(1000), None)).await;
        let held = granted(&keys, &caller, 0, money(400)).await;
        // The other one looks for what the dead left each time that it renews its lease.
        let others = there.open_with(Lease { every: SHORT.every, ..Lease::default() }, |_| None).await;
        let mut connection = here.shared.as_ref().expect("shared").connect().await.expect("a database");
        let mut seen = std::collections::BTreeSet::new();
        let renewed = async {
            while seen.len() < 4 {
                let query = "select max(alive_until)::text from spillway_gateways";
                let row = sqlx::query(query).fetch_one(&mut connection).await.expect("a time");
                seen.insert(row.get::<String, _>(0));
            }
        };
        tokio::time::timeout(Duration::from_secs(60), renewed).await.expect("renewed");
        comes_to(&others, Holder::Key(key(&view)), (0, 400, 1)).await;
        held.settle(Credits::new(5), 0);
        comes_to(&others, Holder::Key(key(&view)), (5, 0, 0)).await;
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    #[ignore = "wants PostgreSQL: scripts/postgres_store.sh"]
    async fn connections_that_break_lose_and_repeat_nothing() {
        let here = Place::postgres().await;
        let keys = here.start().await;
        let (view, caller) = caller(&keys, terms(None, None)).await;
        let options = here.shared.clone().expect("shared");
        let broken = Arc::new(AtomicUsize::new(0));
        let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
        let count = Arc::clone(&broken);
        let breaking = tokio::spawn(async move {
            let mut connection = options.clone().application_name("breaker").connect().await.expect("a database");
            let kill = "select pg_terminate_backend(pid) from pg_stat_activity
                          where application_name = current_schema() and pid <> pg_backend_pid()";
            while stopped.try_recv().is_err() {
                let killed = sqlx::query(kill).fetch_all(&mut connection).await.expect("killed").len();
                count.fetch_add(killed, Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        let mut done = 0;
        // Jobs keep coming until some have met a broken connection.
        while done < 400 || broken.load(Ordering::Relaxed) < 3 {
            let tasks: Vec<_> = (done..done + 100)
                .map(|number| {
                    let (keys, caller) = (keys.clone(), caller.clone());
                    tokio::spawn(async move {
                        loop {
                            match keys.reserve(&caller, job(number), money(9)).await {
                                Ok(reservation) => return reservation.settle(Credits::new(number), 0),
                                Err(error) => assert_eq!(error.status, 503, "{error}"),
                            }
                        }
                    })
                })
                .collect();
            for task in tasks {
                task.await.expect("no panic");
            }
            done += 100;
            assert!(done < 100_000, "no connection was broken");
        }
        stop.send(()).expect("it listens");
        breaking.await.expect("no panic");
        comes_to(&keys, Holder::Key(key(&view)), ((0..done).sum(), 0, 0)).await;
    }
}
