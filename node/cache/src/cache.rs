//! The cache: what is in it, how old, and what goes first.
//! Invariant: the index names exactly the rows in the engine, and its sums are within the limits.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::engine::{Broken, Engine};
use crate::record::Record;

/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1_024;
/// The largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;

/// Where sled lies, in the cache's folder.
const ENGINE_FOLDER: &str = "sled";
/// Where the last one that broke lies, for whoever wants to know why; at most one.
const BROKEN_FOLDER: &str = "broken";
/// Held while the cache is open.
const LOCK_FILE: &str = "cache.lock";
/// The size on the disk is looked at each time that one of so many parts of what is allowed was put.
const MEASURE_PARTS: u64 = 16;

/// How much a cache holds. What is put above that displaces the oldest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Entries.
    pub entries_max: usize,
    /// Keys and values together, in bytes.
    pub bytes_max: usize,
    /// The folder on the disk, in bytes: sled does not give back all that it frees, so a folder that grows beyond this
    /// is begun anew, empty.
    pub disk_bytes_max: u64,
}

impl Default for Limits {
    /// 65,536 entries, 64 MiB, and four times that on the disk.
    fn default() -> Self {
        Limits { entries_max: 1 << 16, bytes_max: 64 << 20, disk_bytes_max: 256 << 20 }
    }
}

/// Why there is no cache, or a value is not in it.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// Another process, or another part of this one, has it open. Do without, or close that.
    #[error("{0} is in use: another process has it open")]
    InUse(PathBuf),
    /// The folder cannot be written. The operator's to fix; do without meanwhile.
    #[error("{path}: {source}")]
    Io {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A key or value above its limit; the caller's fault.
    #[error("{what} is {got} bytes, where at most {max} are allowed")]
    TooLarge {
        /// Which.
        what: &'static str,
        /// Its size.
        got: usize,
        /// The limit.
        max: usize,
    },
}

/// An open cache. What it says it has may be gone after a crash; what it gives is right.
#[derive(Debug)]
pub struct Cache {
    folder: PathBuf,
    limits: Limits,
    state: Mutex<State>,
    /// Whether the folder's content could not be used.
    set_aside: bool,
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    /// `None` once it broke and could not be begun anew: every read is a miss from then on.
    engine: Option<Engine>,
    index: HashMap<Vec<u8>, Entry>,
    /// The oldest first.
    ages: BTreeMap<u64, Vec<u8>>,
    bytes: usize,
    next_stamp: u64,
    /// What was put since the size on the disk was looked at, in bytes.
    unmeasured: u64,
}

#[derive(Clone, Copy, Debug)]
struct Entry {
    stamp: u64,
    bytes: usize,
}

