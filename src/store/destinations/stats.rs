//! What the tables tell about how a destination does, at the same cost whatever their size.

use sqlx::Row;
use sqlx::postgres::PgConnection;

use crate::model::{DbTime, DestinationId};
use crate::policy::health::Saved;
use crate::store::schema;
use crate::store::{StoreError, in_time};

/// Deliveries of one status are counted up to this many.
const MOST_COUNTED: i64 = 10_000;
/// Settled deliveries of which the delivered part is told: the latest.
const SETTLED: i64 = 1_000;

/// A number that may be larger.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// As far as it was counted.
    pub count: i64,
    /// Whether that is all.
    pub complete: bool,
}

/// What was found.
#[derive(Clone, Copy, Debug)]
pub struct Found {
    /// Deliveries that are pending, failed, delivered, dead.
    pub counts: [Count; 4],
    /// The latest settled deliveries, at most a thousand.
    pub settled: i64,
    /// How many of those were delivered.
    pub delivered: i64,
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
    newest AS MATERIALIZED (
        SELECT q.status, n.created_at FROM unnest(ARRAY['delivered', 'dead']) q (status)
        CROSS JOIN LATERAL (
            SELECT d.created_at FROM public.webhook_deliveries d
            WHERE d.destination_id = $1 AND d.status = q.status
              AND d.status IN ('delivered', 'failed', 'dead')
            ORDER BY d.created_at DESC, d.id DESC LIMIT $3
        ) n ORDER BY n.created_at DESC LIMIT $3
    )
    SELECT (SELECT count(*) FROM open) AS open,
        (SELECT count(*) FROM open WHERE status = 'pending') AS pending,
        c.*,
        (SELECT count(*) FROM newest) AS settled,
        (SELECT count(*) FROM newest WHERE status = 'delivered') AS share,
        (SELECT d.created_at FROM public.webhook_deliveries d
         WHERE d.destination_id = $1 AND d.status IN ('pending', 'failed')
         ORDER BY d.created_at, d.id LIMIT 1) AS oldest,
        timezone('UTC', clock_timestamp()) AS now,
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
    LEFT JOIN public.posthaste_destination_state t ON t.destination_id = w.id
    WHERE w.id = $1";

/// Reads how a destination does; `None`: it is gone.
///
/// # Errors
/// Whatever the database says.
pub async fn read(db: &mut PgConnection, id: DestinationId) -> Result<Option<Found>, StoreError> {
    let query = schema::query(READ).bind(id.0).bind(MOST_COUNTED).bind(SETTLED);
    let Some(row) = in_time(query.persistent(false).fetch_optional(db)).await? else { return Ok(None) };
    let number = |name: &str| row.try_get::<i64, _>(name);
    let count = |name: &str| {
        let count = number(name)?;
        Ok::<_, sqlx::Error>(Count { count, complete: count < MOST_COUNTED })
    };
    let pending = Count { count: number("pending")?, complete: number("open")? < MOST_COUNTED };
    Ok(Some(Found {
        counts: [pending, count("failed")?, count("delivered")?, count("dead")?],
        settled: number("settled")?,
        delivered: number("share")?,
        oldest: row.try_get("oldest").map_err(StoreError::from)?,
        now: row.try_get("now").map_err(StoreError::from)?,
        saved: Saved {
            paused_until: row.try_get("paused_until").map_err(StoreError::from)?,
            tripped_at: row.try_get("tripped_at").map_err(StoreError::from)?,
            next_probe_at: row.try_get("next_probe_at").map_err(StoreError::from)?,
            failing_since: row.try_get("failing_since").map_err(StoreError::from)?,
            last_success_at: row.try_get("last_success_at").map_err(StoreError::from)?,
        },
    }))
}
