//! Receivers that repeat what they were sent, and secrets that they know: nobody sees these again.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use posthaste::model::{Answer, Destination, Secret};
use posthaste::outbound::KEPT_BODY_BYTES;

use crate::receiver::Receiver;
use crate::{attempt, destination, sender};

const TOKEN: &str = "a/token+with \"quotes\"&more";
const PASSWORD: &str = "pass:w\u{f6}rd<1>";
const VALUE: &str = "value-of-a-header/1";
const EXTRA: &str = "extra=header&value";
const CLIENT_SECRET: &str = "client secret %:+1";
const ACCESS_TOKEN: &str = "access/token+1==";
const SIGNING: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const PREVIOUS: &str = "previous secret/1";

/// `secret` as answers may write it, each time within something else.
fn written(secret: &str) -> String {
    let json = serde_json::to_string(secret).expect("a string").replace('/', "\\/");
    let ascii: String = secret.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    let form: String = url::form_urlencoded::byte_serialize(secret.as_bytes()).collect();
    let percent: String = secret.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let html = secret.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;");
    let hex: String = secret.bytes().map(|byte| format!("{byte:02x}")).collect();
    let inside = format!("me:{secret}:you");
    let base64 = [STANDARD.encode(secret), STANDARD.encode(&inside), URL_SAFE_NO_PAD.encode(&inside)];
    let upper = [secret.to_uppercase(), form.to_uppercase(), hex.to_uppercase()];
    let all = [secret.into(), json, ascii, form, percent, html, hex].into_iter().chain(base64).chain(upper);
    all.map(|text| format!("<<{text}>>\n")).collect()
}

/// What is kept of an answer that says `text`.
async fn kept(destination: impl Fn(String) -> Destination, text: &str) -> String {
    let answer = format!("HTTP/1.1 422 No\r\ncontent-length: {}\r\n\r\n{text}", text.len());
    let receiver = Receiver::answering(answer).await;
    match attempt(&sender(&destination(receiver.url()))).await {
        Answer::Response { status: 422, body, broken: None, .. } => body,
        answer => panic!("expected an answer, got {answer:?}"),
    }
}

fn with_auth(url: String, auth_type: &str, config: serde_json::Value) -> Destination {
    let mut destination = destination(url);
    destination.auth_type = auth_type.into();
    destination.auth_config = Secret::new(config.to_string());
    destination.settings.extra_headers = Secret::new(serde_json::json!({"x-extra": EXTRA}).to_string());
    destination.signing_secret = Some(Secret::new(SIGNING));
    destination.settings.previous_signing_secret = Some(Secret::new(PREVIOUS));
    destination
}

/// Fails if anything of `written(secret)` but its frame was kept.
async fn assert_hidden(make: impl Fn(String) -> Destination, secret: &str) {
    let text = written(secret);
    let body = kept(make, &format!("{text}the end")).await;
    let lines: Vec<&str> = body.lines().collect();
    assert_eq!(lines.len(), text.lines().count() + 1, "{body}");
    for (shown, written) in lines.iter().zip(text.lines()) {
        // Of base64, what belongs to the neighbours may be left.
        let left = shown.replace("***", "");
        assert!(shown.contains("***") && left.len() <= "<<bWU6OnlvdQ==>>".len(), "{written}: {shown}");
    }
    assert!(body.ends_with("\nthe end"), "{body}");
}

#[actix_rt::test]
async fn what_a_receiver_repeats_in_whatever_encoding_is_not_kept() {
    let auths = [
        ("bearer", serde_json::json!({"token": TOKEN}), TOKEN),
        ("basic", serde_json::json!({"username": "me", "password": PASSWORD}), PASSWORD),
        ("header", serde_json::json!({"header_name": "x-key", "header_value": VALUE}), VALUE),
    ];
    for (auth_type, config, secret) in auths {
        for secret in [secret, EXTRA, PREVIOUS, SIGNING.trim_start_matches("whsec_")] {
            assert_hidden(|url| with_auth(url, auth_type, config.clone()), secret).await;
        }
    }
    // The key itself is the base64 of nothing readable.
    let key = STANDARD.decode(SIGNING.trim_start_matches("whsec_")).expect("base64");
    let hex: String = key.iter().map(|byte| format!("{byte:02x}")).collect();
    let url_safe = URL_SAFE_NO_PAD.encode(&key);
    let make = |url| with_auth(url, "none", serde_json::json!({}));
    assert_eq!(kept(make, &format!("{SIGNING} {hex} {url_safe}")).await, "whsec_*** *** ***");
}

#[actix_rt::test]
async fn what_a_receiver_knows_of_a_token_and_its_client_is_not_kept() {
    let granted = serde_json::json!({"access_token": ACCESS_TOKEN}).to_string();
    let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{granted}", granted.len());
    for client_auth in ["basic", "post"] {
        let tokens = Receiver::answering(answer.clone()).await;
        let config = serde_json::json!({"token_url": tokens.url(), "client_id": "me",
            "client_secret": CLIENT_SECRET, "client_auth": client_auth});
        for secret in [ACCESS_TOKEN, CLIENT_SECRET, EXTRA] {
            assert_hidden(|url| with_auth(url, "oauth2", config.clone()), secret).await;
        }
    }
}

#[actix_rt::test]
async fn a_secret_that_begins_in_what_is_kept_is_not_kept_however_long_it_is_written() {
    let token: String = (0..4_000_u32).map(|n| char::from(b'a' + (n * n % 23) as u8)).collect();
    let escaped: String = token.bytes().map(|byte| format!("&#x{byte:04x};")).collect();
    for before in [0, 1, 4_000, KEPT_BODY_BYTES - 1, KEPT_BODY_BYTES] {
        let make = |url| with_auth(url, "bearer", serde_json::json!({"token": token}));
        let body = kept(make, &format!("{}{escaped}{}", "-".repeat(before), ".".repeat(100_000))).await;
        assert!(body.len() >= before && body.len() <= KEPT_BODY_BYTES, "{before}: {}", body.len());
        assert!(!body.contains("&#x") && body.starts_with(&"-".repeat(before)), "{before}: {body}");
    }
}

#[actix_rt::test]
async fn answers_without_secrets_are_kept_as_they_are() {
    let text =
        "{\"error\": \"a\\/b \\u00e9 %41 &amp; <b>\", \"token\": \"another\", \"n\": 12345678901234567890}";
    let make = |url| with_auth(url, "bearer", serde_json::json!({"token": TOKEN}));
    assert_eq!(kept(make, text).await, text);
    let make = |url| with_auth(url, "bearer", serde_json::json!({"token": TOKEN}));
    assert_eq!(kept(make, &text.repeat(100)).await, text.repeat(100)[..KEPT_BODY_BYTES]);
}
