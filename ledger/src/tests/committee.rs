//! Several validators: their certificates, how they elect others, and what becomes of those who say two things.

use super::rules::{check, credits};
use super::*;
use crate::book::{ELECTIONS_PER_VOTER_MAX, EXPIRY_HEIGHTS_MAX};

/// A network of four validators with the keys 20 to 23, a rich consumer, and their keys in the order of their public ones.
pub(super) fn committee() -> (Cast, Vec<SecretKey>) {
    let mut keys: Vec<SecretKey> = (20..24).map(key).collect();
    keys.sort_by_key(SecretKey::public);
    let mut cast = cast();
    cast.genesis.committee = keys.iter().map(SecretKey::public).collect();
    (cast, keys)
}

fn rich(cast: &Cast) -> Book {
    let mut book = Book::new(&cast.genesis);
    book.apply(&cast.mint(0, cast.consumer.account(), 100_000), 1, START_MS).expect("mints");
    book
}

fn act(cast: &Cast, book: &Book, key: &SecretKey, action: Action) -> Signed<Entry> {
    cast.signed(key, book.nonce(&key.account()), action)
}

/// A block with the certificate of `signers`.
pub(super) fn certify(cast: &Cast, block: Block, round: u32, signers: &[SecretKey]) -> CertifiedBlock {
    let sign = |key| Certificate::sign(&cast.network(), &block.header, round, key);
    let mut signatures: Vec<_> = signers.iter().map(sign).collect();
    signatures.sort_by_key(|(key, _)| *key);
    let certificate = Certificate { block: block.header.digest(), round, signatures };
    CertifiedBlock { block, certificate }
}

#[test]
fn a_block_is_final_by_more_than_two_thirds() {
    use CertificateError as E;
    let (cast, keys) = committee();
    let block = wire::example_block(&cast).block;
    let validators = cast.genesis.first_validators();
    let certified = |signers: &[SecretKey]| certify(&cast, block.clone(), 3, signers).certificate;
    let with = |change: &dyn Fn(&mut Certificate)| {
        let mut certificate = certified(&keys[..3]);
        change(&mut certificate);
        certificate
    };
    let stranger = [keys[0].clone(), keys[1].clone(), key(9)];
    let others = Digest::of("test", &[b"another block"]);
    let nil = Vote { network: cast.network(), height: 1, round: 3, step: Step::Precommit, block: None };
    let nil = (keys[0].public(), keys[0].sign(Vote::DOMAIN, &encode(&nil)));
    let prevote = Vote { step: Step::Prevote, block: Some(block.header.digest()), ..vote_of(&cast) };
    let prevote = (keys[0].public(), keys[0].sign(Vote::DOMAIN, &encode(&prevote)));

    let cases: Vec<(&str, Certificate, Result<(), E>)> = vec![
        ("three of four", certified(&keys[..3]), Ok(())),
        ("all four", certified(&keys), Ok(())),
        ("two of four", certified(&keys[..2]), Err(E::NoQuorum { got: 2, need: 3 })),
        ("three with a stranger", certified(&stranger), Err(E::NotValidator(key(9).public()))),
        ("one thrice", with(&|c| c.signatures = vec![c.signatures[0]; 3]), Err(E::Unsorted)),
        ("of another block", with(&|c| c.block = others), Err(E::OtherBlock)),
        ("of another round", with(&|c| c.round = 4), Err(E::BadSignature(keys[0].public()))),
        ("with a vote for nothing", with(&|c| c.signatures[0] = nil), Err(E::BadSignature(keys[0].public()))),
        ("with a prevote", with(&|c| c.signatures[0] = prevote), Err(E::BadSignature(keys[0].public()))),
    ];
    for (name, certificate, want) in cases {
        assert_eq!(certificate.verify(&cast.network(), &block.header, &validators), want, "{name}");
    }
    let other_network = NetworkId(Digest::ZERO);
    let elsewhere = certified(&keys).verify(&other_network, &block.header, &validators);
    assert_eq!(elsewhere, Err(E::BadSignature(keys[0].public())), "a network's votes are its own");
}

fn vote_of(cast: &Cast) -> Vote {
    Vote { network: cast.network(), height: 1, round: 3, step: Step::Precommit, block: None }
}

