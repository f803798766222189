//! What the engine's actors do: they answer what its state machine asks for.
//! Invariant: in the order of the engine's own `handle_effect`: what is said is in the log, flushed, before it is sent;
//! nothing is logged while the log is replayed.

use std::time::Duration;

use arc_malachitebft_app_channel::AppMsg;
use arc_malachitebft_core_consensus::r#gen::{CoResult, Gen};
use arc_malachitebft_core_consensus::{
    ConsensusMsg, Effect, Input, LivenessMsg, Resumable, Resume, SignedConsensusMsg, handle,
};
use arc_malachitebft_core_types as types;
use arc_malachitebft_engine::host::SyncedValueOutcome;
use arc_malachitebft_signing::{Signer, Verifier, VerifierExt};
use types::{Height as _, ValueOrigin, ValueResponse};

use super::{Machine, Out, Stop, Target, broken, ready};
use crate::context::{Ledger, Members, number};
use crate::host::{Host, lock};
use crate::plan::settings;

impl Machine {
    pub(super) fn process(&mut self, input: Input<Ledger>) -> Result<(), Stop> {
        let mut core = self.core.take().ok_or_else(|| broken("an input came before the first height"))?;
        let metrics = self.metrics.clone();
        // As the engine's own `process!`, but for one thing: it can be left in the middle, as by a crash.
        let mut steps = Gen::new(|co| handle(co, &mut core, &metrics, input));
        let mut step = steps.resume_with(Resume::Start);
        let result = loop {
            match step {
                CoResult::Yielded(effect) => step = steps.resume_with(self.effect(effect)?),
                CoResult::Complete(result) => break result,
            }
        };
        drop(steps);
        self.core = Some(core);
        result.map_err(|error| broken(&format!("the engine gives up: {error}")))
    }

    fn log_is_used(&self) -> bool {
        self.is_validator && !self.recovering
    }

    fn flush(&mut self) {
        if self.log_is_used() {
            self.log.flush();
        }
    }

