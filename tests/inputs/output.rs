//! Where output goes: a pipe whose reader has gone, a disk that is full.

use std::fs::OpenOptions;
use std::process::{Command, Output, Stdio};

use crate::common::Db;

/// Runs a command whose standard output is `stdout`.
fn run(arguments: &[&str], url: &str, org: &str, stdout: impl Into<Stdio>) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
    command
        .env_clear()
        .current_dir("/")
        .args(arguments)
        .envs([("DATABASE_URL", url), ("POSTHASTE_ORG", org)]);
    command.stdin(Stdio::null()).stdout(stdout).stderr(Stdio::piped());
    command.spawn().unwrap().wait_with_output().unwrap()
}

#[tokio::test]
async fn a_reader_that_goes_away_ends_a_command_quietly_and_a_full_disk_is_an_error() {
    let (db, empty) = (Db::new().await, Db::empty().await);
    let org = db.org().await;
    let destination = db.destination(org, "https://example.com/").insert().await.to_string();
    let event = db.event(org, "a", "{}").await.to_string();
    let delivery = db.text("SELECT id::text FROM webhook_deliveries").await.unwrap();
    let org = org.to_string();
    for arguments in [
        &["--help"][..],
        &["--version"],
        &["help", "serve"],
        &["deliveries", "list", "--help"],
        &["completions", "bash"],
        &["check"],
        &["secrets", "generate-key"],
        &["secrets", "status"],
        &["secrets", "status", "--json"],
        &["destinations", "list"],
        &["destinations", "list", "--json"],
        &["destinations", "show", &destination],
        &["destinations", "stats", &destination],
        &["deliveries", "list"],
        &["deliveries", "list", "--json"],
        &["deliveries", "show", &delivery],
        &["deliveries", "retry", &delivery],
        &["deliveries", "replay", "--destination", &destination, "--dry-run"],
        &["events", "list"],
        &["events", "show", &event],
        &["events", "show", &event, "--json"],
        &["keys", "list"],
        &["keys", "create", "--name", "a", "--role", "read"],
        &["jobs", "list"],
        &["migrate", "--dry-run"],
    ] {
        let url = if arguments[0] == "migrate" { empty.url.reveal() } else { db.url.reveal() };
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let ended = run(arguments, url, &org, writer);
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(141), "{arguments:?}: {told}");
        assert!(!told.contains("panicked") && !told.contains("ipe"), "{arguments:?}: {told}");

        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let ended = run(arguments, url, &org, full);
        let told = String::from_utf8_lossy(&ended.stderr);
        assert_eq!(ended.status.code(), Some(1), "{arguments:?}: {told}");
        assert!(told.contains("standard output: No space left on device"), "{arguments:?}: {told}");
    }
}

#[test]
fn errors_that_cannot_be_printed_change_no_exit_code() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
    for stderr in [Stdio::from(writer), Stdio::from(full)] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_posthaste"));
        command.env_clear().current_dir("/").arg("check").stdout(Stdio::null()).stderr(stderr);
        assert_eq!(command.status().unwrap().code(), Some(2));
    }
}
