//! Renewals: one statement makes many leases begin anew.

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::LEASE;
use crate::model::{DbTime, DeliveryId};
use crate::store::schema;
use crate::store::{StoreError, in_time};

/// Parameters: deliveries, claim times, lease. As claims do, it waits for nobody.
const RENEW: &str = "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
o AS MATERIALIZED (SELECT * FROM unnest($1::uuid[], $2::timestamp[]) AS o(id, claimed_at)),
free AS MATERIALIZED (
    SELECT o.* FROM o JOIN public.webhook_deliveries d ON d.id = o.id FOR NO KEY UPDATE OF d SKIP LOCKED
),
renewed AS (
    UPDATE public.webhook_deliveries d
    -- never earlier than it was: a lease is no older than what made the row due
    SET last_attempt_at = greatest(c.now, d.last_attempt_at)
    FROM free o CROSS JOIN clock c
    WHERE d.id = o.id AND d.status IN ('pending', 'failed')
      -- only while the lease is ours and lives: what has ended may be somebody else's by now, or, in an
      -- ordered queue, what stands before it
      AND d.last_attempt_at = o.claimed_at AND d.last_attempt_at > c.now - $3::interval
      AND (d.next_retry_at IS NULL OR d.last_attempt_at >= d.next_retry_at)
    RETURNING d.id, d.last_attempt_at
)
SELECT r.id, r.last_attempt_at FROM renewed r
UNION ALL
SELECT o.id, NULL FROM o JOIN public.webhook_deliveries d ON d.id = o.id
WHERE o.id NOT IN (SELECT free.id FROM free)";

/// What became of leases.
#[derive(Clone, Debug, Default)]
pub struct Renewals {
    /// Renewed, with the new claim time.
    pub renewed: Vec<(DeliveryId, DbTime)>,
    /// Locked by somebody else: as they were.
    pub locked: Vec<DeliveryId>,
}

/// Renews `leases`, given by their claim times, in one statement. What is in neither list of the answer is
/// not ours any more.
///
/// # Errors
/// After any error the connection must be dropped: whether they were renewed is not known.
pub async fn renew(
    connection: &mut PgConnection,
    leases: &[(DeliveryId, DbTime)],
) -> Result<Renewals, StoreError> {
    let query = schema::query_as(RENEW)
        .bind(leases.iter().map(|(id, _)| id.0).collect::<Vec<_>>())
        .bind(leases.iter().map(|(_, claimed_at)| *claimed_at).collect::<Vec<_>>())
        .bind(LEASE);
    let rows: Vec<(Uuid, Option<DbTime>)> = in_time(query.fetch_all(connection)).await?;
    let mut renewals = Renewals::default();
    for (id, claimed_at) in rows {
        match claimed_at {
            Some(claimed_at) => renewals.renewed.push((DeliveryId(id), claimed_at)),
            None => renewals.locked.push(DeliveryId(id)),
        }
    }
    Ok(renewals)
}
