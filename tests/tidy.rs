//! Holds the house rules against the source: who may import whom, what is banned where, how long things may
//! be.

#![allow(clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// Imports point one way. A module may use the crate's modules that stand beside it here, and itself.
const MAY_USE: [(&str, &[&str]); 14] = [
    ("model", &[]),
    ("clock", &["model"]),
    ("config", &["model", "policy"]),
    ("policy", &["model"]),
    ("format", &["model", "policy"]),
    ("dispatch", &["model", "policy"]),
    ("store", &["model", "clock", "policy", "format"]),
    ("outbound", &["model", "clock", "config", "policy", "format"]),
    ("embedded", &["model", "clock", "store"]),
    ("actors", &["model", "clock", "config", "policy", "format", "dispatch", "store", "outbound"]),
    ("manage", &["model", "clock", "config", "policy", "format", "store", "outbound", "actors"]),
    ("admin", &["model", "clock", "config", "policy", "format", "store", "outbound", "actors", "manage"]),
    (
        "cli",
        &[
            "model", "clock", "config", "policy", "format", "store", "outbound", "embedded", "actors",
            "manage", "admin",
        ],
    ),
    ("main", &["cli"]),
];

/// What may stand only in some places of the crate; everywhere outside tests.
const BANS: [(&str, &[&str]); 16] = [
    ("Instant::now", &["clock.rs"]),
    ("SystemTime::now", &["clock.rs"]),
    ("sqlx", &["store/"]),
    // Statements name the schema by way of `store::schema`; elsewhere they name none or do so themselves.
    ("sqlx::query(", &["store/schema.rs", "store/database.rs", "store/deliveries/claim.rs"]),
    ("sqlx::query_as", &["store/schema.rs", "store/migrate/checks.rs"]),
    ("sqlx::query_scalar", &["store/schema.rs", "store/migrate/trial.rs"]),
    ("awc", &["outbound/"]),
    ("println!", &["cli/", "main.rs"]),
    ("print!", &["cli/", "main.rs"]),
    ("eprintln!", &["cli/", "main.rs"]),
    ("dbg!", &[]),
    ("todo!", &[]),
    ("unwrap()", &[]),
    ("thread::sleep", &[]),
    ("unsafe", &[]),
    // Where rustls keeps what switches the verification of certificates off. One file adds to it.
    ("dangerous", &["outbound/own_certificates.rs"]),
];

/// Policy, formats and dispatch are pure: what these words would bring in comes as an argument, or not at
/// all.
const IMPURE: [&str; 8] = ["async", "await", "log", "tokio", "actix", "fs", "env", "fastrand"];

/// Everything that may stand at the top level, besides hidden files and what cargo builds.
const TOP_LEVEL: [&str; 10] = [
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE",
    "README.md",
    "docs",
    "examples",
    "migrations",
    "src",
    "target",
    "tests",
];

const MAX_FILE_LINES: usize = 500;
const MAX_FUNCTION_LINES: usize = 80;
const MAX_COLUMNS: usize = 110;

/// A source file: where it is, below `src`, and its text.
struct Source {
    path: String,
    text: String,
}

#[test]
fn imports_point_one_way() {
    hold(sources("src"), wrong_imports);
}

