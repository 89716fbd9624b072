//! What people write about a destination, and how it changes what is there.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;

use super::FILTER_FIELD;
use crate::manage::input::{Faults, Members, has_nul};
use crate::manage::patch::{Form, Patch};
use crate::model::{Secret, Settings};
use crate::store::destinations::managed::Written;

/// Characters of a name, as its column has them.
const MAX_NAME: usize = 100;
/// Characters of a stored signing secret, as its column has them.
const MAX_SIGNING_SECRET: usize = 255;
/// Types that one destination may name: each is compared with each event.
const MAX_EVENT_TYPES: usize = 100;
/// Characters of one of them.
const MAX_EVENT_TYPES_ENTRY: usize = 255;
/// Bytes of the options of a format.
const MAX_FORMAT_OPTIONS: usize = 65_536;
/// Bytes of certificates and keys, as the columns have them.
const MAX_CLIENT_PEM: usize = 65_536;
const MAX_CA_PEM: usize = 1_048_576;

/// An entry of `event_types`, for the API's document.
#[derive(ToSchema)]
#[schema(min_length = 1, max_length = 255, example = "invoice.*")]
pub struct EventTypePattern(#[allow(dead_code, reason = "only described")] String);

/// A destination as it is written, the whole of it or some members: absent ones are as they were (at
/// creation: their defaults), null ones go back to their defaults. Creation needs `name` and `url`.
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = DestinationChanges)]
pub struct Changes {
    /// A name, of which its organization has one; 1 to 100 characters.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 100)]
    pub name: Patch<String>,
    /// Where to send, `https://…` or `http://…`. When a key changes its origin (scheme, host or port), the
    /// credentials must come with it, or they are dropped.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = "uri")]
    pub url: Patch<String>,
    /// `none` (the default), `bearer`, `basic`, `header` or `oauth2`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub auth_type: Patch<String>,
    /// What that needs, as a whole: `token`; `username` and `password`; `header_name` and `header_value`;
    /// `token_url`, `client_id`, `client_secret`, and maybe `scope`, `audience` and `client_auth`.
    #[serde(default)]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub auth_config: Patch<BTreeMap<String, String>>,
    /// Types of events, at most 100; an entry may end in `*`. Empty, the default: all.
    #[serde(default)]
    #[schema(value_type = Option<Vec<EventTypePattern>>, max_items = 100)]
    pub event_types: Patch<Vec<String>>,
    /// What the payload must contain, and a predicate `$jsonpath`. `{}`, the default: anything.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub event_filter: Patch<Box<RawValue>>,
    /// Whether events are queued and sent; true by default.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    pub enabled: Patch<bool>,
    /// Events of one request, 1 (the default) to 100; above 1 bodies are arrays.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 100)]
    pub batch_size: Patch<i64>,
    /// Limit of a request, 1,000 to 30,000 ms, 5,000 by default.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 1000, maximum = 30000)]
    pub timeout_ms: Patch<i64>,
    /// Retries after the first attempt, 0 to 10, 3 by default.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 10)]
    pub retry_max: Patch<i64>,
    /// Delay before the first retry, 100 ms or more, 1,000 by default; it doubles with each.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 100)]
    pub retry_backoff_ms: Patch<i64>,
    /// `whsec_…`, `whsk_…` or any text. Absent at creation: one is made and shown once. Null: no signatures.
    #[serde(default)]
    #[schema(value_type = Option<String>, min_length = 1, max_length = 255)]
    pub signing_secret: Patch<String>,
    /// Everything else. Null: all of it back to its defaults.
    #[serde(default, deserialize_with = "present")]
    #[schema(value_type = Option<SettingsChanges>)]
    pub settings: Option<Option<SettingsChanges>>,
}

