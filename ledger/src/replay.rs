//! Blocks turned into a book, one after the other; the part of a chain that touches no disk.
//! Invariant: the book is what executing every block from the genesis gives, and a block that is refused left no trace.

use crate::block::{Block, Certificate, CertificateError, CertifiedBlock, Header, ValidatorSet};
use crate::book::{Applied, ApplyError, Book};
use crate::entry::Entry;
use crate::genesis::Genesis;
use crate::keys::{Account, Digest};
use crate::proof::{self, Anchor, Handover, Proof};
use crate::screen::Screened;
use crate::signed::{Signed, SignedBytes, SignedError};
use crate::voucher::NetworkId;

/// Why a block does not follow from what came before, in order of precedence. Its proposer's fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Not the next block.
    #[error("height is {got}, where {expected} is next")]
    Height {
        /// What the block says.
        got: u64,
        /// The next height.
        expected: u64,
    },
    /// It builds on another chain.
    #[error("parent is not the block before")]
    Parent,
    /// Time goes forward.
    #[error("time_ms is before the parent's")]
    Time,
    /// Another set of validators.
    #[error("validators is not the digest of this network's")]
    Validators,
    /// It is not final.
    #[error("certificate: {0}")]
    Certificate(CertificateError),
    /// Its entries are not those of the header.
    #[error("entries_root is not the root of the entries")]
    EntriesRoot,
    /// An entry is not one.
    #[error("entry {index}: {error}")]
    Entry {
        /// Its place in the block, from 0.
        index: usize,
        /// What is wrong.
        error: SignedError,
    },
    /// An entry may not be applied.
    #[error("entry {index}: {error}")]
    Apply {
        /// Its place in the block, from 0.
        index: usize,
        /// Why not.
        error: ApplyError,
    },
    /// Its entries lead to another supply.
    #[error("supply is not what was minted less what was burned")]
    Supply,
    /// Its entries lead to other validators.
    #[error("next_validators is not the digest of who decides the next block")]
    NextValidators,
    /// Its entries lead to another state.
    #[error("state_root is not the root of the state that the entries lead to")]
    StateRoot,
}

/// Who has already checked the signatures inside a block.
#[derive(Clone, Copy)]
pub(crate) enum Signatures<'a> {
    /// Nobody: verify them all.
    Verify,
    /// We did, before we stored it; the certificate shows that it is still that block.
    Trust,
    /// We did for some: those are looked up by the digest of their wire form.
    Known(&'a dyn Fn(&Digest) -> Option<Screened>),
}

/// The book at the end of a chain, and what the next block must build on.
#[derive(Clone, Debug)]
pub(crate) struct Replay {
    pub(crate) book: Book,
    pub(crate) height: u64,
    pub(crate) parent: Digest,
    pub(crate) time_ms: u64,
    /// Every block whose committee handed over to another.
    pub(crate) handovers: Vec<Handover>,
    /// The last block's header and certificate.
    pub(crate) last: Option<(Header, Certificate)>,
}

impl Replay {
    /// Before the first block.
    pub(crate) fn new(genesis: &Genesis) -> Replay {
        Replay {
            book: Book::new(genesis),
            height: 0,
            parent: genesis.network_id().0,
            time_ms: genesis.time_ms,
            handovers: Vec::new(),
            last: None,
        }
    }

    /// The network's id.
    pub(crate) fn network(&self) -> NetworkId {
        self.book.network()
    }

    /// Who decides the next block.
    pub(crate) fn validators(&self) -> ValidatorSet {
        self.book.validators_at(self.height + 1)
    }

    /// Checks the certificate, executes the block, and stands after it. An error changes nothing.
    pub(crate) fn follow(
        &mut self,
        block: &CertifiedBlock,
        signatures: Signatures<'_>,
    ) -> Result<Vec<Applied>, BlockError> {
        let applied = self.attempt(block, signatures)?;
        self.accept(block);
        Ok(applied)
    }

    /// As [`Replay::follow`], but what the block changed can still be taken back with [`Book::rollback`] until
    /// [`Replay::accept`].
    pub(crate) fn attempt(
        &mut self,
        block: &CertifiedBlock,
        signatures: Signatures<'_>,
    ) -> Result<Vec<Applied>, BlockError> {
        self.check_header(&block.block.header)?;
        let verdict = block.certificate.verify(&self.network(), &block.block.header, &self.validators());
        verdict.map_err(BlockError::Certificate)?;
        self.execute(&block.block, signatures)
    }

