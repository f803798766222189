//! The node as its operator's routes see it: status, account, books, receipts.
//! Invariant: only reads, except for entries of the node's own account, which the ledger judges.

use crate::books::{Books, EntryRefused};
use crate::gateway::ApiError;
use crate::gateway::desk::{
    AccountStatus, BackendStatus, Desk, Done, Mint, NodeStatus, ReceiptView, SettledView, Wish, waiting_in,
};
use crate::gateway::ledger_log::{LedgerLog, LogQuery};
use crate::jobs::Jobs;
use crate::payouts::Waiting;
use crate::records;
use futures::future::BoxFuture;
use spillway_ledger::store::{Store, Table};
use spillway_ledger::{
    Account, Action, CertifiedBlock, CoSigned, Digest, Entry, Genesis, JobId, NodeId, PayoutId, SessionId, decode,
    encode, merkle_proof, merkle_roots,
};
use spillway_protocol::{Capacity, Record};
use std::sync::{Arc, Mutex, MutexGuard};
use tokio::sync::watch;

/// Blocks, or receipts, read at a time.
const PAGE: usize = 256;
/// How many receipts are looked through for those of one session that this node paid.
const PAID_MAX: usize = 100_000;

/// The node behind [`Desk`].
pub struct NodeDesk {
    peer_id: String,
    node: NodeId,
    books: Books,
    store: Arc<Store>,
    jobs: Jobs,
    capacity: watch::Receiver<Vec<Capacity>>,
    log: Mutex<LedgerLog>,
}

impl NodeDesk {
    /// A desk over the node's parts.
    #[must_use]
    pub fn new(
        peer_id: String,
        node: NodeId,
        genesis: &Genesis,
        books: Books,
        store: Arc<Store>,
        jobs: Jobs,
        capacity: watch::Receiver<Vec<Capacity>>,
    ) -> Self {
        Self { peer_id, node, books, store, jobs, capacity, log: Mutex::new(LedgerLog::new(genesis)) }
    }
}

fn unreadable(error: impl std::fmt::Display) -> ApiError {
    ApiError::internal(&error.to_string())
}

fn refused(error: EntryRefused) -> ApiError {
    ApiError::new(400, "ledger_refused", error.to_string())
}

/// The first 16 bytes of a digest, as an entry's business id.
fn business(domain: &str, parts: &[&[u8]]) -> [u8; 16] {
    let digest = Digest::of(domain, parts);
    std::array::from_fn(|index| digest.as_bytes()[index])
}

/// The business id of what is named `once`; of what is not, a fresh one.
fn named(once: Option<&String>) -> Result<[u8; 16], ApiError> {
    if let Some(once) = once {
        return Ok(business("spillway/once", &[once.as_bytes()]));
    }
    let mut fresh = [0; 16];
    getrandom::fill(&mut fresh).map_err(|_| ApiError::internal("the system gives no random bytes"))?;
    Ok(fresh)
}

/// The entry that a wish stands for, and its business id: what can be wished once only has an id of its own, so that a
/// retry is the same entry.
fn entry_of(wish: Wish) -> Result<([u8; 16], Action), ApiError> {
    Ok(match wish {
        Wish::PayoutRequest { amount_micro: amount, payee, once } => {
            (named(once.as_ref())?, Action::PayoutRequest { amount, payee })
        }
        Wish::Burn { payout, reference } => {
            let business = business("spillway/burn", &[payout.0.as_bytes(), reference.as_bytes()]);
            (business, Action::Burn { payout, reference })
        }
        Wish::PayoutReject { payout, reason } => {
            let business = business("spillway/reject", &[payout.0.as_bytes(), reason.to_string().as_bytes()]);
            (business, Action::PayoutReject { payout, reason })
        }
        Wish::Bond { amount_micro: amount, once } => (named(once.as_ref())?, Action::Bond { amount }),
        Wish::Unbond { amount_micro: amount, once } => (named(once.as_ref())?, Action::Unbond { amount }),
        Wish::Transfer { to, amount_micro: amount, once } => (named(once.as_ref())?, Action::Transfer { to, amount }),
    })
}

/// Where a receipt lies among those that a settlement pays for.
struct Paid {
    /// The settlement's block, and its place in it.
    place: (u64, u64),
    root: Digest,
    /// All that it pays for, in its order.
    receipts: Vec<Digest>,
    /// The receipt's place among them.
    index: usize,
}

