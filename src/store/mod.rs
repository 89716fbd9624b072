//! The only SQL. Each statement is a constant right above the one function that runs it.
//!
//! Timestamps are `timestamp without time zone` and mean UTC; statements say `timezone('UTC', …)` and never
//! depend on session settings. They cross the wire as microseconds since 1970 ([`crate::model::DbTime`]), so
//! that `infinity` in an application's table cannot hurt.

mod connection_url;
pub mod database;
pub mod deliveries;
pub mod demo;
pub mod destinations;
pub mod doctor;
pub mod events;
pub mod faults;
pub mod jobs;
pub mod keys;
pub mod listener;
pub mod migrate;
pub mod organizations;
pub mod page;
pub mod presence;
pub mod queues;
pub mod retention;
pub mod schema;
pub mod secrets;
pub mod sessions;
mod statement;
mod time;
pub mod trouble;

use std::time::Duration;

use sqlx::ConnectOptions as _;
use sqlx::postgres::{PgConnection, PgPool, PgPoolOptions};

pub use self::sessions::{ConnectOptions, connect, fitting};
pub use self::statement::Db;
use crate::model::Secret;

/// One connection to the database, for those above this module, who need not know whose it is.
pub type Connection = PgConnection;
/// Some connections, opened when they are needed.
pub type Pool = PgPool;
/// A [`Connection`] that goes back to its pool.
pub type Pooled = sqlx::pool::PoolConnection<sqlx::Postgres>;

/// Longest wait for any statement, on our side: PostgreSQL's own limits cannot help on a dead link.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(4);
/// Longest wait for a connection from a pool.
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(2);
/// Longest wait for a connection to be idle that is given back; otherwise it is closed.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(1);
/// Longest wait for the reason why there is none.
const CAUSE_TIMEOUT: Duration = Duration::from_secs(1);

/// What went wrong with the database, by what the caller does about it.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The connection URL cannot be used; nothing will help but another one.
    #[error("the database URL cannot be used: {0}")]
    Url(String),
    /// The database did not answer in time: drop the connection and try again.
    #[error("the database did not answer within {} s", STATEMENT_TIMEOUT.as_secs())]
    Timeout,
    /// There is a pooler that gives each transaction another session: nothing will help but another way.
    #[error(
        "there is a pooler in transaction mode before the database: connect to PostgreSQL directly, or \
         through a pooler in session mode (pgbouncer: pool_mode = session)"
    )]
    Pooler,
    /// The connection has ended without a word: connect again.
    #[error("the database closed the connection")]
    Closed,
    /// The database, or the way to it, refused: drop the connection and try again.
    #[error("{}", said(.0))]
    Database(#[from] sqlx::Error),
}

/// What went wrong, for people: without the line of PostgreSQL's own source that said so, which sqlx adds.
fn said(error: &sqlx::Error) -> String {
    match error {
        sqlx::Error::Database(error) => format!("the database says: {}", error.message()),
        error => error.to_string(),
    }
}

impl StoreError {
    /// Whether somebody else held a lock for too long (SQLSTATE 55P03), or both waited for each other
    /// (40P01).
    pub fn is_about_locks(&self) -> bool {
        match self {
            StoreError::Database(sqlx::Error::Database(error)) => {
                matches!(error.code().as_deref(), Some("55P03" | "40P01"))
            }
            _ => false,
        }
    }

