//! Chains on the disk: authority and followers, restarts, kills, and blocks that someone altered.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

use super::*;
use crate::block::ENTRIES_MAX;
use crate::chain::{GENESIS_FILE, LEDGER_FILE};
use crate::replicator::{QUEUE_ACCOUNT_MAX, QUEUE_HOPEFUL_MAX, QUEUE_MAX};

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

fn solo(cast: &Cast, folder: &Path) -> Solo {
    Solo::open(folder, &cast.genesis, cast.authority.clone()).expect("the ledger opens")
}

/// Submits `entries` and makes one block of them.
fn block(solo: &mut Solo, entries: Vec<Signed<Entry>>, now_ms: u64) -> Committed {
    let count = entries.len();
    for entry in entries {
        assert!(matches!(solo.submit(entry), Ok(Submitted::Ticket(_))));
    }
    let committed = solo.produce(now_ms).expect("written").expect("a block");
    assert_eq!(committed.applied.len(), count);
    committed
}

/// Five blocks: mint, open, two settlements, and a refund of a second session.
pub(super) fn history(cast: &Cast, folder: &Path) -> Solo {
    let mut solo = solo(cast, folder);
    let session = cast.session(0);
    let blocks = [
        (vec![cast.mint(0, cast.consumer.account(), 5_000)], START_MS + 1),
        (vec![cast.open(0, 600), cast.open(1, 400)], START_MS + 2),
        (vec![cast.settle(0, session, 300, 100, false)], START_MS + 3),
        (vec![cast.settle(1, session, 500, 500, true)], START_MS + 4),
        (
            vec![
                cast.signed(&cast.consumer, 2, Action::Refund { session: cast.session(1) }),
                cast.transfer(&cast.consumer, 3, cast.stranger.account(), 7),
            ],
            START_MS + 20_000,
        ),
    ];
    for (entries, now_ms) in blocks {
        block(&mut solo, entries, now_ms);
    }
    solo
}

fn root(solo: &Solo) -> Digest {
    solo.book().clone().state_root()
}

#[test]
fn two_followers_reach_the_authoritys_root() {
    let cast = cast();
    let (a, b, c) = (folder(), folder(), folder());
    let solo = history(&cast, a.path());
    let blocks = solo.blocks(1, 100).expect("read");
    assert_eq!(blocks.len(), 5);
    for folder in [&b, &c] {
        let mut follower = Follower::open(folder.path(), &cast.genesis).expect("opens");
        for block in &blocks {
            let block = CertifiedBlock::from_bytes(&block.to_bytes()).expect("over the wire");
            follower.commit(block).expect("valid");
        }
        assert_eq!((follower.height(), follower.tip()), (5, solo.tip()));
        assert_eq!(follower.book().clone().state_root(), root(&solo));
        let header = blocks[4].block.header;
        let proof = follower.account_proof(&cast.stranger.account()).expect("known");
        assert!(proof.state.balance == Credits::new(7) && proof.verify(&header.state_root, header.supply));
    }
    drop(solo);
    let [verified_a, verified_b] = [&a, &b].map(|folder| verify_folder(folder.path()).expect("verified"));
    assert_eq!(verified_a, verified_b);
    assert_eq!(verify_blocks(&cast.genesis, blocks.clone()), Ok(verified_a));
    let error = verify_blocks(&cast.genesis, blocks[1..].to_vec()).expect_err("the first is missing");
    assert_eq!((error.block, error.rule.as_str()), (1, "height is 2, where 1 is next"));
    assert_eq!((verified_a.blocks, verified_a.entries, verified_a.sessions), (5, 7, 2));
    assert_eq!((verified_a.settled_gross.micro(), verified_a.settled_provider.micro()), (500, 350));
}

