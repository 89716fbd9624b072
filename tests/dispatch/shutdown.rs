//! SIGTERM: in order, within the grace, with nothing lost, leased or charged.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually, leased};
use crate::{accepted, times_received};

/// Far less than the 30 s that a request may take here, far more than a shutdown without waiting needs.
const AT_ONCE: Duration = Duration::from_secs(15);

#[tokio::test]
async fn a_shutdown_under_load_records_everything_and_leaves_the_rest_to_the_next_start() {
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::Slow(Duration::from_millis(50)));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).setting("max_in_flight", 16).insert().await;
    db.destination(org, receiver.url("/batch")).batch_size(10).insert().await;
    let events = db.events(org, 1_000).await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    eventually("the stream flows", async || receiver.in_flight() > 0 && receiver.count() >= 100).await;
    let status = posthaste.terminate().await;

    assert_eq!(status.code(), Some(0));
    assert!(posthaste.log().contains("stopped: everything is recorded"));
    assert_eq!(leased(&db).await, 0, "leases left behind");
    let sent: usize = receiver.received().iter().map(|request| request.event_ids().len()).sum();
    assert_eq!(db.deliveries("status = 'delivered'").await, sent as i64, "answered and not recorded");
    assert!(sent < 2_000, "nothing was left to do: the test shows nothing");
    assert_eq!(
        db.deliveries("status <> 'delivered' AND (attempts, last_attempt_at) IS DISTINCT FROM (0, NULL)")
            .await,
        0
    );

    let posthaste = Posthaste::serve(&db.url).await;
    accepted(&receiver, &events).await;
    db.settled().await;
    drop(posthaste);
    assert!(times_received(&receiver).values().all(|times| *times == 2), "each once at each destination");
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 2_000);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn after_the_grace_hanging_requests_are_given_back_as_they_were() {
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::Status(500));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).timeout_ms(30_000).retry(3, 3_000);
    destination.insert().await;
    let mut posthaste = Posthaste::serve_with(&db.url, &[("POSTHASTE_SHUTDOWN_GRACE", "1s")]).await;
    // One delivery has failed before, the others are new.
    db.events(org, 1).await;
    eventually("the first attempt has failed", async || db.deliveries("status = 'failed'").await == 1).await;
    let attempted = "SELECT last_attempt_at FROM webhook_deliveries WHERE status = 'failed'";
    let before = db.text(attempted).await;
    receiver.reply(Reply::Hang);
    db.events(org, 20).await;
    let rows = "SELECT jsonb_agg(to_jsonb(d) ORDER BY id) FROM webhook_deliveries d";
    eventually("the receiver holds them all, the retry as well", async || receiver.in_flight() == 21).await;
    let start = Instant::now();
    assert_eq!(posthaste.terminate().await.code(), Some(0));
    assert!(start.elapsed() < AT_ONCE, "it waited for the requests");

    assert_eq!(leased(&db).await, 0, "leases left behind");
    let new = "status = 'pending' AND attempts = 0 AND last_attempt_at IS NULL AND response_status IS NULL
        AND error_message IS NULL";
    assert_eq!(db.deliveries(new).await, 20, "{:?}", db.text(rows).await);
    assert_eq!(db.deliveries("status = 'failed' AND attempts = 1 AND response_status = 500").await, 1);
    assert_eq!(db.text(attempted).await, before);
    assert_eq!(db.number("SELECT count(*) FROM posthaste_attempts").await, 1, "only the 500");

    receiver.reply(Reply::Status(200));
    let posthaste = Posthaste::serve(&db.url).await;
    db.settled().await;
    drop(posthaste);
    assert_eq!(db.deliveries("status = 'delivered'").await, 21);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_second_signal_ends_at_once() {
    for (first, second) in [(Signal::TERM, Signal::TERM), (Signal::INT, Signal::TERM)] {
        let db = Db::new().await;
        let receiver = Receiver::with(Reply::Hang);
        let org = db.org().await;
        db.destination(org, receiver.url("/")).timeout_ms(30_000).insert().await;
        let mut posthaste = Posthaste::serve(&db.url).await;
        db.events(org, 5).await;
        eventually("the receiver holds them all", async || receiver.in_flight() == 5).await;
        let start = Instant::now();
        posthaste.signal(first);
        eventually("it shuts down", async || posthaste.log().contains("a second signal ends at once")).await;
        posthaste.signal(second);
        assert_eq!(posthaste.exit().await.code(), Some(1));
        assert!(start.elapsed() < AT_ONCE, "it waited for the requests");

        // Nothing is lost by that, either, and the next start does not wait for the leases.
        receiver.reply(Reply::Status(200));
        let posthaste = Posthaste::serve(&db.url).await;
        db.settled().await;
        drop(posthaste);
        assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 5);
        check_invariants(&db, &[&receiver]).await;
    }
}

#[tokio::test]
async fn an_idle_process_ends_at_once() {
    let db = Db::new().await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    let start = Instant::now();
    assert_eq!(posthaste.terminate().await.code(), Some(0));
    assert!(start.elapsed() < AT_ONCE);
    check_invariants(&db, &[]).await;
}
