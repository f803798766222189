//! Answers the engine: what to propose, whether a proposal is good, what to do with what was decided.
//! Invariant: a block is stored before the engine goes on to the next height; no block is voted for here that
//! re-execution has not found to follow from the stored ones.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_malachitebft_app_channel::app::types::{LocallyProposedValue, ProposedValue};
use arc_malachitebft_app_channel::{AppMsg, NetworkMsg, Reply};
use arc_malachitebft_core_consensus::{MisbehaviorEvidence, VoteExtensionError};
use arc_malachitebft_core_types as types;
use arc_malachitebft_engine::host::{Next, SyncedValueOutcome};
use arc_malachitebft_sync::RawDecidedValue;
use spillway_ledger::{
    Block, CertifiedBlock, Committed, Digest, Evidence, FollowError, NetworkId, PublicKey, Replicator, SecretKey,
    Signed, SignedBytes, StoreError, encode,
};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, info, warn};
use types::{HeightParams, LinearTimeouts, Round, Validity};

use crate::codec::message;
use crate::context::{Address, BlockId, Height, Ledger, Members, number};
use crate::held::{Held, read_block};
use crate::host::{Host, lock};
use crate::part::{Part, Shared, announce, pieces};
use crate::pool::{Candidate, Pool, Taken};
use crate::progress::Progress;
use crate::wire::{SYNC_BLOCKS_MAX, certificate, extended, proposal_to_wire, vote_to_wire};

/// How long a proposal waits for entries that came before it to be verified. Far below a round's time-out, so that
/// nobody can stop us by sharing much.
const TAKEN_WAIT: Duration = Duration::from_millis(100);

/// Why a validator stopped by itself. Start it anew; what it had decided and not stored, it gets again.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The block was not taken into the books.
    #[error("block {height} was decided but cannot be stored: {error}")]
    Commit {
        /// Its height.
        height: u64,
        /// Why not.
        error: FollowError,
    },
    /// Only its votes came here.
    #[error("block {height} was decided, but is not here; it will be fetched after a restart")]
    Missing {
        /// Its height.
        height: u64,
    },
    /// Stored blocks cannot be read.
    #[error("stored blocks cannot be read: {0}")]
    Store(#[from] StoreError),
    /// The engine ended.
    #[error("the ordering engine ended by itself; its log says why")]
    Engine,
}

/// The engine waits for our word to begin the next height.
struct Parked {
    reply: Reply<Next<Ledger>>,
    /// When we begin even though nothing waits.
    until: Instant,
}

/// What the loop works with.
pub(crate) struct App<H> {
    pub(crate) host: Arc<H>,
    pub(crate) key: SecretKey,
    pub(crate) network: NetworkId,
    pub(crate) timeouts: LinearTimeouts,
    pub(crate) idle: Duration,
    pub(crate) ahead_ms: u64,
    pub(crate) held: Held,
    pub(crate) pool: Pool,
    pub(crate) parts: mpsc::Sender<NetworkMsg<Ledger>>,
    pub(crate) shared: mpsc::Sender<Vec<SignedBytes>>,
    /// How many of the messages given to `shared` have been taken.
    pub(crate) taken: Arc<Progress>,
    pub(crate) wake: Arc<Notify>,
    pub(crate) members: Members,
    pub(crate) keys: Vec<PublicKey>,
    /// What re-execution found of the blocks of this height.
    pub(crate) verdicts: BTreeMap<Digest, bool>,
    /// The height that the engine last began.
    pub(crate) started: u64,
    /// The last height whose block was sent to us as decided: while that is the last one we have, others are ahead.
    pub(crate) fetched: u64,
}

