//! Which headers a destination may bring along, and which are ours.

use actix_http::header::{HeaderName, HeaderValue};
use serde_json::Value;

use super::auth_config::object;
use super::fault::Fault;
use crate::model::Secret;

/// The value of `user-agent` in all requests.
pub(super) const USER_AGENT: &str = concat!("Posthaste/", env!("CARGO_PKG_VERSION"));

/// The header that says which trace a request belongs to.
pub(super) const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// Most extra headers of one destination.
const MAX_EXTRA_HEADERS: usize = 50;
/// Most bytes of a header value: receivers refuse heads of 8 KiB and more.
const MAX_VALUE_BYTES: usize = 4096;

/// Headers that shape the connection or that every request sets itself.
const OURS: [&str; 13] = [
    "connection",
    "content-encoding",
    "content-length",
    "content-type",
    "expect",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "user-agent",
];

/// Whether a request sets the header `name` (in lower case) itself.
pub(super) fn is_ours(name: &str) -> bool {
    OURS.contains(&name) || name.starts_with("webhook-") || name.starts_with("posthaste-")
}

/// The headers in `extra_headers`, none of which is ours.
pub(super) fn extra_headers(text: &Secret) -> Result<Vec<(HeaderName, HeaderValue)>, Fault> {
    let fault = |detail| Fault::Header("extra_headers".into(), detail);
    let Some(members) = object(text) else {
        return Err(fault("extra_headers is not a JSON object of strings".into()));
    };
    if members.len() > MAX_EXTRA_HEADERS {
        return Err(fault(format!("extra_headers has more than {MAX_EXTRA_HEADERS} members")));
    }
    let pair = |(name, value): (String, Value)| {
        let Value::String(value) = value else {
            return Err(fault(format!("extra_headers: the value of {name:?} is not a string")));
        };
        let name = header_name("extra_headers", &name)?;
        let value = sensitive(&format!("extra_headers: {name}"), &value)?;
        Ok((name, value))
    };
    members.into_iter().map(pair).collect()
}

/// The header `text`, which is none of ours. `place` says in a fault where it is written.
pub(super) fn header_name(place: &str, text: &str) -> Result<HeaderName, Fault> {
    let name = HeaderName::from_bytes(text.as_bytes())
        .map_err(|_| header_fault(place, format!("{place}: {text:?} is not a valid header name")))?;
    if is_ours(name.as_str()) {
        let used = format!("{place} cannot set {name}: it is used by the request itself");
        return Err(header_fault(place, used));
    }
    Ok(name)
}

/// A header value that `Debug` does not show. `place` says in a fault where it came from.
pub(super) fn sensitive(place: &str, text: &str) -> Result<HeaderValue, Fault> {
    if text.len() > MAX_VALUE_BYTES {
        let long = format!("{place}: the value is longer than {MAX_VALUE_BYTES} bytes");
        return Err(header_fault(place, long));
    }
    let mut value = HeaderValue::from_bytes(text.as_bytes()).map_err(|_| {
        let control = format!("{place}: the value contains a control character, such as CR or LF");
        header_fault(place, control)
    })?;
    value.set_sensitive(true);
    Ok(value)
}

/// `place` is a field, and maybe, after a colon, what of it.
fn header_fault(place: &str, detail: String) -> Fault {
    Fault::Header(place.split(':').next().unwrap_or(place).to_owned(), detail)
}
