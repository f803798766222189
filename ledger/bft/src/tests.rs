//! The crate's own tests, without an engine: messages as bytes, and blocks in pieces.

use arc_malachitebft_app_channel::app::types::codec::{Codec, HasEncodedLen};
use arc_malachitebft_core_consensus::{LivenessMsg, ProposedValue, SignedConsensusMsg};
use arc_malachitebft_core_types as types;
use arc_malachitebft_engine::util::streaming::StreamMessage;
use arc_malachitebft_peer::PeerId;
use arc_malachitebft_signing::{Signer, Verifier};
use arc_malachitebft_sync as sync;
use bytes::Bytes;
use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spillway_ledger::{
    Account, Action, Block, Certificate, Credits, Digest, Document, Entry, Header, NetworkId, SecretKey, Signed,
    SignedBytes, ValidatorSet, encode,
};
use types::{Context, NilOrVal, PolkaCertificate, PolkaSignature, Round, RoundCertificate, RoundCertificateType};
use types::{RoundSignature, Validity, VoteType};

use crate::codec::{LogCodec, WireCodec, message};
use crate::context::{Address, BlockId, Height, Ledger, Members};
use crate::held::Held;
use crate::part::{Opening, PIECE_BYTES, Part, Piece, SHARED_ENTRIES_MAX, Shared, announce, pieces, shared};
use crate::pool::{Pool, Taken};
use crate::signer::{LedgerSigner, LedgerVerifier};
use crate::wire::{certificate, extended};

fn key(number: u8) -> SecretKey {
    SecretKey::generate([number; 32])
}

fn network() -> NetworkId {
    NetworkId(Digest::of("test", &[]))
}

fn ledger() -> Ledger {
    Ledger { network: network() }
}

fn keys() -> Vec<SecretKey> {
    let mut keys: Vec<SecretKey> = (1..=4).map(key).collect();
    keys.sort_by_key(SecretKey::public);
    keys
}

fn members() -> Members {
    let keys = keys().iter().map(SecretKey::public).collect();
    Members::from(&ValidatorSet::new(keys).expect("four keys"))
}

fn entry(number: u64, reference: usize) -> SignedBytes {
    let by = key(9);
    let action = Action::Mint { to: by.account(), amount: Credits::new(number + 1), reference: "r".repeat(reference) };
    let mut business = [0; 16];
    business[..8].copy_from_slice(&number.to_le_bytes());
    let entry =
        Entry { network: network(), account: Account(by.public()), nonce: number, expires_height: 9, business, action };
    Signed::sign(entry, &by).to_wire()
}

/// A block of the right form; nothing in it has to make sense to a book here.
fn block(height: u64, entries: usize) -> Block {
    let entries: Vec<SignedBytes> = (0..entries as u64).map(|number| entry(number, 64)).collect();
    let zero = Digest::ZERO;
    let header = Header {
        height,
        parent: zero,
        time_ms: 1,
        entries_root: Block::entries_root(&entries),
        state_root: zero,
        supply: Credits::ZERO,
        validators: zero,
        next_validators: zero,
    };
    Block { header, entries }
}

fn vote(kind: VoteType, value: NilOrVal<BlockId>) -> types::SignedVote<Ledger> {
    let by = Address(key(1).public());
    let (height, round) = (Height(7), Round::new(2));
    let vote = match kind {
        VoteType::Prevote => ledger().new_prevote(height, round, value, by),
        VoteType::Precommit => ledger().new_precommit(height, round, value, by),
    };
    ready(LedgerSigner::new(key(1)).sign_vote(vote)).expect("signs")
}

fn proposal(valid: Round) -> types::SignedProposal<Ledger> {
    let value = BlockId(block(7, 1).header.digest());
    let proposal = ledger().new_proposal(Height(7), Round::new(2), value, valid, Address(key(1).public()));
    ready(LedgerSigner::new(key(1)).sign_proposal(proposal)).expect("signs")
}

