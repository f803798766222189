//! Says of each file of a corpus what the ledger's decoders say of it, for the second implementation to say the same:
//! `cargo run --example verdicts -- CORPUS >FILE`, then `scripts/formats.sh --verdicts FILE`.
//! One line each: the decoder's name, 1 where it accepts or 0, the bytes.

use std::fs;
use std::path::Path;

use spillway_ledger::{
    CertifiedBlock, Closing, CoSigned, Entry, Genesis, Proof, Proposal, Receipt, Signed, ValidatorSet, Vote, Voucher,
    decode,
};

/// A target, a decoder's name, and whether it accepts some bytes.
type Decoder = (&'static str, &'static str, fn(&[u8]) -> bool);

const DECODERS: [Decoder; 14] = [
    ("voucher", "voucher", |bytes| decode::<Voucher>(bytes).is_ok()),
    ("voucher", "signed-voucher", |bytes| Signed::<Voucher>::from_bytes(bytes).is_ok()),
    ("receipt", "receipt", |bytes| decode::<Receipt>(bytes).is_ok()),
    ("receipt", "co-signed", |bytes| CoSigned::from_bytes(bytes).is_ok()),
    ("entry", "entry", |bytes| decode::<Entry>(bytes).is_ok()),
    ("entry", "signed-entry", |bytes| Signed::<Entry>::from_bytes(bytes).is_ok()),
    ("vote", "vote", |bytes| decode::<Vote>(bytes).is_ok()),
    ("vote", "proposal", |bytes| decode::<Proposal>(bytes).is_ok()),
    ("vote", "closing", |bytes| decode::<Closing>(bytes).is_ok()),
    ("vote", "committee", |bytes| decode::<ValidatorSet>(bytes).is_ok()),
    ("block", "block", |bytes| decode::<CertifiedBlock>(bytes).is_ok()),
    ("proof", "proof", |bytes| decode::<Proof>(bytes).is_ok()),
    ("proof", "verified-proof", |bytes| Proof::verify_bytes(bytes).is_ok()),
    ("genesis", "genesis", is_genesis),
];

/// A valid genesis, written the one way that a proof may have it.
fn is_genesis(bytes: &[u8]) -> bool {
    let Some(genesis) = std::str::from_utf8(bytes).ok().and_then(|text| serde_json::from_str::<Genesis>(text).ok())
    else {
        return false;
    };
    genesis.validate().is_ok() && serde_json::to_vec(&genesis).is_ok_and(|written| written == bytes)
}

fn main() {
    let corpus = std::env::args().nth(1).expect("a folder with a folder for each target");
    for (target, name, accepts) in DECODERS {
        let Ok(files) = fs::read_dir(Path::new(&corpus).join(target)) else { continue };
        let mut files: Vec<_> = files.map(|file| file.expect("the folder is readable").path()).collect();
        files.sort();
        for file in files {
            let bytes = fs::read(file).expect("the file is readable");
            println!("{name} {} {}", u8::from(accepts(&bytes)), hex::encode(&bytes));
        }
    }
}