impl Cache {
    /// Opens the cache in `folder` with the default [`Limits`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Cache, CacheError> {
        Cache::open_with(folder, Limits::default())
    }

    /// Opens the cache in `folder`. What lies there and cannot be opened is moved aside, and the cache is empty.
    pub fn open_with(folder: impl AsRef<Path>, limits: Limits) -> Result<Cache, CacheError> {
        let folder = folder.as_ref().to_owned();
        let io = |path: &Path, source| CacheError::Io { path: path.to_owned(), source };
        fs::create_dir_all(&folder).map_err(|source| io(&folder, source))?;
        let path = folder.join(LOCK_FILE);
        let lock = File::options().write(true).create(true).truncate(false).open(&path);
        let lock = lock.map_err(|source| io(&path, source))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(CacheError::InUse(folder)),
            Err(TryLockError::Error(source)) => return Err(io(&path, source)),
        }
        // Nobody else has it open, so whatever fails from here on is the content's or the disk's fault.
        let engine = folder.join(ENGINE_FOLDER);
        let (state, set_aside) = match State::load_within(&engine, &limits) {
            Ok(state) => (state, false),
            Err(Broken(why)) => {
                tracing::warn!(folder = %folder.display(), %why, "the cache could not be opened: it begins anew, empty");
                set_aside(&folder).map_err(|source| io(&engine, source))?;
                let again = State::load(&engine, &limits);
                (again.map_err(|Broken(why)| io(&engine, io::Error::other(why)))?, true)
            }
        };
        Ok(Cache { folder, limits, state: Mutex::new(state), set_aside, _lock: lock })
    }

    /// Whether what lay in the folder could not be used when it was opened.
    pub fn was_set_aside(&self) -> bool {
        self.set_aside
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.state().index.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The size of all keys and values, in bytes.
    pub fn bytes(&self) -> usize {
        self.state().bytes
    }

    /// The value that was last put under `key`, if it is still there and undamaged.
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        let mut state = self.state();
        let read = state.read(key);
        self.settle(&mut state, read).flatten()
    }

    /// Keeps `value` under `key`, and displaces the oldest entries where there is no room. It may be gone after a crash.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<(), CacheError> {
        let of_all = self.limits.bytes_max;
        for (what, got, max) in [
            ("key", key.len(), KEY_BYTES_MAX),
            ("value", value.len(), VALUE_BYTES_MAX),
            ("key and value", key.len() + value.len(), of_all),
        ] {
            if got > max {
                return Err(CacheError::TooLarge { what, got, max });
            }
        }
        let mut state = self.state();
        let put = state.put(key, value, &self.limits);
        self.settle(&mut state, put);
        Ok(())
    }

    /// Forgets `key`.
    pub fn remove(&self, key: &[u8]) {
        let mut state = self.state();
        let removed = state.remove(key);
        self.settle(&mut state, removed);
    }

    /// Every entry that is undamaged, the oldest first: those that are there now, each read when it is its turn.
    pub fn iter(&self) -> impl Iterator<Item = (Vec<u8>, Vec<u8>)> {
        let keys: Vec<Vec<u8>> = self.state().ages.values().cloned().collect();
        keys.into_iter().filter_map(|key| self.get(&key).map(|value| (key, value)))
    }

    /// Writes out what was put. `false` if that failed: then it begins anew, empty.
    pub fn flush(&self) -> bool {
        let mut state = self.state();
        let flushed = state.engine.as_ref().map_or_else(|| Err(Broken("it is off".to_owned())), Engine::flush);
        self.settle(&mut state, flushed).is_some()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // sled's panics do not come this far, and nothing here panics between two changes of the index.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins anew where the engine broke while it was in use; stays off, all misses, where even that fails.
    fn settle<T>(&self, state: &mut State, result: Result<T, Broken>) -> Option<T> {
        let Broken(why) = match result {
            Ok(value) => return Some(value),
            Err(broken) => broken,
        };
        // It is said once: a cache that is off has no engine to break.
        if state.engine.is_some() {
            tracing::warn!(folder = %self.folder.display(), %why, "the cache broke: it begins anew, empty");
            *state = State::default();
            let anew = set_aside(&self.folder).map_err(Broken::from);
            let anew = anew.and_then(|()| State::load(&self.folder.join(ENGINE_FOLDER), &self.limits));
            match anew {
                Ok(fresh) => *state = fresh,
                Err(Broken(why)) => {
                    tracing::warn!(folder = %self.folder.display(), %why, "there is no cache until the next start");
                }
            }
        }
        None
    }
}

/// Moves what is broken out of the way, in place of what broke before.
fn set_aside(folder: &Path) -> io::Result<()> {
    let (engine, broken) = (folder.join(ENGINE_FOLDER), folder.join(BROKEN_FOLDER));
    for stale in [&broken, &engine] {
        if stale == &engine && fs::rename(&engine, &broken).is_ok() {
            return Ok(());
        }
        remove(stale)?;
    }
    Ok(())
}

