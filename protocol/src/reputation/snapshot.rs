//! What a node keeps of reputations across a restart: one bounded, versioned piece of bytes.
//! Invariants: what is damaged, or of another version, is refused whole; what is taken in lies within the bounds that
//! experiences keep to, and has faded as if the node had run all the while.

use super::{BAN_FIRST, BAN_MAX, Evidence, Reputation, Standing};
use crate::time::Now;
use spillway_ledger::{CodecError, Digest, Document, NodeId, decode, encode};
use std::time::Duration;

/// Peers in a snapshot: those dealt with last.
pub const SNAPSHOT_PEERS_MAX: usize = 1024;
/// The version that is written, and the only one that is read.
const VERSION: u32 = 1;
/// Bytes of the version, and of the digest that follows it.
const HEAD: (usize, usize) = (4, 32);
/// Bytes of one peer.
const PEER_BYTES: usize = 32 + 4 * 2 * 4 + 8 + 8 + 4 + 4;

/// Why a snapshot is of no use. It costs what was known of others, and nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SnapshotError {
    /// Cut short, or changed since it was written.
    #[error("it is damaged")]
    Damaged,
    /// Written by another version.
    #[error("it is of version {got}, this node reads version {VERSION}")]
    Version {
        /// Which.
        got: u32,
    },
    /// Written by something else.
    #[error(transparent)]
    Malformed(#[from] CodecError),
}

/// One peer.
#[derive(Clone, Copy, Debug, wincode::SchemaRead, wincode::SchemaWrite)]
struct Kept {
    node: NodeId,
    /// Good and bad evidence of each score at `as_of_ms`, in thousandths.
    scores: [[u32; 2]; 4],
    as_of_ms: u64,
    banned_until_ms: u64,
    /// How long the next quarantine is.
    ban_s: u32,
    served: u32,
}

/// The peers, strictly sorted by node.
#[derive(Clone, Debug, wincode::SchemaRead, wincode::SchemaWrite)]
struct Snapshot {
    peers: Vec<Kept>,
}

impl Document for Snapshot {
    const DOMAIN: &'static str = "spillway/reputation/1";
    const BYTES_MAX: usize = 8 + SNAPSHOT_PEERS_MAX * PEER_BYTES;

    fn check(&self) -> Result<(), &'static str> {
        if !self.peers.is_sorted_by(|a, b| a.node < b.node) {
            return Err("peers: not strictly sorted by node");
        }
        Ok(())
    }
}

impl Reputation {
    /// What is to be kept: the [`SNAPSHOT_PEERS_MAX`] peers that this node dealt with last. Round trips are not among it; they
    /// are measured anew. At most 91 KiB.
    #[must_use]
    pub fn export(&self) -> Vec<u8> {
        let mut known: Vec<_> = self.peers.iter().filter(|(_, standing)| standing.says_anything()).collect();
        known.sort_by_key(|(node, standing)| (std::cmp::Reverse(standing.updated), **node));
        known.truncate(SNAPSHOT_PEERS_MAX);
        known.sort_by_key(|(node, _)| **node);
        let peers = known.into_iter().map(|(node, standing)| Kept {
            node: *node,
            scores: standing.scores.map(|evidence| [thousandths(evidence.good), thousandths(evidence.bad)]),
            as_of_ms: standing.decayed.ms(),
            banned_until_ms: standing.banned_until.ms(),
            ban_s: u32::try_from(standing.ban.as_secs()).unwrap_or(u32::MAX),
            served: standing.served,
        });
        let document = encode(&Snapshot { peers: peers.collect() });
        [&VERSION.to_le_bytes()[..], digest(&document).as_bytes(), &document].concat()
    }