    fn effect(&mut self, effect: Effect<Ledger>) -> Result<Resume<Ledger>, Stop> {
        if let Some((effects, reached)) = self.fuse {
            if effects == 0 {
                if let Effect::PublishConsensusMsg(said, _) = effect {
                    self.flush();
                    self.publish(said, Target::First(reached))?;
                }
                return Err(Stop::Killed);
            }
            self.fuse = Some((effects - 1, reached));
        }
        let ledger = Ledger { network: self.network };
        Ok(match effect {
            Effect::CancelAllTimeouts(r) => {
                self.timers.clear();
                r.resume_with(())
            }
            Effect::CancelTimeout(timeout, r) => {
                self.timers.retain(|(other, _)| *other != timeout);
                r.resume_with(())
            }
            Effect::ScheduleTimeout(timeout, r) => {
                self.timers.retain(|(other, _)| *other != timeout);
                self.timers_made += 1;
                self.timers.push((timeout, self.timers_made));
                self.out.push(Out::Timer(self.timers_made, self.waits.duration_for(timeout)));
                r.resume_with(())
            }
            Effect::StartRound(height, round, proposer, role, r) => {
                self.flush();
                self.round = number(round);
                if self.round > 0 {
                    self.out.push(Out::Round(self.round));
                }
                let ask = |reply_value| AppMsg::StartedRound { height, round, proposer, role, reply_value };
                let values = self.ask(ask)?.try_recv().map_err(|_| broken("no answer to a new round"))?;
                self.inbox.extend(values.into_iter().map(|value| Input::ProposedValue(value, ValueOrigin::Consensus)));
                r.resume_with(())
            }
            Effect::GetValue(height, round, timeout, r) => {
                let timeout = self.waits.duration_for(timeout);
                if let Ok(value) = self.ask(|reply| AppMsg::GetValue { height, round, timeout, reply })?.try_recv() {
                    self.soon(Input::Propose(value));
                }
                r.resume_with(())
            }
            Effect::RestreamProposal(height, round, valid_round, address, value_id, r) => {
                let message = AppMsg::RestreamProposal { height, round, valid_round, address, value_id };
                self.ask::<()>(|_| message)?;
                r.resume_with(())
            }
            Effect::SignVote(vote, r) => {
                r.resume_with(ready(self.signer.sign_vote(vote)).map_err(|_| broken("a vote cannot be signed"))?)
            }
            Effect::SignProposal(proposal, r) => {
                let signed = ready(self.signer.sign_proposal(proposal));
                r.resume_with(signed.map_err(|_| broken("a proposal cannot be signed"))?)
            }
            Effect::VerifySignature(signed, key, r) => {
                let result = match &signed.message {
                    ConsensusMsg::Vote(vote) => ready(self.verifier.verify_signed_vote(vote, &signed.signature, &key)),
                    ConsensusMsg::Proposal(proposal) => {
                        ready(self.verifier.verify_signed_proposal(proposal, &signed.signature, &key))
                    }
                };
                r.resume_with(result.is_ok_and(|result| result.is_valid()))
            }
            Effect::VerifyCommitCertificate(certificate, set, thresholds, r) => {
                r.resume_with(ready(self.verifier.verify_commit_certificate(&ledger, &certificate, &set, thresholds)))
            }
            Effect::VerifyExtendedCommitCertificate(certificate, set, thresholds, policy, r) => {
                let verifier = &self.verifier;
                let verify =
                    verifier.verify_extended_commit_certificate(&ledger, &certificate, &set, thresholds, policy);
                r.resume_with(ready(verify))
            }
            Effect::VerifyPolkaCertificate(certificate, set, thresholds, r) => {
                r.resume_with(ready(self.verifier.verify_polka_certificate(&ledger, &certificate, &set, thresholds)))
            }
            Effect::VerifyRoundCertificate(certificate, set, thresholds, r) => {
                r.resume_with(ready(self.verifier.verify_round_certificate(&ledger, &certificate, &set, thresholds)))
            }
            Effect::PublishConsensusMsg(said, r) => {
                self.flush();
                self.publish(said, Target::All)?;
                r.resume_with(())
            }
            Effect::PublishLivenessMsg(aid, r) => {
                if let LivenessMsg::Vote(vote) = &aid {
                    self.out.push(Out::Said(SignedConsensusMsg::Vote(vote.clone())));
                }
                self.aid(&aid)?;
                r.resume_with(())
            }
            Effect::RepublishVote(vote, r) => {
                self.out.push(Out::Said(SignedConsensusMsg::Vote(vote.clone())));
                self.aid(&LivenessMsg::Vote(vote))?;
                r.resume_with(())
            }
            Effect::RepublishRoundCertificate(certificate, r) => {
                self.aid(&LivenessMsg::SkipRoundCertificate(certificate))?;
                r.resume_with(())
            }
            Effect::Decide(certificate, extensions, r) => {
                self.flush();
                let ask = |reply| AppMsg::Decided { certificate, extensions, reply };
                self.ask(ask)?.try_recv().map_err(|_| broken("a decided block was not stored"))?;
                r.resume_with(())
            }
            Effect::Finalize(certificate, extensions, evidence, r) => {
                self.next = Some(self.ask(|reply| AppMsg::Finalized { certificate, extensions, evidence, reply })?);
                self.idle();
                r.resume_with(())
            }
            Effect::WalAppend(height, entry, r) => {
                if self.log_is_used() {
                    let written = self.log.append(height.as_u64(), entry, &self.codec);
                    written.map_err(|error| broken(&format!("the log takes no entry: {error}")))?;
                }
                r.resume_with(())
            }
            Effect::CertVerifiedSyncValue(response, proposer, r) => {
                let ValueResponse { value_bytes, certificate, .. } = response;
                let (height, round) = (certificate.height, certificate.round);
                let ask = |reply| AppMsg::ProcessSyncedValue { height, round, proposer, value_bytes, reply };
                match self.ask(ask)?.try_recv() {
                    Ok(SyncedValueOutcome::Verdict(value)) if value.value == certificate.value_id => {
                        self.out.push(Out::Synced);
                        self.inbox.push_back(Input::ProposedValue(value, ValueOrigin::Sync));
                    }
                    Ok(SyncedValueOutcome::Verdict(_)) => return Err(broken("a synced block is another one")),
                    // The next status brings the next question.
                    Ok(SyncedValueOutcome::PeerFault | SyncedValueOutcome::LocalTransientError) | Err(_) => {}
                }
                r.resume_with(())
            }
            Effect::CertRejectedSyncValue(_, _, _, r) => {
                // What it sent after that one is worth nothing, either; the next status brings the next question.
                self.ready.clear();
                r.resume_with(())
            }
            // Votes carry nothing but votes here: the engine does not ask.
            Effect::ExtendVote(_, _, _, _, r) => r.resume_with(None),
            Effect::VerifyVoteExtension(_, _, _, _, _, _, r) => r.resume_with(Ok(())),
        })
    }

    /// As the application waits: the proposer begins first.
    fn idle(&mut self) {
        let height = self.next_height();
        let members = Members::from(&lock(self.books.replica()).validators());
        let ours = members.proposer_key(height, 0) == self.key.public();
        let grace = if ours { Duration::ZERO } else { self.waits.propose / 2 };
        self.out.push(Out::Idle(height, Duration::from_millis(settings().idle_ms) + grace));
    }
}
