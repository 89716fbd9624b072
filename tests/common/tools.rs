//! Tools of other projects, installed on the machine or unpacked by `.ci/test`.

use std::fs;
use std::path::{Path, PathBuf};

/// Where they may be.
fn roots() -> [PathBuf; 2] {
    [Path::new(env!("CARGO_MANIFEST_DIR")).join("target/debian"), PathBuf::from("/")]
}

/// The file at `path`, which begins with `usr/`.
pub fn unpacked(path: &str) -> Option<PathBuf> {
    roots().map(|root| root.join(path)).into_iter().find(|path| path.exists())
}

/// The library of this name, below the directory of whatever architecture this is.
pub fn library(name: &str) -> Option<PathBuf> {
    let directories = roots().map(|root| fs::read_dir(root.join("usr/lib")));
    let entries = directories.into_iter().flatten().flatten().flatten();
    entries.map(|entry| entry.path().join(name)).find(|path| path.exists())
}
