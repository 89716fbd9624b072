//! Why something has not arrived, in a sentence: the one place that says so, to everybody.

use std::time::Duration;

use crate::model::{DbTime, Status};
use crate::policy::health::Saved;
use crate::store::deliveries::list::Listed;
use crate::store::deliveries::standing::{MOST_AHEAD, Standing, Unqueued};

/// A delivery that is due for so long, with nothing ahead of it, is not looked at by any dispatcher.
const UNATTENDED: Duration = Duration::from_secs(60);

/// Why a destination is disabled whose row was changed by SQL.
const BY_HAND: &str = "by hand";

/// Where a delivery is and what it waits for. `standing` is what is known of one that is open.
pub(super) fn delivery(one: &Listed, standing: Option<&Standing>) -> String {
    match (one.status, standing) {
        (Status::Delivered, _) => match one.delivered_at {
            Some(at) => format!("delivered at {}", second(at)),
            None => "delivered".into(),
        },
        (Status::Dead, _) => {
            let why = one.error_message.as_deref().unwrap_or("no reason is recorded");
            match one.attempts {
                0 => format!("dead before any attempt: {why}"),
                1 => format!("dead after 1 attempt: {why}"),
                attempts => format!("dead after {attempts} attempts: {why}"),
            }
        }
        (Status::Pending | Status::Failed, Some(standing)) => open(one, standing),
        // Settled, or deleted, between two statements.
        (Status::Pending | Status::Failed, None) => "it has just changed: look again".into(),
    }
}

/// What an open delivery waits for: of several reasons, the one that lasts longest without somebody's help.
fn open(one: &Listed, standing: &Standing) -> String {
    let now = standing.now;
    let saved = &standing.saved;
    let due = one.next_retry_at.unwrap_or(one.created_at);
    if !standing.enabled {
        return format!(
            "waits until its destination is enabled: {}",
            disabled(standing.disabled_at, standing.disabled_reason.as_deref())
        );
    }
    if let Some(fault) = &standing.fault {
        return format!("waits until this is corrected: {fault}");
    }
    if standing.is_leased {
        return match one.last_attempt_at {
            Some(at) => format!("is being sent since {}", second(at)),
            None => "is being sent".into(),
        };
    }
    if let Some(until) = saved.paused_until.filter(|until| *until > now) {
        return format!("waits until {}: the receiver asked for a pause", second(until));
    }
    if let Some(since) = saved.tripped_at {
        let failing = saved.failing_since.unwrap_or(since);
        let probe = match saved.next_probe_at.filter(|at| *at > now) {
            Some(at) => format!("next probe at {}", second(at)),
            None => "a probe is due".into(),
        };
        return format!(
            "waits until its destination recovers: the breaker tripped at {}, failing since {}; {probe}",
            second(since),
            second(failing)
        );
    }
    if let Some(head) = standing.head.filter(|head| *head != one.id) {
        return format!("waits behind delivery {head} in an ordered queue");
    }
    if due > now {
        return match &one.error_message {
            Some(error) if one.attempts > 0 => {
                let (n, most) = (one.attempts, standing.retry_max);
                format!("waits for retry {n} of {most} at {}: {error}", second(due))
            }
            Some(error) => format!("waits for its next attempt at {}: {error}", second(due)),
            None => format!("is due at {}", second(due)),
        };
    }
    due_now(standing, due)
}

/// What a delivery waits for that is due.
fn due_now(standing: &Standing, due: DbTime) -> String {
    let now = standing.now;
    let full = Duration::from_millis(standing.batch_wait_ms.max(0).unsigned_abs().into());
    if !full.is_zero() && due.after(full) > now {
        return format!("waits for a batch to fill, until {} at most", second(due.after(full)));
    }
    let since = second(due);
    let ahead = match standing.ahead {
        Some(0) if now.since(due) >= UNATTENDED && standing.rate_limit.is_none() => {
            return format!(
                "is due since {since}, and is the next: does a dispatcher run (posthaste serve)?"
            );
        }
        None | Some(0) => String::new(),
        Some(1) => ", behind 1 delivery of its destination".into(),
        Some(n) if n > MOST_AHEAD => format!(", behind more than {MOST_AHEAD} deliveries of its destination"),
        Some(n) => format!(", behind {n} deliveries of its destination"),
    };
    match standing.rate_limit {
        Some(limit) => {
            format!("is due since {since}{ahead}; the rate limit lets {limit} requests a second through")
        }
        None => format!("is due since {since}{ahead}"),
    }
}

