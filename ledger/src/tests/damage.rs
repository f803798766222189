//! Ledger files that the disk, or a person, has damaged: a clear error or the very same book, never another balance.
//!
//! Sampled by default; `SPILLWAY_FAULTS=all` takes every byte, `SPILLWAY_FAULTS=bits` every bit, in minutes:
//! `docs/storage.md`, "Faults".

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rand::{RngExt, SeedableRng};

use super::*;
use crate::chain::{GENESIS_FILE, LEDGER_FILE, TIP_FILE};

/// Whether every offset is to be tried, and not a sample.
fn all() -> bool {
    std::env::var("SPILLWAY_FAULTS").is_ok_and(|value| value == "all" || value == "bits")
}

/// Of `places`, one in `stride`; each of them where all are wanted.
fn sample(places: impl IntoIterator<Item = usize>, stride: usize) -> Vec<usize> {
    places.into_iter().step_by(if all() { 1 } else { stride.max(1) }).collect()
}

/// The bits to flip in bytes that were sampled: one of each, another one each time; every one where that is wanted.
fn bits(bytes: Vec<usize>) -> Vec<usize> {
    let every = std::env::var("SPILLWAY_FAULTS").is_ok_and(|value| value == "bits");
    let of_byte = |(number, at): (usize, usize)| {
        let bits = if every { 0..8 } else { number % 8..number % 8 + 1 };
        bits.map(move |bit| at * 8 + bit)
    };
    bytes.into_iter().enumerate().flat_map(of_byte).collect()
}

/// What opening a folder gave.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
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

/// As [`open`], for an auditor, who trusts the folder's own genesis and writes nothing.
fn verify(folder: &Path, want: (u64, Digest)) -> Outcome {
    match verify_folder(folder) {
        Ok(verified) => {
            assert_eq!((verified.height, verified.state_root), want, "a damaged ledger verified as another book");
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

/// A ledger folder's files.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Image(BTreeMap<PathBuf, Vec<u8>>);

impl Image {
    /// The folder as it is now; while a ledger is open there, as a kill would leave it.
    fn of(folder: &Path) -> Image {
        let files = fs::read_dir(folder).expect("a folder").map(|file| {
            let file = file.expect("read");
            (file.file_name().into(), fs::read(file.path()).expect("read"))
        });
        Image(files.collect())
    }

    fn put(&self, folder: &Path) {
        for (name, bytes) in &self.0 {
            fs::write(folder.join(name), bytes).expect("written");
        }
    }

    fn ledger(&self) -> &[u8] {
        &self.0[Path::new(LEDGER_FILE)]
    }
}

/// The same ledger twice: closed, and as a kill leaves it.
fn images(cast: &Cast) -> ([(&'static str, Image); 2], (u64, Digest)) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let solo = chain::history(cast, folder.path());
    let want = (solo.height(), solo.book().clone().state_root());
    let killed = Image::of(folder.path());
    drop(solo);
    ([("closed", Image::of(folder.path())), ("killed", killed)], want)
}

/// Does `body` for each of `places`, on every core, each with a folder of its own.
fn each<T: Sync>(places: &[T], body: impl Fn(usize, &T, &Path) + Sync) {
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let folder = tempfile::tempdir().expect("a temporary folder");
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(place) = places.get(number) else { return };
                    body(number, place, folder.path());
                }
            });
        }
    });
}

