//! What is made from the code: tables of options and metrics, the document of the API; and the table of
//! faults, which names tests.

use std::collections::HashSet;
use std::fs;
use std::path::PathBuf;

use clap::{Arg, Command, CommandFactory};
use posthaste::admin::metrics::{FAMILIES, Family};
use serde_json::Value;

use crate::common::{Db, Posthaste, check_invariants};
use crate::{page, root};

/// Where this is set, what differs is written instead of refused.
const UPDATE: &str = "UPDATE_DOCS";

#[test]
fn the_tables_of_options_are_those_of_the_program() {
    hold("docs/configuration.md", "options", &options());
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
    hold("docs/metrics.md", "metrics", &real);
}

#[tokio::test]
async fn the_committed_document_of_the_api_is_what_is_served() {
    let db = Db::new().await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    let (status, served) = posthaste.get("/api/openapi.json").await.unwrap();
    assert_eq!(status, 200);
    let served: Value = serde_json::from_str(&served).unwrap();
    let real = serde_json::to_string_pretty(&served).unwrap() + "\n";
    compare(
        "docs/openapi.json",
        &fs::read_to_string(root().join("docs/openapi.json")).unwrap(),
        &real,
        &real,
    );
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[]).await;
}

#[test]
fn every_fault_has_a_promise_and_tests_that_exist() {
    let table = between_marks("docs/guarantees.md", "faults");
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

/// Fails unless `real` stands on the page between the marks called `name`.
fn hold(path: &str, name: &str, real: &str) {
    let found = between_marks(path, name);
    let text = page(path).text;
    let before = &text[..text.find(&format!("<!-- {name} -->\n{found}")).unwrap()];
    let after = &text[text.find(&format!("<!-- /{name} -->\n")).unwrap()..];
    compare(path, &found, real, &format!("{before}<!-- {name} -->\n{real}{after}"));
}

/// Fails unless `found` is `real`, or writes `whole` to the file.
fn compare(path: &str, found: &str, real: &str, whole: &str) {
    if found == real {
        return;
    }
    assert!(std::env::var_os(UPDATE).is_some(), "{path} is not up to date: {UPDATE}=1 writes it anew");
    fs::write(root().join(path), whole).unwrap();
}

/// What stands on the page between the marks called `name`.
fn between_marks(path: &str, name: &str) -> String {
    let text = page(path).text;
    let (_, after) = text.split_once(&format!("<!-- {name} -->\n")).unwrap();
    after.split_once(&format!("<!-- /{name} -->\n")).unwrap().0.to_owned()
}

/// The names of all tests in the crate: functions after an attribute that ends in `test]`, and those that
/// proptest makes tests.
fn tests() -> HashSet<String> {
    let mut names = HashSet::new();
    for text in sources() {
        let functions = text.split("test]\n").skip(1).filter_map(|after| after.split_once("fn "));
        names.extend(functions.filter_map(|(_, name)| Some(name.split_once('(')?.0.to_owned())));
    }
    names
}

/// The text of every source file and every test.
pub fn sources() -> Vec<String> {
    let mut open: Vec<PathBuf> = ["src", "tests"].map(|dir| root().join(dir)).to_vec();
    let mut texts = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            texts.push(fs::read_to_string(&path).unwrap());
        }
    }
    texts
}

/// A section for each command, with the options that no section before it has, and the names of the others.
fn options() -> String {
    let mut cli = posthaste::cli::Cli::command();
    cli.build();
    let global: Vec<Entry> = own_options(&cli, None).collect();
    let mut known: HashSet<String> = global.iter().map(|entry| entry.row.clone()).collect();
    let mut text = section("Every command", &global, 1);
    for command in cli.get_subcommands().filter(|command| command.get_name() != "help") {
        let entries = of_command(command);
        let below = command.get_subcommands().filter(|below| below.get_name() != "help").count().max(1);
        let (old, new): (Vec<Entry>, Vec<Entry>) =
            entries.into_iter().partition(|entry| known.contains(&entry.row));
        if old.is_empty() && new.is_empty() {
            continue;
        }
        text.push_str(&section(&format!("`posthaste {}`", command.get_name()), &new, below));
        text.push_str(&as_above(&old, below));
        known.extend(new.into_iter().map(|entry| entry.row));
    }
    text
}

/// An option, and the subcommands that take it.
struct Entry {
    flag: String,
    row: String,
    takers: Vec<String>,
}

fn section(title: &str, entries: &[Entry], below: usize) -> String {
    let mut text = format!("\n### {title}\n");
    if entries.is_empty() {
        return text;
    }
    let (head, rule) = if below > 1 { (" with |", " --- |") } else { ("", "") };
    text.push_str(&format!("\n| flag | environment | default | what it is |{head}\n"));
    text.push_str(&format!("| --- | --- | --- | --- |{rule}\n"));
    for entry in entries {
        let takers = if below > 1 { format!(" {} |", takers(entry, below)) } else { String::new() };
        text.push_str(&format!("{}{takers}\n", entry.row));
    }
    text
}

/// One line for the options that are taken by the same subcommands.
fn as_above(entries: &[Entry], below: usize) -> String {
    let mut lines: Vec<(String, Vec<&str>)> = Vec::new();
    for entry in entries {
        let takers = takers(entry, below);
        match lines.iter_mut().find(|(known, _)| *known == takers) {
            Some((_, flags)) => flags.push(&entry.flag),
            None => lines.push((takers, vec![&entry.flag])),
        }
    }
    let line = |(takers, flags): &(String, Vec<&str>)| {
        let with = if takers == "all" { String::new() } else { format!(", with {takers}") };
        format!("- As above{with}: {}\n", flags.join(", "))
    };
    let lines: String = lines.iter().map(line).collect();
    if lines.is_empty() { lines } else { format!("\n{lines}") }
}

fn takers(entry: &Entry, below: usize) -> String {
    if entry.takers.len() == below { "all".into() } else { entry.takers.join(", ") }
}

/// The options of `command` and of those below it.
fn of_command(command: &Command) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    let below = command.get_subcommands().filter(|below| below.get_name() != "help");
    let below = below.flat_map(|below| own_options(below, Some(below.get_name())));
    let itself = own_options(command, Some(command.get_name())).collect::<Vec<_>>();
    for entry in itself.into_iter().chain(below) {
        match entries.iter_mut().find(|known| known.row == entry.row) {
            Some(known) => known.takers.extend(entry.takers),
            None => entries.push(entry),
        }
    }
    entries
}

/// The options of `command` itself; of one below the top those that are not global.
fn own_options<'a>(command: &'a Command, taker: Option<&'a str>) -> impl Iterator<Item = Entry> + 'a {
    let options = command.get_arguments().filter(move |arg| {
        let long = arg.get_long().is_some_and(|long| long != "help" && long != "version");
        long && (taker.is_none() || !arg.is_global_set())
    });
    options.map(move |arg| Entry {
        flag: format!("`--{}`", arg.get_long().unwrap()),
        row: row(arg),
        takers: taker.into_iter().map(str::to_owned).collect(),
    })
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
