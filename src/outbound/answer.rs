//! Reading an answer: a bounded prefix of its body as text that PostgreSQL can store.

use std::time::Duration;

use actix_http::Version;
use actix_http::error::PayloadError;
use actix_http::header;
use awc::ClientResponse;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::explain;
use super::phase::Phase;
use super::redact::Redactor;
use crate::clock;
use crate::model::Answer;

/// Bytes of a response body that are kept.
pub const KEPT_BODY_BYTES: usize = 4 * 1024;
/// Bytes of a response body that are read. Reading on, rather than hanging up after the kept ones, keeps the
/// connection usable; beyond this, a new connection is cheaper.
pub const READ_BODY_BYTES: usize = 64 * 1024;
/// How long the body of a 2xx is read on after its head, within the attempt's deadline. The delivery is made;
/// the rest is worth a moment, as it is kept for people to see and its end makes the connection usable again,
/// but a receiver that holds it open must not hold one of its destination's slots.
const ACCEPTED_BODY_TIME: Duration = Duration::from_secs(1);
/// Bytes of `Retry-After` that are looked at: a date has 29.
const RETRY_AFTER_BYTES: usize = 64;

/// What was read of a body.
pub(super) struct Body {
    /// Its beginning.
    pub(super) kept: Vec<u8>,
    /// Bytes that came, kept or not: up to [`READ_BODY_BYTES`], and more only if there were more.
    pub(super) seen: usize,
    /// Why reading failed, if it did.
    pub(super) broken: Option<String>,
}

/// Reads the answer whose head is `response`. The text that is kept of it is without the secrets that
/// `redactor` knows. `Retry-After` stays as it came: it is parsed, and shown to nobody.
pub(super) async fn read(
    mut response: ClientResponse,
    deadline: Instant,
    timeout: Duration,
    redactor: &Redactor,
) -> Answer {
    let status = response.status().as_u16();
    let retry_after = response.headers().get(header::RETRY_AFTER).map(|value| {
        let bytes = value.as_bytes();
        text(&bytes[..bytes.len().min(RETRY_AFTER_BYTES)], false)
    });
    // A secret that begins in what is kept must be known to its end.
    let most = READ_BODY_BYTES.min(KEPT_BODY_BYTES + redactor.reach());
    let (deadline, timeout) = match status {
        200..=299 => {
            let soon = Instant::from_std(clock::now() + ACCEPTED_BODY_TIME);
            (deadline.min(soon), timeout.min(ACCEPTED_BODY_TIME))
        }
        _ => (deadline, timeout),
    };
    let Body { kept, seen, broken } = body(&mut response, most, deadline, timeout).await;
    let is_cut = seen > kept.len() || broken.is_some();
    let body = redactor.beginning(text(&kept, is_cut), KEPT_BODY_BYTES, is_cut);
    let broken = broken.map(|why| redactor.redact(why));
    Answer::Response { status, body, retry_after, broken }
}

/// Reads the body that belongs to `response`, and keeps its first `most` bytes.
pub(super) async fn body(
    response: &mut ClientResponse,
    most: usize,
    deadline: Instant,
    timeout: Duration,
) -> Body {
    let mut body = Body { kept: Vec::new(), seen: 0, broken: None };
    body.broken = match tokio::time::timeout_at(deadline, drain(response, &mut body, most)).await {
        Ok(Ok(())) => None,
        Ok(Err(error)) if explain::is_closed(&error) && ends_with_connection(response) => None,
        Ok(Err(error)) => Some(explain::body(&error)),
        Err(_) => Some(Phase::Reading.timed_out(timeout)),
    };
    body
}

async fn drain(response: &mut ClientResponse, body: &mut Body, most: usize) -> Result<(), PayloadError> {
    while let Some(chunk) = response.next().await {
        let chunk = chunk?;
        let wanted = chunk.len().min(most - body.kept.len());
        body.kept.extend_from_slice(&chunk[..wanted]);
        body.seen += chunk.len();
        if body.seen > READ_BODY_BYTES {
            break;
        }
    }
    Ok(())
}

/// A body without a length ends where the connection ends.
fn ends_with_connection(response: &ClientResponse) -> bool {
    let headers = response.headers();
    response.version() <= Version::HTTP_10
        && !headers.contains_key(header::CONTENT_LENGTH)
        && !headers.contains_key(header::TRANSFER_ENCODING)
}

/// `bytes` as text: invalid UTF-8 replaced, NUL (which PostgreSQL cannot store) removed, and a character that
/// was `cut` in two at the end left out.
fn text(bytes: &[u8], cut: bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    let mut chunks = bytes.utf8_chunks().peekable();
    while let Some(chunk) = chunks.next() {
        text.extend(chunk.valid().split('\0'));
        let is_cut = cut && chunks.peek().is_none();
        if !chunk.invalid().is_empty() && !is_cut {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_become_text_that_can_be_stored() {
        assert_eq!(text(b"plain", false), "plain");
        assert_eq!(text(b"a\0b\0", false), "ab");
        assert_eq!(text(b"a\xffb\xc3", false), "a\u{fffd}b\u{fffd}");
        assert_eq!(text(b"a\xffb\xc3", true), "a\u{fffd}b");
    }
}
