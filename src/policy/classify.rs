//! From an answer to a [`Verdict`]. Three kinds of fault are kept apart: the event's, the destination's, and
//! ours.

use std::time::{Duration, SystemTime};

use jiff::Timestamp;
use jiff::fmt::rfc2822::DateTimeParser;

use crate::model::Answer;

/// Shortest pause that a `Retry-After` can ask for.
pub const MIN_PAUSE: Duration = Duration::from_secs(1);
/// Longest pause that a `Retry-After` can ask for: nobody may switch a destination off for a week by mistake.
pub const MAX_PAUSE: Duration = Duration::from_secs(24 * 3600);

/// Seconds from which a number is no distance but a time, in seconds since 1970: 31 years.
const LEAST_UNIX_TIME: f64 = 1e9;
/// And from which it is none again, to be nobody's surprise: 1000 years.
const MOST_UNIX_TIME: f64 = 32e9;

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

/// `Retry-After` (RFC 9110, section 10.2.3): seconds or an HTTP date, and what has one sensible reading
/// besides: fractions and units of seconds, a Unix time, dates of RFC 3339 and of RFC 2822 with their zones.
/// `None` when it is nothing of these.
///
/// Clamped to [`MIN_PAUSE`] .. [`MAX_PAUSE`].
pub fn parse_retry_after(text: &str, wall: SystemTime) -> Option<Duration> {
    let text = text.trim().trim_matches('"').trim();
    let until = |time: SystemTime| time.duration_since(wall).unwrap_or(MIN_PAUSE);
    let asked = match seconds(text) {
        Some(seconds) if (LEAST_UNIX_TIME..MOST_UNIX_TIME).contains(&seconds) => {
            until(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds))
        }
        Some(seconds) => Duration::try_from_secs_f64(seconds).unwrap_or(MAX_PAUSE),
        None => until(date(text)?),
    };
    Some(asked.clamp(MIN_PAUSE, MAX_PAUSE))
}

/// A number of seconds, written out: no exponents, no commas.
fn seconds(text: &str) -> Option<f64> {
    let units = ["seconds", "second", "secs", "sec", "s"];
    let number = units.iter().find_map(|unit| text.strip_suffix(unit)).unwrap_or(text).trim_end();
    let number = number.strip_prefix('+').unwrap_or(number);
    let is_number = number.starts_with(|c: char| c.is_ascii_digit())
        && number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    is_number.then(|| number.parse().ok())?
}

/// A time that says its zone.
fn date(text: &str) -> Option<SystemTime> {
    if let Ok(time) = httpdate::parse_http_date(text) {
        return Some(time);
    }
    let universal = text.strip_suffix(" UTC").map(|time| format!("{time} GMT"));
    let mail = || DateTimeParser::new().parse_timestamp(universal.as_deref().unwrap_or(text)).ok();
    text.parse::<Timestamp>().ok().or_else(mail).map(SystemTime::from)
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

    #[test]
    fn what_has_one_sensible_reading_is_understood() {
        // 2026-01-31T12:00:00Z, minus 300 s.
        let wall = SystemTime::UNIX_EPOCH + Duration::from_secs(1_769_860_800 - 300);
        for (text, seconds) in [
            ("300", Some(300.0)),
            (" 300 ", Some(300.0)),
            ("\"300\"", Some(300.0)),
            ("+300", Some(300.0)),
            ("300.5", Some(300.5)),
            ("300.", Some(300.0)),
            ("0.25", Some(1.0)),
            ("300s", Some(300.0)),
            ("300 seconds", Some(300.0)),
            ("1769860800", Some(300.0)),
            ("1769860800000", Some(86_400.0)),
            ("99999999999999999999999.5", Some(86_400.0)),
            ("2026-01-31T12:00:00Z", Some(300.0)),
            ("2026-01-31t12:00:00.500z", Some(300.5)),
            ("2026-01-31 13:00:00+01:00", Some(300.0)),
            ("2026-01-31T12:00:00+00:00", Some(300.0)),
            ("Sat, 31 Jan 2026 12:00:00 GMT", Some(300.0)),
            ("Sat, 31 Jan 2026 12:00:00 UTC", Some(300.0)),
            ("Sat, 31 Jan 2026 12:00:00 +0000", Some(300.0)),
            ("Sat, 31 Jan 2026 07:00:00 -0500", Some(300.0)),
            ("31 Jan 2026 12:00:00 +0000", Some(300.0)),
            ("2020-01-01T00:00:00Z", Some(1.0)),
            ("2999-01-01T00:00:00Z", Some(86_400.0)),
            // These have several readings, or none.
            ("2026-01-31T12:00:00", None),
            ("2026-01-31", None),
            ("01/02/2026 12:00:00", None),
            ("300,5", None),
            ("1.2.3", None),
            ("3e2", None),
            ("-300", None),
            ("0x10", None),
            ("inf", None),
            ("NaN", None),
            (".", None),
            ("", None),
            ("soon", None),
        ] {
            let found = parse_retry_after(text, wall);
            assert_eq!(found, seconds.map(Duration::from_secs_f64), "{text:?}");
        }
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
