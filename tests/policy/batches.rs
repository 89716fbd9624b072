//! How batches are formed, cut, halved, bisected and charged.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use serde_json::Value;
use sha2::{Digest, Sha256};
use sqlx::Row;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Received, Receiver, Reply, check_invariants, eventually};
use crate::{NO_POLLS, state};

fn sizes(receiver: &Receiver) -> Vec<usize> {
    receiver.received().iter().map(|request| request.event_ids().len()).collect()
}

/// Answers `status` to whatever holds an event whose payload says that it is bad.
fn refuse_bad(status: u16) -> impl Fn(&Received) -> Reply {
    move |request| {
        let json = request.json();
        let is_bad = |event: &Value| event["data"]["payload"]["bad"] == true;
        let bad = json.as_array().is_some_and(|events| events.iter().any(is_bad));
        Reply::Status(if bad { status } else { 200 })
    }
}

async fn make_bad(db: &Db, events: &[Uuid]) {
    let sql = "UPDATE activity_logs SET payload = '{\"bad\": true}' WHERE id = ANY($1)";
    sqlx::query(sql).bind(events).execute(&db.pool).await.unwrap();
}

#[tokio::test]
async fn above_one_the_body_is_always_an_array_and_its_id_is_made_of_its_deliveries() {
    let db = Db::new().await;
    let (org, single, batched) = (db.org().await, Receiver::start(), Receiver::start());
    db.destination(org, single.url("/")).insert().await;
    let batches = db.destination(org, batched.url("/")).batch_size(10).insert().await;
    db.events(org, 25).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    db.settled().await;
    db.event(org, "alone", "{}").await;
    db.settled().await;

    assert_eq!(single.count(), 26);
    assert!(single.received().iter().all(|request| request.json().is_object()));
    let mut sizes = sizes(&batched);
    assert_eq!(sizes.pop(), Some(1));
    sizes.sort_unstable();
    assert_eq!(sizes, [5, 10, 10]);
    let sql = "SELECT log_id, id FROM webhook_deliveries WHERE destination_id = $1";
    let rows = sqlx::query(sql).bind(batches).fetch_all(&db.pool).await.unwrap();
    let deliveries: HashMap<Uuid, Uuid> = rows.iter().map(|row| (row.get(0), row.get(1))).collect();
    for request in batched.received() {
        let events = request.event_ids();
        assert_eq!(request.json().as_array().map(Vec::len), Some(events.len()));
        let mut hash = Sha256::new();
        events.iter().for_each(|event| hash.update(deliveries[event].as_bytes()));
        let hex: String = hash.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(request.header("webhook-id"), Some(format!("batch_{hex}").as_str()));
        assert_eq!(request.header("posthaste-batch-size"), Some(events.len().to_string().as_str()));
        assert_eq!(request.header("posthaste-event-type"), None);
    }
    check_invariants(&db, &[&single, &batched]).await;
}