    /// Whether less might be possible where this was too much: it took too long, a limit of the program was
    /// exceeded (54), memory ran out (53200), or a value is larger than the server can handle (XX000).
    pub fn is_about_size(&self) -> bool {
        match self {
            StoreError::Timeout => true,
            StoreError::Database(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| code.starts_with("54") || matches!(&*code, "53200" | "XX000"))
            }
            _ => false,
        }
    }

    /// Whether nothing came back: the connection may be dead, and others with it.
    pub fn is_silence(&self) -> bool {
        matches!(self, StoreError::Timeout | StoreError::Database(sqlx::Error::PoolTimedOut))
    }

    /// The constraint that refused the data.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            StoreError::Database(sqlx::Error::Database(error)) => error.constraint(),
            _ => None,
        }
    }

    /// Whether something of this name is there already (SQLSTATE 23505).
    pub fn is_about_uniqueness(&self) -> bool {
        match self {
            StoreError::Database(sqlx::Error::Database(error)) => error.is_unique_violation(),
            _ => false,
        }
    }

    /// Whether this role may not do it (SQLSTATE 42501).
    pub fn is_about_rights(&self) -> bool {
        match self {
            StoreError::Database(sqlx::Error::Database(error)) => error.code().as_deref() == Some("42501"),
            _ => false,
        }
    }

    /// Whether it is about this moment rather than about what was asked: connections (SQLSTATE class 08),
    /// read-only (25006), locks and serialization (40), resources (53), an operator or a timeout (57).
    pub fn is_about_the_moment(&self) -> bool {
        match self {
            StoreError::Database(sqlx::Error::Database(error)) => error.code().is_some_and(|code| {
                ["08", "40", "53", "57"].iter().any(|class| code.starts_with(class)) || code == "25006"
            }),
            other => !other.is_about_data(),
        }
    }

    /// Whether trying the same again will not help, until somebody mends what it is about: the database
    /// refuses it, a trigger raises, a right is missing, a value cannot be read.
    pub fn is_lasting(&self) -> bool {
        match self {
            StoreError::Database(sqlx::Error::Database(_)) => {
                !self.is_about_the_moment() && !self.is_about_locks()
            }
            StoreError::Database(
                sqlx::Error::Encode(_) | sqlx::Error::Decode(_) | sqlx::Error::ColumnDecode { .. },
            ) => true,
            _ => false,
        }
    }

    /// Whether the same will fail again until something is changed about what was asked for, or less is.
    pub fn is_about_what_was_asked(&self) -> bool {
        self.is_lasting() || self.is_about_size() && self.is_an_answer()
    }

    /// Whether the database's encoding lacks a character (SQLSTATE 22P05).
    pub fn is_about_characters(&self) -> bool {
        match self {
            StoreError::Database(sqlx::Error::Database(error)) => error.code().as_deref() == Some("22P05"),
            _ => false,
        }
    }

    /// Whether the data is nested too deeply for the server (SQLSTATE 54001).
    pub fn is_about_depth(&self) -> bool {
        match self {
            StoreError::Database(sqlx::Error::Database(error)) => error.code().as_deref() == Some("54001"),
            _ => false,
        }
    }

    /// Whether the database said so itself.
    pub fn is_an_answer(&self) -> bool {
        matches!(self, StoreError::Database(sqlx::Error::Database(_)))
    }

    /// Whether the database refused the data (SQLSTATE classes 22 and 23) rather than the moment: trying
    /// again with the same data will not help.
    pub fn is_about_data(&self) -> bool {
        match self {
            StoreError::Database(sqlx::Error::Database(error)) => {
                error.code().is_some_and(|code| code.starts_with("22") || code.starts_with("23"))
            }
            StoreError::Database(sqlx::Error::Encode(_)) => true,
            _ => false,
        }
    }
}

/// Connection options for `url` with everything that our sessions need.
///
/// `row_security = off` makes a policy that would hide rows an error instead of silence.
///
/// # Errors
/// [`StoreError::Url`] when `url` is not a PostgreSQL URL; the message does not repeat it, as it may hold a
/// password.
pub fn options(url: &Secret) -> Result<ConnectOptions, StoreError> {
    let server = connection_url::read(url.reveal())?
        .application_name("posthaste")
        .extra_float_digits(None)
        .log_statements(log::LevelFilter::Trace)
        .log_slow_statements(log::LevelFilter::Debug, Duration::from_secs(1));
    Ok(ConnectOptions::new(server)
        // The lock timeout is below STATEMENT_TIMEOUT: PostgreSQL says what is wrong, and a connection that
        // had to wait can be used again.
        .options([("row_security", "off"), ("statement_timeout", "30s"), ("lock_timeout", "2s")])
        // However the role or the database is set up: what PostgreSQL prints is compared and read, what our
        // statements say means what it says, and each of them sees what was committed before it.
        .options([("quote_all_identifiers", "off"), ("standard_conforming_strings", "on")])
        .options([("DateStyle", "ISO"), ("IntervalStyle", "postgres"), ("bytea_output", "hex")])
        .options([("extra_float_digits", "1"), ("array_nulls", "on"), ("transform_null_equals", "off")])
        .options([("default_transaction_isolation", "read committed")])
        // Nothing that somebody else has made is reached: our statements name the schema of our tables.
        .options([("search_path", "pg_catalog")])
        // A session whose client has gone without a word must not keep its locks for the hours that the
        // server would wait. In a session by a Unix socket they mean nothing.
        .options([("tcp_keepalives_idle", "15"), ("tcp_keepalives_interval", "5")])
        .options([("tcp_keepalives_count", "3"), ("tcp_user_timeout", "30s")]))
}

