//! What deliveries wait for, and why an event has none: facts, of which [`crate::manage::why`] makes
//! sentences.

use std::collections::HashMap;

use sqlx::postgres::{PgConnection, PgRow};
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use super::{LEASE, not_leased};
use crate::model::{DbTime, DeliveryId, DestinationId, EventId, OrgId};
use crate::policy::health::Saved;
use crate::store::destinations::read_saved;
use crate::store::events::EventColumns;
use crate::store::schema;
use crate::store::{StoreError, in_time};

/// Deliveries ahead of one are counted up to this many.
pub const MOST_AHEAD: i64 = 1_000;
/// Destinations without a delivery of an event that are told at most.
const MOST_UNQUEUED: i64 = 1_000;

/// What an open delivery may wait for.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Standing {
    /// The database's clock.
    pub now: DbTime,
    /// Whether its destination is enabled; otherwise since when not, and why, if that is known.
    pub enabled: bool,
    /// See `enabled`.
    pub disabled_at: Option<DbTime>,
    /// See `enabled`.
    pub disabled_reason: Option<String>,
    /// The health of its destination.
    pub saved: Saved,
    /// Retries after the first attempt.
    pub retry_max: i32,
    /// Requests a second.
    pub rate_limit: Option<f64>,
    /// How long a batch waits to fill, in milliseconds; 0: it is sent as it is.
    pub batch_wait_ms: i32,
    /// Somebody is sending it.
    pub is_leased: bool,
    /// What cannot be done with it or with its destination, as PostgreSQL says it.
    pub fault: Option<String>,
    /// In an ordered queue: which one is at its head.
    pub head: Option<DeliveryId>,
    /// Due deliveries of its destination that come before it, at most [`MOST_AHEAD`] and one more, where they
    /// were counted.
    pub ahead: Option<i64>,
}

/// Parameters: ids, the length of a lease, whether to count those ahead. A fault is told by its process once
/// an hour at least.
const STANDING: &str = concat!(
    "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now)
SELECT w.id, c.now, d.enabled IS NOT FALSE AS enabled, t.disabled_at, left(t.disabled_reason, 1000) AS reason,
    t.paused_until, t.tripped_at, t.next_probe_at, t.failing_since, t.last_success_at,
    coalesce(d.retry_max, 3) AS retry_max, s.rate_limit_per_second AS rate_limit,
    CASE WHEN coalesce(s.batch_max_events, d.batch_size, 1) > 1 THEN coalesce(s.batch_wait_ms, 0) ELSE 0 END
        AS batch_wait_ms,
    NOT ",
    not_leased!("$2"),
    " AS leased, f.message, h.id AS head, CASE WHEN $3 THEN a.ahead END AS ahead
FROM clock c CROSS JOIN unnest($1::uuid[]) AS q (id)
JOIN public.webhook_deliveries w ON w.id = q.id
JOIN public.webhook_destinations d ON d.id = w.destination_id
LEFT JOIN public.posthaste_destination_settings s ON s.destination_id = d.id
LEFT JOIN public.posthaste_destination_state t ON t.destination_id = d.id
LEFT JOIN LATERAL (
    SELECT left(p.message, 500) AS message FROM public.posthaste_faults p
    WHERE p.destination_id = d.id AND p.delivery_id IN (w.id, d.id)
        AND p.last_seen_at > c.now - interval '2 hours'
    ORDER BY p.delivery_id = w.id DESC LIMIT 1
) f ON true
LEFT JOIN LATERAL (
    SELECT o.id FROM public.webhook_deliveries o
    WHERE s.ordered AND o.destination_id = d.id AND o.status IN ('pending', 'failed')
    ORDER BY o.created_at, o.id LIMIT 1
) h ON true
CROSS JOIN LATERAL (
    SELECT count(*) AS ahead FROM (
        SELECT FROM public.webhook_deliveries o
        WHERE $3 AND o.destination_id = d.id AND o.status IN ('pending', 'failed')
            AND o.next_retry_at < least(w.next_retry_at, c.now)
        ORDER BY o.next_retry_at LIMIT $4
    ) part
) a
WHERE w.status IN ('pending', 'failed')"
);

/// What those of `ids` wait for that are pending or failed.
///
/// # Errors
/// Whatever the database says.
pub async fn standing(
    db: &mut PgConnection,
    ids: &[DeliveryId],
    counts_ahead: bool,
) -> Result<HashMap<DeliveryId, Standing>, StoreError> {
    let ids: Vec<Uuid> = ids.iter().map(|id| id.0).collect();
    let query = schema::query(STANDING).bind(ids).bind(LEASE).bind(counts_ahead).bind(MOST_AHEAD + 1);
    let rows = in_time(query.persistent(false).fetch_all(db)).await?;
    Ok(rows.iter().map(read_standing).collect::<Result<_, _>>()?)
}

fn read_standing(row: &PgRow) -> Result<(DeliveryId, Standing), sqlx::Error> {
    let standing = Standing {
        now: row.try_get("now")?,
        enabled: row.try_get("enabled")?,
        disabled_at: row.try_get("disabled_at")?,
        disabled_reason: row.try_get("reason")?,
        saved: read_saved(row)?,
        retry_max: row.try_get("retry_max")?,
        rate_limit: row.try_get("rate_limit")?,
        batch_wait_ms: row.try_get("batch_wait_ms")?,
        is_leased: row.try_get("leased")?,
        fault: row.try_get("message")?,
        head: row.try_get::<Option<Uuid>, _>("head")?.map(DeliveryId),
        ahead: row.try_get("ahead")?,
    };
    Ok((DeliveryId(row.try_get("id")?), standing))
}

