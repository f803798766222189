//! What a machine says to the others, truly or not, and how one that fell behind gets decided blocks.
//! Invariant: what is sent is encoded by the shipped codec; what the engine says for good, the world hears of first.

use arc_malachitebft_app_channel::AppMsg;
use arc_malachitebft_app_channel::app::types::codec::Codec;
use arc_malachitebft_core_consensus::{Input, LivenessMsg, SignedConsensusMsg};
use arc_malachitebft_engine::util::streaming::StreamMessage;
use arc_malachitebft_sync as sync;
use spillway_ledger::{Block, SignedBytes};

use super::{Machine, Out, Stop, Target, Wire, broken};
use crate::codec::{WireCodec, message};
use crate::context::{Height, Ledger};
use crate::lies::To;
use crate::part::{Part, announce, pieces, shared};
use crate::plan::Lie;
use crate::wire::SYNC_BLOCKS_MAX;

/// How long a question for decided blocks may stay unanswered, in microseconds; as the engine is told.
const ASKED_US: u64 = 5_000_000;

impl Machine {
    pub(super) fn send(&mut self, target: Target, wire: Wire) {
        if self.liar.as_ref().is_some_and(|liar| liar.lie == Lie::Silent) {
            return;
        }
        self.out.push(Out::Send(target, wire));
    }

    fn send_part(&mut self, target: Target, part: Part) -> Result<(), Stop> {
        let bytes = Codec::<StreamMessage<Part>>::encode(&WireCodec, &message(part));
        self.send(target, Wire::Part(bytes.map_err(|_| broken("a part cannot be encoded"))?));
        Ok(())
    }

    /// A liar's second block for the round that it proposes in.
    pub(super) fn send_second(&mut self, block: &Block) -> Result<(), Stop> {
        let Some(liar) = &mut self.liar else { return Ok(()) };
        // With the header of the first, it is what some should take for the first.
        let target = if liar.lie == Lie::SameHeader { Target::Odd } else { Target::All };
        liar.second = Some(block.header.digest());
        let (opening, bytes) = announce(self.network, self.round, None, block, &self.key);
        pieces(opening.wire(), &bytes).into_iter().try_for_each(|part| self.send_part(target, part))
    }

    /// Tells the others of entries, as the shipped validator does.
    pub(super) fn share(&mut self, entries: &[SignedBytes]) {
        for part in shared(self.network, entries, &self.key) {
            self.send_part(Target::All, part).unwrap_or_else(|_| unreachable!("our own parts can be encoded"));
        }
        self.wake.notify_one();
    }

    fn say(&mut self, target: Target, said: &SignedConsensusMsg<Ledger>) -> Result<(), Stop> {
        let bytes = WireCodec.encode(said).map_err(|_| broken("a message cannot be encoded"))?;
        self.send(target, Wire::Said(bytes));
        Ok(())
    }

    pub(super) fn publish(&mut self, said: SignedConsensusMsg<Ledger>, target: Target) -> Result<(), Stop> {
        self.out.push(Out::Said(said.clone()));
        let Some(liar) = &mut self.liar else { return self.say(target, &said) };
        for (to, said) in liar.publish(said) {
            let target = match to {
                To::All => Target::All,
                To::Even => Target::Even,
                To::Odd => Target::Odd,
            };
            self.say(target, &said)?;
        }
        Ok(())
    }

    /// Those who vote for everything do so here.
    pub(super) fn approve(&mut self, said: &SignedConsensusMsg<Ledger>) -> Result<(), Stop> {
        let votes = self.liar.as_mut().map(|liar| liar.hears(said)).unwrap_or_default();
        votes.iter().try_for_each(|vote| self.say(Target::All, vote))
    }

    pub(super) fn aid(&mut self, aid: &LivenessMsg<Ledger>) -> Result<(), Stop> {
        let bytes = WireCodec.encode(aid).map_err(|_| broken("a liveness message cannot be encoded"))?;
        self.send(Target::All, Wire::Aid(bytes));
        Ok(())
    }

    pub(super) fn soon(&mut self, input: Input<Ledger>) {
        self.out.push(Out::Soon(Box::new(input)));
    }

    // ---- falling behind ----

    /// Asks one that is further for what we miss; one question at a time.
    pub(super) fn request(&mut self) -> Result<(), Stop> {
        if self.asked_until_us.is_some_and(|until| self.now_us < until) {
            return Ok(());
        }
        let first = self.next_height();
        let further: Vec<(usize, u64)> =
            self.tips.iter().filter(|(_, tip)| **tip >= first).map(|(who, tip)| (*who, *tip)).collect();
        if further.is_empty() || self.ready.contains_key(&first) {
            return Ok(());
        }
        // Another one each time: who answered wrongly or not at all is not asked twice in a row.
        let turn = usize::try_from(self.now_us / 1_000).unwrap_or(0) % further.len();
        let (who, tip) = further[turn];
        let last = tip.min(first + SYNC_BLOCKS_MAX as u64 - 1);
        let request = sync::Request::ValueRequest(sync::ValueRequest::new(Height(first)..=Height(last)));
        let bytes = WireCodec.encode(&request).map_err(|_| broken("a request cannot be encoded"))?;
        self.asked_until_us = Some(self.now_us + ASKED_US);
        self.send(Target::One(who), Wire::Request(bytes));
        Ok(())
    }

    pub(super) fn serve(&mut self, to: usize, range: std::ops::RangeInclusive<Height>) -> Result<(), Stop> {
        let start = *range.start();
        let Ok(mut values) = self.ask(|reply| AppMsg::GetDecidedValues { range, reply })?.try_recv() else {
            return Err(broken("the application does not give decided blocks"));
        };
        if self.liar.as_ref().is_some_and(|liar| liar.lie != Lie::Silent) {
            // The right blocks under a certificate whose signatures belong to others.
            for value in &mut values {
                value.certificate.commit_signatures.rotate_left(1);
                let addresses: Vec<_> = value.certificate.commit_signatures.iter().map(|by| by.address).collect();
                for (by, address) in value.certificate.commit_signatures.iter_mut().zip(addresses.into_iter().rev()) {
                    by.address = address;
                }
            }
        }
        let response = sync::Response::ValueResponse(sync::ValueResponse::new(start, values));
        let bytes = WireCodec.encode(&response).map_err(|_| broken("a response cannot be encoded"))?;
        self.send(Target::One(to), Wire::Response(bytes));
        Ok(())
    }
}
