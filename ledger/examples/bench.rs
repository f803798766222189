//! What the ledger can do here and now, each figure beside the limit that was measured in the same minute.
//!
//! `cargo run --release -p spillway-ledger --example bench -- [--settlements N] [--sessions N] [--json]`
//!
//! Signing is not timed: consumers and providers do that elsewhere. Everything the ledger does is: decoding each entry's
//! envelope, both signatures, the rules, the state root, and a durable write for each block of up to 1,024. While one
//! block is written, the next one's signatures are verified, as a node does it.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::num::NonZero;
use std::path::Path;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Instant;

use spillway_ledger::*;

const START_MS: u64 = 1_700_000_000_000;
/// How often the limit and the work take turns, so that a busy minute hits both.
const ROUNDS: u64 = 5;

struct Asked {
    settlements: u64,
    sessions: u64,
    json: bool,
}

fn asked() -> Asked {
    let mut asked = Asked { settlements: 100_000, sessions: 1_000, json: false };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        let mut number = || words.next().and_then(|text| text.parse().ok()).unwrap_or_else(|| usage());
        match word.as_str() {
            "--settlements" => asked.settlements = number(),
            "--sessions" => asked.sessions = number(),
            "--json" => asked.json = true,
            _ => usage(),
        }
    }
    if !(1..=1_024).contains(&asked.sessions) || asked.settlements < ROUNDS * 1_024 {
        usage()
    }
    asked
}

fn usage() -> ! {
    eprintln!("usage: bench [--settlements N, at least 5120] [--sessions 1..1024] [--json]");
    std::process::exit(2)
}

fn key(number: u8) -> SecretKey {
    SecretKey::generate([number; 32])
}

fn genesis() -> Genesis {
    Genesis {
        name: "bench".to_owned(),
        time_ms: START_MS,
        issuer: key(1).account(),
        committee: vec![key(2).public()],
        treasury: key(5).account(),
        validators: key(6).account(),
        split: Split::default(),
        grace_ms: 1_000,
        mint_max_per_epoch: Credits::MAX,
        epoch_blocks: 1_000,
        validator_bond: Credits::ZERO,
        unbond_ms: 0,
        payout_min: Credits::ZERO,
        bootstrap: Vec::new(),
    }
}

fn entry(genesis: &Genesis, key: &SecretKey, nonce: u64, action: Action) -> SignedBytes {
    let mut business = [0; 16];
    business[..8].copy_from_slice(&nonce.to_le_bytes());
    let network = genesis.network_id();
    let entry = Entry { network, account: key.account(), nonce, expires_height: 10_000, business, action };
    Signed::sign(entry, key).to_wire()
}

/// Runs `work` on parts of `items`, one a core.
fn on_all_cores<T: Sync, U: Send>(items: &[T], work: impl Fn(usize, &T) -> U + Sync) -> Vec<U> {
    let cores = thread::available_parallelism().map_or(1, NonZero::get);
    let size = items.len().div_ceil(cores).max(1);
    let work = &work;
    thread::scope(|scope| {
        let each = |(part, items): (usize, &'_ [T])| {
            items.iter().enumerate().map(|(at, item)| work(part * size + at, item)).collect::<Vec<U>>()
        };
        let parts = items.chunks(size).enumerate();
        let running: Vec<_> = parts.map(|part| scope.spawn(move || each(part))).collect();
        running.into_iter().flat_map(|part| part.join().expect("no panic")).collect()
    })
}

/// Hands `entries` to the authority in blocks of 1,024.
fn run(solo: &mut Solo, entries: &[SignedBytes]) {
    thread::scope(|scope| {
        let (ready, screened) = sync_channel(1);
        scope.spawn(move || {
            for block in entries.chunks(block::ENTRIES_MAX) {
                ready.send(Screened::open_all(block)).expect("the writer goes on");
            }
        });
        for block in screened {
            let count = block.len();
            for entry in block {
                solo.submit_screened(entry.expect("signed")).expect("queued");
            }
            let committed = solo.produce(START_MS).expect("written").expect("a block");
            assert_eq!(committed.applied.len(), count);
        }
    });
}

fn settlement(genesis: &Genesis, sessions: u64, number: u64) -> SignedBytes {
    let (session, round) = (number % sessions, number / sessions);
    let network = genesis.network_id();
    let session = SessionId::derive(&network, &key(3).account(), session);
    let total = Credits::new((round + 1) * 1_000);
    let voucher = Voucher { network, session, sequence: round, total, input: 0, output: 0 };
    let voucher = Signed::sign(voucher, &key(8)).to_wire();
    let (usage, receipts) = (Usage::default(), merkle_root(&[]));
    entry(genesis, &key(4), number, Action::Settle { voucher, claim: total, usage, receipts, last: false })
}

/// Both of a settlement's signatures, and nothing else; decoded keys at hand, as the best case has it.
fn limit(entries: &[SignedBytes]) -> f64 {
    let prepared: Vec<_> = entries
        .iter()
        .map(|wire| {
            let document: Entry = decode(&wire.document).expect("an entry");
            let Action::Settle { voucher, .. } = document.action else { unreachable!("all are settlements") };
            let raw = |wire: &SignedBytes, domain: &str| {
                let key = ed25519_dalek::VerifyingKey::from_bytes(wire.signer.as_bytes()).expect("a key");
                let signature = ed25519_dalek::Signature::from_bytes(wire.signature.as_bytes());
                (key, signature, [domain.as_bytes(), &[0], &wire.document].concat())
            };
            [raw(wire, Entry::DOMAIN), raw(&voucher, Voucher::DOMAIN)]
        })
        .collect();
    let start = Instant::now();
    let held = on_all_cores(&prepared, |_, both| {
        both.iter().all(|(key, signature, message)| key.verify_strict(message, signature).is_ok())
    });
    assert!(held.into_iter().all(|held| held));
    start.elapsed().as_secs_f64()
}

