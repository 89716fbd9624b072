//! One connection to a receiver, plain or TLS, that can tell how it ended.
//!
//! awc reports a closed connection the same way whether it died of old age between two requests or in the
//! middle of an answer. Only the first may be tried again at once, so the connection itself keeps the
//! difference. It also has the head of each answer put right for awc (see `response_head_filter.rs`).
//!
//! awc writes a whole request before it reads. A receiver may answer before (413, say, or 200) and close, or
//! read no more. Its answer counts, so where it does not take more of the request, the connection reads ahead
//! for it.

use std::io::{self, Read as _};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use actix_rt::net::{ActixStream, Ready, TcpStream};
use actix_tls::connect::rustls_0_23::reexports::AsyncTlsStream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep};

use super::phase::{self, Phase};
use super::response_head_filter::Head;
use super::tls_words;

/// Bytes of a head that are read at once: most heads fit.
const HEAD_READ_BYTES: usize = 2048;
/// How long a receiver that has accepted a request early may take nothing more of it. Some go on reading
/// after their head; those that don't must not hold a slot of their destination.
const ACCEPTED_REST_TIME: Duration = Duration::from_secs(1);

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
    #[error("connection to {peer} broke: {}", reason(.error))]
    Broken {
        /// Whom we were talking to.
        peer: Arc<str>,
        /// What the system, or TLS, says.
        error: io::Error,
    },
}

/// What the system says, or TLS in words.
fn reason(error: &io::Error) -> String {
    let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
    tls.map_or_else(|| error.to_string(), tls_words::sentence)
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
    /// A request is being written, or was.
    Asking,
    /// Its answer is being read; after its last byte, the connection rests here.
    Answering,
}

/// A connection that knows how many requests it has carried.
#[derive(Debug)]
pub(super) struct TrackedStream {
    stream: Stream,
    peer: Arc<str>,
    exchange: Exchange,
    requests: u32,
    /// Whether a byte came since the last request began.
    is_heard: bool,
    head: Head,
    /// Whether the rest of a request was left out. What was answered to it is read nevertheless; the
    /// connection can carry no other request.
    is_cut: bool,
    /// Why the rest could not be written.
    write_error: Option<io::Error>,
    /// Runs while a receiver that has accepted a request takes nothing of its rest.
    rest: Option<Pin<Box<Sleep>>>,
    /// How the connection ended while a request was being written.
    early_end: Option<io::Error>,
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
        TrackedStream {
            stream,
            peer,
            exchange: Exchange::Answering,
            requests: 0,
            is_heard: false,
            head: Head::none(),
            is_cut: false,
            write_error: None,
            rest: None,
            early_end: None,
            read_error: None,
            _open: Open::new(),
        }
    }

    fn ended(&self, error: Option<io::Error>) -> io::Error {
        let peer = self.peer.clone();
        let gone = error.as_ref().is_none_or(|e| is_closed(e.kind()));
        if gone && self.requests > 1 && !self.is_heard {
            return self.stale();
        }
        match error {
            // Most peers don't end TLS properly; HTTP has its own ways to tell that an answer is complete.
            Some(error) if error.kind() != io::ErrorKind::UnexpectedEof => {
                io::Error::new(error.kind(), Ended::Broken { peer, error })
            }
            _ => io::Error::new(io::ErrorKind::UnexpectedEof, Ended::Closed(peer)),
        }
    }

    fn stale(&self) -> io::Error {
        io::Error::new(io::ErrorKind::ConnectionAborted, Ended::Stale(self.peer.clone()))
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
            // After a failed write there may be an answer that the runtime has not been told of yet; of a
            // dead connection it will be told that, or of its end.
            Poll::Pending if self.write_error.as_ref().is_none_or(|error| is_closed(error.kind())) => {
                Poll::Pending
            }
            Poll::Pending => Poll::Ready(Err(self.ended_after_write())),
            Poll::Ready(Ok(())) if room && buf.filled().len() == before => {
                Poll::Ready(Err(self.ended_after_write()))
            }
            Poll::Ready(Ok(())) => {
                self.is_heard = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) if self.stream.rest(buf) => {
                self.is_heard = true;
                self.read_error = Some(error);
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(self.ended(Some(error)))),
        }
    }

    /// The system tells once what broke a connection, to whoever asks first: the write, perhaps.
    fn ended_after_write(&mut self) -> io::Error {
        let error = self.write_error.take();
        self.ended(error)
    }

    /// Reads on until the head of the answer is complete.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.head.is_coming() {
            let mut bytes = [0; HEAD_READ_BYTES];
            let mut came = ReadBuf::new(&mut bytes);
            ready!(self.poll_receive(cx, &mut came))?;
            self.head.push(came.filled());
        }
        Poll::Ready(Ok(()))
    }

    /// Whether the rest of the request is to be left out, asked while the receiver takes nothing of it.
    fn is_answered(&mut self, cx: &mut Context<'_>) -> bool {
        if self.early_end.is_some() {
            return true;
        }
        match self.poll_head(cx) {
            Poll::Pending => return false,
            Poll::Ready(Err(error)) => {
                self.early_end = Some(error);
                return true;
            }
            Poll::Ready(Ok(())) => {}
        }
        // Who refuses a request wants no more of it. Who accepts it may.
        let Some(status) = self.head.status().filter(|status| (200..=299).contains(status)) else {
            return true;
        };
        phase::accepted(status);
        let rest = self.rest.get_or_insert_with(|| Box::pin(sleep(ACCEPTED_REST_TIME)));
        rest.as_mut().poll(cx).is_ready()
    }

    /// What becomes of a write, or a flush: `done` is for one that is left out.
    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<T>>,
        done: T,
    ) -> Poll<io::Result<T>> {
        match written {
            Poll::Ready(Ok(written)) => {
                self.rest = None;
                return Poll::Ready(Ok(written));
            }
            Poll::Ready(Err(error)) => self.write_error = Some(error),
            Poll::Pending if self.is_answered(cx) => {}
            Poll::Pending => return Poll::Pending,
        }
        self.is_cut = true;
        Poll::Ready(Ok(done))
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
        self.exchange = Exchange::Answering;
        if let Some(error) = self.early_end.take() {
            return Poll::Ready(Err(error));
        }
        if self.head.is_coming() {
            let complete = self.poll_head(cx);
            phase::enter(if self.head.has_begun() { Phase::Reading } else { Phase::Waiting });
            ready!(complete)?;
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
            if self.is_cut {
                return Poll::Ready(Err(self.stale()));
            }
            self.exchange = Exchange::Asking;
            self.requests += 1;
            self.is_heard = false;
            self.head = Head::awaited();
        }
        phase::enter(Phase::Sending);
        if self.is_cut {
            return Poll::Ready(Ok(buf.len()));
        }
        let written = match &mut self.stream {
            Stream::Plain(stream) => Pin::new(stream).poll_write(cx, buf),
            Stream::Tls(stream) => Pin::new(stream).poll_write(cx, buf),
        };
        self.written(cx, written, buf.len())
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.is_cut {
            let flushed = match &mut self.stream {
                Stream::Plain(stream) => Pin::new(stream).poll_flush(cx),
                Stream::Tls(stream) => Pin::new(stream).poll_flush(cx),
            };
            ready!(self.written(cx, flushed, ()))?;
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
