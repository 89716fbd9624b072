//! Where the measurements take place: a PostgreSQL server, and databases of our own on it.

use std::cell::RefCell;

use posthaste::embedded::{Durability, Embedded, default_data_dir};
use posthaste::model::Secret;
use posthaste::store::{self, database, migrate};
use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Row};
use uuid::Uuid;

use crate::{Args, LoadError, process};

/// What the private server is told beyond its defaults, unless `--set` says otherwise: PostgreSQL's defaults
/// are for machines of twenty years ago, and a checkpoint in the middle of a run is noise.
const DEFAULT_SETTINGS: [(&str, &str); 2] = [("shared_buffers", "512MB"), ("max_wal_size", "4GB")];

/// The settings that decide what is measured; they are printed with every result.
const TOLD_SETTINGS: [&str; 13] = [
    "shared_buffers",
    "fsync",
    "synchronous_commit",
    "full_page_writes",
    "wal_level",
    "wal_sync_method",
    "max_wal_size",
    "checkpoint_timeout",
    "autovacuum",
    "autovacuum_naptime",
    "work_mem",
    "max_connections",
    "track_io_timing",
];

/// A server.
pub struct Place {
    server: Server,
    /// Databases that have to be dropped.
    names: RefCell<Vec<String>>,
    /// The server's first process, where it runs on this machine.
    pub postmaster: Option<i32>,
}

enum Server {
    /// Of our own; goes with this run.
    Private(Embedded),
    /// Somebody's, by the URL of a database that stays as it is.
    Given(Secret),
}

/// A database of our own, with Posthaste's tables and no rows.
pub struct Database {
    pub url: Secret,
    name: String,
}

impl Place {
    /// The server of `DATABASE_URL`, or a new private one.
    pub async fn start(args: &Args) -> Result<Place, LoadError> {
        let server = match args.database.database_url.as_ref().filter(|url| !url.is_empty()) {
            Some(url) => Server::Given(Secret::new(url)),
            None => Server::Private(private(args).await?),
        };
        let mut place = Place { server, names: RefCell::default(), postmaster: None };
        place.postmaster = match &place.server {
            Server::Private(server) => server.pid(),
            Server::Given(_) => {
                let mut conn = connect(&place.admin()).await?;
                let backend: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&mut conn).await?;
                process::parent_of_postgres(backend)
            }
        };
        Ok(place)
    }

    /// A new database.
    pub async fn fresh(&self) -> Result<Database, LoadError> {
        // Nobody else has a database of this name, so that dropping it can hurt nobody.
        let name = format!("posthaste_load_{}", Uuid::new_v4().simple());
        self.names.borrow_mut().push(name.clone());
        database::create(&self.admin(), &name).await?;
        let url = match &self.server {
            Server::Private(server) => server.url(&name),
            Server::Given(url) => database::with_name(url, &name)?,
        };
        migrate::migrate(&store::options(&url)?, migrate::Options::default()).await?;
        Ok(Database { url, name })
    }

    /// Drops a database of [`Place::fresh`], with whoever is still connected.
    pub async fn discard(&self, database: Database) -> Result<(), LoadError> {
        database::drop(&self.admin(), &database.name).await?;
        self.names.borrow_mut().retain(|name| *name != database.name);
        Ok(())
    }

    /// Removes everything that is left of this run.
    pub async fn clear(self) -> Result<(), LoadError> {
        let admin = self.admin();
        match self.server {
            Server::Private(server) => server.remove()?,
            Server::Given(_) => {
                for name in self.names.into_inner() {
                    database::drop(&admin, &name).await?;
                }
            }
        }
        Ok(())
    }

    /// The server's version, and the settings that matter.
    pub async fn settings(&self) -> Result<(String, Vec<(String, String)>), LoadError> {
        let mut conn = connect(&self.admin()).await?;
        let version = sqlx::query_scalar("SHOW server_version").fetch_one(&mut conn).await?;
        let rows = sqlx::query("SELECT name, current_setting(name) FROM unnest($1::text[]) AS name")
            .bind(TOLD_SETTINGS.as_slice())
            .fetch_all(&mut conn)
            .await?;
        Ok((version, rows.iter().map(|row| (row.get(0), row.get(1))).collect()))
    }

    fn admin(&self) -> Secret {
        match &self.server {
            Server::Private(server) => server.url("postgres"),
            Server::Given(url) => url.clone(),
        }
    }
}

impl Database {
    /// A connection without limits of time.
    pub async fn connect(&self) -> Result<PgConnection, LoadError> {
        connect(&self.url).await
    }

    /// A connection as the dispatcher's claims and results have it.
    pub async fn connect_as_posthaste(&self) -> Result<PgConnection, LoadError> {
        Ok(store::connect(&store::planned(store::options(&self.url)?)).await?)
    }
}

/// Runs statements that return nothing; several in one text are one transaction.
pub async fn execute(conn: &mut PgConnection, sql: &str) -> Result<(), LoadError> {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(conn).await?;
    Ok(())
}

async fn connect(url: &Secret) -> Result<PgConnection, LoadError> {
    let options = store::options(url)?.application_name("load").options([("statement_timeout", "0")]);
    // As an application has it: its statements name no schema.
    let options = options.options([("search_path", "public")]);
    Ok(store::connect(&options).await?)
}

async fn private(args: &Args) -> Result<Embedded, LoadError> {
    // Beside the data of `serve --embedded`, which may be running.
    let dir = args.data_dir.data_dir.clone().unwrap_or_else(default_data_dir).join("load");
    eprintln!("starting a private PostgreSQL in {}", dir.display());
    if dir.exists() {
        // A run that was killed left it behind.
        Embedded::start(&dir, Durability::Durable)?.remove()?;
    }
    let server = Embedded::start(&dir, Durability::Durable)?;
    let configured = configure(&server, &args.set).await;
    if let Err(error) = configured {
        server.remove()?;
        return Err(error);
    }
    server.stop()?;
    Ok(Embedded::start(&dir, Durability::Durable)?)
}

/// Writes the settings; they hold from the next start on.
async fn configure(server: &Embedded, set: &[(String, String)]) -> Result<(), LoadError> {
    let mut conn = connect(&server.url("postgres")).await?;
    let given = set.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    for (name, value) in DEFAULT_SETTINGS.into_iter().chain(given) {
        if !name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '.') {
            return Err(LoadError::Other(format!("--set: {name:?} is not the name of a setting")));
        }
        execute(&mut conn, &format!("ALTER SYSTEM SET {name} = '{}'", value.replace('\'', "''"))).await?;
    }
    Ok(())
}
