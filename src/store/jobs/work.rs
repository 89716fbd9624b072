//! Working on jobs, a batch at a time.
//!
//! A batch locks the job's row, goes on from where it says, and moves it on, all in one statement: after a
//! crash nothing is done twice and nothing is left out, and any number of processes may work on the same job
//! without knowing of each other.
//!
//! **Where the rows of a replay go.** Claims take what has been due for the longest, so a delivery that falls
//! due now waits for everything of its destination that was due before. A hundred thousand rows queued at
//! once would all stand before the next live one. Therefore a batch is small, its rows fall due one by one
//! until the next batch, and where the destination has not taken the last one by then, there is a long pause:
//! a live delivery finds one or two before it. Other destinations do not notice, as claims are fair.
//!
//! A replay needs no end of its own: rows that are queued again get a new `created_at`, and so leave the
//! range.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::{Kind, Spec, State, names, read_kind, read_state};
use crate::model::{DbTime, JobId};
use crate::store::deliveries::{LEASE, not_leased, requeued};
use crate::store::events::timed_events;
use crate::store::page::Position;
use crate::store::schema;
use crate::store::{StoreError, in_time};

/// Rows that one statement of a dry run looks at.
const COUNTED_AT_ONCE: i32 = 10_000;

/// How fast a job may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// Deliveries that one batch queues at most; eight times as many where no event was written for a minute,
    /// and those of one request where that takes more.
    pub rows: i32,
    /// Rows that one batch looks at, where not all that it looks at are queued.
    pub look: i32,
    /// Until the next batch. The deliveries of a batch fall due within it, one after the other.
    pub pause: Duration,
    /// Until the next batch where the destination has not taken the last one.
    pub patience: Duration,
}

/// One of each organization, so that they take turns.
const WAITING: &str = "
    SELECT o.id, o.kind,
        greatest(extract(epoch FROM o.resume_at - timezone('UTC', clock_timestamp())), 0)::float8
    FROM (SELECT DISTINCT ON (j.org_id) j.id, j.kind, j.resume_at FROM public.posthaste_jobs j
          WHERE j.state = 'running' ORDER BY j.org_id, j.resume_at) o
    ORDER BY o.resume_at LIMIT 1000";

/// The running jobs whose turn it is next, one of each organization, each with how long it has to wait; those
/// that wait for the longest first.
///
/// # Errors
/// Whatever the database says.
pub async fn waiting(db: &mut PgConnection) -> Result<Vec<(JobId, Kind, Duration)>, StoreError> {
    let rows: Vec<(Uuid, String, f64)> = in_time(schema::query_as(WAITING).fetch_all(db)).await?;
    let read = |(id, kind, seconds): (Uuid, String, f64)| {
        let wait = Duration::try_from_secs_f64(seconds).unwrap_or_default();
        Ok((JobId(id), read_kind(&kind)?, wait))
    };
    Ok(rows.into_iter().map(read).collect::<Result<_, sqlx::Error>>()?)
}

/// The job's row, locked, if it may go on now. A row that another process has locked is being worked on.
/// Where the organization has written no event for a while, there is little to be in the way of.
macro_rules! job {
    () => {
        concat!("clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
job AS MATERIALIZED (
    SELECT j.*, d.enabled IS NOT FALSE AS enabled, r.rows, $4::interval / r.rows AS spacing,
        -- where all that it looks at is queued, it need not look further
        CASE WHEN j.kind = 'replay' AND j.event_type IS NULL THEN r.rows ELSE greatest(r.rows, $3::int) END
            AS look
    FROM public.posthaste_jobs j JOIN public.webhook_destinations d ON d.id = j.destination_id
    CROSS JOIN clock c CROSS JOIN LATERAL (
        SELECT greatest(d.batch_size, $2::int * CASE WHEN EXISTS (
            SELECT FROM ", timed_events!(), "
            WHERE l.org_id = d.org_id AND o.created_at > c.now - interval '1 minute'
        ) THEN 1 ELSE 8 END) AS rows
    ) r
    WHERE j.id = $1 AND j.state = 'running' AND j.resume_at <= c.now
    FOR UPDATE OF j SKIP LOCKED
)")
    };
}

/// The end of a batch: moves the job on by `step(seen, queued, last_at, last_id, finished)`.
macro_rules! moved {
    () => {
        "backlog AS (
    SELECT count(*) AS rows FROM job j CROSS JOIN LATERAL (
        SELECT FROM public.webhook_deliveries w CROSS JOIN clock c
        WHERE w.destination_id = j.destination_id AND w.status IN ('pending', 'failed')
          AND w.next_retry_at <= c.now
        LIMIT (SELECT rows FROM job)
    ) due
),
moved AS (
    UPDATE public.posthaste_jobs m SET
        after_at = coalesce(s.last_at, m.after_at), after_id = coalesce(s.last_id, m.after_id),
        seen = m.seen + coalesce(s.seen, 0), queued = m.queued + coalesce(s.queued, 0),
        state = CASE WHEN s.finished IS NULL THEN 'failed' WHEN s.finished THEN 'done' ELSE 'running' END,
        error = CASE WHEN s.finished IS NULL THEN 'the destination is disabled, or its event_filter cannot '
            'be used (posthaste check says why): correct that and start again' END,
        failures = 0,
        resume_at = c.now + CASE WHEN j.enabled AND b.rows >= j.rows THEN $5::interval ELSE $4::interval END,
        updated_at = c.now
    FROM job j LEFT JOIN step s ON true CROSS JOIN backlog b CROSS JOIN clock c
    WHERE m.id = j.id
    RETURNING m.state
)
SELECT m.state, coalesce(s.queued, 0)::bigint,
    CASE WHEN s.queued > 0 THEN pg_notify('posthaste_wake', j.destination_id::text)::text END
FROM moved m CROSS JOIN job j LEFT JOIN step s ON true"
    };
}

