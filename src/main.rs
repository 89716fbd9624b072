//! The `posthaste` program: parse, log, run, exit code.

use std::process::ExitCode;

use clap::Parser;
use posthaste::cli::{Cli, EXIT_USAGE, logging};

fn main() -> ExitCode {
    if let Err(fault) = read_env_file() {
        eprintln!("posthaste: .env in the working directory {fault}");
        return ExitCode::from(EXIT_USAGE);
    }
    let cli = Cli::parse();
    if let Err(fault) = logging::start(&cli.log_format) {
        eprintln!("posthaste: {fault}");
        return ExitCode::from(EXIT_USAGE);
    }
    cli.run()
}

/// Reads `.env` in the working directory, and in no other one: whoever may write above it is somebody else. A
/// missing file is normal. A line that cannot be read may be the one on which safety depends.
fn read_env_file() -> Result<(), String> {
    match dotenvy::from_path(".env") {
        Err(dotenvy::Error::LineParse(..)) => {
            // Where it is, and not what it says, which may be a secret.
            let read = dotenvy::from_path_iter(".env").into_iter().flatten().map_while(Result::ok);
            let before =
                read.last().map_or("at its beginning".to_owned(), |(name, _)| format!("after {name}"));
            Err(format!("has a line that cannot be read, {before}: a value with spaces needs quotes"))
        }
        Err(error) if !error.not_found() => Err(format!("cannot be read: {error}")),
        _ => Ok(()),
    }
}
