//! The cache against its limits, and against folders that a kill, the disk or a person has damaged.

use std::fs;
use std::path::{Path, PathBuf};

use crate::record::Record;
use crate::{Cache, CacheError, KEY_BYTES_MAX, Limits, VALUE_BYTES_MAX};

const LIMITS: Limits = Limits { entries_max: 8, bytes_max: 4_000, disk_bytes_max: 64 << 20 };

fn open(folder: &Path, limits: Limits) -> Cache {
    Cache::open_with(folder, limits).expect("it always opens")
}

fn keys(cache: &Cache) -> Vec<u8> {
    cache.iter().map(|(key, _)| key[0]).collect()
}

/// The value that the tests put under a key of one byte.
fn value(key: u8) -> Vec<u8> {
    (0..200).map(|at: u8| at.wrapping_mul(key)).collect()
}

/// A folder with the keys 0 to 99 in it, closed.
fn written() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = Cache::open(folder.path()).expect("opens");
    for key in 0..100 {
        cache.put(&[key], &value(key)).expect("put");
    }
    assert!(cache.flush());
    folder
}

/// Opens whatever lies in `folder`: it must open, say nothing but the truth, and take a new value.
fn check(folder: &Path, what: &str) -> (usize, bool) {
    let cache = Cache::open(folder).unwrap_or_else(|error| panic!("{what}: {error}"));
    for (key, got) in cache.iter() {
        assert!(key.len() == 1 && got == value(key[0]), "{what}: key {key:?} has another value");
    }
    let (count, aside) = (cache.len(), cache.was_set_aside());
    cache.put(&[200], &value(200)).expect("put");
    assert_eq!(cache.get(&[200]), Some(value(200)), "{what}");
    (count, aside)
}

#[test]
fn what_was_put_is_there_until_it_is_removed_and_after_a_restart() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = open(folder.path(), LIMITS);
    assert!(cache.is_empty() && !cache.was_set_aside());
    for key in [3, 1, 2, 4] {
        cache.put(&[key], &value(key)).expect("put");
    }
    cache.put(&[1], b"again").expect("put");
    cache.remove(&[2]);
    cache.remove(&[9]);
    cache.put(&[5], b"").expect("an empty value is one");
    let look = |cache: &Cache| {
        assert_eq!(keys(cache), [3, 4, 1, 5], "the oldest first; put again is put anew");
        assert_eq!(cache.get(&[1]), Some(b"again".to_vec()));
        assert_eq!((cache.get(&[2]), cache.get(&[5]), cache.get(&[9])), (None, Some(Vec::new()), None));
        assert_eq!((cache.len(), cache.bytes()), (4, 4 + 2 * 200 + 5));
    };
    look(&cache);
    assert!(cache.flush());
    drop(cache);
    // Closed and opened again at once, while sled's threads may still be at it.
    for _ in 0..20 {
        let cache = open(folder.path(), LIMITS);
        assert!(!cache.was_set_aside());
        look(&cache);
    }
}

#[test]
fn the_oldest_goes_first() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cache = open(folder.path(), LIMITS);
    for key in 0..10 {
        cache.put(&[key], &[key]).expect("put");
    }
    assert_eq!(keys(&cache), [2, 3, 4, 5, 6, 7, 8, 9], "eight entries");
    cache.put(&[10], &[0; 3_000]).expect("put");
    cache.put(&[11], &[0; 990]).expect("put");
    assert_eq!(keys(&cache), [6, 7, 8, 9, 10, 11], "four thousand bytes, and not one more");
    assert_eq!(cache.bytes(), 4 * 2 + 3_001 + 991);
    cache.put(&[12], &[0; 3_999]).expect("put");
    assert_eq!(keys(&cache), [12]);

    for (key, value, want) in [
        (vec![0; KEY_BYTES_MAX + 1], Vec::new(), ("key", KEY_BYTES_MAX + 1)),
        (vec![0], vec![0; VALUE_BYTES_MAX + 1], ("value", VALUE_BYTES_MAX + 1)),
        (vec![0], vec![0; 4_000], ("key and value", 4_001)),
    ] {
        let refused = cache.put(&key, &value);
        assert!(matches!(refused, Err(CacheError::TooLarge { what, got, .. }) if (what, got) == want), "{refused:?}");
    }
    assert_eq!(keys(&cache), [12], "what is refused displaces nothing");
    drop(cache);
    let smaller = open(folder.path(), Limits { bytes_max: 100, ..LIMITS });
    assert!(smaller.is_empty(), "limits hold for what lies there, too");
}

#[test]
fn the_disk_is_bounded() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let disk_bytes_max = 6 << 20;
    let cache = open(folder.path(), Limits { entries_max: 64, bytes_max: 1 << 20, disk_bytes_max });
    let mut emptied = false;
    let mut before = 0;
    for number in 0..6_000_u32 {
        cache.put(&number.to_be_bytes(), &[number as u8; 8_000]).expect("put");
        assert!(cache.get(&number.to_be_bytes()).is_some() || cache.is_empty(), "it is there, or all begins anew");
        emptied |= cache.len() < before;
        before = cache.len();
        assert!(before <= 64);
    }
    let size = fs::metadata(folder.path().join("sled/db")).expect("there").len();
    // It is measured after each sixteenth of that; sled writes some of it more than once, and in large pieces.
    assert!(size < 2 * disk_bytes_max + (4 << 20), "{size}");
    drop(cache);
    let cache = open(folder.path(), Limits { disk_bytes_max: 1, ..LIMITS });
    assert!(emptied || cache.was_set_aside(), "it was begun anew when it had grown, or is now");
    assert!(cache.was_set_aside() && cache.is_empty(), "even an empty one takes more than a byte, and opens");
    cache.put(b"key", b"value").expect("it may be displaced at once");
    assert!(cache.get(b"key").is_none_or(|value| value == b"value"));
}