/// The settings of a destination as they are written; see [`Changes`].
#[derive(Clone, Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = SettingsChanges)]
pub struct SettingsChanges {
    /// `standard` (the default) or `flat`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub payload_format: Patch<String>,
    /// Options of the format, as a whole. Its members `routing_key`, `api_key`, `token`, `secret` and
    /// `password` are never shown.
    #[serde(default)]
    #[schema(value_type = Option<Object>)]
    pub format_options: Patch<Map<String, Value>>,
    /// Requests per second; null, the default: any number.
    #[serde(default)]
    #[schema(value_type = Option<f64>)]
    pub rate_limit_per_second: Patch<f64>,
    /// Requests that may follow each other at once under that limit, 1 or more.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 1)]
    pub rate_limit_burst: Patch<i64>,
    /// Requests in flight, 1 to 10,000; null: as the dispatcher is configured.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 10000)]
    pub max_in_flight: Patch<i64>,
    /// One attempt at a time, in order; false by default.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    pub ordered: Patch<bool>,
    /// How long a batch waits to fill, 0 (the default) to 300,000 ms.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 0, maximum = 300000)]
    pub batch_wait_ms: Patch<i64>,
    /// Events per request, 1 to 10,000; null, the default: `batch_size`.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 1, maximum = 10000)]
    pub batch_max_events: Patch<i64>,
    /// Bytes of JSON per request, 1,024 to 67,108,864; null, the default: `POSTHASTE_MAX_EVENT_BYTES`. A
    /// single event may have more.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 1024, maximum = 67108864)]
    pub batch_max_bytes: Patch<i64>,
    /// Older deliveries are given up, 1 s or more; null, the default: never.
    #[serde(default)]
    #[schema(value_type = Option<i64>, minimum = 1)]
    pub max_age_seconds: Patch<i64>,
    /// Further headers of each request, as a whole: at most 50. Their values are never shown.
    #[serde(default)]
    #[schema(value_type = Option<BTreeMap<String, String>>)]
    pub extra_headers: Patch<BTreeMap<String, String>>,
    /// `standard` (the default) or `hex`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub signature_scheme: Patch<String>,
    /// Header of the `hex` scheme; null, the default: `x-webhook-signature`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub signature_header: Patch<String>,
    /// Compress bodies; false by default.
    #[serde(default)]
    #[schema(value_type = Option<bool>)]
    pub gzip: Patch<bool>,
    /// Client certificate chain, PEM; with `tls_client_key`.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub tls_client_cert: Patch<String>,
    /// Key of the client certificate, PEM. Never shown.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub tls_client_key: Patch<String>,
    /// Roots to trust instead of the system's, PEM.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    pub tls_ca: Patch<String>,
}

/// Null is not the same as absent.
fn present<'de, T, D>(deserializer: D) -> Result<Option<Option<T>>, D::Error>
where
    T: Deserialize<'de>,
    D: Deserializer<'de>,
{
    Ok(Some(Option::deserialize(deserializer)?.map(|Members(read)| read)))
}

/// What was touched, beyond the values themselves.
#[derive(Clone, Copy, Debug, Default)]
pub struct Touched {
    /// The credentials.
    pub auth: bool,
    /// The filter.
    pub filter: bool,
    /// The signing secret.
    pub signing_secret: bool,
    /// The key of the client certificate.
    pub client_key: bool,
    /// Any of the settings.
    pub settings: bool,
}

