//! Retention: deleting what is settled and old, a batch at a time.
//!
//! Each kind of row has an index in which the oldest come first. A batch starts where the one before it
//! ended, not at the beginning: there it would step over everything deleted so far, until a vacuum. Rows that
//! somebody has locked are left for the next pass, so a batch never waits and never keeps anybody waiting.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::{ConnectOptions, Db, StoreError, connect, database, in_time, planned};
use crate::model::{DbTime, DestinationId};
use crate::store::schema;

/// Key of the advisory lock that whoever prunes holds: "posthret" in ASCII.
const LOCK_KEY: i64 = 0x706f_7374_6872_6574;

/// What is deleted when it is old.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Delivered deliveries, and their attempts with them; their age counts from `delivered_at`.
    Delivered,
    /// Dead deliveries, likewise; their age counts from the last attempt.
    Dead,
    /// Attempts of settled deliveries; their age counts from when they started.
    Attempts,
    /// Jobs that are done, cancelled or failed; their age counts from then on.
    Jobs,
}

impl Kind {
    /// All kinds, in the order of a pass.
    pub const ALL: [Kind; 4] = [Kind::Delivered, Kind::Dead, Kind::Attempts, Kind::Jobs];

    /// As in labels and logs.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Delivered => "delivered",
            Kind::Dead => "dead",
            Kind::Attempts => "attempts",
            Kind::Jobs => "jobs",
        }
    }
}

/// What a batch did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pruned {
    /// Rows deleted.
    pub deleted: u64,
    /// Where the next batch of this kind starts; `None`: nothing old is left.
    pub next: Option<DbTime>,
}

/// A connection that may prune: there is one at a time on a database.
pub struct Pruner(PgConnection);

const TRY_LOCK: &str = "SELECT pg_try_advisory_lock($1)";

/// Deliveries of one status, oldest first by one column. What is deleted of each destination is remembered by
/// the statement that deletes it: a crash cannot come between. A `created_at` from the future is the
/// application's own; nothing was created later than now.
macro_rules! prune_deliveries {
    ($status:literal, $by:literal, $and:literal) => {
        concat!(
            "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
old AS MATERIALIZED (
    SELECT d.id, d.",
            $by,
            " AS at FROM public.webhook_deliveries d
    WHERE d.status = '",
            $status,
            "' AND d.",
            $by,
            " >= $1 AND d.",
            $by,
            " < (SELECT now FROM clock) - $2::interval",
            $and,
            "
    ORDER BY d.",
            $by,
            " LIMIT $3
    FOR UPDATE OF d SKIP LOCKED
),
deleted AS (
    DELETE FROM public.webhook_deliveries d USING old o WHERE d.id = o.id
    RETURNING d.destination_id, d.created_at
),
remembered AS (
    INSERT INTO public.posthaste_retention (destination_id, pruned_until)
    SELECT x.destination_id, least(max(x.created_at), max(c.now)) FROM deleted x CROSS JOIN clock c
    GROUP BY x.destination_id
    ON CONFLICT (destination_id) DO UPDATE
        SET pruned_until = greatest(posthaste_retention.pruned_until, excluded.pruned_until)
)
SELECT count(*), (SELECT count(*) FROM deleted), max(at) FROM old"
        )
    };
}

const PRUNE_DELIVERED: &str = prune_deliveries!("delivered", "delivered_at", "");

/// When a delivery died is not written anywhere, but its last attempt comes close.
const PRUNE_DEAD: &str = prune_deliveries!(
    "dead",
    "created_at",
    " AND coalesce(d.last_attempt_at, d.created_at) < (SELECT now FROM clock) - $2::interval"
);

