//! The engine's messages as bytes: ledger documents in the ledger's encoding.
//! Invariant: size is checked before anything is decoded, and bytes that are not the one encoding of a message are
//! refused; so a peer can cost us no more than the size of what it sent.

use arc_malachitebft_core_types as types;
use arc_malachitebft_sync as sync;
use spillway_ledger::block::VALIDATORS_MAX;
use spillway_ledger::{
    Block, Certificate, CertifiedBlock, CodecError, Digest, Document, Header, PublicKey, Signature, SignedBytes, Step,
    decode, encode,
};
use types::{
    NilOrVal, PolkaCertificate, PolkaSignature, Round, RoundCertificate, RoundCertificateType, RoundSignature,
};
use wincode::{SchemaRead, SchemaWrite};

use crate::context::{Address, BlockId, Height, Ledger, Proposal, Vote, block, number, step, vote_type};

type SignedVote = types::SignedVote<Ledger>;
type SignedProposal = types::SignedProposal<Ledger>;

/// The most decided blocks that are asked for at once.
pub const SYNC_BLOCKS_MAX: usize = 8;
/// The most bytes of an answer with decided blocks.
pub const SYNC_BYTES_MAX: usize = SYNC_BLOCKS_MAX * CertifiedBlock::BYTES_MAX + 1_024;
/// The longest network identity, in bytes.
const PEER_BYTES_MAX: usize = 64;

/// A vote or proposal.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(crate) enum Said {
    Vote(SignedBytes),
    Proposal(SignedBytes),
}

impl Document for Said {
    const DOMAIN: &'static str = "spillway/bft-said/1";
    const BYTES_MAX: usize = 512;
}

/// What helps others to catch up within a height.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(crate) enum Aid {
    Vote(SignedBytes),
    Polka(Polka),
    Round(RoundVotes),
}

impl Document for Aid {
    const DOMAIN: &'static str = "spillway/bft-aid/1";
    const BYTES_MAX: usize = 512 + VALIDATORS_MAX * 2 * (32 + 64 + 4 + 33);

    fn check(&self) -> Result<(), &'static str> {
        match self {
            Aid::Vote(_) => Ok(()),
            Aid::Polka(polka) => polka.check(),
            Aid::Round(votes) if votes.votes.len() > 2 * VALIDATORS_MAX => Err("votes must be at most 256"),
            Aid::Round(_) => Ok(()),
        }
    }
}

/// Enough prevotes for one block.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(crate) struct Polka {
    height: u64,
    round: u32,
    block: Digest,
    signatures: Vec<(PublicKey, Signature)>,
}

impl Document for Polka {
    const DOMAIN: &'static str = "spillway/bft-polka/1";
    const BYTES_MAX: usize = 64 + VALIDATORS_MAX * 96;

    fn check(&self) -> Result<(), &'static str> {
        if self.signatures.len() > VALIDATORS_MAX {
            return Err("signatures must be at most 128");
        }
        Ok(())
    }
}

/// Enough votes of a round to leave it.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(crate) struct RoundVotes {
    height: u64,
    round: u32,
    skip: bool,
    votes: Vec<RoundVote>,
}

#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
struct RoundVote {
    step: Step,
    block: Option<Digest>,
    signer: PublicKey,
    signature: Signature,
}

/// Shows that a validator answers under a network identity.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(crate) struct Proof {
    key: [u8; 32],
    peer: Vec<u8>,
    signature: Signature,
}

impl Document for Proof {
    const DOMAIN: &'static str = "spillway/bft-proof/1";
    const BYTES_MAX: usize = 32 + 8 + PEER_BYTES_MAX + 64;
}

/// How far a peer is.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(crate) struct Status {
    peer: Vec<u8>,
    tip: u64,
    first: u64,
}

impl Document for Status {
    const DOMAIN: &'static str = "spillway/bft-status/1";
    const BYTES_MAX: usize = 8 + PEER_BYTES_MAX + 16;
}

/// Asks for decided blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(crate) struct Request {
    first: u64,
    last: u64,
}

impl Document for Request {
    const DOMAIN: &'static str = "spillway/bft-request/1";
    const BYTES_MAX: usize = 16;
}

/// Decided blocks, from a height on.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub(crate) struct Response {
    first: u64,
    blocks: Vec<Decided>,
}

