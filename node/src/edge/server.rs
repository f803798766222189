//! The node's side of the edge.
//! Invariants: a stream is read up to one job and no further; a client that goes away is a client that left its job.

use super::wire::{ALPN, EdgeFrame, EdgeJob};
use crate::gateway::{ApiError, Gateway};
use crate::jobs::JobEvent;
use crate::network::{FrameError, LengthReader, LengthWriter, keypair, peer_of};
use futures::future::BoxFuture;
use quinn::crypto::rustls::QuicServerConfig;
use spillway_ledger::{Document as _, NodeId, SecretKey, decode, encode};
use spillway_protocol::Kind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// Clients at once; beyond that a connection is refused before its handshake.
const CONNECTIONS_MAX: usize = 1024;
/// From this many on, a client must show that its address is its own.
const RETRY_FROM: usize = 256;
/// Jobs at once on one connection.
const STREAMS_MAX: u32 = 64;
/// Bytes in flight on one stream from a client.
const STREAM_BYTES_MAX: u32 = 1 << 20;
/// Bytes in flight on one connection from a client; QUIC's own default has no limit.
const CONNECTION_BYTES_MAX: u32 = 4 << 20;
/// How long a client may take to say what it wants.
const OPEN_WAIT: Duration = Duration::from_secs(10);
/// A connection without traffic ends after this.
const IDLE_MAX: Duration = Duration::from_secs(60);
/// How often a silent job shows that it is alive.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// What takes an edge client's jobs: the gateway, or a stand-in in tests.
pub trait EdgeHandler: Clone + Send + Sync + 'static {
    /// A job that was taken. Dropping it leaves the job.
    type Work: EdgeWork;

    /// Takes a job, or says why not.
    fn submit(&self, key: &str, kind: Kind, body: &[u8]) -> impl Future<Output = Result<Self::Work, ApiError>> + Send;
}

/// A job that was taken.
pub trait EdgeWork: Send + 'static {
    /// The job's id.
    fn id(&self) -> String;

    /// Its next event; cancel-safe.
    fn next(&mut self) -> BoxFuture<'_, Option<JobEvent>>;
}

impl EdgeHandler for Gateway {
    type Work = crate::gateway::AdmittedJob;

    async fn submit(&self, key: &str, kind: Kind, body: &[u8]) -> Result<Self::Work, ApiError> {
        self.admit(key, kind, body).await
    }
}

impl EdgeWork for crate::gateway::AdmittedJob {
    fn id(&self) -> String {
        Self::id(self).to_string()
    }

    fn next(&mut self) -> BoxFuture<'_, Option<JobEvent>> {
        Box::pin(Self::next(self))
    }
}

/// Why the edge cannot start.
#[derive(Debug, thiserror::Error)]
pub enum EdgeServerError {
    /// Not an address and port.
    #[error("edge.listen: `{0}` is not an address and port such as 127.0.0.1:4601")]
    BadAddress(String),
    /// It cannot be listened on.
    #[error("edge.listen: {0}")]
    Listen(#[from] std::io::Error),
    /// The node key makes no certificate.
    #[error("edge: the node key makes no certificate: {0}")]
    Certificate(String),
}

/// A running edge server. [`EdgeServer::stop`] ends it.
#[derive(Debug)]
pub struct EdgeServer {
    endpoint: quinn::Endpoint,
    address: String,
}

impl EdgeServer {
    /// Listens on `listen`, such as `127.0.0.1:4601`; port 0 takes a free one. Its certificate is the node's peer id.
    ///
    /// # Errors
    /// In the order of [`EdgeServerError`].
    ///
    /// # Panics
    /// If libp2p's TLS settings have no QUIC cipher suite; TLS 1.3 always has one.
    pub fn start(listen: &str, key: &SecretKey, handler: impl EdgeHandler) -> Result<Self, EdgeServerError> {
        let at: SocketAddr = listen.parse().map_err(|_| EdgeServerError::BadAddress(listen.to_owned()))?;
        let mut tls = libp2p_tls::make_server_config(&keypair(key))
            .map_err(|error| EdgeServerError::Certificate(error.to_string()))?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.key_log = Arc::new(rustls::NoKeyLog {});
        let crypto = QuicServerConfig::try_from(tls).expect("libp2p's TLS has a QUIC cipher suite");
        let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        transport
            .max_concurrent_bidi_streams(STREAMS_MAX.into())
            .max_concurrent_uni_streams(0u8.into())
            .stream_receive_window(STREAM_BYTES_MAX.into())
            .receive_window(CONNECTION_BYTES_MAX.into())
            .max_idle_timeout(Some(IDLE_MAX.try_into().expect("a minute fits")));
        config.transport_config(Arc::new(transport));
        let endpoint = quinn::Endpoint::server(config, at)?;
        let bound = endpoint.local_addr()?;
        let ip = match bound {
            SocketAddr::V4(bound) => format!("/ip4/{}", bound.ip()),
            SocketAddr::V6(bound) => format!("/ip6/{}", bound.ip()),
        };
        let peer = peer_of(&NodeId(key.public())).map_err(|error| EdgeServerError::Certificate(error.to_string()))?;
        let address = format!("{ip}/udp/{}/quic-v1/p2p/{peer}", bound.port());
        tokio::spawn(accept(endpoint.clone(), handler));
        Ok(Self { endpoint, address })
    }

