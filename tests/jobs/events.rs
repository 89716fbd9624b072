//! Events that are posted: the trigger's, all or none, once for each id.

use posthaste::model::{EventId, OrgId};
use posthaste::store::events::{self, NewEvent, Posted, Refusal};
use uuid::Uuid;

use crate::common::{Db, check_invariants};
use crate::connection;

/// Bytes of the largest payload and content that are shown.
const MOST: usize = 1 << 20;
const EMPLOYEE: Uuid = Uuid::from_u128(7);

fn event(id: Uuid) -> NewEvent {
    NewEvent {
        id: EventId(id),
        event_type: "test.event".into(),
        event_category: "test".into(),
        content: Some("a \"sentence\"".into()),
        payload: r#"{"big": 12345678901234567890.123456789, "b": [1, null]}"#.into(),
        payload_room: 100,
        employee_id: None,
        session_id: Some(Uuid::nil()),
        client_name: None,
        client_version: Some("1".into()),
    }
}

#[tokio::test]
async fn what_is_posted_is_written_once_and_queued_in_order() {
    let db = Db::new().await;
    let org = db.org().await;
    db.destination(org, "http://x/").insert().await;
    let mut conn = connection(&db).await;
    let ids: Vec<Uuid> = (0..1_000).map(|_| Uuid::new_v4()).collect();
    let all: Vec<NewEvent> = ids.iter().map(|id| event(*id)).collect();
    let first = events::insert(&mut conn, OrgId(org), &all).await.unwrap();
    let Posted::Stored(stored) = &first else { panic!("{first:?}") };
    assert_eq!(stored.iter().map(|(id, _)| id.0).collect::<Vec<_>>(), ids);
    // The same again, the same and more, and with the JSON written otherwise: the same answer.
    assert_eq!(events::insert(&mut conn, OrgId(org), &all).await.unwrap(), first);
    let spelled = r#" {"b":[1,null], "big":12345678901234567890.1234567890} "#;
    let mut again: Vec<NewEvent> = all[..2].to_vec();
    again[1].payload = spelled.into();
    again.push(event(Uuid::new_v4()));
    let Posted::Stored(second) = events::insert(&mut conn, OrgId(org), &again).await.unwrap() else {
        panic!("refused")
    };
    assert_eq!(second[..2], stored[..2]);
    assert_eq!(db.deliveries("true").await, 1_001);
    let order = "SELECT array_agg(w.log_id ORDER BY w.created_at, w.id) = $1 FROM webhook_deliveries w
        WHERE w.log_id = ANY ($1)";
    let kept: bool = sqlx::query_scalar(order).bind(&ids).fetch_one(&db.pool).await.unwrap();
    assert!(kept, "the order of the request is the order of the deliveries");
    let full = events::one(&mut conn, OrgId(org), EventId(ids[0]), MOST).await.unwrap().unwrap();
    assert!(full.payload.unwrap().contains("12345678901234567890.123456789"));
    assert_eq!(full.content.as_deref(), Some("a \"sentence\""));
    assert_eq!((full.session_id, full.client_version.as_deref()), (Some(Uuid::nil()), Some("1")));
    let other = OrgId(db.org().await);
    assert!(events::one(&mut conn, other, EventId(ids[0]), MOST).await.unwrap().is_none());
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn an_id_with_other_contents_is_a_conflict_and_nothing_is_written() {
    let db = Db::new().await;
    let (org, other) = (db.org().await, db.org().await);
    db.execute(&format!("INSERT INTO employees (id, org_id) VALUES ('{EMPLOYEE}', '{org}')")).await;
    let mut conn = connection(&db).await;
    let [known, fresh] = [Uuid::new_v4(), Uuid::new_v4()];
    events::insert(&mut conn, OrgId(org), &[event(known)]).await.unwrap();
    type Change = fn(&mut NewEvent);
    let changes: [(&str, Change); 8] = [
        ("event_type", |event| event.event_type = "other".into()),
        ("event_category", |event| event.event_category = "other".into()),
        ("content", |event| event.content = None),
        ("payload", |event| event.payload = "{}".into()),
        ("employee_id", |event| event.employee_id = Some(EMPLOYEE)),
        ("session_id", |event| event.session_id = None),
        ("client_name", |event| event.client_name = Some("a client".into())),
        ("client_version", |event| event.client_version = Some("2".into())),
    ];
    for (name, change) in changes {
        let mut changed = event(known);
        change(&mut changed);
        let posted = events::insert(&mut conn, OrgId(org), &[event(fresh), changed]).await.unwrap();
        assert_eq!(posted, Posted::Refused(vec![(1, Refusal::IdTaken)]), "{name}");
    }
    let posted = events::insert(&mut conn, OrgId(other), &[event(fresh), event(known)]).await.unwrap();
    assert_eq!(posted, Posted::Refused(vec![(1, Refusal::IdTaken)]), "of another organization");
    // Whatever else is wrong is said as well.
    let mut wrong = NewEvent { employee_id: Some(EMPLOYEE), payload_room: 10, ..event(fresh) };
    let posted = events::insert(&mut conn, OrgId(other), &[event(known), wrong.clone()]).await.unwrap();
    let [taken, too_large, unknown] =
        [(0, Refusal::IdTaken), (1, Refusal::TooLarge), (1, Refusal::UnknownEmployee)];
    assert_eq!(posted, Posted::Refused(vec![taken, too_large, unknown]));
    wrong.payload_room = 100;
    let posted = events::insert(&mut conn, OrgId(other), &[wrong]).await.unwrap();
    assert_eq!(posted, Posted::Refused(vec![(0, Refusal::UnknownEmployee)]), "of another organization");
    assert_eq!(db.number("SELECT count(*) FROM activity_logs").await, 1);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn the_same_request_at_the_same_moment_writes_once() {
    let db = Db::new().await;
    let org = db.org().await;
    db.destination(org, "http://x/").insert().await;
    let all: Vec<NewEvent> = (0..50).map(|_| event(Uuid::new_v4())).collect();
    let requests = (0..4).map(|_| async {
        let mut conn = connection(&db).await;
        events::insert(&mut conn, OrgId(org), &all).await.unwrap()
    });
    let answers = futures_util::future::join_all(requests).await;
    assert!(matches!(&answers[0], Posted::Stored(stored) if stored.len() == 50));
    assert!(answers.iter().all(|answer| answer == &answers[0]), "{answers:?}");
    assert_eq!(db.deliveries("true").await, 50);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_column_that_the_application_does_not_have_is_named() {
    let db = Db::new().await;
    let org = db.org().await;
    db.execute("ALTER TABLE activity_logs DROP COLUMN session_id, DROP COLUMN client_name").await;
    let mut conn = connection(&db).await;
    let id = Uuid::new_v4();
    let posted = events::insert(&mut conn, OrgId(org), &[event(id)]).await.unwrap();
    assert_eq!(posted, Posted::NoColumn("session_id"));
    let without = NewEvent { session_id: None, ..event(id) };
    let posted = events::insert(&mut conn, OrgId(org), &[without]).await.unwrap();
    assert!(matches!(posted, Posted::Stored(_)));
    let full = events::one(&mut conn, OrgId(org), EventId(id), MOST).await.unwrap().unwrap();
    assert_eq!((full.session_id, full.client_version.as_deref()), (None, Some("1")));
    check_invariants(&db, &[]).await;
}