#[test]
fn one_at_a_time_has_it_open_and_the_second_does_no_harm() {
    let folder = written();
    let cache = Cache::open(folder.path()).expect("opens");
    let second = Cache::open(folder.path()).map(|_| ());
    assert!(matches!(second, Err(CacheError::InUse(_))), "{second:?}");
    assert_eq!((cache.len(), cache.get(&[7])), (100, Some(value(7))));
    drop(cache);
    assert_eq!(check(folder.path(), "after the first has closed"), (100, false));

    let file = folder.path().join("a file");
    fs::write(&file, b"x").expect("written");
    assert!(matches!(Cache::open(&file).map(|_| ()), Err(CacheError::Io { .. })), "a file is no folder");
}

#[test]
fn a_half_snapshot_is_deleted() {
    let folder = written();
    for name in ["snap.0000000000000ABC.generating", "snap.generating"] {
        fs::write(folder.path().join("sled").join(name), b"half of one").expect("written");
    }
    assert_eq!(check(folder.path(), "with half snapshots"), (100, false));
    let left =
        files(&folder.path().join("sled")).iter().any(|path| path.extension().is_some_and(|e| e == "generating"));
    assert!(!left);
}

fn files(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for file in fs::read_dir(folder).expect("a folder") {
        let path = file.expect("read").path();
        if path.is_dir() { all.extend(files(&path)) } else { all.push(path) }
    }
    all.sort();
    all
}

#[test]
fn whatever_lies_there_it_opens_and_never_lies() {
    let folder = written();
    let sled = folder.path().join("sled");
    let good: Vec<(PathBuf, Vec<u8>)> =
        files(&sled).into_iter().map(|path| (path.clone(), fs::read(&path).expect("read"))).collect();
    assert!(good.iter().any(|(path, _)| path.ends_with("db")) && good.iter().any(|(path, _)| path.ends_with("conf")));
    let restore = || {
        fs::remove_dir_all(&sled).expect("removed");
        fs::create_dir_all(sled.join("blobs")).expect("made");
        good.iter().for_each(|(path, bytes)| fs::write(path, bytes).expect("written"));
    };
    let (mut whole, mut partly, mut aside) = (0, 0, 0);
    let mut count = |found: (usize, bool)| match found {
        (100, false) => whole += 1,
        (_, false) => partly += 1,
        (0, true) => aside += 1,
        (left, true) => panic!("{left} entries in what was begun anew"),
    };
    for (path, bytes) in &good {
        let name = path.strip_prefix(&sled).expect("below it").display();
        let used: Vec<usize> = (0..bytes.len()).filter(|&at| bytes[at] != 0).collect();
        for (number, &at) in used.iter().step_by((used.len() / 60).max(1)).enumerate() {
            restore();
            let mut bad = bytes.clone();
            bad[at] ^= 1 << (number % 8);
            fs::write(path, &bad).expect("written");
            count(check(folder.path(), &format!("{name}: byte {at}")));
        }
        for length in [0, 1, bytes.len() / 3, bytes.len() / 2, bytes.len().saturating_sub(1)] {
            restore();
            fs::write(path, &bytes[..length.min(bytes.len())]).expect("written");
            count(check(folder.path(), &format!("{name}: cut to {length}")));
        }
        for noise in [vec![0xff; 70_000], b"this is no cache ".repeat(500)] {
            restore();
            fs::write(path, noise).expect("written");
            count(check(folder.path(), &format!("{name}: noise")));
        }
        restore();
        fs::remove_file(path).expect("removed");
        count(check(folder.path(), &format!("{name}: gone")));
    }
    assert!(whole > 0 && aside > 0, "{whole} whole, {partly} with misses, {aside} begun anew");
    assert!(files(folder.path()).len() < 20, "only the last that broke is kept");

    fs::remove_dir_all(&sled).expect("removed");
    fs::write(&sled, b"a file where a folder should be").expect("written");
    assert_eq!(check(folder.path(), "a file in its place"), (0, true));
}

#[test]
fn a_record_opens_only_as_it_was_sealed() {
    let bytes = Record { stamp: 7, value: b"value" }.seal(b"key");
    assert_eq!(Record::open(b"key", &bytes), Some(Record { stamp: 7, value: b"value" }));
    assert_eq!(Record::open(b"kez", &bytes), None, "under another key");
    for bit in 0..bytes.len() * 8 {
        let mut bad = bytes.clone();
        bad[bit / 8] ^= 1 << (bit % 8);
        assert_eq!(Record::open(b"key", &bad), None, "bit {bit}");
    }
    for length in 0..bytes.len() {
        assert_eq!(Record::open(b"key", &bytes[..length]), None, "cut to {length}");
    }
    assert_eq!(Record::open(b"key", &[bytes.as_slice(), b"!"].concat()), None);
}
