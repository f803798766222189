//! The bytes on the wire: frozen, and the same as the bincode crate writes.

use std::collections::BTreeMap;

use serde::Serialize;

use super::*;

/// A receipt with every field different.
fn example_receipt(cast: &Cast) -> Receipt {
    Receipt {
        network: cast.network(),
        session: cast.session(0),
        job: JobId([0x17; 16]),
        leg: 2,
        model: "tiny-llama".to_owned(),
        weights: Digest::of("test", &[b"weights"]),
        kind: "chat".to_owned(),
        prompt: Digest::of("test", &[b"prompt"]),
        transcript: Digest::of("test", &[b"transcript"]),
        usage: Usage { input: 100, cached: 20, output: 300 },
        price: Price { input: Credits::new(1_000_000), cached: Credits::new(250_000), output: Credits::new(4_000_000) },
        cost: Credits::new(1_305),
        first_token_ms: 120,
        total_ms: 4_500,
        finish: "stop".to_owned(),
        time_ms: START_MS + 7,
    }
}

pub(super) fn example_co_signed(cast: &Cast) -> CoSigned {
    CoSigned::co_sign(Signed::sign(example_receipt(cast), &cast.provider), &cast.consumer)
}

/// A block of a mint and an open.
pub(super) fn example_block(cast: &Cast) -> CertifiedBlock {
    let mut replay = replay::Replay::new(&cast.genesis);
    let entries = [cast.mint(0, cast.consumer.account(), 1_000), cast.open(0, 600)];
    for entry in &entries {
        replay.book.apply(entry, 1, START_MS).expect("valid");
    }
    let entries: Vec<SignedBytes> = entries.iter().map(Signed::to_wire).collect();
    let header = replay.seal(&entries, START_MS);
    let certificate = Certificate::solo(header.digest(), &cast.authority);
    CertifiedBlock { block: Block { header, entries }, certificate }
}

