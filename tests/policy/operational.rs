//! Operational events: an organization hears of its own deliveries' troubles, if that is wanted.

use uuid::Uuid;

use crate::common::{Db, Posthaste, Receiver, Reply, check_invariants, eventually};
use crate::state_is_set;

const ON: (&str, &str) = ("POSTHASTE_OPERATIONAL_EVENTS", "true");

/// The types of the operational events that exist, in order.
async fn announced(db: &Db) -> String {
    let types = "SELECT coalesce(string_agg(event_type, ' ' ORDER BY event_type), '')
        FROM activity_logs WHERE event_category = 'webhook'";
    db.text(types).await.unwrap()
}

/// The events of a type that `receiver` got, as their `data`.
fn told(receiver: &Receiver, event_type: &str) -> Vec<serde_json::Value> {
    let received = receiver.received();
    let of_type = received.iter().filter(|r| r.header("posthaste-event-type") == Some(event_type));
    of_type.map(|request| request.json()["data"].clone()).collect()
}

#[tokio::test]
async fn a_subscriber_hears_of_dead_deliveries_tripped_breakers_and_disabled_destinations() {
    let db = Db::new().await;
    let (org, other, operator, stranger) =
        (db.org().await, db.org().await, Receiver::start(), Receiver::start());
    let subscriber = db.destination(org, operator.url("/")).event_types("{webhook.*}").insert().await;
    db.destination(other, stranger.url("/")).insert().await;
    let receivers = [400, 500, 410].map(|status| Receiver::with(Reply::Status(status)));
    let mut destinations: Vec<Uuid> = Vec::new();
    for (receiver, retries) in receivers.iter().zip([0, 10, 10]) {
        let destination =
            db.destination(org, receiver.url("/")).retry(retries, 100).event_types("{test.event}");
        destinations.push(destination.setting("max_in_flight", 1).insert().await);
    }
    let _program = Posthaste::serve_with(&db.url, &[ON]).await;
    let events = db.events(org, 1).await;
    // Two deliveries die: one is refused without retries, the other's receiver is gone.
    for (event_type, count) in [
        ("webhook.delivery.dead", 2),
        ("webhook.destination.tripped", 1),
        ("webhook.destination.disabled", 1),
    ] {
        eventually(event_type, async || told(&operator, event_type).len() == count).await;
    }
    for dead in told(&operator, "webhook.delivery.dead") {
        assert_eq!(dead["event_category"], "webhook");
        assert_eq!(dead["payload"]["event_id"], events[0].to_string());
        assert_eq!(dead["payload"]["event_type"], "test.event");
    }
    let about = |event_type| told(&operator, event_type)[0]["payload"]["destination_id"].clone();
    assert_eq!(about("webhook.destination.tripped"), destinations[1].to_string());
    assert_eq!(about("webhook.destination.disabled"), destinations[2].to_string());
    assert_eq!(stranger.count(), 0, "another organization was told");

    receivers[1].reply(Reply::Status(200));
    db.settled().await;
    let delivered = crate::deliveries_of(&db, subscriber, "status = 'delivered'").await;
    assert_eq!(delivered, 4);
    check_invariants(&db, &[&operator, &stranger]).await;
}

#[tokio::test]
async fn they_are_off_by_default() {
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Status(410)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).insert().await;
    let _program = Posthaste::serve(&db.url).await;
    db.events(org, 1).await;
    state_is_set(&db, destination, "disabled_at").await;
    db.settled().await;
    assert_eq!(announced(&db).await, "");
    check_invariants(&db, &[&receiver]).await;
}

#[tokio::test]
async fn operational_events_that_cannot_be_delivered_create_no_further_ones() {
    for (status, retries) in [(400, 0), (410, 10), (500, 10)] {
        let (db, operator) = (Db::new().await, Receiver::with(Reply::Status(status)));
        let (org, refusing) = (db.org().await, Receiver::with(Reply::Status(400)));
        let subscriber = db.destination(org, operator.url("/")).retry(retries, 100);
        let subscriber = subscriber.event_types("{webhook.*}").insert().await;
        db.destination(org, refusing.url("/")).retry(0, 100).event_types("{test.event}").insert().await;
        let _program = Posthaste::serve_with(&db.url, &[ON]).await;
        db.events(org, 6).await;
        match status {
            400 => db.settled().await,
            410 => state_is_set(&db, subscriber, "disabled_at").await,
            _ => state_is_set(&db, subscriber, "tripped_at").await,
        }
        // Operational events are written in order: if there were others, they would stand before this one.
        db.events(org, 1).await;
        eventually("the last one is announced", async || announced(&db).await.split(' ').count() >= 7).await;
        assert_eq!(announced(&db).await, ["webhook.delivery.dead"; 7].join(" "), "{status}");
        operator.reply(Reply::Status(200));
        if status != 410 {
            db.settled().await;
        }
        check_invariants(&db, &[&operator, &refusing]).await;
    }
}

#[tokio::test]
async fn a_destination_is_announced_as_disabled_once_however_many_requests_were_in_flight() {
    let (release, released) = tokio::sync::watch::channel(false);
    let (db, receiver) = (Db::new().await, Receiver::with(Reply::Held(410, released)));
    let org = db.org().await;
    let destination = db.destination(org, receiver.url("/")).timeout_ms(30_000).event_types("{test.event}");
    let destination = destination.insert().await;
    let _program = Posthaste::serve_with(&db.url, &[ON]).await;
    db.events(org, 10).await;
    eventually("all are in flight", async || receiver.in_flight() == 10).await;
    release.send(true).unwrap();
    state_is_set(&db, destination, "disabled_at").await;
    db.settled().await;
    eventually("all deaths are announced", async || {
        announced(&db).await.matches("webhook.delivery.dead").count() == 10
    })
    .await;
    assert_eq!(announced(&db).await.matches("webhook.destination.disabled").count(), 1);
    check_invariants(&db, &[&receiver]).await;
}