#[test]
fn rules_for_elect() {
    use ApplyError as E;
    let (cast, keys) = committee();
    let new = key(30);
    let mut book = rich(&cast);
    let elect = |book: &Book, voter: &SecretKey, validator: PublicKey, member, at| {
        act(&cast, book, voter, Action::Elect { validator, member, at })
    };
    let at = (2, START_MS);
    let poor = E::InsufficientBond { have: credits(0), need: credits(1_000) };
    check("without a bond", &book, &elect(&book, &keys[0], new.public(), true, 9), at, Err(poor));
    let weak = hostile::weak_account().0;
    check("a weak key", &book, &elect(&book, &keys[0], weak, true, 9), at, Err(E::WeakKey("validator")));

    book.apply(&cast.transfer(&cast.consumer, 0, new.account(), 1_000), 2, START_MS).expect("pays");
    book.apply(&act(&cast, &book, &new, Action::Bond { amount: credits(1_000) }), 2, START_MS).expect("bonds");
    let max = 2 + EXPIRY_HEIGHTS_MAX;
    let bad = |after| Err(E::BadElectionHeight { after, max });
    let cases = [
        ("a vote", elect(&book, &keys[0], new.public(), true, 9), Ok(())),
        ("at the last height", elect(&book, &keys[0], new.public(), true, max), Ok(())),
        ("too far ahead", elect(&book, &keys[0], new.public(), true, max + 1), bad(2)),
        ("at once", elect(&book, &keys[0], new.public(), true, 2), bad(2)),
        ("by a stranger", elect(&book, &cast.stranger, new.public(), true, 9), Err(E::NotValidator)),
        (
            "who is one already",
            elect(&book, &keys[0], keys[1].public(), true, 9),
            Err(E::InsufficientBond { have: credits(0), need: credits(1_000) }),
        ),
        ("out who is none", elect(&book, &keys[0], new.public(), false, 9), Err(E::NothingToElect)),
        ("out who is one", elect(&book, &keys[0], keys[1].public(), false, 9), Ok(())),
    ];
    for (name, entry, want) in cases {
        check(name, &book, &entry, at, want);
    }

    // Three of four decide; until then and until the height nothing changes.
    for (voter, decides) in [(0, false), (1, false), (2, true)] {
        let entry = elect(&book, &keys[voter], new.public(), true, 9);
        let Ok(Applied::Elected { decided, .. }) = book.apply(&entry, 2, START_MS) else { panic!("votes") };
        assert_eq!(decided, decides, "voter {voter}");
        let again = act(&cast, &book, &keys[voter], Action::Elect { validator: new.public(), member: true, at: 9 });
        let twice = if decides { E::NothingToElect } else { E::AlreadyVoted };
        check("a second vote", &book, &again, at, Err(twice));
    }
    let under_way: Vec<_> =
        book.elections().map(|(election, votes, decided)| (election.at, election.member, votes, decided)).collect();
    assert_eq!(under_way, [(9, true, 3, true)]);
    // Another is voted on, for later: it stays when this one is over, also if no block has that very height.
    let mut later = book.clone();
    for voter in &keys[..3] {
        let entry = elect(&later, voter, keys[3].public(), false, 20);
        later.apply(&entry, 2, START_MS).expect("votes");
    }
    for (height, size, left) in [(8, 4, 2), (12, 5, 1), (25, 4, 0)] {
        later.begin_block(height, START_MS);
        assert_eq!((later.validators_at(height).keys().len(), later.elections().count()), (size, left), "{height}");
        later.check().expect("the book holds");
    }
    let (old, five) = (cast.genesis.first_validators(), cast.genesis.first_validators().with(new.public(), true));
    assert_eq!((book.validators_at(8), book.validators_at(9)), (old, five.clone()));
    for height in [8, 9, 10] {
        let before = (book.state_root(), book.contents());
        book.begin();
        book.begin_block(height, START_MS);
        book.rollback();
        assert_eq!((book.state_root(), book.contents()), before, "a block that is only tried leaves no trace");
        book.begin_block(height, START_MS);
        let present = elect(&book, &new, keys[0].public(), false, 20);
        let want = if height < 9 { Err(E::NotValidator) } else { Ok(()) };
        check("the fifth votes", &book, &present, (height, START_MS), want);
    }
    assert_eq!((book.validators_at(10), book.elections().count()), (five, 0));
    for at in 0..ELECTIONS_PER_VOTER_MAX as u64 {
        let entry = elect(&book, &keys[0], keys[1].public(), false, 20 + at);
        book.apply(&entry, 10, START_MS).expect("votes");
    }
    let many = E::TooManyElections { max: ELECTIONS_PER_VOTER_MAX };
    check("too many", &book, &elect(&book, &keys[0], keys[2].public(), false, 90), (10, START_MS), Err(many));
}

