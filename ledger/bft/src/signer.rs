//! Signs and verifies what the engine says, with the ledger's keys and rules.
//! Invariant: the signed bytes are those of a ledger document under its domain, and a signature of another network's
//! document never holds.

use arc_malachitebft_core_types as types;
use arc_malachitebft_signing::{Error, Signer, VerificationResult, Verifier};
use async_trait::async_trait;
use spillway_ledger::{Document, NetworkId, PublicKey, SecretKey, Signature, encode};
use types::{SignedMessage, ValidatorProof, VoteExtensionScope};

use crate::context::{Ledger, Proposal, Vote};

/// Under which a validator says which network address is its own.
const PROOF_DOMAIN: &str = "spillway/validator-proof/1";

/// Verifies; needs no secret.
#[derive(Clone, Copy, Debug)]
pub struct LedgerVerifier {
    network: NetworkId,
}

impl LedgerVerifier {
    /// For documents of `network`.
    pub fn new(network: NetworkId) -> Self {
        LedgerVerifier { network }
    }

    fn holds<T: Document>(
        &self,
        network: NetworkId,
        document: &T,
        signature: &Signature,
        key: &PublicKey,
    ) -> VerificationResult {
        let holds = network == self.network && key.verify(T::DOMAIN, &encode(document), signature);
        VerificationResult::from_bool(holds)
    }
}

#[async_trait]
impl Verifier<Ledger> for LedgerVerifier {
    async fn verify_signed_vote(
        &self,
        vote: &Vote,
        signature: &Signature,
        key: &PublicKey,
    ) -> Result<VerificationResult, Error> {
        Ok(self.holds(vote.document.network, &vote.document, signature, key))
    }

    async fn verify_signed_proposal(
        &self,
        proposal: &Proposal,
        signature: &Signature,
        key: &PublicKey,
    ) -> Result<VerificationResult, Error> {
        Ok(self.holds(proposal.document.network, &proposal.document, signature, key))
    }

    async fn verify_signed_vote_extension(
        &self,
        _: &VoteExtensionScope<Ledger>,
        (): &(),
        _: &Signature,
        _: &PublicKey,
    ) -> Result<VerificationResult, Error> {
        // Votes carry nothing but votes here.
        Ok(VerificationResult::Invalid)
    }

    async fn verify_validator_proof(&self, proof: &ValidatorProof<Ledger>) -> Result<VerificationResult, Error> {
        let key = <[u8; 32]>::try_from(proof.public_key.as_slice()).ok();
        let key = key.and_then(|bytes| PublicKey::from_bytes(&bytes).ok());
        let holds = key.is_some_and(|key| key.verify(PROOF_DOMAIN, &proof.preimage(), &proof.signature));
        Ok(VerificationResult::from_bool(holds))
    }
}

/// Signs with a validator's key.
#[derive(Clone, Debug)]
pub struct LedgerSigner {
    key: SecretKey,
}

impl LedgerSigner {
    /// Signs with `key`.
    pub fn new(key: SecretKey) -> Self {
        LedgerSigner { key }
    }

    /// Shows that `key` answers under the network identity `peer_id`.
    pub fn proof(&self, peer_id: Vec<u8>) -> ValidatorProof<Ledger> {
        let key = self.key.public().as_bytes().to_vec();
        let signature = self.key.sign(PROOF_DOMAIN, &ValidatorProof::<Ledger>::signing_bytes(&key, &peer_id));
        ValidatorProof::new(key, peer_id, signature)
    }
}

#[async_trait]
impl Signer<Ledger> for LedgerSigner {
    async fn sign_vote(&self, vote: Vote) -> Result<SignedMessage<Ledger, Vote>, Error> {
        let signature = self.key.sign(spillway_ledger::Vote::DOMAIN, &encode(&vote.document));
        Ok(SignedMessage::new(vote, signature))
    }

    async fn sign_proposal(&self, proposal: Proposal) -> Result<SignedMessage<Ledger, Proposal>, Error> {
        let signature = self.key.sign(spillway_ledger::Proposal::DOMAIN, &encode(&proposal.document));
        Ok(SignedMessage::new(proposal, signature))
    }

    async fn sign_vote_extension(
        &self,
        _: VoteExtensionScope<Ledger>,
        (): (),
    ) -> Result<SignedMessage<Ledger, ()>, Error> {
        // Votes carry nothing but votes here; the engine does not ask.
        Err(Error::new())
    }

    async fn sign_validator_proof(
        &self,
        _public_key: Vec<u8>,
        peer_id: Vec<u8>,
    ) -> Result<ValidatorProof<Ledger>, Error> {
        Ok(self.proof(peer_id))
    }
}
