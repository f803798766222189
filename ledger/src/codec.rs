//! Documents to bytes and back: bincode version 1's format (fixed-size integers, little-endian), written by `wincode`.
//! Invariant: each document has exactly one encoding. Nothing larger than its type's limit is even looked at.

use wincode::config::DefaultConfig;
use wincode::{SchemaRead, SchemaWrite};

/// Something that is written to the wire or signed. Holds no maps, sets or floats: those have no single encoding.
pub trait Document:
    SchemaWrite<DefaultConfig, Src = Self> + for<'de> SchemaRead<'de, DefaultConfig, Dst = Self>
{
    /// Names the kind of document; signatures and digests are given under it.
    const DOMAIN: &'static str;

    /// The most bytes that one of these may take, encoded.
    const BYTES_MAX: usize;

    /// The rules that the types do not already enforce: sorted vectors, text lengths. The error names the field.
    fn check(&self) -> Result<(), &'static str> {
        Ok(())
    }
}

/// Why bytes are not a document; the sender's fault, and no retry helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CodecError {
    /// More bytes than the type allows; nothing was decoded.
    #[error("{got} bytes, where at most {max} are allowed")]
    TooLong {
        /// The limit in bytes.
        max: usize,
        /// What came, in bytes.
        got: usize,
    },
    /// Not this type's format, cut short, or followed by more.
    #[error("the bytes are not in this document's format")]
    Malformed,
    /// Decodes, but is not how this document is written.
    #[error("not in canonical form: {0}")]
    NotCanonical(&'static str),
}

/// The document's one encoding.
///
/// # Panics
/// Only for a document with a field above 4 MiB, which no [`Document::BYTES_MAX`] in this project allows.
pub fn encode<T: Document>(document: &T) -> Vec<u8> {
    wincode::serialize(document).expect("a document's fields are far below the encoder's 4 MiB limit")
}

/// Reads a document: size first, then format, then that the bytes are the one encoding, then [`Document::check`].
pub fn decode<T: Document>(bytes: &[u8]) -> Result<T, CodecError> {
    if bytes.len() > T::BYTES_MAX {
        return Err(CodecError::TooLong { max: T::BYTES_MAX, got: bytes.len() });
    }
    let document: T = wincode::deserialize_exact(bytes).map_err(|_| CodecError::Malformed)?;
    if encode(&document) != bytes {
        return Err(CodecError::NotCanonical("encoding"));
    }
    document.check().map_err(CodecError::NotCanonical)?;
    Ok(document)
}
