//! Every rule of the book, as a table: what is refused and why, and that a refusal changes nothing.

use super::*;
use crate::book::{CLOSED_KEPT_BLOCKS, EXPIRY_HEIGHTS_MAX, OPEN_SESSIONS_MAX};

const HEIGHT: u64 = 5;
const NOW: u64 = START_MS + 5_000;
const EXPIRED: u64 = START_MS + 10_000 + GRACE_MS;

/// The consumer minted 1,000 and locked 600 of it in the session of nonce 0; 200 of that are settled.
pub(super) fn funded(cast: &Cast) -> Book {
    let mut book = Book::new(&cast.genesis);
    let session = cast.session(0);
    for entry in
        [cast.mint(0, cast.consumer.account(), 1_000), cast.open(0, 600), cast.settle(0, session, 300, 200, false)]
    {
        book.apply(&entry, 1, START_MS).expect("the set-up is valid");
    }
    book
}

/// Applies `entry`, expects `want`, and where that is an error also that nothing changed.
pub(super) fn check(name: &str, book: &Book, entry: &Signed<Entry>, at: (u64, u64), want: Result<(), ApplyError>) {
    let mut after = book.clone();
    let got = after.apply(entry, at.0, at.1);
    assert_eq!(got.as_ref().map(|_| ()).map_err(|error| *error), want, "{name}: {got:?}");
    after.check().unwrap_or_else(|violation| panic!("{name}: {violation}"));
    let same = after.state_root() == book.clone().state_root();
    assert_eq!(same, want.is_err(), "{name}: an error changes nothing, and a success something");
}

pub(super) fn credits(micro: u64) -> Credits {
    Credits::new(micro)
}

#[test]
fn rules_for_every_entry() {
    use ApplyError as E;
    let cast = cast();
    let book = funded(&cast);
    let to = cast.stranger.account();
    let transfer = Action::Transfer { to, amount: credits(1) };
    let good = || cast.entry(&cast.consumer, 1, transfer.clone());
    let with = |change: &dyn Fn(&mut Entry)| {
        let mut entry = good();
        change(&mut entry);
        Signed::sign(entry, &cast.consumer)
    };
    let foreign = NetworkId(Digest::of("test", &[b"another network"]));
    let max = HEIGHT + EXPIRY_HEIGHTS_MAX;
    let used = cast.entry(&cast.consumer, 0, transfer.clone()).business;

    let cases: Vec<(&str, Signed<Entry>, Result<(), E>)> = vec![
        ("as it should be", with(&|_| {}), Ok(())),
        ("another network", with(&|e| e.network = foreign), Err(E::WrongNetwork)),
        ("signed by another", Signed::sign(good(), &cast.stranger), Err(E::WrongSigner)),
        ("expired", with(&|e| e.expires_height = HEIGHT - 1), Err(E::Expired { at: HEIGHT - 1 })),
        ("at its last height", with(&|e| e.expires_height = HEIGHT), Ok(())),
        ("at the furthest expiry", with(&|e| e.expires_height = max), Ok(())),
        ("too far an expiry", with(&|e| e.expires_height = max + 1), Err(E::TooFarExpiry { max })),
        ("never expiring", with(&|e| e.expires_height = u64::MAX), Err(E::TooFarExpiry { max })),
        ("a retry", cast.open(0, 600), Err(E::AlreadyApplied { height: 1 })),
        ("a retry with a new nonce", with(&|e| e.business = used), Err(E::AlreadyApplied { height: 1 })),
        ("an old nonce", with(&|e| e.nonce = 0), Err(E::BadNonce { expected: 1 })),
        ("a nonce too far", with(&|e| e.nonce = 2), Err(E::BadNonce { expected: 1 })),
        ("the last nonce", with(&|e| e.nonce = u64::MAX), Err(E::BadNonce { expected: 1 })),
        // Precedence: the first rule that is broken is the one named.
        (
            "all of it",
            {
                let mut entry = good();
                (entry.network, entry.expires_height, entry.nonce) = (foreign, 0, 9);
                Signed::sign(entry, &cast.stranger)
            },
            Err(E::WrongNetwork),
        ),
    ];
    for (name, entry, want) in cases {
        check(name, &book, &entry, (HEIGHT, NOW), want);
    }
}

