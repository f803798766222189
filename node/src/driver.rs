//! Drives the market's machine with the real world: one task that turns what happens into events and effects into deeds.
//! Invariants: effects are carried out in order; what is to be kept is on disk before anything later in the same drain
//! leaves this node; no queue here grows without bound.

use crate::backend::{self, BackendEvent, Backends, Running, Work};
use crate::books::{BookEvent, Books};
use crate::jobs::{Beside, Command, JobEvent, JobRequest, Jobs};
use crate::market_view::market_view;
use crate::network::{CallKind, FrameReader, FrameWriter, JobStream, Network, NetworkEvent, Reply, Topic, Verdict};
use crate::openai::measure::text_of_event;
use crate::peers::PeerCache;
use crate::records::{self, Aside};
use crate::telemetry::TraceHeaders;
use anyhow::Context as _;
use futures::future::BoxFuture;
use spillway_ledger::store::{Batch, Store};
use spillway_ledger::{Action, Applied, Digest, JobId, NodeId, Signed, decode, encode};
use spillway_protocol::discovery::{self, Judgement, Token};
use spillway_protocol::record::Spending;
use spillway_protocol::{
    Capacity, Discovery, Effect, Event, Frame, Kind, LedgerCommand, Now, Offer, Outcome, Peer, Probe, ProbeId,
    ProbeReply, Record, StreamId, WorkId,
};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio::task::AbortHandle;

/// Happenings that may wait to be handled; whoever adds more waits.
const INBOX_MAX: usize = 4096;
/// Frames that may wait to be sent on one stream; a peer that reads slower loses the stream.
const OUTBOX_MAX: usize = 4096;
/// Happenings handled between two visits to the disk.
const BATCH_MAX: usize = 512;
/// How long a probe or an opening may take on the network; the market has limits of its own.
const NETWORK_WAIT: Duration = Duration::from_secs(5);
/// While it knows fewer offers than this, a node asks each new peer for some.
const FEW_OFFERS: usize = 64;
/// Offers that one answer to that carries.
const EXCHANGED_MAX: usize = 64;
/// Models that count as used, the last ones; and for how long.
const USES_MAX: usize = 64;
const USED_FOR: Duration = Duration::from_secs(24 * 3600);
/// Peers that are known to be good.
const ANCHORS_MAX: usize = 32;
/// How long it may take to tell peers that this node leaves.
const FAREWELL_WAIT: Duration = Duration::from_millis(500);
/// How often what is thought of others is kept.
const REPUTATION_EVERY: Duration = Duration::from_secs(60);
/// How often the snapshot of the market is renewed at the least.
const VIEW_EVERY: Duration = Duration::from_secs(2);
/// How soon after a change.
const VIEW_AFTER: Duration = Duration::from_millis(100);

/// What other tasks tell the driver.
enum Inbox {
    Event(Event),
    Discovery(discovery::Event),
    Opened(StreamId, NodeId, JobStream),
    Frame(StreamId, NodeId, Frame),
}

/// The means of one node.
pub struct Parts {
    /// The market.
    pub peer: Peer,
    /// How it learns of offers, and others of its own.
    pub discovery: Discovery,
    /// The peers to come back to.
    pub known: PeerCache,
    /// Where records go.
    pub store: Arc<Store>,
    /// Peers.
    pub network: Network,
    /// What the network tells.
    pub network_events: mpsc::Receiver<NetworkEvent>,
    /// The node's copy of the ledger.
    pub books: Books,
    /// What the ledger tells.
    pub book_events: mpsc::Receiver<BookEvent>,
    /// Own inference.
    pub backends: Backends,
    /// What own inference can do.
    pub capacity: watch::Receiver<Vec<Capacity>>,
    /// The clients' handle.
    pub jobs: Jobs,
    /// What clients want.
    pub commands: mpsc::Receiver<Command>,
}

struct Client {
    model: String,
    events: mpsc::Sender<JobEvent>,
    /// Keeps room for the end, however slowly the client reads.
    end: mpsc::OwnedPermit<JobEvent>,
    trace: Option<TraceHeaders>,
}

struct StreamTask {
    /// The kind of job, learned from the stream's first frame.
    kind: Kind,
    outbox: mpsc::Sender<Frame>,
    reader: AbortHandle,
}

