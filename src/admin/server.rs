//! The server's connections: how many there are and whose, what makes room for a new one, and how long one
//! may take nothing of its answer.
//!
//! A connection is busy from the head of a request until its answer has been handed on, and idle otherwise.
//! Where all places are taken, the one that has been idle for the longest makes room; requests to the API
//! keep no more than three quarters of the places busy. So there is always one for `/healthz`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker, ready};
use std::time::{Duration, Instant};

use actix_http::{HttpService, Request};
use actix_rt::Arbiter;
use actix_rt::net::TcpStream;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt as _, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, ServiceResponse};
use actix_web::{Error, HttpResponse};
use ipnet::IpNet;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Sleep, sleep};

use crate::clock;
use crate::model::{KeyId, OrgId};

/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection rests between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a client may take to close a connection that we have closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// What counts as progress: so many bytes …
pub(super) const PROGRESS_BYTES: usize = 4 * 1024;
/// … within this.
pub(super) const PROGRESS_TIME: Duration = Duration::from_secs(10);
/// Bytes that are read at once: small requests that follow each other make answers far larger than they are.
const READ_BYTES: usize = 8 * 1024;
/// How long requests that are under way get when the server stops.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);
/// One organization has as many connections as so many keys may have.
const KEYS_PER_ORG: usize = 2;
/// Pause when a connection cannot be accepted, as there is no descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of an answer that the system holds until the client takes them.
const SEND_BUFFER_BYTES: u32 = 64 * 1024;
/// Connections that the system holds for us until we take them.
const BACKLOG: u32 = 1024;

/// How many connections there may be.
#[derive(Clone, Debug)]
pub struct ConnectionLimits {
    /// In all.
    pub total: usize,
    /// From one address: of IPv6, from one network of 64 bits.
    pub per_address: usize,
    /// With the same key, and busy ones from the same address.
    pub per_client: usize,
    /// Whose connections come from many addresses.
    pub proxies: Vec<IpNet>,
}

/// Stops a server.
pub struct ServerHandle {
    stop: mpsc::Sender<oneshot::Sender<()>>,
}

impl ServerHandle {
    /// Accepts no more connections, and lets requests that are under way end, within a limit.
    pub async fn stop(self) {
        let (done, is_done) = oneshot::channel();
        if self.stop.send(done).await.is_ok() {
            // An error says that it has ended already.
            is_done.await.ok();
        }
    }
}

/// Opens the port and serves what `app` makes, on a thread of its own; returns where.
///
/// # Errors
/// When the address cannot be listened on.
pub fn start<F, I, S, B>(
    listen: SocketAddr,
    places: ConnectionLimits,
    app: F,
    refuse: fn(Error) -> HttpResponse,
) -> io::Result<(SocketAddr, ServerHandle)>
where
    F: FnOnce() -> I + Send + 'static,
    I: IntoServiceFactory<S, Request>,
    S: ServiceFactory<Request, Config = AppConfig, Response = ServiceResponse<B>, Error = Error> + 'static,
    S::InitError: std::fmt::Debug,
    B: MessageBody + 'static,
{
    let listener = bind(listen)?;
    let address = listener.local_addr()?;
    let (stop, stopped) = mpsc::channel(1);
    let serve = move || {
        actix_rt::spawn(async move {
            if let Err(error) = serve(listener, places, app().into_factory(), refuse, stopped).await {
                log::error!("the HTTP server has ended: {error}");
            }
            Arbiter::current().stop();
        });
    };
    if !Arbiter::new().spawn_fn(serve) {
        return Err(io::Error::other("the thread of the HTTP server has ended"));
    }
    Ok((address, ServerHandle { stop }))
}

fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let socket = match listen {
        SocketAddr::V4(_) => tokio::net::TcpSocket::new_v4()?,
        SocketAddr::V6(_) => tokio::net::TcpSocket::new_v6()?,
    };
    socket.set_reuseaddr(true)?;
    // Connections inherit it. A client that takes its answer slowly is seen to take it.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(listen)?;
    let listener = socket.listen(BACKLOG)?.into_std()?;
    Ok(listener)
}

