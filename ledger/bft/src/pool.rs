//! Proposed blocks as they arrive: pieces become blocks, blocks become candidates for a round.
//! Invariant: nothing takes memory here unless whose turn it is signed for it, but for one block's worth from each
//! connection that is one height ahead of us; and no candidate is anything but the block whose digest was signed.

use std::collections::BTreeMap;

use arc_malachitebft_peer::PeerId;
use spillway_ledger::{Block, Digest, Document, NetworkId, PublicKey, Signed, decode};

use crate::context::Members;
use crate::held::{Held, read_block};
use crate::part::{Opening, Piece};

/// The most openings of one validator at one height; an honest one makes one each time its turn comes.
const OPENINGS_PER_PROPOSER_MAX: usize = 8;
/// The most openings of one validator for one round: two of them prove that it is not honest.
const OPENINGS_PER_ROUND_MAX: usize = 2;
/// The most bytes kept unchecked for one connection: one block in its pieces.
const EARLY_BYTES_PER_PEER_MAX: usize = Block::BYTES_MAX + (64 << 10);
/// The most connections for which anything is kept unchecked.
const EARLY_PEERS_MAX: usize = 16;

/// A block that somebody proposed for a round.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) opening: Signed<Opening>,
}

impl Candidate {
    pub(crate) fn proposer(&self) -> PublicKey {
        self.opening.signer()
    }
}

/// What became of a piece.
#[derive(Debug)]
pub(crate) enum Taken {
    /// Nothing is complete by it, or it was refused.
    Nothing,
    /// It completed the block of this candidate.
    Complete(Box<Candidate>),
    /// It is of the height after the one we decide; kept until we are there.
    Early,
}

#[derive(Debug)]
struct Assembly {
    opening: Signed<Opening>,
    pieces: Vec<Option<Vec<u8>>>,
    /// Complete, or found to be another block than was signed for: no piece is taken any more.
    closed: bool,
}

/// What is on its way at one height.
#[derive(Debug)]
pub(crate) struct Pool {
    network: NetworkId,
    held: Held,
    /// The height that is decided.
    height: u64,
    members: Members,
    /// The last round that began, as far as we know.
    round: u32,
    /// By the digest of the signed opening.
    assemblies: BTreeMap<Digest, Assembly>,
    early: BTreeMap<PeerId, (usize, Vec<Piece>)>,
}

impl Pool {
    pub(crate) fn new(network: NetworkId, held: Held, height: u64, members: Members) -> Self {
        Pool { network, held, height, members, round: 0, assemblies: BTreeMap::new(), early: BTreeMap::new() }
    }

    /// Goes on to decide `height`; gives the candidates that were waiting for it.
    pub(crate) fn advance(&mut self, height: u64, members: Members) -> Vec<Candidate> {
        self.height = height;
        self.members = members;
        self.round = 0;
        self.assemblies.clear();
        let early = std::mem::take(&mut self.early);
        let mut complete = Vec::new();
        for (peer, (_, pieces)) in early {
            for piece in pieces {
                match self.take(peer, piece) {
                    Taken::Complete(candidate) => complete.push(*candidate),
                    Taken::Nothing | Taken::Early => {}
                }
            }
        }
        complete
    }

    /// A round began.
    pub(crate) fn started(&mut self, round: u32) {
        self.round = self.round.max(round);
    }

    /// Takes a piece that `peer` sent.
    pub(crate) fn take(&mut self, peer: PeerId, piece: Piece) -> Taken {
        let Ok(claim) = decode::<Opening>(&piece.opening.document) else { return Taken::Nothing };
        if claim.network != self.network {
            return Taken::Nothing;
        }
        if claim.height == self.height + 1 {
            return self.keep_early(peer, piece);
        }
        if claim.height != self.height {
            return Taken::Nothing;
        }
        let index = piece.index as usize;
        if claim.piece_bytes(index) != Some(piece.bytes.len()) {
            return Taken::Nothing;
        }
        let id = piece.opening.digest();
        if !self.assemblies.contains_key(&id) {
            // Cheap checks first, the signature last.
            let turn = self.members.proposer_key(claim.height, claim.round) == piece.opening.signer;
            let soon = claim.round <= self.round.saturating_add(2 * self.count());
            if !turn || !soon || !self.has_room(&piece.opening.signer, claim.round) {
                return Taken::Nothing;
            }
            let Ok(opening) = Signed::<Opening>::open(piece.opening) else { return Taken::Nothing };
            let pieces = vec![None; claim.pieces()];
            self.assemblies.insert(id, Assembly { opening, pieces, closed: false });
        }
        let held = self.held.clone();
        let assembly = self.assemblies.get_mut(&id).expect("it was there or was just put there");
        if assembly.closed {
            return Taken::Nothing;
        }
        let candidate = Box::new(Candidate { opening: assembly.opening.clone() });
        if held.touch(&claim.block) {
            // Proposed again: we have it from another round.
            assembly.close();
            return Taken::Complete(candidate);
        }
        assembly.pieces[index] = Some(piece.bytes);
        let Some(bytes) = assembly.whole() else { return Taken::Nothing };
        assembly.close();
        // If there is no such block, that is its proposer's fault.
        let block = read_block(&bytes).filter(|block| block.header.digest() == claim.block);
        let Some(block) = block else { return Taken::Nothing };
        held.put(block, bytes);
        Taken::Complete(candidate)
    }

