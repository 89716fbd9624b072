//! Connections to one destination: looked up, vetted, pinned, then connected and encrypted.
//!
//! What is checked is what is connected to: the addresses that a lookup returns are judged by the egress
//! rules and used as they are; nothing is looked up twice. Literal addresses take the same way. Of a name
//! with several addresses the allowed ones are used, and the attempt is refused only when there is none. The
//! port is judged as well: whatever is connected to has passed here.
//!
//! Failures name the host and the port of the URL. The address that a name led to is for the log only, at
//! level debug: tenants read failures.

use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use actix_http::Uri;
use actix_rt::net::TcpStream;
use actix_service::Service;
use actix_tls::connect::rustls_0_23::TlsConnector;
use actix_tls::connect::{ConnectError, ConnectInfo, Connection, Host};
use futures_util::future::LocalBoxFuture;

use super::endpoint::{Destined, Endpoint};
use super::explain::{self, Unconnected};
use super::lookup::Lookup;
use super::network::Network;
use super::phase::{self, Phase};
use super::tracked_stream::{Stream, TrackedStream};
use crate::model::OrgId;
use crate::policy::egress::Rules;

/// Most addresses of a name that one attempt tries.
const MAX_ADDRESSES: usize = 4;

/// Opens connections to one endpoint, whatever URL awc mentions. Cheap to clone.
#[derive(Clone)]
pub(super) struct Dialer(Rc<Inner>);

struct Inner {
    endpoint: Endpoint,
    /// Host and port, as failures name them.
    peer: Arc<str>,
    rules: Arc<Rules>,
    lookup: Lookup,
    timeout: Duration,
}

impl Dialer {
    /// To an endpoint of a destination of `org`.
    pub(super) fn new(endpoint: Endpoint, network: &Network, org: OrgId, timeout: Duration) -> Dialer {
        let lookup = Lookup::by_system(network.lookups.clone(), org);
        Dialer::with(endpoint, network.rules.clone(), lookup, timeout)
    }

    pub(super) fn with(endpoint: Endpoint, rules: Arc<Rules>, lookup: Lookup, timeout: Duration) -> Dialer {
        let peer = endpoint.peer().into();
        Dialer(Rc::new(Inner { endpoint, peer, rules, lookup, timeout }))
    }

    async fn connect(&self) -> Result<TrackedStream, Unconnected> {
        let addresses = self.vetted().await?;
        let tcp = self.connect_any(&addresses).await?;
        let peer = &self.0.peer;
        // Requests are written in one piece; waiting for more to send would only delay them.
        if let Err(error) = tcp.set_nodelay(true) {
            log::debug!("TCP_NODELAY cannot be set on a connection to {peer}: {error}");
        }
        let Some(tls) = &self.0.endpoint.tls else {
            return Ok(TrackedStream::new(Stream::Plain(tcp), peer.clone()));
        };
        let name = ServerName(match &self.0.endpoint.host {
            Destined::Literal(addr) => addr.to_string(),
            Destined::Name(name) => name.strip_suffix('.').unwrap_or(name).to_owned(),
        });
        phase::enter(Phase::Handshake);
        let service = TlsConnector::service(tls.clone());
        match service.call(Connection::new(name, tcp)).await {
            Ok(connection) => {
                Ok(TrackedStream::new(Stream::Tls(Box::new(connection.into_parts().0)), peer.clone()))
            }
            Err(error) => Err(explain::tls(&error, peer)),
        }
    }

