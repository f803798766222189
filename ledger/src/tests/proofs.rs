//! Proof files: what they show, and that no change to one goes unnoticed.

use super::*;
use crate::proof::Anchor;

/// A settled session of three receipts on a lone authority's ledger, with the place of its settlement.
fn settled(cast: &Cast, folder: &std::path::Path) -> (Solo, Vec<CoSigned>, (u64, usize)) {
    let mut solo = Solo::open(folder, &cast.genesis, cast.authority.clone()).expect("opens");
    let receipts: Vec<CoSigned> = (0..3)
        .map(|leg| {
            let receipt = Receipt { leg, ..wire::example_receipt(cast) };
            CoSigned::co_sign(Signed::sign(receipt, &cast.provider), &cast.voucher_key)
        })
        .collect();
    let digests: Vec<Digest> = receipts.iter().map(|receipt| receipt.provider().digest()).collect();
    let voucher = Signed::sign(cast.voucher(cast.session(0), 300), &cast.voucher_key).to_wire();
    let mut settle = cast.settle_action(voucher, 300, true);
    if let Action::Settle { receipts, .. } = &mut settle {
        *receipts = merkle_root(&digests);
    }
    for entries in [
        vec![cast.mint(0, cast.consumer.account(), 1_000), cast.open(0, 600)],
        vec![cast.mint(1, cast.stranger.account(), 5), cast.signed(&cast.provider, 0, settle)],
        vec![cast.mint(2, cast.stranger.account(), 5)],
    ] {
        for entry in entries {
            solo.submit(entry).expect("queued");
        }
        solo.produce(START_MS).expect("written").expect("a block");
    }
    (solo, receipts, (2, 1))
}

#[test]
fn a_receipt_is_proven_by_its_settlement() {
    let cast = cast();
    let folder = tempfile::tempdir().expect("a folder");
    let (solo, receipts, place) = settled(&cast, folder.path());
    let digests: Vec<Digest> = receipts.iter().map(|receipt| receipt.provider().digest()).collect();
    for receipt in &receipts {
        let proof = solo.prove_receipt(place, receipt, &digests).expect("read").expect("is settled");
        let proven = Proof::verify_bytes(&encode(&proof)).expect("holds");
        assert_eq!((proven.network, proven.height), (cast.network(), 2));
        let Fact::Receipt { receipt: shown, provider, consumer } = proven.what else { panic!("it is of a receipt") };
        assert_eq!((*shown, provider), (receipt.receipt().clone(), cast.provider.public()));
        assert_eq!(consumer, cast.voucher_key.public());
    }
    // Another place, list or receipt gives no proof.
    let proof = |place, receipt, digests: &[Digest]| solo.prove_receipt(place, receipt, digests).expect("read");
    let other = CoSigned::co_sign(Signed::sign(wire::example_receipt(&cast), &cast.stranger), &cast.voucher_key);
    assert_eq!(proof((2, 0), &receipts[0], &digests), None, "a mint settles nothing");
    assert_eq!(proof((2, 7), &receipts[0], &digests), None);
    assert_eq!(proof((9, 0), &receipts[0], &digests), None);
    assert_eq!(proof((3, 0), &receipts[0], &digests), None);
    assert_eq!(proof(place, &receipts[0], &digests[..2]), None, "the root is that of all three");
    assert_eq!(proof(place, &other, &digests), None);
    assert_eq!(proof(place, &other, &[other.provider().digest()]), None);
}

#[test]
fn an_account_is_proven_by_the_last_block() {
    let cast = cast();
    let folder = tempfile::tempdir().expect("a folder");
    let (mut solo, ..) = settled(&cast, folder.path());
    let proof = solo.prove_account(&cast.provider.account()).expect("known");
    let proven = proof.verify().expect("holds");
    let Fact::Account { account, state } = proven.what else { panic!("it is of an account") };
    assert_eq!((account, state.balance.micro()), (cast.provider.account(), 210));
    assert_eq!((proven.height, proven.supply.micro(), proven.name.as_str()), (3, 1_010, "test"));
    assert_eq!(solo.prove_account(&key(77).account()), None);
}

