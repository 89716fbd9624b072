//! The migrator: creates the tables on an empty database, and adopts those of an application.
//!
//! ```text
//! migrations/*.sql ─▶ script: what should be there ─┐
//!                                                   ├─▶ faults, preflight: why not ─▶ plan
//! the database ─────▶ catalog: what is there ───────┘
//! ```
//!
//! The preflight asks whether what is there lets our statements do what they do. The state is compared, not a
//! counter: a run that was interrupted is finished by the next one, and a second run finds nothing to do.
//! `posthaste_migrations` only tells `serve` whether everything has been applied.
//! Nothing that an application owns is dropped, rewritten or renamed; the one exception is the CHECK on
//! `auth_type`, which must let `oauth2` through.

mod catalog;
mod checks;
mod faults;
mod filters;
mod plan;
mod preflight;
mod samples;
mod script;
mod trial;

use std::time::Duration;

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection, Row, raw_sql};

use super::presence::lock_key;
use super::{ConnectOptions, StoreError, connect, fitting};
use crate::store::schema;
use catalog::Catalog;
pub use catalog::shadows;
pub use faults::ENCODING;
pub use filters::{Unusable, unusable};
pub use plan::fan_out_policy;
use plan::{Mode, Plan, Step};
pub use preflight::Finding;
pub use script::MIGRATIONS;

/// Tables that exist only so that foreign keys have something to refer to; an application's own are left
/// alone.
const STAND_INS: [&str; 2] = ["organizations", "employees"];
/// How often a migrator asks whether the other one has finished. Asking, because a session that waits inside
/// of a statement would itself be waited for by the other's CREATE INDEX CONCURRENTLY.
const LOCK_POLL: Duration = Duration::from_millis(200);
/// How long it asks: building indexes on big tables takes a while.
const LOCK_WAIT: Duration = Duration::from_secs(3600);
/// How often a step is tried whose lock (2 s) cannot be had, and the pause between tries, in which those who
/// queued up behind our request get through.
const TRIES: u32 = 60;
const PAUSE: Duration = Duration::from_millis(500);

/// What `migrate` is told.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Work out the statements and run none.
    pub dry_run: bool,
    /// Whether events become deliveries by the trigger; `None`: as before, or yes where no delivery exists.
    pub fan_out: Option<bool>,
    /// Whether triggers send notifications; `None`: as before, or yes.
    pub notify: Option<bool>,
    /// Whether destinations may stop to match anything, as their filters are beyond what one may be.
    pub accept_unusable_filters: bool,
}

/// What a run did, or would do.
#[derive(Debug, Default)]
pub struct Report {
    /// The statements, in order.
    pub statements: Vec<String>,
    /// What a person should know.
    pub notices: Vec<String>,
}

/// Why there was no migration.
#[derive(Debug, thiserror::Error)]
pub enum MigrateError {
    /// Something about the database must be changed by a person. Nothing has been done.
    #[error("nothing was changed, because:\n  - {}", .0.join("\n  - "))]
    Faults(Vec<String>),
    /// `webhook_deliveries` holds rows and nobody said who creates them from now on. Nothing has been done.
    #[error(
        "nothing was changed, because webhook_deliveries already holds rows. If the application inserts its \
         own deliveries, the trigger would collide with them: then use --without-fan-out. If it does not, or \
         inserts with ON CONFLICT DO NOTHING, use --with-fan-out. The choice is remembered"
    )]
    FanOutUndecided,
    /// Filters that have worked would match nothing. Nothing has been done.
    #[error(
        "nothing was changed, because these destinations would get no events any more:\n  - {}\nCorrect \
         them, or use --accept-unusable-filters: they match nothing then until they are corrected",
        .0.join("\n  - ")
    )]
    UnusableFilters(Vec<String>),
    /// Another migrator did not finish.
    #[error("another migration has been running for an hour; try again when it is done")]
    Busy,
    /// A step failed; those before it stay, and the next run goes on from there.
    #[error("{source}\nin: {statement}\n(a further run continues where this one stopped)")]
    Step {
        /// The statement.
        statement: String,
        /// What PostgreSQL said.
        source: StoreError,
    },
    /// The database cannot be reached or read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for MigrateError {
    fn from(error: sqlx::Error) -> MigrateError {
        MigrateError::Store(StoreError::Database(error))
    }
}

/// [`Options`] with the defaults and what is remembered filled in.
#[derive(Clone, Copy, Debug)]
struct Choices {
    fan_out: bool,
    notify: bool,
}

