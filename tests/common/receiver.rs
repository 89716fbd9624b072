//! A receiver of webhooks: a minimal HTTP/1.1 server on real sockets, on a thread of its own, that remembers
//! every request and answers as the test says.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use standardwebhooks::Webhook;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use uuid::Uuid;

/// What the receiver does with a request.
#[derive(Clone, Debug)]
pub enum Reply {
    /// Answers with this status and an empty body.
    Status(u16),
    /// Answers with this status, these headers, this body.
    Full(u16, Vec<(&'static str, String)>, Vec<u8>),
    /// Answers 200 after this long.
    Slow(Duration),
    /// Answers with this status after this long.
    Late(u16, Duration),
    /// Answers with this status once the channel says `true`.
    Held(u16, watch::Receiver<bool>),
    /// The same with a body.
    HeldFull(u16, Vec<u8>, watch::Receiver<bool>),
    /// Reads the request and never answers.
    Hang,
    /// Closes the connection with a reset instead of answering.
    Reset,
    /// Sends a head with this status at once and then one byte of the body after every pause, without end.
    Drip(u16, Duration),
    /// Sends these bytes, whatever they are, and closes.
    Raw(Vec<u8>),
    /// Answers 200 and closes the connection without having said that it would.
    OkThenClose,
}

impl Reply {
    /// `status` with a body.
    pub fn body(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        Reply::Full(status, Vec::new(), body.into())
    }

    /// `status` with one header.
    pub fn header(status: u16, name: &'static str, value: impl Into<String>) -> Reply {
        Reply::Full(status, vec![(name, value.into())], Vec::new())
    }

    fn status(&self) -> Option<u16> {
        match self {
            Reply::Status(status) | Reply::Full(status, ..) => Some(*status),
            Reply::Late(status, _) | Reply::Held(status, _) | Reply::HeldFull(status, ..) => Some(*status),
            Reply::Drip(status, _) => Some(*status),
            Reply::Slow(_) | Reply::OkThenClose => Some(200),
            Reply::Raw(bytes) => {
                std::str::from_utf8(bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3)?).ok()?.parse().ok()
            }
            Reply::Hang | Reply::Reset => None,
        }
    }
}

/// A request as it came.
#[derive(Clone, Debug)]
pub struct Received {
    pub method: String,
    /// Path and query.
    pub path: String,
    /// With names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// When it had come completely.
    pub at: Instant,
    /// The same by the wall clock.
    pub wall: SystemTime,
    /// Which connection it came on, counted from 0.
    pub connection: usize,
    /// The status that it was answered with; `None` where none was sent.
    pub status: Option<u16>,
}

impl Received {
    /// The value of a header; the name in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(header, _)| header == name).map(|(_, value)| value.as_str())
    }

    /// Whether the signature is one that `verifier` accepts.
    pub fn is_signed(&self, verifier: &Webhook) -> bool {
        let headers = self
            .headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        verifier.verify(&self.body, &headers).is_ok()
    }

    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("no JSON: {error}: {self:?}"))
    }

    /// The ids of the events in the body, in order (formats `standard` and `flat`, single or batch).
    pub fn event_ids(&self) -> Vec<Uuid> {
        let json: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        let elements = json.as_array().cloned().unwrap_or_else(|| vec![json]);
        let id = |element: &Value| element.pointer("/data/id").or(element.get("id"))?.as_str()?.parse().ok();
        elements.iter().filter_map(id).collect()
    }
}

type Script = dyn Fn(&Received) -> Reply + Send + Sync;

/// A receiver. Dropping it closes its port and all its connections.
pub struct Receiver {
    shared: Arc<Shared>,
    address: SocketAddr,
    /// `true`: the port is open.
    open: watch::Sender<Port>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Clone, Copy, PartialEq, Debug)]
enum Port {
    Open,
    Closed,
    Gone,
}

struct Shared {
    script: Mutex<Arc<Script>>,
    received: Mutex<Vec<Received>>,
    /// Requests that came completely and are not answered yet.
    in_flight: AtomicUsize,
    most_in_flight: AtomicUsize,
    connections: AtomicUsize,
    forgets_bodies: AtomicBool,
    /// What the port really is, as opposed to what was asked for.
    port: watch::Sender<Port>,
}

impl Receiver {
    /// A receiver that answers everything with 200.
    pub fn start() -> Receiver {
        Receiver::with(Reply::Status(200))
    }

    /// A receiver that answers everything with `reply`.
    pub fn with(reply: Reply) -> Receiver {
        Receiver::scripted(move |_| reply.clone())
    }