    /// What `spillway submit --via` takes.
    #[must_use]
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Takes no more connections, and ends those that there are.
    pub async fn stop(self) {
        self.endpoint.close(0u8.into(), b"the node stops");
        let _ = tokio::time::timeout(Duration::from_secs(2), self.endpoint.wait_idle()).await;
    }
}

async fn accept(endpoint: quinn::Endpoint, handler: impl EdgeHandler) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    while let Some(incoming) = endpoint.accept().await {
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        if places.available_permits() < CONNECTIONS_MAX - RETRY_FROM && !incoming.remote_address_validated() {
            let _ = incoming.retry();
            continue;
        }
        let handler = handler.clone();
        tokio::spawn(async move {
            let Ok(connecting) = incoming.accept() else { return };
            let Ok(Ok(connection)) = tokio::time::timeout(OPEN_WAIT, connecting).await else { return };
            // The stream limit of the transport bounds the tasks below.
            while let Ok((send, receive)) = connection.accept_bi().await {
                let handler = handler.clone();
                tokio::spawn(async move {
                    if let Err(error) = serve(send, receive, handler).await {
                        tracing::debug!(%error, "an edge client went away");
                    }
                });
            }
            drop(place);
        });
    }
}

async fn serve(
    send: quinn::SendStream,
    receive: quinn::RecvStream,
    handler: impl EdgeHandler,
) -> Result<(), FrameError> {
    let mut reader = LengthReader::new(receive, EdgeJob::BYTES_MAX);
    let mut writer = LengthWriter::new(send, EdgeFrame::BYTES_MAX);
    let refused =
        |error: ApiError| EdgeFrame::Failed { status: error.status, code: error.code, message: error.message };
    let opening = match tokio::time::timeout(OPEN_WAIT, reader.next()).await {
        Ok(Ok(Some(bytes))) => {
            decode::<EdgeJob>(&bytes).map_err(|error| ApiError::new(400, "invalid_request", error.to_string()))
        }
        Ok(Ok(None)) => return Ok(()),
        Ok(Err(FrameError::TooLong { max, .. })) => Err(ApiError::too_large(max)),
        Ok(Err(error)) => Err(ApiError::new(400, "invalid_request", error.to_string())),
        Err(_) => Err(ApiError::new(408, "request_timeout", "no job came within 10 s")),
    };
    let taken = match opening {
        Ok(job) => handler.submit(&job.key, job.kind, &job.body).await,
        Err(error) => Err(error),
    };
    let mut work = match taken {
        Ok(work) => work,
        Err(error) => {
            writer.send(&encode(&refused(error))).await?;
            return writer.close().await;
        }
    };
    loop {
        let event = tokio::select! {
            event = work.next() => event,
            // Nothing more is expected from a client: an end, an error or more bytes all mean that it is done.
            _ = gone(&mut reader) => return Ok(()),
            () = tokio::time::sleep(ALIVE_EVERY) => {
                writer.send(&encode(&EdgeFrame::Alive)).await?;
                continue;
            }
        };
        let (frame, last) = match event {
            Some(JobEvent::Placed { route, provider, reason, .. }) => {
                let provider = provider.map(|node| node.to_string());
                (EdgeFrame::Placed { route: route.as_str().into(), reason: reason.as_str().into(), provider }, false)
            }
            Some(JobEvent::Chunk(bytes)) => (EdgeFrame::Chunk(bytes), false),
            Some(JobEvent::Ended(outcome)) => match outcome.result {
                Ok(finish) => (EdgeFrame::Done { finish, cost_micro: outcome.cost.micro(), job: work.id() }, true),
                Err(failure) => (refused(ApiError::from(&failure)), true),
            },
            None => (refused(ApiError::internal("the job's events ended early")), true),
        };
        writer.send(&encode(&frame)).await?;
        if last {
            return writer.close().await;
        }
    }
}

/// Resolves when the client resets its side or the connection ends. A client that merely has no more to say stays.
async fn gone(reader: &mut LengthReader<'_>) {
    match reader.next().await {
        Ok(Some(_)) | Err(_) => {}
        Ok(None) => std::future::pending().await,
    }
}