#[test]
fn rules_for_mint_and_transfer() {
    use ApplyError as E;
    let cast = cast();
    let book = funded(&cast);
    let to = cast.stranger.account();
    let weak = hostile::weak_account();
    let mint = |nonce, to, amount, reference: &str| {
        let action = Action::Mint { to, amount: credits(amount), reference: reference.to_owned() };
        cast.signed(&cast.issuer, nonce, action)
    };
    let by_stranger = {
        let action = Action::Mint { to, amount: credits(1), reference: "mine".to_owned() };
        cast.signed(&cast.stranger, 0, action)
    };
    let left = credits(10_000_000 - 1_000);

    let cases = [
        ("mint", mint(1, to, 5, "new"), (HEIGHT, NOW), Ok(())),
        ("mint by another", by_stranger, (HEIGHT, NOW), Err(E::NotIssuer)),
        ("mint nothing", mint(1, to, 0, "new"), (HEIGHT, NOW), Err(E::ZeroAmount)),
        ("mint to a weak key", mint(1, weak, 5, "new"), (HEIGHT, NOW), Err(E::WeakKey("to"))),
        ("mint a deposit twice", mint(1, to, 5, "deposit 0"), (HEIGHT, NOW), Err(E::DuplicateReference)),
        ("mint all of the epoch", mint(1, to, left.micro(), "new"), (HEIGHT, NOW), Ok(())),
        ("mint above the epoch", mint(1, to, left.micro() + 1, "new"), (HEIGHT, NOW), Err(E::EpochCap { left })),
        ("mint as much as can be", mint(1, to, u64::MAX, "new"), (HEIGHT, NOW), Err(E::EpochCap { left })),
        ("mint in the next epoch", mint(1, to, 10_000_000, "new"), (100, NOW), Ok(())),
        ("transfer", cast.transfer(&cast.consumer, 1, to, 400), (HEIGHT, NOW), Ok(())),
        ("transfer to oneself", cast.transfer(&cast.consumer, 1, cast.consumer.account(), 400), (HEIGHT, NOW), Ok(())),
        ("transfer nothing", cast.transfer(&cast.consumer, 1, to, 0), (HEIGHT, NOW), Err(E::ZeroAmount)),
        ("transfer to a weak key", cast.transfer(&cast.consumer, 1, weak, 1), (HEIGHT, NOW), Err(E::WeakKey("to"))),
        (
            "transfer what is locked",
            cast.transfer(&cast.consumer, 1, to, 401),
            (HEIGHT, NOW),
            Err(E::InsufficientBalance { have: credits(400), need: credits(401) }),
        ),
        (
            "transfer as much as can be",
            cast.transfer(&cast.stranger, 0, to, u64::MAX),
            (HEIGHT, NOW),
            Err(E::InsufficientBalance { have: credits(0), need: Credits::MAX }),
        ),
    ];
    for (name, entry, at, want) in cases {
        check(name, &book, &entry, at, want);
    }
}

#[test]
fn the_supply_ends_where_numbers_do() {
    let mut cast = cast();
    cast.genesis.mint_max_per_epoch = Credits::MAX;
    let mut book = Book::new(&cast.genesis);
    let to = cast.consumer.account();
    book.apply(&cast.mint(0, to, u64::MAX), 1, START_MS).expect("as much as can be written down");
    assert_eq!(book.apply(&cast.mint(1, to, 1), 100, START_MS), Err(ApplyError::SupplyFull));
    book.check().expect("the book holds");
    book.state_root();
}

