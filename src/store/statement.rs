//! Statements, each run on a fresh plan where the kept one does not fit any more.
//!
//! sqlx prepares a statement once for each connection. Whoever changes the type of a column makes PostgreSQL
//! refuse what was prepared before ("cached plan must not change result type"), on each of these connections,
//! for as long as they live. Nothing has happened then, so the statement is prepared and run once more.

use std::ops::{Deref, DerefMut};

use futures_util::TryStreamExt;
use sqlx::error::BoxDynError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgQueryResult, PgRow};
use sqlx::query::Query as Prepared;
use sqlx::{Arguments, Connection, Encode, Postgres, SqlStr, Type};

/// SQLSTATE of a plan whose result would be of other types than were promised, ...
const FEATURE_NOT_SUPPORTED: &str = "0A000";
/// ... and of a statement that somebody has removed from the session: `DEALLOCATE ALL`, `DISCARD ALL`.
const INVALID_STATEMENT_NAME: &str = "26000";

/// Where to run a statement.
pub enum Db<'c> {
    /// On this connection.
    Connection(&'c mut PgConnection),
    /// On any of these.
    Pool(&'c PgPool),
}

impl<'c> From<&'c mut PgConnection> for Db<'c> {
    fn from(connection: &'c mut PgConnection) -> Db<'c> {
        Db::Connection(connection)
    }
}

impl<'c> From<&'c mut PoolConnection<Postgres>> for Db<'c> {
    fn from(connection: &'c mut PoolConnection<Postgres>) -> Db<'c> {
        Db::Connection(connection)
    }
}

impl<'c> From<&'c PgPool> for Db<'c> {
    fn from(pool: &'c PgPool) -> Db<'c> {
        Db::Pool(pool)
    }
}

impl<'c> Db<'c> {
    async fn connection(self) -> Result<Held<'c>, sqlx::Error> {
        Ok(match self {
            Db::Connection(connection) => Held::Borrowed(connection),
            Db::Pool(pool) => Held::Pooled(pool.acquire().await?),
        })
    }
}

enum Held<'c> {
    Borrowed(&'c mut PgConnection),
    Pooled(PoolConnection<Postgres>),
}

impl Deref for Held<'_> {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        match self {
            Held::Borrowed(connection) => connection,
            Held::Pooled(connection) => connection,
        }
    }
}

impl DerefMut for Held<'_> {
    fn deref_mut(&mut self) -> &mut PgConnection {
        match self {
            Held::Borrowed(connection) => connection,
            Held::Pooled(connection) => connection,
        }
    }
}

/// What a statement makes of a row.
type Read<O> = Box<dyn Fn(PgRow) -> Result<O, sqlx::Error> + Send + Sync>;

/// A statement with its parameters, and what becomes of each row.
pub struct Query<O = PgRow> {
    sql: SqlStr,
    arguments: Result<PgArguments, BoxDynError>,
    persistent: bool,
    read: Read<O>,
}

impl<O: 'static> Query<O> {
    pub(super) fn new(sql: SqlStr, read: fn(PgRow) -> Result<O, sqlx::Error>) -> Query<O> {
        Query { sql, arguments: Ok(PgArguments::default()), persistent: true, read: Box::new(read) }
    }

    /// Makes something else of each row.
    pub fn map<P>(self, make: impl Fn(O) -> P + Send + Sync + 'static) -> Query<P> {
        let Query { sql, arguments, persistent, read } = self;
        Query { sql, arguments, persistent, read: Box::new(move |row| read(row).map(&make)) }
    }
}

impl<O> Query<O> {
    /// The next parameter.
    pub fn bind<'t, T: Encode<'t, Postgres> + Type<Postgres>>(mut self, value: T) -> Query<O> {
        if let Ok(arguments) = &mut self.arguments
            && let Err(fault) = arguments.add(value)
        {
            self.arguments = Err(fault);
        }
        self
    }

    /// Whether it is kept prepared on its connection.
    pub fn persistent(mut self, persistent: bool) -> Query<O> {
        self.persistent = persistent;
        self
    }