/// Runs a future that never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(value) => value,
        std::task::Poll::Pending => unreachable!("signing and verifying never wait"),
    }
}

/// A message survives its codec; what a peer could make of its bytes is refused or decodes, and never panics.
fn check<T: PartialEq + std::fmt::Debug, C: Codec<T>>(codec: &C, value: &T) {
    let bytes = codec.encode(value).expect("ours can be encoded");
    assert_eq!(&codec.decode(bytes.clone()).expect("ours can be decoded"), value);
    let mut random = ChaCha8Rng::seed_from_u64(bytes.len() as u64);
    for cut in 0..bytes.len().min(400) {
        assert!(codec.decode(bytes.slice(..cut)).is_err(), "cut to {cut} bytes");
    }
    let longer = [&bytes[..], &[0]].concat();
    assert!(codec.decode(longer.into()).is_err(), "one byte more");
    for _ in 0..500 {
        let mut changed = bytes.to_vec();
        for _ in 0..random.random_range(1..4) {
            let place = random.random_range(0..changed.len());
            // Lengths and tags are where a decoder could stumble: all ones asks for the most.
            changed[place] = if random.random_bool(0.5) { 0xff } else { random.random() };
        }
        if let Ok(other) = codec.decode(changed.clone().into()) {
            assert_eq!(codec.encode(&other).expect("decoded"), Bytes::from(changed), "a second encoding");
        }
    }
    for _ in 0..500 {
        let mut noise = vec![0; random.random_range(0..300)];
        random.fill_bytes(&mut noise);
        let _refused = codec.decode(noise.into());
    }
}

#[test]
fn every_message_has_one_encoding_and_hostile_bytes_are_refused() {
    let id = BlockId(block(7, 1).header.digest());
    let said = [
        SignedConsensusMsg::Vote(vote(VoteType::Prevote, NilOrVal::Nil)),
        SignedConsensusMsg::Vote(vote(VoteType::Precommit, NilOrVal::Val(id))),
        SignedConsensusMsg::Proposal(proposal(Round::Nil)),
        SignedConsensusMsg::Proposal(proposal(Round::new(1))),
    ];
    let log = LogCodec::new(Held::default());
    for said in &said {
        check(&WireCodec, said);
        check(&log, said);
    }
    let signed = vote(VoteType::Prevote, NilOrVal::Val(id));
    let polka = PolkaCertificate::<Ledger> {
        height: Height(7),
        round: Round::new(2),
        value_id: id,
        polka_signatures: vec![PolkaSignature::new(Address(key(1).public()), signed.signature)],
    };
    let round = |cert_type| RoundCertificate::<Ledger> {
        height: Height(7),
        round: Round::new(2),
        cert_type,
        round_signatures: vec![
            RoundSignature::new(VoteType::Prevote, NilOrVal::Nil, Address(key(1).public()), signed.signature),
            RoundSignature::new(VoteType::Precommit, NilOrVal::Val(id), Address(key(2).public()), signed.signature),
        ],
    };
    for aid in [
        LivenessMsg::Vote(signed.clone()),
        LivenessMsg::PolkaCertificate(polka.clone()),
        LivenessMsg::SkipRoundCertificate(round(RoundCertificateType::Skip)),
        LivenessMsg::SkipRoundCertificate(round(RoundCertificateType::Precommit)),
    ] {
        check(&WireCodec, &aid);
    }
    check(&log, &polka);
    let peer = PeerId::from_bytes(&[&[0x12, 32][..], &[5; 32]].concat()).expect("a digest's form");
    check(&WireCodec, &sync::Status::<Ledger> { peer_id: peer, tip_height: Height(9), history_min_height: Height(1) });
    check(&WireCodec, &sync::Request::<Ledger>::ValueRequest(sync::ValueRequest::new(Height(1)..=Height(8))));
    check(&WireCodec, &LedgerSigner::new(key(1)).proof(peer.to_bytes()));
}

