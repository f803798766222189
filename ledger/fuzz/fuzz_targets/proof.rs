//! Proof files: decoded and checked as they are; then mended with the roots and signatures that a fuzzer cannot make, and
//! seen to hold exactly if everything in them could be mended.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway_ledger::proof::Anchor;
use spillway_ledger::state::{SumNode, account_leaf, state_root};
use spillway_ledger::{
    AccountProof, Action, Certificate, CoSigned, Credits, Digest, Entry, Fact, Genesis, Header, MerkleProof, NetworkId,
    Proof, ProofError, Signed, ValidatorSet, Voucher, decode, encode,
};
use spillway_ledger_fuzz::{Cast, cast, document, memory_max, watched};

thread_local! {
    static CAST: Cast = cast();
}

fuzz_target!(|bytes: &[u8]| {
    let verdict = watched("verified proof", memory_max(bytes.len(), 2), || Proof::verify_bytes(bytes));
    let Some(mut proof) = document::<Proof>(bytes, 2) else {
        assert!(verdict.is_err());
        return;
    };
    assert_eq!(proof.verify(), verdict);
    let mended = CAST.with(|cast| mend(cast, &mut proof));
    let verdict = proof.verify();
    assert_eq!(Proof::verify_bytes(&encode(&proof)), verdict);
    let (Proof::Account { anchor, .. } | Proof::Receipt { anchor, .. }) = &proof;
    match (mended, verdict) {
        (Some(()), Ok(proven)) => {
            let Header { height, time_ms, supply, .. } = anchor.header;
            assert_eq!((proven.height, proven.time_ms, proven.supply), (height, time_ms, supply));
            match (&proof, proven.what) {
                (Proof::Account { account: path, .. }, Fact::Account { account, state }) => {
                    assert_eq!((account, state), (path.account, path.state));
                }
                (Proof::Receipt { .. }, Fact::Receipt { receipt, .. }) => assert_eq!(receipt.network, proven.network),
                (Proof::Account { .. }, Fact::Receipt { .. }) | (Proof::Receipt { .. }, Fact::Account { .. }) => {
                    panic!("a proof shows what it is of")
                }
            }
        }
        // Heights that do not grow are the one thing that is not mended.
        (Some(()), Err(ProofError::Committee { .. })) => {}
        (Some(()), Err(error)) => panic!("everything was mended, and yet: {error}"),
        (None, _) => {}
    }
});

/// Writes the roots that the paths lead to, and signs what has to be signed; `None` where that cannot be done.
fn mend(cast: &Cast, proof: &mut Proof) -> Option<()> {
    let (Proof::Account { anchor, .. } | Proof::Receipt { anchor, .. }) = &proof;
    let genesis: Genesis = serde_json::from_str(&anchor.genesis).ok()?;
    let network = genesis.network_id();
    match proof {
        Proof::Account { anchor, account } => {
            (anchor.header.state_root, anchor.header.supply) = account_root(account)?;
            finalize(cast, &genesis, anchor)
        }
        Proof::Receipt { anchor, entry, place, receipt, within } => {
            let mut both = decode_receipt(receipt)?;
            both.network = network;
            let (session, provider) = (both.session, &cast.keys[5]);
            let both = CoSigned::co_sign(Signed::try_sign(both, provider).ok()?, &cast.keys[4]);
            *receipt = both.to_bytes();
            let mut said: Entry = decode(&entry.document).ok()?;
            let Action::Settle { voucher, receipts, .. } = &mut said.action else { return None };
            let promised: Voucher = decode(&voucher.document).ok()?;
            *voucher = Signed::sign(Voucher { network, session, ..promised }, cast.key(&voucher.signer)).to_wire();
            *receipts = list_root(&both.provider().digest(), within)?;
            said.account = provider.account();
            *entry = Signed::try_sign(said, provider).ok()?.to_wire();
            anchor.header.entries_root = list_root(&entry.digest(), place)?;
            finalize(cast, &genesis, anchor)
        }
    }
}

/// The receipt inside of what may be a co-signed one, signatures aside.
fn decode_receipt(bytes: &[u8]) -> Option<spillway_ledger::Receipt> {
    let (_, document) = bytes.split_at_checked(104)?;
    decode(document.get(..document.len().checked_sub(96)?)?).ok()
}

/// Makes every header of the anchor final by those whose keys are known; `None` where one is not.
fn finalize(cast: &Cast, genesis: &Genesis, anchor: &mut Anchor) -> Option<()> {
    genesis.validate().ok()?;
    // The one way to write it; no address is part of the id.
    let written = Genesis { bootstrap: Vec::new(), ..genesis.clone() };
    anchor.genesis = serde_json::to_string(&written).expect("a genesis is plain JSON");
    let (network, mut committee) = (genesis.network_id(), genesis.first_validators());
    anchor.handovers.truncate(4);
    for handover in &mut anchor.handovers {
        (handover.header.validators, handover.header.next_validators) = (committee.digest(), handover.next.digest());
        handover.certificate = certify(cast, &network, &handover.header, &committee)?;
        committee = handover.next.clone();
    }
    anchor.header.validators = committee.digest();
    anchor.certificate = certify(cast, &network, &anchor.header, &committee)?;
    Some(())
}

fn certify(cast: &Cast, network: &NetworkId, header: &Header, committee: &ValidatorSet) -> Option<Certificate> {
    let keys = committee.keys().iter().take(committee.quorum());
    let sign = |key| Some(Certificate::sign(network, header, 1, cast.known(key)?));
    Some(Certificate { block: header.digest(), round: 1, signatures: keys.map(sign).collect::<Option<_>>()? })
}

/// What `docs/ledger.md` says of a list's path: computed apart from the ledger's own code.
fn list_root(digest: &Digest, path: &MerkleProof) -> Option<Digest> {
    let (mut at, mut width, mut beside) = (path.index, path.count, path.beside.iter());
    let mut node = Digest::of("spillway/merkle/leaf/1", &[digest.as_bytes()]);
    if at >= width || path.beside.len() > 32 {
        return None;
    }
    while width > 1 {
        if at % 2 == 1 || at + 1 < width {
            let other = beside.next()?;
            let (left, right) = if at % 2 == 1 { (*other, node) } else { (node, *other) };
            node = Digest::of("spillway/merkle/node/1", &[left.as_bytes(), right.as_bytes()]);
        }
        (at, width) = (at / 2, width.div_ceil(2));
    }
    let count = path.count.to_le_bytes();
    beside.next().is_none().then(|| Digest::of("spillway/merkle/root/1", &[&count, node.as_bytes()]))
}

/// The state root and supply that an account's path leads to, from `docs/ledger.md`, too.
fn account_root(path: &AccountProof) -> Option<(Digest, Credits)> {
    let mut node = account_leaf(&path.account, &path.state)?;
    for (depth, beside) in path.beside.iter().enumerate() {
        let (left, right) = if path.slot >> depth & 1 == 0 { (node, *beside) } else { (*beside, node) };
        let sums = (left.sum.to_le_bytes(), right.sum.to_le_bytes());
        let parts: [&[u8]; 4] = [left.digest.as_bytes(), &sums.0, right.digest.as_bytes(), &sums.1];
        let sum = left.sum.checked_add(right.sum)?;
        node = SumNode { digest: Digest::of("spillway/state/node/1", &parts), sum };
    }
    let supply = node.sum.checked_add(path.locks.sum)?;
    Some((state_root(&node, &path.locks, &path.rest), Credits::new(supply)))
}
