//! The README must not promise options that do not exist, nor be silent about one that does.

#![allow(clippy::unwrap_used)]

use clap::{Arg, Command, CommandFactory};

const START: &str = "<!-- options -->\n";
const END: &str = "<!-- /options -->\n";

#[test]
fn the_table_of_options_is_that_of_the_program() {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, after) = readme.split_once(START).unwrap();
    let (table, _) = after.split_once(END).unwrap();
    let real = real_table();
    assert!(table == real, "between the marks in README.md should stand:\n{real}");
}

/// One row per option, with the commands that take it.
fn real_table() -> String {
    let mut cli = posthaste::cli::Cli::command();
    cli.build();
    let mut rows: Vec<(String, Vec<String>)> = Vec::new();
    let global = cli.get_arguments().filter(|arg| is_option(arg)).map(|arg| (row(arg), "all".to_owned()));
    for (row, command) in global.chain(of_subcommands(&cli, "")) {
        match rows.iter_mut().find(|(known, _)| *known == row) {
            Some((_, commands)) => commands.push(command),
            None => rows.push((row, vec![command])),
        }
    }
    let mut table =
        "| flag | environment | default | what it is | for |\n| --- | --- | --- | --- | --- |\n".to_owned();
    for (row, commands) in rows {
        table.push_str(&format!("{row} {} |\n", commands.join(", ")));
    }
    table
}

/// The options of the commands below `command`, and of those below them: `secrets encrypt`.
fn of_subcommands(command: &Command, above: &str) -> Vec<(String, String)> {
    let mut options = Vec::new();
    for command in command.get_subcommands().filter(|command| command.get_name() != "help") {
        let name = format!("{above}{}", command.get_name());
        let own = command.get_arguments().filter(|arg| is_option(arg) && !arg.is_global_set());
        options.extend(own.map(|arg| (row(arg), name.clone())));
        options.extend(of_subcommands(command, &format!("{name} ")));
    }
    options
}

fn is_option(arg: &Arg) -> bool {
    arg.get_long().is_some_and(|long| long != "help" && long != "version")
}

fn row(arg: &Arg) -> String {
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let env = arg.get_env().map(|name| name.to_str().unwrap()).unwrap_or_default();
    let default = arg.get_default_values().iter().map(|value| value.to_str().unwrap()).collect::<String>();
    let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
    // Some defaults depend on the machine: then the help says them in brackets.
    let (help, said) = match help.split_once(" [default: ") {
        Some((help, said)) => (help.to_owned(), said.trim_end_matches(']').to_owned()),
        None => (help, String::new()),
    };
    let default = if said.is_empty() { code(&default) } else { said };
    format!("| `--{}` | {} | {default} | {help} |", arg.get_long().unwrap(), code(env))
}
