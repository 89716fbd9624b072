//! Backfills: exactly what the trigger would have queued.

use posthaste::model::{DbTime, DestinationId, Status};
use posthaste::store::jobs::{self, Kind, Pace, Spec, State};
use sqlx::Row as _;
use std::time::Duration;
use uuid::Uuid;

use crate::common::{Db, check_invariants};
use crate::{connection, count, run, spec};

/// Filters of destinations: event types and `event_filter`.
const FILTERS: [(&str, &str); 12] = [
    ("{}", "{}"),
    ("{plain}", "{}"),
    ("{plai*,under_score}", "{}"),
    ("{under*}", "{}"),
    ("{*}", r#"{"n": 3}"#),
    ("{}", r#"{"deep": {"list": [2]}}"#),
    ("{}", r#"{"$jsonpath": "$.payload.n > 4"}"#),
    ("{plain}", r#"{"$jsonpath": "$.payload.n > 4", "odd": true}"#),
    ("{}", r#"{"$jsonpath": "$.event_category == \"test\" && $.content like_regex \"^event\""}"#),
    ("{}", r#"{"$jsonpath": "$.created_at starts with \"20\""}"#),
    ("{nothing}", "{}"),
    ("{}", r#"{"$jsonpath": "$.employee_id == null"}"#),
];

async fn events(db: &Db, org: Uuid) {
    let insert = format!(
        "INSERT INTO activity_logs (org_id, event_type, event_category, content, payload, created_at)
         SELECT '{org}', (ARRAY['plain', 'plaintext', 'under_score', 'underXscore'])[1 + n % 4],
            CASE n % 5 WHEN 0 THEN 'other' ELSE 'test' END, 'event ' || n,
            jsonb_build_object('n', n % 7, 'odd', n % 2 = 1,
                'deep', jsonb_build_object('list', ARRAY[n % 3])),
            timezone('UTC', now()) + n * interval '1 microsecond'
         FROM generate_series(1, 84) n ORDER BY n"
    );
    db.execute(&insert).await;
}

async fn queue(db: &Db, destination: Uuid) -> Vec<Uuid> {
    let sql = "SELECT log_id FROM webhook_deliveries WHERE destination_id = $1 ORDER BY created_at, id";
    let rows = sqlx::query(sql).bind(destination).fetch_all(&db.pool).await.unwrap();
    rows.iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn a_backfill_queues_exactly_what_the_trigger_would_have_queued_in_the_same_order() {
    let db = Db::new().await;
    let (org, other) = (db.org().await, db.org().await);
    let mut destinations = Vec::new();
    for (types, filter) in FILTERS {
        let destination = db.destination(org, "http://x/").event_types(types).event_filter(filter);
        destinations.push(destination.insert().await);
    }
    // What belongs to another organization is nobody's here.
    events(&db, other).await;
    events(&db, org).await;
    let mut conn = connection(&db).await;
    for (destination, filter) in destinations.iter().zip(FILTERS) {
        let by_trigger = queue(&db, *destination).await;
        let job = run(&mut conn, &spec(Kind::Backfill, org, *destination, &[])).await;
        assert_eq!((job.state, job.queued, job.seen), (State::Done, 0, 84), "all is there: {filter:?}");
        db.execute(&format!("DELETE FROM webhook_deliveries WHERE destination_id = '{destination}'")).await;
        let expected = by_trigger.len() as i64;
        let spec = spec(Kind::Backfill, org, *destination, &[]);
        assert_eq!(count(&mut conn, &spec).await, Some(expected), "{filter:?}");
        assert!(queue(&db, *destination).await.is_empty(), "counting changes nothing");
        // In batches that end in the middle of everything.
        let job = jobs::create(&mut conn, &spec).await.unwrap().unwrap();
        let pace = Pace { rows: 5, look: 9, pause: Duration::ZERO, patience: Duration::ZERO };
        while jobs::work(&mut conn, job.id, Kind::Backfill, &pace).await.unwrap() == Some(State::Running) {}
        assert_eq!(queue(&db, *destination).await, by_trigger, "{filter:?}");
        let job = jobs::get(&mut conn, spec.org, job.id).await.unwrap().unwrap();
        let told = (job.state, job.queued, job.seen, job.total);
        assert_eq!(told, (State::Done, expected, 84, Some(84)), "{filter:?}");
    }
    let due = "status = 'pending' AND attempts = 0 AND next_retry_at <= timezone('UTC', clock_timestamp())";
    assert_eq!(db.deliveries(due).await, db.deliveries("true").await);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn a_backfill_keeps_to_its_range_and_never_repeats() {
    let db = Db::new().await;
    let org = db.org().await;
    events(&db, org).await;
    db.execute("UPDATE activity_logs SET created_at = created_at - interval '1 hour'").await;
    let destination = db.destination(org, "http://x/").insert().await;
    let rows = sqlx::query("SELECT id, created_at FROM activity_logs ORDER BY created_at, id");
    let rows = rows.fetch_all(&db.pool).await.unwrap();
    db.execute(
        "UPDATE activity_logs SET created_at = o.created_at + o.n * interval '1 s'
         FROM (SELECT id, created_at, row_number() OVER (ORDER BY id) AS n FROM activity_logs) o
         WHERE o.id = activity_logs.id",
    )
    .await;
    let first: DbTime = rows[0].get(1);
    let at = |seconds: u64| Some(first.after(Duration::from_secs(seconds)));
    let range = Spec { from: at(11), to: at(31), ..spec(Kind::Backfill, org, destination, &[]) };
    let mut conn = connection(&db).await;
    assert_eq!(count(&mut conn, &range).await, Some(20));
    assert_eq!(run(&mut conn, &range).await.queued, 20);
    assert_eq!(run(&mut conn, &range).await.queued, 0);
    assert_eq!(run(&mut conn, &Spec { to: None, ..range.clone() }).await.queued, 54);
    assert_eq!(run(&mut conn, &Spec { from: None, ..range }).await.queued, 10);
    assert_eq!(db.deliveries("true").await, 84);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn nothing_is_backfilled_for_a_destination_that_is_disabled() {
    let db = Db::new().await;
    let org = db.org().await;
    let destination = db.destination(org, "http://x/").with("enabled", false).insert().await;
    events(&db, org).await;
    let mut conn = connection(&db).await;
    let spec = spec(Kind::Backfill, org, destination, &[] as &[Status]);
    assert_eq!(count(&mut conn, &spec).await, None);
    let job = run(&mut conn, &spec).await;
    assert_eq!(job.state, State::Failed);
    assert!(job.error.unwrap().contains("disabled"));
    assert_eq!(job.spec.destination, DestinationId(destination));
    assert_eq!(db.deliveries("true").await, 0);
    check_invariants(&db, &[]).await;
}
