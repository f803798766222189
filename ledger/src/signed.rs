//! Documents with a signature.
//! Invariant: a [`Signed`] value exists only if its signature held over the bytes it keeps, so nobody asks again.

use std::fmt;

use wincode::{SchemaRead, SchemaWrite};

use crate::codec::{CodecError, Document, decode, encode};
use crate::keys::{Digest, PublicKey, SecretKey, Signature};

/// What the signer, the signature and the length of the document take beside it, in bytes.
pub const ENVELOPE_BYTES: usize = 32 + 64 + 8;

/// A signed document's plain wire form, to be embedded in frames and blocks. Nothing here is checked yet.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct SignedBytes {
    /// Who is said to have signed.
    pub signer: PublicKey,
    /// The signature over the document's domain and bytes.
    pub signature: Signature,
    /// The encoded document.
    pub document: Vec<u8>,
}

impl SignedBytes {
    /// What this takes when encoded, in bytes.
    pub fn encoded_len(&self) -> usize {
        ENVELOPE_BYTES + self.document.len()
    }

    /// The digest of signer, signature and document: a change to any of them changes it.
    pub fn digest(&self) -> Digest {
        Digest::of("spillway/signed/1", &[self.signer.as_bytes(), self.signature.as_bytes(), &self.document])
    }
}

/// Why bytes are not a validly signed document, in order of precedence. The sender's fault; no retry helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SignedError {
    /// More bytes than the type allows.
    #[error("{got} bytes, where at most {max} are allowed")]
    TooLong {
        /// The limit in bytes.
        max: usize,
        /// What came, in bytes.
        got: usize,
    },
    /// Not the format of an envelope, or of the document inside.
    #[error("the bytes are not in this document's format")]
    Malformed,
    /// The signer's key is weak or no key at all.
    #[error("the signer's key is weak or invalid")]
    WeakKey,
    /// The signature does not hold.
    #[error("the signature does not hold")]
    BadSignature,
    /// Signed, but not how this document is written.
    #[error("not in canonical form: {0}")]
    NotCanonical(&'static str),
}

impl From<CodecError> for SignedError {
    fn from(error: CodecError) -> Self {
        match error {
            CodecError::TooLong { max, got } => SignedError::TooLong { max, got },
            CodecError::Malformed => SignedError::Malformed,
            CodecError::NotCanonical(what) => SignedError::NotCanonical(what),
        }
    }
}

/// A document whose signature holds, with the bytes it holds over.
#[derive(Clone, PartialEq, Eq)]
pub struct Signed<T> {
    value: T,
    wire: SignedBytes,
}

impl<T: Document> Signed<T> {
    /// Signs `value`.
    ///
    /// # Panics
    /// If `value` breaks its own [`Document::check`] or size limit: check what comes from elsewhere first, or use
    /// [`Signed::try_sign`].
    pub fn sign(value: T, key: &SecretKey) -> Self {
        Self::try_sign(value, key).expect("what we sign keeps its document's rules")
    }

    /// Signs `value` if it keeps its type's rules, so that every reader will accept it.
    pub fn try_sign(value: T, key: &SecretKey) -> Result<Self, CodecError> {
        value.check().map_err(CodecError::NotCanonical)?;
        let document = encode(&value);
        if document.len() > T::BYTES_MAX {
            return Err(CodecError::TooLong { max: T::BYTES_MAX, got: document.len() });
        }
        let signature = key.sign(T::DOMAIN, &document);
        Ok(Signed { value, wire: SignedBytes { signer: key.public(), signature, document } })
    }

    /// Accepts a wire form: size, then key, then signature, and only then is the document decoded.
    pub fn open(wire: SignedBytes) -> Result<Self, SignedError> {
        if wire.document.len() > T::BYTES_MAX {
            return Err(SignedError::TooLong { max: T::BYTES_MAX, got: wire.document.len() });
        }
        match wire.signer.try_verify(T::DOMAIN, &wire.document, &wire.signature) {
            Ok(true) => {}
            Ok(false) => return Err(SignedError::BadSignature),
            Err(_) => return Err(SignedError::WeakKey),
        }
        Self::open_certified(wire)
    }

    /// Accepts a wire form whose signature was already checked by those who signed the block it lies in. Only for
    /// blocks whose certificate holds.
    pub(crate) fn open_certified(wire: SignedBytes) -> Result<Self, SignedError> {
        let value = decode(&wire.document)?;
        Ok(Signed { value, wire })
    }

    /// Accepts what [`Signed::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, SignedError> {
        let max = ENVELOPE_BYTES + T::BYTES_MAX;
        if bytes.len() > max {
            return Err(SignedError::TooLong { max, got: bytes.len() });
        }
        let wire: SignedBytes = wincode::deserialize_exact(bytes).map_err(|_| SignedError::Malformed)?;
        Self::open(wire)
    }

    /// The document.
    pub fn value(&self) -> &T {
        &self.value
    }

    /// Gives the document up.
    pub fn into_value(self) -> T {
        self.value
    }

    /// Whose signature it is.
    pub fn signer(&self) -> PublicKey {
        self.wire.signer
    }

    /// The signature.
    pub fn signature(&self) -> &Signature {
        &self.wire.signature
    }

    /// The document's bytes, exactly as they were signed.
    pub fn bytes(&self) -> &[u8] {
        &self.wire.document
    }

    /// Names the document and its signer; not the signature, of which one signer can make many.
    pub fn digest(&self) -> Digest {
        Digest::of(T::DOMAIN, &[self.wire.signer.as_bytes(), &self.wire.document])
    }

    /// The wire form.
    pub fn to_wire(&self) -> SignedBytes {
        self.wire.clone()
    }

    /// The wire form, borrowed.
    pub fn wire(&self) -> &SignedBytes {
        &self.wire
    }

    /// The wire form's bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        wincode::serialize(&self.wire).expect("a document is far below the encoder's 4 MiB limit")
    }
}

impl<T: fmt::Debug> fmt::Debug for Signed<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signed").field("value", &self.value).field("signer", &self.wire.signer.short()).finish()
    }
}
