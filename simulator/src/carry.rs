//! Carries out what peers ask for, as a node's driver would: in order, and records before what comes after them.
//! Invariant: everything on the wire and on disk goes through the shipped encodings.

use crate::check::{Bought, LegEnd, Opened, Rule};
use crate::gpu::Taken;
use crate::network::{HostId, IDLE_US, Parcel};
use crate::oracle;
use crate::world::{Happening, World};
use spillway_ledger::{Credits, Signed, SignedBytes, Voucher, encode};
use spillway_protocol::{Abort, BackendError, Effect, Event, Frame, LedgerCommand, Quote, Record, StreamId, WorkId};
use std::time::Duration;

/// How long a node waits for a probe's answer, in microseconds; peers lose patience sooner.
const PROBE_US: u64 = 5_000_000;

impl World {
    /// Carries out all that a peer asks for now.
    pub(crate) fn carry(&mut self, id: HostId) {
        while let Some(effect) = self.hosts[id].peer.as_mut().and_then(spillway_protocol::Peer::poll) {
            if self.trace {
                let (at, name) = (self.line.elapsed().as_secs_f64(), &self.hosts[id].name);
                eprintln!("{at:>10.6} {name:<12} -> {}", crate::log::brief(&effect));
            }
            let kept = matches!(effect, Effect::Persist(_));
            let faulty = self.line.elapsed() < Duration::from_secs(self.scenario.faults.until_s);
            let torn = if kept { self.hosts[id].torn.take().filter(|_| faulty) } else { None };
            if let Some((crate::faults::Torn::Lost, silent, length)) = torn {
                return crate::faults::crash(self, id, silent, Some(length));
            }
            if self.hosts[id].adversary.is_some() {
                for effect in self.twist(id, effect) {
                    self.carry_one(id, effect);
                }
            } else {
                self.carry_one(id, effect);
            }
            if let Some((_, silent, length)) = torn {
                // What was decided but not carried out is lost, though the record of it is kept, up to the next record.
                while let Some(lost) = self.hosts[id].peer.as_mut().and_then(spillway_protocol::Peer::poll) {
                    if let Effect::Persist(_) = lost {
                        break;
                    }
                    if let Effect::Send { stream, frame } = lost {
                        self.count_work(id, stream, &frame, false);
                    }
                }
                return crate::faults::crash(self, id, silent, Some(length));
            }
        }
    }

