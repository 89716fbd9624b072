//! Times of any year are shown, sent and filtered as ISO 8601 has them.

use serde_json::json;

use crate::Api;
use crate::common::{Db, Receiver, check_invariants};

#[tokio::test]
async fn a_time_of_any_year_is_the_same_in_the_api_on_the_wire_and_for_filters() {
    for (stored, shown) in [
        ("1969-12-31 23:59:59.5", "1969-12-31T23:59:59.500000Z"),
        ("0001-01-01", "0001-01-01T00:00:00.000000Z"),
        ("0001-12-31 BC", "0000-12-31T00:00:00.000000Z"),
        ("0044-03-15 12:00 BC", "-0043-03-15T12:00:00.000000Z"),
        ("9999-12-31 23:59:59.999999", "9999-12-31T23:59:59.999999Z"),
        ("10000-01-01", "+10000-01-01T00:00:00.000000Z"),
        ("294246-12-31", "+294246-12-31T00:00:00.000000Z"),
        ("infinity", "infinity"),
        ("-infinity", "-infinity"),
    ] {
        let (db, receiver) = (Db::new().await, Receiver::start());
        let org = db.org().await;
        let path = json!({"$jsonpath": format!("$.created_at == \"{shown}\"")});
        db.destination(org, receiver.url("/")).event_filter(&path.to_string()).insert().await;
        let api = Api::on(&db).await;
        db.execute(&format!(
            "INSERT INTO activity_logs (org_id, event_type, event_category, created_at)
             VALUES ('{org}', 't', 'c', '{stored}')"
        ))
        .await;
        assert_eq!(db.deliveries("true").await, 1, "{stored}: the filter holds");
        db.settled().await;
        let sent = receiver.received()[0].json();
        assert_eq!((&sent["timestamp"], &sent["data"]["created_at"]), (&json!(shown), &json!(shown)));
        let event = db.text("SELECT id FROM activity_logs").await.unwrap();
        let (status, event) = api.get(org, &format!("/events/{event}")).await;
        assert_eq!((status, &event["created_at"]), (200, &json!(shown)), "{event}");
        let (status, list) = api.get(org, "/events").await;
        assert_eq!(status, 200, "{list}");
        // An end of time is not earlier than itself.
        if stored != "infinity" {
            assert_eq!(list["items"][0]["created_at"], shown, "{list}");
        }
        if !stored.ends_with("infinity") {
            let encoded = shown.replace('+', "%2B");
            let (status, list) = api.get(org, &format!("/events?from={encoded}")).await;
            assert_eq!((status, list["items"].as_array().map(Vec::len)), (200, Some(1)), "{shown}: {list}");
        }
        check_invariants(&db, &[&receiver]).await;
    }
}
