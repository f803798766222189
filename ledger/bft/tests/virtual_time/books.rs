//! The program around a validator in virtual time: real books in a folder, a clock that the world sets.
//! Invariant: what was committed and what was reported is noted once, in order.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use spillway_ledger::{
    Action, Block, CertifiedBlock, Committed, Digest, Entry, Evidence, Replica, Replicator, SecretKey, Signed,
    SignedBytes,
};

use crate::host::{Host, lock};
use crate::plan::Lie;

/// How far ahead a block from the future is, in milliseconds: well above what validators accept.
const FUTURE_MS: u64 = 3_600_000;

/// What happened in the books since the world last looked.
#[derive(Debug, Default)]
pub struct Notes {
    /// Blocks that became final.
    pub committed: Vec<CertifiedBlock>,
    /// What the validator reported.
    pub evidence: Vec<Evidence>,
    /// Entries to tell the others.
    pub share: Vec<SignedBytes>,
    /// A second block for the same round, by a liar; perhaps under the same header.
    pub second: Option<Block>,
}

/// One validator's books.
#[derive(Debug)]
pub struct Books {
    replica: Mutex<Replica>,
    notes: Mutex<Notes>,
    key: SecretKey,
    now_ms: AtomicU64,
    lie: Option<Lie>,
    /// Whether evidence goes on the ledger.
    report: bool,
}

impl Books {
    pub fn new(replica: Replica, key: SecretKey, lie: Option<Lie>, report: bool) -> Books {
        let (replica, notes) = (Mutex::new(replica), Mutex::default());
        Books { replica, notes, key, now_ms: AtomicU64::new(0), lie, report }
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What happened since the last call.
    pub fn take(&self) -> Notes {
        std::mem::take(&mut self.notes())
    }

    pub fn set_clock(&self, now_ms: u64) {
        self.now_ms.store(now_ms, Ordering::Relaxed);
    }

    /// Signs an entry as the next one of `key`'s account, and queues it; gives what to tell the others.
    pub fn submit(&self, key: &SecretKey, salt: u64, action: Action) -> Option<SignedBytes> {
        let mut replica = lock(&self.replica);
        let account = key.account();
        let nonce = replica.next_nonce(&account);
        let mut business = [0; 16];
        business[..8].copy_from_slice(&nonce.to_le_bytes());
        business[8..].copy_from_slice(&salt.to_le_bytes());
        let (network, expires_height) = (replica.network(), replica.height() + 1_000);
        let signed = Signed::sign(Entry { network, account, nonce, expires_height, business, action }, key);
        let wire = signed.to_wire();
        // Full queues and entries that others were faster with are what clients meet, too: they try again.
        replica.submit(signed).ok().map(|_| wire)
    }
}

impl Host for Books {
    fn replica(&self) -> &Mutex<Replica> {
        &self.replica
    }

    fn committed(&self, committed: &Committed) {
        self.notes().committed.push(committed.block.clone());
    }

    fn evidence(&self, evidence: Evidence) {
        self.notes().evidence.push(evidence.clone());
        if self.report {
            let entry = self.submit(&self.key, 0, Action::Evidence { evidence });
            self.notes().share.extend(entry);
        }
    }

    fn now_ms(&self) -> u64 {
        self.now_ms.load(Ordering::Relaxed)
    }

    fn propose(&self, replica: &mut Replica, now_ms: u64) -> Block {
        let honest =
            |replica: &mut Replica, now_ms| replica.propose(now_ms).unwrap_or_else(|| replica.propose_empty(now_ms));
        match self.lie {
            None | Some(Lie::Silent | Lie::Approves) => honest(replica, now_ms),
            Some(Lie::TwoFaced) => {
                self.notes().second = Some(replica.propose_empty(now_ms + 1));
                honest(replica, now_ms)
            }
            Some(Lie::WrongState) => {
                let mut block = honest(replica, now_ms);
                block.header.state_root = Digest::of("a wrong state", &[&now_ms.to_le_bytes()]);
                block
            }
            Some(Lie::SameHeader) => {
                let block = honest(replica, now_ms);
                let mut other = block.clone();
                self.notes().second = other.entries.pop().map(|_| other);
                block
            }
            Some(Lie::Future) => honest(replica, now_ms + FUTURE_MS),
        }
    }
}
