//! Credits, keys, signed documents, and the book that pays 70 % of each job to who did it.
//!
//! What is always true here:
//! - A [`Signed`] value exists only if its signature held over the exact bytes it keeps.
//! - [`Book`] is a fold over signed entries: the same entries give the same state root on every machine.
//! - No credit appears or vanishes: balances, bonds, locked deposits and payouts under way are what the issuer minted
//!   less what it burned.
//!
//! Nothing here reads a clock or a random source. Only [`store`], [`chain`] and [`verify`] touch the disk.

pub mod block;
pub mod book;
pub mod chain;
pub mod closing;
pub mod codec;
pub mod entry;
pub mod evidence;
pub mod genesis;
pub mod keys;
pub mod merkle;
pub mod money;
pub mod payout;
pub mod proof;
mod queue;
pub mod receipt;
mod replay;
pub mod replicator;
pub mod screen;
pub mod signed;
pub mod split;
pub mod state;
pub mod store;
#[cfg(test)]
mod tests;
mod tip;
pub mod verify;
pub mod vote;
pub mod voucher;

pub use block::{Block, Certificate, CertificateError, CertifiedBlock, Header, ValidatorSet};
pub use book::{Applied, ApplyError, Book, Election, SessionState, Totals, Violation};
pub use chain::{FollowError, Follower, OpenError};
pub use closing::Closing;
pub use codec::{CodecError, Document, decode, encode};
pub use entry::{Action, Entry};
pub use evidence::{Evidence, Offence};
pub use genesis::{Genesis, GenesisError};
pub use keys::{Account, Digest, KeyError, NodeId, PublicKey, SecretKey, Signature};
pub use merkle::{MerkleProof, merkle_proof, merkle_root, merkle_roots, verify_proof};
pub use money::{Credits, Price, Usage};
pub use payout::{PayoutId, PayoutState, RejectReason};
pub use proof::{Fact, Proof, ProofError, Proven};
pub use receipt::{CoSigned, JobId, Receipt};
pub use replay::BlockError;
pub use replicator::{Committed, Replica, Replicator, Solo, SubmitError, Submitted, Ticket};
pub use screen::Screened;
pub use signed::{Signed, SignedBytes, SignedError};
pub use split::{Parts, Split, SplitError};
pub use state::{AccountProof, AccountState};
pub use store::{Batch, Store, StoreError, Table};
pub use verify::{Verified, VerifyError, verify_blocks, verify_folder};
pub use vote::{Proposal, Step, Vote};
pub use voucher::{NetworkId, SessionId, Voucher};