    pub(crate) fn carry_one(&mut self, id: HostId, effect: Effect) {
        let life = self.hosts[id].life;
        match effect {
            Effect::Placed { job, route, .. } => self.checks.placed(id, &job, route),
            Effect::Deliver { job, bytes } => self.checks.delivered(id, &job, oracle::text_of(&bytes)),
            Effect::Ended { job, outcome } => {
                // The same event may have filled the last slot.
                self.note_state(id);
                if let Some(need) = self.checks.ended(id, &job, &outcome)
                    && let Some(slot) = self.idle_slot(id, &need)
                {
                    let what =
                        format!("job {job} at {} ended as {:?}, but {slot}", self.hosts[id].name, outcome.result);
                    self.checks.broken(Rule::WrongfulRefusal, what);
                }
            }
            Effect::Run { work, body, prefix, own, .. } => {
                if !own {
                    self.hosts[id].for_strangers.insert(work);
                }
                self.run_work(id, work, &body, &prefix);
            }
            Effect::Stop(work) => {
                self.hosts[id].for_strangers.remove(&work);
                if let Some(gpu) = &mut self.hosts[id].gpu {
                    gpu.stop(work);
                }
                self.next_work(id);
            }
            Effect::OpenStream { stream, peer, .. } => {
                if self.hosts[id].hears_of_deposit {
                    self.checks.waited(id, stream);
                }
                self.call(id, stream, peer);
            }
            Effect::Send { stream, frame } => self.send(id, stream, &frame),
            Effect::CloseStream(stream) => {
                let Some((link, side)) = self.network.find(id, stream) else { return };
                self.send_parcel(link, 1 - side, Parcel::Closed);
                if side == 0
                    && let Some(found) = self.network.link(link)
                {
                    let provider = found.ends[1].host;
                    self.idle.over(self.line.now(), link, id, provider);
                }
                self.network.close(link, side);
                self.idle.arrives(self.line.now(), link);
                self.checks.leg_over(id, stream);
            }
            Effect::SendProbe { probe, peer, request, .. } => {
                self.hosts[id].probes.insert(probe);
                self.line.after(PROBE_US, Happening::ProbeOver(id, life, probe, None));
                let Some(to) = self.by_node.get(&peer).copied() else {
                    return self.checks.broken(Rule::BadEffect, format!("a probe goes to {peer}, who does not exist"));
                };
                if self.network.can_meet(id, to) {
                    let bytes = encode(&request);
                    self.post(id, to, bytes.len(), Happening::Probed(id, to, life, probe, bytes));
                }
            }
            Effect::ReplyProbe { probe, reply } => {
                let Some((to, asked, theirs)) = self.hosts[id].probed.remove(&probe) else {
                    return self.checks.broken(Rule::BadEffect, format!("probe {} is answered twice", probe.0));
                };
                let bytes = encode(&reply);
                self.post(id, to, bytes.len(), Happening::ProbeOver(to, asked, theirs, Some(bytes)));
            }
            Effect::Publish(offer) => {
                let models = |offer: &Signed<spillway_protocol::Offer>| {
                    offer.value().models.iter().map(|model| model.id.clone()).collect::<Vec<_>>()
                };
                let host = &mut self.hosts[id];
                host.offers.retain(|old| models(old) != models(&offer));
                host.offers.push(offer.clone());
                for to in 0..self.hosts.len() {
                    if to != id && !self.is_deaf(to) {
                        self.post(id, to, 1024, Happening::Offered(id, to, Box::new(offer.clone())));
                    }
                }
            }
            Effect::Withdraw => {
                let offers: Vec<_> =
                    std::mem::take(&mut self.hosts[id].offers).into_iter().map(std::sync::Arc::new).collect();
                for to in 0..self.hosts.len() {
                    for offer in &offers {
                        if to != id && !self.is_deaf(to) {
                            let taken_back = Event::OfferHeld { offer: std::sync::Arc::clone(offer), until_ms: 0 };
                            let life = self.hosts[to].life;
                            self.post(id, to, 64, Happening::Tell(to, life, Box::new(taken_back)));
                        }
                    }
                }
            }
            Effect::Ledger { business, command } => {
                if matches!(command, LedgerCommand::Open { .. } | LedgerCommand::TopUp { .. }) {
                    self.checks.locks(id);
                }
                self.hosts[id].clerk.take(business, command);
                self.bring(id);
            }
            Effect::Persist(record) => {
                if let Record::Paying(paying) = &record {
                    self.checks.keeps(id, paying.session, paying.promised);
                }
                let disk = &mut self.hosts[id].disk;
                let before = disk.get(&record.key()).map(|bytes| money_of(&Record::from_bytes(bytes).expect("kept")));
                let after = money_of(&record);
                match &record {
                    Record::PayingOver(_) | Record::EarningOver(_) => {
                        disk.remove(&record.key());
                    }
                    Record::Paying(_) | Record::Earning(_) | Record::Spending(_) | Record::Receipt { .. } => {
                        disk.insert(record.key(), record.to_bytes());
                        if before.is_some_and(|before| (0..4).any(|index| before[index] > after[index])) {
                            let what = format!(
                                "node {id} keeps {after:?}, and knew {before:?}: {}",
                                crate::log::brief(&record)
                            );
                            self.checks.broken(Rule::Forgotten, what);
                        }
                    }
                }
            }
        }
    }

    fn run_work(&mut self, id: HostId, work: WorkId, body: &[u8], prefix: &[u8]) {
        let life = self.hosts[id].life;
        let down = self.hosts[id].gpu_down;
        let Some(gpu) = self.hosts[id].gpu.as_mut() else {
            return self.checks.broken(Rule::BadEffect, format!("node {id} is to run work, and has no GPU"));
        };
        let fails = |error| Happening::Tell(id, life, Box::new(Event::BackendFailed { work, error }));
        if down {
            return self.line.after(1000, fails(BackendError::Failed("down".into())));
        }
        match gpu.run(work, body, prefix) {
            Ok(Taken::Running(wait)) => self.line.after(wait, Happening::Step(id, life, work)),
            Ok(Taken::Waiting) => {}
            Ok(Taken::Busy) => self.line.after(1000, fails(BackendError::Busy { retry_after_ms: None })),
            Err(_) => {
                let what = format!("node {id} is to go on from {} bytes that no honest provider said", prefix.len());
                self.checks.broken(Rule::TextDiffers, what);
            }
        }
    }