    /// A receiver that answers everything with 200 and does not remember bodies: for more than fits.
    pub fn sink() -> Receiver {
        let receiver = Receiver::start();
        receiver.shared.forgets_bodies.store(true, Ordering::SeqCst);
        receiver
    }

    /// A receiver that asks `script` about each request.
    pub fn scripted(script: impl Fn(&Received) -> Reply + Send + Sync + 'static) -> Receiver {
        let shared = Arc::new(Shared {
            script: Mutex::new(Arc::new(script)),
            received: Mutex::new(Vec::new()),
            in_flight: AtomicUsize::new(0),
            most_in_flight: AtomicUsize::new(0),
            connections: AtomicUsize::new(0),
            forgets_bodies: AtomicBool::new(false),
            port: watch::Sender::new(Port::Closed),
        });
        let (open, wanted) = watch::channel(Port::Open);
        let (told, address) = std::sync::mpsc::channel();
        let of_thread = shared.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(of_thread, wanted, told));
        });
        let address = address.recv().unwrap();
        Receiver { shared, address, open, thread: Some(thread) }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL of this receiver; `path` starts with a slash.
    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// From now on answers everything with `reply`.
    pub fn reply(&self, reply: Reply) {
        self.script(move |_| reply.clone());
    }

    /// From now on asks `script`. Requests that hang already go on hanging.
    pub fn script(&self, script: impl Fn(&Received) -> Reply + Send + Sync + 'static) {
        *lock(&self.shared.script) = Arc::new(script);
    }

    /// Closes the port and all connections: connections are refused until [`Receiver::restore`].
    pub async fn outage(&self) {
        self.port(Port::Closed).await;
    }

    /// Opens the same port again.
    pub async fn restore(&self) {
        self.port(Port::Open).await;
    }

    async fn port(&self, port: Port) {
        self.open.send_replace(port);
        self.shared.port.subscribe().wait_for(|now| *now == port).await.unwrap();
    }

    /// Everything that came so far.
    pub fn received(&self) -> Vec<Received> {
        lock(&self.shared.received).clone()
    }

    /// How many requests came so far.
    pub fn count(&self) -> usize {
        lock(&self.shared.received).len()
    }

    /// How often each event was answered with 2xx.
    pub fn accepted(&self) -> HashMap<Uuid, usize> {
        let mut times = HashMap::new();
        for request in lock(&self.shared.received).iter().filter(|r| r.status.is_some_and(|s| s / 100 == 2)) {
            request.event_ids().into_iter().for_each(|id| *times.entry(id).or_insert(0) += 1);
        }
        times
    }

    /// Forgets what came so far.
    pub fn forget(&self) {
        lock(&self.shared.received).clear();
    }

    /// Requests that wait for their answer now.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.load(Ordering::SeqCst)
    }

    /// The most requests that ever waited at once.
    pub fn most_in_flight(&self) -> usize {
        self.shared.most_in_flight.load(Ordering::SeqCst)
    }

    /// How many connections were made.
    pub fn connections(&self) -> usize {
        self.shared.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.open.send_replace(Port::Gone);
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// Opens and closes the port as it is told, until it is told to go.
async fn serve(
    shared: Arc<Shared>,
    mut wanted: watch::Receiver<Port>,
    told: std::sync::mpsc::Sender<SocketAddr>,
) {
    let mut address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
    loop {
        let listener = listen(address).await;
        address = listener.local_addr().unwrap();
        shared.port.send_replace(Port::Open);
        told.send(address).ok();
        let mut connections = tokio::task::JoinSet::new();
        while *wanted.borrow_and_update() == Port::Open {
            tokio::select! {
                accepted = listener.accept() => {
                    if let Ok((stream, _)) = accepted {
                        connections.spawn(converse(stream, shared.clone()));
                    }
                }
                _ = wanted.changed() => {}
                Some(_) = connections.join_next() => {}
            }
        }
        drop(listener);
        connections.shutdown().await;
        shared.port.send_replace(Port::Closed);
        if wanted.wait_for(|port| *port != Port::Closed).await.is_ok_and(|port| *port == Port::Gone) {
            return;
        }
    }
}

/// Listens at `address`; after an outage the port may need a moment.
async fn listen(address: SocketAddr) -> TcpListener {
    let deadline = Instant::now() + super::DEADLINE;
    loop {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        match socket.bind(address).and_then(|()| socket.listen(1024)) {
            Ok(listener) => return listener,
            Err(error) => assert!(Instant::now() < deadline, "{address}: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Counts a request for as long as it is not answered, also when its connection is torn down.
struct InFlight(Arc<Shared>);

impl InFlight {
    fn enter(shared: &Arc<Shared>) -> InFlight {
        let now = shared.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        shared.most_in_flight.fetch_max(now, Ordering::SeqCst);
        InFlight(shared.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

/// One connection: requests and replies, one after the other.
async fn converse(mut stream: TcpStream, shared: Arc<Shared>) {
    let connection = shared.connections.fetch_add(1, Ordering::SeqCst);
    stream.set_nodelay(true).ok();
    let mut buffer = Vec::new();
    while let Ok(Some(mut request)) = read_request(&mut stream, &mut buffer, connection).await {
        let in_flight = InFlight::enter(&shared);
        let script = lock(&shared.script).clone();
        let reply = script(&request);
        request.status = reply.status();
        if shared.forgets_bodies.load(Ordering::SeqCst) {
            request.body = Vec::new();
        }
        lock(&shared.received).push(request);
        let kept_alive = answer(&mut stream, reply).await;
        drop(in_flight);
        if !matches!(kept_alive, Ok(true)) {
            return;
        }
    }
}

/// Reads one request; `None` at the end of the connection. What follows the request stays in `buffer`.
pub async fn read_request(
    stream: &mut (impl AsyncRead + Unpin),
    buffer: &mut Vec<u8>,
    connection: usize,
) -> io::Result<Option<Received>> {
    let head_end = loop {
        if let Some(at) = buffer.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    };
    let head = String::from_utf8_lossy(&buffer[..head_end]).into_owned();
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let (method, path) = (first.next().unwrap_or_default(), first.next().unwrap_or_default());
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let length = headers.iter().find(|(name, _)| name == "content-length");
    let length: usize = length.map_or(0, |(_, value)| value.parse().unwrap());
    let end = head_end + 4 + length;
    while buffer.len() < end {
        if stream.read_buf(buffer).await? == 0 {
            return Ok(None);
        }
    }
    let rest = buffer.split_off(end);
    let body = std::mem::replace(buffer, rest).split_off(head_end + 4);
    let (at, wall) = (Instant::now(), SystemTime::now());
    Ok(Some(Received { method, path, headers, body, at, wall, connection, status: None }))
}

/// Does what `reply` says; `true`: the connection goes on.
async fn answer(stream: &mut TcpStream, reply: Reply) -> io::Result<bool> {
    match reply {
        Reply::Status(status) => write(stream, status, &[], b"").await?,
        Reply::Full(status, headers, body) => write(stream, status, &headers, &body).await?,
        Reply::Slow(pause) => {
            tokio::time::sleep(pause).await;
            write(stream, 200, &[], b"").await?;
        }
        Reply::Late(status, pause) => {
            tokio::time::sleep(pause).await;
            write(stream, status, &[], b"").await?;
        }
        Reply::Held(status, mut released) => {
            released.wait_for(|released| *released).await.ok();
            write(stream, status, &[], b"").await?;
        }
        Reply::HeldFull(status, body, mut released) => {
            released.wait_for(|released| *released).await.ok();
            write(stream, status, &[], &body).await?;
        }
        Reply::Hang => return wait_for_the_end(stream).await,
        Reply::Reset => {
            stream.set_zero_linger()?;
            return Ok(false);
        }
        Reply::Drip(status, pause) => {
            let head = format!("HTTP/1.1 {status} Because\r\ncontent-length: 1000000\r\n\r\n");
            stream.write_all(head.as_bytes()).await?;
            loop {
                tokio::time::sleep(pause).await;
                stream.write_all(b".").await?;
            }
        }
        Reply::Raw(bytes) => {
            stream.write_all(&bytes).await?;
            return Ok(false);
        }
        Reply::OkThenClose => {
            write(stream, 200, &[], b"").await?;
            return Ok(false);
        }
    }
    Ok(true)
}

/// Until the other side closes: a hanging receiver notices when it is given up.
async fn wait_for_the_end(stream: &mut TcpStream) -> io::Result<bool> {
    let mut bytes = [0; 1024];
    while stream.read(&mut bytes).await? > 0 {}
    Ok(false)
}

async fn write(
    stream: &mut TcpStream,
    status: u16,
    headers: &[(&'static str, String)],
    body: &[u8],
) -> io::Result<()> {
    let mut response = format!("HTTP/1.1 {status} Because\r\n");
    headers.iter().for_each(|(name, value)| response.push_str(&format!("{name}: {value}\r\n")));
    // RFC 9110: neither of these has a body, nor may it say that it had one.
    if status != 204 && status != 304 {
        response.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    response.push_str("\r\n");
    let mut bytes = response.into_bytes();
    bytes.extend_from_slice(body);
    stream.write_all(&bytes).await
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}
