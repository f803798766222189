//! Blocks of entries, and the certificates that make them final.
//! Invariant: a header fixes its entries, its parent and the state after it.

use wincode::{SchemaRead, SchemaWrite};

use crate::codec::{Document, encode};
use crate::entry::Entry;
use crate::keys::{Digest, PublicKey, SecretKey, Signature};
use crate::merkle::merkle_root;
use crate::money::Credits;
use crate::signed::SignedBytes;
use crate::vote::{Step, Vote};
use crate::voucher::NetworkId;

/// The most entries in one block.
pub const ENTRIES_MAX: usize = 1_024;
/// The most validators, and so the most signatures in a certificate.
pub const VALIDATORS_MAX: usize = 128;

/// A block's summary.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Header {
    /// The block's number, from 1.
    pub height: u64,
    /// The digest of the block before; of block 1, the network's id.
    pub parent: Digest,
    /// When it was made, in Unix milliseconds; never before its parent.
    pub time_ms: u64,
    /// The Merkle root of its entries, signatures included.
    pub entries_root: Digest,
    /// The state after it.
    pub state_root: Digest,
    /// All credits there are after it.
    pub supply: Credits,
    /// The digest of who may make it final.
    pub validators: Digest,
    /// The digest of who may make the next block final: headers alone show how a committee changed.
    pub next_validators: Digest,
}

impl Document for Header {
    const DOMAIN: &'static str = "spillway/header/1";
    const BYTES_MAX: usize = 8 + 32 + 8 + 32 + 32 + 8 + 32 + 32;
}

impl Header {
    /// Names the block.
    pub fn digest(&self) -> Digest {
        Digest::of(Header::DOMAIN, &[&encode(self)])
    }
}

/// Entries in their order, and the header over them.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Block {
    /// The summary.
    pub header: Header,
    /// The entries, each a signed [`Entry`]; at most [`ENTRIES_MAX`].
    pub entries: Vec<SignedBytes>,
}

impl Document for Block {
    const DOMAIN: &'static str = "spillway/block/1";
    const BYTES_MAX: usize = 1 << 20;

    fn check(&self) -> Result<(), &'static str> {
        if self.entries.len() > ENTRIES_MAX {
            return Err("entries must be at most 1024");
        }
        if self.entries.iter().any(|entry| entry.document.len() > Entry::BYTES_MAX) {
            return Err("entries holds one longer than an entry can be");
        }
        Ok(())
    }
}

/// The most bytes that a block's entries may take together: what [`Block::BYTES_MAX`] leaves beside the header.
pub const ENTRIES_BYTES_MAX: usize = Block::BYTES_MAX - Header::BYTES_MAX - 8;

impl Block {
    /// The root that the header must carry for these entries.
    pub fn entries_root(entries: &[SignedBytes]) -> Digest {
        let leaves: Vec<Digest> = entries.iter().map(SignedBytes::digest).collect();
        merkle_root(&leaves)
    }
}

/// Who may make blocks final: strictly sorted keys, one vote each.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct ValidatorSet(Vec<PublicKey>);

impl Document for ValidatorSet {
    const DOMAIN: &'static str = "spillway/validators/1";
    const BYTES_MAX: usize = 8 + VALIDATORS_MAX * 32;

    fn check(&self) -> Result<(), &'static str> {
        if !(1..=VALIDATORS_MAX).contains(&self.0.len()) {
            return Err("validators must be 1 to 128 keys");
        }
        if !self.0.is_sorted_by(|a, b| a < b) {
            return Err("validators must be strictly sorted");
        }
        Ok(())
    }
}

impl ValidatorSet {
    /// The set of one: an authority that orders blocks alone.
    pub fn solo(authority: PublicKey) -> Self {
        ValidatorSet(vec![authority])
    }

    /// A set of these keys; `None` where there are none or more than [`VALIDATORS_MAX`].
    pub fn new(mut keys: Vec<PublicKey>) -> Option<Self> {
        keys.sort_unstable();
        keys.dedup();
        (1..=VALIDATORS_MAX).contains(&keys.len()).then_some(ValidatorSet(keys))
    }

    /// The keys, strictly sorted.
    pub fn keys(&self) -> &[PublicKey] {
        &self.0
    }

    /// Whether `key` may vote.
    pub fn contains(&self, key: &PublicKey) -> bool {
        self.0.binary_search(key).is_ok()
    }