struct Driver {
    parts: Parts,
    clock: Clock,
    inbox: mpsc::Sender<Inbox>,
    clients: HashMap<JobId, Client>,
    /// What is to be kept with the first promise to pay for a job, until there is one.
    asides: HashMap<JobId, Arc<Aside>>,
    /// The last such promise of each job under way.
    spending: HashMap<JobId, Spending>,
    streams: HashMap<StreamId, StreamTask>,
    work: HashMap<WorkId, Running>,
    probes: HashMap<ProbeId, Reply>,
    /// Gossiped messages and questions of which discovery has yet to say what becomes of them.
    verdicts: HashMap<Token, Verdict>,
    questions: HashMap<Token, Reply>,
    next_token: u64,
    /// The models that own jobs asked for, and when they last did.
    uses: BTreeMap<String, Instant>,
    own_offers: BTreeMap<String, Signed<Offer>>,
    next_stream: u64,
    next_probe: u64,
    peers: usize,
    view_dirty: bool,
    view_at: Instant,
    reputation_at: Instant,
}

/// Wall time that never goes back: read once, then counted.
struct Clock {
    wall_us: u64,
    start: Instant,
}

impl Clock {
    fn new() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self { wall_us: u64::try_from(since.as_micros()).unwrap_or(u64::MAX), start: Instant::now() }
    }

    fn now(&self) -> Now {
        let elapsed = u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Now(self.wall_us.saturating_add(elapsed))
    }

    fn instant(&self, at: Now) -> Instant {
        self.start + Duration::from_micros(at.0.saturating_sub(self.wall_us))
    }
}

/// Runs until `stop` resolves.
///
/// # Errors
/// If the store fails: a node that cannot keep its promises on disk makes none.
pub async fn drive(
    parts: Parts,
    restored: Vec<spillway_protocol::Record>,
    stop: impl Future<Output = ()>,
) -> anyhow::Result<()> {
    let (inbox, mut inbound) = mpsc::channel(INBOX_MAX);
    let mut driver = Driver {
        parts,
        clock: Clock::new(),
        inbox,
        clients: HashMap::new(),
        asides: HashMap::new(),
        spending: HashMap::new(),
        streams: HashMap::new(),
        work: HashMap::new(),
        probes: HashMap::new(),
        verdicts: HashMap::new(),
        questions: HashMap::new(),
        next_token: 0,
        uses: BTreeMap::new(),
        own_offers: BTreeMap::new(),
        next_stream: 0,
        next_probe: 0,
        peers: 0,
        view_dirty: true,
        view_at: Instant::now(),
        reputation_at: Instant::now(),
    };
    driver.begin(&restored);
    driver.drain().await?;
    tokio::pin!(stop);
    // Kept over the turns: most leave the time to wake as it was.
    let alarm = tokio::time::sleep_until(driver.wake_at().into());
    tokio::pin!(alarm);
    loop {
        let wake = driver.wake_at().into();
        if alarm.deadline() != wake {
            alarm.as_mut().reset(wake);
        }
        tokio::select! {
            () = &mut stop => {
                driver.leave().await;
                return Ok(());
            }
            Some(message) = inbound.recv() => {
                driver.take(message);
                for _ in 1..BATCH_MAX {
                    let Ok(message) = inbound.try_recv() else { break };
                    driver.take(message);
                }
            }
            Some(event) = driver.parts.network_events.recv() => driver.network_event(event),
            Some(event) = driver.parts.book_events.recv() => {
                driver.book_event(event);
                while let Ok(event) = driver.parts.book_events.try_recv() {
                    driver.book_event(event);
                }
            }
            Some(command) = driver.parts.commands.recv() => driver.command(command),
            Ok(()) = driver.parts.capacity.changed() => driver.capacity_changed(),
            () = &mut alarm => {
                driver.handle(Event::Tick);
                driver.discover(discovery::Event::Tick);
            }
        }
        driver.drain().await?;
        driver.renew_view();
        if driver.reputation_at.elapsed() >= REPUTATION_EVERY {
            driver.reputation_at = Instant::now();
            driver.parts.known.keep_reputation(&driver.parts.peer);
        }
    }
}

impl Driver {
    fn handle(&mut self, event: Event) {
        let now = self.clock.now();
        self.parts.peer.handle(now, event);
    }

