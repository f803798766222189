//! One validator without threads, sockets or clocks: the engine's state machine, our application, our books, a log.
//! Invariant: everything the engine asks for is answered by the code that ships; what is ours here is what its actors
//! do: carry messages, keep the log, run timers. A machine that died does nothing any more.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arc_malachitebft_app_channel::app::metrics::Metrics;
use arc_malachitebft_app_channel::app::types::codec::Codec;
use arc_malachitebft_app_channel::{AppMsg, NetworkMsg, Reply};
use arc_malachitebft_core_consensus::r#gen::{CoResult, Gen};
use arc_malachitebft_core_consensus::{
    ConsensusMsg, Effect, Input, LivenessMsg, Params, Resumable, Resume, SignedConsensusMsg, State, ValuePayload,
    handle,
};
use arc_malachitebft_core_types as types;
use arc_malachitebft_engine::host::{HeightParams, Next, SyncedValueOutcome};
use arc_malachitebft_engine::util::streaming::StreamMessage;
use arc_malachitebft_peer::PeerId;
use arc_malachitebft_signing::{Signer, Verifier, VerifierExt};
use arc_malachitebft_sync as sync;
use bytes::Bytes;
use spillway_ledger::{Action, CertifiedBlock, Evidence, NetworkId, Replica, SecretKey, SignedBytes};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use types::{Height as _, LinearTimeouts, ThresholdParam, ThresholdParams, Timeout, ValueOrigin, ValueResponse};
use types::{ValidatorSet as _, VoteExtensionPolicy};

use crate::app::{App, Failure};
use crate::books::Books;
use crate::codec::{LogCodec, WireCodec, message};
use crate::context::{Address, Height, Ledger, Members};
use crate::held::Held;
use crate::host::{Host, lock};
use crate::lies::{Liar, To};
use crate::log::Log;
use crate::part::{Part, announce, pieces, shared};
use crate::plan::{Lie, Sabotage, settings, timeouts};
use crate::pool::Pool;
use crate::signer::{LedgerSigner, LedgerVerifier};
use crate::wire::SYNC_BLOCKS_MAX;

/// The engine's own limits on what waits for later heights.
const QUEUE: (usize, usize) = (10, 500);
/// The application never idles by itself here: the world says when an idle wait is over.
const NEVER: Duration = Duration::from_secs(24 * 3_600);
/// How long a question for decided blocks may stay unanswered, in microseconds; as the engine is told.
const ASKED_US: u64 = 5_000_000;
/// The most messages that the application sends at once.
const PARTS_MAX: usize = 1_024;

/// What travels between validators: bytes of the shipped codecs.
#[derive(Clone, Debug)]
pub enum Wire {
    Said(Bytes),
    Aid(Bytes),
    Part(Bytes),
    Status(Bytes),
    Request(Bytes),
    Response(Bytes),
}

impl Wire {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Wire::Said(bytes)
            | Wire::Aid(bytes)
            | Wire::Part(bytes)
            | Wire::Status(bytes)
            | Wire::Request(bytes)
            | Wire::Response(bytes) => bytes,
        }
    }
}

/// What a machine wants of the world.
#[derive(Debug)]
pub enum Out {
    Send(Target, Wire),
    /// A timer that runs out after a while.
    Timer(u64, Duration),
    /// The application answered; the engine hears of it soon.
    Soon(Box<Input<Ledger>>),
    /// Nothing to do: begin that height after a while.
    Idle(u64, Duration),
    /// It says so for good.
    Said(SignedConsensusMsg<Ledger>),
    Committed(Box<CertifiedBlock>),
    Evidence(Box<Evidence>),
    /// It went on in the middle of a height.
    Replayed,
    /// It decided by a certificate that somebody sent.
    Synced,
    /// A round above the first began.
    Round(u32),
}

/// Who gets a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    All,
    One(usize),
    Even,
    Odd,
    /// Only the first so many: the sender died meanwhile.
    First(usize),
}

/// Why a machine does nothing any more.
#[derive(Debug)]
pub enum Stop {
    /// It was killed in the middle.
    Killed,
    /// The application ended by itself.
    Failed(Failure),
    /// Something that must not happen.
    Broken(String),
}

/// What a machine needs to start.
pub struct Seat {
    pub key: SecretKey,
    pub lie: Option<Lie>,
    pub report: bool,
    pub sabotage: Sabotage,
}

