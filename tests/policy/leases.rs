//! What takes longer than a lease goes on all the same: bisections, batches that fill, slow receivers, rate
//! limits.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::NO_POLLS;
use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually_within};

/// Longer than one lease, by far.
const IN_THE_END: Duration = Duration::from_secs(150);

fn sizes(receiver: &Receiver) -> Vec<usize> {
    receiver.received().iter().map(|request| request.event_ids().len()).collect()
}

async fn settled(db: &Db) {
    eventually_within(IN_THE_END, "everything is delivered or dead", async || {
        db.deliveries("status IN ('pending', 'failed')").await == 0
    })
    .await;
}

#[tokio::test]
async fn a_bisection_with_a_slow_receiver_goes_on_where_it_was() {
    let db = Db::new().await;
    // After each answer, what is left of the lease is shorter than the timeout.
    let receiver = Receiver::scripted(|request| match request.event_ids().len() {
        1 => Reply::Status(200),
        _ => Reply::Late(400, Duration::from_secs(11)),
    });
    let org = db.org().await;
    db.destination(org, receiver.url("/")).batch_size(4).timeout_ms(30_000).insert().await;
    db.events(org, 4).await;
    let _program = Posthaste::serve(&db.url).await;
    settled(&db).await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 4);
    let mut sizes = sizes(&receiver);
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 1, 1, 1, 2, 2, 4]);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_bisection_under_a_rate_limit_goes_on_where_it_was() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(|request| match request.event_ids().len() {
        1 => Reply::Status(200),
        _ => Reply::Status(422),
    });
    let org = db.org().await;
    // The last of three requests comes when the first lease could carry none any more.
    let destination = db.destination(org, receiver.url("/")).batch_size(2);
    destination.setting("rate_limit_per_second", 0.05).insert().await;
    db.events(org, 2).await;
    let _program = Posthaste::serve(&db.url).await;
    settled(&db).await;
    assert_eq!(sizes(&receiver), [2, 1, 1]);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn halves_that_fail_otherwise_become_smaller_as_well() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(|request| match request.event_ids().len() {
        8 => Reply::Status(422),
        1 => Reply::Status(200),
        _ => Reply::Status(500),
    });
    let org = db.org().await;
    db.destination(org, receiver.url("/")).batch_size(8).insert().await;
    db.events(org, 8).await;
    let _program = Posthaste::serve(&db.url).await;
    settled(&db).await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 8);
    assert_eq!(sizes(&receiver).iter().filter(|size| **size == 8).count(), 1, "it is never made again");
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn after_thirty_two_lone_refusals_the_rest_of_the_batch_is_charged_with_that_answer() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(422)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).batch_size(100).retry(0, 100);
    destination.setting("max_in_flight", 1).insert().await;
    db.events(org, 100).await;
    let _program = Posthaste::serve(&db.url).await;
    settled(&db).await;
    assert_eq!(db.deliveries("status = 'dead' AND attempts = 1 AND response_status = 422").await, 100);
    assert_eq!(sizes(&receiver).iter().filter(|size| **size == 1).count(), 32);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn one_acceptance_keeps_a_bisection_going_to_its_end() {
    let db = Db::new().await;
    let seen = AtomicUsize::new(0);
    let receiver = Receiver::scripted(move |request| match request.event_ids().len() {
        1 if seen.fetch_add(1, Ordering::SeqCst) == 0 => Reply::Status(200),
        _ => Reply::Status(422),
    });
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).batch_size(64).retry(0, 100);
    destination.setting("max_in_flight", 1).insert().await;
    db.events(org, 64).await;
    let _program = Posthaste::serve(&db.url).await;
    settled(&db).await;
    assert_eq!(sizes(&receiver).iter().filter(|size| **size == 1).count(), 64);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_pause_within_a_bisection_does_not_begin_it_anew() {
    let db = Db::new().await;
    let asked = AtomicUsize::new(0);
    let receiver = Receiver::scripted(move |request| match request.event_ids().len() {
        4 => Reply::Status(400),
        _ if asked.fetch_add(1, Ordering::SeqCst) == 0 => Reply::header(429, "retry-after", "2"),
        _ => Reply::Status(200),
    });
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).batch_size(4);
    destination.setting("max_in_flight", 1).insert().await;
    db.events(org, 4).await;
    let _program = Posthaste::serve(&db.url).await;
    settled(&db).await;
    assert_eq!(sizes(&receiver), [4, 2, 2, 2]);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn an_incomplete_batch_goes_when_it_has_waited_whatever_the_timeout_is() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).batch_size(8).timeout_ms(30_000);
    destination.setting("batch_wait_ms", 10_000).insert().await;
    let _program = Posthaste::serve(&db.url).await;
    let began = Instant::now();
    db.events(org, 3).await;
    settled(&db).await;
    assert_eq!(sizes(&receiver), [3]);
    assert!(began.elapsed() >= Duration::from_secs(9));
    check_invariants(&db, &[&receiver]).await;
}