impl NodeDesk {
    /// The log, up to the last block.
    fn log_now(&self) -> Result<MutexGuard<'_, LedgerLog>, ApiError> {
        let mut log = self.log.lock().map_err(|_| ApiError::internal("the log of the books failed earlier"))?;
        loop {
            let blocks = self.books.blocks(log.next_height(), PAGE).map_err(unreadable)?;
            if blocks.is_empty() {
                return Ok(log);
            }
            for block in blocks {
                log.push(block);
            }
        }
    }

    /// Calls `body` with each receipt from `from` on, as it was kept, until it says to stop.
    fn each_receipt(&self, from: Vec<u8>, mut body: impl FnMut(&[u8], bool, &[u8]) -> bool) -> Result<(), ApiError> {
        let mut from = from;
        loop {
            let rows = self.store.range(Table::Receipts, &from, PAGE).map_err(unreadable)?;
            let Some((last, _)) = rows.last() else { return Ok(()) };
            from.clone_from(last);
            from.push(0); // The least key above the last one.
            for (key, value) in rows {
                match Record::from_bytes(&value) {
                    Ok(Record::Receipt { both, bytes, .. }) => {
                        if !body(&key, both, &bytes) {
                            return Ok(());
                        }
                    }
                    Ok(
                        Record::Paying(_)
                        | Record::Earning(_)
                        | Record::Spending(_)
                        | Record::PayingOver(_)
                        | Record::EarningOver(_),
                    ) => {}
                    Err(error) => return Err(unreadable(error)),
                }
            }
        }
    }

    /// The receipts of a session, in the order of its settlements: as the provider kept it, or as the consumer, who has
    /// the same receipts, can tell it by their times.
    fn receipts_of(&self, session: &SessionId) -> Result<Vec<Digest>, ApiError> {
        let kept = records::leaves(&self.store, session).map_err(unreadable)?;
        if !kept.is_empty() {
            return Ok(kept);
        }
        let (mut held, mut seen) = (Vec::new(), 0);
        self.each_receipt(Vec::new(), |_, both, bytes| {
            seen += 1;
            if let Some(view) = ReceiptView::read(both, bytes).filter(|view| view.session == *session) {
                held.push((view.time_ms, view.leaf));
            }
            seen < PAID_MAX
        })?;
        held.sort_unstable();
        Ok(held.into_iter().map(|(_, leaf)| leaf).collect())
    }

    /// The first settlement that pays for a receipt; `None` where there is none yet, or this node cannot tell.
    fn paid(&self, session: &SessionId, leaf: &Digest) -> Result<Option<Paid>, ApiError> {
        let settlements = self.log_now()?.settlements(session);
        if settlements.is_empty() {
            return Ok(None);
        }
        let mut receipts = self.receipts_of(session)?;
        let Some(index) = receipts.iter().position(|held| held == leaf) else { return Ok(None) };
        // A settlement pays for all of the session's receipts so far.
        let found = merkle_roots(&receipts).enumerate().skip(index).find_map(|(last, root)| {
            let settlement = settlements.iter().find(|settlement| settlement.receipts == root)?;
            Some((last + 1, *settlement))
        });
        Ok(found.map(|(count, settlement)| {
            receipts.truncate(count);
            Paid { place: (settlement.height, settlement.entry), root: settlement.receipts, receipts, index }
        }))
    }

    fn settled_view(&self, view: &ReceiptView) -> Result<Option<SettledView>, ApiError> {
        let Some(Paid { place: (height, entry), root, receipts, index }) = self.paid(&view.session, &view.leaf)? else {
            return Ok(None);
        };
        let proof = merkle_proof(&receipts, index).expect("the receipt is one of them");
        Ok(Some(SettledView { height, entry, root, index: proof.index, count: proof.count, path: proof.beside }))
    }

    /// Puts an entry on the ledger, and gives it as it lies there, with its block's height.
    async fn done(&self, business: [u8; 16], action: Action) -> Result<(u64, Entry), ApiError> {
        let height = self.books.submit(business, action.clone()).await.map_err(refused)?;
        let books = self.books.clone();
        let read = tokio::task::spawn_blocking(move || own_entry(&books, height, business)).await;
        let entry = read.map_err(|_| ApiError::internal("reading the node's books failed; its log says more"))??;
        // Under the same name, something else may have been done before; then this was not.
        if entry.action != action {
            let what = format!("block {height} has another entry under this name or reference; nothing was done now");
            return Err(ApiError::new(409, "name_taken", what));
        }
        Ok((height, entry))
    }
}

/// The entry of the node's account with this business id, in the block at `height`.
fn own_entry(books: &Books, height: u64, business: [u8; 16]) -> Result<Entry, ApiError> {
    let account = books.account();
    let blocks = books.blocks(height, 1).map_err(unreadable)?;
    let entries = blocks.iter().flat_map(|block| &block.block.entries);
    let mut entries = entries.filter_map(|wire| decode::<Entry>(&wire.document).ok());
    let own = entries.find(|entry| entry.account == account && entry.business == business);
    own.ok_or_else(|| ApiError::internal("the entry is not in the block that it is said to be in"))
}

