//! Ordered destinations: one attempt at a time, in insertion order.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use uuid::Uuid;

use crate::common::{Db, Posthaste, Received, Receiver, Reply, check_invariants, eventually};
use crate::{NO_POLLS, set};

/// The events of all requests, in the order in which they came.
fn arrived(receiver: &Receiver) -> Vec<Uuid> {
    receiver.received().iter().flat_map(Received::event_ids).collect()
}

/// The same, of those requests that were accepted.
fn accepted(receiver: &Receiver) -> Vec<Uuid> {
    let received = receiver.received();
    received.iter().filter(|request| request.status == Some(200)).flat_map(Received::event_ids).collect()
}

#[tokio::test]
async fn three_hundred_events_arrive_in_order_without_any_poll() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    db.destination(org, receiver.url("/")).setting("ordered", true).insert().await;
    let mut inserted = db.events(org, 100).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    for count in [100, 1, 1, 1, 47, 50] {
        inserted.extend(db.events(org, count).await);
    }
    db.settled().await;
    assert_eq!(arrived(&receiver), inserted);
    assert_eq!(receiver.most_in_flight(), 1);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn ordered_batches_follow_each_other_in_order() {
    let (db, receiver) = (Db::new().await, Receiver::start());
    let org = db.org().await;
    db.destination(org, receiver.url("/")).batch_size(7).setting("ordered", true).insert().await;
    let mut inserted = db.events(org, 60).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    inserted.extend(db.events(org, 60).await);
    db.settled().await;
    assert_eq!(arrived(&receiver), inserted);
    assert_eq!(receiver.most_in_flight(), 1);
    assert!(receiver.received().iter().any(|request| request.event_ids().len() == 7));
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_failing_delivery_holds_back_the_later_ones_until_it_is_delivered_or_dead() {
    let db = Db::new().await;
    let seen: Mutex<HashMap<i64, usize>> = Mutex::default();
    // Event 3 is accepted at the third try, event 5 never.
    let receiver = Receiver::scripted(move |request| {
        let number = request.json()["data"]["payload"]["n"].as_i64().unwrap();
        let mut seen = seen.lock().unwrap();
        let times = seen.entry(number).or_insert(0);
        *times += 1;
        Reply::Status(match (number, *times) {
            (3, 1..=2) | (5, _) => 400,
            _ => 200,
        })
    });
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(2, 300).setting("ordered", true).insert().await;
    let e = db.events(org, 8).await;
    let _program = Posthaste::serve(&db.url).await;
    db.settled().await;
    let expected = [e[0], e[1], e[2], e[2], e[2], e[3], e[4], e[4], e[4], e[5], e[6], e[7]];
    assert_eq!(arrived(&receiver), expected);
    assert_eq!(db.deliveries("status = 'dead'").await, 1);
    assert_eq!(db.deliveries("status = 'delivered'").await, 7);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_bisect_of_an_ordered_batch_keeps_the_order() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(|request| {
        let json = request.json();
        let bad = json.as_array().unwrap().iter().any(|event| event["data"]["payload"]["n"] == 5);
        Reply::Status(if bad { 422 } else { 200 })
    });
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).batch_size(8).retry(1, 300);
    destination.setting("ordered", true).insert().await;
    let events = db.events(org, 20).await;
    let _program = Posthaste::serve(&db.url).await;
    db.settled().await;
    let mut good = events.clone();
    good.remove(4);
    assert_eq!(accepted(&receiver), good);
    assert_eq!(receiver.most_in_flight(), 1);
    let dead = format!("status = 'dead' AND attempts = 2 AND log_id = '{}'", events[4]);
    assert_eq!(db.deliveries(&dead).await, 1);
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 19);
    // Nothing behind the bad event overtook it: it was tried twice, alone, before its successor was accepted.
    let received = receiver.received();
    let next = received.iter().position(|r| r.status == Some(200) && r.event_ids().contains(&events[5]));
    let alone = received[..next.unwrap()].iter().filter(|r| r.event_ids() == [events[4]]).count();
    assert_eq!(alone, 2);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn the_probes_of_an_ordered_destination_are_its_head() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(500)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).retry(10, 100).setting("ordered", true);
    let destination = destination.insert().await;
    let events = db.events(org, 10).await;
    let environment = [NO_POLLS, ("POSTHASTE_BREAKER_THRESHOLD", "2")];
    let _program = Posthaste::serve_with(&db.url, &environment).await;
    crate::state_is_set(&db, destination, "tripped_at").await;
    eventually("two probes came", async || receiver.count() >= 4).await;
    assert!(arrived(&receiver).iter().all(|event| *event == events[0]));
    receiver.reply(Reply::Status(200));
    db.settled().await;
    assert_eq!(accepted(&receiver), events);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_destination_can_become_ordered_and_unordered_while_it_runs() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Slow(Duration::from_millis(20))));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).setting("max_in_flight", 4).insert().await;
    let program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    let changes = || program.log().matches(&format!("destination={destination} has changed")).count();
    db.events(org, 60).await;
    eventually("it is under way", async || receiver.count() > 5).await;
    db.execute("UPDATE posthaste_destination_settings SET ordered = true").await;
    crate::soon("it is ordered", async || changes() == 1).await;
    let later = db.events(org, 50).await;
    db.settled().await;
    assert_eq!(arrived(&receiver)[60..], later);

    // Enough of them that the change finds some claimed and not sent.
    db.events(org, 60).await;
    eventually("it is under way", async || receiver.count() > 115).await;
    db.execute("UPDATE posthaste_destination_settings SET ordered = false").await;
    set(&db, destination, "timeout_ms = 6000").await;
    crate::soon("it is unordered", async || changes() >= 2).await;
    db.settled().await;
    assert_eq!(receiver.accepted().len(), 170);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn an_ordered_destination_goes_on_in_order_after_a_crash() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Slow(Duration::from_millis(10))));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).setting("ordered", true).insert().await;
    let events = db.events(org, 60).await;
    let mut program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    eventually("it is under way", async || receiver.count() > 15).await;
    program.kill_9();
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    db.settled().await;
    // What was in flight, or answered and not yet written, comes again: nothing else is out of order.
    let mut order = Vec::new();
    for event in arrived(&receiver) {
        if !order.contains(&event) {
            order.push(event);
        }
    }
    assert_eq!(order, events);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_row_that_somebody_locks_holds_back_its_own_queue_and_nobody_else() {
    let (db, locked, free) = (Db::new().await, Receiver::start(), Receiver::start());
    let org = db.org().await;
    db.destination(org, locked.url("/")).setting("ordered", true).insert().await;
    db.destination(org, free.url("/")).insert().await;
    let mut inserted = db.events(org, 3).await;
    let mut transaction = db.pool.begin().await.unwrap();
    let head = "SELECT FROM webhook_deliveries WHERE log_id = $1 FOR UPDATE";
    sqlx::query(head).bind(inserted[0]).execute(&mut *transaction).await.unwrap();
    let _program = Posthaste::serve(&db.url).await;
    // The unordered destination's deliveries of the same events: all but the one that is locked as well.
    eventually("the others are delivered", async || free.count() == 2).await;
    inserted.extend(db.events(org, 3).await);
    eventually("those that came later are delivered, too", async || free.count() == 5).await;
    assert_eq!(locked.count(), 0, "nothing overtakes the head of an ordered queue");
    transaction.rollback().await.unwrap();
    db.settled().await;
    assert_eq!(arrived(&locked), inserted);
    check_invariants(&db, &[&locked, &free]).await;
}

#[tokio::test]
async fn a_queue_whose_head_waits_for_its_retry_is_left_alone_until_then() {
    let db = Db::new().await;
    let first = Mutex::new(true);
    let receiver = Receiver::scripted(move |_| {
        Reply::Status(if std::mem::take(&mut *first.lock().unwrap()) { 400 } else { 200 })
    });
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).retry(3, 3_000);
    destination.setting("ordered", true).insert().await;
    let inserted = db.events(org, 3).await;
    let mut program = Posthaste::serve(&db.url).await;
    db.settled().await;
    assert_eq!(accepted(&receiver), inserted);
    // Statistics are complete when the connections are closed.
    program.terminate().await;
    let scans = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'posthaste_deliveries_order'";
    let scans = db.number(scans).await;
    assert!(scans < 100, "{scans} scans for three deliveries");
    check_invariants(&db, &[&receiver]).await;
}