/// The name of a validator's connection.
pub fn peer(index: usize) -> PeerId {
    let number = u8::try_from(index + 1).expect("few validators");
    PeerId::from_bytes(&[&[0x12, 32][..], &[number; 32]].concat()).expect("a digest's form")
}

/// Runs a future that never waits.
fn ready<T>(future: impl Future<Output = T>) -> T {
    let mut future = std::pin::pin!(future);
    match future.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => unreachable!("signing and verifying never wait"),
    }
}

/// A running validator.
pub struct Machine {
    pub books: Arc<Books>,
    pub log: Log,
    pub out: Vec<Out>,
    /// After how many more effects it dies, and how many peers a message still reaches then.
    pub fuse: Option<(u32, usize)>,
    pub now_us: u64,
    key: SecretKey,
    network: NetworkId,
    signer: LedgerSigner,
    verifier: LedgerVerifier,
    codec: LogCodec,
    held: Held,
    thresholds: ThresholdParams,
    waits: LinearTimeouts,
    metrics: Metrics,
    core: Option<State<Ledger>>,
    app: Pin<Box<dyn Future<Output = Result<(), Failure>>>>,
    messages: mpsc::Sender<AppMsg<Ledger>>,
    parts: mpsc::Receiver<NetworkMsg<Ledger>>,
    shared: mpsc::Receiver<Vec<SignedBytes>>,
    wake: Arc<Notify>,
    _stop: watch::Sender<bool>,
    next: Option<oneshot::Receiver<Next<Ledger>>>,
    inbox: VecDeque<Input<Ledger>>,
    timers: Vec<(Timeout, u64)>,
    timers_made: u64,
    is_validator: bool,
    recovering: bool,
    liar: Option<Liar>,
    /// How far the others say they are.
    tips: BTreeMap<usize, u64>,
    asked_until_us: Option<u64>,
    /// Decided blocks that wait for their turn.
    ready: BTreeMap<u64, ValueResponse<Ledger>>,
}

impl Machine {
    /// A validator over its books and its log, at the point where the engine asks where to begin.
    pub fn new(seat: &Seat, replica: Replica, log: Log) -> Machine {
        let (network, height, validators) = (replica.network(), replica.height() + 1, replica.validators());
        let books = Arc::new(Books::new(replica, seat.key.clone(), seat.lie, seat.report));
        let members = Members::from(&validators);
        let held = Held::default();
        let (messages, inbox) = mpsc::channel(16);
        let (parts_in, parts) = mpsc::channel(PARTS_MAX);
        let (shared_in, shared) = mpsc::channel(64);
        let (stop, stopped) = watch::channel(false);
        let wake = Arc::new(Notify::new());
        let app = App {
            host: books.clone(),
            key: seat.key.clone(),
            network,
            timeouts: timeouts(),
            idle: NEVER,
            ahead_ms: settings().ahead_ms,
            pool: Pool::new(network, held.clone(), height, members.clone()),
            held: held.clone(),
            parts: parts_in,
            shared: shared_in,
            wake: wake.clone(),
            members,
            keys: validators.keys().to_vec(),
            verdicts: BTreeMap::new(),
            started: 0,
        };
        let quorum = match seat.sabotage {
            Sabotage::LowQuorum => ThresholdParam::F_PLUS_ONE,
            Sabotage::None | Sabotage::ForgetsLog | Sabotage::StaysCut => ThresholdParam::TWO_F_PLUS_ONE,
        };
        Machine {
            books,
            log,
            out: Vec::new(),
            fuse: None,
            now_us: 0,
            key: seat.key.clone(),
            network,
            signer: LedgerSigner::new(seat.key.clone()),
            verifier: LedgerVerifier::new(network),
            codec: LogCodec::new(held.clone()),
            held,
            thresholds: ThresholdParams { quorum, ..ThresholdParams::default() },
            waits: timeouts(),
            metrics: Metrics::new(),
            core: None,
            app: Box::pin(app.run(inbox, stopped)),
            messages,
            parts,
            shared,
            wake,
            _stop: stop,
            next: None,
            inbox: VecDeque::new(),
            timers: Vec::new(),
            timers_made: 0,
            is_validator: false,
            recovering: false,
            liar: seat.lie.map(|lie| Liar::new(lie, seat.key.clone(), network)),
            tips: BTreeMap::new(),
            asked_until_us: None,
            ready: BTreeMap::new(),
        }
    }

