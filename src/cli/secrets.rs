//! `posthaste secrets`: keys, and what is encrypted under them.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;

use crate::config::{ConfigFaults, DatabaseArgs, SecretKeyArgs};
use crate::model::{DestinationId, Secret};
use crate::policy::keyring::{KeyRing, Stored, key_text};
use crate::store::doctor::{self, RowSecurity};
use crate::store::secrets::{self, Cell, Replacement};
use crate::store::{self, Connection, StoreError};

/// How often secrets that somebody changed at the very moment are tried anew.
const PASSES: usize = 3;
/// Problems that are described; the others are only counted.
const MAX_PROBLEMS: usize = 100;

/// Arguments of `posthaste secrets`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// What to do with them.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(clap::Subcommand, Debug)]
pub enum Command {
    /// Encrypt the secrets that are stored as plain text. An application that reads them itself then sees
    /// ciphertext
    Encrypt(ConvertArgs),
    /// Encrypt everything under the first key, and say which keys are not needed any more
    Rotate(ConvertArgs),
    /// Count the secrets under each key
    Status(StatusArgs),
    /// Print a new key
    GenerateKey,
}

/// Arguments of the commands that write.
#[derive(clap::Args, Debug)]
pub struct ConvertArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub status: StatusArgs,
    /// Say what would be done, and change nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Arguments of all commands on a database.
#[derive(clap::Args, Debug)]
pub struct StatusArgs {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub secret_key: SecretKeyArgs,
    /// Print JSON, for machines
    #[arg(long)]
    pub json: bool,
}

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error("{0}")]
    Usage(ConfigFaults),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("row-level security would hide rows from this role. An owner must run:\n  {}", .0.join("\n  "))]
    RowsHidden(Vec<String>),
}

/// What `encrypt` and `rotate` have done.
#[derive(Debug, Default, Serialize)]
struct Report {
    dry_run: bool,
    /// Secrets written, or that would be.
    encrypted: u64,
    /// Secrets that were changed by somebody else at the same time, again and again.
    overtaken: u64,
    /// Keys that nothing is encrypted under any more; not known before it is done.
    unused_keys: Vec<String>,
    #[serde(flatten)]
    problems: Problems,
}

/// How the secrets of a database are stored.
#[derive(Debug, Default, Serialize)]
pub(super) struct Survey {
    /// Secrets in plain text.
    pub(super) plain: u64,
    /// One entry for each key of the configuration, in its order, and then those that are missing there.
    keys: Vec<KeyUse>,
    #[serde(flatten)]
    problems: Problems,
}

#[derive(Debug, Serialize)]
struct KeyUse {
    id: String,
    place: Place,
    secrets: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Place {
    First,
    Further,
    Missing,
}

/// Secrets that could not be dealt with.
#[derive(Debug, Default, Serialize)]
struct Problems {
    problem_count: u64,
    /// The first [`MAX_PROBLEMS`] of them.
    problems: Vec<Problem>,
}

#[derive(Debug, Serialize)]
struct Problem {
    destination_id: DestinationId,
    field: String,
    problem: String,
}

/// What a command writes anew.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Plain,
    AllButFirstKey,
}

/// Runs the command. Exit code 1: something is left to be done; 2: it was called wrongly.
pub fn run(args: &Args) -> ExitCode {
    let (name, done) = match &args.command {
        Command::GenerateKey => {
            println!("{}", key_text(secrets::random()).reveal());
            return ExitCode::SUCCESS;
        }
        Command::Encrypt(args) => ("encrypt", super::block_on(run_convert(args, Scope::Plain))),
        Command::Rotate(args) => ("rotate", super::block_on(run_convert(args, Scope::AllButFirstKey))),
        Command::Status(args) => ("status", super::block_on(run_status(args))),
    };
    match done {
        Ok(code) => code,
        Err(failure) => {
            eprintln!("posthaste secrets {name}: {failure}");
            match failure {
                Failure::Usage(_) | Failure::Store(StoreError::Url(_)) => ExitCode::from(super::EXIT_USAGE),
                Failure::Store(_) | Failure::RowsHidden(_) => ExitCode::FAILURE,
            }
        }
    }
}