    fn wake_at(&self) -> Instant {
        let view = self.view_at + if self.view_dirty { VIEW_AFTER } else { VIEW_EVERY };
        let deadlines = self.parts.peer.deadline().into_iter().chain(self.parts.discovery.deadline());
        deadlines.map(|at| self.clock.instant(at)).fold(view, Instant::min)
    }

    /// Tells the market what has been true before it started: sessions, balance, addresses, backends.
    fn begin(&mut self, restored: &[spillway_protocol::Record]) {
        self.parts.known.restore_reputation(self.clock.now(), &mut self.parts.peer);
        let account = self.parts.books.account();
        let mut events = Vec::new();
        self.parts.books.read(|book| {
            for (session, state) in book.sessions() {
                if state.open && (state.consumer == account || state.provider == account) {
                    events.push(Event::SessionOpened {
                        session: *session,
                        business: [0; 16],
                        consumer: state.consumer,
                        provider: state.provider,
                        voucher_key: state.voucher_key,
                        deposit: state.deposit,
                        price_cap: state.price_cap,
                        expires_ms: state.expires_ms,
                    });
                    events.push(Event::SessionSettled { session: *session, settled: state.settled, closed: false });
                }
            }
            for record in restored {
                let (session, settled) = match record {
                    spillway_protocol::Record::Paying(paying) => (paying.session, paying.settled),
                    spillway_protocol::Record::Earning(earning) => (earning.session, earning.settled),
                    spillway_protocol::Record::Spending(_)
                    | spillway_protocol::Record::Receipt { .. }
                    | spillway_protocol::Record::PayingOver(_)
                    | spillway_protocol::Record::EarningOver(_) => continue,
                };
                // A copy of the books that is behind knows nothing yet; one that knows the session as closed ends it.
                if book.session(&session).is_some_and(|state| !state.open) {
                    events.push(Event::SessionSettled { session, settled, closed: true });
                }
            }
            events.push(Event::Balance(book.balance(&account)));
        });
        events.push(Event::Addresses(self.parts.network.addresses()));
        for event in events {
            self.handle(event);
        }
        self.discover(discovery::Event::Uses(Vec::new()));
        self.discover(discovery::Event::Anchors(self.parts.known.anchors(ANCHORS_MAX)));
        self.capacity_changed();
    }

    fn capacity_changed(&mut self) {
        let capacity = self.parts.capacity.borrow_and_update().clone();
        self.handle(Event::Capacity(capacity));
        self.view_dirty = true;
    }

    fn command(&mut self, command: Command) {
        match command {
            Command::Submit(request) => {
                let JobRequest { job, events, beside: Beside { aside, trace } } = *request;
                let Ok(end) = events.clone().try_reserve_owned() else { return };
                if let Some(aside) = aside {
                    self.asides.insert(job.id, aside);
                }
                self.clients.insert(job.id, Client { model: job.model.clone(), events, end, trace });
                self.uses(&job.model);
                self.handle(Event::Submit(job));
            }
            Command::ClientLeft(job) => self.handle(Event::ClientLeft(job)),
        }
    }

    fn take(&mut self, message: Inbox) {
        match message {
            Inbox::Event(event) => {
                if let Event::StreamClosed(stream) = &event {
                    self.close(*stream);
                }
                if let Event::Finished { work, .. } | Event::BackendFailed { work, .. } = &event {
                    // Its handle keeps the memory of its task.
                    self.work.remove(work);
                }
                self.handle(event);
            }
            Inbox::Discovery(event) => self.discover(event),
            Inbox::Opened(stream, peer, job_stream) => {
                self.attach(stream, peer, job_stream);
                self.handle(Event::StreamOpened(stream));
            }
            Inbox::Frame(stream, peer, frame) => {
                let Some(task) = self.streams.get_mut(&stream) else { return };
                let text = match &frame {
                    Frame::Chunk { bytes, .. } => text_of_event(task.kind, bytes),
                    Frame::Open(open) => {
                        task.kind = open.kind;
                        Vec::new()
                    }
                    Frame::Accepted { .. }
                    | Frame::Refused { .. }
                    | Frame::Alive { .. }
                    | Frame::Voucher(_)
                    | Frame::Cancel
                    | Frame::Done { .. }
                    | Frame::Aborted { .. }
                    | Frame::Rejected { .. }
                    | Frame::CoSigned(_) => Vec::new(),
                };
                self.handle(Event::FrameReceived { stream, peer, frame, text });
            }
        }
    }