/// Why a destination has no delivery of an event.
pub(super) fn unqueued(one: &Unqueued) -> String {
    let backfill = "posthaste events backfill queues it";
    let is_before = |time: Option<DbTime>| one.event_at.zip(time).is_some_and(|(event, time)| event < time);
    if !one.enabled {
        return format!("not queued: {}", disabled(one.disabled_at, one.disabled_reason.as_deref()));
    }
    if is_before(one.created_at) {
        let created = one.created_at.map(second).unwrap_or_default();
        return format!("not queued: the destination was created later, at {created}; {backfill}");
    }
    if is_before(one.pruned_until) {
        let until = one.pruned_until.map(second).unwrap_or_default();
        return format!("its delivery may be deleted: retention has deleted what was queued before {until}");
    }
    if !one.is_usable {
        return "not queued: the destination's event_filter or event_types cannot be used (posthaste check \
                says why)"
            .into();
    }
    if !one.wants_type {
        return format!("not queued: the type {} is not among the destination's event_types", one.event_type);
    }
    if !one.missing.is_empty() {
        let members: Vec<String> = one.missing.iter().map(|member| format!("{member:?}")).collect();
        let members = members.join(", ");
        return format!("not queued: the payload does not contain what event_filter wants at {members}");
    }
    if !one.holds {
        return "not queued: the $jsonpath of event_filter does not hold for the event".into();
    }
    let was_disabled = is_before(one.enabled_at) && !is_before(one.was_disabled_at);
    if let Some(until) = one.enabled_at.filter(|_| was_disabled) {
        let from = one.was_disabled_at.map(|from| format!("from {} ", second(from))).unwrap_or_default();
        return format!("not queued: the destination was disabled {from}until {}; {backfill}", second(until));
    }
    if is_before(one.updated_at) {
        let changed = one.updated_at.map(second).unwrap_or_default();
        return format!(
            "not queued: the destination was changed after the event, at {changed}, and did not want it \
             before; {backfill}"
        );
    }
    format!("not queued, although it would be today: it was written past the trigger; {backfill}")
}

/// How a destination is: a word for it, and a sentence. `disabled`: since when and why it is.
pub(super) fn health(
    disabled: Option<(Option<DbTime>, Option<&str>)>,
    saved: &Saved,
    now: DbTime,
) -> (&'static str, String) {
    if let Some((at, reason)) = disabled {
        let since = at.map(|at| format!(" since {}", second(at))).unwrap_or_default();
        return ("disabled", format!("disabled{since}: {}", reason.unwrap_or(BY_HAND)));
    }
    if let Some(since) = saved.tripped_at {
        let probe = match saved.next_probe_at.filter(|at| *at > now) {
            Some(at) => format!("next probe at {}", second(at)),
            None => "a probe is due".into(),
        };
        return ("tripped", format!("tripped since {}, {probe}", second(since)));
    }
    if let Some(until) = saved.paused_until.filter(|until| *until > now) {
        return ("paused", format!("paused by the receiver until {}", second(until)));
    }
    match saved.failing_since {
        Some(since) => ("failing", format!("failing since {}", second(since))),
        None => ("ok", "ok".into()),
    }
}

/// That a destination is disabled, since when and why, as far as it is known.
fn disabled(at: Option<DbTime>, reason: Option<&str>) -> String {
    let since = at.map(|at| format!(" since {}", second(at))).unwrap_or_default();
    format!("the destination is disabled{since}: {}", reason.unwrap_or(BY_HAND))
}