async fn run_convert(args: &ConvertArgs, scope: Scope) -> Result<ExitCode, Failure> {
    let (url, keys) = configured(&args.status, true)?;
    let mut conn = connect(&url).await?;
    let report = convert(&mut conn, &keys, scope, args.dry_run).await?;
    if args.status.json {
        print_json(&report);
    } else {
        let would = if report.dry_run { "would be encrypted" } else { "encrypted" };
        println!("{} secret(s) {would} under the key {}.", report.encrypted, first(&keys));
        if report.overtaken > 0 {
            println!("{} secret(s) were being changed by somebody else: run this again.", report.overtaken);
        }
        report.problems.print();
        if !report.unused_keys.is_empty() {
            let unused = report.unused_keys.join(", ");
            println!("Nothing is encrypted any more under: {unused}. Backups may still need these keys.");
        }
    }
    Ok(exit_code(report.problems.problem_count + report.overtaken == 0))
}

async fn run_status(args: &StatusArgs) -> Result<ExitCode, Failure> {
    let (url, keys) = configured(args, false)?;
    let survey = survey(&mut connect(&url).await?, &keys).await?;
    if args.json {
        print_json(&survey);
    } else {
        println!("{:<28} secrets", "stored");
        println!("{:<28} {}", "as plain text", survey.plain);
        for key in &survey.keys {
            let place = match key.place {
                Place::First => " (encrypts)",
                Place::Further => "",
                Place::Missing => " (missing)",
            };
            println!("{:<28} {}", format!("under {}{place}", key.id), key.secrets);
        }
        survey.problems.print();
    }
    Ok(exit_code(survey.problems.problem_count == 0))
}

/// The database and the keys, or everything that is wrong with how they are given.
fn configured(args: &StatusArgs, needs_key: bool) -> Result<(Secret, KeyRing), Failure> {
    let mut faults = Vec::new();
    let url = Secret::new(args.database.database_url.clone().unwrap_or_default());
    if url.reveal().is_empty() {
        faults.push("DATABASE_URL (or --database-url) must say which database".to_owned());
    }
    let keys = args.secret_key.keys().unwrap_or_else(|ConfigFaults(more)| {
        faults.extend(more);
        KeyRing::default()
    });
    if needs_key && faults.is_empty() && keys.ids().next().is_none() {
        let what = "POSTHASTE_SECRET_KEY (or --secret-key) must hold a key";
        faults.push(format!("{what}; posthaste secrets generate-key makes one"));
    }
    if faults.is_empty() { Ok((url, keys)) } else { Err(Failure::Usage(ConfigFaults(faults))) }
}

async fn connect(url: &Secret) -> Result<Connection, Failure> {
    let mut conn = store::connect(&store::seeing_policies(store::options(url)?)).await?;
    match store::in_time(doctor::row_security(&mut conn)).await? {
        RowSecurity::Hiding(remedies) => Err(Failure::RowsHidden(remedies)),
        RowSecurity::Inactive | RowSecurity::Open => Ok(conn),
    }
}

async fn convert(
    conn: &mut Connection,
    keys: &KeyRing,
    scope: Scope,
    dry_run: bool,
) -> Result<Report, StoreError> {
    let mut report = Report { dry_run, ..Report::default() };
    for _ in 0..PASSES {
        convert_once(conn, keys, scope, &mut report).await?;
        if report.overtaken == 0 {
            break;
        }
    }
    if scope == Scope::AllButFirstKey && !dry_run {
        let unused = |key: KeyUse| (key.place == Place::Further && key.secrets == 0).then_some(key.id);
        report.unused_keys = survey(conn, keys).await?.keys.into_iter().filter_map(unused).collect();
    }
    Ok(report)
}