/// A decided block; its bytes are decoded only when its turn comes.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
struct Decided {
    height: u64,
    bytes: Vec<u8>,
    certificate: Certificate,
}

impl Document for Response {
    const DOMAIN: &'static str = "spillway/bft-response/1";
    const BYTES_MAX: usize = SYNC_BYTES_MAX;

    fn check(&self) -> Result<(), &'static str> {
        if self.blocks.len() > SYNC_BLOCKS_MAX {
            return Err("blocks must be at most 8");
        }
        if self.blocks.iter().any(|block| block.bytes.len() > Block::BYTES_MAX) {
            return Err("blocks holds one longer than a block can be");
        }
        if self.blocks.iter().any(|block| block.certificate.signatures.len() > VALIDATORS_MAX) {
            return Err("blocks holds a certificate of more than 128 signatures");
        }
        Ok(())
    }
}

pub(crate) fn vote_to_wire(vote: &SignedVote) -> SignedBytes {
    let signer = types::Vote::validator_address(&vote.message).0;
    SignedBytes { signer, signature: vote.signature, document: encode(&vote.message.document) }
}

pub(crate) fn vote_from_wire(wire: &SignedBytes) -> Result<SignedVote, CodecError> {
    Ok(SignedVote::new(Vote::new(decode(&wire.document)?, wire.signer), wire.signature))
}

pub(crate) fn proposal_to_wire(proposal: &SignedProposal) -> SignedBytes {
    let signer = types::Proposal::validator_address(&proposal.message).0;
    SignedBytes { signer, signature: proposal.signature, document: encode(&proposal.message.document) }
}

pub(crate) fn proposal_from_wire(wire: &SignedBytes) -> Result<SignedProposal, CodecError> {
    Ok(SignedProposal::new(Proposal::new(decode(&wire.document)?, wire.signer), wire.signature))
}

impl From<&PolkaCertificate<Ledger>> for Polka {
    fn from(polka: &PolkaCertificate<Ledger>) -> Self {
        Polka {
            height: polka.height.0,
            round: number(polka.round),
            block: polka.value_id.0,
            signatures: polka.polka_signatures.iter().map(|by| (by.address.0, by.signature)).collect(),
        }
    }
}

impl From<Polka> for PolkaCertificate<Ledger> {
    fn from(polka: Polka) -> Self {
        let signature = |(key, signature)| PolkaSignature::new(Address(key), signature);
        PolkaCertificate {
            height: Height(polka.height),
            round: Round::new(polka.round),
            value_id: BlockId(polka.block),
            polka_signatures: polka.signatures.into_iter().map(signature).collect(),
        }
    }
}

impl From<&RoundCertificate<Ledger>> for RoundVotes {
    fn from(certificate: &RoundCertificate<Ledger>) -> Self {
        let vote = |vote: &RoundSignature<Ledger>| RoundVote {
            step: step(vote.vote_type),
            block: block(&vote.value_id),
            signer: vote.address.0,
            signature: vote.signature,
        };
        RoundVotes {
            height: certificate.height.0,
            round: number(certificate.round),
            skip: match certificate.cert_type {
                RoundCertificateType::Skip => true,
                RoundCertificateType::Precommit => false,
            },
            votes: certificate.round_signatures.iter().map(vote).collect(),
        }
    }
}

impl From<RoundVotes> for RoundCertificate<Ledger> {
    fn from(votes: RoundVotes) -> Self {
        let signature = |vote: RoundVote| {
            let value = vote.block.map_or(NilOrVal::Nil, |block| NilOrVal::Val(BlockId(block)));
            RoundSignature::new(vote_type(vote.step), value, Address(vote.signer), vote.signature)
        };
        RoundCertificate {
            height: Height(votes.height),
            round: Round::new(votes.round),
            cert_type: if votes.skip { RoundCertificateType::Skip } else { RoundCertificateType::Precommit },
            round_signatures: votes.votes.into_iter().map(signature).collect(),
        }
    }
}

impl Proof {
    pub(crate) fn new(proof: &types::ValidatorProof<Ledger>) -> Result<Self, CodecError> {
        let key = proof.public_key.as_slice().try_into().map_err(|_| CodecError::Malformed)?;
        Ok(Proof { key, peer: proof.peer_id.clone(), signature: proof.signature })
    }

