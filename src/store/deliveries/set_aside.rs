//! Setting aside what cannot be read: a claim that fails for one row must not fail for ever.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::LEASE;
use crate::model::{DbTime, DeliveryId, DestinationId};
use crate::store::schema;
use crate::store::{StoreError, in_time};

/// The statement with two holes: which row a claim for one would take, in which order.
macro_rules! set_aside {
    ($due:literal, $order:literal) => {
        concat!(
            "
WITH clock AS MATERIALIZED (SELECT timezone('UTC', clock_timestamp()) AS now),
next AS MATERIALIZED (
    SELECT d.id FROM public.webhook_deliveries d CROSS JOIN clock c
    WHERE d.destination_id = $1 AND d.status IN ('pending', 'failed')",
            $due,
            "
      AND (d.last_attempt_at > greatest(c.now - $4::interval, $5::timestamp)
           AND (d.next_retry_at IS NULL OR d.last_attempt_at >= d.next_retry_at)) IS NOT TRUE
    ORDER BY ",
            $order,
            " LIMIT 1
    FOR NO KEY UPDATE SKIP LOCKED
)
UPDATE public.webhook_deliveries d
SET next_retry_at = greatest(c.now, d.last_attempt_at + interval '1 microsecond')
        -- the older it is, the longer it waits
        + CASE WHEN isfinite(d.created_at)
            THEN least(interval '1 hour', greatest($2::interval, (c.now - d.created_at) / 4))
            ELSE $2::interval END,
    error_message = $3
FROM next n CROSS JOIN clock c WHERE d.id = n.id
RETURNING d.id"
        )
    };
}

const DUE: &str = set_aside!(" AND d.next_retry_at <= c.now", "d.next_retry_at");
const UNDATED: &str = set_aside!(" AND d.next_retry_at IS NULL", "d.next_retry_at");
const HEAD: &str =
    set_aside!(" AND (d.next_retry_at IS NULL OR d.next_retry_at <= c.now)", "d.created_at, d.id");

/// Which delivery is made to wait: what a claim for one would take next, ...
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Aside {
    /// ... of those with a due time;
    Due,
    /// ... of those without;
    Undated,
    /// ... in insertion order.
    Head,
}

/// Makes a delivery of `destination` wait, uncharged: for `delay`, or, the older it is, for longer, up to an
/// hour. Returns which one. It reads nothing of the event.
///
/// # Errors
/// Whatever the database says.
pub async fn set_aside(
    connection: &mut PgConnection,
    destination: DestinationId,
    which: Aside,
    floor: DbTime,
    delay: Duration,
    message: &str,
) -> Result<Option<DeliveryId>, StoreError> {
    let text = match which {
        Aside::Due => DUE,
        Aside::Undated => UNDATED,
        Aside::Head => HEAD,
    };
    let query = schema::query_scalar(text)
        .bind(destination.0)
        .bind(delay)
        .bind(message.replace('\0', "\u{fffd}"))
        .bind(LEASE)
        .bind(floor);
    let found: Option<Uuid> = in_time(query.fetch_optional(connection)).await?;
    Ok(found.map(DeliveryId))
}
