//! Proofs in a file: what an account has, or that a job was settled, for anyone who knows the network's id and nothing else.
//! Invariant: a proof holds or not by itself: genesis, every change of the committee since, a final header, and the path
//! under it are all inside.

use wincode::{SchemaRead, SchemaWrite};

use crate::block::{Block, Certificate, CertificateError, CertifiedBlock, Header, VALIDATORS_MAX, ValidatorSet};
use crate::chain::GENESIS_BYTES_MAX;
use crate::closing::Closing;
use crate::codec::{CodecError, Document, decode};
use crate::entry::{Action, Entry};
use crate::genesis::{Genesis, GenesisError};
use crate::keys::{Account, Digest, PublicKey};
use crate::merkle::{MerkleProof, merkle_proof, verify_proof};
use crate::money::Credits;
use crate::receipt::{CoSigned, Receipt};
use crate::signed::{ENVELOPE_BYTES, Signed, SignedBytes, SignedError};
use crate::state::{AccountProof, AccountState};
use crate::voucher::{NetworkId, SessionId, Voucher};

/// The most changes of the committee that a proof follows.
pub const HANDOVERS_MAX: usize = 1_024;

/// A committee's last block, which names the next committee.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Handover {
    /// The block's header.
    pub header: Header,
    /// What makes it final.
    pub certificate: Certificate,
    /// Whom it hands over to.
    pub next: ValidatorSet,
}

/// A final header, and all it takes to see that it is final.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Anchor {
    /// The network's genesis, as JSON without spaces or bootstrap addresses.
    pub genesis: String,
    /// Every change of the committee up to the header, in order.
    pub handovers: Vec<Handover>,
    /// The header.
    pub header: Header,
    /// What makes it final.
    pub certificate: Certificate,
}

/// Something that anyone can check.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Proof {
    /// What an account has.
    Account {
        /// The block after which it has that.
        anchor: Anchor,
        /// The path to it.
        account: AccountProof,
    },
    /// That a settlement pays for a receipt.
    Receipt {
        /// The block that the settlement is in.
        anchor: Anchor,
        /// The settlement: a signed [`Entry`].
        entry: SignedBytes,
        /// The path from the entry to the header.
        place: MerkleProof,
        /// The receipt, as [`CoSigned::to_bytes`] gave it.
        receipt: Vec<u8>,
        /// The path from the receipt to the settlement.
        within: MerkleProof,
    },
}

impl Document for Proof {
    const DOMAIN: &'static str = "spillway/proof/1";
    const BYTES_MAX: usize = 3 << 20;

    fn check(&self) -> Result<(), &'static str> {
        let (Proof::Account { anchor, .. } | Proof::Receipt { anchor, .. }) = self;
        if anchor.genesis.len() as u64 > GENESIS_BYTES_MAX {
            return Err("genesis is longer than 64 KiB");
        }
        if anchor.handovers.len() > HANDOVERS_MAX {
            return Err("handovers must be at most 1024");
        }
        let certificates = anchor.handovers.iter().map(|handover| &handover.certificate);
        if certificates.chain([&anchor.certificate]).any(|one| one.signatures.len() > VALIDATORS_MAX) {
            return Err("certificate must have at most 128 signatures");
        }
        anchor.handovers.iter().try_for_each(|handover| handover.next.check())?;
        match self {
            Proof::Account { account, .. } => account.check(),
            Proof::Receipt { entry, .. } if entry.document.len() > Entry::BYTES_MAX => {
                Err("entry is longer than an entry can be")
            }
            Proof::Receipt { receipt, .. } if receipt.len() > CoSigned::BYTES_MAX => {
                Err("receipt is longer than a receipt can be")
            }
            Proof::Receipt { .. } => Ok(()),
        }
    }
}

// An entry, a receipt and the genesis leave most of a proof's bytes to handovers.
const _: () = assert!(ENVELOPE_BYTES + Entry::BYTES_MAX + CoSigned::BYTES_MAX < Proof::BYTES_MAX / 4);

