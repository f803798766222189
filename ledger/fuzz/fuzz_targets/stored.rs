//! What lies in a ledger's folder: a block's row, the note of the tip, the genesis. Its first byte says which is hostile.
#![no_main]

use std::cell::RefCell;
use std::fs;
use std::path::Path;

use libfuzzer_sys::{Corpus, fuzz_target};
use spillway_ledger::chain::{GENESIS_FILE, LEDGER_FILE, TIP_FILE};
use spillway_ledger::{Action, Batch, Credits, Entry, Follower, Signed, Solo, Store, Table, Verified, verify_folder};
use spillway_ledger_fuzz::{START_MS, cast};

/// A folder with two blocks, and its parts as they were.
struct World {
    folder: tempfile::TempDir,
    good: Verified,
    genesis: Vec<u8>,
    tip: Vec<u8>,
    ledger: Vec<u8>,
}

fn world() -> World {
    let cast = cast();
    // In memory where the system has such a place: nothing here has to survive anything.
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let folder = folder.expect("a folder");
    let path = folder.path();
    let mut solo = Solo::open(path, &cast.genesis, cast.authority().clone()).expect("opens");
    for nonce in 0..2 {
        let issuer = &cast.keys[0];
        let reference = format!("deposit {nonce}");
        let action = Action::Mint { to: cast.keys[4].account(), amount: Credits::new(1_000), reference };
        let (account, business) = (issuer.account(), [nonce; 16]);
        let nonce = u64::from(nonce);
        let entry = Entry { network: cast.network, account, nonce, expires_height: 100, business, action };
        solo.submit(Signed::sign(entry, issuer)).expect("queued");
        solo.produce(START_MS).expect("written").expect("a block");
    }
    drop(solo);
    let read = |name: &str| fs::read(path.join(name)).expect("written");
    let good = verify_folder(path).expect("a good folder");
    World { genesis: read(GENESIS_FILE), tip: read(TIP_FILE), ledger: read(LEDGER_FILE), good, folder }
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::new(world());
}

fuzz_target!(|bytes: &[u8]| -> Corpus { WORLD.with_borrow_mut(|world| check(world, bytes)) });

fn check(world: &mut World, bytes: &[u8]) -> Corpus {
    let Some((which, bytes)) = bytes.split_first() else { return Corpus::Reject };
    let path = world.folder.path();
    let write = |name: &str, bytes: &[u8]| fs::write(path.join(name), bytes).expect("the folder is ours");
    let restore = || {
        write(GENESIS_FILE, &world.genesis);
        write(TIP_FILE, &world.tip);
    };
    match which {
        0 => write(TIP_FILE, bytes),
        1 => write(GENESIS_FILE, bytes),
        2..=4 => {
            // Row 1, row 2, or one that follows them.
            let height = u64::from(which - 1);
            let store = Store::open(path.join(LEDGER_FILE)).expect("a good store");
            let mut batch = Batch::new();
            batch.put(Table::Blocks, height.to_be_bytes(), bytes);
            store.commit(batch).expect("memory is not full");
        }
        _ => return Corpus::Reject,
    }
    let verdict = verify_folder(path);
    if let Ok(verified) = &verdict {
        assert_eq!(verified, &world.good, "what is accepted is what was written");
    }
    // A follower opens what verifies, and trusts no more than the signatures inside of a certified block.
    let genesis = cast().genesis;
    let opened = Follower::open(path, &genesis).map(|follower| (follower.height(), follower.tip()));
    if verdict.is_ok() {
        assert_eq!(opened.expect("what verifies opens"), (world.good.height, world.good.tip));
    } else if let Ok((height, tip)) = opened {
        assert_eq!(
            (height, tip),
            (world.good.height, world.good.tip),
            "only a file that the node does not read is wrong"
        );
    }
    restore();
    if *which >= 2 {
        write(LEDGER_FILE, &world.ledger);
    }
    Corpus::Keep
}