    /// Opens a stream: the call travels, and if nobody answers it is given up.
    fn call(&mut self, id: HostId, stream: StreamId, peer: spillway_ledger::NodeId) {
        let Some(to) = self.by_node.get(&peer).copied() else {
            return self.checks.broken(Rule::BadEffect, format!("a stream goes to {peer}, who does not exist"));
        };
        self.hosts[to].called += 1;
        let link = self.network.open((id, stream), (to, StreamId::In(self.hosts[to].called)));
        if !self.network.can_meet(id, to) {
            // Found out as soon as a relay has been asked.
            self.network.close(link, 1);
            return self.send_parcel(link, 0, Parcel::Closed);
        }
        self.idle.leaves(self.line.now(), link, id, to);
        self.send_parcel(link, 1, Parcel::Knock);
        self.line.after(IDLE_US, Happening::CallOver(link));
    }

    fn send(&mut self, id: HostId, stream: StreamId, frame: &Frame) {
        self.count_work(id, stream, frame, true);
        let honest = self.hosts[id].adversary.is_none();
        match frame {
            // What a peer knows nothing of is no job of its clients.
            Frame::Open(open) if self.checks.knows(&open.job) => {
                let provider = self.network.find(id, stream).and_then(|(link, side)| {
                    let link = self.network.link(link)?;
                    Some(link.ends[1 - side].host)
                });
                let price = quote_of(&open.quote).map(|quote| quote.price).unwrap_or_default();
                if let Some(provider) = provider {
                    let node = self.hosts[provider].node;
                    self.checks.opens(&open.job, &node, provider, &price, open.prefix.len());
                    self.checks.spills(id, stream, &open.job);
                }
                self.checks.opened_on(id, stream, open.job);
                if let (Some((session, _)), Some(quote)) = (voucher_of(&open.voucher), quote_of(&open.quote))
                    && let Some(provider) = provider.or_else(|| self.by_node.get(&quote.provider).copied())
                {
                    let bought = Bought {
                        job: open.job,
                        leg: open.leg,
                        provider,
                        session,
                        price,
                        cached: quote.cached_of(&spillway_protocol::prefix::names(&open.model, &open.body)),
                        input: (open.body.len() + open.prefix.len()) as u64,
                        window: quote.window,
                        held: 0,
                        output_max: open.output_max.saturating_sub(open.prefix.len() as u64),
                        opened: self.line.now(),
                        first: None,
                        received: 0,
                        end: None,
                    };
                    self.checks.buys(id, stream, bought);
                }
                if honest {
                    self.check_voucher(&open.voucher);
                }
            }
            Frame::Voucher(voucher) if honest => self.check_voucher(voucher),
            Frame::CoSigned(_) => {
                self.checks.bought_ends(id, stream, LegEnd::Agreed);
                if let Some((link, _)) = self.network.find(id, stream) {
                    self.idle.agrees(link);
                }
            }
            Frame::Open(_)
            | Frame::Voucher(_)
            | Frame::Accepted { .. }
            | Frame::Refused { .. }
            | Frame::Chunk { .. }
            | Frame::Alive { .. }
            | Frame::Cancel
            | Frame::Done { .. }
            | Frame::Aborted { .. }
            | Frame::Rejected { .. } => {}
        }
        let bytes = frame.to_wire();
        if Frame::from_wire(&bytes[4..]).as_ref() != Ok(frame) {
            return self.checks.broken(Rule::BadFrame, format!("node {id} sends {}", crate::log::brief(frame)));
        }
        let Some((link, side)) = self.network.find(id, stream) else { return }; // It broke: late, not wrong.
        if self.network.link(link).is_none_or(|found| found.broken) {
            return;
        }
        if self.network.breaks(self.line.now()) {
            self.network.broke(link);
            self.send_parcel(link, side, Parcel::Closed);
            return self.send_parcel(link, 1 - side, Parcel::Closed);
        }
        self.send_parcel(link, 1 - side, Parcel::Frame(bytes));
    }

