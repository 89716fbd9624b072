//! The same by the shell, with the real binary, directly on the database.

use std::io::Write as _;

use serde_json::{Value, json};
use sqlx::Row as _;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, check_invariants, eventually, run};

/// Runs a command for an organization; its exit code, standard output and standard error.
fn posthaste(db: &Db, org: Uuid, arguments: &[&str]) -> (i32, String, String) {
    let environment = [("DATABASE_URL", db.url.reveal()), ("POSTHASTE_ORG", &org.to_string())];
    let output = run(arguments, &environment);
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
}

/// What a command that must succeed prints as JSON.
fn json(db: &Db, org: Uuid, arguments: &[&str]) -> Value {
    let (code, out, err) = posthaste(db, org, &[arguments, &["--json"]].concat());
    assert_eq!(code, 0, "{arguments:?}: {err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {out}"))
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

const BURY: &str = "UPDATE webhook_deliveries SET status = 'dead', attempts = 4, error_message = 'it failed',
    created_at = created_at - interval '1 hour'";

#[tokio::test]
async fn from_sending_an_event_to_its_delivery_everything_is_shown() {
    let db = Db::new().await;
    let org = db.org().await;
    let receiver = Receiver::start();
    let destination = db.destination(org, receiver.url("/")).insert().await;
    let id = Uuid::new_v4();
    let event = json!({"id": id, "event_type": "invoice.paid", "payload": {"amount": 1}}).to_string();
    let sent = file(&event);
    let path = sent.path().to_str().unwrap();
    let receipts = json(&db, org, &["events", "send", path]);
    assert_eq!(receipts[0]["id"], id.to_string());
    assert_eq!(json(&db, org, &["events", "send", path]), receipts, "the same again: the same answer");
    let changed = file(&event.replace("paid", "void"));
    let (code, _, err) = posthaste(&db, org, &["events", "send", changed.path().to_str().unwrap()]);
    assert_eq!(code, 1);
    assert!(err.contains(&id.to_string()), "{err}");

    let posthaste_serves = Posthaste::serve(&db.url).await;
    db.settled().await;
    let listed =
        json(&db, org, &["deliveries", "list", "--status", "delivered", "--event-type", "invoice.paid"]);
    let delivery = &listed["items"][0];
    assert_eq!((&delivery["event_id"], &delivery["response_status"]), (&json!(id), &json!(200)));
    assert_eq!((&delivery["destination_id"], &listed["next_cursor"]), (&json!(destination), &Value::Null));
    let delivery_id = delivery["id"].as_str().unwrap();
    let shown = json(&db, org, &["deliveries", "show", delivery_id]);
    assert_eq!((&shown["status"], &shown["failed_attempts"]), (&json!("delivered"), &json!([])));
    let event = json(&db, org, &["events", "show", &id.to_string()]);
    assert_eq!((&event["payload"]["amount"], &event["event_category"]), (&json!(1), &json!("api")));
    assert_eq!(event["deliveries"][0]["id"], delivery_id);
    assert_eq!(json(&db, org, &["events", "list"])["items"][0]["id"], id.to_string());
    // Once more by hand.
    let retried = json(&db, org, &["deliveries", "retry", delivery_id]);
    assert_eq!(retried["queued"], json!([delivery_id]));
    eventually("the receiver has it twice", async || receiver.count() == 2).await;
    db.settled().await;
    // For people, and to nobody else.
    let (_, table, _) = posthaste(&db, org, &["deliveries", "list"]);
    assert!(table.starts_with("ID ") && table.contains(delivery_id), "{table}");
    let other = db.org().await;
    for (command, id) in [("deliveries", delivery_id), ("events", &id.to_string())] {
        let (code, out, err) = posthaste(&db, other, &[command, "show", id]);
        assert_eq!((code, out.as_str()), (1, ""), "{err}");
        assert_eq!(json(&db, other, &[command, "list"])["items"], json!([]));
    }
    assert_eq!(posthaste(&db, other, &["deliveries", "retry", delivery_id]).0, 1);
    drop(posthaste_serves);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_replay_is_counted_done_and_cancelled_without_a_dispatcher() {
    let db = Db::new().await;
    let (org, other) = (db.org().await, db.org().await);
    let destination = db.destination(org, "http://x/").insert().await.to_string();
    db.events(org, 2_500).await;
    db.execute(BURY).await;
    let replay = ["deliveries", "replay", "--destination", &destination];
    let with = |more: &[&'static str]| [&replay[..], more].concat();
    assert_eq!(json(&db, org, &with(&["--dry-run"])), json!({"count": 2500, "complete": true}));
    assert_eq!(json(&db, org, &with(&["--dry-run", "--status", "delivered,failed"]))["count"], 0);
    assert_eq!(db.deliveries("status = 'dead'").await, 2_500);

    // Left to a dispatcher that is not there, and cancelled.
    let job = json(&db, org, &replay);
    assert_eq!((&job["state"], &job["total"], &job["queued"]), (&json!("running"), &json!(2500), &json!(0)));
    let id = job["id"].as_str().unwrap();
    assert_eq!(posthaste(&db, other, &["jobs", "cancel", id]).0, 1);
    assert_eq!(posthaste(&db, other, &["jobs", "show", id]).0, 1);
    assert_eq!(json(&db, org, &["jobs", "cancel", id])["state"], "cancelled");
    assert_eq!(json(&db, org, &["jobs", "cancel", id])["state"], "cancelled", "it is already");

    let done = json(&db, org, &with(&["--wait"]));
    assert_eq!(
        (&done["state"], &done["queued"], &done["seen"]),
        (&json!("done"), &json!(2500), &json!(2500))
    );
    assert_eq!(db.deliveries("status = 'pending' AND attempts = 0").await, 2_500);
    let (code, _, err) = posthaste(&db, org, &["jobs", "cancel", done["id"].as_str().unwrap()]);
    assert!(code == 1 && err.contains("done already"), "{err}");
    let jobs = json(&db, org, &["jobs", "list"]);
    let states: Vec<&Value> = jobs["items"].as_array().unwrap().iter().map(|job| &job["state"]).collect();
    assert_eq!(states, ["done", "cancelled"]);
    assert_eq!(posthaste(&db, other, &with(&[])).0, 1, "somebody else's destination");
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_backfill_over_what_retention_deleted_needs_force() {
    let db = Db::new().await;
    let org = db.org().await;
    db.events(org, 30).await;
    let id = db.destination(org, "http://x/").insert().await;
    let destination = id.to_string();
    let all = ["events", "backfill", "--destination", &destination, "--from", "2020-01-01"];
    let with = |more: &[&'static str]| [&all[..], more].concat();
    db.execute(&format!("INSERT INTO posthaste_retention VALUES ('{id}', timezone('UTC', now()))")).await;
    for more in [&[][..], &["--dry-run"], &["--wait"]] {
        let (code, _, err) = posthaste(&db, org, &with(more));
        assert_eq!(code, 1);
        assert!(err.contains("retention") && err.contains("force"), "{err}");
    }
    assert_eq!(json(&db, org, &with(&["--dry-run", "--force"])), json!({"count": 30, "complete": true}));
    assert_eq!(db.deliveries("true").await, 0);
    assert_eq!(json(&db, org, &with(&["--force", "--wait"]))["queued"], 30);
    // What lies after it needs none.
    db.execute("UPDATE posthaste_retention SET pruned_until = '2019-12-31'").await;
    assert_eq!(json(&db, org, &with(&["--wait"]))["queued"], 0);
    db.execute("UPDATE webhook_destinations SET enabled = false").await;
    let (code, _, err) = posthaste(&db, org, &with(&[]));
    assert!(code == 1 && err.contains("disabled"), "{err}");
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_running_dispatcher_takes_jobs_over_from_the_shell() {
    let db = Db::new().await;
    let org = db.org().await;
    let receiver = Receiver::start();
    let destination = db.destination(org, receiver.url("/")).insert().await.to_string();
    let events = db.events(org, 40).await;
    db.execute(BURY).await;
    let posthaste = Posthaste::serve(&db.url).await;
    let job = json(&db, org, &["deliveries", "replay", "--destination", &destination]);
    let id = job["id"].as_str().unwrap();
    let state = format!("SELECT state FROM posthaste_jobs WHERE id = '{id}'");
    eventually("the job is done", async || db.text(&state).await.as_deref() == Some("done")).await;
    db.settled().await;
    assert_eq!(receiver.accepted().len(), events.len());
    drop(posthaste);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn bad_input_is_named_all_at_once_and_changes_nothing() {
    let db = Db::new().await;
    let org = db.org().await;
    let destination = db.destination(org, "http://x/").insert().await.to_string();
    db.events(org, 3).await;
    db.execute(BURY).await;
    let unknown = Uuid::new_v4().to_string();
    let replay = ["deliveries", "replay", "--destination", &destination];
    let backfill = ["events", "backfill", "--destination", &destination];
    type Row<'a> = (&'a [&'a str], &'a [&'a str], i32, &'a [&'a str]);
    let table: [Row; 15] = [
        (&["deliveries", "list"], &["--status", "dead,alive", "--from", "yesterday"], 2, &["status", "from"]),
        (
            &["deliveries", "list"],
            &["--limit", "0", "--cursor", "x", "--to", "soon"],
            2,
            &["limit", "cursor", "to"],
        ),
        (&["deliveries", "list"], &["--from", "2026-02-01", "--to", "2026-01-01"], 2, &["to"]),
        (&["deliveries", "list"], &["--destination", "1"], 2, &["destination"]),
        (&["deliveries", "list"], &["--event-type", ""], 2, &["event_type"]),
        (&["deliveries", "show"], &["1"], 2, &["<ID>"]),
        (&["deliveries", "show"], &[&unknown], 1, &[&unknown]),
        (&["deliveries", "retry"], &[&unknown], 1, &[&unknown]),
        (&replay, &["--status", "pending", "--to", "x"], 2, &["status", "to"]),
        (&["deliveries", "replay", "--destination"], &[&unknown], 1, &[&unknown]),
        (&backfill, &[], 2, &["from"]),
        (&["events", "backfill", "--from", "2020-01-01", "--destination"], &[&unknown], 1, &[&unknown]),
        (&["events", "list"], &["--limit", "x", "--cursor", ""], 2, &["limit", "cursor"]),
        (&["jobs", "list"], &["--limit", "201"], 2, &["limit"]),
        (&["jobs", "show"], &[&unknown], 1, &[&unknown]),
    ];
    for (command, arguments, code, named) in table {
        let (is, out, err) = posthaste(&db, org, &[command, arguments].concat());
        assert_eq!((is, out.as_str()), (code, ""), "{command:?} {arguments:?}: {err}");
        assert!(named.iter().all(|name| err.contains(name)), "{command:?} {arguments:?}: {err}");
    }
    assert_eq!(db.deliveries("status = 'dead'").await, 3);
    assert_eq!(db.number("SELECT count(*) FROM posthaste_jobs").await, 0);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn events_that_cannot_be_written_are_refused_with_the_field_and_none_of_them_is() {
    let db = Db::new().await;
    let org = db.org().await;
    let good = r#"{"event_type": "a"}"#;
    let many = format!("[{}]", vec![good; 1_001].join(","));
    let long = format!(r#"{{"event_type": "{}"}}"#, "x".repeat(101));
    let large = format!(r#"{{"event_type": "a", "payload": "{}"}}"#, "x".repeat(6 << 20));
    let twice = format!(r#"[{{"event_type": "a", "id": "{org}"}}, {{"event_type": "b", "id": "{org}"}}]"#);
    let and = |bad: &str| format!("[{good}, {bad}]");
    let table: [(&str, String, &str); 16] = [
        ("no JSON", "{".into(), "body"),
        ("nothing", String::new(), "body"),
        ("an empty array", "[]".into(), "events"),
        ("too many", many, "events"),
        ("another type", "3".into(), "body"),
        ("no event type", "{}".into(), "event_type"),
        ("an unknown field", and(r#"{"event_type": "a", "evnt": 1}"#), "evnt"),
        ("an id that is none", and(r#"{"event_type": "a", "id": "1"}"#), "events"),
        ("an empty type", and(r#"{"event_type": ""}"#), "events[1].event_type"),
        ("a long type", long, "event_type"),
        ("NUL", and(r#"{"event_type": "a", "content": "\u0000"}"#), "events[1].content"),
        ("NUL in the payload", and(r#"{"event_type": "a", "payload": ["\u0000"]}"#), "events[1].payload"),
        ("half a character", and(r#"{"event_type": "a", "payload": "\ud800"}"#), "payload"),
        ("a large one", large, "payload"),
        ("the same id twice", twice, "events[1].id"),
        ("our own category", and(r#"{"event_type": "a", "event_category": "webhook"}"#), "event_category"),
    ];
    for (name, text, field) in table {
        let sent = file(&text);
        let (code, out, err) = posthaste(&db, org, &["events", "send", sent.path().to_str().unwrap()]);
        assert_eq!((code, out.as_str()), (2, ""), "{name}: {err}");
        assert!(err.contains(field), "{name}: {err}");
    }
    let employee = file(&format!(r#"{{"event_type": "a", "employee_id": "{org}"}}"#));
    let (code, _, err) = posthaste(&db, org, &["events", "send", employee.path().to_str().unwrap()]);
    assert!(code == 2 && err.contains("employee_id"), "{err}");
    let stranger = file(good);
    let (code, _, err) =
        posthaste(&db, Uuid::new_v4(), &["events", "send", stranger.path().to_str().unwrap()]);
    assert!(code == 1 && err.contains("organization"), "{err}");
    let written = sqlx::query("SELECT count(*) FROM activity_logs").fetch_one(&db.pool).await.unwrap();
    assert_eq!(written.get::<i64, _>(0), 0);
    check_invariants(&db, &[]).await;
}
