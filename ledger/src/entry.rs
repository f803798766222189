//! What can be asked of the ledger.
//! Invariant: an entry names its network, its account's next nonce and a height after which it is void, so none can be
//! played twice, elsewhere, or much later.

use wincode::{SchemaRead, SchemaWrite};

use crate::closing::Closing;
use crate::codec::Document;
use crate::evidence::Evidence;
use crate::keys::{Account, Digest, PublicKey};
use crate::money::{Credits, Price, Usage};
use crate::payout::{PayoutId, RejectReason};
use crate::receipt::Receipt;
use crate::signed::SignedBytes;
use crate::vote::{Proposal, Vote};
use crate::voucher::{NetworkId, SessionId, Voucher};

/// The longest deposit or payment reference, in bytes.
pub const REFERENCE_BYTES_MAX: usize = 64;

/// What an entry does.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Action {
    /// The issuer brings credits in.
    Mint {
        /// Who gets them.
        to: Account,
        /// How many.
        amount: Credits,
        /// The deposit they stand for; 1 to 64 printable ASCII characters, never used before.
        reference: String,
    },
    /// Credits change hands.
    Transfer {
        /// Who gets them.
        to: Account,
        /// How many.
        amount: Credits,
    },
    /// The entry's account locks a deposit for work by one provider. The session's id is
    /// [`SessionId::derive`] of the network, the account and this entry's nonce.
    Open {
        /// Who may settle.
        provider: Account,
        /// Who brought the job, and gets the gateway's share.
        gateway: Account,
        /// Whose signature makes a voucher.
        voucher_key: PublicKey,
        /// What is locked.
        deposit: Credits,
        /// The highest price the consumer agreed to.
        price_cap: Price,
        /// When the session ends, in Unix milliseconds of block time.
        expires_ms: u64,
    },
    /// The provider is paid what a voucher promises.
    Settle {
        /// The highest voucher, as signed by the session's voucher key.
        voucher: SignedBytes,
        /// What is claimed of it, cumulative since the session began.
        claim: Credits,
        /// The work done since the last settlement.
        usage: Usage,
        /// The Merkle root of the receipts for that work.
        receipts: Digest,
        /// Whether the session ends with this: the change goes back to the consumer.
        last: bool,
    },
    /// The consumer takes back what is left after expiry and grace.
    Refund {
        /// The session.
        session: SessionId,
    },
    /// The consumer locks more in an open session.
    TopUp {
        /// The session.
        session: SessionId,
        /// How much more.
        amount: Credits,
    },
    /// One side ends a session with what the other side signed.
    Close {
        /// The [`Closing`], signed by the account of the session's other side.
        closing: SignedBytes,
    },
    /// The entry's account puts credits at stake for its good conduct.
    Bond {
        /// How many.
        amount: Credits,
    },
    /// The entry's account wants some of its bond back; it stays at stake for the genesis' `unbond_ms`.
    Unbond {
        /// How many.
        amount: Credits,
    },
    /// The entry's account wants to be paid in cash. The payout's id is [`PayoutId::derive`] of the network, the account
    /// and this entry's nonce.
    PayoutRequest {
        /// How much is locked for it.
        amount: Credits,
        /// The digest of whom to pay in the outer world.
        payee: Digest,
    },
    /// The issuer paid, and the credits are gone.
    Burn {
        /// The payout.
        payout: PayoutId,
        /// The bank's or processor's reference; 1 to 64 printable ASCII characters, never used before.
        reference: String,
    },
    /// The issuer does not pay, and the credits go back.
    PayoutReject {
        /// The payout.
        payout: PayoutId,
        /// Why.
        reason: RejectReason,
    },
    /// Anyone shows that someone signed two things of which only one can be true.
    Evidence {
        /// The two things.
        evidence: Evidence,
    },
    /// A validator votes for a change of who the validators are.
    Elect {
        /// Who should be one, or not be one any more.
        validator: PublicKey,
        /// Which of the two.
        member: bool,
        /// From which height on, if enough have voted the same by then.
        at: u64,
    },
}

/// An action, and who asks for it when.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Entry {
    /// The network it is meant for.
    pub network: NetworkId,
    /// Who asks, and must sign.
    pub account: Account,
    /// The account's next number, from 0.
    pub nonce: u64,
    /// The last height at which it may be applied.
    pub expires_height: u64,
    /// The account's own name for what it is doing: a retry has the same, and is applied once.
    pub business: [u8; 16],
    /// What it does.
    pub action: Action,
}

impl Document for Entry {
    const DOMAIN: &'static str = "spillway/entry/1";
    const BYTES_MAX: usize = 2_560;

    fn check(&self) -> Result<(), &'static str> {
        match &self.action {
            Action::Mint { reference, .. } | Action::Burn { reference, .. } => {
                let length = 1..=REFERENCE_BYTES_MAX;
                if !length.contains(&reference.len()) || !reference.bytes().all(|b| (0x20..0x7f).contains(&b)) {
                    return Err("reference must be 1 to 64 printable ASCII characters");
                }
            }
            Action::Settle { voucher, .. } => {
                if voucher.document.len() > Voucher::BYTES_MAX {
                    return Err("voucher is longer than a voucher can be");
                }
            }
            Action::Close { closing } => {
                if closing.document.len() > Closing::BYTES_MAX {
                    return Err("closing is longer than a closing can be");
                }
            }
            Action::Evidence { evidence } => {
                let max = match evidence {
                    Evidence::Votes { .. } => Vote::BYTES_MAX,
                    Evidence::Proposals { .. } => Proposal::BYTES_MAX,
                    Evidence::Receipts { .. } => Receipt::BYTES_MAX,
                };
                let (first, second) = evidence.documents();
                if first.document.len().max(second.document.len()) > max {
                    return Err("evidence holds a document longer than its kind can be");
                }
            }
            Action::Transfer { .. }
            | Action::Open { .. }
            | Action::Refund { .. }
            | Action::TopUp { .. }
            | Action::Bond { .. }
            | Action::Unbond { .. }
            | Action::PayoutRequest { .. }
            | Action::PayoutReject { .. }
            | Action::Elect { .. } => {}
        }
        Ok(())
    }
}

// Two of the largest receipts fit an entry.
const _: () = assert!(2 * (crate::signed::ENVELOPE_BYTES + Receipt::BYTES_MAX) + 128 <= Entry::BYTES_MAX);
