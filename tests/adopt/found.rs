//! Schemas that were adopted without a word, and on which nothing worked.

use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, eventually};
use crate::schema::{App, Schema};

async fn org(db: &Db) -> Uuid {
    let org = Uuid::new_v4();
    db.execute(&format!("INSERT INTO organizations (id, name) VALUES ('{org}', 'an organization')")).await;
    org
}

async fn event(db: &Db, org: Uuid) {
    let insert = format!("INSERT INTO activity_logs (org_id, event_type) VALUES ('{org}', 'it.happened')");
    db.execute(&insert).await;
}

/// `migrate` refuses, says all of `parts`, and changes nothing.
async fn refused(app: &App, parts: &[&str]) {
    let before = app.catalog().await;
    let (code, said) = app.run(&["migrate", "--with-fan-out"]);
    assert_eq!(code, 1, "{said}");
    for part in parts {
        assert!(said.contains(part), "{part} is not in: {said}");
    }
    assert_eq!(app.catalog().await, before);
}

#[actix_rt::test]
async fn a_status_check_without_delivered_stops_everything_and_the_statement_that_mends_it_does() {
    let mut schema = Schema::given();
    let narrow = "CHECK (status IN ('pending', 'failed', 'dead'))";
    schema.deliveries.constraint("webhook_deliveries_status_check", narrow);
    let app = schema.make().await;
    refused(&app, &["webhook_deliveries.status", "webhook_deliveries_status_check", "delivered"]).await;
    let (_, said) = app.run(&["migrate", "--with-fan-out"]);
    let mend = said.split('`').find(|part| part.starts_with("ALTER TABLE")).unwrap().to_owned();
    app.db.execute(&mend).await;
    app.adopt();
}

#[actix_rt::test]
async fn a_status_check_that_loses_delivered_later_is_told_by_check() {
    let app = Schema::given().make().await;
    app.adopt();
    assert_eq!(app.run(&["check"]).0, 0);
    app.db.execute("ALTER TABLE webhook_deliveries DROP CONSTRAINT webhook_deliveries_status_check").await;
    let narrow = "ALTER TABLE webhook_deliveries ADD CONSTRAINT webhook_deliveries_status_check
        CHECK (status IN ('pending', 'failed', 'dead'))";
    app.db.execute(narrow).await;
    let (code, said) = app.run(&["check"]);
    assert!(code == 1 && said.contains("webhook_deliveries_status_check"), "{code}: {said}");
}

#[actix_rt::test]
async fn a_null_in_batch_size_means_one_and_keeps_nobody_from_being_loaded() {
    let mut schema = Schema::given();
    schema.destinations.column("batch_size").not_null = false;
    let app = schema.make().await;
    let said = app.adopt();
    assert!(said.contains("note: webhook_destinations.batch_size may be NULL: a NULL counts as 1"), "{said}");
    let receiver = Receiver::start();
    let [one, other] = [org(&app.db).await, org(&app.db).await];
    app.db.destination(one, receiver.url("/one")).insert().await;
    app.db.destination(other, receiver.url("/other")).insert().await;
    app.db
        .execute(&format!("UPDATE webhook_destinations SET batch_size = NULL WHERE org_id = '{one}'"))
        .await;
    event(&app.db, one).await;
    event(&app.db, other).await;
    let _posthaste = Posthaste::serve(&app.url).await;
    eventually("both have got theirs", async || app.db.deliveries("status = 'delivered'").await == 2).await;
    assert!(receiver.received().iter().all(|request| request.json().is_object()));
    let (code, said) = app.run(&["check"]);
    assert!(code == 0 && said.contains("webhook_destinations.batch_size"), "{code}: {said}");
}

#[actix_rt::test]
async fn an_event_without_a_category_is_sent_with_null() {
    let mut schema = Schema::given();
    schema.events.without("event_category");
    let app = schema.make().await;
    app.adopt();
    let receiver = Receiver::start();
    let org = org(&app.db).await;
    app.db.destination(org, receiver.url("/")).insert().await;
    event(&app.db, org).await;
    let _posthaste = Posthaste::serve(&app.url).await;
    eventually("it is delivered", async || app.db.deliveries("status = 'delivered'").await == 1).await;
    let body = receiver.received()[0].json();
    assert!(body["data"]["event_category"].is_null(), "{body}");
    let (code, said) = app.run(&["check"]);
    assert!(code == 0 && said.contains("no column event_category"), "{code}: {said}");
}

