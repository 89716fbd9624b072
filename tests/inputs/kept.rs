//! Triggers of the application that delete, or keep, what is there, without an error.

use std::time::{Duration, Instant};

use serde_json::Value;

use crate::Api;
use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually, run};

/// A trigger of `table`, of a statement or of each row.
async fn trigger(db: &Db, when: &str, table: &str, condition: &str, body: &str) {
    db.execute(&format!(
        "CREATE OR REPLACE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN {body} END$$"
    ))
    .await;
    db.execute(&format!(
        "CREATE TRIGGER meddle {when} ON {table} FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION meddle()"
    ))
    .await;
}

#[tokio::test]
async fn a_row_that_a_trigger_deletes_again_is_no_delivery_and_its_insert_succeeds() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    let path = r#"{"$jsonpath": "$.payload.n > 0"}"#;
    db.destination(org, receiver.url("/")).event_filter(path).insert().await;
    let delete = "DELETE FROM activity_logs WHERE id = NEW.id; RETURN NULL;";
    trigger(&db, "AFTER INSERT", "activity_logs", "(new.payload ->> 'n')::int % 2 = 0", delete).await;
    let events = db.events(org, 5).await;
    assert_eq!(db.deliveries("true").await, 6, "three of two destinations");
    let program = Posthaste::serve(&db.url).await;
    db.settled().await;
    let accepted = receiver.accepted();
    assert!(accepted.contains_key(&events[0]) && !accepted.contains_key(&events[1]));
    check_invariants(&db, &[&receiver]).await;
    drop(program);
}

/// A soft delete.
#[tokio::test]
async fn deleting_what_a_trigger_keeps_ends_with_the_reason() {
    for (table, events) in [("webhook_destinations", 0), ("webhook_deliveries", 3)] {
        let db = Db::new().await;
        let org = db.org().await;
        let destination = db.destination(org, "http://127.0.0.1:1/").insert().await;
        db.events(org, events).await;
        trigger(&db, "BEFORE DELETE", table, "true", "RETURN NULL;").await;
        let (org_text, id) = (org.to_string(), destination.to_string());
        let command = ["destinations", "delete", "--org", &org_text, &id, "--yes"];
        // A loop would not end; what is waited for is far more than it takes.
        let began = Instant::now();
        let out = tokio::time::timeout(
            Duration::from_secs(60),
            tokio::task::spawn_blocking({
                let (url, command) = (db.url.clone(), command.map(str::to_owned));
                move || run(&command.each_ref().map(String::as_str), &[("DATABASE_URL", url.reveal())])
            }),
        );
        let out = out.await.unwrap_or_else(|_| panic!("{:?}", began.elapsed())).unwrap();
        let said = String::from_utf8_lossy(&out.stderr).into_owned();
        assert_eq!(out.status.code(), Some(1), "{said}");
        assert!(said.contains(table) && said.contains("BEFORE DELETE"), "{said}");
        let api = Api::on(&db).await;
        let (status, body) = api.ask("DELETE", org, &format!("/destinations/{id}"), Value::Null).await;
        assert_eq!(status, 409, "{body}");
        assert!(body["detail"].as_str().unwrap().contains(table), "{body}");
    }
}

#[tokio::test]
async fn a_destination_that_a_trigger_keeps_enabled_is_told() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(410)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).insert().await;
    trigger(&db, "BEFORE UPDATE", "webhook_destinations", "NOT new.enabled", "RETURN NULL;").await;
    let program = Posthaste::serve(&db.url).await;
    db.events(org, 1).await;
    is_told(&db, &program, &destination.to_string()).await;
    db.execute("DROP TRIGGER meddle ON webhook_destinations").await;
    let disabled = "SELECT count(*) FROM webhook_destinations WHERE NOT enabled";
    eventually("it is disabled", async || db.number(disabled).await == 1).await;
}

#[tokio::test]
async fn a_result_that_a_trigger_keeps_from_its_row_is_told_and_not_sent_again() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    let of = "new.status = 'delivered'";
    trigger(&db, "BEFORE UPDATE", "webhook_deliveries", of, "RETURN NULL;").await;
    let program = Posthaste::serve(&db.url).await;
    db.events(org, 1).await;
    let delivery = db.text("SELECT id FROM webhook_deliveries").await.unwrap();
    is_told(&db, &program, &delivery).await;
    // Its lease ends, it is claimed again, and not sent again.
    db.execute("UPDATE webhook_deliveries SET last_attempt_at = last_attempt_at - interval '1 min'").await;
    let again = "last_attempt_at > timezone('UTC', clock_timestamp()) - interval '30 s'";
    eventually("it is claimed again", async || db.deliveries(again).await == 1).await;
    db.execute("DROP TRIGGER meddle ON webhook_deliveries").await;
    db.settled().await;
    assert_eq!(receiver.count(), 1);
    check_invariants(&db, &[&receiver]).await;
}

/// `check` names what it is about, and the cause.
async fn is_told(db: &Db, program: &Posthaste, id: &str) {
    let mut said = String::new();
    eventually("check names it", async || {
        let out = run(&["check"], &[("DATABASE_URL", db.url.reveal())]);
        said = String::from_utf8_lossy(&out.stdout).into_owned();
        said.contains(id)
    })
    .await;
    assert!(said.contains("BEFORE UPDATE"), "{said}");
    assert_eq!(program.get("/readyz").await.map(|(status, _)| status), Some(200));
}
