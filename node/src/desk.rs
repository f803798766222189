//! The node as its operator's routes see it: status, account, books, receipts.
//! Invariant: only reads, except for minting, which the ledger allows the issuer alone.

use crate::books::Books;
use crate::gateway::ApiError;
use crate::gateway::desk::{AccountStatus, BackendStatus, Desk, Mint, NodeStatus, ReceiptView};
use crate::gateway::ledger_log::LedgerLog;
use crate::jobs::Jobs;
use futures::future::BoxFuture;
use spillway_ledger::store::{Store, Table};
use spillway_ledger::{Action, CertifiedBlock, Credits, Digest, Genesis, JobId, NodeId};
use spillway_protocol::{Capacity, Record};
use std::sync::{Arc, Mutex};
use tokio::sync::watch;

/// Blocks read at a time while the log catches up.
const PAGE: usize = 256;

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

    fn account(&self) -> AccountStatus {
        let account = self.books.account();
        self.books.read(|book| {
            let locked = book
                .sessions()
                .filter(|(_, state)| state.consumer == account)
                .fold(0u64, |sum, (_, state)| sum.saturating_add(state.locked().micro()));
            AccountStatus {
                account,
                balance_micro: book.balance(&account),
                locked_micro: Credits::new(locked),
                nonce: book.nonce(&account),
                height: book.height(),
            }
        })
    }

    fn blocks(&self, from: u64, max: usize) -> Result<Vec<Vec<u8>>, ApiError> {
        let blocks = self.books.blocks(from, max).map_err(unreadable)?;
        Ok(blocks.iter().map(CertifiedBlock::to_bytes).collect())
    }

    fn log(&self, from: u64, max: usize) -> Result<Vec<serde_json::Value>, ApiError> {
        let mut log = self.log.lock().map_err(|_| ApiError::internal("the log of the books failed earlier"))?;
        loop {
            let blocks = self.books.blocks(log.next_height(), PAGE).map_err(unreadable)?;
            if blocks.is_empty() {
                return Ok(log.lines(from, max));
            }
            for block in blocks {
                log.push(block);
            }
        }
    }

    fn receipts(&self, job: Option<JobId>, max: usize) -> Result<Vec<ReceiptView>, ApiError> {
        let from = job.map_or_else(Vec::new, |job| job.0.to_vec());
        let rows = self.store.range(Table::Receipts, &from, max).map_err(unreadable)?;
        let mut receipts = Vec::new();
        for (key, value) in rows {
            if job.is_some_and(|job| !key.starts_with(&job.0)) {
                break;
            }
            match Record::from_bytes(&value) {
                Ok(Record::Receipt { both, bytes, .. }) => receipts.extend(ReceiptView::read(both, &bytes)),
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
        Ok(receipts)
    }

    fn mint(&self, mint: Mint) -> BoxFuture<'_, Result<u64, ApiError>> {
        Box::pin(async move {
            // The same deposit is the same entry: a retry mints once.
            let digest = Digest::of("spillway/mint", &[mint.reference.as_bytes()]);
            let mut business = [0; 16];
            business.copy_from_slice(&digest.as_bytes()[..16]);
            let action = Action::Mint { to: mint.to, amount: mint.amount_micro, reference: mint.reference };
            let refused = |error: crate::books::EntryRefused| ApiError::new(400, "ledger_refused", error.to_string());
            self.books.submit(business, action).await.map_err(refused)
        })
    }
}
