//! A destination as it is shown.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};
use utoipa::ToSchema;
use uuid::Uuid;

use crate::manage::{Principal, why};
use crate::model::{DbTime, Settings};
use crate::store::destinations::managed::Written;

/// Members of `auth_config` that are no secrets.
const SHOWN_MEMBERS: [&str; 7] =
    ["username", "header_name", "token_url", "client_id", "scope", "audience", "client_auth"];

/// Members of `format_options` that are secrets, whatever the format: formats that carry a key in the body
/// have it there.
pub(super) const SECRET_OPTIONS: [&str; 5] = ["routing_key", "api_key", "token", "secret", "password"];

/// A destination as it is shown: without any secret.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = Destination)]
pub struct View {
    /// Its id.
    pub id: Uuid,
    /// The organization.
    pub org_id: Uuid,
    /// Its name.
    pub name: String,
    /// Where requests go. To keys that may only read, `?…` stands for the query.
    pub url: String,
    /// `none`, `bearer`, `basic`, `header` or `oauth2`.
    pub auth_type: String,
    /// The members of `auth_config` that are no secrets; `token_url` as `url`.
    pub auth_config: BTreeMap<String, String>,
    /// Types of events that it wants; empty: all.
    pub event_types: Vec<String>,
    /// What it wants of them; `{}`: everything. Null: it is larger than 64 KiB, and wants nothing.
    #[schema(value_type = Option<Object>)]
    pub event_filter: Option<Box<RawValue>>,
    /// Whether events are queued and sent.
    pub enabled: bool,
    /// When it was disabled, if that is known.
    #[schema(format = DateTime)]
    pub disabled_at: Option<String>,
    /// Why it was disabled.
    pub disabled_reason: Option<String>,
    /// How it is.
    pub health: HealthView,
    /// Events of one request.
    pub batch_size: u32,
    /// Limit of a request.
    pub timeout_ms: u64,
    /// Retries after the first attempt.
    pub retry_max: u32,
    /// Delay before the first retry.
    pub retry_backoff_ms: u64,
    /// Whether requests are signed.
    pub has_signing_secret: bool,
    /// Everything else.
    pub settings: SettingsView,
    /// When it was created.
    #[schema(format = DateTime)]
    pub created_at: String,
    /// When it was last written.
    #[schema(format = DateTime)]
    pub updated_at: String,
    /// Another one whenever it changes: an update can ask that it be still this one.
    pub version: String,
}

/// How a destination is.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = DestinationHealth)]
pub struct HealthView {
    /// `ok`, `failing`, `paused`, `tripped` or `disabled`.
    pub state: &'static str,
    /// The same in words, with since when, until when and why.
    #[schema(example = "tripped since 2026-01-31T12:00:00Z, next probe at 2026-01-31T12:05:00Z")]
    pub text: String,
}

/// The settings of a destination as they are shown.
#[derive(Clone, Debug, Serialize, ToSchema)]
#[schema(as = DestinationSettings)]
pub struct SettingsView {
    /// Name of the body's format.
    pub payload_format: String,
    /// Its options, without those that are secrets.
    #[schema(value_type = Object)]
    pub format_options: Box<RawValue>,
    /// Requests per second; null: any number.
    pub rate_limit_per_second: Option<f64>,
    /// Requests that may follow each other at once under that limit.
    pub rate_limit_burst: Option<u32>,
    /// Requests in flight; null: as the dispatcher is configured.
    pub max_in_flight: Option<u32>,
    /// One attempt at a time, in order.
    pub ordered: bool,
    /// How long a batch waits to fill.
    pub batch_wait_ms: u64,
    /// Events per request; null: `batch_size`.
    pub batch_max_events: Option<u32>,
    /// Bytes of JSON per request; null: as the dispatcher is configured.
    pub batch_max_bytes: Option<usize>,
    /// Older deliveries are given up; null: never.
    pub max_age_seconds: Option<u64>,
    /// The names of further headers. Their values are not shown.
    pub extra_header_names: Vec<String>,
    /// `standard` or `hex`.
    pub signature_scheme: String,
    /// Header of the `hex` scheme; null: its default.
    pub signature_header: Option<String>,
    /// Whether the secret before the last rotation signs, too.
    pub has_previous_signing_secret: bool,
    /// Until when it does; null: without an end, if there is one.
    #[schema(format = DateTime)]
    pub previous_secret_expires_at: Option<String>,
    /// Whether bodies are compressed.
    pub gzip: bool,
    /// Client certificate chain, PEM.
    pub tls_client_cert: Option<String>,
    /// Whether there is a key for it.
    pub has_tls_client_key: bool,
    /// Roots that are trusted instead of the system's, PEM.
    pub tls_ca: Option<String>,
}

