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

/// Whether this process is the only one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// No other dispatcher lives: leases taken before this moment belong to nobody.
    Alone(DbTime),
    /// Others live, and their leases count.
    Shared,
}

const TRY_EXCLUSIVE: &str = "SELECT pg_try_advisory_lock($1)";
const SHARE: &str = "SELECT pg_advisory_lock_shared($1)";
const UNLOCK_EXCLUSIVE: &str = "SELECT pg_advisory_unlock($1), timezone('UTC', clock_timestamp())";

/// Takes part: from now on, and until `connection` closes, other processes can tell that this one lives.
///
/// # Errors
/// Whatever the database says.
pub async fn announce(connection: &mut PgConnection) -> Result<Presence, StoreError> {
    in_time(async {
        let alone: bool =
            sqlx::query_scalar(TRY_EXCLUSIVE).bind(LOCK_KEY).fetch_one(&mut *connection).await?;
        // The exclusive lock is held by others for two statements at most: this does not wait.
        sqlx::query(SHARE).bind(LOCK_KEY).execute(&mut *connection).await?;
        if !alone {
            return Ok(Presence::Shared);
        }
        let (_, now): (bool, DbTime) =
            sqlx::query_as(UNLOCK_EXCLUSIVE).bind(LOCK_KEY).fetch_one(&mut *connection).await?;
        Ok(Presence::Alone(now))
    })
    .await
}
