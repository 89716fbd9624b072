//! Why something has not arrived: what the tables say becomes the sentence that people are told.

use posthaste::manage::{deliveries, destinations, events};
use posthaste::model::{DeliveryId, DestinationId, EventId, OrgId};
use posthaste::store::Connection;
use uuid::Uuid;

use crate::common::{Db, run};
use crate::{OPERATOR, connection};

const URL: &str = "http://127.0.0.1:1/";
const MAX_BYTES: usize = 1 << 20;

/// The reason of the only delivery of `destination`.
async fn reason(db: &Db, conn: &mut Connection, org: OrgId, destination: Uuid) -> String {
    let id = format!("SELECT id FROM webhook_deliveries WHERE destination_id = '{destination}'");
    let id = DeliveryId(db.text(&id).await.unwrap().parse().unwrap());
    let view = deliveries::one(conn, org, id).await.unwrap().delivery;
    let query = deliveries::Query { destination: Some(destination.to_string()), ..Default::default() };
    let listed = deliveries::list(conn, org, &query).await.unwrap().items.remove(0);
    assert_eq!((listed.id, listed.next_retry_at), (view.id, view.next_retry_at));
    view.reason
}

/// The same with times replaced by `T`: all of them are of this test.
fn timeless(text: &str) -> String {
    let is_time = |word: &str| word.len() >= 20 && word.starts_with("20") && word.contains('T');
    let words = text.split(' ').map(|word| match word.trim_end_matches([',', ';', ':']) {
        time if is_time(time) => word.replace(time, "T"),
        _ => word.to_owned(),
    });
    words.collect::<Vec<_>>().join(" ")
}

#[tokio::test]
async fn each_reason_why_a_delivery_waits_is_told() {
    let db = Db::new().await;
    let org = db.org().await;
    let mut conn = connection(&db).await;
    let now = "timezone('UTC', clock_timestamp())";
    let state = |set: &str, to: &str| {
        format!(
            "INSERT INTO posthaste_destination_state (destination_id, {set}) SELECT id, {to}
             FROM webhook_destinations"
        )
    };
    let soon = format!("{now} + interval '1 h'");
    let table = [
        ("SELECT 1".to_owned(), "is due since T"),
        (
            "UPDATE webhook_deliveries SET status = 'failed', attempts = 2, error_message = 'it hung',
             next_retry_at = timezone('UTC', now()) + interval '1 h'"
                .into(),
            "waits for retry 2 of 5 at T: it hung",
        ),
        (format!("UPDATE webhook_deliveries SET last_attempt_at = {now}"), "is being sent since T"),
        (
            "UPDATE webhook_destinations SET enabled = false".into(),
            "waits until its destination is enabled: the destination is disabled since T: by hand",
        ),
        (state("paused_until", &soon), "waits until T: the receiver asked for a pause"),
        (
            state("tripped_at, failing_since, next_probe_at", &format!("{now}, {now}, {soon}")),
            "waits until its destination recovers: the breaker tripped at T, failing since T; next probe \
             at T",
        ),
        (
            format!(
                "INSERT INTO posthaste_faults
                    (kind, destination_id, delivery_id, message, since, last_seen_at, tries)
                 SELECT 'claim', destination_id, id, 'it cannot be read', {now}, {now}, 1
                 FROM webhook_deliveries"
            ),
            "waits until this is corrected: it cannot be read",
        ),
        (
            "INSERT INTO posthaste_destination_settings (destination_id, batch_max_events, batch_wait_ms)
             SELECT id, 50, 300000 FROM webhook_destinations"
                .into(),
            "waits for a batch to fill, until T at most",
        ),
        (
            "INSERT INTO posthaste_destination_settings (destination_id, rate_limit_per_second)
             SELECT id, 0.25 FROM webhook_destinations"
                .into(),
            "is due since T; the rate limit lets 0.25 requests a second through",
        ),
        (
            "UPDATE webhook_deliveries SET status = 'dead', attempts = 3, error_message = 'it hung'".into(),
            "dead after 3 attempts: it hung",
        ),
        (
            format!("UPDATE webhook_deliveries SET status = 'delivered', delivered_at = {now}"),
            "delivered at T",
        ),
    ];
    for (change, expected) in table {
        let destination = db.destination(org, URL).retry(5, 1_000).insert().await;
        db.events(org, 1).await;
        db.execute(&change).await;
        let told = reason(&db, &mut conn, OrgId(org), destination).await;
        assert_eq!(timeless(&told), expected, "{change}");
        db.execute("DELETE FROM webhook_deliveries").await;
        db.execute("DELETE FROM posthaste_faults").await;
        db.execute("DELETE FROM webhook_destinations").await;
    }
}

