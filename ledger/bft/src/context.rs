//! The ledger's nouns in the shape that the ordering engine asks for.
//! Invariant: what is signed here is a ledger document and nothing else, so a commit certificate of the engine is a
//! certificate of the ledger, signature by signature.

use std::fmt;
use std::sync::Arc;

use arc_malachitebft_core_types as types;
use spillway_ledger::{Digest, NetworkId, PublicKey, SecretKey, Signature, Step, ValidatorSet};
use types::{LinearTimeouts, NilOrVal, Round, SignedExtension, VoteType};

use crate::part::Part;

/// A block's number; the chain begins with 1.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Height(pub u64);

impl fmt::Display for Height {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl types::Height for Height {
    const ZERO: Self = Height(0);
    const INITIAL: Self = Height(1);

    fn increment_by(&self, n: u64) -> Self {
        Height(self.0.saturating_add(n))
    }

    fn decrement_by(&self, n: u64) -> Option<Self> {
        self.0.checked_sub(n).map(Height)
    }

    fn as_u64(&self) -> u64 {
        self.0
    }
}

/// A validator's key, which is also its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address(pub PublicKey);

// The whole key: the engine tells validators apart by this text.
impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl types::Address for Address {}

/// What is agreed on: the digest of a block's header, which fixes the whole block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BlockId(pub Digest);

impl fmt::Display for BlockId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.short())
    }
}

impl types::Value for BlockId {
    type Id = BlockId;

    fn id(&self) -> BlockId {
        *self
    }
}

/// One validator of a set. Each has one vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    address: Address,
}

impl types::Validator<Ledger> for Member {
    fn address(&self) -> &Address {
        &self.address
    }

    fn public_key(&self) -> &PublicKey {
        &self.address.0
    }

    fn voting_power(&self) -> types::VotingPower {
        1
    }
}

/// Who decides a height, sorted by key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Members(Arc<Vec<Member>>);

impl From<&ValidatorSet> for Members {
    fn from(set: &ValidatorSet) -> Self {
        Members(Arc::new(set.keys().iter().map(|key| Member { address: Address(*key) }).collect()))
    }
}

impl Members {
    /// Whose turn it is to propose in a round: everybody's, one after the other, and the next one's at the next height.
    pub fn proposer(&self, height: u64, round: u32) -> &Member {
        let count = self.0.len() as u64;
        let turn = (height % count + u64::from(round) % count) % count;
        &self.0[usize::try_from(turn).expect("below the number of validators")]
    }

    /// The key of whose turn it is.
    pub fn proposer_key(&self, height: u64, round: u32) -> PublicKey {
        self.proposer(height, round).address.0
    }
}

impl types::ValidatorSet<Ledger> for Members {
    fn count(&self) -> usize {
        self.0.len()
    }

    fn total_voting_power(&self) -> types::VotingPower {
        self.0.len() as types::VotingPower
    }

    fn get_by_address(&self, address: &Address) -> Option<&Member> {
        let place = self.0.binary_search_by(|member| member.address.cmp(address)).ok()?;
        self.0.get(place)
    }

    fn get_by_index(&self, index: usize) -> Option<&Member> {
        self.0.get(index)
    }
}

/// Ledger keys and signatures as the engine's signing scheme.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scheme;

impl types::SigningScheme for Scheme {
    type DecodingError = String;
    type Signature = Signature;
    type PublicKey = PublicKey;
    type PrivateKey = SecretKey;

    fn decode_signature(bytes: &[u8]) -> Result<Signature, String> {
        let bytes = bytes.try_into().map_err(|_| "a signature has 64 bytes".to_owned())?;
        Ok(Signature::from_bytes(bytes))
    }

    fn encode_signature(signature: &Signature) -> Vec<u8> {
        signature.as_bytes().to_vec()
    }

    fn decode_public_key(bytes: &[u8]) -> Result<PublicKey, String> {
        let bytes = bytes.try_into().map_err(|_| "a key has 32 bytes".to_owned())?;
        PublicKey::from_bytes(bytes).map_err(|error| error.to_string())
    }

    fn encode_public_key(key: &PublicKey) -> Vec<u8> {
        key.as_bytes().to_vec()
    }
}

/// A round's number. The engine's `Nil` round stands before the first; nobody votes or proposes in it.
pub(crate) fn number(round: Round) -> u32 {
    round.as_u32().expect("votes, proposals and certificates are of a round that began")
}

/// A vote, and who cast it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vote {
    /// What is signed.
    pub document: spillway_ledger::Vote,
    value: NilOrVal<BlockId>,
    address: Address,
}

