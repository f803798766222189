//! The handle to the books.
//! Invariant: reading never waits for the network, and never sees half a block.

#[cfg(feature = "validator")]
use super::committee;
use super::submit::Account as Submitter;
use super::wire::Notice;
use super::{follow, group, serve, solo};
use crate::network::{Network, Reply, Verdict};
#[cfg(feature = "validator")]
use spillway_ledger::Replica;
use spillway_ledger::chain::OpenError;
use spillway_ledger::{
    Account, Action, Applied, Book, CertifiedBlock, CoSigned, Digest, Evidence, Follower, Genesis, NodeId, Proof,
    SecretKey, Solo, StoreError, decode,
};
use std::path::Path;
#[cfg(feature = "validator")]
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore, mpsc, watch};

/// Events that wait for the node; beyond it, the copy waits with the next block.
const EVENTS_MAX: usize = 4096;
/// Requests for blocks that are served at once.
const SERVED_MAX: usize = 16;
/// How long the last block may take when the node stops.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// Who writes the books.
pub enum BooksRole {
    /// This node, with genesis' authority key.
    Solo {
        /// The key.
        authority: SecretKey,
    },
    /// Other nodes.
    Follow {
        /// Which; the first that answers is asked.
        authorities: Vec<NodeId>,
    },
    /// This node, with the rest of a committee.
    #[cfg(feature = "validator")]
    Validate {
        /// The validator's key.
        key: SecretKey,
        /// How the validators reach each other.
        settings: spillway_bft::Settings,
    },
}

/// Why the books cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BooksError {
    /// The ledger in the folder cannot be opened.
    #[error(transparent)]
    Ledger(#[from] OpenError),
    /// To follow oneself leads nowhere.
    #[error("ledger.authority: none, or the node's own peer id; `ledger.role = \"solo\"` writes the books here")]
    FollowsItself,
    /// The validator cannot be started.
    #[cfg(feature = "validator")]
    #[error(transparent)]
    Validator(#[from] spillway_bft::StartError),
    /// The operating system gives no thread.
    #[error("no thread for the books: {0}")]
    Thread(std::io::Error),
}

/// What the books tell, in the order of the blocks and of the entries in them.
#[derive(Clone, Debug)]
pub enum BookEvent {
    /// An entry was applied, durably.
    Applied {
        /// In which block.
        height: u64,
        /// What it did.
        applied: Applied,
        /// The entry's business id.
        business: [u8; 16],
        /// Whose entry it was.
        account: Account,
    },
}

/// The copy on the disk.
pub(super) enum Copy {
    Solo(Box<Solo>),
    Follower(Box<Follower>),
    /// Written by the committee's engine.
    #[cfg(feature = "validator")]
    Replica(Arc<Mutex<Replica>>),
}

impl Copy {
    fn look<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        match self {
            Self::Solo(solo) => look(solo.book()),
            Self::Follower(follower) => look(follower.book()),
            #[cfg(feature = "validator")]
            Self::Replica(replica) => look(spillway_bft::lock(replica).book()),
        }
    }

    pub(super) fn height(&self) -> u64 {
        match self {
            Self::Solo(solo) => solo.height(),
            Self::Follower(follower) => follower.height(),
            #[cfg(feature = "validator")]
            Self::Replica(replica) => spillway_bft::lock(replica).height(),
        }
    }

    pub(super) fn blocks(&self, from: u64, max: usize) -> Result<Vec<CertifiedBlock>, StoreError> {
        match self {
            Self::Solo(solo) => solo.blocks(from, max),
            Self::Follower(follower) => follower.blocks(from, max),
            #[cfg(feature = "validator")]
            Self::Replica(replica) => spillway_bft::lock(replica).blocks(from, max),
        }
    }

    fn prove_account(&mut self, account: &Account) -> Option<Proof> {
        match self {
            Self::Solo(solo) => solo.prove_account(account),
            Self::Follower(follower) => follower.prove_account(account),
            #[cfg(feature = "validator")]
            Self::Replica(replica) => spillway_bft::lock(replica).prove_account(account),
        }
    }

    fn prove_receipt(
        &self,
        place: (u64, usize),
        receipt: &CoSigned,
        receipts: &[Digest],
    ) -> Result<Option<Proof>, StoreError> {
        match self {
            Self::Solo(solo) => solo.prove_receipt(place, receipt, receipts),
            Self::Follower(follower) => follower.prove_receipt(place, receipt, receipts),
            #[cfg(feature = "validator")]
            Self::Replica(replica) => spillway_bft::lock(replica).prove_receipt(place, receipt, receipts),
        }
    }
}

/// The books of one node; clones share them.
#[derive(Clone)]
pub struct Books(pub(super) Arc<Inner>);

