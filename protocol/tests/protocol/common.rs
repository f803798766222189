//! A market in one thread: peers, a scripted backend each, a ledger that grants everything, a network without delay.
//! A test looks at what the peers' clients got and at what went over the wire.

use spillway_ledger::{
    Account, Credits, Digest, JobId, NetworkId, NodeId, Price, SecretKey, SessionId, Signed, Usage, Voucher,
};
use spillway_protocol::{
    Capacity, Effect, Event, Frame, Identity, Job, Kind, LedgerCommand, MarketConfig, Now, Offer, Outcome, Peer,
    Prefer, Reason, Record, RecordKind, StreamId, WorkId,
};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

pub const MODEL: &str = "guide";
pub const START: Now = Now::from_ms(1_700_000_000_000);

pub fn network() -> NetworkId {
    NetworkId(Digest::of("test", &[b"network"]))
}

pub fn secret(seed: u8, what: u8) -> SecretKey {
    let mut bytes = [seed; 32];
    bytes[0] = what;
    SecretKey::from_bytes(&bytes)
}

pub fn price(input: u64, output: u64) -> Price {
    Price { input: Credits::new(input), cached: Credits::new(input), output: Credits::new(output) }
}

pub fn job(id: u8) -> Job {
    Job {
        id: JobId([id; 16]),
        model: MODEL.into(),
        kind: Kind::Chat,
        body: b"{\"messages\":[]}".to_vec(),
        output_max: 4096,
        continuable: true,
        prefer: Prefer::OwnFirst,
        price_max: price(1_000_000, 10_000_000),
        prefix: vec![],
        alternatives: Vec::new(),
        preferences: spillway_protocol::Preferences::default(),
        own: spillway_protocol::OwnChoice::default(),
        whole: false,
        target_ms: None,
    }
}

pub struct Session {
    pub consumer: usize,
    pub provider: usize,
    pub deposit: Credits,
    pub settled: Credits,
    pub vouched: Credits,
}

pub struct Node {
    pub peer: Option<Peer>,
    pub id: NodeId,
    pub account: Account,
    seed: u8,
    config: MarketConfig,
    pub capacity: Vec<Capacity>,
    pub disk: BTreeMap<(RecordKind, Vec<u8>), Record>,
    pub work: BTreeMap<WorkId, Vec<u8>>,
    pub placed: Vec<(JobId, Reason, Option<NodeId>)>,
    pub text: BTreeMap<JobId, Vec<u8>>,
    pub ended: BTreeMap<JobId, Outcome>,
    /// What it published and did not take back.
    offers: Vec<Arc<Signed<Offer>>>,
}

#[derive(Default)]
pub struct World {
    pub nodes: Vec<Node>,
    pub now: Now,
    queue: VecDeque<(usize, Event)>,
    /// A stream's two ends: (node, its name there).
    pub streams: BTreeMap<(usize, StreamId), (usize, StreamId)>,
    next: u64,
    pub sessions: BTreeMap<SessionId, Session>,
    /// Every frame sent: from, to, frame.
    pub wire: Vec<(usize, usize, Frame)>,
    /// Every probe: from, to.
    pub probes: Vec<(usize, usize)>,
    /// Frames of these senders are lost.
    pub muted: Vec<usize>,
    /// Vouchers after the first are lost.
    pub vouchers_lost: bool,
    /// Every entry that a peer asked for: by whom, its business id, and what.
    pub asked: Vec<(usize, [u8; 16], LedgerCommand)>,
    /// The ledger answers only when it is told to, from here on.
    pub ledger_waits: bool,
    unanswered: VecDeque<(usize, [u8; 16], LedgerCommand)>,
    /// Business ids of top-ups that are in.
    raised: BTreeSet<[u8; 16]>,
}

impl World {
    pub fn new() -> Self {
        Self { now: START, ..Self::default() }
    }