    /// Makes what an attempt changed permanent.
    pub(crate) fn accept(&mut self, block: &CertifiedBlock) {
        let header = &block.block.header;
        self.book.keep();
        self.height = header.height;
        self.parent = block.certificate.block;
        self.time_ms = header.time_ms;
        self.handovers.extend(proof::handover(block, &self.validators()));
        self.last = Some((*header, block.certificate.clone()));
    }

    /// What makes a final header checkable by itself.
    pub(crate) fn anchor(&self, header: Header, certificate: Certificate) -> Anchor {
        Anchor {
            genesis: serde_json::to_string(self.book.genesis()).expect("a genesis is plain JSON"),
            handovers: self.handovers.iter().filter(|one| one.header.height < header.height).cloned().collect(),
            header,
            certificate,
        }
    }

    /// The proof of an account after the last block.
    pub(crate) fn prove_account(&mut self, account: &Account) -> Option<Proof> {
        let (header, certificate) = self.last.clone()?;
        let account = self.book.account_proof(account)?;
        Some(Proof::Account { anchor: self.anchor(header, certificate), account })
    }

    pub(crate) fn check_header(&self, header: &Header) -> Result<(), BlockError> {
        let expected = self.height + 1;
        if header.height != expected {
            return Err(BlockError::Height { got: header.height, expected });
        }
        if header.parent != self.parent {
            return Err(BlockError::Parent);
        }
        if header.time_ms < self.time_ms {
            return Err(BlockError::Time);
        }
        if header.validators != self.validators().digest() {
            return Err(BlockError::Validators);
        }
        Ok(())
    }

    /// Executes a block whose header was checked, under the book's journal. An error has rolled it back.
    pub(crate) fn execute(&mut self, block: &Block, signatures: Signatures<'_>) -> Result<Vec<Applied>, BlockError> {
        if Block::entries_root(&block.entries) != block.header.entries_root {
            return Err(BlockError::EntriesRoot);
        }
        self.book.begin();
        let result = self.execute_entries(block, signatures);
        if result.is_err() {
            self.book.rollback();
        }
        result
    }

    fn execute_entries(&mut self, block: &Block, signatures: Signatures<'_>) -> Result<Vec<Applied>, BlockError> {
        let Header { height, time_ms, .. } = block.header;
        self.book.begin_block(height, time_ms);
        let mut all = Vec::with_capacity(block.entries.len());
        for (index, entry) in screened(&block.entries, signatures).into_iter().enumerate() {
            let entry = entry.map_err(|error| BlockError::Entry { index, error })?;
            let applied = self.book.apply_screened(&entry, height, time_ms);
            all.push(applied.map_err(|error| BlockError::Apply { index, error })?);
        }
        if self.book.supply() != block.header.supply {
            return Err(BlockError::Supply);
        }
        if self.book.validators_at(height + 1).digest() != block.header.next_validators {
            return Err(BlockError::NextValidators);
        }
        if self.book.state_root() != block.header.state_root {
            return Err(BlockError::StateRoot);
        }
        Ok(all)
    }

    /// The header over entries that were just applied under the book's journal.
    pub(crate) fn seal(&mut self, entries: &[SignedBytes], time_ms: u64) -> Header {
        let height = self.height + 1;
        Header {
            height,
            parent: self.parent,
            time_ms,
            entries_root: Block::entries_root(entries),
            state_root: self.book.state_root(),
            supply: self.book.supply(),
            // Changed entries may have changed who is next, never who decides this one.
            validators: self.validators().digest(),
            next_validators: self.book.validators_at(height + 1).digest(),
        }
    }
}

/// A block's entries with what their signatures show; all cores verify what nobody has.
fn screened(entries: &[SignedBytes], signatures: Signatures<'_>) -> Vec<Result<Screened, SignedError>> {
    let known = match signatures {
        Signatures::Verify => return Screened::open_all(entries),
        Signatures::Trust => {
            let open = |wire: &SignedBytes| Signed::<Entry>::open_certified(wire.clone()).map(Screened::trusted);
            return entries.iter().map(open).collect();
        }
        Signatures::Known(known) => known,
    };
    let mut answers: Vec<_> = entries.iter().map(|wire| known(&wire.digest()).map(Ok)).collect();
    let asked = answers.iter().zip(entries).filter(|(answer, _)| answer.is_none());
    let unknown: Vec<SignedBytes> = asked.map(|(_, wire)| wire.clone()).collect();
    let mut opened = Screened::open_all(&unknown).into_iter();
    answers.iter_mut().filter(|answer| answer.is_none()).for_each(|answer| *answer = opened.next());
    answers.into_iter().map(|answer| answer.expect("each was known or has been opened")).collect()
}
