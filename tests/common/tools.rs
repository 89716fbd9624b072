//! Tools of other projects, installed on the machine or unpacked by `.ci/test`.

use std::fs;
use std::path::{Path, PathBuf};

/// Says that a test does without a tool. Where `CI` is set, as `.ci/run` does, it fails instead.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "in CI nothing is skipped: {why}");
    eprintln!("skipped, as {why}");
}

/// A copy in `dir` of the program at `path` and of the libraries beside `library`: whoever runs it as another
/// user than root may not reach below root's home.
pub fn copied(path: &Path, library: Option<&Path>, dir: &Path) -> PathBuf {
    let libraries = library.and_then(Path::parent).map(|beside| fs::read_dir(beside).unwrap());
    let libraries = libraries.into_iter().flatten().map(|entry| entry.unwrap().path());
    for file in libraries.filter(|path| path.is_file()).chain([path.to_owned()]) {
        fs::copy(&file, dir.join(file.file_name().unwrap())).unwrap();
    }
    dir.join(path.file_name().unwrap())
}

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
