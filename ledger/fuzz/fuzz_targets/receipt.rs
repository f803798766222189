//! Receipts: bare, signed by one, signed by both.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway_ledger::{CoSigned, Receipt, SecretKey};
use spillway_ledger_fuzz::{memory_max, signed, watched};

fn check(bytes: &[u8]) -> Option<CoSigned> {
    let receipt = watched("co-signed receipt", memory_max(bytes.len(), 0), || CoSigned::from_bytes(bytes)).ok()?;
    assert_eq!(receipt.to_bytes(), bytes, "a co-signed receipt has one encoding");
    let (consumer, signature) = receipt.consumer();
    assert!(receipt.verify(&receipt.provider().signer(), &consumer));
    let joined = CoSigned::join(receipt.provider().clone(), consumer, signature);
    assert_eq!(joined.as_ref().map(CoSigned::digest), Ok(receipt.digest()));
    Some(receipt)
}

fuzz_target!(|bytes: &[u8]| {
    check(bytes);
    let Some(half) = signed::<Receipt>(bytes, 0, &SecretKey::generate([6; 32])) else { return };
    let whole = CoSigned::co_sign(half, &SecretKey::generate([5; 32]));
    assert_eq!(check(&whole.to_bytes()), Some(whole));
});
