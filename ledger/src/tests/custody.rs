//! The rules of what is locked otherwise than by opening a session: top-ups, agreed ends, bonds, payouts.

use super::rules::{check, credits, funded};
use super::*;
use crate::book::PAYOUTS_MAX;

const AT: (u64, u64) = (5, START_MS + 5_000);

#[test]
fn rules_for_top_up() {
    use ApplyError as E;
    let cast = cast();
    let book = funded(&cast);
    let session = cast.session(0);
    let mut closed = book.clone();
    closed.apply(&cast.settle(1, session, 300, 300, true), 2, START_MS).expect("closes");
    let top_up = |key: &SecretKey, session, micro| {
        cast.signed(key, book.nonce(&key.account()), Action::TopUp { session, amount: credits(micro) })
    };
    let unknown = SessionId(Digest::ZERO);
    let have = credits(400);

    let cases = [
        ("top up", &book, top_up(&cast.consumer, session, 1), Ok(())),
        ("with all there is", &book, top_up(&cast.consumer, session, 400), Ok(())),
        ("nothing", &book, top_up(&cast.consumer, session, 0), Err(E::ZeroAmount)),
        ("an unknown session", &book, top_up(&cast.consumer, unknown, 1), Err(E::UnknownSession)),
        ("by the provider", &book, top_up(&cast.provider, session, 1), Err(E::NotConsumer)),
        ("a closed session", &closed, top_up(&cast.consumer, session, 1), Err(E::SessionClosed)),
        (
            "with more than there is",
            &book,
            top_up(&cast.consumer, session, 401),
            Err(E::InsufficientBalance { have, need: credits(401) }),
        ),
    ];
    for (name, book, entry, want) in cases {
        check(name, book, &entry, AT, want);
    }
    let mut book = book.clone();
    book.apply(&top_up(&cast.consumer, session, 300), 2, START_MS).expect("tops up");
    let after = cast.settle(1, session, 900, 900, true);
    let Ok(Applied::Settled { gross, change, .. }) = book.apply(&after, 3, START_MS) else { panic!("settles") };
    assert_eq!((gross.micro(), change.micro()), (700, 0), "the larger deposit is there to be settled");
}

#[test]
fn rules_for_close() {
    use ApplyError as E;
    let cast = cast();
    let book = funded(&cast);
    let session = cast.session(0);
    let mut closed = book.clone();
    closed.apply(&cast.settle(1, session, 300, 300, true), 2, START_MS).expect("closes");
    let good = Closing { total: credits(250), ..wire::closing(&cast) };
    let close = |by: &SecretKey, other: &SecretKey, closing: Closing| {
        let closing = Signed::sign(closing, other).to_wire();
        cast.signed(by, book.nonce(&by.account()), Action::Close { closing })
    };
    let (consumer, provider, stranger) = (&cast.consumer, &cast.provider, &cast.stranger);
    let mut altered = Signed::sign(good, consumer).to_wire();
    altered.document[64] ^= 1;
    let altered = cast.signed(provider, 1, Action::Close { closing: altered });
    let with = |change: &dyn Fn(&mut Closing)| {
        let mut closing = good;
        change(&mut closing);
        close(provider, consumer, closing)
    };
    let settled = credits(200);
    let over = E::OverDeposit { total: credits(601), deposit: credits(600) };

    let cases = [
        ("by the provider", &book, close(provider, consumer, good), Ok(())),
        ("by the consumer", &book, close(consumer, provider, good), Ok(())),
        ("with nothing new", &book, with(&|c| c.total = settled), Ok(())),
        ("with all of it", &book, with(&|c| c.total = credits(600)), Ok(())),
        ("altered", &book, altered, Err(E::ForgedClosing)),
        ("of another network", &book, with(&|c| c.network = NetworkId(Digest::ZERO)), Err(E::WrongSession)),
        ("of no session", &book, with(&|c| c.session = SessionId(Digest::ZERO)), Err(E::UnknownSession)),
        ("by a stranger", &book, close(stranger, consumer, good), Err(E::NotParty)),
        ("signed by a stranger", &book, close(provider, stranger, good), Err(E::ForgedClosing)),
        ("signed by oneself", &book, close(provider, provider, good), Err(E::ForgedClosing)),
        (
            "a closed session",
            &closed,
            {
                let closing = Signed::sign(good, consumer).to_wire();
                cast.signed(provider, 2, Action::Close { closing })
            },
            Err(E::SessionClosed),
        ),
        ("above the deposit", &book, with(&|c| c.total = credits(601)), Err(over)),
        ("below what is settled", &book, with(&|c| c.total = credits(199)), Err(E::StaleVoucher { settled })),
    ];
    for (name, book, entry, want) in cases {
        check(name, book, &entry, AT, want);
    }
    let mut book = book.clone();
    let Ok(Applied::Closed { gross, change, parts, .. }) = book.apply(&close(provider, consumer, good), 2, START_MS)
    else {
        panic!("closes")
    };
    assert_eq!((gross.micro(), change.micro(), parts.provider.micro()), (50, 350, 35));
    assert_eq!(book.balance(&consumer.account()).micro(), 750);
}

