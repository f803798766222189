//! How fast one authority settles, and how fast a folder is replayed and verified.
//!
//! `cargo run --release -p spillway-ledger --example speed -- [settlements] [sessions]`
//!
//! Signing is not timed: consumers and providers do that elsewhere. Everything the ledger does is: opening each entry's
//! envelope, both signatures, the rules, the state root, and a durable write for each block of 1,024.
#![expect(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

use std::time::Instant;

use spillway_ledger::*;

const START_MS: u64 = 1_700_000_000_000;

fn entry(genesis: &Genesis, key: &SecretKey, nonce: u64, action: Action) -> Signed<Entry> {
    let mut business = [0; 16];
    business[..8].copy_from_slice(&nonce.to_le_bytes());
    let network = genesis.network_id();
    Signed::sign(Entry { network, account: key.account(), nonce, expires_height: 10_000, business, action }, key)
}

/// Hands `entries` to the authority in blocks of 1,024; gives the seconds that took.
fn run(solo: &mut Solo, entries: &[Vec<u8>]) -> f64 {
    let start = Instant::now();
    for block in entries.chunks(block::ENTRIES_MAX) {
        for bytes in block {
            let entry = Signed::<Entry>::from_bytes(bytes).expect("signed");
            solo.submit(entry).expect("queued");
        }
        let committed = solo.produce(START_MS).expect("written").expect("a block");
        assert_eq!(committed.applied.len(), block.len());
    }
    start.elapsed().as_secs_f64()
}

fn main() {
    let mut numbers = std::env::args().skip(1).map(|word| word.parse::<u64>().expect("a number"));
    let settlements = numbers.next().unwrap_or(50_000);
    let sessions = numbers.next().unwrap_or(1_000).clamp(1, 1_024);

    let key = |number: u8| SecretKey::generate([number; 32]);
    let (issuer, authority, consumer, provider) = (key(1), key(2), key(3), key(4));
    let genesis = Genesis {
        name: "speed".to_owned(),
        time_ms: START_MS,
        issuer: issuer.account(),
        committee: vec![authority.public()],
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
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut solo = Solo::open(folder.path(), &genesis, authority.clone()).expect("opens");

    let mint = Action::Mint { to: consumer.account(), amount: Credits::new(1 << 50), reference: "speed".to_owned() };
    run(&mut solo, &[entry(&genesis, &issuer, 0, mint).to_bytes()]);
    let opens = (0..sessions).map(|nonce| {
        let action = Action::Open {
            provider: provider.account(),
            gateway: key(7).account(),
            voucher_key: key(8).public(),
            deposit: Credits::new(1 << 30),
            price_cap: Price::default(),
            expires_ms: START_MS + 1_000,
        };
        entry(&genesis, &consumer, nonce, action).to_bytes()
    });
    run(&mut solo, &opens.collect::<Vec<_>>());

    let settles: Vec<Vec<u8>> = (0..settlements)
        .map(|number| {
            let (session, round) = (number % sessions, number / sessions);
            let total = Credits::new((round + 1) * 1_000);
            let voucher = Voucher {
                network: genesis.network_id(),
                session: SessionId::derive(&genesis.network_id(), &consumer.account(), session),
                sequence: round,
                total,
                input: 0,
                output: 0,
            };
            let action = Action::Settle {
                voucher: Signed::sign(voucher, &key(8)).to_wire(),
                claim: total,
                usage: Usage::default(),
                receipts: merkle_root(&[]),
                last: false,
            };
            entry(&genesis, &provider, number, action).to_bytes()
        })
        .collect();
    let sample = &settles[..settles.len().min(2_000)];
    let start = Instant::now();
    for bytes in sample {
        Signed::<Entry>::from_bytes(bytes).expect("signed");
    }
    let rate = sample.len() as f64 / start.elapsed().as_secs_f64();
    println!("verify   {rate:.0} signatures a second on this core, now; a settlement has two");

    let seconds = run(&mut solo, &settles);
    let rate = settlements as f64 / seconds;
    println!("settle   {settlements} settlements in {seconds:.2} s: {rate:.0} a second, each block durable");

    let (blocks, tip) = (solo.height(), solo.tip());
    drop(solo);
    let size = std::fs::metadata(folder.path().join(chain::LEDGER_FILE)).expect("there").len();
    let start = Instant::now();
    let solo = Solo::open(folder.path(), &genesis, authority).expect("opens");
    assert_eq!((solo.height(), solo.tip()), (blocks, tip));
    drop(solo);
    let seconds = start.elapsed().as_secs_f64();
    let entries = settlements + sessions + 1;
    println!(
        "reopen   {entries} entries, {} MiB in {seconds:.2} s: {:.0} a second",
        size >> 20,
        entries as f64 / seconds
    );

    let start = Instant::now();
    let verified = verify_folder(folder.path()).expect("verifies");
    let seconds = start.elapsed().as_secs_f64();
    println!(
        "replay   {} entries, signatures too, in {seconds:.2} s: {:.0} a second",
        verified.entries,
        entries as f64 / seconds
    );
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    if let Some(line) = status.lines().find(|line| line.starts_with("VmHWM")) {
        println!("memory   {}", line.trim_start_matches("VmHWM:").trim());
    }
}
