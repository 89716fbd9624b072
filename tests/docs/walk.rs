//! The quick starts, run as a reader runs them: the commands of the page, word by word, with the real
//! program, a real PostgreSQL and the real receiver. Three things are not those of the reader: Cargo, which
//! has built everything already; `sudo`, as the superuser is another one here; and the line that says where
//! the database is.

use std::fs::{self, File};
use std::net::TcpStream;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use posthaste::embedded::{Durability, Embedded};
use posthaste::model::Secret;
use rustix::process::{Pid, Signal, kill_process_group};

use crate::common::{eventually, fresh_dir, with_user};
use crate::{Page, page, root};

/// The line that a reader changes.
const PLACE: &str = "export DATABASE_URL=postgres://app_owner:change-me@localhost/app";
/// Where the receiver listens.
const RECEIVER: (&str, u16) = ("127.0.0.1", 9000);
/// Ends what a block has printed.
const END: &str = "--- end of block";

#[tokio::test]
async fn the_quick_start_runs_as_it_is_written() {
    walk(&page("docs/quickstart.md")).await;
}

#[tokio::test]
async fn the_first_webhook_of_the_readme_runs_as_it_is_written() {
    walk(&page("README.md").section("## Your first webhook")).await;
}

/// Runs every shell snippet of the page in one shell, and compares what it printed with what the page shows.
async fn walk(page: &Page) {
    // The receiver has one port.
    let port = std::env::temp_dir().join("posthaste-tests-port-9000");
    let port = File::options().create(true).truncate(false).write(true).open(port).unwrap();
    port.lock().unwrap();
    eventually("the receiver of another test is gone", async || TcpStream::connect(RECEIVER).is_err()).await;
    let place = Place::new();
    let reader = Reader::start(&place, &script(page, &place));
    reader.end(&place).await;

    let printed = fs::read_to_string(place.dir.join("printed")).unwrap();
    let received = fs::read_to_string(place.dir.join("receiver.out")).unwrap();
    let mut shown = 0;
    let mut block = "";
    let mut parts = printed.split(END);
    for fence in page.blocks() {
        match fence.info.as_str() {
            "sh" => block = parts.next().unwrap(),
            "text" => {
                shown += 1;
                assert_same(&page.path, &fence.text, block.trim_start_matches('\n'), &printed);
            }
            "text receiver" => {
                shown += 1;
                assert_same(&page.path, &fence.text, &received, &printed);
            }
            _ => {}
        }
    }
    assert!(shown >= 2, "{} shows nothing of what is printed", page.path);
}

/// One script for all snippets. What runs in another terminal runs beside it.
fn script(page: &Page, place: &Place) -> String {
    let mut script = "set -eu\nexec > printed 2>&1\n".to_owned();
    for block in page.blocks() {
        match block.info.as_str() {
            "sh" => script.push_str(&format!("{}echo '{END}'\n", block.text)),
            "sh second terminal" => {
                script.push_str(&format!("{{\n{}}} > receiver.out 2>&1 &\n", block.text));
                script.push_str("until grep -q listening receiver.out; do command -p sleep 0.1; done\n");
            }
            info => assert!(!info.starts_with("sh"), "{}: {info}", page.path),
        }
    }
    assert_eq!(script.matches(PLACE).count(), 1, "{}", page.path);
    let url = place.server.as_ref().unwrap().url("app");
    let url = with_user(&url, "app_owner");
    script.replace(PLACE, &format!("export DATABASE_URL='{}'", url.reveal()))
}

/// A directory that looks like a clone, and a PostgreSQL.
struct Place {
    dir: PathBuf,
    server: Option<Embedded>,
}

