//! A TCP proxy in front of PostgreSQL that does to connections what bad networks do.
//!
//! ```text
//! let proxy = Proxy::before(&db.url);                    // passes everything on
//! let posthaste = Posthaste::serve(&proxy.url()).await;  // the program goes through it, the test does not
//! proxy.set(Fault::Stall);                               // at once, for old and new connections
//! proxy.set(Fault::None);
//! proxy.hang_up(End::Reset);                             // only those that are there now
//! ```

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use posthaste::model::Secret;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use url::Url;
use url::form_urlencoded::Serializer;

/// Bytes that are read at once in one direction.
const CHUNK: usize = 16 << 10;

/// What happens to the connections through a [`Proxy`], old and new ones, from [`Proxy::set`] to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Everything is passed on.
    None,
    /// Connections are closed in order, new ones as soon as they are made.
    Cut,
    /// The same, by reset.
    Reset,
    /// Bytes wait, in both directions; they go on when this ends. Nothing is lost.
    Stall,
    /// Bytes vanish, and neither side hears that the other has gone. A connection that was there while this
    /// was set is dead for ever, though nobody is told; new ones are made and dead from the start.
    HalfOpen,
    /// Every piece waits this long before it is passed on.
    Slow(Duration),
    /// Each connection passes on so many more bytes, in both directions together, and is closed: in the
    /// middle of a message as likely as not.
    CloseAfter(usize),
}

/// How a connection ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// With a FIN.
    Close,
    /// With a RST.
    Reset,
}

/// A proxy on a port of its own. Dropping it closes the port and all connections.
pub struct Proxy {
    /// Where it goes, with whatever else the URL says.
    target: Url,
    address: SocketAddr,
    state: watch::Sender<State>,
    connections: Arc<AtomicUsize>,
    thread: Option<std::thread::JoinHandle<()>>,
}

#[derive(Clone, Copy, Debug)]
struct State {
    fault: Fault,
    /// Counts the calls of `set`: limits begin anew with each.
    version: u64,
    /// Counts the calls of `hang_up`: a connection ends when this changes.
    hang_ups: u64,
    how: End,
    gone: bool,
}

impl Proxy {
    /// A proxy before the server of `url`, on a Unix socket or on TCP.
    pub fn before(url: &Secret) -> Proxy {
        let url = Url::parse(url.reveal()).unwrap();
        let target = Target::of(&url);
        let first = State { fault: Fault::None, version: 0, hang_ups: 0, how: End::Close, gone: false };
        let (state, watched) = watch::channel(first);
        let (told, address) = std::sync::mpsc::channel();
        let connections = Arc::new(AtomicUsize::new(0));
        let counted = connections.clone();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(serve(target, watched, counted, told));
        });
        let address = address.recv().unwrap();
        Proxy { target: url, address, state, connections, thread: Some(thread) }
    }

    /// The URL of the same database, through this proxy.
    pub fn url(&self) -> Secret {
        let mut url = self.target.clone();
        let mut query = Serializer::new(String::new());
        query.extend_pairs(url.query_pairs().filter(|(key, _)| key != "host" && key != "port"));
        query.append_pair("host", &self.address.ip().to_string());
        query.append_pair("port", &self.address.port().to_string());
        let query = query.finish();
        url.set_query(Some(&query));
        Secret::new(url.as_str())
    }

    /// From now on this happens to all connections. What is replaced at once may never have happened to
    /// anybody.
    pub fn set(&self, fault: Fault) {
        self.state.send_modify(|state| {
            state.fault = fault;
            state.version += 1;
        });
    }

    /// Ends the connections that are there now, also the dead ones; new ones are not touched.
    pub fn hang_up(&self, how: End) {
        self.state.send_modify(|state| {
            state.hang_ups += 1;
            state.how = how;
        });
    }

    /// How many connections there are, the dead ones included.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.state.send_modify(|state| state.gone = true);
        self.thread.take().map(std::thread::JoinHandle::join);
    }
}

/// What the proxy stands before.
#[derive(Clone, Debug)]
enum Target {
    Tcp(String, u16),
    Unix(PathBuf),
}

impl Target {
    fn of(url: &Url) -> Target {
        let pair = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value);
        let host = pair("host").map(String::from).or_else(|| url.host_str().map(str::to_owned)).unwrap();
        let port = pair("port").map(|port| port.parse().unwrap()).or(url.port()).unwrap_or(5432);
        match host.starts_with('/') {
            true => Target::Unix(PathBuf::from(format!("{host}/.s.PGSQL.{port}"))),
            false => Target::Tcp(host, port),
        }
    }
}

