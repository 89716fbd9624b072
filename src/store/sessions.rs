//! How to connect, what every session is told, and what may stand in between: a pooler.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, Connection as _, Row, raw_sql};

use super::{StoreError, in_time};

/// SQLSTATE of a start-up parameter that a pooler does not pass on.
const PROTOCOL_VIOLATION: &str = "08P01";
/// How often two sessions are compared: somebody else may use the pooler at the same time.
const COMPARISONS: usize = 3;
/// Longest wait for an answer that a server without a pooler gives at once.
const PROMPT: Duration = Duration::from_secs(2);

/// How to connect. Sessions are told their settings at the start, or, where a pooler lets none through, by
/// the first statement.
#[derive(Clone)]
pub struct ConnectOptions {
    server: PgConnectOptions,
    settings: Vec<(&'static str, &'static str)>,
    by_statement: bool,
}

impl ConnectOptions {
    pub(super) fn new(server: PgConnectOptions) -> ConnectOptions {
        ConnectOptions { server, settings: Vec::new(), by_statement: false }
    }

    /// These settings as well; later ones win.
    pub fn options(mut self, settings: impl IntoIterator<Item = (&'static str, &'static str)>) -> Self {
        self.settings.extend(settings);
        self
    }

    /// Sessions go by this name.
    pub fn application_name(mut self, name: &str) -> Self {
        self.server = self.server.application_name(name);
        self
    }

    /// What to start a session with.
    pub(super) fn start(&self) -> PgConnectOptions {
        let settings = self.settings.iter().filter(|_| !self.by_statement);
        match self.settings.is_empty() || self.by_statement {
            true => self.server.clone(),
            false => self.server.clone().options(settings.copied()),
        }
    }

    /// What to say first, if anything.
    pub(super) fn first_statement(&self) -> Option<String> {
        let set = |(name, value): &(&str, &str)| format!("SET {name} = '{value}'");
        self.by_statement.then(|| self.settings.iter().map(set).collect::<Vec<_>>().join("; "))
    }
}

/// Opens one connection.
///
/// # Errors
/// [`StoreError::Timeout`] after [`super::STATEMENT_TIMEOUT`], else whatever the database says.
pub async fn connect(options: &ConnectOptions) -> Result<PgConnection, StoreError> {
    in_time(open(options)).await
}

async fn open(options: &ConnectOptions) -> Result<PgConnection, sqlx::Error> {
    let by_statement = ConnectOptions { by_statement: true, ..options.clone() };
    let (mut connection, options) = match PgConnection::connect_with(&options.start()).await {
        Err(sqlx::Error::Database(error)) if error.code().as_deref() == Some(PROTOCOL_VIOLATION) => {
            (PgConnection::connect_with(&by_statement.start()).await?, &by_statement)
        }
        connection => (connection?, options),
    };
    tell(&mut connection, options).await?;
    Ok(connection)
}

/// Tells a new session what it was not told at its start.
pub(super) async fn tell(connection: &mut PgConnection, options: &ConnectOptions) -> Result<(), sqlx::Error> {
    if let Some(first) = options.first_statement() {
        raw_sql(AssertSqlSafe(first)).execute(connection).await?;
    }
    Ok(())
}

/// `options` as they work here: behind a pooler in session mode, settings are told by statement, whether it
/// refuses others or swallows them.
///
/// # Errors
/// [`StoreError::Pooler`] behind a pooler in transaction mode: nothing can be done there. Else whatever the
/// database says.
pub async fn fitting(options: &ConnectOptions) -> Result<ConnectOptions, StoreError> {
    let mark = options.clone().options([("lock_timeout", "12345ms")]);
    let started = in_time(async {
        let mut connection = PgConnection::connect_with(&mark.start()).await?;
        let shown = raw_sql("SHOW lock_timeout").fetch_one(&mut connection).await?;
        Ok::<_, sqlx::Error>(shown.try_get_unchecked::<String, _>(0)? == "12345ms")
    });
    let by_statement = match started.await {
        Ok(in_effect) => !in_effect,
        Err(StoreError::Database(sqlx::Error::Database(error)))
            if error.code().as_deref() == Some(PROTOCOL_VIOLATION) =>
        {
            true
        }
        Err(error) => return Err(error),
    };
    let fitting = ConnectOptions { by_statement, ..options.clone() };
    // Whatever the server's own limit is: one of them rests in a transaction for a moment.
    let compared = fitting.clone().options([("idle_in_transaction_session_timeout", "10s")]);
    let (mut one, mut other) = (connect(&compared).await?, connect(&compared).await?);
    for _ in 0..COMPARISONS {
        if in_time(is_shared(&mut one, &mut other)).await? {
            return Err(StoreError::Pooler);
        }
    }
    Ok(fitting)
}

/// Whether two sessions are not what they seem: a pooler in transaction mode gives both the same server
/// process, one after the other, or one of them another one. Only simple queries, which work behind any
/// pooler.
async fn is_shared(one: &mut PgConnection, other: &mut PgConnection) -> Result<bool, sqlx::Error> {
    let before = process(one).await?;
    raw_sql("BEGIN").execute(&mut *other).await?;
    let others = process(other).await?;
    // A pool of one has nobody left to answer.
    let after = tokio::time::timeout(PROMPT, process(one)).await;
    raw_sql("ROLLBACK").execute(&mut *other).await?;
    Ok(match after {
        Ok(after) => before == others || before != after?,
        Err(_) => true,
    })
}

async fn process(connection: &mut PgConnection) -> Result<String, sqlx::Error> {
    raw_sql("SELECT pg_backend_pid()::text").fetch_one(connection).await?.try_get_unchecked(0)
}