#[tokio::test]
async fn a_batch_waits_to_fill_but_not_longer_than_it_was_told() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).batch_size(5).setting("batch_wait_ms", 10_000);
    let destination = destination.insert().await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    let began = Instant::now();
    db.events(org, 2).await;
    // Whoever waits holds no lease: what is here is neither in memory nor anybody's.
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(db.deliveries("last_attempt_at IS NULL").await, 2);
    db.events(org, 3).await;
    db.settled().await;
    if began.elapsed() < Duration::from_secs(9) {
        assert_eq!(sizes(&receiver), [5]);
    }

    db.execute("UPDATE posthaste_destination_settings SET batch_wait_ms = 1500").await;
    // From here on the new setting may count, and the old one is longer.
    let began = Instant::now();
    db.events(org, 3).await;
    db.settled().await;
    let last = receiver.received().pop().unwrap();
    assert_eq!(last.event_ids().len(), 3);
    assert!(last.at - began >= Duration::from_millis(1_500));
    assert_eq!(state(&db, destination, "tripped_at").await, None);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_batch_that_is_too_large_for_the_receiver_is_halved_until_it_fits() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(|request| match request.event_ids().len() {
        0..=3 => Reply::Status(200),
        _ => Reply::Status(413),
    });
    let org = db.org().await;
    db.destination(org, receiver.url("/")).batch_size(20).insert().await;
    db.events(org, 20).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 20);
    assert_eq!(db.number("SELECT count(*) FROM posthaste_attempts WHERE charged").await, 0);
    let mut sizes = sizes(&receiver);
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 2, 2, 2, 3, 3, 3, 3, 5, 5, 5, 5, 10, 10, 20]);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn an_event_that_is_too_large_even_alone_is_charged() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(413)));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).batch_size(4).retry(1, 100).insert().await;
    db.events(org, 4).await;
    let _program = Posthaste::serve(&db.url).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'dead' AND attempts = 2 AND response_status = 413").await, 4);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_refused_batch_is_bisected_until_its_bad_events_stand_alone() {
    for status in [400, 422] {
        let (db, receiver) = (Db::new().await, Receiver::scripted(refuse_bad(status)));
        let org = db.org().await;
        db.destination(org, receiver.url("/")).batch_size(16).retry(1, 100).insert().await;
        let events = db.events(org, 40).await;
        let bad = [events[3], events[4], events[21], events[39]];
        make_bad(&db, &bad).await;
        let _program = Posthaste::serve(&db.url).await;
        db.settled().await;
        let dead = format!("status = 'dead' AND attempts = 2 AND response_status = {status}");
        assert_eq!(db.deliveries(&dead).await, 4, "{status}");
        assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 36, "{status}");
        // Nobody else was charged at any time.
        let charged = "SELECT count(*) FROM posthaste_attempts WHERE charged";
        assert_eq!(db.number(charged).await, 8, "{status}");
        let accepted = receiver.accepted();
        assert!(accepted.len() == 36 && accepted.values().all(|times| *times == 1), "{status}");
        check_invariants(&db, &[&receiver]).await;
    }
}

#[tokio::test]
async fn any_other_failure_of_a_batch_charges_every_delivery_in_it() {
    for status in [405, 409, 500] {
        let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(status)));
        let org = db.org().await;
        db.destination(org, receiver.url("/")).batch_size(5).retry(3, 2_000).insert().await;
        db.events(org, 5).await;
        let _program = Posthaste::serve(&db.url).await;
        eventually("the failure is written", async || db.deliveries("status = 'failed'").await == 5).await;
        receiver.reply(Reply::Status(200));
        db.settled().await;
        let attempts = db.number("SELECT count(*) FROM posthaste_attempts WHERE charged").await;
        assert!(attempts >= 5 && attempts % 5 == 0, "{status}: {attempts}");
        let sum = db.number("SELECT sum(attempts) FROM webhook_deliveries").await;
        assert_eq!(sum, attempts + 5, "{status}");
        check_invariants(&db, &[&receiver]).await;
    }
}