    /// No voucher promises more than the ledger has locked for its session.
    fn check_voucher(&mut self, voucher: &SignedBytes) {
        let Some((session, total)) = voucher_of(voucher) else { return };
        self.checks.promises(session, total);
        let deposit = self.authority.session(&session).map_or(Credits::ZERO, |seen| seen.deposit);
        if total > deposit {
            let what = format!("{} promises {total}, locked are {deposit}", session.0);
            self.checks.broken(Rule::VoucherAboveDeposit, what);
        }
    }

    /// Counts what a provider sends as work.
    fn count_work(&mut self, id: HostId, stream: StreamId, frame: &Frame, sent: bool) {
        match frame {
            Frame::Chunk { bytes, .. } => {
                let units = oracle::text_of(bytes).len() as u64;
                self.hosts[id].sent += units;
                self.checks.works(id, stream, units, false, sent);
            }
            Frame::Done { .. } => {
                self.checks.works(id, stream, 0, true, sent);
                self.checks.ends(id, stream);
            }
            Frame::Aborted { .. } | Frame::Rejected { .. } | Frame::Refused { .. } => self.checks.ends(id, stream),
            Frame::Open(_)
            | Frame::Accepted { .. }
            | Frame::Alive { .. }
            | Frame::Voucher(_)
            | Frame::Cancel
            | Frame::CoSigned(_) => {}
        }
    }

    /// Whether a voucher is worth something to the provider that it is sent to. What honest consumers send is.
    fn holds(&self, from: HostId, provider: HostId, wire: &SignedBytes) -> bool {
        if self.hosts[from].adversary.is_none() {
            return true;
        }
        let Ok(voucher) = Signed::<Voucher>::open(wire.clone()) else { return false };
        self.authority.session(&voucher.value().session).is_some_and(|seen| {
            seen.provider == self.hosts[provider].account
                && seen.voucher_key == voucher.signer()
                && voucher.value().total <= seen.deposit
        })
    }

    /// Counts what reaches a node.
    pub(crate) fn frame_arrives(&mut self, from: HostId, id: HostId, stream: StreamId, frame: &Frame) {
        match frame {
            Frame::Open(open) => {
                let (Some((session, vouched)), Some(quote)) = (voucher_of(&open.voucher), quote_of(&open.quote)) else {
                    return;
                };
                let vouched = if self.holds(from, id, &open.voucher) { vouched } else { Credits::ZERO };
                let input = (open.body.len() + open.prefix.len()) as u64;
                let cached = quote.cached_of(&spillway_protocol::prefix::names(&open.model, &open.body));
                let price = quote.price;
                self.checks.arrives(
                    id,
                    stream,
                    Opened { leg: (open.job, open.leg), session, price, input, cached, vouched },
                );
            }
            Frame::Voucher(voucher) => {
                if let Some((session, total)) = voucher_of(voucher)
                    && self.holds(from, id, voucher)
                {
                    self.checks.vouched(session, total);
                }
            }
            Frame::CoSigned(_) => self.checks.agrees(id, stream),
            Frame::Refused { .. } => self.checks.bought_ends(id, stream, LegEnd::Refused),
            Frame::Alive { held } => {
                let most = self.hosts[id].config.window_max;
                self.checks.waits(id, stream, (*held).min(most));
            }
            Frame::Aborted { abort: Abort::Preempted, .. } => self.checks.taken(id, stream),
            Frame::Accepted { .. }
            | Frame::Chunk { .. }
            | Frame::Cancel
            | Frame::Done { .. }
            | Frame::Aborted { .. }
            | Frame::Rejected { .. } => {}
        }
    }
}

/// What a record says of money: deposit, promised or vouched, spent, settled. None of them ever shrinks.
fn money_of(record: &Record) -> [Credits; 4] {
    match record {
        Record::Paying(paying) => [paying.deposit, paying.promised, paying.spent, paying.settled],
        Record::Earning(earning) => [earning.deposit, earning.vouched, earning.spent, earning.settled],
        Record::Spending(_) | Record::Receipt { .. } | Record::PayingOver(_) | Record::EarningOver(_) => {
            [Credits::ZERO; 4]
        }
    }
}

fn voucher_of(wire: &SignedBytes) -> Option<(spillway_ledger::SessionId, Credits)> {
    let voucher = spillway_ledger::decode::<Voucher>(&wire.document).ok()?;
    Some((voucher.session, voucher.total))
}

fn quote_of(wire: &SignedBytes) -> Option<Quote> {
    spillway_ledger::decode::<Quote>(&wire.document).ok()
}
