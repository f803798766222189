//! A cache that is written until it is killed, and a check of what the killed one left behind; `scripts/crash.py --cache`
//! drives both.
//!
//! `crash_cache write FOLDER SEED` puts, removes and flushes for ever, and says a line for each. `crash_cache check FOLDER
//! ro|rw` reads all those lines and opens the folder (`ro`: a copy of it). It fails if the folder does not open, or gives a
//! value that was never put under its key. What was flushed and is gone is counted, and allowed: it is a cache.

use std::collections::BTreeMap;
use std::error::Error;
use std::io::{BufRead, Write};
use std::path::Path;

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use spillway_cache::{Cache, Limits};

type Anyhow<T> = Result<T, Box<dyn Error>>;

const KEYS: u16 = 200;
const LIMITS: Limits = Limits { entries_max: 1_000, bytes_max: 4 << 20, disk_bytes_max: 64 << 20 };
/// A writer that nobody kills stops here, in changes.
const CHANGES_MAX: u32 = 5_000_000;

fn main() -> Anyhow<()> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["write", folder, seed] => write(Path::new(folder), seed.parse()?),
        ["check", folder, "ro"] => {
            let copy = tempfile::tempdir()?;
            if Path::new(folder).is_dir() {
                copy_all(Path::new(folder), copy.path())?;
            }
            check(copy.path())
        }
        ["check", folder, "rw"] => check(Path::new(folder)),
        _ => Err("usage: crash_cache write FOLDER SEED | crash_cache check FOLDER ro|rw".into()),
    }
}

/// Says a line. It is one system call, so that a kill never leaves half of one.
fn say(line: String) -> Anyhow<()> {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes())?;
    Ok(out.flush()?)
}

/// The only value that `life` ever puts under `key` as its change of that number: 16 bytes of name, then noise.
fn value(key: u16, life: u64, number: u64) -> Vec<u8> {
    let mut random = ChaCha8Rng::seed_from_u64(life ^ number.rotate_left(32) ^ u64::from(key).rotate_left(48));
    let length = random.random_range(0..2_000);
    let mut bytes: Vec<u8> = life.to_le_bytes().into_iter().chain(number.to_le_bytes()).collect();
    bytes.extend((0..length).map(|_| random.random::<u8>()));
    bytes
}

/// Whether `bytes` is a value that was put under `key`; gives its life and number.
fn parse(key: u16, bytes: &[u8]) -> Option<(u64, u64)> {
    let (life, rest) = bytes.split_first_chunk()?;
    let (number, _) = rest.split_first_chunk()?;
    let (life, number) = (u64::from_le_bytes(*life), u64::from_le_bytes(*number));
    (value(key, life, number) == bytes).then_some((life, number))
}

fn write(folder: &Path, life: u64) -> Anyhow<()> {
    say("phase open".to_owned())?;
    let cache = Cache::open_with(folder, LIMITS)?;
    say(format!("opened {} {}", cache.len(), cache.bytes()))?;
    if cache.was_set_aside() {
        say("aside".to_owned())?;
    }
    let mut random = ChaCha8Rng::seed_from_u64(life);
    for number in 0..u64::from(CHANGES_MAX) {
        let key = random.random_range(0..KEYS);
        match random.random_range(0..20) {
            0..=15 => {
                say("phase put".to_owned())?;
                say(format!("putting {key} {life} {number}"))?;
                cache.put(&key.to_be_bytes(), &value(key, life, number))?;
            }
            16..=18 => {
                say("phase remove".to_owned())?;
                say(format!("removing {key}"))?;
                cache.remove(&key.to_be_bytes());
            }
            _ => {
                say("phase flush".to_owned())?;
                if !cache.flush() {
                    return Err("a flush failed".into());
                }
                say("flushed".to_owned())?;
            }
        }
    }
    Err("nobody killed this process".into())
}

fn check(folder: &Path) -> Anyhow<()> {
    // By key: the change that was flushed last, and those since, which may be there or not.
    let (mut flushed, mut since) = (BTreeMap::new(), BTreeMap::new());
    let mut acknowledged = 0_u64;
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        match line.split(' ').collect::<Vec<_>>()[..] {
            ["putting", key, life, number] => {
                since.insert(key.parse::<u16>()?, Some((life.parse::<u64>()?, number.parse::<u64>()?)));
            }
            ["removing", key] => drop(since.insert(key.parse::<u16>()?, None)),
            ["flushed"] => {
                acknowledged += since.len() as u64;
                flushed.append(&mut since);
            }
            ["aside"] => {
                flushed.clear();
                since.clear();
            }
            // What the life before had not flushed may be there or not, whatever this one flushes.
            ["opened", _, _] => {
                for key in std::mem::take(&mut since).into_keys() {
                    flushed.remove(&key);
                }
            }
            ["phase", _] => {}
            _ => return Err(format!("no acknowledgement: {line}").into()),
        }
    }
    let cache = Cache::open_with(folder, LIMITS)?;
    let (mut lies, mut misses, mut stale) = (0, 0, 0);
    for (key, bytes) in cache.iter() {
        let number = key.as_slice().try_into().map(u16::from_be_bytes);
        if number.ok().and_then(|key| parse(key, &bytes)).is_none() {
            eprintln!("key {key:?} has a value that was never put there");
            lies += 1;
        }
    }
    for (key, want) in &flushed {
        if since.contains_key(key) {
            continue;
        }
        let got = cache.get(&key.to_be_bytes()).and_then(|bytes| parse(*key, &bytes));
        match (want, got) {
            (want, got) if *want == got => {}
            (Some(_), None) => misses += 1,
            // Another change than the one that was flushed, or one that was flushed away.
            (Some(_) | None, _) => stale += 1,
        }
    }
    let report = serde_json::json!({
        "acknowledged": acknowledged,
        "misses": misses,
        "stale": stale,
        "set_aside": u32::from(cache.was_set_aside()),
        "faults": lies,
    });
    println!("{report}");
    if lies > 0 { Err("the cache told a lie".into()) } else { Ok(()) }
}

fn copy_all(from: &Path, to: &Path) -> Anyhow<()> {
    for file in std::fs::read_dir(from)? {
        let file = file?;
        let target = to.join(file.file_name());
        if file.file_type()?.is_dir() {
            std::fs::create_dir_all(&target)?;
            copy_all(&file.path(), &target)?;
        } else {
            std::fs::copy(file.path(), target)?;
        }
    }
    Ok(())
}
