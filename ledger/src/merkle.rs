//! Merkle roots over lists of digests: a session's receipts, a block's entries.
//! Invariant: the root fixes the leaves, their order and their number.

use wincode::{SchemaRead, SchemaWrite};

use crate::keys::Digest;

/// The most steps a proof may have: 2³² leaves.
pub const STEPS_MAX: usize = 32;

/// Shows that one leaf lies under a root.
#[derive(Clone, Debug, PartialEq, Eq, SchemaRead, SchemaWrite)]
pub struct MerkleProof {
    /// The leaf's place, from 0.
    pub index: u64,
    /// How many leaves the root covers.
    pub count: u64,
    /// The digests beside the path, from the leaf upwards; a node without a neighbour has none.
    pub beside: Vec<Digest>,
}

/// The root of `leaves`; the empty list has one too.
pub fn merkle_root(leaves: &[Digest]) -> Digest {
    let mut level: Vec<Digest> = leaves.iter().map(leaf).collect();
    while level.len() > 1 {
        level = level.chunks(2).map(parent).collect();
    }
    seal(leaves.len() as u64, level.first())
}

/// [`merkle_root`] of the first leaf, of the first two, and so on to all of them; each takes a few hashes more.
pub fn merkle_roots(leaves: &[Digest]) -> impl Iterator<Item = Digest> {
    // The tops of the full trees that the leaves so far make up, the largest first: one for each bit of their number.
    let mut tops: Vec<Digest> = Vec::new();
    leaves.iter().zip(1_u64..).map(move |(digest, count)| {
        let mut node = leaf(digest);
        for _ in 0..count.trailing_zeros() {
            let left = tops.pop().expect("each bit that the count gives up has a top");
            node = parent(&[left, node]);
        }
        tops.push(node);
        let top = tops.iter().copied().rev().reduce(|right, left| parent(&[left, right]));
        seal(count, top.as_ref())
    })
}

/// The proof that `leaves[index]` lies under [`merkle_root`] of `leaves`; `None` where there is no such leaf.
pub fn merkle_proof(leaves: &[Digest], index: usize) -> Option<MerkleProof> {
    if index >= leaves.len() {
        return None;
    }
    let mut beside = Vec::new();
    let mut at = index;
    let mut level: Vec<Digest> = leaves.iter().map(leaf).collect();
    while level.len() > 1 {
        if let Some(neighbour) = level.get(at ^ 1) {
            beside.push(*neighbour);
        }
        level = level.chunks(2).map(parent).collect();
        at /= 2;
    }
    Some(MerkleProof { index: index as u64, count: leaves.len() as u64, beside })
}

/// Whether `proof` shows that `digest` lies under `root`.
pub fn verify_proof(root: &Digest, digest: &Digest, proof: &MerkleProof) -> bool {
    if proof.index >= proof.count || proof.beside.len() > STEPS_MAX {
        return false;
    }
    let mut node = leaf(digest);
    let mut beside = proof.beside.iter();
    let (mut at, mut width) = (proof.index, proof.count);
    while width > 1 {
        if at % 2 == 1 {
            let Some(left) = beside.next() else { return false };
            node = parent(&[*left, node]);
        } else if at + 1 < width {
            let Some(right) = beside.next() else { return false };
            node = parent(&[node, *right]);
        }
        at /= 2;
        width = width.div_ceil(2);
    }
    beside.next().is_none() && seal(proof.count, Some(&node)) == *root
}

fn leaf(digest: &Digest) -> Digest {
    Digest::of("spillway/merkle/leaf/1", &[digest.as_bytes()])
}

/// One or two nodes of a level; a node without a neighbour moves up as it is.
fn parent(nodes: &[Digest]) -> Digest {
    match nodes {
        [left, right] => Digest::of("spillway/merkle/node/1", &[left.as_bytes(), right.as_bytes()]),
        [one] => *one,
        _ => unreachable!("chunks(2) gives one or two nodes"),
    }
}

/// Binds the number of leaves into the root, so that the shape of the tree cannot be argued about.
fn seal(count: u64, top: Option<&Digest>) -> Digest {
    let top = top.unwrap_or(&Digest::ZERO);
    Digest::of("spillway/merkle/root/1", &[&count.to_le_bytes(), top.as_bytes()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaves(count: u64) -> Vec<Digest> {
        (0..count).map(|i| Digest::of("test", &[&i.to_le_bytes()])).collect()
    }

    #[test]
    fn every_leaf_of_every_small_tree_is_proven_and_nothing_else() {
        for count in 0..20_u64 {
            let leaves = leaves(count);
            let root = merkle_root(&leaves);
            assert_eq!(merkle_proof(&leaves, leaves.len()), None);
            for (index, digest) in leaves.iter().enumerate() {
                let proof = merkle_proof(&leaves, index).expect("the leaf exists");
                assert!(verify_proof(&root, digest, &proof), "{index} of {count}");

                let other = Digest::of("test", &[b"other"]);
                assert!(!verify_proof(&root, &other, &proof), "another leaf at {index} of {count}");
                let moved = MerkleProof { index: proof.index ^ 1, ..proof.clone() };
                assert!(!verify_proof(&root, digest, &moved), "{index} moved, of {count}");
                let longer = MerkleProof { count: count + 1, ..proof.clone() };
                assert!(!verify_proof(&root, digest, &longer), "{index} of {count}, said to be of one more");
                let mut padded = proof.clone();
                padded.beside.push(other);
                assert!(!verify_proof(&root, digest, &padded), "{index} of {count} with a step too many");
            }
        }
    }

    #[test]
    fn the_roots_of_all_beginnings_are_their_roots() {
        let leaves = leaves(70);
        let each: Vec<Digest> = (1..=leaves.len()).map(|count| merkle_root(&leaves[..count])).collect();
        assert_eq!(merkle_roots(&leaves).collect::<Vec<_>>(), each);
        assert_eq!(merkle_roots(&[]).next(), None);
    }

    #[test]
    fn the_root_fixes_number_and_order() {
        let four = leaves(4);
        let mut swapped = four.clone();
        swapped.swap(0, 1);
        let roots: std::collections::BTreeSet<Digest> =
            [&four[..], &four[..3], &four[..1], &[], &swapped].into_iter().map(merkle_root).collect();
        assert_eq!(roots.len(), 5);
    }

    #[test]
    fn a_proof_with_absurd_numbers_is_refused_at_once() {
        let proof = MerkleProof { index: u64::MAX - 1, count: u64::MAX, beside: vec![Digest::ZERO; 33] };
        assert!(!verify_proof(&Digest::ZERO, &Digest::ZERO, &proof));
        let proof = MerkleProof { beside: Vec::new(), ..proof };
        assert!(!verify_proof(&Digest::ZERO, &Digest::ZERO, &proof));
    }
}
