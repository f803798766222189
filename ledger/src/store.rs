//! The durable store: a few tables of bytes in one redb file.
//! Invariant: when [`Store::commit`] returns, all of its batch is on the disk; after a kill, all of a batch is there or
//! none of it.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use redb::{Database, DatabaseError, ReadableDatabase, ReadableTable, StorageError, TableDefinition, TableError};

/// How often a commit also saves what makes a repair after a kill quick, in commits.
const QUICK_REPAIR_EVERY: u64 = 1_000;

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
}

impl Store {
    /// Opens the store in the file at `path`, or makes an empty one. Every page's checksum is verified, so a large file
    /// takes as long as reading it once.
    pub fn open(path: impl AsRef<Path>) -> Result<Store, StoreError> {
        let path = path.as_ref().to_owned();
        let database = guarded(&path, || {
            let mut builder = Database::builder();
            builder.set_check_integrity_on_open(true);
            builder.create(&path).map_err(|error| database_error(&path, error))
        })?;
        let store = Store { path, database, commits: AtomicU64::new(0) };
        // Every table exists from here on, so that reading one never has to ask.
        store.write(|transaction| {
            for table in Table::ALL {
                transaction.open_table(table.definition()).map_err(|error| store.table_error(error))?;
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
                let mut open = transaction.open_table(table.definition()).map_err(|error| self.table_error(error))?;
                for change in changes {
                    match change {
                        Change::Put(_, key, value) => open.insert(key.as_slice(), value.as_slice()),
                        Change::Delete(_, key) => open.remove(key.as_slice()),
                    }
                    .map_err(|error| self.storage_error(error))?;
                }
            }
            Ok(())
        })
    }

    /// The value of `key`.
    pub fn get(&self, table: Table, key: &[u8]) -> Result<Option<Vec<u8>>, StoreError> {
        self.read(table, |open| {
            let value = open.get(key).map_err(|error| self.storage_error(error))?;
            Ok(value.map(|value| value.value().to_vec()))
        })
    }

    /// Up to `max` rows from `from` on, in the order of keys.
    pub fn range(&self, table: Table, from: &[u8], max: usize) -> Result<Vec<Row>, StoreError> {
        self.read(table, |open| {
            let rows = open.range(from..).map_err(|error| self.storage_error(error))?;
            rows.take(max)
                .map(|row| {
                    let (key, value) = row.map_err(|error| self.storage_error(error))?;
                    Ok((key.value().to_vec(), value.value().to_vec()))
                })
                .collect()
        })
    }

    /// The row with the highest key.
    pub fn last(&self, table: Table) -> Result<Option<Row>, StoreError> {
        self.read(table, |open| {
            let row = open.last().map_err(|error| self.storage_error(error))?;
            Ok(row.map(|(key, value)| (key.value().to_vec(), value.value().to_vec())))
        })
    }

    fn read<T>(
        &self,
        table: Table,
        body: impl FnOnce(redb::ReadOnlyTable<&'static [u8], &'static [u8]>) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        guarded(&self.path, || {
            let transaction = self.database.begin_read().map_err(|error| self.other_error(error.into()))?;
            let open = transaction.open_table(table.definition()).map_err(|error| self.table_error(error))?;
            body(open)
        })
    }

    fn write(&self, body: impl FnOnce(&redb::WriteTransaction) -> Result<(), StoreError>) -> Result<(), StoreError> {
        guarded(&self.path, || {
            let mut transaction = self.database.begin_write().map_err(|error| self.other_error(error.into()))?;
            transaction
                .set_durability(redb::Durability::Immediate)
                .expect("no savepoint is ever made, so every durability is allowed");
            if self.commits.fetch_add(1, Ordering::Relaxed) % QUICK_REPAIR_EVERY == QUICK_REPAIR_EVERY - 1 {
                transaction.set_quick_repair(true);
            }
            body(&transaction)?;
            transaction.commit().map_err(|error| self.other_error(error.into()))
        })
    }

    fn table_error(&self, error: TableError) -> StoreError {
        match error {
            TableError::Storage(error) => self.storage_error(error),
            other => StoreError::Corrupt { path: self.path.clone(), what: other.to_string() },
        }
    }

    fn storage_error(&self, error: StorageError) -> StoreError {
        storage_error(&self.path, error)
    }

    fn other_error(&self, error: redb::Error) -> StoreError {
        let path = self.path.clone();
        match error {
            redb::Error::Io(source) => StoreError::Io { path, source },
            other => StoreError::Corrupt { path, what: other.to_string() },
        }
    }
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

fn database_error(path: &Path, error: DatabaseError) -> StoreError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => StoreError::InUse(path.to_owned()),
        DatabaseError::Storage(error) => storage_error(path, error),
        other => StoreError::Corrupt { path: path.to_owned(), what: other.to_string() },
    }
}

fn storage_error(path: &Path, error: StorageError) -> StoreError {
    let path = path.to_owned();
    match error {
        StorageError::Io(source) => match source.kind() {
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly(path),
            io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                StoreError::Corrupt { path, what: source.to_string() }
            }
            _ => StoreError::Io { path, source },
        },
        other => StoreError::Corrupt { path, what: other.to_string() },
    }
}