    pub fn add(&mut self, seed: u8, slots: u32, config: MarketConfig) -> usize {
        let index = self.nodes.len();
        let capacity = Capacity {
            model: MODEL.into(),
            weights: Digest::of("test", &[b"weights"]),
            quantization: "Q8_0".into(),
            engine: "test".into(),
            context_max: 0,
            kinds: vec![Kind::Chat, Kind::Completion],
            slots,
            rented: 0,
            replicas: 1,
            token_price: Price::ZERO,
            continues: true,
            healthy: true,
        };
        self.nodes.push(Node {
            peer: None,
            id: NodeId(secret(seed, 1).public()),
            account: Account(secret(seed, 2).public()),
            seed,
            config,
            capacity: if slots == 0 { vec![] } else { vec![capacity] },
            disk: BTreeMap::new(),
            work: BTreeMap::new(),
            placed: vec![],
            text: BTreeMap::new(),
            ended: BTreeMap::new(),
            offers: vec![],
        });
        self.start(index);
        index
    }

    /// Starts a node from what its disk holds.
    pub fn start(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let identity = Identity { network: network(), node: secret(node.seed, 1), account: secret(node.seed, 2) };
        let records = node.disk.values().cloned().collect();
        node.peer = Some(Peer::new(node.config.clone(), identity, [node.seed; 32], records));
        let capacity = node.capacity.clone();
        self.queue.push_back((index, Event::Balance(Credits::new(1_000_000_000))));
        self.queue.push_back((index, Event::Addresses(vec!["/ip4/127.0.0.1/tcp/1".into()])));
        self.queue.push_back((index, Event::Capacity(capacity)));
        self.run();
    }

    /// `kill -9`: only the disk is left.
    pub fn kill(&mut self, index: usize) {
        self.nodes[index].peer = None;
        self.nodes[index].work.clear();
        let broken: Vec<_> = self.streams.iter().filter(|((node, _), _)| *node == index).map(|(_, far)| *far).collect();
        self.streams.retain(|(node, _), (far, _)| *node != index && *far != index);
        for (node, stream) in broken {
            self.queue.push_back((node, Event::StreamClosed(stream)));
        }
        self.run();
    }

    pub fn event(&mut self, index: usize, event: Event) {
        self.queue.push_back((index, event));
        self.run();
    }

    /// The backend of `index` says a piece of text for each piece of its running work.
    pub fn say(&mut self, index: usize, text: &str) {
        let work: Vec<WorkId> = self.nodes[index].work.keys().copied().collect();
        for work in work {
            let bytes = text.as_bytes().to_vec();
            self.event(index, Event::Output { work, bytes: bytes.clone(), text: bytes });
        }
    }

    pub fn finish(&mut self, index: usize) {
        let work: Vec<WorkId> = self.nodes[index].work.keys().copied().collect();
        for work in work {
            self.nodes[index].work.remove(&work);
            self.event(index, Event::Finished { work, finish: "stop".into() });
        }
    }

    /// Lets time pass, alarm by alarm.
    pub fn pass(&mut self, span: Duration) {
        let end = self.now.after(span);
        loop {
            let next = self.nodes.iter().filter_map(|node| node.peer.as_ref()?.deadline()).min();
            let Some(next) = next.filter(|next| *next <= end) else { break };
            self.now = self.now.max(next);
            for index in 0..self.nodes.len() {
                self.queue.push_back((index, Event::Tick));
            }
            self.run();
        }
        self.now = end;
    }

    fn run(&mut self) {
        let mut steps = 0;
        while let Some((index, event)) = self.queue.pop_front() {
            steps += 1;
            assert!(steps < 1_000_000, "the peers never come to rest");
            let now = self.now;
            let Some(peer) = &mut self.nodes[index].peer else { continue };
            peer.handle(now, event);
            let mut effects = vec![];
            while let Some(effect) = peer.poll() {
                effects.push(effect);
            }
            for effect in effects {
                self.perform(index, effect);
            }
        }
    }

    fn node_of(&self, id: NodeId) -> usize {
        self.nodes.iter().position(|node| node.id == id).expect("a known node")
    }

    fn account_of(&self, id: Account) -> usize {
        self.nodes.iter().position(|node| node.account == id).expect("a known account")
    }

