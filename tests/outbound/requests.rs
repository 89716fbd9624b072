//! What is sent.

use posthaste::model::{Answer, DbTime, Secret};
use posthaste::outbound::Request;
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::sync::Arc;

use crate::receiver::{Received, Receiver};
use crate::{attempt, delivery, destination, now, response, sender};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn verify(secret: &str, received: &Received) {
    let headers = received
        .headers
        .iter()
        .map(|(name, value)| (name.parse().expect("a name"), value.parse().expect("a value")))
        .collect();
    let verifier = standardwebhooks::Webhook::new(secret).expect("a secret");
    verifier.verify(&received.body, &headers).expect("the official verifier accepts the request");
}

#[actix_rt::test]
async fn a_single_event_has_the_headers_and_the_body_of_the_contract() {
    let receiver = Receiver::answering(OK).await;
    let mut destination = destination(format!("http://{}/a/b?c=d%20e#f", receiver.addr));
    destination.signing_secret = Some(Secret::new(SECRET));
    destination.auth_type = "bearer".into();
    destination.auth_config = Secret::new(r#"{"token": "abc"}"#);
    destination.settings.extra_headers = Secret::new(r#"{"X-Team": "blue", "x-empty": ""}"#);
    let deliveries = [delivery(1)];
    let started_at = now();
    let request = Request { deliveries: &deliveries, batch: false, attempt_number: 3, started_at };
    let attempt = sender(&destination).attempt(request).await;
    assert_eq!((attempt.answer, attempt.started_at), (response(200, "ok"), started_at));

    let mut received = receiver.only();
    verify(SECRET, &received);
    assert_eq!(received.line, "POST /a/b?c=d%20e HTTP/1.1");
    for optional in ["date", "traceparent", "webhook-signature"] {
        received.headers.remove(optional);
    }
    let expected = [
        ("authorization", "Bearer abc".to_owned()),
        ("content-length", received.body.len().to_string()),
        ("content-type", "application/json".to_owned()),
        ("host", receiver.addr.to_string()),
        ("posthaste-attempt", "3".to_owned()),
        ("posthaste-delivery-id", deliveries[0].id.to_string()),
        ("posthaste-event-type", "tool_call".to_owned()),
        ("user-agent", format!("Posthaste/{}", posthaste::VERSION)),
        ("webhook-id", deliveries[0].event.id.to_string()),
        ("webhook-timestamp", started_at.unix_seconds().to_string()),
        ("x-empty", String::new()),
        ("x-team", "blue".to_owned()),
    ];
    let found: Vec<_> = received.headers.iter().map(|(n, v)| (n.as_str(), v.trim().to_owned())).collect();
    assert_eq!(found, expected);
    let body = String::from_utf8(received.body).unwrap();
    assert!(body.starts_with(r#"{"type":"tool_call","timestamp":"2025-12-23T16:02:19.890000Z","data":{"#));
    assert!(body.contains(r#""payload":{"n": 12345678901234567890.10},"#), "{body}");
}

#[actix_rt::test]
async fn a_batch_is_an_array_with_an_id_made_of_its_deliveries() {
    let receiver = Receiver::answering(OK).await;
    let mut destination = destination(receiver.url());
    destination.batch_size = 10;
    destination.signing_secret = Some(Secret::new(SECRET));
    let sender = sender(&destination);
    for size in [3, 1] {
        receiver.received.take();
        let deliveries: Vec<_> = (0..size).map(delivery).collect();
        let request = Request { deliveries: &deliveries, batch: true, attempt_number: 1, started_at: now() };
        assert_eq!(sender.attempt(request).await.answer, response(200, "ok"));

        let received = receiver.only();
        verify(SECRET, &received);
        let ids: Vec<u8> = deliveries.iter().flat_map(|d| *d.id.0.as_bytes()).collect();
        let hash: String = Sha256::digest(&ids)[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(received.headers["webhook-id"], format!("batch_{hash}"));
        assert_eq!(received.headers["posthaste-batch-size"], size.to_string());
        for single in ["posthaste-event-type", "posthaste-delivery-id", "posthaste-attempt"] {
            assert!(!received.headers.contains_key(single), "{single}");
        }
        let items: Vec<Value> = serde_json::from_slice(&received.body).unwrap();
        let sent: Vec<_> = items.iter().map(|item| item["data"]["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(sent, deliveries.iter().map(|d| d.event.id.to_string()).collect::<Vec<_>>());
    }
}

#[actix_rt::test]
async fn the_attempts_of_a_delivery_are_spans_of_one_trace_unless_the_destination_names_its_own() {
    let receiver = Receiver::answering(OK).await;
    let trace_of = async |destination: &posthaste::model::Destination, deliveries: &[_], batch| {
        receiver.received.take();
        let request = Request { deliveries, batch, attempt_number: 1, started_at: now() };
        assert_eq!(sender(destination).attempt(request).await.answer, response(200, "ok"));
        receiver.only().headers.remove("traceparent").unwrap()
    };
    let mut destination = destination(receiver.url());
    let mut spans = HashSet::new();
    for (count, batch) in [(1, false), (1, false), (3, true), (3, true)] {
        let deliveries: Vec<_> = (0..count).map(delivery).collect();
        let trace = trace_of(&destination, &deliveries, batch).await;
        let ["00", trace, span, "01"] = trace.split('-').collect::<Vec<_>>()[..] else { panic!("{trace}") };
        let expected = match batch {
            true => receiver.only().headers["webhook-id"].trim_start_matches("batch_").to_owned(),
            false => deliveries[0].id.0.simple().to_string(),
        };
        assert_eq!(trace, expected);
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        assert!(span.len() == 16 && span.bytes().all(is_hex) && span != "0".repeat(16), "{span}");
        assert!(spans.insert(span.to_owned()), "each attempt has its own span");
    }
    let own = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    destination.settings.extra_headers = Secret::new(format!(r#"{{"Traceparent": "{own}"}}"#));
    assert_eq!(trace_of(&destination, &[delivery(1)], false).await, own);
}

#[actix_rt::test]
async fn an_event_type_that_no_header_can_carry_is_percent_encoded() {
    let receiver = Receiver::answering(OK).await;
    let sender = sender(&destination(receiver.url()));
    for (event_type, encoded) in
        [("a b%\r\nx: y", "a%20b%25%0D%0Ax:%20y"), ("größe", "gr%C3%B6%C3%9Fe"), ("a.b_c", "a.b_c")]
    {
        receiver.received.take();
        let mut delivery = delivery(1);
        Arc::get_mut(&mut delivery.event).unwrap().event_type = event_type.into();
        let request = Request { deliveries: &[delivery], batch: false, attempt_number: 1, started_at: now() };
        sender.attempt(request).await;
        assert_eq!(receiver.only().headers["posthaste-event-type"], encoded);
    }
}

#[actix_rt::test]
async fn both_secrets_sign_until_the_old_one_expires() {
    const OLD: &str = "whsec_C2FVsBQIhrscChlQIMV+b5sSYspob7oD";
    let receiver = Receiver::answering(OK).await;
    let mut destination = destination(receiver.url());
    destination.signing_secret = Some(Secret::new(SECRET));
    destination.settings.previous_signing_secret = Some(Secret::new(OLD));
    for (expires, signatures) in [(DbTime(now().0 + 60_000_000), 2), (DbTime(now().0 - 1), 1)] {
        receiver.received.take();
        destination.settings.previous_secret_expires_at = Some(expires);
        attempt(&sender(&destination)).await;
        let received = receiver.only();
        verify(SECRET, &received);
        if signatures == 2 {
            verify(OLD, &received);
        }
        assert_eq!(received.headers["webhook-signature"].split(' ').count(), signatures);
    }
}

#[actix_rt::test]
async fn the_hex_scheme_replaces_the_standard_signature() {
    let receiver = Receiver::answering(OK).await;
    let mut destination = destination(receiver.url());
    destination.signing_secret = Some(Secret::new("a legacy secret"));
    destination.settings.signature_scheme = "hex".into();
    destination.settings.signature_header = Some("X-Hub-Signature-256".into());
    attempt(&sender(&destination)).await;
    let headers = receiver.only().headers;
    assert!(!headers.contains_key("webhook-signature"));
    assert_eq!(headers["x-hub-signature-256"].len(), "sha256=".len() + 64);
}

#[actix_rt::test]
async fn each_auth_type_sends_its_header() {
    let receiver = Receiver::answering(OK).await;
    for (auth_type, config, name, value) in [
        ("bearer", r#"{"token": "t"}"#, "authorization", "Bearer t"),
        ("basic", r#"{"username": "u", "password": "p:q"}"#, "authorization", "Basic dTpwOnE="),
        ("basic", r#"{"username": "u", "password": ""}"#, "authorization", "Basic dTo="),
        ("header", r#"{"header_name": "X-Key", "header_value": "k"}"#, "x-key", "k"),
        ("header", r#"{"header_name": "Authorization", "header_value": "k"}"#, "authorization", "k"),
    ] {
        receiver.received.take();
        let mut destination = destination(receiver.url());
        destination.auth_type = auth_type.into();
        destination.auth_config = Secret::new(config);
        attempt(&sender(&destination)).await;
        assert_eq!(receiver.only().headers[name], value);
    }
}

#[actix_rt::test]
async fn connections_are_used_again() {
    let receiver = Receiver::answering(OK).await;
    let sender = sender(&destination(receiver.url()));
    for _ in 0..5 {
        assert_eq!(attempt(&sender).await, response(200, "ok"));
    }
    assert_eq!(receiver.connections(), [0; 5]);
}

#[actix_rt::test]
async fn retry_after_is_passed_on_as_it_came() {
    let head =
        "HTTP/1.1 429 Slow Down\r\nretry-after: Wed, 21 Oct 2026 07:28:00 GMT\r\ncontent-length: 0\r\n\r\n";
    let receiver = Receiver::answering(head).await;
    let Answer::Response { status, retry_after, .. } = attempt(&sender(&destination(receiver.url()))).await
    else {
        panic!("expected a response");
    };
    assert_eq!((status, retry_after.as_deref()), (429, Some("Wed, 21 Oct 2026 07:28:00 GMT")));
}