    /// Notes a candidate that did not come in pieces: our own.
    pub(crate) fn add(&mut self, opening: Signed<Opening>) {
        let assembly = Assembly { pieces: Vec::new(), closed: true, opening };
        self.assemblies.insert(assembly.opening.wire().digest(), assembly);
    }

    /// The candidates for `round`, whole.
    pub(crate) fn of_round(&self, round: u32) -> Vec<Candidate> {
        let of_round = self.assemblies.values().filter(|assembly| assembly.opening.value().round == round);
        let whole = of_round.filter(|assembly| self.held.get(&assembly.opening.value().block).is_some());
        whole.map(|assembly| Candidate { opening: assembly.opening.clone() }).collect()
    }

    /// The opening that `proposer` signed for a block in a round.
    pub(crate) fn opening(&self, round: u32, block: &Digest, proposer: &PublicKey) -> Option<Signed<Opening>> {
        let openings = self.assemblies.values().map(|assembly| &assembly.opening);
        let mut matching = openings.filter(|opening| {
            let claim = opening.value();
            claim.round == round && claim.block == *block && opening.signer() == *proposer
        });
        matching.next().cloned()
    }

    /// Whether anything of the height that is decided has come.
    pub(crate) fn has_any(&self) -> bool {
        !self.assemblies.is_empty()
    }

    fn count(&self) -> u32 {
        u32::try_from(arc_malachitebft_core_types::ValidatorSet::count(&self.members)).unwrap_or(u32::MAX)
    }

    /// Whether one more opening of `proposer` is taken. Its oldest makes room, unless all are of this very round.
    fn has_room(&mut self, proposer: &PublicKey, round: u32) -> bool {
        let of_proposer = self.assemblies.iter().filter(|(_, assembly)| assembly.opening.signer() == *proposer);
        let rounds: Vec<(u32, Digest)> =
            of_proposer.map(|(id, assembly)| (assembly.opening.value().round, *id)).collect();
        if rounds.iter().filter(|(other, _)| *other == round).count() >= OPENINGS_PER_ROUND_MAX {
            return false;
        }
        if rounds.len() < OPENINGS_PER_PROPOSER_MAX {
            return true;
        }
        let oldest = rounds.iter().min().filter(|(oldest, _)| *oldest < round);
        oldest.is_some_and(|(_, id)| self.assemblies.remove(id).is_some())
    }

    fn keep_early(&mut self, peer: PeerId, piece: Piece) -> Taken {
        if !self.early.contains_key(&peer) && self.early.len() >= EARLY_PEERS_MAX {
            return Taken::Nothing;
        }
        let (bytes, pieces) = self.early.entry(peer).or_default();
        let more = piece.bytes.len() + piece.opening.encoded_len();
        if *bytes + more > EARLY_BYTES_PER_PEER_MAX {
            return Taken::Nothing;
        }
        *bytes += more;
        pieces.push(piece);
        Taken::Early
    }
}

impl Assembly {
    /// The whole block's bytes, once no piece is missing.
    fn whole(&self) -> Option<Vec<u8>> {
        if self.pieces.iter().any(Option::is_none) {
            return None;
        }
        Some(self.pieces.iter().flatten().flatten().copied().collect())
    }

    /// Takes no more pieces, and frees those it has.
    fn close(&mut self) {
        self.closed = true;
        self.pieces = Vec::new();
    }
}