    // ---- what the world tells it ----

    /// It begins where its books end.
    pub fn start(&mut self) -> Result<(), Stop> {
        let mut answer = self.ask(|reply| AppMsg::ConsensusReady { reply })?;
        let (height, params) = answer.try_recv().map_err(|_| broken("the application did not say where to begin"))?;
        self.start_height(height, params)?;
        self.settle()
    }

    /// Something arrived from another validator.
    pub fn hear(&mut self, from: usize, wire: &Wire) -> Result<(), Stop> {
        match wire {
            Wire::Said(bytes) => {
                let Ok(said) = Codec::<SignedConsensusMsg<Ledger>>::decode(&WireCodec, bytes.clone()) else {
                    return Err(broken("a message cannot be decoded"));
                };
                self.approve(&said)?;
                self.process(match said {
                    SignedConsensusMsg::Vote(vote) => Input::Vote(vote),
                    SignedConsensusMsg::Proposal(proposal) => Input::Proposal(proposal),
                })?;
            }
            Wire::Aid(bytes) => {
                let Ok(aid) = Codec::<LivenessMsg<Ledger>>::decode(&WireCodec, bytes.clone()) else {
                    return Err(broken("a liveness message cannot be decoded"));
                };
                self.process(match aid {
                    LivenessMsg::Vote(vote) => Input::Vote(vote),
                    LivenessMsg::PolkaCertificate(polka) => Input::PolkaCertificate(polka),
                    LivenessMsg::SkipRoundCertificate(certificate) => Input::RoundCertificate(certificate),
                })?;
            }
            Wire::Part(bytes) => {
                let Ok(part) = Codec::<StreamMessage<Part>>::decode(&WireCodec, bytes.clone()) else {
                    return Err(broken("a part cannot be decoded"));
                };
                let from = peer(from);
                let ask = |reply| AppMsg::ReceivedProposalPart { from, published_by: None, part, reply };
                if let Ok(Some(value)) = self.ask(ask)?.try_recv() {
                    self.soon(Input::ProposedValue(value, ValueOrigin::Consensus));
                }
            }
            Wire::Status(bytes) => {
                let status: sync::Status<Ledger> =
                    WireCodec.decode(bytes.clone()).map_err(|_| broken("a status cannot be decoded"))?;
                self.tips.insert(from, status.tip_height.0);
                self.request()?;
            }
            Wire::Request(bytes) => {
                let sync::Request::ValueRequest(request) =
                    WireCodec.decode(bytes.clone()).map_err(|_| broken("a request cannot be decoded"))?;
                self.serve(from, request.range)?;
            }
            Wire::Response(bytes) => {
                let sync::Response::ValueResponse(response) =
                    WireCodec.decode(bytes.clone()).map_err(|_| broken("a response cannot be decoded"))?;
                self.asked_until_us = None;
                for value in response.values.into_iter().take(SYNC_BLOCKS_MAX) {
                    let sync::RawDecidedValue { value_bytes, certificate } = value;
                    let height = certificate.height.0;
                    self.ready.insert(height, ValueResponse { peer: peer(from), value_bytes, certificate });
                }
            }
        }
        self.settle()
    }

    /// A timer ran out; one that was cancelled is late, not wrong.
    pub fn timer(&mut self, id: u64) -> Result<(), Stop> {
        let Some(place) = self.timers.iter().position(|(_, other)| *other == id) else { return Ok(()) };
        let (timeout, _) = self.timers.remove(place);
        self.process(Input::TimeoutElapsed(timeout))?;
        self.settle()
    }

    /// The application's answer reaches the engine.
    pub fn answered(&mut self, input: Input<Ledger>) -> Result<(), Stop> {
        self.process(input)?;
        self.settle()
    }

    /// The idle wait before `height` is over.
    pub fn idle_over(&mut self, height: u64) -> Result<(), Stop> {
        let waits = self.next.is_some() && self.next_height() == height;
        if !waits {
            return Ok(());
        }
        self.next = None;
        let members = Members::from(&lock(self.books.replica()).validators());
        self.start_height(Height(height), HeightParams::new(members, self.waits, None))?;
        self.settle()
    }

