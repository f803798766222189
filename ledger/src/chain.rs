//! A chain on the disk: the book, and the blocks it came from.
//! Invariant: the book in memory is the one that the stored blocks give, and no block that was acknowledged is ever
//! silently missing.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use crate::block::CertifiedBlock;
use crate::book::{Applied, Book};
use crate::genesis::{Genesis, GenesisError};
use crate::keys::Digest;
use crate::proof::{self, Proof};
use crate::receipt::CoSigned;
use crate::replay::{BlockError, Replay, Signatures};
use crate::store::{Batch, Store, StoreError, Table};
use crate::tip::TipFile;
use crate::voucher::NetworkId;

/// The constitution's file in a ledger folder.
pub const GENESIS_FILE: &str = "genesis.json";
/// The blocks' file in a ledger folder.
pub const LEDGER_FILE: &str = "ledger.redb";
/// The file in a ledger folder that says how far the chain had come.
pub const TIP_FILE: &str = "ledger.tip";

/// The largest genesis file, in bytes.
pub(crate) const GENESIS_BYTES_MAX: u64 = 64 << 10;
/// How many blocks are read from the store at once.
const CHUNK_BLOCKS: usize = 64;

/// Why a chain cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The constitution is wrong; the operator's to fix.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// The constitution's file cannot be read as one.
    #[error("{path}: {what}")]
    GenesisFile {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        what: String,
    },
    /// The folder belongs to another network.
    #[error("{path} holds network {found}, not {wanted}")]
    OtherNetwork {
        /// The folder.
        path: PathBuf,
        /// The network in the folder.
        found: NetworkId,
        /// The network asked for.
        wanted: NetworkId,
    },
    /// The key given may not sign blocks here.
    #[error("the key is not the genesis' authority")]
    NotAuthority,
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A file or folder.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A stored block does not hold any more. Restore a copy, or fetch the blocks anew.
    #[error("stored block {height} is damaged: {what}")]
    Damaged {
        /// The block.
        height: u64,
        /// What does not hold.
        what: String,
    },
    /// The store has lost blocks that were acknowledged. Restore a copy, or fetch the blocks anew.
    #[error("the store ends at block {have}, but had come to block {had}")]
    LostBlocks {
        /// Where it ends.
        have: u64,
        /// Where it had come.
        had: u64,
    },
}

/// Why a block was not taken.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    /// We have this very block already; nothing is wrong.
    #[error("block {height} is known already")]
    Known {
        /// Its height.
        height: u64,
    },
    /// The validators made two different blocks of one height final: keep both, they prove it.
    #[error("two different final blocks of height {height}")]
    Conflict {
        /// Their height.
        height: u64,
    },
    /// The block is wrong; its proposer's fault.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The disk. After a failed write, open the chain anew.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An earlier write failed, so what is on the disk is unknown. Open the chain anew.
    #[error("an earlier write failed: open the ledger anew")]
    Halted,
}

/// The book and its blocks; shared by [`crate::Solo`] and [`Follower`].
#[derive(Debug)]
pub(crate) struct Chain {
    pub(crate) replay: Replay,
    store: Store,
    tip: TipFile,
    halted: bool,
}

impl Chain {
    /// Opens the folder, making it for a new chain, and executes every stored block again.
    pub(crate) fn open(folder: &Path, genesis: &Genesis) -> Result<Chain, OpenError> {
        genesis.validate()?;
        fs::create_dir_all(folder).map_err(|source| OpenError::Io { path: folder.to_owned(), source })?;
        let store = Store::open(folder.join(LEDGER_FILE))?;
        settle_genesis(folder, genesis)?;

        let mut replay = Replay::new(genesis);
        for_each_block(&store, |height, bytes| {
            let damaged = |what: String| OpenError::Damaged { height, what };
            let block = CertifiedBlock::from_bytes(bytes).map_err(|error| damaged(error.to_string()))?;
            if block.block.header.height != height {
                return Err(damaged("it lies under another height".to_owned()));
            }
            replay.follow(&block, Signatures::Trust).map_err(|error| damaged(error.to_string()))?;
            Ok(())
        })?;

        let path = folder.join(TIP_FILE);
        let (tip, had) = TipFile::open(&path).map_err(|source| OpenError::Io { path, source })?;
        check_tip(had, &replay)?;
        Ok(Chain { replay, store, tip, halted: false })
    }

