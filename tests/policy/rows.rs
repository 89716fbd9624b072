//! Rows that an application, or a person, writes itself.

use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};
use crate::sparing::REPLAY;

async fn insert(db: &Db, destination: Uuid, event: Uuid, columns: &str, values: &str) {
    let sql = format!("INSERT INTO webhook_deliveries (destination_id, log_id{columns})");
    db.execute(&format!("{sql} VALUES ('{destination}', '{event}'{values})")).await;
}

#[tokio::test]
async fn deliveries_that_an_application_inserts_are_due_at_once() {
    let (db, receiver, ordered) = (Db::new().await, Receiver::start(), Receiver::start());
    let org = db.org().await;
    let events = db.events(org, 6).await;
    // Younger than the events, so that the trigger did nothing for it.
    let destination = db.destination(org, receiver.url("/")).insert().await;
    let in_order = db.destination(org, ordered.url("/")).setting("ordered", true).insert().await;
    let _program = Posthaste::serve(&db.url).await;
    for event in &events {
        insert(&db, destination, *event, "", "").await;
        insert(&db, in_order, *event, "", "").await;
    }
    assert_eq!(db.deliveries("next_retry_at IS NOT NULL").await, 0);
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 12);
    let arrived: Vec<Uuid> = ordered.received().iter().flat_map(|request| request.event_ids()).collect();
    assert_eq!(arrived, events);
    check_invariants(&db, &[&receiver, &ordered]).await;
}

#[tokio::test]
async fn deliveries_of_a_table_that_inherits_are_not_mistaken_for_others() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    let events = db.events(org, 2).await;
    db.execute("CREATE TABLE others () INHERITS (webhook_deliveries)").await;
    db.execute(
        "WITH moved AS (DELETE FROM ONLY webhook_deliveries WHERE ctid <> '(0,1)' RETURNING *)
        INSERT INTO others SELECT * FROM moved",
    )
    .await;
    assert_eq!(db.number("SELECT count(DISTINCT ctid) FROM webhook_deliveries").await, 1);
    let _program = Posthaste::serve(&db.url).await;
    db.settled().await;
    let arrived: Vec<Uuid> = receiver.received().iter().flat_map(|request| request.event_ids()).collect();
    assert!(arrived.len() == 2 && events.iter().all(|event| arrived.contains(event)), "{arrived:?}");
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_due_row_is_attempted_at_least_once_whatever_its_attempts_say() {
    let (db, receiver, refusing) = (Db::new().await, Receiver::start(), Receiver::with(Reply::Status(400)));
    let org = db.org().await;
    let event = db.event(org, "test", "{}").await;
    for receiver in [&receiver, &refusing] {
        let destination = db.destination(org, receiver.url("/")).retry(3, 100).insert().await;
        insert(&db, destination, event, ", attempts, status", ", 9, 'failed'").await;
    }
    let _program = Posthaste::serve(&db.url).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 10").await, 1);
    assert_eq!(db.deliveries("status = 'dead' AND attempts = 10 AND response_status = 400").await, 1);
    assert_eq!((receiver.count(), refusing.count()), (1, 1));
    // What the application claimed is not ours; the rest must be right.
    db.execute("UPDATE webhook_deliveries SET attempts = attempts - 9").await;
    check_invariants(&db, &[&receiver, &refusing]).await;
}

#[tokio::test]
async fn a_delivery_of_another_organizations_event_is_never_sent() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let (org, other) = (db.org().await, db.org().await);
    let destination = db.destination(org, receiver.url("/")).insert().await;
    let batched = db.destination(org, receiver.url("/batch")).batch_size(10).insert().await;
    let foreign = db.event(other, "secret", r#"{"secret": "of another organization"}"#).await;
    for destination in [destination, batched] {
        insert(&db, destination, foreign, "", "").await;
    }
    db.events(org, 5).await;
    let _program = Posthaste::serve(&db.url).await;
    db.settled().await;
    let dead = "status = 'dead' AND attempts = 0 AND error_message LIKE '%another organization%'";
    assert_eq!(db.deliveries(dead).await, 2);
    assert_eq!(db.deliveries("status = 'delivered'").await, 10);
    let bodies = receiver.received().into_iter().flat_map(|request| request.body).collect::<Vec<u8>>();
    assert!(!String::from_utf8(bodies).unwrap().contains("of another organization"));
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_replay_sends_dead_and_delivered_ones_again() {
    let (db, receiver) = (
        Db::new().await,
        Receiver::scripted(|request| {
            Reply::Status(if request.json()["data"]["payload"]["n"] == 2 { 400 } else { 200 })
        }),
    );
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(1, 100).insert().await;
    db.events(org, 3).await;
    let _program = Posthaste::serve(&db.url).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'dead' AND attempts = 2").await, 1);
    receiver.reply(Reply::Status(200));
    receiver.forget();
    db.execute(REPLAY).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1 AND error_message IS NULL").await, 3);
    assert_eq!(receiver.count(), 3);
    let numbers = receiver.received();
    assert!(numbers.iter().all(|request| request.header("posthaste-attempt") == Some("1")));
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_delivery_deleted_while_it_is_in_flight_hurts_nobody() {
    let (release, released) = tokio::sync::watch::channel(false);
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Held(200, released)));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).timeout_ms(30_000).insert().await;
    let events = db.events(org, 5).await;
    let program = Posthaste::serve(&db.url).await;
    eventually("all are in flight", async || receiver.in_flight() == 5).await;
    db.execute(&format!("DELETE FROM activity_logs WHERE id = '{}'", events[2])).await;
    release.send(true).unwrap();
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 4);
    assert!(!program.log().contains("panicked"));
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_row_that_somebody_locks_does_not_keep_other_results_from_being_written() {
    let (release, released) = tokio::sync::watch::channel(false);
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Held(200, released)));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    let locked = db.events(org, 1).await[0];
    let _program = Posthaste::serve(&db.url).await;
    eventually("its request is in flight", async || receiver.in_flight() == 1).await;
    let mut transaction = db.pool.begin().await.unwrap();
    let lock = sqlx::query("SELECT FROM webhook_deliveries WHERE log_id = $1 FOR UPDATE").bind(locked);
    lock.execute(&mut *transaction).await.unwrap();
    db.events(org, 20).await;
    eventually("all are in flight", async || receiver.in_flight() == 21).await;
    release.send(true).unwrap();
    eventually("the others are recorded", async || db.deliveries("status = 'delivered'").await == 20).await;
    transaction.rollback().await.unwrap();
    db.settled().await;
    assert!(receiver.accepted().values().all(|times| *times == 1), "nothing was sent twice");
    check_invariants(&db, &[&receiver]).await;
}
