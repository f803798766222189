//! Real nodes on loopback, in one process: discovery, gossip, calls, job streams, and peers that break the rules.
//! Every wait is for a condition; [`PATIENCE`] is how long one may take before the test fails.

use super::wire::FrameError;
use super::{CallError, CallKind, JobStream, Network, NetworkEvent, NetworkSettings, OpenError, Topic};
use spillway_ledger::{Digest, NetworkId, NodeId, SecretKey};
use spillway_protocol::Frame;
use spillway_protocol::discovery::Shard;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

const PATIENCE: Duration = Duration::from_secs(60);
const QUIC: &str = "/ip4/127.0.0.1/udp/0/quic-v1";
const TCP: &str = "/ip4/127.0.0.1/tcp/0";

/// A node under test, and what it has been told.
pub(crate) struct Peer {
    pub(crate) network: Network,
    pub(crate) events: mpsc::Receiver<NetworkEvent>,
}

pub(crate) fn settings(bootstrap: &[&Peer]) -> NetworkSettings {
    NetworkSettings {
        network: NetworkId(Digest::of("test", &[])),
        listen: vec![QUIC.into()],
        bootstrap: bootstrap.iter().flat_map(|peer| peer.network.addresses()).collect(),
        known: Vec::new(),
        mdns: false,
        emulated_rtt: Duration::ZERO,
    }
}

fn key(seed: u8) -> SecretKey {
    SecretKey::generate([seed; 32])
}

async fn start_with(seed: u8, settings: NetworkSettings) -> Peer {
    let (network, events) = Network::start(settings, &key(seed)).await.expect("loopback can be listened on");
    Peer { network, events }
}

async fn start(seed: u8, bootstrap: &[&Peer]) -> Peer {
    start_with(seed, settings(bootstrap)).await
}

impl Peer {
    fn node(&self) -> NodeId {
        self.network.node()
    }

    /// The first event that `pick` takes; others are dropped.
    async fn until<T>(&mut self, what: &str, mut pick: impl FnMut(NetworkEvent) -> Option<T>) -> T {
        let found = async {
            loop {
                let event = self.events.recv().await.expect("the network runs");
                if let Some(found) = pick(event) {
                    return found;
                }
            }
        };
        timeout(PATIENCE, found).await.unwrap_or_else(|_| panic!("no {what} within {PATIENCE:?}"))
    }

    async fn connected(&mut self, other: NodeId) {
        self.until("connection", |event| {
            matches!(event, NetworkEvent::PeerConnected(node) if node == other).then_some(())
        })
        .await;
    }

    async fn lost(&mut self, other: NodeId) {
        self.until("loss", |event| matches!(event, NetworkEvent::PeerLost(node) if node == other).then_some(())).await;
    }

    async fn stream(&mut self) -> (NodeId, JobStream) {
        self.until("stream", |event| match event {
            NetworkEvent::Stream { peer, stream } => Some((peer, stream)),
            _ => None,
        })
        .await
    }

    async fn open(&self, to: &Peer) -> JobStream {
        self.network.open(to.node(), &to.network.addresses(), PATIENCE).await.expect("the peer is there")
    }

    /// Answers every call with its kind and question, and every stream's frames with the same frames.
    fn echo(mut self) {
        tokio::spawn(async move {
            while let Some(event) = self.events.recv().await {
                match event {
                    NetworkEvent::Call { kind, request, reply, .. } => {
                        reply.send(format!("{kind:?}: {}", String::from_utf8_lossy(&request)).into_bytes());
                    }
                    NetworkEvent::Stream { stream, .. } => {
                        tokio::spawn(echo(stream));
                    }
                    NetworkEvent::PeerConnected(_)
                    | NetworkEvent::PeerLost(_)
                    | NetworkEvent::TopicJoined { .. }
                    | NetworkEvent::TopicLeft { .. }
                    | NetworkEvent::Rtt { .. }
                    | NetworkEvent::Gossip { .. } => {}
                }
            }
        });
    }
}

async fn echo(stream: JobStream) -> Result<(), FrameError> {
    let (mut reader, mut writer) = stream.split();
    while let Some(frame) = reader.next().await? {
        writer.send(&frame).await?;
    }
    writer.close().await
}

fn chunk(sequence: u32, bytes: usize) -> Frame {
    Frame::Chunk { sequence, offset: u64::from(sequence), bytes: vec![sequence.to_le_bytes()[0]; bytes] }
}

