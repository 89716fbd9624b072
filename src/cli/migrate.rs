//! `posthaste migrate`: creates the tables, or adopts those of an application.

use std::process::ExitCode;

use crate::config::DatabaseArgs;
use crate::model::Secret;
use crate::store::migrate::{MigrateError, Options, Report, migrate};
use crate::store::{self, StoreError};

/// Arguments of `posthaste migrate`.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub database: DatabaseArgs,
    /// Print the statements that would run, and run none
    #[arg(long)]
    pub dry_run: bool,
    /// Create deliveries by a trigger on activity_logs: the default where webhook_deliveries is empty
    #[arg(long, conflicts_with = "without_fan_out")]
    pub with_fan_out: bool,
    /// Create no deliveries: the application inserts its own
    #[arg(long)]
    pub without_fan_out: bool,
    /// Send notifications from the triggers: the default
    #[arg(long, conflicts_with = "without_notify")]
    pub with_notify: bool,
    /// Send no notifications, for producers that use two-phase commit: the dispatcher then polls
    #[arg(long)]
    pub without_notify: bool,
    /// Go on although some destinations' filters are beyond what a filter may be, and match nothing then
    #[arg(long)]
    pub accept_unusable_filters: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let Some(url) = args.database.database_url.clone().filter(|url| !url.is_empty()) else {
        eprintln!("posthaste migrate: DATABASE_URL (or --database-url) must say which database");
        return ExitCode::from(super::EXIT_USAGE);
    };
    let told = Options {
        dry_run: args.dry_run,
        fan_out: choice(args.with_fan_out, args.without_fan_out),
        notify: choice(args.with_notify, args.without_notify),
        accept_unusable_filters: args.accept_unusable_filters,
    };
    let done = store::options(&Secret::new(url))
        .map_err(MigrateError::Store)
        .and_then(|options| super::block_on(migrate(&options, told)));
    match done {
        Ok(report) => {
            print(&report, told.dry_run);
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("posthaste migrate: {error}");
            match error {
                MigrateError::Store(StoreError::Url(_)) => ExitCode::from(super::EXIT_USAGE),
                _ => ExitCode::FAILURE,
            }
        }
    }
}

/// `None` where neither flag was given: then what was said before counts.
fn choice(with: bool, without: bool) -> Option<bool> {
    (with || without).then_some(with)
}

fn print(report: &Report, dry_run: bool) {
    for notice in &report.notices {
        eprintln!("note: {notice}");
    }
    if dry_run {
        for statement in &report.statements {
            println!("{statement};\n");
        }
    }
    match (report.statements.len(), dry_run) {
        (0, _) => eprintln!("The database is up to date."),
        (count, true) => eprintln!("{count} statements would run."),
        (count, false) => eprintln!("{count} statements ran; the database is up to date."),
    }
}