#[test]
fn no_flipped_bit_changes_a_balance() {
    let cast = cast();
    let (images, want) = images(&cast);
    for (state, image) in &images {
        let good = image.ledger();
        // The file's own header, and every stretch that holds anything; all of the rest only where all is wanted.
        let used: Vec<usize> = (320..good.len()).filter(|&at| all() || good[at] != 0).collect();
        let places = bits([sample(0..320, 2), sample(used.iter().copied(), used.len() / 60)].concat());
        let (same, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        each(&places, |number, &bit, folder| {
            image.put(folder);
            let mut bad = good.to_vec();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(folder.join(LEDGER_FILE), &bad).expect("written");
            if number % 17 == 0 {
                verify(folder, want);
                assert_eq!(fs::read(folder.join(LEDGER_FILE)).expect("read"), bad, "an auditor writes nothing");
            }
            match open(&cast, folder, want) {
                Outcome::Same => same.fetch_add(1, Ordering::Relaxed),
                Outcome::Refused(_) => refused.fetch_add(1, Ordering::Relaxed),
            };
            if number % 61 == 0 {
                go_on(&cast, folder);
            }
        });
        let (same, refused) = (same.into_inner(), refused.into_inner());
        println!(
            "{state}: {} bytes, {} bits flipped: {refused} refused, {same} the same book",
            good.len(),
            places.len()
        );
        assert!(refused > 20, "{refused} refused, {same} without effect: the sweep hit something that matters");
    }
}

/// A ledger that opens after all goes on, and what it then writes is there when it is opened again.
fn go_on(cast: &Cast, folder: &Path) {
    let Ok(mut solo) = Solo::open(folder, &cast.genesis, cast.authority.clone()) else { return };
    solo.submit(cast.transfer(&cast.consumer, 4, cast.stranger.account(), 1)).expect("queued");
    solo.produce(START_MS).expect("written").expect("a block");
    let want = (solo.height(), solo.book().clone().state_root());
    drop(solo);
    assert_eq!((open(cast, folder, want), verify(folder, want)), (Outcome::Same, Outcome::Same));
    // The next one begins with the files as they were.
    fs::remove_dir_all(folder).expect("removed");
    fs::create_dir(folder).expect("made");
}

#[test]
fn no_flipped_bit_loses_a_voucher_in_silence() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("node.redb");
    let store = Store::open_noted(&path).expect("opens");
    for number in 0..20_u8 {
        let mut batch = Batch::new();
        batch.put(Table::Vouchers, [number % 4], [number; 150]).put(Table::Receipts, [number], [number; 90]);
        store.commit(batch).expect("written");
    }
    let rows = |store: &Store| {
        Table::ALL.map(|table| store.range(table, &[], 100).unwrap_or_else(|error| panic!("it opened: {error}")))
    };
    let want = rows(&store);
    let killed = Image::of(folder.path());
    drop(store);
    for (state, image) in [("closed", Image::of(folder.path())), ("killed", killed)] {
        for (name, stride) in [("node.redb", 501), ("node.tip", 5)] {
            let good = &image.0[Path::new(name)];
            // The two commits' places in redb's header are where one could be lost; then a sample.
            let header = if name == "node.redb" { 320 } else { 0 };
            let places = bits([sample(0..header, 3), sample(header..good.len(), stride)].concat());
            let refused = AtomicUsize::new(0);
            each(&places, |_, &bit, folder| {
                image.put(folder);
                let mut bad = good.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                fs::write(folder.join(name), &bad).expect("written");
                match Store::open_noted(folder.join("node.redb")) {
                    Ok(store) => assert_eq!(rows(&store), want, "{state} {name} bit {bit}"),
                    Err(StoreError::Corrupt { .. }) => drop(refused.fetch_add(1, Ordering::Relaxed)),
                    Err(other) => panic!("{state} {name} bit {bit}: {other}"),
                }
            });
            println!("{state} {name}: {} bits flipped, {} refused", places.len(), refused.into_inner());
        }
    }

    // Who means to go back to an older copy removes the note.
    let old = fs::read(&path).expect("read");
    let store = Store::open_noted(&path).expect("opens");
    let mut batch = Batch::new();
    batch.put(Table::Vouchers, [1], [99]);
    store.commit(batch).expect("written");
    drop(store);
    fs::write(&path, old).expect("written");
    let refused = Store::open_noted(&path).map(|_| ()).expect_err("it fell back").to_string();
    assert!(refused.contains("the last 1 commits are gone; to go on without them, remove"), "{refused}");
    fs::remove_file(folder.path().join("node.tip")).expect("removed");
    assert_eq!(rows(&Store::open_noted(&path).expect("opens")), want);
}

