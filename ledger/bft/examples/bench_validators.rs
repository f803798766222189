//! How many settlements four validators on one machine decide, and how long each takes from its client to the disk.
//!
//! `cargo build --release -p spillway-bft --examples`, then
//! `target/release/examples/bench_validators [SETTLEMENTS] [OUTSTANDING,...]`. One JSON line for each number of
//! outstanding settlements, the limit of the same machine in the same minute first.
//!
//! Signing is not timed: consumers and providers do that elsewhere. All else is: clients' sockets, both signatures of
//! each settlement at each of the four validators, the rules, the votes, and the durable block.
//!
//! On a machine that others use too, look at the processor time of a settlement at all four validators together
//! (`cpu_us_per_settlement`) and how much of it is the eight signatures (`ratio_to_limit_by_cpu`).

#[expect(dead_code, reason = "the campaigns use the rest")]
#[path = "../tests/committee/mod.rs"]
mod committee;

use std::time::{Duration, Instant};

use serde_json::json;
use spillway_ledger::{
    Action, Credits, Document, Price, SecretKey, SessionId, Signed, SignedBytes, Usage, Voucher, merkle_root,
};

use committee::client::Client;
use committee::{Committee, key, now_ms, processor_seconds};

/// Who is paid; each talks to one validator.
const PROVIDERS: u8 = 16;
/// Open sessions of each provider.
const SESSIONS: u64 = 64;

