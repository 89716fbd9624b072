//! Destinations change while the program runs: no restart, nothing dropped.

use uuid::Uuid;

use crate::common::{Db, Posthaste, Received, Receiver, Reply, check_invariants, eventually, run};
use crate::{NO_POLLS, deliveries_of, set, soon};

/// Sends events until one arrives that shows the change.
async fn shows(db: &Db, org: Uuid, receiver: &Receiver, what: &str, change: impl Fn(&Received) -> bool) {
    soon(what, async || {
        let before = receiver.count();
        db.events(org, 1).await;
        soon("an event arrives", async || receiver.count() > before).await;
        receiver.received().last().is_some_and(&change)
    })
    .await;
}

async fn every_change_is_taken_over(db: &Db, program: &Posthaste) {
    let (org, first, second) = (db.org().await, Receiver::start(), Receiver::start());
    let destination = db.destination(org, first.url("/a")).insert().await;
    shows(db, org, &first, "a new destination starts", |_| true).await;

    set(db, destination, &format!("url = '{}'", second.url("/b"))).await;
    soon("the new URL counts", async || {
        db.events(org, 1).await;
        second.count() > 0
    })
    .await;
    let receiver = second;
    set(db, destination, "signing_secret = 'a legacy secret'").await;
    let signed = |request: &Received| request.header("webhook-signature").is_some();
    shows(db, org, &receiver, "a secret signs", signed).await;
    set(db, destination, "signing_secret = NULL, batch_size = 3").await;
    let batched = |request: &Received| request.json().is_array() && !signed(request);
    shows(db, org, &receiver, "batches are sent", batched).await;
    set(db, destination, "auth_type = 'bearer', auth_config = '{\"token\": \"t1\"}'").await;
    let bearer = |request: &Received| request.header("authorization") == Some("Bearer t1");
    shows(db, org, &receiver, "it authenticates", bearer).await;

    let settings = "posthaste_destination_settings";
    let columns = "(destination_id, extra_headers)";
    let extra = |request: &Received| request.header("x-extra").map(str::to_owned);
    db.execute(&format!(
        "INSERT INTO {settings} {columns} VALUES ('{destination}', '{{\"x-extra\": \"one\"}}')"
    ))
    .await;
    shows(db, org, &receiver, "settings appear", |r| extra(r).as_deref() == Some("one")).await;
    db.execute(&format!("UPDATE {settings} SET extra_headers = '{{\"x-extra\": \"two\"}}'")).await;
    shows(db, org, &receiver, "settings change", |r| extra(r).as_deref() == Some("two")).await;
    db.execute(&format!("DELETE FROM {settings}")).await;
    shows(db, org, &receiver, "settings vanish", |r| extra(r).is_none()).await;

    db.settled().await;
    set(db, destination, "enabled = false").await;
    let gone = format!("destination={destination} is not enabled any more");
    soon("it stops", async || program.log().contains(&gone)).await;
    let before = receiver.count();
    db.execute(
        "UPDATE webhook_deliveries SET status = 'pending', attempts = 0, delivered_at = NULL,
            next_retry_at = timezone('UTC', now())
         WHERE id = (SELECT id FROM webhook_deliveries LIMIT 1)",
    )
    .await;
    set(db, destination, "enabled = true").await;
    db.settled().await;
    assert_eq!(receiver.count(), before + 1);

    db.execute(&format!("DELETE FROM webhook_destinations WHERE id = '{destination}'")).await;
    soon("it is gone", async || program.log().matches(&gone).count() == 2).await;
    assert_eq!(db.deliveries("true").await, 0);
    assert!(!program.log().contains("panicked"));
    check_invariants(db, &[&first, &receiver]).await;
}

#[tokio::test]
async fn every_change_is_taken_over_at_once_with_notifications() {
    let db = Db::new().await;
    let program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    soon("it listens", async || {
        let sql = "SELECT count(*) FROM pg_stat_activity
            WHERE datname = current_database() AND query LIKE 'LISTEN%'";
        db.number(sql).await == 1
    })
    .await;
    every_change_is_taken_over(&db, &program).await;
}

#[tokio::test]
async fn every_change_is_taken_over_by_polling_alone() {
    let db = Db::empty().await;
    let migrated = run(&["migrate", "--without-notify"], &[("DATABASE_URL", db.url.reveal())]);
    assert!(migrated.status.success(), "{migrated:?}");
    let program = Posthaste::serve_with(&db.url, &[("POSTHASTE_POLL_INTERVAL", "200ms")]).await;
    every_change_is_taken_over(&db, &program).await;
}

#[tokio::test]
async fn nothing_in_flight_is_dropped_when_a_destination_is_disabled() {
    let (release, released) = tokio::sync::watch::channel(false);
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Held(200, released)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).timeout_ms(30_000);
    let destination = destination.setting("max_in_flight", 6).insert().await;
    db.events(org, 30).await;
    let program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    eventually("six are in flight", async || receiver.in_flight() == 6).await;
    set(&db, destination, "enabled = false").await;
    let gone = format!("destination={destination} is not enabled any more");
    soon("it stops", async || program.log().contains(&gone)).await;
    // What had not started is given back at once, and not only when the others end.
    let leased = "status = 'pending' AND last_attempt_at IS NOT NULL";
    eventually("the rest is given back", async || db.deliveries(leased).await == 6).await;
    assert_eq!(receiver.in_flight(), 6);
    release.send(true).unwrap();
    eventually("six are delivered", async || db.deliveries("status = 'delivered'").await == 6).await;
    assert_eq!(deliveries_of(&db, destination, "status = 'pending' AND attempts = 0").await, 24);
    assert_eq!(receiver.count(), 6);

    set(&db, destination, "enabled = true").await;
    db.settled().await;
    assert_eq!(receiver.count(), 30);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn nothing_in_flight_is_dropped_when_its_url_changes() {
    let (release, released) = tokio::sync::watch::channel(false);
    let (db, old) = (Db::new().await, Receiver::with(Reply::Held(200, released)));
    let (org, new) = (db.org().await, Receiver::start());
    let destination = db.destination(org, old.url("/")).timeout_ms(30_000);
    let destination = destination.setting("max_in_flight", 3).insert().await;
    db.events(org, 10).await;
    let program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    eventually("three are in flight", async || old.in_flight() == 3).await;
    set(&db, destination, &format!("url = '{}'", new.url("/"))).await;
    let changed = format!("destination={destination} has changed");
    soon("it is taken over", async || program.log().contains(&changed)).await;
    assert_eq!(old.in_flight(), 3);
    release.send(true).unwrap();
    db.settled().await;
    assert_eq!((old.accepted().len(), new.accepted().len()), (3, 7));
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 10);
    // The row says where the last ones went; the first three are the old receiver's.
    check_invariants(&db, &[]).await;
}
