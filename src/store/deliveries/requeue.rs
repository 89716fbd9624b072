//! Queueing deliveries again: what a replay and a retry by hand do to a row.
//!
//! A row with a live lease is left out: somebody is sending it. What an older lease still has to say about a
//! row that was queued again is not written, unless it is a success, which is a fact: `next_retry_at` is
//! later than any claim before it.

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::LEASE;
use crate::model::{DeliveryId, OrgId};
use crate::store::schema;
use crate::store::{StoreError, in_time};

/// The condition that nobody holds `w` at the time `c.now`; the parameter is the length of a lease.
macro_rules! not_leased {
    ($lease:literal) => {
        concat!(
            "(w.status IN ('pending', 'failed') AND w.last_attempt_at > c.now - ",
            $lease,
            "::interval AND (w.next_retry_at IS NULL OR w.last_attempt_at >= w.next_retry_at)) IS NOT TRUE"
        )
    };
}
pub(crate) use not_leased;

/// The CTE `requeued`: queues the locked rows `picked(id, created_at)` again, in the order in which they were
/// queued before, as something that begins anew. They fall due at that distance, in pairs: each moment at
/// which something does costs a claim. Returns their ids.
macro_rules! requeued {
    ($spacing:literal) => {
        concat!(
            "requeued AS (
    UPDATE public.webhook_deliveries d SET
        status = 'pending', attempts = 0, delivered_at = NULL,
        -- later than last_attempt_at whatever the clocks do: what is queued is not leased
        next_retry_at = greatest(c.now + (p.nth - 1) / 2 * 2 * ",
            $spacing,
            ", d.last_attempt_at + interval '1 microsecond'),
        created_at = c.now - (p.rows - p.nth) * interval '1 microsecond'
    FROM (SELECT id, row_number() OVER (ORDER BY created_at, id) AS nth, count(*) OVER () AS rows
          FROM picked) p CROSS JOIN clock c
    WHERE d.id = p.id
    RETURNING d.id, d.destination_id
)"
        )
    };
}
pub(crate) use requeued;

/// What a retry by hand came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Retried {
    /// Queued again.
    pub queued: Vec<DeliveryId>,
    /// Left as they are, since they are being sent at this moment.
    pub in_flight: Vec<DeliveryId>,
    /// The organization has no such deliveries; where there is one, nothing was done.
    pub unknown: Vec<DeliveryId>,
}

/// Parameters: organization, deliveries, length of a lease.
const RETRY: &str = concat!(
    "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
known AS MATERIALIZED (
    SELECT w.id FROM public.webhook_deliveries w JOIN public.webhook_destinations d ON d.id = w.destination_id
    WHERE w.id = ANY ($2::uuid[]) AND d.org_id = $1
),
picked AS MATERIALIZED (
    SELECT w.id, w.created_at FROM public.webhook_deliveries w CROSS JOIN clock c
    WHERE w.id = ANY (ARRAY(SELECT k.id FROM known k))
      AND (SELECT count(*) FROM known) = cardinality($2::uuid[])
      AND ",
    not_leased!("$3"),
    "
    ORDER BY w.id
    FOR NO KEY UPDATE OF w
),
",
    requeued!("interval '0'"),
    ",
woken AS (
    SELECT pg_notify('posthaste_wake', string_agg(DISTINCT r.destination_id::text, ','))
    FROM requeued r HAVING count(DISTINCT r.destination_id) BETWEEN 1 AND 100
    UNION ALL
    SELECT pg_notify('posthaste_wake', '*') FROM requeued r HAVING count(DISTINCT r.destination_id) > 100
)
SELECT k.id, EXISTS (SELECT FROM requeued r WHERE r.id = k.id), (SELECT count(*) FROM woken)
FROM known k"
);

/// Queues `deliveries` of `org` again, at once: all of them that nobody is sending, or none if one is not
/// known.
///
/// # Errors
/// Whatever the database says; nothing was done then, or the answer was lost.
pub async fn retry(
    db: &mut PgConnection,
    org: OrgId,
    deliveries: &[DeliveryId],
) -> Result<Retried, StoreError> {
    let mut ids: Vec<Uuid> = deliveries.iter().map(|id| id.0).collect();
    ids.sort_unstable();
    ids.dedup();
    let query = schema::query_as(RETRY).bind(org.0).bind(&ids).bind(LEASE);
    let known: Vec<(Uuid, bool, i64)> = in_time(query.fetch_all(db)).await?;
    let of = |queued: bool| {
        known.iter().filter(move |(_, was, _)| *was == queued).map(|(id, ..)| DeliveryId(*id)).collect()
    };
    let is_unknown = |id: &Uuid| !known.iter().any(|(other, ..)| other == id);
    let unknown: Vec<DeliveryId> = ids.iter().filter(|id| is_unknown(id)).copied().map(DeliveryId).collect();
    match unknown.is_empty() {
        true => Ok(Retried { queued: of(true), in_flight: of(false), unknown }),
        false => Ok(Retried { unknown, ..Retried::default() }),
    }
}
