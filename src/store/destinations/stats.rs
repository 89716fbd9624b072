//! What the tables tell about how a destination does, at the same cost whatever their size.

use sqlx::Row;
use sqlx::postgres::PgConnection;

use crate::model::{DbTime, DestinationId};
use crate::policy::health::Saved;
use crate::store::destinations::read_saved;
use crate::store::schema;
use crate::store::{StoreError, in_time};

/// Deliveries of one status are counted up to this many.
const MOST_COUNTED: i64 = 10_000;
/// Deliveries of each status whose attempts are counted: the latest.
const LATEST: i64 = 2_000;

/// A number that may be larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// As far as it was counted.
    pub count: i64,
    /// Whether that is all.
    pub complete: bool,
}

/// How attempts of some time ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Those that delivered.
    pub succeeded: i64,
    /// Those that failed.
    pub failed: i64,
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Deliveries that are pending, failed, delivered, dead.
    pub counts: [Count; 4],
    /// Attempts of the last 15 minutes and of the last 24 hours.
    pub rates: [Rate; 2],
    /// When the oldest one that waits was queued.
    pub oldest: Option<DbTime>,
    /// The database's clock.
    pub now: DbTime,
    /// What is remembered of its health.
    pub saved: Saved,
}

/// The predicates of the partial indexes must stand here literally. What is pending has no index of its own:
/// it is counted among what is open.
const READ: &str = "
    WITH open AS MATERIALIZED (
        SELECT d.status FROM public.webhook_deliveries d
        WHERE d.destination_id = $1 AND d.status IN ('pending', 'failed')
        ORDER BY d.created_at DESC, d.id DESC LIMIT $2
    ),
    clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
    newest AS MATERIALIZED (
        SELECT n.id, n.delivered_at FROM unnest(ARRAY['delivered', 'failed', 'dead']) q (status)
        CROSS JOIN LATERAL (
            SELECT d.id, d.delivered_at FROM public.webhook_deliveries d
            WHERE d.destination_id = $1 AND d.status = q.status
              AND d.status IN ('delivered', 'failed', 'dead')
            ORDER BY d.created_at DESC, d.id DESC LIMIT $3
        ) n
    ),
    -- what is paused or spared has attempts, and is pending
    attempted AS MATERIALIZED (
        SELECT id FROM newest
        UNION ALL
        (SELECT d.id FROM public.webhook_deliveries d
         WHERE d.destination_id = $1 AND d.status IN ('pending', 'failed') AND d.status = 'pending'
         ORDER BY d.created_at, d.id LIMIT $3)
    ),
    ended AS (
        SELECT n.delivered_at AS at, true AS ok FROM newest n WHERE n.delivered_at IS NOT NULL
        UNION ALL
        SELECT a.started_at, false FROM attempted n JOIN public.posthaste_attempts a ON a.delivery_id = n.id
    ),
    rates AS (
        SELECT count(*) FILTER (WHERE e.ok) AS ok_day, count(*) FILTER (WHERE NOT e.ok) AS failed_day,
            count(*) FILTER (WHERE e.ok AND e.at > k.now - interval '15 minutes') AS ok_quarter,
            count(*) FILTER (WHERE NOT e.ok AND e.at > k.now - interval '15 minutes') AS failed_quarter
        FROM ended e CROSS JOIN clock k WHERE e.at > k.now - interval '24 hours'
    )
    SELECT (SELECT count(*) FROM open) AS open,
        (SELECT count(*) FROM open WHERE status = 'pending') AS pending,
        c.*,
        r.*,
        (SELECT d.created_at FROM public.webhook_deliveries d
         WHERE d.destination_id = $1 AND d.status IN ('pending', 'failed')
         ORDER BY d.created_at, d.id LIMIT 1) AS oldest,
        k.now,
        t.paused_until, t.tripped_at, t.next_probe_at, t.failing_since, t.last_success_at
    FROM public.webhook_destinations w
    CROSS JOIN LATERAL (
        SELECT max(n.count) FILTER (WHERE n.status = 'failed') AS failed,
            max(n.count) FILTER (WHERE n.status = 'delivered') AS delivered,
            max(n.count) FILTER (WHERE n.status = 'dead') AS dead
        FROM (SELECT q.status, (SELECT count(*) FROM (
                SELECT FROM public.webhook_deliveries d
                WHERE d.destination_id = w.id AND d.status = q.status
                  AND d.status IN ('delivered', 'failed', 'dead') LIMIT $2) part) AS count
              FROM unnest(ARRAY['delivered', 'failed', 'dead']) q (status)) n
    ) c
    CROSS JOIN rates r CROSS JOIN clock k
    LEFT JOIN public.posthaste_destination_state t ON t.destination_id = w.id
    WHERE w.id = $1";

/// Reads how a destination does; `None`: it is gone.
///
/// # Errors
/// Whatever the database says.
pub async fn read(db: &mut PgConnection, id: DestinationId) -> Result<Option<Found>, StoreError> {
    let query = schema::query(READ).bind(id.0).bind(MOST_COUNTED).bind(LATEST);
    let Some(row) = in_time(query.persistent(false).fetch_optional(db)).await? else { return Ok(None) };
    let number = |name: &str| row.try_get::<i64, _>(name);
    let count = |name: &str| {
        let count = number(name)?;
        Ok::<_, sqlx::Error>(Count { count, complete: count < MOST_COUNTED })
    };
    let pending = Count { count: number("pending")?, complete: number("open")? < MOST_COUNTED };
    Ok(Some(Found {
        counts: [pending, count("failed")?, count("delivered")?, count("dead")?],
        rates: [
            Rate { succeeded: number("ok_quarter")?, failed: number("failed_quarter")? },
            Rate { succeeded: number("ok_day")?, failed: number("failed_day")? },
        ],
        oldest: row.try_get("oldest").map_err(StoreError::from)?,
        now: row.try_get("now").map_err(StoreError::from)?,
        saved: read_saved(&row)?,
    }))
}
