//! The client's side of the edge.
//! Invariant: a connection stands only with the node whose peer id the address names.

use super::wire::{ALPN, EdgeFrame, EdgeJob};
use crate::network::{FrameError, LengthReader, LengthWriter};
use futures::Stream;
use libp2p::Multiaddr;
use libp2p::identity::Keypair;
use libp2p::multiaddr::Protocol;
use quinn::crypto::rustls::QuicClientConfig;
use spillway_ledger::{CodecError, Document as _, decode, encode};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

/// How long a connection may take to stand.
const CONNECT_WAIT: Duration = Duration::from_secs(10);
/// Keeps the connection open while a job waits in silence.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// Why a job could not be handed in, or its stream ended early.
#[derive(Debug, thiserror::Error)]
pub enum EdgeError {
    /// The address cannot be used.
    #[error("`{0}` is not an address such as /ip4/127.0.0.1/udp/4601/quic-v1/p2p/12D3KooW…")]
    BadAddress(String),
    /// No connection; a wrong peer id shows as a failed handshake.
    #[error("no connection to the node: {0}")]
    Connect(String),
    /// The job is too large, or the key is.
    #[error("the job cannot be sent: {0}")]
    BadJob(&'static str),
    /// The stream broke.
    #[error(transparent)]
    Stream(#[from] FrameError),
    /// The node said something that cannot be read.
    #[error("the node's answer cannot be read: {0}")]
    BadFrame(#[from] CodecError),
}

/// A connection to a node; cheap to clone, one stream a job.
#[derive(Clone, Debug)]
pub struct Client {
    connection: quinn::Connection,
    // Dropped last: the endpoint carries the connection.
    _endpoint: quinn::Endpoint,
}

impl Client {
    /// Connects to `address`: `/ip4/…/udp/…/quic-v1/p2p/…`, as a node prints it.
    ///
    /// # Errors
    /// [`EdgeError::BadAddress`] or [`EdgeError::Connect`].
    ///
    /// # Panics
    /// If libp2p's TLS settings have no QUIC cipher suite; TLS 1.3 always has one.
    pub async fn connect(address: &str) -> Result<Self, EdgeError> {
        let bad = || EdgeError::BadAddress(address.to_owned());
        let parsed: Multiaddr = address.parse().map_err(|_| bad())?;
        let mut parts = parsed.iter();
        let ip: IpAddr = match parts.next() {
            Some(Protocol::Ip4(ip)) => ip.into(),
            Some(Protocol::Ip6(ip)) => ip.into(),
            _ => return Err(bad()),
        };
        let (Some(Protocol::Udp(port)), Some(Protocol::QuicV1), Some(Protocol::P2p(peer)), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(bad());
        };
        let failed = |error: &dyn std::fmt::Display| EdgeError::Connect(error.to_string());
        // libp2p's TLS wants a certificate of both sides; a client without a node takes a fresh one each time.
        let mut tls =
            libp2p_tls::make_client_config(&Keypair::generate_ed25519(), Some(peer)).map_err(|e| failed(&e))?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        tls.key_log = Arc::new(rustls::NoKeyLog {});
        let crypto = QuicClientConfig::try_from(tls).expect("libp2p's TLS has a QUIC cipher suite");
        let mut config = quinn::ClientConfig::new(Arc::new(crypto));
        let mut transport = quinn::TransportConfig::default();
        transport.keep_alive_interval(Some(KEEP_ALIVE)).max_concurrent_bidi_streams(0u8.into());
        config.transport_config(Arc::new(transport));
        let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        let endpoint = quinn::Endpoint::client(SocketAddr::new(any, 0)).map_err(|e| failed(&e))?;
        // The name is for the protocol's sake: the certificate is checked against the peer id.
        let connecting = endpoint.connect_with(config, SocketAddr::new(ip, port), "l").map_err(|e| failed(&e))?;
        let connection = tokio::time::timeout(CONNECT_WAIT, connecting)
            .await
            .map_err(|_| EdgeError::Connect(format!("no answer within {} s", CONNECT_WAIT.as_secs())))?
            .map_err(|e| failed(&e))?;
        Ok(Self { connection, _endpoint: endpoint })
    }

    /// Hands a job in. Its frames come as a stream; dropping the stream leaves the job.
    ///
    /// # Errors
    /// [`EdgeError::BadJob`] before anything is sent, or [`EdgeError::Stream`].
    pub async fn submit(&self, job: EdgeJob) -> Result<Frames, EdgeError> {
        job.check().map_err(EdgeError::BadJob)?;
        let (send, receive) = self.connection.open_bi().await.map_err(|error| EdgeError::Connect(error.to_string()))?;
        let mut writer = LengthWriter::new(send, EdgeJob::BYTES_MAX);
        writer.send(&encode(&job)).await?;
        Ok(Self::frames(writer, receive))
    }

    /// Sends bytes as they are, for tests of what a node makes of them.
    #[cfg(test)]
    pub(super) async fn submit_raw(&self, bytes: &[u8]) -> Frames {
        let (mut send, receive) = self.connection.open_bi().await.expect("open");
        send.write_all(bytes).await.expect("written");
        Self::frames(LengthWriter::new(send, EdgeJob::BYTES_MAX), receive)
    }

    fn frames(writer: LengthWriter<'static>, receive: quinn::RecvStream) -> Frames {
        let reader = LengthReader::new(receive, EdgeFrame::BYTES_MAX);
        let frames = futures::stream::unfold(Some((reader, writer)), |state| async move {
            // The writer is kept so that the node sees the client until the end.
            let (mut reader, writer) = state?;
            let frame = match reader.next().await {
                Ok(Some(bytes)) => decode::<EdgeFrame>(&bytes).map_err(EdgeError::from),
                Ok(None) => return None,
                Err(error) => Err(error.into()),
            };
            let next = frame.is_ok().then_some((reader, writer));
            Some((frame, next))
        });
        Frames(Box::pin(frames))
    }
}

/// A job's frames, in order.
pub struct Frames(Pin<Box<dyn Stream<Item = Result<EdgeFrame, EdgeError>> + Send>>);

impl Stream for Frames {
    type Item = Result<EdgeFrame, EdgeError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.as_mut().poll_next(cx)
    }
}