#[test]
fn the_last_validator_stays() {
    let cast = cast();
    let book = rich(&cast);
    let out = Action::Elect { validator: cast.authority.public(), member: false, at: 9 };
    let out = act(&cast, &book, &cast.authority, out);
    check("the last one", &book, &out, (2, START_MS), Err(ApplyError::CommitteeSize));

    // Nor do its lies cost it the place: there would be nobody to go on.
    let mut cast = cast;
    (cast.authority, cast.genesis.committee) = (key(20), vec![key(20).public()]);
    let mut book = rich(&cast);
    book.apply(&cast.transfer(&cast.consumer, 0, cast.authority.account(), 1_000), 1, START_MS).expect("pays");
    let bond = act(&cast, &book, &cast.authority, Action::Bond { amount: credits(1_000) });
    book.apply(&bond, 1, START_MS).expect("bonds");
    let [a, b] = [b"a", b"b"].map(|block| Signed::sign(wire::vote(&cast, block), &cast.authority).to_wire());
    let show = Action::Evidence { evidence: Evidence::Votes { first: a, second: b } };
    let Ok(Applied::Punished { removed, slashed, .. }) =
        book.apply(&act(&cast, &book, &cast.stranger, show), 3, START_MS)
    else {
        panic!("shown")
    };
    assert!(!removed && slashed == credits(1_000));
    assert!(book.validators_at(4).contains(&cast.authority.public()));
}

#[test]
fn a_committee_has_at_most_128() {
    let mut cast = cast();
    let mut keys: Vec<SecretKey> = (100..228).map(key).collect();
    keys.sort_by_key(SecretKey::public);
    cast.genesis.committee = keys.iter().map(SecretKey::public).collect();
    let mut book = rich(&cast);
    let new = key(30);
    book.apply(&cast.transfer(&cast.consumer, 0, new.account(), 1_000), 1, START_MS).expect("pays");
    book.apply(&act(&cast, &book, &new, Action::Bond { amount: credits(1_000) }), 1, START_MS).expect("bonds");
    let elect = |validator: PublicKey, member| Action::Elect { validator, member, at: 9 };
    let vote = |validator, member| act(&cast, &book, &keys[0], elect(validator, member));
    check("a 129th", &book, &vote(new.public(), true), (2, START_MS), Err(ApplyError::CommitteeSize));
    check("one of 128 out", &book, &vote(keys[1].public(), false), (2, START_MS), Ok(()));
}

