//! From an answer to a [`Verdict`]. Three kinds of fault are kept apart: the event's, the destination's, and
//! ours.

use std::time::{Duration, SystemTime};

use crate::model::Answer;

/// Shortest pause that a `Retry-After` can ask for.
pub const MIN_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause that a `Retry-After` can ask for: nobody may switch a destination off for a week by mistake.
pub const MAX_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// What an answer means.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The receiver has it.
    Delivered,
    /// The receiver lives and does not want this event: charged.
    EventFailed,
    /// The receiver is in trouble, or we cannot reach it: charged, and it counts for the breaker.
    DestinationFailed,
    /// 410: the receiver wants nothing any more.
    Gone,
    /// The receiver wants a pause; `None` leaves its length to us. Not charged.
    Paused(Option<Duration>),
    /// A batch that may go through in parts: too large (413), or one of its events is bad (400, 422).
    Split,
    /// Our own trouble: charged to nobody.
    OurFault,
}

/// What `answer` to a request with `deliveries` deliveries means. `wall`, the time of day, is compared with
/// dates in `Retry-After`.
pub fn classify(answer: &Answer, deliveries: usize, wall: SystemTime) -> Verdict {
    // The status decides, whatever became of the body behind it.
    let (status, retry_after) = match answer {
        Answer::Failed(_) => return Verdict::DestinationFailed,
        Answer::OurFault(_) => return Verdict::OurFault,
        Answer::Response { status, retry_after, .. } => (*status, retry_after.as_deref()),
    };
    let pause = retry_after.and_then(|text| parse_retry_after(text, wall));
    match status {
        200..=299 => Verdict::Delivered,
        400 | 413 | 422 if deliveries > 1 => Verdict::Split,
        401 | 403 | 404 | 408 => Verdict::DestinationFailed,
        410 => Verdict::Gone,
        429 => Verdict::Paused(pause),
        503 if pause.is_some() => Verdict::Paused(pause),
        400..=499 => Verdict::EventFailed,
        _ => Verdict::DestinationFailed,
    }
}

/// What went wrong, for people.
pub fn message(answer: &Answer) -> String {
    match answer {
        Answer::Response { broken: Some(fault), status, .. } => {
            format!("the receiver answered {status}, but its answer broke off: {fault}")
        }
        Answer::Response { status, .. } => format!("the receiver answered {status}"),
        Answer::Failed(fault) | Answer::OurFault(fault) => fault.clone(),
    }
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds or an HTTP date; `None` when it is neither.
///
/// Clamped to [`MIN_PAUSE`] .. [`MAX_PAUSE`].
pub fn parse_retry_after(text: &str, wall: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let asked = if !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit()) {
        text.parse().map_or(MAX_PAUSE, Duration::from_secs)
    } else {
        httpdate::parse_http_date(text).ok()?.duration_since(wall).unwrap_or(MIN_PAUSE)
    };
    Some(asked.clamp(MIN_PAUSE, MAX_PAUSE))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn response(status: u16, retry_after: Option<&str>, broken: Option<&str>) -> Answer {
        Answer::Response {
            status,
            body: String::new(),
            retry_after: retry_after.map(Into::into),
            broken: broken.map(Into::into),
        }
    }

    #[test]
    fn every_status_has_its_verdict_whatever_becomes_of_the_body() {
        use Verdict::*;
        let table: [(u16, Option<&str>, usize, Verdict); 29] = [
            (200, None, 1, Delivered),
            (204, None, 100, Delivered),
            (299, None, 1, Delivered),
            (101, None, 1, DestinationFailed),
            (301, None, 1, DestinationFailed),
            (308, None, 1, DestinationFailed),
            (400, None, 1, EventFailed),
            (400, None, 2, Split),
            (401, None, 1, DestinationFailed),
            (403, None, 2, DestinationFailed),
            (404, None, 1, DestinationFailed),
            (405, None, 1, EventFailed),
            (405, None, 2, EventFailed),
            (408, None, 1, DestinationFailed),
            (409, None, 1, EventFailed),
            (410, None, 2, Gone),
            (413, None, 1, EventFailed),
            (413, None, 2, Split),
            (422, None, 1, EventFailed),
            (422, None, 7, Split),
            (429, None, 1, Paused(None)),
            (429, Some("7"), 2, Paused(Some(Duration::from_secs(7)))),
            (429, Some("soon"), 1, Paused(None)),
            (451, None, 1, EventFailed),
            (500, Some("7"), 1, DestinationFailed),
            (503, None, 1, DestinationFailed),
            (503, Some("0"), 1, Paused(Some(MIN_PAUSE))),
            (503, Some("99999999999999999999999"), 1, Paused(Some(MAX_PAUSE))),
            (599, None, 1, DestinationFailed),
        ];
        for (status, retry_after, deliveries, verdict) in table {
            for broken in [None, Some("reset")] {
                let answer = response(status, retry_after, broken);
                let found = classify(&answer, deliveries, SystemTime::UNIX_EPOCH);
                assert_eq!(found, verdict, "{status} {retry_after:?} {broken:?}");
            }
        }
    }

    #[test]
    fn faults_without_a_response_are_kept_apart() {
        let wall = SystemTime::UNIX_EPOCH;
        assert_eq!(classify(&Answer::Failed("x".into()), 1, wall), Verdict::DestinationFailed);
        assert_eq!(classify(&Answer::OurFault("x".into()), 1, wall), Verdict::OurFault);
    }

    #[test]
    fn what_became_of_the_body_is_told_beside_the_status() {
        assert_eq!(message(&response(400, None, None)), "the receiver answered 400");
        let broken = message(&response(400, None, Some("reset")));
        assert_eq!(broken, "the receiver answered 400, but its answer broke off: reset");
    }

    #[test]
    fn a_date_is_a_distance_from_now() {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777 - 90);
        let pause = parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", wall);
        assert_eq!(pause, Some(Duration::from_secs(90)));
        let later = wall + Duration::from_secs(500);
        assert_eq!(parse_retry_after("Sun, 06 Nov 1994 08:49:37 GMT", later), Some(MIN_PAUSE));
    }

    proptest! {
        #[test]
        fn no_header_breaks_the_limits(
            text in prop_oneof![
                ".{0,40}",
                " ?[-+]?[0-9]{0,40}(\\.[0-9]+)? ?",
                "(Sun|Mon|Xxx), [0-9]{2} (Nov|Feb|Xxx) [0-9]{4} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT",
                "Sunday, [0-9]{2}-Nov-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2} GMT",
            ],
        ) {
            if let Some(pause) = parse_retry_after(&text, SystemTime::UNIX_EPOCH) {
                prop_assert!((MIN_PAUSE..=MAX_PAUSE).contains(&pause));
            }
        }
    }
}
