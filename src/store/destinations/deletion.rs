//! Deleting a destination: its deliveries first, some at a time, then the row itself.
//!
//! PostgreSQL says no word where a trigger, a rule or a policy of the application keeps a row, so what was
//! not deleted is told from what could not be.

use sqlx::postgres::PgConnection;

use crate::model::{DestinationId, OrgId};
use crate::store::schema;
use crate::store::{StoreError, in_time};

const DELETE_DELIVERIES: &str = "
    WITH picked AS MATERIALIZED (
        SELECT w.id FROM public.webhook_deliveries w WHERE w.destination_id = $1 LIMIT $2
        -- what somebody else deletes at this moment is not waited for
        FOR UPDATE SKIP LOCKED
    ),
    deleted AS (
        DELETE FROM public.webhook_deliveries d
        WHERE d.id = ANY (ARRAY(SELECT p.id FROM picked p)) RETURNING 1
    )
    SELECT (SELECT count(*) FROM picked), (SELECT count(*) FROM deleted)";

/// What became of some deliveries that were to be deleted.
#[derive(Clone, Copy, Debug)]
pub struct Deletions {
    /// So many could be: nobody had locked them.
    pub picked: u64,
    /// So many were. A trigger of the application may keep what is to be deleted, without an error.
    pub deleted: u64,
}

/// Deletes up to `most` deliveries to a destination.
///
/// # Errors
/// Whatever the database says.
pub async fn delete_deliveries(
    db: &mut PgConnection,
    id: DestinationId,
    most: i64,
) -> Result<Deletions, StoreError> {
    let query = schema::query_as(DELETE_DELIVERIES).bind(id.0).bind(most);
    let (picked, deleted): (i64, i64) = in_time(query.fetch_one(db)).await?;
    Ok(Deletions { picked: picked as u64, deleted: deleted as u64 })
}

/// Deliveries go before it: to cascade over millions of them would take too long.
const DELETE: &str = "
    WITH deleted AS (
        DELETE FROM public.webhook_destinations w WHERE w.org_id = $1 AND w.id = $2
            AND NOT EXISTS (SELECT FROM public.webhook_deliveries d WHERE d.destination_id = $2)
        RETURNING 1
    )
    SELECT EXISTS (SELECT FROM deleted)
            OR NOT EXISTS (SELECT FROM public.webhook_destinations w WHERE w.org_id = $1 AND w.id = $2),
        EXISTS (SELECT FROM public.webhook_deliveries d WHERE d.destination_id = $2)";

/// What became of a destination that was to be deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Deletion {
    /// It is gone.
    Gone,
    /// It has deliveries.
    HasDeliveries,
    /// It has none, and is there all the same: a trigger of the application has kept it, without an error.
    Kept,
}

/// Deletes a destination that has no deliveries any more.
///
/// # Errors
/// Whatever the database says.
pub async fn delete(db: &mut PgConnection, org: OrgId, id: DestinationId) -> Result<Deletion, StoreError> {
    let query = schema::query_as(DELETE).bind(org.0).bind(id.0);
    Ok(match in_time(query.fetch_one(db)).await? {
        (true, _) => Deletion::Gone,
        (false, true) => Deletion::HasDeliveries,
        (false, false) => Deletion::Kept,
    })
}