    fn perform(&mut self, index: usize, effect: Effect) {
        match effect {
            Effect::Placed { job, reason, provider, .. } => self.nodes[index].placed.push((job, reason, provider)),
            Effect::Deliver { job, bytes } => self.nodes[index].text.entry(job).or_default().extend(bytes),
            Effect::Ended { job, outcome } => {
                assert!(self.nodes[index].ended.insert(job, outcome).is_none(), "a job ended twice");
            }
            Effect::Run { work, prefix, .. } => {
                self.nodes[index].work.insert(work, prefix);
            }
            Effect::Stop(work) => {
                self.nodes[index].work.remove(&work);
            }
            Effect::OpenStream { stream, peer, .. } => {
                let far = self.node_of(peer);
                if self.nodes[far].peer.is_none() {
                    return self.queue.push_back((index, Event::StreamClosed(stream)));
                }
                let theirs = StreamId::In(self.next);
                self.next += 1;
                self.streams.insert((index, stream), (far, theirs));
                self.streams.insert((far, theirs), (index, stream));
                self.queue.push_back((index, Event::StreamOpened(stream)));
            }
            Effect::Send { stream, frame } => self.send(index, stream, frame),
            Effect::CloseStream(stream) => {
                if let Some((far, theirs)) = self.streams.remove(&(index, stream)) {
                    self.streams.remove(&(far, theirs));
                    self.queue.push_back((far, Event::StreamClosed(theirs)));
                }
            }
            Effect::SendProbe { probe, peer, request, .. } => {
                let far = self.node_of(peer);
                self.probes.push((index, far));
                let (now, from) = (self.now, self.nodes[index].id);
                let Some(far_peer) = &mut self.nodes[far].peer else { return };
                far_peer.handle(now, Event::ProbeReceived { probe, peer: from, request });
                let mut reply = None;
                let mut others = vec![];
                while let Some(effect) = far_peer.poll() {
                    match effect {
                        Effect::ReplyProbe { reply: answer, .. } => reply = Some(answer),
                        other => others.push(other),
                    }
                }
                for effect in others {
                    self.perform(far, effect);
                }
                self.queue.push_back((index, Event::ProbeReplied { probe, reply }));
            }
            Effect::ReplyProbe { .. } => unreachable!("answered where the probe was asked"),
            Effect::Publish(offer) => {
                self.nodes[index].offers.push(Arc::new(offer.clone()));
                for other in (0..self.nodes.len()).filter(|other| *other != index) {
                    self.queue.push_back((other, Event::OfferReceived(offer.clone())));
                }
            }
            Effect::Withdraw => {
                let offers: Vec<_> = std::mem::take(&mut self.nodes[index].offers);
                for other in (0..self.nodes.len()).filter(|other| *other != index) {
                    for offer in &offers {
                        self.queue.push_back((other, Event::OfferHeld { offer: offer.clone(), until_ms: 0 }));
                    }
                }
            }
            Effect::Ledger { business, command } => {
                self.asked.push((index, business, command.clone()));
                if self.ledger_waits {
                    self.unanswered.push_back((index, business, command));
                } else {
                    self.ledger(index, business, command);
                }
            }
            Effect::Persist(record) => {
                let key = record.key();
                match record {
                    Record::PayingOver(_) | Record::EarningOver(_) => {
                        self.nodes[index].disk.remove(&key);
                    }
                    kept => {
                        self.nodes[index].disk.insert(key, kept);
                    }
                }
            }
        }
    }

    fn send(&mut self, index: usize, stream: StreamId, frame: Frame) {
        let Some((far, theirs)) = self.streams.get(&(index, stream)).copied() else { return };
        // Through the bytes, as on a real stream.
        let wire = frame.to_wire();
        assert_eq!(Frame::length(wire[..4].try_into().expect("four bytes")), Ok(wire.len() - 4));
        let frame = Frame::from_wire(&wire[4..]).expect("what a peer sends can be read");
        self.wire.push((index, far, frame.clone()));
        if self.muted.contains(&index) || (self.vouchers_lost && matches!(frame, Frame::Voucher(_))) {
            return;
        }
        let voucher = match &frame {
            Frame::Open(open) => Some(&open.voucher),
            Frame::Voucher(voucher) => Some(voucher),
            _ => None,
        };
        if let Some(voucher) = voucher {
            let voucher = Signed::<Voucher>::open(voucher.clone()).expect("signed");
            let session = self.sessions.get_mut(&voucher.value().session).expect("opened");
            session.vouched = session.vouched.max(voucher.value().total);
        }
        let text = if let Frame::Chunk { bytes, .. } = &frame { bytes.clone() } else { vec![] };
        let peer = self.nodes[index].id;
        self.queue.push_back((far, Event::FrameReceived { stream: theirs, peer, frame, text }));
    }