#[tokio::test]
async fn batches_never_exceed_the_largest_event() {
    const LIMIT: usize = 4_096;
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    db.destination(org, receiver.url("/")).batch_size(100).insert().await;
    let environment = [NO_POLLS, ("POSTHASTE_MAX_EVENT_BYTES", "4KiB")];
    let _program = Posthaste::serve_with(&db.url, &environment).await;
    let padded = |length: usize| format!("{{\"pad\": \"{}\"}}", "x".repeat(length));
    db.event(org, "padded", &padded(0)).await;
    db.settled().await;
    let overhead = receiver.received()[0].body.len() - 2;

    // Two of these have exactly the limit, and brackets and a comma make them one batch too many.
    let half = padded(LIMIT / 2 - overhead);
    let insert = "INSERT INTO activity_logs (org_id, event_type, event_category, payload)
        SELECT $1, 'padded', 'test', $2::jsonb FROM generate_series(1, 6)";
    sqlx::query(insert).bind(org).bind(half).execute(&db.pool).await.unwrap();
    db.settled().await;
    // Of these, several fit.
    let insert = insert.replace("1, 6", "1, 30");
    let insert = sqlx::query(sqlx::AssertSqlSafe(insert)).bind(org).bind(padded(500));
    insert.execute(&db.pool).await.unwrap();
    db.settled().await;

    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 37);
    let received = receiver.received();
    assert!(received.iter().all(|request| request.body.len() <= LIMIT), "{:?}", {
        received.iter().map(|request| request.body.len()).collect::<Vec<_>>()
    });
    assert!(sizes(&receiver).iter().any(|events| *events > 2), "{:?}", sizes(&receiver));
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn an_event_of_6_mb_is_dead_before_any_attempt_while_its_neighbours_go_on() {
    let (db, receiver, batched) = (Db::new().await, Receiver::start(), Receiver::start());
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    db.destination(org, batched.url("/")).batch_size(10).insert().await;
    db.events(org, 5).await;
    // One that compresses to nothing, one that does not, and one that is large in another column.
    let noise = "SELECT string_agg(md5(n::text), '') FROM generate_series(1, 190000) n";
    let large = [
        "jsonb_build_object('pad', repeat('x', 6000000)), NULL".to_owned(),
        format!("jsonb_build_object('pad', ({noise})), NULL"),
        "'{}', repeat('y', 6000000)".to_owned(),
    ];
    for columns in large {
        let insert = "INSERT INTO activity_logs (org_id, event_type, event_category, payload, content)";
        db.execute(&format!("{insert} SELECT '{org}', 'large', 'test', {columns}")).await;
    }
    db.events(org, 5).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    db.settled().await;
    let dead = "status = 'dead' AND attempts = 0 AND last_attempt_at IS NULL AND error_message
        LIKE 'the event is larger than 5242880 bytes%POSTHASTE_MAX_EVENT_BYTES%'";
    assert_eq!(db.deliveries(dead).await, 6);
    assert_eq!(db.deliveries("status = 'delivered'").await, 20);
    assert_eq!((receiver.accepted().len(), batched.accepted().len()), (10, 10));
    check_invariants(&db, &[&receiver, &batched]).await;
}

#[tokio::test]
async fn lowering_batch_size_to_one_leaves_no_batch_with_a_broken_body() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).batch_size(10);
    let destination = destination.setting("rate_limit_per_second", 0.2).insert().await;
    db.events(org, 30).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    // The second batch is made and waits for its turn under the rate limit.
    eventually("the first batch is sent", async || receiver.count() == 1).await;
    db.execute(&format!(
        "WITH unlimited AS (UPDATE posthaste_destination_settings SET rate_limit_per_second = NULL)
         UPDATE webhook_destinations SET batch_size = 1 WHERE id = '{destination}'"
    ))
    .await;
    db.settled().await;
    let kind = |request: &Received| match serde_json::from_slice::<Value>(&request.body) {
        Ok(Value::Array(_)) => request.header("posthaste-batch-size").is_some(),
        Ok(Value::Object(_)) => request.header("posthaste-delivery-id").is_some(),
        _ => false,
    };
    assert!(receiver.received().iter().all(kind), "a body that is neither a batch nor an event");
    assert_eq!(receiver.accepted().len(), 30);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_part_of_a_refused_batch_charges_nobody_when_it_fails_otherwise() {
    let (db, failed) = (Db::new().await, std::sync::atomic::AtomicUsize::new(0));
    let receiver = Receiver::scripted(move |request| match request.event_ids().len() {
        8 => Reply::Status(413),
        4 if failed.fetch_add(1, std::sync::atomic::Ordering::SeqCst) < 2 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let org = db.org().await;
    db.destination(org, receiver.url("/")).batch_size(8).retry(0, 100).insert().await;
    db.events(org, 8).await;
    let _program = Posthaste::serve(&db.url).await;
    db.settled().await;
    // Without retries, one charge would have been the end of them.
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 8);
    assert_eq!(db.number("SELECT count(*) FROM posthaste_attempts").await, 0);
    let mut sizes = sizes(&receiver);
    sizes.sort_unstable();
    assert_eq!(sizes, [2, 2, 2, 2, 4, 4, 8], "what fails becomes smaller");
    check_invariants(&db, &[&receiver]).await;
}