impl Changes {
    /// Applies what was given to `to`. What has no place there is a fault, and is left out.
    pub fn apply(self, to: &mut Written, faults: &mut Faults) -> Touched {
        let settings_touched = self.settings.is_some();
        let mut touched = Touched {
            auth: !self.auth_type.is_absent() || !self.auth_config.is_absent(),
            filter: !self.event_filter.is_absent(),
            signing_secret: !self.signing_secret.is_absent(),
            client_key: false,
            settings: settings_touched,
        };
        if let Some(name) = self.name.take("name", String::new(), faults) {
            if !faults.has("name") {
                faults.text("name", &name, 1, MAX_NAME);
            }
            to.name = name;
        }
        set(&mut to.enabled, self.enabled, "enabled", true, faults);
        if let Some(types) = self.event_types.take("event_types", Vec::new(), faults) {
            check_event_types(&types, faults);
            to.event_types = types;
        }
        let everything = || RawValue::from_string("{}".into()).expect("{} is JSON");
        if let Some(filter) = self.event_filter.take(FILTER_FIELD, everything(), faults) {
            to.event_filter = Some(filter.get().to_owned());
        }
        let destination = &mut to.destination;
        set(&mut destination.url, self.url, "url", String::new(), faults);
        let is_none = matches!(&self.auth_type, Patch::Null)
            || matches!(&self.auth_type, Patch::Value(name) if name == "none");
        set(&mut destination.auth_type, self.auth_type, "auth_type", "none".into(), faults);
        match self.auth_config.take("auth_config", BTreeMap::new(), faults) {
            Some(members) => {
                check_auth(&destination.auth_type, &members, faults);
                destination.auth_config = Secret::new(json(&members));
            }
            // What it was for is gone.
            None if is_none => destination.auth_config = Secret::new("{}"),
            None => {}
        }
        let millis = |millis: i64| Duration::from_millis(millis as u64);
        if let Some(events) = number(self.batch_size, "batch_size", 1, 1..=100, faults) {
            destination.batch_size = events as u32;
        }
        if let Some(timeout) = number(self.timeout_ms, "timeout_ms", 5_000, 1_000..=30_000, faults) {
            destination.timeout = millis(timeout);
        }
        if let Some(max) = number(self.retry_max, "retry_max", 3, 0..=10, faults) {
            destination.retry.max = max as u32;
        }
        if let Some(delay) = number(self.retry_backoff_ms, "retry_backoff_ms", 1_000, 100..=MOST, faults) {
            destination.retry.backoff = millis(delay);
        }
        if let Some(secret) = self.signing_secret.take_optional("signing_secret", faults) {
            destination.signing_secret =
                text(secret, "signing_secret", 1, MAX_SIGNING_SECRET, faults).map(Secret::new);
        }
        match self.settings {
            Some(Some(settings)) => {
                touched.client_key = !settings.tls_client_key.is_absent();
                settings.apply(&mut destination.settings, faults);
            }
            Some(None) => {
                let old = std::mem::take(&mut destination.settings);
                destination.settings.previous_signing_secret = old.previous_signing_secret;
                destination.settings.previous_secret_expires_at = old.previous_secret_expires_at;
            }
            None => {}
        }
        touched
    }
}

impl SettingsChanges {
    fn apply(self, to: &mut Settings, faults: &mut Faults) {
        let default = Settings::default();
        set(&mut to.payload_format, self.payload_format, PAYLOAD_FORMAT, default.payload_format, faults);
        if let Some(options) = self.format_options.take("settings.format_options", Map::new(), faults) {
            to.format_options = json(&options);
            if to.format_options.len() > MAX_FORMAT_OPTIONS {
                let most = format!("must not be larger than {MAX_FORMAT_OPTIONS} bytes of JSON");
                faults.add("settings.format_options", most);
            }
            if has_nul(&to.format_options) {
                faults.add("settings.format_options", "must not contain the character NUL (\\u0000)");
            }
        }
        if let Some(rate) = self.rate_limit_per_second.take_optional(RATE, faults) {
            if rate.is_some_and(|rate| !(rate > 0.0 && rate.is_finite())) {
                faults.add(RATE, "must be more than 0");
            }
            to.rate_limit_per_second = rate;
        }
        set_count(
            &mut to.rate_limit_burst,
            self.rate_limit_burst,
            "settings.rate_limit_burst",
            1..=MOST,
            faults,
        );
        set_count(&mut to.max_in_flight, self.max_in_flight, "settings.max_in_flight", 1..=10_000, faults);
        set(&mut to.ordered, self.ordered, "settings.ordered", false, faults);
        if let Some(wait) = number(self.batch_wait_ms, "settings.batch_wait_ms", 0, 0..=300_000, faults) {
            to.batch_wait = Duration::from_millis(wait as u64);
        }
        set_count(
            &mut to.batch_max_events,
            self.batch_max_events,
            "settings.batch_max_events",
            1..=10_000,
            faults,
        );
        let mut bytes = to.batch_max_bytes.map(|bytes| bytes as u32);
        let bounds = 1 << 10..=64 << 20;
        set_count(&mut bytes, self.batch_max_bytes, "settings.batch_max_bytes", bounds, faults);
        to.batch_max_bytes = bytes.map(|bytes| bytes as usize);
        let mut age = to.max_age.map(|age| age.as_secs() as u32);
        set_count(&mut age, self.max_age_seconds, "settings.max_age_seconds", 1..=MOST, faults);
        to.max_age = age.map(|seconds| Duration::from_secs(seconds.into()));
        if let Some(headers) = self.extra_headers.take("settings.extra_headers", BTreeMap::new(), faults) {
            to.extra_headers = Secret::new(json(&headers));
        }
        set(&mut to.signature_scheme, self.signature_scheme, SCHEME, default.signature_scheme, faults);
        if let Some(header) = self.signature_header.take_optional("settings.signature_header", faults) {
            to.signature_header = text(header, "settings.signature_header", 1, 100, faults);
        }
        set(&mut to.gzip, self.gzip, "settings.gzip", false, faults);
        if let Some(pem) = self.tls_client_cert.take_optional("settings.tls_client_cert", faults) {
            to.tls_client_cert = text(pem, "settings.tls_client_cert", 1, MAX_CLIENT_PEM, faults);
        }
        if let Some(pem) = self.tls_client_key.take_optional("settings.tls_client_key", faults) {
            let pem = text(pem, "settings.tls_client_key", 1, MAX_CLIENT_PEM, faults);
            to.tls_client_key = pem.map(Secret::new);
        }
        if let Some(pem) = self.tls_ca.take_optional("settings.tls_ca", faults) {
            to.tls_ca = text(pem, "settings.tls_ca", 1, MAX_CA_PEM, faults);
        }
    }
}

