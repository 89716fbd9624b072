//! A destination made ready: checked once, so that an attempt has nothing left to parse.

use std::sync::Arc;
use std::time::Duration;

use actix_http::header::{self, HeaderMap, HeaderName, HeaderValue};
use rustls::ClientConfig;

use super::auth::Auth;
use super::client_credentials::ClientCredentials;
use super::endpoint::{self, Endpoint};
use super::fault::Fault;
use super::header_rules::{self, TRACEPARENT, USER_AGENT};
use super::network::Network;
use super::redact::Redactor;
use crate::format::Format;
use crate::model::{DbTime, Destination, OrgId, Secret, Settings};
use crate::policy::signature::{SignatureFault, Signer};

/// Everything that an attempt needs to know about its destination.
pub struct Target {
    /// Whose it is.
    pub(super) org: OrgId,
    pub(super) endpoint: Endpoint,
    /// Headers that are the same for every request, `host` included.
    pub(super) headers: HeaderMap,
    /// Whether `headers` say which trace requests belong to.
    pub(super) has_own_trace: bool,
    /// What tokens are asked for with, where requests carry one.
    pub(super) credentials: Option<Box<ClientCredentials>>,
    /// Knows what no answer may show.
    pub(super) redactor: Redactor,
    pub(super) signer: Signer,
    /// Name of the header that `signer` fills.
    pub(super) signature_header: Option<HeaderName>,
    pub(super) format: Format,
    pub(super) timeout: Duration,
}

impl Target {
    /// Checks `destination` and prepares all that its requests have in common.
    ///
    /// # Errors
    /// The first fault found; its text is fit for `error_message`.
    pub fn compile(destination: &Destination, network: &Network) -> Result<Target, Fault> {
        let settings = &destination.settings;
        let url = network.rules.check_url(&destination.url)?;
        let format = Format::compile(&settings.payload_format, &settings.format_options)?;
        if settings.gzip {
            return Err(Fault::NotAvailable("gzip"));
        }
        let previous = settings.previous_signing_secret.as_ref();
        let until = settings.previous_secret_expires_at.unwrap_or(DbTime(i64::MAX));
        let signer = Signer::compile(
            destination.signing_secret.as_ref(),
            previous.map(|secret| (secret, until)),
            &settings.signature_scheme,
            settings.signature_header.as_deref(),
        )?;
        let endpoint = endpoint::of(&url, tls(&url, settings, network)?)?;

        let extra = |detail| Fault::Header("extra_headers".into(), detail);
        let mut headers = HeaderMap::new();
        let auth = Auth::compile(&destination.auth_type, &destination.auth_config, network)?;
        let signature_header = signer.header().map(signature_header).transpose()?;
        for (name, value) in header_rules::extra_headers(&settings.extra_headers)? {
            if [signature_header.as_ref(), auth.header_name()].contains(&Some(&name)) {
                return Err(extra(format!("extra_headers cannot override {name}")));
            }
            headers.insert(name, value);
        }
        if let Some(name) = auth.header_name().filter(|name| Some(*name) == signature_header.as_ref()) {
            let both = format!("auth_config and the signature both want the header {name}");
            return Err(Fault::Header("signature_header".into(), both));
        }
        let credentials = match auth {
            Auth::None => None,
            Auth::Header(name, value) => {
                headers.insert(name, value);
                None
            }
            Auth::Token(credentials) => Some(credentials),
        };
        let redactor = redactor(destination, &headers, credentials.as_deref());
        headers.insert(header::HOST, endpoint::host_header(&url)?);
        // Either kind of body has the same type today; formats where they differ set it with the request.
        let content_type = format.content_type(destination.batch_size > 1);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        headers.insert(header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        let timeout = destination.timeout;
        let has_own_trace = headers.contains_key(TRACEPARENT);
        Ok(Target {
            org: destination.org,
            endpoint,
            headers,
            has_own_trace,
            credentials,
            redactor,
            signer,
            signature_header,
            format,
            timeout,
        })
    }

    /// Everything that is wrong with `destination`; [`Target::compile`] tells the first of it. Each part is
    /// looked at by itself, and then all together.
    pub fn faults(destination: &Destination, network: &Network) -> Vec<Fault> {
        let blank = Destination {
            url: "https://example.com/".into(),
            auth_type: "none".into(),
            auth_config: Secret::new("{}"),
            signing_secret: None,
            settings: Settings::default(),
            ..destination.clone()
        };
        let parts: [fn(&mut Destination, Destination); 11] = [
            |part, d| part.url = d.url,
            |part, d| (part.auth_type, part.auth_config) = (d.auth_type, d.auth_config),
            |part, d| part.signing_secret = d.signing_secret,
            |part, d| part.settings.payload_format = d.settings.payload_format,
            |part, d| part.settings.format_options = d.settings.format_options,
            |part, d| part.settings.extra_headers = d.settings.extra_headers,
            |part, d| part.settings.signature_scheme = d.settings.signature_scheme,
            |part, d| part.settings.gzip = d.settings.gzip,
            |part, d| part.settings.tls_ca = d.settings.tls_ca,
            |part, d| {
                part.settings.tls_client_cert = d.settings.tls_client_cert;
                part.settings.tls_client_key = d.settings.tls_client_key;
            },
            |part, d| *part = d,
        ];
        let mut faults = Vec::new();
        for set in parts {
            let mut part = blank.clone();
            set(&mut part, destination.clone());
            faults.extend(Target::compile(&part, network).err().filter(|fault| !faults.contains(fault)));
        }
        faults
    }

    /// The format of the bodies, which knows how large an event becomes.
    pub fn format(&self) -> Format {
        self.format
    }
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Path and query may hold secrets (Slack's do), and so may the headers.
        write!(f, "Target({:?}, port {})", self.endpoint.host, self.endpoint.port)
    }
}

/// How requests to `url` are encrypted, if they are.
fn tls(url: &url::Url, settings: &Settings, network: &Network) -> Result<Option<Arc<ClientConfig>>, Fault> {
    match url.scheme() {
        "https" => Ok(Some(network.tls_for(settings)?)),
        _ if settings.tls_client_cert.is_some() => {
            Err(Fault::Tls("tls_client_cert", "tls_client_cert needs an https URL".into()))
        }
        _ => Ok(None),
    }
}

/// Knows the secrets of `destination`: those that requests carry, and those that the receiver has as well.
fn redactor(
    destination: &Destination,
    headers: &HeaderMap,
    credentials: Option<&ClientCredentials>,
) -> Redactor {
    let mut redactor = Redactor::default();
    let of_grant = credentials.into_iter().flat_map(|credentials| credentials.headers.iter());
    for (_, value) in headers.iter().chain(of_grant).filter(|(_, value)| value.is_sensitive()) {
        redactor.add_header(value);
    }
    if let Some(credentials) = credentials {
        redactor.add(credentials.client_secret.reveal().as_bytes());
    }
    let previous = &destination.settings.previous_signing_secret;
    for secret in [&destination.signing_secret, previous].into_iter().flatten() {
        redactor.add_signing_secret(secret);
    }
    redactor
}

/// The signature may go where it likes, but not where it would break the request or replace our other
/// headers.
fn signature_header(name: &str) -> Result<HeaderName, Fault> {
    let parsed = HeaderName::from_bytes(name.as_bytes()).map_err(|_| SignatureFault::Header)?;
    if name != crate::policy::signature::STANDARD_HEADER && header_rules::is_ours(name) {
        let used = format!("signature_header cannot be {name}: it is used by the request itself");
        return Err(Fault::Header("signature_header".into(), used));
    }
    Ok(parsed)
}