#[test]
fn rules_for_evidence() {
    use ApplyError as E;
    let (mut cast, keys) = committee();
    cast.authority = keys[1].clone();
    let mut book = rich(&cast);
    let bond = |book: &mut Book, key: &SecretKey, micro| {
        let nonce = book.nonce(&cast.consumer.account());
        book.apply(&cast.transfer(&cast.consumer, nonce, key.account(), micro), 1, START_MS).expect("pays");
        let bond = act(&cast, book, key, Action::Bond { amount: credits(micro) });
        book.apply(&bond, 1, START_MS).expect("bonds");
    };
    let [votes, proposals, receipts] = wire::evidence(&cast);
    let show = |book: &Book, evidence: &Evidence| {
        act(&cast, book, &cast.stranger, Action::Evidence { evidence: evidence.clone() })
    };
    let at = (2, START_MS);
    check("of a provider without a bond", &book, &show(&book, &receipts), at, Err(E::NothingAtStake));
    bond(&mut book, &cast.provider, 105);
    bond(&mut book, &cast.authority, 1_000);

    let sign = |vote: Vote, key: &SecretKey| Signed::sign(vote, key).to_wire();
    let vote = |block: &[u8]| wire::vote(&cast, block);
    let pair = |first: SignedBytes, second: SignedBytes| Evidence::Votes { first, second };
    let by = |a: Vote, b: Vote| pair(sign(a, &cast.authority), sign(b, &cast.authority));
    let mut broken = sign(vote(b"b"), &cast.authority);
    broken.document[40] ^= 1;
    let nil = Vote { block: None, ..vote(b"a") };
    let receipt = wire::example_receipt(&cast);
    let receipt_pair = |change: &dyn Fn(&mut Receipt)| {
        let mut other = receipt.clone();
        change(&mut other);
        let [first, second] = [receipt.clone(), other].map(|one| Signed::sign(one, &cast.provider).to_wire());
        Evidence::Receipts { first, second }
    };
    let swapped = Evidence::Proposals { first: votes.documents().0.clone(), second: votes.documents().1.clone() };
    let proposed = |change: &dyn Fn(&mut Proposal)| {
        let mut other = wire::proposal(&cast, b"a");
        change(&mut other);
        let [first, second] =
            [wire::proposal(&cast, b"a"), other].map(|one| Signed::sign(one, &cast.authority).to_wire());
        Evidence::Proposals { first, second }
    };
    let fine = [
        ("two votes", votes.clone()),
        ("a vote for one and for nothing", by(vote(b"a"), nil)),
        ("two proposals", proposals.clone()),
        ("two receipts", receipts.clone()),
        ("two receipts of two times", receipt_pair(&|r| r.time_ms += 1)),
    ];
    for (name, evidence) in &fine {
        check(name, &book, &show(&book, evidence), at, Ok(()));
    }
    let none = [
        ("one vote twice", by(vote(b"a"), vote(b"a"))),
        ("votes of two heights", by(vote(b"a"), Vote { height: 8, ..vote(b"b") })),
        ("votes of two rounds", by(vote(b"a"), Vote { round: 2, ..vote(b"b") })),
        ("votes of two steps", by(vote(b"a"), Vote { step: Step::Precommit, ..vote(b"b") })),
        ("votes of two networks", by(vote(b"a"), Vote { network: NetworkId(Digest::ZERO), ..vote(b"b") })),
        ("two voters", pair(sign(vote(b"a"), &keys[1]), sign(vote(b"b"), &keys[2]))),
        ("a broken signature", pair(sign(vote(b"a"), &cast.authority), broken)),
        ("votes shown as proposals", swapped),
        ("proposals of one block", proposed(&|p| p.valid_round = None)),
        ("proposals of two rounds", proposed(&|p| (p.round, p.block) = (3, Digest::ZERO))),
        ("receipts of two jobs", receipt_pair(&|r| r.job = JobId([1; 16]))),
        ("receipts of two legs", receipt_pair(&|r| r.leg += 1)),
        ("receipts of two sessions", receipt_pair(&|r| r.session = SessionId(Digest::ZERO))),
        ("receipts of two networks", receipt_pair(&|r| r.network = NetworkId(Digest::ZERO))),
        ("one receipt twice", receipt_pair(&|_| {})),
    ];
    for (name, evidence) in &none {
        check(name, &book, &show(&book, evidence), at, Err(E::NoOffence));
    }
    let elsewhere = Vote { network: NetworkId(Digest::ZERO), ..vote(b"a") };
    let both_elsewhere = by(elsewhere, Vote { block: None, ..elsewhere });
    check("all of another network", &book, &show(&book, &both_elsewhere), at, Err(E::NoOffence));

    // The provider loses its bond, a tenth of it to who showed it; once.
    let treasury = book.balance(&cast.genesis.treasury).micro();
    book.apply(&show(&book, &receipts), 2, START_MS).expect("shown");
    let after = book.account_state(&cast.provider.account());
    assert_eq!((after.bond.micro(), after.balance.micro()), (0, 0));
    assert_eq!(book.balance(&cast.stranger.account()).micro(), 10);
    assert_eq!(book.balance(&cast.genesis.treasury).micro(), treasury + 95);
    assert_eq!(book.totals().slashed.micro(), 105);
    check("again", &book, &show(&book, &receipts), at, Err(E::KnownOffence));
    let Evidence::Receipts { first, second } = receipts else { unreachable!("it is of receipts") };
    let turned = Evidence::Receipts { first: second, second: first };
    check("again, the other way round", &book, &show(&book, &turned), at, Err(E::KnownOffence));

    // A validator loses its place too, from the next block on; what it asked back is taken as well.
    let unbond = act(&cast, &book, &cast.authority, Action::Unbond { amount: credits(0) });
    check("unbond nothing", &book, &unbond, at, Err(E::ZeroAmount));
    let Ok(Applied::Punished { removed, slashed, .. }) = book.apply(&show(&book, &votes), 3, START_MS) else {
        panic!("shown")
    };
    assert!(removed && slashed == credits(1_000));
    let offender = cast.authority.public();
    assert!(book.validators_at(3).contains(&offender) && !book.validators_at(4).contains(&offender));
    check(
        "the same round's votes again",
        &book,
        &show(&book, &by(vote(b"a"), nil)),
        (3, START_MS),
        Err(E::KnownOffence),
    );
    check("what else it did", &book, &show(&book, &proposals), (3, START_MS), Err(E::NothingAtStake));
    book.begin_block(4, START_MS);
    assert_eq!(book.validators_at(5).keys().len(), 3);
    book.check().expect("the book holds");
}