impl Choices {
    fn new(catalog: &Catalog, told: Options) -> Choices {
        let chosen = |told: Option<bool>, name| told.or(catalog.options.get(name).copied()).unwrap_or(true);
        Choices { fan_out: chosen(told.fan_out, "fan_out"), notify: chosen(told.notify, "notify") }
    }
}

/// Brings the database up to date, or says what that would take.
///
/// # Errors
/// See [`MigrateError`].
pub async fn migrate(options: &ConnectOptions, told: Options) -> Result<Report, MigrateError> {
    // Locks and settings of a session that is not one would stay with whoever gets it next.
    let mut conn = connect(&fitting(options).await?).await?;
    if let Err(fault) = schema::access(&mut conn).await? {
        return Err(MigrateError::Faults(vec![fault.to_string()]));
    }
    let shadows = shadows(&mut conn).await?;
    if !shadows.is_empty() {
        return Err(MigrateError::Faults(shadows.iter().map(|shadow| shadowed(shadow)).collect()));
    }
    prepare(&mut conn).await?;
    if !told.dry_run {
        lock(&mut conn).await?;
    }
    let plan = planned(&mut conn, told).await?;
    let report = Report {
        statements: plan.steps.iter().flat_map(|step| step.statements.clone()).collect(),
        notices: plan.notices,
    };
    if !told.dry_run {
        for step in &plan.steps {
            run(&mut conn, step).await?;
        }
    }
    // Closing the session also releases the lock; a failure to say goodbye changes nothing.
    drop(conn.close().await);
    Ok(report)
}

/// The migrations that this build needs and the database lacks, by name.
///
/// # Errors
/// Whatever the database says.
pub async fn pending(conn: &mut PgConnection) -> Result<Vec<&'static str>, sqlx::Error> {
    let there: bool = schema::query("SELECT to_regclass('public.posthaste_migrations') IS NOT NULL")
        .fetch_one(&mut *conn)
        .await?
        .get(0);
    let mut applied: Vec<i32> = Vec::new();
    if there {
        let rows =
            schema::query("SELECT version FROM public.posthaste_migrations").fetch_all(&mut *conn).await?;
        applied = rows.iter().map(|row| row.get(0)).collect();
    }
    Ok(MIGRATIONS.iter().filter(|m| !applied.contains(&m.version)).map(|m| m.name).collect())
}

/// The columns of the event that this `activity_logs` lacks: they are null on the wire.
///
/// # Errors
/// Whatever the database says.
pub async fn missing_event_columns(conn: &mut PgConnection) -> Result<Vec<&'static str>, sqlx::Error> {
    let sql = "SELECT attname::text FROM pg_attribute
        WHERE attrelid = to_regclass('public.activity_logs') AND attnum > 0 AND NOT attisdropped";
    let found: Vec<String> = schema::query(sql).fetch_all(conn).await?.iter().map(|row| row.get(0)).collect();
    let tables = script::statements().into_iter().filter_map(|statement| match statement.makes {
        script::Makes::Table { name: "activity_logs", columns, .. } => Some(columns),
        _ => None,
    });
    Ok(tables.flatten().map(|c| c.name).filter(|name| !found.iter().any(|f| f == name)).collect())
}

/// Columns that somebody has changed or dropped since the tables were adopted, each with its remedy.
///
/// # Errors
/// Whatever the database says.
pub async fn misshapen(conn: &mut PgConnection) -> Result<Vec<String>, sqlx::Error> {
    Ok(faults::of_tables(&Catalog::read(conn).await?, &script::statements()))
}

/// How the database differs from what it should be.
#[derive(Debug, Default)]
pub struct Drift {
    /// What `migrate` would run.
    pub statements: Vec<String>,
    /// Triggers that somebody has switched off.
    pub switched_off: Vec<String>,
    /// Ways into the rights of the functions' owner, and each with its remedy.
    pub exposures: Vec<(String, String)>,
    /// In what the application's tables differ from the given ones where that matters.
    pub differences: Vec<Finding>,
}

/// Compares without being the owner and without changing anything. The search_path must be the schema.
///
/// # Errors
/// Whatever the database says.
pub async fn drift(conn: &mut PgConnection) -> Result<Drift, sqlx::Error> {
    let catalog = Catalog::read(conn).await?;
    let mut sources = script::statements();
    keep_last_definitions(&mut sources);
    let choices = Choices::new(&catalog, Options::default());
    let plan = plan::make(conn, &catalog, &sources, choices).await?;
    let of_the_trigger = |statement: &String| statement.starts_with("CREATE POLICY");
    let statements = plan.steps.into_iter().flat_map(|step| step.statements);
    // Row-level security is another matter here: the policies that the plan has are those for the session's
    // role.
    Ok(Drift {
        statements: statements.filter(|s| !of_the_trigger(s) && !s.starts_with("REVOKE")).collect(),
        switched_off: plan.switched_off,
        exposures: exposures(conn, &catalog, &sources).await?,
        differences: preflight::look(conn, &catalog, choices.fan_out).await?,
    })
}