#[test]
fn parts_and_answers_have_one_encoding() {
    let (opening, bytes) = announce(network(), 2, Some(1), &block(7, 3), &key(1));
    for part in pieces(opening.wire(), &bytes).into_iter().chain(shared(network(), &[entry(1, 5)], &key(1))) {
        check::<Part, _>(&WireCodec, &part);
        check::<StreamMessage<Part>, _>(&WireCodec, &message(part));
    }
    let decided = |height| {
        let block = block(height, 2);
        let of = Certificate { block: block.header.digest(), round: 0, signatures: Vec::new() };
        sync::RawDecidedValue::<Ledger>::new(encode(&block).into(), extended(height, &of))
    };
    let answer = sync::ValueResponse::new(Height(4), vec![decided(4), decided(5)]);
    let answer = sync::Response::ValueResponse(answer);
    let bytes = WireCodec.encode(&answer).expect("ours");
    assert_eq!(WireCodec.encoded_len(&answer), Ok(bytes.len()));
    check(&WireCodec, &answer);
}

#[test]
fn an_answer_with_another_block_than_its_certificate_is_refused() {
    let of = Certificate { block: block(4, 1).header.digest(), round: 0, signatures: Vec::new() };
    for (block, height) in [(block(5, 1), 4), (block(4, 1), 5), (block(4, 2), 4)] {
        let value = sync::RawDecidedValue::<Ledger>::new(encode(&block).into(), extended(height, &of));
        let answer = sync::Response::ValueResponse(sync::ValueResponse::new(Height(4), vec![value]));
        let bytes = WireCodec.encode(&answer).expect("ours");
        let read: Result<sync::Response<Ledger>, _> = WireCodec.decode(bytes);
        assert!(read.is_err());
    }
}

#[test]
fn the_log_gives_back_the_block_it_was_given() {
    let block = block(7, 3);
    let digest = block.header.digest();
    let value = ProposedValue::<Ledger> {
        height: Height(7),
        round: Round::new(2),
        valid_round: Round::Nil,
        proposer: Address(key(1).public()),
        value: BlockId(digest),
        validity: Validity::Valid,
    };
    let before = Held::default();
    before.put(block.clone(), encode(&block));
    let bytes = LogCodec::new(before).encode(&value).expect("held");

    let after = Held::default();
    let read: ProposedValue<Ledger> = LogCodec::new(after.clone()).decode(bytes).expect("ours");
    assert_eq!(read, value);
    assert_eq!(*after.get(&digest).expect("put there").block, block);
    check(&LogCodec::new(after), &value);

    // A block that nobody needs any more must not stop the validator.
    let empty = LogCodec::new(Held::default());
    let bytes = empty.encode(&value).expect("never an error");
    assert_eq!(empty.decode(bytes).map(|read: ProposedValue<Ledger>| read.value), Ok(BlockId(digest)));
}

#[test]
fn certificates_are_the_ledgers_own() {
    let header = block(7, 0).header;
    let by = keys();
    let votes = by.iter().take(3).map(|key| {
        let value = NilOrVal::Val(BlockId(header.digest()));
        let vote = ledger().new_precommit(Height(7), Round::new(2), value, Address(key.public()));
        ready(LedgerSigner::new(key.clone()).sign_vote(vote)).expect("signs")
    });
    let engines =
        types::CommitCertificate::new(Height(7), Round::new(2), BlockId(header.digest()), votes.rev().collect());
    let ours = certificate(&engines);
    let set = ValidatorSet::new(by.iter().map(SecretKey::public).collect()).expect("four");
    assert_eq!(ours.verify(&network(), &header, &set), Ok(()));
    assert_eq!(extended(7, &ours).trim_vote_extensions().commit_signatures.len(), 3);
}