/// Within a room too: of two siblings at most one uses the other, however long the way round.
#[test]
fn siblings_use_each_other_in_one_direction() {
    let found = circles(&sources("src"));
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn what_is_banned_stands_only_where_it_may() {
    hold(sources("src"), banned_words);
    hold(sources("src"), unqualified_queries);
}

#[test]
fn files_lines_and_functions_are_short() {
    hold(["src", "tests", "examples"].into_iter().flat_map(sources).collect(), too_long);
}

#[test]
fn nothing_stands_at_the_top_level_that_does_not_belong_there() {
    let entries = fs::read_dir(env!("CARGO_MANIFEST_DIR")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let strangers: Vec<String> =
        names.filter(|name| !name.starts_with('.') && !TOP_LEVEL.contains(&name.as_str())).collect();
    assert!(strangers.is_empty(), "{strangers:?}");
}

/// Each rule is shown something that breaks it: a check that finds nothing anywhere would be worth nothing.
#[test]
fn the_rules_find_what_they_are_for() {
    let import = |path: &str, text: &str| wrong_imports(&source(path, text)).len();
    assert_eq!(import("model.rs", "use crate::store::connect;"), 1);
    assert_eq!(import("store/events.rs", "use crate::{actors::Wake, model::{EventId, OrgId}, outbound};"), 2);
    assert_eq!(import("store/mod.rs", "use super::actors;"), 1);
    assert_eq!(import("store/events.rs", "use super::super::actors;"), 1);
    assert_eq!(import("main.rs", "use posthaste::store;"), 1);
    assert_eq!(import("cli/serve.rs", "use crate::{actors, config::Config};\nuse super::EXIT_USAGE;"), 0);
    assert_eq!(import("model.rs", "//! See [`crate::store`].\nlet text = \"crate::store\";"), 0);
    assert_eq!(import("policy/retry.rs", "fn f() {}\n#[cfg(test)]\nmod tests { use crate::store; }"), 0);

    let circle = |files: &[(&str, &str)]| {
        circles(&files.iter().map(|(path, text)| source(path, text)).collect::<Vec<_>>()).len()
    };
    assert_eq!(circle(&[("actors/a.rs", "use super::b::B;"), ("actors/b.rs", "use super::c;")]), 0);
    assert_eq!(circle(&[("actors/a.rs", "use super::b::B;"), ("actors/b.rs", "fn f(a: super::a::A) {}")]), 1);
    let round = [
        ("actors/a.rs", "use crate::actors::{b::B, d};"),
        ("actors/b/mod.rs", "mod x;"),
        ("actors/b/x.rs", "use super::super::c;"),
        ("actors/c.rs", "use super::{Shared, a};"),
        ("actors/d.rs", "use crate::store;"),
    ];
    assert_eq!(circle(&round), 1);

    let ban = |path: &str, text: &str| banned_words(&source(path, text)).len();
    assert_eq!(ban("actors/db.rs", "let now = Instant::now();\nlet rows = sqlx::query(SQL);"), 3);
    assert_eq!(ban("clock.rs", "Instant::now()"), 0);
    assert_eq!(ban("cli/check.rs", "println!(\"sqlx, awc and unsafe are words\");"), 0);
    assert_eq!(ban("actors/db.rs", "eprintln!(\"\"); value.unwrap(); value.unwrap_or(1);"), 2);
    assert_eq!(ban("policy/retry.rs", "pub async fn f() { log::warn!(\"\") }"), 2);
    assert_eq!(ban("actors/db.rs", "let c = '\"'; unsafe {} // unsafe"), 1);
    assert_eq!(ban("outbound/network.rs", "config.dangerous().set_certificate_verifier(x);"), 1);
    assert_eq!(ban("actors/db.rs", "let s = r#\"a \" unsafe\"#; let t = \"\\\" unsafe\"; fn f<'a>() {}"), 0);

    let bare = |text: &str| unqualified_queries(&source("store/keys.rs", text)).len();
    assert_eq!(bare("use sqlx::query;\nlet a = query(SQL); let b = query_as::<A>(SQL);"), 2);
    assert_eq!(bare("let a = schema::query(SQL); fn query(sql: &str) {} url.query();"), 0);

    let long = |text: &str| too_long(&source("x.rs", text)).len();
    assert_eq!(long(&"\n".repeat(MAX_FILE_LINES + 1)), 1);
    assert_eq!(long(&"x".repeat(MAX_COLUMNS + 1)), 1);
    assert_eq!(long(&format!("pub async fn f() {{\n{}}}\n", "    x();\n".repeat(MAX_FUNCTION_LINES))), 1);
    assert_eq!(long(&format!("fn f() {{\n{}}}\n", "    x();\n".repeat(MAX_FUNCTION_LINES - 2))), 0);
}

fn source(path: &str, text: &str) -> Source {
    Source { path: path.into(), text: text.into() }
}

/// Fails with everything that `rule` finds in `sources`.
fn hold(sources: Vec<Source>, rule: fn(&Source) -> Vec<String>) {
    let found: Vec<String> = sources
        .iter()
        .flat_map(|source| rule(source).into_iter().map(|fault| format!("{}: {fault}", source.path)))
        .collect();
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

fn sources(directory: &str) -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join(directory);
    let mut found = Vec::new();
    let mut open: Vec<PathBuf> = vec![root.clone()];
    while let Some(directory) = open.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten().map(Result::unwrap) {
            let path = entry.path();
            if path.is_dir() {
                open.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(&root).unwrap().to_str().unwrap();
                found.push(source(name, &fs::read_to_string(&path).unwrap()));
            }
        }
    }
    found
}

fn wrong_imports(source: &Source) -> Vec<String> {
    let module = source.path.split(['/', '.']).next().unwrap();
    if module == "lib" {
        return Vec::new();
    }
    let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| *name == module) else {
        return vec![format!("the module {module} is missing in MAY_USE")];
    };
    let code = code_of(source);
    // The way up to the root of the crate has other names as well.
    let depth = source.path.trim_end_matches("/mod.rs").matches('/').count();
    let up = "super::".repeat(depth + 1);
    let mut used = Vec::new();
    for root in ["crate::", "posthaste::", &up] {
        used.extend(code.match_indices(root).flat_map(|(at, _)| first_names(&code[at + root.len()..])));
    }
    used.retain(|name| MAY_USE.iter().any(|(module, _)| module == name));
    used.retain(|name| name != module && !allowed.contains(&name.as_str()));
    used.iter().map(|name| format!("{module} must not use {name}")).collect()
}

