//! No destination slows another one down, no tenant another tenant.

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};
use crate::{accepted, times_received};

/// Hanging requests are given back after this, so that the tests end soon.
const SHORT_GRACE: (&str, &str) = ("POSTHASTE_SHUTDOWN_GRACE", "100ms");

#[tokio::test]
async fn nine_healthy_destinations_receive_everything_while_a_tenth_holds_its_requests() {
    let db = Db::new().await;
    let hanging = Receiver::with(Reply::Hang);
    let healthy: Vec<Receiver> = (0..9).map(|_| Receiver::start()).collect();
    let org = db.org().await;
    db.destination(org, hanging.url("/")).insert().await;
    for receiver in &healthy {
        db.destination(org, receiver.url("/")).insert().await;
    }
    let mut posthaste = Posthaste::serve_with(&db.url, &[SHORT_GRACE]).await;

    let mut events = Vec::new();
    for _ in 0..10 {
        events.extend(db.events(org, 5).await);
        for receiver in &healthy {
            accepted(receiver, &events).await;
        }
        let held = hanging.in_flight();
        assert!(held > 0, "the hanging receiver has let its requests go, or never had any");
    }
    for receiver in &healthy {
        assert!(times_received(receiver).values().all(|times| *times == 1));
    }
    assert!(posthaste.terminate().await.success());
    assert_eq!(db.deliveries("status = 'delivered' AND attempts = 1").await, 9 * 50);
    check_invariants(&db, &healthy.iter().collect::<Vec<_>>()).await;
}

#[tokio::test]
async fn forty_hanging_destinations_of_one_tenant_leave_room_for_another() {
    let db = Db::new().await;
    let hanging = Receiver::with(Reply::Hang);
    let healthy = Receiver::start();
    let (theirs, ours) = (db.org().await, db.org().await);
    for number in 0..40 {
        let destination = db.destination(theirs, hanging.url(&format!("/{number}")));
        destination.timeout_ms(30_000).insert().await;
    }
    db.destination(ours, healthy.url("/")).insert().await;
    let environment = [SHORT_GRACE, ("POSTHASTE_MAX_IN_FLIGHT", "64")];
    let mut posthaste = Posthaste::serve_with(&db.url, &environment).await;

    // 400 deliveries for 64 places: the tenant takes all that it may.
    db.events(theirs, 10).await;
    eventually("the hanging tenant holds its share", async || hanging.in_flight() > 32).await;
    let events = db.events(ours, 300).await;
    accepted(&healthy, &events).await;
    assert!(hanging.in_flight() > 32, "they hang no more");
    assert!(hanging.most_in_flight() < 64, "they took everything");
    assert!(posthaste.terminate().await.success());
    assert_eq!(db.deliveries("status = 'delivered'").await, 300);
    check_invariants(&db, &[&healthy]).await;
}

#[tokio::test]
async fn misbehaving_destinations_affect_only_their_own_deliveries() {
    let db = Db::new().await;
    let bad: Vec<Receiver> = [
        Reply::Hang,
        Reply::Reset,
        Reply::Drip(500, std::time::Duration::from_millis(50)),
        Reply::Status(500),
        Reply::Raw(b"SSH-2.0-OpenSSH\r\n".to_vec()),
        Reply::Raw(Vec::new()),
        Reply::header(429, "retry-after", "86400"),
    ]
    .map(Receiver::with)
    .into();
    let healthy = Receiver::start();
    let org = db.org().await;
    let to = |receiver: &Receiver| db.destination(org, receiver.url("/")).timeout_ms(1_000).retry(3, 100);
    for receiver in &bad {
        to(receiver).insert().await;
    }
    db.destination(org, "http://169.254.169.254/latest").insert().await;
    db.destination(org, "gopher://example.com/").insert().await;
    db.destination(org, healthy.url("/")).insert().await;
    let mut posthaste = Posthaste::serve_with(&db.url, &[SHORT_GRACE]).await;
    let mut events = Vec::new();
    // Long enough that all of them have been tried, more than once where that is allowed.
    eventually("every bad destination was tried", async || {
        events.extend(db.events(org, 5).await);
        accepted(&healthy, &events).await;
        let tried = "SELECT count(DISTINCT destination_id) FROM webhook_deliveries WHERE error_message <> ''";
        db.number(tried).await == 9
    })
    .await;
    accepted(&healthy, &events).await;
    assert!(times_received(&healthy).values().all(|times| *times == 1));
    assert!(posthaste.terminate().await.success());
    assert!(!posthaste.log().contains("panicked"));
    assert_eq!(db.deliveries("status = 'delivered'").await, events.len() as i64);
    check_invariants(&db, &[&healthy]).await;
}