fn entries(cast: &Cast) -> [(&'static str, Signed<Entry>); 5] {
    [
        ("entry-mint", cast.mint(3, cast.consumer.account(), 1_000)),
        ("entry-transfer", cast.transfer(&cast.consumer, 4, cast.stranger.account(), 5)),
        ("entry-open", cast.open(0, 600)),
        ("entry-settle", cast.settle(6, cast.session(0), 300, 200, true)),
        ("entry-refund", cast.signed(&cast.consumer, 7, Action::Refund { session: cast.session(0) })),
    ]
}

/// Everything whose bytes other nodes rely on. A change to any line is a change of the protocol.
#[test]
fn bytes_are_as_they_were_frozen() {
    let cast = cast();
    let mut now: BTreeMap<&str, String> = BTreeMap::new();
    let mut put = |name, bytes: &[u8]| {
        now.insert(name, hex::encode(bytes));
    };
    let voucher = Signed::sign(cast.voucher(cast.session(0), 300), &cast.voucher_key);
    put("voucher", &voucher.to_bytes());
    put("voucher-digest", voucher.digest().as_bytes());
    put("receipt-co-signed", &example_co_signed(&cast).to_bytes());
    put("receipt-digest", example_co_signed(&cast).digest().as_bytes());
    for (name, entry) in entries(&cast) {
        put(name, &entry.to_bytes());
    }
    let block = example_block(&cast);
    put("block-certified", &block.to_bytes());
    put("block-digest", block.block.header.digest().as_bytes());
    put("network", cast.network().0.as_bytes());
    put("session", cast.session(0).0.as_bytes());
    let leaves = [Digest::ZERO, cast.network().0, cast.session(0).0];
    put("merkle-root-of-0", merkle_root(&[]).as_bytes());
    put("merkle-root-of-3", merkle_root(&leaves).as_bytes());

    let frozen: BTreeMap<&str, &str> =
        include_str!("vectors.txt").lines().filter_map(|line| line.split_once(' ')).collect();
    let changed: Vec<String> = now
        .iter()
        .filter(|(name, hex)| frozen.get(*name) != Some(&hex.as_str()))
        .map(|(name, hex)| format!("{name} {hex}\n"))
        .collect();
    assert!(changed.is_empty(), "these changed, and are now:\n{}", changed.concat());
    assert_eq!(frozen.len(), now.len(), "every frozen vector is still checked");
}

/// The same types for the bincode crate, which this project does not read peers' bytes with.
mod mirror {
    use super::Serialize;

    pub(super) type Bytes32 = [u8; 32];
    /// serde has no arrays of 64; two halves have the same bytes.
    pub(super) type Bytes64 = ([u8; 32], [u8; 32]);

    #[derive(Serialize)]
    pub(super) struct SignedBytes {
        pub(super) signer: Bytes32,
        pub(super) signature: Bytes64,
        pub(super) document: Vec<u8>,
    }

    #[derive(Serialize)]
    pub(super) struct Voucher {
        pub(super) network: Bytes32,
        pub(super) session: Bytes32,
        pub(super) sequence: u64,
        pub(super) total: u64,
        pub(super) input: u64,
        pub(super) output: u64,
    }

    #[derive(Serialize)]
    pub(super) struct Receipt {
        pub(super) network: Bytes32,
        pub(super) session: Bytes32,
        pub(super) job: [u8; 16],
        pub(super) leg: u32,
        pub(super) model: String,
        pub(super) weights: Bytes32,
        pub(super) kind: String,
        pub(super) prompt: Bytes32,
        pub(super) transcript: Bytes32,
        pub(super) usage: (u64, u64, u64),
        pub(super) price: (u64, u64, u64),
        pub(super) cost: u64,
        pub(super) first_token_ms: u32,
        pub(super) total_ms: u32,
        pub(super) finish: String,
        pub(super) time_ms: u64,
    }

    #[derive(Serialize)]
    pub(super) enum Action {
        Mint {
            to: Bytes32,
            amount: u64,
            reference: String,
        },
        Transfer {
            to: Bytes32,
            amount: u64,
        },
        Open {
            provider: Bytes32,
            gateway: Bytes32,
            voucher_key: Bytes32,
            deposit: u64,
            price_cap: (u64, u64, u64),
            expires_ms: u64,
        },
        Settle {
            voucher: SignedBytes,
            claim: u64,
            usage: (u64, u64, u64),
            receipts: Bytes32,
            last: bool,
        },
        Refund {
            session: Bytes32,
        },
    }

    #[derive(Serialize)]
    pub(super) struct Entry {
        pub(super) network: Bytes32,
        pub(super) account: Bytes32,
        pub(super) nonce: u64,
        pub(super) expires_height: u64,
        pub(super) business: [u8; 16],
        pub(super) action: Action,
    }

    #[derive(Serialize)]
    pub(super) struct CertifiedBlock {
        pub(super) height: u64,
        pub(super) parent: Bytes32,
        pub(super) time_ms: u64,
        pub(super) entries_root: Bytes32,
        pub(super) state_root: Bytes32,
        pub(super) supply: u64,
        pub(super) validators: Bytes32,
        pub(super) entries: Vec<SignedBytes>,
        pub(super) certified: Bytes32,
        pub(super) signatures: Vec<(Bytes32, Bytes64)>,
    }
}

fn halves(signature: &Signature) -> mirror::Bytes64 {
    let (left, right) = signature.as_bytes().split_at(32);
    (left.try_into().expect("32 bytes"), right.try_into().expect("32 bytes"))
}

fn mirror_signed(wire: &SignedBytes) -> mirror::SignedBytes {
    mirror::SignedBytes {
        signer: *wire.signer.as_bytes(),
        signature: halves(&wire.signature),
        document: wire.document.clone(),
    }
}

fn units(usage: &Usage) -> (u64, u64, u64) {
    (usage.input, usage.cached, usage.output)
}

fn prices(price: &Price) -> (u64, u64, u64) {
    (price.input.micro(), price.cached.micro(), price.output.micro())
}

fn mirror_entry(entry: &Entry) -> mirror::Entry {
    let action = match &entry.action {
        Action::Mint { to, amount, reference } => {
            mirror::Action::Mint { to: *to.0.as_bytes(), amount: amount.micro(), reference: reference.clone() }
        }
        Action::Transfer { to, amount } => mirror::Action::Transfer { to: *to.0.as_bytes(), amount: amount.micro() },
        Action::Open { provider, gateway, voucher_key, deposit, price_cap, expires_ms } => mirror::Action::Open {
            provider: *provider.0.as_bytes(),
            gateway: *gateway.0.as_bytes(),
            voucher_key: *voucher_key.as_bytes(),
            deposit: deposit.micro(),
            price_cap: prices(price_cap),
            expires_ms: *expires_ms,
        },
        Action::Settle { voucher, claim, usage, receipts, last } => mirror::Action::Settle {
            voucher: mirror_signed(voucher),
            claim: claim.micro(),
            usage: units(usage),
            receipts: *receipts.as_bytes(),
            last: *last,
        },
        Action::Refund { session } => mirror::Action::Refund { session: *session.0.as_bytes() },
    };
    mirror::Entry {
        network: *entry.network.0.as_bytes(),
        account: *entry.account.0.as_bytes(),
        nonce: entry.nonce,
        expires_height: entry.expires_height,
        business: entry.business,
        action,
    }
}

#[test]
fn the_format_is_bincodes() {
    let cast = cast();
    let check = |name: &str, ours: &[u8], theirs: Vec<u8>| assert_eq!(hex::encode(ours), hex::encode(theirs), "{name}");

    let voucher = Signed::sign(cast.voucher(cast.session(0), 300), &cast.voucher_key);
    let v = voucher.value();
    let mirrored = mirror::Voucher {
        network: *v.network.0.as_bytes(),
        session: *v.session.0.as_bytes(),
        sequence: v.sequence,
        total: v.total.micro(),
        input: v.input,
        output: v.output,
    };
    check("voucher", voucher.bytes(), bincode::serialize(&mirrored).expect("bytes"));
    let envelope = bincode::serialize(&mirror_signed(voucher.wire())).expect("bytes");
    check("envelope", &voucher.to_bytes(), envelope);

    for (name, entry) in entries(&cast) {
        check(name, entry.bytes(), bincode::serialize(&mirror_entry(entry.value())).expect("bytes"));
    }

    let r = example_receipt(&cast);
    let mirrored = mirror::Receipt {
        network: *r.network.0.as_bytes(),
        session: *r.session.0.as_bytes(),
        job: r.job.0,
        leg: r.leg,
        model: r.model.clone(),
        weights: *r.weights.as_bytes(),
        kind: r.kind.clone(),
        prompt: *r.prompt.as_bytes(),
        transcript: *r.transcript.as_bytes(),
        usage: units(&r.usage),
        price: prices(&r.price),
        cost: r.cost.micro(),
        first_token_ms: r.first_token_ms,
        total_ms: r.total_ms,
        finish: r.finish.clone(),
        time_ms: r.time_ms,
    };
    check("receipt", &encode(&r), bincode::serialize(&mirrored).expect("bytes"));

    let block = example_block(&cast);
    let header = &block.block.header;
    let mirrored = mirror::CertifiedBlock {
        height: header.height,
        parent: *header.parent.as_bytes(),
        time_ms: header.time_ms,
        entries_root: *header.entries_root.as_bytes(),
        state_root: *header.state_root.as_bytes(),
        supply: header.supply.micro(),
        validators: *header.validators.as_bytes(),
        entries: block.block.entries.iter().map(mirror_signed).collect(),
        certified: *block.certificate.block.as_bytes(),
        signatures: block.certificate.signatures.iter().map(|(key, s)| (*key.as_bytes(), halves(s))).collect(),
    };
    check("block", &block.to_bytes(), bincode::serialize(&mirrored).expect("bytes"));
}