    /// The addresses that may be connected to. Refuses only when no address is left.
    async fn vetted(&self) -> Result<Vec<SocketAddr>, Unconnected> {
        let Inner { endpoint, rules, lookup, .. } = &*self.0;
        rules.check_port(endpoint.port)?;
        let name = match &endpoint.host {
            Destined::Literal(addr) => {
                rules.check_addr(*addr)?;
                return Ok(vec![SocketAddr::new(*addr, endpoint.port)]);
            }
            Destined::Name(name) => name,
        };
        phase::enter(Phase::NameLookup);
        let mut refusal = None;
        let mut vetted = Vec::with_capacity(MAX_ADDRESSES);
        for addr in lookup.addresses(name).await?.iter() {
            match rules.check_resolved(name, *addr) {
                Ok(()) if vetted.len() < MAX_ADDRESSES => {
                    vetted.push(SocketAddr::new(*addr, endpoint.port));
                }
                Ok(()) => {}
                Err(refused) => {
                    log::debug!("{addr} is not connected to: {refused}");
                    refusal = refusal.or(Some(refused));
                }
            }
        }
        match refusal {
            Some(refusal) if vetted.is_empty() => Err(refusal.into()),
            _ => Ok(vetted),
        }
    }

    /// Tries `addresses` in turn. Each gets an equal share of the time, the last one all that is left.
    async fn connect_any(&self, addresses: &[SocketAddr]) -> Result<TcpStream, Unconnected> {
        phase::enter(Phase::Connecting);
        let Inner { peer, timeout, .. } = &*self.0;
        let share = *timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut failure = Unconnected::Theirs("the host has no address".into());
        for (index, &address) in addresses.iter().enumerate() {
            let connecting = TcpStream::connect(address);
            let connected = if index + 1 == addresses.len() {
                connecting.await
            } else {
                let slow = || io::Error::new(io::ErrorKind::TimedOut, "no answer");
                tokio::time::timeout(share, connecting).await.unwrap_or_else(|_| Err(slow()))
            };
            match connected {
                Ok(stream) => return Ok(stream),
                Err(error) => {
                    log::debug!("{peer} cannot be connected to at {address}: {error}");
                    failure = explain::connect(&error, peer);
                }
            }
            if matches!(failure, Unconnected::Ours(_)) {
                break;
            }
        }
        Err(failure)
    }
}

impl Service<ConnectInfo<Uri>> for Dialer {
    type Response = Connection<Uri, TrackedStream>;
    type Error = ConnectError;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&self, info: ConnectInfo<Uri>) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            match dialer.connect().await {
                Ok(stream) => Ok(Connection::new(info.request().clone(), stream)),
                // The one variant that carries any error through awc unharmed.
                Err(fault) => Err(ConnectError::Resolver(Box::new(fault))),
            }
        })
    }
}

/// The name that the receiver's certificate must be good for: unlike in a URL, IPv6 has no brackets here.
struct ServerName(String);

impl Host for ServerName {
    fn hostname(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::net::IpAddr;

    use tokio::net::TcpListener;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);
    /// What is told of an address of this machine that is not [`HERE`].
    const REFUSED: &str = "host rebound.example.com is refused: it leads to a loopback address (";

    /// Where a name leads at its first lookup, its second, and so on; no answer is kept.
    struct Name {
        answers: Vec<Vec<IpAddr>>,
        asked: Cell<usize>,
    }

    /// A dialer to `port` of a host of that name; only [`HERE`] is allowed.
    fn dialer(name: &Rc<Name>, port: u16) -> Dialer {
        let (host, uri) = ("rebound.example.com", Uri::from_static("http://rebound.example.com/"));
        let endpoint = Endpoint { host: Destined::Name(host.into()), port, tls: None, uri };
        let rules = Rules { allow: vec![HERE.into()], ..Rules::default() };
        let name = name.clone();
        let lookup = Lookup::new(Box::new(move |asked_for| {
            assert_eq!(asked_for, host);
            let found = name.answers[name.asked.replace(name.asked.get() + 1)].clone();
            Box::pin(async move { Ok(found.into()) })
        }));
        Dialer::with(endpoint, Arc::new(rules), lookup.forgetful(), Duration::from_secs(20))
    }

    async fn dial(dialer: &Dialer) -> Result<(), String> {
        dialer.connect().await.map(|_| ()).map_err(|why| why.to_string())
    }

