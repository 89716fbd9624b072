//! What an answer means for the delivery and for the destination.

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};
use crate::{by_path, charged, deliveries_of, set, state, state_is_cleared, state_is_set, status_of};

#[tokio::test]
async fn every_2xx_is_a_delivery() {
    let (db, receiver) = (Db::new().await, by_path());
    let org = db.org().await;
    for status in [200, 201, 202, 204, 226, 299] {
        db.destination(org, receiver.url(&format!("/{status}"))).insert().await;
    }
    let _program = Posthaste::serve(&db.url).await;
    db.events(org, 3).await;
    db.settled().await;
    let clean = "status = 'delivered' AND attempts = 1 AND error_message IS NULL
        AND response_status BETWEEN 200 AND 299 AND last_attempt_at <= delivered_at";
    assert_eq!(db.deliveries(clean).await, 18);
    assert_eq!(db.number("SELECT count(*) FROM posthaste_attempts").await, 0);
    assert_eq!(receiver.count(), 18);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_refused_event_is_tried_as_often_as_configured_and_trips_nothing() {
    let (db, receiver) = (Db::new().await, by_path());
    let org = db.org().await;
    let statuses = [400, 402, 405, 406, 409, 413, 415, 418, 422, 451];
    let mut destinations = Vec::new();
    for status in statuses {
        let destination = db.destination(org, receiver.url(&format!("/{status}"))).retry(2, 100);
        destinations.push((status, destination.insert().await));
    }
    let _program = Posthaste::serve(&db.url).await;
    db.events(org, 6).await;
    db.settled().await;
    for (status, destination) in destinations {
        let dead = format!("status = 'dead' AND attempts = 3 AND response_status = {status}");
        assert_eq!(deliveries_of(&db, destination, &dead).await, 6, "{status}");
        assert_eq!(state(&db, destination, "tripped_at").await, None, "{status}");
        let path = format!("/{status}");
        assert_eq!(receiver.received().iter().filter(|request| request.path == path).count(), 18, "{status}");
    }
    let history = "SELECT count(*) FROM posthaste_attempts WHERE charged AND attempt BETWEEN 1 AND 3";
    assert_eq!(db.number(history).await, 180);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn the_attempts_of_a_delivery_are_numbered_and_wait_for_their_backoff() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(400)));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(2, 500).insert().await;
    let _program = Posthaste::serve(&db.url).await;
    db.events(org, 1).await;
    db.settled().await;
    let received = receiver.received();
    let numbers: Vec<_> =
        received.iter().map(|request| request.header("posthaste-attempt").unwrap()).collect();
    assert_eq!(numbers, ["1", "2", "3"]);
    let pauses: Vec<u128> = received.windows(2).map(|two| (two[1].at - two[0].at).as_millis()).collect();
    // 500 ms and 1000 ms, and 20 % of jitter.
    assert!(pauses[0] >= 400 && pauses[1] >= 800, "{pauses:?}");
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn failures_of_the_destination_trip_its_breaker_and_redirects_are_not_followed() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let elsewhere = receiver.url("/followed");
    receiver.script(move |request| match status_of(&request.path) {
        200 => Reply::Status(200),
        status => Reply::header(status, "location", elsewhere.clone()),
    });
    let org = db.org().await;
    let statuses = [301, 302, 303, 307, 308, 401, 403, 404, 408, 500, 502, 503, 504];
    let mut destinations = Vec::new();
    for status in statuses {
        let destination = db.destination(org, receiver.url(&format!("/{status}")));
        destinations.push(destination.retry(3, 100).setting("max_in_flight", 1).insert().await);
    }
    let _program = Posthaste::serve(&db.url).await;
    db.events(org, 6).await;
    for destination in &destinations {
        state_is_set(&db, *destination, "tripped_at").await;
        eventually("five failures are charged", async || charged(&db, *destination).await == 5).await;
    }
    assert_eq!(db.deliveries("status IN ('delivered', 'dead')").await, 0);
    assert!(receiver.received().iter().all(|request| request.path != "/followed"));
    receiver.reply(Reply::Status(200));
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 6 * destinations.len() as i64);
    for destination in destinations {
        state_is_cleared(&db, destination).await;
    }
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_410_ends_that_delivery_and_disables_the_destination_with_its_queue() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(410)));
    let (org, healthy) = (db.org().await, Receiver::start());
    let gone = db.destination(org, receiver.url("/")).setting("max_in_flight", 1).insert().await;
    db.destination(org, healthy.url("/")).insert().await;
    db.events(org, 8).await;
    let _program = Posthaste::serve(&db.url).await;
    state_is_set(&db, gone, "disabled_at").await;
    assert!(state(&db, gone, "disabled_reason").await.unwrap().contains("410"));
    let enabled = format!("SELECT enabled FROM webhook_destinations WHERE id = '{gone}'");
    assert_eq!(db.text(&enabled).await.unwrap(), "false");
    eventually("the others have everything", async || healthy.accepted().len() == 8).await;
    assert_eq!(
        deliveries_of(&db, gone, "status = 'dead' AND attempts = 1 AND response_status = 410").await,
        1
    );
    assert_eq!(deliveries_of(&db, gone, "status = 'pending' AND attempts = 0").await, 7);
    assert_eq!(receiver.count(), 1);

    receiver.reply(Reply::Status(200));
    set(&db, gone, "enabled = true").await;
    assert_eq!(state(&db, gone, "destination_id").await, None);
    db.settled().await;
    assert_eq!(deliveries_of(&db, gone, "status = 'delivered'").await, 7);
    check_invariants(&db, &[&receiver, &healthy]).await;
}

#[tokio::test]
async fn a_410_on_a_batch_ends_every_delivery_of_that_request() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(410)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).batch_size(5).setting("max_in_flight", 1);
    let destination = destination.insert().await;
    db.events(org, 12).await;
    let _program = Posthaste::serve(&db.url).await;
    state_is_set(&db, destination, "disabled_at").await;
    assert_eq!(db.deliveries("status = 'dead' AND attempts = 1").await, 5);
    assert_eq!(db.deliveries("status = 'pending' AND attempts = 0").await, 7);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_destination_enabled_right_after_a_410_goes_on() {
    let db = Db::empty().await;
    let migrated = crate::common::run(&["migrate", "--without-notify"], &[("DATABASE_URL", db.url.reveal())]);
    assert!(migrated.status.success(), "{migrated:?}");
    let receiver = Receiver::with(Reply::Status(410));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).setting("max_in_flight", 1).insert().await;
    db.events(org, 5).await;
    // The dispatcher does not see the row while it is disabled: both changes lie between two polls.
    let _program = Posthaste::serve_with(&db.url, &[("POSTHASTE_POLL_INTERVAL", "4s")]).await;
    state_is_set(&db, destination, "disabled_at").await;
    receiver.reply(Reply::Status(200));
    set(&db, destination, "enabled = true").await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 4);
    check_invariants(&db, &[&receiver]).await;
}
