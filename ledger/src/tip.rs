//! A note outside of the store of how far the chain had come, so that a store which falls back to an older state is
//! noticed.
//! Invariant: written after each durable block, so never ahead of one.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::keys::Digest;

/// The note, open for writing.
#[derive(Debug)]
pub(crate) struct TipFile(File);

impl TipFile {
    const BYTES: usize = 8 + 32 + 32;

    /// Opens the note, and reads it; one that is cut short or damaged counts as none.
    pub(crate) fn open(path: &Path) -> io::Result<(TipFile, Option<(u64, Digest)>)> {
        let mut file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)?;
        let mut bytes = Vec::new();
        (&mut file).take(Self::BYTES as u64 + 1).read_to_end(&mut bytes)?;
        Ok((TipFile(file), Self::parse(&bytes)))
    }

    fn parse(bytes: &[u8]) -> Option<(u64, Digest)> {
        if bytes.len() != Self::BYTES {
            return None;
        }
        let (said, sum) = bytes.split_at(40);
        if Self::sum(said).as_bytes() != sum {
            return None;
        }
        let height = u64::from_le_bytes(said[..8].try_into().expect("eight bytes"));
        Some((height, Digest::from_bytes(said[8..].try_into().expect("thirty-two bytes"))))
    }

    /// Notes that the block of this height and digest is on the disk.
    pub(crate) fn write(&mut self, height: u64, digest: &Digest) -> io::Result<()> {
        let mut bytes = [0_u8; Self::BYTES];
        bytes[..8].copy_from_slice(&height.to_le_bytes());
        bytes[8..40].copy_from_slice(digest.as_bytes());
        let sum = Self::sum(&bytes[..40]);
        bytes[40..].copy_from_slice(sum.as_bytes());
        self.0.seek(SeekFrom::Start(0))?;
        self.0.write_all(&bytes)
    }

    fn sum(said: &[u8]) -> Digest {
        Digest::of("spillway/tip/1", &[said])
    }
}
