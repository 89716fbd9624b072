//! What freezes the whole process, or only looks like it.

use rustix::process::Signal;

use crate::common::{Db, Posthaste, Receiver, check_invariants};

#[tokio::test]
async fn a_process_whose_log_nobody_takes_ends_after_a_while_and_loses_nothing() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    db.events(org, 1_000).await;
    // Each thread stops at the line that does not fit into the pipe, the main thread among them.
    let environment = [("DATABASE_URL", db.url.reveal()), ("RUST_LOG", "trace")];
    let mut frozen = Posthaste::spawn_unheard(&["serve"], &environment);
    assert_eq!(frozen.exit().await.code(), Some(70));
    let left = db.deliveries("status <> 'delivered'").await;
    assert!(left > 0, "it froze too late to show anything");
    let posthaste = Posthaste::serve(&db.url).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 1_000);
    drop(posthaste);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_process_that_is_stopped_for_longer_than_a_freeze_takes_goes_on() {
    let db = Db::new().await;
    let receiver = Receiver::start();
    let org = db.org().await;
    db.destination(org, receiver.url("/")).insert().await;
    let mut posthaste = Posthaste::serve(&db.url).await;
    for _ in 0..2 {
        posthaste.signal(Signal::STOP);
        db.execute("SELECT pg_sleep(15)").await;
        posthaste.signal(Signal::CONT);
        // By now the watchdog has counted that tick, and more.
        db.execute("SELECT pg_sleep(3)").await;
    }
    db.events(org, 10).await;
    db.settled().await;
    assert!(!posthaste.log().contains("frozen"));
    assert!(posthaste.terminate().await.success());
    check_invariants(&db, &[&receiver]).await;
}
