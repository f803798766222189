//! The program around the validator: its books, and the clients that wait for their entries.
//! Invariant: a client is told a height only once the block of that height is on the disk here.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, mpsc};
use std::time::{SystemTime, UNIX_EPOCH};

use spillway_bft::{Host, lock};
use spillway_ledger::{
    Action, Block, Committed, Digest, Document, Entry, Evidence, PublicKey, Replica, Replicator, Screened, SecretKey,
    Signed, SignedBytes, Submitted, Ticket,
};

use crate::frame;
use crate::lies::Liar;

/// How many clients may wait for entries.
const WAITERS_MAX: usize = 16 * 1_024;

/// Whom to tell what became of an entry.
#[derive(Clone, Debug)]
pub struct Waiter {
    /// The connection.
    pub connection: u64,
    /// The entry's place in it.
    pub sequence: u64,
    /// Where the answer goes.
    pub answers: mpsc::SyncSender<(u8, Vec<u8>)>,
}

impl Waiter {
    /// Tells the client. One that reads too slowly for its answers is not waited for; it asks again.
    pub fn answer(&self, outcome: Result<u64, String>) {
        // Height 0 is before every block: it stands for "not taken", and the reason follows.
        let (height, reason) = outcome.map_or_else(|reason| (0, reason), |height| (height, String::new()));
        let body = [&self.sequence.to_le_bytes()[..], &height.to_le_bytes()[..], reason.as_bytes()].concat();
        let _client_may_be_gone = self.answers.try_send((frame::ENTRY, body));
    }
}

/// The books and who waits.
#[derive(Debug)]
pub struct Books {
    replica: Mutex<Replica>,
    waiters: Mutex<BTreeMap<Ticket, Vec<Waiter>>>,
    key: SecretKey,
    clock_ms: i64,
    liar: Option<Liar>,
    share: tokio::sync::mpsc::Sender<SignedBytes>,
    /// How many rounds beyond the first the committed blocks took.
    extra_rounds: AtomicU64,
    /// How many entries of its log the engine replayed at its start.
    pub replayed: OnceLock<Arc<AtomicU64>>,
}

impl Books {
    /// Entries for the other validators go to `share`.
    pub fn new(
        replica: Replica,
        key: SecretKey,
        clock_ms: i64,
        liar: Option<Liar>,
        share: tokio::sync::mpsc::Sender<SignedBytes>,
    ) -> Books {
        let (replica, waiters) = (Mutex::new(replica), Mutex::default());
        Books {
            replica,
            waiters,
            key,
            clock_ms,
            liar,
            share,
            extra_rounds: AtomicU64::new(0),
            replayed: OnceLock::new(),
        }
    }

    fn waiters(&self) -> MutexGuard<'_, BTreeMap<Ticket, Vec<Waiter>>> {
        self.waiters.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes entries from a client. Signatures are verified before anybody has to wait for the books.
    pub fn submit(&self, entries: Vec<(Waiter, SignedBytes)>) {
        let (waiters, wires): (Vec<_>, Vec<_>) = entries.into_iter().unzip();
        let screened = Screened::open_all(&wires);
        let mut shared = Vec::new();
        let mut replica = lock(&self.replica);
        for (waiter, screened) in waiters.into_iter().zip(screened) {
            let entry = match screened {
                Ok(entry) => entry,
                Err(error) => {
                    waiter.answer(Err(error.to_string()));
                    continue;
                }
            };
            let mut waiting = self.waiters();
            if waiting.len() >= WAITERS_MAX {
                waiter.answer(Err("too many entries wait for a block already".to_owned()));
                continue;
            }
            let wire = entry.entry().to_wire();
            match replica.submit_screened(entry) {
                Ok(Submitted::Already { height }) => waiter.answer(Ok(height)),
                Ok(Submitted::Ticket(ticket)) => {
                    waiting.entry(ticket).or_default().push(waiter);
                    shared.push(wire);
                }
                Err(error) => waiter.answer(Err(error.to_string())),
            }
        }
        drop(replica);
        for wire in shared {
            // When the others cannot keep up, our own turn comes.
            let _dropped = self.share.try_send(wire);
        }
    }

    /// A client left.
    pub fn forget(&self, connection: u64) {
        self.waiters().retain(|_, waiters| {
            waiters.retain(|waiter| waiter.connection != connection);
            !waiters.is_empty()
        });
    }

    /// How the validator is.
    pub fn status(&self) -> String {
        let replica = lock(&self.replica);
        serde_json::json!({
            "height": replica.height(),
            "tip": replica.tip(),
            "time_ms": replica.time_ms(),
            "waiting": replica.waiting(),
            "validators": replica.validators().keys(),
            "extra_rounds": self.extra_rounds.load(Ordering::Relaxed),
            "replayed": self.replayed.get().map_or(0, |count| count.load(Ordering::Relaxed)),
        })
        .to_string()
    }

    /// An account's next nonce, balance and bond.
    pub fn account(&self, key: PublicKey) -> String {
        let account = spillway_ledger::Account(key);
        let replica = lock(&self.replica);
        serde_json::json!({
            "nonce": replica.next_nonce(&account),
            "balance": replica.book().balance(&account),
            "bond": replica.book().bond(&account),
        })
        .to_string()
    }
}

impl Host for Books {
    fn replica(&self) -> &Mutex<Replica> {
        &self.replica
    }

    fn committed(&self, committed: &Committed) {
        let height = committed.block.block.header.height;
        self.extra_rounds.fetch_add(u64::from(committed.block.certificate.round), Ordering::Relaxed);
        for wire in &committed.block.block.entries {
            // What `Signed::digest` gives, without asking for the signature once more.
            let ticket = Ticket(Digest::of(Entry::DOMAIN, &[wire.signer.as_bytes(), &wire.document]));
            let waiting = self.waiters().remove(&ticket);
            waiting.iter().flatten().for_each(|waiter| waiter.answer(Ok(height)));
        }
        let refused = lock(&self.replica).take_refused();
        for (ticket, error) in refused {
            let waiting = self.waiters().remove(&ticket);
            waiting.iter().flatten().for_each(|waiter| waiter.answer(Err(error.to_string())));
        }
    }

    fn evidence(&self, evidence: Evidence) {
        let mut replica = lock(&self.replica);
        let account = self.key.account();
        let nonce = replica.next_nonce(&account);
        let mut business = [0; 16];
        business[..8].copy_from_slice(&nonce.to_le_bytes());
        business[8..].copy_from_slice(b"evidence");
        let entry = Entry {
            network: replica.network(),
            account,
            nonce,
            expires_height: replica.height() + 1_000,
            business,
            action: Action::Evidence { evidence },
        };
        let signed = Signed::sign(entry, &self.key);
        let wire = signed.to_wire();
        match replica.submit(signed) {
            Ok(_) => drop(self.share.try_send(wire)),
            Err(error) => tracing::info!(%error, "evidence was not needed"),
        }
    }

    fn now_ms(&self) -> u64 {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("the clock is past 1970");
        u64::try_from(now.as_millis()).expect("not so soon").saturating_add_signed(self.clock_ms)
    }

    fn propose(&self, replica: &mut Replica, now_ms: u64) -> Block {
        match &self.liar {
            Some(liar) => liar.propose(replica, &self.key, now_ms),
            None => replica.propose(now_ms).unwrap_or_else(|| replica.propose_empty(now_ms)),
        }
    }
}
