//! A committee of one within this process: the interface that an embedding program uses, from start to stop and again.

use std::net::TcpListener;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use spillway_bft::{Host, Settings, StartError, Validator, lock};
use spillway_ledger::{
    Account, Action, Committed, Credits, Entry, Evidence, Genesis, Replica, SecretKey, Signed, Split, verify_folder,
};

/// How long a block may take before the test gives up.
const PATIENCE: Duration = Duration::from_secs(60);

struct Alone {
    replica: Mutex<Replica>,
    committed: Mutex<mpsc::Sender<Committed>>,
}

impl Host for Alone {
    fn replica(&self) -> &Mutex<Replica> {
        &self.replica
    }

    fn committed(&self, committed: &Committed) {
        let _nobody_may_listen = self.committed.lock().expect("nobody panics with it").send(committed.clone());
    }

    fn evidence(&self, evidence: Evidence) {
        panic!("nobody is there to lie: {evidence:?}");
    }

    fn now_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
        u64::try_from(now.as_millis()).expect("not so soon")
    }
}

fn key(number: u8) -> SecretKey {
    SecretKey::generate([number; 32])
}

fn genesis() -> Genesis {
    Genesis {
        name: "alone".to_owned(),
        time_ms: 1_700_000_000_000,
        issuer: key(1).account(),
        committee: vec![key(2).public()],
        treasury: key(3).account(),
        validators: key(4).account(),
        split: Split::default(),
        grace_ms: 1_000,
        mint_max_per_epoch: Credits::MAX,
        epoch_blocks: 100,
        validator_bond: Credits::new(1),
        unbond_ms: 1_000,
        payout_min: Credits::new(1),
        bootstrap: Vec::new(),
    }
}

fn mint(nonce: u64) -> Signed<Entry> {
    let issuer = key(1);
    let mut business = [0; 16];
    business[..8].copy_from_slice(&nonce.to_le_bytes());
    let action = Action::Mint { to: key(5).account(), amount: Credits::new(7), reference: format!("deposit {nonce}") };
    let (network, account) = (genesis().network_id(), Account(issuer.public()));
    Signed::sign(Entry { network, account, nonce, expires_height: 1_000, business, action }, &issuer)
}

fn open(folder: &Path) -> (Arc<Alone>, mpsc::Receiver<Committed>) {
    let (sender, committed) = mpsc::channel();
    let replica = Replica::open(folder.join("books"), &genesis()).expect("opens");
    (Arc::new(Alone { replica: Mutex::new(replica), committed: Mutex::new(sender) }), committed)
}

fn settings(folder: &Path, port: u16) -> Settings {
    let mut settings = Settings::new(format!("/ip4/127.0.0.1/tcp/{port}"), Vec::new(), folder.join("log"));
    settings.idle_ms = 50;
    settings
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_committee_of_one_decides_stops_and_goes_on() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let port = TcpListener::bind("127.0.0.1:0").and_then(|bound| bound.local_addr()).expect("a free port").port();
    let mut height = 0;
    for nonce in 0..2 {
        let (host, committed) = open(folder.path());
        assert!(lock(host.replica()).height() >= height, "the books go on where they were");
        let validator = Validator::start(settings(folder.path(), port), key(2), host.clone()).await.expect("starts");
        let mint = mint(nonce);
        lock(host.replica()).submit(mint.clone()).expect("taken");
        validator.wake();
        let block = tokio::task::spawn_blocking(move || {
            loop {
                let committed = committed.recv_timeout(PATIENCE).expect("a block in time");
                if committed.block.block.entries.contains(mint.wire()) {
                    return (committed.block, committed.applied.len());
                }
            }
        });
        let (block, applied) = block.await.expect("it does not panic");
        assert_eq!(applied, 1);
        assert_eq!(block.certificate.signatures.len(), 1);
        validator.stop().await;
        height = lock(host.replica()).height();
        assert_eq!(lock(host.replica()).book().balance(&key(5).account()), Credits::new(7 * (nonce + 1)));
    }
    assert_eq!(verify_folder(folder.path().join("books")).expect("verifies").height, height);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_validator_from_starting_is_said() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (host, _committed) = open(folder.path());
    let bad = Settings::new("/dns4/example.org/tcp/1", Vec::new(), folder.path().join("log"));
    let error = Validator::start(bad, key(2), host.clone()).await.expect_err("a name is no address");
    assert!(error.to_string().contains("`listen`"), "{error}");

    let file = folder.path().join("file");
    std::fs::write(&file, "no folder").expect("written");
    let bad = Settings::new("/ip4/127.0.0.1/tcp/0", Vec::new(), file.join("log"));
    let error = Validator::start(bad, key(2), host).await.expect_err("a file is no folder");
    assert!(matches!(error, StartError::Folder(_)), "{error}");
}
