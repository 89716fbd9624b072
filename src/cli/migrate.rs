//! `posthaste migrate`

use std::process::ExitCode;

/// Arguments of `posthaste migrate`.
#[derive(clap::Args, Debug)]
pub struct Args {}

/// Runs the command.
pub fn run(_args: &Args) -> ExitCode {
    ExitCode::SUCCESS
}
