//! Length-prefixed messages over any byte stream: a little-endian `u32`, then that many bytes.
//! Invariant: a length is checked against the limit before room is made, and room grows only as bytes arrive.

use futures::io::{AsyncRead, AsyncWrite};
use spillway_ledger::CodecError;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

/// Bytes of the length before each message.
const LENGTH_BYTES: usize = 4;
/// How much is read at once.
const READ_BYTES: usize = 16 << 10;
/// A buffer that grew beyond this is given back once it is empty.
const KEEP_BYTES: usize = 64 << 10;

/// Why a stream can no longer be used. Each but [`FrameError::Broken`] is the far side's fault.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// A message above the limit was announced, or is to be sent; nothing of it was read or written.
    #[error("a frame of {got} bytes, where at most {max} are allowed")]
    TooLong {
        /// The limit in bytes.
        max: usize,
        /// What was announced, in bytes.
        got: usize,
    },
    /// The stream ended within a message.
    #[error("the stream ended within a frame, after {got} of {want} bytes")]
    Truncated {
        /// What came, in bytes, length prefix included.
        got: usize,
        /// What was announced, length prefix included; the prefix alone if even that was cut.
        want: usize,
    },
    /// The bytes are not what this stream carries.
    #[error("a frame that cannot be read: {0}")]
    Malformed(CodecError),
    /// The connection under the stream failed, or the far side reset the stream.
    #[error("the stream broke: {0}")]
    Broken(io::Error),
}

/// Reads messages. Dropping it tells the far side that nothing more is read.
pub struct LengthReader<'io> {
    io: Box<dyn AsyncRead + Send + Unpin + 'io>,
    max: usize,
    buffer: Vec<u8>,
    /// Where in `buffer` the next message begins.
    start: usize,
    ended: bool,
}

impl<'io> LengthReader<'io> {
    /// Reads from `io` messages of at most `max` bytes.
    pub fn new(io: impl AsyncRead + Send + Unpin + 'io, max: usize) -> Self {
        Self { io: Box::new(io), max, buffer: Vec::new(), start: 0, ended: false }
    }

    /// The next message; `None` once the far side has ended the stream between two messages, and after any error.
    /// Cancelling it loses nothing.
    ///
    /// # Errors
    /// In the order of [`FrameError`]. After one, nothing more is read.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, FrameError> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Vec<u8>>, FrameError>> {
        if self.ended {
            return Poll::Ready(Ok(None));
        }
        loop {
            let want = match self.buffered() {
                Ok(Progress::Message(body)) => return Poll::Ready(Ok(Some(body))),
                Ok(Progress::Want(want)) => want,
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Err(error));
                }
            };
            let mut chunk = [0; READ_BYTES];
            let got = match ready!(Pin::new(&mut self.io).poll_read(cx, &mut chunk)) {
                Ok(got) => got,
                Err(error) => {
                    self.ended = true;
                    return Poll::Ready(Err(FrameError::Broken(error)));
                }
            };
            if got == 0 {
                self.ended = true;
                let rest = self.buffer.len() - self.start;
                return Poll::Ready(if rest == 0 { Ok(None) } else { Err(FrameError::Truncated { got: rest, want }) });
            }
            self.buffer.extend_from_slice(&chunk[..got]);
        }
    }

    /// Takes a whole message from the buffer, or says how many bytes one needs.
    fn buffered(&mut self) -> Result<Progress, FrameError> {
        let rest = &self.buffer[self.start..];
        let Some(prefix) = rest.first_chunk::<LENGTH_BYTES>() else {
            return Ok(Progress::Want(LENGTH_BYTES));
        };
        let length = u32::from_le_bytes(*prefix) as usize;
        if length > self.max {
            return Err(FrameError::TooLong { max: self.max, got: length });
        }
        let want = LENGTH_BYTES + length;
        let Some(message) = rest.get(LENGTH_BYTES..want) else { return Ok(Progress::Want(want)) };
        let body = message.to_vec();
        self.start += want;
        if self.start == self.buffer.len() {
            self.start = 0;
            if self.buffer.capacity() > KEEP_BYTES {
                self.buffer = Vec::new();
            } else {
                self.buffer.clear();
            }
        } else if self.start > READ_BYTES {
            self.buffer.drain(..self.start);
            self.start = 0;
        }
        Ok(Progress::Message(body))
    }
}

impl From<FrameError> for io::Error {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Broken(error) => error,
            error @ (FrameError::TooLong { .. } | FrameError::Truncated { .. } | FrameError::Malformed(_)) => {
                io::Error::new(io::ErrorKind::InvalidData, error)
            }
        }
    }
}

enum Progress {
    Message(Vec<u8>),
    /// Bytes that the message at hand has in all, prefix included.
    Want(usize),
}

/// Writes messages, one at a time: the far side's reading speed is the sender's.
pub struct LengthWriter<'io> {
    io: Box<dyn AsyncWrite + Send + Unpin + 'io>,
    max: usize,
    /// The message being written; more than empty only if a send was cancelled half-way.
    pending: Vec<u8>,
    sent: usize,
}

impl<'io> LengthWriter<'io> {
    /// Writes to `io` messages of at most `max` bytes.
    pub fn new(io: impl AsyncWrite + Send + Unpin + 'io, max: usize) -> Self {
        Self { io: Box::new(io), max, pending: Vec::new(), sent: 0 }
    }

