//! What the program around a validator gives it, and is told by it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use spillway_ledger::{Block, Committed, Entry, Evidence, Replica, Replicator, Screened, SignedBytes, decode};

/// The program around a validator. Its methods are called from the validator's own threads; only [`Host::entries`] may
/// run at the same time as the others.
pub trait Host: Send + Sync + 'static {
    /// The books, shared with whoever takes entries from clients. Hold the lock shortly: no block is decided meanwhile.
    fn replica(&self) -> &Mutex<Replica>;

    /// A block is final and on the disk.
    fn committed(&self, committed: &Committed);

    /// A validator did what an honest one never does. Make it an [`spillway_ledger::Action::Evidence`] entry of an
    /// account of yours, so that the ledger records it.
    fn evidence(&self, evidence: Evidence);

    /// The time now, in Unix milliseconds.
    fn now_ms(&self) -> u64;

    /// Entries that another validator had from its clients; nothing in them is checked. By default they are verified
    /// and wait in the replica; what is wrong with one is of no interest here, since its sender's validator told it.
    fn entries(&self, entries: &[SignedBytes]) {
        // A block may have been quicker: what it took need not be verified once more.
        let waiting: Vec<SignedBytes> = {
            let replica = lock(self.replica());
            let waits = |wire: &&SignedBytes| {
                let entry = decode::<Entry>(&wire.document);
                entry.is_ok_and(|entry| entry.nonce >= replica.book().nonce(&entry.account))
            };
            entries.iter().filter(waits).cloned().collect()
        };
        let screened = Screened::open_all(&waiting);
        let mut replica = lock(self.replica());
        for entry in screened.into_iter().flatten() {
            let _its_senders_validator_said = replica.submit_screened(entry);
        }
    }

    /// The block to propose when it is our turn: waiting entries, or none. An honest host leaves this as it is.
    fn propose(&self, replica: &mut Replica, now_ms: u64) -> Block {
        replica.propose(now_ms).unwrap_or_else(|| replica.propose_empty(now_ms))
    }
}

/// Locks the books. A panic of another holder leaves them as the last whole change left them, or halted.
pub fn lock(replica: &Mutex<Replica>) -> MutexGuard<'_, Replica> {
    replica.lock().unwrap_or_else(PoisonError::into_inner)
}
