//! Connections to one destination: looked up, vetted, pinned, then connected and encrypted.
//!
//! What is checked is what is connected to: the addresses that a lookup returns are judged by the egress
//! rules and used as they are; nothing is looked up twice. Literal addresses take the same way.

use std::io;
use std::net::{IpAddr, SocketAddr};
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

use super::explain;
use super::lookup::Lookup;
use super::target::{Destined, Endpoint};
use super::wire::{Stream, Wire};
use crate::policy::egress::{Refusal, Rules};

/// Most addresses of a name that one attempt tries.
const MAX_ADDRESSES: usize = 4;

/// Why there is no connection, and whose fault that is.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Unconnected {
    /// The egress rules forbid it.
    #[error("{0}")]
    Refused(#[from] Refusal),
    /// The receiver, its name, its network, its certificate.
    #[error("{0}")]
    Theirs(String),
    /// This process or machine.
    #[error("{0}")]
    Ours(String),
}

/// Opens connections to one endpoint, whatever URL awc mentions. Cheap to clone.
#[derive(Clone)]
pub(super) struct Dialer(Rc<Inner>);

struct Inner {
    endpoint: Endpoint,
    rules: Arc<Rules>,
    lookup: Lookup,
    timeout: Duration,
}

impl Dialer {
    pub(super) fn new(endpoint: Endpoint, rules: Arc<Rules>, timeout: Duration) -> Dialer {
        Dialer(Rc::new(Inner { endpoint, rules, lookup: Lookup::default(), timeout }))
    }

    async fn connect(&self) -> Result<Wire, Unconnected> {
        let addresses = self.vetted().await?;
        let (tcp, peer) = self.connect_any(&addresses).await?;
        // Requests are written in one piece; waiting for more to send would only delay them.
        if let Err(error) = tcp.set_nodelay(true) {
            log::debug!("TCP_NODELAY cannot be set on a connection to {peer}: {error}");
        }
        let Some(tls) = &self.0.endpoint.tls else {
            return Ok(Wire::new(Stream::Plain(tcp), peer));
        };
        let name = ServerName(match &self.0.endpoint.host {
            Destined::Literal(addr) => addr.to_string(),
            Destined::Name(name) => name.strip_suffix('.').unwrap_or(name).to_owned(),
        });
        let service = TlsConnector::service(tls.clone());
        match service.call(Connection::new(name, tcp)).await {
            Ok(connection) => Ok(Wire::new(Stream::Tls(Box::new(connection.into_parts().0)), peer)),
            Err(error) => Err(explain::tls(&error, peer)),
        }
    }

    /// The addresses that may be connected to. Refuses only when no address is left.
    async fn vetted(&self) -> Result<Vec<SocketAddr>, Unconnected> {
        let Inner { endpoint, rules, lookup, .. } = &*self.0;
        let candidates: Rc<[IpAddr]> = match &endpoint.host {
            Destined::Literal(addr) => Rc::new([*addr]),
            Destined::Name(name) => lookup.addresses(name).await?,
        };
        let mut refusal = None;
        let mut vetted = Vec::with_capacity(MAX_ADDRESSES);
        for addr in candidates.iter() {
            match rules.check_addr(*addr) {
                Ok(()) if vetted.len() < MAX_ADDRESSES => {
                    vetted.push(SocketAddr::new(*addr, endpoint.port));
                }
                Ok(()) => {}
                Err(refused) => refusal = refusal.or(Some(refused)),
            }
        }
        match refusal {
            Some(refusal) if vetted.is_empty() => Err(refusal.into()),
            _ => Ok(vetted),
        }
    }

    /// Tries `addresses` in turn. Each gets an equal share of the time, the last one all that is left.
    async fn connect_any(&self, addresses: &[SocketAddr]) -> Result<(TcpStream, SocketAddr), Unconnected> {
        let share = self.0.timeout / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut failure = Unconnected::Theirs("the host has no address".into());
        for (index, &peer) in addresses.iter().enumerate() {
            let connecting = TcpStream::connect(peer);
            let connected = if index + 1 == addresses.len() {
                connecting.await
            } else {
                let slow = || io::Error::new(io::ErrorKind::TimedOut, "no answer");
                tokio::time::timeout(share, connecting).await.unwrap_or_else(|_| Err(slow()))
            };
            match connected {
                Ok(stream) => return Ok((stream, peer)),
                Err(error) => failure = explain::connect(&error, peer),
            }
            if matches!(failure, Unconnected::Ours(_)) {
                break;
            }
        }
        Err(failure)
    }
}

impl Service<ConnectInfo<Uri>> for Dialer {
    type Response = Connection<Uri, Wire>;
    type Error = ConnectError;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Self::Error>>;

    fn poll_ready(&self, _: &mut Context<'_>) -> Poll<Result<(), ConnectError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&self, info: ConnectInfo<Uri>) -> Self::Future {
        let dialer = self.clone();
        Box::pin(async move {
            match dialer.connect().await {
                Ok(wire) => Ok(Connection::new(info.request().clone(), wire)),
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
