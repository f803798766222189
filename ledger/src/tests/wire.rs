//! The bytes on the wire: frozen, and the same as the bincode crate writes.

use std::collections::BTreeMap;

use serde::Serialize;

use super::*;

/// A receipt with every field different.
pub(super) fn example_receipt(cast: &Cast) -> Receipt {
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
    let certificate = Certificate::solo(&cast.network(), &header, &cast.authority);
    CertifiedBlock { block: Block { header, entries }, certificate }
}

/// A vote for a block that is named by one letter.
pub(super) fn vote(cast: &Cast, block: &[u8]) -> Vote {
    let block = Some(Digest::of("test", &[block]));
    Vote { network: cast.network(), height: 7, round: 1, step: Step::Prevote, block }
}

pub(super) fn proposal(cast: &Cast, block: &[u8]) -> Proposal {
    let block = Digest::of("test", &[block]);
    Proposal { network: cast.network(), height: 7, round: 2, block, valid_round: Some(1) }
}

pub(super) fn closing(cast: &Cast) -> Closing {
    let (usage, receipts) = (Usage { input: 5, cached: 6, output: 7 }, merkle_root(&[Digest::ZERO]));
    Closing { network: cast.network(), session: cast.session(0), total: Credits::new(400), usage, receipts }
}

/// Evidence of each kind.
pub(super) fn evidence(cast: &Cast) -> [Evidence; 3] {
    let votes = [b"a", b"b"].map(|block| Signed::sign(vote(cast, block), &cast.authority).to_wire());
    let proposals = [b"a", b"b"].map(|block| Signed::sign(proposal(cast, block), &cast.authority).to_wire());
    let receipts = [1_305, 1_306].map(|cost| {
        let receipt = Receipt { cost: Credits::new(cost), ..example_receipt(cast) };
        Signed::sign(receipt, &cast.provider).to_wire()
    });
    let ([first, second], [one, two], [this, that]) = (votes, proposals, receipts);
    [
        Evidence::Votes { first, second },
        Evidence::Proposals { first: one, second: two },
        Evidence::Receipts { first: this, second: that },
    ]
}

fn entries(cast: &Cast) -> Vec<(&'static str, Signed<Entry>)> {
    let payout = PayoutId::derive(&cast.network(), &cast.provider.account(), 3);
    let closing = Signed::sign(closing(cast), &cast.consumer).to_wire();
    let [votes, proposals, receipts] = evidence(cast).map(|evidence| Action::Evidence { evidence });
    let sign = |key: &SecretKey, action| cast.signed(key, 9, action);
    let reference = || "bank 17".to_owned();
    vec![
        ("entry-mint", cast.mint(3, cast.consumer.account(), 1_000)),
        ("entry-transfer", cast.transfer(&cast.consumer, 4, cast.stranger.account(), 5)),
        ("entry-open", cast.open(0, 600)),
        ("entry-settle", cast.settle(6, cast.session(0), 300, 200, true)),
        ("entry-refund", cast.signed(&cast.consumer, 7, Action::Refund { session: cast.session(0) })),
        ("entry-top-up", sign(&cast.consumer, Action::TopUp { session: cast.session(0), amount: Credits::new(50) })),
        ("entry-close", sign(&cast.provider, Action::Close { closing })),
        ("entry-bond", sign(&cast.provider, Action::Bond { amount: Credits::new(60) })),
        ("entry-unbond", sign(&cast.provider, Action::Unbond { amount: Credits::new(61) })),
        (
            "entry-payout-request",
            sign(
                &cast.provider,
                Action::PayoutRequest { amount: Credits::new(62), payee: Digest::of("test", &[b"p"]) },
            ),
        ),
        ("entry-burn", sign(&cast.issuer, Action::Burn { payout, reference: reference() })),
        ("entry-payout-reject", sign(&cast.issuer, Action::PayoutReject { payout, reason: RejectReason::Compliance })),
        ("entry-evidence-votes", sign(&cast.stranger, votes)),
        ("entry-evidence-proposals", sign(&cast.stranger, proposals)),
        ("entry-evidence-receipts", sign(&cast.stranger, receipts)),
        (
            "entry-elect",
            sign(&cast.authority, Action::Elect { validator: cast.stranger.public(), member: true, at: 12 }),
        ),
    ]
}

