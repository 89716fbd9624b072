//! The test of a destination: the very path of deliveries, and nothing left behind.

use std::time::Duration;

use posthaste::manage::destinations::{self, TestView};
use posthaste::model::{DestinationId, OrgId};
use posthaste::policy::egress::Rules;
use serde_json::{Value, json};
use standardwebhooks::Webhook;

use crate::common::{Db, Receiver, Reply, check_invariants};
use crate::{Desk, connection, good};

const SECRET: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";

async fn test(db: &Db, desk: &Desk, org: OrgId, id: DestinationId) -> TestView {
    let prepared = destinations::prepare(&mut connection(db).await, org, id, desk.setup()).await.unwrap();
    prepared.run().await
}

#[actix_rt::test]
async fn a_test_is_signed_and_authenticated_like_a_delivery_and_its_answer_is_shown() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let receiver = Receiver::with(Reply::body(200, "thank you".as_bytes().to_vec()));
    let desk = Desk::new();
    let mut conn = connection(&db).await;
    let json = json!({"signing_secret": SECRET, "enabled": false, "auth_type": "bearer",
        "auth_config": {"token": "hunter2"}, "settings": {"extra_headers": {"x-a": "b"}}});
    let created = desk.create(&mut conn, org.0, &good(&receiver.url("/in?a=b"), json)).await.unwrap();
    let id = DestinationId(created.destination.id);
    let done = test(&db, &desk, org, id).await;
    assert!(done.delivered && done.error_message.is_none(), "{done:?}");
    assert_eq!((done.response_status, done.response_body.as_deref()), (Some(200), Some("thank you")));
    let request = receiver.received().pop().unwrap();
    let headers =
        request.headers.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect();
    Webhook::new(SECRET).unwrap().verify(&request.body, &headers).unwrap();
    assert_eq!((request.path.as_str(), request.header("authorization")), ("/in?a=b", Some("Bearer hunter2")));
    let event_id = done.event_id.to_string();
    assert_eq!((request.header("x-a"), request.header("webhook-id")), (Some("b"), Some(&*event_id)));
    let body = request.json();
    let data = &body["data"];
    assert_eq!((&body["type"], &data["event_category"]), (&json!("webhook.test"), &json!("webhook")));
    assert_eq!((&data["org_id"], &data["payload"]["destination_id"]), (&json!(org.0), &json!(id.0)));
    for table in ["webhook_deliveries", "activity_logs", "posthaste_attempts"] {
        assert_eq!(db.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    check_invariants(&db, &[]).await;
}

#[actix_rt::test]
async fn a_test_tells_what_keeps_deliveries_from_arriving_and_is_not_repeated() {
    let db = Db::new().await;
    let org = OrgId(db.org().await);
    let receiver = Receiver::start();
    let desk = Desk::new();
    let closed = Desk::with("", Rules::default());
    let mut conn = connection(&db).await;
    let json = json!({"timeout_ms": 1_000, "batch_size": 5});
    let id = desk.create(&mut conn, org.0, &good(&receiver.url("/"), json)).await.unwrap().destination.id;
    let id = DestinationId(id);
    let long = "x".repeat(5_000);
    let table: [(Reply, Option<u16>, &str); 5] = [
        (Reply::body(500, long.into_bytes()), Some(500), "the receiver answered 500"),
        (Reply::Status(301), Some(301), "the receiver answered 301"),
        (Reply::header(429, "retry-after", "60"), Some(429), "the receiver answered 429"),
        (Reply::Reset, None, "connection"),
        (Reply::Hang, None, "timed out after 1000 ms while waiting for the answer"),
    ];
    for (at, (reply, status, words)) in table.into_iter().enumerate() {
        receiver.reply(reply);
        let done = test(&db, &desk, org, id).await;
        assert!(!done.delivered && done.response_status == status, "{done:?}");
        let error = done.error_message.unwrap();
        assert!(error.contains(words), "{error}");
        assert!(done.response_body.unwrap_or_default().len() <= 4_096);
        assert_eq!(receiver.count(), at + 1);
        if status.is_none() && words.starts_with("timed") {
            assert!((1_000..10_000).contains(&done.latency_ms), "{}", done.latency_ms);
        }
    }
    // A batch, as a delivery would be.
    assert!(receiver.received().iter().all(|request| matches!(request.json(), Value::Array(_))));
    let refused = test(&db, &closed, org, id).await;
    assert!(!refused.delivered && refused.error_message.unwrap().contains("loopback"));
    assert_eq!(receiver.count(), 5, "nothing was connected to");
    // By a name as well, which has to be looked up.
    let by_name = db.destination(org.0, "http://localhost.localdomain:1/").insert().await;
    let none = test(&db, &closed, org, DestinationId(by_name)).await;
    assert!(!none.delivered && none.latency_ms < Duration::from_secs(6).as_millis() as u64, "{none:?}");
    // Not every machine knows that name.
    let why = none.error_message.unwrap();
    assert!(why.contains("leads to a loopback address") || why.contains("cannot be looked up"), "{why}");
    check_invariants(&db, &[]).await;
}