/// Goes through all secrets. What it has written stays written, whatever comes after it.
async fn convert_once(
    conn: &mut Connection,
    keys: &KeyRing,
    scope: Scope,
    report: &mut Report,
) -> Result<(), StoreError> {
    (report.overtaken, report.problems) = (0, Problems::default());
    let mut after = None;
    loop {
        let page = secrets::read(conn, after).await?;
        let mut replacements = Vec::new();
        for cell in page.cells {
            match convert_cell(keys, scope, &cell) {
                Ok(Some(text)) => replacements.push(Replacement { cell, text }),
                Ok(None) => {}
                Err(problem) => report.problems.add(&cell, problem),
            }
        }
        let wanted = replacements.len() as u64;
        let written = if report.dry_run { wanted } else { secrets::replace(conn, &replacements).await? };
        report.encrypted += written;
        report.overtaken += wanted - written;
        after = match page.next {
            Some(last) => Some(last),
            None => return Ok(()),
        };
    }
}

/// The text that a secret is to have instead; `None`: it may stay what it is.
fn convert_cell(keys: &KeyRing, scope: Scope, cell: &Cell) -> Result<Option<Secret>, String> {
    let stays = match Stored::of(cell.text.reveal()) {
        Stored::Plain => false,
        Stored::Under(id) if id == first(keys) => true,
        Stored::Under(_) | Stored::Malformed => scope == Scope::Plain,
    };
    if stays {
        return Ok(None);
    }
    let plain = keys.open(cell.destination, cell.field, &cell.text).map_err(|locked| locked.to_string())?;
    let sealed = keys.seal(cell.destination, cell.field, &plain, secrets::random());
    sealed.map(Some).map_err(|fault| fault.to_string())
}

fn first(keys: &KeyRing) -> &str {
    keys.ids().next().unwrap_or_default()
}

/// Counts the secrets, and sees whether each can be decrypted.
pub(super) async fn survey(conn: &mut Connection, keys: &KeyRing) -> Result<Survey, StoreError> {
    let (mut survey, mut after) = (Survey::default(), None);
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        let page = secrets::read(conn, after).await?;
        for cell in page.cells {
            match Stored::of(cell.text.reveal()) {
                Stored::Plain => survey.plain += 1,
                Stored::Under(id) => *counts.entry(id.to_owned()).or_default() += 1,
                Stored::Malformed => {}
            }
            if let Err(locked) = keys.open(cell.destination, cell.field, &cell.text) {
                survey.problems.add(&cell, locked.to_string());
            }
        }
        after = match page.next {
            Some(last) => Some(last),
            None => break,
        };
    }
    for (n, id) in keys.ids().enumerate() {
        let place = if n == 0 { Place::First } else { Place::Further };
        survey.keys.push(KeyUse { id: id.to_owned(), place, secrets: counts.remove(id).unwrap_or(0) });
    }
    let missing = counts.into_iter().map(|(id, secrets)| KeyUse { id, place: Place::Missing, secrets });
    survey.keys.extend(missing);
    Ok(survey)
}

impl Problems {
    fn add(&mut self, cell: &Cell, problem: String) {
        self.problem_count += 1;
        if self.problems.len() < MAX_PROBLEMS {
            let field = cell.field.to_string();
            self.problems.push(Problem { destination_id: cell.destination, field, problem });
        }
    }

    fn print(&self) {
        for Problem { destination_id, problem, .. } in &self.problems {
            println!("destination {destination_id}: {problem}");
        }
        let more = self.problem_count - self.problems.len() as u64;
        if more > 0 {
            println!("and {more} more.");
        }
    }
}

fn exit_code(is_done: bool) -> ExitCode {
    if is_done { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn print_json(value: &impl Serialize) {
    println!("{}", serde_json::to_string_pretty(value).expect("these types have a JSON form"));
}
