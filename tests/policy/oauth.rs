//! Destinations whose requests carry an OAuth2 token.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::sync::watch;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};
use crate::{charged, set, state, state_is_cleared, state_is_set};

const SECRET: &str = "s3cr3t & more";

fn config(tokens: &Receiver, secret: &str) -> String {
    json!({"token_url": tokens.url("/token"), "client_id": "posthaste", "client_secret": secret}).to_string()
}

fn grant(token: &str) -> Reply {
    Reply::body(200, json!({"access_token": token, "token_type": "Bearer", "expires_in": 3600}).to_string())
}

#[tokio::test]
async fn a_hundred_deliveries_in_flight_share_one_token() {
    let (db, tokens) = (Db::new().await, Receiver::with(grant("t0k3n")));
    let (release, released) = watch::channel(false);
    let receiver = Receiver::scripted(move |request| match request.header("authorization") {
        Some("Bearer t0k3n") => Reply::Held(200, released.clone()),
        _ => Reply::Status(403),
    });
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).auth("oauth2", &config(&tokens, SECRET));
    destination.timeout_ms(30_000).setting("max_in_flight", 100).insert().await;
    let program = Posthaste::serve(&db.url).await;
    // In flight doubles with each success only after a trip; a healthy destination starts with all.
    db.events(org, 100).await;
    eventually("a hundred are in flight", async || receiver.in_flight() == 100).await;
    release.send(true).unwrap();
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 100);
    assert_eq!((tokens.count(), receiver.count()), (1, 100));
    program.assert_silent_about(&[SECRET, "t0k3n", "s3cr3t"]);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn a_token_server_that_fails_trips_the_breaker_and_nobody_else_notices() {
    let (db, receiver, healthy) = (Db::new().await, Receiver::start(), Receiver::start());
    let tokens = Receiver::with(Reply::body(500, "s3cr3t"));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).auth("oauth2", &config(&tokens, SECRET));
    let destination = destination.retry(3, 100).insert().await;
    db.destination(org, healthy.url("/")).insert().await;
    let program = Posthaste::serve(&db.url).await;
    db.events(org, 10).await;
    state_is_set(&db, destination, "tripped_at").await;
    let failed = "error_message = 'the token request failed: the token server answered 500'";
    eventually("the failures are recorded", async || db.deliveries(failed).await >= 5).await;
    eventually("five of them are charged", async || charged(&db, destination).await == 5).await;
    eventually("the healthy one has its events", async || healthy.accepted().len() == 10).await;
    assert_eq!((receiver.count(), db.deliveries("status = 'dead'").await), (0, 0));

    tokens.reply(grant("t0k3n"));
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered'").await, 20);
    state_is_cleared(&db, destination).await;
    let told = "SELECT count(*) FROM posthaste_attempts WHERE response_body IS NOT NULL
        OR error_message LIKE '%s3cr3t%' OR error_message LIKE '%t0k3n%'";
    assert_eq!(db.number(told).await, 0, "nothing of the token server's answers is kept");
    program.assert_silent_about(&["s3cr3t", "t0k3n"]);
    check_invariants(&db, &[&receiver, &healthy]).await;
}

#[tokio::test]
async fn a_token_that_was_revoked_costs_no_attempt() {
    let db = Db::new().await;
    let granted = AtomicUsize::new(0);
    let tokens = Receiver::scripted(move |_| grant(&format!("t-{}", granted.fetch_add(1, Ordering::SeqCst))));
    let receiver = Receiver::start();
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).auth("oauth2", &config(&tokens, SECRET));
    let destination = destination.insert().await;
    let _program = Posthaste::serve(&db.url).await;
    db.events(org, 1).await;
    db.settled().await;
    receiver.script(|request| match request.header("authorization") {
        Some("Bearer t-0") => Reply::Status(401),
        _ => Reply::Status(200),
    });
    db.events(org, 5).await;
    db.settled().await;
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 6);
    assert_eq!(state(&db, destination, "tripped_at").await, None);
    assert_eq!(tokens.count(), 2);
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn another_client_secret_is_used_for_the_next_event() {
    let db = Db::new().await;
    let tokens = Receiver::scripted(|request| {
        let basic = request.header("authorization").unwrap_or_default();
        // posthaste:old and posthaste:new, encoded.
        match basic {
            "Basic cG9zdGhhc3RlOm9sZA==" => grant("old"),
            "Basic cG9zdGhhc3RlOm5ldw==" => grant("new"),
            _ => Reply::Status(401),
        }
    });
    let receiver = Receiver::start();
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).auth("oauth2", &config(&tokens, "old"));
    let destination = destination.insert().await;
    let program = Posthaste::serve(&db.url).await;
    db.events(org, 1).await;
    db.settled().await;
    set(&db, destination, &format!("auth_config = '{}'", config(&tokens, "new"))).await;
    eventually("the change was taken over", async || program.log().contains("has changed")).await;
    db.events(org, 1).await;
    db.settled().await;
    let seen: Vec<String> =
        receiver.received().iter().map(|r| r.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(seen, ["Bearer old", "Bearer new"]);
    check_invariants(&db, &[&receiver]).await;
}