#[test]
fn a_follower_refuses_what_does_not_follow() {
    let cast = cast();
    let (a, b) = (folder(), folder());
    let blocks = history(&cast, a.path()).blocks(1, 100).expect("read");
    let mut follower = Follower::open(b.path(), &cast.genesis).expect("opens");
    follower.commit(blocks[0].clone()).expect("the first");

    let certified = |key: &SecretKey, block: Block| {
        let certificate = Certificate::solo(&cast.network(), &block.header, key);
        CertifiedBlock { block, certificate }
    };
    let altered = |change: &dyn Fn(&mut Block)| {
        let mut block = blocks[1].block.clone();
        change(&mut block);
        certified(&cast.authority, block)
    };
    let resigned = |block: &mut Block| block.header.entries_root = Block::entries_root(&block.entries);
    let next = &blocks[1];
    let forged = ApplyError::BadNonce { expected: 0 };

    let cases: Vec<(&str, CertifiedBlock, BlockError)> = vec![
        ("one too far", blocks[2].clone(), BlockError::Height { got: 3, expected: 2 }),
        ("height nothing", altered(&|b| b.header.height = 0), BlockError::Height { got: 0, expected: 2 }),
        ("height of all", altered(&|b| b.header.height = u64::MAX), BlockError::Height { got: u64::MAX, expected: 2 }),
        ("another parent", altered(&|b| b.header.parent = Digest::ZERO), BlockError::Parent),
        ("back in time", altered(&|b| b.header.time_ms = START_MS), BlockError::Time),
        ("other validators", altered(&|b| b.header.validators = Digest::ZERO), BlockError::Validators),
        (
            "signed by another",
            certified(&cast.stranger, next.block.clone()),
            BlockError::Certificate(CertificateError::NotValidator(cast.stranger.public())),
        ),
        (
            "signed by nobody",
            CertifiedBlock {
                certificate: Certificate { block: next.certificate.block, round: 0, signatures: Vec::new() },
                ..next.clone()
            },
            BlockError::Certificate(CertificateError::NoQuorum { got: 0, need: 1 }),
        ),
        (
            "another block's certificate",
            CertifiedBlock { certificate: blocks[2].certificate.clone(), ..next.clone() },
            BlockError::Certificate(CertificateError::OtherBlock),
        ),
        (
            "a certificate over another digest",
            CertifiedBlock {
                certificate: Certificate {
                    block: next.certificate.block,
                    round: 0,
                    signatures: blocks[2].certificate.signatures.clone(),
                },
                ..next.clone()
            },
            BlockError::Certificate(CertificateError::BadSignature(cast.authority.public())),
        ),
        ("an entry left out", altered(&|b| drop(b.entries.pop())), BlockError::EntriesRoot),
        ("entries swapped", altered(&|b| b.entries.swap(0, 1)), BlockError::EntriesRoot),
        (
            "entries swapped, by the authority",
            altered(&|b| {
                b.entries.swap(0, 1);
                resigned(b);
            }),
            BlockError::Apply { index: 0, error: forged },
        ),
        (
            "a forged entry, by the authority",
            altered(&|b| {
                b.entries[1].document[70] ^= 1;
                resigned(b);
            }),
            BlockError::Entry { index: 1, error: SignedError::BadSignature },
        ),
        ("credits from nowhere", altered(&|b| b.header.supply = Credits::new(5_001)), BlockError::Supply),
        ("another state", altered(&|b| b.header.state_root = Digest::ZERO), BlockError::StateRoot),
    ];
    let before = follower.book().clone().state_root();
    for (name, block, want) in cases {
        match follower.commit(block) {
            Err(FollowError::Block(got)) => assert_eq!(got, want, "{name}"),
            other => panic!("{name}: {other:?}"),
        }
        assert_eq!((follower.height(), follower.book().clone().state_root()), (1, before), "{name}");
    }
    assert!(matches!(follower.commit(blocks[0].clone()), Err(FollowError::Known { height: 1 })));
    let mut second = blocks[0].block.clone();
    second.header.time_ms += 1;
    let conflict = certified(&cast.authority, second.clone());
    assert!(matches!(follower.commit(conflict), Err(FollowError::Conflict { height: 1 })), "equivocation is named");
    let nonsense = certified(&cast.stranger, second);
    assert!(matches!(follower.commit(nonsense), Err(FollowError::Block(BlockError::Height { got: 1, expected: 2 }))));
    follower.commit(next.clone()).expect("after all that, the right one is still taken");
}

