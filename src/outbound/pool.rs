//! The connections of one destination: an awc client that is made when needed and dropped when idle.
//!
//! awc is told `http` for `https` as well: TLS is the [`Dialer`]'s, so that a connection can tell how it
//! ended and literal IPv6 addresses work. Its pool then knows one kind of connection only.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use actix_http::header::HeaderMap;
use actix_http::{Method, Uri};
use awc::error::SendRequestError;
use awc::{Client, ClientResponse, Connector, FrozenClientRequest, SendClientRequest};
use bytes::Bytes;

use super::body::Pieces;
use super::connector::Dialer;
use super::explain::{self, Failure};
use super::fd_exhaustion;
use crate::clock;

/// How long an unused connection is kept. Most receivers close theirs after 5 to 75 s.
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a connection is used at most: then the name is looked up again, and the egress rules judge again.
const LIFETIME: Duration = Duration::from_secs(60);
/// How often a pool at rest looks whether its connections should go.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// awc's own limits on connecting, which the attempt's deadline must always undercut: 30 s at most.
const NEVER: Duration = Duration::from_secs(60);

/// Requests go in here; connections are nobody else's business.
pub(super) struct Pool {
    dialer: Dialer,
    uri: Uri,
    headers: HeaderMap,
    keep_alive: Duration,
    client: RefCell<Option<FrozenClientRequest>>,
    in_flight: Cell<usize>,
    last_used: Cell<Instant>,
    sweeping: Cell<bool>,
}

/// Counts a request while it is in flight.
pub(super) struct InFlight(Rc<Pool>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.in_flight.set(self.0.in_flight.get() - 1);
        self.0.last_used.set(clock::now());
        if self.0.in_flight.get() == 0 && fd_exhaustion::lasts() {
            self.0.clear();
        }
    }
}

impl Pool {
    pub(super) fn new(dialer: Dialer, uri: Uri, headers: HeaderMap, keep_alive: Duration) -> Rc<Pool> {
        Rc::new(Pool {
            dialer,
            uri,
            headers,
            keep_alive,
            client: RefCell::new(None),
            in_flight: Cell::new(0),
            last_used: Cell::new(clock::now()),
            sweeping: Cell::new(false),
        })
    }

    /// Marks the pool as used until the result is dropped; sees to it that idle connections go away
    /// afterwards.
    pub(super) fn enter(self: &Rc<Pool>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        if !self.sweeping.replace(true) {
            actix_rt::spawn(sweep(Rc::downgrade(self), self.keep_alive));
        }
        InFlight(self.clone())
    }

    /// Sends over a pooled connection, or a new one; returns with the head of the answer.
    pub(super) async fn send(&self, headers: HeaderMap, body: Bytes) -> Result<ClientResponse, Failure> {
        self.start(headers, body).map_err(failed)?.await.map_err(failed)
    }

    /// Sends over a new connection for sure, and forgets all idle ones.
    pub(super) async fn send_fresh(
        &self,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<ClientResponse, Failure> {
        self.clear();
        self.send(headers, body).await
    }

    /// Not async: the client must not be borrowed while the answer is waited for.
    fn start(&self, headers: HeaderMap, body: Bytes) -> Result<SendClientRequest, SendRequestError> {
        let mut slot = self.client.borrow_mut();
        let client = match &mut *slot {
            Some(client) => client,
            none => none.insert(self.client()?),
        };
        Ok(client.extra_headers(headers).send_body(Pieces(body)))
    }

    /// Forgets all idle connections; those in use are closed when they are done.
    pub(super) fn clear(&self) {
        self.client.replace(None);
    }

    fn client(&self) -> Result<FrozenClientRequest, SendRequestError> {
        let connector = Connector::new()
            .connector(self.dialer.clone())
            .limit(0)
            .timeout(NEVER)
            .handshake_timeout(NEVER)
            .conn_keep_alive(self.keep_alive)
            .conn_lifetime(LIFETIME);
        let client = Client::builder()
            .connector(connector)
            .disable_timeout()
            .disable_redirects()
            .no_default_headers()
            .finish();
        let mut request = client.request(Method::POST, self.uri.clone()).no_decompress();
        *request.headers_mut() = self.headers.clone();
        Ok(request.freeze()?)
    }
}

/// What went wrong. When descriptors are short, all pools hear of it.
fn failed(error: SendRequestError) -> Failure {
    let failure = explain::send(error);
    if let Failure::Ours(_) = failure {
        fd_exhaustion::noticed();
    }
    failure
}

/// awc looks at idle connections only when it wants one. Without this, a destination that fell silent would
/// keep its connections, and their descriptors, for ever.
async fn sweep(pool: Weak<Pool>, keep_alive: Duration) {
    loop {
        actix_rt::time::sleep(keep_alive.min(SWEEP_INTERVAL)).await;
        let Some(pool) = pool.upgrade() else { return };
        let idle = clock::now().saturating_duration_since(pool.last_used.get());
        if pool.in_flight.get() == 0 && (idle >= keep_alive || fd_exhaustion::lasts()) {
            pool.clear();
            pool.sweeping.set(false);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::model::OrgId;
    use crate::outbound::endpoint::{Destined, Endpoint};
    use crate::outbound::lookup::{Lookup, Lookups};
    use crate::policy::egress::Rules;

    #[actix_rt::test]
    async fn idle_connections_are_closed_without_another_request() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let uri: Uri = format!("http://127.0.0.1:{port}/").parse().unwrap();
        let host = Destined::Literal([127, 0, 0, 1].into());
        let endpoint = Endpoint { host, port, tls: None, uri: uri.clone() };
        let rules = Rules { allow: vec!["127.0.0.0/8".parse().unwrap()], ..Rules::default() };
        let lookup = Lookup::by_system(Lookups::default(), OrgId(uuid::Uuid::nil()));
        let dialer = Dialer::with(endpoint, Arc::new(rules), lookup, Duration::from_secs(5));
        let pool = Pool::new(dialer, uri, HeaderMap::new(), Duration::from_millis(50));

        let receiver = actix_rt::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            assert!(stream.read(&mut buffer).await.unwrap() > 0);
            stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            stream.read(&mut buffer).await.unwrap()
        });
        let in_flight = pool.enter();
        let response = pool.send(HeaderMap::new(), Bytes::new()).await.unwrap();
        assert_eq!(response.status(), 204);
        drop((response, in_flight));

        let closed = tokio::time::timeout(Duration::from_secs(5), receiver).await.unwrap().unwrap();
        assert_eq!(closed, 0, "the connection ended without further bytes");
        assert!(pool.client.borrow().is_none());
    }
}