    pub(crate) fn open(self) -> types::ValidatorProof<Ledger> {
        types::ValidatorProof::new(self.key.to_vec(), self.peer, self.signature)
    }
}

impl Status {
    pub(crate) fn new(status: &sync::Status<Ledger>) -> Self {
        Status { peer: status.peer_id.to_bytes(), tip: status.tip_height.0, first: status.history_min_height.0 }
    }

    pub(crate) fn open(self) -> Result<sync::Status<Ledger>, CodecError> {
        let peer_id = sync::PeerId::from_bytes(&self.peer).map_err(|_| CodecError::NotCanonical("peer"))?;
        Ok(sync::Status { peer_id, tip_height: Height(self.tip), history_min_height: Height(self.first) })
    }
}

impl Request {
    pub(crate) fn new(request: &sync::Request<Ledger>) -> Self {
        let sync::Request::ValueRequest(request) = request;
        Request { first: request.range.start().0, last: request.range.end().0 }
    }

    pub(crate) fn open(self) -> sync::Request<Ledger> {
        sync::Request::ValueRequest(sync::ValueRequest::new(Height(self.first)..=Height(self.last)))
    }
}

impl Response {
    pub(crate) fn new(response: &sync::Response<Ledger>) -> Self {
        let sync::Response::ValueResponse(response) = response;
        let decided = |value: &sync::RawDecidedValue<Ledger>| Decided {
            height: value.certificate.height.0,
            bytes: value.value_bytes.to_vec(),
            certificate: Certificate {
                block: value.certificate.value_id.0,
                round: number(value.certificate.round),
                signatures: value.certificate.commit_signatures.iter().map(|by| (by.address.0, by.signature)).collect(),
            },
        };
        Response { first: response.start_height.0, blocks: response.values.iter().map(decided).collect() }
    }

    /// Refuses blocks that are not the certified ones, so that nobody has to find out later whose fault it was.
    pub(crate) fn open(self) -> Result<sync::Response<Ledger>, CodecError> {
        let value = |decided: Decided| {
            let header = decided.bytes.get(..Header::BYTES_MAX).ok_or(CodecError::Malformed)?;
            let header: Header = decode(header)?;
            if header.height != decided.height || header.digest() != decided.certificate.block {
                return Err(CodecError::NotCanonical("certificate"));
            }
            let certificate = extended(decided.height, &decided.certificate);
            Ok(sync::RawDecidedValue::new(decided.bytes.into(), certificate))
        };
        let values = self.blocks.into_iter().map(value).collect::<Result<_, _>>()?;
        Ok(sync::Response::ValueResponse(sync::ValueResponse::new(Height(self.first), values)))
    }

    /// What an answer takes when encoded, in bytes.
    pub(crate) fn encoded_len(response: &sync::Response<Ledger>) -> usize {
        let sync::Response::ValueResponse(response) = response;
        let decided = |value: &sync::RawDecidedValue<Ledger>| {
            8 + 8 + value.value_bytes.len() + 32 + 4 + 8 + 96 * value.certificate.commit_signatures.len()
        };
        8 + 8 + response.values.iter().map(decided).sum::<usize>()
    }
}

/// A certificate of the ledger as the engine's.
pub(crate) fn extended(height: u64, certificate: &Certificate) -> types::ExtendedCommitCertificate<Ledger> {
    let signature = |(key, signature): &(PublicKey, Signature)| {
        types::ExtendedCommitSignature::new(Address(*key), *signature, None)
    };
    types::ExtendedCommitCertificate {
        height: Height(height),
        round: Round::new(certificate.round),
        value_id: BlockId(certificate.block),
        commit_signatures: certificate.signatures.iter().map(signature).collect(),
    }
}

/// A certificate of the engine as the ledger's.
pub(crate) fn certificate(of: &types::CommitCertificate<Ledger>) -> Certificate {
    let mut signatures: Vec<_> = of.commit_signatures.iter().map(|by| (by.address.0, by.signature)).collect();
    signatures.sort_unstable_by_key(|(key, _)| *key);
    Certificate { block: of.value_id.0, round: number(of.round), signatures }
}