#[test]
fn no_flipped_bit_of_the_small_files_changes_a_balance() {
    let cast = cast();
    let (images, want) = images(&cast);
    let (_, image) = &images[0];
    for name in [TIP_FILE, GENESIS_FILE] {
        let good = &image.0[Path::new(name)];
        let places = bits(sample(0..good.len(), if name == TIP_FILE { 2 } else { 5 }));
        let same = AtomicUsize::new(0);
        each(&places, |_, &bit, folder| {
            image.put(folder);
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            fs::write(folder.join(name), &bad).expect("written");
            let found = [verify(folder, want), open(&cast, folder, want)];
            let whole = found == [Outcome::Same, Outcome::Same];
            assert!(whole || name == GENESIS_FILE, "{name} bit {bit}: {found:?}");
            same.fetch_add(usize::from(whole), Ordering::Relaxed);
        });
        println!("{name}: {} bits flipped: {} the same book", places.len(), same.into_inner());
    }
}

/// `old` with those of `units` of `unit` bytes taken from `new` for which `taken` says so.
fn mix(old: &[u8], new: &[u8], unit: usize, units: &[usize], taken: impl Fn(usize) -> bool) -> Vec<u8> {
    let mut mixed = old.to_vec();
    mixed.resize(old.len().max(new.len()), 0);
    for (number, &at) in units.iter().enumerate() {
        if taken(number) {
            let end = (at + unit).min(new.len());
            mixed[at..end].copy_from_slice(&new[at..end]);
        }
    }
    mixed
}

#[test]
fn a_torn_write_is_the_old_book_or_the_new_one() {
    let cast = cast();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut solo = chain::history(&cast, folder.path());
    let state = |solo: &Solo| (solo.height(), solo.book().clone().state_root());
    let (old, old_state) = (Image::of(folder.path()), state(&solo));
    solo.submit(cast.transfer(&cast.consumer, 4, cast.stranger.account(), 1)).expect("queued");
    solo.produce(START_MS).expect("written").expect("a block");
    let (new, new_state) = (Image::of(folder.path()), state(&solo));
    drop(solo);

    for unit in [512, 4_096] {
        let length = old.ledger().len().max(new.ledger().len());
        let part = |image: &[u8], at: usize| image.get(at..(at + unit).min(image.len())).map(<[u8]>::to_vec);
        let units: Vec<usize> =
            (0..length).step_by(unit).filter(|&at| part(old.ledger(), at) != part(new.ledger(), at)).collect();
        let count = units.len();
        assert!(count > 2, "a commit writes several pieces of {unit}");
        let mut sets: Vec<Vec<bool>> = Vec::new();
        for cut in sample(0..=count, 3) {
            sets.push((0..count).map(|number| number < cut).collect());
            sets.push((0..count).map(|number| number >= cut).collect());
            sets.push((0..count).map(|number| number == cut).collect());
            sets.push((0..count).map(|number| number != cut).collect());
        }
        let mut random = rand_chacha::ChaCha8Rng::seed_from_u64(unit as u64);
        let more = if all() { 20_000 } else { 20 };
        sets.extend((0..more).map(|_| (0..count).map(|_| random.random()).collect()));

        let (as_old, as_new, refused) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicUsize::new(0));
        each(&sets, |_, set, folder| {
            let mixed = mix(old.ledger(), new.ledger(), unit, &units, |number| set[number]);
            // The write was under way: the note still names the block before. It must open, as before it or after it.
            old.put(folder);
            fs::write(folder.join(LEDGER_FILE), &mixed).expect("written");
            let follower = Follower::open(folder, &cast.genesis).unwrap_or_else(|error| panic!("{set:?}: {error}"));
            let got = (follower.height(), follower.book().clone().state_root());
            drop(follower);
            assert!(got == old_state || got == new_state, "{set:?} gave another book");
            let counter = if got == old_state { &as_old } else { &as_new };
            counter.fetch_add(1, Ordering::Relaxed);
            // The write was acknowledged, and the disk has forgotten some of it: that is never passed over in silence.
            new.put(folder);
            fs::write(folder.join(LEDGER_FILE), &mixed).expect("written");
            if open(&cast, folder, new_state) != Outcome::Same {
                refused.fetch_add(1, Ordering::Relaxed);
            }
        });
        let [as_old, as_new, refused] = [as_old, as_new, refused].map(AtomicUsize::into_inner);
        println!("{count} pieces of {unit}, {} mixes: {as_old} old, {as_new} new; {refused} noticed", sets.len());
        assert!(as_old > 0 && as_new > 0 && refused == as_old, "what fell back is what was noticed");
    }

    // The note is two places of 72 bytes, one written at a time: torn anywhere, the other still holds.
    let (before, after) = (&old.0[Path::new(TIP_FILE)], &new.0[Path::new(TIP_FILE)]);
    each(&sample(0..=after.len(), 7), |_, &cut, folder| {
        let mut old_tail = before.clone();
        old_tail.resize(after.len(), 0);
        for torn in [[&after[..cut], &old_tail[cut..]].concat(), [&old_tail[..cut], &after[cut..]].concat()] {
            new.put(folder);
            fs::write(folder.join(TIP_FILE), torn).expect("written");
            assert_eq!(open(&cast, folder, new_state), Outcome::Same, "torn at {cut}");
            old.put(folder);
            let (_, had) = crate::tip::TipFile::open(&folder.join(TIP_FILE)).expect("read");
            assert_eq!(had.map(|(height, _)| height), Some(old_state.0));
        }
    });
}