    /// Writes one message, length prefix included in `wire`, and flushes it. If this is cancelled, the message goes out
    /// with the next one: the stream never carries half a message followed by another.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] before anything is written, [`FrameError::Broken`] if the far side is gone.
    pub async fn send_wire(&mut self, wire: Vec<u8>) -> Result<(), FrameError> {
        let got = wire.len().saturating_sub(LENGTH_BYTES);
        if got > self.max {
            return Err(FrameError::TooLong { max: self.max, got });
        }
        self.drain().await?;
        self.pending = wire;
        self.sent = 0;
        self.drain().await
    }

    /// Writes one message.
    ///
    /// # Errors
    /// As [`LengthWriter::send_wire`].
    pub async fn send(&mut self, body: &[u8]) -> Result<(), FrameError> {
        if body.len() > self.max {
            return Err(FrameError::TooLong { max: self.max, got: body.len() });
        }
        let length = u32::try_from(body.len()).expect("every limit is far below 4 GiB");
        let mut wire = Vec::with_capacity(LENGTH_BYTES + body.len());
        wire.extend_from_slice(&length.to_le_bytes());
        wire.extend_from_slice(body);
        self.send_wire(wire).await
    }

    /// Sends what a cancelled send left, then says that nothing more comes.
    ///
    /// # Errors
    /// [`FrameError::Broken`] if the far side is gone.
    pub async fn close(&mut self) -> Result<(), FrameError> {
        self.drain().await?;
        std::future::poll_fn(|cx| Pin::new(&mut self.io).poll_close(cx)).await.map_err(FrameError::Broken)
    }

    async fn drain(&mut self) -> Result<(), FrameError> {
        std::future::poll_fn(|cx| self.poll_drain(cx)).await.map_err(FrameError::Broken)
    }

    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.pending.len() {
            let wrote = ready!(Pin::new(&mut self.io).poll_write(cx, &self.pending[self.sent..]))?;
            if wrote == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.sent += wrote;
        }
        if self.pending.is_empty() {
            return Poll::Ready(Ok(()));
        }
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.pending = Vec::new();
        self.sent = 0;
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::io::Cursor;

    /// What a reader with limit 8 makes of some bytes.
    async fn read(bytes: &[u8]) -> String {
        let mut reader = LengthReader::new(Cursor::new(bytes.to_vec()), 8);
        let mut seen = Vec::new();
        loop {
            match reader.next().await {
                Ok(Some(body)) => seen.push(format!("{body:?}")),
                Ok(None) => break,
                Err(error) => seen.push(format!("{error:?}")),
            }
        }
        seen.join(" ")
    }

    #[tokio::test]
    async fn every_input_is_messages_or_a_named_error() {
        let cases: [(&[u8], &str); 9] = [
            (&[], ""),
            (&[0, 0, 0, 0], "[]"),
            (&[1, 0, 0, 0, 7, 2, 0, 0, 0, 8, 9], "[7] [8, 9]"),
            (&[1, 0, 0], "Truncated { got: 3, want: 4 }"),
            (&[2, 0, 0, 0, 7], "Truncated { got: 5, want: 6 }"),
            (&[9, 0, 0, 0, 1, 2, 3], "TooLong { max: 8, got: 9 }"),
            (&[1, 0, 0, 0, 7, 9, 0, 0, 0], "[7] TooLong { max: 8, got: 9 }"),
            (&[255, 255, 255, 255], "TooLong { max: 8, got: 4294967295 }"),
            (&[8, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8], "[1, 2, 3, 4, 5, 6, 7, 8]"),
        ];
        for (bytes, expected) in cases {
            assert_eq!(read(bytes).await, expected, "{bytes:?}");
        }
    }

    #[tokio::test]
    async fn many_messages_pass_whole_and_in_order() {
        let (near, far) = tokio::io::duplex(100);
        let (near, far) = (Pipe(near), Pipe(far));
        let mut reader = LengthReader::new(near, 1 << 20);
        let mut writer = LengthWriter::new(far, 1 << 20);
        let sizes = [0usize, 1, 99, 100, 101, 20_000, 0, 300_000, 5];
        let sent = tokio::spawn(async move {
            for (index, size) in sizes.into_iter().enumerate() {
                writer.send(&vec![u8::try_from(index).expect("few"); size]).await.expect("the reader reads");
            }
            let over = writer.send(&vec![0; (1 << 20) + 1]).await;
            assert!(matches!(over, Err(FrameError::TooLong { max: 1_048_576, got: 1_048_577 })), "{over:?}");
            writer.close().await.expect("the reader reads");
        });
        for (index, size) in sizes.into_iter().enumerate() {
            let body = reader.next().await.expect("whole").expect("sent");
            assert_eq!(body, vec![u8::try_from(index).expect("few"); size], "message {index}");
        }
        assert!(reader.next().await.expect("closed between messages").is_none());
        sent.await.expect("no assertion failed");
    }

    /// A tokio pipe with the traits of the `futures` crate.
    struct Pipe(tokio::io::DuplexStream);

    impl AsyncRead for Pipe {
        fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut [u8]) -> Poll<io::Result<usize>> {
            let mut buffer = tokio::io::ReadBuf::new(to);
            ready!(tokio::io::AsyncRead::poll_read(Pin::new(&mut self.0), cx, &mut buffer))?;
            Poll::Ready(Ok(buffer.filled().len()))
        }
    }

    impl AsyncWrite for Pipe {
        fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, from: &[u8]) -> Poll<io::Result<usize>> {
            tokio::io::AsyncWrite::poll_write(Pin::new(&mut self.0), cx, from)
        }
        fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            tokio::io::AsyncWrite::poll_flush(Pin::new(&mut self.0), cx)
        }
        fn poll_close(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
            tokio::io::AsyncWrite::poll_shutdown(Pin::new(&mut self.0), cx)
        }
    }
}
