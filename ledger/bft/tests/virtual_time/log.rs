//! The engine's log as a crash leaves it: entries as the real codec writes them.
//! Invariant: what was flushed survives; of what was only appended, a crash keeps any beginning.

use arc_malachitebft_core_consensus::Input;
use arc_malachitebft_engine::wal::{decode_entry, encode_entry};

use crate::codec::LogCodec;
use crate::context::Ledger;

/// One validator's log.
#[derive(Debug, Default)]
pub struct Log {
    height: u64,
    entries: Vec<Vec<u8>>,
    flushed: usize,
}

impl Log {
    /// The validator starts `height`: what the log has of it.
    pub fn started(&mut self, height: u64, codec: &LogCodec) -> std::io::Result<Vec<Input<Ledger>>> {
        if self.height != height {
            self.reset(height);
        }
        self.entries.iter().map(|bytes| decode_entry(codec, bytes.as_slice())).collect()
    }

    pub fn reset(&mut self, height: u64) {
        *self = Log { height, entries: Vec::new(), flushed: 0 };
    }

    /// Entries of another height are ignored, as the engine does.
    pub fn append(&mut self, height: u64, entry: Input<Ledger>, codec: &LogCodec) -> std::io::Result<()> {
        if height == self.height {
            let mut bytes = Vec::new();
            encode_entry(entry, codec, &mut bytes)?;
            self.entries.push(bytes);
        }
        Ok(())
    }

    pub fn flush(&mut self) {
        self.flushed = self.entries.len();
    }

    /// How many entries a crash may or may not lose.
    pub fn unflushed(&self) -> usize {
        self.entries.len() - self.flushed
    }

    /// The machine died; `kept` of the entries that were not flushed are there.
    pub fn crashed(&mut self, kept: usize) {
        self.entries.truncate(self.flushed + kept);
        self.flushed = self.entries.len();
    }
}
