//! Whole databases: made for the private server and for `posthaste demo`, which drops its own again.

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection};
use url::form_urlencoded::Serializer;

use super::schema::quoted;
use super::{StoreError, connect, connection_url, options};
use crate::model::Secret;

/// Creating or dropping a database writes files and may wait for a checkpoint.
const DATABASE_TIMEOUT: Duration = Duration::from_secs(60);

/// SQLSTATE of a database that exists already.
const DUPLICATE_DATABASE: &str = "42P04";

/// Creates the database `name` on the server of `server`.
///
/// # Errors
/// Also when the database exists.
pub async fn create(server: &Secret, name: &str) -> Result<(), StoreError> {
    command(server, format!("CREATE DATABASE {}", quoted(name))).await
}

/// Creates the database `name` unless it exists.
///
/// # Errors
/// What the server says.
pub async fn create_if_missing(server: &Secret, name: &str) -> Result<(), StoreError> {
    match create(server, name).await {
        Err(StoreError::Database(sqlx::Error::Database(error)))
            if error.code().as_deref() == Some(DUPLICATE_DATABASE) =>
        {
            Ok(())
        }
        done => done,
    }
}

/// Drops the database `name`, and the connections to it.
///
/// # Errors
/// What the server says.
pub async fn drop(server: &Secret, name: &str) -> Result<(), StoreError> {
    command(server, format!("DROP DATABASE IF EXISTS {} WITH (FORCE)", quoted(name))).await
}

/// `url` with another database in it.
///
/// # Errors
/// When `url` is no URL.
pub fn with_name(url: &Secret, name: &str) -> Result<Secret, StoreError> {
    let mut url = connection_url::normal(url.reveal())?;
    url.set_path(name);
    // The parameter would win over the path.
    let others: Vec<_> = url.query_pairs().filter(|(key, _)| key != "dbname").collect();
    let query = others.iter().fold(Serializer::new(String::new()), |mut query, (key, value)| {
        query.append_pair(key, value);
        query
    });
    let query = { query }.finish();
    url.set_query(Some(query.as_str()).filter(|query| !query.is_empty()));
    Ok(Secret::new(url.as_str()))
}

/// Says goodbye. A server that does not listen any more needs none.
pub async fn close(connection: PgConnection) {
    if let Err(error) = connection.close().await {
        log::debug!("a database connection was not closed in order: {error}");
    }
}

async fn command(server: &Secret, sql: String) -> Result<(), StoreError> {
    let mut connection = connect(&options(server)?.options([("statement_timeout", "0")])).await?;
    let executed = sqlx::query(AssertSqlSafe(sql)).persistent(false).execute(&mut connection);
    match tokio::time::timeout(DATABASE_TIMEOUT, executed).await {
        Ok(done) => done?,
        Err(_) => return Err(StoreError::Timeout),
    };
    close(connection).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_keeps_everything_but_its_database() {
        for (url, expected) in [
            ("postgres://u:p%40@host:5433/app", "postgres://u:p%40@host:5433/demo"),
            ("postgres://host?sslmode=require", "postgres://host/demo?sslmode=require"),
            ("postgres:///app?host=%2Frun%2Fpg&user=u", "postgres:///demo?host=%2Frun%2Fpg&user=u"),
            ("postgres://host/app?dbname=other&user=u", "postgres://host/demo?user=u"),
        ] {
            assert_eq!(with_name(&Secret::new(url), "demo").unwrap().reveal(), expected);
        }
        assert!(with_name(&Secret::new("host=localhost"), "demo").is_err());
    }
}
