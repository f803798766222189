//! A note outside of a store of how far it had come, in blocks or in commits, so that a store which falls back to an older
//! state is noticed.
//! Invariant: written after each is durable, so never ahead of one. They take turns at two places: a write that is torn, or
//! a byte that the disk changed, spoils one of them, and the other still holds the one before.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::keys::Digest;

/// The note, open for writing.
#[derive(Debug)]
pub(crate) struct TipFile(File);

/// Height, digest, and the digest of both.
const PLACE_BYTES: usize = 8 + 32 + 32;
/// How many places there are.
const PLACES: usize = 2;

impl TipFile {
    /// Opens the note, and reads it; one without a place that holds counts as none.
    pub(crate) fn open(path: &Path) -> io::Result<(TipFile, Option<(u64, Digest)>)> {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let said = read(&file)?;
        Ok((TipFile(file), said))
    }

    /// Reads the note without writing a byte; a missing one counts as none.
    pub(crate) fn read(path: &Path) -> io::Result<Option<(u64, Digest)>> {
        match File::open(path) {
            Ok(file) => read(&file),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Notes that the block of this height and digest is on the disk.
    pub(crate) fn write(&mut self, height: u64, digest: &Digest) -> io::Result<()> {
        let mut bytes = [0_u8; PLACE_BYTES];
        bytes[..8].copy_from_slice(&height.to_le_bytes());
        bytes[8..40].copy_from_slice(digest.as_bytes());
        let sum = sum(&bytes[..40]);
        bytes[40..].copy_from_slice(sum.as_bytes());
        let place = height % PLACES as u64;
        self.0.seek(SeekFrom::Start(place * PLACE_BYTES as u64))?;
        self.0.write_all(&bytes)
    }
}

/// The highest block that a place names.
fn read(file: &File) -> io::Result<Option<(u64, Digest)>> {
    let mut bytes = Vec::new();
    file.take((PLACES * PLACE_BYTES) as u64).read_to_end(&mut bytes)?;
    Ok(bytes.chunks_exact(PLACE_BYTES).filter_map(parse).max())
}

fn parse(place: &[u8]) -> Option<(u64, Digest)> {
    let (said, found) = place.split_at(40);
    if sum(said).as_bytes() != found {
        return None;
    }
    let height = u64::from_le_bytes(said[..8].try_into().expect("eight bytes"));
    Some((height, Digest::from_bytes(said[8..].try_into().expect("thirty-two bytes"))))
}

fn sum(said: &[u8]) -> Digest {
    Digest::of("spillway/tip/1", &[said])
}
