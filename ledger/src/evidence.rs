//! Proof that someone signed two things of which only one can be true.
//! Invariant: evidence needs nothing but itself: two documents of the same place, both signed by the same key.

use wincode::{SchemaRead, SchemaWrite};

use crate::codec::encode;
use crate::keys::{Digest, PublicKey};
use crate::receipt::Receipt;
use crate::signed::{Signed, SignedBytes};
use crate::vote::{Proposal, Vote};
use crate::voucher::NetworkId;

/// Two documents that contradict each other, as they were signed.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub enum Evidence {
    /// Two votes of one validator in one step of one round.
    Votes {
        /// One [`Vote`].
        first: SignedBytes,
        /// Another.
        second: SignedBytes,
    },
    /// Two blocks proposed by one validator in one round.
    Proposals {
        /// One [`Proposal`].
        first: SignedBytes,
        /// Another.
        second: SignedBytes,
    },
    /// Two receipts by one provider for one leg of one job.
    Receipts {
        /// One [`Receipt`].
        first: SignedBytes,
        /// Another.
        second: SignedBytes,
    },
}

/// What evidence shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offence {
    /// Who did it.
    pub offender: PublicKey,
    /// Names what was done: other evidence of the same offence has the same.
    pub id: Digest,
    /// Whether it was done as a validator.
    pub as_validator: bool,
}

impl Evidence {
    /// The two documents.
    pub fn documents(&self) -> (&SignedBytes, &SignedBytes) {
        match self {
            Evidence::Votes { first, second }
            | Evidence::Proposals { first, second }
            | Evidence::Receipts { first, second } => (first, second),
        }
    }

    /// The offence on `network`, if both signatures hold and the two documents contradict each other. Dear: verifies.
    pub fn offence(&self, network: &NetworkId) -> Option<Offence> {
        let (first, second) = self.documents();
        if first.signer != second.signer || first.document == second.document {
            return None;
        }
        let (place, as_validator) = match self {
            Evidence::Votes { .. } => {
                let (a, b) = (open::<Vote>(first)?, open::<Vote>(second)?);
                let place = |vote: &Vote| encode(&Vote { block: None, ..*vote });
                (same(network, &a.network, place(&a), place(&b))?, true)
            }
            Evidence::Proposals { .. } => {
                let (a, b) = (open::<Proposal>(first)?, open::<Proposal>(second)?);
                if a.block == b.block {
                    return None;
                }
                let place = |p: &Proposal| encode(&Proposal { block: Digest::ZERO, valid_round: None, ..*p });
                (same(network, &a.network, place(&a), place(&b))?, true)
            }
            Evidence::Receipts { .. } => {
                let (a, b) = (open::<Receipt>(first)?, open::<Receipt>(second)?);
                let place = |r: &Receipt| [r.session.0.as_bytes(), &r.job.0[..], &r.leg.to_le_bytes()].concat();
                if a.network != b.network {
                    return None;
                }
                (same(network, &a.network, place(&a), place(&b))?, false)
            }
        };
        let kind: u8 = match self {
            Evidence::Votes { .. } => 0,
            Evidence::Proposals { .. } => 1,
            Evidence::Receipts { .. } => 2,
        };
        let id = Digest::of("spillway/offence/1", &[&[kind], first.signer.as_bytes(), &place]);
        Some(Offence { offender: first.signer, id, as_validator })
    }
}

fn open<T: crate::codec::Document>(wire: &SignedBytes) -> Option<T> {
    Signed::<T>::open(wire.clone()).ok().map(Signed::into_value)
}

/// The place that both documents are of, on the network that is asked about.
fn same(network: &NetworkId, theirs: &NetworkId, a: Vec<u8>, b: Vec<u8>) -> Option<Vec<u8>> {
    (network == theirs && a == b).then_some(a)
}
