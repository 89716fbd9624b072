//! The README and the pages below `docs` say nothing that is not so: tables are what the program says, links
//! lead somewhere, commands exist, and what a reader is told to run is run.

#![allow(clippy::unwrap_used)]

#[path = "../common/mod.rs"]
mod common;

mod generated;
mod pages;
mod receivers;
mod shell;
mod snippets;
mod walk;

use std::fs;
use std::path::{Path, PathBuf};

/// A page: its path below the top of the repository, and its text.
struct Page {
    path: String,
    text: String,
}

/// What stands between two fences.
struct Block {
    /// What follows the opening fence: `sh`, `python receiver.py`.
    info: String,
    text: String,
    /// The last line before it that is not empty.
    before: String,
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_owned()
}

fn page(path: &str) -> Page {
    let text = fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    Page { path: path.into(), text }
}

/// The README and everything below `docs`.
fn all_pages() -> Vec<Page> {
    let entries = fs::read_dir(root().join("docs")).unwrap().map(|entry| entry.unwrap().file_name());
    let mut names: Vec<String> = entries.map(|name| name.into_string().unwrap()).collect();
    names.retain(|name| name.ends_with(".md"));
    names.sort();
    let docs = names.iter().map(|name| page(&format!("docs/{name}")));
    [page("README.md")].into_iter().chain(docs).collect()
}

impl Page {
    /// The part below the heading of this text, up to the next one of its level.
    fn section(&self, heading: &str) -> Page {
        let (_, after) = self.text.split_once(&format!("\n{heading}\n")).unwrap_or_else(|| {
            panic!("{} has no section {heading}", self.path);
        });
        let level = heading.split(' ').next().unwrap();
        let text = after.split(&format!("\n{level} ")).next().unwrap().to_owned();
        Page { path: self.path.clone(), text }
    }

    fn blocks(&self) -> Vec<Block> {
        let (mut blocks, mut before) = (Vec::<Block>::new(), "");
        let mut open = false;
        for line in self.text.lines() {
            match (line.strip_prefix("```"), open) {
                (Some(info), false) => {
                    blocks.push(Block { info: info.into(), text: String::new(), before: before.into() })
                }
                (None, true) => {
                    let text = &mut blocks.last_mut().unwrap().text;
                    text.push_str(line);
                    text.push('\n');
                }
                (None, false) if !line.trim().is_empty() => before = line,
                _ => {}
            }
            open ^= line.starts_with("```");
        }
        blocks
    }

    /// The lines outside of fences, with their numbers.
    fn prose(&self) -> Vec<(usize, &str)> {
        let mut open = false;
        let outside = |(_, line): &(usize, &str)| {
            let fence = line.starts_with("```");
            open ^= fence;
            !fence && !open
        };
        self.text.lines().enumerate().map(|(at, line)| (at + 1, line)).filter(outside).collect()
    }
}
