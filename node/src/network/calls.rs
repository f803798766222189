//! Small questions and answers between peers, over libp2p's request-response.
//! Invariant: a length is checked against its kind's limit before room is made, on both sides.

use super::wire::{LengthReader, LengthWriter};
use futures::io::{AsyncRead, AsyncWrite};
use libp2p::StreamProtocol;
use libp2p::request_response;
use spillway_protocol::discovery::OFFERS_PROTOCOL;
use spillway_protocol::wire::PROBE_PROTOCOL;
use std::io;
use std::time::Duration;

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum CallKind {
    /// How loaded a provider is, and at what price it would take a job.
    Probe,
    /// What changed among the offers of some shards, offers by name, or (an empty question) some that a peer knows.
    Offers,
    /// Entries for the ledger's authority, and blocks from whoever has them.
    Ledger,
}

impl CallKind {
    /// Every kind.
    pub const ALL: [Self; 3] = [Self::Probe, Self::Offers, Self::Ledger];

    /// The name on the wire, version included.
    pub(crate) const fn protocol(self) -> StreamProtocol {
        match self {
            Self::Probe => StreamProtocol::new(PROBE_PROTOCOL),
            Self::Offers => StreamProtocol::new(OFFERS_PROTOCOL),
            Self::Ledger => StreamProtocol::new("/spillway/ledger/1"),
        }
    }

    /// Longest question, in bytes.
    #[must_use]
    pub const fn request_bytes_max(self) -> usize {
        match self {
            Self::Probe | Self::Offers | Self::Ledger => 16 << 10,
        }
    }

    /// Longest answer, in bytes. For the ledger: one block of the greatest size, and its certificate.
    #[must_use]
    pub const fn response_bytes_max(self) -> usize {
        match self {
            Self::Probe => 16 << 10,
            Self::Offers => 1 << 20,
            Self::Ledger => (1 << 20) + (64 << 10),
        }
    }

    /// How long the far side may take, whatever the caller's own patience.
    pub(crate) const fn wait_max(self) -> Duration {
        match self {
            Self::Probe => Duration::from_secs(5),
            Self::Offers => Duration::from_secs(10),
            Self::Ledger => Duration::from_secs(30),
        }
    }

    /// How many may be under way on one connection.
    pub(crate) const fn concurrent_max(self) -> usize {
        match self {
            Self::Probe | Self::Ledger => 64,
            Self::Offers => 8,
        }
    }
}

/// Reads and writes one kind: a little-endian `u32` length, then the bytes, each way.
#[derive(Clone)]
pub(crate) struct Codec(CallKind);

impl Codec {
    pub(crate) fn behaviour(kind: CallKind) -> request_response::Behaviour<Self> {
        let config = request_response::Config::default()
            .with_request_timeout(kind.wait_max())
            .with_max_concurrent_streams(kind.concurrent_max());
        let protocols = [(kind.protocol(), request_response::ProtocolSupport::Full)];
        request_response::Behaviour::with_codec(Self(kind), protocols, config)
    }
}

impl request_response::Codec for Codec {
    type Protocol = StreamProtocol;
    type Request = Vec<u8>;
    type Response = Vec<u8>;

    async fn read_request<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, self.0.request_bytes_max()).await
    }

    async fn read_response<T>(&mut self, _: &StreamProtocol, io: &mut T) -> io::Result<Vec<u8>>
    where
        T: AsyncRead + Unpin + Send,
    {
        read(io, self.0.response_bytes_max()).await
    }

    async fn write_request<T>(&mut self, _: &StreamProtocol, io: &mut T, request: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, request, self.0.request_bytes_max()).await
    }

    async fn write_response<T>(&mut self, _: &StreamProtocol, io: &mut T, response: Vec<u8>) -> io::Result<()>
    where
        T: AsyncWrite + Unpin + Send,
    {
        write(io, response, self.0.response_bytes_max()).await
    }
}

async fn read(io: &mut (impl AsyncRead + Unpin + Send), max: usize) -> io::Result<Vec<u8>> {
    LengthReader::new(io, max).next().await?.ok_or_else(|| io::ErrorKind::UnexpectedEof.into())
}

async fn write(io: &mut (impl AsyncWrite + Unpin + Send), bytes: Vec<u8>, max: usize) -> io::Result<()> {
    Ok(LengthWriter::new(io, max).send(&bytes).await?)
}