/// Removes a folder or file; what is not there is removed already.
fn remove(path: &Path) -> io::Result<()> {
    let removed = match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

impl State {
    /// As [`State::load`], but a folder that takes more of the disk than it may is as good as broken. One that was just
    /// begun anew is not asked: even an empty one takes some.
    fn load_within(folder: &Path, limits: &Limits) -> Result<State, Broken> {
        let state = State::load(folder, limits)?;
        state.measure(limits)?;
        Ok(state)
    }

    /// Opens the engine and reads every row; what is damaged or too much is dropped.
    fn load(folder: &Path, limits: &Limits) -> Result<State, Broken> {
        let engine = Engine::open(folder)?;
        let mut state = State::default();
        let mut damaged = Vec::new();
        engine.each(|key, bytes| match Record::open(key, bytes) {
            // Two rows of one age are none that were ever put.
            Some(record) if key.len() <= KEY_BYTES_MAX && !state.ages.contains_key(&record.stamp) => {
                state.note(key, record.stamp, record.value.len());
            }
            _ => damaged.push(key.to_vec()),
        })?;
        for key in damaged {
            engine.remove(&key)?;
        }
        state.next_stamp = state.ages.keys().next_back().map_or(0, |stamp| stamp.saturating_add(1));
        state.engine = Some(engine);
        state.evict(limits)?;
        Ok(state)
    }

    fn engine(&self) -> Result<&Engine, Broken> {
        self.engine.as_ref().ok_or_else(|| Broken("it is off".to_owned()))
    }

    fn read(&mut self, key: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
        let Some(entry) = self.index.get(key).copied() else { return Ok(None) };
        let bytes = self.engine()?.get(key)?;
        let record = bytes.as_deref().and_then(|bytes| Record::open(key, bytes));
        match record {
            Some(record) if record.stamp == entry.stamp => Ok(Some(record.value.to_vec())),
            Some(_) | None => {
                self.remove(key)?;
                Ok(None)
            }
        }
    }

    fn put(&mut self, key: &[u8], value: &[u8], limits: &Limits) -> Result<(), Broken> {
        let stamp = self.next_stamp;
        let record = Record { stamp, value };
        self.engine()?.put(key, record.seal(key))?;
        self.next_stamp = stamp.checked_add(1).ok_or_else(|| Broken("it has run out of stamps".to_owned()))?;
        self.forget(key);
        self.note(key, stamp, value.len());
        self.evict(limits)?;
        self.unmeasured += (key.len() + value.len()) as u64;
        if self.unmeasured > limits.disk_bytes_max / MEASURE_PARTS {
            self.unmeasured = 0;
            self.measure(limits)?;
        }
        Ok(())
    }

    fn measure(&self, limits: &Limits) -> Result<(), Broken> {
        if self.engine()?.disk_bytes()? > limits.disk_bytes_max {
            return Err(Broken("it takes more of the disk than it may".to_owned()));
        }
        Ok(())
    }

    fn remove(&mut self, key: &[u8]) -> Result<(), Broken> {
        self.engine()?.remove(key)?;
        self.forget(key);
        Ok(())
    }

    /// Drops the oldest until the rest is within the limits.
    fn evict(&mut self, limits: &Limits) -> Result<(), Broken> {
        while self.index.len() > limits.entries_max || self.bytes > limits.bytes_max {
            let Some(key) = self.ages.values().next().cloned() else { return Ok(()) };
            self.remove(&key)?;
        }
        Ok(())
    }

    fn note(&mut self, key: &[u8], stamp: u64, value_bytes: usize) {
        let bytes = key.len() + value_bytes;
        self.ages.insert(stamp, key.to_vec());
        self.index.insert(key.to_vec(), Entry { stamp, bytes });
        self.bytes += bytes;
    }

    fn forget(&mut self, key: &[u8]) {
        if let Some(entry) = self.index.remove(key) {
            self.ages.remove(&entry.stamp);
            self.bytes -= entry.bytes;
        }
    }
}
