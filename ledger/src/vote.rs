//! What validators sign while they decide a block.
//! Invariant: a vote names its network, height and round, so one given once can never be shown as another, and two
//! different ones of the same place prove that their signer said two things.

use wincode::{SchemaRead, SchemaWrite};

use crate::codec::Document;
use crate::keys::Digest;
use crate::voucher::NetworkId;

/// The two times a validator votes in a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, SchemaRead, SchemaWrite)]
pub enum Step {
    /// "This proposal is valid."
    Prevote,
    /// "More than two thirds said so, and I will not take it back." Enough of these make a certificate.
    Precommit,
}

/// One validator's vote.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Vote {
    /// The network.
    pub network: NetworkId,
    /// The height that is decided.
    pub height: u64,
    /// The attempt at that height, from 0.
    pub round: u32,
    /// Which of the round's two votes.
    pub step: Step,
    /// The block's digest; `None` for none of them.
    pub block: Option<Digest>,
}

impl Document for Vote {
    const DOMAIN: &'static str = "spillway/vote/1";
    const BYTES_MAX: usize = 32 + 8 + 4 + 4 + 1 + 32;
}

/// A block proposed by the validator whose turn it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct Proposal {
    /// The network.
    pub network: NetworkId,
    /// The height that is decided.
    pub height: u64,
    /// The attempt at that height, from 0.
    pub round: u32,
    /// The block's digest.
    pub block: Digest,
    /// The earlier round in which this block had enough prevotes, if one did.
    pub valid_round: Option<u32>,
}

impl Document for Proposal {
    const DOMAIN: &'static str = "spillway/proposal/1";
    const BYTES_MAX: usize = 32 + 8 + 4 + 32 + 1 + 4;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::{decode, encode};

    #[test]
    fn every_shape_fits_its_limit_and_reads_back() {
        let network = NetworkId(Digest::of("test", &[]));
        for (step, block) in [(Step::Prevote, None), (Step::Precommit, Some(network.0))] {
            let vote = Vote { network, height: u64::MAX, round: u32::MAX, step, block };
            assert_eq!(decode::<Vote>(&encode(&vote)), Ok(vote));
        }
        for valid_round in [None, Some(u32::MAX)] {
            let proposal = Proposal { network, height: 1, round: 2, block: network.0, valid_round };
            assert_eq!(decode::<Proposal>(&encode(&proposal)), Ok(proposal));
        }
    }
}