#[test]
fn rules_for_bond_and_unbond() {
    use ApplyError as E;
    let cast = cast();
    let consumer = &cast.consumer;
    let mut book = funded(&cast);
    let act = |book: &Book, key: &SecretKey, action| cast.signed(key, book.nonce(&key.account()), action);
    let bond = |book: &Book, micro| act(book, consumer, Action::Bond { amount: credits(micro) });
    let unbond = |book: &Book, micro| act(book, consumer, Action::Unbond { amount: credits(micro) });

    let short = |need| Err(E::InsufficientBalance { have: credits(400), need: credits(need) });
    check("bond", &book, &bond(&book, 1), AT, Ok(()));
    check("bond all", &book, &bond(&book, 400), AT, Ok(()));
    check("bond nothing", &book, &bond(&book, 0), AT, Err(E::ZeroAmount));
    check("bond too much", &book, &bond(&book, 401), AT, short(401));
    check(
        "unbond without",
        &book,
        &unbond(&book, 1),
        AT,
        Err(E::InsufficientBond { have: credits(0), need: credits(1) }),
    );

    book.apply(&bond(&book, 300), 5, AT.1).expect("bonds");
    assert_eq!((book.balance(&consumer.account()), book.bond(&consumer.account())), (credits(100), credits(300)));
    check("unbond nothing", &book, &unbond(&book, 0), AT, Err(E::ZeroAmount));
    let too_much = E::InsufficientBond { have: credits(300), need: credits(301) };
    check("unbond too much", &book, &unbond(&book, 301), AT, Err(too_much));
    book.apply(&unbond(&book, 200), 5, AT.1).expect("unbonds");
    let due = AT.1 + cast.genesis.unbond_ms;
    check("unbond again", &book, &unbond(&book, 1), AT, Err(E::UnbondPending { until_ms: due }));

    // Nothing comes back before its time, whatever entries come; then it does with the next block.
    for (height, time_ms, balance, unbonding) in [(6, due - 1, 100, 200), (7, due, 300, 0), (8, due + 1, 300, 0)] {
        let before = (book.state_root(), book.contents());
        book.begin();
        book.begin_block(height, time_ms);
        book.rollback();
        assert_eq!((book.state_root(), book.contents()), before, "a block that is only tried leaves no trace");
        book.begin_block(height, time_ms);
        let state = book.account_state(&consumer.account());
        assert_eq!((state.balance.micro(), state.unbonding.micro()), (balance, unbonding), "height {height}");
        book.check().expect("the book holds");
    }
    check("unbond the rest", &book, &unbond(&book, 100), (9, due + 2), Ok(()));
}

#[test]
fn a_validator_keeps_its_bond() {
    let cast = cast();
    let authority = &cast.authority;
    let mut book = funded(&cast);
    let fund = cast.mint(1, authority.account(), 3_000);
    book.apply(&fund, 2, START_MS).expect("mints");
    book.apply(&cast.signed(authority, 0, Action::Bond { amount: credits(1_500) }), 2, START_MS).expect("bonds");
    let unbond = |micro| cast.signed(authority, 1, Action::Unbond { amount: credits(micro) });
    check("above the least", &book, &unbond(500), AT, Ok(()));
    check("below the least", &book, &unbond(501), AT, Err(ApplyError::BondInUse { need: credits(1_000) }));
}

#[test]
fn a_figure_that_is_off_is_found() {
    let cast = cast();
    let mut book = Book::new(&cast.genesis);
    let act = |book: &Book, action| cast.signed(&cast.consumer, book.nonce(&cast.consumer.account()), action);
    book.apply(&cast.mint(0, cast.consumer.account(), 10_000), 1, START_MS).expect("mints");
    let session = cast.session(book.nonce(&cast.consumer.account()));
    for action in [
        cast.open_action(1_000),
        Action::Bond { amount: credits(400) },
        Action::Unbond { amount: credits(150) },
        Action::PayoutRequest { amount: credits(70), payee: Digest::of("test", &[b"payee"]) },
    ] {
        let entry = act(&book, action);
        book.apply(&entry, 2, START_MS).expect("valid");
    }
    // With a price cap of 1 and 2 a unit, a claim is what the usage allows; the rest of the deposit stays locked.
    book.apply(&cast.settle(0, session, 8, 8, false), 3, START_MS).expect("settles");
    assert_eq!(book.height(), 3);
    let known: Vec<_> = book.sessions().map(|(id, state)| (*id, state.deposit, state.settled)).collect();
    assert_eq!(known, [(session, credits(1_000), credits(8))]);
    assert_eq!(encode(book.session(&session).expect("known")).len(), SessionState::BYTES_MAX, "no part of it varies");
    book.check().expect("the book holds");
    for (number, (part, falsified)) in book.falsified().into_iter().enumerate() {
        let found = match falsified.check() {
            Ok(()) => "nothing",
            Err(Violation::Session(id)) if id == session => "session",
            Err(Violation::Counts(account)) if account == cast.consumer.account() => "counts",
            Err(Violation::Total { .. }) => "total",
            Err(Violation::Conservation { .. }) => "supply",
            Err(other) => panic!("{number}: {other}"),
        };
        assert_eq!(found, part, "{number}");
    }
}

