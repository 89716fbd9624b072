//! Errors of the network as sentences for people, and whose fault they are.
//!
//! Tenants read these sentences. They name a receiver as its URL does, by host and port, and not by the
//! address that the host led to: that one may be of a network which is none of their business.

use std::error::Error;
use std::io;

use actix_http::error::{ParseError, PayloadError};
use awc::error::{ConnectError, SendRequestError};
use rustls::{AlertDescription, CertificateError, PeerIncompatible};

use super::tls_words;
use super::tracked_stream::Ended;
use crate::policy::egress::Refusal;

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

/// Most characters of a message: some errors quote what the receiver sent.
const MAX_CHARS: usize = 500;

/// Why a request brought no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// The pooled connection was dead before the request: try again at once.
    #[error("the connection was closed before the answer")]
    Stale,
    /// See [`Unconnected::Theirs`]; refusals by the egress rules as well.
    #[error("{0}")]
    Theirs(String),
    /// See [`Unconnected::Ours`].
    #[error("{0}")]
    Ours(String),
}

/// Why sending a request, or reading the head of its answer, failed.
pub(super) fn send(error: SendRequestError) -> Failure {
    match error {
        SendRequestError::Connect(error) => connecting(error),
        SendRequestError::Send(error) | SendRequestError::Response(ParseError::Io(error)) => exchange(&error),
        SendRequestError::Response(ParseError::TooLarge) => {
            Failure::Theirs("the head of the answer is larger than 128 KiB or has more than 96 lines".into())
        }
        SendRequestError::Response(error) => Failure::Theirs(chain("the answer is not HTTP", &error)),
        other => Failure::Theirs(chain("the request failed", &other)),
    }
}

fn connecting(error: ConnectError) -> Failure {
    match error {
        ConnectError::Resolver(inner) => match inner.downcast::<Unconnected>() {
            Ok(fault) => match *fault {
                Unconnected::Ours(message) => Failure::Ours(message),
                theirs => Failure::Theirs(theirs.to_string()),
            },
            Err(other) => Failure::Theirs(chain("the host cannot be looked up", &*other)),
        },
        ConnectError::Io(error) => exchange(&error),
        ConnectError::Disconnected => Failure::Theirs("connection closed before the answer".into()),
        ConnectError::Timeout => Failure::Theirs("connecting took too long".into()),
        other => Failure::Theirs(chain("connecting failed", &other)),
    }
}

fn exchange(error: &io::Error) -> Failure {
    match ended(error) {
        Some(Ended::Stale(_)) => Failure::Stale,
        Some(ended) => Failure::Theirs(shorten(&ended.to_string())),
        None if is_exhaustion(error) => Failure::Ours(exhausted(error)),
        None => Failure::Theirs(chain("the exchange failed", error)),
    }
}

/// Why reading the body of an answer failed.
pub(super) fn body(error: &PayloadError) -> String {
    match body_io(error).map(|inner| (ended(inner), inner)) {
        Some((Some(ended), _)) => shorten(&ended.to_string()),
        Some((None, inner)) => chain("the body of the answer is broken", inner),
        None => chain("the body of the answer is broken", error),
    }
}

/// Whether `error` is no more than the receiver closing the connection.
pub(super) fn is_closed(error: &PayloadError) -> bool {
    body_io(error).and_then(ended).is_some_and(|ended| matches!(ended, Ended::Closed(_)))
}

fn body_io(error: &PayloadError) -> Option<&io::Error> {
    match error {
        PayloadError::Incomplete(inner) => inner.as_ref(),
        PayloadError::Io(inner) => Some(inner),
        _ => None,
    }
}

fn ended(error: &io::Error) -> Option<&Ended> {
    error.get_ref()?.downcast_ref::<Ended>()
}

/// Why a TCP connection to `peer`, a host and a port, did not come about.
pub(super) fn connect(error: &io::Error, peer: &str) -> Unconnected {
    use io::ErrorKind::{ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable, TimedOut};
    if is_exhaustion(error) {
        return Unconnected::Ours(exhausted(error));
    }
    Unconnected::Theirs(match error.kind() {
        ConnectionRefused => format!("connection refused by {peer}"),
        ConnectionReset => format!("connection reset by {peer}"),
        TimedOut => format!("no answer from {peer} when connecting"),
        HostUnreachable => format!("host {peer} is unreachable"),
        NetworkUnreachable => format!("the network of {peer} is unreachable"),
        _ => format!("cannot connect to {peer}: {error}"),
    })
}

/// Why a name has no addresses.
pub(super) fn lookup(error: &io::Error, name: &str) -> Unconnected {
    if is_exhaustion(error) {
        return Unconnected::Ours(exhausted(error));
    }
    // A resolver that finds no descriptor for its socket says no more than "temporary failure": ask for one.
    if let Err(probe) = std::fs::File::open("/dev/null")
        && is_exhaustion(&probe)
    {
        return Unconnected::Ours(exhausted(&probe));
    }
    Unconnected::Theirs(shorten(&format!("host {name} cannot be looked up: {}", bare(error))))
}

