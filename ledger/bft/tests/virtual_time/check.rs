//! What must hold after every step, judged by books of its own.
//! Invariant: the judge takes nothing from the validators but what they made final, said or reported.

use std::collections::BTreeMap;

use arc_malachitebft_core_consensus::SignedConsensusMsg;
use arc_malachitebft_core_types::Proposal as _;
use spillway_ledger::{
    CertifiedBlock, Digest, Evidence, Genesis, NetworkId, PublicKey, Replica, Replicator, Step, ValidatorSet,
};
use tempfile::TempDir;

use crate::context::Ledger;

/// How far ahead of the right time a block may be: what validators accept, and how wrong their clocks are.
const AHEAD_MS: u64 = 10_000 + 1_500;

/// What happened in a run, to see that it was worth running.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    pub heights: u64,
    pub entries: u64,
    pub messages: u64,
    pub lost: u64,
    pub kills: u64,
    pub cuts: u64,
    /// Restarts that went on in the middle of a height.
    pub replays: u64,
    /// Blocks taken from others after they were decided.
    pub synced: u64,
    /// Rounds above the first that a validator began, and the highest of them.
    pub rounds: u64,
    pub round_max: u64,
    pub evidence: u64,
    /// Liars that their evidence took out of the committee.
    pub removed: u64,
    /// Restarts of validators that had decided a block that never reached them.
    pub missing: u64,
    /// How long after the faults stopped all were further, at most, in milliseconds.
    pub healed_ms: u64,
}

impl Tally {
    pub fn add(&mut self, other: &Tally) {
        self.heights += other.heights;
        self.entries += other.entries;
        self.messages += other.messages;
        self.lost += other.lost;
        self.kills += other.kills;
        self.cuts += other.cuts;
        self.replays += other.replays;
        self.synced += other.synced;
        self.rounds += other.rounds;
        self.round_max = self.round_max.max(other.round_max);
        self.evidence += other.evidence;
        self.removed += other.removed;
        self.missing += other.missing;
        self.healed_ms = self.healed_ms.max(other.healed_ms);
    }
}

/// What a validator may say only once.
type Place = (usize, u64, u32, Option<Step>);

/// The judge.
#[derive(Debug)]
pub struct Checks {
    network: NetworkId,
    keys: Vec<PublicKey>,
    honest: Vec<bool>,
    auditor: Replica,
    _folder: TempDir,
    sets: BTreeMap<u64, ValidatorSet>,
    decided: BTreeMap<u64, Digest>,
    said: BTreeMap<Place, Option<Digest>>,
    pub tally: Tally,
}

impl Checks {
    /// `keys` of all validators by number, and who of them is honest.
    pub fn new(genesis: &Genesis, keys: &[PublicKey], honest: Vec<bool>, folder: TempDir) -> Checks {
        let auditor = Replica::open(folder.path(), genesis).expect("an empty folder opens");
        Checks {
            network: genesis.network_id(),
            keys: keys.to_vec(),
            honest,
            sets: BTreeMap::from([(1, auditor.validators())]),
            auditor,
            _folder: folder,
            decided: BTreeMap::new(),
            said: BTreeMap::new(),
            tally: Tally::default(),
        }
    }

    /// The last height that anybody honest made final.
    pub fn height(&self) -> u64 {
        self.auditor.height()
    }

    /// Agreement and validity of what an honest validator made final; `true`, if it is the first to.
    pub fn committed(&mut self, node: usize, block: &CertifiedBlock, now_ms: u64) -> Result<bool, String> {
        let header = &block.block.header;
        let (height, digest) = (header.height, header.digest());
        let set =
            self.sets.get(&height).ok_or_else(|| format!("{node} decided height {height} before {}", height - 1))?;
        let verified = block.certificate.verify(&self.network, header, set);
        verified.map_err(|error| format!("{node} made block {height} final by a bad certificate: {error}"))?;
        if let Some(other) = self.decided.get(&height) {
            if *other == digest {
                return Ok(false);
            }
            return Err(format!("two blocks are final at height {height}: {other} and, at {node}, {digest}"));
        }
        let valid = self.auditor.validate(&block.block);
        valid.map_err(|error| format!("{node} made block {height} final, but it is wrong: {error}"))?;
        if header.time_ms > now_ms + AHEAD_MS {
            return Err(format!("block {height} is {} ms ahead", header.time_ms - now_ms));
        }
        let stored = self.auditor.commit(block.clone());
        stored.map_err(|error| format!("block {height} of {node} does not fit into other books: {error}"))?;
        self.tally.heights += 1;
        self.tally.entries += block.block.entries.len() as u64;
        self.decided.insert(height, digest);
        let (before, after) = (set.keys().len(), self.auditor.validators());
        self.tally.removed += before.saturating_sub(after.keys().len()) as u64;
        self.sets.insert(height + 1, after);
        Ok(true)
    }

    /// Nobody honest says two things, whatever crashed in between.
    pub fn said(&mut self, node: usize, said: &SignedConsensusMsg<Ledger>) -> Result<(), String> {
        if !self.honest[node] {
            return Ok(());
        }
        let (place, block) = match said {
            SignedConsensusMsg::Vote(vote) => {
                let document = &vote.message.document;
                ((node, document.height, document.round, Some(document.step)), document.block)
            }
            SignedConsensusMsg::Proposal(proposal) => {
                let document = &proposal.message.document;
                // A validator also passes on others' proposals.
                if proposal.message.validator_address().0 != self.keys[node] {
                    return Ok(());
                }
                ((node, document.height, document.round, None), Some(document.block))
            }
        };
        let before = *self.said.entry(place).or_insert(block);
        if before == block {
            return Ok(());
        }
        let show = |block: Option<Digest>| block.map_or_else(|| "none".to_owned(), |block| block.short());
        let (_, height, round, step) = place;
        let (before, now) = (show(before), show(block));
        Err(format!("{node} said two things at height {height}, round {round}, {step:?}: {before} and {now}"))
    }

    /// What honest validators report holds, and shows a liar.
    pub fn reported(&mut self, node: usize, evidence: &Evidence) -> Result<(), String> {
        let Some(offence) = evidence.offence(&self.network) else {
            return Err(format!("{node} reported evidence that shows nothing: {evidence:?}"));
        };
        let who = self.keys.iter().position(|key| *key == offence.offender);
        if who.is_none_or(|who| self.honest[who]) {
            return Err(format!("{node} reported an honest validator: {evidence:?}"));
        }
        if !offence.as_validator {
            return Err(format!("{node} reported what is no validator's offence"));
        }
        self.tally.evidence += 1;
        Ok(())
    }
}
