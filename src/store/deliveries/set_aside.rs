//! Setting aside what cannot be read: a claim that fails for one row must not fail for ever.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use uuid::Uuid;

use super::LEASE;
use crate::model::{DbTime, DeliveryId, DestinationId};
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
        + least(interval '1 hour', greatest($2::interval, (c.now - d.created_at) / 4)),
    error_message = $3
FROM next n CROSS JOIN clock c WHERE d.id = n.id
RETURNING d.id"
        )
    };
}

const SET_ASIDE: &str = set_aside!(" AND d.next_retry_at <= c.now", "d.next_retry_at");
const SET_ASIDE_WITHOUT_TIME: &str = set_aside!(" AND d.next_retry_at IS NULL", "d.next_retry_at");
const SET_ASIDE_ORDERED: &str = set_aside!("", "d.created_at, d.id");

/// Makes the delivery wait, uncharged, which a claim for one would take next: for `delay`, or, the older it
/// is, for longer, up to an hour. Returns which one. It reads nothing of the event.
///
/// # Errors
/// Whatever the database says.
pub async fn set_aside(
    connection: &mut PgConnection,
    destination: DestinationId,
    is_ordered: bool,
    floor: DbTime,
    delay: Duration,
    message: &str,
) -> Result<Option<DeliveryId>, StoreError> {
    let texts: &[&'static str] = match is_ordered {
        true => &[SET_ASIDE_ORDERED],
        false => &[SET_ASIDE, SET_ASIDE_WITHOUT_TIME],
    };
    for text in texts {
        let query = sqlx::query_scalar(*text)
            .bind(destination.0)
            .bind(delay)
            .bind(message.replace('\0', "\u{fffd}"))
            .bind(LEASE)
            .bind(floor);
        let found: Option<Uuid> = in_time(query.fetch_optional(&mut *connection)).await?;
        if let Some(id) = found {
            return Ok(Some(DeliveryId(id)));
        }
    }
    Ok(None)
}