    /// Takes in what was exported before a restart, faded by the time that has gone by since; says of how many peers. Peers
    /// that are known already stay as they are. An error changes nothing.
    ///
    /// # Errors
    /// If it is damaged or of another version.
    pub fn import(&mut self, now: Now, snapshot: &[u8]) -> Result<usize, SnapshotError> {
        let (version, rest) = snapshot.split_first_chunk::<{ HEAD.0 }>().ok_or(SnapshotError::Damaged)?;
        let got = u32::from_le_bytes(*version);
        if got != VERSION {
            return Err(SnapshotError::Version { got });
        }
        let (stated, document) = rest.split_first_chunk::<{ HEAD.1 }>().ok_or(SnapshotError::Damaged)?;
        if document.len() <= Snapshot::BYTES_MAX && digest(document).as_bytes() != stated {
            return Err(SnapshotError::Damaged);
        }
        let Snapshot { peers } = decode(document)?;
        // Every check has passed: nothing below can fail.
        let mut taken = 0;
        for kept in peers.into_iter().filter(|kept| !self.peers.contains_key(&kept.node)).collect::<Vec<_>>() {
            // A clock that was set back makes nobody's past younger than now, nor a quarantine longer than one can be.
            let as_of = Now::from_ms(kept.as_of_ms).min(now);
            let ban = Duration::from_secs(u64::from(kept.ban_s)).clamp(BAN_FIRST, BAN_MAX);
            let standing = self.entry(now, kept.node);
            *standing = Standing {
                scores: kept.scores.map(|[good, bad]| Evidence { good: whole(good), bad: whole(bad) }),
                updated: as_of,
                decayed: as_of,
                banned_until: Now::from_ms(kept.banned_until_ms).min(now.after(BAN_MAX)),
                ban,
                served: kept.served,
                rtt_ms: None,
            };
            standing.decay(now);
            taken += 1;
        }
        Ok(taken)
    }
}

impl Standing {
    fn says_anything(&self) -> bool {
        self.served > 0
            || self.scores.iter().any(|evidence| thousandths(evidence.good) > 0 || thousandths(evidence.bad) > 0)
    }
}

fn digest(document: &[u8]) -> Digest {
    Digest::of(Snapshot::DOMAIN, &[document])
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "`as` saturates, and evidence is not negative"
)]
fn thousandths(evidence: f64) -> u32 {
    (evidence * 1e3) as u32
}

fn whole(thousandths: u32) -> f64 {
    f64::from(thousandths) / 1e3
}

#[cfg(test)]
mod tests {
    use super::super::{Experience, HALF_LIFE, PEERS_MAX, Score};
    use super::*;
    use spillway_ledger::SecretKey;

    const START: Now = Now::from_ms(1_700_000_000_000);

    fn peer(seed: u32) -> NodeId {
        let mut bytes = [7; 32];
        bytes[..4].copy_from_slice(&seed.to_le_bytes());
        NodeId(SecretKey::from_bytes(&bytes).public())
    }

    /// Somebody who served often, somebody who fell silent twice, somebody who was measured and no more.
    fn some() -> Reputation {
        let mut reputation = Reputation::default();
        for _ in 0..20 {
            reputation.record(START, peer(1), Experience::Served);
            reputation.record(START, peer(1), Experience::Paid);
        }
        for seconds in [0, 15] {
            reputation.record(START.after(Duration::from_secs(seconds)), peer(2), Experience::Stalled);
        }
        reputation.measured_rtt(START, peer(3), Duration::from_millis(20));
        reputation
    }

    fn restarted(snapshot: &[u8], at: Now) -> Reputation {
        let mut again = Reputation::default();
        assert_eq!(again.import(at, snapshot), Ok(2), "who was only measured is not kept");
        again
    }

    #[test]
    fn what_was_known_comes_back_as_it_was() {
        let before = some();
        let after = restarted(&before.export(), START);
        for node in [peer(1), peer(2), peer(3)] {
            assert_eq!(after.served(&node), before.served(&node));
            for (was, is) in before.scores(&node).into_iter().zip(after.scores(&node)) {
                assert!((was - is).abs() < 1e-3, "{was} became {is}");
            }
        }
        let soon = START.after(Duration::from_secs(20));
        assert!(after.is_banned(soon, &peer(2)) && !after.is_banned(soon.after(Duration::from_secs(30)), &peer(2)));
        let (mut after, later) = (after, soon.after(Duration::from_secs(30)));
        after.record(later, peer(2), Experience::Stalled);
        assert!(after.is_banned(later.after(Duration::from_secs(59)), &peer(2)), "the next quarantine is the third");
    }

