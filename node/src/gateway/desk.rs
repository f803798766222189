//! What the operator's routes need of the rest of the node, behind one trait so that the gateway runs without it in tests.
//! Invariant: nothing here changes money but [`Desk::mint`] and [`Desk::submit`], which put an entry of the node's own
//! account on the ledger.

use super::error::ApiError;
use super::ledger_log::LogQuery;
use crate::payouts::Waiting;
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use spillway_ledger::{
    Account, Book, CoSigned, Credits, Digest, JobId, NodeId, PayoutId, Receipt, RejectReason, SessionId, Signed,
};

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
    /// The account.
    pub account: Account,
    /// What it can spend, in micro-credits.
    pub balance_micro: Credits,
    /// What is locked in sessions that it opened, in micro-credits.
    pub locked_micro: Credits,
    /// What waits to be paid out to it, in micro-credits.
    pub payouts_micro: Credits,
    /// What it has put at stake, in micro-credits.
    pub bond_micro: Credits,
    /// What of its stake comes back later, in micro-credits.
    pub unbonding_micro: Credits,
    /// When, in Unix milliseconds of block time; 0 where nothing does.
    pub unbonding_due_ms: u64,
    /// The nonce of its next entry.
    pub nonce: u64,
    /// Blocks in this node's copy of the books.
    pub height: u64,
}

impl AccountStatus {
    /// What `book` says of `account`.
    #[must_use]
    pub fn of(book: &Book, account: Account, height: u64) -> Self {
        // Parts of the supply, so their sums can be written down.
        let sum = |amounts: &mut dyn Iterator<Item = Credits>| Credits::new(amounts.map(Credits::micro).sum());
        let sessions = book.sessions().filter(|(_, session)| session.consumer == account);
        let payouts = book.payouts().filter(|(_, payout)| payout.account == account);
        let state = book.account_state(&account);
        Self {
            account,
            balance_micro: state.balance,
            locked_micro: sum(&mut sessions.map(|(_, session)| session.locked())),
            payouts_micro: sum(&mut payouts.map(|(_, payout)| payout.amount)),
            bond_micro: state.bond,
            unbonding_micro: state.unbonding,
            unbonding_due_ms: state.unbonding_due_ms,
            nonce: state.nonce,
            height,
        }
    }
}

/// Every payout that waits in `book`.
#[must_use]
pub fn waiting_in(book: &Book) -> Vec<Waiting> {
    let waiting = |(payout, state): (&PayoutId, &spillway_ledger::PayoutState)| Waiting {
        payout: payout.0,
        account: state.account,
        amount_micro: state.amount,
        payee: state.payee,
        height: state.height,
        time_ms: state.time_ms,
    };
    book.payouts().map(waiting).collect()
}

/// The body of `POST /admin/ledger/mint`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mint {
    /// Who gets them.
    pub to: Account,
    /// How many micro-credits.
    pub amount_micro: Credits,
    /// What they stand for: 1 to 64 printable ASCII characters, each used once.
    pub reference: String,
}

/// What the node's own account wants on the ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum Wish {
    /// To be paid in cash.
    PayoutRequest {
        /// How many micro-credits.
        amount_micro: Credits,
        /// The digest of the payee document.
        payee: Digest,
        /// A name under which it is done once.
        once: Option<String>,
    },
    /// The issuer: a payout was paid.
    Burn {
        /// Which.
        payout: PayoutId,
        /// The bank's or processor's reference.
        reference: String,
    },
    /// The issuer: a payout is given back.
    PayoutReject {
        /// Which.
        payout: PayoutId,
        /// Why.
        reason: RejectReason,
    },
    /// To put credits at stake.
    Bond {
        /// How many micro-credits.
        amount_micro: Credits,
        /// A name under which it is done once.
        once: Option<String>,
    },
    /// To have some of the stake back.
    Unbond {
        /// How many micro-credits.
        amount_micro: Credits,
        /// A name under which it is done once.
        once: Option<String>,
    },
    /// To give credits to another account.
    Transfer {
        /// To whom.
        to: Account,
        /// How many micro-credits.
        amount_micro: Credits,
        /// A name under which it is done once.
        once: Option<String>,
    },
}

