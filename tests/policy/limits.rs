//! Limits: requests per second, requests in flight, age.

use std::time::{Duration, Instant};

use crate::NO_POLLS;
use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};

#[tokio::test]
async fn the_rate_limit_holds_from_the_first_request_on() {
    for (rate, burst, events) in [(10, 1, 25), (20, 10, 50)] {
        let (db, receiver) = (Db::new().await, Receiver::start());
        let org = db.org().await;
        let destination = db.destination(org, receiver.url("/")).setting("rate_limit_per_second", rate);
        destination.setting("rate_limit_burst", burst).insert().await;
        db.events(org, events).await;
        let began = Instant::now();
        let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
        db.settled().await;
        let received = receiver.received();
        assert_eq!(received.len(), events);
        for (n, request) in received.iter().enumerate() {
            // A request can come late, but never before its time, counted from before the first one.
            let earliest = (n + 1).saturating_sub(burst) as f64 / f64::from(rate);
            let after = (request.at - began).as_secs_f64();
            assert!(after >= earliest - 0.001, "request {n} after {after} s, {rate}/s, burst {burst}");
        }
        check_invariants(&db, &[&receiver]).await;
    }
}

#[tokio::test]
async fn what_waits_for_a_slow_rate_is_given_back_before_its_lease_ends() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).timeout_ms(30_000);
    destination.setting("rate_limit_per_second", 0.01).insert().await;
    db.events(org, 10).await;
    let mut program = Posthaste::serve_with(&db.url, &[("POSTHASTE_POLL_INTERVAL", "1s")]).await;
    eventually("the first one has arrived", async || receiver.count() == 1).await;
    // Nobody holds a lease for the minutes until the next one may go.
    let free = "status = 'pending' AND last_attempt_at IS NULL";
    eventually("the others wait without a lease", async || db.deliveries(free).await == 9).await;
    db.execute("UPDATE posthaste_destination_settings SET rate_limit_per_second = 1000").await;
    db.settled().await;
    assert!(program.terminate().await.success());
    assert_eq!(receiver.count(), 10);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn the_rate_limit_counts_requests_and_not_events() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).batch_size(50);
    destination.setting("rate_limit_per_second", 2).insert().await;
    db.events(org, 200).await;
    let began = Instant::now();
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    db.settled().await;
    let received = receiver.received();
    assert!(received.len() < 10, "{} requests", received.len());
    for (n, request) in received.iter().enumerate() {
        assert!((request.at - began).as_secs_f64() >= n as f64 / 2.0 - 0.001);
    }
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn no_more_requests_are_in_flight_than_the_destination_wants() {
    let (release, released) = tokio::sync::watch::channel(false);
    let (db, few) = (Db::new().await, Receiver::with(Reply::Held(200, released.clone())));
    let (org, many) = (db.org().await, Receiver::with(Reply::Held(200, released)));
    db.destination(org, few.url("/")).timeout_ms(30_000).setting("max_in_flight", 3).insert().await;
    db.destination(org, many.url("/")).timeout_ms(30_000).insert().await;
    db.events(org, 50).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    eventually("both are full", async || few.in_flight() == 3 && many.in_flight() == 32).await;
    release.send(true).unwrap();
    db.settled().await;
    assert_eq!((few.most_in_flight(), many.most_in_flight()), (3, 32));
    check_invariants(&db, &[&few, &many]).await;
}

