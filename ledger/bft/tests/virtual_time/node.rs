//! One validator without threads, sockets or clocks: the engine's state machine, our application, our books, a log.
//! Invariant: everything the engine asks for is answered by the code that ships; what is ours here is what its actors
//! do: carry messages, keep the log, run timers. A machine that died does nothing any more.

mod effects;
mod peers;

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use arc_malachitebft_app_channel::app::metrics::Metrics;
use arc_malachitebft_app_channel::app::types::codec::Codec;
use arc_malachitebft_app_channel::{AppMsg, NetworkMsg, Reply};
use arc_malachitebft_core_consensus::{Input, LivenessMsg, Params, SignedConsensusMsg, State, ValuePayload};
use arc_malachitebft_core_types as types;
use arc_malachitebft_engine::host::{HeightParams, Next};
use arc_malachitebft_engine::util::streaming::StreamMessage;
use arc_malachitebft_peer::PeerId;
use arc_malachitebft_sync as sync;
use bytes::Bytes;
use spillway_ledger::{Action, CertifiedBlock, Evidence, NetworkId, Replica, SecretKey, SignedBytes};
use tokio::sync::{Notify, mpsc, oneshot, watch};
use types::{LinearTimeouts, ThresholdParam, ThresholdParams, Timeout, ValueOrigin, ValueResponse};
use types::{ValidatorSet as _, VoteExtensionPolicy};

use crate::app::{App, Failure};
use crate::books::Books;
use crate::codec::{LogCodec, WireCodec};
use crate::context::{Address, Height, Ledger, Members};
use crate::held::Held;
use crate::host::{Host, lock};
use crate::lies::Liar;
use crate::log::Log;
use crate::part::Part;
use crate::plan::{Lie, Sabotage, settings, timeouts};
use crate::pool::Pool;
use crate::progress::Progress;
use crate::signer::{LedgerSigner, LedgerVerifier};
use crate::wire::SYNC_BLOCKS_MAX;

/// The engine's own limits on what waits for later heights.
const QUEUE: (usize, usize) = (10, 500);
/// The application never idles by itself here: the world says when an idle wait is over.
const NEVER: Duration = Duration::from_secs(24 * 3_600);
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
    thresholds: ThresholdParams,
    waits: LinearTimeouts,
    metrics: Metrics,
    core: Option<State<Ledger>>,
    app: Pin<Box<dyn Future<Output = Result<(), Failure>>>>,
    messages: mpsc::Sender<AppMsg<Ledger>>,
    parts: mpsc::Receiver<NetworkMsg<Ledger>>,
    shared: mpsc::Receiver<Vec<SignedBytes>>,
    taken: Arc<Progress>,
    wake: Arc<Notify>,
    _stop: watch::Sender<bool>,
    next: Option<oneshot::Receiver<Next<Ledger>>>,
    inbox: VecDeque<Input<Ledger>>,
    timers: Vec<(Timeout, u64)>,
    timers_made: u64,
    is_validator: bool,
    /// The round that began last.
    round: u32,
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
        let taken = Arc::new(Progress::default());
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
            fetched: 0,
            taken: taken.clone(),
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

            thresholds: ThresholdParams { quorum, ..ThresholdParams::default() },
            waits: timeouts(),
            metrics: Metrics::new(),
            core: None,
            app: Box::pin(app.run(inbox, stopped)),
            messages,
            parts,
            shared,
            taken,
            wake,
            _stop: stop,
            next: None,
            inbox: VecDeque::new(),
            timers: Vec::new(),
            timers_made: 0,
            is_validator: false,
            round: 0,
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
                self.taken.done_one();
                self.wake.notify_one();
            }
            let notes = self.books.take();
            self.out.extend(notes.committed.into_iter().map(|block| Out::Committed(Box::new(block))));
            self.out.extend(notes.evidence.into_iter().map(|evidence| Out::Evidence(Box::new(evidence))));
            if !notes.share.is_empty() {
                worked = true;
                self.share(&notes.share);
            }
            if let Some(block) = notes.second {
                self.send_second(&block)?;
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
}

fn broken(what: &str) -> Stop {
    Stop::Broken(what.to_owned())
}