#[test]
fn retries_get_the_first_answer() {
    let cast = cast();
    let folder = folder();
    let mut solo = solo(&cast, folder.path());
    let mint = cast.mint(0, cast.consumer.account(), 1_000);
    let Ok(Submitted::Ticket(ticket)) = solo.submit(mint.clone()) else { panic!("queued") };
    assert_eq!(solo.submit(mint.clone()), Ok(Submitted::Ticket(ticket)), "while it waits");
    assert_eq!(solo.next_nonce(&cast.issuer.account()), 1);
    let committed = solo.produce(START_MS).expect("written").expect("a block");
    assert_eq!(committed.applied.len(), 1, "it is in the block once");
    assert_eq!(solo.submit(mint.clone()), Ok(Submitted::Already { height: 1 }), "after its block");
    assert_eq!(solo.waiting(), 0);

    drop(solo);
    let mut solo = super::chain::solo(&cast, folder.path());
    assert_eq!(solo.submit(mint), Ok(Submitted::Already { height: 1 }), "after a restart");
}

#[test]
fn entries_that_build_on_each_other_share_a_block_and_bad_ones_are_reported() {
    let cast = cast();
    let folder = folder();
    let mut solo = solo(&cast, folder.path());
    // The open needs the mint before it, the settlement the open: none is in a block yet.
    let good = [
        cast.mint(0, cast.consumer.account(), 1_000),
        cast.open(0, 600),
        cast.settle(0, cast.session(0), 300, 300, true),
        cast.transfer(&cast.consumer, 1, cast.stranger.account(), 100),
    ];
    for entry in good {
        assert!(matches!(solo.submit(entry), Ok(Submitted::Ticket(_))));
    }
    let too_much = cast.transfer(&cast.consumer, 2, cast.stranger.account(), 5_000);
    let Ok(Submitted::Ticket(ticket)) = solo.submit(too_much) else { panic!("a mint might still come") };
    let after_it = cast.transfer(&cast.consumer, 3, cast.stranger.account(), 1);
    let Ok(Submitted::Ticket(next)) = solo.submit(after_it) else { panic!("queued behind it") };
    // What can never be valid is refused at once.
    let gap = cast.transfer(&cast.consumer, 9, cast.stranger.account(), 1);
    assert_eq!(solo.submit(gap), Err(SubmitError::Refused(ApplyError::BadNonce { expected: 4 })));
    let forged = Signed::sign(cast.voucher(cast.session(0), 9), &cast.stranger);
    let forged = cast.settle_action(SignedBytes { document: vec![1], ..forged.to_wire() }, 9, false);
    let forged = cast.signed(&cast.provider, 1, forged);
    assert_eq!(solo.submit(forged), Err(SubmitError::Refused(ApplyError::ForgedVoucher)));

    let committed = solo.produce(START_MS).expect("written").expect("a block");
    assert_eq!(committed.applied.len(), 4);
    let refused = solo.take_refused();
    let poor = ApplyError::InsufficientBalance { have: Credits::new(600), need: Credits::new(5_000) };
    assert_eq!(refused, [(ticket, poor), (next, ApplyError::BadNonce { expected: 2 })]);
    assert!(solo.produce(START_MS).expect("nothing to write").is_none());
    assert_eq!((solo.height(), solo.waiting()), (1, 0));
    solo.book().check().expect("the book holds");
}