    /// It is time to tell the others how far we are, and to ask if they are further.
    pub fn status(&mut self) -> Result<(), Stop> {
        let status = sync::Status {
            peer_id: peer(0),
            tip_height: Height(self.next_height() - 1),
            history_min_height: Height(1),
        };
        let bytes = WireCodec.encode(&status).map_err(|_| broken("a status cannot be encoded"))?;
        self.send(Target::All, Wire::Status(bytes));
        self.request()?;
        self.settle()
    }

    /// A client brings an entry of `key`'s account.
    pub fn submit(&mut self, key: &SecretKey, salt: u64, action: Action) -> Result<(), Stop> {
        if let Some(entry) = self.books.submit(key, salt, action) {
            self.share(&[entry]);
        }
        self.settle()
    }

    /// It died; only its log is left.
    pub fn into_log(self) -> Log {
        self.log
    }

    /// Where it is, in words.
    pub fn place(&self) -> String {
        let stored = self.next_height() - 1;
        let round = |core: &State<Ledger>| {
            format!("height {}, round {}, {:?}", core.height(), core.round(), core.driver.step())
        };
        let deciding = self.core.as_ref().map_or_else(|| "not started".to_owned(), round);
        format!("stored {stored}, {deciding}")
    }

    // ---- height by height ----

    fn next_height(&self) -> u64 {
        lock(self.books.replica()).height() + 1
    }

    fn start_height(&mut self, height: Height, params: HeightParams<Ledger>) -> Result<(), Stop> {
        let set = params.validator_set;
        let address = Address(self.key.public());
        self.is_validator = set.get_by_address(&address).is_some();
        if self.core.is_none() {
            let params = Params {
                address,
                threshold_params: self.thresholds,
                value_payload: ValuePayload::ProposalAndParts,
                enabled: true,
            };
            let ledger = Ledger { network: self.network };
            self.core = Some(State::new(ledger, height, set.clone(), params, QUEUE.0, QUEUE.1));
        }
        let entries = if self.is_validator {
            self.log
                .started(height.0, &self.codec)
                .map_err(|error| broken(&format!("the log cannot be read: {error}")))?
        } else {
            self.log.reset(height.0);
            Vec::new()
        };
        self.process(Input::StartHeight(height, set, false, None, VoteExtensionPolicy::default()))?;
        if !entries.is_empty() {
            self.out.push(Out::Replayed);
            self.recovering = true;
            let core = self.core.as_mut().expect("processed an input just now");
            core.record_recovered_own_precommit_extensions(&entries);
            core.index_wal_entries(&entries);
            for entry in entries {
                self.process(entry)?;
            }
            self.core.as_mut().expect("processed an input just now").reset_entries_index();
            self.recovering = false;
        }
        self.ready = self.ready.split_off(&height.0);
        Ok(())
    }

    /// Runs until nobody here has anything left to do.
    fn settle(&mut self) -> Result<(), Stop> {
        loop {
            self.pump()?;
            if let Some(next) = &mut self.next {
                match next.try_recv() {
                    Ok(Next::Start(height, params)) => {
                        self.next = None;
                        self.start_height(height, params)?;
                        continue;
                    }
                    Ok(Next::Restart(height, _)) => return Err(broken(&format!("height {height} was begun again"))),
                    Err(oneshot::error::TryRecvError::Empty) => {}
                    Err(oneshot::error::TryRecvError::Closed) => return Err(broken("no next height")),
                }
            }
            if let Some(input) = self.inbox.pop_front() {
                self.process(input)?;
                continue;
            }
            let core = self.core.as_ref().expect("started");
            let (height, committed) = (core.height().0, core.driver.step_is_commit());
            match self.ready.remove(&height) {
                Some(response) if !committed => self.process(Input::SyncValueResponse(response))?,
                Some(_) | None => return Ok(()),
            }
        }
    }