#[test]
fn rules_for_open() {
    use ApplyError as E;
    let cast = cast();
    let book = funded(&cast);
    let weak = hostile::weak_account();
    let open = |change: &dyn Fn(&mut SessionTerms)| {
        let mut terms = SessionTerms {
            provider: cast.provider.account(),
            gateway: cast.gateway.account(),
            voucher_key: cast.voucher_key.public(),
            deposit: 400,
            expires_ms: NOW + 1,
        };
        change(&mut terms);
        let action = Action::Open {
            provider: terms.provider,
            gateway: terms.gateway,
            voucher_key: terms.voucher_key,
            deposit: credits(terms.deposit),
            price_cap: price(),
            expires_ms: terms.expires_ms,
        };
        cast.signed(&cast.consumer, 1, action)
    };
    // 366 days, written out: the bound is part of the protocol.
    let max = NOW + 31_622_400_000;
    let bad_expiry = Err(E::BadExpiry { after: NOW, max });
    let own = cast.consumer.account();

    let cases: Vec<(&str, Signed<Entry>, Result<(), E>)> = vec![
        ("with all there is", open(&|_| {}), Ok(())),
        ("for the longest time", open(&|t| t.expires_ms = max), Ok(())),
        ("one's own gateway", open(&|t| t.gateway = own), Ok(())),
        ("no deposit", open(&|t| t.deposit = 0), Err(E::ZeroAmount)),
        ("a weak provider", open(&|t| t.provider = weak), Err(E::WeakKey("provider"))),
        ("a weak gateway", open(&|t| t.gateway = weak), Err(E::WeakKey("gateway"))),
        ("a weak voucher key", open(&|t| t.voucher_key = weak.0), Err(E::WeakKey("voucher_key"))),
        ("with oneself", open(&|t| t.provider = own), Err(E::SelfSession)),
        ("over already", open(&|t| t.expires_ms = NOW), bad_expiry),
        ("too long", open(&|t| t.expires_ms = max + 1), bad_expiry),
        ("for ever", open(&|t| t.expires_ms = u64::MAX), bad_expiry),
        (
            "more than there is",
            open(&|t| t.deposit = 401),
            Err(E::InsufficientBalance { have: credits(400), need: credits(401) }),
        ),
    ];
    for (name, entry, want) in cases {
        check(name, &book, &entry, (HEIGHT, NOW), want);
    }
}

struct SessionTerms {
    provider: Account,
    gateway: Account,
    voucher_key: PublicKey,
    deposit: u64,
    expires_ms: u64,
}

#[test]
fn an_account_opens_a_bounded_number_of_sessions() {
    let cast = cast();
    let mut book = Book::new(&cast.genesis);
    book.apply(&cast.mint(0, cast.consumer.account(), 10_000), 1, START_MS).expect("minted");
    for nonce in 0..u64::from(OPEN_SESSIONS_MAX) {
        book.apply(&cast.open(nonce, 1), 1, START_MS).expect("below the limit");
    }
    let next = u64::from(OPEN_SESSIONS_MAX);
    let full = ApplyError::TooManySessions { max: OPEN_SESSIONS_MAX };
    check("one too many", &book, &cast.open(next, 1), (1, START_MS), Err(full));
    book.apply(&cast.settle(0, cast.session(7), 1, 1, true), 2, START_MS).expect("one is closed");
    check("after one closed", &book, &cast.open(next, 1), (2, START_MS), Ok(()));
}

