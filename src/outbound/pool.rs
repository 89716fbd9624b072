//! The connections of one destination: an awc client that is made when needed and dropped when idle.
//!
//! awc is told `http` for `https` as well: TLS is the [`Dialer`]'s, so that a connection can tell how it ended and
//! literal IPv6 addresses work. Its pool then knows one kind of connection only.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use actix_http::Method;
use actix_http::header::HeaderMap;
use awc::error::SendRequestError;
use awc::{Client, Connector, FrozenClientRequest, SendClientRequest};
use bytes::Bytes;

use super::connector::Dialer;
use crate::clock;

/// How long an unused connection is kept. Most receivers close theirs after 5 to 75 s.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a connection is used at most: then the name is looked up again, and the egress rules judge again.
const LIFETIME: Duration = Duration::from_secs(60);
/// awc's own limits on connecting, which the attempt's deadline must always undercut: 30 s at most.
const NEVER: Duration = Duration::from_secs(60);

/// Requests go in here; connections are nobody else's business.
pub(super) struct Pool {
    dialer: Dialer,
    uri: actix_http::Uri,
    headers: HeaderMap,
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
    }
}

impl Pool {
    pub(super) fn new(dialer: Dialer, uri: actix_http::Uri, headers: HeaderMap) -> Rc<Pool> {
        Rc::new(Pool {
            dialer,
            uri,
            headers,
            client: RefCell::new(None),
            in_flight: Cell::new(0),
            last_used: Cell::new(clock::now()),
            sweeping: Cell::new(false),
        })
    }

    /// Marks the pool as used until the result is dropped; sees to it that idle connections go away afterwards.
    pub(super) fn enter(self: &Rc<Pool>) -> InFlight {
        self.in_flight.set(self.in_flight.get() + 1);
        if !self.sweeping.replace(true) {
            actix_rt::spawn(sweep(Rc::downgrade(self)));
        }
        InFlight(self.clone())
    }

    /// Sends over a pooled connection, or a new one.
    pub(super) fn send(
        &self,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<SendClientRequest, SendRequestError> {
        if let Some(client) = &*self.client.borrow() {
            return Ok(client.extra_headers(headers).send_body(body));
        }
        self.send_fresh(headers, body)
    }

    /// Sends over a new connection for sure, and forgets all idle ones.
    pub(super) fn send_fresh(
        &self,
        headers: HeaderMap,
        body: Bytes,
    ) -> Result<SendClientRequest, SendRequestError> {
        let client = self.client()?;
        let sent = client.extra_headers(headers).send_body(body);
        self.client.replace(Some(client));
        Ok(sent)
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
            .conn_keep_alive(KEEP_ALIVE)
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

/// awc looks at idle connections only when it wants one. Without this, a destination that fell silent would keep
/// its connections, and their descriptors, for ever.
async fn sweep(pool: std::rc::Weak<Pool>) {
    loop {
        actix_rt::time::sleep(KEEP_ALIVE).await;
        let Some(pool) = pool.upgrade() else { return };
        let idle = clock::now().saturating_duration_since(pool.last_used.get());
        if pool.in_flight.get() == 0 && idle >= KEEP_ALIVE {
            pool.clear();
            pool.sweeping.set(false);
            return;
        }
    }
}
