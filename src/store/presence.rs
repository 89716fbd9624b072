//! Knowing whether another dispatcher lives: a session-level advisory lock that each holds as long as it
//! lives.
//!
//! The lock belongs to the connection that claims, so that a claim still running on behalf of a killed
//! process keeps that process alive in the eyes of the next one.
//!
//! Any login may take an advisory lock, and so keep us from taking this one. So nothing waits for it:
//! whoever cannot take part goes on without, and tries again each second: others take a process for gone
//! only when they have not seen it for longer. All that a stranger's lock can do is that leases of a
//! process that is gone last to their end.

use sqlx::postgres::PgConnection;

use super::{StoreError, in_time};
use crate::model::DbTime;
use crate::store::schema;

/// Key of the advisory lock: "posthast" in ASCII. `migrate` takes it as well.
const LOCK_KEY: i64 = 0x706f_7374_6861_7374;

const TRY_SHARE: &str = "SELECT pg_try_advisory_lock_shared($1)";
const NOW: &str = "SELECT timezone('UTC', clock_timestamp())";
/// Taken and given back in one statement: between two of them the connection could die, and its session would
/// keep everybody out for as long as the server does not notice.
const TRY_EXCLUSIVE: &str =
    "SELECT CASE WHEN pg_try_advisory_lock($1) THEN pg_advisory_unlock($1) ELSE false END";

/// The key in this schema.
pub(super) fn lock_key() -> i64 {
    schema::lock_key(LOCK_KEY)
}

/// The database's clock: what was leased before the first connection of a process is not its own.
///
/// # Errors
/// Whatever the database says.
pub async fn now(connection: &mut PgConnection) -> Result<DbTime, StoreError> {
    in_time(schema::query_scalar(NOW).fetch_one(connection)).await
}

/// Takes part: from now on, and until `connection` closes, other processes can tell that this one lives.
/// `false`: somebody holds the lock exclusively, for a moment as [`is_alone`] does, or a stranger. Once it is
/// taken, it must not be asked for again: locks of a session are counted.
///
/// # Errors
/// Whatever the database says.
pub async fn try_take_part(connection: &mut PgConnection) -> Result<bool, StoreError> {
    in_time(schema::query_scalar(TRY_SHARE).bind(lock_key()).fetch_one(connection)).await
}

/// Whether no other dispatcher takes part at this moment. The shared lock of one's own session is not in the
/// way of its exclusive one.
///
/// # Errors
/// Whatever the database says.
pub async fn is_alone(connection: &mut PgConnection) -> Result<bool, StoreError> {
    in_time(schema::query_scalar(TRY_EXCLUSIVE).bind(lock_key()).fetch_one(connection)).await
}