#[test]
fn the_queue_and_the_block_are_bounded() {
    let cast = cast();
    let folder = folder();
    let mut solo = solo(&cast, folder.path());
    let payers: Vec<SecretKey> = (100..109).map(key).collect();
    let mints = (0..).zip(&payers).map(|(nonce, payer)| cast.mint(nonce, payer.account(), 10_000)).collect();
    block(&mut solo, mints, START_MS);
    let to = cast.stranger.account();

    // Entries that others would have to make valid: only so many may hope for that.
    for number in 0..QUEUE_HOPEFUL_MAX as u64 {
        let poor = SecretKey::generate(*Digest::of("test", &[&number.to_le_bytes()]).as_bytes());
        solo.submit(cast.transfer(&poor, 0, to, 1)).expect("it may hope");
    }
    assert_eq!(solo.submit(cast.transfer(&cast.stranger, 0, to, 1)), Err(SubmitError::QueueFull));
    assert!(solo.produce(START_MS).expect("nothing to write").is_none());
    assert_eq!((solo.take_refused().len(), solo.waiting()), (QUEUE_HOPEFUL_MAX, 0));

    // One account fills a block, and no more.
    let each = QUEUE_ACCOUNT_MAX as u64;
    for payer in &payers[..8] {
        for nonce in 0..each {
            solo.submit(cast.transfer(payer, nonce, to, 1)).expect("there is room");
        }
        let nonce = solo.next_nonce(&payer.account());
        assert_eq!(solo.submit(cast.transfer(payer, nonce, to, 1)), Err(SubmitError::QueueFull));
    }
    assert_eq!(solo.waiting(), QUEUE_MAX);
    let one_more = cast.transfer(&payers[8], 0, to, 1);
    assert_eq!(solo.submit(one_more.clone()), Err(SubmitError::QueueFull));
    let first = solo.produce(START_MS).expect("written").expect("a block");
    assert_eq!((first.applied.len(), solo.waiting()), (ENTRIES_MAX, QUEUE_MAX - ENTRIES_MAX));
    solo.submit(one_more).expect("there is room again");
    while solo.produce(START_MS).expect("written").is_some() {}
    assert_eq!((solo.height(), solo.waiting()), (10, 0), "the mints, eight full blocks, and the one more");
    assert_eq!(solo.book().balance(&to), Credits::new(8 * each + 1));
}

#[test]
fn propose_and_validate_change_nothing_and_commit_does() {
    let cast = cast();
    let (a, b) = (folder(), folder());
    let mut leader = solo(&cast, a.path());
    let mut other = solo(&cast, b.path());
    for entry in [cast.mint(0, cast.consumer.account(), 1_000), cast.open(0, 600)] {
        leader.submit(entry.clone()).expect("queued");
        other.submit(entry).expect("queued");
    }
    other.submit(cast.open(1, 100)).expect("queued, and not in the proposal");
    let empty = root(&leader);
    let proposal = leader.propose(START_MS + 9).expect("a proposal");
    assert_eq!(leader.propose(START_MS + 9), Some(proposal.clone()), "the same again");
    assert_eq!(other.validate(&proposal), Ok(()));
    let lie = Block { header: Header { supply: Credits::new(1_001), ..proposal.header }, ..proposal.clone() };
    assert_eq!(other.validate(&lie), Err(BlockError::Supply));
    assert_eq!((root(&leader), root(&other), leader.height()), (empty, empty, 0));

    let certificate = Certificate::solo(&cast.network(), &proposal.header, &cast.authority);
    let certified = CertifiedBlock { block: proposal, certificate };
    for node in [&mut leader, &mut other] {
        node.commit(certified.clone()).expect("final");
        assert_eq!(root(node), certified.block.header.state_root);
    }
    assert_eq!((leader.waiting(), other.waiting()), (0, 1), "what is in the block no longer waits");
    assert_eq!(other.produce(START_MS + 10).expect("written").expect("a block").applied.len(), 1);
}

#[test]
fn a_restart_in_mid_work_keeps_what_was_acknowledged_and_nothing_else() {
    let cast = cast();
    let folder = folder();
    let (height, tip, state) = {
        let mut solo = history(&cast, folder.path());
        // Queued, even proposed, but not in a block: gone with the process, to be submitted again.
        solo.submit(cast.transfer(&cast.consumer, 4, cast.stranger.account(), 1)).expect("queued");
        solo.propose(START_MS + 30_000).expect("a proposal");
        (solo.height(), solo.tip(), root(&solo))
    };
    let mut solo = solo(&cast, folder.path());
    assert_eq!((solo.height(), solo.tip(), root(&solo), solo.waiting()), (height, tip, state, 0));
    let again = cast.transfer(&cast.consumer, 4, cast.stranger.account(), 1);
    block(&mut solo, vec![again], START_MS);
    assert_eq!(solo.time_ms(), START_MS + 20_000, "time does not go back with a clock");
    solo.book().check().expect("the book holds");
}

