//! The server's connections: how many there are and whose, what makes room for a new one, and how long one
//! may take nothing of its answer.
//!
//! A connection is busy from the head of a request until its answer has been handed on, and idle otherwise.
//! Where all places are taken, an idle one makes room, or one whose client does not take its answer, of those
//! from where most come; requests to the API keep no more than three quarters of the places busy. So there is
//! always one for `/healthz`.

mod connections;
mod stream;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::time::Duration;

use actix_http::{HttpService, Request};
use actix_rt::Arbiter;
use actix_rt::net::TcpStream;
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt as _, map_config};
use actix_web::body::MessageBody;
use actix_web::dev::{AppConfig, ServiceResponse};
use actix_web::{Error, HttpResponse};
use ipnet::IpNet;
use tokio::time::sleep;

use self::connections::Connections;
pub(super) use self::connections::{BusyGuard, ConnectionSlot, Kind, network_of};
use self::stream::Stream;
pub(super) use self::stream::{PROGRESS_BYTES, PROGRESS_TIME};
use crate::actors::supervision::{Fatal, Part, Stop, StopHandle, Supervision};

/// How long the head of a request may take.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection rests between two requests.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a client may take to close a connection that we have closed.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
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
pub struct ServerHandle(StopHandle);

impl ServerHandle {
    /// Accepts no more connections, and lets requests that are under way end, within a limit.
    pub async fn stop(self) {
        self.0.stop().await;
    }
}

/// Opens the port and serves what `app` makes, on a thread of its own; returns where. If it cannot go on, the
/// process ends.
///
/// # Errors
/// When the address cannot be listened on.
pub fn start<F, I, S, B>(
    listen: SocketAddr,
    places: ConnectionLimits,
    supervision: Supervision,
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
    let (handle, stop) = StopHandle::new();
    let arbiter = Arbiter::new();
    let name = format!("the HTTP server on {address}");
    supervision.watch_arbiter(name.clone(), arbiter.handle());
    let exit_guard = supervision.exit_guard(name.clone());
    let serve = move || {
        actix_rt::spawn(async move {
            match serve(listener, places, &supervision, app().into_factory(), refuse, stop).await {
                Ok(()) => exit_guard.release(),
                Err(error) => supervision.end(Fatal::Failed(format!("{name}: {error}"))),
            }
            Arbiter::current().stop();
        });
    };
    if !arbiter.spawn_fn(serve) {
        return Err(io::Error::other("the thread of the HTTP server has ended"));
    }
    Ok((address, ServerHandle(handle)))
}

/// Serves a new connection, if there is a place for it.
fn serve_connection<H>(connections: &Rc<Connections>, http: &Rc<H>, stream: TcpStream, peer: SocketAddr)
where
    H: Service<(Stream, Option<SocketAddr>), Response = ()> + 'static,
{
    // Dropping closes it. Nobody is told: there may be many of them.
    let Some(place) = connections.admit(peer) else { return };
    stream.set_nodelay(true).ok();
    let stream = Stream::new(stream, place.slot());
    let http = Rc::clone(http);
    place.serve(async move {
        // What goes wrong on a connection is its client's business.
        http.call((stream, Some(peer))).await.ok();
    });
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
    supervision: &Supervision,
    app: S,
    refuse: fn(Error) -> HttpResponse,
    stop: Stop,
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
        .on_connect_ext(|stream: &Stream, data| drop(data.insert(stream.place())))
        .h1(app);
    let http = http.new_service(()).await.map_err(|()| io::Error::other("it cannot be set up"))?;
    let http = Rc::new(http);
    let connections = Rc::new(Connections::new(places));
    let accept = async |mut stop: Stop| {
        loop {
            tokio::select! {
                () = stop.asked() => return,
                accepted = listener.accept() => match accepted {
                    Ok((stream, peer)) => serve_connection(&connections, &http, stream, peer),
                    Err(error) => {
                        log::debug!("a connection to the HTTP server could not be accepted: {error}");
                        connections.make_room(|_| true);
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
            }
        }
    };
    // What the connections do goes on meanwhile.
    supervision.keep_running(Part::HttpServer, stop.clone(), accept).await;
    drop(listener);
    connections.end().await;
    // Whoever asked for it waits until here.
    drop(stop);
    Ok(())
}