#[test]
fn rules_for_settle() {
    use ApplyError as E;
    let cast = cast();
    let book = funded(&cast);
    let session = cast.session(0);
    let settle =
        |voucher: SignedBytes, claim, last| cast.signed(&cast.provider, 1, cast.settle_action(voucher, claim, last));
    let voucher = |total| cast.voucher(session, total);
    let good = |total| Signed::sign(voucher(total), &cast.voucher_key).to_wire();
    let altered = |change: &dyn Fn(&mut SignedBytes)| {
        let mut wire = good(300);
        change(&mut wire);
        wire
    };
    let by = |key: &SecretKey, voucher| Signed::sign(voucher, key).to_wire();
    let foreign = Voucher { network: NetworkId(Digest::of("test", &[b"other"])), ..voucher(300) };
    let unknown = Voucher { session: cast.session(9), ..voucher(300) };
    let stale = Err(E::StaleVoucher { settled: credits(200) });
    let weak = hostile::forged_by_weak_key(&encode(&voucher(300)));

    let cases: Vec<(&str, Signed<Entry>, Result<(), E>)> = vec![
        ("one more micro-credit", settle(good(300), 201, false), Ok(())),
        ("all of the voucher", settle(good(300), 300, false), Ok(())),
        ("all of the deposit, and close", settle(good(600), 600, true), Ok(())),
        ("nothing more, and close", settle(good(300), 200, true), Ok(())),
        ("the same again", settle(good(300), 200, false), stale),
        ("less than is settled", settle(good(300), 199, false), stale),
        ("less than is settled, and close", settle(good(300), 199, true), stale),
        ("an older voucher", settle(good(150), 150, false), stale),
        (
            "more than the voucher",
            settle(good(300), 301, false),
            Err(E::OverVoucher { claim: credits(301), total: credits(300) }),
        ),
        (
            "more than the deposit",
            settle(good(601), 500, false),
            Err(E::OverDeposit { total: credits(601), deposit: credits(600) }),
        ),
        (
            "as much as can be",
            settle(good(u64::MAX), u64::MAX, true),
            Err(E::OverDeposit { total: Credits::MAX, deposit: credits(600) }),
        ),
        ("forged: signed by the provider", settle(by(&cast.provider, voucher(300)), 300, false), Err(E::ForgedVoucher)),
        (
            "forged: signed by the consumer's other key",
            settle(by(&cast.consumer, voucher(300)), 300, false),
            Err(E::ForgedVoucher),
        ),
        ("forged: a changed amount", settle(altered(&|w| w.document[72] ^= 1), 300, false), Err(E::ForgedVoucher)),
        (
            "forged: another's name on it",
            settle(altered(&|w| w.signer = cast.stranger.public()), 300, false),
            Err(E::ForgedVoucher),
        ),
        ("forged: cut short", settle(altered(&|w| w.document.truncate(90)), 300, false), Err(E::ForgedVoucher)),
        ("forged: under a weak key", settle(weak, 300, false), Err(E::ForgedVoucher)),
        ("forged: no document at all", settle(altered(&|w| w.document.clear()), 300, false), Err(E::ForgedVoucher)),
        ("for another network", settle(by(&cast.voucher_key, foreign), 300, false), Err(E::WrongSession)),
        ("for an unknown session", settle(by(&cast.voucher_key, unknown), 300, false), Err(E::UnknownSession)),
        (
            "by a stranger",
            cast.signed(&cast.stranger, 0, cast.settle_action(good(300), 300, false)),
            Err(E::NotProvider),
        ),
        (
            "by the consumer",
            cast.signed(&cast.consumer, 1, cast.settle_action(good(300), 300, false)),
            Err(E::NotProvider),
        ),
    ];
    for (name, entry, want) in cases {
        check(name, &book, &entry, (HEIGHT, NOW), want);
    }
    // A promise holds for as long as the deposit is there, also after expiry.
    check("after expiry and grace", &book, &settle(good(300), 300, false), (HEIGHT, EXPIRED + 1), Ok(()));
}

#[test]
fn a_voucher_pays_only_from_its_own_session() {
    let cast = cast();
    let mut book = funded(&cast);
    let other_key = key(77);
    let Action::Open { provider, gateway, price_cap, expires_ms, .. } = cast.open_action(1) else { unreachable!() };
    let action = Action::Open {
        provider,
        gateway,
        voucher_key: other_key.public(),
        deposit: credits(400),
        price_cap,
        expires_ms,
    };
    book.apply(&cast.signed(&cast.consumer, 1, action), 2, START_MS)
        .expect("a second session with another voucher key");

    // The first session's key signs for the second, and the other way round.
    for (signer, session) in [(&cast.voucher_key, cast.session(1)), (&other_key, cast.session(0))] {
        let voucher = Signed::sign(cast.voucher(session, 300), signer).to_wire();
        let entry = cast.signed(&cast.provider, 1, cast.settle_action(voucher, 300, false));
        check("cross-session", &book, &entry, (HEIGHT, NOW), Err(ApplyError::ForgedVoucher));
    }
}

