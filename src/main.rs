//! The `posthaste` program: parse, log, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use posthaste::cli::{Cli, EXIT_USAGE, logging};

fn main() -> ExitCode {
    // A missing .env is normal; what it should have set is missed, and named, by whoever needs it.
    dotenvy::dotenv().ok();
    let cli = Cli::parse();
    if let Err(fault) = logging::start(&cli.log_format) {
        eprintln!("posthaste: {fault}");
        return ExitCode::from(EXIT_USAGE);
    }
    cli.run()
}