    // ---- the network ----

    fn network_event(&mut self, event: NetworkEvent) {
        match event {
            NetworkEvent::PeerConnected(peer) => {
                self.peers += 1;
                self.exchange_offers(peer);
                self.handle(Event::Addresses(self.parts.network.addresses()));
            }
            NetworkEvent::PeerLost(peer) => {
                self.peers = self.peers.saturating_sub(1);
                self.discover(discovery::Event::PeerLost(peer));
                self.handle(Event::PeerLost(peer));
            }
            NetworkEvent::TopicJoined { peer, shard } => self.discover(discovery::Event::Joined { peer, shard }),
            NetworkEvent::TopicLeft { peer, shard } => self.discover(discovery::Event::Parted { peer, shard }),
            NetworkEvent::Rtt { .. } => {} // Probes measure the whole way; a ping sees less than a job does.
            NetworkEvent::Gossip { topic: Topic::Notices(shard), from, bytes, verdict } => {
                let message = self.token();
                self.verdicts.insert(message, verdict);
                self.discover(discovery::Event::Heard { message, shard, from, bytes });
            }
            NetworkEvent::Gossip { topic: Topic::Blocks, bytes, verdict, .. } => {
                self.parts.books.gossip(bytes, verdict);
            }
            NetworkEvent::Call { kind: CallKind::Probe, peer, request, reply } => {
                let Ok(request) = decode::<Probe>(&request) else { return }; // Dropping the reply refuses the call.
                let probe = ProbeId(self.next_probe);
                self.next_probe += 1;
                self.probes.insert(probe, reply);
                self.handle(Event::ProbeReceived { probe, peer, request });
            }
            NetworkEvent::Call { kind: CallKind::Offers, request, reply, .. } if request.is_empty() => {
                reply.send(self.offers_for_exchange());
            }
            NetworkEvent::Call { kind: CallKind::Offers, peer, request, reply } => {
                let call = self.token();
                self.questions.insert(call, reply);
                self.discover(discovery::Event::Asked { call, from: peer, bytes: request });
            }
            NetworkEvent::Call { kind: CallKind::Ledger, peer, request, reply } => {
                self.parts.books.call(peer, request, reply);
            }
            NetworkEvent::Stream { peer, stream } => {
                let id = StreamId::In(self.next_stream);
                self.next_stream += 1;
                self.attach(id, peer, stream);
            }
        }
    }

    /// Asks a new peer for some offers that it knows, while this node knows few.
    fn exchange_offers(&self, peer: NodeId) {
        if self.parts.peer.directory().len() >= FEW_OFFERS {
            return;
        }
        let (network, inbox) = (self.parts.network.clone(), self.inbox.clone());
        tokio::spawn(async move {
            let Ok(bytes) = network.call(peer, &[], CallKind::Offers, Vec::new(), NETWORK_WAIT).await else { return };
            for offer in split_offers(&bytes) {
                if inbox.send(Inbox::Event(Event::OfferReceived(offer))).await.is_err() {
                    return;
                }
            }
        });
    }

    /// Own offers first, then others', at most [`EXCHANGED_MAX`]: each with its length before it.
    fn offers_for_exchange(&self) -> Vec<u8> {
        let now = self.clock.now();
        let mut bytes = Vec::new();
        let mut seen = std::collections::BTreeSet::new();
        let others = self.parts.peer.directory().all(now).map(|listing| &*listing.offer);
        for offer in self.own_offers.values().chain(others) {
            if !seen.insert(offer.digest()) {
                continue;
            }
            let encoded = offer.to_bytes();
            let room = CallKind::Offers.response_bytes_max();
            if seen.len() > EXCHANGED_MAX || bytes.len() + 4 + encoded.len() > room {
                break;
            }
            bytes.extend_from_slice(&u32::try_from(encoded.len()).expect("at most 1 KiB").to_le_bytes());
            bytes.extend_from_slice(&encoded);
        }
        bytes
    }

    // ---- discovery ----

    const fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    /// Tells discovery something, and does what it asks for.
    fn discover(&mut self, event: discovery::Event) {
        let now = self.clock.now();
        self.parts.discovery.handle(now, event);
        while let Some(effect) = self.parts.discovery.poll() {
            self.perform_discovery(effect);
        }
    }

