//! `posthaste demo`, as people start it.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;

use common::{Db, Posthaste, eventually, fresh_dir};
use rustix::process::Signal;

const DEMO: [&str; 5] = ["demo", "--events", "300", "--seconds", "3"];

#[tokio::test]
async fn on_a_given_server_it_proves_that_every_event_arrives_and_leaves_no_trace() {
    let db = Db::empty().await;
    let mut demo = Posthaste::spawn(&DEMO, &[("DATABASE_URL", db.url.reveal())]);
    let status = demo.exit().await;
    let said = demo.log();
    assert!(status.success(), "{status}\n{said}");
    assert_eq!(said.matches("\ntrue:").count(), 4, "{said}");
    assert!(said.contains("every matching event arrived (808 of 808)"), "{said}");
    assert!(!said.contains("whsec_"), "{said}");
    assert_eq!(db.number("SELECT count(*) FROM pg_database WHERE datname LIKE 'posthaste_demo_%'").await, 0);
    assert_eq!(
        db.number("SELECT count(*) FROM pg_class WHERE relname = 'activity_logs'").await,
        0,
        "it used the named database"
    );
}

#[tokio::test]
async fn ctrl_c_ends_it_and_its_private_server() {
    let dir = fresh_dir();
    let mut demo = Posthaste::spawn(&["demo", "--data-dir", dir.to_str().unwrap()], &[]);
    eventually("events are being written", async || demo.log().contains("2000 events written")).await;
    let pid_file = fs::read_to_string(dir.join("demo/data/postmaster.pid")).unwrap();
    let server: i32 = pid_file.lines().next().unwrap().parse().unwrap();
    demo.signal(Signal::INT);
    let status = demo.exit().await;
    assert_eq!(status.code(), Some(130), "{}", demo.log());
    assert!(!dir.join("demo").exists(), "its data are still there");
    let server = rustix::process::Pid::from_raw(server).unwrap();
    assert!(rustix::process::test_kill_process(server).is_err(), "its server still runs");
    fs::remove_dir_all(&dir).unwrap();
}

#[tokio::test]
async fn without_a_usable_server_it_says_so() {
    let url = "postgres://nobody:hidden-password@127.0.0.1:1/nothing";
    let mut demo = Posthaste::spawn(&DEMO, &[("DATABASE_URL", url)]);
    assert_eq!(demo.exit().await.code(), Some(1));
    let said = demo.log();
    assert!(said.contains("posthaste demo:") && !said.contains("hidden-password"), "{said}");
}