fn main() {
    let mut words = std::env::args().skip(1);
    let settlements: u64 = words.next().map_or(16_000, |word| word.parse().expect("a number"));
    let outstanding = words.next().unwrap_or_else(|| "64,256,1024,2048".to_owned());
    let windows: Vec<u64> = outstanding.split(',').map(|word| word.parse().expect("numbers")).collect();

    let mut committee = Committee::four();
    let consumers: Vec<SecretKey> = (0..PROVIDERS).map(|number| key(100 + number)).collect();
    let providers: Vec<SecretKey> = (0..PROVIDERS).map(|number| key(130 + number)).collect();
    committee.fund(&consumers, 1 << 50);
    let opened = open_sessions(&committee, &consumers, &providers);

    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (rate, verify_us) = verify_rate(&opened);
    // Each of four validators verifies both signatures of each settlement; they share this machine's cores.
    let limit = rate * cores as f64 / (2.0 * 4.0);
    println!(
        "{}",
        json!({
            "verify_strict_per_s_and_core": rate, "verify_strict_cpu_us": verify_us, "cores": cores,
            "limit_per_s": limit, "limit_per_s_if_quiet": cores as f64 * 1e6 / (8.0 * verify_us),
        })
    );

    let mut nonces = 0;
    for window in windows {
        let each = settlements / u64::from(PROVIDERS);
        let lists: Vec<Vec<SignedBytes>> = consumers
            .iter()
            .zip(&providers)
            .map(|(consumer, provider)| {
                (nonces..nonces + each).map(|nonce| settle(&committee, consumer, provider, nonce)).collect()
            })
            .collect();
        nonces += each;
        let before = committee.status(0).expect("it runs");
        let used = || (0..4).map(|index| committee.processor_seconds(index)).sum::<f64>();
        let (start, used_before) = (Instant::now(), used());
        let mut latencies = run(&committee, &lists, (window / 4).max(1));
        let seconds = start.elapsed().as_secs_f64();
        let cpu_us = (used() - used_before) * 1e6 / latencies.len() as f64;
        let after = committee.status(0).expect("it runs");
        latencies.sort_unstable();
        let at = |share: f64| latencies[((latencies.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
        let per_s = latencies.len() as f64 / seconds;
        println!(
            "{}",
            json!({
                "outstanding": window, "settlements": latencies.len(), "seconds": seconds, "per_s": per_s,
                "p50_ms": at(0.5), "p99_ms": at(0.99), "blocks": after.height - before.height,
                "extra_rounds": after.extra_rounds - before.extra_rounds, "ratio_to_limit": per_s / limit,
                "cpu_us_per_settlement": cpu_us, "ratio_to_limit_by_cpu": 8.0 * verify_us / cpu_us,
            })
        );
    }
}

/// Opens each provider's sessions; gives one of the entries.
fn open_sessions(committee: &Committee, consumers: &[SecretKey], providers: &[SecretKey]) -> SignedBytes {
    let mut client = Client::connect(committee.nodes[0].port).expect("it runs");
    let mut last = None;
    for (consumer, provider) in consumers.iter().zip(providers) {
        for nonce in 0..SESSIONS {
            let action = Action::Open {
                provider: provider.account(),
                gateway: key(180).account(),
                voucher_key: key(181).public(),
                deposit: Credits::new(1 << 32),
                price_cap: Price::default(),
                expires_ms: now_ms() + 3_600_000,
            };
            let open = committee.entry(consumer, nonce, 1, action);
            client.send(&open).expect("sent");
            last = Some(open);
        }
        for _ in 0..SESSIONS {
            let (place, taken) = client.answer().expect("an answer");
            taken.unwrap_or_else(|reason| panic!("session {place}: {reason}"));
        }
    }
    last.expect("there are providers")
}

fn settle(committee: &Committee, consumer: &SecretKey, provider: &SecretKey, nonce: u64) -> SignedBytes {
    let network = committee.network();
    let (session, time) = (nonce % SESSIONS, nonce / SESSIONS);
    let total = Credits::new((time + 1) * 1_000);
    let session = SessionId::derive(&network, &consumer.account(), session);
    let voucher = Voucher { network, session, sequence: time, total, input: 0, output: 0 };
    let action = Action::Settle {
        voucher: Signed::sign(voucher, &key(181)).to_wire(),
        claim: total,
        usage: Usage::default(),
        receipts: merkle_root(&[]),
        last: false,
    };
    committee.entry(provider, nonce, 1, action)
}

/// Signatures that one core verifies in a second, now; and the processor time of one, in microseconds, which other work
/// on the machine does not change.
fn verify_rate(entry: &SignedBytes) -> (f64, f64) {
    let (start, used, mut count) = (Instant::now(), processor_seconds("self"), 0_u32);
    while start.elapsed() < Duration::from_secs(2) {
        for _ in 0..64 {
            let holds = entry.signer.verify(spillway_ledger::Entry::DOMAIN, &entry.document, &entry.signature);
            assert!(holds, "it was signed");
        }
        count += 64;
    }
    let (wall, used) = (start.elapsed().as_secs_f64(), processor_seconds("self") - used);
    (f64::from(count) / wall, used * 1e6 / f64::from(count))
}

/// One client for each validator, with `window` settlements outstanding; gives how long each took.
fn run(committee: &Committee, lists: &[Vec<SignedBytes>], window: u64) -> Vec<Duration> {
    let bodies: Vec<Vec<&SignedBytes>> = (0..4)
        .map(|validator| {
            let own: Vec<&Vec<SignedBytes>> = lists.iter().skip(validator).step_by(4).collect();
            // The providers of one client take turns.
            (0..own[0].len()).flat_map(|place| own.iter().map(move |list| &list[place])).collect()
        })
        .collect();
    std::thread::scope(|scope| {
        let clients: Vec<_> = bodies
            .iter()
            .zip(&committee.nodes)
            .map(|(entries, node)| {
                scope.spawn(move || {
                    let mut client = Client::connect(node.port).expect("it runs");
                    let (mut sent, mut latencies) = (Vec::with_capacity(entries.len()), Vec::new());
                    while latencies.len() < entries.len() {
                        while sent.len() < entries.len() && (sent.len() - latencies.len()) as u64 <= window {
                            sent.push(Instant::now());
                            client.send(entries[sent.len() - 1]).expect("sent");
                        }
                        let (place, outcome) = client.answer().expect("an answer");
                        outcome.unwrap_or_else(|reason| panic!("settlement {place}: {reason}"));
                        let place = usize::try_from(place).expect("one of ours");
                        latencies.push(sent[place].elapsed());
                    }
                    latencies
                })
            })
            .collect();
        clients.into_iter().flat_map(|client| client.join().expect("a client does not panic")).collect()
    })
}

const _: () = assert!(PROVIDERS.is_multiple_of(4), "each client has as many providers");
