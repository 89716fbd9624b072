//! What the commands share that manage an organization's things, directly on the database.

use std::io::{IsTerminal as _, Read as _};
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use console::{Alignment, measure_text_width, pad_str, style};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use uuid::Uuid;

use super::output::{self, visible};
use crate::actors::jobs::{FAST, GENTLE, Worker};
use crate::clock;
use crate::config::{ConfigFaults, DatabaseArgs};
use crate::manage::jobs::{self as manage_jobs, View};
use crate::manage::{Fault, FieldFault, List};
use crate::model::{JobId, OrgId, Secret};
use crate::outbound::NetworkError;
use crate::store::doctor::{self, RowSecurity};
use crate::store::jobs::{Kind, State};
use crate::store::{self, Connection, StoreError, presence};

/// How long a person waits for the first row of a list.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a progress bar moves at most.
const SHOWN_EVERY: Duration = Duration::from_millis(100);
/// How [`state`] colours a word.
const COLOURS: [&str; 3] = ["\u{1b}[31m", "\u{1b}[32m", "\u{1b}[33m"];
const COLOUR_END: &str = "\u{1b}[0m";
/// What some editors put before a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Arguments of all these commands.
#[derive(clap::Args, Debug)]
pub struct CommonArgs {
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

/// Which page of a list.
#[derive(clap::Args, Debug)]
pub struct PageArgs {
    /// Rows at most [default: 50]
    #[arg(long, value_name = "ROWS")]
    pub limit: Option<String>,
    /// Where the page before said to go on
    #[arg(long)]
    pub cursor: Option<String>,
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
    /// An option.
    #[error("{0}")]
    Config(#[from] ConfigFaults),
    /// The network cannot be set up as the options say.
    #[error("{0}")]
    Network(#[from] NetworkError),
    /// It destroys something, and nobody said yes.
    #[error("{0} Nothing was done: --yes says that it is meant")]
    Unconfirmed(String),
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
    args: &CommonArgs,
    work: impl AsyncFnOnce(&mut Connection, OrgId) -> Result<T, Failure>,
    table: impl FnOnce(&T),
) -> ExitCode {
    let with_org = async |conn: &mut Connection| work(conn, OrgId(args.org)).await;
    run_for_all(&args.database, args.json, with_org, table)
}

/// The same where it is about no organization, or about all.
pub fn run_for_all<T: Serialize>(
    database: &DatabaseArgs,
    json: bool,
    work: impl AsyncFnOnce(&mut Connection) -> Result<T, Failure>,
    table: impl FnOnce(&T),
) -> ExitCode {
    let done = super::block_on(async {
        let mut conn = connect(database).await?;
        work(&mut conn).await
    });
    match done {
        Ok(done) if json => {
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
                | Failure::Config(_)
                | Failure::Network(_)
                | Failure::Unconfirmed(_)
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

/// Goes on only if somebody says yes to `question`, at the terminal or by `yes`.
///
/// # Errors
/// [`Failure::Unconfirmed`], also where there is nobody to ask.
pub fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    let mut answer = String::new();
    if std::io::stdin().is_terminal() {
        eprint!("{question} [y/N] ");
        std::io::stdin().read_line(&mut answer).map_err(|error| Failure::Input(error.to_string()))?;
    }
    match answer.trim() {
        "y" | "Y" | "yes" => Ok(()),
        _ => Err(Failure::Unconfirmed(question.to_owned())),
    }
}

/// Reads a file of at most `most` bytes; without one, or with `-`, standard input.
///
/// # Errors
/// When it cannot be read, or is longer.
pub fn input(file: Option<&Path>, most: u64) -> Result<Vec<u8>, Failure> {
    let mut bytes = Vec::new();
    let file = file.filter(|file| file.as_os_str() != "-");
    let read = match file {
        Some(file) => std::fs::File::open(file).and_then(|file| file.take(most + 1).read_to_end(&mut bytes)),
        None => std::io::stdin().take(most + 1).read_to_end(&mut bytes),
    };
    let name = file.map_or("standard input".into(), |file| file.display().to_string());
    read.map_err(|error| Failure::Input(format!("{name} cannot be read: {error}")))?;
    if bytes.len() as u64 > most {
        return Err(Failure::Input(format!("{name} has more than {most} bytes")));
    }
    if bytes.starts_with(BYTE_ORDER_MARK) {
        bytes.drain(..BYTE_ORDER_MARK.len());
    }
    Ok(bytes)
}

/// Prints rows under their headings, as wide as they need: ids stay in one piece, to be copied.
pub fn table<const N: usize>(headings: [&str; N], rows: impl IntoIterator<Item = [String; N]>) {
    let rows: Vec<[String; N]> = rows.into_iter().map(|row| row.map(|text| cell(&text))).collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        let cells = rows.iter().map(|row| measure_text_width(&row[column]));
        cells.chain([headings[column].len()]).max().unwrap_or(0)
    });
    let headings = headings.map(|heading| style(heading).bold().to_string());
    for row in std::iter::once(&headings).chain(&rows) {
        let cells = row.iter().zip(widths);
        let line = cells.map(|(cell, width)| pad_str(cell, width, Alignment::Left, None));
        output::coloured_line(line.collect::<Vec<_>>().join("  ").trim_end());
    }
}

/// A word that says how something is, in the colour of that, where colours can be seen.
pub fn state(word: &str) -> String {
    let shown = style(word);
    match word {
        "delivered" | "enabled" | "closed" | "done" | "active" => shown.green(),
        "failed" | "running" | "pending" => shown.yellow(),
        "dead" | "disabled" | "tripped" | "cancelled" | "revoked" => shown.red(),
        _ => shown,
    }
    .to_string()
}

/// Prints names and values, one a line; what is missing is left out.
pub fn fields<'f>(fields: impl IntoIterator<Item = (&'f str, Option<String>)>) {
    for (name, value) in fields {
        if let Some(value) = value {
            output::coloured_line(&format!("{name:16} {}", cell(&value)));
        }
    }
}

/// What stands in a cell: a word by [`state`] in its colour, everything else as it can be shown.
fn cell(text: &str) -> String {
    let word = COLOURS.iter().find_map(|colour| text.strip_prefix(colour)?.strip_suffix(COLOUR_END));
    match word {
        Some(word) if word.bytes().all(|byte| byte.is_ascii_lowercase()) => text.to_owned(),
        _ => visible(text).into_owned(),
    }
}

/// How long a list goes on over pages on which there is nothing.
pub struct Patience(Instant);

impl Patience {
    /// From now on.
    #[allow(clippy::new_without_default, reason = "it depends on the clock")]
    pub fn new() -> Patience {
        Patience(clock::now() + PATIENCE)
    }

    /// Whether to read the next page rather than show this one: where few of many rows are wanted, pages may
    /// be empty although there is more.
    pub fn wants_more<T>(&self, page: &List<T>) -> bool {
        page.items.is_empty() && page.next_cursor.is_some() && clock::now() < self.0
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
        ("state", Some(state(job.state))),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_obeys_nothing_but_colours() {
        let coloured = "\u{1b}[32mdelivered\u{1b}[0m";
        assert_eq!(cell(coloured), coloured);
        for (text, shown) in [
            ("plain é", "plain é"),
            ("\u{1b}[32mDelivered\u{1b}[2J\u{1b}[0m", "\\u001b[32mDelivered\\u001b[2J\\u001b[0m"),
            ("\u{1b}[8mhidden\u{1b}[0m", "\\u001b[8mhidden\\u001b[0m"),
            ("one\ntwo", "one\\ntwo"),
        ] {
            assert_eq!(cell(text), shown);
        }
    }
}