impl Vote {
    /// The vote that `signer` cast.
    pub fn new(document: spillway_ledger::Vote, signer: PublicKey) -> Self {
        let value = document.block.map_or(NilOrVal::Nil, |block| NilOrVal::Val(BlockId(block)));
        Vote { document, value, address: Address(signer) }
    }
}

impl types::Vote<Ledger> for Vote {
    fn height(&self) -> Height {
        Height(self.document.height)
    }

    fn round(&self) -> Round {
        Round::new(self.document.round)
    }

    fn value(&self) -> &NilOrVal<BlockId> {
        &self.value
    }

    fn take_value(self) -> NilOrVal<BlockId> {
        self.value
    }

    fn vote_type(&self) -> VoteType {
        vote_type(self.document.step)
    }

    fn validator_address(&self) -> &Address {
        &self.address
    }

    fn extension(&self) -> Option<&SignedExtension<Ledger>> {
        None
    }

    fn take_extension(&mut self) -> Option<SignedExtension<Ledger>> {
        None
    }

    fn extend(self, _: SignedExtension<Ledger>) -> Self {
        self
    }
}

/// The engine's word for a step.
pub(crate) fn vote_type(step: Step) -> VoteType {
    match step {
        Step::Prevote => VoteType::Prevote,
        Step::Precommit => VoteType::Precommit,
    }
}

/// The ledger's word for a step.
pub(crate) fn step(kind: VoteType) -> Step {
    match kind {
        VoteType::Prevote => Step::Prevote,
        VoteType::Precommit => Step::Precommit,
    }
}

/// The digest voted for, if any.
pub(crate) fn block(value: &NilOrVal<BlockId>) -> Option<Digest> {
    match value {
        NilOrVal::Nil => None,
        NilOrVal::Val(id) => Some(id.0),
    }
}

/// A proposal, and who made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Proposal {
    /// What is signed.
    pub document: spillway_ledger::Proposal,
    value: BlockId,
    address: Address,
}

impl Proposal {
    /// The proposal that `signer` made.
    pub fn new(document: spillway_ledger::Proposal, signer: PublicKey) -> Self {
        Proposal { document, value: BlockId(document.block), address: Address(signer) }
    }
}

impl types::Proposal<Ledger> for Proposal {
    fn height(&self) -> Height {
        Height(self.document.height)
    }

    fn round(&self) -> Round {
        Round::new(self.document.round)
    }

    fn value(&self) -> &BlockId {
        &self.value
    }

    fn take_value(self) -> BlockId {
        self.value
    }

    fn pol_round(&self) -> Round {
        Round::from(self.document.valid_round)
    }

    fn validator_address(&self) -> &Address {
        &self.address
    }
}

/// What the engine is told of our types, and the network that every document names.
#[derive(Clone, Copy, Debug)]
pub struct Ledger {
    /// The network.
    pub network: NetworkId,
}

impl Ledger {
    fn vote(&self, kind: VoteType, height: Height, round: Round, value: &NilOrVal<BlockId>, by: Address) -> Vote {
        let document = spillway_ledger::Vote {
            network: self.network,
            height: height.0,
            round: number(round),
            step: step(kind),
            block: block(value),
        };
        Vote::new(document, by.0)
    }
}

impl types::Context for Ledger {
    type Address = Address;
    type Height = Height;
    type ProposalPart = Part;
    type Proposal = Proposal;
    type Validator = Member;
    type ValidatorSet = Members;
    type Timeouts = LinearTimeouts;
    type Value = BlockId;
    type Vote = Vote;
    type Extension = ();
    type SigningScheme = Scheme;

    fn select_proposer<'a>(&self, set: &'a Members, height: Height, round: Round) -> &'a Member {
        set.proposer(height.0, number(round))
    }

    fn new_proposal(&self, height: Height, round: Round, value: BlockId, valid: Round, by: Address) -> Proposal {
        let document = spillway_ledger::Proposal {
            network: self.network,
            height: height.0,
            round: number(round),
            block: value.0,
            valid_round: valid.as_u32(),
        };
        Proposal::new(document, by.0)
    }

    fn new_prevote(&self, height: Height, round: Round, value: NilOrVal<BlockId>, by: Address) -> Vote {
        self.vote(VoteType::Prevote, height, round, &value, by)
    }

    fn new_precommit(&self, height: Height, round: Round, value: NilOrVal<BlockId>, by: Address) -> Vote {
        self.vote(VoteType::Precommit, height, round, &value, by)
    }
}