#[test]
fn a_vote_of_another_network_or_key_does_not_hold() {
    let signed = vote(VoteType::Precommit, NilOrVal::Nil);
    let holds = |network, key: &SecretKey| {
        let verifier = LedgerVerifier::new(network);
        let result = ready(verifier.verify_signed_vote(&signed.message, &signed.signature, &key.public()));
        result.expect("an answer").is_valid()
    };
    assert!(holds(network(), &key(1)));
    assert!(!holds(network(), &key(2)));
    assert!(!holds(NetworkId(Digest::of("other", &[])), &key(1)));
}

#[test]
fn everybody_proposes_in_turn() {
    let members = members();
    for height in [1, 2, u64::MAX] {
        let turns: std::collections::BTreeSet<_> = (0..4).map(|round| members.proposer_key(height, round)).collect();
        assert_eq!(turns.len(), 4);
        assert_eq!(members.proposer_key(height, u32::MAX), members.proposer_key(height, 3));
    }
    assert_ne!(members.proposer_key(1, 0), members.proposer_key(2, 0));
}

fn peer(number: u8) -> PeerId {
    PeerId::from_bytes(&[&[0x12, 32][..], &[number; 32]].concat()).expect("a digest's form")
}

/// Who proposes, and a pool that decides height 7.
fn pool() -> (Pool, Held, SecretKey) {
    let held = Held::default();
    let turn = members().proposer_key(7, 0);
    let key = keys().into_iter().find(|key| key.public() == turn).expect("one of them");
    (Pool::new(network(), held.clone(), 7, members()), held, key)
}

fn piece(part: Part) -> Piece {
    match part {
        Part::Piece(piece) => piece,
        Part::Shared(_) => unreachable!("only pieces are made here"),
    }
}

#[test]
fn pieces_in_any_order_become_the_block() {
    let (mut pool, held, key) = pool();
    let block = block(7, 900);
    let (opening, bytes) = announce(network(), 0, None, &block, &key);
    let mut parts: Vec<Piece> = pieces(opening.wire(), &bytes).into_iter().map(piece).collect();
    assert!(parts.len() > 1);
    parts.reverse();
    let last = parts.pop().expect("several");
    for part in parts.iter().chain(&parts) {
        assert!(matches!(pool.take(peer(1), part.clone()), Taken::Nothing), "twice is once");
    }
    assert!(matches!(pool.take(peer(2), last.clone()), Taken::Complete(_)));
    assert!(matches!(pool.take(peer(2), last), Taken::Nothing), "once only");
    assert_eq!(*held.get(&block.header.digest()).expect("whole").block, block);
    assert_eq!(pool.of_round(0).len(), 1);
    assert!(pool.of_round(1).is_empty());
    assert!(pool.opening(0, &block.header.digest(), &key.public()).is_some());

    // The next round's proposer has it too: one piece is enough, since the block is here.
    let turn = members().proposer_key(7, 1);
    let other = keys().into_iter().find(|key| key.public() == turn).expect("one of them");
    let (opening, bytes) = announce(network(), 1, Some(0), &block, &other);
    let first = pieces(opening.wire(), &bytes).into_iter().next().map(piece).expect("several");
    assert!(matches!(pool.take(peer(1), first), Taken::Complete(_)));
}