#[test]
fn opening_says_what_is_wrong() {
    let cast = cast();
    let folder = folder();
    let first = history(&cast, folder.path());
    let second = Solo::open(folder.path(), &cast.genesis, cast.authority.clone()).map(|_| ());
    assert!(matches!(&second, Err(OpenError::Store(StoreError::InUse(_)))), "{second:?}");
    let error = verify_folder(folder.path()).expect_err("in use");
    assert!(error.block == 0 && error.rule.contains("is in use"), "{error}");
    drop(first);

    let wrong_key = Solo::open(folder.path(), &cast.genesis, cast.stranger.clone()).map(|_| ());
    assert!(matches!(wrong_key, Err(OpenError::NotAuthority)));
    let other = Genesis { name: "other".to_owned(), ..cast.genesis.clone() };
    let other = Follower::open(folder.path(), &other).map(|_| ());
    assert!(matches!(&other, Err(OpenError::OtherNetwork { .. })), "{other:?}");
    let invalid = Genesis { epoch_blocks: 0, ..cast.genesis.clone() };
    let invalid = Follower::open(folder.path(), &invalid).map(|_| ());
    assert!(matches!(&invalid, Err(OpenError::Genesis(GenesisError { field: "epoch_blocks", .. }))), "{invalid:?}");
    let moved = Genesis { bootstrap: Vec::new(), ..cast.genesis.clone() };
    assert!(Follower::open(folder.path(), &moved).is_ok(), "bootstrap addresses may change");

    std::fs::write(folder.path().join(GENESIS_FILE), "{").expect("written");
    let broken = Follower::open(folder.path(), &cast.genesis).map(|_| ());
    assert!(matches!(&broken, Err(OpenError::GenesisFile { .. })), "{broken:?}");
    let empty = tempfile::tempdir().expect("a folder");
    assert!(verify_folder(empty.path()).expect_err("nothing there").rule.contains("has no genesis.json"));
}

/// What is put at which height, which block and entry is to be named for it, and words of the rule.
type Tampering<'a> = (u64, Option<Vec<u8>>, u64, Option<usize>, &'a str);

#[test]
fn verify_names_the_block_the_entry_and_the_rule() {
    let cast = cast();
    let folder = folder();
    drop(history(&cast, folder.path()));
    let store = || Store::open(folder.path().join(LEDGER_FILE)).expect("opens");
    let original: Vec<CertifiedBlock> = {
        let rows = store().range(Table::Blocks, &[], 10).expect("read");
        rows.iter().map(|(_, bytes)| CertifiedBlock::from_bytes(bytes).expect("a block")).collect()
    };
    let put = |height: u64, bytes: Option<Vec<u8>>| {
        let mut batch = Batch::new();
        match bytes {
            Some(bytes) => batch.put(Table::Blocks, height.to_be_bytes(), bytes),
            None => batch.delete(Table::Blocks, height.to_be_bytes()),
        };
        store().commit(batch).expect("written");
    };
    let altered = |height: usize, change: &dyn Fn(&mut CertifiedBlock)| {
        let mut block = original[height - 1].clone();
        change(&mut block);
        Some(block.to_bytes())
    };
    let recertify = |block: &mut CertifiedBlock| {
        block.block.header.entries_root = Block::entries_root(&block.block.entries);
        block.certificate = Certificate::solo(&cast.network(), &block.block.header, &cast.authority);
    };

    let cases: Vec<Tampering> = vec![
        (2, altered(2, &|b| b.block.entries[1].document[80] ^= 1), 2, Some(1), "entries_root"),
        (2, altered(2, &|b| b.block.entries.swap(0, 1)), 2, None, "entries_root"),
        (
            // Even the authority cannot alter an entry that another signed.
            2,
            altered(2, &|b| {
                b.block.entries[0].document[80] ^= 1;
                recertify(b);
            }),
            2,
            Some(0),
            "signature",
        ),
        (3, altered(3, &|b| b.certificate.signatures.clear()), 3, None, "certificate: 0 signatures"),
        (
            3,
            altered(3, &|b| b.certificate = Certificate::solo(&cast.network(), &b.block.header, &key(66))),
            3,
            None,
            "is no validator",
        ),
        (4, altered(4, &|b| b.block.header.supply = Credits::new(9_999)), 4, None, "certificate"),
        (
            4,
            altered(4, &|b| {
                b.block.header.state_root = Digest::ZERO;
                recertify(b);
            }),
            4,
            None,
            "state_root",
        ),
        (4, Some(original[2].to_bytes()), 4, None, "height is 3, where 4 is next"),
        (4, Some(vec![1, 2, 3]), 4, None, "format"),
        (4, None, 4, None, "missing"),
        (1, None, 1, None, "missing"),
        (5, None, 0, None, "ends at block 4, but had come to block 5"),
    ];
    for (height, bytes, want_block, want_entry, word) in cases {
        put(height, bytes);
        let error = verify_folder(folder.path()).expect_err(word);
        assert_eq!((error.block, error.entry), (want_block, want_entry), "{error}");
        assert!(error.rule.contains(word), "{error}");
        let open = Follower::open(folder.path(), &cast.genesis).map(|_| ());
        // Entries' own signatures are not read again at every start: there the certificate vouches for them.
        assert!(open.is_err() || want_entry == Some(0), "{error}");
        put(height, Some(original[height as usize - 1].to_bytes()));
        verify_folder(folder.path()).expect("whole again");
    }
}