fn megabytes(path: &Path) -> f64 {
    std::fs::metadata(path).expect("there").len() as f64 / 1e6
}

/// What the system says of this process's memory, in MB; 0 where it says nothing.
fn memory(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
    line.trim_start_matches(':').trim().trim_end_matches(" kB").parse::<f64>().unwrap_or(0.0) / 1e3
}

fn main() {
    let Asked { settlements, sessions, json } = asked();
    let genesis = genesis();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut solo = Solo::open(folder.path(), &genesis, key(2)).expect("opens");

    let mint = Action::Mint { to: key(3).account(), amount: Credits::new(1 << 50), reference: "bench".to_owned() };
    run(&mut solo, &[entry(&genesis, &key(1), 0, mint)]);
    let opens: Vec<SignedBytes> = (0..sessions)
        .map(|nonce| {
            let action = Action::Open {
                provider: key(4).account(),
                gateway: key(7).account(),
                voucher_key: key(8).public(),
                deposit: Credits::new(1 << 39),
                price_cap: Price::default(),
                expires_ms: START_MS + 1_000,
            };
            entry(&genesis, &key(3), nonce, action)
        })
        .collect();
    run(&mut solo, &opens);

    // The limit and the work take turns.
    let (mut at_limit, mut at_work, mut commits) = (0.0, 0.0, 0.0);
    let before = megabytes(&folder.path().join(chain::LEDGER_FILE));
    let mut bytes = 0;
    for round in 0..ROUNDS {
        let numbers: Vec<u64> = (settlements * round / ROUNDS..settlements * (round + 1) / ROUNDS).collect();
        let part = on_all_cores(&numbers, |_, number| settlement(&genesis, sessions, *number));
        bytes += part.iter().map(SignedBytes::encoded_len).sum::<usize>();
        at_limit += limit(&part);
        let start = Instant::now();
        run(&mut solo, &part);
        at_work += start.elapsed().as_secs_f64();
        let start = Instant::now();
        raw_commits(folder.path(), &part);
        commits += start.elapsed().as_secs_f64();
    }
    let count = settlements as f64;
    let grown = (megabytes(&folder.path().join(chain::LEDGER_FILE)) - before).max(0.0);

    let start = Instant::now();
    let proofs = 1_000;
    let proof = solo.prove_account(&key(4).account()).expect("known");
    let encoded = encode(&proof);
    for _ in 0..proofs {
        Proof::verify_bytes(&encoded).expect("holds");
    }
    let proof_us = start.elapsed().as_secs_f64() / f64::from(proofs) * 1e6;

    let (blocks, tip) = (solo.height(), solo.tip());
    drop(solo);
    let before_replay = memory("VmRSS");
    let start = Instant::now();
    let solo = Solo::open(folder.path(), &genesis, key(2)).expect("opens");
    assert_eq!((solo.height(), solo.tip()), (blocks, tip));
    let reopen = start.elapsed().as_secs_f64();
    let book = memory("VmRSS") - before_replay;
    drop(solo);
    let start = Instant::now();
    let verified = verify_folder(folder.path()).expect("verifies");
    let replay = start.elapsed().as_secs_f64();

    let entries = verified.entries as f64;
    let report = serde_json::json!({
        "cores": thread::available_parallelism().map_or(1, NonZero::get),
        "settlements": settlements,
        "limit_per_s": (count / at_limit).round(),
        "settled_per_s": (count / at_work).round(),
        "of_limit": (at_limit / at_work * 1e3).round() / 1e3,
        "raw_store_per_s": (count / commits).round(),
        "entry_bytes": bytes / settlements as usize,
        "ledger_bytes_per_settlement": (grown * 1e6 / count).round(),
        "replay_entries": verified.entries,
        "reopen_s": (reopen * 1e2).round() / 1e2,
        "reopen_entries_per_s": (entries / reopen).round(),
        "verify_s": (replay * 1e2).round() / 1e2,
        "verify_entries_per_s": (entries / replay).round(),
        "book_mb": book.round(),
        "peak_mb": memory("VmHWM").round(),
        "proof_bytes": encoded.len(),
        "proof_check_us": proof_us.round(),
    });
    if json {
        return println!("{report}");
    }
    for (name, value) in report.as_object().expect("an object") {
        println!("{name:28} {value}");
    }
}

/// The same bytes in the same batches through the store alone: what a durable write costs.
fn raw_commits(folder: &Path, entries: &[SignedBytes]) {
    let path = folder.join("raw.redb");
    let store = Store::open(&path).expect("opens");
    for (at, block) in (0_u64..).zip(entries.chunks(block::ENTRIES_MAX)) {
        let bytes: Vec<u8> = block.iter().flat_map(|wire| wire.document.iter().copied().chain([0; 104])).collect();
        let mut batch = Batch::new();
        batch.put(Table::Blocks, at.to_be_bytes(), bytes);
        store.commit(batch).expect("written");
    }
    drop(store);
    std::fs::remove_file(path).expect("there");
}