    /// Checks, executes and stores a final block.
    pub(crate) fn commit(
        &mut self,
        block: &CertifiedBlock,
        signatures: Signatures<'_>,
    ) -> Result<Vec<Applied>, FollowError> {
        if self.halted {
            return Err(FollowError::Halted);
        }
        let header = &block.block.header;
        if (1..=self.replay.height).contains(&header.height) {
            return Err(self.compare(block)?);
        }
        let applied = self.replay.attempt(block, signatures)?;
        self.store_attempt(block)?;
        Ok(applied)
    }

    /// Stores the block that was just executed under the book's journal; only then are its changes kept.
    pub(crate) fn store_attempt(&mut self, block: &CertifiedBlock) -> Result<(), FollowError> {
        let header = &block.block.header;
        let mut batch = Batch::new();
        batch.put(Table::Blocks, header.height.to_be_bytes(), block.to_bytes());
        if let Err(error) = self.store.commit(batch) {
            self.replay.book.rollback();
            self.halted = true;
            return Err(error.into());
        }
        self.replay.accept(block);
        // A lost note only makes a later check weaker: the block itself is on the disk.
        let _noted = self.tip.write(header.height, &self.replay.parent);
        Ok(())
    }

    /// What a second block of a height we already have means.
    fn compare(&self, block: &CertifiedBlock) -> Result<FollowError, StoreError> {
        let height = block.block.header.height;
        let digest = block.block.header.digest();
        let ours = self.blocks(height, 1)?.first().map(|block| block.block.header.digest());
        if ours == Some(digest) {
            return Ok(FollowError::Known { height });
        }
        // Of an older committee we keep no list, so only blocks of the present one can be told to be final.
        let (network, validators) = (self.replay.network(), self.replay.validators());
        let header = &block.block.header;
        let same_committee = header.validators == validators.digest();
        let final_too = same_committee && block.certificate.verify(&network, header, &validators).is_ok();
        Ok(match final_too {
            true => FollowError::Conflict { height },
            false => BlockError::Height { got: height, expected: self.replay.height + 1 }.into(),
        })
    }

    pub(crate) fn halted(&self) -> bool {
        self.halted
    }

    /// Up to `max` blocks from height `from` on.
    pub(crate) fn blocks(&self, from: u64, max: usize) -> Result<Vec<CertifiedBlock>, StoreError> {
        let rows = self.store.range(Table::Blocks, &from.to_be_bytes(), max)?;
        rows.iter()
            .map(|(_, bytes)| {
                CertifiedBlock::from_bytes(bytes).map_err(|error| StoreError::Corrupt {
                    path: self.store.path().to_owned(),
                    what: error.to_string(),
                })
            })
            .collect()
    }

    /// The proof that the settlement at `index` of the block of `height` pays for `receipt`.
    pub(crate) fn prove_receipt(
        &self,
        (height, index): (u64, usize),
        receipt: &CoSigned,
        receipts: &[Digest],
    ) -> Result<Option<Proof>, StoreError> {
        let Some(block) = self.blocks(height, 1)?.pop().filter(|block| block.block.header.height == height) else {
            return Ok(None);
        };
        let anchor = self.replay.anchor(block.block.header, block.certificate);
        Ok(proof::of_receipt(anchor, &block.block, index, receipt, receipts))
    }
}

/// Calls `body` with each stored block's height and bytes, in order; heights are seen to have no gap.
pub(crate) fn for_each_block(
    store: &Store,
    mut body: impl FnMut(u64, &[u8]) -> Result<(), OpenError>,
) -> Result<(), OpenError> {
    let mut next = 1_u64;
    loop {
        // The first read begins before any height, so that a key that is none is seen.
        let from = if next == 1 { Vec::new() } else { next.to_be_bytes().to_vec() };
        let rows = store.range(Table::Blocks, &from, CHUNK_BLOCKS)?;
        if rows.is_empty() {
            return Ok(());
        }
        for (key, bytes) in rows {
            if key != next.to_be_bytes() {
                return Err(OpenError::Damaged { height: next, what: "it is missing".to_owned() });
            }
            body(next, &bytes)?;
            next += 1;
        }
    }
}

