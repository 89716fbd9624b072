//! `kill -9`: what was in flight is sent again, nothing else is, and nothing is lost.

use std::collections::BTreeSet;
use std::time::Duration;

use sqlx::Row;
use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually, eventually_within};
use crate::{accepted, times_received};

/// A new process must not wait for the leases of a dead one to end, which takes 45 s.
const RESUMES_WITHIN: Duration = Duration::from_secs(10);

/// Waits until PostgreSQL has noticed that the killed process is gone: a statement of its may still have been
/// running.
async fn buried(db: &Db) {
    eventually("no session of the killed process is left", async || {
        db.number(
            "SELECT count(*) FROM pg_stat_activity
             WHERE datname = current_database() AND application_name = 'posthaste'",
        )
        .await
            == 0
    })
    .await;
}

/// The events that are recorded as delivered.
async fn recorded(db: &Db) -> BTreeSet<Uuid> {
    let rows = sqlx::query("SELECT log_id FROM webhook_deliveries WHERE status = 'delivered'");
    rows.fetch_all(&db.pool).await.unwrap().iter().map(|row| row.get(0)).collect()
}

#[tokio::test]
async fn after_a_kill_deliveries_flow_again_within_ten_seconds_and_everything_arrives() {
    const KILLS: usize = 3;
    const IN_FLIGHT: usize = 32;
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::Slow(Duration::from_millis(100)));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).setting("max_in_flight", IN_FLIGHT).insert().await;
    let events = db.events(org, 1_200).await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    for kill in 1..=KILLS {
        eventually("the stream flows", async || receiver.accepted().len() >= kill * 250).await;
        posthaste.kill_9();
        // At once, as whatever supervises it would.
        posthaste = Posthaste::spawn(&["serve"], &[("DATABASE_URL", db.url.reveal())]);
        let before = receiver.accepted().len();
        eventually_within(RESUMES_WITHIN, "deliveries flow again", async || {
            receiver.accepted().len() > before + 2 * IN_FLIGHT
        })
        .await;
    }
    accepted(&receiver, &events).await;
    db.settled().await;
    assert_eq!(db.deliveries("attempts <> 1").await, 0, "a crash uses up no attempt");
    let repeated: usize = times_received(&receiver).values().map(|times| times - 1).sum();
    assert!(repeated > 0, "the kills met nothing in flight: the test shows nothing");
    // What was in flight, and as much room for results that were on their way to a busy database.
    assert!(repeated <= KILLS * 3 * IN_FLIGHT, "{repeated} requests were repeated");
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn what_was_recorded_before_a_kill_is_never_sent_again() {
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::Slow(Duration::from_millis(100)));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).setting("max_in_flight", 16).insert().await;
    let batches = db.destination(org, receiver.url("/batch")).batch_size(10);
    batches.setting("max_in_flight", 2).insert().await;
    let events = db.events(org, 1_000).await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    eventually("the stream flows", async || receiver.count() >= 100).await;
    posthaste.kill_9();
    buried(&db).await;
    let delivered = "SELECT w.log_id || d.url FROM webhook_deliveries w
        JOIN webhook_destinations d ON d.id = w.destination_id WHERE w.status = 'delivered'";
    let rows = sqlx::query(delivered).fetch_all(&db.pool).await.unwrap();
    let recorded: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    let left = 2_000 - recorded.len();
    assert!(left > 0 && left < 2_000, "{left} were left: the kill was not in the middle");
    receiver.forget();

    let posthaste = Posthaste::serve(&db.url).await;
    db.settled().await;
    let again: Vec<String> = receiver
        .received()
        .iter()
        .flat_map(|request| {
            let url = receiver.url(&request.path);
            request.event_ids().into_iter().map(move |id| format!("{id}{url}"))
        })
        .filter(|sent| recorded.contains(sent))
        .collect();
    assert!(again.is_empty(), "sent again although recorded: {again:?}");
    assert_eq!(db.deliveries("status = 'delivered'").await, 2 * events.len() as i64);
    drop(posthaste);
    check_invariants(&db, &[]).await;
}

#[tokio::test]
async fn exactly_what_a_receiver_held_at_a_kill_is_sent_again_uncharged() {
    const HELD: usize = 8;
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    db.destination(org, receiver.url("/")).timeout_ms(30_000).setting("max_in_flight", HELD).insert().await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    db.events(org, 200).await;
    db.settled().await;
    receiver.reply(Reply::Hang);
    let events = db.events(org, 100).await;
    eventually("the receiver holds what it may", async || receiver.in_flight() == HELD).await;
    let held: BTreeSet<Uuid> = receiver.received()[200..].iter().flat_map(|r| r.event_ids()).collect();
    posthaste.kill_9();
    receiver.reply(Reply::Status(200));
    let posthaste = Posthaste::spawn(&["serve"], &[("DATABASE_URL", db.url.reveal())]);
    eventually_within(RESUMES_WITHIN, "deliveries flow again", async || receiver.accepted().len() > 200)
        .await;
    db.settled().await;

    let times = times_received(&receiver);
    let twice: BTreeSet<Uuid> = times.iter().filter(|(_, times)| **times == 2).map(|(id, _)| *id).collect();
    assert_eq!(twice, held);
    assert!(times.values().all(|times| *times <= 2));
    assert!(events.iter().all(|event| times.contains_key(event)));
    assert_eq!(recorded(&db).await.len(), 300);
    assert_eq!(db.deliveries("attempts <> 1").await, 0, "a crash uses up no attempt");
    drop(posthaste);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_claim_that_outlives_its_killed_process_does_not_delay_the_next_one() {
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::Hang);
    let org = db.org().await;
    db.destination(org, receiver.url("/")).timeout_ms(30_000).insert().await;
    let events = db.events(org, 5).await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    eventually("five requests are in flight", async || receiver.in_flight() == 5).await;

    // Somebody locks a table that claims read, so that the next one has to wait.
    let mut transaction = db.pool.begin().await.unwrap();
    let lock = sqlx::query("LOCK TABLE posthaste_attempts IN ACCESS EXCLUSIVE MODE");
    lock.execute(&mut *transaction).await.unwrap();
    db.event(org, "another", "{}").await;
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'posthaste' AND wait_event_type = 'Lock'";
    eventually("a claim waits", async || db.number(waiting).await > 0).await;
    let claiming = db.number(&waiting.replace("count(*)", "min(pid)")).await;
    posthaste.kill_9();
    receiver.reply(Reply::Status(200));

    let posthaste = Posthaste::serve(&db.url).await;
    // Only now does PostgreSQL notice that there is nobody to claim for.
    db.execute(&format!("SELECT pg_terminate_backend({claiming})")).await;
    transaction.rollback().await.unwrap();
    eventually_within(RESUMES_WITHIN, "what was in flight is sent again", async || {
        let accepted = receiver.accepted();
        events.iter().all(|event| accepted.contains_key(event))
    })
    .await;
    db.settled().await;
    drop(posthaste);
    check_invariants(&db, &[&receiver]).await;
}
