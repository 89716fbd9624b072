//! One connection to a receiver, plain or TLS, that can tell how it ended.
//!
//! awc reports a closed connection the same way whether it died of old age between two requests or in the
//! middle of an answer. Only the first may be tried again at once, so the connection itself keeps the
//! difference. It also has the head of each answer put right for awc (see `response_head_filter.rs`).

use std::io::{self, Read as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};

use actix_rt::net::{ActixStream, Ready, TcpStream};
use actix_tls::connect::rustls_0_23::reexports::AsyncTlsStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::phase::{self, Phase};
use super::response_head_filter::Head;

/// Bytes of a head that are read at once: most heads fit.
const HEAD_READ_BYTES: usize = 2048;

/// How a connection ended; the inside of the [`io::Error`] that says so. Tenants read it: it names the
/// receiver as the URL does.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    /// A kept-alive connection was closed before any byte of this answer: the receiver never saw the request,
    /// or at least never began to answer it.
    #[error("the kept-alive connection to {0} had been closed")]
    Stale(Arc<str>),
    /// Closed by the receiver.
    #[error("connection closed by {0} before the answer was complete")]
    Closed(Arc<str>),
    /// Broken.
    #[error("connection to {peer} broke: {error}")]
    Broken {
        /// Whom we were talking to.
        peer: Arc<str>,
        /// What the system, or TLS, says.
        error: io::Error,
    },
}

/// Plain or encrypted.
#[derive(Debug)]
pub(super) enum Stream {
    /// `http`
    Plain(TcpStream),
    /// `https`
    Tls(Box<AsyncTlsStream<TcpStream>>),
}

/// Where an exchange stands.
#[derive(Debug, PartialEq, Eq)]
enum Exchange {
    /// A request is being written, or was, and nothing came back yet.
    Asking,
    /// A byte of the answer came; after its last byte, the connection rests here.
    Answering,
}

/// A connection that knows how many requests it has carried.
#[derive(Debug)]
pub(super) struct TrackedStream {
    stream: Stream,
    peer: Arc<str>,
    exchange: Exchange,
    requests: u32,
    head: Head,
    /// A receiver may answer (413, say) and close while the request is still being written. What it said is
    /// read nevertheless: after a failed write, the rest of the request is dropped and reading tells what
    /// happened.
    write_error: Option<io::Error>,
    /// What broke the connection behind bytes that were handed out first.
    read_error: Option<io::Error>,
    _open: Open,
}

/// Connections that are open, in the whole process.
static OPEN: AtomicUsize = AtomicUsize::new(0);

/// How many connections to receivers are open.
pub fn open_connections() -> usize {
    OPEN.load(Ordering::Relaxed)
}

/// An open connection, for as long as it lives.
#[derive(Debug)]
struct Open;

impl Open {
    fn new() -> Open {
        OPEN.fetch_add(1, Ordering::Relaxed);
        Open
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}

impl TrackedStream {
    /// A new connection to `peer`, which is a host and a port.
    pub(super) fn new(stream: Stream, peer: Arc<str>) -> TrackedStream {
        let head = Head::none();
        let _open = Open::new();
        let exchange = Exchange::Answering;
        TrackedStream {
            stream,
            peer,
            exchange,
            requests: 0,
            head,
            write_error: None,
            read_error: None,
            _open,
        }
    }

    fn ended(&self, error: Option<io::Error>) -> io::Error {
        let peer = self.peer.clone();
        let gone = error.as_ref().is_none_or(|e| is_closed(e.kind()));
        if gone && self.exchange == Exchange::Asking && self.requests > 1 {
            return io::Error::new(io::ErrorKind::ConnectionAborted, Ended::Stale(peer));
        }
        match error {
            // Most peers don't end TLS properly; HTTP has its own ways to tell that an answer is complete.
            Some(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                io::Error::new(error.kind(), Ended::Broken { peer, error })
            }
            _ => io::Error::new(io::ErrorKind::UnexpectedEof, Ended::Closed(peer)),
        }
    }

    /// Reads what the receiver sends, as it is.
    fn poll_receive(&mut self, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(error) = self.read_error.take() {
            return Poll::Ready(Err(self.ended(Some(error))));
        }
        let before = buf.filled().len();
        let room = buf.remaining() > 0;
        let read = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        };
        match read {
            Poll::Pending => match self.write_error.take() {
                Some(error) => Poll::Ready(Err(self.ended(Some(error)))),
                None => Poll::Pending,
            },
            Poll::Ready(Ok(())) if room && buf.filled().len() == before => Poll::Ready(Err(self.ended(None))),
            Poll::Ready(Ok(())) => {
                self.exchange = Exchange::Answering;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) if self.stream.rest(buf) => {
                self.exchange = Exchange::Answering;
                self.read_error = Some(error);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.ended(Some(error)))),
        }
    }
}

impl Stream {
    /// Reads what had been decrypted before the connection broke; false when there is nothing. TLS tells the
    /// fault first where both came in one piece, and a status may stand before it.
    fn rest(&mut self, buf: &mut ReadBuf<'_>) -> bool {
        let Stream::Tls(stream) = self else { return false };
        let mut reader = stream.get_mut().1.reader();
        let read = reader.read(buf.initialize_unfilled()).unwrap_or(0);
        buf.advance(read);
        read > 0
    }
}

fn is_closed(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, NotConnected, UnexpectedEof};
    matches!(kind, BrokenPipe | ConnectionAborted | ConnectionReset | NotConnected | UnexpectedEof)
}

impl AsyncRead for TrackedStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.head.is_coming() {
            let mut bytes = [0; HEAD_READ_BYTES];
            let mut came = ReadBuf::new(&mut bytes);
            ready!(self.poll_receive(cx, &mut came))?;
            self.head.push(came.filled());
            let begun = self.head.has_begun();
            phase::enter(if begun { Phase::Reading } else { Phase::Waiting });
        }
        if self.head.give(buf) {
            return Poll::Ready(Ok(()));
        }
        self.poll_receive(cx, buf)
    }
}

impl AsyncWrite for TrackedStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if self.exchange == Exchange::Answering {
            self.exchange = Exchange::Asking;
            self.requests += 1;
            self.head = Head::awaited();
        }
        phase::enter(Phase::Sending);
        if self.write_error.is_some() {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        match ready!(written) {
            Ok(written) => Poll::Ready(Ok(written)),
            Err(error) => {
                self.write_error = Some(error);
                Poll::Ready(Ok(buf.len()))
            }
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.write_error.is_some() {
            phase::enter(Phase::Waiting);
            return Poll::Ready(Ok(()));
        }
        let flushed = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
        };
        if let Err(error) = ready!(flushed) {
            self.write_error = Some(error);
        }
        phase::enter(Phase::Waiting);
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Stream::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

impl ActixStream for TrackedStream {
    fn poll_read_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        match &self.stream {
            Stream::Plain(stream) => ActixStream::poll_read_ready(stream, cx),
            Stream::Tls(stream) => ActixStream::poll_read_ready(stream.get_ref().0, cx),
        }
    }

    fn poll_write_ready(&self, cx: &mut Context<'_>) -> Poll<io::Result<Ready>> {
        match &self.stream {
            Stream::Plain(stream) => ActixStream::poll_write_ready(stream, cx),
            Stream::Tls(stream) => ActixStream::poll_write_ready(stream.get_ref().0, cx),
        }
    }
}