/// Compares where the chain had come with where the stored blocks end.
pub(crate) fn check_tip(had: Option<(u64, Digest)>, replay: &Replay) -> Result<(), OpenError> {
    let Some((had, digest)) = had else { return Ok(()) };
    if had > replay.height {
        return Err(OpenError::LostBlocks { have: replay.height, had });
    }
    if had == replay.height && digest != replay.parent {
        return Err(OpenError::Damaged { height: had, what: "it is not the block that was acknowledged".to_owned() });
    }
    Ok(())
}

/// Reads a folder's constitution; `None` where it has none.
pub(crate) fn read_genesis(folder: &Path) -> Result<Option<Genesis>, OpenError> {
    let path = folder.join(GENESIS_FILE);
    let wrong = |what: String| OpenError::GenesisFile { path: path.clone(), what };
    let mut text = String::new();
    match File::open(&path) {
        Ok(file) => file.take(GENESIS_BYTES_MAX).read_to_string(&mut text).map_err(|error| wrong(error.to_string()))?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(OpenError::Io { path, source }),
    };
    let genesis: Genesis = serde_json::from_str(&text).map_err(|error| wrong(error.to_string()))?;
    genesis.validate()?;
    Ok(Some(genesis))
}

/// Writes the constitution into a new folder, or sees that the folder's is the same.
fn settle_genesis(folder: &Path, genesis: &Genesis) -> Result<(), OpenError> {
    if let Some(found) = read_genesis(folder)? {
        let (found, wanted) = (found.network_id(), genesis.network_id());
        if found != wanted {
            return Err(OpenError::OtherNetwork { path: folder.to_owned(), found, wanted });
        }
        return Ok(());
    }
    let path = folder.join(GENESIS_FILE);
    let half = folder.join("genesis.json.new");
    let text = serde_json::to_string_pretty(genesis).expect("a genesis is plain JSON");
    let write = || -> io::Result<()> {
        let mut file = File::create(&half)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&half, &path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(|source| OpenError::Io { path: path.clone(), source })
}

/// A chain that takes final blocks from others and executes each of them itself.
#[derive(Debug)]
pub struct Follower {
    chain: Chain,
}

impl Follower {
    /// Opens the ledger in `folder`, making an empty one for a new folder. Only one process at a time.
    pub fn open(folder: impl AsRef<Path>, genesis: &Genesis) -> Result<Follower, OpenError> {
        Ok(Follower { chain: Chain::open(folder.as_ref(), genesis)? })
    }

    /// Takes the next block: checks the certificate, verifies and executes every entry, compares the roots, and returns
    /// once it is durable. An error changes nothing.
    pub fn commit(&mut self, block: CertifiedBlock) -> Result<Vec<Applied>, FollowError> {
        self.chain.commit(&block, Signatures::Verify)
    }

    /// The height of the last block; 0 before the first.
    pub fn height(&self) -> u64 {
        self.chain.replay.height
    }

    /// The digest of the last block; before the first, the network's id.
    pub fn tip(&self) -> Digest {
        self.chain.replay.parent
    }

    /// The time of the last block, in Unix milliseconds.
    pub fn time_ms(&self) -> u64 {
        self.chain.replay.time_ms
    }

    /// The book after the last block.
    pub fn book(&self) -> &Book {
        &self.chain.replay.book
    }

    /// The proof of an account under the last block's state root.
    pub fn account_proof(&mut self, account: &crate::keys::Account) -> Option<crate::state::AccountProof> {
        self.chain.replay.book.account_proof(account)
    }

    /// The proof file of an account after the last block; `None` for an account that the book has never seen.
    pub fn prove_account(&mut self, account: &crate::keys::Account) -> Option<Proof> {
        self.chain.replay.prove_account(account)
    }

    /// The proof file of a receipt: that the settlement at `place` (height, and index in the block) pays for it.
    /// `receipts` are the digests of all receipts that the settlement pays for, as their provider signed them, in its
    /// order. `None` where it does not.
    pub fn prove_receipt(
        &self,
        place: (u64, usize),
        receipt: &CoSigned,
        receipts: &[Digest],
    ) -> Result<Option<Proof>, StoreError> {
        self.chain.prove_receipt(place, receipt, receipts)
    }

    /// Up to `max` blocks from height `from` on.
    pub fn blocks(&self, from: u64, max: usize) -> Result<Vec<CertifiedBlock>, StoreError> {
        self.chain.blocks(from, max)
    }
}
