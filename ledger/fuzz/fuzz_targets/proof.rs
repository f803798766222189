//! Proof files: decoded and checked as they are, and with the signatures that a fuzzer cannot make.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway_ledger::proof::Anchor;
use spillway_ledger::{Block, Certificate, CoSigned, Entry, Genesis, Proof, Signed, ValidatorSet, decode, encode};
use spillway_ledger_fuzz::{Cast, cast, document, memory_max, watched};

thread_local! {
    static CAST: Cast = cast();
}

fuzz_target!(|bytes: &[u8]| {
    let verdict = watched("verified proof", memory_max(bytes.len(), 2), || Proof::verify_bytes(bytes));
    let Some(proof) = document::<Proof>(bytes, 2) else {
        assert!(verdict.is_err());
        return;
    };
    assert_eq!(proof.verify(), verdict);
    let mut mended = proof;
    CAST.with(|cast| mend(cast, &mut mended));
    let (verdict, bytes) = (mended.verify(), encode(&mended));
    assert_eq!(Proof::verify_bytes(&bytes), verdict);
    if let Ok(proven) = verdict {
        assert!(bytes.len() <= 3 << 20);
        let (Proof::Account { anchor, .. } | Proof::Receipt { anchor, .. }) = &mended;
        assert_eq!(proven.height, anchor.header.height);
    }
});

/// Signs what has to be signed, and writes the roots that the paths lead to where that takes no search.
fn mend(cast: &Cast, proof: &mut Proof) {
    match proof {
        Proof::Account { anchor, .. } => sign(cast, anchor),
        Proof::Receipt { anchor, entry, place, receipt, within } => {
            if let Ok(receipt_bytes) = CoSigned::from_bytes(receipt).map(|receipt| receipt.to_bytes()) {
                assert_eq!(*receipt, receipt_bytes);
            }
            if let Ok(said) = decode::<Entry>(&entry.document) {
                let key = cast.key_of(&said.account);
                *entry = Signed::sign(said, key).to_wire();
            }
            // Alone in its block, unless the fuzzer says otherwise.
            if place.count == 1 {
                anchor.header.entries_root = Block::entries_root(std::slice::from_ref(entry));
            }
            let _steps = within.beside.len();
            sign(cast, anchor);
        }
    }
}

/// Makes every header of the anchor final by the lone authority, if that is who its genesis names.
fn sign(cast: &Cast, anchor: &mut Anchor) {
    let Ok(genesis) = serde_json::from_str::<Genesis>(&anchor.genesis) else { return };
    let (network, solo) = (genesis.network_id(), ValidatorSet::solo(cast.authority().public()).digest());
    for handover in anchor.handovers.iter_mut().take(4) {
        (handover.header.validators, handover.header.next_validators) = (solo, handover.next.digest());
        handover.certificate = Certificate::solo(&network, &handover.header, cast.authority());
    }
    anchor.header.validators = solo;
    anchor.certificate = Certificate::solo(&network, &anchor.header, cast.authority());
}
