//! How entries become blocks: a replica keeps the books and what waits, an authority or a committee decides what is next.
//! Invariant: an entry is acknowledged as applied only after its block is on the disk.

use std::collections::{BTreeSet, VecDeque};
use std::ops::{Deref, DerefMut};
use std::path::Path;

use crate::block::{
    Block, Certificate, CertificateError, CertifiedBlock, ENTRIES_BYTES_MAX, ENTRIES_MAX, ValidatorSet,
};
use crate::book::{Applied, ApplyError, Book};
use crate::chain::{Chain, FollowError, OpenError};
use crate::entry::Entry;
use crate::genesis::Genesis;
use crate::keys::{Account, Digest, SecretKey};
use crate::proof::Proof;
use crate::queue::Queue;
use crate::receipt::CoSigned;
use crate::replay::{BlockError, Signatures};
use crate::screen::Screened;
use crate::signed::{Signed, SignedBytes};
use crate::state::AccountProof;
use crate::store::StoreError;
use crate::voucher::NetworkId;

/// How many validated blocks of one height a replica remembers.
const VALIDATED_MAX: usize = 16;

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
    /// The next block, made of waiting entries at `now_ms`; `None` where none can be applied. Those that cannot are
    /// dropped from the queue; nothing else changes.
    fn propose(&mut self, now_ms: u64) -> Option<Block>;
    /// Whether a proposed block follows from the last one. Changes nothing.
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

/// The books of one validator, and the entries that wait for a block there.
#[derive(Debug)]
pub struct Replica {
    chain: Chain,
    queue: Queue,
    refused: VecDeque<(Ticket, ApplyError)>,
    /// Blocks of the next height whose signatures we have verified, by digest; the oldest first.
    validated: VecDeque<Digest>,
}

