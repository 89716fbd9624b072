//! The `posthaste` program: parse, log, run, exit code.

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    // A missing .env is normal; one that cannot be read is said when the options it should have set are
    // missing.
    dotenvy::dotenv().ok();
    let cli = posthaste::cli::Cli::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    cli.run()
}
