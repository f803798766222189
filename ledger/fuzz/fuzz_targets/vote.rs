//! What validators and a session's sides sign beside entries: votes, proposals, closings, headers, committees.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway_ledger::state::AccountState;
use spillway_ledger::{
    AccountProof, Closing, Credits, Digest, Header, Proposal, SecretKey, SessionState, ValidatorSet, Vote,
};
use spillway_ledger_fuzz::{document, signed};

fuzz_target!(|bytes: &[u8]| {
    let key = SecretKey::generate([2; 32]);
    signed::<Vote>(bytes, 0, &key);
    signed::<Proposal>(bytes, 0, &key);
    signed::<Closing>(bytes, 0, &key);
    document::<Header>(bytes, 0).map(|header| header.digest());
    document::<AccountState>(bytes, 0);
    document::<SessionState>(bytes, 0);
    if let Some(set) = document::<ValidatorSet>(bytes, 1) {
        let _ids = (set.digest(), set.quorum(), set.contains(&key.public()), set.with(key.public(), true));
    }
    if let Some(proof) = document::<AccountProof>(bytes, 1) {
        proof.verify(&Digest::ZERO, Credits::MAX);
    }
});
