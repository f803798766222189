//! Entries: decoded, opened with what is signed inside, and judged by a book with something in it.
#![no_main]

use std::cell::RefCell;

use libfuzzer_sys::fuzz_target;
use spillway_ledger::{
    Action, Book, Closing, Credits, Digest, Document, Entry, Price, Screened, Signed, Voucher, decode,
};
use spillway_ledger_fuzz::{Cast, START_MS, cast, signed};

/// A book in which every kind of entry can do something: credits, a bond, a session, a payout.
fn book(cast: &Cast) -> Book {
    let mut book = Book::new(&cast.genesis);
    let [issuer, _, _, _, consumer, provider, gateway, voucher_key, ..] = &cast.keys[..] else { unreachable!() };
    let expires_ms = START_MS + 10_000;
    let actions = [
        (issuer, Action::Mint { to: consumer.account(), amount: Credits::new(5_000), reference: "a".to_owned() }),
        (issuer, Action::Mint { to: provider.account(), amount: Credits::new(5_000), reference: "b".to_owned() }),
        (
            consumer,
            Action::Open {
                provider: provider.account(),
                gateway: gateway.account(),
                voucher_key: voucher_key.public(),
                deposit: Credits::new(600),
                price_cap: Price::default(),
                expires_ms,
            },
        ),
        (provider, Action::Bond { amount: Credits::new(1_500) }),
        (provider, Action::PayoutRequest { amount: Credits::new(100), payee: Digest::ZERO }),
    ];
    for (number, (key, action)) in (0_u8..).zip(actions) {
        let (account, nonce) = (key.account(), book.nonce(&key.account()));
        let entry =
            Entry { network: cast.network, account, nonce, expires_height: 100, business: [number; 16], action };
        book.apply(&Signed::sign(entry, key), 1, START_MS).expect("the world is valid");
    }
    book
}

thread_local! {
    static WORLD: RefCell<(Cast, Book)> = RefCell::new({ let cast = cast(); let book = book(&cast); (cast, book) });
}

fuzz_target!(|bytes: &[u8]| {
    WORLD.with_borrow_mut(|(cast, book)| {
        let Some(opened) = signed::<Entry>(bytes, 0, &cast.keys[0]) else { return };
        let mut entry = opened.into_value();
        if let Action::Evidence { evidence } = &entry.action {
            let _shown = evidence.offence(&entry.network);
        }
        judge(cast, book, entry.clone());
        // The same on this network, in time and in turn; with a voucher or closing that its key signed.
        entry.network = cast.network;
        entry.nonce = book.nonce(&entry.account);
        entry.expires_height = entry.expires_height.clamp(2, 100);
        if let Action::Settle { voucher, .. } = &mut entry.action
            && let Ok(said) = decode::<Voucher>(&voucher.document)
        {
            *voucher = Signed::sign(Voucher { network: cast.network, ..said }, cast.key(&voucher.signer)).to_wire();
        }
        if let Action::Close { closing } = &mut entry.action
            && let Ok(said) = decode::<Closing>(&closing.document)
        {
            *closing = Signed::sign(Closing { network: cast.network, ..said }, cast.key(&closing.signer)).to_wire();
        }
        judge(cast, book, entry);
    });
});

/// Tries the entry, and sees that nothing appeared, vanished or stayed behind.
fn judge(cast: &Cast, book: &mut Book, entry: Entry) {
    assert_eq!(entry.check(), Ok(()));
    let key = cast.key_of(&entry.account).clone();
    let screened = Screened::new(Signed::sign(entry, &key));
    let before = book.state_root();
    let mut tried = book.clone();
    let (height, time_ms) = (2, START_MS + 20_000);
    tried.begin_block(height, time_ms);
    let root = tried.state_root();
    match tried.apply_screened(&screened, height, time_ms) {
        Ok(_) => assert_ne!(tried.state_root(), root, "an entry that was applied counts up a nonce"),
        Err(_) => assert_eq!(tried.state_root(), root, "an error changes nothing"),
    }
    tried.check().expect("the book adds up");
    assert_eq!(book.state_root(), before);
}
