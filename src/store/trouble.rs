//! Destinations in trouble, for those who look after all of them: facts, of which [`crate::manage::trouble`]
//! makes sentences.

use std::time::Duration;

use sqlx::Row;
use sqlx::postgres::{PgConnection, PgRow};
use uuid::Uuid;

use super::destinations::read_saved;
use super::{StoreError, in_time, schema};
use crate::model::{DbTime, DestinationId, OrgId};
use crate::policy::health::Saved;

/// Destinations that are named of each kind of trouble.
pub const MOST_NAMED: usize = 20;
/// A delivery that is open for longer is told.
pub const LATE: Duration = Duration::from_secs(3600);
/// Dead deliveries are looked at that were queued since then: none is retried for longer by the defaults.
const QUEUED_WITHIN: Duration = Duration::from_secs(8 * 86_400);
/// Dead deliveries that are looked at: the latest.
const MOST_DEAD: i64 = 10_000;

/// Which destination.
#[derive(Clone, Debug)]
pub struct Who {
    /// Its id.
    pub id: DestinationId,
    /// Its name.
    pub name: String,
    /// Whose.
    pub org: OrgId,
}

/// One that is disabled by itself, tripped, paused or failing.
#[derive(Clone, Debug)]
pub struct Unwell {
    /// Which.
    pub who: Who,
    /// Whether it is enabled.
    pub enabled: bool,
    /// When it was disabled.
    pub disabled_at: Option<DbTime>,
    /// Why.
    pub disabled_reason: Option<String>,
    /// What is remembered of its health.
    pub saved: Saved,
}

/// Everything that is found; one more of each kind than is named.
#[derive(Clone, Debug)]
pub struct Found {
    /// The database's clock.
    pub now: DbTime,
    /// Destinations that are not well.
    pub unwell: Vec<Unwell>,
    /// Enabled ones that are, and have an open delivery from before [`LATE`]: the oldest of each.
    pub late: Vec<(Who, DbTime)>,
    /// Those that have deliveries that died within a day, and how many.
    pub dead: Vec<(Who, i64)>,
}

const UNWELL: &str = "
SELECT w.id, coalesce(w.name, '')::text AS name, w.org_id, w.enabled IS NOT FALSE AS enabled, t.disabled_at,
    left(t.disabled_reason, 1000) AS reason, t.paused_until, t.tripped_at, t.next_probe_at, t.failing_since,
    t.last_success_at, timezone('UTC', clock_timestamp()) AS now
FROM public.posthaste_destination_state t JOIN public.webhook_destinations w ON w.id = t.destination_id
WHERE CASE WHEN w.enabled IS FALSE THEN t.disabled_reason IS NOT NULL
    ELSE t.tripped_at IS NOT NULL OR t.failing_since IS NOT NULL
        OR t.paused_until > timezone('UTC', clock_timestamp()) END
ORDER BY coalesce(t.disabled_at, t.tripped_at, t.failing_since, t.paused_until) DESC LIMIT $1";

/// One look at an index for each destination.
const LATE_ONES: &str = "
SELECT w.id, coalesce(w.name, '')::text AS name, w.org_id, o.created_at AS at
FROM public.webhook_destinations w
CROSS JOIN LATERAL (
    SELECT d.created_at FROM public.webhook_deliveries d
    WHERE d.destination_id = w.id AND d.status IN ('pending', 'failed')
    ORDER BY d.created_at, d.id LIMIT 1
) o
WHERE w.enabled IS NOT FALSE AND o.created_at < timezone('UTC', clock_timestamp()) - $2
    AND NOT EXISTS (SELECT FROM public.posthaste_destination_state t
        WHERE t.destination_id = w.id AND t.tripped_at IS NOT NULL)
ORDER BY o.created_at LIMIT $1";

const DEAD: &str = "
SELECT w.id, coalesce(w.name, '')::text AS name, w.org_id, n.count
FROM (
    SELECT l.destination_id, count(*) AS count FROM (
        SELECT d.destination_id, d.created_at, d.last_attempt_at FROM public.webhook_deliveries d
        WHERE d.status = 'dead' AND d.created_at > timezone('UTC', clock_timestamp()) - $2
        ORDER BY d.created_at DESC LIMIT $3
    ) l
    WHERE coalesce(l.last_attempt_at, l.created_at) > timezone('UTC', clock_timestamp()) - interval '1 day'
    GROUP BY l.destination_id
) n JOIN public.webhook_destinations w ON w.id = n.destination_id
ORDER BY n.count DESC, w.id LIMIT $1";

const NOW: &str = "SELECT timezone('UTC', clock_timestamp())";

/// Looks for it.
///
/// # Errors
/// Whatever the database says.
pub async fn find(db: &mut PgConnection) -> Result<Found, StoreError> {
    let most = MOST_NAMED as i64 + 1;
    let now = in_time(schema::query_scalar(NOW).fetch_one(&mut *db)).await?;
    let unwell = schema::query(UNWELL).bind(most).persistent(false);
    let unwell = in_time(unwell.fetch_all(&mut *db)).await?;
    let late = schema::query(LATE_ONES).bind(most).bind(LATE).persistent(false);
    let late = in_time(late.fetch_all(&mut *db)).await?;
    let dead = schema::query(DEAD).bind(most).bind(QUEUED_WITHIN).bind(MOST_DEAD).persistent(false);
    let dead = in_time(dead.fetch_all(db)).await?;
    Ok(Found {
        now,
        unwell: unwell.iter().map(read_unwell).collect::<Result<_, _>>()?,
        late: late
            .iter()
            .map(|row| Ok((who(row)?, row.try_get("at")?)))
            .collect::<Result<_, sqlx::Error>>()?,
        dead: dead
            .iter()
            .map(|row| Ok((who(row)?, row.try_get("count")?)))
            .collect::<Result<_, sqlx::Error>>()?,
    })
}

fn who(row: &PgRow) -> Result<Who, sqlx::Error> {
    Ok(Who {
        id: DestinationId(row.try_get("id")?),
        name: row.try_get("name")?,
        org: OrgId(row.try_get::<Option<Uuid>, _>("org_id")?.unwrap_or_default()),
    })
}

fn read_unwell(row: &PgRow) -> Result<Unwell, sqlx::Error> {
    Ok(Unwell {
        who: who(row)?,
        enabled: row.try_get("enabled")?,
        disabled_at: row.try_get("disabled_at")?,
        disabled_reason: row.try_get("reason")?,
        saved: read_saved(row)?,
    })
}
