//! The arguments, the environment, and a `.env` file.

use std::env;
use std::fs;
use std::io;
use std::process::ExitCode;

use clap::builder::Resettable;
use clap::error::ErrorKind;
use clap::{Command, CommandFactory as _, FromArgMatches as _};

use super::{Cli, output};

/// What some editors put before a text in UTF-8.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Reads `.env` in the working directory, and in no other one: whoever may write above it is somebody else. A
/// missing file is normal. A line that cannot be read may be the one on which safety depends.
///
/// # Errors
/// What is wrong with the file, as the end of a sentence.
pub fn read_file() -> Result<(), String> {
    let file = match fs::read(".env") {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(format!("cannot be read: {error}")),
    };
    let file = file.strip_prefix(BYTE_ORDER_MARK).unwrap_or(&file);
    match dotenvy::from_read(file) {
        Err(dotenvy::Error::LineParse(..)) => {
            // Where it is, and not what it says, which may be a secret.
            let read = dotenvy::from_read_iter(file).map_while(Result::ok);
            let before =
                read.last().map_or("at its beginning".to_owned(), |(name, _)| format!("after {name}"));
            Err(format!("has a line that cannot be read, {before}: a value with spaces needs quotes"))
        }
        Err(error) => Err(format!("cannot be read: {error}")),
        Ok(()) => Ok(()),
    }
}

/// The command line as it was meant. A variable that is empty is not set: that is how compose files, unit
/// files and scripts leave one out.
///
/// # Errors
/// The exit code, once everything is said.
pub fn parse() -> Result<Cli, ExitCode> {
    let arguments: Vec<_> = env::args_os().collect();
    let matches = without_empty(Cli::command()).try_get_matches_from(&arguments);
    let error = match matches.and_then(|matches| Cli::from_arg_matches(&matches)) {
        Ok(cli) => return Ok(cli),
        Err(error) => error,
    };
    let error = match error.kind() {
        // Help names all variables.
        ErrorKind::DisplayHelp => Cli::command().try_get_matches_from(&arguments).err().unwrap_or(error),
        _ => error,
    };
    output::print_clap(&error);
    Err(ExitCode::from(u8::try_from(error.exit_code()).unwrap_or(super::EXIT_USAGE)))
}

/// The definition of a command, and of all below it, without the variables that are empty.
fn without_empty(command: Command) -> Command {
    let is_empty =
        |arg: &clap::Arg| arg.get_env().and_then(env::var_os).is_some_and(|value| value.is_empty());
    command
        .mut_args(|arg| if is_empty(&arg) { arg.env(Resettable::Reset) } else { arg })
        .mut_subcommands(without_empty)
}
