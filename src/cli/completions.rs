//! `posthaste completions`: what makes a shell complete the commands.

use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

/// Arguments of `posthaste completions`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The shell: for bash, run `source <(posthaste completions bash)`
    pub shell: Shell,
}

/// Runs the command.
pub fn run(args: &Args) -> ExitCode {
    let mut command = super::Cli::command();
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command, "posthaste", &mut script);
    super::output::print(&String::from_utf8_lossy(&script));
    ExitCode::SUCCESS
}
