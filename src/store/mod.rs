//! The only SQL. Each statement is a constant right above the one function that runs it.
//!
//! Timestamps are `timestamp without time zone` and mean UTC; statements say `timezone('UTC', …)` and never depend
//! on session settings. They cross the wire as microseconds since 1970 ([`crate::model::DbTime`]), so that
//! `infinity` in an application's table cannot hurt.

pub mod database;
pub mod doctor;
pub mod migrate;

use std::str::FromStr;
use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};

use crate::model::Secret;

/// Longest wait for any statement, on our side: PostgreSQL's own limits cannot help on a dead link.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest wait for a connection.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(4);

/// What went wrong with the database, by what the caller does about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The connection URL cannot be used; nothing will help but another one.
    #[error("the database URL cannot be used: {0}")]
    Url(String),
    /// The database did not answer in time: drop the connection and try again.
    #[error("the database did not answer within {} s", STATEMENT_TIMEOUT.as_secs())]
    Timeout,
    /// The database, or the way to it, refused: drop the connection and try again.
    #[error("{0}")]
    Database(#[from] sqlx::Error),
}

/// Connection options for `url` with everything that our sessions need.
///
/// `row_security = off` makes a policy that would hide rows an error instead of silence.
///
/// # Errors
/// [`StoreError::Url`] when `url` is not a PostgreSQL URL; the message does not repeat it, as it may hold a password.
pub fn options(url: &Secret) -> Result<PgConnectOptions, StoreError> {
    const FORM: &str = "it should look like postgres://user@host:5432/database";
    if !["postgres://", "postgresql://"].iter().any(|scheme| url.reveal().starts_with(scheme)) {
        return Err(StoreError::Url(FORM.into()));
    }
    let options = PgConnectOptions::from_str(url.reveal())
        .map_err(|error| StoreError::Url(format!("{error}; {FORM}")))?;
    Ok(options
        .application_name("posthaste")
        .extra_float_digits(None)
        .options([("row_security", "off"), ("statement_timeout", "30s"), ("lock_timeout", "5s")])
        .log_statements(log::LevelFilter::Trace)
        .log_slow_statements(log::LevelFilter::Debug, Duration::from_secs(1)))
}

/// Opens one connection.
///
/// # Errors
/// [`StoreError::Timeout`] after [`CONNECT_TIMEOUT`], else whatever the database says.
pub async fn connect(options: &PgConnectOptions) -> Result<PgConnection, StoreError> {
    in_time(PgConnection::connect_with(options)).await
}

/// Runs `statement` for at most [`STATEMENT_TIMEOUT`].
///
/// # Errors
/// [`StoreError::Timeout`]: the connection is then in an unknown state and must be dropped.
pub async fn in_time<T>(statement: impl Future<Output = Result<T, sqlx::Error>>) -> Result<T, StoreError> {
    match tokio::time::timeout(STATEMENT_TIMEOUT, statement).await {
        Ok(done) => Ok(done?),
        Err(_) => Err(StoreError::Timeout),
    }
}
