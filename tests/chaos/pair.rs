//! Two processes on one database: they share the work, and without a fault nothing is sent twice.

use std::collections::HashMap;
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::watch;
use uuid::Uuid;

use crate::common::{
    Db, Posthaste, Received, Receiver, Reply, check_invariants, eventually, eventually_within,
};

/// Requests in flight that one process may have at one destination, where a test looks at that.
const IN_FLIGHT: usize = 4;
/// Makes every lease older than a lease can be, as if the time had passed.
const AGE_LEASES: &str = "UPDATE webhook_deliveries SET last_attempt_at = last_attempt_at - interval '45 s'
    WHERE status IN ('pending', 'failed') AND last_attempt_at >= next_retry_at";

/// The events of all requests, in the order in which they came.
fn arrived(receiver: &Receiver) -> Vec<Uuid> {
    receiver.received().iter().flat_map(Received::event_ids).collect()
}

/// Fails with what came more than once. Retries of failures aside, that is a double send.
fn assert_nothing_came_twice(receivers: &[&Receiver]) {
    for receiver in receivers {
        let mut times: HashMap<(String, Uuid), usize> = HashMap::new();
        for request in receiver.received() {
            for event in request.event_ids() {
                *times.entry((request.path.clone(), event)).or_default() += 1;
            }
        }
        times.retain(|_, times| *times > 1);
        assert!(times.is_empty(), "sent more than once: {times:?}");
    }
}

/// Two processes that have both claimed: each can tell that the other lives.
async fn two(db: &Db) -> (Posthaste, Posthaste) {
    let both = (Posthaste::serve(&db.url).await, Posthaste::serve(&db.url).await);
    let claimed = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
        AND application_name = 'posthaste'
        -- what a connection that claims did last; ordered claims are transactions
        AND (query LIKE '%ask AS MATERIALIZED%' OR query = 'COMMIT')";
    eventually("both have claimed", async || db.number(claimed).await == 2).await;
    both
}

/// Three organizations: many single events, batches, and a queue that must stay in order.
#[tokio::test]
async fn two_processes_share_five_thousand_deliveries_and_send_none_of_them_twice() {
    const SINGLE: usize = 2_600;
    const BATCHED: usize = 1_800;
    const ORDERED: usize = 600;
    let db = Db::new().await;
    let single = Receiver::with(Reply::Slow(Duration::from_millis(20)));
    let (batched, ordered) = (Receiver::start(), Receiver::start());
    let orgs = [db.org().await, db.org().await, db.org().await];
    db.destination(orgs[0], single.url("/a")).setting("max_in_flight", IN_FLIGHT).insert().await;
    db.destination(orgs[0], single.url("/b")).setting("max_in_flight", IN_FLIGHT).insert().await;
    db.destination(orgs[1], batched.url("/")).batch_size(10).setting("max_in_flight", 2).insert().await;
    db.destination(orgs[2], ordered.url("/")).setting("ordered", true).insert().await;
    let _programs = two(&db).await;
    let mut in_order = Vec::new();
    // Many small commits, so that the claims of both meet again and again.
    for _ in 0..20 {
        db.events(orgs[0], SINGLE / 2 / 20).await;
        db.events(orgs[1], BATCHED / 20).await;
        in_order.extend(db.events(orgs[2], ORDERED / 20).await);
    }
    db.settled().await;

    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 5_000);
    assert_nothing_came_twice(&[&single, &batched, &ordered]);
    assert_eq!(arrived(&ordered), in_order);
    assert_eq!(ordered.most_in_flight(), 1, "the limit of an ordered destination holds for both together");
    // Each process has limits of its own: beyond those of one, both must have been sending.
    let most = single.most_in_flight();
    assert!(most > 2 * IN_FLIGHT && most <= 4 * IN_FLIGHT, "{most} in flight at two destinations");
    check_invariants(&db, &[&single, &batched, &ordered]).await;
}

