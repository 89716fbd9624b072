//! What freezes the whole process, or only looks like it.

use rustix::process::Signal;

use crate::common::{Db, Posthaste, Receiver, check_invariants};

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