    /// The statement for sqlx, as often as it is needed.
    fn prepared(&mut self) -> Result<Prepared<'static, Postgres, PgArguments>, sqlx::Error> {
        match &mut self.arguments {
            Ok(arguments) => {
                let query = sqlx::query_with(self.sql.clone(), arguments.clone());
                Ok(query.persistent(self.persistent))
            }
            Err(fault) => Err(sqlx::Error::Encode(std::mem::replace(fault, "it was said before".into()))),
        }
    }

    /// Runs it; how many rows it touched.
    ///
    /// # Errors
    /// Whatever the database says.
    pub async fn execute<'c>(mut self, db: impl Into<Db<'c>>) -> Result<PgQueryResult, sqlx::Error> {
        let mut connection = db.into().connection().await?;
        match self.prepared()?.execute(&mut *connection).await {
            Err(error) if renewed(&mut connection, &error).await? => {
                self.prepared()?.execute(&mut *connection).await
            }
            done => done,
        }
    }

    /// Runs it; all its rows.
    ///
    /// # Errors
    /// Whatever the database says.
    pub async fn fetch_all<'c>(mut self, db: impl Into<Db<'c>>) -> Result<Vec<O>, sqlx::Error> {
        let mut connection = db.into().connection().await?;
        let rows = match self.prepared()?.fetch_all(&mut *connection).await {
            Err(error) if renewed(&mut connection, &error).await? => {
                self.prepared()?.fetch_all(&mut *connection).await
            }
            done => done,
        };
        rows?.into_iter().map(self.read).collect()
    }

    /// Runs it; its first row, if it has one.
    ///
    /// # Errors
    /// Whatever the database says.
    pub async fn fetch_optional<'c>(mut self, db: impl Into<Db<'c>>) -> Result<Option<O>, sqlx::Error> {
        let mut connection = db.into().connection().await?;
        let row = match self.prepared()?.fetch_optional(&mut *connection).await {
            Err(error) if renewed(&mut connection, &error).await? => {
                self.prepared()?.fetch_optional(&mut *connection).await
            }
            done => done,
        };
        row?.map(self.read).transpose()
    }

    /// Runs it; its first row.
    ///
    /// # Errors
    /// Whatever the database says; [`sqlx::Error::RowNotFound`] where there is none.
    pub async fn fetch_one<'c>(self, db: impl Into<Db<'c>>) -> Result<O, sqlx::Error> {
        self.fetch_optional(db).await?.ok_or(sqlx::Error::RowNotFound)
    }

    /// Runs it; its rows one by one, for those who keep no more than they need.
    ///
    /// # Errors
    /// Whatever the database says, and what `each` does.
    pub async fn for_each<'c>(
        mut self,
        db: impl Into<Db<'c>>,
        mut each: impl FnMut(O) -> Result<(), sqlx::Error>,
    ) -> Result<(), sqlx::Error> {
        let mut connection = db.into().connection().await?;
        // A plan that does not fit is refused before the first row.
        for is_first in [true, false] {
            let error = {
                let mut rows = self.prepared()?.fetch(&mut *connection);
                loop {
                    match rows.try_next().await {
                        Ok(Some(row)) => each((self.read)(row)?)?,
                        Ok(None) => return Ok(()),
                        Err(error) => break error,
                    }
                }
            };
            if !is_first || !renewed(&mut connection, &error).await? {
                return Err(error);
            }
        }
        Ok(())
    }
}

/// Whether `error` says that what was prepared does not fit any more: nothing has happened then.
pub(super) fn is_stale(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some(FEATURE_NOT_SUPPORTED | INVALID_STATEMENT_NAME))
}

/// Forgets what is prepared on this connection if that is what `error` is about. Whether the statement can be
/// run again: a transaction has to begin anew.
async fn renewed(connection: &mut PgConnection, error: &sqlx::Error) -> Result<bool, sqlx::Error> {
    if !is_stale(error) {
        return Ok(false);
    }
    connection.clear_cached_statements().await?;
    Ok(!connection.is_in_transaction())
}
