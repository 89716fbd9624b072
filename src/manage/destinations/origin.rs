//! Credentials stay with the origin that they were given for. Whoever may write a destination could otherwise
//! read its secrets: by a URL that leads to a receiver of their own.

use std::collections::BTreeMap;

use serde_json::value::RawValue;
use url::Url;

use super::changes::{Changes, SettingsChanges, Touched};
use super::view::SECRET_OPTIONS;
use crate::model::{Destination, Secret, Settings};

/// Whether requests to both URLs go to the same scheme, host and port. What is no URL has an origin of its
/// own.
pub(super) fn is_same(before: &str, after: &str) -> bool {
    let origin = |text: &str| Url::parse(text).map(|url| url.origin());
    before == after || matches!((origin(before), origin(after)), (Ok(before), Ok(after)) if before == after)
}

impl Changes {
    /// Takes from `destination`, to which these changes were applied, the credentials that did not come with
    /// them; which ones. The signing secret stays: a receiver sees what was made with it, never the secret.
    pub(super) fn drop_credentials(
        &self,
        destination: &mut Destination,
        touched: &mut Touched,
    ) -> Vec<String> {
        let mut dropped = Vec::new();
        if self.auth_config.is_absent() && !is_empty(&destination.auth_config) {
            destination.auth_config = Secret::new("{}");
            // Where a type was given, the check finds what it lacks.
            if self.auth_type.is_absent() {
                destination.auth_type = "none".into();
            }
            touched.auth = true;
            dropped.push("auth_config".into());
        }
        let given = match &self.settings {
            None => None,
            Some(Some(settings)) => Some(settings),
            // All of them are at their defaults.
            Some(None) => return dropped,
        };
        let of_settings = drop_settings(given, &mut destination.settings);
        touched.settings |= !of_settings.is_empty();
        dropped.extend(of_settings.into_iter().map(|field| format!("settings.{field}")));
        dropped
    }
}

fn drop_settings(given: Option<&SettingsChanges>, settings: &mut Settings) -> Vec<String> {
    let mut dropped = Vec::new();
    if given.is_none_or(|given| given.extra_headers.is_absent()) && !is_empty(&settings.extra_headers) {
        settings.extra_headers = Secret::new("{}");
        dropped.push("extra_headers".into());
    }
    if given.is_none_or(|given| given.tls_client_key.is_absent()) && settings.tls_client_key.is_some() {
        settings.tls_client_key = None;
        dropped.push("tls_client_key".into());
        // A certificate is of no use without its key. One that was given misses it, which is told.
        if given.is_none_or(|given| given.tls_client_cert.is_absent()) {
            settings.tls_client_cert = None;
            dropped.push("tls_client_cert".into());
        }
    }
    if given.is_none_or(|given| given.format_options.is_absent()) {
        let options = serde_json::from_str::<BTreeMap<String, Box<RawValue>>>(&settings.format_options);
        let mut options = options.unwrap_or_default();
        let secret = SECRET_OPTIONS.into_iter().filter(|name| options.remove(*name).is_some());
        let secret: Vec<String> = secret.map(|name| format!("format_options.{name}")).collect();
        if !secret.is_empty() {
            settings.format_options =
                serde_json::to_string(&options).expect("JSON that was read can be written");
        }
        dropped.extend(secret);
    }
    dropped
}

/// Whether a JSON text is an object without members, or nothing.
fn is_empty(json: &Secret) -> bool {
    let members = serde_json::from_str::<Option<BTreeMap<String, Box<RawValue>>>>(json.reveal());
    json.reveal().is_empty() || members.is_ok_and(|members| members.unwrap_or_default().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port_however_they_are_spelled() {
        for (before, after, same) in [
            ("https://example.com/a", "https://example.com/b?c#d", true),
            ("https://example.com/", "https://EXAMPLE.com:443/x", true),
            ("http://example.com:80", "http://example.com", true),
            ("https://bücher.example/", "https://xn--bcher-kva.example/", true),
            ("https://127.0.0.1/", "https://2130706433/", true),
            ("https://example.com/", "http://example.com/", false),
            ("https://example.com/", "https://example.com:8443/", false),
            ("https://example.com/", "https://example.com./", false),
            ("https://example.com/", "https://example.org/", false),
            ("https://example.com/", "https://a.example.com/", false),
            ("https://example.com/", "https://example.com@evil.example/", false),
            ("https://example.com/", "https://evil.example\\@example.com/", false),
            ("nowhere", "nowhere", true),
            ("nowhere", "https://example.com/", false),
            ("nowhere", "elsewhere", false),
            ("data:a", "data:b", false),
        ] {
            assert_eq!(is_same(before, after), same, "{before} {after}");
            assert_eq!(is_same(after, before), same, "{after} {before}");
        }
    }
}
