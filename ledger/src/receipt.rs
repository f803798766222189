//! What was done for whom at what price, signed by both sides.
//! Invariant: a [`CoSigned`] receipt exists only if both signatures hold over the same bytes.

use std::fmt;
use std::str::FromStr;

use wincode::{SchemaRead, SchemaWrite};

pub use crate::merkle::{MerkleProof, merkle_proof, merkle_root, verify_proof};

use crate::codec::Document;
use crate::keys::{Digest, PublicKey, SecretKey, Signature, hex_text};
use crate::money::{Credits, Price, Usage};
use crate::signed::{ENVELOPE_BYTES, Signed, SignedBytes, SignedError};
use crate::voucher::{NetworkId, SessionId};

/// The consumer's half is given under its own domain: a provider's signature can never stand in for it.
const CONSUMER_DOMAIN: &str = "spillway/receipt/consumer/1";

/// The longest model name in a receipt, in bytes.
pub const MODEL_BYTES_MAX: usize = 256;
/// The longest job kind or finish reason in a receipt, in bytes.
pub const WORD_BYTES_MAX: usize = 32;

/// Names a job.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct JobId(pub [u8; 16]);

hex_text!(JobId, 16, |bytes| Ok(JobId(bytes)), |job| job.0);

/// One leg of a job, done by one provider.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Receipt {
    /// The network that the session was opened on.
    pub network: NetworkId,
    /// The session that pays.
    pub session: SessionId,
    /// The job.
    pub job: JobId,
    /// Which part of the job this is, from 0: a job continued elsewhere has several.
    pub leg: u32,
    /// The model's name, at most [`MODEL_BYTES_MAX`] bytes.
    pub model: String,
    /// The digest of the weights the provider says it ran.
    pub weights: Digest,
    /// What was asked for, such as `chat`; at most [`WORD_BYTES_MAX`] bytes.
    pub kind: String,
    /// The digest of what was asked.
    pub prompt: Digest,
    /// The digest of the bytes delivered.
    pub transcript: Digest,
    /// The work billed.
    pub usage: Usage,
    /// The price it was billed at.
    pub price: Price,
    /// What it cost.
    pub cost: Credits,
    /// From admission to the first unit delivered, in milliseconds.
    pub first_token_ms: u32,
    /// From admission to the end, in milliseconds.
    pub total_ms: u32,
    /// Why it ended, such as `stop`; at most [`WORD_BYTES_MAX`] bytes.
    pub finish: String,
    /// When it ended, in Unix milliseconds by the provider's clock.
    pub time_ms: u64,
}

impl Document for Receipt {
    const DOMAIN: &'static str = "spillway/receipt/1";
    const BYTES_MAX: usize = 1024;

    fn check(&self) -> Result<(), &'static str> {
        if self.model.len() > MODEL_BYTES_MAX {
            return Err("model is longer than 256 bytes");
        }
        if self.kind.len() > WORD_BYTES_MAX {
            return Err("kind is longer than 32 bytes");
        }
        if self.finish.len() > WORD_BYTES_MAX {
            return Err("finish is longer than 32 bytes");
        }
        Ok(())
    }
}

/// A receipt that both sides signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoSigned {
    provider: Signed<Receipt>,
    consumer: (PublicKey, Signature),
}

/// A co-signed receipt's wire form.
#[derive(SchemaRead, SchemaWrite)]
struct CoSignedBytes {
    provider: SignedBytes,
    consumer: PublicKey,
    signature: Signature,
}

impl CoSigned {
    /// The most bytes that [`CoSigned::to_bytes`] gives.
    pub const BYTES_MAX: usize = ENVELOPE_BYTES + Receipt::BYTES_MAX + 32 + 64;

    /// The consumer's consent to a receipt that the provider signed.
    pub fn co_sign(receipt: Signed<Receipt>, consumer: &SecretKey) -> CoSigned {
        let signature = consumer.sign(CONSUMER_DOMAIN, receipt.bytes());
        CoSigned { provider: receipt, consumer: (consumer.public(), signature) }
    }

    /// Joins the provider's receipt with the consumer's half that came separately.
    pub fn join(receipt: Signed<Receipt>, consumer: PublicKey, signature: Signature) -> Result<CoSigned, SignedError> {
        match consumer.try_verify(CONSUMER_DOMAIN, receipt.bytes(), &signature) {
            Ok(true) => {}
            Ok(false) => return Err(SignedError::BadSignature),
            Err(_) => return Err(SignedError::WeakKey),
        }
        Ok(CoSigned { provider: receipt, consumer: (consumer, signature) })
    }

    /// Whether the two signatures are those of `provider` and `consumer`; that they hold is known already.
    pub fn verify(&self, provider: &PublicKey, consumer: &PublicKey) -> bool {
        self.provider.signer() == *provider && self.consumer.0 == *consumer
    }

    /// The receipt.
    pub fn receipt(&self) -> &Receipt {
        self.provider.value()
    }

    /// The receipt as the provider signed it.
    pub fn provider(&self) -> &Signed<Receipt> {
        &self.provider
    }

    /// The consumer's key and signature.
    pub fn consumer(&self) -> (PublicKey, Signature) {
        self.consumer
    }

    /// Names the receipt and both signers. The leaf under a settlement's receipts root is another: the digest of the
    /// provider's half, [`CoSigned::provider`], because a consumer may leave before it signs.
    pub fn digest(&self) -> Digest {
        let provider = self.provider.signer();
        let parts: [&[u8]; 3] = [provider.as_bytes(), self.consumer.0.as_bytes(), self.provider.bytes()];
        Digest::of("spillway/receipt/co-signed/1", &parts)
    }

    /// The wire form's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let (consumer, signature) = self.consumer;
        let wire = CoSignedBytes { provider: self.provider.to_wire(), consumer, signature };
        wincode::serialize(&wire).expect("a receipt is far below the encoder's 4 MiB limit")
    }

    /// Accepts what [`CoSigned::to_bytes`] gave, if both signatures hold.
    pub fn from_bytes(bytes: &[u8]) -> Result<CoSigned, SignedError> {
        if bytes.len() > Self::BYTES_MAX {
            return Err(SignedError::TooLong { max: Self::BYTES_MAX, got: bytes.len() });
        }
        let wire: CoSignedBytes = wincode::deserialize_exact(bytes).map_err(|_| SignedError::Malformed)?;
        CoSigned::join(Signed::open(wire.provider)?, wire.consumer, wire.signature)
    }
}