    fn perform_discovery(&mut self, effect: discovery::Effect) {
        let network = &self.parts.network;
        match effect {
            discovery::Effect::Join(shard) => network.join(shard),
            discovery::Effect::Part(shard) => network.part(shard),
            discovery::Effect::Seek(shard) => network.seek(shard),
            discovery::Effect::Gossip { shard, bytes } => network.publish(Topic::Notices(shard), bytes),
            discovery::Effect::Judge { message, judgement } => {
                let Some(verdict) = self.verdicts.remove(&message) else { return };
                match judgement {
                    Judgement::Accept => verdict.accept(),
                    Judgement::Ignore => verdict.ignore(),
                    Judgement::Reject => verdict.reject(),
                }
            }
            discovery::Effect::Ask { ask, peer, bytes } => {
                let (network, inbox) = (network.clone(), self.inbox.clone());
                tokio::spawn(async move {
                    let answer = network.call(peer, &[], CallKind::Offers, bytes, NETWORK_WAIT).await;
                    let bytes = match answer {
                        Ok(bytes) => Some(bytes),
                        Err(error) => {
                            tracing::debug!(%peer, %error, "a question about offers went unanswered");
                            None
                        }
                    };
                    let answered = discovery::Event::Answered { ask, bytes };
                    let _ = inbox.send(Inbox::Discovery(answered)).await;
                });
            }
            discovery::Effect::Answer { call, bytes } => {
                if let Some(reply) = self.questions.remove(&call) {
                    reply.send(bytes);
                }
            }
            discovery::Effect::Hold { offer, until_ms } => {
                self.handle(Event::OfferHeld { offer, until_ms });
                self.view_dirty = true;
            }
            discovery::Effect::Blame { peer, fault } => {
                tracing::debug!(%peer, ?fault, "a peer broke the rules of discovery");
            }
        }
    }

    /// Notes that an own job asks for a model, so that its offers are followed from now on.
    fn uses(&mut self, model: &str) {
        let now = Instant::now();
        if let Some(last) = self.uses.get_mut(model) {
            *last = now;
            return;
        }
        self.uses.retain(|_, last| now.duration_since(*last) < USED_FOR);
        if self.uses.len() >= USES_MAX
            && let Some(oldest) = self.uses.iter().min_by_key(|(_, last)| **last).map(|(model, _)| model.clone())
        {
            self.uses.remove(&oldest);
        }
        self.uses.insert(model.to_owned(), now);
        self.discover(discovery::Event::Uses(self.uses.keys().cloned().collect()));
    }

    /// Remembers the providers that served a job.
    fn remember(&mut self, model: &str, outcome: &Outcome) {
        if outcome.result.is_err() {
            return;
        }
        let now = self.clock.now();
        let mut is_news = false;
        for node in outcome.legs.iter().filter(|leg| leg.usage.output > 0).filter_map(|leg| leg.provider) {
            let listing = self.parts.peer.directory().get(model, &node);
            let addresses = listing.map(|listing| listing.offer.value().addresses.clone()).unwrap_or_default();
            is_news |= self.parts.known.served(now, node, &addresses);
        }
        if is_news {
            self.discover(discovery::Event::Anchors(self.parts.known.anchors(ANCHORS_MAX)));
        }
    }

    /// Takes own offers back, and waits a moment until peers have heard of it.
    async fn leave(&mut self) {
        let now = self.clock.now();
        self.parts.discovery.handle(now, discovery::Event::Leave);
        let mut told = Vec::new();
        while let Some(effect) = self.parts.discovery.poll() {
            if let discovery::Effect::Ask { peer, bytes, .. } = effect {
                let network = self.parts.network.clone();
                told.push(async move { network.call(peer, &[], CallKind::Offers, bytes, FAREWELL_WAIT).await });
            }
        }
        let _ = tokio::time::timeout(FAREWELL_WAIT, futures::future::join_all(told)).await;
        self.parts.known.keep_reputation(&self.parts.peer);
        self.parts.known.flush();
    }

    fn attach(&mut self, id: StreamId, peer: NodeId, stream: JobStream) {
        let (reader, writer) = stream.split();
        let (outbox, frames) = mpsc::channel(OUTBOX_MAX);
        let reading = tokio::spawn(read(id, peer, reader, self.inbox.clone()));
        tokio::spawn(write(id, writer, frames, reading.abort_handle(), self.inbox.clone()));
        self.streams.insert(id, StreamTask { kind: Kind::Chat, outbox, reader: reading.abort_handle() });
    }

