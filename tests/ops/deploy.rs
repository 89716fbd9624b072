//! What stands under `examples/`: the least rights, the systemd unit, the container, dashboards and alerts.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::Value;
use sqlx::{AssertSqlSafe, Connection};

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually, fresh_dir, run, skip};
use crate::page::{Page, promtool};

const SERVE: &str = include_str!("../../examples/deploy/grants.sql");
const APPLICATION: &str = include_str!("../../examples/deploy/grants-application.sql");
const UNIT: &str = include_str!("../../examples/deploy/posthaste.service");
const MANAGEMENT: &str = include_str!("../../examples/deploy/grants-management.sql");
const CONTAINER: &str = include_str!("../../examples/deploy/Dockerfile");
const IGNORED: &str = include_str!("../../.dockerignore");
const OPERATIONS: &str = include_str!("../../docs/operations.md");
const DASHBOARD: &str = include_str!("../../examples/grafana.json");
const ALERTS: &str = include_str!("../../examples/alerts.yml");

#[tokio::test]
async fn with_the_least_rights_an_application_writes_and_the_dispatcher_delivers_and_deletes_what_is_old() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(|request| match request.header("posthaste-attempt") {
        Some("1") => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let org = db.org().await;
    let (dispatcher, url) = db.role(SERVE).await;
    let (application, application_url) = db.role(APPLICATION).await;
    let old = "INSERT INTO webhook_deliveries (destination_id, log_id, status, attempts, created_at,
            delivered_at) SELECT d.id, e.id, 'delivered', 1, e.created_at, e.created_at
        FROM webhook_destinations d, activity_logs e WHERE e.event_type = 'old'";
    let app = Db::at(application_url);
    app.destination(org, receiver.url("/")).event_types("{new}").retry(3, 100).insert().await;
    app.execute(&format!(
        "INSERT INTO activity_logs (org_id, event_type, event_category, created_at)
        VALUES ('{org}', 'old', 'test', timezone('UTC', now()) - interval '40 d')"
    ))
    .await;
    db.execute(old).await;
    let event = app.event(org, "new", "{}").await;

    let mut posthaste = Posthaste::serve(&url).await;
    eventually("the event has arrived", async || receiver.accepted().contains_key(&event)).await;
    eventually("the old delivery is gone", async || {
        app.deliveries("true").await == 1 && app.deliveries("status = 'delivered'").await == 1
    })
    .await;
    let (status, ready) = posthaste.get("/readyz").await.unwrap();
    let ready: Value = serde_json::from_str(&ready).unwrap();
    assert_eq!(
        (status, &ready["problems"], &ready["warnings"]),
        (200, &serde_json::json!([]), &ready["problems"])
    );
    assert_eq!(Page::of(&posthaste).await.value("posthaste_retention_failures_total", &[]), 0.0);
    let check = run(&["check"], &[("DATABASE_URL", url.reveal())]);
    assert!(check.status.success(), "{}", String::from_utf8_lossy(&check.stdout));
    assert!(posthaste.terminate().await.success());
    assert!(!posthaste.log().contains("permission denied"));
    check_invariants(&db, &[&receiver]).await;
    app.pool.close().await;
    for role in [dispatcher, application] {
        db.drop_role(&role).await;
    }
}

#[tokio::test]
async fn neither_role_may_do_what_it_has_no_use_for() {
    let db = Db::new().await;
    for (grants, forbidden) in [
        (
            SERVE,
            &[
                "DELETE FROM activity_logs",
                "UPDATE activity_logs SET content = 'x'",
                "TRUNCATE webhook_deliveries",
                "UPDATE webhook_deliveries SET log_id = id",
                "DELETE FROM webhook_destinations",
                "UPDATE webhook_destinations SET url = 'http://x'",
                "UPDATE posthaste_destination_settings SET ordered = true",
                "DELETE FROM posthaste_retention",
                "INSERT INTO posthaste_migrations VALUES (99, 'x')",
                "CREATE TABLE mine ()",
            ][..],
        ),
        (
            APPLICATION,
            &[
                "DELETE FROM activity_logs",
                "UPDATE webhook_deliveries SET status = 'delivered'",
                "DELETE FROM webhook_deliveries",
                "DELETE FROM posthaste_attempts",
                "UPDATE posthaste_destination_state SET tripped_at = NULL",
                "DELETE FROM posthaste_retention",
                "SELECT * FROM posthaste_migrations",
                "CREATE TABLE mine ()",
            ],
        ),
    ] {
        let (role, url) = db.role(grants).await;
        let options = posthaste::store::options(&url).unwrap().options([("search_path", "public")]);
        let mut session = posthaste::store::connect(&options).await.unwrap();
        for sql in forbidden {
            let done = sqlx::query(AssertSqlSafe(*sql)).execute(&mut session).await;
            let error = done.map(drop).expect_err(sql).to_string();
            assert!(error.contains("permission denied"), "{sql}: {error}");
        }
        session.close().await.unwrap();
        db.drop_role(&role).await;
    }
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn without_the_right_to_delete_everything_else_works_and_it_is_said() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    let (role, url) = db.role(SERVE).await;
    db.execute(&format!("REVOKE DELETE ON webhook_deliveries, posthaste_jobs FROM {role}")).await;
    let check = run(&["check"], &[("DATABASE_URL", url.reveal())]);
    let said = String::from_utf8_lossy(&check.stdout).into_owned();
    assert!(check.status.success(), "nothing is lost or delayed by it: {said}");
    for table in ["webhook_deliveries", "posthaste_jobs"] {
        assert!(said.contains(&format!("GRANT DELETE ON public.{table} TO {role}")), "{said}");
    }
    let mut posthaste = Posthaste::serve(&url).await;
    db.events(org, 3).await;
    db.settled().await;
    eventually("it is said", async || {
        let (status, body) = posthaste.get("/readyz").await.unwrap();
        status == 200 && body.contains("old rows are not deleted: ") && body.contains("permission denied")
    })
    .await;
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&receiver]).await;
    db.drop_role(&role).await;
}

