//! Headers that a destination brings along: for authentication, and extra ones. Built once per destination.

use actix_http::header::{self, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

use super::client_credentials::ClientCredentials;
use super::network::Network;
use super::target::Fault;
use crate::model::Secret;

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

/// How requests authenticate themselves.
pub(super) enum Auth {
    /// They don't.
    None,
    /// By a header that is always the same.
    Header(HeaderName, HeaderValue),
    /// By a token in `authorization`, which has to be asked for.
    Token(Box<ClientCredentials>),
}

impl Auth {
    /// Reads `auth_type` and `auth_config`.
    pub(super) fn compile(auth_type: &str, config: &Secret, network: &Network) -> Result<Auth, Fault> {
        let members = || Members::parse(auth_type, config);
        match auth_type {
            "none" => Ok(Auth::None),
            "bearer" => {
                let value = format!("Bearer {}", members()?.text("token")?);
                Ok(Auth::Header(header::AUTHORIZATION, sensitive("auth_config.token", &value)?))
            }
            "basic" => {
                let members = members()?;
                let (username, password) = (members.text("username")?, members.string("password")?);
                if username.contains(':') {
                    let colon = "auth_config.username cannot contain a colon";
                    return Err(Fault::Auth("auth_config.username".into(), colon.into()));
                }
                let value = format!("Basic {}", STANDARD.encode(format!("{username}:{password}")));
                Ok(Auth::Header(header::AUTHORIZATION, sensitive("auth_config.password", &value)?))
            }
            "header" => {
                let members = members()?;
                let name = header_name("auth_config.header_name", members.text("header_name")?)?;
                let value = sensitive("auth_config.header_value", members.text("header_value")?)?;
                Ok(Auth::Header(name, value))
            }
            "oauth2" => Ok(Auth::Token(Box::new(ClientCredentials::compile(&members()?, network)?))),
            other => Err(Fault::Auth(
                "auth_type".into(),
                format!("auth_type {other:?} is unknown: use none, bearer, header, basic or oauth2"),
            )),
        }
    }

    /// The header that it uses.
    pub(super) fn header_name(&self) -> Option<&HeaderName> {
        match self {
            Auth::None => None,
            Auth::Header(name, _) => Some(name),
            Auth::Token(_) => Some(&header::AUTHORIZATION),
        }
    }
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

/// The members of an `auth_config`.
pub(super) struct Members<'a> {
    auth_type: &'a str,
    members: Map<String, Value>,
}

impl Members<'_> {
    fn parse<'a>(auth_type: &'a str, config: &Secret) -> Result<Members<'a>, Fault> {
        let fault = || Fault::Auth("auth_config".into(), "auth_config is not a JSON object".into());
        Ok(Members { auth_type, members: object(config).ok_or_else(fault)? })
    }

    /// A member that must be a string.
    fn string(&self, name: &str) -> Result<&str, Fault> {
        self.members.get(name).and_then(Value::as_str).ok_or_else(|| self.missing(name))
    }

    /// A member that must be a string with something in it.
    pub(super) fn text(&self, name: &str) -> Result<&str, Fault> {
        Some(self.string(name)?).filter(|text| !text.is_empty()).ok_or_else(|| self.missing(name))
    }

    /// A member that may be missing or null, and is a string otherwise.
    pub(super) fn optional(&self, name: &str) -> Result<Option<&str>, Fault> {
        match self.members.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(_) => {
                let field = format!("auth_config.{name}");
                let detail = format!("{field} is not a string");
                Err(Fault::Auth(field, detail))
            }
        }
    }

    fn missing(&self, name: &str) -> Fault {
        let auth_type = self.auth_type;
        let detail = format!("auth_type {auth_type} needs the member {name:?} in auth_config, as a string");
        Fault::Auth(format!("auth_config.{name}"), detail)
    }
}

/// The JSON object in `text`; a missing or null column counts as an empty one.
fn object(text: &Secret) -> Option<Map<String, Value>> {
    if text.reveal().is_empty() {
        return Some(Map::new());
    }
    serde_json::from_str::<Option<Map<String, Value>>>(text.reveal()).ok().map(Option::unwrap_or_default)
}

fn header_name(place: &str, text: &str) -> Result<HeaderName, Fault> {
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
