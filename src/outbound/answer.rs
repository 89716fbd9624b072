//! Reading an answer: a bounded prefix of its body as text that PostgreSQL can store.

use std::time::Duration;

use actix_http::Version;
use actix_http::error::PayloadError;
use actix_http::header::{self, HeaderValue};
use awc::ClientResponse;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures_util::StreamExt as _;
use tokio::time::Instant;

use super::explain;
use crate::model::Answer;

/// Bytes of a response body that are kept.
pub const KEPT_BODY_BYTES: usize = 4 * 1024;
/// Bytes of a response body that are read. Reading on, rather than hanging up after the kept ones, keeps the
/// connection usable; beyond this, a new connection is cheaper.
pub const READ_BODY_BYTES: usize = 64 * 1024;
/// Bytes of the shortest secret that is looked for in answers.
const LEAST_SECRET_BYTES: usize = 6;
/// Bytes of `Retry-After` that are looked at: a date has 29.
const RETRY_AFTER_BYTES: usize = 64;

/// The message of an attempt that ran out of time.
pub(super) fn timed_out(timeout: Duration) -> String {
    format!("timed out after {} ms", timeout.as_millis())
}

/// What a header with a secret proves, without the name of its scheme, and the password that stands in it.
/// Short ones are no secrets, and would be found everywhere.
pub(super) fn credentials(value: &HeaderValue) -> Vec<String> {
    let Ok(text) = std::str::from_utf8(value.as_bytes()) else { return Vec::new() };
    let basic = text.strip_prefix("Basic ").unwrap_or_default();
    let decoded = STANDARD.decode(basic).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    let password = decoded.as_deref().and_then(|both| both.split_once(':')).map(|(_, password)| password);
    let whole = ["Bearer ", "Basic "].iter().find_map(|scheme| text.strip_prefix(scheme)).unwrap_or(text);
    let long = [whole].into_iter().chain(password).filter(|secret| secret.len() >= LEAST_SECRET_BYTES);
    long.map(str::to_owned).collect()
}

/// What was read of a body.
pub(super) struct Body {
    /// Its beginning.
    pub(super) kept: Vec<u8>,
    /// Bytes that came, kept or not: up to [`READ_BODY_BYTES`], and more only if there were more.
    pub(super) seen: usize,
    /// Why reading failed, if it did.
    pub(super) broken: Option<String>,
}

/// Reads the answer whose head is `response`. What is kept of it is without `secrets`: a receiver may repeat
/// what it was sent, and whoever may read answers need not know it.
pub(super) async fn read(
    mut response: ClientResponse,
    deadline: Instant,
    timeout: Duration,
    secrets: &[&String],
) -> Answer {
    let status = response.status().as_u16();
    let retry_after = response.headers().get(header::RETRY_AFTER).map(|value| {
        let bytes = value.as_bytes();
        text(&bytes[..bytes.len().min(RETRY_AFTER_BYTES)], false)
    });
    // A secret that begins in what is kept must be known to its end.
    let longest = secrets.iter().map(|secret| secret.len()).max().unwrap_or(0);
    let Body { kept, seen, broken } = body(&mut response, KEPT_BODY_BYTES + longest, deadline, timeout).await;
    let body = beginning(text(&kept, seen > kept.len()), secrets);
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
        Err(_) => Some(format!("the body of the answer {}", timed_out(timeout))),
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

/// The first [`KEPT_BODY_BYTES`] of `text` without `secrets`, of which none is cut in two.
fn beginning(mut text: String, secrets: &[&String]) -> String {
    let floor = |text: &str, at: usize| (0..=at).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    let mut end = floor(&text, text.len().min(KEPT_BODY_BYTES));
    let across = |end: usize| {
        secrets.iter().find_map(|secret| {
            let from = floor(&text, end.saturating_sub(secret.len()));
            let mut at = text[from..].match_indices(secret.as_str()).map(|(at, _)| from + at);
            at.find(|at| *at < end && at + secret.len() > end)
        })
    };
    while let Some(start) = across(end) {
        end = start;
    }
    text.truncate(end);
    for secret in secrets {
        if text.contains(secret.as_str()) {
            text = text.replace(secret.as_str(), "***");
        }
    }
    // What stands for them may be longer than they are.
    text.truncate(floor(&text, text.len().min(KEPT_BODY_BYTES)));
    text
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
        // Replacement characters are longer than what they replace.
        assert!(beginning(text(&[0xff; KEPT_BODY_BYTES], false), &[]).len() <= KEPT_BODY_BYTES);
    }

    #[test]
    fn what_is_kept_holds_no_part_of_a_secret() {
        let secret = "abcdefghij".repeat(3);
        for before in 0..=KEPT_BODY_BYTES + 1 {
            // A character of two bytes may lie across the edge as well.
            let body =
                format!("{}{secret}{}", "ä".repeat(before / 2) + &"-".repeat(before % 2), "ü".repeat(9));
            let kept = beginning(body, &[&secret]);
            assert!(kept.len() <= KEPT_BODY_BYTES && !kept.contains("abc"), "after {before} bytes: {kept}");
            assert!(kept.len() + 1 >= before.min(KEPT_BODY_BYTES), "after {before} bytes: {}", kept.len());
        }
        let [short, long] = [String::from("abcdef"), "ab".repeat(300)];
        let body = format!("{}{short}{long}{short}{}", "-".repeat(KEPT_BODY_BYTES - 300), "-".repeat(5_000));
        let kept = beginning(body, &[&long, &short]);
        assert_eq!(kept, "-".repeat(KEPT_BODY_BYTES - 300) + "***");
    }

    #[test]
    fn credentials_are_what_is_secret_of_a_header() {
        let of = |text: &[u8]| credentials(&HeaderValue::from_bytes(text).expect("a value"));
        assert_eq!(of(b"Bearer a-token"), ["a-token"]);
        assert_eq!(of(b"Basic bWU6YS1wYXNzd29yZA=="), ["bWU6YS1wYXNzd29yZA==", "a-password"]);
        assert_eq!(of("a clé of ours".as_bytes()), ["a clé of ours"]);
        assert_eq!(of(b"short"), [""; 0]);
        assert_eq!(of(b"no \xff text"), [""; 0]);
    }
}