/// Why a proof shows nothing, in order of precedence.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// Not a proof at all.
    #[error("not a proof: {0}")]
    Format(CodecError),
    /// The genesis inside cannot be read.
    #[error("the proof's genesis is not one")]
    GenesisFormat,
    /// The genesis inside is wrong.
    #[error(transparent)]
    Genesis(#[from] GenesisError),
    /// A committee does not follow from the one before.
    #[error("block {height}: another committee than the one before handed over to")]
    Committee {
        /// Where.
        height: u64,
    },
    /// A header is not final.
    #[error("block {height}: certificate: {error}")]
    Certificate {
        /// Where.
        height: u64,
        /// Why not.
        error: CertificateError,
    },
    /// The account's path does not lead to the header's state.
    #[error("block {height}: the account does not lie under state_root and supply")]
    Account {
        /// Where.
        height: u64,
    },
    /// The entry's path does not lead to the header's entries.
    #[error("block {height}: the entry does not lie under entries_root")]
    Entry {
        /// Where.
        height: u64,
    },
    /// The entry is not a valid one.
    #[error("the entry: {0}")]
    EntryFormat(SignedError),
    /// The entry pays for no receipts.
    #[error("the entry is no settlement")]
    NoSettlement,
    /// The receipt's signatures or format.
    #[error("the receipt: {0}")]
    ReceiptFormat(SignedError),
    /// The receipt is of another session or network, or another provider's.
    #[error("the receipt is not of the settlement's session and provider")]
    OtherReceipt,
    /// The receipt's path does not lead to the settlement.
    #[error("the receipt does not lie under the settlement's receipts root")]
    Receipt,
}

/// What a proof shows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proven {
    /// The network: compare it with the one you mean.
    pub network: NetworkId,
    /// Its name.
    pub name: String,
    /// The block that shows it.
    pub height: u64,
    /// That block's time, in Unix milliseconds.
    pub time_ms: u64,
    /// All credits there were after it.
    pub supply: Credits,
    /// What is shown.
    pub what: Fact,
}

/// What a proof shows beside its block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// What an account had.
    Account {
        /// Whose.
        account: Account,
        /// What.
        state: AccountState,
    },
    /// What was done for whom, and that it was settled.
    Receipt {
        /// The receipt.
        receipt: Box<Receipt>,
        /// Who did it.
        provider: PublicKey,
        /// Who had it done.
        consumer: PublicKey,
    },
}

impl Proof {
    /// Reads and checks a proof file.
    pub fn verify_bytes(bytes: &[u8]) -> Result<Proven, ProofError> {
        decode::<Proof>(bytes).map_err(ProofError::Format)?.verify()
    }

    /// Checks everything, from the genesis to what is shown.
    pub fn verify(&self) -> Result<Proven, ProofError> {
        self.check().map_err(|rule| ProofError::Format(CodecError::NotCanonical(rule)))?;
        let (Proof::Account { anchor, .. } | Proof::Receipt { anchor, .. }) = self;
        let genesis = anchor.verify()?;
        let Header { height, time_ms, supply, state_root, entries_root, .. } = anchor.header;
        let what = match self {
            Proof::Account { account, .. } => {
                if !account.verify(&state_root, supply) {
                    return Err(ProofError::Account { height });
                }
                Fact::Account { account: account.account, state: account.state }
            }
            Proof::Receipt { entry, place, receipt, within, .. } => {
                if !verify_proof(&entries_root, &entry.digest(), place) {
                    return Err(ProofError::Entry { height });
                }
                settled(&genesis.network_id(), entry, receipt, within)?
            }
        };
        Ok(Proven { network: genesis.network_id(), name: genesis.name, height, time_ms, supply, what })
    }
}

/// Checks that the settlement in `entry` pays for the receipt.
fn settled(network: &NetworkId, entry: &SignedBytes, receipt: &[u8], within: &MerkleProof) -> Result<Fact, ProofError> {
    let entry: Entry = Signed::open(entry.clone()).map_err(ProofError::EntryFormat)?.into_value();
    let settlement = settlement(&entry).ok_or(ProofError::NoSettlement)?;
    let receipt = CoSigned::from_bytes(receipt).map_err(ProofError::ReceiptFormat)?;
    let (said, provider) = (receipt.receipt(), receipt.provider().signer());
    let of_session = said.network == *network && said.session == settlement.session;
    if !of_session || !settlement.sides.contains(&Some(provider)) {
        return Err(ProofError::OtherReceipt);
    }
    if !verify_proof(&settlement.receipts, &receipt.provider().digest(), within) {
        return Err(ProofError::Receipt);
    }
    Ok(Fact::Receipt { receipt: Box::new(said.clone()), provider, consumer: receipt.consumer().0 })
}