#[test]
fn no_cut_at_any_length_changes_a_balance() {
    let cast = cast();
    let (images, want) = images(&cast);
    for (state, image) in &images {
        let good = image.ledger();
        let stride = if all() { 1 } else { 8_191 };
        // From the end on, so that one file does for all: what is refused is not written to.
        let ranges: Vec<(usize, usize)> =
            (0..good.len()).step_by(65_536).map(|start| (start, (start + 65_536).min(good.len()))).collect();
        let (same, refused) = (AtomicUsize::new(0), AtomicUsize::new(0));
        each(&ranges, |_, &(start, end), folder| {
            let path = folder.join(LEDGER_FILE);
            image.put(folder);
            fs::write(&path, &good[..end]).expect("written");
            let aligned = (start..end).filter(|length| length % 4_096 == 0);
            let mut lengths: Vec<usize> = (start..end).step_by(stride).chain(aligned).collect();
            lengths.sort_unstable_by(|a, b| b.cmp(a));
            lengths.dedup();
            for length in lengths {
                fs::File::options().write(true).open(&path).and_then(|file| file.set_len(length as u64)).expect("cut");
                match open(&cast, folder, want) {
                    Outcome::Refused(_) => refused.fetch_add(1, Ordering::Relaxed),
                    Outcome::Same => {
                        image.put(folder);
                        same.fetch_add(1, Ordering::Relaxed)
                    }
                };
            }
        });
        let (same, refused) = (same.into_inner(), refused.into_inner());
        println!("{state}: {} bytes, {} lengths: {refused} refused, {same} the same book", good.len(), same + refused);
        assert!(refused > same, "{refused} refused, {same} without effect");
    }
    let (_, image) = &images[0];
    for name in [TIP_FILE, GENESIS_FILE] {
        let good = &image.0[Path::new(name)];
        each(&sample(0..good.len(), 9), |_, &length, folder| {
            image.put(folder);
            fs::write(folder.join(name), &good[..length]).expect("written");
            let found = open(&cast, folder, want);
            assert!(found == Outcome::Same || name == GENESIS_FILE, "{name} cut to {length}: {found:?}");
            assert!(found != Outcome::Same || name == TIP_FILE, "{name} cut to {length}: {found:?}");
        });
    }
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