/// A destination that has no delivery of an event of its organization.
#[derive(Clone, Debug, PartialEq)]
pub struct Unqueued {
    /// Which.
    pub destination: DestinationId,
    /// Its name.
    pub name: String,
    /// When it was created.
    pub created_at: Option<DbTime>,
    /// When it was last written.
    pub updated_at: Option<DbTime>,
    /// Whether it is enabled; otherwise since when not, and why, if that is known.
    pub enabled: bool,
    /// See `enabled`.
    pub disabled_at: Option<DbTime>,
    /// See `enabled`.
    pub disabled_reason: Option<String>,
    /// The last time when it was enabled again, and since when it had been disabled, if that is known.
    pub enabled_at: Option<DbTime>,
    /// See `enabled_at`.
    pub was_disabled_at: Option<DbTime>,
    /// Retention may have deleted what was queued before.
    pub pruned_until: Option<DbTime>,
    /// When the event happened, if it says so.
    pub event_at: Option<DbTime>,
    /// The event's type.
    pub event_type: String,
    /// Its filter or its list of types can be used. Not known, like the three below, while it is disabled.
    pub is_usable: bool,
    /// It wants this type.
    pub wants_type: bool,
    /// Members of its filter that the payload does not have.
    pub missing: Vec<String>,
    /// Its `$jsonpath` holds.
    pub holds: bool,
}

/// The predicates are those of `posthaste_fan_out`; a member of a filter is contained or not by itself.
const UNQUEUED: &str = "
SELECT d.id, coalesce(d.name, '')::text AS name, d.created_at, d.updated_at,
    d.enabled IS NOT FALSE AS enabled, t.disabled_at, left(t.disabled_reason, 1000) AS reason,
    p.enabled_at, p.disabled_at AS was_disabled_at,
    r.pruned_until, nullif(l.created_at, 'epoch') AS event_at, coalesce(l.event_type::text, '') AS event_type,
    s.id IS NOT NULL AS usable,
    coalesce(s.patterns IS NULL OR l.event_type::text COLLATE \"C\" LIKE ANY (s.patterns), false)
        AS wants_type,
    ARRAY(SELECT m.key FROM jsonb_each(s.contained) AS m (key, value)
        WHERE NOT coalesce(l.payload::jsonb @> jsonb_build_object(m.key, m.value), false)
        ORDER BY m.key) AS missing,
    s.path IS NULL OR public.posthaste_holds(s.path, public.posthaste_data(l.id::uuid, l.org_id::uuid,
        l.employee_id::uuid, l.session_id::uuid, l.client_name::text, l.client_version::text,
        l.event_type::text, l.event_category::text, l.content::text, l.payload::jsonb,
        l.created_at::timestamp)) AS holds
FROM {EVENTS}
JOIN public.webhook_destinations d ON d.org_id = l.org_id
LEFT JOIN public.posthaste_subscriptions(ARRAY[$1::uuid], public.posthaste_usable(ARRAY[$1::uuid])) s
    ON s.id = d.id
LEFT JOIN public.posthaste_destination_state t ON t.destination_id = d.id
LEFT JOIN public.posthaste_disabled_periods p ON p.destination_id = d.id
LEFT JOIN public.posthaste_retention r ON r.destination_id = d.id
WHERE l.id = $2 AND l.org_id = $1
    AND NOT EXISTS (SELECT FROM public.webhook_deliveries w WHERE w.destination_id = d.id AND w.log_id = l.id)
ORDER BY d.created_at, d.id LIMIT $3";

/// The destinations of `org` that have no delivery of `event`, the oldest first; at most 1,000.
///
/// # Errors
/// Whatever the database says.
pub async fn unqueued(
    db: &mut PgConnection,
    org: OrgId,
    event: EventId,
) -> Result<Vec<Unqueued>, StoreError> {
    let sql = UNQUEUED.replace("{EVENTS}", &EventColumns::read(db).await?.listed());
    let query = schema::query(AssertSqlSafe(sql)).bind(org.0).bind(event.0).bind(MOST_UNQUEUED);
    let rows = in_time(query.persistent(false).fetch_all(db)).await?;
    Ok(rows.iter().map(read_unqueued).collect::<Result<_, _>>()?)
}

fn read_unqueued(row: &PgRow) -> Result<Unqueued, sqlx::Error> {
    Ok(Unqueued {
        destination: DestinationId(row.try_get("id")?),
        name: row.try_get("name")?,
        created_at: row.try_get("created_at")?,
        updated_at: row.try_get("updated_at")?,
        enabled: row.try_get("enabled")?,
        disabled_at: row.try_get("disabled_at")?,
        disabled_reason: row.try_get("reason")?,
        enabled_at: row.try_get("enabled_at")?,
        was_disabled_at: row.try_get("was_disabled_at")?,
        pruned_until: row.try_get("pruned_until")?,
        event_at: row.try_get("event_at")?,
        event_type: row.try_get("event_type")?,
        is_usable: row.try_get("usable")?,
        wants_type: row.try_get("wants_type")?,
        missing: row.try_get("missing")?,
        holds: row.try_get("holds")?,
    })
}
