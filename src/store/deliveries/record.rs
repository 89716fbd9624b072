//! Results: one statement writes many outcomes.

use std::borrow::Cow;
use std::collections::HashSet;

use sqlx::FromRow;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::LEASE;
use crate::model::{Change, DeliveryId, Outcome};
use crate::store::schema;
use crate::store::statement::Query;
use crate::store::{StoreError, in_time};

/// Outcomes that one record statement writes at most; see [`super::MAX_CLAIM_ROWS`].
pub const MAX_RECORD_ROWS: usize = 500;

/// The statement with three holes: what may be written, where that is read from, what comes back.
macro_rules! record {
    ($free:literal, $from:literal, $result:literal) => {
        concat!(
            "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
o AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::timestamp[], $3::text[], $4::int[], $5::bigint[], $6::timestamp[],
            $7::bool[], $8::int[], $9::text[], $10::text[], $11::int[], $12::int[])
        AS o(id, claimed_at, status, charge, delay_us, last_attempt_at, attempted,
            response_status, response_body, error_message, attempt, duration_ms)
),",
            $free,
            "
written AS (
    UPDATE public.webhook_deliveries d SET
        status = coalesce(o.status, d.status),
        attempts = coalesce(d.attempts, 0) + o.charge,
        last_attempt_at = o.last_attempt_at,
        -- later than last_attempt_at whatever the clocks do: a recorded failure is no lease
        next_retry_at = CASE WHEN o.delay_us IS NULL THEN d.next_retry_at
            ELSE greatest(c.now, o.last_attempt_at + interval '1 microsecond')
                + o.delay_us * interval '1 microsecond' END,
        response_status = CASE WHEN o.attempted THEN o.response_status ELSE d.response_status END,
        response_body = CASE WHEN o.attempted THEN o.response_body ELSE d.response_body END,
        error_message = CASE WHEN o.attempted OR o.status IS NOT NULL THEN o.error_message
            ELSE d.error_message END,
        delivered_at = CASE WHEN o.status = 'delivered' THEN c.now ELSE d.delivered_at END
    FROM ",
            $from,
            " CROSS JOIN clock c
    WHERE d.id = o.id AND CASE
        -- a fact, even when the lease was lost
        WHEN o.status = 'delivered' THEN d.status <> 'delivered'
        -- only while the lease is ours: nobody else has claimed or recorded since
        ELSE d.status IN ('pending', 'failed') AND d.last_attempt_at = o.claimed_at
            AND (d.next_retry_at IS NULL OR d.last_attempt_at >= d.next_retry_at) END
    RETURNING d.id, coalesce(d.created_at, '-infinity') AS created_at, o.charge, o.last_attempt_at,
        o.response_status, o.response_body,
        o.error_message, o.attempt, o.duration_ms
),
history AS (
    INSERT INTO public.posthaste_attempts
        (delivery_id, attempt, started_at, duration_ms, response_status, response_body, error_message,
        charged)
    SELECT w.id, w.attempt, w.last_attempt_at, w.duration_ms, w.response_status, w.response_body,
        w.error_message, w.charge > 0
    FROM written w
    WHERE w.attempt IS NOT NULL
      -- bounded: the first ones tell how it began, the row itself tells how it is
      -- counted by the index of each delivery's attempts: with a condition on started_at it could be that of
      -- all attempts
      AND (SELECT count(*) FILTER (WHERE h.started_at >= w.created_at)
           FROM public.posthaste_attempts h WHERE h.delivery_id = w.id) < 50
)
",
            $result
        )
    };
}

/// Parameters: one array per column of [`Outcome`]. Returns how many rows were written.
const RECORD: &str = record!("", "o", "SELECT count(*) FROM written");

/// As [`RECORD`], but waits for nobody: rows that somebody else has locked stay as they are. Returns these.
/// Locking rows before writing them costs a third more, so this is for when there are such rows.
const RECORD_UNLOCKED: &str = record!(
    "
free AS MATERIALIZED (
    SELECT o.* FROM o JOIN public.webhook_deliveries d ON d.id = o.id FOR NO KEY UPDATE OF d SKIP LOCKED
),",
    "free o",
    // NOT EXISTS would be a join, and these sessions hash none: millions of comparisons.
    "SELECT o.id FROM o JOIN public.webhook_deliveries d ON d.id = o.id
WHERE o.id NOT IN (SELECT free.id FROM free)"
);

/// Writes `outcomes` in one statement. Returns how many rows were written: fewer where a lease was lost, or
/// where the same outcome was written before. Writing twice changes nothing.
///
/// # Errors
/// Whatever the database says; the outcomes can be written again. After [`StoreError::Timeout`] the
/// connection must be dropped.
pub async fn record(connection: &mut PgConnection, outcomes: &[Outcome]) -> Result<u64, StoreError> {
    let written: i64 = in_time(bound(RECORD, outcomes).fetch_one(connection)).await?;
    Ok(written as u64)
}