#[tokio::test]
async fn peers_find_each_other_from_one_address_and_notice_who_leaves() {
    let mut first = start(1, &[]).await;
    let mut second = start(2, &[&first]).await;
    let mut third = start(3, &[&first]).await;
    first.connected(second.node()).await;
    second.connected(third.node()).await;
    third.connected(second.node()).await;
    third.network.shutdown().await;
    second.lost(third.node()).await;
    first.lost(third.node()).await;
}

#[tokio::test]
async fn who_provides_a_model_is_found_by_its_name() {
    let mut first = start(1, &[]).await;
    let provider = start(2, &[&first]).await;
    provider.network.provide(vec!["guide".into(), "other".into()]);
    first.connected(provider.node()).await;
    let mut cold = start(3, &[&first]).await;
    cold.connected(first.node()).await;
    let found = async {
        // The announcement is on its way: who asks too early asks again.
        while !cold.network.find("guide", PATIENCE).await.contains(&provider.node()) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(PATIENCE, found).await.expect("the provider is found");
    cold.connected(provider.node()).await;
    assert_eq!(cold.network.find("unheard of", PATIENCE).await, []);
    assert_eq!(cold.network.find("other", PATIENCE).await, [provider.node()]);
}

#[tokio::test]
async fn gossip_travels_only_where_it_is_accepted() {
    // A line: the outer two know only the middle one, so what the last one gets was passed on.
    let middle = start(1, &[]).await;
    let first = start(2, &[&middle]).await;
    let mut last = start(3, &[&middle]).await;
    let node = first.node();
    let mut at_middle = middle;
    at_middle.connected(node).await;
    let judge = tokio::spawn(async move {
        let mut seen = Vec::new();
        while seen.len() < 8 {
            let (topic, bytes, verdict) = at_middle
                .until("gossip", |event| match event {
                    NetworkEvent::Gossip { topic, from: _, bytes, verdict } => Some((topic, bytes, verdict)),
                    _ => None,
                })
                .await;
            assert_eq!(topic, Topic::Blocks);
            if bytes.starts_with(b"good") {
                verdict.accept();
            } else {
                verdict.reject();
            }
            seen.push(bytes);
        }
        at_middle
    });
    // Nothing says when a mesh stands, so each message goes out anew until the far end has one.
    let publisher = first.network.clone();
    let publish = tokio::spawn(async move {
        let mut round = 0_u32;
        loop {
            publisher.publish(Topic::Blocks, format!("bad {round}").into_bytes());
            publisher.publish(Topic::Blocks, format!("good {round}").into_bytes());
            round += 1;
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    for _ in 0..2 {
        let bytes = last
            .until("gossip", |event| match event {
                NetworkEvent::Gossip { bytes, .. } => Some(bytes),
                _ => None,
            })
            .await;
        // The first and the last find each other in the end, and then hear each other directly.
        if last.network.is_connected(&node) {
            break;
        }
        assert!(bytes.starts_with(b"good"), "{}", String::from_utf8_lossy(&bytes));
    }
    timeout(PATIENCE, judge).await.expect("the middle hears both kinds").expect("and keeps its assertions");
    publish.abort();
}

#[tokio::test]
async fn who_is_on_a_topic_is_told_found_and_reached() {
    let [shard, other] = [3, 4].map(|number| Shard::new(number).expect("below 64"));
    let mut first = start(1, &[]).await;
    first.network.join(shard);
    let mut second = start(2, &[&first]).await;
    let (one, two) = (first.node(), second.node());
    let joined = |who: NodeId, which: Shard| {
        move |event| match event {
            NetworkEvent::TopicJoined { peer, shard } => (peer == who && shard == which).then_some(()),
            _ => None,
        }
    };
    second.until("joining", joined(one, shard)).await;
    second.network.join(shard);
    first.until("joining", joined(two, shard)).await;
    // Only who is on a topic hears what is said there.
    second.network.publish(Topic::Notices(other), b"not heard".to_vec());
    second.network.publish(Topic::Notices(shard), b"heard".to_vec());
    let heard = first.until("gossip", |event| match event {
        NetworkEvent::Gossip { topic, from, bytes, verdict } => {
            verdict.accept();
            Some((topic, from, bytes))
        }
        _ => None,
    });
    assert_eq!(heard.await, (Topic::Notices(shard), two, b"heard".to_vec()));
    // A third that knows the first alone is led to the second by the topic's name.
    let mut third = start(3, &[&first]).await;
    third.connected(one).await;
    third.network.seek(shard);
    third.connected(two).await;
    second.network.part(shard);
    first
        .until("parting", |event| match event {
            NetworkEvent::TopicLeft { peer, shard: left } => (peer == two && left == shard).then_some(()),
            _ => None,
        })
        .await;
}

#[tokio::test]
async fn calls_are_answered_or_fail_by_name() {
    let server = start(1, &[]).await;
    let (node, addresses) = (server.node(), server.network.addresses());
    let keep = server.network.clone();
    server.echo();
    let caller = start(2, &[]).await;
    for kind in CallKind::ALL {
        let answer = caller.network.call(node, &addresses, kind, b"hello".to_vec(), PATIENCE).await;
        assert_eq!(answer.as_deref(), Ok(format!("{kind:?}: hello").as_bytes()), "{kind:?}");
        let over = vec![0; kind.request_bytes_max() + 1];
        let answer = caller.network.call(node, &addresses, kind, over, PATIENCE).await;
        let max = kind.request_bytes_max();
        assert_eq!(answer, Err(CallError::TooLong { max, got: max + 1 }), "{kind:?}");
    }
    // Many at once.
    let calls = (0..64).map(|index: u32| {
        let (network, addresses) = (caller.network.clone(), addresses.clone());
        async move {
            let question = index.to_string().into_bytes();
            let answer = network.call(node, &addresses, CallKind::Probe, question, PATIENCE).await;
            assert_eq!(answer, Ok(format!("Probe: {index}").into_bytes()));
        }
    });
    futures::future::join_all(calls).await;

    let wait = PATIENCE;
    let call = |to: NodeId| caller.network.call(to, &[], CallKind::Probe, Vec::new(), wait);
    assert_eq!(call(caller.node()).await, Err(OpenError::Myself.into()));
    // Nobody has heard of this one. The caller's only peer is asked and does not know either.
    assert_eq!(call(NodeId(key(9).public())).await, Err(OpenError::NoAddress.into()));
    keep.shutdown().await;
    let after = caller.network.call(node, &addresses, CallKind::Probe, Vec::new(), Duration::from_secs(2)).await;
    assert!(matches!(after, Err(CallError::Connect(_) | CallError::NoAnswer(_))), "{after:?}");
    caller.network.shutdown().await;
    assert_eq!(call(node).await, Err(OpenError::Stopped.into()));
}

#[tokio::test]
async fn a_dropped_reply_tells_the_caller_at_once() {
    let mut server = start(1, &[]).await;
    let caller = start(2, &[]).await;
    let (node, addresses) = (server.node(), server.network.addresses());
    let network = caller.network.clone();
    let call = tokio::spawn(async move { network.call(node, &addresses, CallKind::Ledger, vec![1], PATIENCE).await });
    let reply = server
        .until("call", |event| match event {
            NetworkEvent::Call { peer, kind: CallKind::Ledger, request, reply } => Some((peer, request, reply)),
            _ => None,
        })
        .await;
    assert_eq!((reply.0, reply.1.as_slice()), (caller.node(), [1].as_slice()));
    drop(reply.2);
    let started = Instant::now();
    let answer = call.await.expect("no panic");
    assert!(matches!(answer, Err(CallError::NoAnswer(_))), "{answer:?}");
    assert!(started.elapsed() < CallKind::Ledger.wait_max(), "the far side's refusal is told, not waited out");
}

#[tokio::test]
async fn many_streams_run_in_parallel_over_each_transport() {
    for (seed, listen) in [(1, QUIC), (3, TCP)] {
        let server = start_with(seed, NetworkSettings { listen: vec![listen.into()], ..settings(&[]) }).await;
        let caller = start_with(seed + 1, NetworkSettings { listen: Vec::new(), ..settings(&[&server]) }).await;
        let (node, addresses) = (server.node(), server.network.addresses());
        let _keep = server.network.clone();
        server.echo();
        let jobs = (0..100).map(|job: usize| {
            let (network, addresses) = (caller.network.clone(), addresses.clone());
            tokio::spawn(async move {
                let stream = network.open(node, &addresses, PATIENCE).await.expect("the peer is there");
                let (mut reader, mut writer) = stream.split();
                // One frame of the greatest chunk; the rest as small as tokens are.
                let frames: Vec<_> =
                    (0..64).map(|at| chunk(at, if at == 9 && job < 16 { 256 << 10 } else { job })).collect();
                let sent = frames.clone();
                let sender = tokio::spawn(async move {
                    for frame in &sent {
                        writer.send(frame).await.expect("the peer reads");
                    }
                    writer.close().await.expect("the peer reads");
                });
                for (at, frame) in frames.iter().enumerate() {
                    let back = reader.next().await.expect("whole").expect("not ended");
                    assert_eq!(back, *frame, "job {job}, frame {at}");
                }
                assert!(reader.next().await.expect("ended between frames").is_none(), "job {job}");
                sender.await.expect("sent");
            })
        });
        let all = futures::future::join_all(jobs.collect::<Vec<_>>());
        for job in timeout(PATIENCE, all).await.unwrap_or_else(|_| panic!("over {listen} not all jobs end")) {
            job.expect("no assertion failed");
        }
    }
}

#[tokio::test]
async fn frames_that_break_the_rules_are_named_and_the_node_lives_on() {
    let mut server = start(1, &[]).await;
    let caller = start(2, &[]).await;
    let cases: [(&[u8], &str); 4] = [
        (&[255, 255, 255, 127], "TooLong { max: 5259264, got: 2147483647 }"),
        (&[10, 0, 0, 0, 1, 2], "Truncated { got: 6, want: 14 }"),
        (&[1, 0], "Truncated { got: 2, want: 4 }"),
        (&[4, 0, 0, 0, 99, 99, 99, 99], "Malformed(Malformed)"),
    ];
    for (wire, expected) in cases {
        let (_reader, mut writer) = caller.open(&server).await.split();
        writer.raw().send_wire(wire.to_vec()).await.expect("written");
        writer.close().await.expect("closed");
        let (peer, stream) = server.stream().await;
        assert_eq!(peer, caller.node());
        let (mut reader, _writer) = stream.split();
        let error = timeout(PATIENCE, reader.next()).await.expect("the bytes arrive").expect_err("against the rules");
        assert_eq!(format!("{error:?}"), expected);
        assert!(reader.next().await.expect("over").is_none(), "nothing is read after an error");
    }
    // A good stream still works.
    let (_reader, mut writer) = caller.open(&server).await.split();
    writer.send(&Frame::Alive { held: 0 }).await.expect("written");
    let (mut reader, _writer) = server.stream().await.1.split();
    assert_eq!(reader.next().await.expect("whole"), Some(Frame::Alive { held: 0 }));
}

#[tokio::test]
async fn a_dropped_stream_ends_at_the_far_side() {
    for listen in [QUIC, TCP] {
        let mut server = start_with(1, NetworkSettings { listen: vec![listen.into()], ..settings(&[]) }).await;
        let caller = start(2, &[]).await;
        let (reader, mut writer) = caller.open(&server).await.split();
        writer.send(&Frame::Alive { held: 0 }).await.expect("written");
        let (mut far, _writer) = server.stream().await.1.split();
        assert_eq!(far.next().await.expect("whole"), Some(Frame::Alive { held: 0 }), "{listen}");
        drop((reader, writer));
        let end = timeout(PATIENCE, far.next()).await.expect("the end shows");
        assert!(matches!(end, Ok(None) | Err(FrameError::Broken(_))), "{listen}: {end:?}");
    }
}

#[tokio::test]
async fn a_node_that_is_behind_refuses_streams_instead_of_keeping_them() {
    let (network, events) = Network::start_with(settings(&[]), &key(1), 4).await.expect("loopback can be listened on");
    let mut server = Peer { network, events };
    let caller = start(2, &[]).await;
    let mut refused = 0;
    let mut kept = Vec::new();
    // The first few wait in the queue; with it full, a stream is reset, which its opener can see.
    while refused < 8 {
        let (mut reader, mut writer) = caller.open(&server).await.split();
        if writer.send(&Frame::Alive { held: 0 }).await.is_err() {
            refused += 1;
            continue;
        }
        match timeout(Duration::from_millis(500), reader.next()).await {
            Ok(Ok(None) | Err(_)) => refused += 1,
            Ok(Ok(Some(frame))) => panic!("nobody sent {frame:?}"),
            Err(_) => kept.push((reader, writer)),
        }
        assert!(kept.len() <= 4, "more streams are kept than there is room for");
    }
    // Once it has caught up, streams get through again.
    while let Ok(event) = server.events.try_recv() {
        drop(event);
    }
    let (_reader, mut writer) = caller.open(&server).await.split();
    writer.send(&Frame::Cancel).await.expect("written");
    let (mut reader, _writer) = server.stream().await.1.split();
    assert_eq!(reader.next().await.expect("whole"), Some(Frame::Cancel));
}

#[tokio::test]
async fn opening_to_a_peer_that_is_not_there_fails_in_time() {
    let caller = start(1, &[]).await;
    // A port that is bound and never answers, as after a power cut.
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.expect("a free port");
    let address = format!("/ip4/127.0.0.1/udp/{}/quic-v1", silent.local_addr().expect("bound").port());
    let node = NodeId(key(9).public());
    let wait = Duration::from_millis(700);
    let started = Instant::now();
    let opened = caller.network.open(node, &[address], wait).await;
    assert_eq!(opened.err(), Some(OpenError::TimedOut));
    assert!(started.elapsed() < wait * 4, "{:?}", started.elapsed());

    // A peer that was there and left.
    let mut peer = start(2, &[]).await;
    let mut caller = caller;
    drop(caller.open(&peer).await);
    caller.connected(peer.node()).await;
    peer.connected(caller.node()).await;
    let addresses = peer.network.addresses();
    peer.network.shutdown().await;
    caller.lost(peer.node()).await;
    let opened = caller.network.open(peer.node(), &addresses, wait).await;
    assert!(matches!(opened, Err(OpenError::TimedOut | OpenError::Unreachable(_))), "{:?}", opened.err());

    // Somebody else at the address.
    let other = start(3, &[]).await;
    let opened = caller.network.open(node, &other.network.addresses(), PATIENCE).await;
    assert!(matches!(opened, Err(OpenError::Unreachable(_))), "{:?}", opened.err());
}

#[tokio::test]
async fn an_emulated_distance_delays_and_keeps_the_order() {
    let rtt = Duration::from_millis(300);
    let far = start_with(1, NetworkSettings { emulated_rtt: rtt, ..settings(&[]) }).await;
    let near = start(2, &[]).await;
    let (node, addresses) = (far.node(), far.network.addresses());
    let _keep = far.network.clone();
    let (mut reader, mut writer) = near.open(&far).await.split();
    far.echo();
    let started = Instant::now();
    let answer = near.network.call(node, &addresses, CallKind::Probe, b"x".to_vec(), PATIENCE).await;
    assert_eq!(answer, Ok(b"Probe: x".to_vec()));
    assert!(started.elapsed() >= rtt, "{:?}", started.elapsed());

    let started = Instant::now();
    for sequence in 0..20 {
        writer.send(&chunk(sequence, 1)).await.expect("the peer reads");
    }
    for sequence in 0..20 {
        assert_eq!(reader.next().await.expect("whole"), Some(chunk(sequence, 1)));
    }
    let took = started.elapsed();
    assert!(took >= rtt && took < rtt * 10, "twenty frames take one distance, not twenty: {took:?}");
}

#[tokio::test]
async fn another_network_s_peer_is_not_let_in() {
    let mut ours = start(1, &[]).await;
    let stranger = NetworkSettings { network: NetworkId(Digest::of("other", &[])), ..settings(&[&ours]) };
    let mut stranger = start_with(2, stranger).await;
    let friend = start(3, &[&ours]).await;
    // Connects, hears who we are, and is thrown out.
    let addresses = ours.network.addresses();
    let asked = stranger.network.call(ours.node(), &addresses, CallKind::Probe, Vec::new(), PATIENCE);
    let gone = async {
        let _ = asked.await;
        while stranger.network.is_connected(&ours.node()) {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, gone).await.expect("the stranger is disconnected");
    let came = ours
        .until("connection", |event| match event {
            NetworkEvent::PeerConnected(node) => Some(node),
            _ => None,
        })
        .await;
    assert_eq!(came, friend.node());
    while let Ok(event) = stranger.events.try_recv() {
        assert!(!matches!(event, NetworkEvent::PeerConnected(_)), "the stranger takes us for its own");
    }
}

#[tokio::test]
async fn bad_settings_are_named() {
    let holder = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = format!("/ip4/127.0.0.1/tcp/{}", holder.local_addr().expect("bound").port());
    let in_use = format!("network.listen: cannot listen on {taken}: Address already in use");
    let holder_udp = std::net::UdpSocket::bind("127.0.0.1:0").expect("a free port");
    let taken_udp = format!("/ip4/127.0.0.1/udp/{}/quic-v1", holder_udp.local_addr().expect("bound").port());
    let in_use_udp = format!("network.listen: cannot listen on {taken_udp}: Address already in use");
    let cases = [
        (vec!["nonsense".to_owned()], vec![], "network.listen: `nonsense`"),
        (vec![taken.clone()], vec![], in_use.as_str()),
        (vec![taken_udp], vec![], in_use_udp.as_str()),
        (vec![], vec!["/ip4/127.0.0.1/tcp/1".to_owned()], "network.bootstrap: `/ip4/127.0.0.1/tcp/1`"),
    ];
    for (listen, bootstrap, begins) in cases {
        let refused = Network::start(NetworkSettings { listen, bootstrap, ..settings(&[]) }, &key(1)).await;
        let error = refused.err().expect("bad settings").to_string();
        assert!(error.starts_with(begins), "{error}");
    }
}
