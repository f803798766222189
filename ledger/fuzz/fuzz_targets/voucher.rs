//! Vouchers, signed and bare.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway_ledger::{SecretKey, Voucher};
use spillway_ledger_fuzz::signed;

fuzz_target!(|bytes: &[u8]| {
    signed::<Voucher>(bytes, 0, &SecretKey::generate([8; 32]));
});
