//! The `posthaste` program: parse, log, run, exit code.

use std::process::ExitCode;

use posthaste::cli::{EXIT_USAGE, environment, logging, output};

fn main() -> ExitCode {
    output::end(run())
}

fn run() -> ExitCode {
    let refuse = |fault: String| {
        output::complain(&format!("posthaste: {fault}"));
        ExitCode::from(EXIT_USAGE)
    };
    if let Err(fault) = environment::read_file() {
        return refuse(format!(".env in the working directory {fault}"));
    }
    let cli = match environment::parse() {
        Ok(cli) => cli,
        Err(code) => return code,
    };
    if let Err(fault) = logging::start(&cli.log_format) {
        return refuse(fault);
    }
    cli.run()
}
