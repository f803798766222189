//! What a lying validator says beside or instead of what the engine says.
//! Invariant: everything is signed with its own key only; it cannot speak for others.

use std::collections::BTreeSet;

use arc_malachitebft_core_consensus::SignedConsensusMsg;
use arc_malachitebft_core_types::{SignedProposal, SignedVote};
use spillway_ledger::{Digest, Document, NetworkId, SecretKey, Step, encode};

use crate::context::{Ledger, Proposal, Vote};
use crate::plan::Lie;

/// How many blocks and rounds it remembers to have approved of.
const APPROVED_MAX: usize = 256;

/// A liar's mind.
#[derive(Debug)]
pub struct Liar {
    pub lie: Lie,
    key: SecretKey,
    network: NetworkId,
    /// The last block that somebody proposed.
    heard: Option<Digest>,
    /// Its own second block of this round.
    pub second: Option<Digest>,
    approved: BTreeSet<(u64, u32, Digest)>,
    /// How many times it has said two things.
    twice: u64,
}

/// Who is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum To {
    All,
    Even,
    Odd,
}

impl Liar {
    pub fn new(lie: Lie, key: SecretKey, network: NetworkId) -> Liar {
        Liar { lie, key, network, heard: None, second: None, approved: BTreeSet::new(), twice: 0 }
    }

    fn vote(&self, document: spillway_ledger::Vote) -> SignedConsensusMsg<Ledger> {
        let signature = self.key.sign(spillway_ledger::Vote::DOMAIN, &encode(&document));
        SignedConsensusMsg::Vote(SignedVote::new(Vote::new(document, self.key.public()), signature))
    }

    fn proposal(&self, document: spillway_ledger::Proposal) -> SignedConsensusMsg<Ledger> {
        let signature = self.key.sign(spillway_ledger::Proposal::DOMAIN, &encode(&document));
        SignedConsensusMsg::Proposal(SignedProposal::new(Proposal::new(document, self.key.public()), signature))
    }

    /// What it sends where the engine would send `said` to all.
    pub fn publish(&mut self, said: SignedConsensusMsg<Ledger>) -> Vec<(To, SignedConsensusMsg<Ledger>)> {
        match self.lie {
            Lie::Silent => Vec::new(),
            Lie::WrongState | Lie::Future | Lie::SameHeader | Lie::Approves => vec![(To::All, said)],
            Lie::TwoFaced => {
                let other = match &said {
                    SignedConsensusMsg::Vote(vote) => {
                        let document = vote.message.document;
                        let block = match document.block {
                            Some(_) => None,
                            None => Some(self.heard.unwrap_or(Digest::ZERO)),
                        };
                        self.vote(spillway_ledger::Vote { block, ..document })
                    }
                    SignedConsensusMsg::Proposal(proposal) => {
                        let document = proposal.message.document;
                        let block = self.second.take().unwrap_or(Digest::ZERO);
                        self.proposal(spillway_ledger::Proposal { block, valid_round: None, ..document })
                    }
                };
                let mut told = vec![(To::Even, said.clone()), (To::Odd, other.clone())];
                self.twice += 1;
                if self.twice.is_multiple_of(2) {
                    // Everybody hears both: that is how it comes out.
                    told.extend([(To::All, other), (To::All, said)]);
                }
                told
            }
        }
    }

    /// What it says upon hearing `said`.
    pub fn hears(&mut self, said: &SignedConsensusMsg<Ledger>) -> Vec<SignedConsensusMsg<Ledger>> {
        let (height, round, block) = match said {
            SignedConsensusMsg::Vote(vote) => {
                let document = &vote.message.document;
                let Some(block) = document.block else { return Vec::new() };
                (document.height, document.round, block)
            }
            SignedConsensusMsg::Proposal(proposal) => {
                let document = &proposal.message.document;
                (document.height, document.round, document.block)
            }
        };
        self.heard = Some(block);
        if self.lie != Lie::Approves || !self.approved.insert((height, round, block)) {
            return Vec::new();
        }
        if self.approved.len() > APPROVED_MAX {
            self.approved.pop_first();
        }
        let network = self.network;
        let vote = |step| self.vote(spillway_ledger::Vote { network, height, round, step, block: Some(block) });
        vec![vote(Step::Prevote), vote(Step::Precommit)]
    }
}