/// Parameters: job, rows to queue, rows to look at, pause, patience, length of a lease.
const REPLAY: &str = concat!(
    "WITH ",
    job!(),
    ",
looked AS MATERIALIZED (
    SELECT p.* FROM job j CROSS JOIN LATERAL (
        SELECT q.* FROM unnest(j.statuses) AS s (status) CROSS JOIN LATERAL (
            SELECT w.created_at, w.id FROM public.webhook_deliveries w
            WHERE w.destination_id = j.destination_id AND w.status = s.status
              AND w.status IN ('delivered', 'failed', 'dead')
              AND w.created_at < j.range_to AND (w.created_at, w.id) > (j.after_at, j.after_id)
            ORDER BY w.created_at, w.id LIMIT (SELECT look FROM job)
        ) q ORDER BY q.created_at, q.id LIMIT (SELECT look FROM job)
    ) p
),
picked AS MATERIALIZED (
    SELECT w.id, k.created_at
    FROM looked k JOIN public.webhook_deliveries w ON w.id = k.id CROSS JOIN job j CROSS JOIN clock c
    WHERE w.status = ANY (j.statuses)
      AND (j.event_type IS NULL OR EXISTS (
          SELECT FROM public.activity_logs l WHERE l.id = w.log_id AND l.event_type = j.event_type))
      AND ",
    not_leased!("$6"),
    "
    ORDER BY k.created_at, k.id LIMIT (SELECT rows FROM job)
    FOR NO KEY UPDATE OF w
),
",
    requeued!("(SELECT spacing FROM job)"),
    ",
-- as far as it was picked when there was more than enough, else as far as it was looked
last AS MATERIALIZED (
    SELECT l.* FROM (
        (SELECT created_at, id, true AS enough FROM picked
         WHERE (SELECT count(*) FROM picked) = (SELECT rows FROM job)
         ORDER BY created_at DESC, id DESC LIMIT 1)
        UNION ALL
        (SELECT created_at, id, false FROM looked ORDER BY created_at DESC, id DESC LIMIT 1)
    ) l ORDER BY l.enough DESC LIMIT 1
),
step AS MATERIALIZED (
    SELECT (SELECT count(*) FROM looked k, last l
            WHERE (k.created_at, k.id) <= (l.created_at, l.id)) AS seen,
        (SELECT count(*) FROM requeued) AS queued,
        (SELECT created_at FROM last) AS last_at, (SELECT id FROM last) AS last_id,
        (SELECT count(*) FROM looked) < (SELECT look FROM job)
            AND NOT coalesce((SELECT enough FROM last), false) AS finished
),
",
    moved!()
);

const BACKFILL: &str = concat!(
    "WITH ",
    job!(),
    ",
step AS MATERIALIZED (
    SELECT b.* FROM job j CROSS JOIN LATERAL public.posthaste_backfill(
        j.destination_id, j.range_to, j.after_at, j.after_id, j.rows, j.look, j.spacing) b
),
",
    moved!()
);

/// Does the next batch of a job: one statement. Returns the state after it; `None`: it is not its turn, or
/// another process is at it.
///
/// # Errors
/// Whatever the database says; nothing was done then, or the answer was lost: doing the next batch is right
/// either way.
pub async fn work(
    db: &mut PgConnection,
    id: JobId,
    kind: Kind,
    pace: &Pace,
) -> Result<Option<State>, StoreError> {
    let query = schema::query_as(if kind == Kind::Replay { REPLAY } else { BACKFILL })
        .bind(id.0)
        .bind(pace.rows)
        .bind(pace.look)
        .bind(pace.pause)
        .bind(pace.patience);
    let query = if kind == Kind::Replay { query.bind(LEASE) } else { query };
    let row: Option<(String, i64, Option<String>)> =
        in_time(query.persistent(false).fetch_optional(db)).await?;
    Ok(row.map(|(state, ..)| read_state(&state)).transpose()?)
}

