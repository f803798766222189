//! What can be asked of the ledger.
//! Invariant: an entry names its network, its account's next nonce and a height after which it is void, so none can be
//! played twice, elsewhere, or much later.

use wincode::{SchemaRead, SchemaWrite};

use crate::codec::Document;
use crate::keys::{Account, Digest, PublicKey};
use crate::money::{Credits, Price, Usage};
use crate::signed::SignedBytes;
use crate::voucher::{NetworkId, SessionId, Voucher};

/// The longest deposit reference, in bytes.
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
    const BYTES_MAX: usize = 512;

    fn check(&self) -> Result<(), &'static str> {
        match &self.action {
            Action::Mint { reference, .. } => {
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
            Action::Transfer { .. } | Action::Open { .. } | Action::Refund { .. } => {}
        }
        Ok(())
    }
}
