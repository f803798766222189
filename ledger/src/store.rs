//! The durable store: a few tables of bytes in one redb file.
//! Invariant: when [`Store::commit`] returns, all of its batch is on the disk; after a kill, all of a batch is there or
//! none of it.

mod overlay;

use std::fs::{self, File};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use redb::{Builder, Database, ReadableDatabase, ReadableTable, TableDefinition};

use self::overlay::Overlay;
use crate::keys::Digest;
use crate::tip::TipFile;

/// How often a commit also saves what makes a repair after a kill quick, in commits.
const QUICK_REPAIR_EVERY: u64 = 1_000;

/// How much of the file is kept in memory, in bytes: redb would take up to a gigabyte of each.
const MEMORY_BYTES: usize = 64 << 20;

/// How many commits a noted store has had, under the empty key.
const COMMITS: TableDefinition<'static, &'static [u8], u64> = TableDefinition::new("commits");

/// The largest value, in bytes.
pub const VALUE_BYTES_MAX: usize = 16 << 20;
/// The longest key, in bytes.
pub const KEY_BYTES_MAX: usize = 1_024;

/// What is kept. Keys and values are bytes; a table's order is that of its keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Table {
    /// Certified blocks by height, big-endian.
    Blocks,
    /// The highest voucher of each session.
    Vouchers,
    /// Co-signed receipts.
    Receipts,
    /// What a node knows of its sessions.
    Sessions,
    /// Keys that callers present, hashed.
    Keys,
    /// What each key may spend and has spent.
    Budgets,
    /// Jobs under way.
    Jobs,
    /// What fits nowhere else.
    Meta,
}

impl Table {
    /// Every table.
    pub const ALL: [Table; 8] = [
        Table::Blocks,
        Table::Vouchers,
        Table::Receipts,
        Table::Sessions,
        Table::Keys,
        Table::Budgets,
        Table::Jobs,
        Table::Meta,
    ];

    fn definition(self) -> TableDefinition<'static, &'static [u8], &'static [u8]> {
        TableDefinition::new(match self {
            Table::Blocks => "blocks",
            Table::Vouchers => "vouchers",
            Table::Receipts => "receipts",
            Table::Sessions => "sessions",
            Table::Keys => "keys",
            Table::Budgets => "budgets",
            Table::Jobs => "jobs",
            Table::Meta => "meta",
        })
    }
}