    fn ledger(&mut self, index: usize, business: [u8; 16], command: LedgerCommand) {
        match command {
            LedgerCommand::Open { provider, voucher_key, deposit, price_cap, expires_ms } => {
                let consumer = self.nodes[index].account;
                let session = SessionId::derive(&network(), &consumer, self.sessions.len() as u64);
                let far = self.account_of(provider);
                let state =
                    Session { consumer: index, provider: far, deposit, settled: Credits::ZERO, vouched: Credits::ZERO };
                self.sessions.insert(session, state);
                for node in [far, index] {
                    let opened = Event::SessionOpened {
                        session,
                        business,
                        consumer,
                        provider,
                        voucher_key,
                        deposit,
                        price_cap,
                        expires_ms,
                    };
                    self.queue.push_back((node, opened));
                }
            }
            LedgerCommand::Settle { voucher, claim, last, usage, .. } => {
                let voucher = Signed::<Voucher>::open(voucher).expect("a signed voucher");
                let session = voucher.value().session;
                let state = self.sessions.get_mut(&session).expect("opened");
                assert!(claim <= voucher.value().total && claim <= state.deposit, "claims more than was promised");
                assert!(claim > state.settled || last, "settles nothing new");
                assert!(usage != Usage::default());
                state.settled = claim;
                for node in [state.provider, state.consumer] {
                    self.queue.push_back((node, Event::SessionSettled { session, settled: claim, closed: last }));
                }
            }
            LedgerCommand::TopUp { session, amount } => {
                if !self.raised.insert(business) {
                    return; // Done before.
                }
                let state = self.sessions.get_mut(&session).expect("opened");
                state.deposit = state.deposit.checked_add(amount).expect("small");
                let deposit = state.deposit;
                for node in [state.provider, state.consumer] {
                    self.queue.push_back((node, Event::SessionToppedUp { session, deposit }));
                }
            }
            LedgerCommand::Refund { session } => {
                let state = &self.sessions[&session];
                for node in [state.provider, state.consumer] {
                    let settled = Event::SessionSettled { session, settled: state.settled, closed: true };
                    self.queue.push_back((node, settled));
                }
            }
        }
    }

    /// The ledger answers what was asked while it waited: grants it, or refuses it.
    pub fn answer(&mut self, grants: bool) {
        for (index, business, command) in std::mem::take(&mut self.unanswered) {
            if grants {
                self.ledger(index, business, command);
            } else {
                self.queue.push_back((index, Event::EntryRefused { business, why: "no".into() }));
            }
        }
        self.run();
    }

    /// Puts an entry on the ledger as if the node's machine had asked for it.
    pub fn ledger_for(&mut self, index: usize, command: LedgerCommand) {
        self.ledger(index, [9; 16], command);
        self.run();
    }

    pub fn submit(&mut self, index: usize, job: Job) -> JobId {
        let id = job.id;
        self.event(index, Event::Submit(job));
        id
    }

    pub fn text(&self, index: usize, job: JobId) -> String {
        String::from_utf8(self.nodes[index].text.get(&job).cloned().unwrap_or_default()).expect("text")
    }
}

pub fn provider(output: u64) -> MarketConfig {
    MarketConfig {
        provide: true,
        price: price(50_000, output),
        window: 64,
        settle_after: Duration::from_secs(5),
        ..MarketConfig::default()
    }
}

/// One that opens sessions only when a job needs them.
pub fn consumer() -> MarketConfig {
    MarketConfig { window_start: 64, window_max: 256, sessions_ahead: 0, ..MarketConfig::default() }
}
