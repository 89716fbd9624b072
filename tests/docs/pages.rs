//! Links, lengths, repetitions, and the names of commands, flags and variables.

use std::collections::{BTreeMap, BTreeSet};

use clap::{Command, CommandFactory};

use crate::generated::sources;
use crate::{Page, all_pages, page, root, shell};

/// Most lines of the README: one that is longer hides what it says.
const README_LINES: usize = 200;
/// A line of this length that stands on two pages is a repetition.
const REPEATED: usize = 60;
/// Stands where a reader puts an id.
const ID: &str = "00000000-0000-0000-0000-000000000001";

#[test]
fn the_readme_is_short_and_names_every_page() {
    let readme = page("README.md").text;
    let lines = readme.lines().count();
    assert!(lines <= README_LINES, "README.md has {lines} lines");
    for page in all_pages().iter().skip(1) {
        assert!(readme.contains(&format!("({})", page.path)), "README.md does not lead to {}", page.path);
    }
    // Machines and people call these.
    for command in ["`sh .ci/demo`", "`sh .ci/test`"] {
        assert!(readme.contains(command), "{command}");
    }
}

#[test]
fn every_link_leads_somewhere() {
    let pages = all_pages();
    let found: Vec<String> = pages.iter().flat_map(|page| broken_links(page, &pages)).collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

fn broken_links(page: &Page, pages: &[Page]) -> Vec<String> {
    let mut broken = Vec::new();
    for (at, line) in page.prose() {
        let targets = line.split("](").skip(1).map(|after| after.split(')').next().unwrap());
        for target in targets.filter(|target| !target.starts_with("https://")) {
            let (file, anchor) = target.split_once('#').unwrap_or((target, ""));
            let directory = page.path.rsplit_once('/').map_or("", |(directory, _)| directory);
            let path = if file.is_empty() { page.path.clone() } else { join(directory, file) };
            let known = pages.iter().find(|page| page.path == path);
            let there = match known {
                Some(known) => anchor.is_empty() || anchors(known).contains(anchor),
                None => anchor.is_empty() && root().join(&path).exists(),
            };
            if !there {
                broken.push(format!("{}:{at}: {target}", page.path));
            }
        }
    }
    broken
}

/// `file` seen from `directory`, without `..`.
fn join(directory: &str, file: &str) -> String {
    let mut parts: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    for part in file.split('/') {
        match part {
            ".." => drop(parts.pop().unwrap()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What forges make of headings.
fn anchors(page: &Page) -> BTreeSet<String> {
    let headings = page.prose().into_iter().filter(|(_, line)| line.starts_with('#'));
    headings
        .map(|(_, line)| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|c| c.is_alphanumeric() || [' ', '-', '_'].contains(c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

#[test]
fn no_two_pages_say_the_same_line() {
    let repeated = repetitions(&all_pages());
    assert!(repeated.is_empty(), "\n{}", repeated.join("\n"));
}

fn repetitions(pages: &[Page]) -> Vec<String> {
    let mut places: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for page in pages {
        for (_, line) in page.prose() {
            let line = line.trim();
            if line.chars().count() >= REPEATED && !line.starts_with('|') {
                places.entry(line).or_default().insert(&page.path);
            }
        }
    }
    let repeated = places.into_iter().filter(|(_, pages)| pages.len() > 1);
    repeated.map(|(line, pages)| format!("{pages:?}: {line}")).collect()
}

#[test]
fn every_command_in_a_snippet_exists() {
    let mut count = 0;
    for page in all_pages() {
        for block in page.blocks().iter().filter(|block| block.info.split(' ').next() == Some("sh")) {
            for words in shell::commands(&block.text).iter().filter(|words| words[0] == "posthaste") {
                count += 1;
                if let Err(error) = parse(words) {
                    panic!("{}: {}: {error}", page.path, words.join(" "));
                }
            }
        }
    }
    assert!(count > 40, "{count} commands");
}

fn parse(words: &[String]) -> Result<(), String> {
    // What a reader fills in.
    let filled = words.iter().map(|word| if word.contains(['$', '…']) { ID.into() } else { word.clone() });
    let mut words: Vec<String> = filled.collect();
    let mut cli = posthaste::cli::Cli::command();
    cli.build();
    if takes_org(&cli, &words) && !words.iter().any(|word| word == "--org") {
        // It is in the environment.
        words.extend(["--org".into(), ID.into()]);
    }
    cli.try_get_matches_from(&words).map(drop).map_err(|error| error.to_string())
}

/// Whether the command that `words` name needs an organization.
fn takes_org(cli: &Command, words: &[String]) -> bool {
    let mut command = cli;
    for word in &words[1..] {
        match command.find_subcommand(word) {
            Some(below) => command = below,
            None => break,
        }
    }
    command.get_arguments().any(|arg| arg.get_long() == Some("org") && arg.is_required_set())
}

#[test]
fn every_variable_that_is_named_exists() {
    let mut cli = posthaste::cli::Cli::command();
    cli.build();
    let mut known = BTreeSet::new();
    add_variables(&cli, &mut known);
    // Tests read some of their own.
    for text in sources() {
        let literals = text.split("\"POSTHASTE_").skip(1).filter_map(|after| after.split_once('"'));
        known.extend(literals.map(|(name, _)| format!("POSTHASTE_{name}")));
    }
    for page in all_pages() {
        for after in page.text.split("POSTHASTE_").skip(1) {
            let is_part = |c: &char| c.is_ascii_uppercase() || *c == '_';
            let name: String = "POSTHASTE_".chars().chain(after.chars().take_while(is_part)).collect();
            assert!(known.contains(&name), "{}: {name} does not exist", page.path);
        }
    }
}

fn add_variables(command: &Command, names: &mut BTreeSet<String>) {
    let variables = command.get_arguments().filter_map(|arg| arg.get_env());
    names.extend(variables.map(|name| name.to_str().unwrap().to_owned()));
    command.get_subcommands().for_each(|below| add_variables(below, names));
}

/// Alert rules and their runbook are two lists of the same names.
#[test]
fn every_alert_has_a_line_that_says_what_to_do() {
    let rules = page("examples/alerts.yml").text;
    let runbook = page("docs/troubleshooting.md").section("## Alerts").text;
    let alerts: Vec<&str> = rules.lines().filter_map(|line| line.trim().strip_prefix("- alert: ")).collect();
    assert!(alerts.len() > 10);
    for alert in &alerts {
        assert!(runbook.contains(&format!("`{alert}`")), "nothing says what to do about {alert}");
    }
    for name in runbook.split('`').filter(|text| text.starts_with("Posthaste")) {
        assert!(alerts.contains(&name), "there is no alert {name}");
    }
}

/// Each rule is shown something that breaks it.
#[test]
fn the_rules_find_what_they_are_for() {
    let page = |path: &str, text: &str| Page { path: path.into(), text: text.into() };
    let line = "Sixty characters of prose are enough to be found on two pages at once.";
    let pages = [
        page(
            "README.md",
            &format!("# One\n{line}\n[a](docs/two.md#a-b) [b](docs/two.md#c) [c](nowhere.md)\n"),
        ),
        page(
            "docs/two.md",
            &format!("## A: b\n{line}\n```\n[d](nowhere)\n{line}\n```\n[e](#a-b) [f](../README.md#two)\n"),
        ),
    ];
    let broken: Vec<String> = pages.iter().flat_map(|page| broken_links(page, &pages)).collect();
    assert_eq!(
        broken,
        ["README.md:3: docs/two.md#c", "README.md:3: nowhere.md", "docs/two.md:7: ../README.md#two"]
    );
    assert_eq!(repetitions(&pages).len(), 1);
    let words = |text: &str| shell::commands(text).remove(0);
    assert!(parse(&words("posthaste destinations test 9d2e…")).is_ok());
    assert!(parse(&words("posthaste destinations tset 9d2e…")).is_err());
    assert!(parse(&words("posthaste serve --embeded")).is_err());
    assert!(parse(&words("posthaste deliveries replay --dry-run")).is_err());
}