impl View {
    pub(super) fn of(written: Written, principal: Principal) -> View {
        let version = version(&written);
        let health = health(&written, principal);
        let Written { destination, .. } = written;
        View {
            id: destination.id.0,
            org_id: destination.org.0,
            name: written.name,
            url: principal.url(destination.url),
            auth_type: destination.auth_type,
            auth_config: shown_members(destination.auth_config.reveal(), principal),
            event_types: written.event_types,
            event_filter: written.event_filter.map(raw),
            enabled: written.enabled,
            disabled_at: written.disabled_at.filter(|_| !written.enabled).map(DbTime::iso),
            health,
            disabled_reason: principal.optional_text(written.disabled_reason).filter(|_| !written.enabled),
            batch_size: destination.batch_size,
            timeout_ms: destination.timeout.as_millis() as u64,
            retry_max: destination.retry.max,
            retry_backoff_ms: destination.retry.backoff.as_millis() as u64,
            has_signing_secret: destination.signing_secret.is_some_and(|secret| !secret.reveal().is_empty()),
            settings: SettingsView::of(destination.settings),
            created_at: written.created_at.iso(),
            updated_at: written.updated_at.iso(),
            version,
        }
    }
}

impl SettingsView {
    fn of(settings: Settings) -> SettingsView {
        let headers = object(settings.extra_headers.reveal());
        SettingsView {
            payload_format: settings.payload_format,
            format_options: shown_options(&settings.format_options),
            rate_limit_per_second: settings.rate_limit_per_second,
            rate_limit_burst: settings.rate_limit_burst,
            max_in_flight: settings.max_in_flight,
            ordered: settings.ordered,
            batch_wait_ms: settings.batch_wait.as_millis() as u64,
            batch_max_events: settings.batch_max_events,
            batch_max_bytes: settings.batch_max_bytes,
            max_age_seconds: settings.max_age.map(|age| age.as_secs()),
            extra_header_names: headers.into_iter().map(|(name, _)| name).collect(),
            signature_scheme: settings.signature_scheme,
            signature_header: settings.signature_header,
            has_previous_signing_secret: settings.previous_signing_secret.is_some(),
            previous_secret_expires_at: settings.previous_secret_expires_at.map(DbTime::iso),
            gzip: settings.gzip,
            tls_client_cert: settings.tls_client_cert,
            has_tls_client_key: settings.tls_client_key.is_some(),
            tls_ca: settings.tls_ca,
        }
    }
}

/// How a destination is, in words.
pub(super) fn health(written: &Written, principal: Principal) -> HealthView {
    let Written { enabled, disabled_at, disabled_reason, saved, now, .. } = written;
    let disabled = (!enabled).then_some((*disabled_at, disabled_reason.as_deref()));
    let (state, text) = why::health(disabled, saved, *now);
    HealthView { state, text: principal.text(text) }
}

/// The version as it is shown: opaque, so that nobody counts on its form.
pub(super) fn version(written: &Written) -> String {
    format!("{:x}", written.version)
}

fn shown_members(config: &str, principal: Principal) -> BTreeMap<String, String> {
    let shown = object(config).into_iter().filter(|(name, _)| SHOWN_MEMBERS.contains(&name.as_str()));
    let shown = shown.filter_map(|(name, value)| match value {
        Value::String(url) if name == "token_url" => Some((name, principal.url(url))),
        Value::String(text) => Some((name, text)),
        _ => None,
    });
    shown.collect()
}

fn shown_options(options: &str) -> Box<RawValue> {
    let mut members: BTreeMap<String, Box<RawValue>> = serde_json::from_str(options).unwrap_or_default();
    members.retain(|name, _| !SECRET_OPTIONS.contains(&name.as_str()));
    raw(serde_json::to_string(&members).unwrap_or_default())
}

/// What is no object was written by SQL, and is of no use to anybody.
fn object(json: &str) -> Map<String, Value> {
    serde_json::from_str(json).unwrap_or_default()
}

fn raw(json: String) -> Box<RawValue> {
    RawValue::from_string(json).unwrap_or_else(|_| RawValue::NULL.to_owned())
}
