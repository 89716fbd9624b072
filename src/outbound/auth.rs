//! How requests to a destination authenticate themselves. Built once per destination.

use actix_http::header::{self, HeaderName, HeaderValue};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::auth_config::Members;
use super::client_credentials::ClientCredentials;
use super::fault::Fault;
use super::header_rules::{header_name, sensitive};
use super::network::Network;
use crate::model::Secret;

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