impl<H: Host> App<H> {
    /// Runs until the engine ends or `stop` says so.
    pub(crate) async fn run(
        mut self,
        mut messages: mpsc::Receiver<AppMsg<Ledger>>,
        mut stop: watch::Receiver<bool>,
    ) -> Result<(), Failure> {
        let mut parked: Option<Parked> = None;
        loop {
            let until = parked.as_ref().map_or_else(Instant::now, |parked| parked.until);
            tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => return Ok(()),
                // A wake for entries that a block has taken since is late, not wrong.
                () = self.wake.notified(), if parked.is_some() => if self.has_work() { self.begin(&mut parked) },
                () = tokio::time::sleep_until(until), if parked.is_some() => self.begin(&mut parked),
                message = messages.recv() => match message {
                    Some(message) => self.handle(message, &mut parked).await?,
                    None => return Err(Failure::Engine),
                },
            }
        }
    }

    fn next_height(&self) -> u64 {
        lock(self.host.replica()).height() + 1
    }

    /// Whether the next height should not wait: entries do, or somebody has begun it, or we are catching up.
    fn has_work(&self) -> bool {
        let replica = lock(self.host.replica());
        replica.waiting() > 0 || self.pool.has_any() || self.fetched == replica.height()
    }

    fn params(&self) -> HeightParams<Ledger> {
        HeightParams::new(self.members.clone(), self.timeouts, None)
    }

    /// Lets the engine begin the next height.
    fn begin(&self, parked: &mut Option<Parked>) {
        if let Some(Parked { reply, .. }) = parked.take() {
            let next = Next::Start(Height(self.next_height()), self.params());
            let _engine_may_have_stopped = reply.send(next);
        }
    }

    async fn handle(&mut self, message: AppMsg<Ledger>, parked: &mut Option<Parked>) -> Result<(), Failure> {
        // A reply that nobody waits for any more is late, not wrong: `send` may fail everywhere below.
        match message {
            AppMsg::ConsensusReady { reply } => {
                let _late = reply.send((Height(self.next_height()), self.params()));
            }
            AppMsg::StartedRound { height, round, proposer, role, reply_value } => {
                debug!(%height, %round, %proposer, ?role, "round begins");
                self.started = height.0;
                self.pool.started(number(round));
                let candidates = self.pool.of_round(number(round));
                let values = candidates.iter().filter_map(|candidate| self.judge(candidate)).collect();
                let _late = reply_value.send(values);
            }
            AppMsg::GetValue { height, round, timeout: _, reply } => self.propose(height, round, reply).await,
            AppMsg::ReceivedProposalPart { from, published_by: _, part, reply } => {
                let value = match part.content.into_data() {
                    Some(Part::Piece(piece)) => match self.pool.take(from, piece) {
                        Taken::Complete(candidate) if self.started == self.next_height() => self.judge(&candidate),
                        // Told to the engine when it begins the round.
                        Taken::Complete(_) | Taken::Nothing | Taken::Early => None,
                    },
                    Some(Part::Shared(wire)) => {
                        self.take_shared(wire);
                        None
                    }
                    None => None,
                };
                let _late = reply.send(value);
                if parked.is_some() && self.pool.has_any() {
                    self.begin(parked);
                }
            }
            AppMsg::RestreamProposal { height, round, valid_round, address, value_id } => {
                self.restream(height, round, valid_round, address, value_id).await;
            }
            AppMsg::Decided { certificate, extensions: _, reply } => {
                self.decided(&certificate)?;
                let _late = reply.send(());
            }
            AppMsg::Finalized { certificate: _, extensions: _, evidence, reply } => {
                self.report(&evidence);
                *parked = Some(Parked { reply, until: self.idle_until() });
                if self.has_work() {
                    self.begin(parked);
                }
            }
            AppMsg::GetHistoryMinHeight { reply } => {
                let _late = reply.send(Height(1));
            }
            AppMsg::GetDecidedValues { range, reply } => {
                let _late = reply.send(self.decided_values(range.start().0, range.end().0)?);
            }
            AppMsg::ProcessSyncedValue { height, round, proposer, value_bytes, reply } => {
                let _late = reply.send(self.synced(height, round, proposer, &value_bytes));
            }
            AppMsg::ExtendVote { reply, .. } => {
                let _late = reply.send(None);
            }
            AppMsg::VerifyVoteExtensions { extensions, reply, .. } => {
                // Votes carry nothing but votes here.
                let refuse = |(address, ())| (address, Err(VoteExtensionError::InvalidVoteExtension));
                let _late = reply.send(extensions.into_iter().map(refuse).collect());
            }
        }
        Ok(())
    }

    /// When to begin the next height if nothing is to be done. The proposer first: the others would only count the
    /// time it has for its proposal.
    fn idle_until(&self) -> Instant {
        let ours = self.members.proposer_key(self.next_height(), 0) == self.key.public();
        let grace = if ours { Duration::ZERO } else { self.timeouts.propose / 2 };
        Instant::now() + self.idle + grace
    }

    async fn propose(&mut self, height: Height, round: Round, reply: Reply<LocallyProposedValue<Ledger>>) {
        let block = {
            let mut replica = lock(self.host.replica());
            if replica.height() + 1 != height.0 {
                return;
            }
            self.host.propose(&mut replica, self.host.now_ms())
        };
        let digest = block.header.digest();
        debug!(%height, %round, entries = block.entries.len(), "proposing");
        let (opening, bytes) = announce(self.network, number(round), None, &block, &self.key);
        let parts = pieces(opening.wire(), &bytes);
        self.held.put(block, bytes);
        self.pool.add(opening);
        // Made from the books as they are.
        self.verdicts.insert(digest, true);
        let _late = reply.send(LocallyProposedValue::new(height, round, BlockId(digest)));
        self.publish(parts).await;
    }

    async fn publish(&self, parts: Vec<Part>) {
        for part in parts {
            let _engine_may_have_stopped = self.parts.send(NetworkMsg::PublishProposalPart(message(part))).await;
        }
    }

    async fn restream(&self, height: Height, round: Round, valid: Round, proposer: Address, block: BlockId) {
        let Some(proposed) = self.held.get(&block.0) else { return };
        if proposed.block.header.height != height.0 {
            return;
        }
        let opening = if proposer.0 == self.key.public() {
            let valid_round = valid.as_u32();
            Some(announce(self.network, number(round), valid_round, &proposed.block, &self.key).0)
        } else {
            self.pool.opening(number(round), &block.0, &proposer.0)
        };
        if let Some(opening) = opening {
            self.publish(pieces(opening.wire(), &proposed.bytes)).await;
        }
    }

    /// What the engine is told of a candidate; nothing, if there is nothing to be said yet.
    fn judge(&mut self, candidate: &Candidate) -> Option<ProposedValue<Ledger>> {
        let opening = candidate.opening.value();
        let valid = self.verdict(&opening.block, &candidate.proposer())?;
        Some(ProposedValue {
            height: Height(opening.height),
            round: Round::new(opening.round),
            valid_round: Round::from(opening.valid_round),
            proposer: Address(candidate.proposer()),
            value: BlockId(opening.block),
            validity: Validity::from_bool(valid),
        })
    }

    fn verdict(&mut self, digest: &Digest, proposer: &PublicKey) -> Option<bool> {
        if let Some(valid) = self.verdicts.get(digest) {
            return Some(*valid);
        }
        let block = self.held.get(digest)?.block;
        let ahead_ms = block.header.time_ms.saturating_sub(self.host.now_ms());
        if ahead_ms > self.ahead_ms {
            // A finding about two clocks, not about the block: silence makes us vote for none in this round, and if
            // the others' clocks agree with the proposer's, we still follow them.
            warn!(height = block.header.height, proposer = %proposer, ahead_ms, "a proposal's time is too far ahead");
            return None;
        }
        // Its entries were most likely shared just before it came: let their verification end rather than do it twice.
        if !block.entries.is_empty() {
            self.taken.wait(TAKEN_WAIT);
        }
        let found = lock(self.host.replica()).validate(&block);
        if let Err(error) = &found {
            warn!(height = block.header.height, proposer = %proposer, %error, "a proposal is wrong");
        }
        self.verdicts.insert(*digest, found.is_ok());
        Some(found.is_ok())
    }

    /// Takes entries that another validator shares. When too many wait to be verified, these are dropped: the
    /// validator that has them from their sender will propose them itself.
    fn take_shared(&self, wire: SignedBytes) {
        if !self.keys.contains(&wire.signer) {
            return;
        }
        let Ok(shared) = Signed::<Shared>::open(wire) else { return };
        let shared = shared.into_value();
        if shared.network != self.network {
            return;
        }
        match self.shared.try_send(shared.entries) {
            Ok(()) => self.taken.begin_one(),
            Err(_) => debug!("entries shared by another validator were dropped: too many wait already"),
        }
    }

    fn decided(&mut self, decided: &types::CommitCertificate<Ledger>) -> Result<(), Failure> {
        let height = decided.height.0;
        let Some(proposed) = self.held.get(&decided.value_id.0) else {
            return Err(Failure::Missing { height });
        };
        let block = CertifiedBlock { block: Block::clone(&proposed.block), certificate: certificate(decided) };
        let (committed, validators) = {
            let mut replica = lock(self.host.replica());
            let committed = match replica.commit(block.clone()) {
                Ok(applied) => Some(Committed { block, applied }),
                Err(FollowError::Known { .. }) => None,
                Err(error) => return Err(Failure::Commit { height, error }),
            };
            (committed, replica.validators())
        };
        self.members = Members::from(&validators);
        self.keys = validators.keys().to_vec();
        self.held.stored(height);
        self.verdicts.clear();
        self.pool.advance(height + 1, self.members.clone());
        if let Some(committed) = committed {
            debug!(height, round = committed.block.certificate.round, "block committed");
            self.host.committed(&committed);
        }
        Ok(())
    }

    fn report(&self, evidence: &MisbehaviorEvidence<Ledger>) {
        // One pair shows the offence; more of the same prove nothing new.
        for (offender, pairs) in evidence.votes.iter() {
            if let Some((first, second)) = pairs.first() {
                info!(offender = %offender.0, "a validator cast two votes for one round");
                let (first, second) = (vote_to_wire(first), vote_to_wire(second));
                self.host.evidence(Evidence::Votes { first, second });
            }
        }
        for (offender, pairs) in evidence.proposals.iter() {
            let differ = |(a, b): &&(types::SignedProposal<Ledger>, types::SignedProposal<Ledger>)| {
                a.message.document.block != b.message.document.block
            };
            if let Some((first, second)) = pairs.iter().find(differ) {
                info!(offender = %offender.0, "a validator proposed two blocks for one round");
                let (first, second) = (proposal_to_wire(first), proposal_to_wire(second));
                self.host.evidence(Evidence::Proposals { first, second });
            }
        }
    }

    fn decided_values(&self, first: u64, last: u64) -> Result<Vec<RawDecidedValue<Ledger>>, StoreError> {
        let Some(more) = last.checked_sub(first) else { return Ok(Vec::new()) };
        let count = usize::try_from(more).unwrap_or(usize::MAX).saturating_add(1).min(SYNC_BLOCKS_MAX);
        let blocks = lock(self.host.replica()).blocks(first, count)?;
        let value = |block: &CertifiedBlock| {
            let certificate = extended(block.block.header.height, &block.certificate);
            RawDecidedValue::new(encode(&block.block).into(), certificate)
        };
        Ok(blocks.iter().map(value).collect())
    }

    /// A decided block that we missed. The engine has verified its certificate; the block is verified here all the
    /// same. Its time is not held against our clock: it is decided.
    fn synced(&mut self, height: Height, round: Round, proposer: Address, bytes: &[u8]) -> SyncedValueOutcome<Ledger> {
        if height.0 != self.next_height() {
            return SyncedValueOutcome::LocalTransientError;
        }
        let Some(block) = read_block(bytes) else { return SyncedValueOutcome::PeerFault };
        let digest = block.header.digest();
        let valid = match self.verdicts.get(&digest) {
            Some(valid) => *valid,
            None => {
                let found = lock(self.host.replica()).validate(&block);
                if let Err(error) = &found {
                    warn!(%height, %error, "a block that was sent as decided is wrong");
                }
                found.is_ok()
            }
        };
        if !valid {
            return SyncedValueOutcome::PeerFault;
        }
        self.fetched = height.0;
        self.verdicts.insert(digest, true);
        self.held.put(block, bytes.to_vec());
        SyncedValueOutcome::Verdict(ProposedValue {
            height,
            round,
            valid_round: Round::Nil,
            proposer,
            value: BlockId(digest),
            validity: Validity::Valid,
        })
    }
}