/// No poll comes to its help, nor a further event.
#[tokio::test]
async fn what_full_batches_leave_over_goes_when_it_has_waited_as_well() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).batch_size(5);
    destination.setting("batch_wait_ms", 1_500).insert().await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    // In its first seconds a process looks again by itself, as it does not know yet whether it is alone.
    for _ in 0..3 {
        db.events(org, 1).await;
        settled(&db).await;
    }
    db.events(org, 12).await;
    settled(&db).await;
    let mut sizes = sizes(&receiver);
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 1, 1, 2, 5, 5]);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn batches_may_be_larger_than_the_column_allows() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    let many = db.destination(org, receiver.url("/many")).name("many");
    let many = many.setting("batch_max_events", 2_000).setting("batch_wait_ms", 300_000);
    many.insert().await;
    let bytes = db.destination(org, receiver.url("/bytes")).name("bytes").batch_size(100);
    bytes.setting("batch_max_bytes", 4_096).insert().await;
    let events = db.events(org, 2_000).await;
    let _program = Posthaste::serve(&db.url).await;
    settled(&db).await;
    let received = receiver.received();
    let (many, bytes): (Vec<_>, Vec<_>) = received.iter().partition(|request| request.path == "/many");
    assert_eq!(many.iter().map(|request| request.event_ids().len()).collect::<Vec<_>>(), [2_000]);
    assert!(bytes.iter().all(|request| request.body.len() <= 4_096));
    assert!(bytes.iter().any(|request| request.event_ids().len() > 1));
    assert_eq!(many[0].event_ids(), events, "in the order of the queue");
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_batch_is_sent_again_in_the_order_of_the_queue() {
    let db = Db::new().await;
    let asked = AtomicUsize::new(0);
    let receiver = Receiver::scripted(move |_| match asked.fetch_add(1, Ordering::SeqCst) {
        0..=2 => Reply::Status(500),
        _ => Reply::Status(200),
    });
    let org = db.org().await;
    db.destination(org, receiver.url("/")).batch_size(20).retry(5, 100).insert().await;
    db.events(org, 20).await;
    let _program = Posthaste::serve(&db.url).await;
    settled(&db).await;
    let received = receiver.received();
    assert_eq!(received.len(), 4);
    let bodies: Vec<_> = received.iter().map(|request| request.event_ids()).collect();
    assert!(bodies.iter().all(|body| *body == bodies[0]), "{bodies:?}");
    let ids: Vec<_> = received.iter().map(|request| request.header("webhook-id")).collect();
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
}

/// What an application's own schema allows may not fit into any lease.
#[tokio::test]
async fn a_timeout_beyond_thirty_seconds_counts_as_thirty() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    db.execute("ALTER TABLE webhook_destinations DROP CONSTRAINT webhook_destinations_timeout_ms_check")
        .await;
    let org = db.org().await;
    db.destination(org, receiver.url("/")).timeout_ms(120_000).insert().await;
    db.events(org, 3).await;
    let _program = Posthaste::serve(&db.url).await;
    settled(&db).await;
    assert_eq!(receiver.count(), 3);
    check_invariants(&db, &[&receiver]).await;
}
