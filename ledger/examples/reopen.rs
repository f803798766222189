//! How long a ledger takes to open after a kill, and what redb's quick-repair changes about that.
//!
//! `cargo run --release -p spillway-ledger --example reopen -- [blocks]`, 100,000 by default, of one settlement each.
//!
//! A child makes the blocks and is killed (SIGKILL). Each opening is timed on a copy of what it left, twice where redb is
//! opened bare: with its own settings, and with quick-repair on the last commit before the kill. Figures: `docs/storage.md`.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use redb::{Database, TableDefinition};
use spillway_ledger::chain::LEDGER_FILE;
use spillway_ledger::*;

const START_MS: u64 = 1_700_000_000_000;

fn key(number: u8) -> SecretKey {
    SecretKey::generate([number; 32])
}

fn genesis() -> Genesis {
    Genesis {
        name: "reopen".to_owned(),
        time_ms: START_MS,
        issuer: key(1).account(),
        committee: vec![key(2).public()],
        treasury: key(5).account(),
        validators: key(6).account(),
        split: Split::default(),
        grace_ms: 1_000,
        mint_max_per_epoch: Credits::MAX,
        epoch_blocks: 1_000,
        validator_bond: Credits::new(1_000),
        unbond_ms: 1_000,
        payout_min: Credits::new(1),
        bootstrap: Vec::new(),
    }
}

fn entry(key: &SecretKey, nonce: u64, expires_height: u64, action: Action) -> Signed<Entry> {
    let mut business = [0; 16];
    business[..8].copy_from_slice(&nonce.to_le_bytes());
    let network = genesis().network_id();
    Signed::sign(Entry { network, account: key.account(), nonce, expires_height, business, action }, key)
}

/// Makes `blocks` blocks, says so, and waits to be killed.
fn write(folder: &Path, blocks: u64) {
    let mut solo = Solo::open(folder, &genesis(), key(2)).expect("opens");
    let (consumer, provider) = (key(3), key(4));
    let mint = Action::Mint { to: consumer.account(), amount: Credits::new(1 << 50), reference: "reopen".to_owned() };
    let open = Action::Open {
        provider: provider.account(),
        gateway: key(7).account(),
        voucher_key: key(8).public(),
        deposit: Credits::new(1 << 40),
        price_cap: Price::default(),
        expires_ms: START_MS + 1_000,
    };
    for entry in [entry(&key(1), 0, 100, mint), entry(&consumer, 0, 100, open)] {
        solo.submit(entry).expect("queued");
        solo.produce(START_MS).expect("written").expect("a block");
    }
    let network = genesis().network_id();
    let session = SessionId::derive(&network, &consumer.account(), 0);
    for number in 0..blocks - 2 {
        let total = Credits::new((number + 1) * 1_000);
        let voucher = Voucher { network, session, sequence: number, total, input: 0, output: 0 };
        let action = Action::Settle {
            voucher: Signed::sign(voucher, &key(8)).to_wire(),
            claim: total,
            usage: Usage::default(),
            receipts: merkle_root(&[]),
            last: false,
        };
        solo.submit(entry(&provider, number, number + 100, action)).expect("queued");
        solo.produce(START_MS).expect("written").expect("a block");
    }
    println!("written");
    loop {
        std::thread::park();
    }
}

/// Starts this program to do `words`, and kills it once it has said that it is done.
fn kill(words: &[&str]) {
    let this = std::env::current_exe().expect("this program");
    let mut child = Command::new(this).args(words).stdout(Stdio::piped()).spawn().expect("a child");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines();
    let said = lines.next().expect("it says something").expect("text");
    assert_eq!(said, "written");
    child.kill().expect("SIGKILL");
    child.wait().expect("gone");
}

const EXTRA: TableDefinition<&[u8], &[u8]> = TableDefinition::new("meta");

fn bare(folder: &Path, check: bool) -> Database {
    let mut builder = Database::builder();
    builder.set_check_integrity_on_open(check);
    builder.open(folder.join(LEDGER_FILE)).expect("opens")
}