    /// Lets go of a stream: what was queued on it is still sent.
    fn close(&mut self, id: StreamId) {
        self.streams.remove(&id);
    }

    fn send(&mut self, id: StreamId, frame: Frame) {
        let Some(task) = self.streams.get_mut(&id) else { return };
        if let Frame::Open(open) = &frame {
            task.kind = open.kind;
        }
        if task.outbox.try_send(frame).is_err() {
            // The peer reads too slowly, or is gone.
            task.reader.abort();
            self.streams.remove(&id);
            let inbox = self.inbox.clone();
            tokio::spawn(async move { inbox.send(Inbox::Event(Event::StreamClosed(id))).await });
        }
    }

    // ---- the ledger ----

    fn book_event(&mut self, event: BookEvent) {
        let BookEvent::Applied { applied, business, .. } = event;
        let account = self.parts.books.account();
        match applied {
            Applied::Opened { session, state, .. } if state.consumer == account || state.provider == account => {
                self.handle(Event::SessionOpened {
                    session,
                    business,
                    consumer: state.consumer,
                    provider: state.provider,
                    voucher_key: state.voucher_key,
                    deposit: state.deposit,
                    price_cap: state.price_cap,
                    expires_ms: state.expires_ms,
                });
            }
            Applied::ToppedUp { session, deposit, consumer, .. } => {
                let provider = self.parts.books.read(|book| book.session(&session).map(|state| state.provider));
                if consumer == account || provider == Some(account) {
                    self.handle(Event::SessionToppedUp { session, deposit });
                }
            }
            Applied::Settled { session, claim, last, consumer, provider, .. }
                if consumer == account || provider == account =>
            {
                self.handle(Event::SessionSettled { session, settled: claim, closed: last });
            }
            Applied::Refunded { session, .. } => {
                let state = self.parts.books.read(|book| book.session(&session).cloned());
                if let Some(state) = state.filter(|state| state.consumer == account || state.provider == account) {
                    self.handle(Event::SessionSettled { session, settled: state.settled, closed: true });
                }
            }
            Applied::Closed { session, total, consumer, provider, .. }
                if consumer == account || provider == account =>
            {
                self.handle(Event::SessionSettled { session, settled: total, closed: true });
            }
            Applied::Minted { .. }
            | Applied::Transferred { .. }
            | Applied::Opened { .. }
            | Applied::Settled { .. }
            | Applied::Closed { .. }
            | Applied::Bonded { .. }
            | Applied::Unbonding { .. }
            | Applied::PayoutRequested { .. }
            | Applied::Burned { .. }
            | Applied::PayoutRejected { .. }
            | Applied::Punished { .. }
            | Applied::Elected { .. } => {}
        }
        let balance = self.parts.books.read(|book| book.balance(&account));
        self.handle(Event::Balance(balance));
    }

    fn ledger(&self, business: [u8; 16], command: LedgerCommand) {
        let gateway = self.parts.books.account();
        let action = match command {
            LedgerCommand::Open { provider, voucher_key, deposit, price_cap, expires_ms } => {
                Action::Open { provider, gateway, voucher_key, deposit, price_cap, expires_ms }
            }
            LedgerCommand::TopUp { session, amount } => Action::TopUp { session, amount },
            LedgerCommand::Settle { voucher, claim, usage, receipts, last } => {
                Action::Settle { voucher, claim, usage, receipts, last }
            }
            LedgerCommand::Refund { session } => Action::Refund { session },
        };
        let (books, inbox) = (self.parts.books.clone(), self.inbox.clone());
        tokio::spawn(async move {
            if let Err(error) = books.submit(business, action).await {
                tracing::warn!(%error, "the ledger refused an entry");
                let _ = inbox.send(Inbox::Event(Event::EntryRefused { business, why: error.to_string() })).await;
            }
        });
    }

    // ---- effects ----