/// Every name of a metric in `text`.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    let is_name = |word: &&str| word.starts_with("posthaste_") || word.starts_with("process_");
    words.filter(is_name).map(str::to_owned).collect()
}

#[tokio::test]
async fn dashboard_and_alerts_name_only_what_is_exported() {
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::Status(500));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(0, 100).insert().await;
    let posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_OUTAGE_GRACE", "0")]).await;
    db.events(org, 3).await;
    db.settled().await;
    let mut page = Page::of(&posthaste).await;
    eventually("everything has been measured", async || {
        page = Page::of(&posthaste).await;
        page.series("posthaste_destination_queue_depth").count() > 0
    })
    .await;
    let (exported, _) = page.names();
    let dashboard: Value = serde_json::from_str(DASHBOARD).unwrap();
    assert!(dashboard["panels"].as_array().unwrap().len() > 10);
    for (file, text, least) in [("grafana.json", DASHBOARD, 20), ("alerts.yml", ALERTS, 10)] {
        let named = names(text);
        assert!(named.len() >= least, "{file} names {} metrics", named.len());
        let strangers: Vec<_> = named.iter().filter(|name| !exported.contains(name.as_str())).collect();
        assert!(strangers.is_empty(), "{file} names what is not exported: {strangers:?}");
    }
    promtool(&["check", "rules", concat!(env!("CARGO_MANIFEST_DIR"), "/examples/alerts.yml")], "");
    check_invariants(&db, &[&receiver]).await;
}

#[test]
fn systemd_finds_no_fault_in_the_unit() {
    let dir = fresh_dir();
    std::fs::create_dir(&dir).unwrap();
    let file = dir.join("posthaste.service");
    // systemd looks whether the program is there.
    let unit = UNIT.replace("/usr/local/bin/posthaste", env!("CARGO_BIN_EXE_posthaste"));
    std::fs::write(&file, unit).unwrap();
    let verified = Command::new("systemd-analyze").arg("verify").arg(&file).output();
    std::fs::remove_dir_all(&dir).unwrap();
    let Ok(output) = verified else {
        return skip("systemd-analyze is missing, which verifies the unit");
    };
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && !said.contains("posthaste.service"), "{said}");
}

#[test]
fn the_container_is_built_of_what_there_is_and_runs_without_rights() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let copied =
        CONTAINER.lines().filter_map(|line| line.strip_prefix("COPY ")).filter(|l| !l.contains("--from"));
    for line in copied {
        let (sources, _) = line.rsplit_once(' ').unwrap();
        for source in sources.split(' ') {
            assert!(root.join(source).exists(), "{source}");
            assert!(IGNORED.lines().any(|line| line == format!("!{source}")), "{source} is ignored");
        }
    }
    assert!(IGNORED.lines().any(|line| line == "*"), "what is not copied is ignored");
    assert!(CONTAINER.contains("--locked --bin posthaste") && CONTAINER.contains("\nUSER 10001\n"));
}

/// The API is plain HTTP: a port that is published without an address is open to the network.
#[test]
fn the_container_is_published_on_loopback_only() {
    for (file, text) in [("Dockerfile", CONTAINER), ("operations.md", OPERATIONS)] {
        let mut words = text.split_whitespace();
        let mut ports = Vec::new();
        while let Some(word) = words.next() {
            if word == "-p" || word == "--publish" {
                ports.push(words.next().unwrap());
            }
        }
        assert!(!ports.is_empty(), "{file} publishes nothing");
        assert!(ports.iter().all(|port| port.starts_with("127.0.0.1:")), "{file}: {ports:?}");
    }
}

#[test]
fn the_files_of_rights_end_at_the_first_fault_and_say_how_the_role_is_made() {
    for (file, sql) in [("serve", SERVE), ("application", APPLICATION), ("management", MANAGEMENT)] {
        let stop = sql.find("\n\\set ON_ERROR_STOP on\n").unwrap_or_else(|| panic!("{file} goes on"));
        assert!(sql.find("\nGRANT").is_some_and(|grant| stop < grant), "{file}: too late");
    }
    assert!(SERVE.contains("CREATE ROLE posthaste LOGIN"));
    assert!(APPLICATION.contains("CREATE ROLE application LOGIN"));
}