/// Writes those of `outcomes` whose rows nobody has locked, in one statement. Returns the others.
///
/// # Errors
/// As [`record`].
pub async fn record_unlocked(
    connection: &mut PgConnection,
    outcomes: &[Outcome],
) -> Result<HashSet<DeliveryId>, StoreError> {
    let locked: Vec<Uuid> = in_time(bound(RECORD_UNLOCKED, outcomes).fetch_all(connection)).await?;
    Ok(locked.into_iter().map(DeliveryId).collect())
}

/// Parameters: deliveries, claim times, statuses, lease. A success is a fact also when its lease has ended.
const KEPT: &str = "
SELECT d.id FROM unnest($1::uuid[], $2::timestamp[], $3::text[]) AS o(id, claimed_at, status)
JOIN public.webhook_deliveries d ON d.id = o.id
WHERE d.status IN ('pending', 'failed')
  AND (d.last_attempt_at = o.claimed_at AND (d.next_retry_at IS NULL OR d.last_attempt_at >= d.next_retry_at)
       OR o.status = 'delivered' AND o.claimed_at < timezone('UTC', clock_timestamp()) - $4::interval)";

/// Those of `outcomes`, of which not all were written, that should have been: nobody else has claimed them
/// meanwhile. PostgreSQL says no word where a trigger, a rule or a policy leaves a row as it was.
///
/// # Errors
/// As [`record`].
pub async fn kept(
    connection: &mut PgConnection,
    outcomes: &[Outcome],
) -> Result<HashSet<DeliveryId>, StoreError> {
    let query = schema::query_scalar(KEPT)
        .bind(outcomes.iter().map(|o| o.delivery.0).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|o| o.claimed_at).collect::<Vec<_>>())
        .bind(outcomes.iter().map(|o| status(o.change)).collect::<Vec<_>>())
        .bind(LEASE);
    let kept: Vec<Uuid> = in_time(query.fetch_all(connection)).await?;
    Ok(kept.into_iter().map(DeliveryId).collect())
}

fn bound<T: 'static>(sql: &'static str, outcomes: &[Outcome]) -> Query<T>
where
    (T,): for<'r> FromRow<'r, PgRow>,
{
    fn column<'o, T>(outcomes: &[&'o Outcome], of: impl Fn(&'o Outcome) -> T) -> Vec<T> {
        outcomes.iter().map(|outcome| of(outcome)).collect()
    }
    let outcomes = &without_contradictions(outcomes);
    schema::query_scalar(sql)
        .bind(column(outcomes, |o| o.delivery.0))
        .bind(column(outcomes, |o| o.claimed_at))
        .bind(column(outcomes, |o| status(o.change)))
        .bind(column(outcomes, |o| i32::from(is_charged(o.change))))
        .bind(column(outcomes, |o| delay_micros(o.change)))
        .bind(column(outcomes, |o| o.last_attempt_at))
        .bind(column(outcomes, |o| o.change == Change::Delivered || o.failed.is_some()))
        .bind(column(outcomes, |o| o.response_status.map(i32::from)))
        .bind(column(outcomes, |o| storable(o.response_body.as_deref())))
        .bind(column(outcomes, |o| storable(o.error_message.as_deref())))
        .bind(column(outcomes, |o| o.failed.map(|f| f.number as i32)))
        .bind(column(outcomes, |o| o.failed.map(|f| f.duration.as_millis().min(i32::MAX as u128) as i32)))
}

/// PostgreSQL's text cannot hold NUL, and one bad message must not block two thousand good ones.
fn storable(text: Option<&str>) -> Option<Cow<'_, str>> {
    text.map(|text| match text.contains('\0') {
        true => text.replace('\0', "\u{fffd}").into(),
        false => text.into(),
    })
}

/// An UPDATE takes any one of several outcomes of a row. They can come together: a process that was stopped
/// for longer than its lease may have a success under the old one and something else under the new one.
fn without_contradictions(outcomes: &[Outcome]) -> Vec<&Outcome> {
    let is_success = |outcome: &Outcome| outcome.change == Change::Delivered;
    let delivered: HashSet<DeliveryId> =
        outcomes.iter().filter(|o| is_success(o)).map(|o| o.delivery).collect();
    outcomes.iter().filter(|o| is_success(o) || !delivered.contains(&o.delivery)).collect()
}

fn status(change: Change) -> Option<&'static str> {
    match change {
        Change::Delivered => Some("delivered"),
        Change::Failed { .. } => Some("failed"),
        Change::Dead { .. } => Some("dead"),
        Change::Postponed { .. } | Change::GivenBack => None,
    }
}

fn is_charged(change: Change) -> bool {
    matches!(change, Change::Delivered | Change::Failed { .. } | Change::Dead { charged: true })
}

fn delay_micros(change: Change) -> Option<i64> {
    match change {
        Change::Failed { delay } | Change::Postponed { delay } => Some(delay.as_micros() as i64),
        Change::Delivered | Change::Dead { .. } | Change::GivenBack => None,
    }
}