    #[actix_rt::test]
    async fn a_name_that_leads_elsewhere_the_second_time_is_judged_by_what_is_connected_to() {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // Whatever is refused would be reached, were it connected to: all of 127.0.0.0/8 is this machine.
        let elsewhere: Vec<IpAddr> = vec![[127, 0, 0, 2].into()];
        let _trap = TcpListener::bind((elsewhere[0], port)).await.unwrap();
        let name = Rc::new(Name {
            answers: vec![vec![HERE], elsewhere.clone(), vec![HERE], elsewhere],
            asked: Cell::new(0),
        });
        let dialer = dialer(&name, port);
        for asked in [1, 3] {
            assert_eq!(dial(&dialer).await, Ok(()));
            let (_, peer) = listener.accept().await.unwrap();
            assert_eq!((peer.ip(), name.asked.get()), (HERE, asked), "one lookup for one connection");
            let refused = dial(&dialer).await.unwrap_err();
            assert!(refused.starts_with(REFUSED) && !refused.contains("127.0.0."), "{refused}");
        }
    }

    #[actix_rt::test]
    async fn of_several_addresses_the_allowed_ones_are_tried_in_turn_and_no_other() {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let refused: [IpAddr; 3] = [[127, 0, 0, 2].into(), [10, 0, 0, 1].into(), [169, 254, 169, 254].into()];
        let trap = TcpListener::bind((refused[0], port)).await.unwrap();
        let mixed = [&refused[..], &[HERE]].concat();
        let name = Rc::new(Name { answers: vec![mixed, refused.into(), vec![]], asked: Cell::new(0) });
        let dialer = dialer(&name, port);
        assert_eq!(dial(&dialer).await, Ok(()));
        assert_eq!(listener.accept().await.unwrap().1.ip(), HERE);
        let none_left = dial(&dialer).await.unwrap_err();
        assert!(none_left.starts_with(REFUSED) && !none_left.contains("127.0.0."), "{none_left}");
        assert_eq!(dial(&dialer).await, Err("the host has no address".into()));
        let untouched = tokio::time::timeout(Duration::ZERO, trap.accept()).await;
        assert!(untouched.is_err(), "nothing came to the refused address");
    }

    #[actix_rt::test]
    async fn a_resolver_that_hangs_is_what_the_attempt_waits_for() {
        let endpoint = Endpoint {
            host: Destined::Name("example.com".into()),
            port: 80,
            tls: None,
            uri: Uri::from_static("http://example.com/"),
        };
        let lookup = Lookup::new(Box::new(|_| Box::pin(std::future::pending())));
        let timeout = Duration::from_secs(20);
        let dialer = Dialer::with(endpoint, Arc::default(), lookup, timeout);
        let progress = phase::Progress::default();
        let dialed = tokio::time::timeout(Duration::ZERO, progress.track(dial(&dialer))).await;
        assert!(dialed.is_err());
        let told = progress.phase().timed_out(timeout);
        assert_eq!(told, "timed out after 20000 ms while waiting for the name lookup");
    }

    #[actix_rt::test]
    async fn what_fails_at_an_address_is_told_without_it() {
        let listener = TcpListener::bind((HERE, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let name = Rc::new(Name { answers: vec![vec![HERE]], asked: Cell::new(0) });
        let told = dial(&dialer(&name, port)).await.unwrap_err();
        assert_eq!(told, format!("connection refused by rebound.example.com:{port}"));
    }

    #[actix_rt::test]
    async fn a_refused_port_is_not_connected_to_and_its_host_not_looked_up() {
        let name = Rc::new(Name { answers: vec![], asked: Cell::new(0) });
        for port in [22, 25, 6379] {
            let told = dial(&dialer(&name, port)).await.unwrap_err();
            assert!(told.starts_with(&format!("port {port} is refused: ")), "{told}");
        }
        assert_eq!(name.asked.get(), 0);
    }
}