impl Desk for NodeDesk {
    fn status(&self) -> NodeStatus {
        let load = self.jobs.load();
        let backend = |capacity: &Capacity| BackendStatus {
            model: capacity.model.clone(),
            engine: capacity.engine.clone(),
            slots: capacity.slots,
            free: capacity.slots.saturating_sub(load.running.get(&capacity.model).copied().unwrap_or(0)),
            healthy: capacity.healthy,
        };
        NodeStatus {
            peer_id: self.peer_id.clone(),
            node: self.node,
            account: self.books.account(),
            peers: load.peers,
            height: self.books.height(),
            backends: self.capacity.borrow().iter().map(backend).collect(),
        }
    }

    fn account(&self, account: Option<Account>) -> AccountStatus {
        let account = account.unwrap_or_else(|| self.books.account());
        self.books.read(|book| AccountStatus::of(book, account, book.height()))
    }

    fn blocks(&self, from: u64, max: usize) -> Result<Vec<Vec<u8>>, ApiError> {
        let blocks = self.books.blocks(from, max).map_err(unreadable)?;
        Ok(blocks.iter().map(CertifiedBlock::to_bytes).collect())
    }

    fn log(&self, query: &LogQuery, max: usize) -> Result<(Vec<serde_json::Value>, bool), ApiError> {
        Ok(self.log_now()?.lines(query, max))
    }

    fn receipts(&self, job: Option<JobId>, max: usize) -> Result<Vec<ReceiptView>, ApiError> {
        let from = job.map_or_else(Vec::new, |job| job.0.to_vec());
        let mut receipts = Vec::new();
        self.each_receipt(from, |key, both, bytes| {
            if job.is_some_and(|job| !key.starts_with(&job.0)) || receipts.len() == max {
                return false;
            }
            receipts.extend(ReceiptView::read(both, bytes));
            true
        })?;
        if job.is_some() {
            for receipt in &mut receipts {
                receipt.settled = self.settled_view(receipt)?;
            }
        }
        Ok(receipts)
    }

    fn payouts(&self) -> (Vec<Waiting>, u64) {
        self.books.read(|book| (waiting_in(book), book.height()))
    }

    fn prove_account(&self, account: Option<Account>) -> Result<Vec<u8>, ApiError> {
        let account = account.unwrap_or_else(|| self.books.account());
        let unknown =
            || ApiError::new(404, "account_not_found", format!("the books have never seen account {account}"));
        Ok(encode(&self.books.prove_account(&account).ok_or_else(unknown)?))
    }

    fn prove_receipt(&self, job: JobId, leg: u32) -> Result<Vec<u8>, ApiError> {
        let key = [job.0.as_slice(), &leg.to_be_bytes()].concat();
        let row = self.store.get(Table::Receipts, &key).map_err(unreadable)?;
        let held = row.and_then(|row| match Record::from_bytes(&row) {
            Ok(Record::Receipt { both: true, bytes, .. }) => CoSigned::from_bytes(&bytes).ok(),
            Ok(
                Record::Receipt { both: false, .. }
                | Record::Paying(_)
                | Record::Earning(_)
                | Record::Spending(_)
                | Record::PayingOver(_)
                | Record::EarningOver(_),
            )
            | Err(_) => None,
        });
        let unknown = || {
            let what = format!("this node has no receipt of leg {leg} of job {job} that both sides signed");
            ApiError::new(404, "receipt_not_found", what)
        };
        let receipt = held.ok_or_else(unknown)?;
        let unpaid = || {
            let what = "no settlement among the last 100,000 entries is known here to pay for this receipt: it is not \
                        settled yet, or only the provider can show it";
            ApiError::new(409, "not_settled", what)
        };
        let paid = self.paid(&receipt.receipt().session, &receipt.provider().digest())?.ok_or_else(unpaid)?;
        let place = (paid.place.0, usize::try_from(paid.place.1).map_err(unreadable)?);
        let proof = self.books.prove_receipt(place, &receipt, &paid.receipts).map_err(unreadable)?;
        Ok(encode(&proof.ok_or_else(unpaid)?))
    }

    fn mint(&self, mint: Mint) -> BoxFuture<'_, Result<u64, ApiError>> {
        Box::pin(async move {
            // The same deposit is the same entry: a retry mints once.
            let digest = Digest::of("spillway/mint", &[mint.reference.as_bytes()]);
            let mut business = [0; 16];
            business.copy_from_slice(&digest.as_bytes()[..16]);
            let action = Action::Mint { to: mint.to, amount: mint.amount_micro, reference: mint.reference };
            Ok(self.done(business, action).await?.0)
        })
    }

    fn submit(&self, wish: Wish) -> BoxFuture<'_, Result<Done, ApiError>> {
        Box::pin(async move {
            let (business, action) = entry_of(wish)?;
            let (height, entry) = self.done(business, action).await?;
            let asked = matches!(entry.action, Action::PayoutRequest { .. });
            let payout = asked.then(|| PayoutId::derive(&entry.network, &entry.account, entry.nonce));
            Ok(Done { height, payout })
        })
    }
}