#[test]
fn what_was_asked_back_is_still_at_stake() {
    let cast = cast();
    let mut book = rich(&cast);
    let provider = cast.provider.account();
    book.apply(&cast.transfer(&cast.consumer, 0, provider, 500), 1, START_MS).expect("pays");
    for (height, action) in [(1, Action::Bond { amount: credits(500) }), (2, Action::Unbond { amount: credits(450) })] {
        book.apply(&act(&cast, &book, &cast.provider, action), height, START_MS).expect("valid");
    }
    let [_, _, receipts] = wire::evidence(&cast);
    let show = act(&cast, &book, &cast.stranger, Action::Evidence { evidence: receipts });
    let due = START_MS + cast.genesis.unbond_ms;
    check("in time", &book, &show, (3, due - 1), Ok(()));
    let mut late = book.clone();
    let Ok(Applied::Punished { slashed, .. }) = late.apply(&show, 3, due) else { panic!("a rest is still there") };
    assert_eq!(slashed.micro(), 50, "what came back is safe");
    let Ok(Applied::Punished { slashed, .. }) = book.apply(&show, 3, due - 1) else { panic!("in time") };
    assert_eq!(slashed.micro(), 500);
    book.begin_block(4, due + 10_000);
    assert_eq!(book.balance(&provider), credits(0), "nothing comes back of what was taken");
    book.check().expect("the book holds");
}

#[test]
fn a_committee_s_replicas_agree_through_a_change() {
    let (cast, keys) = committee();
    let (a, b) = (tempfile::tempdir().expect("a folder"), tempfile::tempdir().expect("a folder"));
    let mut proposer = Replica::open(a.path(), &cast.genesis).expect("opens");
    let mut other = Replica::open(b.path(), &cast.genesis).expect("opens");
    let new = key(30);
    let commit = |proposer: &mut Replica, other: &mut Replica, entries: Vec<Signed<Entry>>, signers: &[SecretKey]| {
        for entry in entries {
            proposer.submit(entry).expect("queued");
        }
        let time = proposer.time_ms() + 1;
        let block = proposer.propose(time).unwrap_or_else(|| proposer.propose_empty(time));
        other.validate(&block).expect("valid");
        proposer.validate(&block).expect("valid");
        let block = certify(&cast, block, 0, signers);
        Replicator::commit(proposer, block.clone()).expect("final");
        Replicator::commit(other, block).expect("final");
        assert_eq!((proposer.tip(), proposer.waiting()), (other.tip(), 0));
    };
    let bond = cast.signed(&new, 0, Action::Bond { amount: credits(1_000) });
    let paid = vec![
        cast.mint(0, cast.consumer.account(), 9_000),
        cast.transfer(&cast.consumer, 0, new.account(), 1_000),
        bond,
    ];
    commit(&mut proposer, &mut other, paid, &keys[..3]);
    let elect =
        |voter: &SecretKey| cast.signed(voter, 0, Action::Elect { validator: new.public(), member: true, at: 4 });
    commit(&mut proposer, &mut other, keys[..3].iter().map(elect).collect(), &keys[1..]);
    commit(&mut proposer, &mut other, Vec::new(), &keys);
    assert_eq!(proposer.validators().keys().len(), 5);
    // From here on four of five are needed, and the new one counts.
    let block = proposer.propose_empty(0);
    let few = certify(&cast, block.clone(), 0, &keys[..3]);
    let error = Replicator::commit(&mut other, few).expect_err("three of five are too few");
    let FollowError::Block(BlockError::Certificate(CertificateError::NoQuorum { got: 3, need: 4 })) = error else {
        panic!("{error}")
    };
    let with_new = [&keys[1..], &[new]].concat();
    commit(&mut proposer, &mut other, Vec::new(), &with_new);
    let proof = other.prove_account(&cast.consumer.account()).expect("known");
    assert_eq!(proof.verify().expect("holds").height, 4);
    let (tip, blocks) = (other.tip(), other.blocks(1, 10).expect("read"));
    drop((proposer, other));
    for folder in [&a, &b] {
        assert_eq!(verify_folder(folder.path()).expect("verifies").tip, tip);
    }
    assert_eq!(verify_blocks(&cast.genesis, blocks).expect("verifies").tip, tip);
}