#[test]
fn settling_the_same_voucher_twice_pays_once() {
    let cast = cast();
    for last in [false, true] {
        let mut book = funded(&cast);
        let first = cast.settle(1, cast.session(0), 300, 300, last);
        book.apply(&first, 2, START_MS).expect("settled");
        let paid = book.balance(&cast.provider.account());
        assert_eq!(paid, credits(210), "70 % of 300");
        let change = if last { 300 } else { 0 };
        assert_eq!(book.balance(&cast.consumer.account()), credits(400 + change));

        let again = cast.settle(2, cast.session(0), 300, 300, last);
        let want = if last { ApplyError::SessionClosed } else { ApplyError::StaleVoucher { settled: credits(300) } };
        check("the voucher again", &book, &again, (HEIGHT, NOW), Err(want));
        check("the entry again", &book, &first, (HEIGHT, NOW), Err(ApplyError::AlreadyApplied { height: 2 }));
    }
}

#[test]
fn rules_for_refund() {
    use ApplyError as E;
    let cast = cast();
    let book = funded(&cast);
    let session = cast.session(0);
    let refund = |key: &SecretKey, nonce, session| cast.signed(key, nonce, Action::Refund { session });
    let early = Err(E::TooEarly { at: EXPIRED });
    let cases = [
        ("in time", refund(&cast.consumer, 1, session), EXPIRED, Ok(())),
        ("within the session", refund(&cast.consumer, 1, session), NOW, early),
        ("within the grace", refund(&cast.consumer, 1, session), EXPIRED - 1, early),
        ("by the provider", refund(&cast.provider, 1, session), EXPIRED, Err(E::NotConsumer)),
        ("by a stranger", refund(&cast.stranger, 0, session), EXPIRED, Err(E::NotConsumer)),
        ("of no session", refund(&cast.consumer, 1, cast.session(9)), EXPIRED, Err(E::UnknownSession)),
    ];
    for (name, entry, now, want) in cases {
        check(name, &book, &entry, (HEIGHT, now), want);
    }

    let mut book = book;
    let applied = book.apply(&refund(&cast.consumer, 1, session), HEIGHT, EXPIRED).expect("in time");
    assert_eq!(applied, Applied::Refunded { session, consumer: cast.consumer.account(), amount: credits(400) });
    assert_eq!(book.balance(&cast.consumer.account()), credits(800));
    let twice = refund(&cast.consumer, 2, session);
    check("twice", &book, &twice, (HEIGHT, EXPIRED), Err(E::SessionClosed));
    let late = cast.settle(1, session, 600, 600, false);
    check("a settlement after the refund", &book, &late, (HEIGHT, EXPIRED), Err(E::SessionClosed));
}

#[test]
fn what_is_remembered_is_bounded() {
    let cast = cast();
    let mut book = funded(&cast);
    book.apply(&cast.settle(1, cast.session(0), 300, 300, true), 2, START_MS).expect("closed at height 2");
    let at = |book: &mut Book, nonce, height| {
        let mut entry =
            cast.entry(&cast.consumer, nonce, Action::Transfer { to: cast.stranger.account(), amount: credits(1) });
        entry.expires_height = height;
        book.apply(&Signed::sign(entry, &cast.consumer), height, START_MS).expect("a transfer");
    };
    at(&mut book, 1, 2 + CLOSED_KEPT_BLOCKS);
    assert!(book.session(&cast.session(0)).is_some(), "a closed session stays readable for a while");
    at(&mut book, 2, 3 + CLOSED_KEPT_BLOCKS);
    assert!(book.session(&cast.session(0)).is_none(), "and is forgotten then");

    // A business id is remembered up to its entry's last height, also when others were forgotten meanwhile.
    let mut to_the_last = funded(&cast);
    let mut entry = cast.entry(&cast.stranger, 0, Action::Transfer { to: cast.provider.account(), amount: credits(1) });
    entry.expires_height = 7;
    let entry = Signed::sign(entry, &cast.stranger);
    to_the_last.apply(&cast.transfer(&cast.consumer, 1, cast.stranger.account(), 5), HEIGHT, NOW).expect("funds");
    to_the_last.apply(&entry, HEIGHT, NOW).expect("a transfer");
    to_the_last.apply(&cast.transfer(&cast.consumer, 2, cast.stranger.account(), 5), 7, NOW).expect("at that height");
    check("at its last height", &to_the_last, &entry, (7, NOW), Err(ApplyError::AlreadyApplied { height: HEIGHT }));

    // The set-up's business ids expired at height 1,000: a retry is now too late rather than applied before.
    let retry = cast.open(0, 600);
    check("long after", &book, &retry, (1_001 + CLOSED_KEPT_BLOCKS, NOW), Err(ApplyError::Expired { at: 1_000 }));
    book.check().expect("the book holds");
}

