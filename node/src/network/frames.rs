//! A job's stream: protocol frames over a libp2p stream, both ways.
//! Invariant: whoever holds a [`Frame`] from here holds one that kept its limits and is in its one encoding.

use super::wire::{FrameError, LengthReader, LengthWriter};
use futures::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use spillway_protocol::Frame;
use spillway_protocol::wire::FRAME_BYTES_MAX;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::time::Instant;

/// How many frames an emulated distance holds back at once; beyond that the far side is slowed down.
const HELD_FRAMES_MAX: usize = 256;

/// One job's stream. Dropping both halves ends it; the far side's reader then ends or fails.
pub struct JobStream {
    reader: FrameReader,
    writer: FrameWriter,
}

impl JobStream {
    /// Frames over `io`; what comes in is held back by `hold`. Needs a tokio runtime around it if `hold` is not zero.
    /// `place` is what the stream takes up on its connection; it is given back with the later half.
    pub(crate) fn new(
        io: impl AsyncRead + AsyncWrite + Send + Unpin + 'static,
        hold: Duration,
        place: OwnedSemaphorePermit,
    ) -> Self {
        let (read, write) = io.split();
        let reader = LengthReader::new(read, FRAME_BYTES_MAX);
        let source =
            if hold.is_zero() { Source::Stream(reader) } else { Source::Held(Box::new(Held::new(reader, hold))) };
        let writer = LengthWriter::new(write, FRAME_BYTES_MAX);
        let place = Arc::new(place);
        Self {
            reader: FrameReader { source, _place: Arc::clone(&place) },
            writer: FrameWriter { writer, _place: place },
        }
    }

    /// Its two halves, which may live in two tasks.
    #[must_use]
    pub fn split(self) -> (FrameReader, FrameWriter) {
        (self.reader, self.writer)
    }
}

/// The incoming half.
pub struct FrameReader {
    source: Source,
    _place: Arc<OwnedSemaphorePermit>,
}

enum Source {
    Stream(LengthReader<'static>),
    Held(Box<Held>),
}

/// Frames that an emulated distance holds back.
struct Held {
    frames: mpsc::Receiver<(Instant, Result<Frame, FrameError>)>,
    /// The frame whose time is awaited; here and not in the future, so that cancelling loses nothing.
    next: Option<(Instant, Result<Frame, FrameError>)>,
}

impl Held {
    fn new(mut reader: LengthReader<'static>, hold: Duration) -> Self {
        let (held, frames) = mpsc::channel(HELD_FRAMES_MAX);
        tokio::spawn(async move {
            loop {
                let next = tokio::select! {
                    () = held.closed() => return,
                    next = read_frame(&mut reader) => next,
                };
                let Some(next) = next.transpose() else { return };
                let over = next.is_err();
                if held.send((Instant::now() + hold, next)).await.is_err() || over {
                    return;
                }
            }
        });
        Self { frames, next: None }
    }

    async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        if self.next.is_none() {
            self.next = self.frames.recv().await;
        }
        let Some((due, _)) = &self.next else { return Ok(None) };
        tokio::time::sleep_until(*due).await;
        self.next.take().map(|(_, frame)| frame).transpose()
    }
}

impl FrameReader {
    /// The next frame; `None` once the far side has ended the stream between two frames, and after any error.
    /// Cancelling it loses nothing.
    ///
    /// # Errors
    /// In the order of [`FrameError`]. After one, the stream is of no more use.
    pub async fn next(&mut self) -> Result<Option<Frame>, FrameError> {
        match &mut self.source {
            Source::Stream(reader) => read_frame(reader).await,
            Source::Held(held) => held.next().await,
        }
    }
}

async fn read_frame(reader: &mut LengthReader<'static>) -> Result<Option<Frame>, FrameError> {
    let Some(body) = reader.next().await? else { return Ok(None) };
    Frame::from_wire(&body).map(Some).map_err(FrameError::Malformed)
}

/// The outgoing half.
pub struct FrameWriter {
    writer: LengthWriter<'static>,
    _place: Arc<OwnedSemaphorePermit>,
}

impl FrameWriter {
    /// Sends one frame and flushes it. If this is cancelled, the frame goes out with the next one.
    ///
    /// # Errors
    /// [`FrameError::TooLong`] before anything is written, [`FrameError::Broken`] if the far side is gone.
    pub async fn send(&mut self, frame: &Frame) -> Result<(), FrameError> {
        self.writer.send_wire(frame.to_wire()).await
    }

    /// The layer below frames, to break their rules.
    #[cfg(test)]
    pub(crate) const fn raw(&mut self) -> &mut LengthWriter<'static> {
        &mut self.writer
    }

    /// Says that no frame comes any more; the other half still reads.
    ///
    /// # Errors
    /// [`FrameError::Broken`] if the far side is gone.
    pub async fn close(&mut self) -> Result<(), FrameError> {
        self.writer.close().await
    }
}
