//! Ledger files that the disk, or a person, has damaged: a clear error or the very same book, never another balance.

use std::fs;
use std::path::Path;

use super::*;
use crate::chain::{LEDGER_FILE, TIP_FILE};

/// What opening a folder gave.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    Same,
    Refused(String),
}

/// Opens `folder`, and insists that a book which opens is the one that was written.
fn open(cast: &Cast, folder: &Path, want: (u64, Digest)) -> Outcome {
    match Follower::open(folder, &cast.genesis) {
        Ok(follower) => {
            let got = (follower.height(), follower.book().clone().state_root());
            assert_eq!(got, want, "a damaged ledger gave another book");
            Outcome::Same
        }
        Err(error) => Outcome::Refused(error.to_string()),
    }
}

fn written() -> (Cast, tempfile::TempDir, (u64, Digest)) {
    let cast = cast();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let solo = chain::history(&cast, folder.path());
    let want = (solo.height(), solo.book().clone().state_root());
    drop(solo);
    (cast, folder, want)
}

#[test]
fn no_flipped_bit_changes_a_balance() {
    let (cast, folder, want) = written();
    let path = folder.path().join(LEDGER_FILE);
    let good = fs::read(&path).expect("read");
    // Every byte of the file's own header, then every stretch that holds anything, sampled.
    let mut places: Vec<usize> = (0..320).collect();
    let used: Vec<usize> = (320..good.len()).filter(|&at| good[at] != 0).collect();
    places.extend(used.iter().step_by((used.len() / 150).max(1)));
    let (mut same, mut refused) = (0, 0);
    for (number, at) in places.into_iter().enumerate() {
        let mut bad = good.clone();
        bad[at] ^= 1 << (number % 8);
        fs::write(&path, &bad).expect("written");
        match open(&cast, folder.path(), want) {
            Outcome::Same => same += 1,
            Outcome::Refused(_) => refused += 1,
        }
    }
    assert!(refused > 20, "{refused} refused, {same} without effect: the sweep hit something that matters");
    fs::write(&path, &good).expect("written");
    assert_eq!(open(&cast, folder.path(), want), Outcome::Same);
}

#[test]
fn no_truncation_changes_a_balance() {
    let (cast, folder, want) = written();
    let path = folder.path().join(LEDGER_FILE);
    let good = fs::read(&path).expect("read");
    let lengths = [0, 1, 100, 511, 512, 4_095, 4_096, 8_192, good.len() / 2, good.len() - 4_096, good.len() - 1];
    for length in lengths {
        fs::write(&path, &good[..length]).expect("written");
        let outcome = open(&cast, folder.path(), want);
        assert!(matches!(outcome, Outcome::Refused(_)), "cut to {length} of {}: {outcome:?}", good.len());
    }
    fs::remove_file(&path).expect("removed");
    let outcome = open(&cast, folder.path(), want);
    let Outcome::Refused(words) = outcome else { panic!("a missing file is noticed") };
    assert_eq!(words, "the store ends at block 0, but had come to block 5");
    fs::write(&path, b"this is a text file, and not a small one: ".repeat(200)).expect("written");
    let Outcome::Refused(words) = open(&cast, folder.path(), want) else { panic!("a foreign file is noticed") };
    assert!(words.contains("is damaged or is no Spillway store"), "{words}");
}

#[test]
fn an_older_copy_is_noticed() {
    let (cast, folder, want) = written();
    let path = folder.path().join(LEDGER_FILE);
    let old = fs::read(&path).expect("read");
    let mut solo = Solo::open(folder.path(), &cast.genesis, cast.authority.clone()).expect("opens");
    solo.submit(cast.transfer(&cast.consumer, 4, cast.stranger.account(), 1)).expect("queued");
    solo.produce(START_MS).expect("written").expect("a block");
    drop(solo);
    fs::write(&path, &old).expect("written");
    let Outcome::Refused(words) = open(&cast, folder.path(), want) else { panic!("an older state is noticed") };
    assert_eq!(words, "the store ends at block 5, but had come to block 6");
    // Who means to go back removes the note.
    fs::remove_file(folder.path().join(TIP_FILE)).expect("removed");
    assert_eq!(open(&cast, folder.path(), want), Outcome::Same);
}

#[test]
fn a_damaged_note_is_as_good_as_none() {
    let (cast, folder, want) = written();
    let path = folder.path().join(TIP_FILE);
    let good = fs::read(&path).expect("read");
    for at in 0..good.len() {
        let mut bad = good.clone();
        bad[at] ^= 1;
        fs::write(&path, &bad).expect("written");
        assert_eq!(open(&cast, folder.path(), want), Outcome::Same, "byte {at}");
    }
    for length in [0, 1, good.len() - 1] {
        fs::write(&path, &good[..length]).expect("written");
        assert_eq!(open(&cast, folder.path(), want), Outcome::Same, "cut to {length}");
    }
}

#[test]
fn the_store_keeps_tables_apart_and_in_order() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("node.redb");
    let store = Store::open(&path).expect("opens");
    let mut batch = Batch::new();
    for number in [3_u8, 1, 2] {
        batch.put(Table::Vouchers, [number], [number; 4]).put(Table::Receipts, [number], [0]);
    }
    batch.put(Table::Vouchers, [1], [9]).delete(Table::Vouchers, [2]).delete(Table::Keys, [1]);
    assert_eq!(batch.len(), 9);
    store.commit(batch).expect("written");
    drop(store);
    let store = Store::open(&path).expect("opens again");
    assert_eq!(store.get(Table::Vouchers, &[1]).expect("read"), Some(vec![9]), "the last change of a key wins");
    assert_eq!(store.get(Table::Vouchers, &[2]).expect("read"), None);
    assert_eq!(store.last(Table::Vouchers).expect("read"), Some((vec![3], vec![3; 4])));
    assert_eq!(store.last(Table::Jobs).expect("read"), None);
    let keys = |from: &[u8], max| -> Vec<u8> {
        store.range(Table::Receipts, from, max).expect("read").into_iter().map(|(key, _)| key[0]).collect()
    };
    assert_eq!(keys(&[], 10), [1, 2, 3]);
    assert_eq!(keys(&[2], 10), [2, 3]);
    assert_eq!(keys(&[], 2), [1, 2]);

    let mut long = Batch::new();
    long.put(Table::Meta, vec![0; 1_025], []);
    assert!(matches!(store.commit(long), Err(StoreError::TooLarge { what: "key", got: 1_025, max: 1_024 })));
    assert!(matches!(Store::open(&path), Err(StoreError::InUse(_))));
    let nowhere = Store::open(folder.path().join("no/such/folder/file"));
    assert!(matches!(nowhere, Err(StoreError::Io { .. })), "{nowhere:?}");
}

#[test]
fn a_value_that_the_disk_changed_is_noticed() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("node.redb");
    let mut batch = Batch::new();
    for number in 0..100_u8 {
        batch.put(Table::Vouchers, [number], [number; 40]);
    }
    Store::open(&path).expect("opens").commit(batch).expect("written");
    let good = fs::read(&path).expect("read");
    for number in [1_u8, 50, 99] {
        let places: Vec<usize> = (0..good.len() - 40).filter(|&at| good[at..at + 40] == [number; 40]).collect();
        assert!(!places.is_empty(), "the value lies in the file as it is");
        let mut bad = good.clone();
        places.iter().for_each(|&at| bad[at + 7] ^= 0x10);
        fs::write(&path, &bad).expect("written");
        let opened = Store::open(&path).map(|_| ());
        assert!(matches!(opened, Err(StoreError::Corrupt { .. })), "value {number}: {opened:?}");
    }
}
