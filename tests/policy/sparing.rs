//! An outage does not use up retries; hopeless destinations are given up.

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};
use crate::{charged, deliveries_of, state, state_is_set};

/// What replay does, by SQL, to everything that is settled.
pub const REPLAY: &str = "
    UPDATE webhook_deliveries SET status = 'pending', attempts = 0, delivered_at = NULL,
        next_retry_at = timezone('UTC', clock_timestamp()), created_at = timezone('UTC', clock_timestamp())
    WHERE status IN ('dead', 'delivered')";
/// So that failures are charged one by one.
const NO_BREAKER: (&str, &str) = ("POSTHASTE_BREAKER_THRESHOLD", "1000");

async fn uncharged(db: &Db) -> i64 {
    db.number("SELECT count(*) FROM posthaste_attempts WHERE NOT charged").await
}

#[tokio::test]
async fn the_only_event_of_a_tenant_survives_an_outage() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).retry(1, 100).insert().await;
    receiver.outage().await;
    let _program = Posthaste::serve_with(&db.url, &[NO_BREAKER]).await;
    db.events(org, 1).await;
    state_is_set(&db, destination, "tripped_at").await;
    eventually("it is spared more often than it had retries", async || uncharged(&db).await >= 3).await;
    assert_eq!(charged(&db, destination).await, 1);
    receiver.restore().await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 2").await, 1);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn with_sparing_switched_off_an_outage_kills() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(500)));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(3, 100).insert().await;
    let _program = Posthaste::serve_with(&db.url, &[("POSTHASTE_OUTAGE_GRACE", "0")]).await;
    db.events(org, 1).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'dead' AND attempts = 4").await, 1);
    assert_eq!(receiver.count(), 4);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn sparing_ends_with_its_grace() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(500)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).retry(1, 100).insert().await;
    let environment = [NO_BREAKER, ("POSTHASTE_OUTAGE_GRACE", "3s")];
    let _program = Posthaste::serve_with(&db.url, &environment).await;
    db.events(org, 1).await;
    eventually("it is spared", async || uncharged(&db).await > 0).await;
    // While the breaker is tripped nothing is charged: it takes a moment of life for a delivery to die.
    eventually("the grace is over", async || {
        let first = "SELECT count(*) FROM posthaste_attempts
            HAVING min(started_at) < timezone('UTC', clock_timestamp()) - interval '3 s'";
        db.text(&format!("SELECT ({first})")).await.is_some()
    })
    .await;
    receiver.reply(Reply::Status(400));
    db.settled().await;
    assert_eq!(deliveries_of(&db, destination, "status = 'dead' AND attempts = 2").await, 1);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn without_retries_nothing_is_spared() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(500)));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(0, 100).setting("max_in_flight", 1).insert().await;
    let _program = Posthaste::serve(&db.url).await;
    db.events(org, 3).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'dead' AND attempts = 1").await, 3);
    assert_eq!(receiver.count(), 3);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn an_event_that_always_fails_while_others_succeed_is_dead_as_configured() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(|request| {
        Reply::Status(if request.json()["data"]["payload"]["n"] == 4 { 500 } else { 200 })
    });
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).retry(3, 200).insert().await;
    let _program = Posthaste::serve(&db.url).await;
    db.events(org, 4).await;
    // One more success after each failure, so that the order of the first answers does not matter.
    eventually("the last retry is spent", async || {
        db.event(org, "other", "{}").await;
        deliveries_of(&db, destination, "status = 'dead'").await == 1
    })
    .await;
    db.settled().await;
    let dead = "status = 'dead' AND attempts = 4 AND response_status = 500";
    assert_eq!(db.deliveries(dead).await, 1);
    assert_eq!(db.deliveries("status <> 'delivered'").await, 1);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_replayed_delivery_is_spared_like_a_new_one() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(400)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).retry(1, 100).insert().await;
    let _program = Posthaste::serve_with(&db.url, &[NO_BREAKER]).await;
    db.event(org, "unlucky", "{}").await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'dead'").await, 1);
    // A success after its first life must not count against its second one.
    receiver.reply(Reply::Status(200));
    db.event(org, "lucky", "{}").await;
    db.settled().await;
    receiver.reply(Reply::Status(500));
    db.execute(&format!("{REPLAY} AND attempts = 2")).await;
    eventually("it is spared", async || {
        assert_eq!(db.deliveries("status = 'dead'").await, 0, "the outage killed it");
        uncharged(&db).await > 0
    })
    .await;
    state_is_set(&db, destination, "tripped_at").await;
    receiver.reply(Reply::Status(200));
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 2);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_destination_without_any_success_is_disabled_after_a_while() {
    let (db, receiver, healthy) = (Db::new().await, Receiver::with(Reply::Status(500)), Receiver::start());
    let org = db.org().await;
    let hopeless = db.destination(org, receiver.url("/")).retry(10, 100).insert().await;
    db.destination(org, healthy.url("/")).insert().await;
    let environment = [NO_BREAKER, ("POSTHASTE_AUTO_DISABLE_AFTER", "2s")];
    let _program = Posthaste::serve_with(&db.url, &environment).await;
    let began = std::time::Instant::now();
    db.events(org, 4).await;
    state_is_set(&db, hopeless, "disabled_at").await;
    assert!(began.elapsed() >= std::time::Duration::from_secs(2));
    assert!(receiver.count() >= 10, "{} requests", receiver.count());
    assert!(state(&db, hopeless, "disabled_reason").await.unwrap().contains("nothing but failures"));
    assert_eq!(deliveries_of(&db, hopeless, "status IN ('pending', 'failed')").await, 4);

    receiver.reply(Reply::Status(200));
    crate::set(&db, hopeless, "enabled = true").await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 8);
    check_invariants(&db, &[&receiver, &healthy]).await;
}

#[tokio::test]
async fn few_failures_disable_nobody_however_long_they_last() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(500)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).retry(10, 800).insert().await;
    let environment = [NO_BREAKER, ("POSTHASTE_AUTO_DISABLE_AFTER", "1s")];
    let _program = Posthaste::serve_with(&db.url, &environment).await;
    db.events(org, 1).await;
    // Three attempts take 2.4 s less jitter, which is longer than the limit.
    eventually("it has failed for longer", async || receiver.count() >= 3).await;
    eventually("that is written", async || charged(&db, destination).await >= 3).await;
    assert_eq!(state(&db, destination, "disabled_at").await, None);
    receiver.reply(Reply::Status(200));
    db.settled().await;
    check_invariants(&db, &[&receiver]).await;
}