/// Attempts are never updated, so `ctid` names the same row throughout the statement.
const PRUNE_ATTEMPTS: &str = "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
old AS MATERIALIZED (
    SELECT a.ctid AS place, a.delivery_id, a.started_at AS at
    FROM public.posthaste_attempts a
    WHERE a.started_at >= $1 AND a.started_at < (SELECT now FROM clock) - $2::interval
    ORDER BY a.started_at LIMIT $3
),
deleted AS (
    DELETE FROM public.posthaste_attempts a USING old o
    WHERE a.ctid = o.place
      -- those of a delivery that still goes on tell when it began: an outage is judged by that
      AND NOT EXISTS (SELECT FROM public.webhook_deliveries d
                      WHERE d.id = o.delivery_id AND d.status IN ('pending', 'failed'))
    RETURNING 1
)
SELECT count(*), (SELECT count(*) FROM deleted), max(at) FROM old";

/// A job that has ended does not change any more.
const PRUNE_JOBS: &str = "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
old AS MATERIALIZED (
    SELECT j.id, j.updated_at AS at FROM public.posthaste_jobs j
    WHERE j.state <> 'running' AND j.updated_at >= $1
      AND j.updated_at < (SELECT now FROM clock) - $2::interval
    ORDER BY j.updated_at LIMIT $3
    FOR UPDATE OF j SKIP LOCKED
),
deleted AS (
    DELETE FROM public.posthaste_jobs j USING old o WHERE j.id = o.id
    RETURNING 1
)
SELECT count(*), (SELECT count(*) FROM deleted), max(at) FROM old";

impl Pruner {
    /// Connects, unless another process is pruning this database at this moment.
    ///
    /// # Errors
    /// Whatever the database says.
    pub async fn connect(options: &ConnectOptions) -> Result<Option<Pruner>, StoreError> {
        // What a crash of PostgreSQL brings back is deleted again: waiting for the disk would be for nothing.
        let options = planned(options.clone()).options([
            ("statement_timeout", "3s"),
            ("lock_timeout", "500ms"),
            ("synchronous_commit", "off"),
        ]);
        let mut connection = connect(&options).await?;
        let lock = schema::query_scalar(TRY_LOCK).bind(schema::lock_key(LOCK_KEY)).fetch_one(&mut connection);
        if in_time(lock).await? {
            return Ok(Some(Pruner(connection)));
        }
        database::close(connection).await;
        Ok(None)
    }

    /// Deletes at most `rows` rows of `kind` that are older than `age`, from those on that are of the time
    /// `since`.
    ///
    /// # Errors
    /// Whatever the database says; nothing was deleted then, and the connection must be dropped.
    pub async fn prune(
        &mut self,
        kind: Kind,
        age: Duration,
        since: DbTime,
        rows: u32,
    ) -> Result<Pruned, StoreError> {
        let sql = match kind {
            Kind::Delivered => PRUNE_DELIVERED,
            Kind::Dead => PRUNE_DEAD,
            Kind::Attempts => PRUNE_ATTEMPTS,
            Kind::Jobs => PRUNE_JOBS,
        };
        let query = schema::query_as(sql).bind(since).bind(age).bind(i64::from(rows));
        let (found, deleted, last): (i64, i64, Option<DbTime>) =
            in_time(query.fetch_one(&mut self.0)).await?;
        // Nothing deleted and no step forward: the same rows would be found again.
        let stuck = deleted == 0 && last == Some(since);
        let next = last.filter(|_| found == i64::from(rows) && !stuck);
        Ok(Pruned { deleted: deleted as u64, next })
    }

    /// Says goodbye, so that another process may prune.
    pub async fn close(self) {
        database::close(self.0).await;
    }
}

const PRUNED_UNTIL: &str = "SELECT pruned_until FROM public.posthaste_retention WHERE destination_id = $1";

/// Up to when deliveries of `destination` may have been deleted, by their `created_at`; `None`: none was. An
/// event from before may have been delivered already, although no delivery says so.
///
/// # Errors
/// Whatever the database says.
pub async fn pruned_until(
    db: impl Into<Db<'_>>,
    destination: DestinationId,
) -> Result<Option<DbTime>, StoreError> {
    let id: Uuid = destination.0;
    in_time(schema::query_scalar(PRUNED_UNTIL).bind(id).fetch_optional(db)).await
}
