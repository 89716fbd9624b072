//! The breaker: a destination that fails is probed, not hammered.

use std::collections::HashSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};
use crate::{NO_POLLS, charged, set, state, state_is_cleared, state_is_set};

#[tokio::test]
async fn after_five_failures_only_probes_are_sent_and_they_cost_nothing() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(500)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).retry(3, 60_000).setting("max_in_flight", 1);
    let destination = destination.insert().await;
    db.events(org, 100).await;
    let began = Instant::now();
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    state_is_set(&db, destination, "tripped_at").await;
    assert!(state(&db, destination, "next_probe_at").await.is_some());
    assert!(state(&db, destination, "failing_since").await.is_some());
    eventually("four probes have failed", async || receiver.count() >= 9).await;

    // Probes are at least 0.8 s apart, less some milliseconds between two clocks.
    let probes = (receiver.count() - 5) as f64;
    assert!(probes <= began.elapsed().as_secs_f64() / 0.7 + 1.0, "{probes} probes");
    assert_eq!(charged(&db, destination).await, 5);
    eventually("the probes are written down", async || {
        db.number("SELECT count(*) FROM posthaste_attempts WHERE NOT charged").await >= 4
    })
    .await;
    // Each probe takes another delivery, so that one poisonous event cannot keep the breaker tripped.
    let probed: Vec<_> = receiver.received()[5..9].iter().flat_map(|request| request.event_ids()).collect();
    assert_eq!(probed.iter().collect::<HashSet<_>>().len(), 4, "{probed:?}");

    receiver.reply(Reply::Status(200));
    eventually("most have arrived", async || receiver.accepted().len() >= 95).await;
    state_is_cleared(&db, destination).await;
    assert_eq!(db.deliveries("status = 'dead'").await, 0);
    // Five wait for a minute: they failed before the breaker tripped.
    db.execute(
        "UPDATE webhook_deliveries SET next_retry_at = timezone('UTC', now()) WHERE status = 'failed'",
    )
    .await;
    db.execute("NOTIFY posthaste_wake").await;
    db.settled().await;
    assert_eq!(charged(&db, destination).await, 105);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn failures_of_requests_that_end_while_it_is_tripped_are_not_charged() {
    let (release, released) = tokio::sync::watch::channel(false);
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Held(500, released)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).timeout_ms(30_000).insert().await;
    db.events(org, 32).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    eventually("all are in flight", async || receiver.in_flight() == 32).await;
    receiver.reply(Reply::Status(500));
    release.send(true).unwrap();
    state_is_set(&db, destination, "tripped_at").await;
    eventually("all 32 are written", async || {
        db.number("SELECT count(*) FROM posthaste_attempts").await >= 32
    })
    .await;
    assert_eq!(charged(&db, destination).await, 5);
    receiver.reply(Reply::Status(200));
    db.settled().await;
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_success_between_failures_keeps_it_closed() {
    let (db, count) = (Db::new().await, AtomicUsize::new(0));
    let receiver = Receiver::scripted(move |_| match count.fetch_add(1, Ordering::SeqCst) % 2 {
        0 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(10, 100).setting("max_in_flight", 1).insert().await;
    db.events(org, 20).await;
    let program = Posthaste::serve_with(&db.url, &[("POSTHASTE_BREAKER_THRESHOLD", "2")]).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 20);
    assert!(!program.log().contains("its breaker has tripped"));
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_tripped_breaker_is_taken_over_by_the_next_process() {
    let (db, receiver, other) = (Db::new().await, Receiver::with(Reply::Status(500)), Receiver::start());
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).setting("max_in_flight", 1).insert().await;
    db.events(org, 10).await;
    let mut program = Posthaste::serve(&db.url).await;
    state_is_set(&db, destination, "tripped_at").await;
    program.kill_9();
    let tripped = state(&db, destination, "tripped_at").await;
    db.execute(
        "UPDATE posthaste_destination_state SET next_probe_at = timezone('UTC', now()) + interval '1 hour'",
    )
    .await;
    receiver.forget();
    receiver.reply(Reply::Status(200));
    db.destination(org, other.url("/")).insert().await;
    let _program = Posthaste::serve(&db.url).await;
    db.events(org, 30).await;
    eventually("the other one has its events", async || other.accepted().len() == 30).await;
    assert_eq!(receiver.count(), 0, "it knew nothing of the breaker");
    assert_eq!(state(&db, destination, "tripped_at").await, tripped);

    // A change of the row may have been the cure: it is probed at once.
    set(&db, destination, "name = 'cured'").await;
    db.settled().await;
    assert_eq!(receiver.accepted().len(), 40);
    state_is_cleared(&db, destination).await;
    check_invariants(&db, &[&receiver, &other]).await;
}

#[tokio::test]
async fn the_threshold_can_be_configured() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(500)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).setting("max_in_flight", 1).insert().await;
    db.events(org, 10).await;
    let environment = [NO_POLLS, ("POSTHASTE_BREAKER_THRESHOLD", "2")];
    let _program = Posthaste::serve_with(&db.url, &environment).await;
    state_is_set(&db, destination, "tripped_at").await;
    eventually("a probe is written", async || {
        db.number("SELECT count(*) FROM posthaste_attempts WHERE NOT charged").await > 0
    })
    .await;
    assert_eq!(charged(&db, destination).await, 2);
    receiver.reply(Reply::Status(200));
    db.settled().await;
    check_invariants(&db, &[&receiver]).await;
}