#[tokio::test]
async fn the_limit_of_the_whole_process_is_shared() {
    let (release, released) = tokio::sync::watch::channel(false);
    let (db, greedy) = (Db::new().await, Receiver::with(Reply::Held(200, released)));
    let modest = Receiver::start();
    let (org, other) = (db.org().await, db.org().await);
    db.destination(org, greedy.url("/")).timeout_ms(30_000).insert().await;
    db.destination(other, modest.url("/")).insert().await;
    db.events(org, 40).await;
    let environment = [NO_POLLS, ("POSTHASTE_MAX_IN_FLIGHT", "5")];
    let _program = Posthaste::serve_with(&db.url, &environment).await;
    eventually("one organization has its share", async || greedy.in_flight() == 4).await;
    // It never has all, so another one gets through while the first one holds what it has.
    db.events(other, 40).await;
    eventually("the other one got through", async || modest.accepted().len() == 40).await;
    assert_eq!((greedy.in_flight(), greedy.most_in_flight()), (4, 4));
    release.send(true).unwrap();
    db.settled().await;
    assert!(greedy.most_in_flight() <= 5 && modest.most_in_flight() <= 5);
    check_invariants(&db, &[&greedy, &modest]).await;
}

#[tokio::test]
async fn a_waiter_that_goes_away_does_not_take_the_free_place_with_it() {
    let (release, released) = tokio::sync::watch::channel(false);
    let (db, first) = (Db::new().await, Receiver::with(Reply::Held(200, released)));
    let (second, third) = (Receiver::start(), Receiver::start());
    let org = db.org().await;
    db.destination(org, first.url("/")).timeout_ms(30_000).event_types("{a}").insert().await;
    let leaving = db.destination(org, second.url("/")).event_types("{b}").insert().await;
    db.destination(org, third.url("/")).event_types("{c}").insert().await;
    let program = Posthaste::serve_with(&db.url, &[("POSTHASTE_MAX_IN_FLIGHT", "1")]).await;
    // One after the other, so that they wait in this order.
    db.event(org, "a", "{}").await;
    eventually("the only place is taken", async || first.in_flight() == 1).await;
    for (event_type, claimed) in [("b", 2), ("c", 3)] {
        db.event(org, event_type, "{}").await;
        let leased = "last_attempt_at IS NOT NULL";
        eventually("the next one waits", async || db.deliveries(leased).await == claimed).await;
    }
    crate::set(&db, leaving, "enabled = false").await;
    let gone = format!("destination={leaving} is not enabled any more");
    eventually("the second one goes", async || program.log().contains(&gone)).await;
    release.send(true).unwrap();
    crate::soon("the third one gets its turn", async || third.count() == 1).await;
    eventually("the first one is written", async || db.deliveries("status = 'delivered'").await == 2).await;
    assert_eq!(second.count(), 0);
    check_invariants(&db, &[&first, &third]).await;
}

#[tokio::test]
async fn a_delivery_that_is_too_old_is_expired_without_an_attempt() {
    let (db, receiver, patient) = (Db::new().await, Receiver::start(), Receiver::start());
    let org = db.org().await;
    let hasty = db.destination(org, receiver.url("/")).setting("max_age_seconds", 3600).insert().await;
    db.destination(org, patient.url("/")).insert().await;
    let old = db.events(org, 4).await;
    db.execute("UPDATE webhook_deliveries SET created_at = created_at - interval '61 min'").await;
    db.events(org, 3).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    db.settled().await;
    let expired = "status = 'dead' AND attempts = 0 AND error_message LIKE 'expired%'";
    assert_eq!(crate::deliveries_of(&db, hasty, expired).await, 4);
    assert!(old.iter().all(|event| !receiver.accepted().contains_key(event)));
    assert_eq!((receiver.count(), patient.count()), (3, 7));
    check_invariants(&db, &[&receiver, &patient]).await;
}

#[tokio::test]
async fn a_delivery_that_grows_too_old_between_its_attempts_is_expired() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(400)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).retry(10, 400);
    destination.setting("max_age_seconds", 2).insert().await;
    let _program = Posthaste::serve(&db.url).await;
    let began = Instant::now();
    db.events(org, 1).await;
    db.settled().await;
    assert!(began.elapsed() >= Duration::from_secs(2));
    assert_eq!(db.deliveries("status = 'dead' AND attempts < 11 AND error_message LIKE 'expired%'").await, 1);
    assert!(receiver.count() >= 1);
    check_invariants(&db, &[&receiver]).await;
}
