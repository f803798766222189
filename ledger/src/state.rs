//! The state root: binary Merkle-sum trees over accounts and open sessions, and the proof of one account.
//! Invariant: a tree's shape follows from how many slots are in use alone, and its top node's sum is the sum of its
//! leaves, so a proof of one account also shows the total.

use std::collections::BTreeSet;

use wincode::{SchemaRead, SchemaWrite};

use crate::codec::{Document, encode};
use crate::keys::{Account, Digest};
use crate::money::Credits;

/// A node of a sum tree: what lies below, and how much it adds up to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct SumNode {
    /// The digest of what lies below.
    pub digest: Digest,
    /// The micro-credits that lie below.
    pub sum: u64,
}

impl SumNode {
    /// Where nothing is.
    pub const EMPTY: SumNode = SumNode { digest: Digest::ZERO, sum: 0 };

    /// The node above two others; `None` if their sum does not fit.
    fn above(left: &SumNode, right: &SumNode) -> Option<SumNode> {
        let sum = left.sum.checked_add(right.sum)?;
        let (left_sum, right_sum) = (left.sum.to_le_bytes(), right.sum.to_le_bytes());
        let parts: [&[u8]; 4] = [left.digest.as_bytes(), &left_sum, right.digest.as_bytes(), &right_sum];
        Some(SumNode { digest: Digest::of("spillway/state/node/1", &parts), sum })
    }
}

/// What one account has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct AccountState {
    /// What it can spend.
    pub balance: Credits,
    /// What it has put at stake.
    pub bond: Credits,
    /// What of its stake it has asked back, and is still at stake.
    pub unbonding: Credits,
    /// When that comes back, in Unix milliseconds of block time; 0 where nothing does.
    pub unbonding_due_ms: u64,
    /// Its next nonce.
    pub nonce: u64,
    /// How many sessions it has open as a consumer.
    pub open_sessions: u32,
    /// How many of its payouts wait for the issuer.
    pub payouts: u32,
}

impl Document for AccountState {
    const DOMAIN: &'static str = "spillway/state/account/1";
    const BYTES_MAX: usize = 5 * 8 + 2 * 4;
}

/// The leaf of one account; `None` where its credits do not add up to a number.
pub fn account_leaf(account: &Account, state: &AccountState) -> Option<SumNode> {
    let sum = state.balance.checked_add(state.bond)?.checked_add(state.unbonding)?.micro();
    Some(SumNode { digest: Digest::of(AccountState::DOMAIN, &[account.0.as_bytes(), &encode(state)]), sum })
}

/// The root over both trees and over what is no credits: see [`AccountProof`].
pub fn state_root(accounts: &SumNode, locks: &SumNode, rest: &Digest) -> Digest {
    let (a, s) = (accounts.sum.to_le_bytes(), locks.sum.to_le_bytes());
    let parts: [&[u8]; 5] = [accounts.digest.as_bytes(), &a, locks.digest.as_bytes(), &s, rest.as_bytes()];
    Digest::of("spillway/state/1", &parts)
}

/// A sum tree whose leaves live in slots: the lowest free slot is taken first, so the same history fills the same slots
/// everywhere. Changes are gathered and hashed once, when the top is asked for.
#[derive(Clone, Debug, Default)]
pub struct SumTree {
    /// The leaves, then each level above, up to a single node.
    levels: Vec<Vec<SumNode>>,
    free: BTreeSet<usize>,
    changed: BTreeSet<usize>,
}

impl SumTree {
    /// Puts a leaf into the lowest free slot, and says which that is.
    pub fn insert(&mut self, leaf: SumNode) -> usize {
        if self.levels.is_empty() {
            self.levels.push(Vec::new());
        }
        let slot = match self.free.pop_first() {
            Some(slot) => slot,
            None => {
                self.levels[0].push(SumNode::EMPTY);
                self.levels[0].len() - 1
            }
        };
        self.set(slot, leaf);
        slot
    }

    /// Replaces the leaf in a slot that is in use.
    pub fn set(&mut self, slot: usize, leaf: SumNode) {
        self.levels[0][slot] = leaf;
        self.changed.insert(slot);
    }

    /// Frees a slot; free slots at the end are given up.
    pub fn remove(&mut self, slot: usize) {
        self.set(slot, SumNode::EMPTY);
        self.free.insert(slot);
        let mut length = self.levels[0].len();
        while length > 0 && self.free.remove(&(length - 1)) {
            length -= 1;
        }
        if length == self.levels[0].len() {
            return;
        }
        if length == 0 {
            self.levels.clear();
            self.changed.clear();
            return;
        }
        self.levels[0].truncate(length);
        self.changed.split_off(&length);
        // The last leaf's path may just have lost its neighbours.
        self.changed.insert(length - 1);
    }

    /// Puts a leaf back into the slot that [`SumTree::remove`] just freed.
    pub fn restore(&mut self, slot: usize, leaf: SumNode) {
        if self.levels.is_empty() {
            self.levels.push(Vec::new());
        }
        while self.levels[0].len() <= slot {
            self.free.insert(self.levels[0].len());
            self.levels[0].push(SumNode::EMPTY);
        }
        let was_free = self.free.remove(&slot);
        assert!(was_free, "only a free slot is restored");
        self.set(slot, leaf);
    }

    /// The node over all leaves.
    pub fn top(&mut self) -> SumNode {
        self.refresh();
        match self.levels.last() {
            Some(level) if !level.is_empty() => level[0],
            _ => SumNode::EMPTY,
        }
    }

