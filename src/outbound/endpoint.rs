//! Where connections go, as a URL says it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use actix_http::Uri;
use actix_http::header::HeaderValue;
use rustls::ClientConfig;
use url::Host;

use super::fault::Fault;
use crate::policy::egress::Refusal;

/// Where connections go.
#[derive(Clone)]
pub(super) struct Endpoint {
    /// The address as written, or the name to look up.
    pub(super) host: Destined,
    pub(super) port: u16,
    /// Present for `https`.
    pub(super) tls: Option<Arc<ClientConfig>>,
    /// What awc is given: see [`super::pool`] for why its scheme is always `http`.
    pub(super) uri: Uri,
}

impl Endpoint {
    /// Host and port as in the URL: what tenants are told that a connection goes to.
    pub(super) fn peer(&self) -> String {
        match &self.host {
            Destined::Literal(addr) => SocketAddr::new(*addr, self.port).to_string(),
            Destined::Name(name) => format!("{name}:{}", self.port),
        }
    }
}

/// A host of a URL.
#[derive(Clone, Debug)]
pub(super) enum Destined {
    Literal(IpAddr),
    Name(String),
}

/// Where requests to `url` go, which has passed the egress rules; `tls` for `https`.
pub(super) fn of(url: &url::Url, tls: Option<Arc<ClientConfig>>) -> Result<Endpoint, Fault> {
    let unusable = |why: &str| Fault::Url(Refusal::Malformed(why.to_owned()));
    let host = match url.host() {
        Some(Host::Ipv4(addr)) => Destined::Literal(addr.into()),
        Some(Host::Ipv6(addr)) => Destined::Literal(addr.into()),
        Some(Host::Domain(name)) => Destined::Name(name.to_owned()),
        None => return Err(unusable("it has no host")),
    };
    let port = url.port_or_known_default().ok_or_else(|| unusable("it has no port"))?;
    let path = match url.query() {
        Some(query) => format!("{}?{query}", url.path()),
        None => url.path().to_owned(),
    };
    let uri = Uri::builder()
        .scheme("http")
        .authority(format!("{}:{port}", url.host_str().unwrap_or_default()))
        .path_and_query(path)
        .build()
        .map_err(|error| unusable(&error.to_string()))?;
    Ok(Endpoint { host, port, tls, uri })
}

/// The value of `host` for `url`.
pub(super) fn host_header(url: &url::Url) -> Result<HeaderValue, Fault> {
    let host = url.host_str().unwrap_or_default();
    let text = match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    };
    HeaderValue::from_str(&text)
        .map_err(|_| Fault::Url(Refusal::Malformed("its host is no header value".into())))
}