impl Place {
    fn new() -> Place {
        let dir = fresh_dir();
        fs::create_dir_all(dir.join("target/release/examples")).unwrap();
        fs::create_dir(dir.join("bin")).unwrap();
        let server = Embedded::start(&dir.join("pg"), Durability::Throwaway).unwrap();
        for name in [".ci", "examples"] {
            symlink(root().join(name), dir.join(name)).unwrap();
        }
        let program = Path::new(env!("CARGO_BIN_EXE_posthaste"));
        let receiver = program.with_file_name("examples").join("receiver");
        assert!(receiver.exists(), "cargo build --example receiver makes {}", receiver.display());
        symlink(program, dir.join("target/release/posthaste")).unwrap();
        symlink(receiver, dir.join("target/release/examples/receiver")).unwrap();
        let admin = other_superuser(&server);
        let sudo =
            format!("[ \"$1 $2 $3\" = '-u postgres psql' ]\nshift 3\nexec psql '{}' \"$@\"", admin.reveal());
        // A busy machine is slower than a reader's: here the time is over when everything has arrived.
        let open = "SELECT count(*) FROM webhook_deliveries WHERE status <> 'delivered'";
        let open = format!("[ \"$(psql \"$DATABASE_URL\" -Atc \"{open}\")\" = 0 ]");
        let sleep = format!("until {open}; do command -p sleep 0.1; done");
        for (name, body) in [("cargo", "exit 0"), ("sudo", &sudo), ("sleep", &sleep)] {
            let path = dir.join("bin").join(name);
            fs::write(&path, format!("#!/bin/sh\nset -e\n{body}\n")).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        }
        Place { dir, server: Some(server) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.server.take().unwrap().stop().ok();
        fs::remove_dir_all(&self.dir).ok();
    }
}

/// The private server's superuser has the name that readers give to the role of `serve`: it gets another one.
fn other_superuser(server: &Embedded) -> Secret {
    let first = server.url("postgres");
    let admin = with_user(&first, "postgres");
    for (url, sql) in [
        (&first, "CREATE ROLE postgres SUPERUSER LOGIN"),
        (&admin, "ALTER ROLE posthaste RENAME TO somebody"),
    ] {
        let done = Command::new("psql").args(["-qc", sql, url.reveal()]).status().unwrap();
        assert!(done.success(), "{sql}");
    }
    admin
}

/// A shell with everything that it has started.
struct Reader(Child);

impl Reader {
    fn start(place: &Place, script: &str) -> Reader {
        let path = format!("{}:{}", place.dir.join("bin").display(), std::env::var("PATH").unwrap());
        let mut command = Command::new("bash");
        command.arg("-c").arg(script).current_dir(&place.dir).stdin(Stdio::null()).process_group(0);
        command.env_remove("DATABASE_URL").env("PATH", path).env("POSTHASTE_LISTEN", "127.0.0.1:0");
        Reader(command.spawn().unwrap())
    }

    /// Waits for its end.
    async fn end(mut self, place: &Place) {
        let mut status = None;
        eventually("every command of the page has ended", async || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        })
        .await;
        let printed = fs::read_to_string(place.dir.join("printed")).unwrap();
        assert!(status.unwrap().success(), "a command of the page failed:\n{printed}");
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let group = Pid::from_raw(self.0.id().cast_signed()).unwrap();
        kill_process_group(group, Signal::KILL).ok();
        self.0.wait().ok();
    }
}

/// Fails unless both have the same words, but for ids, times and secrets. `…` stands for any word, or for the
/// rest of one.
fn assert_same(path: &str, shown: &str, printed: &str, all: &str) {
    let (shown, printed) = (words(shown), words(printed));
    let same = |(shown, printed): (&String, &String)| match shown.strip_suffix('…') {
        Some(start) => printed.starts_with(start),
        None => shown == printed,
    };
    let equal = shown.len() == printed.len() && shown.iter().zip(&printed).all(same);
    assert!(equal, "{path} shows\n{shown:?}\nbut what is printed is\n{printed:?}\nof\n{all}");
}

fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    // psql puts bars between columns.
    for word in text.split(|c: char| c.is_whitespace() || c == '|').filter(|word| !word.is_empty()) {
        let digits = word.chars().any(|c| c.is_ascii_digit());
        let short = word.len() <= 3 && word.chars().all(|c| c.is_ascii_digit());
        if word == "ms" {
            *words.last_mut().unwrap() = "#".into();
        }
        let differs = digits && !short && !word.starts_with("whsec_");
        words.push(if differs { "#".into() } else { word.into() });
    }
    words
}

#[test]
fn what_differs_is_found() {
    let shown = "took 2 ms\nid 1234-5678 at 04:44:42\nkey whsec_… of …\n";
    assert_same("x", shown, "took 31 ms\nid abc4-5 at 1:2\nkey whsec_abc of 7", "");
    for printed in ["took 2 s", "took 2 ms id 1234-5678 at 04:44:42 key secret_a of b", ""] {
        std::panic::catch_unwind(|| assert_same("x", shown, printed, "")).unwrap_err();
    }
    std::panic::catch_unwind(|| assert_same("x", "delivered|2|204", "delivered|1|204", "")).unwrap_err();
}