    /// The nodes beside the path from `slot` to the top.
    pub fn path(&mut self, slot: usize) -> Vec<SumNode> {
        self.refresh();
        let below_top = self.levels.len().saturating_sub(1);
        (0..below_top).map(|depth| self.node(depth, (slot >> depth) ^ 1)).collect()
    }

    fn node(&self, depth: usize, at: usize) -> SumNode {
        self.levels[depth].get(at).copied().unwrap_or(SumNode::EMPTY)
    }

    /// Hashes anew every node above a changed leaf, level by level.
    fn refresh(&mut self) {
        let mut changed = std::mem::take(&mut self.changed);
        if changed.is_empty() {
            return;
        }
        let mut depth = 0;
        while self.levels[depth].len() > 1 {
            let length = self.levels[depth].len().div_ceil(2);
            let mut above = match self.levels.get_mut(depth + 1) {
                Some(level) => std::mem::take(level),
                None => {
                    self.levels.push(Vec::new());
                    Vec::new()
                }
            };
            // A level that was a top until now has no parent yet, so the first node of a new level is always made.
            let fresh = above.is_empty();
            above.resize(length, SumNode::EMPTY);
            let mut parents: BTreeSet<usize> = changed.iter().map(|at| at / 2).collect();
            if fresh {
                parents.extend(0..length);
            }
            for &at in &parents {
                let (left, right) = (self.node(depth, 2 * at), self.node(depth, 2 * at + 1));
                above[at] = SumNode::above(&left, &right).expect("no part exceeds what was minted");
            }
            self.levels[depth + 1] = above;
            changed = parents;
            depth += 1;
        }
        self.levels.truncate(depth + 1);
    }
}

/// Shows what one account has, and the whole supply, under a block header's state root.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct AccountProof {
    /// Whose account.
    pub account: Account,
    /// What it has.
    pub state: AccountState,
    /// The account's slot.
    pub slot: u64,
    /// The nodes beside the path, from the leaf upwards.
    pub beside: Vec<SumNode>,
    /// The top of the tree of what is locked: open sessions and payouts under way.
    pub locks: SumNode,
    /// The digest of the running totals and of elections under way.
    pub rest: Digest,
}

impl Document for AccountProof {
    const DOMAIN: &'static str = "spillway/state/proof/1";
    const BYTES_MAX: usize = 2048;

    fn check(&self) -> Result<(), &'static str> {
        if self.beside.len() > 40 || self.slot >> self.beside.len() != 0 {
            return Err("slot lies outside the tree");
        }
        Ok(())
    }
}

impl AccountProof {
    /// Whether a header with this state root and supply says what the proof says.
    pub fn verify(&self, root: &Digest, supply: Credits) -> bool {
        if self.check().is_err() {
            return false;
        }
        let Some(mut node) = account_leaf(&self.account, &self.state) else { return false };
        for (depth, beside) in self.beside.iter().enumerate() {
            let (left, right) = if self.slot >> depth & 1 == 0 { (&node, beside) } else { (beside, &node) };
            let Some(above) = SumNode::above(left, right) else { return false };
            node = above;
        }
        let sum = node.sum.checked_add(self.locks.sum);
        sum == Some(supply.micro()) && state_root(&node, &self.locks, &self.rest) == *root
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(value: u64) -> SumNode {
        SumNode { digest: Digest::of("test", &[&value.to_le_bytes()]), sum: value }
    }

    /// The top, computed from nothing.
    fn naive(leaves: &[SumNode]) -> SumNode {
        let mut level = leaves.to_vec();
        while level.len() > 1 {
            level = level
                .chunks(2)
                .map(|pair| SumNode::above(&pair[0], pair.get(1).unwrap_or(&SumNode::EMPTY)).expect("small sums"))
                .collect();
        }
        level.first().copied().unwrap_or(SumNode::EMPTY)
    }

    #[test]
    fn random_changes_give_the_same_top_as_hashing_everything() {
        use rand::{RngExt, SeedableRng};
        for seed in 0..64_u64 {
            let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(seed);
            let mut tree = SumTree::default();
            let mut model: Vec<SumNode> = Vec::new();
            for step in 0..120_u64 {
                let used: Vec<usize> = (0..model.len()).filter(|&i| model[i] != SumNode::EMPTY).collect();
                let pick = |rng: &mut rand_chacha::ChaCha8Rng| used[rng.random_range(0..used.len())];
                match rng.random_range(0..4) {
                    0 | 1 => {
                        let slot = tree.insert(leaf(step + 1));
                        if slot == model.len() {
                            model.push(SumNode::EMPTY);
                        }
                        assert_eq!(model[slot], SumNode::EMPTY, "seed {seed} step {step}");
                        model[slot] = leaf(step + 1);
                    }
                    2 if !used.is_empty() => {
                        let slot = pick(&mut rng);
                        tree.set(slot, leaf(step + 1000));
                        model[slot] = leaf(step + 1000);
                    }
                    3 if !used.is_empty() => {
                        let slot = pick(&mut rng);
                        tree.remove(slot);
                        if rng.random_bool(0.3) {
                            tree.restore(slot, model[slot]);
                        } else {
                            model[slot] = SumNode::EMPTY;
                            while model.last() == Some(&SumNode::EMPTY) {
                                model.pop();
                            }
                        }
                    }
                    _ => {}
                }
                if rng.random_bool(0.4) {
                    assert_eq!(tree.top(), naive(&model), "seed {seed} step {step}");
                }
            }
        }
    }
}
