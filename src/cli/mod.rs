//! The command line: one short file a subcommand.

// Its macros are for those below.
#[macro_use]
pub mod output;

pub mod check;
pub mod common;
pub mod completions;
pub mod deliveries;
pub mod demo;
pub mod destinations;
pub mod environment;
pub mod events;
pub mod jobs;
pub mod keys;
pub mod logging;
pub mod migrate;
pub mod secrets;
pub mod serve;
mod signals;
mod stderr;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::store::schema::{self, Schema};

/// Exit code of a command whose arguments or configuration are wrong.
pub const EXIT_USAGE: u8 = 2;
/// Exit code after a fault of the program itself, a panic or a freeze: what sysexits.h calls EX_SOFTWARE.
pub const EXIT_PANIC: u8 = 70;

/// A webhook dispatcher for applications that already write their events to PostgreSQL.
#[derive(Parser, Debug)]
#[command(name = "posthaste", version, about, max_term_width = 110)]
pub struct Cli {
    /// Format of the log lines: text or json
    #[arg(long, env = "POSTHASTE_LOG_FORMAT", default_value = "text", value_name = "FORMAT", global = true)]
    pub log_format: String,
    /// Schema of the tables [default: public]
    #[arg(long, env = "POSTHASTE_SCHEMA", value_name = "SCHEMA", global = true)]
    pub schema: Option<Schema>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the dispatcher until SIGTERM, SIGINT or SIGHUP
    Serve(Box<serve::Args>),
    /// Create the tables, or adopt those of an application
    Migrate(migrate::Args),
    /// Find what would lose or delay deliveries, and say what to do about it
    Check(Box<check::Args>),
    /// Encrypt the secrets of destinations, change their key, count them
    Secrets(Box<secrets::Args>),
    /// Create, show, change, try out, switch and delete destinations
    Destinations(Box<destinations::Args>),
    /// List deliveries, show one, retry and replay them
    Deliveries(Box<deliveries::Args>),
    /// List events, show one, send some, backfill past ones
    Events(Box<events::Args>),
    /// List, show and cancel replays and backfills
    Jobs(Box<jobs::Args>),
    /// Create, list and revoke keys of the HTTP API
    Keys(Box<keys::Args>),
    /// Print what makes a shell complete the commands
    Completions(completions::Args),
    /// See the whole thing work, on a database of its own
    Demo(Box<demo::Args>),
}

impl Cli {
    /// Runs the command; everything that a person should read has been printed when it returns.
    pub fn run(self) -> ExitCode {
        if let Some(schema) = self.schema {
            schema::set(schema);
        }
        match self.command {
            Command::Serve(args) => serve::run(*args),
            Command::Migrate(args) => migrate::run(&args),
            Command::Check(args) => check::run(&args),
            Command::Secrets(args) => secrets::run(&args),
            Command::Destinations(args) => destinations::run(&args),
            Command::Deliveries(args) => deliveries::run(&args),
            Command::Events(args) => events::run(&args),
            Command::Jobs(args) => jobs::run(&args),
            Command::Keys(args) => keys::run(&args),
            Command::Completions(args) => completions::run(&args),
            Command::Demo(args) => demo::run(*args),
        }
    }
}

/// Runs what a short command does, on a runtime of its own.
fn block_on<T>(future: impl Future<Output = T>) -> T {
    actix_rt::System::new().block_on(future)
}