#[tokio::test]
async fn what_is_ahead_is_told() {
    let db = Db::new().await;
    let org = db.org().await;
    let mut conn = connection(&db).await;
    let plain = db.destination(org, URL).insert().await;
    let ordered = db.destination(org, URL).setting("ordered", true).insert().await;
    db.events(org, 3).await;
    for (destination, expected) in [
        (plain, "is due since T, behind 2 deliveries of its destination".to_owned()),
        (ordered, {
            let first = format!(
                "SELECT id FROM webhook_deliveries WHERE destination_id = '{ordered}'
                 ORDER BY created_at LIMIT 1"
            );
            format!("waits behind delivery {} in an ordered queue", db.text(&first).await.unwrap())
        }),
    ] {
        let last = format!(
            "SELECT id FROM webhook_deliveries WHERE destination_id = '{destination}'
             ORDER BY created_at DESC LIMIT 1"
        );
        let last = DeliveryId(db.text(&last).await.unwrap().parse().unwrap());
        let told = deliveries::one(&mut conn, OrgId(org), last).await.unwrap().delivery.reason;
        assert_eq!(timeless(&told), expected);
    }
}

#[tokio::test]
async fn each_reason_why_an_event_was_not_queued_is_told() {
    let db = Db::new().await;
    let org = db.org().await;
    let mut conn = connection(&db).await;
    let names = ["gets it", "type", "member", "jsonpath", "disabled", "was disabled"];
    for name in names {
        let destination = db.destination(org, URL).name(name);
        match name {
            "type" => destination.event_types("{order.*}").insert().await,
            "member" => destination.event_filter(r#"{"n": 1, "of": {"x": true}}"#).insert().await,
            "jsonpath" => destination.event_filter(r#"{"$jsonpath": "$.payload.n > 5"}"#).insert().await,
            _ => destination.insert().await,
        };
    }
    let off = "UPDATE webhook_destinations SET enabled = false WHERE name LIKE '%disabled'";
    db.execute(off).await;
    let event = db.event(org, "user.created", r#"{"n": 1, "of": {"x": false}}"#).await;
    db.execute("UPDATE webhook_destinations SET enabled = true WHERE name = 'was disabled'").await;
    db.destination(org, URL).name("created later").insert().await;
    db.destination(db.org().await, URL).name("of somebody else").insert().await;

    let shown = events::one(&mut conn, OrgId(org), OPERATOR, EventId(event), MAX_BYTES).await.unwrap();
    assert_eq!(shown.deliveries.len(), 1);
    let told: Vec<(&str, String)> =
        shown.not_queued.iter().map(|one| (one.destination_name.as_str(), timeless(&one.reason))).collect();
    let told: Vec<(&str, &str)> = told.iter().map(|(name, reason)| (*name, reason.as_str())).collect();
    assert_eq!(
        told,
        [
            ("type", "not queued: the type user.created is not among the destination's event_types"),
            ("member", "not queued: the payload does not contain what event_filter wants at \"of\""),
            ("jsonpath", "not queued: the $jsonpath of event_filter does not hold for the event"),
            ("disabled", "not queued: the destination is disabled since T: by hand"),
            (
                "was disabled",
                "not queued: the destination was disabled from T until T; posthaste events backfill queues it"
            ),
            (
                "created later",
                "not queued: the destination was created later, at T; posthaste events backfill queues it"
            ),
        ]
    );
    let org_text = org.to_string();
    let output = run(
        &["events", "show", &event.to_string(), "--org", &org_text],
        &[("DATABASE_URL", db.url.reveal())],
    );
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(printed.contains("the type user.created is not among"), "{printed}");
}

#[tokio::test]
async fn a_destination_that_is_disabled_by_sql_says_since_when() {
    let db = Db::new().await;
    let org = db.org().await;
    let mut conn = connection(&db).await;
    let id = db.destination(org, URL).insert().await;
    for (change, state, text) in [
        ("enabled = true", "ok", "ok"),
        ("enabled = false", "disabled", "disabled since T: by hand"),
        ("enabled = true", "ok", "ok"),
    ] {
        db.execute(&format!("UPDATE webhook_destinations SET {change}")).await;
        let view = destinations::one(&mut conn, OrgId(org), OPERATOR, DestinationId(id)).await.unwrap();
        assert_eq!((view.health.state, timeless(&view.health.text).as_str()), (state, text));
    }
}
