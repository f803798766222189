//! Keys over a real store: secrets, terms, budgets, restarts.

use super::*;
use tempfile::TempDir;

fn open(folder: &TempDir, promised: impl Fn(JobId) -> Option<Credits>) -> Keys {
    // The writing thread of the keys before may hold the file a moment longer.
    let path = folder.path().join("node.redb");
    let store = loop {
        match Store::open(&path) {
            Ok(store) => break store,
            Err(StoreError::InUse(_)) => std::thread::yield_now(),
            Err(error) => panic!("{error}"),
        }
    };
    Keys::open(Arc::new(store), promised).expect("keys open")
}

fn terms(budget: Option<u64>, concurrency: Option<u32>) -> Terms {
    Terms { name: "test".into(), budget_micro: budget.map(Credits::new), concurrency, ..Terms::default() }
}

fn job(number: u64) -> JobId {
    JobId((u128::from(number) + 1).to_be_bytes())
}

#[tokio::test]
async fn only_the_very_secret_opens() {
    let folder = TempDir::new().expect("a folder");
    let keys = open(&folder, |_| None);
    let (view, secret) = keys.create(terms(None, None)).await.expect("a key");
    assert_eq!(secret.len(), PREFIX.len() + 8 + 1 + 32);
    assert_eq!(keys.authenticate(&secret).expect("the secret").id.to_string(), view.id);
    let other = keys.create(terms(None, None)).await.expect("a key").1;
    let swapped = format!("{}{}", &secret[..PREFIX.len() + 9], &other[PREFIX.len() + 9..]);
    let unknown = format!("{PREFIX}00000000_{}", &secret[PREFIX.len() + 9..]);
    for wrong in ["", "sk-spillway-", "sk-spillway-zz_1", &secret[..secret.len() - 1], &swapped, &unknown] {
        assert_eq!(keys.authenticate(wrong).expect_err(wrong).status, 401);
    }
    keys.revoke(view.id.parse().expect("an id")).await.expect("revoked");
    assert_eq!(keys.authenticate(&secret).expect_err("void").status, 401);
    assert_eq!(keys.revoke(KeyId([0; 4])).await.expect_err("unknown").status, 404);
    drop(keys);
    let keys = open(&folder, |_| None);
    assert_eq!(keys.authenticate(&secret).expect_err("void").status, 401);
    assert!(keys.authenticate(&other).is_ok());
}

#[tokio::test]
async fn no_secret_is_in_the_store() {
    let folder = TempDir::new().expect("a folder");
    let keys = open(&folder, |_| None);
    let secret = keys.create(terms(Some(5), None)).await.expect("a key").1;
    drop(keys);
    drop(open(&folder, |_| None));
    let bytes = std::fs::read(folder.path().join("node.redb")).expect("the store");
    let tail = &secret.as_bytes()[PREFIX.len() + 9..];
    let raw = hex::decode(tail).expect("hexadecimal");
    for needle in [secret.as_bytes(), tail, &raw[..]] {
        assert!(!bytes.windows(needle.len()).any(|window| window == needle));
    }
}

#[tokio::test]
async fn bad_terms_are_named() {
    let folder = TempDir::new().expect("a folder");
    let keys = open(&folder, |_| None);
    let good = terms(None, None);
    for (terms, field) in [
        (Terms { name: String::new(), ..good.clone() }, "name"),
        (Terms { name: "x".repeat(65), ..good.clone() }, "name"),
        (Terms { models: Some(Vec::new()), ..good.clone() }, "models"),
        (Terms { concurrency: Some(0), ..good.clone() }, "concurrency"),
    ] {
        assert_eq!(keys.create(terms).await.expect_err(field).param.as_deref(), Some(field));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn parallel_requests_never_exceed_a_budget() {
    let folder = TempDir::new().expect("a folder");
    let keys = open(&folder, |_| None);
    let secret = keys.create(terms(Some(100 * 7 + 6), None)).await.expect("a key").1;
    let caller = keys.authenticate(&secret).expect("the secret");
    let tasks: Vec<_> = (0..1000)
        .map(|number| {
            let (keys, caller) = (keys.clone(), caller.clone());
            tokio::spawn(async move { keys.reserve(&caller, job(number), Credits::new(7)).await })
        })
        .collect();
    let mut granted = Vec::new();
    for task in tasks {
        match task.await.expect("no panic") {
            Ok(reservation) => granted.push(reservation),
            Err(error) => assert_eq!((error.status, error.code.as_str()), (402, "budget_exceeded")),
        }
    }
    assert_eq!(granted.len(), 100);
    for reservation in granted {
        reservation.settle(Credits::new(3));
    }
    let view = keys.list().remove(0);
    assert_eq!((view.spent_micro, view.reserved_micro, view.running), (Credits::new(300), Credits::ZERO, 0));
    drop((keys, caller));
    assert_eq!(open(&folder, |_| panic!("nothing is open")).list()[0].spent_micro, Credits::new(300));
}

#[tokio::test]
async fn a_restart_charges_what_was_promised() {
    let folder = TempDir::new().expect("a folder");
    let keys = open(&folder, |_| None);
    let secret = keys.create(terms(Some(1000), None)).await.expect("a key").1;
    let caller = keys.authenticate(&secret).expect("the secret");
    // Two jobs are under way when the node dies; for one of them vouchers were signed.
    let left: Vec<_> =
        futures::future::join_all((0..2).map(|n| keys.reserve(&caller, job(n), Credits::new(400)))).await;
    assert!(left.iter().all(Result::is_ok));
    assert_eq!(keys.reserve(&caller, job(2), Credits::new(400)).await.expect_err("no room").status, 402);
    drop((keys, left, caller));
    for _ in 0..2 {
        let keys = open(&folder, |id| (id == job(0)).then_some(Credits::new(123)));
        let view = keys.list().remove(0);
        assert_eq!((view.spent_micro, view.reserved_micro, view.running), (Credits::new(123), Credits::ZERO, 0));
    }
}

#[tokio::test]
async fn concurrency_is_limited() {
    let folder = TempDir::new().expect("a folder");
    let keys = open(&folder, |_| None);
    let secret = keys.create(terms(None, Some(2))).await.expect("a key").1;
    let caller = keys.authenticate(&secret).expect("the secret");
    let first = keys.reserve(&caller, job(0), Credits::ZERO).await.expect("one of two");
    let second = keys.reserve(&caller, job(1), Credits::ZERO).await.expect("two of two");
    let error = keys.reserve(&caller, job(2), Credits::ZERO).await.expect_err("a third");
    assert_eq!((error.status, error.retry_after_s), (429, Some(1)));
    first.settle(Credits::ZERO);
    drop(second);
    assert!(keys.reserve(&caller, job(3), Credits::ZERO).await.is_ok());
}
