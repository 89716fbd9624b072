//! Events that are sent and shown: whose they may be, and how large.

use posthaste::format::Format;
use posthaste::manage::events::{self, DetailView, Receipt};
use posthaste::manage::{Fault, FieldFault};
use posthaste::model::{Event, EventId, OrgId};
use posthaste::store::Connection;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::common::{Db, check_invariants};
use crate::{OPERATOR, connection};

const LARGE: usize = 5 << 20;

async fn send(conn: &mut Connection, org: OrgId, json: &str, most: usize) -> Result<Vec<Receipt>, Fault> {
    events::send(conn, org, events::read(json.as_bytes())?, most).await
}

fn faults(sent: Result<Vec<Receipt>, Fault>) -> Vec<FieldFault> {
    match sent {
        Err(Fault::Invalid(faults)) => faults,
        other => panic!("{other:?}"),
    }
}

async fn employee(db: &Db, org: OrgId) -> Uuid {
    let id = Uuid::new_v4();
    db.execute(&format!("INSERT INTO employees (id, org_id) VALUES ('{id}', '{org}')")).await;
    id
}

fn by(employees: &[Uuid]) -> String {
    let event = |id: &Uuid| json!({"event_type": "a", "employee_id": id});
    Value::from(employees.iter().map(event).collect::<Vec<_>>()).to_string()
}

#[tokio::test]
async fn an_employee_is_one_of_the_organization() {
    let db = Db::new().await;
    let (org, other) = (OrgId(db.org().await), OrgId(db.org().await));
    let (own, foreign, unknown) = (employee(&db, org).await, employee(&db, other).await, Uuid::new_v4());
    let mut conn = connection(&db).await;
    let refused = faults(send(&mut conn, org, &by(&[own, foreign, own, unknown]), LARGE).await);
    let fields: Vec<&str> = refused.iter().map(|fault| fault.field.as_str()).collect();
    assert_eq!(fields, ["events[1].employee_id", "events[3].employee_id"]);
    assert_eq!(refused[0].detail, refused[1].detail, "whether somebody else has one is not told");
    assert_eq!(faults(send(&mut conn, org, &by(&[foreign]), LARGE).await)[0].field, "employee_id");
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 0);
    send(&mut conn, org, &by(&[own, own]), LARGE).await.unwrap();
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn where_nobody_knows_whose_an_employee_is_nobody_is_refused() {
    let db = Db::new().await;
    let (org, other) = (OrgId(db.org().await), OrgId(db.org().await));
    let (foreign, unknown) = (employee(&db, other).await, Uuid::new_v4());
    let mut conn = connection(&db).await;
    // No foreign key: what is in the table decides, unless there is nothing in it.
    db.execute("ALTER TABLE activity_logs DROP CONSTRAINT activity_logs_employee_id_fkey").await;
    assert_eq!(faults(send(&mut conn, org, &by(&[unknown]), LARGE).await)[0].field, "employee_id");
    db.execute("DELETE FROM employees").await;
    send(&mut conn, org, &by(&[unknown, foreign]), LARGE).await.unwrap();
    // A foreign key to another table.
    let foreign = employee(&db, other).await;
    db.execute("CREATE TABLE staff (id uuid PRIMARY KEY)").await;
    db.execute(&format!("INSERT INTO staff VALUES ('{unknown}'), ('{foreign}')")).await;
    db.execute("ALTER TABLE activity_logs ADD FOREIGN KEY (employee_id) REFERENCES staff NOT VALID").await;
    send(&mut conn, org, &by(&[unknown, foreign]), LARGE).await.unwrap();
    db.execute("ALTER TABLE activity_logs DROP CONSTRAINT activity_logs_employee_id_fkey").await;
    // A table that does not say whose they are, and none at all.
    db.execute("ALTER TABLE employees DROP COLUMN org_id").await;
    send(&mut conn, org, &by(&[unknown, foreign]), LARGE).await.unwrap();
    db.execute("DROP TABLE employees CASCADE").await;
    send(&mut conn, org, &by(&[unknown, foreign]), LARGE).await.unwrap();
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn an_id_that_is_taken_is_refused_alike_whoever_has_it_and_for_what() {
    let db = Db::new().await;
    let (org, other) = (OrgId(db.org().await), OrgId(db.org().await));
    let [own, foreign] = [Uuid::new_v4(), Uuid::new_v4()];
    let mut conn = connection(&db).await;
    let event = |id: Uuid, event_type: &str| json!({"id": id, "event_type": event_type}).to_string();
    let first = send(&mut conn, org, &event(own, "a"), LARGE).await.unwrap();
    send(&mut conn, other, &event(foreign, "a"), LARGE).await.unwrap();
    assert_eq!(send(&mut conn, org, &event(own, "a"), LARGE).await.unwrap(), first, "its own, repeated");
    let mut told = Vec::new();
    for (id, event_type) in [(own, "b"), (foreign, "a"), (foreign, "b")] {
        let Err(Fault::Conflict(why)) = send(&mut conn, org, &event(id, event_type), LARGE).await else {
            panic!("{id} {event_type}")
        };
        told.push(why.replace(&id.to_string(), "…"));
    }
    assert!(told[0] == told[1] && told[0] == told[2], "{told:?}");
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 2);
    check_invariants(&db, &[]).await;
}