/// Why the store cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process, or another part of this one, has it open. Close that, then retry.
    #[error("{0} is in use: another node has it open")]
    InUse(PathBuf),
    /// The file or its folder may not be written. The operator's to fix.
    #[error("{0} cannot be written: permission denied or read-only")]
    ReadOnly(PathBuf),
    /// The file is damaged or no store at all. Restore a copy, or fetch the blocks anew.
    #[error("{path} is damaged or is no Spillway store: {what}")]
    Corrupt {
        /// The file.
        path: PathBuf,
        /// What was found.
        what: String,
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
    /// The disk said no: full, gone, or failing. After a failed write, open the store anew.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// One change.
#[derive(Clone, Debug)]
enum Change {
    Put(Table, Vec<u8>, Vec<u8>),
    Delete(Table, Vec<u8>),
}

/// Changes that become durable together. The last change of a key wins.
#[derive(Clone, Debug, Default)]
pub struct Batch(Vec<Change>);

impl Batch {
    /// No changes.
    pub fn new() -> Self {
        Batch::default()
    }

    /// Sets a key's value.
    pub fn put(&mut self, table: Table, key: impl Into<Vec<u8>>, value: impl Into<Vec<u8>>) -> &mut Self {
        self.0.push(Change::Put(table, key.into(), value.into()));
        self
    }

    /// Removes a key; one that is not there stays so.
    pub fn delete(&mut self, table: Table, key: impl Into<Vec<u8>>) -> &mut Self {
        self.0.push(Change::Delete(table, key.into()));
        self
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// A key and its value.
pub type Row = (Vec<u8>, Vec<u8>);

/// An open store. One at a time may have the file open.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
    database: Database,
    commits: AtomicU64,
    read_only: bool,
    note: Option<Mutex<TipFile>>,
}

impl Store {
    /// Opens the store in the file at `path`, or makes an empty one where there is no file. Every page's checksum is
    /// verified, so a large file takes as long as reading it once.
    pub fn open(path: impl AsRef<Path>) -> Result<Store, StoreError> {
        let path = path.as_ref();
        // A file appears only once it is whole, so one that is there and empty has been cut short.
        match fs::metadata(path) {
            Ok(metadata) => not_empty(path, &metadata)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => create(path)?,
            Err(source) => return Err(store_error(path, source.into())),
        }
        Store::load(path, false, || Ok(builder().open(path)?))
    }

    /// As [`Store::open`], with a note beside the file of how many commits there were, under its name but ending in
    /// `.tip`. Without one, a file whose very last commit the disk has spoiled opens as of the commit before; with it, that
    /// is an error. For what has no such note of its own, as a chain of blocks has.
    pub fn open_noted(path: impl AsRef<Path>) -> Result<Store, StoreError> {
        let path = path.as_ref();
        let mut store = Store::open(path)?;
        let note = path.with_extension("tip");
        let (file, noted) = TipFile::open(&note).map_err(|source| store_error(&note, source.into()))?;
        let (had, have) = (noted.map_or(0, |(commits, _)| commits), store.commits_kept()?);
        if had > have {
            let note = note.display();
            let what = format!("the last {} commits are gone; to go on without them, remove {note}", had - have);
            return Err(StoreError::Corrupt { path: path.to_owned(), what });
        }
        store.note = Some(Mutex::new(file));
        Ok(store)
    }

    /// Opens the store in the file at `path` to read it, without writing a byte to it or beside it: what a repair after a
    /// kill would write is kept in memory. Others may read it at the same time; nobody can write it.
    pub fn open_read_only(path: impl AsRef<Path>) -> Result<Store, StoreError> {
        let path = path.as_ref();
        let file = File::open(path).map_err(|source| store_error(path, source.into()))?;
        let metadata = file.metadata().map_err(|source| store_error(path, source.into()))?;
        if metadata.is_dir() {
            return Err(store_error(path, io::Error::from(io::ErrorKind::IsADirectory).into()));
        }
        not_empty(path, &metadata)?;
        Store::load(path, true, || Ok(builder().create_with_backend(Overlay::new(file)?)?))
    }

    fn load(
        path: &Path,
        read_only: bool,
        open: impl FnOnce() -> Result<Database, redb::Error>,
    ) -> Result<Store, StoreError> {
        let database = guarded(path, || open().map_err(|error| store_error(path, error)))?;
        let store = Store { path: path.to_owned(), database, commits: AtomicU64::new(0), read_only, note: None };
        // Every table exists from here on, so that reading one never has to ask.
        store.write(|transaction| {
            for table in Table::ALL {
                transaction.open_table(table.definition())?;
            }
            Ok(())
        })?;
        Ok(store)
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes all of `batch`, and returns once it is durable.
    pub fn commit(&self, batch: Batch) -> Result<(), StoreError> {
        if self.read_only {
            return Err(StoreError::ReadOnly(self.path.clone()));
        }
        for change in &batch.0 {
            let (key, value) = match change {
                Change::Put(_, key, value) => (key.len(), value.len()),
                Change::Delete(_, key) => (key.len(), 0),
            };
            for (what, got, max) in [("key", key, KEY_BYTES_MAX), ("value", value, VALUE_BYTES_MAX)] {
                if got > max {
                    return Err(StoreError::TooLarge { what, got, max });
                }
            }
        }
        self.write(|transaction| {
            for table in Table::ALL {
                let of_table = |change: &&Change| match change {
                    Change::Put(of, ..) | Change::Delete(of, ..) => *of == table,
                };
                let mut changes = batch.0.iter().filter(of_table).peekable();
                if changes.peek().is_none() {
                    continue;
                }
                let mut open = transaction.open_table(table.definition())?;
                for change in changes {
                    match change {
                        Change::Put(_, key, value) => drop(open.insert(key.as_slice(), value.as_slice())?),
                        Change::Delete(_, key) => drop(open.remove(key.as_slice())?),
                    }
                }
            }
            Ok(())
        })
    }

    /// The value of `key`.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(table, |open| Ok(open.get(key)?.map(|value| value.value().to_vec())))
    }

    /// Up to `max` rows from `from` on, in the order of keys.
    pub fn range(&self, table: Table, from: &[u8], max: usize) -> Result<Vec<Row>, StoreError> {
        self.read(table, |open| {
            let rows = open.range(from..)?.take(max);
            rows.map(|row| row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())).map_err(Into::into))
                .collect()
        })
    }

    /// The row with the highest key.
    pub fn last(&self, table: Table) -> Result<Option<Row>, StoreError> {
        self.read(table, |open| Ok(open.last()?.map(|(key, value)| (key.value().to_vec(), value.value().to_vec()))))
    }

    fn read<T>(
        &self,
        table: Table,
        body: impl FnOnce(redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, redb::Error>,
    ) -> Result<T, StoreError> {
        let read = || body(self.database.begin_read()?.open_table(table.definition())?);
        guarded(&self.path, || read().map_err(|error| store_error(&self.path, error)))
    }

    fn write(&self, body: impl FnOnce(&redb::WriteTransaction) -> Result<(), redb::Error>) -> Result<(), StoreError> {
        let write = || {
            let mut transaction = self.database.begin_write()?;
            transaction
                .set_durability(redb::Durability::Immediate)
                .expect("no savepoint is ever made, so every durability is allowed");
            if self.commits.fetch_add(1, Ordering::Relaxed) % QUICK_REPAIR_EVERY == QUICK_REPAIR_EVERY - 1 {
                transaction.set_quick_repair(true);
            }
            body(&transaction)?;
            let Some(note) = &self.note else { return Ok(transaction.commit()?) };
            let number = {
                let mut commits = transaction.open_table(COMMITS)?;
                let number = commits.get([].as_slice())?.map_or(0, |number| number.value()).saturating_add(1);
                commits.insert([].as_slice(), number)?;
                number
            };
            // Taken while no other write can be under way, so that notes are written in the order of commits.
            let mut note = note.lock().unwrap_or_else(PoisonError::into_inner);
            transaction.commit()?;
            // A lost note only makes a later check weaker: the commit itself is on the disk.
            let _noted = note.write(number, &Digest::ZERO);
            Ok(())
        };
        guarded(&self.path, || write().map_err(|error| store_error(&self.path, error)))
    }

    /// How many commits the file itself says a noted store has had.
    fn commits_kept(&self) -> Result<u64, StoreError> {
        let read = || match self.database.begin_read()?.open_table(COMMITS) {
            Ok(commits) => Ok(commits.get([].as_slice())?.map_or(0, |number| number.value())),
            Err(redb::TableError::TableDoesNotExist(_)) => Ok(0),
            Err(error) => Err(error.into()),
        };
        guarded(&self.path, || read().map_err(|error| store_error(&self.path, error)))
    }
}

/// How every file is opened.
fn builder() -> Builder {
    let mut builder = Database::builder();
    builder.set_check_integrity_on_open(true).set_cache_size(MEMORY_BYTES);
    builder
}

fn not_empty(path: &Path, metadata: &fs::Metadata) -> Result<(), StoreError> {
    if metadata.len() > 0 {
        return Ok(());
    }
    Err(StoreError::Corrupt { path: path.to_owned(), what: "the file is empty".to_owned() })
}

/// Makes an empty store beside `path`, and moves it there once it is whole and on the disk: a kill in between leaves no
/// half of one, which redb could not open ever again.
fn create(path: &Path) -> Result<(), StoreError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let half = path.with_file_name(name);
    let make = || Store::load(&half, false, || Ok(builder().create(&half)?));
    let made = match make() {
        // Left half made by a kill; nothing was ever acknowledged in it.
        Err(StoreError::Corrupt { .. }) => {
            fs::remove_file(&half).map_err(|source| store_error(&half, source.into()))?;
            make()
        }
        made => made,
    }?;
    // Whoever else makes one waits for the lock on the half: so nothing is replaced by the move.
    let settle = || -> io::Result<()> {
        if path.exists() {
            // Another made it meanwhile, perhaps out of this very half.
            return match fs::remove_file(&half) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                removed => removed,
            };
        }
        fs::rename(&half, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()
    };
    let settled = settle().map_err(|source| store_error(path, source.into()));
    drop(made);
    settled
}

/// Turns a panic inside redb, which a damaged file can cause, into an error.
fn guarded<T>(path: &Path, body: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
        let what = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("the store gave up reading it");
        Err(StoreError::Corrupt { path: path.to_owned(), what: what.to_owned() })
    })
}

fn store_error(path: &Path, error: redb::Error) -> StoreError {
    let path = path.to_owned();
    match error {
        redb::Error::DatabaseAlreadyOpen | redb::Error::LockProtocolMismatch => StoreError::InUse(path),
        redb::Error::PreviousIo => {
            StoreError::Io { path, source: io::Error::other("an earlier write failed: open the store anew") }
        }
        redb::Error::Io(source) => match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly(path),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                StoreError::Corrupt { path, what: source.to_string() }
            }
            _ => StoreError::Io { path, source },
        },
        other => StoreError::Corrupt { path, what: other.to_string() },
    }
}