/// Siblings that use each other, each circle once: `a → b → a`.
fn circles(sources: &[Source]) -> Vec<String> {
    let module = |path: &str| -> Vec<String> {
        let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
        path.split('/').map(str::to_owned).collect()
    };
    let modules: Vec<Vec<String>> = sources.iter().map(|source| module(&source.path)).collect();
    let mut uses: BTreeMap<Vec<String>, BTreeSet<Vec<String>>> = BTreeMap::new();
    for (source, user) in sources.iter().zip(&modules) {
        let code = code_of(source);
        for depth in 1..user.len() {
            let parent = &user[..depth];
            let by_name = format!("crate::{}::", parent.join("::"));
            let by_steps = "super::".repeat(user.len() - depth);
            let names = [by_name, by_steps].into_iter().flat_map(|way| {
                // Not the end of a longer way up.
                let starts = code.match_indices(&way).filter(|(at, _)| !code[..*at].ends_with("::"));
                starts.flat_map(|(at, _)| first_names(&code[at + way.len()..])).collect::<Vec<_>>()
            });
            let siblings = names.map(|name| [parent, &[name]].concat());
            let others = siblings.filter(|other| *other != user[..=depth] && modules.contains(other));
            uses.entry(user[..=depth].to_vec()).or_default().extend(others);
        }
    }
    let mut found = Vec::new();
    loop {
        // What uses none of the others is in no circle; nor is then what uses only that.
        while let Some((free, _)) = uses.iter().find(|(_, used)| used.iter().all(|u| !uses.contains_key(u))) {
            let free = free.clone();
            uses.remove(&free);
        }
        let Some(start) = uses.keys().next().cloned() else { return found };
        let mut way = vec![start];
        let next = |at: &Vec<String>| uses[at].iter().find(|used| uses.contains_key(*used)).cloned();
        while let Some(step) = way.last().and_then(next) {
            if let Some(at) = way.iter().position(|known| *known == step) {
                way.drain(..at);
                break;
            }
            way.push(step);
        }
        let names: Vec<String> = way.iter().chain(way.first()).map(|module| module.join("::")).collect();
        found.push(names.join(" → "));
        way.iter().for_each(|module| drop(uses.remove(module)));
    }
}

