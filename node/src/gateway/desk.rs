//! What the operator's routes need of the rest of the node, behind one trait so that the gateway runs without it in tests.
//! Invariant: nothing here changes money but [`Desk::mint`], which only the issuer's account can do.

use super::error::ApiError;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use spillway_ledger::{Account, CoSigned, Credits, JobId, NodeId, Receipt, Signed};

/// `GET /admin/status`, the node's part.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct NodeStatus {
    /// The libp2p peer id.
    pub peer_id: String,
    /// The same key as a node id.
    pub node: NodeId,
    /// Who is paid, and who pays.
    pub account: Account,
    /// Peers connected.
    pub peers: usize,
    /// Blocks in this node's copy of the books.
    pub height: u64,
    /// What the own backends serve.
    pub backends: Vec<BackendStatus>,
}

/// One model of the own backends.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct BackendStatus {
    /// The model.
    pub model: String,
    /// What runs it.
    pub engine: String,
    /// Requests it serves at once.
    pub slots: u32,
    /// Slots without work now.
    pub free: u32,
    /// Whether it answers.
    pub healthy: bool,
}

/// `GET /admin/ledger/account`
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AccountStatus {
    /// This node's account.
    pub account: Account,
    /// What it can spend, in micro-credits.
    pub balance_micro: Credits,
    /// What is locked in sessions that it opened, in micro-credits.
    pub locked_micro: Credits,
    /// The nonce of its next entry.
    pub nonce: u64,
    /// Blocks in this node's copy of the books.
    pub height: u64,
}

/// The body of `POST /admin/ledger/mint`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mint {
    /// Who gets them.
    pub to: Account,
    /// How many micro-credits.
    pub amount_micro: Credits,
    /// What they stand for: 1 to 64 printable ASCII characters, each used once.
    pub reference: String,
}

/// A receipt for people; its bytes are the proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReceiptView {
    /// The job.
    pub job: String,
    /// Which part of the job.
    pub leg: u32,
    /// The key that signed for the provider.
    pub provider: String,
    /// The key that signed for the consumer, once it has.
    pub consumer: Option<String>,
    /// The model.
    pub model: String,
    /// Work units read.
    pub input: u64,
    /// Work units delivered.
    pub output: u64,
    /// The cost in micro-credits.
    pub cost_micro: Credits,
    /// From admission to the first unit delivered.
    pub first_token_ms: u32,
    /// From admission to the end.
    pub total_ms: u32,
    /// Why it ended.
    pub finish: String,
    /// Whether both have signed.
    pub both: bool,
    /// The signed document, in hexadecimal.
    pub bytes: String,
}

impl ReceiptView {
    /// Reads the bytes of a `Record::Receipt`; `None` if their signatures do not hold.
    #[must_use]
    pub fn read(both: bool, bytes: &[u8]) -> Option<Self> {
        let (signed, consumer) = if both {
            let both = CoSigned::from_bytes(bytes).ok()?;
            (both.provider().clone(), Some(both.consumer().0.to_string()))
        } else {
            (Signed::<Receipt>::from_bytes(bytes).ok()?, None)
        };
        let receipt = signed.value();
        Some(Self {
            job: receipt.job.to_string(),
            leg: receipt.leg,
            provider: signed.signer().to_string(),
            consumer,
            model: receipt.model.clone(),
            input: receipt.usage.input,
            output: receipt.usage.output,
            cost_micro: receipt.cost,
            first_token_ms: receipt.first_token_ms,
            total_ms: receipt.total_ms,
            finish: receipt.finish.clone(),
            both,
            bytes: hex::encode(bytes),
        })
    }
}

/// The rest of the node. Everything but [`Self::mint`] may read the disk and is called where that may block.
pub trait Desk: Send + Sync + 'static {
    /// How the node is.
    fn status(&self) -> NodeStatus;

    /// How the node's account is.
    fn account(&self) -> AccountStatus;

    /// Encoded certified blocks from height `from` on, at most `max`, in order.
    ///
    /// # Errors
    /// 500 if the books cannot be read.
    fn blocks(&self, from: u64, max: usize) -> Result<Vec<Vec<u8>>, ApiError>;

    /// What the entries from height `from` on did: at most `max` lines, as [`LedgerLog`](super::ledger_log::LedgerLog) writes.
    ///
    /// # Errors
    /// 500 if the books cannot be read.
    fn log(&self, from: u64, max: usize) -> Result<Vec<serde_json::Value>, ApiError>;

    /// Receipts that this node holds, of one job or of all: at most `max`.
    ///
    /// # Errors
    /// 500 if the store cannot be read.
    fn receipts(&self, job: Option<JobId>, max: usize) -> Result<Vec<ReceiptView>, ApiError>;

    /// Makes credits, if this node's account is the issuer's; gives the height of the block that says so.
    ///
    /// # Errors
    /// 400 with the book's own words if it refuses.
    fn mint(&self, mint: Mint) -> BoxFuture<'_, Result<u64, ApiError>>;
}
