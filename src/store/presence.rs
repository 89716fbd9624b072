//! Knowing whether another dispatcher lives: a session-level advisory lock that each holds as long as it
//! lives.
//!
//! The lock belongs to the connection that claims, so that a claim still running on behalf of a killed
//! process keeps that process alive in the eyes of the next one.

use sqlx::postgres::PgConnection;

use super::{StoreError, in_time};
use crate::model::DbTime;

/// Key of the advisory lock: "posthast" in ASCII.
const LOCK_KEY: i64 = 0x706f_7374_6861_7374;

const SHARE: &str = "SELECT pg_advisory_lock_shared($1)";
const NOW: &str = "SELECT timezone('UTC', clock_timestamp())";
/// Taken and given back in one statement: between two of them the connection could die, and its session would
/// keep everybody out for as long as the server does not notice.
const TRY_EXCLUSIVE: &str =
    "SELECT CASE WHEN pg_try_advisory_lock($1) THEN pg_advisory_unlock($1) ELSE false END";

/// Takes part: from now on, and until `connection` closes, other processes can tell that this one lives.
/// Returns the moment: what was leased before is not ours.
///
/// # Errors
/// Whatever the database says.
pub async fn announce(connection: &mut PgConnection) -> Result<DbTime, StoreError> {
    in_time(async {
        // Others hold the exclusive lock for a moment at most: this does not wait.
        sqlx::query(SHARE).bind(LOCK_KEY).execute(&mut *connection).await?;
        sqlx::query_scalar(NOW).fetch_one(&mut *connection).await
    })
    .await
}

/// Whether no other dispatcher takes part at this moment. The shared lock of one's own session is not in the
/// way of its exclusive one.
///
/// # Errors
/// Whatever the database says.
pub async fn is_alone(connection: &mut PgConnection) -> Result<bool, StoreError> {
    in_time(sqlx::query_scalar(TRY_EXCLUSIVE).bind(LOCK_KEY).fetch_one(connection)).await
}