#[test]
fn only_whose_turn_it_is_takes_up_memory() {
    let wrong = |change: &dyn Fn(&mut Opening, &mut SecretKey, &mut Piece)| {
        let (mut pool, held, mut by) = pool();
        let (opening, bytes) = announce(network(), 0, None, &block(7, 3), &by);
        let mut opening = *opening.value();
        let mut part = Piece { opening: entry(0, 1), index: 0, bytes };
        change(&mut opening, &mut by, &mut part);
        part.opening = Signed::sign(opening, &by).to_wire();
        let taken = pool.take(peer(1), part);
        (matches!(taken, Taken::Nothing), pool.has_any(), held.get(&opening.block).is_some())
    };
    assert_eq!(wrong(&|_, _, _| {}), (false, true, true), "right as it is");
    type Change = fn(&mut Opening, &mut SecretKey, &mut Piece);
    let nothing: [(&str, Change); 8] = [
        ("another network", |opening, _, _| opening.network = NetworkId(Digest::ZERO)),
        ("an old height", |opening, _, _| opening.height = 6),
        ("a far height", |opening, _, _| opening.height = 9),
        ("not its turn", |opening, _, _| opening.round = 1),
        ("a far round", |opening, _, _| opening.round = 400),
        ("a stranger", |_, by, _| *by = key(99)),
        ("no such piece", |_, _, part| part.index = 1),
        ("too long", |_, _, part| part.bytes.push(0)),
    ];
    for (what, change) in nothing {
        assert_eq!(wrong(&change), (true, false, false), "{what}");
    }
    // Signed by whose turn it is, but not the block it says, in its header or in an entry: noticed when whole, and not
    // kept.
    for place in [200, Header::BYTES_MAX + 8 + 40] {
        let (nothing, _, held) = wrong(&|_, _, part| part.bytes[place] ^= 1);
        assert_eq!((nothing, held), (true, false), "byte {place}");
    }
}

#[test]
fn a_proposer_that_floods_is_bounded() {
    let (mut pool, _, by) = pool();
    for number in 0..100 {
        let mut block = block(7, 1);
        block.header.time_ms = number;
        let (opening, bytes) = announce(network(), 0, None, &block, &by);
        for part in pieces(opening.wire(), &bytes) {
            let _taken = pool.take(peer(1), piece(part));
        }
    }
    assert_eq!(pool.of_round(0).len(), 2, "two prove the offence, more prove nothing");

    // One height ahead nothing can be checked yet: one block's worth for each connection, and few connections.
    let mut kept = 0;
    for number in 0..200_u8 {
        let mut block = block(8, 900);
        block.header.time_ms = u64::from(number);
        let (opening, bytes) = announce(network(), 0, None, &block, &by);
        for part in pieces(opening.wire(), &bytes) {
            if matches!(pool.take(peer(number), piece(part.clone())), Taken::Early) {
                kept += PIECE_BYTES;
            }
            if matches!(pool.take(peer(0), piece(part)), Taken::Early) {
                kept += PIECE_BYTES;
            }
        }
    }
    assert!(kept <= 20 << 20, "{kept} bytes are kept unchecked");
}

#[test]
fn what_came_a_height_early_is_there_when_the_height_comes() {
    let (mut pool, held, _) = pool();
    let turn = members().proposer_key(8, 0);
    let by = keys().into_iter().find(|key| key.public() == turn).expect("one of them");
    let block = block(8, 2);
    let (opening, bytes) = announce(network(), 0, None, &block, &by);
    for part in pieces(opening.wire(), &bytes) {
        assert!(matches!(pool.take(peer(1), piece(part)), Taken::Early));
    }
    assert!(held.get(&block.header.digest()).is_none(), "unchecked, so not held");
    assert_eq!(pool.advance(8, members()).len(), 1);
    assert!(held.get(&block.header.digest()).is_some());
    assert_eq!(pool.of_round(0).len(), 1);
}

#[test]
fn entries_are_shared_in_messages_that_every_reader_accepts() {
    for (count, reference) in [(0, 1), (1, 1), (SHARED_ENTRIES_MAX + 1, 1), (2_000, 64)] {
        let entries: Vec<SignedBytes> = (0..count as u64).map(|number| entry(number, reference)).collect();
        let mut read = Vec::new();
        for part in shared(network(), &entries, &key(1)) {
            let bytes = WireCodec.encode(&part).expect("ours");
            assert!(bytes.len() <= Part::BYTES_MAX);
            let decoded: Part = WireCodec.decode(bytes).expect("ours");
            let Part::Shared(wire) = decoded else { unreachable!("entries were shared") };
            read.extend(Signed::<Shared>::open(wire).expect("signed").into_value().entries);
        }
        assert_eq!(read, entries);
    }
}
