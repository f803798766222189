//! Keys, signatures and digests.
//! Invariant: a signature counts only under `verify_strict` and a key that is not weak, everywhere. Looser rules accept
//! a forged signature under a small-order key, and nodes that mix rules fork.

use std::cell::RefCell;
use std::fmt;
use std::str::FromStr;

use ed25519_dalek::{Signer, SigningKey, VerifyingKey};
use wincode::{SchemaRead, SchemaWrite};
use zeroize::Zeroizing;

/// Why a key, digest or id could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KeyError {
    /// Not the stated number of hexadecimal digits.
    #[error("expected {digits} hexadecimal digits")]
    NotHex {
        /// How many digits there should be.
        digits: usize,
    },
    /// The bytes are no point on the curve, or not in their one canonical form.
    #[error("the bytes are not an ed25519 public key")]
    Invalid,
    /// A key of small order, under which anyone can forge.
    #[error("the key is weak: anyone could sign for it")]
    Weak,
}

/// Gives a fixed-size byte newtype its text form: lower-case hex in `Display`, `FromStr` and serde.
macro_rules! hex_text {
    ($name:ident, $len:expr, |$bytes:ident| $build:expr, |$self_:ident| $read:expr) => {
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let $self_ = self;
                f.write_str(&hex::encode($read))
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let $self_ = self;
                write!(f, "{}({})", stringify!($name), hex::encode($read))
            }
        }

        impl FromStr for $name {
            type Err = $crate::keys::KeyError;

            fn from_str(text: &str) -> Result<Self, Self::Err> {
                let mut $bytes = [0_u8; $len];
                hex::decode_to_slice(text, &mut $bytes)
                    .map_err(|_| $crate::keys::KeyError::NotHex { digits: 2 * $len })?;
                $build
            }
        }

        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str> as serde::Deserialize>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
pub(crate) use hex_text;

/// How many decoded keys a thread remembers; some 200 bytes each.
const DECODED_MAX: usize = 256;

/// An ed25519 public key. One decoded from the wire is not yet known to be valid: [`PublicKey::verify`] finds out, and
/// [`PublicKey::is_strong`] tells it apart where nothing is verified.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct PublicKey([u8; 32]);

hex_text!(PublicKey, 32, |bytes| PublicKey::from_bytes(&bytes), |key| key.0);

impl PublicKey {
    /// Reads a key, refusing one that is no canonical curve point or that is weak.
    pub fn from_bytes(bytes: &[u8; 32]) -> Result<Self, KeyError> {
        let key = PublicKey(*bytes);
        key.decode().map(|_| key)
    }

    /// As [`PublicKey::decode`], remembering: the same few keys sign most of what a thread sees.
    fn decoded(&self) -> Result<VerifyingKey, KeyError> {
        thread_local! {
            static DECODED: RefCell<[Option<VerifyingKey>; DECODED_MAX]> = const { RefCell::new([None; DECODED_MAX]) };
        }
        DECODED.with_borrow_mut(|decoded| {
            // Keys are as good as random; who makes some that share a slot only makes them slow.
            let slot = &mut decoded[usize::from(u16::from_le_bytes([self.0[0], self.0[1]])) % DECODED_MAX];
            if let Some(key) = slot.filter(|key| key.as_bytes() == &self.0) {
                return Ok(key);
            }
            let key = self.decode()?;
            *slot = Some(key);
            Ok(key)
        })
    }

    fn decode(&self) -> Result<VerifyingKey, KeyError> {
        let bytes = &self.0;
        // y is reduced modulo p when read, so p and above would be second names for small y.
        let above_p = bytes[31] & 0x7f == 0x7f && bytes[1..31].iter().all(|&b| b == 0xff) && bytes[0] >= 0xed;
        if above_p {
            return Err(KeyError::Invalid);
        }
        let key = VerifyingKey::from_bytes(bytes).map_err(|_| KeyError::Invalid)?;
        if key.is_weak() {
            return Err(KeyError::Weak);
        }
        Ok(key)
    }

    /// The key's 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Whether [`PublicKey::from_bytes`] would accept these bytes.
    pub fn is_strong(&self) -> bool {
        self.decoded().is_ok()
    }

    /// The first eight hexadecimal digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }

    /// Whether `signature` is this key's over `bytes` under `domain`. False for a weak or invalid key.
    pub fn verify(&self, domain: &str, bytes: &[u8], signature: &Signature) -> bool {
        self.try_verify(domain, bytes, signature) == Ok(true)
    }

    /// As [`PublicKey::verify`], with a weak or invalid key as an error.
    pub(crate) fn try_verify(&self, domain: &str, bytes: &[u8], signature: &Signature) -> Result<bool, KeyError> {
        let key = self.decoded()?;
        let signature = ed25519_dalek::Signature::from_bytes(&signature.0);
        Ok(key.verify_strict(&message(domain, bytes), &signature).is_ok())
    }
}

/// What is signed: the domain, a zero byte, the document. No domain holds a zero byte, so a signature given under one
/// domain can never be shown under another.
fn message(domain: &str, bytes: &[u8]) -> Vec<u8> {
    debug_assert!(!domain.as_bytes().contains(&0), "a domain holds no zero byte");
    let mut message = Vec::with_capacity(domain.len() + 1 + bytes.len());
    message.extend_from_slice(domain.as_bytes());
    message.push(0);
    message.extend_from_slice(bytes);
    message
}

/// Whom credits belong to.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct Account(pub PublicKey);

hex_text!(Account, 32, |bytes| PublicKey::from_bytes(&bytes).map(Account), |account| account.0.0);

/// A peer in the network: the ed25519 key of its libp2p identity.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct NodeId(pub PublicKey);

hex_text!(NodeId, 32, |bytes| PublicKey::from_bytes(&bytes).map(NodeId), |node| node.0.0);

/// An ed25519 signature.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct Signature([u8; 64]);

hex_text!(Signature, 64, |bytes| Ok(Signature(bytes)), |signature| signature.0);

impl Signature {
    /// Takes the 64 bytes as they are; whether they sign anything is for [`PublicKey::verify`] to say.
    pub const fn from_bytes(bytes: [u8; 64]) -> Self {
        Signature(bytes)
    }

    /// The signature's 64 bytes.
    pub const fn as_bytes(&self) -> &[u8; 64] {
        &self.0
    }
}

/// A key that can sign. Wiped from memory when dropped; never printed.
#[derive(Clone)]
pub struct SecretKey(SigningKey);

impl SecretKey {
    /// The key that belongs to `seed`, which must come from a secure random source.
    pub fn generate(seed: [u8; 32]) -> Self {
        let seed = Zeroizing::new(seed);
        SecretKey(SigningKey::from_bytes(&seed))
    }

    /// Reads a key from what [`SecretKey::to_bytes`] gave.
    pub fn from_bytes(bytes: &[u8; 32]) -> Self {
        SecretKey(SigningKey::from_bytes(bytes))
    }

    /// The key's 32 secret bytes, wiped when dropped.
    pub fn to_bytes(&self) -> Zeroizing<[u8; 32]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// The public half.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key().to_bytes())
    }

    /// The account that this key spends from.
    pub fn account(&self) -> Account {
        Account(self.public())
    }

    /// Signs `bytes` under `domain`, which names the kind of document.
    pub fn sign(&self, domain: &str, bytes: &[u8]) -> Signature {
        Signature(self.0.sign(&message(domain, bytes)).to_bytes())
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public().short())
    }
}

/// A blake3 digest.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub struct Digest([u8; 32]);

hex_text!(Digest, 32, |bytes| Ok(Digest(bytes)), |digest| digest.0);

impl Digest {
    /// Thirty-two zero bytes: no known input has this digest, so it stands for "nothing".
    pub const ZERO: Digest = Digest([0; 32]);

    /// The digest of `parts` under `domain`. Each part's length goes in too: moving a byte between parts changes it.
    pub fn of(domain: &str, parts: &[&[u8]]) -> Digest {
        let mut hasher = blake3::Hasher::new();
        for part in std::iter::once(domain.as_bytes()).chain(parts.iter().copied()) {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part);
        }
        Digest(*hasher.finalize().as_bytes())
    }

    /// Takes 32 bytes that are already a digest.
    pub const fn from_bytes(bytes: [u8; 32]) -> Digest {
        Digest(bytes)
    }

    /// The digest's 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The first eight hexadecimal digits, for people.
    pub fn short(&self) -> String {
        hex::encode(&self.0[..4])
    }
}