    #[test]
    fn it_fades_as_if_the_node_had_run() {
        for half_lives in [0, 1, 3, 10] {
            let later = START.after(HALF_LIFE * half_lives);
            let mut ran = some();
            ran.age(later);
            let after = restarted(&some().export(), later);
            for (was, is) in ran.scores(&peer(1)).into_iter().zip(after.scores(&peer(1))) {
                assert!((was - is).abs() < 1e-3, "after {half_lives} half-lives {was} became {is}");
            }
        }
        let long_ago = restarted(&some().export(), START.after(HALF_LIFE * 100));
        let stranger = Reputation::default();
        for score in [Score::Integrity, Score::Availability, Score::Speed, Score::Payment] {
            assert!((long_ago.score(&peer(2), score) - stranger.score(&peer(2), score)).abs() < 1e-3);
        }
        // A clock that was set back fades nothing, and bans nobody for years.
        let early = START.after(Duration::ZERO).min(Now::from_ms(1_000));
        let set_back = restarted(&some().export(), early);
        assert!((set_back.lower_bound(&peer(1)) - some().lower_bound(&peer(1))).abs() < 1e-3);
        assert!(!set_back.is_banned(early.after(BAN_MAX), &peer(2)));
    }

    #[test]
    fn it_is_bounded_and_keeps_who_was_dealt_with_last() {
        let mut many = Reputation::default();
        let count = u32::try_from(PEERS_MAX).expect("small");
        for index in 0..count {
            many.record(START.after(Duration::from_secs(u64::from(index))), peer(index), Experience::Served);
        }
        let snapshot = many.export();
        assert_eq!(snapshot.len(), 36 + Snapshot::BYTES_MAX);
        let mut again = Reputation::default();
        assert_eq!(again.import(START, &snapshot), Ok(SNAPSHOT_PEERS_MAX));
        let first = count - u32::try_from(SNAPSHOT_PEERS_MAX).expect("small");
        assert_eq!((again.served(&peer(first - 1)), again.served(&peer(first))), (0, 1));
        // What is known by now is newer.
        let mut knows = Reputation::default();
        knows.record(START, peer(first), Experience::FailedAudit);
        let before = knows.lower_bound(&peer(first));
        assert_eq!(knows.import(START, &snapshot), Ok(SNAPSHOT_PEERS_MAX - 1));
        assert!((knows.lower_bound(&peer(first)) - before).abs() < f64::EPSILON);
    }

    #[test]
    fn what_is_damaged_or_strange_is_refused_whole() {
        let good = some().export();
        let mut reputation = Reputation::default();
        for index in 0..good.len() {
            let mut bad = good.clone();
            bad[index] ^= 0x40;
            let error = reputation.import(START, &bad).expect_err("one bit is wrong");
            assert_eq!(matches!(error, SnapshotError::Version { .. }), index < 4, "byte {index}: {error}");
            assert!(reputation.import(START, &good[..index]).is_err(), "cut at {index}");
        }
        let unsorted = {
            let Snapshot { mut peers } = decode(&good[36..]).expect("good");
            peers.reverse();
            encode(&Snapshot { peers })
        };
        let forged = [&VERSION.to_le_bytes()[..], digest(&unsorted).as_bytes(), &unsorted].concat();
        let large = [&good[..36], &vec![0; Snapshot::BYTES_MAX + 1]].concat();
        for bad in [&forged, &large] {
            assert!(matches!(reputation.import(START, bad), Err(SnapshotError::Malformed(_))));
        }
        assert!(reputation.peers.is_empty());
    }

    /// Frozen: a node reads what an older one wrote.
    #[test]
    fn the_format_is_frozen() {
        let mut one = Reputation::default();
        one.record(START, peer(1), Experience::Served);
        let document = one.export();
        assert_eq!(document.len(), 36 + 8 + PEER_BYTES);
        assert_eq!(digest(&document).to_string(), "f42c5cd55160237b22bee4fe553da63c26700d96b9fe1c2d575a624962b795b4");
    }
}