/// Accepts connections until the proxy goes.
async fn serve(
    target: Target,
    mut state: watch::Receiver<State>,
    connections: Arc<AtomicUsize>,
    told: std::sync::mpsc::Sender<SocketAddr>,
) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    told.send(listener.local_addr().unwrap()).unwrap();
    let mut running = tokio::task::JoinSet::new();
    let states = state.clone();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                if let Ok((client, _)) = accepted {
                    client.set_nodelay(true).ok();
                    connections.fetch_add(1, Ordering::SeqCst);
                    let (target, state, connections) = (target.clone(), states.clone(), connections.clone());
                    running.spawn(async move {
                        connect(client, target, state).await;
                        connections.fetch_sub(1, Ordering::SeqCst);
                    });
                }
            }
            Some(_) = running.join_next() => {}
            _ = state.wait_for(|state| state.gone) => return,
        }
    }
}

/// Serves one connection to its end.
async fn connect(mut client: TcpStream, target: Target, state: watch::Receiver<State>) {
    let end = match target {
        Target::Unix(path) => match UnixStream::connect(path).await {
            Ok(mut server) => {
                let (read, write) = server.split();
                link(&mut client, read, write, state).await
            }
            Err(_) => End::Close,
        },
        Target::Tcp(host, port) => match TcpStream::connect((host, port)).await {
            Ok(mut server) => {
                server.set_nodelay(true).ok();
                let (read, write) = server.split();
                link(&mut client, read, write, state).await
            }
            Err(_) => End::Close,
        },
    };
    if end == End::Reset {
        client.set_zero_linger().ok();
    }
}

/// What both directions of a connection share.
struct Link {
    /// `hang_ups` when it was made.
    born: u64,
    /// Bytes have vanished, or would have.
    dead: AtomicBool,
    /// Bytes passed on under a limit, and the version of the limit.
    passed: Mutex<(u64, usize)>,
}

async fn link(
    client: &mut TcpStream,
    from_server: impl AsyncRead + Unpin,
    to_server: impl AsyncWrite + Unpin,
    state: watch::Receiver<State>,
) -> End {
    let born = state.borrow().hang_ups;
    let link = Link { born, dead: AtomicBool::new(false), passed: Mutex::default() };
    let (from_client, to_client) = client.split();
    tokio::select! {
        end = link.pump(from_client, to_server, state.clone()) => end,
        end = link.pump(from_server, to_client, state.clone()) => end,
        end = link.fate(state) => end,
    }
}

impl Link {
    /// Waits for an end that is ordered from outside, and notices what the others need to know.
    async fn fate(&self, mut state: watch::Receiver<State>) -> End {
        loop {
            let now = *state.borrow_and_update();
            if now.hang_ups != self.born {
                return now.how;
            }
            match now.fault {
                Fault::Cut => return End::Close,
                Fault::Reset => return End::Reset,
                Fault::HalfOpen => self.dead.store(true, Ordering::SeqCst),
                _ => {}
            }
            if state.changed().await.is_err() {
                return End::Close;
            }
        }
    }

    /// Passes on one direction as the fault of the moment says.
    async fn pump(
        &self,
        mut from: impl AsyncRead + Unpin,
        mut to: impl AsyncWrite + Unpin,
        mut state: watch::Receiver<State>,
    ) -> End {
        let mut buffer = vec![0; CHUNK];
        loop {
            let read = from.read(&mut buffer).await.unwrap_or(0);
            // Whether they may go is decided when they could: a stall holds back what is on its way.
            let Ok(now) = state.wait_for(|state| state.fault != Fault::Stall).await.map(|state| *state)
            else {
                return End::Close;
            };
            if self.dead.load(Ordering::SeqCst) || now.fault == Fault::HalfOpen {
                self.dead.store(true, Ordering::SeqCst);
                // Nobody is told of an end, either.
                if read == 0 {
                    return std::future::pending().await;
                }
                continue;
            }
            if read == 0 {
                return End::Close;
            }
            let mut bytes = &buffer[..read];
            let mut last = false;
            match now.fault {
                Fault::Slow(pause) => tokio::time::sleep(pause).await,
                Fault::CloseAfter(most) => {
                    let left = self.allow(read, most, now.version);
                    last = left <= read;
                    bytes = &bytes[..left.min(read)];
                }
                _ => {}
            }
            if write(&mut to, bytes).await.is_err() || last {
                return End::Close;
            }
        }
    }

    /// How many bytes the limit `most` had left before `read` more came.
    fn allow(&self, read: usize, most: usize, version: u64) -> usize {
        let mut passed = self.passed.lock().unwrap();
        if passed.0 != version {
            *passed = (version, 0);
        }
        let left = most.saturating_sub(passed.1);
        passed.1 += read;
        left
    }
}

async fn write(to: &mut (impl AsyncWrite + Unpin), bytes: &[u8]) -> io::Result<()> {
    to.write_all(bytes).await?;
    to.flush().await
}
