//! The edge against a stand-in for the gateway, over real QUIC on loopback.

use super::server::{EdgeHandler, EdgeServer, EdgeWork};
use super::wire::{ALPN, EdgeFrame, EdgeJob};
use super::{Client, EdgeError};
use crate::gateway::ApiError;
use crate::jobs::JobEvent;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use spillway_ledger::{Credits, SecretKey};
use spillway_protocol::{Kind, Outcome, Reason, Route};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

#[derive(Clone)]
struct Stand {
    left: mpsc::UnboundedSender<()>,
}

struct Work {
    events: Vec<JobEvent>,
    /// Never ends by itself.
    endless: bool,
    left: mpsc::UnboundedSender<()>,
}

impl EdgeHandler for Stand {
    type Work = Work;

    async fn submit(&self, key: &str, kind: Kind, body: &[u8]) -> Result<Work, ApiError> {
        if key != "right" {
            return Err(ApiError::unauthorized());
        }
        assert_eq!(kind, Kind::Chat);
        let outcome = Outcome {
            result: Ok("stop".into()),
            legs: vec![],
            considered: vec![],
            cost: Credits::new(7),
            first_ms: Some(1),
            total_ms: 2,
        };
        let placed = JobEvent::Placed { leg: 0, route: Route::Own, provider: None, reason: Reason::OwnFree };
        let mut events = vec![placed, JobEvent::Chunk(body.to_vec()), JobEvent::Chunk(b"second".to_vec())];
        let endless = body == b"endless";
        if !endless {
            events.push(JobEvent::Ended(outcome));
        }
        events.reverse();
        Ok(Work { events, endless, left: self.left.clone() })
    }
}

impl EdgeWork for Work {
    fn id(&self) -> String {
        "job".into()
    }

    fn next(&mut self) -> BoxFuture<'_, Option<JobEvent>> {
        Box::pin(async {
            match self.events.pop() {
                None if self.endless => std::future::pending().await,
                event => event,
            }
        })
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let _ = self.left.send(());
    }
}

fn server() -> (EdgeServer, mpsc::UnboundedReceiver<()>) {
    let (left, leaving) = mpsc::unbounded_channel();
    let key = SecretKey::generate([5; 32]);
    (EdgeServer::start("127.0.0.1:0", &key, Stand { left }).expect("listening"), leaving)
}

fn job(key: &str, body: &[u8]) -> EdgeJob {
    EdgeJob { key: key.into(), kind: Kind::Chat, body: body.to_vec() }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), future).await.expect("within 20 s")
}

#[tokio::test]
async fn a_job_is_answered_frame_by_frame() {
    let (server, _leaving) = server();
    let client = soon(Client::connect(&server.address())).await.expect("connected");
    let frames = soon(client.submit(job("right", b"first"))).await.expect("sent");
    let frames: Vec<EdgeFrame> = soon(frames.map(|frame| frame.expect("whole")).collect()).await;
    let placed = EdgeFrame::Placed { route: "own".into(), reason: "own_free".into(), provider: None };
    let done = EdgeFrame::Done { finish: "stop".into(), cost_micro: 7, job: "job".into() };
    assert_eq!(frames, [placed, EdgeFrame::Chunk(b"first".to_vec()), EdgeFrame::Chunk(b"second".to_vec()), done]);
    server.stop().await;
}

#[tokio::test]
async fn a_wrong_key_is_told_so_and_the_next_job_is_served() {
    let (server, _leaving) = server();
    let client = soon(Client::connect(&server.address())).await.expect("connected");
    for (key, ends_well) in [("wrong", false), ("right", true)] {
        let frames = soon(client.submit(job(key, b"x"))).await.expect("sent");
        let frames: Vec<_> = soon(frames.collect()).await;
        let last = frames.into_iter().last().expect("an answer").expect("whole");
        assert_eq!(matches!(last, EdgeFrame::Done { .. }), ends_well, "{last:?}");
        assert_eq!(matches!(last, EdgeFrame::Failed { status: 401, .. }), !ends_well, "{last:?}");
    }
}

#[tokio::test]
async fn a_node_with_another_peer_id_is_refused() {
    let (server, _leaving) = server();
    let other =
        crate::network::peer_of(&spillway_ledger::NodeId(SecretKey::generate([6; 32]).public())).expect("valid");
    let (place, _) =
        server.address().rsplit_once('/').map(|(place, peer)| (place.to_owned(), peer.to_owned())).expect("p2p");
    let error = soon(Client::connect(&format!("{place}/{other}"))).await.expect_err("another peer");
    assert!(matches!(error, EdgeError::Connect(_)), "{error}");
}

#[tokio::test]
async fn a_bad_address_is_named() {
    for address in ["", "127.0.0.1:4601", "/ip4/127.0.0.1/tcp/1", "/ip4/127.0.0.1/udp/1/quic-v1"] {
        let error = soon(Client::connect(address)).await.expect_err("no address");
        assert!(matches!(error, EdgeError::BadAddress(_)), "{address}: {error}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_leaves_its_job() {
    let (server, mut leaving) = server();
    let client = soon(Client::connect(&server.address())).await.expect("connected");
    let mut frames = soon(client.submit(job("right", b"endless"))).await.expect("sent");
    soon(frames.next()).await.expect("placed").expect("whole");
    drop(frames);
    soon(leaving.recv()).await.expect("the job was dropped");
}

#[tokio::test]
async fn an_overlong_or_garbled_opening_is_refused_and_the_node_lives_on() {
    let (server, _leaving) = server();
    let client = soon(Client::connect(&server.address())).await.expect("connected");
    let cases: [(&[u8], u16); 2] = [(&[255, 255, 255, 127], 413), (&[3, 0, 0, 0, 1, 2, 3], 400)];
    for (bytes, expected) in cases {
        let frames = soon(client.submit_raw(bytes)).await;
        let frames: Vec<_> = soon(frames.collect()).await;
        let last = frames.into_iter().last().expect("an answer").expect("whole");
        assert!(matches!(last, EdgeFrame::Failed { status, .. } if status == expected), "{last:?}");
    }
    let frames = soon(client.submit(job("right", b"x"))).await.expect("sent");
    assert_eq!(soon(frames.count()).await, 4);
    assert_eq!(ALPN, b"spillway-edge/1");
    let _ = Arc::new(server);
}

#[tokio::test]
async fn many_jobs_at_once_arrive_whole() {
    let (server, _leaving) = server();
    let client = soon(Client::connect(&server.address())).await.expect("connected");
    // More than the streams that one connection may have: the rest wait their turn.
    let jobs = (0..150_usize).map(|index| {
        let client = client.clone();
        async move {
            let body = vec![b'x'; if index % 50 == 0 { 256 << 10 } else { index }];
            let frames = client.submit(job("right", &body)).await.expect("sent");
            let frames: Vec<EdgeFrame> = frames.map(|frame| frame.expect("whole")).collect().await;
            assert_eq!(frames.get(1), Some(&EdgeFrame::Chunk(body)), "job {index}");
            assert!(matches!(frames.last(), Some(EdgeFrame::Done { .. })), "job {index}");
        }
    });
    soon(futures::future::join_all(jobs)).await;
    server.stop().await;
    let after = soon(client.submit(job("right", b"x"))).await;
    let after = match after {
        Err(error) => Err(error),
        Ok(mut frames) => soon(frames.next()).await.expect("an error, not an end"),
    };
    assert!(after.is_err(), "the node has stopped");
}