/// The process that [`a_killed_process_loses_nothing_it_acknowledged`] kills: it makes block after block for ever.
#[test]
#[ignore = "started by another test, which kills it"]
fn killed_process() {
    let Ok(folder) = std::env::var("SPILLWAY_TEST_FOLDER") else { return };
    let cast = cast();
    let mut solo = solo(&cast, Path::new(&folder));
    let mut out = std::io::stdout();
    loop {
        let nonce = solo.next_nonce(&cast.consumer.account());
        let entry = match nonce {
            0 if solo.height() == 0 => cast.mint(0, cast.consumer.account(), 1_000_000),
            _ => cast.transfer(&cast.consumer, nonce, cast.stranger.account(), 1),
        };
        block(&mut solo, vec![entry], START_MS);
        let paid = solo.book().balance(&cast.stranger.account()).micro();
        // The line is what was acknowledged: all of it must survive.
        writeln!(out, "durable {} {paid}", solo.height()).expect("the parent reads");
        out.flush().expect("the parent reads");
        // Entries expire at height 1,000; a parent that does not kill is itself gone.
        assert!(solo.height() < 900, "nobody killed this process");
    }
}

#[test]
fn a_killed_process_loses_nothing_it_acknowledged() {
    let cast = cast();
    let folder = folder();
    let (mut seen, mut heights) = ((0, 0), BTreeSet::new());
    for kill in 0..4_u64 {
        let mut child = Command::new(std::env::current_exe().expect("this test binary"))
            .args(["--exact", "tests::chain::killed_process", "--ignored", "--nocapture"])
            .env("SPILLWAY_TEST_FOLDER", folder.path())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a child");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let mut acknowledged = 0;
        for line in lines.map_while(Result::ok) {
            // The test harness writes its own words before the first line.
            let Some(at) = line.find("durable ") else { continue };
            let mut numbers = line[at + 8..].split(' ').map(|word| word.parse::<u64>().expect("a number"));
            seen = (numbers.next().expect("a height"), numbers.next().expect("an amount"));
            acknowledged += 1;
            if acknowledged == 3 + 2 * kill {
                break;
            }
        }
        child.kill().expect("SIGKILL");
        child.wait().expect("gone");
        assert_eq!(acknowledged, 3 + 2 * kill, "the child made blocks until it was killed");

        let verified = verify_folder(folder.path()).expect("the folder verifies");
        assert!(verified.height >= seen.0, "acknowledged {seen:?}, found {verified:?}");
        let solo = solo(&cast, folder.path());
        let paid = solo.book().balance(&cast.stranger.account()).micro();
        assert!(paid >= seen.1 && paid + 1 == solo.height(), "acknowledged {seen:?}, found {paid}");
        heights.insert(solo.height());
    }
    assert_eq!(heights.len(), 4, "each life went on from where the last one ended");
}