#[test]
fn a_settlement_is_divided_and_the_rest_returned() {
    let cast = cast();
    let mut book = funded(&cast);
    let applied = book.apply(&cast.settle(1, cast.session(0), 500, 455, true), 2, START_MS).expect("settled");
    let Applied::Settled { gross, parts, change, claim, .. } = applied else { panic!("{applied:?}") };
    assert_eq!((gross, claim, change), (credits(255), credits(455), credits(145)));
    // ceil(455 · 0.7) = 319, of which ceil(200 · 0.7) = 140 were paid before.
    assert_eq!(parts.provider, credits(179));
    for (who, micro) in [
        (cast.provider.account(), 319),
        (cast.gateway.account(), 45),
        (cast.genesis.validators, 45),
        (cast.genesis.treasury, 46),
        (cast.consumer.account(), 400 + 145),
    ] {
        assert_eq!(book.balance(&who), credits(micro), "{who}");
    }
    assert_eq!(book.locked(), Credits::ZERO);
    book.check().expect("the book holds");
}

#[test]
fn an_account_is_proven_with_the_whole_supply() {
    let cast = cast();
    let mut book = funded(&cast);
    for nonce in 1..30 {
        let to = key(100 + u8::try_from(nonce).expect("small")).account();
        book.apply(&cast.transfer(&cast.consumer, nonce, to, nonce % 9 + 1), 2, START_MS).expect("a transfer");
    }
    let (root, supply) = (book.state_root(), book.minted());
    let accounts: Vec<Account> = book.accounts().map(|(account, _)| *account).collect();
    assert!(accounts.len() > 30);
    for account in accounts {
        let proof = book.account_proof(&account).expect("a known account");
        assert_eq!(proof.state, book.account_state(&account));
        let proof: state::AccountProof = decode(&encode(&proof)).expect("a proof survives the wire");
        assert!(proof.verify(&root, supply), "{account}");
        let lie = |change: &dyn Fn(&mut AccountState)| {
            let mut state = proof.state;
            change(&mut state);
            state
        };
        for lie in [
            AccountProof { state: lie(&|s| s.balance = credits(s.balance.micro() + 1)), ..proof.clone() },
            AccountProof { state: lie(&|s| s.bond = credits(1)), ..proof.clone() },
            AccountProof { state: lie(&|s| s.unbonding = credits(u64::MAX)), ..proof.clone() },
            AccountProof { state: lie(&|s| s.nonce += 1), ..proof.clone() },
            AccountProof { rest: Digest::ZERO, ..proof.clone() },
            AccountProof { account: cast.authority.account(), ..proof.clone() },
            AccountProof { slot: proof.slot ^ 1, ..proof.clone() },
            AccountProof { slot: proof.slot + (1 << proof.beside.len()), ..proof.clone() },
        ] {
            assert!(!lie.verify(&root, supply), "{lie:?}");
        }
        assert!(!proof.verify(&root, credits(supply.micro() + 1)));
    }
    assert_eq!(book.account_proof(&cast.authority.account()), None);
}