#[actix_rt::test]
async fn a_wider_check_under_another_name_stays_as_wide_as_it_was() {
    let mut schema = Schema::given();
    let wider = "CHECK (status IN ('pending', 'delivered', 'failed', 'dead', 'cancelled'))";
    schema.deliveries.constraints.retain(|(name, _)| name != "webhook_deliveries_status_check");
    schema.deliveries.constraint("my_own", wider);
    schema.destinations.constraint("patient", "CHECK (timeout_ms BETWEEN 1 AND 60000)");
    let app = schema.make().await;
    app.adopt();
    let org = org(&app.db).await;
    let patient = app.db.destination(org, "http://127.0.0.1:1/").with("timeout_ms", 50_000).insert().await;
    let rename =
        ["destinations", "update", &patient.to_string(), "--org", &org.to_string(), "--name", "mine"];
    let (code, said) = app.run(&rename);
    assert_eq!(code, 0, "{said}");
    event(&app.db, org).await;
    app.db.execute("UPDATE webhook_deliveries SET status = 'cancelled'").await;
    let (code, said) = app.run(&["check"]);
    assert!(code == 0 && said.contains("is above 30000, and counts as 30000"), "{code}: {said}");
    let log_id = app.db.text("SELECT log_id FROM webhook_deliveries").await.unwrap();
    let (code, said) = app.run(&["events", "show", "--org", &org.to_string(), &log_id]);
    assert_eq!(code, 0, "{said}");
}

#[actix_rt::test]
async fn defaults_that_write_are_not_called_by_the_preflight() {
    let mut schema = Schema::given();
    schema.before.push("CREATE TABLE public.numbers (n integer); INSERT INTO numbers VALUES (0)".into());
    let next = "CREATE FUNCTION next() RETURNS integer LANGUAGE sql
        AS 'UPDATE public.numbers SET n = n + 1 RETURNING n'";
    schema.before.push(next.into());
    schema.deliveries.columns.push(crate::schema::Column {
        name: "n".into(),
        type_name: "integer".into(),
        default: Some("next()".into()),
        not_null: true,
    });
    schema.deliveries.constraint("positive", "CHECK (n > 0)");
    let app = schema.make().await;
    app.adopt();
    assert_eq!(app.run(&["check"]).0, 0);
    assert_eq!(app.db.number("SELECT n FROM numbers").await, 0);
    let org = org(&app.db).await;
    app.db.destination(org, "http://127.0.0.1:1/").insert().await;
    event(&app.db, org).await;
    assert_eq!(app.db.number("SELECT n FROM numbers").await, 1);
}

/// A timeout that outlasts its lease would never start.
#[actix_rt::test]
async fn a_timeout_above_thirty_seconds_counts_as_thirty() {
    let mut schema = Schema::given();
    schema.destinations.constraint("patient", "CHECK (timeout_ms BETWEEN 1 AND 600000)");
    let app = schema.make().await;
    app.adopt();
    let (org, receiver) = (org(&app.db).await, Receiver::start());
    app.db.destination(org, receiver.url("/")).with("timeout_ms", 600_000).insert().await;
    event(&app.db, org).await;
    let _posthaste = Posthaste::serve(&app.url).await;
    eventually("it is delivered", async || app.db.deliveries("status = 'delivered'").await == 1).await;
}

/// Without a time they cannot be found by time, but everything else is possible.
#[actix_rt::test]
async fn events_without_a_time_are_listed_posted_and_replayed() {
    let mut schema = Schema::given();
    for column in ["created_at", "payload", "event_category"] {
        schema.events.without(column);
    }
    let app = schema.make().await;
    app.adopt();
    let (org, receiver) = (org(&app.db).await, Receiver::start());
    let destination = app.db.destination(org, receiver.url("/")).insert().await.to_string();
    let (of, posthaste) = (org.to_string(), Posthaste::serve(&app.url).await);
    let file = std::env::temp_dir().join(format!("{org}.json"));
    std::fs::write(&file, r#"[{"event_type": "a"}, {"event_type": "b"}]"#).unwrap();
    let (code, said) = app.run(&["events", "send", "--org", &of, file.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    std::fs::write(&file, r#"{"event_type": "a", "payload": {"n": 1}}"#).unwrap();
    let (code, said) = app.run(&["events", "send", "--org", &of, file.to_str().unwrap()]);
    assert!(code != 0 && said.contains("no such column"), "{code}: {said}");
    std::fs::remove_file(&file).unwrap();
    eventually("both are delivered", async || app.db.deliveries("status = 'delivered'").await == 2).await;
    let created = app.db.text("SELECT min(created_at)::date FROM webhook_deliveries").await.unwrap();
    assert!(receiver.received()[0].json()["timestamp"].as_str().unwrap().starts_with(&created));
    let (code, said) = app.run(&["events", "list", "--org", &of]);
    let types: Vec<_> = said.lines().filter_map(|line| line.split_whitespace().nth(2)).collect();
    assert!(code == 0 && types.contains(&"a") && types.contains(&"b"), "{code}: {said}");
    let again = [
        "deliveries",
        "replay",
        "--org",
        &of,
        "--destination",
        &destination,
        "--status",
        "delivered",
        "--wait",
    ];
    let (code, said) = app.run(&again);
    assert_eq!(code, 0, "{said}");
    eventually("they come again", async || receiver.count() == 4).await;
    let (code, said) =
        app.run(&["events", "backfill", "--org", &of, "--destination", &destination, "--from", "2026-01-01"]);
    assert!(code != 0 && said.contains("no created_at"), "{code}: {said}");
    drop(posthaste);
}
