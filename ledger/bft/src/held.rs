//! The proposed blocks of the height that is being decided, by digest.
//! Invariant: what is held is a block and exactly its encoding; only so many, and none below the last stored height.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use spillway_ledger::{Block, Digest, decode};

/// The most blocks held at once. A height that needs more has filled many dozen rounds.
const HELD_MAX: usize = 64;

/// Reads a block whose entries are those of its header. Without this check one header, and so one digest, could stand
/// for different entries at different validators.
pub(crate) fn read_block(bytes: &[u8]) -> Option<Block> {
    let block: Block = decode(bytes).ok()?;
    (Block::entries_root(&block.entries) == block.header.entries_root).then_some(block)
}

/// A block and its encoding.
#[derive(Clone, Debug)]
pub(crate) struct Proposed {
    pub(crate) block: Arc<Block>,
    pub(crate) bytes: Arc<[u8]>,
}

#[derive(Debug, Default)]
struct Inner {
    /// With a number that counts up; the smallest was proposed longest ago.
    blocks: BTreeMap<Digest, (u64, Proposed)>,
    puts: u64,
}

/// The blocks; shared between the application and the engine's log.
#[derive(Clone, Debug, Default)]
pub struct Held(Arc<Mutex<Inner>>);

impl Held {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Every change is one insertion or removal, so a panic elsewhere left nothing half done.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Holds `block`, whose encoding is `bytes`. If there are too many, the one is dropped that was proposed longest
    /// ago; the engine's log still has it.
    pub(crate) fn put(&self, block: Block, bytes: Vec<u8>) {
        let mut inner = self.lock();
        inner.puts += 1;
        let puts = inner.puts;
        let digest = block.header.digest();
        let proposed = Proposed { block: block.into(), bytes: bytes.into() };
        inner.blocks.entry(digest).or_insert((puts, proposed));
        if inner.blocks.len() > HELD_MAX {
            let oldest = inner.blocks.iter().min_by_key(|(_, (puts, _))| *puts).map(|(digest, _)| *digest);
            oldest.map(|digest| inner.blocks.remove(&digest));
        }
    }

    /// Whether the block with this digest is held. If so, it counts as proposed just now.
    pub(crate) fn touch(&self, digest: &Digest) -> bool {
        let mut inner = self.lock();
        inner.puts += 1;
        let puts = inner.puts;
        let found = inner.blocks.get_mut(digest);
        found.map(|(order, _)| *order = puts).is_some()
    }

    /// The block with this digest.
    pub(crate) fn get(&self, digest: &Digest) -> Option<Proposed> {
        self.lock().blocks.get(digest).map(|(_, proposed)| proposed.clone())
    }

    /// Forgets blocks below `height`, which is stored. Those of `height` itself stay: the engine may still be writing
    /// one of them to its log.
    pub(crate) fn stored(&self, height: u64) {
        self.lock().blocks.retain(|_, (_, proposed)| proposed.block.header.height >= height);
    }
}
