//! Destinations that are written wrong: each fault is named, none repeats a secret.

use posthaste::model::{Destination, Secret};
use posthaste::outbound::Target;

use crate::{destination, open_network};

type Change = fn(&mut Destination);

/// What is written wrong, and what the message says. `hunter2` stands for every secret.
const FAULTS: &[(Change, &str)] = &[
    (|d| d.url = "no url".into(), "whitespace"),
    (|d| d.url = "example.com/hook".into(), "cannot be used"),
    (|d| d.url = "gopher://example.com/".into(), "only http and https"),
    (|d| d.url = "https://u:hunter2@example.com/".into(), "refused: use auth_type basic"),
    (|d| d.url = "http://10.0.0.1/".into(), "address 10.0.0.1 is refused: private network"),
    (|d| d.url = format!("https://example.com/{}", "x".repeat(8192)), "longer than 8192 bytes"),
    (|d| auth(d, "bearer", "{}"), r#"auth_type bearer needs the member "token""#),
    (|d| auth(d, "bearer", r#"{"token": ""}"#), "needs the member \"token\""),
    (|d| auth(d, "bearer", r#"{"token": 7}"#), "as a string"),
    (|d| auth(d, "bearer", "null"), "needs the member"),
    (|d| auth(d, "bearer", r#""hunter2""#), "auth_config is not a JSON object"),
    (
        |d| auth(d, "bearer", r#"{"token": "hunter2\r\nx: y"}"#),
        "auth_config.token: the value contains a control",
    ),
    (|d| auth(d, "basic", r#"{"username": "u"}"#), "needs the member \"password\""),
    (|d| auth(d, "basic", r#"{"password": "hunter2"}"#), "needs the member \"username\""),
    (|d| auth(d, "basic", r#"{"username": "a:b", "password": "hunter2"}"#), "colon"),
    (|d| auth(d, "header", r#"{"header_name": "x-a"}"#), "needs the member \"header_value\""),
    (|d| auth(d, "header", r#"{"header_value": "hunter2"}"#), "needs the member \"header_name\""),
    (|d| header(d, "x a", "hunter2"), "not a valid header name"),
    (|d| header(d, "x-a\\r\\nx-b", "hunter2"), "not a valid header name"),
    (|d| header(d, "x-a", "hunter2\\nx-b: c"), "auth_config.header_value: the value contains a control"),
    (|d| header(d, "Host", "hunter2"), "cannot set host"),
    (|d| header(d, "webhook-id", "hunter2"), "cannot set webhook-id"),
    (|d| auth(d, "oauth2", "{}"), "auth_type oauth2 needs the member \"token_url\""),
    (
        |d| oauth2(d, "https://example.com/", r#""client_secret": "hunter2""#),
        "needs the member \"client_id\"",
    ),
    (|d| oauth2(d, "https://example.com/", r#""client_id": "a""#), "needs the member \"client_secret\""),
    (
        |d| oauth2(d, "https://u:hunter2@example.com/", CLIENT),
        "auth_config.token_url: user name and password",
    ),
    (|d| oauth2(d, "http://169.254.169.254/", CLIENT), "auth_config.token_url: address 169.254.169.254 is"),
    (|d| oauth2(d, "file:///etc/passwd", CLIENT), "auth_config.token_url: the URL's scheme \"file\""),
    (|d| oauth2(d, "https://a b/", CLIENT), "auth_config.token_url: the URL cannot be used"),
    (|d| oauth2_with(d, r#""scope": ["hunter2"]"#), "auth_config.scope is not a string"),
    (|d| oauth2_with(d, r#""audience": 7"#), "auth_config.audience is not a string"),
    (|d| oauth2_with(d, r#""client_auth": "hunter2""#), "client_auth is neither basic nor post"),
    (
        |d| {
            oauth2(d, "https://example.com/", CLIENT);
            extra(d, r#"{"Authorization": "x"}"#);
        },
        "extra_headers cannot override authorization",
    ),
    (
        |d| {
            oauth2(d, "https://example.com/", CLIENT);
            hex(d, Some("authorization"));
        },
        "auth_config and the signature both want the header authorization",
    ),
    (|d| auth(d, "kerberos", "{}"), "auth_type \"kerberos\" is unknown"),
    (|d| extra(d, "[]"), "extra_headers is not a JSON object"),
    (|d| extra(d, r#"{"x-a": 1}"#), "the value of \"x-a\" is not a string"),
    (|d| extra(d, r#"{"x a": "hunter2"}"#), "not a valid header name"),
    (|d| extra(d, r#"{"x-a": "hunter2\r"}"#), "extra_headers: x-a: the value contains a control"),
    (|d| extra(d, r#"{"x-a": "hunter2\u0000"}"#), "extra_headers: x-a: the value contains a control"),
    (|d| extra(d, r#"{"Content-Type": "text/plain"}"#), "cannot set content-type"),
    (|d| extra(d, r#"{"content-length": "1"}"#), "cannot set content-length"),
    (|d| extra(d, r#"{"Transfer-Encoding": "chunked"}"#), "cannot set transfer-encoding"),
    (|d| extra(d, r#"{"Expect": "100-continue"}"#), "cannot set expect"),
    (|d| extra(d, r#"{"posthaste-attempt": "1"}"#), "cannot set posthaste-attempt"),
    (|d| extra(d, r#"{"Webhook-Signature": "x"}"#), "cannot set webhook-signature"),
    (
        |d| {
            auth(d, "bearer", r#"{"token": "hunter2"}"#);
            extra(d, r#"{"authorization": "x"}"#);
        },
        "extra_headers cannot override authorization",
    ),
    (
        |d| {
            hex(d, None);
            extra(d, r#"{"x-webhook-signature": "x"}"#);
        },
        "extra_headers cannot override x-webhook-signature",
    ),
    (|d| hex(d, Some("content-length")), "signature_header cannot be content-length"),
    (|d| hex(d, Some("x y")), "signature_header is not a valid header name"),
    (|d| d.settings.signature_scheme = "rot13".into(), "signature_scheme \"rot13\" is unknown"),
    (|d| d.signing_secret = Some(Secret::new("whsec_hunter2!")), "signing_secret cannot be decoded"),
    (
        |d| d.settings.previous_signing_secret = Some(Secret::new("whsec_hunter2!")),
        "previous_signing_secret cannot be decoded",
    ),
    (|d| d.settings.payload_format = "xml".into(), "payload_format \"xml\" is unknown"),
    (|d| d.settings.payload_format = "datadog".into(), "not available in this version"),
    (|d| d.settings.format_options = "7".into(), "format_options is not a JSON object"),
    (|d| d.settings.gzip = true, "gzip is not available in this version"),
    (|d| d.settings.tls_ca = Some("nonsense".into()), "tls_ca: holds no certificate"),
    (|d| d.settings.tls_client_cert = Some("nonsense".into()), "need each other"),
    (
        |d| {
            d.settings.tls_client_cert = Some("nonsense".into());
            d.settings.tls_client_key = Some(Secret::new("hunter2"));
        },
        "tls_client_cert: holds no certificate",
    ),
    (
        |d| {
            d.url = "http://example.com/".into();
            d.settings.tls_client_cert = Some("nonsense".into());
        },
        "tls_client_cert needs an https URL",
    ),
];

fn auth(destination: &mut Destination, auth_type: &str, config: &str) {
    destination.auth_type = auth_type.into();
    destination.auth_config = Secret::new(config);
}

const CLIENT: &str = r#""client_id": "a", "client_secret": "hunter2""#;

fn oauth2(destination: &mut Destination, token_url: &str, client: &str) {
    auth(destination, "oauth2", &format!(r#"{{"token_url": "{token_url}", {client}}}"#));
}

fn oauth2_with(destination: &mut Destination, member: &str) {
    oauth2(destination, "https://example.com/", &format!("{CLIENT}, {member}"));
}

fn header(destination: &mut Destination, name: &str, value: &str) {
    auth(destination, "header", &format!(r#"{{"header_name": "{name}", "header_value": "{value}"}}"#));
}

fn extra(destination: &mut Destination, headers: &str) {
    destination.settings.extra_headers = Secret::new(headers);
}

fn hex(destination: &mut Destination, header: Option<&str>) {
    destination.signing_secret = Some(Secret::new("hunter2"));
    destination.settings.signature_scheme = "hex".into();
    destination.settings.signature_header = header.map(str::to_owned);
}

#[test]
fn each_fault_is_named_and_repeats_no_secret() {
    let network = open_network();
    for (change, expected) in FAULTS {
        let mut destination = destination("https://example.com/hook".into());
        change(&mut destination);
        let Err(fault) = Target::compile(&destination, &network) else {
            panic!("no fault found where {expected:?} was expected");
        };
        let message = fault.to_string();
        assert!(message.contains(expected), "{expected:?} was expected, but it says: {message}");
        for shown in [message, format!("{fault:?}"), format!("{destination:?}")] {
            // The URL of a destination is no secret; userinfo in it is refused before anything can be logged.
            assert!(!shown.replace("u:hunter2@", "").contains("hunter2"), "{shown}");
        }
    }
}

#[test]
fn a_destination_without_fault_compiles_and_shows_no_secret() {
    let mut destination = destination("https://example.com/services/hunter2?key=hunter2".into());
    auth(&mut destination, "bearer", r#"{"token": "hunter2"}"#);
    extra(&mut destination, r#"{"x-key": "hunter2"}"#);
    destination.signing_secret = Some(Secret::new("hunter2"));
    let target = Target::compile(&destination, &open_network()).unwrap();
    assert!(!format!("{target:?}").contains("hunter2"), "{target:?}");
}
