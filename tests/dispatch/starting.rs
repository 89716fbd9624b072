//! How `serve` starts: or does not, and says why; by notification or by polling; alone or beside another one.

use std::process::Output;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually, run};
use crate::{accepted, times_received};

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test]
async fn without_migrations_serve_ends_and_says_what_to_do() {
    let db = Db::empty().await;
    let ended = run(&["serve"], &[("DATABASE_URL", db.url.reveal())]);
    assert_eq!(ended.status.code(), Some(1));
    assert!(stderr(&ended).contains("run posthaste migrate"), "{}", stderr(&ended));
    assert_eq!(db.number("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'").await, 0);

    let migrated = run(&["migrate"], &[("DATABASE_URL", db.url.reveal())]);
    assert!(migrated.status.success(), "{}", stderr(&migrated));
    let mut posthaste = Posthaste::serve(&db.url).await;
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[]).await;
}

#[test]
fn without_a_database_url_serve_ends_with_2() {
    for environment in [&[][..], &[("DATABASE_URL", "")]] {
        let ended = run(&["serve"], environment);
        assert_eq!(ended.status.code(), Some(2));
        assert!(stderr(&ended).contains("DATABASE_URL"), "{}", stderr(&ended));
        assert!(stderr(&ended).contains("--embedded"), "{}", stderr(&ended));
    }
}

#[test]
fn all_faults_of_the_configuration_are_reported_at_once() {
    let environment = [
        ("DATABASE_URL", "mysql://user:hunter2@host/db"),
        ("POSTHASTE_LISTEN", "everywhere"),
        ("POSTHASTE_ALLOW_NETWORKS", "10.0.0.0/8,10.0.0.0/99"),
        ("POSTHASTE_HTTPS_ONLY", "perhaps"),
        ("POSTHASTE_CA_FILE", "/nonexistent/ca.pem"),
        ("POSTHASTE_POLL_INTERVAL", "1ms"),
        ("POSTHASTE_SHUTDOWN_GRACE", "soon"),
        ("POSTHASTE_MAX_IN_FLIGHT", "0"),
        ("POSTHASTE_MAX_EVENT_BYTES", "5MB"),
    ];
    let ended = run(&["serve"], &environment);
    assert_eq!(ended.status.code(), Some(2));
    let said = stderr(&ended);
    for fault in [
        "--database-url",
        "--listen: \"everywhere\"",
        "--allow-networks: \"10.0.0.0/99\"",
        "--https-only: \"perhaps\"",
        "--ca-file: /nonexistent/ca.pem",
        "--poll-interval: \"1ms\"",
        "--shutdown-grace: \"soon\"",
        "--max-in-flight: \"0\"",
        "--max-event-bytes: \"5MB\"",
    ] {
        assert!(said.contains(fault), "{fault} is not reported in: {said}");
    }
    assert!(said.contains(&format!("{} fault", environment.len())), "{said}");
    assert!(!said.contains("hunter2"), "{said}");
}

#[test]
fn a_file_of_roots_without_a_certificate_is_a_fault_of_the_configuration() {
    let file = tempfile::NamedTempFile::new().unwrap();
    for (text, fault) in [
        ("nonsense", "holds no certificate in PEM"),
        ("", "holds no certificate in PEM"),
        ("-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n", "is not PEM"),
    ] {
        std::fs::write(file.path(), text).unwrap();
        let path = file.path().to_str().unwrap();
        let environment =
            [("DATABASE_URL", "postgres://nobody@127.0.0.1:1/none"), ("POSTHASTE_CA_FILE", path)];
        for command in ["serve", "check"] {
            let ended = run(&[command], &environment);
            let said = stderr(&ended);
            assert_eq!(ended.status.code(), Some(2), "{command}: {said}");
            assert!(said.contains(&format!("--ca-file: {path} {fault}")), "{command}: {said}");
        }
    }
}

#[tokio::test]
async fn without_notifications_polling_finds_events_and_destinations() {
    let db = Db::empty().await;
    let migrated = run(&["migrate", "--without-notify"], &[("DATABASE_URL", db.url.reveal())]);
    assert!(migrated.status.success(), "{}", stderr(&migrated));
    let mut listener = sqlx::postgres::PgListener::connect_with(&db.pool).await.unwrap();
    listener.listen_all(["posthaste_wake", "posthaste_config"]).await.unwrap();
    let receiver = Receiver::start();
    let org = db.org().await;
    let mut posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_POLL_INTERVAL", "200ms")]).await;
    db.destination(org, receiver.url("/")).insert().await;
    let events = db.events(org, 10).await;
    accepted(&receiver, &events).await;
    let later = db.events(org, 10).await;
    accepted(&receiver, &later).await;
    db.settled().await;
    // Notifications arrive in the order of their commits: if this one is the first, there were none.
    db.execute("SELECT pg_notify('posthaste_wake', 'from the test')").await;
    assert_eq!(listener.recv().await.unwrap().payload(), "from the test");
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn notifications_announce_events_and_destinations_between_polls() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    let mut posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_POLL_INTERVAL", "1h")]).await;
    eventually("it listens", async || {
        let listening = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND query LIKE 'LISTEN %'";
        db.number(listening).await > 0
    })
    .await;
    db.destination(org, receiver.url("/")).insert().await;
    for _ in 0..3 {
        let events = db.events(org, 10).await;
        accepted(&receiver, &events).await;
    }
    db.settled().await;
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn two_processes_share_the_work_without_duplicates() {
    const EVENTS: usize = 500;
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::Slow(std::time::Duration::from_millis(5)));
    let org = db.org().await;
    for path in ["/0", "/1", "/2"] {
        db.destination(org, receiver.url(path)).insert().await;
    }
    db.destination(org, receiver.url("/batch")).batch_size(7).insert().await;
    // Half of the work is there when both start, half comes while both run.
    let mut events = db.events(org, EVENTS / 2).await;
    let environment = [("DATABASE_URL", db.url.reveal())];
    let mut processes = [(); 2].map(|()| Posthaste::spawn(&["serve"], &environment));
    for process in &processes {
        process.ready().await;
    }
    for _ in 0..EVENTS / 50 {
        events.extend(db.events(org, 25).await);
    }
    accepted(&receiver, &events).await;
    db.settled().await;
    for process in &mut processes {
        assert!(process.terminate().await.success());
    }
    let times = times_received(&receiver);
    assert_eq!(times.len(), EVENTS);
    assert!(times.values().all(|times| *times == 4), "each once at each of the four destinations");
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 4 * EVENTS as i64);
    check_invariants(&db, &[&receiver]).await;
}
