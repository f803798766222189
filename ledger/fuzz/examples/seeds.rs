//! Writes the seeds of every target from the frozen vectors: `cargo run --example seeds`, in this folder.
//! Invariant: the same vectors give the same files, so that the committed ones can be compared.

use std::fs;
use std::path::Path;

use spillway_ledger::{
    Credits, Digest, JobId, NodeId, Price, SessionId, Signature, Signed, SignedBytes, Usage, Voucher, encode,
};
use spillway_ledger_fuzz::{START_MS, cast};
use spillway_protocol::record::{Earning, Paying, Record, Spending};
use spillway_protocol::wire::{Abort, Frame, Refusal};

const VECTORS: &str = include_str!("../../src/tests/vectors.txt");
/// What lies before a signed document's bytes.
const ENVELOPE_BYTES: usize = 32 + 64 + 8;

/// A seed's target, name and bytes.
type Seed = (&'static str, String, Vec<u8>);

fn main() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds");
    for (target, name, bytes) in of_vectors().into_iter().chain(of_records()) {
        let folder = seeds.join(target);
        fs::create_dir_all(&folder).expect("the folder can be made");
        fs::write(folder.join(name), bytes).expect("the file can be written");
    }
}

/// Every frozen document, in its envelope and out of it.
fn of_vectors() -> Vec<Seed> {
    let mut seeds = Vec::new();
    for (name, text) in VECTORS.lines().filter_map(|line| line.split_once(' ')) {
        let bytes = hex::decode(text).expect("vectors are hexadecimal");
        let target = match name {
            "voucher" => "voucher",
            "receipt-co-signed" => "receipt",
            "vote" | "proposal" | "closing" => "vote",
            "block-certified" => "block",
            "genesis" => "genesis",
            _ if name.starts_with("proof-") => "proof",
            _ if name.starts_with("entry-") && bytes.len() > ENVELOPE_BYTES => "entry",
            _ => continue,
        };
        let mut put = |target, name: &str, bytes: &[u8]| seeds.push((target, name.to_owned(), bytes.to_vec()));
        match target {
            "block" => {
                // The header alone is one of the smaller documents; a stored row is the block.
                put("vote", "header", &bytes[..184]);
                for which in [2_u8, 3, 4] {
                    put("stored", &format!("row-{which}"), &[&[which], &bytes[..]].concat());
                }
            }
            "genesis" => {
                put("stored", "genesis", &[&[1], &bytes[..]].concat());
                // What takes the most memory for its size.
                let text = String::from_utf8(bytes.clone()).expect("JSON is text");
                let many = format!("\"bootstrap\":[{}", "\"\",".repeat(1_000));
                put("genesis", "many-addresses", text.replace("\"bootstrap\":[", &many).as_bytes());
            }
            "receipt" => put("receipt", "receipt-signed", &bytes[..bytes.len() - 96]),
            "voucher" | "vote" | "entry" | "proof" => {}
            _ => unreachable!("every target above"),
        }
        if matches!(target, "voucher" | "vote" | "entry") {
            put(target, &format!("{name}-bare"), &bytes[ENVELOPE_BYTES..]);
        }
        if target == "receipt" {
            put(target, "receipt-bare", &bytes[ENVELOPE_BYTES..bytes.len() - 96]);
        }
        put(target, name, &bytes);
    }
    let committee = VECTORS.lines().find_map(|line| line.strip_prefix("committee ")).expect("frozen");
    seeds.push(("vote", "committee".to_owned(), hex::decode(committee).expect("vectors are hexadecimal")));
    seeds.push(("stored", "tip".to_owned(), [&[0_u8][..], &[7; 144]].concat()));
    seeds
}

/// What a node stores and says of the market, which has no frozen vectors here.
fn of_records() -> Vec<Seed> {
    let cast = cast();
    let digest = |text: &str| Digest::of("seed", &[text.as_bytes()]);
    let (session, job) = (SessionId(digest("session")), JobId([7; 16]));
    let [_, _, _, _, consumer, provider, _, voucher_key, ..] = &cast.keys[..] else { unreachable!("thirteen keys") };
    let total = Credits::new(300);
    let voucher = Voucher { network: cast.network, session, sequence: 1, total, input: 3, output: 4 };
    let voucher: SignedBytes = Signed::sign(voucher, voucher_key).to_wire();
    let (price_cap, usage, expires_ms) = (Price::default(), Usage::default(), START_MS);
    let paying = Record::Paying(Paying {
        session,
        provider: provider.account(),
        deposit: total,
        price_cap,
        expires_ms,
        sequence: 1,
        promised: total,
        spent: total,
        usage,
        settled: Credits::ZERO,
    });
    let earning = Record::Earning(Earning {
        session,
        consumer: consumer.account(),
        voucher_key: voucher_key.public(),
        deposit: total,
        price_cap,
        expires_ms,
        voucher: Some(voucher.clone()),
        vouched: total,
        spent: total,
        usage,
        settled: Credits::ZERO,
        receipts: vec![digest("one"), digest("two")],
    });
    let spending = Record::Spending(Spending { job, provider: NodeId(provider.public()), promised: total });
    let receipt = Record::Receipt { job, leg: 1, both: false, bytes: voucher.document.clone() };
    let records = [paying, earning, spending, receipt, Record::PayingOver(session), Record::EarningOver(session)];
    let frames = [
        Frame::Accepted,
        Frame::Refused { refusal: Refusal::Busy, retry_after_ms: 7 },
        Frame::Chunk { sequence: 1, offset: 2, bytes: b"text".to_vec() },
        Frame::Alive { held: 3 },
        Frame::Voucher(voucher.clone()),
        Frame::Done { finish: "stop".to_owned(), receipt: voucher.clone() },
        Frame::Aborted { abort: Abort::Backend, receipt: Some(voucher) },
        Frame::Rejected { status: 400, message: "no".to_owned() },
        Frame::CoSigned(Signature::from_bytes([5; 64])),
    ];
    let records = records.iter().zip(0..).map(|(record, i)| ("record", format!("record-{i}"), record.to_bytes()));
    let frames = frames.iter().zip(0..).map(|(frame, i)| ("record", format!("frame-{i}"), encode(frame)));
    records.chain(frames).collect()
}