/// Proof files: of an account and of a receipt under a committee that has handed over, with the digests they rest on.
fn proofs() -> Vec<(&'static str, Vec<u8>)> {
    let (cast, keys) = committee::committee();
    let mut replay = replay::Replay::new(&cast.genesis);
    let mut next = |entries: &[Signed<Entry>], signers: &[SecretKey]| {
        let height = replay.height + 1;
        replay.book.begin();
        replay.book.begin_block(height, START_MS);
        for entry in entries {
            replay.book.apply(entry, height, START_MS).expect("valid");
        }
        let entries: Vec<SignedBytes> = entries.iter().map(Signed::to_wire).collect();
        let block = Block { header: replay.seal(&entries, START_MS), entries };
        let block = committee::certify(&cast, block, 1, signers);
        replay.accept(&block);
        block
    };
    let elect = Action::Elect { validator: keys[3].public(), member: false, at: 2 };
    next(&keys[..3].iter().map(|key| cast.signed(key, 0, elect.clone())).collect::<Vec<_>>(), &keys);
    next(&[cast.mint(0, cast.consumer.account(), 1_000), cast.open(0, 600)], &keys[..3]);

    let receipts = [0, 1, 2].map(|leg| {
        let receipt = Receipt { network: cast.network(), session: cast.session(0), leg, ..example_receipt(&cast) };
        CoSigned::co_sign(Signed::sign(receipt, &cast.provider), &cast.voucher_key)
    });
    let digests = receipts.each_ref().map(|receipt| receipt.provider().digest());
    let voucher = Signed::sign(cast.voucher(cast.session(0), 300), &cast.voucher_key).to_wire();
    let usage = Usage { input: 1, cached: 2, output: 3 };
    let claim = Credits::new(300);
    let settle = Action::Settle { voucher, claim, usage, receipts: merkle_root(&digests), last: false };
    let block = next(&[cast.mint(1, cast.stranger.account(), 5), cast.signed(&cast.provider, 0, settle)], &keys[..3]);

    let account = replay.prove_account(&cast.provider.account()).expect("known");
    let anchor = replay.anchor(block.block.header, block.certificate.clone());
    let receipt = proof::of_receipt(anchor, &block.block, 1, &receipts[1], &digests).expect("settled");
    let committee = cast.genesis.first_validators();
    let state = replay.book.account_proof(&cast.provider.account()).expect("known").state;
    let leaf = state::account_leaf(&cast.provider.account(), &state).expect("small");
    vec![
        ("committee", encode(&committee)),
        ("committee-digest", committee.digest().as_bytes().to_vec()),
        ("account-leaf", wincode::serialize(&leaf).expect("small")),
        ("state-root", block.block.header.state_root.as_bytes().to_vec()),
        ("proof-account", encode(&account)),
        ("proof-receipt", encode(&receipt)),
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
    put("vote", &Signed::sign(vote(&cast, b"a"), &cast.authority).to_bytes());
    put("proposal", &Signed::sign(proposal(&cast, b"a"), &cast.authority).to_bytes());
    put("closing", &Signed::sign(closing(&cast), &cast.consumer).to_bytes());
    put("network", cast.network().0.as_bytes());
    put("session", cast.session(0).0.as_bytes());
    let leaves = [Digest::ZERO, cast.network().0, cast.session(0).0];
    put("merkle-root-of-0", merkle_root(&[]).as_bytes());
    put("merkle-root-of-3", merkle_root(&leaves).as_bytes());
    put(
        "merkle-proof-of-2-in-3",
        &wincode::serialize(&merkle_proof(&leaves, 2).expect("three leaves")).expect("small"),
    );
    let mint = cast.mint(3, cast.consumer.account(), 1_000);
    put("entry-mint-digest", mint.digest().as_bytes());
    put("entry-mint-leaf", mint.wire().digest().as_bytes());
    put("payout", PayoutId::derive(&cast.network(), &cast.provider.account(), 3).0.as_bytes());
    put("genesis", serde_json::to_string(&cast.genesis).expect("JSON").as_bytes());
    for (name, evidence) in ["offence-votes", "offence-proposals", "offence-receipts"].iter().zip(evidence(&cast)) {
        put(name, evidence.offence(&cast.network()).expect("they contradict each other").id.as_bytes());
    }
    for (name, bytes) in proofs() {
        put(name, &bytes);
    }

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
        TopUp {
            session: Bytes32,
            amount: u64,
        },
        Close {
            closing: SignedBytes,
        },
        Bond {
            amount: u64,
        },
        Unbond {
            amount: u64,
        },
        PayoutRequest {
            amount: u64,
            payee: Bytes32,
        },
        Burn {
            payout: Bytes32,
            reference: String,
        },
        PayoutReject {
            payout: Bytes32,
            reason: RejectReason,
        },
        Evidence {
            evidence: Evidence,
        },
        Elect {
            validator: Bytes32,
            member: bool,
            at: u64,
        },
    }

    #[derive(Serialize)]
    pub(super) enum RejectReason {
        UnknownPayee,
        Returned,
        Compliance,
        Withdrawn,
    }

    #[derive(Serialize)]
    pub(super) enum Evidence {
        Votes { first: SignedBytes, second: SignedBytes },
        Proposals { first: SignedBytes, second: SignedBytes },
        Receipts { first: SignedBytes, second: SignedBytes },
    }

    #[derive(Serialize)]
    pub(super) enum Step {
        Prevote,
        Precommit,
    }

    #[derive(Serialize)]
    pub(super) struct Vote {
        pub(super) network: Bytes32,
        pub(super) height: u64,
        pub(super) round: u32,
        pub(super) step: Step,
        pub(super) block: Option<Bytes32>,
    }

    #[derive(Serialize)]
    pub(super) struct Proposal {
        pub(super) network: Bytes32,
        pub(super) height: u64,
        pub(super) round: u32,
        pub(super) block: Bytes32,
        pub(super) valid_round: Option<u32>,
    }

    #[derive(Serialize)]
    pub(super) struct Closing {
        pub(super) network: Bytes32,
        pub(super) session: Bytes32,
        pub(super) total: u64,
        pub(super) usage: (u64, u64, u64),
        pub(super) receipts: Bytes32,
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
        pub(super) next_validators: Bytes32,
        pub(super) entries: Vec<SignedBytes>,
        pub(super) certified: Bytes32,
        pub(super) round: u32,
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
        Action::TopUp { session, amount } => {
            mirror::Action::TopUp { session: *session.0.as_bytes(), amount: amount.micro() }
        }
        Action::Close { closing } => mirror::Action::Close { closing: mirror_signed(closing) },
        Action::Bond { amount } => mirror::Action::Bond { amount: amount.micro() },
        Action::Unbond { amount } => mirror::Action::Unbond { amount: amount.micro() },
        Action::PayoutRequest { amount, payee } => {
            mirror::Action::PayoutRequest { amount: amount.micro(), payee: *payee.as_bytes() }
        }
        Action::Burn { payout, reference } => {
            mirror::Action::Burn { payout: *payout.0.as_bytes(), reference: reference.clone() }
        }
        Action::PayoutReject { payout, reason } => mirror::Action::PayoutReject {
            payout: *payout.0.as_bytes(),
            reason: match reason {
                RejectReason::UnknownPayee => mirror::RejectReason::UnknownPayee,
                RejectReason::Returned => mirror::RejectReason::Returned,
                RejectReason::Compliance => mirror::RejectReason::Compliance,
                RejectReason::Withdrawn => mirror::RejectReason::Withdrawn,
            },
        },
        Action::Evidence { evidence } => {
            let (first, second) = evidence.documents();
            let (first, second) = (mirror_signed(first), mirror_signed(second));
            let evidence = match evidence {
                Evidence::Votes { .. } => mirror::Evidence::Votes { first, second },
                Evidence::Proposals { .. } => mirror::Evidence::Proposals { first, second },
                Evidence::Receipts { .. } => mirror::Evidence::Receipts { first, second },
            };
            mirror::Action::Evidence { evidence }
        }
        Action::Elect { validator, member, at } => {
            mirror::Action::Elect { validator: *validator.as_bytes(), member: *member, at: *at }
        }
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

    let v = vote(&cast, b"a");
    for (step, theirs) in [(Step::Prevote, mirror::Step::Prevote), (Step::Precommit, mirror::Step::Precommit)] {
        let mirrored = mirror::Vote {
            network: *v.network.0.as_bytes(),
            height: v.height,
            round: v.round,
            step: theirs,
            block: v.block.map(|block| *block.as_bytes()),
        };
        check("vote", &encode(&Vote { step, ..v }), bincode::serialize(&mirrored).expect("bytes"));
    }
    let p = proposal(&cast, b"a");
    let mirrored = mirror::Proposal {
        network: *p.network.0.as_bytes(),
        height: p.height,
        round: p.round,
        block: *p.block.as_bytes(),
        valid_round: p.valid_round,
    };
    check("proposal", &encode(&p), bincode::serialize(&mirrored).expect("bytes"));
    let c = closing(&cast);
    let mirrored = mirror::Closing {
        network: *c.network.0.as_bytes(),
        session: *c.session.0.as_bytes(),
        total: c.total.micro(),
        usage: units(&c.usage),
        receipts: *c.receipts.as_bytes(),
    };
    check("closing", &encode(&c), bincode::serialize(&mirrored).expect("bytes"));

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
        next_validators: *header.next_validators.as_bytes(),
        entries: block.block.entries.iter().map(mirror_signed).collect(),
        certified: *block.certificate.block.as_bytes(),
        round: block.certificate.round,
        signatures: block.certificate.signatures.iter().map(|(key, s)| (*key.as_bytes(), halves(s))).collect(),
    };
    check("block", &block.to_bytes(), bincode::serialize(&mirrored).expect("bytes"));
}
