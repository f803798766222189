//! Who makes blocks final, and how they change that: by votes of more than two thirds, from a height that is known before.
//! Invariant: everyone who has the blocks up to a height knows the validators of the next one.

use std::collections::BTreeSet;

use super::judge::{EXPIRY_HEIGHTS_MAX, strong};
use super::{Applied, ApplyError, Book, Undo};
use crate::block::{VALIDATORS_MAX, ValidatorSet};
use crate::keys::{Account, PublicKey};
use wincode::{SchemaRead, SchemaWrite};

/// In how many elections under way one validator may have voted.
pub const ELECTIONS_PER_VOTER_MAX: usize = 16;

/// One change of the committee that is voted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, SchemaRead, SchemaWrite)]
pub struct Election {
    /// From which height on.
    pub at: u64,
    /// Who should be a validator, or not be one any more.
    pub validator: PublicKey,
    /// Which of the two.
    pub member: bool,
}

/// How an election stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Votes {
    pub(super) voters: BTreeSet<PublicKey>,
    pub(super) decided: bool,
}

impl Book {
    /// Who makes the block of `height` final; known for each height up to the next one.
    pub fn validators_at(&self, height: u64) -> ValidatorSet {
        let decided = self.elections.iter().filter(|(election, votes)| votes.decided && election.at <= height);
        decided.fold(self.validators.clone(), |set, (election, _)| set.with(election.validator, election.member))
    }

    /// The elections under way: the change, how many voted for it, and whether it is decided.
    pub fn elections(&self) -> impl Iterator<Item = (&Election, usize, bool)> {
        self.elections.iter().map(|(election, votes)| (election, votes.voters.len(), votes.decided))
    }

    pub(super) fn judge_elect(
        &self,
        account: Account,
        validator: PublicKey,
        member: bool,
        at: u64,
        height: u64,
    ) -> Result<Applied, ApplyError> {
        strong(&validator, "validator")?;
        if member {
            let (have, need) = (self.bond(&Account(validator)), self.genesis.validator_bond);
            if have < need {
                return Err(ApplyError::InsufficientBond { have, need });
            }
        }
        if !self.validators.contains(&account.0) {
            return Err(ApplyError::NotValidator);
        }
        let max = height.saturating_add(EXPIRY_HEIGHTS_MAX);
        if at <= height || at > max {
            return Err(ApplyError::BadElectionHeight { after: height, max });
        }
        let before = self.validators_at(at);
        if before.contains(&validator) == member {
            return Err(ApplyError::NothingToElect);
        }
        let size = if member { before.keys().len() + 1 } else { before.keys().len() - 1 };
        if !(1..=VALIDATORS_MAX).contains(&size) {
            return Err(ApplyError::CommitteeSize);
        }
        let election = Election { at, validator, member };
        let mut voters = self.elections.get(&election).map(|votes| votes.voters.clone()).unwrap_or_default();
        if !voters.insert(account.0) {
            return Err(ApplyError::AlreadyVoted);
        }
        let voted = self.elections.values().filter(|votes| votes.voters.contains(&account.0)).count();
        if voted >= ELECTIONS_PER_VOTER_MAX {
            return Err(ApplyError::TooManyElections { max: ELECTIONS_PER_VOTER_MAX });
        }
        let votes = voters.iter().filter(|voter| self.validators.contains(voter)).count();
        let decided = votes >= self.validators.quorum();
        Ok(Applied::Elected { voter: account, validator, member, at, decided })
    }

    /// Whether taking `validator` out of the committee would change it.
    pub(super) fn is_to_be_removed(&self, validator: &PublicKey) -> bool {
        let next = self.validators_at(self.height.saturating_add(1));
        next.contains(validator) && next.keys().len() > 1
    }

    pub(super) fn vote(&mut self, election: Election, voter: Option<PublicKey>, decided: bool) {
        self.note_committee();
        let votes = self.elections.entry(election).or_default();
        votes.voters.extend(voter);
        votes.decided |= decided;
    }

    /// Elected validators take their places; elections whose height has come are over.
    pub(super) fn install_elected(&mut self, height: u64) {
        if self.elections.first_key_value().is_none_or(|(election, _)| election.at > height) {
            return;
        }
        self.note_committee();
        self.validators = self.validators_at(height);
        self.elections.retain(|election, _| election.at > height);
    }

    fn note_committee(&mut self) {
        if self.journal.is_some() {
            let before = Box::new((self.validators.clone(), self.elections.clone()));
            self.note(Undo::Committee(before));
        }
    }
}
