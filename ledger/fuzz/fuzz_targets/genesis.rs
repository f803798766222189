//! The genesis file: what is read and valid has one network, and is written as it was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use spillway_ledger::{Book, Genesis};
use spillway_ledger_fuzz::watched;

/// An empty address takes three bytes of JSON and 24 of memory; a list that grows has up to three times its elements.
const fn memory_max(bytes: usize) -> usize {
    48 * bytes + 4096
}

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if bytes.len() > 64 << 10 {
        return;
    }
    let Ok(genesis) = watched("genesis", memory_max(bytes.len()), || serde_json::from_str::<Genesis>(text)) else {
        return;
    };
    let written = serde_json::to_string(&genesis).expect("a genesis is plain JSON");
    assert_eq!(serde_json::from_str::<Genesis>(&written).expect("what we write, we read"), genesis);
    if genesis.validate().is_err() {
        return;
    }
    let moved = Genesis { bootstrap: Vec::new(), ..genesis.clone() };
    assert_eq!(moved.network_id(), genesis.network_id(), "bootstrap addresses are no part of the id");
    let mut book = Book::new(&genesis);
    assert_eq!(book.network(), genesis.network_id());
    let _root = book.state_root();
    book.check().expect("an empty book adds up");
});