impl Replica {
    /// Opens the ledger in `folder`, making an empty one for a new folder. Only one process at a time.
    pub fn open(folder: impl AsRef<Path>, genesis: &Genesis) -> Result<Replica, OpenError> {
        let chain = Chain::open(folder.as_ref(), genesis)?;
        Ok(Replica { chain, queue: Queue::default(), refused: VecDeque::new(), validated: VecDeque::new() })
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

    /// The network's id.
    pub fn network(&self) -> NetworkId {
        self.chain.replay.network()
    }

    /// Who decides the next block.
    pub fn validators(&self) -> ValidatorSet {
        self.chain.replay.validators()
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

    /// The proof file of an account after the last block; `None` for an account that the book has never seen.
    pub fn prove_account(&mut self, account: &Account) -> Option<Proof> {
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

    /// Queues an entry, if it could be applied now or might be later. A retry gets the answer of the first try.
    pub fn submit(&mut self, entry: Signed<Entry>) -> Result<Submitted, SubmitError> {
        self.submit_screened(Screened::new(entry))
    }

    /// As [`Replica::submit`], for an entry whose signatures have been looked at: do that first, without the replica's
    /// lock and on all cores, see [`Screened::open_all`].
    pub fn submit_screened(&mut self, entry: Screened) -> Result<Submitted, SubmitError> {
        let account = entry.entry().value().account;
        if let Some(ticket) = self.queue.ticket(entry.entry().value()) {
            return Ok(Submitted::Ticket(ticket));
        }
        let waiting = self.queue.of_account(&account);
        let hopeful = match self.book().judge_screened(&entry, self.height() + 1, self.time_ms(), waiting) {
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

    /// The next block without any entry, at `now_ms` or the last block's time, if that is later.
    pub fn propose_empty(&mut self, now_ms: u64) -> Block {
        let replay = &mut self.chain.replay;
        let time_ms = now_ms.max(replay.time_ms);
        replay.book.begin();
        replay.book.begin_block(replay.height + 1, time_ms);
        let header = replay.seal(&[], time_ms);
        replay.book.rollback();
        Block { header, entries: Vec::new() }
    }

    /// Applies waiting entries under the book's journal, which stays open. `None`, with it closed, where none could be.
    /// Entries that could not be applied are dropped and reported.
    fn attempt(&mut self, now_ms: u64) -> Option<Attempt> {
        let replay = &mut self.chain.replay;
        let (height, time_ms) = (replay.height + 1, now_ms.max(replay.time_ms));
        let (mut entries, mut applied, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        let mut bytes = 0;
        replay.book.begin();
        replay.book.begin_block(height, time_ms);
        for (entry, ticket) in self.queue.iter() {
            bytes += entry.entry().wire().encoded_len();
            if entries.len() == ENTRIES_MAX || bytes > ENTRIES_BYTES_MAX {
                break;
            }
            match replay.book.apply_screened(entry, height, time_ms) {
                Ok(done) => {
                    entries.push(entry.entry().to_wire());
                    applied.push(done);
                }
                Err(error) => {
                    bytes -= entry.entry().wire().encoded_len();
                    refused.push((ticket, error));
                }
            }
        }
        let header = (!entries.is_empty()).then(|| replay.seal(&entries, time_ms));
        if header.is_none() {
            replay.book.rollback();
        }
        let dropped: BTreeSet<Ticket> = refused.iter().map(|(ticket, _)| *ticket).collect();
        if !dropped.is_empty() {
            self.queue.retain(|entry, _| !dropped.contains(&Ticket::of(entry.entry().wire())));
        }
        self.report(refused);
        Some(Attempt { block: Block { header: header?, entries }, applied })
    }

    fn report(&mut self, refused: Vec<(Ticket, ApplyError)>) {
        self.refused.extend(refused);
        let excess = self.refused.len().saturating_sub(QUEUE_MAX);
        self.refused.drain(..excess);
    }

    /// Notes that the signatures in a block of the next height need not be verified again.
    fn remember(&mut self, block: Digest) {
        if !self.validated.contains(&block) {
            self.validated.push_back(block);
            let excess = self.validated.len().saturating_sub(VALIDATED_MAX);
            self.validated.drain(..excess);
        }
    }
}

/// A block that the book's journal is still open for, of the queue's first entries.
struct Attempt {
    block: Block,
    applied: Vec<Applied>,
}

impl Replicator for Replica {
    fn submit(&mut self, entry: Signed<Entry>) -> Result<Submitted, SubmitError> {
        Replica::submit(self, entry)
    }

    fn propose(&mut self, now_ms: u64) -> Option<Block> {
        let Attempt { block, .. } = self.attempt(now_ms)?;
        self.chain.replay.book.rollback();
        self.remember(block.header.digest());
        Some(block)
    }

    fn validate(&mut self, block: &Block) -> Result<(), BlockError> {
        let digest = block.header.digest();
        self.chain.replay.check_header(&block.header)?;
        let queue = &self.queue;
        let known = |wire: &Digest| queue.known(wire).cloned();
        let signatures = if self.validated.contains(&digest) { Signatures::Trust } else { Signatures::Known(&known) };
        self.chain.replay.execute(block, signatures)?;
        self.chain.replay.book.rollback();
        self.remember(digest);
        Ok(())
    }

    /// Waiting entries that are in the block are dropped from the queue; those that can no longer be applied are too, and
    /// are reported by [`Replica::take_refused`].
    fn commit(&mut self, block: CertifiedBlock) -> Result<Vec<Applied>, FollowError> {
        let queue = &self.queue;
        let known = |wire: &Digest| queue.known(wire).cloned();
        // The header's digest covers the entries' root, and so each signature in the block.
        let validated = self.validated.contains(&block.block.header.digest());
        let signatures = if validated { Signatures::Trust } else { Signatures::Known(&known) };
        let applied = self.chain.commit(&block, signatures)?;
        self.validated.clear();
        let book = &self.chain.replay.book;
        let height = self.chain.replay.height + 1;
        let included: BTreeSet<Digest> = block.block.entries.iter().map(SignedBytes::digest).collect();
        let mut refused = Vec::new();
        self.queue.retain(|entry, before| {
            let verdict = book.admit(entry.entry(), height, before);
            if let Err(error) = verdict
                && !included.contains(&entry.entry().wire().digest())
            {
                refused.push((Ticket::of(entry.entry().wire()), error));
            }
            verdict.is_ok()
        });
        self.report(refused);
        Ok(applied)
    }

    fn blocks(&self, from: u64, max: usize) -> Result<Vec<CertifiedBlock>, StoreError> {
        Replica::blocks(self, from, max)
    }

    fn height(&self) -> u64 {
        Replica::height(self)
    }

    fn book(&self) -> &Book {
        Replica::book(self)
    }
}

/// One authority that orders blocks alone: the embedded default. A replica with the key of a committee of one.
#[derive(Debug)]
pub struct Solo {
    replica: Replica,
    authority: SecretKey,
}

impl Solo {
    /// Opens the ledger in `folder`, making an empty one for a new folder. Only one process at a time.
    /// `authority` must be the genesis' whole committee.
    pub fn open(folder: impl AsRef<Path>, genesis: &Genesis, authority: SecretKey) -> Result<Solo, OpenError> {
        genesis.validate()?;
        if genesis.committee != [authority.public()] {
            return Err(OpenError::NotAuthority);
        }
        Ok(Solo { replica: Replica::open(folder, genesis)?, authority })
    }

    /// Makes one block of up to 1,024 waiting entries at `now_ms` (or the last block's time, if that is later), and
    /// returns once it is durable. `None` where no waiting entry could be applied. Those that could not are dropped and
    /// reported by [`Replica::take_refused`].
    pub fn produce(&mut self, now_ms: u64) -> Result<Option<Committed>, FollowError> {
        let Solo { replica, authority } = self;
        if replica.chain.halted() {
            return Err(FollowError::Halted);
        }
        let validators = replica.validators();
        if validators != ValidatorSet::solo(authority.public()) {
            let need = validators.quorum();
            return Err(BlockError::Certificate(CertificateError::NoQuorum { got: 1, need }).into());
        }
        let Some(Attempt { block, applied }) = replica.attempt(now_ms) else { return Ok(None) };
        let taken = block.entries.len();
        let certificate = Certificate::solo(&replica.network(), &block.header, authority);
        let block = CertifiedBlock { block, certificate };
        replica.chain.store_attempt(&block)?;
        replica.queue.drop_first(taken);
        Ok(Some(Committed { block, applied }))
    }
}

impl Deref for Solo {
    type Target = Replica;

    fn deref(&self) -> &Replica {
        &self.replica
    }
}

impl DerefMut for Solo {
    fn deref_mut(&mut self) -> &mut Replica {
        &mut self.replica
    }
}
