//! What the commands share that manage an organization's things, directly on the database.

use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use uuid::Uuid;

use crate::actors::jobs::{FAST, GENTLE, Worker};
use crate::config::DatabaseArgs;
use crate::manage::jobs::{self as manage_jobs, View};
use crate::manage::{Fault, FieldFault};
use crate::model::{JobId, OrgId, Secret};
use crate::store::doctor::{self, RowSecurity};
use crate::store::jobs::{Kind, State};
use crate::store::{self, Connection, StoreError, presence};

/// How often a progress bar moves at most.
const SHOWN_EVERY: Duration = Duration::from_millis(100);

/// Arguments of all these commands.
#[derive(clap::Args, Debug)]
pub struct DeskArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,
    /// The organization
    #[arg(long, env = "POSTHASTE_ORG", value_name = "UUID")]
    pub org: Uuid,
    /// Print JSON, for machines
    #[arg(long)]
    pub json: bool,
}

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The database is not named.
    #[error("DATABASE_URL (or --database-url) must say which database")]
    NoDatabase,
    /// What it was asked for.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It would not see everything.
    #[error("row-level security would hide rows from this role. An owner must run:\n  {}", .0.join("\n  "))]
    RowsHidden(Vec<String>),
    /// A file, or standard input.
    #[error("{0}")]
    Input(String),
}

impl Failure {
    /// A fault in what was written on the command line.
    pub fn invalid(field: &str, detail: impl Into<String>) -> Failure {
        let fault = FieldFault { field: field.to_owned(), detail: detail.into() };
        Failure::Fault(Fault::Invalid(vec![fault]))
    }
}

/// Runs `work` on the database, and prints what it returns. Exit code 1: it was not done; 2: it was called
/// wrongly.
pub fn run<T: Serialize>(
    args: &DeskArgs,
    work: impl AsyncFnOnce(&mut Connection, OrgId) -> Result<T, Failure>,
    table: impl FnOnce(&T),
) -> ExitCode {
    let done = super::block_on(async {
        let mut conn = connect(&args.database).await?;
        work(&mut conn, OrgId(args.org)).await
    });
    match done {
        Ok(done) if args.json => {
            println!("{}", serde_json::to_string_pretty(&done).unwrap_or_default());
            ExitCode::SUCCESS
        }
        Ok(done) => {
            table(&done);
            ExitCode::SUCCESS
        }
        Err(failure) => {
            eprintln!("posthaste: {failure}");
            match failure {
                Failure::NoDatabase
                | Failure::Input(_)
                | Failure::Fault(Fault::Invalid(_))
                | Failure::Store(StoreError::Url(_)) => ExitCode::from(super::EXIT_USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

async fn connect(database: &DatabaseArgs) -> Result<Connection, Failure> {
    let url = database.database_url.clone().filter(|url| !url.is_empty()).ok_or(Failure::NoDatabase)?;
    let options = store::indexed(store::options(&Secret::new(url))?);
    let mut conn = store::connect(&store::seeing_policies(options)).await?;
    match store::in_time(doctor::row_security(&mut conn)).await? {
        RowSecurity::Hiding(remedies) => Err(Failure::RowsHidden(remedies)),
        RowSecurity::Inactive | RowSecurity::Open => Ok(conn),
    }
}

/// Works on a job until it has ended, beside any dispatcher that does the same.
///
/// # Errors
/// What the database says; the job goes on with the next dispatcher.
pub async fn finish(conn: &mut Connection, org: OrgId, job: View) -> Result<View, Failure> {
    let id = JobId(job.id);
    let kind = if job.kind == Kind::Replay.name() { Kind::Replay } else { Kind::Backfill };
    let mut worker = Worker::new(if presence::is_alone(conn).await? { FAST } else { GENTLE });
    let bar = bar(&job);
    loop {
        let (_, pause) = worker.batch(conn, id, kind).await?;
        let job = manage_jobs::one(conn, org, id).await?;
        bar.set_position(job.seen as u64);
        bar.set_message(format!("{} queued", job.queued));
        if job.state != State::Running.name() {
            bar.finish_and_clear();
            return Ok(job);
        }
        tokio::time::sleep(pause).await;
    }
}

fn bar(job: &View) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let (bar, form) = match job.total {
        Some(total) => (ProgressBar::new(total as u64), "{bar:30} {pos}/{len}, {msg}, {eta} left"),
        None => (ProgressBar::new_spinner(), "{spinner} {pos}, {msg}, {elapsed}"),
    };
    bar.enable_steady_tick(SHOWN_EVERY);
    bar.with_style(ProgressStyle::with_template(form).unwrap_or_else(|_| ProgressStyle::default_bar()))
}

/// Prints rows under their headings, as wide as they need.
pub fn table<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let rows: Vec<[String; N]> = rows.into_iter().collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| row[column].chars().count());
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    });
    let headings = headings.map(str::to_owned);
    for row in std::iter::once(&headings).chain(&rows) {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// Prints names and values, one a line; what is missing is left out.
pub fn fields<'f>(fields: impl IntoIterator<Item = (&'f str, Option<String>)>) {
    for (name, value) in fields {
        if let Some(value) = value {
            println!("{name:16} {value}");
        }
    }
}

/// Says how to get the next page.
pub fn next(cursor: Option<&String>) {
    if let Some(cursor) = cursor {
        eprintln!("There is more: --cursor {cursor}");
    }
}

/// Prints a job, or a count.
pub fn begun(begun: &manage_jobs::Begun) {
    match begun {
        manage_jobs::Begun::Job(view) => job(view),
        manage_jobs::Begun::Count(view) => {
            let at_least = if view.complete { "" } else { "at least " };
            println!("{at_least}{} deliveries would be queued", view.count);
        }
    }
}

/// Prints a job.
pub fn job(job: &View) {
    fields([
        ("job", Some(job.id.to_string())),
        ("kind", Some(job.kind.to_owned())),
        ("state", Some(job.state.to_owned())),
        ("destination", Some(job.destination_id.to_string())),
        ("from", job.from.clone()),
        ("to", job.to.clone()),
        ("event type", job.event_type.clone()),
        ("seen", Some(progress(job))),
        ("queued", Some(job.queued.to_string())),
        ("error", job.error.clone()),
        ("created", Some(job.created_at.clone())),
        ("updated", Some(job.updated_at.clone())),
    ]);
}

/// How many rows a job has looked at, of how many.
pub fn progress(job: &View) -> String {
    job.total.map_or(job.seen.to_string(), |total| format!("{} of {total}", job.seen))
}

/// Begins what was asked, and works on it to its end if that was asked, too.
///
/// # Errors
/// See [`Failure`].
pub async fn begin(
    conn: &mut Connection,
    org: OrgId,
    wait: bool,
    begun: manage_jobs::Begun,
) -> Result<manage_jobs::Begun, Failure> {
    match begun {
        manage_jobs::Begun::Job(job) if wait => {
            let job = finish(conn, org, *job).await?;
            let failed = job.error.clone().filter(|_| job.state == State::Failed.name());
            match failed {
                Some(error) => Err(Failure::Fault(Fault::Conflict(error))),
                None => Ok(manage_jobs::Begun::Job(Box::new(job))),
            }
        }
        other => Ok(other),
    }
}

/// Limit of a dry run here: whoever sits before it can stop it.
pub const COUNTING: Duration = Duration::from_secs(24 * 3600);