/// See [`Drift::exposures`].
async fn exposures(
    conn: &mut PgConnection,
    catalog: &Catalog,
    sources: &[script::Statement],
) -> Result<Vec<(String, String)>, sqlx::Error> {
    let mut exposures = Vec::new();
    let schema = schema::name();
    if catalog.public_may_create {
        exposures.push((
            format!(
                "everybody may create things in schema {schema}, and so put their own in the way of ours"
            ),
            format!("REVOKE CREATE ON SCHEMA {schema} FROM PUBLIC"),
        ));
    }
    for function in &catalog.functions {
        let name = format!("{schema}.{}({})", function.name, function.arguments);
        let is_ours = |makes: &script::Makes| match makes {
            script::Makes::Function(ours) => {
                ours.name == function.name && ours.arguments == function.arguments
            }
            _ => false,
        };
        if !sources.iter().any(|statement| is_ours(&statement.makes)) {
            exposures.push((format!("function {name} is none of ours"), format!("DROP FUNCTION {name}")));
            continue;
        }
        if let Some(stranger) = &function.stranger {
            let remedy = format!("DROP FUNCTION {name}, then run posthaste migrate");
            exposures
                .push((format!("function {name} belongs to {stranger}, not to the tables' owner"), remedy));
        }
        for role in &function.attachers {
            let remedy = format!("REVOKE ALL ON FUNCTION {name} FROM {role}");
            exposures.push((format!("{role} may make a trigger of function {name}"), remedy));
        }
        if function.is_public {
            let remedy = format!("REVOKE ALL ON FUNCTION {name} FROM PUBLIC, or run posthaste migrate");
            exposures.push((format!("everybody may execute function {name}"), remedy));
        }
        if let Some(superuser) = &function.superuser {
            exposures.push((
                format!("function {name} belongs to {superuser}, a superuser"),
                format!(
                    "ALTER FUNCTION {name} OWNER TO the owner of the tables, a role that is no superuser"
                ),
            ));
        }
    }
    let tables = sources.iter().filter_map(|statement| match statement.makes {
        script::Makes::Trigger { table, .. } => Some(table),
        _ => None,
    });
    for (trigger, table, function) in catalog::foreign_triggers(conn, &tables.collect::<Vec<_>>()).await? {
        exposures.push((
            format!("trigger {trigger} of {table} calls {function}, which is for other tables"),
            format!("find out who made it; DROP TRIGGER {trigger} ON {table}"),
        ));
    }
    Ok(exposures)
}

/// What is wrong with one of [`shadows`].
pub fn shadowed(shadow: &str) -> String {
    format!(
        "{shadow} in schema {schema} has the name of one of PostgreSQL's own, and could be called instead: \
         drop it, and REVOKE CREATE ON SCHEMA {schema} FROM whoever made it",
        schema = schema::name(),
    )
}

/// Settings on which the comparison, the locking and the sight of rows depend.
async fn prepare(conn: &mut PgConnection) -> Result<(), sqlx::Error> {
    raw_sql(AssertSqlSafe(format!(
        "SET search_path = {}; SET statement_timeout = 0; SET lock_timeout = '2s'; SET row_security = on;
         SET client_min_messages = warning; SET TimeZone = 'UTC'",
        schema::name()
    )))
    .execute(conn)
    .await?;
    Ok(())
}

async fn lock(conn: &mut PgConnection) -> Result<(), MigrateError> {
    for _ in 0..LOCK_WAIT.as_millis() / LOCK_POLL.as_millis() {
        let row =
            schema::query("SELECT pg_try_advisory_lock($1)").bind(lock_key()).fetch_one(&mut *conn).await?;
        if row.get(0) {
            return Ok(());
        }
        tokio::time::sleep(LOCK_POLL).await;
    }
    Err(MigrateError::Busy)
}