/// One more commit, with quick-repair or without; gives its time in milliseconds.
fn commit(database: &Database, number: u32, quick: bool) -> f64 {
    let start = Instant::now();
    let mut transaction = database.begin_write().expect("begins");
    transaction.set_quick_repair(quick);
    let mut table = transaction.open_table(EXTRA).expect("there");
    table.insert(number.to_be_bytes().as_slice(), [0; 700].as_slice()).expect("inserted");
    drop(table);
    transaction.commit().expect("written");
    start.elapsed().as_secs_f64() * 1_000.0
}

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", folder, blocks] => write(Path::new(folder), blocks.parse().expect("a number")),
        ["commit", folder, quick] => {
            let database = bare(Path::new(folder), false);
            for number in 0..10 {
                commit(&database, number, quick == "quick" && number == 9);
            }
            println!("written");
            loop {
                std::thread::park();
            }
        }
        [] => measure(100_000),
        [blocks] => measure(blocks.parse().expect("a number of blocks")),
        _ => panic!("usage: reopen [blocks]"),
    }
}

fn measure(blocks: u64) {
    let work = tempfile::tempdir().expect("a temporary folder");
    let killed = work.path().join("killed");
    let path = |folder: &Path| folder.to_str().expect("text").to_owned();
    let start = Instant::now();
    kill(&["write", &path(&killed), &blocks.to_string()]);
    let size = std::fs::metadata(killed.join(LEDGER_FILE)).expect("there").len();
    println!("{blocks} blocks of one settlement, {} MiB, in {:.0} s", size >> 20, start.elapsed().as_secs_f64());

    let copy = |from: &Path, name: &str| {
        let to = work.path().join(name);
        std::fs::create_dir_all(&to).expect("made");
        for file in std::fs::read_dir(from).expect("a folder") {
            let file = file.expect("read");
            std::fs::copy(file.path(), to.join(file.file_name())).expect("copied");
        }
        to
    };
    let time = |what: &str, folder: &Path, open: &dyn Fn(&Path)| {
        // The best of three, each on a copy of its own; the file is in memory.
        let best = (0..3).map(|number| {
            let folder = copy(folder, &format!("copy-{number}"));
            let start = Instant::now();
            open(&folder);
            let seconds = start.elapsed().as_secs_f64();
            std::fs::remove_dir_all(folder).expect("removed");
            seconds
        });
        println!("{:>9.3} s  {what}", best.fold(f64::MAX, f64::min));
    };
    // What a database does when it is closed is not the opening's time.
    let forget = |database: Database| std::mem::forget(database);
    let store = |folder: &Path| std::mem::forget(Store::open(folder.join(LEDGER_FILE)).expect("opens"));

    for (quick, name) in [("plain", "an ordinary commit"), ("quick", "a quick-repair commit")] {
        let folder = copy(&killed, quick);
        kill(&["commit", &path(&folder), quick]);
        println!("killed after {name}:");
        time("redb, without its check", &folder, &|folder| forget(bare(folder, false)));
        time("redb, with its check", &folder, &|folder| forget(bare(folder, true)));
    }
    println!("killed while it was open:");
    time("the store, as a node opens it", &killed, &store);
    time("the ledger, as a node opens it: the store, and every block executed", &killed, &|folder| {
        drop(Solo::open(folder, &genesis(), key(2)).expect("opens"));
    });
    time("verify: every signature as well", &killed, &|folder| {
        assert_eq!(verify_folder(folder).expect("verifies").blocks, blocks);
    });
    let closed = copy(&killed, "closed");
    drop(Store::open(closed.join(LEDGER_FILE)).expect("opens"));
    println!("closed:");
    time("the store, as a node opens it", &closed, &store);

    let folder = copy(&killed, "commits");
    let database = bare(&folder, false);
    for quick in [false, true] {
        let mut times: Vec<f64> = (0..200).map(|number| commit(&database, number, quick)).collect();
        times.sort_by(f64::total_cmp);
        let name = if quick { "with quick-repair" } else { "ordinary" };
        println!("a commit, {name}: median {:.2} ms, highest of 200 {:.2} ms", times[100], times[199]);
    }
}