pub(super) struct Inner {
    pub(super) copy: Arc<RwLock<Copy>>,
    pub(super) network: Network,
    pub(super) submitter: Submitter,
    pub(super) writer: Writer,
    /// The height of the last block whose events were sent.
    pub(super) height: watch::Receiver<u64>,
    /// Wakes the follower.
    pub(super) news: Arc<Notify>,
    pub(super) serving: Arc<Semaphore>,
    pub(super) stop: watch::Sender<bool>,
    /// Closed once the copy is no longer written.
    stopped: mpsc::Sender<()>,
}

/// Where entries go.
pub(super) enum Writer {
    Here(mpsc::Sender<group::Submission>),
    There(Arc<Authorities>),
}

/// Nodes that write the books, and which of them is asked at present.
pub(super) struct Authorities {
    nodes: Vec<NodeId>,
    at: AtomicUsize,
}

impl Authorities {
    fn new(nodes: Vec<NodeId>) -> Self {
        Self { nodes, at: AtomicUsize::new(0) }
    }

    /// Who is asked.
    pub(super) fn present(&self) -> NodeId {
        self.nodes[self.at.load(Ordering::Relaxed) % self.nodes.len()]
    }

    /// `failed` does not answer: the next one is asked, unless another task has moved on already.
    pub(super) fn turn_from(&self, failed: NodeId) {
        let at = self.at.load(Ordering::Relaxed);
        if self.nodes[at % self.nodes.len()] == failed {
            let next = (at + 1) % self.nodes.len();
            let _moved_by_another = self.at.compare_exchange(at, next, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

impl Books {
    /// Opens the ledger in `folder`, executes what is stored there, and keeps it up to date from then on. Events must be
    /// taken from the receiver by a task that does not wait for the books, or the copy stands still.
    ///
    /// # Errors
    /// As [`BooksError`] says.
    pub async fn open(
        folder: &Path,
        genesis: &Genesis,
        role: BooksRole,
        account: SecretKey,
        network: Network,
    ) -> Result<(Self, mpsc::Receiver<BookEvent>), BooksError> {
        let (events, received) = mpsc::channel(EVENTS_MAX);
        let (stop, stopping) = watch::channel(false);
        let (stopped, running) = mpsc::channel(1);
        let news = Arc::new(Notify::new());
        let (folder, constitution) = (folder.to_owned(), genesis.clone());
        let opened = tokio::task::spawn_blocking(move || {
            Ok::<_, BooksError>(match role {
                BooksRole::Solo { authority } => {
                    (Copy::Solo(Box::new(Solo::open(&folder, &constitution, authority)?)), Keep::Alone)
                }
                BooksRole::Follow { authorities } => {
                    (Copy::Follower(Box::new(Follower::open(&folder, &constitution)?)), Keep::There(authorities))
                }
                #[cfg(feature = "validator")]
                BooksRole::Validate { key, settings } => {
                    let replica = Arc::new(Mutex::new(Replica::open(&folder, &constitution)?));
                    (Copy::Replica(Arc::clone(&replica)), Keep::Together(replica, Box::new((key, settings))))
                }
            })
        });
        let (copy, keep) = opened.await.expect("opening a ledger does not panic, and nobody aborts it")?;
        if matches!(&keep, Keep::There(nodes) if nodes.contains(&network.node()) || nodes.is_empty()) {
            return Err(BooksError::FollowsItself);
        }
        let (reached, height) = watch::channel(copy.height());
        let copy = Arc::new(RwLock::new(copy));
        let keeper =
            Keeper { copy: Arc::clone(&copy), events, reached, network: network.clone(), stopping, _running: running };
        let (writer, offences) = match keep {
            Keep::There(nodes) => {
                let authorities = Arc::new(Authorities::new(nodes));
                tokio::spawn(follow::run(keeper, Arc::clone(&authorities), Arc::clone(&news)));
                (Writer::There(authorities), None)
            }
            Keep::Alone => (Writer::Here(solo::start(keeper).map_err(BooksError::Thread)?), None),
            #[cfg(feature = "validator")]
            Keep::Together(replica, seat) => {
                let (key, settings) = *seat;
                let (submissions, offences) = committee::start(keeper, replica, key, settings).await?;
                (Writer::Here(submissions), Some(offences))
            }
        };
        let books = Inner {
            copy,
            network,
            submitter: Submitter::new(genesis.network_id(), account),
            writer,
            height,
            news,
            serving: Arc::new(Semaphore::new(SERVED_MAX)),
            stop,
            stopped,
        };
        let books = Self(Arc::new(books));
        if let Some(offences) = offences {
            tokio::spawn(report(books.clone(), offences));
        }
        Ok((books, received))
    }

    /// Looks at the book as it is after the last block. Keep `look` short: no block is added meanwhile, and while one is
    /// written to the disk this waits for it.
    pub fn read<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        self.0.copy.read().unwrap_or_else(PoisonError::into_inner).look(look)
    }

    /// The height of the last block; 0 before the first.
    #[must_use]
    pub fn height(&self) -> u64 {
        self.0.copy.read().unwrap_or_else(PoisonError::into_inner).height()
    }

    /// The account that this node submits for.
    #[must_use]
    pub fn account(&self) -> Account {
        self.0.submitter.account()
    }

    /// Up to `max` blocks from height `from` on. Reads the disk.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn blocks(&self, from: u64, max: usize) -> Result<Vec<CertifiedBlock>, StoreError> {
        self.0.copy.read().unwrap_or_else(PoisonError::into_inner).blocks(from, max)
    }

    /// Tells the height of the last block, as it grows.
    #[must_use]
    pub fn heights(&self) -> watch::Receiver<u64> {
        self.0.height.clone()
    }

    /// The proof of what an account has after the last block; `None` for one that the book has never seen.
    #[must_use]
    pub fn prove_account(&self, account: &Account) -> Option<Proof> {
        self.0.copy.write().unwrap_or_else(PoisonError::into_inner).prove_account(account)
    }

    /// The proof that the settlement at `place` (height, and index in the block) pays for `receipt`, one of `receipts`.
    /// Reads the disk. `None` where it does not.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn prove_receipt(
        &self,
        place: (u64, usize),
        receipt: &CoSigned,
        receipts: &[Digest],
    ) -> Result<Option<Proof>, StoreError> {
        self.0.copy.read().unwrap_or_else(PoisonError::into_inner).prove_receipt(place, receipt, receipts)
    }

    /// Takes a peer's question, [`CallKind::Ledger`](crate::network::CallKind::Ledger). Does not wait.
    pub fn call(&self, peer: NodeId, request: Vec<u8>, reply: Reply) {
        serve::call(self, peer, &request, reply);
    }

    /// Takes a gossiped notice of a block, [`Topic::Blocks`](crate::network::Topic::Blocks). Does not wait.
    pub fn gossip(&self, bytes: Vec<u8>, verdict: Verdict) {
        let Ok(notice) = decode::<Notice>(&bytes) else { return verdict.reject() };
        if notice.header.height <= *self.0.height.borrow() {
            return verdict.ignore(); // Late, not wrong.
        }
        let (network, validators) = self.read(|book| (book.network(), book.validators_at(book.height() + 1)));
        if notice.header.validators != validators.digest() {
            // Of a committee that we do not know yet: worth a look, but not worth passing on.
            self.0.news.notify_one();
            return verdict.ignore();
        }
        if notice.certificate.verify(&network, &notice.header, &validators).is_err() {
            return verdict.reject();
        }
        verdict.accept();
        self.0.news.notify_one();
    }

    /// Stops writing the copy; returns when the last write is over. Entries under way are refused as
    /// [`EntryRefused::Stopped`](super::EntryRefused::Stopped), and may be in all the same.
    pub async fn stop(&self) {
        self.0.stop.send_replace(true);
        let _ = tokio::time::timeout(STOP_WAIT, self.0.stopped.closed()).await;
    }
}

/// How a copy is kept, before its keeper is started.
enum Keep {
    Alone,
    There(Vec<NodeId>),
    #[cfg(feature = "validator")]
    Together(Arc<Mutex<Replica>>, Box<(SecretKey, spillway_bft::Settings)>),
}

/// Puts offences that the committee's engine noticed on the ledger, until the books stop.
async fn report(books: Books, mut offences: mpsc::Receiver<Evidence>) {
    while let Some(evidence) = offences.recv().await {
        let Some(offence) = evidence.offence(&books.0.submitter.network()) else { continue };
        let mut business = [0; 16];
        business.copy_from_slice(&offence.id.as_bytes()[..16]);
        match books.submit(business, Action::Evidence { evidence }).await {
            Ok(height) => tracing::warn!(offender = %offence.offender, height, "an offence is on the ledger"),
            // Another validator may have been first.
            Err(error) => tracing::info!(offender = %offence.offender, %error, "an offence is not recorded again"),
        }
    }
}

/// What whoever writes the copy needs.
pub(super) struct Keeper {
    pub(super) copy: Arc<RwLock<Copy>>,
    pub(super) events: mpsc::Sender<BookEvent>,
    pub(super) reached: watch::Sender<u64>,
    pub(super) network: Network,
    pub(super) stopping: watch::Receiver<bool>,
    /// Dropped when the writing ends.
    pub(super) _running: mpsc::Receiver<()>,
}

/// The events of a block that was just applied.
pub(super) fn events_of(block: &CertifiedBlock, applied: Vec<Applied>) -> Vec<BookEvent> {
    let height = block.block.header.height;
    let entries = block.block.entries.iter();
    entries
        .zip(applied)
        .filter_map(|(wire, applied)| {
            let entry: spillway_ledger::Entry = decode(&wire.document).ok()?;
            Some(BookEvent::Applied { height, applied, business: entry.business, account: entry.account })
        })
        .collect()
}
