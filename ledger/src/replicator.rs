//! How entries become blocks. Here: by one authority; the trait is what a committee fills in as well.
//! Invariant: an entry is acknowledged as applied only after its block is on the disk.

use std::collections::VecDeque;
use std::path::Path;

use crate::block::{Block, Certificate, CertifiedBlock};
use crate::book::{Applied, ApplyError, Book};
use crate::chain::{Chain, FollowError, OpenError};
use crate::entry::Entry;
use crate::genesis::Genesis;
use crate::keys::{Account, Digest, SecretKey};
use crate::queue::Queue;
use crate::replay::{BlockError, Signatures};
use crate::signed::Signed;
use crate::state::AccountProof;
use crate::store::StoreError;

pub use crate::queue::{QUEUE_ACCOUNT_MAX, QUEUE_HOPEFUL_MAX, QUEUE_MAX, Ticket};

/// What became of a submitted entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// It waits for a block, or did already.
    Ticket(Ticket),
    /// This is a retry, and the first try is in a block.
    Already {
        /// Which.
        height: u64,
    },
}

/// Why an entry was not queued.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The entry can never be applied as it is; its signer's fault.
    #[error(transparent)]
    Refused(#[from] ApplyError),
    /// Too many wait: in all, of this account, or of those that could not be applied now. Retry after the next block.
    #[error("too many entries wait for a block already")]
    QueueFull,
}

/// A block that became final here.
#[derive(Clone, Debug)]
pub struct Committed {
    /// The block.
    pub block: CertifiedBlock,
    /// What each of its entries did, in their order.
    pub applied: Vec<Applied>,
}

/// Orders entries into blocks that all agree on.
pub trait Replicator {
    /// Queues an entry. A retry gets the answer of the first try.
    fn submit(&mut self, entry: Signed<Entry>) -> Result<Submitted, SubmitError>;
    /// The next block, made of waiting entries at `now_ms`; `None` where none can be applied. Changes no state.
    fn propose(&mut self, now_ms: u64) -> Option<Block>;
    /// Whether a proposed block follows from the last one. Changes no state.
    fn validate(&mut self, block: &Block) -> Result<(), BlockError>;
    /// Takes a final block; returns once it is durable.
    fn commit(&mut self, block: CertifiedBlock) -> Result<Vec<Applied>, FollowError>;
    /// Up to `max` final blocks from height `from` on.
    fn blocks(&self, from: u64, max: usize) -> Result<Vec<CertifiedBlock>, StoreError>;
    /// The height of the last final block; 0 before the first.
    fn height(&self) -> u64;
    /// The book after the last final block.
    fn book(&self) -> &Book;
}

/// One authority that orders blocks alone: the embedded default. Same blocks as with many, a certificate of one.
#[derive(Debug)]
pub struct Solo {
    chain: Chain,
    authority: SecretKey,
    queue: Queue,
    refused: VecDeque<(Ticket, ApplyError)>,
}

impl Solo {
    /// Opens the ledger in `folder`, making an empty one for a new folder. Only one process at a time.
    /// `authority` must be the genesis' authority.
    pub fn open(folder: impl AsRef<Path>, genesis: &Genesis, authority: SecretKey) -> Result<Solo, OpenError> {
        genesis.validate()?;
        if authority.public() != genesis.authority {
            return Err(OpenError::NotAuthority);
        }
        let chain = Chain::open(folder.as_ref(), genesis)?;
        Ok(Solo { chain, authority, queue: Queue::default(), refused: VecDeque::new() })
    }

    /// Makes one block of up to 1,024 waiting entries at `now_ms` (or the last block's time, if that is later), and
    /// returns once it is durable. `None` where no waiting entry could be applied. Those that could not are dropped and
    /// reported by [`Solo::take_refused`].
    pub fn produce(&mut self, now_ms: u64) -> Result<Option<Committed>, FollowError> {
        if self.chain.halted() {
            return Err(FollowError::Halted);
        }
        let Attempt { block, applied, refused } = loop {
            match self.attempt(now_ms) {
                Some(attempt) => break attempt,
                None if self.queue.len() == 0 => return Ok(None),
                // A block's worth of entries was dropped; try those behind them.
                None => {}
            }
        };
        let taken = block.entries.len() + refused.len();
        let certificate = Certificate::solo(block.header.digest(), &self.authority);
        let block = CertifiedBlock { block, certificate };
        self.chain.store_attempt(&block)?;
        self.queue.drop_first(taken);
        self.report(refused);
        Ok(Some(Committed { block, applied }))
    }

    /// The entries that were dropped since the last call, and why; the newest [`QUEUE_MAX`] of them.
    pub fn take_refused(&mut self) -> Vec<(Ticket, ApplyError)> {
        std::mem::take(&mut self.refused).into()
    }

    /// How many entries wait for a block.
    pub fn waiting(&self) -> usize {
        self.queue.len()
    }