/// A time for people: to the second.
pub(super) fn second(time: DbTime) -> String {
    let iso = time.iso();
    match iso.split_once('.') {
        Some((second, _)) => format!("{second}Z"),
        None => iso,
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::model::{DeliveryId, DestinationId, EventId};

    const NOW: DbTime = DbTime(1_800_000_000_000_000);

    fn ago(seconds: u64) -> DbTime {
        DbTime(NOW.0 - i64::try_from(seconds).expect("a test's number") * 1_000_000)
    }

    fn ahead(seconds: u64) -> DbTime {
        NOW.after(Duration::from_secs(seconds))
    }

    fn failed() -> Listed {
        Listed {
            id: DeliveryId(Uuid::from_u128(1)),
            destination: DestinationId(Uuid::from_u128(2)),
            event: EventId(Uuid::from_u128(3)),
            event_type: "a".into(),
            status: Status::Failed,
            attempts: 2,
            last_attempt_at: Some(ago(30)),
            next_retry_at: Some(ahead(5)),
            response_status: Some(503),
            error_message: Some("the receiver answered 503".into()),
            created_at: ago(60),
            delivered_at: None,
        }
    }

    fn standing() -> Standing {
        Standing { now: NOW, enabled: true, retry_max: 3, ahead: Some(0), ..Standing::default() }
    }

    #[test]
    fn an_open_delivery_says_what_it_waits_for() {
        let due = || Listed { next_retry_at: Some(ago(30)), ..failed() };
        let paused = Saved { paused_until: Some(ahead(60)), ..Saved::default() };
        let tripped = |probe| Saved {
            tripped_at: Some(ago(100)),
            failing_since: Some(ago(200)),
            next_probe_at: Some(probe),
            ..Saved::default()
        };
        let table = [
            (
                failed(),
                standing(),
                "waits for retry 2 of 3 at 2027-01-15T08:00:05Z: the receiver answered 503",
            ),
            (
                Listed { attempts: 0, ..failed() },
                standing(),
                "waits for its next attempt at 2027-01-15T08:00:05Z: the receiver answered 503",
            ),
            (Listed { error_message: None, ..failed() }, standing(), "is due at 2027-01-15T08:00:05Z"),
            (
                failed(),
                Standing { enabled: false, disabled_at: Some(ago(9)), ..standing() },
                "waits until its destination is enabled: the destination is disabled since \
                 2027-01-15T07:59:51Z: by hand",
            ),
            (
                failed(),
                Standing { enabled: false, disabled_reason: Some("410".into()), ..standing() },
                "waits until its destination is enabled: the destination is disabled: 410",
            ),
            (
                failed(),
                Standing { fault: Some("permission denied".into()), ..standing() },
                "waits until this is corrected: permission denied",
            ),
            (due(), Standing { is_leased: true, ..standing() }, "is being sent since 2027-01-15T07:59:30Z"),
            (
                due(),
                Standing { saved: paused, ..standing() },
                "waits until 2027-01-15T08:01:00Z: the receiver asked for a pause",
            ),
            (
                due(),
                Standing { saved: tripped(ahead(7)), ..standing() },
                "waits until its destination recovers: the breaker tripped at 2027-01-15T07:58:20Z, failing \
                 since 2027-01-15T07:56:40Z; next probe at 2027-01-15T08:00:07Z",
            ),
            (
                due(),
                Standing { saved: tripped(ago(1)), ..standing() },
                "waits until its destination recovers: the breaker tripped at 2027-01-15T07:58:20Z, failing \
                 since 2027-01-15T07:56:40Z; a probe is due",
            ),
        ];
        for (one, standing, expected) in table {
            assert_eq!(delivery(&one, Some(&standing)), expected);
        }
    }

    #[test]
    fn a_due_delivery_says_what_is_before_it() {
        let due = || Listed { next_retry_at: Some(ago(30)), ..failed() };
        let head = Some(DeliveryId(Uuid::from_u128(9)));
        let table = [
            (
                due(),
                Standing { head, ..standing() },
                "waits behind delivery 00000000-0000-0000-0000-000000000009 in an ordered queue",
            ),
            (
                due(),
                Standing { batch_wait_ms: 60_000, ..standing() },
                "waits for a batch to fill, until 2027-01-15T08:00:30Z at most",
            ),
            (
                due(),
                Standing { rate_limit: Some(0.5), ahead: Some(7), ..standing() },
                "is due since 2027-01-15T07:59:30Z, behind 7 deliveries of its destination; the rate limit \
                 lets 0.5 requests a second through",
            ),
            (
                due(),
                Standing { ahead: Some(MOST_AHEAD + 1), ..standing() },
                "is due since 2027-01-15T07:59:30Z, behind more than 1000 deliveries of its destination",
            ),
            (due(), standing(), "is due since 2027-01-15T07:59:30Z"),
            (
                Listed { next_retry_at: Some(ago(61)), ..failed() },
                standing(),
                "is due since 2027-01-15T07:58:59Z, and is the next: does a dispatcher run (posthaste \
                 serve)?",
            ),
        ];
        for (one, standing, expected) in table {
            assert_eq!(delivery(&one, Some(&standing)), expected);
        }
    }

    #[test]
    fn a_settled_delivery_says_how_it_ended() {
        let with = |status, attempts| Listed { status, attempts, delivered_at: Some(ago(1)), ..failed() };
        for (one, expected) in [
            (with(Status::Delivered, 1), "delivered at 2027-01-15T07:59:59Z"),
            (with(Status::Dead, 0), "dead before any attempt: the receiver answered 503"),
            (with(Status::Dead, 1), "dead after 1 attempt: the receiver answered 503"),
            (with(Status::Dead, 4), "dead after 4 attempts: the receiver answered 503"),
        ] {
            assert_eq!(delivery(&one, None), expected);
        }
    }

    #[test]
    fn an_event_without_a_delivery_says_why() {
        let wanted = || Unqueued {
            destination: DestinationId(Uuid::from_u128(2)),
            name: "one".into(),
            created_at: Some(ago(1_000)),
            updated_at: Some(ago(1_000)),
            enabled: true,
            disabled_at: None,
            disabled_reason: None,
            enabled_at: None,
            was_disabled_at: None,
            pruned_until: None,
            event_at: Some(ago(100)),
            event_type: "user.created".into(),
            is_usable: true,
            wants_type: true,
            missing: Vec::new(),
            holds: true,
        };
        let table = [
            (
                Unqueued { enabled: false, disabled_at: Some(ago(200)), is_usable: false, ..wanted() },
                "not queued: the destination is disabled since 2027-01-15T07:56:40Z: by hand",
            ),
            (
                Unqueued { created_at: Some(ago(50)), ..wanted() },
                "not queued: the destination was created later, at 2027-01-15T07:59:10Z; posthaste events \
                 backfill queues it",
            ),
            (
                Unqueued { pruned_until: Some(ago(50)), ..wanted() },
                "its delivery may be deleted: retention has deleted what was queued before \
                 2027-01-15T07:59:10Z",
            ),
            (
                Unqueued { is_usable: false, ..wanted() },
                "not queued: the destination's event_filter or event_types cannot be used (posthaste check \
                 says why)",
            ),
            (
                Unqueued { wants_type: false, ..wanted() },
                "not queued: the type user.created is not among the destination's event_types",
            ),
            (
                Unqueued { missing: vec!["a".into(), "b".into()], ..wanted() },
                "not queued: the payload does not contain what event_filter wants at \"a\", \"b\"",
            ),
            (
                Unqueued { holds: false, ..wanted() },
                "not queued: the $jsonpath of event_filter does not hold for the event",
            ),
            (
                Unqueued { enabled_at: Some(ago(50)), was_disabled_at: Some(ago(200)), ..wanted() },
                "not queued: the destination was disabled from 2027-01-15T07:56:40Z until \
                 2027-01-15T07:59:10Z; posthaste events backfill queues it",
            ),
            (
                Unqueued { enabled_at: Some(ago(50)), was_disabled_at: Some(ago(70)), ..wanted() },
                "not queued, although it would be today: it was written past the trigger; posthaste events \
                 backfill queues it",
            ),
            (
                Unqueued { updated_at: Some(ago(50)), ..wanted() },
                "not queued: the destination was changed after the event, at 2027-01-15T07:59:10Z, and did \
                 not want it before; posthaste events backfill queues it",
            ),
        ];
        for (one, expected) in table {
            assert_eq!(unqueued(&one), expected);
        }
    }

    #[test]
    fn the_health_of_a_destination_is_a_word_and_a_sentence() {
        let saved = Saved {
            paused_until: Some(ahead(60)),
            tripped_at: Some(ago(100)),
            next_probe_at: Some(ahead(7)),
            failing_since: Some(ago(200)),
            last_success_at: None,
        };
        let table = [
            (
                Some((Some(ago(9)), Some("410"))),
                saved,
                "disabled",
                "disabled since 2027-01-15T07:59:51Z: 410",
            ),
            (
                None,
                saved,
                "tripped",
                "tripped since 2027-01-15T07:58:20Z, next probe at 2027-01-15T08:00:07Z",
            ),
            (
                None,
                Saved { tripped_at: None, ..saved },
                "paused",
                "paused by the receiver until 2027-01-15T08:01:00Z",
            ),
            (
                None,
                Saved { tripped_at: None, paused_until: Some(ago(1)), ..saved },
                "failing",
                "failing since 2027-01-15T07:56:40Z",
            ),
            (None, Saved::default(), "ok", "ok"),
        ];
        for (disabled, saved, state, text) in table {
            assert_eq!(health(disabled, &saved, NOW), (state, text.to_owned()));
        }
    }
}
