//! The listening socket: takes connections, bounds them, and drains them at the end.
//! Invariant: at most [`CONNECTIONS_MAX`] connections are open; each sends its headers within [`HEADER_WAIT`]. On loopback only
//! requests to loopback names are answered.

use super::guard;
use super::stall::{NoStall, WRITE_WAIT};
use axum::Router;
use axum::response::IntoResponse;
use futures::future::{Either, ready};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

/// Most connections at once; more wait in the system's queue.
pub const CONNECTIONS_MAX: usize = 4096;
/// How long a connection may take to send a request's headers, and may idle between requests.
pub const HEADER_WAIT: Duration = Duration::from_secs(10);
/// Most bytes of a request's headers.
const HEADER_BYTES_MAX: usize = 64 << 10;
/// Rest after a failed accept, such as when file descriptors run out.
const ACCEPT_REST: Duration = Duration::from_millis(50);

/// Where a request came from.
#[derive(Clone, Copy, Debug)]
pub(super) struct CameFrom(pub(super) SocketAddr);

/// A running server.
#[derive(Debug)]
pub struct Serving {
    address: SocketAddr,
    stop: watch::Sender<bool>,
    task: tokio::task::JoinHandle<()>,
}

impl Serving {
    pub(super) fn start(listener: TcpListener, address: SocketAddr, router: Router) -> Self {
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(accept(listener, address.ip().is_loopback(), router, stopped));
        Self { address, stop, task }
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes no more connections and requests, and waits up to `drain` for the responses under way; the rest is cut.
    pub async fn stop(mut self, drain: Duration) {
        // The receiver is gone only if the task is.
        let _ = self.stop.send(true);
        if tokio::time::timeout(drain, &mut self.task).await.is_err() {
            self.task.abort();
            let _ = self.task.await;
        }
    }
}

async fn accept(listener: TcpListener, local: bool, router: Router, mut stopped: watch::Receiver<bool>) {
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    // Dropped with this task, which ends its connections.
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let permit = Arc::clone(&room).acquire_owned().await.expect("the semaphore is never closed");
            (permit, listener.accept().await)
        };
        let accepted = tokio::select! {
            accepted = next => accepted,
            _ = stopped.wait_for(|stopped| *stopped) => break,
        };
        while connections.try_join_next().is_some() {}
        match accepted {
            (permit, Ok((stream, from))) => {
                let (router, stopped) = (router.clone(), stopped.clone());
                connections.spawn(async move {
                    serve(stream, from, local, router, stopped).await;
                    drop(permit);
                });
            }
            (_, Err(error)) => {
                tracing::warn!(%error, "a connection could not be taken");
                tokio::time::sleep(ACCEPT_REST).await;
            }
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

/// With `local`, only requests to loopback names are answered.
async fn serve(stream: TcpStream, from: SocketAddr, local: bool, router: Router, mut stopped: watch::Receiver<bool>) {
    // Without this, small events wait for the client's acknowledgements, 40 ms at a time.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "Nagle's algorithm stays on");
    }
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
        // Only the operator's actions are told with where they came from; jobs' requests are spared the allocation.
        if !request.uri().path().starts_with("/v1/") {
            request.extensions_mut().insert(CameFrom(from));
        }
        match if local { guard::host(request.headers()) } else { Ok(()) } {
            Ok(()) => Either::Left(router.call(request)),
            Err(error) => Either::Right(ready(Ok(error.into_response()))),
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_WAIT)
        .max_buf_size(HEADER_BYTES_MAX)
        .serve_connection(TokioIo::new(NoStall::new(stream, WRITE_WAIT)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        _ = stopped.wait_for(|stopped| *stopped) => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke");
    }
}