    /// Carries out what the market asks for: first all that must be on disk, then the rest in order.
    async fn drain(&mut self) -> anyhow::Result<()> {
        loop {
            let mut effects = Vec::new();
            let mut batch = Batch::new();
            while let Some(effect) = self.parts.peer.poll() {
                if let Effect::Persist(record) = &effect {
                    self.promised(&mut batch, record);
                    records::keep(&mut batch, record);
                    continue;
                }
                if let Effect::Ended { job, outcome } = &effect {
                    self.accounted(&mut batch, *job, outcome);
                }
                effects.push(effect);
            }
            if !batch.is_empty() {
                // Elsewhere: the thread that waits for the disk would have to hand all other tasks to another one first.
                let store = Arc::clone(&self.parts.store);
                let kept = tokio::task::spawn_blocking(move || store.commit(batch)).await;
                kept.context("node.redb")?.context("node.redb: what is owed cannot be kept")?;
            }
            if effects.is_empty() {
                return Ok(());
            }
            // What discovery says of an own offer may be news to the market.
            for effect in effects {
                self.perform(effect);
            }
        }
    }

    /// Has a job's first promise bring along what its client set aside for it.
    fn promised(&mut self, batch: &mut Batch, record: &Record) {
        let Record::Spending(spending) = record else { return };
        if let Some(aside) = self.asides.remove(&spending.job) {
            aside.put(batch, spending.job);
        }
        self.spending.insert(spending.job, spending.clone());
    }

    /// Keeps what a job did cost in place of what it might have, before its client learns of the end: whoever counts its money
    /// finds the truth after a kill, too.
    fn accounted(&mut self, batch: &mut Batch, job: JobId, outcome: &Outcome) {
        self.asides.remove(&job);
        if let Some(spending) = self.spending.remove(&job) {
            records::keep(batch, &Record::Spending(Spending { promised: outcome.cost, ..spending }));
        }
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Placed { job, leg, route, provider, reason } => {
                self.tell(job, JobEvent::Placed { leg, route, provider, reason });
            }
            Effect::Deliver { job, bytes } => self.tell(job, JobEvent::Chunk(bytes)),
            Effect::Ended { job, outcome } => {
                self.parts.jobs.ended(job, &outcome);
                if let Some(client) = self.clients.remove(&job) {
                    self.remember(&client.model, &outcome);
                    client.end.send(JobEvent::Ended(outcome));
                }
            }
            Effect::Run { work: id, model, kind, body, prefix, own, whole, choice, job, beside } => {
                let trace = job.and_then(|job| self.clients.get(&job)?.trace.clone());
                let work = Work { id, model, kind, body, prefix, own, whole, choice, trace, beside };
                let running = self.parts.backends.run(work, ToInbox(self.inbox.clone()));
                self.work.insert(id, running);
            }
            Effect::Stop(work) => {
                self.work.remove(&work);
            }
            Effect::OpenStream { stream, peer, addresses } => {
                let (network, inbox) = (self.parts.network.clone(), self.inbox.clone());
                tokio::spawn(async move {
                    let message = match network.open(peer, &addresses, NETWORK_WAIT).await {
                        Ok(job_stream) => Inbox::Opened(stream, peer, job_stream),
                        Err(error) => {
                            tracing::debug!(%peer, %error, "no stream to a provider");
                            Inbox::Event(Event::StreamClosed(stream))
                        }
                    };
                    let _ = inbox.send(message).await;
                });
            }
            Effect::Send { stream, frame } => self.send(stream, frame),
            Effect::CloseStream(stream) => self.close(stream),
            Effect::SendProbe { probe, peer, addresses, request } => {
                let (network, inbox) = (self.parts.network.clone(), self.inbox.clone());
                tokio::spawn(async move {
                    let answer = network.call(peer, &addresses, CallKind::Probe, encode(&request), NETWORK_WAIT).await;
                    let reply = match answer {
                        Ok(bytes) => decode::<ProbeReply>(&bytes).ok(),
                        Err(error) => {
                            tracing::debug!(%peer, %error, "a probe went unanswered");
                            None
                        }
                    };
                    let _ = inbox.send(Inbox::Event(Event::ProbeReplied { probe, reply })).await;
                });
            }
            Effect::ReplyProbe { probe, reply } => {
                if let Some(way_back) = self.probes.remove(&probe) {
                    way_back.send(encode(&reply));
                }
            }
            Effect::Publish(offer) => self.publish(offer),
            Effect::Withdraw => {
                self.discover(discovery::Event::Withdraw);
                self.own_offers.clear();
                self.parts.network.provide(Vec::new());
            }
            Effect::Ledger { business, command } => self.ledger(business, command),
            Effect::Persist(_) => unreachable!("kept before"),
        }
    }

    fn tell(&mut self, job: JobId, event: JobEvent) {
        let Some(client) = self.clients.get(&job) else { return };
        if client.events.try_send(event).is_err() {
            tracing::warn!(%job, "a client that reads too slowly was cut");
            self.clients.remove(&job);
            let inbox = self.inbox.clone();
            tokio::spawn(async move { inbox.send(Inbox::Event(Event::ClientLeft(job))).await });
        }
    }

    fn publish(&mut self, offer: Signed<Offer>) {
        self.discover(discovery::Event::Publish(Arc::new(offer.clone())));
        let models: Vec<String> = offer.value().models.iter().map(|model| model.id.clone()).collect();
        self.own_offers.insert(models.first().cloned().unwrap_or_default(), offer);
        let sequence = self.own_offers.values().map(|offer| offer.value().sequence).max().unwrap_or(0);
        self.own_offers.retain(|_, offer| offer.value().sequence == sequence);
        let all = self.own_offers.values().flat_map(|offer| offer.value().models.iter().map(|model| model.id.clone()));
        self.parts.network.provide(all.collect());
    }

    // ---- for people ----

    fn renew_view(&mut self) {
        let since = self.view_at.elapsed();
        if since < VIEW_AFTER || (!self.view_dirty && since < VIEW_EVERY) {
            return;
        }
        let view = market_view(&self.parts.peer, &self.parts.capacity.borrow(), self.peers, self.clock.now());
        self.parts.jobs.set_market(view);
        self.view_dirty = false;
        self.view_at = Instant::now();
    }
}

