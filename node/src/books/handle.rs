//! The handle to the books.
//! Invariant: reading never waits for the network, and never sees half a block.

use super::submit::Account as Submitter;
use super::wire::Notice;
use super::{follow, serve, solo};
use crate::network::{Network, Reply, Verdict};
use spillway_ledger::chain::OpenError;
use spillway_ledger::{
    Account, Applied, Book, CertifiedBlock, Follower, Genesis, NodeId, SecretKey, Solo, StoreError,
    decode,
};
use std::path::Path;
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
    /// Another node.
    Follow {
        /// Which.
        authority: NodeId,
    },
}

/// Why the books cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum BooksError {
    /// The ledger in the folder cannot be opened.
    #[error(transparent)]
    Ledger(#[from] OpenError),
    /// To follow oneself leads nowhere.
    #[error("ledger.authority: this is the node's own peer id; `ledger.role = \"solo\"` writes the books here")]
    FollowsItself,
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
}

impl Copy {
    pub(super) fn book(&self) -> &Book {
        match self {
            Self::Solo(solo) => solo.book(),
            Self::Follower(follower) => follower.book(),
        }
    }

    pub(super) fn height(&self) -> u64 {
        match self {
            Self::Solo(solo) => solo.height(),
            Self::Follower(follower) => follower.height(),
        }
    }

    pub(super) fn blocks(&self, from: u64, max: usize) -> Result<Vec<CertifiedBlock>, StoreError> {
        match self {
            Self::Solo(solo) => solo.blocks(from, max),
            Self::Follower(follower) => follower.blocks(from, max),
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
    Here(mpsc::Sender<solo::Submission>),
    There(NodeId),
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
                    (Copy::Solo(Box::new(Solo::open(&folder, &constitution, authority)?)), None)
                }
                BooksRole::Follow { authority } => {
                    (Copy::Follower(Box::new(Follower::open(&folder, &constitution)?)), Some(authority))
                }
            })
        });
        let (copy, authority) = opened.await.expect("opening a ledger does not panic, and nobody aborts it")?;
        if authority == Some(network.node()) {
            return Err(BooksError::FollowsItself);
        }
        let (reached, height) = watch::channel(copy.height());
        let copy = Arc::new(RwLock::new(copy));
        let keeper =
            Keeper { copy: Arc::clone(&copy), events, reached, network: network.clone(), stopping, _running: running };
        let writer = match authority {
            Some(authority) => {
                tokio::spawn(follow::run(keeper, authority, Arc::clone(&news)));
                Writer::There(authority)
            }
            None => Writer::Here(solo::start(keeper).map_err(BooksError::Thread)?),
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
        Ok((Self(Arc::new(books)), received))
    }

    /// Looks at the book as it is after the last block. Keep `look` short: no block is added meanwhile, and while one is
    /// written to the disk this waits for it.
    pub fn read<T>(&self, look: impl FnOnce(&Book) -> T) -> T {
        look(self.0.copy.read().unwrap_or_else(PoisonError::into_inner).book())
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
