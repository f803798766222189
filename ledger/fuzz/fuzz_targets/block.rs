//! Certified blocks: decoded, checked against their certificate, replayed as they are and as a validator would sign them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway_ledger::{Block, Certificate, CertifiedBlock, Entry, Header, Signed, ValidatorSet, decode, verify_blocks};
use spillway_ledger_fuzz::{Cast, START_MS, cast, document};

thread_local! {
    static CAST: Cast = cast();
}

/// More entries than this teach nothing that these do not.
const ENTRIES_SIGNED_MAX: usize = 8;

fuzz_target!(|bytes: &[u8]| {
    let Some(block) = document::<CertifiedBlock>(bytes, 1) else { return };
    assert_eq!(CertifiedBlock::from_bytes(bytes).as_ref(), Ok(&block));
    assert_eq!(block.to_bytes(), bytes);
    let _ids = (block.block.header.digest(), Block::entries_root(&block.block.entries));
    CAST.with(|cast| {
        let committee = cast.genesis.first_validators();
        let _final = block.certificate.verify(&cast.network, &block.block.header, &committee);
        let _valid = verify_blocks(&cast.genesis, [block.clone()]);
        let mended = mend(cast, block);
        let back = CertifiedBlock::from_bytes(&mended.to_bytes()).expect("what we write, we read");
        assert_eq!(back, mended);
        assert_eq!(back.certificate.verify(&cast.network, &back.block.header, &committee), Ok(()));
        let _valid = verify_blocks(&cast.genesis, [back]);
    });
});

/// The first block of the chain with these entries, each signed by its account where that has a known key: so that it is
/// the entries that are judged.
fn mend(cast: &Cast, block: CertifiedBlock) -> CertifiedBlock {
    let mut entries = block.block.entries;
    entries.truncate(ENTRIES_SIGNED_MAX);
    for wire in &mut entries {
        if let Ok(mut entry) = decode::<Entry>(&wire.document) {
            entry.network = cast.network;
            let key = cast.key_of(&entry.account);
            *wire = Signed::sign(entry, key).to_wire();
        }
    }
    let validators = ValidatorSet::solo(cast.authority().public()).digest();
    let header = Header {
        height: 1,
        parent: cast.network.0,
        time_ms: block.block.header.time_ms.max(START_MS),
        entries_root: Block::entries_root(&entries),
        validators,
        next_validators: validators,
        ..block.block.header
    };
    let certificate = Certificate::solo(&cast.network, &header, cast.authority());
    CertifiedBlock { block: Block { header, entries }, certificate }
}
