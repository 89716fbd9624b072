//! Who gets which event, and what the row of a delivery says afterwards.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, check_rows, eventually};

#[tokio::test]
async fn an_event_reaches_every_matching_destination_of_its_org_and_no_other() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let (ours, theirs) = (db.org().await, db.org().await);
    let at = |org, path: &str| db.destination(org, receiver.url(path));
    at(ours, "/all").insert().await;
    at(ours, "/types").event_types("{tool_call,session.*}").insert().await;
    at(ours, "/amount").event_filter(r#"{"kind":"payment"}"#).insert().await;
    at(ours, "/large").event_filter(r#"{"$jsonpath":"$.payload.amount > 100"}"#).insert().await;
    at(ours, "/both").event_types("{invoice}").event_filter(r#"{"kind":"payment"}"#).insert().await;
    at(ours, "/disabled").with("enabled", false).insert().await;
    at(theirs, "/theirs").insert().await;
    let posthaste = Posthaste::serve(&db.url).await;

    let events: [(Uuid, &str, &str, &[&str]); 7] = [
        (ours, "tool_call", "{}", &["/all", "/types"]),
        (ours, "tool_calls", "{}", &["/all"]),
        (ours, "session.start", "{}", &["/all", "/types"]),
        (ours, "invoice", r#"{"kind":"payment","amount":100}"#, &["/all", "/amount", "/both"]),
        (ours, "refund", r#"{"kind":"payment","amount":101}"#, &["/all", "/amount", "/large"]),
        (ours, "invoice", r#"{"kind":"gift","amount":"101"}"#, &["/all"]),
        (theirs, "tool_call", r#"{"kind":"payment","amount":1000}"#, &["/theirs"]),
    ];
    let mut expected: BTreeMap<String, BTreeSet<Uuid>> = BTreeMap::new();
    for (org, event_type, payload, paths) in events {
        let id = db.event(org, event_type, payload).await;
        for path in paths {
            expected.entry((*path).to_owned()).or_default().insert(id);
        }
    }
    eventually("all deliveries are made", async || {
        db.deliveries("true").await == 13 && db.deliveries("status = 'delivered'").await == 13
    })
    .await;
    let mut found: BTreeMap<String, BTreeSet<Uuid>> = BTreeMap::new();
    for request in receiver.received() {
        found.entry(request.path.clone()).or_default().extend(request.event_ids());
    }
    assert_eq!(found, expected);
    assert_eq!(receiver.count(), 13, "each of them once");
    check_invariants(&db, &[&receiver]).await;
    drop(posthaste);
}

/// Commits an event that is older than a backlog of `events`, which has begun to arrive, one every 20 ms. No
/// poll finds it.
async fn commit_late(db: &Db, receiver: &Receiver, events: usize) -> Posthaste {
    receiver.reply(Reply::Slow(Duration::from_millis(20)));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).setting("max_in_flight", 1).insert().await;
    let mut late = db.pool.begin().await.unwrap();
    let insert = "INSERT INTO activity_logs (org_id, event_type, event_category) VALUES ($1, 'late', 'test')";
    sqlx::query(insert).bind(org).execute(&mut *late).await.unwrap();
    db.events(org, events).await;
    let posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_POLL_INTERVAL", "1h")]).await;
    eventually("the first one has arrived", async || receiver.count() > 0).await;
    late.commit().await.unwrap();
    posthaste
}

#[tokio::test]
async fn what_is_committed_late_is_found_when_the_backlog_ends() {
    // Longer than the 3 s after which a new process looks for leases that are void, and shorter than the 4 s
    // after which a backlog is begun anew: on a slow machine it is the other test's.
    const BACKLOG: usize = 175;
    let db = Db::new().await;
    let receiver = Receiver::start();
    let posthaste = commit_late(&db, &receiver, BACKLOG).await;
    eventually("all have arrived", async || receiver.count() > BACKLOG).await;
    db.settled().await;
    drop(posthaste);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn what_is_committed_late_does_not_wait_for_a_long_backlog() {
    const BACKLOG: usize = 2_500;
    let db = Db::new().await;
    let receiver = Receiver::start();
    let mut posthaste = commit_late(&db, &receiver, BACKLOG).await;
    let late = "status = 'delivered' AND log_id = (SELECT id FROM activity_logs WHERE event_type = 'late')";
    eventually("it was delivered", async || db.deliveries(late).await == 1).await;
    assert!(receiver.count() < BACKLOG, "it was the last one to arrive");
    assert!(posthaste.terminate().await.success());
    check_rows(&db).await;
}

#[tokio::test]
async fn the_row_of_a_delivery_tells_of_its_only_attempt() {
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::body(202, "thank you"));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    let posthaste = Posthaste::serve(&db.url).await;
    db.events(org, 1).await;
    db.settled().await;
    let told = "status = 'delivered' AND attempts = 1 AND response_status = 202
        AND response_body = 'thank you' AND error_message IS NULL
        AND last_attempt_at >= created_at - interval '1 s' AND delivered_at >= last_attempt_at
        AND delivered_at <= timezone('UTC', clock_timestamp())";
    assert_eq!(db.deliveries(told).await, 1, "{:?}", row(&db).await);
    assert_eq!(db.number("SELECT count(*) FROM posthaste_attempts").await, 0, "only failures are kept there");
    check_invariants(&db, &[&receiver]).await;
    drop(posthaste);
}

#[tokio::test]
async fn a_delivery_that_fails_twice_is_delivered_by_its_third_attempt() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(|request| match request.header("posthaste-attempt") {
        // On a new connection: a reset on one that was kept alive would be retried at once, and not counted.
        Some("1") => Reply::Reset,
        Some("2") => Reply::body(500, "not yet"),
        _ => Reply::Status(200),
    });
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(3, 100).insert().await;
    let posthaste = Posthaste::serve(&db.url).await;
    db.events(org, 1).await;
    db.settled().await;
    let told = "status = 'delivered' AND attempts = 3 AND response_status = 200 AND error_message IS NULL";
    assert_eq!(db.deliveries(told).await, 1, "{:?}", row(&db).await);
    let attempts = db
        .text(
            "SELECT string_agg(concat_ws(',', attempt, response_status, response_body, charged), ' '
                ORDER BY attempt) FROM posthaste_attempts WHERE error_message <> '' AND duration_ms >= 0",
        )
        .await;
    assert_eq!(attempts.as_deref(), Some("1,t 2,500,not yet,t"));
    let numbers: Vec<_> =
        receiver.received().iter().map(|r| r.header("posthaste-attempt").unwrap().to_owned()).collect();
    assert_eq!(numbers, ["1", "2", "3"]);
    check_invariants(&db, &[&receiver]).await;
    drop(posthaste);
}

#[tokio::test]
async fn events_from_before_the_start_are_delivered() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    let events = db.events(org, 500).await;
    let posthaste = Posthaste::serve(&db.url).await;
    crate::accepted(&receiver, &events).await;
    db.settled().await;
    assert!(crate::times_received(&receiver).values().all(|times| *times == 1));
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 500);
    check_invariants(&db, &[&receiver]).await;
    drop(posthaste);
}

async fn row(db: &Db) -> Option<String> {
    db.text("SELECT to_jsonb(d) FROM webhook_deliveries d").await
}