#[tokio::test]
async fn an_ordered_destination_of_two_processes_stays_in_order_while_it_fails() {
    let db = Db::new().await;
    let receiver = Receiver::scripted(|request| {
        // Every seventh event is refused until its third attempt.
        let number = request.json()["data"]["payload"]["n"].as_u64().unwrap();
        let attempt: u32 = request.header("posthaste-attempt").unwrap().parse().unwrap();
        Reply::Status(if number.is_multiple_of(7) && attempt < 3 { 409 } else { 200 })
    });
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(3, 100).setting("ordered", true).insert().await;
    let _programs = two(&db).await;
    let mut inserted = Vec::new();
    for _ in 0..5 {
        inserted.extend(db.events(org, 20).await);
    }
    db.settled().await;

    let mut attempts = arrived(&receiver);
    assert_eq!(attempts.len(), 100 + 2 * 10, "two of twenty fail twice in each of five rounds");
    attempts.dedup();
    assert_eq!(attempts, inserted);
    assert_eq!(receiver.most_in_flight(), 1);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn when_one_of_two_is_killed_the_other_takes_over_as_soon_as_the_leases_end() {
    const HELD: i64 = 5;
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::Hang);
    let org = db.org().await;
    db.destination(org, receiver.url("/")).timeout_ms(30_000).insert().await;
    let (mut killed, other) = two(&db).await;
    other.signal(Signal::STOP);
    let held = db.events(org, HELD as usize).await;
    eventually("one of them has five in flight", async || receiver.in_flight() == HELD as usize).await;
    receiver.reply(Reply::Status(200));
    killed.kill_9();
    other.signal(Signal::CONT);

    db.events(org, 100).await;
    eventually("the other one goes on with the rest", async || {
        db.deliveries("status = 'delivered'").await == 100
    })
    .await;
    assert_eq!(receiver.count(), 105, "the leases of the killed one are respected");
    assert_eq!(db.execute(AGE_LEASES).await, HELD as u64);
    db.settled().await;

    let accepted = receiver.accepted();
    assert!(held.iter().all(|event| accepted[event] == 1));
    assert_eq!(receiver.count(), 105 + HELD as usize, "what was in flight, and nothing else, came again");
    assert_eq!(db.deliveries("attempts <> 1").await, 0, "a crash uses up no attempt");
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_process_whose_connections_end_keeps_what_it_has_in_flight() {
    let db = Db::new().await;
    let (release, released) = watch::channel(false);
    let (held, other) = (Receiver::with(Reply::Held(200, released)), Receiver::start());
    let (org, other_org) = (db.org().await, db.org().await);
    let destination = db.destination(org, held.url("/")).setting("max_in_flight", IN_FLIGHT);
    destination.timeout_ms(30_000).insert().await;
    db.destination(other_org, other.url("/")).insert().await;
    let first = Posthaste::serve(&db.url).await;
    let events = db.events(org, 3 * IN_FLIGHT).await;
    eventually("it holds what it may", async || held.in_flight() == IN_FLIGHT).await;
    // The second one could take over what nobody holds, as leases from before its start.
    let second = Posthaste::serve(&db.url).await;
    let here = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND mode = 'ShareLock' AND granted
        AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
    for round in 1..=5 {
        let end = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'posthaste'";
        assert!(db.number(end).await > 0);
        db.events(other_org, 20).await;
        eventually("the others are delivered", async || other.count() == 20 * round).await;
        eventually("both are to be seen again", async || db.number(here).await == 2).await;
    }
    db.events(other_org, 20).await;
    eventually("the others are delivered", async || other.count() == 120).await;
    assert_eq!(held.count(), IN_FLIGHT);
    release.send_replace(true);
    db.settled().await;
    assert_eq!(held.count(), events.len());
    assert_nothing_came_twice(&[&held, &other]);
    drop((first, second));
    check_invariants(&db, &[&held, &other]).await;
}

#[tokio::test]
async fn a_process_that_came_after_the_leases_takes_over_as_soon_as_it_is_alone() {
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::Hang);
    let org = db.org().await;
    db.destination(org, receiver.url("/")).timeout_ms(30_000).setting("ordered", true).insert().await;
    let mut killed = Posthaste::serve(&db.url).await;
    let events = db.events(org, 50).await;
    eventually("the head is in flight", async || receiver.in_flight() == 1).await;
    let _other = Posthaste::serve(&db.url).await;
    receiver.reply(Reply::Status(200));
    killed.kill_9();
    eventually_within(Duration::from_secs(20), "the other one takes over", async || {
        receiver.accepted().len() == events.len()
    })
    .await;
    db.settled().await;
    let mut in_order = arrived(&receiver);
    assert_eq!(in_order.remove(0), events[0], "what was in flight at the kill comes again");
    assert_eq!(in_order, events);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_destination_that_is_disabled_and_enabled_under_two_processes_gets_everything_once() {
    const ROUNDS: usize = 8;
    let db = Db::new().await;
    let receiver = Receiver::with(Reply::Slow(Duration::from_millis(20)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).setting("max_in_flight", IN_FLIGHT);
    let destination = destination.insert().await;
    let enable = async |enabled: bool| {
        let sql = format!("UPDATE webhook_destinations SET enabled = {enabled} WHERE id = '{destination}'");
        db.execute(&sql).await;
    };
    let _programs = two(&db).await;
    for round in 0..ROUNDS {
        db.events(org, 60).await;
        eventually("it is under way", async || receiver.count() > round * 60).await;
        enable(false).await;
        if round % 2 == 0 {
            eventually("what was in flight has ended", async || receiver.in_flight() == 0).await;
        }
        enable(true).await;
    }
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 60 * ROUNDS as i64);
    assert_nothing_came_twice(&[&receiver]);
    check_invariants(&db, &[&receiver]).await;
}