/// What backends tell; a full inbox holds them back.
#[derive(Debug)]
struct ToInbox(mpsc::Sender<Inbox>);

impl backend::Sink for ToInbox {
    fn send(&self, event: BackendEvent) -> BoxFuture<'_, Result<(), backend::Gone>> {
        let event = match event {
            BackendEvent::Output { work, bytes, text } => Event::Output { work, bytes, text },
            BackendEvent::Charged { work, cost } => Event::Charged { work, cost },
            BackendEvent::Finished { work, finish } => Event::Finished { work, finish },
            BackendEvent::Failed { work, error } => Event::BackendFailed { work, error },
        };
        Box::pin(async { self.0.send(Inbox::Event(event)).await.map_err(|_| backend::Gone) })
    }
}

async fn read(id: StreamId, peer: NodeId, mut reader: FrameReader, inbox: mpsc::Sender<Inbox>) {
    loop {
        match reader.next().await {
            Ok(Some(frame)) => {
                if inbox.send(Inbox::Frame(id, peer, frame)).await.is_err() {
                    return;
                }
            }
            Ok(None) => break,
            Err(error) => {
                tracing::debug!(%peer, %error, "a job's stream broke");
                break;
            }
        }
    }
    let _ = inbox.send(Inbox::Event(Event::StreamClosed(id))).await;
}

/// Sends what is queued; once the driver lets go of the stream, closes it and stops reading from it.
async fn write(
    id: StreamId,
    mut writer: FrameWriter,
    mut frames: mpsc::Receiver<Frame>,
    reader: AbortHandle,
    inbox: mpsc::Sender<Inbox>,
) {
    while let Some(frame) = frames.recv().await {
        if writer.send(&frame).await.is_err() {
            reader.abort();
            let _ = inbox.send(Inbox::Event(Event::StreamClosed(id))).await;
            return;
        }
    }
    let _ = writer.close().await;
    reader.abort();
}

/// Reads offers back from [`Driver::offers_for_exchange`]; what does not hold is left out.
fn split_offers(mut bytes: &[u8]) -> Vec<Signed<Offer>> {
    let mut offers = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let Some((offer, rest)) = rest.split_at_checked(length) else { break };
        bytes = rest;
        offers.extend(Signed::<Offer>::from_bytes(offer).ok());
    }
    offers
}

/// The seed of the market's random choices, drawn from the system.
///
/// # Errors
/// If the system gives no random bytes.
pub fn new_seed() -> anyhow::Result<[u8; 32]> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).context("the system gives no random bytes")?;
    Ok(*Digest::of("spillway/seed", &[&seed]).as_bytes())
}