/// The resolver's own sentence, without the prefix that the standard library puts before it.
fn bare(error: &io::Error) -> String {
    let text = error.to_string();
    text.strip_prefix("failed to lookup address information: ").map(str::to_owned).unwrap_or(text)
}

/// Why a TLS handshake with `peer`, a host and a port, failed.
pub(super) fn tls(error: &io::Error, peer: &str) -> Unconnected {
    if is_exhaustion(error) {
        return Unconnected::Ours(exhausted(error));
    }
    let Some(inner) = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) else {
        let message = match error.kind() {
            io::ErrorKind::UnexpectedEof => format!("TLS: connection closed by {peer} during the handshake"),
            io::ErrorKind::ConnectionReset => format!("TLS: connection reset by {peer} during the handshake"),
            _ => format!("TLS: {error}"),
        };
        return Unconnected::Theirs(shorten(&message));
    };
    let reason = match inner {
        rustls::Error::InvalidCertificate(fault) => certificate(fault),
        rustls::Error::AlertReceived(AlertDescription::ProtocolVersion)
        | rustls::Error::PeerIncompatible(PeerIncompatible::ServerDoesNotSupportTls12Or13) => {
            "the receiver speaks no version of TLS from 1.2 on, older ones are not safe".into()
        }
        rustls::Error::AlertReceived(alert) => {
            format!("the receiver refused the handshake: {}", tls_words::words(alert))
        }
        rustls::Error::InvalidMessage(_) => format!("{peer} does not speak TLS"),
        other => tls_words::sentence(other),
    };
    Unconnected::Theirs(shorten(&format!("TLS: {reason}")))
}

fn certificate(fault: &CertificateError) -> String {
    match fault {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => "certificate expired".into(),
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
            "certificate is not valid yet".into()
        }
        CertificateError::UnknownIssuer => {
            "certificate of an unknown issuer (POSTHASTE_CA_FILE or tls_ca can name one to trust)".into()
        }
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            "certificate is for another host".into()
        }
        CertificateError::BadSignature => "certificate with a wrong signature".into(),
        CertificateError::Revoked => "certificate was revoked".into(),
        other => match tls_words::words(other) {
            role if role == "ca used as end entity" => {
                "the certificate is one of an authority, not of a server".into()
            }
            why => format!("certificate refused: {why}"),
        },
    }
}

/// Descriptors or memory are out: nothing that a receiver could help.
fn is_exhaustion(error: &io::Error) -> bool {
    // ENOMEM, ENFILE, EMFILE, ENOBUFS as Linux numbers them.
    matches!(error.raw_os_error(), Some(12 | 23 | 24 | 105))
}

fn exhausted(error: &io::Error) -> String {
    let what = match error.raw_os_error() {
        Some(24) => {
            "this process has no file descriptor left: raise its limit of open files (LimitNOFILE=, \
             ulimit -n) or lower POSTHASTE_MAX_IN_FLIGHT"
        }
        Some(23) => "this machine has no file descriptor left (fs.file-max)",
        _ => "this machine is out of memory",
    };
    format!("{what}: {error}")
}

/// `what` and everything that `error` gives as its causes, without repetitions.
fn chain(what: &str, error: &(dyn Error + 'static)) -> String {
    let mut message = what.to_owned();
    let mut next = Some(error);
    while let Some(error) = next {
        let text = error.to_string();
        if !message.contains(&text) {
            message.push_str(": ");
            message.push_str(&text);
        }
        next = error.source();
    }
    shorten(&message)
}

fn shorten(message: &str) -> String {
    message.chars().filter(|c| *c != '\0').take(MAX_CHARS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_out_of_descriptors_is_our_fault() {
        let peer = "example.com:443";
        for code in [12, 23, 24, 105] {
            let error = io::Error::from_raw_os_error(code);
            for fault in [connect(&error, peer), lookup(&error, "example.com"), tls(&error, peer)] {
                assert!(matches!(fault, Unconnected::Ours(_)), "{fault}");
            }
            let sent = send(SendRequestError::Send(io::Error::from_raw_os_error(code)));
            assert!(matches!(sent, Failure::Ours(_)));
        }
        assert!(matches!(connect(&io::Error::from_raw_os_error(111), peer), Unconnected::Theirs(_)));
    }

    #[test]
    fn causes_are_told_once_and_not_without_end() {
        let inner = io::Error::other("x".repeat(10_000));
        let message = chain("it failed", &io::Error::other(inner));
        assert!(message.starts_with("it failed: xxx") && message.len() == MAX_CHARS, "{message}");
    }
}