/// What became of a [`Wish`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Done {
    /// The block that it is in.
    pub height: u64,
    /// The payout that it asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payout: Option<PayoutId>,
}

/// Where a receipt was paid for, and that it was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SettledView {
    /// The block of the settlement.
    pub height: u64,
    /// Its place in the block, from 0.
    pub entry: u64,
    /// The Merkle root that it names.
    pub root: Digest,
    /// The receipt's place under that root, from 0.
    pub index: u64,
    /// How many receipts lie under it.
    pub count: u64,
    /// The digests beside the path, from the receipt upwards.
    pub path: Vec<Digest>,
}

/// A receipt for people; its bytes are the proof.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct ReceiptView {
    /// The job.
    pub job: String,
    /// Which part of the job.
    pub leg: u32,
    /// The session that pays.
    pub session: SessionId,
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
    /// When it ended, in Unix milliseconds by the provider's clock.
    pub time_ms: u64,
    /// What the provider signed, as the leaf under a settlement's root.
    pub leaf: Digest,
    /// The settlement that pays for it; only told when one job is asked for, and once there is one.
    pub settled: Option<SettledView>,
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
            session: receipt.session,
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
            time_ms: receipt.time_ms,
            leaf: signed.digest(),
            settled: None,
            bytes: hex::encode(bytes),
        })
    }
}

/// The rest of the node. Everything but [`Self::mint`] and [`Self::submit`] may read the disk and is called where that may
/// block.
pub trait Desk: Send + Sync + 'static {
    /// How the node is.
    fn status(&self) -> NodeStatus;

    /// How an account is: without one, the node's own.
    fn account(&self, account: Option<Account>) -> AccountStatus;

    /// Encoded certified blocks from height `from` on, at most `max`, in order.
    ///
    /// # Errors
    /// 500 if the books cannot be read.
    fn blocks(&self, from: u64, max: usize) -> Result<Vec<Vec<u8>>, ApiError>;

    /// What the entries did that are asked for: at most `max` lines, as [`LedgerLog`](super::ledger_log::LedgerLog)
    /// writes, and whether there were more.
    ///
    /// # Errors
    /// 500 if the books cannot be read.
    fn log(&self, query: &LogQuery, max: usize) -> Result<(Vec<serde_json::Value>, bool), ApiError>;

    /// Receipts that this node holds, of one job or of all: at most `max`.
    ///
    /// # Errors
    /// 500 if the store cannot be read.
    fn receipts(&self, job: Option<JobId>, max: usize) -> Result<Vec<ReceiptView>, ApiError>;

    /// The payouts that wait for the issuer, and the height at which they do.
    fn payouts(&self) -> (Vec<Waiting>, u64);

    /// The proof file of what an account has: without one, the node's own.
    ///
    /// # Errors
    /// 404 for an account that the books have never seen.
    fn prove_account(&self, account: Option<Account>) -> Result<Vec<u8>, ApiError>;

    /// The proof file of one leg of a job: that it was done, and that a settlement pays for it.
    ///
    /// # Errors
    /// 404 where this node has no receipt of it that both signed, 409 where no settlement pays for it yet or this node
    /// cannot show it.
    fn prove_receipt(&self, job: JobId, leg: u32) -> Result<Vec<u8>, ApiError>;

    /// Makes credits, if this node's account is the issuer's; gives the height of the block that says so.
    ///
    /// # Errors
    /// 400 with the book's own words if it refuses.
    fn mint(&self, mint: Mint) -> BoxFuture<'_, Result<u64, ApiError>>;

    /// Puts an entry of the node's account on the ledger.
    ///
    /// # Errors
    /// 400 with the book's own words if it refuses.
    fn submit(&self, wish: Wish) -> BoxFuture<'_, Result<Done, ApiError>>;
}