async fn serve<S, B>(
    listener: TcpListener,
    places: ConnectionLimits,
    app: S,
    refuse: fn(Error) -> HttpResponse,
    mut stop: mpsc::Receiver<oneshot::Sender<()>>,
) -> io::Result<()>
where
    S: ServiceFactory<Request, Config = AppConfig, Response = ServiceResponse<B>, Error = Error> + 'static,
    S::InitError: std::fmt::Debug,
    B: MessageBody + 'static,
{
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let app = map_config(app.map_err(refuse), |()| AppConfig::default());
    let http = HttpService::<Stream, _, _>::build()
        .keep_alive(KEEP_ALIVE)
        .client_request_timeout(HEAD_TIMEOUT)
        .client_disconnect_timeout(CLOSE_TIMEOUT)
        .on_connect_ext(|stream: &Stream, data| drop(data.insert(Rc::clone(&stream.place))))
        .h1(app);
    let http = http.new_service(()).await.map_err(|()| io::Error::other("it cannot be set up"))?;
    let http = Rc::new(http);
    let connections = Rc::new(Connections { places, all: RefCell::default(), next: Cell::new(0) });
    loop {
        tokio::select! {
            done = stop.recv() => {
                drop(listener);
                connections.end().await;
                if let Some(done) = done {
                    // Whoever asked may not wait any more.
                    done.send(()).ok();
                }
                return Ok(());
            }
            accepted = listener.accept() => match accepted {
                Ok((stream, peer)) => connections.accept(&http, stream, peer),
                Err(error) => {
                    log::debug!("a connection to the HTTP server could not be accepted: {error}");
                    connections.end_idle(|_| true);
                    sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

/// All connections.
struct Connections {
    places: ConnectionLimits,
    all: RefCell<HashMap<u64, Connection>>,
    next: Cell<u64>,
}

struct Connection {
    address: IpAddr,
    /// A request is under way.
    busy: Option<UnderWay>,
    idle_since: Instant,
    key: Option<(KeyId, OrgId)>,
    task: Option<tokio::task::AbortHandle>,
}

/// What is known of a request that is under way.
#[derive(Clone, Copy)]
struct UnderWay {
    is_api: bool,
    /// Whose it is, also where the connection is a proxy's.
    client: IpAddr,
}

impl Connections {
    fn accept<H>(self: &Rc<Self>, http: &Rc<H>, stream: TcpStream, peer: SocketAddr)
    where
        H: Service<(Stream, Option<SocketAddr>), Response = ()> + 'static,
    {
        let address = network_of(peer.ip());
        let is_proxy = self.places.proxies.iter().any(|network| network.contains(&peer.ip().to_canonical()));
        if !self.has_place_for(address, is_proxy) {
            // Dropping closes it. Nobody is told: there may be many of them.
            return;
        }
        stream.set_nodelay(true).ok();
        let id = self.next.get();
        self.next.set(id + 1);
        let entry = Connection { address, busy: None, idle_since: clock::now(), key: None, task: None };
        self.all.borrow_mut().insert(id, entry);
        let place = Rc::new(ConnectionSlot {
            id,
            connections: Rc::clone(self),
            reads: Cell::new(true),
            paused: RefCell::new(None),
            begun: Cell::new(0),
        });
        let slot = Rc::clone(&place);
        let stream =
            Stream { stream, place: slot, pace: None, written: 0, head: None, begun: 0, has_read: false };
        let http = Rc::clone(http);
        let task = tokio::task::spawn_local(async move {
            // It leaves the list however this ends.
            let _guard = SlotGuard(place);
            // What goes wrong on a connection is its client's business.
            http.call((stream, Some(peer))).await.ok();
        });
        if let Some(entry) = self.all.borrow_mut().get_mut(&id) {
            entry.task = Some(task.abort_handle());
        }
    }

    /// Makes room for a connection from `address`, if need be and if that is possible.
    fn has_place_for(&self, address: IpAddr, is_proxy: bool) -> bool {
        let all = self.all.borrow();
        let of_address = all.values().filter(|one| one.address == address).count();
        let crowded = !is_proxy && of_address >= self.places.per_address;
        let full = all.len() >= self.places.total;
        drop(all);
        !(crowded || full) || self.end_idle(|one| !crowded || one.address == address)
    }

    /// Ends the connection that has been idle for the longest, of those that `may` be ended.
    fn end_idle(&self, may: impl Fn(&Connection) -> bool) -> bool {
        let mut all = self.all.borrow_mut();
        let idle = all.iter().filter(|(_, one)| one.busy.is_none() && may(one));
        let Some(id) = idle.min_by_key(|(_, one)| one.idle_since).map(|(id, _)| *id) else { return false };
        if let Some(task) = all.remove(&id).and_then(|one| one.task) {
            task.abort();
        }
        true
    }

    async fn end(&self) {
        let deadline = clock::now() + STOP_TIMEOUT;
        while clock::now() < deadline && self.all.borrow().values().any(|one| one.busy.is_some()) {
            sleep(Duration::from_millis(20)).await;
        }
        for (_, one) in self.all.borrow_mut().drain() {
            if let Some(task) = one.task {
                task.abort();
            }
        }
    }
}

/// Who has one address of IPv6 has a network of 64 bits.
pub(super) fn network_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        v4 => v4,
    }
}

/// The place of one connection among all.
pub(super) struct ConnectionSlot {
    id: u64,
    connections: Rc<Connections>,
    /// What the client sends is read: not while a request is under way, but for its body. Otherwise requests
    /// that follow it would be held in memory, sixteen of them, each with its head.
    reads: Cell<bool>,
    /// Whoever wants to read meanwhile.
    paused: RefCell<Option<Waker>>,
    /// Requests that have begun.
    begun: Cell<u64>,
}

struct SlotGuard(Rc<ConnectionSlot>);

impl Drop for SlotGuard {
    fn drop(&mut self) {
        self.0.connections.all.borrow_mut().remove(&self.0.id);
    }
}

/// A request is under way as long as this lives.
pub(super) struct BusyGuard(Rc<ConnectionSlot>);

/// The body of a request is read as long as this lives.
pub(super) struct BodyReadGuard(Rc<ConnectionSlot>);

impl ConnectionSlot {
    /// A request begins; `None`: there are too many of them, from this address or in all.
    pub(super) fn begin(self: &Rc<Self>, is_api: bool, client: IpAddr) -> Option<BusyGuard> {
        let client = network_of(client);
        let mut all = self.connections.all.borrow_mut();
        let places = &self.connections.places;
        let (mut of_client, mut of_api) = (0, 0);
        for busy in all.values().filter_map(|one| one.busy.as_ref()) {
            of_client += usize::from(busy.client == client);
            of_api += usize::from(busy.is_api);
        }
        // Some are left for what is not the API.
        if of_client >= places.per_client || is_api && of_api >= places.total / 4 * 3 {
            return None;
        }
        if let Some(entry) = all.get_mut(&self.id) {
            entry.busy = Some(UnderWay { is_api, client });
        }
        self.begun.set(self.begun.get() + 1);
        self.reads.set(false);
        Some(BusyGuard(Rc::clone(self)))
    }

    /// The body of the request is wanted.
    pub(super) fn read_body(self: &Rc<Self>) -> BodyReadGuard {
        self.read();
        BodyReadGuard(Rc::clone(self))
    }

    fn is_busy(&self) -> bool {
        self.connections.all.borrow().get(&self.id).is_some_and(|one| one.busy.is_some())
    }

    fn read(&self) {
        self.reads.set(true);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = self.paused.take() {
            waker.wake();
        }
    }

    /// The connection is used with `key` of `org`; `false`: too many others are used with it, or with all
    /// keys of that organization.
    pub(super) fn is_for(&self, key: KeyId, org: OrgId) -> bool {
        let mut all = self.connections.all.borrow_mut();
        let per_key = self.connections.places.per_client;
        let used = all.iter().filter(|(id, _)| **id != self.id).filter_map(|(_, one)| one.key);
        let (of_org, of_key) = used.fold((0, 0), |(of_org, of_key), (other, its_org)| {
            (of_org + usize::from(its_org == org), of_key + usize::from(other == key))
        });
        let fits = of_key < per_key && of_org < KEYS_PER_ORG * per_key;
        if let Some(entry) = all.get_mut(&self.id).filter(|_| fits) {
            entry.key = Some((key, org));
        }
        fits
    }
}

impl Drop for BusyGuard {
    fn drop(&mut self) {
        if let Some(entry) = self.0.connections.all.borrow_mut().get_mut(&self.0.id) {
            entry.busy = None;
            entry.idle_since = clock::now();
        }
        self.0.read();
    }
}

impl Drop for BodyReadGuard {
    fn drop(&mut self) {
        self.0.reads.set(false);
    }
}

/// A connection that ends when nothing is taken from it, or when a head that has begun does not end.
struct Stream {
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
    /// Something was read since the connection was last asked to wait.
    has_read: bool,
}

impl Stream {
    /// A write waits: for how long?
    fn poll_pace(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let written = self.written;
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
        let (is_busy, begun) = (self.place.is_busy(), self.place.begun.get());
        if begun != self.begun {
            (self.begun, self.head) = (begun, None);
        }
        // Not while an answer waits to be taken: those to the next requests would be held in memory, too.
        if !self.place.reads.get() || self.pace.is_some() {
            *self.place.paused.borrow_mut() = Some(context.waker().clone());
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
        let mut piece = [0; READ_BYTES];
        let most = buffer.remaining().min(READ_BYTES);
        let mut piece = ReadBuf::new(&mut piece[..most]);
        ready!(Pin::new(&mut self.stream).poll_read(context, &mut piece))?;
        buffer.put_slice(piece.filled());
        self.has_read = !piece.filled().is_empty();
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
