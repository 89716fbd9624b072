//! The headers that differ from request to request.

use actix_http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, CONTROLS, utf8_percent_encode};
use sha2::{Digest as _, Sha256};

use super::client_credentials::Token;
use super::header_rules::TRACEPARENT;
use super::{Request, Target};
use crate::model::Delivery;

const WEBHOOK_ID: HeaderName = HeaderName::from_static("webhook-id");
const WEBHOOK_TIMESTAMP: HeaderName = HeaderName::from_static("webhook-timestamp");
const EVENT_TYPE: HeaderName = HeaderName::from_static("posthaste-event-type");
const DELIVERY_ID: HeaderName = HeaderName::from_static("posthaste-delivery-id");
const ATTEMPT: HeaderName = HeaderName::from_static("posthaste-attempt");
const BATCH_SIZE: HeaderName = HeaderName::from_static("posthaste-batch-size");

/// What a header cannot carry as it is, and `%` itself, so that decoding is possible.
const ENCODED: &AsciiSet = &CONTROLS.add(b' ').add(b'%');

/// Headers of `request`, which carries `token` and whose body is `body`.
pub(super) fn of_request(
    target: &Target,
    request: Request<'_>,
    token: Option<&Token>,
    body: &[u8],
) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(8);
    if let Some(token) = token {
        headers.insert(AUTHORIZATION, token.header.clone());
    }
    let timestamp = request.started_at.unix_seconds();
    let (id, trace) = match request.deliveries {
        [delivery] if !request.batch => {
            headers.insert(EVENT_TYPE, encoded(&delivery.event.event_type));
            headers.insert(DELIVERY_ID, ascii(delivery.id.to_string()));
            headers.insert(ATTEMPT, HeaderValue::from(request.attempt_number));
            (delivery.event.id.to_string(), delivery.id.0.as_u128())
        }
        deliveries => {
            headers.insert(BATCH_SIZE, HeaderValue::from(deliveries.len()));
            let digest = digest(deliveries);
            (format!("batch_{digest:032x}"), digest)
        }
    };
    // All zeros are no trace, says the standard.
    if !target.has_own_trace && trace != 0 {
        headers.insert(TRACEPARENT, traceparent(trace, fastrand::u64(1..)));
    }
    if let Some(name) = &target.signature_header
        && let Some((_, value)) = target.signer.sign(&id, timestamp, request.started_at, body)
    {
        headers.insert(name.clone(), ascii(value));
    }
    headers.insert(WEBHOOK_ID, ascii(id));
    headers.insert(WEBHOOK_TIMESTAMP, HeaderValue::from(timestamp));
    headers
}

/// The first 16 bytes of SHA-256 over the raw bytes of each delivery's id, in order: the id of a batch.
fn digest(deliveries: &[Delivery]) -> u128 {
    let mut hash = Sha256::new();
    for delivery in deliveries {
        hash.update(delivery.id.0.as_bytes());
    }
    let first = hash.finalize();
    u128::from_be_bytes(first[..16].try_into().expect("SHA-256 has 32 bytes"))
}

/// W3C Trace Context, version 00: all attempts of a delivery are one trace, each of them a span of its own.
/// Flagged as sampled: receivers that follow their parent keep what they note about a delivery.
fn traceparent(trace: u128, span: u64) -> HeaderValue {
    ascii(format!("00-{trace:032x}-{span:016x}-01"))
}

/// Any text as a value that decodes to it.
fn encoded(text: &str) -> HeaderValue {
    ascii(utf8_percent_encode(text, ENCODED).to_string())
}

fn ascii(text: String) -> HeaderValue {
    HeaderValue::try_from(text).expect("ids, numbers, base64 and percent-encoded text are visible ASCII")
}

#[cfg(test)]
mod tests {
    use percent_encoding::percent_decode;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_event_type_fits_into_a_header_and_comes_out_as_it_was(text in any::<String>()) {
            let value = encoded(&text);
            prop_assert!(value.as_bytes().iter().all(u8::is_ascii_graphic));
            prop_assert_eq!(percent_decode(value.as_bytes()).decode_utf8().unwrap(), text);
        }
    }
}
