//! sled, as far as it can be trusted: every call may fail or panic on what the disk gives it, and both are the same here.
//! Invariant: a panic in sled stays in this file.

use std::fs::{self, File, TryLockError};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

/// Why sled did not do it, in words.
#[derive(Debug)]
pub(crate) struct Broken(pub(crate) String);

impl From<sled::Error> for Broken {
    fn from(error: sled::Error) -> Self {
        Broken(error.to_string())
    }
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Broken(error.to_string())
    }
}

/// How much of the file sled keeps in memory, in bytes; least it takes is a few megabytes.
const MEMORY_BYTES: u64 = 8 << 20;
/// How often sled writes what it has by itself, in milliseconds: what a kill of the machine may cost.
const FLUSH_EVERY_MS: u64 = 1_000;

/// sled's threads let go of its lock some time after it was closed: how often that is looked at, and how long at most.
const CLOSING_LOOK: Duration = Duration::from_millis(5);
const CLOSING_LOOKS_MAX: u32 = 1_000;

/// An open sled folder.
#[derive(Debug)]
pub(crate) struct Engine(Option<sled::Db>);

impl Engine {
    /// Opens the folder, making an empty one where there is none. Whoever calls this holds the cache's own lock.
    pub(crate) fn open(folder: &Path) -> Result<Engine, Broken> {
        wait_until_closed(&folder.join("db"))?;
        drop_half_snapshots(folder)?;
        let config = sled::Config::new().path(folder).cache_capacity(MEMORY_BYTES).flush_every_ms(Some(FLUSH_EVERY_MS));
        guarded(|| Ok(Engine(Some(config.open()?))))
    }

    /// Calls `body` with every row, in the order of keys.
    pub(crate) fn each(&self, mut body: impl FnMut(&[u8], &[u8])) -> Result<(), Broken> {
        self.with(|db| {
            for row in db.iter() {
                let (key, value) = row?;
                body(&key, &value);
            }
            Ok(())
        })
    }

    pub(crate) fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Broken> {
        self.with(|db| Ok(db.get(key)?.map(|value| value.to_vec())))
    }

    pub(crate) fn put(&self, key: &[u8], value: Vec<u8>) -> Result<(), Broken> {
        self.with(|db| {
            db.insert(key, value)?;
            Ok(())
        })
    }

    pub(crate) fn remove(&self, key: &[u8]) -> Result<(), Broken> {
        self.with(|db| {
            db.remove(key)?;
            Ok(())
        })
    }

    pub(crate) fn flush(&self) -> Result<(), Broken> {
        self.with(|db| {
            db.flush()?;
            Ok(())
        })
    }

    /// The size of the folder, in bytes.
    pub(crate) fn disk_bytes(&self) -> Result<u64, Broken> {
        self.with(|db| Ok(db.size_on_disk()?))
    }

    fn with<T>(&self, body: impl FnOnce(&sled::Db) -> Result<T, Broken>) -> Result<T, Broken> {
        let db = self.0.as_ref().expect("it is taken only in drop");
        guarded(|| body(db))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Closing writes, and so may panic as everything else.
        let db = self.0.take();
        let _closed = guarded(|| {
            drop(db);
            Ok(())
        });
    }
}

/// Waits for the lock that a cache which was closed just now still holds: to open with it held fails like a broken folder.
fn wait_until_closed(path: &Path) -> Result<(), Broken> {
    for _ in 0..CLOSING_LOOKS_MAX {
        let file = match File::open(path) {
            Ok(file) => file,
            // Then there is nothing to hold; what is wrong with it, sled will say.
            Err(_) => return Ok(()),
        };
        match file.try_lock() {
            Ok(()) => return Ok(()),
            Err(TryLockError::WouldBlock) => std::thread::sleep(CLOSING_LOOK),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
    }
    Err(Broken("it is still being closed".to_owned()))
}

/// Deletes snapshots that a kill left half written: sled does not open with one.
fn drop_half_snapshots(folder: &Path) -> io::Result<()> {
    let files = match fs::read_dir(folder) {
        Ok(files) => files,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for file in files {
        let path = file?.path();
        if path.extension().is_some_and(|extension| extension == "generating") {
            fs::remove_file(path)?;
        }
    }
    Ok(())
}

/// Turns a panic into an error.
fn guarded<T>(body: impl FnOnce() -> Result<T, Broken>) -> Result<T, Broken> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or_else(|| panic.downcast_ref::<&str>().copied());
        Err(Broken(words.unwrap_or("it gave up").to_owned()))
    })
}
