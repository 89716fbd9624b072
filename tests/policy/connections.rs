//! Connections are kept and used again.

use crate::NO_POLLS;
use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants};

#[tokio::test]
async fn many_requests_share_few_connections() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::body(200, "thank you")));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).setting("max_in_flight", 4).insert().await;
    db.events(org, 300).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    db.settled().await;
    assert_eq!(receiver.count(), 300);
    assert!(receiver.connections() <= 8, "{} connections", receiver.connections());
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn answers_that_are_no_success_keep_their_connection_as_well() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::body(400, "no, thank you")));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).retry(1, 100).setting("max_in_flight", 2).insert().await;
    db.events(org, 100).await;
    let _program = Posthaste::serve(&db.url).await;
    db.settled().await;
    assert_eq!(receiver.count(), 200);
    assert!(receiver.connections() <= 4, "{} connections", receiver.connections());
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_receiver_that_closes_each_connection_without_a_word_costs_no_attempt() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::OkThenClose));
    let org = db.org().await;
    db.destination(org, receiver.url("/")).setting("max_in_flight", 2).insert().await;
    db.events(org, 60).await;
    let _program = Posthaste::serve_with(&db.url, &[NO_POLLS]).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 60);
    assert_eq!(db.number("SELECT count(*) FROM posthaste_attempts").await, 0);
    check_invariants(&db, &[&receiver]).await;
}
