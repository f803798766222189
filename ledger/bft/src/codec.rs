//! Hooks the messages of [`crate::wire`] into the engine: one codec for the network, one for its log.
//! Invariant: the log holds every proposed block whole, so a validator that was killed in the middle of a round has,
//! after the replay, what it voted for.

use arc_malachitebft_app_channel::app::types::codec::{Codec, HasEncodedLen};
use arc_malachitebft_core_consensus::{LivenessMsg, ProposedValue, SignedConsensusMsg};
use arc_malachitebft_core_types as types;
use arc_malachitebft_engine::util::streaming::{StreamContent, StreamId, StreamMessage};
use arc_malachitebft_sync as sync;
use bytes::Bytes;
use spillway_ledger::{Block, CodecError, Digest, Document, PublicKey, decode, encode};
use types::{PolkaCertificate, Round, ValidatorProof, Validity};
use wincode::{SchemaRead, SchemaWrite};

use crate::context::{Address, BlockId, Height, Ledger, number};
use crate::held::{Held, read_block};
use crate::part::Part;
use crate::wire::{
    Aid, Polka, Proof, Request, Response, Said, Status, proposal_from_wire, proposal_to_wire, vote_from_wire,
    vote_to_wire,
};

/// The codec of the network.
#[derive(Clone, Copy, Debug)]
pub struct WireCodec;

/// The codec of the engine's log.
#[derive(Clone, Debug)]
pub struct LogCodec {
    held: Held,
}

impl LogCodec {
    /// A codec that finds blocks in `held`, and puts those it reads there.
    pub fn new(held: Held) -> Self {
        LogCodec { held }
    }
}

fn encode_said(message: &SignedConsensusMsg<Ledger>) -> Bytes {
    let said = match message {
        SignedConsensusMsg::Vote(vote) => Said::Vote(vote_to_wire(vote)),
        SignedConsensusMsg::Proposal(proposal) => Said::Proposal(proposal_to_wire(proposal)),
    };
    encode(&said).into()
}

fn decode_said(bytes: &[u8]) -> Result<SignedConsensusMsg<Ledger>, CodecError> {
    Ok(match decode::<Said>(bytes)? {
        Said::Vote(wire) => SignedConsensusMsg::Vote(vote_from_wire(&wire)?),
        Said::Proposal(wire) => SignedConsensusMsg::Proposal(proposal_from_wire(&wire)?),
    })
}

/// Implements the engine's codec trait by one expression for each way.
macro_rules! codec {
    ($codec:ty, $message:ty, |$self_:ident, $bytes:ident| $decode:expr, |$self2:ident, $value:ident| $encode:expr) => {
        impl Codec<$message> for $codec {
            type Error = CodecError;

            fn decode(&self, $bytes: Bytes) -> Result<$message, CodecError> {
                let $self_ = self;
                $decode
            }

            fn encode(&self, $value: &$message) -> Result<Bytes, CodecError> {
                let $self2 = self;
                $encode
            }
        }
    };
}