const POSTPONE: &str = "
    UPDATE public.posthaste_jobs SET error = $2, failures = failures + $4,
        state = CASE WHEN failures + $4 >= $5 THEN 'failed' ELSE state END,
        updated_at = timezone('UTC', clock_timestamp()),
        resume_at = timezone('UTC', clock_timestamp()) + $3::interval * greatest(failures + $4, 1)
    WHERE id = $1 AND state = 'running'
    RETURNING state";

/// Batches in a row that may fail: with 5 s of patience, which grows, that is a quarter of an hour.
const MAX_FAILURES: i32 = 20;

/// Notes why a batch failed; the job tries again after `pause`, which grows with each failure, and ends when
/// that has happened too often. Returns the state after it. What waits for somebody's lock is no failure.
///
/// # Errors
/// Whatever the database says.
pub async fn postpone(
    db: &mut PgConnection,
    id: JobId,
    error: &StoreError,
    pause: Duration,
) -> Result<Option<State>, StoreError> {
    let query = schema::query_scalar(POSTPONE).bind(id.0).bind(error.to_string()).bind(pause);
    let query = query.bind(i32::from(!error.is_about_locks())).bind(MAX_FAILURES);
    let state: Option<String> = in_time(query.fetch_optional(db)).await?;
    Ok(state.map(|state| read_state(&state)).transpose()?)
}

/// How far a dry run has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counted {
    /// Deliveries that the job would queue, of the rows looked at.
    pub count: i64,
    /// Where to go on; `None`: everything has been counted.
    pub next: Option<Position>,
}

/// Parameters: destination, statuses, end, place, rows to look at, event type, length of a lease.
const COUNT_REPLAY: &str = concat!(
    "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
looked AS MATERIALIZED (
    SELECT q.* FROM unnest($2::text[]) AS s (status) CROSS JOIN LATERAL (
        SELECT w.created_at, w.id FROM public.webhook_deliveries w
        WHERE w.destination_id = $1 AND w.status = s.status AND w.status IN ('delivered', 'failed', 'dead')
          AND w.created_at < $3 AND (w.created_at, w.id) > ($4::timestamp, $5::uuid)
        ORDER BY w.created_at, w.id LIMIT $6
    ) q ORDER BY q.created_at, q.id LIMIT $6
)
SELECT (SELECT count(*) FROM looked k JOIN public.webhook_deliveries w ON w.id = k.id CROSS JOIN clock c
        WHERE ($7::text IS NULL OR EXISTS (
            SELECT FROM public.activity_logs l WHERE l.id = w.log_id AND l.event_type = $7)) AND ",
    not_leased!("$8"),
    "), l.created_at, l.id, (SELECT count(*) FROM looked) < $6
FROM (SELECT) one LEFT JOIN (SELECT * FROM looked ORDER BY created_at DESC, id DESC LIMIT 1) l ON true"
);

const COUNT_BACKFILL: &str = "
    SELECT b.queued, b.last_at, b.last_id, b.finished
    FROM public.posthaste_backfill($1, $2, $3::timestamp, $4, $5, $5, NULL) b";

/// Counts a part of what a job would queue, from `after` on. `None`: the destination of a backfill is not
/// enabled.
///
/// # Errors
/// Whatever the database says.
pub async fn dry_run(
    db: &mut PgConnection,
    spec: &Spec,
    after: Option<Position>,
) -> Result<Option<Counted>, StoreError> {
    let start = Position { at: spec.from.unwrap_or(DbTime(i64::MIN)), id: Uuid::nil() };
    let after = after.unwrap_or(start);
    let to = spec.to.unwrap_or(DbTime(i64::MAX));
    let query = match spec.kind {
        Kind::Replay => schema::query_as(COUNT_REPLAY)
            .bind(spec.destination.0)
            .bind(names(&spec.statuses))
            .bind(to)
            .bind(after.at)
            .bind(after.id)
            .bind(COUNTED_AT_ONCE)
            .bind(&spec.event_type)
            .bind(LEASE),
        Kind::Backfill => schema::query_as(COUNT_BACKFILL)
            .bind(spec.destination.0)
            .bind(to)
            .bind(after.at)
            .bind(after.id)
            .bind(COUNTED_AT_ONCE),
    };
    let row: Option<(i64, Option<DbTime>, Option<Uuid>, bool)> =
        in_time(query.persistent(false).fetch_optional(db)).await?;
    Ok(row.map(|(count, at, id, finished)| {
        let next = at.zip(id).map(|(at, id)| Position { at, id }).filter(|_| !finished);
        Counted { count, next }
    }))
}
