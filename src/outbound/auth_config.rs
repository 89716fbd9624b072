//! The members of an `auth_config`.

use serde_json::{Map, Value};

use super::fault::Fault;
use crate::model::Secret;

/// The members of an `auth_config`.
pub(super) struct Members<'a> {
    auth_type: &'a str,
    members: Map<String, Value>,
}

impl Members<'_> {
    /// Reads the `auth_config` of a destination with this `auth_type`.
    pub(super) fn parse<'a>(auth_type: &'a str, config: &Secret) -> Result<Members<'a>, Fault> {
        let fault = || Fault::Auth("auth_config".into(), "auth_config is not a JSON object".into());
        Ok(Members { auth_type, members: object(config).ok_or_else(fault)? })
    }

    /// A member that must be a string.
    pub(super) fn string(&self, name: &str) -> Result<&str, Fault> {
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
pub(super) fn object(text: &Secret) -> Option<Map<String, Value>> {
    if text.reveal().is_empty() {
        return Some(Map::new());
    }
    serde_json::from_str::<Option<Map<String, Value>>>(text.reveal()).ok().map(Option::unwrap_or_default)
}