    /// Lets the application work until it waits for us.
    fn pump(&mut self) -> Result<(), Stop> {
        loop {
            if let Poll::Ready(end) = self.app.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
                return Err(end.map_or_else(Stop::Failed, |()| broken("the application ended without a reason")));
            }
            let mut worked = false;
            while let Ok(NetworkMsg::PublishProposalPart(part)) = self.parts.try_recv() {
                worked = true;
                let bytes = Codec::<StreamMessage<Part>>::encode(&WireCodec, &part);
                self.send(Target::All, Wire::Part(bytes.map_err(|_| broken("a part cannot be encoded"))?));
            }
            while let Ok(entries) = self.shared.try_recv() {
                worked = true;
                self.books.entries(&entries);
                self.wake.notify_one();
            }
            let notes = self.books.take();
            self.out.extend(notes.committed.into_iter().map(|block| Out::Committed(Box::new(block))));
            self.out.extend(notes.evidence.into_iter().map(|evidence| Out::Evidence(Box::new(evidence))));
            if !notes.share.is_empty() {
                worked = true;
                self.share(&notes.share);
            }
            if let (Some(block), Some(liar)) = (notes.second, &mut self.liar) {
                liar.second = Some(block.header.digest());
                let round = self.core.as_ref().map_or(0, |core| core.round().as_u32().unwrap_or(0));
                let (opening, bytes) = announce(self.network, round, None, &block, &self.key);
                for part in pieces(opening.wire(), &bytes) {
                    self.send_part(part)?;
                }
                self.held.put(block, bytes);
            }
            if !worked {
                return Ok(());
            }
        }
    }

    fn ask<T>(&mut self, question: impl FnOnce(Reply<T>) -> AppMsg<Ledger>) -> Result<oneshot::Receiver<T>, Stop> {
        let (reply, answer) = oneshot::channel();
        if self.messages.try_send(question(reply)).is_err() {
            return Err(broken("the application takes no message"));
        }
        self.pump()?;
        Ok(answer)
    }

    // ---- what leaves it ----

    fn send(&mut self, target: Target, wire: Wire) {
        if self.liar.as_ref().is_some_and(|liar| liar.lie == Lie::Silent) {
            return;
        }
        self.out.push(Out::Send(target, wire));
    }

    fn send_part(&mut self, part: Part) -> Result<(), Stop> {
        let bytes = Codec::<StreamMessage<Part>>::encode(&WireCodec, &message(part));
        self.send(Target::All, Wire::Part(bytes.map_err(|_| broken("a part cannot be encoded"))?));
        Ok(())
    }

    /// Tells the others of entries, as the shipped validator does.
    fn share(&mut self, entries: &[SignedBytes]) {
        for part in shared(self.network, entries, &self.key) {
            self.send_part(part).unwrap_or_else(|_| unreachable!("our own parts can be encoded"));
        }
        self.wake.notify_one();
    }

    fn say(&mut self, target: Target, said: &SignedConsensusMsg<Ledger>) -> Result<(), Stop> {
        let bytes = WireCodec.encode(said).map_err(|_| broken("a message cannot be encoded"))?;
        self.send(target, Wire::Said(bytes));
        Ok(())
    }

    fn publish(&mut self, said: SignedConsensusMsg<Ledger>, target: Target) -> Result<(), Stop> {
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
    fn approve(&mut self, said: &SignedConsensusMsg<Ledger>) -> Result<(), Stop> {
        let votes = self.liar.as_mut().map(|liar| liar.hears(said)).unwrap_or_default();
        votes.iter().try_for_each(|vote| self.say(Target::All, vote))
    }

    fn aid(&mut self, aid: &LivenessMsg<Ledger>) -> Result<(), Stop> {
        let bytes = WireCodec.encode(aid).map_err(|_| broken("a liveness message cannot be encoded"))?;
        self.send(Target::All, Wire::Aid(bytes));
        Ok(())
    }

    fn soon(&mut self, input: Input<Ledger>) {
        self.out.push(Out::Soon(Box::new(input)));
    }

    // ---- falling behind ----

    /// Asks one that is further for what we miss; one question at a time.
    fn request(&mut self) -> Result<(), Stop> {
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

    fn serve(&mut self, to: usize, range: std::ops::RangeInclusive<Height>) -> Result<(), Stop> {
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

    // ---- what the engine's actors do ----

    fn process(&mut self, input: Input<Ledger>) -> Result<(), Stop> {
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
                if round.as_i64() > 0 {
                    self.out.push(Out::Round(round.as_u32().unwrap_or(0)));
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

fn broken(what: &str) -> Stop {
    Stop::Broken(what.to_owned())
}