    /// The set with `key` in it, or not in it. A set that would be empty or too large stays as it is.
    #[must_use]
    pub fn with(&self, key: PublicKey, member: bool) -> ValidatorSet {
        let mut keys = self.0.clone();
        keys.retain(|other| *other != key);
        keys.extend(member.then_some(key));
        ValidatorSet::new(keys).unwrap_or_else(|| self.clone())
    }

    /// How many votes make a block final: more than two thirds.
    pub fn quorum(&self) -> usize {
        self.0.len() * 2 / 3 + 1
    }

    /// Names the set in a header.
    pub fn digest(&self) -> Digest {
        let keys: Vec<&[u8]> = self.0.iter().map(|key| key.as_bytes().as_slice()).collect();
        Digest::of(ValidatorSet::DOMAIN, &keys)
    }
}

/// Why a certificate does not make a block final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// It is another block's.
    #[error("the certificate is for another block")]
    OtherBlock,
    /// Signers must be sorted, without doubles.
    #[error("the certificate's signatures are not strictly sorted by key")]
    Unsorted,
    /// Too few signatures.
    #[error("{got} signatures, where {need} are needed")]
    NoQuorum {
        /// How many there are.
        got: usize,
        /// How many there must be.
        need: usize,
    },
    /// Signed by someone who may not.
    #[error("{0} is no validator")]
    NotValidator(PublicKey),
    /// One signature does not hold.
    #[error("the signature of {0} does not hold")]
    BadSignature(PublicKey),
}

/// The votes that make a block final.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Certificate {
    /// The block's digest.
    pub block: Digest,
    /// The round in which it was decided.
    pub round: u32,
    /// Who signed the [`Vote`] that commits the block, strictly sorted by key; at most [`VALIDATORS_MAX`].
    pub signatures: Vec<(PublicKey, Signature)>,
}

impl Certificate {
    /// The certificate of a lone authority.
    pub fn solo(network: &NetworkId, header: &Header, authority: &SecretKey) -> Self {
        let signatures = vec![Certificate::sign(network, header, 0, authority)];
        Certificate { block: header.digest(), round: 0, signatures }
    }

    /// One validator's part of a certificate.
    pub fn sign(network: &NetworkId, header: &Header, round: u32, validator: &SecretKey) -> (PublicKey, Signature) {
        let vote = encode(&Certificate::vote(network, header.height, header.digest(), round));
        (validator.public(), validator.sign(Vote::DOMAIN, &vote))
    }

    /// Checks that enough of `validators` committed the block with this header.
    pub fn verify(
        &self,
        network: &NetworkId,
        header: &Header,
        validators: &ValidatorSet,
    ) -> Result<(), CertificateError> {
        if self.block != header.digest() {
            return Err(CertificateError::OtherBlock);
        }
        if !self.signatures.is_sorted_by(|a, b| a.0 < b.0) {
            return Err(CertificateError::Unsorted);
        }
        let need = validators.quorum();
        if self.signatures.len() < need {
            return Err(CertificateError::NoQuorum { got: self.signatures.len(), need });
        }
        let vote = encode(&Certificate::vote(network, header.height, self.block, self.round));
        for (key, signature) in &self.signatures {
            if !validators.contains(key) {
                return Err(CertificateError::NotValidator(*key));
            }
            if !key.verify(Vote::DOMAIN, &vote, signature) {
                return Err(CertificateError::BadSignature(*key));
            }
        }
        Ok(())
    }

    fn vote(network: &NetworkId, height: u64, block: Digest, round: u32) -> Vote {
        Vote { network: *network, height, round, step: Step::Precommit, block: Some(block) }
    }
}

/// A block that is final.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct CertifiedBlock {
    /// The block.
    pub block: Block,
    /// What makes it final.
    pub certificate: Certificate,
}

impl Document for CertifiedBlock {
    const DOMAIN: &'static str = "spillway/certified-block/1";
    const BYTES_MAX: usize = Block::BYTES_MAX + 32 + 4 + 8 + VALIDATORS_MAX * 96;

    fn check(&self) -> Result<(), &'static str> {
        self.block.check()?;
        if self.certificate.signatures.len() > VALIDATORS_MAX {
            return Err("certificate must have at most 128 signatures");
        }
        if !self.certificate.signatures.is_sorted_by(|a, b| a.0 < b.0) {
            return Err("certificate must be strictly sorted by key");
        }
        Ok(())
    }
}

impl CertifiedBlock {
    /// The encoding.
    pub fn to_bytes(&self) -> Vec<u8> {
        encode(self)
    }

    /// Reads what [`CertifiedBlock::to_bytes`] gave. Whether the block is valid and final is not checked here.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, crate::codec::CodecError> {
        crate::codec::decode(bytes)
    }
}
