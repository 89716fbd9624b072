//! The README must not promise options or metrics that do not exist, nor be silent about those that do; and
//! every test that it names must exist.

#![allow(clippy::unwrap_used)]

use std::collections::HashSet;
use std::path::Path;

use clap::{Arg, Command, CommandFactory};
use posthaste::admin::metrics::{FAMILIES, Family};

#[test]
fn the_table_of_options_is_that_of_the_program() {
    let (table, real) = (between_marks("options"), real_table());
    assert!(table == real, "between the marks in README.md should stand:\n{real}");
}

#[test]
fn the_table_of_metrics_is_what_is_exported() {
    let row = |family: &&Family| {
        let labels: String =
            family.labels.split(", ").filter(|l| !l.is_empty()).map(|l| format!(" `{l}`")).collect();
        format!("| `{}` | {} |{labels} | {} |\n", family.name, family.kind, family.help)
    };
    let real = "| name | type | labels | what it is |\n| --- | --- | --- | --- |\n".to_owned()
        + &FAMILIES.iter().map(row).collect::<String>();
    assert!(between_marks("metrics") == real, "between the marks in README.md should stand:\n{real}");
}

#[test]
fn every_fault_has_a_promise_and_tests_that_exist() {
    let table = between_marks("faults");
    let rows: Vec<&str> = table.lines().skip(2).collect();
    assert!(rows.len() > 20, "{} rows", rows.len());
    let tests = tests();
    for row in rows {
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert_eq!(cells.len(), 3, "a row needs a fault, a promise and its tests: {row}");
        assert!(cells.iter().all(|cell| !cell.is_empty()), "an empty cell: {row}");
        // What stands in backticks is a name.
        let names: Vec<&str> = cells[2].split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty(), "no test: {row}");
        for name in names {
            assert!(tests.contains(name), "there is no test {name}");
        }
    }
}

/// What stands in the README between the marks called `name`.
fn between_marks(name: &str) -> String {
    let readme = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).unwrap();
    let (_, after) = readme.split_once(&format!("<!-- {name} -->\n")).unwrap();
    after.split_once(&format!("<!-- /{name} -->\n")).unwrap().0.to_owned()
}

/// The names of all tests in the crate: functions after an attribute that ends in `test]`, and those that
/// proptest makes tests.
fn tests() -> HashSet<String> {
    let mut names = HashSet::new();
    let mut open = ["src", "tests"].map(|dir| Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)).to_vec();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let functions = text.split("test]\n").skip(1).filter_map(|after| after.split_once("fn "));
            names.extend(functions.filter_map(|(_, name)| Some(name.split_once('(')?.0.to_owned())));
        }
    }
    names
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
