//! 429, and 503 with Retry-After: the receiver asks for a pause.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use crate::common::{Db, Posthaste, Received, Receiver, Reply, check_invariants, eventually};
use crate::{NO_POLLS, state, state_is_set};

/// Answers the first `count` requests with `reply`, then 200.
fn first(count: usize, reply: Reply) -> impl Fn(&Received) -> Reply + Send + Sync + 'static {
    let seen = AtomicUsize::new(0);
    move |_| match seen.fetch_add(1, Ordering::SeqCst) < count {
        true => reply.clone(),
        false => Reply::Status(200),
    }
}

#[tokio::test]
async fn retry_after_pauses_the_whole_destination_and_charges_nobody() {
    for status in [429, 503] {
        let receiver = Receiver::scripted(first(1, Reply::header(status, "retry-after", "3")));
        let db = Db::new().await;
        let org = db.org().await;
        let destination = db.destination(org, receiver.url("/")).setting("max_in_flight", 1).insert().await;
        db.events(org, 5).await;
        let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
        state_is_set(&db, destination, "paused_until").await;
        db.settled().await;
        let received = receiver.received();
        // The clock that decides is the database's, as known here to some milliseconds.
        assert!(received[1].at - received[0].at >= Duration::from_millis(2_500), "{status}");
        assert_eq!(received.len(), 6, "{status}");
        assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 5, "{status}");
        let uncharged = "SELECT count(*) FROM posthaste_attempts WHERE NOT charged";
        assert_eq!(db.number(uncharged).await, 1, "{status}");
        check_invariants(&db, &[&receiver]).await;
    }
}

#[tokio::test]
async fn retry_after_may_be_a_date() {
    let date = SystemTime::now() + Duration::from_secs(6);
    let receiver =
        Receiver::scripted(first(1, Reply::header(429, "retry-after", httpdate::fmt_http_date(date))));
    let db = Db::new().await;
    let org = db.org().await;
    db.destination(org, receiver.url("/")).setting("max_in_flight", 1).insert().await;
    db.events(org, 3).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    db.settled().await;
    // Dates have whole seconds; half a second more for the clocks.
    let second = receiver.received()[1].wall;
    assert!(second >= date - Duration::from_millis(1_500), "{:?} too early", date.duration_since(second));
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 3);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_pause_outlives_the_process() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::header(429, "retry-after", "3600")));
    let (org, other) = (db.org().await, Receiver::start());
    let paused = db.destination(org, receiver.url("/")).setting("max_in_flight", 1).insert().await;
    db.events(org, 3).await;
    let mut program = Posthaste::serve(&db.url).await;
    state_is_set(&db, paused, "paused_until").await;
    program.kill_9();
    receiver.reply(Reply::Status(200));
    receiver.forget();
    db.destination(org, other.url("/")).insert().await;
    let _program = Posthaste::serve(&db.url).await;
    db.events(org, 20).await;
    eventually("the other one has its events", async || other.accepted().len() == 20).await;
    assert_eq!(receiver.count(), 0, "requests during the pause");
    let length = "SELECT extract(epoch FROM paused_until - timezone('UTC', now()))::bigint
        FROM posthaste_destination_state";
    assert!((3000..=3600).contains(&db.number(length).await));
    // Enabling clears the pause, whatever is left of it.
    crate::set(&db, paused, "enabled = false").await;
    crate::soon("it is stopped", async || program_stopped(&_program, paused)).await;
    crate::set(&db, paused, "enabled = true").await;
    db.settled().await;
    assert_eq!(state(&db, paused, "paused_until").await, None);
    check_invariants(&db, &[&receiver, &other]).await;
}

fn program_stopped(program: &Posthaste, destination: uuid::Uuid) -> bool {
    program.log().contains(&format!("destination={destination} is not enabled any more"))
}

#[tokio::test]
async fn the_answers_to_requests_that_were_in_flight_together_are_one_pause() {
    // Without Retry-After the pause doubles with each further one: 32 at once must not make it hours.
    let (release, released) = tokio::sync::watch::channel(false);
    let (db, receiver) = (Db::new().await, Receiver::scripted(first(32, Reply::Held(429, released))));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(3, 500).insert().await;
    db.events(org, 40).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    eventually("all are in flight", async || receiver.in_flight() == 32).await;
    release.send(true).unwrap();
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 40);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn pauses_without_a_length_grow_with_each_further_one() {
    let (db, receiver) = (Db::new().await, Receiver::scripted(first(3, Reply::Status(429))));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(0, 500).setting("max_in_flight", 1).insert().await;
    db.events(org, 2).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    db.settled().await;
    let received = receiver.received();
    let pauses: Vec<u128> = received.windows(2).map(|two| (two[1].at - two[0].at).as_millis()).collect();
    // 500, 1000 and 2000 ms, less 20 % of jitter and some milliseconds between clocks.
    assert!(pauses[0] >= 300 && pauses[1] >= 700 && pauses[2] >= 1_500, "{pauses:?}");
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 2, "retry_max 0 is not used up");
    check_invariants(&db, &[&receiver]).await;
}