#[test]
fn no_changed_byte_of_a_proof_goes_unnoticed() {
    let cast = cast();
    let folder = tempfile::tempdir().expect("a folder");
    let (mut solo, receipts, place) = settled(&cast, folder.path());
    let digests: Vec<Digest> = receipts.iter().map(|receipt| receipt.provider().digest()).collect();
    let of_account = solo.prove_account(&cast.provider.account()).expect("known");
    let of_receipt = solo.prove_receipt(place, &receipts[1], &digests).expect("read").expect("settled");
    for proof in [of_account, of_receipt] {
        proof.verify().expect("holds");
        let good = encode(&proof);
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= 1 << (at % 8);
            let verdict = Proof::verify_bytes(&bytes);
            assert!(verdict.is_err(), "byte {at} changed, and it still shows {verdict:?}");
        }
        for length in [0, 1, good.len() / 2, good.len() - 1] {
            assert!(Proof::verify_bytes(&good[..length]).is_err());
        }
    }
}

/// Where one first knocks is no part of a network's id, so no signature would notice a proof that names other places.
#[test]
fn a_proof_names_no_bootstrap_addresses() {
    let cast = cast();
    let folder = tempfile::tempdir().expect("a folder");
    let (mut solo, ..) = settled(&cast, folder.path());
    let mut proof = solo.prove_account(&cast.provider.account()).expect("known");
    let Proof::Account { anchor, .. } = &mut proof else { panic!("it is of an account") };
    assert!(anchor.genesis.contains("\"bootstrap\":[]"), "the tests' network has an address, its proofs have none");
    anchor.genesis = anchor.genesis.replace("[]", "[\"/ip4/127.0.0.1/udp/4001/quic-v1\"]");
    assert_eq!(proof.verify(), Err(ProofError::GenesisFormat));
}

#[test]
fn a_proof_follows_a_change_of_the_committee_and_nothing_else() {
    let (cast, keys) = committee::committee();
    let folder = tempfile::tempdir().expect("a folder");
    let mut replica = Replica::open(folder.path(), &cast.genesis).expect("opens");
    let out = keys[3].public();
    let mut next = |entries: Vec<Signed<Entry>>, signers: &[SecretKey]| {
        for entry in entries {
            replica.submit(entry).expect("queued");
        }
        let block = replica.propose(START_MS).unwrap_or_else(|| replica.propose_empty(START_MS));
        Replicator::commit(&mut replica, committee::certify(&cast, block, 1, signers)).expect("final");
    };
    let elect = |voter: &SecretKey| cast.signed(voter, 0, Action::Elect { validator: out, member: false, at: 2 });
    next(keys[..3].iter().map(elect).collect(), &keys);
    next(vec![cast.mint(0, cast.consumer.account(), 7)], &keys[..3]);
    let Some(Proof::Account { anchor, account }) = replica.prove_account(&cast.consumer.account()) else {
        panic!("known")
    };
    assert_eq!(anchor.handovers.len(), 1);
    let check = |change: &dyn Fn(&mut Anchor)| {
        let mut anchor = anchor.clone();
        change(&mut anchor);
        Proof::Account { anchor, account: account.clone() }.verify().map(|proven| proven.height)
    };
    let old = Certificate { ..anchor.handovers[0].certificate.clone() };
    let (height, other) = (2, ValidatorSet::new(vec![keys[0].public()]).expect("one key"));
    type Case<'a> = (&'a str, &'a dyn Fn(&mut Anchor), Result<u64, ProofError>);
    let cases: [Case<'_>; 5] = [
        ("as it is", &|_| {}, Ok(2)),
        ("without the handover", &|a| a.handovers.clear(), Err(ProofError::Committee { height })),
        ("to another committee", &|a| a.handovers[0].next = other.clone(), Err(ProofError::Committee { height: 1 })),
        ("handed over twice", &|a| a.handovers.push(a.handovers[0].clone()), Err(ProofError::Committee { height: 1 })),
        (
            "with the handover's certificate",
            &|a| a.certificate = old.clone(),
            Err(ProofError::Certificate { height, error: CertificateError::OtherBlock }),
        ),
    ];
    for (name, change, want) in cases {
        assert_eq!(check(change), want, "{name}");
    }
}
