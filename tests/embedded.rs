//! The private PostgreSQL, with the programs that are installed here.

#![allow(clippy::unwrap_used)]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{block_on, fresh_dir};
use posthaste::embedded::{Durability, Embedded, EmbeddedError};
use posthaste::model::Secret;
use rustix::process::{Pid, Signal, geteuid, kill_process, test_kill_process};
use sqlx::{Connection, PgConnection, Row};

/// Removes the directory of a test, however it ends.
struct Home(PathBuf);

impl Drop for Home {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).ok();
    }
}

fn home() -> Home {
    Home(fresh_dir())
}

fn query(url: &Secret, sql: &'static str) -> String {
    block_on(async {
        let mut connection = PgConnection::connect(url.reveal()).await.unwrap();
        let row = sqlx::query(sql).fetch_optional(&mut connection).await.unwrap();
        connection.close().await.unwrap();
        row.map(|row| row.get(0)).unwrap_or_default()
    })
}

fn process(server: &Embedded) -> Pid {
    Pid::from_raw(server.pid().unwrap()).unwrap()
}

#[test]
fn it_starts_keeps_its_data_and_stops() {
    let home = home();
    let server = Embedded::start(&home.0, Durability::Durable).unwrap();
    let url = server.database("an \"odd\" name").unwrap();
    query(&url, "CREATE TABLE kept AS SELECT 'here' AS word");
    assert_eq!(query(&url, "SELECT current_setting('listen_addresses')"), "");
    assert_eq!(
        query(&url, "SELECT current_setting('fsync') || current_setting('synchronous_commit')"),
        "onon"
    );
    let pid = process(&server);
    server.stop().unwrap();
    assert!(test_kill_process(pid).is_err(), "the server still runs");

    let server = Embedded::start(&home.0, Durability::Durable).unwrap();
    // Asking for a database that exists leaves it alone.
    let url = server.database("an \"odd\" name").unwrap();
    assert_eq!(query(&url, "SELECT word FROM kept"), "here");
    server.stop().unwrap();
}

#[test]
fn a_server_that_outlived_its_process_is_found_and_used() {
    let home = home();
    let server = Embedded::start(&home.0, Durability::Throwaway).unwrap();
    let pid = process(&server);
    server.leave_running();
    let again = Embedded::start(&home.0, Durability::Throwaway).unwrap();
    assert_eq!(process(&again), pid);
    assert_eq!(query(&again.url("postgres"), "SELECT 'it answers'"), "it answers");
    again.stop().unwrap();
    assert!(!home.0.exists(), "a throwaway server leaves nothing");
}

#[test]
fn a_crashed_server_is_recovered_whatever_its_pid_file_says() {
    let home = home();
    let server = Embedded::start(&home.0, Durability::Durable).unwrap();
    let url = server.database("app").unwrap();
    query(&url, "CREATE TABLE kept AS SELECT 'here' AS word");
    let pid_file = home.0.join("data/postmaster.pid");
    let text = fs::read_to_string(&pid_file).unwrap();
    kill_process(process(&server), Signal::KILL).unwrap();
    drop(server);
    // A number that belongs to somebody else by now, as after a restart of a container: our own.
    let rest = text.split_once('\n').unwrap().1;
    fs::write(&pid_file, format!("{}\n{rest}", std::process::id())).unwrap();
    let server = Embedded::start(&home.0, Durability::Durable).unwrap();
    assert_eq!(query(&server.url("app"), "SELECT word FROM kept"), "here");
    server.stop().unwrap();
}

#[test]
fn a_directory_belongs_to_one_at_a_time() {
    let home = home();
    let server = Embedded::start(&home.0, Durability::Throwaway).unwrap();
    let second = Embedded::start(&home.0, Durability::Throwaway).unwrap_err();
    assert!(matches!(second, EmbeddedError::InUse(_)), "{second}");
    server.stop().unwrap();
}

#[test]
fn a_path_too_long_for_a_socket_is_no_obstacle() {
    let home = home();
    let long = home.0.join("d".repeat(120));
    fs::create_dir_all(&long).unwrap();
    fs::set_permissions(&home.0, fs::Permissions::from_mode(0o755)).unwrap();
    let server = Embedded::start(&long, Durability::Throwaway).unwrap();
    let socket = query(&server.url("postgres"), "SELECT current_setting('unix_socket_directories')");
    let socket = PathBuf::from(socket.trim_matches('"'));
    assert!(!socket.starts_with(&home.0));
    assert_eq!(fs::metadata(&socket).unwrap().mode() & 0o777, 0o700, "{}", socket.display());
    server.stop().unwrap();
    assert!(!socket.exists(), "a throwaway server leaves nothing");
}

#[test]
fn an_unfinished_cluster_is_made_again() {
    let home = home();
    fs::create_dir_all(home.0.join("data.new/base")).unwrap();
    fs::set_permissions(&home.0, fs::Permissions::from_mode(0o755)).unwrap();
    let server = Embedded::start(&home.0, Durability::Throwaway).unwrap();
    assert!(!home.0.join("data.new").exists());
    server.stop().unwrap();
}

#[test]
fn data_of_a_version_that_is_not_installed_are_refused_and_left_alone() {
    let home = home();
    fs::create_dir_all(home.0.join("data")).unwrap();
    fs::write(home.0.join("data/PG_VERSION"), "12\n").unwrap();
    fs::set_permissions(&home.0, fs::Permissions::from_mode(0o755)).unwrap();
    let error = Embedded::start(&home.0, Durability::Durable).unwrap_err();
    assert!(matches!(error, EmbeddedError::Version { data: 12, .. }), "{error}");
    assert_eq!(fs::read_to_string(home.0.join("data/PG_VERSION")).unwrap(), "12\n");
}

#[test]
fn as_root_it_runs_as_another_user_and_says_which_directory_is_closed_to_that_user() {
    if !geteuid().is_root() {
        return;
    }
    let home = home();
    fs::create_dir_all(&home.0).unwrap();
    fs::set_permissions(&home.0, fs::Permissions::from_mode(0o700)).unwrap();
    let inner = home.0.join("inner");
    match Embedded::start(&inner, Durability::Throwaway).unwrap_err() {
        EmbeddedError::Unreachable { blocked, .. } => assert_eq!(blocked, home.0),
        other => panic!("{other}"),
    }
    fs::set_permissions(&home.0, fs::Permissions::from_mode(0o711)).unwrap();
    let server = Embedded::start(&inner, Durability::Throwaway).unwrap();
    let owner = fs::metadata(Path::new("/proc").join(server.pid().unwrap().to_string())).unwrap().uid();
    assert_ne!(owner, 0);
    server.stop().unwrap();
}