/// The names that follow `crate::`: one, or those of a group at its first level.
fn first_names(after: &str) -> Vec<String> {
    let name = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let Some(group) = after.strip_prefix('{') else {
        return vec![name(after)];
    };
    let (mut depth, mut names, mut start) = (0, Vec::new(), 0);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            ',' | '}' if depth == 0 => {
                names.push(name(group[start..at].trim()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    names
}

fn banned_words(source: &Source) -> Vec<String> {
    let code = code_of(source);
    let pure = ["policy/", "format/", "dispatch/"].iter().any(|room| source.path.starts_with(room));
    let banned = BANS.iter().filter(|(_, places)| !places.iter().any(|place| source.path.starts_with(place)));
    let words = banned.map(|(word, _)| *word).chain(IMPURE.into_iter().filter(|_| pure));
    words.filter(|word| has_word(&code, word)).map(|word| format!("{word} is banned here")).collect()
}

/// Statements that do not say where they come from: only by its path it can be seen that `store::schema` has
/// put the schema in.
fn unqualified_queries(source: &Source) -> Vec<String> {
    let code = code_of(source);
    let is_part = |c: char| c.is_alphanumeric() || "_.:".contains(c);
    let calls = ["query(", "query_as(", "query_scalar(", "query_as::<", "query_scalar::<"];
    let bare = calls.iter().flat_map(|call| code.match_indices(call)).filter(|(at, _)| {
        let before = &code[..*at];
        !before.ends_with(is_part) && !before.ends_with("fn ")
    });
    let is_there = source.path.starts_with("store/");
    bare.filter(|_| is_there).map(|(_, call)| format!("{call} without its path")).collect()
}

/// Whether `word` stands in `code` as a word of its own.
fn has_word(code: &str, word: &str) -> bool {
    let part = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() || c == '_');
    code.match_indices(word).any(|(at, _)| {
        let ends_open = word.ends_with(|c: char| !c.is_alphanumeric());
        !part(code[..at].chars().next_back()) && (ends_open || !part(code[at + word.len()..].chars().next()))
    })
}

fn too_long(source: &Source) -> Vec<String> {
    let lines: Vec<&str> = source.text.lines().collect();
    let mut faults = Vec::new();
    if lines.len() > MAX_FILE_LINES {
        faults.push(format!("{} lines", lines.len()));
    }
    let wide = lines.iter().enumerate().filter(|(_, line)| line.chars().count() > MAX_COLUMNS);
    faults.extend(wide.map(|(at, _)| format!("line {} is too wide", at + 1)));
    for (at, line) in lines.iter().enumerate() {
        let words = line.trim_start();
        let indent = &line[..line.len() - words.len()];
        let function = ["fn ", "async fn ", "const fn "].iter().any(|start| {
            let words =
                words.strip_prefix("pub").map_or(words, |rest| rest.split_once(' ').map_or("", |r| r.1));
            words.starts_with(start)
        });
        // rustfmt puts a function's closing brace below its first letter.
        let length = lines[at..].iter().position(|end| *end == format!("{indent}}}"));
        if let Some(length) = length.filter(|length| function && *length + 1 > MAX_FUNCTION_LINES) {
            faults.push(format!("the function at line {} has {} lines", at + 1, length + 1));
        }
    }
    faults
}

/// The code without comments, without what stands in strings, and without its tests.
fn code_of(source: &Source) -> String {
    if ["tests.rs", "fixtures.rs"].iter().any(|end| source.path.ends_with(end)) {
        return String::new();
    }
    let text = source.text.split("\n#[cfg(test)]\nmod tests {").next().unwrap();
    let mut code = String::new();
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let skipped = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if let Some(hashes) = raw_string(rest).filter(|_| !code.ends_with(char::is_alphanumeric)) {
            let end = format!("\"{}", "#".repeat(hashes));
            let start = hashes + 2;
            rest[start..].find(&end).map_or(rest.len(), |at| start + at + end.len())
        } else if c == '"' {
            closing(rest, '"').unwrap_or(rest.len())
        } else if c == '\'' && (rest.starts_with("'\\") || rest.chars().nth(2) == Some('\'')) {
            closing(rest, '\'').unwrap_or(rest.len())
        } else {
            code.push(c);
            c.len_utf8()
        };
        rest = &rest[skipped..];
    }
    code
}

/// How many hashes the raw string has that starts here, if one does.
fn raw_string(rest: &str) -> Option<usize> {
    let hashes = rest.strip_prefix('r')?;
    let quote = hashes.trim_start_matches('#');
    quote.starts_with('"').then(|| hashes.len() - quote.len())
}

/// Where the literal that starts here has ended.
fn closing(rest: &str, quote: char) -> Option<usize> {
    let mut escaped = false;
    rest.char_indices().skip(1).find_map(|(at, c)| {
        let ends = c == quote && !escaped;
        escaped = c == '\\' && !escaped;
        ends.then_some(at + c.len_utf8())
    })
}
