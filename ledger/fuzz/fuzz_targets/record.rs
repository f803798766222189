//! What a node keeps in its store, and the frames that peers send each other: the market's documents.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway_ledger::SecretKey;
use spillway_ledger_fuzz::{document, signed};
use spillway_protocol::offer::{Offer, Quote};
use spillway_protocol::record::Record;
use spillway_protocol::wire::{Frame, Probe, ProbeReply};

fuzz_target!(|bytes: &[u8]| {
    if let Some(record) = document::<Record>(bytes, 1) {
        assert_eq!(Record::from_bytes(&record.to_bytes()).as_ref(), Ok(&record));
        let _place = record.key();
    }
    if let Some(frame) = document::<Frame>(bytes, 0) {
        let wire = frame.to_wire();
        let (length, body) = wire.split_first_chunk().expect("a length comes first");
        assert_eq!(Frame::length(*length), Ok(body.len()));
        assert_eq!(Frame::from_wire(body), Ok(frame));
    }
    document::<Probe>(bytes, 0);
    document::<ProbeReply>(bytes, 0);
    let key = SecretKey::generate([6; 32]);
    signed::<Offer>(bytes, 2, &key);
    signed::<Quote>(bytes, 1, &key);
});