codec!(WireCodec, Part, |_this, bytes| decode(&bytes), |_this, part| Ok(encode(part).into()));
codec!(WireCodec, SignedConsensusMsg<Ledger>, |_this, bytes| decode_said(&bytes), |_this, said| Ok(encode_said(said)));
codec!(
    WireCodec,
    StreamMessage<Part>,
    // Each part stands for itself, so nothing of the engine's streams is sent.
    |_this, bytes| Ok(message(decode(&bytes)?)),
    |_this, message| match &message.content {
        StreamContent::Data(part) => Ok(encode(part).into()),
        StreamContent::Fin => Err(CodecError::NotCanonical("a part stands for itself")),
    }
);
codec!(
    WireCodec,
    LivenessMsg<Ledger>,
    |_this, bytes| Ok(match decode::<Aid>(&bytes)? {
        Aid::Vote(wire) => LivenessMsg::Vote(vote_from_wire(&wire)?),
        Aid::Polka(polka) => LivenessMsg::PolkaCertificate(polka.into()),
        Aid::Round(votes) => LivenessMsg::SkipRoundCertificate(votes.into()),
    }),
    |_this, aid| {
        let aid = match aid {
            LivenessMsg::Vote(vote) => Aid::Vote(vote_to_wire(vote)),
            LivenessMsg::PolkaCertificate(polka) => Aid::Polka(polka.into()),
            LivenessMsg::SkipRoundCertificate(certificate) => Aid::Round(certificate.into()),
        };
        Ok(encode(&aid).into())
    }
);
codec!(WireCodec, ValidatorProof<Ledger>, |_this, bytes| Ok(decode::<Proof>(&bytes)?.open()), |_this, proof| Ok(
    encode(&Proof::new(proof)?).into()
));
codec!(WireCodec, sync::Status<Ledger>, |_this, bytes| decode::<Status>(&bytes)?.open(), |_this, status| Ok(encode(
    &Status::new(status)
)
.into()));
codec!(WireCodec, sync::Request<Ledger>, |_this, bytes| Ok(decode::<Request>(&bytes)?.open()), |_this, request| Ok(
    encode(&Request::new(request)).into()
));
codec!(WireCodec, sync::Response<Ledger>, |_this, bytes| decode::<Response>(&bytes)?.open(), |_this, response| Ok(
    encode(&Response::new(response)).into()
));

impl HasEncodedLen<sync::Response<Ledger>> for WireCodec {
    fn encoded_len(&self, response: &sync::Response<Ledger>) -> Result<usize, CodecError> {
        Ok(Response::encoded_len(response))
    }
}

/// A part as the engine carries it.
pub(crate) fn message(part: Part) -> StreamMessage<Part> {
    StreamMessage::new(StreamId::new(Bytes::new()), 0, StreamContent::Data(part))
}

/// A proposed block in the log, with what we found of it.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
struct Logged {
    height: u64,
    round: u32,
    valid_round: Option<u32>,
    proposer: PublicKey,
    block: Digest,
    valid: bool,
    /// The encoded block; empty where nobody needs it any more.
    bytes: Vec<u8>,
}

impl Document for Logged {
    const DOMAIN: &'static str = "spillway/bft-logged/1";
    const BYTES_MAX: usize = 8 + 4 + 5 + 32 + 32 + 1 + 8 + Block::BYTES_MAX;
}

codec!(LogCodec, SignedConsensusMsg<Ledger>, |_this, bytes| decode_said(&bytes), |_this, said| Ok(encode_said(said)));
codec!(LogCodec, PolkaCertificate<Ledger>, |_this, bytes| Ok(decode::<Polka>(&bytes)?.into()), |_this, polka| Ok(
    encode(&Polka::from(polka)).into()
));
codec!(
    LogCodec,
    ProposedValue<Ledger>,
    |this, bytes| {
        let logged: Logged = decode(&bytes)?;
        if !logged.bytes.is_empty() {
            let block = read_block(&logged.bytes).filter(|block| block.header.digest() == logged.block);
            let block = block.ok_or(CodecError::NotCanonical("block"))?;
            this.held.put(block, logged.bytes);
        }
        Ok(ProposedValue {
            height: Height(logged.height),
            round: Round::new(logged.round),
            valid_round: Round::from(logged.valid_round),
            proposer: Address(logged.proposer),
            value: BlockId(logged.block),
            validity: Validity::from_bool(logged.valid),
        })
    },
    |this, value| {
        // A block is held from before the engine hears of it until well after its height is stored. One that is not is
        // no longer needed; an error here would stop the validator for good.
        let bytes = this.held.get(&value.value.0).map_or_else(Vec::new, |proposed| proposed.bytes.to_vec());
        let logged = Logged {
            height: value.height.0,
            round: number(value.round),
            valid_round: value.valid_round.as_u32(),
            proposer: value.proposer.0,
            block: value.value.0,
            valid: value.validity.is_valid(),
            bytes,
        };
        Ok(encode(&logged).into())
    }
);