async fn planned(conn: &mut PgConnection, told: Options) -> Result<Plan, MigrateError> {
    let catalog = Catalog::read(conn).await?;
    let choices = Choices::new(&catalog, told);
    let undecided = told.fan_out.is_none() && !catalog.options.contains_key("fan_out");
    let mut statements = script::statements();
    keep_last_definitions(&mut statements);
    let newest = MIGRATIONS.iter().map(|m| m.version).max().unwrap_or(0);
    let mut faults = faults::find(&catalog, &statements, newest, choices.fan_out);
    if !faults.is_empty() {
        return Err(MigrateError::Faults(faults));
    }
    let found = preflight::look(conn, &catalog, choices.fan_out).await?;
    let (stops, lived_with): (Vec<_>, Vec<_>) = found.into_iter().partition(|finding| finding.stops);
    faults.extend(stops.into_iter().map(|finding| format!("{}: {}", finding.what, finding.remedy)));
    if !faults.is_empty() {
        return Err(MigrateError::Faults(faults));
    }
    let mut plan = plan::make(conn, &catalog, &statements, choices).await?;
    faults.append(&mut plan.faults);
    if !faults.is_empty() {
        return Err(MigrateError::Faults(faults));
    }
    // Once; from then on `check` tells it.
    if catalog.versions.is_empty() {
        plan.notices.extend(lived_with.into_iter().map(|finding| finding.what));
    }
    if undecided && catalog.has_deliveries {
        return Err(MigrateError::FanOutUndecided);
    }
    let unusable = filters::newly_unusable(conn, &catalog, &statements).await?;
    if !unusable.is_empty() {
        let named = |one: &Unusable| format!("{} of {}: {}", one.column, one.destination, one.fault);
        let named: Vec<String> = unusable.iter().map(named).collect();
        if !told.accept_unusable_filters {
            return Err(MigrateError::UnusableFilters(named));
        }
        plan.notices.extend(named.into_iter().map(|text| format!("matches nothing from now on: {text}")));
    }
    if let Some(superuser) = superuser(conn, &catalog).await? {
        plan.notices.push(format!(
            "the functions belong to {superuser}, a superuser: whoever finds a way into one of them could do \
             everything on this server. Better give the tables to a role that is none, and migrate as it"
        ));
    }
    Ok(plan)
}

/// The superuser that functions belong to, or will.
async fn superuser(conn: &mut PgConnection, catalog: &Catalog) -> Result<Option<String>, sqlx::Error> {
    let me = "SELECT rolname::text FROM pg_roles WHERE rolname = current_user AND rolsuper";
    let mut owners = catalog.functions.iter().filter_map(|function| function.superuser.clone());
    match owners.next() {
        Some(owner) => Ok(Some(owner)),
        None if catalog.functions.is_empty() => schema::query_scalar(me).fetch_optional(conn).await,
        None => Ok(None),
    }
}

/// Where a later migration defines a function, a trigger or a constraint anew, only that definition counts.
fn keep_last_definitions(statements: &mut Vec<script::Statement>) {
    let mut seen = std::collections::HashSet::new();
    statements.reverse();
    statements.retain(|statement| match &statement.makes {
        script::Makes::Function(function) => seen.insert(("", function.name)),
        script::Makes::Trigger { table, name } => seen.insert((*table, *name)),
        script::Makes::Constraint { table, name, .. } => seen.insert((*table, *name)),
        _ => true,
    });
    statements.reverse();
}

async fn run(conn: &mut PgConnection, step: &Step) -> Result<(), MigrateError> {
    // Several statements in one message are one transaction.
    let sql = step.statements.join(";\n");
    if step.mode == Mode::Concurrently {
        // Giving up half way would leave an invalid index, and waiting for old transactions keeps nobody
        // waiting.
        raw_sql("SET lock_timeout = 0").execute(&mut *conn).await?;
    }
    let mut tried = 1;
    let done = loop {
        match raw_sql(AssertSqlSafe(sql.clone())).execute(&mut *conn).await {
            Err(error) if tried < TRIES && is_lock_trouble(&error) => {
                log::info!("waiting for a lock (try {tried} of {TRIES}): {}", first_line(&sql));
                tried += 1;
                tokio::time::sleep(PAUSE).await;
            }
            done => break done,
        }
    };
    if step.mode == Mode::Concurrently {
        raw_sql("SET lock_timeout = '2s'").execute(&mut *conn).await?;
    }
    done.map(drop)
        .map_err(|error| MigrateError::Step { statement: first_line(&sql).to_owned(), source: error.into() })
}

fn is_lock_trouble(error: &sqlx::Error) -> bool {
    const LOCK_NOT_AVAILABLE: &str = "55P03";
    const DEADLOCK: &str = "40P01";
    let code = error.as_database_error().and_then(|error| error.code());
    matches!(code.as_deref(), Some(LOCK_NOT_AVAILABLE | DEADLOCK))
}

fn first_line(sql: &str) -> &str {
    sql.lines().next().unwrap_or_default()
}