/// Bytes of the event of type `a` with this payload on the wire.
fn bytes(org: OrgId, payload: &str) -> usize {
    Format::Standard.event_bytes(&Event {
        id: EventId(Uuid::nil()),
        org,
        employee_id: None,
        session_id: None,
        client_name: None,
        client_version: None,
        event_type: "a".into(),
        event_category: events::DEFAULT_CATEGORY.into(),
        content: Some("\u{1}".repeat(100)),
        payload: payload.into(),
        created_at: "2026-01-31T12:00:00.000000Z".into(),
    })
}

#[tokio::test]
async fn an_event_is_as_large_as_it_is_printed() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let mut conn = connection(&db).await;
    let event = |payload: &str| {
        let content = json!("\u{1}".repeat(100));
        format!(r#"{{"event_type": "a", "content": {content}, "payload": {payload}}}"#)
    };
    let (blanks, digits) = (" ".repeat(10_000), "1".to_owned() + &"0".repeat(1_000));
    for (sent, printed) in [
        ("[1,2,3]", "[1, 2, 3]"),
        (&format!("[1,{blanks}2]"), "[1, 2]"),
        ("1e1000", &digits),
        (r#"["\u00e9", "\u0041"]"#, r#"["é", "A"]"#),
    ] {
        let most = bytes(org, printed);
        send(&mut conn, org, &event(sent), most).await.unwrap();
        let refused = faults(send(&mut conn, org, &event(sent), most - 1).await);
        assert_eq!(refused[0].field, "payload", "{printed}");
        assert!(refused[0].detail.contains("POSTHASTE_MAX_EVENT_BYTES"), "{}", refused[0]);
    }
    // One of many is named, and none is written.
    let many = format!("[{}, {}]", event("{}"), event("[1e131071, 1e131071]"));
    assert_eq!(faults(send(&mut conn, org, &many, 200_000).await)[0].field, "events[1].payload");
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 4);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn an_event_that_is_too_large_is_shown_without_what_makes_it_so() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let mut conn = connection(&db).await;
    // A column of the application's own that cannot be converted to jsonb.
    db.execute(r#"ALTER TABLE activity_logs ADD COLUMN odd json DEFAULT '{"a": "\u0000"}'"#).await;
    let written = async |content: &str, payload: &str| {
        let id = Uuid::new_v4();
        db.execute(&format!(
            "INSERT INTO activity_logs (id, org_id, event_type, event_category, content, payload)
             VALUES ('{id}', '{org}', 'a', 'c', {content}, '{payload}')"
        ))
        .await;
        EventId(id)
    };
    let mut show = async |id: EventId, most: usize| -> DetailView {
        events::one(&mut conn, org, OPERATOR, id, most).await.unwrap()
    };
    let monster = format!("[{}]", vec!["1e131071"; 1_000].join(","));
    let monster = show(written("'a sentence'", &monster).await, LARGE).await;
    assert_eq!((monster.payload.get(), monster.payload_too_large), ("null", true));
    assert_eq!((monster.content.as_deref(), monster.content_too_large), (Some("a sentence"), false));

    let id = written("repeat('x', 500)", r#"{"a": 1}"#).await;
    for (most, content, payload) in
        [(510, true, true), (509, true, false), (501, false, true), (7, false, false)]
    {
        let shown = show(id, most).await;
        assert_eq!((shown.content.is_some(), shown.content_too_large), (content, !content), "{most}");
        assert_eq!((shown.payload.get() != "null", shown.payload_too_large), (payload, !payload), "{most}");
    }
    // As JSON, a control character has six bytes.
    let escaped = show(written("repeat(chr(1), 500)", "{}").await, 3_001).await;
    assert!(escaped.content.is_none() && escaped.content_too_large);
    let none = show(written("NULL", "null").await, 100).await;
    assert_eq!((none.payload.get(), none.payload_too_large, none.content_too_large), ("null", false, false));
    check_invariants(&db, &[]).await;
}
