//! One connection: what its client sends is handed on one request at a time, and a client that takes nothing
//! of its answer is not waited for.

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_rt::net::TcpStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::HEAD_TIMEOUT;
use super::connections::ConnectionSlot;

/// What counts as progress: so many bytes …
pub const PROGRESS_BYTES: usize = 4 * 1024;
/// … within this.
pub const PROGRESS_TIME: Duration = Duration::from_secs(10);
/// Bytes that are read at once.
const READ_BYTES: usize = 4 * 1024;

/// A connection that ends when nothing is taken from it, or when a head that has begun does not end.
pub struct Stream {
    stream: TcpStream,
    place: Rc<ConnectionSlot>,
    /// Set while a write waits: until when there must have been progress.
    pace: Option<Pin<Box<Sleep>>>,
    /// Bytes written since that was set.
    written: usize,
    /// Set while no request is under way and something of the next one has come: until when its head must
    /// end.
    head: Option<Pin<Box<Sleep>>>,
    /// Requests that had begun when that was set.
    begun: u64,
    /// Something was handed on since the connection was last asked to wait.
    has_read: bool,
    /// Read and not handed on yet.
    rest: Vec<u8>,
    /// How much of the end of a head was handed on last.
    end: HeadEnd,
}

/// How much of the end of a head has been seen: two line breaks, each with or without a carriage return.
#[derive(Clone, Copy, Default)]
enum HeadEnd {
    #[default]
    Nothing,
    /// A line break.
    Line,
    /// And a carriage return.
    Return,
}

impl HeadEnd {
    /// The length of what begins `bytes` and ends a head, or all of it.
    fn cut(&mut self, bytes: &[u8]) -> usize {
        for (at, byte) in bytes.iter().enumerate() {
            *self = match (*self, byte) {
                (HeadEnd::Line | HeadEnd::Return, b'\n') => {
                    *self = HeadEnd::Nothing;
                    return at + 1;
                }
                (_, b'\n') => HeadEnd::Line,
                (HeadEnd::Line, b'\r') => HeadEnd::Return,
                _ => HeadEnd::Nothing,
            };
        }
        bytes.len()
    }
}

impl Stream {
    pub(super) fn new(stream: TcpStream, place: Rc<ConnectionSlot>) -> Stream {
        Stream {
            stream,
            place,
            pace: None,
            written: 0,
            head: None,
            begun: 0,
            has_read: false,
            rest: Vec::new(),
            end: HeadEnd::default(),
        }
    }

    /// Whose connection it is.
    pub(super) fn place(&self) -> Rc<ConnectionSlot> {
        Rc::clone(&self.place)
    }

    /// How much of the first `most` bytes to hand on: no more than one head.
    fn cut_head(&mut self, most: usize) -> usize {
        self.end.cut(&self.rest[..most])
    }

    /// A write waits: for how long?
    fn poll_pace(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = self.written;
        if self.pace.is_none() {
            self.place.set_unread(true);
        }
        let pace = self.pace.get_or_insert_with(|| Box::pin(sleep(PROGRESS_TIME)));
        ready!(pace.as_mut().poll(context));
        if written < PROGRESS_BYTES {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        self.written = 0;
        let mut next = Box::pin(sleep(PROGRESS_TIME));
        // Polled once, it wakes the task.
        let waits = next.as_mut().poll(context).map(Ok);
        self.pace = Some(next);
        waits
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (is_busy, begun) = (self.place.is_busy(), self.place.begun());
        if begun != self.begun {
            (self.begun, self.head) = (begun, None);
        }
        // Not while an answer waits to be taken: those to the next requests would be held in memory, too.
        let room = if self.pace.is_some() { 0 } else { buffer.remaining().min(READ_BYTES) };
        let most = self.place.may_read(context, room);
        if most == 0 {
            return Poll::Pending;
        }
        if self.head.as_mut().is_some_and(|head| head.as_mut().poll(context).is_ready()) {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        if std::mem::take(&mut self.has_read) {
            // Once each time that it is asked: what was read is answered before more is.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        if self.rest.is_empty() {
            let mut piece = [0; READ_BYTES];
            let mut piece = ReadBuf::new(&mut piece[..most]);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut piece))?;
            self.rest = piece.filled().to_vec();
        }
        let most = most.min(self.rest.len());
        let piece = if is_busy { most } else { self.cut_head(most) };
        buffer.put_slice(&self.rest[..piece]);
        self.rest.drain(..piece);
        self.place.has_read(piece);
        self.has_read = piece > 0;
        if !is_busy && self.head.is_none() && self.has_read {
            self.head = Some(Box::pin(sleep(HEAD_TIMEOUT)));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match Pin::new(&mut self.stream).poll_write(context, bytes) {
            Poll::Ready(Ok(written)) => {
                self.written += written;
                if written == bytes.len() {
                    self.written = 0;
                    if self.pace.take().is_some() {
                        self.place.set_unread(false);
                        self.place.wake();
                    }
                }
                Poll::Ready(Ok(written))
            }
            Poll::Pending => self.poll_pace(context).map(|result| result.map(|()| 0)),
            failed => failed,
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
