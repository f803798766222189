//! A file that is read and never written: what redb writes while it checks and repairs goes to memory.
//! Invariant: the file is open for reading only, so not one byte of it, nor of its folder, can change.

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::ops::Bound;
use std::sync::{Mutex, PoisonError};

use redb::backends::FileBackend;
use redb::{BackendError, StorageBackend};

/// What is kept at once where it was written, in bytes; redb writes whole pages of this size.
const BLOCK_BYTES: usize = 4_096;
/// The most that may be written: a repair writes a few pages, and a close one bit for each page of the file. This is
/// what a file of a few hundred gigabytes takes.
const BLOCKS_MAX: usize = 16 << 10;

/// The file below, and what was written above it.
#[derive(Debug)]
pub(super) struct Overlay {
    file: FileBackend,
    written: Mutex<Written>,
}

#[derive(Debug)]
struct Written {
    blocks: BTreeMap<u64, Box<[u8]>>,
    /// How long the file seems to be.
    length: u64,
    /// How much of the file below still shows: less than all where it was shortened.
    below: u64,
}

impl Overlay {
    /// Lays memory over a file that was opened for reading.
    pub(super) fn new(file: File) -> Result<Overlay, redb::DatabaseError> {
        let length = file.metadata()?.len();
        let file = FileBackend::new(file)?;
        Ok(Overlay { file, written: Mutex::new(Written { blocks: BTreeMap::new(), length, below: length }) })
    }

    fn written(&self) -> std::sync::MutexGuard<'_, Written> {
        // A panic while it was held has left whole blocks.
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A block as the file below has it, with zeros past its end.
    fn block_below(&self, below: u64, index: u64) -> io::Result<Box<[u8]>> {
        let mut block = vec![0; BLOCK_BYTES].into_boxed_slice();
        let start = index.saturating_mul(BLOCK_BYTES as u64);
        let there = usize::try_from(below.saturating_sub(start)).unwrap_or(BLOCK_BYTES).min(BLOCK_BYTES);
        if there > 0 {
            self.file.read(start, &mut block[..there])?;
        }
        Ok(block)
    }
}

/// Splits `length` bytes from `offset` on at blocks' borders: each block's index, and the bytes of it that are meant.
fn pieces(offset: u64, length: usize) -> impl Iterator<Item = (u64, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        if done == length {
            return None;
        }
        let at = offset + done as u64;
        let start = (at % BLOCK_BYTES as u64) as usize;
        let end = BLOCK_BYTES.min(start + length - done);
        done += end - start;
        Some((at / BLOCK_BYTES as u64, start..end))
    })
}

impl StorageBackend for Overlay {
    fn len(&self) -> io::Result<u64> {
        Ok(self.written().length)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let written = self.written();
        if offset.checked_add(out.len() as u64).is_none_or(|end| end > written.length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut rest = out;
        for (index, range) in pieces(offset, rest.len()) {
            let (piece, after) = rest.split_at_mut(range.len());
            match written.blocks.get(&index) {
                Some(block) => piece.copy_from_slice(&block[range]),
                None => piece.copy_from_slice(&self.block_below(written.below, index)?[range]),
            }
            rest = after;
        }
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        let mut written = self.written();
        if length < written.length {
            let partial = length / BLOCK_BYTES as u64;
            let keep = (length % BLOCK_BYTES as u64) as usize;
            // What lay past the new end reads as zeros, should the file grow again.
            drop(written.blocks.split_off(&(partial + u64::from(keep > 0))));
            if let Some(block) = written.blocks.get_mut(&partial) {
                block[keep..].fill(0);
            }
            written.below = written.below.min(length);
        }
        written.length = length;
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut written = self.written();
        let mut rest = data;
        for (index, range) in pieces(offset, data.len()) {
            let (piece, after) = rest.split_at(range.len());
            if !written.blocks.contains_key(&index) {
                if written.blocks.len() == BLOCKS_MAX {
                    return Err(io::Error::new(io::ErrorKind::StorageFull, "too much to repair in memory"));
                }
                let block = self.block_below(written.below, index)?;
                written.blocks.insert(index, block);
            }
            let block = written.blocks.get_mut(&index).expect("it was put there above");
            block[range].copy_from_slice(piece);
            rest = after;
        }
        Ok(())
    }

    fn close(&self) -> io::Result<()> {
        self.file.close()
    }

    // A writer's lock needs a file that is open for writing, and other readers need not be kept out: a shared one still
    // keeps out whoever would write.

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.file.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.file.query_lock_range(start, end)
    }
}