    /// The nonce that the account's next entry must have, with those that wait counted.
    pub fn next_nonce(&self, account: &Account) -> u64 {
        self.book().nonce(account).saturating_add(self.queue.of_account(account))
    }

    /// The digest of the last block; before the first, the network's id.
    pub fn tip(&self) -> Digest {
        self.chain.replay.parent
    }

    /// The time of the last block, in Unix milliseconds.
    pub fn time_ms(&self) -> u64 {
        self.chain.replay.time_ms
    }

    /// The height of the last block; 0 before the first.
    pub fn height(&self) -> u64 {
        self.chain.replay.height
    }

    /// The book after the last block.
    pub fn book(&self) -> &Book {
        &self.chain.replay.book
    }

    /// The proof of an account under the last block's state root.
    pub fn account_proof(&mut self, account: &Account) -> Option<AccountProof> {
        self.chain.replay.book.account_proof(account)
    }

    /// Up to `max` blocks from height `from` on.
    pub fn blocks(&self, from: u64, max: usize) -> Result<Vec<CertifiedBlock>, StoreError> {
        self.chain.blocks(from, max)
    }

    /// Queues an entry, if it could be applied now or might be later. A retry gets the answer of the first try.
    pub fn submit(&mut self, entry: Signed<Entry>) -> Result<Submitted, SubmitError> {
        let account = entry.value().account;
        if let Some(ticket) = self.queue.ticket(entry.value()) {
            return Ok(Submitted::Ticket(ticket));
        }
        let waiting = self.queue.of_account(&account);
        let hopeful = match self.book().judge_pending(&entry, self.height() + 1, self.time_ms(), waiting) {
            Ok(_) => false,
            Err(ApplyError::AlreadyApplied { height }) => return Ok(Submitted::Already { height }),
            // What waits before it, or the next block's time, may still make it valid.
            Err(error) if error.may_pass_later() => true,
            Err(error) => return Err(error.into()),
        };
        if !self.queue.has_room(&account, hopeful) {
            return Err(SubmitError::QueueFull);
        }
        // Every check has passed: nothing below can fail.
        Ok(Submitted::Ticket(self.queue.push(entry, hopeful)))
    }

    /// Applies waiting entries under the book's journal. `None`, with the journal closed, where none could be applied.
    fn attempt(&mut self, now_ms: u64) -> Option<Attempt> {
        let replay = &mut self.chain.replay;
        let (height, time_ms) = (replay.height + 1, now_ms.max(replay.time_ms));
        let (mut entries, mut applied, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        replay.book.begin();
        for (entry, ticket) in self.queue.first_block() {
            // A voucher's signature is the first thing that `submit` looks at, so it holds for all that wait.
            match replay.book.apply_checked(entry, height, time_ms) {
                Ok(done) => {
                    entries.push(entry.to_wire());
                    applied.push(done);
                }
                Err(error) => refused.push((ticket, error)),
            }
        }
        if entries.is_empty() {
            replay.book.rollback();
            self.queue.drop_first(refused.len());
            self.report(refused);
            return None;
        }
        let header = replay.seal(&entries, time_ms);
        Some(Attempt { block: Block { header, entries }, applied, refused })
    }

    fn report(&mut self, refused: Vec<(Ticket, ApplyError)>) {
        self.refused.extend(refused);
        let excess = self.refused.len().saturating_sub(QUEUE_MAX);
        self.refused.drain(..excess);
    }
}

/// A block that the book's journal is still open for.
struct Attempt {
    block: Block,
    applied: Vec<Applied>,
    /// Entries that were tried for it and could not be applied.
    refused: Vec<(Ticket, ApplyError)>,
}

impl Replicator for Solo {
    fn submit(&mut self, entry: Signed<Entry>) -> Result<Submitted, SubmitError> {
        Solo::submit(self, entry)
    }

    fn propose(&mut self, now_ms: u64) -> Option<Block> {
        let Attempt { block, .. } = self.attempt(now_ms)?;
        self.chain.replay.book.rollback();
        Some(block)
    }

    fn validate(&mut self, block: &Block) -> Result<(), BlockError> {
        self.chain.replay.check_header(&block.header)?;
        self.chain.replay.execute(block, Signatures::Verify)?;
        self.chain.replay.book.rollback();
        Ok(())
    }

    /// Waiting entries that are in the block are dropped from the queue.
    fn commit(&mut self, block: CertifiedBlock) -> Result<Vec<Applied>, FollowError> {
        let applied = self.chain.commit(&block, Signatures::Verify)?;
        let book = &self.chain.replay.book;
        let height = self.chain.replay.height + 1;
        self.queue.retain(|entry, before| book.admit(entry, height, before).is_ok());
        Ok(applied)
    }

    fn blocks(&self, from: u64, max: usize) -> Result<Vec<CertifiedBlock>, StoreError> {
        Solo::blocks(self, from, max)
    }

    fn height(&self) -> u64 {
        Solo::height(self)
    }

    fn book(&self) -> &Book {
        Solo::book(self)
    }
}
