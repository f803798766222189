//! One key, two names: a [`NodeId`] is the raw ed25519 key, libp2p's peer id is a multihash of the same key.
//! Invariant: a peer id that is not an ed25519 key, or is a weak one, has no [`NodeId`] and gets no connection.

use libp2p::PeerId;
use libp2p::identity::{Keypair, PublicKey as Libp2pKey, ed25519};
use spillway_ledger::{NodeId, PublicKey, SecretKey};

/// The multihash code of a key that is written out rather than hashed; ed25519 keys are.
const IDENTITY_MULTIHASH: u64 = 0;

/// The id does not name a usable ed25519 key; no retry helps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotAPeer {
    /// Not a peer id at all.
    #[error("not a libp2p peer id")]
    Malformed,
    /// A peer id of another kind of key.
    #[error("the peer's key is not ed25519")]
    NotEd25519,
    /// A point that is not on the curve, or a weak one.
    #[error("the peer's ed25519 key is invalid or weak")]
    BadKey,
}

/// The libp2p identity of a node key.
pub(crate) fn keypair(key: &SecretKey) -> Keypair {
    let mut bytes = key.to_bytes();
    Keypair::ed25519_from_bytes(bytes.as_mut_slice()).expect("32 bytes are an ed25519 secret key")
}

/// The peer id of a node.
pub(crate) fn peer_id(node: &NodeId) -> Result<PeerId, NotAPeer> {
    let key = ed25519::PublicKey::try_from_bytes(node.0.as_bytes()).map_err(|_| NotAPeer::BadKey)?;
    Ok(PeerId::from_public_key(&Libp2pKey::from(key)))
}

/// The node behind a peer id.
pub(crate) fn node_id(peer: &PeerId) -> Result<NodeId, NotAPeer> {
    let hash = peer.as_ref();
    if hash.code() != IDENTITY_MULTIHASH {
        return Err(NotAPeer::NotEd25519);
    }
    let key = Libp2pKey::try_decode_protobuf(hash.digest()).map_err(|_| NotAPeer::NotEd25519)?;
    let key = key.try_into_ed25519().map_err(|_| NotAPeer::NotEd25519)?;
    PublicKey::from_bytes(&key.to_bytes()).map(NodeId).map_err(|_| NotAPeer::BadKey)
}

/// The peer id of `node` in its usual text form, such as `12D3KooW…`.
///
/// # Errors
/// [`NotAPeer::BadKey`] if the node's key is no point on the curve.
pub fn peer_of(node: &NodeId) -> Result<String, NotAPeer> {
    peer_id(node).map(|peer| peer.to_string())
}

/// The node that a peer id in text form names.
///
/// # Errors
/// In the order of [`NotAPeer`].
pub fn node_of(peer: &str) -> Result<NodeId, NotAPeer> {
    node_id(&peer.parse::<PeerId>().map_err(|_| NotAPeer::Malformed)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn node_and_peer_id_name_the_same_key() {
        for seed in 0..8 {
            let key = SecretKey::generate([seed; 32]);
            let node = NodeId(key.public());
            let peer = peer_id(&node).expect("a generated key is valid");
            assert_eq!(keypair(&key).public().to_peer_id(), peer, "seed {seed}");
            assert_eq!(node_id(&peer), Ok(node), "seed {seed}");
            assert_eq!(node_of(&peer_of(&node).expect("valid")), Ok(node), "seed {seed}");
        }
    }

    #[test]
    fn other_peer_ids_are_refused() {
        let cases = [
            ("", NotAPeer::Malformed),
            ("not a peer", NotAPeer::Malformed),
            // A hashed (RSA-style) peer id.
            ("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", NotAPeer::NotEd25519),
            // An identity multihash of a secp256k1 key.
            ("16Uiu2HAmSyq9KxvQwMe51ciXWTcXYwXZT3PodcUYDmyAkJvsqXAq", NotAPeer::NotEd25519),
        ];
        for (text, error) in cases {
            assert_eq!(node_of(text), Err(error), "{text}");
        }
    }
}