/// `options` for a role to which policies apply that let every row through: with `row_security = off`
/// PostgreSQL refuses even those.
pub fn seeing_policies(options: ConnectOptions) -> ConnectOptions {
    options.options([("row_security", "on")])
}

/// `options` for the statements that look for work, claim and record: planned once, and always by the
/// indexes that were made for them. The arrays that they are given say nothing to the planner, and a table
/// that has grown since its last ANALYZE must not turn a claim into a scan.
pub fn planned(options: ConnectOptions) -> ConnectOptions {
    options.options([
        ("plan_cache_mode", "force_generic_plan"),
        ("enable_hashjoin", "off"),
        ("enable_mergejoin", "off"),
        ("enable_seqscan", "off"),
        // While nothing is due, any index of what is due looks as good as the one that has its order.
        ("enable_sort", "off"),
        ("jit", "off"),
        // Events pass through sorts.
        ("work_mem", "16MB"),
        // Somebody's long transaction holds up what it has locked, and little else.
        ("lock_timeout", "1s"),
        // A claim of ordered destinations whose process has gone must not keep its locks.
        ("idle_in_transaction_session_timeout", "10s"),
    ])
}

/// `options` for the statements behind the API and the command line: each is made for an index, whatever the
/// planner takes a table for.
pub fn indexed(options: ConnectOptions) -> ConnectOptions {
    options.options([
        ("enable_seqscan", "off"),
        ("jit", "off"),
        // Below STATEMENT_TIMEOUT: what is not waited for any more must not go on.
        ("statement_timeout", "3500ms"),
    ])
}

/// A pool of at most `most` connections; it opens none yet.
pub fn pool(options: ConnectOptions, most: u32) -> Pool {
    let start = options.start();
    let pool = PgPoolOptions::new().max_connections(most).acquire_timeout(ACQUIRE_TIMEOUT);
    let pool = pool.after_connect(move |connection, _| {
        let options = options.clone();
        Box::pin(async move { sessions::tell(connection, &options).await })
    });
    // Whoever gave up in the middle of a statement gives back a connection that is still busy.
    let pool = pool.after_release(|connection, _| {
        Box::pin(async move {
            let idle = tokio::time::timeout(RELEASE_TIMEOUT, sqlx::Connection::ping(connection)).await;
            Ok(matches!(idle, Ok(Ok(()))))
        })
    });
    pool.connect_lazy_with(start)
}

/// A connection of `pool`, to be used for one thing and given back.
///
/// # Errors
/// When none is free in time, or the database does not answer.
pub async fn acquire(pool: &Pool) -> Result<Pooled, StoreError> {
    in_time(pool.acquire()).await
}

/// Whether a connection at rest lives.
pub async fn answers(connection: &mut Connection) -> bool {
    in_time(schema::query("SELECT 1").execute(connection)).await.is_ok()
}

/// Asks whether the database answers.
///
/// # Errors
/// Whatever the database says.
pub async fn ping(pool: &Pool) -> Result<(), StoreError> {
    match in_time(schema::query("SELECT 1").execute(pool)).await {
        Ok(_) => Ok(()),
        Err(error) => Err(cause(pool, error).await),
    }
}

/// What is behind an error of `pool`: it tries to connect until its time is up, and says no more than that.
/// One try without it says why.
pub async fn cause(pool: &Pool, error: StoreError) -> StoreError {
    if !error.is_silence() {
        return error;
    }
    match tokio::time::timeout(CAUSE_TIMEOUT, pool.connect_options().connect()).await {
        Ok(Err(cause)) => cause.into(),
        _ => error,
    }
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