const PAYLOAD_FORMAT: &str = "settings.payload_format";
const RATE: &str = "settings.rate_limit_per_second";
const SCHEME: &str = "settings.signature_scheme";

/// The largest number that an integer column has.
const MOST: i64 = i32::MAX as i64;

fn set<T: Form>(to: &mut T, given: Patch<T>, field: &str, default: T, faults: &mut Faults) {
    if let Some(value) = given.take(field, default, faults) {
        *to = value;
    }
}

fn set_count(
    to: &mut Option<u32>,
    given: Patch<i64>,
    field: &str,
    range: std::ops::RangeInclusive<i64>,
    faults: &mut Faults,
) {
    match given.take_optional(field, faults) {
        None => {}
        Some(None) => *to = None,
        Some(Some(value)) => {
            if let Some(value) = within(value, field, range, faults) {
                *to = Some(value as u32);
            }
        }
    }
}

fn number(
    given: Patch<i64>,
    field: &str,
    default: i64,
    range: std::ops::RangeInclusive<i64>,
    faults: &mut Faults,
) -> Option<i64> {
    within(given.take(field, default, faults)?, field, range, faults)
}

fn within(value: i64, field: &str, range: std::ops::RangeInclusive<i64>, faults: &mut Faults) -> Option<i64> {
    if range.contains(&value) {
        return Some(value);
    }
    faults.add(field, format!("must be {} to {}", range.start(), range.end()));
    None
}

fn text(text: Option<String>, field: &str, least: usize, most: usize, faults: &mut Faults) -> Option<String> {
    text.inspect(|text| faults.text(field, text, least, most))
}

fn check_event_types(types: &[String], faults: &mut Faults) {
    if types.len() > MAX_EVENT_TYPES {
        faults.add("event_types", format!("must have at most {MAX_EVENT_TYPES} entries"));
        return;
    }
    for (at, entry) in types.iter().enumerate() {
        faults.text(&format!("event_types[{at}]"), entry, 1, MAX_EVENT_TYPES_ENTRY);
    }
}

/// What each `auth_type` needs, and what it may have besides.
const MEMBERS: [(&str, &[&str], &[&str]); 5] = [
    ("none", &[], &[]),
    ("bearer", &["token"], &[]),
    ("basic", &["username", "password"], &[]),
    ("header", &["header_name", "header_value"], &[]),
    ("oauth2", &["token_url", "client_id", "client_secret"], &["scope", "audience", "client_auth"]),
];

/// The first thing that is wrong with a member's text is told when the whole is compiled; here is what
/// belongs there at all.
fn check_auth(auth_type: &str, members: &BTreeMap<String, String>, faults: &mut Faults) {
    let known = MEMBERS.iter().find(|(name, ..)| *name == auth_type);
    let Some((_, needed, optional)) = known else { return };
    for name in needed.iter().filter(|name| !members.contains_key(**name)) {
        faults.add(&format!("auth_config.{name}"), format!("is missing: auth_type {auth_type} needs it"));
    }
    for (name, text) in members {
        let field = format!("auth_config.{name}");
        if !needed.contains(&name.as_str()) && !optional.contains(&name.as_str()) {
            faults.add(&field, format!("auth_type {auth_type} has no such member"));
        } else if text.contains('\0') {
            faults.add(&field, "must not contain the character NUL");
        }
    }
}

fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("maps with texts as keys can be written")
}