/// What a settling entry says of its receipts.
struct Settlement {
    session: SessionId,
    receipts: Digest,
    /// Those who signed: the provider is among them.
    sides: [Option<PublicKey>; 2],
}

/// Inner signatures are not looked at: an entry in a final block was valid.
fn settlement(entry: &Entry) -> Option<Settlement> {
    match &entry.action {
        Action::Settle { voucher, receipts, .. } => {
            let voucher: Voucher = decode(&voucher.document).ok()?;
            Some(Settlement { session: voucher.session, receipts: *receipts, sides: [Some(entry.account.0), None] })
        }
        Action::Close { closing } => {
            let Closing { session, receipts, .. } = decode(&closing.document).ok()?;
            Some(Settlement { session, receipts, sides: [Some(entry.account.0), Some(closing.signer)] })
        }
        Action::Mint { .. }
        | Action::Transfer { .. }
        | Action::Open { .. }
        | Action::Refund { .. }
        | Action::TopUp { .. }
        | Action::Bond { .. }
        | Action::Unbond { .. }
        | Action::PayoutRequest { .. }
        | Action::Burn { .. }
        | Action::PayoutReject { .. }
        | Action::Evidence { .. }
        | Action::Elect { .. } => None,
    }
}

impl Anchor {
    /// Checks that the header is final, and gives the genesis that it follows from.
    fn verify(&self) -> Result<Genesis, ProofError> {
        let genesis: Genesis = serde_json::from_str(&self.genesis).map_err(|_| ProofError::GenesisFormat)?;
        // Like every document, a proof has one form. No signature covers bootstrap addresses, so it carries none.
        if !genesis.bootstrap.is_empty() || serde_json::to_string(&genesis).is_ok_and(|text| text != self.genesis) {
            return Err(ProofError::GenesisFormat);
        }
        genesis.validate()?;
        let network = genesis.network_id();
        let mut committee = genesis.first_validators();
        let mut after = 0;
        for Handover { header, certificate, next } in &self.handovers {
            check_final(&network, header, certificate, &committee, after)?;
            if next.digest() != header.next_validators {
                return Err(ProofError::Committee { height: header.height });
            }
            (committee, after) = (next.clone(), header.height);
        }
        check_final(&network, &self.header, &self.certificate, &committee, after)?;
        Ok(genesis)
    }
}

fn check_final(
    network: &NetworkId,
    header: &Header,
    certificate: &Certificate,
    committee: &ValidatorSet,
    after: u64,
) -> Result<(), ProofError> {
    let height = header.height;
    if header.validators != committee.digest() || height <= after {
        return Err(ProofError::Committee { height });
    }
    certificate.verify(network, header, committee).map_err(|error| ProofError::Certificate { height, error })
}

/// The proof that the settlement at `index` of `block` pays for `receipt`, which is one of `receipts`: the digests of
/// receipts as their provider signed them, whose root the settlement names, in its order. `None` where it does not.
pub(crate) fn of_receipt(
    anchor: Anchor,
    block: &Block,
    index: usize,
    receipt: &CoSigned,
    receipts: &[Digest],
) -> Option<Proof> {
    let leaves: Vec<Digest> = block.entries.iter().map(SignedBytes::digest).collect();
    let at = receipts.iter().position(|digest| *digest == receipt.provider().digest())?;
    let proof = Proof::Receipt {
        anchor,
        entry: block.entries.get(index)?.clone(),
        place: merkle_proof(&leaves, index)?,
        receipt: receipt.to_bytes(),
        within: merkle_proof(receipts, at)?,
    };
    proof.verify().is_ok().then_some(proof)
}

/// What follows a block into the proofs of later ones: nothing, unless its committee hands over.
pub(crate) fn handover(block: &CertifiedBlock, next: &ValidatorSet) -> Option<Handover> {
    let CertifiedBlock { block, certificate } = block;
    let hands_over = block.header.next_validators != block.header.validators;
    hands_over.then(|| Handover { header: block.header, certificate: certificate.clone(), next: next.clone() })
}