#[test]
fn rules_for_payouts() {
    use ApplyError as E;
    let cast = cast();
    let mut book = funded(&cast);
    let (consumer, issuer) = (&cast.consumer, &cast.issuer);
    let payee = Digest::of("test", &[b"payee"]);
    let request = |book: &Book, micro| {
        let action = Action::PayoutRequest { amount: credits(micro), payee };
        cast.signed(consumer, book.nonce(&consumer.account()), action)
    };
    let short = E::InsufficientBalance { have: credits(400), need: credits(401) };
    check("request", &book, &request(&book, 10), AT, Ok(()));
    check("request all", &book, &request(&book, 400), AT, Ok(()));
    check("request nothing", &book, &request(&book, 0), AT, Err(E::ZeroAmount));
    check("request too little", &book, &request(&book, 9), AT, Err(E::BelowMinimum { min: credits(10) }));
    check("request too much", &book, &request(&book, 401), AT, Err(short));

    let mut payouts = Vec::new();
    for _ in 0..2 {
        let Ok(Applied::PayoutRequested { payout, state }) = book.apply(&request(&book, 50), 5, AT.1) else {
            panic!("requests")
        };
        assert_eq!(book.payout(&payout), Some(&state));
        assert_eq!((state.account, state.amount, state.payee), (consumer.account(), credits(50), payee));
        payouts.push(payout);
    }
    let (first, second) = (payouts[0], payouts[1]);
    let unknown = PayoutId(Digest::ZERO);
    let burn = |book: &Book, key: &SecretKey, payout, reference: &str| {
        let action = Action::Burn { payout, reference: reference.to_owned() };
        cast.signed(key, book.nonce(&key.account()), action)
    };
    let reject = |book: &Book, key: &SecretKey, payout| {
        let action = Action::PayoutReject { payout, reason: RejectReason::Returned };
        cast.signed(key, book.nonce(&key.account()), action)
    };
    check("burn", &book, &burn(&book, issuer, first, "bank 1"), AT, Ok(()));
    check("burn by the account", &book, &burn(&book, consumer, first, "bank 1"), AT, Err(E::NotIssuer));
    check("burn what nobody asked for", &book, &burn(&book, issuer, unknown, "b"), AT, Err(E::UnknownPayout));
    check("reject", &book, &reject(&book, issuer, first), AT, Ok(()));
    check("reject by the account", &book, &reject(&book, consumer, first), AT, Err(E::NotIssuer));
    check("reject what nobody asked for", &book, &reject(&book, issuer, unknown), AT, Err(E::UnknownPayout));
    // A mint's reference is another kind than a burn's.
    check("burn with a deposit's reference", &book, &burn(&book, issuer, first, "deposit 0"), AT, Ok(()));

    let supply = book.supply();
    book.apply(&burn(&book, issuer, first, "bank 1"), 6, AT.1).expect("burns");
    assert_eq!(book.supply().micro(), supply.micro() - 50, "burned credits are gone");
    check("burn twice", &book, &burn(&book, issuer, first, "bank 2"), (6, AT.1), Err(E::UnknownPayout));
    let reused = burn(&book, issuer, second, "bank 1");
    check("burn with a used reference", &book, &reused, (6, AT.1), Err(E::DuplicateReference));
    book.apply(&reject(&book, issuer, second), 6, AT.1).expect("rejects");
    let state = book.account_state(&consumer.account());
    assert_eq!((state.balance.micro(), state.payouts), (350, 0), "rejected credits are back");
    assert_eq!((book.payouts().count(), book.totals().burned.micro()), (0, 50));

    let mut book = Book::new(&cast.genesis);
    book.apply(&cast.mint(0, consumer.account(), 10_000), 1, START_MS).expect("mints");
    for _ in 0..PAYOUTS_MAX {
        book.apply(&request(&book, 10), 1, START_MS).expect("requests");
    }
    check("one too many", &book, &request(&book, 10), AT, Err(E::TooManyPayouts { max: PAYOUTS_MAX }));
}
