//! What a peer must still know after a crash.
//! Invariant: every record replaces the one of the same key; the newest tells all.

use spillway_ledger::{
    Account, CodecError, Credits, Digest, Document, JobId, NodeId, Price, PublicKey, SessionId, SignedBytes, Usage,
    decode, encode,
};

/// A session that this node pays, as far as it has promised.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Paying {
    /// The session.
    pub session: SessionId,
    /// Whom it pays.
    pub provider: Account,
    /// What is locked.
    pub deposit: Credits,
    /// The highest price it may pay.
    pub price_cap: Price,
    /// When it ends, Unix milliseconds.
    pub expires_ms: u64,
    /// The sequence of the last voucher.
    pub sequence: u64,
    /// The total of the last voucher.
    pub promised: Credits,
    /// What was delivered for it, in money; for legs that broke off, all that was paid ahead.
    pub spent: Credits,
    /// What was delivered, in units.
    pub usage: Usage,
    /// What the ledger has paid out.
    pub settled: Credits,
}

/// A session that pays this node, as far as it has delivered.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Earning {
    /// The session.
    pub session: SessionId,
    /// Who pays.
    pub consumer: Account,
    /// The key whose vouchers count.
    pub voucher_key: PublicKey,
    /// What is locked.
    pub deposit: Credits,
    /// The highest price it may pay.
    pub price_cap: Price,
    /// When it ends, Unix milliseconds.
    pub expires_ms: u64,
    /// The best voucher, once there is one.
    pub voucher: Option<SignedBytes>,
    /// Its total.
    pub vouched: Credits,
    /// What was delivered, in money.
    pub spent: Credits,
    /// What was delivered, in units.
    pub usage: Usage,
    /// What the ledger has paid.
    pub settled: Credits,
    /// Digests of the receipts, in the order they were signed.
    pub receipts: Vec<Digest>,
}

impl Earning {
    /// The record as it is kept where receipts are kept one by one.
    #[must_use]
    pub fn without_receipts(&self) -> Self {
        Self {
            session: self.session,
            consumer: self.consumer,
            voucher_key: self.voucher_key,
            deposit: self.deposit,
            price_cap: self.price_cap,
            expires_ms: self.expires_ms,
            voucher: self.voucher.clone(),
            vouched: self.vouched,
            spent: self.spent,
            usage: self.usage,
            settled: self.settled,
            receipts: Vec::new(),
        }
    }
}

/// How far a job of this node's own client has come, for budgets and `explain`.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub struct Spending {
    /// The job.
    pub job: JobId,
    /// The provider at work on it.
    pub provider: NodeId,
    /// What it may cost by the vouchers signed so far.
    pub promised: Credits,
}

/// One thing to keep.
#[derive(Clone, Debug, PartialEq, Eq, wincode::SchemaRead, wincode::SchemaWrite)]
pub enum Record {
    /// A session that this node pays.
    Paying(Paying),
    /// A session that pays this node.
    Earning(Earning),
    /// A job's cost so far.
    Spending(Spending),
    /// A receipt; `bytes` are those of `CoSigned` once the consumer signed, of `Signed<Receipt>` until then.
    Receipt {
        /// The job.
        job: JobId,
        /// Its leg.
        leg: u32,
        /// Whether both have signed.
        both: bool,
        /// The document.
        bytes: Vec<u8>,
    },
    /// A paying session is over.
    PayingOver(SessionId),
    /// An earning session is over.
    EarningOver(SessionId),
}

/// Which records replace each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum RecordKind {
    /// Sessions that this node pays, by session.
    Paying,
    /// Sessions that pay this node, by session.
    Earning,
    /// Jobs' costs, by job.
    Spending,
    /// Receipts, by job and leg.
    Receipt,
}

impl Document for Record {
    const DOMAIN: &'static str = "spillway/record/1";
    const BYTES_MAX: usize = 4 << 20;
}

impl Record {
    /// What it replaces: its kind and key.
    #[must_use]
    pub fn key(&self) -> (RecordKind, Vec<u8>) {
        match self {
            Self::Paying(Paying { session, .. }) | Self::PayingOver(session) => {
                (RecordKind::Paying, session.0.as_bytes().to_vec())
            }
            Self::Earning(Earning { session, .. }) | Self::EarningOver(session) => {
                (RecordKind::Earning, session.0.as_bytes().to_vec())
            }
            Self::Spending(Spending { job, .. }) => (RecordKind::Spending, job.0.to_vec()),
            Self::Receipt { job, leg, .. } => {
                let mut key = job.0.to_vec();
                key.extend_from_slice(&leg.to_be_bytes());
                (RecordKind::Receipt, key)
            }
        }
    }

    /// Its bytes on disk.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads it back.
    ///
    /// # Errors
    /// As [`decode`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CodecError> {
        decode(bytes)
    }
}
